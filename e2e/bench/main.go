// Command bench measures what the filter costs: the same load of Dubbo calls through bare tcp_proxy, through our filter
// with no, one and a hundred rules, and through Envoy's own dubbo_proxy and generic_proxy, in interleaved rounds of one
// run, so that a machine whose speed drifts treats all alike. It prints medians and ratios and writes RESULTS.md.
//
// Envoy has one worker and, where the machine has two processors, one of them to itself; client and server share the
// other. The processor time is that of Envoy's threads, to the nanosecond, so it does not depend on who else waits.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

func main() {
	o := options{}
	flag.StringVar(&o.envoy, "envoy", "", "Envoy binary (default: the pinned one, fetched into the cache)")
	flag.StringVar(&o.wasm, "wasm", "", "compiled filter (default: built from this tree)")
	flag.StringVar(&o.out, "out", "", "write the report to this file")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds of each measurement; medians are reported")
	flag.DurationVar(&o.duration, "duration", 2*time.Second, "length of one measurement")
	flag.BoolVar(&o.quick, "quick", false, "only the headline load (4 connections × 16 in flight)")
	flag.StringVar(&o.only, "only", "", "comma separated variants to measure (default: all)")
	flag.Parse()
	if o.rounds < 1 || o.duration <= 0 {
		fmt.Fprintln(os.Stderr, "bench: -rounds and -duration must be positive")
		os.Exit(2)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := bench(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type options struct {
	envoy, wasm, out, only string
	rounds                 int
	duration               time.Duration
	quick                  bool
}

// headline is the load that the published targets are stated for.
var headline = load{Conns: 4, InFlight: 16, Size: 1024}

func loads(quick bool) []load {
	if quick {
		return []load{headline}
	}
	return []load{headline,
		{Conns: 1, InFlight: 1, Size: 1024}, {Conns: 1, InFlight: 64, Size: 1024},
		{Conns: 16, InFlight: 1, Size: 1024}, {Conns: 16, InFlight: 64, Size: 1024},
		{Conns: 256, InFlight: 1, Size: 1024}, {Conns: 256, InFlight: 64, Size: 1024}}
}

// rules returns n throttling rules that never reject: three of a hundred match the load's calls, as where many teams
// share a mesh; a single one matches.
func rules(n int) []config.Throttle {
	var out []config.Throttle
	for i := range n {
		r := config.Throttle{Name: fmt.Sprintf("default/rule-%d", i), Threshold: 1_000_000_000,
			Target: config.Target{Service: config.Match{Exact: fmt.Sprintf("org.example.Service%d", i)}}}
		if i < 3 {
			r.Target.Service.Exact = benchService
		}
		if i == 1 {
			r.Target.Method.Exact = benchMethod
		}
		if i == 2 {
			r.Target.Caller.Exact = benchCaller
		}
		out = append(out, r)
	}
	return out
}

func variants(only string) ([]variant, error) {
	plugin := func(n int) string {
		b, err := json.Marshal(config.Plugin{Generation: fmt.Sprintf("bench-%d", n), Throttle: rules(n)})
		if err != nil {
			panic(err) // our own type
		}
		return string(b)
	}
	all := []variant{
		{Name: "tcp_proxy", Filter: "tcp_proxy"},
		{Name: "isthmus", Filter: "wasm", Plugin: plugin(0)},
		{Name: "isthmus, 1 rule", Filter: "wasm", Plugin: plugin(1)},
		{Name: "isthmus, 100 rules", Filter: "wasm", Plugin: plugin(100)},
		{Name: "dubbo_proxy", Filter: "dubbo_proxy"},
		{Name: "generic_proxy", Filter: "generic_proxy"},
	}
	if only == "" {
		return all, nil
	}
	var out []variant
	for _, want := range strings.Split(only, ",") {
		i := slices.IndexFunc(all, func(v variant) bool { return strings.ReplaceAll(v.Name, ",", "") == strings.TrimSpace(want) })
		if i < 0 {
			return nil, fmt.Errorf("bench: no variant %q", want)
		}
		out = append(out, all[i])
	}
	return out, nil
}

func bench(ctx context.Context, o options) error {
	envoyCPU := -1
	if runtime.NumCPU() >= 2 || os.Getenv(pinnedEnv) != "" {
		// Processor 0 is Envoy's, the next one ours.
		envoyCPU = 0
		if err := pinSelf(1); err != nil {
			return err
		}
	}
	vs, err := variants(o.only)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "isthmus-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := provide(ctx, &o, dir); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer ln.Close()
	go serve(ln, dubbo)
	upstream := ln.Addr().(*net.TCPAddr).Port

	r := &report{options: o, variants: vs, loads: loads(o.quick)}
	fi, err := os.Stat(o.wasm)
	if err != nil {
		return err
	}
	r.wasmBytes = fi.Size()

	// Start-up: each variant alone, several times; the last one stays and serves the measurements.
	envoys := make([]*envoy, len(vs))
	defer func() {
		for _, e := range envoys {
			if e != nil {
				e.stop()
			}
		}
	}()
	starts := min(o.rounds, 3)
	for round := range starts {
		for i, v := range vs {
			e, err := startEnvoy(ctx, o.envoy, dir, o.wasm, config.StatTags, v, upstream, envoyCPU)
			if err != nil {
				return err
			}
			rss, err := e.rss()
			if err != nil {
				return err
			}
			r.start(i, e.ready, rss)
			if round < starts-1 {
				e.stop()
			} else {
				envoys[i] = e
			}
		}
	}
	total := len(r.loads) * o.rounds * len(vs)
	begin, done := time.Now(), 0
	for li, l := range r.loads {
		for range o.rounds {
			for vi := range vs {
				e := envoys[vi]
				warm := o.duration / 5
				m, err := runMeasured(ctx, e, l, warm, o.duration)
				if err != nil {
					return fmt.Errorf("%w (%s, %s)", err, vs[vi].Name, l)
				}
				r.add(li, vi, m)
				done++
				fmt.Fprintf(os.Stderr, "\r\033[K%d of %d, %s elapsed: %s, %s", done, total, time.Since(begin).Round(time.Second), l, vs[vi].Name)
			}
		}
	}
	fmt.Fprintln(os.Stderr)
	for i, e := range envoys {
		rss, err := e.rss()
		if err != nil {
			return err
		}
		r.loaded(i, rss)
	}
	text := r.markdown()
	fmt.Print(text)
	if o.out != "" {
		if err := os.WriteFile(o.out, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// A measurement is one sample with the processor time that Envoy spent over the same calls.
type measurement struct {
	*sample
	CPU time.Duration // per call
}

// runMeasured runs l against e. Readings and calls belong to the same stretch of time, after the warm-up.
func runMeasured(ctx context.Context, e *envoy, l load, warm, d time.Duration) (measurement, error) {
	type reading struct {
		cpu time.Duration
		err error
	}
	var first, last reading
	s, err := run(ctx, e.addr, dubbo, l, warm, d,
		func() { first.cpu, first.err = e.cpuTime() }, func() { last.cpu, last.err = e.cpuTime() })
	if err := errors.Join(err, first.err, last.err); err != nil {
		return measurement{}, err
	}
	if s.Errors > 0 || s.Calls == 0 {
		return measurement{}, fmt.Errorf("bench: %d calls failed, %d worked", s.Errors, s.Calls)
	}
	return measurement{sample: s, CPU: (last.cpu - first.cpu) / time.Duration(s.Calls)}, nil
}

const pinnedEnv = "ISTHMUS_BENCH_PINNED"

// pinSelf starts this program again, bound to one processor: threads that the runtime has already made would not follow.
func pinSelf(cpu int) error {
	if os.Getenv(pinnedEnv) != "" {
		return nil
	}
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("bench: bind to processor %d: %w", cpu, err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return syscall.Exec(self, os.Args, append(os.Environ(), pinnedEnv+"=1"))
}

// provide fills in the binaries that the command line did not name.
func provide(ctx context.Context, o *options, dir string) error {
	if o.wasm == "" {
		o.wasm = filepath.Join(dir, "isthmus.wasm")
		cmd := exec.CommandContext(ctx, "go", "build", "-buildmode=c-shared", "-trimpath", "-ldflags=-s -w", "-o", o.wasm,
			"github.com/isthmus-mesh/isthmus/wasm-filters/cmd/isthmus")
		cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("bench: build the filter: %w\n%s", err, out)
		}
	}
	if o.envoy == "" {
		return errors.New("bench: no Envoy: name one with -envoy")
	}
	return nil
}
