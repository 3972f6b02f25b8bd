// Package session is a client of SOFARegistry's session servers: it subscribes to data and hears, by pushes, what publishers say
// under each id, over one connection that it keeps up. It speaks the protocol of versions 5 and 6 (Bolt with Hessian), and version
// 6's Protobuf encoding. It needs nothing of the rest of Isthmus.
//
//	c := session.New(session.Options{Servers: session.Discover(http.DefaultClient, nil, "registry.example.org:9603")}, handler)
//	c.Subscribe(session.ID{DataID: "demo.HelloService:1.0@DEFAULT", Group: "SOFA"})
//	err := c.Run(ctx)
package session

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"math"
	mrand "math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session/wire"
)

// What is said and heard; see package wire.
type (
	// ID names data in a registry.
	ID = wire.ID
	// Push is what a session says of one ID in one segment.
	Push = wire.Push
	// Scope says of which data centres and zones a subscriber hears.
	Scope = wire.Scope
	// Encoding is how messages are serialized.
	Encoding = wire.Encoding
)

// Options of a Client. The zero value of each field but Servers means its default.
type Options struct {
	// Servers returns the session servers, host:port, in any order. It is called before each round of connection attempts.
	Servers func(ctx context.Context) ([]string, error)
	// Encoding of the messages.
	Encoding Encoding // default wire.Hessian
	// Application is the name under which the server lists the client's subscriptions.
	Application string
	// Zone is the client's; the server pushes data of ScopeZone by it. Default DEFAULT_ZONE.
	Zone string
	// Scope of the subscriptions. Default ScopeGlobal, as SOFARPC has it.
	Scope Scope
	// Sign returns the attributes that authenticate a registration; nil sends none. See AccessKey.
	Sign func(ctx context.Context) (map[string]string, error)
	// Dial connects. Default a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	ConnectTimeout time.Duration // of one attempt. Default 3 s
	RequestTimeout time.Duration // until a request counts as unanswered. Default 5 s
	Heartbeat      time.Duration // pause after which a silent connection is tested. Default 10 s; servers close those silent for 90 s
	MinBackoff     time.Duration // pause after the first failed round of attempts. Default 500 ms
	MaxBackoff     time.Duration // pause that it doubles up to. Default 15 s
	Window         int           // registrations under way at a time. Default 128
	MaxPush        int           // bytes of a push that are read; a longer one is refused. Default 32 MiB
}

func (o *Options) defaults() {
	or := func(d *time.Duration, def time.Duration) {
		if *d <= 0 {
			*d = def
		}
	}
	or(&o.ConnectTimeout, 3*time.Second)
	or(&o.RequestTimeout, 5*time.Second)
	or(&o.Heartbeat, 10*time.Second)
	or(&o.MinBackoff, 500*time.Millisecond)
	or(&o.MaxBackoff, 15*time.Second)
	if o.Window <= 0 {
		o.Window = 128
	}
	if o.MaxPush <= 0 {
		o.MaxPush = 32 << 20
	}
	if o.Zone == "" {
		o.Zone = "DEFAULT_ZONE"
	}
	if o.Scope == "" {
		o.Scope = wire.ScopeGlobal
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{KeepAlive: 15 * time.Second}).DialContext
	}
}

// Handler hears what happens. Its methods are called by one goroutine at a time and in order; while one runs, the connection waits.
// None is called once Run has returned.
type Handler interface {
	// Connected says that a connection is up. All subscriptions are registered on it from here on; each is pushed again.
	Connected(server string)
	// Disconnected says that there is no connection, and why: after Connected that it was lost, otherwise that all the servers
	// were tried in vain. Connecting goes on.
	Disconnected(err error)
	// Pushed hands over what the registry holds under a subscribed id in one segment. What it holds belongs to the handler.
	Pushed(p Push)
	// Refused says that the server does not accept a subscription. If it says that this is for good, it is tried again on the next
	// connection; otherwise, as when it is overloaded, after RequestTimeout.
	Refused(id ID, message string)
	// Faulty says that the server sent something that cannot be read and was refused. The id is zero if it cannot be told.
	Faulty(id ID, err error)
}

// Client keeps up one connection to one of a registry's session servers. Its methods may be called at any time, by any goroutine.
type Client struct {
	o Options
	h Handler

	mu    sync.Mutex
	subs  map[string]*subscription // by the id's string
	queue []*subscription          // to be registered or unregistered
	wake  chan struct{}            // has a token when queue has grown
}

