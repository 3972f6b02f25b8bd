package governance

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// Envoy closes the connections of a listener, or of a filter chain, that is no longer there as it was, whatever is under way on them. So
// the listener of a port has the chain for lifted connections and the one for others at the same time, in every mode, and
// what a mode decides is which of them new connections get: that stands beside the chains, in the listener's matcher, and Envoy leaves all
// connections alone where only that changes (ListenerMessageUtil::filterChainOnlyChange; FilterChainManagerImpl keeps chains that
// are the same). On connections that are lifted, the filter decides call by call, by its configuration.

// The filter chains of a port on which services can be lifted.
const (
	chainLifted      = "isthmus-lifted"      // istiod's own, with the HTTP connection manager
	chainPassthrough = "isthmus-passthrough" // to whom the caller has dialled
)

// chains are the patches for the two chains of a port.
func (l *LiftOptions) chains(port uint16, o Options) []*networking.EnvoyFilter_EnvoyConfigObjectPatch {
	name := patch(networking.EnvoyFilter_FILTER_CHAIN, "", networking.EnvoyFilter_Patch_MERGE, object{"name": chainLifted})
	name.Match.ObjectTypes = &networking.EnvoyFilter_EnvoyConfigObjectMatch_Listener{Listener: &networking.EnvoyFilter_ListenerMatch{
		PortNumber: uint32(port), FilterChain: &networking.EnvoyFilter_ListenerMatch_FilterChainMatch{ApplicationProtocols: "h2c"},
	}}
	pass := object{
		"name": chainPassthrough, "filters": []any{
			// On outbound connections it lowers nothing, and holds the rules.
			extension(LowerName, o),
			object{"name": "envoy.filters.network.tcp_proxy", "typed_config": object{
				"@type":       "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
				"stat_prefix": chainPassthrough, "cluster": originalCluster + l.mutual(port), "idle_timeout": "0s",
			}},
		},
	}
	rest := newConnections(l.chain(port, l.OtherCallers))
	if l.Virtual.IsValid() {
		// Who dials a service's own address has to be told a provider in every mode.
		rest["matcher_tree"] = object{
			"input": input("DestinationIPInput"),
			"custom_match": object{"name": "virtual", "typed_config": object{
				"@type": "type.googleapis.com/xds.type.matcher.v3.IPMatcher",
				"range_matchers": []any{object{
					"ranges":   []any{object{"address_prefix": l.Virtual.Addr().String(), "prefix_len": l.Virtual.Bits()}},
					"on_match": chain(chainLifted),
				}},
			}},
		}
	}
	// HTTP on the same port is no concern of ours in any mode. The names are as Envoy's HTTP inspector finds them, in quotes
	// (ApplicationProtocolInput).
	http := object{}
	for _, name := range []string{"http/1.0", "http/1.1", "h2c"} {
		http["'"+name+"'"] = chain(chainLifted)
	}
	// What the application itself has encrypted nobody can read.
	encrypted := object{"tls": chain(chainPassthrough)}
	matcher := object{
		"matcher_tree": object{"input": input("TransportProtocolInput"), "exact_match_map": object{"map": encrypted}},
		"on_no_match": object{"matcher": object{
			"matcher_tree": object{"input": input("ApplicationProtocolInput"), "exact_match_map": object{"map": http}},
			"on_no_match":  object{"matcher": rest},
		}},
	}
	inspector := object{"name": "envoy.filters.listener.tls_inspector",
		"typed_config": object{"@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"}}
	// A patch that adds a chain would add it to the listener of all outbound connections, too, whatever port it names (istio.io/istio, listenerMatch).
	both := patch(networking.EnvoyFilter_LISTENER, "", networking.EnvoyFilter_Patch_MERGE, object{
		"listener_filters": []any{inspector}, "filter_chains": []any{pass}, "filter_chain_matcher": matcher})
	both.Match.ObjectTypes = onPort(port)
	return []*networking.EnvoyFilter_EnvoyConfigObjectPatch{name, both}
}

