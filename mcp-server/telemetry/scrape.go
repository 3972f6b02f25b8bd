package telemetry

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	prommodel "github.com/prometheus/common/model"
)

// call identifies what the filter meters apart, but for the caller and the outcome.
type call struct {
	direction, system, service, version, group, method string
}

// ruleName names a rule: those of different kinds may have the same name. kind is the filter's word for it, "" in an Envoy that does not
// make a label of it.
type ruleName struct{ kind, rule string }

// ruleAction is one thing that one rule did.
type ruleAction struct {
	ruleName
	action string
}

// bucket is one bucket of a method's histogram. The filter times all versions and groups of a method together, so those of its
// call are "".
type bucket struct {
	call
	le float64 // milliseconds; +Inf for the last one
}

// request is a call with its caller and its outcome.
type request struct {
	call
	caller, outcome string
}

// page is what one reading of one Envoy says. All but the gauges only grow, until the Envoy restarts.
type page struct {
	at          time.Time
	requests    map[request]float64
	buckets     map[bucket]float64
	rules       map[ruleAction]float64
	gauges      map[ruleName]RuleState
	inFlight    map[call]float64
	faults      map[fault]float64
	subsets     map[subsetSeries]float64
	generations []string // sorted
	rejected    bool     // the filter has refused a configuration
	series      int
}

// fetch reads one page.
func fetch(ctx context.Context, client *http.Client, url string) (*page, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", "text/plain;version=0.0.4")
	answer, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it answers %s", answer.Status)
	}
	return parse(answer.Body, time.Now())
}

// parse reads the filters' metrics off a page in Prometheus' text format. The many others that an Envoy has are passed over
// before they are parsed.
func parse(r io.Reader, now time.Time) (*page, error) {
	var ours bytes.Buffer
	limited := &io.LimitedReader{R: r, N: maxPageBytes + 1}
	lines := bufio.NewScanner(limited)
	lines.Buffer(make([]byte, 64<<10), maxLineBytes)
	for lines.Scan() {
		line := bytes.TrimPrefix(lines.Bytes(), []byte(customPrefix))
		if !bytes.HasPrefix(line, []byte("isthmus_")) {
			continue // also every comment: what a type is we know
		}
		ours.Write(line)
		ours.WriteByte('\n')
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the page: %w", err)
	}
	if limited.N <= 0 {
		return nil, fmt.Errorf("the page is longer than %d bytes", maxPageBytes)
	}
	parser := expfmt.NewTextParser(prommodel.UTF8Validation)
	families, err := parser.TextToMetricFamilies(&ours)
	if err != nil {
		return nil, fmt.Errorf("parse the page: %w", err)
	}
	p := &page{at: now, requests: map[request]float64{}, buckets: map[bucket]float64{}, rules: map[ruleAction]float64{}, gauges: map[ruleName]RuleState{}, inFlight: map[call]float64{}, faults: map[fault]float64{}, subsets: map[subsetSeries]float64{}}
	generations := map[string]bool{}
	for name, family := range families {
		for _, m := range family.Metric {
			if p.series++; p.series > maxSeries {
				return nil, fmt.Errorf("the page has more than %d series", maxSeries)
			}
			l, v := labelsOf(m), value(m)
			switch name {
			case metricRequests:
				p.requests[request{callOf(l), l[labelCaller], l[labelOutcome]}] += v
			case metricBucket:
				if le, ok := bound(l[labelLE]); ok {
					p.buckets[bucket{callOf(l).timed(), le}] += v
				}
			case metricInFlight:
				p.inFlight[callOf(l).timed()] += v
			case metricSubsetRequests:
				if l[labelOutcome] != "" {
					p.subsets[subsetSeries{Subset: subsetOf(l), outcome: l[labelOutcome]}] += v
				}
			case metricSubsetBucket:
				if le, ok := bound(l[labelLE]); ok {
					p.subsets[subsetSeries{Subset: subsetOf(l), le: le}] += v
				}
			case metricSubsetSum, metricSubsetCount:
				p.subsets[subsetSeries{Subset: subsetOf(l), what: name}] += v
			case metricRuleHits:
				p.rules[ruleAction{ruleOf(l), l[labelAction]}] += v
			case metricTokens:
				g := p.gauges[ruleOf(l)]
				g.Tokens = &v
				p.gauges[ruleOf(l)] = g
			case metricRunning:
				g := p.gauges[ruleOf(l)]
				g.Running = &v
				p.gauges[ruleOf(l)] = g
			case metricQueue:
				g := p.gauges[ruleOf(l)]
				g.Queue = &v
				p.gauges[ruleOf(l)] = g
			case metricCircuit:
				if v >= 0 && int(v) < len(circuits) {
					g := p.gauges[ruleOf(l)]
					if e := l[labelEndpoint]; e != "" {
						g.Circuits = append(g.Circuits, Circuit{endpointOf(e), circuits[int(v)]})
					} else {
						g.Circuit = circuits[int(v)]
					}
					p.gauges[ruleOf(l)] = g
				}
			case metricFaults:
				p.faults[fault{l[labelDirection], l[labelSystem], l[labelReason]}] += v
			case metricConns:
				if l[labelSystem] == "tls" {
					p.faults[fault{l[labelDirection], "", FaultEncrypted}] += v
				}
			case metricRejected:
				p.rejected = p.rejected || v > 0
			case metricConfig:
				if v > 0 && l[labelGeneration] != "" {
					generations[l[labelGeneration]] = true
				}
			}
		}
	}
	for _, g := range p.gauges {
		slices.SortFunc(g.Circuits, func(a, b Circuit) int { return cmp.Compare(a.Endpoint, b.Endpoint) })
	}
	p.generations = slices.Sorted(maps.Keys(generations))
	return p, nil
}

