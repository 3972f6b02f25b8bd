// Package mcp serves Istio resources to istiod: the Mesh Configuration Protocol, which is xDS's aggregated discovery in its
// state-of-the-world form with Istio's resources in it.
//
// What istiod demands, read off pkg/adsc and pilot/pkg/bootstrap of Istio and off a running istiod:
//
//   - every response is the complete state of its type, and what is not in it is deleted. So nothing is answered before
//     there is a complete set, and a set is always sent whole;
//   - each of the types that it asks for must be answered, with nothing if need be, or it never becomes ready;
//   - the Any of each resource is a istio.mcp.v1alpha1.Resource whose name is namespace/name;
//   - a resource is taken over only if its version differs from the one it has, so versions are hashes of the content;
//   - its first request of each type carries a nonce that nobody has given; it acknowledges everything, the faulty too.
package mcp

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
	mcpapi "istio.io/api/mcp/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
)

// Types are those that istiod asks for and waits for, as of Istio 1.31.
var Types = []resource.Type{
	resource.TypeTrafficExtension,
	resource.TypeWasmPlugin,
	resource.TypeDestinationRule,
	resource.TypeEnvoyFilter,
	"networking.istio.io/v1/Gateway",
	"networking.istio.io/v1beta1/ProxyConfig",
	resource.TypeServiceEntry,
	"networking.istio.io/v1/Sidecar",
	resource.TypeVirtualService,
	resource.TypeWorkloadEntry,
	"networking.istio.io/v1/WorkloadGroup",
	"security.istio.io/v1/AuthorizationPolicy",
	"security.istio.io/v1/PeerAuthentication",
	"security.istio.io/v1/RequestAuthentication",
	"telemetry.istio.io/v1/Telemetry",
}

// superseded lists the types that say in an older way what another type of the set says too. A client that asks for the newer
// type is told that there is nothing of the older one, so that nothing takes effect twice.
var superseded = map[resource.Type]resource.Type{
	resource.TypeWasmPlugin: resource.TypeTrafficExtension,
}

// Options are what a Server needs. The zero value of each field means its default.
type Options struct {
	Log     *slog.Logger          // nil means nowhere
	Metrics prometheus.Registerer // nil means nowhere
	// Token, if it returns something, is what clients must send as "authorization: Bearer ...". It is asked at each stream, so
	// that it can be rotated. istiod itself cannot send one: this is for what stands between.
	Token func() (string, error)
	// Settle is how long a stream's first request for a superseded type waits for one of the type that supersedes it. istiod
	// asks for all its types at once. Default 1 s.
	Settle time.Duration
}

// Server holds the latest complete set and serves it to any number of clients. The zero value is not usable; see New.
type Server struct {
	o       Options
	metrics *metrics

	mu      sync.Mutex
	current *published
	changed chan struct{} // closed and replaced when current is
	clients map[*client]struct{}

	discovery.UnimplementedAggregatedDiscoveryServiceServer
}

// published is a set in the form in which it is sent. It is immutable, but for pushed.
type published struct {
	set    resource.Set
	types  map[resource.Type]*typed
	at     time.Time
	pushed atomic.Bool // some client has been sent what changed
}

// typed is what is sent of one type.
type typed struct {
	version   string
	entries   []*resource.Entry
	resources []*anypb.Any // of the entries, in their order
}

// New returns a Server that answers nobody until Apply.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Settle <= 0 {
		o.Settle = time.Second
	}
	s := &Server{o: o, changed: make(chan struct{}), clients: map[*client]struct{}{}}
	s.metrics = newMetrics(o.Metrics, s)
	return s
}

// Name tells the sinks apart in logs and metrics.
func (s *Server) Name() string { return "mcp" }

// Apply makes set the one that is served. It must be the complete desired state. It returns at once: clients are sent what
// has changed for them as fast as each can take it.
func (s *Server) Apply(_ context.Context, set resource.Set) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil && s.current.set.Equal(set) {
		return nil
	}
	next := &published{set: set, types: map[resource.Type]*typed{}, at: time.Now()}
	for _, t := range set.Types() {
		version := set.TypeVersion(t)
		before := nothing
		if s.current != nil {
			if have, ok := s.current.types[t]; ok {
				before = have
			}
		}
		if before.version == version {
			next.types[t] = before
			continue
		}
		encoded, err := encode(set.OfType(t), version, before)
		if err != nil {
			return fmt.Errorf("mcp: %s: %w", t, err)
		}
		next.types[t] = encoded
	}
	s.current = next
	close(s.changed)
	s.changed = make(chan struct{})
	s.metrics.applied(next)
	return nil
}

// encode makes the envelopes of the entries of one type, but for those of the same entries that before has.
func encode(entries []*resource.Entry, version string, before *typed) (*typed, error) {
	out := &typed{version: version, entries: entries, resources: make([]*anypb.Any, len(entries))}
	next := 0 // of before
	for i, e := range entries {
		// Both are sorted, and most of one is in the other: what is passed over here has changed or is gone.
		for next < len(before.entries) && before.entries[next] != e && precedes(before.entries[next], e) {
			next++
		}
		if next < len(before.entries) && before.entries[next] == e {
			out.resources[i] = before.resources[next]
			next++
			continue
		}
		var err error
		if out.resources[i], err = envelope(e); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// precedes tells whether a, which is not b, does not come after b in the order of a Set.
func precedes(a, b *resource.Entry) bool {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name)) <= 0
}

// envelope makes of an entry what istiod takes.
func envelope(e *resource.Entry) (*anypb.Any, error) {
	body := &anypb.Any{TypeUrl: "type.googleapis.com/" + string(e.Body.ProtoReflect().Descriptor().FullName()), Value: e.Wire}
	wire, err := proto.MarshalOptions{Deterministic: true}.Marshal(&mcpapi.Resource{
		Metadata: &mcpapi.Metadata{
			Name:        e.Namespace + "/" + e.Name,
			Version:     e.Version,
			Labels:      e.Labels,
			Annotations: e.Annotations,
			CreateTime:  yielding[e.Type],
		},
		Body: body,
	})
	if err != nil {
		return nil, fmt.Errorf("marshal %s/%s: %w", e.Namespace, e.Name, err)
	}
	return &anypb.Any{TypeUrl: typeURLResource, Value: wire}, nil
}

// yielding are the types of which istiod takes the oldest where several are for one host (pilot/pkg/model, sortConfigByCreationTime),
// and a time that is later than any that somebody writes one by hand: what people write goes before what we make.
var yielding = map[resource.Type]*timestamppb.Timestamp{
	resource.TypeVirtualService:  timestamppb.New(time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)),
	resource.TypeDestinationRule: timestamppb.New(time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)),
}

// typeURLResource is the type of the envelopes.
const typeURLResource = "type.googleapis.com/istio.mcp.v1alpha1.Resource"

// latest returns what is served, nil before the first Apply, and a channel that is closed when it changes.
func (s *Server) latest() (*published, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current, s.changed
}

// Serving tells whether there is a complete set to serve.
func (s *Server) Serving() bool {
	p, _ := s.latest()
	return p != nil
}

// nothing is what is sent of a type that the set does not hold.
var nothing = &typed{version: resource.Set{}.TypeVersion("")}

// of returns what a client that has asked for the types in asked is sent of t.
func (p *published) of(t resource.Type, asked func(resource.Type) bool) *typed {
	if newer, ok := superseded[t]; ok && asked(newer) {
		return nothing
	}
	if have, ok := p.types[t]; ok {
		return have
	}
	return nothing
}
