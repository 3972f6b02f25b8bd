package telemetry

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"go.uber.org/goleak"

	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The labels that are read are those that the filter writes.
func TestLabelsAreTheFilters(t *testing.T) {
	for _, l := range []string{labelDirection, labelSystem, labelService, labelVersion, labelGroup, labelMethod, labelCaller, labelOutcome, labelRuleKind, labelRule, labelAction, labelEndpoint, labelGeneration, labelSubset, labelReason, labelLE} {
		if !slices.Contains(plugin.StatTags, l) {
			t.Errorf("the filter has no label %s", l)
		}
	}
}

// envoyPage is a page as Envoy prints it, cut down.
func envoyPage(ok, failed, rejected, exceptions, slow int, generation string) string {
	l := `rpc_direction="client",rpc_system="dubbo",rpc_service="demo.Greet"`
	calls := func(outcome string, n int) string {
		return fmt.Sprintf("isthmus_rpc_requests_total{%s,rpc_version=\"1.0.0\",rpc_group=\"\",rpc_method=\"hi\",rpc_caller=\"web\",rpc_outcome=%q} %d\n", l, outcome, n)
	}
	fast := ok + failed + exceptions
	return `# TYPE envoy_cluster_upstream_rq counter
envoy_cluster_upstream_rq{envoy_cluster_name="x"} 17
this line is none that we read {
# TYPE isthmus_rpc_requests_total counter
` + calls("ok", ok) + calls("timeout", failed) + calls("rejected", rejected) + calls("exception", exceptions) +
		"# TYPE isthmus_rpc_duration_milliseconds_bucket counter\n" +
		fmt.Sprintf("envoy_wasmcustom_isthmus_rpc_duration_milliseconds_bucket{%s,rpc_method=\"hi\",le=\"5\"} %d\n", l, 0) +
		fmt.Sprintf("isthmus_rpc_duration_milliseconds_bucket{%s,rpc_method=\"hi\",le=\"10\"} %d\n", l, fast) +
		fmt.Sprintf("isthmus_rpc_duration_milliseconds_bucket{%s,rpc_method=\"hi\",le=\"100\"} %d\n", l, fast) +
		fmt.Sprintf("isthmus_rpc_duration_milliseconds_bucket{%s,rpc_method=\"hi\",le=\"+Inf\"} %d\n", l, fast+slow) +
		fmt.Sprintf("isthmus_rpc_in_flight{%s,rpc_method=\"hi\"} 3\n", l) +
		fmt.Sprintf("isthmus_rule_hits_total{rpc_rule_name=\"default/r\",rpc_rule_action=\"reject\"} %d\n", rejected) +
		fmt.Sprintf("isthmus_filter_config_info{rpc_filter_generation=%q} 1\nisthmus_filter_config_info{rpc_filter_generation=\"old\"} 0\n", generation) +
		"isthmus_filter_config_rejected{} 0\n"
}

