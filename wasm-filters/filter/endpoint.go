package filter

import (
	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/breaker"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/match"
)

// An endpoint is where a connection's calls go, once a rule has asked for it.
type endpoint struct {
	policy.Endpoint
	asked, known bool
}

// get returns the endpoint as far as it is known, nil where it is not.
func (e *endpoint) get() *policy.Endpoint {
	if !e.known {
		return nil
	}
	return &e.Endpoint
}

// unknown says that it never will be: for each call Envoy chooses anew, after the filter.
func (e *endpoint) unknown() { *e = endpoint{asked: true} }

// endpointOf returns where the calls of the connection go whose callback is at hand; nil where that is not known, as with lifted calls and HTTP requests.
func (c *party) endpointOf() *policy.Endpoint {
	e := &c.endpoint
	if !e.asked {
		e.asked = true
		vm := c.rt.vm
		vm.line = vm.host.Endpoint(vm.line[:0])
		e.Address, e.Port, e.known = match.ParseSocket(vm.line)
	}
	return e.get()
}

// A circuitGauge is the gauge of the circuit for one endpoint, or of those for all others.
type circuitGauge struct {
	policy.Endpoint
	others bool
	id     Metric
	level  uint64 // as the host has it
	next   uint64 // as it is to be
}

// perEndpoint returns the rule of circuits for each endpoint that g is the state of, nil if it is another one's.
func perEndpoint(g governor) *breaker.Rule {
	if r, ok := g.(*breaker.Rule); ok && r.Params().PerEndpoint {
		return r
	}
	return nil
}

// reportCircuits brings to the host where the circuits of a rule stand: of none where r is nil. The first endpoints have a gauge each, up to
// Metrics.MaxEndpoints, since Envoy never forgets one; all others share one, which shows the worst of them.
func (rt *Runtime) reportCircuits(s *state, r *breaker.Rule, now policy.Nanos) {
	for i := range s.circuits {
		s.circuits[i].next = uint64(breaker.Closed) // also of one that is forgotten, which is to begin anew
	}
	if r != nil {
		r.Circuits(now, func(e policy.Endpoint, phase breaker.Phase) {
			g := rt.circuitGauge(s, e)
			if g.next != uint64(breaker.Open) {
				g.next = max(g.next, uint64(phase)) // the one that is half open is the lesser evil
			}
		})
	}
	for i := range s.circuits {
		if g := &s.circuits[i]; g.level != g.next {
			g.level = g.next
			rt.vm.host.Set(g.id, g.level)
		}
	}
}

// circuitGauge returns the gauge for e.
func (rt *Runtime) circuitGauge(s *state, e policy.Endpoint) *circuitGauge {
	for i := range s.circuits {
		if g := &s.circuits[i]; g.others || g.Endpoint == e {
			return g
		}
	}
	others := len(s.circuits) >= int(rt.metrics.limits.MaxEndpoints)
	var text [48]byte
	name := other
	if !others {
		name = view(e.Append(text[:0]))
	}
	rt.vm.line = append(appendLabel(rt.ruleLabels(s), config.TagEndpoint, name), nameRuleCircuit...)
	s.circuits = append(s.circuits, circuitGauge{Endpoint: e, others: others, id: rt.vm.host.Gauge(rt.vm.line), level: ^uint64(0)})
	return &s.circuits[len(s.circuits)-1]
}
