// Package zktest is a ZooKeeper in the process for tests: one server that speaks the client protocol (jute, version 0) as far
// as readers of a tree and the applications that fill it use it, and that can be made to fail in the ways real ones do. It keeps
// everything in memory, has no quorum, and never ends a session by itself.
//
// What it does was compared with ZooKeeper 3.9.4: one-shot watches belong to a connection and are lost with it; setWatches
// (the client's way to get them back) fires those whose node has changed since the zxid that the client has seen; an event is
// sent before any answer that shows the change.
package zktest

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Operations of the protocol (org.apache.zookeeper.ZooDefs.OpCode).
const (
	OpCreate       = 1
	OpDelete       = 2
	OpExists       = 3
	OpGetData      = 4
	OpSetData      = 5
	OpSync         = 9
	OpPing         = 11
	OpGetChildren2 = 12
	OpAuth         = 100
	OpSetWatches   = 101
	OpCreate2      = 15
	opClose        = -11
)

// Errors of the protocol (org.apache.zookeeper.KeeperException.Code).
const (
	errMarshalling   = -5
	errUnimplemented = -6
	errNoNode        = -101
	errNoAuth        = -102
	errNodeExists    = -110
	errNotEmpty      = -111
	errAuthFailed    = -115
)

const (
	eventCreated  = 1
	eventDeleted  = 2
	eventData     = 3
	eventChildren = 4
)

// Server is a ZooKeeper. Its methods may be called from any goroutine.
type Server struct {
	listener net.Listener
	tls      *tls.Config
	wg       sync.WaitGroup

	mu       sync.Mutex
	nodes    map[string]*znode
	zxid     int64
	nextID   int64
	sessions map[int64]bool
	conns    map[*conn]bool
	refusing bool
	hanging  bool
	closed   bool
	login    string // user:password that may read denied nodes; "" accepts everybody
	authFail bool
	denied   map[string]bool
	delay    time.Duration
	garbage  []byte // sent instead of the next answer to getChildren2
	counts   map[int32]int
	inFlight int // requests being delayed
	peak     int
	peers    int // connections ever accepted
}

type znode struct {
	data                []byte
	children            map[string]bool
	czxid, mzxid, pzxid int64
	version, cversion   int32
	owner               int64 // session of an ephemeral
}

// Start starts a server on a free port of the loopback address; it ends with the test.
func Start(t testing.TB) *Server { return start(t, nil) }

// StartTLS starts a server that speaks TLS.
func StartTLS(t testing.TB, c *tls.Config) *Server { return start(t, c) }

func start(t testing.TB, c *tls.Config) *Server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{
		listener: l, tls: c,
		nodes:    map[string]*znode{"/": {children: map[string]bool{}}},
		sessions: map[int64]bool{}, conns: map[*conn]bool{}, denied: map[string]bool{}, counts: map[int32]int{},
		nextID: 0x1000,
	}
	s.wg.Go(s.accept)
	t.Cleanup(s.close)
	return s
}

func (s *Server) close() {
	s.mu.Lock()
	s.closed = true
	s.listener.Close()
	s.drop()
	s.mu.Unlock()
	s.wg.Wait()
}

// Address returns host:port.
func (s *Server) Address() string { return s.listener.Addr().String() }

// Refuse with true closes all connections and every new one at once, as a server does that is down or has no quorum; with
// false it serves again. Sessions live on.
func (s *Server) Refuse(refuse bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refusing = refuse
	if refuse {
		s.drop()
	}
}

// Hang with true accepts connections but answers nothing on them, not even the handshake.
func (s *Server) Hang(hang bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hanging = hang
}

// Disconnect closes all connections; clients may come back at once.
func (s *Server) Disconnect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop()
}

// Expire ends all sessions, and the connections with them. Ephemeral nodes of the sessions are deleted.
func (s *Server) Expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.sessions {
		delete(s.sessions, id)
		s.deleteEphemerals(id)
	}
	s.drop()
}

func (s *Server) drop() {
	for c := range s.conns {
		c.net.Close()
	}
}

// RequireLogin makes Deny hold only for clients that have not authenticated by digest with login ("user:password"). With fail
// every attempt to authenticate is refused, as by a server that enforces a scheme.
func (s *Server) RequireLogin(login string, fail bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.login, s.authFail = login, fail
}

// Deny takes the permission to read a node away, or with false gives it back.
func (s *Server) Deny(path string, deny bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.denied[path] = deny
}

