package cli

import (
	"cmp"
	"container/heap"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
	"github.com/isthmus-mesh/isthmus/wasm-filters/filter"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/bolt"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/dubbo"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/hessian2"
)

// maxDryCalls bounds the calls of one dry run.
const maxDryCalls = 1_000_000

// maxDrySpan bounds what a dry run describes in time.
const maxDrySpan = 10_000 * time.Hour

// maxDryAttachments bounds attachments and labels of one call: they fit into a header section of Bolt.
const maxDryAttachments = 32 << 10

// dryCalls is a description of calls.
type dryCalls struct {
	Calls []dryCall `yaml:"calls"`
}

// dryCall is one call, or several that are alike.
type dryCall struct {
	At    *time.Duration `yaml:"at"`    // after the beginning; default when the one before began
	Times *uint32        `yaml:"times"` // how many; default 1
	Every time.Duration  `yaml:"every"` // from one to the next

	Direction      string                     `yaml:"direction"`   // at which end it is seen: client (default) or server
	Application    governance.Text            `yaml:"application"` // of the workload whose sidecar sees it
	Protocol       string                     `yaml:"protocol"`    // dubbo (default), bolt, http or triple
	Service        governance.Text            `yaml:"service"`
	Version        governance.Text            `yaml:"version"`
	Group          governance.Text            `yaml:"group"`
	Method         governance.Text            `yaml:"method"`
	Caller         governance.Text            `yaml:"caller"`
	CallerIP       governance.Text            `yaml:"callerIP"`
	CallerIdentity governance.Text            `yaml:"callerIdentity"`
	Endpoint       governance.Text            `yaml:"endpoint"` // that it goes to: 10.0.0.2:20880
	Attachments    map[string]governance.Text `yaml:"attachments"`
	Labels         map[string]governance.Text `yaml:"labels"`
	LoadTest       bool                       `yaml:"loadTest"`
	OneWay         bool                       `yaml:"oneWay"`

	Duration time.Duration `yaml:"duration"` // until it ends, if it is let through
	Outcome  string        `yaml:"outcome"`  // ok (default), exception, error, timeout or closed
}

// outcomes are how a call may end.
var outcomes = []string{"ok", "exception", "error", "timeout", "closed"}

// Validate implements adapters.Validator.
func (d *dryCalls) Validate() adapters.Faults {
	var f adapters.Faults
	total := uint64(0)
	for i := range d.Calls {
		c := &d.Calls[i]
		at := fmt.Sprintf("calls[%d]", i)
		one := func(field, value string, allowed ...string) {
			if value != "" && !slices.Contains(allowed, value) {
				f.Add(at+"."+field, "must be one of %s, is %q", strings.Join(allowed, ", "), value)
			}
		}
		one("direction", c.Direction, "client", "server")
		one("protocol", c.Protocol, config.Systems...)
		one("outcome", c.Outcome, outcomes...)
		span := func(field string, v time.Duration) {
			if v < 0 || v > maxDrySpan {
				f.Add(at+"."+field, "must be from 0 to %s", maxDrySpan)
			}
		}
		span("every", c.Every)
		span("duration", c.Duration)
		if c.At != nil {
			span("at", *c.At)
		}
		if c.Every > 0 && time.Duration(c.times()) > maxDrySpan/c.Every {
			f.Add(at+".times", "these calls go on for longer than %s", maxDrySpan)
		}
		if c.Service == "" || c.Method == "" {
			f.Add(at, "needs service and method")
		}
		if c.http() && c.OneWay {
			f.Add(at+".oneWay", "does not go with http and triple")
		}
		if verb, path, _ := strings.Cut(string(c.Method), " "); c.Protocol == config.SystemHTTP && c.Method != "" && (verb == "" || !strings.HasPrefix(path, "/")) {
			f.Add(at+".method", "must be like GET /orders/17, is %q", c.Method)
		}
		if _, err := netip.ParseAddr(string(c.CallerIP)); c.CallerIP != "" && err != nil {
			f.Add(at+".callerIP", "is no address")
		}
		if _, err := netip.ParseAddrPort(string(c.Endpoint)); c.Endpoint != "" && err != nil {
			f.Add(at+".endpoint", "is no address with a port")
		}
		for _, s := range []governance.Text{c.Service, c.Version, c.Group, c.Method, c.Caller} {
			if len(s) > dubbo.MaxName {
				f.Add(at, "has a name of more than %d bytes", dubbo.MaxName)
			}
		}
		size := 0
		for _, m := range []map[string]governance.Text{c.Attachments, c.Labels} {
			for k, v := range m {
				size += len(k) + len(v) + 32
			}
		}
		if size > maxDryAttachments {
			f.Add(at, "has more than %d bytes of attachments and labels", maxDryAttachments)
		}
		if total += uint64(c.times()); total > maxDryCalls {
			f.Add(at+".times", "more than %d calls", maxDryCalls)
			break
		}
	}
	return f
}

