// Package rollout releases a new version of a service in steps: a growing part of its calls goes from the old version's instances to the
// new one's, for as long as these do well, and all of them back where they do not. It writes one RouteRule for each release and reads what
// callers' sidecars meter.
package rollout

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
)

// Kind is that of the document that describes a release.
const Kind = "Rollout"

// Spec describes a release.
type Spec struct {
	// Which service. It must be lifted: of others the calls are not routed one by one.
	Service governance.RouteService `yaml:"service" json:"service"`
	// Labels of the old version's instances.
	Stable map[string]string `yaml:"stable" json:"stable"`
	// Labels of the new version's instances.
	Canary map[string]string `yaml:"canary" json:"canary"`
	// How many of the calls the new version gets, step by step: growing, and 100 % in the end, which is added where it is left out.
	Steps []Step `yaml:"steps" json:"steps"`
	// How long a step lasts at least. Default 1m; 1s to 24h.
	Interval governance.Duration `yaml:"interval" json:"interval,omitempty"`
	// The priority of the RouteRule among those of the service. Default 100.
	Priority *governance.Count `yaml:"priority" json:"priority,omitempty"`
	// What the new version must not do. Default: one call in a hundred more may fail than with the old one.
	Analysis Analysis `yaml:"analysis" json:"analysis,omitzero"`
}

// Step is one part of the way.
type Step struct {
	// How many of a hundred calls the new version gets. 1 to 100.
	Percent governance.Count `yaml:"percent" json:"percent"`
	// How long the step lasts at least. Default: as the whole release says.
	Interval governance.Duration `yaml:"interval" json:"interval,omitempty"`
}

// Analysis bounds what calls of the new version may do, as their callers see them. All that it says must hold.
type Analysis struct {
	// How many calls, at least, there must be in a step before it is judged. Default 50; 1 to 1000000.
	MinCalls governance.Count `yaml:"minCalls" json:"minCalls,omitempty"`
	// Whether a call fails if the business code threw: count (default) or ignore.
	Exceptions governance.Text `yaml:"exceptions" json:"exceptions,omitempty"`
	// How many of the calls may fail.
	ErrorRate ErrorRate `yaml:"errorRate" json:"errorRate,omitzero"`
	// How long the slowest of a hundred calls may take.
	P99 Latency `yaml:"p99" json:"p99,omitzero"`
	// How long calls may take on average.
	Average Latency `yaml:"average" json:"average,omitzero"`
}

// ErrorRate bounds the part of the calls that fail.
type ErrorRate struct {
	// At most this. 0.05 or "5%".
	Max governance.Ratio `yaml:"max" json:"max,omitempty"`
	// At most so many more of the calls than with the old version at the same time: with "1%", 3 % where the old one has 2 %.
	MaxIncrease governance.Ratio `yaml:"maxIncrease" json:"maxIncrease,omitempty"`
}

// Latency bounds how long calls take.
type Latency struct {
	// At most this. 1ms to 1h.
	Max governance.Duration `yaml:"max" json:"max,omitempty"`
	// At most so many times as long as with the old version at the same time. 1 to 1000.
	MaxFactor Factor `yaml:"maxFactor" json:"maxFactor,omitempty"`
}

// Factor is a number from 1 to 1000. Its zero value means none.
type Factor float64

// UnmarshalYAML takes numbers.
func (x *Factor) UnmarshalYAML(n *yaml.Node) error {
	var v float64
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" && n.Tag != "!!float" || n.Decode(&v) != nil || math.IsNaN(v) || v < 1 || v > 1000 {
		return adapters.Faults{{Line: n.Line, Message: "must be a number from 1 to 1000"}}
	}
	*x = Factor(v)
	return nil
}

// The words for Analysis.Exceptions.
const (
	ExceptionsCount  = "count"
	ExceptionsIgnore = "ignore"
)

// The defaults.
const (
	DefaultInterval = time.Minute
	DefaultMinCalls = 50
	DefaultPriority = 100
	// DefaultMaxIncrease is a hundredth, where an Analysis bounds nothing.
	DefaultMaxIncrease = 10_000
)

