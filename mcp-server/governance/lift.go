package governance

import (
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	networking "istio.io/api/networking/v1alpha3"
	types "istio.io/api/type/v1beta1"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// The names of the resources that lift services, and of what they put into sidecars.
const (
	LiftName  = "isthmus-lift"  // the extension that makes HTTP/2 of calls, and the EnvoyFilter
	LowerName = "isthmus-lower" // the extension that makes calls of HTTP/2 again, and the internal listener that does so for callers

	xdsCluster      = "isthmus-xds"                  // our endpoint discovery service
	originalCluster = "isthmus-original-destination" // where the internal listeners send calls
	dialledName     = "isthmus-as-dialled"           // cluster, internal listener and HTTP filters of calls that go where they were addressed
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
}

// LiftOptions say how services are lifted.
type LiftOptions struct {
	Hosts       []LiftedHost
	Ports       []uint16 // on which lifted services are called; sorted
	Suffix      string   // of the hosts
	Attachments []string // that become headers
	XDS         XDS
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

	compiled   *Compiled // that extensions are made of
	lift       *plugin.Lift
	ports      []uint16
	extensions resource.Set
}

// hostPatches are the patches of one lifted service.
type hostPatches struct {
	patches []*networking.EnvoyFilter_EnvoyConfigObjectPatch
	wire    []byte // as fields of the EnvoyFilter
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
	lift := &plugin.Lift{Suffix: l.Suffix, Attachments: l.Attachments}
	var problems []model.Problem
	for _, h := range l.Hosts {
		if !h.Hashed {
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
		}
	}
	if f.compiled != c || !slices.Equal(f.ports, l.Ports) || !reflect.DeepEqual(f.lift, lift) {
		f.compiled, f.ports, f.lift = c, l.Ports, lift
		lifting, lowering := c.Plugin, c.Plugin
		lifting.Lift, lowering.Lower = lift, new(plugin.Lower)
		resources := named(LiftName, types.WorkloadMode_CLIENT, mustRender(&lifting), l.Ports, o)
		resources = append(resources, named(LowerName, types.WorkloadMode_SERVER, mustRender(&lowering), l.Ports, o)...)
		f.extensions = mustSet(resource.NewSet(resources))
	}
	return mustSet(resource.Union(f.extensions, mustSet(resource.NewSet([]resource.Resource{f.envoyFilter(&l, o)})))), problems
}

// mustSet is for sets that are made of what has been checked.
func mustSet(set resource.Set, err error) resource.Set {
	if err != nil {
		panic("governance: " + err.Error())
	}
	return set
}

// envoyFilter is the EnvoyFilter of all lifted services.
func (f *Lifter) envoyFilter(l *LiftOptions, o Options) resource.Resource {
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
		if p == nil {
			p = &hostPatches{patches: l.hostPatches(h.Host)}
			p.wire = mustMarshal(&networking.EnvoyFilter{ConfigPatches: p.patches})
		}
		hosts[h.Host] = p
		all.ConfigPatches = append(all.ConfigPatches, p.patches...)
		wires = append(wires, p.wire)
	}
	f.hosts = hosts
	return resource.Resource{
		Type: resource.TypeEnvoyFilter, Namespace: o.namespace(), Name: LiftName, Labels: map[string]string{labelManagedBy: "isthmus"}, Body: all,
		// EnvoyFilters that follow one another are one with the patches of all.
		Encode: func() ([]byte, error) { return slices.Concat(wires...), nil },
	}
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
		patch(networking.EnvoyFilter_CLUSTER, "", networking.EnvoyFilter_Patch_ADD, object{
			"name": originalCluster, "type": "ORIGINAL_DST", "connect_timeout": "5s", "lb_policy": "CLUSTER_PROVIDED",
			// The bounds are those of the service's own cluster, which comes before.
			"circuit_breakers": object{"thresholds": []any{object{"max_connections": int64(unbounded), "max_pending_requests": int64(unbounded), "max_requests": int64(unbounded)}}},
		}),
		patch(networking.EnvoyFilter_LISTENER, "", networking.EnvoyFilter_Patch_ADD, lowerListener(LowerName, o)),
		patch(networking.EnvoyFilter_LISTENER, "", networking.EnvoyFilter_Patch_ADD, lowerListener(dialledName, o)),
		patch(networking.EnvoyFilter_CLUSTER, "", networking.EnvoyFilter_Patch_ADD, object{
			"name": dialledName, "type": "STATIC", "connect_timeout": "5s",
			"typed_extension_protocol_options": http2(object{}),
			"circuit_breakers":                 object{"thresholds": []any{object{"max_connections": int64(unbounded), "max_pending_requests": int64(unbounded), "max_requests": int64(unbounded)}}},
			"load_assignment": object{"cluster_name": dialledName, "endpoints": []any{object{"lb_endpoints": []any{object{
				"endpoint": object{"address": object{"envoy_internal_address": object{"server_listener_name": dialledName}}}}}}}},
			"transport_socket": internalUpstream(nil),
		}),
	}
	for _, port := range l.Ports {
		patches = append(patches, everything(port))
		patches = append(patches, asDialled(port)...)
	}
	return patches
}

