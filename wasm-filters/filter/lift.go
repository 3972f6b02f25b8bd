package filter

import (
	"cmp"

	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/match"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/h2"
)

// A connection is lifted where an HTTP connection manager stands behind the filter: calls go on as HTTP/2 streams, and come
// back as the protocol's own responses. It is lowered where the reverse is wanted: see lower.go. What both have in common is here.
//
// A network filter may change only what is on its way. What is owed in the other direction waits for the next bytes there, and the
// filter sees to it that some come: an HTTP/2 PING makes the connection manager write, and a heartbeat the provider.
// Towards the server there is Conn.Wake, too.

// A relay is what a lifted or lowered connection has beside.
type relay struct {
	next    *relay
	mode    relayMode
	session h2.Session
	streams streams
	// kept is what came from each side and is not dealt with yet: the beginning of a frame, or what waits for a window.
	kept [2][]byte
	// toUp and toDown are owed to the server and to the client.
	toUp, toDown []byte
	asked        bool // a PING or heartbeat of ours is on its way
	urgent       bool // what is owed to the client should not wait
	current      uint32
	rest         uint64 // of the frame that goes on in stream current, or, if that is 0, of one that is left out
	sweepAt      policy.Nanos

	// Lift.
	silent  bool // whoever lowers governs and meters
	table   *liftTable
	dialled match.Address // what the client has dialled, once a table has asked for it; dials says that it is known
	knows   bool
	dials   bool
	nextID  uint32
	window  int64 // of the stream current
	blocked bool  // kept waits for a window, or for a stream to end
	final   bool  // no stream after last is looked at
	last    uint32

	// Lower.
	lower   *config.Lower
	governs bool
	begun   bool // the preface is read
	partial int  // streams whose request is not complete
	stalled int  // streams whose response waits for a window
	held    int  // bytes of requests and responses that wait
	quiet   policy.Nanos
	sample  protocol.Frame // what makes a heartbeat
	leaves  policy.Nanos   // from when the provider gets no new calls that may go elsewhere; 0: it stays
}

// relaying is what a VM has for relayed connections.
type relaying struct {
	relays  *relay // free ones
	relayed pool[relayed]
	wakes   []*Conn    // for which Wake is to be called
	okHeads [][]byte   // by protocol: the header block of a response that says that all is well; nil: none was yet
	lifting *collector // of the request at hand; nil: it is not lifted

	// Scratch, valid within one callback.
	wire    []byte // what takes the place of the buffer
	event   h2.Event
	peek    h2.Session // for a connection that may be lowered
	collect collector
	prefix  []byte
	block   []byte
	reason  []byte
	text    []byte
	route   *route // of the request that frame describes
	timeout uint32 // how long its caller waits, in milliseconds
	waits   uint32 // the last such time that became a header
	patient []byte // that header
	lowered uint32 // its stream
	claims  []byte // of the header block, or the request, at hand
	delayed bool   // the request at hand is delayed
	first   bool   // the headers of the stream at hand say that it is the first attempt
	refused call   // of the call that a policy rejects, what makes the answer
}

type relayMode uint8

const (
	relayUndecided relayMode = iota
	relayLift
	relayLower
)

const (
	// maxOwed bounds in bytes what may be owed to either side: a peer that asks for more floods us.
	maxOwed = 1 << 20
	// maxHeld bounds in bytes what one connection may keep of calls that wait for a window, or for their end.
	maxHeld = 64 << 20
	// sweepEvery is how often a relayed connection is looked through for calls whose time is over.
	sweepEvery = policy.Nanos(1_000_000_000)
	// maxReason bounds what of an answer of Envoy's own is shown to the caller.
	maxReason = 256
)

func (vm *VM) newRelay() *relay {
	r := vm.relays
	if r == nil {
		return new(relay)
	}
	vm.relays = r.next
	r.next = nil
	return r
}

