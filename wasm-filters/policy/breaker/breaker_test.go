package breaker

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/policytest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

const (
	second = policytest.Second
	ms     = policy.Nanos(1_000_000)
)

// worker returns the policy of one rule in a memory of its own.
func worker(p Params, observe bool, shared policy.Shared) (*Rule, *Set) {
	r := New("r", p, observe, shared, "x")
	return r, NewSet([]*Rule{r}, 3)
}

// call lets one call through s and ends it after d. It returns the verdict on it.
func call(s *Set, now policy.Nanos, result protocol.Outcome, d policy.Nanos) policy.Verdict {
	var c policy.Call
	v := s.Admit(now, &c)
	if c.Marks != 0 {
		s.Done(now+d, &c, policy.Outcome{Result: result, Duration: d})
	}
	return v
}

func TestStrategies(t *testing.T) {
	type ended struct {
		result protocol.Outcome
		d      policy.Nanos
	}
	ok, fail, threw := ended{protocol.OutcomeOK, ms}, ended{protocol.OutcomeTimeout, ms}, ended{protocol.OutcomeException, ms}
	slow, gone := ended{protocol.OutcomeOK, 100 * ms}, ended{protocol.OutcomeClosed, second / 2}
	base := Params{Window: second, MinRequests: 4, MaxRT: 100 * ms, Retry: second, Probes: 1, Errors: Transport | Status}
	for name, c := range map[string]struct {
		strategy  Strategy
		threshold uint32
		errors    Errors
		calls     []ended
		open      int // after how many calls; 0: never
	}{
		"ratio":                      {ErrorRatio, 500_000, 0, []ended{fail, ok, fail, ok, fail}, 4},
		"ratio, below its minimum":   {ErrorRatio, 500_000, 0, []ended{fail, fail, fail}, 0},
		"ratio, exactly":             {ErrorRatio, 400_000, 0, []ended{ok, ok, ok, fail, fail}, 5},
		"ratio, just below":          {ErrorRatio, 400_001, 0, []ended{ok, ok, ok, fail, fail}, 0},
		"exceptions are none":        {ErrorRatio, 1, 0, []ended{threw, threw, threw, threw, threw}, 0},
		"exceptions are":             {ErrorRatio, 1_000_000, Exception, []ended{threw, threw, threw, threw}, 4},
		"only what is asked for":     {ErrorRatio, 1, Exception, []ended{fail, gone, fail, ok, ok}, 0},
		"connections that go":        {ErrorCount, 1, Transport, []ended{ok, ok, ok, ok, gone}, 5},
		"count":                      {ErrorCount, 2, 0, []ended{ok, ok, ok, ok, fail, ok, fail}, 7},
		"count, below the minimum":   {ErrorCount, 2, 0, []ended{fail, fail, ok, ok}, 4},
		"average":                    {AverageResponseTime, 50, 0, []ended{ok, slow, ok, slow}, 4},
		"average, just below":        {AverageResponseTime, 51, 0, []ended{ok, slow, ok, slow}, 0},
		"slow":                       {SlowCallRatio, 250_000, 0, []ended{ok, ok, slow, ok}, 4},
		"slow, not just below":       {SlowCallRatio, 1, 0, []ended{{protocol.OutcomeOK, 100*ms - 1}, ok, ok, ok, ok}, 0},
		"errors are not slow":        {SlowCallRatio, 1, 0, []ended{fail, fail, fail, fail, fail}, 0},
		"a lost connection is no RT": {SlowCallRatio, 1, 0, []ended{gone, ok, ok, ok, ok}, 0},
		"nobody knows":               {ErrorRatio, 1, Transport | Status | Exception, []ended{{}, {}, {}, {}, {}, {protocol.OutcomeRejected, 0}}, 0},
	} {
		for _, shared := range []policy.Shared{nil, policytest.NewStore()} {
			p := base
			p.Strategy, p.Threshold = c.strategy, c.threshold
			if c.errors != 0 {
				p.Errors = c.errors
			}
			r, s := worker(p, false, shared)
			opened, now := 0, second
			for i, e := range c.calls {
				if call(s, now, e.result, e.d).Reject {
					break
				}
				if now += e.d; r.Phase(now) != Closed && opened == 0 {
					opened = i + 1
				}
			}
			if opened != c.open {
				t.Errorf("%s, shared %v: open after %d calls, want %d", name, shared != nil, opened, c.open)
			}
		}
	}
}

