package filter_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	wasm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/isthmus-mesh/isthmus/e2e/mesh"
)

var envoys = flag.Int("envoys", 0, "beside the sidecars that only listen, start so many real ones in TestRuleReachesFifty; each takes 140 MB and a second of a core")

// fifty is how many sidecars a change of a rule has to reach within reach, by the figure.
const (
	fifty   = 50
	reach   = 2 * time.Second
	changes = 7
)

// The types of resources that a sidecar asks for, TCP services being all there are.
const (
	typeCluster   = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	typeListener  = "type.googleapis.com/envoy.config.listener.v3.Listener"
	typeEndpoint  = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	typeExtension = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
)

// TestRuleReachesFifty measures how long it takes from the moment at which a rule is written until the last of fifty sidecars has it. They
// are clients of istiod that ask for and acknowledge what an Envoy does, without being one; a real one, and as many more as -envoys says, stand
// beside them, and are asked by calls. The time is that of the median change: on a busy machine a single one says nothing.
func TestRuleReachesFifty(t *testing.T) {
	l := newLink(t, 1)
	istiod, err := l.Machine(mesh.IstiodMachine)
	l.must(err)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	t.Cleanup(func() { cancel(); all.Wait() })
	real := []*batch{{conn: l.dial()}}
	for i := range *envoys {
		s, err := l.StartSidecar(ctx, fmt.Sprintf("caller-%d", i), "consumer")
		l.must(err)
		l.until("the filter at a caller", func(ctx context.Context) error { return s.Filtered(ctx, port, false) })
		c, err := s.Machine().DialContext(ctx, "tcp", l.address.String())
		l.must(err)
		t.Cleanup(func() { c.Close() })
		real = append(real, &batch{conn: c})
	}
	heard := make(chan hearing, 100*fifty)
	for i := range fifty {
		s := &listening{node: node(i), heard: heard, number: i}
		all.Go(func() {
			for ctx.Err() == nil {
				err := s.run(ctx, fmt.Sprintf("%s:%d", istiod.Address(), mesh.XDSPort))
				if status.Code(err) != codes.ResourceExhausted {
					if ctx.Err() == nil {
						t.Errorf("sidecar %d: %v", i, err)
					}
					return
				}
				// istiod takes 25 connections a second, and sends the others away for now.
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
			}
		})
	}
	request := frame(t, "req", "id=0,service=demo.A,method=limited,caller=tester")
	for _, b := range real {
		b.request = request
	}
	// listens waits until all have the rule as of an interval, and returns when each got it.
	listens := func(interval time.Duration) (at []time.Time) {
		t.Helper()
		got := map[int]bool{}
		timeout := time.After(within)
		for len(got) < fifty {
			select {
			case h := <-heard:
				if h.interval == interval && !got[h.number] {
					got[h.number] = true
					at = append(at, h.at)
				}
			case <-timeout:
				t.Fatalf("%d of %d sidecars have the rule with the interval %s within %s", len(got), fifty, interval, within)
			}
		}
		slices.SortFunc(at, time.Time.Compare)
		return at
	}
	listens(0)
	var listened, enforced []time.Duration
	for change := range changes {
		// The interval tells the changes apart. Calls are rejected after each even one, and admitted after each odd one.
		reject, interval := change%2 == 0, time.Duration(change+1)*time.Second
		threshold := 1_000_000
		if reject {
			threshold = 0
		}
		begun := time.Now()
		l.must(l.ApplyRule("reach", fmt.Sprintf(rule, "reach", threshold, interval)))
		var slowest []time.Duration
		var mu sync.Mutex
		var calling sync.WaitGroup
		for _, b := range real {
			calling.Go(func() {
				for time.Since(begun) < within {
					switch admitted, _, err := b.call(1); {
					case err != nil:
						t.Error(err)
						return
					case (admitted == 0) == reject:
						mu.Lock()
						slowest = append(slowest, time.Since(begun))
						mu.Unlock()
						return
					}
					time.Sleep(time.Millisecond) // a caller that asks without a pause would slow down what it waits for
				}
				t.Errorf("change %d is not enforced by a sidecar within %s", change, within)
			})
		}
		at := listens(interval)
		calling.Wait()
		if t.Failed() {
			return
		}
		first, last := at[0].Sub(begun), at[fifty-1].Sub(begun)
		t.Logf("change %d: the first of %d sidecars has it after %s, the last after %s; the slowest of %d Envoys enforces it after %s", change, fifty,
			first.Round(time.Millisecond), last.Round(time.Millisecond), len(real), slices.Max(slowest).Round(time.Millisecond))
		listened, enforced = append(listened, last), append(enforced, slices.Max(slowest))
	}
	slices.Sort(listened)
	slices.Sort(enforced)
	if d := listened[changes/2]; d > reach {
		t.Errorf("a rule reaches the last of %d sidecars after %s, at the median of %d", fifty, d, changes)
	}
	if d := enforced[changes/2]; d > reach {
		t.Errorf("the slowest of %d Envoys enforces a rule after %s, at the median of %d", len(real), d, changes)
	}
}

