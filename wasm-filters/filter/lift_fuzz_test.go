package filter_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/filter"
	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// FuzzRelay: whatever comes from either side of a connection that may be lifted or lowered, nothing panics, what is kept is bounded by
// what came, a closed connection stays closed, and nothing is in flight for the metrics once it has ended.
func FuzzRelay(f *testing.F) {
	http2 := func(items ...string) (out []byte) {
		for _, it := range items {
			kind, args, _ := strings.Cut(it, " ")
			var body []byte
			if args, b, ok := strings.Cut(args, "+"); ok {
				var err error
				if body, err = filtertest.Dubbo(b, map[string]string{"id": "1", "service": "demo.A", "method": "m"}); err != nil {
					f.Fatal(err)
				}
				it = args
			} else {
				it = args
			}
			b, err := filtertest.HTTP2(kind, it, body)
			if err != nil {
				f.Fatal(err)
			}
			out = append(out, b...)
		}
		return out
	}
	dubbo := func(kinds ...string) (out []byte) {
		for i, kind := range kinds {
			b, err := filtertest.Dubbo(kind, map[string]string{"id": string(rune('1' + 2*i)), "service": "demo.A", "method": "m", "caller": "shop"})
			if err != nil {
				f.Fatal(err)
			}
			out = append(out, b...)
		}
		return out
	}
	const ours = "content-type=application/x-isthmus-dubbo"
	for _, cuts := range [][]byte{{255}, {0, 30}} {
		f.Add(uint8(9), dubbo("req", "hb", "oneway", "req"), http2("settings window=100000", "ack ", "headers stream=1,_status=200,x-isthmus-outcome=ok", "data stream=1,end=1+resp"), cuts)
		f.Add(uint8(10), http2("preface ", "settings ", "headers stream=1,"+ours, "data stream=1,end=1+req", "headers stream=3,"+ours, "data stream=3,end=1+req", "reset stream=3"), dubbo("event", "resp", "resp"), cuts)
		f.Add(uint8(0), dubbo("req", "hb", "oneway", "req"),
			http2("settings window=100000", "ack ", "headers stream=1,_status=200,x-isthmus-outcome=ok", "data stream=1,end=1+resp", "headers stream=3,_status=503,end=1", "ping ack=1",
				"window stream=0,by=9", "reset stream=5", "goaway last=1"), cuts)
		f.Add(uint8(1), http2("preface ", "settings window=30", "headers stream=1,"+ours, "data stream=1,end=1+req", "headers stream=3,"+ours, "data stream=3,end=1+oneway", "ping ",
			"window stream=1,by=7", "headers stream=5,"+ours, "data stream=5+req", "reset stream=5"), dubbo("resp", "ack", "hb", "event", "resp"), cuts)
		f.Add(uint8(10), dubbo("req", "hb", "req"), http2("settings ", "headers stream=1,_status=200,x-isthmus-outcome=ok", "data stream=1,end=1+resp", "headers stream=3,_status=403,end=1"), cuts)
		f.Add(uint8(8), http2("preface ", "settings window=30", "headers stream=1,x-isthmus-peer=10.0.0.1:9;spiffe://a,"+ours, "data stream=1,end=1+req", "headers stream=3,x-isthmus-peer=;,"+ours,
			"headers stream=5,x-isthmus-peer=10.0.0.1:9;-,"+ours, "data stream=3+req", "reset stream=3"), dubbo("resp", "ack"), cuts)
		f.Add(uint8(2), http2("preface ", "settings ", "headers stream=1,content-type=application/grpc", "data stream=1,end=1+req"), []byte("HTTP"), cuts)
	}
	f.Fuzz(func(t *testing.T, mode uint8, down, up, cuts []byte) {
		if len(down)+len(up) > 1<<16 {
			return
		}
		conf := `{"lift":{"attachments":["tenant"]},"lower":{},"limits":{"maxFrameBytes":4096,"maxInspectBytes":4096,"maxInFlight":8}}`
		if mode&4 != 0 {
			conf = `{"lift":{},"lower":{"exceptionsFail":true},"throttle":[{"name":"t","threshold":1}]}`
		}
		if mode&8 != 0 {
			conf = `{"lift":{},"lower":{"behindHTTP":true},"access":[{"name":"a","action":"deny","match":[{"subject":"callerIdentity","operator":"prefix","values":["spiffe://a"]}]}]}`
		}
		if mode&16 != 0 {
			conf = `{"lift":{},"lower":{},"faultInjection":[{"name":"d","delayMillis":30000}]}`
		}
		n := filtertest.NewNative(new(filtertest.World), protocols)
		if err := n.Configure(conf); err != nil {
			t.Fatal(err)
		}
		conn, err := n.Open([]policy.Direction{policy.DirectionClient, policy.DirectionServer, policy.DirectionUnknown}[mode%3])
		if err != nil {
			t.Fatal(err)
		}
		sides := [2][][]byte{chunks(down, cuts), chunks(up, cuts)}
		closed := false
		for i := 0; i < max(len(sides[0]), len(sides[1])); i++ {
			for side := range sides {
				if i >= len(sides[side]) {
					continue
				}
				out, shut, err := n.Data(conn, filter.Side(side), slices.Clone(sides[side][i]), i == len(sides[side])-1)
				if err != nil {
					t.Fatal(err)
				}
				if closed && !shut || shut && len(out) > 0 {
					t.Fatalf("closed %v, then %v with %d bytes", closed, shut, len(out))
				}
				closed = shut
			}
			if !closed && i%3 == 0 {
				n.World().Clock += 20_000_000_000
				if err := n.Tick(); err != nil {
					t.Fatal(err)
				}
				for _, r := range n.Released() {
					closed = closed || r.Closed
				}
			}
			if closed {
				break
			}
		}
		if err := n.Close(conn); err != nil {
			t.Fatal(err)
		}
		n.World().Clock += 1_000_000_000
		if err := n.Tick(); err != nil {
			t.Fatal(err)
		}
		for _, m := range n.World().Metrics("isthmus_rpc_in_flight") {
			t.Errorf("after the end: %s", m)
		}
	})
}
