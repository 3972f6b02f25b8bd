package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/isthmus-mesh/isthmus/e2e/machine"
)

// counts are calls by what came of them, as the consumer itself counts them.
type counts struct {
	OK         int `json:"ok"`
	Exceptions int `json:"exceptions"` // thrown by the provider's code
	Errors     int `json:"errors"`     // of the RPC
	Skipped    int `json:"skipped"`    // not begun, as too many were under way
}

func (c counts) plus(d counts) counts {
	return counts{c.OK + d.OK, c.Exceptions + d.Exceptions, c.Errors + d.Errors, c.Skipped + d.Skipped}
}

// tally is counts by method.
type tally map[string]counts

func (t tally) total() (sum counts) {
	for _, c := range t {
		sum = sum.plus(c)
	}
	return sum
}

func (t tally) String() string {
	var parts []string
	for _, method := range slices.Sorted(maps.Keys(t)) {
		c := t[method]
		text := fmt.Sprintf("%s %d ok", method, c.OK)
		if c.Exceptions > 0 {
			text += fmt.Sprintf(", %d exceptions", c.Exceptions)
		}
		if c.Errors > 0 {
			text += fmt.Sprintf(", %d errors", c.Errors)
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

// fault is a kind of error that the consumer has seen, when it saw it first.
type fault struct {
	Error   string `json:"error"` // class
	Code    int    `json:"code"`  // of an RpcException; -1 for others
	Method  string `json:"method"`
	Message string `json:"message"`
}

// said is one line of the consumer's output.
type said struct {
	Calls tally `json:"calls"` // what returned within one second
	fault
}

// consumer is the Dubbo consumer, by its own account.
type consumer struct {
	process *machine.Process

	mu      sync.Mutex
	changed chan struct{} // closed, and replaced, at each line
	seconds []tally
	faults  []fault
}

// follow reads what a consumer prints until it ends.
func follow(p *machine.Process) *consumer {
	c := &consumer{process: p, changed: make(chan struct{})}
	lines, _ := p.Lines(true)
	go func() {
		for line := range lines {
			var s said
			if !strings.HasPrefix(line, "{") || json.Unmarshal([]byte(line), &s) != nil {
				continue // a log line
			}
			c.mu.Lock()
			if s.Error != "" {
				c.faults = append(c.faults, s.fault)
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

// mark is a place in the consumer's output.
type mark struct{ seconds, faults int }

func (c *consumer) mark() mark {
	c.mu.Lock()
	defer c.mu.Unlock()
	return mark{len(c.seconds), len(c.faults)}
}

// since returns what the consumer has said after a mark: its seconds and the errors that were new.
func (c *consumer) since(m mark) ([]tally, []fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.seconds[m.seconds:]), slices.Clone(c.faults[m.faults:])
}

// sum adds up.
func sum(seconds []tally) tally {
	out := tally{}
	for _, s := range seconds {
		for method, c := range s {
			out[method] = out[method].plus(c)
		}
	}
	return out
}

// until waits until what the consumer has said after m satisfies a condition, looking at it again at each line.
func (c *consumer) until(ctx context.Context, what string, m mark, condition func(seconds []tally, faults []fault) bool) error {
	for {
		c.mu.Lock()
		changed := c.changed
		c.mu.Unlock()
		seconds, faults := c.since(m)
		if condition(seconds, faults) {
			return nil
		}
		select {
		case <-changed:
		case <-c.process.Done():
			return fmt.Errorf("the consumer ended; its output is in %s", c.process.Log())
		case <-ctx.Done():
			last := ""
			if len(seconds) > 0 {
				last = "; its last second: " + seconds[len(seconds)-1].String()
			}
			for _, f := range faults {
				last += fmt.Sprintf("; %s in %s: %s", f.Error, f.Method, f.Message)
			}
			return fmt.Errorf("waited for the consumer %s: %w%s", what, context.Cause(ctx), last)
		}
	}
}

// next waits for so many seconds of the consumer's output, beginning with the next whole one, and returns them.
func (c *consumer) next(ctx context.Context, n int) ([]tally, []fault, error) {
	m := c.mark()
	// The second that is under way belongs half to what was before.
	err := c.until(ctx, "to go on", m, func(s []tally, _ []fault) bool { return len(s) > n })
	s, f := c.since(m)
	if len(s) > 1 {
		s = s[1:]
	}
	return s, f, err
}

// rates sets calls a second by method.
func (c *consumer) rates(perSecond map[string]float64) error {
	for _, method := range slices.Sorted(maps.Keys(perSecond)) {
		if err := c.process.Send(fmt.Sprintf("rate %s %g", method, perSecond[method])); err != nil {
			return err
		}
	}
	return nil
}
