package app

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/config"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
	"github.com/isthmus-mesh/isthmus/mcp-server/store"
	"github.com/isthmus-mesh/isthmus/mcp-server/translate"
	"github.com/isthmus-mesh/isthmus/mcp-server/xds"
)

func liftSelectors(l *config.Lift) []translate.LiftSelector {
	out := make([]translate.LiftSelector, len(l.Services))
	for i, s := range l.Services {
		out[i] = translate.LiftSelector{Framework: s.Framework, Interface: s.Interface, Application: s.Application, Port: s.Port,
			AtProvider: s.Lower == config.LowerProvider || s.Lower == config.LowerProviderHTTP, HTTP: s.Lower == config.LowerProviderHTTP, Failover: s.Failover}
	}
	return out
}

// liftModes are the modes by their names in a configuration.
var liftModes = map[string]governance.LiftMode{
	"": governance.LiftRouted, config.ModeLift: governance.LiftRouted, config.ModeDialled: governance.LiftDialled, config.ModePassthrough: governance.LiftPassthrough,
}

// liftOptions says how the lifted services of t are lifted. token is what sidecars show us.
func liftOptions(t *translate.Translation, spec *config.Spec, token string) governance.LiftOptions {
	host, port := spec.Advertised()
	c := spec.XDS.Sidecars
	o := governance.LiftOptions{
		Ports: t.LiftedPorts, ProviderPorts: t.ProviderPorts, MutualPorts: t.MutualPorts, Metrics: spec.Mesh.Lift.Metrics, ExceptionsFail: spec.Mesh.Lift.ExceptionsFail, Namespace: spec.Mesh.Namespace,
		Suffix: spec.Mesh.HostSuffix, Attachments: spec.Mesh.Lift.Attachments,
		XDS: governance.XDS{Host: host, Port: port, CAFile: c.CAFile, CertFile: c.CertFile, KeyFile: c.KeyFile, ServerName: c.ServerName, Token: token},
	}
	if spec.Mesh.Addressing != config.AddressingEndpoints {
		o.Virtual = spec.Mesh.Virtual()
	}
	for _, c := range spec.Mesh.Lift.Callers {
		if c.Application == "*" {
			o.OtherCallers = liftModes[c.Mode]
		} else {
			o.Callers = append(o.Callers, governance.LiftCaller{Application: c.Application, Mode: liftModes[c.Mode]})
		}
	}
	identities := map[string]bool{}
	for _, l := range t.Lifted {
		o.Hosts = append(o.Hosts, governance.LiftedHost{Key: l.Key, Host: l.Host, Hashed: l.Hashed, AtProvider: l.AtProvider, Ports: l.Ports, Mode: liftModes[spec.Mesh.Lift.Services[l.Selector].Mode]})
		for _, e := range l.Endpoints {
			identities[e.Identity] = true
		}
	}
	delete(identities, "")
	o.Identities = slices.Sorted(maps.Keys(identities))
	return o
}

// lifts say what becomes of the services that can be lifted.
func lifts(t *translate.Translation, spec *config.Spec) map[model.Key]*store.Lift {
	if len(t.Lifted) == 0 {
		return nil
	}
	callers := map[string]string{}
	for _, c := range spec.Mesh.Lift.Callers {
		callers[c.Application] = cmp.Or(c.Mode, config.ModeLift)
	}
	out := map[model.Key]*store.Lift{}
	for _, l := range t.Lifted {
		s := &spec.Mesh.Lift.Services[l.Selector]
		out[l.Key] = &store.Lift{Mode: cmp.Or(s.Mode, config.ModeLift), Callers: callers, Lower: cmp.Or(s.Lower, config.LowerCaller)}
	}
	return out
}

// subsets are those that sidecars ask for.
func (p *pipeline) subsets() map[string]map[string][]string {
	if p.endpoints == nil {
		return nil
	}
	return p.endpoints.Asked()
}