// mutual ends the names of the clusters that calls to a port go to.
func (l *LiftOptions) mutual(port uint16) string {
	if slices.Contains(l.MutualPorts, port) {
		return mutual
	}
	return ""
}

// newConnections is what of a port's matcher a mode decides.
func newConnections(name string) object { return object{"on_no_match": chain(name)} }

// input is something that a listener's matcher looks at.
func input(kind string) object {
	return object{"name": kind, "typed_config": object{"@type": "type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3." + kind}}
}

// chain is the action of a listener's matcher that takes a filter chain.
func chain(name string) object {
	return object{"action": object{"name": "chain", "typed_config": object{"@type": "type.googleapis.com/google.protobuf.StringValue", "value": name}}}
}

// extension is a filter whose configuration istiod hands out as that of an extension.
func extension(name string, o Options) object {
	return object{"name": extensionResource + o.namespace() + "." + name, "config_discovery": object{
		"config_source": object{"ads": object{}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"},
		"type_urls":     []any{"type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm", "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC"},
	}}
}

func onPort(port uint16) *networking.EnvoyFilter_EnvoyConfigObjectMatch_Listener {
	return &networking.EnvoyFilter_EnvoyConfigObjectMatch_Listener{Listener: &networking.EnvoyFilter_ListenerMatch{PortNumber: uint32(port)}}
}

// chain returns the name of the chain for new connections to a port, at callers of a mode. A connection does not say which service it is
// for: it is lifted if one that may be called there is.
func (l *LiftOptions) chain(port uint16, caller LiftMode) string {
	for _, h := range l.Hosts {
		if max(h.Mode, caller) < LiftPassthrough && slices.Contains(h.Ports, port) {
			return chainLifted
		}
	}
	return chainPassthrough
}

// applications are those at which calls go where routes say.
func (l *LiftOptions) applications() (m plugin.Match) {
	for _, c := range l.Callers {
		switch routed := c.Mode == LiftRouted; {
		case routed && l.OtherCallers != LiftRouted:
			m.In = append(m.In, c.Application)
		case !routed && l.OtherCallers == LiftRouted:
			m.NotIn = append(m.NotIn, c.Application)
		}
	}
	if l.OtherCallers != LiftRouted && len(m.In) == 0 {
		m.In = []string{"*"} // nobody's: no label is called so
	}
	return m
}

// callers are the EnvoyFilters for callers whose connections do not get the chains that others' get.
func (l *LiftOptions) callers(o Options) []resource.Resource {
	var out []resource.Resource
	for _, c := range l.Callers {
		var patches []*networking.EnvoyFilter_EnvoyConfigObjectPatch
		for _, port := range l.Ports {
			if own := l.chain(port, c.Mode); own != l.chain(port, l.OtherCallers) {
				p := patch(networking.EnvoyFilter_LISTENER, "", networking.EnvoyFilter_Patch_MERGE, object{
					"filter_chain_matcher": object{"on_no_match": object{"matcher": object{"on_no_match": object{"matcher": newConnections(own)}}}}})
				p.Match.ObjectTypes = onPort(port)
				patches = append(patches, p)
			}
		}
		if len(patches) == 0 {
			continue
		}
		sum := sha256.Sum256([]byte(c.Application)) // which may be no name of a resource
		out = append(out, resource.Resource{
			Type: resource.TypeEnvoyFilter, Namespace: o.namespace(), Name: LiftName + "-caller-" + hex.EncodeToString(sum[:5]), Labels: map[string]string{labelManagedBy: "isthmus"},
			Body: &networking.EnvoyFilter{
				WorkloadSelector: &networking.WorkloadSelector{Labels: map[string]string{"app": c.Application}},
				ConfigPatches:    patches,
				Priority:         10, // after those for all
			},
		})
	}
	return out
}
