package xds

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/isthmus-mesh/isthmus/adapters/model"
)

// LowerListener is the internal listener in a caller's Envoy that turns HTTP/2 back into the provider's own protocol.
const LowerListener = "isthmus-lower"

// MutualListener does so for providers whose sidecars take mutual TLS.
const MutualListener = LowerListener + "-mutual"

// OriginalDestination is the key of an endpoint's metadata that hands the provider's address to that listener (Envoy's listener
// filter original_dst reads its field "local").
const OriginalDestination = "envoy.filters.listener.original_dst"

// The metadata that Istio puts on endpoints: who it is, for metrics, and whether it speaks Istio's mutual TLS.
const (
	istioMetadata     = "istio"
	transportMetadata = "envoy.transport_socket_match"
)

// ownMetadata says who an endpoint is to governance's metrics, in parts.
const ownMetadata = "isthmus"

// labelVersion is the label by which a subset is found whose DestinationRule is not known here.
const labelVersion = "version"

// Service is one lifted service.
type Service struct {
	Host      string
	Namespace string     // of its workloads, for metrics
	Endpoints []Endpoint // those that take traffic
	Metrics   bool       // endpoints also say who they are in the form that sidecars' own metrics need
	// Failover says that each sidecar is told its nearest endpoints first, and to go to others only as far as those are missing or not
	// healthy. Else all are equal to it, wherever they are.
	Failover bool
}

// Endpoint is one provider.
type Endpoint struct {
	Address  netip.AddrPort
	Weight   uint32 // relative; 0 where nobody said one
	Locality model.Locality
	Labels   map[string]string // as Istio has them
	// Lowers says that the provider's own sidecar takes HTTP/2 and turns it back. Else the caller's Envoy does.
	Lowers bool
	// Identity is the SPIFFE id of the provider's sidecar, which takes mutual TLS; "" where it has none.
	Identity string
}

// Subset is a subset of a service's endpoints, as a DestinationRule names it: those that carry all of the labels.
type Subset struct {
	Name   string
	Labels map[string]string
	// OrAll says that all endpoints are meant where none carries the labels.
	OrAll bool
}

// Assignments are the endpoints of all lifted services at one moment. They are immutable, and safe for any number of goroutines.
//
// An Assignments answers for the names that istiod gives clusters, outbound|PORT|SUBSET|HOST: whatever the port, a service has one
// set of endpoints. A subset that no DestinationRule here knows is taken for one of somebody's who wrote it into Kubernetes
// by hand: it holds the endpoints whose label "version" is its name.
type Assignments struct {
	services map[string]*assigned // by host
}

// assigned is a service with its subsets, and what has been made of it. It is shared by the Assignments of successive moments for as long
// as nothing about it changes: encoding is most of the work, and most services are the same from one moment to the next.
type assigned struct {
	Service
	subsets []Subset

	mu   sync.Mutex
	made map[place]*Resource
}

// place is a cluster as a sidecar somewhere has it.
type place struct {
	name string
	from model.Locality // none where it makes no difference
}

// NewAssignments makes Assignments of services, in any order, and of subsets by host. It takes over what it is given. Of two
// services with one host the first holds.
func NewAssignments(services []Service, subsets map[string][]Subset) *Assignments {
	a := &Assignments{services: make(map[string]*assigned, len(services))}
	for _, s := range services {
		if _, ok := a.services[s.Host]; !ok {
			a.services[s.Host] = &assigned{Service: s, subsets: subsets[s.Host]}
		}
	}
	return a
}

// Resource is a ClusterLoadAssignment as it is sent.
type Resource struct {
	Version string     // a hash of the content, equal for equal content also after a restart
	Any     *anypb.Any // must not be changed
}

// ClusterName is a cluster's name in its parts.
type ClusterName struct {
	Host   string
	Subset string // "" for the whole service
	Port   uint16
}

// String returns the name as istiod writes it.
func (n ClusterName) String() string {
	return fmt.Sprintf("outbound|%d|%s|%s", n.Port, n.Subset, n.Host)
}

// maxName bounds a cluster's name, in bytes: a host and a subset of 253 each, and the rest.
const maxName = 600

// ParseClusterName reads the name of an outbound cluster; ok is false where it is none.
func ParseClusterName(s string) (n ClusterName, ok bool) {
	if len(s) > maxName {
		return n, false
	}
	rest, ok := strings.CutPrefix(s, "outbound|")
	if !ok {
		return n, false
	}
	parts := strings.Split(rest, "|")
	if len(parts) != 3 || parts[2] == "" {
		return n, false
	}
	port, err := strconv.ParseUint(parts[0], 10, 16)
	if err != nil {
		return n, false
	}
	return ClusterName{Host: parts[2], Subset: parts[1], Port: uint16(port)}, true
}

