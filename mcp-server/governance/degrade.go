package governance

import (
	"encoding/base64"
	"strings"

	"github.com/isthmus-mesh/isthmus/adapters"
	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// DegradeSpec answers calls in the provider's place. Of several that match a call the first one by priority answers.
type DegradeSpec struct {
	Head `yaml:",inline"`
	// Which of the calls are answered: always, or rejected: those that a circuit breaker or a throttle rejects. Default always.
	When plugin.DegradeWhen `yaml:"when" json:"when,omitempty" schema:"enum=always|rejected"`
	// What they return; callers of HTTP get its JSON. Without it, in a serialization that is not known, and in Triple, which Envoy answers with a
	// status only, they are rejected as unavailable.
	Reply *Reply `yaml:"reply" json:"reply,omitempty"`
}

// forms are the serializations that a reply is written in, in the protocols' own numbers.
var forms = []struct {
	protocol      string
	serialization uint32
	encoder       func() encoder
}{
	{"dubbo", 2, func() encoder { return new(hessian2) }},
	{"dubbo", 23, func() encoder { return jsonb{} }},
	{"bolt", 1, func() encoder { return &sofaHessian{classes: []string{sofaResponseClass}} }},
}

// Validate implements adapters.Validator.
func (s *DegradeSpec) Validate() adapters.Faults {
	var f adapters.Faults
	if s.Reply != nil {
		_, faults := s.Reply.typed()
		f = append(f, faults.Under("reply")...)
	}
	faults := check(s, f, map[string]string{"replies": "reply.json"})
	for i := range faults {
		if strings.HasPrefix(faults[i].Path, "reply.json[") && strings.HasSuffix(faults[i].Path, "].value") { // of the filter's list of replies
			faults[i].Path = "reply.json"
			return faults[:i+1] // the others are as long
		}
	}
	return faults
}

// addTo implements Spec.
func (s *DegradeSpec) addTo(p *plugin.Plugin, name string) {
	d := plugin.Degrade{Rule: s.rule(name), When: s.When}
	if s.Reply != nil {
		if v, faults := s.Reply.typed(); len(faults) == 0 {
			for _, form := range forms {
				b := form.encoder().value(nil, &v)
				d.Replies = append(d.Replies, plugin.Reply{Protocol: form.protocol, Serialization: form.serialization, Value: base64.StdEncoding.EncodeToString(b)})
			}
			text, _ := s.Reply.JSON.MarshalJSON() // what was read from JSON can be written so
			d.Replies = append(d.Replies, plugin.Reply{Protocol: plugin.SystemHTTP, Value: base64.StdEncoding.EncodeToString(text)})
		}
	}
	p.Degrade = append(p.Degrade, d)
}
