// Package telemetry reads the metrics of the filters off the Prometheus pages of their Envoys and turns them into rates, error
// ratios and percentiles of the traffic of the last seconds.
package telemetry

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// The names of the metrics that are read, as wasm-filters/filter has them.
const (
	metricRequests = "isthmus_rpc_requests_total"
	metricBucket   = "isthmus_rpc_duration_milliseconds_bucket"
	metricInFlight = "isthmus_rpc_in_flight"
	metricRuleHits = "isthmus_rule_hits_total"
	metricTokens   = "isthmus_rule_tokens"
	metricRunning  = "isthmus_rule_running_calls"
	metricQueue    = "isthmus_rule_queue_milliseconds"
	metricCircuit  = "isthmus_rule_circuit_state"
	metricConfig   = "isthmus_filter_config_info"
	metricRejected = "isthmus_filter_config_rejected"
	metricFaults   = "isthmus_filter_faults_total"
	metricConns    = "isthmus_filter_connections_total"
)

// The names of the labels that are read, as wasm-filters/config has them; a test holds the two together.
const (
	labelDirection  = "rpc_direction"
	labelSystem     = "rpc_system"
	labelService    = "rpc_service"
	labelVersion    = "rpc_version"
	labelGroup      = "rpc_group"
	labelMethod     = "rpc_method"
	labelCaller     = "rpc_caller"
	labelOutcome    = "rpc_outcome"
	labelRuleKind   = "rpc_rule_kind"
	labelRule       = "rpc_rule_name"
	labelAction     = "rpc_rule_action"
	labelEndpoint   = "rpc_endpoint"
	labelGeneration = "rpc_filter_generation"
	labelReason     = "rpc_filter_reason"
	labelLE         = "le"
)

// customPrefix is what Envoy puts before the names of Wasm metrics where they are not in a namespace that it knows.
const customPrefix = "envoy_wasmcustom_"

// The bounds of what is read and kept.
const (
	maxPageBytes  = 64 << 20
	maxLineBytes  = 1 << 20
	maxSeries     = 200_000
	maxConcurrent = 16 // pages that are read at once
	pagesKept     = 6  // of each target: rates are over the last five intervals
	runsKept      = 64 // of each target: as many changes of the configuration ago a rule's "since" reaches
)

var infinity = math.Inf(1)

// Target is the Prometheus page of one Envoy.
type Target struct {
	Name string
	URL  string
}

// Options say what to read. The zero value of each field means its default.
type Options struct {
	Targets  []Target
	Interval time.Duration         // between two readings of a page; default 1 s
	Client   *http.Client          // default: one without proxies and redirects
	Log      *slog.Logger          // nil means nowhere
	Metrics  prometheus.Registerer // nil means nowhere
}

// Scraper reads the pages of its targets while Run runs.
type Scraper struct {
	log     *slog.Logger
	client  *http.Client
	scrapes *prometheus.CounterVec
	wake    chan struct{} // the targets have changed

	mu       sync.Mutex
	interval time.Duration
	targets  []*target
	subsets  map[Subset]Calls // since New
}

// target is one Envoy with what was read of it last.
type target struct {
	Target
	pages  []*page // oldest first, at most pagesKept
	runs   []Run   // oldest first, at most runsKept
	faults map[fault]happened
	err    string
	tried  time.Time
}

// Run is a generation of the filter's configuration that an Envoy was seen to run.
type Run struct {
	Generation string    // "" where no filter had any
	Since      time.Time // when it was first seen alone
}

// ran notes what a page says of the configuration. While workers change from one generation to the next there are two: then the old one counts.
func (t *target) ran(p *page) {
	generation := ""
	switch len(p.generations) {
	case 0:
	case 1:
		generation = p.generations[0]
	default:
		return
	}
	if n := len(t.runs); n > 0 && t.runs[n-1].Generation == generation {
		return
	}
	if len(t.runs) == runsKept {
		t.runs = t.runs[:copy(t.runs, t.runs[1:])]
	}
	t.runs = append(t.runs, Run{generation, p.at})
}

