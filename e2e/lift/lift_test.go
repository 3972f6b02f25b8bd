package lift_test

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/e2e/peer"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

func filterFile(t testing.TB) string {
	t.Helper()
	return peer.Need(t, peer.Filter)[peer.Filter].Path
}

// everything is a route of all calls.
func everything(to object) []object {
	return []object{{"match": object{"prefix": "/"}, "route": to}}
}

// method is a route of one method's calls.
func method(name string, action string, to object) object {
	return object{"match": object{"path": "/" + service + "/" + name}, action: to}
}

// wantOK fails the test if a call did not work.
func wantOK(t testing.TB, b []byte, f protocol.Frame) {
	t.Helper()
	if f.Outcome != protocol.OutcomeOK {
		t.Fatalf("call %d: %s %q", f.ID, f.Outcome, b)
	}
}

// TestSidecars is the way of a call through two sidecars: it is lifted at the caller, and lowered at the provider, whose port takes
// plain calls all the same.
func TestSidecars(t *testing.T) {
	file := filterFile(t)
	p := startProvider(t, nil)
	in, out := freePort(t), freePort(t)
	e := startEnvoy(t,
		[]object{
			listener(in, "OUTBOUND", wasm(file, "lift", `{"lift":{}}`), manager(everything(object{"cluster": "up"}))),
			listener(out, "INBOUND", wasm(file, "lower", `{"lower":{"heartbeatMillis":1500}}`), tcpProxy("provider")),
		},
		[]object{upstream("up", out), plain("provider", p.port())})
	c := dial(t, in)
	for id := uint64(1); id < 4; id++ {
		b, f := c.call(id)
		wantOK(t, b, f)
	}
	if n := p.conns.Load(); n != 1 {
		t.Errorf("%d connections to the provider", n)
	}
	// Many callers share the provider's connection, and choose the same ids.
	var clients []*client
	for range 20 {
		clients = append(clients, dial(t, in))
	}
	for _, c := range clients {
		c.send(append(frame("req", 7), frame("req", 8, "size", "3000")...))
	}
	for _, c := range clients {
		seen := map[uint64]bool{}
		for range 2 {
			b, f := c.receive()
			wantOK(t, b, f)
			seen[f.ID] = true
		}
		if !seen[7] || !seen[8] {
			t.Errorf("answered: %v", seen)
		}
	}
	if n := p.conns.Load(); n != 1 {
		t.Errorf("%d connections to the provider", n)
	}
	// A heartbeat is answered without a stream, and a one-way call without a response.
	streams := e.stat(t, "http.hcm.downstream_rq_total")
	c.send(frame("hb", 77))
	if _, f := c.receive(); f.Kind != protocol.KindHeartbeatAck || f.ID != 77 {
		t.Errorf("a heartbeat is answered by %v %d", f.Kind, f.ID)
	}
	if n := e.stat(t, "http.hcm.downstream_rq_total"); n != streams {
		t.Errorf("a heartbeat made %d requests", n-streams)
	}
	c.send(append(frame("oneway", 78), frame("req", 79)...))
	if _, f := c.receive(); f.ID != 79 {
		t.Errorf("%v %d came first", f.Kind, f.ID)
	}
	if n := p.oneWays.Load(); n != 1 {
		t.Errorf("%d one-way calls arrived", n)
	}
	// The one-way call's stream ends too, although nothing comes back for it: the provider is asked for a heartbeat.
	e.await(t, "/stats?filter=downstream_rq_active", "http.hcm.downstream_rq_active: 0")
	// A plain caller, at the provider's port.
	b, f := dial(t, out).call(5)
	wantOK(t, b, f)
	// An idle provider gets heartbeats, although no bytes come that could carry them.
	asked := p.heartbeats.Load()
	for deadline := time.Now().Add(90 * time.Second); p.heartbeats.Load() < asked+2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no heartbeats to an idle provider")
		}
	}
}

// twoVersions starts providers of two versions without sidecars, and an Envoy in which routes lead to the clusters v1 and v2.
func twoVersions(t *testing.T, v1, v2 *provider, routes []object, filters ...object) (port int, e *envoy) {
	t.Helper()
	file := filterFile(t)
	in := freePort(t)
	e = startEnvoy(t,
		[]object{
			listener(in, "OUTBOUND", wasm(file, "lift", `{"lift":{"attachments":["tenant"]}}`), manager(routes, filters...)),
			egressListener(wasm(file, "lower", `{"lower":{}}`)),
		},
		[]object{egress("v1", v1.port()), egress("v2", v2.port()), egress("both", v1.port(), v2.port()), egress("none"), originalCluster()})
	return in, e
}

