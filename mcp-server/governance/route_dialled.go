package governance

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
)

// Callers that have an endpoint's address from a registry say it as the authority of their requests: Triple's client, and Spring Cloud's load
// balancer, which puts it into the URL. So they are in none of the virtual hosts that Envoy has by the services' names. What they mean is found out by
// who listens at the address: one service, whose routes then are for the address too; or, with Triple and gRPC, several, which the path tells apart.

// dialled is what becomes of calls to the addresses of a service's endpoints.
type dialled struct {
	port uint16
	// addresses are those of the endpoints. own are the same where the service is alone there, or has to be: hosts of its VirtualService.
	addresses, own []string
	// guarded are the service's routes for its own calls among those of others.
	guarded []*networking.HTTPRoute
}

// The headers of a Triple call that tell versions and groups of an interface apart (org.apache.dubbo.rpc.protocol.tri.TripleHeaderEnum).
const (
	headerTripleVersion = "tri-service-version"
	headerTripleGroup   = "tri-service-group"
)

// silentVersion is what Triple's client does not send (org.apache.dubbo.rpc.protocol.tri.RequestMetadata.toHeaders, Dubbo 3.3).
const silentVersion = "1.0.0"

// dialledBy says what becomes of the calls to the addresses of a service whose routes these are.
func (r *Router) dialledBy(svc *Routed, routes []*networking.HTTPRoute) dialled {
	d := dialled{port: svc.Port, addresses: svc.Dialled}
	if len(svc.Dialled) == 0 {
		return d
	}
	if svc.Protocol != model.ProtocolTriple && svc.Protocol != model.ProtocolGRPC {
		d.own = svc.Dialled
		return d
	}
	guards := []*networking.HTTPMatchRequest{{Uri: &networking.StringMatch{MatchType: &networking.StringMatch_Prefix{Prefix: "/" + svc.Key.Interface + "/"}}}}
	if svc.Protocol == model.ProtocolTriple {
		guards = tripleGuards(guards[0], svc.Key)
	}
	for _, route := range routes {
		route = proto.CloneOf(route)
		matches := route.Match
		route.Match = nil
		if len(matches) == 0 {
			matches = []*networking.HTTPMatchRequest{{}}
		}
		for _, m := range matches {
			for _, g := range guards {
				route.Match = append(route.Match, both(m, g))
			}
		}
		d.guarded = append(d.guarded, route)
	}
	return d
}

// tripleGuards are matches, one of which holds for each call of a service and none for those of other versions and groups.
func tripleGuards(path *networking.HTTPMatchRequest, k model.Key) []*networking.HTTPMatchRequest {
	is := func(v string) *networking.StringMatch {
		return &networking.StringMatch{MatchType: &networking.StringMatch_Exact{Exact: v}}
	}
	something := &networking.StringMatch{MatchType: &networking.StringMatch_Regex{Regex: ".+"}}
	with, without := map[string]*networking.StringMatch{}, map[string]*networking.StringMatch{}
	if k.Group == "" {
		without[headerTripleGroup] = something
	} else {
		with[headerTripleGroup] = is(k.Group)
	}
	guard := func(version string) *networking.HTTPMatchRequest {
		g := &networking.HTTPMatchRequest{Uri: path.Uri, Headers: maps.Clone(with), WithoutHeaders: maps.Clone(without)}
		if version == "" {
			g.WithoutHeaders[headerTripleVersion] = something
		} else {
			g.Headers[headerTripleVersion] = is(version)
		}
		return g
	}
	if k.Version == silentVersion {
		return []*networking.HTTPMatchRequest{guard(""), guard(silentVersion)}
	}
	return []*networking.HTTPMatchRequest{guard(k.Version)}
}

// both is a match of what both of two match. A path that m asks for is within g's.
func both(m, g *networking.HTTPMatchRequest) *networking.HTTPMatchRequest {
	out := proto.CloneOf(m)
	if out.Uri == nil {
		out.Uri = g.Uri
	}
	for _, x := range []struct {
		into *map[string]*networking.StringMatch
		from map[string]*networking.StringMatch
	}{{&out.Headers, g.Headers}, {&out.WithoutHeaders, g.WithoutHeaders}} {
		for name, v := range x.from {
			if *x.into == nil {
				*x.into = map[string]*networking.StringMatch{}
			}
			if _, ok := (*x.into)[name]; !ok { // what a rule says of it itself
				(*x.into)[name] = v
			}
		}
	}
	return out
}

