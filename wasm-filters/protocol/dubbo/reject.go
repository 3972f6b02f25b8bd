package dubbo

import (
	"encoding/binary"
	"unicode/utf8"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/hessian2"
)

// MaxMessage bounds in bytes the message of a rejection.
const MaxMessage = 1024

// rejectStatus returns the status that tells the caller of code.
func rejectStatus(code protocol.Code) byte {
	switch code {
	case protocol.CodeThrottled:
		return StatusServerThreadpoolExhausted
	case protocol.CodeDenied:
		return StatusServiceError
	case protocol.CodeTimeout:
		return StatusServerTimeout
	default:
		return StatusServerError
	}
}

// AppendReject appends the response that makes the caller see code and msg:
//
//	CodeThrottled    100  SERVER_THREADPOOL_EXHAUSTED_ERROR
//	CodeUnavailable   80  SERVER_ERROR
//	CodeDenied        70  SERVICE_ERROR
//	CodeAborted       80  SERVER_ERROR
//	CodeTimeout       31  SERVER_TIMEOUT
//
// Dubbo's client knows three kinds of failure (DefaultFuture.doReceived): 30 and 31 become a TimeoutException, hence an
// RpcException with isTimeout, 25 a SerializationException, and anything else a RemotingException with the body as its
// message, hence an RpcException with isNetwork. So of the rest the choice is told to those who read the frame (logs,
// captures, a filter at the caller's side): 100 is what a provider sends that is full (WrappedChannelHandler), 70 what it
// sends where one of its own filters refuses the call (HeaderExchangeHandler; TokenFilter), 80 says no more than "not
// now".
//
// The body is in Hessian 2.0 whatever the request's serialization is: the client reads the message of a failed call with the
// serialization that the response names, and only for status OK insists on the request's (DecodeableRpcResult). Hessian is
// part of every Dubbo; a client built without it raises its own error instead, which still fails this call alone.
func (Codec) AppendReject(dst []byte, req *protocol.Frame, code protocol.Code, msg string) []byte {
	start := len(dst)
	dst = appendHeader(dst, SerializationHessian2, rejectStatus(code), req.ID)
	dst = hessian2.AppendString(dst, truncate(msg))
	binary.BigEndian.PutUint32(dst[start+12:], uint32(len(dst)-start-HeaderLen))
	return dst
}

// AppendProbe appends a two-way heartbeat with the id of req, which a provider answers in its I/O thread with the same id
// (HeartbeatHandler). It is in Hessian, where null is one byte.
func (Codec) AppendProbe(dst []byte, req *protocol.Frame) []byte {
	dst = appendHeader(dst, flagRequest|flagTwoWay|flagEvent|SerializationHessian2, 0, req.ID)
	dst[len(dst)-1] = 1
	return append(dst, 'N')
}

// appendHeader appends a header with no body.
func appendHeader(dst []byte, flags, status byte, id uint64) []byte {
	dst = append(dst, magicHigh, magicLow, flags, status)
	dst = binary.BigEndian.AppendUint64(dst, id)
	return append(dst, 0, 0, 0, 0)
}

// truncate cuts msg at a rune's start so that it has at most MaxMessage bytes.
func truncate(msg string) string {
	if len(msg) <= MaxMessage {
		return msg
	}
	n := MaxMessage
	for n > MaxMessage-utf8.UTFMax && !utf8.RuneStart(msg[n]) {
		n--
	}
	return msg[:n]
}
