package filtertest_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
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
	for _, conf := range []string{`{"generation":"g","throttle":[{"name":"t","threshold":1},{"name":"c","threshold":9,"type":"concurrency"}],"circuitBreaker":[{"name":"b","strategy":"errorCount","threshold":1,"minRequestAmount":1}],"access":[{"name":"p","action":"allow","target":{"service":{"exact":"P"}},"token":{"attachment":"t","key":"k","jwt":{}}}]}`, `{`} {
		if err := n.Configure(conf); err != nil {
			t.Fatal(err)
		}
	}
	s := filtertest.NewScript(n, codecs())
	if _, err := s.Run(filtertest.Block{Input: []string{"open a client", "down a bolt.req(id=1,service=S,method=m)", "up a bolt.resp(id=1,status=1) bolt.resp(id=1)", "down a bolt.req(id=3,service=T,method=n)", "down a bolt.req(id=2,service=S,method=n) bolt.req(id=4,service=P,method=n)"}}); err != nil {
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

// TestReadmeSignature: what README.md says is signed is what the filter checks.
func TestReadmeSignature(t *testing.T) {
	data, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(data), "```\nisthmus-hmac-1\n")
	if !ok {
		t.Fatal("no example")
	}
	text, _, _ = strings.Cut(text, "```")
	secret := []byte("0123456789-0123456789-0123456789")
	m := hmac.New(sha256.New, secret)
	m.Write([]byte("isthmus-hmac-1\n" + text))
	n := filtertest.NewNative(new(filtertest.World), protocols)
	if err := n.Configure(fmt.Sprintf(`{"keys":[{"name":"partners","algorithm":"HS256","value":%q}],"access":[{"name":"partners","action":"allow",
		"token":{"attachment":"sign","key":"partners","hmac":{"timestamp":"time","attachments":["tenant"]}}}]}`, base64.StdEncoding.EncodeToString(secret))); err != nil {
		t.Fatal(err)
	}
	out, err := filtertest.NewScript(n, codecs()).Run(filtertest.Block{Input: []string{"open a server", fmt.Sprintf(
		"down a dubbo.req(id=1,service=demo.PartnerService,version=1.0.0,method=order,caller=web,.time=%d,.sign=%x)", filtertest.Epoch, m.Sum(nil))}})
	if err != nil || !strings.HasPrefix(out, "same, ") {
		t.Errorf("%s%v", out, err)
	}
}
