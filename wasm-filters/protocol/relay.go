package protocol

// Relayer is a Codec whose frames can change connections: what it takes to send the calls of many callers over one
// connection to their provider. The rules for a Codec hold for its methods too.
type Relayer interface {
	Codec

	// SetID gives the frame f that b begins with another id, in place: what Decode left in f. b has all that Decode asked for;
	// where Summed says so, it is the whole frame.
	SetID(b []byte, f *Frame, id uint64)

	// Summed tells whether f has a checksum that covers its id. SetID corrects it, unless it was wrong before: then it is wrong
	// afterwards.
	Summed(f *Frame) bool

	// AppendAck appends the answer to the heartbeat hb to dst. Only fields of hb that do not refer to bytes are used.
	AppendAck(dst []byte, hb *Frame) []byte
}
