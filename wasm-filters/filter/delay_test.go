package filter_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/filter"
	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// A bareHost has a clock and nothing else.
type bareHost struct{ now policy.Nanos }

func (h *bareHost) Now() policy.Nanos                                       { return h.now }
func (*bareHost) Log(filter.Level, []byte)                                  {}
func (*bareHost) Counter([]byte) filter.Metric                              { return 0 }
func (*bareHost) Gauge([]byte) filter.Metric                                { return 0 }
func (*bareHost) Add(filter.Metric, int64)                                  {}
func (*bareHost) Set(filter.Metric, uint64)                                 {}
func (*bareHost) PeerAddress(dst []byte) []byte                             { return dst }
func (*bareHost) DialledAddress(dst []byte) []byte                          { return dst }
func (*bareHost) PeerIdentity(dst []byte) []byte                            { return dst }
func (*bareHost) Shared() policy.Shared                                     { return nil }
func (*bareHost) Ask([]byte, string, string, []byte, uint32) (uint32, bool) { return 0, false }
func (*bareHost) Endpoint(dst []byte) []byte                                { return dst }
func (*bareHost) Wall() int64                                               { return 0 }
func (*bareHost) VerifySignature(string, []byte, []byte, []byte) (valid, done bool) {
	return false, false
}

// TestRelease: delayed requests go when they are due, all of them that are, and not to a connection that is not ready or within a
// frame; that one is left alone for 10 ms. A connection that has gone is not asked.
func TestRelease(t *testing.T) {
	const ms = policy.Nanos(1_000_000)
	h := &bareHost{now: 1000 * ms}
	vm := filter.New(h, protocols)
	p, faults := vm.Configure(filter.Identity{}, "", []byte(`{"faultInjection":[{"name":"d","target":{"method":{"exact":"d"}},"delayMillis":100}]}`))
	if faults != nil {
		t.Fatal(faults)
	}
	request := func(id int, method, size string) []byte {
		b, err := filtertest.Bolt("req", map[string]string{"id": fmt.Sprint(id), "service": "S", "method": method, "size": size})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	send := func(c *filter.Conn, b []byte, want filter.Action) {
		t.Helper()
		if got := c.Data(filter.Downstream, &filtertest.Slice{B: bytes.Clone(b)}, len(b), false); got != want {
			t.Errorf("action %d, want %d", got, want)
		}
	}
	var conns []*filter.Conn
	for i := range 3 {
		c := p.NewConn(policy.DirectionClient)
		c.Tag = uint32(i)
		conns = append(conns, c)
	}
	if _, ok := vm.Due(); ok {
		t.Error("something is due")
	}
	for _, c := range conns {
		send(c, request(1, "d", "0"), filter.Linger)
		send(c, request(2, "d", "0"), filter.Linger)
	}
	big := request(3, "m", "1000")
	send(conns[1], big[:500], filter.Linger)
	isReady := map[uint32]bool{0: false, 1: true, 2: true}
	var got string
	release := func() string {
		got = ""
		vm.Release(func(c *filter.Conn) bool { return isReady[c.Tag] },
			func(c *filter.Conn, frames []byte) {
				got += fmt.Sprintf("%d:%d ", c.Tag, len(frames)/len(request(1, "d", "0")))
			})
		return got
	}
	due := func(want policy.Nanos) {
		t.Helper()
		if wait, ok := vm.Due(); wait != want || ok != (want > 0) {
			t.Errorf("due in %d, %v; want %d", wait, ok, want)
		}
	}
	due(100 * ms)
	h.now += 99 * ms
	if release() != "" {
		t.Errorf("%q before they are due", got)
	}
	due(ms)
	h.now += ms
	if release() != "2:2 " {
		t.Errorf("%q", got)
	}
	due(10 * ms) // connections 0 and 1
	h.now += 10 * ms
	isReady[0] = true
	if release() != "0:2 " {
		t.Errorf("%q", got)
	}
	// The rest of the frame, and then those that waited for it.
	b := &filtertest.Slice{B: bytes.Clone(append(big[500:len(big):len(big)], request(4, "m", "0")...))}
	if conns[1].Data(filter.Downstream, b, len(b.B), false) != filter.Continue || len(b.B) != len(big)-500+3*len(request(1, "d", "0")) {
		t.Errorf("%d bytes", len(b.B))
	}
	due(0)
	send(conns[0], request(5, "d", "0"), filter.Linger)
	conns[0].End()
	h.now += 1000 * ms
	if release() != "" {
		t.Errorf("%q to a connection that has gone", got)
	}
	due(0)
	for i := range 5000 {
		b := request(100+i, "d", "0")
		conns[2].Data(filter.Downstream, &filtertest.Slice{B: b}, len(b), false)
	}
	h.now += 100 * ms
	if release() != "2:4096 " {
		t.Errorf("%q of 5000", got)
	}
}
