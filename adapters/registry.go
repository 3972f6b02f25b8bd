package adapters

import (
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Options are what each adapter gets beside its settings.
type Options struct {
	Name string       // of the registry as configured; for logs and errors
	Log  *slog.Logger // where the adapter logs what is not a Problem; nil means nowhere
}

// Logger returns Log with the registry's name, or a logger that drops everything.
func (o Options) Logger() *slog.Logger {
	if o.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Log.With("registry", o.Name)
}

// Kind is one kind of registry: what an adapter exports and what the table in builtin lists.
type Kind struct {
	Name    string // as in `kind:`, lower case: zookeeper
	Doc     string // one line on what it reads
	Example string // settings as YAML that a person can start from; it decodes and validates
	// New makes a Discoverer out of settings. decode fills a pointer to the adapter's settings struct strictly and
	// validates it, see Settings.Decode; its error is returned as it is, so that every fault reaches the person with path
	// and line. New neither dials nor spawns, nor does it read secrets.
	New func(decode func(into any) error, o Options) (Discoverer, error)
}

// Kinds is a table of kinds.
type Kinds []Kind

// Lookup returns the kind of that name.
func (k Kinds) Lookup(name string) (Kind, bool) {
	i := slices.IndexFunc(k, func(kind Kind) bool { return kind.Name == name })
	if i < 0 {
		return Kind{}, false
	}
	return k[i], true
}

// Names returns the names of the kinds, sorted.
func (k Kinds) Names() []string {
	names := make([]string, len(k))
	for i := range k {
		names[i] = k[i].Name
	}
	slices.Sort(names)
	return names
}

// New makes the Discoverer of a registry. The error is Faults with paths relative to the registry: kind, settings.servers[0].
func (k Kinds) New(r Registry, o Options) (Discoverer, error) {
	faults := r.Validate()
	kind, ok := k.Lookup(r.Kind)
	if !ok {
		if r.Kind != "" {
			faults.Add("kind", "unknown kind %q; known are %s", r.Kind, strings.Join(k.Names(), ", "))
		}
		return nil, faults
	}
	if o.Name == "" {
		o.Name = r.Name
	}
	d, err := kind.New(r.Settings.Decode, o)
	faults = append(faults, AsFaults(err).Under("settings")...)
	if len(faults) > 0 {
		return nil, faults
	}
	return d, nil
}

// Registry is one entry of the configuration: which registry to read, and how.
//
//	name: zk-shanghai
//	kind: zookeeper
//	settings:
//	  servers: [10.0.0.1:2181, 10.0.0.2:2181]
type Registry struct {
	Name     string   `json:"name" yaml:"name"` // unique; it appears in origins, problems and file names
	Kind     string   `json:"kind" yaml:"kind"`
	Settings Settings `json:"settings" yaml:"settings"`
}

// UnmarshalYAML reads a Registry strictly; the settings stay undecoded until Kinds.New.
func (r *Registry) UnmarshalYAML(n *yaml.Node) error {
	type plain Registry
	return SettingsOf(n).Decode((*plain)(r))
}

// Validate checks what can be checked without knowing the kind.
func (r Registry) Validate() Faults {
	var f Faults
	if !validName(r.Name) {
		f.Add("name", "%q is not a name: 1 to 63 lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit", clip(r.Name))
	}
	if r.Kind == "" {
		f.Add("kind", "is missing")
	}
	return f
}

// validName holds a registry's name to what file names, label values and tables on a terminal have in common.
func validName(s string) bool {
	if len(s) < 1 || len(s) > 63 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !alnum && (c != '-' && c != '.' || i == 0 || i == len(s)-1) {
			return false
		}
	}
	return true
}

// Check builds the Discoverer of every registry, without starting it. The error is Faults with paths relative to the
// list: [0].name, [1].settings.servers[0].
func Check(kinds Kinds, registries []Registry) error {
	_, err := build(kinds, registries, slog.New(slog.NewTextHandler(io.Discard, nil)))
	return err
}

func build(kinds Kinds, registries []Registry, log *slog.Logger) ([]Discoverer, error) {
	var faults Faults
	out := make([]Discoverer, len(registries))
	seen := map[string]int{}
	for i, r := range registries {
		at := fmt.Sprintf("[%d]", i)
		if first, ok := seen[r.Name]; ok {
			faults.Add(at+".name", "%q is also the name of [%d]", r.Name, first)
		}
		seen[r.Name] = i
		d, err := kinds.New(r, Options{Log: log})
		faults = append(faults, AsFaults(err).Under(at)...)
		out[i] = d
	}
	if len(faults) > 0 {
		return nil, faults
	}
	return out, nil
}
