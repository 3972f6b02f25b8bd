package mcp

import (
	"cmp"
	"context"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/isthmus-mesh/isthmus/mcp-server/grpcserver"
	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
)

// The bounds of what a client may ask for.
const (
	maxTypes      = 64  // on one stream; istiod asks for 16
	maxTypeLength = 256 // bytes
)

// client is one stream.
type client struct {
	mu     sync.Mutex // guards what follows; only the stream's own goroutine changes it
	node   string
	remote string
	since  time.Time
	types  map[resource.Type]*subscription
}

// subscription is what is known of one type on one stream.
type subscription struct {
	nonce    string // of the last response; "" before the first
	sent     string // its version
	sentAt   time.Time
	took     time.Duration // until the client acknowledged it; 0 before
	count    int           // its resources
	acked    string        // the version that the client acknowledged last
	rejected string        // why it rejected the last one; "" if it did not
	waiting  bool          // for a type that would supersede it
}

// Client is what is known of one that is connected.
type Client struct {
	Node   string       `json:"node"`   // as it names itself: router~IP~pod.namespace~…
	Remote string       `json:"remote"` // its address
	Since  time.Time    `json:"since"`
	Types  []ClientType `json:"types"` // sorted
}

// ClientType is how far a client is with one type.
type ClientType struct {
	Type      resource.Type `json:"type"`
	Resources int           `json:"resources"`
	Sent      string        `json:"sent,omitempty"`     // the version sent last
	Acked     string        `json:"acked,omitempty"`    // the version acknowledged last
	Rejected  string        `json:"rejected,omitempty"` // why the version sent last was rejected
}

// Clients returns who is connected, sorted by node and address.
func (s *Server) Clients() []Client {
	s.mu.Lock()
	all := make([]*client, 0, len(s.clients))
	for c := range s.clients {
		all = append(all, c)
	}
	s.mu.Unlock()
	out := make([]Client, len(all))
	for i, c := range all {
		out[i] = c.describe()
	}
	slices.SortFunc(out, func(a, b Client) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Remote, b.Remote), a.Since.Compare(b.Since))
	})
	return out
}

func (c *client) describe() Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := Client{Node: c.node, Remote: c.remote, Since: c.since, Types: make([]ClientType, 0, len(c.types))}
	for t, s := range c.types {
		out.Types = append(out.Types, ClientType{Type: t, Resources: s.count, Sent: s.sent, Acked: s.acked, Rejected: s.rejected})
	}
	slices.SortFunc(out.Types, func(a, b ClientType) int { return cmp.Compare(a.Type, b.Type) })
	return out
}

// StreamAggregatedResources serves one client until it leaves or the server stops.
func (s *Server) StreamAggregatedResources(stream discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	ctx := stream.Context()
	if err := grpcserver.Authorize(ctx, s.o.Token, s.o.Log); err != nil {
		return err
	}
	c := &client{since: time.Now(), types: map[resource.Type]*subscription{}}
	if p, ok := peer.FromContext(ctx); ok {
		c.remote = p.Addr.String()
	}
	s.mu.Lock()
	s.clients[c] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.clients, c)
		s.mu.Unlock()
	}()
	log := s.o.Log.With("remote", c.remote)
	log.Info("mcp client connected")

	// The reader ends with the stream, which ends when this method returns.
	requests, failed := make(chan *discovery.DiscoveryRequest), make(chan error, 1)
	go func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case requests <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	settled := time.NewTimer(s.o.Settle)
	settled.Stop()
	defer settled.Stop()
	conn := &connection{server: s, client: c, stream: stream}
	trailing := time.NewTimer(time.Hour)
	defer trailing.Stop()
	_, changed := s.latest()
	for {
		select {
		case <-ctx.Done():
			log.Info("mcp client gone", "node", c.node, "error", context.Cause(ctx))
			return status.FromContextError(ctx.Err()).Err()
		case err := <-failed:
			if errors.Is(err, io.EOF) {
				err = nil
			}
			log.Info("mcp client gone", "node", c.node, "error", err)
			return err
		case r := <-requests:
			wait, err := conn.request(r)
			if err != nil {
				return err
			}
			if wait {
				settled.Reset(s.o.Settle)
			}
		case <-settled.C:
			conn.settle()
		case <-trailing.C:
		case <-changed:
		}
		// Whatever it was, the client may now be owed something; what has changed several times meanwhile is sent once.
		var current *published
		current, changed = s.latest()
		later, err := conn.sendDue(current)
		if err != nil {
			return err
		}
		if later > 0 {
			trailing.Reset(later)
		}
	}
}

// connection is the state machine of one stream: requests and sets in, responses out.
type connection struct {
	server *Server
	client *client
	stream interface {
		Send(*discovery.DiscoveryResponse) error
	}
	nonce uint64
}

