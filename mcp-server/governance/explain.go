package governance

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// Explanation says what a rule does, without anybody calling.
type Explanation struct {
	Does      string          `json:"does"`                // in one sentence
	Calls     []string        `json:"calls"`               // which calls it is for: all of these must hold; none is every call
	Plugin    json.RawMessage `json:"plugin"`              // what the filter is told
	Relations []Relation      `json:"relations,omitempty"` // to other rules
}

// Relation is what another rule means for a rule.
type Relation struct {
	Kind      string       `json:"kind"` // of the other rule
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	Effect    RelationKind `json:"effect"`
	Message   string       `json:"message"`
}

// RelationKind says what one rule does to another.
type RelationKind string

// What rules do to each other.
const (
	RelationShadowedBy RelationKind = "shadowedBy" // the rule never comes to act because of the other
	RelationShadows    RelationKind = "shadows"    // the other way about
	RelationSharesWith RelationKind = "sharesWith" // some calls concern both
)

// kindOrder is the order in which the kinds decide on a call, as the filter has it.
var kindOrder = []string{"AccessRule", "FaultRule", "DegradeRule", "CircuitBreakerRule", "ThrottleRule"}

// maxRelations bounds the relations of one rule; those that matter most come first.
const maxRelations = 100

// Explain says what a rule does, beside all others.
func Explain(r *Rule, all []Rule) Explanation {
	e := Explanation{Does: does(r), Calls: calls(r.Spec.head())}
	if a, ok := r.Spec.(*AccessSpec); ok && a.Token != nil {
		e.Calls = append(e.Calls, a.Token.shown())
	}
	var p plugin.Plugin
	r.Spec.addTo(&p, r.Namespace+"/"+r.Name)
	for _, list := range []any{p.Access, p.FaultInjection, p.Degrade, p.CircuitBreaker, p.Throttle} {
		if b, err := json.Marshal(list); err == nil && string(b) != "null" {
			e.Plugin = b[1 : len(b)-1]
		}
	}
	for i := range all {
		o := &all[i]
		if o.ID == r.ID || !o.Enabled() || !r.Enabled() {
			continue
		}
		effect, message := relate(r, o)
		if effect == "" {
			continue
		}
		e.Relations = append(e.Relations, Relation{Kind: o.Kind, Namespace: o.Namespace, Name: o.Name, Effect: effect, Message: message})
	}
	slices.SortStableFunc(e.Relations, func(a, b Relation) int {
		order := []RelationKind{RelationShadowedBy, RelationShadows, RelationSharesWith}
		return cmp.Compare(slices.Index(order, a.Effect), slices.Index(order, b.Effect))
	})
	e.Relations = e.Relations[:min(len(e.Relations), maxRelations)]
	return e
}

