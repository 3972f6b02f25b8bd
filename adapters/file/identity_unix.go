//go:build unix

package file

import (
	"fmt"
	"os"
	"syscall"
)

// identity tells a folder from another one that has taken its name; "" if it cannot be told.
func identity(folder string) string {
	info, err := os.Stat(folder)
	if err != nil {
		return ""
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return fmt.Sprintf("%d:%d", s.Dev, s.Ino)
	}
	return folder
}
