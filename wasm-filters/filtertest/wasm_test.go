package filtertest_test

import (
	"context"
	"slices"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/filter"
	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// workers makes rigs that share a world, as the workers of one Envoy do.
func workers(t *testing.T, n int, conf string) []filtertest.Rig {
	t.Helper()
	e, err := engine()
	if err != nil {
		t.Fatal(err)
	}
	w := new(filtertest.World)
	w.Clock = 1_000_000_000
	var rigs []filtertest.Rig
	for range n {
		r, err := e.NewRig(context.Background(), w)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Configure(conf); err != nil {
			t.Fatal(err)
		}
		rigs = append(rigs, r)
	}
	return rigs
}

// TestLimitHoldsOverWorkers: four workers together admit what one limit allows, to a hundredth, and never more.
func TestLimitHoldsOverWorkers(t *testing.T) {
	rigs := workers(t, 4, `{"throttle":[{"name":"t","threshold":1000,"burst":50}]}`)
	req, _ := frames(t, protocols[0].Codec.Name())
	var conns []int
	for _, r := range rigs {
		c, err := r.Open(policy.DirectionServer)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	w := rigs[0].World()
	admitted := 0
	const seconds, rate = 3, 4000
	for i := range seconds * rate {
		k := i % 7 % len(rigs) // not evenly
		out, _, err := rigs[k].Data(conns[k], filter.Downstream, req, false)
		if err != nil {
			t.Fatal(err)
		}
		if len(out) == len(req) {
			admitted++
		}
		w.Clock += 1_000_000_000 / rate
	}
	if most := seconds*1000 + 50; admitted > most || admitted < most*99/100 {
		t.Errorf("%d admitted, the limit is %d", admitted, most)
	}
	for _, r := range rigs {
		if err := r.Tick(); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.Metric(`isthmus_rule_hits_total{rpc_rule_kind="throttle",rpc_rule_name="t",rpc_rule_action="admit"}`); int(got) != admitted {
		t.Errorf("the metric says %d admitted, %d were", got, admitted)
	}
}

// TestMemoryIsBounded: connections come and go, with calls in flight and with frames cut anywhere, and the module's memory stays as
// it is, although it never shrinks.
func TestMemoryIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a second")
	}
	rig := workers(t, 1, `{"throttle":[{"name":"t","target":{"service":{"prefix":"demo."}},"threshold":100}]}`)[0].(*filtertest.Wasm)
	for _, p := range protocols {
		req, resp := frames(t, p.Codec.Name())
		cycle := func(n int) {
			for i := range n {
				c, err := rig.Open(policy.DirectionClient)
				if err != nil {
					t.Fatal(err)
				}
				for k := range 20 {
					at := 8
					if p.Codec.Name() == "dubbo" {
						at = 11
					}
					req, resp := slices.Clone(req), slices.Clone(resp)
					req[at], resp[at] = byte(k), byte(k)
					cut := (i*31 + k*17) % len(req)
					for _, b := range [][]byte{req[:cut], req[cut:]} {
						if _, _, err := rig.Data(c, filter.Downstream, b, false); err != nil {
							t.Fatal(err)
						}
					}
					if k%2 == 0 {
						if _, _, err := rig.Data(c, filter.Upstream, resp, false); err != nil {
							t.Fatal(err)
						}
					}
				}
				if i%3 > 0 {
					if _, _, err := rig.Data(c, filter.Downstream, req[:30], false); err != nil {
						t.Fatal(err)
					}
				}
				if err := rig.Close(c); err != nil {
					t.Fatal(err)
				}
				if i%100 == 0 {
					rig.World().Clock += 1_000_000_000
					if err := rig.Tick(); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		cycle(500)
		before := rig.MemoryBytes()
		cycle(1000)
		if after := rig.MemoryBytes(); after > before {
			t.Errorf("%s: memory grew from %d to %d bytes", p.Codec.Name(), before, after)
		}
		t.Logf("%s: %d bytes of memory", p.Codec.Name(), rig.MemoryBytes())
	}
}

// TestFail: after a defect of the filter's own the connection passes unread, and what was held goes on.
func TestFail(t *testing.T) {
	n := filtertest.NewNative(new(filtertest.World), protocols)
	if err := n.Configure(`{"throttle":[{"name":"t","threshold":0}]}`); err != nil {
		t.Fatal(err)
	}
	c := n.Conn(policy.DirectionClient)
	req, resp := frames(t, protocols[0].Codec.Name())
	var b filtertest.Scratch
	b.Set(req[:30])
	c.Data(filter.Downstream, &b, 30, false)
	if len(b.Bytes()) != 0 {
		t.Fatal("nothing is held")
	}
	c.Fail()
	b.Set(req[30:])
	c.Data(filter.Downstream, &b, len(req)-30, false)
	if !slices.Equal(b.Bytes(), req) {
		t.Error("what was held did not go on")
	}
	b.Set(resp)
	c.Data(filter.Upstream, &b, len(resp), false)
	if !slices.Equal(b.Bytes(), resp) {
		t.Error("the response changed")
	}
	n.World().Clock += 1_000_000_000
	if err := n.Tick(); err != nil {
		t.Fatal(err)
	}
	if len(n.World().Metrics("isthmus_filter_faults_total")) != 1 {
		t.Error(n.World().Metrics())
	}
}
