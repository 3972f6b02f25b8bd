package filter

import (
	"encoding/binary"
	"slices"

	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/match"
)

// A connection manager that stands before has decided by a call's headers, and what the provider executes is the frame. Whoever speaks HTTP/2
// with it can write what they like into both. So a call is made only if its headers are those that lifting its frame would give it: the path,
// what x-isthmus- headers say of it, and the attachments.

// settling is how long after a change of the attachments that become headers callers' filters may not know of it.
const settling = policy.Nanos(30_000_000_000)

// claimed tells whether a header says something of the call.
func claimed(name []byte) bool {
	if len(name) > len(config.AttachmentHeader) && string(name[:len(config.AttachmentHeader)]) == config.AttachmentHeader {
		return true
	}
	switch string(name) {
	case headerPath, headerService, headerVersion, headerGroup, headerMethod, headerCaller, config.PeerHeader:
		return true
	}
	return false
}

// appendClaim appends a header: two lengths of 16 bits, its name and its value. One that is too long is none, and will be missed.
func appendClaim(dst, name, value []byte) []byte {
	if len(name) > 0xffff || len(value) > 0xffff {
		return dst
	}
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(name)))
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(value)))
	return append(append(dst, name...), value...)
}

// cutClaim returns the first of claims, which are not empty, and the others.
func cutClaim(claims []byte) (name, value, rest []byte) {
	n, v := int(binary.BigEndian.Uint16(claims)), int(binary.BigEndian.Uint16(claims[2:]))
	claims = claims[4:]
	return claims[:n], claims[n : n+v], claims[n+v:]
}

// lowerPeer takes over who makes the call that vm.claims are of: another for each call of the connection.
func (c *Conn) lowerPeer() {
	p := &c.peer
	p.known, p.AddressKnown, p.Identity = true, false, p.Identity[:0]
	for claims := c.rt.vm.claims; len(claims) > 0; {
		var name, value []byte
		if name, value, claims = cutClaim(claims); string(name) != config.PeerHeader {
			continue
		}
		for i, ch := range value {
			if ch != ';' {
				continue
			}
			p.Address, p.AddressKnown = match.ParsePeer(value[:i])
			if id := value[i+1:]; len(id) > 0 && string(id) != "-" {
				p.Identity = append(p.Identity, id...)
			}
			break
		}
	}
}

// agree tells whether vm.claims are what the request says that vm.known describes; vm.collect has seen its attachments.
func (c *Conn) agree() bool {
	vm := c.rt.vm
	k, l := &vm.known, &vm.collect
	expected := [...]struct {
		name  string
		value []byte
	}{{headerService, k.service}, {headerVersion, k.version}, {headerGroup, k.group}, {headerMethod, k.method}, {headerCaller, k.caller}}
	path, attachments := false, 0
next:
	for claims := vm.claims; len(claims) > 0; {
		var name, value []byte
		name, value, claims = cutClaim(claims)
		switch string(name) {
		case config.PeerHeader:
			continue
		case headerPath: // the one pseudo-header: routes may rewrite :authority, and mirroring does
			vm.text = appendPath(append(vm.text[:0], '/'), k.service)
			vm.text = appendPath(append(vm.text, '/'), k.method)
			if path || string(value) != string(vm.text) {
				return false
			}
			path = true
			continue
		}
		for i := range expected {
			if string(name) == expected[i].name {
				vm.text = appendEscaped(vm.text[:0], expected[i].value)
				if len(value) == 0 || string(value) != string(vm.text) {
					return false
				}
				expected[i].value = nil // a second one has nothing to agree with
				continue next
			}
		}
		attachments++
	}
	for i := range expected {
		if len(expected[i].value) > 0 {
			return false
		}
	}
	if !path || l.wrong > 0 {
		return false
	}
	return l.missing == 0 && l.agreed == attachments || vm.now() < c.rt.settled
}

// compare holds an attachment to the header that it should have become.
func (l *collector) compare(name string, value []byte) {
	for claims := l.claims; len(claims) > 0; {
		var n, v []byte
		if n, v, claims = cutClaim(claims); string(n) == name {
			if string(v) == string(value) {
				l.agreed++
			} else {
				l.wrong++
			}
			return
		}
	}
	l.missing++
}

// settle notes that the configuration is about to change.
func (rt *Runtime) settle(rs *ruleset) {
	if rt.rules != nil && rt.rules.lift != nil && rs.lift != nil && !slices.Equal(rt.rules.lift.conf.Attachments, rs.lift.conf.Attachments) {
		rt.settled = rt.vm.host.Now() + settling
	}
}
