package governance

import (
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	extensions "istio.io/api/extensions/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	types "istio.io/api/type/v1beta1"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// The names of the resources that lift services, and of what they put into sidecars.
const (
	LiftName  = "isthmus-lift"  // the extension that makes HTTP/2 of calls, and the EnvoyFilter
	LowerName = "isthmus-lower" // the extension that makes calls of HTTP/2 again at providers, and the internal listener that does so for callers
	// LowerCallerName is that listener's extension. It stands nowhere else: without the filter HTTP/2 would reach providers.
	LowerCallerName = "isthmus-lower-caller"

	// ProviderName is the extension, cluster, internal listener and HTTP filters where providers have a connection manager of their own.
	ProviderName = "isthmus-provider"

	xdsCluster      = "isthmus-xds"                  // our endpoint discovery service
	originalCluster = "isthmus-original-destination" // where the internal listeners send calls
	dialledName     = "isthmus-as-dialled"           // cluster, internal listener and HTTP filters of calls that go where they were addressed
	// mutual ends the names of those that speak mutual TLS with providers.
	mutual = "-mutual"
)

// extensionResource begins the name by which a sidecar asks istiod for an extension's configuration (istio.io/istio
// pilot/pkg/model, TrafficExtensionResourceNamePrefix).
const extensionResource = "extensions.istio.io/trafficextension/"

// originalDst is the listener filter that tells an internal listener where its connection goes: by metadata of the endpoint under this
// name, or by the filter state that is called like it and ".local_ip".
const originalDst = "envoy.filters.listener.original_dst"

// unknownHosts are the names of the virtual hosts, and of their routes, for authorities that istiod does not know: the first where
// calls to them are allowed, the second where they are not (istio.io/istio pilot/pkg/networking/util, Passthrough and BlackHole).
var unknownHosts = []string{"allow_any", "block_all"}

// LiftedHost is a lifted service, as far as sidecars have to be told.
type LiftedHost struct {
	Key    model.Key
	Host   string
	Hashed bool // the filter cannot find out the host by itself
	// AtProvider says that its endpoints are the providers' own sidecars, which speak HTTP/2.
	AtProvider bool
	Ports      []uint16
	Mode       LiftMode
}

// LiftMode is what becomes of the calls of a service that can be lifted. Larger ones are more careful.
type LiftMode uint8

// The modes.
const (
	LiftRouted      LiftMode = iota // they travel as HTTP/2, and go where routes say
	LiftDialled                     // they travel as HTTP/2, and go where their caller has dialled
	LiftPassthrough                 // their connections pass, those that were opened in this mode
)

// LiftCaller is what becomes of them at callers of one application.
type LiftCaller struct {
	Application string // of the workload, by its label app
	Mode        LiftMode
}

// LiftOptions say how services are lifted.
type LiftOptions struct {
	Hosts       []LiftedHost
	Ports       []uint16 // on which lifted services are called; sorted
	Suffix      string   // of the hosts
	Attachments []string // that become headers
	// ExceptionsFail says that a call whose business code threw is an HTTP failure.
	ExceptionsFail bool
	// ProviderPorts are those of Ports on which providers' sidecars have a connection manager of their own. Sorted.
	ProviderPorts []uint16
	// Identities are those of the providers that have one, and MutualPorts those of Ports on which all have. Sorted.
	Identities  []string
	MutualPorts []uint16
	// Metrics says that connection managers count calls as istio_requests_total.
	Metrics   bool
	Namespace string // of the workloads
	// Callers are applications whose mode is not OtherCallers. Of a service's mode and its caller's the more careful one holds.
	Callers      []LiftCaller
	OtherCallers LiftMode
	Virtual      netip.Prefix // of the services' own addresses; invalid: they have none
	XDS          XDS
}

// XDS is our endpoint discovery service as sidecars see it.
type XDS struct {
	Host string // address or name
	Port uint16
	// CAFile, in the sidecars, verifies us; "" is plaintext. CertFile and KeyFile, there too, are what we ask for. ServerName is
	// what our certificate must be for; default Host.
	CAFile, CertFile, KeyFile, ServerName string
	// Token is what sidecars send as bearer token. Whoever may read their configuration can read it.
	Token string
}

// Lift renders what makes sidecars lift calls: an extension for callers and one for providers, both with the rules in c, and an
// EnvoyFilter by which the clusters of the lifted services get their endpoints from us and reach them through an internal
// listener. There is nothing where no service is lifted.
func Lift(c *Compiled, l LiftOptions, o Options) (resource.Set, []model.Problem) {
	return new(Lifter).Lift(c, l, o)
}

// Lifter does what Lift does, time after time, at the cost of what is different. The zero value has not done it yet. It must not be used by
// several goroutines at once.
type Lifter struct {
	token string
	hosts map[string]*hostPatches

	compiled             *Compiled // that extensions are made of
	lift, atProvider     *plugin.Lift
	ports, providerPorts []uint16
	extensions           resource.Set
}

// hostPatches are the patches of one lifted service.
type hostPatches struct {
	atProvider bool // LiftedHost.AtProvider
	patches    []*networking.EnvoyFilter_EnvoyConfigObjectPatch
	wire       []byte // as fields of the EnvoyFilter
}

// Lift renders what makes sidecars lift calls. c must not be changed afterwards, and o must be what it was compiled with.
func (f *Lifter) Lift(c *Compiled, l LiftOptions, o Options) (resource.Set, []model.Problem) {
	if len(l.Hosts) == 0 {
		return resource.Set{}, nil
	}
	if o.URL == "" {
		return resource.Set{}, []model.Problem{{Severity: model.SeverityError, Place: "spec.mesh.lift", Code: "NotEnforced",
			Message: "services are to be lifted, but no filter is configured that would lift them"}}
	}
	lift, problems := l.plugin()
	for i := range c.Plugin.CircuitBreaker {
		b := &c.Plugin.CircuitBreaker[i]
		service := b.Target.Service.Strings()
		if b.PerEndpoint && slices.ContainsFunc(l.Hosts, func(h LiftedHost) bool { return service.Matches([]byte(h.Key.Interface)) }) {
			problems = append(problems, model.Problem{Severity: model.SeverityWarning, Place: "CircuitBreakerRule " + b.Name, Code: "NotEnforced",
				Message: "perEndpoint does not hold for the services that are lifted: their calls have no endpoint before Envoy routes them; a DestinationRule's outlierDetection does the same"})
		}
	}
	var atProvider *plugin.Lift
	if len(l.ProviderPorts) > 0 {
		atProvider = l.atProvider()
	}
	if f.compiled != c || !slices.Equal(f.ports, l.Ports) || !slices.Equal(f.providerPorts, l.ProviderPorts) || !reflect.DeepEqual(f.lift, lift) || !reflect.DeepEqual(f.atProvider, atProvider) {
		f.compiled, f.ports, f.providerPorts, f.lift, f.atProvider = c, l.Ports, l.ProviderPorts, lift, atProvider
		f.extensions = mustSet(resource.NewSet(l.extensions(c, lift, atProvider, o)))
	}
	resources := append(l.callers(o), f.filter(&l, o))
	if l.Metrics {
		// Apart from the other one: an istiod that does not know all of it drops it, and nothing else.
		resources = append(resources, envoyFilter(MetricsName, l.metrics(), o))
	}
	return mustSet(resource.Union(f.extensions, mustSet(resource.NewSet(resources)))), problems
}

// extensions are what puts the filter where it lifts and lowers.
func (l *LiftOptions) extensions(c *Compiled, lift, atProvider *plugin.Lift, o Options) []resource.Resource {
	lifting, lowering := c.Plugin, c.Plugin
	lifting.Lift, lowering.Lower = lift, &plugin.Lower{ExceptionsFail: l.ExceptionsFail}
	// Without the filter, what follows it could make nothing of what comes: connections end, so that whoever opened them knows.
	closed := o
	closed.FailClosed = true
	resources := named(LiftName, extensions.PluginType_NETWORK, types.WorkloadMode_CLIENT, mustRender(&lifting), l.Ports, closed)
	lower := slices.DeleteFunc(slices.Clone(l.Ports), func(p uint16) bool { return slices.Contains(l.ProviderPorts, p) })
	if len(lower) == 0 {
		lower = []uint16{nowhere}
	}
	resources = append(resources, named(LowerName, extensions.PluginType_NETWORK, types.WorkloadMode_SERVER, mustRender(&lowering), lower, o)...)
	here := plugin.Plugin{Generation: c.Plugin.Generation, Protocols: c.Plugin.Protocols, Limits: c.Plugin.Limits, Metrics: c.Plugin.Metrics, Lower: lowering.Lower}
	resources = append(resources, named(LowerCallerName, extensions.PluginType_NETWORK, types.WorkloadMode_SERVER, mustRender(&here), []uint16{nowhere}, closed)...)
	if atProvider != nil {
		behind := c.Plugin
		behind.Lift, behind.Lower = atProvider, &plugin.Lower{BehindHTTP: true, ExceptionsFail: l.ExceptionsFail}
		resources = append(resources, named(ProviderName, extensions.PluginType_NETWORK, types.WorkloadMode_SERVER, mustRender(&behind), l.ProviderPorts, closed)...)
	}
	return resources
}

// namesOf are those of a service that are in its calls.
func namesOf(k model.Key) model.Key {
	k.Framework = ""
	return k
}

// atProvider is what the filter is told at providers that have a connection manager of their own, which says whose calls it takes: all go
// on to the application.
func (l *LiftOptions) atProvider() *plugin.Lift {
	all := LiftOptions{Suffix: l.Suffix, Attachments: l.Attachments, Hosts: slices.Clone(l.Hosts)}
	for i := range all.Hosts {
		all.Hosts[i].Mode = LiftRouted
	}
	lift, _ := all.plugin()
	return lift
}

// Told is what the filter is told at callers, nil where nothing is lifted. It takes part in the generation of a Compiled.
func (l *LiftOptions) Told() *plugin.Lift {
	if l == nil || len(l.Hosts) == 0 {
		return nil
	}
	lift, _ := l.plugin()
	return lift
}

// plugin is what the filter is told at callers, and what it cannot be told.
func (l *LiftOptions) plugin() (lift *plugin.Lift, problems []model.Problem) {
	lift = &plugin.Lift{Suffix: l.Suffix, Attachments: l.Attachments, Applications: l.applications()}
	if l.Virtual.IsValid() {
		lift.VirtualAddresses = l.Virtual.String()
	}
	at := map[model.Key]int{} // by the names that the filter knows: no framework is among them
	for _, h := range l.Hosts {
		if h.Mode != LiftRouted {
			h.Host, h.Hashed = plugin.AsDialled, true
		}
		if !h.Hashed {
			continue
		}
		if i, ok := at[namesOf(h.Key)]; ok {
			if lift.Hosts[i].Host != h.Host {
				lift.Hosts[i].Host = plugin.AsDialled // the more careful of two; said below
			}
			continue
		}
		lift.Hosts = append(lift.Hosts, plugin.Host{Service: h.Key.Interface, Version: h.Key.Version, Group: h.Key.Group, Host: h.Host})
		// One service's odd name must not cost the others their configuration.
		why := ""
		if faults := (&plugin.Plugin{Lift: &plugin.Lift{Hosts: lift.Hosts[len(lift.Hosts)-1:]}}).Validate(); len(faults) > 0 {
			why = faults.Error()
		} else if len(lift.Hosts) > plugin.MaxHosts {
			why = fmt.Sprintf("it takes %d that do not follow from the name", plugin.MaxHosts)
		}
		if why != "" {
			lift.Hosts = lift.Hosts[:len(lift.Hosts)-1]
			problems = append(problems, model.Problem{Severity: model.SeverityError, Place: h.Key.String(), Code: "NotLifted",
				Message: "the filter cannot be told of its host, so calls go where they are addressed: " + why})
			continue
		}
		at[namesOf(h.Key)] = len(lift.Hosts) - 1
	}
	for _, h := range l.Hosts {
		if i, ok := at[namesOf(h.Key)]; ok && h.Mode == LiftRouted && lift.Hosts[i].Host != h.Host {
			problems = append(problems, model.Problem{Severity: model.SeverityWarning, Place: h.Key.String(), Code: "NotRouted",
				Message: "a service of the same names in another framework has another host, or its calls go where they are addressed; so do the calls of both, for the filter knows no framework"})
		}
	}
	return lift, problems
}

func envoyFilter(name string, patches []*networking.EnvoyFilter_EnvoyConfigObjectPatch, o Options) resource.Resource {
	return resource.Resource{
		Type: resource.TypeEnvoyFilter, Namespace: o.namespace(), Name: name, Labels: map[string]string{labelManagedBy: "isthmus"},
		Body: &networking.EnvoyFilter{ConfigPatches: patches},
	}
}

// mustSet is for sets that are made of what has been checked.
func mustSet(set resource.Set, err error) resource.Set {
	if err != nil {
		panic("governance: " + err.Error())
	}
	return set
}

// filter is the EnvoyFilter of all lifted services.
func (f *Lifter) filter(l *LiftOptions, o Options) resource.Resource {
	if f.token != l.XDS.Token {
		f.token, f.hosts = l.XDS.Token, nil
	}
	shared := l.patches(o)
	all := &networking.EnvoyFilter{ConfigPatches: shared}
	hosts := make(map[string]*hostPatches, len(l.Hosts)) // those that are there now, and no others
	wires := make([][]byte, 0, 1+len(l.Hosts))
	wires = append(wires, mustMarshal(all))
	for _, h := range l.Hosts {
		p := f.hosts[h.Host]
		if p == nil || p.atProvider != h.AtProvider {
			p = &hostPatches{atProvider: h.AtProvider, patches: l.hostPatches(&h)}
			p.wire = mustMarshal(&networking.EnvoyFilter{ConfigPatches: p.patches})
		}
		hosts[h.Host] = p
		all.ConfigPatches = append(all.ConfigPatches, p.patches...)
		wires = append(wires, p.wire)
	}
	f.hosts = hosts
	out := envoyFilter(LiftName, all.ConfigPatches, o)
	// EnvoyFilters that follow one another are one with the patches of all.
	out.Encode = func() ([]byte, error) { return slices.Concat(wires...), nil }
	return out
}

// mustMarshal encodes what is made of what has been checked.
func mustMarshal(m proto.Message) []byte {
	wire, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic("governance: " + err.Error())
	}
	return wire
}

