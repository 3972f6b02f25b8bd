package filter

import (
	"strconv"

	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// The names of the metrics. Labels precede the name in the way that Istio's tag expressions take out again:
// "rpc_service=.=demo.GreetService;.;isthmus_rpc_requests_total".
const (
	nameRequests    = "isthmus_rpc_requests_total"
	nameBucket      = "isthmus_rpc_duration_milliseconds_bucket"
	nameSum         = "isthmus_rpc_duration_milliseconds_sum"
	nameCount       = "isthmus_rpc_duration_milliseconds_count"
	nameInFlight    = "isthmus_rpc_in_flight"
	nameSubset      = "isthmus_rpc_subset_" // and what follows isthmus_rpc_
	nameConnections = "isthmus_filter_connections_total"
	nameFrames      = "isthmus_filter_frames_total"
	nameFaults      = "isthmus_filter_faults_total"
	nameRuleHits    = "isthmus_rule_hits_total"
	nameRuleTokens  = "isthmus_rule_tokens"
	nameRuleQueue   = "isthmus_rule_queue_milliseconds"
	nameRuleRunning = "isthmus_rule_running_calls"
	nameRuleCircuit = "isthmus_rule_circuit_state"
	nameTokenChecks = "isthmus_rule_token_checks_total"
	nameConfigInfo  = "isthmus_filter_config_info"
	nameConfigBad   = "isthmus_filter_config_rejected"
)

// other is the value of a label beyond its bound.
const other = "_other"

// bounds are the upper bounds of the histogram's buckets; the last bucket has none. They follow Istio's and Envoy's own defaults
// from 0.5 ms to 10 s, in which calls within a data centre and their usual timeouts lie.
var bounds = [...]struct {
	ns policy.Nanos
	le string
}{
	{500_000, "0.5"}, {1_000_000, "1"}, {2_500_000, "2.5"}, {5_000_000, "5"}, {10_000_000, "10"}, {25_000_000, "25"}, {50_000_000, "50"},
	{100_000_000, "100"}, {250_000_000, "250"}, {500_000_000, "500"}, {1_000_000_000, "1000"}, {2_500_000_000, "2500"},
	{5_000_000_000, "5000"}, {10_000_000_000, "10000"},
}

const (
	outcomes = int(protocol.OutcomeClosed) + 1
	kindsN   = int(protocol.KindEvent) + 1
)

// undefined is a metric that the host does not know yet.
const undefined = ^Metric(0)

// A counter is a number that has grown since it was reported.
type counter struct {
	n  uint64 // not yet reported
	id Metric
}

// series counts the calls with one combination of labels, by outcome.
type series struct {
	labels string
	dirty  bool
	group  bool // of a group of providers: nameSubset
	by     [outcomes]counter
	spill  *series // takes what may not become a metric of its own; nil if this one is always allowed
}

// timing is the histogram and the calls in flight of one method.
type timing struct {
	labels   string
	dirty    bool
	group    bool // as series.group; then inFlight is nothing
	defined  bool
	buckets  [len(bounds) + 1]uint64 // since the last report; not cumulative
	nanos    uint64                  // since the last report, and what was less than a millisecond before
	inFlight int64                   // change since the last report
	ids      [len(bounds) + 1]Metric
	sum      Metric
	count    Metric
	gauge    Metric
}

// observe adds one duration.
func (t *timing) observe(d policy.Nanos) {
	i := 0
	for i < len(bounds) && d > bounds[i].ns {
		i++
	}
	t.buckets[i]++
	t.nanos += uint64(max(d, 0))
}

// fault is a reason for which the filter could not do all of its work on some bytes.
type fault uint8

const (
	faultSerialization fault = iota // of a request: opaque
	faultMalformed                  // of a request
	faultTooDeep                    // of a request
	faultHead                       // leading fields longer than MaxInspectBytes
	faultOversize                   // frame longer than MaxFrameBytes
	faultFraming                    // lost
	faultUntracked                  // MaxInFlight reached
	faultReuse                      // id of a call still in flight
	faultUnknown                    // response to no call in flight
	faultAttachments                // could not be read
	faultLate                       // a rule rejects a frame that has gone on in part
	faultUnlifted                   // a connection that was to be lifted is none of a protocol that is
	faultUndelayed                  // a rule delays a request that is too long, or one of too many
	faultEndpoint                   // a rule asks for the endpoint of a call, which is not known
	faultContradiction              // headers that do not say what the call says
	faultInternal                   // a defect of the filter's own
	faults
)

var faultNames = [faults]string{
	"unknown_serialization", "malformed", "too_deep", "long_head", "oversize", "framing_lost", "untracked", "id_reuse", "unmatched_response",
	"attachments", "too_late", "unlifted", "undelayed", "no_endpoint", "contradiction", "internal",
}

// group is what is counted of the calls that a route has sent to one group of a service's providers.
type group struct {
	series series
	timing timing
}

// maxSubsets and maxGroups bound the names of groups of providers, and the groups: those beyond are not counted by group.
const (
	maxSubsets = 255
	maxGroups  = 512
)

// metrics are those of one runtime.
type metrics struct {
	host     Host
	limits   config.Metrics
	services map[string]struct{}
	methods  map[string]struct{}
	callers  map[string]struct{}
	series   map[string]*series
	timings  map[string]*timing
	subsets  map[string]uint8  // names of groups, from 1
	groups   map[string]*group // by their labels
	metrics  uint32            // of series, that the host has
	changed  []*series
	timed    []*timing

	plain  []plain // by protocol, the last one is for connections whose protocol is not known
	opaque map[opaque]*counter
	name   []byte
}

// plain are the counters of frames, for each direction.
type plain [directions]struct {
	frames      [kindsN]counter
	faults      [faults]counter
	connections counter
}

// opaque is a kind of connections whose bytes are not read.
type opaque struct {
	what string
	dir  policy.Direction
}

func (m *metrics) init(host Host, protocols []Protocol) {
	m.host = host
	m.services, m.methods, m.callers = make(map[string]struct{}), make(map[string]struct{}), make(map[string]struct{})
	m.series, m.timings = make(map[string]*series), make(map[string]*timing)
	m.plain = make([]plain, len(protocols)+1)
	m.subsets, m.groups = make(map[string]uint8), make(map[string]*group)
	m.opaque = make(map[opaque]*counter)
	for p := range m.plain {
		for d := range m.plain[p] {
			of := &m.plain[p][d]
			for i := range of.frames {
				of.frames[i].id = undefined
			}
			for i := range of.faults {
				of.faults[i].id = undefined
			}
			of.connections.id = undefined
		}
	}
}

// fault counts one fault.
func (m *metrics) fault(protocol int, dir policy.Direction, f fault) {
	m.plain[protocol][dir].faults[f].n++
}

// count adds n calls to s.
func (m *metrics) count(s *series, o protocol.Outcome, n uint64) {
	s.by[o].n += n
	if !s.dirty {
		s.dirty = true
		m.changed = append(m.changed, s)
	}
}

// subset returns the number of a group's name, 0 where there are too many.
func (m *metrics) subset(name []byte) uint8 {
	if n, ok := m.subsets[string(name)]; ok {
		return n
	}
	n := len(m.subsets) + 1
	if n > maxSubsets || len(name) == 0 || len(name) > maxLabel {
		return 0
	}
	m.subsets[string(name)] = uint8(n)
	return uint8(n)
}

// countSubset counts a call of route r that ended after d, for the group of providers with that number.
func (m *metrics) countSubset(system string, r *route, subset uint8, o protocol.Outcome, d policy.Nanos) {
	if int(subset) >= len(r.groups) {
		r.groups = append(r.groups, make([]*group, int(subset)+1-len(r.groups))...)
	}
	g := r.groups[subset]
	if g == nil {
		if g = m.group(system, r, subset); g == nil {
			return
		}
		r.groups[subset] = g
	}
	m.count(&g.series, o, 1)
	g.timing.observe(d)
	m.touch(&g.timing)
}

// group returns the group of providers with that number, nil where there are too many.
func (m *metrics) group(system string, r *route, subset uint8) *group {
	name := ""
	for s, n := range m.subsets {
		if n == subset {
			name = s
		}
	}
	b := m.head(m.name[:0], system, r.dir)
	b = appendLabel(b, config.TagService, r.service)
	b = appendLabel(b, config.TagVersion, r.version)
	b = appendLabel(b, config.TagGroup, r.group)
	b = appendLabel(b, config.TagSubset, name)
	m.name = b
	g := m.groups[string(b)]
	if g == nil && len(m.groups) < maxGroups && r.service != "" {
		g = new(group)
		g.series.labels, g.series.group = string(b), true
		g.timing.labels, g.timing.group = g.series.labels, true
		for i := range g.series.by {
			g.series.by[i].id = undefined
		}
		m.groups[g.series.labels] = g
	}
	return g
}

// nameOf is the name of a metric, or of that of a group of providers.
func nameOf(name string, group bool) (prefix, rest string) {
	if !group {
		return "", name
	}
	return nameSubset, name[len("isthmus_rpc_"):]
}

func (m *metrics) touch(t *timing) {
	if !t.dirty {
		t.dirty = true
		m.timed = append(m.timed, t)
	}
}

// appendLabel appends one label. An empty value is left out: to Prometheus that is the same. It is not inlined: it stands
// in many places, none of them hot, and size is start-up time.
//
//go:noinline
func appendLabel(dst []byte, name, value string) []byte {
	if len(value) == 0 {
		return dst
	}
	dst = append(dst, name...)
	dst = append(dst, "=.="...)
	for i := range min(len(value), maxLabel) {
		c := value[i]
		// '=' and ';' delimit, ':' is replaced by Envoy, quotes and backslashes would need escaping on Prometheus' page.
		if c <= ' ' || c > '~' || c == '=' || c == ';' || c == ':' || c == '"' || c == '\\' {
			c = '_'
		}
		dst = append(dst, c)
	}
	return append(dst, ";.;"...)
}

// admit returns v if it is in set or may join it.
//
//go:noinline
func admit(set map[string]struct{}, limit uint32, v []byte) []byte {
	if len(v) == 0 {
		return nil
	}
	if len(v) > maxLabel {
		v = v[:maxLabel]
	}
	if _, ok := set[string(v)]; ok {
		return v
	}
	if uint32(len(set)) >= limit {
		return otherValue
	}
	set[string(v)] = struct{}{}
	return v
}

var otherValue = []byte(other)

// forRoute returns the series and the timing of the calls that k describes.
func (m *metrics) forRoute(system string, dir policy.Direction, k *known) (*series, *timing) {
	service := admit(m.services, m.limits.MaxServices, k.service)
	method := otherValue
	if string(service) != other {
		// Methods are told apart by their service.
		method = k.method
		if k.label != nil {
			method = k.label
		}
		m.name = append(append(append(m.name[:0], service...), 0), method...)
		if _, ok := m.methods[string(m.name)]; !ok && len(method) > 0 {
			if uint32(len(m.methods)) >= m.limits.MaxMethods {
				method = otherValue
			} else {
				m.methods[string(m.name)] = struct{}{}
			}
		}
	}
	caller := admit(m.callers, m.limits.MaxCallers, k.caller)

	b := m.head(m.name[:0], system, dir)
	b = appendLabel(b, config.TagService, view(service))
	b = appendLabel(b, config.TagMethod, view(method))
	t := m.timings[string(b)]
	if t == nil {
		t = &timing{labels: string(b)}
		m.timings[t.labels] = t
	}
	b = appendLabel(b, config.TagVersion, view(k.version))
	b = appendLabel(b, config.TagGroup, view(k.group))
	b = appendLabel(b, config.TagCaller, view(caller))
	m.name = b
	if s := m.series[string(b)]; s != nil {
		return s, t
	}
	if uint32(len(m.series)) >= m.limits.MaxSeries {
		return m.spill(system, dir), t
	}
	s := m.newSeries(string(b))
	s.spill = m.spill(system, dir)
	return s, t
}

// head appends the labels that every metric of a call has.
func (m *metrics) head(b []byte, system string, dir policy.Direction) []byte {
	b = appendLabel(b, config.TagDirection, dir.String())
	return appendLabel(b, config.TagSystem, system)
}

// spill returns the series of all calls beyond the bounds.
func (m *metrics) spill(system string, dir policy.Direction) *series {
	b := m.head(make([]byte, 0, 128), system, dir)
	b = appendLabel(b, config.TagService, other)
	b = appendLabel(b, config.TagMethod, other)
	b = appendLabel(b, config.TagCaller, other)
	if s := m.series[string(b)]; s != nil {
		return s
	}
	return m.newSeries(string(b))
}

func (m *metrics) newSeries(labels string) *series {
	s := &series{labels: labels}
	for i := range s.by {
		s.by[i].id = undefined
	}
	m.series[labels] = s
	return s
}

// opaqueConnection counts a connection whose bytes are not read, by what they seem to be.
func (m *metrics) opaqueConnection(what string, dir policy.Direction) {
	key := opaque{what, dir}
	c := m.opaque[key]
	if c == nil {
		c = &counter{id: undefined}
		m.opaque[key] = c
	}
	c.n++
}

// report brings one counter to the host. label is one more label, or "".
func (m *metrics) report(c *counter, system string, dir policy.Direction, label, value, name string) {
	if c.n == 0 {
		return
	}
	if c.id == undefined {
		m.name = appendLabel(m.head(m.name[:0], system, dir), label, value)
		m.name = append(m.name, name...)
		c.id = m.host.Counter(m.name)
	}
	m.host.Add(c.id, int64(c.n))
	c.n = 0
}

// flush brings everything that changed to the host.
func (m *metrics) flush(protocols []Protocol) {
	// A series may spill into another one, which then joins the list.
	for i := 0; i < len(m.changed); i++ {
		s := m.changed[i]
		s.dirty = false
		for o := range s.by {
			c := &s.by[o]
			if c.n == 0 {
				continue
			}
			if c.id == undefined {
				if s.spill != nil && m.metrics >= m.limits.MaxSeries {
					m.count(s.spill, protocol.Outcome(o), c.n)
					c.n = 0
					continue
				}
				m.metrics++
				m.name = append(m.name[:0], s.labels...)
				m.name = appendLabel(m.name, config.TagOutcome, protocol.Outcome(o).String())
				prefix, rest := nameOf(nameRequests, s.group)
				m.name = append(append(m.name, prefix...), rest...)
				c.id = m.host.Counter(m.name)
			}
			m.host.Add(c.id, int64(c.n))
			c.n = 0
		}
	}
	m.changed = m.changed[:0]
	for _, t := range m.timed {
		t.dirty = false
		m.flushTiming(t)
	}
	m.timed = m.timed[:0]
	for p := range m.plain {
		system := ""
		if p < len(protocols) {
			system = protocols[p].name()
		}
		for d := range m.plain[p] {
			of, dir := &m.plain[p][d], policy.Direction(d)
			m.report(&of.connections, system, dir, "", "", nameConnections)
			for k := range of.frames {
				m.report(&of.frames[k], system, dir, config.TagKind, kindName(protocol.Kind(k)), nameFrames)
			}
			for f := range of.faults {
				m.report(&of.faults[f], system, dir, config.TagReason, faultNames[f], nameFaults)
			}
		}
	}
	for key, c := range m.opaque {
		m.report(c, key.what, key.dir, "", "", nameConnections)
	}
}

// kindName tells a heartbeat from its answer, which Kind.String does not.
func kindName(k protocol.Kind) string {
	if k == protocol.KindHeartbeatAck {
		return "heartbeat_ack"
	}
	return k.String()
}

// flushTiming reports t. Buckets are cumulative, as Prometheus wants them: what fell into one counts in all above it.
func (m *metrics) flushTiming(t *timing) {
	if !t.defined {
		t.defined = true
		metric := func(name string) []byte {
			prefix, rest := nameOf(name, t.group)
			m.name = append(append(append(m.name[:0], t.labels...), prefix...), rest...)
			return m.name
		}
		for i := range t.ids {
			le := "+Inf"
			if i < len(bounds) {
				le = bounds[i].le
			}
			m.name = appendLabel(append(m.name[:0], t.labels...), config.TagLE, le)
			prefix, rest := nameOf(nameBucket, t.group)
			m.name = append(append(m.name, prefix...), rest...)
			t.ids[i] = m.host.Counter(m.name)
		}
		t.sum, t.count = m.host.Counter(metric(nameSum)), m.host.Counter(metric(nameCount))
		if !t.group {
			t.gauge = m.host.Gauge(metric(nameInFlight))
		}
	}
	var total uint64
	for i := range t.buckets {
		total += t.buckets[i]
		t.buckets[i] = 0
		if total > 0 {
			m.host.Add(t.ids[i], int64(total))
		}
	}
	if total > 0 {
		m.host.Add(t.count, int64(total))
	}
	if ms := t.nanos / 1_000_000; ms > 0 {
		m.host.Add(t.sum, int64(ms))
		t.nanos -= ms * 1_000_000
	}
	if t.inFlight != 0 {
		m.host.Add(t.gauge, t.inFlight)
		t.inFlight = 0
	}
}

// appendUint appends a decimal number.
func appendUint(dst []byte, n uint64) []byte { return strconv.AppendUint(dst, n, 10) }
