package filter

import (
	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/match"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/ratelimit"
)

// A governor is the state of one rule.
type governor interface {
	Name() string
	Hits() *policy.Hits
}

// A spec is one rule of a configuration, of whatever kind.
type spec struct {
	kind    int
	index   int // in its list in the configuration
	rule    *config.Rule
	name    string
	target  target
	dir     policy.Direction // DirectionUnknown: both
	observe bool
}

// A target is a config.Target, made ready.
type target struct{ application, service, version, group, method, caller match.Strings }

func (t *target) compile(c *config.Target) {
	*t = target{c.Application.Strings(), c.Service.Strings(), c.Version.Strings(), c.Group.Strings(), c.Method.Strings(), c.Caller.Strings()}
}

// A kind is a kind of rules.
type kind struct {
	// specs appends the enabled rules of this kind.
	specs func(dst []spec, p *config.Plugin) []spec
	// renew returns the state for a rule. old is the state of the rule of the same name before, or nil: where the parameters
	// are the same it goes on.
	renew func(p *config.Plugin, s *spec, old governor, shared policy.Shared, scope string) governor
	// join makes one policy of the states of all rules of this kind that match the same calls.
	join func(states []governor) policy.Policy
	// done says that the policies want to know how a call ended.
	done bool
}

// kinds are the kinds of rules, in the order in which they decide. Those that charge for a call come last, so that what
// another kind rejects costs nothing.
var kinds = []kind{
	{specs: throttleSpecs, renew: renewThrottle, join: joinThrottle},
}

func throttleSpecs(dst []spec, p *config.Plugin) []spec {
	for i := range p.Throttle {
		if t := &p.Throttle[i]; !t.Disabled {
			dst = append(dst, spec{index: i, rule: &t.Rule})
		}
	}
	return dst
}

func renewThrottle(p *config.Plugin, s *spec, old governor, shared policy.Shared, scope string) governor {
	t := &p.Throttle[s.index]
	params := ratelimit.Params{Threshold: t.Threshold, Interval: policy.Nanos(t.IntervalMillis) * 1_000_000, Burst: t.Burst}
	if r, ok := old.(*ratelimit.Rule); ok && r.Params() == params {
		r.SetObserve(s.observe)
		return r
	}
	return ratelimit.New(s.name, params, s.observe, shared, scope)
}

func joinThrottle(states []governor) policy.Policy {
	set := make(ratelimit.Set, len(states))
	for i, s := range states {
		set[i] = s.(*ratelimit.Rule)
	}
	return set
}

// A ruleset is a configuration, made ready for use.
type ruleset struct {
	conf      config.Plugin // with its defaults
	protocols []int         // indices into VM.protocols, in the order in which they are tried
	specs     []spec        // of the rules that concern this application, ordered by kind
	exact     map[string][]int
	rest      []int // rules that name no service exactly
	// intercept tells for each direction whether some rule may reject.
	intercept [directions]bool
}

// directions is the number of values of policy.Direction.
const directions = int(policy.DirectionServer) + 1

// compile makes conf, which has no faults, ready. It keeps only the rules for this application.
func (vm *VM) compile(conf *config.Plugin, app string) (*ruleset, config.Faults) {
	rs := &ruleset{conf: conf.WithDefaults(), exact: make(map[string][]int)}
	var faults config.Faults
	for _, name := range rs.conf.Protocols {
		found := false
		for i := range vm.protocols {
			if vm.protocols[i].Codec.Name() == name {
				rs.protocols = append(rs.protocols, i)
				found = true
			}
		}
		if !found && len(conf.Protocols) > 0 {
			faults = append(faults, config.Fault{Path: "protocols", Message: name + " is not built in"})
		}
	}
	for k := range kinds {
		from := len(rs.specs)
		all := kinds[k].specs(rs.specs, &rs.conf)
		rs.specs = rs.specs[:from]
		for _, s := range all[from:] {
			s.kind, s.name, s.observe = k, s.rule.Name, s.rule.Mode == config.ModeObserve
			s.target.compile(&s.rule.Target)
			switch s.rule.Target.Direction {
			case "client":
				s.dir = policy.DirectionClient
			case "server":
				s.dir = policy.DirectionServer
			}
			if !s.target.application.Matches([]byte(app)) {
				continue
			}
			for d := range rs.intercept {
				rs.intercept[d] = rs.intercept[d] || !s.observe && s.towards(policy.Direction(d))
			}
			rs.specs = append(rs.specs, s)
		}
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
type known struct{ service, version, group, method, caller []byte }

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
		if s := &rs.specs[i]; !s.observe && s.head(dir, k) {
			return true
		}
	}
	for _, i := range rs.rest {
		if s := &rs.specs[i]; !s.observe && s.head(dir, k) {
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

// A chain is the policies for the calls of one route, in the order in which they decide.
type chain struct {
	policies []policy.Policy
	done     bool // some of them want to know how a call ended
}
