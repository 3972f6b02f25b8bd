// Package filter_test holds the filter to its promises inside stock Envoys that a real istiod configures: what it does not
// reject goes through byte for byte, whatever the bytes are; bad input is counted and hurts nobody else; rules reach open
// connections, and limits hold over all workers.
package filter_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/e2e/machine"
	"github.com/isthmus-mesh/isthmus/e2e/mesh"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
	"github.com/isthmus-mesh/isthmus/e2e/rig"
	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
)

func TestMain(m *testing.M) { os.Exit(rig.Main(m, append(rig.FilterPeers, peer.RateLimit)...)) }

const (
	within = 90 * time.Second
	port   = 20880
)

// link is a mesh of a consumer's and a provider's machine. The provider's program is a server of ours, so that the bytes that
// arrive can be seen.
type link struct {
	*mesh.Mesh
	t                  *testing.T
	consumer, provider *mesh.Sidecar
	address            netip.AddrPort // of the provider

	mu       sync.Mutex
	received map[string]*bytes.Buffer // by what a connection began with, 8 bytes
}

func newLink(t *testing.T, workers int) *link {
	t.Helper()
	l := &link{Mesh: rig.Mesh(t), t: t, received: map[string]*bytes.Buffer{}}
	provider, err := l.Machine("provider")
	l.must(err)
	_, err = l.Machine("consumer")
	l.must(err)
	l.address = netip.AddrPortFrom(provider.Address(), port)

	services := filepath.Join(l.Folder(), "services.yaml")
	l.must(os.WriteFile(services, fmt.Appendf(nil, "apiVersion: adapters.isthmus.io/v1alpha1\nkind: ServiceList\nservices:\n"+
		"- {framework: dubbo, interface: demo.A, endpoints: [{address: %s, port: %d, application: provider}]}\n", provider.Address(), port), 0o644))
	l.must(l.ConfigureServer(mesh.ServerOptions{Scrape: []string{"consumer", "provider"}, Registries: []mesh.Registry{{Name: "files", Kind: "file",
		Settings: map[string]any{"path": l.Host().Exposed(services)}}}}))
	l.must(l.StartServer(t.Context()))
	l.must(l.StartIstiod(t.Context()))
	l.consumer, err = l.StartSidecarWorkers(t.Context(), "consumer", "consumer", workers)
	l.must(err)
	l.provider, err = l.StartSidecar(t.Context(), "provider", "provider")
	l.must(err)
	l.until("the filter at the consumer", func(ctx context.Context) error { return l.consumer.Filtered(ctx, port, false) })
	l.until("the filter at the provider", func(ctx context.Context) error { return l.provider.Filtered(ctx, port, true) })
	l.serve(provider)
	return l
}

func (l *link) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *link) until(what string, condition func(ctx context.Context) error) {
	l.t.Helper()
	rig.Until(l.t, within, what, condition)
}

// serve is the provider's program. It answers each Dubbo request by a response with the request's id and each heartbeat by its
// answer; from the first byte that is no Dubbo frame on it only reads. A method "bad" is answered by garbage, "twice" by two
// responses.
func (l *link) serve(x *machine.Machine) {
	var listener net.Listener
	l.must(x.Do(func() (err error) {
		listener, err = net.Listen("tcp", l.address.String())
		return err
	}))
	var all sync.WaitGroup
	l.t.Cleanup(func() { listener.Close(); all.Wait() })
	all.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() { l.answer(c) })
		}
	})
}

// marker is how many bytes a connection begins with that tell it from others at the provider: a heartbeat's id, or garbage.
const marker = 16

func (l *link) answer(c net.Conn) {
	defer c.Close()
	var in bytes.Buffer
	var mine *bytes.Buffer
	buf := make([]byte, 64<<10)
	framed := true
	for {
		n, err := c.Read(buf)
		in.Write(buf[:n])
		l.mu.Lock()
		if mine == nil && in.Len() >= marker {
			mine = &bytes.Buffer{}
			mine.Write(in.Bytes())
			l.received[string(in.Bytes()[:marker])] = mine
		} else if mine != nil {
			mine.Write(buf[:n])
		}
		l.mu.Unlock()
		if err != nil {
			return
		}
		for framed && in.Len() >= 16 {
			b := in.Bytes()
			length := int(binary.BigEndian.Uint32(b[12:]))
			if b[0] != 0xda || b[1] != 0xbb || length > 64<<20 {
				framed = false
				break
			}
			if in.Len() < 16+length {
				break
			}
			frame := bytes.Clone(in.Next(16 + length))
			kind, fields := "resp", map[string]string{"id": fmt.Sprint(binary.BigEndian.Uint64(frame[4:]))}
			switch flag := frame[2]; {
			case flag&0x80 == 0 || flag&0x40 == 0: // a response, or nothing to answer
				continue
			case flag&0x20 != 0:
				kind = "ack"
			}
			answer, err := filtertest.Dubbo(kind, fields)
			if err != nil {
				panic(err) // our own kinds
			}
			switch {
			case bytes.Contains(frame, []byte("\x05twice")):
				answer = append(answer, answer...)
			case bytes.Contains(frame, []byte("\x03bad")):
				answer = []byte("this is no response at all")
			}
			if _, err := c.Write(answer); err != nil {
				return
			}
		}
	}
}

