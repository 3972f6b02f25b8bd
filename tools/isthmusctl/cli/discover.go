package cli

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/builtin"
	"github.com/isthmus-mesh/isthmus/adapters/model"
)

// discover reads the registries with the Manager and the adapters that mcp-server runs, until each has said everything
// or within has passed. The snapshot is what came of it; its Sources tell which registries could not be heard.
func discover(ctx context.Context, registries []adapters.Registry, within time.Duration) (*model.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	m := adapters.NewManager(adapters.ManagerOptions{Kinds: builtin.Kinds, Log: slog.New(slog.DiscardHandler)})
	if err := m.Set(ctx, registries); err != nil {
		return nil, err
	}
	run, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- m.Run(run) }()
	var latest *model.Snapshot
	for s := range m.Subscribe(run) {
		latest = s
		if s.Complete {
			break
		}
	}
	if latest == nil {
		latest = &model.Snapshot{}
	}
	if !latest.Complete { // nothing was frozen since the last word; the states of the sources are fresher
		frozen := *latest
		frozen.Sources = m.Sources()
		latest = &frozen
	}
	stop()
	if err := <-done; err != nil {
		return nil, err
	}
	return latest, nil
}

// while shows on a terminal's standard error that something takes time, until done is called.
func (s *Streams) while(text string) (done func()) {
	if !s.Progress {
		return func() {}
	}
	fmt.Fprintf(s.Err, "%s …", text)
	return func() { fmt.Fprint(s.Err, "\r\x1b[K") }
}

// stateCell shows a source's state.
func stateCell(state model.State) cell {
	switch state {
	case model.StateSynced:
		return coloured(string(state), colourGreen)
	case model.StateStale:
		return coloured(string(state), colourYellow)
	}
	return coloured(string(state), colourRed)
}

// severityCell shows a problem's severity.
func severityCell(severity model.Severity) cell {
	if severity == model.SeverityError {
		return coloured(string(severity), colourRed)
	}
	return coloured(string(severity), colourYellow)
}

// problemTable lists problems, the worse ones first.
func problemTable(problems []model.Problem) *table {
	problems = slices.Clone(problems)
	rank := func(p model.Problem) int {
		if p.Severity == model.SeverityError {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(problems, func(a, b model.Problem) int {
		return cmp.Or(rank(a)-rank(b), cmp.Compare(a.Registry, b.Registry), cmp.Compare(a.Place, b.Place))
	})
	t := &table{head: []string{"SEVERITY", "REGISTRY", "CODE", "PLACE", "MESSAGE"}, empty: "no problems"}
	for _, p := range problems {
		t.add(severityCell(p.Severity), text(p.Registry), text(p.Code), text(p.Place), text(p.Message))
	}
	return t
}

// hasErrors tells whether a problem is of SeverityError.
func hasErrors(problems []model.Problem) bool {
	return slices.ContainsFunc(problems, func(p model.Problem) bool { return p.Severity == model.SeverityError })
}

// serviceTable lists services.
func serviceTable(services []model.Service) *table {
	t := &table{head: []string{"SERVICE", "PROTOCOLS", "PROVIDERS", "CONSUMERS", "REGISTRIES"}, empty: "no services"}
	for i := range services {
		s := &services[i]
		var protocols, registries []string
		for _, e := range s.Endpoints {
			protocols = append(protocols, string(e.Protocol))
			for _, o := range e.Origins {
				registries = append(registries, o.Registry)
			}
		}
		for _, c := range s.Consumers {
			for _, o := range c.Origins {
				registries = append(registries, o.Registry)
			}
		}
		t.add(text(s.Key.String()), text(list(protocols)), number(len(s.Endpoints)), number(len(s.Consumers)), text(list(registries)))
	}
	return t
}

// list joins the distinct values, sorted.
func list(values []string) string {
	slices.Sort(values)
	out := ""
	for _, v := range slices.Compact(values) {
		if out != "" {
			out += ","
		}
		out += v
	}
	return out
}
