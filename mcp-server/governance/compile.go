package governance

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
	extensions "istio.io/api/extensions/v1alpha1"
	types "istio.io/api/type/v1beta1"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// ExtensionName is the name of the resources that put the filter into the sidecars.
const ExtensionName = "isthmus"

// labelManagedBy says whose the resources are.
const labelManagedBy = "app.kubernetes.io/managed-by"

// Options say how the filter gets into the sidecars.
type Options struct {
	// Namespace is Istio's root namespace: what lies there is for all workloads. "" means "istio-system".
	Namespace string
	// URL is where sidecars find the filter; "" means that there is none, and no rule is enforced.
	URL             string
	SHA256          string
	ImagePullSecret string
	// FailClosed closes connections where the filter cannot be loaded or fails; they pass unread else.
	FailClosed bool
	// Plugin is what the filter's configuration begins with: protocols, limits, metrics.
	Plugin plugin.Plugin
	// Lift says how services are lifted, if any are. Compile only gives its configuration the generation that Lift's have, too: a sidecar
	// has several of them, and which rules it runs is told by one.
	Lift *LiftOptions
}

// Compiled is what becomes of the rules.
type Compiled struct {
	// Set holds one TrafficExtension and one WasmPlugin, which say the same to newer and to older versions of Istio; nothing
	// where there is no filter or no port.
	Set resource.Set
	// Plugin is the filter's configuration. Its Generation is a hash of all else in it.
	Plugin   plugin.Plugin
	Problems []model.Problem
}

// Compile puts the filter on ports in every sidecar, with the rules. The ports must be sorted; services that come and go on them
// change nothing.
func Compile(rules []Rule, ports []uint16, o Options) Compiled {
	var out Compiled
	out.Plugin = o.Plugin
	p := &out.Plugin
	p.Access, p.FaultInjection, p.Degrade, p.CircuitBreaker, p.Throttle = nil, nil, nil, nil, nil
	room := room{keys: map[string]bool{}}
	for i := range rules {
		r := &rules[i]
		if !r.Enabled() {
			continue
		}
		if why := room.take(r); why != "" {
			out.Problems = append(out.Problems, model.Problem{Severity: model.SeverityError, Place: place(r.File, r.Line), Code: "TooManyRules",
				Message: fmt.Sprintf("%s is not in force: %s", r.ID, why)})
			continue
		}
		if p.Rules() == plugin.MaxRules {
			out.Problems = append(out.Problems, model.Problem{Severity: model.SeverityError, Place: place(r.File, r.Line), Code: "TooManyRules",
				Message: fmt.Sprintf("a sidecar takes %d rules; %s and the %d after it are not in force", plugin.MaxRules, r.ID, len(rules)-i-1)})
			break
		}
		r.Spec.addTo(p, r.Namespace+"/"+r.Name)
	}
	whole := out.Plugin
	if o.Lift != nil && len(o.Lift.Hosts) > 0 {
		whole.Lift, _ = o.Lift.plugin()
		whole.Lower = new(plugin.Lower)
	}
	out.Plugin.Generation = generation(&whole)
	config := mustRender(&out.Plugin)
	if o.URL == "" || len(ports) == 0 {
		if enabled := p.Rules(); enabled > 0 && o.URL == "" {
			out.Problems = append(out.Problems, model.Problem{Severity: model.SeverityWarning, Place: "spec.filter", Code: "NotEnforced",
				Message: fmt.Sprintf("there are %d rules, but no filter is configured that would enforce them", enabled)})
		}
		return out
	}
	set, err := resource.NewSet(named(ExtensionName, types.WorkloadMode_CLIENT_AND_SERVER, config, ports, o))
	if err != nil { // two with one name: there are not
		panic("governance: " + err.Error())
	}
	out.Set = set
	return out
}

// The bounds of a configuration, besides that of its rules; they are the filter's.
const (
	maxKeys        = 64       // attachments and labels that rules ask for
	maxConfigBytes = 15 << 20 // of all rules, of 16 MiB in all
)

// room is what is left of what one configuration may hold.
type room struct {
	keys  map[string]bool
	bytes int
}

