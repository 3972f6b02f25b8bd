package cli

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/console"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
	"github.com/isthmus-mesh/isthmus/mcp-server/rollout"
	"github.com/isthmus-mesh/isthmus/mcp-server/telemetry"
)

// releases is a mesh in which versions are released: one service, its calls, its rules, and a clock.
type releases struct {
	t          *testing.T
	controller *rollout.Controller

	mu    sync.Mutex
	now   time.Time
	rules map[governance.ID][]byte
	calls map[telemetry.Subset]telemetry.Calls
}

// released runs an mcp-server that the commands ask, with a controller whose time does not go by.
func released(t *testing.T) *releases {
	r := &releases{t: t, now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), rules: map[governance.ID][]byte{}, calls: map[telemetry.Subset]telemetry.Calls{}}
	services := []governance.Routed{
		{Key: model.Key{Framework: "dubbo", Interface: "demo.GreetService", Version: "1.0.0", Group: "g1"}, Protocol: model.ProtocolDubbo, Lifted: true,
			Endpoints: []map[string]string{{"version": "v1"}, {"version": "v1"}, {"version": "v2"}}},
		{Key: model.Key{Framework: "sofa", Interface: "demo.PayService", Version: "1.0"}, Protocol: model.ProtocolBolt, Lifted: true, Endpoints: []map[string]string{{"version": "v1"}}},
	}
	r.controller = rollout.New(rollout.Options{Rules: r, Services: func() []governance.Routed { return services },
		Calls: func() map[telemetry.Subset]telemetry.Calls {
			r.mu.Lock()
			defer r.mu.Unlock()
			out := map[telemetry.Subset]telemetry.Calls{}
			for k, v := range r.calls {
				out[k] = v
			}
			return out
		},
		Now: func() time.Time { r.mu.Lock(); defer r.mu.Unlock(); return r.now }})
	serve(t, func(o *console.Options) { o.Rollouts, o.Rules, o.Local = r.controller, r, true })
	return r
}

// RouteRules implements rollout.Rules.
func (r *releases) RouteRules() []governance.Rule {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []governance.Rule
	for _, text := range r.rules {
		rules, err := governance.Parse(text)
		if err != nil {
			panic(err)
		}
		out = append(out, rules...)
	}
	return out
}

// WriteRule implements rollout.Rules and console.RuleWriter.
func (r *releases) WriteRule(_ context.Context, id governance.ID, text []byte, check func(string) error) error {
	revision := ""
	for _, rule := range r.RouteRules() {
		if rule.ID == id {
			revision = rule.Revision
		}
	}
	if err := check(revision); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rules[id] = text
	return nil
}

// pass lets so many seconds go by, in each of which calls of both versions end, some of the new one's in an exception.
func (r *releases) pass(seconds, stable, canary, exceptions int) {
	for range seconds {
		r.mu.Lock()
		r.now = r.now.Add(time.Second)
		for version, n := range map[string]int{"v1": stable, "v2": canary} {
			bad := 0
			if version == "v2" {
				bad = min(exceptions, n)
			}
			k := telemetry.Subset{System: "dubbo", Service: "demo.GreetService", Version: "1.0.0", Group: "g1", Subset: version + "-or-all"}
			f := float64(n)
			r.calls[k] = r.calls[k].Plus(telemetry.Calls{Outcomes: map[string]float64{"ok": f - float64(bad), "exception": float64(bad)},
				Buckets: map[float64]float64{1: 0, 2.5: f, math.Inf(1): f}, Millis: 2 * f, Timed: f})
		}
		r.mu.Unlock()
		r.controller.Look(r.t.Context())
	}
}

// TestRolloutCommands goes the way of releases: one that succeeds, one that is steered, one that fails.
func TestRolloutCommands(t *testing.T) {
	r := released(t)
	var out strings.Builder
	step := func(want int, args string) {
		t.Helper()
		got := invoke(t, "", strings.Fields(args)...)
		if got.code != want {
			t.Fatalf("%s: %+v", args, got)
		}
		fmt.Fprintf(&out, "$ isthmusctl %s\n%s%s\n", args, got.out, got.err)
	}
	step(ExitOK, "rollout status")
	step(ExitOK, "rollout start greet --service dubbo/demo.GreetService:1.0.0:g1 --from version=v1 --to version=v2 --steps 1,10:20s,50 --interval 10s --max-error-rate 5% --max-p99 500ms --max-average-factor 1.5")
	r.pass(1, 500, 0, 0)
	r.pass(5, 495, 5, 0)
	step(ExitOK, "rollout status greet")
	r.pass(5, 495, 5, 0)
	step(ExitOK, "rollout pause greet")
	r.pass(30, 450, 50, 0)
	step(ExitOK, "rollout status")
	step(ExitOK, "rollout resume greet")
	r.pass(1, 450, 50, 0)
	step(ExitOK, "rollout promote greet")
	r.pass(10, 0, 500, 0)
	step(ExitOK, "rollout status greet --watch")
	step(ExitBad, "rollout pause greet")
	step(ExitOK, "rollout start greet --service demo.GreetService --from version=v1 --to version=v2")
	r.pass(2, 500, 0, 0)
	r.pass(3, 480, 20, 9)
	step(ExitBad, "rollout status greet --watch")
	step(ExitOK, "rollout start greet --service demo.GreetService --from version=v1 --to version=v2")
	r.pass(3, 480, 20, 0)
	step(ExitBad, "rollout start shop/other --service demo.GreetService --from version=v1 --to version=v2")
	step(ExitOK, "rollout abort greet")
	step(ExitOK, "rollout status greet -o yaml")
	step(ExitOK, "rollout start pay --service sofa/demo.PayService --from version=v1 --to version=v2")
	r.pass(5, 0, 0, 0)
	step(ExitOK, "rollout promote pay --full")
	step(ExitOK, "rollout status")
	golden(t, "rollout-commands.txt", out.String())
}