// Delay makes every read take d.
func (s *Server) Delay(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delay = d
}

// Garbage sends frame (without a length before it) instead of the next answer to a getChildren2 request. The first four bytes
// are replaced by the request's xid.
func (s *Server) Garbage(frame []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.garbage = frame
}

// Count returns how many requests of an operation have come in.
func (s *Server) Count(op int32) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[op]
}

// Peak returns the largest number of requests that were being delayed at one time; see Delay.
func (s *Server) Peak() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peak
}

// Peers returns how many connections have been accepted in all.
func (s *Server) Peers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peers
}

// Create makes a node, with its parents where they are missing. It does nothing if the node is there.
func (s *Server) Create(path string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.createAll(path, data, 0)
}

func (s *Server) createAll(path string, data []byte, owner int64) {
	if s.nodes[path] != nil {
		return
	}
	if parent := parentOf(path); s.nodes[parent] == nil {
		s.createAll(parent, nil, 0)
	}
	s.create(path, data, owner)
}

// Delete removes a node and everything below it. It does nothing if the node is not there.
func (s *Server) Delete(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deleteAll(path)
}

func (s *Server) deleteAll(path string) {
	n := s.nodes[path]
	if n == nil {
		return
	}
	for name := range n.children {
		s.deleteAll(join(path, name))
	}
	s.delete(path)
}

// Set changes a node's data.
func (s *Server) Set(path string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.nodes[path]; n != nil {
		s.zxid++
		n.data, n.mzxid = data, s.zxid
		n.version++
		s.fire(path, eventData)
	}
}

// Exists reports whether there is a node.
func (s *Server) Exists(path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nodes[path] != nil
}

func parentOf(path string) string {
	i := strings.LastIndexByte(path, '/')
	if i <= 0 {
		return "/"
	}
	return path[:i]
}

func join(path, name string) string {
	if path == "/" {
		return "/" + name
	}
	return path + "/" + name
}

func (s *Server) create(path string, data []byte, owner int64) {
	s.zxid++
	s.nodes[path] = &znode{data: data, children: map[string]bool{}, czxid: s.zxid, mzxid: s.zxid, pzxid: s.zxid, owner: owner}
	parent := parentOf(path)
	p := s.nodes[parent]
	p.children[strings.TrimPrefix(path[len(parent):], "/")] = true
	p.pzxid = s.zxid
	p.cversion++
	s.fire(path, eventCreated)
	s.fire(parent, eventChildren)
}

func (s *Server) delete(path string) {
	s.zxid++
	delete(s.nodes, path)
	parent := parentOf(path)
	p := s.nodes[parent]
	delete(p.children, strings.TrimPrefix(path[len(parent):], "/"))
	p.pzxid = s.zxid
	p.cversion++
	s.fire(path, eventDeleted)
	s.fire(parent, eventChildren)
}

func (s *Server) deleteEphemerals(session int64) {
	for path, n := range s.nodes {
		if n.owner == session {
			s.delete(path)
		}
	}
}

// fire sends an event to everybody who watches for it, once.
func (s *Server) fire(path string, event int32) {
	for c := range s.conns {
		hit := false
		if event != eventChildren && c.data[path] {
			delete(c.data, path)
			hit = true
		}
		if (event == eventChildren || event == eventDeleted) && c.child[path] {
			delete(c.child, path)
			hit = true
		}
		if hit {
			c.event(path, event)
		}
	}
}

// conn is one client's connection. Its fields are guarded by the server's lock, apart from the queue.
type conn struct {
	s       *Server
	net     net.Conn
	session int64
	authed  bool
	data    map[string]bool // watches on data and existence
	child   map[string]bool

	mu    sync.Mutex
	ready *sync.Cond
	queue [][]byte
	gone  bool
}

func (s *Server) accept() {
	for {
		socket, err := s.listener.Accept()
		if err != nil {
			return
		}
		if s.tls != nil {
			socket = tls.Server(socket, s.tls)
		}
		c := &conn{s: s, net: socket, data: map[string]bool{}, child: map[string]bool{}}
		c.ready = sync.NewCond(&c.mu)
		s.mu.Lock()
		s.peers++
		if s.closed || s.refusing {
			s.mu.Unlock()
			socket.Close()
			continue
		}
		s.conns[c] = true
		s.mu.Unlock()
		s.wg.Go(c.send)
		s.wg.Go(c.receive)
	}
}