// A hearing is that a sidecar got the filter's configuration.
type hearing struct {
	number   int
	interval time.Duration // of the rule reach; 0 where it is not there
	at       time.Time
}

// A listening sidecar is a client of istiod that behaves as an Envoy does: it subscribes to clusters and listeners, to what these refer to, and
// acknowledges everything.
type listening struct {
	node   *core.Node
	number int
	heard  chan<- hearing
	stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	names  map[string]map[string]bool // subscribed to, by type
}

// node is what the bootstrap of a sidecar would say, at an address that nobody has.
func node(i int) *core.Node {
	address := fmt.Sprintf("10.98.%d.%d", i/250, i%250+1)
	metadata, err := structpb.NewStruct(map[string]any{
		"ISTIO_VERSION": "1.31.0", "NAMESPACE": mesh.Namespace, "CLUSTER_ID": mesh.ClusterID, "INTERCEPTION_MODE": "REDIRECT",
		"INSTANCE_IPS": address, "NAME": fmt.Sprintf("listening-%d", i), "LABELS": map[string]any{"app": "consumer"},
	})
	if err != nil {
		panic(err) // our own
	}
	return &core.Node{Id: fmt.Sprintf("sidecar~%s~listening-%d.%s~%s.svc.cluster.local", address, i, mesh.Namespace, mesh.Namespace),
		Cluster: "consumer." + mesh.Namespace, Metadata: metadata}
}

func (s *listening) run(ctx context.Context, address string) error {
	c, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer c.Close()
	if s.stream, err = discovery.NewAggregatedDiscoveryServiceClient(c).DeltaAggregatedResources(ctx); err != nil {
		return err
	}
	s.names = map[string]map[string]bool{}
	for _, kind := range []string{typeCluster, typeListener} {
		if err := s.stream.Send(&discovery.DeltaDiscoveryRequest{Node: s.node, TypeUrl: kind}); err != nil {
			return err
		}
	}
	for {
		r, err := s.stream.Recv()
		if err != nil {
			return err
		}
		if err := s.stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce}); err != nil {
			return err
		}
		for _, x := range r.Resources {
			if err := s.take(r.TypeUrl, x); err != nil {
				return err
			}
		}
	}
}

// take takes one resource, and subscribes to what it refers to.
func (s *listening) take(kind string, r *discovery.Resource) error {
	switch kind {
	case typeCluster:
		var c cluster.Cluster
		if err := r.Resource.UnmarshalTo(&c); err != nil {
			return err
		}
		if c.GetType() == cluster.Cluster_EDS {
			return s.subscribe(typeEndpoint, c.Name)
		}
	case typeListener:
		var x listener.Listener
		if err := r.Resource.UnmarshalTo(&x); err != nil {
			return err
		}
		for _, chain := range append(x.FilterChains, x.DefaultFilterChain) {
			for _, f := range chain.GetFilters() {
				if f.GetConfigDiscovery() != nil {
					if err := s.subscribe(typeExtension, f.Name); err != nil {
						return err
					}
				}
			}
		}
	case typeExtension:
		interval, err := intervalOf(r)
		if err != nil {
			return err
		}
		select {
		case s.heard <- hearing{s.number, interval, time.Now()}:
		case <-s.stream.Context().Done():
		}
	}
	return nil
}

func (s *listening) subscribe(kind, name string) error {
	if s.names[kind] == nil {
		s.names[kind] = map[string]bool{}
	}
	if s.names[kind][name] {
		return nil
	}
	s.names[kind][name] = true
	return s.stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: kind, ResourceNamesSubscribe: []string{name}})
}

// intervalOf returns the interval of the rule reach in a configuration of the filter, 0 where it is not there.
func intervalOf(r *discovery.Resource) (time.Duration, error) {
	var extension core.TypedExtensionConfig
	if err := r.Resource.UnmarshalTo(&extension); err != nil {
		return 0, err
	}
	var filter wasm.Wasm
	if err := extension.TypedConfig.UnmarshalTo(&filter); err != nil {
		return 0, err
	}
	var text wrapperspb.StringValue
	if err := filter.GetConfig().GetConfiguration().UnmarshalTo(&text); err != nil {
		return 0, err
	}
	var config struct {
		Throttle []struct {
			Name           string
			IntervalMillis int64
		}
	}
	if err := json.Unmarshal([]byte(text.Value), &config); err != nil {
		return 0, fmt.Errorf("the filter's configuration: %w", err)
	}
	for _, t := range config.Throttle {
		if t.Name == "default/reach" {
			return time.Duration(t.IntervalMillis) * time.Millisecond, nil
		}
	}
	return 0, nil
}