// routed is a service as routes may be for it.
func routed(s *translate.Service) governance.Routed {
	return governance.Routed{Key: s.Key, Protocol: s.Protocol, Host: s.Host, Name: s.Name, Lifted: s.Lifted, HTTP: s.HTTP, Endpoints: s.Labels,
		Port: s.Port, Dialled: s.Dialled, Elsewhere: s.Elsewhere}
}

// routes renders the routes of all services.
func (p *planner) routes(t *translate.Translation) governance.Routes {
	p.routed.begin(0)
	var hosts []*governance.HostRoutes
	for _, s := range t.Services {
		if p.router.Concerns(s.Key) {
			hosts = append(hosts, p.routed.of(s, func() *governance.HostRoutes {
				svc := routed(s)
				return p.router.Host(&svc)
			}))
		}
	}
	return p.router.Join(hosts, func(yield func(*governance.Routed) bool) {
		for _, s := range t.Services {
			if svc := routed(s); s.HTTP && !yield(&svc) {
				return
			}
		}
	})
}

// lifted are the lifted services with their endpoints.
func (p *planner) lifted(t *translate.Translation) []xds.Service {
	p.services.begin(len(t.Lifted))
	services := make([]xds.Service, len(t.Lifted))
	for i, l := range t.Lifted {
		services[i] = p.services.of(l, func() xds.Service {
			s := xds.Service{Host: l.Host, Namespace: p.spec.Mesh.Namespace, Failover: l.Failover, Metrics: p.spec.Mesh.Lift.Metrics, Endpoints: make([]xds.Endpoint, len(l.Endpoints))}
			for j, e := range l.Endpoints {
				s.Endpoints[j] = xds.Endpoint{Address: e.Address, Weight: e.Weight, Locality: e.Locality, Labels: e.Labels, Lowers: l.AtProvider, Identity: e.Identity}
			}
			return s
		})
	}
	return services
}

// subsets are the groups of lifted services, by host.
func subsets(groups map[string][]governance.Subset) map[string][]xds.Subset {
	out := make(map[string][]xds.Subset, len(groups))
	for host, list := range groups {
		for _, g := range list {
			out[host] = append(out[host], xds.Subset(g))
		}
	}
	return out
}

// linger keeps what sidecars know of a service that has lost its last endpoint, for as long as changes are gathered: a provider that registers
// anew, with other parameters, is gone and there again within milliseconds, and if it is the only one calls would fail in between.
type linger struct {
	quiet time.Duration
	last  map[string]xds.Service // by host: with endpoints, as they were served last
	empty map[string]time.Time   // since when
}

// hold returns the services to be served instead of those given, and after what time others may have to be, 0 for never.
func (l *linger) hold(services []xds.Service, now time.Time) (out []xds.Service, wait time.Duration) {
	last, empty := make(map[string]xds.Service, len(services)), map[string]time.Time{}
	at := map[string]int{} // those without endpoints
	for i, s := range services {
		if len(s.Endpoints) > 0 {
			last[s.Host] = s
		} else {
			at[s.Host] = i
		}
	}
	out = services
	for host, s := range l.last {
		if _, ok := last[host]; ok {
			continue
		}
		since, ok := l.empty[host]
		if !ok {
			since = now
		}
		left := since.Add(l.quiet).Sub(now)
		if left <= 0 {
			continue
		}
		last[host], empty[host] = s, since
		if wait == 0 || left < wait {
			wait = left
		}
		if len(empty) == 1 {
			out = slices.Clone(services)
		}
		if i, ok := at[host]; ok {
			out[i] = s
		} else {
			out = append(out, s)
		}
	}
	l.last, l.empty = last, empty
	return out, wait
}

// withoutXDS returns the configuration without lifted services, where nobody would tell sidecars their endpoints, and a Problem
// that says so.
func withoutXDS(spec *config.Spec) (*config.Spec, []model.Problem) {
	if len(spec.Mesh.Lift.Services) == 0 {
		return spec, nil
	}
	s := *spec
	s.Mesh.Lift.Services = nil
	return &s, []model.Problem{{Severity: model.SeverityWarning, Place: "spec.mesh.lift", Code: "RestartNeeded",
		Message: "no service is lifted before mcp-server is started again: it does not listen for sidecars"}}
}
