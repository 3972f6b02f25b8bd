package console

import (
	"fmt"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/store"
	"github.com/isthmus-mesh/isthmus/mcp-server/telemetry"
)

// unread are the faults of filters that mean that somebody's calls are not governed, by the filter's word for them.
var unread = map[string]struct{ code, message string }{
	"unknown_serialization":  {"Unreadable", "%.0f requests of %s are in a serialization that the filter cannot read: no rule that asks for names holds for them, and where calls are lifted they go to whom their caller has dialled"},
	"malformed":              {"Unreadable", "%.0f requests of %s could not be read: no rule that asks for names holds for them, and where calls are lifted they go to whom their caller has dialled"},
	"too_deep":               {"Unreadable", "%.0f requests of %s are nested too deeply to be read: no rule that asks for names holds for them, and where calls are lifted they go to whom their caller has dialled"},
	"framing_lost":           {"Unreadable", "on %.0f connections of %s the filter lost its place, so that the rest of them passed unread, or they were closed where calls are lifted"},
	"unlifted":               {"NotLifted", "%.0f connections to ports on which calls are lifted speak none of the protocols that can be, and no HTTP: Envoy cannot pass them on there%s"},
	telemetry.FaultEncrypted: {"Encrypted", "%.0f connections are encrypted by the application itself, so they pass: no rule is enforced on them, and none of their calls is lifted%s"},
}

// faults are the Problems that sidecars have with their traffic.
func (s *Server) faults(state *store.State) []store.Problem {
	report := s.report()
	apps, urls := s.applications(state), map[string]string{}
	for _, t := range report.Targets {
		urls[t.Name] = t.URL
	}
	var out []store.Problem
	for _, f := range report.Faults {
		what, ok := unread[f.Reason]
		if !ok {
			continue
		}
		place := "sidecar " + f.Target
		if app := apps.of(urls[f.Target]); app != "" {
			place += " of " + app
		}
		if f.Direction != "" {
			place += ", as " + f.Direction
		}
		out = append(out, store.Problem{Stage: store.StageSidecar, Problem: model.Problem{
			Severity: model.SeverityWarning, Place: place, Code: what.code, Message: fmt.Sprintf(what.message, f.Total, f.System)}})
	}
	return out
}

// report is the traffic of the last seconds, nothing where nobody looks at it.
func (s *Server) report() telemetry.Report {
	if s.o.Traffic == nil {
		return telemetry.Report{}
	}
	return s.o.Traffic()
}
