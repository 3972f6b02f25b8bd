package breaker

import (
	"encoding/binary"
	"math/bits"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// A table has a circuit for each endpoint, and room for a bounded number of them: shared data knows no deletion, and providers come and
// go. An endpoint's address says which of the places may be its own. Where other endpoints have them all, it takes that of the one on
// which nothing has happened for longest; that one begins with a closed circuit when it is called again. Which endpoint has a place
// stands in its shared state, so a worker learns with its next look that a place has gone to another one.
type table [places]*circuit

const (
	// places is how many endpoints one rule has circuits for. It is a power of two.
	places = 1024
	// choices is how many places may be an endpoint's own. With all but a few of 700 endpoints there is one that is free.
	choices = 16
	// endpointLen is the length of an endpoint behind a shared state: address (16) and port (2, little endian).
	endpointLen = 18
)

// choice returns the i-th place that may be an endpoint's own.
func choice(h uint64, i int) uint32 {
	return uint32(h+uint64(i)*(h>>32|1)) % places
}

// hash needs no secret: the workload itself, and its registry, choose the endpoints.
func hash(e *policy.Endpoint) uint64 {
	le := binary.LittleEndian
	hi, lo := bits.Mul64(le.Uint64(e.Address[:])^uint64(e.Port)<<32^0xa0761d6478bd642f, le.Uint64(e.Address[8:])^0xe7037ed1a0b428db)
	hi, lo = bits.Mul64(hi^lo, 0xa0761d6478bd642f)
	return hi ^ lo
}

// find returns the circuit for calls to e, nil where there is none.
func (r *Rule) find(e *policy.Endpoint) *circuit {
	if r.table == nil {
		return &r.one
	}
	if e == nil {
		return nil
	}
	h := hash(e)
	for i := range choices {
		if c := r.table[choice(h, i)]; c != nil && c.endpoint == *e {
			return c
		}
	}
	return nil
}

// circuit returns the circuit for calls to e, which there may not have been before; nil where each endpoint has its own and e is not known.
func (r *Rule) circuit(e *policy.Endpoint, now policy.Nanos) *circuit {
	c := r.find(e)
	if c == nil && r.table != nil && e != nil || c != nil && c.lost {
		return r.claim(c, e, now)
	}
	return c
}

// claim finds a place for e, whose circuit in this worker was old, if it had one.
func (r *Rule) claim(old *circuit, e *policy.Endpoint, now policy.Nanos) *circuit {
	if old != nil {
		r.table[old.place] = nil
	}
	h := hash(e)
	// best is the first free place, or the one on which nothing has happened for longest.
	best, mark, oldest := uint32(0), uint32(0), policy.Nanos(1<<63-1)
	theirs := false
	for i := range choices {
		place := choice(h, i)
		touched, at := policy.Nanos(-1), uint32(0)
		c := r.table[place]
		if r.shared != nil {
			// What another worker has there, in this worker's table or not.
			var owner policy.Endpoint
			look := circuit{place: place}
			if at, owner = r.look(&look); owner == *e {
				best, theirs = place, true // another worker has called it
				break
			}
			if c = &look; owner == (policy.Endpoint{}) {
				c = nil
			}
		}
		if c != nil {
			touched = r.touched(&c.state)
		}
		if touched < oldest {
			best, mark, oldest = place, at, touched
		}
		if touched < 0 {
			break // places never become free again, so it cannot be further on
		}
	}
	c := r.table[best]
	if c == nil {
		if c = old; c == nil {
			c = new(circuit)
		}
		r.table[best] = c
	}
	*c = circuit{endpoint: *e, place: best}
	// Since when it is there: it must not be the next one to be forgotten.
	c.state.since = now
	if r.shared != nil && !theirs && !r.store(c, mark) {
		c.lost = true // another worker was faster; the next call finds another place
	}
	return c
}

// touched is when something last happened on a circuit.
func (r *Rule) touched(s *state) policy.Nanos {
	at := max(s.since, s.until-r.params.Retry, 0)
	for i := range s.ring {
		at = max(at, policy.Nanos(s.ring[i].slot)*r.width)
	}
	return at
}

// keyOf returns the key of a place; without a table there is one.
func (r *Rule) keyOf(place uint32) []byte {
	if r.table != nil {
		n := len(r.key)
		for i := range 4 {
			r.key[n-1-i] = '0' + byte(place%10)
			place /= 10
		}
	}
	return r.key
}

// Circuits calls f with each endpoint that this worker has seen calls to, and where its circuit stands for all workers. There are
// none unless each endpoint has its own.
func (r *Rule) Circuits(now policy.Nanos, f func(e policy.Endpoint, phase Phase)) {
	if r.table == nil {
		return
	}
	for _, c := range r.table {
		if c == nil {
			continue
		}
		if phase := r.phase(c, now); !c.lost {
			f(c.endpoint, phase)
		}
	}
}
