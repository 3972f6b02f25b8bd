package governance

import (
	"github.com/isthmus-mesh/isthmus/adapters"
	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// AccessSpec allows or denies calls. A call that some deny rule matches is denied. Else, if it is in the target of some allow or defaultDeny rule, it is
// denied unless some allow rule matches it. Else it is allowed. So the target says where the rule applies, and match whom it lists.
type AccessSpec struct {
	Head `yaml:",inline"`
	// allow: the calls that match, and no others of the target. deny: the calls that match. defaultDeny: the calls of the target that no other rule
	// allows; it has no match.
	Action plugin.AccessAction `yaml:"action" json:"action" schema:"required,enum=allow|deny|defaultDeny"`
	// What a call must show to be allowed; it goes with the action allow only. Without it calls need show nothing.
	Token *Token `yaml:"token" json:"token,omitempty"`
}

// Validate implements adapters.Validator.
func (s *AccessSpec) Validate() adapters.Faults {
	var f adapters.Faults
	s.Token.check(&f)
	return check(s, f, tokenFields)
}

// addTo implements Spec.
func (s *AccessSpec) addTo(p *plugin.Plugin, name string) {
	p.Access = append(p.Access, plugin.Access{Rule: s.rule(name), Action: s.Action, Token: s.Token.plugin()})
}
