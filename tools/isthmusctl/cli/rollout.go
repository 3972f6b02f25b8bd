package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/client"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
	"github.com/isthmus-mesh/isthmus/mcp-server/rollout"
)

// watchEvery is how often rollout status --watch asks.
const watchEvery = time.Second

func newRollout(s *Streams, server *serverFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rollout",
		Short: "Release a new version of a lifted service step by step, watched, and back by itself",
		Long: `rollout gives a growing part of a service's calls to the instances of a new version, for as long as these calls do well, and all of them back to
the old one where they do not. mcp-server does that by itself; these commands start, show and steer it. The verbs are those of kubectl rollout and
of Argo Rollouts.

A rollout is named by its name, with its namespace before it where that is not default: greet, shop/greet.`,
		Example: `  isthmusctl rollout start greet --service demo.GreetService --from version=v1 --to version=v2 --steps 1,10,50,100 --interval 5m --max-error-increase 1%
  isthmusctl rollout status greet --watch`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newRolloutStart(s, server), newRolloutStatus(s, server),
		newRolloutAction(s, server, "pause", rollout.ActionPause, "Stay at this step until resume", `pause keeps a rollout at the step that it is at. It is watched all the same: a failure still ends it.`),
		newRolloutAction(s, server, "resume", rollout.ActionResume, "Go on after pause", `resume lets a rollout go on that was paused, or whose rule somebody has changed by hand.`),
		newRolloutAction(s, server, "promote", rollout.ActionPromote, "Go to the next step without waiting", `promote goes to the next step at once, whatever this one has shown; after the last one the rollout is complete. --full gives all
calls to the new version and ends the rollout.`),
		newRolloutAction(s, server, "abort", rollout.ActionAbort, "Give all calls back to the old version, and end", `abort gives all calls back to the old version and ends the rollout.`))
	return cmd
}

// rolloutFlags describe a rollout.
type rolloutFlags struct {
	service    string
	from, to   map[string]string
	steps      string
	interval   string
	minCalls   int
	exceptions string
	priority   int

	errorRate, errorIncrease string
	p99, average             string
	p99Factor, averageFactor float64
}

func newRolloutStart(s *Streams, server *serverFlags) *cobra.Command {
	var flags rolloutFlags
	var file string
	cmd := &cobra.Command{
		Use:   "start NAME --service SERVICE --from LABELS --to LABELS | start -f FILE",
		Short: "Begin a rollout",
		Long: `start begins a rollout: from now on the service's calls go to the old version's instances only; as soon as the new version has one, the first step
begins. A step lasts as long as the interval says, and until enough calls of the new version have been seen. Then the next one begins, if within the
step the calls have kept to all bounds that are given; as soon as they break one, the new version loses all calls. The bounds hold for failures of
the call and, but for --exceptions ignore, of the business code, as callers see them. Without a bound, one call in a hundred more may fail than
with the old version.

The service is INTERFACE[:VERSION[:GROUP]], as isthmusctl services lists it; what is left out is any. -f takes a document of kind Rollout instead of
flags; - is standard input.`,
		Example: `  isthmusctl rollout start greet --service demo.GreetService --from version=v1 --to version=v2
  isthmusctl rollout start pay --service sofa/demo.PayService:1.0 --from version=v7 --to version=v8 --steps 1:30m,10:1h,50,100 --interval 2h --max-error-rate 0.5% --max-p99 300ms`,
		Args: cobra.MaximumNArgs(1),
	}
	output := outputFlag(cmd)
	server.addTimeout(cmd)
	f := cmd.Flags()
	f.StringVarP(&file, "file", "f", "", "file with the rollout, in place of the other flags")
	f.StringVar(&flags.service, "service", "", "the service: [FRAMEWORK/]INTERFACE[:VERSION[:GROUP]]")
	f.StringToStringVar(&flags.from, "from", nil, "labels of the old version's instances: version=v1")
	f.StringToStringVar(&flags.to, "to", nil, "labels of the new version's instances: version=v2")
	f.StringVar(&flags.steps, "steps", "1,10,50,100", "percentages of the calls, with an interval of their own where they need one: 1:30m,10,100")
	f.StringVar(&flags.interval, "interval", "1m", "how long a step lasts at least")
	f.IntVar(&flags.minCalls, "min-calls", rollout.DefaultMinCalls, "how many calls of the new version a step takes at least")
	f.StringVar(&flags.exceptions, "exceptions", rollout.ExceptionsCount, "whether a call fails if the business code threw: count, ignore")
	f.StringVar(&flags.errorRate, "max-error-rate", "", "how many calls may fail: 1%")
	f.StringVar(&flags.errorIncrease, "max-error-increase", "", "how many more calls may fail than with the old version: 1%")
	f.StringVar(&flags.p99, "max-p99", "", "how long the slowest of a hundred calls may take: 500ms")
	f.Float64Var(&flags.p99Factor, "max-p99-factor", 0, "how many times as long as with the old version: 2")
	f.StringVar(&flags.average, "max-average", "", "how long calls may take on average: 100ms")
	f.Float64Var(&flags.averageFactor, "max-average-factor", 0, "how many times as long as with the old version: 1.5")
	f.IntVar(&flags.priority, "priority", rollout.DefaultPriority, "the priority of its RouteRule among those of the service")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var text []byte
		var err error
		switch {
		case file != "" && len(args) > 0:
			return usagef("name a rollout or a file, not both")
		case file != "":
			if text, err = readInput(s.In, []string{file}); err != nil {
				return err
			}
		case len(args) == 0:
			return usagef("name the rollout, or a file with -f")
		default:
			if text, err = flags.document(args[0]); err != nil {
				return err
			}
		}
		id, _, err := rollout.Parse(text)
		if err != nil {
			at := cmp.Or(file, "the rollout")
			for _, fault := range adapters.AsFaults(err) {
				if file == "" {
					fault.Line = 0
				}
				fmt.Fprintf(s.Err, "%s: %s\n", printable(at), printable(fault.String()))
			}
			return badf("%s; nothing was done", count(len(adapters.AsFaults(err)), "fault"))
		}
		r, err := ask(cmd.Context(), server, func(ctx context.Context, c *client.Client) (*api.Rollout, error) {
			return c.StartRollout(ctx, client.RolloutID(id), text)
		})
		if err != nil {
			return err
		}
		return s.rollout(*output, r)
	}
	return cmd
}

