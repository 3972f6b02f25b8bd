package http_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/e2e/peer"
	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

type object = map[string]any

const (
	httpFilters    = "type.googleapis.com/envoy.extensions.filters.http."
	networkFilters = "type.googleapis.com/envoy.extensions.filters.network."
	options        = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	application    = "web" // of the node
	within         = 60 * time.Second
)

// envoy is one Envoy that is the sidecar of both ends: calls come to out, go on to in, and from there to an application.
type envoy struct {
	out, in, admin int
	log            string // of accesses, by RESPONSE_CODE_DETAILS
	process        *exec.Cmd
}

func address(port int) object {
	return object{"socket_address": object{"address": "127.0.0.1", "port_value": port}}
}

func freePort(t testing.TB) int {
	t.Helper()
	port, err := peer.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// wasm is the filter as a filter of that kind, under a name.
func wasm(kind, name, file string, conf []byte) object {
	return object{"name": name, "typed_config": object{"@type": kind + "wasm.v3.Wasm", "config": object{
		"name": name, "root_id": name,
		"vm_config":     object{"vm_id": "isthmus", "runtime": "envoy.wasm.runtime.v8", "code": object{"local": object{"filename": file}}},
		"configuration": object{"@type": "type.googleapis.com/google.protobuf.StringValue", "value": string(conf)},
	}}}
}

// listener is an HTTP listener as istiod makes it, as far as it matters here, with the filter in it, and with one in front of it that brings keys where there are any.
func (e *envoy) listener(port int, direction, file string, conf, keys []byte, to string) object {
	var filters []object
	if keys != nil {
		filters = append(filters, wasm(networkFilters, "isthmus-keys", file, keys))
	}
	router := object{"name": "envoy.filters.http.router", "typed_config": object{"@type": httpFilters + "router.v3.Router"}}
	return object{"name": direction, "address": address(port), "traffic_direction": direction, "filter_chains": []object{{"filters": append(filters, object{
		"name": "hcm", "typed_config": object{"@type": networkFilters + "http_connection_manager.v3.HttpConnectionManager",
			"stat_prefix": direction, "codec_type": "AUTO", "max_request_headers_kb": 4096,
			"route_config": object{"name": "r", "virtual_hosts": []object{{"name": "all", "domains": []string{"*"},
				"routes": []object{{"match": object{"prefix": "/"}, "route": object{"cluster": to, "timeout": "30s"}}}}}},
			"http_filters": []object{wasm(httpFilters, "isthmus", file, conf), router},
			"access_log": []object{{"name": "file", "typed_config": object{"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
				"path": e.log, "log_format": object{"text_format_source": object{"inline_string": "%RESPONSE_CODE% %RESPONSE_CODE_DETAILS%\n"}}}}},
		}})}}}
}

func cluster(name string, port int) object {
	return object{"name": name, "connect_timeout": "5s", "type": "STATIC",
		"typed_extension_protocol_options": object{options: object{"@type": "type.googleapis.com/" + options, "use_downstream_protocol_config": object{"http2_protocol_options": object{}}}},
		"circuit_breakers":                 object{"thresholds": []object{{"max_connections": 10000, "max_pending_requests": 10000, "max_requests": 10000}}},
		"load_assignment":                  object{"cluster_name": name, "endpoints": []object{{"lb_endpoints": []object{{"endpoint": object{"address": address(port)}}}}}}}
}

// start runs stock Envoy with four workers until the test ends.
func start(t testing.TB, conf *config.Plugin, app int) *envoy {
	t.Helper()
	return startWith(t, conf, nil, app)
}

// startWith does so with keys that a network filter brings; nil is none.
func startWith(t testing.TB, conf, keys *config.Plugin, app int) *envoy {
	t.Helper()
	set := peer.Need(t, peer.Envoy, peer.Filter)
	dir := t.TempDir()
	e := &envoy{out: freePort(t), in: freePort(t), admin: freePort(t), log: filepath.Join(dir, "access.log")}
	plugin, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	var carried []byte
	if keys != nil {
		if carried, err = json.Marshal(keys); err != nil {
			t.Fatal(err)
		}
	}
	file := set[peer.Filter].Path
	data, err := json.Marshal(object{
		"node":  object{"id": "e2e", "cluster": "e2e", "metadata": object{"LABELS": object{"app": application}}},
		"admin": object{"address": address(e.admin)},
		"static_resources": object{
			"listeners": []object{e.listener(e.out, "OUTBOUND", file, plugin, carried, "provider"), e.listener(e.in, "INBOUND", file, plugin, carried, "application")},
			"clusters":  []object{cluster("provider", e.in), cluster("application", app)},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	bootstrap := filepath.Join(dir, "envoy.json")
	if err := os.WriteFile(bootstrap, data, 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "envoy.log"))
	if err != nil {
		t.Fatal(err)
	}
	e.process = exec.Command(set[peer.Envoy].Path, "-c", bootstrap, "--concurrency", "4", "--use-dynamic-base-id", "-l", "warning", "--file-flush-interval-msec", "100")
	e.process.Stdout, e.process.Stderr = log, log
	if err := e.process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = e.process.Process.Kill()
		_ = e.process.Wait()
		log.Close()
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("Envoy's log ends:\n%s", b[max(0, len(b)-3000):])
		}
	})
	e.until(t, "Envoy to be ready", func() error {
		page, err := e.page("/ready")
		if err == nil && !strings.Contains(page, "LIVE") {
			err = fmt.Errorf("%s", page)
		}
		return err
	})
	return e
}

// until waits for a condition.
func (e *envoy) until(t testing.TB, what string, condition func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (e *envoy) page(path string) (string, error) {
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", e.admin, path))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

var label = regexp.MustCompile(`([a-z_]+)=\.=(.*?);\.;`)

// stats calls f with each stat of the filter's whose name is this.
func (e *envoy) stats(t testing.TB, name string, f func(labels map[string]string, n int)) {
	t.Helper()
	page, err := e.page("/stats?filter=" + name)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(page) {
		stat, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok {
			continue
		}
		labels := map[string]string{}
		for _, m := range label.FindAllStringSubmatch(strings.TrimPrefix(stat, "wasmcustom."), -1) {
			labels[m[1]] = m[2]
		}
		n, err := strconv.Atoi(value)
		if err == nil && strings.HasSuffix(stat, name) {
			f(labels, n)
		}
	}
}
