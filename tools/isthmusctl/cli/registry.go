package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/builtin"
	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/config"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
)

// envConfig names the configuration file where --config does not.
const envConfig = "ISTHMUS_CONFIG"

// registriesPath leads to the registries in a configuration file.
var registriesPath = []string{"spec", "registries"}

func newRegistry(s *Streams) *cobra.Command {
	cmd := &cobra.Command{Use: "registry", Short: "Work on the registries of a configuration file", Args: cobra.NoArgs,
		Long: `registry works on the list of registries in mcp-server's configuration file (--config, or $` + envConfig + `). The file is edited in
place: comments and the order of everything else stay. A running mcp-server notices, and takes the change over.

The kinds of registries, each with settings to start from:

` + kindsHelp(),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(newRegistryList(s), newRegistryAdd(s), newRegistryRemove(s), newRegistryCheck(s))
	return cmd
}

// kindsHelp lists the kinds of registries with their examples.
func kindsHelp() string {
	var b strings.Builder
	for _, name := range builtin.Kinds.Names() {
		kind, _ := builtin.Kinds.Lookup(name)
		fmt.Fprintf(&b, "  %s: %s\n", kind.Name, kind.Doc)
		for line := range strings.Lines(strings.TrimRight(kind.Example, "\n") + "\n") {
			b.WriteString("      " + line)
		}
	}
	return b.String()
}

// configFile is the file that a command of registry works on.
type configFile struct{ path string }

func addConfigFlag(cmd *cobra.Command) *configFile {
	f := new(configFile)
	cmd.Flags().StringVar(&f.path, "config", "", "mcp-server's configuration file (default $"+envConfig+")")
	return f
}

// name returns the file, which must be named somewhere.
func (f *configFile) name() (string, error) {
	if name := cmp.Or(f.path, os.Getenv(envConfig)); name != "" {
		return name, nil
	}
	return "", usagef("name the configuration file with --config or $%s", envConfig)
}

// load reads the file as mcp-server does.
func (f *configFile) load() (*config.Config, error) {
	name, err := f.name()
	if err != nil {
		return nil, err
	}
	c, err := config.Load(name, builtin.Kinds)
	return c, configError(err)
}

// configError gives an error of package config its exit code.
func configError(err error) error {
	if err == nil {
		return nil
	}
	if wrong, ok := errors.AsType[*config.Error](err); ok {
		return badf("%w", wrong)
	}
	return usagef("%w", err)
}

// edit changes the list of registries. What comes of it must be a valid configuration, or the file stays as it is.
func (f *configFile) edit(change func(l *yamlList) error) error {
	name, err := f.name()
	if err != nil {
		return err
	}
	// The file that a link leads to is replaced, not the link.
	if name, err = filepath.EvalSymlinks(name); err != nil {
		return usagef("%w", err)
	}
	before, err := readFile(name)
	if err != nil {
		return usagef("%w", err)
	}
	if err := (&yamlList{text: before, path: registriesPath}).check(); err != nil {
		return badf("%s: %w", name, err)
	}
	l := &yamlList{text: before, path: registriesPath}
	if err := change(l); err != nil {
		return err
	}
	if _, err := config.Parse(l.text, builtin.Kinds); err != nil {
		faults := err
		if _, was := config.Parse(before, builtin.Kinds); was != nil {
			return badf("the file has faults, and is not changed:\n%w", &config.Error{File: name, Faults: adapters.AsFaults(was)})
		}
		return badf("the file would have faults, and is not changed:\n%w", &config.Error{File: name, Faults: withoutLines(faults)})
	}
	if err := replaceFile(name, before, l.text); err != nil {
		return usagef("%w", err)
	}
	return nil
}

// withoutLines returns the faults of a text that nobody sees.
func withoutLines(err error) adapters.Faults {
	faults := slices.Clone(adapters.AsFaults(err))
	for i := range faults {
		faults[i].Line = 0
	}
	return faults
}

// replaceFile writes a file so that at any moment either the old or the new one is there. It fails where the file does not hold
// what it held before.
func replaceFile(name string, before, after []byte) (err error) {
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			temp.Close()
			os.Remove(temp.Name())
		}
	}()
	if _, err := temp.Write(after); err != nil {
		return err
	}
	if err := temp.Chmod(info.Mode().Perm()); err != nil {
		return err
	}
	if err := temp.Sync(); err != nil {
		return err
	}
	if err := temp.Close(); err != nil {
		return err
	}
	if now, err := readFile(name); err != nil || !bytes.Equal(now, before) {
		return fmt.Errorf("%s was changed by somebody else at the same time; it is as they left it", name)
	}
	return os.Rename(temp.Name(), name)
}

