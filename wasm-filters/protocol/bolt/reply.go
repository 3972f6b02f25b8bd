package bolt

import "github.com/isthmus-mesh/isthmus/wasm-filters/protocol"

// AppendReply appends the response that returns value, which is in SOFARPC's Hessian: it is the appResponse of a
// SofaResponse, so the classes and the objects in it are numbered from 1. A response in another serialization, and one for a
// program that uses Bolt without SOFARPC, carries value as its content.
func (Codec) AppendReply(dst []byte, req *protocol.Frame, value []byte) []byte {
	if req.Flags&flagForeign != 0 || req.Serialization != SerializationHessian {
		class := sofaResponse
		if req.Flags&flagForeign != 0 {
			class = ""
		}
		dst, start := appendResponse(dst, req, statusSuccess, req.Serialization, class, "")
		content := len(dst)
		return finish(append(dst, value...), req, start, content)
	}
	dst, start := appendResponse(dst, req, statusSuccess, SerializationHessian, sofaResponse, "")
	content := len(dst)
	dst = append(dst, responseObject+noErrorMsg...)
	dst = append(dst, value...)
	dst = append(dst, noProps...)
	return finish(dst, req, start, content)
}
