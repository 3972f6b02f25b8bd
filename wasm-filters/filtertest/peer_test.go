package filtertest_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/filter"
	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/dubbo"
)

// A proxy is one connection through the filter, as Envoy has it: from a client to a server, one callback at a time.
type proxy struct {
	mu     sync.Mutex
	n      *filtertest.Native
	c      *filter.Conn
	client net.Conn
	server net.Conn
}

// run passes on what comes from one side until it ends.
func (p *proxy) run(side filter.Side, from, to net.Conn) error {
	buf := make([]byte, 256<<10)
	for {
		k, err := from.Read(buf)
		if err != nil {
			to.Close()
			return nil
		}
		p.mu.Lock()
		b := &filtertest.Slice{B: bytes.Clone(buf[:k])}
		closed := p.c.Data(side, b, k, false) == filter.Close
		if !closed {
			_, err = to.Write(b.B)
		}
		if err == nil && !closed {
			if err = p.n.Tick(); err == nil {
				// The timer that Envoy would run.
				for _, r := range p.n.Released() {
					closed = closed || r.Closed
					_, err = p.server.Write(r.Data)
				}
			}
		}
		p.mu.Unlock()
		if closed {
			p.client.Close()
			p.server.Close()
			return fmt.Errorf("%s: closed by the filter", side)
		}
		if err != nil {
			return nil
		}
	}
}

// throughFilter returns the client's and the server's end of a connection through a filter.
func throughFilter(t *testing.T, conf string, dir policy.Direction) (client, server net.Conn) {
	t.Helper()
	pair := func() (a, b net.Conn) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		if a, err = net.Dial("tcp", ln.Addr().String()); err == nil {
			b, err = ln.Accept()
		}
		if err != nil {
			t.Fatal(err)
		}
		return a, b
	}
	n := filtertest.NewNative(new(filtertest.World), protocols)
	if err := n.Configure(conf); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Open(dir); err != nil {
		t.Fatal(err)
	}
	p := &proxy{n: n, c: n.Opened(0)}
	client, p.client = pair()
	p.server, server = pair()
	var wg sync.WaitGroup
	wg.Add(2)
	fail := func(err error) {
		if err != nil {
			t.Error(err)
		}
		wg.Done()
	}
	go func() { fail(p.run(filter.Downstream, p.client, p.server)) }()
	go func() { fail(p.run(filter.Upstream, p.server, p.client)) }()
	t.Cleanup(func() {
		client.Close()
		server.Close()
		wg.Wait()
	})
	return client, server
}

