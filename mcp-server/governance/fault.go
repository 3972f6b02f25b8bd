package governance

import (
	"github.com/isthmus-mesh/isthmus/adapters"
	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// FaultSpec makes calls fail on purpose. Of several that match a call the first one by priority is tried, and only that. There is no delay: a network
// filter cannot hold one call of a connection back without holding all that follow.
type FaultSpec struct {
	Head `yaml:",inline"`
	// How the calls fail.
	Abort Abort `yaml:"abort" json:"abort,omitzero"`
	// How many of the calls fail, chosen at random: 0.25 or "25%". Default all.
	Ratio Ratio `yaml:"ratio" json:"ratio,omitempty"`
}

// Abort is how a call fails.
type Abort struct {
	// The kind of failure, for which each protocol has a status or exception of its own: throttled, unavailable, denied, aborted or timeout. Default
	// aborted.
	Code plugin.Code `yaml:"code" json:"code,omitempty" schema:"enum=throttled|unavailable|denied|aborted|timeout"`
	// What the caller's exception shows behind the reason and the rule. At most 512 bytes.
	Message Text `yaml:"message" json:"message,omitempty" schema:"max=512"`
}

// Validate implements adapters.Validator.
func (s *FaultSpec) Validate() adapters.Faults {
	return check(s, nil, map[string]string{"perMillion": "ratio"})
}

// addTo implements Spec.
func (s *FaultSpec) addTo(p *plugin.Plugin, name string) {
	p.FaultInjection = append(p.FaultInjection, plugin.FaultInjection{
		Rule: s.rule(name), Abort: plugin.Abort{Code: s.Abort.Code, Message: string(s.Abort.Message)}, PerMillion: uint32(s.Ratio),
	})
}
