package filter

import (
	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/access"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/breaker"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/concurrency"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/degrade"
	inject "github.com/isthmus-mesh/isthmus/wasm-filters/policy/fault"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/ratelimit"
)

// A governor is the state of one rule.
type governor interface {
	Name() string
	Observe() bool
	Hits() *policy.Hits
	Renew(observe bool, when policy.Conditions)
}

// A kind is a kind of rules.
type kind struct {
	label string // in metrics
	// rule returns the i-th rule of the list that this kind is in, nil behind the last.
	rule func(p *config.Plugin, i int) *config.Rule
	// of tells whether that rule is of this kind; nil: all are.
	of func(p *config.Plugin, i int) bool
	// renew returns the state for a rule. old is the state of the rule of the same kind and name before, or nil: where the
	// parameters are the same it goes on.
	renew func(p *config.Plugin, s *spec, old governor, shared policy.Shared, scope string) governor
	// join makes one policy of the states of all rules of this kind that match the same calls. Their bits in policy.Call.Marks
	// begin with first.
	join func(states []governor, first uint) policy.Policy
	// marks says that the rules have such bits.
	marks bool
	// softened says that a call which these rules reject may get a reply from a degrade rule instead.
	softened bool
	// delays says that these rules may delay calls.
	delays bool
	// audited says that what these rules deny is logged.
	audited bool
	// fallback says that these rules decide only on what others reject.
	fallback bool
	// proof returns what a rule wants callers to show, nil for nothing; nil: the rules want nothing.
	proof func(p *config.Plugin, i int) *config.Token
	// hot returns the subject of a rule's hot values; nil: the rules have none.
	hot func(p *config.Plugin, i int) *config.HotValues
	// where tells whether a rule asks for the connection's endpoint; nil: none does.
	where func(p *config.Plugin, i int) bool
	// gauge returns the name of a rule's gauge, and its value; nil: the rules have none.
	gauge func(g governor, now policy.Nanos) (name string, value uint64)
}

// kinds are the kinds of rules, in the order in which they decide. Those that charge for a call come last, so that what
// another kind rejects costs nothing.
var kinds = []kind{
	{label: "access", rule: accessRule, renew: renewAccess, join: joinAccess, audited: true, proof: accessToken},
	{label: "faultInjection", rule: faultRule, renew: renewFault, join: joinFault, delays: true},
	{label: "degrade", rule: degradeRule, of: always, renew: renewDegrade, join: joinDegrade},
	{label: "degrade", rule: degradeRule, of: whenRejected, renew: renewDegrade, join: joinDegrade, fallback: true},
	{label: "circuitBreaker", rule: breakerRule, renew: renewBreaker, join: joinBreaker, marks: true, softened: true, where: isPerEndpoint, gauge: breakerGauge},
	{label: "throttle", rule: throttleRule, of: isConcurrency, renew: renewConcurrency, join: joinConcurrency, marks: true, softened: true, gauge: concurrencyGauge},
	{label: "throttle", rule: throttleRule, of: isHot, renew: renewHot, join: joinHot, marks: true, softened: true, hot: hotValues},
	{label: "throttle", rule: throttleRule, of: isPaced, renew: renewPaced, join: joinPaced, marks: true, softened: true, delays: true, gauge: pacedGauge},
	{label: "throttle", rule: throttleRule, of: isRate, renew: renewRate, join: joinRate, softened: true, gauge: rateGauge},
}

// maxMarks is how many rules with marks may be for one call.
const maxMarks = 64

// gather brings states to their own type.
func gather[T governor](states []governor) []T {
	list := make([]T, len(states))
	for i, s := range states {
		list[i] = s.(T)
	}
	return list
}

func accessRule(p *config.Plugin, i int) *config.Rule {
	if i < len(p.Access) {
		return &p.Access[i].Rule
	}
	return nil
}

