package protocoltest

import (
	"bytes"
	"slices"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// Relay holds a codec to what Relayer asks for, with frames of real peers. acks are the heartbeats among them, each with the name of
// the answer that the real peer gave to it.
func Relay(t *testing.T, c protocol.Relayer, frames map[string][]byte, acks map[string]string) {
	for name, frame := range frames {
		t.Run(name, func(t *testing.T) {
			var f, g protocol.Frame
			if need, err := c.Decode(&f, frame); err != nil || need > 0 || f.Len != uint64(len(frame)) {
				t.Fatalf("need %d of %d, %v", need, len(frame), err)
			}
			b := slices.Clone(frame)
			for _, id := range []uint64{0, 1, 1<<31 - 1, f.ID} {
				c.SetID(b, &f, id)
				if need, err := c.Decode(&g, b); err != nil || need > 0 || g.ID != id {
					t.Fatalf("id %d: need %d, %d, %v", id, need, g.ID, err)
				}
				if g.ID = f.ID; g != f {
					t.Errorf("id %d: changed more\n%+v\n%+v", id, g, f)
				}
			}
			if !bytes.Equal(b, frame) {
				t.Errorf("did not come back:\n%x\n%x", b, frame)
			}
			if n := testing.AllocsPerRun(50, func() { c.SetID(b, &f, 7) }); n > 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
	for name, answer := range acks {
		var f, g protocol.Frame
		if _, err := c.Decode(&f, frames[name]); err != nil || f.Kind != protocol.KindHeartbeat {
			t.Fatalf("%s: %v, %v", name, f.Kind, err)
		}
		got := c.AppendAck([]byte("before"), &f)[len("before"):]
		if need, err := c.Decode(&g, got); err != nil || need > 0 || g.Kind != protocol.KindHeartbeatAck || g.ID != f.ID || g.Len != uint64(len(got)) {
			t.Errorf("%s: the answer is %+v, %v", name, g, err)
		}
		want := slices.Clone(frames[answer])
		if _, err := c.Decode(&g, want); err != nil {
			t.Fatal(err)
		}
		c.SetID(want, &g, f.ID)
		if !bytes.Equal(got, want) {
			t.Errorf("%s is answered by\n%x, the real peer answers\n%x", name, got, want)
		}
	}
}
