// Package http_test holds the filter to its promises in HTTP connection managers of stock Envoys: every kind of rule, at either end, for
// HTTP/1.1, HTTP/2 and Triple, is the native error of each, on connections that go on.
package http_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// wire is one way to call.
type wire struct {
	name   string
	http2  bool
	triple bool
}

var wires = []wire{{name: "http1"}, {name: "h2c", http2: true}, {name: "triple", http2: true, triple: true}}

// serve is the application: it answers by what the path ends in.
func serve(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		grpc := strings.HasPrefix(r.Header.Get("content-type"), "application/grpc")
		fails := strings.HasSuffix(r.URL.Path, "fail")
		if strings.HasSuffix(r.URL.Path, "slow") {
			select {
			case <-time.After(150 * time.Millisecond):
			case <-r.Context().Done():
			}
		}
		w.Header().Set("x-caller", r.Header.Get("x-isthmus-caller"))
		if grpc {
			w.Header().Set("content-type", "application/grpc+proto")
			w.Header().Set("trailer", "grpc-status")
			_, _ = w.Write([]byte{0, 0, 0, 0, 0})
			status := "0"
			if fails {
				status = "13"
			}
			if strings.HasSuffix(r.URL.Path, "odd-status") {
				status = "many"
			}
			w.Header().Set("grpc-status", status)
			return
		}
		if fails {
			w.WriteHeader(http.StatusInternalServerError)
		}
		_, _ = io.WriteString(w, "hello")
	})}
	go s.Serve(l) //nolint:errcheck // until it is closed
	t.Cleanup(func() { s.Close() })
	return l.Addr().(*net.TCPAddr).Port
}

// client is one connection.
type client struct {
	http.Client
	dialled atomic.Int32
}

func newClient(t testing.TB, w wire, port int) *client {
	c := new(client)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!w.http2)
	protocols.SetUnencryptedHTTP2(w.http2)
	transport := &http.Transport{Protocols: protocols, MaxConnsPerHost: 1, DisableCompression: true, TLSClientConfig: &tls.Config{},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c.dialled.Add(1)
			return new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		}}
	c.Transport, c.Timeout = transport, within
	t.Cleanup(transport.CloseIdleConnections)
	return c
}

// result is what a caller sees.
type result struct {
	status  int    // of HTTP, or of gRPC where it is that
	message string // body, or grpc-message
	headers http.Header
	took    time.Duration
}