func renewAccess(p *config.Plugin, s *spec, old governor, _ policy.Shared, _ string) governor {
	action := access.Deny
	switch p.Access[s.index].Action {
	case config.AccessAllow:
		action = access.Allow
	case config.AccessDefaultDeny:
		action = access.DefaultDeny
	}
	if r, ok := old.(*access.Rule); ok && r.Action() == action {
		return r
	}
	return access.New(s.name, action, s.observe)
}

func accessToken(p *config.Plugin, i int) *config.Token { return p.Access[i].Token }

func joinAccess(states []governor, _ uint) policy.Policy {
	return access.Set(gather[*access.Rule](states))
}

func faultRule(p *config.Plugin, i int) *config.Rule {
	if i < len(p.FaultInjection) {
		return &p.FaultInjection[i].Rule
	}
	return nil
}

func renewFault(p *config.Plugin, s *spec, old governor, _ policy.Shared, _ string) governor {
	f := &p.FaultInjection[s.index]
	params := inject.Params{Code: f.Abort.Code.Protocol(), Message: f.Abort.Message, Status: uint16(f.Abort.HTTPStatus), PerMillion: f.PerMillion, Delay: nanos(f.DelayMillis)}
	if r, ok := old.(*inject.Rule); ok && r.Params() == params {
		return r
	}
	return inject.New(s.name, params, s.observe)
}

func joinFault(states []governor, _ uint) policy.Policy {
	return inject.Set(gather[*inject.Rule](states))
}

func degradeRule(p *config.Plugin, i int) *config.Rule {
	if i < len(p.Degrade) {
		return &p.Degrade[i].Rule
	}
	return nil
}

func always(p *config.Plugin, i int) bool       { return p.Degrade[i].When == config.WhenAlways }
func whenRejected(p *config.Plugin, i int) bool { return p.Degrade[i].When == config.WhenRejected }

// renewDegrade always makes a new rule: it has no state but its hits.
func renewDegrade(p *config.Plugin, s *spec, old governor, _ policy.Shared, _ string) governor {
	var replies []policy.Reply
	for _, r := range p.Degrade[s.index].Replies {
		value, _ := config.DecodeValue(r.Value)
		replies = append(replies, policy.Reply{Protocol: r.Protocol, Serialization: uint8(r.Serialization), Value: value})
	}
	return degrade.New(s.name, replies, s.observe)
}

func joinDegrade(states []governor, _ uint) policy.Policy {
	return degrade.Set(gather[*degrade.Rule](states))
}

func breakerRule(p *config.Plugin, i int) *config.Rule {
	if i < len(p.CircuitBreaker) {
		return &p.CircuitBreaker[i].Rule
	}
	return nil
}

func isPerEndpoint(p *config.Plugin, i int) bool { return p.CircuitBreaker[i].PerEndpoint }

func renewBreaker(p *config.Plugin, s *spec, old governor, shared policy.Shared, scope string) governor {
	c := &p.CircuitBreaker[s.index]
	params := breaker.Params{Threshold: c.Threshold, Window: nanos(c.StatIntervalMillis), MinRequests: c.MinRequestAmount,
		MaxRT: nanos(c.MaxAllowedRtMillis), Retry: nanos(c.RetryTimeoutMillis), Probes: c.ProbeNum, PerEndpoint: c.PerEndpoint}
	switch c.Strategy {
	case config.StrategyErrorCount:
		params.Strategy = breaker.ErrorCount
	case config.StrategyAverageResponseTime:
		params.Strategy = breaker.AverageResponseTime
	case config.StrategySlowCallRatio:
		params.Strategy = breaker.SlowCallRatio
	}
	for _, e := range c.Errors {
		switch e {
		case config.ErrorTransport:
			params.Errors |= breaker.Transport
		case config.ErrorStatus:
			params.Errors |= breaker.Status
		case config.ErrorException:
			params.Errors |= breaker.Exception
		}
	}
	if r, ok := old.(*breaker.Rule); ok && r.Params() == params {
		return r
	}
	return breaker.New(s.name, params, s.observe, shared, scope)
}

