package rollout

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
	"github.com/isthmus-mesh/isthmus/mcp-server/telemetry"
)

// What stands in the way of an action.
var (
	ErrNotFound = errors.New("there is no such rollout")
	ErrActive   = errors.New("a rollout is under way")     // that would be started
	ErrEnded    = errors.New("the rollout is over")        // that would be acted on
	ErrForeign  = errors.New("the rule is somebody's own") // and not a rollout's
)

// IsInvalid tells whether an error says what is wrong with a Spec.
func IsInvalid(err error) bool {
	_, ok := errors.AsType[adapters.Faults](err)
	return ok
}

// Rules is where RouteRules are kept. Its methods may be called from any goroutine.
type Rules interface {
	// RouteRules returns those in force.
	RouteRules() []governance.Rule
	// WriteRule puts text, one document of YAML, in the place of the rule. Before that it calls check with the revision that the rule has, "" where
	// there is none, and returns its error if there is one; nobody else writes in between. When it returns nil the change is in force.
	WriteRule(ctx context.Context, id governance.ID, text []byte, check func(revision string) error) error
}

// Options say what a Controller works on. Rules, Services and Calls are needed; the zero value of all else means its default.
type Options struct {
	Rules    Rules
	Services func() []governance.Routed                  // that routes may be for
	Calls    func() map[telemetry.Subset]telemetry.Calls // that have ended, since the program began
	// Known tells whether all sidecars that call a service know groups of its providers, by their names in Istio; default: they do.
	Known    func(service *governance.RouteService, subsets []string) bool
	Now      func() time.Time      // default time.Now
	Interval time.Duration         // between two looks; default 1 s
	Log      *slog.Logger          // nil means nowhere
	Metrics  prometheus.Registerer // nil means nowhere
}

// Controller takes releases along. What it knows of them is kept with their rules; what it has seen of the step that is under way is not, so
// a step that a restart falls into begins anew, at the weight that it had.
type Controller struct {
	o     Options
	steps *prometheus.CounterVec

	mu      sync.Mutex
	watches map[ID]*watch
}

// watch is what has been seen of a step that is under way.
type watch struct {
	started        time.Time // of the release
	step           int
	since          time.Time
	stable, canary telemetry.Calls // that there were already
	written        string          // the last error of writing
}

// New returns a Controller that does nothing until Run.
func New(o Options) *Controller {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Known == nil {
		o.Known = func(*governance.RouteService, []string) bool { return true }
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Interval = cmp.Or(o.Interval, time.Second)
	c := &Controller{o: o, watches: map[ID]*watch{}}
	c.steps = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "isthmus_rollout_steps_total", Help: "Steps of rollouts that are over, by result."}, []string{"result"})
	if o.Metrics != nil {
		o.Metrics.MustRegister(c.steps, &phases{c})
	}
	return c
}

// Run looks at all releases again and again, until ctx is done. It returns nil.
func (c *Controller) Run(ctx context.Context) error {
	tick := time.NewTicker(c.o.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			c.Look(ctx)
		}
	}
}

// Look looks at all releases once, and does what is to be done.
func (c *Controller) Look(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	here := map[ID]bool{}
	for _, e := range c.entries() {
		here[e.id] = true
		if e.err == nil && e.rec.Status.Phase.Active() && e.rec.ours(&e.rule) {
			c.look(ctx, e)
		} else {
			delete(c.watches, e.id)
		}
	}
	maps.DeleteFunc(c.watches, func(id ID, _ *watch) bool { return !here[id] })
}

// entry is one release as its rule has it.
type entry struct {
	id   ID
	rule governance.Rule
	rec  *record
	err  error
}

// entries returns all releases, sorted.
func (c *Controller) entries() []entry {
	var out []entry
	for _, r := range c.o.Rules.RouteRules() {
		rec, ok, err := parseRecord(&r)
		if ok {
			out = append(out, entry{ID{r.Namespace, strings.TrimPrefix(r.Name, rulePrefix)}, r, rec, err})
		}
	}
	slices.SortFunc(out, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.id.Namespace, b.id.Namespace), cmp.Compare(a.id.Name, b.id.Name))
	})
	return out
}

