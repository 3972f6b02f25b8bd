package governance

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	extensions "istio.io/api/extensions/v1alpha1"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

var update = flag.Bool("update", false, "write the golden files")

var options = Options{Namespace: "istio-system", URL: "file:///isthmus.wasm", Plugin: plugin.Plugin{Limits: plugin.Limits{MaxFrameBytes: 1 << 20}}}

func lines(problems []model.Problem) []string {
	out := []string{}
	for _, p := range problems {
		out = append(out, fmt.Sprintf("%s %s: %s: %s", p.Severity, p.Place, p.Code, p.Message))
	}
	return out
}

// Each folder of testdata holds in.yaml with rules and want.yaml with what becomes of them. go test -update writes want.yaml.
func TestGolden(t *testing.T) {
	cases, err := filepath.Glob("testdata/*/in.yaml")
	if err != nil || len(cases) < 4 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	for _, in := range cases {
		t.Run(filepath.Base(filepath.Dir(in)), func(t *testing.T) {
			text, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			rules := Rules{}.Update([]File{{Name: "in.yaml", Text: text}})
			c := Compile(rules.Items, Ports{TCP: []uint16{12200, 20880}, HTTP: []uint16{8080}}, options)
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
				checkDecodes(t, entry)
			}
			if err := e.Encode(map[string]any{"problems": lines(slices.Concat(rules.Problems, c.Problems))}); err != nil {
				t.Fatal(err)
			}
			checkGolden(t, filepath.Join(filepath.Dir(in), "want.yaml"), got.Bytes())
		})
	}
}

// checkGolden holds got to a golden file, which go test -update writes.
func checkGolden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// checkDecodes holds what goes out to what the filter takes: it is read with the filter's own decoder.
func checkDecodes(t *testing.T, e *resource.Entry) {
	t.Helper()
	var text []byte
	var err error
	switch b := e.Body.(type) {
	case *extensions.TrafficExtension:
		text, err = b.GetWasm().GetPluginConfig().MarshalJSON()
	case *extensions.WasmPlugin:
		text, err = b.GetPluginConfig().MarshalJSON()
	default:
		t.Fatalf("unexpected %T", b)
	}
	if err != nil {
		t.Fatal(err)
	}
	p, faults := plugin.Decode(text)
	if len(faults) > 0 || p.Generation == "" {
		t.Errorf("the filter refuses %s: %v", text, faults)
	}
}

const (
	good = "apiVersion: governance.isthmus.io/v1alpha1\nkind: ThrottleRule\nmetadata: {name: %s}\nspec: {threshold: %d}\n"
)

func rule(name string, threshold int) string { return fmt.Sprintf(good, name, threshold) }