// TestWindowSlides: errors that are a window old do not count.
func TestWindowSlides(t *testing.T) {
	p := Params{Strategy: ErrorCount, Threshold: 2, Window: second, Retry: second, Probes: 1, Errors: Status}
	for _, c := range []struct {
		gap  policy.Nanos
		open bool
	}{{0, true}, {900*ms - 1, true}, {second, false}, {100 * second, false}} {
		r, s := worker(p, false, policytest.NewStore())
		now := 100 * second
		call(s, now, protocol.OutcomeError, 0)
		call(s, now+c.gap, protocol.OutcomeError, 0)
		if open := r.Phase(now+c.gap) == Open; open != c.open {
			t.Errorf("two errors %d ms apart: open is %v", c.gap/ms, open)
		}
	}
}

// TestCircuit goes once around: open for its time, probes, open again, probes, closed.
func TestCircuit(t *testing.T) {
	p := Params{Strategy: ErrorCount, Threshold: 1, Window: second, Retry: 2 * second, Probes: 2, Errors: Status}
	for _, shared := range []policy.Shared{nil, policytest.NewStore()} {
		r, s := worker(p, false, shared)
		now := second
		call(s, now, protocol.OutcomeError, 0)
		for _, after := range []policy.Nanos{0, second, 2*second - 1} {
			v := call(s, now+after, protocol.OutcomeOK, 0)
			want := policy.Verdict{Reject: true, Code: protocol.CodeUnavailable, Rule: "r", RetryAfterMillis: uint32((2*second - after + ms - 1) / ms)}
			if v != want {
				t.Errorf("after %d: %+v, want %+v", after, v, want)
			}
		}
		now += 2 * second
		if r.Phase(now) != HalfOpen {
			t.Error("not half open")
		}
		var probes [2]policy.Call
		for i := range probes {
			if s.Admit(now, &probes[i]).Reject {
				t.Fatal("no probe")
			}
		}
		if !call(s, now, protocol.OutcomeOK, 0).Reject {
			t.Error("three probes")
		}
		s.Done(now+ms, &probes[0], policy.Outcome{Result: protocol.OutcomeOK, Duration: ms})
		s.Done(now+ms, &probes[1], policy.Outcome{Result: protocol.OutcomeOverload, Duration: ms})
		if r.Phase(now+ms) != Open || !call(s, now+second, protocol.OutcomeOK, 0).Reject {
			t.Error("not open after a probe that failed")
		}
		now += 2*second + ms
		call(s, now, protocol.OutcomeOK, 0)
		if r.Phase(now) != HalfOpen {
			t.Error("closed after one probe of two")
		}
		call(s, now, protocol.OutcomeOK, 0)
		if r.Phase(now) != Closed || call(s, now, protocol.OutcomeOK, 0).Reject {
			t.Error("not closed after two probes")
		}
		// A one-way call and one that another policy rejects are no probes.
		call(s, now, protocol.OutcomeError, 0)
		now += 2 * second
		if !s.Admit(now, &policy.Call{OneWay: true}).Reject {
			t.Error("a one-way call is a probe")
		}
		for range 5 {
			var c policy.Call
			if s.Admit(now, &c).Reject {
				t.Error("a place for a probe is lost")
			}
			s.Done(now, &c, policy.Outcome{Result: protocol.OutcomeRejected})
		}
		// Probes that do not return make room for others.
		for i := range 2 * 2 {
			if s.Admit(now, new(policy.Call)).Reject {
				t.Errorf("lost probe %d has no successor", i)
			}
			if i%2 == 1 {
				if !s.Admit(now, new(policy.Call)).Reject {
					t.Error("too many probes")
				}
				now += 2 * second
			}
		}
	}
}