// find returns the release of that name.
func (c *Controller) find(id ID) (entry, error) {
	for _, e := range c.entries() {
		if e.id == id && e.rule.ID == id.rule() {
			return e, e.err
		}
	}
	return entry{}, fmt.Errorf("%w: %s", ErrNotFound, id)
}

// calls returns the calls to the instances with these labels.
func (c *Controller) calls(s *Spec, labels map[string]string) telemetry.Calls {
	name, out := governance.SubsetName(labels, true), telemetry.Calls{}
	for k, v := range c.o.Calls() {
		if k.Subset == name && k.Service == string(s.Service.Interface) && system(s.Service.Framework, k.System) &&
			(s.Service.Version == "" || k.Version == string(s.Service.Version)) && (s.Service.Group == "" || k.Group == string(s.Service.Group)) {
			out = out.Plus(v)
		}
	}
	return out
}

// system tells whether the calls of a framework's services speak a protocol. Both are the filter's and the registries' own words.
func system(framework governance.Text, protocol string) bool {
	switch framework {
	case "dubbo":
		return protocol == string(model.ProtocolDubbo)
	case "sofa":
		return protocol == string(model.ProtocolBolt)
	}
	return true
}

// instances returns how many instances carry these labels.
func (c *Controller) instances(s *Spec, labels map[string]string) (n int) {
	for _, svc := range c.o.Services() {
		if !s.Service.Names(&svc) {
			continue
		}
		for _, have := range svc.Endpoints {
			if carries(have, labels) {
				n++
			}
		}
	}
	return n
}

// known tells whether all sidecars that call the service know both versions.
func (c *Controller) known(s *Spec) bool {
	return c.o.Known(&s.Service, []string{governance.SubsetName(s.Stable, true), governance.SubsetName(s.Canary, true)})
}

