package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A report renders what was measured.
type report struct {
	plan                  *plan
	command               string
	machine               string
	envoy                 string
	at                    time.Time
	wasmBytes, emptyBytes int64
}

// median returns the middle value, of an even number the lower one of the two in the middle. There must be one.
func median[T cmp.Ordered](v []T) T {
	s := slices.Sorted(slices.Values(v))
	return s[(len(s)-1)/2]
}

// of returns the median of what f reads of the rounds of a cell.
func (s *series) of(l, v int, f func(measurement) float64) float64 {
	var all []float64
	for _, m := range s.cells[l][v] {
		all = append(all, f(m))
	}
	return median(all)
}

// ratio returns the median over rounds of a's figure over b's of the same round: what drifts from round to round cancels.
func (s *series) ratio(l, a, b int, f func(measurement) float64) float64 {
	x, y := s.cells[l][a], s.cells[l][b]
	var all []float64
	for i := range x {
		all = append(all, f(x[i])/f(y[i]))
	}
	return median(all)
}

// find returns the index of a variant, -1 if there is none of that name.
func (s *series) find(name string) int {
	return slices.IndexFunc(s.variants, func(v variant) bool { return v.Name == name })
}

// What is read of a measurement. Times are in µs.
func cpuOf(m measurement) float64  { return float64(m.CPU) / 1e3 }
func rateOf(m measurement) float64 { return float64(m.Calls) / m.Elapsed.Seconds() }
func busyOf(m measurement) float64 { return m.Busy }
func latencyOf(p float64) func(measurement) float64 {
	return func(m measurement) float64 { return float64(m.Latency.quantile(p).Microseconds()) }
}

// latencyText shows µs as it is easy to read.
func latencyText(us float64) string {
	if us < 1000 {
		return fmt.Sprintf("%.0f µs", us)
	}
	return fmt.Sprintf("%.2f ms", us/1000)
}

const megabyte = 1e6

// markdown is the whole report.
func (r *report) markdown() string {
	var b strings.Builder
	p := func(format string, a ...any) { fmt.Fprintf(&b, format, a...) }
	p("# What the filter costs\n\nWritten by `make bench`; do not edit.\n\n")
	p("- %s, by `%s`\n- %s\n- %s, one worker\n", r.at.Format("2006-01-02"), r.command, r.machine, r.envoy)
	p("- isthmus.wasm: %.2f MB (an empty Go module: %.2f MB)\n\n", float64(r.wasmBytes)/megabyte, float64(r.emptyBytes)/megabyte)
	p("Calls carry an argument of 1 KB. Each figure is the median of %s of %s; the variants of a table take turns within a round, and a ratio is the\n"+
		"median of the ratios within a round. CPU is the processor time of all threads of Envoy, kernel included; calls/s per core is its reverse, what a\n"+
		"worker with a processor to itself could do. Busy is the part of a processor that Envoy took.\n", plural(r.plan.rounds, "round"), r.plan.duration)
	r.targets(p)
	for _, s := range r.plan.series {
		s.tables(p)
	}
	if len(r.plan.startups) > 0 {
		r.startups(p)
	}
	if r.plan.spread != nil {
		r.plan.spread.table(p)
	}
	return b.String()
}

// tables writes one table for each load.
func (s *series) tables(p func(string, ...any)) {
	p("\n## %s\n", s.title)
	if s.text != "" {
		p("\n%s\n", s.text)
	}
	bare := s.find(nameBare)
	for l, load := range s.loads {
		p("\n### %s, %s\n\n", s.title, load)
		p("| Through | CPU/call | × bare | calls/s per core | calls/s | × bare | p50 | p99 | p99.9 | busy |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n")
		for v, variant := range s.variants {
			if !variant.bears(load) {
				p("| %s | not measured with more than %d calls in flight: it opens a connection to the server for each |  |  |  |  |  |  |  |  |\n", variant.Name, variant.MaxInFlight)
				continue
			}
			cpu, rate := "", ""
			if bare >= 0 {
				cpu, rate = fmt.Sprintf("%.2f", s.ratio(l, v, bare, cpuOf)), fmt.Sprintf("%.2f", s.ratio(l, v, bare, rateOf))
			}
			p("| %s | %.2f µs | %s | %.0f | %.0f | %s | %s | %s | %s | %.0f %% |\n", variant.Name, s.of(l, v, cpuOf), cpu, 1e6/s.of(l, v, cpuOf),
				s.of(l, v, rateOf), rate, latencyText(s.of(l, v, latencyOf(.5))), latencyText(s.of(l, v, latencyOf(.99))),
				latencyText(s.of(l, v, latencyOf(.999))), 100*s.of(l, v, busyOf))
		}
		if l < len(s.published) {
			p("%s\n", s.published[l])
		}
	}
}

// startup finds a row of the plan, nil if there is none.
func (r *report) startup(name string, workers int) *startup {
	for _, s := range r.plan.startups {
		if s.Name == name && s.workers == workers {
			return s
		}
	}
	return nil
}

// startups writes the table of start-up time and memory.
func (r *report) startups(p func(string, ...any)) {
	p("\n## Start-up and memory\n\nStart-up is from the start of the process until all its workers run, on all processors; CPU is the processor time until then. Memory is resident; idle is\nwhen it falls no more, with free memory given back to the system as in manifests/bootstrap.\nThe last column is that of one worker.\n\n")
	p("| Envoy with | start-up | CPU | memory, idle | a further worker | after the Dubbo loads |\n|---|---:|---:|---:|---:|---:|\n")
	for _, s := range r.plan.startups {
		if s.workers != 1 {
			continue
		}
		further, loaded := "", ""
		if many := r.startup(s.Name, manyWorkers); many != nil {
			further = fmt.Sprintf("%.1f MB", perWorker(s, many)/megabyte)
		}
		for _, series := range r.plan.series {
			if v := series.find(s.Name); v >= 0 && series.title == titleDubbo {
				loaded = fmt.Sprintf("%.0f MB", float64(series.loaded[v])/megabyte)
			}
		}
		p("| %s | %.2f s | %.2f s | %.0f MB | %s | %s |\n", s.Name, median(s.ready).Seconds(), median(s.cpu).Seconds(), float64(median(s.rss))/megabyte, further, loaded)
	}
}

