package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/client"
)

// serviceList is the answer of services: all of the API's pages.
type serviceList struct {
	Items []api.Service `json:"items"`
}

func newServices(s *Streams, server *serverFlags) *cobra.Command {
	var filter client.ServiceFilter
	var protocol string
	cmd := &cobra.Command{
		Use:   "services",
		Short: "List the services of all registries",
		Long: `services lists what a running mcp-server knows: the services of all registries, with the numbers of their providers and
consumers. Where the mesh does not call all providers of a service, "1/2" says how many of how many it does. LIFTED is on how many of its
consumers' sidecars, of those whose metrics mcp-server reads, its calls are lifted, or what is done with them instead.`,
		Example: `  isthmusctl services -q greet
  isthmusctl services --registry zk --protocol dubbo -o json`,
		Args: cobra.NoArgs,
	}
	output := outputFlag(cmd)
	server.addTimeout(cmd)
	cmd.Flags().StringVarP(&filter.Query, "query", "q", "", "only those with this in their id, a host or an application")
	cmd.Flags().StringVar(&filter.Framework, "framework", "", "only those of this framework: dubbo, sofa, spring")
	cmd.Flags().StringVar(&filter.Registry, "registry", "", "only those that this registry holds")
	cmd.Flags().StringVar(&protocol, "protocol", "", "only those with a provider that speaks this")
	cmd.Flags().StringVar(&filter.Application, "application", "", "only those that this application provides")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		filter.Protocol = model.Protocol(protocol)
		items, err := ask(cmd.Context(), server, func(ctx context.Context, c *client.Client) ([]api.Service, error) {
			return c.Services(ctx, filter)
		})
		if err != nil {
			return err
		}
		empty := "no services: see isthmusctl sources"
		if filter != (client.ServiceFilter{}) {
			empty = "no services that fit"
		}
		return s.print(*output, serviceList{items}, func() *table { return apiServiceTable(items, empty) })
	}
	return cmd
}

func apiServiceTable(items []api.Service, empty string) *table {
	t := &table{head: []string{"SERVICE", "PROTOCOLS", "APPLICATIONS", "PROVIDERS", "CONSUMERS", "LIFTED", "REGISTRIES", "HOST"}, empty: empty, spare: []int{7, 2, 6, 1}}
	for i := range items {
		svc := &items[i]
		protocols := make([]string, len(svc.Protocols))
		for j, p := range svc.Protocols {
			protocols[j] = string(p)
		}
		host := ""
		if len(svc.Hosts) > 0 {
			host = svc.Hosts[0].Host
		}
		t.add(text(svc.ID), text(list(protocols)), text(list(slices.Clone(svc.Applications))), providersCell(svc.Providers, svc.Active),
			number(svc.Consumers), liftCell(svc.Lift), text(list(slices.Clone(svc.Registries))), text(host))
	}
	return t
}

// providersCell shows how many providers there are, and how many of them the mesh calls where that is not all.
func providersCell(all, active int) cell {
	switch {
	case active == all && all > 0:
		return number(all)
	case active == 0:
		return cell{text: fmt.Sprintf("0/%d", all), colour: colourRed, right: true}
	}
	return cell{text: fmt.Sprintf("%d/%d", active, all), colour: colourYellow, right: true}
}

func newService(s *Streams, server *serverFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "service NAME",
		Short: "Show one service with its providers and consumers",
		Long: `service shows everything that mcp-server knows of one service. NAME is an id as services lists it, a host or a virtual address
in the mesh, or as much of the id as says which service is meant: the interface alone, if there is one version of it.

Exit code: 1 if there is no such service, or NAME may be several.`,
		Example: `  isthmusctl service demo.GreetService
  isthmusctl service dubbo/demo.GreetService:1.0.0:g1 -o json`,
		Args: cobra.ExactArgs(1),
	}
	output := outputFlag(cmd)
	server.addTimeout(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if args[0] == "" {
			return usagef("NAME is empty")
		}
		detail, err := ask(cmd.Context(), server, func(ctx context.Context, c *client.Client) (*api.ServiceDetail, error) {
			d, err := c.Service(ctx, args[0])
			if client.IsNotFound(err) {
				if all, failed := c.Services(ctx, client.ServiceFilter{}); failed == nil {
					if near := nearest(args[0], all); len(near) > 0 {
						return nil, badf("there is no service %q; did you mean %s?", args[0], strings.Join(near, " or "))
					}
				}
			}
			return d, err
		})
		if err != nil {
			return err
		}
		if *output != formatTable {
			return s.print(*output, detail, nil)
		}
		return s.service(detail)
	}
	return cmd
}

