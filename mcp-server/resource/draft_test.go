package resource

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// A Draft makes the Sets that NewSet makes of the same resources, whatever came and went before and whenever they are asked for.
func TestDraftIsNewSet(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var d Draft
	have := map[ID]Resource{}
	var before Set
	for range 300 {
		for range r.IntN(6) {
			one := entry(fmt.Sprint("r", r.IntN(40)), fmt.Sprint("host", r.IntN(3)))
			one.Type = []Type{TypeServiceEntry, TypeWorkloadEntry}[r.IntN(2)]
			if r.IntN(2) == 0 {
				d.Put(one)
				have[one.ID()] = one
			} else {
				d.Remove(one.ID())
				delete(have, one.ID())
			}
		}
		freeze := d.Freeze()
		want := mustSet(t, slices.Collect(maps.Values(have))...)
		if r.IntN(3) == 0 {
			continue // a Set that nobody asks for
		}
		got, err := freeze()
		if err != nil {
			t.Fatal(err)
		}
		if again, _ := freeze(); !got.Equal(want) || !again.Equal(want) || got.Len() != want.Len() || !got.Diff(want).Empty() {
			t.Fatalf("got %d resources, version %q, want %d, %q: %+v", got.Len(), got.Version(), want.Len(), want.Version(), got.Diff(want))
		}
		for e := range got.All() {
			if old, ok := before.Get(e.ID()); ok && old != e && old.Body == have[e.ID()].Body {
				t.Fatalf("%s was encoded again", e.ID())
			}
		}
		before = got
	}
}

func TestDraftSharesWhatStays(t *testing.T) {
	var d Draft
	d.Put(entry("a", "a.x"))
	d.Put(entry("b", "b.x"))
	workload := entry("w", "w.x")
	workload.Type = TypeWorkloadEntry
	d.Put(workload)
	one, err := d.Freeze()()
	if err != nil {
		t.Fatal(err)
	}
	d.Put(entry("b", "other.x"))
	two, err := d.Freeze()()
	if err != nil {
		t.Fatal(err)
	}
	if one.OfType(TypeServiceEntry)[0] != two.OfType(TypeServiceEntry)[0] || &one.OfType(TypeWorkloadEntry)[0] != &two.OfType(TypeWorkloadEntry)[0] {
		t.Error("what stays is not shared")
	}
	if got := one.Diff(two).Changed; len(got) != 1 || got[0].Name != "b" {
		t.Errorf("changed: %v", got)
	}
	for _, name := range []string{"a", "b"} {
		d.Remove(ID{TypeServiceEntry, "n", name})
	}
	d.Remove(workload.ID())
	if none, err := d.Freeze()(); err != nil || !none.Equal(Set{}) || len(d.chapters) != 0 {
		t.Errorf("left over: %v, %v, %v", none, err, d.chapters)
	}
}

func TestDraftRefuses(t *testing.T) {
	var d Draft
	d.Put(entry("a", "\xff"))
	if _, err := d.Freeze()(); err == nil || !strings.Contains(err.Error(), "marshal") {
		t.Errorf("got %v", err)
	}
}
