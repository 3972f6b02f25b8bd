package bolt

import (
	"encoding/binary"
	"errors"
	"hash/crc32"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// Codec reads Bolt v1 and v2. It holds no state; the zero value is ready.
type Codec struct{}

var _ protocol.Codec = Codec{}

// Name is the protocol's name: "bolt".
func (Codec) Name() string { return "bolt" }

// The protocol codes (RpcProtocol.PROTOCOL_CODE, RpcProtocolV2.PROTOCOL_CODE), which are Frame.Variant too.
const (
	V1 = 1
	V2 = 2
)

// DefaultVersion is the service version that a unique name without one means (ConfigUniqueNameGenerator).
const DefaultVersion = "1.0"

// The serializations that the codec byte names (RemotingConstants.SERIALIZE_CODE_…). There are others; the codec reads
// none of them, for it does not read the content.
const (
	SerializationHessian  = 1
	SerializationProtobuf = 11
)

// The types of commands (RpcCommandType).
const (
	typeResponse = 0
	typeRequest  = 1
	typeOneWay   = 2
)

// The command codes (CommonCommandCode, RpcCommandCode; GOAWAY is an extension of MOSN's, which sends it as a request).
const (
	cmdHeartbeat = 0
	cmdRequest   = 1
	cmdResponse  = 2
	cmdGoAway    = 100
)

// Lengths of the fixed headers, in bytes (RpcProtocol, RpcProtocolV2). A request's is two bytes longer than a response's.
const (
	responseHeaderV1 = 20
	responseHeaderV2 = 22
	requestExtra     = 2
	crcLen           = 4
)

// MaxClassName is the length in bytes from which a class name is taken for a flaw. Java's own names stay far below;
// Bolt's writer stops at 32767.
const MaxClassName = 1024

// MaxHead bounds in bytes what Decode ever asks for: the longest fixed header, the longest class name that is read, the
// longest header section, and of the response of a failed call the beginning of its content.
const MaxHead = responseHeaderV2 + requestExtra + MaxClassName + maxLength + len(responseObject) + 1

// maxLength is the longest class name or header section (RpcCommand.setClazz, setHeader).
const maxLength = 1<<15 - 1

// The bits of Frame.Flags: what AppendReject and AppendProbe have to know of a request, besides its id and codec.
const (
	// flagVer1Two: the second byte of a v2 frame is 2, not 1.
	flagVer1Two = 1 << iota
	// flagCRC: the switch for the CRC is on. There is a trailer only if flagVer1Two is set too.
	flagCRC
	// flagForeign: the request's class is not SOFARPC's.
	flagForeign
	// flagMessage: the caller would not throw a serialized exception: a callback or a generic invocation.
	flagMessage

	flagTrailer = flagVer1Two | flagCRC
)

// The class of the only request that SOFARPC's provider serves (BoltServerProcessor.interest).
const sofaRequest = "com.alipay.sofa.rpc.core.request.SofaRequest"

// fixed is the fixed header of a frame.
type fixed struct {
	proto, ver1, typ, codec, flags byte
	cmd, status                    uint16
	id, timeout                    uint32
	size                           uint32 // of the fixed header
	class, section, content        uint32 // lengths
}

// head is where the header section ends: all that this package ever reads.
func (h *fixed) head() uint32 { return h.size + h.class + h.section }

func (h *fixed) trailer() bool { return h.flags&flagTrailer == flagTrailer }

// total is the length of the whole frame.
func (h *fixed) total() uint64 {
	n := uint64(h.head()) + uint64(h.content)
	if h.trailer() {
		n += crcLen
	}
	return n
}

// parse reads the fixed header of the frame at b[0]. need is as in protocol.Codec.Decode. Where err is not nil, at is the
// offset of the field at fault.
func parse(h *fixed, b []byte) (need int, at uint32, err error) {
	if len(b) == 0 {
		return responseHeaderV1, 0, nil
	}
	size, o := responseHeaderV1, 1
	switch b[0] {
	case V1:
	case V2:
		// Bolt's own reader waits for ever on any other value.
		if len(b) > 1 && b[1] != 1 && b[1] != 2 {
			return 0, 1, protocol.ErrNotProtocol
		}
		size, o = responseHeaderV2, 2
	default:
		return 0, 0, protocol.ErrNotProtocol
	}
	if len(b) <= o {
		return size, 0, nil
	}
	h.proto, h.typ = b[0], b[o]
	switch h.typ {
	case typeResponse:
	case typeRequest, typeOneWay:
		size += requestExtra
	default:
		return 0, uint32(o), protocol.ErrNotProtocol
	}
	if len(b) < size {
		return size, 0, nil
	}
	b = b[:size]
	h.size = uint32(size)
	h.cmd = binary.BigEndian.Uint16(b[o+1:])
	h.id = binary.BigEndian.Uint32(b[o+4:])
	h.codec = b[o+8]
	o += 9
	if h.proto == V2 {
		h.ver1 = b[1]
		// A switch is a byte below 128 (ProtocolSwitch.toBitSet throws otherwise); only bit 0 has a meaning.
		if b[o] > 127 {
			return 0, uint32(o), protocol.ErrNotProtocol
		}
		if b[1] == 2 {
			h.flags = flagVer1Two
		}
		if b[o]&1 != 0 {
			h.flags |= flagCRC
		}
		o++
	}
	if h.typ == typeResponse {
		h.status = binary.BigEndian.Uint16(b[o:])
		o += 2
	} else {
		h.timeout = binary.BigEndian.Uint32(b[o:])
		o += 4
	}
	// Bolt reads its lengths as signed and its writer refuses to exceed them. Taken as unsigned, a length would put the end
	// of the frame where the peer does not see it, and hide a request from us that the peer serves.
	h.class = uint32(binary.BigEndian.Uint16(b[o:]))
	h.section = uint32(binary.BigEndian.Uint16(b[o+2:]))
	h.content = binary.BigEndian.Uint32(b[o+4:])
	switch {
	case h.class > maxLength:
		return 0, uint32(o), protocol.ErrLength
	case h.section > maxLength:
		return 0, uint32(o + 2), protocol.ErrLength
	case h.content > 1<<31-1:
		return 0, uint32(o + 4), protocol.ErrLength
	}
	return 0, 0, nil
}

// kind tells what the frame is for. Bolt's reader looks at the command for heartbeats, whatever the type.
func (h *fixed) kind() protocol.Kind {
	switch {
	case h.typ == typeResponse && h.cmd == cmdResponse:
		return protocol.KindResponse
	case h.typ == typeResponse && h.cmd == cmdHeartbeat:
		return protocol.KindHeartbeatAck
	case h.typ == typeResponse:
		return protocol.KindUnknown
	case h.cmd == cmdHeartbeat:
		return protocol.KindHeartbeat
	case h.cmd == cmdGoAway:
		return protocol.KindEvent
	case h.cmd == cmdRequest && h.typ == typeOneWay:
		return protocol.KindOneWay
	case h.cmd == cmdRequest:
		return protocol.KindRequest
	default:
		return protocol.KindUnknown
	}
}

// Sniff tells from the first bytes whether a client speaks Bolt. Four bytes of Bolt's header are nearly constant, and
// other protocols begin with them now and then: a MongoDB message of 257 bytes with 01 01 00 00. So what a client can begin with
// is all that counts: a request, a one-way request, a GOAWAY or a heartbeat, not a response; lengths that Bolt allows;
// and for a heartbeat no content at all.
func (Codec) Sniff(b []byte) protocol.Match {
	var h fixed
	need, _, err := parse(&h, b)
	if err != nil {
		return protocol.MatchNo
	}
	// The command is known after four or five bytes: do not hold up another protocol for longer.
	o := 1
	if len(b) > 0 && b[0] == V2 {
		o = 2
	}
	if len(b) > o && b[o] == typeResponse {
		return protocol.MatchNo
	}
	if len(b) > o+1 && b[o+1] != 0 {
		return protocol.MatchNo
	}
	if len(b) > o+2 && b[o+2] != cmdRequest && b[o+2] != cmdHeartbeat && b[o+2] != cmdGoAway {
		return protocol.MatchNo
	}
	if need > 0 {
		if len(b) < responseHeaderV1 {
			return protocol.MatchMore
		}
		return protocol.MatchYes
	}
	if h.cmd != cmdRequest && h.class|h.section|h.content != 0 {
		return protocol.MatchNo
	}
	return protocol.MatchYes
}

// Decode reads one frame. For a request and for a response with status 0 it needs the fixed header, the class name and the
// header section, for the response of a failed call some 110 bytes of the content as well, and for any other frame the
// fixed header alone: never more than [MaxHead] bytes.
func (Codec) Decode(f *protocol.Frame, b []byte) (need int, err error) {
	*f = protocol.Frame{}
	var h fixed
	need, f.FlawOff, err = parse(&h, b)
	if need > 0 || err != nil {
		return need, err
	}
	f.Kind = h.kind()
	f.Variant = h.proto
	f.Serialization = h.codec
	f.Flags = h.flags
	f.Len = h.total()
	f.ID = uint64(h.id)
	if h.typ == typeResponse {
		f.Status = h.status
	}
	switch f.Kind {
	case protocol.KindRequest, protocol.KindOneWay:
		// -1 is Bolt's own default and says nothing.
		if h.timeout <= 1<<31-1 {
			f.TimeoutMillis = h.timeout
		}
	case protocol.KindResponse:
		if h.status != statusSuccess || h.section == 0 {
			f.Outcome = outcome(h.status)
			return 0, nil
		}
	default:
		return 0, nil
	}
	if h.class > MaxClassName {
		f.Flaw, f.FlawOff = protocol.FlawMalformed, h.size-8
		if f.Kind == protocol.KindResponse {
			f.Outcome = outcome(h.status)
		}
		return 0, nil
	}
	if head := int(h.head()); len(b) < head {
		return head, nil
	}
	if f.Kind == protocol.KindResponse {
		return readResponse(f, &h, b), nil
	}
	readRequest(f, &h, b)
	return 0, nil
}

// ErrCRC: the CRC at the end of the frame is not that of its bytes.
var ErrCRC = errors.New("CRC mismatch")

// VerifyCRC checks the CRC of the frame at b[0]. It returns nil where the frame has none, ErrCRC where it does not
// match, protocol.ErrShort where b ends within the frame, and Decode's errors for what is not a frame.
func VerifyCRC(b []byte) error {
	var h fixed
	need, _, err := parse(&h, b)
	switch {
	case err != nil:
		return err
	case need > 0 || uint64(len(b)) < h.total():
		return protocol.ErrShort
	case !h.trailer():
		return nil
	}
	end := h.total() - crcLen
	if binary.BigEndian.Uint32(b[end:]) != crc32.ChecksumIEEE(b[:end]) {
		return ErrCRC
	}
	return nil
}

// ClassName returns the name of the class whose object the frame at b[0] carries, as a view of b; nothing where the frame has none, or b ends before its end.
func ClassName(b []byte) []byte {
	var h fixed
	if need, _, err := parse(&h, b); need > 0 || err != nil || uint64(len(b)) < uint64(h.size)+uint64(h.class) {
		return nil
	}
	return b[h.size : h.size+h.class]
}

// SerializationName returns the name of the serialization with that number (com.alipay.remoting.serialization.SerializerManager, and SOFARPC's RpcConstants):
// "hessian", "protobuf", "json"; "" for one that has none there.
func SerializationName(serialization uint8) string {
	switch serialization {
	case 1:
		return "hessian"
	case 11:
		return "protobuf"
	case 12:
		return "json"
	}
	return ""
}

// The status codes of responses (com.alipay.remoting.ResponseStatus).
const (
	statusSuccess                 = 0
	statusError                   = 1
	statusServerException         = 2
	statusUnknown                 = 3
	statusServerThreadpoolBusy    = 4
	statusErrorComm               = 5
	statusNoProcessor             = 6
	statusTimeout                 = 7
	statusClientSendError         = 8
	statusCodecException          = 9
	statusConnectionClosed        = 0x10
	statusServerSerialException   = 0x11
	statusServerDeserialException = 0x12
)

// StatusName returns Bolt's name for a status: "SUCCESS", "SERVER_THREADPOOL_BUSY"; "" for one that Bolt does not define.
func StatusName(status uint16) string {
	switch status {
	case statusSuccess:
		return "SUCCESS"
	case statusError:
		return "ERROR"
	case statusServerException:
		return "SERVER_EXCEPTION"
	case statusUnknown:
		return "UNKNOWN"
	case statusServerThreadpoolBusy:
		return "SERVER_THREADPOOL_BUSY"
	case statusErrorComm:
		return "ERROR_COMM"
	case statusNoProcessor:
		return "NO_PROCESSOR"
	case statusTimeout:
		return "TIMEOUT"
	case statusClientSendError:
		return "CLIENT_SEND_ERROR"
	case statusCodecException:
		return "CODEC_EXCEPTION"
	case statusConnectionClosed:
		return "CONNECTION_CLOSED"
	case statusServerSerialException:
		return "SERVER_SERIAL_EXCEPTION"
	case statusServerDeserialException:
		return "SERVER_DESERIAL_EXCEPTION"
	default:
		return ""
	}
}

// outcome maps a status. A status that Bolt does not define makes its client's reader fail, so it is an error.
func outcome(status uint16) protocol.Outcome {
	switch status {
	case statusSuccess:
		return protocol.OutcomeOK
	case statusServerThreadpoolBusy:
		return protocol.OutcomeOverload
	case statusNoProcessor:
		return protocol.OutcomeNotFound
	case statusTimeout:
		return protocol.OutcomeTimeout
	case statusCodecException, statusServerDeserialException:
		return protocol.OutcomeBadRequest
	case statusServerSerialException:
		return protocol.OutcomeBadResponse
	default:
		return protocol.OutcomeError
	}
}