// endRelay gives back what the connection has as a relayed one.
func (c *Conn) endRelay() {
	r := c.relay
	if r == nil {
		return
	}
	vm := c.rt.vm
	for i := range r.streams.slots {
		if e := &r.streams.slots[i]; e.stream != 0 {
			vm.holds.put(e.body)
			vm.holds.put(e.claims)
		}
	}
	clear(r.streams.slots)
	vm.relayed.put(r.streams.slots)
	for side := range r.kept {
		vm.holds.put(r.kept[side])
	}
	toUp, toDown := r.toUp[:0], r.toDown[:0]
	if cap(toUp)+cap(toDown) > 64<<10 {
		toUp, toDown = nil, nil
	}
	*r = relay{next: vm.relays, session: r.session, toUp: toUp, toDown: toDown}
	vm.relays = r
	c.relay = nil
}

// relayed is Data for connections that are lifted or lowered, or may be. ok is false for all others.
func (c *Conn) relayData(side Side, b Buffer, n int, end bool) (_ Action, ok bool) {
	vm := c.rt.vm
	r := c.relay
	if r == nil {
		lift, lower := c.relays()
		if c.protocol >= 0 || side != Downstream || !lift && !lower {
			c.direct = true
			return Continue, false
		}
		r = vm.newRelay()
		c.relay = r
	}
	if r.mode == relayUndecided && side == Upstream {
		c.direct = true // the server speaks first; see flushHold for what is kept
		return Continue, false
	}
	vm.ticked = false
	if end && side == Downstream {
		c.hasten()
	}
	in := c.gather(r, side, b, n)
	vm.wire = vm.wire[:0]
	done, action := 0, Continue
	if r.mode == relayUndecided {
		if !c.recognize(r, in, end) {
			// Neither: what was kept goes ahead, and the connection is like any other from here on.
			if c.rt.rules.lift != nil && c.dir != policy.DirectionServer && !http(in) {
				c.rt.metrics.fault(len(vm.protocols), c.dir, faultUnlifted)
			}
			if k := len(r.kept[side]); k > n {
				b.Prepend(r.kept[side][:k-n])
				n = k
			}
			c.endRelay()
			c.direct = true
			return c.Data(side, b, n, end), true
		}
	}
	switch {
	case r.mode == relayUndecided:
	case r.mode == relayLift && side == Downstream:
		done, action = c.liftDown(r, in)
	case r.mode == relayLift:
		done, action = c.liftUp(r, in)
	case side == Downstream:
		done, action = c.lowerDown(r, in)
	default:
		done, action = c.lowerUp(r, in)
	}
	if action == Close || len(r.toUp) > maxOwed || len(r.toDown) > maxOwed {
		vm.wire = vm.wire[:0]
		b.Replace(nil)
		c.blind = true
		return Close, true
	}
	if done < len(in) || len(r.kept[side]) > 0 {
		c.keep(r, side, in, done)
	}
	if n > 0 || len(vm.wire) > 0 {
		b.Replace(vm.wire)
	}
	if cap(vm.wire) > 4<<20 {
		vm.wire = nil // an exception, not worth its memory
	}
	switch {
	case side == Upstream:
		return Continue, true
	case len(c.delays) > 0:
		return Linger, true
	}
	return Yield, true
}

// delays tells whether a request of so many bytes can wait on the connection: one that is lifted leaves at once, when its time has come.
func (r *relay) delays(n uint64) bool {
	return r.mode == relayLower || n <= uint64(max(0, min(r.session.InitialWindow, h2.DefaultWindow)))
}

// gather returns what is to be read: what was kept, and the buffer.
func (c *Conn) gather(r *relay, side Side, b Buffer, n int) []byte {
	vm := c.rt.vm
	if len(r.kept[side]) == 0 {
		if cap(vm.window) < n {
			vm.window = make([]byte, n)
		}
		if n > 0 {
			b.CopyTo(vm.window[:n], 0)
		}
		return vm.window[:n]
	}
	kept := r.kept[side]
	before := len(kept)
	kept = vm.holds.extend(kept, n)
	if n > 0 {
		b.CopyTo(kept[before:], 0)
	}
	r.kept[side] = kept
	return kept
}

