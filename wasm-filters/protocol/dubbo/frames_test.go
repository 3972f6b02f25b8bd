package dubbo

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/hessian2"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/protocoltest"
)

// draft is a frame to be built. Its body is written by hand, for what Dubbo's own writers would never send too.
type draft struct {
	flags  byte
	status byte
	id     uint64
	body   string
}

func (d draft) build() []byte {
	b := []byte{magicHigh, magicLow, d.flags, d.status}
	b = binary.BigEndian.AppendUint64(b, d.id)
	b = binary.BigEndian.AppendUint32(b, uint32(len(d.body)))
	return append(b, d.body...)
}

const twoWay = flagRequest | flagTwoWay | SerializationHessian2

// text is s as a string in Hessian.
func text(s string) string { return string(hessian2.AppendString(nil, s)) }

// invocation is the body of a request: the leading strings, then rest as it is.
func invocation(path, version, method, descriptor, rest string) string {
	return text("2.0.2") + text(path) + text(version) + text(method) + text(descriptor) + rest
}

// attachments is a map of strings.
func attachments(pairs ...string) string {
	s := "H"
	for _, p := range pairs {
		s += text(p)
	}
	return s + "Z"
}

// frame returns the frame in testdata/frames/<name>, which a real peer sent: Dubbo 3.3.6.
func frame(tb testing.TB, name string) []byte {
	tb.Helper()
	b, ok := protocoltest.Frames(tb, framesDir)[name]
	if !ok {
		tb.Fatalf("no frame %s", name)
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

// visited returns the attachments of a whole frame, key and value in turn.
func visited(f *protocol.Frame, b []byte) (pairs []string, err error) {
	err = Codec{}.VisitAttachments(f, b, func(k, v []byte) bool {
		pairs = append(pairs, string(k), string(v))
		return true
	})
	return pairs, err
}

// sample1K is a call with one string of 1 KiB and the attachments that Dubbo 3 sends.
func sample1K() []byte {
	return draft{flags: twoWay, id: 1, body: invocation("com.example.shop.api.OrderService", "1.0.0", "placeOrder", "Ljava/lang/String;",
		text(strings.Repeat("a", 1024))+attachments("path", "com.example.shop.api.OrderService", "remote.application", "shop-frontend",
			"interface", "com.example.shop.api.OrderService", "version", "1.0.0", "timeout", "5000", "group", "blue"))}.build()
}

func BenchmarkDecode1K(b *testing.B) {
	in := sample1K()
	var f protocol.Frame
	for b.Loop() {
		if need, err := (Codec{}).Decode(&f, in); need != 0 || err != nil || f.Method.Len != 10 {
			b.Fatal(need, err)
		}
	}
}

func BenchmarkDecodeResponse(b *testing.B) {
	in := draft{flags: SerializationHessian2, status: StatusOK, body: "\x94\x05hello" + attachments("dubbo", "2.0.2")}.build()
	var f protocol.Frame
	for b.Loop() {
		if need, err := (Codec{}).Decode(&f, in); need != 0 || err != nil || f.Outcome != protocol.OutcomeOK {
			b.Fatal(need, err)
		}
	}
}

func BenchmarkAttachments1K(b *testing.B) {
	in := sample1K()
	f := decode(b, in)
	n := 0
	fn := func(k, v []byte) bool { n++; return true }
	for b.Loop() {
		if err := (Codec{}).VisitAttachments(&f, in, fn); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAttachmentsPOJO has an argument like those of real applications: objects in lists in objects.
func BenchmarkAttachmentsPOJO(b *testing.B) {
	item := "\x61" + text("sku-000042") + "\x93" + "\x5d\x0c" + "\x4a\x00\x00\x01\x93\x00\x00\x00\x00"
	order := "C" + text("com.example.shop.api.Order") + "\x93" + text("id") + text("items") + text("note") + "\x60" + "\x59\x00\x01\x00\x00" +
		"V" + text("java.util.ArrayList") + "\x9a" + "C" + text("com.example.shop.api.Item") + "\x94" + text("sku") + text("count") + text("price") + text("since") +
		strings.Repeat(item, 10) + text("请尽快送货")
	in := draft{flags: twoWay, id: 1, body: invocation("com.example.shop.api.OrderService", "1.0.0", "placeOrder", "Lcom/example/shop/api/Order;",
		order+attachments("path", "com.example.shop.api.OrderService", "remote.application", "shop-frontend", "timeout", "5000", "group", "blue"))}.build()
	f := decode(b, in)
	n := 0
	fn := func(k, v []byte) bool { n++; return true }
	for b.Loop() {
		if err := (Codec{}).VisitAttachments(&f, in, fn); err != nil {
			b.Fatal(err)
		}
	}
}