// Lookup returns the endpoints of the cluster of that name for sidecars at from, nil where no lifted service has one. A service that has
// lost all of its endpoints still has a cluster, without any.
func (a *Assignments) Lookup(name string, from model.Locality) *Resource {
	n, ok := ParseClusterName(name)
	if !ok {
		return nil
	}
	s := a.services[n.Host]
	if s == nil {
		return nil
	}
	if !s.Failover {
		from = model.Locality{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.made[place{name, from}]
	if r == nil {
		if s.made == nil {
			s.made = map[place]*Resource{}
		}
		c := s.assignment(n, name)
		if s.Failover {
			prioritize(c, from)
		}
		if r = encode(c); len(s.made) < maxMade {
			s.made[place{name, from}] = r
		}
	}
	return r
}

// maxMade bounds the clusters of one service that are kept: its ports and subsets, and where sidecars are, but all of that they say themselves.
const maxMade = 1000

// inherit takes over from before the services that are the same, with all that was made of them, and returns the hosts of all others: those
// that have changed, have come or are gone.
func (a *Assignments) inherit(before *Assignments) (changed []string) {
	for host, s := range a.services {
		if b := before.services[host]; b != nil && s.equal(b) {
			a.services[host] = b
		} else {
			changed = append(changed, host)
		}
	}
	for host := range before.services {
		if a.services[host] == nil {
			changed = append(changed, host)
		}
	}
	return changed
}

func (s *assigned) equal(o *assigned) bool {
	return s == o || s.Service.equal(&o.Service) && slices.EqualFunc(s.subsets, o.subsets, Subset.equal)
}

func (s *Service) equal(o *Service) bool {
	if s.Namespace != o.Namespace || s.Metrics != o.Metrics || s.Failover != o.Failover || len(s.Endpoints) != len(o.Endpoints) {
		return false
	}
	if len(s.Endpoints) == 0 || &s.Endpoints[0] == &o.Endpoints[0] {
		return true // most of them are the very same
	}
	return slices.EqualFunc(s.Endpoints, o.Endpoints, func(a, b Endpoint) bool {
		return a.Address == b.Address && a.Weight == b.Weight && a.Locality == b.Locality && a.Lowers == b.Lowers && a.Identity == b.Identity && maps.Equal(a.Labels, b.Labels)
	})
}

func (s Subset) equal(o Subset) bool {
	return s.Name == o.Name && s.OrAll == o.OrAll && maps.Equal(s.Labels, o.Labels)
}

// assignment is the one of a cluster.
func (s *assigned) assignment(n ClusterName, name string) *endpoint.ClusterLoadAssignment {
	if n.Subset == "" {
		return Assignment(&s.Service, name, nil)
	}
	labels, orAll := map[string]string{labelVersion: n.Subset}, false
	for _, sub := range s.subsets {
		if sub.Name == n.Subset {
			labels, orAll = sub.Labels, sub.OrAll
			break
		}
	}
	out := Assignment(&s.Service, name, labels)
	if orAll && len(out.Endpoints) == 0 {
		out = Assignment(&s.Service, name, nil)
	}
	return out
}

// Services returns how many services there are.
func (a *Assignments) Services() int { return len(a.services) }

// Endpoints returns how many endpoints they have together.
func (a *Assignments) Endpoints() int {
	n := 0
	for _, s := range a.services {
		n += len(s.Endpoints)
	}
	return n
}

func encode(c *endpoint.ClusterLoadAssignment) *Resource {
	wire, err := proto.MarshalOptions{Deterministic: true}.Marshal(c)
	if err != nil { // everything in it is valid UTF-8: translate sees to that
		panic("xds: " + err.Error())
	}
	sum := sha256.Sum256(wire)
	return &Resource{
		Version: base64.RawURLEncoding.EncodeToString(sum[:15]),
		Any:     &anypb.Any{TypeUrl: TypeURL, Value: wire},
	}
}

// Assignment makes the ClusterLoadAssignment of a cluster of a service: of the endpoints that carry all of the labels, grouped by
// locality, sorted.
func Assignment(s *Service, cluster string, labels map[string]string) *endpoint.ClusterLoadAssignment {
	by := map[model.Locality][]*Endpoint{}
	for i := range s.Endpoints {
		if e := &s.Endpoints[i]; carries(e, labels) {
			by[e.Locality] = append(by[e.Locality], e)
		}
	}
	out := &endpoint.ClusterLoadAssignment{ClusterName: cluster}
	for _, l := range slices.SortedFunc(maps.Keys(by), func(a, b model.Locality) int {
		return cmp.Or(cmp.Compare(a.Region, b.Region), cmp.Compare(a.Zone, b.Zone), cmp.Compare(a.SubZone, b.SubZone))
	}) {
		group := &endpoint.LocalityLbEndpoints{}
		if l != (model.Locality{}) {
			group.Locality = &core.Locality{Region: l.Region, Zone: l.Zone, SubZone: l.SubZone}
		}
		endpoints := by[l]
		slices.SortFunc(endpoints, func(a, b *Endpoint) int { return a.Address.Compare(b.Address) })
		var sum uint32
		for _, e := range endpoints {
			weight := max(e.Weight, 1)
			sum += weight // translate bounds the sum over the whole service
			group.LbEndpoints = append(group.LbEndpoints, e.encode(s, weight))
		}
		// A locality counts as much as its endpoints: with locality-weighted balancing those without a weight get nothing.
		group.LoadBalancingWeight = wrapperspb.UInt32(sum)
		out.Endpoints = append(out.Endpoints, group)
	}
	return out
}

// prioritize ranks the localities of an assignment by how near they are to sidecars at from, as istiod does where outlier detection is
// on: the same sub-zone, zone, region, and all others (istio.io/istio pilot/pkg/networking/core/loadbalancer, applyLocalityFailover). Envoy
// wants priorities without gaps. A sidecar that does not say where it is has nothing near.
func prioritize(c *endpoint.ClusterLoadAssignment, from model.Locality) {
	distance := func(g *endpoint.LocalityLbEndpoints) uint32 {
		l := g.GetLocality()
		switch {
		case from == (model.Locality{}) || l.GetRegion() != from.Region:
			return 3
		case l.GetZone() != from.Zone:
			return 2
		case l.GetSubZone() != from.SubZone:
			return 1
		}
		return 0
	}
	slices.SortStableFunc(c.Endpoints, func(a, b *endpoint.LocalityLbEndpoints) int { return cmp.Compare(distance(a), distance(b)) })
	for i := 1; i < len(c.Endpoints); i++ {
		before := c.Endpoints[i-1]
		c.Endpoints[i].Priority = before.Priority
		if distance(c.Endpoints[i]) != distance(before) {
			c.Endpoints[i].Priority++
		}
	}
}

func carries(e *Endpoint, labels map[string]string) bool {
	for k, v := range labels {
		if have, ok := e.Labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

func (e *Endpoint) encode(s *Service, weight uint32) *endpoint.LbEndpoint {
	namespace := s.Namespace
	address := e.Address.String()
	app := e.Labels["app"]
	service, revision := e.label("service.istio.io/canonical-name", "app.kubernetes.io/name", "app"), e.label("service.istio.io/canonical-revision", "app.kubernetes.io/version", labelVersion)
	// istiod's util.BuildLbEndpointMetadata: workload;namespace;canonical name;canonical revision;cluster.
	metadata := map[string]*structpb.Struct{
		istioMetadata: fields("workload", strings.Join([]string{app, namespace, service, revision, ""}, ";")),
	}
	if s.Metrics {
		metadata[ownMetadata] = fields("workload", cmp.Or(app, unknown), "namespace", namespace, "service", cmp.Or(service, unknown), "version", cmp.Or(e.Labels[labelVersion], unknown), "revision", cmp.Or(revision, "latest"),
			"principal", cmp.Or(e.Identity, unknown), "security", e.security())
	}
	listener := LowerListener
	if e.Identity != "" {
		listener = MutualListener
	}
	to := &core.Address{Address: &core.Address_EnvoyInternalAddress{EnvoyInternalAddress: &core.EnvoyInternalAddress{
		AddressNameSpecifier: &core.EnvoyInternalAddress_ServerListenerName{ServerListenerName: listener},
		EndpointId:           address, // tells the endpoints apart: the listener is one
	}}}
	if e.Lowers {
		to = &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
			Address: e.Address.Addr().String(), PortSpecifier: &core.SocketAddress_PortValue{PortValue: uint32(e.Address.Port())},
		}}}
		if mode := e.tlsMode(); mode != "" {
			metadata[transportMetadata] = fields("tlsMode", mode)
		}
	} else {
		metadata[OriginalDestination] = fields("local", address)
	}
	return &endpoint.LbEndpoint{
		HostIdentifier:      &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: to}},
		Metadata:            &core.Metadata{FilterMetadata: metadata},
		LoadBalancingWeight: wrapperspb.UInt32(weight),
	}
}

