package console

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
	"github.com/isthmus-mesh/isthmus/mcp-server/store"
	"github.com/isthmus-mesh/isthmus/mcp-server/telemetry"
)

// The sizes of a page of services.
const (
	defaultLimit = 100
	maxLimit     = 5000
)

// parameters reads query parameters; those that it was not asked for are a fault, so that a misspelt filter is not taken for one
// that selects everything.
func parameters(r *http.Request, names ...string) (url.Values, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest("the query cannot be read: %v", err)
	}
	for name, values := range q {
		if !slices.Contains(names, name) {
			if len(names) == 0 {
				return nil, badRequest("unknown parameter %q; there are none here", name)
			}
			return nil, badRequest("unknown parameter %q; known are %s", name, strings.Join(names, ", "))
		}
		if len(values) > 1 {
			return nil, badRequest("parameter %q is there twice", name)
		}
	}
	return q, nil
}

func (s *Server) services(r *http.Request) (any, error) {
	q, err := parameters(r, "q", "framework", "registry", "protocol", "application", "limit", "continue")
	if err != nil {
		return nil, err
	}
	limit := defaultLimit
	if v := q.Get("limit"); v != "" {
		if limit, err = strconv.Atoi(v); err != nil || limit < 1 || limit > maxLimit {
			return nil, badRequest("limit must be from 1 to %d", maxLimit)
		}
	}
	var after *model.Key
	if v := q.Get("continue"); v != "" {
		b, err := base64.RawURLEncoding.DecodeString(v)
		if err == nil {
			err = json.Unmarshal(b, &after)
		}
		if err != nil || after == nil {
			return nil, badRequest("continue must be what the page before said")
		}
	}
	state, report := s.o.Store.Load(), s.report()
	on := sidecars(&report)
	list := api.ServiceList{Items: []api.Service{}, Version: state.Snapshot.Version}
	for i := range state.Snapshot.Services {
		svc := summary(&state.Snapshot.Services[i], state)
		if !selected(&svc, q) {
			continue
		}
		list.Total++
		if after != nil && compareKeys(svc.Key, *after) <= 0 {
			continue
		}
		if len(list.Items) < limit {
			if svc.Lift = lift(&state.Snapshot.Services[i], state, on); svc.Lift != nil {
				svc.Lift.Sidecars = nil // they are for the service's own page
			}
			list.Items = append(list.Items, svc)
		} else if list.Continue == "" {
			b, err := json.Marshal(list.Items[limit-1].Key)
			if err != nil {
				return nil, err
			}
			list.Continue = base64.RawURLEncoding.EncodeToString(b)
		}
	}
	return list, nil
}

func compareKeys(a, b model.Key) int {
	return cmp.Or(cmp.Compare(a.Framework, b.Framework), cmp.Compare(a.Interface, b.Interface), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Group, b.Group))
}

// selected tells whether a service is one that the query wants. q is found in its id, its hosts and its applications,
// whatever the case.
func selected(s *api.Service, q url.Values) bool {
	if v := q.Get("framework"); v != "" && v != s.Framework {
		return false
	}
	if v := q.Get("registry"); v != "" && !slices.Contains(s.Registries, v) {
		return false
	}
	if v := q.Get("protocol"); v != "" && !slices.Contains(s.Protocols, model.Protocol(v)) {
		return false
	}
	if v := q.Get("application"); v != "" && !slices.Contains(s.Applications, v) {
		return false
	}
	v := strings.ToLower(q.Get("q"))
	if v == "" || strings.Contains(strings.ToLower(s.ID), v) {
		return true
	}
	return slices.ContainsFunc(s.Applications, func(a string) bool { return strings.Contains(strings.ToLower(a), v) }) ||
		slices.ContainsFunc(s.Hosts, func(h api.Host) bool { return strings.Contains(h.Host, v) || h.Address == v })
}

func summary(s *model.Service, state *store.State) api.Service {
	out := api.Service{Key: s.Key, ID: s.Key.String(), Providers: len(s.Endpoints), Consumers: len(s.Consumers)}
	protocols, applications, registries := map[model.Protocol]bool{}, map[string]bool{}, map[string]bool{}
	origins := func(list []model.Origin) {
		for _, o := range list {
			registries[o.Registry] = true
		}
	}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		protocols[e.Protocol] = true
		if e.Application != "" {
			applications[e.Application] = true
		}
		origins(e.Origins)
	}
	for i := range s.Consumers {
		origins(s.Consumers[i].Origins)
	}
	for _, h := range state.Hosts[s.Key] {
		out.Active += h.Carried
		out.Hosts = append(out.Hosts, api.Host{Host: h.Host, Address: h.Address, Port: h.Port, Protocol: h.Protocol})
	}
	out.Protocols, out.Applications, out.Registries = sorted(protocols), sorted(applications), sorted(registries)
	return out
}

// sorted returns the keys, an empty list rather than nil.
func sorted[K cmp.Ordered](set map[K]bool) []K {
	return append([]K{}, slices.Sorted(maps.Keys(set))...)
}