// does says what a rule does in one sentence.
func does(r *Rule) string {
	var s string
	switch x := r.Spec.(type) {
	case *ThrottleSpec:
		if x.Type == plugin.ThrottleConcurrency {
			s = fmt.Sprintf("lets %s be under way at the same time, and rejects more as throttled", counted(*x.Threshold))
			break
		}
		s = fmt.Sprintf("lets %s through in %s", counted(*x.Threshold), cmp.Or(x.Interval, Duration(1e9)))
		if h := x.HotValues; h != nil {
			s += " for each " + strings.TrimSpace(string(h.Subject)+" "+string(h.Key))
		}
		if b := x.burst(); b > 0 {
			s += fmt.Sprintf(", %d at once after a pause", b)
		}
		if q := x.MaxQueueingTime; q != 0 {
			s += fmt.Sprintf(", lets others wait for their turn for up to %s", q)
		}
		if w := x.WarmUp; w != nil {
			s += fmt.Sprintf(", a %s of that when cold, warm after %s", ordinal(uint32(cmp.Or(w.ColdFactor, plugin.DefaultColdFactor))), w.Period)
		}
		if g := x.Global; g != nil {
			s += fmt.Sprintf(", in all sidecars together as %s:%d counts", g.Host, g.Port)
		}
		s += ", and rejects more as throttled"
	case *CircuitBreakerSpec:
		window, least := cmp.Or(x.StatInterval, Duration(1e9)), cmp.Or(x.MinRequestAmount, plugin.DefaultMinRequestAmount)
		what := map[plugin.Strategy]string{
			plugin.StrategyErrorRatio:          fmt.Sprintf("%s or more of the calls fail", x.Threshold),
			plugin.StrategyErrorCount:          fmt.Sprintf("%s or more calls fail", x.Threshold),
			plugin.StrategyAverageResponseTime: fmt.Sprintf("calls take %s or more on average", x.Threshold),
			plugin.StrategySlowCallRatio:       fmt.Sprintf("%s or more of the calls take %s or more", x.Threshold, x.MaxAllowedRt),
		}[x.Strategy]
		whose, to := "all calls", ""
		if x.PerEndpoint != nil && bool(*x.PerEndpoint) {
			whose, to = "the calls to an endpoint", " to it"
		}
		s = fmt.Sprintf("rejects %s as unavailable for %s once, of at least %s%s within %s, %s; then %d must go well", whose, cmp.Or(x.RetryTimeout, Duration(5e9)), counted(least), to, window, what,
			cmp.Or(x.ProbeNum, plugin.DefaultProbeNum))
	case *AccessSpec:
		s = map[plugin.AccessAction]string{
			plugin.AccessAllow:       "allows the calls that match, and denies the others of its target that no other rule allows",
			plugin.AccessDeny:        "denies the calls that match",
			plugin.AccessDefaultDeny: "denies the calls of its target that no other rule allows",
		}[x.Action]
	case *FaultSpec:
		part := "all"
		if x.Ratio != 0 && x.Ratio != million {
			part = fmt.Sprintf("%g %%", float64(x.Ratio)/(million/100))
		}
		s = fmt.Sprintf("makes %s of the calls fail as %s", part, cmp.Or(x.Abort.Code, plugin.CodeAborted))
		if x.Abort.HTTPStatus != 0 {
			s += fmt.Sprintf(", those of HTTP with status %d", x.Abort.HTTPStatus)
		}
		if x.Delay != nil {
			s = fmt.Sprintf("holds %s of the calls back for %s", part, x.Delay.FixedDelay)
		}
	case *RouteSpec:
		s = x.does()
	case *DegradeSpec:
		s = "answers the calls in the provider's place"
		if x.When == plugin.WhenRejected {
			s = "answers the calls that a circuit breaker or a throttle rejects"
		}
		if x.Reply == nil {
			s += ", by rejecting them as unavailable"
		}
	}
	h := r.Spec.head()
	if h.Mode == string(plugin.ModeObserve) {
		s = "only counts: it would be one that " + s
	}
	if !h.enabled() {
		s = "is switched off: it would be one that " + s
	}
	return s
}

func counted(n Count) string {
	if n == 1 {
		return "1 call"
	}
	return fmt.Sprintf("%d calls", n)
}

func ordinal(n uint32) string {
	switch n {
	case 2:
		return "half"
	case 3:
		return "third"
	}
	return fmt.Sprintf("%dth", n)
}

// calls says which calls a rule is for.
func calls(h *Head) []string {
	out := []string{}
	t := &h.Target
	for _, m := range []struct {
		name string
		Match
	}{{"in sidecars of application", t.Application}, {"service", t.Service}, {"version", t.Version}, {"group", t.Group}, {"method", t.Method}, {"caller", t.Caller}} {
		if !m.IsZero() {
			out = append(out, m.name+" "+m.String())
		}
	}
	switch h.Direction {
	case "client":
		out = append(out, "seen at the caller")
	case "server":
		out = append(out, "seen at the provider")
	}
	for _, c := range h.Match {
		out = append(out, c.String())
	}
	return out
}

// String returns the condition as people read it.
func (c *Condition) String() string {
	s := strings.TrimSpace(string(c.Subject) + " " + string(c.Key))
	values := strings.Join(texts(c.Values), ", ")
	switch c.Operator {
	case plugin.OperatorExists:
		return s + " exists"
	case plugin.OperatorEquals:
		return s + " is " + values
	case plugin.OperatorNotEquals:
		return s + " is not " + values
	case plugin.OperatorIn:
		return s + " is one of " + values
	case plugin.OperatorNotIn:
		return s + " is none of " + values
	case plugin.OperatorPrefix:
		return s + " begins with " + values
	}
	return s + " matches /" + values + "/"
}