func newRegistryList(s *Streams) *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List the registries of a configuration file", Args: cobra.NoArgs}
	output, file := outputFlag(cmd), addConfigFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		c, err := file.load()
		if err != nil {
			return err
		}
		registries := append([]adapters.Registry{}, c.Spec.Registries...)
		var failed error
		if err := s.print(*output, registries, func() *table {
			t := &table{head: []string{"REGISTRY", "KIND", "SETTINGS"}, empty: "no registries are configured", wrap: true}
			for _, r := range registries {
				settings, err := r.Settings.MarshalJSON()
				failed = cmp.Or(failed, err)
				t.add(text(r.Name), text(r.Kind), text(flat(settings)))
			}
			return t
		}); err != nil {
			return err
		}
		return failed
	}
	return cmd
}

func newRegistryAdd(s *Streams) *cobra.Command {
	var kind string
	var settings []string
	cmd := &cobra.Command{
		Use:   "add NAME --kind KIND [--set FIELD=VALUE]...",
		Short: "Add a registry to a configuration file",
		Long: `add appends a registry to the configuration file, which must be valid with it. VALUE is YAML: a list is [a, b], or the same
--set once more; FIELD may lead into a mapping: tls.enabled. See isthmusctl registry -h for the kinds and their settings.

Exit code: 1 if there is such a registry already or the file has faults, 2 if the settings are wrong; the file is not changed then.`,
		Example: `  isthmusctl registry add zk --config isthmus.yaml --kind zookeeper --set 'servers=[10.0.0.1:2181, 10.0.0.2:2181]'
  isthmusctl registry add by-hand --config isthmus.yaml --kind file --set path=/etc/isthmus/services`,
		Args: cobra.ExactArgs(1),
	}
	file := addConfigFlag(cmd)
	cmd.Flags().StringVar(&kind, "kind", "", "kind of the registry: "+strings.Join(builtin.Kinds.Names(), ", "))
	cmd.Flags().StringArrayVar(&settings, "set", nil, "a setting, as FIELD=VALUE")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if kind == "" {
			return usagef("--kind is needed: one of %s", strings.Join(builtin.Kinds.Names(), ", "))
		}
		item, err := registryNode(args[0], kind, settings)
		if err != nil {
			return err
		}
		// What is wrong with the registry itself is said in the words of the command line.
		var r adapters.Registry
		err = r.UnmarshalYAML(item)
		if err == nil {
			_, err = builtin.Kinds.New(r, adapters.Options{})
		}
		if err != nil {
			return usagef("%w", withoutLines(err))
		}
		if err := file.edit(func(l *yamlList) error {
			if i, err := l.named(args[0]); err != nil {
				return badf("%w", err)
			} else if i >= 0 {
				return badf("there is a registry %q already", args[0])
			}
			return l.add(item)
		}); err != nil {
			return err
		}
		name, _ := file.name()
		_, err = fmt.Fprintf(s.Out, "%s is added; try it: isthmusctl registry check %s --config %s\n", args[0], args[0], name)
		return err
	}
	return cmd
}

// registryNode makes the entry of a registry.
func registryNode(name, kind string, settings []string) (*yaml.Node, error) {
	root := &yaml.Node{Kind: yaml.MappingNode}
	for _, setting := range settings {
		field, value, ok := strings.Cut(setting, "=")
		steps := strings.Split(field, ".")
		if !ok || slices.Contains(steps, "") {
			return nil, usagef("--set %q is not FIELD=VALUE", setting)
		}
		var doc yaml.Node
		if err := yaml.Unmarshal([]byte(value), &doc); err != nil {
			return nil, usagef("--set %s: %q is not YAML: %s", field, value, strings.TrimPrefix(err.Error(), "yaml: "))
		}
		v := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Style: yaml.DoubleQuotedStyle} // nothing behind the = is the empty text
		if len(doc.Content) > 0 {
			v = doc.Content[0]
		}
		at := root
		for _, step := range steps[:len(steps)-1] {
			next := mappingValue(at, step)
			if next == nil {
				next = &yaml.Node{Kind: yaml.MappingNode}
				put(at, step, next)
			}
			if next.Kind != yaml.MappingNode {
				return nil, usagef("--set %s: %s has a value already", field, step)
			}
			at = next
		}
		last := steps[len(steps)-1]
		have := mappingValue(at, last)
		switch {
		case have == nil:
			put(at, last, v)
		case have.Kind == yaml.MappingNode:
			return nil, usagef("--set %s is there twice", field)
		case have.Kind == yaml.SequenceNode:
			have.Content = append(have.Content, items(v)...)
		default:
			first := *have
			*have = yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle, Content: append([]*yaml.Node{&first}, items(v)...)}
		}
	}
	item := &yaml.Node{Kind: yaml.MappingNode}
	put(item, "name", textNode(name))
	put(item, "kind", textNode(kind))
	if len(root.Content) > 0 {
		put(item, "settings", root)
	}
	return item, nil
}

