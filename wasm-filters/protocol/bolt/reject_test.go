package bolt

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// javaError and javaException are what SOFARPC 5.13.2 itself makes of a SofaResponse with an error message and of one that
// carries a SofaRpcException: SerializerFactory.getSerializer((byte) 1).encode(…).
const (
	javaError = "4fbe636f6d2e616c697061792e736f66612e7270632e636f72652e726573706f6e73652e536f6661526573706f6e7365940769734572726f72086572726f724d73670b" +
		"617070526573706f6e73650d726573706f6e736550726f70736f90540965727220eda0bdedb88020c3a9e4b8ad4e4e"
	javaException = "4fbe636f6d2e616c697061792e736f66612e7270632e636f72652e726573706f6e73652e536f6661526573706f6e7365940769734572726f72086572726f724d73670b" +
		"617070526573706f6e73650d726573706f6e736550726f70736f90464e4fc833636f6d2e616c697061792e736f66612e7270632e636f72652e657863657074696f6e2e536f6661" +
		"527063457863657074696f6e95096572726f72547970650d64657461696c4d6573736167650563617573650a737461636b5472616365147375707072657373656445786365" +
		"7074696f6e736f91c864086d736720686572654e5674001c5b6a6176612e6c616e672e537461636b5472616365456c656d656e746e007a567400326a6176612e7574696c2e" +
		"436f6c6c656374696f6e7324556e6d6f6469666961626c6552616e646f6d4163636573734c6973746e007a4e"
)

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// parts splits a frame into its class, header section and content.
func parts(tb testing.TB, b []byte) (class string, section, content []byte) {
	tb.Helper()
	var h fixed
	if need, _, err := parse(&h, b); need != 0 || err != nil || h.total() != uint64(len(b)) {
		tb.Fatalf("not one frame: need %d, %v, %d of %d bytes", need, err, h.total(), len(b))
	}
	head := h.head()
	return string(b[h.size : h.size+h.class]), b[h.size+h.class : head], b[head : head+h.content]
}

// requests are one request for each way in which a rejection may be framed.
func requests(tb testing.TB) map[string]protocol.Frame {
	m := map[string]protocol.Frame{}
	for _, name := range captures(tb) {
		if f := decode(tb, capture(tb, name)); f.Kind == protocol.KindRequest {
			m[name] = f
		}
	}
	return m
}

// TestRejectFraming: a rejection is a response to the request, in its version, with its CRC, behind what dst held.
func TestRejectFraming(t *testing.T) {
	for name, req := range requests(t) {
		for code := protocol.Code(0); code <= protocol.CodeTimeout+1; code++ {
			b := Codec{}.AppendReject([]byte("before"), &req, code, "no")
			if !bytes.HasPrefix(b, []byte("before")) {
				t.Fatalf("%s: dst is lost", name)
			}
			b = b[len("before"):]
			f := decode(t, b)
			if f.Kind != protocol.KindResponse || f.ID != req.ID || f.Variant != req.Variant || f.Len != uint64(len(b)) || f.Flaw != protocol.FlawNone {
				t.Errorf("%s, code %d: %+v", name, code, f)
			}
			if f.Flags&flagTrailer != req.Flags&flagTrailer {
				t.Errorf("%s, code %d: flags %#x, the request has %#x", name, code, f.Flags, req.Flags)
			}
			if err := VerifyCRC(b); err != nil {
				t.Errorf("%s, code %d: %v", name, code, err)
			}
			if f.Outcome == protocol.OutcomeOK || f.Outcome == protocol.OutcomeNone {
				t.Errorf("%s, code %d: outcome %v", name, code, f.Outcome)
			}
		}
	}
}

