package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/client"
	"github.com/isthmus-mesh/isthmus/mcp-server/store"
	"github.com/isthmus-mesh/isthmus/mcp-server/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func state() *store.State {
	origin := []model.Origin{{Registry: "zk", Place: "/x"}}
	weight := uint32(7)
	greet := model.Service{Key: model.Key{Framework: "dubbo", Interface: "demo.Greet", Version: "1.0.0", Group: "g"}, Methods: []string{"hi"},
		Endpoints: []model.Endpoint{{Address: "10.0.0.1", Port: 20880, Protocol: "dubbo", Application: "greeter", Weight: &weight, Origins: origin}, {Address: "10.0.0.2", Port: 20880, Protocol: "dubbo", Disabled: true}},
		Consumers: []model.Consumer{{Address: "10.0.0.9", Application: "web", Origins: []model.Origin{{Registry: "files"}}}}}
	other := model.Service{Key: model.Key{Framework: "dubbo", Interface: "demo.Greet", Version: "2.0.0"}}
	odd := model.Service{Key: model.Key{Framework: "sofa", Interface: "a b/providers?x=%2F#y", Version: "1.0"}}
	spring := model.Service{Key: model.Key{Framework: "spring", Interface: "orders"}, Endpoints: []model.Endpoint{{Address: "10.0.0.3", Port: 80, Protocol: "http"}}}
	return &store.State{
		Snapshot: &model.Snapshot{Version: 3, Complete: true, Services: []model.Service{greet, other, odd, spring}, Sources: []model.Source{{Name: "zk", Kind: "zookeeper", State: model.StateSynced, LastWord: time.Now().Add(-time.Second)}}},
		Hosts:    map[model.Key][]store.Host{greet.Key: {{Protocol: "dubbo", Host: "greet.isthmus", Address: "240.0.0.1", Port: 20880, Carried: 1, LeftOut: 1}}},
		Problems: []store.Problem{
			{Stage: store.StageRegistry, Problem: model.Problem{Severity: model.SeverityError, Registry: "zk", Place: "/x", Code: "MalformedURL", Message: "m"}},
			{Stage: store.StageRules, Problem: model.Problem{Severity: model.SeverityWarning, Place: "r.yaml:1", Code: "InvalidRule", Message: "m"}},
		},
		Rules:      []store.Rule{{Kind: "ThrottleRule", Namespace: "default", Name: "r", File: "r.yaml", Line: 3, Enabled: true, Spec: json.RawMessage(`{"threshold":1}`)}},
		Generation: "gen",
	}
}

