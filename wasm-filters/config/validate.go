package config

import (
	"strconv"
	"strings"
)

// Protocols are the names that Plugin.Protocols may hold: the codecs that the filter is built with, in the order in which
// they are tried where the configuration names none.
var Protocols = []string{"dubbo", "bolt"}

// The protocols of HTTP requests.
const (
	SystemHTTP   = "http"
	SystemTriple = "triple" // Dubbo's Triple, and gRPC, which is the same to the filter
)

// Systems are all protocols that calls travel in, as metrics and conditions name them.
var Systems = []string{"dubbo", "bolt", SystemHTTP, SystemTriple}

// replyProtocols are those that a mocked reply can be written in. It cannot be in Triple: Envoy answers gRPC with a status only.
var replyProtocols = []string{"dubbo", "bolt", SystemHTTP}

// MaxRules is the most rules that a configuration may hold, over all kinds. More do not belong into one sidecar: rules are to be
// compiled for the workload that they are for.
const MaxRules = 5000

// Bounds of the fields.
const (
	maxProtocols    = 16
	maxGeneration   = 64
	maxRuleName     = 253 + 1 + 253 // namespace/name, as Kubernetes bounds them
	maxFrameBytes   = 1 << 30
	minFrameBytes   = 1 << 10
	maxInspectBytes = 1 << 20
	minInspectBytes = 4 << 10
	maxInFlight     = 1 << 16
	maxCallTimeout  = 3_600_000
	maxLabelValues  = 100_000
	maxEndpoints    = 1024
	maxPaths        = 256
	maxHeaderName   = 64
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
	DefaultMaxEndpoints      = 100
	DefaultCallerHeader      = "x-isthmus-caller"
)

// WithDefaults returns a copy in which every field that is zero and has a default has it. The lists of rules are copies, too; all
// that hangs on a rule is shared with p.
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
	def(&d.Metrics.MaxEndpoints, DefaultMaxEndpoints)
	if len(d.Protocols) == 0 {
		d.Protocols = Protocols
	}
	def(&d.HTTP.Suffix, DefaultSuffix)
	def(&d.HTTP.CallerHeader, DefaultCallerHeader)
	d.ruleDefaults()
	d.Lift, d.Lower = p.Lift.withDefaults(), p.Lower.withDefaults()
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
	v.bounds("metrics.maxEndpoints", m.MaxEndpoints, 1, maxEndpoints)
	v.http(&p.HTTP)
	v.lift(p.Lift)
	v.lower(p.Lower, p.Lift != nil)
	v.rules(p)
	return v.faults
}

func (v *validator) http(h *HTTP) {
	if h.Suffix != "" && !hostName(h.Suffix) {
		v.fault("http.suffix", "must be a DNS name in lower case")
	}
	if !within(h.CallerHeader, maxHeaderName, "-_") {
		v.fault("http.callerHeader", "must be at most 64 of A-Z a-z 0-9 - _")
	}
	if len(h.Paths) > maxPaths {
		v.fault("http.paths", "more than "+strconv.Itoa(maxPaths)+" elements")
		return
	}
	for i, path := range h.Paths {
		at := index("http.paths", i)
		switch {
		case len(path) == 0 || path[0] != '/':
			v.fault(at, "must begin with /")
		case contains(h.Paths[:i], path):
			v.fault(at, "stands twice")
		case !isTemplate(path):
			v.fault(at, "must have braces only around whole segments, and neither ? nor #")
		}
		v.length(at, path)
	}
}

// isTemplate tells whether a path has braces only around whole segments.
func isTemplate(path string) bool {
	for _, s := range strings.Split(path, "/") {
		inner := s
		if len(s) > 2 && s[0] == '{' && s[len(s)-1] == '}' {
			inner = s[1 : len(s)-1]
		}
		if strings.ContainsAny(inner, "{}?# ") {
			return false
		}
	}
	return true
}

// A validator collects faults. Its methods are not inlined: they stand in many places, and size is start-up time.
type validator struct {
	faults Faults
	keys   map[string]struct{} // of attachments and labels that rules ask for
}

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
