package app

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/isthmus-mesh/isthmus/mcp-server/console/client"
	"github.com/isthmus-mesh/isthmus/mcp-server/rollout"
)

const release = `apiVersion: governance.isthmus.io/v1alpha1
kind: Rollout
metadata: {name: r}
spec:
  service: {interface: demo.One}
  stable: {version: v1}
  canary: {version: v2}
  steps: [{percent: 20}, {percent: 60}]
  interval: 1s
  analysis: {minCalls: 10, errorRate: {max: 5%}}
`

// A release goes its way in a whole mcp-server: over the API into a rule, by what an Envoy shows to the next step, and past a restart, after
// which it is where it was.
func TestRollout(t *testing.T) {
	dir := t.TempDir()
	var calls, failed atomic.Int64
	envoy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for _, version := range []string{"v1", "v2"} {
			for outcome, n := range map[string]int64{"ok": calls.Load(), "exception": failed.Load()} {
				fmt.Fprintf(w, "isthmus_rpc_subset_requests_total{rpc_direction=\"client\",rpc_system=\"dubbo\",rpc_service=\"demo.One\",rpc_version=\"0.0.0\",rpc_subset=\"%s-or-all\",rpc_outcome=%q} %d\n", version, outcome, n)
			}
		}
	}))
	defer envoy.Close()
	write(t, filepath.Join(dir, "isthmus.yaml"), strings.ReplaceAll(configuration+"  mesh: {lift: {services: [{framework: dubbo}]}}\n  xds: {address: \"127.0.0.1:0\", advertise: \"127.0.0.1:15992\"}\n", "DIR", dir)+
		"  telemetry: {interval: 100ms, targets: [{name: one, url: \""+envoy.URL+"/stats/prometheus\"}]}\n")
	write(t, filepath.Join(dir, "services.yaml"), strings.Replace(fmt.Sprintf(services, "One"), "application: demo}", "application: demo, labels: {version: v1}}, {address: 10.0.0.2, port: 20880, application: demo, labels: {version: v2}}", 1))
	p := start(t, dir)
	id := client.RolloutID{Namespace: "default", Name: "r"}
	p.until("the services", func() bool { code, _ := p.get("/readyz"); return code == 200 })
	if _, err := p.client.StartRollout(t.Context(), id, []byte(strings.Replace(release, "demo.One", "demo.Two", 1))); err == nil || !strings.Contains(err.Error(), "spec.service: there is no such service") {
		t.Errorf("a service that there is not: %v", err)
	}
	if _, err := p.client.StartRollout(t.Context(), id, []byte(release)); err != nil {
		t.Fatal(err)
	}
	until := func(what string, phase rollout.Phase, percent int) {
		t.Helper()
		p.until(what, func() bool {
			calls.Add(1)
			r, err := p.client.Rollout(t.Context(), id)
			return err == nil && r.Phase == phase && int(r.Percent) == percent
		})
		b, err := os.ReadFile(filepath.Join(dir, "rules", "routerule-default-rollout-r.yaml"))
		if err != nil || !strings.Contains(string(b), fmt.Sprintf("percent: %d\n", percent)) || !strings.Contains(string(b), fmt.Sprintf("percent: %d\n", 100-percent)) {
			t.Errorf("%s: the rule is %s %v", what, b, err)
		}
	}
	until("the first step", rollout.PhaseProgressing, 20)
	until("the second step", rollout.PhaseProgressing, 60)
	p.stop()
	p = start(t, dir)
	until("the same step after a restart", rollout.PhaseProgressing, 60)
	until("the last step", rollout.PhaseProgressing, 100)
	failed.Add(1000)
	until("the way back", rollout.PhaseFailed, 0)
	if r, err := p.client.Rollout(t.Context(), id); err != nil || len(r.Passed) != 3 || r.Passed[1].Result != rollout.ResultPassed || r.Passed[2].Result != rollout.ResultFailed {
		t.Errorf("%+v %v", r, err)
	}
	if code, body := p.get("/metrics"); code != 200 || !strings.Contains(body, `isthmus_rollouts{phase="Failed"} 1`) {
		t.Errorf("%d %.300s", code, body)
	}
	// Whoever removes its rule removes it.
	if err := p.client.DeleteRule(t.Context(), client.RuleID{Kind: "RouteRule", Namespace: "default", Name: "rollout-r"}, client.AnyRevision); err != nil {
		t.Fatal(err)
	}
	if _, err := p.client.Rollout(t.Context(), id); !client.IsNotFound(err) {
		t.Error(err)
	}
}
