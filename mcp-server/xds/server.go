// Package xds serves sidecars the endpoints of lifted services: Envoy's endpoint discovery in its incremental form. A change in a
// registry so reaches a sidecar without passing through istiod, which could not name these endpoints either: most of them
// are an internal listener of the sidecar itself, which turns HTTP/2 back into the provider's protocol.
//
// Envoy opens one stream for each cluster (its subscriptions that are not part of ADS share none), so streams are many and mostly
// silent: each costs one goroutine, which waits for the client, and only those that are owed something get another for as long as
// it takes to send it.
package xds

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	endpointservice "github.com/envoyproxy/go-control-plane/envoy/service/endpoint/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/grpcserver"
)

// TypeURL is the type of what is served.
const TypeURL = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"

// The bounds of the gRPC server.
const (
	maxStreams      = 100_000   // of one connection: one for each cluster
	maxRequestBytes = 256 << 10 // a request carries a node, names and, where there is one, an error
	maxNames        = 100_000   // that one stream subscribes to
	maxLocality     = 255       // bytes of each part of a sidecar's locality, as of an endpoint's (translate.maxLocality)
)

// Options are what a Server needs. The zero value of each field means its default.
type Options struct {
	Log     *slog.Logger          // nil means nowhere
	Metrics prometheus.Registerer // nil means nowhere
	// Token, if it returns something, is what clients must send as "authorization: Bearer ...". It is asked at each stream, so
	// that it can be rotated.
	Token func() (string, error)
}

// Server holds the latest Assignments and serves them to any number of sidecars. The zero value is not usable; see New.
type Server struct {
	o       Options
	metrics *metrics

	mu      sync.Mutex
	current *Assignments // nil before Apply
	applied time.Time
	pushed  *atomic.Bool                              // whether anybody has been sent what the latest Apply changed
	subs    map[string]map[place]map[*stream]struct{} // by host: who subscribes
	streams map[*stream]struct{}

	endpointservice.UnimplementedEndpointDiscoveryServiceServer
}

// New returns a Server that answers nobody until Apply.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{o: o, pushed: new(atomic.Bool), subs: map[string]map[place]map[*stream]struct{}{}, streams: map[*stream]struct{}{}}
	s.metrics = newMetrics(o.Metrics, s)
	return s
}

// Serve answers sidecars at l until ctx is done; then it ends all streams and returns nil. It takes over l. tlsConfig is nil for
// plaintext.
func (s *Server) Serve(ctx context.Context, l net.Listener, tlsConfig *tls.Config) error {
	return grpcserver.Serve(ctx, l, tlsConfig, grpcserver.Options{Name: "xds", MaxStreams: maxStreams, MaxRequestBytes: maxRequestBytes, Many: true},
		func(r grpc.ServiceRegistrar) { endpointservice.RegisterEndpointDiscoveryServiceServer(r, s) })
}

// Serving tells whether there is something to serve.
func (s *Server) Serving() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current != nil
}

// Apply makes a the Assignments that are served. They must be complete. It returns at once: each sidecar is sent what has changed
// for it as fast as it takes it.
func (s *Server) Apply(a *Assignments) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.current
	if before == a {
		return
	}
	var changed []string
	if before != nil {
		s.retain(a, before)
		changed = a.inherit(before)
	}
	s.current = a
	s.applied, s.pushed = time.Now(), new(atomic.Bool)
	s.metrics.apply(a)
	owe := func(places map[place]map[*stream]struct{}) {
		for p, streams := range places {
			if before != nil && same(before.Lookup(p.name, p.from), a.Lookup(p.name, p.from)) {
				continue
			}
			for st := range streams {
				st.owe(p.name)
			}
		}
	}
	if before == nil {
		for _, places := range s.subs {
			owe(places)
		}
		return
	}
	for _, host := range changed {
		owe(s.subs[host])
	}
}

