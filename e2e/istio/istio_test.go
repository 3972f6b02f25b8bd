// Package istio_test holds mcp-server to a real istiod: what it sends arrives whole and stays, whatever is restarted when.
package istio_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/isthmus-mesh/isthmus/adapters/adapterstest"
	"github.com/isthmus-mesh/isthmus/adapters/zookeeper/zktest"
	"github.com/isthmus-mesh/isthmus/e2e/mesh"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
	"github.com/isthmus-mesh/isthmus/e2e/rig"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
)

func TestMain(m *testing.M) {
	os.Exit(rig.Main(m, append([]peer.Peer{peer.ZooKeeper}, rig.FilterPeers...)...))
}

const within = 90 * time.Second

// bridge is a mesh whose registry is a folder of files.
type bridge struct {
	*mesh.Mesh
	t        *testing.T
	services string // the folder
}

func newBridge(t *testing.T) *bridge {
	t.Helper()
	m := rig.Mesh(t)
	b := &bridge{Mesh: m, t: t, services: filepath.Join(m.Folder(), "services")}
	if err := os.MkdirAll(b.services, 0o755); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bridge) files() mesh.Registry {
	return mesh.Registry{Name: "files", Kind: "file", Settings: map[string]any{"path": b.Host().Exposed(b.services)}}
}

// write puts a file into the registry, or takes it away where text is "".
func (b *bridge) write(name, text string) {
	b.t.Helper()
	path := filepath.Join(b.services, name)
	if text == "" {
		if err := os.Remove(path); err != nil {
			b.t.Fatal(err)
		}
		return
	}
	temp := path + ".new"
	if err := errors.Join(os.WriteFile(temp, []byte(text), 0o644), os.Rename(temp, path)); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bridge) configure(registries ...mesh.Registry) {
	b.t.Helper()
	if err := b.ConfigureServer(mesh.ServerOptions{Registries: registries}); err != nil {
		b.t.Fatal(err)
	}
}

// must fails the test on an error.
func (b *bridge) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// until waits for a condition.
func (b *bridge) until(what string, condition func(ctx context.Context) error) {
	b.t.Helper()
	rig.Until(b.t, within, what, condition)
}

// list is a file with services that have one endpoint each.
func list(interfaces ...string) string {
	var s strings.Builder
	s.WriteString("apiVersion: adapters.isthmus.io/v1alpha1\nkind: ServiceList\nservices:\n")
	for i, name := range interfaces {
		fmt.Fprintf(&s, "- {framework: dubbo, interface: %s, endpoints: [{address: 10.1.0.%d, port: 20880, application: demo}]}\n", name, i+1)
	}
	return s.String()
}