func read(t *testing.T, text string, at time.Time) *page {
	t.Helper()
	p, err := parse(strings.NewReader(text), at)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// near compares rates: they are quotients.
func near(a, b float64) bool { return math.Abs(a-b) < 1e-9 }

func TestRates(t *testing.T) {
	now := time.Now()
	s := New(Options{Targets: []Target{{"a", "http://a"}, {"b", "http://b"}, {"c", "http://c"}}})
	// a: over two seconds 80 ok, 10 timeouts, 20 rejected, 10 exceptions, none slow. b has just begun anew. c is down.
	s.targets[0].pages = []*page{read(t, envoyPage(1000, 0, 5, 0, 0, "g1"), now.Add(-2*time.Second)), read(t, envoyPage(1040, 5, 15, 5, 0, "g1"), now.Add(-time.Second)), read(t, envoyPage(1080, 10, 25, 10, 0, "g2"), now)}
	s.targets[1].pages = []*page{read(t, envoyPage(500, 500, 500, 500, 0, "g1"), now.Add(-2*time.Second)), read(t, envoyPage(20, 0, 0, 0, 0, "g1"), now)}
	s.targets[2].err = "connection refused"
	r := s.Report()
	if len(r.Methods) != 1 || len(r.Services) != 1 || len(r.Edges) != 1 || len(r.Rules) != 1 {
		t.Fatalf("report %+v", r)
	}
	m := r.Methods[0]
	if m.Direction != "client" || m.System != "dubbo" || m.Service != "demo.Greet" || m.Version != "1.0.0" || m.Group != "" || m.Method != "hi" || r.Services[0].Method != "" {
		t.Errorf("names %+v", m)
	}
	// 120 calls of a and 20 of b, over 2 s.
	if !near(m.Rate, 70) || !near(m.ErrorRatio, 5.0/70) || !near(m.RejectedRatio, 10.0/70) || !near(m.ExceptionRatio, 5.0/70) || !near(m.Outcomes["ok"], 50) || m.InFlight != 6 {
		t.Errorf("rates %+v", m)
	}
	// All calls lie between 5 and 10 ms: percentiles are spread over that bucket.
	if m.P50 == nil || !near(*m.P50, 7.5) || m.P99 == nil || !near(*m.P99, 9.95) {
		t.Errorf("percentiles %v %v", m.P50, m.P99)
	}
	if e := r.Edges[0]; e.Caller != "web" || e.Service != "demo.Greet" || !near(e.Rate, 70) || !near(e.Errors, 5) {
		t.Errorf("edge %+v", e)
	}
	if x := r.Rules[0]; x.Name != "default/r" || !near(x.Rates["reject"], 10) || x.Totals["reject"] != 25 || !slices.Equal(x.Targets, []string{"a", "b"}) {
		t.Errorf("rule %+v", x)
	}
	if a, c := r.Targets[0], r.Targets[2]; !a.Up || !slices.Equal(a.Generations, []string{"g2"}) || c.Up || c.Error != "connection refused" {
		t.Errorf("targets %+v", r.Targets)
	}
}

func TestQuantiles(t *testing.T) {
	inf := math.Inf(1)
	for name, c := range map[string]struct {
		buckets map[float64]float64
		q       float64
		want    float64 // -1: none
	}{
		"nothing":             {nil, 0.5, -1},
		"no call":             {map[float64]float64{1: 0, inf: 0}, 0.5, -1},
		"within a bucket":     {map[float64]float64{1: 50, 2: 100, inf: 100}, 0.75, 1.5},
		"first bucket":        {map[float64]float64{1: 100, inf: 100}, 0.5, 0.5},
		"above all bounds":    {map[float64]float64{1: 0, 2: 0, inf: 10}, 0.5, 2},
		"only the last bound": {map[float64]float64{inf: 10}, 0.5, 0},
		"a bucket goes back":  {map[float64]float64{1: 10, 2: 5, inf: 20}, 0.9, 2},
	} {
		t.Run(name, func(t *testing.T) {
			got := quantile(c.buckets, c.q)
			if c.want < 0 != (got == nil) || got != nil && !near(*got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

func TestBadPages(t *testing.T) {
	for name, text := range map[string]string{
		"no number":  "isthmus_rpc_requests_total{a=\"b\"} x\n",
		"no labels":  "isthmus_rpc_requests_total{a=\n",
		"long line":  "isthmus_x{a=\"" + strings.Repeat("x", maxLineBytes) + "\"} 1\n",
		"other long": strings.Repeat("x", maxLineBytes+1),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := parse(strings.NewReader(text), time.Now()); err == nil {
				t.Error("no error")
			}
		})
	}
	if _, err := parse(strings.NewReader("isthmus_rpc_duration_milliseconds_bucket{le=\"abc\"} 1\nisthmus_rpc_requests_total 1\n"), time.Now()); err != nil {
		t.Errorf("an odd bound: %v", err)
	}
	if _, err := parse(endless{}, time.Now()); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("an endless page: %v", err)
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'x'
		if i%4000 == 0 {
			b[i] = '\n'
		}
	}
	return len(b), nil
}

// A scraper reads its targets while it runs, tells which cannot be read, and takes over new ones.
func TestScraper(t *testing.T) {
	var mu sync.Mutex
	calls, query, broken := 0, "", false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		query = r.URL.RawQuery
		if broken {
			http.Error(w, "no", http.StatusServiceUnavailable)
			return
		}
		calls += 10
		fmt.Fprint(w, envoyPage(calls, 0, 0, 0, 0, "g"))
	}))
	defer server.Close()
	registry := prometheus.NewRegistry()
	s := New(Options{Targets: []Target{{"up", server.URL + "/stats/prometheus"}, {"down", "http://127.0.0.1:1/stats/prometheus"}}, Interval: 10 * time.Millisecond, Metrics: registry})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	until := func(what string, ok func(Report) bool) {
		t.Helper()
		deadline := time.Now().Add(10 * time.Second)
		for !ok(s.Report()) {
			if time.Now().After(deadline) {
				t.Fatalf("waiting for %s: %+v", what, s.Report())
			}
			time.Sleep(time.Millisecond)
		}
	}
	until("a rate", func(r Report) bool { return len(r.Methods) == 1 && r.Methods[0].Rate > 0 })
	until("both targets", func(r Report) bool { return r.Targets[0].Up && !r.Targets[1].Up && r.Targets[1].Error != "" })
	mu.Lock()
	if query != "filter=isthmus_" {
		t.Errorf("asked for %q", query)
	}
	broken = true
	mu.Unlock()
	until("the failure", func(r Report) bool { return strings.Contains(r.Targets[0].Error, "503") })
	until("its traffic to be forgotten", func(r Report) bool { return len(r.Methods) == 0 })
	mu.Lock()
	broken = false
	mu.Unlock()
	s.SetTargets([]Target{{"other", server.URL + "/x?y=z"}}, 10*time.Millisecond)
	until("the other target", func(r Report) bool { return len(r.Targets) == 1 && r.Targets[0].Name == "other" && r.Targets[0].Up })
	mu.Lock()
	if query != "y=z" {
		t.Errorf("asked for %q", query)
	}
	mu.Unlock()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v %v", problems, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(envoyPage(1, 2, 3, 4, 5, "g"))
	f.Add("isthmus_rpc_requests_total{a=\"\\n\"} NaN\n")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parse(strings.NewReader(text), time.Now())
		if err != nil {
			return
		}
		s := New(Options{Targets: []Target{{"a", "http://a"}}})
		later := *p
		later.at = p.at.Add(time.Second)
		s.targets[0].pages = []*page{p, &later}
		if _, err := json.Marshal(s.Report()); err != nil {
			t.Error(err)
		}
	})
}

