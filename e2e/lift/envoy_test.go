package lift_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/e2e/peer"
)

type object = map[string]any

const (
	networkFilters = "type.googleapis.com/envoy.extensions.filters.network."
	httpFilters    = "type.googleapis.com/envoy.extensions.filters.http."
)

// A bootstrap is put together from these.

func address(port int) object {
	return object{"socket_address": object{"address": "127.0.0.1", "port_value": port}}
}

func listener(port int, direction string, filters ...object) object {
	return object{"name": "l" + strconv.Itoa(port), "address": address(port), "traffic_direction": direction,
		"filter_chains": []object{{"filters": filters}}}
}

// wasm is the filter. Plugins of different configurations have different names, and share one VM.
func wasm(file, name, conf string) object {
	return object{"name": "isthmus-" + name, "typed_config": object{"@type": networkFilters + "wasm.v3.Wasm", "config": object{
		"name": name, "root_id": name,
		"vm_config":     object{"vm_id": "isthmus", "runtime": "envoy.wasm.runtime.v8", "code": object{"local": object{"filename": file}}},
		"configuration": object{"@type": "type.googleapis.com/google.protobuf.StringValue", "value": conf},
	}}}
}

func tcpProxy(cluster string) object {
	return object{"name": "tcp", "typed_config": object{"@type": networkFilters + "tcp_proxy.v3.TcpProxy", "stat_prefix": cluster, "cluster": cluster}}
}

// manager is an HTTP connection manager as istiod writes it, as far as it matters here.
func manager(routes []object, filters ...object) object {
	filters = append(filters, object{"name": "envoy.filters.http.router", "typed_config": object{"@type": httpFilters + "router.v3.Router"}})
	return object{"name": "hcm", "typed_config": object{"@type": networkFilters + "http_connection_manager.v3.HttpConnectionManager",
		"stat_prefix": "hcm", "codec_type": "AUTO", "use_remote_address": false, "normalize_path": true,
		"http2_protocol_options": object{"max_concurrent_streams": 1 << 30},
		"route_config":           object{"name": "r", "validate_clusters": false, "virtual_hosts": []object{{"name": "demo", "domains": []string{host}, "routes": routes, "include_request_attempt_count": true}}},
		"http_filters":           filters}}
}

// upstream is a cluster of providers behind filters that lower.
func upstream(name string, ports ...int) object {
	var endpoints []object
	for _, p := range ports {
		endpoints = append(endpoints, object{"endpoint": object{"address": address(p)}})
	}
	return object{"name": name, "connect_timeout": "1s", "type": "STATIC", "typed_extension_protocol_options": http2Options(),
		"load_assignment": object{"cluster_name": name, "endpoints": []object{{"lb_endpoints": endpoints}}}}
}

func http2Options() object {
	return object{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": object{
		"@type":                "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
		"explicit_http_config": object{"http2_protocol_options": object{}}}}
}

// plain is a cluster that tcp_proxy uses.
func plain(name string, port int) object {
	return object{"name": name, "connect_timeout": "1s", "type": "STATIC",
		"load_assignment": object{"cluster_name": name, "endpoints": []object{{"lb_endpoints": []object{{"endpoint": object{"address": address(port)}}}}}}}
}

// egress is a cluster of providers without a filter of their own: the calls are lowered in the same Envoy, by the internal listener
// that egressListener makes.
func egress(name string, ports ...int) object { return internal("egress", name, ports...) }

