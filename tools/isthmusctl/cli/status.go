package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/client"
)

func newProblems(s *Streams, server *serverFlags) *cobra.Command {
	var severity, stage, registry, code string
	cmd := &cobra.Command{
		Use:   "problems",
		Short: "List what is wrong with somebody's data",
		Long: `problems lists what mcp-server could not take over as it is: data of the registries, services that cannot be rendered for the
mesh, rules, and the configuration itself. Errors come first: something is missing because of them.`,
		Example: `  isthmusctl problems --severity error
  isthmusctl problems --registry zk -o json`,
		Args: cobra.NoArgs,
	}
	output := outputFlag(cmd)
	server.addTimeout(cmd)
	cmd.Flags().StringVar(&severity, "severity", "", "only errors, or only warnings: error, warning")
	cmd.Flags().StringVar(&stage, "stage", "", "only those of this stage: registry, translate, rules, config, sidecar")
	cmd.Flags().StringVar(&registry, "registry", "", "only those in this registry's data")
	cmd.Flags().StringVar(&code, "code", "", "only those of this code")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !slices.Contains([]string{"", string(model.SeverityError), string(model.SeverityWarning)}, severity) {
			return usagef("--severity %q: one of %s, %s", severity, model.SeverityError, model.SeverityWarning)
		}
		found, err := ask(cmd.Context(), server, func(ctx context.Context, c *client.Client) (*api.ProblemList, error) { return c.Problems(ctx) })
		if err != nil {
			return err
		}
		shown := api.ProblemList{Items: []api.Problem{}}
		for _, p := range found.Items {
			if wanted(severity, string(p.Severity)) && wanted(stage, p.Stage) && wanted(registry, p.Registry) && wanted(code, p.Code) {
				shown.Items = append(shown.Items, p)
				if p.Severity == model.SeverityError {
					shown.Errors++
				}
			}
		}
		empty := "no problems"
		if len(found.Items) > 0 {
			empty = "no problems that fit"
		}
		return s.print(*output, shown, func() *table { return problemTable(shown.Items, empty) })
	}
	return cmd
}

// wanted tells whether a value is what a filter asks for; an empty filter asks for all.
func wanted(filter, value string) bool { return filter == "" || filter == value }

// problemTable lists problems, the worse ones first.
func problemTable(problems []api.Problem, empty string) *table {
	problems = slices.Clone(problems)
	rank := func(p api.Problem) int {
		if p.Severity == model.SeverityError {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(problems, func(a, b api.Problem) int {
		return cmp.Or(rank(a)-rank(b), cmp.Compare(a.Stage, b.Stage), cmp.Compare(a.Registry, b.Registry), cmp.Compare(a.Place, b.Place))
	})
	t := &table{head: []string{"SEVERITY", "FOUND IN", "CODE", "PLACE", "MESSAGE"}, empty: empty, wrap: true}
	for _, p := range problems {
		t.add(severityCell(p.Severity), text(cmp.Or(p.Registry, p.Stage)), text(p.Code), text(p.Place), text(p.Message))
	}
	return t
}

// severityCell shows a problem's severity.
func severityCell(severity model.Severity) cell {
	if severity == model.SeverityError {
		return coloured(string(severity), colourRed)
	}
	return coloured(string(severity), colourYellow)
}

func newSources(s *Streams, server *serverFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sources",
		Short: "Show how the registries are doing",
		Long: `sources shows each registry with the age of its last word. A registry that is stale cannot be heard at the moment: its last
word holds, and nothing of it is lost. One that is connecting has not said everything yet.`,
		Args: cobra.NoArgs,
	}
	output := outputFlag(cmd)
	server.addTimeout(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		found, err := ask(cmd.Context(), server, func(ctx context.Context, c *client.Client) (*api.SourceList, error) { return c.Sources(ctx) })
		if err != nil {
			return err
		}
		if err := s.print(*output, found, func() *table { return sourceTable(found.Items, time.Now()) }); err != nil {
			return err
		}
		if *output == formatTable && !found.Complete && len(found.Items) > 0 {
			fmt.Fprintln(s.Out, s.paint(colourYellow, "istiod is told nothing before each of them has been heard once"))
		}
		return nil
	}
	return cmd
}

// sourceTable lists registries; now is what the age of a stale one's silence is counted to.
func sourceTable(sources []api.Source, now time.Time) *table {
	t := &table{head: []string{"REGISTRY", "KIND", "STATE", "LAST WORD", "SERVICES", "PROVIDERS", "CONSUMERS", "PROBLEMS", "ERROR"}, empty: "no registries are configured", wrap: true}
	for i := range sources {
		src := &sources[i]
		word := "never"
		if !src.LastWord.IsZero() {
			word = age(time.Duration(src.AgeSeconds*float64(time.Second))) + " ago"
		}
		problems := number(src.Problems)
		if src.Problems > 0 {
			problems.colour = colourYellow
		}
		why := src.Error
		if !src.StaleFrom.IsZero() {
			why = fmt.Sprintf("for %s: %s", age(now.Sub(src.StaleFrom)), cmp.Or(src.Error, "not heard"))
		}
		t.add(text(src.Name), text(src.Kind), stateCell(src.State), text(word), number(src.Services), number(src.Endpoints), number(src.Consumers), problems, text(why))
	}
	return t
}

// stateCell shows a source's state.
func stateCell(state model.State) cell {
	switch state {
	case model.StateSynced:
		return coloured(string(state), colourGreen)
	case model.StateStale:
		return coloured(string(state), colourYellow)
	}
	return coloured(string(state), colourRed)
}

// age returns a duration as people say it: 3s, 5m, 2h, 4d.
func age(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(int(d/time.Second), 0))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d/time.Minute))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d/time.Hour))
	}
	return fmt.Sprintf("%dd", int(d/(24*time.Hour)))
}

func newIstiods(s *Streams, server *serverFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "istiods",
		Short: "Show which istiods are connected, and what they have taken",
		Args:  cobra.NoArgs,
	}
	output := outputFlag(cmd)
	server.addTimeout(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		found, err := ask(cmd.Context(), server, func(ctx context.Context, c *client.Client) (*api.IstiodList, error) { return c.Istiods(ctx) })
		if err != nil {
			return err
		}
		return s.print(*output, found, func() *table { return istiodTable(found.Items, time.Now()) })
	}
	return cmd
}

func istiodTable(istiods []api.Istiod, now time.Time) *table {
	t := &table{head: []string{"ISTIOD", "ADDRESS", "CONNECTED", "RESOURCES", "TYPES TAKEN", "REJECTED"}, empty: "no istiod is connected", wrap: true}
	for i := range istiods {
		d := &istiods[i]
		resources, synced := 0, 0
		var rejected []string
		for _, typ := range d.Types {
			resources += typ.Resources
			if typ.Synced {
				synced++
			}
			if typ.Rejected != "" {
				rejected = append(rejected, fmt.Sprintf("%s: %s", typ.Type[strings.LastIndexByte(typ.Type, '/')+1:], typ.Rejected))
			}
		}
		taken := cell{text: fmt.Sprintf("%d/%d", synced, len(d.Types)), colour: colourGreen, right: true}
		if synced < len(d.Types) {
			taken.colour = colourYellow
		}
		t.add(text(d.Node), text(d.Remote), text("for "+age(now.Sub(d.Since))), number(resources), taken, coloured(strings.Join(rejected, "; "), colourRed))
	}
	return t
}
