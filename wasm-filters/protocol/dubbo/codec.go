package dubbo

import (
	"encoding/binary"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/dubbo/jsonb"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/hessian2"
)

// Codec reads Dubbo2. It holds no state; the zero value is ready.
type Codec struct{}

var _ protocol.Codec = Codec{}

// Name is the protocol's name: "dubbo".
func (Codec) Name() string { return "dubbo" }

// The serializations that the codec reads (org.apache.dubbo.common.serialize.Constants).
const (
	SerializationHessian2  = 2
	SerializationFastJSON2 = 23
)

// HeaderLen is the length in bytes of the header.
const HeaderLen = 16

// MaxName bounds in UTF-16 units each of a request's leading strings: Dubbo version, path, version, method. Class names of
// this length would not fit a path of any file system, and ZooKeeper's nodes hold them URL-encoded; a longer one is a flaw.
const MaxName = 1024

// MaxHead bounds in bytes what Decode ever asks for: the header and four strings of MaxName units of four bytes.
const MaxHead = HeaderLen + 4*(headMax+4*MaxName)

// headMax is the longest head of a string, in bytes: in JSONB the length of the value, its type and the string's length.
const headMax = 10

// maxBody is the longest body, in bytes: Dubbo adds the header's length to it in 32 bits with a sign (ExchangeCodec.decode).
const maxBody = 1<<31 - 1 - HeaderLen

// The magic number and the flags (ExchangeCodec).
const (
	magicHigh = 0xda
	magicLow  = 0xbb

	flagRequest       = 0x80
	flagTwoWay        = 0x40
	flagEvent         = 0x20
	serializationMask = 0x1f
)

// What the first value of a response's body says (DubboCodec). Values from 3 on: attachments follow.
const (
	responseException = iota
	responseValue
	responseNull
	responseExceptionWithAttachments
	responseValueWithAttachments
	responseNullWithAttachments
)

// Sniff tells from the header whether a client speaks Dubbo2. A client's first frame is a request, a heartbeat or an
// event: all have the request flag. (A telnet session on Dubbo's port has no header and is none of ours.)
func (Codec) Sniff(b []byte) protocol.Match {
	switch {
	case len(b) > 0 && b[0] != magicHigh, len(b) > 1 && b[1] != magicLow, len(b) > 2 && b[2]&flagRequest == 0, len(b) > 12 && b[12] > 0x7f:
		return protocol.MatchNo
	case len(b) < HeaderLen:
		return protocol.MatchMore
	case binary.BigEndian.Uint32(b[12:]) > maxBody:
		return protocol.MatchNo
	}
	return protocol.MatchYes
}

// Decode reads one frame. For a request it needs the header and the four strings that the body begins with, for a response
// with status OK the body's first value, for any other frame the header alone: never more than [MaxHead] bytes.
func (Codec) Decode(f *protocol.Frame, b []byte) (need int, err error) {
	*f = protocol.Frame{}
	if len(b) < HeaderLen {
		switch {
		case len(b) > 0 && b[0] != magicHigh:
			return 0, protocol.ErrNotProtocol
		case len(b) > 1 && b[1] != magicLow:
			f.FlawOff = 1
			return 0, protocol.ErrNotProtocol
		}
		return HeaderLen, nil
	}
	h := b[:HeaderLen]
	if h[0] != magicHigh || h[1] != magicLow {
		if h[0] == magicHigh {
			f.FlawOff = 1
		}
		return 0, protocol.ErrNotProtocol
	}
	body := binary.BigEndian.Uint32(h[12:])
	if body > maxBody {
		f.FlawOff = 12
		return 0, protocol.ErrLength
	}
	flags := h[2]
	f.Flags = flags
	f.Serialization = flags & serializationMask
	f.Len = HeaderLen + uint64(body)
	f.ID = binary.BigEndian.Uint64(h[4:])
	if uint64(len(b)) > f.Len {
		b = b[:f.Len]
	}
	switch flags & (flagRequest | flagTwoWay | flagEvent) {
	case flagRequest | flagTwoWay:
		f.Kind = protocol.KindRequest
		return request(f, b), nil
	case flagRequest:
		f.Kind = protocol.KindOneWay
		return request(f, b), nil
	case flagRequest | flagTwoWay | flagEvent:
		f.Kind = protocol.KindHeartbeat
		return 0, nil
	case flagRequest | flagEvent:
		f.Kind = protocol.KindEvent
		return 0, nil
	}
	f.Status = uint16(h[3])
	if flags&flagEvent != 0 {
		f.Kind = protocol.KindHeartbeatAck
		return 0, nil
	}
	f.Kind = protocol.KindResponse
	if f.Status != StatusOK {
		f.Outcome = outcome(f.Status)
		return 0, nil
	}
	return response(f, b), nil
}

