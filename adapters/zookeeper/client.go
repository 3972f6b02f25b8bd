package zookeeper

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"
)

// client is a connection to an ensemble, kept up by the zk library, with what happens to it and to the watched nodes
// gathered for one reader: dirty paths as a set, so that a storm of events costs no more than the number of paths.
type client struct {
	conn   *zk.Conn
	events <-chan zk.Event // of the library; closed when it has ended
	wake   chan struct{}   // has a token when there is something to take

	mu        sync.Mutex
	connected bool
	lost      error // why it is not connected; nil until something has failed
	dirty     map[string]struct{}
	sockets   map[net.Conn]struct{}
	closing   bool
}

// news is what has happened since the last take.
type news struct {
	connected bool
	lost      error
	dirty     map[string]struct{}
}

// dial starts the library. It returns before a connection is up.
func dial(ctx context.Context, s *Settings, tc *tls.Config, log *slog.Logger) (*client, error) {
	c := &client{wake: make(chan struct{}, 1), dirty: map[string]struct{}{}, sockets: map[net.Conn]struct{}{}}
	servers := make([]string, len(s.Servers))
	for i, server := range s.Servers {
		address, err := serverAddress(server)
		if err != nil {
			return nil, fmt.Errorf("zookeeper: server %q: %w", server, err)
		}
		servers[i] = address
	}
	dialer := &net.Dialer{Timeout: s.ConnectTimeout, KeepAlive: 15 * time.Second}
	connect := func(_, address string, _ time.Duration) (net.Conn, error) {
		socket, err := dialer.DialContext(ctx, "tcp", address)
		if err == nil && tc != nil {
			conf := tc.Clone()
			if conf.ServerName == "" {
				conf.ServerName, _, _ = net.SplitHostPort(address)
			}
			secure := tls.Client(socket, conf)
			handshake, stop := context.WithTimeout(ctx, s.ConnectTimeout)
			if err = secure.HandshakeContext(handshake); err != nil {
				socket.Close()
			}
			stop()
			socket = secure
		}
		if err != nil {
			c.note(func() { c.lost = fmt.Errorf("zookeeper: no connection to %s: %w", address, err) })
			return nil, err
		}
		g := newGuard(socket, 2*s.ConnectTimeout, c.closed)
		c.mu.Lock()
		c.sockets[g] = struct{}{}
		c.mu.Unlock()
		return g, nil
	}
	var err error
	c.conn, c.events, err = zk.Connect(servers, s.SessionTimeout,
		zk.WithDialer(connect),
		zk.WithHostProvider(&hosts{}),
		zk.WithEventCallback(c.event),
		zk.WithLogger(logger{log}),
		zk.WithLogInfo(false),
		zk.WithMaxBufferSize(maxFrame),
	)
	if err != nil {
		return nil, fmt.Errorf("zookeeper: %w", err)
	}
	return c, nil
}

func (c *client) note(f func()) {
	c.mu.Lock()
	f()
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// event is called by the library in the order in which things come off the connection. It must not call the library.
func (c *client) event(e zk.Event) {
	c.note(func() {
		switch {
		case e.Type != zk.EventSession:
			// A node has changed, or (EventNotWatching) its watch is gone with the session. Unlike the library's channels, this
			// also sees an event that overtakes the answer that sets its watch.
			if !c.closing {
				c.dirty[e.Path] = struct{}{}
			}
		case e.State == zk.StateHasSession:
			c.connected, c.lost = true, nil
		case e.State == zk.StateDisconnected || e.State == zk.StateExpired:
			switch {
			case c.connected:
				c.lost = fmt.Errorf("zookeeper: the connection to %s is lost", e.Server)
			case c.lost == nil:
				c.lost = fmt.Errorf("zookeeper: %s accepts connections but gives no session; is it a ZooKeeper that has a quorum?", e.Server)
			}
			if e.State == zk.StateExpired {
				c.lost = errors.New("zookeeper: the session has expired; everything is read again")
			}
			c.connected = false
		}
	})
}

// take returns what has happened since the last call.
func (c *client) take() news {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := news{connected: c.connected, lost: c.lost}
	if len(c.dirty) > 0 {
		n.dirty, c.dirty = c.dirty, map[string]struct{}{} // the taker's from now on
	}
	return n
}

func (c *client) closed(s net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sockets, s)
}

// close ends the library, waiting for its goroutines. The context of dial must be done. While connected the session is closed
// properly, for which the server has a second.
func (c *client) close() {
	c.mu.Lock()
	c.closing = true
	connected := c.connected
	c.mu.Unlock()
	if !connected {
		c.cut() // it may be in the middle of a handshake that nobody answers
	}
	c.conn.Close()
	c.cut()
	for range c.events {
	}
}

func (c *client) cut() {
	c.mu.Lock()
	var all []net.Conn
	for s := range c.sockets {
		all = append(all, s)
	}
	c.mu.Unlock()
	for _, s := range all {
		s.Close()
	}
}

// up reports whether there is a session.
func (c *client) up() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.connected
}

// hosts hands out the servers in turn, beginning anywhere. Unlike the library's own it leaves names as they are, so that
// they are looked up at each connection: the addresses of containers change.
type hosts struct {
	mu      sync.Mutex
	servers []string
	next    int
	begun   bool
}

