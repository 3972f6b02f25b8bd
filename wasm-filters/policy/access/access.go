// Package access allows and denies calls by lists.
//
// A call that a deny rule applies to is denied. Else, where there are allow or default-deny rules for it, it is denied
// unless one of the allow rules applies. Else it is allowed. Which rules are for a call is decided before; what applies to it are a
// rule's conditions.
package access

import (
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
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
}

// New returns a rule.
func New(name string, action Action, observe bool) *Rule {
	return &Rule{policy.NewRule(name, observe), action}
}

// Action returns what the rule does.
func (r *Rule) Action() Action { return r.action }

// Set is the policy of all rules for the same calls. A verdict that does not reject, but names a rule, tells that this rule would
// have denied the call if it did not only observe.
type Set []*Rule

var _ policy.Policy = Set(nil)

// Admit implements policy.Policy.
func (s Set) Admit(_ policy.Nanos, c *policy.Call) policy.Verdict {
	// The first rules that deny, and those that want an allow rule to apply: in force, and only observing.
	var denies, wants [2]*Rule
	var allowed [2]bool
	for _, r := range s {
		i := 0
		if r.Observe() {
			i = 1
		}
		applies := r.action != DefaultDeny && r.Applies(c)
		if r.action == Deny {
			if applies && denies[i] == nil {
				denies[i] = r
			}
			continue
		}
		if wants[i] == nil {
			wants[i] = r
		}
		allowed[i] = allowed[i] || applies
	}
	denied := denies[0]
	if denied == nil && !allowed[0] {
		denied = wants[0]
	}
	if denied != nil {
		denied.Hits().Rejected++
		return policy.Verdict{Reject: true, Code: protocol.CodeDenied, Rule: denied.Name()}
	}
	for _, r := range s {
		if r.action == Allow && r.Applies(c) {
			r.Hits().Admitted++
		}
	}
	would := denies[1]
	if would == nil && !allowed[0] && !allowed[1] {
		would = wants[1]
	}
	if would == nil {
		return policy.Verdict{}
	}
	would.Hits().WouldReject++
	return policy.Verdict{Code: protocol.CodeDenied, Rule: would.Name()}
}

// Done implements policy.Policy: how a call ends does not matter.
func (Set) Done(policy.Nanos, *policy.Call, policy.Outcome) {}
