package dubbo

import (
	"encoding/binary"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// AppendReply appends the response that returns value, which is in the request's serialization: the client insists on that
// for status OK (DecodeableRpcResult). In Hessian the value is the second one of the body, after an int, so what is numbered
// within it counts from 0. In JSONB each value is preceded by its length, which value itself does not have. For another
// serialization the result means nothing.
func (Codec) AppendReply(dst []byte, req *protocol.Frame, value []byte) []byte {
	start := len(dst)
	dst = appendHeader(dst, req.Serialization, StatusOK, req.ID)
	if req.Serialization == SerializationFastJSON2 {
		// FastJson2ObjectOutput.writeByte: a byte object, bd and the byte.
		dst = append(dst, 0, 0, 0, 2, 0xbd, responseValue)
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(value)))
	} else {
		dst = append(dst, 0x90+responseValue)
	}
	dst = append(dst, value...)
	binary.BigEndian.PutUint32(dst[start+12:], uint32(len(dst)-start-HeaderLen))
	return dst
}