func serve(t *testing.T, o Options) (*httptest.Server, *client.Client) {
	t.Helper()
	if o.Store == nil {
		o.Store = new(store.Store)
		o.Store.Publish(state())
	}
	s := httptest.NewServer(New(o))
	t.Cleanup(s.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	c, err := client.New(s.URL, client.Options{HTTP: s.Client()})
	if err != nil {
		t.Fatal(err)
	}
	return s, c
}

func TestClientSeesEverything(t *testing.T) {
	_, c := serve(t, Options{
		Istiods: func() []api.Istiod {
			return []api.Istiod{{Node: "n", Types: []api.IstiodType{{Type: "t", Synced: true}}}}
		},
		Traffic: func() telemetry.Report {
			return telemetry.Report{WindowSeconds: 5, Methods: []telemetry.Traffic{{Service: "s", Rate: 2}}}
		},
		Version: "v9", Filter: func() string { return "file:///f.wasm" },
	})
	ctx := t.Context()
	services, err := c.Services(ctx, client.ServiceFilter{})
	if err != nil || len(services) != 4 {
		t.Fatalf("services %v %v", services, err)
	}
	s := services[0]
	if s.ID != "dubbo/demo.Greet:1.0.0:g" || s.Interface != "demo.Greet" || s.Providers != 2 || s.Active != 1 || s.Consumers != 1 || s.Hosts[0].Host != "greet.isthmus" ||
		!slices.Equal(s.Registries, []string{"files", "zk"}) || !slices.Equal(s.Applications, []string{"greeter"}) || !slices.Equal(s.Protocols, []model.Protocol{"dubbo"}) {
		t.Errorf("service %+v", s)
	}
	for _, id := range []string{s.ID, "greet.isthmus", "240.0.0.1", "demo.Greet:1.0.0:g"} {
		d, err := c.Service(ctx, id)
		if err != nil || d.ID != s.ID || len(d.ProviderList) != 2 || *d.ProviderList[0].Weight != 7 || len(d.ConsumerList) != 1 || d.Methods[0] != "hi" {
			t.Errorf("%s: %+v %v", id, d, err)
		}
	}
	if d, err := c.Service(ctx, services[2].ID); err != nil || d.Key != services[2].Key {
		t.Errorf("a service with an odd name: %+v %v", d, err)
	}
	if d, err := c.Service(ctx, "orders"); err != nil || d.ID != "spring/orders" {
		t.Errorf("by interface: %+v %v", d, err)
	}
	if _, err := c.Service(ctx, "demo.Greet"); err == nil || !strings.Contains(err.Error(), "may be dubbo/demo.Greet:1.0.0:g, dubbo/demo.Greet:2.0.0") {
		t.Errorf("ambiguous: %v", err)
	}
	if _, err := c.Service(ctx, "demo.None"); !client.IsNotFound(err) {
		t.Errorf("none: %v", err)
	}
	if p, err := c.Problems(ctx); err != nil || len(p.Items) != 2 || p.Errors != 1 || p.Items[0].Stage != "registry" || p.Items[0].Code != "MalformedURL" {
		t.Errorf("problems %+v %v", p, err)
	}
	if x, err := c.Sources(ctx); err != nil || !x.Complete || x.Items[0].Name != "zk" || x.Items[0].AgeSeconds < 1 || x.Items[0].AgeSeconds > 60 {
		t.Errorf("sources %+v %v", x, err)
	}
	if r, err := c.Rules(ctx); err != nil || r.Generation != "gen" || r.Items[0].Place != "r.yaml:3" || string(r.Items[0].Spec) != `{"threshold":1}` {
		t.Errorf("rules %+v %v", r, err)
	}
	if i, err := c.Istiods(ctx); err != nil || i.Items[0].Node != "n" {
		t.Errorf("istiods %+v %v", i, err)
	}
	if x, err := c.Traffic(ctx); err != nil || x.Methods[0].Rate != 2 {
		t.Errorf("traffic %+v %v", x, err)
	}
	if v, err := c.Version(ctx); err != nil || v.Version != "v9" || v.Snapshot != 3 || v.Services != 4 || v.Istiods != 1 || v.Filter != "file:///f.wasm" || !v.Ready {
		t.Errorf("version %+v %v", v, err)
	}
}

func TestFiltersAndPages(t *testing.T) {
	var many store.State
	many.Snapshot = &model.Snapshot{}
	for i := range 2500 {
		many.Snapshot.Services = append(many.Snapshot.Services, model.Service{Key: model.Key{Framework: "dubbo", Interface: fmt.Sprintf("demo.S%04d", i)}})
	}
	st := new(store.Store)
	st.Publish(&many)
	_, c := serve(t, Options{Store: st})
	all, err := c.Services(t.Context(), client.ServiceFilter{})
	if err != nil || len(all) != 2500 || all[2499].Interface != "demo.S2499" {
		t.Fatalf("%d services, %v", len(all), err)
	}
	page, err := c.ServicePage(t.Context(), client.ServiceFilter{Query: "s00"}, 40, "")
	if err != nil || len(page.Items) != 40 || page.Total != 100 || page.Continue == "" {
		t.Fatalf("first page %d of %d, %v", len(page.Items), page.Total, err)
	}
	// One that comes or goes between two pages moves nothing else.
	fewer := many
	snapshot := *many.Snapshot
	snapshot.Services = many.Snapshot.Services[10:]
	fewer.Snapshot = &snapshot
	st.Publish(&fewer)
	if next, err := c.ServicePage(t.Context(), client.ServiceFilter{Query: "s00"}, 40, page.Continue); err != nil || next.Items[0].Interface != "demo.S0040" {
		t.Errorf("second page %v %v", next, err)
	}
	st.Publish(state())
	for name, f := range map[string]client.ServiceFilter{
		"framework": {Framework: "spring"}, "registry": {Registry: "zk"}, "protocol": {Protocol: "http"}, "application": {Application: "greeter"}, "query of an application": {Query: "GREETER"}, "query of a host": {Query: "greet.isth"},
	} {
		if got, err := c.Services(t.Context(), f); err != nil || len(got) != 1 {
			t.Errorf("%s: %d, %v", name, len(got), err)
		}
	}
}

func get(t *testing.T, target string, headers ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer, string(body)
}

func TestErrorsAreJSON(t *testing.T) {
	s, _ := serve(t, Options{})
	for path, want := range map[string]int{
		"/": 404, "/api/v1/nothing": 404, "/api/v1/services/none": 404, "/api/v1/services?limit=0": 400, "/api/v1/services?limit=x": 400, "/api/v1/services?continue=!": 400,
		"/api/v1/services?continue=bnVsbA": 400, "/api/v1/services?nmae=x": 400, "/api/v1/services?q=a&q=b": 400, "/api/v1/services?%zz": 400, "/api/v1/sources?x=1": 400, "/api/v1/services/demo.Greet": 409,
	} {
		answer, body := get(t, s.URL+path)
		var e api.Error
		if err := json.Unmarshal([]byte(body), &e); err != nil || answer.StatusCode != want || e.Error.Code != want || e.Error.Reason == "" || e.Error.Message == "" {
			t.Errorf("%s: %d %s", path, answer.StatusCode, body)
		}
		if answer.Header.Get("Cache-Control") != "no-store" || answer.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: headers %v", path, answer.Header)
		}
	}
	answer, err := http.Post(s.URL+"/api/v1/services", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", answer.StatusCode)
	}
	for path, want := range map[string]string{"/providers": `"address":"10.0.0.1"`, "/consumers": `"address":"10.0.0.9"`} {
		if answer, body := get(t, s.URL+"/api/v1/services/"+url.PathEscape("dubbo/demo.Greet:1.0.0:g")+path); answer.StatusCode != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", path, answer.StatusCode, body)
		}
	}
	if _, body := get(t, s.URL+"/api/v1/problems?severity=warning"); !strings.Contains(body, "InvalidRule") || strings.Contains(body, "MalformedURL") {
		t.Errorf("problems by severity: %s", body)
	}
}