func carries(have, labels map[string]string) bool {
	for k, v := range labels {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// watch returns what has been seen of the step under way; it begins with nothing.
func (c *Controller) watch(e *entry) *watch {
	s := &e.rec.Status
	if w := c.watches[e.id]; w != nil && w.started.Equal(s.Started) && w.step == s.Step {
		return w
	}
	w := &watch{started: s.Started, step: s.Step, since: c.o.Now(), stable: c.calls(&e.rec.Spec, e.rec.Spec.Stable), canary: c.calls(&e.rec.Spec, e.rec.Spec.Canary)}
	c.watches[e.id] = w
	return w
}

// seen is what the calls of the step under way say.
type seen struct {
	stable, canary Figures
	verdict        verdict
	why            string
	instances      int // of the new version
	next           time.Time
}

func (c *Controller) seen(e *entry, w *watch) seen {
	spec, s := &e.rec.Spec, &e.rec.Status
	out := seen{instances: c.instances(spec, spec.Canary)}
	out.stable = figures(c.calls(spec, spec.Stable).Since(w.stable), &spec.Analysis)
	out.canary = figures(c.calls(spec, spec.Canary).Since(w.canary), &spec.Analysis)
	switch {
	case s.Step == stepAnnounced:
		if !c.known(spec) {
			out.why = "waits for the callers' sidecars to know both versions"
		} else {
			out.verdict, out.why = verdictGood, "the callers' sidecars know both versions"
		}
		return out
	case s.Step == stepWaiting:
		if out.instances == 0 {
			out.why = "waits for an instance of the new version"
		} else {
			out.verdict, out.why = verdictGood, "the new version is there"
		}
		return out
	}
	step := spec.Steps[s.Step]
	out.next = w.since.Add(time.Duration(step.Interval))
	out.verdict, out.why = judge(&spec.Analysis, step.Percent, out.canary, out.stable, e.rec.reference())
	if out.verdict != verdictBad && out.instances == 0 {
		out.verdict, out.why = verdictWait, "waits for an instance of the new version: there is none any more"
	}
	return out
}

// look takes one release along.
func (c *Controller) look(ctx context.Context, e entry) {
	w := c.watch(&e)
	x := c.seen(&e, w)
	s := &e.rec.Status
	switch {
	case x.verdict == verdictBad:
		c.end(ctx, &e, w, PhaseFailed, ResultFailed, x, x.why) // or at the next look
	case s.Phase == PhasePaused || x.verdict != verdictGood || c.o.Now().Before(x.next):
	default:
		c.advance(ctx, &e, w, ResultPassed, x)
	}
}

// advance goes on to the next step, or ends well after the last one.
func (c *Controller) advance(ctx context.Context, e *entry, w *watch, result Result, x seen) error {
	if e.rec.Status.Step == len(e.rec.Spec.Steps)-1 {
		return c.end(ctx, e, w, PhaseCompleted, result, x, "")
	}
	c.passed(e, w, result, x, x.why)
	s := &e.rec.Status
	s.Phase, s.Step, s.Message, s.Since = PhaseProgressing, s.Step+1, "", c.o.Now()
	err := c.write(ctx, e)
	if err == nil {
		c.steps.WithLabelValues(string(result)).Inc()
		c.watch(e) // from now on
	}
	return err
}

// end ends a release.
func (c *Controller) end(ctx context.Context, e *entry, w *watch, phase Phase, result Result, x seen, why string) error {
	c.passed(e, w, result, x, x.why)
	s := &e.rec.Status
	s.Phase, s.Message, s.Ended = phase, why, c.o.Now()
	err := c.write(ctx, e)
	if err == nil {
		c.steps.WithLabelValues(string(result)).Inc()
		delete(c.watches, e.id)
	}
	return err
}

// passed notes that the step under way is over.
func (c *Controller) passed(e *entry, w *watch, result Result, x seen, why string) {
	s := &e.rec.Status
	if s.Step < 0 {
		return // there was nothing to be seen
	}
	s.Passed = append(slices.Clone(s.Passed), Passed{Percent: e.rec.Spec.Steps[s.Step].Percent, Result: result, Why: why, Began: w.since, Ended: c.o.Now(),
		Stable: x.stable, Canary: x.canary})
}

// write puts a release into force as it is in e. Its rule must be as it was when e was read.
func (c *Controller) write(ctx context.Context, e *entry) error {
	text, err := e.rec.text(e.id)
	if err == nil {
		err = c.o.Rules.WriteRule(ctx, e.id.rule(), text, func(revision string) error {
			if revision != e.rule.Revision {
				return fmt.Errorf("rollout: %s: its rule has been changed at the same time", e.id)
			}
			return nil
		})
	}
	s := &e.rec.Status
	w := c.watches[e.id]
	if err != nil {
		// It is tried again at the next look: the log is told once.
		if w == nil || w.written != err.Error() {
			c.o.Log.Error("cannot write a rollout", "rollout", e.id.String(), "error", err)
		}
		if w != nil {
			w.written = err.Error()
		}
		return err
	}
	if w != nil {
		w.written = ""
	}
	c.o.Log.Info("rollout", "name", e.id.String(), "phase", string(s.Phase), "step", s.Step+1, "percent", int(e.rec.percent()), "message", s.Message)
	return nil
}

// Start begins a release. An error is adapters.Faults, wraps ErrActive or ErrForeign, or is one of writing.
func (c *Controller) Start(ctx context.Context, id ID, spec Spec) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.check(&spec); err != nil {
		return err
	}
	e := entry{id: id}
	rules := c.o.Rules.RouteRules()
	for _, r := range rules {
		if _, ok := r.Annotations[annotation]; r.ID == id.rule() && !ok {
			return fmt.Errorf("%w: %s is no rollout's", ErrForeign, r.ID)
		}
	}
	for _, r := range rules {
		rec, ok, err := parseRecord(&r)
		switch {
		case ok && err == nil && rec.Status.Phase.Active() && (r.ID == id.rule() || rec.Spec.Service == spec.Service):
			return fmt.Errorf("%w: %s, of %s", ErrActive, ID{r.Namespace, strings.TrimPrefix(r.Name, rulePrefix)}, rec.Spec.Service.Interface)
		case r.ID == id.rule():
			e.rule = r // what it was has ended
		}
	}
	now := c.o.Now()
	e.rec = &record{Spec: spec.withDefaults(), Status: Status{Phase: PhaseProgressing, Step: stepAnnounced, Since: now, Started: now}}
	if c.known(&spec) {
		e.rec.Status.Step = stepWaiting // there was one before
	}
	delete(c.watches, id)
	return c.write(ctx, &e)
}

// check holds a Spec to itself and to the services that there are.
func (c *Controller) check(spec *Spec) error {
	if f := spec.Validate(); len(f) > 0 {
		return f.Under("spec")
	}
	var f adapters.Faults
	found := false
	for _, svc := range c.o.Services() {
		if !spec.Service.Names(&svc) {
			continue
		}
		found = true
		if !svc.Lifted {
			f.Add("spec.service", "%s is not lifted, so its calls cannot be told apart on their way; see spec.mesh.lift", svc.Key)
		}
	}
	if !found {
		f.Add("spec.service", "there is no such service at the moment")
	} else if c.instances(spec, spec.Stable) == 0 {
		f.Add("spec.stable", "no instance carries these labels")
	}
	return f.Err()
}

// Action is what can be done with a release that is under way.
type Action string

// The actions.
const (
	ActionPause       Action = "pause"        // stays at its step until resume; a failure still ends it
	ActionResume      Action = "resume"       // goes on
	ActionPromote     Action = "promote"      // goes to the next step without waiting for this one
	ActionPromoteFull Action = "promote-full" // gives all calls to the new version, and ends
	ActionAbort       Action = "abort"        // gives all calls to the old version, and ends
)

// Actions are all of them.
var Actions = []Action{ActionPause, ActionResume, ActionPromote, ActionPromoteFull, ActionAbort}

// Act does something with a release. An error wraps ErrNotFound or ErrEnded, or is one of writing.
func (c *Controller) Act(ctx context.Context, id ID, action Action) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, err := c.find(id)
	if err != nil {
		return err
	}
	s := &e.rec.Status
	if !s.Phase.Active() {
		return fmt.Errorf("%w: %s is %s", ErrEnded, id, s.Phase)
	}
	w := c.watch(&e)
	x := c.seen(&e, w)
	switch action {
	case ActionPause:
		s.Phase, s.Message = PhasePaused, "somebody has paused it"
		return c.write(ctx, &e)
	case ActionResume:
		s.Phase, s.Message = PhaseProgressing, ""
		return c.write(ctx, &e)
	case ActionPromote:
		return c.advance(ctx, &e, w, ResultPromoted, x)
	case ActionPromoteFull:
		return c.end(ctx, &e, w, PhaseCompleted, ResultPromoted, x, "somebody has promoted it")
	case ActionAbort:
		return c.end(ctx, &e, w, PhaseAborted, ResultAborted, x, "somebody has aborted it")
	}
	return fmt.Errorf("rollout: no action %q", clip(string(action)))
}

