package telemetry

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

// subsetPage is a page with the calls of one group; all took between 5 and 10 ms.
func subsetPage(subset string, ok, failed, exceptions int) string {
	l := fmt.Sprintf(`rpc_direction="client",rpc_system="dubbo",rpc_service="demo.Greet",rpc_version="0.0.0",rpc_group="g",rpc_subset=%q`, subset)
	n := ok + failed + exceptions
	text := ""
	for outcome, v := range map[string]int{"ok": ok, "timeout": failed, "exception": exceptions} {
		text += fmt.Sprintf("isthmus_rpc_subset_requests_total{%s,rpc_outcome=%q} %d\n", l, outcome, v)
	}
	for _, b := range []struct {
		le string
		n  int
	}{{"5", 0}, {"10", n}, {"+Inf", n}} {
		text += fmt.Sprintf("envoy_wasmcustom_isthmus_rpc_subset_duration_milliseconds_bucket{%s,le=%q} %d\n", l, b.le, b.n)
	}
	return text + fmt.Sprintf("isthmus_rpc_subset_duration_milliseconds_sum{%s} %d\nisthmus_rpc_subset_duration_milliseconds_count{%s} %d\n", l, 8*n, l, n)
}

// The calls of a group are those since the scraper began, whatever there was before and whichever Envoy begins anew.
func TestSubsets(t *testing.T) {
	now := time.Now()
	s := New(Options{Targets: []Target{{"a", "http://a"}, {"b", "http://b"}}})
	k := Subset{System: "dubbo", Service: "demo.Greet", Group: "g", Subset: "v2"}
	for i, pages := range [][2]string{
		{subsetPage("v2", 1000, 500, 0), ""},
		{subsetPage("v2", 1080, 510, 5), subsetPage("v2", 40, 0, 0)}, // b has had no such calls before
		{subsetPage("v2", 20, 0, 0) + subsetPage("v1", 300, 0, 0), subsetPage("v2", 45, 0, 0)},
	} {
		for j, target := range s.targets {
			s.took(target, read(t, pages[j], now.Add(time.Duration(i-2)*time.Second)), nil)
		}
	}
	got := s.Subsets()[k]
	if got.Total() != 80+10+5+40+20+5 || got.Failed(false) != 10 || got.Failed(true) != 15 {
		t.Errorf("%+v", got)
	}
	if p99, ok := got.Quantile(0.99); !ok || !near(p99, 9.95) {
		t.Errorf("p99 %v %v", p99, ok)
	}
	if average, ok := got.Average(); !ok || !near(average, 8) {
		t.Errorf("average %v %v", average, ok)
	}
	if _, ok := (Calls{}).Average(); ok {
		t.Error("an average of nothing")
	}
	if _, ok := (Calls{}).Quantile(0.5); ok {
		t.Error("a median of nothing")
	}
	since := got.Since(Calls{Outcomes: map[string]float64{"ok": 100}, Buckets: map[float64]float64{10: 100, math.Inf(1): 100}, Millis: 800, Timed: 100})
	if since.Total() != 60 || since.Buckets[10] != 60 || since.Millis != 480 || since.Timed != 60 {
		t.Errorf("since: %+v", since)
	}
	// Over the last two seconds 160 calls went to v2 and 300 to v1.
	r := s.Report()
	if len(r.Subsets) != 2 || r.Subsets[0].Subset.Subset != "v1" || !near(r.Subsets[0].Rate, 150) || !near(r.Subsets[0].Share, 300.0/460) ||
		!near(r.Subsets[1].ErrorRatio, 10.0/160) || !near(r.Subsets[1].ExceptionRatio, 5.0/160) || r.Subsets[1].P99 == nil {
		t.Errorf("%+v", r.Subsets)
	}
}

// However many groups pages name, so many are kept.
func TestSubsetsAreBounded(t *testing.T) {
	s := New(Options{Targets: []Target{{"a", "http://a"}}})
	s.took(s.targets[0], read(t, "", time.Now()), nil)
	for i := range 3 {
		var text strings.Builder
		for j := range maxSubsets / 2 {
			fmt.Fprintf(&text, "isthmus_rpc_subset_requests_total{rpc_subset=\"s%d-%d\",rpc_outcome=\"ok\"} 1\n", i, j)
		}
		s.took(s.targets[0], read(t, text.String(), time.Now()), nil)
	}
	if n := len(s.Subsets()); n != maxSubsets {
		t.Errorf("%d groups", n)
	}
}