// TestInvariants runs random calls of several workers, and holds the circuit to its promises: it never opens below its minimum or
// its threshold; while it is open nobody who looked within 10 ms lets a call through; of probes there are never more than
// Probes in the time that one has to return; and it closes only after as many went well.
func TestInvariants(t *testing.T) {
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 7))
		p := Params{Strategy: Strategy(rng.IntN(4)), Threshold: uint32(1 + rng.IntN(600_000)), Window: second, MinRequests: uint32(rng.IntN(20)),
			MaxRT: 20 * ms, Retry: 100*ms + policy.Nanos(rng.Int64N(int64(second))), Probes: uint32(1 + rng.IntN(4)), Errors: Errors(1 + rng.IntN(7))}
		switch p.Strategy {
		case ErrorCount:
			p.Threshold = uint32(1 + rng.IntN(20))
		case AverageResponseTime:
			p.Threshold = uint32(1 + rng.IntN(20))
		}
		workers := rng.IntN(5) // 0: one without a store
		t.Run(fmt.Sprintf("%d/%+v/%d", seed, p, workers), func(t *testing.T) {
			store := policytest.NewStore()
			var rules []*Rule
			var sets []*Set
			for _, shared := range store.Workers(workers) {
				r, s := worker(p, false, shared)
				rules, sets = append(rules, r), append(sets, s)
			}
			truth, _ := worker(p, false, store) // looks only
			if workers == 0 {
				truth = rules[0]
			}
			type flight struct {
				c     policy.Call
				set   int
				start policy.Nanos
			}
			type end struct {
				at  policy.Nanos
				bad bool
				d   policy.Nanos
			}
			var flying []flight
			var ends []end
			now := 1000 * second
			phase, probes, passed, opened := Closed, 0, 0, 0
			var changed, until policy.Nanos
			look := func() Phase {
				if truth.shared != nil {
					truth.load(&truth.one, now)
				}
				return truth.one.state.phase
			}
			errorRate := 0
			for step := range 20_000 {
				now += policy.Nanos(rng.Int64N(int64(4 * ms)))
				if step%500 == 0 {
					errorRate = rng.IntN(4) * 30
				}
				if rng.IntN(2) == 0 && len(flying) < 50 {
					w := rng.IntN(len(sets))
					f := flight{set: w, start: now}
					rejected := sets[w].Admit(now, &f.c).Reject
					after := look()
					if !rejected {
						flying = append(flying, f)
						switch {
						case phase == Open && after == HalfOpen:
							probes, passed, until = 1, 0, now+p.Retry
						case phase == HalfOpen:
							if now >= until {
								probes, until = passed, now+p.Retry
							}
							if probes++; probes > int(p.Probes) {
								t.Fatalf("probe %d of %d", probes, p.Probes)
							}
						case phase == Open && now > changed+stale:
							t.Fatalf("a call goes through an open circuit, %d ms after it opened", (now-changed)/ms)
						}
					}
					if after != phase {
						if phase != Open || after != HalfOpen || now < changed+p.Retry {
							t.Fatalf("from %d to %d by an admission", phase, after)
						}
						phase, changed = after, now
					}
					continue
				}
				if len(flying) == 0 {
					continue
				}
				i := rng.IntN(len(flying))
				f := flying[i]
				flying = append(flying[:i], flying[i+1:]...)
				result := []protocol.Outcome{protocol.OutcomeOK, protocol.OutcomeException, protocol.OutcomeTimeout, protocol.OutcomeNoResponse, protocol.OutcomeNone}[rng.IntN(5)]
				if rng.IntN(100) >= errorRate {
					result = protocol.OutcomeOK
				}
				o := policy.Outcome{Result: result, Duration: now - f.start}
				bad, counts := rules[0].failed(o)
				if counts {
					ends = append(ends, end{now, bad, o.Duration})
				}
				probe := phase == HalfOpen && f.start >= changed
				sets[f.set].Done(now, &f.c, o)
				after := look()
				switch {
				case phase == HalfOpen && probe && result == protocol.OutcomeNone:
					probes = max(probes-1, passed)
				case phase == HalfOpen && probe && after == HalfOpen:
					passed++
				case phase == HalfOpen && after == Closed:
					if passed+1 < int(p.Probes) {
						t.Fatalf("closed after %d probes of %d", passed+1, p.Probes)
					}
					ends = nil
				case phase == Closed && after == Open:
					opened++
					// All that ended within the window can have counted, no more.
					var sum bucket
					for _, e := range ends {
						if now/rules[0].width-e.at/rules[0].width < buckets {
							sum.total++
							sum.nanos += uint64(e.d)
							if e.bad {
								sum.bad++
							}
						}
					}
					if sum.total < p.MinRequests {
						t.Fatalf("open after %d calls, minimum %d", sum.total, p.MinRequests)
					}
					if sum.bad == 0 && p.Strategy != AverageResponseTime {
						t.Fatal("open without an error")
					}
					if workers <= 1 && !rules[0].trips(sum) {
						t.Fatalf("open at %+v, threshold %d", sum, p.Threshold)
					}
				case after != phase && !(phase == HalfOpen && after == Open && probe):
					t.Fatalf("from %d to %d by the end of a call", phase, after)
				}
				if after != phase {
					phase, changed = after, now
				}
			}
			t.Logf("opened %d times", opened)
		})
	}
}