// keep keeps what of in comes after done.
func (c *Conn) keep(r *relay, side Side, in []byte, done int) {
	vm := c.rt.vm
	kept := r.kept[side]
	if done == len(in) {
		vm.holds.put(kept)
		r.kept[side] = nil
		return
	}
	if len(kept) > 0 {
		r.kept[side] = kept[:copy(kept, in[done:])]
		return
	}
	kept = vm.holds.get(len(in) - done)[:len(in)-done]
	copy(kept, in[done:])
	r.kept[side] = kept
}

// relays tells whether the connection is to be lifted, and whether it is to be lowered, as far as its listener has a say.
func (c *Conn) relays() (lift, lower bool) {
	rs := c.rt.rules
	lift, lower = rs.lift != nil, rs.conf.Lower != nil
	if lower && rs.conf.Lower.BehindHTTP {
		return lift && c.dir == policy.DirectionServer, c.dir != policy.DirectionServer && c.dir != policy.DirectionClient
	}
	return lift && c.dir != policy.DirectionServer, lower && c.dir != policy.DirectionClient
}

// recognize finds out by a client's first bytes what becomes of the connection. It returns false if it is neither lifted nor lowered;
// the mode stays undecided while it takes more bytes.
func (c *Conn) recognize(r *relay, in []byte, end bool) bool {
	rt, vm := c.rt, c.rt.vm
	lift, lower := c.relays()
	if lower {
		switch yes, more := lowerable(vm, in); {
		case yes:
			c.lowerBegin(r)
			return true
		case more:
			return !end
		}
	}
	if !lift {
		return false
	}
	for _, i := range rt.rules.protocols {
		switch vm.protocols[i].Codec.Sniff(in) {
		case protocol.MatchYes:
			if vm.relayers[i] == nil {
				return false
			}
			c.protocol = i
			rt.metrics.plain[i][c.dir].connections.n++
			r.mode, r.table, r.nextID = relayLift, c.liftTable(rt.rules.lift), 1
			c.endpoint.unknown()
			r.silent = c.dir == policy.DirectionServer
			vm.wire = r.session.Begin(vm.wire, false, 0)
			return true
		case protocol.MatchMore:
			return !end
		}
	}
	return false
}

// liftTable returns the table for the connection, whose callback is at hand or was before.
func (c *Conn) liftTable(t *liftTable) *liftTable {
	if t.routed == nil {
		return t
	}
	r := c.relay
	if !r.knows {
		vm := c.rt.vm
		vm.line = vm.host.DialledAddress(vm.line[:0])
		r.dialled, r.dials = match.ParsePeer(vm.line)
		r.knows = true
	}
	if r.dials && t.virtual.Contains(&r.dialled) {
		return t.routed
	}
	return t
}

// lifting returns what gathers the attachments of the connection's calls, or holds them to headers; nil if nothing does.
func (c *Conn) lifting() *collector {
	r, vm := c.relay, c.rt.vm
	l := &vm.collect
	switch {
	case r == nil:
		return nil
	case r.mode == relayLift:
		l.begin(r.table)
	case r.mode == relayLower && r.lower.BehindHTTP:
		l.begin(c.rt.rules.lift)
		l.checks, l.claims = true, vm.claims
	default:
		return nil
	}
	return l
}

// relayer is the codec of a relayed connection.
func (c *Conn) relayer() protocol.Relayer {
	return c.rt.vm.relayers[c.protocol]
}

