package filter

import (
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/h2"
)

// A connection is lowered where calls come as HTTP/2 streams, of many callers, and the provider speaks the protocol of their bodies.
// Towards it, a call has the number of its stream as its id: no two calls of a connection have the same, and what the provider answers
// leads back to the stream by itself.

// leaveAfter is how long after a provider has said that it is about to end new calls are sent elsewhere, where they can be: until then
// it should be known to whoever balances. Dubbo ends after ten seconds.
const leaveAfter = policy.Nanos(2_000_000_000)

// heartbeatID is the id of our own heartbeats: no stream of a client's has an even number.
const heartbeatID = 2

// lowerable tells whether a client's first bytes begin a connection of lifted calls: HTTP/2, and the first request has our content
// type. Other HTTP/2 on the same port (Triple) passes. more says that it cannot be told yet.
func lowerable(vm *VM, in []byte) (yes, more bool) {
	k := min(len(in), len(h2.Preface))
	if string(in[:k]) != h2.Preface[:k] {
		return false, false
	}
	for at := k; k == len(h2.Preface) && at < maxFirst && len(in)-at >= h2.HeaderLen; {
		h := h2.ParseHeader(in[at:])
		if h.Length > h2.MaxFrame {
			return false, false
		}
		end := at + h2.HeaderLen + int(h.Length)
		if len(in) < end {
			return false, true
		}
		if h.Type == h2.TypeHeaders {
			// A session of its own looks at it, the connection's begins later: the table is as empty for both.
			vm.wire = vm.peek.Begin(vm.wire, true, 1)[:0]
			return vm.lowerProtocol(&vm.peek, in[len(h2.Preface):]) >= 0, false
		}
		at = end
	}
	return false, len(in) < maxFirst
}

// maxFirst bounds in bytes where the headers of a client's first request may begin.
const maxFirst = 64 << 10

// lowerProtocol returns the protocol of the first request in b, -1 if it is none of ours.
func (vm *VM) lowerProtocol(s *h2.Session, b []byte) int {
	ev := &vm.event
	for {
		n, owed, code := s.Read(ev, b, vm.text[:0])
		vm.text = owed // nobody's: the connection's own session answers
		if n == 0 || code != h2.NoError {
			return -1
		}
		if ev.Kind == h2.EventHeaders {
			return vm.lowerHeaders(&s.Decoder, ev.Data, false)
		}
		b = b[n:]
	}
}

// lowerHeaders reads a request's headers: which protocol its body is in and, if asked to, what they claim of the call: vm.claims. It returns -1 for any that is not ours, and -2 where they
// cannot be read.
func (vm *VM) lowerHeaders(d *h2.Decoder, block []byte, claims bool) int {
	p := -1
	vm.claims = vm.claims[:0]
	vm.first = false
	d.Pass = markClaim
	if claims {
		d.Pass = markOther
	}
	for d.Begin(block); d.Next(); {
		m := d.Mark()
		if m == 0 {
			m = vm.markOf(d)
			d.SetMark(m)
		}
		switch {
		case m == markClaim:
			if claims {
				vm.claims = appendClaim(vm.claims, d.Name(), d.Value())
			}
		case m == markFirst, m == markAgain:
			vm.first = m == markFirst
		case m >= markProtocol:
			p = int(m - markProtocol)
		}
	}
	if d.Err != nil {
		return -2
	}
	return p
}

// The marks of a request's headers, beside markOther.
const (
	markClaim    h2.Mark = iota + markOther + 1 // it says something of the call
	markFirst                                   // the call is sent for the first time
	markAgain                                   // it is not
	markProtocol                                // and the index of the protocol that the body is in
)

func (vm *VM) markOf(d *h2.Decoder) h2.Mark {
	name := d.Name()
	switch {
	case claimed(name):
		return markClaim
	case len(name) == len(headerAttempt) && string(name) == headerAttempt:
		if millis(d.Value()) == 1 {
			return markFirst
		}
		return markAgain
	case len(name) == len("content-type") && string(name) == "content-type":
		v := d.Value()
		if len(v) <= len(contentType) || string(v[:len(contentType)]) != contentType {
			break
		}
		for i := range vm.protocols {
			if vm.relayers[i] != nil && string(v[len(contentType):]) == vm.protocols[i].name() {
				return markProtocol + h2.Mark(i)
			}
		}
	}
	return markOther
}