// relate says what o means for r; both are enabled. An effect of "" is nothing.
func relate(r, o *Rule) (RelationKind, string) {
	a, b := r.Spec.head(), o.Spec.head()
	if disjoint(a, b) {
		return "", ""
	}
	if why := shadow(o, r); why != "" {
		return RelationShadowedBy, "never comes to act: " + why
	}
	if why := shadow(r, o); why != "" {
		return RelationShadows, "the other never comes to act: " + why
	}
	if r.Kind != o.Kind {
		return "", ""
	}
	switch r.Kind {
	case "ThrottleRule":
		return RelationSharesWith, "a call that both match needs a token of both: the smaller limit holds"
	case "CircuitBreakerRule":
		return RelationSharesWith, "a call that both match is rejected while either circuit is open"
	case "AccessRule":
		x, y := r.Spec.(*AccessSpec).Action, o.Spec.(*AccessSpec).Action
		switch {
		case x == plugin.AccessDeny && y == plugin.AccessDeny:
			return "", ""
		case x == plugin.AccessDeny || y == plugin.AccessDeny:
			return RelationSharesWith, "what a deny rule matches is denied, whatever is allowed"
		}
		return RelationSharesWith, "a call that is in both targets needs to be allowed by one of the rules"
	case "FaultRule":
		return RelationSharesWith, first(r, o) + " is tried, and only that"
	}
	return RelationSharesWith, first(r, o) + " answers"
}

// first names the one of two rules of a kind that comes first.
func first(r, o *Rule) string {
	if before(r, o) {
		return "of a call that both match this one"
	}
	return "of a call that both match the other one"
}

// before tells whether r comes before o among rules of their kind.
func before(r, o *Rule) bool {
	a, b := r.Spec.head().Priority, o.Spec.head().Priority
	if a != b {
		return a > b
	}
	return r.ID.compare(o.ID) < 0
}

// shadow tells why o keeps r from ever acting, "" where it does not. Only what is certain is said.
func shadow(o, r *Rule) string {
	a, b := o.Spec.head(), r.Spec.head()
	if a.Mode == string(plugin.ModeObserve) || !covers(a, b) {
		return ""
	}
	if _, ok := r.Spec.(*AccessSpec); ok && len(a.Match) > 0 {
		return "" // r is about its whole target
	}
	earlier := slices.Index(kindOrder, o.Kind) < slices.Index(kindOrder, r.Kind)
	switch x := o.Spec.(type) {
	case *AccessSpec:
		if y, ok := r.Spec.(*AccessSpec); ok && y.Action == plugin.AccessDeny {
			return ""
		}
		if x.Action == plugin.AccessDeny {
			return "all its calls are denied before"
		}
	case *FaultSpec:
		if _, ok := r.Spec.(*FaultSpec); ok && before(o, r) {
			return "of several faults only the first one is tried"
		}
		if earlier && x.Delay == nil && (x.Ratio == 0 || x.Ratio == million) {
			return "all its calls are made to fail before"
		}
	case *DegradeSpec:
		y, same := r.Spec.(*DegradeSpec)
		always := x.When != plugin.WhenRejected
		switch {
		case same && always && y.When == plugin.WhenRejected:
			return "all its calls are answered before"
		case same && always == (y.When != plugin.WhenRejected) && before(o, r):
			return "of several replies the first one answers"
		case !same && earlier && always:
			return "all its calls are answered before"
		}
	case *ThrottleSpec:
		y, ok := r.Spec.(*ThrottleSpec)
		if !ok {
			return ""
		}
		if *x.Threshold == 0 && *y.Threshold > 0 {
			return "no call is let through"
		}
		// The other admits no more than this one does, even at once. It is shared by more calls, but for one that is as wide. What one sidecar admits says
		// nothing of a limit for all of them.
		plain := func(s *ThrottleSpec) bool { return s.WarmUp == nil && s.HotValues == nil && s.MaxQueueingTime == 0 }
		if x.Type == plugin.ThrottleConcurrency || y.Type == plugin.ThrottleConcurrency {
			if x.Type == y.Type && *x.Threshold < *y.Threshold {
				return "the other limit is smaller"
			}
			return ""
		}
		i, j := uint64(cmp.Or(x.Interval, Duration(1e9)).millis()), uint64(cmp.Or(y.Interval, Duration(1e9)).millis())
		bx, by := cmp.Or(x.burst(), *(*uint32)(x.Threshold)), cmp.Or(y.burst(), *(*uint32)(y.Threshold))
		if plain(x) && plain(y) && (x.Global != nil || y.Global == nil) && uint64(*x.Threshold)*j < uint64(*y.Threshold)*i && bx <= by {
			return "the other limit is smaller"
		}
	}
	return ""
}

