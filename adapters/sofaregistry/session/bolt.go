package session

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Bolt version 1, as far as the session protocol uses it (com.alipay.remoting.rpc.protocol.RpcProtocol): a request has 22 bytes of
// header, a response 20, then the class name, a header section that sessions leave empty, and the content.
const (
	boltV1 = 1

	typeResponse      = 0
	typeRequest       = 1
	typeRequestOneway = 2

	cmdHeartbeat = 0
	cmdRequest   = 1
	cmdResponse  = 2

	codecHessian  = 1
	codecProtobuf = 11 // ProtobufCustomSerializer.PROTOCOL_PROTOBUF of SOFARegistry

	requestHeader  = 22
	responseHeader = 20
)

// Status of a response (com.alipay.remoting.ResponseStatus), by which a peer says that it could not handle a request.
const (
	statusSuccess     = 0
	statusError       = 1
	statusNoProcessor = 6
	statusCodec       = 9
)

func statusText(s uint16) string {
	switch s {
	case statusSuccess:
		return "success"
	case statusError:
		return "error"
	case 2:
		return "server exception"
	case 3:
		return "unknown"
	case 4:
		return "thread pool busy"
	case 5:
		return "communication error"
	case statusNoProcessor:
		return "no processor for this class"
	case 7:
		return "timeout"
	case statusCodec:
		return "codec error"
	case 17:
		return "the server could not serialize"
	case 18:
		return "the server could not deserialize"
	}
	return fmt.Sprintf("status %d", s)
}

// frame is one Bolt message.
type frame struct {
	typ     byte
	cmd     uint16
	id      uint32
	codec   byte
	timeout int32  // of a request, ms
	status  uint16 // of a response
	class   string
	content []byte
	whole   int // length of the content on the wire; more than len(content) if the rest was dropped
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

var errFraming = errors.New("session: the server does not speak Bolt version 1")

// readFrame reads the next frame. Content beyond limit bytes is read and dropped but for its beginning, as the connection is fine
// otherwise. Memory grows with what has arrived, not with what was announced.
func readFrame(r *bufio.Reader, limit int) (f frame, err error) {
	head, err := r.Peek(responseHeader)
	if err != nil {
		return f, err
	}
	if head[0] != boltV1 {
		return f, fmt.Errorf("%w: its first byte is %#02x", errFraming, head[0])
	}
	f.typ, f.cmd, f.id, f.codec = head[1], binary.BigEndian.Uint16(head[2:]), binary.BigEndian.Uint32(head[5:]), head[9]
	var lengths []byte
	switch f.typ {
	case typeRequest, typeRequestOneway:
		if head, err = r.Peek(requestHeader); err != nil {
			return f, err
		}
		f.timeout = int32(binary.BigEndian.Uint32(head[10:]))
		lengths = head[14:]
	case typeResponse:
		f.status = binary.BigEndian.Uint16(head[10:])
		lengths = head[12:]
	default:
		return f, fmt.Errorf("%w: a frame is of type %d", errFraming, f.typ)
	}
	class, header := int(binary.BigEndian.Uint16(lengths)), int(binary.BigEndian.Uint16(lengths[2:]))
	f.whole = int(int32(binary.BigEndian.Uint32(lengths[4:])))
	switch {
	case class > maxClassName:
		return f, fmt.Errorf("%w: a class name of %d bytes", errFraming, class)
	case header > maxHeaderLen:
		return f, fmt.Errorf("%w: a header section of %d bytes", errFraming, header)
	case f.whole < 0 || f.whole > maxFrame:
		return f, fmt.Errorf("%w: content of %d bytes", errFraming, f.whole)
	}
	if _, err = r.Discard(len(head)); err != nil {
		return f, err
	}
	name := make([]byte, class)
	if _, err = io.ReadFull(r, name); err != nil {
		return f, err
	}
	f.class = string(name)
	if _, err = r.Discard(header); err != nil {
		return f, err
	}
	keep := f.whole
	if keep > limit {
		keep = min(keepOversized, limit)
	}
	if f.content, err = readGrowing(r, keep); err != nil {
		return f, err
	}
	_, err = io.CopyN(io.Discard, r, int64(f.whole-keep))
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

// appendFrame writes a frame.
func appendFrame(dst []byte, f frame) []byte {
	dst = append(dst, boltV1, f.typ)
	dst = binary.BigEndian.AppendUint16(dst, f.cmd)
	dst = append(dst, 1) // version of the command's layout
	dst = binary.BigEndian.AppendUint32(dst, f.id)
	dst = append(dst, f.codec)
	if f.typ == typeResponse {
		dst = binary.BigEndian.AppendUint16(dst, f.status)
	} else {
		dst = binary.BigEndian.AppendUint32(dst, uint32(f.timeout))
	}
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(f.class)))
	dst = binary.BigEndian.AppendUint16(dst, 0)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(f.content)))
	dst = append(dst, f.class...)
	return append(dst, f.content...)
}