// A page of Envoy 1.40 with the filter in a listener, after one call of Dubbo 3.3.6's consumer.
func TestRealPage(t *testing.T) {
	text, err := os.ReadFile("testdata/envoy-1.40.txt")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	s := New(Options{Targets: []Target{{"envoy", "http://x"}}})
	s.targets[0].pages = []*page{read(t, "", now.Add(-time.Second)), read(t, string(text), now)}
	r := s.Report()
	if len(r.Methods) != 1 || len(r.Edges) != 1 {
		t.Fatalf("report %+v", r)
	}
	m := r.Methods[0]
	if m.Direction != "client" || m.System != "dubbo" || m.Service != "demo.GreetService" || m.Version != "1.0.0" || m.Group != "g1" || m.Method != "sayHello" ||
		!near(m.Rate, 1) || !near(m.Outcomes["ok"], 1) || m.P50 == nil || *m.P50 > 0.5 || r.Edges[0].Caller != "greet-consumer" {
		t.Errorf("method %+v, edges %+v", m, r.Edges)
	}
	if x := r.Targets[0]; !slices.Equal(x.Generations, []string{"g7"}) || x.Series < 20 || x.Rejected {
		t.Errorf("target %+v", x)
	}
}

// TestVersion: traffic is shown under the version that the service's own table has.
func TestVersion(t *testing.T) {
	for name, c := range map[string]struct{ system, version, want string }{
		"none in Dubbo":        {"dubbo", "0.0.0", ""},
		"some in Dubbo":        {"dubbo", "1.0.0", "1.0.0"},
		"elsewhere it is some": {"bolt", "0.0.0", "0.0.0"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := callOf(map[string]string{labelSystem: c.system, labelVersion: c.version}).version; got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// Since when an Envoy runs a generation is when it was first seen alone; while its workers change the old one counts.
func TestRuns(t *testing.T) {
	began := time.Now()
	target := new(target)
	for i, generations := range [][]string{{"g1"}, {"g1"}, {"g1", "g2"}, {"g2"}, {}, {"g2"}, {"g1"}} {
		target.ran(&page{at: began.Add(time.Duration(i) * time.Second), generations: generations})
	}
	got := ""
	for _, r := range target.runs {
		got += fmt.Sprintf("%q@%d ", r.Generation, r.Since.Sub(began)/time.Second)
	}
	if want := `"g1"@0 "g2"@3 ""@4 "g2"@5 "g1"@6 `; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for i := range 2 * runsKept {
		target.ran(&page{generations: []string{fmt.Sprint(i)}})
	}
	if len(target.runs) != runsKept || target.runs[runsKept-1].Generation != fmt.Sprint(2*runsKept-1) {
		t.Errorf("%d runs, the last %+v", len(target.runs), target.runs[len(target.runs)-1])
	}
}

// Rules of different kinds may have the same name; where each stands is told by Envoy.
func TestRuleStates(t *testing.T) {
	now := time.Now()
	text := func(rejected int) string {
		return fmt.Sprintf(`isthmus_rule_hits_total{rpc_rule_kind="access",rpc_rule_name="a/r",rpc_rule_action="reject"} %d
isthmus_rule_hits_total{rpc_rule_kind="throttle",rpc_rule_name="a/r",rpc_rule_action="admit"} 7
isthmus_rule_tokens{rpc_rule_kind="throttle",rpc_rule_name="a/r"} 12
isthmus_rule_running_calls{rpc_rule_kind="throttle",rpc_rule_name="a/c"} 3
isthmus_rule_circuit_state{rpc_rule_kind="circuitBreaker",rpc_rule_name="a/b"} 2
isthmus_rule_circuit_state{rpc_rule_kind="circuitBreaker",rpc_rule_name="a/odd"} 9
isthmus_rule_queue_milliseconds{rpc_rule_kind="throttle",rpc_rule_name="a/paced"} 40
isthmus_rule_circuit_state{rpc_rule_kind="circuitBreaker",rpc_rule_name="a/each",rpc_endpoint="fd00_0_0_0_0_0_0_1_20880"} 1
isthmus_rule_circuit_state{rpc_rule_kind="circuitBreaker",rpc_rule_name="a/each",rpc_endpoint="_other"} 2
isthmus_rule_circuit_state{rpc_rule_kind="circuitBreaker",rpc_rule_name="a/each",rpc_endpoint="10.0.0.2_20880"} 0
isthmus_rule_circuit_state{rpc_rule_kind="circuitBreaker",rpc_rule_name="a/each",rpc_endpoint="10.0.0.2_208800"} 1
`, rejected)
	}
	s := New(Options{Targets: []Target{{"one", "http://one"}}})
	s.targets[0].pages = []*page{read(t, text(10), now.Add(-time.Second)), read(t, text(15), now)}
	var got []string
	for _, r := range s.Report().Rules {
		line := fmt.Sprintf("%s %s %v %v", r.Kind, r.Name, r.Totals, r.Rates)
		for _, st := range r.States {
			b, err := json.Marshal(st)
			if err != nil {
				t.Fatal(err)
			}
			line += " " + string(b)
		}
		got = append(got, line)
	}
	want := []string{
		`circuitBreaker a/b map[] map[] {"target":"one","circuit":"halfOpen"}`,
		`throttle a/c map[] map[] {"target":"one","running":3}`,
		`circuitBreaker a/each map[] map[] {"target":"one","circuits":[{"endpoint":"10.0.0.2:20880","state":"closed"},{"endpoint":"10.0.0.2_208800","state":"open"},{"endpoint":"[fd00::1]:20880","state":"open"},{"endpoint":"_other","state":"halfOpen"}]}`,
		`throttle a/paced map[] map[] {"target":"one","queueMillis":40}`,
		`access a/r map[reject:15] map[reject:5]`,
		`throttle a/r map[admit:7] map[admit:0] {"target":"one","tokens":12}`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