func joinBreaker(states []governor, first uint) policy.Policy {
	return breaker.NewSet(gather[*breaker.Rule](states), first)
}

func breakerGauge(g governor, now policy.Nanos) (string, uint64) {
	return nameRuleCircuit, uint64(g.(*breaker.Rule).Phase(now))
}

func throttleRule(p *config.Plugin, i int) *config.Rule {
	if i < len(p.Throttle) {
		return &p.Throttle[i].Rule
	}
	return nil
}

func isConcurrency(p *config.Plugin, i int) bool {
	return p.Throttle[i].Type == config.ThrottleConcurrency
}
func isHot(p *config.Plugin, i int) bool   { return p.Throttle[i].HotValues.Subject != "" }
func isPaced(p *config.Plugin, i int) bool { return p.Throttle[i].MaxQueueingMillis > 0 }
func isRate(p *config.Plugin, i int) bool {
	return !isConcurrency(p, i) && !isHot(p, i) && !isPaced(p, i)
}

func renewConcurrency(p *config.Plugin, s *spec, old governor, shared policy.Shared, scope string) governor {
	limit := p.Throttle[s.index].Threshold
	if r, ok := old.(*concurrency.Rule); ok {
		r.SetLimit(limit)
		return r
	}
	return concurrency.New(s.name, limit, s.observe, shared, scope)
}

func joinConcurrency(states []governor, first uint) policy.Policy {
	return concurrency.NewSet(gather[*concurrency.Rule](states), first)
}

func concurrencyGauge(g governor, _ policy.Nanos) (string, uint64) {
	return nameRuleRunning, uint64(g.(*concurrency.Rule).Running())
}

func rateParams(t *config.Throttle) ratelimit.Params {
	return ratelimit.Params{Threshold: t.Threshold, Interval: nanos(t.IntervalMillis), Burst: t.Burst}
}

func hotValues(p *config.Plugin, i int) *config.HotValues { return &p.Throttle[i].HotValues }

func renewHot(p *config.Plugin, s *spec, old governor, shared policy.Shared, scope string) governor {
	t := &p.Throttle[s.index]
	params := ratelimit.HotParams{Params: rateParams(t), MaxValues: t.HotValues.MaxValues}
	params.Subject, _ = subjectOf(t.HotValues.Subject)
	r, ok := old.(*ratelimit.HotRule)
	if !ok || r.Params() != params {
		r = ratelimit.NewHot(s.name, params, s.observe, shared, scope)
	}
	r.SetKey(s.hot)
	return r
}

func joinHot(states []governor, first uint) policy.Policy {
	return ratelimit.NewHotSet(gather[*ratelimit.HotRule](states), first)
}

func renewPaced(p *config.Plugin, s *spec, old governor, shared policy.Shared, scope string) governor {
	t := &p.Throttle[s.index]
	params, queue := rateParams(t), nanos(t.MaxQueueingMillis)
	if r, ok := old.(*ratelimit.PacedRule); ok && r.Params() == params && r.Queue() == queue {
		return r
	}
	return ratelimit.NewPaced(s.name, params, queue, s.observe, shared, scope)
}

func joinPaced(states []governor, first uint) policy.Policy {
	return ratelimit.NewPacedSet(gather[*ratelimit.PacedRule](states), first)
}

func pacedGauge(g governor, now policy.Nanos) (string, uint64) {
	return nameRuleQueue, uint64(g.(*ratelimit.PacedRule).Wait(now) / 1_000_000)
}

func renewRate(p *config.Plugin, s *spec, old governor, shared policy.Shared, scope string) governor {
	t := &p.Throttle[s.index]
	params, warm := rateParams(t), ratelimit.WarmUp{Period: nanos(t.WarmUp.PeriodMillis), ColdFactor: t.WarmUp.ColdFactor}
	r, ok := old.(*ratelimit.Rule)
	if !ok || r.Params() != params || r.WarmUp() != warm {
		r = ratelimit.NewWarm(s.name, params, warm, s.observe, shared, scope)
	}
	r.SetQuota(newQuota(t))
	return r
}