// mustRender is render for what is made of what has been checked.
func mustRender(p *plugin.Plugin) *structpb.Struct {
	config, err := render(p)
	if err != nil {
		panic("governance: " + err.Error())
	}
	return config
}

type object = map[string]any

// unbounded is Envoy's largest number, which Istio too writes where it bounds nothing.
const unbounded = math.MaxUint32

// patches are those of the EnvoyFilter that are for no service alone: the cluster of our service, what the internal listeners need, and some
// for each port.
func (l *LiftOptions) patches(o Options) []*networking.EnvoyFilter_EnvoyConfigObjectPatch {
	patches := []*networking.EnvoyFilter_EnvoyConfigObjectPatch{
		patch(networking.EnvoyFilter_CLUSTER, "", networking.EnvoyFilter_Patch_ADD, l.XDS.cluster()),
	}
	patches = append(patches, callerPatches("", nil, o)...)
	if len(l.Identities) > 0 {
		patches = append(patches, callerPatches(mutual, mutualTLS(l.Identities), o)...)
	}
	if len(l.ProviderPorts) > 0 {
		patches = append(patches, l.providerPatches(o)...)
	}
	for _, port := range l.Ports {
		patches = append(patches, l.chains(port, o)...)
		patches = append(patches, asDialled(port, dialledName+l.mutual(port))...)
	}
	return patches
}

