package translate

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
)

// Options say how services appear in the mesh. The zero value of each field means its default.
type Options struct {
	// Namespace is the one that the ServiceEntries are in. A provider's sidecar gets an inbound listener for its services, and its
	// labels, only from ServiceEntries in its own namespace, so it is that of the workloads. Default "default".
	Namespace string
	// ExportTo are the namespaces that see the services, as in ServiceEntry; empty means the mesh's default, which is all.
	ExportTo []string
	// Naming gives the hosts.
	Naming Naming
	// VirtualAddresses is the range that services' addresses are allocated from. Default DefaultVirtualAddresses.
	VirtualAddresses netip.Prefix
	// EndpointsOnly hides services over TCP from callers: nobody's sidecar gets a listener and a cluster for each of them, and only
	// calls to the endpoints' own addresses are carried. Providers' sidecars are as they are without it.
	EndpointsOnly bool
	// Lift selects the services whose calls travel as HTTP/2 streams, as far as they can.
	Lift []LiftSelector
	// TrustDomain is what identities begin with. Default "cluster.local".
	TrustDomain string
	// Identities are the providers whose sidecars have certificates.
	Identities []Identity
}

func (o Options) withDefaults() Options {
	if o.Namespace == "" {
		o.Namespace = "default"
	}
	if !o.VirtualAddresses.IsValid() {
		o.VirtualAddresses = DefaultVirtualAddresses
	}
	o.TrustDomain = cmp.Or(o.TrustDomain, defaultTrustDomain)
	return o
}

// defaultTrustDomain is Istio's.
const defaultTrustDomain = "cluster.local"

// exportToNobody is Istio's way to hide a service from callers. Its endpoints' own sidecars find it all the same.
const exportToNobody = "~"

// The annotations and labels of the ServiceEntries.
const (
	AnnotationFramework  = "isthmus.io/framework"
	AnnotationInterface  = "isthmus.io/interface"
	AnnotationVersion    = "isthmus.io/version"
	AnnotationGroup      = "isthmus.io/group"
	AnnotationProtocol   = "isthmus.io/protocol"
	AnnotationRegistries = "isthmus.io/registries"  // names of the registries that hold the service, by commas
	annotationMetadata   = "metadata.isthmus.io/"   // before the keys of a service's metadata
	annotationLeftOut    = "isthmus.io/not-carried" // how many entries of the metadata were too many or too long
	labelManagedBy       = "app.kubernetes.io/managed-by"
	labelFramework       = "isthmus.io/framework"
	managedBy            = "isthmus"
)

// Translation is a snapshot as the mesh will see it. It is immutable. Of two translations that a Translator makes, what is the same in both
// of a service is at the same address in both: whoever has made something of a *Service or a *Lifted need not make it again.
type Translation struct {
	// Services are in the order of the snapshot. A service whose endpoints speak several protocols has one entry for each.
	Services []*Service
	// TCPPorts are the ports on which RPC over TCP is spoken: those of the endpoints and those that the services are given.
	// Sorted, each once.
	TCPPorts []uint16
	// HTTPPorts are those on which HTTP is spoken by itself, Triple and gRPC too: those of the endpoints and those that the services are given.
	// Sorted, each once; a port may be in TCPPorts too.
	HTTPPorts []uint16
	// Lifted are the services whose calls travel as HTTP/2 streams, in the order of Services, and LiftedPorts the ports on which
	// they do: sorted, each once, none of them in TCPPorts.
	Lifted      []*Lifted
	LiftedPorts []uint16
	// ProviderPorts are those of LiftedPorts on which providers' sidecars have a connection manager of their own, and MutualPorts those on
	// which all providers have an identity. Sorted.
	ProviderPorts []uint16
	MutualPorts   []uint16
	// Problems are what could not be rendered as the registries say it. Sorted, each once.
	Problems []model.Problem

	set func() resource.Set
}

// Service is one service, or the part of it that speaks one protocol, as the mesh will see it.
type Service struct {
	Key      model.Key
	Protocol model.Protocol
	Host     string
	Name     string     // of its ServiceEntry
	Address  netip.Addr // virtual; not valid where the range is full
	Port     uint16     // at the virtual address; endpoints may listen on others
	PortName string
	Carried  int  // endpoints that take traffic
	LeftOut  int  // endpoints that are disabled, have weight 0 or cannot be rendered
	Lifted   bool // its calls travel as HTTP/2 streams, see Translation.Lifted
	HTTP     bool // they travel as HTTP by themselves
	// Labels are those of the endpoints that take traffic, one for each.
	Labels []map[string]string
	// Dialled are the addresses of those of them that listen on Port, as the registries write them, each once and sorted, where HTTP is spoken there;
	// Elsewhere is how many listen on other ports.
	Dialled   []string
	Elsewhere int
}

