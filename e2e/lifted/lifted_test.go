// Package lifted_test holds lifted services to real peers: an ordinary Dubbo consumer, whose connections a stock Envoy under a stock
// istiod turns into HTTP/2 streams, and ordinary Dubbo providers without sidecars.
package lifted_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
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
)

func TestMain(m *testing.M) {
	os.Exit(rig.Main(m, append([]peer.Peer{peer.ZooKeeper, peer.Dubbo3}, rig.FilterPeers...)...))
}

const (
	within    = 40 * time.Second
	port      = 20880
	greetHost = "demo.greet-service.v1-0-0.g-g1.dubbo.isthmus"
	consumer  = "consumer"
)

// lifted is a mesh in which Dubbo is lifted: a registry, two providers of versions v1 and v2 without sidecars, and a consumer
// with one.
type lifted struct {
	*mesh.Mesh
	t         *testing.T
	providers []*machine.Process
	addresses []string // of the providers, ip:port
	sidecar   *mesh.Sidecar
	caller    *caller.Caller
}

func newLifted(t *testing.T, calls string) *lifted {
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
	l.must(m.ConfigureServer(mesh.ServerOptions{
		Registries: []mesh.Registry{{Name: "zk", Kind: "zookeeper", Settings: map[string]any{"servers": []string{mesh.ZooKeeperAddress()}}}},
		Lift:       map[string]any{"services": []any{map[string]any{"framework": "dubbo"}}, "attachments": []string{"tenant"}},
	}))
	l.must(m.StartServer(ctx))
	l.must(m.StartIstiod(ctx))
	var g errgroup.Group
	for i := range 2 {
		x, err := m.Machine(fmt.Sprintf("provider-%d", i+1))
		l.must(err)
		l.addresses = append(l.addresses, fmt.Sprintf("%s:%d", x.Address(), port))
		l.providers = append(l.providers, nil)
		g.Go(func() error { return l.startProvider(i) })
	}
	_, err := m.Machine(consumer)
	l.must(err)
	g.Go(func() (err error) {
		l.sidecar, err = m.StartSidecar(ctx, consumer, "greet-consumer")
		return err
	})
	l.must(g.Wait())
	l.until("the filter", func(ctx context.Context) error { return l.sidecar.Filtered(ctx, port, false) })
	l.until("the endpoints", func(ctx context.Context) error { return l.has(ctx, l.addresses...) })
	p, err := m.StartJava(consumer, mesh.JVM{Peer: peer.Dubbo3, Name: "greet-consumer", Main: "demo.Consumer", Options: []string{
		"-Ddubbo.application.name=greet-consumer",
		"-Ddubbo.registry.address=zookeeper://" + mesh.ZooKeeperAddress(),
		"-Ddubbo.consumer.timeout=3000", "-Ddubbo.consumer.retries=0",
		"-Dcalls=" + calls,
	}})
	l.must(err)
	_, err = p.UntilLine(ctx, "the consumer to find its providers", func(line string) bool { return line == "READY" })
	l.must(err)
	l.caller = caller.Follow(p)
	return l
}

// startProvider starts the provider v1 or v2, as anybody would start a Dubbo provider.
func (l *lifted) startProvider(i int) error {
	p, err := l.StartJava(fmt.Sprintf("provider-%d", i+1), mesh.JVM{Peer: peer.Dubbo3, Name: "greet-provider", Main: "demo.Provider", Options: []string{
		"-Ddubbo.application.name=greet-provider",
		"-Ddubbo.registry.address=zookeeper://" + mesh.ZooKeeperAddress(),
		fmt.Sprintf("-Ddubbo.protocol.port=%d", port),
		fmt.Sprintf("-Ddubbo.provider.parameters.label.version=v%d", i+1),
	}})
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
	ctx, cancel := context.WithTimeout(l.t.Context(), within)
	defer cancel()
	l.must(machine.Until(ctx, what, condition))
}

// has holds the consumer's sidecar to the endpoints of the greeting service.
func (l *lifted) has(ctx context.Context, want ...string) error {
	have, err := l.sidecar.Endpoints(ctx, greetHost)
	if err == nil && strings.Join(have, " ") != strings.Join(want, " ") {
		err = fmt.Errorf("it has %q, not %q", have, want)
	}
	return err
}

