// Package fault makes calls fail, or take longer, on purpose.
package fault

import (
	"math/bits"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// Params are what a rule does.
type Params struct {
	Code       protocol.Code
	Message    string
	Status     uint16       // of HTTP, in the place of the code's own; 0: that one
	PerMillion uint32       // how many of a million calls fail
	Delay      policy.Nanos // holds calls back for so long instead; 0: they fail
}

// Rule is one fault.
type Rule struct {
	policy.Rule
	params Params
	answer *policy.Answer // nil where there is neither message nor status
	random uint64
}

const million = 1_000_000

// New returns a rule. Its random numbers depend on its name only.
func New(name string, p Params, observe bool) *Rule {
	r := &Rule{Rule: policy.NewRule(name, observe), params: p}
	if p.Message != "" || p.Status != 0 {
		r.answer = &policy.Answer{Message: p.Message, Status: p.Status}
	}
	r.random = 14695981039346656037 // FNV-1a
	for i := range len(name) {
		r.random = (r.random ^ uint64(name[i])) * 1099511628211
	}
	return r
}

// Params returns the rule's parameters.
func (r *Rule) Params() Params { return r.params }

// draw tells whether this call is hit. The numbers are those of SplitMix64, stirred with the time, so that workers do not go
// in step.
func (r *Rule) draw(now policy.Nanos) bool {
	if r.params.PerMillion >= million {
		return true
	}
	r.random += 0x9e3779b97f4a7c15 ^ uint64(now)<<1
	z := r.random
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	z ^= z >> 31
	chosen, _ := bits.Mul64(z, million) // evenly from 0 to 999999
	return chosen < uint64(r.params.PerMillion)
}

// Set is the policy of all faults for the same calls, in their order: of those that apply, the first one is tried.
type Set []*Rule

var _ policy.Policy = Set(nil)

// Admit implements policy.Policy.
func (s Set) Admit(now policy.Nanos, c *policy.Call) policy.Verdict {
	for _, r := range s {
		if !r.Applies(c) {
			continue
		}
		fails := r.draw(now)
		switch {
		case !fails:
			r.Hits().Admitted++
		case r.Observe():
			r.Hits().WouldReject++
		default:
			r.Hits().Rejected++
			if r.params.Delay > 0 {
				return policy.Verdict{Delay: r.params.Delay}
			}
			return policy.Verdict{Reject: true, Code: r.params.Code, Rule: r.Name(), Answer: r.answer}
		}
		if !r.Observe() {
			break
		}
	}
	return policy.Verdict{}
}

// Done implements policy.Policy: how a call ends does not matter.
func (Set) Done(policy.Nanos, *policy.Call, policy.Outcome) {}
