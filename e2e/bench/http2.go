package main

import (
	"bytes"
	"encoding/binary"
	"sync/atomic"
)

// The frames of HTTP/2 that matter here, and their flags (RFC 9113, section 6).
const (
	h2Data, h2Headers, h2Reset, h2Settings, h2GoAway, h2WindowUpdate byte = 0, 1, 3, 4, 7, 8

	h2EndStream, h2EndHeaders byte = 1, 4
)

const (
	// h2Preface is what a client's side of a connection begins with (RFC 9113, section 3.4).
	h2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	// h2OK is ":status: 200", and h2Static ":method: POST" and ":scheme: http", as indexes into HTTP/2's own table (RFC 7541, appendix A).
	h2OK     = "\x88"
	h2Static = "\x83\x86"
	// h2Latest is the index of the entry that was put into a connection's table last.
	h2Latest = 62
	// h2Credit is after how many streams a server gives back what they have taken of the connection's window.
	h2Credit = 8192
	// h2Ring is more than the calls of a connection that are in flight.
	h2Ring = 4096
)

// h2Frame appends a frame.
func h2Frame(dst []byte, kind, flags byte, stream uint32, payload ...byte) []byte {
	n := len(payload)
	dst = append(dst, byte(n>>16), byte(n>>8), byte(n), kind, flags)
	dst = binary.BigEndian.AppendUint32(dst, stream)
	return append(dst, payload...)
}

// h2Length is how many bytes a frame carries.
func h2Length(h []byte) uint32 { return uint32(h[0])<<16 | uint32(h[1])<<8 | uint32(h[2]) }

// h2Open has the other side send as much as it likes: the largest window for each stream, and half of the largest for the connection, so that
// it may be given back more than was taken.
var h2Open = h2Frame(h2Frame(nil, h2Settings, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff), h2WindowUpdate, 0, 0, 0x3f, 0xff, 0, 0)

// h2Fields are the headers of a call as lifting writes them, beside those of h2Static.
var h2Fields = [][2]string{
	{":path", "/" + benchService + "/" + benchMethod}, {":authority", benchHost}, {"content-type", "application/x-isthmus-dubbo"},
	{"x-isthmus-protocol", "dubbo"}, {"x-isthmus-service", benchService}, {"x-isthmus-version", benchVersion},
	{"x-isthmus-method", benchMethod}, {"x-isthmus-caller", benchCaller}, {"x-envoy-upstream-rq-timeout-ms", benchTimeout},
}

// h2Answer are those of a response as lowering writes them, beside h2OK.
var h2Answer = [][2]string{{"content-type", "application/x-isthmus-dubbo"}, {"x-isthmus-outcome", "ok"}, {"grpc-status", "0"}}

// h2First is the header block that puts fields into the other side's table, and h2Next the one that names them there, as everybody
// does who says the same again and again. Both begin with what is in HTTP/2's own table.
func h2First(static string, fields [][2]string) []byte {
	b := []byte(static)
	for _, f := range fields {
		b = append(append(b, 0x40, byte(len(f[0]))), f[0]...)
		b = append(append(b, byte(len(f[1]))), f[1]...)
	}
	return b
}

func h2Next(static string, fields [][2]string) []byte {
	b := []byte(static)
	for i := range fields {
		b = append(b, 0x80|byte(h2Latest+len(fields)-1-i))
	}
	return b
}

var h2FirstAnswer, h2Answered = h2First(h2OK, h2Answer), h2Next(h2OK, h2Answer)

// http2 makes HTTP/2 requests with bodies as long as Dubbo's frames, and as many headers as lifted calls have, in both directions. The first stream of a
// connection is that of its hello, whose answer is not looked at.
var http2 = rpc{
	name:           "HTTP/2",
	requestHeader:  9,
	responseHeader: 9,
	hello:          h2Frame(append([]byte(h2Preface), h2Open...), h2Headers, h2EndHeaders|h2EndStream, 1, h2First(h2Static, h2Fields)...),
	greet:          h2Open,
	skip:           len(h2Preface),
	extent:         func(h []byte) (int, uint64, bool) { return 9 + int(h2Length(h)), 0, false },
	part:           func(h []byte) bool { return h[3] != h2Headers && h[3] != h2Data || h[4]&h2EndStream == 0 },
	respond: func(dst, h []byte) []byte {
		stream := binary.BigEndian.Uint32(h[5:])
		head := h2Answered
		if stream == 1 { // the first of the connection
			head = h2FirstAnswer
		}
		dst = h2Frame(dst, h2Headers, h2EndHeaders, stream, head...)
		dst = h2Frame(dst, h2Data, h2EndStream, stream, []byte("hello")...)
		if stream > 1 && stream/2%h2Credit == 0 {
			// The last frame of most of them had as many; those of hellos had none.
			dst = h2Frame(dst, h2WindowUpdate, 0, 0, binary.BigEndian.AppendUint32(nil, h2Credit*max(h2Length(h), 1))...)
		}
		return dst
	},
	fresh: h2Client,
}

// h2Client is a client's side of one connection. Streams must begin in the order of their numbers, whatever order calls end in, so each call
// gets the next one.
func h2Client(p rpc) rpc {
	stream := uint32(1)
	calls := new([h2Ring]atomic.Uint64) // the call of a stream
	headers := h2Frame(nil, h2Headers, h2EndHeaders, 0, h2Next(h2Static, h2Fields)...)
	p.request = func(size int) []byte {
		return h2Frame(headers[:len(headers):len(headers)], h2Data, h2EndStream, 0, bytes.Repeat([]byte("a"), len(dubbo.request(size)))...)
	}
	p.setID = func(f []byte, id uint64) {
		stream += 2
		calls[stream/2%h2Ring].Store(id)
		binary.BigEndian.PutUint32(f[5:], stream)
		binary.BigEndian.PutUint32(f[len(headers)+5:], stream)
	}
	p.extent = func(h []byte) (int, uint64, bool) {
		if h[3] == h2Reset || h[3] == h2GoAway {
			return 0, 0, false
		}
		return 9 + int(h2Length(h)), calls[binary.BigEndian.Uint32(h[5:])/2%h2Ring].Load(), h[3] == h2Data
	}
	p.look = func(h []byte) int {
		if h[3] == h2Headers {
			return 1
		}
		return 0
	}
	p.part = func(h []byte) bool {
		switch {
		case binary.BigEndian.Uint32(h[5:]) == 1:
			return true
		case h[3] == h2Headers: // an answer that is not 200 is over with them
			return h[9] == h2OK[0]
		}
		return h[3] != h2Data || h[4]&h2EndStream == 0
	}
	return p
}
