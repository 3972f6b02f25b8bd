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
}

// Validate implements adapters.Validator.
func (s *AccessSpec) Validate() adapters.Faults { return check(s, nil, nil) }

// addTo implements Spec.
func (s *AccessSpec) addTo(p *plugin.Plugin, name string) {
	p.Access = append(p.Access, plugin.Access{Rule: s.rule(name), Action: s.Action})
}
