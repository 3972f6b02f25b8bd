// Package sofarpc proves, with real SOFARPC applications, that Bolt passes the mesh unharmed, is read to the call, and that a
// rejected call becomes an exception of SOFARPC's own.
package sofarpc

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/e2e/caller"
	"github.com/isthmus-mesh/isthmus/e2e/machine"
	"github.com/isthmus-mesh/isthmus/e2e/mesh"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
	"github.com/isthmus-mesh/isthmus/e2e/rig"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
)

func TestMain(m *testing.M) {
	os.Exit(rig.Main(m, append(rig.FilterPeers, peer.ZooKeeper, peer.SOFARegistry6, peer.SOFARPC, peer.Dubbo3)...))
}

const (
	provider, consumer           = "provider", "consumer"
	plainProvider, plainConsumer = "plain-provider", "plain-consumer" // machines without sidecars
	dubboProvider                = "dubbo-provider"                   // without a sidecar, too

	providerApp = "hello-provider"
	consumerApp = "hello-consumer"
	service     = "demo.HelloService"
	port        = 12200
	h2cPort     = 12300
	httpPort    = 8341
)

// workload is what a consumer calls, a second: invoked synchronously, one-way (note), with a future (later) and with a
// callback; fail throws, stall takes longer than its caller waits.
var workload = map[string]float64{"sayHello": 20, "echo": 10, "fail": 4, "slow": 2, "stall": 2, "note": 10, "later": 10, "callback": 10}

// bed is a mesh with a provider and a consumer in it, and a pair of the same that has never heard of a mesh.
type bed struct {
	*mesh.Mesh
	sidecars map[string]*mesh.Sidecar
	consumer *caller.Caller
	plain    *caller.Caller
	// On the consumer's machine, too:
	dubbo *caller.Caller
	h2c   *caller.Caller
}

// until waits for a condition.
func until(t *testing.T, what string, condition func(ctx context.Context) error) {
	t.Helper()
	rig.Until(t, 90*time.Second, what, condition)
}

// ready starts a Java application and waits until it says that it is ready.
func ready(ctx context.Context, m *mesh.Mesh, machine string, j mesh.JVM) (*machine.Process, error) {
	p, err := m.StartJava(machine, j)
	if err != nil {
		return nil, err
	}
	_, err = p.UntilLine(ctx, j.Name+" to be ready", func(line string) bool { return line == "READY" })
	return p, err
}

// sofa is a SOFARPC application that is registered in ZooKeeper.
func sofa(main, app string, options ...string) mesh.JVM {
	return mesh.JVM{Peer: peer.SOFARPC, Name: app, Main: main, Options: append([]string{"-Dapp.name=" + app,
		"-Dregistry.protocol=zookeeper", "-Dregistry.address=" + mesh.ZooKeeperAddress()}, options...)}
}

// dubbo is a Dubbo application that is registered in ZooKeeper.
func dubbo(main, app string, options ...string) mesh.JVM {
	return mesh.JVM{Peer: peer.Dubbo3, Name: app, Main: main, Options: append([]string{"-Ddubbo.application.name=" + app,
		"-Ddubbo.registry.address=zookeeper://" + mesh.ZooKeeperAddress()}, options...)}
}

// calls is the option that makes Load begin with rates.
func calls(rates map[string]float64) string {
	var list []string
	for _, method := range slices.Sorted(maps.Keys(rates)) {
		list = append(list, fmt.Sprintf("%s=%g", method, rates[method]))
	}
	return "-Dcalls=" + strings.Join(list, ",")
}

// follow starts an application that calls, and waits until it has called each of its methods.
func (b *bed) follow(ctx context.Context, machine string, j mesh.JVM, rates map[string]float64) (*caller.Caller, error) {
	j.Options = append(j.Options, calls(rates))
	p, err := ready(ctx, b.Mesh, machine, j)
	if err != nil {
		return nil, err
	}
	c := caller.Follow(p)
	return c, c.Until(ctx, "to call every method", caller.Mark{}, func(s []caller.Tally, _ []caller.Fault) bool {
		return len(caller.Sum(s)) == len(rates)
	})
}

// h2cStats is how the sidecars' counters of h2c's requests begin.
var h2cStats = map[string]string{consumer: fmt.Sprintf("outbound_0.0.0.0_%d", h2cPort), provider: fmt.Sprintf("inbound_0.0.0.0_%d", h2cPort)}

