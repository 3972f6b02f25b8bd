package governance

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	networking "istio.io/api/networking/v1alpha3"
)

// MetricsName is the EnvoyFilter by which connection managers count calls, and its HTTP filter.
const MetricsName = "isthmus-metrics"

// Headers by which a caller's sidecar tells a provider's who it is, as Istio's own do with x-envoy-peer-metadata; whom to believe,
// source_principal tells. And those that a provider's sets for its own counting, since to look something up once is cheaper than for each
// label.
const (
	headerSource      = "x-isthmus-source-"
	headerDestination = "x-isthmus-destination-"
)

// unknown is how Istio's metrics say so.
const unknown = "unknown"

// label reads the sidecar's own labels, the first that is there, and is otherwise a constant.
func label(otherwise string, names ...string) string {
	const all = "xds.node.metadata.LABELS"
	expression := "'" + otherwise + "'"
	for _, n := range slices.Backward(names) {
		expression = fmt.Sprintf("'%s' in %s ? %s['%s'] : %s", n, all, all, n, expression)
	}
	return "%CEL(" + expression + ")%"
}

// self are headers that say who the sidecar's workload is, below a prefix.
func self(prefix string) object {
	return headers(map[string]string{
		prefix + "workload":  label(unknown, "app", "app.kubernetes.io/name"),
		prefix + "namespace": "%CEL(xds.node.metadata.NAMESPACE)%",
		prefix + "service":   label(unknown, "service.istio.io/canonical-name", "app.kubernetes.io/name", "app"),
		prefix + "version":   label(unknown, "version"),
		prefix + "revision":  label("latest", "service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"),
		prefix + "cluster":   "%CEL(xds.node.metadata.CLUSTER_ID)%",
	})
}

// A command is one of Envoy's access log.
type command struct{ name, argument string }

// firstOf is what the first command yields that yields something, and otherwise what an expression says, which is looked at only then.
func firstOf(otherwise string, commands ...command) string {
	var operators []any
	for _, c := range append(commands, command{"CEL", otherwise}) {
		o := object{"command": c.name}
		if c.argument != "" {
			o["param"] = c.argument
		}
		operators = append(operators, o)
	}
	b, err := json.Marshal(object{"operators": operators})
	if err != nil { // strings
		panic("governance: " + err.Error())
	}
	return "%COALESCE(" + string(b) + ")%"
}

// known is what the first command yields that yields something, or "unknown".
func known(commands ...command) string { return firstOf("'"+unknown+"'", commands...) }

func header(name string) command { return command{"REQ", name} }

// chosen is what our endpoint discovery says of the endpoint that a call went to.
func chosen(field string) command { return command{"UPSTREAM_METADATA", "isthmus:" + field} }

// local translates the status of an answer of Envoy's own as Envoy does it for gRPC (Grpc::Utility::httpToGrpcStatus).
const local = "response.code == 200 ? '0' : response.code == 400 ? '13' : response.code == 401 ? '16' : response.code == 403 ? '7' : response.code == 404 ? '12'" +
	" : response.code in [429, 502, 503, 504] ? '14' : '2'"