func (c *dryCall) times() uint32 {
	if c.Times == nil {
		return 1
	}
	return *c.Times
}

// dryRun is the answer of dry-run.
type dryRun struct {
	Rules []dryRule   `json:"rules"`
	Calls []dryResult `json:"calls,omitempty"`
}

// dryRule is what one rule did.
type dryRule struct {
	Kind        string `json:"kind"`
	Name        string `json:"name"` // namespace/name
	Mode        string `json:"mode"`
	Admitted    int    `json:"admitted"`
	Rejected    int    `json:"rejected"`
	WouldReject int    `json:"wouldReject"`
}

// dryResult is what became of one call.
type dryResult struct {
	AtMillis float64  `json:"atMillis"`
	Call     string   `json:"call"`   // service/method
	Result   string   `json:"result"` // passed, delayed, rejected, answered (by a degrade rule), dropped (one-way)
	Reason   string   `json:"reason,omitempty"`
	Rules    []string `json:"rules,omitempty"` // what each rule did that matched: "reject ThrottleRule default/greet"
}

func newRuleDryRun(s *Streams) *cobra.Command {
	var callsFile string
	var each bool
	cmd := &cobra.Command{
		Use:   "dry-run -f RULES --calls FILE",
		Short: "Say what rules would do to calls, without a sidecar",
		Long: `dry-run puts described calls through the very code that decides in the sidecars, with a clock of its own, and says what each rule did.
The description is a list; of each call all but service and method may be left out:

  calls:
    - at: 0s              # after the beginning; default when the one before began
      times: 100          # so many, …
      every: 10ms         # … one after the other
      direction: server   # which sidecar sees it: client (default), the caller's, or server, the provider's
      application: orders # of that sidecar's workload; sidecars of different applications know nothing of each other
      protocol: dubbo     # or bolt, http or triple
      service: demo.OrderService
      version: 1.0.0
      group: g
      method: create      # of http: GET /orders/17, and service is the host
      caller: web
      callerIP: 10.0.0.7
      callerIdentity: spiffe://cluster.local/ns/shop/sa/web
      endpoint: 10.0.0.2:20880 # the provider that it goes to, for circuits of endpoints
      attachments: {tenant: gold}
      labels: {lane: blue}
      loadTest: false
      oneWay: false
      duration: 20ms      # how long it takes, if it is let through
      outcome: ok         # how it ends then: ok, exception, error, timeout or closed`,
		Example: `  isthmusctl rule dry-run -f rules/ --calls calls.yaml --each`,
		Args:    cobra.NoArgs,
	}
	output := outputFlag(cmd)
	files := fileFlag(cmd)
	cmd.Flags().StringVar(&callsFile, "calls", "", "file that describes calls; - is standard input")
	cmd.Flags().BoolVar(&each, "each", false, "also say what became of each call")
	cmd.RunE = func(*cobra.Command, []string) error {
		if callsFile == "" {
			return usagef("name the file of calls with --calls")
		}
		rules, err := s.readRules(*files)
		if err != nil {
			return err
		}
		text, err := readInput(s.In, []string{callsFile})
		if err != nil {
			return err
		}
		settings, err := adapters.ParseSettings(text)
		if err != nil {
			return usagef("%s: %w", callsFile, err)
		}
		var calls dryCalls
		if err := settings.Decode(&calls); err != nil {
			return usagef("%s: %w", callsFile, err)
		}
		all := make([]governance.Rule, len(rules))
		for i := range rules {
			all[i] = rules[i].Rule
		}
		result, err := dry(all, calls.Calls)
		if err != nil {
			return err
		}
		if !each {
			result.Calls = nil
		}
		if err := s.print(*output, result, func() *table { return dryTable(result.Rules) }); err != nil || *output != formatTable || !each {
			return err
		}
		fmt.Fprintln(s.Out)
		return dryCallTable(result.Calls).write(s)
	}
	return cmd
}

