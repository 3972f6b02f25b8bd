package breaker

import (
	"math/rand/v2"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/match"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/policytest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// perEndpoint opens a circuit at the second error.
var perEndpoint = Params{Strategy: ErrorCount, Threshold: 2, Window: second, Retry: second, Probes: 1, Errors: Status, PerEndpoint: true}

// endpoint returns the n-th endpoint.
func endpoint(n int) *policy.Endpoint {
	return &policy.Endpoint{Address: match.Address{10: 0xff, 11: 0xff, 12: 10, 13: byte(n >> 16), 14: byte(n >> 8), 15: byte(n)}, Port: 20880}
}

// callTo lets one call to e through s and ends it at once.
func callTo(s *Set, now policy.Nanos, e *policy.Endpoint, result protocol.Outcome) policy.Verdict {
	c := policy.Call{Endpoint: e}
	v := s.Admit(now, &c)
	if c.Marks != 0 {
		s.Done(now, &policy.Call{Endpoint: e, Marks: c.Marks}, policy.Outcome{Result: result})
	}
	return v
}

// circuits returns where each circuit stands.
func circuits(r *Rule, now policy.Nanos) map[policy.Endpoint]Phase {
	out := map[policy.Endpoint]Phase{}
	r.Circuits(now, func(e policy.Endpoint, p Phase) { out[e] = p })
	return out
}

// TestEndpoints: each endpoint has a circuit of its own, which all workers obey, and goes around it by itself.
func TestEndpoints(t *testing.T) {
	a, b := endpoint(1), endpoint(2)
	for _, shared := range []policy.Shared{nil, policytest.NewStore()} {
		r, s := worker(perEndpoint, false, shared)
		now := second
		for range 2 {
			callTo(s, now, a, protocol.OutcomeError)
			callTo(s, now, b, protocol.OutcomeOK)
		}
		if v := callTo(s, now, a, protocol.OutcomeOK); !v.Reject || v.RetryAfterMillis != 1000 {
			t.Errorf("shared %v: %+v", shared != nil, v)
		}
		if callTo(s, now, b, protocol.OutcomeOK).Reject {
			t.Errorf("shared %v: the other endpoint is rejected, too", shared != nil)
		}
		if shared != nil {
			other, set := worker(perEndpoint, false, shared)
			if callTo(set, now, b, protocol.OutcomeOK).Reject || !callTo(set, now, a, protocol.OutcomeOK).Reject {
				t.Error("another worker does not know")
			}
			if got := circuits(other, now); len(got) != 2 || got[*a] != Open || got[*b] != Closed {
				t.Errorf("another worker shows %v", got)
			}
		}
		now += second
		if got := circuits(r, now); len(got) != 2 || got[*a] != HalfOpen || got[*b] != Closed {
			t.Errorf("shared %v: %v", shared != nil, got)
		}
		for range 2 {
			if callTo(s, now, a, protocol.OutcomeOK).Reject {
				t.Errorf("shared %v: not closed by its probe", shared != nil)
			}
		}
		if got := circuits(r, now); got[*a] != Closed {
			t.Errorf("shared %v: %v", shared != nil, got)
		}
	}
}

// TestNoEndpoint: a call of which nobody knows where it goes is none of the rule's.
func TestNoEndpoint(t *testing.T) {
	r, s := worker(perEndpoint, false, policytest.NewStore())
	for range 10 {
		if callTo(s, second, nil, protocol.OutcomeError).Reject {
			t.Fatal("rejected")
		}
	}
	if h := *r.Hits(); h != (policy.Hits{}) || len(circuits(r, second)) > 0 {
		t.Errorf("%+v", h)
	}
}

// TestTableIsBounded: whatever number of endpoints there is, memory is bounded, the endpoints called last have their circuits, and no
// endpoint ever pays for what another one did, though workers take places from each other.
func TestTableIsBounded(t *testing.T) {
	for _, workers := range []int{0, 1, 4} {
		store := policytest.NewStore()
		var rules []*Rule
		var sets []*Set
		for _, shared := range store.Workers(workers) {
			r, s := worker(perEndpoint, false, shared)
			rules, sets = append(rules, r), append(sets, s)
		}
		rng := rand.New(rand.NewPCG(1, uint64(workers)))
		now := second
		const endpoints = 3 * places
		errors := map[int]int{} // since the circuit was last seen open
		for range 100_000 {
			now += policy.Nanos(rng.Int64N(int64(ms)))
			n := rng.IntN(endpoints)
			result := protocol.OutcomeOK
			if n%4 == 0 {
				result = protocol.OutcomeError
			}
			switch rejected := callTo(sets[rng.IntN(len(sets))], now, endpoint(n), result).Reject; {
			case rejected && errors[n] < 2:
				t.Fatalf("%d workers: endpoint %d is rejected after %d errors", workers, n, errors[n])
			case !rejected && n%4 == 0:
				errors[n]++
			}
		}
		for _, r := range rules {
			if n := len(circuits(r, now)); n > places {
				t.Errorf("%d workers: %d circuits", workers, n)
			}
		}
		if n, bytes := store.Len(); n > places || bytes > 500*places {
			t.Errorf("%d workers: %d values of %d bytes in all", workers, n, bytes)
		}
		// What is called now has a circuit, though all places are taken.
		for n := endpoints; n < endpoints+100; n++ {
			now += ms
			for range 2 {
				callTo(sets[0], now, endpoint(n), protocol.OutcomeError)
			}
		}
		open := 0
		for n := endpoints; n < endpoints+100; n++ {
			if callTo(sets[len(sets)-1], now, endpoint(n), protocol.OutcomeError).Reject {
				open++
			}
		}
		if open < 95 {
			t.Errorf("%d workers: %d of 100 endpoints have an open circuit", workers, open)
		}
	}
}

// TestFewEndpointsStay: with as many endpoints as a rule is made for, practically none loses its circuit to another.
func TestFewEndpointsStay(t *testing.T) {
	for _, shared := range []policy.Shared{nil, policytest.NewStore()} {
		r, s := worker(perEndpoint, false, shared)
		for n := range 700 {
			callTo(s, second+policy.Nanos(n)*ms, endpoint(n), protocol.OutcomeOK)
		}
		if n := len(circuits(r, 2*second)); n < 695 {
			t.Errorf("shared %v: %d circuits of 700", shared != nil, n)
		}
	}
}

// TestPlaceTaken: a worker whose circuit's place went to another endpoint counts nothing there, and finds another place.
func TestPlaceTaken(t *testing.T) {
	store := policytest.NewStore()
	r, s := worker(perEndpoint, false, store)
	a, b := endpoint(1), endpoint(2)
	callTo(s, second, a, protocol.OutcomeError)
	place := r.find(a).place
	r.store(&circuit{endpoint: *b, place: place}, 0)
	now := 2 * second
	c := policy.Call{Endpoint: a}
	s.Admit(now, &c)
	s.Done(now, &c, policy.Outcome{Result: protocol.OutcomeError})
	if got := (&circuit{endpoint: *b, place: place}); true {
		r.load(got, now)
		if got.lost || got.state.window(uint64(now/r.width)) != (bucket{}) {
			t.Errorf("the other endpoint's circuit is %+v", got)
		}
	}
	for range 3 {
		callTo(s, now, a, protocol.OutcomeError)
	}
	if x := r.find(a); x == nil || x.place == place || r.phase(x, now) != Open {
		t.Errorf("%+v", x)
	}
	// A swap that is lost at the very moment does no harm either.
	store.Overwrite([]byte("x"))
	store.Lose = 1
	for range 3 {
		callTo(s, now, endpoint(3), protocol.OutcomeError)
	}
	if x := r.find(endpoint(3)); r.phase(x, now) != Open {
		t.Errorf("%+v", x)
	}
}

func TestEndpointsDoNotAllocate(t *testing.T) {
	for _, shared := range []policy.Shared{nil, new(policytest.Frozen)} {
		_, s := worker(perEndpoint, false, shared)
		now, i := second, 0
		some := []*policy.Endpoint{endpoint(1), endpoint(2), endpoint(3)}
		if shared != nil {
			some = some[:1] // the store has one value
		}
		for _, e := range some {
			callTo(s, now, e, protocol.OutcomeOK)
		}
		if n := testing.AllocsPerRun(10_000, func() {
			now += ms
			i++
			result := protocol.OutcomeOK
			if i/100%2 == 1 {
				result = protocol.OutcomeError
			}
			callTo(s, now, some[i%len(some)], result)
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

func BenchmarkCallToEndpoint(b *testing.B) {
	p := Params{Strategy: ErrorRatio, Threshold: 500_000, Window: second, MinRequests: 10, Retry: second, Probes: 1, Errors: Status, PerEndpoint: true}
	_, s := worker(p, false, policytest.NewStore())
	now, e := second, endpoint(1)
	var c policy.Call
	b.ReportAllocs()
	for b.Loop() {
		now += 10_000
		c.Endpoint = e
		s.Admit(now, &c)
		s.Done(now, &c, policy.Outcome{Result: protocol.OutcomeOK, Duration: ms})
	}
}