// What a terminal shows: colours, and on a narrow one no more than it has room for.
func TestRolloutOnTerminals(t *testing.T) {
	r := released(t)
	start := strings.Fields("rollout start greet --service demo.GreetService --from version=v1 --to version=v2 --min-calls 20")
	if got := invoke(t, "", start...); got.code != ExitOK {
		t.Fatalf("%+v", got)
	}
	r.pass(62, 990, 10, 0)
	r.pass(2, 900, 100, 0)
	for name, columns := range map[string]int{"rollout-colour": 200, "rollout-narrow": 80} {
		var out, errs bytes.Buffer
		s := &Streams{In: strings.NewReader(""), Out: &out, Err: &errs, Colour: columns > 100, Size: func() (int, int) { return columns, 50 }}
		if code := Run(t.Context(), s, []string{"rollout", "status", "greet"}); code != ExitOK || errs.Len() > 0 {
			t.Fatalf("got %d, %q", code, errs.String())
		}
		golden(t, name+".txt", out.String())
	}
	// --watch refreshes, says at last what has become of it, and leaves the terminal as it was.
	screens := &terminal{screens: make(chan string)}
	code := make(chan int, 1)
	go func() {
		code <- Run(t.Context(), &Streams{In: strings.NewReader(""), Out: screens, Err: screens, Size: func() (int, int) { return 160, 30 }}, []string{"rollout", "status", "greet", "-w"})
	}()
	if first := <-screens.screens; !strings.Contains(first, "step 2 of 4") {
		t.Errorf("it shows %q", first)
	}
	r.pass(3, 900, 100, 100)
	if got := <-code; got != ExitBad {
		t.Errorf("exit code %d", got)
	}
	if all := screens.all.String(); !strings.Contains(all, screenLeave) || !strings.HasSuffix(all, "\n") || !strings.Contains(all[strings.LastIndex(all, screenLeave):], "Failed") {
		t.Errorf("the terminal is left with %q", all[max(0, len(all)-600):])
	}
}

func TestRolloutFaults(t *testing.T) {
	released(t)
	file := filepath.Join(t.TempDir(), "r.yaml")
	write(t, file, "apiVersion: governance.isthmus.io/v1alpha1\nkind: Rollout\nmetadata: {name: greet}\nspec:\n  service: {interface: demo.GreetService}\n  stable: {version: v1}\n  canary: {version: v1}\n  steps: [{percent: 200}]\n")
	start := "rollout start greet --service demo.GreetService --from version=v1 --to version=v2 "
	for name, c := range map[string]struct {
		args string
		code int
		err  string
	}{
		"nothing":          {"rollout start", ExitUsage, "name the rollout, or a file with -f"},
		"no service":       {"rollout start greet --from a=b --to a=c", ExitUsage, "--service, --from and --to are needed"},
		"both":             {"rollout start greet -f " + file, ExitUsage, "name a rollout or a file, not both"},
		"labels":           {"rollout start greet --service x --from v1 --to v2", ExitUsage, "v1 must be formatted as key=value"},
		"steps":            {start + "--steps 1,ten", ExitUsage, `--steps: "ten" is no percentage such as 10 or 10:5m`},
		"order of steps":   {start + "--steps 10,1", ExitBad, "spec.steps[1].percent: must be more than the 10 of the step before"},
		"interval":         {start + "--interval 1", ExitBad, `spec.interval: "1" is not a duration such as 500ms or 30s`},
		"rate":             {start + "--max-error-rate 500%", ExitBad, `spec.analysis.errorRate.max: "500%" is not from 0 to 1, or to 100%`},
		"ratio":            {start + "--max-error-increase 0.05 --max-p99-factor 0.5", ExitBad, "spec.analysis.p99.maxFactor: must be a number from 1 to 1000"},
		"calls":            {start + "--min-calls -1", ExitBad, "spec.analysis.minCalls"},
		"file":             {"rollout start -f " + file, ExitBad, "line 8: spec.steps[0].percent: must be from 1 to 100"},
		"no file":          {"rollout start -f " + file + "x", ExitUsage, "no such file"},
		"no such service":  {"rollout start greet --service demo.None --from version=v1 --to version=v2", ExitBad, "spec.service: there is no such service"},
		"no old version":   {"rollout start greet --service demo.GreetService --from version=v0 --to version=v2", ExitBad, "spec.stable: no instance carries these labels"},
		"no such rollout":  {"rollout status greet", ExitBad, "there is no such rollout: default/greet"},
		"nothing to watch": {"rollout status --watch", ExitUsage, "name the rollout that --watch is for"},
		"nothing to stop":  {"rollout abort shop/greet", ExitBad, "there is no such rollout: shop/greet"},
	} {
		t.Run(name, func(t *testing.T) {
			if r := invoke(t, "", strings.Fields(c.args)...); r.code != c.code || !strings.Contains(r.err, c.err) || r.out != "" {
				t.Errorf("got %+v; want %d and %q", r, c.code, c.err)
			}
		})
	}
}