// Istio renders a snapshot as ServiceEntries, a WorkloadEntry for each address, and a DestinationRule for each port whose endpoints all
// have an identity.
func Istio(s *model.Snapshot, o Options) (resource.Set, []model.Problem) {
	t := Translate(s, o)
	return t.Set(), t.Problems
}

// Set returns the ServiceEntries, WorkloadEntries and DestinationRules. They are encoded when it is first asked for, which takes about as long as all else:
// who only wants the rest need not wait. It may be called from any goroutine.
func (t *Translation) Set() resource.Set { return t.set() }

// Translate renders a snapshot as Istio does, and tells what it made of each service.
func Translate(s *model.Snapshot, o Options) *Translation { return NewTranslator(o).Translate(s) }

// facts are what follows from a service alone.
type facts struct {
	parts     []part
	addresses map[string]struct{} // of its endpoints
	problems  problems
}

// part is what of a service speaks one protocol.
type part struct {
	service   *model.Service
	protocol  model.Protocol
	wire      wire // by itself: it may have to be another, see Options.wire
	host      string
	readable  bool
	main      bool
	endpoints []*model.Endpoint // also those that take no traffic
	port      uint16            // the service's: the one that most endpoints listen on, the lesser of two, or the protocol's default
	listening []uint16          // what callers may dial: the ports of the endpoints and the service's own. Sorted
	selector  int               // the first that selects it for lifting; negative where none does
	cannot    string            // why it cannot be lifted, if one does; "" if it can
}

// facts finds out what follows from a service alone.
func (o *Options) facts(s *model.Service) *facts {
	f := &facts{addresses: make(map[string]struct{}, len(s.Endpoints))}
	f.parts = o.parts(s, &f.problems)
	for i := range s.Endpoints {
		f.addresses[s.Endpoints[i].Address] = struct{}{}
	}
	return f
}

// surroundings are what a service's rendering takes from all the others.
type surroundings struct {
	labels  func(address string) map[string]string    // of an address, see settle
	account func(address string) string               // likewise; "" for none, see Options.placeAccount
	shared  func(address string, port uint16) bool    // see place.shared
	virtual func(host string) (a netip.Addr, ok bool) // the address of a host, see allocator
	lifting []lifting                                 // what is decided of each of its parts, see Options.lift
}

// outcome is what becomes of a service.
type outcome struct {
	services  []*Service
	lifted    []*Lifted
	resources []resource.Resource
	ports     []uint16 // of its endpoints that speak RPC over TCP and are not lifted; each once for each part
	listening []uint16 // those, and its own
	web       []uint16 // those that speak HTTP by themselves, and the service's own
	provided  []uint16 // those on which its providers' sidecars have a connection manager for its calls
	stands    []stand  // the endpoints that are lifted
	callees   []callee // all that somebody may dial, but those of HTTP
	problems  problems
}

// render makes of a service what it is in the mesh. It is a function of its arguments.
func (o *Options) render(f *facts, around *surroundings) *outcome {
	out := &outcome{problems: slices.Clone(f.problems)}
	for i := range f.parts {
		p := f.parts[i]
		lifting := around.lifting[i]
		p.wire = o.wire(&p, around.shared, &out.problems)
		if p.wire.unknown {
			out.problems.add(model.SeverityWarning, p.service.Key.String(), "UnknownProtocol", "Isthmus does not know the protocol %q; it is carried as TCP", clip(string(p.protocol)))
		}
		lifting.explain(&p, &out.problems)
		if lifting.lifted {
			p.wire = wire{istio: "HTTP2", prefix: "http2", port: p.wire.port}
		}
		svc := &Service{Key: p.service.Key, Protocol: p.protocol, Host: p.host, Name: o.entryName(p.host), Port: p.port, PortName: p.wire.portName(p.protocol),
			Lifted: lifting.lifted, HTTP: !lifting.lifted && !p.wire.tcp()}
		if a, ok := around.virtual(p.host); ok {
			svc.Address = a
		} else {
			out.problems.add(model.SeverityError, p.host, "AddressesExhausted", "no virtual address is free in %s for %s; it can only be reached at its endpoints' addresses until the range is made larger", o.VirtualAddresses, p.service.Key)
		}
		r := o.serviceEntry(&p, svc, around, &out.problems)
		if lifting.lifted {
			l, stands := o.liftEntry(&p, svc, &r)
			out.lifted = append(out.lifted, l)
			out.stands = append(out.stands, stands...)
			if o.Lift[p.selector].HTTP {
				out.provided = append(out.provided, l.Ports...)
			}
		}
		switch {
		case p.wire.tcp():
			out.listening = append(out.listening, p.listening...)
			set := map[uint16]bool{}
			for _, e := range p.endpoints {
				if e.Port != 0 && !set[e.Port] {
					set[e.Port] = true
					out.ports = append(out.ports, e.Port)
				}
			}
		case !lifting.lifted:
			out.web = append(out.web, p.listening...)
		}
		if lifting.lifted || p.wire.tcp() {
			out.callees = o.callees(out.callees, &p, around)
		}
		// Without an address a TCP service would take every connection to its port, whoever it is for.
		if svc.Address.IsValid() || !p.wire.tcp() {
			out.resources = append(out.resources, r)
		}
		out.services = append(out.services, svc)
	}
	return out
}

