// Package filter follows the RPC connections that go through an Envoy: where each frame ends, which call it belongs to,
// how long the call took and how it ended, and whether the rules let it through. It knows nothing of Envoy or Wasm: bytes,
// time and configuration are handed in through Host and Buffer, decisions come out as changes to the Buffer.
//
// # What it does to the bytes
//
// Nothing, as long as no rule rejects. Where no intercepting rule can match a frame, its bytes go on at once, also in
// the middle of a frame; the filter keeps a copy of what it still has to read. Only a frame that may have to be rejected
// is held back until it can be decided, which is when it is complete or longer than Limits.MaxInspectBytes.
//
// A network filter cannot answer a request. So a rejected request is replaced, in place, by a heartbeat with its id
// (Codec.AppendProbe), which the provider answers without calling the business code; that answer is replaced by the
// protocol's error response (Codec.AppendReject), or by a value that a rule has (Replier), on its way back. A rejected one-way
// request is left out. A delayed request is left out, too, and put in again later (VM.Release).
//
// # Lifting
//
// Where the configuration says so, a connection is lifted: calls go on as HTTP/2 streams, to the HTTP connection manager behind the
// filter, and come back as the protocol's own responses (lift.go). Or it is lowered, which is the reverse (lower.go). Then every byte
// is the filter's own; a call that is rejected is answered at once, and none is delayed.
//
// # HTTP
//
// Requests of an HTTP connection manager come as a Stream each, of which only headers are read (http.go). A request that a rule rejects is
// answered at once; what decides is the same for all protocols.
//
// # Memory
//
// A VM is used from one thread. In steady state nothing is allocated for a frame or a connection: connections, tables of calls in
// flight and held bytes come from free lists, because the memory of a Wasm module never shrinks.
package filter

