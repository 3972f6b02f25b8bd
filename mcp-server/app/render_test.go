package app

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/adapters/builtin"
	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/config"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
	"github.com/isthmus-mesh/isthmus/mcp-server/mcp"
	"github.com/isthmus-mesh/isthmus/mcp-server/xds"
)

func specOf(t testing.TB, mesh string) *config.Spec {
	t.Helper()
	cfg, err := config.Parse([]byte("apiVersion: isthmus.io/v1alpha1\nkind: MCPServer\nspec:\n  mesh: "+mesh+"\n  filter: {url: \"file:///isthmus.wasm\"}\n"), builtin.Kinds)
	if err != nil {
		t.Fatal(err)
	}
	return &cfg.Spec
}

// someRules returns rules about the services of someServices.
func someRules(r *rand.Rand) governance.Rules {
	var text strings.Builder
	document := func(format string, args ...any) {
		fmt.Fprintf(&text, "---\napiVersion: governance.isthmus.io/v1alpha1\n"+format, args...)
	}
	for i := range r.IntN(3) {
		document("kind: ThrottleRule\nmetadata: {name: t%d}\nspec: {threshold: %d}\n", i, 1+r.IntN(3))
	}
	for i := range r.IntN(4) {
		document("kind: RouteRule\nmetadata: {name: r%d}\nspec:\n  priority: %d\n  degrade: %v\n  service: {interface: demo.S%d%s}\n  routes:\n  - to: [{labels: {version: v%d}}]\n",
			i, r.IntN(3), r.IntN(2) == 0, r.IntN(4), []string{"", ", application: shop"}[r.IntN(2)], 1+r.IntN(2))
	}
	return governance.Rules{}.Update([]governance.File{{Name: "rules.yaml", Text: []byte(text.String())}})
}

func someService(r *rand.Rand) model.Service {
	s := model.Service{Key: model.Key{Framework: []string{"dubbo", "dubbo", "dubbo", "dubbo", "sofa"}[r.IntN(5)], Interface: fmt.Sprint("demo.S", r.IntN(8))}}
	for range r.IntN(4) {
		s.Endpoints = append(s.Endpoints, model.Endpoint{
			Address: fmt.Sprintf("10.0.0.%d", r.IntN(6)), Port: uint16(20880 + r.IntN(2)), Protocol: []model.Protocol{"dubbo", "dubbo", "dubbo", "dubbo", "dubbo", "dubbo", "dubbo", "tri"}[r.IntN(8)],
			Application: []string{"shop", "stall"}[r.IntN(2)], Disabled: r.IntN(9) == 0, Labels: map[string]string{"version": fmt.Sprint("v", 1+r.IntN(2))},
		})
	}
	return s
}

// names are those that a sidecar may ask for.
func names(hosts map[model.Key][]string) []string {
	var out []string
	for _, list := range hosts {
		for _, h := range list {
			for _, subset := range []string{"", "v1", "v2", "v1-or-all", "v2-or-all"} {
				out = append(out, xds.ClusterName{Host: h, Subset: subset, Port: 20880}.String())
			}
		}
	}
	return out
}

// Whatever came before, a planner and an assembler make of their input what Render makes of it.
func TestRenderingIsRender(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	specs := []*config.Spec{specOf(t, "{lift: {services: [{framework: dubbo}]}}"), specOf(t, "{lift: {services: [{interface: demo.S1}, {interface: demo.S2}]}}"), specOf(t, "{}"),
		specOf(t, "{identities: [{application: shop}, {application: stall}], lift: {metrics: true, exceptionsFail: true, services: [{interface: demo.S1, mode: dialled}, {interface: demo.S2, mode: passthrough}, {framework: dubbo, lower: provider-http, failover: true}], callers: [{application: shop, mode: passthrough}]}}")}
	sequences := 60
	if testing.Short() {
		sequences = 10
	}
	lifted, subsets := 0, 0
	for sequence := range sequences {
		planner, assembler, server := newPlanner(unmeasured), newAssembler(unmeasured), xds.New(xds.Options{})
		in := input{spec: specs[0], rules: someRules(r)}
		var services []model.Service
		hosts := map[model.Key][]string{}
		for step := range 40 {
			switch r.IntN(12) {
			case 0:
				in.rules, in.version = someRules(r), in.version+1
			case 1:
				in.spec = specs[r.IntN(len(specs))]
			default:
				services = slices.Clone(services)
				fresh := someService(r)
				if i := slices.IndexFunc(services, func(s model.Service) bool { return s.Key == fresh.Key }); i < 0 {
					services = append(services, fresh)
				} else if r.IntN(3) == 0 {
					services = slices.Delete(services, i, i+1)
				} else {
					services[i] = fresh
				}
			}
			in.snapshot = &model.Snapshot{Services: services, Complete: true}
			p := planner.plan(in)
			server.Apply(p.endpoints)
			if r.IntN(3) == 0 {
				continue // a plan that is taken over by the next one
			}
			got, want := assembler.assemble(in, p), Render(in.snapshot, in.rules, in.spec)
			if !got.Set.Equal(want.Set) || got.Set.Len() != want.Set.Len() {
				t.Fatalf("sequence %d, step %d: another set: %+v", sequence, step, want.Set.Diff(got.Set))
			}
			for e := range want.Set.All() {
				if have, ok := got.Set.Get(e.ID()); !ok || !bytes.Equal(have.Wire, e.Wire) {
					t.Fatalf("sequence %d, step %d: %s is another", sequence, step, e.ID())
				}
				read := e.Body.ProtoReflect().New().Interface()
				if err := proto.Unmarshal(e.Wire, read); err != nil || !proto.Equal(read, e.Body) {
					t.Fatalf("sequence %d, step %d: the encoding of %s is of something else: %v", sequence, step, e.ID(), err)
				}
			}
			if got.Generation != want.Generation || !reflect.DeepEqual(got.Hosts, want.Hosts) || !reflect.DeepEqual(got.Lifts, want.Lifts) || !reflect.DeepEqual(got.Routes, want.Routes) || !slices.Equal(got.Problems, want.Problems) {
				t.Fatalf("sequence %d, step %d: got %+v, want %+v", sequence, step, got, want)
			}
			for key, list := range want.Hosts {
				for _, h := range list {
					if !slices.Contains(hosts[key], h.Host) {
						hosts[key] = append(hosts[key], h.Host)
					}
				}
			}
			for _, name := range names(hosts) {
				have, expect := got.Endpoints.Lookup(name, model.Locality{}), want.Endpoints.Lookup(name, model.Locality{})
				if (have == nil) != (expect == nil) || have != nil && !bytes.Equal(have.Any.Value, expect.Any.Value) {
					t.Fatalf("sequence %d, step %d: other endpoints of %s", sequence, step, name)
				}
			}
			lifted += got.Endpoints.Services()
			subsets += len(p.routes.Subsets)
		}
	}
	if lifted == 0 || subsets == 0 {
		t.Errorf("%d services were lifted, %d had groups", lifted, subsets)
	}
}