// The bounds of a Spec.
const (
	maxSteps    = 50
	maxMinCalls = 1_000_000
	minInterval = time.Second
	maxInterval = 24 * time.Hour
	maxLatency  = time.Hour
	whole       = 100 // percent
	million     = 1_000_000
)

// Validate implements adapters.Validator.
func (s *Spec) Validate() adapters.Faults {
	var f adapters.Faults
	if len(s.Stable) == 0 {
		f.Add("stable", "is missing: labels of the old version's instances")
	}
	if len(s.Canary) == 0 {
		f.Add("canary", "is missing: labels of the new version's instances")
	}
	if len(s.Stable) > 0 && governance.SubsetName(s.Stable, true) == governance.SubsetName(s.Canary, true) {
		f.Add("canary", "says the same instances as stable")
	}
	if len(s.Steps) == 0 {
		f.Add("steps", "are missing")
	}
	if len(s.Steps) > maxSteps {
		f.Add("steps", "are more than %d", maxSteps)
	}
	interval := func(path string, d governance.Duration, low, high time.Duration) {
		if d != 0 && (time.Duration(d) < low || time.Duration(d) > high) {
			f.Add(path, "must be from %s to %s, is %s", governance.Duration(low), governance.Duration(high), d)
		}
	}
	before := governance.Count(0)
	for i, step := range s.Steps {
		at := fmt.Sprintf("steps[%d]", i)
		switch {
		case step.Percent < 1 || step.Percent > whole:
			f.Add(at+".percent", "must be from 1 to 100")
		case step.Percent <= before:
			f.Add(at+".percent", "must be more than the %d of the step before", before)
		}
		before = max(before, step.Percent)
		interval(at+".interval", step.Interval, minInterval, maxInterval)
	}
	interval("interval", s.Interval, minInterval, maxInterval)
	a := &s.Analysis
	if a.MinCalls > maxMinCalls {
		f.Add("analysis.minCalls", "must be from 1 to %d", maxMinCalls)
	}
	if x := string(a.Exceptions); x != "" && x != ExceptionsCount && x != ExceptionsIgnore {
		f.Add("analysis.exceptions", "must be %s or %s", ExceptionsCount, ExceptionsIgnore)
	}
	interval("analysis.p99.max", a.P99.Max, time.Millisecond, maxLatency)
	interval("analysis.average.max", a.Average.Max, time.Millisecond, maxLatency)
	// What else there is goes into a RouteRule, which has its own idea of what is right.
	rule := s.rule(0, false)
	for _, fault := range rule.Validate() {
		switch {
		case strings.HasPrefix(fault.Path, "service"):
		case strings.HasPrefix(fault.Path, "routes[0].to[0].labels"):
			fault.Path = "stable"
		case strings.HasPrefix(fault.Path, "routes[0].to[1].labels"):
			fault.Path = "canary"
		}
		f = append(f, fault)
	}
	return f
}

// withDefaults returns a copy in which nothing is left to be filled in.
func (s *Spec) withDefaults() Spec {
	d := *s
	d.Steps = append([]Step(nil), s.Steps...)
	if n := len(d.Steps); n > 0 && d.Steps[n-1].Percent != whole {
		d.Steps = append(d.Steps, Step{Percent: whole})
	}
	d.Interval = cmp.Or(d.Interval, governance.Duration(DefaultInterval))
	for i := range d.Steps {
		d.Steps[i].Interval = cmp.Or(d.Steps[i].Interval, d.Interval)
	}
	if d.Priority == nil {
		d.Priority = new(governance.Count)
		*d.Priority = DefaultPriority
	}
	a := &d.Analysis
	a.MinCalls = cmp.Or(a.MinCalls, DefaultMinCalls)
	a.Exceptions = cmp.Or(a.Exceptions, ExceptionsCount)
	if a.ErrorRate == (ErrorRate{}) && a.P99 == (Latency{}) && a.Average == (Latency{}) {
		a.ErrorRate.MaxIncrease = DefaultMaxIncrease
	}
	return d
}

