// Package filtertest runs scripts of what connections do through the filter, natively and in the compiled module, and
// holds both to the same outcome.
//
// A script is a text file in testdata. Its blocks are commands, then a line of four dashes, then what they print; go test
// -update writes that part again. The commands:
//
//	config {"throttle": …}        a new plugin context with this configuration (JSON, to the end of the line)
//	reuse N                       Envoy goes back to the N-th context, counted from 1: it becomes the newest
//	drop N                        Envoy lets go of the N-th context
//	open NAME client|server [lift|lower]
//	                              where the connection is lifted or lowered, what leaves it on its HTTP/2 side is described as such
//	open NAME client|server       a new connection through a listener of that direction, under the newest context
//	down NAME BYTES               one or more callbacks with bytes from the client …
//	up NAME BYTES                 … or from the server; prints what leaves the filter
//	down-end NAME BYTES           the same, and no more will come; up-end likewise
//	bytewise NAME down|up BYTES   every byte in a callback of its own
//	close NAME                    the connection is gone
//	tick DURATION                 the clock advances, then the plugin's timer fires; prints what leaves the filter on account of it
//	advance DURATION              the clock advances
//	dialled [ADDRESS]             what the connections that follow are opened to: 10.0.0.1:80
//	peer [ADDRESS [IDENTITY]]     who opens the connections that follow: 10.0.0.1:80, and the URI in its certificate
//	endpoint [ADDRESS]            where the connections that follow go to: 10.0.0.2:20880
//	request NAME client|server NAME=VALUE …
//	                              an HTTP request with these headers, under the newest context; prints what becomes of it. VALUE may be
//	                              TEXT*N, and have spaces
//	response NAME [end] NAME=VALUE …
//	                              its response begins, and is at its end
//	trailers NAME NAME=VALUE …    its response ends
//	finish NAME [DETAILS]         it is gone; Envoy's words for how, where not as it should
//	plugin NAME                   the name of the plugin whose contexts follow
//	key NAME ALGORITHM            a new key: $NAME; is its value in base64 from now on
//	token NAME KEY[:ID] CLAIMS    a JSON Web Token, which is $NAME; from now on
//	sign NAME KEY FIELD,FIELD…    the signature of a call with these fields, likewise; - is an absent one
//	host [no-signatures]          whether the host can verify signatures by public keys
//	signatures                    prints how many it has verified since the last time
//	metrics [PREFIX …]            prints the metrics that are not zero, of those names
//	logs                          prints the lines logged since the last time
//
// BYTES are items separated by spaces; each is bytes, and | is a border between callbacks:
//
//	bolt.req(id=1,service=S,method=m,caller=a,size=100)   also dubbo.…, and kinds oneway, resp, hb, ack, event, fail
//	bolt.req(id=1,…,.KEY=VALUE)                           with a further header, or attachment
//	hex(dabb…)  text(GET / HTTP/1.1)  zeros(100)
//	ITEM[2:10]                                            a part of it
//	h2.settings(window=N,streams=N) h2.window(stream=N,by=N) h2.headers(stream=N,end=1,NAME=VALUE…) h2.data(stream=N,end=1)+ITEM …
//	                                                      HTTP/2: see HTTP2
package filtertest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
	"github.com/isthmus-mesh/isthmus/wasm-filters/filter"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// A Rig is a filter in surroundings that a test controls.
type Rig interface {
	// Configure makes a new plugin context.
	Configure(conf string) error
	// Reuse makes the i-th context the newest: Envoy does not configure a plugin again when it goes back to a configuration
	// that open connections still use.
	Reuse(i int)
	// Drop ends the i-th context.
	Drop(i int) error
	// Open begins a connection under the newest context and returns its number.
	Open(dir policy.Direction) (int, error)
	// Data gives the filter one callback and returns what the buffer holds afterwards, and whether the connection is to be
	// closed.
	Data(conn int, side filter.Side, data []byte, end bool) (out []byte, closed bool, err error)
	// Close ends a connection.
	Close(conn int) error
	// Tick fires the newest context's timer.
	Tick() error
	// Answer gives the filter the answer to a question that it asked; nil: there is none.
	Answer(token uint32, message []byte) error
	// Released returns what has left the filter towards servers outside of Data since the last time.
	Released() []Release
	// Request gives the filter an HTTP request under the newest context, and returns its number and what the filter did.
	Request(dir policy.Direction, h Headers) (n int, a Answer, err error)
	// Response gives it the headers of the response to a request; end says that nothing follows. Trailers are the response's end.
	Response(n int, h Headers, end bool) error
	Trailers(n int, h Headers) error
	// Finish ends a request; details are Envoy's word for how. "" is as it should.
	Finish(n int, details string) error
	// Proceeded returns the delayed requests that have gone on since the last time.
	Proceeded() []int
	// World is what the filter sees and what it did to it.
	World() *World
}

