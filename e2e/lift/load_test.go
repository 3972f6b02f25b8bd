package lift_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// A load is so many calls, so many at once on each of so many connections.
type load struct{ conns, inFlight, size, calls int }

// run makes the calls and returns how long they took. All have to work.
func (l load) run(t testing.TB, port int) time.Duration {
	t.Helper()
	begin := time.Now()
	var wg sync.WaitGroup
	errs := make(chan error, 2*l.conns)
	for range l.conns {
		c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		slots := make(chan struct{}, l.inFlight)
		each := l.calls / l.conns
		wg.Add(2)
		go func() {
			defer wg.Done()
			f := frame("req", 0, "size", strconv.Itoa(l.size))
			for id := range each {
				slots <- struct{}{}
				f[8], f[9], f[10], f[11] = byte(id>>24), byte(id>>16), byte(id>>8), byte(id)
				if _, err := c.Write(f); err != nil {
					errs <- err
					return
				}
			}
		}()
		go func() {
			defer wg.Done()
			r := bufio.NewReaderSize(c, 64<<10)
			_ = c.SetReadDeadline(time.Now().Add(time.Minute))
			for range each {
				b, f, err := readFrame(r)
				if err != nil {
					errs <- err
					return
				}
				if f.Outcome != protocol.OutcomeOK {
					errs <- fmt.Errorf("call %d: %s %q", f.ID, f.Outcome, b)
					return
				}
				<-slots
			}
		}()
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case err := <-errs:
		t.Fatal(err)
	case <-done:
	}
	return time.Since(begin)
}

// runHTTP makes as many HTTP/2 requests with bodies of the same size.
func (l load) runHTTP(t testing.TB, port int) {
	t.Helper()
	body := strings.Repeat("a", l.size)
	errs := make(chan error, l.conns*l.inFlight)
	for range l.conns {
		tr := &http.Transport{Protocols: clear2()}
		defer tr.CloseIdleConnections()
		for range l.inFlight {
			go func() {
				for range l.calls / l.conns / l.inFlight {
					req, err := http.NewRequest("POST", fmt.Sprintf("http://127.0.0.1:%d/%s/greet", port, service), strings.NewReader(body))
					if err != nil {
						errs <- err
						return
					}
					req.Host = host
					for _, h := range []string{"protocol", "service", "method", "version", "caller"} {
						req.Header.Set("x-isthmus-"+h, service)
					}
					resp, err := tr.RoundTrip(req)
					if err != nil {
						errs <- err
						return
					}
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
					if err == nil && resp.StatusCode != 200 {
						err = fmt.Errorf("status %d", resp.StatusCode)
					}
					if err != nil {
						errs <- err
						return
					}
				}
				errs <- nil
			}()
		}
	}
	for range l.conns * l.inFlight {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
}

// clear2 is HTTP/2 without TLS, and nothing else.
func clear2() *http.Protocols {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

// startHTTP is an HTTP/2 server that reads its requests and answers a few bytes.
func startHTTP(t testing.TB) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Protocols: clear2(), HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 1000}, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "hello")
	})}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { srv.Close() })
	return ln.Addr().(*net.TCPAddr).Port
}

// TestCost takes all ways that a call can take, and prints what it costs Envoy on each, interleaved and in medians, beside as many
// plain HTTP/2 requests, as any user of gRPC pays for.
func TestCost(t *testing.T) {
	file := filterFile(t)
	p := startProvider(t, nil)
	web := startHTTP(t)
	ports := make([]int, 8)
	for i := range ports {
		ports[i] = freePort(t)
	}
	wide := func(c object) object {
		c["circuit_breakers"] = object{"thresholds": []object{{"max_requests": 100_000, "max_connections": 100_000}}}
		return c
	}
	behind := wasm(file, "provider", `{"lift":{},"lower":{"behindHTTP":true}}`)
	e := startEnvoy(t,
		[]object{
			listener(ports[6], "OUTBOUND", wasm(file, "lift", `{"lift":{}}`), manager(everything(object{"cluster": "manager"}))),
			listener(ports[7], "INBOUND", behind, manager(everything(object{"cluster": "behind"}))),
			internalListener("behind", behind),
			listener(ports[0], "OUTBOUND", tcpProxy("provider")),
			listener(ports[1], "OUTBOUND", wasm(file, "meter", `{}`), tcpProxy("provider")),
			listener(ports[2], "OUTBOUND", wasm(file, "lift", `{"lift":{}}`), manager(everything(object{"cluster": "sidecar"}))),
			listener(ports[3], "INBOUND", wasm(file, "lower", `{"lower":{}}`), tcpProxy("provider")),
			listener(ports[4], "OUTBOUND", wasm(file, "lift", `{"lift":{}}`), manager(everything(object{"cluster": "inside"}))),
			listener(ports[5], "OUTBOUND", manager(everything(object{"cluster": "web"}))),
			egressListener(wasm(file, "lower", `{"lower":{}}`)),
		},
		[]object{plain("provider", p.port()), wide(upstream("manager", ports[7])), wide(internal("behind", "behind", p.port())), wide(upstream("sidecar", ports[3])), wide(egress("inside", p.port())), wide(upstream("web", web)), originalCluster()})
	l := load{conns: 4, inFlight: 16, size: 1024, calls: 12_800}
	ways := []struct {
		name string
		run  func()
		cpu  []time.Duration
	}{
		{name: "tcp_proxy", run: func() { l.run(t, ports[0]) }},
		{name: "metered, tcp_proxy", run: func() { l.run(t, ports[1]) }},
		{name: "HTTP/2 to HTTP/2", run: func() { l.runHTTP(t, ports[5]) }},
		{name: "lifted, lowered in the same Envoy", run: func() { l.run(t, ports[4]) }},
		{name: "lifted, lowered behind another listener", run: func() { l.run(t, ports[2]) }},
		{name: "the same, behind a connection manager", run: func() { l.run(t, ports[6]) }},
	}
	for round := range 6 {
		for i := range ways {
			w := &ways[i]
			before := e.cpuTime(t)
			w.run()
			if cost := (e.cpuTime(t) - before) / time.Duration(l.calls); round > 0 { // the first warms up
				w.cpu = append(w.cpu, cost)
			}
		}
	}
	median := func(v []time.Duration) time.Duration { slices.Sort(v); return v[len(v)/2] }
	for i := range ways {
		t.Logf("%-42s %6.1f µs of Envoy's CPU per call (%v)", ways[i].name, float64(median(ways[i].cpu))/1e3, ways[i].cpu)
	}
	plainHTTP, inside := median(ways[2].cpu), median(ways[3].cpu)
	// What it may cost is judged by whoever reads this on a quiet machine.
	t.Logf("lifting and lowering cost %.2f times what HTTP/2 costs as it is", float64(inside)/float64(plainHTTP))
	// One call at a time.
	one := load{conns: 1, inFlight: 1, size: 1024, calls: 1000}
	for _, w := range []struct {
		name string
		port int
	}{{"metered", ports[1]}, {"lifted, lowered in the same Envoy", ports[4]}} {
		one.run(t, w.port)
		t.Logf("%-42s %6.1f µs from call to call, one at a time", w.name, float64(one.run(t, w.port).Microseconds())/float64(one.calls))
	}
}
