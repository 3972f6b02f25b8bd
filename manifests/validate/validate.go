// Package validate checks the YAML that people write for Isthmus and that its documentation and samples show: it reads
// each document with the decoder that production uses for its kind.
package validate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	extensions "istio.io/api/extensions/v1alpha1"
	mesh "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	networkingbeta "istio.io/api/networking/v1beta1"
	security "istio.io/api/security/v1beta1"
	telemetry "istio.io/api/telemetry/v1alpha1"

	"github.com/isthmus-mesh/isthmus/adapters"
)

// istioKinds are the kinds of Istio by group and kind; the versions that differ in nothing are not told apart.
var istioKinds = map[string]func() proto.Message{
	"networking.istio.io/ServiceEntry":        func() proto.Message { return new(networking.ServiceEntry) },
	"networking.istio.io/DestinationRule":     func() proto.Message { return new(networking.DestinationRule) },
	"networking.istio.io/VirtualService":      func() proto.Message { return new(networking.VirtualService) },
	"networking.istio.io/Gateway":             func() proto.Message { return new(networking.Gateway) },
	"networking.istio.io/Sidecar":             func() proto.Message { return new(networking.Sidecar) },
	"networking.istio.io/WorkloadEntry":       func() proto.Message { return new(networking.WorkloadEntry) },
	"networking.istio.io/WorkloadGroup":       func() proto.Message { return new(networking.WorkloadGroup) },
	"networking.istio.io/EnvoyFilter":         func() proto.Message { return new(networking.EnvoyFilter) },
	"networking.istio.io/ProxyConfig":         func() proto.Message { return new(networkingbeta.ProxyConfig) },
	"security.istio.io/AuthorizationPolicy":   func() proto.Message { return new(security.AuthorizationPolicy) },
	"security.istio.io/PeerAuthentication":    func() proto.Message { return new(security.PeerAuthentication) },
	"security.istio.io/RequestAuthentication": func() proto.Message { return new(security.RequestAuthentication) },
	"telemetry.istio.io/Telemetry":            func() proto.Message { return new(telemetry.Telemetry) },
	"extensions.istio.io/WasmPlugin":          func() proto.Message { return new(extensions.WasmPlugin) },
	"extensions.istio.io/TrafficExtension":    func() proto.Message { return new(extensions.TrafficExtension) },
}

// ErrUnknownKind says that a document is well-formed but of a kind that Isthmus has no decoder for.
var ErrUnknownKind = errors.New("unknown kind")

// YAML checks every document in text. A document says itself what it is, by apiVersion and kind; as names the kind of
// documents that do not (see Kinds), and is "" else. The error is adapters.Faults, or wraps ErrUnknownKind where nothing
// is wrong but nothing is known either.
func YAML(text []byte, as string) error {
	var faults adapters.Faults
	var unknown error
	documents, err := split(text)
	if err != nil {
		return err
	}
	for _, d := range documents {
		err := d.check(as)
		if errors.Is(err, ErrUnknownKind) {
			unknown = err
			continue
		}
		faults = append(faults, adapters.AsFaults(err)...)
	}
	if len(faults) > 0 {
		return faults
	}
	return unknown
}

// document is one YAML document of a file.
type document struct {
	node *yaml.Node // its root; never nil
	text []byte     // as it was written, with as many empty lines before it as there are lines before it in the file
}

// split parses the documents of a file. Empty ones are left out.
func split(text []byte) ([]document, error) {
	var out []document
	var one bytes.Buffer
	flush := func() error {
		var n yaml.Node
		if err := yaml.Unmarshal(one.Bytes(), &n); err != nil {
			_, err := adapters.ParseSettings(one.Bytes()) // the same error, with its line apart
			return err
		}
		if len(n.Content) == 1 && n.Content[0].Tag != "!!null" {
			out = append(out, document{n.Content[0], bytes.Clone(one.Bytes())})
		}
		return nil
	}
	number := 0
	for line := range bytes.Lines(text) {
		number++
		if trimmed := bytes.TrimRight(line, " \t\r\n"); bytes.Equal(trimmed, []byte("---")) || bytes.HasPrefix(line, []byte("--- ")) {
			if err := flush(); err != nil {
				return nil, err
			}
			one.Reset()
			one.WriteString(strings.Repeat("\n", number-1))
			line = bytes.TrimPrefix(line, []byte("---"))
		}
		one.Write(line)
	}
	if err := flush(); err != nil {
		return nil, err
	}
	return out, nil
}

