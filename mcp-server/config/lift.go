package config

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/adapters"
	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// DefaultXDSAddress is where sidecars find us, unless it is configured otherwise.
const DefaultXDSAddress = "127.0.0.1:15992"

// The bounds of what a configuration may ask for.
const (
	maxSelectors = 1000
	maxMatch     = 512 // bytes
	maxCallers   = 200 // the filter takes 256 in a list
)

// Lift says which services' calls travel as HTTP/2 streams, so that all that Istio does for HTTP holds for them. None do by default.
type Lift struct {
	// Services are those that are lifted: all for which one of these holds.
	Services []LiftSelector `yaml:"services"`
	// Attachments are the names of attachments (Dubbo) and headers and baggage items (Bolt) that become headers of the request, so
	// that routes can match them.
	Attachments []string `yaml:"attachments"`
	// ExceptionsFail says that what the business code throws is an HTTP failure: seen as one by Istio's metrics, retried and counted for
	// outlier detection.
	ExceptionsFail bool `yaml:"exceptionsFail"`
	// Metrics has sidecars count calls as istio_requests_total and istio_request_duration_milliseconds. It is for stock Envoy: Istio's own
	// does so by itself.
	Metrics bool `yaml:"metrics"`
	// Callers say what is done of that at callers: of a service's mode and that of its caller the more careful one holds.
	Callers []LiftCaller `yaml:"callers"`
}

// LiftCaller is what becomes of the calls that the workloads of an application make.
type LiftCaller struct {
	Application string `yaml:"application"` // label app of the workloads, or "*" for all that no other names
	Mode        string `yaml:"mode"`
}

// The values of LiftSelector.Mode and LiftCaller.Mode, the more careful ones last. Between them a change holds at once, and no
// connection ends by it.
const (
	ModeLift        = "lift"        // calls travel as HTTP/2 streams, and go where routes say. The default
	ModeDialled     = "dialled"     // they travel as HTTP/2 streams, and go where their caller has dialled
	ModePassthrough = "passthrough" // new connections pass, as those of services that nobody selects
)

var modes = []string{"", ModeLift, ModeDialled, ModePassthrough}

// LiftSelector selects services: all that it says must hold, and at least one thing it must say.
type LiftSelector struct {
	Framework   string `yaml:"framework"`   // dubbo or sofa
	Interface   string `yaml:"interface"`   // equal, or its beginning and "*"
	Application string `yaml:"application"` // of a provider
	Port        uint16 `yaml:"port"`        // that a provider listens on
	// Lower says whose sidecars turn HTTP/2 back into the providers' protocol: the caller's (default), and providers need none, or the
	// provider's, which then must all have one. provider-http is the latter with an HTTP connection manager at the provider, too, so that
	// AuthorizationPolicy, telemetry and tracing hold there; it is for all services on the port. The first selector that selects a
	// service has the say.
	Lower string `yaml:"lower"`
	// Mode is what becomes of the calls; lift by default. The first selector that selects a service has the say.
	Mode string `yaml:"mode"`
	// Failover says that sidecars call the providers nearest to them (the same sub-zone, zone, region) and others only as far as those are
	// missing or ejected. It holds for a service where the first selector that selects it says so.
	Failover bool `yaml:"failover"`
}

// The values of LiftSelector.Lower.
const (
	LowerCaller       = "caller"
	LowerProvider     = "provider"
	LowerProviderHTTP = "provider-http"
)

// XDS is where sidecars find the endpoints of lifted services.
type XDS struct {
	// Address is where we listen, host:port. Default 127.0.0.1:15992, if services are lifted; else nowhere.
	Address string `yaml:"address"`
	TLS     TLS    `yaml:"tls"`
	Token   Token  `yaml:"token"` // what sidecars must send; it is put into their configuration, so whoever reads that reads it
	// Advertise is how sidecars reach us, host:port. Default Address.
	Advertise string `yaml:"advertise"`
	// Sidecars are files in the sidecars. They are needed with TLS.
	Sidecars SidecarTLS `yaml:"sidecars"`
}

// SidecarTLS are files in the sidecars, in PEM.
type SidecarTLS struct {
	CAFile     string `yaml:"caFile"`     // verifies our certificate
	CertFile   string `yaml:"certFile"`   // what clients show, where tls.clientCAFile asks for it
	KeyFile    string `yaml:"keyFile"`    //
	ServerName string `yaml:"serverName"` // that our certificate is for; default: the host of advertise
}

// Listen returns where to listen for sidecars, "" for nowhere.
func (s *Spec) Listen() string {
	if s.XDS.Address == "" && len(s.Mesh.Lift.Services) > 0 {
		return DefaultXDSAddress
	}
	return s.XDS.Address
}

