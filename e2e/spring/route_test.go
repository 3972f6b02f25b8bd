package spring_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/isthmus-mesh/isthmus/e2e/caller"
	"github.com/isthmus-mesh/isthmus/e2e/machine"
	"github.com/isthmus-mesh/isthmus/e2e/mesh"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
	"github.com/isthmus-mesh/isthmus/e2e/rig"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
)

const (
	triplePort = 50051
	tripleHost = "demo.greet-service.v1-0-0.g-g1.dubbo.isthmus"
	restHost   = "orders.spring.isthmus"
	enough     = 600 // calls that a split is held to
)

// routes is the spec that both services have: what has the attachment goes to v2, of all else 30 in a hundred do.
const routes = "  routes:\n  - {match: [{attachments: {tenant: gold}}], to: [{labels: {version: v2}}]}\n" +
	"  - to: [{labels: {version: v1}, percent: 70}, {labels: {version: v2}, percent: 30}]\n"

const part = 0.3 // of v2

// routed is two machines, v1 and v2, each with a provider of a Spring Cloud service and a real one of Triple, without sidecars, and a
// consumer's machine with one.
type routed struct {
	*mesh.Mesh
	t         *testing.T
	sidecar   *mesh.Sidecar
	addresses [2]string // of the providers' machines
	caller    *caller.Caller
}

func (b *routed) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// dubbo starts an application of Dubbo's and waits until it is ready.
func (b *routed) dubbo(where, main string, options ...string) (*machine.Process, error) {
	p, err := b.StartJava(where, mesh.JVM{Peer: peer.Dubbo3, Name: "triple", Main: main, Options: append([]string{
		"-Ddubbo.application.name=" + strings.ToLower(main[len("demo."):]), "-Ddubbo.registry.address=zookeeper://" + mesh.ZooKeeperAddress()}, options...)})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(b.t.Context(), within)
	defer cancel()
	_, err = p.UntilLine(ctx, main+" to be ready", func(line string) bool { return line == "READY" })
	return p, err
}

func newRouted(t *testing.T) *routed {
	t.Helper()
	b := &routed{Mesh: rig.Mesh(t), t: t}
	list := "apiVersion: adapters.isthmus.io/v1alpha1\nkind: ServiceList\nservices:\n- framework: spring\n  interface: orders\n  endpoints:\n"
	for i, version := range versions {
		m, err := b.Machine(version)
		b.must(err)
		b.addresses[i] = m.Address().String()
		list += fmt.Sprintf("  - {address: %s, port: %d, protocol: http, application: orders, labels: {version: %s}}\n", m.Address(), port, version)
		var listener net.Listener
		b.must(m.Do(func() (err error) {
			listener, err = net.Listen("tcp", fmt.Sprintf("%s:%d", m.Address(), port))
			return err
		}))
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, version) })}
		go server.Serve(listener) //nolint:errcheck // until it is closed
		t.Cleanup(func() { server.Close() })
	}
	services := filepath.Join(b.Folder(), "services.yaml")
	b.must(os.WriteFile(services, []byte(list), 0o644))
	b.must(b.StartZooKeeper(t.Context()))
	b.must(b.ConfigureServer(mesh.ServerOptions{Registries: []mesh.Registry{{Name: "files", Kind: "file", Settings: map[string]any{"path": b.Host().Exposed(services)}},
		{Name: "zk", Kind: "zookeeper", Settings: map[string]any{"servers": []string{mesh.ZooKeeperAddress()}}}}}))
	for name, service := range map[string]string{"orders": "{framework: spring, interface: orders}", "greet": "{interface: demo.GreetService, version: 1.0.0, group: g1}"} {
		b.must(b.ApplyRule(name, fmt.Sprintf("apiVersion: governance.isthmus.io/v1alpha1\nkind: RouteRule\nmetadata: {name: %s}\nspec:\n  service: %s\n%s", name, service, routes)))
	}
	var providers errgroup.Group
	for _, version := range versions {
		providers.Go(func() error {
			_, err := b.dubbo(version, "demo.Provider", "-Ddubbo.protocol.name=tri", fmt.Sprintf("-Ddubbo.protocol.port=%d", triplePort), "-Ddubbo.provider.parameters.label.version="+version)
			return err
		})
	}
	b.must(b.StartServer(t.Context()))
	b.must(b.StartIstiod(t.Context()))
	sidecar, err := b.StartSidecar(t.Context(), "consumer", "web")
	b.must(err)
	b.sidecar = sidecar
	b.must(providers.Wait())
	// What the sidecar has of the routes: each subset's endpoint, and the addresses among the hosts.
	rig.Until(t, within, "the routes", func(ctx context.Context) error {
		for _, host := range []string{restHost, tripleHost} {
			at, err := sidecar.Endpoints(ctx, host)
			if err != nil {
				return err
			}
			if len(at) != len(versions) {
				return fmt.Errorf("of %s the sidecar has %q", host, at)
			}
		}
		page, err := sidecar.Admin(ctx, "/config_dump?resource=dynamic_route_configs")
		if err != nil {
			return err
		}
		for _, text := range []string{"default/orders/1", "default/greet/1", fmt.Sprintf("%s:%d", b.addresses[1], port), fmt.Sprintf("%s:%d", b.addresses[1], triplePort)} {
			if !strings.Contains(string(page), text) {
				return fmt.Errorf("there is no %s", text)
			}
		}
		return nil
	})
	p, err := b.dubbo("consumer", "demo.Consumer", "-Ddubbo.consumer.timeout=3000", "-Ddubbo.consumer.retries=0")
	b.must(err)
	b.caller = caller.Follow(p)
	return b
}