func dialledRoute(port uint16) string { return fmt.Sprintf("route-dialled-%d", port) }

// dialledHost is the host of the ServiceEntry for calls to addresses on a port that no route is for: they go where they are sent.
func (r *Router) dialledHost(port uint16) string {
	return fmt.Sprintf("dialled-%d.%s", port, r.o.Suffix)
}

// socket is where endpoints listen.
type socket struct {
	address string
	port    uint16
}

// joinDialled returns the resources of all hosts, with those for the calls to addresses.
func (r *Router) joinDialled(hosts []*HostRoutes, all iter.Seq[*Routed]) (sets []resource.Set, problems []model.Problem) {
	shared := sharedSockets(hosts, all)
	ports := map[uint16][]*HostRoutes{}
	for _, h := range hosts {
		switch {
		case h == nil || h.set.Len() == 0:
		case len(h.dialled.guarded) > 0:
			ports[h.dialled.port] = append(ports[h.dialled.port], h)
			sets = append(sets, h.set)
		default:
			alone := slices.DeleteFunc(slices.Clone(h.dialled.own), func(a string) bool { return shared[socket{a, h.dialled.port}] })
			n := len(h.dialled.own) - len(alone)
			if n == 0 {
				sets = append(sets, h.set)
				continue
			}
			problems = append(problems, h.by[0].problem(model.SeverityWarning, "SharedAddress",
				"at %d addresses of %s on port %d another service is called, too, and requests do not say which of them is meant: who has the address from the registry reaches the one that he has chosen, whatever the routes say", n, h.host, h.dialled.port))
			sets = append(sets, h.render(alone))
		}
	}
	for _, port := range slices.Sorted(maps.Keys(ports)) {
		sets = append(sets, r.dialledSet(port, ports[port]))
	}
	return sets, problems
}

// sharedSockets are those at which several services are called, one of which wants to be alone there.
func sharedSockets(hosts []*HostRoutes, all iter.Seq[*Routed]) map[socket]bool {
	who := map[socket]string{}
	for _, h := range hosts {
		if h != nil {
			for _, a := range h.dialled.own {
				who[socket{a, h.dialled.port}] = h.host
			}
		}
	}
	shared := map[socket]bool{}
	if len(who) == 0 {
		return shared
	}
	look := func(host string, port uint16, addresses []string) {
		for _, a := range addresses {
			if by, ok := who[socket{a, port}]; ok && by != host {
				shared[socket{a, port}] = true
			}
		}
	}
	for svc := range all {
		look(svc.Host, svc.Port, svc.Dialled)
	}
	return shared
}

// dialledSet is for the calls on a port to addresses at which services listen that their paths tell apart.
func (r *Router) dialledSet(port uint16, hosts []*HostRoutes) resource.Set {
	host := r.dialledHost(port)
	addresses := map[string]bool{}
	var routes []*networking.HTTPRoute
	hosts = slices.Clone(hosts)
	slices.SortFunc(hosts, func(a, b *HostRoutes) int { return cmp.Compare(a.host, b.host) })
	for _, h := range hosts {
		routes = append(routes, h.dialled.guarded...)
		for _, a := range h.dialled.addresses {
			addresses[a] = true
		}
	}
	routes = append(routes, &networking.HTTPRoute{Name: "dialled", Route: []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: host}}},
		Retries: &networking.HTTPRetry{}}) // as Envoy passes on what no route is for
	return newSet([]resource.Resource{
		r.resource(resource.TypeVirtualService, dialledRoute(port), &networking.VirtualService{Hosts: append([]string{host}, slices.SortedFunc(maps.Keys(addresses), compareAddresses)...), Http: routes}),
		r.resource(resource.TypeServiceEntry, fmt.Sprintf("dialled-%d", port), &networking.ServiceEntry{
			Hosts:      []string{host},
			Ports:      []*networking.ServicePort{{Number: uint32(port), Name: "grpc", Protocol: "GRPC"}},
			Location:   networking.ServiceEntry_MESH_INTERNAL,
			Resolution: networking.ServiceEntry_NONE,
		}),
	})
}

// compareAddresses orders IP addresses by number, and host names after them.
func compareAddresses(a, b string) int {
	x, xErr := netip.ParseAddr(a)
	y, yErr := netip.ParseAddr(b)
	switch {
	case xErr == nil && yErr == nil:
		return cmp.Or(x.Compare(y), cmp.Compare(a, b))
	case xErr == nil:
		return -1
	case yErr == nil:
		return 1
	}
	return cmp.Compare(a, b)
}
