package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/client"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
	"github.com/isthmus-mesh/isthmus/mcp-server/store"
	"github.com/isthmus-mesh/isthmus/mcp-server/telemetry"
)

func TestEffective(t *testing.T) {
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(seconds int) time.Time { return began.Add(time.Duration(seconds) * time.Second) }
	run := func(seconds int, generation string) telemetry.Run {
		return telemetry.Run{Generation: generation, Since: at(seconds)}
	}
	target := func(name, host string, runs ...telemetry.Run) telemetry.Status {
		return telemetry.Status{Name: name, URL: "http://" + host + ":15090/stats/prometheus", Up: true, Runs: runs}
	}
	down, refused := target("down", "10.0.0.4"), target("refused", "10.0.0.5", run(1, "g0"))
	down.Up, down.Error = false, "connection refused"
	refused.Rejected = true
	tokens := 3.0
	report := telemetry.Report{
		Targets: []telemetry.Status{
			target("new", "10.0.0.1", run(1, "g1"), run(5, "g2"), run(9, "g3")), target("old", "10.0.0.2", run(1, "g1")), target("none", "10.0.0.3", run(1, "")),
			down, refused, target("web", "10.0.0.9", run(7, "g3")), target("stranger", "192.0.2.1", run(2, "g3")), target("odd", "%zz", run(2, "g3")),
		},
		Rules: []telemetry.Rule{
			{Kind: "throttle", Name: "default/r", Rates: map[string]float64{"reject": 2}, Totals: map[string]float64{"reject": 20, "admit": 7}, Targets: []string{"new", "stranger"}, States: []telemetry.RuleState{{Target: "new", Tokens: &tokens}}},
			{Kind: "access", Name: "default/r", Totals: map[string]float64{"reject": 500}, Targets: []string{"odd"}},
			{Kind: "", Name: "default/r", Totals: map[string]float64{"reject": 1}},
		},
	}
	endpoint := func(address, app string) model.Endpoint { return model.Endpoint{Address: address, Application: app} }
	state := &store.State{
		Generation: "g3",
		Snapshot: &model.Snapshot{Version: 1, Services: []model.Service{
			{Endpoints: []model.Endpoint{endpoint("10.0.0.1", "shop"), endpoint("10.0.0.2", "shop"), endpoint("10.0.0.3", "shop"), endpoint("10.0.0.4", "shop"), endpoint("10.0.0.5", "shop"), endpoint("10.0.0.1", "odd")},
				Consumers: []model.Consumer{{Address: "10.0.0.9", Application: "web"}, {Address: "10.0.0.1", Application: "caller"}}},
			{Endpoints: []model.Endpoint{endpoint("10.0.0.1", "shop")}},
		}},
	}
	rule := store.Rule{Kind: "ThrottleRule", Namespace: "default", Name: "r", Enabled: true, Generations: []string{"g2", "g3"}, Selects: func(app string) bool { return app == "shop" }}
	s := New(Options{Store: new(store.Store)})
	e := s.effective(&rule, state, &report)
	var got []string
	for _, c := range e.Sidecars {
		got = append(got, fmt.Sprintf("%s %s %s %s %s", c.Name, c.Application, c.State, c.Generation, c.Error))
	}
	want := []string{"new shop enforced g3 ", "old shop pending g1 ", "none shop noFilter  ", "down shop unreachable  connection refused", "refused shop rejected g0 ", "stranger  enforced g3 "}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// The rule has been the same since g2; the last to begin was new, at 5.
	if e.State != api.EffectivePartial || e.Enforced != 2 || e.Of != 6 || !e.Since.Equal(at(5)) || e.Totals["reject"] != 21 || e.Totals["admit"] != 7 || e.Rates["reject"] != 2 || len(e.States) != 1 {
		t.Errorf("effective %+v", e)
	}
	for name, c := range map[string]struct {
		change func(*store.Rule, *store.State)
		want   api.EffectiveState
	}{
		"disabled":  {func(r *store.Rule, _ *store.State) { r.Enabled = false }, api.EffectiveDisabled},
		"no filter": {func(_ *store.Rule, s *store.State) { s.Generation = "" }, api.EffectiveNoFilter},
		"nowhere":   {func(r *store.Rule, _ *store.State) { r.Name, r.Selects = "x", func(string) bool { return false } }, api.EffectiveNowhere},
		"counted":   {func(r *store.Rule, _ *store.State) { r.Selects = func(app string) bool { return app == "web" } }, api.EffectiveEnforced},
		"web": {func(r *store.Rule, _ *store.State) {
			r.Name, r.Selects = "x", func(app string) bool { return app == "web" }
		}, api.EffectiveEnforced},
		"pending": {func(r *store.Rule, _ *store.State) { r.Generations = []string{"g4"} }, api.EffectivePending},
	} {
		t.Run(name, func(t *testing.T) {
			r, st := rule, *state
			c.change(&r, &st)
			if e := s.effective(&r, &st, &report); e.State != c.want {
				t.Errorf("got %+v, want %s", e, c.want)
			}
		})
	}
}