func labelsOf(m *dto.Metric) map[string]string {
	out := make(map[string]string, len(m.Label))
	for _, l := range m.Label {
		out[l.GetName()] = l.GetValue()
	}
	return out
}

// maxValue bounds a sample: beyond it floats no longer count in ones.
const maxValue = 1 << 53

// value returns a sample's value, whatever its type is taken for; 0 where it is none that can be counted with.
func value(m *dto.Metric) float64 {
	var v float64
	switch {
	case m.Untyped != nil:
		v = m.Untyped.GetValue()
	case m.Counter != nil:
		v = m.Counter.GetValue()
	case m.Gauge != nil:
		v = m.Gauge.GetValue()
	}
	if v >= -maxValue && v <= maxValue { // not so for NaN
		return v
	}
	return 0
}

// circuits are the phases of a circuit, as the filter's breaker.Phase numbers them.
var circuits = []string{"closed", "open", "halfOpen"}

// endpointOf reads the label of an endpoint, in which colons are underscores: 10.0.0.2_20880, fd00_0_0_0_0_0_0_1_20880.
func endpointOf(label string) string {
	i := strings.LastIndexByte(label, '_')
	if i < 0 {
		return label
	}
	address, err := netip.ParseAddr(strings.ReplaceAll(label[:i], "_", ":"))
	if err != nil {
		return label
	}
	port, err := strconv.ParseUint(label[i+1:], 10, 16)
	if err != nil {
		return label
	}
	return netip.AddrPortFrom(address, uint16(port)).String()
}

func ruleOf(l map[string]string) ruleName { return ruleName{l[labelRuleKind], l[labelRule]} }

func callOf(l map[string]string) call {
	version := l[labelVersion]
	if l[labelSystem] == "dubbo" && version == "0.0.0" {
		version = "" // on the wire that is how Dubbo says "none" (BaseServiceMetadata), and services are known without it
	}
	return call{l[labelDirection], l[labelSystem], l[labelService], version, l[labelGroup], l[labelMethod]}
}

func bound(le string) (float64, bool) {
	var v float64
	if strings.EqualFold(strings.TrimPrefix(le, "+"), "inf") {
		return infinity, true
	}
	if _, err := fmt.Sscan(le, &v); err != nil || v <= 0 {
		return 0, false
	}
	return v, true
}

// timed returns what the filter times together.
func (c call) timed() call {
	c.version, c.group = "", ""
	return c
}
