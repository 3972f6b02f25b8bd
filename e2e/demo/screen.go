package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// screen prints the story: plain lines, with colour and a line of progress on a terminal only.
type screen struct {
	mu       sync.Mutex
	out      io.Writer
	terminal bool
	colour   bool
	begun    time.Time
	steps    int
	pending  bool // the last line is progress, to be written over
}

func newScreen(f *os.File) *screen {
	terminal := term.IsTerminal(int(f.Fd()))
	return &screen{out: f, terminal: terminal, begun: time.Now(),
		colour: terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

// The colours, as in ECMA-48.
const (
	bold  = "1"
	dim   = "2"
	red   = "31"
	green = "32"
	cyan  = "36"
)

func (s *screen) paint(colour, text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// line prints one line, over the line of progress if there is one.
func (s *screen) line(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	fmt.Fprintln(s.out, text)
}

func (s *screen) clear() {
	if s.pending {
		fmt.Fprint(s.out, "\r\x1b[K")
		s.pending = false
	}
}

// status shows text in the line of progress; on something that is no terminal it shows nothing.
func (s *screen) status(text string) {
	if !s.terminal {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	if width, _, err := term.GetSize(int(os.Stdout.Fd())); err == nil && len(text) >= width && width > 1 {
		text = text[:width-1]
	}
	fmt.Fprint(s.out, s.paint(dim, text))
	s.pending = true
}

func (s *screen) elapsed() string { return fmt.Sprintf("%.1f s", time.Since(s.begun).Seconds()) }

func (s *screen) title(text string) { s.line(s.paint(bold, text)) }

// step begins a step.
func (s *screen) step(text string) {
	s.steps++
	s.line("")
	s.line(s.paint(bold+";"+cyan, fmt.Sprintf("%2d. %s", s.steps, text)) + s.paint(dim, fmt.Sprintf("  [%s]", s.elapsed())))
}

// note says something within a step.
func (s *screen) note(format string, args ...any) { s.line("    " + fmt.Sprintf(format, args...)) }

// ok says that something was checked.
func (s *screen) ok(format string, args ...any) {
	s.line("    " + s.paint(green, "ok") + " " + fmt.Sprintf(format, args...))
}

// quote shows what another program has said.
func (s *screen) quote(text string) {
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		s.line("    " + s.paint(dim, "│") + " " + line)
	}
}

// failure says which step failed, and why.
func (s *screen) failure(e *stepError) {
	s.line("")
	s.line(s.paint(bold+";"+red, fmt.Sprintf("FAILED: step %d, %s", e.number, e.title)))
	s.quote(e.err.Error())
}

// working shows, until the returned function is called, that something goes on that takes longer than a second.
func (s *screen) working(what string) (done func()) {
	begin := time.Now()
	quit := make(chan struct{})
	var end sync.WaitGroup
	end.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				s.mu.Lock()
				s.clear()
				s.mu.Unlock()
				return
			case <-tick.C:
				s.status(fmt.Sprintf("    … %s, %.0f s", what, time.Since(begin).Seconds()))
			}
		}
	})
	return sync.OnceFunc(func() { close(quit); end.Wait() })
}

// obtaining shows the progress of peer.Obtain.
type obtaining struct {
	s    *screen
	mu   sync.Mutex
	open map[string]work
	quit chan struct{}
	done sync.WaitGroup
}

type work struct {
	begun time.Time
	about time.Duration
}

// reminder is how often what goes on is said again where there is no terminal.
const reminder = 30 * time.Second

func (s *screen) progress() *obtaining {
	o := &obtaining{s: s, open: make(map[string]work), quit: make(chan struct{})}
	o.done.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		said := time.Now()
		for {
			select {
			case <-o.quit:
				return
			case now := <-tick.C:
				text := o.text()
				if text == "" {
					continue
				}
				s.status("    … " + text)
				if !s.terminal && now.Sub(said) >= reminder {
					said = now
					s.note("… %s", text)
				}
			}
		}
	})
	return o
}

// text says what is going on.
func (o *obtaining) text() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var parts []string
	for what, w := range o.open {
		parts = append(parts, fmt.Sprintf("%s %s of about %s", what, round(time.Since(w.begun)), round(w.about)))
	}
	return strings.Join(parts, ", ")
}

func round(d time.Duration) string {
	return fmt.Sprintf("%d:%02d", int(d.Minutes()), int(d.Seconds())%60)
}

// Begin implements peer.Progress.
func (o *obtaining) Begin(what string, about time.Duration) func(error) {
	o.mu.Lock()
	o.open[what] = work{time.Now(), about}
	o.mu.Unlock()
	o.s.note("%s: about %s on two idle cores, the first time", what, round(about))
	return func(err error) {
		o.mu.Lock()
		took := time.Since(o.open[what].begun)
		delete(o.open, what)
		o.mu.Unlock()
		if err == nil {
			o.s.ok("%s, %s", what, round(took))
		}
	}
}

func (o *obtaining) close() {
	close(o.quit)
	o.done.Wait()
	o.s.mu.Lock()
	defer o.s.mu.Unlock()
	o.s.clear()
}
