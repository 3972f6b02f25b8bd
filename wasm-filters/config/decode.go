package config

import "strings"

// Fault is one thing that is wrong with a configuration.
type Fault struct {
	Path    string // where: "throttle[3].target.service"; "" is the whole
	Message string // what is wrong: "must be a string"
}

// String returns path and message.
func (f Fault) String() string {
	if f.Path == "" {
		return f.Message
	}
	return f.Path + ": " + f.Message
}

// Faults are all that is wrong with a configuration, in the order of its text; at most about a hundred.
type Faults []Fault

// Error returns all faults, separated by semicolons.
func (fs Faults) Error() string {
	var s strings.Builder
	s.WriteString("config: ")
	for i, f := range fs {
		if i > 0 {
			s.WriteString("; ")
		}
		s.WriteString(f.String())
	}
	return s.String()
}

// Decode reads a configuration. The empty text, and one of white space only, is the zero configuration. The faults are
// those of the text and, where it could be read to its end, those that Validate finds; the configuration is only good for use
// where there are none.
func Decode(data []byte) (*Plugin, Faults) {
	p := new(Plugin)
	r := &reader{b: data}
	if len(data) > maxBytes {
		r.fault("longer than 16 MiB")
		return p, r.faults
	}
	if r.peek() == 0 && r.pos == len(data) {
		return p, nil
	}
	r.plugin(p)
	if !r.dead && (r.peek() != 0 || r.pos < len(r.b)) {
		r.syntax("expected the end")
	}
	if !r.dead {
		r.faults = append(r.faults, p.Validate()...)
	}
	return p, r.faults
}

func (r *reader) plugin(p *Plugin) {
	r.object(func(name string) bool {
		switch name {
		case "generation":
			p.Generation = r.text()
		case "protocols":
			r.list(maxProtocols, func() { p.Protocols = append(p.Protocols, r.text()) })
		case "http":
			r.http(&p.HTTP)
		case "limits":
			r.limits(&p.Limits)
		case "metrics":
			r.metrics(&p.Metrics)
		case "access":
			rules(r, &p.Access, r.access)
		case "faultInjection":
			rules(r, &p.FaultInjection, r.faultInjection)
		case "degrade":
			rules(r, &p.Degrade, r.degrade)
		case "circuitBreaker":
			rules(r, &p.CircuitBreaker, r.circuitBreaker)
		case "throttle":
			rules(r, &p.Throttle, r.throttle)
		case "keys":
			r.list(maxAllKeys, func() {
				p.Keys = append(p.Keys, Key{})
				r.key(&p.Keys[len(p.Keys)-1])
			})
		case "keysOnly":
			p.KeysOnly = r.boolean()
		case "lift":
			p.Lift = new(Lift)
			r.lift(p.Lift)
		case "lower":
			p.Lower = new(Lower)
			r.lower(p.Lower)
		default:
			return false
		}
		return true
	})
}

func (r *reader) http(h *HTTP) {
	r.object(func(name string) bool {
		switch name {
		case "suffix":
			h.Suffix = r.text()
		case "callerHeader":
			h.CallerHeader = r.text()
		case "paths":
			r.list(maxPaths, func() { h.Paths = append(h.Paths, r.text()) })
		default:
			return false
		}
		return true
	})
}

func (r *reader) limits(l *Limits) {
	r.object(func(name string) bool {
		switch name {
		case "maxFrameBytes":
			l.MaxFrameBytes = r.number()
		case "oversize":
			l.Oversize = Action(r.text())
		case "garbage":
			l.Garbage = Action(r.text())
		case "maxInspectBytes":
			l.MaxInspectBytes = r.number()
		case "maxInFlight":
			l.MaxInFlight = r.number()
		case "callTimeoutMillis":
			l.CallTimeoutMillis = r.number()
		default:
			return false
		}
		return true
	})
}

func (r *reader) metrics(m *Metrics) {
	r.object(func(name string) bool {
		switch name {
		case "maxServices":
			m.MaxServices = r.number()
		case "maxMethods":
			m.MaxMethods = r.number()
		case "maxCallers":
			m.MaxCallers = r.number()
		case "maxEndpoints":
			m.MaxEndpoints = r.number()
		case "maxSeries":
			m.MaxSeries = r.number()
		default:
			return false
		}
		return true
	})
}

