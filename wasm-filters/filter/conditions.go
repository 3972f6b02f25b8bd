package filter

import (
	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/match"
)

// A key names an attachment that rules ask for.
type key struct {
	name  string
	label bool // Protocol.Labels comes before the name
}

// subjectOf returns a condition's subject; label says that it is an attachment that the call carries along.
func subjectOf(s config.Subject) (subject policy.Subject, label bool) {
	switch s {
	case config.SubjectProviderApplication:
		return policy.SubjectProvider, false
	case config.SubjectCallerIP:
		return policy.SubjectAddress, false
	case config.SubjectCallerIdentity:
		return policy.SubjectIdentity, false
	case config.SubjectAttachment:
		return policy.SubjectAttachment, false
	case config.SubjectLabel:
		return policy.SubjectAttachment, true
	case config.SubjectTrafficType:
		return policy.SubjectTraffic, false
	case config.SubjectProtocol:
		return policy.SubjectProtocol, false
	}
	return policy.SubjectCaller, false
}

// ask notes that a rule asks for a subject's value.
func (rs *ruleset) ask(s *spec, subject policy.Subject) {
	switch subject {
	case policy.SubjectAttachment:
		s.asks = true
	case policy.SubjectTraffic:
		s.asks, rs.traffic = true, true
	case policy.SubjectAddress, policy.SubjectIdentity:
		s.peer = true
	}
}

// slot returns the number of an attachment, which rules ask for from now on, and 0 for any other subject.
//
//go:noinline
func (rs *ruleset) slot(subject policy.Subject, k key) int {
	if subject != policy.SubjectAttachment {
		return 0
	}
	for i := range rs.keys {
		if rs.keys[i] == k {
			return i
		}
	}
	rs.keys = append(rs.keys, k)
	return len(rs.keys) - 1
}

// conditions makes conditions ready.
func (rs *ruleset) conditions(list []config.Condition) policy.Conditions {
	var cs policy.Conditions
	for i := range list {
		c := &list[i]
		subject, label := subjectOf(c.Subject)
		x := policy.Condition{
			Subject: subject,
			Key:     rs.slot(subject, key{c.Key, label}),
			Not:     negative(c.Operator),
			Exists:  c.Operator == config.OperatorExists,
		}
		switch {
		case x.Exists:
		case x.Subject == policy.SubjectAddress:
			for _, v := range c.Values {
				n, _ := match.ParseNetwork(v)
				x.Networks = append(x.Networks, n)
			}
		default:
			x.Strings = compared(c.Operator, c.Values)
		}
		cs = append(cs, x)
	}
	return cs
}

// loadTest tells whether a span context of SOFATracer says that the call is part of a load test: its baggage is items
// KEY=VALUE between ampersands, of which mark=T is SofaTracerConstant.LOAD_TEST_TAG and LOAD_TEST_VALUE.
func loadTest(trace []byte) bool {
	start := 0
	for i := 0; i <= len(trace); i++ {
		if i == len(trace) || trace[i] == '&' {
			if string(trace[start:i]) == "mark=T" {
				return true
			}
			start = i + 1
		}
	}
	return false
}

// A peer is what is known of the other end of a connection, once a rule has asked for it.
type peer struct {
	policy.Peer
	known bool
}

// peerOf returns what is known of the peer of the connection whose callback is at hand.
func (c *party) peerOf() *policy.Peer {
	p := &c.peer
	if !p.known {
		vm := c.rt.vm
		p.known = true
		vm.line = vm.host.PeerAddress(vm.line[:0])
		p.Address, p.AddressKnown = match.ParsePeer(vm.line)
		vm.line = vm.host.PeerIdentity(vm.line[:0])
		if len(vm.line) > 0 {
			p.Identity = append(p.Identity[:0], vm.line...)
		}
	}
	return &p.Peer
}
