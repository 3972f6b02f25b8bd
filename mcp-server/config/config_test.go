package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/builtin"
)

const full = `apiVersion: isthmus.io/v1alpha1
kind: MCPServer
metadata: {name: bridge}
spec:
  registries:
    - name: zk
      kind: zookeeper
      settings:
        servers: [10.0.0.1:2181]
    - name: files
      kind: file
      settings: {path: services}
  mcp:
    address: 0.0.0.0:15990
    tls: {certFile: cert.pem, keyFile: key.pem, clientCAFile: ca.pem}
    token: {file: token}
  api:
    address: 127.0.0.1:8080
    token: {env: ISTHMUS_TOKEN}
  mesh:
    namespace: vm
    rootNamespace: istio-config
    hostSuffix: legacy.example.com
    virtualAddresses: 240.10.0.0/16
    exportTo: ["*"]
    addressing: endpoints
  filter:
    url: file:///var/lib/isthmus/isthmus.wasm
    sha256: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
    failStrategy: close
    plugin:
      protocols: [dubbo]
      limits: {maxFrameBytes: 1048576, oversize: close}
      metrics: {maxServices: 10}
  rules: {path: rules}
  state: {dir: state}
  holdOff: {quiet: 20ms, max: 500ms}
  telemetry:
    interval: 5s
    targets:
      - url: http://10.0.0.1:15090/stats/prometheus
      - {name: b, url: http://10.0.0.2:15090/stats/prometheus}
`

func TestParse(t *testing.T) {
	c, err := Parse([]byte(full), builtin.Kinds)
	if err != nil {
		t.Fatal(err)
	}
	s := c.Spec
	if len(s.Registries) != 2 || s.Registries[0].Kind != "zookeeper" || s.MCP.Address != "0.0.0.0:15990" || !s.MCP.TLS.Enabled() || s.API.TLS.Enabled() ||
		s.API.Token.Env != "ISTHMUS_TOKEN" || s.Mesh.Virtual().String() != "240.10.0.0/16" || s.HoldOff.Max != 500*time.Millisecond ||
		s.Telemetry.Targets[0].Name != "10.0.0.1:15090" || s.Telemetry.Targets[1].Name != "b" {
		t.Errorf("read %+v", s)
	}
	p, faults := s.Filter.PluginDefaults()
	if len(faults) > 0 || p.Limits.MaxFrameBytes != 1<<20 || p.Metrics.MaxServices != 10 || p.Protocols[0] != "dubbo" {
		t.Errorf("plugin %+v, %v", p, faults)
	}
}

func TestDefaults(t *testing.T) {
	c, err := Parse([]byte("apiVersion: isthmus.io/v1alpha1\nkind: MCPServer\n"), builtin.Kinds)
	if err != nil {
		t.Fatal(err)
	}
	s := c.Spec
	if s.MCP.Address != DefaultMCPAddress || s.API.Address != DefaultAPIAddress || s.Mesh.Namespace != DefaultNamespace || s.Mesh.RootNamespace != DefaultRootNamespace ||
		s.Mesh.HostSuffix != DefaultHostSuffix || s.Mesh.Virtual().String() != DefaultVirtualAddresses || s.Filter.FailStrategy != DefaultFailStrategy ||
		s.HoldOff.Quiet != DefaultHoldOff || s.HoldOff.Max != DefaultMaxHoldOff || s.Telemetry.Interval != DefaultTelemetryInterval {
		t.Errorf("defaults %+v", s)
	}
	if f := c.Validate(); len(f) > 0 {
		t.Errorf("the defaults are not valid: %v", f)
	}
}

