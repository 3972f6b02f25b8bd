package bolt

import (
	"bytes"
	"errors"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// FuzzDifferential holds what Decode reads of a request to a second reader, written after SOFARPC's SimpleMapSerializer:
// where the header section has no flaw, both must see the same last value of each key.
func FuzzDifferential(f *testing.F) {
	for _, name := range captures(f) {
		b := capture(f, name)
		var h fixed
		if _, _, err := parse(&h, b); err == nil {
			f.Add(b[h.size+h.class : h.head()])
		}
	}
	f.Add(section(KeyService, "a:1:2", KeyService, "", KeyTargetService, "b"))
	f.Add([]byte("\xff\xff\xff\xff\x00\x00\x00\x01a\x00\x00\x00\x03app\x80\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, sec []byte) {
		if len(sec) > maxLength {
			return
		}
		d := request()
		d.section = sec
		b := d.build()
		fr := decode(t, b)
		want := map[string]string{}
		for in := bytes.NewReader(sec); in.Len() > 0; {
			k, kok := readJava(in)
			v, vok := readJava(in)
			if kok && vok {
				want[k] = v
			}
		}
		got := map[string]string{}
		err := Codec{}.VisitAttachments(&fr, b, func(k, v []byte) bool { got[string(k)] = string(v); return true })
		if (err != nil) != (fr.Flaw != protocol.FlawNone) || err != nil && !errors.Is(err, protocol.ErrMalformed) {
			t.Fatalf("%v with flaw %v", err, fr.Flaw)
		}
		if err != nil {
			return // Java makes up bytes where a length lies
		}
		if len(got) != len(want) {
			t.Fatalf("got %q, want %q", got, want)
		}
		for k, v := range want {
			if got[k] != v {
				t.Fatalf("%q is %q, want %q", k, got[k], v)
			}
		}
		if string(fr.Method.Of(b)) != want[KeyMethod] {
			t.Fatalf("method %q, want %q", fr.Method.Of(b), want[KeyMethod])
		}
	})
}

// readJava is SimpleMapSerializer.readString: at the end of the input, read returns -1, whose low byte is ff.
func readJava(in *bytes.Reader) (s string, ok bool) {
	var n int32
	for range 4 {
		c, err := in.ReadByte()
		if err != nil {
			c = 0xff
		}
		n = n<<8 | int32(c)
	}
	if n < 0 {
		return "", false
	}
	b := make([]byte, min(int(n), in.Len()))
	if _, err := in.Read(b); err != nil && len(b) > 0 {
		return "", false
	}
	return string(b), true
}