// field returns the value of a mapping's key, nil if there is none.
func field(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

func scalar(n *yaml.Node) string {
	if n == nil || n.Kind != yaml.ScalarNode {
		return ""
	}
	return n.Value
}

func faultf(n *yaml.Node, path, format string, args ...any) error {
	return adapters.Faults{{Path: path, Line: n.Line, Message: fmt.Sprintf(format, args...)}}
}

// check reads the document with the decoder of its kind.
func (d document) check(as string) error {
	if as != "" {
		own, ok := kinds[as]
		if !ok {
			return faultf(d.node, "", "no kind %q; known are %s", as, strings.Join(Kinds(), ", "))
		}
		return own(d)
	}
	version, kind := scalar(field(d.node, "apiVersion")), scalar(field(d.node, "kind"))
	if version == "" || kind == "" {
		return fmt.Errorf("line %d: no apiVersion and kind: %w", d.node.Line, ErrUnknownKind)
	}
	group, _, _ := strings.Cut(version, "/")
	if own, ok := shaped[group+"/"+kind]; ok {
		return own(d)
	}
	if message, ok := istioKinds[group+"/"+kind]; ok {
		m := message()
		faults := adapters.AsFaults(named(d.node))
		if err := decodeProto(field(d.node, "spec"), "spec", m); err != nil {
			return append(faults, adapters.AsFaults(err)...)
		}
		return append(faults, adapters.AsFaults(checkPlugin(d.node, m))...).Err()
	}
	if strings.HasSuffix(group, ".istio.io") || strings.HasSuffix(group, ".isthmus.io") || group == "isthmus.io" {
		return faultf(d.node, "kind", "%s has no kind %q that Isthmus knows", version, kind)
	}
	return fmt.Errorf("line %d: %s %s: %w", d.node.Line, version, kind, ErrUnknownKind)
}

// named wants a metadata.name.
func named(n *yaml.Node) error {
	if scalar(field(field(n, "metadata"), "name")) == "" {
		return faultf(n, "metadata.name", "is missing")
	}
	return nil
}

// decodeProto reads n strictly into m.
func decodeProto(n *yaml.Node, path string, m proto.Message) error {
	if n == nil {
		return nil
	}
	b, err := toJSON(n)
	if err != nil {
		return faultf(n, path, "%v", err)
	}
	if err := (protojson.UnmarshalOptions{}).Unmarshal(b, m); err != nil {
		// protojson's text begins with "proto: (line 1:23): "; the position is in JSON that nobody has seen.
		message := err.Error()
		if i := strings.Index(message, "): "); i >= 0 {
			message = message[i+3:]
		}
		return faultf(culprit(n, message), path, "%s", message)
	}
	// protojson also takes the original names, which Kubernetes does not.
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if strings.Contains(n.Content[i].Value, "_") {
			return faultf(n.Content[i], path+"."+n.Content[i].Value, "unknown field: names are in lowerCamelCase")
		}
	}
	return nil
}

// unknownField is how protojson names a field that it does not know.
var unknownField = regexp.MustCompile(`unknown field "([^"]+)"`)

// culprit returns the first node below n whose key a message of protojson names, n if there is none: protojson knows no
// lines.
func culprit(n *yaml.Node, message string) *yaml.Node {
	m := unknownField.FindStringSubmatch(message)
	if m == nil {
		return n
	}
	var find func(*yaml.Node) *yaml.Node
	find = func(n *yaml.Node) *yaml.Node {
		for i, child := range n.Content {
			if n.Kind == yaml.MappingNode && i%2 == 0 && child.Value == m[1] {
				return child
			}
			if found := find(child); found != nil {
				return found
			}
		}
		return nil
	}
	if found := find(n); found != nil {
		return found
	}
	return n
}

// toJSON turns a node into JSON.
func toJSON(n *yaml.Node) ([]byte, error) {
	var v any
	if err := n.Decode(&v); err != nil {
		return nil, err
	}
	return json.Marshal(v)
}

// checkPlugin reads the configuration of the filter that a WasmPlugin or TrafficExtension carries, if it is ours.
func checkPlugin(n *yaml.Node, m proto.Message) error {
	var plugin *yaml.Node
	path := "spec.pluginConfig"
	switch m := m.(type) {
	case *extensions.WasmPlugin:
		if !isOurs(m.GetUrl()) {
			return nil
		}
		plugin = field(field(n, "spec"), "pluginConfig")
	case *extensions.TrafficExtension:
		if !isOurs(m.GetWasm().GetUrl()) {
			return nil
		}
		path = "spec.wasm.pluginConfig"
		plugin = field(field(field(n, "spec"), "wasm"), "pluginConfig")
	}
	if plugin == nil {
		return nil
	}
	return under(path, checkPluginConfig(plugin))
}

// under sets a prefix before the paths of err's faults.
func under(prefix string, err error) error {
	if err == nil {
		return nil
	}
	return adapters.AsFaults(err).Under(prefix)
}

// isOurs tells whether a Wasm module is the filter of Isthmus, by its name: that is all that a URL tells.
func isOurs(url string) bool { return strings.Contains(url, "isthmus") }

// Kinds lists what as may be in YAML, sorted.
func Kinds() []string {
	names := make([]string, 0, len(kinds))
	for name := range kinds {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// checkInstall reads an overlay for istioctl install.
func checkInstall(d document) error {
	spec := field(d.node, "spec")
	known := []string{"profile", "hub", "tag", "namespace", "revision", "meshConfig", "components", "values"}
	for i := 0; spec != nil && i+1 < len(spec.Content); i += 2 {
		if key := spec.Content[i]; !slices.Contains(known, key.Value) {
			return faultf(key, "spec."+key.Value, "unknown field; known are %s", strings.Join(known, ", "))
		}
	}
	if err := decodeProto(field(spec, "meshConfig"), "spec.meshConfig", new(mesh.MeshConfig)); err != nil {
		return err
	}
	environment := field(field(field(spec, "values"), "pilot"), "env")
	for i := 0; environment != nil && i+1 < len(environment.Content); i += 2 {
		if value := environment.Content[i+1]; value.Tag != "!!str" {
			return faultf(value, "spec.values.pilot.env."+environment.Content[i].Value, "must be a string: write %q", value.Value)
		}
	}
	return nil
}
