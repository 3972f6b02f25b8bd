// Package degrade answers calls in the provider's place.
package degrade

import (
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// Rule is one answer.
type Rule struct {
	policy.Rule
	answer *policy.Answer // nil where there are no replies
}

// New returns a rule that answers with replies; where none is for a call's protocol and serialization, it is rejected.
func New(name string, replies []policy.Reply, observe bool) *Rule {
	r := &Rule{Rule: policy.NewRule(name, observe)}
	if len(replies) > 0 {
		r.answer = &policy.Answer{Replies: replies}
	}
	return r
}

// Set is the policy of all rules for the same calls, in their order: the first one that applies answers.
type Set []*Rule

var _ policy.Policy = Set(nil)

// Admit implements policy.Policy.
func (s Set) Admit(_ policy.Nanos, c *policy.Call) policy.Verdict {
	for _, r := range s {
		if !r.Applies(c) {
			continue
		}
		if r.Observe() {
			r.Hits().WouldReject++
			continue
		}
		r.Hits().Rejected++
		return policy.Verdict{Reject: true, Code: protocol.CodeUnavailable, Rule: r.Name(), Answer: r.answer}
	}
	return policy.Verdict{}
}

// Done implements policy.Policy: how a call ends does not matter.
func (Set) Done(policy.Nanos, *policy.Call, policy.Outcome) {}
