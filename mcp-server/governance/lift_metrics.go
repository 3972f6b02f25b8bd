package governance

import (
	"fmt"
	"maps"
	"slices"

	networking "istio.io/api/networking/v1alpha3"
)

// MetricsName is the EnvoyFilter by which connection managers count calls, and its HTTP filter.
const MetricsName = "isthmus-metrics"

// Headers by which a caller's sidecar tells a provider's who it is, as Istio's own do with x-envoy-peer-metadata. Whoever is not to
// be believed is told apart by source_principal.
const (
	headerWorkload  = "x-isthmus-source-workload"
	headerNamespace = "x-isthmus-source-namespace"
	headerService   = "x-isthmus-source-service" // canonical
	headerRevision  = "x-isthmus-source-revision"
)

const unknown = "unknown"

// node reads the sidecar's own metadata, the first of the fields that is there.
func node(fields ...string) string {
	expression := "'" + unknown + "'"
	for _, f := range slices.Backward(fields) {
		expression = fmt.Sprintf("'%s' in xds.node.metadata ? xds.node.metadata['%s'] : %s", f, f, expression)
	}
	return cel(expression)
}

// ownLabel reads the sidecar's labels, the first that is there, and else what expression says.
func ownLabel(otherwise string, labels ...string) string {
	const all = "xds.node.metadata.LABELS"
	expression := otherwise
	for _, l := range slices.Backward(labels) {
		expression = fmt.Sprintf("'%s' in %s ? %s['%s'] : %s", l, all, all, l, expression)
	}
	return cel(fmt.Sprintf("'LABELS' in xds.node.metadata ? (%s) : '%s'", expression, unknown))
}

// received reads the first of some headers of the request that is there.
func received(names ...string) string {
	expression := "'" + unknown + "'"
	for _, n := range slices.Backward(names) {
		expression = fmt.Sprintf("'%s' in request.headers ? request.headers['%s'] : %s", n, n, expression)
	}
	return cel(expression)
}

// chosen reads what our endpoint discovery says of the endpoint that a call went to; nothing where it went nowhere.
func chosen(field string) string {
	return cel(fmt.Sprintf("has(xds.upstream_host_metadata) && 'isthmus' in xds.upstream_host_metadata.filter_metadata ? xds.upstream_host_metadata.filter_metadata['isthmus'].%s : '%s'", field, unknown))
}

// presented is the identity of one end of a connection, if its certificate was shown, and otherwise what expression says.
func presented(connection, end, otherwise string) string {
	value := connection + ".uri_san_" + end + "_certificate"
	return fmt.Sprintf("has(%s) && %s != '' ? %s : %s", value, value, value, otherwise)
}

// status is the call's. What is Envoy's own answer has that of HTTP only: it is translated as Envoy does it for gRPC
// (Grpc::Utility::httpToGrpcStatus).
var status = cel("'grpc-status' in response.headers ? response.headers['grpc-status'] : response.code == 200 ? '0' : response.code == 400 ? '13' : response.code == 401 ? '16'" +
	" : response.code == 403 ? '7' : response.code == 404 ? '12' : response.code in [429, 502, 503, 504] ? '14' : '2'")

func cel(expression string) string { return "%CEL(" + expression + ")%" }

var (
	ownWorkload  = ownLabel("'"+unknown+"'", "app", "app.kubernetes.io/name")
	ownApp       = ownLabel("'"+unknown+"'", "app")
	ownVersion   = ownLabel("'"+unknown+"'", "version")
	ownService   = ownLabel("'"+unknown+"'", "service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
	ownRevision  = ownLabel("'latest'", "service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")
	ownNamespace = node("NAMESPACE")
)

// metrics are patches by which connection managers count calls as Istio's own filter does in Istio's own Envoy: under its names, with its
// labels (istio.io/docs, Istio Standard Metrics), by Envoy's access logger for statistics. request_protocol is grpc: Kiali knows http, grpc
// and tcp, and only grpc has a status of the call beside that of HTTP.
func (l *LiftOptions) metrics() []*networking.EnvoyFilter_EnvoyConfigObjectPatch {
	const outbound, inbound = networking.EnvoyFilter_SIDECAR_OUTBOUND, networking.EnvoyFilter_SIDECAR_INBOUND
	shared := map[string]string{
		"destination_service": "%REQ(:AUTHORITY)%", "destination_service_name": "%REQ(:AUTHORITY)%", "destination_service_namespace": l.Namespace,
		"request_protocol": "grpc", "response_code": "%RESPONSE_CODE%", "grpc_response_status": status, "response_flags": "%RESPONSE_FLAGS%",
	}
	source := map[string]string{
		"reporter":        "source",
		"source_workload": ownWorkload, "source_workload_namespace": ownNamespace, "source_principal": cel(presented("upstream", "local", "'"+unknown+"'")), "source_app": ownApp, "source_version": ownVersion,
		"source_canonical_service": ownService, "source_canonical_revision": ownRevision, "source_cluster": node("CLUSTER_ID"),
		"destination_workload": chosen("workload"), "destination_workload_namespace": chosen("namespace"), "destination_principal": chosen("principal"),
		"destination_app": chosen("workload"), "destination_version": chosen("version"),
		"destination_canonical_service": chosen("workload"), "destination_canonical_revision": chosen("revision"), "destination_cluster": node("CLUSTER_ID"),
		"connection_security_policy": chosen("security"),
	}
	destination := map[string]string{
		"reporter":        "destination",
		"source_workload": received(headerWorkload, headerCaller), "source_workload_namespace": received(headerNamespace), "source_principal": cel(presented("connection", "peer", "'"+unknown+"'")),
		"source_app":               received(headerService, headerCaller),
		"source_version":           cel(fmt.Sprintf("'%s' in request.headers && request.headers['%s'] != 'latest' ? request.headers['%s'] : '%s'", headerRevision, headerRevision, headerRevision, unknown)),
		"source_canonical_service": received(headerService, headerCaller), "source_canonical_revision": received(headerRevision), "source_cluster": node("CLUSTER_ID"),
		"destination_workload": ownWorkload, "destination_workload_namespace": ownNamespace, "destination_principal": cel(presented("connection", "local", "'"+unknown+"'")), "destination_app": ownApp, "destination_version": ownVersion,
		"destination_canonical_service": ownService, "destination_canonical_revision": ownRevision, "destination_cluster": node("CLUSTER_ID"),
		"connection_security_policy": cel("has(connection.uri_san_peer_certificate) && connection.uri_san_peer_certificate != '' ? 'mutual_tls' : 'none'"),
	}
	maps.Copy(source, shared)
	maps.Copy(destination, shared)
	var out []*networking.EnvoyFilter_EnvoyConfigObjectPatch
	for _, port := range l.Ports {
		out = append(out, countCalls(outbound, port, source), firstFilter(outbound, port, MetricsName, headers(map[string]string{
			headerWorkload: ownWorkload, headerNamespace: ownNamespace, headerService: ownService, headerRevision: ownRevision})))
	}
	for _, port := range l.HTTPPorts {
		out = append(out, countCalls(inbound, port, destination))
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
