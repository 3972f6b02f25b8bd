package filter

import (
	"strings"

	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/match"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/token"
)

// A draft is one rule of a configuration, of whatever kind.
type draft struct {
	index int // in its list in the configuration
	rule  *config.Rule
}

// order sorts rules by priority, larger ones first; equal ones stay as they are. Rules are few, and mostly in order.
func order(list []draft) {
	for i := 1; i < len(list); i++ {
		d := list[i]
		k := i
		for ; k > 0 && list[k-1].rule.Priority < d.rule.Priority; k-- {
			list[k] = list[k-1]
		}
		list[k] = d
	}
}

// A spec is a rule, made ready.
type spec struct {
	draft
	kind    int
	name    string
	target  target
	when    policy.Conditions
	dir     policy.Direction // DirectionUnknown: both
	observe bool
	asks    bool          // for attachments
	peer    bool          // asks for the connection's peer
	where   bool          // asks for the connection's endpoint
	path    bool          // its method may be that of an HTTP request: "GET /orders"
	proof   *token.Params // what callers must show; nil: nothing
	hot     int           // the number of the attachment whose values are limited
}

// A target is a config.Target, made ready.
type target struct{ application, service, version, group, method, caller match.Strings }

func (t *target) compile(c *config.Target) {
	*t = target{c.Application.Strings(), c.Service.Strings(), c.Version.Strings(), c.Group.Strings(), c.Method.Strings(), c.Caller.Strings()}
}

// A ruleset is a configuration, made ready for use.
type ruleset struct {
	conf      config.Plugin // with its defaults
	hash      uint64        // of what it was made of; 0: of nothing
	protocols []int         // indices into VM.protocols, in the order in which they are tried
	specs     []spec        // of the rules that concern this application, ordered by kind
	exact     map[string][]int
	rest      []int      // rules that name no service exactly
	keys      []key      // of the attachments that rules ask for
	wanted    [][]string // their names, by protocol
	traffic   bool       // rules ask for the type of the traffic
	app       []byte     // of the workload; nil where unknown
	// intercept tells for each direction whether some rule may reject.
	intercept [directions]bool
	lift      *liftTable             // nil: calls are not lifted
	ring      map[string][]token.Key // the keys that it brings, by name
}

// directions is the number of values of policy.Direction.
const directions = int(policy.DirectionServer) + 1