// Advertised returns how sidecars reach us. It is valid in a configuration that is.
func (s *Spec) Advertised() (host string, port uint16) {
	address := s.XDS.Advertise
	if address == "" {
		address = s.Listen()
	}
	host, p, _ := net.SplitHostPort(address)
	n, _ := strconv.ParseUint(p, 10, 16)
	return host, uint16(n)
}

func (l Lift) validate() adapters.Faults {
	var f adapters.Faults
	if len(l.Services) > maxSelectors {
		f.Add("services", "are more than %d", maxSelectors)
	}
	for i, s := range l.Services {
		at := fmt.Sprintf("services[%d]", i)
		if !slices.Contains([]string{"", LowerCaller, LowerProvider, LowerProviderHTTP}, s.Lower) {
			f.Add(at+".lower", "must be %s, %s or %s", LowerCaller, LowerProvider, LowerProviderHTTP)
		}
		if !slices.Contains(modes, s.Mode) {
			f.Add(at+".mode", "must be %s, %s or %s", ModeLift, ModeDialled, ModePassthrough)
		}
		if s == (LiftSelector{Lower: s.Lower, Mode: s.Mode, Failover: s.Failover}) {
			f.Add(at, `says nothing; {interface: "*"} is every service`)
		}
		if len(s.Framework) > maxMatch || len(s.Interface) > maxMatch || len(s.Application) > maxMatch {
			f.Add(at, "is longer than %d bytes", maxMatch)
		}
		if i := strings.IndexByte(s.Interface, '*'); i >= 0 && i != len(s.Interface)-1 {
			f.Add(at+".interface", `"*" stands at the end only`)
		}
	}
	if len(l.Callers) > maxCallers {
		f.Add("callers", "are more than %d", maxCallers)
	}
	seen := map[string]bool{}
	for i, c := range l.Callers {
		at := fmt.Sprintf("callers[%d]", i)
		switch {
		case c.Application == "":
			f.Add(at+".application", `is missing; "*" is every other`)
		case c.Application != "*" && !labelValue(c.Application):
			f.Add(at+".application", "is no label's value")
		case seen[c.Application]:
			f.Add(at+".application", "is that of an earlier one, too")
		}
		seen[c.Application] = true
		if !slices.Contains(modes, c.Mode) {
			f.Add(at+".mode", "must be %s, %s or %s", ModeLift, ModeDialled, ModePassthrough)
		}
	}
	// What the filter would refuse is refused here.
	for _, fault := range (&plugin.Plugin{Lift: &plugin.Lift{Attachments: l.Attachments}}).Validate() {
		f.Add(strings.TrimPrefix(fault.Path, "lift."), "%s", fault.Message)
	}
	return f
}

// labelValue tells whether s is a value that a label of Kubernetes may have.
func labelValue(s string) bool {
	inner := func(c byte) bool {
		return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z' || c == '-' || c == '_' || c == '.'
	}
	for i := range len(s) {
		if !inner(s[i]) || (i == 0 || i == len(s)-1) && strings.IndexByte("-_.", s[i]) >= 0 {
			return false
		}
	}
	return s != "" && len(s) <= 63
}

// validate checks the fields; lifted says that services are lifted.
func (x XDS) validate(lifted bool) adapters.Faults {
	var f adapters.Faults
	checkAddress(&f, "address", x.Address)
	checkAddress(&f, "advertise", x.Advertise)
	x.TLS.check(&f)
	x.Token.Secret().Check(&f, "token.file", "token.env")
	reach := x.Advertise
	if reach == "" {
		reach = x.Address
	}
	if host, port, err := net.SplitHostPort(reach); err == nil && lifted {
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			f.Add("advertise", "is needed: sidecars cannot reach %s", reach)
		} else if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			f.Add("advertise", "needs a port in numbers that sidecars can reach")
		}
	}
	c := x.Sidecars
	if (c.CertFile == "") != (c.KeyFile == "") {
		f.Add("sidecars", "certFile and keyFile go together")
	}
	if x.TLS.Enabled() && c.CAFile == "" && lifted {
		f.Add("sidecars.caFile", "is needed with tls: sidecars verify us by it")
	}
	if !x.TLS.Enabled() && c != (SidecarTLS{}) {
		f.Add("sidecars", "needs tls")
	}
	if x.TLS.ClientCAFile != "" && c.CertFile == "" && lifted {
		f.Add("sidecars.certFile", "is needed with tls.clientCAFile")
	}
	for _, file := range []struct{ field, path string }{{"caFile", c.CAFile}, {"certFile", c.CertFile}, {"keyFile", c.KeyFile}} {
		if file.path != "" && !filepath.IsAbs(file.path) {
			f.Add("sidecars."+file.field, "must be an absolute path, as the sidecar sees it")
		}
	}
	return f
}
