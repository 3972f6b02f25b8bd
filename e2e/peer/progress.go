package peer

import (
	"fmt"
	"io"
	"time"
)

// Lines is a Progress that prints a line at the beginning and at the end of each work.
func Lines(w io.Writer) Progress { return lines{w} }

type lines struct{ w io.Writer }

func (l lines) Begin(what string, about time.Duration) func(error) {
	begun := time.Now()
	fmt.Fprintf(l.w, "%s: about %s on two idle cores, the first time\n", what, about)
	return func(err error) {
		result := "done"
		if err != nil {
			result = "failed"
		}
		fmt.Fprintf(l.w, "%s: %s after %s\n", what, result, time.Since(begun).Round(time.Second))
	}
}