// wire is how Istio is told of a part. A sidecar has one inbound listener for a port: where one of the part's endpoints speaks RPC over TCP
// at the same ip:port, as Dubbo 3 can, and istiod took it for HTTP, calls over TCP would be refused.
func (o *Options) wire(p *part, shared func(string, uint16) bool, problems *problems) wire {
	if p.wire.tcp() {
		return p.wire
	}
	for _, e := range p.endpoints {
		if shared(e.Address, e.Port) {
			problems.add(model.SeverityWarning, p.service.Key.String(), "SharedPort", "on port %d of %s RPC over TCP is spoken beside %s; %s is carried as TCP, without what Istio does for HTTP",
				e.Port, clip(e.Address), clip(string(p.protocol)), p.host)
			return wire{istio: "TCP", prefix: "tcp", port: p.wire.port}
		}
	}
	return p.wire
}

// parts splits a service by protocol, since every endpoint of a ServiceEntry serves all of its ports.
func (o *Options) parts(s *model.Service, problems *problems) []part {
	by := map[model.Protocol][]*model.Endpoint{}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		by[e.Protocol] = append(by[e.Protocol], e)
	}
	main := mainProtocol(s.Key.Framework, by)
	if len(by) == 0 {
		by[main] = nil
	}
	var parts []part
	for _, protocol := range slices.Sorted(maps.Keys(by)) {
		p := part{service: s, protocol: protocol, wire: wireOf(protocol), main: protocol == main, endpoints: by[protocol]}
		if p.main {
			p.host, p.readable = o.Naming.Host(s.Key)
		} else {
			p.host, p.readable = o.Naming.ProtocolHost(s.Key, protocol)
		}
		if !p.readable {
			problems.add(model.SeverityWarning, clip(s.Key.String()), "NameTooLong", "its name is too long for a host name; %s stands for it, and the annotations of its ServiceEntry say for what", p.host)
		}
		p.port = p.mostFrequent()
		p.listening = p.dialled()
		p.selector = slices.IndexFunc(o.Lift, func(s LiftSelector) bool { return s.selects(&p) })
		if p.selector >= 0 {
			p.cannot = p.unliftable()
		}
		parts = append(parts, p)
	}
	return parts
}

// mainProtocol is the one whose endpoints get the service's own host: the framework's, or else the most frequent, or else the
// lesser by name.
func mainProtocol(framework string, by map[model.Protocol][]*model.Endpoint) model.Protocol {
	native, ok := nativeProtocols[framework]
	if !ok {
		native = "tcp"
	}
	if len(by) == 0 || by[native] != nil {
		return native
	}
	return slices.MinFunc(slices.Sorted(maps.Keys(by)), func(a, b model.Protocol) int { return cmp.Compare(len(by[b]), len(by[a])) })
}

// mostFrequent returns the service's port.
func (p *part) mostFrequent() uint16 {
	count := map[uint16]int{}
	for _, e := range p.endpoints {
		if e.Port != 0 {
			count[e.Port]++
		}
	}
	if len(count) == 0 {
		return cmp.Or(p.wire.port, 20880)
	}
	return slices.MinFunc(slices.Sorted(maps.Keys(count)), func(a, b uint16) int { return cmp.Compare(count[b], count[a]) })
}