// put queues a frame.
func (c *conn) put(body []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue = append(c.queue, append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	c.ready.Signal()
}

func (c *conn) event(path string, event int32) {
	var w writer
	w.int32(-1)
	w.int64(-1)
	w.int32(0)
	w.int32(event)
	w.int32(3) // SyncConnected
	w.string(path)
	c.put(w)
}

func (c *conn) send() {
	for {
		c.mu.Lock()
		for len(c.queue) == 0 && !c.gone {
			c.ready.Wait()
		}
		out := slices.Concat(c.queue...)
		c.queue = nil
		gone := c.gone
		c.mu.Unlock()
		if _, err := c.net.Write(out); err != nil || gone {
			c.net.Close()
			return
		}
	}
}

func (c *conn) receive() {
	defer func() {
		c.s.mu.Lock()
		delete(c.s.conns, c)
		c.s.mu.Unlock()
		c.mu.Lock()
		c.gone = true
		c.ready.Signal()
		c.mu.Unlock()
	}()
	if c.handshake() != nil {
		return
	}
	for {
		body, err := readFrame(c.net)
		if err != nil || !c.handle(body) {
			return
		}
	}
}

func readFrame(r io.Reader) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > 4<<20 {
		return nil, errors.New("zktest: a frame of more than 4 MiB")
	}
	body := make([]byte, n)
	_, err := io.ReadFull(r, body)
	return body, err
}

func (c *conn) handshake() error {
	body, err := readFrame(c.net)
	if err != nil {
		return err
	}
	r := reader{b: body}
	r.int32()
	r.int64()
	timeout := r.int32()
	id := r.int64()
	if r.failed {
		return errors.New("zktest: malformed handshake")
	}
	s := c.s
	s.mu.Lock()
	for s.hanging && !s.closed {
		s.mu.Unlock()
		if _, err := c.net.Read(make([]byte, 1)); err != nil {
			return err
		}
		s.mu.Lock()
	}
	expired := id != 0 && !s.sessions[id]
	if id == 0 {
		s.nextID++
		id = s.nextID
		s.sessions[id] = true
	}
	c.session = id
	s.mu.Unlock()
	var w writer
	w.int32(0)
	if expired {
		w.int32(0)
		w.int64(0)
	} else {
		w.int32(timeout)
		w.int64(id)
	}
	w.bytes(make([]byte, 16))
	c.put(w)
	if expired {
		return errors.New("zktest: expired session")
	}
	return nil
}

