package cli

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/builtin"
	"github.com/isthmus-mesh/isthmus/adapters/zookeeper/zktest"
)

const rule = `apiVersion: governance.isthmus.io/v1alpha1
kind: ThrottleRule
metadata: {name: hello}
spec: {target: {service: demo.HelloService}, threshold: 5}
`

const options = `apiVersion: isthmus.io/v1alpha1
kind: MCPServer
spec:
  mesh: {namespace: shop, hostSuffix: legacy.example}
  filter: {url: "file:///opt/isthmus.wasm"}
`

// TestTranslate holds translate to printing what app.Render makes of the files, in each form. What a ServiceEntry looks like is for the
// tests of package translate.
func TestTranslate(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "rule.yaml"), rule)
	write(t, filepath.Join(dir, "isthmus.yaml"), options)
	entry := regexp.MustCompile(`(?m)^ServiceEntry +shop +demo\.hello-service\.v1-0\.sofa$`)
	r := invoke(t, "", "translate", "-f", filepath.Join(dir, "isthmus.yaml"), "testdata/services.yaml", "-o", "table")
	if r.code != ExitOK || r.err != "" || !strings.HasPrefix(r.out, "KIND ") || !entry.MatchString(r.out) {
		t.Errorf("table: got %+v", r)
	}
	rows := strings.Count(r.out, "\n") - 1

	type object struct {
		APIVersion string         `json:"apiVersion"`
		Kind       string         `json:"kind"`
		Metadata   map[string]any `json:"metadata"`
		Spec       map[string]any `json:"spec"`
	}
	check := func(form string, objects []object, rule bool) {
		t.Helper()
		found, ruled := false, false
		for _, o := range objects {
			if o.APIVersion == "" || o.Kind == "" || o.Metadata["name"] == nil || o.Spec == nil {
				t.Errorf("%s: %+v is no resource", form, o)
			}
			if o.Kind == "ServiceEntry" && o.Metadata["name"] == "demo.hello-service.v1-0.sofa" {
				found = reflect.DeepEqual(o.Spec["hosts"], []any{"demo.hello-service.v1-0.sofa.legacy.example"})
			}
			b, err := json.Marshal(o)
			ruled = ruled || strings.Contains(string(b), "default/hello") && err == nil
		}
		if len(objects) != rows || !found || ruled != rule {
			t.Errorf("%s: %d resources, want %d; the service is there: %t; the rule is there: %t, want %t", form, len(objects), rows, found, ruled, rule)
		}
	}
	r = invoke(t, "", "translate", filepath.Join(dir, "isthmus.yaml"), "testdata/services.yaml", filepath.Join(dir, "rule.yaml"), "-o", "json")
	var list struct {
		APIVersion string   `json:"apiVersion"`
		Kind       string   `json:"kind"`
		Items      []object `json:"items"`
	}
	if err := json.Unmarshal([]byte(r.out), &list); err != nil || r.code != ExitOK || list.APIVersion != "v1" || list.Kind != "List" {
		t.Errorf("JSON: got %+v %v", r, err)
	}
	check("JSON", list.Items, true)
	r = invoke(t, "", "translate", "-f", filepath.Join(dir, "isthmus.yaml"), "-f", "testdata/services.yaml")
	var objects []object
	for document := range strings.SplitSeq(r.out, "\n---\n") {
		var o object
		if err := yaml.Unmarshal([]byte(document), &o); err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
	}
	check("YAML", objects, false)
	if r := invoke(t, "", "translate", "-f", filepath.Join(dir, "isthmus.yaml"), "-o", "table"); r.code != ExitOK || r.out != "no resources\n" {
		t.Errorf("nothing: got %+v", r)
	}
	t.Run("standard input", func(t *testing.T) {
		text, err := os.ReadFile("testdata/services.yaml")
		if err != nil {
			t.Fatal(err)
		}
		if r := invoke(t, string(text), "translate", "-f", "-"); r.code != ExitOK || !strings.Contains(r.out, "isthmus.io/interface: demo.HelloService") {
			t.Errorf("got %+v", r)
		}
		if r := invoke(t, options, "translate", "-f", "-", "testdata/services.yaml"); r.code != ExitOK || !strings.Contains(r.out, "namespace: shop") {
			t.Errorf("got %+v", r)
		}
	})
	t.Run("nothing is left behind", func(t *testing.T) {
		t.Setenv("TMPDIR", t.TempDir())
		invoke(t, "", "translate", "-f", "testdata/services.yaml")
		invoke(t, "", "translate", "-f", "testdata/none.yaml")
		if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
			t.Errorf("%v %v", left, err)
		}
	})
}

