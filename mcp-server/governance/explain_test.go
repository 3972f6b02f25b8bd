package governance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// Each rule of testdata/kinds is explained in explain.txt beside it.
func TestExplain(t *testing.T) {
	cases, err := filepath.Glob("testdata/kinds/*/in.yaml")
	if err != nil || len(cases) < 7 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	for _, in := range cases {
		dir := filepath.Dir(in)
		golden := filepath.Join(dir, "explain.txt")
		if filepath.Base(dir) == "faulty" {
			continue
		}
		t.Run(filepath.Base(dir), func(t *testing.T) {
			text, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			rules, err := Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			for i := range rules {
				e := Explain(&rules[i], rules)
				fmt.Fprintf(&got, "%s %s\n", rules[i].ID, e.Does)
				for _, c := range e.Calls {
					fmt.Fprintf(&got, "  for calls: %s\n", c)
				}
				for _, r := range e.Relations {
					fmt.Fprintf(&got, "  %s %s %s/%s: %s\n", r.Effect, r.Kind, r.Namespace, r.Name, r.Message)
				}
				if !json.Valid(e.Plugin) || !strings.Contains(string(e.Plugin), rules[i].Name) {
					t.Errorf("%s: plugin %s", rules[i].ID, e.Plugin)
				}
			}
			if *update {
				if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), want) {
				t.Errorf("got\n%s\nwant\n%s", got.Bytes(), want)
			}
		})
	}
}

// Among many rules that share calls the one that shadows is not lost.
func TestExplainBesideMany(t *testing.T) {
	var text strings.Builder
	for i := range 2 * maxRelations {
		text.WriteString(rule(fmt.Sprintf("r%03d", i), 10) + "---\n")
	}
	text.WriteString(rule("z", 1))
	rules, err := Parse([]byte(text.String()))
	if err != nil {
		t.Fatal(err)
	}
	e := Explain(&rules[0], rules)
	if len(e.Relations) != maxRelations || e.Relations[0].Name != "z" || e.Relations[0].Effect != RelationShadowedBy {
		t.Errorf("%d relations, the first %+v", len(e.Relations), e.Relations[0])
	}
}

// covers and disjoint are never wrong: they are held to what the matches do with many strings.
func TestMatchesAgainstEachOther(t *testing.T) {
	words := []string{"", "a", "ab", "abc", "b", "ba", "*"}
	matches := []Match{{}}
	for _, w := range words[1:] {
		matches = append(matches, Match{Exact: w}, Match{Prefix: w}, Match{In: []string{w, "b"}}, Match{NotIn: []string{w, "abc"}})
	}
	for _, r := range []string{"a.*", "ab?", ".*", "[ab]+"} {
		matches = append(matches, Match{Regex: r})
	}
	told := 0
	for _, m := range matches {
		for _, o := range matches {
			covers, disjoint := m.covers(o), m.disjoint(o)
			for _, w := range append(words, "abd", "abcd", "c", "bb") {
				if covers && o.matches(w) && !m.matches(w) {
					t.Errorf("%+v does not cover %+v: %q", m, o, w)
				}
				if disjoint && o.matches(w) && m.matches(w) {
					t.Errorf("%+v is not disjoint from %+v: %q", m, o, w)
				}
			}
			// Absent values, too.
			absent := func(m Match) bool { p := plugin.Match(m); s := p.Strings(); return s.Matches(nil) }
			if covers && absent(o) && !absent(m) || disjoint && absent(o) && absent(m) {
				t.Errorf("%+v and %+v: absent values", m, o)
			}
			if covers || disjoint {
				told++
			}
		}
	}
	if told < len(matches) {
		t.Errorf("only %d relations are known", told)
	}
}
