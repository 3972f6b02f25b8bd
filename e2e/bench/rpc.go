package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"strings"
)

// An rpc is one wire format as the load generator speaks it: just enough to send the same call again and again and to
// pair responses with requests. Frames are made here by hand: made by our own codecs they would prove little.
type rpc struct {
	name string
	// request returns one two-way request that carries size bytes of argument; setID writes a call's id into it.
	request func(size int) []byte
	setID   func(frame []byte, id uint64)
	// The lengths of the fixed headers.
	requestHeader, responseHeader int
	// extent returns the whole length of the frame whose fixed header is h, its id, and whether it is a response that
	// carries a value. The length is 0 if h is not the header of a frame.
	extent func(h []byte) (n int, id uint64, ok bool)
	// respond appends the response to the request whose header is h.
	respond func(dst, h []byte) []byte

	// What only a wire format has whose connections have a state, see http2.
	hello []byte              // what a client says first
	greet []byte              // what a server says first
	skip  int                 // the length of what begins hello and is no frame, in bytes
	look  func(h []byte) int  // how many bytes behind the fixed header h part wants to see
	part  func(h []byte) bool // tells frames that do not end a request or a response
	fresh func(rpc) rpc       // the same for one more connection of a client
}

// peek returns the next frame's fixed header of n bytes, and what more part wants to see.
func (p *rpc) peek(r *bufio.Reader, n int) ([]byte, error) {
	h, err := r.Peek(n)
	if err == nil && p.look != nil {
		h, err = r.Peek(n + p.look(h))
	}
	return h, err
}

var errLost = errors.New("bench: framing lost")

// The service that the load calls, its version, the method, and the caller's name.
const (
	benchService = "org.apache.dubbo.demo.DemoService"
	benchVersion = "1.0.0"
	benchMethod  = "sayHello"
	benchCaller  = "demo-consumer"
	// benchHost is the service's host where calls are lifted, whatever protocol they are in.
	benchHost = "bench.isthmus"
	// benchTimeout, in milliseconds, is by far more than a call takes: generic_proxy answers an error when it is over.
	benchTimeout = "60000"
)

// hessianString encodes an ASCII string of at most 65535 bytes as hessian 2.0 does: short, medium (up to 1023), or one
// final chunk with 'S'.
func hessianString(v string) []byte {
	switch n := len(v); {
	case n < 32:
		return append([]byte{byte(n)}, v...)
	case n < 1024:
		return append([]byte{0x30 + byte(n>>8), byte(n)}, v...)
	default:
		return append([]byte{'S', byte(n >> 8), byte(n)}, v...)
	}
}

// dubbo speaks Dubbo2 with hessian2 as Dubbo 2.7 and 3 do by default.
var dubbo = rpc{
	name:           "Dubbo",
	requestHeader:  16,
	responseHeader: 16,
	request: func(size int) []byte {
		b := make([]byte, 16, 16+size+512)
		b[0], b[1], b[2] = 0xda, 0xbb, 0xc2
		for _, s := range []string{"2.0.2", benchService, benchVersion, benchMethod, "Ljava/lang/String;", strings.Repeat("a", size)} {
			b = append(b, hessianString(s)...)
		}
		b = append(b, 'H')
		for _, s := range []string{"path", benchService, "remote.application", benchCaller, "interface", benchService,
			"version", benchVersion, "timeout", benchTimeout} {
			b = append(b, hessianString(s)...)
		}
		b = append(b, 'Z')
		binary.BigEndian.PutUint32(b[12:], uint32(len(b)-16))
		return b
	},
	setID: func(f []byte, id uint64) { binary.BigEndian.PutUint64(f[4:], id) },
	extent: func(h []byte) (int, uint64, bool) {
		if h[0] != 0xda || h[1] != 0xbb {
			return 0, 0, false
		}
		return 16 + int(binary.BigEndian.Uint32(h[12:])), binary.BigEndian.Uint64(h[4:]), h[2]&0xa0 == 0 && h[3] == 20
	},
	respond: func(dst, h []byte) []byte {
		const body = "\x94\x05helloHZ"
		dst = append(dst, 0xda, 0xbb, 0x02, 20)
		dst = append(dst, h[4:12]...)
		dst = append(dst, 0, 0, 0, byte(len(body)))
		return append(dst, body...)
	},
}

// The classes by which Bolt's peers choose what reads a frame.
const (
	boltRequestClass  = "com.alipay.sofa.rpc.core.request.SofaRequest"
	boltResponseClass = "com.alipay.sofa.rpc.core.response.SofaResponse"
)

// bolt speaks Bolt v1 as SOFARPC 5.13 does: the header section has the keys of a real consumer's, in its order. The content, which
// nobody on the way reads, is size bytes.
var bolt = rpc{
	name:           "Bolt",
	requestHeader:  22,
	responseHeader: 20,
	request: func(size int) []byte {
		var header []byte
		for _, s := range []string{
			"sofa_head_target_service", benchService + ":" + benchVersion, "app", benchCaller,
			"rpc_trace_context.sofaRpcId", "0", "rpc_trace_context.samp", "true",
			"rpc_trace_context.sofaTraceId", "c0000202179539343578410012203", "rpc_trace_context.sofaPenAttrs", "",
			"type", "sync", "protocol", "bolt", "service", benchService + ":" + benchVersion, "rpc_trace_context.sysPenAttrs", "",
			"rpc_req_baggage.tenant", "blue", "sofa_head_method_name", benchMethod,
		} {
			header = binary.BigEndian.AppendUint32(header, uint32(len(s)))
			header = append(header, s...)
		}
		b := []byte{1, 1, 0, 1, 1, 0, 0, 0, 0, 1} // v1, request, command 1, version 1, id, hessian
		b = binary.BigEndian.AppendUint32(b, 5000)
		b = binary.BigEndian.AppendUint16(b, uint16(len(boltRequestClass)))
		b = binary.BigEndian.AppendUint16(b, uint16(len(header)))
		b = binary.BigEndian.AppendUint32(b, uint32(size))
		b = append(b, boltRequestClass...)
		b = append(b, header...)
		return append(b, strings.Repeat("a", size)...)
	},
	setID: func(f []byte, id uint64) { binary.BigEndian.PutUint32(f[5:], uint32(id)) },
	extent: func(h []byte) (int, uint64, bool) {
		if h[0] != 1 || h[1] > 1 {
			return 0, 0, false
		}
		response, lengths := h[1] == 0, h[12:]
		n := 20
		if !response {
			n, lengths = 22, h[14:]
		}
		n += int(binary.BigEndian.Uint16(lengths)) + int(binary.BigEndian.Uint16(lengths[2:])) + int(binary.BigEndian.Uint32(lengths[4:]))
		return n, uint64(binary.BigEndian.Uint32(h[5:])), response && h[10] == 0 && h[11] == 0
	},
	respond: func(dst, h []byte) []byte {
		// The content begins as a SofaResponse without an error does: after the class's definition its first field, isError, is F.
		const content = "O\xbe" + boltResponseClass + "\x94\x07isError\x08errorMsg\x0bappResponse\x0dresponsePropso\x90FN\x05helloN"
		dst = append(dst, 1, 0, 0, 2, 1)
		dst = append(dst, h[5:9]...)
		dst = append(dst, 1, 0, 0)
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(boltResponseClass)))
		dst = append(dst, 0, 0)
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(content)))
		dst = append(dst, boltResponseClass...)
		return append(dst, content...)
	},
}
