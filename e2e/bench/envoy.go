package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/template"
	"time"

	"golang.org/x/sys/unix"

	"github.com/isthmus-mesh/isthmus/e2e/peer"
	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// A variant is one way for bytes to go through Envoy.
type variant struct {
	Name   string
	Filter string // template name of the network filters in front of the cluster, and of what else they need
	// Far is that of the Envoys after the first, where a call goes through several. Default Filter.
	Far    string
	Speaks *rpc   // what client and server speak, if not what the series does
	Module module // that a Wasm filter runs
	Plugin string // plugin configuration of the Wasm filter, JSON
	// MaxInFlight is how many calls in flight it can bear; with loads of more it is not measured. 0: any number.
	MaxInFlight int64
}

// bears tells whether v can be measured with l.
func (v variant) bears(l load) bool { return v.MaxInFlight == 0 || l.turn() <= v.MaxInFlight }

// A module names a Wasm module.
type module string

// The modules.
const (
	filterModule module = "isthmus.wasm"
	emptyModule  module = "empty.wasm"
)

// envoyConfig gives memory that is free back to the system as the bootstrap that we ship does.
const envoyConfig = `
admin: {address: {socket_address: {address: 127.0.0.1, port_value: {{.Admin}}}}}
memory_allocator_manager: {bytes_to_release: 16777216, memory_release_interval: 1s}
stats_config:
  stats_tags:
{{range .Tags}}  - {tag_name: {{.}}, regex: '({{.}}=\.=(.*?);\.;)'}
{{end}}static_resources:
  listeners:
  - name: bench
    address: {socket_address: {address: 127.0.0.1, port_value: {{.Port}}}}
    filter_chains:
    - filters:
{{.Filters}}
{{.Listeners}}
  clusters:
  - name: up
    connect_timeout: 1s
    type: STATIC
    circuit_breakers: {thresholds: [{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}]}
    load_assignment: {cluster_name: up, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: {{.Upstream}}}}}}]}]}
{{.Clusters}}
bootstrap_extensions:
- name: internal
  typed_config: {"@type": type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener}
`

// The filter chains, and what of listeners and clusters some need beside them. Names of message types are Envoy's own (envoy v1.40 API).
//
// The ways of HTTP/2, lifted and plain, have the same connection manager and reach the same kind of cluster: "out" is one whose endpoint takes
// HTTP/2, "in" the internal listener of the same Envoy that lowers.
var chains = template.Must(template.New("").Parse(`
{{define "tcp_proxy"}}      - name: tcp
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: bench, cluster: up}
{{end}}
{{define "plugin"}}      - name: isthmus
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm
          config:
            name: {{.Name}}
            root_id: {{.Name}}
            vm_config: {vm_id: isthmus, runtime: envoy.wasm.runtime.v8, code: {local: {filename: {{.Wasm}}}}}
            configuration: {"@type": type.googleapis.com/google.protobuf.StringValue, value: {{.Plugin}}}
{{end}}
{{define "wasm"}}{{template "plugin" .As "isthmus" .Plugin}}{{template "tcp_proxy" .}}{{end}}
{{define "manager"}}      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          codec_type: AUTO
          http2_protocol_options: {max_concurrent_streams: 100000}
          route_config: {name: r, virtual_hosts: [{name: bench, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: http2}}]}]}
          http_filters:
          - {name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
{{end}}
{{define "cluster"}}  - name: http2
    connect_timeout: 1s
    type: STATIC
    circuit_breakers: {thresholds: [{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
{{end}}
{{define "out clusters"}}{{template "cluster"}}    load_assignment: {cluster_name: http2, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: {{.Upstream}}}}}}]}]}
{{end}}
{{define "http2"}}{{template "manager"}}{{end}}
{{define "http2 clusters"}}{{template "out clusters" .}}{{end}}
{{define "lift out"}}{{template "plugin" .As "lift" .Lift}}{{template "manager"}}{{end}}
{{define "lift out clusters"}}{{template "out clusters" .}}{{end}}
{{define "lower"}}{{template "plugin" .As "lower" .Lower}}{{template "tcp_proxy" .}}{{end}}
{{define "lift in"}}{{template "plugin" .As "lift" .Lift}}{{template "manager"}}{{end}}
{{define "lift in listeners"}}  - name: lower
    internal_listener: {}
    listener_filters:
    - {name: envoy.filters.listener.original_dst, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}}
    filter_chains:
    - filters:
{{template "plugin" .As "lower" .Lower}}      - name: tcp
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: lower, cluster: original}
{{end}}
{{define "lift in clusters"}}{{template "cluster"}}    transport_socket:
      name: internal
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport
        passthrough_metadata: [{kind: {host: {}}, name: envoy.filters.listener.original_dst}]
        transport_socket: {name: raw, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}
    load_assignment:
      cluster_name: http2
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {envoy_internal_address: {server_listener_name: lower, endpoint_id: up}}}
          metadata: {filter_metadata: {envoy.filters.listener.original_dst: {local: "127.0.0.1:{{.Upstream}}"}}}
  - {name: original, connect_timeout: 1s, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED}
{{end}}
{{define "dubbo_proxy"}}      - name: dubbo
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.dubbo_proxy.v3.DubboProxy
          stat_prefix: bench
          protocol_type: Dubbo
          serialization_type: Hessian2
          route_config:
          - name: r
            interface: {{.Service}}
            routes:
            - match: {method: {name: {safe_regex: {regex: ".*"}}}}
              route: {cluster: up}
{{end}}
{{define "generic_proxy"}}      - name: generic
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.generic_proxy.v3.GenericProxy
          stat_prefix: bench
          codec_config:
            name: dubbo
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.generic_proxy.codecs.dubbo.v3.DubboCodecConfig}
          filters:
          - name: envoy.filters.generic.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.generic_proxy.router.v3.Router}
          route_config:
            name: r
            routes:
              matcher_list:
                matchers:
                - predicate:
                    single_predicate:
                      input: {name: m, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.generic_proxy.matcher.v3.MethodMatchInput}}
                      value_match: {exact: {{.Method}}}
                  on_match:
                    action:
                      name: route
                      typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.generic_proxy.action.v3.RouteAction, cluster: up, timeout: 60s}
{{end}}`))