// active says why nothing in the sidecar's active listeners has such a prefix for its counters.
func active(ctx context.Context, s *mesh.Sidecar, prefix string) error {
	body, err := s.Admin(ctx, "/config_dump?resource=dynamic_listeners")
	if err != nil {
		return err
	}
	var page struct {
		Configs []struct {
			Active json.RawMessage `json:"active_state"`
		} `json:"configs"`
	}
	if err := json.Unmarshal(body, &page); err != nil {
		return err
	}
	for _, c := range page.Configs {
		if strings.Contains(string(c.Active), `"`+prefix) {
			return nil
		}
	}
	return fmt.Errorf("%s has none with %s", s.Machine().Name(), prefix)
}

func newBed(t *testing.T) *bed {
	b := &bed{Mesh: rig.Mesh(t), sidecars: make(map[string]*mesh.Sidecar)}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(b.StartZooKeeper(ctx))
	must(b.ConfigureServer(mesh.ServerOptions{Registries: []mesh.Registry{
		{Name: "zk", Kind: "zookeeper", Settings: map[string]any{"servers": []string{mesh.ZooKeeperAddress()}}}}}))
	must(b.StartServer(ctx))
	must(b.StartIstiod(ctx))
	t.Cleanup(func() {
		if t.Failed() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			b.Autopsy(ctx, slices.Collect(maps.Values(b.sidecars))...)
		}
	})
	for name, app := range map[string]string{provider: providerApp, consumer: consumerApp} {
		s, err := b.StartSidecar(ctx, name, app)
		must(err)
		b.sidecars[name] = s
	}
	var g errgroup.Group
	for name, j := range map[string]mesh.JVM{
		provider:      sofa("demo.Provider", providerApp, fmt.Sprintf("-Dservers=bolt:%d,h2c:%d,http:%d", port, h2cPort, httpPort)),
		plainProvider: sofa("demo.Provider", "plain-provider", "-Dunique.id=plain"),
		dubboProvider: dubbo("demo.Provider", "greet-provider", fmt.Sprintf("-Ddubbo.protocol.port=%d", port)),
	} {
		g.Go(func() error { _, err := ready(ctx, b.Mesh, name, j); return err })
	}
	must(g.Wait())
	// A connection that is made while an Envoy still loads the filter would pass it by.
	for name, s := range b.sidecars {
		until(t, "the filter", func(ctx context.Context) error { return s.Filtered(ctx, port, name == provider) })
		until(t, "the listener for h2c", func(ctx context.Context) error { return active(ctx, s, h2cStats[name]) })
	}
	g.Go(func() (err error) {
		b.consumer, err = b.follow(ctx, consumer, sofa("demo.Consumer", consumerApp), workload)
		return err
	})
	g.Go(func() (err error) {
		b.plain, err = b.follow(ctx, plainConsumer, sofa("demo.Consumer", "plain-consumer", "-Dunique.id=plain"), workload)
		return err
	})
	g.Go(func() (err error) {
		b.dubbo, err = b.follow(ctx, consumer, dubbo("demo.Consumer", "greet-consumer", "-Ddubbo.consumer.timeout=3000"), map[string]float64{"price": 20})
		return err
	})
	g.Go(func() (err error) {
		b.h2c, err = b.follow(ctx, consumer, sofa("demo.Consumer", "h2c-consumer", "-Dprotocol=h2c"), map[string]float64{"sayHello": 10})
		return err
	})
	must(g.Wait())
	return b
}

// kind is what an error is to whoever catches it, without the numbers and names in which two runs differ.
type kind struct {
	class   string
	code    int
	message string
}

var differs = regexp.MustCompile(`[0-9]+|:plain`)

func kindOf(f caller.Fault) kind {
	return kind{f.Error, f.Code, differs.ReplaceAllStringFunc(f.Message, func(s string) string {
		if s[0] == ':' {
			return ""
		}
		return "#"
	})}
}

// inFlight stands, among the outcomes, for calls that have none yet.
const inFlight = "in_flight"

// totals are the filter's counts of calls of a service, by method and outcome.
func totals(ctx context.Context, s *mesh.Sidecar, direction, system, service string) (map[string]map[string]int, error) {
	out := map[string]map[string]int{}
	for _, metric := range []string{"isthmus_rpc_requests_total", "isthmus_rpc_in_flight"} {
		samples, err := s.Metrics(ctx, metric)
		if err != nil {
			return nil, err
		}
		for _, x := range samples {
			if x.Labels["rpc_direction"] != direction || x.Labels["rpc_system"] != system || x.Labels["rpc_service"] != service || x.Value == 0 {
				continue
			}
			method, outcome := x.Labels["rpc_method"], cmp.Or(x.Labels["rpc_outcome"], inFlight)
			if out[method] == nil {
				out[method] = map[string]int{}
			}
			out[method][outcome] += int(x.Value)
		}
	}
	return out, nil
}

