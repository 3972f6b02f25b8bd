package bolt

import (
	"encoding/binary"
	"hash/crc32"
	"unicode/utf8"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// MaxMessage bounds in bytes the message of a rejection.
const MaxMessage = 1024

// commandVersion is RpcCommand's version field, always 1.
const commandVersion = 1

// Classes of responses. The first is SOFARPC's; the second is part of Bolt itself.
const (
	sofaResponse    = "com.alipay.sofa.rpc.core.response.SofaResponse"
	serverException = "com.alipay.remoting.rpc.exception.RpcServerException"
)

// errorSection is the header section of a failed call: KeyResponseError and "true".
const errorSection = "\x00\x00\x00\x18" + KeyResponseError + "\x00\x00\x00\x04true"

// Parts of contents in the Hessian dialect of SOFARPC (com.alipay.sofa:hessian 3.5): 'O', the length of a class name and
// the name, the number of fields and their names define a class; 'o' and a number are an object of the class with that number,
// the values follow in the order of the fields. 0x90+n is the integer n, 0xc8+(n>>8) and a byte are one up to 2047; a
// string of less than 32 UTF-16 units begins with that number; T, F and N are true, false and null.
const (
	responseObject = "O\xbe" + sofaResponse + "\x94\x07isError\x08errorMsg\x0bappResponse\x0dresponseProps" + "o\x90"
	// noErrorMsg is isError and errorMsg of a response that carries an exception.
	noErrorMsg = "FN"
	// noResponse is appResponse and responseProps of a response that carries a message.
	noResponse = "NN"
	noProps    = "N"

	exceptionFields = "\x92\x09errorType\x0ddetailMessage" + "o\x91"
	rpcException    = "O\xc8\x33com.alipay.sofa.rpc.core.exception.SofaRpcException" + exceptionFields
	routeException  = "O\xc8\x35com.alipay.sofa.rpc.core.exception.SofaRouteException" + exceptionFields
	timeOut         = "O\xc8\x37com.alipay.sofa.rpc.core.exception.SofaTimeOutException" + exceptionFields

	serverExceptionObject = "O\xc8\x34" + serverException + "\x91\x0ddetailMessage" + "o\x90"
)

// Values of RpcErrorType, as integers in Hessian.
const (
	serverBusy            = "\xc8\x64" // 100
	serverFilter          = "\xc8\xaa" // 170
	serverUndeclaredError = "\xc8\xc7" // 199
	clientTimeout         = "\xc8\xc8" // 200
	clientRouter          = "\xc8\xd2" // 210
)

// exception returns the class definition, object head and error type of the exception for code.
func exception(code protocol.Code) (object, errorType string) {
	switch code {
	case protocol.CodeThrottled:
		return rpcException, serverBusy
	case protocol.CodeUnavailable:
		return routeException, clientRouter
	case protocol.CodeDenied:
		return rpcException, serverFilter
	case protocol.CodeTimeout:
		return timeOut, clientTimeout
	default:
		return rpcException, serverUndeclaredError
	}
}

// AppendReject appends the response that makes the caller see code and msg. What a SOFARPC 5.13.2 client throws was tried
// with it, for both versions of Bolt:
//
//	                synchronous and future invocation
//	CodeThrottled   SofaRpcException      SERVER_BUSY (100)              msg
//	CodeUnavailable SofaRouteException    CLIENT_ROUTER (210)            msg
//	CodeDenied      SofaRpcException      SERVER_FILTER (170)            msg
//	CodeAborted     SofaRpcException      SERVER_UNDECLARED_ERROR (199)  msg
//	CodeTimeout     SofaTimeOutException  CLIENT_TIMEOUT (200)           msg
//
//	                callback (onSofaException), $genericInvoke, Protobuf
//	any             SofaRpcException      SERVER_UNDECLARED_ERROR (199)  msg
//
//	                a client of Bolt without SOFARPC
//	CodeThrottled   InvokeServerBusyException                            of Bolt's own
//	CodeTimeout     InvokeTimeoutException                               of Bolt's own
//	any other       InvokeServerException                                of Bolt's own; its cause, RpcServerException: msg
//
// The first kind is a SofaResponse that carries the exception, as business exceptions come: only so do both the type and the
// message arrive. Bolt's own statuses for the same (SERVER_THREADPOOL_BUSY, TIMEOUT) make up their messages at the
// client, and they make SOFARPC's client retry elsewhere and count against the provider (FailoverCluster, fault
// tolerance), although the provider did nothing wrong. A callback would get the exception in onAppException and $genericInvoke
// would return it as the result, so these get a SofaResponse with an error message instead; so does Protobuf, which has room
// for nothing else. The content is in Hessian whatever serialization the request has, except for Protobuf: SOFARPC reads a
// response by the response's own codec byte (tried with JSON, Fury and Dubbo's Hessian too).
func (Codec) AppendReject(dst []byte, req *protocol.Frame, code protocol.Code, msg string) []byte {
	msg = truncate(msg)
	if req.Flags&flagForeign != 0 {
		return appendForeignReject(dst, req, code, msg)
	}
	codec := byte(SerializationHessian)
	if req.Serialization == SerializationProtobuf {
		codec = SerializationProtobuf
	}
	dst, start := appendResponse(dst, req, statusSuccess, codec, sofaResponse, errorSection)
	content := len(dst)
	switch {
	case codec == SerializationProtobuf:
		// ProtobufSerializer puts the message itself.
		dst = append(dst, msg...)
	case req.Flags&flagMessage != 0:
		dst = append(dst, responseObject+"T"...)
		dst = appendString(dst, msg)
		dst = append(dst, noResponse...)
	default:
		object, errorType := exception(code)
		dst = append(dst, responseObject+noErrorMsg...)
		dst = append(dst, object...)
		dst = append(dst, errorType...)
		dst = appendString(dst, msg)
		dst = append(dst, noProps...)
	}
	return finish(dst, req, start, content)
}

// appendForeignReject answers a program that uses Bolt without SOFARPC.
func appendForeignReject(dst []byte, req *protocol.Frame, code protocol.Code, msg string) []byte {
	var start int
	switch code {
	case protocol.CodeThrottled:
		dst, start = appendResponse(dst, req, statusServerThreadpoolBusy, req.Serialization, "", "")
		return finish(dst, req, start, len(dst))
	case protocol.CodeTimeout:
		dst, start = appendResponse(dst, req, statusTimeout, req.Serialization, "", "")
		return finish(dst, req, start, len(dst))
	}
	dst, start = appendResponse(dst, req, statusServerException, SerializationHessian, serverException, "")
	content := len(dst)
	dst = append(dst, serverExceptionObject...)
	dst = appendString(dst, msg)
	return finish(dst, req, start, content)
}

// AppendProbe appends a heartbeat with the id of req. Bolt's server answers it in its I/O thread (RpcHeartBeatProcessor)
// with the same id, whatever the id is.
func (Codec) AppendProbe(dst []byte, req *protocol.Frame) []byte {
	start := len(dst)
	dst = appendCommand(dst, req, typeRequest, cmdHeartbeat, req.Serialization)
	dst = append(dst, 0xff, 0xff, 0xff, 0xff) // no timeout, as Bolt's own heartbeats
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0)
	return finish(dst, req, start, len(dst))
}