// A chain's template is given this.
type chainData struct {
	Wasm            string // path of the module
	Service, Method string
	Upstream        int // port
	// The plugin configurations as JSON's strings: the variant's, and those that lift and lower.
	Plugin, Lift, Lower string

	Name string // of a plugin: those of different configurations need different ones
}

// As returns the data of a plugin.
func (d chainData) As(name, configuration string) chainData {
	d.Name, d.Plugin = name, configuration
	return d
}

// The plugin configurations that lift and lower. Whatever is called has the one host.
var liftPlugin, lowerPlugin = func() (lift, lower string) {
	render := func(p config.Plugin) string {
		b, err := json.Marshal(p)
		if err != nil {
			panic(err) // our own type
		}
		return string(b)
	}
	return render(config.Plugin{Generation: "bench-lift", Lift: &config.Lift{}}), render(config.Plugin{Generation: "bench-lower", Lower: &config.Lower{}})
}()

// fill renders the template of a name, nothing where there is none.
func (d chainData) fill(name string) (string, error) {
	var b strings.Builder
	t := chains.Lookup(name)
	if t == nil {
		return "", nil
	}
	err := t.Execute(&b, d)
	return b.String(), err
}

// An envoy is one running Envoy.
type envoy struct {
	cmd   *exec.Cmd
	port  int           // of its listener
	ready time.Duration // from start until all workers serve
	done  chan struct{}
}

// startEnvoy runs an Envoy with v in front of the port upstream, on the processors cpus, and waits until it serves.
func (p *place) startEnvoy(ctx context.Context, v variant, upstream, workers int, cpus unix.CPUSet) (*envoy, error) {
	port, err := peer.FreePort()
	if err != nil {
		return nil, err
	}
	admin, err := peer.FreePort()
	if err != nil {
		return nil, err
	}
	data := chainData{Wasm: p.modules[v.Module], Service: benchService, Method: benchMethod, Upstream: upstream,
		Plugin: strconv.Quote(v.Plugin), Lift: strconv.Quote(liftPlugin), Lower: strconv.Quote(lowerPlugin)}
	values := map[string]any{"Admin": admin, "Port": port, "Upstream": upstream, "Tags": config.StatTags}
	for key, name := range map[string]string{"Filters": v.Filter, "Listeners": v.Filter + " listeners", "Clusters": v.Filter + " clusters"} {
		if values[key], err = data.fill(name); err != nil {
			return nil, err
		}
	}
	var conf bytes.Buffer
	if err := template.Must(template.New("").Parse(envoyConfig)).Execute(&conf, values); err != nil {
		return nil, err
	}
	file := filepath.Join(p.dir, strconv.Itoa(port)+".yaml")
	if err := os.WriteFile(file, conf.Bytes(), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(p.dir, strconv.Itoa(port)+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(p.envoy, "-c", file, "--concurrency", strconv.Itoa(workers), "--use-dynamic-base-id", "-l", "warning")
	cmd.Stdout, cmd.Stderr = log, log
	// The kernel ends it with us, whatever becomes of us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	e := &envoy{cmd: cmd, port: port, done: make(chan struct{})}
	begin := time.Now()
	if err := on(cpus, cmd.Start); err != nil {
		return nil, fmt.Errorf("bench: start envoy: %w", err)
	}
	go func() { _ = cmd.Wait(); close(e.done) }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !workersStarted(ctx, admin) {
		select {
		case <-e.done:
			tail, _ := os.ReadFile(log.Name())
			return nil, fmt.Errorf("bench: envoy (%s) ended at start:\n%s", v.Name, tail)
		case <-ctx.Done():
			e.stop()
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
	e.ready = time.Since(begin)
	return e, nil
}

// workersStarted asks Envoy's admin page whether all of its workers run. A listener's port takes connections before that.
func workersStarted(ctx context.Context, admin int) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/stats?filter=^listener_manager.workers_started$", admin), nil)
	if err != nil {
		panic(err) // the URL is ours
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false // not there yet
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<10))
	return err == nil && strings.HasSuffix(strings.TrimSpace(string(b)), ": 1")
}

func (e *envoy) address() string { return fmt.Sprintf("127.0.0.1:%d", e.port) }

func (e *envoy) stop() {
	select {
	case <-e.done:
		return
	default:
	}
	_ = e.cmd.Process.Kill()
	<-e.done
}

func (e *envoy) cpuTime() (time.Duration, error) { return processTime(e.cmd.Process.Pid) }

func (e *envoy) rss() (int64, error) { return residentMemory(e.cmd.Process.Pid) }

// processTime is the processor time of all threads of a process so far, to the nanosecond (/proc/PID/task/*/schedstat, first field).
func processTime(pid int) (time.Duration, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("bench: no schedstat of process %d: %w", pid, err)
	}
	var sum time.Duration
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // a thread that ended
		}
		first, _, _ := strings.Cut(string(b), " ")
		ns, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("bench: %s: %w", f, err)
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

// residentMemory is that of a process, in bytes (VmRSS).
func residentMemory(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("bench: no VmRSS of process %d", pid)
}