// New returns a Scraper that reads nothing until Run.
func New(o Options) *Scraper {
	s := &Scraper{log: o.Log, client: o.Client, wake: make(chan struct{}, 1), subsets: map[Subset]Calls{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.client == nil {
		s.client = &http.Client{
			Transport:     &http.Transport{MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute, ResponseHeaderTimeout: 10 * time.Second, DisableCompression: false},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	s.scrapes = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "isthmus_telemetry_scrapes_total", Help: "Readings of the pages of Envoys, by result."}, []string{"result"})
	if o.Metrics != nil {
		o.Metrics.MustRegister(s.scrapes)
	}
	s.SetTargets(o.Targets, o.Interval)
	return s
}

// SetTargets replaces the targets; what was read of those that stay is kept. An interval of 0 means 1 s.
func (s *Scraper) SetTargets(targets []Target, interval time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.interval = cmp.Or(interval, time.Second)
	have := map[Target]*target{}
	for _, t := range s.targets {
		have[t.Target] = t
	}
	s.targets = nil
	for _, t := range targets {
		if old, ok := have[t]; ok {
			s.targets = append(s.targets, old)
		} else {
			s.targets = append(s.targets, &target{Target: t})
		}
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run reads all pages once an interval until ctx is done. It returns nil.
func (s *Scraper) Run(ctx context.Context) error {
	defer s.client.CloseIdleConnections()
	for {
		began := time.Now()
		interval := s.round(ctx)
		timer := time.NewTimer(max(interval-time.Since(began), interval/10))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-s.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// round reads every page once, a few at a time, each within one interval (but a second at least).
func (s *Scraper) round(ctx context.Context) time.Duration {
	s.mu.Lock()
	targets, interval := slices.Clone(s.targets), s.interval
	s.mu.Unlock()
	var all sync.WaitGroup
	room := make(chan struct{}, maxConcurrent)
	for _, t := range targets {
		room <- struct{}{}
		all.Add(1)
		go func() {
			defer func() { <-room; all.Done() }()
			ctx, cancel := context.WithTimeout(ctx, max(interval, time.Second))
			defer cancel()
			p, err := fetch(ctx, s.client, scrapeURL(t.URL))
			s.took(t, p, err)
		}()
	}
	all.Wait()
	return interval
}

// scrapeURL asks an Envoy for our metrics only, where nobody has said what to ask for: it has a great many others.
func scrapeURL(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.RawQuery != "" || !strings.HasSuffix(u.Path, "/stats/prometheus") {
		return raw
	}
	u.RawQuery = "filter=isthmus_"
	return u.String()
}

func (s *Scraper) took(t *target, p *page, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.tried = time.Now()
	if err != nil {
		s.scrapes.WithLabelValues("error").Inc()
		if t.err == "" {
			s.log.Warn("cannot read a page of metrics", "target", t.Name, "error", err)
		}
		t.err = err.Error()
		return
	}
	s.scrapes.WithLabelValues("ok").Inc()
	if t.err != "" {
		s.log.Info("a page of metrics can be read again", "target", t.Name)
	}
	t.err = ""
	t.ran(p)
	t.faulted(p)
	if n := len(t.pages); n > 0 {
		s.count(t.pages[n-1], p)
	}
	if t.pages = append(t.pages, p); len(t.pages) > pagesKept {
		t.pages = slices.Clone(t.pages[1:]) // so that the first one can be freed
	}
}

// Report is the traffic of the last seconds.
type Report struct {
	Time          time.Time `json:"time"`
	WindowSeconds float64   `json:"windowSeconds"` // that the rates are over, at most
	Targets       []Status  `json:"targets"`       // in configured order
	Methods       []Traffic `json:"methods"`       // sorted by service, version, group, method, direction
	Services      []Traffic `json:"services"`      // the methods of each service together; Method is ""
	Rules         []Rule    `json:"rules"`         // sorted by name and kind
	Edges         []Edge    `json:"edges"`         // sorted by caller and service
	Faults        []Fault   `json:"faults"`        // of the last ten minutes, in the order of the targets

	// Subsets are the groups of providers that routes send lifted calls to; sorted by service, version, group and name.
	Subsets []SubsetTraffic `json:"subsets"`
}

// Status is the state of one target.
type Status struct {
	Name        string    `json:"name"`
	URL         string    `json:"url"`
	Up          bool      `json:"up"`                       // it could be read the last time
	Error       string    `json:"error,omitempty"`          // why not
	LastRead    time.Time `json:"lastRead,omitzero"`        // with success
	Generations []string  `json:"generations,omitempty"`    // of the configuration that its filters run; more than one while it changes
	Rejected    bool      `json:"configRejected,omitempty"` // its filters have refused the last configuration and run the one before
	Series      int       `json:"series"`
	Runs        []Run     `json:"-"` // what it was seen to run, the latest last
}

// Traffic is that of one method, or of one service, at one end of the calls.
type Traffic struct {
	Direction string `json:"direction"` // client: seen at the callers; server: seen at the providers
	System    string `json:"system"`    // the protocol
	Service   string `json:"service"`   // interface name
	Version   string `json:"version,omitempty"`
	Group     string `json:"group,omitempty"`
	Method    string `json:"method,omitempty"`

	Rate           float64            `json:"rate"`               // calls a second, those that were rejected too
	ErrorRatio     float64            `json:"errorRatio"`         // of the calls: RPC failures; neither business exceptions nor rejections
	ExceptionRatio float64            `json:"exceptionRatio"`     // of the calls: business exceptions
	RejectedRatio  float64            `json:"rejectedRatio"`      // of the calls: by rules
	Outcomes       map[string]float64 `json:"outcomes,omitempty"` // calls a second by outcome

	// The following are of all versions and groups of the service together: the filter times them so.
	P50      *float64 `json:"p50Millis,omitempty"` // absent where no call has returned
	P90      *float64 `json:"p90Millis,omitempty"`
	P99      *float64 `json:"p99Millis,omitempty"`
	InFlight float64  `json:"inFlight"`
}

// Rule is what a rule did.
type Rule struct {
	Kind    string             `json:"kind,omitempty"` // the filter's word: access, faultInjection, degrade, circuitBreaker, throttle; "" where Envoy does not show it
	Name    string             `json:"name"`           // namespace/name
	Rates   map[string]float64 `json:"rates"`          // a second, by action: admit, reject, would_reject
	Totals  map[string]float64 `json:"totals"`         // since the Envoys started
	Targets []string           `json:"targets"`        // whose filters have counted anything for it
	States  []RuleState        `json:"states,omitempty"`
}

// RuleState is where a rule stands in one Envoy. What its kind does not have is absent.
type RuleState struct {
	Target  string   `json:"target"`
	Tokens  *float64 `json:"tokens,omitempty"`      // in the bucket of a rate
	Running *float64 `json:"running,omitempty"`     // calls under way, of a concurrency limit
	Queue   *float64 `json:"queueMillis,omitempty"` // how long the next call of a rate with a queue would wait
	Circuit string   `json:"circuit,omitempty"`     // closed, open, halfOpen
	// Circuits are those of a rule that has one for each endpoint, sorted by it.
	Circuits []Circuit `json:"circuits,omitempty"`
}

// Circuit is where calls to one endpoint stand.
type Circuit struct {
	Endpoint string `json:"endpoint"` // 10.0.0.2:20880, [fd00::1]:20880; "_other" is the worst of all that the filter does not show one by one
	State    string `json:"state"`    // closed, open, halfOpen
}

// Edge is who calls whom.
type Edge struct {
	Caller    string  `json:"caller"` // application; "" where it is not known
	Service   string  `json:"service"`
	Version   string  `json:"version,omitempty"`
	Group     string  `json:"group,omitempty"`
	Direction string  `json:"direction"`
	Rate      float64 `json:"rate"`
	Errors    float64 `json:"errors"` // a second
}

// errorOutcomes are the outcomes that are failures of the RPC (protocol.Outcome of wasm-filters).
var errorOutcomes = []string{"timeout", "bad_request", "bad_response", "not_found", "overload", "error", "no_response", "closed"}

const (
	outcomeException = "exception"
	outcomeRejected  = "rejected"
)

// Report returns the traffic of the last seconds. A target that cannot be read takes part for as long as what was read of it
// is within the window.
func (s *Scraper) Report() Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	window := s.interval * (pagesKept - 1)
	r := Report{Time: now, WindowSeconds: window.Seconds(), Targets: []Status{}, Faults: []Fault{}}
	sum := newSums()
	for _, t := range s.targets {
		status := Status{Name: t.Name, URL: t.URL, Up: t.err == "" && len(t.pages) > 0, Error: t.err}
		if n := len(t.pages); n > 0 {
			last := t.pages[n-1]
			status.LastRead, status.Series, status.Generations, status.Rejected = last.at, last.series, last.generations, last.rejected
			status.Runs = slices.Clone(t.runs)
			// Twice the window: a target that is slow to answer is read less often.
			if now.Sub(last.at) <= 2*window {
				sum.add(t.Name, t.pages)
			}
		}
		r.Targets = append(r.Targets, status)
		r.Faults = append(r.Faults, t.recent(now)...)
	}
	sum.fill(&r)
	return r
}

// sums are rates a second over all targets.
type sums struct {
	requests map[request]float64
	buckets  map[call]map[float64]float64
	inFlight map[call]float64
	rules    map[ruleAction]float64
	totals   map[ruleAction]float64
	holders  map[ruleName]map[string]bool // rule: targets
	states   map[ruleName][]RuleState
	subsets  map[Subset]Calls
}

func newSums() *sums {
	return &sums{map[request]float64{}, map[call]map[float64]float64{}, map[call]float64{}, map[ruleAction]float64{}, map[ruleAction]float64{},
		map[ruleName]map[string]bool{}, map[ruleName][]RuleState{}, map[Subset]Calls{}}
}

// growth adds to out, for each counter, how much it has grown a second over pages; a counter that has become less began anew.
func growth[K comparable](pages []*page, of func(*page) map[K]float64, add func(K, float64)) {
	seconds := pages[len(pages)-1].at.Sub(pages[0].at).Seconds()
	if seconds <= 0 {
		return
	}
	for i := 1; i < len(pages); i++ {
		before := of(pages[i-1])
		for k, v := range of(pages[i]) {
			if old := before[k]; v >= old {
				v -= old
			}
			add(k, v/seconds) // 0 too: an empty bucket bounds the one above it
		}
	}
}

func (s *sums) add(name string, pages []*page) {
	last := pages[len(pages)-1]
	for k := range last.requests {
		s.requests[k] += 0 // it is there, with no traffic
	}
	growth(pages, func(p *page) map[request]float64 { return p.requests }, func(k request, v float64) { s.requests[k] += v })
	growth(pages, func(p *page) map[bucket]float64 { return p.buckets }, func(k bucket, v float64) {
		if s.buckets[k.call] == nil {
			s.buckets[k.call] = map[float64]float64{}
		}
		s.buckets[k.call][k.le] += v
	})
	growth(pages, func(p *page) map[ruleAction]float64 { return p.rules }, func(k ruleAction, v float64) { s.rules[k] += v })
	growth(pages, func(p *page) map[subsetSeries]float64 { return p.subsets }, func(k subsetSeries, v float64) { took(s.subsets, k, v) })
	for k, v := range last.inFlight {
		s.inFlight[k] += v
	}
	for k, v := range last.rules {
		s.totals[k] += v
		if s.holders[k.ruleName] == nil {
			s.holders[k.ruleName] = map[string]bool{}
		}
		s.holders[k.ruleName][name] = true
	}
	for k, state := range last.gauges {
		state.Target = name
		s.states[k] = append(s.states[k], state)
	}
}

func (s *sums) fill(r *Report) {
	methods, services := map[call]map[string]float64{}, map[call]map[string]float64{} // rates by outcome
	add := func(m map[call]map[string]float64, k call, outcome string, v float64) {
		if m[k] == nil {
			m[k] = map[string]float64{}
		}
		m[k][outcome] += v
	}
	times, serviceTimes := map[call]*timing{}, map[call]*timing{}
	each := func(k call, f func(*timing)) {
		for _, m := range []map[call]*timing{times, serviceTimes} {
			if m[k] == nil {
				m[k] = &timing{buckets: map[float64]float64{}}
			}
			f(m[k])
			k.method = ""
		}
	}
	type edge struct{ caller, service, version, group, direction string }
	edges := map[edge]*Edge{}
	for k, v := range s.requests {
		add(methods, k.call, k.outcome, v)
		service := k.call
		service.method = ""
		add(services, service, k.outcome, v)
		e := edge{k.caller, k.service, k.version, k.group, k.direction}
		if edges[e] == nil {
			edges[e] = &Edge{Caller: k.caller, Service: k.service, Version: k.version, Group: k.group, Direction: k.direction}
		}
		edges[e].Rate += v
		if slices.Contains(errorOutcomes, k.outcome) {
			edges[e].Errors += v
		}
	}
	for k, buckets := range s.buckets {
		for le, v := range buckets {
			each(k, func(t *timing) { t.buckets[le] += v })
		}
	}
	for k, v := range s.inFlight {
		each(k, func(t *timing) { t.inFlight += v })
	}
	r.Methods, r.Services = traffic(methods, times), traffic(services, serviceTimes)
	r.Subsets = subsetTraffic(s.subsets)
	r.Edges = []Edge{}
	for _, e := range edges {
		r.Edges = append(r.Edges, *e)
	}
	slices.SortFunc(r.Edges, func(a, b Edge) int {
		return cmp.Or(cmp.Compare(a.Caller, b.Caller), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Group, b.Group), cmp.Compare(a.Direction, b.Direction))
	})
	rules := map[ruleName]*Rule{}
	rule := func(k ruleName) *Rule {
		if rules[k] == nil {
			rules[k] = &Rule{Kind: k.kind, Name: k.rule, Rates: map[string]float64{}, Totals: map[string]float64{}, Targets: slices.Sorted(maps.Keys(s.holders[k])), States: s.states[k]}
		}
		return rules[k]
	}
	for k, total := range s.totals {
		rule(k.ruleName).Totals[k.action] = total
		rule(k.ruleName).Rates[k.action] = s.rules[k]
	}
	for k := range s.states {
		rule(k)
	}
	r.Rules = []Rule{}
	for _, x := range rules {
		r.Rules = append(r.Rules, *x)
	}
	slices.SortFunc(r.Rules, func(a, b Rule) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Kind, b.Kind)) })
}

// timing is what is timed of one method, or of one service.
type timing struct {
	buckets  map[float64]float64 // by upper bound, cumulative
	inFlight float64
}

func traffic(by map[call]map[string]float64, times map[call]*timing) []Traffic {
	out := []Traffic{}
	for k, outcomes := range by {
		t := Traffic{Direction: k.direction, System: k.system, Service: k.service, Version: k.version, Group: k.group, Method: k.method}
		var failed float64
		for outcome, rate := range outcomes {
			t.Rate += rate
			if slices.Contains(errorOutcomes, outcome) {
				failed += rate
			}
			if rate > 0 {
				if t.Outcomes == nil {
					t.Outcomes = map[string]float64{}
				}
				t.Outcomes[outcome] = rate
			}
		}
		if t.Rate > 0 {
			t.ErrorRatio = failed / t.Rate
			t.ExceptionRatio = outcomes[outcomeException] / t.Rate
			t.RejectedRatio = outcomes[outcomeRejected] / t.Rate
		}
		if timed := times[k.timed()]; timed != nil {
			t.P50, t.P90, t.P99 = quantile(timed.buckets, 0.50), quantile(timed.buckets, 0.90), quantile(timed.buckets, 0.99)
			t.InFlight = max(timed.inFlight, 0)
		}
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b Traffic) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Group, b.Group),
			cmp.Compare(a.Method, b.Method), cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.System, b.System))
	})
	return out
}

// quantile estimates a percentile off cumulative buckets as Prometheus' histogram_quantile does: evenly spread within a bucket,
// and at the highest bound for what lies above it. It is nil where there is nothing.
func quantile(buckets map[float64]float64, q float64) *float64 {
	bounds := slices.Sorted(maps.Keys(buckets))
	if len(bounds) == 0 {
		return nil
	}
	total := buckets[bounds[len(bounds)-1]]
	if total <= 0 {
		return nil
	}
	rank := q * total
	lower, below := 0.0, 0.0
	for _, le := range bounds {
		count := buckets[le]
		if count < rank {
			lower, below = le, max(below, count)
			continue
		}
		v := lower // of the last bucket only its lower bound is known
		if !math.IsInf(le, 1) && count > below {
			v = lower + (le-lower)*(rank-below)/(count-below)
		}
		return &v
	}
	return &lower
}