// TestWeights: the calls of one connection are split 80 to 20, within what 99.9 % of fair splits stay in; and a header that is an
// attachment chooses.
func TestWeights(t *testing.T) {
	v1, v2 := startProvider(t, nil), startProvider(t, nil)
	in, _ := twoVersions(t, v1, v2, []object{
		{"match": object{"prefix": "/", "headers": []object{{"name": "x-isthmus-attachment-tenant", "string_match": object{"exact": "gold"}}}}, "route": object{"cluster": "v2"}},
		{"match": object{"prefix": "/"}, "route": object{"weighted_clusters": object{"clusters": []object{
			{"name": "v1", "weight": 80}, {"name": "v2", "weight": 20}}}}},
	})
	const calls = 4000
	l := load{conns: 1, inFlight: 16, size: 1024, calls: calls}
	l.run(t, in)
	n := float64(v2.calls.Load())
	if off, limit := math.Abs(n-0.2*calls), 3.29*math.Sqrt(calls*0.2*0.8); off > limit {
		t.Errorf("v2 got %v of %d calls, %v off", n, calls, off)
	}
	if all := v1.calls.Load() + v2.calls.Load(); all != calls {
		t.Errorf("%d calls arrived", all)
	}
	if v1.conns.Load() != 1 || v2.conns.Load() != 1 {
		t.Errorf("%d and %d connections", v1.conns.Load(), v2.conns.Load())
	}
	c := dial(t, in)
	before := v1.calls.Load()
	for id := range uint64(50) {
		b, f := c.call(id, "tenant", "gold")
		wantOK(t, b, f)
	}
	if v1.calls.Load() != before {
		t.Errorf("%d calls of tenant gold went to v1", v1.calls.Load()-before)
	}
}

// TestRetry: one of two providers is full, and the caller sees none of it. What the business code throws is no failure.
func TestRetry(t *testing.T) {
	full := startProvider(t, func(_ []byte, f protocol.Frame, _ func([]byte)) []byte { return frame("resp", f.ID, "status", "100") })
	threw := startProvider(t, func(_ []byte, f protocol.Frame, _ func([]byte)) []byte { return frame("fail", f.ID) })
	in, e := twoVersions(t, full, threw, everything(object{"cluster": "both", "retry_policy": object{"retry_on": "5xx", "num_retries": 2,
		"retry_host_predicate": []object{{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": object{
			"@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}},
		"host_selection_retry_max_attempts": 5}}))
	c := dial(t, in)
	const calls = 200
	for id := range uint64(calls) {
		if b, f := c.call(id); f.Outcome != protocol.OutcomeException {
			t.Fatalf("call %d: %s %q", id, f.Outcome, b)
		}
	}
	if full.calls.Load() == 0 || threw.calls.Load() != calls {
		t.Errorf("%d calls met the full provider, %d the other", full.calls.Load(), threw.calls.Load())
	}
	if n := e.stat(t, "cluster.both.upstream_rq_retry_success"); n != int(full.calls.Load()) {
		t.Errorf("%d successful retries of %d", n, full.calls.Load())
	}
}

// TestLocalReplies: what Envoy answers by itself becomes the protocol's own error, which says what it was.
func TestLocalReplies(t *testing.T) {
	slow := startProvider(t, func(_ []byte, f protocol.Frame, reply func([]byte)) []byte {
		time.AfterFunc(3*time.Second, func() { reply(frame("resp", f.ID)) })
		return nil
	})
	dead := startProvider(t, func([]byte, protocol.Frame, func([]byte)) []byte { panic("not to be called") })
	dead.ln.Close()
	in, e := twoVersions(t, slow, dead, []object{
		method("limited", "direct_response", object{"status": 429, "body": object{"inline_string": "local_rate_limited"}}),
		method("denied", "route", object{"cluster": "v1"}),
		method("faulty", "route", object{"cluster": "v1"}),
		method("nobody", "route", object{"cluster": "none"}),
		method("dead", "route", object{"cluster": "v2"}),
		method("limitedTime", "route", object{"cluster": "v1", "timeout": "0.2s"}),
		method("nowhere", "route", object{"cluster": "outbound|20880|v9|" + host}), // as istiod writes a subset that there is not
	},
		object{"name": "rbac", "typed_config": object{"@type": httpFilters + "rbac.v3.RBAC", "rules": object{"action": "DENY", "policies": object{
			"p": object{"permissions": []object{{"url_path": object{"path": object{"exact": "/" + service + "/denied"}}}}, "principals": []object{{"any": true}}}}}}},
		object{"name": "fault", "typed_config": object{"@type": httpFilters + "fault.v3.HTTPFault",
			"headers": []object{{"name": "x-isthmus-method", "string_match": object{"exact": "faulty"}}},
			"abort":   object{"http_status": 418, "percentage": object{"numerator": 100}}}})
	c := dial(t, in)
	for name, want := range map[string]struct {
		outcome protocol.Outcome
		text    string
	}{
		"limited":     {protocol.OutcomeOverload, "isthmus: throttled: 429 local_rate_limited"},
		"denied":      {protocol.OutcomeError, "isthmus: denied: 403 RBAC: access denied"},
		"faulty":      {protocol.OutcomeError, "isthmus: aborted: 418 fault filter abort"},
		"nobody":      {protocol.OutcomeError, "isthmus: unavailable: 503 no healthy upstream"},
		"dead":        {protocol.OutcomeError, "isthmus: unavailable: 503 upstream connect error"},
		"limitedTime": {protocol.OutcomeTimeout, "isthmus: timeout: 504 "},
		"nowhere":     {protocol.OutcomeError, "isthmus: unavailable: 503 "},
		"unknown":     {protocol.OutcomeError, "isthmus: unavailable: 404 no route"},
	} {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			b, f := c.call(uint64(len(name)), "method", name, "timeout", "300")
			if f.Outcome != want.outcome || !bytes.Contains(b, []byte(want.text)) {
				t.Errorf("%s %q, want %s %q", f.Outcome, b, want.outcome, want.text)
			}
			if d := time.Since(begin); d > 2*time.Second {
				t.Errorf("it took %v", d)
			}
		})
	}
	// A service that no virtual host is for.
	if b, f := c.call(99, "service", "demo.Other"); f.Outcome != protocol.OutcomeError || !bytes.Contains(b, []byte("isthmus: unavailable: 404 no route")) {
		t.Errorf("%s %q", f.Outcome, b)
	}
	e.await(t, "/stats?filter=downstream_rq_active", "http.hcm.downstream_rq_active: 0")
}

