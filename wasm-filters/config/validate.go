package config

import (
	"strconv"
	"strings"
)

// Protocols are the names that Plugin.Protocols may hold: the codecs that the filter is built with, in the order in which
// they are tried where the configuration names none.
var Protocols = []string{"dubbo", "bolt"}

// MaxRules is the most rules that a configuration may hold. More do not belong into one sidecar: rules are to be
// compiled for the workload that they are for.
const MaxRules = 5000

// Bounds of the fields.
const (
	maxProtocols    = 16
	maxGeneration   = 64
	maxRuleName     = 253 + 1 + 253 // namespace/name, as Kubernetes bounds them
	maxMatch        = 512
	maxFrameBytes   = 1 << 30
	minFrameBytes   = 1 << 10
	maxInspectBytes = 1 << 20
	minInspectBytes = 4 << 10
	maxInFlight     = 1 << 16
	maxCallTimeout  = 3_600_000
	maxInterval     = 86_400_000
	maxLabelValues  = 100_000
)

// The defaults of Limits and Metrics.
const (
	DefaultMaxFrameBytes     = 8 << 20
	DefaultMaxInspectBytes   = 64 << 10
	DefaultMaxInFlight       = 4096
	DefaultCallTimeoutMillis = 60_000
	DefaultMaxServices       = 200
	DefaultMaxMethods        = 1000
	DefaultMaxCallers        = 100
	DefaultMaxSeries         = 2000
	DefaultIntervalMillis    = 1000
)

// WithDefaults returns a copy in which every field that is zero and has a default has it. Slices are shared with p, except for
// Throttle, which is copied where a rule changes.
func (p *Plugin) WithDefaults() Plugin {
	d := *p
	def(&d.Limits.MaxFrameBytes, DefaultMaxFrameBytes)
	def(&d.Limits.Oversize, ActionPass)
	def(&d.Limits.Garbage, ActionPass)
	def(&d.Limits.MaxInspectBytes, DefaultMaxInspectBytes)
	def(&d.Limits.MaxInFlight, DefaultMaxInFlight)
	def(&d.Limits.CallTimeoutMillis, DefaultCallTimeoutMillis)
	def(&d.Metrics.MaxServices, DefaultMaxServices)
	def(&d.Metrics.MaxMethods, DefaultMaxMethods)
	def(&d.Metrics.MaxCallers, DefaultMaxCallers)
	def(&d.Metrics.MaxSeries, DefaultMaxSeries)
	if len(d.Protocols) == 0 {
		d.Protocols = Protocols
	}
	d.Throttle = make([]Throttle, len(p.Throttle))
	for i, t := range p.Throttle {
		def(&t.Mode, ModeIntercept)
		def(&t.IntervalMillis, DefaultIntervalMillis)
		def(&t.Burst, max(t.Threshold, 1))
		d.Throttle[i] = t
	}
	return d
}

