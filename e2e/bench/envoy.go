package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"text/template"
	"time"

	"golang.org/x/sys/unix"
)

// A variant is one way for bytes to go through Envoy.
type variant struct {
	Name   string
	Filter string // template name of the network filters in front of the cluster
	Plugin string // plugin configuration of the Wasm filter, JSON
}

const envoyConfig = `
admin: {address: {socket_address: {address: 127.0.0.1, port_value: {{.Admin}}}}}
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
  clusters:
  - name: up
    connect_timeout: 1s
    type: STATIC
    circuit_breakers: {thresholds: [{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}]}
    load_assignment: {cluster_name: up, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: {{.Upstream}}}}}}]}]}
`

// The filter chains. Names of message types are Envoy's own (envoy v1.40 API).
var chains = template.Must(template.New("").Parse(`
{{define "tcp_proxy"}}      - name: tcp
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: bench, cluster: up}
{{end}}
{{define "wasm"}}      - name: isthmus
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm
          config:
            name: isthmus
            root_id: isthmus
            vm_config: {vm_id: isthmus, runtime: envoy.wasm.runtime.v8, code: {local: {filename: {{.Wasm}}}}}
            configuration: {"@type": type.googleapis.com/google.protobuf.StringValue, value: {{.Plugin}}}
{{template "tcp_proxy" .}}{{end}}
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
                      typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.generic_proxy.action.v3.RouteAction, cluster: up}
{{end}}`))

// An envoy is one running Envoy with one worker.
type envoy struct {
	cmd   *exec.Cmd
	addr  string // of its listener
	admin string
	ready time.Duration // from start to the first accepted connection and a live admin page
	done  chan struct{}
	log   string
}

// freePort asks the kernel for a port on loopback that is free now.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// startEnvoy runs binary with v in front of upstream, on the processor cpu (-1: any), and waits until it serves.
func startEnvoy(ctx context.Context, binary, dir, wasm string, tags []string, v variant, upstream, cpu int) (*envoy, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	admin, err := freePort()
	if err != nil {
		return nil, err
	}
	plugin, err := json.Marshal(v.Plugin)
	if err != nil {
		return nil, err
	}
	var filters, conf bytes.Buffer
	if err := chains.ExecuteTemplate(&filters, v.Filter, map[string]string{"Wasm": wasm, "Plugin": string(plugin),
		"Service": benchService, "Method": benchMethod}); err != nil {
		return nil, err
	}
	if err := template.Must(template.New("").Parse(envoyConfig)).Execute(&conf, map[string]any{
		"Admin": admin, "Port": port, "Upstream": upstream, "Tags": tags, "Filters": filters.String()}); err != nil {
		return nil, err
	}
	name := strings.ReplaceAll(v.Name, " ", "-") + "-" + strconv.Itoa(port)
	file := filepath.Join(dir, name+".yaml")
	if err := os.WriteFile(file, conf.Bytes(), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(binary, "-c", file, "--concurrency", "1", "--use-dynamic-base-id", "-l", "warning")
	cmd.Stdout, cmd.Stderr = log, log
	e := &envoy{cmd: cmd, addr: fmt.Sprintf("127.0.0.1:%d", port), admin: fmt.Sprintf("127.0.0.1:%d", admin),
		done: make(chan struct{}), log: log.Name()}
	begin := time.Now()
	if err := onCPU(cpu, cmd.Start); err != nil {
		return nil, fmt.Errorf("bench: start envoy: %w", err)
	}
	go func() { _ = cmd.Wait(); close(e.done) }()
	for {
		c, err := net.Dial("tcp", e.addr)
		if err == nil {
			c.Close()
			break
		}
		select {
		case <-e.done:
			tail, _ := os.ReadFile(e.log)
			return nil, fmt.Errorf("bench: envoy (%s) ended at start:\n%s", v.Name, tail)
		case <-ctx.Done():
			e.stop()
			return nil, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	e.ready = time.Since(begin)
	return e, nil
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

// cpuTime is the processor time of all threads so far, to the nanosecond (/proc/PID/task/*/schedstat, first field).
func (e *envoy) cpuTime() (time.Duration, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", e.cmd.Process.Pid))
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("bench: no schedstat of process %d: %w", e.cmd.Process.Pid, err)
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

// rss is the resident memory in bytes (VmRSS).
func (e *envoy) rss() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", e.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("bench: no VmRSS of process %d", e.cmd.Process.Pid)
}

// onCPU runs start, which forks, with the calling thread bound to one processor, so that the child inherits it.
func onCPU(cpu int, start func() error) error {
	if cpu < 0 {
		return start()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return err
	}
	defer func() { _ = unix.SchedSetaffinity(0, &before) }()
	return start()
}
