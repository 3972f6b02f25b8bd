// Package access allows and denies calls by lists.
//
// A call that a deny rule applies to is denied. Else, where there are allow or default-deny rules for it, it is denied
// unless one of the allow rules applies. Else it is allowed. Which rules are for a call is decided before; what applies to it are a
// rule's conditions, and that the call shows the token that the rule asks for.
package access

import (
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/token"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// Action says what a rule does with calls.
type Action uint8

// The actions.
const (
	Deny        Action = iota // what the rule applies to
	Allow                     // what the rule applies to; everything else is denied
	DefaultDeny               // what no rule allows is denied
)

// Rule is one entry of the lists.
type Rule struct {
	policy.Rule
	action Action
	token  *token.Verifier // nil: it asks for none
	// applies to the call at hand; scratch of Set.Admit.
	applies bool
}

// New returns a rule.
func New(name string, action Action, observe bool) *Rule {
	return &Rule{Rule: policy.NewRule(name, observe), action: action}
}

// SetToken says what calls must show for the rule to apply to them; nil is nothing. It is for Allow.
func (r *Rule) SetToken(v *token.Verifier) { r.token = v }

// Token returns what SetToken has set.
func (r *Rule) Token() *token.Verifier { return r.token }

// Action returns what the rule does.
func (r *Rule) Action() Action { return r.action }

// Set is the policy of all rules for the same calls. A verdict that does not reject, but names a rule, tells that this rule would
// have denied the call if it did not only observe.
type Set []*Rule

var _ policy.Policy = Set(nil)

// Admit implements policy.Policy.
func (s Set) Admit(_ policy.Nanos, c *policy.Call) policy.Verdict {
	// The first rules that deny: in force, and only observing.
	var denies [2]*Rule
	for _, r := range s {
		if i := r.way(); r.action == Deny && denies[i] == nil && r.Applies(c) {
			denies[i] = r
		}
	}
	if denies[0] != nil {
		return denies[0].deny(token.Valid)
	}
	// The first rules that want an allow rule to apply; those of which only the token is not good, and why.
	var wants, failed [2]*Rule
	var why [2]token.Result
	var allowed [2]bool
	for _, r := range s {
		if r.action == Deny {
			continue
		}
		i := r.way()
		if wants[i] == nil {
			wants[i] = r
		}
		r.applies = r.action == Allow && r.Applies(c)
		if r.applies && r.token != nil {
			var result token.Result
			if r.applies, result = r.token.Allows(c); !r.applies && failed[i] == nil {
				failed[i], why[i] = r, result
			}
		}
		allowed[i] = allowed[i] || r.applies
	}
	for i := range failed {
		if failed[i] != nil {
			wants[i] = failed[i]
		}
	}
	if !allowed[0] && wants[0] != nil {
		return wants[0].deny(why[0])
	}
	for _, r := range s {
		if r.action == Allow && r.applies {
			r.Hits().Admitted++
		}
	}
	switch {
	case denies[1] != nil:
		return denies[1].wouldDeny(token.Valid)
	case !allowed[0] && !allowed[1] && wants[1] != nil:
		return wants[1].wouldDeny(why[1])
	}
	return policy.Verdict{}
}

// way is 0 for rules in force, and 1 for those that only observe.
func (r *Rule) way() int {
	if r.Observe() {
		return 1
	}
	return 0
}

// deny returns the verdict that rejects a call, on account of its token where that is not token.Valid.
func (r *Rule) deny(why token.Result) policy.Verdict {
	r.Hits().Rejected++
	return policy.Verdict{Reject: true, Code: protocol.CodeDenied, Rule: r.Name(), Answer: answers[why]}
}

// wouldDeny returns the verdict that only tells that the rule would deny.
func (r *Rule) wouldDeny(why token.Result) policy.Verdict {
	r.Hits().WouldReject++
	return policy.Verdict{Code: protocol.CodeDenied, Rule: r.Name(), Answer: answers[why]}
}

// answers are what callers are told of their tokens.
var answers = func() (list [token.Results]*policy.Answer) {
	for r := range list {
		if text := token.Result(r).Text(); text != "" {
			list[r] = &policy.Answer{Message: text}
		}
	}
	return list
}()

// Done implements policy.Policy: how a call ends does not matter.
func (Set) Done(policy.Nanos, *policy.Call, policy.Outcome) {}