// TestTranslateRegistries holds translate to doing with a configuration what mcp-server does at its start.
func TestTranslateRegistries(t *testing.T) {
	zk := zktest.Start(t)
	provider(zk, "demo.GreetService", "192.0.2.10:20880", "application=greet&version=1.0.0")
	dir := t.TempDir()
	config := filepath.Join(dir, "isthmus.yaml")
	entry := "name: zk\nkind: zookeeper\nsettings: {servers: ['" + zk.Address() + "'], layouts: [dubbo]}\n"
	write(t, config, "apiVersion: isthmus.io/v1alpha1\nkind: MCPServer\nspec:\n  state: {dir: state}\n  rules: {path: rules}\n  filter: {url: 'file:///opt/isthmus.wasm'}\n  registries:\n    - "+strings.ReplaceAll(strings.TrimSpace(entry), "\n", "\n      ")+"\n")
	if err := os.Mkdir(filepath.Join(dir, "rules"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "rules", "hello.yaml"), rule)

	live := invoke(t, "", "translate", "-f", config)
	if live.code != ExitOK || live.err != "" || !strings.Contains(live.out, "address: 192.0.2.10") || !strings.Contains(live.out, "name: default/hello") {
		t.Fatalf("heard: got %+v", live)
	}

	zk.Refuse(true)
	if r := invoke(t, "", "translate", "-f", config, "--timeout", "200ms"); r.code != ExitUnreachable || r.out != "" || !strings.Contains(r.err, "not heard within 200ms: zk (") {
		t.Errorf("away, nothing saved: got %+v", r)
	}

	zk.Refuse(false)
	saved := save(t, filepath.Join(dir, "state"), entry)
	zk.Refuse(true)
	r := invoke(t, "", "translate", "-f", config, "--timeout", "200ms")
	if r.code != ExitOK || r.out != live.out || !strings.HasPrefix(r.err, "isthmusctl: registry zk cannot be heard (") || !strings.Contains(r.err, "; its word of 20") {
		t.Errorf("away, something saved: got %+v; want\n%s", r, live.out)
	}

	// The saved word by itself, with no other configuration and nothing to wait for.
	began := time.Now()
	r = invoke(t, "", "translate", "-f", saved)
	if r.code != ExitOK || r.err != "" || !strings.Contains(r.out, "address: 192.0.2.10") || !strings.Contains(r.out, "isthmus.io/registries: zk") || time.Since(began) > 5*time.Second {
		t.Errorf("the saved word: got %+v", r)
	}
	text, err := os.ReadFile(saved)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other.jsonl") // of a kind that this program does not know; its sum is of other bytes
	write(t, other, strings.Replace(string(text), `"kind":"zookeeper"`, `"kind":"etcd"`, 1))
	if r := invoke(t, "", "translate", "-f", other); r.code != ExitBad || r.out != "" || !strings.Contains(r.err, "the saved word of zk: the saved state cannot be used") {
		t.Errorf("a damaged one: got %+v", r)
	}
	if r := invoke(t, "", "translate", "-f", saved, "-f", saved); r.code != ExitBad || !strings.Contains(r.err, "or there twice") {
		t.Errorf("twice: got %+v", r)
	}
	if after, err := os.ReadFile(saved); err != nil || string(after) != string(text) {
		t.Errorf("the saved word is not as it was: %v", err)
	}
}

// save has a Manager save the word of a registry, and returns its file.
func save(t *testing.T, dir, entry string) string {
	t.Helper()
	settings, err := adapters.ParseSettings([]byte(entry))
	if err != nil {
		t.Fatal(err)
	}
	var r adapters.Registry
	if err := settings.Decode(&r); err != nil {
		t.Fatal(err)
	}
	m := adapters.NewManager(adapters.ManagerOptions{Kinds: builtin.Kinds, StateDir: dir})
	if err := m.Set(t.Context(), []adapters.Registry{r}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	for s := range m.Subscribe(ctx) {
		if s.Complete {
			stop() // saves what is not saved yet
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, stateFile(r.Name))
}

func TestTranslateFaults(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		name = filepath.Join(dir, name)
		write(t, name, text)
		return name
	}
	good := file("good.yaml", options)
	duplicate, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "ConfigMap"})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		code int
		err  string
	}{
		"no file":            {nil, ExitUsage, "name a file with -f"},
		"missing":            {[]string{"-f", filepath.Join(dir, "none")}, ExitUsage, "no such file"},
		"empty":              {[]string{"-f", file("empty.yaml", "")}, ExitBad, "the file is empty"},
		"not YAML":           {[]string{"-f", file("broken.yaml", "a: [\n")}, ExitBad, "broken.yaml:"},
		"no mapping":         {[]string{"-f", file("text.yaml", "just text\n")}, ExitBad, "text.yaml:1: must be a mapping with apiVersion and kind"},
		"another kind":       {[]string{"-f", file("other.json", string(duplicate))}, ExitBad, `kind "ConfigMap" is none of ServiceList, MCPServer, AccessRule`},
		"two configurations": {[]string{"-f", good, "-f", good}, ExitUsage, "there is a configuration already"},
		"faulty services":    {[]string{"-f", file("services.yaml", "apiVersion: adapters.isthmus.io/v1alpha1\nkind: ServiceList\nservices:\n  - {framework: corba, interface: a.B}\n")}, ExitBad, "services.yaml:4: services[0].framework: must be dubbo"},
		"faulty rule":        {[]string{"-f", file("rule.yaml", strings.Replace(rule, "threshold: 5", "threshold: -5", 1))}, ExitBad, "rule.yaml:4: spec.threshold"},
		"faulty options":     {[]string{"-f", file("options.yaml", strings.Replace(options, "mesh", "mess", 1))}, ExitBad, "options.yaml:4: spec.mess"},
		"time":               {[]string{"-f", good, "--timeout", "-1s"}, ExitUsage, "--timeout must be more than 0"},
	} {
		t.Run(name, func(t *testing.T) {
			r := invoke(t, "", append([]string{"translate"}, c.args...)...)
			if r.code != c.code || r.out != "" || !strings.Contains(r.err, c.err) || !strings.HasPrefix(r.err, "isthmusctl: ") {
				t.Errorf("got %+v; want %d and %q", r, c.code, c.err)
			}
		})
	}
	t.Run("problems", func(t *testing.T) {
		odd := file("odd.yaml", "apiVersion: adapters.isthmus.io/v1alpha1\nkind: ServiceList\nservices:\n  - framework: dubbo\n    interface: demo.Odd\n    endpoints:\n      - {address: 192.0.2.1, port: 1, protocol: corba}\n")
		r := invoke(t, "", "translate", "-f", odd)
		if r.code != ExitOK || !strings.Contains(r.err, "demo.Odd") || !strings.Contains(r.err, "corba") {
			t.Errorf("got %+v", r)
		}
	})
}
