// Package app is mcp-server put together: registries in, resources for istiod and an API out.
package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/builtin"
	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/config"
	"github.com/isthmus-mesh/isthmus/mcp-server/console"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
	"github.com/isthmus-mesh/isthmus/mcp-server/mcp"
	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
	"github.com/isthmus-mesh/isthmus/mcp-server/rollout"
	"github.com/isthmus-mesh/isthmus/mcp-server/store"
	"github.com/isthmus-mesh/isthmus/mcp-server/telemetry"
	"github.com/isthmus-mesh/isthmus/mcp-server/xds"
)

// Sink takes the complete desired state and makes it so. Apply is never called before there is a complete one; it keeps no
// reference to ctx and may be called again with what it already has.
type Sink interface {
	Name() string
	Apply(ctx context.Context, desired resource.Set) error
}

// Options say how mcp-server runs.
type Options struct {
	ConfigPath string // of the configuration file
	Version    string // of the program, as the API shows it
	Log        *slog.Logger
	// Listening, if set, is told the addresses once both servers listen.
	Listening func(mcp, api net.Addr)
	// ListeningXDS, if set, is told the address of the server for sidecars before that, if there is one.
	ListeningXDS func(net.Addr)
}

// Run runs mcp-server until ctx is done, and returns nil then. An error at the start is one in the configuration, or an
// address that cannot be had.
func Run(ctx context.Context, o Options) error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	path, err := filepath.Abs(o.ConfigPath)
	if err != nil {
		return fmt.Errorf("app: %w", err)
	}
	o.ConfigPath = path
	cfg, text, err := config.LoadText(path, builtin.Kinds)
	if err != nil {
		return err
	}
	spec := &cfg.Spec
	tlsMCP, err := serverTLS(spec.MCP.TLS, o.Log, "h2")
	if err != nil {
		return err
	}
	tlsXDS, err := serverTLS(spec.XDS.TLS, o.Log, "h2")
	if err != nil {
		return err
	}
	tlsAPI, err := serverTLS(spec.API.TLS, o.Log, "http/1.1")
	if err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	manager := adapters.NewManager(adapters.ManagerOptions{
		Kinds: builtin.Kinds, StateDir: spec.State.Dir, Log: o.Log,
	})
	server := mcp.New(mcp.Options{Log: o.Log, Metrics: registry, Token: secret(spec.MCP.Token)})
	var endpoints *xds.Server
	if spec.Listen() != "" {
		endpoints = xds.New(xds.Options{Log: o.Log, Metrics: registry, Token: secret(spec.XDS.Token)})
	}
	scraper := telemetry.New(telemetry.Options{Targets: targets(spec), Interval: spec.Telemetry.Interval, Log: o.Log, Metrics: registry})
	p := &pipeline{
		o: o, manager: manager, server: server, sinks: []Sink{server}, endpoints: endpoints, scraper: scraper, store: new(store.Store),
		started: spec, spec: spec, text: text, metrics: newPipelineMetrics(registry, manager), wake: make(chan struct{}, 1), shown: make(chan struct{}),
	}
	releases := rollout.New(rollout.Options{Rules: p, Services: p.routable, Known: p.known, Calls: scraper.Subsets, Interval: spec.Telemetry.Interval, Log: o.Log, Metrics: registry})
	web := console.New(console.Options{
		Store: p.store, Sources: manager.Sources, Istiods: func() []api.Istiod { return istiods(server) }, Traffic: scraper.Report,
		Ready: p.ready, Filter: p.filter, Token: secret(spec.API.Token), Metrics: registry, Log: o.Log, Version: o.Version,
		Rules: p, Rollouts: releases, Local: loopback(spec.API.Address), Subsets: p.subsets,
	})
	if err := manager.Set(ctx, spec.Registries); err != nil {
		return &config.Error{File: path, Faults: adapters.AsFaults(err).Under("spec.registries")}
	}
	p.readRules()
	p.readKeys()
	p.readToken()

	var listen net.ListenConfig
	lMCP, err := listen.Listen(ctx, "tcp", spec.MCP.Address)
	if err != nil {
		return fmt.Errorf("app: MCP server: %w", err)
	}
	lAPI, err := listen.Listen(ctx, "tcp", spec.API.Address)
	if err != nil {
		lMCP.Close()
		return fmt.Errorf("app: API: %w", err)
	}
	var lXDS net.Listener
	if endpoints != nil {
		if lXDS, err = listen.Listen(ctx, "tcp", spec.Listen()); err != nil {
			lMCP.Close()
			lAPI.Close()
			return fmt.Errorf("app: endpoint discovery service: %w", err)
		}
		o.Log.Info("listening for sidecars", "xds", lXDS.Addr().String())
		if o.ListeningXDS != nil {
			o.ListeningXDS(lXDS.Addr())
		}
	}
	o.Log.Info("listening", "mcp", lMCP.Addr().String(), "api", lAPI.Addr().String())
	if o.Listening != nil {
		o.Listening(lMCP.Addr(), lAPI.Addr())
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return server.Serve(ctx, lMCP, tlsMCP) })
	if endpoints != nil {
		g.Go(func() error { return endpoints.Serve(ctx, lXDS, tlsXDS) })
	}
	g.Go(func() error { return web.Serve(ctx, lAPI, tlsAPI) })
	g.Go(func() error { return manager.Run(ctx) })
	g.Go(func() error { return scraper.Run(ctx) })
	g.Go(func() error { return releases.Run(ctx) })
	g.Go(func() error { return p.run(ctx) })
	g.Go(func() error { return watch(ctx, o.Log, p.folders, p.lookAtFiles(ctx)) })
	err = g.Wait()
	o.Log.Info("stopped", "error", err)
	return err
}

