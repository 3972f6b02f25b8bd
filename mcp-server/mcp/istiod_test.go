package mcp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	mcpapi "istio.io/api/mcp/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
)

// istiod behaves towards an MCP server as istiod does (pkg/adsc): it asks for all types at once, each with a nonce that nobody has
// given it, takes every response for the complete state of its type, takes over what has another version, and
// acknowledges everything.
type istiod struct {
	t      *testing.T
	conn   *grpc.ClientConn
	cancel context.CancelFunc
	done   chan struct{} // the stream has ended
	pause  chan struct{} // while it can be received from, nothing is read

	mu       sync.Mutex
	changed  *sync.Cond
	store    map[resource.Type]map[string]stored
	synced   map[resource.Type]int // responses by type
	updates  int                   // resources taken over
	received []resource.Type       // types of the responses, in order
	err      error                 // why the stream ended
}

type stored struct {
	version string
	body    proto.Message
	meta    *mcpapi.Metadata
}

// asked is what istiod asks for, in its order: the mesh configuration first, then its collections.
func asked(types ...resource.Type) []resource.Type {
	if types != nil {
		return types
	}
	return append([]resource.Type{"core/v1alpha1/MeshConfig"}, Types...)
}

type dialOptions struct {
	types []resource.Type
	tls   *tls.Config
	token string
	nack  func(*discovery.DiscoveryResponse) string
	pause chan struct{}
}

func dial(t *testing.T, address string, o dialOptions) *istiod {
	t.Helper()
	creds := insecure.NewCredentials()
	if o.tls != nil {
		creds = credentials.NewTLS(o.tls)
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds),
		grpc.WithInitialWindowSize(1<<20), grpc.WithInitialConnWindowSize(1<<20),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if o.token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+o.token)
	}
	i := &istiod{t: t, conn: conn, cancel: cancel, done: make(chan struct{}), pause: o.pause, store: map[resource.Type]map[string]stored{}, synced: map[resource.Type]int{}}
	i.changed = sync.NewCond(&i.mu)
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for n, typ := range asked(o.types...) {
		r := &discovery.DiscoveryRequest{TypeUrl: string(typ), ResponseNonce: time.Now().String()}
		if n == 0 {
			r.Node = &core.Node{Id: "sidecar~192.0.2.2~istiod-0.istio-system~istio-system.svc.cluster.local"}
		}
		if err := stream.Send(r); errors.Is(err, io.EOF) {
			break // the server has ended the stream; why shows at Recv
		} else if err != nil {
			t.Fatal(err)
		}
	}
	go i.receive(stream, o.nack)
	t.Cleanup(i.close)
	return i
}

func (i *istiod) close() {
	i.cancel()
	i.conn.Close()
	<-i.done
}

func (i *istiod) receive(stream discovery.AggregatedDiscoveryService_StreamAggregatedResourcesClient, nack func(*discovery.DiscoveryResponse) string) {
	defer close(i.done)
	for {
		if i.pause != nil {
			<-i.pause
		}
		r, err := stream.Recv()
		if err != nil {
			i.mu.Lock()
			i.err = err
			i.changed.Broadcast()
			i.mu.Unlock()
			return
		}
		ack := &discovery.DiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce, VersionInfo: r.VersionInfo}
		if nack != nil {
			if why := nack(r); why != "" {
				ack.ErrorDetail = statusProto(why)
			}
		}
		i.take(r)
		stream.Send(ack) // an error shows at Recv
	}
}

// take does what handleMCP does.
func (i *istiod) take(r *discovery.DiscoveryResponse) {
	i.mu.Lock()
	defer i.mu.Unlock()
	defer i.changed.Broadcast()
	t := resource.Type(r.TypeUrl)
	have := i.store[t]
	if have == nil {
		have = map[string]stored{}
		i.store[t] = have
	}
	seen := map[string]bool{}
	for _, a := range r.Resources {
		var m mcpapi.Resource
		if err := a.UnmarshalTo(&m); err != nil {
			i.t.Errorf("%s: %v", t, err)
			continue
		}
		name := m.Metadata.Name
		if strings.Count(name, "/") != 1 {
			i.t.Errorf("%s: the name %q is not namespace/name", t, name)
		}
		body, err := m.Body.UnmarshalNew()
		if err != nil {
			i.t.Errorf("%s %s: %v", t, name, err)
			continue
		}
		seen[name] = true
		if old, ok := have[name]; !ok || old.version != m.Metadata.Version || m.Metadata.Version == "" {
			have[name] = stored{m.Metadata.Version, body, m.Metadata}
			i.updates++
		}
	}
	maps.DeleteFunc(have, func(name string, _ stored) bool { return !seen[name] })
	i.synced[t]++
	i.received = append(i.received, t)
}

// wait waits until ok holds; it is called with the lock held.
func (i *istiod) wait(what string, ok func() bool) {
	i.t.Helper()
	late := time.AfterFunc(10*time.Second, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.err = errors.Join(i.err, errors.New("timeout"))
		i.changed.Broadcast()
	})
	defer late.Stop()
	i.mu.Lock()
	defer i.mu.Unlock()
	for !ok() {
		if i.err != nil {
			i.t.Fatalf("waiting for %s: %v; have %v", what, i.err, i.synced)
		}
		i.changed.Wait()
	}
}

// waitEnd waits for the end of the stream and returns why.
func (i *istiod) waitEnd() error {
	i.t.Helper()
	select {
	case <-i.done:
	case <-time.After(time.Minute):
		i.t.Fatal("the stream does not end")
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.err
}

// ready is what istiod's /ready asks: that each of its types has been answered.
func (i *istiod) ready() bool {
	for _, t := range Types {
		if i.synced[t] == 0 {
			return false
		}
	}
	return true
}

func (i *istiod) names(t resource.Type) []string { return slices.Sorted(maps.Keys(i.store[t])) }

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
		case <-time.After(time.Minute):
			t.Error("Serve does not end")
		}
	})
	return s, l.Addr().String()
}

func apply(t *testing.T, s *Server, rs ...resource.Resource) resource.Set {
	t.Helper()
	set, err := resource.NewSet(rs)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Apply(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	return set
}

func name(i int) string { return fmt.Sprintf("s%04d", i) }
