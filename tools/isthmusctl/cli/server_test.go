package cli

import (
	"bytes"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/console"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/mcp-server/store"
	"github.com/isthmus-mesh/isthmus/mcp-server/telemetry"
)

// known is what the server of the tests knows.
func known() *store.State {
	zk := func(place string) []model.Origin { return []model.Origin{{Registry: "zk", Place: place}} }
	weight := func(n uint32) *uint32 { return &n }
	greet := model.Service{
		Key: model.Key{Framework: "dubbo", Interface: "demo.GreetService", Version: "1.0.0", Group: "g1"}, Methods: []string{"echo", "sayHello"},
		Metadata: map[string]string{"owner": "greetings", "side": "provider"},
		Endpoints: []model.Endpoint{
			{Address: "192.0.2.10", Port: 20880, Protocol: "dubbo", Application: "greet-provider", Weight: weight(100), Labels: map[string]string{"version": "v1", "env": "gray"}, Locality: model.Locality{Region: "north", Zone: "a"}, Origins: zk("/a")},
			{Address: "192.0.2.11", Port: 20880, Protocol: "dubbo", Application: "greet-provider", Weight: weight(0), Labels: map[string]string{"version": "v2"}, Origins: zk("/b")},
			{Address: "2001:db8::1", Port: 20880, Protocol: "dubbo", Application: "greet-provider", Disabled: true, Origins: append(zk("/c"), model.Origin{Registry: "by-hand"})},
		},
		Consumers: []model.Consumer{{Address: "192.0.2.77", Application: "shop", Origins: zk("/d")}, {Address: "192.0.2.78", Origins: zk("/e")}},
	}
	old := model.Service{Key: model.Key{Framework: "dubbo", Interface: "demo.GreetService", Version: "0.9"}}
	hello := model.Service{Key: model.Key{Framework: "sofa", Interface: "demo.HelloService", Version: "1.0"},
		Endpoints: []model.Endpoint{{Address: "192.0.2.20", Port: 12200, Protocol: "bolt", Application: "hello", Origins: []model.Origin{{Registry: "sofa"}}}}}
	odd := model.Service{Key: model.Key{Framework: "dubbo", Interface: "evil.\x1b[31mService"}}
	now := time.Now()
	return &store.State{
		Snapshot: &model.Snapshot{Version: 3, Services: []model.Service{old, greet, odd, hello}, Sources: []model.Source{
			{Name: "zk", Kind: "zookeeper", State: model.StateStale, LastWord: now.Add(-3*time.Hour - 30*time.Minute), StaleFrom: now.Add(-90 * time.Second), Error: "zookeeper: no connection to 192.0.2.1:2181: dial tcp 192.0.2.1:2181: connect: connection refused", Services: 2, Endpoints: 3, Consumers: 2, Problems: 1},
			{Name: "by-hand", Kind: "file", State: model.StateSynced, LastWord: now.Add(-50*time.Hour - 30*time.Minute), Services: 1, Endpoints: 1},
			{Name: "sofa", Kind: "sofaregistry", State: model.StateConnecting, Error: "sofaregistry: no session answers"},
		}},
		Hosts: map[model.Key][]store.Host{
			greet.Key: {{Protocol: "dubbo", Host: "demo.greet-service.v1-0-0.g1.dubbo.isthmus", Address: "240.64.0.1", Port: 20880, Carried: 1, LeftOut: 2}},
			hello.Key: {{Protocol: "bolt", Host: "demo.hello-service.v1-0.sofa.isthmus", Port: 12200, Carried: 1}},
		},
		Problems: []store.Problem{
			{Stage: store.StageRules, Problem: model.Problem{Severity: model.SeverityWarning, Place: "/etc/isthmus/rules/r.yaml:1", Code: "InvalidRule", Message: "spec.threshold: is missing; the last good version stays in force"}},
			{Stage: store.StageRegistry, Problem: model.Problem{Severity: model.SeverityError, Registry: "zk", Place: "/dubbo/demo.GreetService/providers/dubbo%3A%2F%2Fx", Code: "MalformedURL", Message: "the name cannot be read as a URL: no port; this provider is left out, and the others are taken as they are"}},
		},
		Rules: []store.Rule{
			{Kind: "ThrottleRule", Namespace: "default", Name: "greet", File: "/etc/isthmus/rules/r.yaml", Line: 3, Enabled: true, Generations: []string{"gen-2"}, Spec: json.RawMessage(`{"target":{"service":"demo.GreetService","method":{"prefix":"say"}},"direction":"server","threshold":100}`)},
			{Kind: "ThrottleRule", Namespace: "default", Name: "off", File: "/etc/isthmus/rules/r.yaml", Line: 9, Spec: json.RawMessage(`{"enabled":false,"threshold":0}`)},
			{Kind: "ThrottleRule", Namespace: "default", Name: "watch", File: "/etc/isthmus/rules/s.yaml", Line: 1, Enabled: true, Kept: true, Generations: []string{"gen-1", "gen-2"}, Spec: json.RawMessage(`{"mode":"observe","threshold":1,"interval":"10s","list":[1,{"a":"b"}]}`)},
		},
		Generation: "gen-2",
	}
}