// internal is a cluster of providers behind an internal listener.
func internal(listener, name string, ports ...int) object {
	var endpoints []object
	for _, p := range ports {
		to := "127.0.0.1:" + strconv.Itoa(p)
		endpoints = append(endpoints, object{
			"endpoint": object{"address": object{"envoy_internal_address": object{"server_listener_name": listener, "endpoint_id": to}}},
			"metadata": object{"filter_metadata": object{"envoy.filters.listener.original_dst": object{"local": to}}}})
	}
	raw := object{"name": "raw", "typed_config": object{"@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"}}
	return object{"name": name, "connect_timeout": "1s", "type": "STATIC", "typed_extension_protocol_options": http2Options(),
		"transport_socket": object{"name": "internal", "typed_config": object{
			"@type":                "type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
			"passthrough_metadata": []object{{"kind": object{"host": object{}}, "name": "envoy.filters.listener.original_dst"}},
			"transport_socket":     raw}},
		"load_assignment": object{"cluster_name": name, "endpoints": []object{{"lb_endpoints": endpoints}}}}
}

func egressListener(lower object) object { return internalListener("egress", lower) }

func internalListener(name string, lower object) object {
	return object{"name": name, "internal_listener": object{},
		"listener_filters": []object{{"name": "envoy.filters.listener.original_dst", "typed_config": object{
			"@type": "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst"}}},
		"filter_chains": []object{{"filters": []object{lower, tcpProxy("original")}}}}
}

func originalCluster() object {
	return object{"name": "original", "connect_timeout": "1s", "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"}
}

// An envoy is a running Envoy with one worker.
type envoy struct {
	cmd   *exec.Cmd
	admin string
	log   string
	done  chan struct{}
}

func freePort(t testing.TB) int {
	t.Helper()
	port, err := peer.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// startEnvoy runs stock Envoy until the test ends, and waits until its listeners are there.
func startEnvoy(t testing.TB, listeners, clusters []object) *envoy {
	t.Helper()
	set := peer.Need(t, peer.Envoy)
	admin := freePort(t)
	conf := object{
		"admin": object{"address": address(admin)},
		"bootstrap_extensions": []object{{"name": "envoy.bootstrap.internal_listener", "typed_config": object{
			"@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener"}}},
		"static_resources": object{"listeners": listeners, "clusters": clusters},
	}
	data, err := json.MarshalIndent(conf, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "envoy.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	e := &envoy{admin: fmt.Sprintf("http://127.0.0.1:%d", admin), log: filepath.Join(dir, "envoy.log"), done: make(chan struct{})}
	log, err := os.Create(e.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	e.cmd = exec.Command(set[peer.Envoy].Path, "-c", file, "--concurrency", "1", "--use-dynamic-base-id", "-l", "warning")
	e.cmd.Stdout, e.cmd.Stderr = log, log
	if err := e.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = e.cmd.Wait(); close(e.done) }()
	t.Cleanup(func() {
		stats := ""
		if t.Failed() {
			stats, _ = e.get("/stats?usedonly&filter=%5E%28http|http2|cluster|wasm%29%5C.")
		}
		e.stop()
		if t.Failed() {
			t.Logf("Envoy counted:\n%s", stats)
			b, _ := os.ReadFile(e.log)
			t.Logf("Envoy's log ends:\n%s", b[max(0, len(b)-3000):])
		}
	})
	e.await(t, "/ready", "LIVE")
	return e
}

func (e *envoy) stop() {
	select {
	case <-e.done:
		return
	default:
	}
	_ = e.cmd.Process.Kill()
	<-e.done
}

// get returns a page of Envoy's.
func (e *envoy) get(path string) (string, error) {
	resp, err := http.Get(e.admin + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// await waits until a page of Envoy's has text.
func (e *envoy) await(t testing.TB, path, text string) {
	t.Helper()
	deadline := time.After(90 * time.Second)
	for {
		page, err := e.get(path)
		if err == nil && strings.Contains(page, text) {
			return
		}
		select {
		case <-e.done:
			t.Fatal("Envoy ended")
		case <-deadline:
			t.Fatalf("%s does not have %q: %v\n%s", path, text, err, page)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stat returns one number of Envoy's statistics, 0 if there is none.
func (e *envoy) stat(t testing.TB, name string) int {
	t.Helper()
	page, err := e.get("/stats?filter=" + name)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(page) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ": "); ok && k == name {
			n, err := strconv.Atoi(v)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	return 0
}