// hostPatches are the patches of one lifted service. They are two since a patch with a transport socket merges nothing else (istio.io/istio,
// mergeTransportSocketCluster).
func (l *LiftOptions) hostPatches(h *LiftedHost) []*networking.EnvoyFilter_EnvoyConfigObjectPatch {
	grpc := object{"envoy_grpc": object{"cluster_name": xdsCluster}}
	if l.XDS.Token != "" {
		grpc["initial_metadata"] = []any{object{"key": "authorization", "value": "Bearer " + l.XDS.Token}}
	}
	source := object{"resource_api_version": "V3", "api_config_source": object{
		"api_type": "DELTA_GRPC", "transport_api_version": "V3", "grpc_services": []any{grpc}, "set_node_on_first_message_only": true,
	}}
	out := []*networking.EnvoyFilter_EnvoyConfigObjectPatch{
		patch(networking.EnvoyFilter_CLUSTER, h.Host, networking.EnvoyFilter_Patch_MERGE, object{"eds_cluster_config": object{"eds_config": source}})}
	if !h.AtProvider { // else istiod's own transport sockets hold: plaintext, or mutual TLS with those who take it
		out = append(out, patch(networking.EnvoyFilter_CLUSTER, h.Host, networking.EnvoyFilter_Patch_MERGE, object{"transport_socket": internalUpstream(
			[]any{object{"kind": object{"host": object{}}, "name": originalDst}})}))
	}
	return out
}