// untilTotals waits until the filter's totals are those.
func (b *bed) untilTotals(t *testing.T, machine, direction, system, service string, want map[string]map[string]int) {
	t.Helper()
	until(t, "the filter's totals at the "+direction, func(ctx context.Context) error {
		got, err := totals(ctx, b.sidecars[machine], direction, system, service)
		if late := got["stall"]; late != nil {
			// Its caller has given up, and an answer that comes afterwards counts as that. A provider that is slow enough not to have begun by
			// then drops the request without one (RpcRequestProcessor), and the filter goes on waiting.
			got["stall"] = map[string]int{"timeout": late["timeout"] + late[inFlight]}
		}
		if err == nil && !maps.EqualFunc(got, want, maps.Equal) {
			err = fmt.Errorf("they are %v, and should be %v", got, want)
		}
		return err
	})
}

// connections are those of the consumer's machine to SOFARPC's provider, as the consumer sees them.
func (b *bed) connections(t *testing.T) []string {
	t.Helper()
	all, err := b.sidecars[consumer].Machine().Connections()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, c := range all {
		if c.Remote.Port() == port && c.UID != machine.UserProxy {
			out = append(out, fmt.Sprintf("%s→%s", c.Local, c.Remote))
		}
	}
	slices.Sort(out)
	if len(out) == 0 {
		t.Fatal("the consumers have no connection")
	}
	return out
}

