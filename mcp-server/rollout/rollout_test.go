package rollout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
	"github.com/isthmus-mesh/isthmus/mcp-server/telemetry"
)

// world is what a Controller sees: rules in a file, instances, calls, and a clock.
type world struct {
	t        *testing.T
	text     map[governance.ID][]byte
	services []governance.Routed
	calls    map[telemetry.Subset]telemetry.Calls
	now      time.Time
	unknown  string // a group that sidecars do not know
	refuse   error  // what WriteRule answers
	writes   int
	c        *Controller
}

var greet = ID{"default", "greet"}

const document1 = `apiVersion: governance.isthmus.io/v1alpha1
kind: Rollout
metadata: {name: greet}
spec:
  service: {interface: demo.Greet, framework: dubbo}
  stable: {version: v1}
  canary: {version: v2}
  steps: [{percent: 1}, {percent: 10, interval: 20s}, {percent: 50}, {percent: 100}]
  interval: 10s
  analysis: {minCalls: 20}
`

// document2 has all that an analysis can say.
var document2 = strings.Replace(document1, "{minCalls: 20}", "{minCalls: 7, exceptions: ignore, errorRate: {max: 5%, maxIncrease: 0.01}, p99: {max: 1500ms, maxFactor: 1.5}, average: {max: 1h}}", 1)

func newWorld(t *testing.T) *world {
	w := &world{t: t, text: map[governance.ID][]byte{}, calls: map[telemetry.Subset]telemetry.Calls{}, now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
		services: []governance.Routed{{Key: model.Key{Framework: "dubbo", Interface: "demo.Greet", Version: "1.0.0"}, Protocol: model.ProtocolDubbo, Lifted: true,
			Endpoints: []map[string]string{{"version": "v1"}, {"version": "v1"}, {"version": "v2"}}}}}
	w.restart()
	return w
}

// restart is what a new process has.
func (w *world) restart() {
	w.c = New(Options{Rules: w, Services: func() []governance.Routed { return w.services }, Calls: func() map[telemetry.Subset]telemetry.Calls { return w.calls },
		Known: func(_ *governance.RouteService, subsets []string) bool { return !slices.Contains(subsets, w.unknown) },
		Now:   func() time.Time { return w.now }, Metrics: prometheus.NewRegistry()})
}

// RouteRules implements Rules: what it returns has been through a file.
func (w *world) RouteRules() []governance.Rule {
	var out []governance.Rule
	for id, text := range w.text {
		rules, err := governance.Parse(text)
		if err != nil {
			w.t.Fatalf("%s: %v\n%s", id, err, text)
		}
		out = append(out, rules...)
	}
	return out
}

// WriteRule implements Rules.
func (w *world) WriteRule(_ context.Context, id governance.ID, text []byte, check func(string) error) error {
	revision := ""
	for _, r := range w.RouteRules() {
		if r.ID == id {
			revision = r.Revision
		}
	}
	if err := check(revision); err != nil {
		return err
	}
	if w.refuse != nil {
		return w.refuse
	}
	w.text[id] = text
	w.writes++
	return nil
}

// call lets calls of a version end.
func (w *world) call(version string, ok, failed, exceptions int, millis float64) {
	k := telemetry.Subset{System: "dubbo", Service: "demo.Greet", Version: "1.0.0", Subset: version + "-or-all"}
	n := float64(ok + failed + exceptions)
	add := telemetry.Calls{Outcomes: map[string]float64{"ok": float64(ok), "error": float64(failed), "exception": float64(exceptions)}, Buckets: map[float64]float64{math.Inf(1): n}, Millis: n * millis, Timed: n}
	for _, le := range []float64{1, 10, 100, 1000} {
		add.Buckets[le] = 0
		if millis <= le {
			add.Buckets[le] = n
		}
	}
	w.calls[k] = w.calls[k].Plus(add)
}