// callerPatches are what lowers calls in the callers' own Envoys: one internal listener for calls that were routed, one for those that go
// where they were dialled, the cluster of the second, and where both send calls, over socket. suffix ends their names.
func callerPatches(suffix string, socket object, o Options) []*networking.EnvoyFilter_EnvoyConfigObjectPatch {
	original := object{
		"name": originalCluster + suffix, "type": "ORIGINAL_DST", "connect_timeout": "5s", "lb_policy": "CLUSTER_PROVIDED",
		"circuit_breakers": unboundedBreakers(), // the bounds are those of the service's own cluster, which comes before
	}
	if socket != nil {
		original["transport_socket"] = socket
	}
	return []*networking.EnvoyFilter_EnvoyConfigObjectPatch{
		patch(networking.EnvoyFilter_CLUSTER, "", networking.EnvoyFilter_Patch_ADD, original),
		patch(networking.EnvoyFilter_LISTENER, "", networking.EnvoyFilter_Patch_ADD, lowerListener(LowerName+suffix, LowerCallerName, originalCluster+suffix, o)),
		patch(networking.EnvoyFilter_LISTENER, "", networking.EnvoyFilter_Patch_ADD, lowerListener(dialledName+suffix, LowerCallerName, originalCluster+suffix, o)),
		patch(networking.EnvoyFilter_CLUSTER, "", networking.EnvoyFilter_Patch_ADD, internalCluster(dialledName+suffix)),
	}
}

