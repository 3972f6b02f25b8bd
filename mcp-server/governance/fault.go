package governance

import (
	"time"

	"github.com/isthmus-mesh/isthmus/adapters"
	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// FaultSpec makes calls fail, or take longer, on purpose. Of several that match a call the first one by priority is tried, and only that.
type FaultSpec struct {
	Head `yaml:",inline"`
	// How the calls fail.
	Abort Abort `yaml:"abort" json:"abort,omitzero"`
	// Holds the calls back instead; the others of their connection go on.
	Delay *Delay `yaml:"delay" json:"delay,omitempty"`
	// How many of the calls it hits, chosen at random: 0.25 or "25%". Default all.
	Ratio Ratio `yaml:"ratio" json:"ratio,omitempty"`
}

// Abort is how a call fails.
type Abort struct {
	// The kind of failure, for which each protocol has a status or exception of its own: throttled, unavailable, denied, aborted or timeout. Default
	// aborted.
	Code plugin.Code `yaml:"code" json:"code,omitempty" schema:"enum=throttled|unavailable|denied|aborted|timeout"`
	// What the caller's exception shows behind the reason and the rule. At most 512 bytes.
	Message Text `yaml:"message" json:"message,omitempty" schema:"max=512"`
	// The status that callers of HTTP get, in the place of the code's own, 429, 503, 403, 500 or 504. Triple has the code's own.
	HTTPStatus Count `yaml:"httpStatus" json:"httpStatus,omitempty" schema:"number=200|599"`
}

// Delay is how long a call is held back.
type Delay struct {
	// The time by which each call is later. 1ms to 1m.
	FixedDelay Duration `yaml:"fixedDelay" json:"fixedDelay,omitzero" schema:"required"`
}

// maxDelay is the filter's bound.
const maxDelay = time.Minute

// Validate implements adapters.Validator.
func (s *FaultSpec) Validate() adapters.Faults {
	var f adapters.Faults
	if s.Delay != nil {
		if s.Delay.FixedDelay == 0 {
			f.Add("delay.fixedDelay", "is missing")
		}
		s.Delay.FixedDelay.check(&f, "delay.fixedDelay", minInterval, maxDelay)
	}
	return check(s, f, map[string]string{"perMillion": "ratio", "delayMillis": "delay.fixedDelay"})
}

// addTo implements Spec.
func (s *FaultSpec) addTo(p *plugin.Plugin, name string) {
	f := plugin.FaultInjection{Rule: s.rule(name), Abort: plugin.Abort{Code: s.Abort.Code, Message: string(s.Abort.Message), HTTPStatus: uint32(s.Abort.HTTPStatus)}, PerMillion: uint32(s.Ratio)}
	if s.Delay != nil {
		f.DelayMillis = s.Delay.FixedDelay.millis()
	}
	p.FaultInjection = append(p.FaultInjection, f)
}
