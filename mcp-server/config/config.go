// Package config is the configuration of mcp-server: one document of YAML or JSON, read strictly. Everything that is wrong
// with it is said at once, with file, line and field.
package config

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters"
	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// The identity of the document.
const (
	APIVersion = "isthmus.io/v1alpha1"
	Kind       = "MCPServer"
)

// The defaults of the fields that have one.
const (
	DefaultMCPAddress        = "127.0.0.1:15990"
	DefaultAPIAddress        = "127.0.0.1:15991"
	DefaultNamespace         = "default"
	DefaultRootNamespace     = "istio-system"
	DefaultHostSuffix        = "isthmus"
	DefaultVirtualAddresses  = "240.64.0.0/10"
	DefaultAddressing        = AddressingBoth
	DefaultTrustDomain       = "cluster.local"
	DefaultFailStrategy      = "open"
	DefaultTelemetryInterval = time.Second
	DefaultHoldOff           = 50 * time.Millisecond
	DefaultMaxHoldOff        = time.Second
)

// The values of Mesh.Addressing.
const (
	AddressingBoth      = "both"
	AddressingEndpoints = "endpoints"
)

// The bounds of what a configuration may ask for.
const (
	maxBytes       = 4 << 20 // of the file
	maxTargets     = 1000
	maxSuffix      = 100 // bytes, so that there is room for the services' own names
	maxDomain      = 253 // bytes
	maxIdentities  = 1000
	minInterval    = 100 * time.Millisecond
	maxInterval    = time.Hour
	minPrefixHosts = 10 // bits that are left for services in the range of virtual addresses
)

// Config is the whole document.
type Config struct {
	APIVersion string   `yaml:"apiVersion"`
	Kind       string   `yaml:"kind"`
	Metadata   Metadata `yaml:"metadata"`
	Spec       Spec     `yaml:"spec"`
}

