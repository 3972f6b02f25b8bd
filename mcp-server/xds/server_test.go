package xds

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/isthmus-mesh/isthmus/adapters/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// service has n endpoints; seed makes them others.
func service(host string, n int, seed byte) Service {
	s := Service{Host: host, Namespace: "vm"}
	for i := range n {
		s.Endpoints = append(s.Endpoints, Endpoint{
			Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, seed, byte(i >> 8), byte(i)}), 20880), Labels: map[string]string{"app": "shop", "version": fmt.Sprintf("v%d", i%2+1)},
		})
	}
	return s
}

func name(host string) string { return ClusterName{Host: host, Port: 20880}.String() }

// Nothing is answered before there is something complete: an answer would take away what a sidecar has.
func TestNothingBeforeApply(t *testing.T) {
	s, address := start(t, Options{}, nil)
	e := dial(t, address, dialOptions{})
	c := e.subscribe(nil, name("a"), name("b"))
	e.wait("the subscription", func() bool { return len(s.Clients()) == 1 && s.Clients()[0].Names == 2 })
	if s.Serving() {
		t.Error("it serves nothing")
	}
	s.Apply(NewAssignments([]Service{service("a", 3, 0)}, nil))
	e.wait("endpoints", func() bool { return c.endpoints(name("a")) == 3 && c.removed[name("b")] == 1 })
	e.mu.Lock()
	defer e.mu.Unlock()
	if c.responses != 1 {
		t.Errorf("%d responses for one state", c.responses)
	}
}

// What sidecars ask for tells which DestinationRules are in force in them.
func TestAsked(t *testing.T) {
	s, address := start(t, Options{}, nil)
	e := dial(t, address, dialOptions{})
	subset := func(host, subset string) string { return ClusterName{Host: host, Port: 20880, Subset: subset}.String() }
	e.subscribe(nil, name("a"), "none of ours")
	first := e.subscribe(nil, subset("a", "v2"), subset("b", "v1")) // another stream of the same sidecar
	const node = "sidecar~10.0.0.9~shop-1.vm~vm.svc.cluster.local"
	is := func(want string) {
		t.Helper()
		e.wait("the subscriptions "+want, func() bool { return strings.ReplaceAll(fmt.Sprintf("%q", s.Asked()), node, "node") == want })
	}
	is(`map["a":map["node":["" "v2"]] "b":map["node":["v1"]]]`)
	first.end()
	is(`map["a":map["node":[""]]]`)
}

// Two sidecars in different zones are each told their own zone's endpoints first, and each what changes for it.
func TestFailover(t *testing.T) {
	s, address := start(t, Options{}, nil)
	zones := []string{"a", "b"}
	apply := func(weight uint32, failover bool) {
		x := service("a", 4, 0)
		x.Failover = failover
		for i := range x.Endpoints {
			x.Endpoints[i].Locality, x.Endpoints[i].Weight = model.Locality{Region: "cn", Zone: zones[i%2]}, weight
		}
		s.Apply(NewAssignments([]Service{x}, nil))
	}
	apply(1, true)
	var sidecars []*sidecar
	var clusters []*cluster
	for _, z := range zones {
		e := dial(t, address, dialOptions{from: &core.Locality{Region: "cn", Zone: z}})
		sidecars, clusters = append(sidecars, e), append(clusters, e.subscribe(nil, name("a")))
	}
	// holds tells whether a cluster has the sidecar's zone first, and the other with this priority.
	holds := func(i int, other, weight uint32) bool {
		got := clusters[i].has[name("a")].GetEndpoints()
		if len(got) != 2 {
			return false
		}
		for _, g := range got {
			want := other
			if g.GetLocality().GetZone() == zones[i] {
				want = 0
			}
			if g.Priority != want || g.LoadBalancingWeight.GetValue() != 2*weight || len(g.LbEndpoints) != 2 {
				return false
			}
		}
		return true
	}
	for _, x := range []struct {
		weight   uint32
		failover bool
		other    uint32
	}{{1, true, 1}, {3, true, 1}, {3, false, 0}, {3, true, 1}} {
		apply(x.weight, x.failover)
		for i, e := range sidecars {
			e.wait(fmt.Sprintf("%+v in zone %s", x, zones[i]), func() bool { return holds(i, x.other, x.weight) })
		}
	}
}