// perWorker is how many bytes each worker after the first takes.
func perWorker(one, many *startup) float64 {
	return float64(median(many.rss)-median(one.rss)) / float64(many.workers-one.workers)
}

// A target is a promise and what became of it.
type target struct {
	what    string
	got     float64
	limit   float64
	atLeast bool // the limit is a lower one
	unit    string
}

func (t target) met() bool {
	if t.atLeast {
		return t.got >= t.limit
	}
	return t.got <= t.limit
}

// series finds a series by its title, nil if it is left out.
func (r *report) series(title string) *series {
	for _, s := range r.plan.series {
		if s.title == title {
			return s
		}
	}
	return nil
}

// targets holds what was measured against what the project promises.
func (r *report) targets(p func(string, ...any)) {
	var ts []target
	if s := r.series(titleDubbo); s != nil && s.find(nameBare) >= 0 {
		bare := s.find(nameBare)
		if none := s.find(nameFilter); none >= 0 {
			ts = append(ts, target{"CPU per call, metrics only ≤ 1.25 × bare", s.ratio(0, none, bare, cpuOf), 1.25, false, " ×"})
			if native := s.find(nameDubbo); native >= 0 {
				ts = append(ts, target{"CPU per call, metrics only ≤ 1/3 of dubbo_proxy", s.ratio(0, none, native, cpuOf), 1.0 / 3, false, " ×"})
			}
			ts = append(ts, target{"throughput, metrics only ≥ 0.95 of bare", s.ratio(0, none, bare, rateOf), 0.95, true, " ×"})
		}
		if hundred := s.find(nameHundred); hundred >= 0 {
			ts = append(ts, target{"CPU per call, 100 rules ≤ 1.5 × bare", s.ratio(0, hundred, bare, cpuOf), 1.5, false, " ×"},
				target{"throughput, 100 rules ≥ 0.85 of bare", s.ratio(0, hundred, bare, rateOf), 0.85, true, " ×"})
		}
	}
	if s := r.series(titleLifted); s != nil && s.find(nameLifted) >= 0 {
		lifted := s.find(nameLifted)
		if plain := s.find(nameHTTP2); plain >= 0 {
			ts = append(ts, target{"lifted: CPU per call ≤ 1.5 × plain HTTP/2", s.ratio(0, lifted, plain, cpuOf), 1.5, false, " ×"})
		}
		if none := s.find(nameFilter); none >= 0 {
			ts = append(ts, target{"lifted: one call at a time, p50 above metrics only ≤ 250 µs", s.of(1, lifted, latencyOf(.5)) - s.of(1, none, latencyOf(.5)), 250, false, " µs"})
		}
	}
	if s := r.series(titleLiftBolt); s != nil && s.find(nameLifted) >= 0 {
		ts = append(ts, target{"lifted: Bolt over two hops, calls/s per core ≥ 16000", 1e6 / s.of(0, s.find(nameLifted), cpuOf), 16000, true, ""})
	}
	if bare, none := r.startup(nameBare, 1), r.startup(nameFilter, 1); bare != nil && none != nil {
		ts = append(ts, target{"start-up above bare ≤ 1.8 s", (median(none.ready) - median(bare.ready)).Seconds(), 1.8, false, " s"},
			target{"memory above bare, idle ≤ 90 MB", float64(median(none.rss)-median(bare.rss)) / megabyte, 90, false, " MB"})
	}
	if s := r.plan.spread; s != nil {
		ts = append(ts, target{fmt.Sprintf("a change in a registry seen by Envoy, p99 ≤ %d ms", maxSpread), float64(s.envoy.quantile(.99).Microseconds()) / 1000, maxSpread, false, " ms"})
	}
	if len(ts) == 0 {
		return
	}
	p("\n## Targets\n\nThroughput and CPU per call are those of %s or, lifted, of its own tables, each with %s.\n\n| Target | measured | met |\n|---|---:|---|\n", titleDubbo, headline)
	for _, t := range ts {
		met := "yes"
		if !t.met() {
			met = "**no**"
		}
		p("| %s | %.2f%s | %s |\n", t.what, t.got, t.unit, met)
	}
}

// describeMachine describes what this runs on, without naming it.
func describeMachine() string {
	model := runtime.GOARCH
	cpus := runtime.NumCPU()
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				model = strings.TrimSpace(v)
				break
			}
		}
	}
	text := fmt.Sprintf("%d × %s", cpus, model)
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil {
		text += fmt.Sprintf(", %.0f GB", float64(info.Totalram)*float64(info.Unit)/1e9)
	}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		release, _, _ := strings.Cut(strings.TrimSpace(string(b)), "-")
		text += ", Linux " + release
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		if f := strings.Fields(string(b)); len(f) > 0 {
			text += "; load average when it began: " + f[0]
		}
	}
	return text
}

var versionField = regexp.MustCompile(`/(\d+\.\d+\.\d+)/`)

// envoyVersion asks an Envoy binary for its version.
func envoyVersion(ctx context.Context, binary string) string {
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if m := versionField.FindSubmatch(out); err == nil && m != nil {
		return "Envoy " + string(m[1])
	}
	return "Envoy of unknown version"
}