import (
	"unsafe"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/token"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// Buffer is the data of one callback, as Envoy holds it. A buffer cannot be edited in its middle.
type Buffer interface {
	// CopyTo fills dst with the bytes from off on. The caller asks only for bytes that are there.
	CopyTo(dst []byte, off int)
	// Prepend puts b in front of the buffer. b is not retained.
	Prepend(b []byte)
	// Replace puts b in the place of the whole buffer. b is not retained.
	Replace(b []byte)
}

// Metric is the host's handle of a metric.
type Metric uint32

// Level is the severity of a log line.
type Level uint8

// The levels that the filter uses.
const (
	LevelInfo Level = iota
	LevelWarn
	LevelError
)

// Host is what the filter needs of its surroundings, besides the bytes.
type Host interface {
	// Now returns a clock that never goes back and is the same for all workers.
	Now() policy.Nanos
	// Log writes one line. line is not retained.
	Log(level Level, line []byte)
	// Counter and Gauge return the handle of the metric called name, which is made if there is none. name is not
	// retained.
	Counter(name []byte) Metric
	Gauge(name []byte) Metric
	// Add adds delta to a counter or gauge. Workers share metrics.
	Add(m Metric, delta int64)
	// Set sets a gauge.
	Set(m Metric, value uint64)
	// PeerAddress appends the address and port of who opened the connection whose callback is at hand: "10.0.0.1:80",
	// "[fd00::1]:80". Nothing where it has none.
	PeerAddress(dst []byte) []byte
	// DialledAddress appends, in the same form, what that connection was opened to, before anything redirected it.
	DialledAddress(dst []byte) []byte
	// PeerIdentity appends the URI SAN of the certificate that the peer of the connection at hand showed, nothing where it showed
	// none.
	PeerIdentity(dst []byte) []byte
	// Endpoint appends the address and port that Envoy sends the bytes of the connection at hand to, which may be another one than the
	// client has dialled; nothing where it has not chosen one.
	Endpoint(dst []byte) []byte
	// Wall returns the time in milliseconds since the Unix epoch, 0 where there is none. It may go back.
	Wall() int64
	// Checker checks signatures by public keys.
	token.Checker
	// Shared returns the store of all workers; nil means that this worker is alone.
	Shared() policy.Shared
	// Ask sends a message to a method of a gRPC service, for which it waits at most timeout milliseconds. service is an
	// envoy.config.core.v3.GrpcService. ok is false where that cannot be tried; otherwise VM.Answer is called with the same token later. Nothing
	// is retained.
	Ask(service []byte, name, method string, message []byte, timeout uint32) (token uint32, ok bool)
}

// Protocol is one entry of the table of protocols: a codec, and the names of the attachments that hold what its
// frames do not have in their leading fields. Names are empty, or the list is nil, where Decode finds the value.
type Protocol struct {
	Codec protocol.Codec
	// system names what has no Codec: HTTP.
	system string
	// Group is the attachment that holds the service's group.
	Group string
	// Caller is the attachment that holds the calling application.
	Caller string
	// Timeout is the attachment that holds how long the caller waits, in milliseconds as decimal digits.
	Timeout string
	// Labels is the beginning of the names of attachments that a call carries along, from one application to the next.
	Labels string
	// Traces are the attachments that may hold a span context of SOFATracer.
	Traces []string
}

// A Replier is a codec that can put a value in the place of a response.
type Replier interface {
	// AppendReply appends the response to the request req that returns a value, in the serialization that req has. What is said of
	// protocol.Codec's AppendReject holds for it too.
	AppendReply(dst []byte, req *protocol.Frame, value []byte) []byte
}

// name is the protocol's, as metrics and rules have it.
func (p *Protocol) name() string {
	if p.Codec == nil {
		return p.system
	}
	return p.Codec.Name()
}

// late tells whether attachments have to be read to know all of a call.
func (p *Protocol) late() bool { return p.Group != "" || p.Caller != "" }

// Side names who sent some bytes of a connection.
type Side uint8

// The sides. Requests usually come from downstream and responses from upstream, but both protocols also call back.
const (
	Downstream Side = iota // from the client that opened the connection
	Upstream               // from the server
)

// String returns "downstream" or "upstream".
func (s Side) String() string {
	if s == Upstream {
		return "upstream"
	}
	return "downstream"
}

// Action is what is to become of the connection after a callback.
type Action uint8

// The actions.
const (
	Continue Action = iota // pass on what is in the buffer
	Close                  // close the connection; the buffer has been emptied
	Linger                 // pass on what is in the buffer, and keep it: requests wait for VM.Release
	Yield                  // the same, for Conn.Wake
)

// Bounds that no configuration moves.
const (
	// maxLabel is the longest label value, in bytes; longer ones are cut.
	maxLabel = 200
	// maxField is the longest name of which a route is remembered.
	maxField = 512
	// windowSize is how much of a callback's buffer is looked at at once.
	windowSize = 64 << 10
	// poolBytes bounds what each free list keeps.
	poolBytes = 8 << 20
	// sweepSlots bounds the slots of in-flight tables that one tick looks at.
	sweepSlots = 64 << 10
)

// VM is the part that all plugins of one Wasm memory share.
type VM struct {
	host      Host
	protocols []Protocol
	relayers  []protocol.Relayer // by protocol: its codec, if calls can be lifted; else nil
	runtimes  map[string]*Runtime
	limiter   limiter

	// Scratch, valid within one callback.
	window     []byte
	out        output
	frame      protocol.Frame
	asked      protocol.Frame // the request that a rejection answers
	known      known          // of the request that frame describes; views
	headRead   bool           // known is set
	clock      policy.Nanos
	ticked     bool // clock is set
	call       policy.Call
	attachment attachments
	visit      func(k, v []byte) bool
	line       []byte

	conns  *Conn // free ones, linked by next
	holds  pool[byte]
	tables pool[call]

	waiting []*Conn // that have delayed requests

	asking
	exchanges
	relaying
}

// New returns a VM that tries protocols in their order.
func New(host Host, protocols []Protocol) *VM {
	vm := &VM{host: host, protocols: append(protocols[:len(protocols):len(protocols)], httpSystems[:]...), runtimes: make(map[string]*Runtime), window: make([]byte, windowSize)}
	for i := range vm.protocols {
		r, _ := vm.protocols[i].Codec.(protocol.Relayer)
		vm.relayers = append(vm.relayers, r)
	}
	vm.okHeads = make([][]byte, len(vm.protocols))
	vm.visit = vm.attachment.visitor()
	vm.holds.min, vm.holds.size = 9, 1
	vm.tables.min, vm.tables.size = 4, callSize
	vm.relayed.min, vm.relayed.size = 4, relayedSize
	vm.limiter.init()
	return vm
}

// now is the time of the callback; it asks the host only once.
func (vm *VM) now() policy.Nanos {
	if !vm.ticked {
		vm.clock, vm.ticked = vm.host.Now(), true
	}
	return vm.clock
}

// view returns b as a string that is valid as long as b is not changed.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// attachments collects the values that a Protocol and the rules name, as views.
type attachments struct {
	p                      *Protocol
	group, caller, timeout []byte

	wanted   []string // by the rules
	values   [][]byte // of these
	traffic  bool     // the rules ask for loadTest
	loadTest bool

	lift *collector // nil: the call is not lifted
}

// visitor returns what takes one attachment: itself a function, so that none stands between. It wants all of them: of two with the same name the
// later one holds, and who calls is not to be told differently here and at the provider.
func (a *attachments) visitor() func(k, v []byte) bool {
	return func(k, v []byte) bool {
		// Comparisons, not a switch: that would copy a long key to the heap.
		switch {
		case is(k, a.p.Caller):
			a.caller = v
		case is(k, a.p.Group):
			a.group = v
		case is(k, a.p.Timeout):
			a.timeout = v
		}
		for i, name := range a.wanted {
			if is(k, name) {
				a.values[i] = v
			}
		}
		if a.traffic {
			for _, name := range a.p.Traces {
				a.loadTest = a.loadTest || is(k, name) && loadTest(v)
			}
		}
		if a.lift != nil {
			a.lift.take(k, v)
		}
		return true
	}
}

func is(k []byte, name string) bool { return len(k) == len(name) && string(k) == name }

// read reads the attachments of the frame that b holds, and tells whether all of them could be read.
func (a *attachments) read(vm *VM, rs *ruleset, protocol int, b []byte) bool {
	p := &vm.protocols[protocol]
	values := a.values[:0]
	for range rs.keys {
		values = append(values, nil)
	}
	*a = attachments{p: p, wanted: rs.wanted[protocol], values: values, traffic: rs.traffic, lift: vm.lifting}
	return p.Codec.VisitAttachments(&vm.frame, b, vm.visit) == nil
}

// millis reads decimal digits; 0 for anything else.
func millis(b []byte) uint32 {
	if len(b) == 0 || len(b) > 9 {
		return 0
	}
	var n uint32
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0
		}
		n = n*10 + uint32(c-'0')
	}
	return n
}
