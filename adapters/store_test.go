package adapters

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters/model"
)

func someState() *savedState {
	g := group("/x", "X", endpoint(1, 100))
	g.Services[0].Endpoints[0].Labels = map[string]string{"env": "<blue>&\u2028"}
	g.Services[0].Consumers = []model.Consumer{{Address: "192.0.2.9", Metadata: map[string]string{"a": "b"}}}
	return &savedState{Registry: "a", Kind: "puppet", LastWord: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Groups: []model.Group{g,
		{Source: "/p", Problems: []model.Problem{{Severity: model.SeverityError, Place: "/p", Code: "Bad", Message: "bad"}}}}}
}

func TestStateSurvives(t *testing.T) {
	for name, s := range map[string]*savedState{"some": someState(), "nothing": {Registry: "a", Kind: "puppet"}} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := writeState(&b, s); err != nil {
				t.Fatal(err)
			}
			got, err := readState(bytes.NewReader(b.Bytes()))
			if err != nil {
				t.Fatal(err)
			}
			if have, want := jsonText(t, got), jsonText(t, s); have != want {
				t.Errorf("got %s, want %s", have, want)
			}
		})
	}
}

func jsonText(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestStateNoticesEveryByte changes and cuts a file at every place.
func TestStateNoticesEveryByte(t *testing.T) {
	var b bytes.Buffer
	if err := writeState(&b, someState()); err != nil {
		t.Fatal(err)
	}
	for i := range b.Len() {
		text := bytes.Clone(b.Bytes())
		text[i] ^= 0x21
		if _, err := readState(bytes.NewReader(text)); err == nil {
			t.Errorf("byte %d was changed unnoticed", i)
		}
		if _, err := readState(bytes.NewReader(text[:i])); err == nil {
			t.Errorf("cut at %d unnoticed", i)
		}
	}
}

func TestStoreLeavesOtherFilesAlone(t *testing.T) {
	dir := t.TempDir()
	s := newStore(dir)
	if err := s.save(saveJob{name: "a", state: someState()}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"notes.txt", "registry-B!.state.jsonl", "registry-c.state.jsonl.tmp"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprint(s.names()); got != "[a]" {
		t.Errorf("names %s", got)
	}
	if _, err := s.load("b"); err != nil {
		t.Errorf("a file that is not there: %v", err)
	}
	if err := os.Rename(s.file("a"), s.file("b")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.load("b"); err == nil || !strings.Contains(err.Error(), `"a"`) {
		t.Errorf("another registry's file: %v", err)
	}
	info, err := os.Stat(s.file("b"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func FuzzState(f *testing.F) {
	var b bytes.Buffer
	if err := writeState(&b, someState()); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:b.Len()/2])
	f.Add([]byte(`{"format":"isthmus/registry-state","version":1,"registry":"a","kind":"k","lastWord":"2026-01-02T03:04:05Z"}` + "\n" +
		`{"groups":0,"sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}` + "\n"))
	f.Add([]byte("{}\n{}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := readState(bytes.NewReader(text))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := writeState(&out, s); err != nil {
			t.Fatal(err)
		}
		again, err := readState(&out)
		if err != nil {
			t.Fatal(err)
		}
		if jsonText(t, again) != jsonText(t, s) {
			t.Fatalf("%s became %s", jsonText(t, s), jsonText(t, again))
		}
	})
}

func FuzzSettings(f *testing.F) {
	f.Add([]byte("leaf: {name: a, every: 1m, count: 2}\nlist: [{name: b}]\nmap: {a: b}\n"))
	f.Add([]byte(`{"leaf": {"name": "a"}, "texts": ["x", 1, null, true, 1e400]}`))
	f.Add([]byte("a: &a [*a, *a]\nb: !!binary x\n? [c]\n: d\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := ParseSettings(text)
		if err != nil {
			return
		}
		var into treeSettings
		if err := s.Decode(&into); err != nil && len(AsFaults(err)) == 0 {
			t.Error("an error without faults")
		}
		b, err := s.MarshalJSON()
		if err != nil {
			return
		}
		back, err := ParseSettings(b)
		if err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		if !s.Equal(back) {
			c, _ := back.MarshalJSON()
			t.Fatalf("%s became %s", b, c)
		}
	})
}