// View is one release for those who show it.
type View struct {
	Namespace string           `json:"namespace"`
	Name      string           `json:"name"`
	Phase     Phase            `json:"phase"`
	Message   string           `json:"message"` // what it waits for, or why it is over
	Service   string           `json:"service"` // interface[:version[:group]]
	Rule      string           `json:"rule"`    // namespace/name of its RouteRule
	Step      int              `json:"step"`    // that is under way, from 1; 0 before the first one
	Percent   governance.Count `json:"percent"` // of the calls that the new version gets
	Started   time.Time        `json:"started"`
	Since     time.Time        `json:"since,omitzero"` // when the step began, as far as it is watched
	Next      time.Time        `json:"next,omitzero"`  // when the next step comes, at the earliest
	Ended     time.Time        `json:"ended,omitzero"`
	Time      time.Time        `json:"time"` // of this answer
	Plan      []PlannedStep    `json:"plan"`
	Passed    []Passed         `json:"passed,omitempty"` // steps that are over
	Stable    Version          `json:"stable"`
	Canary    Version          `json:"canary"`
	Spec      json.RawMessage  `json:"spec"`
}

// PlannedStep is one step of the way.
type PlannedStep struct {
	Percent governance.Count `json:"percent"`
	Seconds float64          `json:"seconds"` // that it lasts, at least
}

