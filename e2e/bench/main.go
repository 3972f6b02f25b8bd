// Command bench measures what the filter costs, and how fast a change in a registry is. The same load of calls goes through bare tcp_proxy, through our filter with no,
// one and a hundred rules, and through Envoy's own codecs, in interleaved rounds of one run, so that a machine whose
// speed drifts treats all alike. It prints medians and ratios, and writes e2e/bench/RESULTS.md.
//
// Usage: go run ./e2e/bench [-quick] [-rounds N] [-duration D] [-changes N] [-only VARIANTS] [-out FILE] [-envoy FILE] [-wasm FILE]
//
// Envoy has one worker, and shares one processor with client and server or, in some tables, has it to itself. Its processor time is that
// of its threads, to the nanosecond, so it does not depend on who else waits.
//
// The exit code is 0 if all was measured, whether or not the targets are met; 1 if a variant did not serve every call; 2 if
// something is missing or an option is wrong.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/isthmus-mesh/isthmus/e2e/peer"
)

// options are what the command line says.
type options struct {
	envoy, wasm, out, only string
	rounds, changes        int
	duration               time.Duration
	quick                  bool
}

// results is where the report of a whole run goes, below the top folder.
const results = "e2e/bench/RESULTS.md"

// The defaults of -rounds, -duration and -changes; with -quick they are others.
const (
	wholeRounds, quickRounds     = 5, 3
	wholeDuration, quickDuration = 1500 * time.Millisecond, time.Second
	wholeChanges, quickChanges   = 300, 100
)

func main() {
	o, err := parse(os.Args[1:], os.Stderr)
	if err != nil {
		if errors.Is(err, flag.ErrHelp) {
			os.Exit(0)
		}
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s := newScreen(os.Stderr)
	err = bench(ctx, o, s, os.Stdout)
	s.done()
	switch {
	case err == nil:
	case ctx.Err() != nil:
		os.Exit(130)
	default:
		fmt.Fprintln(os.Stderr, err)
		if missing := new(peer.MissingToolError); errors.As(err, &missing) {
			os.Exit(2)
		}
		os.Exit(1)
	}
}

// parse reads the command line. It says itself what is wrong.
func parse(args []string, w io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(w)
	f.StringVar(&o.envoy, "envoy", "", "Envoy binary (default: the pinned one)")
	f.StringVar(&o.wasm, "wasm", "", "compiled filter (default: built from this tree)")
	f.StringVar(&o.out, "out", "", "write the report to this file (default: "+results+"; none with -quick and -only)")
	f.IntVar(&o.rounds, "rounds", 0, fmt.Sprintf("rounds of each measurement, of which medians are reported (default %d, with -quick %d)", wholeRounds, quickRounds))
	f.DurationVar(&o.duration, "duration", 0, fmt.Sprintf("length of one measurement (default %s, with -quick %s)", wholeDuration, quickDuration))
	f.IntVar(&o.changes, "changes", 0, fmt.Sprintf("changes of a registry that are followed (default %d, with -quick %d)", wholeChanges, quickChanges))
	f.BoolVar(&o.quick, "quick", false, "only the headline loads; takes four minutes instead of fourteen")
	f.StringVar(&o.only, "only", "", `measure only these variants, for example "tcp_proxy;isthmus, 1 rule"`)
	f.Usage = func() {
		fmt.Fprintln(w, "usage: make bench [BENCH_ARGS='-quick']")
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		return o, err
	}
	var err error
	switch {
	case f.NArg() > 0:
		err = fmt.Errorf("bench: unexpected argument %q", f.Arg(0))
	case o.rounds < 0 || o.duration < 0 || o.changes < 0:
		err = errors.New("bench: -rounds, -duration and -changes must be positive")
	}
	if err != nil {
		fmt.Fprintln(w, err)
		return o, err
	}
	rounds, duration, changes := wholeRounds, wholeDuration, wholeChanges
	if o.quick {
		rounds, duration, changes = quickRounds, quickDuration, quickChanges
	}
	if o.changes == 0 {
		o.changes = changes
	}
	if o.rounds == 0 {
		o.rounds = rounds
	}
	if o.duration == 0 {
		o.duration = duration
	}
	return o, nil
}

// command is how the options that matter to the figures are given again.
func (o options) command() string {
	args := ""
	rounds, duration, changes := wholeRounds, wholeDuration, wholeChanges
	if o.quick {
		args += " -quick"
		rounds, duration, changes = quickRounds, quickDuration, quickChanges
	}
	if o.changes != changes {
		args += fmt.Sprintf(" -changes %d", o.changes)
	}
	if o.rounds != rounds {
		args += fmt.Sprintf(" -rounds %d", o.rounds)
	}
	if o.duration != duration {
		args += fmt.Sprintf(" -duration %s", o.duration)
	}
	if o.only != "" {
		args += fmt.Sprintf(" -only %q", o.only)
	}
	if args == "" {
		return "make bench"
	}
	return "make bench BENCH_ARGS='" + args[1:] + "'"
}

// bench measures, writes the report to w and, if it is to be kept, to its file.
func bench(ctx context.Context, o options, s *screen, w io.Writer) error {
	plan, err := newPlan(o)
	if err != nil {
		return err
	}
	out := o.out
	if out == "" && !o.quick && o.only == "" {
		root, err := peer.Root()
		if err != nil {
			return err
		}
		out = filepath.Join(root, results)
	}
	where := describeMachine()
	p, err := newPlace(ctx, o, plan, s)
	if err != nil {
		return err
	}
	defer p.close()
	if err := p.measureAll(ctx, plan, s); err != nil {
		return err
	}
	r := &report{plan: plan, command: o.command(), machine: where, envoy: envoyVersion(ctx, p.envoy), at: time.Now().UTC()}
	for m, size := range map[module]*int64{filterModule: &r.wasmBytes, emptyModule: &r.emptyBytes} {
		fi, err := os.Stat(p.modules[m])
		if err != nil {
			return fmt.Errorf("bench: %w", err)
		}
		*size = fi.Size()
	}
	text := r.markdown()
	s.done()
	if _, err := io.WriteString(w, text); err != nil {
		return err
	}
	if out == "" {
		return nil
	}
	if err := os.WriteFile(out, []byte(text), 0o644); err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	s.line("written to %s", out)
	return nil
}