// flaw notes why the body cannot be read.
func flaw(f *protocol.Frame, why protocol.Flaw, at int) {
	f.Flaw, f.FlawOff = why, uint32(at)
}

// request reads the leading strings of a request. b holds nothing but the frame, perhaps not all of it.
func request(f *protocol.Frame, b []byte) (need int) {
	switch f.Serialization {
	case SerializationHessian2:
		return hessianRequest(f, b)
	case SerializationFastJSON2:
		return fastJSONRequest(f, b)
	}
	flaw(f, protocol.FlawSerialization, 2)
	return 0
}

// hessianRequest reads the leading strings of a request in Hessian. b holds nothing but the frame, perhaps not all of it. A flaw is at the
// string that cannot be read: the same wherever b ends.
func hessianRequest(f *protocol.Frame, b []byte) (need int) {
	off, total := HeaderLen, int(f.Len)
	var spans [4]protocol.Span
	for i := range spans {
		// Each string after this one takes a byte at least: what ends later than last cannot be all.
		last := total - (len(spans) - 1 - i)
		units, start := 0, off+1
		if start > last {
			flaw(f, protocol.FlawMalformed, off)
			return 0
		}
		if off < len(b) && b[off] < 0x20 {
			units = int(b[off])
			// The usual case, as in visit.
			if len(b)-start >= 32 {
				p, m := b[start:start+32:start+32], &masks[units]
				if binary.LittleEndian.Uint64(p)&m[0]|binary.LittleEndian.Uint64(p[8:])&m[1]|
					binary.LittleEndian.Uint64(p[16:])&m[2]|binary.LittleEndian.Uint64(p[24:])&m[3] == 0 && start+units <= last {
					spans[i] = protocol.Span{Off: uint32(start), Len: uint32(units)}
					off = start + units
					continue
				}
			}
		} else if off < len(b) && b[off] == 'N' && i != 1 && i != 3 {
			off++ // null: the caller gave no version
			continue
		} else {
			var more bool
			var err error
			units, start, more, err = hessian2.Text(b, off)
			if err == hessian2.ErrShort && start <= last {
				return start + total - last
			}
			if err != nil || more || units > MaxName {
				flaw(f, protocol.FlawMalformed, off)
				return 0
			}
		}
		end, err := hessian2.Units(b, start, units)
		if end > last || err != nil && err != hessian2.ErrShort {
			flaw(f, protocol.FlawMalformed, off)
			return 0
		}
		if err != nil {
			return end + total - last
		}
		spans[i] = protocol.Span{Off: uint32(start), Len: uint32(end - start)}
		off = end
	}
	f.Service, f.Version, f.Method = spans[1], spans[2], spans[3]
	return 0
}

// fastJSONRequest is hessianRequest for JSONB: each string is preceded by the length of its value, in four bytes.
func fastJSONRequest(f *protocol.Frame, b []byte) (need int) {
	off, total := HeaderLen, int(f.Len)
	var spans [4]protocol.Span
	for i := range spans {
		// Each string after this one takes the length and a byte at least.
		last := total - (lengthLen+1)*(len(spans)-1-i)
		value := off + lengthLen
		if value >= last {
			flaw(f, protocol.FlawMalformed, off)
			return 0
		}
		if len(b) < value {
			return value + 1 + total - last
		}
		n := binary.BigEndian.Uint32(b[off:])
		if n == 0 || n > 4*MaxName+headMax-lengthLen || int(n) > last-value {
			flaw(f, protocol.FlawMalformed, off)
			return 0
		}
		end := value + int(n)
		if len(b) < end {
			return end + total - last
		}
		start, at, kind := jsonb.Text(b[:end], value)
		switch {
		case kind == jsonb.UTF8 && at == end && at-start <= 4*MaxName:
			spans[i] = protocol.Span{Off: uint32(start), Len: uint32(at - start)}
		case kind == jsonb.Absent && at == end && i != 1 && i != 3:
		case kind == jsonb.Opaque && at == end:
			flaw(f, protocol.FlawSerialization, off) // a name in UTF-16, say: nothing that a Span could show
			return 0
		default:
			flaw(f, protocol.FlawMalformed, off)
			return 0
		}
		off = end
	}
	f.Service, f.Version, f.Method = spans[1], spans[2], spans[3]
	return 0
}

// lengthLen is the length in bytes of the length that precedes each value in JSONB (FastJson2ObjectOutput.writeLength).
const lengthLen = 4

