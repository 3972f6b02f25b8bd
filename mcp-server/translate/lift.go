package translate

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
)

// LiftSelector selects services whose calls are to travel as HTTP/2 streams. All that it says must hold; what it leaves out holds
// for every service.
type LiftSelector struct {
	Framework   string // equal
	Interface   string // equal, or the beginning and "*"
	Application string // of one of the providers
	Port        uint16 // that one of the providers listens on
	// AtProvider says that the providers' sidecars turn HTTP/2 back into the providers' protocol. Else those of the callers do, and
	// providers need none.
	AtProvider bool
	// HTTP says, beside AtProvider, that the providers' sidecars have a connection manager of their own for calls.
	HTTP bool
	// Failover says that callers prefer the providers nearest to them.
	Failover bool
}

// selects tells whether the part is meant.
func (s *LiftSelector) selects(p *part) bool {
	k := p.service.Key
	if s.Framework != "" && s.Framework != k.Framework {
		return false
	}
	if prefix, ok := strings.CutSuffix(s.Interface, "*"); ok {
		if !strings.HasPrefix(k.Interface, prefix) {
			return false
		}
	} else if s.Interface != "" && s.Interface != k.Interface {
		return false
	}
	if s.Application != "" && !slices.ContainsFunc(p.endpoints, func(e *model.Endpoint) bool { return e.Application == s.Application }) {
		return false
	}
	return s.Port == 0 || slices.Contains(p.listening(), s.Port)
}

// Lifted is a service whose calls travel as HTTP/2 streams. istiod has no endpoints of it: they go to sidecars directly.
type Lifted struct {
	Key      model.Key
	Protocol model.Protocol
	Host     string
	Hashed   bool     // Host does not follow from Key by rule
	Ports    []uint16 // on which callers may dial its endpoints; sorted, the service's own among them
	// Selector is the first one that selects the service, as index in Options.Lift, and AtProvider and Failover are its.
	Selector   int
	AtProvider bool
	Failover   bool
	Endpoints  []LiftedEndpoint
}

// LiftedEndpoint is a provider that takes traffic.
type LiftedEndpoint struct {
	Address  netip.AddrPort
	Weight   uint32 // 0 where nobody said one
	Locality model.Locality
	Labels   map[string]string // as Istio has them; shared by the endpoints of an address
	Identity string            // SPIFFE id; "" where its sidecar has no certificate, or it has no sidecar
}

// liftable are the protocols that the filter can lift.
var liftable = map[model.Protocol]bool{model.ProtocolDubbo: true, model.ProtocolBolt: true}

// readable are the serializations of Dubbo whose requests the filter can read.
var readable = map[string]bool{"": true, "hessian2": true, "fastjson2": true}

// The keys of an endpoint's metadata that say what a filter could not read (Dubbo's Constants of the same names).
const (
	metaSerialization = "serialization"
	metaPreferred     = "prefer.serialization" // by commas, the first that both sides have is used
	metaSSL           = "ssl-enabled"
)

