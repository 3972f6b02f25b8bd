// Package policy defines the decision that the filter asks for before it lets a call through, and the report that it
// makes afterwards. Policies are pure state machines: time is an argument, randomness and shared counters are handed
// in, and nothing here knows of Envoy.
package policy

import "github.com/isthmus-mesh/isthmus/wasm-filters/protocol"

// Nanos is a point in time in nanoseconds since the Unix epoch. Only differences matter.
type Nanos int64

// Direction tells at which end of the call the filter stands.
type Direction uint8

// The directions. The zero value is unknown, which no rule with a direction matches.
const (
	DirectionUnknown Direction = iota
	DirectionClient            // at the caller (Envoy's outbound listeners)
	DirectionServer            // at the provider (Envoy's inbound listeners)
)

// String returns the direction as it appears in metric labels: "client", "server" or "unknown".
func (d Direction) String() string {
	switch d {
	case DirectionClient:
		return "client"
	case DirectionServer:
		return "server"
	default:
		return "unknown"
	}
}

// Call is what is known of a call when it is decided. The byte slices are views, valid only during Admit or Done; a policy
// that must keep one copies it.
type Call struct {
	Direction Direction
	Protocol  string // Codec.Name
	Service   []byte // interface name
	Version   []byte // nil where absent
	Group     []byte // nil where absent
	Method    []byte
	Caller    []byte // calling application; nil where unknown
	CallerIP  []byte // textual address of the peer, without port; nil where unknown
	App       string // the workload's own application: the provider's where Direction is server, the caller's where client
	OneWay    bool
	// Attachment returns the value of an attachment or header, nil where absent. It is nil when the call's attachments
	// were not read: the rules in force did not ask for any (see Policy.NeedsAttachments).
	Attachment func(key string) []byte
}

// Verdict is the decision on one call. The zero value admits.
type Verdict struct {
	Reject bool
	Code   protocol.Code // why; meaningful only with Reject
	Rule   string        // the name of the rule that decided; "" if none did
	// RetryAfterMillis hints when the call may succeed; 0 where unknown.
	RetryAfterMillis uint32
}

// Outcome is the report on an admitted call.
type Outcome struct {
	Result   protocol.Outcome
	Duration Nanos // from request to response
}

// Policy decides on calls by one or more rules.
type Policy interface {
	// Admit decides on the call at the time now. now never decreases within a worker.
	Admit(now Nanos, c *Call) Verdict
	// Done is called exactly once for each call that this policy admitted and that a later policy did not reject.
	Done(now Nanos, c *Call, o Outcome)
}

// Hits is what a rule did since it was made. Whoever decides counts; the filter reports the differences as metrics.
type Hits struct {
	Admitted    uint64 // calls that the rule matched and let through
	Rejected    uint64 // calls that it rejected
	WouldReject uint64 // calls that it let through only because it observes
}

// Shared is a small store that all workers of one Envoy see: each worker runs the filter in a memory of its own, so a limit
// that is to hold for all of them keeps its state here. Keys and values are copied; neither is retained.
type Shared interface {
	// Get appends the value of key to dst and returns the extended slice with the value's mark, which is not 0.
	// ok is false where there is none, or where it cannot be read.
	Get(dst, key []byte) (value []byte, mark uint32, ok bool)
	// CompareAndSwap replaces the value of key if its mark is still mark, and tells whether it did. Where mark is 0 it sets
	// the value whatever there is.
	CompareAndSwap(key, value []byte, mark uint32) bool
}
