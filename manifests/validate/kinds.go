package validate

import (
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/builtin"
	"github.com/isthmus-mesh/isthmus/adapters/file"
	"github.com/isthmus-mesh/isthmus/mcp-server/config"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
	"github.com/isthmus-mesh/isthmus/mcp-server/rollout"
	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// shaped are the kinds that are neither Istio's nor Kubernetes' own, by group and kind.
var shaped = map[string]func(document) error{
	"install.istio.io/IstioOperator": checkInstall,
	file.ListAPIVersion[:strings.IndexByte(file.ListAPIVersion, '/')] + "/" + file.ListKind: checkServices,
	config.APIVersion[:strings.IndexByte(config.APIVersion, '/')] + "/" + config.Kind:       checkServer,
}

func init() {
	group := governance.APIVersion[:strings.IndexByte(governance.APIVersion, '/')]
	for _, kind := range governance.Kinds() {
		shaped[group+"/"+kind] = checkRule
	}
	shaped[group+"/"+rollout.Kind] = checkRollout
}

// kinds are the documents that do not say what they are.
var kinds = map[string]func(document) error{
	"plugin":   func(d document) error { return checkPluginConfig(d.node) },
	"registry": checkRegistry,
}

// checkRegistry reads one entry of the configuration's list of registries.
func checkRegistry(d document) error {
	var r adapters.Registry
	if err := r.UnmarshalYAML(d.node); err != nil {
		return err
	}
	_, err := builtin.Kinds.New(r, adapters.Options{})
	return err
}

// checkPluginConfig reads the configuration of the Wasm filter.
func checkPluginConfig(n *yaml.Node) error {
	b, err := toJSON(n)
	if err != nil {
		return faultf(n, "", "%v", err)
	}
	_, found := plugin.Decode(b)
	var faults adapters.Faults
	for _, f := range found {
		faults = append(faults, adapters.Fault{Path: f.Path, Line: nodeAt(n, f.Path).Line, Message: f.Message})
	}
	return faults.Err()
}

// nodeAt returns the node at a path of the form a.b[1].c below n; of a path that leads nowhere, the last node on the way.
func nodeAt(n *yaml.Node, path string) *yaml.Node {
	for _, step := range strings.FieldsFunc(path, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
		var next *yaml.Node
		switch i, err := strconv.Atoi(step); {
		case n.Kind == yaml.SequenceNode && err == nil && i < len(n.Content):
			next = n.Content[i]
		default:
			next = field(n, step)
		}
		if next == nil {
			break
		}
		n = next
	}
	return n
}

// checkServices reads a list of services for the file registry.
func checkServices(d document) error {
	_, err := file.Parse(d.text)
	return err
}

// checkServer reads the configuration of mcp-server.
func checkServer(d document) error {
	_, err := config.Parse(d.text, builtin.Kinds)
	return err
}

// checkRule reads a governance rule.
func checkRule(d document) error {
	_, err := governance.Parse(d.text)
	return err
}

// checkRollout reads a rollout.
func checkRollout(d document) error {
	_, _, err := rollout.Parse(d.text)
	return err
}