// Only what has changed is sent, to those who asked for it. What goes is taken back, and comes again.
func TestChanges(t *testing.T) {
	s, address := start(t, Options{}, nil)
	s.Apply(NewAssignments([]Service{service("a", 3, 0), service("b", 3, 0)}, nil))
	e := dial(t, address, dialOptions{})
	a, b := e.subscribe(nil, name("a")), e.subscribe(nil, name("b"))
	v2 := ClusterName{Host: "a", Subset: "v2", Port: 20880}.String()
	sub := e.subscribe(nil, v2)
	e.wait("the first state", func() bool {
		return a.endpoints(name("a")) == 3 && b.endpoints(name("b")) == 3 && sub.endpoints(v2) == 1
	})
	s.Apply(NewAssignments([]Service{service("a", 5, 0), service("b", 3, 0)}, nil))
	e.wait("the change", func() bool { return a.endpoints(name("a")) == 5 && sub.endpoints(v2) == 2 })
	s.Apply(NewAssignments([]Service{service("a", 0, 0)}, nil))
	e.wait("the end of all endpoints, and of a service", func() bool { return a.endpoints(name("a")) == 0 && b.removed[name("b")] == 1 })
	s.Apply(NewAssignments([]Service{service("a", 0, 0), service("b", 2, 0)}, nil))
	e.wait("its return", func() bool { return b.endpoints(name("b")) == 2 })
	e.mu.Lock()
	if a.responses != 3 || b.responses != 3 {
		t.Errorf("%d and %d responses, want 3 each", a.responses, b.responses)
	}
	e.mu.Unlock()
	// Who no longer asks is no longer told.
	a.request(&discovery.DeltaDiscoveryRequest{TypeUrl: TypeURL, ResourceNamesUnsubscribe: []string{name("a")}})
	b.end()
	e.wait("the end of two subscriptions", func() bool { c := s.Clients(); return len(c) == 1 && c[0].Names == 1 })
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.subs) != 1 {
		t.Errorf("subscriptions are left: %v", s.subs)
	}
}

// A sidecar that comes back and says what it has is sent what differs, also by another server: versions are hashes.
func TestReconnection(t *testing.T) {
	one, first := start(t, Options{}, nil)
	one.Apply(NewAssignments([]Service{service("a", 3, 0), service("b", 3, 0)}, nil))
	e := dial(t, first, dialOptions{})
	c := e.subscribe(nil, name("a"), name("b"))
	e.wait("the first state", func() bool { return len(c.has) == 2 })
	e.mu.Lock()
	have := c.versions
	e.mu.Unlock()
	two, second := start(t, Options{}, nil)
	two.Apply(NewAssignments([]Service{service("a", 3, 0), service("b", 4, 0)}, nil))
	f := dial(t, second, dialOptions{})
	again := f.subscribe(have, name("a"), name("b"))
	f.wait("what differs", func() bool { return again.endpoints(name("b")) == 4 })
	f.mu.Lock()
	defer f.mu.Unlock()
	if again.endpoints(name("a")) != -1 || again.responses != 1 {
		t.Errorf("it was sent what it had: %d responses", again.responses)
	}
}

