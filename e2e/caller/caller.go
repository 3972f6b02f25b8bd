// Package caller follows an application that calls others (e2e/java/load), by its own account: what it has called and what came
// of it. Tests hold what the mesh says of the calls to that.
package caller

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"

	"github.com/isthmus-mesh/isthmus/e2e/machine"
)

// Counts are calls by what came of them, as the caller itself counts them.
type Counts struct {
	OK         int `json:"ok"`
	Exceptions int `json:"exceptions"` // thrown by the provider's code
	Errors     int `json:"errors"`     // of the RPC
	Skipped    int `json:"skipped"`    // not begun, as too many were under way
}

// Plus adds two counts.
func (c Counts) Plus(d Counts) Counts {
	return Counts{c.OK + d.OK, c.Exceptions + d.Exceptions, c.Errors + d.Errors, c.Skipped + d.Skipped}
}

// Tally is counts by method.
type Tally map[string]Counts

// Total adds all methods up.
func (t Tally) Total() (sum Counts) {
	for _, c := range t {
		sum = sum.Plus(c)
	}
	return sum
}

// String says it in one line, for people.
func (t Tally) String() string {
	var parts []string
	for _, method := range slices.Sorted(maps.Keys(t)) {
		c := t[method]
		text := fmt.Sprintf("%s %d ok", method, c.OK)
		if c.Exceptions > 0 {
			text += ", " + count(c.Exceptions, "exception")
		}
		if c.Errors > 0 {
			text += ", " + count(c.Errors, "error")
		}
		if c.Skipped > 0 {
			text += fmt.Sprintf(", %d skipped", c.Skipped)
		}
		parts = append(parts, text)
	}
	if len(parts) == 0 {
		return "no calls"
	}
	return strings.Join(parts, "; ")
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// Fault is a kind of error that the caller has seen, when it saw it first.
type Fault struct {
	Error   string `json:"error"` // class
	Code    int    `json:"code"`  // the RPC framework's; -1 for what the provider's code has thrown
	Method  string `json:"method"`
	Message string `json:"message"`
}

// said is one line of the application's output.
type said struct {
	Calls Tally `json:"calls"` // what returned within one second
	Fault
}

// Caller is an application that calls, by its own account.
type Caller struct {
	process *machine.Process

	mu      sync.Mutex
	changed chan struct{} // closed, and replaced, at each line
	seconds []Tally
	faults  []Fault
}

// Follow reads what an application prints until it ends.
func Follow(p *machine.Process) *Caller {
	c := &Caller{process: p, changed: make(chan struct{})}
	lines, _ := p.Lines(true)
	go func() {
		for line := range lines {
			var s said
			if !strings.HasPrefix(line, "{") || json.Unmarshal([]byte(line), &s) != nil {
				continue // a log line
			}
			c.mu.Lock()
			if s.Error != "" {
				c.faults = append(c.faults, s.Fault)
			} else {
				c.seconds = append(c.seconds, s.Calls)
			}
			close(c.changed)
			c.changed = make(chan struct{})
			c.mu.Unlock()
		}
	}()
	return c
}

// Mark is a place in an application's output; the zero value is its beginning.
type Mark struct{ seconds, faults int }

// Mark returns the end of what it has said so far.
func (c *Caller) Mark() Mark {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Mark{len(c.seconds), len(c.faults)}
}

// Since returns what it has said after a mark: its seconds and the errors that were new.
func (c *Caller) Since(m Mark) ([]Tally, []Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.seconds[m.seconds:]), slices.Clone(c.faults[m.faults:])
}

// Sum adds seconds up.
func Sum(seconds []Tally) Tally {
	out := Tally{}
	for _, s := range seconds {
		for method, c := range s {
			out[method] = out[method].Plus(c)
		}
	}
	return out
}

// Until waits until what it has said after m satisfies a condition, looking at it again at each line.
func (c *Caller) Until(ctx context.Context, what string, m Mark, condition func(seconds []Tally, faults []Fault) bool) error {
	for {
		c.mu.Lock()
		changed := c.changed
		c.mu.Unlock()
		seconds, faults := c.Since(m)
		if condition(seconds, faults) {
			return nil
		}
		select {
		case <-changed:
		case <-c.process.Done():
			return fmt.Errorf("the caller ended; its output is in %s", c.process.Log())
		case <-ctx.Done():
			last := ""
			if len(seconds) > 0 {
				last = "; its last second: " + seconds[len(seconds)-1].String()
			}
			for _, f := range faults {
				last += fmt.Sprintf("; %s in %s: %s", f.Error, f.Method, f.Message)
			}
			return fmt.Errorf("waited for the caller %s: %w%s", what, context.Cause(ctx), last)
		}
	}
}

// UntilCalled waits until each of these methods has been called so often since m, whatever came of it.
func (c *Caller) UntilCalled(ctx context.Context, m Mark, methods iter.Seq[string], each int) error {
	return c.Until(ctx, "to call often enough", m, func(seconds []Tally, _ []Fault) bool {
		said := Sum(seconds)
		for method := range methods {
			if n := said[method]; n.OK+n.Errors+n.Exceptions < each {
				return false
			}
		}
		return true
	})
}

// Binomial holds k of n calls to a probability, within the interval that all but one in a thousand such counts are in (normal approximation, z = 3.29).
func Binomial(k, n int, p float64) error {
	mean, deviation := float64(n)*p, math.Sqrt(float64(n)*p*(1-p))
	if n == 0 || math.Abs(float64(k)-mean) > 3.29*deviation {
		return fmt.Errorf("%d of %d calls, expected %.0f ± %.0f", k, n, mean, 3.29*deviation)
	}
	return nil
}

// Next waits for so many seconds of its output, beginning with the next whole one, and returns them.
func (c *Caller) Next(ctx context.Context, n int) ([]Tally, []Fault, error) {
	m := c.Mark()
	// The second that is under way belongs half to what was before.
	err := c.Until(ctx, "to go on", m, func(s []Tally, _ []Fault) bool { return len(s) > n })
	s, f := c.Since(m)
	if len(s) > 1 {
		s = s[1:]
	}
	return s, f, err
}

// Rates sets calls a second by method.
func (c *Caller) Rates(perSecond map[string]float64) error {
	for _, method := range slices.Sorted(maps.Keys(perSecond)) {
		if err := c.process.Send(fmt.Sprintf("rate %s %g", method, perSecond[method])); err != nil {
			return err
		}
	}
	return nil
}

// Quiet stops all calls, waits until those under way have returned, and returns all that it has ever called. No call may
// take longer than a second.
func (c *Caller) Quiet(ctx context.Context) (Tally, error) {
	if err := c.process.Send("silence"); err != nil {
		return nil, err
	}
	if err := c.Until(ctx, "to fall silent", c.Mark(), func(s []Tally, _ []Fault) bool {
		return len(s) > 2 && len(Sum(s[len(s)-2:])) == 0
	}); err != nil {
		return nil, err
	}
	seconds, _ := c.Since(Mark{})
	return Sum(seconds), nil
}
