package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/mcp-server/app"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
)

// governed runs an mcp-server that one Envoy is said to belong to, and names it as the commands' server. generation is what that Envoy runs; ""
// follows the server.
func governed(t *testing.T) (dir string, generation *atomic.Value) {
	t.Helper()
	dir, generation = t.TempDir(), new(atomic.Value)
	generation.Store("")
	var address atomic.Value
	address.Store("")
	envoy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g := generation.Load().(string)
		if g == "" {
			answer, err := http.Get("http://" + address.Load().(string) + "/api/v1/version")
			if err != nil {
				return
			}
			defer answer.Body.Close()
			var v api.Version
			if json.NewDecoder(answer.Body).Decode(&v) != nil {
				return
			}
			g = v.Generation
		}
		fmt.Fprintf(w, "isthmus_filter_config_info{rpc_filter_generation=%q} 1\n", g)
	}))
	t.Cleanup(envoy.Close)
	write(t, filepath.Join(dir, "services.yaml"), "apiVersion: adapters.isthmus.io/v1alpha1\nkind: ServiceList\nservices:\n- {framework: dubbo, interface: demo.A, endpoints: [{address: 192.0.2.1, port: 20880, application: demo}]}\n")
	write(t, filepath.Join(dir, "isthmus.yaml"), fmt.Sprintf(`apiVersion: isthmus.io/v1alpha1
kind: MCPServer
spec:
  registries: [{name: files, kind: file, settings: {path: %s/services.yaml}}]
  mcp: {address: "127.0.0.1:0"}
  api: {address: "127.0.0.1:0"}
  filter: {url: "file:///isthmus.wasm"}
  rules: {path: rules}
  holdOff: {quiet: 5ms, max: 50ms}
  telemetry: {interval: 100ms, targets: [{name: one, url: "%s/stats/prometheus"}]}
`, dir, envoy.URL))
	ctx, cancel := context.WithCancel(context.Background())
	listening, done := make(chan net.Addr, 1), make(chan error, 1)
	go func() {
		done <- app.Run(ctx, app.Options{ConfigPath: filepath.Join(dir, "isthmus.yaml"), Listening: func(_, api net.Addr) { listening <- api }})
	}()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case a := <-listening:
		address.Store(a.String())
		t.Setenv(envServer, a.String())
		t.Setenv(envToken, "")
	case err := <-done:
		done <- err
		t.Fatal(err)
	}
	return dir, generation
}

