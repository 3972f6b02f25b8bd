package machine

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// poll is how often a condition is looked at that nobody reports.
const poll = 10 * time.Millisecond

// maxLine bounds what is kept of an unfinished line of output.
const maxLine = 64 << 10

// tailLines is how much of a log goes into an error.
const tailLines = 15

// Until looks at a condition, at least each 10 ms, until it holds, returning nil, or ctx is done; then the error holds the
// condition's last word on why it does not hold.
func Until(ctx context.Context, what string, condition func(ctx context.Context) error) error {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	var last error
	for {
		err := condition(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err // not "context deadline exceeded" if there is anything better
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("machine: waited for %s: %w (%w)", what, last, context.Cause(ctx))
		}
	}
}

// Until waits for a condition as the function Until does, but gives up with the end of its log when the process ends.
func (p *Process) Until(ctx context.Context, what string, condition func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-p.done:
			cancel(p.ended())
		case <-stop:
		}
	}()
	err := Until(ctx, what, condition)
	if err != nil && context.Cause(ctx) != nil {
		if _, ok := errors.AsType[*EndedError](context.Cause(ctx)); !ok {
			return fmt.Errorf("%w\nthe end of %s:\n%s", err, p.command.Log, p.journal.tail())
		}
	}
	return err
}

// EndedError says that a process ended that should not have.
type EndedError struct {
	Name string // of the process
	Err  error  // how it ended; nil for exit code 0
	Log  string // path of its log
	Tail string // the end of it
}

// Error says how it ended, with the end of its log.
func (e *EndedError) Error() string {
	how := "exit status 0"
	if e.Err != nil {
		how = e.Err.Error()
	}
	return fmt.Sprintf("%s ended (%s); the end of %s:\n%s", e.Name, how, e.Log, e.Tail)
}

func (p *Process) ended() error {
	return &EndedError{Name: p.command.Name, Err: p.err, Log: p.command.Log, Tail: p.journal.tail()}
}

// UntilTCP waits until something accepts connections on the machine's own port.
func (p *Process) UntilTCP(ctx context.Context, port int) error {
	address := fmt.Sprintf("%s:%d", p.machine.address, port)
	return p.Until(ctx, fmt.Sprintf("%s to listen on port %d", p.command.Name, port), func(ctx context.Context) error {
		// From the host's side: inside the machine, interception may be in the way.
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// UntilHTTP waits until a GET of url from within the machine answers 200.
func (p *Process) UntilHTTP(ctx context.Context, url string) error {
	client := p.machine.Client()
	return p.Until(ctx, fmt.Sprintf("%s to answer %s", p.command.Name, url), func(ctx context.Context) error {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		a, err := client.Do(r)
		if err != nil {
			return err
		}
		defer a.Body.Close()
		if a.StatusCode != http.StatusOK {
			body, _ := io.ReadAll(io.LimitReader(a.Body, 300))
			return fmt.Errorf("%s: %s", a.Status, bytes.TrimSpace(body))
		}
		return nil
	})
}

// UntilLine waits until a line of its output, from its start on, satisfies match, and returns the line.
func (p *Process) UntilLine(ctx context.Context, what string, match func(line string) bool) (string, error) {
	lines, stop := p.Lines(true)
	defer stop()
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				<-p.done
				return "", fmt.Errorf("machine: waited for %s: %w", what, p.ended())
			}
			if match(line) {
				return line, nil
			}
		case <-ctx.Done():
			return "", fmt.Errorf("machine: waited for %s: %w; the end of %s:\n%s", what, context.Cause(ctx), p.command.Log, p.journal.tail())
		}
	}
}

// Lines returns the lines of its output: those from now on, or all from its start on. The channel is closed when the
// process has ended. They are read from the log, so a slow reader neither loses any nor holds up the process; one that
// no longer reads calls stop.
func (p *Process) Lines(fromStart bool) (lines <-chan string, stop func()) {
	return p.journal.lines(fromStart)
}

// journal is a log file that can be followed.
type journal struct {
	mu      sync.Mutex
	file    *os.File
	changed chan struct{} // closed, and replaced, when there is more
	size    int64
	closed  bool
}

func newJournal(path string) (*journal, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, fmt.Errorf("machine: %w", err)
	}
	return &journal{file: f, changed: make(chan struct{})}, nil
}

// Write appends to the file and wakes those who follow it.
func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	n, err := j.file.Write(b)
	j.size += int64(n)
	close(j.changed)
	j.changed = make(chan struct{})
	return n, err
}

func (j *journal) close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.closed {
		j.closed = true
		_ = j.file.Close()
		close(j.changed)
	}
}

func (j *journal) lines(fromStart bool) (<-chan string, func()) {
	out, quit := make(chan string), make(chan struct{})
	j.mu.Lock()
	from := j.size
	j.mu.Unlock()
	if fromStart {
		from = 0
	}
	go func() {
		defer close(out)
		f, err := os.Open(j.file.Name())
		if err != nil {
			return
		}
		defer f.Close()
		if _, err := f.Seek(from, io.SeekStart); err != nil {
			return
		}
		r := bufio.NewReaderSize(f, maxLine)
		var part strings.Builder
		for {
			// What is read after this look is at least what it has seen, so no change is missed.
			j.mu.Lock()
			changed, closed := j.changed, j.closed
			j.mu.Unlock()
			for {
				piece, err := r.ReadString('\n')
				part.WriteString(piece)
				if err != nil && part.Len() < maxLine && (!closed || part.Len() == 0) {
					break
				}
				select {
				case out <- strings.TrimRight(part.String(), "\r\n"):
					part.Reset()
				case <-quit:
					return
				}
			}
			if closed {
				return
			}
			select {
			case <-changed:
			case <-quit:
				return
			}
		}
	}()
	return out, sync.OnceFunc(func() { close(quit) })
}

// tail is the end of the log.
func (j *journal) tail() string {
	const most = 8 << 10
	f, err := os.Open(j.file.Name())
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, size-most), io.SeekStart)
	}
	b, _ := io.ReadAll(f)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return "  " + strings.Join(lines[max(0, len(lines)-tailLines):], "\n  ")
}
