package lifted_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/e2e/caller"
	"github.com/isthmus-mesh/isthmus/e2e/machine"
	"github.com/isthmus-mesh/isthmus/e2e/mesh"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
	"github.com/isthmus-mesh/isthmus/e2e/rig"
	"github.com/isthmus-mesh/isthmus/mcp-server/config"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/protocoltest"
)

// greeting is a call of demo.GreetService.sayHello as Dubbo writes it, in Hessian 2.0.
func greeting() []byte {
	var body []byte
	text := func(s string) {
		if len(s) > 31 {
			body = append(body, 0x30+byte(len(s)>>8)) // up to 1023 bytes
		}
		body = append(append(body, byte(len(s))), s...)
	}
	for _, s := range []string{"2.0.2", "demo.GreetService", "1.0.0", "sayHello", "Ljava/lang/String;", "switch"} {
		text(s)
	}
	body = append(body, 'H')
	for _, s := range []string{"path", "demo.GreetService", "interface", "demo.GreetService", "version", "1.0.0", "group", "g1", "timeout", "30000"} {
		text(s)
	}
	body = append(body, 'Z')
	head := make([]byte, 16, 16+len(body))
	head[0], head[1], head[2] = 0xda, 0xbb, 0xc2 // a two-way request in Hessian 2.0
	binary.BigEndian.PutUint32(head[12:], uint32(len(body)))
	return append(head, body...)
}

// hello is a call of demo.HelloService.sayHello as SOFARPC wrote it.
func hello(t *testing.T) []byte {
	t.Helper()
	root, err := peer.Root()
	if err != nil {
		t.Fatal(err)
	}
	return protocoltest.Frames(t, filepath.Join(root, "wasm-filters", "protocol", "bolt", "testdata", "frames"))["v1-request"]
}

// A dialect is what a line has to know of its protocol.
type dialect struct {
	request []byte
	id      int // where the id ends in a frame; its last four bytes count
	head    int // bytes of a response's header
	length  func(head []byte) int
	answers func(head []byte) bool              // the frame is a response
	well    func(head, body []byte) (good bool) // it says that the call went well
}

func dubbo() *dialect {
	return &dialect{
		request: greeting(), id: 12, head: 16,
		length:  func(h []byte) int { return int(binary.BigEndian.Uint32(h[12:])) },
		answers: func(h []byte) bool { return h[2]&0x20 == 0 }, // no heartbeat, nor that the provider ends
		well:    func(h, b []byte) bool { return h[3] == 20 && len(b) > 0 && (b[0] == 0x94 || b[0] == 0x91) },
	}
}

func bolt(t *testing.T) *dialect {
	return &dialect{
		request: hello(t), id: 9, head: 20,
		length: func(h []byte) int {
			return int(binary.BigEndian.Uint16(h[12:])) + int(binary.BigEndian.Uint16(h[14:])) + int(binary.BigEndian.Uint32(h[16:]))
		},
		answers: func([]byte) bool { return true },
		well: func(h, b []byte) bool {
			return binary.BigEndian.Uint16(h[10:]) == 0 && !bytes.Contains(b, []byte("sofa_head_response_error"))
		},
	}
}

// line is a connection of a caller that never waits: so many calls are under way on it at every moment until it is told to stop.
type line struct {
	conn  net.Conn
	stop  atomic.Bool
	calls atomic.Int64 // that were answered well
	done  chan struct{}
	err   error
}

// open opens connections to a provider, and begins to call.
func (l *lifted) open(d *dialect, lines, inFlight int) []*line {
	l.t.Helper()
	out := make([]*line, lines)
	for i := range out {
		conn, err := l.sidecar.Machine().DialContext(l.t.Context(), "tcp", l.addresses[0])
		l.must(err)
		x := &line{conn: conn, done: make(chan struct{})}
		out[i] = x
		go x.run(d, inFlight)
		l.t.Cleanup(func() { conn.Close(); <-x.done })
	}
	return out
}

func (x *line) run(d *dialect, inFlight int) {
	defer close(x.done)
	request, id := bytes.Clone(d.request), uint32(0)
	waiting := map[uint32]bool{}
	call := func() error {
		id++
		binary.BigEndian.PutUint32(request[d.id-4:], id)
		waiting[id] = true
		_, err := x.conn.Write(request)
		return err
	}
	for range inFlight {
		if x.err = call(); x.err != nil {
			return
		}
	}
	r, head := bufio.NewReader(x.conn), make([]byte, d.head)
	for len(waiting) > 0 {
		if _, err := io.ReadFull(r, head); err != nil {
			x.err = fmt.Errorf("%d calls are not answered: %w", len(waiting), err)
			return
		}
		body := make([]byte, d.length(head))
		if _, err := io.ReadFull(r, body); err != nil {
			x.err = err
			return
		}
		if !d.answers(head) {
			continue
		}
		answered := binary.BigEndian.Uint32(head[d.id-4:])
		if !waiting[answered] || !d.well(head, body) {
			x.err = fmt.Errorf("call %d is answered with % x: %.200q", answered, head, body)
			return
		}
		delete(waiting, answered)
		x.calls.Add(1)
		if !x.stop.Load() {
			if x.err = call(); x.err != nil {
				return
			}
		}
	}
}

