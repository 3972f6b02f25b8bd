package filter

import (
	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// A stream is where the filter stands in the bytes of one side.
type stream struct {
	// skip is how many of the next bytes belong to a frame that is decided; swallow says that they are left out.
	skip    uint64
	swallow bool
	// hold is the beginning of a frame that came in earlier callbacks; want is how much of it is needed. withheld says
	// that Envoy has not passed it on: it is all of hold, or nothing. (A copy is no longer ours to reject.)
	hold     []byte
	want     int
	withheld bool
}

// Conn is one connection.
type Conn struct {
	party
	next, prev *Conn
	blind      bool // the rest of the connection passes unread
	rejected   int  // calls that wait for the answer to their probe
	sides      [2]stream
	inFlight   [2]calls // by the side that sent the request
	last       [2]*route
	delays     []delayed    // requests that wait, ordered by when they are due
	waits      bool         // in VM.waiting
	refused    policy.Nanos // until when Release leaves them alone
	// Tag is the host's own.
	Tag          uint32
	delayedBytes int

	relay  *relay // nil: neither lifted nor lowered
	direct bool   // it will not be
	waking bool   // in VM.wakes
	ending bool   // to be closed as soon as nothing is under way
}

// verdict is what becomes of the frame at hand.
type verdict uint8

const (
	pass    verdict = iota
	replace         // by what was appended to the output
	more            // it cannot be told yet
	lost            // framing is lost, or the protocol is not ours
	shut            // close the connection
)

// Data follows n bytes that one side sent, which b holds, and changes b where a rule demands it. end says that no more
// will come from this side.
func (c *Conn) Data(side Side, b Buffer, n int, end bool) Action {
	s := &c.sides[side]
	if c.blind {
		if c.relay != nil && c.relay.mode != relayUndecided {
			b.Replace(nil) // what would follow here is not what came
			return Close
		}
		c.flushHold(s, b)
		if side == Downstream && len(c.delays) > 0 {
			b.Prepend(c.resend(nil, ever))
		}
		return Continue
	}
	if !c.direct {
		if action, ok := c.relayData(side, b, n, end); ok {
			return action
		}
	}
	if c.protocol < 0 && side == Upstream {
		// The server speaks first, as no protocol of ours does.
		if n > 0 {
			c.goBlind("server_first")
		}
		return Continue
	}
	if uint64(n) <= s.skip && !s.swallow && len(s.hold) == 0 && (!end || len(c.delays) == 0) {
		s.skip -= uint64(n)
		return c.passing(side)
	}
	vm := c.rt.vm
	out := &vm.out
	out.reset(b, n)
	vm.ticked = false
	action := c.follow(s, side, b, n, end, out)
	if end && action == Continue && side == Downstream && c.between() {
		c.resendAt(out, n, ever)
	}
	if end && action == Continue && len(s.hold) > 0 {
		if s.withheld {
			out.insert(n, s.hold)
		}
		c.release(s)
	}
	if action == Close {
		out.drop(0, n)
		out.buf = out.buf[:0]
		c.blind = true
		c.releaseAll()
	}
	out.finish()
	if action == Continue && !end {
		return c.passing(side)
	}
	return action
}

// flushHold passes on what a connection held when it became blind.
func (c *Conn) flushHold(s *stream, b Buffer) {
	if len(s.hold) > 0 {
		if s.withheld {
			b.Prepend(s.hold)
		}
		c.release(s)
	}
	if c.relay != nil && s == &c.sides[Downstream] {
		if kept := c.relay.kept[Downstream]; len(kept) > 0 {
			b.Prepend(kept)
		}
		c.endRelay()
	}
}

// Fail lets the rest of the connection pass unread, after a defect of the filter's own.
func (c *Conn) Fail() {
	if c.rt == nil || c.blind {
		return
	}
	c.blind = true
	p := c.protocol
	if p < 0 {
		p = len(c.rt.vm.protocols)
	}
	c.rt.metrics.fault(p, c.dir, faultInternal)
}

// follow goes through the buffer frame by frame.
func (c *Conn) follow(s *stream, side Side, b Buffer, n int, end bool, out *output) Action {
	vm := c.rt.vm
	pos := 0
	if len(s.hold) > 0 {
		done, action := c.resume(s, side, b, n, end, out)
		if action != Continue || c.blind {
			return action
		}
		pos = done
	}
	for pos < n {
		if s.skip > 0 {
			k := int(min(s.skip, uint64(n-pos)))
			if s.swallow {
				out.drop(pos, pos+k)
			}
			pos += k
			if s.skip -= uint64(k); s.skip == 0 {
				s.swallow = false
			}
			continue
		}
		if side == Downstream && len(c.delays) > 0 {
			c.resendAt(out, pos, vm.now())
		}
		if pos >= out.start+len(out.window) {
			c.fetch(b, pos, n, 0)
		}
		view := out.window[pos-out.start:]
		v, need := c.examine(side, view, out, pos, s, true)
		switch v {
		case more:
			if need <= n-pos && len(view) < n-pos {
				c.fetch(b, pos, n, need)
				continue
			}
			if need <= len(view) {
				need = len(view) + 1 // a codec that asks for what it has: do not loop
			}
			// The frame goes on in a later callback. If it may have to be rejected, it waits here.
			s.hold = vm.holds.get(n - pos)[:n-pos]
			if copy(s.hold, view) < n-pos {
				b.CopyTo(s.hold, pos) // longer than the window
			}
			s.want = need
			if s.withheld = c.mayReject(side); s.withheld {
				out.drop(pos, n)
			}
			return Continue
		case lost:
			if side == Downstream {
				c.resendAt(out, pos, ever)
			}
			return Continue
		case shut:
			return Close
		}
		length := vm.frame.Len
		if v == replace {
			s.swallow = true
		}
		s.skip = length
	}
	return Continue
}

// fetch fills the window with the buffer from pos on: at least need bytes, if there are so many.
func (c *Conn) fetch(b Buffer, pos, n, need int) {
	vm := c.rt.vm
	k := min(n-pos, max(need, windowSize))
	if cap(vm.window) < k {
		vm.window = make([]byte, k)
	}
	vm.out.window, vm.out.start = vm.window[:k], pos
	b.CopyTo(vm.out.window, pos)
}

// resume goes on with the frame in s.hold, and returns how much of the buffer is dealt with.
func (c *Conn) resume(s *stream, side Side, b Buffer, n int, end bool, out *output) (int, Action) {
	vm := c.rt.vm
	before, pos := len(s.hold), 0
	for {
		if k := min(s.want-len(s.hold), n-pos); k > 0 {
			s.hold = vm.holds.extend(s.hold, k)
			b.CopyTo(s.hold[len(s.hold)-k:], pos)
			pos += k
		}
		if len(s.hold) < s.want && !end {
			if s.withheld {
				out.drop(0, n)
			}
			return n, Continue
		}
		v, need := c.examine(side, s.hold, out, 0, s, s.withheld)
		switch v {
		case more:
			s.want = max(need, len(s.hold)+1)
			if end && pos == n {
				if s.withheld {
					out.drop(0, n)
				}
				return n, Continue
			}
			if !s.withheld || c.mayReject(side) || pos < n {
				continue
			}
			// It turned out that no rule can reject it: let go of it, and read on in a copy.
			out.insert(0, s.hold[:before])
			s.withheld = false
			return n, Continue
		case lost, pass:
			if v == lost && s.withheld && side == Downstream {
				c.resendAt(out, 0, ever)
			}
			if s.withheld {
				out.insert(0, s.hold[:before])
			}
		case shut:
			c.release(s)
			return n, Close
		case replace:
			out.drop(0, pos)
		}
		if v != lost {
			s.skip = vm.frame.Len - uint64(len(s.hold))
			s.swallow = v == replace && s.skip > 0
		}
		c.release(s)
		return pos, Continue
	}
}

// release gives back what s holds.
func (c *Conn) release(s *stream) {
	c.rt.vm.holds.put(s.hold)
	s.hold, s.want, s.withheld = nil, 0, false
}

func (c *Conn) releaseAll() {
	for i := range c.sides {
		c.release(&c.sides[i])
	}
}

// goBlind lets the rest of the connection pass unread.
func (c *Conn) goBlind(what string) {
	c.blind = true
	c.rt.metrics.opaqueConnection(what, c.dir)
}

// mayReject tells whether the frame that vm.frame and vm.known describe, as far as it was read, may have to be replaced, so that its
// bytes must wait.
func (c *Conn) mayReject(side Side) bool {
	if c.rejected > 0 {
		return true
	}
	if side != Downstream || !c.rt.rules.intercept[c.dir] {
		return false
	}
	vm := c.rt.vm
	switch vm.frame.Kind {
	case protocol.KindRequest, protocol.KindOneWay:
		return !vm.headRead || c.rt.rules.mayReject(c.dir, &vm.known)
	case protocol.KindUnknown:
		return true // not even the header is there
	default:
		return false
	}
}

// examine reads the frame that b begins with. ours says that none of its bytes were passed on. The verdict replace
// means that what takes its place was put into out at pos.
func (c *Conn) examine(side Side, b []byte, out *output, pos int, s *stream, ours bool) (verdict, int) {
	vm := c.rt.vm
	vm.headRead = false
	vm.frame.Kind = protocol.KindUnknown
	if c.protocol < 0 {
		if v, need := c.detect(b); v != pass {
			return v, need
		}
	}
	p := &vm.protocols[c.protocol]
	f := &vm.frame
	need, err := p.Codec.Decode(f, b)
	m := &c.rt.metrics
	limits := &c.rt.rules.conf.Limits
	if err == nil && (need == 0 && f.Len == 0 || f.Len != 0 && f.Len < uint64(len(s.hold))) {
		err = protocol.ErrLength // the codec's contract excludes it; without it we could not go on
	}
	if err != nil {
		m.fault(c.protocol, c.dir, faultFraming)
		closing := limits.Garbage == config.ActionClose
		then := "the rest of the connection passes unread"
		if closing || c.relay != nil {
			then = "connection closed"
		}
		vm.logFrame(topicFraming, vm.host.Now(), "framing lost: "+err.Error(), p.Codec.Name(), side, uint64(f.FlawOff), b, then)
		c.blind = true
		if closing {
			return shut, 0
		}
		return lost, 0
	}
	if f.Len > uint64(limits.MaxFrameBytes) {
		m.fault(c.protocol, c.dir, faultOversize)
		closing := limits.Oversize == config.ActionClose
		then := "the frame passes unread"
		if closing {
			then = "connection closed"
		} else if c.relay != nil {
			then = "the call is answered with an error"
		}
		vm.logFrame(topicOversize, vm.host.Now(), "frame longer than maxFrameBytes", p.Codec.Name(), side, 0, b, then)
		if closing {
			return shut, 0
		}
		return pass, 0
	}
	if need > 0 {
		if need > int(limits.MaxInspectBytes) && f.Len > 0 {
			m.fault(c.protocol, c.dir, faultHead)
			need = 0 // treat it as far as it was read
		} else {
			return more, need
		}
	}
	switch f.Kind {
	case protocol.KindRequest, protocol.KindOneWay:
		return c.request(side, b, out, pos, ours)
	case protocol.KindResponse, protocol.KindHeartbeatAck:
		return c.response(side, out, pos, ours), 0
	}
	m.plain[c.protocol][c.dir].frames[f.Kind].n++
	return pass, 0
}

// detect finds the protocol by the first bytes of the client.
func (c *Conn) detect(b []byte) (verdict, int) {
	vm := c.rt.vm
	undecided := false
	for _, i := range c.rt.rules.protocols {
		switch vm.protocols[i].Codec.Sniff(b) {
		case protocol.MatchYes:
			if !undecided {
				c.protocol = i
				c.rt.metrics.plain[i][c.dir].connections.n++
				return pass, 0
			}
		case protocol.MatchMore:
			undecided = true
		}
	}
	if undecided && len(b) < maxSniff {
		return more, len(b) + 1
	}
	c.goBlind(guess(b))
	return lost, 0
}

// maxSniff is where detection ends, whatever the codecs say.
const maxSniff = 256

// guess names what the first bytes of a client look like, for a label.
func guess(b []byte) string {
	switch {
	case len(b) >= 3 && b[0] == 0x16 && b[1] == 3:
		return "tls"
	case len(b) >= 4 && string(b[:4]) == "PRI ":
		return "http2"
	}
	for i, c := range b[:min(len(b), 8)] {
		if c == ' ' && i >= 3 {
			return "http"
		}
		if c < 'A' || c > 'Z' {
			break
		}
	}
	return "unknown"
}

// http tells whether a client's first bytes look like HTTP.
func http(b []byte) bool {
	what := guess(b)
	return what == "http" || what == "http2"
}

// seen is what describe has seen of a request's attachments.
type seen struct {
	readable      bool // they can be read at all
	read, visited bool // to their end; as far as it went
}

// describe finds out what the request is that vm.frame describes and b begins with: vm.known, vm.timeout, vm.route, and where calls are
// lifted, vm.collect. The route is nil where it takes more of the frame: need bytes.
func (c *Conn) describe(side Side, b []byte) (r *route, dir policy.Direction, s seen, need int) {
	rt, vm := c.rt, c.rt.vm
	f := &vm.frame
	p := &vm.protocols[c.protocol]
	k := &vm.known
	k.service, k.version, k.group = f.Service.Of(b), f.Version.Of(b), f.Group.Of(b)
	k.method, k.caller = f.Method.Of(b), f.Caller.Of(b)
	timeout := f.TimeoutMillis
	k.class, k.label = nil, nil
	vm.headRead = true
	s.readable = f.Flaw == protocol.FlawNone && f.Len <= uint64(rt.rules.conf.Limits.MaxInspectBytes)
	vm.lifting = c.lifting()
	if (p.late() || vm.lifting != nil) && s.readable {
		if uint64(len(b)) < f.Len {
			return nil, 0, s, int(f.Len)
		}
		a := &vm.attachment
		s.read, s.visited = a.read(vm, rt.rules, c.protocol, b), true
		if vm.lifting != nil {
			vm.lifting.finish()
		}
		if p.Group != "" {
			k.group = a.group
		}
		if p.Caller != "" {
			k.caller = a.caller
		}
		if timeout == 0 {
			timeout = millis(a.timeout)
		}
	}
	vm.timeout = timeout
	dir = c.dir
	back := side == Upstream
	if back {
		dir = reverse(dir)
	}
	r = c.last[side]
	if r == nil || r.epoch != rt.epoch || !r.is(c.protocol, dir, back, k) {
		var shared bool
		if r, shared = rt.route(c.protocol, dir, back, k); !shared {
			c.last[side] = r
		}
	}
	vm.route = r
	return r, dir, s, 0
}

// request decides on the request that vm.frame describes.
func (c *Conn) request(side Side, b []byte, out *output, pos int, ours bool) (verdict, int) {
	rt, vm := c.rt, c.rt.vm
	f, m := &vm.frame, &rt.metrics
	p := &vm.protocols[c.protocol]
	r, dir, s, need := c.describe(side, b)
	if r == nil {
		return more, need
	}
	timeout, limits := vm.timeout, &rt.rules.conf.Limits
	readable, read, visited := s.readable, s.read, s.visited
	if c.relay != nil {
		switch {
		case c.relay.silent:
			return pass, 0
		case vm.lifting != nil && vm.lifting.checks && !c.agree():
			m.fault(c.protocol, c.dir, faultContradiction)
			return lost, 0
		}
	}
	if r.chain != nil && (r.chain.asks && readable && !visited || r.chain.delays && f.Len <= uint64(limits.MaxInspectBytes)) && uint64(len(b)) < f.Len {
		return more, int(f.Len)
	}
	if r.chain != nil && r.chain.asks && readable && !visited {
		read, visited = vm.attachment.read(vm, rt.rules, c.protocol, b), true
	}
	m.plain[c.protocol][c.dir].frames[f.Kind].n++
	if f.Flaw != protocol.FlawNone {
		m.fault(c.protocol, c.dir, flawFault(f.Flaw))
	}
	if visited && !read {
		m.fault(c.protocol, c.dir, faultAttachments)
	}
	now := vm.now()
	t := &c.inFlight[side]
	if f.Kind == protocol.KindRequest && t.n > 0 {
		if i := t.find(f.ID); i >= 0 {
			m.fault(c.protocol, c.dir, faultReuse)
			c.finish(side, i, protocol.OutcomeNoResponse, now)
		}
	}
	vm.call.Marks = 0
	vm.delayed = false
	then := pass
	if r.chain != nil {
		// That all of a long request is here is an accident of how its bytes were cut.
		hold := r.chain.delays && ours && (c.relay == nil || c.relay.delays(f.Len)) && f.Len <= uint64(limits.MaxInspectBytes) && uint64(len(b)) >= f.Len && c.room(f.Len)
		v := c.decide(r, dir, now, read, ours, hold)
		if v.Reject {
			return c.reject(side, out, pos, r, v, now), 0
		}
		if v.Delay > 0 {
			if hold {
				c.delay(b[:f.Len], now+v.Delay)
				then, vm.delayed = replace, true // by nothing, for now
			} else {
				m.fault(c.protocol, c.dir, faultUndelayed)
			}
		}
	}
	if f.Kind == protocol.KindOneWay {
		if r.chain != nil {
			r.chain.done(now, &vm.call, policy.Outcome{})
		}
		m.count(r.series, protocol.OutcomeNone, 1)
		return then, 0
	}
	if t.n >= int(limits.MaxInFlight) {
		if r.chain != nil {
			r.chain.done(now, &vm.call, policy.Outcome{})
		}
		m.fault(c.protocol, c.dir, faultUntracked)
		m.count(r.series, protocol.OutcomeNone, 1)
		vm.logFrame(topicUntracked, now, "more calls in flight than maxInFlight", p.Codec.Name(), side, 0, b, "further ones are metered without their outcome")
		return then, 0
	}
	e := t.add(&vm.tables, f.ID)
	e.route, e.start = r, now
	e.retry = min(timeout, maxCallTimeout)
	e.deadline = now + policy.Nanos(patience(limits.CallTimeoutMillis, e.retry))*1_000_000
	if vm.call.Marks != 0 {
		e.chain, e.marks = r.chain, vm.call.Marks
	}
	r.timing.inFlight++
	m.touch(r.timing)
	return then, 0
}

// patience returns for how many milliseconds a call is followed whose caller waits for timeout, 0 where it does not say. Once that has given up,
// the provider may still be at it, or may have thrown the request away without a word (Bolt's dispatcher, RpcRequestProcessor): as much
// time again, and five seconds at least, and then limit has the say.
func patience(limit, timeout uint32) uint32 {
	if timeout == 0 {
		return limit
	}
	return max(timeout, min(limit, timeout+max(timeout, 5000)))
}

// late is how long after its caller's timeout a response is still in time: Dubbo looks at its timeouts every 30 ms.
const late = policy.Nanos(50_000_000)

// maxCallTimeout bounds in milliseconds how long a call itself may ask to be waited for.
const maxCallTimeout = 3_600_000

func reverse(d policy.Direction) policy.Direction {
	switch d {
	case policy.DirectionClient:
		return policy.DirectionServer
	case policy.DirectionServer:
		return policy.DirectionClient
	}
	return d
}

func flawFault(f protocol.Flaw) fault {
	switch f {
	case protocol.FlawSerialization:
		return faultSerialization
	case protocol.FlawTooDeep:
		return faultTooDeep
	}
	return faultMalformed
}

// reject puts a probe in the place of a request, or nothing in that of a one-way request.
func (c *Conn) reject(side Side, out *output, pos int, r *route, v policy.Verdict, now policy.Nanos) verdict {
	vm := c.rt.vm
	f, m := &vm.frame, &c.rt.metrics
	m.count(r.series, protocol.OutcomeRejected, 1)
	if c.relay != nil {
		c.relayRefuse(v)
		return replace
	}
	if f.Kind == protocol.KindOneWay {
		return replace
	}
	out.commit(vm.protocols[c.protocol].Codec.AppendProbe(out.tail(pos), f))
	t := &c.inFlight[side]
	limits := &c.rt.rules.conf.Limits
	// Rejected calls wait only for the probe's answer. They have as many places again as other calls, so that a connection
	// full of slow calls still gets its rejections answered.
	if t.n >= 2*int(limits.MaxInFlight) {
		m.fault(c.protocol, c.dir, faultUntracked)
		return replace
	}
	e := t.add(&vm.tables, f.ID)
	e.route, e.start = r, now
	e.deadline = now + policy.Nanos(limits.CallTimeoutMillis)*1_000_000
	e.code, e.flags, e.serialization, e.variant = v.Code, f.Flags, f.Serialization, f.Variant
	e.retry, e.rule, e.answer = v.RetryAfterMillis, v.Rule, v.Answer
	c.rejected++
	return replace
}

// response ends the call that vm.frame answers.
func (c *Conn) response(side Side, out *output, pos int, ours bool) verdict {
	vm := c.rt.vm
	f, m := &vm.frame, &c.rt.metrics
	m.plain[c.protocol][c.dir].frames[f.Kind].n++
	from := 1 - side // who asked
	t := &c.inFlight[from]
	i := t.find(f.ID)
	if i < 0 {
		if f.Kind == protocol.KindResponse {
			m.fault(c.protocol, c.dir, faultUnknown)
		}
		return pass
	}
	e := &t.slots[i]
	if e.code != 0 {
		if !ours {
			return pass // cannot be: what may answer a probe is withheld
		}
		out.commit(vm.answer(out.tail(pos), vm.protocols[c.protocol].Codec, e))
		t.remove(i)
		c.rejected--
		return replace
	}
	if f.Kind == protocol.KindHeartbeatAck {
		return pass // of a heartbeat whose id happens to be that of a call
	}
	c.finish(from, i, f.Outcome, vm.now())
	return pass
}

// finish ends the call in slot i of the table of side.
func (c *Conn) finish(side Side, i int, o protocol.Outcome, now policy.Nanos) {
	t := &c.inFlight[side]
	e := &t.slots[i]
	if e.code != 0 {
		c.rejected-- // its caller was counted when it was rejected, and is not answered
		t.remove(i)
		return
	}
	r, m := e.route, &c.rt.metrics
	d := now - e.start
	returned := o != protocol.OutcomeNoResponse && o != protocol.OutcomeClosed
	if e.retry > 0 && o != protocol.OutcomeClosed && d > policy.Nanos(e.retry)*1_000_000+late {
		o = protocol.OutcomeTimeout // whatever came, its caller had given up
	}
	m.count(r.series, o, 1)
	if returned {
		r.timing.observe(d)
	}
	r.timing.inFlight--
	m.touch(r.timing)
	if e.chain != nil {
		c.settle(e.chain, e.marks, r.dir, now, policy.Outcome{Result: o, Duration: d})
	}
	t.remove(i)
}

// End ends the connection: what is in flight is counted as closed. c must not be used afterwards.
func (c *Conn) End() {
	rt := c.rt
	if rt == nil {
		return
	}
	now := rt.vm.host.Now()
	for side := range c.inFlight {
		t := &c.inFlight[side]
		for i := 0; t.n > 0 && i < len(t.slots); {
			if t.slots[i].route != nil {
				c.finish(Side(side), i, protocol.OutcomeClosed, now)
				continue
			}
			i++
		}
		t.release(&rt.vm.tables)
	}
	c.releaseAll()
	c.endDelays()
	c.stopWaking()
	c.endRelay()
	if rt.cursor == c {
		rt.cursor, rt.slot = c.next, 0
	}
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		rt.conns = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	}
	*c = Conn{next: rt.vm.conns, delays: c.delays[:0]}
	rt.vm.conns = c
	if rt.unused() {
		rt.close()
	}
}

// appendMessage appends what the caller of a rejected call is told.
func appendMessage(dst []byte, code protocol.Code, rule string, retry uint32, answer *policy.Answer) []byte {
	dst = appendString(dst, "isthmus: ")
	dst = appendString(dst, reason(code))
	if rule != "" {
		dst = appendString(dst, `: rule "`)
		dst = appendString(dst, rule)
		dst = append(dst, '"')
	}
	if retry > 0 {
		dst = appendString(dst, "; retry after ")
		dst = appendUint(dst, uint64(retry))
		dst = appendString(dst, " ms")
	}
	if answer != nil && answer.Message != "" {
		dst = appendString(dst, "; ")
		dst = appendString(dst, answer.Message)
	}
	return dst
}

func reason(code protocol.Code) string {
	switch code {
	case protocol.CodeThrottled:
		return "throttled"
	case protocol.CodeUnavailable:
		return "unavailable"
	case protocol.CodeDenied:
		return "denied"
	case protocol.CodeAborted:
		return "aborted"
	case protocol.CodeTimeout:
		return "timeout"
	default:
		return "rejected"
	}
}
