package governance

import (
	"bytes"
	"strings"
	"testing"
)

func TestEdit(t *testing.T) {
	a, b, c := rule("a", 1), rule("b", 2), rule("c", 3)
	id := func(name string) ID { return ID{"ThrottleRule", "default", name} }
	for name, x := range map[string]struct {
		text, id, rule string
		json           bool
		want           string
		err            string
	}{
		"into nothing":              {"", "a", a, false, a, ""},
		"into a comment":            {"# mine\n", "a", a, false, "# mine\n---\n" + a, ""},
		"added":                     {a, "b", b, false, a + "---\n" + b, ""},
		"added without an end":      {strings.TrimSuffix(a, "\n"), "b", strings.TrimSuffix(b, "\n"), false, a + "---\n" + b, ""},
		"replaced, first":           {"# x\n" + a + "---\n" + b, "a", rule("a", 9), false, rule("a", 9) + "---\n" + b, ""},
		"replaced, in between":      {a + "--- # of b\n" + b + "---\n" + c, "b", "---\n" + rule("b", 9), false, a + "---\n" + rule("b", 9) + "---\n" + c, ""},
		"replaced, last":            {"---\n" + a + "---\n# about b\n" + b, "b", rule("b", 9), false, "---\n" + a + "---\n" + rule("b", 9), ""},
		"a faulty one":              {strings.Replace(a, "threshold: 1", "treshold: 1", 1) + "---\n" + b, "a", a, false, a + "---\n" + b, ""},
		"removed, first":            {a + "---\n" + b, "a", "", false, b, ""},
		"removed, first of two":     {"---\n" + a + "---\n" + b, "a", "", false, b, ""},
		"removed, last":             {a + "---\n" + b, "b", "", false, a, ""},
		"removed, only":             {a, "a", "", false, "", ""},
		"removed, none":             {a, "b", "", false, a, ""},
		"the first of twice":        {a + "---\n" + rule("a", 5), "a", rule("a", 9), false, rule("a", 9) + "---\n" + rule("a", 5), ""},
		"no YAML":                   {"a: [\n", "a", a, false, "", "governance: line"},
		"two in a part":             {a + "...\n" + b, "c", c, false, "", "governance: line 5"},
		"an unreadable part":        {a + "---\na: [\n", "a", rule("a", 9), false, "", "governance: line"},
		"JSON":                      {`{"apiVersion": "governance.isthmus.io/v1alpha1", "kind": "ThrottleRule", "metadata": {"name": "a"}, "spec": {"threshold": 1}}`, "a", a, true, "{\n  \"apiVersion\": \"governance.isthmus.io/v1alpha1\",\n  \"kind\": \"ThrottleRule\",\n  \"metadata\": {\n    \"name\": \"a\"\n  },\n  \"spec\": {\n    \"threshold\": 1\n  }\n}\n", ""},
		"JSON, of another":          {`{"kind": "ThrottleRule", "metadata": {"name": "x"}}`, "a", a, true, "", "room for one rule"},
		"JSON, removed":             {`{"kind": "ThrottleRule", "metadata": {"name": "a"}}`, "a", "", true, "", ""},
		"kept as it was laid out":   {"---\n\n" + a + "\n\n---\n# note\n" + b + "# end\n", "c", c, false, "---\n\n" + a + "\n\n---\n# note\n" + b + "# end\n---\n" + c, ""},
		"CRLF":                      {strings.ReplaceAll(a, "\n", "\r\n") + "---\r\n" + b, "b", rule("b", 7), false, strings.ReplaceAll(a, "\n", "\r\n") + "---\n" + rule("b", 7), ""},
		"a separator within a text": {strings.Replace(a, "metadata: {name: a}", "metadata:\n  name: a\n  annotations:\n    x: |\n      ---\n      y", 1), "b", b, false, strings.Replace(a, "metadata: {name: a}", "metadata:\n  name: a\n  annotations:\n    x: |\n      ---\n      y", 1) + "---\n" + b, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Edit([]byte(x.text), id(x.id), []byte(x.rule), x.json)
			switch {
			case x.err != "":
				if err == nil || !strings.Contains(err.Error(), x.err) {
					t.Errorf("got %q, %v, want %s", got, err, x.err)
				}
			case err != nil || string(got) != x.want:
				t.Errorf("got %q, %v, want %q", got, err, x.want)
			}
		})
	}
	if got := Locate([]File{{Name: "x", Text: []byte("a: [")}, {Name: "y", Text: []byte(a)}, {Name: "z", Text: []byte(b + "---\n" + a)}}, id("b")); got != "z" {
		t.Errorf("b is in %q", got)
	}
}

// Whatever a file holds, an edit changes the one rule and no other, or fails.
func FuzzEdit(f *testing.F) {
	f.Add([]byte(rule("a", 1)+"---\n"+rule("x", 2)), false)
	f.Add([]byte("---\n---\n# x\n--- {a: 1}\n"), false)
	f.Add([]byte(`{"kind": "ThrottleRule", "metadata": {"name": "x"}}`), true)
	f.Fuzz(func(t *testing.T, text []byte, isJSON bool) {
		id := ID{"ThrottleRule", "default", "x"}
		out, err := Edit(text, id, []byte(rule("x", 77)), isJSON)
		if err != nil {
			return
		}
		before, after := Rules{}.Update([]File{{Name: "a", Text: text}}), Rules{}.Update([]File{{Name: "a", Text: out}})
		found := false
		others := func(r Rules) (n int) {
			for _, i := range r.Items {
				if i.ID != id {
					n++
				}
			}
			return n
		}
		for _, i := range after.Items {
			found = found || i.ID == id && *i.Spec.(*ThrottleSpec).Threshold == 77
		}
		if !found || others(before) != others(after) {
			t.Fatalf("%q became %q", text, out)
		}
		gone, err := Edit(out, id, nil, isJSON)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(gone, []byte("threshold: 77")) && !bytes.Contains(text, []byte("threshold: 77")) {
			t.Fatalf("%q became %q", out, gone)
		}
	})
}
