package policy

import (
	"unsafe"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/match"
)

// Subject names something that is known of a call.
type Subject uint8

// The subjects.
const (
	SubjectCaller     Subject = iota // the calling application
	SubjectProvider                  // the providing application
	SubjectAddress                   // Peer.Address
	SubjectIdentity                  // Peer.Identity
	SubjectAttachment                // Call.Attachments
	SubjectTraffic                   // TrafficLoadTest or TrafficNormal
	SubjectProtocol                  // Call.Protocol
)

// The values of SubjectTraffic.
var (
	TrafficNormal   = []byte("normal")
	TrafficLoadTest = []byte("loadTest")
)

// Of returns the subject's value for c, nil where it is absent; known is false where that cannot be told. key is the
// number of an attachment. SubjectAddress has no text: see Peer.
func (s Subject) Of(c *Call, key int) (v []byte, known bool) {
	switch s {
	case SubjectCaller:
		if c.Caller == nil && c.Direction == DirectionClient {
			return c.App, true
		}
		return c.Caller, true
	case SubjectProvider:
		return c.App, c.Direction == DirectionServer && c.App != nil
	case SubjectIdentity:
		// At the caller the certificate would be the application's own, of a connection that never leaves its machine.
		if c.Peer == nil || c.Direction != DirectionServer {
			return nil, true
		}
		return c.Peer.Identity, true
	case SubjectAttachment:
		if c.Unreadable || key >= len(c.Attachments) {
			return nil, false
		}
		return c.Attachments[key], true
	case SubjectTraffic:
		if c.LoadTest {
			return TrafficLoadTest, !c.Unreadable
		}
		return TrafficNormal, !c.Unreadable
	case SubjectProtocol:
		return unsafe.Slice(unsafe.StringData(c.Protocol), len(c.Protocol)), true
	}
	return nil, false
}

// Condition compares a subject's value. Networks, for SubjectAddress, or Strings, for the others, say with what; where both are
// empty the value must only be there.
type Condition struct {
	Subject  Subject
	Key      int // of SubjectAttachment
	Not      bool
	Strings  match.Strings
	Exists   bool
	Networks []match.Network
}

// Conditions must all hold.
type Conditions []Condition

// Hold tells whether all conditions hold for c. A value that cannot be known fulfils none.
func (cs Conditions) Hold(c *Call) bool {
	for i := range cs {
		if !cs[i].holds(c) {
			return false
		}
	}
	return true
}

func (x *Condition) holds(c *Call) bool {
	if x.Subject == SubjectAddress {
		if c.Peer == nil || !c.Peer.AddressKnown {
			return false
		}
		if x.Exists {
			return true
		}
		for i := range x.Networks {
			if x.Networks[i].Contains(&c.Peer.Address) {
				return !x.Not
			}
		}
		return x.Not
	}
	v, known := x.Subject.Of(c, x.Key)
	switch {
	case !known:
		return false
	case v == nil:
		return x.Not
	case x.Exists:
		return true
	}
	return x.Strings.Matches(v) != x.Not
}
