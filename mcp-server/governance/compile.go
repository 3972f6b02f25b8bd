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

// The names of the resources that put the filter into the sidecars: before what carries bytes, and among the filters of HTTP.
const (
	ExtensionName     = "isthmus"
	HTTPExtensionName = "isthmus-http"
)

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
	// Keys are what tokens are signed with.
	Keys *Keys
	// Lift says how services are lifted, if any are. Compile puts keys that are not for all on its ports, too, and gives its configuration
	// the generation that Lift's have: a sidecar has several of them, and which rules it runs is told by one.
	Lift *LiftOptions
}

// Compiled is what becomes of the rules.
type Compiled struct {
	// Set holds one TrafficExtension and one WasmPlugin, which say the same to newer and to older versions of Istio, for the ports of TCP, one of each
	// for those of HTTP, and one of each for every application that needs secrets; nothing where there is no filter or no port.
	Set resource.Set
	// Plugin is the filter's configuration. Its Generation is a hash of all else in it.
	Plugin   plugin.Plugin
	Problems []model.Problem
}

// Ports are those that the filter stands on. Each list must be sorted; services that come and go on them change nothing. A port may be in both.
type Ports struct {
	TCP  []uint16 // as a network filter
	HTTP []uint16 // as an HTTP filter
}

// Compile puts the filter on ports in every sidecar, with the rules. Both filters get one configuration, whose generation says of both together what
// a sidecar runs.
func Compile(rules []Rule, ports Ports, o Options) Compiled {
	var out Compiled
	out.Plugin = o.Plugin
	p := &out.Plugin
	p.Access, p.FaultInjection, p.Degrade, p.CircuitBreaker, p.Throttle = nil, nil, nil, nil, nil
	p.Keys = nil
	room := room{keys: map[string]bool{}}
	wants := delivery{map[string]bool{}, map[string]map[string]bool{}}
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
		if why := unanswerable(r); why != "" {
			out.Problems = append(out.Problems, model.Problem{Severity: model.SeverityWarning, Place: place(r.File, r.Line), Code: "NoReply", Message: fmt.Sprintf("%s: %s", r.ID, why)})
		}
		out.Problems = append(out.Problems, wants.want(o.Keys, r)...)
	}
	p.Keys = o.Keys.keysFor(wants.all)
	whole := out.Plugin
	if whole.Lift = o.Lift.Told(); whole.Lift != nil {
		whole.Lower = &plugin.Lower{ExceptionsFail: o.Lift.ExceptionsFail}
	}
	out.Plugin.Generation = generation(&whole)
	config := mustRender(&out.Plugin)
	var lifted []uint16
	if o.Lift != nil {
		lifted = o.Lift.Ports
	}
	if o.URL == "" || len(ports.TCP)+len(ports.HTTP)+len(lifted) == 0 {
		if enabled := p.Rules(); enabled > 0 && o.URL == "" {
			out.Problems = append(out.Problems, model.Problem{Severity: model.SeverityWarning, Place: "spec.filter", Code: "NotEnforced",
				Message: fmt.Sprintf("there are %d rules, but no filter is configured that would enforce them", enabled)})
		}
		return out
	}
	var resources []resource.Resource
	if len(ports.TCP) > 0 {
		resources = named(ExtensionName, extensions.PluginType_NETWORK, types.WorkloadMode_CLIENT_AND_SERVER, config, ports.TCP, o)
	}
	if len(ports.HTTP) > 0 {
		resources = append(resources, named(HTTPExtensionName, extensions.PluginType_HTTP, types.WorkloadMode_CLIENT_AND_SERVER, config, ports.HTTP, o)...)
	}
	everywhere := slices.Concat(ports.TCP, ports.HTTP, lifted)
	slices.Sort(everywhere)
	everywhere = slices.Compact(everywhere)
	for app, names := range wants.apps {
		resources = append(resources, carriers(app, o.Keys.keysFor(names), everywhere, o)...)
	}
	set, err := resource.NewSet(resources)
	if err != nil { // two with one name: there are not
		panic("governance: " + err.Error())
	}
	out.Set = set
	return out
}

// unanswerable tells why a rule's reply reaches nobody: Envoy answers gRPC, and so Triple, with a status only.
func unanswerable(r *Rule) string {
	s, ok := r.Spec.(*DegradeSpec)
	if !ok || s.Reply == nil || !s.head().only(plugin.SystemTriple) {
		return ""
	}
	return "a call of Triple cannot be given a reply; it is rejected as unavailable instead"
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
	if a, ok := r.Spec.(*AccessSpec); ok && a.Token != nil {
		for _, name := range a.Token.plugin().Asks() {
			want(plugin.SubjectAttachment, Text(name))
		}
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

// carriers put keys into the sidecars of one application: an extension of its own, whose workloads are selected by their label "app", in front of
// the filter's own, which finds the keys in their common VM.
func carriers(app string, keys []plugin.Key, ports []uint16, o Options) []resource.Resource {
	sum := sha256.Sum256([]byte(app))
	carrier := plugin.Plugin{Keys: keys, KeysOnly: true}
	carrier.Generation = generation(&carrier)
	config := mustRender(&carrier)
	resources := named(ExtensionName+"-keys-"+hex.EncodeToString(sum[:5]), extensions.PluginType_NETWORK, types.WorkloadMode_CLIENT_AND_SERVER, config, ports, o)
	selector := func() *types.WorkloadSelector {
		return &types.WorkloadSelector{MatchLabels: map[string]string{"app": app}}
	}
	for _, r := range resources {
		switch b := r.Body.(type) {
		case *extensions.TrafficExtension:
			b.Selector, b.Phase = selector(), extensions.TrafficExtension_AUTHN
		case *extensions.WasmPlugin:
			b.Selector, b.Phase = selector(), extensions.PluginPhase_AUTHN
		}
	}
	return resources
}

// generation is a hash of all else in a configuration. It is shown to everybody, so it says nothing of secrets, not even whether they have
// changed.
func generation(p *plugin.Plugin) string {
	public := *p
	public.Generation, public.Keys = "", slices.Clone(p.Keys)
	for i := range public.Keys {
		if isSecret(public.Keys[i]) {
			public.Keys[i].Value = ""
		}
	}
	b, err := json.Marshal(&public)
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

// named puts the filter on ports under a name, as a filter of that kind, with a configuration.
func named(name string, kind extensions.PluginType, mode types.WorkloadMode, config *structpb.Struct, ports []uint16, o Options) []resource.Resource {
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
					Type: kind, Url: o.URL, Sha256: o.SHA256, ImagePullSecret: o.ImagePullSecret,
					PluginConfig: config, FailStrategy: fail, VmConfig: oneVM(),
				}},
			},
		},
		{
			Type: resource.TypeWasmPlugin, Namespace: namespace, Name: name, Labels: labels,
			Body: &extensions.WasmPlugin{
				Match: []*extensions.WasmPlugin_TrafficSelector{{Mode: mode, Ports: slices.Clone(selectors)}},
				Type:  kind, Url: o.URL, Sha256: o.SHA256, ImagePullSecret: o.ImagePullSecret,
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