func unboundedBreakers() object {
	return object{"thresholds": []any{object{"max_connections": int64(unbounded), "max_pending_requests": int64(unbounded), "max_requests": int64(unbounded)}}}
}

// internalCluster is a cluster whose one endpoint is the internal listener of the same name.
func internalCluster(name string) object {
	return object{
		"name": name, "type": "STATIC", "connect_timeout": "5s",
		"typed_extension_protocol_options": http2(object{}),
		"circuit_breakers":                 unboundedBreakers(),
		"load_assignment": object{"cluster_name": name, "endpoints": []any{object{"lb_endpoints": []any{object{
			"endpoint": object{"address": object{"envoy_internal_address": object{"server_listener_name": name}}}}}}}},
		"transport_socket": internalUpstream(nil),
	}
}

// The names by which sidecars ask their agent for their certificate and for whom to trust, and its cluster (istio.io/istio pkg/model,
// SDSDefaultResourceName, SDSRootResourceName, SDSClusterName).
const (
	secretDefault = "default"
	secretRoot    = "ROOTCA"
	agentCluster  = "sds-grpc"
)

// mutualTLS is the transport socket that istiod gives a cluster whose endpoints take mutual TLS and have one of these identities
// (istio.io/istio pilot/pkg/networking/core, buildUpstreamClusterTLSContext).
func mutualTLS(identities []string) object {
	secret := func(name string) object {
		return object{"name": name, "sds_config": object{"initial_fetch_timeout": "0s", "resource_api_version": "V3", "api_config_source": object{
			"api_type": "GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
			"grpc_services": []any{object{"envoy_grpc": object{"cluster_name": agentCluster}}},
		}}}
	}
	var names []any
	for _, id := range identities {
		names = append(names, object{"san_type": "URI", "matcher": object{"exact": id}})
	}
	return object{"name": "envoy.transport_sockets.tls", "typed_config": object{
		"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
		"common_tls_context": object{
			"alpn_protocols":                     []any{"istio"},
			"tls_certificate_sds_secret_configs": []any{secret(secretDefault)},
			"combined_validation_context": object{
				"default_validation_context":           object{"match_typed_subject_alt_names": names},
				"validation_context_sds_secret_config": secret(secretRoot),
			},
		},
	}}
}

