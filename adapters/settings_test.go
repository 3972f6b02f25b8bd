package adapters

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

type leafSettings struct {
	Name  string        `yaml:"name"`
	Every time.Duration `yaml:"every"`
	Count uint8         `yaml:"count"`
	Ratio float64       `yaml:"ratio"`
	On    bool          `yaml:"on"`
}

type inlined struct {
	Flat int `yaml:"flat"`
}

type treeSettings struct {
	Leaf    leafSettings      `yaml:"leaf"`
	Pointer *leafSettings     `yaml:"pointer"`
	List    []leafSettings    `yaml:"list"`
	Map     map[string]string `yaml:"map"`
	Texts   []string          `yaml:"texts"`
	Inline  inlined           `yaml:",inline"`
	hidden  int
}

func (s *treeSettings) Validate() Faults {
	var f Faults
	for i, l := range s.List {
		if l.Name == "" {
			f.Add(fmt.Sprintf("list[%d].name", i), "is missing")
		}
	}
	if s.Leaf.Count == 7 {
		f.Add("leaf.count", "must not be 7")
	}
	return f
}

func TestSettingsDecode(t *testing.T) {
	for name, c := range map[string]struct {
		text   string
		faults []string
	}{
		"all": {`
leaf: {name: a, every: 1m30s, count: 200, ratio: 0.5, on: true}
pointer: {name: b}
list: [{name: c}, {name: 1.0}]
map: {x: y, z: 1}
texts: [a, 2]
flat: 3
`, nil},
		"empty":           {"", nil},
		"null is default": {"leaf:\nlist: ~\n", nil},
		"json":            {"{\"leaf\": {\"name\": \"a\\/b\\ud83d\\ude00\",\n\t\"count\": 7}}", []string{"2 leaf.count must not be 7"}},
		"json twice":      {"{\"leaf\": {},\n\"leaf\": {}}", []string{"2 leaf is there twice"}},
		"unknown":         {"leaf: {nam: a}\nhidden: 1\n", []string{"1 leaf.nam unknown field; known are count, every, name, on, ratio", "2 hidden unknown field; known are flat, leaf, list, map, pointer, texts"}},
		"types": {"leaf: {name: [a], every: soon, count: 256, ratio: x, on: maybe}\nlist: {}\nmap: [a]\ntexts: a\n", []string{
			"1 leaf.name must be a string, is a list", `1 leaf.every "soon" is not a duration such as 500ms or 30s`, `1 leaf.count "256" is not a whole number from 0 to 255`,
			`1 leaf.ratio "x" is not a number`, `1 leaf.on "maybe" is not true or false`, "2 list must be a list, is a mapping", "3 map must be a mapping, is a list", `4 texts must be a list, is "a"`}},
		"validator":          {"list:\n- {name: a}\n- {}\n- {name: b, x: 1}\n", []string{"3 list[1].name is missing", "4 list[2].x unknown field; known are count, every, name, on, ratio"}},
		"validator is quiet": {"list:\n- {name: [a]}\n", []string{"2 list[0].name must be a string, is a list"}},
		"alias":              {"leaf: &a {name: x}\npointer: *a\n", []string{"2 pointer YAML aliases are not supported"}},
		"twice":              {"map: {a: b, a: c}\n", []string{"1 map.a is there twice"}},
		"scalar":             {"just text", []string{`1  must be a mapping, is "just text"`}},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := ParseSettings([]byte(c.text))
			if err != nil {
				t.Fatal(err)
			}
			var into treeSettings
			var got []string
			for _, f := range AsFaults(s.Decode(&into)) {
				got = append(got, fmt.Sprintf("%d %s %s", f.Line, f.Path, f.Message))
			}
			if !slices.Equal(got, c.faults) {
				t.Errorf("faults\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.faults, "\n"))
			}
			if name == "all" {
				want := treeSettings{leafSettings{"a", 90 * time.Second, 200, 0.5, true}, &leafSettings{Name: "b"}, []leafSettings{{Name: "c"}, {Name: "1.0"}}, map[string]string{"x": "y", "z": "1"}, []string{"a", "2"}, inlined{3}, 0}
				a, _ := json.Marshal(want)
				b, _ := json.Marshal(into)
				if string(a) != string(b) {
					t.Errorf("got %s, want %s", b, a)
				}
			}
		})
	}
}

func TestSettingsDepth(t *testing.T) {
	for _, text := range []string{strings.Repeat("[", 1000) + strings.Repeat("]", 1000), "map: " + strings.Repeat("{a: ", 1000) + "1" + strings.Repeat("}", 1000)} {
		s, err := ParseSettings([]byte(text))
		if err != nil {
			continue // refused by the parser is as good
		}
		if err := s.Decode(&treeSettings{}); err == nil {
			t.Error("a document nested 1,000 deep was taken")
		}
		if _, err := s.MarshalJSON(); err == nil {
			t.Error("and written")
		}
	}
}