// compile makes conf, which has no faults, ready. It keeps only the rules for this application.
func (vm *VM) compile(conf *config.Plugin, app string) (*ruleset, config.Faults) {
	rs := &ruleset{conf: conf.WithDefaults(), exact: make(map[string][]int)}
	if app != "" {
		rs.app = []byte(app)
	}
	var faults config.Faults
	for _, name := range rs.conf.Protocols {
		found := false
		for i := range vm.protocols {
			if vm.protocols[i].name() == name {
				rs.protocols = append(rs.protocols, i)
				found = true
			}
		}
		if !found && len(conf.Protocols) > 0 {
			faults = append(faults, config.Fault{Path: "protocols", Message: name + " is not built in"})
		}
	}
	var all []draft
	for k := range kinds {
		kd := &kinds[k]
		all = all[:0]
		for i := 0; ; i++ {
			r := kd.rule(&rs.conf, i)
			if r == nil {
				break
			}
			if kd.of == nil || kd.of(&rs.conf, i) {
				all = append(all, draft{i, r})
			}
		}
		order(all)
		for _, d := range all {
			s := spec{draft: d, kind: k, name: d.rule.Name, observe: d.rule.Mode == config.ModeObserve}
			s.target.compile(&s.rule.Target)
			switch s.rule.Target.Direction {
			case "client":
				s.dir = policy.DirectionClient
			case "server":
				s.dir = policy.DirectionServer
			}
			if s.rule.Disabled || !s.target.application.Matches([]byte(app)) {
				continue
			}
			m := &s.rule.Target.Method
			s.path = !m.IsZero() && (m.Exact == "" || strings.IndexByte(m.Exact, ' ') >= 0)
			s.when = rs.conditions(s.rule.Match)
			for i := range s.when {
				rs.ask(&s, s.when[i].Subject)
			}
			if kd.proof != nil {
				if t := kd.proof(&rs.conf, s.index); t != nil {
					s.proof, s.asks = rs.proof(t), true
				}
			}
			if kd.hot != nil {
				h := kd.hot(&rs.conf, s.index)
				subject, label := subjectOf(h.Subject)
				s.hot = rs.slot(subject, key{h.Key, label})
				rs.ask(&s, subject)
			}
			s.where = kd.where != nil && kd.where(&rs.conf, s.index)
			for d := range rs.intercept {
				rs.intercept[d] = rs.intercept[d] || s.rejects() && s.towards(policy.Direction(d))
			}
			rs.specs = append(rs.specs, s)
		}
	}
	for i := range vm.protocols {
		names := make([]string, len(rs.keys))
		for k := range rs.keys {
			names[k] = rs.keys[k].name
			if rs.keys[k].label {
				names[k] = vm.protocols[i].Labels + names[k]
			}
		}
		rs.wanted = append(rs.wanted, names)
	}
	rs.ring = keyring(rs.conf.Keys)
	if rs.conf.Lift != nil {
		rs.lift = newLiftTable(rs.conf.Lift, app)
	}
	for i := range rs.specs {
		if service := rs.specs[i].target.service.Exact; service != "" {
			rs.exact[service] = append(rs.exact[service], i)
		} else {
			rs.rest = append(rs.rest, i)
		}
	}
	return rs, faults
}

// known is what is known of a call that is matched against rules.
type known struct {
	service, version, group, method, caller []byte

	// Where methods are too many to be remembered: class stands for all that no rule tells apart, and label is how metrics name it. Nil
	// is the method itself.
	class, label []byte
}

// key is what stands for the method in a route.
func (k *known) key() []byte {
	if k.class != nil {
		return k.class
	}
	return k.method
}

// rejects tells whether s may reject or delay a call that no other rule does.
func (s *spec) rejects() bool { return !s.observe && !kinds[s.kind].fallback }

// towards tells whether s is for calls of this direction.
func (s *spec) towards(dir policy.Direction) bool {
	return s.dir == policy.DirectionUnknown || s.dir == dir
}

// head tells whether s can match a call whose service, version and method are k's.
func (s *spec) head(dir policy.Direction, k *known) bool {
	t := &s.target
	return s.towards(dir) && t.service.Matches(k.service) && t.method.Matches(k.method) && t.version.Matches(k.version)
}

// matches tells whether s matches the call.
func (s *spec) matches(dir policy.Direction, k *known) bool {
	return s.head(dir, k) && s.target.group.Matches(k.group) && s.target.caller.Matches(k.caller)
}

// mayReject tells whether some rule may reject a call of which only service, version and method are known.
func (rs *ruleset) mayReject(dir policy.Direction, k *known) bool {
	if !rs.intercept[dir] {
		return false
	}
	for _, i := range rs.exact[string(k.service)] {
		if s := &rs.specs[i]; s.rejects() && s.head(dir, k) {
			return true
		}
	}
	for _, i := range rs.rest {
		if s := &rs.specs[i]; s.rejects() && s.head(dir, k) {
			return true
		}
	}
	return false
}

// matching appends the indices of the rules that match the call, ascending.
func (rs *ruleset) matching(dst []int, dir policy.Direction, k *known) []int {
	a, b := rs.exact[string(k.service)], rs.rest
	for len(a)+len(b) > 0 {
		var i int
		if len(b) == 0 || len(a) > 0 && a[0] < b[0] {
			i, a = a[0], a[1:]
		} else {
			i, b = b[0], b[1:]
		}
		if rs.specs[i].matches(dir, k) {
			dst = append(dst, i)
		}
	}
	return dst
}