// metered is the traffic that the server of the tests has seen.
func metered() telemetry.Report {
	p := func(v float64) *float64 { return &v }
	t := telemetry.Traffic{System: "dubbo", Service: "demo.GreetService", Version: "1.0.0", Group: "g1"}
	at := func(direction, method string, rate, errors, exceptions, rejected float64, p50, p90, p99 *float64, inFlight float64) telemetry.Traffic {
		t := t
		t.Direction, t.Method, t.Rate, t.ErrorRatio, t.ExceptionRatio, t.RejectedRatio, t.P50, t.P90, t.P99, t.InFlight = direction, method, rate, errors, exceptions, rejected, p50, p90, p99, inFlight
		return t
	}
	idle := telemetry.Traffic{System: "bolt", Service: "demo.ArchiveService", Version: "1.0", Direction: "server"}
	idleMethod := idle
	idleMethod.Method = "sayHello"
	return telemetry.Report{
		Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), WindowSeconds: 5,
		Targets: []telemetry.Status{
			{Name: "web", URL: "http://192.0.2.77:15090/stats/prometheus", Up: true, Generations: []string{"gen-2"}, Runs: []telemetry.Run{{Generation: "gen-2"}}},
			{Name: "greet-1", Up: true, Generations: []string{"gen-1"}, Runs: []telemetry.Run{{Generation: "gen-1"}}, Rejected: true},
			{Name: "greet-2", Error: "connection refused"},
		},
		Methods: []telemetry.Traffic{
			idleMethod,
			at("client", "echo", 1234.5, 0, 0, 0, p(0.8), p(1.25), p(9.999), 3), at("server", "echo", 1234, 0, 0, 0, p(0.4), p(0.7), p(12.3), 1),
			at("client", "sayHello", 20, 0.0004, 0.05, 0.5, p(210), p(220), p(1500), 0),
		},
		Services: []telemetry.Traffic{
			idle,
			at("client", "", 1254.5, 0.00001, 0.0008, 0.008, p(0.9), p(1.3), p(220), 3), at("server", "", 1234, 0, 0, 0, p(0.4), p(0.7), p(12.3), 1),
		},
		Subsets: []telemetry.SubsetTraffic{
			{Subset: telemetry.Subset{System: "dubbo", Service: "demo.GreetService", Version: "1.0.0", Group: "g1", Subset: "v1-or-all"}, Rate: 990, Share: 0.9, ExceptionRatio: 0.02, P50: p(0.9), P99: p(3.2)},
			{Subset: telemetry.Subset{System: "dubbo", Service: "demo.GreetService", Version: "1.0.0", Group: "g1", Subset: "v2-or-all"}, Rate: 110, Share: 0.1, ErrorRatio: 0.04, P50: p(1.1), P99: p(9.1)},
			{Subset: telemetry.Subset{System: "bolt", Service: "demo.PayService", Version: "1.0", Subset: "v1"}},
		},
		Rules: []telemetry.Rule{
			{Name: "default/greet", Rates: map[string]float64{"admit": 10, "reject": 10}, Totals: map[string]float64{"admit": 99, "reject": 1234}, Targets: []string{"greet-1", "web"}},
			{Name: "default/watch", Rates: map[string]float64{"admit": 3, "would_reject": 0.005}, Totals: map[string]float64{"admit": 5}, Targets: []string{"web"}},
		},
		Edges: []telemetry.Edge{
			{Service: "demo.ArchiveService", Version: "1.0", Direction: "server"},
			{Caller: "shop", Service: "demo.GreetService", Version: "1.0.0", Group: "g1", Direction: "client", Rate: 1254.5, Errors: 0.008},
			{Caller: "shop", Service: "demo.GreetService", Version: "1.0.0", Group: "g1", Direction: "server", Rate: 1234},
		},
	}
}