// A Release is bytes that leave a connection outside of Data.
type Release struct {
	Conn   int
	Data   []byte
	Closed bool // the connection is to be closed
}

// World is a host in memory: a clock that stands still, metrics, a log and shared data. The zero value is ready.
type World struct {
	Clock policy.Nanos
	App   string // the workload's application
	// Peer and Identity are the address, with its port, and the URI SAN of who opens connections from now on.
	Peer, Identity string
	// Endpoint is the address, with its port, that connections which are opened from now on go to.
	Endpoint string
	// Dialled is the address, with its port, that they are opened to.
	Dialled string
	values  []value
	names   map[string]filter.Metric
	logs    []string
	shared  map[string]*entry
	mark    uint32
	Calls   int // of the host, by the filter
	// Away says that services cannot be asked.
	Away      bool
	questions []Question
	asked     uint32
	// Plugin is the name of the plugins that are configured from now on; "" is "isthmus".
	Plugin string
	// NoSignatures says that the host lacks the function that verifies them.
	NoSignatures bool
	Signatures   int // verified by the host
}

// A Question is a call of a gRPC service by the filter.
type Question struct {
	Token   uint32
	Service []byte // a GrpcService
	Method  string
	Message []byte
	Timeout uint32 // in milliseconds
}

// Questions returns what was asked since the last time.
func (w *World) Questions() []Question {
	q := w.questions
	w.questions = nil
	return q
}

func (w *World) ask(q Question) (uint32, bool) {
	w.Calls++
	if w.Away {
		return 0, false
	}
	w.asked++
	q.Token = w.asked
	w.questions = append(w.questions, q)
	return q.Token, true
}

type value struct {
	name  string
	gauge bool
	n     int64
}

type entry struct {
	value []byte
	mark  uint32
}

func (w *World) define(name string, gauge bool) filter.Metric {
	w.Calls++
	key := fmt.Sprint(gauge, name)
	if m, ok := w.names[key]; ok {
		return m
	}
	if w.names == nil {
		w.names = make(map[string]filter.Metric)
	}
	m := filter.Metric(len(w.values))
	w.values = append(w.values, value{name: name, gauge: gauge})
	w.names[key] = m
	return m
}

func (w *World) add(m filter.Metric, delta int64) {
	w.Calls++
	if delta < 0 && !w.values[m].gauge {
		panic("counter decreases: " + w.values[m].name)
	}
	w.values[m].n += delta
}

func (w *World) set(m filter.Metric, v uint64) {
	w.Calls++
	w.values[m].n = int64(v)
}

func (w *World) log(level filter.Level, line string) {
	w.Calls++
	w.logs = append(w.logs, [...]string{"info", "warn", "error"}[level]+": "+line)
}

func (w *World) get(key []byte) ([]byte, uint32, bool) {
	w.Calls++
	e := w.shared[string(key)]
	if e == nil {
		return nil, 0, false
	}
	return e.value, e.mark, true
}

func (w *World) swap(key, v []byte, mark uint32) bool {
	w.Calls++
	e := w.shared[string(key)]
	if e == nil {
		if w.shared == nil {
			w.shared = make(map[string]*entry)
		}
		e = new(entry)
		w.shared[string(key)] = e
	} else if mark != 0 && mark != e.mark {
		return false
	}
	w.mark++
	e.value, e.mark = append(e.value[:0], v...), w.mark
	return true
}

// Logs returns the lines since the last call.
func (w *World) Logs() []string {
	l := w.logs
	w.logs = nil
	return l
}