// rules reads a list of rules.
func rules[T any](r *reader, list *[]T, rule func(*T)) {
	r.list(MaxRules, func() {
		var zero T
		*list = append(*list, zero)
		rule(&(*list)[len(*list)-1])
	})
}

// need notes that a field is missing that has no default.
func (r *reader) need(there bool, name string) {
	if !there && !r.dead {
		r.fault(name + " is missing")
	}
}

// rule reads a field that rules of all kinds have.
func (r *reader) rule(x *Rule, name string) bool {
	switch name {
	case "name":
		x.Name = r.text()
	case "target":
		r.target(&x.Target)
	case "match":
		r.list(maxConditions, func() {
			x.Match = append(x.Match, Condition{})
			r.condition(&x.Match[len(x.Match)-1])
		})
	case "mode":
		x.Mode = Mode(r.text())
	case "disabled":
		x.Disabled = r.boolean()
	case "priority":
		x.Priority = r.number()
	default:
		return false
	}
	return true
}

func (r *reader) access(a *Access) {
	r.object(func(name string) bool {
		switch name {
		case "action":
			a.Action = AccessAction(r.text())
		case "token":
			a.Token = new(Token)
			r.token(a.Token)
		default:
			return r.rule(&a.Rule, name)
		}
		return true
	})
}

func (r *reader) token(t *Token) {
	r.object(func(name string) bool {
		switch name {
		case "attachment":
			t.Attachment = r.text()
		case "prefix":
			t.Prefix = r.text()
		case "key":
			t.Key = r.text()
		case "jwt":
			t.JWT = new(JWT)
			r.jwt(t.JWT)
		case "hmac":
			t.HMAC = new(HMAC)
			r.hmac(t.HMAC)
		case "onFailure":
			t.OnFailure = FailureAction(r.text())
		default:
			return false
		}
		return true
	})
}

func (r *reader) jwt(j *JWT) {
	r.object(func(name string) bool {
		switch name {
		case "issuer":
			j.Issuer = r.text()
		case "audiences":
			j.Audiences = r.strings()
		case "clockSkewMillis":
			j.ClockSkewMillis = r.number()
		case "claims":
			r.list(maxConditions, func() {
				j.Claims = append(j.Claims, Claim{})
				r.claim(&j.Claims[len(j.Claims)-1])
			})
		default:
			return false
		}
		return true
	})
}

func (r *reader) claim(c *Claim) {
	r.object(func(name string) bool {
		switch name {
		case "claim":
			c.Claim = r.text()
		case "operator":
			c.Operator = Operator(r.text())
		case "values":
			c.Values = r.strings()
		default:
			return false
		}
		return true
	})
}

func (r *reader) hmac(h *HMAC) {
	r.object(func(name string) bool {
		switch name {
		case "timestamp":
			h.Timestamp = r.text()
		case "keyId":
			h.KeyID = r.text()
		case "attachments":
			r.list(maxConditions, func() { h.Attachments = append(h.Attachments, r.text()) })
		case "windowMillis":
			h.WindowMillis = r.number()
		default:
			return false
		}
		return true
	})
}

func (r *reader) key(k *Key) {
	r.object(func(name string) bool {
		switch name {
		case "name":
			k.Name = r.text()
		case "id":
			k.ID = r.text()
		case "algorithm":
			k.Algorithm = r.text()
		case "value":
			k.Value = r.text()
		default:
			return false
		}
		return true
	})
}

func (r *reader) faultInjection(f *FaultInjection) {
	r.object(func(name string) bool {
		switch name {
		case "abort":
			r.abort(&f.Abort)
		case "delayMillis":
			f.DelayMillis = r.number()
		case "perMillion":
			f.PerMillion = r.number()
		default:
			return r.rule(&f.Rule, name)
		}
		return true
	})
}

func (r *reader) abort(a *Abort) {
	r.object(func(name string) bool {
		switch name {
		case "code":
			a.Code = Code(r.text())
		case "message":
			a.Message = r.text()
		case "httpStatus":
			a.HTTPStatus = r.number()
		default:
			return false
		}
		return true
	})
}

func (r *reader) degrade(d *Degrade) {
	r.object(func(name string) bool {
		switch name {
		case "when":
			d.When = DegradeWhen(r.text())
		case "replies":
			r.list(maxReplies, func() {
				d.Replies = append(d.Replies, Reply{})
				r.reply(&d.Replies[len(d.Replies)-1])
			})
		default:
			return r.rule(&d.Rule, name)
		}
		return true
	})
}

