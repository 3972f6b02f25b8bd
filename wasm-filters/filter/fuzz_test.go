package filter_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/filter"
	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/bolt"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/dubbo"
)

var protocols = []filter.Protocol{
	{Codec: dubbo.Codec{}, Group: dubbo.KeyGroup, Caller: dubbo.KeyCaller, Timeout: dubbo.KeyTimeout, Traces: []string{dubbo.KeyTrace}},
	{Codec: bolt.Codec{}, Labels: bolt.PrefixRequestBaggage, Traces: []string{bolt.KeyTrace, bolt.KeyBaggage}},
}

// The configurations of the fuzz targets. The first three never change a byte.
var confs = []string{
	`{}`,
	`{"throttle":[{"name":"observe","mode":"observe","threshold":0}],"limits":{"maxInspectBytes":4096,"maxFrameBytes":2048}}`,
	`{"access":[{"name":"a","action":"deny","mode":"observe","match":[{"subject":"attachment","key":"group","operator":"exists"}]}],"circuitBreaker":[{"name":"c","strategy":"errorCount","threshold":1,"minRequestAmount":1,"mode":"observe"}],"throttle":[{"name":"t","type":"concurrency","threshold":1,"mode":"observe"}]}`,
	`{"throttle":[{"name":"none","threshold":0}]}`,
	`{"throttle":[{"name":"some","target":{"service":{"exact":"demo.A"},"caller":{"exact":"shop"}},"threshold":1}],"limits":{"maxInFlight":4,"maxInspectBytes":4096}}`,
	`{"throttle":[{"name":"small","target":{"method":{"prefix":"m"}},"threshold":1}],"limits":{"maxFrameBytes":1024,"maxInspectBytes":4096,"garbage":"close","oversize":"close"}}`,
	`{"access":[{"name":"a","action":"allow","match":[{"subject":"attachment","key":"timeout","operator":"notEquals","values":["7"]}]}],"throttle":[{"name":"c","type":"concurrency","threshold":1}],"degrade":[{"name":"d","when":"rejected","replies":[{"protocol":"bolt","serialization":1,"value":"Tg=="}]}]}`,
	`{"circuitBreaker":[{"name":"c","strategy":"errorCount","threshold":1,"minRequestAmount":1,"errors":["exception","status"]}],"throttle":[{"name":"h","threshold":2,"hotValues":{"subject":"label","key":"group"}}],"faultInjection":[{"name":"f","target":{"method":{"regex":"[n-z]"}},"abort":{"message":"m"}}]}`,
	`{"access":[{"name":"t","action":"allow","target":{"method":{"prefix":"m"}},"token":{"attachment":"group","key":"k","jwt":{},"onFailure":"allow"}}]}`,
	`{"faultInjection":[{"name":"d","delayMillis":500,"perMillion":500000},{"name":"e","target":{"method":{"prefix":"m"}},"delayMillis":100}]}`,
	`{"limits":{"maxInspectBytes":4096},"throttle":[{"name":"q","threshold":2,"maxQueueingMillis":1000},{"name":"none","threshold":1,"target":{"method":{"prefix":"m"}}}],"circuitBreaker":[{"name":"e","target":{"direction":"client"},"strategy":"errorCount","threshold":1,"minRequestAmount":1,"perEndpoint":true}]}`,
}

const unchanged = 3

func seeds(f *testing.F) {
	var reqs, resps []byte
	for _, build := range []func(string, map[string]string) ([]byte, error){filtertest.Bolt, filtertest.Dubbo} {
		reqs, resps = nil, nil
		for i, kind := range []string{"req", "oneway", "req", "hb", "req"} {
			b, err := build(kind, map[string]string{"id": string(rune('1' + i)), "service": "demo.A", "method": "m", "caller": "shop", "size": "40"})
			if err != nil {
				f.Fatal(err)
			}
			reqs = append(reqs, b...)
		}
		for i, kind := range []string{"resp", "ack", "ack", "ack", "fail"} {
			b, err := build(kind, map[string]string{"id": string(rune('1' + i))})
			if err != nil {
				f.Fatal(err)
			}
			resps = append(resps, b...)
		}
		for conf := range confs {
			f.Add(uint8(conf), reqs, resps, []byte{1, 40, 3, 200})
			f.Add(uint8(conf), reqs[:len(reqs)-3], append(slices.Clone(resps), "garbage"...), []byte{7})
		}
	}
}