func (c *Conn) lowerBegin(r *relay) {
	rt := c.rt
	r.mode, r.lower = relayLower, rt.rules.conf.Lower
	if r.lower.BehindHTTP {
		c.dir = policy.DirectionServer // the listener has none: it is for the provider all the same
	}
	// In the caller's own Envoy the call was seen already.
	r.governs = c.dir == policy.DirectionServer
	r.toDown = r.session.Begin(r.toDown[:0], true, rt.rules.conf.Limits.MaxInFlight)
	r.quiet = rt.vm.now()
}

// lowerDown makes calls of streams.
func (c *Conn) lowerDown(r *relay, in []byte) (pos int, _ Action) {
	vm := c.rt.vm
	if l := c.rt.rules.conf.Lower; l != nil {
		r.lower = l
	}
	if len(r.toUp) > 0 {
		vm.wire = append(vm.wire, r.toUp...)
		r.toUp = r.toUp[:0]
	}
	if len(c.delays) > 0 {
		vm.wire = c.resend(vm.wire, vm.now())
	}
	if !r.begun {
		pos = len(h2.Preface)
		r.begun = true
	}
	ev := &vm.event
	for {
		owed := len(r.toDown)
		n, out, code := r.session.Read(ev, in[pos:], r.toDown)
		r.toDown = out
		if code != h2.NoError {
			c.relayFault(Downstream, code, in[pos:])
			return pos, Close
		}
		if n == 0 {
			break
		}
		pos += n
		r.urgent = r.urgent || len(r.toDown) > owed && ev.Kind != h2.EventSettings && ev.Kind != h2.EventInitial
		switch ev.Kind {
		case h2.EventHeaders:
			if !c.lowerBlock(r, ev) {
				c.relayFault(Downstream, h2.CompressionError, in[pos-n:])
				return pos, Close
			}
		case h2.EventData:
			c.lowerData(r, ev)
		case h2.EventReset:
			if e := r.streams.find(ev.Stream); e != nil {
				c.lowerForget(r, e)
			}
		case h2.EventWindow:
			if e := r.streams.find(ev.Stream); e != nil {
				if e.window += ev.N; e.window > h2.MaxWindow {
					c.lowerReset(r, e, h2.FlowControlError)
				}
			}
		case h2.EventInitial:
			for i := range r.streams.slots {
				r.streams.slots[i].window += ev.N
			}
		}
	}
	if r.stalled > 0 && r.session.SendWindow > 0 {
		r.urgent = true
	}
	// A request that does not end here may wait for a window that stands in our settings.
	if r.partial > 0 && len(r.toDown) > 0 {
		r.urgent = true
	}
	if r.urgent && !r.asked && c.protocol >= 0 {
		c.lowerAsk(r)
	}
	r.urgent = false
	return pos, Continue
}

// lowerAsk sends the provider a heartbeat, whose answer carries what we owe the client.
func (c *Conn) lowerAsk(r *relay) {
	vm := c.rt.vm
	r.sample.ID = heartbeatID
	vm.wire = c.relayer().AppendProbe(vm.wire, &r.sample)
	r.asked = true
	r.quiet = vm.now()
}

// lowerBlock takes a header block: a new stream's, or trailers.
func (c *Conn) lowerBlock(r *relay, ev *h2.Event) bool {
	vm := c.rt.vm
	p := vm.lowerHeaders(&r.session.Decoder, ev.Data, r.lower.BehindHTTP)
	if p == -2 {
		return false
	}
	// Who has tried before may have nobody else to go to.
	leave := r.leaves > 0 && vm.first && vm.now() >= r.leaves
	if e := r.streams.find(ev.Stream); e != nil {
		if ev.End && e.phase == phaseRequest {
			c.lowerCall(r, e, e.body)
		}
		return true
	}
	if ev.Stream <= r.last {
		return true // trailers of a stream that is over
	}
	r.last = ev.Stream
	switch {
	case leave, r.streams.n >= 2*int(c.rt.rules.conf.Limits.MaxInFlight):
		r.toDown = h2.AppendReset(r.toDown, ev.Stream, h2.RefusedStream)
		r.urgent = true
		return true
	case p < 0 || c.protocol >= 0 && p != c.protocol || ev.End:
		r.toDown = appendPlain(r.toDown, vm, ev.Stream, 415)
		r.urgent = true
		return true
	}
	if c.protocol < 0 {
		c.protocol = p
		c.rt.metrics.plain[p][c.dir].connections.n++
	}
	e := r.streams.add(&vm.relayed, ev.Stream)
	r.partial++
	e.window = r.session.InitialWindow
	e.deadline = vm.now() + timeoutOf(c.rt.rules.conf.Limits.CallTimeoutMillis)
	if n := len(vm.claims); n > 0 {
		e.claims = append(vm.holds.get(n), vm.claims...)
	}
	return true
}