// takesNothing tells that an endpoint is registered, but not to be called.
func takesNothing(e *model.Endpoint) bool { return e.Disabled || e.Weight != nil && *e.Weight == 0 }

// entryName is the name of a host's ServiceEntry.
func (o *Options) entryName(host string) string {
	return strings.TrimSuffix(host, "."+o.Naming.suffix())
}

func (o *Options) serviceEntry(p *part, svc *Service, around *surroundings, problems *problems) resource.Resource {
	body := &networking.ServiceEntry{
		Hosts:      []string{p.host},
		Ports:      []*networking.ServicePort{{Number: uint32(svc.Port), Name: svc.PortName, Protocol: p.wire.istio}},
		Location:   networking.ServiceEntry_MESH_INTERNAL,
		Resolution: networking.ServiceEntry_STATIC,
		ExportTo:   o.ExportTo,
	}
	if svc.Address.IsValid() {
		body.Addresses = []string{svc.Address.String()}
	}
	if o.EndpointsOnly && p.wire.tcp() {
		body.ExportTo = []string{exportToNobody}
	}
	names, addresses := 0, 0
	var weights []uint32
	for _, e := range p.endpoints {
		kind := addressKind(e.Address)
		if kind == addressInvalid || e.Port == 0 {
			svc.LeftOut++
			problems.add(model.SeverityError, p.service.Key.String(), "InvalidAddress", "its endpoint %s:%d has no address that can be called; it is left out of the mesh", clip(e.Address), e.Port)
			continue
		}
		if takesNothing(e) {
			svc.LeftOut++ // istiod takes weight 0 for "not said", which would be 1
			continue
		}
		svc.Carried++
		we := &networking.WorkloadEntry{Address: e.Address, Labels: around.labels(e.Address), Locality: locality(e.Locality), ServiceAccount: around.account(e.Address)}
		svc.Labels = append(svc.Labels, we.Labels)
		if e.Port != svc.Port {
			we.Ports = map[string]uint32{svc.PortName: uint32(e.Port)}
			svc.Elsewhere++
		} else if svc.HTTP {
			svc.Dialled = append(svc.Dialled, e.Address)
		}
		body.Endpoints = append(body.Endpoints, we)
		weights = append(weights, weightOf(e))
		if kind == addressName {
			names++
		} else {
			addresses++
		}
	}
	slices.Sort(svc.Dialled)
	svc.Dialled = slices.Compact(svc.Dialled)
	if scaled := balance(weights); scaled {
		problems.add(model.SeverityWarning, p.service.Key.String(), "WeightsScaled", "the weights of its endpoints are too large together; they are scaled down in proportion")
	}
	for i := range weights {
		body.Endpoints[i].Weight = weights[i]
	}
	if names > 0 {
		body.Resolution = networking.ServiceEntry_DNS
		if addresses > 0 {
			problems.add(model.SeverityWarning, p.service.Key.String(), "MixedAddresses",
				"%d of its endpoints are host names and %d are addresses; all are looked up by DNS, so a change reaches sidecars less quickly", names, addresses)
		}
	}
	framework, _ := labelValue(p.service.Key.Framework)
	return resource.Resource{
		Type:        resource.TypeServiceEntry,
		Namespace:   o.Namespace,
		Name:        svc.Name,
		Labels:      map[string]string{labelManagedBy: managedBy, labelFramework: framework},
		Annotations: annotations(p),
		Body:        body,
	}
}

// The bounds of what a ServiceEntry carries of a service's metadata, in bytes.
const (
	maxAnnotations     = 32
	maxAnnotationValue = 512
	maxKeyPart         = 4096
)

func annotations(p *part) map[string]string {
	k := p.service.Key
	out := map[string]string{
		AnnotationFramework: bounded(k.Framework, maxKeyPart),
		AnnotationInterface: bounded(k.Interface, maxKeyPart),
		AnnotationProtocol:  bounded(string(p.protocol), maxKeyPart),
	}
	if k.Version != "" {
		out[AnnotationVersion] = bounded(k.Version, maxKeyPart)
	}
	if k.Group != "" {
		out[AnnotationGroup] = bounded(k.Group, maxKeyPart)
	}
	registries := map[string]bool{}
	for _, e := range p.endpoints {
		for _, origin := range e.Origins {
			registries[origin.Registry] = true
		}
	}
	if len(registries) > 0 {
		out[AnnotationRegistries] = bounded(strings.Join(slices.Sorted(maps.Keys(registries)), ","), maxKeyPart)
	}
	carried, left := 0, 0
	for _, key := range slices.Sorted(maps.Keys(p.service.Metadata)) {
		name, _ := labelKey(strings.ReplaceAll(key, "/", "."))
		value := p.service.Metadata[key]
		if _, ok := out[annotationMetadata+name]; ok || carried == maxAnnotations || len(value) > maxAnnotationValue {
			left++
			continue
		}
		out[annotationMetadata+name] = strings.ToValidUTF8(value, "?")
		carried++
	}
	if left > 0 {
		out[annotationLeftOut] = fmt.Sprint(left)
	}
	return out
}