func (w *world) start(text string) {
	w.t.Helper()
	id, spec, err := Parse([]byte(text))
	if err == nil {
		err = w.c.Start(w.t.Context(), id, spec)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// pass lets time go by, with looks every second.
func (w *world) pass(d time.Duration) {
	for range d / time.Second {
		w.now = w.now.Add(time.Second)
		w.c.Look(w.t.Context())
	}
}

// is holds a release to its phase and to the weights that its rule really has.
func (w *world) is(phase Phase, percent int, message string) {
	w.t.Helper()
	v, err := w.c.View(greet)
	if err != nil {
		w.t.Fatal(err)
	}
	if v.Phase != phase || int(v.Percent) != percent || !strings.Contains(v.Message, message) {
		w.t.Errorf("it is %s at %d %%: %q; want %s at %d %%: %q", v.Phase, v.Percent, v.Message, phase, percent, message)
	}
	for _, r := range w.RouteRules() {
		route := r.Spec.(*governance.RouteSpec).Routes[0]
		if announced := len(route.Match) > 0; announced != strings.Contains(v.Message, "sidecars") {
			w.t.Errorf("%q, and its rule says %+v", v.Message, route)
		}
		to := r.Spec.(*governance.RouteSpec).Routes[0].To
		if len(to) != 2 || int(*to[0].Percent) != 100-percent || int(*to[1].Percent) != percent || to[0].Labels["version"] != "v1" || to[1].Labels["version"] != "v2" {
			w.t.Errorf("its rule says %+v, want %d %%", to, percent)
		}
	}
}

func TestGood(t *testing.T) {
	w := newWorld(t)
	w.unknown = "v2-or-all"
	w.start(document1)
	w.is(PhaseProgressing, 0, "waits for the callers' sidecars to know both versions")
	w.pass(time.Minute)
	w.is(PhaseProgressing, 0, "waits for the callers' sidecars to know both versions")
	w.unknown = ""
	w.pass(time.Second)
	w.is(PhaseProgressing, 0, "the new version is there")
	w.pass(time.Second)
	w.is(PhaseProgressing, 1, "none of 20 has been seen")
	w.pass(2 * time.Minute)
	w.is(PhaseProgressing, 1, "none of 20 has been seen") // no traffic, no verdict
	w.call("v2", 19, 0, 0, 5)
	w.call("v1", 19, 0, 0, 5)
	w.pass(time.Second)
	w.is(PhaseProgressing, 1, "waits for calls of the new version: 19 of 20")
	w.call("v2", 1, 0, 0, 5)
	w.pass(time.Second)
	w.is(PhaseProgressing, 1, "waits for calls of the old version to compare with: 19 of 20")
	w.call("v1", 1, 0, 0, 5)
	w.pass(time.Second)
	w.is(PhaseProgressing, 10, "none of 20 has been seen") // what the step before has seen counts no more
	for range 19 {
		w.call("v2", 2, 0, 0, 5)
		w.call("v1", 100, 0, 0, 5)
		w.pass(time.Second)
	}
	w.is(PhaseProgressing, 10, "does well") // but its 20 s are not over
	w.pass(time.Second)
	w.is(PhaseProgressing, 50, "")
	w.call("v2", 50, 0, 0, 5)
	w.call("v1", 50, 0, 0, 5)
	w.pass(10 * time.Second)
	w.is(PhaseProgressing, 100, "")
	w.pass(10 * time.Second)
	w.is(PhaseProgressing, 100, "none of 20")
	w.call("v2", 50, 0, 0, 5) // nobody calls the old version now: the step before is what it is compared with
	w.pass(time.Second)
	w.is(PhaseCompleted, 100, "")
	v, _ := w.c.View(greet)
	got := ""
	for _, p := range v.Passed {
		got += fmt.Sprintf("%d %s %.0f/%.0f %s; ", p.Percent, p.Result, p.Canary.Calls, p.Stable.Calls, p.Ended.Sub(p.Began))
	}
	if want := "1 passed 20/20 2m3s; 10 passed 38/1900 20s; 50 passed 50/50 10s; 100 passed 50/0 11s; "; got != want {
		t.Errorf("the steps were\n%s, not\n%s", got, want)
	}
	if w.writes != 7 {
		t.Errorf("%d writes: it writes what has not changed", w.writes)
	}
	w.pass(2 * time.Minute)
	if w.writes != 7 {
		t.Error("a release that is over goes on")
	}
}

// begun is a world in which a release is at its second step.
func begun(t *testing.T, text string) *world {
	w := newWorld(t)
	w.start(text)
	w.pass(2 * time.Second)
	w.call("v2", 20, 0, 0, 5)
	w.call("v1", 1980, 0, 0, 5)
	w.pass(10 * time.Second)
	w.is(PhaseProgressing, 10, "")
	return w
}

// A version that fails loses its calls at once, without anybody's help.
func TestBad(t *testing.T) {
	analysis := func(a string) string { return strings.Replace(document1, "{minCalls: 20}", "{minCalls: 20, "+a+"}", 1) }
	for name, c := range map[string]struct {
		text string
		run  func(w *world)
		want string // "" for no failure
	}{
		"exceptions": {document1, func(w *world) { w.call("v2", 10, 0, 3, 5); w.call("v1", 99, 0, 1, 5) },
			"23.1 % of the new version's calls fail (3 of 13), of the old one's 1 %: an increase of more than 1 %"},
		"an accident": {document1, func(w *world) { w.call("v2", 29, 1, 0, 5); w.call("v1", 100, 0, 0, 5) }, ""},
		"failures, compared with the step before": {document1, func(w *world) { w.call("v2", 0, 2, 0, 5) }, "100 % of the new version's calls fail (2 of 2), of the old one's 0 %"},
		"one failure in many":                     {document1, func(w *world) { w.call("v2", 199, 1, 0, 5); w.call("v1", 100, 0, 0, 5) }, ""},
		"no worse than the old one":               {document1, func(w *world) { w.call("v2", 20, 5, 0, 5); w.call("v1", 200, 50, 0, 5) }, ""},
		"exceptions are no failures":              {analysis("exceptions: ignore"), func(w *world) { w.call("v2", 0, 0, 30, 5) }, ""},
		"an absolute bound":                       {analysis("errorRate: {max: 5%}"), func(w *world) { w.call("v2", 14, 6, 0, 5); w.call("v1", 0, 30, 0, 5) }, "30 % of the new version's calls fail (6 of 20), more than 5 %"},
		"before there are enough":                 {analysis("errorRate: {max: 5%}"), func(w *world) { w.call("v2", 0, 1, 0, 5) }, ""},
		"few calls, and no accident":              {analysis("errorRate: {max: 5%}"), func(w *world) { w.call("v2", 0, 2, 0, 5) }, "100 % of the new version's calls fail (2 of 2), more than 5 %"},
		"p99":                                     {analysis("p99: {max: 50ms}"), func(w *world) { w.call("v2", 30, 0, 0, 90) }, "the new version's calls take 99 ms (p99), more than 50ms"},
		"p99, not enough calls":                   {analysis("p99: {max: 50ms}"), func(w *world) { w.call("v2", 19, 0, 0, 90) }, ""},
		"slower than the old one":                 {analysis("average: {maxFactor: 1.5}"), func(w *world) { w.call("v2", 30, 0, 0, 8); w.call("v1", 30, 0, 0, 5) }, "the new version's calls take 8.0 ms (average), more than 1.5 times the old one's 5.0 ms"},
		"as slow as the old one":                  {analysis("average: {maxFactor: 1.5}"), func(w *world) { w.call("v2", 30, 0, 0, 80); w.call("v1", 30, 0, 0, 80) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := begun(t, c.text)
			c.run(w)
			w.pass(time.Second)
			if c.want == "" {
				w.is(PhaseProgressing, 10, "")
				return
			}
			w.is(PhaseFailed, 0, c.want)
			v, err := w.c.View(greet)
			if err != nil || v.Passed[1].Result != ResultFailed || v.Passed[1].Why != v.Message || v.Ended != w.now {
				t.Errorf("%+v %v", v, err)
			}
			if err := w.c.Act(t.Context(), greet, ActionPromote); !errors.Is(err, ErrEnded) {
				t.Errorf("promote: %v", err)
			}
			w.start(c.text) // and again
			w.is(PhaseProgressing, 0, "")
		})
	}
}

// A release begins before its new version is there, and waits for it; it holds where the new version goes.
func TestNoInstances(t *testing.T) {
	w := newWorld(t)
	all := w.services[0].Endpoints
	w.services[0].Endpoints = all[:2]
	w.start(document1)
	w.pass(time.Minute)
	w.is(PhaseProgressing, 0, "waits for an instance of the new version")
	w.services[0].Endpoints = all
	w.pass(time.Second)
	w.is(PhaseProgressing, 1, "")
	w.services[0].Endpoints = all[:2]
	w.call("v2", 100, 0, 0, 5) // which the old version has answered
	w.call("v1", 100, 0, 0, 5)
	w.pass(time.Minute)
	w.is(PhaseProgressing, 1, "there is none any more")
	w.services[0].Endpoints = all
	w.pass(time.Second)
	w.is(PhaseProgressing, 10, "")
}

func TestActions(t *testing.T) {
	act := func(w *world, a Action) {
		t.Helper()
		if err := w.c.Act(t.Context(), greet, a); err != nil {
			t.Fatal(err)
		}
	}
	w := begun(t, document1)
	act(w, ActionPause)
	w.call("v2", 100, 0, 0, 5)
	w.call("v1", 100, 0, 0, 5)
	w.pass(2 * time.Minute)
	w.is(PhasePaused, 10, "somebody has paused it; does well")
	w.restart()
	w.pass(2 * time.Minute)
	w.is(PhasePaused, 10, "somebody has paused it")
	act(w, ActionResume)
	w.call("v2", 100, 0, 0, 5)
	w.call("v1", 100, 0, 0, 5)
	w.pass(time.Second)
	w.is(PhaseProgressing, 50, "")
	act(w, ActionPromote)
	w.is(PhaseProgressing, 100, "")
	act(w, ActionPromote)
	w.is(PhaseCompleted, 100, "")

	w = begun(t, document1)
	act(w, ActionPromoteFull)
	w.is(PhaseCompleted, 100, "somebody has promoted it")
	w = begun(t, document1)
	act(w, ActionAbort)
	w.is(PhaseAborted, 0, "somebody has aborted it")

	w = begun(t, document1)
	act(w, ActionPause)
	w.call("v2", 0, 50, 0, 5) // it is watched all the same
	w.pass(time.Second)
	w.is(PhaseFailed, 0, "")

	if err := w.c.Act(t.Context(), ID{"default", "other"}, ActionAbort); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

// A restart in the middle of a step begins the step anew, at the weight that it had.
func TestRestart(t *testing.T) {
	w := begun(t, document1)
	w.pass(19 * time.Second)
	w.call("v2", 100, 0, 0, 5)
	w.call("v1", 100, 0, 0, 5)
	w.restart()
	w.calls = map[telemetry.Subset]telemetry.Calls{} // nobody knows them any more
	w.is(PhaseProgressing, 10, "none of 20 has been seen")
	w.pass(19 * time.Second)
	w.is(PhaseProgressing, 10, "none of 20 has been seen")
	w.call("v2", 100, 0, 0, 5) // what the old version did in the step before is known
	w.pass(time.Second)
	w.is(PhaseProgressing, 50, "")
}

// What may be an accident is neither good nor bad before there are more calls.
func TestAccident(t *testing.T) {
	w := begun(t, document1)
	w.call("v2", 29, 1, 0, 5)
	w.call("v1", 100, 0, 0, 5)
	w.pass(time.Minute)
	w.is(PhaseProgressing, 10, "3.3 % of the new version's calls fail (1 of 30), of the old one's 0 %: an increase of more than 1 %; that may be an accident")
	w.call("v2", 70, 0, 0, 5)
	w.pass(time.Second)
	w.is(PhaseProgressing, 50, "")
}

// The tail of the binomial distribution, against sums of its terms, and where those would take too long against the normal one's.
func TestAtLeast(t *testing.T) {
	for _, c := range []struct{ n, k, p, want float64 }{
		{1, 1, 0.01, 0.01}, {2, 2, 0.05, 0.0025}, {20, 6, 0.05, 0.000329}, {13, 3, 0.02, 0.0019684}, {30, 1, 0.01, 0.26030},
		{10, 0, 0.5, 1}, {10, 11, 0.5, 0}, {10, 3, 0, 0}, {10, 3, 1, 1}, {1e6, 10_233, 0.01, 0.00987},
	} {
		if got := atLeast(c.n, c.k, c.p); math.Abs(got-c.want) > 0.02*c.want {
			t.Errorf("%v of %v at %v: %v, not %v", c.k, c.n, c.p, got, c.want)
		}
	}
}

// A version that gets all calls at once has nothing to be compared with: then none of its calls may fail.
func TestNothingToCompareWith(t *testing.T) {
	for name, c := range map[string]struct {
		failed int
		want   Phase
	}{"good": {0, PhaseCompleted}, "bad": {4, PhaseFailed}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.start(strings.Replace(document1, "{percent: 1}, {percent: 10, interval: 20s}, {percent: 50}, ", "", 1))
			w.pass(2 * time.Second)
			w.call("v2", 30, c.failed, 0, 5)
			w.pass(10 * time.Second)
			if v, err := w.c.View(greet); err != nil || v.Phase != c.want {
				t.Errorf("%+v %v", v, err)
			}
		})
	}
}

// A rule that somebody has changed is left alone, and one that cannot be written is written later.
func TestOthers(t *testing.T) {
	w := begun(t, document1)
	id := greet.rule()
	was := string(w.text[id])
	w.text[id] = []byte(strings.NewReplacer("percent: 90", "percent: 70", "percent: 10\n", "percent: 30\n").Replace(was))
	if was == string(w.text[id]) {
		t.Fatalf("the test changes nothing of\n%s", was)
	}
	writes := w.writes
	w.call("v2", 0, 50, 0, 5)
	w.pass(time.Minute)
	if v, err := w.c.View(greet); err != nil || !strings.Contains(v.Message, "changed by somebody else") || w.writes != writes {
		t.Errorf("%+v %v", v, err)
	}
	if err := w.c.Act(t.Context(), greet, ActionResume); err != nil {
		t.Fatal(err)
	}
	w.is(PhaseProgressing, 10, "")

	w.refuse = errors.New("the disk is full")
	w.call("v2", 0, 50, 0, 5)
	w.pass(10 * time.Second)
	w.is(PhaseProgressing, 10, "the disk is full")
	w.refuse = nil
	w.pass(time.Second)
	w.is(PhaseFailed, 0, "")

	delete(w.text, id)
	w.pass(time.Second)
	if _, err := w.c.View(greet); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	w.text[id] = []byte("apiVersion: governance.isthmus.io/v1alpha1\nkind: RouteRule\nmetadata: {name: rollout-greet, annotations: {isthmus.io/rollout: '{'}}\nspec: {service: {interface: demo.Greet}, routes: [{}]}\n")
	w.pass(time.Second)
	if v, err := w.c.View(greet); err != nil || !strings.Contains(v.Message, "its annotation") {
		t.Errorf("%+v %v", v, err)
	}
}

// What cannot be started is refused, with its field.
func TestStartIsRefused(t *testing.T) {
	w := newWorld(t)
	w.services = append(w.services, governance.Routed{Key: model.Key{Framework: "dubbo", Interface: "demo.Plain"}, Endpoints: []map[string]string{{"version": "v1"}}})
	start := func(text string) error {
		id, spec, err := Parse([]byte(text))
		if err != nil {
			return err
		}
		return w.c.Start(t.Context(), id, spec)
	}
	for name, c := range map[string]struct{ old, new, want string }{
		"no service":       {"interface: demo.Greet", "interface: demo.None", "spec.service: there is no such service"},
		"no interface":     {"interface: demo.Greet, ", "", "spec.service.interface: is missing"},
		"not lifted":       {"demo.Greet", "demo.Plain", "spec.service: dubbo/demo.Plain is not lifted"},
		"no old instance":  {"version: v1", "version: v0", "spec.stable: no instance carries these labels"},
		"the same version": {"version: v2", "version: v1", "spec.canary: says the same instances"},
		"no versions":      {"canary: {version: v2}", "canary: {}", "spec.canary: is missing"},
		"odd label":        {"version: v2", "'ver sion': v2", "spec.canary: \"ver sion\" is no key"},
		"no steps":         {"steps: [{percent: 1}, {percent: 10, interval: 20s}, {percent: 50}, {percent: 100}]", "steps: []", "spec.steps: are missing"},
		"back and forth":   {"percent: 50", "percent: 5", "spec.steps[2].percent: must be more than the 10 of the step before"},
		"too much":         {"{percent: 100}", "{percent: 101}", "spec.steps[3].percent: must be from 1 to 100"},
		"nothing":          {"{percent: 1}", "{percent: 0}", "spec.steps[0].percent: must be from 1 to 100"},
		"short":            {"interval: 20s", "interval: 20ms", "spec.steps[1].interval: must be from 1s to 24h"},
		"unknown":          {"minCalls: 20", "minCall: 20", "spec.analysis.minCall: unknown field"},
		"ratio":            {"minCalls: 20", "errorRate: {max: 2}", "spec.analysis.errorRate.max: \"2\" is not from 0 to 1"},
		"factor":           {"minCalls: 20", "p99: {maxFactor: 0.5}", "spec.analysis.p99.maxFactor: must be a number from 1 to 1000"},
		"exceptions":       {"minCalls: 20", "exceptions: maybe", "spec.analysis.exceptions: must be count or ignore"},
		"name":             {"name: greet", "name: Greet", "metadata.name: \"Greet\" is no name"},
		"kind":             {"kind: Rollout", "kind: RouteRule", "kind: must be Rollout"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := start(strings.Replace(document1, c.old, c.new, 1)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			} else if f := adapters.AsFaults(err); len(f) != 1 {
				t.Errorf("%d faults: %v", len(f), err)
			}
		})
	}
	if w.writes > 0 {
		t.Errorf("%d writes", w.writes)
	}
	w.start(document1)
	if err := start(document1); !errors.Is(err, ErrActive) {
		t.Errorf("twice: %v", err)
	}
	if err := start(strings.Replace(document1, "name: greet", "name: other", 1)); !errors.Is(err, ErrActive) {
		t.Errorf("two of one service: %v", err)
	}
	w.text[ID{"default", "mine"}.rule()] = []byte("apiVersion: governance.isthmus.io/v1alpha1\nkind: RouteRule\nmetadata: {name: rollout-mine}\nspec: {service: {interface: demo.Greet}, routes: [{}]}\n")
	if err := start(strings.Replace(document1, "name: greet", "name: mine", 1)); !errors.Is(err, ErrForeign) {
		t.Errorf("somebody's rule: %v", err)
	}
}

