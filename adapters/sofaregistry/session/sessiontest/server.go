// Package sessiontest is a SOFARegistry in the process, for tests: a session server that speaks the session protocol, and the HTTP
// pages of a session and a data server.
package sessiontest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session/wire"
)

// Where a Server says that it is, and what publishers are in unless they say otherwise.
const (
	DataCenter = "DefaultDataCenter"
	Zone       = "DEFAULT_ZONE"
)

// Publication is what one application publishes under an id.
type Publication struct {
	DataCenter string // default DataCenter
	Zone       string // default Zone
	Data       string
}

// Subscription is one that an application, which the test only plays, has made.
type Subscription struct {
	Application string
	Address     string
}

// Server is a session and a data server. Its fields may be changed before it is first spoken to.
type Server struct {
	// Version is 6, or 5, which lists no ids on its data server, on its session server those that were ever published, and knows no
	// Protobuf.
	Version int
	// EmptyFirst makes the first push of each subscription an empty one, as servers do that have just started.
	EmptyFirst bool

	bolt  net.Listener
	pages *httptest.Server // of the session server
	data  *httptest.Server // of the data server
	group sync.WaitGroup

	mu           sync.Mutex
	refuse       bool
	version      int64
	publications map[string]map[string]Publication // by id and the name that the test gave it
	others       map[string]map[Subscription]bool
	silent       map[string]bool
	denied       map[string]denial
	clients      map[*client]struct{}
	conns        map[net.Conn]struct{} // of the pages
	stats        Stats
	hits         map[string]int
	attributes   []string
}

// Stats counts what clients have done.
type Stats struct {
	Connections int
	Registers   int
	Unregisters int
	Results     int
	Failures    []string // messages of results that were no success
	Heartbeats  int
}

// Start starts a Server of version 6 that ends with the test.
func Start(t testing.TB) *Server {
	s := &Server{Version: 6, publications: map[string]map[string]Publication{}, others: map[string]map[Subscription]bool{},
		silent: map[string]bool{}, denied: map[string]denial{}, clients: map[*client]struct{}{}, conns: map[net.Conn]struct{}{}, hits: map[string]int{}, version: 8163245804716033}
	var err error
	if s.bolt, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	s.pages = s.serve(http.HandlerFunc(s.sessionPage))
	s.data = s.serve(http.HandlerFunc(s.dataPage))
	s.group.Go(s.accept)
	t.Cleanup(s.close)
	return s
}

func (s *Server) serve(h http.Handler) *httptest.Server {
	p := httptest.NewUnstartedServer(h)
	p.Config.ConnState = func(c net.Conn, state http.ConnState) {
		s.mu.Lock()
		defer s.mu.Unlock()
		switch state {
		case http.StateNew:
			s.conns[c] = struct{}{}
			if s.refuse {
				c.Close()
			}
		case http.StateClosed, http.StateHijacked:
			delete(s.conns, c)
		}
	}
	p.Start()
	return p
}

func (s *Server) close() {
	s.bolt.Close()
	s.Refuse(true)
	s.pages.Close()
	s.data.Close()
	s.group.Wait()
}

// Address is where the pages of the session server are, host:port.
func (s *Server) Address() string { return s.pages.Listener.Addr().String() }

// Bolt is where the session server speaks the session protocol, host:port.
func (s *Server) Bolt() string { return s.bolt.Addr().String() }

// DataPort is the port of the data server's pages.
func (s *Server) DataPort() int { return s.data.Listener.Addr().(*net.TCPAddr).Port }

// Refuse cuts all connections and refuses new ones, or no longer does.
func (s *Server) Refuse(yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = yes
	if yes {
		for c := range s.clients {
			c.conn.Close()
		}
		for c := range s.conns {
			c.Close()
		}
	}
}

// Cut cuts the clients' connections to the session server.
func (s *Server) Cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.clients {
		c.conn.Close()
	}
}

// Publish adds or replaces what is published under an id by name.
func (s *Server) Publish(id wire.ID, name string, p Publication) {
	if p.DataCenter == "" {
		p.DataCenter = DataCenter
	}
	if p.Zone == "" {
		p.Zone = Zone
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := id.String()
	if s.publications[key] == nil {
		s.publications[key] = map[string]Publication{}
	}
	s.publications[key][name] = p
	s.changed(key)
}

// Withdraw takes back what was published by name.
func (s *Server) Withdraw(id wire.ID, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := id.String()
	delete(s.publications[key], name) // the id stays: a data server keeps it for a while
	s.changed(key)
}

// Forget makes the server as one that has just started and to which nobody has come back yet: nothing is published.
func (s *Server) Forget() (restore func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.publications
	s.publications = map[string]map[string]Publication{}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for key, by := range old {
			s.publications[key] = by
			s.changed(key)
		}
	}
}

// Subscribe adds another application's subscription to the pages.
func (s *Server) Subscribe(id wire.ID, by Subscription) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := id.String()
	if s.others[key] == nil {
		s.others[key] = map[Subscription]bool{}
	}
	s.others[key][by] = true
}

