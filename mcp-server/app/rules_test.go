package app

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/client"
)

func limit(name string, threshold int) string {
	return fmt.Sprintf("apiVersion: governance.isthmus.io/v1alpha1\nkind: ThrottleRule\nmetadata: {name: %s}\nspec: {threshold: %d}\n", name, threshold)
}

// What is written over the API is in the files, in force and enforced where an Envoy says so.
func TestRulesAreWritten(t *testing.T) {
	dir := t.TempDir()
	var runs atomic.Value
	runs.Store("")
	envoy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "isthmus_filter_config_info{rpc_filter_generation=%q} 1\n", runs.Load())
	}))
	defer envoy.Close()
	write(t, filepath.Join(dir, "isthmus.yaml"), strings.ReplaceAll(configuration, "DIR", dir)+"  telemetry: {interval: 100ms, targets: [{name: one, url: \""+envoy.URL+"/stats/prometheus\"}]}\n")
	write(t, filepath.Join(dir, "services.yaml"), fmt.Sprintf(services, "Greet"))
	write(t, filepath.Join(dir, "rules", "mine.yaml"), "# by hand\n"+limit("a", 1)+"---\n"+limit("b", 2)+"# end\n")
	p := start(t, dir)
	ctx := t.Context()
	id := func(name string) client.RuleID {
		return client.RuleID{Kind: "ThrottleRule", Namespace: "default", Name: name}
	}
	p.until("the first rules", func() bool { r, err := p.client.Rule(ctx, id("a")); return err == nil && r.Revision != "" })

	a, err := p.client.Rule(ctx, id("a"))
	if err != nil {
		t.Fatal(err)
	}
	if a, err = p.client.PutRule(ctx, id("a"), []byte(limit("a", 9)), a.Revision); err != nil || string(a.Spec) != `{"threshold":9}` {
		t.Fatalf("%+v %v", a, err)
	}
	if got := read(t, dir, "rules/mine.yaml"); got != limit("a", 9)+"---\n"+limit("b", 2)+"# end\n" {
		t.Errorf("the file is now %q", got)
	}
	c, err := p.client.PutRule(ctx, id("c"), []byte("# mine\n"+limit("c", 3)), client.NoRevision)
	if err != nil || !strings.HasSuffix(c.Place, "throttlerule-default-c.yaml:2") {
		t.Fatalf("%+v %v", c, err)
	}
	if got := read(t, dir, "rules/throttlerule-default-c.yaml"); got != "# mine\n"+limit("c", 3) {
		t.Errorf("the file is %q", got)
	}

	// Enforced is what a sidecar says that it runs.
	state := func() api.Effective {
		r, err := p.client.Rule(ctx, id("c"))
		if err != nil {
			t.Fatal(err)
		}
		return r.Effective
	}
	generation := func() string {
		v, err := p.client.Version(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return v.Generation
	}
	runs.Store("other")
	p.until("a sidecar that is behind", func() bool { e := state(); return e.State == api.EffectivePending && e.Of == 1 })
	runs.Store(generation())
	p.until("a sidecar that enforces it", func() bool { return state().State == api.EffectiveEnforced })
	// Another rule's change leads to another generation, and changes nothing for this one.
	since := state().Since
	if err := p.client.DeleteRule(ctx, id("b"), client.AnyRevision); err != nil {
		t.Fatal(err)
	}
	if e := state(); e.State != api.EffectiveEnforced || !e.Since.Equal(since) || runs.Load() == generation() {
		t.Errorf("after another rule is gone: %+v, since %v", e, since)
	}
	if got := read(t, dir, "rules/mine.yaml"); got != limit("a", 9) {
		t.Errorf("the file is now %q", got)
	}
	if err := p.client.DeleteRule(ctx, id("c"), c.Revision); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "rules/throttlerule-default-c.yaml")); !os.IsNotExist(err) {
		t.Errorf("the file of the last rule is still there: %v", err)
	}

	// A file that cannot be read is nobody's to overwrite, and a faulty rule can be mended.
	p.write("rules/mine.yaml", "a: [\n")
	p.until("the file to be bad", func() bool { return p.problem("UnreadableRules") })
	if _, err := p.client.PutRule(ctx, id("a"), []byte(limit("a", 5)), client.AnyRevision); err == nil || !strings.Contains(err.Error(), "mend it by hand") {
		t.Errorf("a file that cannot be read: %v", err)
	}
	p.write("rules/mine.yaml", strings.Replace(limit("a", 1), "threshold", "treshold", 1))
	p.until("the rule to be bad", func() bool { return p.problem("InvalidRule") })
	if r, err := p.client.PutRule(ctx, id("a"), []byte(limit("a", 5)), a.Revision); err != nil || r.Kept || string(r.Spec) != `{"threshold":5}` {
		t.Errorf("mend: %+v %v", r, err)
	}
	if p.problem("InvalidRule") {
		t.Error("the problem is still there")
	}
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestNotWritable(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "isthmus.yaml"), strings.Replace(strings.ReplaceAll(configuration, "DIR", dir), "  rules: {path: rules}\n", "", 1))
	write(t, filepath.Join(dir, "services.yaml"), fmt.Sprintf(services, "Greet"))
	p := start(t, dir)
	id := client.RuleID{Kind: "ThrottleRule", Namespace: "default", Name: "a"}
	if _, err := p.client.PutRule(t.Context(), id, []byte(limit("a", 5)), client.AnyRevision); err == nil || !strings.Contains(err.Error(), "spec.rules.path says no folder") {
		t.Errorf("got %v", err)
	}
}

func TestLoopback(t *testing.T) {
	for address, want := range map[string]bool{"127.0.0.1:1": true, "127.9.9.9:1": true, "[::1]:1": true, "localhost:1": true, "0.0.0.0:1": false, ":1": false, "10.0.0.1:1": false, "example.org:1": false, "x": false} {
		if got := loopback(address); got != want {
			t.Errorf("%s: got %v", address, got)
		}
	}
}
