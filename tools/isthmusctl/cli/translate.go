package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/builtin"
	"github.com/isthmus-mesh/isthmus/adapters/file"
	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/app"
	"github.com/isthmus-mesh/isthmus/mcp-server/config"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
)

func newTranslate(s *Streams) *cobra.Command {
	var files []string
	var within time.Duration
	cmd := &cobra.Command{
		Use:   "translate -f FILE [FILE]...",
		Short: "Show what istiod would get of services, registries and rules",
		Long: `translate prints the resources that mcp-server would serve to istiod, made by the same functions. It needs no mcp-server. The
files say what they are (- is standard input):

  a list of services          (kind ServiceList)
  the saved word of a registry (registry-NAME.state.jsonl in mcp-server's spec.state.dir)
  governance rules            (kind ThrottleRule, ...)
  a configuration of mcp-server (kind MCPServer), at most one: how services are named and addressed, the filter, and its rules

With services or saved words in the files, the configuration's registries are left alone. Without, they are read, as mcp-server would
read them at its start; where one cannot be heard in time its saved word holds, if there is one.

Problems go to standard error. Exit code: 1 if one of them is an error, or a file is faulty; 2 if a file cannot be read; 3 if a registry
cannot be heard and has no saved word: then mcp-server would serve nothing.`,
		Example: `  isthmusctl translate -f services.yaml
  isthmusctl translate -f isthmus.yaml -f services.yaml -o table`,
		Args: cobra.ArbitraryArgs,
	}
	output := outputFlagOf(cmd, formatYAML)
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "a file to read; may be given several times")
	cmd.Flags().DurationVar(&within, "timeout", 10*time.Second, "how long registries may take")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		files := append(slices.Clone(files), args...)
		if len(files) == 0 {
			return usagef("name a file with -f")
		}
		if within <= 0 {
			return usagef("--timeout must be more than 0")
		}
		in, err := readTranslation(s.In, files)
		if err != nil {
			return err
		}
		defer os.RemoveAll(in.dir)
		snapshot, err := in.snapshot(cmd.Context(), s, within)
		if err != nil {
			return err
		}
		r := app.Render(snapshot, in.rules(), &in.config.Spec)
		if err := s.resources(*output, r.Set); err != nil {
			return err
		}
		bad := false
		for _, p := range r.Problems {
			bad = bad || p.Severity == model.SeverityError
			fmt.Fprintf(s.Err, "%s: %s: %s (%s)\n", p.Severity, printable(p.Place), printable(p.Message), printable(p.Code))
		}
		if bad {
			return errQuiet
		}
		return nil
	}
	return cmd
}

