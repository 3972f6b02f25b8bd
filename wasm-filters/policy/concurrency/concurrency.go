// Package concurrency limits how many calls run at the same time.
//
// The number of running calls is kept for all workers of an Envoy together. Every admission and every end of a call
// changes it at once, so the limit is exact; that is two calls of the host for each.
package concurrency

import (
	"encoding/binary"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// Rule is one limit.
type Rule struct {
	policy.Rule
	limit uint32
	n     uint32 // running calls; without a Shared the truth, else unused
	owed  uint32 // calls that ended without its being written: other workers were faster every time

	shared policy.Shared // nil: this worker is alone
	key    []byte
	value  []byte // scratch, stateLen bytes
}

const (
	// stateLen is the length of the shared state: the number of running calls, little endian.
	stateLen = 4
	// attempts bounds the tries to swap the shared state. Each failed one means that another worker succeeded.
	attempts = 32
)

// New returns a rule that admits limit calls at the same time. name goes into verdicts; with observe the rule only counts. shared
// holds the number for all workers under a key made of scope and name; nil means that there is only one worker.
func New(name string, limit uint32, observe bool, shared policy.Shared, scope string) *Rule {
	r := &Rule{Rule: policy.NewRule(name, observe), limit: limit, shared: shared}
	if shared == nil {
		return r
	}
	r.key = append(r.key, "isthmus/concurrency/1/"...)
	r.key = append(r.key, scope...)
	r.key = append(r.key, '/')
	r.key = append(r.key, name...)
	r.value = make([]byte, 0, stateLen)
	// As with a token bucket: whoever is first is Envoy's main thread, before any call.
	if _, _, ok := shared.Get(r.value[:0], r.key); !ok {
		r.store(0, 0)
	}
	return r
}

// SetLimit changes the limit. The calls that run go on to count.
func (r *Rule) SetLimit(limit uint32) { r.limit = limit }

// Running returns the number of running calls.
func (r *Rule) Running() uint32 {
	if r.shared == nil {
		return r.n
	}
	n, _ := r.load()
	return n - min(n, r.owed)
}

func (r *Rule) load() (n, mark uint32) {
	v, mark, ok := r.shared.Get(r.value[:0], r.key)
	if !ok || len(v) != stateLen {
		return 0, mark
	}
	return binary.LittleEndian.Uint32(v), mark
}

func (r *Rule) store(n, mark uint32) bool {
	return r.shared.CompareAndSwap(r.key, binary.LittleEndian.AppendUint32(r.value[:0], n), mark)
}

// enter counts one more call. It does so beyond the limit only if the rule observes. counted and within say what it did.
func (r *Rule) enter() (counted, within bool) {
	if r.shared == nil {
		within = r.n < r.limit
		if counted = within || r.Observe(); counted {
			r.n++
		}
		return counted, within
	}
	for range attempts {
		n, mark := r.load()
		n -= min(n, r.owed)
		within = n < r.limit
		if !within && !r.Observe() {
			return false, false
		}
		if r.store(n+1, mark) {
			r.owed = 0
			return true, within
		}
	}
	return false, false // to admit would be to guess
}

// leave counts one call less.
func (r *Rule) leave() {
	if r.shared == nil {
		r.n -= min(r.n, 1)
		return
	}
	r.owed++
	for range attempts {
		n, mark := r.load()
		if r.store(n-min(n, r.owed), mark) {
			r.owed = 0
			return
		}
	}
}

// Set is the policy of all rules for the same calls: each must admit a call.
type Set struct {
	rules []*Rule
	first uint // bit of the first rule in policy.Call.Marks
}

var _ policy.Policy = (*Set)(nil)

// NewSet returns the policy of rules, whose bits in policy.Call.Marks begin with first.
func NewSet(rules []*Rule, first uint) *Set { return &Set{rules, first} }

// Admit implements policy.Policy. A one-way call has no end that could be seen: it only needs a place to be free.
func (s *Set) Admit(_ policy.Nanos, c *policy.Call) policy.Verdict {
	for i, r := range s.rules {
		if !r.Applies(c) {
			continue
		}
		counted, within := r.enter()
		if counted && c.OneWay {
			r.leave()
		} else if counted {
			c.Marks |= 1 << (s.first + uint(i))
		}
		switch {
		case within && counted:
			r.Hits().Admitted++
		case r.Observe():
			r.Hits().WouldReject++
		default:
			r.Hits().Rejected++
			s.undo(c)
			return policy.Verdict{Reject: true, Code: protocol.CodeThrottled, Rule: r.Name()}
		}
	}
	return policy.Verdict{}
}

// undo takes back what the rules before did for a call.
func (s *Set) undo(c *policy.Call) {
	for i, r := range s.rules {
		if bit := uint64(1) << (s.first + uint(i)); c.Marks&bit != 0 {
			c.Marks &^= bit
			r.leave()
		}
	}
}

// Done implements policy.Policy.
func (s *Set) Done(_ policy.Nanos, c *policy.Call, _ policy.Outcome) { s.undo(c) }
