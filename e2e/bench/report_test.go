package main

import (
	"io"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for name, c := range map[string]struct {
		in   []int
		want int
	}{
		"one":      {[]int{7}, 7},
		"odd":      {[]int{9, 1, 5}, 5},
		"even":     {[]int{4, 1, 3, 2}, 2},
		"outlier":  {[]int{1000, 2, 1, 3, 2}, 2},
		"repeated": {[]int{5, 5, 1, 5}, 5},
	} {
		if got := median(c.in); got != c.want {
			t.Errorf("%s: median(%v) = %d, want %d", name, c.in, got, c.want)
		}
	}
}

// run1 is a measurement of calls in one second, each of which took Envoy cpu.
func run1(calls int64, cpu time.Duration) measurement {
	s := &sample{Calls: calls, Elapsed: time.Second}
	s.Latency.add(100 * time.Microsecond)
	return measurement{sample: s, CPU: cpu, Busy: .5}
}

// TestRatio: a ratio is made within a round, so a round in which the machine was slow for all does not move it.
func TestRatio(t *testing.T) {
	s := &series{cells: [][][]measurement{{
		{run1(1000, 10), run1(500, 20), run1(1000, 10)},
		{run1(800, 12), run1(400, 24), run1(900, 99)},
	}}}
	if got := s.ratio(0, 1, 0, cpuOf); got != 1.2 {
		t.Errorf("ratio of CPU = %v, want 1.2", got)
	}
	if got := s.ratio(0, 1, 0, rateOf); got != .8 {
		t.Errorf("ratio of rates = %v, want 0.8", got)
	}
	if got := s.of(0, 1, cpuOf); got != .024 {
		t.Errorf("CPU = %v µs, want 0.024", got)
	}
}

func TestLatencies(t *testing.T) {
	var l latencies
	if got := l.quantile(.5); got != 0 {
		t.Errorf("quantile of nothing = %s", got)
	}
	for us := range 1000 {
		l.add(time.Duration(us) * time.Microsecond)
	}
	for p, want := range map[float64]time.Duration{0: 0, .1: 99, .5: 499, .99: 989, 1: 999} {
		got, want := l.quantile(p), want*time.Microsecond
		if diff := (got - want).Abs(); diff > want/fine+time.Microsecond {
			t.Errorf("quantile(%v) = %s, want about %s", p, got, want)
		}
	}
	var m latencies
	m.add(time.Hour)
	m.add(-time.Second)
	l.merge(&m)
	if got := l.quantile(1); got < 8*time.Minute {
		t.Errorf("the longest of all = %s", got)
	}
}

// TestBuckets: every latency is in the bucket whose value is next to it, and buckets are in order.
func TestBuckets(t *testing.T) {
	last := -1
	for us := uint64(0); us < 500_000_000; us += 1 + us/1000 {
		b := bucket(us)
		if b < last || b >= len(latencies{}) {
			t.Fatalf("bucket(%d) = %d after %d", us, b, last)
		}
		last = b
		if v := value(b); max(v, us)-min(v, us) > us/fine {
			t.Fatalf("value(bucket(%d)) = %d", us, v)
		}
	}
}

// testReport is a report whose figures are easy to compute with.
func testReport() *report {
	p, err := newPlan(options{quick: true, rounds: 1, duration: time.Second})
	if err != nil {
		panic(err)
	}
	cpu := map[string]time.Duration{nameBare: 4000, nameFilter: 5000, nameOne: 5200, nameHundred: 6400, nameDubbo: 20000, nameGeneric: 24000, nameHTTP2: 30000, nameLifted: 40000}
	for _, s := range p.series {
		s.cells = make([][][]measurement, len(s.loads))
		for l := range s.loads {
			for _, v := range s.variants {
				s.cells[l] = append(s.cells[l], []measurement{run1(int64(400_000_000/cpu[v.Name]), cpu[v.Name])})
			}
		}
		s.loaded = make([]int64, len(s.variants))
	}
	for _, s := range p.startups {
		s.ready, s.cpu, s.rss = []time.Duration{100 * time.Millisecond}, []time.Duration{200 * time.Millisecond}, []int64{60e6}
		if s.Module != "" {
			s.ready[0], s.rss[0] = 1600*time.Millisecond, 140e6
		}
		s.rss[0] += int64(s.workers-1) * 3e6
	}
	return &report{plan: p, command: "make bench", machine: "a machine", envoy: "Envoy 1.2.3", wasmBytes: 2_400_000, emptyBytes: 1_800_000}
}

