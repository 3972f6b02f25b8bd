package lift_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// TestMethodNames: a method may have any byte in its name, and what an HTTP path cannot hold neither ends the call nor changes it: the provider gets the
// frame as its caller wrote it, but for the id.
func TestMethodNames(t *testing.T) {
	var names []string
	for c := 1; c < 0x80; c++ { // Hessian has these as one byte
		names = append(names, "m"+string(rune(c))+"n")
	}
	const nul = "m\x00n" // which no path may hold, says Envoy where it normalizes paths, as Istio has it do
	names = append(names, ".", "..", "/", "../..", "a?b#c", "%2e%2e", "\r\n\r\n", strings.Repeat("long", 200))
	t.Run("dubbo", func(t *testing.T) {
		got := make(chan []byte, 1)
		p := startProvider(t, func(b []byte, f protocol.Frame, _ func([]byte)) []byte {
			got <- bytes.Clone(b)
			return frame("resp", f.ID)
		})
		in, _ := twoVersions(t, p, p, everything(object{"cluster": "v1"}))
		c := dial(t, in)
		for id, name := range names {
			b, f := c.call(uint64(id), "method", name)
			wantOK(t, b, f)
			if want, b := frame("req", uint64(id), "method", name), <-got; !bytes.Equal(b[:4], want[:4]) || !bytes.Equal(b[12:], want[12:]) {
				t.Errorf("of %q the provider got %q, not %q", name, b, want)
			}
		}
		if b, f := c.call(9999, "method", nul); f.Outcome != protocol.OutcomeError || !bytes.Contains(b, []byte("isthmus: aborted: 400 ")) {
			t.Errorf("%q: %s %q", nul, f.Outcome, b)
		}
		b, f := c.call(10000)
		wantOK(t, b, f)
		<-got
	})
	t.Run("bolt", func(t *testing.T) {
		for c := 0x80; c < 0x100; c++ { // Bolt's header has any
			names = append(names, "m"+string([]byte{byte(c)})+"n")
		}
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		got := make(chan []byte, len(names))
		go func() {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			_ = readBolt(c, func(b []byte, f protocol.Frame) bool {
				kind := "ack"
				if f.Kind == protocol.KindRequest {
					kind = "resp"
					got <- bytes.Clone(b)
				}
				_, err := c.Write(boltFrame(t, kind, f.ID, ""))
				return err == nil
			})
		}()
		in := freePort(t)
		m := manager(everything(object{"cluster": "v1"}))
		m["typed_config"].(object)["route_config"].(object)["virtual_hosts"].([]object)[0]["domains"] = []string{"com.alipay.pay-facade.v1-0.sofa.isthmus"}
		startEnvoy(t, []object{listener(in, "OUTBOUND", wasm(filterFile(t), "lift", `{"lift":{}}`), m), egressListener(wasm(filterFile(t), "lower", `{"lower":{}}`))},
			[]object{egress("v1", ln.Addr().(*net.TCPAddr).Port), originalCluster()})
		c := dial(t, in)
		for id, name := range names {
			c.send(boltFrame(t, "req", uint64(id), name))
		}
		if err := c.c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		n := 0
		if err := readBolt(c.c, func(b []byte, f protocol.Frame) bool {
			if f.Outcome != protocol.OutcomeOK {
				t.Errorf("%q: %s %q", names[f.ID], f.Outcome, b)
			}
			n++
			return n < len(names)
		}); err != nil {
			t.Fatal(err)
		}
		if len(got) != len(names) {
			t.Fatalf("%d calls of %d have reached the provider", len(got), len(names))
		}
		for id, name := range names { // the order of one connection
			if want, b := boltFrame(t, "req", uint64(id), name), <-got; !bytes.Equal(b[:5], want[:5]) || !bytes.Equal(b[9:], want[9:]) {
				t.Errorf("of %q the provider got %q, not %q", name, b, want)
			}
		}
	})
}

// TestAttachments: attachments whose names no header can have match as the header that they become; those that are too long for one are no headers,
// but the call goes on with them, whole.
func TestAttachments(t *testing.T) {
	got := make(chan []byte, 1)
	p := startProvider(t, func(b []byte, f protocol.Frame, _ func([]byte)) []byte {
		got <- bytes.Clone(b)
		return frame("resp", f.ID)
	})
	other := startProvider(t, func(b []byte, f protocol.Frame, _ func([]byte)) []byte {
		got <- bytes.Clone(b)
		return frame("resp", f.ID)
	})
	forbidden := []string{"bad name", "a:b", "x\ty", "q\"r", "Upper", "(paren)", "te@xt"}
	var many []string
	for i := range 40 {
		many = append(many, fmt.Sprintf("many%d", i))
	}
	list := `"tenant"`
	for _, name := range append(forbidden, many...) {
		list += fmt.Sprintf(",%q", name)
	}
	var routes []object
	for _, header := range []string{"bad-name", "a-b", "x-y", "q-r", "upper", "-paren-", "te-xt"} {
		routes = append(routes, object{"match": object{"prefix": "/", "headers": []object{{"name": "x-isthmus-attachment-" + header, "string_match": object{"exact": "gold"}}}}, "route": object{"cluster": "v2"}})
	}
	routes = append(routes, everything(object{"cluster": "v1"})...)
	in := freePort(t)
	startEnvoy(t, []object{listener(in, "OUTBOUND", wasm(filterFile(t), "lift", `{"lift":{"attachments":[`+list+`]}}`), manager(routes)), egressListener(wasm(filterFile(t), "lower", `{"lower":{}}`))},
		[]object{egress("v1", p.port()), egress("v2", other.port()), originalCluster()})
	c := dial(t, in)
	id := uint64(0)
	call := func(t *testing.T, to *provider, fields ...string) {
		t.Helper()
		id++
		before := to.calls.Load()
		b, f := c.call(id, fields...)
		wantOK(t, b, f)
		want, b := frame("req", id, fields...), <-got
		if to.calls.Load() != before+1 || !bytes.Equal(b[:4], want[:4]) || !bytes.Equal(b[12:], want[12:]) {
			t.Errorf("the provider got %d bytes, not the %d of the call, or another one got them", len(b), len(want))
		}
	}
	for _, name := range forbidden {
		t.Run(name, func(t *testing.T) { call(t, other, "."+name, "gold") })
	}
	t.Run("64 KB in one", func(t *testing.T) { call(t, p, "tenant", strings.Repeat("x", 64<<10)) })
	t.Run("64 KB that nobody asks for", func(t *testing.T) { call(t, p, ".other", strings.Repeat("x", 64<<10)) })
	t.Run("64 KB in many", func(t *testing.T) {
		var fields []string
		for _, name := range many {
			fields = append(fields, "."+name, strings.Repeat("x", 64<<10/len(many)))
		}
		call(t, p, fields...)
	})
	t.Run("after them", func(t *testing.T) { call(t, other, ".bad name", "gold") })
}