// covers tells whether every call of b is one of a. Where it cannot be known it is not so.
func covers(a, b *Head) bool {
	direction := func(h *Head) string { return cmp.Or(h.Direction, "both") }
	if direction(a) != "both" && direction(a) != direction(b) {
		return false
	}
	s, t := &a.Target, &b.Target
	for _, m := range [][2]Match{{s.Application, t.Application}, {s.Service, t.Service}, {s.Version, t.Version}, {s.Group, t.Group}, {s.Method, t.Method}, {s.Caller, t.Caller}} {
		if !m[0].covers(m[1]) {
			return false
		}
	}
	for i := range a.Match {
		if !slices.ContainsFunc(b.Match, func(c Condition) bool { return a.Match[i].equal(&c) }) {
			return false
		}
	}
	return true
}

func (c *Condition) equal(o *Condition) bool {
	if c.Subject != o.Subject || c.Key != o.Key || c.Operator != o.Operator || len(c.Values) != len(o.Values) {
		return false
	}
	for _, v := range c.Values {
		if !slices.Contains(o.Values, v) {
			return false
		}
	}
	return true
}

// disjoint tells whether no call is one of both. Where it cannot be known it is not so.
func disjoint(a, b *Head) bool {
	if a.Direction == "client" && b.Direction == "server" || a.Direction == "server" && b.Direction == "client" {
		return true
	}
	s, t := &a.Target, &b.Target
	for _, m := range [][2]Match{{s.Application, t.Application}, {s.Service, t.Service}, {s.Version, t.Version}, {s.Group, t.Group}, {s.Method, t.Method}, {s.Caller, t.Caller}} {
		if m[0].disjoint(m[1]) || m[1].disjoint(m[0]) {
			return true
		}
	}
	x, y := a.protocols(), b.protocols()
	return x != nil && y != nil && !slices.ContainsFunc(x, func(p Text) bool { return slices.Contains(y, p) })
}

// protocols returns the only ones whose calls a rule is for, nil where there is no such condition.
func (h *Head) protocols() []Text {
	for i := range h.Match {
		if c := &h.Match[i]; c.Subject == plugin.SubjectProtocol && (c.Operator == plugin.OperatorEquals || c.Operator == plugin.OperatorIn) {
			return c.Values
		}
	}
	return nil
}

// list returns the only values that m matches, nil where there are others.
func (m Match) list() []string {
	if m.Exact != "" {
		return []string{m.Exact}
	}
	return m.In
}

// matches tells whether m matches s.
func (m Match) matches(s string) bool {
	p := plugin.Match(m)
	compiled := p.Strings()
	return compiled.Matches([]byte(s))
}

func (m Match) all(list []string) bool {
	return !slices.ContainsFunc(list, func(s string) bool { return !m.matches(s) })
}

func (m Match) covers(o Match) bool {
	if m.IsZero() {
		return true
	}
	if list := o.list(); list != nil {
		return m.all(list)
	}
	switch {
	case m.Prefix != "":
		return o.Prefix != "" && strings.HasPrefix(o.Prefix, m.Prefix)
	case m.Regex != "":
		return m.Regex == o.Regex
	case len(m.NotIn) > 0 && len(o.NotIn) > 0:
		return !slices.ContainsFunc(m.NotIn, func(s string) bool { return !slices.Contains(o.NotIn, s) })
	case len(m.NotIn) > 0 && (o.Prefix != "" || o.Regex != ""):
		return !slices.ContainsFunc(m.NotIn, o.matches)
	}
	return false
}

func (m Match) disjoint(o Match) bool {
	if list := o.list(); list != nil {
		return !slices.ContainsFunc(list, m.matches)
	}
	return m.Prefix != "" && o.Prefix != "" && !strings.HasPrefix(m.Prefix, o.Prefix) && !strings.HasPrefix(o.Prefix, m.Prefix)
}
