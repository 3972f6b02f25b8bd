package mesh

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v3"

	"github.com/isthmus-mesh/isthmus/e2e/machine"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
)

// adminPort is that of Envoy's admin pages, on the machine's loopback.
const adminPort = 15000

// Sidecar is an Envoy beside an application.
type Sidecar struct {
	Process *machine.Process
	machine *machine.Machine
}

// StartSidecar starts a stock Envoy with one worker on a machine, configured by istiod as the sidecar of the application app, with
// the machine's traffic redirected to it, and waits until it is ready. The application is started afterwards.
func (m *Mesh) StartSidecar(ctx context.Context, name, app string) (*Sidecar, error) {
	return m.StartSidecarWorkers(ctx, name, app, 1)
}

// StartSidecarWorkers does so with a number of workers.
func (m *Mesh) StartSidecarWorkers(ctx context.Context, name, app string, workers int) (*Sidecar, error) {
	return m.StartSidecarWith(ctx, name, SidecarOptions{App: app, Workers: workers})
}

// SidecarOptions say what a sidecar is like.
type SidecarOptions struct {
	App          string // the application beside it
	Workers      int    // default 1
	Region, Zone string // where it says that it is; nowhere by default
}

// StartSidecarWith does so with options.
func (m *Mesh) StartSidecarWith(ctx context.Context, name string, o SidecarOptions) (*Sidecar, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	a, err := m.artifact(peer.Envoy)
	if err != nil {
		return nil, err
	}
	x, err := m.Machine(name)
	if err != nil {
		return nil, err
	}
	var secrets []any
	if m.authority != nil {
		agent, err := m.startAgent(name, o.App)
		if err != nil {
			return nil, err
		}
		secrets = []any{agent.cluster(m.host.Exposed(agent.path))}
	}
	bootstrap, err := m.bootstrap(x, o, secrets)
	if err != nil {
		return nil, err
	}
	conf, err := m.write(name, "conf", "envoy.json", bootstrap)
	if err != nil {
		return nil, err
	}
	// The rules come first, as with Istio: a connection that is already there when they come would be torn apart, for its
	// next packet looks like that of a new one.
	if err := x.Intercept(ctx, machine.Interception{}); err != nil {
		return nil, err
	}
	p, err := m.start(name, machine.Command{Name: "envoy", Path: m.host.Exposed(a.Path), User: machine.UserProxy, Grace: 2 * time.Second,
		Args: []string{"-c", conf, "--concurrency", strconv.Itoa(max(o.Workers, 1)), "--disable-hot-restart", "-l", "warning", "--component-log-level", "wasm:info"}})
	if err != nil {
		return nil, err
	}
	s := &Sidecar{Process: p, machine: x}
	return s, p.UntilHTTP(ctx, fmt.Sprintf("http://127.0.0.1:%d/ready", adminPort))
}

// Machine is where it runs.
func (s *Sidecar) Machine() *machine.Machine { return s.machine }

// Admin reads one of Envoy's admin pages, such as /config_dump.
func (s *Sidecar) Admin(ctx context.Context, path string) ([]byte, error) {
	return get(ctx, s.machine.Client(), fmt.Sprintf("http://127.0.0.1:%d%s", adminPort, path))
}

// fields is any mapping of YAML.
type fields = map[string]any

