package filter_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/filter"
	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/bolt"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/protocoltest"
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

// boltRequest is a Bolt v1 request of SOFARPC's with these header pairs.
func boltRequest(pairs ...string) []byte {
	const class = "com.alipay.sofa.rpc.core.request.SofaRequest"
	var section []byte
	for _, s := range pairs {
		section = binary.BigEndian.AppendUint32(section, uint32(len(s)))
		section = append(section, s...)
	}
	b := []byte{1, 1, 0, 1, 1, 0, 0, 0, 9, 1, 0, 0, 0, 0, 0, byte(len(class)), byte(len(section) >> 8), byte(len(section)), 0, 0, 0, 0}
	return append(append(b, class...), section...)
}

// TestTraceContext: what a call carries along of tracing and baggage becomes headers that Envoy and its routes know.
func TestTraceContext(t *testing.T) {
	service := []string{"sofa_head_target_service", "demo.A:1.0", "sofa_head_method_name", "m"}
	for name, c := range map[string]struct {
		pairs []string
		want  []string
		not   string
	}{
		"SOFATracer": {pairs: []string{"rpc_trace_context.sofaTraceId", "0A0fe8ad15651660410431001abcde", "rpc_trace_context.sofaRpcId", "0.1.2"},
			want: []string{"\x0btraceparent\x3700-000a0fe8ad15651660410431001abcde-", "-01"}},
		"W3C wins": {pairs: []string{"rpc_trace_context.sofaTraceId", "0a", "TraceParent", "00-11111111111111111111111111111111-2222222222222222-00", "tracestate", "a=b"},
			want: []string{"\x0btraceparent\x3700-11111111111111111111111111111111-2222222222222222-00", "\x0atracestate\x03a=b"}, not: "00-0000"},
		"B3":                    {pairs: []string{"X-B3-TraceId", "abc", "b3", "0"}, want: []string{"\x0cx-b3-traceid\x03abc", "\x02b3\x010"}},
		"no trace id":           {pairs: []string{"rpc_trace_context.sofaTraceId", "not hexadecimal", "rpc_trace_context.sofaRpcId", "0"}, not: "traceparent"},
		"a trace id of nothing": {pairs: []string{"rpc_trace_context.sofaTraceId", "000"}, not: "traceparent"},
		"a line break":          {pairs: []string{"b3", "1\r\nx: y"}, not: "\x02b3"},
		"baggage":               {pairs: []string{"rpc_req_baggage.tenant", "gold"}, want: []string{"\x1bx-isthmus-attachment-tenant\x04gold"}},
		"as it is":              {pairs: []string{"tenant", "gold", "rpc_req_baggage.tenant", "iron"}, want: []string{"\x1bx-isthmus-attachment-tenant\x04gold"}, not: "tenant\x04iron"},
		"not configured":        {pairs: []string{"user", "me"}, not: "x-isthmus-attachment"},
		"too long":              {pairs: []string{"tenant", strings.Repeat("x", 3000)}, not: "x-isthmus-attachment"},
	} {
		t.Run(name, func(t *testing.T) {
			p := lifted(t, `{"lift":{"attachments":["tenant"]}}`)
			b := boltRequest(append(slices.Clone(service), c.pairs...)...)
			out := p.give(filter.Downstream, b)
			at := bytes.LastIndex(out, b)
			if at < 0 {
				t.Fatalf("%q", out)
			}
			head := out[:at]
			for _, want := range c.want {
				if !bytes.Contains(head, []byte(want)) {
					t.Errorf("lacks %q: %q", want, head)
				}
			}
			if c.not != "" && bytes.Contains(head, []byte(c.not)) {
				t.Errorf("has %q: %q", c.not, head)
			}
		})
	}
}