// appendCommand appends what requests and responses have in common, up to the codec and, in v2, the switch.
func appendCommand(dst []byte, req *protocol.Frame, typ, cmd, codec byte) []byte {
	if req.Variant == V2 {
		ver1 := byte(1)
		if req.Flags&flagVer1Two != 0 {
			ver1 = 2
		}
		dst = append(dst, V2, ver1)
	} else {
		dst = append(dst, V1)
	}
	dst = append(dst, typ, 0, cmd, commandVersion)
	dst = binary.BigEndian.AppendUint32(dst, uint32(req.ID))
	dst = append(dst, codec)
	if req.Variant == V2 {
		dst = append(dst, req.Flags&flagCRC/flagCRC)
	}
	return dst
}

// appendResponse appends all of a response that comes before its content; finish completes it.
func appendResponse(dst []byte, req *protocol.Frame, status uint16, codec byte, class, section string) (_ []byte, start int) {
	start = len(dst)
	dst = appendCommand(dst, req, typeResponse, cmdResponse, codec)
	dst = binary.BigEndian.AppendUint16(dst, status)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(class)))
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(section)))
	dst = append(dst, 0, 0, 0, 0) // the content's length, which finish knows
	dst = append(dst, class...)
	return append(dst, section...), start
}

// finish fills in the length of the content, which begins at content, and appends the CRC if req has one.
func finish(dst []byte, req *protocol.Frame, start, content int) []byte {
	frame := dst[start:]
	var h fixed
	if need, _, err := parse(&h, frame); need == 0 && err == nil {
		binary.BigEndian.PutUint32(frame[h.size-4:], uint32(len(dst)-content))
	}
	if req.Variant == V2 && req.Flags&flagTrailer == flagTrailer {
		dst = binary.BigEndian.AppendUint32(dst, crc32.ChecksumIEEE(frame))
	}
	return dst
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

// appendString appends a string as SOFARPC's Hessian has it: its length in UTF-16 units, and each of them as one to three
// bytes, so that a rune beyond the basic plane becomes two surrogates of three bytes each. What is not UTF-8 becomes U+FFFD.
func appendString(dst []byte, s string) []byte {
	units := 0
	for _, r := range s {
		units++
		if r > 0xffff {
			units++
		}
	}
	if units < 32 {
		dst = append(dst, byte(units))
	} else {
		dst = append(dst, 'S', byte(units>>8), byte(units))
	}
	for _, r := range s {
		if r > 0xffff {
			r -= 0x10000
			dst = appendUnit(dst, 0xd800+uint16(r>>10))
			dst = appendUnit(dst, 0xdc00+uint16(r&0x3ff))
			continue
		}
		dst = appendUnit(dst, uint16(r))
	}
	return dst
}

// appendUnit appends one UTF-16 unit, a surrogate too, in the pattern of UTF-8.
func appendUnit(dst []byte, u uint16) []byte {
	switch {
	case u < 0x80:
		return append(dst, byte(u))
	case u < 0x800:
		return append(dst, 0xc0|byte(u>>6), 0x80|byte(u)&0x3f)
	default:
		return append(dst, 0xe0|byte(u>>12), 0x80|byte(u>>6)&0x3f, 0x80|byte(u)&0x3f)
	}
}
