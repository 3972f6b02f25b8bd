package filtertest_test

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// TestReadme holds README.md to the program: its examples are good configurations, the first one of every field, and it names every metric and
// label, and no other.
func TestReadme(t *testing.T) {
	data, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	_, example, ok := strings.Cut(text, "```json\n")
	if !ok {
		t.Fatal("no example")
	}
	example, _, _ = strings.Cut(example, "```")
	examples := strings.Split(text, "```json\n")[1:]
	for _, e := range examples {
		e, _, _ = strings.Cut(e, "```")
		if _, faults := config.Decode([]byte(e)); faults != nil {
			t.Error(faults)
		}
	}
	if len(examples) < 2 {
		t.Errorf("%d examples", len(examples))
	}
	var fields func(typ reflect.Type)
	fields = func(typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Slice, reflect.Pointer:
			fields(typ.Elem())
		case reflect.Struct:
			for i := range typ.NumField() {
				name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
				if !typ.Field(i).Anonymous && !strings.Contains(example, `"`+name+`"`) {
					t.Errorf("the example lacks %s", name)
				}
				fields(typ.Field(i).Type)
			}
		}
	}
	fields(reflect.TypeFor[config.Plugin]())
	for _, tag := range config.StatTags {
		if !strings.Contains(text, "`"+tag+"`") || !regexp.MustCompile(`extraStatTags: \[[^\]]*\b`+tag+`\b`).MatchString(text) {
			t.Errorf("label %s is not described", tag)
		}
	}
	// A run in which every metric appears.
	n := filtertest.NewNative(new(filtertest.World), protocols)
	for _, conf := range []string{`{"generation":"g","throttle":[{"name":"t","threshold":1},{"name":"c","threshold":9,"type":"concurrency"}],"circuitBreaker":[{"name":"b","strategy":"errorCount","threshold":1,"minRequestAmount":1}]}`, `{`} {
		if err := n.Configure(conf); err != nil {
			t.Fatal(err)
		}
	}
	s := filtertest.NewScript(n, codecs())
	if _, err := s.Run(filtertest.Block{Input: []string{"open a client", "down a bolt.req(id=1,service=S,method=m)", "up a bolt.resp(id=1,status=1) bolt.resp(id=1)", "down a bolt.req(id=3,service=T,method=n)", "down a bolt.req(id=2,service=S,method=n)"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Open(policy.DirectionServer); err != nil {
		t.Fatal(err)
	}
	n.World().Clock += 1_000_000_000
	if err := n.Tick(); err != nil {
		t.Fatal(err)
	}
	for _, m := range n.World().Metrics() {
		name, _, _ := strings.Cut(m, "{")
		name = strings.TrimSuffix(strings.TrimSuffix(name, "_count"), "_sum")
		if !strings.Contains(text, "`"+name) {
			t.Errorf("metric %s is not described", name)
		}
	}
	if got := len(n.World().Metrics()); got < 20 {
		t.Errorf("only %d metrics", got)
	}
}