type subscription struct {
	id           ID
	registration string
	version      int64
	remove       bool
	queued       bool
}

// New makes a Client. It neither dials nor spawns.
func New(o Options, h Handler) *Client {
	o.defaults()
	return &Client{o: o, h: h, subs: map[string]*subscription{}, wake: make(chan struct{}, 1)}
}

// Subscribe adds a subscription. It returns its registration id, by which the server's pages list it. An id that is subscribed already
// stays so.
func (c *Client) Subscribe(id ID) (registration string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := id.String()
	if s := c.subs[key]; s != nil {
		return s.registration
	}
	s := &subscription{id: id, registration: uuid()}
	c.subs[key] = s
	c.enqueue(s)
	return s.registration
}

// Unsubscribe takes a subscription back. What is already under way may still be pushed.
func (c *Client) Unsubscribe(id ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := id.String()
	s := c.subs[key]
	if s == nil {
		return
	}
	delete(c.subs, key)
	s.remove = true
	c.enqueue(s)
}

// Subscriptions returns the number of subscriptions.
func (c *Client) Subscriptions() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.subs)
}

func (c *Client) enqueue(s *subscription) {
	if !s.queued {
		s.queued = true
		c.queue = append(c.queue, s)
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// next takes up to n subscriptions off the queue.
func (c *Client) next(n int) []*subscription {
	c.mu.Lock()
	defer c.mu.Unlock()
	n = min(n, len(c.queue))
	batch := slices.Clone(c.queue[:n])
	c.queue = c.queue[n:]
	if len(c.queue) == 0 {
		c.queue = nil
	}
	for _, s := range batch {
		s.queued = false
	}
	return batch
}

// begin queues every subscription for a new connection.
func (c *Client) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.queue {
		s.queued = false
	}
	c.queue = nil
	for _, key := range slices.Sorted(maps.Keys(c.subs)) {
		c.enqueue(c.subs[key])
	}
}

// subscribed returns the subscription of an id, nil if there is none.
func (c *Client) subscribed(id ID) *subscription {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.subs[id.String()]
}

// Run connects, and connects again, until ctx is done. It returns nil then.
func (c *Client) Run(ctx context.Context) error {
	backoff := c.o.MinBackoff
	for ctx.Err() == nil {
		servers, err := c.o.Servers(ctx)
		if err == nil && len(servers) == 0 {
			err = errors.New("session: the registry names no session server")
		}
		mrand.Shuffle(len(servers), func(i, j int) { servers[i], servers[j] = servers[j], servers[i] })
		for _, server := range servers {
			if ctx.Err() != nil {
				return nil
			}
			var lasted time.Duration
			if lasted, err = c.serve(ctx, server); lasted > 0 {
				if lasted > c.o.MaxBackoff { // it was well
					backoff = c.o.MinBackoff
				}
				break // the list of servers may have changed
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		c.h.Disconnected(err)
		// Between half and all of it, so that the clients of a server that has ended do not come back together.
		pause := time.NewTimer(backoff/2 + mrand.N(backoff/2+1))
		select {
		case <-ctx.Done():
			pause.Stop()
		case <-pause.C:
		}
		backoff = min(2*backoff, c.o.MaxBackoff)
	}
	return nil
}

var errSilent = errors.New("the server has been silent for too long")

// serve runs one connection until it ends. It returns how long it was up; 0 if it could not be made.
func (c *Client) serve(ctx context.Context, server string) (time.Duration, error) {
	dial, stop := context.WithTimeout(ctx, c.o.ConnectTimeout)
	conn, err := c.o.Dial(dial, "tcp", server)
	stop()
	if err != nil {
		return 0, fmt.Errorf("session: connect to %s: %w", server, err)
	}
	began := time.Now()
	cn := &connection{c: c, conn: conn, pending: map[uint32]pendingRequest{}, slots: make(chan struct{}, c.o.Window), began: began.UnixMilli()}
	c.begin()
	c.h.Connected(server)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	unhook := context.AfterFunc(ctx, func() { conn.Close() })
	defer unhook()
	defer conn.Close()
	var writer sync.WaitGroup
	writer.Go(func() { cancel(cn.register(ctx)) })
	writer.Go(func() { cancel(cn.watch(ctx)) })
	err = cn.read()
	cancel(err)
	writer.Wait()
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	return max(time.Since(began), 1), fmt.Errorf("session: connection to %s: %w", server, err)
}

// connection is one connection. Three goroutines serve it: the reader, which calls the handler; the one that registers; and the
// one that sends heartbeats and sees what is not answered.
type connection struct {
	c     *Client
	conn  net.Conn
	began int64 // ms since 1970
	slots chan struct{}

	write sync.Mutex // held while a frame is written

	mu      sync.Mutex
	id      uint32
	pending map[uint32]pendingRequest
	again   []pendingRequest // refused, but not for good

	heard atomic.Int64 // when the server last sent anything, ns since 1970
}

// Read notes that the server is alive, also while a long push is under way.
func (n *connection) Read(b []byte) (int, error) {
	k, err := n.conn.Read(b)
	if k > 0 {
		n.heard.Store(time.Now().UnixNano())
	}
	return k, err
}

type pendingRequest struct {
	sub    *subscription
	remove bool
	due    time.Time
}

func (n *connection) send(b []byte) error {
	n.write.Lock()
	defer n.write.Unlock()
	if err := n.conn.SetWriteDeadline(time.Now().Add(n.c.o.RequestTimeout)); err != nil {
		return err
	}
	_, err := n.conn.Write(b)
	return err
}

// register sends what is queued, as many at a time as the window has room for.
func (n *connection) register(ctx context.Context) error {
	for {
		for _, s := range n.c.next(1) {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case n.slots <- struct{}{}:
			}
			if err := n.request(ctx, s); err != nil {
				return err
			}
		}
		n.c.mu.Lock()
		more := len(n.c.queue) > 0
		n.c.mu.Unlock()
		if more {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-n.c.wake:
		}
	}
}

func (n *connection) request(ctx context.Context, s *subscription) error {
	o := &n.c.o
	var attributes []string
	if o.Sign != nil {
		signed, err := o.Sign(ctx)
		if err != nil {
			return fmt.Errorf("sign: %w", err)
		}
		for _, k := range slices.Sorted(maps.Keys(signed)) {
			attributes = append(attributes, k, signed[k])
		}
	}
	n.c.mu.Lock()
	s.version++
	m := &wire.Register{ID: s.id, Registration: s.registration, Zone: o.Zone, Application: o.Application, Scope: o.Scope,
		Version: s.version, Timestamp: n.began, Attributes: attributes, Remove: s.remove}
	n.c.mu.Unlock()
	n.mu.Lock()
	n.id++
	id := n.id
	n.pending[id] = pendingRequest{s, m.Remove, time.Now().Add(o.RequestTimeout)}
	n.mu.Unlock()
	return n.send(wire.AppendFrame(nil, wire.Frame{Type: wire.TypeRequest, Command: wire.CommandRequest, ID: id, Codec: o.Encoding.Codec(),
		Timeout: millis(o.RequestTimeout), Class: wire.ClassName(o.Encoding, wire.ClassSubscriber), Content: wire.EncodeSubscriber(o.Encoding, m)}))
}

// watch sends heartbeats on a silent connection, ends it if nobody answers, and sends unanswered registrations again.
func (n *connection) watch(ctx context.Context) error {
	o := &n.c.o
	tick := time.NewTicker(min(o.Heartbeat, o.RequestTimeout) / 2)
	defer tick.Stop()
	n.heard.Store(time.Now().UnixNano())
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case now := <-tick.C:
			var late []*subscription
			var beat []byte
			n.mu.Lock()
			silent := now.Sub(time.Unix(0, n.heard.Load()))
			for id, p := range n.pending {
				if now.After(p.due) {
					delete(n.pending, id)
					<-n.slots
					late = append(late, p.sub)
				}
			}
			n.again = slices.DeleteFunc(n.again, func(p pendingRequest) bool {
				if now.After(p.due) {
					late = append(late, p.sub)
				}
				return now.After(p.due)
			})
			if silent > o.Heartbeat+o.RequestTimeout {
				n.mu.Unlock()
				return errSilent
			}
			if silent >= o.Heartbeat {
				n.id++
				beat = wire.AppendFrame(nil, wire.Frame{Type: wire.TypeRequest, Command: wire.CommandHeartbeat, ID: n.id, Codec: wire.CodecHessian, Timeout: millis(o.RequestTimeout)})
			}
			n.mu.Unlock()
			if len(late) > 0 {
				n.c.mu.Lock()
				for _, s := range late {
					if s.remove || n.c.subs[s.id.String()] == s {
						n.c.enqueue(s)
					}
				}
				n.c.mu.Unlock()
			}
			if beat != nil {
				if err := n.send(beat); err != nil {
					return err
				}
			}
		}
	}
}

