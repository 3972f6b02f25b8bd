package governance

import (
	networking "istio.io/api/networking/v1alpha3"

	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// inboundOriginal is istiod's cluster of a sidecar that sends what comes in to where it was addressed, by the loopback address at which
// interception knows it (istio.io/istio pilot/pkg/networking/util, InboundPassthroughCluster).
const inboundOriginal = "InboundPassthroughCluster"

// providerPatches are for providers that have a connection manager of their own. istiod makes one of the port's protocol; behind
// it an internal listener lowers calls, since the application speaks its own protocol. Two HTTP filters, before those that decide, hand on what is
// known of the connection: where it was addressed, as state of the upstream connection, and whose it is, as a header of each call.
func (l *LiftOptions) providerPatches(o Options) []*networking.EnvoyFilter_EnvoyConfigObjectPatch {
	out := []*networking.EnvoyFilter_EnvoyConfigObjectPatch{
		patch(networking.EnvoyFilter_LISTENER, "", networking.EnvoyFilter_Patch_ADD, lowerListener(ProviderName, ProviderName, inboundOriginal, o)),
		patch(networking.EnvoyFilter_CLUSTER, "", networking.EnvoyFilter_Patch_ADD, internalCluster(ProviderName)),
	}
	for _, port := range l.ProviderPorts {
		route := patch(networking.EnvoyFilter_HTTP_ROUTE, "", networking.EnvoyFilter_Patch_MERGE, object{"route": object{"cluster": ProviderName}})
		route.Match.Context = networking.EnvoyFilter_SIDECAR_INBOUND
		route.Match.ObjectTypes = &networking.EnvoyFilter_EnvoyConfigObjectMatch_RouteConfiguration{
			RouteConfiguration: &networking.EnvoyFilter_RouteConfigurationMatch{PortNumber: uint32(port)}}
		out = append(out, route,
			firstFilter(networking.EnvoyFilter_SIDECAR_INBOUND, port, ProviderName+"-state", destination("%DOWNSTREAM_LOCAL_ADDRESS%")),
			firstFilter(networking.EnvoyFilter_SIDECAR_INBOUND, port, ProviderName, headers(map[string]string{
				plugin.PeerHeader: "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%;%DOWNSTREAM_PEER_URI_SAN%"})))
	}
	return out
}

// headers is an HTTP filter's configuration that sets headers of each request, whatever its caller has sent.
func headers(formats map[string]string) object {
	var mutations []any
	for _, name := range sortedKeys(formats) {
		mutations = append(mutations, object{"append": object{"header": object{"key": name, "value": formats[name]}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}})
	}
	return object{"@type": "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation", "mutations": object{"request_mutations": mutations}}
}
