package store

import (
	"slices"
	"testing"

	"github.com/isthmus-mesh/isthmus/adapters/model"
)

func TestLiftAt(t *testing.T) {
	for _, c := range []struct {
		mode    string
		callers map[string]string
		want    string
	}{
		{"lift", nil, "lift"},
		{"dialled", nil, "dialled"},
		{"lift", map[string]string{"web": "passthrough"}, "passthrough"},
		{"passthrough", map[string]string{"web": "lift"}, "passthrough"},
		{"lift", map[string]string{"*": "dialled"}, "dialled"},
		{"lift", map[string]string{"web": "lift", "*": "passthrough"}, "lift"},
	} {
		if got := (&Lift{Mode: c.mode, Callers: c.callers}).At("web"); got != c.want {
			t.Errorf("%s at %v is %s, want %s", c.mode, c.callers, got, c.want)
		}
	}
}

// A service that is lifted in the same way is so in the generations of before, too; another mode begins anew, and what an earlier state
// holds stays as it is.
func TestFollowLifts(t *testing.T) {
	key := model.Key{Interface: "a"}
	state := func(mode, generation string) *State {
		return &State{Generation: generation, Lifts: map[model.Key]*Lift{key: {Mode: mode, Lower: "caller", Callers: map[string]string{"web": "lift"}}}}
	}
	before := &State{}
	for _, step := range []struct {
		mode, generation string
		want             []string
	}{
		{"lift", "g1", []string{"g1"}}, {"lift", "g1", []string{"g1"}}, {"lift", "g2", []string{"g1", "g2"}}, {"dialled", "g3", []string{"g3"}},
		{"dialled", "", []string{"g3"}}, {"lift", "g4", []string{"g4"}},
	} {
		s := state(step.mode, step.generation)
		s.Follow(before)
		if got := s.Lifts[key].Generations; !slices.Equal(got, step.want) {
			t.Errorf("%s in %q: %q, want %q", step.mode, step.generation, got, step.want)
		}
		before = s
	}
	first := state("lift", "g1")
	first.Follow(&State{})
	for _, g := range []string{"g2", "g3"} { // two that follow the same one
		s := state("lift", g)
		s.Follow(first)
		if got := s.Lifts[key].Generations; !slices.Equal(got, []string{"g1", g}) {
			t.Errorf("after g1 and %s: %q", g, got)
		}
	}
	if got := first.Lifts[key].Generations; !slices.Equal(got, []string{"g1"}) {
		t.Errorf("the first has become %q", got)
	}
}