func secret(t config.Token) func() (string, error) {
	if s := t.Secret(); !s.IsZero() {
		return s.Read
	}
	return nil
}

func targets(spec *config.Spec) []telemetry.Target {
	out := make([]telemetry.Target, len(spec.Telemetry.Targets))
	for i, t := range spec.Telemetry.Targets {
		out[i] = telemetry.Target(t)
	}
	return out
}

func istiods(s *mcp.Server) []api.Istiod {
	var out []api.Istiod
	for _, c := range s.Clients() {
		i := api.Istiod{Node: c.Node, Remote: c.Remote, Since: c.Since, Types: make([]api.IstiodType, len(c.Types))}
		for j, t := range c.Types {
			i.Types[j] = api.IstiodType{Type: string(t.Type), Resources: t.Resources, Synced: t.Sent != "" && t.Sent == t.Acked, Rejected: t.Rejected}
		}
		out = append(out, i)
	}
	return out
}

// pipeline turns whatever changes into what is served.
type pipeline struct {
	o         Options
	manager   *adapters.Manager
	server    *mcp.Server
	sinks     []Sink
	endpoints *xds.Server // nil where nobody listens for sidecars
	scraper   *telemetry.Scraper
	store     *store.Store
	metrics   *pipelineMetrics
	started   *config.Spec  // what was in force when the servers began
	wake      chan struct{} // rules or the configuration have changed
	writing   sync.Mutex    // held while rules are written; before mu
	list      []store.Rule  // what people see of the rules of the version listed; of publish alone
	listed    uint64

	mu         sync.Mutex // guards what follows; it is written by lookAtFiles
	spec       *config.Spec
	text       []byte // of the configuration file as it was looked at last; nil where it could not be read
	unreadable string // why not
	rules      governance.Rules
	files      []governance.File
	keys       *governance.Keys
	keyFiles   []governance.File
	version    uint64          // of the rules: how often they have changed
	published  uint64          // the version that the store shows
	shown      chan struct{}   // closed, and replaced, whenever the store shows something new
	faults     []model.Problem // of the configuration
	pending    []model.Problem // changes that need a restart
	token      string          // what sidecars show us
	routes     func() []governance.Routed
}

// ready tells why istiod cannot be served yet.
func (p *pipeline) ready() error {
	if p.server.Serving() && (p.endpoints == nil || p.endpoints.Serving()) {
		return nil
	}
	var waiting []string
	for _, s := range p.manager.Sources() {
		if s.State == model.StateConnecting {
			waiting = append(waiting, s.Name)
		}
	}
	return fmt.Errorf("no complete snapshot yet; waiting for registries %q", waiting)
}

func (p *pipeline) filter() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.spec.Filter.Disabled {
		return ""
	}
	return p.spec.Filter.URL
}

// job is a plan and all that it was made of.
type job struct {
	input
	*plan
	own    []model.Problem // with the configuration
	serve  bool            // there is all that there was
	fresh  bool            // the snapshot is new
	urgent bool            // somebody has written something and waits for it
}

// run makes a plan after each change of the snapshot, the rules or the configuration. Sidecars are told of their endpoints at once; what
// istiod is told is gathered first, and worked out beside it.
func (p *pipeline) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	jobs := newMailbox()
	g.Go(func() error { return p.plan(ctx, jobs) })
	g.Go(func() error { return p.assemble(ctx, jobs) })
	return g.Wait()
}

