package filter

import (
	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/access"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/match"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/token"
)

// proof makes what a rule wants to be shown ready. The numbers of its attachments are the ruleset's.
func (rs *ruleset) proof(t *config.Token) *token.Params {
	var slots []int
	for _, name := range t.Asks() {
		slots = append(slots, rs.slot(policy.SubjectAttachment, key{name: name}))
	}
	p := &token.Params{Attachment: slots[0], Prefix: t.Prefix, Open: t.OnFailure == config.FailureAllow}
	if h := t.HMAC; h != nil {
		p.HMAC = &token.HMAC{Timestamp: slots[1], KeyID: -1, Signed: slots[2:], Window: int64(h.WindowMillis)}
		if h.KeyID != "" {
			p.HMAC.KeyID, p.HMAC.Signed = slots[2], slots[3:]
		}
	}
	if j := t.JWT; j != nil {
		p.JWT = &token.JWT{Issuer: j.Issuer, Audiences: j.Audiences, Skew: int64(j.ClockSkewMillis)}
		for i := range j.Claims {
			c := &j.Claims[i]
			q := token.Claim{Name: c.Claim, Not: negative(c.Operator), Exists: c.Operator == config.OperatorExists}
			if !q.Exists {
				q.Strings = compared(c.Operator, c.Values)
			}
			p.JWT.Claims = append(p.JWT.Claims, q)
		}
	}
	return p
}

// verifier returns what checks a rule's tokens, nil where it has none.
func (s *state) verifier() *token.Verifier {
	if r, ok := s.governor.(*access.Rule); ok {
		return r.Token()
	}
	return nil
}

// keysNamed returns the keys of a name: those of rt's own configuration, or of another plugin's where it has none. Of several others those hold that
// come first by their names, so that all workers have the same.
func (vm *VM) keysNamed(rt *Runtime, name string) []token.Key {
	own := rt.rules.ring[name]
	if own != nil {
		return own
	}
	from := ""
	for key, other := range vm.runtimes {
		if keys := other.rules.ring[name]; keys != nil && (own == nil || key < from) {
			own, from = keys, key
		}
	}
	return own
}

// shareKeys gives all rules their keys, after some plugin has changed.
func (vm *VM) shareKeys() {
	for _, rt := range vm.runtimes {
		for i := range rt.states {
			if v := rt.states[i].verifier(); v != nil {
				v.SetKeys(vm.keysNamed(rt, rt.rules.conf.Access[rt.rules.specs[i].index].Token.Key))
			}
		}
	}
}

// keyring brings a configuration's keys into their own form.
func keyring(list []config.Key) map[string][]token.Key {
	if len(list) == 0 {
		return nil
	}
	keys := make(map[string][]token.Key)
	for i := range list {
		k := &list[i]
		value, _ := config.DecodeValue(k.Value)
		a, _ := token.ParseAlgorithm(k.Algorithm)
		keys[k.Name] = append(keys[k.Name], token.Key{ID: k.ID, Algorithm: a, Value: value})
	}
	return keys
}

// reportChecks brings what became of tokens to the host.
func (rt *Runtime) reportChecks(s *state) {
	v := s.verifier()
	if v == nil {
		return
	}
	for r := range v.Counts {
		if v.Counts[r] == 0 {
			continue
		}
		if s.checks == nil {
			s.checks = make([]Metric, token.Results)
			for i := range s.checks {
				s.checks[i] = undefined
			}
		}
		if s.checks[r] == undefined {
			b := appendLabel(rt.ruleLabels(s), config.TagReason, token.Result(r).String())
			rt.vm.line = append(b, nameTokenChecks...)
			s.checks[r] = rt.vm.host.Counter(rt.vm.line)
		}
		rt.vm.host.Add(s.checks[r], int64(v.Counts[r]))
		v.Counts[r] = 0
	}
}

// negative tells whether an operator holds for what its values are not.
//
//go:noinline
func negative(o config.Operator) bool {
	return o == config.OperatorNotEquals || o == config.OperatorNotIn
}

// compared makes what an operator compares with ready; exists compares with nothing.
//
//go:noinline
func compared(o config.Operator, values []string) (s match.Strings) {
	switch o {
	case config.OperatorPrefix:
		s.Prefix = values[0]
	case config.OperatorRegex:
		s.Pattern, _ = match.Compile(values[0])
	default:
		s.In = values
	}
	return s
}
