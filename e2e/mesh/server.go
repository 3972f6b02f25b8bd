package mesh

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/isthmus-mesh/isthmus/e2e/machine"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
)

// serverPart is mcp-server's folder on its machine.
const serverPart = "mcp-server"

// Registry is one entry of mcp-server's configuration.
type Registry struct {
	Name     string         `yaml:"name"`
	Kind     string         `yaml:"kind"`
	Settings map[string]any `yaml:"settings"`
}

// ServerOptions say what mcp-server is configured with.
type ServerOptions struct {
	Registries []Registry
	Scrape     []string // names of the machines whose sidecars' metrics it reads
	NoFilter   bool     // leave the filter out
	Identities any      // spec.mesh.identities, nil for none: who has certificates
	Lift       any      // spec.mesh.lift, nil for none: which services' calls travel as HTTP/2
	Listen     bool     // listen for sidecars also where nothing is lifted: for later
	Token      string   // of the API, without which nothing can be written; "" for none
}

// ConfigureServer writes mcp-server's configuration file, also while it runs: it takes changes over.
func (m *Mesh) ConfigureServer(o ServerOptions) error {
	var targets []map[string]string
	for _, name := range o.Scrape {
		x, err := m.Machine(name)
		if err != nil {
			return err
		}
		targets = append(targets, map[string]string{"name": name, "url": fmt.Sprintf("http://%s:%d/stats/prometheus", x.Address(), machine.PortMetrics)})
	}
	spec := map[string]any{
		"registries": o.Registries,
		"mcp":        map[string]any{"address": fmt.Sprintf("0.0.0.0:%d", MCPPort)},
		"api":        map[string]any{"address": fmt.Sprintf("0.0.0.0:%d", APIPort)},
		"mesh":       map[string]any{"namespace": Namespace, "rootNamespace": RootNamespace},
		"rules":      map[string]any{"path": "rules"},
		"keys":       map[string]any{"path": "keys"},
		"state":      map[string]any{"dir": "state"},
		"telemetry":  map[string]any{"targets": targets},
	}
	if o.Identities != nil {
		spec["mesh"].(map[string]any)["identities"] = o.Identities
	}
	m.token = o.Token
	if o.Token != "" {
		if _, err := m.write(ServerMachine, serverPart, "api-token", o.Token); err != nil {
			return err
		}
		spec["api"].(map[string]any)["token"] = map[string]any{"file": "api-token"}
	}
	if o.Lift != nil {
		spec["mesh"].(map[string]any)["lift"] = o.Lift
	}
	if o.Lift != nil || o.Listen {
		x, err := m.Machine(ServerMachine)
		if err != nil {
			return err
		}
		spec["xds"] = map[string]any{"address": fmt.Sprintf("0.0.0.0:%d", EndpointsPort), "advertise": fmt.Sprintf("%s:%d", x.Address(), EndpointsPort)}
	}
	if !o.NoFilter {
		filter, err := m.artifact(peer.Filter)
		if err != nil {
			return err
		}
		spec["filter"] = map[string]any{"url": "file://" + m.host.Exposed(filter.Path)}
	}
	text, err := yaml.Marshal(map[string]any{"apiVersion": "isthmus.io/v1alpha1", "kind": "MCPServer", "metadata": map[string]any{"name": "e2e"}, "spec": spec})
	if err != nil {
		return fmt.Errorf("mesh: %w", err)
	}
	if err := os.MkdirAll(m.rules(), 0o755); err != nil {
		return fmt.Errorf("mesh: %w", err)
	}
	// mcp-server, which is another user, writes rules there, too.
	if err := os.Chmod(m.rules(), 0o777); err != nil {
		return fmt.Errorf("mesh: %w", err)
	}
	_, err = m.write(ServerMachine, serverPart, "mcp-server.yaml", string(text))
	return err
}

// ConfigPath is mcp-server's configuration file, on the outer file system.
func (m *Mesh) ConfigPath() string {
	return filepath.Join(m.folder, ServerMachine, serverPart, "mcp-server.yaml")
}

func (m *Mesh) rules() string { return filepath.Join(m.folder, ServerMachine, serverPart, "rules") }

// ApplyRule writes a rule's YAML into mcp-server's folder of rules.
func (m *Mesh) ApplyRule(name, text string) error {
	_, err := m.write(ServerMachine, filepath.Join(serverPart, "rules"), name+".yaml", text)
	return err
}

// WriteKeys writes a file into mcp-server's folder of keys, which mcp-server alone should be able to read.
func (m *Mesh) WriteKeys(name string, text []byte) error {
	_, err := m.write(ServerMachine, filepath.Join(serverPart, "keys"), name, string(text))
	return err
}

// RemoveRule takes a rule away again.
func (m *Mesh) RemoveRule(name string) error {
	if err := os.Remove(filepath.Join(m.rules(), name+".yaml")); err != nil {
		return fmt.Errorf("mesh: %w", err)
	}
	return nil
}

// StartServer starts mcp-server, which must have been configured, and waits until it has heard all its registries and
// can serve istiod.
func (m *Mesh) StartServer(ctx context.Context) error {
	if err := m.LaunchServer(); err != nil {
		return err
	}
	return m.ServerReady(ctx)
}

// LaunchServer starts mcp-server and does not wait for it.
func (m *Mesh) LaunchServer() error {
	a, err := m.artifact(peer.MCPServer)
	if err != nil {
		return err
	}
	m.Server, err = m.start(ServerMachine, machine.Command{Name: serverPart, Path: m.host.Exposed(a.Path), User: machine.UserApp,
		Args: []string{"--config", m.host.Exposed(m.ConfigPath())}})
	return err
}

// ServerReady waits until mcp-server has heard all its registries.
func (m *Mesh) ServerReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return m.Server.UntilHTTP(ctx, fmt.Sprintf("http://127.0.0.1:%d/readyz", APIPort))
}

// APIURL is where mcp-server's API is, for this process and for every machine.
func (m *Mesh) APIURL() string {
	return fmt.Sprintf("http://%s:%d", m.machines[ServerMachine].Address(), APIPort)
}

// API reads a page of mcp-server's API.
func (m *Mesh) API(ctx context.Context, path string) ([]byte, error) {
	return get(ctx, &http.Client{Timeout: 10 * time.Second, Transport: bearer(m.token)}, m.APIURL()+path)
}

// Ask reads a page of mcp-server's API.
func Ask[T any](ctx context.Context, m *Mesh, path string) (out T, err error) {
	body, err := m.API(ctx, path)
	if err != nil {
		return out, err
	}
	if err := json.Unmarshal(body, &out); err != nil {
		return out, fmt.Errorf("mesh: %s: %w", path, err)
	}
	return out, nil
}

// bearer sends a token with each request, "" for none.
type bearer string

// RoundTrip implements http.RoundTripper.
func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if b != "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+string(b))
	}
	return http.DefaultTransport.RoundTrip(r)
}