// service shows a service to people.
func (s *Streams) service(d *api.ServiceDetail) error {
	fmt.Fprintln(s.Out, s.paint(colourBold, printable(d.ID)))
	var hosts, protocols []string
	for _, h := range d.Hosts {
		line := fmt.Sprintf("%s:%d", h.Host, h.Port)
		if h.Address != "" {
			line += fmt.Sprintf(" (%s)", h.Address)
		}
		hosts = append(hosts, line)
	}
	if len(hosts) == 0 {
		hosts = []string{"not in the mesh"}
	}
	for _, p := range d.Protocols {
		protocols = append(protocols, string(p))
	}
	var lifted []string
	if d.Lift != nil {
		lifted = []string{liftLine(d.Lift)}
	}
	for _, f := range []struct {
		name   string
		values []string
	}{
		{"Host", hosts}, {"Protocols", protocols}, {"Applications", d.Applications}, {"Registries", d.Registries}, {"Methods", d.Methods},
		{"Metadata", pairs(d.Metadata)}, {"Lifted", lifted},
	} {
		if len(f.values) == 0 {
			continue
		}
		lines := []string{strings.Join(f.values, ", ")}
		if width := s.width(); width > fieldIndent+minWrap {
			lines = wrapped(lines[0], width-fieldIndent)
		}
		for i, line := range lines {
			name := ""
			if i == 0 {
				name = f.name + ":"
			}
			fmt.Fprintf(s.Out, "  %-*s%s\n", fieldIndent-2, name, printable(line))
		}
	}
	active := ""
	if d.Active != d.Providers {
		active = fmt.Sprintf(", of which the mesh calls %d", d.Active)
	}
	fmt.Fprintf(s.Out, "\n%s%s\n", s.paint(colourBold, count(len(d.ProviderList), "provider")), active)
	if err := s.indented(providerTable(d.ProviderList)); err != nil {
		return err
	}
	fmt.Fprintf(s.Out, "\n%s\n", s.paint(colourBold, count(len(d.ConsumerList), "consumer")))
	if err := s.indented(consumerTable(d.ConsumerList)); err != nil || d.Lift == nil || len(d.Lift.Sidecars) == 0 {
		return err
	}
	fmt.Fprintf(s.Out, "\n%s\n", s.paint(colourBold, count(len(d.Lift.Sidecars), "sidecar")+" of its consumers"))
	return s.indented(liftTable(d.Lift))
}

// fieldIndent is where the values of a service's fields begin.
const fieldIndent = 16

// indented writes a table below a heading; one without rows says nothing, as the heading does.
func (s *Streams) indented(t *table) error {
	if len(t.rows) == 0 {
		return nil
	}
	inner := *s
	out := &indenter{w: s.Out, fresh: true}
	inner.Out = out
	if s.Size != nil {
		inner.Size = func() (columns, lines int) {
			columns, lines = s.Size()
			return max(columns-2, 1), lines
		}
	}
	return t.write(&inner)
}

// indenter sets two blanks before each line.
type indenter struct {
	w     io.Writer
	fresh bool
}

// Write implements io.Writer.
func (i *indenter) Write(b []byte) (int, error) {
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		if i.fresh {
			out.WriteString("  ")
		}
		out.WriteString(line)
		i.fresh = strings.HasSuffix(line, "\n")
	}
	if _, err := io.WriteString(i.w, out.String()); err != nil {
		return 0, err
	}
	return len(b), nil
}

func providerTable(providers []model.Endpoint) *table {
	t := &table{head: []string{"ADDRESS", "PROTOCOL", "APPLICATION", "WEIGHT", "STATE", "LOCALITY", "REGISTRIES", "LABELS"}, spare: []int{5, 6}, wrap: true}
	for i := range providers {
		e := &providers[i]
		weight, state := cell{right: true}, coloured("enabled", colourGreen)
		if e.Weight != nil {
			weight.text = fmt.Sprint(*e.Weight)
			if *e.Weight == 0 {
				state = coloured("no traffic", colourYellow)
			}
		}
		if e.Disabled {
			state = coloured("disabled", colourYellow)
		}
		t.add(text(hostPort(e.Address, e.Port)), text(string(e.Protocol)), text(e.Application), weight, state, text(locality(e.Locality)),
			text(registriesOf(e.Origins)), text(strings.Join(pairs(e.Labels), " ")))
	}
	return t
}

