package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// A series is one wire format, the ways that its calls go, and the loads.
type series struct {
	title     string
	text      string // below the title, in Markdown
	rpc       rpc
	hops      int  // Envoys in a row
	apart     bool // client and server have other processors than Envoy
	variants  []variant
	loads     []load
	published []string // by load: a row of what others measured, in Markdown

	cells  [][][]measurement // by load, variant and round
	loaded []int64           // by variant: resident memory of its Envoys after all loads, in bytes
}

// speaks is what is spoken with a variant.
func (s *series) speaks(v int) rpc {
	if other := s.variants[v].Speaks; other != nil {
		return *other
	}
	return s.rpc
}

// A startup is one way for Envoy to start.
type startup struct {
	variant
	workers int

	ready []time.Duration // by round
	cpu   []time.Duration // by round: processor time until then
	rss   []int64         // by round: resident memory before any load, in bytes
}

// A plan is all that is measured.
type plan struct {
	series   []*series
	startups []*startup
	spread   *spread // nil if it is not measured
	rounds   int
	starts   int // rounds of start-ups
	duration time.Duration
}

// headline is the load that the targets are stated for.
var headline = load{Conns: 4, InFlight: 16, Size: 1024}

// paced is the load of MOSN's published latency.
var paced = load{Conns: 200, InFlight: 64, Size: 1024, Rate: 2000}

// The names of the variants that ratios and targets are computed from.
const (
	nameBare    = "tcp_proxy"
	nameFilter  = "isthmus"
	nameOne     = "isthmus, 1 rule"
	nameHundred = "isthmus, 100 rules"
	nameDubbo   = "dubbo_proxy"
	nameGeneric = "generic_proxy"
	nameHTTP2   = "HTTP/2, as it is"
	nameLifted  = "isthmus, lifted"
	nameEmpty   = "an empty Go module"
	nameSpread  = "a change" // for -only
)

// The titles of the series that the targets are stated for.
const (
	titleDubbo    = "Dubbo"
	titleLifted   = "Dubbo, lifted"
	titleLiftBolt = "Bolt over two hops, lifted"
)

// single is the load by which added latency is measured.
var single = load{Conns: 1, InFlight: 1, Size: 1024}

// mosn is what MOSN published for headline's and for paced load, each a row.
var mosn = []string{
	"| MOSN, *as published, not measured here* |  |  | 16000 |  |  |  |  |  |  |",
	"| MOSN, *as published, not measured here* |  |  |  | 2000 |  |  | 1.19 ms |  |  |"}

// What is said below the titles.
const (
	textShared = "Envoy, client and server share one processor, so it is never idle: CPU per call is what a call costs an Envoy that has enough to do."
	textApart  = `Envoy has a processor to itself, client and server share the others. With only one other they cannot keep Envoy busy: it falls asleep
between calls, is woken for each, and wakes the other side, all of which is in its CPU per call, the same for each variant. An Envoy
that is busier, because it takes longer, finds more calls at once, which makes each cheaper.`
	textHops = `Two Envoys in a row, as a caller's and a provider's sidecar stand, both on one processor; client and server have others. CPU is that of both.
Beside it stands what MOSN published for Bolt with 1 KB over two hops on one core, on its authors' machine.`
	textLifted = `Each call becomes an HTTP/2 stream, is routed by Envoy's connection manager, and becomes a call again in the same Envoy, behind an internal listener.
Beside it stands what the same Envoy takes to proxy as many plain HTTP/2 requests with bodies and headers of the same length, which is what any user of
gRPC pays for routing by request.`
	textLiftHops = `The caller's Envoy lifts, the provider's lowers, and HTTP/2 is between them, both on one processor; client and server have others. CPU is that of both. Plain
HTTP/2 goes through two connection managers.`
)

// manyWorkers is how many workers Envoy has where the memory of a further one is measured.
const manyWorkers = 5

