package app

import (
	"slices"
	"strings"
	"testing"
	"time"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
)

// TestPassage: groups come before the routes to them, and go after them, whatever becomes of a rule in which order.
func TestPassage(t *testing.T) {
	services := []governance.Routed{
		{Key: model.Key{Framework: "dubbo", Interface: "demo.A"}, Protocol: "dubbo", Host: "a.dubbo.isthmus", Name: "a.dubbo", Lifted: true, Endpoints: []map[string]string{{"version": "v1"}, {"version": "v2"}, {"version": "v3"}}},
		{Key: model.Key{Framework: "spring", Interface: "b"}, Protocol: "http", Host: "b.spring.isthmus", Name: "b.spring", HTTP: true, Endpoints: []map[string]string{{"version": "v1"}}},
	}
	// routes are those of rules that send all calls to versions.
	routes := func(of map[string][]string) governance.Routes {
		var text strings.Builder
		for name, versions := range of {
			text.WriteString("---\napiVersion: governance.isthmus.io/v1alpha1\nkind: RouteRule\nmetadata: {name: " + strings.ToLower(strings.ReplaceAll(name, ".", "-")) + "}\nspec: {split: false, service: {interface: " + name + "}, routes: [{to: [")
			for i, v := range versions {
				percent := "1"
				if i == 0 {
					percent = map[int]string{1: "100", 2: "99"}[len(versions)]
				}
				text.WriteString("{labels: {version: " + v + "}, percent: " + percent + "}, ")
			}
			text.WriteString("]}]}\n")
		}
		rules := governance.Rules{}.Update([]governance.File{{Name: "rules.yaml", Text: []byte(text.String())}})
		if len(rules.Problems) > 0 {
			t.Fatal(rules.Problems)
		}
		return governance.CompileRoutes(rules.Items, services, governance.RouteOptions{Namespace: "default"})
	}
	known := map[string]bool{}
	p := &passage{known: func(_ string, subsets []string) bool {
		return !slices.ContainsFunc(subsets, func(s string) bool { return !known[s] })
	}}
	now := time.Unix(1_700_000_000, 0)
	var again time.Duration
	var set resource.Set
	// step says where calls of the lifted service go, and which groups there are.
	step := func(r governance.Routes) string {
		set, again = p.step(&r, now)
		out := "nowhere "
		if e, ok := set.Get(resource.ID{Type: resource.TypeVirtualService, Namespace: "default", Name: "route-a.dubbo"}); ok {
			out = ""
			for _, d := range e.Body.(*networking.VirtualService).Http[0].Route {
				out += d.Destination.Subset + " "
			}
		}
		if e, ok := set.Get(resource.ID{Type: resource.TypeDestinationRule, Namespace: "default", Name: "route-a.dubbo"}); ok {
			out += "of"
			for _, s := range e.Body.(*networking.DestinationRule).Subsets {
				out += " " + s.Name
			}
		}
		return strings.TrimSpace(out)
	}
	is := func(what, got, want string, wait time.Duration) {
		t.Helper()
		if got != want || again != wait {
			t.Errorf("%s: %q, and again after %s; want %q and %s", what, got, again, want, wait)
		}
	}
	none := routes(nil)
	is("nothing", step(none), "nowhere", 0)

	first := routes(map[string][]string{"demo.A": {"v1", "v2"}, "b": {"v1"}})
	is("a new rule", step(first), "nowhere of v1 v2", glance)
	if _, ok := set.Get(resource.ID{Type: resource.TypeVirtualService, Namespace: "default", Name: "route-b.spring"}); !ok {
		t.Error("the route of a service that is not lifted waits, too")
	}
	known["v1"] = true
	is("a sidecar that knows one of two", step(first), "nowhere of v1 v2", glance)
	known["v2"] = true
	is("both are known", step(first), "v1 v2 of v1 v2", 0)

	second := routes(map[string][]string{"demo.A": {"v2", "v3"}})
	is("other groups", step(second), "v1 v2 of v1 v2 v3", glance)
	now = now.Add(time.Second)
	known["v3"] = true
	is("are known", step(second), "v2 v3 of v1 v2 v3", departure)
	now = now.Add(departure - time.Second)
	is("the old one is still there", step(second), "v2 v3 of v1 v2 v3", time.Second)
	is("it is wanted again", step(first), "v1 v2 of v1 v2 v3", departure)
	now = now.Add(departure)
	is("the other one is gone", step(first), "v1 v2 of v1 v2", 0)

	is("the end of the rule", step(none), "nowhere of v1 v2", departure)
	now = now.Add(departure)
	is("and of its groups", step(none), "nowhere", 0)
	if len(p.hosts) > 0 {
		t.Errorf("%d hosts are remembered", len(p.hosts))
	}

	// A sidecar that never asks does not stop everything.
	clear(known)
	is("a new rule", step(first), "nowhere of v1 v2", glance)
	now = now.Add(patience)
	is("whose groups nobody asks for", step(first), "v1 v2 of v1 v2", 0)

	// What istiod has been told before a restart, sidecars know.
	p = &passage{known: p.known}
	is("the first word", step(first), "v1 v2 of v1 v2", 0)
}
