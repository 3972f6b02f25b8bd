package file

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/adapterstest"
	"github.com/isthmus-mesh/isthmus/adapters/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const within = 10 * time.Second

// folder drives a folder of files, one an interface, for the conformance suite.
type folder struct {
	path      string // as configured
	dir       string // where it is now
	providers map[string]map[adapterstest.Provider]bool
	consumers map[string]map[adapterstest.Consumer]bool
}

func startFolder(t *testing.T) adapterstest.Registry {
	dir := t.TempDir()
	return &folder{dir, dir, map[string]map[adapterstest.Provider]bool{}, map[string]map[adapterstest.Consumer]bool{}}
}

func discoverer(t testing.TB, path string) adapters.Discoverer {
	t.Helper()
	s, err := adapters.ParseSettings(fmt.Appendf(nil, "path: %q", path))
	if err != nil {
		t.Fatal(err)
	}
	d, err := Kind.New(s.Decode, adapters.Options{Name: "files"})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (f *folder) Discoverer(t testing.TB) adapters.Discoverer { return discoverer(t, f.path) }

func (f *folder) write(t testing.TB, iface string) {
	t.Helper()
	name := filepath.Join(f.dir, iface+".yaml")
	services := map[model.Key]*service{}
	at := func(k model.Key) *service {
		if services[k] == nil {
			services[k] = &service{Framework: k.Framework, Interface: k.Interface, Version: k.Version, Group: k.Group}
		}
		return services[k]
	}
	for p := range f.providers[iface] {
		e := endpoint{Address: p.Address, Port: p.Port, Application: p.Application}
		if p.Weight > 0 {
			e.Weight = &p.Weight
		}
		s := at(p.Key("dubbo"))
		s.Endpoints = append(s.Endpoints, e)
	}
	for c := range f.consumers[iface] {
		s := at(c.Key("dubbo"))
		s.Consumers = append(s.Consumers, consumer{Address: c.Address, Application: c.Application})
	}
	if len(services) == 0 {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		return
	}
	var list []any
	for _, s := range services {
		m := map[string]any{"framework": s.Framework, "interface": s.Interface, "version": s.Version, "group": s.Group}
		var es, cs []any
		for _, e := range s.Endpoints {
			es = append(es, map[string]any{"address": e.Address, "port": e.Port, "application": e.Application, "weight": e.Weight})
		}
		for _, c := range s.Consumers {
			cs = append(cs, map[string]any{"address": c.Address, "application": c.Application})
		}
		m["endpoints"], m["consumers"] = es, cs
		list = append(list, m)
	}
	b, err := json.Marshal(map[string]any{"apiVersion": ListAPIVersion, "kind": ListKind, "services": list})
	if err != nil {
		t.Fatal(err)
	}
	replace(t, name, b)
}

// replace writes a file as careful programs do: beside it, then renamed.
func replace(t testing.TB, name string, content []byte) {
	t.Helper()
	temp := filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+".new")
	if err := os.WriteFile(temp, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temp, name); err != nil {
		t.Fatal(err)
	}
}

func (f *folder) AddProvider(t testing.TB, p adapterstest.Provider) {
	if f.providers[p.Interface] == nil {
		f.providers[p.Interface] = map[adapterstest.Provider]bool{}
	}
	f.providers[p.Interface][p] = true
	f.write(t, p.Interface)
}

func (f *folder) RemoveProvider(t testing.TB, p adapterstest.Provider) {
	delete(f.providers[p.Interface], p)
	f.write(t, p.Interface)
}

func (f *folder) AddConsumer(t testing.TB, c adapterstest.Consumer) {
	if f.consumers[c.Interface] == nil {
		f.consumers[c.Interface] = map[adapterstest.Consumer]bool{}
	}
	f.consumers[c.Interface][c] = true
	f.write(t, c.Interface)
}

func (f *folder) RemoveConsumer(t testing.TB, c adapterstest.Consumer) {
	delete(f.consumers[c.Interface], c)
	f.write(t, c.Interface)
}