// TestChecksumOnTheWay: the id of a frame with a CRC is rewritten on its way to the provider and back, in whatever pieces the response
// comes, and the CRC is right at both ends.
func TestChecksumOnTheWay(t *testing.T) {
	frames := protocoltest.Frames(t, "../protocol/bolt/testdata/frames")
	request, response := frames["v2-crc-request"], frames["v2-crc-response"]
	id := func(b []byte) uint64 {
		var f protocol.Frame
		if need, err := (bolt.Codec{}).Decode(&f, b); err != nil || need > 0 {
			t.Fatal(need, err)
		}
		if err := bolt.VerifyCRC(b); err != nil {
			t.Error(err)
		}
		return f.ID
	}
	asked := id(request)
	for cut := 1; cut < len(response); cut += 7 {
		n := filtertest.NewNative(new(filtertest.World), protocols)
		if err := n.Configure(`{"lower":{}}`); err != nil {
			t.Fatal(err)
		}
		p := &pair{t, n, n.Conn(policy.DirectionServer)}
		out := p.give(filter.Downstream, http2Frame(t, "preface", "", nil), http2Frame(t, "settings", "", nil),
			http2Frame(t, "headers", "stream=5,content-type=application/x-isthmus-bolt", nil), http2Frame(t, "data", "stream=5,end=1", slices.Clone(request)))
		if got := id(out); got != 5 {
			t.Fatalf("the provider is asked %d", got)
		}
		var f protocol.Frame
		answer := slices.Clone(response)
		if _, err := (bolt.Codec{}).Decode(&f, answer); err != nil {
			t.Fatal(err)
		}
		bolt.Codec{}.SetID(answer, &f, 5)
		back := append(p.give(filter.Upstream, answer[:cut]), p.give(filter.Upstream, answer[cut:])...)
		if got := id(back[len(back)-len(response):]); got != asked {
			t.Fatalf("cut at %d: %d is answered, %d was asked", cut, got, asked)
		}
	}
}

// TestSubsets: calls are told apart by their group of providers without an allocation, and only so many groups, and names of groups, as
// there is room for.
func TestSubsets(t *testing.T) {
	p := lifted(t, `{"lift":{}}`)
	stream := uint32(1)
	call := func(service, subset string) {
		req, err := filtertest.Dubbo("req", map[string]string{"id": fmt.Sprint(stream), "service": service, "method": "m"})
		if err != nil {
			t.Fatal(err)
		}
		p.give(filter.Downstream, req)
		p.give(filter.Upstream, http2Frame(t, "headers", fmt.Sprintf("stream=%d,_status=200,x-isthmus-outcome=ok,x-isthmus-subset=%s", stream, subset), nil),
			http2Frame(t, "data", fmt.Sprintf("stream=%d,end=1", stream), dubboFrame(t, "resp", int(stream))))
		stream += 2
	}
	p.give(filter.Downstream, dubboFrame(t, "hb", 0))
	p.give(filter.Upstream, http2Frame(t, "settings", "window=100000", nil), http2Frame(t, "window", "stream=0,by=1000000000", nil))
	for i := range 300 {
		call("demo.A", fmt.Sprintf("v%d", i))
		call("demo.A", "v7")
	}
	for i := range 600 {
		call(fmt.Sprintf("demo.B%d", i), "v7")
	}
	p.n.World().Clock += 1_000_000_000
	if err := p.n.Tick(); err != nil {
		t.Fatal(err)
	}
	metric := func(service, subset string) int64 {
		return p.n.World().Metric(fmt.Sprintf(`isthmus_rpc_subset_requests_total{rpc_direction="client",rpc_system="dubbo",rpc_service=%q,rpc_version="0.0.0",rpc_outcome="ok",rpc_subset=%q}`, service, subset))
	}
	for _, c := range []struct {
		service, subset string
		want            int64
	}{
		{"demo.A", "v7", 301}, {"demo.A", "v254", 1}, {"demo.A", "v255", 0}, // 255 names
		{"demo.B255", "v7", 1}, {"demo.B256", "v7", 1}, {"demo.B257", "v7", 0}, // and 512 groups
	} {
		if got := metric(c.service, c.subset); got != c.want {
			t.Errorf("%s %s: %d calls, not %d", c.service, c.subset, got, c.want)
		}
	}
	req, head, data := dubboFrame(t, "req", 1), http2Frame(t, "headers", "stream=1,_status=200,x-isthmus-outcome=ok,x-isthmus-subset=v7", nil),
		http2Frame(t, "data", "stream=1,end=1", dubboFrame(t, "resp", 1))
	var b, c filtertest.Scratch
	answer := append(head, data...)
	if n := testing.AllocsPerRun(200, func() {
		b.Set(req)
		p.c.Data(filter.Downstream, &b, len(req), false)
		binary.BigEndian.PutUint32(answer[5:], stream)
		binary.BigEndian.PutUint32(answer[len(head)+5:], stream)
		stream += 2
		c.Set(answer)
		p.c.Data(filter.Upstream, &c, len(answer), false)
	}); n != 0 {
		t.Errorf("%v allocations a call", n)
	}
}