// versions are the machines' names and the labels of what runs there.
var versions = [...]string{"v1", "v2"}

// inPart holds k of n calls to the part that v2 has.
func inPart(k, n int) error { return caller.Binomial(k, n, part) }

// TestRouteRule holds RouteRules for a Spring Cloud service and for one of Triple to what becomes of calls, by callers of the services' hosts and by those
// that have addresses from a registry.
func TestRouteRule(t *testing.T) {
	b := newRouted(t)
	t.Run("spring", func(t *testing.T) {
		// Spring Cloud's load balancer puts the address of the instance that it has chosen into the URL, and so into the header Host.
		for name, c := range map[string]struct{ authority, dial string }{
			"address": {fmt.Sprintf("%s:%d", b.addresses[0], port), b.addresses[0]},
			"host":    {host, b.addresses[0]},
		} {
			t.Run(name, func(t *testing.T) {
				client := http.Client{Timeout: within, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
					return b.sidecar.Machine().DialContext(ctx, "tcp", fmt.Sprintf("%s:%d", c.dial, port))
				}}}
				defer client.CloseIdleConnections()
				call := func(tenant string) string {
					r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+c.authority+"/orders/1", nil)
					if err != nil {
						t.Fatal(err)
					}
					if tenant != "" {
						r.Header.Set("tenant", tenant)
					}
					resp, err := client.Do(r)
					if err != nil {
						t.Fatal(err)
					}
					defer resp.Body.Close()
					body, err := io.ReadAll(resp.Body)
					if err != nil || resp.StatusCode != http.StatusOK {
						t.Fatalf("status %d, %q, %v", resp.StatusCode, body, err)
					}
					return string(body)
				}
				by := map[string]int{}
				for range enough {
					by[call("silver")]++
				}
				if err := inPart(by["v2"], by["v1"]+by["v2"]); err != nil {
					t.Error(err)
				}
				for i := range 50 {
					if got := call("gold"); got != "v2" {
						t.Fatalf("call %d with the header went to %s", i, got)
					}
				}
				t.Logf("%v", by)
			})
		}
		b.became(t, "orders", api.RoutedHost{Host: restHost, VirtualService: "default/route-orders.spring", DestinationRule: "default/route-orders.spring"})
	})
	t.Run("triple", func(t *testing.T) {
		said, by := b.calls(t, map[string]float64{"sayHello": 400}, enough, tripleHost)
		if c, n := said["sayHello"], by[0]; c.Errors+c.Exceptions > 0 || c.OK != n[0]+n[1] {
			t.Errorf("the consumer says %s, its sidecar has sent %v", said, n)
		}
		if err := inPart(by[0][1], by[0][0]+by[0][1]); err != nil {
			t.Error(err)
		}
		t.Logf("sayHello: %v", by[0])
		// Calls with the attachment are v2's. Those of a service on the same port that no rule is for go to whom they are sent.
		said, by = b.calls(t, map[string]float64{"gold": 50, "price": 50}, 50, tripleHost, fmt.Sprintf("dialled-%d.isthmus", triplePort))
		if c, n := said["gold"], by[0]; c.Errors+c.Exceptions > 0 || n[0] != 0 || n[1] != c.OK {
			t.Errorf("with the attachment: the consumer says %s, its sidecar has sent %v", said, n)
		}
		if c, n := said["price"], by[1]; c.Errors+c.Exceptions > 0 || n[0]+n[1] < c.OK || n[0] == 0 || n[1] == 0 {
			t.Errorf("of another service: the consumer says %s, its sidecar has sent %v", said, n)
		}
		name := "default/route-" + strings.TrimSuffix(tripleHost, ".isthmus")
		b.became(t, "greet", api.RoutedHost{Host: tripleHost, VirtualService: name, DestinationRule: name, Dialled: fmt.Sprintf("default/route-dialled-%d", triplePort)})
	})
}

