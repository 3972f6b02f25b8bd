package console

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
	"github.com/isthmus-mesh/isthmus/mcp-server/store"
	"github.com/isthmus-mesh/isthmus/mcp-server/telemetry"
)

// sidecars are the targets of a report by the host that they are on.
func sidecars(report *telemetry.Report) map[string][]*telemetry.Status {
	out := make(map[string][]*telemetry.Status, len(report.Targets))
	for i := range report.Targets {
		if u, err := url.Parse(report.Targets[i].URL); err == nil {
			out[u.Hostname()] = append(out[u.Hostname()], &report.Targets[i])
		}
	}
	return out
}

// lift is how far the calls of a service are lifted at those who are registered as its consumers; nil where they cannot be.
func lift(svc *model.Service, state *store.State, sidecars map[string][]*telemetry.Status) *api.Lift {
	l := state.Lifts[svc.Key]
	if l == nil {
		return nil
	}
	out := &api.Lift{Mode: l.Mode, Lower: l.Lower, Callers: l.Callers, Sidecars: []api.LiftSidecar{}}
	consumers := map[string]string{}
	for _, c := range svc.Consumers {
		consumers[c.Address] = cmp.Or(consumers[c.Address], c.Application)
	}
	for address, app := range consumers {
		for _, target := range sidecars[address] {
			state, since := holds(l.Generations, target)
			sidecar := api.LiftSidecar{Mode: l.At(app), RuleSidecar: api.RuleSidecar{Name: target.Name, Application: app, State: state, Since: since, Generation: generationOf(target)}}
			if state == api.SidecarUnreachable {
				sidecar.Error = target.Error
			}
			out.Of++
			if state == api.SidecarEnforced {
				out.Enforced++
				if sidecar.Mode == store.LiftModes[0] {
					out.Lifted++
				}
				if since.After(out.Since) {
					out.Since = since
				}
			}
			out.Sidecars = append(out.Sidecars, sidecar)
		}
	}
	slices.SortFunc(out.Sidecars, func(a, b api.LiftSidecar) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// routed says what a RouteRule became, and which sidecars that is in force in, as far as what they ask our endpoint discovery for says
// so. asked is what Options.Subsets says.
func routed(rule *store.Rule, asked map[string]map[string][]string) (hosts []api.RoutedHost) {
	for _, r := range rule.Routes {
		h := api.RoutedHost{Host: r.Host, VirtualService: r.VirtualService, DestinationRule: r.DestinationRule, Dialled: r.Dialled}
		others := map[string]bool{}
		for _, subsets := range asked[r.Host] {
			h.Of++
			all := true
			for _, want := range r.Subsets {
				all = all && slices.Contains(subsets, want)
			}
			if all {
				h.Enforced++
			}
			for _, have := range subsets {
				if have != "" && !slices.Contains(r.Subsets, have) {
					others[have] = true
				}
			}
		}
		if len(r.Subsets) == 0 {
			h.Of, h.Enforced = 0, 0 // nothing that they ask for would tell
		}
		h.Others = slices.Sorted(maps.Keys(others))
		hosts = append(hosts, h)
	}
	return hosts
}

// effectiveRoute is effective for a RouteRule, which istiod brings into force and no filter.
func (s *Server) effectiveRoute(rule *store.Rule) api.Effective {
	e := api.Effective{State: api.EffectiveServed, Totals: map[string]float64{}, Rates: map[string]float64{}}
	if !rule.Enabled {
		e.State = api.EffectiveDisabled
		return e
	}
	if len(rule.Routes) == 0 {
		e.State = api.EffectiveNowhere
		return e
	}
	e.Routes = routed(rule, s.asked())
	for _, h := range e.Routes {
		e.Of += h.Of
		e.Enforced += h.Enforced
	}
	if e.Of > 0 {
		e.State = progress(e.Enforced, e.Of)
	}
	return e
}

func (s *Server) asked() map[string]map[string][]string {
	if s.o.Subsets == nil {
		return nil
	}
	return s.o.Subsets()
}

// conflicts are the Problems of RouteRules for hosts of which somebody else has subsets, too.
func (s *Server) conflicts(state *store.State) []store.Problem {
	var asked map[string]map[string][]string
	var out []store.Problem
	for i := range state.Rules {
		rule := &state.Rules[i]
		if !rule.Enabled || len(rule.Routes) == 0 {
			continue
		}
		if asked == nil {
			asked = s.asked()
		}
		for _, h := range routed(rule, asked) {
			if len(h.Others) == 0 {
				continue
			}
			out = append(out, store.Problem{Stage: store.StageSidecar, Problem: model.Problem{
				Severity: model.SeverityWarning, Place: rulePlace(rule), Code: "OtherRoutes",
				Message: fmt.Sprintf("%s: sidecars also know the subsets %s of %s, which no RouteRule made: somebody has a DestinationRule for it, and a VirtualService of theirs, if there is one, goes before %s",
					governance.ID{Kind: rule.Kind, Namespace: rule.Namespace, Name: rule.Name}, strings.Join(h.Others, ", "), h.Host, h.VirtualService)}})
		}
	}
	return out
}
