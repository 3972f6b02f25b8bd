package concurrency

import (
	"math/rand/v2"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/policytest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// TestExact runs random calls of several workers over two rules, one of which applies to some of the calls: never do more than the
// limit run, nothing is rejected below it, and when all have ended the number is 0 again.
func TestExact(t *testing.T) {
	for _, workers := range []int{0, 1, 4} {
		rng := rand.New(rand.NewPCG(1, uint64(workers)))
		store := policytest.NewStore()
		var all, some []*Rule
		var sets []*Set
		for _, shared := range store.Workers(workers) {
			a, b := New("all", 10, false, shared, "x"), New("some", 4, false, shared, "x")
			b.Renew(false, policy.Conditions{{Subject: policy.SubjectAttachment, Exists: true}})
			all, some, sets = append(all, a), append(some, b), append(sets, NewSet([]*Rule{a, b}, 5))
		}
		type flight struct {
			c      policy.Call
			set    int
			tagged bool
		}
		var flying []flight
		running := func(tagged bool) (n int) {
			for _, f := range flying {
				if f.tagged || !tagged {
					n++
				}
			}
			return n
		}
		rejected := 0
		for step := range 20_000 {
			if store.Lose == 0 && rng.IntN(10) == 0 {
				store.Lose = rng.IntN(attempts - 1)
			}
			if rng.IntN(2) == 0 {
				f := flight{set: rng.IntN(len(sets)), tagged: rng.IntN(3) == 0}
				f.c.Attachments = [][]byte{nil}
				if f.tagged {
					f.c.Attachments[0] = []byte("x")
				}
				f.c.OneWay = rng.IntN(10) == 0
				v := sets[f.set].Admit(0, &f.c)
				rule := ""
				if running(false) >= 10 {
					rule = "all"
				} else if f.tagged && running(true) >= 4 {
					rule = "some"
				}
				if v.Rule != rule || v.Reject != (rule != "") || v.Reject && (v.Code != protocol.CodeThrottled || f.c.Marks != 0) {
					t.Fatalf("step %d: %+v with %d and %d running, want %q", step, v, running(false), running(true), rule)
				}
				if v.Reject {
					rejected++
				} else if f.c.OneWay != (f.c.Marks == 0) {
					t.Fatalf("marks %x, one-way %v", f.c.Marks, f.c.OneWay)
				} else if !f.c.OneWay {
					flying = append(flying, f)
				}
			} else if len(flying) > 0 {
				i := rng.IntN(len(flying))
				f := flying[i]
				flying = append(flying[:i], flying[i+1:]...)
				f.c.Attachments = nil // nobody knows them any more
				sets[f.set].Done(0, &f.c, policy.Outcome{Result: protocol.Outcome(rng.IntN(int(protocol.OutcomeClosed) + 1))})
			}
			if got := all[rng.IntN(len(all))].Running(); int(got) != running(false) {
				t.Fatalf("step %d: %d, %d run", step, got, running(false))
			}
		}
		for _, f := range flying {
			sets[f.set].Done(0, &f.c, policy.Outcome{})
		}
		if all[0].Running() != 0 || some[0].Running() != 0 || rejected == 0 {
			t.Errorf("%d and %d run at the end, %d rejected", all[0].Running(), some[0].Running(), rejected)
		}
	}
}

// TestLimitChanges: a lower limit lets what runs run, and admits nothing until there is room; observing counts beyond it.
func TestLimitChanges(t *testing.T) {
	for _, shared := range []policy.Shared{nil, policytest.NewStore()} {
		r := New("r", 3, false, shared, "x")
		s := NewSet([]*Rule{r}, 0)
		var c [6]policy.Call
		for i := range 3 {
			if s.Admit(0, &c[i]).Reject {
				t.Fatal("rejected")
			}
		}
		r.SetLimit(2)
		s.Done(0, &c[0], policy.Outcome{})
		if !s.Admit(0, &c[3]).Reject {
			t.Error("admitted beyond the new limit")
		}
		r.Renew(true, nil)
		if s.Admit(0, &c[3]).Reject || r.Running() != 3 {
			t.Error("a rule that observes rejects, or does not count")
		}
		r.Renew(false, nil)
		for i := range 3 {
			s.Done(0, &c[i+1], policy.Outcome{})
			s.Done(0, &c[i+1], policy.Outcome{}) // without its mark: not again
		}
		if r.Running() != 0 {
			t.Errorf("%d run", r.Running())
		}
		if h := *r.Hits(); h != (policy.Hits{Admitted: 3, Rejected: 1, WouldReject: 1}) {
			t.Errorf("%+v", h)
		}
		r.SetLimit(0)
		if !s.Admit(0, &c[0]).Reject {
			t.Error("admitted where none is")
		}
	}
}

// TestContention: a worker that loses every swap does not admit, and does not forget that a call ended.
func TestContention(t *testing.T) {
	store := policytest.NewStore()
	r, other := New("r", 2, false, store, "x"), New("r", 2, false, store, "x")
	s := NewSet([]*Rule{r}, 0)
	var c, d policy.Call
	store.Lose = attempts
	if !s.Admit(0, &c).Reject {
		t.Error("admitted without a place")
	}
	if s.Admit(0, &c).Reject || s.Admit(0, &d).Reject {
		t.Error("rejected")
	}
	store.Lose = attempts
	s.Done(0, &c, policy.Outcome{})
	if r.Running() != 1 || other.Running() != 2 {
		t.Errorf("%d and %d", r.Running(), other.Running())
	}
	s.Done(0, &d, policy.Outcome{})
	if r.Running() != 0 || other.Running() != 0 {
		t.Errorf("%d and %d", r.Running(), other.Running())
	}
	store.Overwrite([]byte("other"))
	if s.Admit(0, &c).Reject {
		t.Error("a foreign state does harm")
	}
}

func TestDoesNotAllocate(t *testing.T) {
	for _, shared := range []policy.Shared{nil, new(policytest.Frozen)} {
		s := NewSet([]*Rule{New("a", 1000, false, shared, "x"), New("b", 0, true, shared, "x")}, 0)
		var c policy.Call
		if n := testing.AllocsPerRun(1000, func() { s.Admit(0, &c); s.Done(0, &c, policy.Outcome{}) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}