func TestETag(t *testing.T) {
	s, _ := serve(t, Options{})
	first, _ := get(t, s.URL+"/api/v1/services")
	tag := first.Header.Get("ETag")
	if again, body := get(t, s.URL+"/api/v1/services", "If-None-Match", tag); tag == "" || again.StatusCode != http.StatusNotModified || body != "" {
		t.Errorf("%q: %d %q", tag, again.StatusCode, body)
	}
	if other, _ := get(t, s.URL+"/api/v1/services?q=none", "If-None-Match", tag); other.StatusCode != http.StatusOK {
		t.Errorf("other content: %d", other.StatusCode)
	}
}

func TestToken(t *testing.T) {
	want, failure := "secret", error(nil)
	registry := prometheus.NewRegistry()
	s, _ := serve(t, Options{Token: func() (string, error) { return want, failure }, Metrics: registry})
	for header, code := range map[string]int{"": 401, "Bearer secre": 401, "secret": 401, "Bearer secret": 200} {
		if answer, body := get(t, s.URL+"/api/v1/services", "Authorization", header); answer.StatusCode != code {
			t.Errorf("%q: %d %s", header, answer.StatusCode, body)
		}
	}
	c, err := client.New(s.URL, client.Options{Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Version(t.Context()); err != nil {
		t.Error(err)
	}
	failure = errors.New("gone")
	if answer, _ := get(t, s.URL+"/api/v1/services", "Authorization", "Bearer secret"); answer.StatusCode != 401 {
		t.Errorf("an unreadable token: %d", answer.StatusCode)
	}
	// Whoever watches over the server needs no token.
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		if answer, body := get(t, s.URL+path); answer.StatusCode != 200 {
			t.Errorf("%s: %d %s", path, answer.StatusCode, body)
		}
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v %v", problems, err)
	}
}

func TestReady(t *testing.T) {
	failure := errors.New("waiting for zk")
	s, _ := serve(t, Options{Ready: func() error { return failure }})
	if answer, body := get(t, s.URL+"/readyz"); answer.StatusCode != 503 || !strings.Contains(body, "waiting for zk") {
		t.Errorf("%d %s", answer.StatusCode, body)
	}
	if answer, _ := get(t, s.URL+"/healthz"); answer.StatusCode != 200 {
		t.Errorf("health: %d", answer.StatusCode)
	}
	failure = nil
	if answer, _ := get(t, s.URL+"/readyz"); answer.StatusCode != 200 {
		t.Errorf("ready: %d", answer.StatusCode)
	}
}

func TestServe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	st := new(store.Store)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- New(Options{Store: st}).Serve(ctx, l, nil) }()
	c, err := client.New(l.Addr().String(), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if list, err := c.Services(t.Context(), client.ServiceFilter{}); err != nil || len(list) != 0 {
		t.Errorf("before anything is known: %v %v", list, err)
	}
	idle, err := net.Dial("tcp", l.Addr().String()) // a connection that says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Serve does not end")
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
}

