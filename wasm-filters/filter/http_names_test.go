package filter

import (
	"bytes"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

func TestNormalPath(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "/": "/", "/a?b=/c#d": "/a", "/a#b": "/a", "?": "",
		"/%61%2D%2e%5F%7e%41%39": "/a-._~A9",
		"/a%2Fb%20c%25%3f":       "/a%2Fb%20c%25%3f", // they mean something
		"/%":                     "/%", "/%4": "/%4", "/%4g": "/%4g", "/%g4": "/%g4", "/%%41": "/%A", "/%2561": "/%2561", "/100%/x": "/100%/x",
		"/\xff%ff": "/\xff%ff",
	} {
		if got := string(normalPath([]byte(in))); got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
}

func TestServiceOf(t *testing.T) {
	for in, want := range map[string]string{
		"": "", ":": "", "a": "a", "A.Example:8080": "a.example", "a.example.:80": "a.example", "user:pass@a:1": "a", "a:b": "a:b", "a:": "a",
		"10.0.0.1:80": "10.0.0.1", "[FD00::1]:80": "fd00::1", "[fd00::1": "[fd00:", "[": "[",
		"orders.spring.isthmus:80": "orders", "Order-Service.spring.isthmus": "order-service", "v2-x.spring.isthmus": "v2-x",
		"a--0b.spring.isthmus": "a--0b.spring.isthmus", "orders.v1.spring.isthmus": "orders.v1.spring.isthmus", ".spring.isthmus": ".spring.isthmus",
		"spring.isthmus": "spring.isthmus", "orders.spring.other": "orders.spring.other", "orders.shop.svc.cluster.local:80": "orders.shop.svc.cluster.local",
	} {
		if got := string(serviceOf([]byte(in), "isthmus")); got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
}

func TestSplitTriple(t *testing.T) {
	for in, want := range map[string][2]string{
		"": {"", ""}, "/": {"", ""}, "/demo.A/m": {"demo.A", "m"}, "demo.A/m": {"demo.A", "m"}, "/demo.A": {"demo.A", ""}, "/context/demo.A/m": {"context/demo.A", "m"},
		"/demo.A/": {"demo.A", ""}, "//m": {"", "m"},
	} {
		service, method := splitTriple([]byte(in))
		if got := [2]string{string(service), string(method)}; got != want {
			t.Errorf("%q is %q, want %q", in, got, want)
		}
	}
}

func TestFits(t *testing.T) {
	for _, c := range []struct {
		template, path string
		want           bool
	}{
		{"/orders/{id}", "/orders/17", true}, {"/orders/{id}", "/orders/", false}, {"/orders/{id}", "/orders", false}, {"/orders/{id}", "/orders/17/", false},
		{"/orders/{id}", "/orders/17/items", false}, {"/orders/{id}/items", "/orders/17/items", true}, {"/{a}/{b}", "/x/y", true}, {"/", "/", true}, {"/", "", false},
		{"/a", "/b", false}, {"/{a}", "x", false},
	} {
		if got := fits(c.template, []byte(c.path)); got != c.want {
			t.Errorf("%s for %s: %v", c.template, c.path, got)
		}
	}
}

func TestStatuses(t *testing.T) {
	for status, want := range map[string]protocol.Outcome{
		"200": protocol.OutcomeOK, "101": protocol.OutcomeOK, "302": protocol.OutcomeOK, "400": protocol.OutcomeException, "404": protocol.OutcomeException, "408": protocol.OutcomeTimeout,
		"429": protocol.OutcomeOverload, "500": protocol.OutcomeError, "502": protocol.OutcomeError, "503": protocol.OutcomeOverload, "504": protocol.OutcomeTimeout,
		"": protocol.OutcomeBadResponse, "0": protocol.OutcomeBadResponse, "-1": protocol.OutcomeBadResponse, "99999": protocol.OutcomeBadResponse, "2 0": protocol.OutcomeBadResponse,
	} {
		if got := ofStatus([]byte(status)); got != want {
			t.Errorf("HTTP %q: %s, want %s", status, got, want)
		}
	}
	for status, want := range map[string]protocol.Outcome{
		"0": protocol.OutcomeOK, "1": protocol.OutcomeClosed, "2": protocol.OutcomeException, "3": protocol.OutcomeException, "4": protocol.OutcomeTimeout, "7": protocol.OutcomeException,
		"8": protocol.OutcomeOverload, "12": protocol.OutcomeNotFound, "13": protocol.OutcomeError, "14": protocol.OutcomeError, "16": protocol.OutcomeException,
		"": protocol.OutcomeBadResponse, "17": protocol.OutcomeBadResponse, "x": protocol.OutcomeBadResponse, "-0": protocol.OutcomeBadResponse,
	} {
		if got := ofGRPC([]byte(status)); got != want {
			t.Errorf("gRPC %q: %s, want %s", status, got, want)
		}
	}
}

// FuzzHTTPNames: whatever a path and an authority are, what is read of them means the same, is no longer, and is what net/url and
// regexp make of them.
func FuzzHTTPNames(f *testing.F) {
	f.Add("/orders/17?x=%41", "A.Example:80", "/orders/{id}", "200")
	f.Add("/%61%2f%%36%4", "[fd00::1]:8080", "/{a}/b", "0")
	f.Add("/demo.A/m", "user@Orders.Spring.isthmus.:1", "/", "16")
	f.Fuzz(func(t *testing.T, path, authority, template, status string) {
		bare := path
		if i := strings.IndexAny(path, "?#"); i >= 0 {
			bare = path[:i]
		}
		normal := normalPath([]byte(path))
		if len(normal) > len(bare) || bytes.ContainsAny(normal, "?#") {
			t.Fatalf("%q is %q", path, normal)
		}
		if want, err := url.PathUnescape(bare); err == nil {
			if got, err := url.PathUnescape(string(normal)); err != nil || got != want {
				t.Fatalf("%q is %q, which means %q: %v", path, normal, got, err)
			}
		}
		service, method := splitTriple(normal)
		if len(service)+len(method) > len(normal) || bytes.IndexByte(method, '/') >= 0 {
			t.Fatalf("%q is %q and %q", path, service, method)
		}
		host := serviceOf([]byte(authority), "isthmus")
		if len(host) > len(authority) || bytes.IndexFunc(host, func(r rune) bool { return r >= 'A' && r <= 'Z' }) >= 0 {
			t.Fatalf("%q is %q", authority, host)
		}
		isAddress(host)
		isGRPC([]byte(authority))
		var expr strings.Builder
		valid := len(template) < 100 && strings.HasPrefix(template, "/")
		for i, part := range strings.Split(template, "/") {
			if i > 0 {
				expr.WriteByte('/')
			}
			switch n := len(part); {
			case n > 2 && part[0] == '{' && part[n-1] == '}' && !strings.ContainsAny(part[1:n-1], "{}"):
				expr.WriteString("[^/]+")
			default:
				valid = valid && !strings.ContainsAny(part, "{}")
				expr.WriteString(regexp.QuoteMeta(part))
			}
		}
		if re, err := regexp.Compile(`(?s)\A` + expr.String() + `\z`); valid && err == nil && utf8.Valid(normal) {
			if got, want := fits(template, normal), re.Match(normal); got != want {
				t.Fatalf("%q for %q: %v", template, normal, got)
			}
		}
		ofStatus([]byte(status))
		ofGRPC([]byte(status))
	})
}
