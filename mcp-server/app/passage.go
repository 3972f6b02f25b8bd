package app

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
)

// passage leads sidecars from one state of the routes to the next. A RouteRule is a VirtualService and the groups that it sends calls to, in a
// DestinationRule, and istiod hands on both at once: for some milliseconds sidecars have a route to groups that they do not know yet, or no
// more, and its calls fail. So groups of lifted services come before the routes to them, and go after them.
type passage struct {
	known func(host string, subsets []string) bool // whether the sidecars that call a host know these of its groups
	begun bool                                     // istiod has been told something: before, nobody waits
	hosts map[string]*passing
}

// passing is what istiod is told of the routes of one host.
type passing struct {
	namespace, name string
	route           *resource.Resource // nil: none
	rule            *resource.Resource // as it is wanted, or was last
	groups          map[string]*group  // by name
	since           time.Time          // another route waits for its groups to be known; zero: none does
}

// group is one of a host's.
type group struct {
	subset *networking.Subset
	left   time.Time // since when no route leads to it; zero: one does
}

const (
	// patience is how long a route waits for its groups: a sidecar may have gone without a word, or be of an operator's DestinationRule only.
	patience = 5 * time.Second
	// departure is how long a group stays when no route leads to it any more. istiod hands on routes within a second.
	departure = 10 * time.Second
	// glance is how often we look whether groups are known.
	glance = 20 * time.Millisecond
)

// step returns what istiod is to be told of the routes at a moment, and after what time that may have to be something else; 0 is never.
func (p *passage) step(r *governance.Routes, now time.Time) (out resource.Set, again time.Duration) {
	wanted := map[string]governance.RoutedHost{}
	for _, list := range r.Rules {
		for _, h := range list {
			if len(h.Subsets) > 0 {
				wanted[h.Host] = h
			}
		}
	}
	if p.hosts == nil {
		p.hosts = map[string]*passing{}
	}
	for host, w := range wanted {
		if p.hosts[host] == nil {
			h := &passing{groups: map[string]*group{}}
			h.namespace, h.name, _ = strings.Cut(w.VirtualService, "/")
			p.hosts[host] = h
		}
	}
	begun := p.begun
	p.begun = true
	if len(p.hosts) == 0 {
		return r.Set, 0
	}
	after := func(d time.Duration) {
		if again == 0 || d < again {
			again = max(d, time.Millisecond)
		}
	}
	ours := map[resource.ID]bool{}
	var resources []resource.Resource
	for _, host := range slices.Sorted(maps.Keys(p.hosts)) {
		h := p.hosts[host]
		route, rule := h.id(resource.TypeVirtualService), h.id(resource.TypeDestinationRule)
		ours[route], ours[rule] = true, true
		w, ok := wanted[host]
		if ok {
			h.want(r.Set, rule)
		}
		switch {
		case !ok:
			h.route, h.since = nil, time.Time{}
		case !begun || p.known(host, w.Subsets) || !h.since.IsZero() && now.Sub(h.since) >= patience:
			e, _ := r.Set.Get(route)
			h.route, h.since = &e.Resource, time.Time{}
		default:
			if h.since.IsZero() {
				h.since = now
			}
			after(glance)
		}
		if wait := h.leave(w.Subsets, now); wait > 0 {
			after(wait)
		}
		if h.route != nil {
			resources = append(resources, *h.route)
		}
		if len(h.groups) == 0 {
			delete(p.hosts, host)
			continue
		}
		resources = append(resources, h.served())
	}
	for e := range r.Set.All() {
		if !ours[e.ID()] {
			resources = append(resources, e.Resource)
		}
	}
	out, err := resource.NewSet(resources)
	if err != nil { // all of it was in a Set before
		panic("app: " + err.Error())
	}
	return out, again
}

func (h *passing) id(t resource.Type) resource.ID {
	return resource.ID{Type: t, Namespace: h.namespace, Name: h.name}
}

// want takes in the groups as they are wanted now.
func (h *passing) want(set resource.Set, id resource.ID) {
	e, ok := set.Get(id)
	if !ok {
		return
	}
	h.rule = &e.Resource
	for _, s := range e.Body.(*networking.DestinationRule).Subsets {
		h.groups[s.Name] = &group{subset: s}
	}
}

// leave lets the groups go that are not wanted and that no route leads to, in their time. It returns when the next one goes, 0 for never.
func (h *passing) leave(wanted []string, now time.Time) (wait time.Duration) {
	for name, g := range h.groups {
		if slices.Contains(wanted, name) || !h.since.IsZero() {
			continue // the route as it was may lead there
		}
		if g.left.IsZero() {
			g.left = now
		}
		left := g.left.Add(departure).Sub(now)
		if left <= 0 {
			delete(h.groups, name)
		} else if wait == 0 || left < wait {
			wait = left
		}
	}
	return wait
}

// served is the DestinationRule with all groups.
func (h *passing) served() resource.Resource {
	out := *h.rule
	body := proto.CloneOf(h.rule.Body.(*networking.DestinationRule))
	body.Subsets = body.Subsets[:0]
	for _, g := range h.groups {
		body.Subsets = append(body.Subsets, g.subset)
	}
	slices.SortFunc(body.Subsets, func(a, b *networking.Subset) int { return cmp.Compare(a.Name, b.Name) })
	out.Body = body
	return out
}
