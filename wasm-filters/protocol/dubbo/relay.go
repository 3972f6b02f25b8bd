package dubbo

import (
	"encoding/binary"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

var _ protocol.Relayer = Codec{}

// SetID writes the id into the header.
func (Codec) SetID(b []byte, _ *protocol.Frame, id uint64) { binary.BigEndian.PutUint64(b[4:], id) }

// Summed tells that Dubbo2 has no checksum.
func (Codec) Summed(*protocol.Frame) bool { return false }

// AppendAck appends what HeartbeatHandler answers: status OK and null, in Hessian, where that is one byte. A receiver takes the
// answer for what it is by its header, and reads no more of it than that (ExchangeCodec.decodeBody).
func (Codec) AppendAck(dst []byte, hb *protocol.Frame) []byte {
	dst = appendHeader(dst, flagEvent|SerializationHessian2, StatusOK, hb.ID)
	dst[len(dst)-1] = 1
	return append(dst, 'N')
}