// What Document writes Parse reads.
func TestDocument(t *testing.T) {
	id, spec, err := Parse([]byte(document2))
	if err != nil {
		t.Fatal(err)
	}
	text, err := Document(id, spec)
	if err != nil {
		t.Fatal(err)
	}
	id2, spec2, err := Parse(text)
	if err != nil || id2 != id || fmt.Sprintf("%+v", spec2) != fmt.Sprintf("%+v", spec) {
		t.Errorf("%v\n%s\n%+v\n%+v", err, text, spec, spec2)
	}
}

func TestMetrics(t *testing.T) {
	w := newWorld(t)
	registry := prometheus.NewRegistry()
	New(Options{Rules: w, Services: func() []governance.Routed { return w.services }, Calls: func() map[telemetry.Subset]telemetry.Calls { return w.calls }, Metrics: registry}).steps.WithLabelValues("passed").Inc()
	w.start(document1)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
	family := families[len(families)-1]
	i := slices.IndexFunc(family.Metric, func(m *dto.Metric) bool { return m.Label[0].GetValue() == "Progressing" })
	if family.GetName() != "isthmus_rollouts" || i < 0 || family.Metric[i].Gauge.GetValue() != 1 {
		t.Errorf("%v", families)
	}
}

// Whatever is sent, what is taken is something that a rule can hold and a later start can read.
func FuzzParse(f *testing.F) {
	f.Add([]byte(document1))
	f.Add([]byte(document2))
	f.Add([]byte(`{"apiVersion":"governance.isthmus.io/v1alpha1","kind":"Rollout","metadata":{"name":"a","namespace":"b"},"spec":{"service":{"interface":"x"},"stable":{"a":"b"},"canary":{"a":"c"},"steps":[{"percent":100}]}}`))
	f.Add([]byte(strings.Replace(document1, "interval: 10s", "interval: 24h\n  priority: 0", 1)))
	f.Add([]byte(strings.Replace(document1, "percent: 50", "percent: 1", 1)))
	f.Add([]byte(strings.Replace(document1, "canary: {version: v2}", "canary: {version: v1}", 1)))
	f.Add([]byte(document1 + "---\n" + document1))
	f.Fuzz(func(t *testing.T, text []byte) {
		id, spec, err := Parse(text)
		if err != nil {
			return
		}
		r := &record{Spec: spec.withDefaults(), Status: Status{Phase: PhaseProgressing, Step: stepAnnounced}}
		held(t, r, id)
		sent, err := Document(id, spec)
		if err != nil {
			t.Fatal(err)
		}
		if again, _, err := Parse(sent); err != nil || again != id {
			t.Errorf("%s %v\n%s", again, err, sent)
		}
	})
}

