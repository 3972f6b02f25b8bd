package ratelimit

import (
	"fmt"
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/policytest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

const second = policytest.Second

// allowed is burst + elapsed × threshold / interval, rounded down, exactly.
func allowed(p Params, elapsed policy.Nanos) int64 {
	n := new(big.Int).Mul(big.NewInt(int64(elapsed)), big.NewInt(int64(p.Threshold)))
	n.Div(n, big.NewInt(int64(p.Interval)))
	n.Add(n, big.NewInt(int64(p.Burst)))
	if !n.IsInt64() {
		return 1 << 62
	}
	return n.Int64()
}

var params = []Params{
	{1, second, 1}, {3, second, 1}, {3, second, 5}, {7, 10 * second, 7}, {1000, second, 1000}, {999, second, 10}, {100_000, second, 1},
	{1 << 31, second, 1}, {4_294_967_295, 1_000_000, 4_294_967_295}, {4_294_967_295, 86_400 * second, 4_294_967_295}, {1, 86_400 * second, 4_294_967_295},
	{700_000_001, second, 3}, {13, 1_000_000, 2},
}

// TestNeverMore is the promise of the package: over any schedule, from the beginning on, no more than burst + t × rate; for one
// worker without shared data over every stretch of time; for several, with what they had in hand when the stretch began.
func TestNeverMore(t *testing.T) {
	for i, p := range params {
		for _, workers := range []int{0, 1, 2, 4, 9} {
			t.Run(fmt.Sprintf("%d/%d workers", i, workers), func(t *testing.T) {
				rng := rand.New(rand.NewPCG(uint64(i), uint64(workers)))
				var sets []Set
				for _, shared := range policytest.NewStore().Workers(workers) {
					sets = append(sets, Set{New("r", p, false, shared, "x")})
				}
				start := policy.Nanos(rng.Int64N(1 << 50))
				now := start
				step := max(p.Interval/policy.Nanos(p.Threshold), 1)
				type admission struct{ at policy.Nanos }
				var admitted []admission
				for range 4000 {
					switch rng.IntN(8) {
					case 0:
						now += policy.Nanos(rng.Int64N(int64(step)*40 + 1))
					case 1:
						now += step
					case 2, 3:
						now += policy.Nanos(rng.Int64N(int64(step) + 1))
					case 4:
						if rng.IntN(50) == 0 {
							now += policy.Nanos(rng.Int64N(int64(p.Interval) * 3))
						}
					}
					if !sets[rng.IntN(len(sets))].Admit(now, nil).Reject {
						admitted = append(admitted, admission{now})
						if n := int64(len(admitted)); n > allowed(p, now-start) {
							t.Fatalf("%d admitted after %d ns, allowed %d", n, now-start, allowed(p, now-start))
						}
					}
				}
				if len(admitted) == 0 {
					t.Fatal("nothing admitted")
				}
				if workers == 0 {
					for a := range admitted {
						for b := a; b < min(len(admitted), a+300); b++ {
							if n, most := int64(b-a+1), allowed(p, admitted[b].at-admitted[a].at); n > most {
								t.Fatalf("%d admitted within %d ns, allowed %d", n, admitted[b].at-admitted[a].at, most)
							}
						}
					}
				}
			})
		}
	}
}

// TestNotLess: under steady demand the limit is used to the full, to a hundredth, however many workers share it and however
// unevenly the calls fall on them.
func TestNotLess(t *testing.T) {
	for _, p := range []Params{{10, second, 1}, {100, second, 100}, {1000, second, 10}, {10_000, second, 100}, {10_000, second, 10_000}} {
		for _, workers := range []int{1, 4} {
			for _, skew := range []bool{false, true} {
				t.Run(fmt.Sprint(p, workers, skew), func(t *testing.T) {
					rng := rand.New(rand.NewPCG(1, 2))
					shared := policytest.NewStore()
					var sets []Set
					for range workers {
						sets = append(sets, Set{New("r", p, false, shared, "x")})
					}
					// Twice the limit arrives, evenly spaced, for ten seconds.
					const seconds = 10
					n := int64(p.Threshold) * 2 * seconds
					gap := seconds * int64(second) / n
					admitted := int64(0)
					for i := range n {
						w := rng.IntN(workers)
						if skew && rng.IntN(10) > 0 {
							w = 0
						}
						if !sets[w].Admit(policy.Nanos(int64(second)+i*gap), nil).Reject {
							admitted++
						}
					}
					want := allowed(p, seconds*second)
					if admitted > want || admitted < want*99/100-1 {
						t.Errorf("%d of %d admitted", admitted, want)
					}
					t.Logf("%d of %d, %d host calls for %d calls", admitted, want, shared.Calls, n)
				})
			}
		}
	}
}

// TestLeaseSavesHostCalls: far below its limit, a worker asks the host seldom; a rejected call does not ask it at all.
func TestLeaseSavesHostCalls(t *testing.T) {
	shared := policytest.NewStore()
	s := Set{New("r", Params{1_000_000_000, second, 1_000_000_000}, false, shared, "x")}
	now := second
	for range 100_000 {
		now += 10_000 // 100,000 calls a second
		if s.Admit(now, nil).Reject {
			t.Fatal("rejected")
		}
	}
	if shared.Calls > 1000 {
		t.Errorf("%d host calls in a second of 100,000 calls", shared.Calls)
	}
	shared = policytest.NewStore()
	s = Set{New("r", Params{1, 10 * second, 1}, false, shared, "x")}
	s.Admit(now, nil)
	before := shared.Calls
	s.Admit(now, nil) // learns that there is none
	between := shared.Calls
	for range 1000 {
		if !s.Admit(now+second, nil).Reject {
			t.Fatal("admitted")
		}
	}
	if shared.Calls != between || between-before > 2 {
		t.Errorf("%d + %d host calls for rejected calls", between-before, shared.Calls-between)
	}
}

// TestHeldUp: a worker that is held up again and again for longer than a lease lives costs the limit nothing.
func TestHeldUp(t *testing.T) {
	p := Params{5000, second, 5000}
	shared := policytest.NewStore()
	sets := []Set{{New("r", p, false, shared, "x")}, {New("r", p, false, shared, "x")}}
	rng := rand.New(rand.NewPCG(1, 1))
	start, admitted := second, int64(0)
	now := start
	for pause := policy.Nanos(0); now < start+10*second; pause = 25_000_000 + policy.Nanos(rng.Int64N(50_000_000)) {
		now += pause
		// While both stood still tokens came in; of what they take then one of them uses little before it is held up again.
		for i := range 2000 {
			if w := min(i%2+i/100, 1); !sets[w].Admit(now, nil).Reject {
				admitted++
			}
			now += 1000
		}
	}
	if want := allowed(p, now-start); admitted > want || admitted < want*999/1000 {
		t.Errorf("%d of %d admitted", admitted, want)
	}
}

// TestLostLease: what a worker took and did not use is at most one lease.
func TestLostLease(t *testing.T) {
	shared := policytest.NewStore()
	p := Params{1000, second, 1000}
	idle, busy := Set{New("r", p, false, shared, "x")}, Set{New("r", p, false, shared, "x")}
	now := second
	for range 100 {
		idle.Admit(now, nil) // its leases grow
		now += 100_000
	}
	now += 100 * leaseLife // what it had is lost; the bucket is full again
	admitted := 0
	for range 2000 {
		if !busy.Admit(now, nil).Reject {
			admitted++
		}
	}
	if lease := int(idle[0].bucket.largest); admitted < 1000-lease || admitted > 1000 {
		t.Errorf("%d admitted of a full bucket of 1000, lease %d", admitted, lease)
	}
}

// TestContention: a worker that loses every swap gives up without admitting, one that loses some tries on.
func TestContention(t *testing.T) {
	shared := policytest.NewStore()
	s := Set{New("r", Params{10, second, 10}, false, shared, "x")}
	shared.Lose = attempts
	if !s.Admit(second, nil).Reject {
		t.Error("admitted without a token")
	}
	shared.Lose = attempts - 1
	if s.Admit(second, nil).Reject {
		t.Error("rejected although a token was there")
	}
}

// TestForeignState: shared data that is not ours does no harm.
func TestForeignState(t *testing.T) {
	for _, v := range []string{"", "x", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff", "0123456789abcdef"} {
		shared := policytest.NewStore()
		r := New("r", Params{1, second, 1}, false, shared, "x")
		shared.Overwrite([]byte(v))
		if (Set{r}).Admit(second, nil).Reject {
			t.Errorf("%q: rejected", v)
		}
		if !(Set{r}).Admit(second, nil).Reject {
			t.Errorf("%q: admitted twice", v)
		}
	}
}

func TestThresholdZero(t *testing.T) {
	for _, shared := range []policy.Shared{nil, policytest.NewStore()} {
		s := Set{New("none", Params{0, second, 1}, false, shared, "x")}
		v := s.Admit(second, nil)
		if want := (policy.Verdict{Reject: true, Code: protocol.CodeThrottled, Rule: "none"}); v != want {
			t.Errorf("got %+v, want %+v", v, want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	s := Set{New("r", Params{2, second, 1}, false, nil, "")}
	s.Admit(second, nil)
	for _, c := range []struct {
		after policy.Nanos
		want  uint32
	}{{0, 500}, {1, 500}, {1_000_000, 499}, {499_999_999, 1}} {
		if v := s.Admit(second+c.after, nil); !v.Reject || v.RetryAfterMillis != c.want {
			t.Errorf("after %d ns: %+v, want %d ms", c.after, v, c.want)
		}
	}
	if s.Admit(second+500_000_000, nil).Reject {
		t.Error("rejected at the time that was announced")
	}
}

// TestAllOrNone: where several rules match, the smallest limit decides, and a call that it rejects costs the others nothing.
func TestAllOrNone(t *testing.T) {
	for _, shared := range []policy.Shared{nil, policytest.NewStore()} {
		small := New("small", Params{1, second, 1}, false, shared, "x")
		large := New("large", Params{3, second, 3}, false, shared, "x")
		watch := New("watch", Params{1, 100 * second, 1}, true, shared, "x")
		s := Set{large, watch, small}
		now := second
		for i, want := range []string{"", "small", "small", ""} {
			if i == 3 {
				now += second
			}
			if v := s.Admit(now, nil); v.Rule != want || v.Reject != (want != "") {
				t.Errorf("call %d: %+v, want rule %q", i, v, want)
			}
		}
		if got, want := [3]policy.Hits{*small.Hits(), *large.Hits(), *watch.Hits()}, [3]policy.Hits{{Admitted: 2, Rejected: 2}, {Admitted: 2}, {Admitted: 1, WouldReject: 1}}; got != want {
			t.Errorf("hits %+v, want %+v", got, want)
		}
		// A second refilled large, and the last call took one: two of three tokens are there if the rejected calls took none.
		for i, want := range []bool{false, false, true} {
			if (Set{large}).Admit(now, nil).Reject != want {
				t.Errorf("call %d: rejected is not %v", i, want)
			}
		}
	}
}

func TestAdmitDoesNotAllocate(t *testing.T) {
	for _, shared := range []policy.Shared{nil, new(policytest.Frozen)} {
		s := Set{New("a", Params{1000, second, 10}, false, shared, "x"), New("b", Params{10, second, 1}, true, shared, "x")}
		now := second
		if n := testing.AllocsPerRun(1000, func() { now += 1_000_000; s.Admit(now, nil) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

func BenchmarkAdmit(b *testing.B) {
	for _, n := range []int{1, 3} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var s Set
			for i := range n {
				s = append(s, New(fmt.Sprint(i), Params{1_000_000_000, second, 1_000_000_000}, false, policytest.NewStore(), "x"))
			}
			b.ReportAllocs()
			now := second
			for b.Loop() {
				now += 1000
				s.Admit(now, nil)
			}
		})
	}
}
