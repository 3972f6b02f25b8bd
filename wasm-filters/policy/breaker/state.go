package breaker

import (
	"encoding/binary"
	"strconv"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// buckets is how many parts a window has.
const buckets = 10

// A bucket counts calls that ended in one slot of time: now / width.
type bucket struct {
	slot       uint64
	total, bad uint32
	nanos      uint64 // durations
}

func (b bucket) plus(o *bucket) bucket {
	b.total, b.bad, b.nanos = b.total+o.total, b.bad+o.bad, b.nanos+o.nanos
	return b
}

// A state is a circuit. It changes only by apply.
type state struct {
	phase   Phase
	until   policy.Nanos // Open: when probes may go; HalfOpen: when those that have not returned are given up
	since   policy.Nanos // HalfOpen: since when. What began later is a probe: nothing else is admitted. Closed: since when, if anybody knows
	granted uint32       // probes on their way, and those that went well
	passed  uint32       // probes that went well
	turn    uint32       // how often the circuit has opened: what ended in an earlier turn does not count in this one
	ring    [buckets]bucket
}

// window returns the sum of the window that ends with slot.
func (s *state) window(slot uint64) (sum bucket) {
	for i := range s.ring {
		if b := &s.ring[i]; b.slot <= slot && slot-b.slot < buckets {
			sum = sum.plus(b)
		}
	}
	return sum
}

// An event is what changes a circuit.
type event struct {
	kind  eventKind
	start policy.Nanos // eventProbed, eventBack: of the call
	bad   bool         // eventProbed
}

type eventKind uint8

const (
	eventProbe  eventKind = iota // a call wants to go although the circuit is not closed
	eventProbed                  // a probe ended
	eventBack                    // a probe did not take place
	eventMerge                   // pending is to be counted
)

// apply changes c's state, and tells whether the call may go (eventProbe), else how long it has to wait.
func (r *Rule) apply(c *circuit, now policy.Nanos, e event) (wait policy.Nanos, ok bool) {
	s := &c.state
	switch e.kind {
	case eventProbe:
		if s.phase == Closed {
			return 0, true
		}
		if now >= s.until {
			if s.phase == Open {
				s.phase, s.since, s.passed = HalfOpen, now, 0
			}
			// Probes that have not returned until now are taken for lost: others go in their place.
			s.granted, s.until = s.passed, now+r.params.Retry
		} else if s.phase == Open || s.granted >= r.params.Probes {
			return max(s.until-now, 1), false
		}
		s.granted++
		return 0, true
	case eventProbed:
		if s.phase != HalfOpen || e.start < s.since {
			return 0, false
		}
		if e.bad {
			s.open(now + r.params.Retry)
		} else if s.passed++; s.passed >= r.params.Probes {
			*s = state{since: now, turn: s.turn}
		}
	case eventBack:
		if s.phase == HalfOpen && e.start >= s.since && s.granted > s.passed {
			s.granted--
		}
	case eventMerge:
		if s.phase != Closed || s.turn != c.turn {
			return 0, false
		}
		p := &c.pending
		b := &s.ring[p.slot%buckets]
		switch {
		case b.slot == p.slot:
			*b = b.plus(p)
		case b.slot < p.slot:
			*b = *p
		}
		if r.trips(s.window(max(p.slot, uint64(now/r.width)))) {
			s.open(now + r.params.Retry)
		}
	}
	return 0, false
}

// open opens the circuit. What was counted has had its effect.
func (s *state) open(until policy.Nanos) { *s = state{phase: Open, until: until, turn: s.turn + 1} }

const (
	// stateLen is the length of the shared state, all little endian: phase (1), until (8), since (8), granted (4), passed (4), turn (4), and for
	// each bucket slot (8), total (4), bad (4), nanos (8).
	stateLen = 29 + buckets*24
	// attempts bounds the tries to swap the shared state. Each failed one means that another worker succeeded.
	attempts = 32
)

// share makes the state that of all workers. The parameters are part of its key: counts mean nothing under others.
func (r *Rule) share(shared policy.Shared, scope string) {
	r.shared = shared
	k := append(r.key, "isthmus/breaker/1/"...)
	k = append(k, scope...)
	k = append(k, '/')
	k = append(k, r.Name()...)
	p := &r.params
	for _, v := range [...]uint64{uint64(p.Strategy), uint64(p.Threshold), uint64(p.Window), uint64(p.MinRequests), uint64(p.MaxRT), uint64(p.Retry),
		uint64(p.Probes), uint64(p.Errors)} {
		k = append(k, '/')
		k = strconv.AppendUint(k, v, 10)
	}
	r.value = make([]byte, 0, stateLen+endpointLen)
	if r.table != nil {
		r.key = append(k, "/0000"...)
		return
	}
	r.key = k
	// As with a token bucket: whoever is first is Envoy's main thread, before any call.
	if _, _, ok := shared.Get(r.value[:0], r.key); !ok {
		r.store(&r.one, 0)
	}
}

// load brings the shared state to c and returns its mark.
func (r *Rule) load(c *circuit, now policy.Nanos) uint32 {
	mark, owner := r.look(c)
	if owner != c.endpoint {
		c.lost, c.state = true, state{}
	}
	c.fresh = now + stale
	c.sum(uint64(now / r.width))
	return mark
}

// look brings the shared state of c's place to c, whosever it is; without a table there is one place, and no owner. A state that is not
// ours is the zero one.
func (r *Rule) look(c *circuit) (mark uint32, owner policy.Endpoint) {
	v, mark, ok := r.shared.Get(r.value[:0], r.keyOf(c.place))
	c.state = state{}
	n := stateLen
	if r.table != nil {
		n += endpointLen
	}
	if !ok || len(v) != n || v[0] > byte(HalfOpen) {
		return mark, owner
	}
	c.state.decode(v)
	if r.table != nil {
		copy(owner.Address[:], v[stateLen:])
		owner.Port = binary.LittleEndian.Uint16(v[stateLen+16:])
	}
	return mark, owner
}

func (s *state) decode(v []byte) {
	le := binary.LittleEndian
	s.phase = Phase(v[0])
	s.until, s.since = policy.Nanos(le.Uint64(v[1:])), policy.Nanos(le.Uint64(v[9:]))
	s.granted, s.passed = le.Uint32(v[17:]), le.Uint32(v[21:])
	s.turn = le.Uint32(v[25:])
	for i := range s.ring {
		b := v[29+24*i:]
		s.ring[i] = bucket{le.Uint64(b), le.Uint32(b[8:]), le.Uint32(b[12:]), le.Uint64(b[16:])}
	}
}

// store writes c's state if the shared one still has the mark.
func (r *Rule) store(c *circuit, mark uint32) bool {
	le := binary.LittleEndian
	s := &c.state
	v := append(r.value[:0], byte(s.phase))
	v = le.AppendUint64(le.AppendUint64(v, uint64(s.until)), uint64(s.since))
	v = le.AppendUint32(le.AppendUint32(le.AppendUint32(v, s.granted), s.passed), s.turn)
	for i := range s.ring {
		b := &s.ring[i]
		v = le.AppendUint32(le.AppendUint32(le.AppendUint64(v, b.slot), b.total), b.bad)
		v = le.AppendUint64(v, b.nanos)
	}
	if r.table != nil {
		v = le.AppendUint16(append(v, c.endpoint.Address[:]...), c.endpoint.Port)
	}
	return r.shared.CompareAndSwap(r.keyOf(c.place), v, mark)
}

// update applies e to the state of all workers. Where others are faster every time, a probe does not go, and anything else
// is tried again with the next call.
func (r *Rule) update(c *circuit, now policy.Nanos, e event) (wait policy.Nanos, ok bool) {
	if r.shared == nil {
		wait, ok = r.apply(c, now, e)
	} else {
		done := false
		for range attempts {
			mark := r.load(c, now)
			before := c.state
			wait, ok = r.apply(c, now, e)
			if c.lost || c.state == before || r.store(c, mark) {
				done = true
				break
			}
		}
		if !done {
			c.fresh = now // what apply did is not true
			return 1, false
		}
	}
	if e.kind == eventMerge || c.state.phase != Closed {
		c.pending = bucket{}
		c.merge = now + stale
	}
	c.sum(uint64(now / r.width))
	return wait, ok
}