func TestClientRefuses(t *testing.T) {
	for _, address := range []string{"", "ftp://x", "http://", "::"} {
		if _, err := client.New(address, client.Options{}); err == nil {
			t.Errorf("%q is taken", address)
		}
	}
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "version") {
			fmt.Fprint(w, "<html>")
			return
		}
		http.Error(w, "no", 500)
	}))
	defer other.Close()
	c, err := client.New(other.URL, client.Options{HTTP: other.Client()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Version(t.Context()); err == nil || !strings.Contains(err.Error(), "something else") {
		t.Errorf("HTML: %v", err)
	}
	if _, err := c.Sources(t.Context()); err == nil || !strings.Contains(err.Error(), "500") {
		t.Errorf("an error of somebody else's: %v", err)
	}
}

func TestLimitedListener(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newLimited(inner, 1)
	first, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	one, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error, 1)
	go func() {
		c, err := l.Accept() // there is no room before one is closed
		if err == nil {
			c.Close()
		}
		accepted <- err
	}()
	second, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	select {
	case err := <-accepted:
		t.Errorf("accepted beyond the limit: %v", err)
	default:
	}
	one.Close()
	if err := <-accepted; err != nil {
		t.Error(err)
	}
	l.Close()
	if _, err := l.Accept(); err == nil {
		t.Error("a closed listener accepts")
	}
}

// TestTrafficOfRules: what an Envoy still shows of a rule that is gone is nobody's, unless calls are still held to it.
func TestTrafficOfRules(t *testing.T) {
	none := map[string]float64{"admit": 0, "reject": 0}
	_, c := serve(t, Options{Traffic: func() telemetry.Report {
		return telemetry.Report{Rules: []telemetry.Rule{
			{Kind: "access", Name: "default/r", Rates: none}, // of another kind
			{Kind: "throttle", Name: "default/gone", Rates: none},
			{Kind: "throttle", Name: "default/held", Rates: map[string]float64{"admit": 0, "reject": 1}},
			{Kind: "throttle", Name: "default/r", Rates: none},
			{Name: "default/r"},
			{Name: "other/r"},
		}}
	}})
	x, err := c.Traffic(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := []string{}
	for _, r := range x.Rules {
		got = append(got, r.Kind+" "+r.Name)
	}
	if want := []string{"throttle default/held", "throttle default/r", " default/r"}; !slices.Equal(got, want) {
		t.Errorf("%q, not %q", got, want)
	}
}
