package lift_test

import (
	"cmp"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/translate"
	"github.com/isthmus-mesh/isthmus/wasm-filters/filter"
)

// checkHost holds the filter's host of a service to mcp-server's.
func checkHost(t *testing.T, system, service, version, group string) {
	t.Helper()
	key := model.Key{Framework: "dubbo", Interface: service, Version: version, Group: group}
	if system == "bolt" {
		key.Framework, key.Version = "sofa", cmp.Or(version, "1.0") // as adapters do
	}
	want, reversible := translate.Naming{}.Host(key)
	got, ok := filter.LiftHost(translate.DefaultSuffix, system, service, version, group)
	if ok != reversible || ok && got != want {
		t.Errorf("%s %q %q %q: %q, mcp-server has %q", system, service, version, group, got, want)
	}
}

// TestHosts: the sidecar calls a service as mcp-server does.
func TestHosts(t *testing.T) {
	for _, c := range [][3]string{
		{"demo.GreetService", "1.0.0", "g1"}, {"demo.GreetService", "", ""}, {"com.alipay.PayFacade", "1.0", "blue"}, {"demo.HTTPClient", "", ""},
		{"demo.Outer$Inner", "", ""}, {"demo.user_api", "", ""}, {"Demo.A", "", ""}, {"demo.V1Api", "", ""}, {"demo.GPay", "", ""}, {"demo.v1.Greeter", "", ""},
		{"demo.A", "beta", ""}, {"demo.A", "1.0.0-SNAPSHOT", "DEFAULT_GROUP"}, {"demo.A", "*", "*"}, {"demo.A", "1.", "myGroup"}, {"demo.订单", "", "组"},
		{"", "", ""}, {"a..B", "", ""}, {"..", "..", ".."}, {"A", "A", "A"}, {"a", "AB", "ABc"}, {"\xff\u00e9\U0001F600\ufffd", "\xff", "-a"},
		{"demo." + strings.Repeat("LongName", 12), "", ""}, {"demo." + strings.Repeat("a.B", 60), "", ""}, {strings.Repeat("x", 300), "1", "g"},
	} {
		for _, system := range []string{"dubbo", "bolt"} {
			checkHost(t, system, c[0], c[1], c[2])
		}
	}
	// Dubbo's way to say that there is no version.
	if got, ok := filter.LiftHost("isthmus", "dubbo", "demo.A", "0.0.0", ""); got != "demo.a.dubbo.isthmus" || !ok {
		t.Error(got)
	}
	r := rand.New(rand.NewPCG(1, 2))
	alphabet := []string{"a", "b", "v", "g", "p", "z", "A", "V", "G", "P", "Z", "0", "1", ".", ".", "-", "_", "$", "*", " ", "é", "订", "\xff", "\U0001F600"}
	word := func(most int) string {
		var b strings.Builder
		for range r.IntN(most) {
			b.WriteString(alphabet[r.IntN(len(alphabet))])
		}
		return b.String()
	}
	for range 50_000 {
		checkHost(t, []string{"dubbo", "bolt"}[r.IntN(2)], word(30), word(10), word(12))
	}
	for range 500 {
		checkHost(t, "bolt", word(200), word(100), word(100))
	}
}

// FuzzHosts is TestHosts for any names.
func FuzzHosts(f *testing.F) {
	f.Add("demo.GreetService", "1.0.0", "g1")
	f.Add("demo.V1Api$X_y", "SNAPSHOT-1", "a.B")
	f.Fuzz(func(t *testing.T, service, version, group string) {
		if version != "0.0.0" {
			checkHost(t, "dubbo", service, version, group)
		}
		checkHost(t, "bolt", service, version, group)
	})
}
