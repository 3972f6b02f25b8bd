package ratelimit

import (
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// PacedRule is a limit that lets calls wait for their token: it admits a call that finds none, to be held back until its token is
// there, as long as that takes no longer than Queue. So calls leave at even distances, in the order in which they came. The
// queue is that of all workers of an Envoy together, without leases: each decision is two calls of the host, a rejection mostly none.
type PacedRule struct {
	policy.Rule
	bucket  bucket
	queue   policy.Nanos
	blocked policy.Nanos // before this moment there cannot be a place in the queue
}

// NewPaced returns a rule with a full bucket. queue is how long a call may wait. name goes into verdicts; with observe the rule only
// counts. shared holds the state for all workers under a key made of scope, name and p; nil means that there is only one worker.
func NewPaced(name string, p Params, queue policy.Nanos, observe bool, shared policy.Shared, scope string) *PacedRule {
	r := &PacedRule{Rule: policy.NewRule(name, observe), queue: queue}
	r.bucket.setup(p, shared, scope, name)
	return r
}

// Params returns the parameters of the rule's bucket.
func (r *PacedRule) Params() Params { return r.bucket.Params }

// Queue returns how long a call may wait.
func (r *PacedRule) Queue() policy.Nanos { return r.queue }

// Wait returns how long a call would wait now.
func (r *PacedRule) Wait(now policy.Nanos) policy.Nanos {
	if r.bucket.Threshold == 0 {
		return 0
	}
	m, _ := r.load()
	return r.bucket.wait(m, now)
}

func (r *PacedRule) load() (moment, uint32) {
	if r.bucket.shared == nil {
		return r.bucket.full, 0
	}
	m, _, mark := r.bucket.load()
	return m, mark
}

func (r *PacedRule) store(m moment, mark uint32) bool {
	if r.bucket.shared == nil {
		r.bucket.full = m
		return true
	}
	return r.bucket.store(m, heat{}, mark)
}

// take uses a token that is there after wait, at most queue. ok is false where it takes longer; then it may succeed after wait.
func (r *PacedRule) take(now, queue policy.Nanos) (wait policy.Nanos, ok bool) {
	b := &r.bucket
	if b.Threshold == 0 {
		return never, false
	}
	if now < r.blocked && queue == r.queue {
		return r.blocked - now, false
	}
	for range attempts {
		m, mark := r.load()
		if wait = b.wait(m, now); wait > queue {
			if wait -= queue; queue == r.queue {
				r.blocked = now + min(wait, far)
			}
			return wait, false
		}
		if m.ns < now {
			m = moment{ns: now}
		}
		if r.store(b.plus(m, b.step), mark) {
			return wait, true
		}
	}
	return 1, false // lost to other workers every time: to admit would be to guess
}

// giveBack returns the token that was taken last.
func (r *PacedRule) giveBack() {
	for range attempts {
		m, mark := r.load()
		if r.store(r.bucket.minus(m, r.bucket.step), mark) {
			r.blocked = 0
			return
		}
	}
}

// PacedSet is the policy of all such rules for the same calls: each must admit a call, and the longest wait holds.
type PacedSet struct {
	rules []*PacedRule
	first uint // bit of the first rule in policy.Call.Marks
}

var _ policy.Policy = (*PacedSet)(nil)

// NewPacedSet returns the policy of rules, whose bits in policy.Call.Marks begin with first.
func NewPacedSet(rules []*PacedRule, first uint) *PacedSet { return &PacedSet{rules, first} }

// Admit implements policy.Policy. Where a call cannot be held back, there is no queue for it.
func (s *PacedSet) Admit(now policy.Nanos, c *policy.Call) policy.Verdict {
	var delay policy.Nanos
	for i, r := range s.rules {
		if !r.Applies(c) {
			continue
		}
		queue := r.queue
		if !c.Holdable && !r.Observe() {
			queue = 0
		}
		wait, ok := r.take(now, queue)
		switch {
		case ok:
			r.Hits().Admitted++
			c.Marks |= 1 << (s.first + uint(i))
			if !r.Observe() {
				delay = max(delay, wait)
			}
		case r.Observe():
			r.Hits().WouldReject++
		default:
			r.Hits().Rejected++
			s.Done(now, c, policy.Outcome{Result: protocol.OutcomeRejected})
			return policy.Verdict{Reject: true, Code: protocol.CodeThrottled, Rule: r.Name(), RetryAfterMillis: millis(wait)}
		}
	}
	return policy.Verdict{Delay: delay}
}

// Done implements policy.Policy: a call that a later policy rejected gives its tokens back.
func (s *PacedSet) Done(_ policy.Nanos, c *policy.Call, o policy.Outcome) {
	for i, r := range s.rules {
		bit := uint64(1) << (s.first + uint(i))
		if c.Marks&bit != 0 && o.Result == protocol.OutcomeRejected {
			r.giveBack()
		}
		c.Marks &^= bit
	}
}
