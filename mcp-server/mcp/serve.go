package mcp

import (
	"context"
	"crypto/tls"
	"net"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"

	"github.com/isthmus-mesh/isthmus/mcp-server/grpcserver"
)

// The bounds of the gRPC server.
const (
	maxStreams      = 64        // of one connection; an istiod has one
	maxRequestBytes = 256 << 10 // a request carries a node and, where there is one, an error
)

// Serve answers clients at l until ctx is done; then it ends all streams and returns nil. It takes over l. tlsConfig is nil
// for plaintext.
func (s *Server) Serve(ctx context.Context, l net.Listener, tlsConfig *tls.Config) error {
	return grpcserver.Serve(ctx, l, tlsConfig, grpcserver.Options{Name: "mcp", MaxStreams: maxStreams, MaxRequestBytes: maxRequestBytes},
		func(r grpc.ServiceRegistrar) { discovery.RegisterAggregatedDiscoveryServiceServer(r, s) })
}
