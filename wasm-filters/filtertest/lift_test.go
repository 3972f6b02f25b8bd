package filtertest_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/filter"
	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// The two ways: from a caller's sidecar to the provider's, and within the provider's.
const (
	liftAndLower = `{"lift":{"attachments":["tenant"]},"lower":{}}`
	liftBehind   = `{"lift":{"attachments":["tenant"]},"lower":{"behindHTTP":true}}`
)

// directions are those of the listeners that lift and that lower.
func directions(conf string) (lift, lower policy.Direction) {
	if conf == liftBehind {
		return policy.DirectionServer, policy.DirectionUnknown
	}
	return policy.DirectionClient, policy.DirectionServer
}

// A relay is two connections back to back: what is lifted is lowered again, with no proxy between them but the test.
type relay struct {
	tb          testing.TB
	rig         filtertest.Rig
	lift, lower int
	cut         func(n int) int       // how much of n bytes goes into the next callback
	provider    func(b []byte) []byte // what the provider answers
	toLower     []byte
	toLift      []byte
	toProvider  []byte
	toCaller    []byte // what the caller has got
}

// newRelay opens both; conf is "" where the rig has its configuration.
func newRelay(tb testing.TB, rig filtertest.Rig, conf string, provider func(b []byte) []byte, cut func(n int) int) *relay {
	tb.Helper()
	if conf != "" {
		if err := rig.Configure(conf); err != nil {
			tb.Fatal(err)
		}
	}
	r := &relay{tb: tb, rig: rig, provider: provider, cut: cut}
	var err error
	lift, lower := directions(conf)
	if r.lift, err = rig.Open(lift); err == nil {
		r.lower, err = rig.Open(lower)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// give hands all of b to a connection, in pieces.
func (r *relay) give(conn int, side filter.Side, b []byte) (out []byte) {
	r.tb.Helper()
	for len(b) > 0 {
		k := r.cut(len(b))
		got, closed, err := r.rig.Data(conn, side, b[:k], false)
		if err != nil || closed {
			r.tb.Fatal("closed", closed, err)
		}
		out, b = append(out, got...), b[k:]
	}
	return out
}

// send gives the caller's bytes to the filter and lets everything go its way until nothing moves.
func (r *relay) send(b []byte) {
	r.tb.Helper()
	r.toLower = append(r.toLower, r.give(r.lift, filter.Downstream, b)...)
	for idle := 0; idle < 2; {
		moved := len(r.toLower) + len(r.toProvider) + len(r.toLift)
		b, r.toLower = r.toLower, nil
		r.toProvider = append(r.toProvider, r.give(r.lower, filter.Downstream, b)...)
		b, r.toProvider = r.toProvider, nil
		answer := r.provider(b)
		r.toLift = append(r.toLift, r.give(r.lower, filter.Upstream, answer)...)
		b, r.toLift = r.toLift, nil
		r.toCaller = append(r.toCaller, r.give(r.lift, filter.Upstream, b)...)
		if err := r.rig.Tick(); err != nil {
			r.tb.Fatal(err)
		}
		for _, rel := range r.rig.Released() {
			to := map[int]*[]byte{r.lift: &r.toLower, r.lower: &r.toProvider}[rel.Conn]
			if rel.Closed {
				r.tb.Fatal("closed")
			}
			if to == nil {
				continue // of an earlier connection
			}
			moved += len(rel.Data)
			*to = append(*to, rel.Data...)
		}
		if moved == 0 {
			idle++
		} else {
			idle = 0
		}
	}
}

// responder answers whole frames, in any order that shuffle makes of them, with a response of as many bytes as the request had.
func responder(tb testing.TB, codec protocol.Codec, shuffle func(frames [][]byte)) func([]byte) []byte {
	var rest []byte
	build := filtertest.Bolt
	if codec.Name() == "dubbo" {
		build = filtertest.Dubbo
	}
	return func(b []byte) []byte {
		rest = append(rest, b...)
		var out [][]byte
		for {
			var f protocol.Frame
			need, err := codec.Decode(&f, rest)
			if err != nil {
				tb.Fatal(err)
			}
			if need > 0 || f.Len > uint64(len(rest)) {
				break
			}
			kind := map[protocol.Kind]string{protocol.KindRequest: "resp", protocol.KindHeartbeat: "ack"}[f.Kind]
			if kind != "" {
				a, err := build(kind, map[string]string{"id": fmt.Sprint(f.ID), "size": fmt.Sprint(f.Len)})
				if err != nil {
					tb.Fatal(err)
				}
				out = append(out, a)
			}
			rest = rest[f.Len:]
		}
		if shuffle != nil {
			shuffle(out)
		}
		return bytes.Join(out, nil)
	}
}

// TestBackToBack: whatever the calls, their sizes, the order of their answers and the pieces that bytes come in, each call gets its
// own response, once.
func TestBackToBack(t *testing.T) {
	rigs(t, func(t *testing.T, rig filtertest.Rig) {
		for _, p := range protocols {
			for way, conf := range map[string]string{"to the provider": liftAndLower, "within its sidecar": liftBehind} {
				t.Run(p.Codec.Name()+" "+way, func(t *testing.T) { backToBack(t, rig, conf, p.Codec, 7) })
			}
		}
	})
}

// FuzzBackToBack is TestBackToBack for other numbers.
func FuzzBackToBack(f *testing.F) {
	for seed := range uint64(6) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		for _, p := range protocols {
			for _, conf := range []string{liftAndLower, liftBehind} {
				backToBack(t, filtertest.NewNative(new(filtertest.World), protocols), conf, p.Codec, seed)
			}
		}
	})
}

