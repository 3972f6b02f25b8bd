package filtertest_test

import (
	"encoding/json"
	"fmt"
	"strconv"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
	"github.com/isthmus-mesh/isthmus/wasm-filters/filter"
	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// exchange is a filter.Exchange that allocates nothing.
type exchange struct {
	names, values []string
	answered      int
}

func (x *exchange) Header(dst []byte, name string) ([]byte, bool) {
	for i, n := range x.names {
		if n == name {
			return append(dst, x.values[i]...), true
		}
	}
	return nil, true
}

func (x *exchange) AddHeader(string, []byte) {}

func (x *exchange) Respond(*filter.Response) { x.answered++ }

// message makes headers of names and values, in turns.
func message(pairs ...string) *exchange {
	x := new(exchange)
	for i := 0; i < len(pairs); i += 2 {
		x.names, x.values = append(x.names, pairs[i]), append(x.values, pairs[i+1])
	}
	return x
}

// httpHundred is a configuration of 100 rules, of which 3 match a GET of orders: an access rule, a circuit and a rate.
func httpHundred(t testing.TB) string {
	t.Helper()
	p := config.Plugin{HTTP: config.HTTP{Paths: []string{"/other/{id}", "/orders/{id}"}}}
	target := config.Target{Service: config.Match{Exact: "orders"}, Method: config.Match{Prefix: "GET /orders/"}}
	p.Access = append(p.Access, config.Access{Rule: config.Rule{Name: "a", Target: target, Match: []config.Condition{
		{Subject: config.SubjectAttachment, Key: "x-tenant", Operator: config.OperatorEquals, Values: []string{"bad"}}}}, Action: config.AccessDeny})
	p.CircuitBreaker = append(p.CircuitBreaker, config.CircuitBreaker{Rule: config.Rule{Name: "b", Target: target}, Strategy: config.StrategyErrorRatio, Threshold: 500_000})
	p.Throttle = append(p.Throttle, config.Throttle{Rule: config.Rule{Name: "c", Target: target}, Threshold: 1 << 31})
	for i := range 97 {
		p.Throttle = append(p.Throttle, config.Throttle{Rule: config.Rule{Name: "r" + strconv.Itoa(i),
			Target: config.Target{Service: config.Match{Exact: "s" + strconv.Itoa(i)}, Method: config.Match{Prefix: "GET /" + strconv.Itoa(i)}}}, Threshold: 1})
	}
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// request returns a function that makes one request and its response.
func request(t testing.TB, conf string, x, response, trailers *exchange) func() {
	t.Helper()
	n := filtertest.NewNative(&filtertest.World{App: "web"}, protocols)
	if err := n.Configure(conf); err != nil {
		t.Fatal(err)
	}
	if lines := n.World().Logs(); len(lines) > 0 {
		t.Fatal(lines)
	}
	return func() {
		s := n.Stream(policy.DirectionServer)
		if !s.Request(x) {
			s.Response(response, trailers == nil)
			if trailers != nil {
				s.Trailers(trailers)
			}
		}
		s.End(true)
	}
}

var requests = map[string][3]*exchange{
	"http": {message(":authority", "orders.spring.isthmus:8080", ":path", "/orders/17?page=2", ":method", "GET", "x-isthmus-caller", "web", "x-tenant", "good"), message(":status", "200")},
	"triple": {message(":authority", "10.0.0.1:50051", ":path", "/orders/say", ":method", "POST", "content-type", "application/grpc+proto", "tri-service-version", "1.0.0",
		"tri-service-group", "g", "tri-consumer-appname", "web", "x-tenant", "good"), message(":status", "200"), message("grpc-status", "0")},
}

// TestHTTPDoesNotAllocate: neither a request that is let through costs an allocation, nor one that is rejected, with 100 rules.
func TestHTTPDoesNotAllocate(t *testing.T) {
	for name, r := range requests {
		for rules, conf := range map[string]string{"no rules": "", "100 rules": httpHundred(t), "rejected": `{"throttle":[{"name":"none","threshold":0,"target":{"method":{"regex":"[a-z].*|GET .*"}}}]}`} {
			f := request(t, conf, r[0], r[1], r[2])
			for range 100 {
				f()
			}
			if n := testing.AllocsPerRun(500, f); n != 0 {
				t.Errorf("%s, %s: %v allocations", name, rules, n)
			}
			if (r[0].answered > 0) != (rules == "rejected") {
				t.Errorf("%s, %s: %d are answered", name, rules, r[0].answered)
			}
			r[0].answered = 0
		}
	}
}

// TestPathsAreNotRemembered: requests of paths without number are told apart by rules and cost no more than one of them.
func TestPathsAreNotRemembered(t *testing.T) {
	x := message(":authority", "orders", ":path", "", ":method", "GET")
	paths := make([]string, 20_000)
	for i := range paths {
		paths[i] = fmt.Sprintf("/orders/%d/%d", i%10, i)
	}
	i := 0
	f := request(t, `{"throttle":[{"name":"none","threshold":0,"target":{"method":{"prefix":"GET /orders/7/"}}}]}`, x, message(":status", "200"), nil)
	next := func() { x.values[1] = paths[i]; i++; f() }
	for range 10_000 {
		next()
	}
	if n := testing.AllocsPerRun(5000, next); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if want := i / 10; x.answered < want-1 || x.answered > want+1 {
		t.Errorf("of %d requests %d are rejected, want a tenth", i, x.answered)
	}
}

// TestHTTPMemoryIsBounded: requests come and go, long ones too, and the module's memory stays as it is.
func TestHTTPMemoryIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a second")
	}
	rig := workers(t, 1, httpHundred(t))[0].(*filtertest.Wasm)
	cycle := func(n int) {
		for i := range n {
			h := filtertest.Headers{{":authority", "orders"}, {":path", "/orders/" + strconv.Itoa(i)}, {":method", "GET"}, {"x-tenant", "good"}}
			if i%100 == 0 {
				h[1][1] += string(make([]byte, 60_000))
			}
			at, a, err := rig.Request(policy.DirectionClient, h)
			if err != nil || a.Held {
				t.Fatal(a, err)
			}
			if i%3 > 0 {
				if err := rig.Response(at, filtertest.Headers{{":status", "200"}}, i%2 == 0); err != nil {
					t.Fatal(err)
				}
			}
			if err := rig.Finish(at, ""); err != nil {
				t.Fatal(err)
			}
			if i%1000 == 0 {
				rig.World().Clock += 1_000_000_000
				if err := rig.Tick(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	cycle(2000)
	before := rig.MemoryBytes()
	cycle(4000)
	if after := rig.MemoryBytes(); after > before {
		t.Errorf("memory grew from %d to %d bytes", before, after)
	}
	t.Logf("%d bytes of memory", rig.MemoryBytes())
}

// TestLongHeaders: a header that is too long is as good as unknown: it is counted, allowed to nobody, and hurts nobody.
func TestLongHeaders(t *testing.T) {
	rigs(t, func(t *testing.T, rig filtertest.Rig) {
		if err := rig.Configure(`{"access":[{"name":"vips","action":"allow","target":{"service":{"exact":"vip"}},"match":[{"subject":"attachment","key":"who","operator":"notEquals","values":["bad"]}]}]}`); err != nil {
			t.Fatal(err)
		}
		long := string(make([]byte, 1<<20))
		for name, c := range map[string]struct {
			h    filtertest.Headers
			held bool
		}{
			"path":      {filtertest.Headers{{":authority", "a"}, {":method", "GET"}, {":path", long}}, false},
			"authority": {filtertest.Headers{{":authority", long}, {":method", "GET"}, {":path", "/"}}, false},
			"asked for": {filtertest.Headers{{":authority", "vip"}, {":method", "GET"}, {":path", "/"}, {"who", long}}, true},
			"ordinary":  {filtertest.Headers{{":authority", "vip"}, {":method", "GET"}, {":path", "/"}, {"who", "me"}, {"other", long}}, false},
			"status":    {filtertest.Headers{{":authority", "a"}, {":method", "GET"}, {":path", "/"}}, false},
		} {
			n, a, err := rig.Request(policy.DirectionServer, c.h)
			if err != nil || a.Held != c.held {
				t.Errorf("%s: %v %v", name, a, err)
			}
			if err := rig.Response(n, filtertest.Headers{{":status", long}}, true); err != nil {
				t.Error(err)
			}
			if err := rig.Finish(n, ""); err != nil {
				t.Error(err)
			}
		}
		rig.World().Clock += 1_000_000_000
		if err := rig.Tick(); err != nil {
			t.Fatal(err)
		}
		for series, want := range map[string]int64{
			`isthmus_filter_faults_total{rpc_direction="server",rpc_system="http",rpc_filter_reason="long_head"}`:                                2,
			`isthmus_filter_faults_total{rpc_direction="server",rpc_system="http",rpc_filter_reason="attachments"}`:                              1,
			`isthmus_rpc_requests_total{rpc_direction="server",rpc_system="http",rpc_service="vip",rpc_method="GET",rpc_outcome="rejected"}`:     1,
			`isthmus_rpc_requests_total{rpc_direction="server",rpc_system="http",rpc_service="vip",rpc_method="GET",rpc_outcome="bad_response"}`: 1,
		} {
			if got := rig.World().Metric(series); got != want {
				t.Errorf("%s is %d, want %d", series, got, want)
			}
		}
	})
}

// TestHTTPTimer: the timer is set to when a delayed request is due, and at once where a rate limit service is to be asked.
func TestHTTPTimer(t *testing.T) {
	for name, c := range map[string]struct {
		conf string
		want uint32
	}{
		"a delay":                     {`{"faultInjection":[{"name":"d","delayMillis":250}]}`, 250},
		"a limit of several sidecars": {`{"throttle":[{"name":"g","threshold":9,"global":{"cluster":"limits","syncMillis":50}}]}`, 1},
		"neither":                     {`{"throttle":[{"name":"t","threshold":9}]}`, 1000},
	} {
		rig := workers(t, 1, c.conf)[0].(*filtertest.Wasm)
		if _, _, err := rig.Request(policy.DirectionClient, filtertest.Headers{{":authority", "a"}, {":path", "/"}, {":method", "GET"}}); err != nil {
			t.Fatal(err)
		}
		if got := rig.Timer(); got != c.want {
			t.Errorf("%s: the timer is set to %d ms, want %d", name, got, c.want)
		}
	}
}

// TestTimerLeftAlone: a plugin goes on to tick though its requests are rejected one after the other.
func TestTimerLeftAlone(t *testing.T) {
	rig := workers(t, 1, `{"throttle":[{"name":"none","threshold":0}]}`)[0].(*filtertest.Wasm)
	before := rig.Timed()
	for range 3 {
		n, a, err := rig.Request(policy.DirectionClient, filtertest.Headers{{":authority", "a"}, {":path", "/"}, {":method", "GET"}})
		if err != nil || a.Response == nil {
			t.Fatal(a, err)
		}
		if err := rig.Finish(n, ""); err != nil {
			t.Fatal(err)
		}
	}
	if got := rig.Timed() - before; got != 0 {
		t.Errorf("the timer was set anew %d times", got)
	}
}

// TestStreamFails: after a defect of the filter's own the request goes on unread.
func TestStreamFails(t *testing.T) {
	n := filtertest.NewNative(new(filtertest.World), protocols)
	if err := n.Configure(`{}`); err != nil {
		t.Fatal(err)
	}
	s := n.Stream(policy.DirectionServer)
	s.Request(requests["http"][0])
	s.Fail()
	s.Response(requests["http"][1], true)
	s.End(true)
	n.World().Clock += 1_000_000_000
	if err := n.Tick(); err != nil {
		t.Fatal(err)
	}
	if len(n.World().Metrics("isthmus_filter_faults_total")) != 1 || len(n.World().Metrics("isthmus_rpc_in_flight")) != 0 {
		t.Error(n.World().Metrics())
	}
}

// BenchmarkHTTP is one request with its response, with 100 rules of which 3 match.
func BenchmarkHTTP(b *testing.B) {
	for name, r := range requests {
		b.Run(name, func(b *testing.B) {
			f := request(b, httpHundred(b), r[0], r[1], r[2])
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
		})
	}
}