// TestRejectContents holds the contents to the bytes that the real implementation makes or reads.
func TestRejectContents(t *testing.T) {
	const msg = "err 😀 é中"
	exception := func(name string, errorType string) []byte {
		// The Java writer's bytes, without the fields that the Java reader sets itself: cause, stack trace, suppressed.
		b := unhex(t, javaException)
		head := b[:bytes.Index(b, []byte("O\xc8\x33"))]
		want := append(bytes.Clone(head), fmt.Sprintf("O\xc8%ccom.alipay.sofa.rpc.core.exception.%s\x92\x09errorType\x0ddetailMessageo\x91%s", 35+len(name), name, errorType)...)
		want = append(want, "\x09err \xed\xa0\xbd\xed\xb8\x80 é中"...)
		return append(want, b[len(b)-1:]...)
	}
	sofa := decode(t, capture(t, "v1-request"))
	callback := decode(t, capture(t, "v1-callback"))
	generic := decode(t, capture(t, "generic-request"))
	proto := decode(t, capture(t, "protobuf-request"))
	foreign := decode(t, capture(t, "v1-foreign-request"))
	other := sofa
	other.Serialization = 12
	bolt := append([]byte("O\xc8\x34"+serverException+"\x91\x0ddetailMessageo\x90"), "\x09err \xed\xa0\xbd\xed\xb8\x80 é中"...)
	type want struct {
		status  uint16
		codec   byte
		class   string
		section string
		content []byte
	}
	sofaWant := func(content []byte) want {
		return want{statusSuccess, SerializationHessian, sofaResponse, string(section(KeyResponseError, "true")), content}
	}
	pbWant := sofaWant([]byte(msg))
	pbWant.codec = SerializationProtobuf
	foreignWant := want{statusServerException, SerializationHessian, serverException, "", bolt}
	cases := map[string]struct {
		req  protocol.Frame
		code protocol.Code
		want want
	}{
		"throttled":            {sofa, protocol.CodeThrottled, sofaWant(exception("SofaRpcException", "\xc8\x64"))},
		"unavailable":          {sofa, protocol.CodeUnavailable, sofaWant(exception("SofaRouteException", "\xc8\xd2"))},
		"denied":               {sofa, protocol.CodeDenied, sofaWant(exception("SofaRpcException", "\xc8\xaa"))},
		"aborted":              {sofa, protocol.CodeAborted, sofaWant(exception("SofaRpcException", "\xc8\xc7"))},
		"timeout":              {sofa, protocol.CodeTimeout, sofaWant(exception("SofaTimeOutException", "\xc8\xc8"))},
		"another codec":        {other, protocol.CodeThrottled, sofaWant(exception("SofaRpcException", "\xc8\x64"))},
		"callback":             {callback, protocol.CodeThrottled, sofaWant(unhex(t, javaError))},
		"generic":              {generic, protocol.CodeTimeout, sofaWant(unhex(t, javaError))},
		"protobuf":             {proto, protocol.CodeThrottled, pbWant},
		"foreign, throttled":   {foreign, protocol.CodeThrottled, want{statusServerThreadpoolBusy, 1, "", "", nil}},
		"foreign, timeout":     {foreign, protocol.CodeTimeout, want{statusTimeout, 1, "", "", nil}},
		"foreign, denied":      {foreign, protocol.CodeDenied, foreignWant},
		"foreign, unavailable": {foreign, protocol.CodeUnavailable, foreignWant},
		"foreign, aborted":     {foreign, protocol.CodeAborted, foreignWant},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			b := Codec{}.AppendReject(nil, &c.req, c.code, msg)
			f := decode(t, b)
			class, section, content := parts(t, b)
			if f.Status != c.want.status || f.Serialization != c.want.codec || class != c.want.class || string(section) != c.want.section {
				t.Errorf("status %d, codec %d, class %q, section %q; want %+v", f.Status, f.Serialization, class, section, c.want)
			}
			if !bytes.Equal(content, c.want.content) {
				t.Errorf("content\n%x\nwant\n%x", content, c.want.content)
			}
		})
	}
}