// hostPatches are the patches of one lifted service. They are two since a patch with a transport socket merges nothing else (istio.io/istio,
// mergeTransportSocketCluster).
func (l *LiftOptions) hostPatches(host string) []*networking.EnvoyFilter_EnvoyConfigObjectPatch {
	grpc := object{"envoy_grpc": object{"cluster_name": xdsCluster}}
	if l.XDS.Token != "" {
		grpc["initial_metadata"] = []any{object{"key": "authorization", "value": "Bearer " + l.XDS.Token}}
	}
	source := object{"resource_api_version": "V3", "api_config_source": object{
		"api_type": "DELTA_GRPC", "transport_api_version": "V3", "grpc_services": []any{grpc}, "set_node_on_first_message_only": true,
	}}
	return []*networking.EnvoyFilter_EnvoyConfigObjectPatch{
		patch(networking.EnvoyFilter_CLUSTER, host, networking.EnvoyFilter_Patch_MERGE, object{"eds_cluster_config": object{"eds_config": source}}),
		patch(networking.EnvoyFilter_CLUSTER, host, networking.EnvoyFilter_Patch_MERGE, object{"transport_socket": internalUpstream(
			[]any{object{"kind": object{"host": object{}}, "name": originalDst}})}),
	}
}

// lowerListener is an internal listener that turns HTTP/2 back into the provider's protocol.
func lowerListener(name string, o Options) object {
	return object{
		"name": name, "internal_listener": object{},
		"listener_filters": []any{object{"name": originalDst,
			"typed_config": object{"@type": "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst"}}},
		"filter_chains": []any{object{"filters": []any{
			object{"name": extensionResource + o.namespace() + "." + LowerName, "config_discovery": object{
				"config_source": object{"ads": object{}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"},
				"type_urls":     []any{"type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm", "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC"},
			}},
			object{"name": "envoy.filters.network.tcp_proxy", "typed_config": object{
				"@type":       "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
				"stat_prefix": name, "cluster": originalCluster, "idle_timeout": "0s",
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

// asDialled sends the calls of services that istiod does not know to the provider that their caller has dialled: a framework has
// services of its own, such as Dubbo's MetadataService, which no registry holds and which concern just that process. Two HTTP filters
// hand the address to an internal listener: the first writes it into a header, which it does on these routes only, the second makes
// the state of the upstream connection of it. (A patch cannot switch one filter on for a route: istiod reads patches with a reader that
// does not know the empty configuration by which Envoy is told.)
func asDialled(port uint16) []*networking.EnvoyFilter_EnvoyConfigObjectPatch {
	first := func(name string, config object) *networking.EnvoyFilter_EnvoyConfigObjectPatch {
		p := patch(networking.EnvoyFilter_HTTP_FILTER, "", networking.EnvoyFilter_Patch_INSERT_FIRST, object{"name": name, "typed_config": config})
		p.Match.ObjectTypes = &networking.EnvoyFilter_EnvoyConfigObjectMatch_Listener{Listener: &networking.EnvoyFilter_ListenerMatch{
			PortNumber: uint32(port), FilterChain: &networking.EnvoyFilter_ListenerMatch_FilterChainMatch{
				Filter: &networking.EnvoyFilter_ListenerMatch_FilterMatch{Name: "envoy.filters.network.http_connection_manager"}},
		}}
		return p
	}
	// The one that is inserted last is first.
	out := []*networking.EnvoyFilter_EnvoyConfigObjectPatch{
		first(dialledName+"-state", object{
			"@type": "type.googleapis.com/envoy.extensions.filters.http.set_filter_state.v3.Config",
			"on_request_headers": []any{object{
				"object_key": originalDst + ".local_ip", "shared_with_upstream": "ONCE", "skip_if_empty": true,
				"format_string": object{"text_format_source": object{"inline_string": "%REQ(" + headerDialled + ")%"}, "omit_empty_values": true},
			}},
		}),
		first(dialledName, object{"@type": "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation"}),
	}
	for _, name := range unknownHosts {
		p := patch(networking.EnvoyFilter_HTTP_ROUTE, "", networking.EnvoyFilter_Patch_MERGE, object{
			"route": object{"cluster": dialledName},
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

// everything sends all connections to a port to the HTTP connection manager, ahead of which the filter lifts. istiod sends there what
// Envoy's HTTP inspector takes for HTTP, by the application protocols in the chain's match, and everything else past it. One more
// protocol with an empty name is what Envoy has for "any" (FilterChainManagerImpl, findFilterChainForApplicationProtocols).
func everything(port uint16) *networking.EnvoyFilter_EnvoyConfigObjectPatch {
	p := patch(networking.EnvoyFilter_FILTER_CHAIN, "", networking.EnvoyFilter_Patch_MERGE, object{"filter_chain_match": object{"application_protocols": []any{""}}})
	p.Match.ObjectTypes = &networking.EnvoyFilter_EnvoyConfigObjectMatch_Listener{Listener: &networking.EnvoyFilter_ListenerMatch{
		PortNumber: uint32(port), FilterChain: &networking.EnvoyFilter_ListenerMatch_FilterChainMatch{ApplicationProtocols: "h2c"},
	}}
	return p
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
