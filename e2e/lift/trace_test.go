package lift_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
)

// traced is a listener of calls whose connection manager traces all of them, by a tracer of Envoy's, or none.
func traced(file string, port int, provider object) object {
	hcm := manager(everything(object{"cluster": "up"}))
	config := hcm["typed_config"].(object)
	config["route_config"].(object)["virtual_hosts"].([]object)[0]["domains"] = []string{"*"}
	if provider != nil {
		config["tracing"] = object{"provider": provider, "client_sampling": object{"value": 100}, "random_sampling": object{"value": 100}, "overall_sampling": object{"value": 100}}
	}
	return listener(port, "OUTBOUND", wasm(file, "lift", `{"lift":{}}`), hcm)
}

// TestTraceContext: the trace that a call belongs to reaches whoever is behind Envoy, in the form that its caller's framework has it in, and
// Envoy's own tracers go on with it.
func TestTraceContext(t *testing.T) {
	file := filterFile(t)
	const trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	const sofaTrace = "0a0fe8ad15651660410431001abcde" // SOFATracer's has 30 digits

	heard := make(chan http.Header, 1)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		heard <- r.Header
		w.WriteHeader(http.StatusServiceUnavailable) // it is no provider
	})}
	go func() { _ = server.Serve(ln) }()
	t.Cleanup(func() { _ = server.Close() })

	// Where the tracers' spans go: nowhere.
	collector := plain("collector", freePort(t))
	const tracers = "type.googleapis.com/envoy.config.trace.v3."
	untraced, w3c, b3 := freePort(t), freePort(t), freePort(t)
	startEnvoy(t, []object{
		traced(file, untraced, nil),
		traced(file, w3c, object{"name": "otel", "typed_config": object{"@type": tracers + "OpenTelemetryConfig", "service_name": "shop",
			"grpc_service": object{"envoy_grpc": object{"cluster_name": "collector"}}}}),
		traced(file, b3, object{"name": "zipkin", "typed_config": object{"@type": tracers + "ZipkinConfig", "collector_cluster": "collector",
			"collector_endpoint": "/api/v2/spans", "collector_endpoint_version": "HTTP_JSON", "trace_id_128bit": true}}),
	}, []object{upstream("up", ln.Addr().(*net.TCPAddr).Port), collector})

	dubbo := func(attachments ...string) []byte { return frame("req", 1, attachments...) }
	sofa, err := filtertest.Bolt("req", map[string]string{"id": "1", "service": "com.alipay.PayFacade", "method": "pay",
		".rpc_trace_context.sofaTraceId": sofaTrace, ".rpc_trace_context.sofaRpcId": "0.1"})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		port int
		call []byte
		want map[string]string // the beginnings of headers
		not  map[string]string
	}{
		"W3C": {untraced, dubbo(".traceparent", fmt.Sprintf("00-%s-%s-01", trace, span), ".tracestate", "a=1"),
			map[string]string{"traceparent": fmt.Sprintf("00-%s-%s-01", trace, span), "tracestate": "a=1"}, nil},
		"W3C, traced": {w3c, dubbo(".traceparent", fmt.Sprintf("00-%s-%s-01", trace, span)),
			map[string]string{"traceparent": "00-" + trace}, map[string]string{"traceparent": "00-" + trace + "-" + span}}, // Envoy's own span is the parent now
		"B3": {untraced, dubbo(".X-B3-TraceId", trace, ".X-B3-SpanId", span, ".X-B3-Sampled", "1"),
			map[string]string{"x-b3-traceid": trace, "x-b3-spanid": span, "x-b3-sampled": "1"}, nil},
		"B3, traced": {b3, dubbo(".X-B3-TraceId", trace, ".X-B3-SpanId", span, ".X-B3-Sampled", "1"),
			map[string]string{"x-b3-traceid": trace, "x-b3-sampled": "1"}, map[string]string{"x-b3-spanid": span}},
		"SOFATracer":         {untraced, sofa, map[string]string{"traceparent": "00-00" + sofaTrace + "-"}, nil},
		"SOFATracer, traced": {w3c, sofa, map[string]string{"traceparent": "00-00" + sofaTrace + "-"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dial(t, c.port).send(c.call)
			got := <-heard
			for k, v := range c.want {
				if !strings.HasPrefix(got.Get(k), v) {
					t.Errorf("%s is %q, wanted %q; all: %v", k, got.Get(k), v, got)
				}
			}
			for k, v := range c.not {
				if strings.HasPrefix(got.Get(k), v) {
					t.Errorf("%s is still %q", k, v)
				}
			}
		})
	}
}