// Version is one of the two versions.
type Version struct {
	Labels    map[string]string `json:"labels"`
	Instances int               `json:"instances"`
	Figures                     // of the step that is under way
}

// Views returns all releases, sorted by namespace and name.
func (c *Controller) Views() []View {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := []View{}
	for _, e := range c.entries() {
		out = append(out, c.view(&e))
	}
	return out
}

// View returns one release.
func (c *Controller) View(id ID) (View, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.entries() {
		if e.id == id {
			return c.view(&e), nil
		}
	}
	return View{}, fmt.Errorf("%w: %s", ErrNotFound, id)
}

func (c *Controller) view(e *entry) View {
	v := View{Namespace: e.id.Namespace, Name: e.id.Name, Rule: e.rule.Namespace + "/" + e.rule.Name, Time: c.o.Now(), Plan: []PlannedStep{}}
	if e.err != nil {
		v.Phase, v.Message, v.Spec = PhasePaused, e.err.Error(), json.RawMessage("{}")
		return v
	}
	spec, s := &e.rec.Spec, &e.rec.Status
	v.Phase, v.Message, v.Step, v.Percent, v.Started, v.Ended, v.Passed = s.Phase, s.Message, max(s.Step+1, 0), e.rec.percent(), s.Started, s.Ended, s.Passed
	v.Service = strings.TrimRight(strings.Join([]string{string(spec.Service.Interface), string(spec.Service.Version), string(spec.Service.Group)}, ":"), ":")
	for _, step := range spec.Steps {
		v.Plan = append(v.Plan, PlannedStep{step.Percent, time.Duration(step.Interval).Seconds()})
	}
	text, err := json.Marshal(spec)
	if err != nil { // it was read from JSON
		panic("rollout: " + err.Error())
	}
	v.Spec = text
	v.Stable.Labels, v.Stable.Instances = spec.Stable, c.instances(spec, spec.Stable)
	v.Canary.Labels, v.Canary.Instances = spec.Canary, c.instances(spec, spec.Canary)
	switch {
	case !s.Phase.Active():
	case !e.rec.ours(&e.rule):
		v.Message = "stands still: its rule has been changed by somebody else; promote, resume or abort writes it again"
	default:
		w := c.watch(e)
		x := c.seen(e, w)
		v.Since, v.Stable.Figures, v.Canary.Figures = w.since, x.stable, x.canary
		if s.Phase == PhasePaused {
			v.Message += "; " + x.why
			break
		}
		v.Message, v.Next = x.why, x.next
		if w.written != "" {
			v.Message = "the next step cannot be written: " + w.written
		}
	}
	return v
}

// phases shows how many releases are in each phase.
type phases struct{ c *Controller }

var descPhases = prometheus.NewDesc("isthmus_rollouts", "Rollouts, by phase.", []string{"phase"}, nil)

// Describe implements prometheus.Collector.
func (p *phases) Describe(out chan<- *prometheus.Desc) { out <- descPhases }

// Collect implements prometheus.Collector.
func (p *phases) Collect(out chan<- prometheus.Metric) {
	n := map[Phase]int{PhaseProgressing: 0, PhasePaused: 0, PhaseCompleted: 0, PhaseFailed: 0, PhaseAborted: 0}
	p.c.mu.Lock()
	for _, e := range p.c.entries() {
		if e.err == nil {
			n[e.rec.Status.Phase]++
		}
	}
	p.c.mu.Unlock()
	for phase, v := range n {
		out <- prometheus.MustNewConstMetric(descPhases, prometheus.GaugeValue, float64(v), string(phase))
	}
}
