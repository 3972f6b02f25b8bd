package filter_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/filter"
	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// pair is a lifted connection; give hands it bytes and returns what leaves.
type pair struct {
	t *testing.T
	n *filtertest.Native
	c *filter.Conn
}

func lifted(t *testing.T, conf string) *pair {
	t.Helper()
	n := filtertest.NewNative(new(filtertest.World), protocols)
	if err := n.Configure(conf); err != nil {
		t.Fatal(err)
	}
	return &pair{t, n, n.Conn(policy.DirectionClient)}
}

func (p *pair) give(side filter.Side, parts ...[]byte) []byte {
	p.t.Helper()
	b := &filtertest.Slice{B: bytes.Join(parts, nil)}
	if p.c.Data(side, b, len(b.B), false) == filter.Close {
		p.t.Fatal("closed")
	}
	return b.B
}

func dubboFrame(t *testing.T, kind string, id int) []byte {
	t.Helper()
	b, err := filtertest.Dubbo(kind, map[string]string{"id": fmt.Sprint(id), "service": "demo.A", "method": "m"})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func http2Frame(t *testing.T, kind, args string, payload []byte) []byte {
	t.Helper()
	b, err := filtertest.HTTP2(kind, args, payload)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (p *pair) answer(stream uint32, id int) []byte {
	return append(http2Frame(p.t, "headers", fmt.Sprintf("stream=%d,_status=200,x-isthmus-outcome=ok", stream), nil),
		http2Frame(p.t, "data", fmt.Sprintf("stream=%d,end=1", stream), dubboFrame(p.t, "resp", id))...)
}

// TestStreamsRunOut: a connection that has used up most of its streams ends as soon as no call is under way, so that its client begins
// another. One that never comes to rest serves calls up to the very last stream; the next one is refused, and then it ends.
func TestStreamsRunOut(t *testing.T) {
	p := lifted(t, `{"lift":{}}`)
	p.give(filter.Downstream, dubboFrame(t, "req", 1))
	p.give(filter.Upstream, http2Frame(t, "settings", "", nil), p.answer(1, 1))
	const last = 1<<31 - 1
	p.c.SetNextStream(last - 2)
	p.give(filter.Downstream, dubboFrame(t, "req", 2))
	if p.give(filter.Downstream, dubboFrame(t, "req", 3)); p.c.Wake(new(filtertest.Slice)) == filter.Close {
		t.Fatal("ended with calls under way")
	}
	out := p.give(filter.Downstream, dubboFrame(t, "req", 4))
	if len(out) != 9+8 {
		t.Errorf("%q is sent for a call that no stream is left for", out)
	}
	back := p.give(filter.Upstream, http2Frame(t, "ping", "ack=1", nil), p.answer(last-2, 2))
	if !bytes.Contains(back, []byte("isthmus: unavailable: the connection is about to close")) || !bytes.HasSuffix(back, dubboFrame(t, "resp", 2)) {
		t.Errorf("%q", back)
	}
	if w := p.c.Wake(new(filtertest.Slice)); w == filter.Close {
		t.Fatal("ended with a call under way")
	}
	if back := p.give(filter.Upstream, p.answer(last, 3)); !bytes.Equal(back, dubboFrame(t, "resp", 3)) {
		t.Errorf("%q", back)
	}
	if w := p.c.Wake(new(filtertest.Slice)); w != filter.Close {
		t.Errorf("not ended: %v", w)
	}
}

// TestRestBeforeStreamsRunOut: late, but not at the end, the connection ends at its first rest, unless a call comes first.
func TestRestBeforeStreamsRunOut(t *testing.T) {
	p := lifted(t, `{"lift":{}}`)
	p.give(filter.Downstream, dubboFrame(t, "req", 1))
	p.c.SetNextStream(1<<31 - 101)
	p.give(filter.Upstream, http2Frame(t, "settings", "", nil), p.answer(1, 1))
	p.give(filter.Downstream, dubboFrame(t, "req", 2)) // before the timer
	if p.c.Wake(new(filtertest.Slice)) == filter.Close {
		t.Fatal("ended with a call under way")
	}
	p.give(filter.Upstream, p.answer(1<<31-101, 2))
	if w := p.c.Wake(new(filtertest.Slice)); w != filter.Close {
		t.Errorf("not ended: %v", w)
	}
}

// TestManyInFlight: 10,000 calls of one connection are under way, and are answered in another order.
func TestManyInFlight(t *testing.T) {
	const calls = 10_000
	p := lifted(t, `{"lift":{},"limits":{"maxInFlight":20000}}`)
	p.give(filter.Downstream, dubboFrame(t, "hb", 0))
	p.give(filter.Upstream, http2Frame(t, "settings", "window=100000", nil), http2Frame(t, "window", "stream=0,by=1000000000", nil))
	for i := range calls {
		p.give(filter.Downstream, dubboFrame(t, "req", i+1))
	}
	for i := range calls {
		k := i * 7919 % calls // a prime that does not divide it: each of them once
		if got := p.give(filter.Upstream, p.answer(uint32(2*k+1), k+1)); !bytes.Equal(got, dubboFrame(t, "resp", k+1)) {
			t.Fatalf("call %d: %q", k+1, got)
		}
	}
	p.n.World().Clock += 1_000_000_000
	if err := p.n.Tick(); err != nil {
		t.Fatal(err)
	}
	if got := p.n.World().Metric(`isthmus_rpc_requests_total{rpc_direction="client",rpc_system="dubbo",rpc_service="demo.A",rpc_version="0.0.0",rpc_method="m",rpc_outcome="ok"}`); got != calls {
		t.Errorf("%d calls ended well", got)
	}
}

// TestFailEndsRelay: after a defect of the filter's own a lifted connection ends; what would follow is neither side's language.
func TestFailEndsRelay(t *testing.T) {
	p := lifted(t, `{"lift":{}}`)
	p.give(filter.Downstream, dubboFrame(t, "req", 1))
	p.c.Fail()
	b := &filtertest.Slice{B: dubboFrame(t, "req", 2)}
	if p.c.Data(filter.Downstream, b, len(b.B), false) != filter.Close || len(b.B) > 0 {
		t.Errorf("%d bytes go on", len(b.B))
	}
}

// TestHeadersAreSafe: names of any bytes, and attachments of any, neither break the header block nor begin a header of their own.
func TestHeadersAreSafe(t *testing.T) {
	p := lifted(t, `{"lift":{"attachments":["tenant"]}}`)
	var all []byte
	for i := 1; i < 128; i++ { // as Hessian has them, one byte each
		all = append(all, byte(i))
	}
	b, err := filtertest.Dubbo("req", map[string]string{"id": "1", "service": "demo.A/../B", "method": string(all), "caller": "\r\nx: y", "tenant": "\r\nx-forged: 1"})
	if err != nil {
		t.Fatal(err)
	}
	out := p.give(filter.Downstream, b)
	for _, want := range []string{"x-isthmus-caller\x0c%0D%0Ax:%20y", "x-isthmus-attachment-tenant", "%0D%0Ax-forged:%201", "/demo.A%2F..%2FB/%01%02", "%7F"} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("lacks %q", want)
		}
	}
	head := out[:bytes.LastIndex(out, b)]
	if bytes.Contains(head[bytes.Index(head, []byte("demo.")):], []byte("\r\n")) {
		t.Error("a line break in the header block")
	}
}

// TestLowerALot: what comes at once may be more than what is looked at to tell what the connection is.
func TestLowerALot(t *testing.T) {
	n := filtertest.NewNative(new(filtertest.World), protocols)
	if err := n.Configure(`{"lower":{}}`); err != nil {
		t.Fatal(err)
	}
	p := &pair{t, n, n.Conn(policy.DirectionServer)}
	var in []byte
	in = append(in, http2Frame(t, "preface", "", nil)...)
	in = append(in, http2Frame(t, "settings", "", nil)...)
	calls := 0
	for ; len(in) < 300<<10; calls++ {
		in = append(in, http2Frame(t, "headers", fmt.Sprintf("stream=%d,content-type=application/x-isthmus-dubbo", 2*calls+1), nil)...)
		in = append(in, http2Frame(t, "data", fmt.Sprintf("stream=%d,end=1", 2*calls+1), dubboFrame(t, "req", 7))...)
	}
	out := p.give(filter.Downstream, in)
	if want := calls * len(dubboFrame(t, "req", 7)); len(out) != want {
		t.Errorf("the provider gets %d bytes of %d calls, want %d", len(out), calls, want)
	}
}