// appendPlain appends a response without a body.
func appendPlain(dst []byte, vm *VM, stream uint32, status uint16) []byte {
	vm.block = appendStatus(vm.block[:0], status)
	return h2.AppendHeaders(dst, stream, vm.block, true)
}

// lowerData takes what came of a request.
func (c *Conn) lowerData(r *relay, ev *h2.Event) {
	vm := c.rt.vm
	e := r.streams.find(ev.Stream)
	if e == nil || e.phase != phaseRequest {
		return
	}
	if ev.End && len(e.body) == 0 {
		c.lowerCall(r, e, ev.Data)
		return
	}
	if k := len(ev.Data); k > 0 {
		if len(e.body)+k > int(c.rt.rules.conf.Limits.MaxFrameBytes) || r.held+k > maxHeld {
			c.lowerReset(r, e, h2.EnhanceYourCalm)
			return
		}
		before := len(e.body)
		e.body = vm.holds.extend(e.body, k)
		copy(e.body[before:], ev.Data)
		r.held += k
	}
	if ev.End {
		c.lowerCall(r, e, e.body)
	}
}

// lowerCall sends a request to the provider; body is all of it, and may be changed.
func (c *Conn) lowerCall(r *relay, e *relayed, body []byte) {
	vm, f := c.rt.vm, &c.rt.vm.frame
	codec := c.relayer()
	need, err := codec.Decode(f, body)
	if err != nil || need > 0 || f.Len != uint64(len(body)) || f.Kind != protocol.KindRequest && f.Kind != protocol.KindOneWay {
		r.toDown = appendPlain(r.toDown, vm, e.stream, 400)
		r.urgent = true
		c.lowerRemove(r, e)
		return
	}
	e.id, e.flags, e.serialization, e.variant = f.ID, f.Flags, f.Serialization, f.Variant
	r.sample = protocol.Frame{Flags: f.Flags, Serialization: f.Serialization, Variant: f.Variant}
	codec.SetID(body, f, uint64(e.stream))
	f.ID = uint64(e.stream)
	now, waits := vm.now(), false
	if r.lower.BehindHTTP {
		vm.claims = append(vm.claims[:0], e.claims...)
		vm.holds.put(e.claims)
		e.claims = nil
		c.lowerPeer()
	}
	if r.governs {
		vm.lowered = e.stream
		switch v, _ := c.request(Downstream, body, &vm.out, 0, true); v {
		case replace:
			if waits = vm.delayed; !waits {
				return
			}
		case lost:
			r.toDown = appendPlain(r.toDown, vm, e.stream, 400)
			r.urgent = true
			c.lowerRemove(r, e)
			return
		}
		e.deadline = max(e.deadline, now+timeoutOf(vm.timeout))
	}
	if !waits {
		vm.wire = append(vm.wire, body...)
	}
	r.quiet = now
	if f.Kind == protocol.KindOneWay {
		vm.block = c.lowerHead(vm.block[:0], 200, protocol.OutcomeNone, grpcOK)
		r.toDown = h2.AppendHeaders(r.toDown, e.stream, vm.block, true)
		r.urgent = true
		c.lowerRemove(r, e)
		return
	}
	e.phase = phaseCalled
	r.partial--
	r.held -= len(e.body)
	vm.holds.put(e.body)
	e.body = nil
}

// lowerRefuse answers the stream vm.lowered, whose call a policy rejected.
func (c *Conn) lowerRefuse(r *relay, refused *call) {
	vm := c.rt.vm
	e := r.streams.find(vm.lowered)
	if e == nil {
		return
	}
	oneWay := vm.frame.Kind == protocol.KindOneWay
	status, outcome, grpc := statusOfCode(refused.code), protocol.OutcomeRejected, grpcOfCode(refused.code)
	if !oneWay {
		refused.id = e.id
		codec := c.relayer()
		vm.reason = vm.answer(vm.reason[:0], codec, refused)
		if need, err := codec.Decode(&vm.frame, vm.reason); need == 0 && err == nil && vm.frame.Outcome == protocol.OutcomeOK {
			status, outcome, grpc = 200, protocol.OutcomeOK, grpcOK // a value, that a rule has for the call
		}
	}
	vm.block = c.lowerHead(vm.block[:0], status, outcome, grpc)
	r.toDown = h2.AppendHeaders(r.toDown, e.stream, vm.block, oneWay)
	if !oneWay {
		// It is short: a window that is too small for it is not worth the trouble.
		r.session.SendWindow -= int64(len(vm.reason))
		r.toDown = h2.AppendData(r.toDown, e.stream, vm.reason, true)
	}
	r.urgent = true
	c.lowerRemove(r, e)
}

