package translate

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
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
	return s.Port == 0 || slices.Contains(p.listening, s.Port)
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

// dialled returns the ports that callers may dial.
func (p *part) dialled() []uint16 {
	set := map[uint16]bool{p.port: true}
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
	for _, port := range p.listening {
		if reservedPorts[port] {
			return fmt.Sprintf("it listens on port %d, which a sidecar keeps for itself", port)
		}
	}
	return ""
}

// claim is what a part says when it is decided which are lifted.
type claim struct {
	part *part
	tcp  bool // it is no HTTP already
}

// candidate tells that nothing of its own is in the way.
func (c *claim) candidate() bool { return c.tcp && c.part.selector >= 0 && c.part.cannot == "" }

// same tells whether two claims lead to the same decisions.
func (c *claim) same(o *claim) bool {
	return c.tcp == o.tcp && c.candidate() == o.candidate() && c.part.host == o.part.host && slices.Equal(c.part.listening, o.part.listening)
}

// lifting is what is decided of a part. The zero value says that it stays as it is.
type lifting struct {
	lifted bool
	mixed  bool   // it would be, but for the one who has, on that port, to stay as it is
	port   uint16 // with mixed
	by     string // a host
}

// lift decides which parts are lifted. One listener has a port, for all that is called there: it is either Envoy's HTTP connection
// manager, which tells the services apart by authority, or passes bytes. So where one service on a port stays as it is
// all do, and those on the other ports of their endpoints, and so on. It is a function of the claims, whatever their order.
func lift(claims []claim) []lifting {
	out := make([]lifting, len(claims))
	var candidates []int
	blocked := map[uint16]string{} // by whom
	block := func(p *part) {
		for _, port := range p.listening {
			if by, ok := blocked[port]; !ok || p.host < by {
				blocked[port] = p.host
			}
		}
	}
	for i := range claims {
		switch c := &claims[i]; {
		case !c.tcp: // it is HTTP already
		case c.candidate():
			candidates = append(candidates, i)
		default:
			block(c.part)
		}
	}
	for {
		var gone []int
		candidates = slices.DeleteFunc(candidates, func(i int) bool {
			for _, port := range claims[i].part.listening {
				if by, ok := blocked[port]; ok {
					out[i] = lifting{mixed: true, port: port, by: by}
					gone = append(gone, i)
					return true
				}
			}
			return false
		})
		if len(gone) == 0 {
			break
		}
		for _, i := range gone {
			block(claims[i].part)
		}
	}
	for _, i := range candidates {
		out[i].lifted = true
	}
	return out
}

// explain says why a part stays as it is that somebody wants lifted.
func (l lifting) explain(p *part, problems *problems) {
	switch {
	case p.selector < 0 || !p.wire.tcp():
	case p.cannot != "":
		problems.add(model.SeverityWarning, p.service.Key.String(), "NotLifted", "its calls are not lifted, and it stays as it is: %s", p.cannot)
	case l.mixed:
		problems.add(model.SeverityWarning, p.service.Key.String(), "MixedPort",
			"its calls are not lifted, and it stays as it is: on port %d there is also %s, which is not lifted, and a sidecar has one listener for a port", l.port, l.by)
	}
}

// liftEntry makes of a ServiceEntry what callers' sidecars know of a lifted service: its host, on each port that somebody may dial. The
// endpoints are not in it. It returns them, and where they stand.
func (o *Options) liftEntry(p *part, svc *Service, r *resource.Resource) (*Lifted, []stand) {
	body := r.Body.(*networking.ServiceEntry)
	l := &Lifted{Key: svc.Key, Protocol: svc.Protocol, Host: svc.Host, Hashed: !p.readable, Ports: p.listening, Selector: p.selector, AtProvider: o.Lift[p.selector].AtProvider, Failover: o.Lift[p.selector].Failover}
	locality := map[netip.AddrPort]model.Locality{}
	for _, e := range p.endpoints {
		if a, err := netip.ParseAddr(e.Address); err == nil {
			locality[netip.AddrPortFrom(a, e.Port)] = e.Locality
		}
	}
	var stands []stand
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
		stands = append(stands, stand{at: at, said: saidAt{locality: where, address: we.Address}})
	}
	slices.SortFunc(l.Endpoints, func(a, b LiftedEndpoint) int { return a.Address.Compare(b.Address) })
	body.Endpoints = nil
	body.Resolution = networking.ServiceEntry_STATIC
	if l.AtProvider {
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
	return l, stands
}

// maxLocality bounds each part of a locality, in bytes.
const maxLocality = 255

// stand is an endpoint of a lifted service: where it listens, and what is said of it there.
type stand struct {
	at   netip.AddrPort
	said saidAt
}

// saidAt is what a service says of a socket at which one of its endpoints listens.
type saidAt struct {
	locality model.Locality
	address  string // as the registry writes it
}

func (s saidAt) compare(o saidAt) int {
	return cmp.Or(compareLocality(s.locality, o.locality), cmp.Compare(s.address, o.address))
}

// providers are the endpoints of lifted services on one port. Several services have the same ones.
type providers struct {
	said      map[netip.Addr]map[saidAt]int // and by how many
	http      bool                          // their sidecars have a connection manager of their own for calls
	addresses []netip.Addr                  // of the endpoints, sorted
	endpoints []*provider                   // theirs; never changed, but replaced by another list
}

// provider is an endpoint in the ServiceEntry of a port: there may be ten thousand of them, of which one changes.
type provider struct {
	*networking.WorkloadEntry
	once sync.Once
	wire []byte // as a field of the ServiceEntry
	err  error
}

