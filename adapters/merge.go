package adapters

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/adapters/model"
)

// merger keeps, for each service, the parts that the groups say of it, and merges again only those that changed.
type merger struct {
	keys   map[model.Key]*merged
	dirty  map[*merged]struct{}
	sorted []*merged // those with parts at the last freeze, by key
	byRun  map[*run]map[model.Key]int
}

// merged is one service: its parts, and what came of them at the last freeze.
type merged struct {
	key       model.Key
	parts     []part
	listed    bool // is in merger.sorted
	tallies   []tally
	service   model.Service
	conflicts []model.Problem
}

// part is what one group says of one service.
type part struct {
	run     *run
	source  string
	service *model.Service
}

// tally is how much of a service one run knows of, each endpoint and consumer once, however many groups name it.
type tally struct {
	run                  *run
	endpoints, consumers int
}

// count adds the tallies to, or with -1 takes them from, the sources of their runs.
func (e *merged) count(sign int) {
	for _, t := range e.tallies {
		t.run.source.Endpoints += sign * t.endpoints
		t.run.source.Consumers += sign * t.consumers
	}
}

func newMerger() *merger {
	return &merger{keys: map[model.Key]*merged{}, dirty: map[*merged]struct{}{}, byRun: map[*run]map[model.Key]int{}}
}

func (m *merger) add(r *run, g *model.Group) {
	for i := range g.Services {
		s := &g.Services[i]
		e := m.keys[s.Key]
		if e == nil {
			e = &merged{key: s.Key}
			m.keys[s.Key] = e
		}
		e.parts = append(e.parts, part{r, g.Source, s})
		m.dirty[e] = struct{}{}
		if m.byRun[r] == nil {
			m.byRun[r] = map[model.Key]int{}
		}
		m.byRun[r][s.Key]++
	}
}

func (m *merger) remove(r *run, g model.Group) {
	for i := range g.Services {
		e := m.keys[g.Services[i].Key]
		if e == nil {
			continue // a key that this group held twice
		}
		before := len(e.parts)
		e.parts = slices.DeleteFunc(e.parts, func(p part) bool { return p.run == r && p.source == g.Source })
		m.dirty[e] = struct{}{}
		if counts := m.byRun[r]; counts != nil {
			if counts[e.key] -= before - len(e.parts); counts[e.key] <= 0 {
				delete(counts, e.key)
			}
			if len(counts) == 0 {
				delete(m.byRun, r)
			}
		}
	}
}

// replace hands the parts of one run, and what its source counts, to another.
func (m *merger) replace(old, r *run) {
	for key := range m.byRun[old] {
		e := m.keys[key]
		for i := range e.parts {
			if e.parts[i].run == old {
				e.parts[i].run = r
			}
		}
		for i := range e.tallies {
			if e.tallies[i].run == old {
				e.tallies[i].run = r
			}
		}
		m.dirty[e] = struct{}{}
	}
	if counts := m.byRun[old]; counts != nil {
		m.byRun[r] = counts
		delete(m.byRun, old)
	}
}

// touchAll has every service of a run merged again, because its priority changed.
func (m *merger) touchAll(r *run) {
	for key := range m.byRun[r] {
		m.dirty[m.keys[key]] = struct{}{}
	}
}

// servicesOf returns how many services a run knows of.
func (m *merger) servicesOf(r *run) int { return len(m.byRun[r]) }