// metrics are patches by which connection managers count calls as Istio's own filter does in Istio's own Envoy: under its names, with its
// labels (istio.io/docs, Istio Standard Metrics), by Envoy's access logger for statistics. request_protocol is grpc: Kiali knows http, grpc
// and tcp, and only grpc has a status of the call beside that of HTTP.
func (l *LiftOptions) metrics() []*networking.EnvoyFilter_EnvoyConfigObjectPatch {
	const outbound, inbound = networking.EnvoyFilter_SIDECAR_OUTBOUND, networking.EnvoyFilter_SIDECAR_INBOUND
	shared := map[string]string{
		"destination_service": "%REQ(:AUTHORITY)%", "destination_service_name": "%REQ(:AUTHORITY)%", "destination_service_namespace": l.Namespace,
		"request_protocol": "grpc", "response_code": "%RESPONSE_CODE%", "grpc_response_status": firstOf(local, command{"RESP", "grpc-status"}), "response_flags": "%RESPONSE_FLAGS%",
	}
	caller := header("x-isthmus-caller") // the application, as a call that comes without a sidecar's headers says it
	source := map[string]string{
		"reporter":        "source",
		"source_workload": known(header(headerSource+"workload"), caller), "source_workload_namespace": known(header(headerSource + "namespace")),
		"source_app": known(header(headerSource+"workload"), caller), "source_version": known(header(headerSource + "version")),
		"source_canonical_service": known(header(headerSource+"service"), caller), "source_canonical_revision": known(header(headerSource + "revision")),
		"source_cluster": known(header(headerSource + "cluster")),
	}
	destination := maps.Clone(source)
	maps.Copy(source, shared)
	maps.Copy(source, map[string]string{
		"source_principal":     known(command{"UPSTREAM_LOCAL_URI_SAN", ""}),
		"destination_workload": known(chosen("workload")), "destination_workload_namespace": known(chosen("namespace")),
		"destination_app": known(chosen("workload")), "destination_version": known(chosen("version")),
		"destination_canonical_service": known(chosen("service")), "destination_canonical_revision": known(chosen("revision")),
		"destination_cluster": known(header(headerSource + "cluster")), "destination_principal": known(chosen("principal")),
		"connection_security_policy": known(chosen("security")),
	})
	maps.Copy(destination, shared)
	maps.Copy(destination, map[string]string{
		"reporter":             "destination",
		"source_principal":     known(command{"DOWNSTREAM_PEER_URI_SAN", ""}),
		"destination_workload": known(header(headerDestination + "workload")), "destination_workload_namespace": known(header(headerDestination + "namespace")),
		"destination_app": known(header(headerDestination + "workload")), "destination_version": known(header(headerDestination + "version")),
		"destination_canonical_service": known(header(headerDestination + "service")), "destination_canonical_revision": known(header(headerDestination + "revision")),
		"destination_cluster": known(header(headerDestination + "cluster")), "destination_principal": known(command{"DOWNSTREAM_LOCAL_URI_SAN", ""}),
		"connection_security_policy": "%CEL(connection.mtls ? 'mutual_tls' : 'none')%",
	})
	var out []*networking.EnvoyFilter_EnvoyConfigObjectPatch
	for _, port := range l.Ports {
		out = append(out, countCalls(outbound, port, source), firstFilter(outbound, port, MetricsName, self(headerSource)))
	}
	for _, port := range l.ProviderPorts {
		out = append(out, countCalls(inbound, port, destination), firstFilter(inbound, port, MetricsName, self(headerDestination)))
	}
	return out
}

// statPrefix is the one that Envoy leaves out on its Prometheus page, once there is a Wasm filter.
const statPrefix = "wasmcustom"

// countCalls has the connection managers on a port count calls, and how long they take, with these labels.
func countCalls(context networking.EnvoyFilter_PatchContext, port uint16, labels map[string]string) *networking.EnvoyFilter_EnvoyConfigObjectPatch {
	var tags []any
	for _, name := range sortedKeys(labels) {
		tags = append(tags, object{"name": name, "value_format": labels[name]})
	}
	p := patch(networking.EnvoyFilter_NETWORK_FILTER, "", networking.EnvoyFilter_Patch_MERGE, object{
		"name": "envoy.filters.network.http_connection_manager",
		"typed_config": object{
			"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
			"access_log": []any{object{"name": "envoy.access_loggers.stats", "typed_config": object{
				"@type":       "type.googleapis.com/envoy.extensions.access_loggers.stats.v3.Config",
				"stat_prefix": statPrefix,
				"counters":    []any{object{"stat": object{"name": "istio_requests_total", "tags": tags}, "value_fixed": 1}},
				"histograms":  []any{object{"stat": object{"name": "istio_request_duration_milliseconds", "tags": tags}, "unit": "Milliseconds", "value_format": "%DURATION%"}},
			}}},
		},
	})
	p.Match.Context = context
	p.Match.ObjectTypes = connectionManager(port)
	return p
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
