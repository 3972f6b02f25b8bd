// Package lifted_test holds lifted services to real peers: an ordinary Dubbo consumer, whose connections a stock Envoy under a stock
// istiod turns into HTTP/2 streams, and ordinary Dubbo providers without sidecars.
package lifted_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/isthmus-mesh/isthmus/e2e/caller"
	"github.com/isthmus-mesh/isthmus/e2e/machine"
	"github.com/isthmus-mesh/isthmus/e2e/mesh"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
	"github.com/isthmus-mesh/isthmus/e2e/rig"
	"github.com/isthmus-mesh/isthmus/mcp-server/config"
)

func TestMain(m *testing.M) {
	os.Exit(rig.Main(m, append([]peer.Peer{peer.ZooKeeper, peer.Dubbo3, peer.SOFARPC, peer.Isthmusctl}, rig.FilterPeers...)...))
}

const (
	within    = 90 * time.Second
	port      = 20880
	greetHost = "demo.greet-service.v1-0-0.g-g1.dubbo.isthmus"
	consumer  = "consumer"
)

// lifted is a mesh in which Dubbo is lifted: a registry, two providers of versions v1 and v2, without sidecars unless theirs lower, and
// a consumer with one.
type lifted struct {
	*mesh.Mesh
	t         *testing.T
	providers []*machine.Process
	addresses []string // of the providers, ip:port
	sidecar   *mesh.Sidecar
	servers   []*mesh.Sidecar // of the providers, if they lower
	caller    *caller.Caller
	log       string // of the consumer
}

func newLifted(t *testing.T, lower string) *lifted {
	t.Helper()
	return newLiftedAs(t, map[string]any{"services": []any{map[string]any{"framework": "dubbo", "lower": lower}}, "attachments": []string{"tenant"}}, lower, 1)
}

// newLiftedAs is newLifted for a spec.mesh.lift and a number of workers of the consumer's sidecar.
func newLiftedAs(t *testing.T, lift map[string]any, lower string, workers int) *lifted {
	t.Helper()
	m := rig.Mesh(t)
	l := &lifted{Mesh: m, t: t}
	t.Cleanup(func() {
		if t.Failed() && l.sidecar != nil {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			m.Autopsy(ctx, l.sidecar)
		}
	})
	ctx := t.Context()
	l.must(m.StartZooKeeper(ctx))
	l.must(l.configure(lift))
	l.must(m.StartServer(ctx))
	l.must(m.StartIstiod(ctx))
	for i := range 2 {
		x, err := m.Machine(fmt.Sprintf("provider-%d", i+1))
		l.must(err)
		l.addresses = append(l.addresses, fmt.Sprintf("%s:%d", x.Address(), port))
		if lower == config.LowerProvider {
			s, err := m.StartSidecar(ctx, x.Name(), "greet-provider")
			l.must(err)
			l.servers = append(l.servers, s)
		}
	}
	_, err := m.Machine(consumer)
	l.must(err)
	l.providers = make([]*machine.Process, 2)
	var g errgroup.Group
	for i := range l.providers {
		g.Go(func() error { return l.startProvider(i) })
	}
	g.Go(func() (err error) {
		l.sidecar, err = m.StartSidecarWorkers(ctx, consumer, "greet-consumer", workers)
		return err
	})
	l.must(g.Wait())
	l.until("the filter", func(ctx context.Context) error { return l.sidecar.Filtered(ctx, port, false) })
	for _, x := range l.servers {
		l.until("the provider's filter", func(ctx context.Context) error { return x.Filtered(ctx, port, true) })
	}
	l.until("the endpoints", func(ctx context.Context) error { return l.has(ctx, l.addresses...) })
	p, err := m.StartJava(consumer, mesh.JVM{Peer: peer.Dubbo3, Name: "greet-consumer", Main: "demo.Consumer", Options: []string{
		"-Ddubbo.application.name=greet-consumer",
		"-Ddubbo.registry.address=zookeeper://" + mesh.ZooKeeperAddress(),
		"-Ddubbo.consumer.timeout=3000", "-Ddubbo.consumer.retries=0",
	}})
	l.must(err)
	_, err = p.UntilLine(ctx, "the consumer to find its providers", func(line string) bool { return line == "READY" })
	l.must(err)
	l.caller, l.log = caller.Follow(p), p.Log()
	return l
}

