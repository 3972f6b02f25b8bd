package session

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session/sessiontest"
	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const within = 10 * time.Second

// record is a Handler that keeps what it hears.
type record struct {
	mu           sync.Mutex
	connected    int
	disconnected []error
	pushes       map[string][]Push
	refused      map[string]string
	faulty       map[string]error
	changed      chan struct{} // closed and replaced when anything is heard
}

func newRecord() *record {
	return &record{pushes: map[string][]Push{}, refused: map[string]string{}, faulty: map[string]error{}, changed: make(chan struct{})}
}

func (r *record) note(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *record) Connected(string) { r.note(func() { r.connected++ }) }
func (r *record) Disconnected(err error) {
	r.note(func() { r.disconnected = append(r.disconnected, err) })
}
func (r *record) Pushed(p Push) {
	r.note(func() { r.pushes[p.ID.DataID] = append(r.pushes[p.ID.DataID], p) })
}
func (r *record) Refused(id ID, message string) { r.note(func() { r.refused[id.DataID] = message }) }
func (r *record) Faulty(id ID, err error)       { r.note(func() { r.faulty[id.DataID] = err }) }

// until waits for a condition, which is looked at whenever something is heard; or each 5 ms, for conditions on the server.
func (r *record) until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	late := time.After(within)
	for {
		r.mu.Lock()
		ok, changed := condition(), r.changed
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-time.After(5 * time.Millisecond):
		case <-late:
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}

// run runs a client until the test ends.
func run(t *testing.T, o Options) (*Client, *record) {
	t.Helper()
	r := newRecord()
	if o.MinBackoff == 0 {
		o.MinBackoff = 10 * time.Millisecond
	}
	c := New(o, r)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v", err)
		}
	})
	return c, r
}

func at(addresses ...string) func(context.Context) ([]string, error) {
	return func(context.Context) ([]string, error) { return slices.Clone(addresses), nil }
}

func id(n int) ID { return sessiontest.IDOf(fmt.Sprintf("demo.S%d", n), "1.0", "") }

// TestRestore: after each lost connection every subscription is registered and pushed again, one that was taken back is not.
func TestRestore(t *testing.T) {
	for _, e := range []Encoding{wire.Hessian, wire.Protobuf} {
		s := sessiontest.Start(t)
		c, r := run(t, Options{Servers: at(s.Bolt()), Encoding: e, Window: 7})
		const n = 200
		for i := range n {
			s.Publish(id(i), "a", sessiontest.Publication{Data: fmt.Sprint(i)})
			if a, b := c.Subscribe(id(i)), c.Subscribe(id(i)); a != b {
				t.Errorf("subscribed twice it is %s and %s", a, b)
			}
		}
		all := func(times int) func() bool {
			return func() bool {
				for i := range n {
					if i != 3 && len(r.pushes[id(i).DataID]) < times {
						return false
					}
				}
				return true
			}
		}
		r.until(t, "all pushed", all(1))
		r.mu.Lock()
		if p := r.pushes[id(5).DataID][0]; p.Zones[sessiontest.Zone][0] != "5" || p.Scope != wire.ScopeGlobal || p.Segment != sessiontest.DataCenter {
			t.Errorf("pushed %+v", p)
		}
		r.mu.Unlock()
		c.Unsubscribe(id(3))
		c.Unsubscribe(id(3))
		r.until(t, "one is taken back", func() bool { return s.Subscribed() == n-1 && s.Stats().Unregisters == 1 })
		for i := range 3 {
			s.Cut()
			r.until(t, "all pushed again", all(2+i))
			r.until(t, "connected again", func() bool { return r.connected == 2+i && s.Subscribed() == n-1 })
		}
		if n := c.Subscriptions(); n != 199 {
			t.Errorf("%d subscriptions", n)
		}
		if s.Stats().Failures != nil {
			t.Errorf("results: %v", s.Stats().Failures)
		}
	}
}

// TestHeartbeat: a connection on which nothing happens is tested and stays up.
func TestHeartbeat(t *testing.T) {
	s := sessiontest.Start(t)
	_, r := run(t, Options{Servers: at(s.Bolt()), Heartbeat: 20 * time.Millisecond, RequestTimeout: time.Second})
	r.until(t, "heartbeats", func() bool { return s.Stats().Heartbeats >= 5 })
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.connected != 1 || len(r.disconnected) > 0 {
		t.Errorf("connected %d times, %v", r.connected, r.disconnected)
	}
}