// liftDown makes streams of calls.
func (c *Conn) liftDown(r *relay, in []byte) (pos int, _ Action) {
	vm := c.rt.vm
	if t := c.rt.rules.lift; t != nil {
		r.table = c.liftTable(t)
	}
	vm.wire = append(vm.wire, r.toUp...)
	r.toUp = r.toUp[:0]
	r.blocked = false
	s := &r.session
	if len(c.delays) > 0 {
		c.liftDelayed(r)
	}
	for pos < len(in) {
		if r.rest > 0 {
			k := min(r.rest, uint64(len(in)-pos))
			if r.current != 0 {
				k = min(k, uint64(max(0, min(r.window, s.SendWindow))))
				if k == 0 {
					r.blocked = true
					break
				}
				vm.wire = h2.AppendData(vm.wire, r.current, in[pos:pos+int(k)], k == r.rest)
				r.window -= int64(k)
				s.SendWindow -= int64(k)
			}
			pos += int(k)
			if r.rest -= k; r.rest == 0 {
				r.current = 0
			}
			continue
		}
		if uint32(r.streams.n) >= s.MaxStreams {
			r.blocked = true
			break
		}
		v, _ := c.examine(Downstream, in[pos:], &vm.out, pos, &c.sides[Downstream], true)
		if v == more {
			break
		}
		if v == lost || v == shut {
			return pos, Close
		}
		f := &vm.frame
		r.rest = f.Len
		if v == replace {
			continue
		}
		switch f.Kind {
		case protocol.KindRequest, protocol.KindOneWay:
			c.liftCall(r, in[pos:])
		case protocol.KindHeartbeat:
			r.toDown = c.relayer().AppendAck(r.toDown, f)
			r.urgent = true
		}
	}
	if len(in)-pos > maxHeld {
		c.relayFault(Downstream, h2.EnhanceYourCalm, in[pos:])
		return pos, Close
	}
	if r.urgent && !r.asked {
		// The answer to it is what carries what we owe.
		vm.wire = h2.AppendPing(vm.wire, 0)
		r.asked = true
	}
	r.urgent = false
	return pos, Continue
}

// liftDelayed begins the streams of the requests whose time has come, as far as they may. They may do so in the middle of another one.
func (c *Conn) liftDelayed(r *relay) {
	vm, s := c.rt.vm, &r.session
	now, n := vm.now(), 0
	current, rest, window := r.current, r.rest, r.window
	for ; n < len(c.delays) && c.delays[n].due <= now; n++ {
		frame := c.delays[n].frame
		if uint32(r.streams.n) >= s.MaxStreams || min(s.SendWindow, s.InitialWindow) < int64(len(frame)) {
			r.blocked = true
			break
		}
		if need, err := vm.protocols[c.protocol].Codec.Decode(&vm.frame, frame); need == 0 && err == nil {
			if route, _, _, _ := c.describe(Downstream, frame); route != nil {
				r.current = 0
				if c.liftCall(r, frame); r.current != 0 {
					vm.wire = h2.AppendData(vm.wire, r.current, frame, true)
					s.SendWindow -= int64(len(frame))
				}
			}
		}
		c.delayedBytes -= len(frame)
		vm.holds.put(frame)
	}
	r.current, r.rest, r.window = current, rest, window
	c.delays = c.delays[:copy(c.delays, c.delays[n:])]
	clear(c.delays[len(c.delays) : len(c.delays)+n])
}