// Disconnect moves the folder away, as an unmounted volume would be.
func (f *folder) Disconnect(t testing.TB) {
	if err := os.Rename(f.dir, f.dir+".away"); err != nil {
		t.Fatal(err)
	}
	f.dir += ".away"
}

func (f *folder) Connect(t testing.TB) {
	if err := os.Rename(f.dir, f.path); err != nil {
		t.Fatal(err)
	}
	f.dir = f.path
}

func (f *folder) AddMalformed(t testing.TB, _ adapterstest.Provider) string {
	replace(t, filepath.Join(f.dir, "broken.yaml"), []byte("services: [{]"))
	return "broken.yaml:1"
}

func (f *folder) RemoveMalformed(t testing.TB, _ adapterstest.Provider) {
	if err := os.Remove(filepath.Join(f.dir, "broken.yaml")); err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	adapterstest.Run(t, adapterstest.Suite{
		Start: startFolder, Framework: "dubbo", Protocol: model.ProtocolDubbo, Consumers: true, Connection: true, Within: within,
	})
}

func suite() adapterstest.Suite { return adapterstest.Suite{Framework: "dubbo"} }

func listOf(ps ...adapterstest.Provider) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: %s\nkind: %s\nservices:\n", ListAPIVersion, ListKind)
	for _, p := range ps {
		fmt.Fprintf(&b, "- {framework: dubbo, interface: %s, version: %s, endpoints: [{address: %s, port: %d}]}\n", p.Interface, p.Version, p.Address, p.Port)
	}
	return []byte(b.String())
}

// TestConfigMap replaces the content as the kubelet does: a new folder, and a symbolic link renamed onto the old one.
func TestConfigMap(t *testing.T) {
	for name, path := range map[string]string{"folder": "", "file": "services.yaml"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			a, b := adapterstest.P("demo.A", 1), adapterstest.P("demo.B", 2)
			put := func(version string, p adapterstest.Provider) {
				if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, version, "services.yaml"), listOf(p), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(version, filepath.Join(dir, "..data_tmp")); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
					t.Fatal(err)
				}
			}
			put("..1", a)
			if err := os.Symlink("..data/services.yaml", filepath.Join(dir, "services.yaml")); err != nil {
				t.Fatal(err)
			}
			v := adapterstest.Watch(t, discoverer(t, filepath.Join(dir, path)), within)
			v.Synced()
			v.Await(suite(), a)
			put("..2", b)
			v.Await(suite(), b)
		})
	}
}