// count is how many calls lines have made.
func count(lines []*line) (calls int64) {
	for _, x := range lines {
		calls += x.calls.Load()
	}
	return calls
}

// ended stops lines, and fails the test for those that did not end well. It returns how many calls they made.
func (l *lifted) ended(lines []*line) int64 {
	l.t.Helper()
	for _, x := range lines {
		x.stop.Store(true)
	}
	for i, x := range lines {
		<-x.done
		if x.err != nil {
			l.t.Errorf("connection %d, after %d calls: %v", i, x.calls.Load(), x.err)
		}
	}
	return count(lines)
}

// moded opens connections of a mode: one after the other until one has it, and then more.
func (l *lifted) moded(what string, lifted bool, d *dialect, lines, inFlight int) (all []*line) {
	l.t.Helper()
	l.until(what, func(ctx context.Context) error {
		was, passed, err := l.chains(ctx)
		if err != nil {
			return err
		}
		x := l.open(d, 1, inFlight)[0]
		all = append(all, x)
		for x.calls.Load() < int64(2*inFlight) {
			select {
			case <-x.done:
				l.t.Fatalf("%s: a connection ends: %v", what, x.err)
			case <-ctx.Done():
				return errors.New("a call is not answered")
			case <-time.After(time.Millisecond):
			}
		}
		is, passes, err := l.chains(ctx)
		if err == nil && ((is > was) != lifted || (passes > passed) == lifted) {
			err = fmt.Errorf("%d new connections are lifted, and %d pass", is-was, passes-passed)
		}
		return err
	})
	return append(all, l.open(d, lines-1, inFlight)...)
}

// number adds up the numbers of the consumer's sidecar whose names a regular expression finds.
func (l *lifted) number(ctx context.Context, expression string) (sum int, err error) {
	body, err := l.sidecar.Admin(ctx, "/stats?format=json&filter="+url.QueryEscape(expression))
	if err != nil {
		return 0, err
	}
	var page struct {
		Stats []struct {
			Value int `json:"value"`
		} `json:"stats"`
	}
	if err := json.Unmarshal(body, &page); err != nil {
		return 0, err
	}
	for _, s := range page.Stats {
		sum += s.Value
	}
	return sum, nil
}

// chains returns how many connections to the port the consumer's sidecar has had on each filter chain: lifted, and passing.
func (l *lifted) chains(ctx context.Context) (lifted, passing int, err error) {
	if lifted, err = l.number(ctx, `^http\.outbound_0\.0\.0\.0_(20880|12200).*downstream_cx_total$`); err == nil {
		passing, err = l.number(ctx, `^tcp\.isthmus-passthrough\.downstream_cx_total$`)
	}
	return lifted, passing, err
}

// draining is how many listeners and filter chains Envoy lets end.
func (l *lifted) draining() int {
	n, err := l.number(l.t.Context(), `^listener_manager\.total_(listeners|filter_chains)_draining$`)
	l.must(err)
	return n
}

// unreadable makes calls on lifted connections that the filter can make nothing of: they reach whom they were addressed to all the same, and
// are Problems.
func (l *lifted) unreadable() {
	l.t.Helper()
	dial := func() net.Conn {
		conn, err := l.sidecar.Machine().DialContext(l.t.Context(), "tcp", l.addresses[0])
		l.must(err)
		l.t.Cleanup(func() { conn.Close() })
		return conn
	}
	strange := greeting()
	strange[2] = strange[2]&0xe0 | 21 // a serialization that neither the filter knows nor, without more, Dubbo
	_, err := dial().Write(strange)
	l.must(err)
	// Dubbo has no answer for it either, but its log does.
	ctx, cancel := context.WithTimeout(l.t.Context(), within)
	defer cancel()
	_, err = l.providers[0].UntilLine(ctx, "the request in an unknown serialization", func(line string) bool {
		return strings.Contains(line, "Unrecognized serialize type from consumer: 21")
	})
	l.must(err)
	_, before, err := l.chains(l.t.Context())
	l.must(err)
	// It never ends: the provider speaks no TLS. But it gets there.
	encrypted := dial()
	go func() { _ = tls.Client(encrypted, &tls.Config{InsecureSkipVerify: true}).Handshake() }()
	l.until("an encrypted connection to pass", func(ctx context.Context) error {
		_, passing, err := l.chains(ctx)
		if err == nil && passing == before {
			err = errors.New("it does not")
		}
		return err
	})
	l.until("the Problems", func(ctx context.Context) error {
		list, err := mesh.Ask[api.ProblemList](ctx, l.Mesh, "/api/v1/problems?stage=sidecar")
		var codes []string
		for _, p := range list.Items {
			codes = append(codes, p.Code)
		}
		if err == nil && !(slices.Contains(codes, "Unreadable") && slices.Contains(codes, "Encrypted")) {
			err = fmt.Errorf("there are %q", codes)
		}
		return err
	})
}