// resources prints a set.
func (s *Streams) resources(f format, set resource.Set) error {
	var objects []map[string]any
	t := &table{head: []string{"KIND", "NAMESPACE", "NAME"}, empty: "no resources"}
	for e := range set.All() {
		object, err := e.Object()
		if err != nil {
			return err
		}
		objects = append(objects, object)
		t.add(text(fmt.Sprint(object["kind"])), text(e.Namespace), text(e.Name))
	}
	switch f {
	case formatTable:
		return t.write(s)
	case formatJSON:
		// The form that kubectl reads and writes.
		return s.print(f, map[string]any{"apiVersion": "v1", "kind": "List", "items": append([]map[string]any{}, objects...)}, nil)
	}
	for i, object := range objects {
		b, err := sigsyaml.Marshal(object)
		if err != nil {
			return err
		}
		if i > 0 {
			b = append([]byte("---\n"), b...)
		}
		if _, err := s.Out.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// translation is what translate works on.
type translation struct {
	config     *config.Config
	named      bool                // config is of a file
	registries []adapters.Registry // of lists of services and saved words
	saved      map[string]bool     // those that are saved words
	kinds      adapters.Kinds
	ruleFiles  []governance.File
	dir        string // temporary: saved words, and standard input
}

// readTranslation reads the files. Whoever takes the translation removes its folder.
func readTranslation(in io.Reader, files []string) (_ *translation, err error) {
	t := &translation{saved: map[string]bool{}}
	if t.dir, err = os.MkdirTemp("", "isthmusctl"); err != nil {
		return nil, unreachablef("%w", err)
	}
	defer func() {
		if err != nil {
			os.RemoveAll(t.dir)
		}
	}()
	t.kinds = t.savedOr(builtin.Kinds)
	if t.config, err = config.Parse([]byte("apiVersion: "+config.APIVersion+"\nkind: "+config.Kind+"\n"), builtin.Kinds); err != nil {
		return nil, err
	}
	for _, name := range files {
		content, err := readInput(in, []string{name})
		if err != nil {
			return nil, err
		}
		if err := t.take(name, content); err != nil {
			return nil, err
		}
	}
	if err := adapters.Check(t.kinds, t.registries); err != nil {
		return nil, badf("%w", err)
	}
	return t, nil
}

// stateHeader is the first line of a saved word, as far as it matters here (adapters/store.go).
type stateHeader struct {
	Format   string `json:"format"`
	Registry string `json:"registry"`
	Kind     string `json:"kind"`
}

// take takes over one file.
func (t *translation) take(name string, content []byte) error {
	line, _, _ := bytes.Cut(content, []byte("\n"))
	var head stateHeader
	if json.Unmarshal(line, &head) == nil && head.Format == "isthmus/registry-state" {
		r := adapters.Registry{Name: head.Registry, Kind: head.Kind}
		if faults := r.Validate(); faults != nil || t.saved[r.Name] {
			return badf("%s: it is no saved word of a registry, or there twice", name)
		}
		if _, known := t.kinds.Lookup(r.Kind); !known {
			t.kinds = append(t.kinds, t.savedOr(adapters.Kinds{{Name: r.Kind}})...)
		}
		t.saved[r.Name] = true
		t.registries = append(t.registries, r)
		return t.save(stateFile(r.Name), content)
	}
	kinds, err := kindsOf(content)
	if err != nil {
		return badf("%w", &config.Error{File: name, Faults: adapters.AsFaults(err)})
	}
	switch {
	case len(kinds) == 0:
		return badf("%s: the file is empty", name)
	case kinds[0] == file.ListKind:
		if _, err := file.Parse(content); err != nil {
			return badf("%w", &config.Error{File: name, Faults: adapters.AsFaults(err)})
		}
		return t.takeServices(name, content)
	case kinds[0] == config.Kind:
		if t.named {
			return usagef("%s: there is a configuration already", name)
		}
		t.named = true
		if name == "-" {
			t.config, err = config.Parse(content, builtin.Kinds)
			if err != nil {
				return badf("%w", &config.Error{File: name, Faults: adapters.AsFaults(err)})
			}
			return nil
		}
		t.config, err = config.Load(name, builtin.Kinds)
		return configError(err)
	case slices.Contains(governance.Kinds(), kinds[0]):
		if _, err := governance.Parse(content); err != nil {
			return badf("%w", &config.Error{File: name, Faults: adapters.AsFaults(err)})
		}
		t.ruleFiles = append(t.ruleFiles, governance.File{Name: name, Text: content})
		return nil
	}
	return badf("%s: kind %q is none of %s, %s, %s, nor is the file the saved word of a registry", name, kinds[0], file.ListKind, config.Kind, strings.Join(governance.Kinds(), ", "))
}

// kindsOf returns what the documents of a text say that they are.
func kindsOf(content []byte) ([]string, error) {
	documents, err := adapters.ParseDocuments(content)
	if err != nil {
		return nil, err
	}
	var kinds []string
	for _, d := range documents {
		b, err := d.MarshalJSON()
		var said struct {
			Kind string `json:"kind"`
		}
		if err != nil || json.Unmarshal(b, &said) != nil {
			return nil, adapters.Faults{{Line: d.Line(), Message: "must be a mapping with apiVersion and kind"}}
		}
		kinds = append(kinds, said.Kind)
	}
	return kinds, nil
}

// takeServices makes a list of services a registry of kind file, named for the file.
func (t *translation) takeServices(name string, content []byte) error {
	base := "services"
	path := name
	if name == "-" {
		path = filepath.Join(t.dir, "services.yaml")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return unreachablef("%w", err)
		}
	} else {
		base = registryName(strings.TrimSuffix(filepath.Base(name), filepath.Ext(name)))
	}
	unique := base
	for n := 2; slices.ContainsFunc(t.registries, func(r adapters.Registry) bool { return r.Name == unique }); n++ {
		unique = fmt.Sprintf("%s-%d", base, n)
	}
	var settings yaml.Node
	if err := settings.Encode(file.Settings{Path: path}); err != nil {
		return err
	}
	t.registries = append(t.registries, adapters.Registry{Name: unique, Kind: file.Kind.Name, Settings: adapters.SettingsOf(&settings)})
	return nil
}

// registryName makes a name that a registry may have of a file's.
func registryName(name string) string {
	name = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-', r == '.':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '-'
	}, name)
	return cmp.Or(strings.Trim(name[:min(len(name), 50)], "-."), "services")
}

