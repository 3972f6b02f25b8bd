package xds

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	endpointservice "github.com/envoyproxy/go-control-plane/envoy/service/endpoint/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// sidecar behaves towards an endpoint discovery service as Envoy does: one connection, on it a stream for each cluster, each
// response acknowledged.
type sidecar struct {
	t    *testing.T
	conn *grpc.ClientConn
	from *core.Locality

	mu      sync.Mutex
	changed *sync.Cond
}

type dialOptions struct {
	tls   *tls.Config
	token string
	from  *core.Locality // where it says that it is
}

func dial(t *testing.T, address string, o dialOptions) *sidecar {
	t.Helper()
	creds := insecure.NewCredentials()
	if o.tls != nil {
		creds = credentials.NewTLS(o.tls)
	}
	options := []grpc.DialOption{grpc.WithTransportCredentials(creds)}
	if o.token != "" {
		options = append(options, grpc.WithStreamInterceptor(func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string, next grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return next(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+o.token), d, cc, method, opts...)
		}))
	}
	conn, err := grpc.NewClient("passthrough:///"+address, options...)
	if err != nil {
		t.Fatal(err)
	}
	s := &sidecar{t: t, conn: conn, from: o.from}
	s.changed = sync.NewCond(&s.mu)
	t.Cleanup(func() { conn.Close() })
	return s
}

// cluster is one stream: what it has, and how it got it.
type cluster struct {
	sidecar *sidecar
	stream  endpointservice.EndpointDiscoveryService_DeltaEndpointsClient
	end     context.CancelFunc
	sending sync.Mutex // a stream takes one message at a time

	// Guarded by sidecar.mu.
	has       map[string]*endpoint.ClusterLoadAssignment
	versions  map[string]string
	removed   map[string]int
	responses int
	at        time.Time // of the last one
	err       error     // why the stream ended
}

// subscribe opens a stream for names. have is what it says that it has, by name: the versions.
func (s *sidecar) subscribe(have map[string]string, names ...string) *cluster {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	stream, err := endpointservice.NewEndpointDiscoveryServiceClient(s.conn).DeltaEndpoints(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	c := &cluster{sidecar: s, stream: stream, end: cancel, has: map[string]*endpoint.ClusterLoadAssignment{}, versions: map[string]string{}, removed: map[string]int{}}
	c.request(&discovery.DeltaDiscoveryRequest{
		Node: &core.Node{Id: "sidecar~10.0.0.9~shop-1.vm~vm.svc.cluster.local", Locality: s.from}, TypeUrl: TypeURL, ResourceNamesSubscribe: names, InitialResourceVersions: have,
	})
	go c.receive()
	return c
}

func (c *cluster) request(r *discovery.DeltaDiscoveryRequest) {
	c.sending.Lock()
	defer c.sending.Unlock()
	if err := c.stream.Send(r); err != nil && !errors.Is(err, io.EOF) {
		c.sidecar.t.Error(err)
	}
}

func (c *cluster) receive() {
	for {
		r, err := c.stream.Recv()
		c.sidecar.mu.Lock()
		if err != nil {
			c.err = err
			c.sidecar.changed.Broadcast()
			c.sidecar.mu.Unlock()
			return
		}
		c.responses++
		c.at = time.Now()
		for _, x := range r.Resources {
			a := new(endpoint.ClusterLoadAssignment)
			if err := x.Resource.UnmarshalTo(a); err != nil || a.ClusterName != x.Name {
				c.sidecar.t.Errorf("%s: %v, %v", x.Name, a, err)
			}
			c.has[x.Name], c.versions[x.Name] = a, x.Version
		}
		for _, name := range r.RemovedResources {
			c.removed[name]++
			delete(c.has, name)
		}
		c.sidecar.changed.Broadcast()
		c.sidecar.mu.Unlock()
		c.sending.Lock()
		_ = c.stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: TypeURL, ResponseNonce: r.Nonce}) // an error shows at Recv
		c.sending.Unlock()
	}
}

// reject answers the last response, whatever its nonce, with an error.
func (c *cluster) reject(why string) {
	c.request(&discovery.DeltaDiscoveryRequest{TypeUrl: TypeURL, ResponseNonce: "1", ErrorDetail: &rpcstatus.Status{Message: why}})
}

// wait waits until ok holds; it is called with the lock held. What it looks at may also be the server's, so it looks now and then.
func (s *sidecar) wait(what string, ok func() bool) {
	s.t.Helper()
	end := make(chan struct{})
	defer close(end)
	go func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
				s.changed.Broadcast()
			}
		}
	}()
	began := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for !ok() {
		if time.Since(began) > 20*time.Second {
			s.t.Fatalf("waited too long for %s", what)
		}
		s.changed.Wait()
	}
}

// endpoints returns how many endpoints a cluster has, -1 where it has heard nothing of it. The caller holds the sidecar's lock.
func (c *cluster) endpoints(name string) int {
	a := c.has[name]
	if a == nil {
		return -1
	}
	n := 0
	for _, l := range a.Endpoints {
		n += len(l.LbEndpoints)
	}
	return n
}

// start serves until the test ends.
func start(t *testing.T, o Options, tlsConfig *tls.Config) (*Server, string) {
	t.Helper()
	s := New(o)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l, tlsConfig) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Serve does not end")
		}
	})
	return s, l.Addr().String()
}