// service answers for one service, its providers or its consumers. The id is what a list says, a host or a virtual address of
// the service, or its interface where that says which one it is.
func (s *Server) service(r *http.Request) (any, error) {
	if _, err := parameters(r); err != nil {
		return nil, err
	}
	state := s.o.Store.Load()
	id := r.PathValue("id")
	svc, err := find(state, id)
	part := ""
	if err != nil {
		for _, suffix := range []string{"providers", "consumers"} {
			if shorter, ok := strings.CutSuffix(id, "/"+suffix); ok {
				part = suffix
				svc, err = find(state, shorter)
			}
		}
	}
	if err != nil {
		return nil, err
	}
	switch part {
	case "providers":
		return api.ProviderList{Items: append([]model.Endpoint{}, svc.Endpoints...)}, nil
	case "consumers":
		return api.ConsumerList{Items: append([]model.Consumer{}, svc.Consumers...)}, nil
	}
	sum, report := summary(svc, state), s.report()
	sum.Lift = lift(svc, state, sidecars(&report))
	return api.ServiceDetail{
		Service: sum, Methods: svc.Methods, Metadata: svc.Metadata,
		ProviderList: append([]model.Endpoint{}, svc.Endpoints...), ConsumerList: append([]model.Consumer{}, svc.Consumers...),
	}, nil
}

func find(state *store.State, id string) (*model.Service, error) {
	var candidates []*model.Service
	for i := range state.Snapshot.Services {
		svc := &state.Snapshot.Services[i]
		if svc.Key.String() == id {
			return svc, nil
		}
		for _, h := range state.Hosts[svc.Key] {
			if h.Host == id || h.Address == id {
				return svc, nil
			}
		}
		// Also what people leave away: the framework, the version, the group.
		if svc.Key.Interface == id || svc.Key.Framework+"/"+svc.Key.Interface == id || strings.TrimPrefix(svc.Key.String(), svc.Key.Framework+"/") == id {
			candidates = append(candidates, svc)
		}
	}
	switch len(candidates) {
	case 0:
		return nil, notFound("there is no service %q", id)
	case 1:
		return candidates[0], nil
	}
	var ids []string
	for i, c := range candidates {
		if i == 10 {
			ids = append(ids, fmt.Sprintf("and %d more", len(candidates)-10))
			break
		}
		ids = append(ids, c.Key.String())
	}
	return nil, &failure{http.StatusConflict, "Ambiguous", fmt.Sprintf("%q may be %s", id, strings.Join(ids, ", "))}
}

func (s *Server) problems(r *http.Request) (any, error) {
	q, err := parameters(r, "severity", "stage", "registry", "code")
	if err != nil {
		return nil, err
	}
	list := api.ProblemList{Items: []api.Problem{}}
	state := s.o.Store.Load()
	for _, p := range slices.Concat(state.Problems, s.conflicts(state), s.faults(state)) {
		wanted := func(name, value string) bool { v := q.Get(name); return v == "" || v == value }
		if !wanted("severity", string(p.Severity)) || !wanted("stage", string(p.Stage)) || !wanted("registry", p.Registry) || !wanted("code", p.Code) {
			continue
		}
		if p.Severity == model.SeverityError {
			list.Errors++
		}
		list.Items = append(list.Items, api.Problem{Stage: string(p.Stage), Problem: p.Problem})
	}
	return list, nil
}

func (s *Server) sources(r *http.Request) (any, error) {
	if _, err := parameters(r); err != nil {
		return nil, err
	}
	list := api.SourceList{Items: []api.Source{}, Complete: s.o.Store.Load().Snapshot.Complete}
	now := time.Now()
	for _, src := range s.o.Sources() {
		item := api.Source{Source: src}
		if !src.LastWord.IsZero() {
			// In tenths: whoever polls with an ETag is not told of every millisecond.
			item.AgeSeconds = float64(now.Sub(src.LastWord).Round(100*time.Millisecond)) / float64(time.Second)
		}
		list.Items = append(list.Items, item)
	}
	return list, nil
}

func (s *Server) istiods(r *http.Request) (any, error) {
	if _, err := parameters(r); err != nil {
		return nil, err
	}
	return api.IstiodList{Items: append([]api.Istiod{}, s.o.Istiods()...)}, nil
}

func (s *Server) traffic(r *http.Request) (any, error) {
	if _, err := parameters(r); err != nil {
		return nil, err
	}
	report := s.o.Traffic()
	report.Rules = current(report.Rules, s.o.Store.Load().Rules)
	return report, nil
}

// current leaves out rules that have been removed: an Envoy shows what they did for as long as it runs. One that somebody has given to a filter by
// hand looks the same, so what has counted calls of late stays.
func current(did []telemetry.Rule, rules []store.Rule) []telemetry.Rule {
	type named struct{ kind, name string }
	known := map[named]bool{}
	for i := range rules {
		name := rules[i].Namespace + "/" + rules[i].Name
		known[named{governance.FilterKind(rules[i].Kind), name}] = true
		known[named{"", name}] = true // where Envoy does not show the kind
	}
	out := []telemetry.Rule{}
	for i := range did {
		shown := known[named{did[i].Kind, did[i].Name}]
		for _, rate := range did[i].Rates {
			shown = shown || rate > 0
		}
		if shown {
			out = append(out, did[i])
		}
	}
	return out
}
