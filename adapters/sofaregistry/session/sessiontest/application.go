package sessiontest

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session/wire"
)

// Application is a connection to a session server, real or fake, over which a test publishes. What it has published ends with it.
type Application struct {
	name string
	id   string // of this connection: what has ended under a registration is newer to a server than its next life
	conn net.Conn
	done chan struct{}

	mu      sync.Mutex
	next    uint32
	version int64
	waiting map[uint32]chan wire.Response
	err     error
}

// Dial connects an application of that name to a session server, host:port.
func Dial(address, name string) (*Application, error) {
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return nil, fmt.Errorf("sessiontest: %w", err)
	}
	a := &Application{name: name, id: rand.Text(), conn: conn, done: make(chan struct{}), waiting: map[uint32]chan wire.Response{}}
	go a.read()
	return a, nil
}

// Close ends the connection, and with it what was published.
func (a *Application) Close() {
	a.conn.Close()
	<-a.done
}

func (a *Application) read() {
	defer close(a.done)
	r := bufio.NewReader(a.conn)
	for {
		f, err := wire.ReadFrame(r, 16<<20)
		if err == nil && f.Type != wire.TypeResponse {
			err = errors.New("sessiontest: the server pushes to a publisher")
		}
		var m wire.Response
		if err == nil {
			e, _ := wire.MessageOf(f.Class)
			if f.Status != wire.StatusSuccess {
				m.Message = wire.StatusText(f.Status)
			} else {
				m, err = wire.DecodeResponse(e, f.Content)
			}
		}
		a.mu.Lock()
		if err != nil {
			a.err = err
			for id, c := range a.waiting {
				close(c)
				delete(a.waiting, id)
			}
			a.mu.Unlock()
			return
		}
		if c := a.waiting[f.ID]; c != nil {
			c <- m
			delete(a.waiting, f.ID)
		}
		a.mu.Unlock()
	}
}

// Publish publishes data under an id, in place of what this registration, any text, published before. It returns when the server has
// taken it.
func (a *Application) Publish(id wire.ID, registration string, data ...string) error {
	return a.register(&wire.Register{ID: id, Registration: registration, Data: data})
}

// Withdraw takes back what a registration published.
func (a *Application) Withdraw(id wire.ID, registration string) error {
	return a.register(&wire.Register{ID: id, Registration: registration, Remove: true})
}

// register registers as SOFARegistry's own client does: what is refused is tried again. A session server refuses a registration that
// overtakes its own note of the connection (version 5.4.2: "has not connected session server").
func (a *Application) register(m *wire.Register) error {
	m.Registration = a.id + " " + m.Registration
	late := time.After(patience)
	again := time.NewTicker(patience / 100)
	defer again.Stop()
	for {
		err := a.try(m)
		if !errors.Is(err, errRefused) {
			return err
		}
		select {
		case <-again.C:
		case <-late:
			return err
		}
	}
}

// patience is how long an answer, or an end of refusals, is waited for.
const patience = 10 * time.Second

var errRefused = errors.New("sessiontest: the server refuses")

// try sends one registration and waits for its answer.
func (a *Application) try(m *wire.Register) error {
	answer := make(chan wire.Response, 1)
	a.mu.Lock()
	if a.err != nil {
		defer a.mu.Unlock()
		return a.err
	}
	a.next++
	a.version++
	m.Zone, m.Application, m.Version, m.Timestamp = Zone, a.name, a.version, time.Now().UnixMilli()
	a.waiting[a.next] = answer
	b := wire.AppendFrame(nil, wire.Frame{Type: wire.TypeRequest, Command: wire.CommandRequest, ID: a.next, Codec: wire.CodecHessian, Timeout: 5000,
		Class: wire.ClassName(wire.Hessian, wire.ClassPublisher), Content: wire.EncodePublisher(wire.Hessian, m)})
	a.mu.Unlock()
	if _, err := a.conn.Write(b); err != nil {
		return fmt.Errorf("sessiontest: %w", err)
	}
	select {
	case r, ok := <-answer:
		if !ok {
			return fmt.Errorf("sessiontest: the connection is lost: %w", a.err)
		}
		if !r.Success || r.Refused {
			return fmt.Errorf("%w: %s", errRefused, r.Message)
		}
		return nil
	case <-time.After(patience):
		return errors.New("sessiontest: the server does not answer")
	}
}
