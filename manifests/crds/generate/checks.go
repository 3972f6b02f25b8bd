package main

import "go.yaml.in/yaml/v3"

// check is a rule in CEL, with what is said where it does not hold.
type check struct{ rule, message string }

// checks adds rules to a schema.
func checks(s *yaml.Node, list []check) {
	if len(list) == 0 {
		return
	}
	rules := &yaml.Node{Kind: yaml.SequenceNode}
	for _, c := range list {
		rules.Content = append(rules.Content, mapping("rule", c.rule, "message", c.message))
	}
	put(s, "x-kubernetes-validations", rules)
}

func between(low, high string) []check {
	return []check{{"duration(self) >= duration('" + low + "') && duration(self) <= duration('" + high + "')", "must be from " + low + " to " + high}}
}

// keyed wants a key where the subject has one.
var keyed = check{"(self.subject == 'attachment' || self.subject == 'label') == (has(self.key) && self.key != '')", "attachment and label need a key, other subjects have none"}

// compared wants as many values as the operator has.
var compared = check{"self.operator == 'exists' ? !has(self.values) || size(self.values) == 0 : self.operator == 'in' || self.operator == 'notIn' ? has(self.values) && size(self.values) > 0 : has(self.values) && size(self.values) == 1",
	"exists has no values, in and notIn have one or more, the other operators have one"}

// fieldChecks are about single fields, typeChecks about a type wherever it stands, specChecks about the whole spec of a kind. What CEL cannot
// look into (whether a regular expression is one, what a match or a ratio holds) mcp-server finds.
var (
	fieldChecks = map[string][]check{
		"ThrottleSpec.Interval":           between("1ms", "24h"),
		"ThrottleSpec.MaxQueueingTime":    between("1ms", "1m"),
		"WarmUp.Period":                   between("1ms", "1h"),
		"Delay.FixedDelay":                between("1ms", "1m"),
		"CircuitBreakerSpec.StatInterval": between("100ms", "10m"),
		"CircuitBreakerSpec.MaxAllowedRt": between("1ms", "1h"),
		"CircuitBreakerSpec.RetryTimeout": between("100ms", "1h"),
		"JWT.ClockSkew":                   between("1ms", "10m"),
		"HMAC.Window":                     between("1ms", "10m"),
	}
	typeChecks = map[string][]check{
		"Claim": {compared},
		"Token": {{"has(self.jwt) != has(self.hmac)", "one of jwt and hmac is needed"}},
		"Condition": {
			keyed,
			compared,
			{"self.subject != 'callerIP' || self.operator != 'prefix' && self.operator != 'regex'", "prefix and regex do not go with callerIP; give a network"},
			{"self.subject != 'trafficType' || self.operator == 'regex' || !has(self.values) || self.values.all(v, v == 'normal' || v == 'loadTest')", "the types of traffic are normal and loadTest"},
			{"self.subject != 'protocol' || self.operator == 'regex' || self.operator == 'prefix' || !has(self.values) || self.values.all(v, v in ['dubbo', 'bolt', 'http', 'triple'])", "the protocols are dubbo, bolt, http and triple"},
		},
		"HotValues": {keyed},
	}
	specChecks = map[string][]check{
		"AccessRule": {
			{"!has(self.token) || self.action == 'allow'", "token goes with the action allow only"},
			{"self.action != 'defaultDeny' || !has(self.match) || size(self.match) == 0", "match does not go with the action defaultDeny"},
		},
		"CircuitBreakerRule": {
			{"(self.strategy == 'slowCallRatio') == has(self.maxAllowedRt)", "slowCallRatio needs maxAllowedRt, the other strategies do not have it"},
			{"!has(self.perEndpoint) || !self.perEndpoint || has(self.direction) && self.direction == 'client'", "perEndpoint goes only with the direction client: a provider's sidecar has one endpoint"},
		},
		"FaultRule": {
			{"!has(self.delay) || !has(self.abort) || !has(self.abort.code) && (!has(self.abort.message) || self.abort.message == '')", "delay does not go with abort"},
		},
		"ThrottleRule": {
			{"!has(self.burstCoefficient) || !has(self.burst) || self.burst == 0", "give burst or burstCoefficient, not both"},
			{"!has(self.warmUp) || !has(self.hotValues)", "hotValues do not go with warmUp"},
			{"!has(self.maxQueueingTime) || !has(self.warmUp) && !has(self.hotValues) && !has(self.global)", "maxQueueingTime does not go with warmUp, hotValues and global"},
			{"!has(self.global) || !has(self.hotValues)", "global does not go with hotValues"},
			{"!has(self.type) || self.type != 'concurrency' || !has(self.interval) && (!has(self.burst) || self.burst == 0) && !has(self.burstCoefficient) && !has(self.maxQueueingTime) && !has(self.warmUp) && !has(self.hotValues) && !has(self.global)",
				"interval, burst, burstCoefficient, maxQueueingTime, warmUp, hotValues and global do not go with the type concurrency"},
		},
	}
)