// TestRejectMessage wants every message to arrive whole, or cut at a rune's start, as the string that Java reads.
func TestRejectMessage(t *testing.T) {
	long := strings.Repeat("é中😀x", 200)
	for name, msg := range map[string]string{
		"empty": "", "31 units": strings.Repeat("a", 31), "32 units": strings.Repeat("a", 32), "30 units and two surrogates": strings.Repeat("a", 30) + "😀",
		"256 units": strings.Repeat("中", 256), "limit": strings.Repeat("a", MaxMessage), "not UTF-8": "a\xff\xfeb\xe4\xb8", "continuations": strings.Repeat("\x80", 2*MaxMessage),
		"cut in 1": long, "cut in 2": "a" + long, "cut in 3": "aa" + long, "cut in 4": "aaa" + long, "cut in 5": "aaaa" + long,
	} {
		t.Run(name, func(t *testing.T) {
			req := decode(t, capture(t, "v1-callback"))
			_, _, content := parts(t, Codec{}.AppendReject(nil, &req, protocol.CodeThrottled, msg))
			content, ok := bytes.CutPrefix(content, []byte(responseObject+"T"))
			if !ok {
				t.Fatalf("content %x", content)
			}
			got, rest := readString(t, content)
			if string(rest) != "NN" {
				t.Errorf("%q behind the message", rest)
			}
			want := strings.ToValidUTF8(msg, "")
			if strings.ReplaceAll(got, "\ufffd", "") != want {
				if len(msg) <= MaxMessage || !strings.HasPrefix(want, got) || len(got) > MaxMessage || len(got) <= MaxMessage-4 {
					t.Errorf("message %q (%d bytes), want %q", got, len(got), want)
				}
			}
		})
	}
}

// readString reads a Hessian string the way Java does: a number of UTF-16 units, each of one to three bytes.
func readString(tb testing.TB, b []byte) (s string, rest []byte) {
	tb.Helper()
	var n int
	if b[0] == 'S' {
		n, b = int(binary.BigEndian.Uint16(b[1:])), b[3:]
	} else {
		n, b = int(b[0]), b[1:]
		if n > 31 {
			tb.Fatalf("%#x does not begin a string", n)
		}
	}
	var units []uint16
	for range n {
		switch {
		case b[0] < 0x80:
			units, b = append(units, uint16(b[0])), b[1:]
		case b[0]&0xe0 == 0xc0:
			units, b = append(units, uint16(b[0]&0x1f)<<6|uint16(b[1]&0x3f)), b[2:]
		case b[0]&0xf0 == 0xe0:
			units, b = append(units, uint16(b[0]&0xf)<<12|uint16(b[1]&0x3f)<<6|uint16(b[2]&0x3f)), b[3:]
		default:
			tb.Fatalf("%#x does not begin a unit", b[0])
		}
	}
	return string(utf16.Decode(units)), b
}

// TestProbe holds the probe to the heartbeats of real clients, but for the id.
func TestProbe(t *testing.T) {
	for req, like := range map[string]string{
		"v1-request":         "v1-heartbeat",
		"registry-publish":   "v1-heartbeat",
		"v1-foreign-request": "v1-heartbeat",
		"v2-request":         "v2-heartbeat",
		"v2-ver2-request":    "v2-ver2-heartbeat",
	} {
		f := decode(t, capture(t, req))
		f.ID = 0x89abcdef
		want := capture(t, like)
		binary.BigEndian.PutUint32(want[4+f.Variant:], 0x89abcdef) // v2 has one byte more ahead of the id
		if got := (Codec{}).AppendProbe([]byte("x"), &f); !bytes.Equal(got[1:], want) {
			t.Errorf("%s: got %x, want %x", req, got[1:], want)
		}
	}
	for name, req := range requests(t) {
		b := Codec{}.AppendProbe(nil, &req)
		f := decode(t, b)
		if f.Kind != protocol.KindHeartbeat || f.ID != req.ID || f.Variant != req.Variant || f.Len != uint64(len(b)) || f.Flags&flagTrailer != req.Flags&flagTrailer {
			t.Errorf("%s: %+v", name, f)
		}
		if err := VerifyCRC(b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