// nowhere is the port of an extension that no listener of istiod's is to have: one that nobody serves (tcpmux, RFC 1078). istiod hands out its
// configuration to whoever asks for it by name all the same.
const nowhere = 1

// lowerListener is an internal listener that turns HTTP/2 back into the provider's protocol, by the extension of that name, and sends it to a cluster.
func lowerListener(name, by, cluster string, o Options) object {
	return object{
		"name": name, "internal_listener": object{},
		"listener_filters": []any{object{"name": originalDst,
			"typed_config": object{"@type": "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst"}}},
		"filter_chains": []any{object{"filters": []any{
			extension(by, o),
			object{"name": "envoy.filters.network.tcp_proxy", "typed_config": object{
				"@type":       "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
				"stat_prefix": name, "cluster": cluster, "idle_timeout": "0s",
			}},
		}}},
	}
}

// internalUpstream is the transport socket of a cluster whose endpoints are internal listeners.
func internalUpstream(metadata []any) object {
	config := object{
		"@type": "type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
		"transport_socket": object{"name": "envoy.transport_sockets.raw_buffer",
			"typed_config": object{"@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"}},
	}
	if metadata != nil {
		config["passthrough_metadata"] = metadata
	}
	return object{"name": "envoy.transport_sockets.internal_upstream", "typed_config": config}
}

// http2 are the options of a cluster that speaks HTTP/2.
func http2(options object) object {
	return object{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": object{
		"@type":                "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
		"explicit_http_config": object{"http2_protocol_options": options},
	}}
}

// headerDialled is the address that a call's caller has dialled, between two HTTP filters.
const headerDialled = "x-isthmus-dialled"

