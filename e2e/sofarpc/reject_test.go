package sofarpc

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/e2e/caller"
	"github.com/isthmus-mesh/isthmus/e2e/mesh"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
	"github.com/isthmus-mesh/isthmus/e2e/rig"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/bolt"
)

// refuser is a provider that answers every request with the filter's own rejection.
type refuser struct {
	mu   sync.Mutex
	code protocol.Code
	seen map[string]int // requests by method
}

// codes are the reasons of a rejection, by names without digits: a caller reports errors that differ in digits only once.
var codes = map[protocol.Code]string{
	protocol.CodeThrottled: "throttled", protocol.CodeUnavailable: "unavailable", protocol.CodeDenied: "denied",
	protocol.CodeAborted: "aborted", protocol.CodeTimeout: "too late",
}

// message has letters of one, two, three and four bytes: SOFARPC's Hessian has its own UTF-8.
func message(code protocol.Code) string { return "isthmus: " + codes[code] + ": ça 拒绝 🚦" }

// refuse sets the reason of the rejections from now on.
func (r *refuser) refuse(code protocol.Code) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.code = code
}

// serve answers one connection until it ends.
func (r *refuser) serve(c net.Conn) error {
	defer c.Close()
	in := bufio.NewReader(c)
	var f protocol.Frame
	var b, out []byte
	for {
		b = b[:0]
		for need := 1; need > 0; {
			at := len(b)
			b = append(b, make([]byte, need-at)...)
			if _, err := io.ReadFull(in, b[at:]); err != nil {
				return err
			}
			var err error
			if need, err = (bolt.Codec{}).Decode(&f, b); err != nil {
				return err
			}
		}
		if _, err := io.CopyN(io.Discard, in, int64(f.Len)-int64(len(b))); err != nil {
			return err
		}
		r.mu.Lock()
		code := r.code
		if f.Kind == protocol.KindRequest || f.Kind == protocol.KindOneWay {
			r.seen[string(f.Method.Of(b))]++
		}
		r.mu.Unlock()
		switch f.Kind {
		case protocol.KindRequest:
			out = bolt.Codec{}.AppendReject(out[:0], &f, code, message(code))
		case protocol.KindHeartbeat:
			// A heartbeat's answer: a response with the command of a heartbeat and the status 0, and nothing behind it.
			out = append(out[:0], bolt.V1, 0, 0, 0, 1)
			out = binary.BigEndian.AppendUint32(out, uint32(f.ID))
			out = append(out, f.Serialization, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
		default:
			continue
		}
		if _, err := c.Write(out); err != nil {
			return err
		}
	}
}

// TestRejections holds what is said at bolt.AppendReject to a real consumer: which exception each reason becomes, for each
// way of invocation, and that it is not tried again elsewhere although the consumer retries what fails.
func TestRejections(t *testing.T) {
	m := rig.Mesh(t)
	l, err := net.Listen("tcp", net.JoinHostPort(m.Host().Address().String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	r := &refuser{seen: map[string]int{}}
	r.refuse(protocol.CodeThrottled)
	var connections sync.WaitGroup
	connections.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			connections.Go(func() { _ = r.serve(c) })
		}
	})
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, fmt.Errorf("not within a minute"))
	defer cancel()
	p, err := ready(ctx, m, plainConsumer, mesh.JVM{Peer: peer.SOFARPC, Name: consumerApp, Main: "demo.Consumer",
		Options: []string{"-Dapp.name=" + consumerApp, "-Ddirect.url=bolt://" + l.Addr().String(), "-Dretries=2"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := p.Stop(ctx); err != nil {
			t.Error(err)
		}
		connections.Wait()
	})
	c := caller.Follow(p)
	rates := map[string]float64{"sayHello": 10, "echo": 10, "later": 10, "callback": 10, "note": 10}
	if err := c.Rates(rates); err != nil {
		t.Fatal(err)
	}
	const pkg = "com.alipay.sofa.rpc.core.exception."
	for code, want := range map[protocol.Code]kind{
		protocol.CodeThrottled:   {class: pkg + "SofaRpcException", code: 100},
		protocol.CodeUnavailable: {class: pkg + "SofaRouteException", code: 210},
		protocol.CodeDenied:      {class: pkg + "SofaRpcException", code: 170},
		protocol.CodeAborted:     {class: pkg + "SofaRpcException", code: 199},
		protocol.CodeTimeout:     {class: pkg + "SofaTimeOutException", code: 200},
	} {
		want.message = message(code)
		r.refuse(code)
		got := map[string]kind{}
		if err := c.Until(ctx, "to be refused: "+want.message, caller.Mark{}, func(_ []caller.Tally, faults []caller.Fault) bool {
			for _, f := range faults {
				if f.Message == want.message {
					got[f.Method] = kind{f.Error, f.Code, f.Message}
				}
			}
			return len(got) == 4
		}); err != nil {
			t.Fatal(err)
		}
		all := map[string]kind{"sayHello": want, "echo": want, "later": want, "callback": {pkg + "SofaRpcException", 199, want.message}}
		if !maps.Equal(got, all) {
			t.Errorf("%s is\n%v\nand should be\n%v", codes[code], got, all)
		}
	}
	called, err := c.Quiet(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for method, n := range called {
		if method == "note" && n.OK == r.seen[method] {
			continue
		}
		if n.OK+n.Exceptions > 0 || n.Errors != r.seen[method] {
			t.Errorf("%s: the consumer counts %+v, the provider %d requests", method, n, r.seen[method])
		}
	}
}