// Metadata is Kubernetes' way to name a document; mcp-server makes nothing of it.
type Metadata struct {
	Name        string            `yaml:"name"`
	Namespace   string            `yaml:"namespace"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

// Spec says what mcp-server reads, what it makes of it and where it serves it.
type Spec struct {
	Registries []adapters.Registry `yaml:"registries"`
	MCP        MCP                 `yaml:"mcp"`
	API        API                 `yaml:"api"`
	XDS        XDS                 `yaml:"xds"`
	Mesh       Mesh                `yaml:"mesh"`
	Filter     Filter              `yaml:"filter"`
	Rules      Rules               `yaml:"rules"`
	Keys       Keys                `yaml:"keys"`
	State      State               `yaml:"state"`
	HoldOff    HoldOff             `yaml:"holdOff"`
	Telemetry  Telemetry           `yaml:"telemetry"`
}

// MCP is where istiod finds us.
type MCP struct {
	Address string `yaml:"address"` // host:port; default 127.0.0.1:15990
	TLS     TLS    `yaml:"tls"`
	Token   Token  `yaml:"token"` // what clients must send; istiod itself cannot, so this is for a proxy before us
}

// API is where the JSON API, the health checks and our own metrics are.
type API struct {
	Address string `yaml:"address"` // host:port; default 127.0.0.1:15991
	TLS     TLS    `yaml:"tls"`
	Token   Token  `yaml:"token"` // what clients of /api must send; health checks and metrics need none
}

// TLS are files in PEM; they are read again when they change. Without CertFile there is no TLS.
type TLS struct {
	CertFile     string `yaml:"certFile"`
	KeyFile      string `yaml:"keyFile"`
	ClientCAFile string `yaml:"clientCAFile"` // if set, clients must have a certificate of one of these authorities
}

// Enabled tells whether there is TLS.
func (t TLS) Enabled() bool { return t.CertFile != "" }

// Token refers to a bearer token that lies elsewhere. The zero value refers to none.
type Token struct {
	File string `yaml:"file"`
	Env  string `yaml:"env"` // name of an environment variable
}

// Secret returns the reference as what reads it.
func (t Token) Secret() adapters.Secret { return adapters.Secret{File: t.File, Env: t.Env} }

// Mesh says how services appear in the mesh.
type Mesh struct {
	// Namespace is that of the ServiceEntries. A provider's sidecar finds its own services only in its own namespace. Default "default".
	Namespace string `yaml:"namespace"`
	// RootNamespace is Istio's, where what is for all workloads lies. Default "istio-system".
	RootNamespace string `yaml:"rootNamespace"`
	// HostSuffix ends the services' host names. Default "isthmus".
	HostSuffix string `yaml:"hostSuffix"`
	// VirtualAddresses is the range that services get addresses of. Default 240.64.0.0/10.
	VirtualAddresses string `yaml:"virtualAddresses"`
	// ExportTo are the namespaces that see the services, as in ServiceEntry. Default: all, or what Istio's mesh configuration says.
	ExportTo []string `yaml:"exportTo"`
	// Addressing says how services over TCP are called: "both" (default) by their own virtual addresses too, which costs a listener and a
	// cluster for each service in each sidecar, or only by their "endpoints".
	Addressing string `yaml:"addressing"`
	// TrustDomain is Istio's: the identities of workloads begin with it. Default "cluster.local".
	TrustDomain string `yaml:"trustDomain"`
	// Identities are the providers whose sidecars have certificates, so that callers' sidecars speak mutual TLS with them. None by default.
	Identities []Identity `yaml:"identities"`
	Lift       Lift       `yaml:"lift"`
}

// Identity gives the providers of applications their service account. The first that is for an application has the say.
type Identity struct {
	Application    string `yaml:"application"`    // equal, or the beginning and "*"
	ServiceAccount string `yaml:"serviceAccount"` // default: the application's own name
}

// Filter says how the Wasm filter gets into the sidecars. Without URL it does not.
type Filter struct {
	URL    string `yaml:"url"` // file:///path/in/the/sidecar, oci://registry/image:tag, https://host/file
	SHA256 string `yaml:"sha256"`
	// Disabled takes the filter out, and with it all rules.
	Disabled bool `yaml:"disabled"`
	// FailStrategy says what becomes of connections where the filter cannot be loaded or fails: "open" lets them through
	// unread (default), "close" closes them.
	FailStrategy string `yaml:"failStrategy"`
	// ImagePullSecret is the name of a Kubernetes secret in the root namespace, for oci://.
	ImagePullSecret string `yaml:"imagePullSecret"`
	// Plugin holds protocols, limits and metrics of the filter's configuration (see wasm-filters/README.md).
	Plugin adapters.Settings `yaml:"plugin"`
}

// Rules is where the governance rules are.
type Rules struct {
	Path string `yaml:"path"` // a folder, whose .yaml, .yml and .json files are read, or one file; "" for none
}

// Keys is where the keys are that tokens in calls are signed with.
type Keys struct {
	Path string `yaml:"path"` // a folder, whose .jwks, .json, .pem and .secret files are read; "" for none
}

// State is where what the registries said last is saved.
type State struct {
	Dir string `yaml:"dir"` // "" saves nothing: then a restart while a registry is away has to wait for it
}

// HoldOff says how long changes are gathered before they go to the mesh.
type HoldOff struct {
	Quiet time.Duration `yaml:"quiet"` // after the last change; default 50ms
	Max   time.Duration `yaml:"max"`   // after the first one; default 1s
}

// Telemetry says whose traffic GET /api/v1/traffic shows.
type Telemetry struct {
	Targets  []Target      `yaml:"targets"`
	Interval time.Duration `yaml:"interval"` // between two scrapes; default 1s
}

// Target is the Prometheus page of one Envoy.
type Target struct {
	Name string `yaml:"name"` // unique; as the API names it; default: the URL's host
	URL  string `yaml:"url"`  // http://10.0.0.1:15090/stats/prometheus
}

// setDefaults fills in what has a default.
func (c *Config) setDefaults() {
	s := &c.Spec
	def(&s.MCP.Address, DefaultMCPAddress)
	def(&s.API.Address, DefaultAPIAddress)
	def(&s.Mesh.Namespace, DefaultNamespace)
	def(&s.Mesh.RootNamespace, DefaultRootNamespace)
	def(&s.Mesh.HostSuffix, DefaultHostSuffix)
	def(&s.Mesh.VirtualAddresses, DefaultVirtualAddresses)
	def(&s.Mesh.Addressing, DefaultAddressing)
	def(&s.Mesh.TrustDomain, DefaultTrustDomain)
	def(&s.Filter.FailStrategy, DefaultFailStrategy)
	def(&s.HoldOff.Quiet, DefaultHoldOff)
	def(&s.HoldOff.Max, DefaultMaxHoldOff)
	def(&s.Telemetry.Interval, DefaultTelemetryInterval)
	for i := range s.Telemetry.Targets {
		t := &s.Telemetry.Targets[i]
		if u, err := url.Parse(t.URL); err == nil {
			def(&t.Name, u.Host)
		}
	}
}

func def[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Virtual returns the range of virtual addresses; it is valid in a configuration that is.
func (m Mesh) Virtual() netip.Prefix {
	p, _ := netip.ParsePrefix(m.VirtualAddresses)
	return p
}

// PluginDefaults returns what every configuration of the filter begins with.
func (f Filter) PluginDefaults() (plugin.Plugin, plugin.Faults) {
	b, err := f.Plugin.MarshalJSON()
	if err != nil {
		return plugin.Plugin{}, plugin.Faults{{Message: err.Error()}}
	}
	p, faults := plugin.Decode(b)
	return *p, faults
}

// Validate implements adapters.Validator.
func (c *Config) Validate() adapters.Faults {
	var f adapters.Faults
	if c.APIVersion != APIVersion {
		f.Add("apiVersion", "must be %s, is %q", APIVersion, c.APIVersion)
	}
	if c.Kind != Kind {
		f.Add("kind", "must be %s, is %q", Kind, c.Kind)
	}
	s := &c.Spec
	seen := map[string]int{}
	for i, r := range s.Registries {
		at := fmt.Sprintf("spec.registries[%d]", i)
		f = append(f, r.Validate().Under(at)...)
		if first, ok := seen[r.Name]; ok {
			f.Add(at+".name", "%q is also the name of spec.registries[%d]", r.Name, first)
		}
		seen[r.Name] = i
	}
	f = append(f, s.MCP.validate().Under("spec.mcp")...)
	f = append(f, s.API.validate().Under("spec.api")...)
	if s.MCP.Address != "" && s.MCP.Address == s.API.Address && !strings.HasSuffix(s.MCP.Address, ":0") {
		f.Add("spec.api.address", "is also spec.mcp.address")
	}
	if x := s.Listen(); x != "" && (x == s.MCP.Address || x == s.API.Address) && !strings.HasSuffix(x, ":0") {
		f.Add("spec.xds.address", "is also spec.mcp.address or spec.api.address")
	}
	f = append(f, s.Mesh.validate().Under("spec.mesh")...)
	f = append(f, s.XDS.validate(len(s.Mesh.Lift.Services) > 0).Under("spec.xds")...)
	f = append(f, s.Filter.validate().Under("spec.filter")...)
	f = append(f, s.HoldOff.validate().Under("spec.holdOff")...)
	f = append(f, s.Telemetry.validate().Under("spec.telemetry")...)
	return f
}

func (m MCP) validate() adapters.Faults {
	var f adapters.Faults
	checkAddress(&f, "address", m.Address)
	m.TLS.check(&f)
	m.Token.Secret().Check(&f, "token.file", "token.env")
	return f
}

func (a API) validate() adapters.Faults {
	var f adapters.Faults
	checkAddress(&f, "address", a.Address)
	a.TLS.check(&f)
	a.Token.Secret().Check(&f, "token.file", "token.env")
	return f
}

func checkAddress(f *adapters.Faults, path, address string) {
	if address == "" {
		return
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		f.Add(path, "%q is not host:port", address)
		return
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		f.Add(path, "%q is no port", port)
	}
	if strings.ContainsAny(host, "/ ") {
		f.Add(path, "%q is no host", host)
	}
}

func (t TLS) check(f *adapters.Faults) {
	if (t.CertFile == "") != (t.KeyFile == "") {
		f.Add("tls", "certFile and keyFile go together")
	}
	if t.ClientCAFile != "" && t.CertFile == "" {
		f.Add("tls.clientCAFile", "needs certFile and keyFile")
	}
}

func (m Mesh) validate() adapters.Faults {
	var f adapters.Faults
	if m.Namespace != "" && !isLabel(m.Namespace) {
		f.Add("namespace", "%q is no name of a namespace", m.Namespace)
	}
	if m.RootNamespace != "" && !isLabel(m.RootNamespace) {
		f.Add("rootNamespace", "%q is no name of a namespace", m.RootNamespace)
	}
	if m.HostSuffix != "" {
		if len(m.HostSuffix) > maxSuffix {
			f.Add("hostSuffix", "is longer than %d bytes", maxSuffix)
		}
		for label := range strings.SplitSeq(m.HostSuffix, ".") {
			if !isLabel(label) {
				f.Add("hostSuffix", "%q is no domain name in lower case", m.HostSuffix)
				break
			}
		}
	}
	if m.VirtualAddresses != "" {
		switch p, err := netip.ParsePrefix(m.VirtualAddresses); {
		case err != nil:
			f.Add("virtualAddresses", "%q is no range such as %s", m.VirtualAddresses, DefaultVirtualAddresses)
		case p != p.Masked():
			f.Add("virtualAddresses", "%s has bits set behind its mask; the range is %s", p, p.Masked())
		case p.Addr().BitLen()-p.Bits() < minPrefixHosts:
			f.Add("virtualAddresses", "%s is too small: at least %d bits are needed behind the mask", p, minPrefixHosts)
		}
	}
	if !slices.Contains([]string{"", AddressingBoth, AddressingEndpoints}, m.Addressing) {
		f.Add("addressing", "must be %s or %s", AddressingBoth, AddressingEndpoints)
	}
	for i, e := range m.ExportTo {
		if e != "*" && e != "." && e != "~" && !isLabel(e) {
			f.Add(fmt.Sprintf("exportTo[%d]", i), "%q is neither *, . or ~ nor the name of a namespace", e)
		}
	}
	if m.TrustDomain != "" && !isDomain(m.TrustDomain) {
		f.Add("trustDomain", "%q is no domain name in lower case", m.TrustDomain)
	}
	if len(m.Identities) > maxIdentities {
		f.Add("identities", "are more than %d", maxIdentities)
	}
	for i, x := range m.Identities {
		at := fmt.Sprintf("identities[%d]", i)
		switch star := strings.IndexByte(x.Application, '*'); {
		case x.Application == "":
			f.Add(at+".application", `is missing; "*" is every application`)
		case star >= 0 && star != len(x.Application)-1:
			f.Add(at+".application", `"*" stands at the end only`)
		case len(x.Application) > maxMatch:
			f.Add(at+".application", "is longer than %d bytes", maxMatch)
		}
		if x.ServiceAccount != "" && !isDomain(x.ServiceAccount) {
			f.Add(at+".serviceAccount", "%q is no name of a service account", x.ServiceAccount)
		}
	}
	f = append(f, m.Lift.validate().Under("lift")...)
	return f
}

// isDomain tells whether s is a DNS name in lower case, which a service account's name is too.
func isDomain(s string) bool {
	if len(s) > maxDomain {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if !isLabel(label) {
			return false
		}
	}
	return true
}

func isLabel(s string) bool {
	if len(s) == 0 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

func (x Filter) validate() adapters.Faults {
	var f adapters.Faults
	if x.URL != "" {
		u, err := url.Parse(x.URL)
		switch {
		case err != nil:
			f.Add("url", "%v", err)
		case !slices.Contains([]string{"file", "oci", "http", "https"}, u.Scheme):
			f.Add("url", "must begin with file://, oci://, http:// or https://")
		case u.Scheme == "file" && !filepath.IsAbs(strings.TrimPrefix(x.URL, "file://")):
			f.Add("url", "must be file:// and an absolute path, as the sidecar sees it")
		}
	}
	if x.SHA256 != "" && (len(x.SHA256) != 64 || strings.Trim(x.SHA256, "0123456789abcdef") != "") {
		f.Add("sha256", "must be 64 hexadecimal digits in lower case")
	}
	if !slices.Contains([]string{"", "open", "close"}, x.FailStrategy) {
		f.Add("failStrategy", "must be open or close")
	}
	defaults, faults := x.PluginDefaults()
	for _, fault := range faults {
		path := "plugin"
		if fault.Path != "" {
			path += "." + fault.Path
		}
		f.Add(path, "%s", fault.Message)
	}
	if defaults.Generation != "" {
		f.Add("plugin.generation", "is made by mcp-server")
	}
	if len(defaults.Keys) > 0 || defaults.KeysOnly {
		f.Add("plugin", "must hold no keys: they are kept at spec.keys.path")
	}
	if defaults.Rules() > 0 {
		f.Add("plugin", "must hold no rules: they are kept at spec.rules.path")
	}
	return f
}

func (h HoldOff) validate() adapters.Faults {
	var f adapters.Faults
	if h.Quiet < 0 || h.Quiet > time.Minute {
		f.Add("quiet", "must be from 0 to 1m")
	}
	if h.Max < 0 || h.Max > time.Minute {
		f.Add("max", "must be from 0 to 1m")
	}
	if h.Max > 0 && h.Quiet > h.Max {
		f.Add("quiet", "is longer than max")
	}
	return f
}

func (t Telemetry) validate() adapters.Faults {
	var f adapters.Faults
	if t.Interval != 0 && (t.Interval < minInterval || t.Interval > maxInterval) {
		f.Add("interval", "must be from %s to %s", minInterval, maxInterval)
	}
	if len(t.Targets) > maxTargets {
		f.Add("targets", "are more than %d", maxTargets)
	}
	seen := map[string]int{}
	for i, target := range t.Targets {
		at := fmt.Sprintf("targets[%d]", i)
		u, err := url.Parse(target.URL)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			f.Add(at+".url", "%q is no URL with http:// or https://", target.URL)
			continue
		}
		name := target.Name
		if name == "" {
			name = u.Host
		}
		if first, ok := seen[name]; ok {
			f.Add(at+".name", "%q is also the name of targets[%d]", name, first)
		}
		seen[name] = i
	}
	return f
}

// Error is all that is wrong with a file.
type Error struct {
	File   string
	Faults adapters.Faults
}

// Error returns one line a fault: file:line: field: what is wrong.
func (e *Error) Error() string {
	lines := make([]string, len(e.Faults))
	for i, f := range e.Faults {
		lines[i] = e.File
		if f.Line > 0 {
			lines[i] += fmt.Sprintf(":%d", f.Line)
		}
		if f.Path != "" {
			lines[i] += ": " + f.Path
		}
		lines[i] += ": " + f.Message
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the faults, so that adapters.AsFaults finds them.
func (e *Error) Unwrap() error { return e.Faults }

// Parse reads a document, checks it and fills in the defaults. kinds are the kinds of registries that there are. The error is
// adapters.Faults.
func Parse(text []byte, kinds adapters.Kinds) (*Config, error) {
	doc, err := adapters.ParseSettings(text)
	if err != nil {
		return nil, err
	}
	if doc.Line() == 0 {
		return nil, adapters.Faults{{Message: "the document is empty"}}
	}
	c := &checked{kinds: kinds}
	if err := doc.Decode(c); err != nil {
		return nil, err
	}
	c.Config.setDefaults()
	return &c.Config, nil
}

// checked adds to Config's own checks those of the registries' settings, so that all faults come at once.
type checked struct {
	Config `yaml:",inline"`
	kinds  adapters.Kinds
}

// Validate implements adapters.Validator.
func (c *checked) Validate() adapters.Faults {
	f := c.Config.Validate()
	for i, r := range c.Spec.Registries {
		if r.Validate() != nil {
			continue // said already
		}
		at := fmt.Sprintf("spec.registries[%d]", i)
		_, err := c.kinds.New(r, adapters.Options{})
		f = append(f, adapters.AsFaults(err).Under(at)...)
	}
	return f
}

// Load reads a file; relative paths in it, but for those in registries' settings, become relative to its folder. The error is
// *Error where the file can be read but is wrong.
func Load(path string, kinds adapters.Kinds) (*Config, error) {
	c, _, err := load(path, kinds)
	return c, err
}

// LoadText is Load that also returns what the file held, for telling whether it has changed.
func LoadText(path string, kinds adapters.Kinds) (c *Config, text []byte, err error) {
	return load(path, kinds)
}

func load(path string, kinds adapters.Kinds) (*Config, []byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("config: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err != nil {
		return nil, nil, fmt.Errorf("config: read %s: %w", path, err)
	}
	if len(text) > maxBytes {
		return nil, text, &Error{path, adapters.Faults{{Message: fmt.Sprintf("is longer than %d bytes", maxBytes)}}}
	}
	c, err := Parse(text, kinds)
	if err != nil {
		return nil, text, &Error{path, adapters.AsFaults(err)}
	}
	c.resolve(filepath.Dir(path))
	return c, text, nil
}

// resolve takes relative paths as relative to the file's folder. What registries have for paths is theirs.
func (c *Config) resolve(dir string) {
	s := &c.Spec
	for _, p := range []*string{
		&s.Rules.Path, &s.Keys.Path, &s.State.Dir, &s.MCP.Token.File, &s.API.Token.File,
		&s.XDS.Token.File, &s.XDS.TLS.CertFile, &s.XDS.TLS.KeyFile, &s.XDS.TLS.ClientCAFile,
		&s.MCP.TLS.CertFile, &s.MCP.TLS.KeyFile, &s.MCP.TLS.ClientCAFile, &s.API.TLS.CertFile, &s.API.TLS.KeyFile, &s.API.TLS.ClientCAFile,
	} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
}