// retain keeps groups that are gone for as long as sidecars ask for them. Routes go to them until istiod has said otherwise, which takes it a tenth of a
// second, or until it is back; endpoints are here before that, and calls would fail in between. The caller holds mu.
func (s *Server) retain(a, before *Assignments) {
	for host, b := range before.services {
		now := a.services[host]
		if now == nil {
			continue
		}
		for _, sub := range b.subsets {
			gone := !slices.ContainsFunc(now.subsets, func(o Subset) bool { return o.Name == sub.Name })
			if gone && s.asks(host, sub.Name) {
				now.subsets = append(slices.Clip(now.subsets), sub)
			}
		}
	}
}

// asks tells whether somebody asks for a group. The caller holds mu.
func (s *Server) asks(host, subset string) bool {
	for p := range s.subs[host] {
		if n, ok := ParseClusterName(p.name); ok && n.Subset == subset {
			return true
		}
	}
	return false
}

// host is what the subscriptions to a name are found by: the host of a cluster, or "" where the name is none, of which there is never anything.
func host(name string) string {
	n, _ := ParseClusterName(name)
	return n.Host
}

func same(a, b *Resource) bool { return a == b || a != nil && b != nil && a.Version == b.Version }

// stream is one subscription of a sidecar. Its lock is taken after the Server's, never before.
type stream struct {
	server *Server
	send   func(*discovery.DeltaDiscoveryResponse) error
	remote string

	mu      sync.Mutex
	node    string
	from    model.Locality      // where the sidecar says that it is; fixed at the first request
	names   map[string]string   // subscribed to, and the version sent last; "" for nothing
	due     map[string]struct{} // may have to be sent
	sending bool                // somebody does
	nonce   uint64
	ended   bool // nothing can be sent any more
}

// DeltaEndpoints serves one sidecar's subscription until it leaves or the server stops.
func (s *Server) DeltaEndpoints(g endpointservice.EndpointDiscoveryService_DeltaEndpointsServer) error {
	ctx := g.Context()
	if err := grpcserver.Authorize(ctx, s.o.Token, s.o.Log); err != nil {
		s.metrics.refused.Inc()
		return err
	}
	st := &stream{server: s, send: g.Send, names: map[string]string{}, due: map[string]struct{}{}}
	if p, ok := peer.FromContext(ctx); ok {
		st.remote = p.Addr.String()
	}
	s.mu.Lock()
	s.streams[st] = struct{}{}
	s.mu.Unlock()
	defer s.leave(st)
	for {
		r, err := g.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = s.request(st, r)
		}
		if err != nil {
			return err
		}
	}
}

// leave forgets a stream. Whoever still sends on it fails when the stream is closed, which is when its method has returned.
func (s *Server) leave(st *stream) {
	s.mu.Lock()
	delete(s.streams, st)
	st.mu.Lock()
	st.ended = true
	for name := range st.names {
		s.forget(st, name)
	}
	st.mu.Unlock()
	s.mu.Unlock()
}

// forget ends a subscription. The caller holds mu.
func (s *Server) forget(st *stream, name string) {
	host, p := host(name), place{name, st.from}
	places := s.subs[host]
	delete(places[p], st)
	if len(places[p]) == 0 {
		delete(places, p)
	}
	if len(places) == 0 {
		delete(s.subs, host)
	}
}

