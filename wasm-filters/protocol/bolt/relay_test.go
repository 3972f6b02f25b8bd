package bolt

import (
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/protocoltest"
)

func TestRelay(t *testing.T) {
	frames := map[string][]byte{}
	for _, name := range captures(t) {
		frames[name] = capture(t, name)
	}
	protocoltest.Relay(t, Codec{}, frames, map[string]string{"v1-heartbeat": "v1-heartbeat-ack", "v2-heartbeat": "v2-heartbeat-ack",
		"v2-ver2-heartbeat": "v2-ver2-heartbeat-ack"})
}

// TestSetIDKeepsCRC: a checksum that was right is right afterwards, and one that was wrong stays so.
func TestSetIDKeepsCRC(t *testing.T) {
	for _, name := range []string{"v2-crc-request", "v2-crc-response"} {
		b := capture(t, name)
		f := decode(t, b)
		if !(Codec{}).Summed(&f) {
			t.Fatalf("%s has no CRC", name)
		}
		Codec{}.SetID(b, &f, 99)
		if err := VerifyCRC(b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		b[len(b)-1] ^= 1
		Codec{}.SetID(b, &f, 100)
		if err := VerifyCRC(b); err != ErrCRC {
			t.Errorf("%s: a wrong CRC became %v", name, err)
		}
	}
}
