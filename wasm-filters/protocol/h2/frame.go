package h2

import "encoding/binary"

// Type is the type of a frame (RFC 9113, section 6).
type Type uint8

// The types of frames. Others are ignored.
const (
	TypeData Type = iota
	TypeHeaders
	TypePriority
	TypeResetStream
	TypeSettings
	TypePushPromise
	TypePing
	TypeGoAway
	TypeWindowUpdate
	TypeContinuation
)

// The flags of frames. FlagAck is for SETTINGS and PING, where FlagEndStream has no meaning.
const (
	FlagEndStream  = 0x1
	FlagAck        = 0x1
	FlagEndHeaders = 0x4
	FlagPadded     = 0x8
	FlagPriority   = 0x20
)

// Code is an error code (RFC 9113, section 7).
type Code uint32

// The error codes. The zero value is NoError.
const (
	NoError Code = iota
	ProtocolError
	InternalError
	FlowControlError
	SettingsTimeout
	StreamClosed
	FrameSizeError
	RefusedStream
	Cancel
	CompressionError
	ConnectError
	EnhanceYourCalm
	InadequateSecurity
	HTTP11Required
)

// String returns the code as the RFC names it, in lower case: "refused_stream".
func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return "unknown"
}

var codeNames = [...]string{
	"no_error", "protocol_error", "internal_error", "flow_control_error", "settings_timeout", "stream_closed", "frame_size_error",
	"refused_stream", "cancel", "compression_error", "connect_error", "enhance_your_calm", "inadequate_security", "http_1_1_required",
}

// Preface is what a client sends first (RFC 9113, section 3.4).
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

const (
	// HeaderLen is the length in bytes of a frame's header.
	HeaderLen = 9
	// MaxFrame is the longest payload in bytes that we accept, and the longest that any peer does.
	MaxFrame = 16384
	// MaxWindow is the largest window in bytes that there is.
	MaxWindow = 1<<31 - 1
	// MaxStream is the highest stream id.
	MaxStream = 1<<31 - 1
	// DefaultWindow is a window's size before anyone has spoken, in bytes.
	DefaultWindow = 65535
)

// Header is the header of a frame.
type Header struct {
	Length uint32 // of the payload, in bytes
	Type   Type
	Flags  uint8
	Stream uint32 // 0 is the connection
}

// ParseHeader reads a header. b has at least HeaderLen bytes.
func ParseHeader(b []byte) Header {
	b = b[:HeaderLen]
	return Header{
		Length: uint32(b[0])<<16 | uint32(b[1])<<8 | uint32(b[2]),
		Type:   Type(b[3]),
		Flags:  b[4],
		Stream: binary.BigEndian.Uint32(b[5:]) &^ (1 << 31),
	}
}

// AppendHeader appends a header.
func AppendHeader(dst []byte, h Header) []byte {
	return append(dst, byte(h.Length>>16), byte(h.Length>>8), byte(h.Length), byte(h.Type), h.Flags,
		byte(h.Stream>>24), byte(h.Stream>>16), byte(h.Stream>>8), byte(h.Stream))
}

// AppendReset appends a RST_STREAM.
func AppendReset(dst []byte, stream uint32, code Code) []byte {
	dst = AppendHeader(dst, Header{Length: 4, Type: TypeResetStream, Stream: stream})
	return binary.BigEndian.AppendUint32(dst, uint32(code))
}

// AppendPing appends a PING that is to be answered, with data in it.
func AppendPing(dst []byte, data uint64) []byte {
	dst = AppendHeader(dst, Header{Length: 8, Type: TypePing})
	return binary.BigEndian.AppendUint64(dst, data)
}

func appendWindowUpdate(dst []byte, stream, n uint32) []byte {
	dst = AppendHeader(dst, Header{Length: 4, Type: TypeWindowUpdate, Stream: stream})
	return binary.BigEndian.AppendUint32(dst, n)
}

// AppendHeaders appends a header block in as many frames as it takes. end says that nothing follows in the stream.
func AppendHeaders(dst []byte, stream uint32, block []byte, end bool) []byte {
	h := Header{Type: TypeHeaders, Stream: stream}
	if end {
		h.Flags = FlagEndStream
	}
	for {
		n := min(len(block), MaxFrame)
		if n == len(block) {
			h.Flags |= FlagEndHeaders
		}
		h.Length = uint32(n)
		dst = append(AppendHeader(dst, h), block[:n]...)
		if block = block[n:]; len(block) == 0 {
			return dst
		}
		h.Type, h.Flags = TypeContinuation, 0
	}
}

// AppendData appends data in as many frames as it takes, one at least. end says that nothing follows in the stream.
func AppendData(dst []byte, stream uint32, data []byte, end bool) []byte {
	h := Header{Type: TypeData, Stream: stream}
	for {
		n := min(len(data), MaxFrame)
		if n == len(data) && end {
			h.Flags = FlagEndStream
		}
		h.Length = uint32(n)
		dst = append(AppendHeader(dst, h), data[:n]...)
		if data = data[n:]; len(data) == 0 {
			return dst
		}
	}
}
