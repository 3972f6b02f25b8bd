package lift_test

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// TestLowerAbsent: where nothing makes RPC of lifted calls again, because the filter cannot be loaded, their callers are told at once, and
// no HTTP/2 reaches a provider. In the filter's place is what pilot-agent puts there then for an extension that fails closed; or
// the internal listener is not there, which is so while Envoy waits for its filter. A caller that passes is served all the same, by the same
// Envoy: that is what the mode is for.
func TestLowerAbsent(t *testing.T) {
	deny := object{"name": "isthmus-lower", "typed_config": object{"@type": networkFilters + "rbac.v3.RBAC", "stat_prefix": "wasm-default-deny", "rules": object{}}}
	allow := object{"name": "isthmus-lower", "typed_config": object{"@type": networkFilters + "rbac.v3.RBAC", "stat_prefix": "wasm-default-allow"}}
	for name, listeners := range map[string][]object{"closed": {egressListener(deny)}, "no listener": nil} {
		t.Run(name, func(t *testing.T) {
			p := startProvider(t, nil)
			in, passing := freePort(t), freePort(t)
			startEnvoy(t, append(listeners,
				listener(in, "OUTBOUND", wasm(filterFile(t), "lift", `{"lift":{}}`), manager(everything(object{"cluster": "v1"}))),
				listener(passing, "OUTBOUND", allow, tcpProxy("provider"))),
				[]object{egress("v1", p.port()), originalCluster(), plain("provider", p.port())})
			c := dial(t, in)
			for id := range uint64(3) {
				begin := time.Now()
				b, f := c.call(id)
				if f.Outcome != protocol.OutcomeError || !bytes.Contains(b, []byte("isthmus: unavailable: 503 ")) {
					t.Errorf("call %d: %s %q", id, f.Outcome, b)
				}
				if d := time.Since(begin); d > 5*time.Second {
					t.Errorf("it took %v", d)
				}
			}
			if n := p.calls.Load(); n > 0 {
				t.Errorf("%d calls have reached the provider", n)
			}
			b, f := dial(t, passing).call(7)
			wantOK(t, b, f)
		})
	}
}

// TestLiftAbsent: where the filter that lifts cannot be loaded, connections to lifted ports end at once.
func TestLiftAbsent(t *testing.T) {
	deny := object{"name": "isthmus-lift", "typed_config": object{"@type": networkFilters + "rbac.v3.RBAC", "stat_prefix": "wasm-default-deny", "rules": object{}}}
	p, in := startProvider(t, nil), freePort(t)
	startEnvoy(t, []object{listener(in, "OUTBOUND", deny, manager(everything(object{"cluster": "provider"})))}, []object{plain("provider", p.port())})
	c := dial(t, in)
	c.send(frame("req", 1))
	if err := c.c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if b, err := c.r.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection goes on: %#x, %v", b, err)
	}
}