func (c *client) call(w wire, service, what string, headers map[string]string) (result, error) {
	verb, path := http.MethodGet, "/x/"+what
	if w.triple {
		verb, path = http.MethodPost, "/"+service+"/"+what
	}
	// One host for all, so that the connection is one; the service is in the authority.
	r, err := http.NewRequest(verb, "http://envoy"+path, nil)
	if err != nil {
		return result{}, err
	}
	r.Host = service
	if w.triple {
		r.Header.Set("content-type", "application/grpc+proto")
		r.Header.Set("te", "trailers")
	}
	for k, v := range headers {
		r.Header.Set(k, v)
	}
	began := time.Now()
	resp, err := c.Do(r)
	if err != nil {
		return result{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return result{}, err
	}
	out := result{status: resp.StatusCode, message: string(body), headers: resp.Header, took: time.Since(began)}
	if w.triple {
		if resp.StatusCode != 200 {
			return out, fmt.Errorf("gRPC in HTTP status %d", resp.StatusCode)
		}
		status, message := resp.Trailer.Get("grpc-status"), resp.Trailer.Get("grpc-message")
		if status == "" { // a response of headers only
			status, message = resp.Header.Get("grpc-status"), resp.Header.Get("grpc-message")
		}
		if out.status, err = strconv.Atoi(status); err != nil {
			return out, fmt.Errorf("grpc-status %q", status)
		}
		out.message = message
	}
	return out, nil
}

// scenario is a kind of rule.
type scenario struct {
	add      func(p *config.Plugin, r config.Rule)
	calls    int    // by each of the callers
	what     string // they call
	http     int    // status of a rejection
	grpc     int
	message  string // of it, with the rule's name to be put in
	retry    bool   // it says when to try again
	admitted func(n int) bool
	headers  func(i int) map[string]string
	// others is the status of what is not rejected, for HTTP and Triple; 0 of HTTP is 200.
	others [2]int
}

const callers = 4

func none(n int) bool { return n == 0 }
func exactly(want int) func(n int) bool {
	return func(n int) bool { return n == want }
}

var scenarios = map[string]scenario{
	"rate": {func(p *config.Plugin, r config.Rule) {
		p.Throttle = append(p.Throttle, config.Throttle{Rule: r, Threshold: 5, IntervalMillis: 600_000})
	}, 5, "ok", 429, 8, `isthmus: throttled: rule "%s"; retry after `, true, exactly(5), nil, [2]int{}},
	"concurrency": {func(p *config.Plugin, r config.Rule) {
		p.Throttle = append(p.Throttle, config.Throttle{Rule: r, Type: config.ThrottleConcurrency, Threshold: 1})
	}, 3, "slow", 429, 8, `isthmus: throttled: rule "%s"`, false, func(n int) bool { return n >= 1 && n < callers*3 }, nil, [2]int{}},
	"warm-up": {func(p *config.Plugin, r config.Rule) {
		p.Throttle = append(p.Throttle, config.Throttle{Rule: r, Threshold: 4, IntervalMillis: 600_000, WarmUp: config.WarmUp{PeriodMillis: 600_000, ColdFactor: 2}})
	}, 5, "ok", 429, 8, `isthmus: throttled: rule "%s"; retry after `, true, func(n int) bool { return n >= 1 && n <= 4 }, nil, [2]int{}},
	"hot values": {func(p *config.Plugin, r config.Rule) {
		p.Throttle = append(p.Throttle, config.Throttle{Rule: r, Threshold: 1, IntervalMillis: 600_000, HotValues: config.HotValues{Subject: config.SubjectAttachment, Key: "tenant"}})
	}, 6, "ok", 429, 8, `isthmus: throttled: rule "%s"; retry after `, true, exactly(3), func(i int) map[string]string {
		return map[string]string{"tenant": "t" + strconv.Itoa(i%3)}
	}, [2]int{}},
	"breaker": {func(p *config.Plugin, r config.Rule) {
		p.CircuitBreaker = append(p.CircuitBreaker, config.CircuitBreaker{Rule: r, Strategy: config.StrategyErrorRatio, Threshold: 500_000, RetryTimeoutMillis: 600_000, StatIntervalMillis: 60_000})
	}, 30, "fail", 503, 14, `isthmus: unavailable: rule "%s"; retry after `, true, func(n int) bool { return n >= 5 && n < callers*30 }, nil, [2]int{500, 13}},
	"slow calls": {func(p *config.Plugin, r config.Rule) {
		p.CircuitBreaker = append(p.CircuitBreaker, config.CircuitBreaker{Rule: r, Strategy: config.StrategySlowCallRatio, MaxAllowedRtMillis: 100, Threshold: 500_000,
			MinRequestAmount: 4, RetryTimeoutMillis: 600_000, StatIntervalMillis: 60_000})
	}, 5, "slow", 503, 14, `isthmus: unavailable: rule "%s"; retry after `, true, func(n int) bool { return n >= 4 && n < callers*5 }, nil, [2]int{}},
	"deny": {func(p *config.Plugin, r config.Rule) {
		r.Match = []config.Condition{{Subject: config.SubjectCallerApplication, Operator: config.OperatorEquals, Values: []string{application}},
			{Subject: config.SubjectCallerIP, Operator: config.OperatorIn, Values: []string{"127.0.0.0/8"}},
			{Subject: config.SubjectProtocol, Operator: config.OperatorIn, Values: []string{"http", "triple"}}}
		p.Access = append(p.Access, config.Access{Rule: r, Action: config.AccessDeny})
	}, 2, "ok", 403, 7, `isthmus: denied: rule "%s"`, false, none, nil, [2]int{}},
	"default deny": {func(p *config.Plugin, r config.Rule) {
		p.Access = append(p.Access, config.Access{Rule: r, Action: config.AccessDefaultDeny})
	}, 2, "ok", 403, 7, `isthmus: denied: rule "%s"`, false, none, nil, [2]int{}},
	"abort": {func(p *config.Plugin, r config.Rule) {
		p.FaultInjection = append(p.FaultInjection, config.FaultInjection{Rule: r, Abort: config.Abort{Message: "a drill", HTTPStatus: 418}})
	}, 2, "ok", 418, 10, `isthmus: aborted: rule "%s"; a drill`, false, none, nil, [2]int{}},
	"reply": {func(p *config.Plugin, r config.Rule) {
		p.Degrade = append(p.Degrade, config.Degrade{Rule: r, Replies: []config.Reply{{Protocol: config.SystemHTTP, Value: "eyJhIjoxfQ=="}}})
	}, 2, "fail", 200, 14, `isthmus: unavailable: rule "%s"`, false, none, nil, [2]int{500, 13}},
}

// TestRules calls every service from four connections at a time, through an Envoy of four workers.
func TestRules(t *testing.T) {
	conf := &config.Plugin{Generation: "e2e-1"}
	type row struct {
		scenario
		wire
		name, service, mode string
	}
	var rows []row
	for name, s := range scenarios {
		for _, w := range wires {
			for _, direction := range []string{"client", "server"} {
				for _, mode := range []config.Mode{config.ModeIntercept, config.ModeObserve} {
					service := strings.ReplaceAll(name, " ", "-") + "." + w.name + "." + direction + "." + string(mode)
					s.add(conf, config.Rule{Name: "e2e/" + service, Mode: mode, Target: config.Target{Direction: direction, Service: config.Match{Exact: service}}})
					rows = append(rows, row{s, w, name, service, string(mode)})
				}
			}
		}
	}
	app := serve(t)
	e := start(t, conf, app)
	clients := map[string][]*client{}
	for _, w := range wires {
		for range callers {
			clients[w.name] = append(clients[w.name], newClient(t, w, e.out))
		}
	}
	rejections := map[string]int{} // by rule
	for _, r := range rows {
		t.Run(r.service, func(t *testing.T) {
			want := r.http
			normal := 200
			if r.others[0] > 0 {
				normal = r.others[0]
			}
			if r.triple {
				want, normal = r.grpc, r.others[1]
			}
			rule := "e2e/" + r.service
			var mu sync.Mutex
			admitted := 0
			var all sync.WaitGroup
			for n, c := range clients[r.wire.name] {
				all.Go(func() {
					for i := range r.calls {
						var headers map[string]string
						if r.headers != nil {
							headers = r.headers(n*r.calls + i)
						}
						got, err := c.call(r.wire, r.service, r.what, headers)
						if err != nil {
							t.Error(err)
							return
						}
						mu.Lock()
						switch {
						case got.status == normal && (normal != want || !strings.HasPrefix(got.message, "isthmus")):
							admitted++
						case got.status != want:
							t.Errorf("status %d: %q", got.status, got.message)
						default:
							rejections[rule]++
							r.check(t, got, rule)
						}
						mu.Unlock()
					}
				})
			}
			all.Wait()
			if r.mode == "observe" {
				if admitted != callers*r.calls {
					t.Errorf("an observer let %d of %d calls through", admitted, callers*r.calls)
				}
			} else if !r.admitted(admitted) {
				t.Errorf("%d of %d calls were let through", admitted, callers*r.calls)
			}
			if got, err := clients[r.wire.name][0].call(r.wire, "other", "ok", nil); err != nil || got.message != map[bool]string{false: "hello", true: ""}[r.triple] {
				t.Errorf("another service: %+v %v", got, err)
			}
		})
	}
	for name, cs := range clients {
		for _, c := range cs {
			if n := c.dialled.Load(); n != 1 {
				t.Errorf("a caller of %s had to connect %d times", name, n)
			}
		}
	}
	// What the metrics say is what the callers saw.
	e.until(t, "the metrics to agree", func() error {
		counted := map[string]int{}
		observed := map[string]bool{}
		e.stats(t, "isthmus_rule_hits_total", func(l map[string]string, n int) {
			switch l["rpc_rule_action"] {
			case "reject":
				counted[l["rpc_rule_name"]] += n
			case "would_reject":
				observed[l["rpc_rule_name"]] = n > 0
			}
		})
		for _, r := range rows {
			rule := "e2e/" + r.service
			if counted[rule] != rejections[rule] {
				return fmt.Errorf("%s: %d are counted, %d were seen", rule, counted[rule], rejections[rule])
			}
			if want := r.mode == "observe"; observed[rule] != want && r.name != "concurrency" {
				return fmt.Errorf("%s: would reject some: %v", rule, observed[rule])
			}
		}
		return nil
	})
	e.until(t, "the calls to be counted by their protocol", func() error {
		systems := map[string]int{}
		e.stats(t, "isthmus_rpc_requests_total", func(l map[string]string, n int) {
			systems[l["rpc_system"]+" "+l["rpc_direction"]+" "+l["rpc_outcome"]] += n
		})
		for _, key := range []string{"http client ok", "http server ok", "triple client ok", "triple server ok", "http client rejected", "triple server rejected", "http server error", "triple client error"} {
			if systems[key] == 0 {
				return fmt.Errorf("no %s: %v", key, systems)
			}
		}
		return nil
	})
	e.until(t, "the access log to say why", func() error {
		b, err := os.ReadFile(e.log)
		if err != nil {
			return err
		}
		for _, line := range []string{"429 isthmus_throttled{e2e/rate.http1.client.intercept}", "503 isthmus_unavailable{e2e/breaker.h2c.server.intercept}",
			"403 isthmus_denied{e2e/deny.http1.server.intercept}", "200 isthmus_denied{e2e/deny.triple.client.intercept}"} {
			if !strings.Contains(string(b), line) {
				return fmt.Errorf("no %s", line)
			}
		}
		return nil
	})
	e.stats(t, "isthmus_filter_faults_total", func(l map[string]string, n int) {
		t.Errorf("%d faults: %v", n, l)
	})
}

// check looks at a rejection.
func (s *scenario) check(t *testing.T, got result, rule string) {
	t.Helper()
	if s.http == 200 && got.headers.Get("grpc-status") == "" {
		if got.message != `{"a":1}` || got.headers.Get("content-type") != "application/json" {
			t.Errorf("answered %q, %q", got.message, got.headers)
		}
		return
	}
	if !strings.HasPrefix(got.message, fmt.Sprintf(s.message, rule)) {
		t.Errorf("told %q", got.message)
	}
	if seconds, err := strconv.Atoi(got.headers.Get("retry-after")); s.retry != (err == nil && seconds > 0) {
		t.Errorf("retry-after is %q", got.headers.Get("retry-after"))
	}
}