// freeze merges what has changed and returns all services by key, all conflicts, and how many were merged anew. The
// result shares the unchanged services with earlier ones.
func (m *merger) freeze() (services []model.Service, conflicts []model.Problem, n int) {
	n = len(m.dirty)
	var fresh []*merged
	gone := false
	for e := range m.dirty {
		e.count(-1)
		if len(e.parts) == 0 {
			gone = gone || e.listed
			e.listed = false
			delete(m.keys, e.key)
			continue
		}
		e.merge()
		e.count(1)
		if !e.listed {
			e.listed = true
			fresh = append(fresh, e)
		}
	}
	clear(m.dirty)
	if gone {
		m.sorted = slices.DeleteFunc(m.sorted, func(e *merged) bool { return !e.listed })
	}
	if len(fresh) > 0 {
		slices.SortFunc(fresh, func(a, b *merged) int { return compareKeys(a.key, b.key) })
		both := make([]*merged, 0, len(m.sorted)+len(fresh))
		old := m.sorted
		for len(old) > 0 && len(fresh) > 0 {
			if compareKeys(old[0].key, fresh[0].key) < 0 {
				both, old = append(both, old[0]), old[1:]
			} else {
				both, fresh = append(both, fresh[0]), fresh[1:]
			}
		}
		m.sorted = append(append(both, old...), fresh...)
	}
	services = make([]model.Service, len(m.sorted))
	for i, e := range m.sorted {
		services[i] = e.service
		conflicts = append(conflicts, e.conflicts...)
	}
	return services, conflicts, n
}

func compareKeys(a, b model.Key) int {
	return cmp.Or(cmp.Compare(a.Framework, b.Framework), cmp.Compare(a.Interface, b.Interface), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Group, b.Group))
}

type endpointID struct {
	address  string
	port     uint16
	protocol model.Protocol
}

func idOf(e *model.Endpoint) endpointID { return endpointID{e.Address, e.Port, e.Protocol} }

type consumerID struct{ address, application string }

// merge makes the service out of its parts: the union of their endpoints and consumers, each once. Parts count in the
// order of the configuration, then of their sources, so that the result depends on nothing else.
func (e *merged) merge() {
	slices.SortFunc(e.parts, func(a, b part) int {
		return cmp.Or(cmp.Compare(a.run.priority, b.run.priority), cmp.Compare(a.source, b.source))
	})
	e.conflicts = nil
	s := model.Service{Key: e.key}
	endpoints, consumers := 0, 0
	for _, p := range e.parts {
		endpoints += len(p.service.Endpoints)
		consumers += len(p.service.Consumers)
	}
	if endpoints > 0 {
		s.Endpoints = make([]model.Endpoint, 0, endpoints)
	}
	if consumers > 0 {
		s.Consumers = make([]model.Consumer, 0, consumers)
	}
	at := make(map[endpointID]int, endpoints)
	who := make(map[consumerID]int, consumers)
	first := make([]int, 0, endpoints) // the part that each endpoint was first said in
	for i, p := range e.parts {
		origin := []model.Origin{{Registry: p.run.Name, Place: p.source}}
		s.Methods = append(s.Methods, p.service.Methods...)
		s.Metadata = unionFirst(s.Metadata, p.service.Metadata)
		for j := range p.service.Endpoints {
			n := &p.service.Endpoints[j]
			if k, ok := at[idOf(n)]; ok {
				e.join(&s.Endpoints[k], n, e.parts[first[k]], p)
				continue
			}
			at[idOf(n)] = len(s.Endpoints)
			first = append(first, i)
			s.Endpoints = append(s.Endpoints, *n)
			s.Endpoints[len(s.Endpoints)-1].Origins = origin
		}
		for j := range p.service.Consumers {
			n := &p.service.Consumers[j]
			id := consumerID{n.Address, n.Application}
			if k, ok := who[id]; ok {
				have := &s.Consumers[k]
				have.Metadata = unionFirst(have.Metadata, n.Metadata)
				have.Origins = withOrigin(have.Origins, origin[0])
				continue
			}
			who[id] = len(s.Consumers)
			s.Consumers = append(s.Consumers, *n)
			s.Consumers[len(s.Consumers)-1].Origins = origin
		}
	}
	e.tally()
	slices.Sort(s.Methods)
	s.Methods = slices.Clip(slices.Compact(s.Methods))
	slices.SortFunc(s.Endpoints, func(a, b model.Endpoint) int {
		return cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
	})
	slices.SortFunc(s.Consumers, func(a, b model.Consumer) int {
		return cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(a.Application, b.Application))
	})
	slices.SortFunc(e.conflicts, compareProblems)
	e.service = s
}

