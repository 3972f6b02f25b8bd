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
	"github.com/isthmus-mesh/isthmus/adapters/registryurl"
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
			registryurl.Redact(name)
			for _, wantPort := range []bool{true, false} {
				u, err := registryurl.ParseName(name, wantPort)
				if err != nil {
					continue
				}
				// What was understood is understood again when it is written out in full.
				back, err := registryurl.Parse(u.Outline(), strings.Contains(u.Host, ":") || wantPort)
				if err != nil || back.Host != u.Host || back.Port != u.Port || back.Protocol != u.Protocol {
					t.Fatalf("%+v became %+v, %v", u, back, err)
				}
			}
		}
	})
}

func FuzzDubboURL(f *testing.F) { fuzzTree(f, "/dubbo", layouts[layoutDubbo]) }

func FuzzSOFARPCURL(f *testing.F) { fuzzTree(f, "/sofa-rpc", layouts[layoutSOFARPC]) }