// stateFile returns the name of a registry's saved word (adapters/store.go).
func stateFile(registry string) string { return "registry-" + registry + ".state.jsonl" }

func (t *translation) save(name string, content []byte) error {
	if err := os.WriteFile(filepath.Join(t.dir, name), content, 0o600); err != nil {
		return unreachablef("%w", err)
	}
	return nil
}

// savedOr returns kinds that read nothing for registries whose saved word is all there is of them.
func (t *translation) savedOr(kinds adapters.Kinds) adapters.Kinds {
	kinds = slices.Clone(kinds)
	for i := range kinds {
		live := kinds[i].New
		kinds[i].New = func(decode func(any) error, o adapters.Options) (adapters.Discoverer, error) {
			if t.saved[o.Name] || live == nil {
				return silent{}, nil
			}
			return live(decode, o)
		}
	}
	return kinds
}

// silent is a registry that says nothing: what was saved of it holds.
type silent struct{}

// Run implements adapters.Discoverer.
func (silent) Run(ctx context.Context, _ chan<- adapters.Update) error {
	<-ctx.Done()
	return nil
}

// rules returns those of the files, and those that the configuration points to.
func (t *translation) rules() governance.Rules {
	if len(t.ruleFiles) == 0 {
		return app.Rules(&t.config.Spec)
	}
	return governance.Rules{}.Update(t.ruleFiles)
}

// snapshot returns what the registries hold.
func (t *translation) snapshot(ctx context.Context, s *Streams, within time.Duration) (*model.Snapshot, error) {
	registries := t.registries
	if len(registries) == 0 {
		registries = t.config.Spec.Registries
		for _, r := range registries {
			if dir := t.config.Spec.State.Dir; dir != "" {
				saved, err := os.ReadFile(filepath.Join(dir, stateFile(r.Name)))
				if err == nil {
					err = t.save(stateFile(r.Name), saved)
				}
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					return nil, usagef("the saved word of %s: %w", r.Name, err)
				}
			}
		}
	}
	if len(registries) == 0 {
		return &model.Snapshot{Complete: true}, nil
	}
	progress := s.while(fmt.Sprintf("reading %s, up to %s", count(len(registries), "registry"), within))
	snapshot, err := discover(ctx, t.kinds, registries, t.dir, t.saved, within)
	progress()
	if err != nil {
		return nil, badf("%w", err)
	}
	var unheard []string
	for _, src := range snapshot.Sources {
		switch {
		case src.State == model.StateConnecting && t.saved[src.Name]:
			for _, p := range snapshot.Problems {
				if p.Registry == src.Name {
					return nil, badf("the saved word of %s: %s", src.Name, p.Message)
				}
			}
			return nil, badf("the saved word of %s cannot be read", src.Name)
		case src.State == model.StateConnecting:
			unheard = append(unheard, fmt.Sprintf("%s (%s)", src.Name, cmp.Or(src.Error, "it has not said everything yet")))
		case src.State == model.StateStale && !t.saved[src.Name]:
			fmt.Fprintf(s.Err, "isthmusctl: registry %s cannot be heard (%s); its word of %s holds\n", src.Name, printable(cmp.Or(src.Error, "it has said nothing yet")), src.LastWord.Format(time.RFC3339))
		}
	}
	if len(unheard) > 0 {
		return nil, unreachablef("not heard within %s: %s; mcp-server would serve nothing before", within, strings.Join(unheard, ", "))
	}
	return snapshot, nil
}
