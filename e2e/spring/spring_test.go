// Package spring_test holds what becomes of a Spring Cloud service under a real istiod: its port gets the HTTP filter, and rules that name the
// application hold at either end, for callers that call it by its host in the mesh.
package spring_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/e2e/mesh"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
	"github.com/isthmus-mesh/isthmus/e2e/rig"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
)

func TestMain(m *testing.M) {
	os.Exit(rig.Main(m, append(rig.FilterPeers, peer.ZooKeeper, peer.Dubbo3)...))
}

const (
	within = 90 * time.Second
	port   = 8080
	host   = "orders.spring.isthmus:8080"
)

// bed is a consumer's and a provider's machine.
type bed struct {
	*mesh.Mesh
	t       *testing.T
	client  http.Client
	dialled atomic.Int32
}

func (b *bed) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) until(what string, condition func(ctx context.Context) error) {
	b.t.Helper()
	rig.Until(b.t, within, what, condition)
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{Mesh: rig.Mesh(t), t: t}
	provider, err := b.Machine("provider")
	b.must(err)
	_, err = b.Machine("consumer")
	b.must(err)
	address := netip.AddrPortFrom(provider.Address(), port)
	services := filepath.Join(b.Folder(), "services.yaml")
	b.must(os.WriteFile(services, fmt.Appendf(nil, "apiVersion: adapters.isthmus.io/v1alpha1\nkind: ServiceList\nservices:\n"+
		"- {framework: spring, interface: orders, endpoints: [{address: %s, port: %d, protocol: http, application: orders}]}\n", provider.Address(), port), 0o644))
	b.must(b.ConfigureServer(mesh.ServerOptions{Scrape: []string{"consumer", "provider"}, Registries: []mesh.Registry{{Name: "files", Kind: "file",
		Settings: map[string]any{"path": b.Host().Exposed(services)}}}}))
	b.must(b.StartServer(t.Context()))
	b.must(b.StartIstiod(t.Context()))
	consumer, err := b.StartSidecarWorkers(t.Context(), "consumer", "web", 4)
	b.must(err)
	at, err := b.StartSidecarWorkers(t.Context(), "provider", "orders", 4)
	b.must(err)
	b.until("the filter at the consumer", func(ctx context.Context) error { return consumer.Filtered(ctx, port, false) })
	b.until("the filter at the provider", func(ctx context.Context) error { return at.Filtered(ctx, port, true) })

	var listener net.Listener
	b.must(provider.Do(func() (err error) {
		listener, err = net.Listen("tcp", address.String())
		return err
	}))
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "for "+r.Header.Get("x-isthmus-caller"))
	})}
	go server.Serve(listener) //nolint:errcheck // until it is closed
	t.Cleanup(func() { server.Close() })
	transport := &http.Transport{MaxConnsPerHost: 1, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		b.dialled.Add(1)
		return consumer.Machine().DialContext(ctx, "tcp", address.String())
	}}
	b.client = http.Client{Transport: transport, Timeout: within}
	t.Cleanup(transport.CloseIdleConnections)
	return b
}

// call makes a request and returns what the caller sees of the response.
func (b *bed) call(path string) (int, http.Header, string) {
	b.t.Helper()
	resp, err := b.client.Get("http://" + host + path)
	b.must(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	b.must(err)
	return resp.StatusCode, resp.Header, string(body)
}

const head = "apiVersion: governance.isthmus.io/v1alpha1\nkind: %s\nmetadata: {name: orders}\nspec:\n  target: {service: orders, method: {prefix: GET /orders/}}\n  direction: %s\n"

// TestSpringCloud applies rules at each end.
func TestSpringCloud(t *testing.T) {
	b := newBed(t)
	if status, _, body := b.call("/orders/1"); status != http.StatusOK || body != "for web" {
		t.Fatalf("without a rule: %d %q", status, body)
	}
	for _, c := range []struct {
		kind, spec, message string
		status              int
	}{
		{"ThrottleRule", "  threshold: 0\n", `isthmus: throttled: rule "default/orders"`, http.StatusTooManyRequests},
		{"AccessRule", "  action: deny\n  match: [{subject: callerApplication, operator: equals, values: [web]}]\n", `isthmus: denied: rule "default/orders"`, http.StatusForbidden},
	} {
		for _, direction := range []string{"client", "server"} {
			b.must(b.ApplyRule("orders", fmt.Sprintf(head, c.kind, direction)+c.spec))
			effective := func(ctx context.Context) (*api.Effective, error) {
				r, err := mesh.Ask[api.RuleDetail](ctx, b.Mesh, "/api/v1/rules/"+c.kind+"/default/orders")
				return &r.Effective, err
			}
			b.until(c.kind+" to be enforced at both ends", func(ctx context.Context) error {
				e, err := effective(ctx)
				if err == nil && (e.State != api.EffectiveEnforced || e.Enforced != 2 || e.Of != 2) {
					err = fmt.Errorf("it is %s, on %d of %d sidecars", e.State, e.Enforced, e.Of)
				}
				return err
			})
			before, err := effective(t.Context())
			b.must(err)
			const calls = 5
			for range calls {
				if status, _, body := b.call("/orders/17?x=1"); status != c.status || !strings.HasPrefix(body, c.message) {
					t.Errorf("%s at the %s: %d %q", c.kind, direction, status, body)
				}
				if status, _, body := b.call("/other"); status != http.StatusOK || body != "for web" {
					t.Errorf("%s at the %s, another path: %d %q", c.kind, direction, status, body)
				}
			}
			b.until("what the rule did to be seen", func(ctx context.Context) error {
				e, err := effective(ctx)
				if err == nil && e.Totals["reject"] != before.Totals["reject"]+calls {
					err = fmt.Errorf("%v, before %v", e.Totals, before.Totals)
				}
				return err
			})
			b.must(b.RemoveRule("orders"))
			b.until("the rule to go", func(context.Context) error {
				if status, _, _ := b.call("/orders/17"); status != http.StatusOK {
					return fmt.Errorf("status %d", status)
				}
				return nil
			})
		}
	}
	if n := b.dialled.Load(); n != 1 {
		t.Errorf("the caller had to connect %d times", n)
	}
}
