// Package protocol defines what an RPC wire format must offer to the filter: where one frame ends and the next begins,
// which call a frame belongs to, and how to answer in its stead.
//
// Everything here runs for every frame of every connection inside Envoy, so nothing allocates in steady state, nothing
// retains the caller's bytes and nothing panics, whatever the bytes are.
package protocol

import "errors"

// Kind is what a frame is for.
type Kind uint8

// The kinds of frames. The zero value is KindUnknown, a frame whose extent is known but whose purpose is not.
const (
	KindUnknown      Kind = iota
	KindRequest           // a two-way request: exactly one response with the same ID is owed
	KindOneWay            // a request that is never answered
	KindResponse          // the answer to the request with the same ID
	KindHeartbeat         // a heartbeat that asks for an answer
	KindHeartbeatAck      // the answer to a heartbeat
	KindEvent             // any other message about the connection (Dubbo read-only, Bolt GOAWAY)
)

// String returns the kind as the command line tools print it: "request", "oneway", "response", "heartbeat", "event".
func (k Kind) String() string {
	switch k {
	case KindRequest:
		return "request"
	case KindOneWay:
		return "oneway"
	case KindResponse:
		return "response"
	case KindHeartbeat, KindHeartbeatAck:
		return "heartbeat"
	case KindEvent:
		return "event"
	default:
		return "unknown"
	}
}

// Match is the answer of Codec.Sniff.
type Match uint8

// The answers of Sniff.
const (
	MatchNo   Match = iota // not this protocol, whatever follows
	MatchYes               // this protocol
	MatchMore              // a prefix of this protocol: ask again with more bytes
)

// Outcome is how a call ended, as told by its response frame.
type Outcome uint8

// The outcomes of a call. OutcomeNone is the zero value: the frame is not a response, or it says nothing.
const (
	OutcomeNone        Outcome = iota
	OutcomeOK                  // a value, or null
	OutcomeException           // the business code threw; the RPC itself worked
	OutcomeTimeout             // the peer says that the call took too long
	OutcomeBadRequest          // the peer could not read the request
	OutcomeBadResponse         // the response could not be written or read
	OutcomeNotFound            // no such service or method
	OutcomeOverload            // thread pool exhausted, or another limit of the peer
	OutcomeError               // any other failure that the peer reports

	// The following never come from a frame; the filter uses them for calls that ended otherwise.
	OutcomeRejected   // a policy of ours rejected the call
	OutcomeNoResponse // no response within the in-flight timeout
	OutcomeClosed     // the connection closed before the response
)

// String returns the outcome as it appears in metric labels.
func (o Outcome) String() string {
	switch o {
	case OutcomeOK:
		return "ok"
	case OutcomeException:
		return "exception"
	case OutcomeTimeout:
		return "timeout"
	case OutcomeBadRequest:
		return "bad_request"
	case OutcomeBadResponse:
		return "bad_response"
	case OutcomeNotFound:
		return "not_found"
	case OutcomeOverload:
		return "overload"
	case OutcomeError:
		return "error"
	case OutcomeRejected:
		return "rejected"
	case OutcomeNoResponse:
		return "no_response"
	case OutcomeClosed:
		return "closed"
	default:
		return "none"
	}
}

// Code is the reason for which a policy rejects a call. Each codec maps it to the status that makes its own clients
// raise the exception that fits best.
type Code uint8

// The reasons for a rejection.
const (
	CodeThrottled   Code = iota + 1 // over a rate or concurrency limit
	CodeUnavailable                 // circuit open, no provider, degraded
	CodeDenied                      // authentication or authorization failed
	CodeAborted                     // an injected fault
	CodeTimeout                     // a deadline passed
)

// Span is a part of the bytes that were given to Decode: b[Off:Off+Len]. The zero Span is "absent"; a present but empty
// value has Off > 0 and Len == 0.
type Span struct{ Off, Len uint32 }

// Of returns the bytes that s names in b, nil where s is absent or does not lie within b. It is a view, not a copy.
func (s Span) Of(b []byte) []byte {
	end := uint64(s.Off) + uint64(s.Len)
	if s.Off == 0 || end > uint64(len(b)) {
		return nil
	}
	return b[s.Off:end:end]
}

// Flaw says why the body of a frame could not be read. The frame's extent is known all the same, so the frames around
// it are not affected.
type Flaw uint8

// The flaws of a body.
const (
	FlawNone          Flaw = iota
	FlawSerialization      // a serialization that the codec does not read; the frame is opaque
	FlawMalformed          // the body contradicts its own format at Frame.FlawOff
	FlawTooDeep            // nesting beyond the codec's bound at Frame.FlawOff
)