func (h *hosts) Init(servers []string) error {
	h.servers = servers
	h.next = rand.IntN(len(servers))
	return nil
}

func (h *hosts) Len() int { return len(h.servers) }

// Next returns true from the second time on. The library then fails the requests that it has not sent, so that none overtakes the
// restoring of the watches on the new connection, and pauses for a second, so that a server that was restarted is not overrun.
func (h *hosts) Next() (string, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.servers[h.next]
	h.next = (h.next + 1) % len(h.servers)
	again := h.begun
	h.begun = true
	return s, again
}

func (h *hosts) Connected() {}

// logger passes the library's messages on for those who look for them; what matters arrives as events.
type logger struct{ log *slog.Logger }

func (l logger) Printf(format string, args ...any) {
	l.log.Debug("zookeeper client", "message", strings.TrimSpace(fmt.Sprintf(format, args...)))
}

// The library's decoder trusts the server: a frame of less than a header or a list with a made-up length would end the
// process. guard looks at each frame before the library does, and fails the connection instead.
const (
	maxFrame          = 64 << 20 // 100,000 nodes with names of 640 bytes
	maxHandshake      = 1024
	replyHeader       = 16 // xid, zxid, err
	statBytes         = 68
	opGetChildren2    = 12
	opSetWatches      = 101
	connectAnswerSize = 20 // protocol version, timeout, session id, length of the password
)

var errFrame = errors.New("zookeeper: the server sent a malformed frame")

type guard struct {
	net.Conn
	in     *bufio.Reader
	left   int       // bytes of the frame at hand that the library has not read
	greet  bool      // the handshake's answer has passed
	late   time.Time // for the handshake's answer
	onStop func(net.Conn)

	mu      sync.Mutex
	greeted bool               // the handshake's request has passed
	seen    [8]byte            // the last zxid that the client had seen when the connection began
	lists   map[int32]struct{} // requests under way that are answered with a list
}

func newGuard(c net.Conn, handshake time.Duration, onStop func(net.Conn)) *guard {
	return &guard{Conn: c, in: bufio.NewReaderSize(c, 64<<10), late: time.Now().Add(handshake), onStop: onStop, lists: map[int32]struct{}{}}
}

// Close implements net.Conn.
func (g *guard) Close() error {
	g.onStop(g)
	return g.Conn.Close()
}

// SetReadDeadline implements net.Conn. The library waits nearly seven session timeouts for the handshake's answer, while other
// servers might be well.
func (g *guard) SetReadDeadline(t time.Time) error {
	if !g.greet && (t.IsZero() || t.After(g.late)) {
		t = g.late
	}
	return g.Conn.SetReadDeadline(t)
}

// Write notes which requests will be answered with a list. The library writes one request at a time.
//
// It also mends a fault of the library: setWatches must carry the last zxid seen before the connection was lost, but the
// library takes the last one of all, which an answer on the new connection may have raised already; changes made in between would
// go unnoticed.
func (g *guard) Write(b []byte) (int, error) {
	g.mu.Lock()
	switch {
	case !g.greeted: // length, protocol version, zxid, ...
		g.greeted = true
		if len(b) >= 16 {
			copy(g.seen[:], b[8:])
		}
	case len(b) >= 20 && int32(binary.BigEndian.Uint32(b[8:])) == opSetWatches: // length, xid, type, zxid, ...
		b = slices.Clone(b)
		copy(b[12:], g.seen[:])
	case len(b) >= 12 && int32(binary.BigEndian.Uint32(b[8:])) == opGetChildren2:
		g.lists[int32(binary.BigEndian.Uint32(b[4:]))] = struct{}{}
	}
	g.mu.Unlock()
	return g.Conn.Write(b)
}

// Read implements net.Conn.
func (g *guard) Read(b []byte) (int, error) {
	if g.left == 0 {
		if err := g.frame(); err != nil {
			return 0, err
		}
	}
	n, err := g.in.Read(b[:min(len(b), g.left)])
	g.left -= n
	return n, err
}

// frame checks the next frame without taking it.
func (g *guard) frame() error {
	b, err := g.in.Peek(4)
	if err != nil {
		return err
	}
	size := int(binary.BigEndian.Uint32(b))
	if !g.greet {
		if size < connectAnswerSize || size > maxHandshake {
			return errFrame
		}
		g.greet = true
		g.left = 4 + size
		return nil
	}
	if size < replyHeader || size > maxFrame {
		return errFrame
	}
	if b, err = g.in.Peek(4 + replyHeader); err != nil {
		return err
	}
	xid, status := int32(binary.BigEndian.Uint32(b[4:])), binary.BigEndian.Uint32(b[16:])
	g.mu.Lock()
	_, list := g.lists[xid]
	delete(g.lists, xid)
	g.mu.Unlock()
	if list && status == 0 {
		if size < replyHeader+4+statBytes {
			return errFrame
		}
		if b, err = g.in.Peek(4 + replyHeader + 4); err != nil {
			return err
		}
		if count := binary.BigEndian.Uint32(b[20:]); int64(count)*4 > int64(size-replyHeader-4-statBytes) {
			return errFrame
		}
	}
	g.left = 4 + size
	return nil
}
