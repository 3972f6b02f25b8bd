package ratelimit

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/policytest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

const ms = second / 1000

// pacedSet returns the policy of one rule.
func pacedSet(p Params, queue policy.Nanos, observe bool, shared policy.Shared) (*PacedRule, *PacedSet) {
	r := NewPaced("r", p, queue, observe, shared, "x")
	return r, NewPacedSet([]*PacedRule{r}, 2)
}

// TestPaced: calls that come at once leave at even distances, as many as the queue holds.
func TestPaced(t *testing.T) {
	for _, shared := range []policy.Shared{nil, policytest.NewStore()} {
		r, s := pacedSet(Params{10, second, 2}, 250*ms, false, shared)
		for i, want := range []policy.Verdict{{}, {}, {Delay: 100 * ms}, {Delay: 200 * ms},
			{Reject: true, Code: protocol.CodeThrottled, Rule: "r", RetryAfterMillis: 50}, {Reject: true, Code: protocol.CodeThrottled, Rule: "r", RetryAfterMillis: 50}} {
			if v := s.Admit(second, &policy.Call{Holdable: true}); v != want {
				t.Errorf("call %d: %+v, want %+v", i, v, want)
			}
		}
		if w := r.Wait(second); w != 300*ms {
			t.Errorf("the next would wait %d ms", w/ms)
		}
		if v := s.Admit(second+50*ms, &policy.Call{Holdable: true}); v != (policy.Verdict{Delay: 250 * ms}) {
			t.Errorf("when there is a place: %+v", v)
		}
		// What cannot be held back has no queue.
		if v := s.Admit(second+100*ms, &policy.Call{}); !v.Reject || v.RetryAfterMillis != 300 {
			t.Errorf("not to be held back: %+v", v)
		}
		if v := s.Admit(second+400*ms, &policy.Call{}); v != (policy.Verdict{}) {
			t.Errorf("not to be held back, later: %+v", v)
		}
		if h := *r.Hits(); h != (policy.Hits{Admitted: 6, Rejected: 3}) {
			t.Errorf("%+v", h)
		}
	}
}

// TestPacedNeverMore: over any schedule and over all workers, calls leave no faster than a bucket without a queue would let them through, none waits
// longer than it may, and under demand the limit is used to the full.
func TestPacedNeverMore(t *testing.T) {
	for _, workers := range []int{0, 1, 4} {
		for _, p := range []Params{{10, second, 1}, {1000, second, 10}, {7, 10 * second, 7}, {999, second, 1}} {
			t.Run(fmt.Sprint(workers, p), func(t *testing.T) {
				rng := rand.New(rand.NewPCG(uint64(p.Threshold), uint64(workers)))
				store := policytest.NewStore()
				var sets []*PacedSet
				for _, shared := range store.Workers(workers) {
					_, s := pacedSet(p, second, false, shared)
					sets = append(sets, s)
				}
				step := p.Interval / policy.Nanos(p.Threshold)
				start := second
				now := start
				var leaves []policy.Nanos
				rejected := 0
				for range 5000 {
					now += policy.Nanos(rng.Int64N(int64(step)))
					v := sets[rng.IntN(len(sets))].Admit(now, &policy.Call{Holdable: true})
					if v.Reject {
						rejected++
						continue
					}
					if v.Delay < 0 || v.Delay > second {
						t.Fatalf("a call waits for %d ns", v.Delay)
					}
					if n := len(leaves); n > 0 && now+v.Delay < leaves[n-1] {
						t.Fatalf("a call overtakes another one")
					}
					leaves = append(leaves, now+v.Delay)
				}
				slices.Sort(leaves)
				for a := range leaves {
					for b := a; b < min(len(leaves), a+50); b++ {
						// Waits are rounded up to a nanosecond.
						if n, most := int64(b-a+1), allowed(p, leaves[b]-leaves[a]+1); n > most {
							t.Fatalf("%d leave within %d ns, allowed %d", n, leaves[b]-leaves[a], most)
						}
					}
				}
				if n, want := int64(len(leaves)), allowed(p, now-start); rejected == 0 || n < want*99/100 {
					t.Errorf("%d admitted of %d, %d rejected", n, want, rejected)
				}
			})
		}
	}
}

// TestPacedTogether: of two rules the longer wait holds, and what one of them or a later policy rejects costs the other nothing.
func TestPacedTogether(t *testing.T) {
	fast, slow := NewPaced("fast", Params{10, second, 1}, second, false, nil, ""), NewPaced("slow", Params{5, second, 1}, 200*ms, false, nil, "")
	s := NewPacedSet([]*PacedRule{fast, slow}, 0)
	for i, want := range []policy.Verdict{{}, {Delay: 200 * ms}, {Reject: true, Code: protocol.CodeThrottled, Rule: "slow", RetryAfterMillis: 200}} {
		if v := s.Admit(second, &policy.Call{Holdable: true}); v != want {
			t.Errorf("call %d: %+v, want %+v", i, v, want)
		}
	}
	if w := fast.Wait(second); w != 200*ms {
		t.Errorf("the other rule has charged for what was rejected: %d ms", w/ms)
	}
	c := policy.Call{Holdable: true}
	if v := s.Admit(2*second, &c); v.Reject || c.Marks != 3 {
		t.Errorf("%+v, marks %b", v, c.Marks)
	}
	s.Done(2*second, &c, policy.Outcome{Result: protocol.OutcomeRejected})
	if fast.Wait(2*second) != 0 || slow.Wait(2*second) != 0 || c.Marks != 0 {
		t.Error("a token is not given back")
	}
}

// TestPacedObserver counts, and holds nothing back.
func TestPacedObserver(t *testing.T) {
	r, s := pacedSet(Params{1, second, 1}, second, true, policytest.NewStore())
	for range 4 {
		if v := s.Admit(second, &policy.Call{}); v != (policy.Verdict{}) {
			t.Errorf("%+v", v)
		}
	}
	if h := *r.Hits(); h != (policy.Hits{Admitted: 2, WouldReject: 2}) {
		t.Errorf("%+v", h)
	}
	_, s = pacedSet(Params{0, second, 1}, second, false, nil)
	if v := s.Admit(second, &policy.Call{Holdable: true}); !v.Reject || v.RetryAfterMillis != 0 {
		t.Errorf("threshold 0: %+v", v)
	}
}

// TestPacedContention: a worker that loses every swap gives up without admitting; shared data that is not ours does no harm.
func TestPacedContention(t *testing.T) {
	store := policytest.NewStore()
	_, s := pacedSet(Params{10, second, 1}, second, false, store)
	store.Lose = attempts
	if !s.Admit(second, &policy.Call{Holdable: true}).Reject {
		t.Error("admitted without a token")
	}
	store.Overwrite([]byte("x"))
	if v := s.Admit(second, &policy.Call{Holdable: true}); v != (policy.Verdict{}) {
		t.Errorf("%+v", v)
	}
}

func TestPacedDoesNotAllocate(t *testing.T) {
	for _, shared := range []policy.Shared{nil, new(policytest.Frozen)} {
		_, s := pacedSet(Params{1000, second, 1}, 10*ms, false, shared)
		now := second
		var c policy.Call
		if n := testing.AllocsPerRun(10_000, func() {
			now += ms / 2
			c.Holdable, c.Marks = true, 0
			s.Admit(now, &c)
			s.Done(now, &c, policy.Outcome{})
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}