// serve runs the API of mcp-server on what is known, and names it as the commands' server.
func serve(t *testing.T, change func(*console.Options)) *httptest.Server {
	t.Helper()
	now := time.Now()
	o := console.Options{
		Store:   new(store.Store),
		Traffic: metered,
		Istiods: func() []api.Istiod {
			return []api.Istiod{
				{Node: "istiod-7c9-abcde.istio-system", Remote: "192.0.2.30:41000", Since: now.Add(-26*time.Hour - time.Minute), Types: []api.IstiodType{
					{Type: "networking.istio.io/v1/ServiceEntry", Resources: 4, Synced: true}, {Type: "extensions.istio.io/v1alpha1/WasmPlugin", Resources: 1, Synced: false, Rejected: "no such image"}}},
				{Node: "istiod-7c9-fghij.istio-system", Remote: "192.0.2.31:41000", Since: now.Add(-5*time.Minute - time.Second), Types: []api.IstiodType{{Type: "networking.istio.io/v1/ServiceEntry", Resources: 4, Synced: true}}},
			}
		},
	}
	o.Store.Publish(known())
	if change != nil {
		change(&o)
	}
	s := httptest.NewServer(console.New(o))
	t.Cleanup(s.Close)
	t.Setenv(envServer, s.URL)
	t.Setenv(envToken, "")
	return s
}

// empty is a server that knows nothing yet.
func empty(o *console.Options) {
	o.Store = new(store.Store)
	o.Traffic = func() telemetry.Report { return telemetry.New(telemetry.Options{}).Report() }
	o.Istiods = nil
}

