// Package wire reads and writes what SOFARegistry's session servers and their clients say to each other: frames of Bolt version 1 with
// messages in Hessian or Protobuf. Lengths, depth and number of what is read are bounded; nothing is retained of the bytes given.
package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const boltV1 = 1

// Types of frames (com.alipay.remoting.rpc.RpcCommandType).
const (
	TypeResponse = 0
	TypeRequest  = 1
	TypeOneway   = 2 // a request that is not answered
)

// Commands (RpcCommandCode, CommonCommandCode).
const (
	CommandHeartbeat = 0
	CommandRequest   = 1
	CommandResponse  = 2
)

// Codecs.
const (
	CodecHessian  = 1
	CodecProtobuf = 11 // ProtobufCustomSerializer.PROTOCOL_PROTOBUF of SOFARegistry
)

const (
	requestHeader  = 22
	responseHeader = 20
)

// Statuses of a response, by which a peer says that it could not handle a request (com.alipay.remoting.ResponseStatus).
const (
	StatusSuccess     = 0
	StatusError       = 1
	StatusNoProcessor = 6
	StatusCodec       = 9
)

// StatusText returns what a status means.
func StatusText(s uint16) string {
	switch s {
	case StatusSuccess:
		return "success"
	case StatusError:
		return "error"
	case 2:
		return "server exception"
	case 3:
		return "unknown"
	case 4:
		return "thread pool busy"
	case 5:
		return "communication error"
	case StatusNoProcessor:
		return "no processor for this class"
	case 7:
		return "timeout"
	case StatusCodec:
		return "codec error"
	case 17:
		return "the server could not serialize"
	case 18:
		return "the server could not deserialize"
	}
	return fmt.Sprintf("status %d", s)
}

// Frame is one message of Bolt version 1, as far as the session protocol uses it (com.alipay.remoting.rpc.protocol.RpcProtocol): a
// request has 22 bytes of header, a response 20, then the class name, a header section that sessions leave empty, and the content.
type Frame struct {
	Type    byte
	Command uint16
	ID      uint32 // of a request, and of the response to it
	Codec   byte
	Timeout int32  // of a request, ms
	Status  uint16 // of a response
	Class   string // Java name of what is in Content; "" for heartbeats
	Content []byte
	Whole   int // length of the content on the wire; more than len(Content) if the rest was dropped. Not written
}

// Bounds on what is read of a frame.
const (
	maxClassName = 256     // the longest that the protocol uses has 54
	maxHeaderLen = 4 << 10 // sessions send none
	// maxFrame is the longest frame that is read and dropped. A peer that announces more is not believed.
	maxFrame = 512 << 20
	// keepOversized is how much is kept of content that is beyond the limit: enough to say which data it is about.
	keepOversized = 4 << 10
)

// ErrFraming is wrapped by every error of ReadFrame that is about what was read.
var ErrFraming = errors.New("the peer does not speak Bolt version 1")

// ReadFrame reads the next Frame. Content beyond limit bytes is read and dropped but for its beginning, as the connection is fine
// otherwise. Memory grows with what has arrived, not with what was announced.
func ReadFrame(r *bufio.Reader, limit int) (f Frame, err error) {
	head, err := r.Peek(responseHeader)
	if err != nil {
		return f, err
	}
	if head[0] != boltV1 {
		return f, fmt.Errorf("%w: its first byte is %#02x", ErrFraming, head[0])
	}
	f.Type, f.Command, f.ID, f.Codec = head[1], binary.BigEndian.Uint16(head[2:]), binary.BigEndian.Uint32(head[5:]), head[9]
	var lengths []byte
	switch f.Type {
	case TypeRequest, TypeOneway:
		if head, err = r.Peek(requestHeader); err != nil {
			return f, err
		}
		f.Timeout = int32(binary.BigEndian.Uint32(head[10:]))
		lengths = head[14:]
	case TypeResponse:
		f.Status = binary.BigEndian.Uint16(head[10:])
		lengths = head[12:]
	default:
		return f, fmt.Errorf("%w: a frame is of type %d", ErrFraming, f.Type)
	}
	class, header := int(binary.BigEndian.Uint16(lengths)), int(binary.BigEndian.Uint16(lengths[2:]))
	f.Whole = int(int32(binary.BigEndian.Uint32(lengths[4:])))
	switch {
	case class > maxClassName:
		return f, fmt.Errorf("%w: a class name of %d bytes", ErrFraming, class)
	case header > maxHeaderLen:
		return f, fmt.Errorf("%w: a header section of %d bytes", ErrFraming, header)
	case f.Whole < 0 || f.Whole > maxFrame:
		return f, fmt.Errorf("%w: content of %d bytes", ErrFraming, f.Whole)
	}
	if _, err = r.Discard(len(head)); err != nil {
		return f, err
	}
	name := make([]byte, class)
	if _, err = io.ReadFull(r, name); err != nil {
		return f, err
	}
	f.Class = string(name)
	if _, err = r.Discard(header); err != nil {
		return f, err
	}
	keep := f.Whole
	if keep > limit {
		keep = min(keepOversized, limit)
	}
	if f.Content, err = readGrowing(r, keep); err != nil {
		return f, err
	}
	_, err = io.CopyN(io.Discard, r, int64(f.Whole-keep))
	return f, err
}

// readGrowing reads n bytes, taking memory as they come.
func readGrowing(r io.Reader, n int) ([]byte, error) {
	const step = 256 << 10
	b := make([]byte, min(n, step))
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	for len(b) < n {
		have := len(b)
		b = append(b, make([]byte, min(n-have, max(have, step)))...)
		if _, err := io.ReadFull(r, b[have:]); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// AppendFrame appends a frame to dst.
func AppendFrame(dst []byte, f Frame) []byte {
	dst = append(dst, boltV1, f.Type)
	dst = binary.BigEndian.AppendUint16(dst, f.Command)
	dst = append(dst, 1) // version of the command's layout
	dst = binary.BigEndian.AppendUint32(dst, f.ID)
	dst = append(dst, f.Codec)
	if f.Type == TypeResponse {
		dst = binary.BigEndian.AppendUint16(dst, f.Status)
	} else {
		dst = binary.BigEndian.AppendUint32(dst, uint32(f.Timeout))
	}
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(f.Class)))
	dst = binary.BigEndian.AppendUint16(dst, 0)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(f.Content)))
	dst = append(dst, f.Class...)
	return append(dst, f.Content...)
}
