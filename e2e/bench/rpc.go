package main

import (
	"encoding/binary"
	"errors"
	"strings"
)

// An rpc is one wire format as the load generator speaks it: just enough to send the same call again and again and to
// pair responses with requests.
type rpc struct {
	name string
	// request returns one two-way request whose argument is a string of size bytes; setID writes a call's id into it.
	request func(size int) []byte
	setID   func(frame []byte, id uint64)
	// header is the fixed header's length; extent returns the whole frame's length, its id, and whether it is a response
	// that carries a value.
	header int
	extent func(h []byte) (n int, id uint64, ok bool)
	// respond appends the response to the request whose header is h.
	respond func(dst, h []byte) []byte
}

var errLost = errors.New("bench: framing lost")

// The service that the load calls, the method, and the caller's name.
const (
	benchService = "org.apache.dubbo.demo.DemoService"
	benchMethod  = "sayHello"
	benchCaller  = "demo-consumer"
)

// hessianString encodes an ASCII string as hessian 2.0 does: short, medium (up to 1023), or one final chunk with 'S'.
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
	name:   "dubbo",
	header: 16,
	request: func(size int) []byte {
		b := make([]byte, 16, 16+size+512)
		b[0], b[1], b[2] = 0xda, 0xbb, 0xc2
		for _, s := range []string{"2.0.2", benchService, "1.0.0", benchMethod, "Ljava/lang/String;", strings.Repeat("a", size)} {
			b = append(b, hessianString(s)...)
		}
		b = append(b, 'H')
		for _, s := range []string{"path", benchService, "remote.application", benchCaller, "interface", benchService,
			"version", "1.0.0", "timeout", "1000"} {
			b = append(b, hessianString(s)...)
		}
		b = append(b, 'Z')
		binary.BigEndian.PutUint32(b[12:], uint32(len(b)-16))
		return b
	},
	setID: func(f []byte, id uint64) { binary.BigEndian.PutUint64(f[4:], id) },
	extent: func(h []byte) (int, uint64, bool) {
		return 16 + int(binary.BigEndian.Uint32(h[12:])), binary.BigEndian.Uint64(h[4:]), h[2]&0xa0 == 0 && h[3] == 20
	},
	respond: func(dst, h []byte) []byte {
		body := []byte("\x94\x05helloHZ")
		dst = append(dst, 0xda, 0xbb, 0x02, 20)
		dst = append(dst, h[4:12]...)
		dst = append(dst, 0, 0, 0, byte(len(body)))
		return append(dst, body...)
	},
}