// rules returns n throttling rules that never reject: of a hundred, three match the load's calls, as where many teams
// share a mesh; a single one matches.
func rules(n int) []config.Throttle {
	var out []config.Throttle
	for i := range n {
		r := config.Throttle{Threshold: 1_000_000_000, Rule: config.Rule{Name: fmt.Sprintf("default/rule-%d", i),
			Target: config.Target{Service: config.Match{Exact: fmt.Sprintf("org.example.Service%d", i)}}}}
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

// filtered is the variant with our filter and n rules.
func filtered(name string, n int) variant {
	b, err := json.Marshal(config.Plugin{Generation: fmt.Sprintf("bench-%d", n), Throttle: rules(n)})
	if err != nil {
		panic(err) // our own type
	}
	return variant{Name: name, Filter: "wasm", Module: filterModule, Plugin: string(b)}
}

// newPlan says what is to be measured.
func newPlan(o options) (*plan, error) {
	var (
		bare    = variant{Name: nameBare, Filter: "tcp_proxy"}
		none    = filtered(nameFilter, 0)
		one     = filtered(nameOne, 1)
		hundred = filtered(nameHundred, 100)
		empty   = variant{Name: nameEmpty, Filter: "wasm", Module: emptyModule}
		plain   = variant{Name: nameHTTP2, Filter: "http2", Speaks: &http2}
		inside  = variant{Name: nameLifted, Filter: "lift in", Module: filterModule}
		between = variant{Name: nameLifted, Filter: "lift out", Far: "lower", Module: filterModule}
		native  = []variant{bare, none, one, hundred,
			// They open a connection to the server for each call in flight.
			{Name: nameDubbo, Filter: "dubbo_proxy", MaxInFlight: 1024}, {Name: nameGeneric, Filter: "generic_proxy", MaxInFlight: 1024}}
	)
	p := &plan{rounds: o.rounds, duration: o.duration, starts: min(o.rounds, 3), spread: &spread{services: 1000, changes: o.changes},
		series: []*series{
			{title: titleDubbo, text: textShared, rpc: dubbo, hops: 1, loads: []load{headline}, variants: native},
			{title: "Dubbo, Envoy apart", text: textApart, rpc: dubbo, hops: 1, apart: true, loads: []load{headline}, variants: native},
			{title: "Bolt", text: textShared, rpc: bolt, hops: 1, loads: []load{headline}, variants: []variant{bare, none, one, hundred}},
			{title: "Bolt over two hops", text: textHops, rpc: bolt, hops: 2, apart: true, loads: []load{headline, paced}, variants: []variant{bare, none, hundred}, published: mosn},
			{title: titleLifted, text: textLifted, rpc: dubbo, hops: 1, loads: []load{headline, single},
				variants: []variant{bare, none, {Name: nameDubbo, Filter: "dubbo_proxy", MaxInFlight: 1024}, plain, inside}},
			{title: titleLiftBolt, text: textLiftHops, rpc: bolt, hops: 2, apart: true, loads: []load{headline, single}, variants: []variant{bare, none, plain, between},
				published: mosn[:1]},
		},
		startups: []*startup{{variant: bare, workers: 1}, {variant: empty, workers: 1}, {variant: none, workers: 1}, {variant: hundred, workers: 1},
			{variant: bare, workers: manyWorkers}, {variant: none, workers: manyWorkers}},
	}
	if !o.quick {
		p.series[0].loads = append(p.series[0].loads,
			single, load{Conns: 1, InFlight: 64, Size: 1024},
			load{Conns: 16, InFlight: 1, Size: 1024}, load{Conns: 16, InFlight: 64, Size: 1024},
			load{Conns: 256, InFlight: 1, Size: 1024}, load{Conns: 256, InFlight: 64, Size: 1024})
	}
	if o.only != "" {
		if err := p.restrict(strings.Split(o.only, ";")); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// restrict leaves out the variants that names does not have.
func (p *plan) restrict(names []string) error {
	known := map[string]bool{nameSpread: true}
	if !slices.Contains(names, nameSpread) {
		p.spread = nil
	}
	for _, s := range p.series {
		s.variants = slices.DeleteFunc(slices.Clone(s.variants), func(v variant) bool { known[v.Name] = true; return !slices.Contains(names, v.Name) })
	}
	p.startups = slices.DeleteFunc(p.startups, func(s *startup) bool { known[s.Name] = true; return !slices.Contains(names, s.Name) })
	p.series = slices.DeleteFunc(p.series, func(s *series) bool { return len(s.variants) == 0 })
	for _, n := range names {
		if !known[n] {
			return fmt.Errorf("bench: no variant %q", n)
		}
	}
	return nil
}

// measurements is how many measurements of a load the plan has.
func (p *plan) measurements() int {
	n := 0
	for _, s := range p.series {
		for _, l := range s.loads {
			for _, v := range s.variants {
				if v.bears(l) {
					n += p.rounds
				}
			}
		}
	}
	return n
}