// items returns what a value adds to a list.
func items(v *yaml.Node) []*yaml.Node {
	if v.Kind == yaml.SequenceNode {
		return v.Content
	}
	return []*yaml.Node{v}
}

func put(mapping *yaml.Node, key string, value *yaml.Node) {
	mapping.Content = append(mapping.Content, textNode(key), value)
}

// textNode returns a scalar that is a string, quoted where it would be read as something else.
func textNode(s string) *yaml.Node {
	n := new(yaml.Node)
	n.SetString(s)
	return n
}

func newRegistryRemove(s *Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove a registry from a configuration file",
		Long: `remove takes a registry out of the configuration file, with the comment directly above it. A running mcp-server forgets
everything that it holds of it: its services leave the mesh, unless another registry holds them too.

Exit code: 1 if there is no such registry, or the file has faults; then it is not changed.`,
		Args: cobra.ExactArgs(1),
	}
	file := addConfigFlag(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if err := file.edit(func(l *yamlList) error {
			i, err := l.named(args[0])
			if err != nil {
				return badf("%w", err)
			}
			if i < 0 {
				return noRegistry(args[0], l.names())
			}
			return l.remove(i)
		}); err != nil {
			return err
		}
		_, err := fmt.Fprintf(s.Out, "%s is removed\n", args[0])
		return err
	}
	return cmd
}

// noRegistry says that there is no such registry, and which there are.
func noRegistry(name string, names []string) error {
	if len(names) == 0 {
		return badf("there is no registry %q, nor any other", name)
	}
	return badf("there is no registry %q; there are %s", name, strings.Join(names, ", "))
}

// checkedRegistry is what a registry holds.
type checkedRegistry struct {
	Name     string          `json:"name"`
	Kind     string          `json:"kind"`
	Complete bool            `json:"complete"`        // it has said everything
	Error    string          `json:"error,omitempty"` // why not
	Seconds  float64         `json:"seconds"`         // that it took
	Services []model.Service `json:"services"`
	Problems []model.Problem `json:"problems"`
}

func newRegistryCheck(s *Streams) *cobra.Command {
	var within time.Duration
	var all bool
	cmd := &cobra.Command{
		Use:   "check [NAME]",
		Short: "Try the registries of a configuration file, and show what they hold",
		Long: `check reads a registry, or all of the configuration file, as mcp-server would, and shows what it would import: services with
the numbers of their providers and consumers, and problems with the data. Nothing is written anywhere.

Exit code: 1 if data are faulty (a problem is an error) or the configuration is; 3 if a registry has not said everything in time.`,
		Args: cobra.MaximumNArgs(1),
	}
	output, file := outputFlag(cmd), addConfigFlag(cmd)
	cmd.Flags().DurationVar(&within, "timeout", 10*time.Second, "how long a registry may take")
	cmd.Flags().BoolVar(&all, "all", false, fmt.Sprintf("show all services and problems, not %d of each", shortList))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if within <= 0 {
			return usagef("--timeout must be more than 0")
		}
		c, err := file.load()
		if err != nil {
			return err
		}
		registries := c.Spec.Registries
		if len(args) == 1 {
			i := slices.IndexFunc(registries, func(r adapters.Registry) bool { return r.Name == args[0] })
			if i < 0 {
				var names []string
				for _, r := range registries {
					names = append(names, r.Name)
				}
				return noRegistry(args[0], names)
			}
			registries = registries[i : i+1]
		}
		results := make([]checkedRegistry, len(registries))
		done := make(chan struct{})
		progress := s.while(fmt.Sprintf("reading %s, up to %s", count(len(registries), "registry"), within))
		for i, r := range registries {
			go func() {
				results[i] = checkRegistry(cmd.Context(), r, within)
				done <- struct{}{}
			}()
		}
		for range registries {
			<-done
		}
		progress()
		if *output != formatTable {
			if err := s.print(*output, results, nil); err != nil {
				return err
			}
		} else if err := s.checkedRegistries(results, all); err != nil {
			return err
		}
		var unheard, faulty bool
		for i := range results {
			unheard = unheard || !results[i].Complete
			faulty = faulty || slices.ContainsFunc(results[i].Problems, func(p model.Problem) bool { return p.Severity == model.SeverityError })
		}
		switch {
		case unheard:
			return &codeError{ExitUnreachable, nil} // the output says which
		case faulty:
			return errQuiet
		}
		return nil
	}
	return cmd
}