// bootstrap is the one that we ship for a plain Envoy, with what it says to replace replaced, and Istio's Prometheus page and other
// clusters added.
func (m *Mesh) bootstrap(x *machine.Machine, o SidecarOptions, more []any) (string, error) {
	root, err := peer.Root()
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(filepath.Join(root, "manifests", "bootstrap", "envoy.yaml"))
	if err != nil {
		return "", fmt.Errorf("mesh: %w", err)
	}
	istiod, err := m.Machine(IstiodMachine)
	if err != nil {
		return "", err
	}
	var b fields
	if err := yaml.Unmarshal(text, &b); err != nil {
		return "", fmt.Errorf("mesh: manifests/bootstrap/envoy.yaml: %w", err)
	}
	address := x.Address().String()
	node := fields{
		"id":      fmt.Sprintf("sidecar~%s~%s.%s~%s.svc.cluster.local", address, x.Name(), Namespace, Namespace),
		"cluster": o.App + "." + Namespace,
		"metadata": fields{
			"ISTIO_VERSION": istioVersion, "NAMESPACE": Namespace, "CLUSTER_ID": ClusterID, "INTERCEPTION_MODE": "REDIRECT",
			"INSTANCE_IPS": address, "NAME": x.Name(), "LABELS": fields{"app": o.App}, "SERVICE_ACCOUNT": o.App,
		},
	}
	if o.Region != "" {
		node["locality"] = fields{"region": o.Region, "zone": o.Zone}
	}
	b["node"] = node
	b["admin"] = fields{"address": socket("127.0.0.1", adminPort)}
	static, ok := b["static_resources"].(fields)
	if !ok {
		return "", fmt.Errorf("mesh: manifests/bootstrap/envoy.yaml: no static_resources")
	}
	clusters := more
	for _, c := range list(static["clusters"]) {
		if cluster, ok := c.(fields); ok && cluster["name"] == "xds-grpc" {
			cluster["load_assignment"] = loadAssignment("xds-grpc", istiod.Address().String(), XDSPort)
		}
		clusters = append(clusters, c)
	}
	static["clusters"] = append(clusters, fields{"name": "prometheus_stats", "type": "STATIC", "connect_timeout": "1s",
		"load_assignment": loadAssignment("prometheus_stats", "127.0.0.1", adminPort)})
	static["listeners"] = append(list(static["listeners"]), metricsListener())
	if m.host.Rootless() {
		// Where there is one user only, interception knows the proxy by this mark: level SOL_SOCKET, name SO_MARK.
		b["cluster_manager"] = fields{"upstream_bind_config": fields{"socket_options": []any{
			fields{"description": "mark", "level": 1, "name": 36, "int_value": machine.ProxyMark, "state": "STATE_PREBIND"}}}}
	}
	out, err := json.MarshalIndent(b, "", " ")
	if err != nil {
		return "", fmt.Errorf("mesh: %w", err)
	}
	return string(out), nil
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}

func socket(address string, port int) fields {
	return fields{"socket_address": fields{"address": address, "port_value": port}}
}

func loadAssignment(name, address string, port int) fields {
	return fields{"cluster_name": name, "endpoints": []any{fields{"lb_endpoints": []any{fields{"endpoint": fields{"address": socket(address, port)}}}}}}
}

