package main

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// A report gathers the measurements and renders them.
type report struct {
	options   options
	variants  []variant
	loads     []load
	wasmBytes int64
	cells     map[[2]int][]measurement // load, variant -> rounds
	starts    map[int][]time.Duration  // variant -> rounds
	idleRSS   map[int][]int64
	busyRSS   map[int]int64
}

func (r *report) start(v int, d time.Duration, rss int64) {
	if r.starts == nil {
		r.starts, r.idleRSS, r.busyRSS = map[int][]time.Duration{}, map[int][]int64{}, map[int]int64{}
	}
	r.starts[v] = append(r.starts[v], d)
	r.idleRSS[v] = append(r.idleRSS[v], rss)
}

func (r *report) loaded(v int, rss int64) { r.busyRSS[v] = rss }

func (r *report) add(l, v int, m measurement) {
	if r.cells == nil {
		r.cells = map[[2]int][]measurement{}
	}
	r.cells[[2]int{l, v}] = append(r.cells[[2]int{l, v}], m)
}

// median returns the middle value, of an even number the lower one of the two in the middle.
func median[T cmp.Ordered](v []T) T {
	s := slices.Sorted(slices.Values(v))
	return s[(len(s)-1)/2]
}

// of returns the median of what f reads of the rounds of a cell.
func of[T cmp.Ordered](r *report, l, v int, f func(measurement) T) T {
	var all []T
	for _, m := range r.cells[[2]int{l, v}] {
		all = append(all, f(m))
	}
	return median(all)
}

func cpuOf(m measurement) time.Duration { return m.CPU }
func rateOf(m measurement) float64      { return float64(m.Calls) / m.Elapsed.Seconds() }

// ratio returns the median over rounds of a's figure over b's of the same round: what drifts from round to round cancels.
func (r *report) ratio(l, a, b int, f func(measurement) float64) float64 {
	x, y := r.cells[[2]int{l, a}], r.cells[[2]int{l, b}]
	var all []float64
	for i := range x {
		all = append(all, f(x[i])/f(y[i]))
	}
	return median(all)
}

func (r *report) find(name string) int {
	return slices.IndexFunc(r.variants, func(v variant) bool { return v.Name == name })
}

func (r *report) markdown() string {
	var b bytes.Buffer
	p := func(format string, a ...any) { fmt.Fprintf(&b, format, a...) }
	p("# What the filter costs\n\n")
	p("Written by `make bench`; do not edit. %s, %s.\n\n", time.Now().UTC().Format("2006-01-02"), machine())
	p("%s. Dubbo calls with an argument of 1 KB through one Envoy worker; client and server share another processor.\n", version(r.options.envoy))
	p("Each figure is the median of %d rounds of %s, variants interleaved within a round; ratios are medians of the ratios within a round.\n", r.options.rounds, r.options.duration)
	bare := r.find("tcp_proxy")
	for li, l := range r.loads {
		p("\n## %d connections, %d calls in flight on each\n\n", l.Conns, l.InFlight)
		p("| Through | Envoy CPU/call | × bare | calls/s | × bare | p50 | p99 | p99.9 |\n|---|---:|---:|---:|---:|---:|---:|---:|\n")
		for vi, v := range r.variants {
			cpu, rate := "", ""
			if bare >= 0 {
				cpu = fmt.Sprintf("%.2f", r.ratio(li, vi, bare, func(m measurement) float64 { return float64(m.CPU) }))
				rate = fmt.Sprintf("%.2f", r.ratio(li, vi, bare, rateOf))
			}
			q := func(x float64) string {
				return of(r, li, vi, func(m measurement) time.Duration { return m.Latency.quantile(x) }).String()
			}
			p("| %s | %.2f µs | %s | %.0f | %s | %s | %s | %s |\n", v.Name, float64(of(r, li, vi, cpuOf))/1e3, cpu, of(r, li, vi, rateOf), rate, q(.5), q(.99), q(.999))
		}
	}
	p("\n## Start-up and memory\n\nWasm module: %.2f MB. Start-up is from the start of the process to its first accepted connection, on one processor.\n\n", float64(r.wasmBytes)/1e6)
	p("| Envoy with | start | RSS, idle | RSS, after all loads |\n|---|---:|---:|---:|\n")
	for vi, v := range r.variants {
		p("| %s | %.2f s | %.0f MB | %.0f MB |\n", v.Name, median(r.starts[vi]).Seconds(), float64(median(r.idleRSS[vi]))/1e6, float64(r.busyRSS[vi])/1e6)
	}
	r.targets(p)
	return b.String()
}

// targets holds the headline load against what the project promises.
func (r *report) targets(p func(string, ...any)) {
	bare, none, hundred, native := r.find("tcp_proxy"), r.find("isthmus"), r.find("isthmus, 100 rules"), r.find("dubbo_proxy")
	if min(bare, none, hundred, native) < 0 {
		return
	}
	p("\n## Targets\n\nAt the first load above.\n\n| Target | measured | met |\n|---|---:|---|\n")
	row := func(what string, got, limit float64, atMost bool, unit string) {
		met := "yes"
		if atMost && got > limit || !atMost && got < limit {
			met = "**no**"
		}
		p("| %s | %.2f%s | %s |\n", what, got, unit, met)
	}
	cpu := func(m measurement) float64 { return float64(m.CPU) }
	row("CPU per call, metrics only ≤ 1.25 × bare", r.ratio(0, none, bare, cpu), 1.25, true, " ×")
	row("CPU per call, metrics only ≤ 1/3 of dubbo_proxy", r.ratio(0, none, native, cpu), 1.0/3, true, " ×")
	row("CPU per call, 100 rules ≤ 1.5 × bare", r.ratio(0, hundred, bare, cpu), 1.5, true, " ×")
	row("throughput, metrics only ≥ 0.95 of bare", r.ratio(0, none, bare, rateOf), 0.95, false, " ×")
	row("throughput, 100 rules ≥ 0.85 of bare", r.ratio(0, hundred, bare, rateOf), 0.85, false, " ×")
	row("start-up above bare ≤ 1.8 s", (median(r.starts[none]) - median(r.starts[bare])).Seconds(), 1.8, true, " s")
	row("memory above bare, idle ≤ 90 MB", float64(median(r.idleRSS[none])-median(r.idleRSS[bare]))/1e6, 90, true, " MB")
}

// machine describes what this ran on, without naming it.
func machine() string {
	model := runtime.GOARCH
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				model = strings.TrimSpace(v)
				break
			}
		}
	}
	cpus := 0
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		cpus = strings.Count(string(b), "processor\t:")
	}
	load := ""
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		if f := strings.Fields(string(b)); len(f) > 0 {
			load = ", load average " + f[0]
		}
	}
	return fmt.Sprintf("%d × %s%s", cpus, model, load)
}

// version asks an Envoy binary for its version line.
func version(binary string) string {
	out, err := exec.Command(binary, "--version").Output()
	if err != nil {
		return "Envoy of unknown version"
	}
	for _, f := range strings.Split(string(out), "/") {
		if strings.Count(f, ".") == 2 {
			return "Envoy " + f
		}
	}
	return strings.TrimSpace(string(out))
}