// noMethod is the name of no method.
const noMethod = " "

// rule is the RouteRule by which the new version gets so many of a hundred calls. announce is for one that only makes both versions known:
// then the service's calls go where they would go without it.
func (s *Spec) rule(percent governance.Count, announce bool) governance.RouteSpec {
	old := whole - min(percent, whole)
	out := governance.RouteSpec{Service: s.Service, Routes: []governance.Route{{To: []governance.RouteTarget{
		{Labels: s.Stable, Percent: &old}, {Labels: s.Canary, Percent: &percent}}}}}
	if announce {
		out.Routes[0].Match = []governance.RouteMatch{{Method: governance.Match{Exact: noMethod}}}
	}
	if s.Priority != nil {
		out.Priority = *s.Priority
	}
	return out
}

// document is the form of a Rollout.
type document struct {
	APIVersion string   `yaml:"apiVersion"`
	Kind       string   `yaml:"kind"`
	Metadata   metadata `yaml:"metadata"`
	Spec       Spec     `yaml:"spec"`
}

type metadata struct {
	Name        string            `yaml:"name" json:"name"`
	Namespace   string            `yaml:"namespace" json:"namespace,omitempty"`
	Labels      map[string]string `yaml:"labels" json:"labels,omitempty"`
	Annotations map[string]string `yaml:"annotations" json:"annotations,omitempty"`
}

// Validate implements adapters.Validator.
func (d *document) Validate() adapters.Faults {
	var f adapters.Faults
	if d.APIVersion != governance.APIVersion {
		f.Add("apiVersion", "must be %s, is %q", governance.APIVersion, d.APIVersion)
	}
	if d.Kind != Kind {
		f.Add("kind", "must be %s, is %q", Kind, d.Kind)
	}
	if !validName(d.Metadata.Name, maxName) {
		f.Add("metadata.name", "%q is no name: at most %d lower-case letters, digits and '-', beginning and ending with a letter or digit", clip(d.Metadata.Name), maxName)
	}
	if d.Metadata.Namespace != "" && !validName(d.Metadata.Namespace, 63) {
		f.Add("metadata.namespace", "%q is no name of a namespace", clip(d.Metadata.Namespace))
	}
	return append(f, d.Spec.Validate().Under("spec")...)
}

// maxName leaves room for what comes before it in a rule's name.
const maxName = 63

func validName(s string, limit int) bool {
	if len(s) == 0 || len(s) > limit || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}

// ID names a release.
type ID struct{ Namespace, Name string }

// String returns it as people write it: default/greet.
func (i ID) String() string { return i.Namespace + "/" + i.Name }

// rule is the ID of its RouteRule.
func (i ID) rule() governance.ID {
	return governance.ID{Kind: "RouteRule", Namespace: i.Namespace, Name: rulePrefix + i.Name}
}

// rulePrefix begins the names of RouteRules that belong to releases.
const rulePrefix = "rollout-"

// Parse reads one Rollout, YAML or JSON. The error is adapters.Faults.
func Parse(text []byte) (ID, Spec, error) {
	settings, err := adapters.ParseSettings(text)
	if err != nil {
		return ID{}, Spec{}, err
	}
	var d document
	if err := settings.Decode(&d); err != nil {
		return ID{}, Spec{}, err
	}
	return ID{cmp.Or(d.Metadata.Namespace, governance.DefaultNamespace), d.Metadata.Name}, d.Spec, nil
}

// Document returns a Rollout as JSON, which Parse takes.
func Document(id ID, spec Spec) ([]byte, error) {
	b, err := json.Marshal(struct {
		APIVersion string   `json:"apiVersion"`
		Kind       string   `json:"kind"`
		Metadata   metadata `json:"metadata"`
		Spec       Spec     `json:"spec"`
	}{governance.APIVersion, Kind, metadata{Name: id.Name, Namespace: id.Namespace}, spec})
	if err != nil {
		return nil, fmt.Errorf("rollout: %w", err)
	}
	return b, nil
}