func backToBack(t *testing.T, rig filtertest.Rig, conf string, codec protocol.Codec, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	build := filtertest.Bolt
	if codec.Name() == "dubbo" {
		build = filtertest.Dubbo
	}
	cut := func(n int) int { return min(n, 1+rnd.IntN(1+rnd.IntN(70000))) }
	shuffle := func(frames [][]byte) {
		rnd.Shuffle(len(frames), func(i, k int) { frames[i], frames[k] = frames[k], frames[i] })
	}
	r := newRelay(t, rig, conf, responder(t, codec, shuffle), cut)
	want := map[uint64]int{} // how long the response is at least
	heartbeats := map[uint64]bool{}
	id := uint64(1000)
	for range 6 {
		var batch []byte
		for range rnd.IntN(12) {
			id++
			kind := []string{"req", "req", "req", "req", "oneway", "hb"}[rnd.IntN(6)]
			size := rnd.IntN(2000)
			if rnd.IntN(8) == 0 {
				size = rnd.IntN(300_000)
			}
			b, err := build(kind, map[string]string{"id": fmt.Sprint(id), "service": "demo.Hello", "method": []string{"m", "m 1", "/%..\x7f"}[rnd.IntN(3)], "caller": "shop",
				"size": fmt.Sprint(size), []string{".tenant", ".other"}[rnd.IntN(2)]: []string{"gold", "a\nb%"}[rnd.IntN(2)]})
			if err != nil {
				t.Fatal(err)
			}
			switch kind {
			case "req":
				want[id] = len(b)
			case "hb":
				heartbeats[id] = true
			}
			batch = append(batch, b...)
		}
		r.send(batch)
	}
	for b := r.toCaller; len(b) > 0; {
		var f protocol.Frame
		need, err := codec.Decode(&f, b)
		if err != nil || need > 0 || f.Len > uint64(len(b)) {
			t.Fatalf("the caller got %d bytes that are no frame: need %d, %v", len(b), need, err)
		}
		switch f.Kind {
		case protocol.KindHeartbeatAck:
			if !heartbeats[f.ID] {
				t.Errorf("heartbeat %d is answered", f.ID)
			}
			delete(heartbeats, f.ID)
		case protocol.KindResponse:
			if n, ok := want[f.ID]; !ok || f.Outcome != protocol.OutcomeOK || f.Len < uint64(n) {
				t.Errorf("call %d of %d bytes: %v, %s, %d bytes", f.ID, n, ok, f.Outcome, f.Len)
			}
			delete(want, f.ID)
		default:
			t.Errorf("a %s", f.Kind)
		}
		b = b[f.Len:]
	}
	if len(want)+len(heartbeats) > 0 {
		t.Errorf("%d calls and %d heartbeats are not answered", len(want), len(heartbeats))
	}
}