// metricsListener is the page that Istio's bootstrap has on port 15090: the metrics, and nothing else of the admin pages.
func metricsListener() fields {
	return fields{
		"name":    "prometheus",
		"address": socket("0.0.0.0", machine.PortMetrics),
		"filter_chains": []any{fields{"filters": []any{fields{
			"name": "envoy.filters.network.http_connection_manager",
			"typed_config": fields{
				"@type":        "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
				"codec_type":   "AUTO",
				"stat_prefix":  "stats",
				"route_config": fields{"virtual_hosts": []any{fields{"name": "backend", "domains": []any{"*"}, "routes": []any{fields{"match": fields{"prefix": "/stats/prometheus"}, "route": fields{"cluster": "prometheus_stats"}}}}}},
				"http_filters": []any{fields{"name": "envoy.filters.http.router", "typed_config": fields{"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}},
			},
		}}}},
	}
}

// clusterHosts is what of Envoy's clusters is looked at.
type clusterHosts struct {
	Name         string `json:"name"`
	HostStatuses []struct {
		Address struct {
			SocketAddress struct {
				Address string `json:"address"`
				Port    int    `json:"port_value"`
			} `json:"socket_address"`
			Internal struct {
				ID string `json:"endpoint_id"` // ip:port of a lifted service's provider
			} `json:"envoy_internal_address"`
		} `json:"address"`
		Stats []struct {
			Name  string `json:"name"`
			Value string `json:"value"`
		} `json:"stats"`
	} `json:"host_statuses"`
}

// hosts calls fn for each endpoint, ip:port, of each outbound cluster of a host.
func (s *Sidecar) hosts(ctx context.Context, host string, fn func(c *clusterHosts, i int, endpoint string) error) error {
	body, err := s.Admin(ctx, "/clusters?format=json")
	if err != nil {
		return err
	}
	var page struct {
		ClusterStatuses []clusterHosts `json:"cluster_statuses"`
	}
	if err := json.Unmarshal(body, &page); err != nil {
		return fmt.Errorf("mesh: clusters of %s: %w", s.machine.Name(), err)
	}
	for i := range page.ClusterStatuses {
		c := &page.ClusterStatuses[i]
		if !strings.HasPrefix(c.Name, "outbound|") || !strings.HasSuffix(c.Name, "|"+host) {
			continue
		}
		for j, h := range c.HostStatuses {
			endpoint := h.Address.Internal.ID
			if endpoint == "" {
				endpoint = fmt.Sprintf("%s:%d", h.Address.SocketAddress.Address, h.Address.SocketAddress.Port)
			}
			if err := fn(c, j, endpoint); err != nil {
				return err
			}
		}
	}
	return nil
}

// Endpoints returns the endpoints, ip:port, that the sidecar would balance over for a host: those of its outbound clusters.
// They are sorted and each there once.
func (s *Sidecar) Endpoints(ctx context.Context, host string) ([]string, error) {
	var out []string
	err := s.hosts(ctx, host, func(_ *clusterHosts, _ int, endpoint string) error {
		out = append(out, endpoint)
		return nil
	})
	slices.Sort(out)
	return slices.Compact(out), err
}

// Sent returns how many requests the sidecar has sent to each endpoint of a host, retries among them, through all of the host's clusters, or with a subset
// through that one's only. A cluster whose configuration changes is made anew, and counts from nothing.
func (s *Sidecar) Sent(ctx context.Context, host, subset string) (map[string]int, error) {
	return s.requests(ctx, host, subset, "rq_total")
}

// Answered does so for those that were answered without an error: each call once, however often it was tried.
func (s *Sidecar) Answered(ctx context.Context, host, subset string) (map[string]int, error) {
	return s.requests(ctx, host, subset, "rq_success")
}

// requests is Sent for a counter of Envoy's (HostStats).
func (s *Sidecar) requests(ctx context.Context, host, subset, counter string) (map[string]int, error) {
	out := map[string]int{}
	err := s.hosts(ctx, host, func(c *clusterHosts, i int, endpoint string) error {
		if subset != "" && !strings.Contains(c.Name, "|"+subset+"|") {
			return nil
		}
		for _, stat := range c.HostStatuses[i].Stats {
			if stat.Name == counter && stat.Value != "" { // 0 goes without saying
				n, err := strconv.Atoi(stat.Value)
				if err != nil {
					return fmt.Errorf("mesh: %s of %s: %w", counter, endpoint, err)
				}
				out[endpoint] += n
			}
		}
		return nil
	})
	return out, err
}

// Sample is one number of a page of metrics.
type Sample struct {
	Labels map[string]string
	Value  float64
}

// Metrics returns the samples of one metric of the filter, by the name that the filter gives it.
func (s *Sidecar) Metrics(ctx context.Context, name string) ([]Sample, error) {
	body, err := get(ctx, &http.Client{Timeout: 10 * time.Second}, fmt.Sprintf("http://%s:%d/stats/prometheus", s.machine.Address(), machine.PortMetrics))
	if err != nil {
		return nil, err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("mesh: metrics of %s: %w", s.machine.Name(), err)
	}
	var out []Sample
	for _, prefix := range []string{"", "envoy_wasmcustom_", "envoy_"} {
		for _, m := range families[prefix+name].GetMetric() {
			sample := Sample{Labels: make(map[string]string), Value: m.GetCounter().GetValue() + m.GetGauge().GetValue() + m.GetUntyped().GetValue()}
			for _, l := range m.GetLabel() {
				sample.Labels[l.GetName()] = l.GetValue()
			}
			out = append(out, sample)
		}
	}
	return out, nil
}