// Metrics returns the metrics that are not zero as Prometheus would show them, sorted; only those whose name begins with one
// of the prefixes, if there are any.
func (w *World) Metrics(prefixes ...string) []string {
	var out []string
	for _, v := range w.values {
		if v.n == 0 {
			continue
		}
		name, labels := parseStat(v.name)
		if len(prefixes) == 0 || slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) }) {
			out = append(out, fmt.Sprintf("%s{%s} %d", name, strings.Join(labels, ","), v.n))
		}
	}
	slices.Sort(out)
	return out
}

// Metric returns the value of one metric, named as Metrics prints it.
func (w *World) Metric(series string) int64 {
	for _, v := range w.values {
		name, labels := parseStat(v.name)
		if name+"{"+strings.Join(labels, ",")+"}" == series {
			return v.n
		}
	}
	return 0
}

// parseStat takes a stat's name apart as Envoy does with Istio's expressions for tags.
func parseStat(stat string) (name string, labels []string) {
	for _, tag := range config.StatTags {
		at := strings.Index(stat, tag+"=.=")
		if at < 0 {
			continue
		}
		end := strings.Index(stat[at:], ";.;")
		if end < 0 {
			continue
		}
		labels = append(labels, tag+`="`+stat[at+len(tag)+3:at+end]+`"`)
		stat = stat[:at] + stat[at+end+3:]
	}
	return stat, labels
}

// Native runs the filter as it is.
type Native struct {
	world   *World
	vm      *filter.VM
	plugins []*filter.Plugin
	current int
	conns   []*filter.Conn
	streams []*filter.Stream
	peers   []peer
	peer    peer // of the connection at hand
	out     []Release

	proceeded []int
}

// NewNative returns a rig without Wasm. worlds may share a World, as workers share an Envoy.
func NewNative(w *World, protocols []filter.Protocol) *Native {
	n := &Native{world: w}
	n.vm = filter.New(nativeHost{w, n}, protocols)
	return n
}

// nativeHost implements filter.Host.
type nativeHost struct {
	*World
	rig *Native
}

// A peer is who opened a connection, to what, and where it goes to.
type peer struct{ address, identity, dialled, endpoint string }

func (w *World) peer() peer { return peer{w.Peer, w.Identity, w.Dialled, w.Endpoint} }

func (h nativeHost) Now() policy.Nanos                 { h.Calls++; return h.Clock }
func (h nativeHost) Log(l filter.Level, line []byte)   { h.log(l, string(line)) }
func (h nativeHost) Counter(name []byte) filter.Metric { return h.define(string(name), false) }
func (h nativeHost) Gauge(name []byte) filter.Metric   { return h.define(string(name), true) }
func (h nativeHost) Add(m filter.Metric, delta int64)  { h.add(m, delta) }
func (h nativeHost) Set(m filter.Metric, v uint64)     { h.set(m, v) }
func (h nativeHost) PeerAddress(dst []byte) []byte {
	h.Calls++
	return append(dst, h.rig.peer.address...)
}
func (h nativeHost) DialledAddress(dst []byte) []byte {
	h.Calls++
	return append(dst, h.rig.peer.dialled...)
}
func (h nativeHost) PeerIdentity(dst []byte) []byte {
	h.Calls++
	return append(dst, h.rig.peer.identity...)
}
func (h nativeHost) Endpoint(dst []byte) []byte {
	h.Calls++
	return append(dst, h.rig.peer.endpoint...)
}
func (h nativeHost) Wall() int64 { h.Calls++; return h.wall() }
func (h nativeHost) VerifySignature(hash string, key, signature, text []byte) (valid, done bool) {
	if h.NoSignatures {
		return false, false
	}
	return h.verify(hash, key, signature, text)
}
func (h nativeHost) Shared() policy.Shared { return nativeShared{h.World} }
func (h nativeHost) Ask(service []byte, name, method string, message []byte, timeout uint32) (uint32, bool) {
	return h.ask(Question{Service: slices.Clone(service), Method: name + "/" + method, Message: slices.Clone(message), Timeout: timeout})
}

type nativeShared struct{ *World }

func (s nativeShared) Get(dst, key []byte) ([]byte, uint32, bool) {
	v, mark, ok := s.get(key)
	return append(dst, v...), mark, ok
}

func (s nativeShared) CompareAndSwap(key, v []byte, mark uint32) bool {
	return s.swap(key, v, mark)
}