// swapID writes a stream's number, as a provider would that answers it.
func swapID(name string, b []byte, id uint32) {
	at := 5
	if name == "dubbo" {
		at = 8
	}
	binary.BigEndian.PutUint32(b[at:], id)
}

// roundTrip returns what lets one call go there and back again, through both filters.
func roundTrip(tb testing.TB, name, conf string) func() {
	req, resp := frames(tb, name)
	n := filtertest.NewNative(new(filtertest.World), protocols)
	if err := n.Configure(conf); err != nil {
		tb.Fatal(err)
	}
	lifts, lowers := directions(conf)
	lift, lower := n.Conn(lifts), n.Conn(lowers)
	var b, c filtertest.Scratch
	stream := uint32(1)
	return func() {
		n.World().Clock += 1000
		b.Set(req)
		lift.Data(filter.Downstream, &b, len(req), false)
		lower.Data(filter.Downstream, &b, len(b.Bytes()), false)
		if len(b.Bytes()) < len(req) { // a heartbeat may follow
			tb.Fatalf("the provider gets %d bytes of %d", len(b.Bytes()), len(req))
		}
		swapID(name, resp, stream)
		stream += 2
		c.Set(resp)
		lower.Data(filter.Upstream, &c, len(resp), false)
		lift.Data(filter.Upstream, &c, len(c.Bytes()), false)
		if len(c.Bytes()) != len(resp) {
			tb.Fatalf("the caller gets %d bytes of %d", len(c.Bytes()), len(resp))
		}
	}
}

// TestRelayDoesNotAllocate: a call that is lifted and lowered costs no allocation.
func TestRelayDoesNotAllocate(t *testing.T) {
	for _, p := range protocols {
		for _, conf := range []string{liftAndLower, liftBehind} {
			f := roundTrip(t, p.Codec.Name(), conf)
			for range 100 {
				f()
			}
			if n := testing.AllocsPerRun(500, f); n != 0 {
				t.Errorf("%s, %s: %v allocations", p.Codec.Name(), conf, n)
			}
		}
	}
}