// Somebody who asks for the hosts of a service finds its own first.
func TestHostsOfAService(t *testing.T) {
	s := model.Service{Key: model.Key{Framework: "dubbo", Interface: "demo.A"}}
	for _, p := range []model.Protocol{"bolt", "dubbo", "tri"} {
		s.Endpoints = append(s.Endpoints, model.Endpoint{Address: "10.0.0.1", Port: 20880, Protocol: p})
	}
	r := Render(&model.Snapshot{Services: []model.Service{s}}, governance.Rules{}, specOf(t, "{}"))
	if list := r.Hosts[s.Key]; len(list) != 3 || list[0].Host != "demo.a.dubbo.isthmus" || len(slices.Collect(maps.Keys(r.Hosts))) != 1 {
		t.Errorf("got %+v", r.Hosts)
	}
}

// thousand are n services of 10 endpoints, all on different machines.
func thousand(n int) []model.Service {
	services := make([]model.Service, n)
	for i := range services {
		services[i].Key = model.Key{Framework: "dubbo", Interface: fmt.Sprintf("demo.Service%05d", i)}
		for j := range 10 {
			services[i].Endpoints = append(services[i].Endpoints, model.Endpoint{Address: fmt.Sprintf("10.%d.%d.%d", i/250, i%250, j+1), Port: 20880, Protocol: model.ProtocolDubbo, Application: "shop"})
		}
	}
	return services
}

var meshes = map[string]string{"lifted": "{lift: {services: [{framework: dubbo}]}}", "passed through": "{}"}

// BenchmarkRender renders 1,000 services of 10 endpoints from nothing.
func BenchmarkRender(b *testing.B) {
	for name, mesh := range meshes {
		b.Run(name, func(b *testing.B) {
			spec, s := specOf(b, mesh), &model.Snapshot{Services: thousand(1000)}
			b.ReportAllocs()
			for b.Loop() {
				Render(s, governance.Rules{}, spec)
			}
		})
	}
}

// BenchmarkChange changes one endpoint among 1,000 services of 10. What stands between the snapshot and endpoint discovery is
// endpoints-ns/op, all that stands between it and istiod the whole.
func BenchmarkChange(b *testing.B) {
	for name, mesh := range meshes {
		for what, change := range map[string]func([]model.Service) []model.Service{
			"endpoint": func(s []model.Service) []model.Service {
				s = slices.Clone(s)
				s[500].Endpoints = s[500].Endpoints[:9:9]
				return s
			},
			"service": func(s []model.Service) []model.Service { return slices.Delete(slices.Clone(s), 500, 501) },
		} {
			b.Run(name+"/"+what, func(b *testing.B) {
				services := thousand(1000)
				states := [2]*model.Snapshot{{Services: change(services)}, {Services: services}}
				planner, assembler := newPlanner(unmeasured), newAssembler(unmeasured)
				endpoints, istiod := xds.New(xds.Options{}), mcp.New(mcp.Options{})
				in := input{spec: specOf(b, mesh)}
				var until time.Duration // endpoints are served
				once := func(i int) {
					in.snapshot = states[i%2]
					began := time.Now()
					p := planner.plan(in)
					endpoints.Apply(p.endpoints)
					until += time.Since(began)
					if err := istiod.Apply(b.Context(), assembler.assemble(in, p).Set); err != nil {
						b.Fatal(err)
					}
				}
				once(1)
				until = 0
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					once(i)
				}
				b.ReportMetric(float64(until.Nanoseconds())/float64(b.N), "endpoints-ns/op")
			})
		}
	}
}