// held is what istiod holds: kind/namespace/name to version.
func (b *bridge) held(ctx context.Context) (map[string]string, error) {
	body, err := b.IstiodDebug(ctx, "/debug/configz")
	if err != nil {
		return nil, err
	}
	var page []struct {
		Kind     string `json:"kind"`
		Metadata struct {
			Name            string `json:"name"`
			Namespace       string `json:"namespace"`
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
	}
	if err := json.Unmarshal(body, &page); err != nil {
		return nil, fmt.Errorf("configz: %w", err)
	}
	out := make(map[string]string, len(page))
	for _, r := range page {
		if r.Kind != "PeerAuthentication" { // the operator's own
			out[r.Kind+"/"+r.Metadata.Namespace+"/"+r.Metadata.Name] = r.Metadata.ResourceVersion
		}
	}
	return out, nil
}

// names returns the names of the held resources of a kind, sorted.
func names(held map[string]string, kind string) []string {
	var out []string
	for id := range held {
		if name, ok := strings.CutPrefix(id, kind+"/"); ok {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func (b *bridge) api(ctx context.Context, path string, into any) error {
	body, err := b.API(ctx, path)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, into)
}

// connected waits until an istiod is connected and has acknowledged everything.
func (b *bridge) connected() api.Istiod {
	b.t.Helper()
	var found api.Istiod
	b.until("istiod to be connected and synced", func(ctx context.Context) error {
		var l api.IstiodList
		if err := b.api(ctx, "/api/v1/istiods", &l); err != nil {
			return err
		}
		if len(l.Items) != 1 {
			return fmt.Errorf("%d are connected", len(l.Items))
		}
		for _, x := range l.Items[0].Types {
			if !x.Synced {
				return fmt.Errorf("%s is not synced", x.Type)
			}
		}
		found = l.Items[0]
		return nil
	})
	return found
}

// TestEverythingArrives sends istiod all that the translation's golden files hold, odd names, long names, shared ports and all. istiod
// drops what it does not like with no more than a line in its log, so what it holds is compared with what was sent.
func TestEverythingArrives(t *testing.T) {
	b := newBridge(t)
	root, err := peer.Root()
	b.must(err)
	cases, err := filepath.Glob(filepath.Join(root, "mcp-server", "translate", "testdata", "*", "in.yaml"))
	b.must(err)
	if len(cases) < 10 {
		t.Fatalf("only %d golden files: the test looks at the wrong place", len(cases))
	}
	for _, file := range cases {
		text, err := os.ReadFile(file)
		b.must(err)
		b.write(filepath.Base(filepath.Dir(file))+".yaml", string(text))
	}
	b.configure(b.files())
	b.must(b.StartServer(t.Context()))
	b.must(b.StartIstiod(t.Context()))
	sent := b.connected()
	held, err := b.held(t.Context())
	b.must(err)
	for _, x := range sent.Types {
		kind := x.Type[strings.LastIndexByte(x.Type, '/')+1:]
		if got := len(names(held, kind)); got != x.Resources && kind != "WasmPlugin" && kind != "PeerAuthentication" {
			t.Errorf("of %d %s istiod holds %d: %q", x.Resources, kind, got, names(held, kind))
		}
	}
	if n := len(names(held, "ServiceEntry")); n < 20 {
		t.Errorf("only %d ServiceEntries", n)
	}
	if n := len(names(held, "TrafficExtension")); n != 2 {
		t.Errorf("%d TrafficExtensions, want that of the network filter and that of the HTTP filter", n)
	}
	var services api.ServiceList
	b.must(b.api(t.Context(), "/api/v1/services?limit=1000", &services))
	registry, err := b.IstiodDebug(t.Context(), "/debug/registryz")
	b.must(err)
	var known []struct {
		Hostname string `json:"hostname"`
	}
	b.must(json.Unmarshal(registry, &known))
	hosts := map[string]bool{}
	for _, k := range known {
		hosts[k.Hostname] = true
	}
	checked := 0
	for _, s := range services.Items {
		for _, h := range s.Hosts {
			checked++
			if !hosts[h.Host] {
				t.Errorf("%s: istiod has no service %s", s.ID, h.Host)
			}
		}
	}
	if checked < 20 {
		t.Errorf("only %d hosts were compared", checked)
	}
	log, err := os.ReadFile(b.Istiod.Log())
	b.must(err)
	for line := range strings.Lines(string(log)) {
		if strings.Contains(strings.ToLower(line), "invalid") || strings.Contains(line, "failed validation") {
			t.Errorf("istiod complains: %s", line)
		}
	}
}

// TestChange: a change arrives whole; what is gone is gone, what is not is not touched; the last service's end is an end.
func TestChange(t *testing.T) {
	b := newBridge(t)
	b.write("a.yaml", list("demo.A", "demo.B"))
	b.write("b.yaml", list("demo.C"))
	b.configure(b.files())
	b.must(b.StartServer(t.Context()))
	b.must(b.StartIstiod(t.Context()))
	entries := func(want ...string) map[string]string {
		t.Helper()
		var held map[string]string
		b.until("istiod's ServiceEntries", func(ctx context.Context) (err error) {
			if held, err = b.held(ctx); err != nil {
				return err
			}
			var got []string
			for _, n := range names(held, "ServiceEntry") {
				if !strings.Contains(n, "/port-") { // what SDK-addressed traffic goes through
					got = append(got, strings.TrimSuffix(strings.TrimPrefix(n, mesh.Namespace+"/"), ".dubbo"))
				}
			}
			if !slices.Equal(got, want) {
				return fmt.Errorf("they are %q, not %q", got, want)
			}
			return nil
		})
		return held
	}
	before := entries("demo.a", "demo.b", "demo.c")
	b.write("a.yaml", list("demo.A"))
	after := entries("demo.a", "demo.c")
	for id, version := range before {
		if strings.Contains(id, "demo.a.") || strings.Contains(id, "demo.c.") {
			if after[id] != version {
				t.Errorf("%s had version %s and has %s, although nothing of it changed", id, version, after[id])
			}
		}
	}
	b.write("c.yaml", list("demo.D"))
	entries("demo.a", "demo.c", "demo.d")
	b.write("a.yaml", "")
	b.write("b.yaml", "")
	entries("demo.d")
	b.write("c.yaml", "")
	held := entries()
	if left := names(held, "ServiceEntry"); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
}

// TestRestart: whichever of the two is restarted, istiod ends with the same resources in the same versions.
func TestRestart(t *testing.T) {
	b := newBridge(t)
	b.write("a.yaml", list("demo.A", "demo.B"))
	b.configure(b.files())
	b.must(b.StartServer(t.Context()))
	b.must(b.StartIstiod(t.Context()))
	b.connected()
	before, err := b.held(t.Context())
	b.must(err)
	if len(before) < 4 {
		t.Fatalf("istiod holds only %v", before)
	}
	same := func(when string) {
		t.Helper()
		b.connected()
		after, err := b.held(t.Context())
		b.must(err)
		if !maps.Equal(before, after) {
			t.Errorf("%s: istiod held %v and holds %v", when, before, after)
		}
	}
	b.must(b.Server.Stop(t.Context()))
	held, err := b.held(t.Context())
	b.must(err)
	if !maps.Equal(before, held) {
		t.Errorf("without mcp-server: istiod held %v and holds %v", before, held)
	}
	b.must(b.StartServer(t.Context()))
	same("mcp-server was restarted")
	b.must(b.Istiod.Stop(t.Context()))
	b.must(b.StartIstiod(t.Context()))
	same("istiod was restarted")
}

// TestIncomplete: while a registry has not been heard yet, istiod is told nothing at all, since it would take what is missing for
// deleted. It waits, and goes on once everything is known.
func TestIncomplete(t *testing.T) {
	b := newBridge(t)
	b.write("a.yaml", list("demo.A"))
	silent, err := b.Machine("silent")
	b.must(err)
	b.configure(b.files(), mesh.Registry{Name: "zk", Kind: "zookeeper", Settings: map[string]any{"servers": []string{silent.Address().String()}}})
	b.must(b.LaunchServer())
	b.until("mcp-server to live", func(ctx context.Context) error { _, err := b.API(ctx, "/healthz"); return err })
	if _, err := b.API(t.Context(), "/readyz"); err == nil || !strings.Contains(err.Error(), "zk") {
		t.Errorf("/readyz: %v; want an error that names the registry", err)
	}
	b.must(b.LaunchIstiod())
	b.until("istiod to ask", func(ctx context.Context) error {
		var l api.IstiodList
		if err := b.api(ctx, "/api/v1/istiods", &l); err != nil {
			return err
		}
		if len(l.Items) != 1 || len(l.Items[0].Types) < 15 {
			return fmt.Errorf("it says %+v", l)
		}
		return nil
	})
	if held, err := b.held(t.Context()); err == nil && len(held) > 0 {
		t.Errorf("istiod was told %v", held)
	}
	if _, err := b.IstiodDebug(t.Context(), "/ready"); err == nil {
		t.Error("istiod is ready although it was told nothing")
	}
	b.configure(b.files()) // the operator gives up on that registry
	b.must(b.ServerReady(t.Context()))
	b.must(b.IstiodReady(t.Context()))
	b.connected()
	held, err := b.held(t.Context())
	b.must(err)
	if got := names(held, "ServiceEntry"); !slices.Contains(got, mesh.Namespace+"/demo.a.dubbo") {
		t.Errorf("istiod holds the ServiceEntries %q", got)
	}
}

// TestLatency measures how long a change in a registry takes to become an endpoint in istiod. It holds the time to nothing but
// the test's patience, and prints it.
func TestLatency(t *testing.T) {
	b := newBridge(t)
	b.must(b.StartZooKeeper(t.Context()))
	b.configure(mesh.Registry{Name: "zk", Kind: "zookeeper", Settings: map[string]any{"servers": []string{mesh.ZooKeeperAddress()}}})
	b.must(b.StartServer(t.Context()))
	b.must(b.StartIstiod(t.Context()))
	x, err := b.Machine(mesh.ZooKeeperMachine)
	b.must(err)
	c, events, err := zk.Connect([]string{fmt.Sprintf("%s:%d", x.Address(), mesh.ZooKeeperPort)}, 10*time.Second, zk.WithLogInfo(false))
	b.must(err)
	defer func() {
		c.Close()
		for range events {
		}
	}()
	first := adapterstest.P("demo.Greet", 1)
	path := zktest.ProviderPath("dubbo", first)
	for i := 1; i <= len(path); i++ {
		if i == len(path) || path[i] == '/' {
			if _, err := c.Create(path[:i], nil, 0, zk.WorldACL(zk.PermAll)); err != nil && !errors.Is(err, zk.ErrNodeExists) {
				t.Fatal(err)
			}
		}
	}
	const host = "demo.greet.v1-0-0.dubbo.isthmus"
	has := func(address string, want bool) func(ctx context.Context) error {
		return func(ctx context.Context) error {
			have, err := b.IstiodEndpoints(ctx, host)
			if err == nil && slices.Contains(have, address) != want {
				err = fmt.Errorf("it has %v", have)
			}
			return err
		}
	}
	b.until("the first endpoint", has(fmt.Sprintf("%s:%d", first.Address, first.Port), true))
	measure := map[string][]time.Duration{}
	for i := 2; i < 12; i++ {
		p := adapterstest.P("demo.Greet", i)
		address := fmt.Sprintf("%s:%d", p.Address, p.Port)
		begin := time.Now()
		if _, err := c.Create(zktest.ProviderPath("dubbo", p), nil, 0, zk.WorldACL(zk.PermAll)); err != nil {
			t.Fatal(err)
		}
		b.until("the endpoint", has(address, true))
		measure["added"] = append(measure["added"], time.Since(begin))
		begin = time.Now()
		b.must(c.Delete(zktest.ProviderPath("dubbo", p), -1))
		b.until("its end", has(address, false))
		measure["removed"] = append(measure["removed"], time.Since(begin))
	}
	for what, all := range measure {
		slices.Sort(all)
		t.Logf("an endpoint %s in ZooKeeper is %s in istiod after %s (median of %d; longest %s)", what, what, all[len(all)/2].Round(time.Millisecond), len(all), all[len(all)-1].Round(time.Millisecond))
	}
	metrics, err := b.API(t.Context(), "/metrics")
	b.must(err)
	for line := range strings.Lines(string(metrics)) {
		if strings.HasPrefix(line, "isthmus_pipeline_snapshot_to_apply_duration_seconds_") || strings.HasPrefix(line, "isthmus_mcp_push_duration_seconds_") {
			if !strings.Contains(line, "_bucket") {
				t.Logf("of it ours: %s", strings.TrimSpace(line))
			}
		}
	}
}
