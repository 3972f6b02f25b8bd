package ratelimit

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/match"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/policytest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

func hotParams(p Params, most uint32) HotParams {
	return HotParams{Params: p, Subject: policy.SubjectAttachment, MaxValues: most}
}

func with(value string) *policy.Call {
	return &policy.Call{Attachments: [][]byte{nil, []byte(value)}}
}

// hotSet returns the policy of one rule about attachment 1.
func hotSet(p HotParams, observe bool, shared policy.Shared) (*HotRule, *HotSet) {
	r := NewHot("r", p, observe, shared, "x")
	r.SetKey(1)
	return r, NewHotSet([]*HotRule{r}, 2)
}

// TestHotNeverMore: over any schedule, no value gets more than burst + t × rate, over all workers together, as long as no
// more values come than are remembered.
func TestHotNeverMore(t *testing.T) {
	for i, p := range params {
		for _, workers := range []int{0, 1, 3} {
			rng := rand.New(rand.NewPCG(uint64(i), uint64(workers)))
			store := policytest.NewStore()
			var sets []*HotSet
			for _, shared := range store.Workers(workers) {
				_, s := hotSet(hotParams(p, 100_000), false, shared)
				sets = append(sets, s)
			}
			start := policy.Nanos(rng.Int64N(1 << 50))
			now := start
			step := max(p.Interval/policy.Nanos(p.Threshold), 1)
			admitted := make(map[string]int64)
			for range 3000 {
				switch rng.IntN(4) {
				case 0:
					now += policy.Nanos(rng.Int64N(int64(step)*10 + 1))
				case 1:
					now += policy.Nanos(rng.Int64N(int64(step) + 1))
				}
				value := fmt.Sprint("user", rng.IntN(5))
				c := with(value)
				s := sets[rng.IntN(len(sets))]
				v := s.Admit(now, c)
				switch {
				case v.Reject:
					if v.Code != protocol.CodeThrottled || v.RetryAfterMillis == 0 || c.Marks != 0 {
						t.Fatalf("%+v", v)
					}
				case rng.IntN(4) == 0: // another policy rejects it
					s.Done(now, c, policy.Outcome{Result: protocol.OutcomeRejected})
				default:
					s.Done(now, c, policy.Outcome{Result: protocol.OutcomeOK})
					if admitted[value]++; admitted[value] > allowed(p, now-start) {
						t.Fatalf("%+v: %d admitted after %d ns, allowed %d", p, admitted[value], now-start, allowed(p, now-start))
					}
				}
			}
			if len(admitted) != 5 {
				t.Fatalf("%+v: values %v", p, admitted)
			}
		}
	}
}

// TestHotGivesBack: a call that another policy rejects costs its value nothing.
func TestHotGivesBack(t *testing.T) {
	for _, p := range params {
		for _, shared := range []policy.Shared{nil, policytest.NewStore()} {
			_, s := hotSet(hotParams(p, 8), false, shared)
			for range 50 {
				c := with("a")
				if s.Admit(second, c).Reject {
					t.Fatalf("%+v: rejected", p)
				}
				s.Done(second, c, policy.Outcome{Result: protocol.OutcomeRejected})
			}
		}
	}
}

// TestHotIsBounded: whatever values come, the state does not grow beyond what was asked for, and those in use are not the ones
// that are forgotten.
func TestHotIsBounded(t *testing.T) {
	for _, most := range []uint32{1, 100, 1000} {
		store := policytest.NewStore()
		_, s := hotSet(hotParams(Params{1, 1000 * second, 1}, most), false, store)
		own, t2 := hotSet(hotParams(Params{1, 1000 * second, 1}, most), false, nil)
		now := second
		for i := range 50_000 {
			now += 1000
			s.Admit(now, with(fmt.Sprint("v", i)))
			t2.Admit(now, with(fmt.Sprint("v", i)))
		}
		lines := int(most+7) / 8
		if n, size := store.Len(); n != lines+1 || size > lines*(lineLen+100)+100 {
			t.Errorf("%d values: %d lines with %d bytes, want %d", most, n-1, size, lines)
		}
		if len(own.own) != lines {
			t.Errorf("%d values: %d lines without a store", most, len(own.own))
		}
	}
	// One value is used all the time, many others once: it stays throttled.
	_, s := hotSet(hotParams(Params{10, second, 1}, 8), false, policytest.NewStore())
	now, admitted := second, 0
	for i := range 10_000 {
		now += 1_000_000
		if !s.Admit(now, with("hot")).Reject {
			admitted++
		}
		if i%50 == 0 {
			s.Admit(now, with(fmt.Sprint(i)))
		}
	}
	if admitted > 110 {
		t.Errorf("%d of about 100 admitted", admitted)
	}
}

