package xds

import (
	"testing"
)

// A host's groups are known once each sidecar that calls the host has been told of all of them; others have no part in it.
func TestKnow(t *testing.T) {
	s, address := start(t, Options{}, nil)
	s.Apply(NewAssignments([]Service{service("a", 4, 0), service("b", 4, 0)}, nil))
	subset := func(n string, port uint16) string { return ClusterName{Host: "a", Subset: n, Port: port}.String() }
	if !s.Know("a", []string{"v1", "v2"}) {
		t.Error("nobody calls it, and somebody does not know it")
	}
	one, two, other := dial(t, address, dialOptions{}), dial(t, address, dialOptions{}), dial(t, address, dialOptions{})
	one.subscribe(nil, name("a"))
	two.subscribe(nil, name("a"))
	other.subscribe(nil, name("b"))
	one.wait("the subscriptions", func() bool { return len(s.Clients()) == 3 && !s.Know("a", []string{"v1", "v2"}) })
	for _, e := range []*sidecar{one, two} {
		e.subscribe(nil, subset("v1", 20880))
		if s.Know("a", []string{"v1", "v2"}) {
			t.Error("it takes one of two for all")
		}
		e.subscribe(nil, subset("v2", 20880))
	}
	one.wait("both to be told", func() bool { return s.Know("a", []string{"v1", "v2"}) })
	// Groups of a host that is gone are known to nobody.
	s.Apply(NewAssignments([]Service{service("b", 4, 0)}, nil))
	one.wait("its end", func() bool { return !s.Know("a", []string{"v1", "v2"}) })
}