// liftCall begins a stream for the request that vm.frame describes and b begins with; c.request has seen it.
func (c *Conn) liftCall(r *relay, b []byte) {
	vm, f := c.rt.vm, &c.rt.vm.frame
	switch {
	case f.Len > uint64(c.rt.rules.conf.Limits.MaxFrameBytes):
		c.liftRefuse(r, protocol.CodeAborted, "frame longer than maxFrameBytes")
		return
	case r.nextID > h2.MaxStream || r.final && r.nextID > r.last:
		c.liftRefuse(r, protocol.CodeUnavailable, "the connection is about to close")
		return
	}
	var prefix []byte
	system := vm.protocols[c.protocol].Codec.Name()
	if f.Flaw == protocol.FlawNone {
		prefix, vm.prefix = r.table.prefix(vm.route, system, &vm.known, vm.prefix)
	}
	switch {
	case len(prefix) > 0:
	case r.silent:
		// Whoever decides next does so by what the call is.
		c.liftRefuse(r, protocol.CodeAborted, "the request cannot be read")
		return
	default:
		// Whatever it is for, its caller has dialled somebody.
		vm.prefix = appendUnread(vm.prefix[:0], system)
		prefix = vm.prefix
	}
	block := append(vm.block[:0], prefix...)
	if vm.timeout > 0 {
		// Calls that come together usually wait as long.
		if vm.waits != vm.timeout {
			vm.waits = vm.timeout
			vm.text = appendUint(vm.text[:0], uint64(min(vm.timeout, maxCallTimeout)))
			vm.patient = h2.AppendLiteral(vm.patient[:0], headerTimeout, vm.text)
		}
		block = append(block, vm.patient...)
	}
	if f.Kind == protocol.KindOneWay {
		block = h2.AppendLiteral(block, headerOneWay, yes)
	}
	if f.Len <= uint64(len(b)) {
		block = append(block, vm.collect.block...)
	}
	vm.block = block
	id := r.nextID
	r.nextID += 2
	vm.wire = h2.AppendHeaders(vm.wire, id, block, false)
	e := r.streams.add(&vm.relayed, id)
	e.flags, e.serialization, e.variant, e.id = f.Flags, f.Serialization, f.Variant, f.ID
	e.oneWay = f.Kind == protocol.KindOneWay
	e.deadline = vm.now() + timeoutOf(cmp.Or(vm.timeout, c.rt.rules.conf.Limits.CallTimeoutMillis))
	r.current, r.window = id, r.session.InitialWindow
}

// liftRefuse answers the request that vm.frame describes, of which nothing went on.
func (c *Conn) liftRefuse(r *relay, code protocol.Code, why string) {
	vm, f := c.rt.vm, &c.rt.vm.frame
	c.liftEnd(f.ID, protocol.OutcomeError)
	if f.Kind == protocol.KindOneWay {
		return
	}
	line := appendMessage(vm.line[:0], code, "", 0, nil)
	vm.line = append(append(line, ": "...), why...)
	r.toDown = c.relayer().AppendReject(r.toDown, f, code, view(vm.line))
	r.urgent = true
}

// liftEndOf ends a call for the metrics, those of its group of providers too.
func (c *Conn) liftEndOf(e *relayed, o protocol.Outcome) {
	i := c.inFlight[Downstream].find(e.id)
	if i < 0 {
		return
	}
	now := c.rt.vm.now()
	if of := &c.inFlight[Downstream].slots[i]; e.subset > 0 && of.code == 0 {
		c.rt.metrics.countSubset(c.rt.vm.protocols[c.protocol].Codec.Name(), of.route, e.subset, o, now-of.start)
	}
	c.finish(Downstream, i, o, now)
}

// liftEnd ends a call for the metrics.
func (c *Conn) liftEnd(id uint64, o protocol.Outcome) {
	if i := c.inFlight[Downstream].find(id); i >= 0 {
		c.finish(Downstream, i, o, c.rt.vm.now())
	}
}