// lowerHead appends the headers of a response.
func (c *Conn) lowerHead(dst []byte, status uint16, o protocol.Outcome, grpc grpcCode) []byte {
	vm := c.rt.vm
	dst = appendStatus(dst, status)
	vm.text = append(append(vm.text[:0], contentType...), vm.protocols[c.protocol].Codec.Name()...)
	dst = h2.AppendField(dst, h2.IndexContentType, vm.text)
	vm.text = append(vm.text[:0], o.String()...)
	dst = h2.AppendLiteral(dst, headerOutcome, vm.text)
	vm.text = appendUint(vm.text[:0], uint64(grpc))
	return h2.AppendLiteral(dst, headerGRPC, vm.text)
}

// lowerUp makes responses in the streams of what the provider answers.
func (c *Conn) lowerUp(r *relay, in []byte) (pos int, _ Action) {
	vm := c.rt.vm
	vm.wire = append(vm.wire, r.toDown...)
	r.toDown = r.toDown[:0]
	if r.stalled > 0 {
		c.lowerFlush(r)
	}
	limit := uint64(c.rt.rules.conf.Limits.MaxFrameBytes)
	f, m := &vm.frame, &c.rt.metrics
	for pos < len(in) {
		if r.rest > 0 {
			k := int(min(r.rest, uint64(len(in)-pos)))
			r.rest -= uint64(k)
			if r.current != 0 {
				if e := r.streams.find(r.current); e != nil {
					c.lowerSend(r, e, in[pos:pos+k], r.rest == 0)
				}
				if r.rest == 0 {
					r.current = 0
				}
			}
			pos += k
			continue
		}
		if c.protocol < 0 {
			return pos, Close // the provider speaks first
		}
		codec := c.relayer()
		need, err := codec.Decode(f, in[pos:])
		if err == nil && need == 0 && f.Len == 0 {
			err = protocol.ErrLength
		}
		if err != nil {
			m.fault(c.protocol, c.dir, faultFraming)
			vm.logFrame(topicFraming, vm.now(), "framing lost: "+err.Error(), codec.Name(), Upstream, uint64(f.FlawOff), in[pos:], "connection closed")
			return pos, Close
		}
		if need > 0 && (f.Len == 0 || f.Len <= limit) {
			break
		}
		var e *relayed
		if f.Kind == protocol.KindResponse && f.ID <= h2.MaxStream {
			e = r.streams.find(uint32(f.ID))
		}
		if e != nil && f.Len <= limit && codec.Summed(f) && uint64(len(in)-pos) < f.Len {
			break // it must be whole to be given another id
		}
		if r.governs {
			m.plain[c.protocol][c.dir].frames[f.Kind].n++
		}
		r.rest = f.Len
		switch f.Kind {
		case protocol.KindResponse:
			if e == nil || e.phase != phaseCalled {
				m.fault(c.protocol, c.dir, faultUnknown)
				break
			}
			if f.Len > limit {
				m.fault(c.protocol, c.dir, faultOversize)
				c.lowerEnd(r, e, protocol.OutcomeBadResponse)
				c.lowerReset(r, e, h2.EnhanceYourCalm)
				break
			}
			c.lowerEnd(r, e, f.Outcome)
			codec.SetID(in[pos:], f, e.id)
			e.phase = phaseResponse
			r.current = e.stream
			head := vm.okHeads[c.protocol]
			if f.Outcome != protocol.OutcomeOK || len(head) == 0 {
				head = c.lowerHead(vm.block[:0], statusOf(f.Outcome, r.lower.ExceptionsFail), f.Outcome, grpcOf(f.Outcome))
				vm.block = head
				if f.Outcome == protocol.OutcomeOK {
					vm.okHeads[c.protocol] = append([]byte(nil), head...)
				}
			}
			vm.wire = h2.AppendHeaders(vm.wire, e.stream, head, false)
		case protocol.KindHeartbeatAck:
			r.asked = false
		case protocol.KindHeartbeat:
			r.toUp = codec.AppendAck(r.toUp, f)
			c.wakeSoon()
		case protocol.KindEvent:
			// The provider is about to end, and gives who calls it time to hear of that from the registry. It ends at once when its
			// connections do (Dubbo's HeaderExchangeServer.isRunning), so this one is not what ends.
			if r.leaves == 0 {
				r.leaves = vm.now() + leaveAfter
			}
		}
	}
	vm.wire = append(vm.wire, r.toDown...)
	r.toDown = r.toDown[:0]
	return pos, Continue
}

