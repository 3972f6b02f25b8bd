package filter

import (
	"hash/maphash"
	"slices"

	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/access"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/token"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// Identity tells plugins apart. A plugin whose configuration changes keeps its identity.
type Identity struct {
	Name string // of the plugin, in Envoy's configuration
	Root string // root_id
}

func (id Identity) key() string { return id.Name + "/" + id.Root }

// Runtime is a plugin as it lives on while Envoy replaces its configuration: connections, metrics, and the state of
// rules that stay the same.
//
// Envoy makes a new plugin context for every new configuration; connections that are open stay with the old one. They are to obey
// the new rules all the same, so all contexts of one identity share a Runtime.
type Runtime struct {
	vm  *VM
	key string
	// plugins are the contexts, ordered by when each was last known to be the current one.
	plugins []*Plugin
	trail   trail
	changed policy.Nanos // when rules did last

	rules  *ruleset
	epoch  uint32 // changes with rules
	states []state

	seed    uint64
	routes  routes
	beyond  [][directions]*route // by protocol and direction
	matched []int                // scratch

	metrics  metrics
	info     Metric // config_info of the generation shown
	shown    string // that generation
	bad      Metric // config_rejected
	rejected bool   // the last configuration offered was not good

	conns   *Conn // all open ones, linked by next and prev
	streams int   // HTTP requests that have not ended
	cursor  *Conn // where the sweep goes on
	slot    int   // in the in-flight tables of cursor
	flushed policy.Nanos
	settled policy.Nanos // until when callers' filters may not know the attachments that become headers
}

// A state is a rule's, together with what was reported of it.
type state struct {
	governor
	kind     int // index into kinds
	reported policy.Hits
	ids      [3]Metric // admit, reject, would_reject
	gauge    Metric
	level    uint64 // of the gauge, as the host has it
	circuits []circuitGauge
	checks   []Metric // of tokens, by what was found; nil: none yet
}

// key tells the states of a runtime apart. Rules of different kinds may have the same name.
func (s *state) key() string { return kinds[s.kind].label + " " + s.Name() }

// Plugin is one plugin context: a configuration that Envoy handed in.
type Plugin struct {
	rt    *Runtime
	rules *ruleset // nil: the configuration was not good
}

// Configure takes a plugin's configuration and puts it to use, for open connections too. app is the application that the
// workload belongs to, "" if it is not known.
//
// A configuration with faults changes nothing: the one before stays in force, and where there is none, the zero
// configuration, which meters and rejects nothing. So a mistake never cuts a connection; it shows in the log, in the metric
// isthmus_filter_config_rejected, and in the generation that isthmus_filter_config_info goes on to show.
func (vm *VM) Configure(id Identity, app string, data []byte) (*Plugin, config.Faults) {
	key := id.key()
	rt := vm.runtimes[key]
	if rt == nil {
		rt = &Runtime{vm: vm, key: key, info: undefined, bad: undefined}
		rt.seed = maphash.String(maphash.MakeSeed(), key)
		rt.trail.key = []byte("isthmus/configured/" + key)
		rt.metrics.init(vm.host, vm.protocols)
		vm.runtimes[key] = rt
	}
	p := &Plugin{rt: rt}
	rt.plugins = append(rt.plugins, p)
	conf, faults := config.Decode(data)
	if len(faults) == 0 {
		p.rules, faults = vm.compile(conf, app)
	}
	if len(faults) > 0 {
		p.rules = nil
		rt.rejected = true
		vm.logFaults(id.Name, faults, rt.rules != nil)
		if rt.rules == nil {
			zero, _ := vm.compile(&config.Plugin{}, app)
			rt.use(zero)
		}
		return p, faults
	}
	rt.rejected = false
	p.rules.hash = hashOf(app, data)
	if shared := vm.host.Shared(); shared != nil {
		rt.trail.told(shared, p.rules.hash)
	}
	if !rt.follow() {
		rt.use(p.rules)
	}
	return p, nil
}

// follow puts the newest configuration in force, and tells whether this thread has it.
func (rt *Runtime) follow() bool {
	shared := rt.vm.host.Shared()
	if shared == nil {
		return false
	}
	rt.trail.load(shared)
	newest, ok := rt.trail.of(rt.trail.last)
	p := rt.having(newest)
	if !ok || p == nil {
		return false
	}
	rt.use(p.rules)
	return true
}

// having returns a context whose configuration has this hash, nil where there is none.
func (rt *Runtime) having(hash uint64) *Plugin {
	for _, p := range rt.plugins {
		if p.rules != nil && p.rules.hash == hash {
			return p
		}
	}
	return nil
}

func (vm *VM) logFaults(name string, faults config.Faults, running bool) {
	for _, f := range faults {
		l := append(vm.line[:0], "isthmus: configuration of "...)
		l = appendString(l, name)
		l = appendString(l, ": ")
		l = appendString(l, f.String())
		vm.line = l
		vm.host.Log(LevelError, l)
	}
	then := "isthmus: configuration not used; calls are metered, no rule is in force"
	if running {
		then = "isthmus: configuration not used; the one before stays in force"
	}
	vm.host.Log(LevelError, append(vm.line[:0], then...))
}

// use puts a ruleset in force.
func (rt *Runtime) use(rs *ruleset) {
	if rt.rules != nil && rt.rules.hash == rs.hash {
		return
	}
	rt.changed = rt.vm.host.Now()
	rt.reportRules()
	old := make(map[string]*state, len(rt.states))
	for i := range rt.states {
		old[rt.states[i].key()] = &rt.states[i]
	}
	shared := rt.vm.host.Shared()
	states := make([]state, len(rs.specs))
	for i := range rs.specs {
		s := &rs.specs[i]
		key := kinds[s.kind].label + " " + s.name
		next := state{kind: s.kind, ids: [3]Metric{undefined, undefined, undefined}, gauge: undefined}
		before := old[key]
		if before == nil {
			next.governor = kinds[s.kind].renew(&rs.conf, s, nil, shared, rt.key)
		} else {
			delete(old, key)
			next.governor = kinds[s.kind].renew(&rs.conf, s, before.governor, shared, rt.key)
			next.ids, next.checks = before.ids, before.checks
			if before.kind == s.kind && (perEndpoint(before.governor) == nil) == (perEndpoint(next.governor) == nil) {
				next.gauge, next.level, next.circuits = before.gauge, before.level, before.circuits
			} else {
				rt.blank(before)
			}
			if before.governor == next.governor {
				next.reported = before.reported
			}
		}
		next.Renew(s.observe, s.when)
		if r, ok := next.governor.(*access.Rule); ok {
			r.SetToken(nil)
			if s.proof != nil {
				r.SetToken(token.New(*s.proof, rt.vm.host))
			}
		}
		states[i] = next
	}
	for _, s := range old {
		rt.blank(s)
	}
	rt.states = states
	rt.settle(rs)
	rt.rules = rs
	rt.epoch++
	rt.metrics.limits = rs.conf.Metrics
	rt.vm.quotas(rt)
	rt.vm.shareKeys()
}

// blank sets the gauges of a rule that is no more.
func (rt *Runtime) blank(s *state) {
	if s.gauge != undefined {
		rt.vm.host.Set(s.gauge, 0)
	}
	rt.reportCircuits(s, nil, 0)
}

// switching is how long after a change of the rules a thread may go on to begin connections under the configuration before.
const switching = policy.Nanos(5_000_000_000)

// current notes that this context is the current one, because something begins under it: Envoy does not configure a plugin again when it
// goes back to a configuration that open connections still use. Soon after a change it may also be that Envoy has told of the new configuration
// and has not put it to use yet; then the other threads know better.
func (p *Plugin) current() {
	rt := p.rt
	if rt.plugins[len(rt.plugins)-1] == p && (p.rules == nil || p.rules.hash == rt.rules.hash) {
		return
	}
	shared := rt.vm.host.Shared()
	if p.rules != nil && p.rules.hash != rt.rules.hash && shared != nil {
		if rt.vm.host.Now() < rt.changed+switching {
			rt.follow()
			return
		}
		rt.trail.told(shared, p.rules.hash)
	}
	rt.remove(p)
	rt.plugins = append(rt.plugins, p)
	if p.rules != nil && !rt.follow() {
		rt.use(p.rules)
	}
}

// NewConn begins a connection. dir tells at which end of its calls this Envoy stands.
func (p *Plugin) NewConn(dir policy.Direction) *Conn {
	rt := p.rt
	p.current()
	vm := rt.vm
	c := vm.conns
	if c == nil {
		c = new(Conn)
	} else {
		vm.conns = c.next
		*c = Conn{delays: c.delays}
	}
	c.rt, c.dir, c.protocol = rt, dir, -1
	c.blind = rt.rules.conf.KeysOnly
	c.next = rt.conns
	if c.next != nil {
		c.next.prev = c
	}
	rt.conns = c
	return c
}

// Done ends the plugin context. Connections that are still open keep the Runtime.
func (p *Plugin) Done() {
	rt := p.rt
	rt.flush()
	rt.remove(p)
	switch n := len(rt.plugins); {
	case rt.unused():
		rt.close()
	case n > 0 && p.rules != nil && p.rules.hash == rt.rules.hash && rt.having(p.rules.hash) == nil:
		// The configuration in force has gone, so Envoy went back to one that open connections had kept.
		if last := rt.plugins[n-1]; !rt.follow() && last.rules != nil {
			rt.use(last.rules)
		}
	}
}

// unused tells whether no context and nothing that began under one is left.
func (rt *Runtime) unused() bool { return len(rt.plugins) == 0 && rt.conns == nil && rt.streams == 0 }

// remove takes a context out of the list.
func (rt *Runtime) remove(p *Plugin) {
	if i := slices.Index(rt.plugins, p); i >= 0 {
		rt.plugins = slices.Delete(rt.plugins, i, i+1)
	}
}

// close forgets the runtime, of which no context and no connection is left.
func (rt *Runtime) close() {
	rt.flush()
	for i := range rt.states {
		rt.blank(&rt.states[i])
	}
	rt.show(undefined)
	if rt.bad != undefined {
		rt.vm.host.Set(rt.bad, 0)
	}
	rt.vm.dropQuotas(rt)
	delete(rt.vm.runtimes, rt.key)
	rt.vm.shareKeys()
}

// Tick does what is due each second: it gives up calls that never returned and brings the metrics to the host. It may be
// called more often, and by several contexts of one identity.
func (p *Plugin) Tick() {
	rt := p.rt
	now := rt.vm.host.Now()
	if now < rt.flushed {
		return
	}
	rt.flushed = now + 900_000_000
	rt.follow() // what other threads know
	rt.sweep(now)
	for c := rt.conns; c != nil; c = c.next {
		if c.relay != nil {
			c.sweepRelay(now)
		}
	}
	rt.flush()
}

// sweep gives up calls whose time is over, a bounded number of slots at a time.
func (rt *Runtime) sweep(now policy.Nanos) {
	budget := sweepSlots
	if rt.cursor == nil {
		rt.cursor, rt.slot = rt.conns, 0
	}
	for ; rt.cursor != nil; rt.cursor, rt.slot = rt.cursor.next, 0 {
		c := rt.cursor
		base := 0
		for side := range c.inFlight {
			t := &c.inFlight[side]
			for i := max(rt.slot-base, 0); t.n > 0 && i < len(t.slots); {
				if budget == 0 {
					rt.slot = base + i
					return
				}
				budget--
				if s := &t.slots[i]; s.route != nil && s.deadline <= now {
					c.finish(Side(side), i, protocol.OutcomeNoResponse, now)
					continue // another call may have moved here
				}
				i++
			}
			base += len(t.slots)
		}
		if budget == 0 {
			return
		}
		budget--
	}
}

// flush brings metrics to the host.
func (rt *Runtime) flush() {
	rt.metrics.flush(rt.vm.protocols)
	rt.reportRules()
	host := rt.vm.host
	switch conf := &rt.rules.conf; {
	case conf.KeysOnly:
		rt.show(undefined)
	case rt.info == undefined || rt.shown != conf.Generation:
		b := appendLabel(rt.vm.line[:0], config.TagRevision, conf.Generation)
		rt.vm.line = append(b, nameConfigInfo...)
		rt.show(host.Gauge(rt.vm.line))
		rt.shown = conf.Generation
	}
	if rt.rejected || rt.bad != undefined {
		if rt.bad == undefined {
			rt.vm.line = append(rt.vm.line[:0], nameConfigBad...)
			rt.bad = host.Gauge(rt.vm.line)
		}
		var v uint64
		if rt.rejected {
			v = 1
		}
		host.Set(rt.bad, v)
	}
}

// show makes info the metric that counts this runtime; undefined is none. All plugins and all workers of an Envoy share the metric of a generation, so it
// counts them: none of them says for the others that they do not run it any more, and at no moment is there none.
func (rt *Runtime) show(info Metric) {
	if info != undefined {
		rt.vm.host.Add(info, 1)
	}
	if rt.info != undefined {
		rt.vm.host.Add(rt.info, -1)
	}
	rt.info = info
}

var ruleActions = [3]string{"admit", "reject", "would_reject"}

// reportRules brings what the rules did, and where they stand, to the host.
func (rt *Runtime) reportRules() {
	now := policy.Nanos(-1)
	for i := range rt.states {
		s := &rt.states[i]
		rt.reportChecks(s)
		h := *s.Hits()
		if h == (policy.Hits{}) {
			continue // no call has met it: it stands where it began
		}
		if gauge := kinds[s.kind].gauge; gauge != nil {
			if now < 0 {
				now = rt.vm.host.Now()
			}
			if r := perEndpoint(s.governor); r != nil {
				rt.reportCircuits(s, r, now)
			} else {
				name, level := gauge(s.governor, now)
				if s.gauge == undefined {
					rt.vm.line = append(rt.ruleLabels(s), name...)
					s.gauge, s.level = rt.vm.host.Gauge(rt.vm.line), ^level
				}
				if level != s.level {
					s.level = level
					rt.vm.host.Set(s.gauge, level)
				}
			}
		}
		if h == s.reported {
			continue
		}
		for a, delta := range [3]uint64{h.Admitted - s.reported.Admitted, h.Rejected - s.reported.Rejected, h.WouldReject - s.reported.WouldReject} {
			if delta == 0 {
				continue
			}
			if s.ids[a] == undefined {
				b := appendLabel(rt.ruleLabels(s), config.TagAction, ruleActions[a])
				rt.vm.line = append(b, nameRuleHits...)
				s.ids[a] = rt.vm.host.Counter(rt.vm.line)
			}
			rt.vm.host.Add(s.ids[a], int64(delta))
		}
		s.reported = h
	}
}

// ruleLabels returns the labels of a rule's metrics.
func (rt *Runtime) ruleLabels(s *state) []byte {
	b := appendLabel(rt.vm.line[:0], config.TagRuleKind, kinds[s.kind].label)
	return appendLabel(b, config.TagRule, s.Name())
}
