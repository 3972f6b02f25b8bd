package traffic_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"maps"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/e2e/machine"
	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/dubbo"
)

// The providers and callers here speak Dubbo by themselves: what is held to the call is which provider got it and what came of it, and
// some providers have to fail on demand.

// frame builds a Dubbo frame: see filtertest.Dubbo.
func frame(kind string, id uint64, fields map[string]string) []byte {
	f := maps.Clone(fields)
	if f == nil {
		f = map[string]string{}
	}
	f["id"] = strconv.FormatUint(id, 10)
	b, err := filtertest.Dubbo(kind, f)
	if err != nil {
		panic(err)
	}
	return b
}

// The statuses of a response (Dubbo's org.apache.dubbo.remoting.exchange.Response): well, a provider that has failed, and one whose
// threads are all busy.
const (
	statusOK     = 20
	statusFailed = 80
	statusFull   = 100
)

// An answer is what a provider does with a call; the zero value answers well, at once.
type answer struct {
	status int
	after  time.Duration
}

// A provider is a Dubbo server on a machine of its own. It serves whatever is asked of it, and answers with as many bytes more than base as
// its number says, so that its callers know it.
type provider struct {
	number  int
	machine *machine.Machine
	does    func(service string, number int, method string) answer

	mu   sync.Mutex
	got  map[string]int // calls by service
	open map[net.Conn]bool
}

const base = 10

// startProvider serves on a machine until the test ends.
func startProvider(t *testing.T, number int, m *machine.Machine, does func(service string, number int, method string) answer) *provider {
	t.Helper()
	p := &provider{number: number, machine: m, does: does, got: map[string]int{}, open: map[net.Conn]bool{}}
	var l net.Listener
	if err := m.Do(func() (err error) {
		l, err = net.Listen("tcp4", p.address())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = l.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		for c := range p.open {
			_ = c.Close()
		}
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			p.open[c] = true
			p.mu.Unlock()
			go p.serve(c)
		}
	}()
	return p
}

// address is where it listens.
func (p *provider) address() string { return fmt.Sprintf("%s:%d", p.machine.Address(), port) }

// calls returns how many calls of a service it has got.
func (p *provider) calls(service string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.got[service]
}

func (p *provider) serve(c net.Conn) {
	defer c.Close()
	r := bufio.NewReaderSize(c, 64<<10)
	var mu sync.Mutex
	write := func(b []byte) {
		mu.Lock()
		defer mu.Unlock()
		_, _ = c.Write(b)
	}
	for {
		b, f, err := filtertest.ReadDubbo(r)
		if err != nil {
			return
		}
		switch f.Kind {
		case protocol.KindHeartbeat:
			write(frame("ack", f.ID, nil))
		case protocol.KindRequest:
			service, method := string(f.Service.Of(b)), string(f.Method.Of(b))
			p.mu.Lock()
			p.got[service]++
			p.mu.Unlock()
			a := p.does(service, p.number, method)
			if a.status == 0 {
				a.status = statusOK
			}
			response := frame("resp", f.ID, map[string]string{"status": strconv.Itoa(a.status), "size": strconv.Itoa(base + p.number)})
			if a.after == 0 {
				write(response)
			} else {
				time.AfterFunc(a.after, func() { write(response) })
			}
		}
	}
}

// A reply is what came of a call.
type reply struct {
	outcome protocol.Outcome
	by      int    // the provider's number; -1 where none has answered
	said    string // what the mesh says in its place
	took    time.Duration
	err     error // the connection is gone
}

func (r reply) String() string {
	return fmt.Sprintf("%s by %d after %s %q %v", r.outcome, r.by, r.took.Round(time.Millisecond), r.said, r.err)
}

// A client is one connection of a Dubbo consumer. Any number of goroutines may call.
type client struct {
	c net.Conn

	mu      sync.Mutex
	id      uint64
	waiting map[uint64]chan reply
	err     error
}

// dial connects from a machine, as an application on it would.
func dial(ctx context.Context, m *machine.Machine, address string) (*client, error) {
	conn, err := m.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c := &client{c: conn, waiting: map[uint64]chan reply{}}
	go c.read()
	return c, nil
}

// noReply is how long a call may go without any answer: longer than any that is made here takes.
const noReply = 60 * time.Second

func (c *client) read() {
	r := bufio.NewReaderSize(c.c, 64<<10)
	for {
		b, f, err := filtertest.ReadDubbo(r)
		if err == nil && f.Kind != protocol.KindResponse {
			continue
		}
		c.mu.Lock()
		if err != nil {
			c.err = err
			for _, w := range c.waiting {
				w <- reply{by: -1, err: err}
			}
			c.waiting = nil
			c.mu.Unlock()
			return
		}
		w := c.waiting[f.ID]
		delete(c.waiting, f.ID)
		c.mu.Unlock()
		if w == nil {
			c.end(fmt.Errorf("an answer to nothing, or a second one: %d", f.ID))
			continue
		}
		out := reply{outcome: f.Outcome, by: -1}
		if i := bytes.Index(b, []byte("isthmus: ")); i >= 0 {
			text := b[i:]
			if j := bytes.IndexFunc(text, func(r rune) bool { return r < ' ' || r > '~' }); j >= 0 {
				text = text[:j]
			}
			out.said = string(text)
		} else {
			// The value is a string of fewer than 32 bytes: its length, behind the kind of the result.
			out.by = int(b[dubbo.HeaderLen+1]) - base
		}
		w <- out
	}
}

// end closes the connection, and says why to whoever waits.
func (c *client) end(why error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = why
	}
	c.mu.Unlock()
	_ = c.c.Close()
}

// call makes one call and waits for its answer.
func (c *client) call(fields map[string]string) reply {
	w := make(chan reply, 1)
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return reply{by: -1, err: c.err}
	}
	c.id++
	id := c.id
	c.waiting[id] = w
	began := time.Now()
	_, err := c.c.Write(frame("req", id, fields)) // under the lock: frames must not be mixed
	c.mu.Unlock()
	if err != nil {
		return reply{by: -1, err: err}
	}
	select {
	case r := <-w:
		r.took = time.Since(began)
		return r
	case <-time.After(noReply):
		return reply{by: -1, err: fmt.Errorf("call %d: no answer within %s", id, noReply), took: noReply}
	}
}
