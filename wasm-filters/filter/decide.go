package filter

import (
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// A party is who makes the calls of one connection, or one HTTP request.
type party struct {
	rt       *Runtime
	dir      policy.Direction
	protocol int // index into VM.protocols; -1: not known yet
	peer     peer
	endpoint endpoint
}

// decide asks the policies of a route about the request that vm.frame and vm.known describe, whose direction is dir. read says
// that its attachments are in vm.attachment; ours that it can still be rejected, hold that it can be held back.
func (c *party) decide(r *route, dir policy.Direction, now policy.Nanos, read, ours, hold bool) policy.Verdict {
	rt, vm := c.rt, c.rt.vm
	k, ch := &vm.known, r.chain
	call := &vm.call
	*call = policy.Call{Direction: dir, Protocol: vm.protocols[c.protocol].name(), Service: k.service, Version: k.version, Group: k.group,
		Method: k.method, Caller: k.caller, App: rt.rules.app, OneWay: vm.frame.Kind == protocol.KindOneWay, Holdable: hold}
	if ch.asks {
		call.Unreadable = !read
		if read {
			call.Attachments, call.LoadTest = vm.attachment.values, vm.attachment.loadTest
		}
	}
	if ch.proofs {
		call.Wall = vm.host.Wall()
	}
	if ch.peer {
		call.Peer = c.peerOf()
	}
	if ch.quota {
		vm.expect()
	}
	if ch.endpoint {
		if call.Endpoint = c.endpointOf(); call.Endpoint == nil {
			rt.metrics.fault(c.protocol, c.dir, faultEndpoint)
		}
	}
	var delay policy.Nanos
	for i, pol := range ch.policies {
		v := pol.Admit(now, call)
		delay += v.Delay
		if i == ch.audited && v.Rule != "" {
			c.audit(&v, now)
		}
		if !v.Reject {
			continue
		}
		if !ours {
			// The rule came while the frame was on its way: part of it has gone on.
			rt.metrics.fault(c.protocol, c.dir, faultLate)
			ch.done(now, call, policy.Outcome{})
			break
		}
		ch.done(now, call, policy.Outcome{Result: protocol.OutcomeRejected})
		if ch.fallback != nil && ch.softened >= 0 && i >= ch.softened {
			if instead := ch.fallback.Admit(now, call); instead.Reject {
				return instead
			}
		}
		return v
	}
	return policy.Verdict{Delay: delay}
}

// done tells the policies that want to know it how a call ended.
func (ch *chain) done(now policy.Nanos, call *policy.Call, o policy.Outcome) {
	if call.Marks == 0 {
		return
	}
	for _, pol := range ch.marking {
		pol.Done(now, call, o)
	}
	call.Marks = 0
}

// settle tells the policies of a chain how a call ended that was followed.
func (c *party) settle(ch *chain, marks uint64, dir policy.Direction, now policy.Nanos, o policy.Outcome) {
	call := &c.rt.vm.call
	*call = policy.Call{Direction: dir, Protocol: c.rt.vm.protocols[c.protocol].name(), Endpoint: c.endpoint.get(), Marks: marks}
	ch.done(now, call, o)
}

// audit logs that the call at hand is denied, or would be.
func (c *party) audit(v *policy.Verdict, now policy.Nanos) {
	vm := c.rt.vm
	if !vm.limiter.allow(topicAudit, now) {
		return
	}
	call := &vm.call
	p := c.peerOf() // which needs the line for itself
	l := append(vm.line[:0], "isthmus: access "...)
	if v.Reject {
		l = appendString(l, "denied")
	} else {
		l = appendString(l, "would be denied")
	}
	l = appendString(l, `: rule "`)
	l = appendString(l, v.Rule)
	l = appendString(l, `", `)
	l = appendString(l, call.Direction.String())
	l = appendString(l, ", ")
	l = appendString(l, call.Protocol)
	l = append(l, ' ')
	l = appendText(l, call.Service)
	l = append(l, '/')
	l = appendText(l, call.Method)
	l = appendString(l, ", caller ")
	if call.Caller == nil {
		l = appendString(l, "unknown")
	} else {
		l = appendText(l, call.Caller)
	}
	if p.AddressKnown {
		l = appendString(l, " at ")
		l = p.Address.Append(l)
	}
	if len(p.Identity) > 0 {
		l = appendString(l, " as ")
		l = appendText(l, p.Identity)
	}
	if v.Answer != nil {
		l = appendString(l, ": ")
		l = appendString(l, v.Answer.Message)
	}
	l = vm.limiter.appendOmitted(l, topicAudit)
	vm.line = l
	vm.host.Log(LevelInfo, l)
}

// answer appends the response to a rejected call: the value that a rule has for it, or an error.
func (vm *VM) answer(dst []byte, codec protocol.Codec, e *call) []byte {
	vm.asked = protocol.Frame{Kind: protocol.KindRequest, ID: e.id, Flags: e.flags, Serialization: e.serialization, Variant: e.variant}
	if e.answer != nil && len(e.answer.Replies) > 0 {
		if replier, ok := codec.(Replier); ok {
			for i := range e.answer.Replies {
				r := &e.answer.Replies[i]
				if r.Protocol == codec.Name() && r.Serialization == e.serialization {
					return replier.AppendReply(dst, &vm.asked, r.Value)
				}
			}
		}
	}
	vm.line = appendMessage(vm.line[:0], e.code, e.rule, e.retry, e.answer)
	return codec.AppendReject(dst, &vm.asked, e.code, view(vm.line))
}
