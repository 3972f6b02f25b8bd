package lift_test

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// resident returns how much memory a process has, in bytes.
func (e *envoy) resident(t testing.TB) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", e.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("no VmRSS in %s", text)
	}
	n, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}

// TestMemory measures what a connection takes in Envoy on which a call was made and nothing is under way, and what a call of 1 KB that its provider has not
// answered: with tcp_proxy alone, with the filter before it, and lifted and lowered again. The bounds are three times what was measured, and more: they are to
// catch what grows without end.
func TestMemory(t *testing.T) {
	const conns, calls = 2000, 8000
	file := filterFile(t)
	for name, c := range map[string]struct {
		connection, call int // bounds, bytes
		listener         func(port int) []object
	}{
		"tcp_proxy": {200 << 10, 30 << 10, func(port int) []object { return []object{listener(port, "OUTBOUND", tcpProxy("provider"))} }},
		"passthrough": {200 << 10, 30 << 10, func(port int) []object {
			return []object{listener(port, "OUTBOUND", wasm(file, "plain", `{}`), tcpProxy("provider"))}
		}},
		"lifted": {400 << 10, 100 << 10, func(port int) []object {
			return []object{listener(port, "OUTBOUND", wasm(file, "lift", `{"lift":{}}`), manager(everything(object{"cluster": "v1", "timeout": "0s"}))), egressListener(wasm(file, "lower", `{"lower":{},"limits":{"maxInFlight":20000}}`))}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			arrived, done := make(chan struct{}, calls), make(chan struct{})
			p := startProvider(t, func(b []byte, f protocol.Frame, reply func([]byte)) []byte {
				if bytes.Contains(b, []byte("quick")) {
					return frame("resp", f.ID)
				}
				arrived <- struct{}{}
				go func() { <-done; reply(frame("resp", f.ID)) }()
				return nil
			})
			in := freePort(t)
			limits := object{"thresholds": []object{{"max_connections": 1 << 20, "max_requests": 1 << 20, "max_pending_requests": 1 << 20}}}
			v1, plain := egress("v1", p.port()), plain("provider", p.port())
			v1["circuit_breakers"], plain["circuit_breakers"] = limits, limits
			e := startEnvoy(t, c.listener(in), []object{v1, plain, originalCluster()})
			first := dial(t, in)
			b, f := first.call(0, "method", "quick")
			wantOK(t, b, f)
			begin := e.resident(t)
			clients := make([]*client, conns)
			for i := range clients {
				clients[i] = dial(t, in)
				b, f := clients[i].call(0, "method", "quick")
				wantOK(t, b, f)
			}
			idle := e.resident(t)
			for i := range calls {
				clients[i%16].send(frame("req", uint64(i+1), "size", "1024"))
			}
			deadline := time.After(time.Minute)
			for range calls {
				select {
				case <-arrived:
				case <-deadline:
					t.Fatal("calls have not arrived")
				}
			}
			busy := e.resident(t)
			close(done)
			for i := range calls {
				b, f := clients[i%16].receive()
				wantOK(t, b, f)
			}
			connection, call := (idle-begin)/conns, (busy-idle)/calls
			t.Logf("%.1f KiB a connection, %.2f KiB a call", float64(connection)/1024, float64(call)/1024)
			if connection > c.connection || call > c.call {
				t.Errorf("%d bytes a connection of at most %d, %d a call of at most %d", connection, c.connection, call, c.call)
			}
		})
	}
}