// hang is a server that takes connections and hands over the frames that come, but never answers by itself.
func hang(t *testing.T) (address string, frames chan wire.Frame, conns chan net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	frames, conns = make(chan wire.Frame, 1000), make(chan net.Conn, 100)
	var group sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	group.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			conns <- c
			group.Go(func() {
				r := bufio.NewReader(c)
				for {
					f, err := wire.ReadFrame(r, 1<<20)
					if err != nil {
						return
					}
					frames <- f
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		group.Wait()
	})
	return l.Addr().String(), frames, conns
}

// TestHungServer: a server that says nothing is given up, and the next one is tried.
func TestHungServer(t *testing.T) {
	address, _, _ := hang(t)
	_, r := run(t, Options{Servers: at(address), Heartbeat: 30 * time.Millisecond, RequestTimeout: 60 * time.Millisecond})
	r.until(t, "given up", func() bool {
		return r.connected >= 2 && slices.ContainsFunc(r.disconnected, func(err error) bool { return errors.Is(err, errSilent) })
	})
}

// TestWindow: no more registrations are under way than the window has room for, and unanswered ones are sent again.
func TestWindow(t *testing.T) {
	address, frames, conns := hang(t)
	c, r := run(t, Options{Servers: at(address), Window: 3, Heartbeat: time.Hour, RequestTimeout: 300 * time.Millisecond})
	for i := range 10 {
		c.Subscribe(id(i))
	}
	conn := <-conns
	began := time.Now()
	var ids []uint32
	seen := map[string]int{}
	take := func() wire.Frame {
		f := <-frames
		m, err := wire.DecodeRegister(wire.Hessian, false, f.Content)
		if err != nil {
			t.Fatal(err)
		}
		seen[m.ID.DataID]++
		ids = append(ids, f.ID)
		return f
	}
	for range 3 {
		take()
	}
	select {
	case f := <-frames:
		if time.Since(began) < 200*time.Millisecond {
			t.Errorf("a fourth is sent: %d", f.ID)
		}
		frames <- f
	case <-time.After(100 * time.Millisecond):
	}
	for len(seen) < 10 || seen[id(0).DataID] < 2 { // each three time out and go to the end of the queue
		take()
	}
	answer := wire.EncodeResponse(wire.Hessian, wire.Response{Success: true})
	for _, n := range ids { // also of those that were given up
		if _, err := conn.Write(wire.AppendFrame(nil, wire.Frame{Type: wire.TypeResponse, Command: wire.CommandResponse, ID: n, Codec: wire.CodecHessian,
			Class: wire.ClassName(wire.Hessian, wire.ClassResponse), Content: answer})); err != nil {
			t.Fatal(err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.refused)+len(r.faulty) > 0 {
		t.Error(r.refused, r.faulty)
	}
}

// pushFrame makes a push of content.
func pushFrame(id uint32, class string, content []byte) []byte {
	return wire.AppendFrame(nil, wire.Frame{Type: wire.TypeRequest, Command: wire.CommandRequest, ID: id, Codec: wire.CodecHessian, Timeout: 1000, Class: class, Content: content})
}

// TestBadPushes: pushes that are too long, garbage, or of another class are refused by an answer, and nothing else is disturbed.
func TestBadPushes(t *testing.T) {
	s := sessiontest.Start(t)
	c, r := run(t, Options{Servers: at(s.Bolt()), MaxPush: 64 << 10})
	good, bad := id(1), id(2)
	s.Publish(good, "a", sessiontest.Publication{Data: "1"})
	c.Subscribe(good)
	c.Subscribe(bad)
	r.until(t, "pushed", func() bool { return len(r.pushes[good.DataID]) == 1 && len(r.pushes[bad.DataID]) == 1 })

	const big = 50 << 20
	huge := wire.EncodePush(wire.Hessian, &Push{ID: bad, Zones: map[string][]string{"z": {strings.Repeat("x", big)}}})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s.Send(pushFrame(900, wire.ClassName(wire.Hessian, wire.ClassReceived), huge))
	r.until(t, "the long push refused", func() bool { return r.faulty[bad.DataID] != nil })
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 3*big { // the frame and its copy of the test itself
		t.Errorf("%d bytes were allocated for a push of %d that is not read", grown, big)
	}
	s.Send(pushFrame(901, wire.ClassName(wire.Hessian, wire.ClassReceived), []byte("garbage")))
	r.until(t, "the garbage refused", func() bool { return r.faulty[""] != nil })
	s.Send(pushFrame(902, "com.example.Unknown", []byte("N")))
	r.until(t, "all answered", func() bool { return len(s.Stats().Failures) == 3 })
	if f := s.Stats().Failures; !strings.Contains(f[0], "longer than 65536") || !strings.Contains(f[1], "cannot be read") || !strings.Contains(f[2], "no processor") {
		t.Errorf("the server was told %q", f)
	}
	s.Publish(good, "a", sessiontest.Publication{Data: "2"})
	r.until(t, "the next push", func() bool { return len(r.pushes[good.DataID]) == 2 })
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.connected != 1 {
		t.Errorf("connected %d times", r.connected)
	}
}

// TestForeignFrames: what is not asked for is not handed over, and what is no Bolt ends the connection.
func TestForeignFrames(t *testing.T) {
	s := sessiontest.Start(t)
	c, r := run(t, Options{Servers: at(s.Bolt())})
	c.Subscribe(id(1))
	r.until(t, "pushed", func() bool { return len(r.pushes[id(1).DataID]) == 1 })
	class := wire.ClassName(wire.Hessian, wire.ClassReceived)
	s.Send(pushFrame(1, class, wire.EncodePush(wire.Hessian, &Push{ID: id(2)})))
	s.Send(pushFrame(2, class, wire.EncodePush(wire.Hessian, &Push{ID: id(1), Registrations: []string{"another one's"}})))
	s.Send(wire.AppendFrame(nil, wire.Frame{Type: wire.TypeOneway, Command: wire.CommandRequest, Class: "x"}))
	s.Send(wire.AppendFrame(nil, wire.Frame{Type: wire.TypeRequest, Command: wire.CommandHeartbeat, ID: 5}))
	r.until(t, "answered", func() bool { return s.Stats().Results == 3 })
	s.Send([]byte(strings.Repeat("HTTP/1.1 400 Bad Request\r\n", 3)))
	r.until(t, "connected again", func() bool { return r.connected == 2 })
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.pushes[id(2).DataID]) > 0 || !errors.Is(r.disconnected[0], wire.ErrFraming) {
		t.Errorf("pushes %v, %v", r.pushes, r.disconnected)
	}
}

func TestRefused(t *testing.T) {
	s := sessiontest.Start(t)
	s.Version = 5
	s.Deny(id(1), "not for you", true)
	c, r := run(t, Options{Servers: at(s.Bolt())})
	c.Subscribe(id(1))
	r.until(t, "refused", func() bool { return r.refused[id(1).DataID] == "not for you" })

	s.Deny(id(3), "too busy", false)
	c, r = run(t, Options{Servers: at(s.Bolt()), RequestTimeout: 50 * time.Millisecond})
	c.Subscribe(id(3))
	r.until(t, "refused", func() bool { return r.refused[id(3).DataID] == "too busy" })
	s.Deny(id(3), "", false)
	r.until(t, "taken after all", func() bool { return len(r.pushes[id(3).DataID]) == 1 })

	c, r = run(t, Options{Servers: at(s.Bolt()), Encoding: wire.Protobuf}) // which version 5 does not know
	c.Subscribe(id(2))
	r.until(t, "refused", func() bool { return strings.Contains(r.refused[id(2).DataID], "error") })
}

// TestRotation: servers that cannot be reached do not keep it from those that can, and the list is asked for again each time.
func TestRotation(t *testing.T) {
	s := sessiontest.Start(t)
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	var mu sync.Mutex
	asked := 0
	_, r := run(t, Options{Servers: func(context.Context) ([]string, error) {
		mu.Lock()
		defer mu.Unlock()
		switch asked++; asked {
		case 1:
			return nil, errors.New("no list today")
		case 2:
			return nil, nil
		case 3:
			return []string{dead.Addr().String()}, nil
		}
		return []string{dead.Addr().String(), s.Bolt(), dead.Addr().String()}, nil
	}})
	r.until(t, "connected", func() bool { return r.connected == 1 })
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.disconnected) != 3 || !strings.Contains(r.disconnected[0].Error(), "no list today") || !strings.Contains(r.disconnected[1].Error(), "names no session server") || !strings.Contains(r.disconnected[2].Error(), "connect to") {
		t.Errorf("heard %v", r.disconnected)
	}
}

func TestDiscover(t *testing.T) {
	var mu sync.Mutex
	status, body := 200, ""
	query := ""
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		query = q.URL.RequestURI()
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}))
	defer page.Close()
	defer http.DefaultClient.CloseIdleConnections()
	dead := httptest.NewServer(nil)
	dead.Close()
	ask := Discover(http.DefaultClient, map[string][]string{"zone": {"a b"}}, dead.Listener.Addr().String(), page.Listener.Addr().String())
	answer := func(s int, b string) { mu.Lock(); defer mu.Unlock(); status, body = s, b }
	for _, c := range []struct {
		status int
		body   string
		want   string
		err    string
	}{
		{500, "192.0.2.1:9600", "", "500"},
		{200, "", "", "names no session server"},
		{200, "<html>", "", "is no address"},
		{200, ":9600", "", "is no address"},
		{200, strings.Repeat("192.0.2.1:9600;", 10001), "", "more than 10000"},
		{200, strings.Repeat(" ", maxServerList+1), "", "more than"},
		{200, "192.0.2.1:9600;192.0.2.2:9600?weight=3; [2001:db8::1]:9600 ;rubbish;\n", "192.0.2.1:9600 192.0.2.2:9600 [2001:db8::1]:9600", ""},
		{500, "", "192.0.2.1:9600 192.0.2.2:9600 [2001:db8::1]:9600", ""}, // the last list holds
	} {
		answer(c.status, c.body)
		list, err := ask(t.Context())
		if got := strings.Join(list, " "); got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%d %.50q: %s, %v", c.status, c.body, got, err)
		}
	}
	if query != "/api/servers/query?zone=a+b" {
		t.Errorf("asked for %s", query)
	}
	if _, err := Discover(http.DefaultClient, nil)(t.Context()); err == nil {
		t.Error("without an endpoint there is a list")
	}
}