func joinRate(states []governor, _ uint) policy.Policy {
	return ratelimit.Set(gather[*ratelimit.Rule](states))
}

func rateGauge(g governor, now policy.Nanos) (string, uint64) {
	return nameRuleTokens, g.(*ratelimit.Rule).Tokens(now)
}

// nanos turns milliseconds into nanoseconds.
func nanos(ms uint32) policy.Nanos { return policy.Nanos(ms) * 1_000_000 }

// A chain is the policies for the calls of one route, in the order in which they decide.
type chain struct {
	policies []policy.Policy
	softened int             // the first policy whose rejections fallback may replace
	fallback policy.Policy   // nil: none
	marking  []policy.Policy // those that want to know how a call ended
	asks     bool            // rules ask for attachments
	proofs   bool            // rules want to be shown a token
	delays   bool            // rules may delay
	quota    bool            // rules ask a rate limit service
	peer     bool            // rules ask for the connection's peer
	endpoint bool            // rules ask for the connection's endpoint
	audited  int             // the policy whose denials are logged; -1: none
}

// chain makes the policies of all rules that match a call; nil where none does. It allocates, unless there is none: once for each route
// and configuration, and, where routes can no longer be remembered, for each call that a rule matches.
func (rt *Runtime) chain(dir policy.Direction, back bool, k *known) *chain {
	if back {
		return nil
	}
	rs := rt.rules
	rt.matched = rs.matching(rt.matched[:0], dir, k)
	if len(rt.matched) == 0 {
		return nil
	}
	c := &chain{softened: -1, audited: -1}
	marks := uint(0)
	for i := 0; i < len(rt.matched); {
		at := rs.specs[rt.matched[i]].kind
		kd := &kinds[at]
		// Rules that only observe come last: what another rule rejects does not concern them.
		var states, observing []governor
		for ; i < len(rt.matched) && rs.specs[rt.matched[i]].kind == at; i++ {
			s := &rs.specs[rt.matched[i]]
			g := rt.states[rt.matched[i]].governor
			if kd.marks && marks+uint(len(states)+len(observing)) >= maxMarks {
				rt.crowded(s, k)
				continue
			}
			c.asks, c.peer, c.delays, c.proofs = c.asks || s.asks, c.peer || s.peer, c.delays || kd.delays, c.proofs || s.proof != nil
			if r, ok := g.(*ratelimit.Rule); ok && r.Quota() != nil {
				c.quota = true
			}
			c.endpoint = c.endpoint || s.where
			if s.observe {
				observing = append(observing, g)
			} else {
				states = append(states, g)
			}
		}
		states = append(states, observing...)
		if len(states) == 0 {
			continue
		}
		p := kd.join(states, marks)
		if kd.marks {
			marks += uint(len(states))
			c.marking = append(c.marking, p)
		}
		if kd.fallback {
			c.fallback = p
			continue
		}
		if kd.softened && c.softened < 0 {
			c.softened = len(c.policies)
		}
		if kd.audited {
			c.audited = len(c.policies)
		}
		c.policies = append(c.policies, p)
	}
	return c
}

// crowded logs that a rule is not in force for some calls.
func (rt *Runtime) crowded(s *spec, k *known) {
	vm := rt.vm
	if !vm.limiter.allow(topicCrowded, vm.host.Now()) {
		return
	}
	l := append(vm.line[:0], `isthmus: rule "`...)
	l = appendString(l, s.name)
	l = appendString(l, `" is not in force for `)
	l = appendText(l, k.service)
	l = append(l, '/')
	l = appendText(l, k.method)
	l = appendString(l, ": more than 64 circuit breakers, concurrency limits, queues and limits of hot values are for these calls")
	vm.line = l
	vm.host.Log(LevelError, l)
}