// liftUp makes responses of what comes back in the streams.
func (c *Conn) liftUp(r *relay, in []byte) (pos int, _ Action) {
	vm := c.rt.vm
	if len(r.toDown) > 0 {
		vm.wire = append(vm.wire, r.toDown...)
		r.toDown = r.toDown[:0]
	}
	ev := &vm.event
	hurry := false
	for pos < len(in) {
		owed := len(r.toUp)
		n, out, code := r.session.Read(ev, in[pos:], r.toUp)
		r.toUp = out
		if code != h2.NoError {
			c.relayFault(Upstream, code, in[pos:])
			return pos, Close
		}
		if n == 0 {
			break
		}
		pos += n
		hurry = hurry || len(r.toUp) > owed && ev.Kind != h2.EventSettings && ev.Kind != h2.EventInitial
		switch ev.Kind {
		case h2.EventHeaders:
			if !c.liftHeaders(r, ev) {
				c.relayFault(Upstream, h2.CompressionError, in[pos-n:])
				return pos, Close
			}
		case h2.EventData:
			c.liftData(r, ev)
		case h2.EventReset:
			if e := r.streams.find(ev.Stream); e != nil {
				vm.reason = append(append(vm.reason[:0], "stream reset: "...), ev.Code.String()...)
				c.liftFail(r, e, protocol.CodeUnavailable, protocol.OutcomeError)
			}
		case h2.EventWindow:
			if ev.Stream == r.current {
				r.window += ev.N
			}
		case h2.EventInitial:
			r.window += ev.N
		case h2.EventPong:
			r.asked = false
		case h2.EventGoAway:
			c.liftGoAway(r, uint32(ev.N))
		}
	}
	if r.streams.n == 0 && len(c.delays) == 0 && (r.final || r.nextID > lateStream) && len(r.kept[Downstream]) == 0 && r.rest == 0 {
		// Nothing is under way: the client may as well begin again.
		c.ending = true
		c.wakeSoon()
		return pos, Continue
	}
	if hurry || r.blocked && r.session.SendWindow > 0 && (r.current == 0 || r.window > 0 || len(c.delays) > 0) {
		c.wakeSoon()
	}
	return pos, Continue
}

// lateStream is the stream from which on a connection ends when no call is under way, so that it does not run out of streams in
// the middle of some.
const lateStream = h2.MaxStream / 8 * 7

// liftGoAway notes that streams after last are not looked at.
func (c *Conn) liftGoAway(r *relay, last uint32) {
	r.final, r.last = last < h2.MaxStream, last
	for i := 0; r.final && i < len(r.streams.slots); {
		if e := &r.streams.slots[i]; e.stream > last {
			c.rt.vm.reason = append(c.rt.vm.reason[:0], "the proxy is about to close the connection"...)
			c.liftFail(r, e, protocol.CodeUnavailable, protocol.OutcomeError)
			continue // another call may have moved here
		}
		i++
	}
}

// liftHeaders reads a response's headers. It returns false where they cannot be read.
func (c *Conn) liftHeaders(r *relay, ev *h2.Event) bool {
	d := &r.session.Decoder
	status, ours, subset := uint16(0), false, uint8(0)
	d.Pass = markOther
	for d.Begin(ev.Data); d.Next(); {
		m := d.Mark()
		if m == 0 {
			m = c.rt.metrics.markOf(d)
			d.SetMark(m)
		}
		switch {
		case m == markOurs:
			ours = true
		case m >= markStatus:
			status = uint16(m - markStatus)
		case m >= markSubset:
			subset = uint8(m - markSubset)
		}
	}
	if d.Err != nil {
		return false
	}
	e := r.streams.find(ev.Stream)
	if e == nil || status/100 == 1 {
		return true
	}
	if e.phase != phaseResponse {
		e.phase, e.status, e.ours, e.subset = phaseResponse, status, ours, subset
	}
	if ev.End {
		c.liftDone(r, e, e.body)
	}
	return true
}

// The marks of a response's headers.
const (
	markOther  h2.Mark                       = iota + 1
	markOurs                                 // the response comes from a filter that lowers
	markSubset                               // and the number of the group of providers that it comes from
	markStatus = markSubset + maxSubsets + 1 // and the status
)

func (m *metrics) markOf(d *h2.Decoder) h2.Mark {
	switch name := d.Name(); {
	case len(name) == 7 && string(name) == ":status":
		return markStatus + h2.Mark(min(millis(d.Value()), 999))
	case len(name) == len(headerOutcome) && string(name) == headerOutcome:
		return markOurs
	case len(name) == len(config.HeaderSubset) && string(name) == config.HeaderSubset:
		return markSubset + h2.Mark(m.subset(d.Value()))
	}
	return markOther
}

