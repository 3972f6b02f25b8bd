// Package breaker stops sending calls where too many of them go wrong.
//
// A rule counts how calls end, in a sliding window. Where the window holds enough calls and its threshold is reached, the
// circuit opens: all calls are rejected. After a while it is half open: some calls are let through as probes. Once
// enough of them went well it closes and counts from nothing; the first that goes wrong opens it again.
//
// # Several workers
//
// The window and the circuit are those of all workers of an Envoy together. Each worker looks at them again after 10 ms, and
// brings what it counted to them after as long, or at once where its own counts would open the circuit. So a worker may
// admit calls for 10 ms after another one opened the circuit, and the circuit may open 10 ms late where the errors
// are spread over workers. Probes are exact.
//
// # Several endpoints
//
// A rule may have a circuit for each endpoint that the calls go to, so that one provider that fails costs the others nothing. Their number
// is bounded; see table.go.
package breaker

import (
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// Strategy says what is looked at.
type Strategy uint8

// The strategies. The unit of Params.Threshold is theirs.
const (
	ErrorRatio          Strategy = iota // errors of a million calls
	ErrorCount                          // errors
	AverageResponseTime                 // milliseconds
	SlowCallRatio                       // calls of a million that took MaxRT or longer
)

// Errors is a set of classes of outcomes.
type Errors uint8

// The classes.
const (
	Transport Errors = 1 << iota // no response, or the connection closed
	Status                       // the protocol's status says that the call failed
	Exception                    // the business code threw
)

// Params are the parameters of a rule.
type Params struct {
	Strategy    Strategy
	Threshold   uint32       // opens the circuit where it is reached; at least 1
	Window      policy.Nanos // at least 100 ms
	MinRequests uint32       // calls in the window without which the circuit never opens
	MaxRT       policy.Nanos // of SlowCallRatio
	Retry       policy.Nanos // how long the circuit stays open; at least 100 ms
	Probes      uint32       // at least 1
	Errors      Errors       // what is an error, and fails a probe
	PerEndpoint bool         // each endpoint has a circuit of its own
}

// stale is how long a worker's view of the shared state is good for.
const stale = policy.Nanos(10_000_000)

// Rule is one circuit, or one for each endpoint.
type Rule struct {
	policy.Rule
	params Params
	width  policy.Nanos // of one bucket

	one   circuit // unless each endpoint has its own
	table *table  // nil unless each has

	shared policy.Shared // nil: this worker is alone
	key    []byte        // of the state; for a table without the place
	value  []byte        // scratch, room for a shared state
}

// A circuit is what a worker knows of one.
type circuit struct {
	state   state  // without a Shared the truth, else as it was at seen
	seen    bucket // the sum of state's window at the slot of sumAt
	sumAt   uint64
	fresh   policy.Nanos // until when state is taken for the truth
	pending bucket       // calls that ended and are not in the shared state
	turn    uint32       // the state's, when the first of them ended
	merge   policy.Nanos // when pending is to be brought there

	// Of a table:
	endpoint policy.Endpoint
	place    uint32
	lost     bool // another endpoint has taken the place
}

// New returns a rule with a closed circuit, or with none where each endpoint has its own. name goes into verdicts; with observe the rule
// only counts. shared holds the state for all workers under keys made of scope, name and p; nil means that there is only one worker.
func New(name string, p Params, observe bool, shared policy.Shared, scope string) *Rule {
	r := &Rule{Rule: policy.NewRule(name, observe), params: p, width: max(p.Window/buckets, 1)}
	if p.PerEndpoint {
		r.table = new(table)
	}
	if shared != nil {
		r.share(shared, scope)
	}
	return r
}

// Params returns the rule's parameters.
func (r *Rule) Params() Params { return r.params }

// Phase is where a circuit stands.
type Phase uint8

// The phases.
const (
	Closed Phase = iota
	Open
	HalfOpen
)

// Phase returns where the circuit of a rule that has one stands for all workers: also HalfOpen where the next call would be a probe.
func (r *Rule) Phase(now policy.Nanos) Phase { return r.phase(&r.one, now) }

func (r *Rule) phase(c *circuit, now policy.Nanos) Phase {
	if r.shared != nil {
		r.load(c, now)
	}
	if c.state.phase == Open && now >= c.state.until {
		return HalfOpen
	}
	return c.state.phase
}

// admit tells whether a call may go, and if not, for how long.
func (r *Rule) admit(c *circuit, now policy.Nanos, oneway bool) (wait policy.Nanos, ok bool) {
	if r.shared != nil && now >= c.fresh {
		r.load(c, now)
	}
	s := &c.state
	switch {
	case s.phase == Closed:
		return 0, true
	case now < s.until && (s.phase == Open || s.granted >= r.params.Probes), oneway:
		// How a one-way call ends nobody knows: it is no probe.
		return max(s.until-now, 1), false
	}
	return r.update(c, now, event{kind: eventProbe})
}

// failed tells whether a call went wrong, in the window or as a probe, and whether it counts at all.
func (r *Rule) failed(o policy.Outcome) (bad, counts bool) {
	class := Errors(0)
	switch o.Result {
	case protocol.OutcomeNone, protocol.OutcomeRejected:
		return false, false
	case protocol.OutcomeOK:
	case protocol.OutcomeException:
		class = Exception
	case protocol.OutcomeNoResponse, protocol.OutcomeClosed:
		class = Transport
	default:
		class = Status
	}
	bad = class&r.params.Errors != 0
	switch r.params.Strategy {
	case SlowCallRatio:
		return o.Duration >= r.params.MaxRT, o.Result != protocol.OutcomeClosed
	case AverageResponseTime:
		return false, o.Result != protocol.OutcomeClosed
	}
	return bad, true
}

// probeFailed tells whether a probe went wrong: as an error, or too slowly for the strategy.
func (r *Rule) probeFailed(o policy.Outcome) bool {
	p := &r.params
	limit := policy.Nanos(1<<63 - 1)
	switch p.Strategy {
	case SlowCallRatio:
		limit = p.MaxRT
	case AverageResponseTime:
		limit = policy.Nanos(p.Threshold) * 1_000_000
	}
	if o.Duration >= limit {
		return true
	}
	switch o.Result {
	case protocol.OutcomeOK:
		return false
	case protocol.OutcomeException:
		return p.Errors&Exception != 0
	case protocol.OutcomeNoResponse, protocol.OutcomeClosed:
		return p.Errors&Transport != 0
	}
	return p.Errors&Status != 0
}

// done takes note of how an admitted call ended.
func (r *Rule) done(c *circuit, now policy.Nanos, o policy.Outcome) {
	bad, counts := r.failed(o)
	start := now - o.Duration
	if c.state.phase == HalfOpen && start >= c.state.since {
		switch o.Result {
		case protocol.OutcomeNone, protocol.OutcomeRejected:
			r.update(c, now, event{kind: eventBack, start: start})
		default:
			r.update(c, now, event{kind: eventProbed, start: start, bad: r.probeFailed(o)})
		}
		return
	}
	if !counts || c.state.phase != Closed {
		return
	}
	slot := uint64(now / r.width)
	if c.pending.slot != slot && c.pending.total > 0 {
		if r.update(c, now, event{kind: eventMerge}); c.state.phase != Closed {
			return // somebody has opened it
		}
	}
	if c.pending.total == 0 {
		c.turn = c.state.turn
	}
	c.pending.slot = slot
	c.pending.total++
	c.pending.nanos += uint64(max(o.Duration, 0))
	if bad {
		c.pending.bad++
	}
	if c.sumAt != slot {
		c.sum(slot)
	}
	if now >= c.merge || r.shared == nil || r.trips(c.seen.plus(&c.pending)) {
		r.update(c, now, event{kind: eventMerge})
	}
}

// trips tells whether a window with these counts opens the circuit.
func (r *Rule) trips(b bucket) bool {
	p := &r.params
	if b.total < p.MinRequests || b.total == 0 {
		return false
	}
	switch p.Strategy {
	case ErrorCount:
		return b.bad >= p.Threshold
	case AverageResponseTime:
		return b.nanos/uint64(b.total) >= uint64(p.Threshold)*1_000_000
	}
	return uint64(b.bad)*1_000_000 >= uint64(p.Threshold)*uint64(b.total)
}

// sum sets seen to what state's window holds at a slot.
func (c *circuit) sum(slot uint64) {
	c.seen, c.sumAt = c.state.window(slot), slot
}

// Set is the policy of all circuits for the same calls: each must admit a call.
type Set struct {
	rules []*Rule
	first uint // bit of the first rule in policy.Call.Marks
}

var _ policy.Policy = (*Set)(nil)

// NewSet returns the policy of rules, whose bits in policy.Call.Marks begin with first.
func NewSet(rules []*Rule, first uint) *Set { return &Set{rules, first} }

// Admit implements policy.Policy.
func (s *Set) Admit(now policy.Nanos, c *policy.Call) policy.Verdict {
	for i, r := range s.rules {
		if !r.Applies(c) {
			continue
		}
		x := r.circuit(c.Endpoint, now)
		if x == nil {
			continue // nobody knows where it goes
		}
		wait, ok := r.admit(x, now, c.OneWay)
		switch {
		case ok:
			r.Hits().Admitted++
		case r.Observe():
			r.Hits().WouldReject++
		default:
			r.Hits().Rejected++
			s.Done(now, c, policy.Outcome{Result: protocol.OutcomeRejected})
			return policy.Verdict{Reject: true, Code: protocol.CodeUnavailable, Rule: r.Name(), RetryAfterMillis: uint32((wait + 999_999) / 1_000_000)}
		}
		if !c.OneWay {
			c.Marks |= 1 << (s.first + uint(i))
		}
	}
	return policy.Verdict{}
}

// Done implements policy.Policy.
func (s *Set) Done(now policy.Nanos, c *policy.Call, o policy.Outcome) {
	for i, r := range s.rules {
		if bit := uint64(1) << (s.first + uint(i)); c.Marks&bit != 0 {
			c.Marks &^= bit
			if x := r.find(c.Endpoint); x != nil {
				r.done(x, now, o)
			}
		}
	}
}