// request takes a request. wait says that the connection has to be settled after a while.
func (c *connection) request(r *discovery.DiscoveryRequest) (wait bool, err error) {
	t := resource.Type(r.GetTypeUrl())
	log := c.server.o.Log.With("remote", c.client.remote, "type", string(t))
	c.client.mu.Lock()
	defer c.client.mu.Unlock()
	if id := r.GetNode().GetId(); id != "" && c.client.node == "" {
		c.client.node = id
		log.Info("mcp client named itself", "node", id)
	}
	sub := c.client.types[t]
	if sub == nil {
		if !wellFormed(t) {
			if len(t) > maxTypeLength {
				return false, status.Errorf(codes.InvalidArgument, "a type of %d bytes", len(t))
			}
			// Not one of Istio's kinds, such as an Envoy asking for clusters: there is no answer that it could use.
			log.Debug("mcp client asks for what is no kind of Istio's")
			return false, nil
		}
		if len(c.client.types) == maxTypes {
			return false, status.Errorf(codes.ResourceExhausted, "more than %d types on one stream", maxTypes)
		}
		// The nonce of a first request is not looked at: istiod sends one that nobody has given.
		sub = &subscription{}
		if _, ok := superseded[t]; ok {
			sub.waiting = true
		}
		c.client.types[t] = sub
		return sub.waiting, nil
	}
	if r.GetResponseNonce() != sub.nonce || sub.nonce == "" {
		return false, nil // of an older response, or of none: the answer to the last one is still to come
	}
	if e := r.GetErrorDetail(); e != nil {
		sub.rejected = e.GetMessage()
		c.server.metrics.rejected.WithLabelValues(label(t)).Inc()
		log.Warn("mcp client rejects a response", "node", c.client.node, "version", sub.sent, "error", e.GetMessage())
		return false, nil // it will not like the same again; the next version is sent when there is one
	}
	if sub.acked != sub.sent {
		sub.took = time.Since(sub.sentAt)
		c.server.metrics.acknowledge.Observe(sub.took.Seconds())
	}
	sub.acked, sub.rejected = sub.sent, ""
	return false, nil
}

// settle ends the waiting for types that would supersede others.
func (c *connection) settle() {
	c.client.mu.Lock()
	defer c.client.mu.Unlock()
	for _, sub := range c.client.types {
		sub.waiting = false
	}
}

// asked tells whether the client has asked for a type. The caller holds client.mu.
func (c *connection) asked(t resource.Type) bool { return c.client.types[t] != nil }

// trails lists the types that are sent only when the client has had time to take in another one.
var trails = map[resource.Type]resource.Type{
	resource.TypeWorkloadEntry: resource.TypeServiceEntry,
}

// The time that a client has to take a type in. istiod acknowledges when it has stored what it was sent, and computes with it
// afterwards, the longer the more there is.
const (
	trailQuiet   = 250 * time.Millisecond // after the acknowledgement, and twice the time that it took
	trailPatient = 5 * time.Second        // at most, without one
)

// trail returns how long t has to wait for the type that it trails, which leads says is about to be sent. The caller holds
// client.mu.
func (c *connection) trail(t resource.Type, leads bool) time.Duration {
	leader := c.client.types[trails[t]]
	switch {
	case leader == nil:
		return 0
	case leads:
		return trailPatient
	case leader.nonce == "":
		return 0
	case leader.acked != leader.sent && leader.rejected == "":
		return trailPatient - time.Since(leader.sentAt)
	}
	return trailQuiet + 3*leader.took - time.Since(leader.sentAt)
}

// sendDue sends what has changed for the client since it was last sent. A type that it asks for is sent at least once, with
// nothing in it if need be. later says after what time there is more to send, 0 if there is not.
func (c *connection) sendDue(p *published) (later time.Duration, err error) {
	if p == nil {
		return 0, nil
	}
	type due struct {
		t    resource.Type
		what *typed
	}
	var list []due
	c.client.mu.Lock()
	for t, sub := range c.client.types {
		if newer, ok := superseded[t]; sub.waiting && ok && !c.asked(newer) {
			continue
		}
		if what := p.of(t, c.asked); sub.nonce == "" || sub.sent != what.version {
			list = append(list, due{t, what})
		}
	}
	leads := map[resource.Type]bool{}
	for _, d := range list {
		leads[d.t] = true
	}
	list = slices.DeleteFunc(list, func(d due) bool {
		wait := c.trail(d.t, leads[trails[d.t]])
		if wait > 0 && (later == 0 || wait < later) {
			later = wait
		}
		return wait > 0
	})
	c.client.mu.Unlock()
	slices.SortFunc(list, func(a, b due) int { return cmp.Compare(a.t, b.t) })
	for _, d := range list {
		c.nonce++
		nonce := strconv.FormatUint(c.nonce, 10)
		c.client.mu.Lock()
		sub := c.client.types[d.t]
		first := sub.nonce == ""
		sub.nonce, sub.sent, sub.count, sub.sentAt, sub.took = nonce, d.what.version, len(d.what.resources), time.Now(), 0
		c.client.mu.Unlock()
		// Send blocks while the client does not read; nobody else waits for it.
		if err := c.stream.Send(&discovery.DiscoveryResponse{
			TypeUrl: string(d.t), VersionInfo: d.what.version, Nonce: nonce, Resources: d.what.resources,
		}); err != nil {
			return 0, err
		}
		c.server.metrics.responses.WithLabelValues(label(d.t)).Inc()
		if !first {
			c.server.metrics.pushed(p)
		}
	}
	return later, nil
}

// wellFormed tells whether a type looks like one of Istio's: group/version/kind. Those that are not in Types, which a newer
// istiod may have, are answered too, with nothing: it would wait for ever otherwise.
func wellFormed(t resource.Type) bool {
	if len(t) > maxTypeLength {
		return false
	}
	parts := strings.Split(string(t), "/")
	return len(parts) == 3 && parts[0] != "" && strings.HasPrefix(parts[1], "v") && parts[2] != "" && !strings.HasPrefix(parts[0], "type.googleapis.com")
}