// configure writes mcp-server's configuration with a spec.mesh.lift.
func (l *lifted) configure(lift map[string]any) error {
	return l.ConfigureServer(mesh.ServerOptions{
		Registries: []mesh.Registry{{Name: "zk", Kind: "zookeeper", Settings: map[string]any{"servers": []string{mesh.ZooKeeperAddress()}}}},
		Scrape:     []string{consumer}, Token: apiToken, Lift: lift,
	})
}

// startProvider starts the provider v1 or v2, as anybody would start a Dubbo provider.
func (l *lifted) startProvider(i int) error { return l.startProviderWith(i) }

// startProviderWith does so with further options of the JVM.
func (l *lifted) startProviderWith(i int, options ...string) error {
	p, err := l.StartJava(fmt.Sprintf("provider-%d", i+1), mesh.JVM{Peer: peer.Dubbo3, Name: "greet-provider", Main: "demo.Provider", Options: append([]string{
		"-Ddubbo.application.name=greet-provider",
		"-Ddubbo.registry.address=zookeeper://" + mesh.ZooKeeperAddress(),
		fmt.Sprintf("-Ddubbo.protocol.port=%d", port),
		fmt.Sprintf("-Ddubbo.provider.parameters.label.version=v%d", i+1),
	}, options...)})
	if err != nil {
		return err
	}
	l.providers[i] = p
	_, err = p.UntilLine(l.t.Context(), "the provider to register", func(line string) bool { return line == "READY" })
	return err
}

// must fails the test on an error.
func (l *lifted) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// until waits for a condition.
func (l *lifted) until(what string, condition func(ctx context.Context) error) {
	l.t.Helper()
	rig.Until(l.t, within, what, condition)
}

// has holds the consumer's sidecar to the endpoints of the greeting service.
func (l *lifted) has(ctx context.Context, want ...string) error {
	have, err := l.sidecar.Endpoints(ctx, greetHost)
	if err == nil && strings.Join(have, " ") != strings.Join(want, " ") {
		err = fmt.Errorf("it has %q, not %q", have, want)
	}
	return err
}

// dialled returns how many calls the consumer's sidecar has sent to whom they were addressed to.
func (l *lifted) dialled(ctx context.Context) (n int, err error) {
	body, err := l.sidecar.Admin(ctx, "/stats?filter=cluster.isthmus-as-dialled.upstream_rq_completed")
	if err != nil {
		return 0, err
	}
	_, err = fmt.Sscanf(string(body), "cluster.isthmus-as-dialled.upstream_rq_completed: %d", &n)
	return n, err
}

// routed waits until calls of a method go through all of these subsets. Then the clusters are those that stay: one whose configuration
// changes is made anew, and counts from nothing.
func (l *lifted) routed(method string, subsets ...string) {
	l.t.Helper()
	l.must(l.caller.Rates(map[string]float64{method: 50}))
	defer func() {
		l.must(l.caller.Rates(map[string]float64{method: 0})) // which it may not have spoken of yet
		ctx, cancel := context.WithTimeout(l.t.Context(), within)
		defer cancel()
		_, err := l.caller.Quiet(ctx)
		l.must(err)
	}()
	before := map[string]int{}
	l.until("calls through the subsets", func(ctx context.Context) error {
		for _, s := range subsets {
			got, err := l.sidecar.Sent(ctx, greetHost, s)
			if err != nil {
				return err
			}
			n := 0
			for _, calls := range got {
				n += calls
			}
			was, looked := before[s]
			if before[s] = n; !looked || n <= was {
				return fmt.Errorf("no call has gone through %s: %d before, %d now", s, was, n)
			}
		}
		return nil
	})
}

// split lets the consumer make at least so many calls, all at a rate, and returns how many each provider got. Not one of them may fail
// or be missing.
func (l *lifted) split(method string, rate float64, calls int) map[string]int {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), within+time.Duration(float64(calls)/rate*float64(time.Second)))
	defer cancel()
	before, err := l.sidecar.Sent(ctx, greetHost, "")
	l.must(err)
	mark := l.caller.Mark()
	l.must(l.caller.Rates(map[string]float64{method: rate}))
	l.must(l.caller.Until(ctx, "to call often enough", mark, func(seconds []caller.Tally, _ []caller.Fault) bool {
		c := caller.Sum(seconds).Total()
		return c.OK+c.Errors+c.Exceptions >= calls
	}))
	_, err = l.caller.Quiet(ctx)
	l.must(err)
	after, err := l.sidecar.Sent(ctx, greetHost, "")
	l.must(err)
	seconds, faults := l.caller.Since(mark)
	said, got := caller.Sum(seconds).Total(), 0
	for a := range after {
		after[a] -= before[a]
		got += after[a]
	}
	if said.Errors+said.Exceptions > 0 || said.OK != got {
		l.t.Errorf("the consumer says %v %v, and its sidecar has sent %d calls", caller.Sum(seconds), faults, got)
	}
	return after
}

