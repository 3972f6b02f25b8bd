package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/mcp-server/store"
)

// lifts tells whether calls of a mode are lifted and routed.
func lifts(mode string) bool { return mode == store.LiftModes[0] }

// liftCell says in a list how far a service is lifted: on how many of its consumers' sidecars, or as what else.
func liftCell(l *api.Lift) cell {
	switch {
	case l == nil:
		return cell{}
	case !lifts(l.Mode):
		return coloured(l.Mode, colourDim)
	}
	colour := colourYellow
	if l.Of > 0 && l.Lifted == l.Of {
		colour = colourGreen
	}
	return coloured(fmt.Sprintf("%d/%d", l.Lifted, l.Of), colour)
}

// liftLine says it in words.
func liftLine(l *api.Lift) string {
	var s strings.Builder
	since, rest := "", ""
	if !l.Since.IsZero() {
		since = ", since " + l.Since.UTC().Format(time.RFC3339)
	}
	switch {
	case lifts(l.Mode):
		fmt.Fprintf(&s, "on %d of %d sidecars of its consumers", l.Lifted, l.Of)
		if n := l.Enforced - l.Lifted; n > 0 {
			rest = fmt.Sprintf("; not on %d, as their modes say", n)
		}
		if n := l.Of - l.Enforced; n > 0 {
			rest += fmt.Sprintf("; %d not yet as they should be", n)
		}
	case l.Mode == store.LiftModes[1]:
		fmt.Fprintf(&s, "as dialled, on %d of %d sidecars of its consumers", l.Enforced, l.Of)
	default:
		fmt.Fprintf(&s, "no: new connections pass, on %d of %d sidecars of its consumers", l.Enforced, l.Of)
	}
	fmt.Fprintf(&s, "%s%s; made RPC again by the %s's sidecar", since, rest, l.Lower)
	return s.String()
}

func liftTable(l *api.Lift) *table {
	t := &table{head: []string{"SIDECAR", "APPLICATION", "MODE", "STATE", "SINCE", "NOTE"}, wrap: true}
	for _, c := range l.Sidecars {
		since := ""
		if !c.Since.IsZero() {
			since = c.Since.UTC().Format(time.RFC3339)
		}
		t.add(text(c.Name), text(c.Application), text(c.Mode), coloured(string(c.State), sidecarColour(c.State)), text(since), text(c.Error))
	}
	return t
}

func sidecarColour(s api.SidecarState) string {
	switch s {
	case api.SidecarEnforced:
		return colourGreen
	case api.SidecarRejected, api.SidecarUnreachable:
		return colourRed
	}
	return colourYellow
}

// routeTable shows what a RouteRule became.
func routeTable(routes []api.RoutedHost) *table {
	t := &table{head: []string{"HOST", "VIRTUALSERVICE", "DESTINATIONRULE", "SIDECARS", "NOTE"}, empty: "it became nothing: see isthmusctl problems --stage rules", wrap: true}
	for _, r := range routes {
		sidecars, note := cell{right: true}, ""
		if r.Of > 0 {
			colour := colourYellow
			if r.Enforced == r.Of {
				colour = colourGreen
			}
			sidecars = cell{text: fmt.Sprintf("%d/%d", r.Enforced, r.Of), colour: colour, right: true}
		}
		if len(r.Others) > 0 {
			note = "somebody else's subsets are there, too: " + strings.Join(slices.Clone(r.Others), ", ")
		}
		services := r.VirtualService
		if r.Dialled != "" {
			services += ", " + r.Dialled
		}
		t.add(text(r.Host), text(services), text(r.DestinationRule), sidecars, text(note))
	}
	return t
}