// asDialled sends the calls of services that istiod does not know to the provider that their caller has dialled, through cluster: a framework has
// services of its own, such as Dubbo's MetadataService, which no registry holds and which concern just that process. Two HTTP filters
// hand the address to an internal listener: the first writes it into a header, which it does on these routes only, the second makes
// the state of the upstream connection of it. (A patch cannot switch one filter on for a route: istiod reads patches with a reader that
// does not know the empty configuration by which Envoy is told.)
func asDialled(port uint16, cluster string) []*networking.EnvoyFilter_EnvoyConfigObjectPatch {
	// The one that is inserted last is first.
	out := []*networking.EnvoyFilter_EnvoyConfigObjectPatch{
		firstFilter(networking.EnvoyFilter_SIDECAR_OUTBOUND, port, dialledName+"-state", destination("%REQ("+headerDialled+")%")),
		firstFilter(networking.EnvoyFilter_SIDECAR_OUTBOUND, port, dialledName, object{"@type": "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation"}),
	}
	for _, name := range unknownHosts {
		p := patch(networking.EnvoyFilter_HTTP_ROUTE, "", networking.EnvoyFilter_Patch_MERGE, object{
			"route": object{"cluster": cluster},
			"typed_per_filter_config": object{dialledName: object{
				"@type": "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute",
				"mutations": object{"request_mutations": []any{object{"append": object{
					"header": object{"key": headerDialled, "value": "%DOWNSTREAM_LOCAL_ADDRESS%"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}}}},
			}},
		})
		p.Match.ObjectTypes = &networking.EnvoyFilter_EnvoyConfigObjectMatch_RouteConfiguration{RouteConfiguration: &networking.EnvoyFilter_RouteConfigurationMatch{
			PortNumber: uint32(port), Vhost: &networking.EnvoyFilter_RouteConfigurationMatch_VirtualHostMatch{Name: name},
		}}
		out = append(out, p)
	}
	return out
}

// firstFilter puts an HTTP filter before all others of the connection managers on a port.
func firstFilter(context networking.EnvoyFilter_PatchContext, port uint16, name string, config object) *networking.EnvoyFilter_EnvoyConfigObjectPatch {
	p := patch(networking.EnvoyFilter_HTTP_FILTER, "", networking.EnvoyFilter_Patch_INSERT_FIRST, object{"name": name, "typed_config": config})
	p.Match.Context = context
	p.Match.ObjectTypes = connectionManager(port)
	return p
}

// connectionManager matches those on a port.
func connectionManager(port uint16) *networking.EnvoyFilter_EnvoyConfigObjectMatch_Listener {
	return &networking.EnvoyFilter_EnvoyConfigObjectMatch_Listener{Listener: &networking.EnvoyFilter_ListenerMatch{
		PortNumber: uint32(port), FilterChain: &networking.EnvoyFilter_ListenerMatch_FilterChainMatch{
			Filter: &networking.EnvoyFilter_ListenerMatch_FilterMatch{Name: "envoy.filters.network.http_connection_manager"}},
	}}
}

// destination is an HTTP filter's configuration that hands an address on to an internal listener.
func destination(format string) object {
	return object{
		"@type": "type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config",
		"on_request_headers": []any{object{
			"object_key": originalDst + ".local_ip", "shared_with_upstream": "ONCE", "skip_if_empty": true,
			"format_string": object{"text_format_source": object{"inline_string": format}, "omit_empty_values": true},
		}},
	}
}

// cluster is our service as a cluster of a sidecar.
func (x *XDS) cluster() object {
	kind := "STRICT_DNS"
	if _, err := netip.ParseAddr(x.Host); err == nil {
		kind = "STATIC"
	}
	c := object{
		"name": xdsCluster, "type": kind, "connect_timeout": "1s",
		"typed_extension_protocol_options": http2(object{"connection_keepalive": object{"interval": "30s", "timeout": "5s"}}),
		// A stream for each cluster: the default circuit breaker would stop at 1024.
		"circuit_breakers": object{"thresholds": []any{object{"max_requests": int64(unbounded), "max_pending_requests": int64(unbounded)}}},
		"load_assignment": object{"cluster_name": xdsCluster, "endpoints": []any{object{"lb_endpoints": []any{object{
			"endpoint": object{"address": object{"socket_address": object{"address": x.Host, "port_value": int(x.Port)}}}}}}}},
	}
	if x.CAFile != "" {
		common := object{"validation_context": object{"trusted_ca": object{"filename": x.CAFile}}}
		name := x.ServerName
		if name == "" {
			name = x.Host
		}
		common["validation_context"].(object)["match_typed_subject_alt_names"] = subject(name)
		if x.CertFile != "" {
			common["tls_certificates"] = []any{object{"certificate_chain": object{"filename": x.CertFile}, "private_key": object{"filename": x.KeyFile}}}
		}
		context := object{"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", "common_tls_context": common}
		if _, err := netip.ParseAddr(name); err != nil {
			context["sni"] = name
		}
		c["transport_socket"] = object{"name": "envoy.transport_sockets.tls", "typed_config": context}
	}
	return c
}

// subject is the name that a certificate must be for.
func subject(name string) []any {
	kind := "DNS"
	if _, err := netip.ParseAddr(name); err == nil {
		kind = "IP_ADDRESS"
	}
	return []any{object{"san_type": kind, "matcher": object{"exact": name}}}
}

// patch makes one patch for outbound traffic; host, if it is not "", is the service whose clusters are meant.
func patch(to networking.EnvoyFilter_ApplyTo, host string, op networking.EnvoyFilter_Patch_Operation, value object) *networking.EnvoyFilter_EnvoyConfigObjectPatch {
	match := &networking.EnvoyFilter_EnvoyConfigObjectMatch{Context: networking.EnvoyFilter_SIDECAR_OUTBOUND}
	if host != "" {
		match.ObjectTypes = &networking.EnvoyFilter_EnvoyConfigObjectMatch_Cluster{Cluster: &networking.EnvoyFilter_ClusterMatch{Service: host}}
	}
	body, err := structpb.NewStruct(value)
	if err != nil { // literals, and strings that are valid UTF-8
		panic("governance: " + err.Error())
	}
	return &networking.EnvoyFilter_EnvoyConfigObjectPatch{ApplyTo: to, Match: match, Patch: &networking.EnvoyFilter_Patch{Operation: op, Value: body}}
}