func dryTable(rules []dryRule) *table {
	t := &table{head: []string{"KIND", "NAME", "MODE", "ADMITTED", "REJECTED", "WOULD REJECT"}}
	for _, r := range rules {
		rejected := number(r.Rejected)
		if r.Rejected > 0 {
			rejected.colour = colourYellow
		}
		t.add(text(r.Kind), text(r.Name), text(r.Mode), number(r.Admitted), rejected, number(r.WouldReject))
	}
	return t
}

func dryCallTable(calls []dryResult) *table {
	t := &table{head: []string{"AT", "CALL", "RESULT", "REASON", "RULES"}, empty: "no calls", wrap: true}
	for _, c := range calls {
		colour := colourGreen
		if c.Result != "passed" {
			colour = colourYellow
		}
		at := time.Duration(c.AtMillis * float64(time.Millisecond))
		t.add(cell{text: at.String(), right: true}, text(c.Call), coloured(c.Result, colour), text(c.Reason), text(strings.Join(c.Rules, ", ")))
	}
	return t
}

// dryEvent is the beginning or the end of a call.
type dryEvent struct {
	at   policy.Nanos
	seq  int
	call *dryCall
	conn dryEnd // of an end
	side *drySidecar
	free bool // nothing but that delayed calls go on
}

// dryEnd is a call that is under way: its connection, or its request.
type dryEnd struct {
	conn   *filter.Conn
	stream *filter.Stream
}

// dryQueue orders events by time; those of one time as they came.
type dryQueue []dryEvent

