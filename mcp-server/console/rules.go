package console

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
	"github.com/isthmus-mesh/isthmus/mcp-server/store"
	"github.com/isthmus-mesh/isthmus/mcp-server/telemetry"
)

// RuleWriter changes the rules where they are kept. It may be called from any goroutine.
type RuleWriter interface {
	// WriteRule puts text, one document of YAML or JSON that has been checked, in the place of the rule; an empty text removes it. Before that it
	// calls check with the revision that the rule has, "" where there is none, and returns its error if there is one; nobody else writes in
	// between. When it returns nil the change is on disk and in the Store. An error that wraps ErrNotWritable says what stands in the way.
	WriteRule(ctx context.Context, id governance.ID, text []byte, check func(revision string) error) error
}

// ErrNotWritable says that rules cannot be written as things are.
var ErrNotWritable = errors.New("rules cannot be written")

// rulePath is where one rule is.
const rulePath = "/api/v1/rules/{kind}/{namespace}/{name}"

// ruleMedia are the types that a rule may be sent as.
var ruleMedia = []string{"application/json", "application/yaml", "application/x-yaml", "text/yaml"}

// maxRuleBytes bounds a rule that is sent to us.
const maxRuleBytes = 1 << 20

func (s *Server) rules(r *http.Request) (any, error) {
	if _, err := parameters(r); err != nil {
		return nil, err
	}
	state, report := s.o.Store.Load(), s.o.Traffic()
	list := api.RuleList{Items: []api.Rule{}, Generation: state.Generation}
	for i := range state.Rules {
		item := s.describe(&state.Rules[i], state, &report)
		item.Effective.Sidecars, item.Effective.States, item.Effective.Routes = nil, nil, nil // with many of each they are for the rule's own page
		list.Items = append(list.Items, item)
	}
	return list, nil
}

func (s *Server) rule(r *http.Request) (any, error) {
	if _, err := parameters(r); err != nil {
		return nil, err
	}
	id := ruleID(r)
	state := s.o.Store.Load()
	for i := range state.Rules {
		rule := &state.Rules[i]
		if (governance.ID{Kind: rule.Kind, Namespace: rule.Namespace, Name: rule.Name}) != id {
			continue
		}
		report := s.o.Traffic()
		out := api.RuleDetail{Rule: s.describe(rule, state, &report)}
		if rule.Explain != nil {
			if err := json.Unmarshal(rule.Explain(), &out.Explanation); err != nil {
				return nil, fmt.Errorf("console: explain %s: %w", id, err)
			}
		}
		return tagged{out, rule.Revision}, nil
	}
	return nil, notFound("there is no %s", id)
}

// tagged is an answer whose ETag begins with a revision, so that what a client has read can be what it wants to change.
type tagged struct {
	answer   any
	revision string
}

func ruleID(r *http.Request) governance.ID {
	return governance.ID{Kind: r.PathValue("kind"), Namespace: r.PathValue("namespace"), Name: r.PathValue("name")}
}

// describe returns a rule with where it is enforced.
func (s *Server) describe(rule *store.Rule, state *store.State, report *telemetry.Report) api.Rule {
	return api.Rule{Kind: rule.Kind, Namespace: rule.Namespace, Name: rule.Name, Place: rulePlace(rule), Enabled: rule.Enabled, Kept: rule.Kept, Revision: rule.Revision,
		Effective: s.effective(rule, state, report), Spec: rule.Spec}
}

// rulePlace is where a rule stands, file:line.
func rulePlace(rule *store.Rule) string {
	if rule.Line == 0 {
		return rule.File
	}
	return rule.File + ":" + strconv.Itoa(rule.Line)
}

func (s *Server) effective(rule *store.Rule, state *store.State, report *telemetry.Report) api.Effective {
	if rule.Kind == routeKind {
		return s.effectiveRoute(rule)
	}
	e := api.Effective{Totals: map[string]float64{}, Rates: map[string]float64{}, Sidecars: []api.RuleSidecar{}}
	counted := map[string]bool{}
	for i := range report.Rules {
		did := &report.Rules[i]
		if did.Name != rule.Namespace+"/"+rule.Name || did.Kind != "" && did.Kind != governance.FilterKind(rule.Kind) {
			continue
		}
		for action, n := range did.Totals {
			e.Totals[action] += n
		}
		for action, n := range did.Rates {
			e.Rates[action] += n
		}
		for _, target := range did.Targets {
			counted[target] = true
		}
		e.States = append(e.States, did.States...)
	}
	apps := s.applications(state)
	for i := range report.Targets {
		target := &report.Targets[i]
		app := apps.of(target.URL)
		if rule.Selects != nil && !rule.Selects(app) && !(app == "" && counted[target.Name]) {
			continue
		}
		sidecar := api.RuleSidecar{Name: target.Name, Application: app, Generation: generationOf(target)}
		sidecar.State, sidecar.Since = holds(rule.Generations, target)
		switch sidecar.State {
		case api.SidecarUnreachable:
			sidecar.Error = target.Error
		case api.SidecarEnforced:
			e.Enforced++
			if sidecar.Since.After(e.Since) {
				e.Since = sidecar.Since
			}
		}
		e.Sidecars = append(e.Sidecars, sidecar)
	}
	e.Of = len(e.Sidecars)
	switch {
	case !rule.Enabled:
		e = api.Effective{State: api.EffectiveDisabled, Totals: e.Totals, Rates: e.Rates}
	case state.Generation == "":
		e.State = api.EffectiveNoFilter
	case e.Of == 0:
		e.State = api.EffectiveNowhere
	default:
		e.State = progress(e.Enforced, e.Of)
	}
	return e
}