// writer keeps one rule.
type writer struct {
	store    *store.Store
	revision string
	text     string
	err      error
}

func (w *writer) WriteRule(_ context.Context, id governance.ID, text []byte, check func(string) error) error {
	if err := check(w.revision); err != nil {
		return err
	}
	if w.err != nil {
		return w.err
	}
	w.revision, w.text = "", string(text)
	st := &store.State{Snapshot: &model.Snapshot{}}
	if text != nil {
		rules, err := governance.Parse(text)
		if err != nil {
			return err
		}
		w.revision = rules[0].Revision
		spec, _ := rules[0].JSON()
		st.Rules = []store.Rule{{Kind: id.Kind, Namespace: id.Namespace, Name: id.Name, Spec: spec, Revision: w.revision, Explain: func() json.RawMessage { return json.RawMessage(`{"does":"limits"}`) }}}
	}
	w.store.Publish(st)
	return nil
}

const written = `apiVersion: governance.isthmus.io/v1alpha1
kind: ThrottleRule
metadata: {name: r}
spec: {threshold: %d}
`

func TestWriteRules(t *testing.T) {
	st := new(store.Store)
	w := &writer{store: st}
	_, c := serve(t, Options{Store: st, Rules: w, Local: true})
	ctx, id := t.Context(), client.RuleID{Kind: "ThrottleRule", Namespace: "default", Name: "r"}
	text := func(n int) []byte { return []byte(fmt.Sprintf(written, n)) }
	if err := c.DeleteRule(ctx, id, client.AnyRevision); !client.IsNotFound(err) {
		t.Errorf("delete what is not there: %v", err)
	}
	if _, err := c.PutRule(ctx, id, text(1), "abc"); !client.IsChanged(err) || !strings.Contains(err.Error(), "its revision is none, not abc") {
		t.Errorf("a revision of what is not there: %v", err)
	}
	one, err := c.PutRule(ctx, id, text(1), client.NoRevision)
	if err != nil || one.Revision == "" || string(one.Spec) != `{"threshold":1}` || one.Explanation.Does != "limits" {
		t.Fatalf("create: %+v %v", one, err)
	}
	if _, err := c.PutRule(ctx, id, text(2), client.NoRevision); !client.IsChanged(err) {
		t.Errorf("create twice: %v", err)
	}
	two, err := c.PutRule(ctx, id, text(2), one.Revision)
	if err != nil || two.Revision == one.Revision {
		t.Fatalf("change: %+v %v", two, err)
	}
	if _, err := c.PutRule(ctx, id, text(3), one.Revision); !client.IsChanged(err) {
		t.Errorf("change what others have changed: %v", err)
	}
	if err := c.DeleteRule(ctx, id, one.Revision); !client.IsChanged(err) {
		t.Errorf("delete what others have changed: %v", err)
	}
	if got, err := c.Rule(ctx, id); err != nil || got.Revision != two.Revision {
		t.Errorf("%+v %v", got, err)
	}
	for name, c2 := range map[string]struct {
		id   client.RuleID
		text string
		want string
	}{
		"faults":       {id, "apiVersion: governance.isthmus.io/v1alpha1\nkind: ThrottleRule\nmetadata: {name: r}\nspec: {treshold: 1, mode: x}\n", "line 4: spec.treshold: unknown field"},
		"another name": {client.RuleID{Kind: "ThrottleRule", Namespace: "default", Name: "q"}, string(text(1)), "the path says ThrottleRule default/q"},
		"two":          {id, string(text(1)) + "---\n" + string(text(2)), "one rule is expected, there are 2"},
		"none":         {id, "", "one rule is expected, there are 0"},
		"too long":     {id, string(text(1)) + strings.Repeat("#", maxRuleBytes), "at most 1048576 bytes"},
	} {
		if _, err := c.PutRule(ctx, c2.id, []byte(c2.text), client.AnyRevision); err == nil || !strings.Contains(err.Error(), c2.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.err = fmt.Errorf("%w: read-only file system", ErrNotWritable)
	if _, err := c.PutRule(ctx, id, text(3), client.AnyRevision); err == nil || !strings.Contains(err.Error(), "rules cannot be written: read-only file system") {
		t.Errorf("not writable: %v", err)
	}
	w.err = nil
	if err := c.DeleteRule(ctx, id, two.Revision); err != nil {
		t.Error(err)
	}
	if _, err := c.Rule(ctx, id); !client.IsNotFound(err) {
		t.Errorf("after it was deleted: %v", err)
	}
}

// Only who has the token may write; without one only a program on this machine.
func TestWhoMayWrite(t *testing.T) {
	token, failure := "secret", error(nil)
	secret := func() (string, error) { return token, failure }
	path := "/api/v1/rules/ThrottleRule/default/r"
	send := func(o Options, method string, headers ...string) int {
		o.Store = new(store.Store)
		if o.Rules != nil {
			o.Rules = &writer{store: o.Store}
		}
		s, _ := serve(t, o)
		r, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader(fmt.Sprintf(written, 1)))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/yaml")
		for i := 0; i < len(headers); i += 2 {
			if headers[i] == "Host" {
				r.Host = headers[i+1]
			}
			r.Header.Set(headers[i], headers[i+1])
		}
		answer, err := s.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		if _, err := io.Copy(io.Discard, answer.Body); err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode
	}
	w := &writer{}
	for name, c := range map[string]struct {
		o       Options
		headers []string
		want    int
	}{
		"no writer":                 {Options{Local: true}, nil, 409},
		"anybody":                   {Options{Rules: w}, nil, 403},
		"on this machine":           {Options{Rules: w, Local: true}, nil, 201},
		"by name":                   {Options{Rules: w, Local: true}, []string{"Host", "localhost:15991"}, 201},
		"IPv6":                      {Options{Rules: w, Local: true}, []string{"Host", "[::1]:15991"}, 201},
		"a page under another name": {Options{Rules: w, Local: true}, []string{"Host", "evil.example:15991"}, 403},
		"a page from elsewhere":     {Options{Rules: w, Local: true}, []string{"Origin", "http://evil.example"}, 403},
		"no token":                  {Options{Rules: w, Local: true, Token: secret}, nil, 401},
		"wrong token":               {Options{Rules: w, Token: secret}, []string{"Authorization", "Bearer x"}, 401},
		"token":                     {Options{Rules: w, Token: secret}, []string{"Authorization", "Bearer secret"}, 201},
		"a form":                    {Options{Rules: w, Local: true}, []string{"Content-Type", "text/plain"}, 415},
		"a wish for nothing":        {Options{Rules: w, Local: true}, []string{"If-None-Match", "x"}, 400},
		"two wishes":                {Options{Rules: w, Local: true}, []string{"If-None-Match", "*", "If-Match", "*"}, 400},
		"any, of none":              {Options{Rules: w, Local: true}, []string{"If-Match", "*"}, 412},
	} {
		t.Run(name, func(t *testing.T) {
			if got := send(c.o, http.MethodPut, c.headers...); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
	token = ""
	if got := send(Options{Rules: w, Local: true, Token: secret}, http.MethodPut, "Authorization", "Bearer "); got != 401 {
		t.Errorf("an empty token: %d", got)
	}
	token, failure = "secret", errors.New("gone")
	if got := send(Options{Rules: w, Token: secret}, http.MethodDelete, "Authorization", "Bearer secret"); got != 401 {
		t.Errorf("an unreadable token: %d", got)
	}
}

// The tag of a rule begins with its revision, so that it can be sent back as it is.
func TestRuleETag(t *testing.T) {
	st := new(store.Store)
	w := &writer{store: st}
	s, c := serve(t, Options{Store: st, Rules: w, Local: true})
	id := client.RuleID{Kind: "ThrottleRule", Namespace: "default", Name: "r"}
	if _, err := c.PutRule(t.Context(), id, []byte(fmt.Sprintf(written, 1)), client.AnyRevision); err != nil {
		t.Fatal(err)
	}
	answer, _ := get(t, s.URL+"/api/v1/rules/ThrottleRule/default/r")
	tag := answer.Header.Get("ETag")
	if !strings.HasPrefix(tag, `"`+w.revision+".") {
		t.Fatalf("tag %s, revision %s", tag, w.revision)
	}
	if _, err := c.PutRule(t.Context(), id, []byte(fmt.Sprintf(written, 2)), strings.Trim(tag, `"`)); err != nil {
		t.Error(err)
	}
	if _, err := c.PutRule(t.Context(), id, []byte(fmt.Sprintf(written, 3)), strings.Trim(tag, `"`)); !client.IsChanged(err) {
		t.Errorf("an old tag: %v", err)
	}
}
