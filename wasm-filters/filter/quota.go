package filter

import (
	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/ratelimit"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/ratelimit/rls"
)

// newQuota returns the state of a limit that many Envoys have together, nil for another.
func newQuota(t *config.Throttle) *ratelimit.Quota {
	if t.Global.Cluster == "" {
		return nil
	}
	unit, _ := rls.UnitOf(t.IntervalMillis)
	return ratelimit.NewQuota(ratelimit.QuotaParams{Threshold: t.Threshold, Interval: nanos(t.IntervalMillis), Unit: unit, Staleness: nanos(t.Global.StalenessMillis)})
}

// maxAsks is how many rules one question is about; the others follow with the next.
const maxAsks = 64

// asking are the rate limit services of a VM's rules.
type asking struct {
	services []*limitService
	answers  [maxAsks]rls.Answer // scratch
	armed    bool                // the timer is set for the next question
	eager    bool                // it has to be
}

// A limitService is a rate limit service, and the rules of one runtime that it counts for.
type limitService struct {
	rt       *Runtime
	cluster  string
	service  []byte // the GrpcService
	domain   string
	interval policy.Nanos // between two questions, the shortest that one of the rules wants
	rules    []*ratelimit.Rule

	next  policy.Nanos // not to be asked before
	at    int          // index in rules where the next question begins
	busy  bool         // a question is under way
	token uint32
	until policy.Nanos // when it is given up: its context may have gone, and then nobody says so
	asks  []rls.Ask
	asked []*ratelimit.Quota
}

// quotas makes the list of the services that the runtime's rules ask. What is under way for the former list is not waited for.
func (vm *VM) quotas(rt *Runtime) {
	vm.dropQuotas(rt)
	for i := range rt.rules.specs {
		r, ok := rt.states[i].governor.(*ratelimit.Rule)
		if !ok || r.Quota() == nil {
			continue
		}
		g := &rt.rules.conf.Throttle[rt.rules.specs[i].index].Global
		s := vm.serviceOf(rt, g)
		s.interval = min(s.interval, nanos(g.SyncMillis))
		s.rules = append(s.rules, r)
	}
}

// dropQuotas forgets the services of a runtime.
func (vm *VM) dropQuotas(rt *Runtime) {
	kept := vm.services[:0]
	for _, s := range vm.services {
		if s.rt != rt {
			kept = append(kept, s)
			continue
		}
		s.miss(vm.host.Now())
	}
	clear(vm.services[len(kept):])
	vm.services = kept
}

func (vm *VM) serviceOf(rt *Runtime, g *config.Global) *limitService {
	service := rls.AppendGrpcService(nil, g.Cluster, g.Authority)
	for _, s := range vm.services {
		if s.rt == rt && s.domain == g.Domain && string(s.service) == string(service) {
			return s
		}
	}
	s := &limitService{rt: rt, cluster: g.Cluster, service: service, domain: g.Domain, interval: ever}
	vm.services = append(vm.services, s)
	return s
}

// askDue returns when Ask has something to do, ever if it does not know.
func (vm *VM) askDue() policy.Nanos {
	due := ever
	for _, s := range vm.services {
		switch {
		case s.busy:
			due = min(due, s.until)
		case s.wants():
			due = min(due, s.next)
		}
	}
	return due
}

// Asks tells whether the timer has to be set for Ask, since calls came that nobody had expected. It is cheap.
func (vm *VM) Asks() bool {
	eager := vm.eager
	vm.eager = false
	return eager
}

// expect sees to it that Ask is called for the call at hand.
func (vm *VM) expect() {
	if !vm.armed {
		vm.armed, vm.eager = true, true
	}
}

func (s *limitService) wants() bool {
	for _, r := range s.rules {
		if r.Quota().Wants() {
			return true
		}
	}
	return false
}

// Ask tells rate limit services of calls, where it is time for it.
func (vm *VM) Ask() {
	if len(vm.services) == 0 {
		return
	}
	now := vm.host.Now()
	for _, s := range vm.services {
		if s.busy && now >= s.until {
			vm.unanswered(s, now)
		}
		if !s.busy && now >= s.next && s.wants() {
			vm.ask(s, now)
		}
	}
	vm.armed = vm.askDue() != ever
}

func (vm *VM) ask(s *limitService, now policy.Nanos) {
	s.asks, s.asked = s.asks[:0], s.asked[:0]
	for range s.rules {
		if len(s.asks) == maxAsks {
			break
		}
		r := s.rules[s.at]
		s.at = (s.at + 1) % len(s.rules)
		if q := r.Quota(); q.Wants() {
			s.asks = append(s.asks, rls.Ask{Rule: r.Name(), Threshold: q.Threshold, Unit: q.Unit, Hits: q.Ask()})
			s.asked = append(s.asked, q)
		}
	}
	s.next = now + s.interval
	vm.line = rls.AppendRequest(vm.line[:0], s.domain, s.asks)
	token, ok := vm.host.Ask(s.service, rls.Service, rls.Method, vm.line, askTimeout)
	if !ok {
		vm.unanswered(s, now)
		return
	}
	s.busy, s.token, s.until = true, token, now+askTimeout*1_000_000+logInterval
}

// askTimeout is how long an answer is waited for, in milliseconds.
const askTimeout = 1000

// Answer takes the answer to a question that Host.Ask gave a token; nil where there is none.
func (vm *VM) Answer(token uint32, message []byte) {
	for _, s := range vm.services {
		if !s.busy || s.token != token {
			continue
		}
		now := vm.host.Now()
		if answers := vm.answers[:len(s.asked)]; message != nil && rls.Read(message, answers) {
			for i, q := range s.asked {
				q.Hear(answers[i], now)
			}
			s.busy, s.asked = false, s.asked[:0]
		} else {
			vm.unanswered(s, now)
		}
		break
	}
	vm.armed = vm.askDue() != ever
}

// unanswered ends a question to which there is no answer.
func (vm *VM) unanswered(s *limitService, now policy.Nanos) {
	s.miss(now)
	s.next = now + max(s.interval, logInterval) // what does not answer is not asked more often for it
	if !vm.limiter.allow(topicQuota, now) {
		return
	}
	l := append(vm.line[:0], "isthmus: the rate limit service "...)
	l = appendString(l, s.cluster)
	l = appendString(l, " does not answer: its limits hold for each sidecar by itself")
	vm.line = vm.limiter.appendOmitted(l, topicQuota)
	vm.host.Log(LevelWarn, vm.line)
}

func (s *limitService) miss(now policy.Nanos) {
	for _, q := range s.asked {
		q.Miss(now)
	}
	s.busy, s.asked = false, s.asked[:0]
}