// TestModes: a service goes from lifted to passing and back, by configuration, while an ordinary Dubbo consumer and one that never
// pauses call it on connections of every mode through an Envoy of four workers. No connection ends and no call is lost. What
// is lifted is routed, or goes where it was addressed, from one call to the next.
func TestModes(t *testing.T) {
	lift := func(mode string, callers ...any) map[string]any {
		return map[string]any{"services": []any{map[string]any{"framework": "dubbo", "mode": mode}}, "callers": callers, "attachments": []string{"tenant"}}
	}
	l := newLiftedAs(t, lift(""), config.LowerCaller, 4)
	// All that is dialled is the first provider. Only what is routed comes to the second one.
	l.must(l.ApplyRule("greet", `apiVersion: governance.isthmus.io/v1alpha1
kind: RouteRule
metadata: {name: greet}
spec:
  service: {interface: demo.GreetService}
  routes: [{to: [{labels: {version: v2}}]}]
`))
	l.routed("sayHello", "v2-or-all") // until then a call may meet the route before its cluster
	mark := l.caller.Mark()
	l.must(l.caller.Rates(map[string]float64{"sayHello": 50}))
	lifted, passed, err := l.chains(t.Context())
	l.must(err)
	if lifted == 0 || passed > 0 {
		t.Errorf("of the ordinary consumer's connections %d are lifted, and %d pass", lifted, passed)
	}
	before := l.draining()
	const lines, inFlight = 4, 4
	all := l.open(dubbo(), lines, inFlight)
	opened := func(what string, lifted bool) {
		t.Helper()
		all = append(all, l.moded(what, lifted, dubbo(), lines, inFlight)...)
	}
	// routed waits until lifted calls go to the second provider, or no more of them do.
	second := func() int {
		n, err := l.sidecar.Sent(t.Context(), greetHost, "")
		l.must(err)
		return n[l.addresses[1]]
	}
	routed := func(want bool) {
		t.Helper()
		before, since := second(), int64(0)
		l.until(fmt.Sprintf("calls that are routed: %v", want), func(ctx context.Context) error {
			sum := count(all)
			if since == 0 {
				since = sum
			}
			now := second()
			calls, there := sum-since, now-before
			if calls < 500 {
				return fmt.Errorf("only %d calls so far", calls)
			}
			if there > 0 == want {
				return nil
			}
			before, since = now, sum
			return fmt.Errorf("of %d calls %d were routed", calls, there)
		})
	}

	routed(true)
	l.until("the API to say so", func(ctx context.Context) error {
		svc, err := mesh.Ask[api.ServiceDetail](ctx, l.Mesh, "/api/v1/services/dubbo%2Fdemo.GreetService:1.0.0:g1")
		if err != nil {
			return err
		}
		rule, err := mesh.Ask[api.RuleDetail](ctx, l.Mesh, "/api/v1/rules/RouteRule/default/greet")
		if err == nil && (svc.Lift == nil || svc.Lift.Lifted != 1 || svc.Lift.Of != 1 || svc.Lift.Since.IsZero() || rule.Effective.State != api.EffectiveEnforced || len(rule.Effective.Routes) != 1) {
			err = fmt.Errorf("lifted %+v, routed %+v", svc.Lift, rule.Effective)
		}
		return err
	})
	l.unreadable()
	l.must(l.configure(lift(config.ModePassthrough)))
	opened("connections that pass", false)
	routed(false)
	l.must(l.configure(lift(config.ModeDialled)))
	opened("connections that are lifted again", true)
	routed(false)
	l.must(l.configure(lift(config.ModeLift, map[string]any{"application": "somebody", "mode": config.ModePassthrough})))
	routed(true)
	l.must(l.configure(lift(config.ModeLift, map[string]any{"application": "greet-consumer", "mode": config.ModePassthrough})))
	opened("connections of one caller that pass", false)
	routed(false)

	total := l.ended(all)
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	_, err = l.caller.Quiet(ctx)
	l.must(err)
	seconds, faults := l.caller.Since(mark)
	c := caller.Sum(seconds).Total()
	if c.OK == 0 || c.Errors+c.Exceptions > 0 {
		t.Errorf("the consumer says %v %v", caller.Sum(seconds), faults)
	}
	t.Logf("%d calls on %d connections that never paused, %d of an ordinary consumer: each was answered well", total, len(all), c.OK)
	if n, err := l.number(t.Context(), `^listener_manager\.lds\.update_rejected$`); err != nil || n > 0 {
		t.Errorf("Envoy has refused %d configurations, %v", n, err)
	}
	// What drains would be closed, with whatever is under way, when Envoy has waited long enough.
	if after := l.draining(); after != before {
		t.Errorf("%d listeners and filter chains are draining, %d before", after, before)
	}
}