// String returns the flaw as it appears in metric labels and in the output of the command line tools.
func (f Flaw) String() string {
	switch f {
	case FlawSerialization:
		return "unknown_serialization"
	case FlawMalformed:
		return "malformed"
	case FlawTooDeep:
		return "too_deep"
	default:
		return "none"
	}
}

// Frame is what a codec read of one frame. A Frame is reused: Decode resets every field. Spans refer to the bytes that
// Decode was given.
type Frame struct {
	Kind          Kind
	Flags         uint8   // the protocol's own flag bits that AppendReject and AppendProbe need (serialization id, version, codec)
	Serialization uint8   // the protocol's own serialization id
	Variant       uint8   // the protocol's own version (Bolt 1 or 2)
	Flaw          Flaw    // why the body could not be read; FlawNone if it could
	Outcome       Outcome // responses only
	Status        uint16  // the protocol's own status, responses only
	FlawOff       uint32  // where in the frame the flaw is, in bytes from its start
	Len           uint64  // of the whole frame, header and trailer included, in bytes
	ID            uint64  // pairs a response with its request, within a connection
	TimeoutMillis uint32  // how long the caller waits; 0 where the frame does not say (Dubbo: only in the attachments)

	// Requests only. For Dubbo, Group, Caller and CallerIP stay absent: they are attachments (see VisitAttachments).
	Service  Span // interface name
	Version  Span // service version; absent or empty is Dubbo's "0.0.0"
	Group    Span // Dubbo group, SOFA uniqueId
	Method   Span // method name
	Caller   Span // calling application
	CallerIP Span // calling address, where the protocol carries one
}

// The errors of a codec. They are sentinels: a codec has no time to format. Where the offset matters, the frame has it
// in FlawOff.
var (
	// ErrNotProtocol: the bytes cannot start a frame of this protocol. Framing is lost, for the whole connection.
	ErrNotProtocol = errors.New("not a frame of this protocol")
	// ErrLength: the frame declares a length that the protocol does not allow. Framing is lost.
	ErrLength = errors.New("frame length out of range")
	// ErrShort: VisitAttachments was given less than the whole frame.
	ErrShort = errors.New("frame is not complete")
	// ErrMalformed: the attachments contradict their own format, at Frame.FlawOff.
	ErrMalformed = errors.New("malformed body")
	// ErrTooDeep: nesting beyond the codec's bound, at Frame.FlawOff.
	ErrTooDeep = errors.New("body nested too deeply")
	// ErrSerialization: the codec does not read this serialization.
	ErrSerialization = errors.New("unknown serialization")
)

// Codec reads one wire format. Implementations hold no state: one value serves every connection of a worker. They never
// allocate in steady state, never retain b and never panic, on any input. The suite in protocoltest holds them to it.
type Codec interface {
	// Name is the protocol's name as OpenTelemetry's rpc.system.name has it, in lower case: "dubbo", "bolt".
	Name() string

	// Sniff tells from the first bytes that a client sends whether a connection speaks this protocol. It answers
	// MatchMore only for fewer bytes than the shortest header.
	Sniff(b []byte) Match

	// Decode reads the frame that starts at b[0]; b may end within the frame or hold more frames behind it.
	//
	// need > 0: b is a valid beginning, but more than len(b) bytes are needed to fill the routing fields; call again
	// with at least need bytes (need > len(b), need <= f.Len once the header is there). Fields that could be read are
	// already set: once the header is there, Kind, ID, Len, Status and Serialization are.
	// need == 0, err == nil: all fields are set; b need not hold the rest of the frame (f.Len may exceed len(b)). A body that
	// cannot be read is not an error: f.Flaw says why, and the frame's extent still holds.
	// err != nil: framing is lost, nothing more on this connection can be read. f.FlawOff has the offset.
	Decode(f *Frame, b []byte) (need int, err error)

	// VisitAttachments calls fn for each attachment (Dubbo) or header (Bolt) of the request or response f, as decoded
	// from b, until fn returns false. b must hold the whole frame, else ErrShort. k and v are views of b, valid only
	// during the call; values that are not strings are skipped. On a malformed body it returns an error after having
	// visited what came before.
	VisitAttachments(f *Frame, b []byte, fn func(k, v []byte) bool) error

	// AppendReject appends the protocol's own error response to the request req to dst and returns the extended slice.
	// Only fields of req that do not refer to bytes are used (ID, Flags, Serialization, Variant): the request's bytes may
	// be gone. msg is bounded by the codec (longer ones are cut at a rune's start); it is what the caller's
	// exception shows.
	AppendReject(dst []byte, req *Frame, code Code, msg string) []byte

	// AppendProbe appends a heartbeat that carries the id of req, which every provider answers from its I/O thread
	// without touching the business code. It takes the place of a rejected request (see the filter's documentation).
	AppendProbe(dst []byte, req *Frame) []byte
}