// binomial holds k of n calls to a probability; n must be large.
func binomial(k, n int, p float64) error {
	if n < 500 {
		return fmt.Errorf("only %d calls: the interval says nothing", n)
	}
	return caller.Binomial(k, n, p)
}

const rule = `apiVersion: governance.isthmus.io/v1alpha1
kind: RouteRule
metadata: {name: greet}
spec:
  service: {interface: demo.GreetService}
  routes:
  - match: [{attachments: {tenant: gold}}]
    to: [{labels: {version: v2}}]
    retries: {attempts: 2, retryOn: [reset, connect-failure, unavailable]}
  - retries: {attempts: 2, retryOn: [reset, connect-failure, unavailable]}
    to:
    - {labels: {version: v1}, percent: 80}
    - {labels: {version: v2}, percent: 20}
`

// changing changes the rule while calls are made: to other groups, to none, and back. No call may fail by it.
func (l *lifted) changing() {
	l.t.Helper()
	mark := l.caller.Mark()
	l.must(l.caller.Rates(map[string]float64{"sayHello": 400}))
	strict := strings.NewReplacer("  routes:", "  split: false\n  routes:", "percent: 80", "percent: 60", "percent: 20", "percent: 40").Replace(rule)
	for _, step := range []struct {
		text string
		has  bool
		mark string // in routes
	}{{strict, true, "|v1|"}, {"", false, "|v1|"}, {rule, true, "|v1-or-all|"}} {
		if step.text == "" {
			l.must(l.RemoveRule("greet"))
		} else {
			l.must(l.ApplyRule("greet", step.text))
		}
		l.until("routes with "+step.mark, func(ctx context.Context) error {
			page, err := l.sidecar.Admin(ctx, "/config_dump?resource=dynamic_route_configs")
			if err == nil && strings.Contains(string(page), step.mark+greetHost) != step.has {
				err = fmt.Errorf("the sidecar's routes go to %s: %v, want %v", step.mark, !step.has, step.has)
			}
			return err
		})
		_, _, err := l.caller.Next(l.t.Context(), 1)
		l.must(err)
	}
	ctx, cancel := context.WithTimeout(l.t.Context(), within)
	defer cancel()
	_, err := l.caller.Quiet(ctx)
	l.must(err)
	seconds, faults := l.caller.Since(mark)
	c := caller.Sum(seconds).Total()
	if c.OK < 400 || c.Exceptions+c.Errors > 0 {
		l.t.Errorf("while the rule changed the consumer said %v %v", caller.Sum(seconds), faults)
	}
	l.t.Logf("while the rule changed %d calls were answered", c.OK)
	l.routed("sayHello", "v1-or-all", "v2-or-all")
}

const operator = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: by-hand, namespace: default}
spec:
  host: ` + greetHost + `
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: by-hand, namespace: default}
spec:
  hosts: [` + greetHost + `]
  http:
  - route:
    - {destination: {host: ` + greetHost + `, subset: v1}, weight: 30}
    - {destination: {host: ` + greetHost + `, subset: v2}, weight: 70}