func consumerTable(consumers []model.Consumer) *table {
	t := &table{head: []string{"ADDRESS", "APPLICATION", "REGISTRIES"}}
	for _, c := range consumers {
		t.add(text(c.Address), text(c.Application), text(registriesOf(c.Origins)))
	}
	return t
}

func hostPort(address string, port uint16) string {
	if strings.Contains(address, ":") {
		return fmt.Sprintf("[%s]:%d", address, port)
	}
	return fmt.Sprintf("%s:%d", address, port)
}

func locality(l model.Locality) string {
	return strings.TrimRight(l.Region+"/"+l.Zone+"/"+l.SubZone, "/")
}

func registriesOf(origins []model.Origin) string {
	var names []string
	for _, o := range origins {
		names = append(names, o.Registry)
	}
	return list(names)
}

// pairs returns a map as sorted key=value.
func pairs(m map[string]string) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return out
}

// count returns "1 provider", "2 providers".
func count(n int, noun string) string {
	switch {
	case n == 1:
		return "1 " + noun
	case strings.HasSuffix(noun, "y"):
		noun = strings.TrimSuffix(noun, "y") + "ie"
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// list joins the distinct values, sorted.
func list(values []string) string {
	slices.Sort(values)
	return strings.Join(slices.Compact(values), ",")
}

// maxNear is how many services are suggested in place of one that there is not.
const maxNear = 3

// nearest returns the ids of the services that a misspelt name may mean, the likeliest first.
func nearest(name string, services []api.Service) []string {
	type candidate struct {
		id    string
		score float64
	}
	var all []candidate
	for i := range services {
		svc := &services[i]
		best := 1.0
		for _, have := range []string{svc.ID, strings.TrimPrefix(svc.ID, svc.Framework+"/"), svc.Framework + "/" + svc.Interface, svc.Interface, simple(svc.Interface)} {
			best = min(best, difference(name, have))
		}
		// Whoever knows the class but not its package, or the service but not its version.
		best = min(best, difference(simple(bare(name, svc.Framework)), simple(svc.Interface))+0.05)
		if len(name) >= minPart && strings.Contains(strings.ToLower(svc.ID), strings.ToLower(name)) {
			best = min(best, maxDifference)
		}
		if best <= maxDifference {
			all = append(all, candidate{svc.ID, best})
		}
	}
	slices.SortFunc(all, func(a, b candidate) int { return cmp.Or(cmp.Compare(a.score, b.score), cmp.Compare(a.id, b.id)) })
	var ids []string
	for _, c := range all[:min(len(all), maxNear)] {
		if c.score > all[0].score+maxFurther {
			break
		}
		ids = append(ids, printable(c.id))
	}
	return ids
}

// simple returns an interface without its package.
func simple(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }

// bare returns an id without framework, version and group.
func bare(id, framework string) string {
	id, _, _ = strings.Cut(strings.TrimPrefix(id, framework+"/"), ":")
	return id
}

// The bounds of what is taken for a misspelling.
const (
	maxDifference = 0.34 // of the characters
	maxFurther    = 0.15 // than the nearest
	maxCompared   = 256  // bytes of a name
	minPart       = 3    // bytes that are taken for a part of a name
)

// difference returns which part of the characters differ between two names, whatever their case: 0 for none, 1 for all. It is the
// edit distance (Levenshtein) over the longer length.
func difference(a, b string) float64 {
	if len(a) > maxCompared || len(b) > maxCompared {
		return 1
	}
	a, b = strings.ToLower(a), strings.ToLower(b)
	longer := max(utf8.RuneCountInString(a), utf8.RuneCountInString(b))
	if longer == 0 {
		return 0
	}
	second := []rune(b)
	row := make([]int, len(second)+1)
	for j := range row {
		row[j] = j
	}
	for i, x := range []rune(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j, y := range second {
			change := diagonal
			if x != y {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return float64(row[len(second)]) / float64(longer)
}