func bounded(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
	}
	return strings.ToValidUTF8(s, "?")
}

// catchAll is for the calls to a port whose callers have chosen the endpoint themselves: they go where they are sent.
func (o *Options) catchAll(port uint16) resource.Resource {
	host := o.Naming.PortHost(port)
	return resource.Resource{
		Type:      resource.TypeServiceEntry,
		Namespace: o.Namespace,
		Name:      strings.TrimSuffix(host, "."+o.Naming.suffix()),
		Labels:    map[string]string{labelManagedBy: managedBy},
		Body: &networking.ServiceEntry{
			Hosts:      []string{host},
			Ports:      []*networking.ServicePort{{Number: uint32(port), Name: "tcp-rpc", Protocol: "TCP"}},
			Location:   networking.ServiceEntry_MESH_INTERNAL,
			Resolution: networking.ServiceEntry_NONE,
			ExportTo:   o.ExportTo,
		},
	}
}

type addressType uint8

const (
	addressInvalid addressType = iota
	addressIP
	addressName
)

func addressKind(s string) addressType {
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			return addressInvalid
		}
		return addressIP
	}
	if len(s) > maxHost || s == "" {
		return addressInvalid
	}
	last := ""
	for label := range strings.SplitSeq(strings.ToLower(strings.TrimSuffix(s, ".")), ".") {
		if !validLabel(label) {
			return addressInvalid
		}
		last = label
	}
	if strings.Trim(last, "0123456789") == "" {
		return addressInvalid // 10.0.0, 10.0.0.256: no host name, and no address
	}
	return addressName
}

// defaultWeight is what Dubbo and SOFARPC take for an endpoint that names no weight (Constants.DEFAULT_WEIGHT,
// provider.weight): it only matters beside others that name one.
const defaultWeight = 100

// weightOf returns 0 where the registry has no weight.
func weightOf(e *model.Endpoint) uint32 {
	if e.Weight == nil {
		return 0
	}
	return *e.Weight
}

// maxTotalWeight bounds the sum of a service's weights: Envoy refuses a locality whose sum exceeds 2^32-1.
const maxTotalWeight = math.MaxUint32

// balance completes weights where only some are said, and scales them where their sum is too large; scaled tells that.
func balance(weights []uint32) (scaled bool) {
	if !slices.ContainsFunc(weights, func(w uint32) bool { return w != 0 }) {
		return false
	}
	var sum uint64
	for i, w := range weights {
		weights[i] = cmp.Or(w, defaultWeight)
		sum += uint64(weights[i])
	}
	if sum <= maxTotalWeight {
		return false
	}
	// Rounded down, but for those that would become 0: there is room for one each.
	room := uint64(maxTotalWeight - len(weights))
	for i, w := range weights {
		hi, lo := bits.Mul64(uint64(w), room)
		share, _ := bits.Div64(hi, lo, sum)
		weights[i] = uint32(max(share, 1))
	}
	return true
}

// locality writes region/zone/subzone, as much of it as is known.
func locality(l model.Locality) string {
	part := func(s string) string { return bounded(strings.ReplaceAll(s, "/", "-"), 255) }
	return strings.TrimRight(part(l.Region)+"/"+part(l.Zone)+"/"+part(l.SubZone), "/")
}

// problems collects Problems.
type problems []model.Problem

func (p *problems) add(severity model.Severity, place, code, format string, args ...any) {
	*p = append(*p, model.Problem{Severity: severity, Place: strings.ToValidUTF8(place, "?"), Code: code, Message: fmt.Sprintf(format, args...)})
}

func (p problems) sorted() []model.Problem {
	slices.SortFunc(p, func(a, b model.Problem) int {
		return cmp.Or(cmp.Compare(a.Place, b.Place), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Message, b.Message))
	})
	return slices.Compact(p)
}