// lifting is a server that lifts a service, at one of its two consumers, and has a RouteRule for it beside somebody's DestinationRule.
func lifting(o *console.Options) {
	state, at := known(), time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	key := model.Key{Framework: "dubbo", Interface: "demo.GreetService", Version: "1.0.0", Group: "g1"}
	host := state.Hosts[key][0].Host
	state.Lifts = map[model.Key]*store.Lift{
		key: {Mode: "lift", Callers: map[string]string{"batch": "passthrough"}, Lower: "caller", Generations: []string{"gen-2"}},
		{Framework: "sofa", Interface: "demo.HelloService", Version: "1.0"}: {Mode: "dialled", Lower: "provider", Generations: []string{"gen-2"}},
	}
	for i := range state.Snapshot.Services {
		if svc := &state.Snapshot.Services[i]; svc.Key == key {
			svc.Consumers = append(svc.Consumers, model.Consumer{Address: "192.0.2.79", Application: "batch"})
		}
	}
	state.Rules = append(state.Rules, store.Rule{Kind: "RouteRule", Namespace: "default", Name: "split", File: "/etc/isthmus/rules/t.yaml", Line: 1, Enabled: true, Spec: json.RawMessage(`{"service":{"interface":"demo.GreetService"}}`),
		Explain: func() json.RawMessage {
			return json.RawMessage(`{"does":"routes the calls","calls":["service is demo.GreetService"]}`)
		},
		Routes: []store.Route{{Host: host, VirtualService: "default/route-greet", DestinationRule: "default/route-greet", Subsets: []string{"v1-or-all", "v2-or-all"}}}})
	o.Store = new(store.Store)
	o.Store.Publish(state)
	o.Traffic = func() telemetry.Report {
		r := metered()
		r.Targets = []telemetry.Status{
			{Name: "web", URL: "http://192.0.2.77:15090/stats/prometheus", Up: true, Runs: []telemetry.Run{{Generation: "gen-1", Since: at.Add(-time.Hour)}, {Generation: "gen-2", Since: at}}},
			{Name: "web-2", URL: "http://192.0.2.78:15090/stats/prometheus", Up: true, Runs: []telemetry.Run{{Generation: "gen-1", Since: at.Add(-time.Hour)}}},
			{Name: "batch", URL: "http://192.0.2.79:15090/stats/prometheus", Up: true, Runs: []telemetry.Run{{Generation: "gen-2", Since: at.Add(-time.Minute)}}},
		}
		r.Faults = []telemetry.Fault{{Target: "web", Direction: "client", Reason: telemetry.FaultEncrypted, Total: 2}}
		return r
	}
	o.Subsets = func() map[string]map[string][]string {
		return map[string]map[string][]string{host: {"sidecar~192.0.2.77~web": {"", "v1-or-all", "v2-or-all"}, "sidecar~192.0.2.78~web-2": {"", "canary"}}}
	}
}

// TestLiveTables holds what people see to the golden files.
func TestLiveTables(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(*console.Options)
		columns int // of a terminal; 0 for none
		colour  bool
		args    string
	}{
		"services":           {args: "services"},
		"services-filtered":  {args: "services -q GREET --framework dubbo --registry zk --protocol dubbo --application greet-provider"},
		"services-narrow":    {columns: 90, args: "services"},
		"services-colour":    {colour: true, args: "services -q demo"},
		"services-lifted":    {change: lifting, args: "services"},
		"service-lifted":     {change: lifting, args: "service dubbo/demo.GreetService:1.0.0:g1"},
		"rules-lifted":       {change: lifting, args: "rules"},
		"rule-route":         {change: lifting, args: "rule get route split"},
		"rule-route-explain": {change: lifting, args: "rule explain split"},
		"problems-lifted":    {change: lifting, args: "problems --stage sidecar"},
		"services-none":      {change: empty, args: "services"},
		"services-none-fit":  {args: "services -q nothing"},
		"service":            {args: "service dubbo/demo.GreetService:1.0.0:g1"},
		"service-narrow":     {columns: 60, args: "service 240.64.0.1"},
		"service-empty":      {args: "service dubbo/demo.GreetService:0.9"},
		"problems":           {args: "problems"},
		"problems-narrow":    {columns: 150, args: "problems"},
		"problems-narrower":  {columns: 80, args: "problems"},
		"problems-colour":    {colour: true, args: "problems --severity error"},
		"problems-none":      {change: empty, args: "problems"},
		"problems-none-fit":  {args: "problems --stage config"},
		"sources":            {args: "sources"},
		"sources-narrow":     {columns: 130, args: "sources"},
		"sources-none":       {change: empty, args: "sources"},
		"rules":              {args: "rules"},
		"rules-narrow":       {columns: 120, args: "rules"},
		"rules-none":         {change: empty, args: "rules"},
		"istiods":            {args: "istiods"},
		"istiods-none":       {change: empty, args: "istiods"},
		"top":                {args: "top"},
		"top-once":           {columns: 100, colour: true, args: "top --once"},
		"top-filtered":       {args: "top -q sayhello --at client"},
		"top-sorted-by-p99":  {args: "top --sort p99"},
		"top-sorted-by-rate": {args: "top --sort rate"},
		"top-no-sidecars":    {change: empty, args: "top"},
		"top-no-calls": {change: func(o *console.Options) {
			o.Traffic = func() telemetry.Report {
				return telemetry.Report{WindowSeconds: 5, Targets: []telemetry.Status{{Name: "web", Up: true}}}
			}
		}, args: "top"},
	} {
		t.Run(name, func(t *testing.T) {
			serve(t, c.change)
			var out, errs bytes.Buffer
			s := &Streams{In: strings.NewReader(""), Out: &out, Err: &errs, Colour: c.colour}
			if c.columns > 0 {
				s.Size = func() (int, int) { return c.columns, 50 }
			}
			if code := Run(t.Context(), s, strings.Fields(c.args)); code != ExitOK || errs.Len() > 0 {
				t.Fatalf("got %d, %q", code, errs.String())
			}
			if strings.Contains(out.String(), "\x1b[31mService") || !c.colour && strings.Contains(out.String(), "\x1b") {
				t.Errorf("control sequences reach the terminal: %q", out.String())
			}
			golden(t, name+".txt", out.String())
		})
	}
}