// document returns what the flags say as a document.
func (f *rolloutFlags) document(name string) ([]byte, error) {
	if f.service == "" || len(f.from) == 0 || len(f.to) == 0 {
		return nil, usagef("--service, --from and --to are needed")
	}
	id := rolloutID(name)
	service, key := map[string]any{}, f.service
	if framework, rest, ok := strings.Cut(key, "/"); ok {
		service["framework"], key = framework, rest
	}
	for i, part := range strings.SplitN(key, ":", 3) {
		if part != "" {
			service[[]string{"interface", "version", "group"}[i]] = part
		}
	}
	steps := []any{}
	for part := range strings.SplitSeq(f.steps, ",") {
		percent, interval, ok := strings.Cut(strings.TrimSpace(part), ":")
		n, err := strconv.Atoi(strings.TrimSuffix(percent, "%"))
		if err != nil {
			return nil, usagef("--steps: %q is no percentage such as 10 or 10:5m", part)
		}
		step := map[string]any{"percent": n}
		if ok {
			step["interval"] = interval
		}
		steps = append(steps, step)
	}
	analysis := map[string]any{"minCalls": f.minCalls, "exceptions": f.exceptions}
	bound := func(of, name string, v any) {
		if analysis[of] == nil {
			analysis[of] = map[string]any{}
		}
		analysis[of].(map[string]any)[name] = v
	}
	for name, v := range map[string]string{"max": f.errorRate, "maxIncrease": f.errorIncrease} {
		number, err := strconv.ParseFloat(v, 64)
		switch {
		case v == "":
		case err == nil:
			bound("errorRate", name, number)
		default:
			bound("errorRate", name, v)
		}
	}
	for _, l := range []struct {
		of, max string
		factor  float64
	}{{"p99", f.p99, f.p99Factor}, {"average", f.average, f.averageFactor}} {
		if l.max != "" {
			bound(l.of, "max", l.max)
		}
		if l.factor != 0 {
			bound(l.of, "maxFactor", l.factor)
		}
	}
	text, err := json.Marshal(map[string]any{
		"apiVersion": governance.APIVersion, "kind": rollout.Kind, "metadata": map[string]any{"name": id.Name, "namespace": id.Namespace},
		"spec": map[string]any{"service": service, "stable": f.from, "canary": f.to, "steps": steps, "interval": f.interval, "priority": f.priority, "analysis": analysis},
	})
	if err != nil {
		return nil, usagef("%w", err)
	}
	return text, nil
}

// rolloutID reads [NAMESPACE/]NAME.
func rolloutID(s string) client.RolloutID {
	if namespace, name, ok := strings.Cut(s, "/"); ok {
		return client.RolloutID{Namespace: namespace, Name: name}
	}
	return client.RolloutID{Namespace: governance.DefaultNamespace, Name: s}
}