// progress is how far a rule is that some sidecars of those that it is for enforce.
func progress(enforced, of int) api.EffectiveState {
	switch enforced {
	case of:
		return api.EffectiveEnforced
	case 0:
		return api.EffectivePending
	}
	return api.EffectivePartial
}

// routeKind is the kind of rule that istiod brings into force, and no filter.
const routeKind = "RouteRule"

// generationOf is the configuration that a sidecar was seen to run last.
func generationOf(target *telemetry.Status) string {
	if n := len(target.Runs); n > 0 {
		return target.Runs[n-1].Generation
	}
	return ""
}

// holds tells how far a sidecar is with something that generations of the configuration hold, and since when it has had it.
func holds(generations []string, target *telemetry.Status) (api.SidecarState, time.Time) {
	since, runs := running(generations, target.Runs)
	switch {
	case !target.Up:
		return api.SidecarUnreachable, time.Time{}
	case runs:
		return api.SidecarEnforced, since
	case generationOf(target) == "":
		return api.SidecarNoFilter, time.Time{}
	case target.Rejected:
		return api.SidecarRejected, time.Time{}
	}
	return api.SidecarPending, time.Time{}
}

// running tells whether the last of the runs is of one of the generations, and since when that has been so. A change of something else leads
// to another generation, which holds this as well.
func running(generations []string, runs []telemetry.Run) (since time.Time, ok bool) {
	for _, run := range slices.Backward(runs) {
		if run.Generation == "" || !slices.Contains(generations, run.Generation) {
			break
		}
		since, ok = run.Since, true
	}
	return since, ok
}

// applications tells by address which application a workload belongs to.
type applications struct {
	snapshot  uint64
	addresses map[string]string
}

// applications returns those of a state. They are found once for each snapshot.
func (s *Server) applications(state *store.State) *applications {
	if a := s.places.Load(); a != nil && a.snapshot == state.Snapshot.Version {
		return a
	}
	votes := map[string]map[string]int{}
	vote := func(address, app string) {
		if app == "" {
			return
		}
		if votes[address] == nil {
			votes[address] = map[string]int{}
		}
		votes[address][app]++
	}
	for i := range state.Snapshot.Services {
		svc := &state.Snapshot.Services[i]
		for j := range svc.Endpoints {
			vote(svc.Endpoints[j].Address, svc.Endpoints[j].Application)
		}
	}
	// Who only calls is an endpoint nowhere.
	provides := len(votes)
	callers := map[string]map[string]int{}
	for i := range state.Snapshot.Services {
		for _, c := range state.Snapshot.Services[i].Consumers {
			if votes[c.Address] != nil || c.Application == "" {
				continue
			}
			if callers[c.Address] == nil {
				callers[c.Address] = map[string]int{}
			}
			callers[c.Address][c.Application]++
		}
	}
	a := &applications{snapshot: state.Snapshot.Version, addresses: make(map[string]string, provides+len(callers))}
	for _, m := range []map[string]map[string]int{votes, callers} {
		for address, apps := range m {
			best := ""
			for app, n := range apps {
				if best == "" || n > apps[best] || n == apps[best] && app < best {
					best = app
				}
			}
			a.addresses[address] = best
		}
	}
	s.places.Store(a)
	return a
}

// of returns the application at the host of a URL, "" where it is not known.
func (a *applications) of(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	return a.addresses[u.Hostname()]
}

// change serves requests to a path that write.
func (s *Server) change(path string, f func(*http.Request) (code int, answer any, err error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		defer func() { s.duration.Observe(time.Since(began).Seconds()) }()
		err := s.authorizeChange(r)
		if err != nil {
			s.fail(w, path, err)
			return
		}
		code, answer, err := f(r)
		if err != nil {
			s.fail(w, path, err)
			return
		}
		h := w.Header()
		headers(h)
		s.requests.WithLabelValues(path, strconv.Itoa(code)).Inc()
		if answer == nil {
			w.WriteHeader(code)
			return
		}
		revision := ""
		if t, ok := answer.(tagged); ok {
			answer, revision = t.answer, t.revision
		}
		body, err := marshal(answer)
		if err != nil {
			s.o.Log.Error("cannot encode an answer", "path", path, "error", err)
		}
		h.Set("ETag", etag(revision, body))
		h.Set("Content-Type", "application/json")
		w.WriteHeader(code)
		w.Write(body)
	}
}