// TestModesOfBolt: the same for SOFARPC.
func TestModesOfBolt(t *testing.T) {
	lift := func(mode string) map[string]any {
		return map[string]any{"services": []any{map[string]any{"framework": "sofa", "mode": mode}}}
	}
	m := rig.Mesh(t)
	l := &lifted{Mesh: m, t: t}
	ctx := t.Context()
	l.must(m.StartZooKeeper(ctx))
	l.must(l.configure(lift(config.ModePassthrough)))
	l.must(m.StartServer(ctx))
	l.must(m.StartIstiod(ctx))
	x, err := m.Machine("provider-1")
	l.must(err)
	l.addresses = []string{fmt.Sprintf("%s:12200", x.Address())}
	_, err = m.Machine(consumer)
	l.must(err)
	start := func(where, main string, options ...string) *machine.Process {
		p, err := m.StartJava(where, mesh.JVM{Peer: peer.SOFARPC, Name: "hello", Main: main,
			Options: append(options, "-Dregistry.protocol=zookeeper", "-Dregistry.address="+mesh.ZooKeeperAddress())})
		l.must(err)
		ctx, cancel := context.WithTimeout(ctx, within)
		defer cancel()
		_, err = p.UntilLine(ctx, main+" to be ready", func(line string) bool { return line == "READY" })
		l.must(err)
		return p
	}
	start("provider-1", "demo.Provider", "-Dapp.name=hello-provider", "-Dport=12200")
	l.sidecar, err = m.StartSidecar(ctx, consumer, "hello-consumer")
	l.must(err)
	l.until("the filter", func(ctx context.Context) error { return l.sidecar.Filtered(ctx, 12200, false) })
	l.caller = caller.Follow(start(consumer, "demo.Consumer", "-Dapp.name=hello-consumer"))
	l.must(l.caller.Rates(map[string]float64{"sayHello": 50}))

	const lines, inFlight = 4, 4
	before := l.draining()
	all := l.open(bolt(t), lines, inFlight)
	dialled := func() int {
		n, err := l.number(t.Context(), `^cluster\.isthmus-as-dialled\.upstream_rq_total$`)
		l.must(err)
		return n
	}
	l.must(l.configure(lift(config.ModeDialled)))
	all = append(all, l.moded("connections that are lifted", true, bolt(t), lines, inFlight)...)
	l.until("calls as dialled", func(context.Context) error {
		if dialled() == 0 {
			return errors.New("there are none")
		}
		return nil
	})
	l.must(l.configure(lift(config.ModeLift)))
	was, since := dialled(), count(all)
	l.until("calls that are routed", func(context.Context) error {
		now, calls := dialled(), count(all)
		if calls-since < 500 {
			return fmt.Errorf("only %d calls so far", calls-since)
		}
		if now == was {
			return nil
		}
		err := fmt.Errorf("of %d calls %d have gone as dialled", calls-since, now-was)
		was, since = now, calls
		return err
	})
	l.must(l.configure(lift(config.ModePassthrough)))
	all = append(all, l.moded("connections that pass again", false, bolt(t), lines, inFlight)...)
	if after := l.draining(); after != before {
		t.Errorf("%d listeners and filter chains are draining, %d before", after, before)
	}
	total := l.ended(all)
	quiet, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	_, err = l.caller.Quiet(quiet)
	l.must(err)
	seconds, faults := l.caller.Since(caller.Mark{})
	c := caller.Sum(seconds).Total()
	if c.OK == 0 || c.Errors+c.Exceptions > 0 {
		t.Errorf("the consumer says %v %v", caller.Sum(seconds), faults)
	}
	t.Logf("%d calls on %d connections that never paused, %d of an ordinary consumer: each was answered well", total, len(all), c.OK)
}