func newRolloutStatus(s *Streams, server *serverFlags) *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "status [NAME]",
		Short: "Show a rollout and its steps, or list all",
		Long: `status shows how far a rollout is: each step with the calls, failures and latencies of both versions as their callers have seen them, what was
made of them, and when the next step comes. Without a name it lists all rollouts.

--watch shows it until it is over; where the output is no terminal, a line for each step. Then exit code 1 says that the new version was not
released.`,
		Args: cobra.MaximumNArgs(1),
	}
	output := outputFlag(cmd)
	server.addTimeout(cmd)
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on until the rollout is over")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			if watch {
				return usagef("name the rollout that --watch is for")
			}
			found, err := ask(cmd.Context(), server, func(ctx context.Context, c *client.Client) (*api.RolloutList, error) { return c.Rollouts(ctx) })
			if err != nil {
				return err
			}
			return s.print(*output, found, func() *table { return rolloutsTable(found) })
		}
		read := func(ctx context.Context, c *client.Client) (*api.Rollout, error) {
			return c.Rollout(ctx, rolloutID(args[0]))
		}
		if !watch {
			r, err := ask(cmd.Context(), server, read)
			if err != nil {
				return err
			}
			return s.rollout(*output, r)
		}
		r, err := ask(cmd.Context(), server, func(ctx context.Context, c *client.Client) (*api.Rollout, error) {
			return s.watchRollout(ctx, *output, func() (*api.Rollout, error) { return read(ctx, c) })
		})
		if err != nil {
			return err
		}
		if err := s.rollout(*output, r); err != nil {
			return err
		}
		if r.Phase != rollout.PhaseCompleted {
			return errQuiet
		}
		return nil
	}
	return cmd
}