// authorizeChange wants a token, or a client on this machine that is no web page.
func (s *Server) authorizeChange(r *http.Request) error {
	if s.o.Rules == nil {
		return &failure{http.StatusConflict, "NotWritable", "this server does not write rules"}
	}
	if s.o.Token != nil {
		if token, err := s.o.Token(); err == nil && token == "" {
			return &failure{http.StatusUnauthorized, "Unauthorized", "the token of the API's clients is empty; rules are not written without one"}
		}
		return s.authorize(r)
	}
	if !s.o.Local {
		return &failure{http.StatusForbidden, "TokenNeeded", "rules are written only where spec.api.token is configured, or spec.api.address is a loopback address"}
	}
	// A page in a browser on this machine may send what it likes to 127.0.0.1, under a name of its own; a browser says so.
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	if host != "localhost" && (err != nil || !ip.IsLoopback()) || r.Header.Get("Origin") != "" {
		return &failure{http.StatusForbidden, "Forbidden", "without a token rules are written only by programs on this machine that address it as localhost"}
	}
	return nil
}

// precondition returns the check that the headers of a request ask for.
func precondition(r *http.Request) (func(revision string) error, error) {
	match, none := r.Header.Get("If-Match"), r.Header.Get("If-None-Match")
	failed := func(format string, args ...any) error {
		return &failure{http.StatusPreconditionFailed, "Changed", fmt.Sprintf(format, args...)}
	}
	switch {
	case match != "" && none != "":
		return nil, badRequest("give If-Match or If-None-Match, not both")
	case none != "" && none != "*":
		return nil, badRequest(`If-None-Match must be *, which is "only if there is none yet"`)
	case none != "":
		return func(revision string) error {
			if revision != "" {
				return failed("there is such a rule already, of revision %s", revision)
			}
			return nil
		}, nil
	case match == "*":
		return func(revision string) error {
			if revision == "" {
				return failed("there is no such rule")
			}
			return nil
		}, nil
	case match != "":
		want, _, _ := strings.Cut(strings.Trim(match, `"`), ".")
		return func(revision string) error {
			if revision != want {
				return failed("the rule has changed: its revision is %s, not %s", cmp.Or(revision, "none"), want)
			}
			return nil
		}, nil
	}
	return func(string) error { return nil }, nil
}

func (s *Server) putRule(r *http.Request) (int, any, error) {
	if _, err := parameters(r); err != nil {
		return 0, nil, err
	}
	id := ruleID(r)
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || !slices.Contains(ruleMedia, media) {
		return 0, nil, &failure{http.StatusUnsupportedMediaType, "UnsupportedMediaType", "send application/yaml or application/json"}
	}
	check, err := precondition(r)
	if err != nil {
		return 0, nil, err
	}
	text, err := io.ReadAll(io.LimitReader(r.Body, maxRuleBytes+1))
	if err != nil {
		return 0, nil, badRequest("the rule cannot be read: %v", err)
	}
	if len(text) > maxRuleBytes {
		return 0, nil, &failure{http.StatusRequestEntityTooLarge, "TooLarge", fmt.Sprintf("a rule has at most %d bytes", maxRuleBytes)}
	}
	rules, err := governance.Parse(text)
	switch {
	case err != nil:
		return 0, nil, &failure{http.StatusUnprocessableEntity, "InvalidRule", err.Error()}
	case len(rules) != 1:
		return 0, nil, &failure{http.StatusUnprocessableEntity, "InvalidRule", fmt.Sprintf("one rule is expected, there are %d", len(rules))}
	case rules[0].ID != id:
		return 0, nil, badRequest("the rule is %s, the path says %s", rules[0].ID, id)
	}
	code := http.StatusOK
	err = s.write(r, id, text, func(revision string) error {
		if revision == "" {
			code = http.StatusCreated
		}
		return check(revision)
	})
	if err != nil {
		return 0, nil, err
	}
	answer, err := s.rule(r)
	return code, answer, err
}

func (s *Server) deleteRule(r *http.Request) (int, any, error) {
	if _, err := parameters(r); err != nil {
		return 0, nil, err
	}
	check, err := precondition(r)
	if err != nil {
		return 0, nil, err
	}
	id := ruleID(r)
	return http.StatusNoContent, nil, s.write(r, id, nil, func(revision string) error {
		if revision == "" {
			return notFound("there is no %s", id)
		}
		return check(revision)
	})
}

func (s *Server) write(r *http.Request, id governance.ID, text []byte, check func(revision string) error) error {
	err := s.o.Rules.WriteRule(r.Context(), id, text, check)
	if errors.Is(err, ErrNotWritable) {
		err = &failure{http.StatusConflict, "NotWritable", err.Error()}
	}
	if _, ok := errors.AsType[*failure](err); err != nil && !ok {
		s.o.Log.Error("cannot write a rule", "rule", id.String(), "error", err)
	}
	if err == nil {
		s.o.Log.Info("rule written", "rule", id.String(), "removed", text == nil, "remote", r.RemoteAddr)
	}
	return err
}