// A sidecar that does not read holds up nobody, and is sent the last state once, not all that it has missed.
func TestSlowSidecar(t *testing.T) {
	s, address := start(t, Options{}, nil)
	large := func(seed byte) *Assignments { return NewAssignments([]Service{service("a", 2000, seed)}, nil) }
	s.Apply(large(0))
	slow, quick := dial(t, address, dialOptions{}), dial(t, address, dialOptions{})
	// Its lock is held, so it takes one response off the wire and then no more.
	stuck := slow.subscribe(nil, name("a"))
	slow.wait("the first state", func() bool { return stuck.endpoints(name("a")) == 2000 })
	q := quick.subscribe(nil, name("a"))
	quick.wait("the first state", func() bool { return q.endpoints(name("a")) == 2000 })
	slow.mu.Lock()
	const changes = 30
	for seed := byte(1); seed <= changes; seed++ {
		s.Apply(large(seed))
		quick.wait("a change", func() bool {
			return strings.HasPrefix(q.has[name("a")].Endpoints[0].LbEndpoints[0].GetEndpoint().GetAddress().GetEnvoyInternalAddress().GetEndpointId(), fmt.Sprintf("10.%d.", seed))
		})
	}
	slow.mu.Unlock()
	slow.wait("the last state", func() bool {
		return strings.HasPrefix(stuck.has[name("a")].Endpoints[0].LbEndpoints[0].GetEndpoint().GetAddress().GetEnvoyInternalAddress().GetEndpointId(), fmt.Sprintf("10.%d.", changes))
	})
	slow.mu.Lock()
	defer slow.mu.Unlock()
	if stuck.responses >= changes {
		t.Errorf("it was sent %d responses", stuck.responses)
	}
}

func TestRefusals(t *testing.T) {
	token := "secret"
	registry := prometheus.NewRegistry()
	s, address := start(t, Options{Metrics: registry, Token: func() (string, error) {
		if token == "" {
			return "", errors.New("no file")
		}
		return token, nil
	}}, nil)
	s.Apply(NewAssignments([]Service{service("a", 1, 0)}, nil))
	ends := func(e *sidecar, c *cluster, want codes.Code, text string) {
		t.Helper()
		e.wait("the end", func() bool { return c.err != nil })
		if status.Code(c.err) != want || !strings.Contains(c.err.Error(), text) {
			t.Errorf("it ends with %v, want %s, %s", c.err, want, text)
		}
	}
	none := dial(t, address, dialOptions{})
	ends(none, none.subscribe(nil, name("a")), codes.Unauthenticated, "a bearer token is needed")
	wrong := dial(t, address, dialOptions{token: "secre"})
	ends(wrong, wrong.subscribe(nil, name("a")), codes.Unauthenticated, "a bearer token is needed")
	e := dial(t, address, dialOptions{token: "secret"})
	c := e.subscribe(nil, name("a"))
	e.wait("endpoints", func() bool { return c.endpoints(name("a")) == 1 })
	c.reject("not to my liking")
	e.wait("the rejection", func() bool { return count(s.metrics.rejected) == 1 })
	ends(e, e.subscribe(nil, strings.Repeat("x", maxName+1)), codes.InvalidArgument, "a name of 601 bytes")
	other := e.subscribe(nil)
	other.request(&discovery.DeltaDiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster"})
	ends(e, other, codes.InvalidArgument, "is not served here")
	many := make([]string, 0, 1000)
	greedy := e.subscribe(nil)
	for i := range maxNames + 1 {
		many = append(many, fmt.Sprint("x", i))
		if len(many) == cap(many) || i == maxNames {
			greedy.request(&discovery.DeltaDiscoveryRequest{TypeUrl: TypeURL, ResourceNamesSubscribe: many})
			many = many[:0]
		}
	}
	ends(e, greedy, codes.ResourceExhausted, "more than 100000 names")
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v, %v", problems, err)
	}
	if got := count(s.metrics.refused); got != 2 {
		t.Errorf("%v streams were refused, not 2", got)
	}
}

func count(c prometheus.Counter) float64 {
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		return -1
	}
	return m.GetCounter().GetValue()
}