// liftData takes what came of a response.
func (c *Conn) liftData(r *relay, ev *h2.Event) {
	vm := c.rt.vm
	e := r.streams.find(ev.Stream)
	if e == nil {
		return
	}
	if ev.End && len(e.body) == 0 {
		c.liftDone(r, e, ev.Data)
		return
	}
	data := ev.Data
	if !e.ours {
		data = data[:min(len(data), max(0, maxReason-len(e.body)))]
	}
	if k := len(data); k > 0 {
		if len(e.body)+k > int(c.rt.rules.conf.Limits.MaxFrameBytes) || r.held+k > maxHeld {
			r.toUp = h2.AppendReset(r.toUp, e.stream, h2.Cancel)
			vm.reason = append(vm.reason[:0], "response longer than maxFrameBytes"...)
			c.liftFail(r, e, protocol.CodeAborted, protocol.OutcomeBadResponse)
			return
		}
		before := len(e.body)
		e.body = vm.holds.extend(e.body, k)
		copy(e.body[before:], data)
		r.held += k
	}
	if ev.End {
		c.liftDone(r, e, e.body)
	}
}

// liftDone hands a response to the caller; body is all of it.
func (c *Conn) liftDone(r *relay, e *relayed, body []byte) {
	vm, f := c.rt.vm, &c.rt.vm.frame
	if !e.ours {
		code, outcome := codeOf(e.status)
		vm.reason = append(appendUint(vm.reason[:0], uint64(e.status)), ' ')
		if len(body) == 0 {
			body = statusText(e.status)
		}
		vm.reason = append(vm.reason, printable(body)...)
		c.liftFail(r, e, code, outcome)
		return
	}
	if e.oneWay {
		c.liftRemove(r, e)
		return
	}
	codec := c.relayer()
	if need, err := codec.Decode(f, body); err != nil || need > 0 || f.Len != uint64(len(body)) || f.Kind != protocol.KindResponse {
		vm.reason = append(vm.reason[:0], "the response is no frame of the protocol"...)
		c.liftFail(r, e, protocol.CodeAborted, protocol.OutcomeBadResponse)
		return
	}
	if f.ID != e.id {
		codec.SetID(body, f, e.id)
	}
	vm.wire = append(vm.wire, body...)
	if !r.silent {
		c.rt.metrics.plain[c.protocol][c.dir].frames[f.Kind].n++
	}
	c.liftEndOf(e, f.Outcome)
	c.liftRemove(r, e)
}

// liftFail tells the caller that the call failed on its way, and why: vm.reason.
func (c *Conn) liftFail(r *relay, e *relayed, code protocol.Code, o protocol.Outcome) {
	vm := c.rt.vm
	if !e.oneWay {
		e.request(&vm.asked)
		line := appendMessage(vm.line[:0], code, "", 0, nil)
		vm.line = append(append(line, ": "...), vm.reason...)
		vm.wire = c.relayer().AppendReject(vm.wire, &vm.asked, code, view(vm.line))
		c.liftEndOf(e, o)
	}
	c.liftRemove(r, e)
}

// liftRemove forgets a call. What of its request has not gone on is left out.
func (c *Conn) liftRemove(r *relay, e *relayed) {
	if r.current == e.stream {
		r.toUp = h2.AppendReset(r.toUp, e.stream, h2.Cancel)
		r.current = 0 // rest goes nowhere
	}
	r.held -= len(e.body)
	c.rt.vm.holds.put(e.body)
	r.streams.remove(e)
}

// statusText is what is said of an answer without a text.
func statusText(status uint16) []byte {
	if status == 404 {
		return noRoute
	}
	return noText
}

var yes = []byte("true")

var noRoute, noText = []byte("no route"), []byte("answered by the proxy")

// printable cuts b where it is no text, and at maxReason bytes.
func printable(b []byte) []byte {
	b = b[:min(len(b), maxReason)]
	for i, ch := range b {
		if ch < ' ' || ch > '~' {
			return b[:i]
		}
	}
	return b
}