// Slice is a filter.Buffer over a slice.
type Slice struct{ B []byte }

// CopyTo implements filter.Buffer.
func (s *Slice) CopyTo(dst []byte, off int) {
	if off+len(dst) > len(s.B) {
		panic("filtertest: read beyond the buffer")
	}
	copy(dst, s.B[off:])
}

// Prepend implements filter.Buffer.
func (s *Slice) Prepend(b []byte) { s.B = append(slices.Clone(b), s.B...) }

// Replace implements filter.Buffer.
func (s *Slice) Replace(b []byte) { s.B = slices.Clone(b) }

// Scratch is a filter.Buffer that is used again and again without allocating.
type Scratch struct{ b, old []byte }

// Set fills the buffer.
func (s *Scratch) Set(b []byte) { s.b = append(s.b[:0], b...) }

// Bytes returns what the buffer holds, until the next change.
func (s *Scratch) Bytes() []byte { return s.b }

// CopyTo implements filter.Buffer.
func (s *Scratch) CopyTo(dst []byte, off int) {
	if off+len(dst) > len(s.b) {
		panic("filtertest: read beyond the buffer")
	}
	copy(dst, s.b[off:])
}

// Prepend implements filter.Buffer.
func (s *Scratch) Prepend(b []byte) {
	s.old = append(s.old[:0], s.b...)
	s.b = append(append(s.b[:0], b...), s.old...)
}

// Replace implements filter.Buffer.
func (s *Scratch) Replace(b []byte) { s.b = append(s.b[:0], b...) }

// Configure implements Rig.
func (n *Native) Configure(conf string) error {
	p, _ := n.vm.Configure(filter.Identity{Name: cmp.Or(n.world.Plugin, "isthmus"), Root: "isthmus"}, n.world.App, []byte(conf))
	n.plugins = append(n.plugins, p)
	n.current = len(n.plugins) - 1
	return nil
}

// Reuse implements Rig.
func (n *Native) Reuse(i int) { n.current = i }

// Drop implements Rig.
func (n *Native) Drop(i int) error {
	n.plugins[i].Done()
	return nil
}

// Open implements Rig.
func (n *Native) Open(dir policy.Direction) (int, error) {
	c := n.plugins[n.current].NewConn(dir)
	c.Tag = uint32(len(n.conns))
	n.conns = append(n.conns, c)
	n.peers = append(n.peers, n.world.peer())
	return len(n.conns) - 1, nil
}

// Opened returns the i-th connection that Open began.
func (n *Native) Opened(i int) *filter.Conn { return n.conns[i] }

// Conn begins a connection and returns it as it is.
func (n *Native) Conn(dir policy.Direction) *filter.Conn {
	n.peer = n.world.peer()
	return n.plugins[n.current].NewConn(dir)
}

// Data implements Rig.
func (n *Native) Data(conn int, side filter.Side, data []byte, end bool) ([]byte, bool, error) {
	b := &Slice{B: slices.Clone(data)}
	n.peer = n.peers[conn]
	action := n.conns[conn].Data(side, b, len(data), end)
	return b.B, action == filter.Close, nil
}

// Close implements Rig.
func (n *Native) Close(conn int) error {
	n.conns[conn].End()
	return nil
}

// Tick implements Rig.
func (n *Native) Tick() error {
	n.plugins[n.current].Tick()
	n.vm.Release(func(*filter.Conn) bool { return true }, func(c *filter.Conn, frames []byte) {
		n.out = append(n.out, Release{Conn: int(c.Tag), Data: slices.Clone(frames)})
	})
	n.vm.Proceed(func(s *filter.Stream) { n.proceeded = append(n.proceeded, int(s.Tag)) })
	for c := n.vm.Waking(); c != nil; c = n.vm.Waking() {
		b := new(Slice)
		closed := c.Wake(b) == filter.Close
		n.out = append(n.out, Release{int(c.Tag), b.B, closed})
	}
	n.vm.Ask()
	return nil
}

// Answer implements Rig.
func (n *Native) Answer(token uint32, message []byte) error {
	n.vm.Answer(token, message)
	return nil
}

// Released implements Rig.
func (n *Native) Released() []Release {
	out := n.out
	n.out = nil
	return out
}

// World implements Rig.
func (n *Native) World() *World { return n.world }