// tally counts what each run knows of. The parts are sorted by run.
func (e *merged) tally() {
	e.tallies = e.tallies[:0]
	for i := 0; i < len(e.parts); {
		r, first := e.parts[i].run, i
		for i < len(e.parts) && e.parts[i].run == r {
			i++
		}
		t := tally{run: r}
		if i-first == 1 { // adapters say each endpoint once in a group
			t.endpoints, t.consumers = len(e.parts[first].service.Endpoints), len(e.parts[first].service.Consumers)
		} else {
			endpoints, consumers := map[endpointID]bool{}, map[consumerID]bool{}
			for _, p := range e.parts[first:i] {
				for j := range p.service.Endpoints {
					endpoints[idOf(&p.service.Endpoints[j])] = true
				}
				for j := range p.service.Consumers {
					consumers[consumerID{p.service.Consumers[j].Address, p.service.Consumers[j].Application}] = true
				}
			}
			t.endpoints, t.consumers = len(endpoints), len(consumers)
		}
		e.tallies = append(e.tallies, t)
	}
}

// join adds what a later part says of an endpoint to what earlier ones, of which the first is named, have said.
func (e *merged) join(have, n *model.Endpoint, first, later part) {
	var differ []string
	note := func(field string, a, b any) { differ = append(differ, fmt.Sprintf("%s %v and %v", field, a, b)) }
	switch {
	case n.Application == "":
	case have.Application == "":
		have.Application = n.Application
	case have.Application != n.Application:
		note("application", have.Application, n.Application)
	}
	switch {
	case n.Weight == nil:
	case have.Weight == nil:
		have.Weight = n.Weight
	case *have.Weight != *n.Weight:
		note("weight", *have.Weight, *n.Weight)
	}
	switch {
	case n.Locality == model.Locality{}:
	case have.Locality == model.Locality{}:
		have.Locality = n.Locality
	case have.Locality != n.Locality:
		note("locality", have.Locality, n.Locality)
	}
	for _, k := range slices.Sorted(maps.Keys(n.Labels)) {
		if was, ok := have.Labels[k]; ok && was != n.Labels[k] {
			note("label "+k, was, n.Labels[k])
		}
	}
	have.Labels = unionFirst(have.Labels, n.Labels)
	have.Metadata = unionFirst(have.Metadata, n.Metadata)
	disabled := ""
	if have.Disabled != n.Disabled {
		// Somebody took it out of service on purpose; only that somebody may put it back.
		note("disabled", have.Disabled, n.Disabled)
		have.Disabled = true
		disabled = "; it stays disabled as long as one of them says so"
	}
	origin := model.Origin{Registry: later.run.Name, Place: later.source}
	have.Origins = withOrigin(have.Origins, origin)
	if len(differ) == 0 {
		return
	}
	e.conflicts = append(e.conflicts, model.Problem{
		Severity: model.SeverityWarning,
		Registry: later.run.Name,
		Place:    later.source,
		Code:     "ConflictingEndpoint",
		Message: fmt.Sprintf("%s: endpoint %s:%d/%s is described differently by %s (%s) and %s (%s): %s; the first is believed%s",
			e.key, have.Address, have.Port, have.Protocol, first.run.Name, first.source, later.run.Name, later.source, strings.Join(differ, ", "), disabled),
	})
}

// withOrigin adds an origin to a sorted list of them. The list may be shared and is not changed.
func withOrigin(have []model.Origin, o model.Origin) []model.Origin {
	if slices.Contains(have, o) {
		return have
	}
	out := append(slices.Clone(have), o)
	slices.SortFunc(out, func(a, b model.Origin) int {
		return cmp.Or(cmp.Compare(a.Registry, b.Registry), cmp.Compare(a.Place, b.Place))
	})
	return out
}

// unionFirst returns both maps in one; a key in both has the value of the first. Neither is changed.
func unionFirst(a, b map[string]string) map[string]string {
	if len(a) == 0 {
		return b
	}
	var out map[string]string
	for k, v := range b {
		if _, ok := a[k]; !ok {
			if out == nil {
				out = maps.Clone(a)
			}
			out[k] = v
		}
	}
	if out == nil {
		return a
	}
	return out
}