// first reads the first value of the body of a response with status OK, and where it ends. need is as in Decode. Where it
// is no such value, what is -1.
func first(f *protocol.Frame, b []byte) (what int32, end, need int) {
	if f.Serialization == SerializationHessian2 {
		what, at, err := hessian2.Int(b, HeaderLen)
		if err == hessian2.ErrShort && uint64(at) <= f.Len {
			return 0, 0, at
		}
		if err != nil {
			what = -1
		}
		return what, at, 0
	}
	const value = HeaderLen + lengthLen
	if f.Len <= value {
		return -1, 0, 0
	}
	if len(b) < value {
		return 0, 0, value + 1
	}
	n := binary.BigEndian.Uint32(b[HeaderLen:])
	if n == 0 || n > 5 || value+uint64(n) > f.Len { // the longest int takes five bytes
		return -1, 0, 0
	}
	end = value + int(n)
	if len(b) < end {
		return 0, 0, end
	}
	what, at, ok := jsonb.Int(b[:end], value)
	if !ok || at != end {
		what = -1
	}
	return what, end, 0
}

// response reads how a call with status OK ended.
func response(f *protocol.Frame, b []byte) (need int) {
	if f.Serialization != SerializationHessian2 && f.Serialization != SerializationFastJSON2 {
		flaw(f, protocol.FlawSerialization, 2)
		f.Outcome = protocol.OutcomeOK
		return 0
	}
	what, _, need := first(f, b)
	if need > 0 {
		return need
	}
	switch what {
	case responseValue, responseNull, responseValueWithAttachments, responseNullWithAttachments:
		f.Outcome = protocol.OutcomeOK
	case responseException, responseExceptionWithAttachments:
		f.Outcome = protocol.OutcomeException
	default:
		// The client cannot read it either, and raises an error (DecodeableRpcResult.decode).
		flaw(f, protocol.FlawMalformed, HeaderLen)
		f.Outcome = protocol.OutcomeBadResponse
	}
	return 0
}

// The status codes of responses (org.apache.dubbo.remoting.exchange.Response).
const (
	StatusOK                        = 20
	StatusSerializationError        = 25
	StatusClientTimeout             = 30
	StatusServerTimeout             = 31
	StatusChannelInactive           = 35
	StatusBadRequest                = 40
	StatusBadResponse               = 50
	StatusServiceNotFound           = 60
	StatusServiceError              = 70
	StatusServerError               = 80
	StatusClientError               = 90
	StatusServerThreadpoolExhausted = 100
)

// SerializationName returns Dubbo's name for the serialization with that number (org.apache.dubbo.common.serialize.Constants): "hessian2", "fastjson2"; ""
// for one that Dubbo does not define.
func SerializationName(serialization uint8) string {
	switch serialization {
	case 2:
		return "hessian2"
	case 3:
		return "java"
	case 4:
		return "compactedjava"
	case 6:
		return "fastjson"
	case 7:
		return "nativejava"
	case 8:
		return "kryo"
	case 9:
		return "fst"
	case 10:
		return "native-hessian"
	case 11:
		return "avro"
	case 12:
		return "protostuff"
	case 16:
		return "gson"
	case 18:
		return "jackson"
	case 21:
		return "protobuf-json"
	case 22:
		return "protobuf"
	case 23:
		return "fastjson2"
	case 25:
		return "kryo2"
	case 27:
		return "msgpack"
	case 28:
		return "fury"
	}
	return ""
}

// StatusName returns Dubbo's name for a status: "OK", "SERVER_THREADPOOL_EXHAUSTED_ERROR"; "" for one that Dubbo does not define.
func StatusName(status uint16) string {
	switch status {
	case StatusOK:
		return "OK"
	case StatusSerializationError:
		return "SERIALIZATION_ERROR"
	case StatusClientTimeout:
		return "CLIENT_TIMEOUT"
	case StatusServerTimeout:
		return "SERVER_TIMEOUT"
	case StatusChannelInactive:
		return "CHANNEL_INACTIVE"
	case StatusBadRequest:
		return "BAD_REQUEST"
	case StatusBadResponse:
		return "BAD_RESPONSE"
	case StatusServiceNotFound:
		return "SERVICE_NOT_FOUND"
	case StatusServiceError:
		return "SERVICE_ERROR"
	case StatusServerError:
		return "SERVER_ERROR"
	case StatusClientError:
		return "CLIENT_ERROR"
	case StatusServerThreadpoolExhausted:
		return "SERVER_THREADPOOL_EXHAUSTED_ERROR"
	default:
		return ""
	}
}

// outcome maps a status other than OK. The client raises an error for any that it does not know (DefaultFuture.doReceived).
func outcome(status uint16) protocol.Outcome {
	switch status {
	case StatusClientTimeout, StatusServerTimeout:
		return protocol.OutcomeTimeout
	case StatusBadRequest:
		return protocol.OutcomeBadRequest
	case StatusBadResponse, StatusSerializationError:
		return protocol.OutcomeBadResponse
	case StatusServiceNotFound:
		return protocol.OutcomeNotFound
	case StatusServerThreadpoolExhausted:
		return protocol.OutcomeOverload
	default:
		return protocol.OutcomeError
	}
}