func clear2() *http.Protocols {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

// dubboProvider answers calls with as many bytes as they have, all at once when hold of them have come.
func dubboProvider(t *testing.T, c net.Conn, hold int) {
	answer := responder(t, dubbo.Codec{}, nil)
	var held []byte
	buf := make([]byte, 32<<10)
	n := 0
	for {
		k, err := c.Read(buf)
		if err != nil {
			return
		}
		for _, f := range split(answer(buf[:k])) {
			if f[2]&0x20 != 0 { // the answer to a heartbeat
				if _, err := c.Write(f); err != nil {
					return
				}
				continue
			}
			held = append(held, f...)
			n++
		}
		if n >= hold {
			if _, err := c.Write(held); err != nil {
				return
			}
			held = nil
		}
	}
}

// split cuts Dubbo frames apart.
func split(b []byte) (frames [][]byte) {
	for len(b) > 0 {
		var f protocol.Frame
		if _, err := (dubbo.Codec{}).Decode(&f, b); err != nil || f.Len > uint64(len(b)) || f.Len == 0 {
			panic("not a frame")
		}
		frames, b = append(frames, b[:f.Len]), b[f.Len:]
	}
	return frames
}

// TestLowerServesRealClient: net/http's HTTP/2 client calls a provider, more at once than the first windows have room for, while the
// provider answers nothing until it has all of them.
func TestLowerServesRealClient(t *testing.T) {
	client, server := throughFilter(t, `{"lower":{}}`, policy.DirectionServer)
	const calls = 200
	go dubboProvider(t, server, calls)
	tr := &http.Transport{Protocols: clear2(), DialContext: func(context.Context, string, string) (net.Conn, error) { return client, nil }}
	cc, err := tr.NewClientConn(t.Context(), "http", "host:80")
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	var wg sync.WaitGroup
	for i := range calls {
		wg.Add(1)
		go func() {
			defer wg.Done()
			body, err := filtertest.Dubbo("req", map[string]string{"id": fmt.Sprint(i % 7), "service": "demo.A", "method": "m", "size": fmt.Sprint(1000 + i)})
			if err != nil {
				t.Error(err)
				return
			}
			req, err := http.NewRequest("POST", "http://host/demo.A/m", bytes.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("content-type", "application/x-isthmus-dubbo")
			req.Header.Set("x-request-id", strings.Repeat(fmt.Sprint(i), 10))
			resp, err := cc.RoundTrip(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			var f protocol.Frame
			if err == nil {
				_, err = (dubbo.Codec{}).Decode(&f, got)
			}
			if err != nil || resp.Header.Get("x-isthmus-outcome") != "ok" || f.ID != uint64(i%7) || len(got) < len(body) {
				t.Errorf("call %d: %v, %v, id %d, %d bytes of %d", i, err, resp.Header, f.ID, len(got), len(body))
			}
		}()
	}
	wg.Wait()
}

// TestLiftSpeaksToRealServer: a caller's calls reach net/http's HTTP/2 server, which answers them as another filter would, in windows
// smaller than the calls.
func TestLiftSpeaksToRealServer(t *testing.T) {
	client, server := throughFilter(t, `{"lift":{},"limits":{"maxInFlight":5000}}`, policy.DirectionClient)
	const calls = 300
	srv := &http.Server{Protocols: clear2(), HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 100, MaxReceiveBufferPerConnection: 66000, MaxReceiveBufferPerStream: 3000},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
				return
			}
			var f protocol.Frame
			if need, err := (dubbo.Codec{}).Decode(&f, body); err != nil || need > 0 || f.Len != uint64(len(body)) || r.Host != "demo.a.dubbo.isthmus" || r.URL.Path != "/demo.A/m" {
				t.Errorf("%s%s: %d bytes of %d, %v", r.Host, r.URL.Path, len(body), f.Len, err)
				return
			}
			if f.ID%5 == 0 {
				http.Error(w, "no healthy upstream", http.StatusServiceUnavailable)
				return
			}
			w.Header().Set("x-isthmus-outcome", "ok")
			_, _ = w.Write(responder(t, dubbo.Codec{}, nil)(body))
		})}
	ln := &once{c: server, done: make(chan struct{})}
	go func() { _ = srv.Serve(ln) }()
	defer srv.Close()
	go func() {
		for i := range calls {
			b, err := filtertest.Dubbo("req", map[string]string{"id": fmt.Sprint(i), "service": "demo.A", "method": "m", "size": fmt.Sprint(i * 30)})
			if err != nil {
				t.Error(err)
			}
			if _, err := client.Write(b); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	var got []byte
	seen := make([]bool, calls)
	buf := make([]byte, 64<<10)
	for n := 0; n < calls; {
		var f protocol.Frame
		need, err := (dubbo.Codec{}).Decode(&f, got)
		if err != nil {
			t.Fatal(err)
		}
		if need > 0 || f.Len > uint64(len(got)) {
			k, err := client.Read(buf)
			if err != nil {
				t.Fatalf("after %d: %v", n, err)
			}
			got = append(got, buf[:k]...)
			continue
		}
		if want := f.ID%5 != 0; f.Kind != protocol.KindResponse || seen[f.ID] || (f.Outcome == protocol.OutcomeOK) != want {
			t.Errorf("call %d: %v, again %v, %s", f.ID, f.Kind, seen[f.ID], f.Outcome)
		}
		seen[f.ID] = true
		got = got[f.Len:]
		n++
	}
}

// once is a listener with one connection.
type once struct {
	c    net.Conn
	done chan struct{}
	once sync.Once
}

func (l *once) Accept() (net.Conn, error) {
	if c := l.c; c != nil {
		l.c = nil
		return c, nil
	}
	<-l.done
	return nil, net.ErrClosed
}

func (l *once) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *once) Addr() net.Addr { return &net.TCPAddr{} }