func (r *reader) reply(x *Reply) {
	serialization := false
	r.object(func(name string) bool {
		switch name {
		case "protocol":
			x.Protocol = r.text()
		case "serialization":
			x.Serialization = r.number()
			serialization = true
		case "value":
			x.Value = r.text()
		default:
			return false
		}
		return true
	})
	r.need(serialization, "serialization")
}

func (r *reader) circuitBreaker(c *CircuitBreaker) {
	r.object(func(name string) bool {
		switch name {
		case "strategy":
			c.Strategy = Strategy(r.text())
		case "threshold":
			c.Threshold = r.number()
		case "statIntervalMillis":
			c.StatIntervalMillis = r.number()
		case "minRequestAmount":
			c.MinRequestAmount = r.number()
		case "maxAllowedRtMillis":
			c.MaxAllowedRtMillis = r.number()
		case "retryTimeoutMillis":
			c.RetryTimeoutMillis = r.number()
		case "probeNum":
			c.ProbeNum = r.number()
		case "perEndpoint":
			c.PerEndpoint = r.boolean()
		case "errors":
			r.list(maxErrors, func() { c.Errors = append(c.Errors, ErrorClass(r.text())) })
		default:
			return r.rule(&c.Rule, name)
		}
		return true
	})
}

func (r *reader) throttle(t *Throttle) {
	threshold := false
	r.object(func(name string) bool {
		switch name {
		case "type":
			t.Type = ThrottleType(r.text())
		case "threshold":
			t.Threshold = r.number()
			threshold = true
		case "intervalMillis":
			t.IntervalMillis = r.number()
		case "burst":
			t.Burst = r.number()
		case "maxQueueingMillis":
			t.MaxQueueingMillis = r.number()
		case "warmUp":
			r.warmUp(&t.WarmUp)
		case "hotValues":
			r.hotValues(&t.HotValues)
		case "global":
			r.global(&t.Global)
		default:
			return r.rule(&t.Rule, name)
		}
		return true
	})
	r.need(threshold, "threshold") // a forgotten one must not reject every call
}

func (r *reader) warmUp(w *WarmUp) {
	r.object(func(name string) bool {
		switch name {
		case "periodMillis":
			w.PeriodMillis = r.number()
		case "coldFactor":
			w.ColdFactor = r.number()
		default:
			return false
		}
		return true
	})
}

func (r *reader) global(g *Global) {
	r.object(func(name string) bool {
		switch name {
		case "cluster":
			g.Cluster = r.text()
		case "authority":
			g.Authority = r.text()
		case "domain":
			g.Domain = r.text()
		case "syncMillis":
			g.SyncMillis = r.number()
		case "stalenessMillis":
			g.StalenessMillis = r.number()
		default:
			return false
		}
		return true
	})
}

func (r *reader) hotValues(h *HotValues) {
	r.object(func(name string) bool {
		switch name {
		case "subject":
			h.Subject = Subject(r.text())
		case "key":
			h.Key = r.text()
		case "maxValues":
			h.MaxValues = r.number()
		default:
			return false
		}
		return true
	})
}

func (r *reader) condition(c *Condition) {
	r.object(func(name string) bool {
		switch name {
		case "subject":
			c.Subject = Subject(r.text())
		case "key":
			c.Key = r.text()
		case "operator":
			c.Operator = Operator(r.text())
		case "values":
			c.Values = r.strings()
		default:
			return false
		}
		return true
	})
}

// strings reads a list of values to compare with.
func (r *reader) strings() (list []string) {
	r.list(maxValues, func() { list = append(list, r.text()) })
	return list
}

func (r *reader) target(t *Target) {
	r.object(func(name string) bool {
		switch name {
		case "application":
			r.match(&t.Application)
		case "direction":
			t.Direction = r.text()
		case "service":
			r.match(&t.Service)
		case "version":
			r.match(&t.Version)
		case "group":
			r.match(&t.Group)
		case "method":
			r.match(&t.Method)
		case "caller":
			r.match(&t.Caller)
		default:
			return false
		}
		return true
	})
}

func (r *reader) match(m *Match) {
	r.object(func(name string) bool {
		switch name {
		case "exact":
			m.Exact = r.text()
		case "prefix":
			m.Prefix = r.text()
		case "regex":
			m.Regex = r.text()
		case "in":
			m.In = r.strings()
		case "notIn":
			m.NotIn = r.strings()
		default:
			return false
		}
		return true
	})
}