// read serves what the server sends, until the connection ends.
func (n *connection) read() error {
	r := bufio.NewReaderSize(n, 64<<10)
	for {
		f, err := wire.ReadFrame(r, n.c.o.MaxPush)
		if err != nil {
			return err
		}
		switch {
		case f.Type == wire.TypeResponse:
			n.answered(f)
		case f.Command == wire.CommandHeartbeat:
			if f.Type == wire.TypeRequest {
				err = n.send(wire.AppendFrame(nil, wire.Frame{Type: wire.TypeResponse, Command: wire.CommandHeartbeat, ID: f.ID, Codec: f.Codec}))
			}
		default:
			err = n.called(f)
		}
		if err != nil {
			return err
		}
	}
}

// answered takes the response to a registration.
func (n *connection) answered(f wire.Frame) {
	n.mu.Lock()
	p, ok := n.pending[f.ID]
	delete(n.pending, f.ID)
	n.mu.Unlock()
	if !ok { // a heartbeat's, or too late
		return
	}
	<-n.slots
	if p.remove {
		return
	}
	later := func() {
		p.due = time.Now().Add(n.c.o.RequestTimeout)
		n.mu.Lock()
		n.again = append(n.again, p)
		n.mu.Unlock()
	}
	if f.Status != wire.StatusSuccess {
		later()
		n.c.h.Refused(p.sub.id, "the server answers: "+wire.StatusText(f.Status))
		return
	}
	e, _ := wire.MessageOf(f.Class)
	m, err := wire.DecodeResponse(e, f.Content)
	switch {
	case err != nil || f.Whole > len(f.Content):
		n.c.h.Faulty(p.sub.id, fmt.Errorf("session: the answer to a registration of %d bytes cannot be read: %w", f.Whole, err))
	case !m.Success || m.Refused:
		if !m.Refused {
			later()
		}
		n.c.h.Refused(p.sub.id, m.Message)
	}
}