// chunks cuts b: each byte of cuts is a length, over and over.
func chunks(b, cuts []byte) [][]byte {
	var out [][]byte
	for i := 0; len(b) > 0; i++ {
		n := len(b)
		if len(cuts) > 0 {
			n = min(n, int(cuts[i%len(cuts)])+1)
		}
		out, b = append(out, b[:n]), b[n:]
	}
	return out
}

// play gives a connection all bytes of the client, then all of the server, and returns what came out.
func play(t *testing.T, conf string, down, up, cuts []byte) (out [2][]byte, closed bool, metrics []string) {
	n := filtertest.NewNative(&filtertest.World{Endpoint: "10.0.0.2:20880"}, protocols)
	if err := n.Configure(conf); err != nil {
		t.Fatal(err)
	}
	c := n.Conn(policy.DirectionClient)
	for side, all := range [][]byte{down, up} {
		pieces := chunks(all, cuts)
		if len(pieces) == 0 {
			pieces = [][]byte{nil}
		}
		in := 0
		for i, piece := range pieces {
			if closed {
				break
			}
			b := &filtertest.Slice{B: slices.Clone(piece)}
			last := i == len(pieces)-1
			in += len(piece)
			closed = c.Data(filter.Side(side), b, len(piece), last) == filter.Close
			out[side] = append(out[side], b.B...)
			kept, withheld := c.Held()
			if kept[side] > 64<<10 {
				t.Fatalf("%d bytes kept", kept[side])
			}
			if last && kept[side] > 0 {
				t.Fatalf("%d bytes kept at the end", kept[side])
			}
			if conf == confs[0] && (withheld[side] > 0 || len(out[side]) != in) {
				t.Fatalf("%d bytes withheld where nothing can be rejected", withheld[side])
			}
		}
	}
	if c.Slots() > 4*(2*4096) {
		t.Fatalf("%d slots", c.Slots())
	}
	n.World().Clock += 1_000_000_000
	if err := n.Tick(); err != nil {
		t.Fatal(err)
	}
	c.End()
	n.World().Clock += 1_000_000_000
	if err := n.Tick(); err != nil {
		t.Fatal(err)
	}
	return out, closed, n.World().Metrics()
}

// detected returns the metrics that tell what the connection was taken for.
func detected(metrics []string) (s string) {
	for _, m := range metrics {
		if strings.HasPrefix(m, "isthmus_filter_connections_total") {
			s += m
		}
	}
	return s
}

// FuzzConn: whatever the bytes, nothing panics, what is held is bounded, and where no rule rejects the bytes come out as they
// went in. Where a rule does, the outcome does not depend on how the bytes were cut.
func FuzzConn(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, conf uint8, down, up, cuts []byte) {
		if len(down)+len(up) > 1<<16 {
			return
		}
		i := int(conf) % len(confs)
		whole, closed, metrics := play(t, confs[i], down, up, nil)
		if i < unchanged && (!bytes.Equal(whole[0], down) || !bytes.Equal(whole[1], up)) {
			t.Fatalf("bytes changed:\nin  %x %x\nout %x %x", down, up, whole[0], whole[1])
		}
		cut, cutClosed, cutMetrics := play(t, confs[i], down, up, cuts)
		if detected(metrics) != detected(cutMetrics) {
			return // a codec may need to see more than the shortest header to be sure, and does not get it
		}
		if closed != cutClosed {
			t.Fatalf("closed %v in one piece, %v in several", closed, cutClosed)
		}
		if closed {
			return // what was passed on before depends on the callbacks
		}
		for side := range whole {
			if !bytes.Equal(whole[side], cut[side]) {
				t.Fatalf("side %d: in one piece\n%x\nin several\n%x", side, whole[side], cut[side])
			}
		}
		for i := range max(len(metrics), len(cutMetrics)) {
			if i >= len(metrics) || i >= len(cutMetrics) || metrics[i] != cutMetrics[i] {
				t.Fatalf("in one piece %q, in several %q", metrics[min(i, len(metrics)):], cutMetrics[min(i, len(cutMetrics)):])
			}
		}
	})
}
