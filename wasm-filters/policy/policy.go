// Package policy defines the decision that the filter asks for before it lets a call through, and the report that it
// makes afterwards. Policies are pure state machines: time is an argument, randomness and shared counters are handed
// in, and nothing here knows of Envoy.
package policy

import (
	"strconv"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/match"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

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
	Protocol  string // Codec.Name; "http" or "triple" of HTTP requests
	Service   []byte // interface name; of HTTP the host
	Version   []byte // nil where absent
	Group     []byte // nil where absent
	Method    []byte
	Caller    []byte // calling application, as the call says; nil where it does not
	App       []byte // the workload's own application: the provider's where Direction is server, the caller's where client; nil where unknown
	OneWay    bool

	// What only conditions ask for. It is filled in where a rule that may match does, and empty in Done.
	Peer        *Peer
	Attachments [][]byte // by the number that Condition.Key has; nil where absent
	LoadTest    bool     // the call is part of a load test
	Unreadable  bool     // Attachments and LoadTest could not be read
	Wall        int64    // the time in milliseconds since the Unix epoch

	// Endpoint is the provider that the call goes to, at the caller. It is filled in where a rule that may match asks for it, also in
	// Done; nil where it is not known.
	Endpoint *Endpoint

	// Holdable says that the call can be held back: that a verdict's Delay will be kept. It is set where a rule that may match may delay.
	Holdable bool

	// Marks belongs to policies that want to know how a call ends: each of their rules has a bit of it, which Admit sets for
	// the calls that it is to be told about. Done finds them as Admit left them.
	Marks uint64
}

// Peer is what is known of who opened the connection.
type Peer struct {
	Address      match.Address
	AddressKnown bool
	Identity     []byte // the URI SAN of its certificate; nil where there is none
}

// Endpoint is an address and a port.
type Endpoint struct {
	Address match.Address
	Port    uint16
}

// Append appends the endpoint as text: 10.0.0.1:20880, fd00:0:0:0:0:0:0:1:20880.
func (e *Endpoint) Append(dst []byte) []byte {
	return strconv.AppendUint(append(e.Address.Append(dst), ':'), uint64(e.Port), 10)
}

// Verdict is the decision on one call. The zero value admits.
type Verdict struct {
	Reject bool
	Code   protocol.Code // why; meaningful only with Reject
	Rule   string        // the name of the rule that decided; "" if none did
	// RetryAfterMillis hints when the call may succeed; 0 where unknown.
	RetryAfterMillis uint32
	// Delay is how long the call is to be held back; meaningful only without Reject.
	Delay Nanos
	// Answer is what the caller gets besides; nil: the reason and the rule. It lives as long as the rule.
	Answer *Answer
}

// Answer is what a rule has to say to the callers that it rejects.
type Answer struct {
	Message string
	Status  uint16  // of HTTP; 0: that of the verdict's code
	Replies []Reply // values to return instead of an error, one for each protocol and serialization
}

// Reply is a value in its protocol's encoding.
type Reply struct {
	Protocol      string // Call.Protocol
	Serialization uint8  // Frame.Serialization
	Value         []byte
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
	// Done is called exactly once for each call that this policy admitted, if it has left marks: with protocol.OutcomeRejected, at the
	// same now and with the same c, where a later policy rejected the call; with protocol.OutcomeNone where nobody will know
	// how it ends.
	Done(now Nanos, c *Call, o Outcome)
}

// Rule is what rules of all kinds have in common.
type Rule struct {
	name    string
	observe bool
	when    Conditions
	hits    Hits
}

// NewRule returns a rule without conditions. name goes into verdicts; with observe the rule only counts.
func NewRule(name string, observe bool) Rule { return Rule{name: name, observe: observe} }

// Name returns the rule's name.
func (r *Rule) Name() string { return r.name }

// Observe tells whether the rule only counts.
func (r *Rule) Observe() bool { return r.observe }

// Hits returns the counts, for reading and counting.
func (r *Rule) Hits() *Hits { return &r.hits }

// Renew changes what may change while the rule's state goes on.
func (r *Rule) Renew(observe bool, when Conditions) { r.observe, r.when = observe, when }

// Applies tells whether the rule's conditions hold for c.
func (r *Rule) Applies(c *Call) bool { return len(r.when) == 0 || r.when.Hold(c) }

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
