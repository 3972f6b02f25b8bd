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
)

// Lift says which services' calls travel as HTTP/2 streams, so that all that Istio does for HTTP holds for them. None do by default.
type Lift struct {
	// Services are those that are lifted: all for which one of these holds.
	Services []LiftSelector `yaml:"services"`
	// Attachments are the names of attachments (Dubbo) and headers and baggage items (Bolt) that become headers of the request, so
	// that routes can match them.
	Attachments []string `yaml:"attachments"`
}

// LiftSelector selects services: all that it says must hold, and at least one thing it must say.
type LiftSelector struct {
	Framework   string `yaml:"framework"`   // dubbo or sofa
	Interface   string `yaml:"interface"`   // equal, or its beginning and "*"
	Application string `yaml:"application"` // of a provider
	Port        uint16 `yaml:"port"`        // that a provider listens on
	// Lower says whose sidecars turn HTTP/2 back into the providers' protocol: the caller's (default), and providers need none, or the
	// provider's, which then must all have one. The first selector that selects a service has the say.
	Lower string `yaml:"lower"`
	// Failover says that sidecars call the providers nearest to them (the same sub-zone, zone, region) and others only as far as those are
	// missing or ejected. It holds for a service where the first selector that selects it says so.
	Failover bool `yaml:"failover"`
}

// The values of LiftSelector.Lower.
const (
	LowerCaller   = "caller"
	LowerProvider = "provider"
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
		if !slices.Contains([]string{"", LowerCaller, LowerProvider}, s.Lower) {
			f.Add(at+".lower", "must be %s or %s", LowerCaller, LowerProvider)
		}
		if s == (LiftSelector{Lower: s.Lower, Failover: s.Failover}) {
			f.Add(at, `says nothing; {interface: "*"} is every service`)
		}
		if len(s.Framework) > maxMatch || len(s.Interface) > maxMatch || len(s.Application) > maxMatch {
			f.Add(at, "is longer than %d bytes", maxMatch)
		}
		if i := strings.IndexByte(s.Interface, '*'); i >= 0 && i != len(s.Interface)-1 {
			f.Add(at+".interface", `"*" stands at the end only`)
		}
	}
	// What the filter would refuse is refused here.
	for _, fault := range (&plugin.Plugin{Lift: &plugin.Lift{Attachments: l.Attachments}}).Validate() {
		f.Add(strings.TrimPrefix(fault.Path, "lift."), "%s", fault.Message)
	}
	return f
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