// TestLiveForms holds -o json and yaml to the same content, under the API's own names.
func TestLiveForms(t *testing.T) {
	serve(t, nil)
	for args, want := range map[string]string{
		"services -q greet":            `"providers": 3,`,
		"service demo.HelloService":    `"protocol": "bolt"`,
		"problems --code MalformedURL": `"errors": 1`,
		"sources":                      `"complete": false`,
		"rules":                        `"generation": "gen-2"`,
		"istiods":                      `"rejected": "no such image"`,
		"top":                          `"windowSeconds": 5`,
	} {
		t.Run(args, func(t *testing.T) {
			asJSON := invoke(t, "", append(strings.Fields(args), "-o", "json")...)
			if asJSON.code != ExitOK || asJSON.err != "" || !strings.Contains(asJSON.out, want) {
				t.Errorf("got %+v, want %s in it", asJSON, want)
			}
			var v any
			if err := json.Unmarshal([]byte(asJSON.out), &v); err != nil {
				t.Error(err)
			}
			asYAML := invoke(t, "", append(strings.Fields(args), "-o", "yaml")...)
			if line := strings.Trim(strings.ReplaceAll(want, `"`, ""), ","); asYAML.code != ExitOK || !strings.Contains(asYAML.out, line) {
				t.Errorf("got %+v, want %s in it", asYAML, line)
			}
		})
	}
}

