package store

import (
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