// dial connects from the consumer's machine, through both sidecars.
func (l *link) dial() net.Conn {
	l.t.Helper()
	c, err := l.consumer.Machine().DialContext(l.t.Context(), "tcp", l.address.String())
	l.must(err)
	l.t.Cleanup(func() { c.Close() })
	return c
}

// frame builds a Dubbo frame.
func frame(t *testing.T, kind, fields string) []byte {
	t.Helper()
	m := map[string]string{}
	for f := range strings.SplitSeq(fields, ",") {
		if k, v, ok := strings.Cut(f, "="); ok {
			m[k] = v
		}
	}
	b, err := filtertest.Dubbo(kind, m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// call makes one call on c and returns the status and the body of its answer.
func (l *link) call(c net.Conn, id uint64, method string) (status byte, body []byte) {
	l.t.Helper()
	l.must(c.SetDeadline(time.Now().Add(within)))
	_, err := c.Write(frame(l.t, "req", fmt.Sprintf("id=%d,service=demo.A,method=%s,caller=tester", id, method)))
	l.must(err)
	status, got, body := l.read(c)
	if got != id {
		l.t.Fatalf("call %d was answered as call %d", id, got)
	}
	return status, body
}

func (l *link) read(c net.Conn) (status byte, id uint64, body []byte) {
	l.t.Helper()
	head := make([]byte, 16)
	_, err := io.ReadFull(c, head)
	l.must(err)
	body = make([]byte, binary.BigEndian.Uint32(head[12:]))
	_, err = io.ReadFull(c, body)
	l.must(err)
	return head[3], binary.BigEndian.Uint64(head[4:]), body
}

// count sums the samples of a metric at the consumer's sidecar whose labels are those given.
func (l *link) count(ctx context.Context, name string, labels map[string]string) (float64, error) {
	samples, err := l.consumer.Metrics(ctx, name)
	if err != nil {
		return 0, err
	}
	var sum float64
next:
	for _, s := range samples {
		for k, v := range labels {
			if s.Labels[k] != v {
				continue next
			}
		}
		sum += s.Value
	}
	return sum, nil
}

// counted waits until a metric has grown by at least one since before.
func (l *link) counted(name string, labels map[string]string, before float64) {
	l.t.Helper()
	l.until(fmt.Sprintf("%s%v", name, labels), func(ctx context.Context) error {
		n, err := l.count(ctx, name, labels)
		if err == nil && n <= before {
			err = fmt.Errorf("it is %g", n)
		}
		return err
	})
}

// arrived waits until the provider has got exactly sent on the connection that began with it.
func (l *link) arrived(sent []byte) {
	l.t.Helper()
	l.until("the bytes to arrive", func(context.Context) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		got := l.received[string(sent[:marker])]
		switch {
		case got == nil:
			return errors.New("none have")
		case got.Len() < len(sent):
			return fmt.Errorf("%d of %d have", got.Len(), len(sent))
		case !bytes.Equal(got.Bytes(), sent):
			return fmt.Errorf("%d arrived that are not the %d that were sent", got.Len(), len(sent))
		}
		return nil
	})
}

// TestBadInput sends what strangers may send. Each time the bytes must come through as they are, the fault must be counted, and a
// neighbour's connection must not notice.
func TestBadInput(t *testing.T) {
	l := newLink(t, 1)
	neighbour := l.dial()
	next := uint64(1)
	check := func() {
		t.Helper()
		if status, _ := l.call(neighbour, next, "ok"); status != 20 {
			t.Fatalf("the neighbour's call was answered with status %d", status)
		}
		next++
	}
	check()
	nested := func(open byte, depth int) []byte {
		// Version, path and so on, then an argument that is nothing but beginnings.
		b := frame(t, "req", "id=77,service=demo.A,method=deep")
		at := bytes.Index(b, []byte("\x12Ljava/lang/String;")) + 19
		body := append(bytes.Clone(b[16:at]), bytes.Repeat([]byte{open}, depth)...)
		out := append(bytes.Clone(b[:16]), body...)
		binary.BigEndian.PutUint32(out[12:], uint32(len(body)))
		return out
	}
	faults, conns := "isthmus_filter_faults_total", "isthmus_filter_connections_total"
	reason := func(r string) map[string]string {
		return map[string]string{"rpc_filter_reason": r, "rpc_direction": "client"}
	}
	request := func(id int) []byte { return frame(t, "req", fmt.Sprintf("id=%d,service=demo.A,method=ok", id)) }
	cases := map[string]struct {
		sent   []byte
		metric string
		labels map[string]string
	}{
		"garbage":              {bytes.Repeat([]byte("garbage "), 100), conns, map[string]string{"rpc_system": "unknown"}},
		"TLS":                  {append([]byte{0x16, 3, 1, 0, 200, 1, 0, 0, 196}, make([]byte, 200)...), conns, map[string]string{"rpc_system": "tls"}},
		"HTTP":                 {[]byte("GET /index.html HTTP/1.1\r\nHost: a\r\n\r\n"), conns, map[string]string{"rpc_system": "http"}},
		"garbage after frames": {append(request(101), bytes.Repeat([]byte{0xee}, 4096)...), faults, reason("framing_lost")},
		"Bolt on a Dubbo connection": {append(request(102), func() []byte {
			b, err := filtertest.Bolt("req", map[string]string{"id": "1", "service": "demo.A", "method": "m"})
			l.must(err)
			return b
		}()...), faults, reason("framing_lost")},
		"a length of 4 GiB":          {append(append(request(114), frame(t, "req", "id=103,service=demo.A,method=huge,length=0xffffffff")...), make([]byte, 1<<20)...), faults, reason("framing_lost")},
		"a frame of 9 MB":            {frame(t, "req", "id=104,service=demo.A,method=big,size=9000000"), faults, reason("oversize")},
		"lists 10,000 deep":          {nested('W', 10_000), faults, reason("too_deep")},
		"maps 10,000 deep":           {nested('H', 10_000), faults, reason("too_deep")},
		"a reference to nothing":     {nested('Q', 100), faults, reason("malformed")},
		"an unknown serialization":   {frame(t, "req", "id=105,service=demo.A,method=ok,serialization=9"), faults, reason("unknown_serialization")},
		"an id used twice":           {append(frame(t, "req", "id=106,service=demo.A,method=ok"), frame(t, "req", "id=106,service=demo.A,method=ok")...), faults, reason("id_reuse")},
		"a response to nothing":      {append(request(107), frame(t, "req", "id=108,service=demo.A,method=twice")...), faults, reason("unmatched_response")},
		"garbage for a response":     {append(request(109), frame(t, "req", "id=110,service=demo.A,method=bad")...), faults, reason("framing_lost")},
		"half a frame, and no more":  {request(111)[:40], conns, map[string]string{"rpc_system": "dubbo"}},
		"half a header, and no more": {append(request(112), request(113)[:7]...), conns, map[string]string{"rpc_system": "dubbo"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			before, err := l.count(t.Context(), c.metric, c.labels)
			l.must(err)
			conn := l.dial()
			_, err = conn.Write(c.sent)
			l.must(err)
			l.arrived(c.sent)
			check()
			conn.Close()
			l.counted(c.metric, c.labels, before)
			check()
		})
	}
	for _, s := range []*mesh.Sidecar{l.consumer, l.provider} {
		if n, err := l.count(t.Context(), faults, map[string]string{"rpc_filter_reason": "internal"}); err != nil || n > 0 {
			t.Errorf("%s: %g internal faults (%v)", s.Machine().Name(), n, err)
		}
		select {
		case <-s.Process.Done():
			t.Errorf("the Envoy of %s has ended", s.Machine().Name())
		default:
		}
	}
}

// TestUntouched sends frames of many sizes in pieces of many sizes over several connections at a time: they arrive as they were sent.
func TestUntouched(t *testing.T) {
	l := newLink(t, 2)
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(n)))
			sent := frame(t, "hb", fmt.Sprintf("id=%d", 1000+n))
			for id := range 200 {
				size := random.IntN(2000)
				if random.IntN(40) == 0 {
					size = 200_000
				}
				sent = append(sent, frame(t, []string{"req", "oneway", "hb", "event"}[random.IntN(4)], fmt.Sprintf("id=%d,service=demo.A,method=m%d,caller=c,size=%d", id, id%7, size))...)
			}
			conn, err := l.consumer.Machine().DialContext(t.Context(), "tcp", l.address.String())
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			go io.Copy(io.Discard, conn) //nolint:errcheck // until the connection closes
			for rest := sent; len(rest) > 0; {
				k := min(len(rest), 1+random.IntN(5000))
				if _, err := conn.Write(rest[:k]); err != nil {
					t.Error(err)
					return
				}
				rest = rest[k:]
			}
			ctx, cancel := context.WithTimeout(t.Context(), within)
			defer cancel()
			if err := machine.Until(ctx, "the bytes to arrive", func(context.Context) error {
				l.mu.Lock()
				defer l.mu.Unlock()
				got := l.received[string(sent[:marker])]
				if got == nil || got.Len() < len(sent) {
					return errors.New("not all have")
				}
				if !bytes.Equal(got.Bytes(), sent) {
					return errors.New("they are not what was sent")
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

const rule = `apiVersion: governance.isthmus.io/v1alpha1
kind: ThrottleRule
metadata:
  name: %s
spec:
  direction: client
  target: {service: demo.A, method: limited}
  threshold: %d
  interval: %s
`

// TestRuleOnOpenConnection: a rule that comes and goes decides on calls of a connection that was open before; the call is
// answered with Dubbo's own error, under its own id, and others are not touched.
func TestRuleOnOpenConnection(t *testing.T) {
	l := newLink(t, 1)
	c := l.dial()
	if status, _ := l.call(c, 1, "limited"); status != 20 {
		t.Fatalf("before the rule: status %d", status)
	}
	l.must(l.ApplyRule("none", fmt.Sprintf(rule, "none", 0, "1s")))
	id := uint64(2)
	var body []byte
	l.until("the rule", func(context.Context) error {
		id++
		status, b := l.call(c, id, "limited")
		if status == 20 {
			return errors.New("calls are still answered")
		}
		body = b
		return nil
	})
	if !bytes.Contains(body, []byte(`isthmus: throttled: rule "default/none"`)) {
		t.Errorf("the caller is told %q", body)
	}
	if status, _ := l.call(c, 1000, "other"); status != 20 {
		t.Errorf("another method: status %d", status)
	}
	l.must(l.RemoveRule("none"))
	l.until("the rule to go", func(context.Context) error {
		id++
		if status, _ := l.call(c, id, "limited"); status != 20 {
			return errors.New("calls are still rejected")
		}
		return nil
	})
}

// enforced waits until the consumer's sidecar runs the configuration that has a rule in it. The rule counts no call before.
func (l *link) enforced(rule string) {
	l.t.Helper()
	probe := l.dial()
	id := uint64(0)
	l.until("the rule "+rule, func(ctx context.Context) error {
		id++
		l.call(probe, id, "other")
		rules, err := l.API(ctx, "/api/v1/rules")
		if err != nil {
			return err
		}
		samples, err := l.consumer.Metrics(ctx, "isthmus_filter_config_info")
		if err != nil {
			return err
		}
		for _, s := range samples {
			if g := s.Labels["rpc_filter_generation"]; s.Value > 0 && g != "" && bytes.Contains(rules, []byte(`"`+g+`"`)) && bytes.Contains(rules, []byte(`"`+rule+`"`)) {
				return nil
			}
		}
		return fmt.Errorf("the sidecar runs %v, the rules are %s", samples, rules)
	})
}

// TestLimitOverWorkers: a limit holds over all workers of an Envoy, not for each; and it does so to the call, for as long as one likes.
func TestLimitOverWorkers(t *testing.T) {
	l := newLink(t, 4)
	const limit = 50
	l.must(l.ApplyRule("some", fmt.Sprintf(rule, "some", limit, "10m")))
	l.enforced("some")
	// Connections are spread over the workers by the kernel: with 24 of them it is all but certain that no worker has none.
	var admitted atomic.Int64
	var all sync.WaitGroup
	for range 24 {
		c := &batch{conn: l.dial(), request: frame(t, "req", "id=0,service=demo.A,method=limited,caller=tester")}
		all.Go(func() {
			for range 10 {
				n, _, err := c.call(1)
				if err != nil {
					t.Error(err)
					return
				}
				admitted.Add(int64(n))
			}
		})
	}
	all.Wait()
	if n := admitted.Load(); n != limit {
		t.Errorf("of 240 calls over 24 connections and 4 workers %d were admitted, at a limit of %d", n, limit)
	}
	l.exact()
}

// What exact offers, where the machine bears it, and what it allows. The limit is far below: it is to bite on any machine.
const (
	offered  = 12_000 // calls a second
	exactly  = 2_000  // calls a second, and as many at once after a pause
	offering = 10 * time.Second
	atOnce   = 8 // calls that are on their way on one connection
)

// exact offers many more calls than a limit admits, for ten seconds. The bucket is full when the first call comes; and whenever a call is
// rejected it is empty, so from the first call to the last rejection just as many are admitted as it held and got. All of it is reckoned with the
// time that has really passed: a machine that is slow offers less, and the sum is the same.
func (l *link) exact() {
	t := l.t
	t.Helper()
	text := strings.NewReplacer("method: limited", "method: exact").Replace(fmt.Sprintf(rule, "exact", exactly, "1s"))
	l.must(l.ApplyRule("exact", text))
	l.enforced("exact")
	request := frame(t, "req", "id=0,service=demo.A,method=exact,caller=tester")
	conns := make([]*batch, 32)
	for i := range conns {
		conns[i] = &batch{conn: l.dial(), request: request}
	}
	// The earliest and the latest moment at which the filter has decided on the first call.
	begun := time.Now()
	if n, _, err := conns[0].call(1); err != nil || n != 1 {
		t.Fatalf("first call: %d admitted, %v", n, err)
	}
	started := time.Now()
	var mu sync.Mutex
	admitted, calls := 1, 1
	var empty, ended time.Time // when the last batch with a rejection was sent; when the last answer came
	var over atomic.Bool
	var all sync.WaitGroup
	for i, c := range conns {
		all.Go(func() {
			pause := time.Duration(len(conns)*atOnce) * time.Second / offered
			next := started.Add(pause * time.Duration(i) / time.Duration(len(conns)))
			for ; !over.Load(); next = next.Add(pause) {
				time.Sleep(time.Until(next)) // the rate that is offered
				at := time.Now()
				n, m, err := c.call(atOnce)
				done := time.Now()
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				admitted, calls = admitted+n, calls+n+m
				if m > 0 && at.After(empty) {
					empty = at
				}
				if done.After(ended) {
					ended = done
				}
				mu.Unlock()
				if m > 0 && at.Sub(started) > offering || done.Sub(started) > within {
					over.Store(true) // for all: those that went on alone would offer less than the limit
				}
			}
		})
	}
	all.Wait()
	if t.Failed() {
		return
	}
	if empty.Sub(started) < offering {
		t.Fatalf("none of %d calls in %s was rejected after %s: this machine cannot offer %d calls/s", calls, ended.Sub(started), offering, exactly)
	}
	most := exactly * (1 + ended.Sub(begun).Seconds())
	least := exactly * (1 + empty.Sub(started).Seconds())
	t.Logf("%d calls in %.2f s are %.0f calls/s; %d were admitted, by the bucket's reckoning %.0f to %.0f", calls, ended.Sub(begun).Seconds(),
		float64(calls)/ended.Sub(begun).Seconds(), admitted, least, most)
	if float64(admitted) > most+1 {
		t.Errorf("%d calls were admitted, more than %.0f", admitted, most)
	}
	if float64(admitted) < 0.99*least {
		t.Errorf("%d calls were admitted, more than 1 %% less than %.0f", admitted, least)
	}
}

// A batch is a connection on which some calls are made at a time.
type batch struct {
	conn    net.Conn
	request []byte // of any id
	out     []byte
	in      *bufio.Reader
	id      uint64
}

// call makes n calls and returns how many were admitted and how many rejected.
func (b *batch) call(n int) (admitted, rejected int, err error) {
	if b.in == nil {
		b.in = bufio.NewReader(b.conn)
	}
	b.out = b.out[:0]
	for range n {
		b.id++
		at := len(b.out)
		b.out = append(b.out, b.request...)
		binary.BigEndian.PutUint64(b.out[at+4:], b.id)
	}
	if err := b.conn.SetDeadline(time.Now().Add(within)); err != nil {
		return 0, 0, err
	}
	if _, err := b.conn.Write(b.out); err != nil {
		return 0, 0, err
	}
	var head [16]byte
	for range n {
		if _, err := io.ReadFull(b.in, head[:]); err != nil {
			return admitted, rejected, err
		}
		if _, err := b.in.Discard(int(binary.BigEndian.Uint32(head[12:]))); err != nil {
			return admitted, rejected, err
		}
		if head[3] == 20 {
			admitted++
		} else {
			rejected++
		}
	}
	return admitted, rejected, nil
}