func TestReport(t *testing.T) {
	text := testReport().markdown()
	for _, want := range []string{
		"- a machine\n", "- Envoy 1.2.3, one worker\n", "- isthmus.wasm: 2.40 MB (an empty Go module: 1.80 MB)\n",
		"| isthmus | 5.00 µs | 1.25 | 200000 | 80000 | 0.80 | 100 µs | 100 µs | 100 µs | 50 % |\n",
		"| MOSN, *as published, not measured here* |",
		"| isthmus | 1.60 s | 0.20 s | 140 MB | 3.0 MB | 0 MB |\n",
		"| CPU per call, metrics only ≤ 1.25 × bare | 1.25 × | yes |\n",
		"| CPU per call, metrics only ≤ 1/3 of dubbo_proxy | 0.25 × | yes |\n",
		"| throughput, metrics only ≥ 0.95 of bare | 0.80 × | **no** |\n",
		"| CPU per call, 100 rules ≤ 1.5 × bare | 1.60 × | **no** |\n",
		"| throughput, 100 rules ≥ 0.85 of bare | 0.62 × | **no** |\n",
		"| lifted: CPU per call ≤ 1.5 × plain HTTP/2 | 1.33 × | yes |\n",
		"| lifted: one call at a time, p50 above metrics only ≤ 250 µs | 0.00 µs | yes |\n",
		"| lifted: Bolt over two hops, calls/s per core ≥ 16000 | 25000.00 | yes |\n",
		"| start-up above bare ≤ 1.8 s | 1.50 s | yes |\n",
		"| memory above bare, idle ≤ 90 MB | 80.00 MB | yes |\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the report does not have %q:\n%s", want, text)
		}
	}
	columns := 0
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "|") {
			columns = 0
			continue
		}
		if n := strings.Count(line, "|"); columns == 0 {
			columns = n
		} else if n != columns {
			t.Errorf("%d bars in a table of %d: %s", n, columns, line)
		}
	}
}

func TestOptions(t *testing.T) {
	for args, want := range map[string]string{
		"":                           "make bench",
		"-quick":                     "make bench BENCH_ARGS='-quick'",
		"-quick -envoy /a/b":         "make bench BENCH_ARGS='-quick'",
		"-rounds 5 -duration 1500ms": "make bench",
		"-rounds 9 -duration 1s":     "make bench BENCH_ARGS='-rounds 9 -duration 1s'",
		"-only isthmus;tcp_proxy":    `make bench BENCH_ARGS='-only "isthmus;tcp_proxy"'`,
	} {
		o, err := parse(strings.Fields(args), io.Discard)
		if err != nil {
			t.Errorf("%q: %v", args, err)
		} else if got := o.command(); got != want {
			t.Errorf("%q: command %s, want %s", args, got, want)
		}
	}
	for _, args := range []string{"-rounds -1", "-duration -1s", "-nonsense", "more"} {
		if _, err := parse(strings.Fields(args), io.Discard); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}

func TestOnly(t *testing.T) {
	p, err := newPlan(options{rounds: 1, only: "tcp_proxy;dubbo_proxy"})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(p.series[0].variants); n != 2 {
		t.Errorf("%d variants of Dubbo, want 2", n)
	}
	for _, s := range p.startups {
		if s.Name != nameBare {
			t.Errorf("start-up of %s", s.Name)
		}
	}
	if _, err := newPlan(options{rounds: 1, only: "nginx"}); err == nil {
		t.Error("an unknown variant is taken")
	}
}
