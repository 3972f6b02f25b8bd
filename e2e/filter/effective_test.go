package filter_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/isthmus-mesh/isthmus/e2e/mesh"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/mcp-server/telemetry"
)

const reply = `apiVersion: governance.isthmus.io/v1alpha1
kind: DegradeRule
metadata: {name: mock}
spec:
  direction: client
  target: {service: demo.A, method: mocked}
  reply: {json: "made of JSON"}
`

const each = `apiVersion: governance.isthmus.io/v1alpha1
kind: CircuitBreakerRule
metadata: {name: each}
spec:
  direction: client
  target: {service: demo.A, method: dialled}
  strategy: errorCount
  threshold: 1
  perEndpoint: true
`

// TestRulesAreEffective: where mcp-server says that a rule is enforced, and what it says that the rule did, is what callers see; a reply that is
// made of JSON reaches them as their protocol's own. A circuit is the provider's, whether it was dialled or a virtual address for it.
func TestRulesAreEffective(t *testing.T) {
	l := newLink(t, 2)
	l.must(l.ApplyRule("none", fmt.Sprintf(rule, "none", 0, "1s")))
	l.must(l.ApplyRule("mock", reply))
	l.must(l.ApplyRule("each", each))
	effective := func(ctx context.Context, name string) (*api.Effective, error) {
		r, err := mesh.Ask[api.RuleDetail](ctx, l.Mesh, "/api/v1/rules/"+name)
		return &r.Effective, err
	}
	for _, name := range []string{"ThrottleRule/default/none", "DegradeRule/default/mock", "CircuitBreakerRule/default/each"} {
		l.until(name+" on both sidecars", func(ctx context.Context) error {
			e, err := effective(ctx, name)
			if err == nil && (e.State != api.EffectiveEnforced || e.Of != 2) {
				err = fmt.Errorf("%+v", e)
			}
			return err
		})
	}
	c := l.dial()
	const calls = 20
	for id := range uint64(calls) {
		if status, body := l.call(c, 2*id+1, "limited"); status == 20 || !bytes.Contains(body, []byte(`rule "default/none"`)) {
			t.Fatalf("call %d: status %d, %q", id, status, body)
		}
		// 91 or 94 says that a value follows; 53 0c that it is a string of that many characters.
		if status, body := l.call(c, 2*id+2, "mocked"); status != 20 || !bytes.HasPrefix(body[1:], []byte("S\x00\x0cmade of JSON")) {
			t.Fatalf("call %d: status %d, %q", id, status, body)
		}
	}
	for _, name := range []string{"ThrottleRule/default/none", "DegradeRule/default/mock"} {
		l.until("what "+name+" did", func(ctx context.Context) error {
			e, err := effective(ctx, name)
			if err == nil && e.Totals["reject"] != calls {
				err = fmt.Errorf("%+v", e)
			}
			return err
		})
	}
	body, err := l.API(t.Context(), "/api/v1/services/demo.A")
	l.must(err)
	var service api.ServiceDetail
	l.must(json.Unmarshal(body, &service))
	for i, address := range []string{l.address.String(), fmt.Sprintf("%s:%d", service.Hosts[0].Address, port)} {
		c, err := l.consumer.Machine().DialContext(t.Context(), "tcp", address)
		l.must(err)
		defer c.Close()
		if status, body := l.call(c, 1, "dialled"); status != 20 {
			t.Fatalf("call to %s: status %d, %q", address, status, body)
		}
		l.until("the circuit for calls to "+address, func(ctx context.Context) error {
			e, err := effective(ctx, "CircuitBreakerRule/default/each")
			if err != nil {
				return err
			}
			for _, s := range e.States {
				if s.Target == "consumer" && len(s.Circuits) == 1 && s.Circuits[0] == (telemetry.Circuit{Endpoint: l.address.String(), State: "closed"}) && e.Totals["admit"] == float64(i+1) {
					return nil
				}
			}
			return fmt.Errorf("%+v", e)
		})
	}
}
