package bolt

import (
	"bytes"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// TestReply: the content of a reply is, byte for byte, what SOFARPC itself sends up to the value, and null in the place of the
// properties that follow. The captured responses return short strings.
func TestReply(t *testing.T) {
	found := 0
	for _, name := range captures(t) {
		b := capture(t, name)
		f := decode(t, b)
		if f.Kind != protocol.KindResponse || f.Outcome != protocol.OutcomeOK || f.Serialization != SerializationHessian {
			continue
		}
		class, _, content := parts(t, b)
		rest, ok := bytes.CutPrefix(content, []byte(responseObject+noErrorMsg))
		if !ok || class != sofaResponse || rest[0] >= 32 || len(rest) < 2+int(rest[0]) {
			continue
		}
		found++
		value := rest[:1+rest[0]]
		req := protocol.Frame{Kind: protocol.KindRequest, ID: f.ID, Serialization: f.Serialization, Variant: f.Variant, Flags: f.Flags}
		got := Codec{}.AppendReply([]byte("before"), &req, value)
		gotClass, section, gotContent := parts(t, bytes.TrimPrefix(got, []byte("before")))
		want := string(content[:len(content)-len(rest)+len(value)]) + noProps
		if gotClass != sofaResponse || len(section) > 0 || string(gotContent) != want {
			t.Errorf("%s: class %s, content\n%x, want\n%x", name, gotClass, gotContent, want)
		}
	}
	if found < 3 {
		t.Errorf("%d captured responses", found)
	}
}

// TestReplyFraming: for every request a reply is one frame that says so, with the value in it.
func TestReplyFraming(t *testing.T) {
	for name, req := range requests(t) {
		for _, serialization := range []uint8{req.Serialization, SerializationProtobuf} {
			req.Serialization = serialization
			b := Codec{}.AppendReply(nil, &req, []byte("\x05hello"))
			f := decode(t, b)
			if f.Kind != protocol.KindResponse || f.ID != req.ID || f.Variant != req.Variant || f.Len != uint64(len(b)) || f.Outcome != protocol.OutcomeOK ||
				f.Serialization != serialization {
				t.Errorf("%s: %+v", name, f)
			}
			if err := VerifyCRC(b); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if _, _, content := parts(t, b); !bytes.Contains(content, []byte("\x05hello")) {
				t.Errorf("%s: %x", name, b)
			}
			dst := make([]byte, 0, 1024)
			if n := testing.AllocsPerRun(100, func() { Codec{}.AppendReply(dst, &req, []byte("\x05hello")) }); n != 0 {
				t.Errorf("%s: %v allocations", name, n)
			}
		}
	}
}