// TestProviderLies: a provider that answers what nobody has asked, and everything twice, and in between. Each caller gets one answer, its own.
func TestProviderLies(t *testing.T) {
	p := startProvider(t, func(_ []byte, f protocol.Frame, reply func([]byte)) []byte {
		reply(append(frame("resp", f.ID+1_000_000), frame("resp", f.ID)...))
		return append(frame("resp", f.ID), frame("resp", 1<<40|f.ID)...)
	})
	in, e := twoVersions(t, p, p, everything(object{"cluster": "v1"}))
	clients := []*client{dial(t, in), dial(t, in)}
	const calls = 200
	for id := range uint64(calls) {
		for _, c := range clients {
			c.send(frame("req", id))
		}
	}
	for _, c := range clients {
		seen := map[uint64]bool{}
		for range calls {
			b, f := c.receive()
			wantOK(t, b, f)
			if seen[f.ID] || f.ID >= calls {
				t.Fatalf("%d came", f.ID)
			}
			seen[f.ID] = true
		}
		c.nothingElse()
	}
	if n := p.conns.Load(); n != 1 {
		t.Errorf("the provider got %d connections", n)
	}
	e.await(t, "/stats?filter=downstream_rq_active", "http.hcm.downstream_rq_active: 0")
}

// TestGarbageToLower: whoever sends what is no HTTP/2, or breaks its rules, to a port at which calls are lowered loses his connection, or is
// not listened to, and nobody else loses anything.
func TestGarbageToLower(t *testing.T) {
	file := filterFile(t)
	p := startProvider(t, nil)
	in, out := freePort(t), freePort(t)
	startEnvoy(t,
		[]object{
			listener(in, "OUTBOUND", wasm(file, "lift", `{"lift":{}}`), manager(everything(object{"cluster": "up"}))),
			listener(out, "INBOUND", wasm(file, "lower", `{"lower":{}}`), tcpProxy("provider")),
		},
		[]object{upstream("up", out), plain("provider", p.port())})
	c := dial(t, in)
	b, f := c.call(1)
	wantOK(t, b, f)
	h2 := func(kind, args string, body []byte) []byte {
		b, err := filtertest.HTTP2(kind, args, body)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	// What is HTTP/2 passes until it is known to be lifted calls, so there is one first.
	const ours = "content-type=application/x-isthmus-dubbo"
	hello := slices.Concat([]byte(http2.ClientPreface), h2("settings", "", nil), h2("headers", "stream=1,"+ours, nil), h2("data", "stream=1,end=1", frame("req", 1)))
	for name, x := range map[string]struct {
		bad  []byte
		ends bool // else it is overlooked, and the connection's next call is served
	}{
		"random":           {[]byte(strings.Repeat("\xff\x13garbage", 100)), true},
		"a frame too long": {[]byte{0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1}, true},
		"an even stream":   {h2("headers", "stream=2,"+ours, nil), true},
		"a window of 0":    {h2("window", "stream=0,by=0", nil), true},
		"a broken block":   {[]byte{0, 0, 3, 1, 5, 0, 0, 0, 3, 0xff, 0xff, 0xff}, true},
		"data of nobody":   {h2("data", "stream=9,end=1", []byte("x")), false}, // a stream that was given up may still have some
		"two of a stream":  {append(h2("headers", "stream=3,"+ours, nil), h2("headers", "stream=3,"+ours, nil)...), false},
	} {
		t.Run(name, func(t *testing.T) {
			bad := dial(t, out)
			bad.send(slices.Concat(hello, x.bad))
			if !x.ends {
				bad.send(slices.Concat(h2("headers", "stream=11,"+ours, nil), h2("data", "stream=11,end=1", frame("req", 1))))
			}
			if err := bad.c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			var all []byte
			buf := make([]byte, 4096)
			answers := func() int { return bytes.Count(all, []byte("bbbbb")) } // what a response holds
			var err error
			for err == nil && (x.ends || answers() < 2) {
				var n int
				n, err = bad.r.Read(buf)
				all = append(all, buf[:n]...)
			}
			if errors.Is(err, os.ErrDeadlineExceeded) || !x.ends && err != nil {
				t.Errorf("%v; it has said %q", err, all)
			}
			b, f := c.call(2)
			wantOK(t, b, f)
		})
	}
}
