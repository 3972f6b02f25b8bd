package mcp

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

// The bounds of the gRPC server.
const (
	maxStreams      = 64        // of one connection; an istiod has one
	maxRequestBytes = 256 << 10 // a request carries a node and, where there is one, an error
	shutdownGrace   = 2 * time.Second
)

// Serve answers clients at l until ctx is done; then it ends all streams and returns nil. It takes over l. tlsConfig is nil
// for plaintext.
func (s *Server) Serve(ctx context.Context, l net.Listener, tlsConfig *tls.Config) error {
	streams, endStreams := context.WithCancel(context.Background())
	defer endStreams()
	options := []grpc.ServerOption{
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxRecvMsgSize(maxRequestBytes),
		// A dead istiod is noticed after 40 s; istiod itself pings every 30 s.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.ConnectionTimeout(20 * time.Second),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			both, cancel := context.WithCancel(stream.Context())
			defer cancel()
			defer context.AfterFunc(streams, cancel)()
			return next(srv, endingStream{stream, both})
		}),
	}
	if tlsConfig != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(tlsConfig)))
	}
	g := grpc.NewServer(options...)
	discovery.RegisterAggregatedDiscoveryServiceServer(g, s)

	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		endStreams()
		// A stream that is stuck in sending to somebody who does not read ends with its connection.
		force := time.AfterFunc(shutdownGrace, g.Stop)
		defer force.Stop()
		g.GracefulStop()
	})
	err := g.Serve(l)
	if !stop() {
		<-stopped
		return nil
	}
	g.Stop()
	if err != nil {
		return fmt.Errorf("mcp: serve %s: %w", l.Addr(), err)
	}
	return nil
}

// endingStream is a stream whose context also ends when the server stops.
type endingStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context returns the stream's context.
func (e endingStream) Context() context.Context { return e.ctx }
