// Package dubbo proves that Dubbo applications of each line, in each of the serializations that they agree on, pass the mesh unharmed
// and are read to the call.
package dubbo

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/e2e/caller"
	"github.com/isthmus-mesh/isthmus/e2e/machine"
	"github.com/isthmus-mesh/isthmus/e2e/mesh"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
	"github.com/isthmus-mesh/isthmus/e2e/rig"
)

func TestMain(m *testing.M) {
	os.Exit(rig.Main(m, append(rig.FilterPeers, peer.ZooKeeper, peer.Dubbo3, peer.Dubbo27)...))
}

const (
	provider, consumer = "provider", "consumer" // machines
	providerApp        = "greet-provider"
	consumerApp        = "greet-consumer"
	port               = 20880
	within             = 90 * time.Second
)

// workload is what the consumer calls, a second.
var workload = map[string]float64{"sayHello": 30, "echo": 20, "fail": 5, "slow": 2, "price": 20}

func until(t *testing.T, what string, condition func(ctx context.Context) error) {
	t.Helper()
	rig.Until(t, within, what, condition)
}

// start starts an application as anybody would and waits until it is ready.
func start(t *testing.T, m *mesh.Mesh, where, main, app string, p peer.Peer, options ...string) *machine.Process {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*within)
	defer cancel()
	process, err := m.StartJava(where, mesh.JVM{Peer: p, Name: app, Main: main, Options: append([]string{
		"-Ddubbo.application.name=" + app, "-Ddubbo.registry.address=zookeeper://" + mesh.ZooKeeperAddress()}, options...)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := process.UntilLine(ctx, app+" to be ready", func(line string) bool { return line == "READY" }); err != nil {
		t.Fatal(err)
	}
	return process
}

// TestVersions: whatever Dubbo both ends are, each call is metered at both ends with its service, version, group, method, caller and
// outcome, exactly as often as the consumer has made it; and a rejection is an RpcException that says what rule it was.
func TestVersions(t *testing.T) {
	const oneSerialization = "-Ddubbo.protocol.prefer-serialization="
	for name, c := range map[string]struct {
		provider, consumer peer.Peer
		options            []string // of the provider
	}{
		"3 to 3, fastjson2":  {peer.Dubbo3, peer.Dubbo3, []string{oneSerialization + "fastjson2", "-Ddubbo.protocol.serialization=fastjson2"}},
		"3 to 3, hessian2":   {peer.Dubbo3, peer.Dubbo3, []string{oneSerialization + "hessian2", "-Ddubbo.protocol.serialization=hessian2"}},
		"2.7 to 2.7":         {peer.Dubbo27, peer.Dubbo27, nil},
		"2.7 to 3":           {peer.Dubbo3, peer.Dubbo27, nil},
		"3 to a 2.7 service": {peer.Dubbo27, peer.Dubbo3, nil},
	} {
		t.Run(name, func(t *testing.T) {
			m := rig.Mesh(t)
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			must(m.StartZooKeeper(t.Context()))
			must(m.ConfigureServer(mesh.ServerOptions{Registries: []mesh.Registry{
				{Name: "zk", Kind: "zookeeper", Settings: map[string]any{"servers": []string{mesh.ZooKeeperAddress()}}}}}))
			must(m.StartServer(t.Context()))
			must(m.StartIstiod(t.Context()))
			sidecars := map[string]*mesh.Sidecar{}
			for where, app := range map[string]string{provider: providerApp, consumer: consumerApp} {
				s, err := m.StartSidecar(t.Context(), where, app)
				must(err)
				sidecars[where] = s
			}
			start(t, m, provider, "demo.Provider", providerApp, c.provider, append(c.options, fmt.Sprintf("-Ddubbo.protocol.port=%d", port))...)
			for where, s := range sidecars {
				until(t, "the filter", func(ctx context.Context) error { return s.Filtered(ctx, port, where == provider) })
			}
			var rates []string
			for _, method := range slices.Sorted(maps.Keys(workload)) {
				rates = append(rates, fmt.Sprintf("%s=%g", method, workload[method]))
			}
			calls := caller.Follow(start(t, m, consumer, "demo.Consumer", consumerApp, c.consumer,
				"-Ddubbo.consumer.timeout=3000", "-Ddubbo.consumer.retries=0", "-Dcalls="+strings.Join(rates, ",")))
			ctx, cancel := context.WithTimeout(t.Context(), 2*within)
			defer cancel()
			must(calls.Until(ctx, "to call every method", caller.Mark{}, func(s []caller.Tally, _ []caller.Fault) bool {
				return len(caller.Sum(s)) == len(workload)
			}))
			_, _, err := calls.Next(ctx, 1)
			must(err)
			total, err := calls.Quiet(ctx)
			must(err)
			if n := total.Total(); n.Errors > 0 {
				_, faults := calls.Since(caller.Mark{})
				t.Fatalf("calls failed: %s: %+v", total, faults)
			}
			for where, direction := range map[string]string{provider: "server", consumer: "client"} {
				until(t, "the counts at the "+direction, func(ctx context.Context) error { return exact(ctx, sidecars[where], direction, total) })
			}
			reject(t, m, calls)
		})
	}
}

// series is what tells the series of a call apart.
type series struct{ system, service, version, group, method, caller, outcome string }

// exact compares a sidecar's counts with the consumer's own.
func exact(ctx context.Context, s *mesh.Sidecar, direction string, total caller.Tally) error {
	want := map[series]int{}
	for method, n := range total {
		k := series{"dubbo", "demo.GreetService", "1.0.0", "g1", method, consumerApp, "ok"}
		if method == "price" {
			k.service, k.version, k.group = "demo.StockService", "0.0.0", ""
		}
		if n.OK > 0 {
			want[k] = n.OK
		}
		if k.outcome = "exception"; n.Exceptions > 0 {
			want[k] = n.Exceptions
		}
	}
	samples, err := s.Metrics(ctx, "isthmus_rpc_requests_total")
	if err != nil {
		return err
	}
	got := map[series]int{}
	for _, x := range samples {
		if _, ours := workload[x.Labels["rpc_method"]]; ours && x.Labels["rpc_direction"] == direction && x.Value > 0 {
			l := x.Labels
			got[series{l["rpc_system"], l["rpc_service"], l["rpc_version"], l["rpc_group"], l["rpc_method"], l["rpc_caller"], l["rpc_outcome"]}] += int(x.Value)
		}
	}
	if !maps.Equal(got, want) {
		return fmt.Errorf("they are %v, the consumer's %v", sorted(got), sorted(want))
	}
	faults, err := s.Metrics(ctx, "isthmus_filter_faults_total")
	for _, x := range faults {
		if x.Value > 0 {
			return fmt.Errorf("the filter has met %s %g times", x.Labels["rpc_filter_reason"], x.Value)
		}
	}
	return err
}

func sorted(m map[series]int) []string {
	var out []string
	for _, k := range slices.SortedFunc(maps.Keys(m), func(a, b series) int { return cmp.Compare(fmt.Sprint(a), fmt.Sprint(b)) }) {
		out = append(out, fmt.Sprint(k, m[k]))
	}
	return out
}

const rule = `apiVersion: governance.isthmus.io/v1alpha1
kind: ThrottleRule
metadata: {name: none}
spec:
  direction: client
  target: {service: demo.GreetService, method: sayHello}
  threshold: 0
`

// reject applies a rule that admits no call, and looks at what the consumer sees.
func reject(t *testing.T, m *mesh.Mesh, calls *caller.Caller) {
	t.Helper()
	if err := m.ApplyRule("none", rule); err != nil {
		t.Fatal(err)
	}
	mark := calls.Mark()
	if err := calls.Rates(map[string]float64{"sayHello": 20, "price": 20}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	var told caller.Fault
	if err := calls.Until(ctx, "to be rejected", mark, func(s []caller.Tally, faults []caller.Fault) bool {
		for _, f := range faults {
			told = f
		}
		return told.Error != "" && len(s) > 2 && s[len(s)-1]["sayHello"].Errors > 0 && s[len(s)-1]["price"].OK > 0
	}); err != nil {
		t.Fatal(err)
	}
	if told.Error != "org.apache.dubbo.rpc.RpcException" || told.Method != "sayHello" || !strings.Contains(told.Message, `isthmus: throttled: rule "default/none"`) {
		t.Errorf("the consumer sees %+v", told)
	}
}