func checkRegistry(ctx context.Context, r adapters.Registry, within time.Duration) checkedRegistry {
	limited, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("after %s", within))
	defer cancel()
	began := time.Now()
	snapshot, err := adapters.Try(limited, builtin.Kinds, r, slog.New(slog.DiscardHandler))
	out := checkedRegistry{Name: r.Name, Kind: r.Kind, Complete: err == nil, Seconds: time.Since(began).Seconds(), Services: []model.Service{}, Problems: []model.Problem{}}
	if err != nil {
		out.Error = strings.TrimPrefix(err.Error(), "adapters: registry "+r.Name+": ")
	}
	if snapshot != nil {
		out.Services = append(out.Services, snapshot.Services...)
		out.Problems = append(out.Problems, snapshot.Problems...)
	}
	return out
}

// shortList is how many services and problems check shows where it is not told to show all.
const shortList = 20

// checkedRegistries shows to people what registries hold.
func (s *Streams) checkedRegistries(results []checkedRegistry, all bool) error {
	if len(results) == 0 {
		_, err := fmt.Fprintln(s.Out, "no registries are configured")
		return err
	}
	for i := range results {
		r := &results[i]
		if i > 0 {
			fmt.Fprintln(s.Out)
		}
		endpoints, consumers := 0, 0
		for j := range r.Services {
			endpoints += len(r.Services[j].Endpoints)
			consumers += len(r.Services[j].Consumers)
		}
		holds := fmt.Sprintf("%s, %s, %s, %s", count(len(r.Services), "service"), count(endpoints, "provider"), count(consumers, "consumer"), count(len(r.Problems), "problem"))
		title := s.paint(colourBold, fmt.Sprintf("%s (%s)", r.Name, r.Kind))
		if r.Complete {
			fmt.Fprintf(s.Out, "%s: %s in %.1f s: %s\n", title, s.paint(colourGreen, "read"), r.Seconds, holds)
		} else {
			fmt.Fprintf(s.Out, "%s: %s: %s\n", title, s.paint(colourRed, "not heard"), printable(r.Error))
			if len(r.Services)+len(r.Problems) > 0 {
				fmt.Fprintf(s.Out, "up to then: %s\n", holds)
			}
		}
		problems := make([]api.Problem, len(r.Problems))
		for j, p := range r.Problems {
			problems[j] = api.Problem{Problem: p}
		}
		for _, t := range []*table{serviceTable(r.Services), problemTable(problems, "")} {
			if len(t.rows) == 0 {
				continue
			}
			hidden := 0
			if !all && len(t.rows) > shortList {
				hidden = len(t.rows) - shortList
				t.rows = t.rows[:shortList]
			}
			fmt.Fprintln(s.Out)
			if err := s.indented(t); err != nil {
				return err
			}
			if hidden > 0 {
				fmt.Fprintf(s.Out, "  … and %d more; --all shows them\n", hidden)
			}
		}
	}
	return nil
}

// serviceTable lists services as a registry holds them.
func serviceTable(services []model.Service) *table {
	t := &table{head: []string{"SERVICE", "PROTOCOLS", "APPLICATIONS", "PROVIDERS", "CONSUMERS"}, spare: []int{2, 1}}
	for i := range services {
		svc := &services[i]
		var protocols, applications []string
		for _, e := range svc.Endpoints {
			protocols = append(protocols, string(e.Protocol))
			if e.Application != "" {
				applications = append(applications, e.Application)
			}
		}
		t.add(text(svc.Key.String()), text(list(protocols)), text(list(applications)), number(len(svc.Endpoints)), number(len(svc.Consumers)))
	}
	return t
}