// relayRefuse answers a call that a policy rejected: vm.frame is its request.
func (c *Conn) relayRefuse(v policy.Verdict) {
	vm, r, f := c.rt.vm, c.relay, &c.rt.vm.frame
	e := &vm.refused
	*e = call{id: f.ID, code: v.Code, flags: f.Flags, serialization: f.Serialization, variant: f.Variant, retry: v.RetryAfterMillis, rule: v.Rule, answer: v.Answer}
	if r.mode == relayLower {
		c.lowerRefuse(r, e)
	} else if f.Kind == protocol.KindRequest {
		r.toDown = vm.answer(r.toDown, c.relayer(), e)
		r.urgent = true
	}
}

// relayFault notes that a peer broke the rules of HTTP/2.
func (c *Conn) relayFault(side Side, code h2.Code, b []byte) {
	vm := c.rt.vm
	p := c.protocol
	if p < 0 {
		p = len(vm.protocols)
	}
	c.rt.metrics.fault(p, c.dir, faultFraming)
	vm.logFrame(topicFraming, vm.now(), "framing lost: "+code.String(), "http2", side, 0, b, "connection closed")
}

// wakeSoon asks for a call of Wake.
func (c *Conn) wakeSoon() {
	if !c.waking {
		c.waking = true
		c.rt.vm.wakes = append(c.rt.vm.wakes, c)
	}
}

// Waking returns a connection for which Wake is to be called soon, nil if there is none. It is for whoever drives the VM, after
// each callback.
func (vm *VM) Waking() *Conn {
	if n := len(vm.wakes); n > 0 {
		return vm.wakes[n-1]
	}
	return nil
}

// Wake sends what the connection owes its server. It is called outside of any callback, with the buffer of bytes from downstream,
// which is empty: that is possible after an action Yield, and only if all that the client sent has been given to Data. What is in it afterwards is to be passed on.
func (c *Conn) Wake(b Buffer) Action {
	c.stopWaking()
	r := c.relay
	if r == nil || c.blind || r.mode == relayUndecided {
		return Continue
	}
	if c.ending && r.streams.n == 0 && len(c.delays) == 0 && len(r.kept[Downstream]) == 0 && r.rest == 0 {
		c.blind = true
		return Close
	}
	action, _ := c.relayData(Downstream, b, 0, false)
	return action
}

// Sleep takes back the wish to be woken: Data will be called soon.
func (c *Conn) Sleep() { c.stopWaking() }

func (c *Conn) stopWaking() {
	if !c.waking {
		return
	}
	c.waking = false
	w := c.rt.vm.wakes
	for i := range w {
		if w[i] == c {
			last := len(w) - 1
			w[i], w[last] = w[last], nil
			c.rt.vm.wakes = w[:last]
			return
		}
	}
}

// sweepRelay gives up calls that never returned, and keeps up heartbeats. A caller that has said how long it waits has given up by
// itself: then there is nobody to answer, but what Envoy still does for the call, retries too, has to end.
func (c *Conn) sweepRelay(now policy.Nanos) {
	r := c.relay
	if now < r.sweepAt || r.mode == relayUndecided {
		return
	}
	r.sweepAt = now + sweepEvery
	owed := len(r.toUp)
	for i := 0; r.streams.n > 0 && i < len(r.streams.slots); {
		e := &r.streams.slots[i]
		if e.stream == 0 || e.deadline > now {
			i++
			continue
		}
		if r.mode == relayLift {
			if r.current != e.stream {
				r.toUp = h2.AppendReset(r.toUp, e.stream, h2.Cancel)
			}
			c.liftRemove(r, e)
		} else {
			r.toDown = h2.AppendReset(r.toDown, e.stream, h2.Cancel)
			r.urgent = true
			c.lowerRemove(r, e)
		}
	}
	if r.mode == relayLower && r.leaves > 0 && r.streams.n == 0 && len(c.delays) == 0 && now-max(r.leaves, r.quiet) >= leaveAfter {
		c.ending = true // nobody calls any more, and the provider need not wait for us
		c.wakeSoon()
		return
	}
	if r.mode == relayLower && c.lowerHeartbeat(r, now) || len(r.toUp) > owed {
		c.wakeSoon()
	}
}