// served returns how many calls of the greeting service the consumer's sidecar has sent to each provider, through all clusters of
// the service or through one subset's only.
func (l *lifted) served(ctx context.Context, subset string) (map[string]int, error) {
	body, err := l.sidecar.Admin(ctx, "/clusters?format=json")
	if err != nil {
		return nil, err
	}
	var page struct {
		ClusterStatuses []struct {
			Name         string `json:"name"`
			HostStatuses []struct {
				Address struct {
					Internal struct {
						ID string `json:"endpoint_id"`
					} `json:"envoy_internal_address"`
				} `json:"address"`
				Stats []struct {
					Name  string `json:"name"`
					Value string `json:"value"`
				} `json:"stats"`
			} `json:"host_statuses"`
		} `json:"cluster_statuses"`
	}
	if err := json.Unmarshal(body, &page); err != nil {
		return nil, err
	}
	out := map[string]int{}
	for _, c := range page.ClusterStatuses {
		if !strings.HasPrefix(c.Name, "outbound|") || !strings.HasSuffix(c.Name, "|"+greetHost) || subset != "" && !strings.Contains(c.Name, "|"+subset+"|") {
			continue
		}
		for _, h := range c.HostStatuses {
			for _, s := range h.Stats {
				if s.Name == "rq_total" && s.Value != "" { // 0 goes without saying
					var n int
					if _, err := fmt.Sscan(s.Value, &n); err != nil {
						return nil, fmt.Errorf("rq_total %q: %w", s.Value, err)
					}
					out[h.Address.Internal.ID] += n
				}
			}
		}
	}
	return out, nil
}

// routed waits until calls go through all of these subsets. Then the clusters are those that stay: one whose configuration changes is
// made anew, and counts from nothing.
func (l *lifted) routed(subsets ...string) {
	l.t.Helper()
	l.until("calls through the subsets", func(ctx context.Context) error {
		for _, s := range subsets {
			got, err := l.served(ctx, s)
			if err != nil {
				return err
			}
			n := 0
			for _, calls := range got {
				n += calls
			}
			if n == 0 {
				return fmt.Errorf("no call has gone through %s", s)
			}
		}
		return nil
	})
}

// split counts calls for so many seconds and returns how many each provider got. Not one of them may have failed.
func (l *lifted) split(seconds int) map[string]int {
	l.t.Helper()
	before, err := l.served(l.t.Context(), "")
	l.must(err)
	mark := l.caller.Mark()
	ctx, cancel := context.WithTimeout(l.t.Context(), within)
	defer cancel()
	_, faults, err := l.caller.Next(ctx, seconds)
	l.must(err)
	after, err := l.served(l.t.Context(), "")
	l.must(err)
	said, _ := l.caller.Since(mark)
	if total := caller.Sum(said).Total(); total.Errors > 0 || total.OK == 0 || len(faults) > 0 {
		l.t.Errorf("the consumer says %v, %v", caller.Sum(said), faults)
	}
	for a, n := range before {
		after[a] -= n
	}
	return after
}

// binomial holds k of n to a probability, within the interval that all but one in a thousand such counts are in (normal
// approximation, z = 3.29).
func binomial(k, n int, p float64) error {
	if n < 500 {
		return fmt.Errorf("only %d calls: the interval says nothing", n)
	}
	mean, deviation := float64(n)*p, math.Sqrt(float64(n)*p*(1-p))
	if math.Abs(float64(k)-mean) > 3.29*deviation {
		return fmt.Errorf("%d of %d calls, expected %.0f ± %.0f", k, n, mean, 3.29*deviation)
	}
	return nil
}

const operator = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: greet, namespace: default}
spec:
  host: ` + greetHost + `
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: greet, namespace: default}
spec:
  hosts: [` + greetHost + `]
  http:
  - route:
    - {destination: {host: ` + greetHost + `, subset: v1}, weight: 80}
    - {destination: {host: ` + greetHost + `, subset: v2}, weight: 20}
`

// TestOperator: an operator's own VirtualService and DestinationRule, which mcp-server never sees, split the calls of a consumer
// that has one connection to each provider and balances evenly by itself.
func TestOperator(t *testing.T) {
	l := newLifted(t, "sayHello=300")
	even := l.split(3)
	t.Logf("without a route: %v", even)
	l.must(l.ApplyIstio("greet", operator))
	l.routed("v1", "v2")
	got := l.split(6)
	t.Logf("80 to 20: %v", got)
	v1, v2 := got[l.addresses[0]], got[l.addresses[1]]
	l.must(binomial(v1, v1+v2, 0.8))
}
