package bolt

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// capture returns the frame in testdata/frames/<name>, which a real peer sent: SOFARPC 5.13.2, Bolt 1.6.10 or
// SOFARegistry 6.3.0.
func capture(tb testing.TB, name string) []byte {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "frames", name, "in.hex"))
	if err != nil {
		tb.Fatal(err)
	}
	b, err := hex.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil {
		tb.Fatalf("%s: %v", name, err)
	}
	return b
}

// captures returns the names of all captured frames.
func captures(tb testing.TB) []string {
	tb.Helper()
	dirs, err := filepath.Glob(filepath.Join("testdata", "frames", "*", "in.hex"))
	if err != nil || len(dirs) == 0 {
		tb.Fatalf("no captured frames: %v", err)
	}
	names := make([]string, len(dirs))
	for i, d := range dirs {
		names[i] = filepath.Base(filepath.Dir(d))
	}
	return names
}

// draft is a frame to be built. The zero value is a v1 response with status 0.
type draft struct {
	proto   byte // 0 is V1
	ver1    byte // v2 only; 0 is 1
	typ     byte
	cmd     uint16
	id      uint32
	codec   byte
	swtch   byte
	timeout int32
	status  uint16
	class   string
	section []byte
	content string
}

// request is a SOFARPC request with the pairs as its header section.
func request(pairs ...string) draft {
	return draft{typ: typeRequest, cmd: cmdRequest, id: 7, codec: SerializationHessian, timeout: 3000, class: sofaRequest, section: section(pairs...), content: "body"}
}

// response is a SOFARPC response with the pairs as its header section.
func response(pairs ...string) draft {
	return draft{typ: typeResponse, cmd: cmdResponse, id: 7, codec: SerializationHessian, class: sofaResponse, section: section(pairs...), content: "body"}
}

// section builds a header section; an odd number of pairs leaves a key without a value.
func section(pairs ...string) []byte {
	var b []byte
	for _, s := range pairs {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return b
}

// build writes the frame as Bolt's encoders do, CRC included.
func (d draft) build() []byte {
	proto := d.proto
	if proto == 0 {
		proto = V1
	}
	b := []byte{proto}
	if proto == V2 {
		b = append(b, max(d.ver1, 1))
	}
	b = append(b, d.typ)
	b = binary.BigEndian.AppendUint16(b, d.cmd)
	b = append(b, 1)
	b = binary.BigEndian.AppendUint32(b, d.id)
	b = append(b, d.codec)
	if proto == V2 {
		b = append(b, d.swtch)
	}
	if d.typ == typeResponse {
		b = binary.BigEndian.AppendUint16(b, d.status)
	} else {
		b = binary.BigEndian.AppendUint32(b, uint32(d.timeout))
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(d.class)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(d.section)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(d.content)))
	b = append(b, d.class...)
	b = append(b, d.section...)
	b = append(b, d.content...)
	if proto == V2 && d.ver1 == 2 && d.swtch&1 != 0 {
		b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	}
	return b
}

// decode decodes a whole frame.
func decode(tb testing.TB, b []byte) protocol.Frame {
	tb.Helper()
	var f protocol.Frame
	if need, err := (Codec{}).Decode(&f, b); need != 0 || err != nil {
		tb.Fatalf("Decode: need %d, %v (offset %d)", need, err, f.FlawOff)
	}
	return f
}