func def[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate returns all that is wrong with the values of p: what Decode checks beyond the form.
func (p *Plugin) Validate() Faults {
	v := &validator{}
	if !within(p.Generation, maxGeneration, "._-") {
		v.fault("generation", "must be at most 64 of A-Z a-z 0-9 . _ -")
	}
	for i, name := range p.Protocols {
		switch {
		case !contains(Protocols, name):
			v.fault(index("protocols", i), "must be one of "+strings.Join(Protocols, ", "))
		case contains(p.Protocols[:i], name):
			v.fault(index("protocols", i), "stands twice")
		}
	}
	l := &p.Limits
	v.bounds("limits.maxFrameBytes", l.MaxFrameBytes, minFrameBytes, maxFrameBytes)
	v.oneOf("limits.oversize", string(l.Oversize), string(ActionPass), string(ActionClose))
	v.oneOf("limits.garbage", string(l.Garbage), string(ActionPass), string(ActionClose))
	v.bounds("limits.maxInspectBytes", l.MaxInspectBytes, minInspectBytes, maxInspectBytes)
	v.bounds("limits.maxInFlight", l.MaxInFlight, 1, maxInFlight)
	v.bounds("limits.callTimeoutMillis", l.CallTimeoutMillis, 1, maxCallTimeout)
	m := &p.Metrics
	v.bounds("metrics.maxServices", m.MaxServices, 1, maxLabelValues)
	v.bounds("metrics.maxMethods", m.MaxMethods, 1, maxLabelValues)
	v.bounds("metrics.maxCallers", m.MaxCallers, 1, maxLabelValues)
	v.bounds("metrics.maxSeries", m.MaxSeries, 1, maxLabelValues)
	if len(p.Throttle) > MaxRules {
		v.fault("throttle", "more than "+strconv.Itoa(MaxRules)+" elements")
	}
	names := make(map[string]struct{}, len(p.Throttle))
	for i := range p.Throttle {
		t := &p.Throttle[i]
		at := index("throttle", i)
		switch _, twice := names[t.Name]; {
		case t.Name == "":
			v.fault(at+".name", "is missing")
		case !within(t.Name, maxRuleName, "._-/"):
			v.fault(at+".name", "must be at most 507 of A-Z a-z 0-9 . _ - /")
		case twice:
			v.fault(at+".name", "is the name of an earlier rule, too")
		}
		names[t.Name] = struct{}{}
		v.target(at+".target", &t.Target)
		v.oneOf(at+".mode", string(t.Mode), string(ModeIntercept), string(ModeObserve))
		v.bounds(at+".intervalMillis", t.IntervalMillis, 1, maxInterval)
	}
	return v.faults
}

// A validator collects faults. Its methods are not inlined: they stand in many places, and size is start-up time.
type validator struct{ faults Faults }

//go:noinline
func (v *validator) fault(path, msg string) {
	if len(v.faults) < maxFaults {
		v.faults = append(v.faults, Fault{path, msg})
	}
}

// bounds checks a number whose zero means the default.
//
//go:noinline
func (v *validator) bounds(path string, n, low, high uint32) {
	if n != 0 && (n < low || n > high) {
		v.fault(path, "must be from "+strconv.FormatUint(uint64(low), 10)+" to "+strconv.FormatUint(uint64(high), 10)+", or 0 for the default")
	}
}

// oneOf checks a string whose zero means the default.
//
//go:noinline
func (v *validator) oneOf(path, s string, allowed ...string) {
	if s != "" && !contains(allowed, s) {
		v.fault(path, "must be one of "+strings.Join(allowed, ", "))
	}
}

func (v *validator) target(path string, t *Target) {
	v.oneOf(path+".direction", t.Direction, "client", "server")
	v.match(path+".application", t.Application)
	v.match(path+".service", t.Service)
	v.match(path+".version", t.Version)
	v.match(path+".group", t.Group)
	v.match(path+".method", t.Method)
	v.match(path+".caller", t.Caller)
}

//go:noinline
func (v *validator) match(path string, m Match) {
	switch {
	case m.Exact != "" && m.Prefix != "":
		v.fault(path, "has both exact and prefix")
	case len(m.Exact) > maxMatch || len(m.Prefix) > maxMatch:
		v.fault(path, "longer than 512 bytes")
	}
}

func contains(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// within tells whether s has at most n bytes, all of them letters, digits or in more.
func within(s string, n int, more string) bool {
	if len(s) > n {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z' || strings.IndexByte(more, c) >= 0) {
			return false
		}
	}
	return true
}

// Matches tells whether s, which may be absent (nil), is selected.
func (m Match) Matches(s []byte) bool {
	switch {
	case m.Exact != "":
		return string(s) == m.Exact
	case m.Prefix != "":
		return len(s) >= len(m.Prefix) && string(s[:len(m.Prefix)]) == m.Prefix
	default:
		return true
	}
}
