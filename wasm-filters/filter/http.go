package filter

import (
	"slices"

	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// A request of an HTTP connection manager is a call as any other: its names come from headers, its outcome from a status, and the same
// chain of policies decides. What differs is at the rim: Envoy tells when a request begins and ends, so there is no table of calls in flight;
// and an HTTP filter can answer, so no probe is needed.

// httpSystems are the protocols of HTTP requests: they stand behind the codecs in VM.protocols.
var httpSystems = [...]Protocol{{system: config.SystemHTTP}, {system: config.SystemTriple}}

// The headers that are read.
const (
	headerAuthority   = ":authority"
	headerPath        = ":path"
	headerVerb        = ":method"
	headerStatus      = ":status"
	headerContentType = "content-type"
	headerGRPCStatus  = "grpc-status"

	// Triple's, from org.apache.dubbo.rpc.protocol.tri.TripleHeaderEnum.
	headerTriVersion = "tri-service-version"
	headerTriGroup   = "tri-service-group"
	headerTriCaller  = "tri-consumer-appname"
	// headerTriException is there where the business code threw, among the headers with what it threw as the message and a grpc-status of 0,
	// or among the trailers.
	headerTriException = "tri-exception-code"

	// SOFATracer's marks of a load test: an item of the baggage (com.alipay.common.tracer.core.registry.AbstractTextB3Formatter), and a
	// whole span context in an attachment of Triple.
	headerLoadTest = "baggage-mark"
	headerTrace    = "dubbo.rpc.sofa.tracer"
)

// Message is the headers, or trailers, of the callback at hand.
type Message interface {
	// Header appends the value of a header to dst and returns it; value is nil where there is none. known is false where there is one of more
	// than MaxHeader bytes.
	Header(dst []byte, name string) (value []byte, known bool)
}

// Exchange is an HTTP request that has come and has not gone on.
type Exchange interface {
	Message
	// AddHeader adds a header to the request. value is not retained.
	AddHeader(name string, value []byte)
	// Respond answers the request in the server's place. r is not retained.
	Respond(r *Response)
}

// Response is an answer of the filter's own.
type Response struct {
	Status uint32 // of HTTP; that of gRPC is 200
	// GRPC is the gRPC status. It is the answer, with Body as its message, where the request is one of gRPC; -1: the request is not.
	GRPC       int32
	RetryAfter uint32 // seconds; 0: not known
	JSON       bool   // of Body
	Body       []byte
	Details    []byte // why, for Envoy's access log (RESPONSE_CODE_DETAILS)
}

// exchanges are the HTTP requests of a VM.
type exchanges struct {
	streams *Stream   // free ones, linked by next
	held    []*Stream // that are delayed
	heads   []byte    // the headers of the callback at hand
	cut     bool      // one of them could not be read
	reply   Response
}

// Stream is one HTTP request with its response.
type Stream struct {
	party
	next  *Stream // free
	route *route  // nil: it is not followed, or no more
	chain *chain  // of policies that admitted it; nil where none wants to know how it ends
	marks uint64
	start policy.Nanos
	due   policy.Nanos // of a delayed one
	held  bool

	failed   bool // no more is read of it
	answered bool // the response has begun: its outcome is
	threw    bool // the response said so
	outcome  protocol.Outcome
	// Tag is the host's own.
	Tag uint32
}

// maxPending bounds the delayed requests of a worker; more are not delayed.
const maxPending = 4096

// NewStream begins a request. dir tells at which end of its calls this Envoy stands.
func (p *Plugin) NewStream(dir policy.Direction) *Stream {
	p.current()
	vm := p.rt.vm
	s := vm.streams
	if s == nil {
		s = new(Stream)
	} else {
		vm.streams = s.next
		s.next = nil
	}
	s.rt, s.dir = p.rt, dir
	p.rt.streams++
	return s
}

// header returns the value of a header, nil where there is none that can be read. It is valid until the callback ends.
func (vm *VM) header(m Message, name string) []byte {
	n := len(vm.heads)
	v, known := m.Header(vm.heads[n:], name)
	if !known {
		vm.cut = true
		return nil
	}
	if v == nil {
		return nil
	}
	return vm.keepHead(v)
}

// keepHead makes what was appended to vm.heads part of it.
func (vm *VM) keepHead(v []byte) []byte {
	n := len(vm.heads)
	if cap(vm.heads)-n < len(v) || len(v) > 0 && &v[0] != &vm.heads[:n+1][n] {
		// It did not fit, and lies elsewhere. What was read before stays where it is.
		room := make([]byte, 0, max(roomHeads, 2*len(v)))
		vm.heads = append(room, v...)
		return vm.heads[:len(v):len(v)]
	}
	vm.heads = vm.heads[:n+len(v)]
	return vm.heads[n : n+len(v) : n+len(v)]
}

const (
	// MaxHeader is the longest header, in bytes, that Message.Header is to give.
	MaxHeader = 16 << 10
	// roomHeads is kept for the headers of a callback. A request that needs more gets it for itself.
	roomHeads = 4 * MaxHeader
)

// beginHeads forgets the headers of the callback before.
func (vm *VM) beginHeads() {
	vm.ticked, vm.cut = false, false
	if cap(vm.heads) != roomHeads {
		vm.heads = make([]byte, 0, roomHeads)
	}
	vm.heads = vm.heads[:0]
}

// Request decides on the request. held says that it is not to go on: it has been answered, or waits for VM.Proceed.
func (s *Stream) Request(x Exchange) (held bool) {
	rt, vm := s.rt, s.rt.vm
	vm.beginHeads()
	if !s.read(x) {
		return false
	}
	if vm.cut {
		rt.metrics.fault(s.protocol, s.dir, faultHead)
	}
	r, _ := rt.route(s.protocol, s.dir, false, &vm.known)
	now := vm.now()
	vm.call.Marks = 0
	if r.chain != nil {
		read := !r.chain.asks || vm.attachment.readHeaders(vm, x, rt.rules, s.protocol)
		if !read {
			rt.metrics.fault(s.protocol, s.dir, faultAttachments)
		}
		s.endpoint.unknown()
		v := s.decide(r, s.dir, now, read, true, len(vm.held) < maxPending)
		if v.Reject {
			rt.metrics.count(r.series, protocol.OutcomeRejected, 1)
			vm.respond(x, s.protocol, &v)
			return true
		}
		if v.Delay > 0 {
			if len(vm.held) < maxPending {
				s.due, s.held = now+v.Delay, true
				vm.held = append(vm.held, s)
			} else {
				rt.metrics.fault(s.protocol, s.dir, faultUndelayed)
			}
		}
	}
	s.route, s.start = r, now
	if vm.call.Marks != 0 {
		s.chain, s.marks = r.chain, vm.call.Marks
	}
	r.timing.inFlight++
	rt.metrics.touch(r.timing)
	return s.held
}

// Due returns when a request that waits goes on; ok is false where it does not wait.
func (s *Stream) Due() (due policy.Nanos, ok bool) { return s.due, s.held }

// read reads the names of a request into vm.known, and tells whether it is to be followed: calls that the filter has lifted are not, they
// were decided on before. They are lifted at the caller and lowered at the provider ahead of any HTTP, so that there nobody gets around a rule by
// calling his request one.
func (s *Stream) read(x Exchange) bool {
	rt, vm := s.rt, s.rt.vm
	rs, k := rt.rules, &vm.known
	kind := vm.header(x, headerContentType)
	if s.dir == policy.DirectionClient && len(kind) >= len(contentType) && string(kind[:len(contentType)]) == contentType {
		return false
	}
	*k = known{}
	vm.frame.Kind = protocol.KindRequest
	s.protocol = len(vm.protocols) - len(httpSystems)
	path, verb := normalPath(vm.header(x, headerPath)), vm.header(x, headerVerb)
	if service, method := splitTriple(path); isGRPC(kind) && string(verb) == "POST" && len(service) > 0 && len(method) > 0 {
		s.protocol++
		k.service, k.method = service, method
		k.version, k.group, k.caller = vm.header(x, headerTriVersion), vm.header(x, headerTriGroup), vm.header(x, headerTriCaller)
		s.name(x, headerTriCaller)
		return true
	}
	k.service = serviceOf(vm.header(x, headerAuthority), rs.conf.HTTP.Suffix)
	if s.dir == policy.DirectionServer && rs.app != nil && isAddress(k.service) {
		k.service = rs.app // its callers have the address from a registry, and know the application
	}
	k.caller = vm.header(x, rs.conf.HTTP.CallerHeader)
	s.name(x, rs.conf.HTTP.CallerHeader)
	room := append(append(append(vm.heads[len(vm.heads):], verb...), ' '), path...)
	k.method = vm.keepHead(room)
	k.label = verb
	if template := rs.template(path); template != "" {
		room = append(append(append(vm.heads[len(vm.heads):], verb...), ' '), template...)
		k.label = vm.keepHead(room)
	}
	k.class = rs.classify(vm, k)
	return true
}

// name gives a request that its workload makes, and that does not say who makes it, the workload's name.
func (s *Stream) name(x Exchange, header string) {
	k, app := &s.rt.vm.known, s.rt.rules.app
	if k.caller == nil && s.dir == policy.DirectionClient && app != nil {
		k.caller = app
		x.AddHeader(header, app)
	}
}

// classify returns what stands for all requests to this service that have this label and fit the same rules' methods: the paths
// themselves may be without number.
func (rs *ruleset) classify(vm *VM, k *known) []byte {
	room := append(append(vm.heads[len(vm.heads):], k.label...), 0)
	n := 0
	for _, list := range [...][]int{rs.exact[string(k.service)], rs.rest} {
		for _, i := range list {
			s := &rs.specs[i]
			if !s.path {
				continue
			}
			if n%8 == 0 {
				room = append(room, 0)
			}
			if s.target.method.Matches(k.method) {
				room[len(room)-1] |= 1 << (n % 8)
			}
			n++
		}
	}
	return vm.keepHead(room)
}

// readHeaders reads the headers that rules ask for, and tells whether all of them could be read.
func (a *attachments) readHeaders(vm *VM, m Message, rs *ruleset, protocol int) bool {
	values := a.values[:0]
	before := vm.cut
	vm.cut = false
	for _, name := range rs.wanted[protocol] {
		values = append(values, vm.header(m, name))
	}
	*a = attachments{p: &vm.protocols[protocol], wanted: rs.wanted[protocol], values: values, traffic: rs.traffic}
	if a.traffic {
		a.loadTest = string(vm.header(m, headerLoadTest)) == "T" || loadTest(vm.header(m, headerTrace))
	}
	all := !vm.cut
	vm.cut = vm.cut || before
	return all
}

// respond answers a request that was rejected.
func (vm *VM) respond(x Exchange, system int, v *policy.Verdict) {
	r := &vm.reply
	*r = Response{GRPC: -1, RetryAfter: (v.RetryAfterMillis + 999) / 1000}
	switch v.Code {
	case protocol.CodeThrottled:
		r.Status = 429
	case protocol.CodeUnavailable:
		r.Status = 503
	case protocol.CodeDenied:
		r.Status = 403
	case protocol.CodeTimeout:
		r.Status = 504
	default:
		r.Status = 500
	}
	vm.line = appendMessage(vm.line[:0], v.Code, v.Rule, v.RetryAfterMillis, v.Answer)
	n := len(vm.line)
	vm.line = appendString(vm.line, "isthmus_")
	vm.line = appendString(vm.line, reason(v.Code))
	if v.Rule != "" {
		vm.line = append(vm.line, '{')
		vm.line = append(appendString(vm.line, v.Rule), '}')
	}
	r.Body, r.Details = vm.line[:n], vm.line[n:]
	switch {
	case vm.protocols[system].system == config.SystemTriple:
		r.GRPC = int32(grpcOfCode(v.Code))
	case v.Answer != nil:
		if v.Answer.Status != 0 {
			r.Status = uint32(v.Answer.Status)
		}
		for i := range v.Answer.Replies {
			if reply := &v.Answer.Replies[i]; reply.Protocol == config.SystemHTTP {
				r.Status, r.JSON, r.Body = 200, true, reply.Value
				r.RetryAfter = 0
			}
		}
	}
	x.Respond(r)
}

// Response takes note of the response's headers. end says that nothing follows.
func (s *Stream) Response(m Message, end bool) {
	if s.route == nil || s.failed {
		return
	}
	vm := s.rt.vm
	vm.beginHeads()
	status := vm.header(m, headerStatus)
	s.answered = true
	if s.grpc() {
		s.threw = vm.header(m, headerTriException) != nil
		if v := vm.header(m, headerGRPCStatus); v != nil {
			s.ofGRPC(v)
		} else if string(status) == "200" {
			s.outcome = protocol.OutcomeClosed // until the trailers say otherwise
		} else {
			s.outcome = ofStatus(status)
		}
	} else {
		s.outcome = ofStatus(status)
	}
	if end {
		s.finish(vm.now())
	}
}

// Trailers takes note of the response's trailers, which are its end.
func (s *Stream) Trailers(m Message) {
	if s.route == nil || s.failed {
		return
	}
	vm := s.rt.vm
	vm.beginHeads()
	if s.grpc() && s.outcome == protocol.OutcomeClosed {
		s.threw = s.threw || vm.header(m, headerTriException) != nil
		s.ofGRPC(vm.header(m, headerGRPCStatus))
	}
	s.finish(vm.now())
}

func (s *Stream) grpc() bool { return s.rt.vm.protocols[s.protocol].system == config.SystemTriple }

func (s *Stream) ofGRPC(status []byte) {
	if s.outcome = ofGRPC(status); s.threw {
		s.outcome = protocol.OutcomeException
	}
}

// Open tells whether a response has begun of which it is not known how it ended: End wants to be told.
func (s *Stream) Open() bool { return s.route != nil && s.answered }

// End ends the request. whole says that the response came to its end, where Open. s must not be used afterwards.
func (s *Stream) End(whole bool) {
	rt := s.rt
	if rt == nil {
		return
	}
	vm := rt.vm
	if s.held {
		if i := slices.Index(vm.held, s); i >= 0 {
			vm.held = slices.Delete(vm.held, i, i+1)
		}
	}
	if s.route != nil {
		if !s.answered || !whole {
			s.outcome = protocol.OutcomeClosed
		}
		s.finish(vm.host.Now())
	}
	*s = Stream{next: vm.streams}
	vm.streams = s
	if rt.streams--; rt.unused() {
		rt.close()
	}
}

// Fail lets the request go unread, after a defect of the filter's own.
func (s *Stream) Fail() {
	if s.rt != nil {
		s.rt.metrics.fault(len(s.rt.vm.protocols), s.dir, faultInternal)
		s.failed, s.answered = true, false
	}
}

// finish counts how the request ended.
func (s *Stream) finish(now policy.Nanos) {
	r, m := s.route, &s.rt.metrics
	s.route = nil
	m.count(r.series, s.outcome, 1)
	d := now - s.start
	if s.outcome != protocol.OutcomeClosed {
		r.timing.observe(d)
	}
	r.timing.inFlight--
	m.touch(r.timing)
	if s.chain != nil {
		s.settle(s.chain, s.marks, r.dir, now, policy.Outcome{Result: s.outcome, Duration: d})
		s.chain = nil
	}
}

// Proceed calls next for each delayed request whose time has come, which is to go on.
func (vm *VM) Proceed(next func(s *Stream)) {
	if len(vm.held) == 0 {
		return
	}
	now := vm.host.Now()
	held := vm.held[:0]
	for _, s := range vm.held {
		if s.due > now {
			held = append(held, s)
			continue
		}
		s.held = false
		next(s)
	}
	clear(vm.held[len(held):])
	vm.held = held
}