func TestLiveFaults(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	write(t, token, "secret\n")
	guarded := func(o *console.Options) { o.Token = func() (string, error) { return "secret", nil } }
	for name, c := range map[string]struct {
		change func(*console.Options)
		args   string
		code   int
		err    string
	}{
		"no such service":      {nil, "service demo.Nothing", ExitBad, `isthmusctl: there is no service "demo.Nothing"`},
		"misspelt":             {nil, "service demo.HeloService", ExitBad, `isthmusctl: there is no service "demo.HeloService"; did you mean sofa/demo.HelloService:1.0?`},
		"in part":              {nil, "service hello", ExitBad, `isthmusctl: there is no service "hello"; did you mean sofa/demo.HelloService:1.0?`},
		"wrong version":        {nil, "service dubbo/demo.GreetService:1.0.1:g1", ExitBad, `isthmusctl: there is no service "dubbo/demo.GreetService:1.0.1:g1"; did you mean dubbo/demo.GreetService:1.0.0:g1 or dubbo/demo.GreetService:0.9?`},
		"several":              {nil, "service demo.GreetService", ExitBad, `isthmusctl: "demo.GreetService" may be dubbo/demo.GreetService:0.9, dubbo/demo.GreetService:1.0.0:g1`},
		"empty name":           {nil, "service ", ExitUsage, "isthmusctl: accepts 1 arg(s), received 0"},
		"severity":             {nil, "problems --severity bad", ExitUsage, `isthmusctl: --severity "bad": one of error, warning`},
		"direction":            {nil, "top --at home", ExitUsage, `isthmusctl: --at "home": one of client, server`},
		"order":                {nil, "top --sort age", ExitUsage, `isthmusctl: --sort "age": one of name, rate, errors, p99`},
		"interval":             {nil, "top --interval 1ms", ExitUsage, "isthmusctl: --interval must be at least 100ms"},
		"form":                 {nil, "services -o xml", ExitUsage, `isthmusctl: invalid argument "xml" for "-o, --output" flag: one of table, json, yaml`},
		"token needed":         {guarded, "services", ExitUnreachable, "does not let us in: a bearer token is needed; name one with --token-file or $ISTHMUS_TOKEN"},
		"flags before":         {guarded, "--token-file " + token + " services", ExitOK, ""},
		"token":                {guarded, "services -q hello --token-file " + token, ExitOK, ""},
		"token file missing":   {guarded, "services --token-file " + token + "x", ExitUsage, "isthmusctl: --token-file: stat "},
		"timeout":              {nil, "services --timeout 0s", ExitUsage, "isthmusctl: --timeout must be more than 0"},
		"certificates missing": {nil, "services --ca-file " + token, ExitUsage, "holds no certificate in PEM"},
		"no address":           {nil, "services --server ftp://x", ExitUsage, `isthmusctl: --server: "ftp://x" is neither host:port nor a URL`},
	} {
		t.Run(name, func(t *testing.T) {
			serve(t, c.change)
			r := invoke(t, "", strings.Fields(c.args)...)
			if r.code != c.code || !strings.Contains(r.err, c.err) || (c.err == "") != (r.err == "") || strings.Count(r.err, "\n") > 1 {
				t.Errorf("got %+v; want %d and %q", r, c.code, c.err)
			}
		})
	}
	t.Run("token in the environment", func(t *testing.T) {
		serve(t, guarded)
		t.Setenv(envToken, "secret")
		if r := invoke(t, "", "sources"); r.code != ExitOK {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("TLS", func(t *testing.T) {
		o := console.Options{Store: new(store.Store)}
		o.Store.Publish(known())
		s := httptest.NewUnstartedServer(console.New(o))
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		s.StartTLS()
		defer s.Close()
		ca := filepath.Join(t.TempDir(), "ca.pem")
		write(t, ca, pemOf(s.Certificate()))
		if r := invoke(t, "", "services", "--server", s.URL, "--ca-file", ca); r.code != ExitOK || !strings.Contains(r.out, "demo.HelloService") {
			t.Errorf("got %+v", r)
		}
		if r := invoke(t, "", "services", "--server", s.URL); r.code != ExitUnreachable || !strings.Contains(r.err, "certificate") {
			t.Errorf("without the certificate: got %+v", r)
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		s := serve(t, nil)
		s.Close()
		for _, command := range []string{"services", "service x", "problems", "sources", "rules", "istiods", "top"} {
			r := invoke(t, "", strings.Fields(command)...)
			if r.code != ExitUnreachable || r.out != "" || !strings.Contains(r.err, "connection refused; name another with --server or $ISTHMUS_SERVER") {
				t.Errorf("%s: got %+v", command, r)
			}
		}
	})
	t.Run("silent", func(t *testing.T) {
		hold := make(chan struct{})
		s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hold }))
		defer s.Close()
		defer close(hold)
		r := invoke(t, "", "services", "--server", s.URL, "--timeout", "50ms")
		if r.code != ExitUnreachable || !strings.Contains(r.err, "does not answer within 50ms") {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("somebody else", func(t *testing.T) {
		s := httptest.NewServer(http.NotFoundHandler())
		defer s.Close()
		r := invoke(t, "", "services", "--server", s.URL)
		if r.code != ExitUnreachable || !strings.Contains(r.err, "does not seem to be mcp-server") {
			t.Errorf("got %+v", r)
		}
	})
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