// called serves a request of the server: a push.
func (n *connection) called(f wire.Frame) error {
	e, class := wire.MessageOf(f.Class)
	multi := class == wire.ClassMulti
	answer := func(success bool, message string) error {
		if f.Type == wire.TypeOneway {
			return nil
		}
		return n.send(wire.AppendFrame(nil, wire.Frame{Type: wire.TypeResponse, Command: wire.CommandResponse, ID: f.ID, Codec: f.Codec, Status: wire.StatusSuccess,
			Class: wire.ClassName(e, wire.ClassResult), Content: wire.EncodeResult(e, success, message)}))
	}
	if !multi && class != wire.ClassReceived {
		if f.Type == wire.TypeOneway {
			return nil
		}
		return n.send(wire.AppendFrame(nil, wire.Frame{Type: wire.TypeResponse, Command: wire.CommandResponse, ID: f.ID, Codec: f.Codec, Status: wire.StatusNoProcessor}))
	}
	if f.Whole > len(f.Content) {
		err := fmt.Errorf("a push of %d bytes is longer than %d and was refused", f.Whole, n.c.o.MaxPush)
		n.c.h.Faulty(wire.PushBeginning(e, f.Content), fmt.Errorf("session: %w", err))
		return answer(false, err.Error())
	}
	pushes, err := wire.DecodePush(e, multi, f.Content)
	if err != nil {
		err = fmt.Errorf("a push of %d bytes cannot be read and was refused: %w", f.Whole, err)
		n.c.h.Faulty(wire.PushBeginning(e, f.Content), fmt.Errorf("session: %w", err))
		return answer(false, err.Error())
	}
	// The answer first: the server waits for it, the handler's work is our own.
	if err := answer(true, ""); err != nil {
		return err
	}
	for _, p := range pushes {
		if s := n.c.subscribed(p.ID); s != nil && (len(p.Registrations) == 0 || slices.Contains(p.Registrations, s.registration)) {
			n.c.h.Pushed(p)
		}
	}
	return nil
}

// millis makes a duration fit a frame.
func millis(d time.Duration) int32 { return int32(min(max(d.Milliseconds(), 1), math.MaxInt32)) }

// uuid returns a random UUID, which is how upstream's clients name registrations.
func uuid() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