// watchRollout shows a rollout until it is over, and returns it as it was then.
func (s *Streams) watchRollout(ctx context.Context, f format, read func() (*api.Rollout, error)) (*api.Rollout, error) {
	terminal := s.Size != nil && f == formatTable
	if terminal {
		if _, err := io.WriteString(s.Out, screenEnter); err != nil {
			return nil, err
		}
		defer io.WriteString(s.Out, screenLeave)
	}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	said := ""
	for {
		r, err := read()
		if err != nil {
			return nil, err
		}
		if !r.Phase.Active() {
			return r, nil
		}
		switch line := fmt.Sprintf("%s: %s%% of the calls go to %s: step %d of %d", r.Name, fmt.Sprint(r.Percent), labels(r.Canary.Labels), r.Step, len(r.Plan)); {
		case terminal:
			var page bytes.Buffer
			inner := *s
			inner.Out = &page
			if err := inner.rollout(f, r); err != nil {
				return nil, err
			}
			_, height := s.Size()
			if _, err := io.WriteString(s.Out, screen(page.String(), height)); err != nil {
				return nil, err
			}
		case f == formatTable && line != said:
			said = line
			fmt.Fprintln(s.Out, printable(line))
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

func newRolloutAction(s *Streams, server *serverFlags, name string, action rollout.Action, short, long string) *cobra.Command {
	full := false
	cmd := &cobra.Command{Use: name + " NAME", Short: short, Long: long, Args: cobra.ExactArgs(1)}
	output := outputFlag(cmd)
	server.addTimeout(cmd)
	if action == rollout.ActionPromote {
		cmd.Flags().BoolVar(&full, "full", false, "give all calls to the new version, and end")
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if full {
			action = rollout.ActionPromoteFull
		}
		r, err := ask(cmd.Context(), server, func(ctx context.Context, c *client.Client) (*api.Rollout, error) {
			return c.ActOnRollout(ctx, rolloutID(args[0]), action)
		})
		if err != nil {
			return err
		}
		return s.rollout(*output, r)
	}
	return cmd
}

func rolloutsTable(l *api.RolloutList) *table {
	t := &table{head: []string{"NAME", "SERVICE", "PHASE", "STEP", "WEIGHT", "TO", "WHAT"}, empty: "no rollouts", wrap: true}
	for i := range l.Items {
		r := &l.Items[i]
		t.add(text(r.Namespace+"/"+r.Name), text(r.Service), coloured(string(r.Phase), phaseColour(r.Phase)), cell{text: fmt.Sprintf("%d/%d", r.Step, len(r.Plan)), right: true},
			cell{text: fmt.Sprintf("%d%%", r.Percent), right: true}, text(labels(r.Canary.Labels)), text(r.Message))
	}
	return t
}

func phaseColour(p rollout.Phase) string {
	switch p {
	case rollout.PhaseCompleted:
		return colourGreen
	case rollout.PhaseFailed, rollout.PhaseAborted:
		return colourRed
	case rollout.PhasePaused:
		return colourYellow
	}
	return ""
}

// labels writes labels as people do: env=gray,version=v2.
func labels(m map[string]string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, k+"="+m[k])
	}
	return strings.Join(parts, ",")
}

// rollout prints one rollout.
func (s *Streams) rollout(f format, r *api.Rollout) error {
	if f != formatTable {
		return s.print(f, r, nil)
	}
	line := func(name, value, colour string) {
		fmt.Fprintf(s.Out, "%-10s %s\n", name, s.paint(colour, printable(value)))
	}
	line("rollout", r.Namespace+"/"+r.Name+" of "+r.Service, colourBold)
	phase := string(r.Phase)
	if r.Message != "" && !(r.Phase == rollout.PhaseProgressing && r.Step > 0) { // which stands beside the step
		phase += ": " + r.Message
	}
	line("phase", phase, phaseColour(r.Phase))
	version := func(v *rollout.Version) string { return labels(v.Labels) + ", " + count(v.Instances, "instance") }
	line("from", version(&r.Stable), "")
	line("to", version(&r.Canary), "")
	weight := fmt.Sprintf("%d%% of the calls go to %s", r.Percent, labels(r.Canary.Labels))
	switch {
	case !r.Phase.Active():
	case r.Phase == rollout.PhaseProgressing && !r.Next.IsZero():
		wait := "as soon as it is judged"
		if left := r.Next.Sub(r.Time); left > 0 {
			wait = "in " + brief(left) + " at the earliest"
		}
		weight += fmt.Sprintf("; step %d of %d, the next one %s", r.Step, len(r.Plan), wait)
		if r.Step == len(r.Plan) {
			weight = fmt.Sprintf("%d%% of the calls go to %s; the last step, complete %s", r.Percent, labels(r.Canary.Labels), wait)
		}
	default:
		weight += fmt.Sprintf("; step %d of %d", r.Step, len(r.Plan))
	}
	line("weight", weight, "")
	started := brief(r.Time.Sub(r.Started)) + " ago"
	if !r.Ended.IsZero() {
		started += ", over after " + brief(r.Ended.Sub(r.Started))
	}
	line("started", started, "")
	fmt.Fprintln(s.Out)
	return stepTable(r).write(s)
}

// brief writes a time span with what of it matters: 5s, 1m12s, 2h5m.
func brief(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
}

// stepTable shows the steps: those that are over, the one under way, and those to come.
func stepTable(r *api.Rollout) *table {
	t := &table{head: []string{"STEP", "WEIGHT", "STATE", "TIME", "OLD CALLS", "ERRORS", "P99 MS", "NEW CALLS", "ERRORS", "P99 MS", "VERDICT"}, spare: []int{3, 6}, wrap: true}
	row := func(i int, percent governance.Count, state, colour, time string, stable, canary *rollout.Figures, why string) {
		cells := []cell{{text: strconv.Itoa(i + 1), right: true}, {text: fmt.Sprintf("%d%%", percent), right: true}, coloured(state, colour), {text: time, right: true}}
		for k, f := range []*rollout.Figures{stable, canary} {
			errors := colourYellow
			if k == 1 {
				errors = colourRed
			}
			if f == nil {
				cells = append(cells, cell{right: true}, cell{right: true}, cell{right: true})
				continue
			}
			cells = append(cells, cell{text: fmt.Sprintf("%.0f", f.Calls), right: true}, ratioCell(f.ErrorRatio(), f.Calls, errors), cell{text: millis(f.P99Millis), right: true})
		}
		t.add(append(cells, text(why))...)
	}
	for i, p := range r.Passed {
		colour := colourGreen
		switch p.Result {
		case rollout.ResultPromoted:
			colour = colourYellow
		case rollout.ResultFailed, rollout.ResultAborted:
			colour = colourRed
		}
		row(i, p.Percent, string(p.Result), colour, brief(p.Ended.Sub(p.Began)), &p.Stable, &p.Canary, p.Why)
	}
	for i := len(r.Passed); i < len(r.Plan); i++ {
		step := r.Plan[i]
		state, elapsed := "to come", brief(time.Duration(step.Seconds*float64(time.Second)))
		switch {
		case i == r.Step-1 && r.Phase.Active():
			state = "under way"
			elapsed = brief(r.Time.Sub(r.Since)) + " of " + elapsed
			if r.Phase == rollout.PhasePaused {
				state = "paused"
			}
			row(i, step.Percent, state, colourBold, elapsed, &r.Stable.Figures, &r.Canary.Figures, r.Message)
			continue
		case !r.Phase.Active():
			state, elapsed = "left out", ""
		}
		row(i, step.Percent, state, colourDim, elapsed, nil, nil, "")
	}
	return t
}
