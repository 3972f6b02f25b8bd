package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/isthmus-mesh/isthmus/e2e/peer"
)

// handover is what the outer process tells the inner one.
type handover struct {
	Peers  peer.Set
	Folder string // for logs
	Begun  time.Time
	Steps  int // already on the screen
}

func (h handover) json() []byte {
	b, err := json.Marshal(h)
	if err != nil {
		panic(err) // strings, a time and a number always can be
	}
	return b
}

func parseHandover(b []byte) (handover, error) {
	var h handover
	err := json.Unmarshal(b, &h)
	return h, err
}

// freeAddress is address if it is free, and any port on the same host else.
func freeAddress(address string) string {
	l, err := net.Listen("tcp", address)
	if err != nil {
		host, _, _ := net.SplitHostPort(address)
		return net.JoinHostPort(host, "0")
	}
	l.Close()
	return address
}

// logFolder is where one run's logs are. A run that failed leaves it; the next run removes it.
type logFolder struct {
	path   string
	lock   *os.File // held as long as the run lasts
	failed bool
}

const logFolderPrefix = "isthmus-demo-"

// runFolder makes a folder for this run and removes those that earlier runs left.
func runFolder() (*logFolder, error) {
	old, err := filepath.Glob(filepath.Join(os.TempDir(), logFolderPrefix+"*"))
	if err != nil {
		return nil, err
	}
	for _, path := range old {
		// A run that is under way holds its lock. Another user's folder cannot be opened, and stays.
		f, err := os.OpenFile(filepath.Join(path, "lock"), os.O_RDWR, 0)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.RemoveAll(path)
		}
		f.Close()
	}
	path, err := os.MkdirTemp("", logFolderPrefix)
	if err != nil {
		return nil, err
	}
	f, err := os.Create(filepath.Join(path, "lock"))
	if err = errors.Join(err, os.Chmod(path, 0o755)); err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, err
	}
	return &logFolder{path: path, lock: f}, nil
}

// close removes the folder unless there is something in it to look at.
func (l *logFolder) close(keep bool) {
	defer l.lock.Close()
	switch {
	case keep && !l.failed: // the inner process has said it otherwise
		fmt.Printf("logs are in %s\n", l.path)
	case !l.failed && strings.Contains(l.path, logFolderPrefix):
		_ = os.RemoveAll(l.path)
	}
}
