package zookeeper

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/adapters/adapterstest"
	"github.com/isthmus-mesh/isthmus/adapters/model"
)

var update = flag.Bool("update", false, "write the wanted results anew")

// readTree reads a list of node paths; # begins a comment.
func readTree(text string) map[string]*interfaceNodes {
	out := map[string]*interfaceNodes{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		p := strings.SplitN(line, "/", 5)
		path := "/" + p[1] + "/" + p[2]
		if out[path] == nil {
			out[path] = &interfaceNodes{Path: path, Interface: p[2], Categories: map[string][]string{}}
		}
		out[path].Categories[p[3]] = append(out[path].Categories[p[3]], p[4])
	}
	return out
}

func layoutOf(path string) *layout {
	if strings.HasPrefix(path, "/sofa-rpc/") {
		return layouts[layoutSOFARPC]
	}
	return layouts[layoutDubbo]
}

// TestTrees reads trees, among them what real applications have written, and compares with testdata/<case>/want.
func TestTrees(t *testing.T) {
	cases, err := filepath.Glob("testdata/*/in")
	if err != nil || len(cases) == 0 {
		t.Fatal("no cases", err)
	}
	for _, file := range cases {
		dir := filepath.Dir(file)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			groups := map[string]model.Group{}
			for path, in := range readTree(string(text)) {
				g := model.Group{Source: path}
				g.Services, g.Problems = layoutOf(path).read(*in, []string{"cell"})
				groups[path] = g
				if err := adapterstest.CheckGroup(g); err != nil {
					t.Error(err)
				}
				for range 5 { // whatever the order of maps
					again := model.Group{Source: path}
					again.Services, again.Problems = layoutOf(path).read(*in, []string{"cell"})
					if a, b := mustJSON(t, g), mustJSON(t, again); !bytes.Equal(a, b) {
						t.Fatalf("not deterministic:\n%s\n%s", a, b)
					}
				}
			}
			got := mustJSON(t, groups)
			want := filepath.Join(dir, "want")
			if *update {
				if err := os.WriteFile(want, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			wanted, err := os.ReadFile(want)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, wanted) {
				t.Errorf("got\n%s\nwant\n%s", got, wanted)
			}
		})
	}
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestParseURL(t *testing.T) {
	for name, c := range map[string]struct {
		text     string
		provider bool
		want     registryURL
		err      error
	}{
		"plain":              {"dubbo://192.0.2.1:20880/demo.Greet?a=1&b=x=y&c&=z", true, registryURL{"dubbo", "192.0.2.1", 20880, "demo.Greet", map[string]string{"a": "1", "b": "x=y", "c": ""}}, nil},
		"no path":            {"bolt://192.0.2.1:12200?version=1.0", true, registryURL{"bolt", "192.0.2.1", 12200, "", map[string]string{"version": "1.0"}}, nil},
		"v6":                 {"dubbo://2001:db8::1:20880/x", true, registryURL{"dubbo", "2001:db8::1", 20880, "x", nil}, nil},
		"v6 consumer":        {"consumer://2001:db8::1/x", false, registryURL{"consumer", "2001:db8::1", 0, "x", nil}, nil},
		"v6 in brackets":     {"dubbo://[2001:DB8:0::1]:20880/x", true, registryURL{"dubbo", "2001:db8::1", 20880, "x", nil}, nil},
		"v6 without port":    {"dubbo://[2001:db8::1]/x", true, registryURL{"dubbo", "2001:db8::1", 0, "x", nil}, nil},
		"mapped v4":          {"dubbo://[::ffff:192.0.2.1]:1/x", true, registryURL{"dubbo", "192.0.2.1", 1, "x", nil}, nil},
		"credentials":        {"dubbo://u:p@h:1/x", true, registryURL{"dubbo", "h", 1, "x", nil}, nil},
		"no host":            {"empty:///x", true, registryURL{"empty", "", 0, "x", nil}, nil},
		"default":            {"dubbo://h:1?default.weight=3&default.tag=a&tag=b", true, registryURL{"dubbo", "h", 1, "", map[string]string{"default.weight": "3", "weight": "3", "default.tag": "a", "tag": "b"}}, nil},
		"no protocol":        {"192.0.2.1:1", true, registryURL{}, errNoProtocol},
		"empty protocol":     {"://192.0.2.1:1", true, registryURL{}, errNoProtocol},
		"odd protocol":       {"du bbo://192.0.2.1:1", true, registryURL{}, errProtocol},
		"protocol in params": {"x?a=dubbo://h:1", true, registryURL{}, errNoProtocol},
		"port 0 is none":     {"dubbo://h:0", true, registryURL{Protocol: "dubbo", Host: "h"}, nil},
		"big port":           {"dubbo://h:65536", true, registryURL{}, errPort},
		"negative port":      {"dubbo://h:-1", true, registryURL{}, errPort},
		"empty port":         {"dubbo://h:", true, registryURL{}, errPort},
		"brackets":           {"dubbo://[h]:1", true, registryURL{}, errHost},
		"open bracket":       {"dubbo://[2001:db8::1:1", true, registryURL{}, errHost},
		"control":            {"dubbo://h:1?a=\x01", true, registryURL{}, errControl},
		"not UTF-8":          {"dubbo://h:1?a=\xff", true, registryURL{}, errUTF8},
		"many parameters":    {"dubbo://h:1?" + strings.Repeat("a&", 600), true, registryURL{}, errParams},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseURL(c.text, c.provider)
			if err != c.err {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if err == nil && !bytes.Equal(mustJSON(t, got), mustJSON(t, c.want)) {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
	if _, err := parseName(strings.Repeat("a", maxName+1), true); err != errLong {
		t.Errorf("a long name: %v", err)
	}
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"dubbo%3A%2F%2Fh%3A1%2Fx%3Fa%3D1%26token%3Df00%26b%3D2":  "dubbo%3A%2F%2Fh%3A1%2Fx%3Fa%3D1%26token%3D(hidden)%26b%3D2",
		"dubbo%3A%2F%2Fu%3Apw%40h%3A1%2Fx%3Faccess.password%3Dp": "dubbo%3A%2F%2F(hidden)%40h%3A1%2Fx%3Faccess.password%3D(hidden)",
		"dubbo://u:pw@h:1/x?a=1&secretKey=k":                     "dubbo://(hidden)@h:1/x?a=1&secretKey=(hidden)",
		"garbage%":                                               "garbage%",
		"":                                                       "",
		"dubbo%3A%2F%2Fh%3A1%2Fx%3Fa%3Dmail%40example.org%26token%3D": "dubbo%3A%2F%2Fh%3A1%2Fx%3Fa%3Dmail%40example.org%26token%3D(hidden)",
	} {
		if got := redact(in); got != want {
			t.Errorf("%s became %s, want %s", in, got, want)
		}
	}
}

func fuzzTree(f *testing.F, prefix string, l *layout) {
	cases, err := filepath.Glob("testdata/*/in")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range cases {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, in := range readTree(string(text)) {
			for category, names := range in.Categories {
				if strings.HasPrefix(in.Path, prefix) {
					for _, name := range names {
						f.Add(category, name, names[0])
					}
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, category, a, b string) {
		in := interfaceNodes{Path: prefix + "/demo.Greet", Interface: "demo.Greet", Categories: map[string][]string{
			providers: {"dubbo%3A%2F%2F192.0.2.1%3A20880%2Fdemo.Greet%3Fversion%3D1.0.0"},
		}}
		in.Categories[category] = append(in.Categories[category], a, b)
		g := model.Group{Source: in.Path}
		g.Services, g.Problems = l.read(in, []string{"cell"})
		if err := adapterstest.CheckGroup(g); err != nil {
			t.Fatal(err)
		}
		again := model.Group{Source: in.Path}
		again.Services, again.Problems = l.read(in, []string{"cell"})
		if !bytes.Equal(mustJSON(t, g), mustJSON(t, again)) {
			t.Fatal("not deterministic")
		}
		for _, name := range []string{a, b} {
			redact(name)
			for _, wantPort := range []bool{true, false} {
				u, err := parseName(name, wantPort)
				if err != nil {
					continue
				}
				// What was understood is understood again when it is written out in full.
				back, err := parseURL(u.Outline(), strings.Contains(u.Host, ":") || wantPort)
				if err != nil || back.Host != u.Host || back.Port != u.Port || back.Protocol != u.Protocol {
					t.Fatalf("%+v became %+v, %v", u, back, err)
				}
			}
		}
	})
}

func FuzzDubboURL(f *testing.F) { fuzzTree(f, "/dubbo", layouts[layoutDubbo]) }

func FuzzSOFARPCURL(f *testing.F) { fuzzTree(f, "/sofa-rpc", layouts[layoutSOFARPC]) }