// plan is the half of run that is at once.
func (p *pipeline) plan(ctx context.Context, jobs *mailbox) error {
	snapshots := p.manager.Subscribe(ctx)
	planner := newPlanner(p.metrics.measure)
	latest := p.manager.Snapshot()
	served := false
	var given, used *config.Spec
	var lacking []model.Problem
	lingering := linger{quiet: p.started.HoldOff.Quiet}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var made *plan
	serve := func() {
		services, wait := lingering.hold(made.services, time.Now())
		endpoints := made.endpoints
		if wait > 0 {
			timer.Reset(wait)
			endpoints = xds.NewAssignments(services, made.subsets)
		}
		p.endpoints.Apply(endpoints)
	}
	for {
		fresh := false
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			if made != nil && p.endpoints != nil && served {
				serve()
			}
			continue
		case s, ok := <-snapshots:
			if !ok {
				return nil
			}
			latest, fresh = s, true
		case <-p.wake:
		}
		p.mu.Lock()
		in := input{snapshot: latest, rules: p.rules, version: p.version, keys: p.keys, spec: p.spec, token: p.token}
		own := slices.Concat(p.faults, p.pending)
		p.mu.Unlock()
		if given != in.spec {
			given, used, lacking = in.spec, in.spec, nil
			if p.endpoints == nil {
				used, lacking = withoutXDS(given)
			}
			lingering = linger{quiet: lingering.quiet} // what is not lifted any more is not to stay
		}
		in.spec = used
		// What is not in a set is deleted, so nothing is served before everything that there was is there. Afterwards a registry
		// that has been added and cannot be heard yet must not hold up the others.
		served = served || latest.Complete
		made = planner.plan(in)
		if p.endpoints != nil && served {
			serve()
			if fresh {
				p.metrics.early.Observe(time.Since(latest.Time).Seconds())
			}
		}
		jobs.put(&job{input: in, plan: made, own: slices.Concat(own, lacking), serve: served, fresh: fresh, urgent: !fresh})
	}
}

// assemble is the half of run that is gathered.
func (p *pipeline) assemble(ctx context.Context, jobs *mailbox) error {
	hold := holdOff{HoldOff: p.started.HoldOff}
	assembler := newAssembler(p.metrics.measure)
	if p.endpoints != nil {
		assembler.passage = &passage{known: p.endpoints.Know}
	}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var next, again *job // again is what was assembled last, if that may have to be something else by now
	var since time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-jobs.full:
			j := jobs.take()
			j.fresh = j.fresh || next != nil && next.fresh
			next = j
			if hold.note(time.Now()); next.urgent || next.serve && since.IsZero() {
				hold.end()
			}
		case <-timer.C:
			if next == nil && again != nil {
				next = again
				hold.end()
			}
		}
		if next == nil {
			continue
		}
		if wait := hold.left(time.Now()); wait > 0 {
			timer.Reset(wait)
			continue
		}
		hold = holdOff{HoldOff: hold.HoldOff}
		r := assembler.assemble(next.input, next.plan)
		if next.serve {
			for _, sink := range p.sinks {
				done := p.metrics.measure("apply")
				err := sink.Apply(ctx, r.Set)
				done()
				if err != nil {
					return fmt.Errorf("app: %s: %w", sink.Name(), err)
				}
			}
			if next.fresh {
				p.metrics.latency.Observe(time.Since(next.snapshot.Time).Seconds())
			}
			if since.IsZero() {
				p.o.Log.Info("first complete snapshot is served", "services", len(next.snapshot.Services), "resources", r.Set.Len())
			}
			if before := p.store.Load(); since.IsZero() || !before.Set.Equal(r.Set) {
				since = time.Now()
				change := before.Set.Diff(r.Set)
				p.o.Log.Debug("set changed", "added", len(change.Added), "changed", len(change.Changed), "removed", len(change.Removed), "snapshot", next.snapshot.Version)
			}
		}
		p.publish(next, r, since)
		p.mu.Lock()
		p.published, p.routes = next.version, r.routed
		close(p.shown)
		p.shown = make(chan struct{})
		p.mu.Unlock()
		if again = nil; r.again > 0 {
			again = next
			again.fresh = false
			timer.Reset(r.again)
		}
		next = nil
	}
}

