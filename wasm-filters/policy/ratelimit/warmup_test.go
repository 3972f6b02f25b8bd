package ratelimit

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/policytest"
)

// TestWarmUpRises: under steady demand the rate begins at threshold / factor, rises evenly, and is the threshold after the
// period; after a pause as long it begins again.
func TestWarmUpRises(t *testing.T) {
	for _, p := range []Params{{1000, second, 20}, {100, second, 10}, {20_000, second, 100}, {300, 10 * second, 10}} {
		for _, workers := range []int{0, 1, 4} {
			for _, factor := range []uint32{2, 3, 10} {
				t.Run(fmt.Sprint(p, workers, factor), func(t *testing.T) {
					store := policytest.NewStore()
					w := WarmUp{Period: 20 * second, ColdFactor: factor}
					var sets []Set
					for _, shared := range store.Workers(workers) {
						sets = append(sets, Set{NewWarm("r", p, w, false, shared, "x")})
					}
					rate := float64(p.Threshold) / (float64(p.Interval) / float64(second))
					gap := policy.Nanos(float64(second) / rate / 3)
					now := 1000 * second
					rng := rand.New(rand.NewPCG(1, 2))
					// admitted returns how many calls of steady demand are let through in a time.
					admitted := func(d policy.Nanos) float64 {
						n := 0
						for end := now + d; now < end; now += gap {
							if !sets[rng.IntN(len(sets))].Admit(now, nil).Reject {
								n++
							}
						}
						return float64(n)
					}
					near := func(what string, got, want float64) {
						t.Helper()
						if got > want*1.06+2+float64(p.Burst) || got < want*0.94-2 {
							t.Errorf("%s: %v admitted, want about %v", what, got, want)
						}
					}
					cold := 1 / float64(factor)
					for round := range 2 {
						near("the first quarter", admitted(5*second), 5*rate*(cold+(1-cold)/8))
						near("the second quarter", admitted(5*second), 5*rate*(cold+(1-cold)*3/8))
						near("the second half", admitted(10*second), 10*rate*(cold+(1-cold)*3/4))
						near("warm", admitted(5*second), 5*rate)
						if round == 0 {
							now += 100 * second
						}
					}
				})
			}
		}
	}
}

// TestWarmUpNeverMore: warming up never admits more than a bucket without it.
func TestWarmUpNeverMore(t *testing.T) {
	for i, p := range params {
		for _, workers := range []int{0, 3} {
			rng := rand.New(rand.NewPCG(uint64(i), uint64(workers)))
			store := policytest.NewStore()
			w := WarmUp{policy.Nanos(1 + rng.Int64N(int64(10*second))), uint32(2 + rng.IntN(99))}
			var sets []Set
			for _, shared := range store.Workers(workers) {
				sets = append(sets, Set{NewWarm("r", p, w, false, shared, "x")})
			}
			start := policy.Nanos(rng.Int64N(1 << 50))
			now := start
			step := max(p.Interval/policy.Nanos(p.Threshold), 1)
			admitted := int64(0)
			for range 4000 {
				switch rng.IntN(6) {
				case 0:
					now += policy.Nanos(rng.Int64N(int64(step)*40 + 1))
				case 1:
					now += step
				case 2, 3:
					now += policy.Nanos(rng.Int64N(int64(step) + 1))
				}
				if !sets[rng.IntN(len(sets))].Admit(now, nil).Reject {
					if admitted++; admitted > allowed(p, now-start) {
						t.Fatalf("%+v: %d admitted after %d ns, allowed %d", p, admitted, now-start, allowed(p, now-start))
					}
				}
			}
			if admitted == 0 {
				t.Fatalf("%+v: nothing admitted", p)
			}
		}
	}
}

// TestTokens: the number shown is the number that can be taken.
func TestTokens(t *testing.T) {
	for _, p := range params {
		if p.Burst > 1000 {
			continue
		}
		r := New("r", p, false, nil, "")
		rng := rand.New(rand.NewPCG(3, 4))
		now := second
		for range 200 {
			now += policy.Nanos(rng.Int64N(int64(p.Interval/policy.Nanos(p.Threshold))*3 + 1))
			for left := r.Tokens(now); left > 0; left-- {
				if (Set{r}).Admit(now, nil).Reject || r.Tokens(now) != left-1 {
					t.Fatalf("%+v: %d tokens left, %d announced", p, r.Tokens(now), left)
				}
				if rng.IntN(3) == 0 {
					break
				}
			}
			if r.Tokens(now) == 0 && !(Set{r}).Admit(now, nil).Reject {
				t.Fatalf("%+v: a token that was not announced", p)
			}
		}
	}
	shared := policytest.NewStore()
	r := New("r", Params{10, second, 10}, false, shared, "x")
	(Set{r}).Admit(second, nil)
	if n := New("r", Params{10, second, 10}, false, shared, "x").Tokens(second); n != 9 {
		t.Errorf("another worker sees %d tokens, want 9", n)
	}
	if n := New("none", Params{0, second, 1}, false, shared, "x").Tokens(second); n != 0 {
		t.Errorf("%d tokens of none", n)
	}
}