func TestParseSettingsFaults(t *testing.T) {
	for text, want := range map[string]string{
		"a: [":         "line 1: did not find expected node content",
		"a: 1\nb: c: ": "line 2: mapping values are not allowed in this context",
		"a: 1\n---\nb": "line 3: only one document is expected",
	} {
		_, err := ParseSettings([]byte(text))
		if fmt.Sprint(err) != want {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestSettingsEqual(t *testing.T) {
	a := mustSettings(t, "x: 1\ny: [a, {b: c}]\n")
	for text, want := range map[string]bool{
		"{\"y\": [\"a\", {\"b\": \"c\"}], \"x\": 1}": true,
		"# a comment\ny:\n- a\n- b: 'c'\nx: 0x1\n":   true,
		"x: 2\ny: [a, {b: c}]\n":                     false,
		"x: 1\ny: [{b: c}, a]\n":                     false,
		"x: '1'\ny: [a, {b: c}]\n":                   false,
		"":                                           false,
	} {
		if got := a.Equal(mustSettings(t, text)); got != want {
			t.Errorf("%q is equal: %v, want %v", text, got, want)
		}
	}
	if !(Settings{}).Equal(mustSettings(t, "{}")) {
		t.Error("nothing and {} differ")
	}
}

func TestRegistryInYAMLAndJSON(t *testing.T) {
	var fromYAML struct{ Registries []Registry }
	if err := yaml.Unmarshal([]byte("registries:\n- name: a\n  kind: puppet\n  settings:\n    id: x\n"), &fromYAML); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(fromYAML.Registries)
	if err != nil || string(b) != `[{"name":"a","kind":"puppet","settings":{"id":"x"}}]` {
		t.Errorf("%s, %v", b, err)
	}
	var fromJSON []Registry
	if err := json.Unmarshal(b, &fromJSON); err != nil || !fromJSON[0].Settings.Equal(fromYAML.Registries[0].Settings) {
		t.Errorf("%+v, %v", fromJSON, err)
	}
	y, err := yaml.Marshal(fromYAML.Registries)
	if err != nil || !strings.Contains(string(y), "id: x") {
		t.Errorf("%s, %v", y, err)
	}
	err = yaml.Unmarshal([]byte("registries:\n- name: a\n  knd: puppet\n"), &fromYAML)
	if f := AsFaults(err); len(f) != 1 || f[0].Path != "knd" || f[0].Line != 3 {
		t.Errorf("faults: %v", err)
	}
}

func TestCheck(t *testing.T) {
	s := newStage(t, ManagerOptions{})
	err := Check(s.m.o.Kinds, []Registry{{Name: "a", Kind: "puppet"}, {Name: "a", Kind: "puppet"}, {Name: "b", Kind: "x"}, {Name: "b_", Kind: ""}, {Name: "c", Kind: "puppet", Settings: mustSettings(t, "\nidd: 1")}})
	want := []string{
		"[1].name: \"a\" is also the name of [0]",
		"[2].kind: unknown kind \"x\"; known are other, puppet",
		"[3].name: \"b_\" is not a name: 1 to 63 lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit",
		"[3].kind: is missing",
		"line 2: [4].settings.idd: unknown field; known are id",
	}
	if got := fmt.Sprint(err); got != strings.Join(want, "\n") {
		t.Errorf("faults\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	if err := Check(s.m.o.Kinds, []Registry{{Name: "a", Kind: "puppet"}}); err != nil {
		t.Error(err)
	}
}

func TestSecret(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(" open sesame\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("A_SECRET", "from env")
	for name, c := range map[string]struct {
		secret Secret
		want   string
		fault  string
	}{
		"none":      {Secret{}, "", ""},
		"file":      {Secret{File: file}, " open sesame", ""},
		"env":       {Secret{Env: "A_SECRET"}, "from env", ""},
		"no file":   {Secret{File: file + "2"}, "", "no such file"},
		"folder":    {Secret{File: filepath.Dir(file)}, "", "not a regular file"},
		"not set":   {Secret{Env: "NO_SUCH_SECRET"}, "", "NO_SUCH_SECRET is not set"},
		"empty env": {Secret{}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := c.secret.Read()
			if got != c.want || (c.fault == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.fault) {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func TestAsFaults(t *testing.T) {
	if AsFaults(nil) != nil || len(AsFaults(errors.New("x"))) != 1 || len(AsFaults(fmt.Errorf("wrapped: %w", Faults{{}, {}}))) != 2 {
		t.Error("wrong")
	}
	f := Faults{{Path: "[0].a", Message: "m"}, {Message: "n"}}.Under("registries")
	if f[0].Path != "registries[0].a" || f[1].Path != "registries" {
		t.Errorf("%v", f)
	}
	if (Options{}).Logger().Enabled(t.Context(), slog.LevelError) {
		t.Error("no logger logs")
	}
}
