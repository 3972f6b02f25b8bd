package app

import (
	"cmp"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/config"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
	"github.com/isthmus-mesh/isthmus/mcp-server/store"
	"github.com/isthmus-mesh/isthmus/mcp-server/translate"
	"github.com/isthmus-mesh/isthmus/mcp-server/xds"
	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// Rendered is what istiod gets, and what became of everything on the way.
type Rendered struct {
	Set        resource.Set
	Hosts      map[model.Key][]store.Host
	Lifts      map[model.Key]*store.Lift
	Routes     map[governance.ID][]store.Route
	Generation string          // of the filter's configuration; "" where there is no filter
	Problems   []store.Problem // of all stages but the configuration
	// Endpoints are those of lifted services, which do not go through istiod.
	Endpoints *xds.Assignments
	// again is after what time it may have to be something else, although nothing has changed; 0 for never.
	again time.Duration
	// routed finds the services that routes may be for.
	routed func() []governance.Routed
}

// Render is the whole of what mcp-server does to data: it is pure, and what runs in production and offline alike. spec must
// come from config.Parse, so that it is valid and has its defaults. Secrets, and all other keys, are left out: what comes out may be shown.
func Render(s *model.Snapshot, rules governance.Rules, spec *config.Spec) Rendered {
	in := input{snapshot: s, rules: rules, spec: spec}
	p := newPlanner(unmeasured).plan(in)
	return newAssembler(unmeasured).assemble(in, p)
}

// input is all that rendering depends on.
type input struct {
	snapshot *model.Snapshot
	rules    governance.Rules
	version  uint64 // of the rules: two inputs with the same version have the same rules
	spec     *config.Spec
	keys     *governance.Keys // what tokens of calls are signed with
	token    string           // what sidecars show us
}

// measure times a stage.
type measure func(stage string) (done func())

func unmeasured(string) func() { return func() {} }

// plan is the first half of the rendering: all but what only istiod is told.
type plan struct {
	translation *translate.Translation
	routes      governance.Routes
	services    []xds.Service // that endpoints are made of
	subsets     map[string][]xds.Subset
	endpoints   *xds.Assignments
}

// planner makes plans one after the other: each is what a new planner would make of its input, at the cost of what is different in it. It
// belongs to one goroutine, and its plans to whoever has them.
type planner struct {
	measure    measure
	spec       *config.Spec // that what follows is made for
	translator *translate.Translator
	version    uint64 // of the rules that router is made of
	router     *governance.Router
	routed     memo[*translate.Service, *governance.HostRoutes]
	services   memo[*translate.Lifted, xds.Service]
}

func newPlanner(m measure) *planner { return &planner{measure: m} }

// plan makes a plan.
func (p *planner) plan(in input) *plan {
	if p.spec != in.spec {
		p.spec, p.router = in.spec, nil
		p.translator = translate.NewTranslator(translateOptions(&in.spec.Mesh))
		p.services = memo[*translate.Lifted, xds.Service]{}
	}
	if p.router == nil || p.version != in.version {
		p.version = in.version
		p.router = governance.NewRouter(in.rules.Items, governance.RouteOptions{Namespace: in.spec.Mesh.Namespace, Suffix: in.spec.Mesh.HostSuffix, Attachments: in.spec.Mesh.Lift.Attachments})
		p.routed = memo[*translate.Service, *governance.HostRoutes]{}
	}
	out := &plan{}
	done := p.measure("translate")
	out.translation = p.translator.Translate(in.snapshot)
	done()
	done = p.measure("route")
	out.routes = p.routes(out.translation)
	out.services, out.subsets = p.lifted(out.translation), subsets(out.routes.Subsets)
	out.endpoints = xds.NewAssignments(out.services, out.subsets)
	done()
	return out
}

// assembler is the second half of the rendering. Like planner it makes one thing after the other, and belongs to one goroutine.
type assembler struct {
	measure  measure
	governed governed
	lifted   lifted
	passage  *passage // nil: routes change at once
}

func newAssembler(m measure) *assembler { return &assembler{measure: m} }

// governed is the filter's configuration, and what it was made of.
type governed struct {
	spec    *config.Spec
	version uint64 // of the rules
	keys    *governance.Keys
	ports   governance.Ports
	told    *plugin.Lift // by what lifts; the generation says of it, too, what a sidecar runs
	out     *governance.Compiled
}

// lifted is what makes sidecars lift calls, and what it was made of.
type lifted struct {
	lifter   governance.Lifter
	options  *governance.LiftOptions // nil: of nothing that is still true
	set      resource.Set
	problems []model.Problem
}

// assemble makes of a plan, and the input that it was made of, what istiod gets and people see.
func (a *assembler) assemble(in input, p *plan) Rendered {
	t := p.translation
	done := a.measure("govern")
	a.govern(in, t)
	g, l := a.governed.out, &a.lifted
	done()
	done = a.measure("assemble")
	routes, again := p.routes.Set, time.Duration(0)
	if a.passage != nil {
		routes, again = a.passage.step(&p.routes, time.Now())
	}
	set, err := resource.Union(t.Set(), g.Set, l.set, routes)
	done()
	if err != nil { // they hold different types, or names
		panic("app: " + err.Error())
	}
	out := Rendered{Set: set, Hosts: hosts(t.Services), Lifts: lifts(t, in.spec), Routes: map[governance.ID][]store.Route{}, Endpoints: p.endpoints, again: again, routed: sync.OnceValue(func() []governance.Routed {
		out := make([]governance.Routed, len(t.Services))
		for i, s := range t.Services {
			out[i] = routed(s)
		}
		return out
	})}
	for id, list := range p.routes.Rules {
		for _, r := range list {
			out.Routes[id] = append(out.Routes[id], store.Route(r))
		}
	}
	if g.Set.Len()+l.set.Len() > 0 {
		out.Generation = g.Plugin.Generation
	}
	add := func(stage store.Stage, problems []model.Problem) {
		for _, p := range problems {
			out.Problems = append(out.Problems, store.Problem{Stage: stage, Problem: p})
		}
	}
	add(store.StageRegistry, in.snapshot.Problems)
	add(store.StageTranslate, t.Problems)
	add(store.StageRules, in.rules.Problems)
	if in.keys != nil {
		add(store.StageRules, in.keys.Problems)
	}
	add(store.StageRules, g.Problems)
	add(store.StageRules, p.routes.Problems)
	add(store.StageConfig, l.problems)
	return out
}

// govern compiles the rules, and what lifts, unless it would do so of the same as before.
func (a *assembler) govern(in input, t *translate.Translation) {
	lift, ports := liftOptions(t, in.spec, in.token), governance.Ports{TCP: t.TCPPorts, HTTP: t.HTTPPorts}
	options := governanceOptions(in.spec)
	options.Keys, options.Lift = in.keys, &lift
	g, l := &a.governed, &a.lifted
	kept := l.options != nil && reflect.DeepEqual(*l.options, lift)
	told := g.told
	if !kept {
		told = lift.Told()
	}
	same := g.spec == in.spec && g.version == in.version && g.keys == in.keys && reflect.DeepEqual(g.ports, ports)
	if !same || !kept && (!slices.Equal(l.options.Ports, lift.Ports) || !reflect.DeepEqual(g.told, told)) {
		out := governance.Compile(in.rules.Items, ports, options)
		*g = governed{spec: in.spec, version: in.version, keys: in.keys, ports: ports, told: told, out: &out}
		kept = false // what lifts has the configuration in it
	}
	if !kept {
		l.options = &lift
		l.set, l.problems = l.lifter.Lift(g.out, lift, options)
	}
}

// hosts says how services appear in the mesh. Those of one service stand side by side.
func hosts(services []*translate.Service) map[model.Key][]store.Host {
	out := make(map[model.Key][]store.Host, len(services))
	all := make([]store.Host, len(services))
	for i, svc := range services {
		all[i] = store.Host{Protocol: svc.Protocol, Host: svc.Host, Port: svc.Port, Carried: svc.Carried, LeftOut: svc.LeftOut}
		if svc.Address.IsValid() {
			all[i].Address = svc.Address.String()
		}
	}
	for from := 0; from < len(services); {
		to := from + 1
		for to < len(services) && services[to].Key == services[from].Key {
			to++
		}
		of := all[from:to:to]
		slices.SortStableFunc(of, func(a, b store.Host) int { return cmp.Compare(len(a.Host), len(b.Host)) }) // the service's own is the shortest
		out[services[from].Key] = of
		from = to
	}
	return out
}

// memo remembers what was made of things the last time, and of nothing else. A thing must be immutable.
type memo[K comparable, V any] struct{ last, next map[K]V }

// of returns what was made of k, or makes it.
func (m *memo[K, V]) of(k K, make func() V) V {
	v, ok := m.last[k]
	if !ok {
		v = make()
	}
	m.next[k] = v
	return v
}

// begin begins a round, in which all that is to be remembered is asked for.
func (m *memo[K, V]) begin(size int) { m.last, m.next = m.next, make(map[K]V, size) }

func translateOptions(m *config.Mesh) translate.Options {
	o := translate.Options{
		Namespace: m.Namespace, ExportTo: m.ExportTo, Naming: translate.Naming{Suffix: m.HostSuffix}, VirtualAddresses: m.Virtual(),
		EndpointsOnly: m.Addressing == config.AddressingEndpoints, Lift: liftSelectors(&m.Lift), TrustDomain: m.TrustDomain,
	}
	for _, x := range m.Identities {
		o.Identities = append(o.Identities, translate.Identity(x))
	}
	return o
}

func governanceOptions(spec *config.Spec) governance.Options {
	f := &spec.Filter
	defaults, _ := f.PluginDefaults() // valid, or the configuration would not be
	if defaults.HTTP.Suffix == "" && spec.Mesh.HostSuffix != translate.DefaultSuffix {
		defaults.HTTP.Suffix = spec.Mesh.HostSuffix
	}
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
