package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/client"
)

func newRules(s *Streams, server *serverFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rules",
		Short: "List the rules in force, and what they do in the sidecars",
		Long: `rules lists the governance rules that are in force. SIDECARS is how many of those that the rule selects, of the ones whose
metrics mcp-server reads (spec.telemetry), run the rule as it is now; of a RouteRule, how many of those that call lifted services know its groups. The rates are of the last seconds.`,
		Args: cobra.NoArgs,
	}
	output := outputFlag(cmd)
	server.addTimeout(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		found, err := ask(cmd.Context(), server, func(ctx context.Context, c *client.Client) (*api.RuleList, error) { return c.Rules(ctx) })
		if err != nil {
			return err
		}
		if err := s.print(*output, found, func() *table { return ruleTable(found) }); err != nil {
			return err
		}
		if *output == formatTable && slices.ContainsFunc(found.Items, func(r api.Rule) bool { return r.Kept }) {
			fmt.Fprintln(s.Out, s.paint(colourYellow, "a rule that is kept has a newer version, which is faulty: see isthmusctl problems"))
		}
		return nil
	}
	return cmd
}

func ruleTable(l *api.RuleList) *table {
	t := &table{head: []string{"KIND", "NAME", "STATE", "SIDECARS", "ADMITTED/S", "REJECTED/S", "PLACE", "RULE"}, empty: "no rules are in force", spare: []int{6}, wrap: true}
	for i := range l.Items {
		r := &l.Items[i]
		sidecars, admitted, rejected := cell{right: true}, cell{right: true}, cell{right: true}
		if e := &r.Effective; r.Enabled && e.Of > 0 {
			sidecars = cell{text: fmt.Sprintf("%d/%d", e.Enforced, e.Of), colour: effectiveColour(e.State), right: true}
		}
		if rates := r.Effective.Rates; r.Enabled && len(rates) > 0 {
			admitted.text = rate(rates[actionAdmit])
			rejected.text = rate(rates[actionReject])
			if rates[actionReject] > 0 {
				rejected.colour = colourYellow
			}
			if would, ok := rates[actionWouldReject]; ok && would > 0 {
				rejected.text = rate(would) + " (observed)"
			}
		}
		t.add(text(r.Kind), text(r.Namespace+"/"+r.Name), ruleState(r), sidecars, admitted, rejected, text(filepath.Base(r.Place)), text(flat(r.Spec)))
	}
	return t
}

// ruleState tells whether a rule is there, and as which version.
func ruleState(r *api.Rule) cell {
	switch {
	case r.Kept:
		return coloured("kept", colourRed) // an older version: the newer one is faulty
	case !r.Enabled:
		return coloured("disabled", colourDim)
	}
	return coloured("enabled", colourGreen)
}

func effectiveColour(s api.EffectiveState) string {
	if s == api.EffectiveEnforced {
		return colourGreen
	}
	return colourYellow
}

// The actions of rules in telemetry, as the filter counts them.
const (
	actionAdmit       = "admit"
	actionReject      = "reject"
	actionWouldReject = "would_reject"
)

// flat returns a JSON object on one line as people read it: target.service=demo.Greet threshold=100. The order is that of the
// text.
func flat(object []byte) string {
	var doc yaml.Node
	if yaml.Unmarshal(object, &doc) != nil || len(doc.Content) == 0 {
		return string(object)
	}
	return strings.Join(flatten("", doc.Content[0], nil), " ")
}

func flatten(path string, n *yaml.Node, out []string) []string {
	switch {
	case n.Kind == yaml.MappingNode && len(n.Content) > 0:
		for i := 0; i+1 < len(n.Content); i += 2 {
			at := n.Content[i].Value
			if path != "" {
				at = path + "." + at
			}
			out = flatten(at, n.Content[i+1], out)
		}
		return out
	case n.Kind == yaml.ScalarNode:
		return append(out, strings.TrimPrefix(path+"=", "=")+n.Value)
	}
	var v any
	if n.Decode(&v) == nil {
		if b, err := json.Marshal(v); err == nil {
			return append(out, path+"="+string(b))
		}
	}
	return out
}
