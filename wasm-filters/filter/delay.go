package filter

import (
	"slices"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// A request is delayed by keeping its bytes and leaving them out of Envoy's buffer; the requests behind it go on. Later they are
// put back, which is possible because Envoy lets a filter change the buffer also outside of a callback for data, as long as that
// filter has paused the connection; and it is not really paused, since reading can be continued at once. They may only
// go between two frames.

// A delayed is a request that waits.
type delayed struct {
	due   policy.Nanos
	frame []byte // from VM.holds
}

// Bounds of the requests that wait on one connection; more are not delayed.
const (
	maxDelayed      = 4096
	maxDelayedBytes = 4 << 20
)

// room tells whether one more request of n bytes may wait.
func (c *Conn) room(n uint64) bool {
	return len(c.delays) < maxDelayed && n <= uint64(maxDelayedBytes-c.delayedBytes)
}

// delay keeps a copy of a request, for which there is room, until due.
func (c *Conn) delay(frame []byte, due policy.Nanos) {
	vm := c.rt.vm
	if !c.waits {
		c.waits = true
		vm.waiting = append(vm.waiting, c)
	}
	d := delayed{due, append(vm.holds.get(len(frame)), frame...)}
	c.delays = append(c.delays, d)
	at := len(c.delays) - 1
	for ; at > 0 && c.delays[at-1].due > due; at-- {
		c.delays[at] = c.delays[at-1]
	}
	c.delays[at] = d
	c.delayedBytes += len(frame)
}

// Due returns when the first of the requests that wait on this connection is due; ok is false where none waits.
func (c *Conn) Due() (due policy.Nanos, ok bool) {
	if len(c.delays) == 0 {
		return 0, false
	}
	return c.delays[0].due, true
}

// resend appends the requests that are due at now to dst, and forgets them.
func (c *Conn) resend(dst []byte, now policy.Nanos) []byte {
	n := 0
	for ; n < len(c.delays) && c.delays[n].due <= now; n++ {
		d := &c.delays[n]
		dst = append(dst, d.frame...)
		c.delayedBytes -= len(d.frame)
		c.rt.vm.holds.put(d.frame)
	}
	rest := copy(c.delays, c.delays[n:])
	clear(c.delays[rest:])
	c.delays = c.delays[:rest]
	return dst
}

// ever is later than any time: of resend, all requests.
const ever = policy.Nanos(1<<63 - 1)

// resendAt puts the requests that are due at now into the output at pos, where a frame begins.
func (c *Conn) resendAt(out *output, pos int, now policy.Nanos) {
	if len(c.delays) > 0 && c.delays[0].due <= now {
		out.commit(c.resend(out.tail(pos), now))
	}
}

// between tells whether Envoy has passed on whole frames of the client only.
func (c *Conn) between() bool {
	s := &c.sides[Downstream]
	return (s.skip == 0 || s.swallow) && (len(s.hold) == 0 || s.withheld)
}

// hasten makes the requests that wait go now: no more will come behind them.
func (c *Conn) hasten() {
	for i := range c.delays {
		c.delays[i].due = 0
	}
}

// passing is what is to become of a connection whose bytes pass.
func (c *Conn) passing(side Side) Action {
	if side == Downstream && len(c.delays) > 0 {
		return Linger
	}
	return Continue
}

// endDelays forgets the requests that wait on a connection that is gone.
func (c *Conn) endDelays() {
	vm := c.rt.vm
	for i := range c.delays {
		vm.holds.put(c.delays[i].frame)
	}
	clear(c.delays)
	if i := slices.Index(vm.waiting, c); i >= 0 {
		vm.waiting = slices.Delete(vm.waiting, i, i+1)
	}
}

// retry is how long a connection is left alone that could not take its delayed requests.
const retry = policy.Nanos(10_000_000)

// Due returns the nanoseconds until Release, Proceed, Conn.Wake or Ask has something to do, at least 1; ok is false where nothing waits.
func (vm *VM) Due() (wait policy.Nanos, ok bool) {
	if len(vm.wakes) > 0 {
		return 1, true
	}
	due := vm.askDue()
	for _, c := range vm.waiting {
		if len(c.delays) > 0 {
			due = min(due, max(c.delays[0].due, c.refused))
		}
	}
	for _, s := range vm.held {
		due = min(due, s.due)
	}
	if due == ever {
		return 0, false
	}
	return max(due-vm.host.Now(), 1), true
}

// Release calls pass with delayed requests whose time has come, for each connection that has some and of which ready says that all
// that its client sent has been given to Data. They are to go to the server at once, behind all that Data has passed. frames is
// not to be retained.
func (vm *VM) Release(ready func(c *Conn) bool, pass func(c *Conn, frames []byte)) {
	if len(vm.waiting) == 0 {
		return
	}
	now := vm.host.Now()
	waiting := vm.waiting[:0]
	for _, c := range vm.waiting {
		switch {
		case len(c.delays) == 0 || c.delays[0].due > now:
		case c.relay != nil:
			c.wakeSoon()
			c.refused = now + retry // as it may not be able to take them yet
		case c.between() && ready(c):
			vm.line = c.resend(vm.line[:0], now)
			pass(c, vm.line)
		default:
			// Within a frame they have to wait: its rest is on its way, and Data lets them go behind it.
			c.refused = now + retry
		}
		if c.waits = len(c.delays) > 0; c.waits {
			waiting = append(waiting, c)
		}
	}
	clear(vm.waiting[len(waiting):])
	vm.waiting = waiting
}
