package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/client"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
	"github.com/isthmus-mesh/isthmus/mcp-server/telemetry"
)

func newRule(s *Streams, server *serverFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rule",
		Short: "Read, change, explain and try rules",
		Long: `rule works on governance rules, in a running mcp-server or before they are there.

A rule is named by its name, with its namespace and its kind before it where it takes them to tell it from others: greet, shop/greet, throttle
shop/greet, ThrottleRule shop/greet.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	list := newRules(s, server)
	list.Use = "list"
	cmd.AddCommand(newRuleApply(s, server), list, newRuleGet(s, server), newRuleExplain(s, server), newRuleDelete(s, server), newRuleDryRun(s))
	return cmd
}

// fileRule is a rule that was read from a file.
type fileRule struct {
	governance.Document
	file string
}

// readRules reads the rules of files and folders; - is standard input. All faults are said at once, as FILE:LINE: FIELD: FAULT.
func (s *Streams) readRules(names []string) ([]fileRule, error) {
	if len(names) == 0 {
		return nil, usagef("name the rules' files with -f")
	}
	var rules []fileRule
	var faults []string
	for _, name := range names {
		files := []string{name}
		if info, err := os.Stat(name); err == nil && info.IsDir() {
			files = nil
			entries, err := os.ReadDir(name)
			if err != nil {
				return nil, usagef("%w", err)
			}
			for _, e := range entries {
				if !e.IsDir() && e.Name()[0] != '.' && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) {
					files = append(files, filepath.Join(name, e.Name()))
				}
			}
		}
		for _, file := range files {
			text, err := readInput(s.In, []string{file})
			if err != nil {
				return nil, err
			}
			docs, err := governance.Split(text)
			for _, f := range adapters.AsFaults(err) {
				at := file
				if file == "-" {
					at = "standard input"
				}
				if f.Line > 0 {
					at = fmt.Sprintf("%s:%d", at, f.Line)
				}
				if f.Path != "" {
					at += ": " + f.Path
				}
				faults = append(faults, at+": "+f.Message)
			}
			for _, d := range docs {
				rules = append(rules, fileRule{d, file})
			}
		}
	}
	if len(faults) > 0 {
		for _, f := range faults {
			fmt.Fprintln(s.Err, printable(f))
		}
		return nil, badf("%d faults; nothing was done", len(faults))
	}
	if len(rules) == 0 {
		return nil, badf("there are no rules in %s", strings.Join(names, ", "))
	}
	return rules, nil
}

func fileFlag(cmd *cobra.Command) *[]string {
	var files []string
	cmd.Flags().StringArrayVarP(&files, "file", "f", nil, "file or folder with rules; - is standard input; may be given more than once")
	return &files
}

// change is what became of one rule.
type change struct {
	Kind      string         `json:"kind"`
	Namespace string         `json:"namespace"`
	Name      string         `json:"name"`
	Result    string         `json:"result"`              // created, changed, unchanged, deleted
	Effective *api.Effective `json:"effective,omitempty"` // once it was waited for
}

func changeTable(changes []change, empty string) *table {
	t := &table{head: []string{"KIND", "NAME", "RESULT", "SIDECARS"}, empty: empty}
	for _, c := range changes {
		colour := colourGreen
		if c.Result == "unchanged" {
			colour = colourDim
		}
		sidecars := cell{right: true}
		if e := c.Effective; e != nil && e.Of > 0 {
			sidecars = cell{text: fmt.Sprintf("%d/%d", e.Enforced, e.Of), colour: effectiveColour(e.State), right: true}
		}
		t.add(text(c.Kind), text(c.Namespace+"/"+c.Name), coloured(c.Result, colour), sidecars)
	}
	return t
}

func newRuleApply(s *Streams, server *serverFlags) *cobra.Command {
	var wait time.Duration
	var force bool
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Make the rules of files those of mcp-server",
		Long: `apply checks all rules of the files, and then creates those that there are not yet and changes those that are different. A rule that somebody
else changes in the same moment is left alone; --force takes its place. Rules that are in no file stay as they are.

--wait waits until every sidecar that a rule selects, of those whose metrics mcp-server reads, enforces it.`,
		Example: `  isthmusctl rule apply -f rules/ --wait 10s`,
		Args:    cobra.NoArgs,
	}
	output := outputFlag(cmd)
	files := fileFlag(cmd)
	server.addTimeout(cmd)
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait so long for the sidecars to enforce the rules")
	cmd.Flags().BoolVar(&force, "force", false, "also take the place of what somebody else is changing")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		rules, err := s.readRules(*files)
		if err != nil {
			return err
		}
		seen := map[governance.ID]string{}
		for _, r := range rules {
			at := fmt.Sprintf("%s:%d", r.file, r.Line)
			if before, ok := seen[r.ID]; ok {
				return badf("%s is in %s and in %s; nothing was done", r.ID, before, at)
			}
			seen[r.ID] = at
		}
		var done []change
		_, err = ask(cmd.Context(), server, func(ctx context.Context, c *client.Client) (struct{}, error) {
			for _, r := range rules {
				one, err := apply(ctx, c, r, force)
				if err != nil {
					return struct{}{}, fmt.Errorf("%s: %w", r.ID, err)
				}
				done = append(done, one)
			}
			return struct{}{}, s.await(ctx, c, done, wait)
		})
		if len(done) > 0 { // also where not all is done
			if err := s.print(*output, done, func() *table { return changeTable(done, "") }); err != nil {
				return err
			}
		}
		return err
	}
	return cmd
}

func apply(ctx context.Context, c *client.Client, r fileRule, force bool) (change, error) {
	id := client.RuleID{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name}
	out := change{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name, Result: "changed"}
	revision := client.NoRevision
	switch have, err := c.Rule(ctx, id); {
	case client.IsNotFound(err):
		out.Result = "created"
	case err != nil:
		return out, err
	case have.Revision == r.Revision && !have.Kept:
		out.Result = "unchanged"
		return out, nil
	default:
		revision = have.Revision
	}
	if force {
		revision = client.AnyRevision
	}
	_, err := c.PutRule(ctx, id, r.Text, revision)
	if client.IsChanged(err) {
		return out, badf("%s: %s; look at it and apply again, or use --force", r.ID, printable(err.Error()))
	}
	return out, err
}

// awaitEvery is how often the server is asked whether a rule is enforced by now.
const awaitEvery = 200 * time.Millisecond

// await waits until all sidecars enforce the rules.
func (s *Streams) await(ctx context.Context, c *client.Client, done []change, wait time.Duration) error {
	if wait <= 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		pending := ""
		for i := range done {
			r, err := c.Rule(ctx, client.RuleID{Kind: done[i].Kind, Namespace: done[i].Namespace, Name: done[i].Name})
			if err != nil && ctx.Err() == nil {
				return err
			}
			if err == nil {
				done[i].Effective = &r.Effective
				if r.Effective.State == api.EffectivePending || r.Effective.State == api.EffectivePartial {
					pending = r.Namespace + "/" + r.Name
				}
			}
		}
		if pending == "" && ctx.Err() == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			if err := context.Cause(ctx); errors.Is(err, context.Canceled) {
				return err
			}
			return badf("the rules are in place, but after %s not all sidecars enforce %s", wait, cmp.Or(pending, "them"))
		case <-time.After(awaitEvery):
		}
	}
}

// findRule returns the rule that the arguments name: [KIND] [NAMESPACE/]NAME.
func findRule(ctx context.Context, c *client.Client, args []string) (*api.RuleDetail, error) {
	kind, namespace, name := "", "", args[len(args)-1]
	if len(args) == 2 {
		var err error
		if kind, err = kindOf(args[0]); err != nil {
			return nil, err
		}
	}
	if before, after, ok := strings.Cut(name, "/"); ok {
		namespace, name = before, after
	}
	list, err := c.Rules(ctx)
	if err != nil {
		return nil, err
	}
	var found []client.RuleID
	var similar []string
	for _, r := range list.Items {
		if r.Name == name && (kind == "" || r.Kind == kind) && (namespace == "" || r.Namespace == namespace) {
			found = append(found, client.RuleID{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name})
		} else if strings.Contains(r.Name, name) || strings.Contains(name, r.Name) {
			similar = append(similar, r.Kind+" "+r.Namespace+"/"+r.Name)
		}
	}
	switch {
	case len(found) == 1:
		return c.Rule(ctx, found[0])
	case len(found) > 1:
		var names []string
		for _, id := range found {
			names = append(names, id.Kind+" "+id.Namespace+"/"+id.Name)
		}
		return nil, badf("%q may be %s", strings.Join(args, " "), printable(strings.Join(names, ", ")))
	case len(similar) > 0:
		return nil, badf("there is no rule %q; did you mean %s?", strings.Join(args, " "), printable(strings.Join(similar[:min(len(similar), 3)], " or ")))
	}
	return nil, badf("there is no rule %q", strings.Join(args, " "))
}

// kindOf returns the kind that a word means: ThrottleRule, throttlerule, throttle.
func kindOf(word string) (string, error) {
	for _, kind := range governance.Kinds() {
		if strings.EqualFold(word, kind) || strings.EqualFold(word+"Rule", kind) {
			return kind, nil
		}
	}
	return "", usagef("no kind %q; known are %s", word, strings.Join(governance.Kinds(), ", "))
}

func newRuleGet(s *Streams, server *serverFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get [KIND] NAME",
		Short: "Show one rule, and where it is enforced",
		Long: `get shows one rule, what it did, and how far each sidecar is that it selects, of those whose metrics mcp-server reads. As yaml or json it is
the whole answer of the API.`,
		Args: cobra.RangeArgs(1, 2),
	}
	output := outputFlag(cmd)
	server.addTimeout(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := ask(cmd.Context(), server, func(ctx context.Context, c *client.Client) (*api.RuleDetail, error) { return findRule(ctx, c, args) })
		if err != nil {
			return err
		}
		if *output == formatTable {
			s.ruleHead(&r.Rule)
			if b, err := yaml.JSONToYAML(r.Spec); err == nil {
				for line := range strings.Lines(string(b)) {
					fmt.Fprint(s.Out, "  ", printable(strings.TrimSuffix(line, "\n")), "\n")
				}
			}
			fmt.Fprintln(s.Out)
		}
		return s.print(*output, r, func() *table {
			if r.Kind == routeKind {
				return routeTable(r.Effective.Routes)
			}
			return sidecarTable(&r.Effective)
		})
	}
	return cmd
}

// ruleHead prints what is known of a rule as a whole.
func (s *Streams) ruleHead(r *api.Rule) {
	e := &r.Effective
	line := func(name, value string) { fmt.Fprintf(s.Out, "%-10s %s\n", name, printable(value)) }
	line("rule", r.Kind+" "+r.Namespace+"/"+r.Name)
	line("place", r.Place+", revision "+r.Revision)
	if r.Kept {
		fmt.Fprintf(s.Out, "%-10s %s\n", "state", s.paint(colourRed, "kept: its file holds a newer version that is faulty; see isthmusctl problems"))
	}
	where := string(e.State)
	if e.Of > 0 {
		where = fmt.Sprintf("%s on %d of %d sidecars", e.State, e.Enforced, e.Of)
	}
	if !e.Since.IsZero() {
		where += ", since " + e.Since.UTC().Format(time.RFC3339)
	}
	fmt.Fprintf(s.Out, "%-10s %s\n", "effective", s.paint(effectiveColour(e.State), where))
	if len(e.Totals) > 0 {
		line("calls", fmt.Sprintf("%.0f admitted, %.0f rejected, %.0f would have been rejected", e.Totals[actionAdmit], e.Totals[actionReject], e.Totals[actionWouldReject]))
	}
}

func sidecarTable(e *api.Effective) *table {
	t := &table{head: []string{"SIDECAR", "APPLICATION", "STATE", "SINCE", "NOW", "NOTE"}, empty: "none of the sidecars that mcp-server reads is selected", wrap: true}
	for _, c := range e.Sidecars {
		since, now := "", ""
		if !c.Since.IsZero() {
			since = c.Since.UTC().Format(time.RFC3339)
		}
		for _, st := range e.States {
			switch {
			case st.Target != c.Name:
			case st.Tokens != nil:
				now = fmt.Sprintf("%.0f tokens", *st.Tokens)
			case st.Running != nil:
				now = fmt.Sprintf("%.0f under way", *st.Running)
			case st.Queue != nil:
				now = fmt.Sprintf("%.0f ms to wait", *st.Queue)
			case st.Circuit != "":
				now = st.Circuit
			case len(st.Circuits) > 0:
				now = circuitsOf(st.Circuits)
			}
		}
		t.add(text(c.Name), text(c.Application), coloured(string(c.State), sidecarColour(c.State)), text(since), text(now), text(c.Error))
	}
	return t
}

// circuitsOf says which circuits are not closed, and how many are.
func circuitsOf(all []telemetry.Circuit) string {
	var parts []string
	closed := 0
	for _, c := range all {
		if c.State == "closed" {
			closed++
			continue
		}
		parts = append(parts, c.State+" to "+c.Endpoint)
	}
	if closed > 0 || len(parts) == 0 {
		parts = append(parts, fmt.Sprintf("%d closed", closed))
	}
	return strings.Join(parts, ", ")
}

// explained is what explain prints of one rule.
type explained struct {
	Kind        string                 `json:"kind"`
	Namespace   string                 `json:"namespace"`
	Name        string                 `json:"name"`
	Explanation governance.Explanation `json:"explanation"`
	Routes      []api.RoutedHost       `json:"routes,omitempty"` // of a RouteRule in a server: what it became
}

// routeKind is the kind of rule that becomes Istio's own resources, of which no filter is told.
const routeKind = "RouteRule"

func newRuleExplain(s *Streams, server *serverFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain [KIND] NAME",
		Short: "Say what a rule does, to which calls, and what other rules mean for it",
		Long: `explain says in words what a rule does and which calls it is for, shows what the filter in the sidecars is told, and names the rules that keep it
from ever acting, that it keeps from acting, or that share calls with it. With -f it explains the rules of files, all of them or the named one,
without a server.`,
		Example: `  isthmusctl rule explain throttle shop/greet
  isthmusctl rule explain -f rules.yaml`,
		Args: cobra.MaximumNArgs(2),
	}
	output := outputFlag(cmd)
	files := fileFlag(cmd)
	server.addTimeout(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var list []explained
		switch {
		case len(*files) > 0:
			rules, err := s.readRules(*files)
			if err != nil {
				return err
			}
			if list, err = explainFiles(rules, args); err != nil {
				return err
			}
		case len(args) == 0:
			return usagef("name a rule, or files with -f")
		default:
			r, err := ask(cmd.Context(), server, func(ctx context.Context, c *client.Client) (*api.RuleDetail, error) { return findRule(ctx, c, args) })
			if err != nil {
				return err
			}
			list = []explained{{r.Kind, r.Namespace, r.Name, r.Explanation, r.Effective.Routes}}
		}
		if *output != formatTable {
			return s.print(*output, list, nil)
		}
		for i := range list {
			if i > 0 {
				fmt.Fprintln(s.Out)
			}
			if err := s.explain(&list[i]); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}

func explainFiles(rules []fileRule, args []string) ([]explained, error) {
	all := make([]governance.Rule, len(rules))
	for i := range rules {
		all[i] = rules[i].Rule
	}
	kind, name := "", ""
	if len(args) > 0 {
		name = args[len(args)-1]
	}
	if len(args) == 2 {
		var err error
		if kind, err = kindOf(args[0]); err != nil {
			return nil, err
		}
	}
	var out []explained
	for i := range all {
		r := &all[i]
		if name != "" && name != r.Name && name != r.Namespace+"/"+r.Name || kind != "" && kind != r.Kind {
			continue
		}
		out = append(out, explained{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name, Explanation: governance.Explain(r, all)})
	}
	if len(out) == 0 {
		return nil, badf("there is no rule %q in the files", strings.Join(args, " "))
	}
	return out, nil
}

func (s *Streams) explain(x *explained) error {
	e := &x.Explanation
	fmt.Fprintf(s.Out, "%s\n", s.paint(colourBold, printable(x.Kind+" "+x.Namespace+"/"+x.Name)))
	fmt.Fprintf(s.Out, "%s.\n", printable(e.Does))
	if len(e.Calls) == 0 {
		fmt.Fprintln(s.Out, "It is for every call.")
	} else {
		fmt.Fprintln(s.Out, "It is for calls of which all of this is true:")
		for _, c := range e.Calls {
			fmt.Fprintf(s.Out, "  %s\n", printable(c))
		}
	}
	if x.Kind != routeKind {
		fmt.Fprintf(s.Out, "The filter is told: %s\n", printable(flat(e.Plugin)))
	} else if len(x.Routes) > 0 {
		fmt.Fprintln(s.Out, "It became:")
		if err := s.indented(routeTable(x.Routes)); err != nil {
			return err
		}
	}
	if len(e.Relations) == 0 {
		return nil
	}
	t := &table{head: []string{"EFFECT", "OTHER RULE", "WHY"}, wrap: true}
	for _, r := range e.Relations {
		colour := colourDim
		if r.Effect == governance.RelationShadowedBy {
			colour = colourRed
		}
		t.add(coloured(string(r.Effect), colour), text(r.Kind+" "+r.Namespace+"/"+r.Name), text(r.Message))
	}
	return t.write(s)
}

func newRuleDelete(s *Streams, server *serverFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "delete [KIND] NAME",
		Short:   "Remove a rule, or the rules of files",
		Example: `  isthmusctl rule delete throttle shop/greet`,
		Args:    cobra.MaximumNArgs(2),
	}
	output := outputFlag(cmd)
	files := fileFlag(cmd)
	server.addTimeout(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var rules []fileRule
		switch {
		case len(*files) > 0 && len(args) > 0:
			return usagef("name a rule or files, not both")
		case len(*files) > 0:
			var err error
			if rules, err = s.readRules(*files); err != nil {
				return err
			}
		case len(args) == 0:
			return usagef("name a rule, or files with -f")
		}
		done := []change{}
		_, err := ask(cmd.Context(), server, func(ctx context.Context, c *client.Client) (struct{}, error) {
			remove := func(id client.RuleID, revision string) error {
				err := c.DeleteRule(ctx, id, revision)
				if err == nil {
					done = append(done, change{Kind: id.Kind, Namespace: id.Namespace, Name: id.Name, Result: "deleted"})
				}
				return err
			}
			if len(args) > 0 {
				r, err := findRule(ctx, c, args)
				if err != nil {
					return struct{}{}, err
				}
				return struct{}{}, remove(client.RuleID{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name}, r.Revision)
			}
			for _, r := range rules {
				if err := remove(client.RuleID{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name}, client.AnyRevision); err != nil && !client.IsNotFound(err) {
					return struct{}{}, fmt.Errorf("%s: %w", r.ID, err)
				}
			}
			return struct{}{}, nil
		})
		if err == nil || len(done) > 0 {
			if err := s.print(*output, done, func() *table { return changeTable(done, "there was nothing to delete") }); err != nil {
				return err
			}
		}
		return err
	}
	return cmd
}