func TestBrokenFileKeepsItsLastGoodContent(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "s.yaml")
	a, b, c := adapterstest.P("demo.A", 1), adapterstest.P("demo.B", 2), adapterstest.P("demo.C", 3)
	replace(t, name, listOf(a))
	d := discoverer(t, dir)
	v := adapterstest.Watch(t, d, within)
	v.Synced()
	v.Await(suite(), a)
	bad := strings.Replace(string(listOf(a, b)), "port: 20880", "port: 99999", 1) + "surplus: 1\n"
	replace(t, name, []byte(bad))
	v.Until(func() string {
		var places []string
		for _, p := range v.Problems() {
			places = append(places, strings.TrimPrefix(p.Place, dir+"/")+" "+p.Message)
		}
		if len(places) != 2 || !strings.HasPrefix(places[0], "s.yaml:4 services[0].endpoints[0].port: ") || !strings.HasPrefix(places[1], "s.yaml:6 surplus: ") {
			return fmt.Sprintf("problems: %q", places)
		}
		return ""
	})
	v.Await(suite(), a)
	replace(t, name, listOf(b))
	v.Await(suite(), b)
	v.Until(func() string {
		if p := v.Problems(); len(p) > 0 {
			return fmt.Sprint(p)
		}
		return ""
	})
	if err := os.WriteFile(filepath.Join(dir, "other.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	replace(t, filepath.Join(dir, "ignored.txt"), listOf(c))
	v.Until(func() string {
		if p := v.Problems(); len(p) != 1 || p[0].Code != "InvalidFile" {
			return fmt.Sprint(p)
		}
		return ""
	})
	v.Await(suite(), b)
}

// TestBrokenFileAtStart holds the Manager and the adapter together: what an earlier process read from a file that is
// broken now stays.
func TestBrokenFileAtStart(t *testing.T) {
	dir, state := t.TempDir(), t.TempDir()
	a, b := adapterstest.P("demo.A", 1), adapterstest.P("demo.B", 2)
	for i, content := range [][]byte{listOf(a), []byte("kind: [")} {
		replace(t, filepath.Join(dir, "s.yaml"), content)
		if i == 1 {
			replace(t, filepath.Join(dir, "t.yaml"), listOf(b))
		}
		settings, err := adapters.ParseSettings(fmt.Appendf(nil, "path: %s", dir))
		if err != nil {
			t.Fatal(err)
		}
		m := adapters.NewManager(adapters.ManagerOptions{Kinds: adapters.Kinds{Kind}, StateDir: state})
		if err := m.Set(t.Context(), []adapters.Registry{{Name: "files", Kind: "file", Settings: settings}}); err != nil {
			t.Fatal(err)
		}
		snapshots := m.Subscribe(t.Context())
		done := make(chan error)
		ctx, stop := newContext(t)
		go func() { done <- m.Run(ctx) }()
		late := time.After(within)
		for synced := false; !synced; {
			select {
			case s := <-snapshots:
				if synced = s.Sources[0].State == model.StateSynced; !synced {
					break
				}
				var got []string
				for _, svc := range s.Services {
					got = append(got, svc.Key.Interface)
				}
				want := []string{"demo.A", "demo.B"}[:i+1]
				if !slices.Equal(got, want) || len(s.Problems) != i {
					t.Errorf("services %v, want %v; problems %v", got, want, s.Problems)
				}
			case <-late:
				t.Fatal("not synced")
			}
		}
		stop()
		<-done
	}
}

func TestParse(t *testing.T) {
	text, err := os.ReadFile("testdata/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	services, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := adapterstest.CheckGroup(model.Group{Source: "x", Services: services}); err != nil {
		t.Error(err)
	}
	got, err := json.Marshal(services)
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"key":{"framework":"dubbo","interface":"demo.GreetService","version":"1.0.0","group":"blue"},"methods":["echo","sayHello"],"endpoints":[` +
		`{"address":"192.0.2.2","port":20880,"protocol":"tri"},` +
		`{"address":"192.0.2.3","port":20880,"protocol":"dubbo","application":"greet-provider","weight":50,"disabled":true,"locality":{"region":"north","zone":"a","subZone":"rack1"},"labels":{"version":"v2"},"metadata":{"pid":"17"}},` +
		`{"address":"2001:db8::1","port":20880,"protocol":"dubbo"}],"consumers":[{"address":"192.0.2.77","application":"shop","metadata":{"side":"consumer"}}],"metadata":{"owner":"greetings"}},` +
		`{"key":{"framework":"sofa","interface":"demo.HelloService","version":"1.0"},"endpoints":[{"address":"hello.example.org","port":12200,"protocol":"bolt"}]}]`
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestParseFaults(t *testing.T) {
	head := "apiVersion: " + ListAPIVersion + "\nkind: ServiceList\nservices:\n"
	for name, c := range map[string]struct {
		text string
		want []string // Path and line of each fault, and a part of its message
	}{
		"not YAML":         {"a: b: c", []string{":1 mapping values"}},
		"not a mapping":    {"[1, 2]", []string{":1 must be a mapping"}},
		"another kind":     {"apiVersion: v1\nkind: Pod\n", []string{"apiVersion:1 must be", "kind:2 must be"}},
		"unknown fields":   {head + "- framework: dubbo\n  interface: x\n  foo: 1\n  endpoints:\n  - {address: 192.0.2.1, port: 1, bar: 2}\n", []string{"services[0].foo:6 unknown field", "services[0].endpoints[0].bar:8 unknown field"}},
		"wrong types":      {head + "- framework: dubbo\n  interface: [x]\n  endpoints:\n  - address: 192.0.2.1\n    port: many\n    weight: -1\n    disabled: maybe\n", []string{"services[0].interface:5 must be a string", "services[0].endpoints[0].port:8 \"many\" is not a whole number from 0 to 65535", "services[0].endpoints[0].weight:9 ", "services[0].endpoints[0].disabled:10 "}},
		"nothing in it":    {head + "- {}\n", []string{"services[0].framework:4 must be", "services[0].interface:4 is missing"}},
		"bad values":       {head + "- framework: soap\n  interface: a b\n  endpoints:\n  - {address: 'no host!', port: 0, protocol: DUBBO}\n  consumers:\n  - {}\n", []string{"services[0].framework:4", "services[0].interface:5", "services[0].endpoints[0].address:7", "services[0].endpoints[0].port:7", "services[0].endpoints[0].protocol:7", "services[0].consumers[0].address:9"}},
		"twice":            {head + "- &a {framework: dubbo, interface: x}\n- {framework: dubbo, interface: x}\n", []string{"services[1]:5 dubbo/x is already services[0]"}},
		"twice in one":     {head + "- {framework: dubbo, interface: x, interface: y}\n", []string{"services[0].interface:4 is there twice"}},
		"endpoint twice":   {head + "- {framework: dubbo, interface: x, endpoints: [{address: 192.0.2.1, port: 1}, {address: 192.0.2.1, port: 1, protocol: dubbo}]}\n", []string{"services[0].endpoints[1]:4 192.0.2.1:1 is already"}},
		"in two documents": {head + "- {framework: dubbo, interface: x}\n---\n" + head + "- {framework: dubbo, interface: x}\n", []string{"services[0]:6 dubbo/x is also in the document at line 1"}},
		"alias":            {head + "- &a {framework: dubbo, interface: x}\n- *a\n", []string{"services[1]:5 YAML aliases"}},
		"deep":             {head + "- " + strings.Repeat("[", 200) + strings.Repeat("]", 200), []string{"services[0]:4 must be a mapping"}},
	} {
		t.Run(name, func(t *testing.T) {
			services, err := Parse([]byte(c.text))
			faults := adapters.AsFaults(err)
			if services != nil || len(faults) < len(c.want) {
				t.Fatalf("services %v, faults:\n%v", services, err)
			}
			for i, want := range c.want {
				path, rest, _ := strings.Cut(want, ":")
				f := faults[i]
				if got := fmt.Sprintf("%d %s", f.Line, f.Message); f.Path != path || !strings.HasPrefix(got, rest) {
					t.Errorf("fault %d is %q, want %q", i, f, want)
				}
			}
		})
	}
}

func TestSettings(t *testing.T) {
	s, err := adapters.ParseSettings([]byte("rescan: 1ms\nfoo: 1\n"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = Kind.New(s.Decode, adapters.Options{})
	if got := fmt.Sprint(err); got != "line 1: path: is missing: a file or a folder\nline 1: rescan: must be at least 1s\nline 2: foo: unknown field; known are path, rescan" {
		t.Errorf("faults:\n%s", got)
	}
}

func FuzzParse(f *testing.F) {
	text, err := os.ReadFile("testdata/full.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"apiVersion":"adapters.isthmus.io/v1alpha1","kind":"ServiceList","services":[{"framework":"spring","interface":"shop","endpoints":[{"address":"::1","port":8080}]}]}`))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		services, err := Parse(b)
		if err != nil {
			if len(adapters.AsFaults(err)) == 0 || services != nil {
				t.Fatalf("services %v, error %v", services, err)
			}
			return
		}
		if err := adapterstest.CheckGroup(model.Group{Source: "x", Services: services}); err != nil {
			t.Error(err)
		}
	})
}

func newContext(t *testing.T) (context.Context, context.CancelFunc) {
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	return ctx, stop
}
