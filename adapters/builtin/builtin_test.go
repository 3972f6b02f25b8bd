package builtin

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/adapters"
)

// TestKinds holds every kind to what people are told about it: a name, a line of documentation, an example that is valid,
// and a section of the README.
func TestKinds(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range Kinds {
		t.Run(k.Name, func(t *testing.T) {
			if k.Name != strings.ToLower(k.Name) || k.Doc == "" || strings.ContainsAny(k.Doc, "\n") {
				t.Errorf("name %q, doc %q", k.Name, k.Doc)
			}
			if slices.ContainsFunc(Kinds[:i], func(other adapters.Kind) bool { return other.Name == k.Name }) {
				t.Error("it is there twice")
			}
			s, err := adapters.ParseSettings([]byte(k.Example))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Kinds.New(adapters.Registry{Name: "example", Kind: k.Name, Settings: s}, adapters.Options{}); err != nil {
				t.Errorf("the example: %v", err)
			}
			if s, err = adapters.ParseSettings([]byte("no such setting: 1")); err != nil {
				t.Fatal(err)
			}
			if _, err := Kinds.New(adapters.Registry{Name: "example", Kind: k.Name, Settings: s}, adapters.Options{}); !strings.Contains(err.Error(), "unknown field") {
				t.Errorf("an unknown setting: %v", err)
			}
			if !strings.Contains(string(readme), "\nkind: "+k.Name) {
				t.Errorf("README.md has no example of kind: %s", k.Name)
			}
		})
	}
}
