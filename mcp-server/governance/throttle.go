package governance

import (
	"encoding/json"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/isthmus-mesh/isthmus/adapters"
	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// ThrottleSpec limits the rate of calls by a token bucket, in each sidecar that has such calls.
type ThrottleSpec struct {
	Target    Target        `yaml:"target" json:"target,omitzero"`
	Direction string        `yaml:"direction" json:"direction,omitempty"` // client, server or both; default both
	Mode      string        `yaml:"mode" json:"mode,omitempty"`           // intercept or observe; default intercept
	Enabled   *bool         `yaml:"enabled" json:"enabled,omitempty"`     // default true
	Threshold *uint32       `yaml:"threshold" json:"threshold"`           // calls per interval; 0 admits none
	Interval  time.Duration `yaml:"interval" json:"-"`                    // default 1s; 1ms to 24h, whole milliseconds
	Burst     uint32        `yaml:"burst" json:"burst,omitempty"`         // admitted at once after a pause; default threshold
}

// Target selects calls. Its zero value selects all.
type Target struct {
	Application Match `yaml:"application" json:"application,omitzero"` // of the workload whose sidecar decides
	Service     Match `yaml:"service" json:"service,omitzero"`         // interface name
	Version     Match `yaml:"version" json:"version,omitzero"`
	Group       Match `yaml:"group" json:"group,omitzero"` // Dubbo's group, SOFA's uniqueId
	Method      Match `yaml:"method" json:"method,omitzero"`
	Caller      Match `yaml:"caller" json:"caller,omitzero"` // application of the caller
}

// Match is written as "*", as a string that is to be equal, as {exact: …} or as {prefix: …}. The zero value matches
// everything, as "*" does.
type Match plugin.Match

// UnmarshalYAML reads one of the forms.
func (m *Match) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		switch n.Value {
		case "*":
		case "":
			return adapters.Faults{{Line: n.Line, Message: `is empty; "*" is everything`}}
		default:
			m.Exact = n.Value
		}
		return nil
	}
	var forms struct {
		Exact  string `yaml:"exact"`
		Prefix string `yaml:"prefix"`
	}
	if err := adapters.SettingsOf(n).Decode(&forms); err != nil {
		return err
	}
	if (forms.Exact == "") == (forms.Prefix == "") {
		return adapters.Faults{{Line: n.Line, Message: "give either exact or prefix"}}
	}
	m.Exact, m.Prefix = forms.Exact, forms.Prefix
	return nil
}

// MarshalJSON writes the shortest form.
func (m Match) MarshalJSON() ([]byte, error) {
	switch {
	case m.Prefix != "":
		return json.Marshal(map[string]string{"prefix": m.Prefix})
	case m.Exact == "*":
		return json.Marshal(map[string]string{"exact": m.Exact})
	case m.Exact != "":
		return json.Marshal(m.Exact)
	}
	return []byte(`"*"`), nil
}

// IsZero tells whether everything matches.
func (m Match) IsZero() bool { return plugin.Match(m).IsZero() }

// The bounds of a rule's numbers; they are the filter's.
const (
	minInterval = time.Millisecond
	maxInterval = 24 * time.Hour
	maxMatch    = 512 // bytes
)

// Validate implements adapters.Validator.
func (s *ThrottleSpec) Validate() adapters.Faults {
	var f adapters.Faults
	switch s.Direction {
	case "", "client", "server", "both":
	default:
		f.Add("direction", "must be client, server or both, is %q", s.Direction)
	}
	switch s.Mode {
	case "", string(plugin.ModeIntercept), string(plugin.ModeObserve):
	default:
		f.Add("mode", "must be intercept or observe, is %q", s.Mode)
	}
	if s.Threshold == nil {
		f.Add("threshold", "is missing") // a forgotten one must not reject every call
	}
	if s.Interval != 0 && (s.Interval < minInterval || s.Interval > maxInterval || s.Interval%time.Millisecond != 0) {
		f.Add("interval", "must be from %s to %s, in whole milliseconds", minInterval, maxInterval)
	}
	t := &s.Target
	for _, m := range []struct {
		name string
		Match
	}{{"application", t.Application}, {"service", t.Service}, {"version", t.Version}, {"group", t.Group}, {"method", t.Method}, {"caller", t.Caller}} {
		if len(m.Exact) > maxMatch || len(m.Prefix) > maxMatch {
			f.Add("target."+m.name, "is longer than %d bytes", maxMatch)
		}
	}
	return f
}

func (s *ThrottleSpec) enabled() bool { return s.Enabled == nil || *s.Enabled }

func (s *ThrottleSpec) addTo(p *plugin.Plugin, name string) {
	direction := s.Direction
	if direction == "both" {
		direction = ""
	}
	p.Throttle = append(p.Throttle, plugin.Throttle{
		Rule: plugin.Rule{
			Name: name,
			Target: plugin.Target{
				Application: plugin.Match(s.Target.Application),
				Direction:   direction,
				Service:     plugin.Match(s.Target.Service),
				Version:     plugin.Match(s.Target.Version),
				Group:       plugin.Match(s.Target.Group),
				Method:      plugin.Match(s.Target.Method),
				Caller:      plugin.Match(s.Target.Caller),
			},
			Mode:     plugin.Mode(s.Mode),
			Disabled: !s.enabled(),
		},
		Threshold:      *s.Threshold,
		IntervalMillis: uint32(s.Interval / time.Millisecond),
		Burst:          s.Burst,
	})
}

// MarshalJSON writes the spec as people write it.
func (s *ThrottleSpec) MarshalJSON() ([]byte, error) {
	type plain ThrottleSpec
	out := struct {
		*plain
		Interval string `json:"interval,omitempty"`
	}{plain: (*plain)(s)}
	if s.Interval != 0 {
		out.Interval = s.Interval.String()
	}
	return json.Marshal(out)
}
