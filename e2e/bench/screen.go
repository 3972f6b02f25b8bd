package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// screen shows how far the benchmark is: on a terminal in a line that is written over, elsewhere in plain lines, of which there
// are fewer.
type screen struct {
	mu       sync.Mutex
	out      io.Writer
	terminal bool
	begun    time.Time
	pending  bool // the last line is to be written over
}

func newScreen(f *os.File) *screen {
	return &screen{out: f, terminal: term.IsTerminal(int(f.Fd())), begun: time.Now()}
}

// line prints a line that stays.
func (s *screen) line(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	fmt.Fprintf(s.out, "%s  %s\n", s.elapsed(), fmt.Sprintf(format, args...))
}

// status shows what goes on now, on a terminal only.
func (s *screen) status(format string, args ...any) {
	if !s.terminal {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	fmt.Fprintf(s.out, "%s  %s", s.elapsed(), fmt.Sprintf(format, args...))
	s.pending = true
}

// done clears the line that is to be written over.
func (s *screen) done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
}

func (s *screen) clear() {
	if s.pending {
		fmt.Fprint(s.out, "\r\x1b[K")
		s.pending = false
	}
}

func (s *screen) elapsed() string {
	d := time.Since(s.begun)
	return fmt.Sprintf("[%d:%02d]", int(d.Minutes()), int(d.Seconds())%60)
}

// Begin implements peer.Progress.
func (s *screen) Begin(what string, about time.Duration) func(error) {
	s.line("%s: about %s on two idle cores, the first time", what, about)
	return func(err error) {
		if err != nil {
			s.line("%s: failed", what)
			return
		}
		s.line("%s: done", what)
	}
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
