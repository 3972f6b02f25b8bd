package telemetry

import (
	"cmp"
	"maps"
	"slices"
)

// The names of the metrics of groups of providers, as wasm-filters/filter has them.
const (
	metricSubsetRequests = "isthmus_rpc_subset_requests_total"
	metricSubsetBucket   = "isthmus_rpc_subset_duration_milliseconds_bucket"
	metricSubsetSum      = "isthmus_rpc_subset_duration_milliseconds_sum"
	metricSubsetCount    = "isthmus_rpc_subset_duration_milliseconds_count"
)

// labelSubset is the label that names a group, as wasm-filters/config has it.
const labelSubset = "rpc_subset"

// maxSubsets bounds the groups that are kept apart.
const maxSubsets = 20_000

// Subset is a group of a service's providers that routes send lifted calls to, as callers' sidecars name it.
type Subset struct {
	System  string `json:"system"`  // the protocol
	Service string `json:"service"` // interface name
	Version string `json:"version,omitempty"`
	Group   string `json:"group,omitempty"`
	Subset  string `json:"subset"` // its name in Istio's resources
}

func (a Subset) compare(b Subset) int {
	return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Group, b.Group), cmp.Compare(a.System, b.System), cmp.Compare(a.Subset, b.Subset))
}

// SubsetTraffic is what callers see of a group of providers.
type SubsetTraffic struct {
	Subset
	Rate           float64  `json:"rate"`           // calls a second
	Share          float64  `json:"share"`          // of the calls to the service that a route has sent to some group
	ErrorRatio     float64  `json:"errorRatio"`     // of the calls: RPC failures; no business exceptions
	ExceptionRatio float64  `json:"exceptionRatio"` // of the calls: business exceptions
	P50            *float64 `json:"p50Millis,omitempty"`
	P99            *float64 `json:"p99Millis,omitempty"` // both absent where no call has returned
}

// Calls are calls that have ended, by what came of them and by how long they took. The zero value is none. It is immutable.
type Calls struct {
	Outcomes map[string]float64  // by protocol.Outcome's name
	Buckets  map[float64]float64 // that took at most so many milliseconds: cumulative
	Millis   float64             // all of them together
	Timed    float64             // how many were timed
}

// Total is how many calls have ended.
func (c Calls) Total() float64 {
	n := 0.0
	for _, v := range c.Outcomes {
		n += v
	}
	return n
}

// Failed is how many of them failed; exceptions says whether those count whose business code threw.
func (c Calls) Failed(exceptions bool) float64 {
	n := 0.0
	for outcome, v := range c.Outcomes {
		if slices.Contains(errorOutcomes, outcome) || exceptions && outcome == outcomeException {
			n += v
		}
	}
	return n
}

// Quantile estimates a percentile of how long they took, in milliseconds; ok is false where none was timed.
func (c Calls) Quantile(q float64) (millis float64, ok bool) {
	if v := quantile(c.Buckets, q); v != nil {
		return *v, true
	}
	return 0, false
}

// Average is how long they took on average, in milliseconds; ok is false where none was timed.
func (c Calls) Average() (millis float64, ok bool) {
	if c.Timed <= 0 {
		return 0, false
	}
	return c.Millis / c.Timed, true
}

// Since returns the calls in c that were not in before, an earlier look at the same.
func (c Calls) Since(before Calls) Calls {
	out := Calls{Outcomes: map[string]float64{}, Buckets: map[float64]float64{}, Millis: max(c.Millis-before.Millis, 0), Timed: max(c.Timed-before.Timed, 0)}
	for k, v := range c.Outcomes {
		if v -= before.Outcomes[k]; v > 0 {
			out.Outcomes[k] = v
		}
	}
	for le, v := range c.Buckets {
		out.Buckets[le] = max(v-before.Buckets[le], 0)
	}
	return out
}

// Plus returns the calls of both.
func (c Calls) Plus(d Calls) Calls {
	out := Calls{Outcomes: map[string]float64{}, Buckets: map[float64]float64{}, Millis: c.Millis + d.Millis, Timed: c.Timed + d.Timed}
	for _, x := range []Calls{c, d} {
		for k, v := range x.Outcomes {
			out.Outcomes[k] += v
		}
		for le, v := range x.Buckets {
			out.Buckets[le] += v
		}
	}
	return out
}

// subsetSeries is one number that a page has of a group. Only one of what follows the group is set.
type subsetSeries struct {
	Subset
	outcome string
	le      float64 // of a bucket
	what    string  // metricSubsetSum or metricSubsetCount
}

func subsetOf(l map[string]string) Subset {
	k := callOf(l)
	return Subset{k.system, k.service, k.version, k.group, l[labelSubset]}
}

// took adds one number to the calls of its group.
func took(to map[Subset]Calls, k subsetSeries, v float64) {
	c, ok := to[k.Subset]
	if !ok && len(to) == maxSubsets {
		return
	}
	if !ok {
		c = Calls{Outcomes: map[string]float64{}, Buckets: map[float64]float64{}}
	}
	switch {
	case k.outcome != "":
		c.Outcomes[k.outcome] += v
	case k.le > 0:
		c.Buckets[k.le] += v
	case k.what == metricSubsetSum:
		c.Millis += v
	case k.what == metricSubsetCount:
		c.Timed += v
	}
	to[k.Subset] = c
}

// count adds to a group's calls what has come since the page before. What was there when a page was read first is not counted: nobody
// knows how old it is.
func (s *Scraper) count(before, after *page) {
	for k, v := range after.subsets {
		if old := before.subsets[k]; v >= old {
			v -= old
		}
		took(s.subsets, k, v)
	}
}

// Subsets returns the calls of each group of providers that have ended since the Scraper was made, as far as pages were read.
func (s *Scraper) Subsets() map[Subset]Calls {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[Subset]Calls, len(s.subsets))
	for k, c := range s.subsets {
		out[k] = c.Plus(Calls{})
	}
	return out
}

// subsetTraffic returns what there is of groups in rates a second, sorted.
func subsetTraffic(rates map[Subset]Calls) []SubsetTraffic {
	of := func(k Subset) Subset { k.Subset = ""; return k }
	all := map[Subset]float64{}
	for k, c := range rates {
		all[of(k)] += c.Total()
	}
	out := []SubsetTraffic{}
	for _, k := range slices.SortedFunc(maps.Keys(rates), Subset.compare) {
		c := rates[k]
		t := SubsetTraffic{Subset: k, Rate: c.Total(), P50: quantile(c.Buckets, 0.50), P99: quantile(c.Buckets, 0.99)}
		if t.Rate > 0 {
			t.Share = t.Rate / all[of(k)]
			t.ErrorRatio = c.Failed(false) / t.Rate
			t.ExceptionRatio = c.Outcomes[outcomeException] / t.Rate
		}
		out = append(out, t)
	}
	return out
}