// handle answers one request, and reports whether the connection goes on.
func (c *conn) handle(body []byte) bool {
	r := reader{b: body}
	xid, op := r.int32(), r.int32()
	if r.failed {
		return false
	}
	s := c.s
	s.mu.Lock()
	s.counts[op]++
	delay := s.delay
	slow := delay > 0 && (op == OpGetChildren2 || op == OpGetData || op == OpExists)
	if slow {
		s.inFlight++
		s.peak = max(s.peak, s.inFlight)
	}
	s.mu.Unlock()
	if slow {
		s.wg.Go(func() { // the delays of one client's requests overlap
			time.Sleep(delay)
			s.mu.Lock()
			defer s.mu.Unlock()
			s.inFlight--
			c.answer(xid, op, &r)
		})
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return c.answer(xid, op, &r)
}

func (c *conn) answer(xid, op int32, r *reader) bool {
	s := c.s
	var w writer
	reply := func(code int32) {
		head := writer(nil)
		head.int32(xid)
		if op == OpAuth || op == OpPing {
			head.int64(0)
		} else {
			head.int64(s.zxid)
		}
		head.int32(code)
		if code == 0 {
			head = append(head, w...)
		}
		c.put(head)
	}
	readable := func(path string) bool { return !s.denied[path] || s.login != "" && c.authed }
	switch op {
	case OpPing:
		reply(0)
	case opClose:
		delete(s.sessions, c.session)
		s.deleteEphemerals(c.session)
		reply(0)
		return false
	case OpAuth:
		r.int32()
		scheme, auth := r.string(), r.string()
		if s.authFail {
			reply(errAuthFailed)
			return false
		}
		c.authed = c.authed || scheme == "digest" && auth == s.login
		reply(0)
	case OpSync:
		w.string(r.string())
		reply(0)
	case OpGetChildren2:
		path, watch := r.string(), r.bool()
		n := s.nodes[path]
		switch {
		case s.garbage != nil:
			frame := slices.Clone(s.garbage)
			binary.BigEndian.PutUint32(frame, uint32(xid))
			s.garbage = nil
			c.put(frame)
		case n == nil:
			reply(errNoNode)
		case !readable(path):
			reply(errNoAuth)
		default:
			if watch {
				c.child[path] = true
			}
			w.int32(int32(len(n.children)))
			for name := range n.children {
				w.string(name)
			}
			n.stat(&w)
			reply(0)
		}
	case OpGetData, OpExists:
		path, watch := r.string(), r.bool()
		n := s.nodes[path]
		if watch && (n != nil || op == OpExists) {
			c.data[path] = true
		}
		switch {
		case n == nil:
			reply(errNoNode)
		case op == OpGetData && !readable(path):
			reply(errNoAuth)
		default:
			if op == OpGetData {
				w.bytes(n.data)
			}
			n.stat(&w)
			reply(0)
		}
	case OpCreate:
		path, data := r.string(), r.string()
		for range r.int32() { // the ACL is not kept
			r.int32()
			r.string()
			r.string()
		}
		flags := r.int32()
		owner := int64(0)
		if flags&1 != 0 {
			owner = c.session
		}
		switch {
		case r.failed || !strings.HasPrefix(path, "/"):
			reply(errMarshalling)
		case s.nodes[path] != nil:
			reply(errNodeExists)
		case s.nodes[parentOf(path)] == nil:
			reply(errNoNode)
		default:
			s.create(path, []byte(data), owner)
			w.string(path)
			reply(0)
		}
	case OpDelete:
		path := r.string()
		switch n := s.nodes[path]; {
		case n == nil:
			reply(errNoNode)
		case len(n.children) > 0:
			reply(errNotEmpty)
		default:
			s.delete(path)
			reply(0)
		}
	case OpSetWatches:
		c.setWatches(r)
		reply(0)
	default:
		reply(errUnimplemented)
	}
	return !r.failed
}

// setWatches re-establishes watches after a reconnection (org.apache.zookeeper.server.DataTree.setWatches).
func (c *conn) setWatches(r *reader) {
	zxid := r.int64()
	for range max(r.int32(), 0) {
		path := r.string()
		switch n := c.s.nodes[path]; {
		case n == nil:
			c.event(path, eventDeleted)
		case n.mzxid > zxid:
			c.event(path, eventData)
		default:
			c.data[path] = true
		}
	}
	for range max(r.int32(), 0) {
		path := r.string()
		if c.s.nodes[path] != nil {
			c.event(path, eventCreated)
		} else {
			c.data[path] = true
		}
	}
	for range max(r.int32(), 0) {
		path := r.string()
		switch n := c.s.nodes[path]; {
		case n == nil:
			c.event(path, eventDeleted)
		case n.pzxid > zxid:
			c.event(path, eventChildren)
		default:
			c.child[path] = true
		}
		if r.failed {
			return
		}
	}
}

func (n *znode) stat(w *writer) {
	w.int64(n.czxid)
	w.int64(n.mzxid)
	w.int64(0)
	w.int64(0)
	w.int32(n.version)
	w.int32(n.cversion)
	w.int32(0)
	w.int64(n.owner)
	w.int32(int32(len(n.data)))
	w.int32(int32(len(n.children)))
	w.int64(n.pzxid)
}

// writer appends in jute's encoding.
type writer []byte

func (w *writer) int32(v int32) { *w = binary.BigEndian.AppendUint32(*w, uint32(v)) }
func (w *writer) int64(v int64) { *w = binary.BigEndian.AppendUint64(*w, uint64(v)) }
func (w *writer) string(s string) {
	w.int32(int32(len(s)))
	*w = append(*w, s...)
}
func (w *writer) bytes(b []byte) { w.string(string(b)) }

// reader reads jute's encoding. After a fault everything is zero and failed is true.
type reader struct {
	b      []byte
	failed bool
}

func (r *reader) take(n int) []byte {
	if r.failed || n < 0 || n > len(r.b) {
		r.failed, r.b = true, nil
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) int32() int32 {
	b := r.take(4)
	if b == nil {
		return 0
	}
	return int32(binary.BigEndian.Uint32(b))
}

func (r *reader) int64() int64 {
	b := r.take(8)
	if b == nil {
		return 0
	}
	return int64(binary.BigEndian.Uint64(b))
}

func (r *reader) bool() bool {
	b := r.take(1)
	return b != nil && b[0] != 0
}

func (r *reader) string() string {
	n := r.int32()
	if n < 0 {
		return "" // jute's null
	}
	return string(r.take(int(n)))
}