// Unsubscribe takes it away.
func (s *Server) Unsubscribe(id wire.ID, by Subscription) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := id.String()
	delete(s.others[key], by)
	if len(s.others[key]) == 0 {
		delete(s.others, key)
	}
}

// Silence makes subscriptions to an id be registered, but never pushed.
func (s *Server) Silence(id wire.ID, yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent[id.String()] = yes
}

type denial struct {
	message string
	forGood bool
}

// Deny makes subscriptions to an id be refused, for good or for now; with an empty message no longer.
func (s *Server) Deny(id wire.ID, message string, forGood bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.denied[id.String()] = denial{message, forGood}
}

// Send sends bytes to every client.
func (s *Server) Send(b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.clients {
		c.send(b)
	}
}

// Stats returns what has been counted.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.stats
	out.Failures = slices.Clone(out.Failures)
	return out
}

// Hits returns how often a page has been asked for.
func (s *Server) Hits(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hits[path]
}

// Attributes returns those of the last registration.
func (s *Server) Attributes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.attributes)
}

// Subscribed returns how many subscriptions clients have.
func (s *Server) Subscribed() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.clients {
		n += len(c.subs)
	}
	return n
}

// client is one connection.
type client struct {
	s    *Server
	conn net.Conn
	subs map[string]*wire.Register            // by registration
	byID map[string]map[string]*wire.Register // the same by id and registration
	enc  map[string]wire.Encoding

	out  chan []byte
	next uint32
}

func (c *client) send(b []byte) {
	select {
	case c.out <- b:
	default: // it does not read
		c.conn.Close()
	}
}

func (s *Server) accept() {
	for {
		conn, err := s.bolt.Accept()
		if err != nil {
			return
		}
		c := &client{s: s, conn: conn, subs: map[string]*wire.Register{}, byID: map[string]map[string]*wire.Register{}, enc: map[string]wire.Encoding{}, out: make(chan []byte, 1<<16)}
		s.mu.Lock()
		if s.refuse {
			s.mu.Unlock()
			conn.Close()
			continue
		}
		s.stats.Connections++
		s.clients[c] = struct{}{}
		s.mu.Unlock()
		s.group.Go(c.read)
		s.group.Go(c.write)
	}
}

func (c *client) write() {
	for b := range c.out {
		if _, err := c.conn.Write(b); err != nil {
			c.conn.Close()
		}
	}
}

func (c *client) read() {
	defer func() {
		c.conn.Close()
		c.s.mu.Lock()
		delete(c.s.clients, c)
		close(c.out) // whoever sends holds the lock and looks among the clients
		c.s.mu.Unlock()
	}()
	r := bufio.NewReader(c.conn)
	for {
		f, err := wire.ReadFrame(r, 1<<20)
		if err != nil {
			return
		}
		c.s.mu.Lock()
		c.take(f)
		c.s.mu.Unlock()
	}
}

// take serves one frame, with the lock held.
func (c *client) take(f wire.Frame) {
	s := c.s
	e, class := wire.MessageOf(f.Class)
	answer := wire.Frame{Type: wire.TypeResponse, Command: wire.CommandResponse, ID: f.ID, Codec: f.Codec}
	switch {
	case f.Type == wire.TypeResponse:
		if f.Command == wire.CommandHeartbeat {
			return
		}
		s.stats.Results++
		ok, message, err := wire.DecodeResult(e, f.Content)
		if f.Status != wire.StatusSuccess || err != nil || !ok {
			s.stats.Failures = append(s.stats.Failures, fmt.Sprint(message, err, wire.StatusText(f.Status)))
		}
		return
	case f.Command == wire.CommandHeartbeat:
		s.stats.Heartbeats++
		answer.Command = wire.CommandHeartbeat
		c.send(wire.AppendFrame(nil, answer))
		return
	case class != wire.ClassSubscriber || e == wire.Protobuf && s.Version < 6:
		answer.Status = wire.StatusError
		c.send(wire.AppendFrame(nil, answer))
		return
	}
	m, err := wire.DecodeRegister(e, false, f.Content)
	if err != nil {
		answer.Status = wire.StatusCodec
		c.send(wire.AppendFrame(nil, answer))
		return
	}
	s.attributes = m.Attributes
	if m.ID.InstanceID == "" {
		m.ID.InstanceID = wire.DefaultInstance
	}
	key := m.ID.String()
	result := wire.Response{Success: true, Registration: m.Registration, Version: m.Version}
	switch {
	case m.Remove:
		s.stats.Unregisters++
		delete(c.subs, m.Registration)
		delete(c.byID[key], m.Registration)
		if len(c.byID[key]) == 0 {
			delete(c.byID, key)
		}
	case s.denied[key].message != "":
		result.Success, result.Refused, result.Message = false, s.denied[key].forGood, s.denied[key].message
	default:
		s.stats.Registers++
		c.subs[m.Registration], c.enc[m.Registration] = &m, e
		if c.byID[key] == nil {
			c.byID[key] = map[string]*wire.Register{}
		}
		c.byID[key][m.Registration] = &m
	}
	answer.Class, answer.Content = wire.ClassName(e, wire.ClassResponse), wire.EncodeResponse(e, result)
	c.send(wire.AppendFrame(nil, answer))
	if c.subs[m.Registration] != nil {
		if s.EmptyFirst {
			c.push(&m, e, DataCenter, nil, wire.NoDatum)
		}
		c.pushAll(&m, e)
	}
}

