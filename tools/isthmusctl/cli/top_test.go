package cli

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"sync"
	"testing"

	"github.com/isthmus-mesh/isthmus/mcp-server/console"
	"github.com/isthmus-mesh/isthmus/mcp-server/telemetry"
)

func pemOf(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

// terminal collects what is written, and tells of each screen.
type terminal struct {
	mu      sync.Mutex
	all     bytes.Buffer
	screens chan string
}

func (w *terminal) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if strings.HasPrefix(string(b), screenHome) {
		select {
		case w.screens <- string(b):
		default:
		}
	}
	return w.all.Write(b)
}

// TestTopRefreshes holds top on a terminal to refreshing, to what it shows while the server is away, and to leaving the terminal as
// it was.
func TestTopRefreshes(t *testing.T) {
	rates := make(chan float64, 1)
	rates <- 1
	s := serve(t, func(o *console.Options) {
		o.Traffic = func() telemetry.Report {
			v := <-rates
			rates <- v + 1
			return telemetry.Report{WindowSeconds: 5, Targets: []telemetry.Status{{Name: "web", Up: true}},
				Services: []telemetry.Traffic{{Service: "demo.Counter", Direction: "client", Rate: v}}}
		}
	})
	out := &terminal{screens: make(chan string)}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	code := make(chan int, 1)
	go func() {
		code <- Run(ctx, &Streams{In: strings.NewReader(""), Out: out, Err: out, Size: func() (int, int) { return 100, 30 }}, []string{"top", "--interval", "100ms"})
	}()
	until := func(want string) {
		t.Helper()
		for screen := range out.screens {
			if strings.Contains(screen, want) {
				return
			}
		}
	}
	until("demo.Counter      client     1.00")
	until("demo.Counter      client     3.00")
	s.CloseClientConnections()
	s.Close()
	until("connection refused")
	cancel()
	if got := <-code; got != ExitOK {
		t.Errorf("exit code %d", got)
	}
	all := out.all.String()
	if !strings.HasPrefix(all, screenEnter) || !strings.HasSuffix(all, screenLeave) {
		t.Errorf("the terminal is not left as it was: %q … %q", all[:min(len(all), 20)], all[max(len(all)-20, 0):])
	}
}

func TestScreen(t *testing.T) {
	page := "a\nb\nc\nd\n"
	for height, want := range map[int]string{
		4: "\x1b[Ha\x1b[K\nb\x1b[K\nc\x1b[K\nd\x1b[K\x1b[J",
		3: "\x1b[Ha\x1b[K\nb\x1b[K\n… 2 more lines; narrow it down with -q, or see all with --once\x1b[K\x1b[J",
	} {
		if got := screen(page, height); got != want {
			t.Errorf("%d lines: got %q, want %q", height, got, want)
		}
	}
}
