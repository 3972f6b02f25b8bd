package filter

import (
	"math/rand/v2"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// TestCalls holds the table to a map, over ids that collide and ids that are consecutive.
func TestCalls(t *testing.T) {
	var p pool[call]
	p.min, p.size = 4, callSize
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var table calls
		model := make(map[uint64]int64)
		r := new(route)
		id := func() uint64 {
			switch rng.IntN(3) {
			case 0:
				return uint64(rng.IntN(50))
			case 1:
				return 1<<63 + uint64(rng.IntN(50))<<32
			default:
				return rng.Uint64N(500)
			}
		}
		for step := range int64(20_000) {
			k := id()
			i := table.find(k)
			start, there := model[k]
			if (i >= 0) != there || there && int64(table.slots[i].start) != start {
				t.Fatalf("seed %d, step %d: id %d at slot %d, model says %v", seed, step, k, i, there)
			}
			switch {
			case there:
				table.remove(i)
				delete(model, k)
			case rng.IntN(3) > 0:
				c := table.add(&p, k)
				c.route, c.start = r, policy.Nanos(step)
				model[k] = step
			}
			if table.n != len(model) {
				t.Fatalf("seed %d, step %d: %d calls, model has %d", seed, step, table.n, len(model))
			}
			if step%1000 == 0 {
				n := 0
				for _, c := range table.slots {
					if c.route != nil {
						n++
					}
				}
				if n != table.n {
					t.Fatalf("seed %d, step %d: %d slots taken, n is %d", seed, step, n, table.n)
				}
			}
		}
		table.release(&p)
		for class := range p.free {
			for _, s := range p.free[class] {
				for _, c := range s[:cap(s)] {
					if c != (call{}) {
						t.Fatal("a table in the pool is not empty")
					}
				}
			}
		}
	}
}

// TestPool: what comes back is large enough, kept up to the bound, and used again.
func TestPool(t *testing.T) {
	var p pool[byte]
	p.min, p.size = 9, 1
	for _, n := range []int{0, 1, 511, 512, 513, 65535, 65536, 65537, 1 << 20} {
		s := p.get(n)
		if len(s) != 0 || cap(s) < n || cap(s) > max(512, 2*n) {
			t.Errorf("get(%d): length %d, capacity %d", n, len(s), cap(s))
		}
		s = p.extend(append(s, 7), 3*n)
		if len(s) != 3*n+1 || s[0] != 7 {
			t.Errorf("extend to %d: length %d", 3*n+1, len(s))
		}
		p.put(s)
	}
	for range 100 {
		p.put(make([]byte, 0, 1<<20))
	}
	if p.kept > poolBytes {
		t.Errorf("%d bytes kept", p.kept)
	}
	if n := testing.AllocsPerRun(100, func() { p.put(p.get(1 << 20)) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	p.put(nil)
	p.put(make([]byte, 0, 700)) // not from here
	if s := p.get(600); cap(s) != 1024 {
		t.Errorf("capacity %d", cap(s))
	}
}
