package dubbo

import (
	"encoding/hex"
	"testing"

	hessian "github.com/apache/dubbo-go-hessian2"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

func TestReply(t *testing.T) {
	for serialization, want := range map[uint8]string{
		SerializationHessian2:  "dabb02140102030405060708" + "00000007" + "91" + "0568656c6c6f",
		SerializationFastJSON2: "dabb17140102030405060708" + "00000010" + "00000002bd01" + "00000006" + "4e68656c6c6f",
	} {
		value := []byte("\x05hello")
		if serialization == SerializationFastJSON2 {
			value = []byte("\x4ehello")
		}
		req := protocol.Frame{Kind: protocol.KindRequest, ID: 0x0102030405060708, Flags: flagRequest | flagTwoWay | serialization, Serialization: serialization}
		got := Codec{}.AppendReply(nil, &req, value)
		if hex.EncodeToString(got) != want {
			t.Errorf("serialization %d: %x, want %s", serialization, got, want)
		}
		if f := decode(t, got); f.Kind != protocol.KindResponse || f.Outcome != protocol.OutcomeOK || f.Flaw != protocol.FlawNone || f.Len != uint64(len(got)) {
			t.Errorf("serialization %d: %+v", serialization, f)
		}
		dst := make([]byte, 0, 256)
		if n := testing.AllocsPerRun(100, func() { Codec{}.AppendReply(dst, &req, value) }); n != 0 {
			t.Errorf("serialization %d: %v allocations", serialization, n)
		}
	}
}

// TestReplyValue lets dubbo-go-hessian2 read a reply's body, as a client does: the kind of result, then a value whose references
// count from its own beginning.
func TestReplyValue(t *testing.T) {
	list := []any{"a", int32(7)}
	e := hessian.NewEncoder()
	if err := e.Encode(map[any]any{"x": list, "y": list}); err != nil {
		t.Fatal(err)
	}
	b := Codec{}.AppendReply(nil, &protocol.Frame{ID: 3, Serialization: SerializationHessian2}, e.Buffer())
	d := hessian.NewDecoder(b[HeaderLen:])
	kind, err := d.Decode()
	if err != nil || kind != int32(responseValue) {
		t.Fatalf("%v, %v", kind, err)
	}
	value, err := d.Decode()
	if m, ok := value.(map[any]any); err != nil || !ok || len(m) != 2 || m["y"].([]any)[1] != int32(7) {
		t.Errorf("%v, %v", value, err)
	}
}