// request takes a request: new subscriptions, the end of old ones, and what the sidecar says to the last response.
func (s *Server) request(st *stream, r *discovery.DeltaDiscoveryRequest) error {
	if t := r.GetTypeUrl(); t != "" && t != TypeURL {
		return status.Errorf(codes.InvalidArgument, "xds: %.200q is not served here, only %s", t, TypeURL)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	if id := r.GetNode().GetId(); id != "" && st.node == "" {
		st.node = id
		if l := r.GetNode().GetLocality(); len(st.names) == 0 && len(l.GetRegion()) <= maxLocality && len(l.GetZone()) <= maxLocality && len(l.GetSubZone()) <= maxLocality {
			st.from = model.Locality{Region: l.GetRegion(), Zone: l.GetZone(), SubZone: l.GetSubZone()}
		}
	}
	if e := r.GetErrorDetail(); e != nil {
		s.metrics.rejected.Inc()
		s.o.Log.Warn("a sidecar rejects endpoints", "node", st.node, "remote", st.remote, "error", e.GetMessage())
	}
	for _, name := range r.GetResourceNamesUnsubscribe() {
		delete(st.names, name)
		delete(st.due, name)
		s.forget(st, name)
	}
	for _, name := range r.GetResourceNamesSubscribe() {
		if len(name) > maxName {
			return status.Errorf(codes.InvalidArgument, "xds: a name of %d bytes", len(name))
		}
		if len(st.names) >= maxNames {
			return status.Errorf(codes.ResourceExhausted, "xds: more than %d names on one stream", maxNames)
		}
		// Whoever asks again is answered again: it has dropped what it had. After a reconnection it says what it has.
		st.names[name] = r.GetInitialResourceVersions()[name]
		host, p := host(name), place{name, st.from}
		if s.subs[host] == nil {
			s.subs[host] = map[place]map[*stream]struct{}{}
		}
		if s.subs[host][p] == nil {
			s.subs[host][p] = map[*stream]struct{}{}
		}
		s.subs[host][p][st] = struct{}{}
		st.oweLocked(name)
	}
	return nil
}

// owe notes that the sidecar may have to be sent a resource. The caller holds the Server's mu.
func (st *stream) owe(name string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.oweLocked(name)
}

// oweLocked is owe for who holds the stream's mu, too.
func (st *stream) oweLocked(name string) {
	st.due[name] = struct{}{}
	if !st.sending && !st.ended && st.server.current != nil {
		st.sending = true
		go st.flush()
	}
}

// absent is the version of what is not there, once that has been said.
const absent = "-"

// flush sends what is due until nothing is. What has changed several times meanwhile is sent once.
func (st *stream) flush() {
	for {
		st.server.mu.Lock()
		current, applied, pushed := st.server.current, st.server.applied, st.server.pushed
		st.mu.Lock()
		st.server.mu.Unlock()
		if len(st.due) == 0 || st.ended {
			st.sending = false
			st.mu.Unlock()
			return
		}
		response := &discovery.DeltaDiscoveryResponse{TypeUrl: TypeURL}
		change := false
		for name := range st.due {
			delete(st.due, name)
			sent := st.names[name]
			r := current.Lookup(name, st.from)
			switch {
			case r == nil && sent != absent:
				// Said also of what never was: Envoy would wait for it, and hold up its start.
				response.RemovedResources = append(response.RemovedResources, name)
				st.names[name] = absent
			case r != nil && r.Version != sent:
				response.Resources = append(response.Resources, &discovery.Resource{Name: name, Version: r.Version, Resource: r.Any})
				st.names[name] = r.Version
				change = change || sent != ""
			}
		}
		if len(response.Resources)+len(response.RemovedResources) == 0 {
			st.mu.Unlock()
			continue
		}
		slices.SortFunc(response.Resources, func(a, b *discovery.Resource) int { return compare(a.Name, b.Name) })
		slices.Sort(response.RemovedResources)
		st.nonce++
		response.Nonce = strconv.FormatUint(st.nonce, 10)
		st.mu.Unlock()
		// Blocks while the sidecar does not read; nobody else waits for it.
		if err := st.send(response); err != nil {
			st.mu.Lock()
			st.ended, st.sending = true, false // Recv says why
			st.mu.Unlock()
			return
		}
		st.server.metrics.sent(response)
		if change && !pushed.Swap(true) {
			st.server.metrics.push.Observe(time.Since(applied).Seconds())
		}
	}
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Client is one sidecar, by what it names itself and where it is.
type Client struct {
	Node   string
	Remote string // address and port; all of a sidecar's streams share one connection
	Names  int    // that it subscribes to
}

// Clients returns the sidecars that are connected, sorted by node and address.
func (s *Server) Clients() []Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	by := map[string]*Client{}
	for st := range s.streams {
		st.mu.Lock()
		c := by[st.remote]
		if c == nil {
			c = &Client{Node: st.node, Remote: st.remote}
			by[st.remote] = c
		}
		c.Names += len(st.names)
		st.mu.Unlock()
	}
	out := make([]Client, 0, len(by))
	for _, c := range by {
		out = append(out, *c)
	}
	slices.SortFunc(out, func(a, b Client) int {
		if c := compare(a.Node, b.Node); c != 0 {
			return c
		}
		return compare(a.Remote, b.Remote)
	})
	return out
}