func (q dryQueue) Len() int { return len(q) }
func (q dryQueue) Less(i, j int) bool {
	if q[i].at != q[j].at {
		return q[i].at < q[j].at
	}
	return q[i].seq < q[j].seq
}
func (q dryQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

// Push implements heap.Interface.
func (q *dryQueue) Push(x any) { *q = append(*q, x.(dryEvent)) }

// Pop implements heap.Interface.
func (q *dryQueue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

// dryStart is when a dry run begins on its clock, which like the filter's own has been running for a while.
const dryStart = policy.Nanos(time.Hour)

// dry puts calls through the filter under the rules.
func dry(rules []governance.Rule, calls []dryCall) (*dryRun, error) {
	rules = slices.Clone(rules)
	slices.SortFunc(rules, func(a, b governance.Rule) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	compiled := governance.Compile(rules, governance.Ports{}, governance.Options{})
	conf, err := json.Marshal(compiled.Plugin)
	if err != nil {
		return nil, err
	}
	out := &dryRun{Rules: []dryRule{}}
	index := map[string]*dryRule{}
	for i := range rules {
		mode := rules[i].Mode()
		if !rules[i].Enabled() {
			mode = "disabled"
		}
		out.Rules = append(out.Rules, dryRule{Kind: rules[i].Kind, Name: rules[i].Namespace + "/" + rules[i].Name, Mode: mode})
	}
	for i := range out.Rules {
		r := &out.Rules[i]
		index[governance.FilterKind(r.Kind)+" "+r.Name] = r
	}
	var queue dryQueue
	var at time.Duration
	seq := 0
	for i := range calls {
		c := &calls[i]
		if c.At != nil {
			at = *c.At
		}
		for k := range c.times() {
			heap.Push(&queue, dryEvent{at: dryStart + policy.Nanos(at+time.Duration(k)*c.Every), seq: seq, call: c})
			seq++
		}
	}
	sidecars := map[string]*drySidecar{}
	for len(queue) > 0 {
		e := heap.Pop(&queue).(dryEvent)
		if e.free {
			e.side.release(e.at)
			continue
		}
		if e.conn != (dryEnd{}) {
			e.side.end(&e)
			continue
		}
		app := string(e.call.Application)
		side := sidecars[app]
		if side == nil {
			if side, err = newDrySidecar(app, conf); err != nil {
				return nil, err
			}
			sidecars[app] = side
		}
		result, conn, delay := side.begin(&e)
		result.AtMillis = float64(e.at-dryStart) / float64(time.Millisecond)
		for _, did := range side.did {
			r := index[did.rule]
			if r == nil {
				continue
			}
			switch did.action {
			case actionAdmit:
				r.Admitted += int(did.times)
			case actionReject:
				r.Rejected += int(did.times)
			case actionWouldReject:
				r.WouldReject += int(did.times)
			}
			result.Rules = append(result.Rules, strings.ReplaceAll(did.action, "_", " ")+" "+r.Kind+" "+r.Name)
		}
		out.Calls = append(out.Calls, result)
		if delay > 0 {
			heap.Push(&queue, dryEvent{at: e.at + delay, seq: seq, side: side, free: true})
			seq++
		}
		if conn != (dryEnd{}) {
			heap.Push(&queue, dryEvent{at: e.at + delay + policy.Nanos(e.call.Duration), seq: seq, call: e.call, conn: conn, side: side})
			seq++
		}
	}
	return out, nil
}

// drySidecar is a filter in surroundings that we make up. It implements filter.Host.
type drySidecar struct {
	vm     *filter.VM
	plugin *filter.Plugin
	clock  policy.Nanos
	peer   *dryCall // who opened the connection at hand
	names  []string // of the metrics
	known  map[string]filter.Metric
	did    []dryAction // since the last call began
}

// dryAction is what a rule did.
type dryAction struct {
	rule   string // the filter's kind and the name
	action string
	times  int64
}

// dryProtocols is the filter's table of protocols.
var dryProtocols = []filter.Protocol{
	{Codec: dubbo.Codec{}, Group: dubbo.KeyGroup, Caller: dubbo.KeyCaller, Timeout: dubbo.KeyTimeout, Traces: []string{dubbo.KeyTrace}},
	{Codec: bolt.Codec{}, Labels: bolt.PrefixRequestBaggage, Traces: []string{bolt.KeyTrace, bolt.KeyBaggage}},
}

func newDrySidecar(app string, conf []byte) (*drySidecar, error) {
	s := &drySidecar{known: map[string]filter.Metric{}, clock: dryStart}
	s.vm = filter.New(s, dryProtocols)
	p, faults := s.vm.Configure(filter.Identity{Name: "isthmus", Root: "isthmus"}, app, conf)
	if len(faults) > 0 {
		return nil, badf("the filter refuses the rules: %w", faults)
	}
	s.plugin = p
	return s, nil
}

// Now implements filter.Host.
func (s *drySidecar) Now() policy.Nanos { return s.clock }

// Log implements filter.Host.
func (s *drySidecar) Log(filter.Level, []byte) {}

// Counter implements filter.Host.
func (s *drySidecar) Counter(name []byte) filter.Metric {
	if m, ok := s.known[string(name)]; ok {
		return m
	}
	m := filter.Metric(len(s.names))
	s.names = append(s.names, string(name))
	s.known[string(name)] = m
	return m
}

// Gauge implements filter.Host.
func (s *drySidecar) Gauge(name []byte) filter.Metric { return s.Counter(name) }

// Add implements filter.Host.
func (s *drySidecar) Add(m filter.Metric, delta int64) {
	name, labels := s.names[m], map[string]string{}
	for {
		part, rest, ok := strings.Cut(name, ";.;")
		if !ok {
			break
		}
		k, v, _ := strings.Cut(part, "=.=")
		labels[k], name = v, rest
	}
	if name == "isthmus_rule_hits_total" {
		s.did = append(s.did, dryAction{labels[config.TagRuleKind] + " " + labels[config.TagRule], labels[config.TagAction], delta})
	}
}

// Set implements filter.Host.
func (s *drySidecar) Set(filter.Metric, uint64) {}

// DialledAddress implements filter.Host.
func (s *drySidecar) DialledAddress(dst []byte) []byte { return dst }

// PeerAddress implements filter.Host.
func (s *drySidecar) PeerAddress(dst []byte) []byte {
	if s.peer.CallerIP == "" {
		return dst
	}
	ip, err := netip.ParseAddr(string(s.peer.CallerIP))
	if err != nil {
		return dst
	}
	return netip.AddrPortFrom(ip, 40000).AppendTo(dst)
}

// PeerIdentity implements filter.Host.
func (s *drySidecar) PeerIdentity(dst []byte) []byte { return append(dst, s.peer.CallerIdentity...) }

// Endpoint implements filter.Host.
func (s *drySidecar) Endpoint(dst []byte) []byte {
	endpoint, err := netip.ParseAddrPort(string(s.peer.Endpoint))
	if err != nil {
		return dst
	}
	return endpoint.AppendTo(dst)
}

// Wall implements filter.Host.
func (s *drySidecar) Wall() int64 { return time.Now().UnixMilli() }

// VerifySignature implements filter.Host: there are no keys in a dry run, so there is nothing to verify.
func (s *drySidecar) VerifySignature(string, []byte, []byte, []byte) (valid, done bool) {
	return false, false
}

// Shared implements filter.Host: there is one worker.
func (s *drySidecar) Shared() policy.Shared { return nil }

// Ask implements filter.Host: there is one sidecar, and no service that counts for others.
func (*drySidecar) Ask([]byte, string, string, []byte, uint32) (uint32, bool) { return 0, false }

// dryBuffer is a filter.Buffer.
type dryBuffer struct{ b []byte }

// CopyTo implements filter.Buffer.
func (d *dryBuffer) CopyTo(dst []byte, off int) { copy(dst, d.b[off:]) }

// Prepend implements filter.Buffer.
func (d *dryBuffer) Prepend(b []byte) { d.b = append(slices.Clone(b), d.b...) }

// Replace implements filter.Buffer.
func (d *dryBuffer) Replace(b []byte) { d.b = slices.Clone(b) }

// begin makes a call, on a connection of its own, and returns what became of it; there is no end where it has ended already. delay is how long
// the call is held back.
func (s *drySidecar) begin(e *dryEvent) (_ dryResult, _ dryEnd, delay policy.Nanos) {
	c := e.call
	result := dryResult{Call: string(c.Service) + "/" + string(c.Method), Result: "passed"}
	dir := policy.DirectionClient
	if c.Direction == "server" {
		dir = policy.DirectionServer
	}
	s.clock, s.peer, s.did = e.at, c, nil
	s.plugin.Tick()
	s.did = nil
	if c.http() {
		return s.beginHTTP(result, c, dir)
	}
	conn := s.plugin.NewConn(dir)
	w := dryWires[cmp.Or(c.Protocol, "dubbo")]
	request := w.request(c)
	sent := s.data(conn, filter.Downstream, request)
	s.plugin.Flush()
	if slices.Equal(sent, request) {
		return result, dryEnd{conn: conn}, 0
	}
	if due, ok := conn.Due(); ok {
		delay = due - s.clock
		result.Result, result.Reason = "delayed", time.Duration(delay).String()
		return result, dryEnd{conn: conn}, delay
	}
	// It was rejected: what goes on is a heartbeat, or nothing; the heartbeat's answer becomes the rejection.
	result.Result = "dropped"
	if !c.OneWay {
		answer := s.data(conn, filter.Upstream, w.ack())
		result.Result, result.Reason = rejection(w.codec, answer)
	}
	conn.End()
	return result, dryEnd{}, 0
}

// release lets the calls go on whose time has come.
func (s *drySidecar) release(now policy.Nanos) {
	s.clock = now
	s.vm.Release(func(*filter.Conn) bool { return true }, func(*filter.Conn, []byte) {})
	s.vm.Proceed(func(*filter.Stream) {})
}

// rejection reads what a caller gets instead of what it has asked for.
func rejection(codec protocol.Codec, answer []byte) (result, reason string) {
	var f protocol.Frame
	if need, err := codec.Decode(&f, answer); err == nil && need == 0 && f.Outcome == protocol.OutcomeOK {
		return "answered", ""
	}
	_, text, found := strings.Cut(string(answer), "isthmus: ")
	if !found {
		return "rejected", ""
	}
	reason, _, _ = strings.Cut(text, ":")
	return "rejected", reason
}

// end ends a call as it was described.
func (s *drySidecar) end(e *dryEvent) {
	s.clock, s.peer = e.at, e.call
	if e.conn.stream != nil {
		endHTTP(e.conn.stream, e.call)
		return
	}
	if e.call.Outcome != "closed" && !e.call.OneWay {
		w := dryWires[cmp.Or(e.call.Protocol, "dubbo")]
		s.data(e.conn.conn, filter.Upstream, w.response(cmp.Or(e.call.Outcome, "ok")))
	}
	e.conn.conn.End()
}

func (s *drySidecar) data(conn *filter.Conn, side filter.Side, b []byte) []byte {
	buffer := &dryBuffer{slices.Clone(b)}
	conn.Data(side, buffer, len(b), false)
	return buffer.b
}

// dryWire writes the frames of one protocol.
type dryWire struct {
	codec    protocol.Codec
	request  func(*dryCall) []byte
	response func(outcome string) []byte
	ack      func() []byte
}

var dryWires = map[string]dryWire{
	"dubbo": {dubbo.Codec{}, dubboRequest, dubboResponse, func() []byte { return dubboFrame(0x22, dubbo.StatusOK, []byte{'N'}) }},
	"bolt":  {bolt.Codec{}, boltRequest, boltResponse, func() []byte { return boltFrame(0, 0, 0, nil) }},
}

func dubboFrame(flags, status byte, body []byte) []byte {
	b := []byte{0xda, 0xbb, flags, status, 0, 0, 0, 0, 0, 0, 0, 1}
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	return append(b, body...)
}

// dubboRequest writes a call without arguments.
func dubboRequest(c *dryCall) []byte {
	var body []byte
	for _, s := range []string{"2.0.2", string(c.Service), cmp.Or(string(c.Version), "0.0.0"), string(c.Method), ""} {
		body = hessian2.AppendString(body, s)
	}
	body = append(body, 'H')
	pair := func(k, v string) { body = hessian2.AppendString(hessian2.AppendString(body, k), v) }
	c.pairs(pair, "")
	for _, kv := range [][2]string{{dubbo.KeyGroup, string(c.Group)}, {dubbo.KeyCaller, string(c.Caller)}} {
		if kv[1] != "" {
			pair(kv[0], kv[1])
		}
	}
	if c.LoadTest {
		pair(dubbo.KeyTrace, "mark=T")
	}
	flags := byte(0xc2)
	if c.OneWay {
		flags = 0x82
	}
	return dubboFrame(flags, 0, append(body, 'Z'))
}

// pairs writes attachments and labels, in order.
func (c *dryCall) pairs(pair func(k, v string), labels string) {
	for _, k := range slices.Sorted(maps.Keys(c.Attachments)) {
		pair(k, string(c.Attachments[k]))
	}
	for _, k := range slices.Sorted(maps.Keys(c.Labels)) {
		pair(labels+k, string(c.Labels[k]))
	}
}

func dubboResponse(outcome string) []byte {
	switch outcome {
	case "exception":
		return dubboFrame(0x02, dubbo.StatusOK, hessian2.AppendString([]byte{0x90}, "exception"))
	case "error":
		return dubboFrame(0x02, dubbo.StatusServerError, hessian2.AppendString(nil, "error"))
	case "timeout":
		return dubboFrame(0x02, dubbo.StatusServerTimeout, hessian2.AppendString(nil, "timeout"))
	}
	return dubboFrame(0x02, dubbo.StatusOK, []byte{0x92})
}

// boltFrame writes a frame of Bolt v1: typ is 0 for a response, 1 for a request, 2 for a one-way request; command 0 for a heartbeat, 1 for
// a request, 2 for a response.
func boltFrame(typ byte, command, status uint16, header []byte) []byte {
	class := map[uint16]string{1: "com.alipay.sofa.rpc.core.request.SofaRequest", 2: "com.alipay.sofa.rpc.core.response.SofaResponse"}[command]
	b := []byte{1, typ}
	b = binary.BigEndian.AppendUint16(b, command)
	b = append(b, 1, 0, 0, 0, 1, bolt.SerializationHessian)
	if typ == 0 {
		b = binary.BigEndian.AppendUint16(b, status)
	} else {
		b = binary.BigEndian.AppendUint32(b, 60_000)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(class)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(header)))
	b = binary.BigEndian.AppendUint32(b, 0)
	return append(append(b, class...), header...)
}

func boltPair(header []byte, k, v string) []byte {
	header = append(binary.BigEndian.AppendUint32(header, uint32(len(k))), k...)
	return append(binary.BigEndian.AppendUint32(header, uint32(len(v))), v...)
}

func boltRequest(c *dryCall) []byte {
	var header []byte
	pair := func(k, v string) { header = boltPair(header, k, v) }
	target := string(c.Service) + ":" + cmp.Or(string(c.Version), bolt.DefaultVersion)
	if c.Group != "" {
		target += ":" + string(c.Group)
	}
	pair(bolt.KeyTargetService, target)
	pair(bolt.KeyMethod, string(c.Method))
	if c.Caller != "" {
		pair(bolt.KeyApp, string(c.Caller))
	}
	if c.LoadTest {
		pair(bolt.KeyTrace, "mark=T")
	}
	c.pairs(pair, bolt.PrefixRequestBaggage)
	typ := byte(1)
	if c.OneWay {
		typ = 2
	}
	return boltFrame(typ, 1, 0, header)
}

func boltResponse(outcome string) []byte {
	switch outcome {
	case "exception":
		return boltFrame(0, 2, 0, boltPair(nil, bolt.KeyResponseError, "true"))
	case "error":
		return boltFrame(0, 2, 2, nil)
	case "timeout":
		return boltFrame(0, 2, 7, nil)
	}
	return boltFrame(0, 2, 0, nil)
}