// lowerEnd ends a call for the metrics.
func (c *Conn) lowerEnd(r *relay, e *relayed, o protocol.Outcome) {
	if r.governs {
		c.liftEnd(uint64(e.stream), o)
	}
}

// lowerSend sends data in the stream of e, or keeps it until there is a window. last says that it is the end.
func (c *Conn) lowerSend(r *relay, e *relayed, data []byte, last bool) {
	vm := c.rt.vm
	if len(e.body) == 0 {
		k := int(max(0, min(int64(len(data)), e.window, r.session.SendWindow)))
		if k > 0 {
			vm.wire = h2.AppendData(vm.wire, e.stream, data[:k], last && k == len(data))
			e.window -= int64(k)
			r.session.SendWindow -= int64(k)
		}
		if data = data[k:]; len(data) == 0 {
			if last {
				c.lowerRemove(r, e)
			}
			return
		}
	}
	if r.held+len(data) > maxHeld {
		c.lowerReset(r, e, h2.EnhanceYourCalm)
		return
	}
	before := len(e.body)
	if before == 0 {
		r.stalled++
	}
	e.body = vm.holds.extend(e.body, len(data))
	copy(e.body[before:], data)
	r.held += len(data)
	e.written = last
}

// lowerFlush sends what waited for a window.
func (c *Conn) lowerFlush(r *relay) {
	vm := c.rt.vm
	for i := 0; r.stalled > 0 && i < len(r.streams.slots); {
		e := &r.streams.slots[i]
		k := int(max(0, min(int64(len(e.body)), e.window, r.session.SendWindow)))
		if e.stream == 0 || e.phase != phaseResponse || k == 0 {
			i++
			continue
		}
		whole := k == len(e.body)
		vm.wire = h2.AppendData(vm.wire, e.stream, e.body[:k], whole && e.written)
		e.window -= int64(k)
		r.session.SendWindow -= int64(k)
		r.held -= k
		if !whole {
			e.body = e.body[:copy(e.body, e.body[k:])]
			i++
			continue
		}
		r.stalled--
		vm.holds.put(e.body)
		e.body = nil
		if e.written {
			c.lowerRemove(r, e)
			continue // another call may have moved here
		}
		i++
	}
}

// lowerReset gives a stream up.
func (c *Conn) lowerReset(r *relay, e *relayed, code h2.Code) {
	r.toDown = h2.AppendReset(r.toDown, e.stream, code)
	r.urgent = true
	c.lowerForget(r, e)
}

// lowerForget forgets a call whose response nobody wants.
func (c *Conn) lowerForget(r *relay, e *relayed) {
	if e.phase == phaseCalled {
		c.lowerEnd(r, e, protocol.OutcomeClosed)
	}
	c.lowerRemove(r, e)
}

// lowerRemove takes a call out of the table.
func (c *Conn) lowerRemove(r *relay, e *relayed) {
	switch {
	case e.phase == phaseRequest:
		r.partial--
	case e.phase == phaseResponse && len(e.body) > 0:
		r.stalled--
	}
	r.held -= len(e.body)
	c.rt.vm.holds.put(e.body)
	c.rt.vm.holds.put(e.claims)
	r.streams.remove(e)
}

// lowerHeartbeat keeps a provider from closing an idle connection, and asks again where it has not answered. It returns whether
// something is to be sent.
func (c *Conn) lowerHeartbeat(r *relay, now policy.Nanos) bool {
	if c.protocol < 0 || now-r.quiet < timeoutOf(r.lower.HeartbeatMillis) {
		return r.urgent && !r.asked && c.protocol >= 0
	}
	r.quiet = now
	r.asked = true
	r.sample.ID = heartbeatID
	r.toUp = c.relayer().AppendProbe(r.toUp, &r.sample)
	return true
}