// label returns the first of the labels that the endpoint has, by which Istio names a workload's canonical service (istio.io/istio
// pkg/kube/labels, CanonicalService).
func (e *Endpoint) label(names ...string) string {
	for _, n := range names {
		if v := e.Labels[n]; v != "" {
			return v
		}
	}
	return ""
}

// tlsMode is what istiod would say of an endpoint (istio.io/istio pilot/pkg/serviceregistry/serviceentry, getTLSModeFromWorkloadEntry).
func (e *Endpoint) tlsMode() string {
	if mode, ok := e.Labels["security.istio.io/tlsMode"]; ok {
		return mode
	}
	if e.Identity != "" {
		return mutualMode
	}
	return ""
}

// mutualMode is Istio's mutual TLS.
const mutualMode = "istio"

// security is Istio's connection_security_policy.
func (e *Endpoint) security() string {
	if e.Identity != "" && (!e.Lowers || e.tlsMode() == mutualMode) {
		return "mutual_tls"
	}
	return "none"
}

// unknown is how Istio's metrics say so.
const unknown = "unknown"

// fields makes a struct of keys and values in turns.
func fields(pairs ...string) *structpb.Struct {
	s := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(pairs)/2)}
	for i := 0; i < len(pairs); i += 2 {
		s.Fields[pairs[i]] = structpb.NewStringValue(pairs[i+1])
	}
	return s
}
