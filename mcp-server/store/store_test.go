package store

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/isthmus-mesh/isthmus/adapters/model"
)

func TestStore(t *testing.T) {
	var s Store
	if got := s.Load(); got == nil || got.Snapshot == nil || len(got.Snapshot.Services) != 0 || !got.Served.IsZero() {
		t.Errorf("before anything is known: %+v", got)
	}
	state := &State{Snapshot: &model.Snapshot{Version: 7}}
	s.Publish(state)
	if s.Load() != state {
		t.Error("the latest state is another")
	}
	defer func() {
		if recover() == nil {
			t.Error("a state without a snapshot was taken")
		}
	}()
	s.Publish(&State{})
}

// A rule that stays the same is followed over the generations that hold it; one that changes begins anew.
func TestFollow(t *testing.T) {
	before := &State{}
	rule := func(name, spec string, enabled bool) Rule {
		return Rule{Kind: "K", Name: name, Enabled: enabled, Spec: json.RawMessage(spec)}
	}
	for i, step := range []struct {
		generation string
		rules      []Rule
		want       string
	}{
		{"g1", []Rule{rule("a", "1", true), rule("b", "1", true)}, "a[g1] b[g1] "},
		{"g2", []Rule{rule("a", "1", true), rule("b", "2", true)}, "a[g1 g2] b[g2] "},
		{"g2", []Rule{rule("a", "1", true), rule("b", "2", true)}, "a[g1 g2] b[g2] "},
		{"g3", []Rule{rule("a", "1", false), rule("b", "2", true)}, "a[] b[g2 g3] "},
		{"g2", []Rule{rule("a", "1", true), rule("b", "2", true)}, "a[g2] b[g2 g3 g2] "},
		{"", []Rule{rule("a", "1", true)}, "a[g2] "},
		{"g5", []Rule{rule("b", "2", true)}, "b[g5] "},
	} {
		s := &State{Generation: step.generation, Rules: step.rules}
		s.Follow(before)
		got := ""
		for _, r := range s.Rules {
			got += fmt.Sprintf("%s%v ", r.Name, r.Generations)
		}
		if got != step.want {
			t.Errorf("%d: got %s, want %s", i, got, step.want)
		}
		before = s
	}
	for i := range 3 * maxGenerations {
		s := &State{Generation: fmt.Sprint(i), Rules: []Rule{rule("b", "2", true)}}
		s.Follow(before)
		before = s
	}
	if g := before.Rules[0].Generations; len(g) != maxGenerations || g[maxGenerations-1] != fmt.Sprint(3*maxGenerations-1) {
		t.Errorf("%d generations, the last is %s", len(g), g[len(g)-1])
	}
}