// holdOff says how long changes are gathered.
type holdOff struct {
	config.HoldOff
	first, last time.Time // of those that are
	ended       bool      // what has come cannot wait
}

func (h *holdOff) note(now time.Time) {
	if h.first.IsZero() {
		h.first = now
	}
	h.last = now
}

func (h *holdOff) end() { h.ended = true }

// left returns how long they still are.
func (h *holdOff) left(now time.Time) time.Duration {
	if h.ended {
		return 0
	}
	return min(h.last.Add(h.Quiet).Sub(now), h.first.Add(h.Max).Sub(now))
}

// mailbox holds the latest job that its one reader has not yet taken. One that takes the place of another takes over that somebody waits.
type mailbox struct {
	mu   sync.Mutex
	job  *job
	full chan struct{} // holds something if job does
}

func newMailbox() *mailbox { return &mailbox{full: make(chan struct{}, 1)} }

func (m *mailbox) put(j *job) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.job != nil {
		j.fresh, j.urgent = j.fresh || m.job.fresh, j.urgent || m.job.urgent
	} else {
		m.full <- struct{}{}
	}
	m.job = j
}

// take returns the job, once full has said that there is one.
func (m *mailbox) take() *job {
	m.mu.Lock()
	defer m.mu.Unlock()
	j := m.job
	m.job = nil
	return j
}

func (p *pipeline) publish(j *job, rendered Rendered, since time.Time) {
	state := &store.State{Snapshot: j.snapshot, Hosts: rendered.Hosts, Lifts: rendered.Lifts, Problems: rendered.Problems, Generation: rendered.Generation, Set: rendered.Set, Served: since}
	for _, problem := range j.own {
		state.Problems = append(state.Problems, store.Problem{Stage: store.StageConfig, Problem: problem})
	}
	if p.list == nil || p.listed != j.version {
		p.list, p.listed = p.describe(j.rules), j.version
	}
	state.Rules = slices.Clone(p.list)
	for i := range state.Rules {
		r := &state.Rules[i]
		r.Routes = rendered.Routes[governance.ID{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name}]
	}
	state.Follow(p.store.Load())
	p.store.Publish(state)
	p.metrics.published(state)
}

// describe makes of rules what people see of them. It is never nil.
func (p *pipeline) describe(rules governance.Rules) []store.Rule {
	out := []store.Rule{}
	for i := range rules.Items {
		rule := &rules.Items[i]
		text, err := rule.JSON()
		if err != nil {
			p.o.Log.Error("cannot show a rule", "rule", rule.ID.String(), "error", err)
			continue
		}
		out = append(out, store.Rule{Kind: rule.Kind, Namespace: rule.Namespace, Name: rule.Name, File: rule.File, Line: rule.Line,
			Enabled: rule.Enabled(), Kept: rule.Kept, Spec: text, Revision: rule.Revision, Selects: rule.Selects,
			Explain: func() json.RawMessage { return explain(rule, rules.Items) }})
	}
	return out
}

