package cli

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/model"
)

// discover reads the registries with the Manager that mcp-server runs, until each has said everything or within has passed. What
// an earlier run saved in stateDir holds where a registry cannot be heard, and is not waited on for those in saved; the Manager writes
// there too, so it must be a copy. The snapshot is what came of it: its Sources tell which registries could not be heard.
func discover(ctx context.Context, kinds adapters.Kinds, registries []adapters.Registry, stateDir string, saved map[string]bool, within time.Duration) (*model.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	m := adapters.NewManager(adapters.ManagerOptions{Kinds: kinds, StateDir: stateDir, Log: slog.New(slog.DiscardHandler)})
	if err := m.Set(ctx, registries); err != nil {
		return nil, err
	}
	run, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- m.Run(run) }()
	latest := &model.Snapshot{}
	for s := range m.Subscribe(run) {
		latest = s
		if settled(s, saved) {
			break
		}
	}
	frozen := *latest
	frozen.Sources = m.Sources() // fresher, where nothing was frozen since the last word
	stop()
	if err := <-done; err != nil {
		return nil, err
	}
	return &frozen, nil
}

// settled tells whether every registry has been heard, but for those whose saved word is enough; or that a saved word cannot be
// read, which no waiting mends.
func settled(s *model.Snapshot, saved map[string]bool) bool {
	for _, src := range s.Sources {
		if src.State == model.StateConnecting && saved[src.Name] {
			return true
		}
		if src.State != model.StateSynced && !saved[src.Name] {
			return false
		}
	}
	return s.Complete
}

// while shows on a terminal's standard error that something takes time, until done is called.
func (s *Streams) while(text string) (done func()) {
	if !s.Progress {
		return func() {}
	}
	fmt.Fprintf(s.Err, "%s …", text)
	return func() { fmt.Fprint(s.Err, "\r\x1b[K") }
}
