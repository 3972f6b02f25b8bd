package config

import (
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/match"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/ratelimit/rls"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// Bounds of rules.
const (
	maxConditions = 16
	maxValues     = 256 // of one list
	maxMatch      = 512 // of one value, in bytes
	maxReplies    = 16
	maxReply      = 64 << 10 // decoded
	maxErrors     = 3
	maxKeys       = 64 // attachments and labels, over all rules
	million       = 1_000_000
	maxInterval   = 86_400_000
	maxDuration   = 3_600_000
	maxDelay      = 60_000
	minStat       = 100
	maxStat       = 600_000
	minRetry      = 100
	maxProbes     = 1000
	minColdFactor = 2
	maxColdFactor = 100
	maxHotValues  = 100_000
	maxCluster    = 512 // of a name, in bytes
	minSync       = 10
	maxSync       = 60_000
	maxStaleness  = 600_000
	minStatus     = 200
	maxStatus     = 599
)

// The defaults of rules.
const (
	DefaultIntervalMillis     = 1000
	DefaultColdFactor         = 3
	DefaultMaxValues          = 1000
	DefaultPerMillion         = million
	DefaultStatIntervalMillis = 1000
	DefaultMinRequestAmount   = 5
	DefaultRetryTimeoutMillis = 5000
	DefaultProbeNum           = 1
	DefaultDomain             = "isthmus"
	DefaultSyncMillis         = 100
)

// DefaultErrors are what counts as an error where a circuit breaker does not say it.
var DefaultErrors = []ErrorClass{ErrorTransport, ErrorStatus}

// ruleDefaults puts copies with their defaults in the place of the lists of rules.
func (p *Plugin) ruleDefaults() {
	p.Access = append([]Access(nil), p.Access...)
	for i := range p.Access {
		def(&p.Access[i].Mode, ModeIntercept)
		if t := p.Access[i].Token; t != nil {
			p.Access[i].Token = t.withDefaults()
		}
	}
	p.FaultInjection = append([]FaultInjection(nil), p.FaultInjection...)
	for i := range p.FaultInjection {
		f := &p.FaultInjection[i]
		def(&f.Mode, ModeIntercept)
		if f.DelayMillis == 0 {
			def(&f.Abort.Code, CodeAborted)
		}
		def(&f.PerMillion, DefaultPerMillion)
	}
	p.Degrade = append([]Degrade(nil), p.Degrade...)
	for i := range p.Degrade {
		def(&p.Degrade[i].Mode, ModeIntercept)
		def(&p.Degrade[i].When, WhenAlways)
	}
	p.CircuitBreaker = append([]CircuitBreaker(nil), p.CircuitBreaker...)
	for i := range p.CircuitBreaker {
		c := &p.CircuitBreaker[i]
		def(&c.Mode, ModeIntercept)
		def(&c.StatIntervalMillis, DefaultStatIntervalMillis)
		def(&c.MinRequestAmount, DefaultMinRequestAmount)
		def(&c.RetryTimeoutMillis, DefaultRetryTimeoutMillis)
		def(&c.ProbeNum, DefaultProbeNum)
		if len(c.Errors) == 0 {
			c.Errors = DefaultErrors
		}
	}
	p.Throttle = append([]Throttle(nil), p.Throttle...)
	for i := range p.Throttle {
		t := &p.Throttle[i]
		def(&t.Mode, ModeIntercept)
		def(&t.Type, ThrottleRate)
		if t.Type == ThrottleRate {
			def(&t.IntervalMillis, DefaultIntervalMillis)
			if t.MaxQueueingMillis > 0 {
				def(&t.Burst, 1)
			}
			def(&t.Burst, max(t.Threshold, 1))
		}
		if t.WarmUp.PeriodMillis > 0 {
			def(&t.WarmUp.ColdFactor, DefaultColdFactor)
		}
		if t.HotValues.Subject != "" {
			def(&t.HotValues.MaxValues, DefaultMaxValues)
		}
		if g := &t.Global; g.Cluster != "" {
			def(&g.Authority, g.Cluster)
			def(&g.Domain, DefaultDomain)
			def(&g.SyncMillis, DefaultSyncMillis)
			def(&g.StalenessMillis, min(10*g.SyncMillis, maxStaleness))
		}
	}
}

// Rules returns how many rules p holds, disabled ones too.
func (p *Plugin) Rules() int {
	return len(p.Access) + len(p.FaultInjection) + len(p.Degrade) + len(p.CircuitBreaker) + len(p.Throttle)
}

func (v *validator) rules(p *Plugin) {
	if p.Rules() > MaxRules {
		v.fault("", "has more than "+strconv.Itoa(MaxRules)+" rules")
	}
	v.keys = make(map[string]struct{})
	v.allKeys(p)
	names := make(map[string]struct{})
	for i := range p.Access {
		a, at := &p.Access[i], index("access", i)
		v.rule(at, &a.Rule, names)
		v.required(at+".action", string(a.Action), string(AccessAllow), string(AccessDeny), string(AccessDefaultDeny))
		if a.Action == AccessDefaultDeny && len(a.Match) > 0 {
			v.fault(at+".match", "does not go with the action defaultDeny")
		}
		if a.Token != nil {
			v.token(at+".token", a.Token)
			if a.Action != AccessAllow {
				v.fault(at+".token", "goes only with the action allow")
			}
		}
	}
	clear(names)
	for i := range p.FaultInjection {
		f, at := &p.FaultInjection[i], index("faultInjection", i)
		v.rule(at, &f.Rule, names)
		v.bounds(at+".delayMillis", f.DelayMillis, 1, maxDelay)
		if f.DelayMillis > 0 && f.Abort != (Abort{}) {
			v.fault(at+".delayMillis", "does not go with abort")
		}
		v.bounds(at+".perMillion", f.PerMillion, 1, million)
		v.oneOf(at+".abort.code", string(f.Abort.Code), string(CodeThrottled), string(CodeUnavailable), string(CodeDenied), string(CodeAborted),
			string(CodeTimeout))
		v.length(at+".abort.message", f.Abort.Message)
		v.bounds(at+".abort.httpStatus", f.Abort.HTTPStatus, minStatus, maxStatus)
	}
	clear(names)
	for i := range p.Degrade {
		d, at := &p.Degrade[i], index("degrade", i)
		v.rule(at, &d.Rule, names)
		v.oneOf(at+".when", string(d.When), string(WhenAlways), string(WhenRejected))
		v.replies(at, d.Replies)
	}
	clear(names)
	for i := range p.CircuitBreaker {
		at := index("circuitBreaker", i)
		v.rule(at, &p.CircuitBreaker[i].Rule, names)
		v.circuitBreaker(at, &p.CircuitBreaker[i])
	}
	clear(names)
	for i := range p.Throttle {
		at := index("throttle", i)
		v.rule(at, &p.Throttle[i].Rule, names)
		v.throttle(at, &p.Throttle[i])
	}
	if len(v.keys) > maxKeys {
		v.fault("", "asks for more than "+strconv.Itoa(maxKeys)+" different attachments and labels")
	}
}

// rule checks what rules of all kinds have. names are those of the rules of this kind before.
func (v *validator) rule(at string, x *Rule, names map[string]struct{}) {
	switch _, twice := names[x.Name]; {
	case x.Name == "":
		v.fault(at+".name", "is missing")
	case !within(x.Name, maxRuleName, "._-/"):
		v.fault(at+".name", "must be at most 507 of A-Z a-z 0-9 . _ - /")
	case twice:
		v.fault(at+".name", "is the name of an earlier rule, too")
	}
	names[x.Name] = struct{}{}
	v.target(at+".target", &x.Target)
	if len(x.Match) > maxConditions {
		v.fault(at+".match", "more than "+strconv.Itoa(maxConditions)+" elements")
	}
	for i := range x.Match {
		v.condition(index(at+".match", i), &x.Match[i])
	}
	v.oneOf(at+".mode", string(x.Mode), string(ModeIntercept), string(ModeObserve))
}

func (v *validator) target(path string, t *Target) {
	v.oneOf(path+".direction", t.Direction, "client", "server")
	v.match(path+".application", &t.Application)
	v.match(path+".service", &t.Service)
	v.match(path+".version", &t.Version)
	v.match(path+".group", &t.Group)
	v.match(path+".method", &t.Method)
	v.match(path+".caller", &t.Caller)
}

//go:noinline
func (v *validator) match(path string, m *Match) {
	forms := 0
	for _, set := range [...]bool{m.Exact != "", m.Prefix != "", m.Regex != "", len(m.In) > 0, len(m.NotIn) > 0} {
		if set {
			forms++
		}
	}
	if forms > 1 {
		v.fault(path, "has more than one of exact, prefix, regex, in and notIn")
	}
	v.length(path+".exact", m.Exact)
	v.length(path+".prefix", m.Prefix)
	v.pattern(path+".regex", m.Regex)
	v.list(path+".in", m.In)
	v.list(path+".notIn", m.NotIn)
}

//go:noinline
func (v *validator) length(path, s string) {
	if len(s) > maxMatch {
		v.fault(path, "longer than 512 bytes")
	}
}

//go:noinline
func (v *validator) list(path string, list []string) {
	if len(list) > maxValues {
		v.fault(path, "more than "+strconv.Itoa(maxValues)+" elements")
		return
	}
	for i, s := range list {
		v.length(index(path, i), s)
	}
}

func (v *validator) pattern(path, expr string) {
	if _, err := match.Compile(expr); err != nil {
		v.fault(path, err.Error())
	}
}

// required checks a string that has no default.
//
//go:noinline
func (v *validator) required(path, s string, allowed ...string) {
	if s == "" {
		v.fault(path, "is missing")
		return
	}
	v.oneOf(path, s, allowed...)
}

func (v *validator) condition(at string, c *Condition) {
	v.required(at+".subject", string(c.Subject), string(SubjectCallerApplication), string(SubjectProviderApplication), string(SubjectCallerIP),
		string(SubjectCallerIdentity), string(SubjectAttachment), string(SubjectLabel), string(SubjectTrafficType), string(SubjectProtocol))
	v.key(at, c.Subject, c.Key)
	v.values(at, c.Operator, c.Values)
	pattern := c.Operator == OperatorPrefix || c.Operator == OperatorRegex
	switch {
	case c.Operator == OperatorRegex && c.Subject != SubjectCallerIP && len(c.Values) == 1:
		v.pattern(at+".values[0]", c.Values[0])
	case c.Subject == SubjectCallerIP && pattern:
		v.fault(at+".operator", "does not go with callerIP; give a network")
	case c.Subject == SubjectCallerIP:
		for i, s := range c.Values {
			if _, ok := match.ParseNetwork(s); !ok {
				v.fault(index(at+".values", i), "must be an address or a network")
			}
		}
	case c.Subject == SubjectProtocol && !pattern:
		for i, s := range c.Values {
			v.oneOf(index(at+".values", i), s, Systems...)
		}
	case c.Subject == SubjectTrafficType:
		for i, s := range c.Values {
			v.oneOf(index(at+".values", i), s, TrafficNormal, TrafficLoadTest)
		}
	}
}

// values checks an operator and what it compares with, patterns aside.
//
//go:noinline
func (v *validator) values(at string, o Operator, values []string) {
	v.required(at+".operator", string(o), string(OperatorEquals), string(OperatorNotEquals), string(OperatorIn), string(OperatorNotIn),
		string(OperatorPrefix), string(OperatorRegex), string(OperatorExists))
	v.list(at+".values", values)
	switch n := len(values); o {
	case OperatorExists:
		if n > 0 {
			v.fault(at+".values", "do not go with the operator exists")
		}
	case OperatorIn, OperatorNotIn:
		if n == 0 {
			v.fault(at+".values", "is missing")
		}
	default:
		if n != 1 {
			v.fault(at+".values", "must be one")
		}
	}
}

// key checks the key that some subjects have.
func (v *validator) key(at string, s Subject, key string) {
	switch keyed := s == SubjectAttachment || s == SubjectLabel; {
	case keyed && key == "":
		v.fault(at+".key", "is missing")
	case !keyed && key != "":
		v.fault(at+".key", "goes only with attachment and label")
	case len(key) > maxMatch:
		v.fault(at+".key", "longer than 512 bytes")
	case keyed && len(v.keys) <= maxKeys:
		v.keys[string(s)+" "+key] = struct{}{}
	}
}

func (v *validator) replies(at string, replies []Reply) {
	if len(replies) > maxReplies {
		v.fault(at+".replies", "more than "+strconv.Itoa(maxReplies)+" elements")
		return
	}
	for i := range replies {
		r, at := &replies[i], index(at+".replies", i)
		v.required(at+".protocol", r.Protocol, replyProtocols...)
		if r.Protocol == SystemHTTP && r.Serialization != 0 {
			v.fault(at+".serialization", "must be 0 for http")
		}
		if r.Serialization > 255 {
			v.fault(at+".serialization", "must be from 0 to 255")
		}
		for k := range replies[:i] {
			if replies[k].Protocol == r.Protocol && replies[k].Serialization == r.Serialization {
				v.fault(at, "is for the protocol and serialization of an earlier one")
				break
			}
		}
		switch b, ok := DecodeValue(r.Value); {
		case r.Value == "":
			v.fault(at+".value", "is missing")
		case !ok:
			v.fault(at+".value", "must be in base64")
		case len(b) > maxReply:
			v.fault(at+".value", "longer than 64 KiB")
		}
	}
}

func (v *validator) circuitBreaker(at string, c *CircuitBreaker) {
	v.required(at+".strategy", string(c.Strategy), string(StrategyErrorRatio), string(StrategyErrorCount), string(StrategyAverageResponseTime),
		string(StrategySlowCallRatio))
	most := uint32(million)
	switch c.Strategy {
	case StrategyErrorCount:
		most = 1<<32 - 1
	case StrategyAverageResponseTime:
		most = maxDuration
	}
	if c.Threshold == 0 || c.Threshold > most {
		v.fault(at+".threshold", "must be from 1 to "+strconv.FormatUint(uint64(most), 10))
	}
	v.bounds(at+".statIntervalMillis", c.StatIntervalMillis, minStat, maxStat)
	v.bounds(at+".retryTimeoutMillis", c.RetryTimeoutMillis, minRetry, maxDuration)
	v.bounds(at+".probeNum", c.ProbeNum, 1, maxProbes)
	if c.PerEndpoint && c.Target.Direction != "client" {
		v.fault(at+".perEndpoint", "goes only with the direction client: a provider's sidecar has one endpoint")
	}
	v.bounds(at+".maxAllowedRtMillis", c.MaxAllowedRtMillis, 1, maxDuration)
	switch slow := c.Strategy == StrategySlowCallRatio; {
	case slow && c.MaxAllowedRtMillis == 0:
		v.fault(at+".maxAllowedRtMillis", "is missing")
	case !slow && c.MaxAllowedRtMillis > 0:
		v.fault(at+".maxAllowedRtMillis", "goes only with slowCallRatio")
	}
	for i, e := range c.Errors {
		v.required(index(at+".errors", i), string(e), string(ErrorTransport), string(ErrorStatus), string(ErrorException))
		for _, before := range c.Errors[:i] {
			if before == e {
				v.fault(index(at+".errors", i), "stands twice")
			}
		}
	}
}

func (v *validator) throttle(at string, t *Throttle) {
	v.oneOf(at+".type", string(t.Type), string(ThrottleRate), string(ThrottleConcurrency))
	v.bounds(at+".intervalMillis", t.IntervalMillis, 1, maxInterval)
	v.bounds(at+".warmUp.periodMillis", t.WarmUp.PeriodMillis, 1, maxDuration)
	v.bounds(at+".warmUp.coldFactor", t.WarmUp.ColdFactor, minColdFactor, maxColdFactor)
	if t.WarmUp.ColdFactor > 0 && t.WarmUp.PeriodMillis == 0 {
		v.fault(at+".warmUp.periodMillis", "is missing")
	}
	hot := &t.HotValues
	v.oneOf(at+".hotValues.subject", string(hot.Subject), string(SubjectCallerApplication), string(SubjectCallerIP), string(SubjectCallerIdentity),
		string(SubjectAttachment), string(SubjectLabel))
	v.key(at+".hotValues", hot.Subject, hot.Key)
	v.bounds(at+".hotValues.maxValues", hot.MaxValues, 1, maxHotValues)
	if hot.Subject == "" && hot.MaxValues > 0 {
		v.fault(at+".hotValues.subject", "is missing")
	}
	v.bounds(at+".maxQueueingMillis", t.MaxQueueingMillis, 1, maxDelay)
	if t.MaxQueueingMillis > 0 && (t.WarmUp != WarmUp{} || *hot != HotValues{} || t.Global != Global{}) {
		v.fault(at+".maxQueueingMillis", "does not go with warmUp, hotValues and global")
	}
	if hot.Subject != "" && t.WarmUp.PeriodMillis > 0 {
		v.fault(at+".hotValues", "does not go with warmUp")
	}
	v.global(at, t)
	if t.Type == ThrottleConcurrency && (t.IntervalMillis > 0 || t.Burst > 0 || t.MaxQueueingMillis > 0 || t.WarmUp != WarmUp{} || *hot != HotValues{} || t.Global != Global{}) {
		v.fault(at, "has a field that does not go with the type concurrency: intervalMillis, burst, maxQueueingMillis, warmUp, hotValues or global")
	}
}

func (v *validator) global(at string, t *Throttle) {
	g := &t.Global
	if *g == (Global{}) {
		return
	}
	if g.Cluster == "" {
		v.fault(at+".global.cluster", "is missing")
	}
	for _, s := range [...]struct{ name, value string }{{"cluster", g.Cluster}, {"authority", g.Authority}, {"domain", g.Domain}} {
		if len(s.value) > maxCluster {
			v.fault(at+".global."+s.name, "has more than "+strconv.Itoa(maxCluster)+" bytes")
		}
	}
	v.bounds(at+".global.syncMillis", g.SyncMillis, minSync, maxSync)
	sync := g.SyncMillis
	def(&sync, DefaultSyncMillis)
	v.bounds(at+".global.stalenessMillis", g.StalenessMillis, sync, maxStaleness)
	interval := t.IntervalMillis
	def(&interval, DefaultIntervalMillis)
	if _, ok := rls.UnitOf(interval); !ok {
		v.fault(at+".intervalMillis", "must be a second, a minute, an hour or a day: 1000, 60000, 3600000 or 86400000, with global")
	}
	if t.HotValues.Subject != "" {
		v.fault(at+".global", "does not go with hotValues")
	}
}

// IsZero tells whether m matches everything.
func (m Match) IsZero() bool {
	return m.Exact == "" && m.Prefix == "" && m.Regex == "" && len(m.In) == 0 && len(m.NotIn) == 0
}

// Strings returns m, ready for use. m must be valid.
//
//go:noinline
func (m *Match) Strings() match.Strings {
	s := match.Strings{Exact: m.Exact, Prefix: m.Prefix, In: m.In, NotIn: m.NotIn}
	if m.Regex != "" {
		s.Pattern, _ = match.Compile(m.Regex)
	}
	return s
}

// Protocol returns the code as codecs have it, 0 for one that there is not.
func (c Code) Protocol() protocol.Code {
	switch c {
	case CodeThrottled:
		return protocol.CodeThrottled
	case CodeUnavailable:
		return protocol.CodeUnavailable
	case CodeDenied:
		return protocol.CodeDenied
	case CodeAborted:
		return protocol.CodeAborted
	case CodeTimeout:
		return protocol.CodeTimeout
	}
	return 0
}

const base64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

// DecodeValue reads base64 (RFC 4648, with padding and without line feeds).
func DecodeValue(s string) ([]byte, bool) {
	if len(s)%4 != 0 {
		return nil, false
	}
	out := make([]byte, 0, len(s)/4*3)
	for ; len(s) > 0; s = s[4:] {
		n := 4
		if len(s) == 4 {
			for n > 2 && s[n-1] == '=' {
				n--
			}
		}
		var v uint32
		for i := range 4 {
			v <<= 6
			if i < n {
				d := strings.IndexByte(base64, s[i])
				if d < 0 {
					return nil, false
				}
				v |= uint32(d)
			}
		}
		if v&(1<<(24-8*(n-1))-1) != 0 { // bits that no byte takes
			return nil, false
		}
		out = append(out, byte(v>>16), byte(v>>8), byte(v))[:len(out)+n-1]
	}
	return out, true
}