var moments = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`)

// TestRuleCommands goes the way of a rule: from a file to the sidecars, changed by two people, explained, and away.
func TestRuleCommands(t *testing.T) {
	dir, generation := governed(t)
	rules := filepath.Join(dir, "mine")
	if err := os.Mkdir(rules, 0o755); err != nil {
		t.Fatal(err)
	}
	dryrun, err := os.ReadFile("testdata/dryrun/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(rules, "all.yaml"), string(dryrun))
	var out strings.Builder
	step := func(want int, args string) {
		t.Helper()
		r := invoke(t, "", strings.Fields(args)...)
		if r.code != want {
			t.Fatalf("%s: %+v", args, r)
		}
		text := moments.ReplaceAllString(strings.ReplaceAll(r.out+r.err, dir, "DIR"), "MOMENT")
		text = regexp.MustCompile(`revision [0-9a-f]{16}`).ReplaceAllString(text, "revision REVISION")
		fmt.Fprintf(&out, "$ isthmusctl %s\n%s\n", strings.ReplaceAll(args, dir, "DIR"), text)
	}
	step(ExitOK, "rule apply -f "+rules+" --wait 20s")
	step(ExitOK, "rule list")
	step(ExitOK, "rule get busy")
	step(ExitOK, "rule explain throttle shop/greet")
	step(ExitOK, "rule explain stock -f "+rules)
	step(ExitBad, "rule get stock")
	step(ExitBad, "rule get gree")
	step(ExitBad, "rule get nothing-like-it")
	step(ExitUsage, "rule get weather stock")
	// One rule changes, while the sidecar stays behind.
	generation.Store("stuck")
	write(t, filepath.Join(rules, "all.yaml"), strings.Replace(string(dryrun), "threshold: 2", "threshold: 3", 1))
	step(ExitOK, "rule apply -f "+rules+" -o yaml")
	deadline := time.Now().Add(20 * time.Second)
	for !strings.Contains(invoke(t, "", "rule", "get", "busy", "-o", "json").out, `"generation": "stuck"`) {
		if time.Now().After(deadline) {
			t.Fatal("the server does not see what the sidecar runs")
		}
		time.Sleep(10 * time.Millisecond)
	}
	step(ExitBad, "rule apply -f "+rules+" --wait 300ms")
	generation.Store("")
	// A fault anywhere, and nothing is done.
	write(t, filepath.Join(rules, "bad.yaml"), "apiVersion: governance.isthmus.io/v1alpha1\nkind: ThrottleRule\nmetadata: {name: bad}\nspec: {treshold: 1}\n")
	step(ExitBad, "rule apply -f "+rules)
	step(ExitBad, "rule delete bad")
	step(ExitOK, "rule delete degrade stock")
	step(ExitOK, "rule delete -f "+filepath.Join(rules, "all.yaml"))
	step(ExitOK, "rule list")
	if entries, err := os.ReadDir(filepath.Join(dir, "rules")); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v %v", entries, err)
	}
	golden(t, "rule-commands.txt", out.String())
}

// Who changes a rule that somebody else has changed since is told so.
func TestRuleApplyIsNotBlind(t *testing.T) {
	dir, _ := governed(t)
	file := filepath.Join(dir, "r.yaml")
	rule := func(n int) string {
		return fmt.Sprintf("apiVersion: governance.isthmus.io/v1alpha1\nkind: ThrottleRule\nmetadata: {name: r}\nspec: {threshold: %d}\n", n)
	}
	write(t, file, rule(1))
	// Somebody who is always faster: between our reading and our writing the rule changes.
	server := os.Getenv(envServer)
	others := 100
	between := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		send := func(method, body string) *http.Response {
			q, err := http.NewRequestWithContext(r.Context(), method, "http://"+server+r.URL.Path, strings.NewReader(body))
			if err != nil {
				panic(err)
			}
			q.Header = r.Header.Clone()
			if method == http.MethodPut && body != "" {
				q.Header.Set("Content-Type", "application/yaml")
			}
			answer, err := http.DefaultClient.Do(q)
			if err != nil {
				panic(err)
			}
			return answer
		}
		if r.Method == http.MethodPut {
			header := r.Header
			r.Header = http.Header{}
			send(http.MethodPut, rule(others)).Body.Close()
			others++
			r.Header = header
		}
		b, err := io.ReadAll(r.Body)
		if err != nil {
			panic(err)
		}
		answer := send(r.Method, string(b))
		defer answer.Body.Close()
		w.WriteHeader(answer.StatusCode)
		io.Copy(w, answer.Body) // whoever asked sees what is missing
	}))
	defer between.Close()
	for _, c := range []struct {
		args string
		code int
		err  string
	}{
		{"rule apply -f " + file, ExitBad, "there is such a rule already, of revision"},
		{"rule apply -f " + file, ExitBad, "the rule has changed: its revision is"},
		{"rule apply -f " + file + " --force", ExitOK, ""},
	} {
		r := invoke(t, "", append(strings.Fields(c.args), "--server", between.URL)...)
		if r.code != c.code || !strings.Contains(r.err, c.err) {
			t.Errorf("%s: %+v, want %d %s", c.args, r, c.code, c.err)
		}
	}
}

func TestRuleDryRun(t *testing.T) {
	r := invoke(t, "", "rule", "dry-run", "-f", "testdata/dryrun/rules.yaml", "--calls", "testdata/dryrun/calls.yaml", "--each")
	if r.code != ExitOK || r.err != "" {
		t.Fatalf("%+v", r)
	}
	golden(t, "rule-dry-run.txt", r.out)
	for name, c := range map[string]struct {
		calls string
		code  int
		err   string
	}{
		"no calls":       {"calls: []\n", ExitOK, ""},
		"unknown field":  {"calls: [{servise: a, method: m}]\n", ExitUsage, "line 1: calls[0].servise: unknown field"},
		"nothing called": {"calls: [{service: a}]\n", ExitUsage, "needs service and method"},
		"odd words":      {"calls: [{service: a, method: m, direction: up, protocol: grpc, outcome: good, callerIP: x, every: -1s}]\n", ExitUsage, "must be one of client, server"},
		"too many":       {"calls: [{service: a, method: m, times: 4000000000}]\n", ExitUsage, "more than 1000000 calls"},
		"too long":       {"calls: [{service: a, method: m, times: 2000, every: 1000h}]\n", ExitUsage, "go on for longer than 10000h0m0s"},
		"large":          {"calls: [{service: a, method: m, attachments: {x: " + strings.Repeat("y", 40000) + "}}]\n", ExitUsage, "attachments and labels"},
		"no YAML":        {"calls: [\n", ExitUsage, "line 1"},
	} {
		t.Run(name, func(t *testing.T) {
			r := invoke(t, c.calls, "rule", "dry-run", "-f", "testdata/dryrun/rules.yaml", "--calls", "-")
			if r.code != c.code || !strings.Contains(r.err, c.err) {
				t.Errorf("%+v, want %d %s", r, c.code, c.err)
			}
		})
	}
	if r := invoke(t, "", "rule", "dry-run", "-f", "testdata/dryrun/rules.yaml"); r.code != ExitUsage {
		t.Errorf("without calls: %+v", r)
	}
}

// HTTP and Triple go through the filter's own code for them.
func TestDryRunHTTP(t *testing.T) {
	r := invoke(t, "", "rule", "dry-run", "-f", "testdata/dryrun-http/rules.yaml", "--calls", "testdata/dryrun-http/calls.yaml", "--each")
	if r.code != ExitOK {
		t.Fatalf("code %d: %s", r.code, r.err)
	}
	golden(t, "rule-dry-run-http.txt", r.out)
	for call, want := range map[string]string{
		"{protocol: http, service: a, method: orders}":            "must be like GET /orders/17",
		"{protocol: triple, service: a, method: m, oneWay: true}": "does not go with http and triple",
		"{protocol: https, service: a, method: m}":                "must be one of dubbo, bolt, http, triple",
	} {
		if r := invoke(t, "calls: ["+call+"]", "rule", "dry-run", "-f", "testdata/dryrun-http/rules.yaml", "--calls", "-"); r.code == ExitOK || !strings.Contains(r.err, want) {
			t.Errorf("%s: code %d: %s", call, r.code, r.err)
		}
	}
}

// A dry run keeps the promises of a token bucket: in any interval no more than the burst and what the rate gives.
func TestDryRunAtRate(t *testing.T) {
	rules, err := governance.Parse([]byte("apiVersion: governance.isthmus.io/v1alpha1\nkind: ThrottleRule\nmetadata: {name: r}\nspec: {threshold: 100, burst: 10}\n"))
	if err != nil {
		t.Fatal(err)
	}
	times := uint32(20_000)
	began := time.Now()
	out, err := dry(rules, []dryCall{{Service: "s", Method: "m", Times: &times, Every: time.Millisecond, Duration: 50 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	if got := out.Rules[0].Admitted; got < 2005 || got > 2010 || out.Rules[0].Rejected != int(times)-got {
		t.Errorf("%+v of %d in 20 s at 100/s", out.Rules[0], times)
	}
	t.Logf("%d calls in %s", times, time.Since(began))
}

// Whatever calls are described, each of them comes to one end.
func FuzzDryRun(f *testing.F) {
	text, err := os.ReadFile("testdata/dryrun/calls.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(text))
	f.Add("calls: [{service: a, method: m, oneWay: true, outcome: closed, protocol: bolt, duration: 1ns}]")
	f.Add("calls: [{at: 1h, times: 3, every: 1us, direction: server, application: orders, service: demo.Greet, method: m, version: v, group: g, callerIP: '::1', callerIdentity: 'spiffe://x', labels: {a: b}}]")
	text, err = os.ReadFile("testdata/dryrun/rules.yaml")
	if err != nil {
		f.Fatal(err)
	}
	rules, err := governance.Parse(text)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		settings, err := adapters.ParseSettings([]byte(text))
		if err != nil {
			return
		}
		var calls dryCalls
		if settings.Decode(&calls) != nil {
			return
		}
		total := 0
		for i := range calls.Calls {
			total += int(calls.Calls[i].times())
		}
		if total > 300 {
			return
		}
		out, err := dry(rules, calls.Calls)
		if err != nil {
			t.Fatal(err)
		}
		if len(out.Calls) != total {
			t.Errorf("%d calls, %d results", total, len(out.Calls))
		}
	})
}