// TestDeadline: a call that its caller no longer waits for is given up within a second or so, and its response goes nowhere. Where Envoy
// trusts its client's headers, it keeps the caller's deadline itself.
func TestDeadline(t *testing.T) {
	file := filterFile(t)
	slow := startProvider(t, func(_ []byte, f protocol.Frame, reply func([]byte)) []byte {
		time.AfterFunc(4*time.Second, func() { reply(frame("resp", f.ID)) })
		return nil
	})
	in, trusted := freePort(t), freePort(t)
	route := everything(object{"cluster": "v1", "timeout": "0s"})
	trusting := manager(route)
	trusting["typed_config"].(object)["use_remote_address"] = true
	trusting["typed_config"].(object)["internal_address_config"] = object{"cidr_ranges": []object{{"address_prefix": "127.0.0.0", "prefix_len": 8}}}
	e := startEnvoy(t, []object{listener(in, "OUTBOUND", wasm(file, "lift", `{"lift":{}}`), manager(route)),
		listener(trusted, "OUTBOUND", wasm(file, "lift", `{"lift":{}}`), trusting), egressListener(wasm(file, "lower", `{"lower":{}}`))},
		[]object{egress("v1", slow.port()), originalCluster()})
	c := dial(t, trusted)
	begin := time.Now()
	b, f := c.call(1, "timeout", "300")
	if d := time.Since(begin); f.Outcome != protocol.OutcomeTimeout || !bytes.Contains(b, []byte("isthmus: timeout: 504")) || d > 2*time.Second {
		t.Errorf("%s %q after %v", f.Outcome, b, d)
	}
	c = dial(t, in)
	c.send(frame("req", 2, "timeout", "300"))
	e.await(t, "/stats?filter=downstream_rq_rx_reset", "http.hcm.downstream_rq_rx_reset: 1")
	if d := time.Since(begin); d > 4*time.Second {
		t.Errorf("given up after %v", d)
	}
	b, f = c.call(3)
	wantOK(t, b, f)
}

// TestProviderDies: a provider goes away with a thousand calls in flight; each caller gets its error, once, and what another provider has goes on.
func TestProviderDies(t *testing.T) {
	const callers, each = 4, 250
	var mu sync.Mutex
	n := 0
	die := make(chan struct{})
	p := startProvider(t, func([]byte, protocol.Frame, func([]byte)) []byte {
		mu.Lock()
		defer mu.Unlock()
		if n++; n == callers*each {
			close(die)
		}
		return nil
	})
	answer := make(chan func(), callers)
	other := startProvider(t, func(_ []byte, f protocol.Frame, reply func([]byte)) []byte {
		answer <- func() { reply(frame("resp", f.ID)) }
		return nil
	})
	in, _ := twoVersions(t, p, other, []object{method("other", "route", object{"cluster": "v2"}), {"match": object{"prefix": "/"}, "route": object{"cluster": "v1"}}})
	var clients []*client
	for range callers {
		c := dial(t, in)
		clients = append(clients, c)
		c.send(frame("req", each, "method", "other"))
		for id := range uint64(each) {
			c.send(frame("req", id))
		}
	}
	<-die
	p.closeAll()
	for _, c := range clients {
		seen := map[uint64]bool{}
		for range each {
			b, f := c.receive()
			if seen[f.ID] || f.ID == each || f.Outcome != protocol.OutcomeError || !bytes.Contains(b, []byte("isthmus: unavailable: 503 upstream connect error or disconnect/reset")) {
				t.Fatalf("call %d, %v: %s %q", f.ID, seen[f.ID], f.Outcome, b)
			}
			seen[f.ID] = true
		}
		c.nothingElse()
	}
	for range clients {
		(<-answer)()
	}
	for _, c := range clients {
		b, f := c.receive()
		if wantOK(t, b, f); f.ID != each {
			t.Errorf("%v %d came", f.Kind, f.ID)
		}
	}
}

