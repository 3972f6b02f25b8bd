package lift_test

import (
	"bufio"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// The service that is called, and its host as translate names it.
const (
	service = "demo.GreetService"
	version = "1.0.0"
	host    = "demo.greet-service.v1-0-0.dubbo.isthmus"
)

// frame builds a Dubbo frame: see filtertest.Dubbo.
func frame(kind string, id uint64, fields ...string) []byte {
	f := map[string]string{"id": strconv.FormatUint(id, 10), "service": service, "version": version, "method": "greet", "caller": "shop"}
	for i := 0; i < len(fields); i += 2 {
		f[fields[i]] = fields[i+1]
	}
	b, err := filtertest.Dubbo(kind, f)
	if err != nil {
		panic(err)
	}
	return b
}

// A provider is a Dubbo server. It answers heartbeats by itself.
type provider struct {
	ln         net.Listener
	calls      atomic.Int64
	oneWays    atomic.Int64
	heartbeats atomic.Int64
	conns      atomic.Int64
	// answer returns the response to a request, nil for none; it runs in the connection's reader.
	answer func(req []byte, f protocol.Frame, reply func([]byte)) []byte

	mu   sync.Mutex
	open []net.Conn
}

// startProvider serves until the test ends.
func startProvider(t testing.TB, answer func(req []byte, f protocol.Frame, reply func([]byte)) []byte) *provider {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if answer == nil {
		answer = func(_ []byte, f protocol.Frame, _ func([]byte)) []byte { return frame("resp", f.ID) }
	}
	p := &provider{ln: ln, answer: answer}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			p.conns.Add(1)
			p.mu.Lock()
			p.open = append(p.open, c)
			p.mu.Unlock()
			go p.serve(c)
		}
	}()
	return p
}

func (p *provider) port() int { return p.ln.Addr().(*net.TCPAddr).Port }

// closeAll ends the connections that there are.
func (p *provider) closeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.open {
		c.Close()
	}
}

func (p *provider) serve(c net.Conn) {
	defer c.Close()
	r, w := bufio.NewReaderSize(c, 64<<10), bufio.NewWriterSize(c, 64<<10)
	var mu sync.Mutex
	reply := func(b []byte) {
		mu.Lock()
		defer mu.Unlock()
		_, _ = w.Write(b)
		_ = w.Flush()
	}
	for {
		b, f, err := filtertest.ReadDubbo(r)
		if err != nil {
			return
		}
		var out []byte
		switch f.Kind {
		case protocol.KindHeartbeat:
			p.heartbeats.Add(1)
			out = frame("ack", f.ID)
		case protocol.KindOneWay:
			p.oneWays.Add(1)
		case protocol.KindRequest:
			p.calls.Add(1)
			out = p.answer(b, f, reply)
		}
		mu.Lock()
		_, err = w.Write(out)
		if err == nil && r.Buffered() == 0 {
			err = w.Flush()
		}
		mu.Unlock()
		if err != nil {
			return
		}
	}
}

// A client is one connection of a Dubbo client.
type client struct {
	t testing.TB
	c net.Conn
	r *bufio.Reader
}

func dial(t testing.TB, port int) *client {
	t.Helper()
	c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &client{t, c, bufio.NewReaderSize(c, 64<<10)}
}

func (c *client) send(b []byte) {
	c.t.Helper()
	if _, err := c.c.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

// receive waits for one frame.
func (c *client) receive() ([]byte, protocol.Frame) {
	c.t.Helper()
	if err := c.c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		c.t.Fatal(err)
	}
	b, f, err := filtertest.ReadDubbo(c.r)
	if err != nil {
		c.t.Fatal(err)
	}
	return b, f
}

// nothingElse asks for a heartbeat, and checks that nothing comes before it.
func (c *client) nothingElse() {
	c.t.Helper()
	c.send(frame("hb", 9999))
	if _, f := c.receive(); f.ID != 9999 {
		c.t.Errorf("%v %d came", f.Kind, f.ID)
	}
}

// call makes one call and returns what came back.
func (c *client) call(id uint64, fields ...string) ([]byte, protocol.Frame) {
	c.t.Helper()
	c.send(frame("req", id, fields...))
	b, f := c.receive()
	if f.ID != id || f.Kind != protocol.KindResponse {
		c.t.Fatalf("call %d was answered by %v %d", id, f.Kind, f.ID)
	}
	return b, f
}