// TestRelayedConnectionDoesNotAllocate: nor does a connection that is lifted or lowered, from its first call to its end in the middle of
// another.
func TestRelayedConnectionDoesNotAllocate(t *testing.T) {
	for _, p := range protocols {
		name := p.Codec.Name()
		req, resp := frames(t, name)
		n := filtertest.NewNative(new(filtertest.World), protocols)
		if err := n.Configure(liftAndLower); err != nil {
			t.Fatal(err)
		}
		var b, c filtertest.Scratch
		f := func() {
			lift, lower := n.Conn(policy.DirectionClient), n.Conn(policy.DirectionServer)
			b.Set(req)
			lift.Data(filter.Downstream, &b, len(req), false)
			lower.Data(filter.Downstream, &b, len(b.Bytes()), false)
			swapID(name, resp, 1)
			c.Set(resp)
			lower.Data(filter.Upstream, &c, len(resp), false)
			lift.Data(filter.Upstream, &c, len(c.Bytes()), false)
			for _, k := range []int{len(req), 100} {
				b.Set(req[:k])
				lift.Data(filter.Downstream, &b, k, false)
				b.Set(b.Bytes())
				lower.Data(filter.Downstream, &b, len(b.Bytes()), false)
			}
			lift.End()
			lower.End()
		}
		for range 100 {
			f()
		}
		if n := testing.AllocsPerRun(500, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// TestBehindDoesNotAllocate: nor does a call behind a connection manager that says who makes it, where rules want to know.
func TestBehindDoesNotAllocate(t *testing.T) {
	const name = "dubbo"
	req, resp := frames(t, name)
	frame := func(kind, args string, payload []byte) []byte {
		b, err := filtertest.HTTP2(kind, args, payload)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	n := filtertest.NewNative(new(filtertest.World), protocols)
	if err := n.Configure(`{"lift":{},"lower":{"behindHTTP":true},"access":[{"name":"a","action":"deny","match":[{"subject":"callerIdentity","operator":"equals","values":["spiffe://cluster.local/ns/a/sa/nobody"]}]}]}`); err != nil {
		t.Fatal(err)
	}
	lower := n.Conn(policy.DirectionUnknown)
	var b, c filtertest.Scratch
	b.Set(append(frame("preface", "", nil), frame("settings", "window=1000000000", nil)...))
	lower.Data(filter.Downstream, &b, len(b.Bytes()), false)
	head := frame("headers", "stream=1,content-type=application/x-isthmus-dubbo,_path=/demo.Hello/hi,x-isthmus-service=demo.Hello,x-isthmus-method=hi,x-isthmus-version=0.0.0,"+
		"x-isthmus-group=g,x-isthmus-caller=shop,x-isthmus-peer=10.1.2.3:4000;spiffe://cluster.local/ns/shop/sa/web", nil)
	data := frame("data", "stream=1,end=1", req)
	window := frame("window", "stream=0,by=2000", nil)
	stream := uint32(1)
	var call []byte
	f := func() {
		n.World().Clock += 1000
		binary.BigEndian.PutUint32(head[5:], stream)
		binary.BigEndian.PutUint32(data[5:], stream)
		call = append(append(append(call[:0], window...), head...), data...)
		b.Set(call)
		lower.Data(filter.Downstream, &b, len(call), false)
		if len(b.Bytes()) < len(req) {
			t.Fatalf("the provider gets %d bytes of %d", len(b.Bytes()), len(req))
		}
		swapID(name, resp, stream)
		stream += 2
		c.Set(resp)
		lower.Data(filter.Upstream, &c, len(resp), false)
		if len(c.Bytes()) < len(resp) {
			t.Fatalf("the connection manager gets %d bytes of %d", len(c.Bytes()), len(resp))
		}
	}
	for range 100 {
		f()
	}
	if got := testing.AllocsPerRun(500, f); got != 0 {
		t.Errorf("%v allocations", got)
	}
}

// BenchmarkRelay is one call there and back again.
func BenchmarkRelay(b *testing.B) {
	for _, p := range protocols {
		b.Run(p.Codec.Name(), func(b *testing.B) {
			f := roundTrip(b, p.Codec.Name(), liftAndLower)
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
		})
	}
}

// TestRelayMemoryIsBounded: lifted and lowered connections come and go with calls at every stage, and the module's memory stays as
// it is.
func TestRelayMemoryIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	e, err := engine()
	if err != nil {
		t.Fatal(err)
	}
	rig, err := e.NewRig(context.Background(), new(filtertest.World))
	if err != nil {
		t.Fatal(err)
	}
	if err := rig.Configure(liftAndLower); err != nil {
		t.Fatal(err)
	}
	for _, p := range protocols {
		build := filtertest.Bolt
		if p.Codec.Name() == "dubbo" {
			build = filtertest.Dubbo
		}
		var batch []byte
		for id := range 30 {
			b, err := build("req", map[string]string{"id": fmt.Sprint(id), "service": "demo.Hello", "method": "m", "size": fmt.Sprint(id * 300)})
			if err != nil {
				t.Fatal(err)
			}
			batch = append(batch, b...)
		}
		cycle := func(n int) {
			for i := range n {
				answers := responder(t, p.Codec, nil)
				half := i%3 == 0 // a provider that stops in the middle
				stopped := false
				r := newRelay(t, rig, "", func(b []byte) []byte {
					a := answers(b)
					switch {
					case stopped:
						return nil
					case half && len(a) > 1000:
						stopped = true
						return a[:len(a)/2]
					}
					return a
				}, func(n int) int { return min(n, 1000+i*37%5000) })
				r.send(batch[:len(batch)-i%5])
				for _, conn := range []int{r.lift, r.lower} {
					if err := rig.Close(conn); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		cycle(80)
		before := rig.MemoryBytes()
		cycle(160)
		if after := rig.MemoryBytes(); after > before {
			t.Errorf("%s: memory grew from %d to %d bytes", p.Codec.Name(), before, after)
		}
		t.Logf("%s: %d bytes of memory", p.Codec.Name(), rig.MemoryBytes())
	}
}
