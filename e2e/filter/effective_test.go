package filter_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
)

const reply = `apiVersion: governance.isthmus.io/v1alpha1
kind: DegradeRule
metadata: {name: mock}
spec:
  direction: client
  target: {service: demo.A, method: mocked}
  reply: {json: "made of JSON"}
`

// TestRulesAreEffective: where mcp-server says that a rule is enforced, and what it says that the rule did, is what callers see; a reply that is
// made of JSON reaches them as their protocol's own.
func TestRulesAreEffective(t *testing.T) {
	l := newLink(t, 2)
	l.must(l.ApplyRule("none", fmt.Sprintf(rule, "none", 0, "1s")))
	l.must(l.ApplyRule("mock", reply))
	effective := func(ctx context.Context, name string) (*api.Effective, error) {
		body, err := l.API(ctx, "/api/v1/rules/"+name)
		if err != nil {
			return nil, err
		}
		var r api.RuleDetail
		if err := json.Unmarshal(body, &r); err != nil {
			return nil, err
		}
		return &r.Effective, nil
	}
	for _, name := range []string{"ThrottleRule/default/none", "DegradeRule/default/mock"} {
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
}