// folders are those whose files matter.
func (p *pipeline) folders() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	set := map[string]bool{filepath.Dir(p.o.ConfigPath): true}
	for _, path := range []string{p.spec.Rules.Path, p.spec.Keys.Path} {
		if path != "" {
			set[path] = true // a folder
			set[filepath.Dir(path)] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// lookAtFiles returns what takes over changes of the configuration and the rules.
func (p *pipeline) lookAtFiles(ctx context.Context) func() {
	return func() {
		changed := p.readConfig(ctx)
		changed = p.readToken() || changed
		changed = p.readKeys() || changed
		if p.readRules() || changed {
			p.stir()
		}
	}
}

// stir makes run look again.
func (p *pipeline) stir() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// readConfig looks at the configuration file and tells whether anything is different. What is wrong with it leaves the running
// configuration as it is.
func (p *pipeline) readConfig(ctx context.Context) bool {
	cfg, text, err := config.LoadText(p.o.ConfigPath, builtin.Kinds)
	p.mu.Lock()
	same := text != nil && bytes.Equal(text, p.text)
	if text == nil && err != nil {
		same = p.unreadable == err.Error()
	}
	p.mu.Unlock()
	if same {
		return false
	}
	if err == nil {
		// The Manager either takes all of it or nothing.
		if set := p.manager.Set(ctx, cfg.Spec.Registries); set != nil {
			if ctx.Err() != nil {
				return false
			}
			err = &config.Error{File: p.o.ConfigPath, Faults: adapters.AsFaults(set).Under("spec.registries")}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		wrong, ok := errors.AsType[*config.Error](err)
		if !ok {
			wrong = &config.Error{File: p.o.ConfigPath, Faults: adapters.Faults{{Message: err.Error()}}}
		}
		p.text, p.faults, p.unreadable = text, nil, ""
		if text == nil {
			p.unreadable = err.Error()
		}
		for _, f := range wrong.Faults {
			one := &config.Error{File: "", Faults: adapters.Faults{{Path: f.Path, Message: f.Message}}}
			place := wrong.File
			if f.Line > 0 {
				place = fmt.Sprintf("%s:%d", wrong.File, f.Line)
			}
			p.faults = append(p.faults, model.Problem{Severity: model.SeverityError, Place: place, Code: "InvalidConfiguration",
				Message: one.Error()[len(": "):] + "; the running configuration stays"})
		}
		p.o.Log.Error("the configuration file is faulty; the running configuration stays", "error", wrong)
		p.metrics.reloads.WithLabelValues("error").Inc()
		return true
	}
	p.text, p.faults, p.unreadable = text, nil, ""
	p.spec = &cfg.Spec
	p.pending = nil
	for _, c := range []struct {
		field    string
		old, new any
	}{
		{"spec.mcp", p.started.MCP, cfg.Spec.MCP}, {"spec.api", p.started.API, cfg.Spec.API},
		{"spec.xds.address", p.started.XDS.Address, cfg.Spec.XDS.Address}, {"spec.xds.tls", p.started.XDS.TLS, cfg.Spec.XDS.TLS}, {"spec.xds.token", p.started.XDS.Token, cfg.Spec.XDS.Token},
		{"spec.state", p.started.State, cfg.Spec.State}, {"spec.holdOff", p.started.HoldOff, cfg.Spec.HoldOff},
	} {
		if !reflect.DeepEqual(c.old, c.new) {
			p.pending = append(p.pending, model.Problem{Severity: model.SeverityWarning, Place: p.o.ConfigPath, Code: "RestartNeeded",
				Message: c.field + " has changed, which takes effect when mcp-server is started again"})
		}
	}
	p.scraper.SetTargets(targets(&cfg.Spec), cfg.Spec.Telemetry.Interval)
	p.o.Log.Info("configuration taken over", "registries", len(cfg.Spec.Registries), "restart_needed", len(p.pending) > 0)
	p.metrics.reloads.WithLabelValues("ok").Inc()
	return true
}

// readToken reads what sidecars show us and tells whether it is different. One that cannot be read leaves what was.
func (p *pipeline) readToken() bool {
	read := secret(p.started.XDS.Token)
	if read == nil {
		return false
	}
	token, err := read()
	if err != nil {
		p.o.Log.Error("the token of sidecars cannot be read", "error", err)
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	changed := token != p.token
	p.token = token
	return changed
}

// readKeys reads the keys of tokens and tells whether anything is different.
func (p *pipeline) readKeys() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	files := keyFiles(p.spec.Keys.Path)
	if sameFiles(files, p.keyFiles) && p.keys != nil {
		return false
	}
	p.keyFiles = files
	p.keys = p.keys.Update(files)
	p.o.Log.Info("keys read", "files", len(files), "problems", len(p.keys.Problems))
	return true
}

func sameFiles(a, b []governance.File) bool {
	return slices.EqualFunc(a, b, func(a, b governance.File) bool {
		return a.Name == b.Name && bytes.Equal(a.Text, b.Text) && (a.Err == nil) == (b.Err == nil)
	})
}

// readRules reads the rules and tells whether anything is different.
func (p *pipeline) readRules() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	files := ruleFiles(p.spec.Rules.Path)
	if sameFiles(files, p.files) {
		return false
	}
	p.files = files
	p.version++
	p.rules = p.rules.Update(files)
	p.o.Log.Info("rules read", "files", len(files), "rules", len(p.rules.Items), "problems", len(p.rules.Problems))
	return true
}

// Check reads a configuration file and the rules and keys that it points to, and returns all that is wrong with them.
func Check(path string) error {
	cfg, err := config.Load(path, builtin.Kinds)
	if err != nil {
		return err
	}
	rules, keys := Rules(&cfg.Spec), (*governance.Keys)(nil).Update(keyFiles(cfg.Spec.Keys.Path))
	var faults []error
	for _, p := range slices.Concat(rules.Problems, keys.Problems) {
		faults = append(faults, fmt.Errorf("%s: %s", p.Place, p.Message))
	}
	return errors.Join(faults...)
}
