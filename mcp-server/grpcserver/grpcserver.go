// Package grpcserver is what the servers for istiod and for the sidecars have in common: a gRPC server that ends with its context,
// and the check of bearer tokens.
package grpcserver

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// shutdownGrace is how long streams that are stuck in sending have to end.
const shutdownGrace = 2 * time.Second

// Options say what a server takes.
type Options struct {
	Name            string // begins errors
	MaxStreams      uint32 // of one connection
	MaxRequestBytes int    // of one message from a client
	// Many says that a connection has very many streams that are silent most of the time: they need not look at their context, since at
	// the end their connection is closed under them.
	Many bool
}

// Serve answers clients at l until ctx is done; then it ends all streams and returns nil. It takes over l. tlsConfig is nil for
// plaintext. A stream's context ends with the server, too. register adds the services.
func Serve(ctx context.Context, l net.Listener, tlsConfig *tls.Config, o Options, register func(grpc.ServiceRegistrar)) error {
	streams, endStreams := context.WithCancel(context.Background())
	defer endStreams()
	options := []grpc.ServerOption{
		grpc.MaxConcurrentStreams(o.MaxStreams),
		grpc.MaxRecvMsgSize(o.MaxRequestBytes),
		// A dead client is noticed after 40 s; istiod and sidecars ping every 30 s.
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
	register(g)

	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		endStreams()
		if o.Many {
			g.Stop()
			return
		}
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
		return fmt.Errorf("%s: serve %s: %w", o.Name, l.Addr(), err)
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

// Authorize checks the bearer token of a stream. token, if it returns something, is what clients must send as "authorization: Bearer
// ..."; nil asks for none. The error is a gRPC status.
func Authorize(ctx context.Context, token func() (string, error), log *slog.Logger) error {
	if token == nil {
		return nil
	}
	want, err := token()
	if err != nil {
		log.Error("the token of clients cannot be read", "error", err)
		return status.Error(codes.Unauthenticated, "no token can be checked")
	}
	if want == "" {
		return nil
	}
	md, _ := metadata.FromIncomingContext(ctx)
	for _, v := range md.Get("authorization") {
		if subtle.ConstantTimeCompare([]byte(v), []byte("Bearer "+want)) == 1 {
			return nil
		}
	}
	return status.Error(codes.Unauthenticated, "a bearer token is needed")
}