// TestLatency measures how long a change takes to be with a sidecar that has one stream for each of 1,000 services of 10
// endpoints, as Envoy has, and what a stream costs.
func TestLatency(t *testing.T) {
	if testing.Short() {
		t.Skip("measures time: not with -short")
	}
	const services, endpoints, changes = 1000, 10, 300
	s, address := start(t, Options{}, nil)
	state := make([]Service, services)
	names := make([]string, services)
	for i := range state {
		host := fmt.Sprintf("demo.service-%d.dubbo.isthmus", i)
		state[i], names[i] = service(host, endpoints, 0), name(host)
	}
	s.Apply(NewAssignments(slices.Clone(state), nil))
	e := dial(t, address, dialOptions{})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	began := time.Now()
	clusters := make([]*cluster, services)
	for i := range clusters {
		clusters[i] = e.subscribe(nil, names[i])
	}
	e.wait("everything", func() bool {
		return !slices.ContainsFunc(clusters, func(c *cluster) bool { return len(c.has) == 0 })
	})
	t.Logf("a sidecar with %d streams has everything after %s", services, time.Since(began).Round(time.Millisecond))
	runtime.GC()
	runtime.ReadMemStats(&after)
	t.Logf("a stream costs %d KB, server and client together", (after.HeapInuse+after.StackInuse-before.HeapInuse-before.StackInuse)/services/1024)
	var took []time.Duration
	for n := range changes {
		i := rand.IntN(services)
		state[i] = service(state[i].Host, endpoints-n%2, byte(n+1))
		state[i].Endpoints[0].Weight = uint32(n + 1) // so that it is another one in any case: bytes come again
		c := clusters[i]
		e.mu.Lock()
		sent := c.responses
		e.mu.Unlock()
		began := time.Now()
		s.Apply(NewAssignments(slices.Clone(state), nil))
		e.wait("the change", func() bool { return c.responses > sent })
		took = append(took, c.at.Sub(began))
	}
	slices.Sort(took)
	p50, p99 := took[changes/2], took[changes*99/100]
	t.Logf("a change is with the sidecar after %s (median of %d; p99 %s, longest %s)", p50.Round(time.Microsecond), changes, p99.Round(time.Microsecond), took[changes-1].Round(time.Microsecond))
	total := 0
	e.mu.Lock()
	for _, c := range clusters {
		total += c.responses
	}
	e.mu.Unlock()
	if total != services+changes {
		t.Errorf("%d responses for %d services and %d changes", total, services, changes)
	}
}

// holds tells whether somebody asks for a group.
func (s *Server) holds(host, subset string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asks(host, subset)
}

// A group that is gone keeps its endpoints, and their changes, for those who ask for it, and is gone with the last of them.
func TestRetained(t *testing.T) {
	s, address := start(t, Options{}, nil)
	apply := func(n int, subsets ...Subset) {
		x := service("a", n, 0)
		for i := range x.Endpoints {
			x.Endpoints[i].Labels["zone"] = "east"
		}
		s.Apply(NewAssignments([]Service{x}, map[string][]Subset{"a": subsets}))
	}
	east, west := Subset{Name: "zone-east", Labels: map[string]string{"zone": "east"}}, Subset{Name: "zone-west-or-all", Labels: map[string]string{"zone": "west"}, OrAll: true}
	cluster := func(subset string) string { return ClusterName{Host: "a", Subset: subset, Port: 20880}.String() }
	e := dial(t, address, dialOptions{})
	apply(4, east, west)
	c, d := e.subscribe(nil, cluster("zone-east")), e.subscribe(nil, cluster("zone-west-or-all"))
	has := func(what string, n int) {
		t.Helper()
		e.wait(what, func() bool {
			return c.endpoints(cluster("zone-east")) == n && d.endpoints(cluster("zone-west-or-all")) == n
		})
	}
	has("the groups", 4)
	apply(3)
	has("one endpoint less of each", 3)
	c.end()
	e.wait("the end of a subscription", func() bool { return !s.holds("a", east.Name) })
	apply(2)
	s.mu.Lock()
	if kept := s.current.services["a"].subsets; len(kept) != 1 || kept[0].Name != west.Name {
		t.Errorf("there are %v, and only %s is asked for", kept, west.Name)
	}
	s.mu.Unlock()
	e.wait("the other one", func() bool { return d.endpoints(cluster("zone-west-or-all")) == 2 })
	// It may come back as something else.
	apply(2, Subset{Name: "zone-west-or-all", Labels: map[string]string{"zone": "nowhere"}})
	e.wait("the new one", func() bool { return d.endpoints(cluster("zone-west-or-all")) == 0 })
}