// TestAccessKey: registrations carry the attributes, and a secret that cannot be read ends the connection with the reason.
func TestAccessKey(t *testing.T) {
	s := sessiontest.Start(t)
	c, r := run(t, Options{Servers: at(s.Bolt()), Sign: AccessKey("AK", func() (string, error) { return "secret", nil })})
	c.Subscribe(id(1))
	r.until(t, "registered", func() bool { return s.Stats().Registers == 1 })
	a := map[string]string{}
	for kv := range slices.Chunk(s.Attributes(), 2) {
		a[kv[0]] = kv[1]
	}
	mac := hmac.New(sha256.New, []byte("secret"))
	mac.Write([]byte("AK\n" + a["!Timestamp"]))
	if len(a) != 4 || a["!AccessKey"] != "AK" || a["!Algorithm"] != "HmacSHA256" || a["!Signature"] != base64.StdEncoding.EncodeToString(mac.Sum(nil)) {
		t.Errorf("attributes %v", a)
	}
	fault := errors.New("no such file")
	c, r = run(t, Options{Servers: at(s.Bolt()), Sign: AccessKey("AK", func() (string, error) { return "", fault })})
	c.Subscribe(id(2))
	r.until(t, "the reason", func() bool { return len(r.disconnected) > 0 && errors.Is(r.disconnected[0], fault) })
}