// TestOthersLearn: what one worker's calls do to the circuit another one obeys 10 ms later, and errors that are spread over workers
// add up.
func TestOthersLearn(t *testing.T) {
	store := policytest.NewStore()
	p := Params{Strategy: ErrorCount, Threshold: 8, Window: second, Retry: second, Probes: 1, Errors: Status}
	var sets []*Set
	for range 4 {
		_, s := worker(p, false, store)
		sets = append(sets, s)
	}
	now := second
	for i := range 7 {
		if call(sets[i%4], now, protocol.OutcomeError, 0).Reject {
			t.Fatal("rejected")
		}
		now += 11 * ms
	}
	call(sets[3], now, protocol.OutcomeError, 0)
	if !call(sets[3], now, protocol.OutcomeOK, 0).Reject {
		t.Error("not open at once where it opened")
	}
	for i, s := range sets {
		if !call(s, now+stale, protocol.OutcomeOK, 0).Reject {
			t.Errorf("worker %d has not learned it", i)
		}
	}
}

// TestHostCalls: a closed circuit costs no more than a few host calls every 10 ms, an open one too.
func TestHostCalls(t *testing.T) {
	store := policytest.NewStore()
	_, s := worker(Params{Strategy: ErrorRatio, Threshold: 500_000, Window: second, MinRequests: 10, Retry: 2 * second, Probes: 1, Errors: Status}, false, store)
	now := second
	for range 100_000 {
		now += 10_000
		call(s, now, protocol.OutcomeOK, 0)
	}
	if store.Calls > 500 {
		t.Errorf("%d host calls in a second of 100,000 calls", store.Calls)
	}
	for range 200_000 {
		call(s, now, protocol.OutcomeError, 0)
	}
	store.Calls = 0
	for range 100_000 {
		now += 10_000
		if !call(s, now, protocol.OutcomeOK, 0).Reject {
			t.Fatal("not open")
		}
	}
	if store.Calls > 200 {
		t.Errorf("%d host calls in a second of 100,000 rejected calls", store.Calls)
	}
}

// TestObserve: a rule that observes goes around its circuit and rejects nothing.
func TestObserve(t *testing.T) {
	r, s := worker(Params{Strategy: ErrorCount, Threshold: 1, Window: second, Retry: second, Probes: 1, Errors: Status}, true, policytest.NewStore())
	now := second
	for i, c := range []struct {
		after  policy.Nanos
		result protocol.Outcome
		phase  Phase
	}{{0, protocol.OutcomeError, Open}, {ms, protocol.OutcomeOK, Open}, {second, protocol.OutcomeError, Open}, {second, protocol.OutcomeOK, Closed}} {
		now += c.after
		if call(s, now, c.result, 0).Reject {
			t.Error("rejected")
		}
		if r.one.state.phase != c.phase {
			t.Errorf("step %d: phase %d, want %d", i, r.one.state.phase, c.phase)
		}
	}
	if h := *r.Hits(); h != (policy.Hits{Admitted: 3, WouldReject: 1}) {
		t.Errorf("%+v", h)
	}
}

