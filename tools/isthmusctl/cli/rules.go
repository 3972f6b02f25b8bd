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
	"github.com/isthmus-mesh/isthmus/mcp-server/telemetry"
)

// ruleList is the answer of rules: what is in force, and what it does in the sidecars.
type ruleList struct {
	*api.RuleList
	Sidecars []telemetry.Status `json:"sidecars"` // those whose metrics mcp-server reads
	Effect   []telemetry.Rule   `json:"effect"`
}

func newRules(s *Streams, server *serverFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rules",
		Short: "List the rules in force, and what they do in the sidecars",
		Long: `rules lists the governance rules that are in force. SIDECARS is how many of those whose metrics mcp-server reads
(spec.telemetry) run the configuration that holds the rules as they are now; the rates are of the last seconds.`,
		Args: cobra.NoArgs,
	}
	output := outputFlag(cmd)
	server.addTimeout(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		found, err := ask(cmd.Context(), server, func(ctx context.Context, c *client.Client) (*ruleList, error) {
			rules, err := c.Rules(ctx)
			if err != nil {
				return nil, err
			}
			traffic, err := c.Traffic(ctx)
			if err != nil {
				return nil, err
			}
			return &ruleList{rules, traffic.Targets, traffic.Rules}, nil
		})
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

func ruleTable(l *ruleList) *table {
	t := &table{head: []string{"KIND", "NAME", "STATE", "SIDECARS", "ADMITTED/S", "REJECTED/S", "PLACE", "RULE"}, empty: "no rules are in force", spare: []int{6}, wrap: true}
	current := 0
	for _, target := range l.Sidecars {
		if target.Up && l.Generation != "" && slices.Equal(target.Generations, []string{l.Generation}) {
			current++
		}
	}
	for i := range l.Items {
		r := &l.Items[i]
		name := r.Namespace + "/" + r.Name
		state := coloured("enabled", colourGreen)
		switch {
		case r.Kept:
			state = coloured("kept", colourRed) // an older version: the newer one is faulty
		case !r.Enabled:
			state = coloured("disabled", colourDim)
		}
		sidecars, admitted, rejected := cell{right: true}, cell{right: true}, cell{right: true}
		if r.Enabled && len(l.Sidecars) > 0 {
			sidecars = cell{text: fmt.Sprintf("%d/%d", current, len(l.Sidecars)), colour: colourGreen, right: true}
			if current < len(l.Sidecars) {
				sidecars.colour = colourYellow
			}
		}
		if k := slices.IndexFunc(l.Effect, func(e telemetry.Rule) bool { return e.Name == name }); k >= 0 && r.Enabled {
			rates := l.Effect[k].Rates
			admitted.text = rate(rates[actionAdmit])
			rejected.text = rate(rates[actionReject])
			if rates[actionReject] > 0 {
				rejected.colour = colourYellow
			}
			if would, ok := rates[actionWouldReject]; ok && would > 0 {
				rejected.text = rate(would) + " (observed)"
			}
		}
		t.add(text(r.Kind), text(name), state, sidecars, admitted, rejected, text(filepath.Base(r.Place)), text(flat(r.Spec)))
	}
	return t
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
