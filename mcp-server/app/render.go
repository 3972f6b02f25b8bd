package app

import (
	"cmp"
	"slices"
	"sync"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/config"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
	"github.com/isthmus-mesh/isthmus/mcp-server/store"
	"github.com/isthmus-mesh/isthmus/mcp-server/translate"
	"github.com/isthmus-mesh/isthmus/mcp-server/xds"
)

// Rendered is what istiod gets, and what became of everything on the way.
type Rendered struct {
	Set        resource.Set
	Hosts      map[model.Key][]store.Host
	Generation string          // of the filter's configuration; "" where there is no filter
	Problems   []store.Problem // of all stages but the configuration
	// Endpoints are those of lifted services, which do not go through istiod.
	Endpoints *xds.Assignments
	// routed finds the services that routes may be for.
	routed func() []governance.Routed
}

// Render is the whole of what mcp-server does to data: it is pure, and what runs in production and offline alike. spec must
// come from config.Parse, so that it is valid and has its defaults.
func Render(s *model.Snapshot, rules governance.Rules, spec *config.Spec) Rendered {
	return render(s, rules, spec, "", func(*xds.Assignments) {}, func(string) func() { return func() {} })
}

// render also reports how long each stage takes, and the endpoints as soon as they are known: most of the work comes after them. token
// is what sidecars show us.
func render(s *model.Snapshot, rules governance.Rules, spec *config.Spec, token string, endpoints func(*xds.Assignments), measure func(stage string) (done func())) Rendered {
	done := measure("translate")
	options := translateOptions(&spec.Mesh)
	t := translate.Translate(s, options)
	done()
	done = measure("route")
	routes := governance.CompileRoutes(rules.Items, routedBy(rules.Items, t, &options), governance.RouteOptions{Namespace: spec.Mesh.Namespace, Attachments: spec.Mesh.Lift.Attachments})
	lifted := assignments(t, routes.Subsets, spec.Mesh.Namespace)
	endpoints(lifted)
	done()
	done = measure("govern")
	g := governance.Compile(rules.Items, t.TCPPorts, governanceOptions(spec))
	lifting, liftProblems := governance.Lift(&g, liftOptions(t, spec, token), governanceOptions(spec))
	done()
	done = measure("assemble")
	set, err := resource.Union(t.Set(), g.Set, lifting, routes.Set)
	done()
	if err != nil { // they hold different types, or names
		panic("app: " + err.Error())
	}
	out := Rendered{Set: set, Hosts: map[model.Key][]store.Host{}, Endpoints: lifted, routed: sync.OnceValue(func() []governance.Routed { return routed(t, &options) })}
	if g.Set.Len() > 0 {
		out.Generation = g.Plugin.Generation
	}
	for _, svc := range t.Services {
		h := store.Host{Protocol: svc.Protocol, Host: svc.Host, Port: svc.Port, Carried: svc.Carried, LeftOut: svc.LeftOut}
		if svc.Address.IsValid() {
			h.Address = svc.Address.String()
		}
		out.Hosts[svc.Key] = append(out.Hosts[svc.Key], h)
	}
	for _, hosts := range out.Hosts {
		slices.SortStableFunc(hosts, func(a, b store.Host) int { return cmp.Compare(len(a.Host), len(b.Host)) }) // the service's own is the shortest
	}
	add := func(stage store.Stage, problems []model.Problem) {
		for _, p := range problems {
			out.Problems = append(out.Problems, store.Problem{Stage: stage, Problem: p})
		}
	}
	add(store.StageRegistry, s.Problems)
	add(store.StageTranslate, t.Problems)
	add(store.StageRules, rules.Problems)
	add(store.StageRules, g.Problems)
	add(store.StageRules, routes.Problems)
	add(store.StageConfig, liftProblems)
	return out
}

func translateOptions(m *config.Mesh) translate.Options {
	return translate.Options{
		Namespace: m.Namespace, ExportTo: m.ExportTo, Naming: translate.Naming{Suffix: m.HostSuffix}, VirtualAddresses: m.Virtual(),
		EndpointsOnly: m.Addressing == config.AddressingEndpoints, Lift: liftSelectors(&m.Lift),
	}
}

func governanceOptions(spec *config.Spec) governance.Options {
	f := &spec.Filter
	defaults, _ := f.PluginDefaults() // valid, or the configuration would not be
	o := governance.Options{
		Namespace: spec.Mesh.RootNamespace, URL: f.URL, SHA256: f.SHA256, ImagePullSecret: f.ImagePullSecret,
		FailClosed: f.FailStrategy == "close", Plugin: defaults,
	}
	if f.Disabled {
		o.URL = ""
	}
	return o
}

// Rules reads the rules that a configuration points to.
func Rules(spec *config.Spec) governance.Rules {
	return governance.Rules{}.Update(ruleFiles(spec.Rules.Path))
}