// TestAccessKeyIsRenewed: a signature is used for five minutes.
func TestAccessKeyIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		secret := "one"
		sign := AccessKey("AK", func() (string, error) { return secret, nil })
		first, _ := sign(t.Context())
		secret = "two"
		time.Sleep(signatureLife - time.Second)
		if again, _ := sign(t.Context()); again["!Signature"] != first["!Signature"] {
			t.Error("the signature is made again too soon")
		}
		time.Sleep(2 * time.Second)
		if again, _ := sign(t.Context()); again["!Signature"] == first["!Signature"] || again["!Timestamp"] == first["!Timestamp"] {
			t.Error("the signature is not made again")
		}
	})
}

// TestBackoff: the pauses grow, with jitter, and begin anew after a connection that was well.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecord()
		var tries []time.Time
		c := New(Options{Servers: func(context.Context) ([]string, error) {
			tries = append(tries, time.Now())
			return nil, errors.New("nobody")
		}, MinBackoff: time.Second, MaxBackoff: 8 * time.Second}, r)
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
		for i, want := 1, time.Second; i < len(tries); i, want = i+1, min(2*want, 8*time.Second) {
			if pause := tries[i].Sub(tries[i-1]); pause < want/2 || pause > want {
				t.Errorf("pause %d is %v, want from %v to %v", i, pause, want/2, want)
			}
		}
		if len(tries) < 8 {
			t.Errorf("%d tries", len(tries))
		}
	})
}

// FuzzServers holds the list of servers to what is an address.
func FuzzServers(f *testing.F) {
	f.Add("192.0.2.1:9600;192.0.2.2:9600?weight=3")
	f.Add("")
	f.Add("[::1]:9600;;a:b:c")
	f.Fuzz(func(t *testing.T, s string) {
		list, err := parseServers(s)
		if (len(list) == 0) == (err == nil) {
			t.Fatalf("%q, %v", list, err)
		}
		for _, a := range list {
			if host, _, err := net.SplitHostPort(a); err != nil || host == "" {
				t.Fatalf("%q is in the list", a)
			}
		}
	})
}
