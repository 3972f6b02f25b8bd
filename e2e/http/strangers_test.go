package http_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// TestStrangers sends what strangers may send, and delays calls: each is answered as it should be, is counted, and nobody else notices.
func TestStrangers(t *testing.T) {
	const delay = 400
	conf := &config.Plugin{Generation: "e2e-2",
		FaultInjection: []config.FaultInjection{{Rule: config.Rule{Name: "late", Target: config.Target{Direction: "client", Service: config.Match{Exact: "late"}}}, DelayMillis: delay}},
		Access: []config.Access{
			{Rule: config.Rule{Name: "admin", Target: config.Target{Method: config.Match{Prefix: "GET /admin"}}}, Action: config.AccessDeny},
			{Rule: config.Rule{Name: "vips", Target: config.Target{Service: config.Match{Exact: "vip"}}, Match: []config.Condition{
				{Subject: config.SubjectAttachment, Key: "who", Operator: config.OperatorNotEquals, Values: []string{"bad"}}}}, Action: config.AccessAllow},
		}}
	e := start(t, conf, serve(t))
	h2, h1 := newClient(t, wires[1], e.out), newClient(t, wires[0], e.out)
	ordinary := func() {
		t.Helper()
		for c, w := range map[*client]wire{h1: wires[0], h2: wires[1]} {
			if got, err := c.call(w, "neighbour", "ok", nil); err != nil || got.message != "hello" {
				t.Fatalf("a neighbour of %s: %+v %v", w.name, got, err)
			}
		}
	}
	ordinary()

	// A delayed call waits for its time, while others of its connection come and go.
	late := make(chan error, 1)
	go func() {
		got, err := h2.call(wires[1], "late", "ok", nil)
		if err == nil && (got.message != "hello" || got.took < delay*time.Millisecond) {
			err = fmt.Errorf("after %s: %+v", got.took, got)
		}
		late <- err
	}()
	passed := 0
	for done := false; !done; {
		select {
		case err := <-late:
			if err != nil {
				t.Error(err)
			}
			done = true
		default:
			ordinary()
			passed++
		}
	}
	if passed < 2 {
		t.Errorf("%d calls passed a delayed one", passed)
	}

	// raw sends bytes of HTTP/1 and returns the status and the body of the response.
	raw := func(request string) (int, string) {
		t.Helper()
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", e.out))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(within)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	long := strings.Repeat("x", 1<<20)
	for name, c := range map[string]struct {
		request string
		status  int
		body    string // begins so
	}{
		"escapes that hide a path":     {"GET /%61dmin/x HTTP/1.1\r\nHost: a\r\n\r\n", 403, `isthmus: denied: rule "admin"`},
		"escapes that are none":        {"GET /%zz%4 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "400 Bad Request"}, // says the application
		"a header of a megabyte":       {"GET / HTTP/1.1\r\nHost: a\r\nlong: " + long + "\r\n\r\n", 200, "hello"},
		"one that a rule asks for":     {"GET / HTTP/1.1\r\nHost: vip\r\nwho: " + long + "\r\n\r\n", 403, `isthmus: denied: rule "vips"`},
		"a short one that it asks for": {"GET / HTTP/1.1\r\nHost: vip\r\nwho: me\r\n\r\n", 200, "hello"},
		"a path of 100 kB":             {"GET /" + long[:100_000] + " HTTP/1.1\r\nHost: a\r\n\r\n", 200, "hello"},
		"an absolute URI":              {"GET http://vip/admin HTTP/1.1\r\nHost: a\r\n\r\n", 403, "isthmus: denied"},
	} {
		if status, body := raw(c.request); status != c.status || !strings.HasPrefix(body, c.body) {
			t.Errorf("%s: %d %.200q", name, status, body)
		}
		ordinary()
	}
	if got, err := h2.call(wires[2], "odd", "odd-status", nil); err == nil {
		t.Errorf("a grpc-status that is no number: %+v", got)
	}
	ordinary()
	e.until(t, "faults to be counted", func() error {
		faults, outcomes := map[string]int{}, map[string]int{}
		e.stats(t, "isthmus_filter_faults_total", func(l map[string]string, n int) { faults[l["rpc_filter_reason"]] += n })
		e.stats(t, "isthmus_rpc_requests_total", func(l map[string]string, n int) { outcomes[l["rpc_service"]+" "+l["rpc_outcome"]] += n })
		if faults["long_head"] != 2 || faults["attachments"] == 0 || faults["internal"] > 0 || outcomes["odd bad_response"] != 2 {
			return fmt.Errorf("%v, %v", faults, outcomes)
		}
		return nil
	})
}