// changed pushes an id to whoever subscribes to it, with the lock held.
func (s *Server) changed(key string) {
	s.version += 1 << 16
	for c := range s.clients {
		for r, m := range c.byID[key] {
			c.pushAll(m, c.enc[r])
		}
	}
}

// pushAll pushes all data centres' data of an id.
func (c *client) pushAll(m *wire.Register, e wire.Encoding) {
	by, known := c.s.publications[m.ID.String()]
	centres := map[string]map[string][]string{DataCenter: {}}
	for _, name := range slices.Sorted(maps.Keys(by)) {
		p := by[name]
		if centres[p.DataCenter] == nil {
			centres[p.DataCenter] = map[string][]string{}
		}
		centres[p.DataCenter][p.Zone] = append(centres[p.DataCenter][p.Zone], p.Data)
	}
	version := c.s.version
	if !known {
		version = wire.NoDatum
	}
	for _, centre := range slices.Sorted(maps.Keys(centres)) {
		if centre == DataCenter || m.Scope == wire.ScopeGlobal {
			c.push(m, e, centre, centres[centre], version)
		}
	}
}

func (c *client) push(m *wire.Register, e wire.Encoding, centre string, zones map[string][]string, version int64) {
	if c.s.silent[m.ID.String()] {
		return
	}
	c.next++
	c.send(wire.AppendFrame(nil, wire.Frame{Type: wire.TypeRequest, Command: wire.CommandRequest, ID: c.next, Codec: wire.CodecHessian, Timeout: 2000,
		Class: wire.ClassName(e, wire.ClassReceived), Content: wire.EncodePush(e, &wire.Push{ID: m.ID, Segment: centre, Scope: m.Scope, Version: version,
			LocalZone: Zone, Zones: zones, Registrations: []string{m.Registration}})}))
}

// ids returns what the session server lists: what its publishers and subscribers have to do with.
func (s *Server) ids() []string {
	set := map[string]bool{}
	for key, by := range s.publications {
		if len(by) > 0 || s.Version < 6 { // version 5 never forgets an id
			set[key] = true
		}
	}
	for key := range s.others {
		set[key] = true
	}
	for c := range s.clients {
		for key := range c.byID {
			set[key] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}

func (s *Server) sessionPage(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hits[r.URL.Path]++
	host, _, _ := net.SplitHostPort(s.Bolt())
	switch r.URL.Path {
	case "/api/servers/query":
		fmt.Fprint(w, s.Bolt())
	case "/digest/data/serverList/query":
		answer(w, []string{host})
	case "/digest/getDataInfoIdList":
		answer(w, s.ids())
	case "/digest/checkSumDataInfoIdList":
		answer(w, checksum(s.ids()))
	case "/digest/data/count":
		subs, pubs := 0, 0
		for _, by := range s.others {
			subs += len(by)
		}
		for c := range s.clients {
			subs += len(c.subs)
		}
		for _, by := range s.publications {
			pubs += len(by)
		}
		fmt.Fprintf(w, "Subscriber count: %d, Publisher count: %d, Watcher count: 0", subs, pubs)
	case "/digest/sub/data/query":
		s.subscribers(w, r.URL.Query().Get("dataInfoId"))
	default:
		http.NotFound(w, r)
	}
}

func (s *Server) subscribers(w http.ResponseWriter, key string) {
	list := []map[string]any{}
	one := func(address, application, registration string) {
		list = append(list, map[string]any{"dataInfoId": key, "appName": application, "registerId": registration, "scope": "global",
			"processId": address + ":40000", "sourceAddress": map[string]any{"ipAddress": address, "port": 40000}})
	}
	for by := range s.others[key] {
		one(by.Address, by.Application, "")
	}
	for c := range s.clients {
		for r, m := range c.byID[key] {
			host, _, _ := net.SplitHostPort(c.conn.RemoteAddr().String())
			one(host, m.Application, r)
		}
	}
	if len(list) == 0 {
		answer(w, map[string]any{})
		return
	}
	answer(w, map[string]any{"SUB": list})
}

func (s *Server) dataPage(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hits[r.URL.Path]++
	counts, pubs := map[string]int{}, 0
	for key, by := range s.publications {
		counts[key] = len(by)
		pubs += len(by)
	}
	switch {
	case r.URL.Path == "/digest/datum/count":
		fmt.Fprintf(w, "CacheDigest [Datum] size of datum in %s is %d,[Publisher] size of publisher in %s is %d", DataCenter, len(counts), DataCenter, pubs)
	case r.URL.Path == "/datum/api/summary/query" && s.Version >= 6:
		answer(w, counts)
	default:
		http.NotFound(w, r)
	}
}

func checksum(ids []string) int32 {
	h := fnv.New32a()
	h.Write([]byte(strings.Join(ids, "\n")))
	return int32(h.Sum32())
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}
