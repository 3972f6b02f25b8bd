package resource

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

func entry(name, host string) Resource {
	return Resource{Type: TypeServiceEntry, Namespace: "n", Name: name, Body: &networking.ServiceEntry{Hosts: []string{host}}}
}

func mustSet(t *testing.T, rs ...Resource) Set {
	t.Helper()
	s, err := NewSet(rs)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSetIsSortedAndComparedByContent(t *testing.T) {
	plugin := Resource{Type: TypeEnvoyFilter, Namespace: "n", Name: "z", Body: &networking.EnvoyFilter{}}
	one := mustSet(t, entry("b", "b.x"), plugin, entry("a", "a.x"))
	two := mustSet(t, entry("a", "a.x"), entry("b", "b.x"), plugin)
	if !one.Equal(two) || one.Version() != two.Version() || one.Version() == "" {
		t.Errorf("the same content in another order differs: %s, %s", one.Version(), two.Version())
	}
	var names []string
	for e := range one.All() {
		names = append(names, e.ID().String())
	}
	if !slices.IsSorted(names) || len(names) != 3 {
		t.Errorf("not sorted: %v", names)
	}
	if got := one.Types(); !slices.Equal(got, []Type{TypeServiceEntry, TypeEnvoyFilter}) {
		t.Errorf("types %v", got)
	}
	if got := one.OfType(TypeServiceEntry); len(got) != 2 || got[0].Name != "a" || got[1].Name != "b" {
		t.Errorf("of type: %v", got)
	}
	if got := one.OfType("none"); len(got) != 0 {
		t.Errorf("of no type: %v", got)
	}
	if e, ok := one.Get(ID{TypeServiceEntry, "n", "b"}); !ok || e.Body.(*networking.ServiceEntry).Hosts[0] != "b.x" {
		t.Errorf("get: %v %v", e, ok)
	}
	if _, ok := one.Get(ID{TypeServiceEntry, "n", "c"}); ok {
		t.Error("found what is not there")
	}
}

func TestVersionFollowsContent(t *testing.T) {
	base := entry("a", "a.x")
	base.Labels = map[string]string{"k": "v"}
	base.Annotations = map[string]string{"k": "v"}
	changed := map[string]func(*Resource){
		"body":                    func(r *Resource) { r.Body = &networking.ServiceEntry{Hosts: []string{"b.x"}} },
		"a label":                 func(r *Resource) { r.Labels = map[string]string{"k": "w"} },
		"a label more":            func(r *Resource) { r.Labels = map[string]string{"k": "v", "l": ""} },
		"an annotation":           func(r *Resource) { r.Annotations = map[string]string{"l": "v"} },
		"labels and annotations":  func(r *Resource) { r.Labels, r.Annotations = nil, map[string]string{"k": "v", "kk": "vv"} },
		"another kind, same wire": func(r *Resource) { r.Body = &networking.WorkloadSelector{} },
	}
	versions := map[string]string{first(mustSet(t, base)).Version: "nothing"}
	for name, change := range changed {
		r := base
		change(&r)
		v := first(mustSet(t, r)).Version
		if other, ok := versions[v]; ok {
			t.Errorf("changing %s and changing %s give the same version %s", name, other, v)
		}
		versions[v] = name
	}
	same := base
	same.Body = proto.Clone(base.Body)
	if got := first(mustSet(t, same)).Version; versions[got] != "nothing" {
		t.Errorf("equal content has another version: %s", got)
	}
}

func TestSetRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		rs   []Resource
		want string
	}{
		"twice":     {[]Resource{entry("a", "x"), entry("a", "y")}, "is there twice"},
		"no name":   {[]Resource{entry("", "x")}, "are needed"},
		"no body":   {[]Resource{{Type: TypeServiceEntry, Namespace: "n", Name: "a"}}, "are needed"},
		"not UTF-8": {[]Resource{entry("a", "\xff")}, "marshal"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := NewSet(c.rs); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	if _, err := Union(mustSet(t, entry("a", "x")), mustSet(t, entry("a", "x"))); err == nil {
		t.Error("a union of overlapping sets is no error")
	}
}

func TestDiff(t *testing.T) {
	empty, old, next := Set{}, mustSet(t, entry("a", "1"), entry("b", "1"), entry("c", "1")), mustSet(t, entry("b", "2"), entry("c", "1"), entry("d", "1"))
	id := func(n string) []ID { return []ID{{TypeServiceEntry, "n", n}} }
	c := old.Diff(next)
	if !slices.Equal(c.Removed, id("a")) || !slices.Equal(c.Changed, id("b")) || !slices.Equal(c.Added, id("d")) || c.Empty() {
		t.Errorf("got %+v", c)
	}
	if c := old.Diff(old); !c.Empty() {
		t.Errorf("to itself: %+v", c)
	}
	if c := empty.Diff(old); len(c.Added) != 3 || len(c.Removed) != 0 {
		t.Errorf("from nothing: %+v", c)
	}
	if c := old.Diff(empty); len(c.Removed) != 3 || len(c.Added) != 0 {
		t.Errorf("to nothing: %+v", c)
	}
}

func TestTypeVersion(t *testing.T) {
	a, b := mustSet(t, entry("a", "1")), mustSet(t, entry("a", "2"))
	if a.TypeVersion(TypeServiceEntry) == b.TypeVersion(TypeServiceEntry) {
		t.Error("other content, same version")
	}
	if v := a.TypeVersion(TypeEnvoyFilter); v == "" || v != b.TypeVersion(TypeEnvoyFilter) || v != (Set{}).TypeVersion(TypeServiceEntry) {
		t.Error("the version of nothing is not one")
	}
}

func TestObject(t *testing.T) {
	r := entry("a", "a.x")
	r.Labels = map[string]string{"k": "v"}
	e, _ := mustSet(t, r).Get(ID{TypeServiceEntry, "n", "a"})
	got, err := e.Object()
	if err != nil {
		t.Fatal(err)
	}
	if got["apiVersion"] != "networking.istio.io/v1" || got["kind"] != "ServiceEntry" || got["metadata"].(map[string]any)["name"] != "a" {
		t.Errorf("got %v", got)
	}
	if hosts := got["spec"].(map[string]any)["hosts"].([]any); len(hosts) != 1 || hosts[0] != "a.x" {
		t.Errorf("spec %v", got["spec"])
	}
}

func first(s Set) *Entry {
	for e := range s.All() {
		return e
	}
	return nil
}
