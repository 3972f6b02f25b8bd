package cli

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"testing"

	"go.yaml.in/yaml/v3"
)

func TestYAMLList(t *testing.T) {
	item := &yaml.Node{}
	if err := yaml.Unmarshal([]byte("name: new\nkind: file\nsettings:\n  path: x\n"), item); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		in     string
		remove int // -1 adds
		want   string
	}{
		"add to a block list": {
			"# top\nspec:\n  # all of them\n  registries:\n    # first\n    - name: a # why\n      settings:\n        servers: [x]\n\n  # the rest\n  log: info\n", -1,
			"# top\nspec:\n  # all of them\n  registries:\n    # first\n    - name: a # why\n      settings:\n        servers: [x]\n    - name: new\n      kind: file\n      settings:\n        path: x\n\n  # the rest\n  log: info\n"},
		"add to a list at its parent's margin": {
			"spec:\n  registries:\n  - name: a\n  - name: b\n  log: info\n", -1,
			"spec:\n  registries:\n  - name: a\n  - name: b\n  - name: new\n    kind: file\n    settings:\n      path: x\n  log: info\n"},
		"add where the file ends without a line break": {
			"spec:\n  registries:\n  - name: a", -1,
			"spec:\n  registries:\n  - name: a\n  - name: new\n    kind: file\n    settings:\n      path: x\n"},
		"add to an empty list": {
			"# top\nspec:\n  registries: [] # none yet\n  log: info # for now\n", -1,
			"# top\nspec:\n  registries: # none yet\n    - name: new\n      kind: file\n      settings:\n        path: x\n  log: info # for now\n"},
		"add to a flow list": {
			"spec:\n  registries: [{name: a}]\n", -1,
			"spec:\n  registries:\n    - {name: a}\n    - name: new\n      kind: file\n      settings:\n        path: x\n"},
		"add to an absent list": {
			"# top\nspec:\n  log: info\n", -1,
			"# top\nspec:\n  log: info\n  registries:\n    - name: new\n      kind: file\n      settings:\n        path: x\n"},
		"add where even the parent is absent": {
			"kind: K\n", -1,
			"kind: K\nspec:\n  registries:\n    - name: new\n      kind: file\n      settings:\n        path: x\n"},
		"add where the list is null": {
			"spec:\n  registries:\n  log: info\n", -1,
			"spec:\n  registries:\n    - name: new\n      kind: file\n      settings:\n        path: x\n  log: info\n"},
		"remove the first, its comment with it": {
			"spec:\n  registries:\n    # of a\n    - name: a\n      text: |\n        # not a comment\n\n        more\n    # of b\n    - name: b\n\n  log: info\n", 0,
			"spec:\n  registries:\n    # of b\n    - name: b\n\n  log: info\n"},
		"remove where the dash stands by itself": {
			"spec:\n  registries:\n    -\n      name: a\n    - name: b\n", 0,
			"spec:\n  registries:\n    - name: b\n"},
		"remove the last": {
			"spec:\n  registries:\n    - name: a\n\n    - name: b\n      x: 1\n\n  # the rest\n  log: info\n", 1,
			"spec:\n  registries:\n    - name: a\n\n\n  # the rest\n  log: info\n"},
		"remove the only one": {
			"spec:\n  registries:\n    - name: a\n  log: info # for now\n", 0,
			"spec:\n  registries: []\n  log: info # for now\n"},
		"remove from a flow list": {
			"spec:\n  registries: [{name: a}, {name: b}]\n", 0,
			"spec:\n  registries: [{name: b}]\n"},
	} {
		t.Run(name, func(t *testing.T) {
			l := &yamlList{text: []byte(c.in), path: []string{"spec", "registries"}}
			var err error
			if c.remove < 0 {
				err = l.add(item.Content[0])
			} else {
				err = l.remove(c.remove)
			}
			if err != nil {
				t.Fatal(err)
			}
			if string(l.text) != c.want {
				t.Errorf("got:\n%s\nwant:\n%s", l.text, c.want)
			}
		})
	}
	for name, text := range map[string]string{
		"empty":         "",
		"not a list":    "spec: {registries: 1}",
		"not a mapping": "spec: [1]",
		"not YAML":      "spec: [",
		"two documents": "spec: {}\n---\nspec: {}\n",
	} {
		t.Run(name, func(t *testing.T) {
			l := &yamlList{text: []byte(text), path: []string{"spec", "registries"}}
			if err := l.add(item.Content[0]); err == nil {
				t.Errorf("no error; got:\n%s", l.text)
			}
		})
	}
}

// FuzzYAMLList holds edits to changing nothing but the list: an item that is added is the last one, and is gone once it is removed.
func FuzzYAMLList(f *testing.F) {
	for _, seed := range []string{
		configuration, "spec:\n  registries: []\n", "spec: {registries: [{name: a}]}", "spec:\n  registries:\n  -\n    name: a\n...\n", "kind: K\n",
		"spec:\n  registries:\n  - |\n   text\n  - 'a\n\n    b'\n", "spec:\n  registries:\n  - &a {name: x}\n  - *a\n", "spec:\n  registries: !!seq\n  - - a\n    - b\n", "\ufeffspec:\r\n  registries:\r\n  - a\r\n",
	} {
		f.Add([]byte(seed))
	}
	path := []string{"spec", "registries"}
	f.Fuzz(func(t *testing.T, text []byte) {
		var before, again map[string]any
		l := &yamlList{text: text, path: path}
		if l.check() != nil || yaml.Unmarshal(text, &before) != nil || yaml.Unmarshal(text, &again) != nil || !reflect.DeepEqual(before, again) {
			return // with a NaN in it, it is not even itself
		}
		spec, ok := before["spec"].(map[string]any)
		if !ok && before["spec"] != nil {
			return // keys that are no texts
		}
		items, _ := spec["registries"].([]any)
		if err := l.add(textNode("a new one")); err != nil {
			return // then nothing has changed
		}
		holds := func(want []any) {
			t.Helper()
			var after map[string]any
			if err := yaml.Unmarshal(l.text, &after); err != nil {
				t.Fatalf("%v in\n%s", err, l.text)
			}
			got, _ := after["spec"].(map[string]any)["registries"].([]any)
			if len(got) != len(want) || len(want) > 0 && !reflect.DeepEqual(got, want) {
				t.Fatalf("the list is %v, want %v, in\n%s", got, want, l.text)
			}
			delete(after["spec"].(map[string]any), "registries")
			rest := maps.Clone(before)
			rest["spec"] = map[string]any{}
			for k, v := range spec {
				if k != "registries" {
					rest["spec"].(map[string]any)[k] = v
				}
			}
			if !reflect.DeepEqual(after, rest) {
				t.Fatalf("the rest is %v, want %v, in\n%s", after, rest, l.text)
			}
		}
		holds(append(slices.Clone(items), "a new one"))
		switch err := l.remove(len(items)); {
		case errors.Is(err, errLayout):
		case err != nil:
			t.Fatal(err)
		default:
			holds(items)
		}
	})
}
