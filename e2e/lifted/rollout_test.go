package lifted_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/e2e/caller"
	"github.com/isthmus-mesh/isthmus/e2e/mesh"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
	"github.com/isthmus-mesh/isthmus/e2e/rig"
	"github.com/isthmus-mesh/isthmus/mcp-server/config"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/mcp-server/rollout"
)

// apiToken is what mcp-server's API takes.
const apiToken = "e2e"

// isthmusctl runs it and returns what it prints. An exit code that is not want fails the test.
func (l *lifted) isthmusctl(want int, args ...string) string {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), within)
	defer cancel()
	cmd := exec.CommandContext(ctx, rig.Peers(l.t)[peer.Isthmusctl].Path, args...)
	cmd.Env = append(os.Environ(), "ISTHMUS_SERVER="+l.APIURL(), "ISTHMUS_TOKEN="+apiToken)
	out, err := cmd.CombinedOutput()
	l.t.Logf("$ isthmusctl %s\n%s", strings.Join(args, " "), out)
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != want {
		l.t.Fatalf("isthmusctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// release is what the API says of the rollout.
func (l *lifted) release(ctx context.Context) (r api.Rollout, err error) {
	return mesh.Ask[api.Rollout](ctx, l.Mesh, "/api/v1/rollouts/default/greet")
}

// TestRollout: under real traffic a good version gets all calls in the end; one whose code throws loses them by itself, after no more of them than
// it was exposed to; and a restart of mcp-server in the middle leaves the weight as it is.
func TestRollout(t *testing.T) {
	l := newLifted(t, config.LowerCaller)
	v1, v2 := l.addresses[0], l.addresses[1]
	const rate = 150
	start := []string{"rollout", "start", "greet", "--service", "demo.GreetService", "--from", "version=v1", "--to", "version=v2", "--steps", "20,60,100", "--interval", "1s", "--min-calls", "40"}
	l.must(l.caller.Rates(map[string]float64{"sayHello": rate}))

	// A good version.
	mark := l.caller.Mark()
	l.isthmusctl(0, start...)
	l.isthmusctl(0, "rollout", "status", "greet", "--watch")
	r, err := l.release(t.Context())
	l.must(err)
	if len(r.Passed) != 3 {
		t.Fatalf("it has passed %d steps", len(r.Passed))
	}
	share := 0.0
	for i, p := range r.Passed {
		// What the weight before has sent may end in the step: no exact share.
		now := p.Canary.Calls / (p.Stable.Calls + p.Canary.Calls)
		if p.Result != rollout.ResultPassed || p.Canary.Failed+p.Stable.Failed > 0 || p.Canary.Calls < 40 || p.Canary.P99Millis == nil || now <= share {
			t.Errorf("step %d: %+v", i+1, p)
		}
		share = now
	}
	before, err := l.sidecar.Sent(t.Context(), greetHost, "")
	l.must(err)
	_, _, err = l.caller.Next(t.Context(), 2)
	l.must(err)
	after, err := l.sidecar.Sent(t.Context(), greetHost, "")
	l.must(err)
	if after[v1] != before[v1] || after[v2] == before[v2] {
		t.Errorf("complete, and the providers have got %v and then %v", before, after)
	}
	seconds, faults := l.caller.Since(mark)
	if c := caller.Sum(seconds).Total(); c.Errors+c.Exceptions > 0 || c.OK == 0 {
		t.Errorf("the consumer says %v %v", caller.Sum(seconds), faults)
	}

	// A restart in the middle: the weight stays, and the step begins anew.
	l.isthmusctl(0, slices.Concat(start[:len(start)-3], []string{"10m", "--min-calls", "40"})...)
	l.until("the first step", func(ctx context.Context) error {
		if r, err := l.release(ctx); err != nil || r.Percent != 20 || r.Canary.Calls < 10 {
			return fmt.Errorf("%d %%, %.0f calls, %w", r.Percent, r.Canary.Calls, err)
		}
		return nil
	})
	l.must(l.Server.Stop(t.Context()))
	l.must(l.StartServer(t.Context()))
	l.until("its calls to be seen again", func(ctx context.Context) error {
		if r, err := l.release(ctx); err != nil || r.Phase != rollout.PhaseProgressing || r.Percent != 20 || r.Canary.Calls == 0 {
			return fmt.Errorf("%s, %d %%, %.0f calls, %w", r.Phase, r.Percent, r.Canary.Calls, err)
		}
		return nil
	})
	l.isthmusctl(0, "rollout", "pause", "greet")
	l.isthmusctl(0, "rollout", "abort", "greet")

	// The new version in a form that should not have been released: nobody calls it while it is exchanged.
	l.must(l.providers[1].Stop(t.Context()))
	l.until("the end of the good one", func(ctx context.Context) error { return l.has(ctx, v1) })
	mark = l.caller.Mark()
	l.isthmusctl(0, start...)
	l.must(l.startProviderWith(1, "-Dbroken=true"))
	out := l.isthmusctl(1, "rollout", "status", "greet", "--watch")
	if !strings.Contains(out, "Failed") || !strings.Contains(out, "of the new version's calls fail") {
		t.Error("it does not say why it has failed")
	}
	// From now on nobody is told of the bug.
	l.until("the end of its calls", func(ctx context.Context) error {
		seconds, _, err := l.caller.Next(ctx, 1)
		if c := caller.Sum(seconds).Total(); err == nil && (c.Exceptions > 0 || c.OK == 0) {
			err = fmt.Errorf("%v", caller.Sum(seconds))
		}
		return err
	})
	_, _, err = l.caller.Next(t.Context(), 2)
	l.must(err)
	seconds, faults = l.caller.Since(mark)
	c := caller.Sum(seconds).Total()
	r, err = l.release(t.Context())
	l.must(err)
	t.Logf("%d of %d calls have met the bad version; the rollout has seen %.0f", c.Exceptions, c.OK+c.Exceptions, r.Passed[0].Canary.Failed)
	if r.Phase != rollout.PhaseFailed || r.Percent != 0 || len(r.Passed) != 1 || c.Exceptions == 0 || c.Errors > 0 {
		t.Errorf("%s after %d steps; the consumer says %v %v", r.Phase, len(r.Passed), caller.Sum(seconds), faults)
	}
	// It had a fifth of the calls for the first step at most, which takes seconds on a busy machine: of all calls since it came, far less.
	if c.Exceptions > (c.OK+c.Exceptions)/4 {
		t.Errorf("%d of %d calls have met the bad version", c.Exceptions, c.OK+c.Exceptions)
	}
	for _, f := range faults {
		if !strings.Contains(f.Message, "broken") {
			t.Errorf("the consumer is told %s", f.Message)
		}
	}
}