`

// enough is how many calls a split is held to.
const enough = 1500

// TestLifted: an ordinary consumer has one connection to each of two ordinary providers and balances evenly by itself. What becomes of its
// calls is decided call by call all the same: by nobody, by a RouteRule, by an operator's own VirtualService, and by the end of
// a provider.
func TestLifted(t *testing.T) {
	l := newLifted(t, config.LowerCaller)
	v1, v2 := l.addresses[0], l.addresses[1]

	// Dubbo asks each provider for its metadata: a service that no registry holds, and that only the one who was dialled can answer.
	if n, err := l.dialled(t.Context()); err != nil || n == 0 {
		t.Errorf("%d calls have gone where they were addressed, %v", n, err)
	}
	log, err := os.ReadFile(l.log)
	l.must(err)
	if strings.Contains(string(log), "Failed to get app metadata") {
		t.Error("the consumer could not get the providers' metadata")
	}

	even := l.split("sayHello", 300, enough)
	t.Logf("without a route: %v", even)
	if even[v1] == 0 || even[v2] == 0 {
		t.Errorf("without a route one provider gets everything: %v", even)
	}

	l.must(l.ApplyRule("greet", rule))
	l.routed("sayHello", "v1-or-all", "v2-or-all")
	got := l.split("sayHello", 300, enough)
	t.Logf("a RouteRule of 80 to 20: %v", got)
	if err := binomial(got[v1], got[v1]+got[v2], 0.8); err != nil {
		t.Error(err)
	}

	got = l.split("gold", 100, enough/5)
	t.Logf("an attachment that a route matches: %v", got)
	if got[v1] != 0 {
		t.Errorf("%d calls of the tenant have gone elsewhere", got[v1])
	}

	l.changing()

	// An operator's own go before ours.
	l.must(l.ApplyIstio("by-hand", operator))
	l.routed("sayHello", "v1", "v2")
	got = l.split("sayHello", 300, enough)
	t.Logf("an operator's VirtualService of 30 to 70: %v", got)
	if err := binomial(got[v1], got[v1]+got[v2], 0.3); err != nil {
		t.Error(err)
	}
	l.must(l.RemoveIstio("by-hand"))
	l.routed("sayHello", "v1-or-all", "v2-or-all")

	// A provider that goes takes no call with it, although a route is for it alone: it says so, and goes on for as long as the sidecar
	// is connected, which ends with its endpoint there.
	mark := l.caller.Mark()
	l.must(l.caller.Rates(map[string]float64{"sayHello": 100, "gold": 50}))
	_, _, err = l.caller.Next(t.Context(), 1)
	l.must(err)
	began := time.Now()
	l.must(l.providers[1].Stop(t.Context()))
	l.until("the end of its endpoint", func(ctx context.Context) error { return l.has(ctx, v1) })
	t.Logf("a provider has ended, and its endpoint is gone from the consumer's sidecar, after %s", time.Since(began).Round(time.Millisecond))
	_, _, err = l.caller.Next(t.Context(), 2)
	l.must(err)
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	_, err = l.caller.Quiet(ctx)
	l.must(err)
	seconds, faults := l.caller.Since(mark)
	if c := caller.Sum(seconds).Total(); c.OK == 0 || c.Exceptions+c.Errors > 0 {
		t.Errorf("the consumer says %v %v", caller.Sum(seconds), faults)
	}
	l.must(l.startProvider(1))
	l.until("its return", func(ctx context.Context) error { return l.has(ctx, v1, v2) })
	got = l.split("gold", 100, enough/5)
	t.Logf("a provider that has come back: %v", got)
	if got[v1] != 0 {
		t.Errorf("%d calls of the tenant have gone elsewhere", got[v1])
	}

	// Without mcp-server sidecars keep what they have.
	l.must(l.Server.Stop(t.Context()))
	got = l.split("gold", 100, enough/5)
	t.Logf("without mcp-server: %v", got)
	if got[v1] != 0 {
		t.Errorf("%d calls of the tenant have gone elsewhere", got[v1])
	}
	l.must(l.StartServer(t.Context()))
	l.must(l.providers[0].Stop(t.Context()))
	l.until("mcp-server's word after its restart", func(ctx context.Context) error { return l.has(ctx, v2) })
}

// TestProvidersLower: the same where the providers' own sidecars turn HTTP/2 back into Dubbo.
func TestProvidersLower(t *testing.T) {
	l := newLifted(t, config.LowerProvider)
	l.must(l.ApplyRule("greet", rule))
	l.routed("sayHello", "v1-or-all", "v2-or-all")
	got := l.split("sayHello", 300, enough)
	t.Logf("a RouteRule of 80 to 20: %v", got)
	if err := binomial(got[l.addresses[0]], got[l.addresses[0]]+got[l.addresses[1]], 0.8); err != nil {
		t.Error(err)
	}
	// Nothing of it passes the consumer's own internal listener, but for what is asked of one provider only.
	if n, err := l.dialled(t.Context()); err != nil || n == 0 {
		t.Errorf("%d calls have gone where they were addressed, %v", n, err)
	}
	for i, x := range l.servers {
		samples, err := x.Metrics(t.Context(), "isthmus_rpc_requests_total")
		l.must(err)
		n := 0
		for _, s := range samples {
			if s.Labels["rpc_direction"] == "server" && s.Labels["rpc_method"] == "sayHello" {
				n += int(s.Value)
			}
		}
		if n < got[l.addresses[i]] {
			t.Errorf("the sidecar of %s has seen %d calls, and was sent %d", l.addresses[i], n, got[l.addresses[i]])
		}
	}
}
