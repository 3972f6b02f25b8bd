package app

import (
	"slices"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/config"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
	"github.com/isthmus-mesh/isthmus/mcp-server/translate"
	"github.com/isthmus-mesh/isthmus/mcp-server/xds"
)

func liftSelectors(l *config.Lift) []translate.LiftSelector {
	out := make([]translate.LiftSelector, len(l.Services))
	for i, s := range l.Services {
		out[i] = translate.LiftSelector{Framework: s.Framework, Interface: s.Interface, Application: s.Application, Port: s.Port, AtProvider: s.Lower == config.LowerProvider}
	}
	return out
}

// liftOptions says how the lifted services of t are lifted. token is what sidecars show us.
func liftOptions(t *translate.Translation, spec *config.Spec, token string) governance.LiftOptions {
	host, port := spec.Advertised()
	c := spec.XDS.Sidecars
	o := governance.LiftOptions{
		Ports: t.LiftedPorts, Suffix: spec.Mesh.HostSuffix, Attachments: spec.Mesh.Lift.Attachments,
		XDS: governance.XDS{Host: host, Port: port, CAFile: c.CAFile, CertFile: c.CertFile, KeyFile: c.KeyFile, ServerName: c.ServerName, Token: token},
	}
	for _, l := range t.Lifted {
		o.Hosts = append(o.Hosts, governance.LiftedHost{Key: l.Key, Host: l.Host, Hashed: l.Hashed})
	}
	return o
}

// routedBy are the services that routes may be for, none where there are no routes.
func routedBy(rules []governance.Rule, t *translate.Translation, o *translate.Options) []governance.Routed {
	if !slices.ContainsFunc(rules, func(r governance.Rule) bool { _, ok := r.Spec.(*governance.RouteSpec); return ok }) {
		return nil
	}
	return routed(t, o)
}

// routed are the services that routes may be for.
func routed(t *translate.Translation, o *translate.Options) []governance.Routed {
	set, lifted := t.Set(), map[string]*translate.Lifted{}
	for i := range t.Lifted {
		lifted[t.Lifted[i].Host] = &t.Lifted[i]
	}
	out := make([]governance.Routed, len(t.Services))
	for i, s := range t.Services {
		r := governance.Routed{Key: s.Key, Protocol: s.Protocol, Host: s.Host, Name: s.Name, Lifted: s.Lifted}
		if l := lifted[s.Host]; l != nil {
			for _, e := range l.Endpoints {
				r.Endpoints = append(r.Endpoints, e.Labels)
			}
		} else if e, ok := set.Get(resource.ID{Type: resource.TypeServiceEntry, Namespace: o.Namespace, Name: s.Name}); ok {
			body := e.Body.(*networking.ServiceEntry)
			r.HTTP = body.Ports[0].Protocol != "TCP"
			for _, we := range body.Endpoints {
				r.Endpoints = append(r.Endpoints, we.Labels)
			}
		}
		out[i] = r
	}
	return out
}

// assignments are the endpoints of the lifted services, and their groups.
func assignments(t *translate.Translation, groups map[string][]governance.Subset, namespace string) *xds.Assignments {
	services := make([]xds.Service, len(t.Lifted))
	for i, l := range t.Lifted {
		s := xds.Service{Host: l.Host, Namespace: namespace, Endpoints: make([]xds.Endpoint, len(l.Endpoints))}
		for j, e := range l.Endpoints {
			s.Endpoints[j] = xds.Endpoint{Address: e.Address, Weight: e.Weight, Locality: e.Locality, Labels: e.Labels, Lowers: l.AtProvider}
		}
		services[i] = s
	}
	subsets := make(map[string][]xds.Subset, len(groups))
	for host, list := range groups {
		for _, g := range list {
			subsets[host] = append(subsets[host], xds.Subset(g))
		}
	}
	return xds.NewAssignments(services, subsets)
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
