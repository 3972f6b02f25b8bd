package mesh

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/e2e/kubestub"
	"github.com/isthmus-mesh/isthmus/e2e/machine"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
)

// meshConfig is istiod's MeshConfig: configuration comes from mcp-server and, formally, from Kubernetes. The sidecars are
// plain Envoys, hence none of the filters that only Istio's own Envoy has, and mutual TLS only in a mesh that is secure. What an
// operator would say with kubectl is read from a folder.
const meshConfig = `rootNamespace: istio-system
trustDomain: cluster.local
enablePrometheusMerge: false
enableAutoMtls: %t
defaultProviders: {}
configSources:
- address: xds://%s:%d
- address: fs://%s
- address: k8s://
`

// operatorConfig is what an operator would have said to Istio: without certificates sidecars take plaintext only. (By
// default they take both, and wait for certificates before they begin.) With certificates it is the default.
const operatorConfig = `apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: %s}}
`

// StartIstiod starts istiod and waits until it is ready: it then has everything that mcp-server holds. mcp-server must be up:
// istiod gives up if it cannot reach a source of configuration at its start.
func (m *Mesh) StartIstiod(ctx context.Context) error {
	if err := m.LaunchIstiod(); err != nil {
		return err
	}
	return m.IstiodReady(ctx)
}

// IstiodReady waits until istiod is ready.
func (m *Mesh) IstiodReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return m.Istiod.UntilHTTP(ctx, fmt.Sprintf("http://127.0.0.1:%d/ready", DebugPort))
}

// LaunchIstiod starts istiod and does not wait for it.
func (m *Mesh) LaunchIstiod() error {
	a, err := m.artifact(peer.Istiod)
	if err != nil {
		return err
	}
	// It needs a Kubernetes API to start; see kubestub. The listener is on the bridge, and goes when the namespaces go.
	l, err := net.Listen("tcp", net.JoinHostPort(m.host.Address().String(), "0"))
	if err != nil {
		return fmt.Errorf("mesh: %w", err)
	}
	go func() {
		_ = (&http.Server{Handler: kubestub.Server{Namespaces: []string{RootNamespace, Namespace}}, ReadHeaderTimeout: time.Minute}).Serve(l)
	}()
	kubeconfig, err := m.write(IstiodMachine, "conf", "kubeconfig", kubestub.Kubeconfig("http://"+l.Addr().String()))
	if err != nil {
		return err
	}
	mode := "DISABLE"
	if m.authority != nil {
		mode = "PERMISSIVE"
	}
	operator, err := m.write(IstiodMachine, operatorPart, "peer-authentication.yaml", fmt.Sprintf(operatorConfig, mode))
	if err != nil {
		return err
	}
	mesh, err := m.write(IstiodMachine, "conf", "mesh", fmt.Sprintf(meshConfig, m.authority != nil, ServerMachine, MCPPort, filepath.Dir(operator)))
	if err != nil {
		return err
	}
	m.Istiod, err = m.start(IstiodMachine, machine.Command{
		Name: "istiod", Path: m.host.Exposed(a.Path), User: machine.UserProxy, Grace: 2 * time.Second,
		Args: []string{"discovery", "--registries=", "--kubeconfig", kubeconfig, "--meshConfig", mesh, "--networksConfig", "/nonexistent",
			"--httpAddr", fmt.Sprintf(":%d", DebugPort), "--httpsAddr=", "--grpcAddr", fmt.Sprintf(":%d", XDSPort), "--secureGRPCAddr=",
			"--monitoringAddr", ":15014", "--ctrlz_port", "0", "--clusterID", ClusterID},
		Env: []string{"POD_NAME=istiod-0", "POD_NAMESPACE=" + RootNamespace, "ENABLE_CA_SERVER=false", "PILOT_CERT_PROVIDER=none", "XDS_AUTH=false",
			"PILOT_ENABLE_METADATA_EXCHANGE=false", "PILOT_ENABLE_ALPN_FILTER=false"},
	})
	return err
}

// IstiodEndpoints asks istiod which endpoints it has for a host.
func (m *Mesh) IstiodEndpoints(ctx context.Context, host string) ([]string, error) {
	body, err := m.IstiodDebug(ctx, "/debug/endpointShardz")
	if err != nil {
		return nil, err
	}
	// service → namespace → {Shards: {shard: [endpoints]}}
	var all map[string]map[string]struct {
		Shards map[string][]struct {
			Addresses    []string
			EndpointPort int
		}
	}
	if err := json.Unmarshal(body, &all); err != nil {
		return nil, fmt.Errorf("mesh: istiod's endpoints: %w", err)
	}
	var out []string
	for _, namespace := range all[host] {
		for _, shard := range namespace.Shards {
			for _, e := range shard {
				for _, a := range e.Addresses {
					out = append(out, fmt.Sprintf("%s:%d", a, e.EndpointPort))
				}
			}
		}
	}
	return out, nil
}

// IstiodDebug reads one of istiod's debug pages, such as /debug/configz.
func (m *Mesh) IstiodDebug(ctx context.Context, path string) ([]byte, error) {
	return get(ctx, m.machines[IstiodMachine].Client(), fmt.Sprintf("http://127.0.0.1:%d%s", DebugPort, path))
}

// maxPage bounds what is read of a page, in bytes.
const maxPage = 64 << 20

// get reads a page that must answer 200.
func get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("mesh: %w", err)
	}
	a, err := client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("mesh: %w", err)
	}
	defer a.Body.Close()
	body, err := io.ReadAll(io.LimitReader(a.Body, maxPage))
	if err != nil {
		return nil, fmt.Errorf("mesh: %s: %w", url, err)
	}
	if a.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("mesh: %s: %s: %s", url, a.Status, strings.TrimSpace(string(body[:min(len(body), 300)])))
	}
	return body, nil
}