// take makes room for a rule, and tells why there is none.
func (m *room) take(r *Rule) string {
	var one plugin.Plugin
	r.Spec.addTo(&one, r.Namespace+"/"+r.Name)
	b, err := json.Marshal(&one)
	if err != nil {
		return err.Error()
	}
	if m.bytes+len(b) > maxConfigBytes {
		return fmt.Sprintf("the rules before it take up the %d MiB that a sidecar's configuration may have", maxConfigBytes>>20)
	}
	var fresh []string
	want := func(s plugin.Subject, key Text) {
		name := string(s) + " " + string(key)
		if (s == plugin.SubjectAttachment || s == plugin.SubjectLabel) && !m.keys[name] && !slices.Contains(fresh, name) {
			fresh = append(fresh, name)
		}
	}
	for _, c := range r.Spec.head().Match {
		want(c.Subject, c.Key)
	}
	if t, ok := r.Spec.(*ThrottleSpec); ok && t.HotValues != nil {
		want(t.HotValues.Subject, t.HotValues.Key)
	}
	if len(m.keys)+len(fresh) > maxKeys {
		return fmt.Sprintf("the rules before it ask for the %d attachments and labels that a sidecar looks for", maxKeys)
	}
	m.bytes += len(b)
	for _, name := range fresh {
		m.keys[name] = true
	}
	return ""
}

// generation is a hash of all else in a configuration.
func generation(p *plugin.Plugin) string {
	p.Generation = ""
	b, err := json.Marshal(p)
	if err != nil { // it holds nothing that cannot be written
		panic("governance: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:6])
}

// render returns a configuration as it goes to the filter.
func render(p *plugin.Plugin) (*structpb.Struct, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	if faults := p.Validate(); len(faults) > 0 {
		return nil, faults
	}
	config := new(structpb.Struct)
	return config, protojson.Unmarshal(b, config)
}

func (o *Options) namespace() string {
	if o.Namespace == "" {
		return "istio-system"
	}
	return o.Namespace
}

// named puts the filter on ports under a name, with a configuration.
func named(name string, mode types.WorkloadMode, config *structpb.Struct, ports []uint16, o Options) []resource.Resource {
	fail := extensions.FailStrategy_FAIL_OPEN
	if o.FailClosed {
		fail = extensions.FailStrategy_FAIL_CLOSE
	}
	selectors := make([]*types.PortSelector, len(ports))
	for i, p := range ports {
		selectors[i] = &types.PortSelector{Number: uint32(p)}
	}
	namespace := o.namespace()
	labels := map[string]string{labelManagedBy: "isthmus"}
	return []resource.Resource{
		{
			Type: resource.TypeTrafficExtension, Namespace: namespace, Name: name, Labels: labels,
			Body: &extensions.TrafficExtension{
				Match: []*extensions.TrafficSelector{{Mode: mode, Ports: selectors}},
				FilterConfig: &extensions.TrafficExtension_Wasm{Wasm: &extensions.WasmConfig{
					Type: extensions.PluginType_NETWORK, Url: o.URL, Sha256: o.SHA256, ImagePullSecret: o.ImagePullSecret,
					PluginConfig: config, FailStrategy: fail, VmConfig: oneVM(),
				}},
			},
		},
		{
			Type: resource.TypeWasmPlugin, Namespace: namespace, Name: name, Labels: labels,
			Body: &extensions.WasmPlugin{
				Match: []*extensions.WasmPlugin_TrafficSelector{{Mode: mode, Ports: slices.Clone(selectors)}},
				Type:  extensions.PluginType_NETWORK, Url: o.URL, Sha256: o.SHA256, ImagePullSecret: o.ImagePullSecret,
				PluginConfig: config, FailStrategy: fail, VmConfig: oneVM(),
			},
		},
	}
}

// versionVariable is the environment variable in which istiod tells a VM the version of the resource
// (istio.io/istio pkg/model, WasmResourceVersionEnv), unless the resource names it itself.
const versionVariable = "ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION"

// oneVM keeps the filter in one VM over all versions of its configuration. Envoy has a VM for each set of environment
// variables; with istiod's own value a new rule would go to a new VM, and connections that are open, which stay with
// theirs, would never obey it.
func oneVM() *extensions.VmConfig {
	return &extensions.VmConfig{Env: []*extensions.EnvVar{{Name: versionVariable, Value: "isthmus"}}}
}
