package governance

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/isthmus-mesh/isthmus/adapters/model"
)

// routed are the services that the golden routes are for.
func routed() []Routed {
	labels := func(version, zone string) map[string]string {
		return map[string]string{"app": "greet-provider", "version": version, "zone": zone}
	}
	key := func(framework, name string) model.Key { return model.Key{Framework: framework, Interface: name} }
	return []Routed{
		{Key: model.Key{Framework: "dubbo", Interface: "demo.Greet", Version: "1.0.0"}, Protocol: model.ProtocolDubbo, Host: "demo.greet.v1-0-0.dubbo.isthmus", Name: "demo.greet.v1-0-0.dubbo",
			Lifted: true, Endpoints: []map[string]string{labels("v1", "east"), labels("v2", "east"), labels("v2", "west")}},
		{Key: model.Key{Framework: "dubbo", Interface: "demo.Greet", Version: "2.0.0"}, Protocol: model.ProtocolDubbo, Host: "demo.greet.v2-0-0.dubbo.isthmus", Name: "demo.greet.v2-0-0.dubbo", Lifted: true,
			Endpoints: []map[string]string{{"app": "other"}}},
		{Key: key("sofa", "demo.Order"), Protocol: model.ProtocolBolt, Host: "demo.order.sofa.isthmus", Name: "demo.order.sofa", Lifted: true, Endpoints: []map[string]string{labels("v1", "east")}},
		{Key: key("dubbo", "demo.Plain"), Protocol: model.ProtocolDubbo, Host: "demo.plain.dubbo.isthmus", Name: "demo.plain.dubbo"},
		{Key: key("dubbo", "demo.Triple"), Protocol: model.ProtocolTriple, Host: "demo.triple.p-tri.dubbo.isthmus", Name: "demo.triple.p-tri.dubbo", HTTP: true, Endpoints: []map[string]string{labels("v1", "east")},
			Port: 50051, Dialled: []string{"10.0.0.10", "10.0.0.9"}},
		{Key: model.Key{Framework: "dubbo", Interface: "demo.Triple", Version: "1.0.0", Group: "g1"}, Protocol: model.ProtocolTriple, Host: "demo.triple.v1-0-0.g-g1.p-tri.dubbo.isthmus", Name: "demo.triple.v1-0-0.g-g1.p-tri.dubbo",
			HTTP: true, Endpoints: []map[string]string{labels("v1", "east"), labels("v1", "east")}, Port: 50051, Dialled: []string{"10.0.0.9"}, Elsewhere: 1},
		{Key: key("spring", "shop"), Protocol: model.ProtocolHTTP, Host: "shop.spring.isthmus", Name: "shop.spring", HTTP: true, Endpoints: []map[string]string{labels("v1", "east")},
			Port: 8080, Dialled: []string{"10.0.0.1", "shop-2.example.org"}},
		{Key: key("spring", "till"), Protocol: model.ProtocolHTTP, Host: "till.spring.isthmus", Name: "till.spring", HTTP: true, Endpoints: []map[string]string{labels("v1", "east")},
			Port: 8081, Dialled: []string{"10.0.0.1", "10.0.0.2"}},
		{Key: key("spring", "counter"), Protocol: model.ProtocolHTTP, Host: "counter.spring.isthmus", Name: "counter.spring", HTTP: true, Endpoints: []map[string]string{labels("v1", "east")},
			Port: 8081, Dialled: []string{"10.0.0.2"}},
	}
}

// Each folder of testdata/route holds in.yaml with rules and want.yaml with what becomes of them for the services above. go test
// -update writes want.yaml.
func TestRoutes(t *testing.T) {
	cases, err := filepath.Glob("testdata/route/*/in.yaml")
	if err != nil || len(cases) < 10 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	for _, in := range cases {
		t.Run(filepath.Base(filepath.Dir(in)), func(t *testing.T) {
			text, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			rules := Rules{}.Update([]File{{Name: "in.yaml", Text: text}})
			c := CompileRoutes(rules.Items, routed(), RouteOptions{Namespace: "vm", Suffix: "isthmus", Attachments: []string{"tenant", "user id"}})
			var got bytes.Buffer
			e := yaml.NewEncoder(&got)
			e.SetIndent(2)
			for entry := range c.Set.All() {
				o, err := entry.Object()
				if err != nil {
					t.Fatal(err)
				}
				if err := e.Encode(o); err != nil {
					t.Fatal(err)
				}
			}
			subsets := map[string][]string{}
			for host, list := range c.Subsets {
				for _, s := range list {
					subsets[host] = append(subsets[host], fmt.Sprintf("%s %v orAll=%v", s.Name, s.Labels, s.OrAll))
				}
			}
			if err := e.Encode(map[string]any{"subsets": subsets, "problems": lines(slices.Concat(rules.Problems, c.Problems))}); err != nil {
				t.Fatal(err)
			}
			checkGolden(t, filepath.Join(filepath.Dir(in), "want.yaml"), got.Bytes())
			// What people see of a rule is what they wrote.
			for i := range rules.Items {
				r := &rules.Items[i]
				text, err := r.JSON()
				if err != nil {
					t.Fatal(err)
				}
				doc := fmt.Sprintf(`{"apiVersion": %q, "kind": %q, "metadata": {"name": %q, "namespace": %q}, "spec": %s}`, APIVersion, r.Kind, r.Name, r.Namespace, text)
				again, err := Parse([]byte(doc))
				if err != nil || len(again) != 1 {
					t.Fatalf("%s: %v", doc, err)
				}
				second, err := again[0].JSON()
				if err != nil || !bytes.Equal(text, second) {
					t.Errorf("%s is read and written as %s, %v", text, second, err)
				}
			}
		})
	}
}

// Different groups have different names, each a DNS label, as Istio wants it.
func TestSubsetNames(t *testing.T) {
	seen := map[string]string{}
	for _, labels := range []map[string]string{
		{"version": "v1"}, {"version": "v1-or-all"}, {"version-v1": ""}, {"version": ""}, {"version": "V1"}, {"a": "b-c"}, {"a-b": "c"}, {"a": "b", "c": "d"}, {"a": "b-c-d"},
		{"example.org/a": "b"}, {"version": strings.Repeat("v", 63)}, {"version": strings.Repeat("v", 60)}, {"zone": "east"}, {"group": strings.Repeat("0", 16)},
	} {
		for _, orAll := range []bool{false, true} {
			name := SubsetName(labels, orAll)
			if !validName(name, 63, false) {
				t.Errorf("%v: %q is no DNS label", labels, name)
			}
			what := fmt.Sprint(labels, orAll)
			if other, ok := seen[name]; ok {
				t.Errorf("%s and %s are both %q", what, other, name)
			}
			seen[name] = what
		}
	}
}