// TestHotValue: values are told apart; a call without one is not limited; an observing rule rejects nothing.
func TestHotValue(t *testing.T) {
	p := hotParams(Params{1, 1000 * second, 1}, 1000)
	_, s := hotSet(p, false, policytest.NewStore())
	for _, value := range []string{"", "a", "b", "ab", "abcdefgh", "abcdefghi", "abcdefgh\x00", "\x00", "abcdefghabcdefgh"} {
		for i, want := range []bool{false, true, true} {
			if s.Admit(second, with(value)).Reject != want {
				t.Errorf("%q, call %d: rejected is not %v", value, i, want)
			}
		}
	}
	for range 3 {
		if s.Admit(second, &policy.Call{Attachments: [][]byte{nil, nil}}).Reject || s.Admit(second, new(policy.Call)).Reject ||
			s.Admit(second, &policy.Call{Attachments: [][]byte{nil, []byte("a")}, Unreadable: true}).Reject {
			t.Error("a call without a value is limited")
		}
	}
	p.Subject = policy.SubjectAddress
	r, s := hotSet(p, true, nil)
	for _, a := range []string{"10.0.0.1", "10.0.0.1", "10.0.0.2"} {
		address, _ := match.ParseAddress([]byte(a))
		if s.Admit(second, &policy.Call{Peer: &policy.Peer{Address: address, AddressKnown: true}}).Reject {
			t.Error("rejected")
		}
	}
	if h := *r.Hits(); h != (policy.Hits{Admitted: 2, WouldReject: 1}) {
		t.Errorf("%+v", h)
	}
	p.Threshold = 0
	if _, s := hotSet(p, false, nil); !s.Admit(second, &policy.Call{Peer: &policy.Peer{AddressKnown: true}}).Reject {
		t.Error("admitted where none is")
	}
}

// TestHotForeignState: shared data that is not ours does no harm; a worker that loses every swap does not admit.
func TestHotForeignState(t *testing.T) {
	for _, v := range []string{"", "x", string(make([]byte, lineLen+1)), string(append([]byte{0: 1, lineLen - 1: 0xff}, make([]byte, 0)...))} {
		store := policytest.NewStore()
		_, s := hotSet(hotParams(Params{1, second, 1}, 8), false, store)
		s.Admit(second, with("b"))
		store.Overwrite([]byte(v))
		if s.Admit(second, with("a")).Reject {
			t.Errorf("%q: rejected", v)
		}
		if !s.Admit(second, with("a")).Reject {
			t.Errorf("%q: admitted twice", v)
		}
	}
	store := policytest.NewStore()
	_, s := hotSet(hotParams(Params{1, second, 1}, 8), false, store)
	s.Admit(second, with("a"))
	store.Lose = attempts
	if !s.Admit(second, with("b")).Reject {
		t.Error("admitted without a token")
	}
}

func TestHotDoesNotAllocate(t *testing.T) {
	for _, shared := range []policy.Shared{nil, new(policytest.Frozen)} {
		_, s := hotSet(hotParams(Params{1000, second, 10}, 8), false, shared)
		now := second
		c := with("some value of some length")
		if n := testing.AllocsPerRun(1000, func() {
			now += 100_000
			s.Admit(now, c)
			s.Done(now, c, policy.Outcome{Result: protocol.OutcomeRejected})
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}
