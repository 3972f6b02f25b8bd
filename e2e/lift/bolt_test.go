package lift_test

import (
	"bytes"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/bolt"
)

// boltFrame builds a Bolt frame: see filtertest.Bolt.
func boltFrame(t testing.TB, kind string, id uint64, method string) []byte {
	t.Helper()
	b, err := filtertest.Bolt(kind, map[string]string{"id": fmt.Sprint(id), "service": "com.alipay.PayFacade", "method": method, "caller": "shop", "size": "300"})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// readBolt calls f with each frame that comes, until it returns false or the connection ends.
func readBolt(c net.Conn, fn func(b []byte, f protocol.Frame) bool) error {
	var got []byte
	buf := make([]byte, 64<<10)
	for {
		var f protocol.Frame
		need, err := (bolt.Codec{}).Decode(&f, got)
		switch {
		case err != nil:
			return err
		case need == 0 && f.Len <= uint64(len(got)):
			if !fn(got[:f.Len], f) {
				return nil
			}
			got = got[f.Len:]
			continue
		}
		k, err := c.Read(buf)
		if err != nil {
			return err
		}
		got = append(got, buf[:k]...)
	}
}

// TestBolt: SOFARPC's protocol goes the same way. Calls are split, heartbeats are answered, and where no route is for a method the
// caller gets the protocol's own error.
func TestBolt(t *testing.T) {
	file := filterFile(t)
	var ports [2]int
	calls := make(chan int, 1000)
	for i := range ports {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		ports[i] = ln.Addr().(*net.TCPAddr).Port
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					_ = readBolt(c, func(_ []byte, f protocol.Frame) bool {
						kind := "ack"
						if f.Kind == protocol.KindRequest {
							kind = "resp"
							calls <- i
						}
						_, err := c.Write(boltFrame(t, kind, f.ID, ""))
						return err == nil
					})
				}()
			}
		}()
	}
	in := freePort(t)
	m := manager([]object{{"match": object{"path": "/com.alipay.PayFacade/pay"}, "route": object{"weighted_clusters": object{"clusters": []object{
		{"name": "v1", "weight": 50}, {"name": "v2", "weight": 50}}}}}})
	m["typed_config"].(object)["route_config"].(object)["virtual_hosts"].([]object)[0]["domains"] = []string{"com.alipay.pay-facade.v1-0.sofa.isthmus"}
	startEnvoy(t, []object{listener(in, "OUTBOUND", wasm(file, "lift", `{"lift":{}}`), m), egressListener(wasm(file, "lower", `{"lower":{}}`))},
		[]object{egress("v1", ports[0]), egress("v2", ports[1]), originalCluster()})
	c := dial(t, in)
	const n = 200
	for id := range uint64(n) {
		c.send(boltFrame(t, "req", id, "pay"))
	}
	c.send(boltFrame(t, "hb", n, ""))
	c.send(boltFrame(t, "req", n+1, "refund"))
	if err := c.c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	seen := map[uint64]bool{}
	err := readBolt(c.c, func(b []byte, f protocol.Frame) bool {
		switch {
		case seen[f.ID]:
			t.Errorf("%d was answered twice", f.ID)
		case f.ID < n && (f.Kind != protocol.KindResponse || f.Outcome != protocol.OutcomeOK):
			t.Errorf("call %d: %v %s", f.ID, f.Kind, f.Outcome)
		case f.ID == n && f.Kind != protocol.KindHeartbeatAck:
			t.Errorf("a heartbeat is answered by %v", f.Kind)
		case f.ID == n+1 && !bytes.Contains(b, []byte("isthmus: unavailable: 404 no route")):
			t.Errorf("%q", b)
		}
		seen[f.ID] = true
		return len(seen) < n+2
	})
	if err != nil {
		t.Fatalf("after %d answers: %v", len(seen), err)
	}
	count := [2]int{}
	for range n {
		count[<-calls]++
	}
	// 3.29 standard deviations of 200 fair coins.
	if count[0] < 76 || count[0] > 124 {
		t.Errorf("split %v", count)
	}
}