// TestTwoRules: a probe that another circuit rejects did not take place.
func TestTwoRules(t *testing.T) {
	p := Params{Strategy: ErrorCount, Threshold: 1, Window: second, Retry: second, Probes: 1, Errors: Status}
	short := New("short", p, false, nil, "")
	p.Retry = 3 * second
	long := New("long", p, false, nil, "")
	s := NewSet([]*Rule{short, long}, 0)
	now := second
	call(s, now, protocol.OutcomeError, 0)
	for range 3 {
		now += second / 2
		if v := call(s, now+second, protocol.OutcomeOK, 0); v.Rule != "long" {
			t.Errorf("%+v", v)
		}
	}
	if now += 3 * second; call(s, now, protocol.OutcomeOK, 0).Reject {
		t.Error("the place for the probe is lost")
	}
	if short.Phase(now) != Closed || long.Phase(now) != Closed {
		t.Error("not closed")
	}
}

// TestForeignState: shared data that is not ours does no harm; a worker that loses every swap admits no probe.
func TestForeignState(t *testing.T) {
	p := Params{Strategy: ErrorCount, Threshold: 1, Window: second, Retry: second, Probes: 1, Errors: Status}
	for _, v := range []string{"", "x", string(make([]byte, stateLen+1)), "\xff" + string(make([]byte, stateLen-1))} {
		store := policytest.NewStore()
		r, s := worker(p, false, store)
		store.Overwrite([]byte(v))
		if call(s, second, protocol.OutcomeError, 0).Reject {
			t.Errorf("%q: rejected", v)
		}
		if r.Phase(second) != Open {
			t.Errorf("%q: not open", v)
		}
	}
	store := policytest.NewStore()
	r, s := worker(p, false, store)
	store.Lose = attempts
	call(s, second, protocol.OutcomeError, 0)
	if r.Phase(second) != Closed {
		t.Fatal("open without having told the others")
	}
	call(s, second, protocol.OutcomeOK, 0)
	if r.Phase(second) != Open {
		t.Error("the error is forgotten")
	}
	store.Lose = attempts
	if !call(s, 3*second, protocol.OutcomeOK, 0).Reject {
		t.Error("a probe without a place")
	}
	if call(s, 3*second, protocol.OutcomeOK, 0).Reject {
		t.Error("no probe")
	}
}

func TestDoesNotAllocate(t *testing.T) {
	for _, shared := range []policy.Shared{nil, new(policytest.Frozen)} {
		_, s := worker(Params{Strategy: ErrorRatio, Threshold: 500_000, Window: second, MinRequests: 10, Retry: second / 10, Probes: 1, Errors: Status}, false, shared)
		now := second
		i := 0
		var c policy.Call
		if n := testing.AllocsPerRun(10_000, func() {
			now += ms
			i++
			result := protocol.OutcomeOK
			if i/100%2 == 1 {
				result = protocol.OutcomeError
			}
			if !s.Admit(now, &c).Reject {
				s.Done(now, &c, policy.Outcome{Result: result})
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

func BenchmarkCall(b *testing.B) {
	_, s := worker(Params{Strategy: ErrorRatio, Threshold: 500_000, Window: second, MinRequests: 10, Retry: second, Probes: 1, Errors: Status}, false, policytest.NewStore())
	now := second
	var c policy.Call
	b.ReportAllocs()
	for b.Loop() {
		now += 10_000
		s.Admit(now, &c)
		s.Done(now, &c, policy.Outcome{Result: protocol.OutcomeOK, Duration: ms})
	}
}