// fieldEndpoints is the number of the field ServiceEntry.endpoints.
var fieldEndpoints = new(networking.ServiceEntry).ProtoReflect().Descriptor().Fields().ByName("endpoints").Number()

// encode returns the endpoint as a field of its ServiceEntry.
func (p *provider) encode() ([]byte, error) {
	p.once.Do(func() {
		var wire []byte
		if wire, p.err = (proto.MarshalOptions{Deterministic: true}).Marshal(p.WorkloadEntry); p.err == nil {
			p.wire = protowire.AppendBytes(protowire.AppendTag(nil, fieldEndpoints, protowire.BytesType), wire)
		}
	})
	return p.wire, p.err
}

func (p *providers) say(a netip.Addr, s saidAt, n int) {
	if p.said[a] == nil {
		p.said[a] = map[saidAt]int{}
	}
	if p.said[a][s] += n; p.said[a][s] == 0 {
		delete(p.said[a], s)
	}
	if len(p.said[a]) == 0 {
		delete(p.said, a)
	}
}

// settle brings the endpoints at some addresses up to date: of what services say of one the least holds. It tells whether anything is
// different.
func (p *providers) settle(touched map[netip.Addr]struct{}, around *surroundings) bool {
	var endpoints []*provider // not nil once something is different
	change := func() {
		if endpoints == nil {
			endpoints = append(make([]*provider, 0, len(p.endpoints)+len(touched)), p.endpoints...)
		}
	}
	var come []*provider // the new ones, by address
	var at []netip.Addr
	gone := false
	for _, a := range slices.SortedFunc(maps.Keys(touched), netip.Addr.Compare) {
		i, found := slices.BinarySearchFunc(p.addresses, a, netip.Addr.Compare)
		if len(p.said[a]) == 0 {
			if found {
				change()
				endpoints[i] = nil
				gone = true
			}
			continue
		}
		least := slices.MinFunc(slices.Collect(maps.Keys(p.said[a])), saidAt.compare)
		e := &provider{WorkloadEntry: &networking.WorkloadEntry{Address: a.String(), Labels: around.labels(least.address), Locality: locality(least.locality), ServiceAccount: around.account(least.address)}}
		switch {
		case !found:
			change()
			come, at = append(come, e), append(at, a)
		case p.endpoints[i].Locality != e.Locality || p.endpoints[i].ServiceAccount != e.ServiceAccount || !maps.Equal(p.endpoints[i].Labels, e.Labels):
			change()
			endpoints[i] = e
		}
	}
	if endpoints == nil {
		return false
	}
	if gone {
		kept := 0
		for i, e := range endpoints {
			if e != nil {
				endpoints[kept], p.addresses[kept] = e, p.addresses[i]
				kept++
			}
		}
		endpoints, p.addresses = endpoints[:kept], p.addresses[:kept]
	}
	p.endpoints, p.addresses = mergeByAddress(endpoints, p.addresses, come, at)
	return true
}

// mergeByAddress merges two lists of endpoints and their addresses, both sorted, that have no address in common.
func mergeByAddress(a []*provider, aAt []netip.Addr, b []*provider, bAt []netip.Addr) ([]*provider, []netip.Addr) {
	if len(b) == 0 {
		return a, aAt
	}
	endpoints, addresses := make([]*provider, 0, len(a)+len(b)), make([]netip.Addr, 0, len(a)+len(b))
	for i, at := range bAt {
		n, _ := slices.BinarySearchFunc(aAt, at, netip.Addr.Compare)
		endpoints, addresses = append(append(endpoints, a[:n]...), b[i]), append(append(addresses, aAt[:n]...), at)
		a, aAt = a[n:], aAt[n:]
	}
	return append(endpoints, a...), append(addresses, aAt...)
}

// providersEntry is what the providers' own sidecars know of lifted services on a port: that RPC is spoken there, over TCP, whatever
// form it comes in, or over HTTP/2, if they are to have a connection manager, and by whom. Callers do not see it.
func (o *Options) providersEntry(port uint16, p *providers) resource.Resource {
	endpoints := p.endpoints
	name, protocol := "tcp-rpc", "TCP"
	if p.http {
		name, protocol = "http2-rpc", "HTTP2"
	}
	entry := func() *networking.ServiceEntry {
		return &networking.ServiceEntry{
			Hosts:      []string{o.Naming.ProvidersHost(port)},
			Ports:      []*networking.ServicePort{{Number: uint32(port), Name: name, Protocol: protocol}},
			Location:   networking.ServiceEntry_MESH_INTERNAL,
			Resolution: networking.ServiceEntry_STATIC,
			ExportTo:   []string{exportToNobody},
		}
	}
	body := entry()
	body.Endpoints = make([]*networking.WorkloadEntry, len(endpoints))
	for i, e := range endpoints {
		body.Endpoints[i] = e.WorkloadEntry
	}
	return resource.Resource{
		Type: resource.TypeServiceEntry, Namespace: o.Namespace, Name: o.entryName(o.Naming.ProvidersHost(port)),
		Labels: map[string]string{labelManagedBy: managedBy}, Body: body,
		Encode: func() ([]byte, error) {
			all := make([][]byte, 1, 1+len(endpoints))
			var err error
			if all[0], err = (proto.MarshalOptions{Deterministic: true}).Marshal(entry()); err != nil {
				return nil, err
			}
			for _, e := range endpoints {
				one, err := e.encode()
				if err != nil {
					return nil, err
				}
				all = append(all, one)
			}
			return slices.Concat(all...), nil
		},
	}
}

func compareLocality(a, b model.Locality) int {
	return cmp.Or(cmp.Compare(a.Region, b.Region), cmp.Compare(a.Zone, b.Zone), cmp.Compare(a.SubZone, b.SubZone))
}