// TestCalls: SOFARPC's consumer sees through two sidecars what it sees without, and the filters read every call, beside
// Dubbo's calls to the same port.
func TestCalls(t *testing.T) {
	b := newBed(t)
	before := b.connections(t)

	t.Run("as without a mesh", func(t *testing.T) {
		_, faults := b.consumer.Since(caller.Mark{})
		_, plain := b.plain.Since(caller.Mark{})
		got, want := map[string]kind{}, map[string]kind{}
		for _, f := range faults {
			got[f.Method] = kindOf(f)
		}
		for _, f := range plain {
			want[f.Method] = kindOf(f)
		}
		if !maps.Equal(got, want) {
			t.Errorf("the consumer's errors are\n%v\nand without a mesh\n%v", got, want)
		}
		if k := want["fail"]; k.class != "java.lang.IllegalStateException" || k.code != -1 || k.message != "refused: no reason" {
			t.Errorf("fail throws %+v", k)
		}
		if k := want["stall"]; k.class != "com.alipay.sofa.rpc.core.exception.SofaTimeOutException" {
			t.Errorf("stall ends in %+v", k)
		}
		if len(want) != 2 {
			t.Errorf("others fail, too: %v", want)
		}
	})

	quiet := func(t *testing.T) caller.Tally {
		t.Helper()
		called, err := b.consumer.Quiet(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return called
	}

	t.Run("counted to the call", func(t *testing.T) {
		called := quiet(t)
		want := map[string]map[string]int{}
		for method, c := range called {
			switch method {
			case "fail":
				want[method] = map[string]int{"exception": c.Exceptions}
			case "note":
				want[method] = map[string]int{"none": c.OK}
			case "stall":
				want[method] = map[string]int{"timeout": c.Errors}
			default:
				want[method] = map[string]int{"ok": c.OK}
			}
		}
		b.untilTotals(t, consumer, "client", "bolt", service, want)
		b.untilTotals(t, provider, "server", "bolt", service, want)
	})

	t.Run("Dubbo on the same port", func(t *testing.T) {
		called, err := b.dubbo.Quiet(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if c := called.Total(); c.OK == 0 || c.Exceptions+c.Errors > 0 {
			t.Errorf("the Dubbo consumer counts %v", called)
		}
		b.untilTotals(t, consumer, "client", "dubbo", "demo.StockService", map[string]map[string]int{"price": {"ok": called["price"].OK}})
	})

	t.Run("SOFARPC's other protocols", func(t *testing.T) {
		called, err := b.h2c.Quiet(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if c := called.Total(); c.OK == 0 || c.Exceptions+c.Errors > 0 {
			t.Errorf("the h2c consumer counts %v", called)
		}
		// As HTTP, at both ends, and each call once.
		for name, listener := range h2cStats {
			until(t, "the sidecar's own count of requests", func(ctx context.Context) error {
				page, err := b.sidecars[name].Admin(ctx, `/stats?filter=downstream_rq_(2xx|total)`)
				if err != nil {
					return err
				}
				for _, rq := range []string{"2xx", "total"} {
					if want := fmt.Sprintf("http.%s;.downstream_rq_%s: %d\n", listener, rq, called.Total().OK); !strings.Contains(string(page), want) {
						return fmt.Errorf("no %q among\n%s", want, page)
					}
				}
				return nil
			})
		}
		body, err := b.API(t.Context(), "/api/v1/services/sofa/"+service+":1.0")
		if err != nil {
			t.Fatal(err)
		}
		var detail api.ServiceDetail
		if err := json.Unmarshal(body, &detail); err != nil {
			t.Fatal(err)
		}
		ports := map[model.Protocol]uint16{}
		for _, h := range detail.Hosts {
			ports[h.Protocol] = h.Port
		}
		if want := (map[model.Protocol]uint16{model.ProtocolBolt: port, model.ProtocolH2C: h2cPort, model.ProtocolHTTP: httpPort}); !maps.Equal(ports, want) {
			t.Errorf("the service's hosts are %+v", detail.Hosts)
		}
	})

	t.Run("throttled", func(t *testing.T) {
		for _, direction := range []string{"client", "server"} {
			b.throttle(t, direction)
		}
		called := quiet(t)
		// At the consumer's sidecar every call is counted, at the provider's those that the consumer's let through.
		atClient, err := totals(t.Context(), b.sidecars[consumer], "client", "bolt", service)
		if err != nil {
			t.Fatal(err)
		}
		atServer, err := totals(t.Context(), b.sidecars[provider], "server", "bolt", service)
		if err != nil {
			t.Fatal(err)
		}
		for method, c := range called {
			all, passed := 0, 0
			for outcome, n := range atClient[method] {
				all += n
				if outcome != "rejected" {
					passed += n
				}
			}
			if want := c.OK + c.Exceptions + c.Errors; all != want {
				t.Errorf("%s: the consumer has called %d times, and its sidecar counts %v", method, want, atClient[method])
			}
			all = 0
			for _, n := range atServer[method] {
				all += n
			}
			if all != passed {
				t.Errorf("%s: the consumer's sidecar let %d calls pass, and the provider's counts %v", method, passed, atServer[method])
			}
		}
	})

	if after := b.connections(t); !slices.Equal(before, after) {
		t.Errorf("the connections were %v and are %v", before, after)
	}
}

// throttle applies a rule to the whole service on one side, and takes it away again.
func (b *bed) throttle(t *testing.T, direction string) {
	t.Helper()
	name := "hello-at-" + direction
	rates := map[string]float64{"sayHello": 20, "later": 20, "callback": 20, "note": 20}
	if err := b.consumer.Rates(rates); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.consumer.Next(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	m := b.consumer.Mark()
	if err := b.ApplyRule(name, fmt.Sprintf(`apiVersion: governance.isthmus.io/v1alpha1
kind: ThrottleRule
metadata: {name: %s}
spec:
  direction: %s
  target: {service: %s}
  threshold: 8
`, name, direction, service)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 90*time.Second, fmt.Errorf("not within 90 s"))
	defer cancel()
	want := map[string]kind{}
	for method := range rates {
		want[method] = kind{"com.alipay.sofa.rpc.core.exception.SofaRpcException", 100, fmt.Sprintf("isthmus: throttled: rule \"default/%s\"; retry after # ms", name)}
	}
	// SOFARPC passes a serialized exception to a callback as an application's; see bolt.AppendReject.
	want["callback"] = kind{want["callback"].class, 199, want["callback"].message}
	delete(want, "note") // nobody answers a one-way call
	if err := b.consumer.Until(ctx, "to be throttled", m, func(_ []caller.Tally, faults []caller.Fault) bool {
		seen := map[string]bool{}
		for _, f := range faults {
			seen[f.Method] = true
		}
		return len(seen) >= len(want)
	}); err != nil {
		t.Fatal(err)
	}
	seconds, _, err := b.consumer.Next(ctx, 3)
	if err != nil {
		t.Fatal(err)
	}
	_, faults := b.consumer.Since(m)
	got := map[string]kind{}
	for _, f := range faults {
		got[f.Method] = kindOf(f)
	}
	if !maps.Equal(got, want) {
		t.Errorf("at the %s: the consumer's errors are\n%v\nand should be\n%v", direction, got, want)
	}
	// One-way calls use the limit up, too, but their caller does not learn of it.
	sum := caller.Sum(seconds)
	passed := sum["sayHello"].OK + sum["later"].OK + sum["callback"].OK
	if passed == 0 || passed > 8*(len(seconds)+1) {
		t.Errorf("at the %s: %d calls passed in %d s, at a limit of 8 a second: %v", direction, passed, len(seconds), sum)
	}
	m = b.consumer.Mark()
	if err := b.RemoveRule(name); err != nil {
		t.Fatal(err)
	}
	if err := b.consumer.Until(ctx, "to be free again", m, func(s []caller.Tally, _ []caller.Fault) bool {
		return len(s) > 1 && s[len(s)-1].Total().Errors == 0
	}); err != nil {
		t.Fatal(err)
	}
}