// calls lets the consumer call at these rates, each method so often at least, and returns what it says of that, and how many calls its sidecar has sent to
// each provider by way of each host's clusters.
func (b *routed) calls(t *testing.T, rates map[string]float64, each int, hosts ...string) (caller.Tally, [][len(versions)]int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	sent := func() [][len(versions)]int {
		n := make([][len(versions)]int, len(hosts))
		for i, host := range hosts {
			by, err := b.sidecar.Sent(ctx, host, "")
			if err != nil {
				t.Fatal(err)
			}
			for j, a := range b.addresses {
				n[i][j] = by[fmt.Sprintf("%s:%d", a, triplePort)]
			}
		}
		return n
	}
	before, mark := sent(), b.caller.Mark()
	err := b.caller.Rates(rates)
	if err == nil {
		err = b.caller.UntilCalled(ctx, mark, maps.Keys(rates), each)
	}
	_, quiet := b.caller.Quiet(ctx)
	if err := errors.Join(err, quiet); err != nil {
		t.Fatal(err)
	}
	after := sent()
	seconds, faults := b.caller.Since(mark)
	for _, f := range faults {
		t.Logf("%s: %s %s", f.Method, f.Error, f.Message)
	}
	for i := range after {
		for j := range after[i] {
			after[i][j] -= before[i][j]
		}
	}
	return caller.Sum(seconds), after
}

// became holds what mcp-server says that a rule became.
func (b *routed) became(t *testing.T, rule string, want api.RoutedHost) {
	t.Helper()
	r, err := mesh.Ask[api.RuleDetail](t.Context(), b.Mesh, "/api/v1/rules/RouteRule/default/"+rule)
	if err != nil {
		t.Fatal(err)
	}
	if e := r.Effective; e.State != api.EffectiveServed || len(e.Routes) != 1 || fmt.Sprint(e.Routes[0]) != fmt.Sprint(want) {
		t.Errorf("it is %s, and became %+v, not %+v", e.State, e.Routes, want)
	}
	problems, err := mesh.Ask[api.ProblemList](t.Context(), b.Mesh, "/api/v1/problems?stage=rules")
	if err != nil {
		t.Fatal(err)
	}
	if len(problems.Items) > 0 {
		t.Errorf("problems: %+v", problems.Items)
	}
}