// TestSmallWindows: requests and responses that are many times as long as HTTP/2's smallest windows, on the way to which nobody says
// anything but the two Envoys.
func TestSmallWindows(t *testing.T) {
	file := filterFile(t)
	p := startProvider(t, func(req []byte, f protocol.Frame, _ func([]byte)) []byte {
		return frame("resp", f.ID, "size", fmt.Sprint(len(req)))
	})
	small := object{"initial_stream_window_size": 65535, "initial_connection_window_size": 65535}
	m := manager(everything(object{"cluster": "v1"}))
	m["typed_config"].(object)["http2_protocol_options"] = small
	v1 := egress("v1", p.port())
	v1["typed_extension_protocol_options"] = object{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": object{
		"@type":                "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
		"explicit_http_config": object{"http2_protocol_options": small}}}
	in := freePort(t)
	startEnvoy(t, []object{listener(in, "OUTBOUND", wasm(file, "lift", `{"lift":{}}`), m), egressListener(wasm(file, "lower", `{"lower":{}}`))},
		[]object{v1, originalCluster()})
	c := dial(t, in)
	for id, size := range []int{1000, 60_000, 300_000, 2_000_000, 10} {
		b, f := c.call(uint64(id), "size", fmt.Sprint(size))
		wantOK(t, b, f)
		if len(b) < size {
			t.Errorf("a response of %d bytes for %d", len(b), size)
		}
	}
	// Several at once.
	for id := range uint64(8) {
		c.send(frame("req", 100+id, "size", "200000"))
	}
	for range 8 {
		b, f := c.receive()
		wantOK(t, b, f)
		if len(b) < 200_000 {
			t.Errorf("a response of %d bytes", len(b))
		}
	}
}

// TestManyInFlight: 10,000 calls of one connection are under way at once.
func TestManyInFlight(t *testing.T) {
	const calls = 10_000
	file := filterFile(t)
	var mu sync.Mutex
	var answers []func()
	p := startProvider(t, func(_ []byte, f protocol.Frame, reply func([]byte)) []byte {
		mu.Lock()
		defer mu.Unlock()
		if answers = append(answers, func() { reply(frame("resp", f.ID)) }); len(answers) == calls {
			go func() {
				for _, answer := range answers {
					answer()
				}
			}()
		}
		return nil
	})
	in := freePort(t)
	v1 := egress("v1", p.port())
	v1["circuit_breakers"] = object{"thresholds": []object{{"max_requests": 100_000, "max_pending_requests": 100_000}}}
	startEnvoy(t, []object{listener(in, "OUTBOUND", wasm(file, "lift", `{"lift":{},"limits":{"maxInFlight":20000}}`), manager(everything(object{"cluster": "v1", "timeout": "0s"}))),
		egressListener(wasm(file, "lower", `{"lower":{},"limits":{"maxInFlight":20000}}`))},
		[]object{v1, originalCluster()})
	c := dial(t, in)
	go func() {
		for id := range uint64(calls) {
			c.send(frame("req", id))
		}
	}()
	seen := make([]bool, calls)
	for range calls {
		b, f := c.receive()
		wantOK(t, b, f)
		if seen[f.ID] {
			t.Fatalf("call %d was answered twice", f.ID)
		}
		seen[f.ID] = true
	}
}

// TestOthersPass: what is no call goes through both filters as it is.
func TestOthersPass(t *testing.T) {
	file := filterFile(t)
	p := startProvider(t, nil)
	in := freePort(t)
	m := manager([]object{{"match": object{"prefix": "/"}, "direct_response": object{"status": 200, "body": object{"inline_string": "plain"}}}})
	m["typed_config"].(object)["route_config"].(object)["virtual_hosts"].([]object)[0]["domains"] = []string{"*"}
	e := startEnvoy(t, []object{listener(in, "OUTBOUND", wasm(file, "lift", `{"lift":{}}`), m)}, []object{plain("provider", p.port())})
	c := dial(t, in)
	c.send([]byte("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
	var page bytes.Buffer
	if _, err := page.ReadFrom(c.r); err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(page.String(), "plain") {
		t.Errorf("%q", page.String())
	}
	_ = e
}