// listening returns the ports that callers may dial: those of the endpoints and the service's own. Sorted.
func (p *part) listening() []uint16 {
	set := map[uint16]bool{p.port(): true}
	for _, e := range p.endpoints {
		if e.Port != 0 {
			set[e.Port] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// unliftable returns why the calls of a part cannot be lifted, "" if they can.
func (p *part) unliftable() string {
	if !liftable[p.protocol] {
		return fmt.Sprintf("the filter cannot lift the protocol %q", clip(string(p.protocol)))
	}
	for _, e := range p.endpoints {
		at := fmt.Sprintf("%s:%d", clip(e.Address), e.Port)
		if addressKind(e.Address) == addressName {
			return fmt.Sprintf("its endpoint %s is a host name, and endpoint discovery takes addresses only", at)
		}
		if e.Metadata[metaSSL] == "true" {
			return fmt.Sprintf("its endpoint %s takes encrypted connections, which the filter cannot read", at)
		}
		for _, name := range append(strings.Split(e.Metadata[metaPreferred], ","), e.Metadata[metaSerialization]) {
			if name = strings.TrimSpace(name); !readable[name] {
				return fmt.Sprintf("its endpoint %s uses the serialization %q, whose requests the filter cannot read", at, clip(name))
			}
		}
	}
	for _, port := range p.listening() {
		if reservedPorts[port] {
			return fmt.Sprintf("it listens on port %d, which a sidecar keeps for itself", port)
		}
	}
	return ""
}

// lift marks the parts that are lifted. One listener has a port, for all that is called there: it is either Envoy's HTTP connection
// manager, which tells the services apart by authority, or passes bytes. So where one service on a port stays as it is
// all do, and those on the other ports of their endpoints, and so on.
func (o *Options) lift(parts []part, problems *problems) {
	var candidates []*part
	blocked := map[uint16]string{} // by whom
	block := func(p *part) {
		for _, port := range p.listening() {
			if by, ok := blocked[port]; !ok || p.host < by {
				blocked[port] = p.host
			}
		}
	}
	for i := range parts {
		p := &parts[i]
		selector := slices.IndexFunc(o.Lift, func(s LiftSelector) bool { return s.selects(p) })
		if !p.wire.tcp() {
			continue // it is HTTP already
		}
		if selector >= 0 {
			why := p.unliftable()
			if why == "" {
				p.selector = selector
				candidates = append(candidates, p)
				continue
			}
			problems.add(model.SeverityWarning, p.service.Key.String(), "NotLifted", "its calls are not lifted, and it stays as it is: %s", why)
		}
		block(p)
	}
	for {
		var out []*part
		candidates = slices.DeleteFunc(candidates, func(p *part) bool {
			for _, port := range p.listening() {
				if by, ok := blocked[port]; ok {
					problems.add(model.SeverityWarning, p.service.Key.String(), "MixedPort",
						"its calls are not lifted, and it stays as it is: on port %d there is also %s, which is not lifted, and a sidecar has one listener for a port", port, by)
					out = append(out, p)
					return true
				}
			}
			return false
		})
		if len(out) == 0 {
			break
		}
		for _, p := range out {
			block(p)
		}
	}
	for _, p := range candidates {
		p.lifted = true
		p.wire = wire{istio: "HTTP2", prefix: "http2", port: p.wire.port}
	}
}

// liftedEntry renders what callers' sidecars know of a lifted service: its host, on each port that somebody may dial. The endpoints
// are not in it.
func (o *Options) liftedEntry(p *part, svc *Service, labels map[string]map[string]string, problems *problems) (resource.Resource, Lifted) {
	r := o.serviceEntry(p, svc, labels, problems)
	body := r.Body.(*networking.ServiceEntry)
	l := Lifted{Key: svc.Key, Protocol: svc.Protocol, Host: svc.Host, Hashed: !p.readable, Ports: p.listening(), Selector: p.selector, AtProvider: o.Lift[p.selector].AtProvider, Failover: o.Lift[p.selector].Failover}
	locality := map[netip.AddrPort]model.Locality{}
	for _, e := range p.endpoints {
		if a, err := netip.ParseAddr(e.Address); err == nil {
			locality[netip.AddrPortFrom(a, e.Port)] = e.Locality
		}
	}
	for _, we := range body.Endpoints {
		port := svc.Port
		if other, ok := we.Ports[svc.PortName]; ok {
			port = uint16(other)
		}
		at := netip.AddrPortFrom(netip.MustParseAddr(we.Address), port)
		where := locality[at]
		for _, s := range []*string{&where.Region, &where.Zone, &where.SubZone} {
			*s = bounded(*s, maxLocality)
		}
		l.Endpoints = append(l.Endpoints, LiftedEndpoint{Address: at, Weight: we.Weight, Locality: where, Labels: we.Labels, Identity: o.identity(we.ServiceAccount)})
	}
	slices.SortFunc(l.Endpoints, func(a, b LiftedEndpoint) int { return a.Address.Compare(b.Address) })
	body.Endpoints = nil
	body.Resolution = networking.ServiceEntry_STATIC
	if o.Lift[p.selector].AtProvider {
		// istiod, which does not know the endpoints, has callers demand one of these names of them.
		identities := map[string]bool{}
		for _, e := range l.Endpoints {
			identities[e.Identity] = true
		}
		delete(identities, "")
		body.SubjectAltNames = slices.Sorted(maps.Keys(identities))
	} else {
		// Callers' own Envoys stand in for the endpoints. Within the mesh istiod would have mutual TLS with them.
		body.Location = networking.ServiceEntry_MESH_EXTERNAL
	}
	for _, port := range l.Ports {
		if port != svc.Port {
			body.Ports = append(body.Ports, &networking.ServicePort{Number: uint32(port), Name: fmt.Sprintf("%s-%d", svc.PortName, port), Protocol: p.wire.istio})
		}
	}
	return r, l
}

// maxLocality bounds each part of a locality, in bytes.
const maxLocality = 255

// providersEntry is what the providers' own sidecars know of lifted services on a port: that RPC is spoken there, over TCP, whatever
// form it comes in, or over HTTP/2, if they are to have a connection manager, and by whom. Callers do not see it.
func (o *Options) providersEntry(port uint16, http bool, endpoints map[netip.Addr]LiftedEndpoint) resource.Resource {
	host := o.Naming.ProvidersHost(port)
	name, protocol := "tcp-rpc", "TCP"
	if http {
		name, protocol = "http2-rpc", "HTTP2"
	}
	body := &networking.ServiceEntry{
		Hosts:      []string{host},
		Ports:      []*networking.ServicePort{{Number: uint32(port), Name: name, Protocol: protocol}},
		Location:   networking.ServiceEntry_MESH_INTERNAL,
		Resolution: networking.ServiceEntry_STATIC,
		ExportTo:   []string{exportToNobody},
	}
	for _, a := range slices.SortedFunc(maps.Keys(endpoints), netip.Addr.Compare) {
		e := endpoints[a]
		body.Endpoints = append(body.Endpoints, &networking.WorkloadEntry{Address: a.String(), Labels: e.Labels, Locality: locality(e.Locality), ServiceAccount: o.byAddress[a.String()]})
	}
	return resource.Resource{
		Type: resource.TypeServiceEntry, Namespace: o.Namespace, Name: strings.TrimSuffix(host, "."+o.Naming.suffix()),
		Labels: map[string]string{labelManagedBy: managedBy}, Body: body,
	}
}

// providers renders the providersEntry of each port that lifted services have.
func (o *Options) providers(lifted []Lifted, http []uint16) []resource.Resource {
	by := map[uint16]map[netip.Addr]LiftedEndpoint{}
	for _, l := range lifted {
		for _, e := range l.Endpoints {
			port := e.Address.Port()
			if by[port] == nil {
				by[port] = map[netip.Addr]LiftedEndpoint{}
			}
			if have, ok := by[port][e.Address.Addr()]; !ok || compareLocality(e.Locality, have.Locality) < 0 {
				by[port][e.Address.Addr()] = e
			}
		}
	}
	var out []resource.Resource
	for _, port := range slices.Sorted(maps.Keys(by)) {
		out = append(out, o.providersEntry(port, slices.Contains(http, port), by[port]))
	}
	return out
}

func compareLocality(a, b model.Locality) int {
	return cmp.Or(cmp.Compare(a.Region, b.Region), cmp.Compare(a.Zone, b.Zone), cmp.Compare(a.SubZone, b.SubZone))
}
