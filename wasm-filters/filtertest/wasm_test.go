package filtertest_test

import (
	"context"
	"slices"
	"strconv"
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

// TestPoliciesHoldOverWorkers: four workers share the places of a concurrency limit, the buckets of hot values, and a circuit.
func TestPoliciesHoldOverWorkers(t *testing.T) {
	rigs := workers(t, 4, `{"throttle":[{"name":"ten","type":"concurrency","threshold":10,"target":{"service":{"exact":"A"}}},
		{"name":"each","threshold":3,"intervalMillis":60000,"target":{"service":{"exact":"B"}},"hotValues":{"subject":"attachment","key":"tenant"}}],
		"circuitBreaker":[{"name":"circuit","strategy":"errorCount","threshold":20,"minRequestAmount":20,"retryTimeoutMillis":1000,"probeNum":3,"target":{"service":{"exact":"C"}}}]}`)
	w := rigs[0].World()
	var conns []int
	for _, r := range rigs {
		c, err := r.Open(policy.DirectionServer)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	id := 0
	// call sends a request through a worker and tells its id and whether it went through.
	call := func(worker int, f map[string]string) (int, bool) {
		t.Helper()
		id++
		f["id"], f["method"] = strconv.Itoa(id), "m"
		req, err := filtertest.Dubbo("req", f)
		if err != nil {
			t.Fatal(err)
		}
		out, _, err := rigs[worker].Data(conns[worker], filter.Downstream, req, false)
		if err != nil {
			t.Fatal(err)
		}
		return id, len(out) == len(req)
	}
	end := func(worker, id int, kind string, f map[string]string) {
		t.Helper()
		f["id"] = strconv.Itoa(id)
		resp, err := filtertest.Dubbo(kind, f)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := rigs[worker].Data(conns[worker], filter.Upstream, resp, false); err != nil {
			t.Fatal(err)
		}
	}
	running := map[int]int{}
	for i := range 40 {
		if id, ok := call(i%4, map[string]string{"service": "A"}); ok {
			running[id] = i % 4
		}
	}
	if len(running) != 10 {
		t.Errorf("%d calls run at the same time, the limit is 10", len(running))
	}
	for id, worker := range running {
		end(worker, id, "resp", map[string]string{})
	}
	if _, ok := call(3, map[string]string{"service": "A"}); !ok {
		t.Error("no place although all calls have ended")
	}
	admitted := map[string]int{}
	for i := range 60 {
		tenant := strconv.Itoa(i % 3)
		if _, ok := call(i*7%4, map[string]string{"service": "B", ".tenant": tenant}); ok {
			admitted[tenant]++
		}
	}
	if admitted["0"] != 3 || admitted["1"] != 3 || admitted["2"] != 3 {
		t.Errorf("admitted by tenant: %v, the limit is 3", admitted)
	}
	// Twenty errors, five through each worker.
	errors := 0
	for i := range 40 {
		if id, ok := call(i%4, map[string]string{"service": "C"}); ok {
			errors++
			end(i%4, id, "resp", map[string]string{"status": "80"})
		}
		w.Clock += 11_000_000
	}
	if errors < 20 || errors > 23 {
		t.Errorf("the circuit opened after %d errors, is to after 20", errors)
	}
	w.Clock += 1_000_000_000
	var probes [][2]int
	for i := range 40 {
		if id, ok := call(i%4, map[string]string{"service": "C"}); ok {
			probes = append(probes, [2]int{i % 4, id})
		}
	}
	if len(probes) != 3 {
		t.Errorf("%d probes, want 3", len(probes))
	}
	for _, p := range probes {
		end(p[0], p[1], "resp", map[string]string{})
	}
	w.Clock += 10_000_000
	for worker := range rigs {
		if _, ok := call(worker, map[string]string{"service": "C"}); !ok {
			t.Errorf("worker %d has not learned that the circuit is closed", worker)
		}
		if err := rigs[worker].Tick(); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.Metric(`isthmus_rule_running_calls{rpc_rule_kind="throttle",rpc_rule_name="ten"}`); got != 1 {
		t.Errorf("the metric says %d calls run, 1 does", got)
	}
}

// TestDelayTimer: a delayed call sets the timer to when it is due, of several the first; without one it goes back to its second.
func TestDelayTimer(t *testing.T) {
	rig := workers(t, 1, `{"faultInjection":[{"name":"a","target":{"method":{"exact":"a"}},"delayMillis":300},{"name":"b","delayMillis":120}]}`)[0].(*filtertest.Wasm)
	c, err := rig.Open(policy.DirectionClient)
	if err != nil {
		t.Fatal(err)
	}
	send := func(method string) {
		t.Helper()
		req, err := filtertest.Bolt("req", map[string]string{"id": method, "service": "S", "method": method})
		if err != nil {
			t.Fatal(err)
		}
		out, _, err := rig.Data(c, filter.Downstream, req, false)
		if err != nil || len(out) != 0 {
			t.Fatalf("%d bytes go on, %v", len(out), err)
		}
	}
	for i, step := range []struct {
		send     string
		advance  policy.Nanos
		timer    uint32
		released int
	}{{"a", 0, 300, 0}, {"b", 0, 120, 0}, {"", 100, 20, 0}, {"", 20, 180, 1}, {"a", 0, 180, 0}, {"", 180, 120, 1}, {"", 120, 1000, 1}, {"", 1000, 1000, 0}} {
		if step.send != "" {
			send(step.send)
		} else {
			rig.World().Clock += step.advance * 1_000_000
			if err := rig.Tick(); err != nil {
				t.Fatal(err)
			}
		}
		if got := rig.Timer(); got != step.timer {
			t.Errorf("step %d: the timer is set to %d ms, want %d", i, got, step.timer)
		}
		if got := len(rig.Released()); got != step.released {
			t.Errorf("step %d: %d connections released something, want %d", i, got, step.released)
		}
	}
}

// TestQuotaTimer: the first call sets the timer to when a rate limit service is told of it, an answer to when it is told of the calls since; without calls
// it goes back to its second.
func TestQuotaTimer(t *testing.T) {
	rig := workers(t, 1, `{"throttle":[{"name":"a","threshold":1000,"global":{"cluster":"limits","syncMillis":50}}]}`)[0].(*filtertest.Wasm)
	c, err := rig.Open(policy.DirectionClient)
	if err != nil {
		t.Fatal(err)
	}
	call := func() {
		t.Helper()
		req, err := filtertest.Bolt("oneway", map[string]string{"id": "1", "service": "S", "method": "m"})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := rig.Data(c, filter.Downstream, req, false); err != nil {
			t.Fatal(err)
		}
	}
	tick := func(millis policy.Nanos) {
		t.Helper()
		rig.World().Clock += millis * 1_000_000
		if err := rig.Tick(); err != nil {
			t.Fatal(err)
		}
	}
	answer := func(token uint32) {
		t.Helper()
		// One answer without a limit.
		if err := rig.Answer(token, []byte{0x12, 2, 8, 1}); err != nil {
			t.Fatal(err)
		}
	}
	for i, step := range []struct {
		do    func()
		timer uint32
		asked int
	}{
		{call, 1, 0}, // nothing has been asked yet: at once
		{func() { tick(1) }, 1000, 1},
		{func() { call(); call() }, 1000, 0}, // an answer is waited for
		{func() { tick(20) }, 1000, 0},       // somebody else's timer
		{func() { answer(1) }, 30, 0},        // of those 50 ms
		{func() { tick(30) }, 1000, 1},       //
		{func() { answer(2) }, 1000, 0},      // nothing more to tell
		{func() { tick(10); call() }, 40, 0}, //
		{func() { tick(40) }, 1000, 1},       //
		{func() { tick(1500) }, 500, 0},      // given up after two seconds
		{func() { tick(500) }, 1000, 0},      //
		{func() { tick(1000) }, 1000, 1},     // and told again a second later
	} {
		step.do()
		if got := rig.Timer(); got != step.timer {
			t.Errorf("step %d: the timer is set to %d ms, want %d", i, got, step.timer)
		}
		if got := len(rig.World().Questions()); got != step.asked {
			t.Errorf("step %d: asked %d times, want %d", i, got, step.asked)
		}
	}
}

// TestMemoryIsBounded: connections come and go, with calls in flight and with frames cut anywhere, and the module's memory stays as
// it is, although it never shrinks.
func TestMemoryIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a second")
	}
	rig := workers(t, 1, mixed())[0].(*filtertest.Wasm)
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