// held fails unless the rule that holds a release is one, and gives the release back.
func held(t *testing.T, r *record, id ID) *governance.Rule {
	t.Helper()
	text, err := r.text(id)
	if err != nil {
		t.Fatal(err)
	}
	rules, err := governance.Parse(text)
	if err != nil || len(rules) != 1 {
		t.Fatalf("%v\n%s", err, text)
	}
	again, ok, err := parseRecord(&rules[0])
	if err != nil || !ok || !again.ours(&rules[0]) || again.percent() != r.percent() || again.Status.Phase != r.Status.Phase {
		t.Fatalf("%v %v\n%s", ok, err, text)
	}
	return &rules[0]
}

// ruled are rules that are there, and stay.
type ruled []governance.Rule

// RouteRules implements Rules.
func (r ruled) RouteRules() []governance.Rule { return r }

// WriteRule implements Rules.
func (r ruled) WriteRule(context.Context, governance.ID, []byte, func(string) error) error {
	return errors.New("nothing is written")
}

// FuzzRecord: whatever an annotation holds, it is refused, or it can be kept, shown and gone on with.
func FuzzRecord(f *testing.F) {
	const spec = `{"spec":{"service":{"interface":"x"},"stable":{"a":"b"},"canary":{"a":"c"},"steps":[{"percent":10},{"percent":100,"interval":"1s"}],"analysis":{"minCalls":1,"p99":{"maxFactor":2}}},`
	f.Add(spec + `"status":{"phase":"Progressing","step":-2}}`)
	f.Add(spec + `"status":{"phase":"Progressing","step":0,"since":"2026-03-01T12:00:00Z","started":"2026-03-01T12:00:00+08:00"}}`)
	f.Add(spec + `"status":{"phase":"Paused","step":1,"message":"somebody has paused it","passed":[{"percent":10,"result":"passed","stable":{"calls":9,"p99Millis":3},"canary":{"calls":1,"failed":0.5,"averageMillis":2}}]}}`)
	f.Add(spec + `"status":{"phase":"Failed","step":0,"message":"3 % of the new version's calls fail"}}`)
	f.Add(spec + `"status":{"phase":"Aborted","step":-1}}`)
	f.Add(spec + `"status":{"phase":"Completed","step":1}}`)
	f.Add(spec + `"status":{"phase":"Completed","step":2}}`)
	f.Add(spec + `"status":{"phase":"","step":-3}}`)
	f.Add(`{"status":{"phase":"Completed","step":-1,"passed":[{"percent":1,"stable":{"calls":1}}]}}`)
	f.Add(`{"spec":null}`)
	f.Add(``)
	f.Fuzz(func(t *testing.T, note string) {
		rule := governance.Rule{ID: greet.rule(), Spec: &governance.RouteSpec{}, Annotations: map[string]string{annotation: note}}
		if r, ok, err := parseRecord(&rule); ok && err == nil {
			if n := len(note); n < maxAnnotation/8 { // it may be written longer than it was
				rule = *held(t, r, greet)
			}
		}
		c := New(Options{Rules: ruled{rule}, Services: func() []governance.Routed { return nil }, Calls: func() map[telemetry.Subset]telemetry.Calls { return nil }})
		c.Look(t.Context())
		views := c.Views()
		if text, err := json.Marshal(views); err != nil || len(views) != 1 {
			t.Errorf("%v %s", err, text)
		}
		for _, action := range Actions {
			if err := c.Act(t.Context(), greet, action); err == nil {
				t.Errorf("%s has been written", action)
			}
		}
	})
}