// Everything that is wrong is said at once, each fault with its line and field.
func TestAllFaultsAtOnce(t *testing.T) {
	const text = `apiVersion: isthmus.io/v1
kind: Server
spec:
  registries:
    - name: zk
      kind: zookeeper
      settings:
        servers: [10.0.0.1:2181]
        sesionTimeout: 1s
    - name: zk
      kind: file
      settings: {path: x}
    - name: N
      kind: carrier-pigeon
    - name: pigeon
      kind: carrier-pigeon
  mcp:
    address: nowhere
    tls: {certFile: a}
    token: {file: a, env: B}
  api:
    adress: 1
    tls: {clientCAFile: x}
  mesh:
    namespace: No
    rootNamespace: -x
    hostSuffix: a..b
    virtualAddresses: 240.0.0.1/8
    exportTo: [a, B]
    addressing: dns
  filter:
    url: ftp://x
    sha256: abc
    failStrategy: maybe
    plugin:
      limits:
        maxFrameBytes: 1
        maxFrame: 2
      generation: x
  holdOff: {quiet: 2s, max: 1s}
  telemetry:
    interval: 1ms
    targets:
      - url: nowhere
      - url: http://a/x
      - url: http://a/y
`
	_, err := Parse([]byte(text), builtin.Kinds)
	got := adapters.AsFaults(err).Error()
	for _, want := range []string{
		`line 1: apiVersion: must be isthmus.io/v1alpha1, is "isthmus.io/v1"`,
		`line 2: kind: must be MCPServer`,
		`line 9: spec.registries[0].settings.sesionTimeout: unknown field`,
		`line 10: spec.registries[1].name: "zk" is also the name of spec.registries[0]`,
		`line 13: spec.registries[2].name: "N" is not a name`,
		`line 16: spec.registries[3].kind: unknown kind "carrier-pigeon"`,
		`line 18: spec.mcp.address: "nowhere" is not host:port`,
		`line 19: spec.mcp.tls: certFile and keyFile go together`,
		`line 20: spec.mcp.token.env: give token.file or token.env, not both`,
		`line 22: spec.api.adress: unknown field`,
		`line 23: spec.api.tls.clientCAFile: needs certFile and keyFile`,
		`line 25: spec.mesh.namespace: "No" is no name`,
		`line 26: spec.mesh.rootNamespace: "-x" is no name`,
		`line 27: spec.mesh.hostSuffix: "a..b" is no domain name`,
		`line 28: spec.mesh.virtualAddresses: 240.0.0.1/8 has bits set`,
		`line 29: spec.mesh.exportTo[1]: "B" is neither`,
		`line 30: spec.mesh.addressing: must be both or endpoints`,
		`line 32: spec.filter.url: must begin with`,
		`line 33: spec.filter.sha256: must be 64`,
		`line 34: spec.filter.failStrategy: must be open or close`,
		`line 38: spec.filter.plugin.limits.maxFrame: `,
		`line 40: spec.holdOff.quiet: is longer than max`,
		`line 42: spec.telemetry.interval: must be from`,
		`line 44: spec.telemetry.targets[0].url: "nowhere" is no URL`,
		`line 46: spec.telemetry.targets[2].name: "a" is also the name of targets[1]`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("missing: %s", want)
		}
	}
	if t.Failed() {
		t.Logf("got:\n%s", got)
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "isthmus.yaml")
	if _, err := Load(path, builtin.Kinds); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	for text, want := range map[string]string{
		"":                              path + ": the document is empty",
		"a: [":                          path + ":1: ",
		"a: 1\n---\nb: 1\n":             path + ":",
		"spec: 1\n":                     path + ":1: spec: must be a mapping",
		"kind: MCPServer\n":             path + `:1: apiVersion: must be isthmus.io/v1alpha1, is ""`,
		strings.Repeat("#", maxBytes+1): path + ": is longer than",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(path, builtin.Kinds)
		if wrong, ok := errors.AsType[*Error](err); !ok || !strings.HasPrefix(wrong.Error(), want) {
			t.Errorf("%.40q: got %v, want %s", text, err, want)
		}
	}
	if err := os.WriteFile(path, []byte(full), 0o600); err != nil {
		t.Fatal(err)
	}
	c, text, err := LoadText(path, builtin.Kinds)
	if err != nil || string(text) != full {
		t.Fatalf("got %v", err)
	}
	dir := filepath.Dir(path)
	if s := c.Spec; s.Rules.Path != filepath.Join(dir, "rules") || s.State.Dir != filepath.Join(dir, "state") || s.MCP.TLS.KeyFile != filepath.Join(dir, "key.pem") || s.MCP.Token.File != filepath.Join(dir, "token") {
		t.Errorf("relative paths: %+v", s)
	}
}

// TestRulesElsewhere: rules of any kind stand in the folder of rules, not in the defaults of the filter's configuration.
func TestRulesElsewhere(t *testing.T) {
	for name, rule := range map[string]string{
		"throttle":       "throttle: [{name: a/b, threshold: 1}]",
		"circuitBreaker": "circuitBreaker: [{name: a/b, strategy: errorCount, threshold: 1}]",
		"access":         "access: [{name: a/b, action: defaultDeny}]",
		"faultInjection": "faultInjection: [{name: a/b}]",
		"degrade":        "degrade: [{name: a/b}]",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte("apiVersion: isthmus.io/v1alpha1\nkind: MCPServer\nspec:\n  filter:\n    url: file:///isthmus.wasm\n    plugin:\n      "+rule+"\n"), builtin.Kinds)
			if err == nil || !strings.Contains(err.Error(), "spec.filter.plugin: must hold no rules") {
				t.Errorf("got %v", err)
			}
		})
	}
}