func names(r Rules) string {
	var out []string
	for _, i := range r.Items {
		s := fmt.Sprintf("%s/%s=%d", i.Namespace, i.Name, *i.Spec.(*ThrottleSpec).Threshold)
		if i.Kept {
			s += "(kept)"
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

// A faulty rule changes nothing but itself, and its last good version stays in force until it is mended or removed.
func TestLastGoodVersionStays(t *testing.T) {
	f := func(name string, docs ...string) File {
		return File{Name: name, Text: []byte(strings.Join(docs, "---\n"))}
	}
	bad := func(name string) string { return strings.Replace(rule(name, 1), "threshold: 1", "threshold: many", 1) }
	var r Rules
	for i, step := range []struct {
		what     string
		files    []File
		want     string
		problems []string
	}{
		{"a bad one that never was good", []File{f("a", bad("x"), rule("y", 1))}, "default/y=1", []string{`a:4: spec.threshold: "many" is not a whole number from 0 to 4294967295; it is not in force`}},
		{"mended", []File{f("a", rule("x", 2), rule("y", 1))}, "default/x=2 default/y=1", nil},
		{"bad again, the other changes", []File{f("a", bad("x"), rule("y", 3))}, "default/x=2(kept) default/y=3", []string{`a:4: spec.threshold: "many" is not a whole number from 0 to 4294967295; the last good version stays in force`}},
		{"still bad", []File{f("a", bad("x"), rule("y", 4))}, "default/x=2(kept) default/y=4", []string{"the last good version stays in force"}},
		{"no YAML any more", []File{f("a", "a: [\n")}, "default/x=2(kept) default/y=4(kept)", []string{"a:", "the 2 rules that it had stay in force"}},
		{"not readable", []File{{Name: "a", Err: errors.New("permission denied")}}, "default/x=2(kept) default/y=4(kept)", []string{"permission denied; the 2 rules that it had stay in force"}},
		{"one without a name: it may be x", []File{f("a", strings.Replace(bad("x"), "name: x", "nam: x", 1), rule("y", 5))}, "default/x=2(kept) default/y=5", []string{"metadata.nam: unknown field", "metadata.name", "spec.threshold"}},
		{"moved to another file", []File{f("a", rule("y", 5)), f("b", rule("x", 6))}, "default/x=6 default/y=5", nil},
		{"twice", []File{f("a", rule("y", 5)), f("b", rule("x", 6), rule("y", 7))}, "default/x=6 default/y=5", []string{"b:6: DuplicateRule ThrottleRule default/y is also in a:1, which holds; this one does not"}},
		{"removed", []File{f("b", rule("x", 6))}, "default/x=6", nil},
		{"all gone", nil, "", nil},
	} {
		r = r.Update(step.files)
		if got := names(r); got != step.want {
			t.Errorf("%d %s: got %q, want %q", i, step.what, got, step.want)
		}
		var said []string
		for _, p := range r.Problems {
			said = append(said, p.Place+": "+map[bool]string{true: p.Code + " "}[p.Code == "DuplicateRule"]+p.Message)
		}
		all := strings.Join(said, "\n")
		for _, want := range step.problems {
			if !strings.Contains(all, want) {
				t.Errorf("%d %s: problems %q lack %q", i, step.what, all, want)
			}
		}
		if len(step.problems) == 0 && len(said) > 0 {
			t.Errorf("%d %s: problems %q", i, step.what, all)
		}
	}
}

// Everything that is wrong with a file is said at once, with line and field.
func TestParseSaysEverything(t *testing.T) {
	_, err := Parse([]byte(`apiVersion: governance.isthmus.io/v1
kind: ThrottleRule
metadata: {name: A_b, namespace: X}
spec:
  target:
    service: {exact: a, prefix: b}
    method: {regex: "x("}
    caller: ""
    application: [a]
    metod: x
  direction: sideways
  mode: block
  interval: 10
  burst: -1
---
apiVersion: governance.isthmus.io/v1alpha1
kind: CarrierPigeonRule
metadata: {name: p}
---
apiVersion: governance.isthmus.io/v1alpha1
kind: ThrottleRule
metadata: {name: nothing}
---
apiVersion: governance.isthmus.io/v1alpha1
kind: ThrottleRule
metadata: {name: odd}
spec: {threshold: 1, interval: 1500us, target: {service: ` + strings.Repeat("s", 600) + `}}
`))
	got := adapters.AsFaults(err).Error()
	for _, want := range []string{
		"line 1: apiVersion: must be governance.isthmus.io/v1alpha1", `line 3: metadata.name: "A_b" is not a name`, `line 3: metadata.namespace: "X"`,
		"line 6: spec.target.service: give one of exact, prefix, regex, in and notIn, not empty", "line 7: spec.target.method.regex: missing )", `line 8: spec.target.caller: is empty; "*" is everything`,
		"line 9: spec.target.application", "line 10: spec.target.metod: unknown field; known are application, caller, group, method, service, version",
		`line 11: spec.direction: must be client, server or both, is "sideways"`, "line 12: spec.mode: must be intercept or observe",
		"line 13: spec.interval:", "line 14: spec.burst:", "spec.threshold: is missing",
		`line 17: kind: unknown kind "CarrierPigeonRule"; known are AccessRule, CircuitBreakerRule, DegradeRule, FaultRule, RouteRule, ThrottleRule`,
		`line 27: spec.interval: must be more than 0, in whole milliseconds, is "1500us"`, "line 27: spec.target.service.exact: longer than 512 bytes",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("missing: %s", want)
		}
	}
	if strings.Count(got, "spec.threshold: is missing") != 2 {
		t.Error("a rule without a spec has no threshold either")
	}
	if t.Failed() {
		t.Logf("got:\n%s", got)
	}
}

// Services that come and go on known ports change nothing; whatever changes what the filter does changes its generation.
func TestStability(t *testing.T) {
	rules := Rules{}.Update([]File{{Name: "a", Text: []byte(rule("x", 1))}})
	one := Compile(rules.Items, Ports{TCP: []uint16{20880}}, options)
	again := Compile(Rules{}.Update([]File{{Name: "elsewhere", Text: []byte("# moved\n" + rule("x", 1))}}).Items, Ports{TCP: []uint16{20880}}, options)
	if !one.Set.Equal(again.Set) || one.Plugin.Generation != again.Plugin.Generation {
		t.Error("the same rules give another extension")
	}
	ports := Compile(rules.Items, Ports{TCP: []uint16{12200, 20880}}, options)
	if one.Set.Equal(ports.Set) || one.Plugin.Generation != ports.Plugin.Generation {
		t.Error("another port must change the extension but not the filter's configuration")
	}
	seen := map[string]string{one.Plugin.Generation: "nothing"}
	more := options
	more.Plugin.Metrics.MaxServices = 7
	for what, g := range map[string]string{
		"a threshold": Compile(Rules{}.Update([]File{{Name: "a", Text: []byte(rule("x", 2))}}).Items, Ports{TCP: []uint16{20880}}, options).Plugin.Generation,
		"a name":      Compile(Rules{}.Update([]File{{Name: "a", Text: []byte(rule("y", 1))}}).Items, Ports{TCP: []uint16{20880}}, options).Plugin.Generation,
		"a default":   Compile(rules.Items, Ports{TCP: []uint16{20880}}, more).Plugin.Generation,
		"no rule":     Compile(nil, Ports{TCP: []uint16{20880}}, options).Plugin.Generation,
	} {
		if other, ok := seen[g]; ok {
			t.Errorf("changing %s and changing %s give generation %s", what, other, g)
		}
		seen[g] = what
	}
}

// Without a port selector the filter would be put everywhere; without a filter rules are not enforced, and that is said.
func TestNoPortsNoFilter(t *testing.T) {
	rules := Rules{}.Update([]File{{Name: "a", Text: []byte(rule("x", 1))}})
	if c := Compile(rules.Items, Ports{}, options); c.Set.Len() != 0 || len(c.Problems) != 0 {
		t.Errorf("no ports: %d resources, %v", c.Set.Len(), c.Problems)
	}
	none := options
	none.URL = ""
	if c := Compile(rules.Items, Ports{TCP: []uint16{20880}}, none); c.Set.Len() != 0 || len(c.Problems) != 1 || c.Problems[0].Code != "NotEnforced" {
		t.Errorf("no filter: %d resources, %v", c.Set.Len(), c.Problems)
	}
	off := strings.Replace(rule("x", 1), "spec: {", "spec: {enabled: false, ", 1)
	if c := Compile(Rules{}.Update([]File{{Name: "a", Text: []byte(off)}}).Items, Ports{TCP: []uint16{20880}}, none); len(c.Problems) != 0 {
		t.Errorf("no filter and no enabled rule: %v", c.Problems)
	}
}

func TestTooManyRules(t *testing.T) {
	var text strings.Builder
	for i := range plugin.MaxRules + 2 {
		text.WriteString(rule(fmt.Sprintf("r%05d", i), 1) + "---\n")
	}
	c := Compile(Rules{}.Update([]File{{Name: "a", Text: []byte(text.String())}}).Items, Ports{TCP: []uint16{20880}}, options)
	if len(c.Plugin.Throttle) != plugin.MaxRules || len(c.Problems) != 1 || c.Problems[0].Code != "TooManyRules" {
		t.Errorf("%d rules, %v", len(c.Plugin.Throttle), c.Problems)
	}
}

// The filter looks for so many attachments and no more: it would refuse the whole configuration. A rule that comes after those asks in vain, others do not.
func TestTooManyKeys(t *testing.T) {
	ask := func(name, key string) string {
		return strings.Replace(rule(name, 1), "spec: {", "spec: {match: [{subject: attachment, key: "+key+", operator: exists}], ", 1) + "---\n"
	}
	var text strings.Builder
	for i := range maxKeys + 2 {
		text.WriteString(ask(fmt.Sprintf("r%03d", i), fmt.Sprint("k", i)))
	}
	text.WriteString(ask("s", "k0") + strings.Replace(rule("t", 1), "spec: {", "spec: {hotValues: {subject: label, key: x}, ", 1) + "---\n" + rule("u", 1))
	c := Compile(Rules{}.Update([]File{{Name: "a", Text: []byte(text.String())}}).Items, Ports{TCP: []uint16{20880}}, options)
	if n := len(c.Plugin.Throttle); n != maxKeys+2 || len(c.Problems) != 3 || c.Problems[0].Code != "TooManyRules" || !strings.Contains(c.Problems[2].Message, "default/t is not in force: the rules before it ask for the 64 attachments and labels") {
		t.Errorf("%d rules, %v", n, lines(c.Problems))
	}
	// The bound is the filter's.
	var p plugin.Plugin
	for i := range maxKeys + 1 {
		p.Access = append(p.Access, plugin.Access{Rule: plugin.Rule{Name: fmt.Sprint(i), Match: []plugin.Condition{{Subject: plugin.SubjectLabel, Key: fmt.Sprint(i), Operator: plugin.OperatorExists}}}, Action: plugin.AccessDeny})
		if faults := p.Validate(); (len(faults) > 0) != (i == maxKeys) {
			t.Errorf("%d keys: %v", i+1, faults)
		}
	}
}

// The filter refuses a configuration that is too long: rules beyond that are left out.
func TestTooManyBytes(t *testing.T) {
	var text strings.Builder
	for i := range 70 {
		fmt.Fprintf(&text, "apiVersion: governance.isthmus.io/v1alpha1\nkind: DegradeRule\nmetadata: {name: r%02d}\nspec: {reply: {json: %q}}\n---\n", i, strings.Repeat("x", 65000))
	}
	c := Compile(Rules{}.Update([]File{{Name: "a", Text: []byte(text.String())}}).Items, Ports{TCP: []uint16{20880}}, options)
	if n := len(c.Plugin.Degrade); n < 40 || n == 70 || len(c.Problems) != 70-n || !strings.Contains(c.Problems[0].Message, "15 MiB") {
		t.Errorf("%d rules, %v", n, lines(c.Problems))
	}
	for entry := range c.Set.All() {
		checkDecodes(t, entry)
	}
}

// What is shown can be read again and is the same rule.
func TestRulesAreShownAsWritten(t *testing.T) {
	text, err := os.ReadFile("testdata/everything/in.yaml")
	if err != nil {
		t.Fatal(err)
	}
	rules, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		spec, err := r.JSON()
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse([]byte(fmt.Sprintf(`{"apiVersion": %q, "kind": %q, "metadata": {"name": %q}, "spec": %s}`, APIVersion, r.Kind, r.Name, spec)))
		if err != nil {
			t.Fatalf("%s: %v", spec, err)
		}
		a, _ := json.Marshal(r.Spec)
		b, _ := json.Marshal(again[0].Spec)
		if !bytes.Equal(a, b) {
			t.Errorf("%s became %s", a, b)
		}
	}
}

// Each kind has a word of the filter's, which is the name of its list.
func TestFilterKinds(t *testing.T) {
	all := reflect.TypeFor[plugin.Plugin]()
	for _, kind := range Kinds() {
		if kind == "RouteRule" {
			continue // Istio's, not the filter's
		}
		if !slices.ContainsFunc(reflect.VisibleFields(all), func(f reflect.StructField) bool {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			return name == FilterKind(kind)
		}) {
			t.Errorf("%s: the filter has no list %q", kind, FilterKind(kind))
		}
	}
}

func FuzzUpdate(f *testing.F) {
	f.Add(rule("x", 1), rule("x", 2)+"---\n"+rule("y", 3))
	f.Add("a: [", "")
	cases, err := filepath.Glob("testdata/kinds/*/in.yaml")
	if err != nil || len(cases) < 7 {
		f.Fatalf("%d cases, %v", len(cases), err)
	}
	for _, in := range cases {
		text, err := os.ReadFile(in)
		if err != nil {
			f.Fatal(err)
		}
		for doc := range strings.SplitSeq(string(text), "---\n") {
			f.Add(doc, rule("x", 1))
		}
	}
	f.Fuzz(func(t *testing.T, first, second string) {
		r := Rules{}.Update([]File{{Name: "a", Text: []byte(first)}}).Update([]File{{Name: "a", Text: []byte(second)}, {Name: "b", Text: []byte(first)}})
		seen := map[ID]bool{}
		for _, i := range r.Items {
			if seen[i.ID] {
				t.Errorf("%s is there twice", i.ID)
			}
			seen[i.ID] = true
		}
		Compile(r.Items, Ports{TCP: []uint16{1}}, options)
		for i := range r.Items {
			Explain(&r.Items[i], r.Items)
		}
	})
}

// Each folder of testdata/kinds holds in.yaml with rules and want.yaml with what each of them is for the filter, and what is wrong with them.
func TestKinds(t *testing.T) {
	cases, err := filepath.Glob("testdata/kinds/*/in.yaml")
	if err != nil || len(cases) < 7 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	for _, in := range cases {
		t.Run(filepath.Base(filepath.Dir(in)), func(t *testing.T) {
			text, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			rules := Rules{}.Update([]File{{Name: "in.yaml", Text: text}})
			c := Compile(rules.Items, Ports{TCP: []uint16{20880}}, Options{URL: "file:///isthmus.wasm"})
			for entry := range c.Set.All() {
				checkDecodes(t, entry)
			}
			c.Plugin.Generation = ""
			config, err := json.Marshal(c.Plugin)
			if err != nil {
				t.Fatal(err)
			}
			var plain any
			if err := json.Unmarshal(config, &plain); err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			e := yaml.NewEncoder(&got)
			e.SetIndent(2)
			if err := e.Encode(map[string]any{"plugin": plain, "problems": lines(slices.Concat(rules.Problems, c.Problems))}); err != nil {
				t.Fatal(err)
			}
			checkGolden(t, filepath.Join(filepath.Dir(in), "want.yaml"), got.Bytes())
		})
	}
}
