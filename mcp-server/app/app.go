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
		Kinds: builtin.Kinds, StateDir: spec.State.Dir, Quiet: spec.HoldOff.Quiet, MaxDelay: spec.HoldOff.Max, Log: o.Log,
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
		Rules: p, Rollouts: releases, Local: loopback(spec.API.Address),
	})
	if err := manager.Set(ctx, spec.Registries); err != nil {
		return &config.Error{File: path, Faults: adapters.AsFaults(err).Under("spec.registries")}
	}
	p.readRules()
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

	mu         sync.Mutex // guards what follows; it is written by lookAtFiles
	spec       *config.Spec
	text       []byte // of the configuration file as it was looked at last; nil where it could not be read
	unreadable string // why not
	rules      governance.Rules
	files      []governance.File
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

// run renders and publishes after each change of the snapshot, the rules or the configuration.
func (p *pipeline) run(ctx context.Context) error {
	snapshots := p.manager.Subscribe(ctx)
	latest := p.manager.Snapshot()
	served := false
	var since time.Time
	for {
		fresh := false
		select {
		case <-ctx.Done():
			return nil
		case s, ok := <-snapshots:
			if !ok {
				return nil
			}
			latest, fresh = s, true
		case <-p.wake:
		}
		p.mu.Lock()
		spec, rules, token, own, version := p.spec, p.rules, p.token, slices.Concat(p.faults, p.pending), p.version
		p.mu.Unlock()
		if p.endpoints == nil {
			var problems []model.Problem
			spec, problems = withoutXDS(spec)
			own = append(own, problems...)
		}
		// What is not in a set is deleted, so nothing is served before everything that there was is there. Afterwards a registry
		// that has been added and cannot be heard yet must not hold up the others.
		serve := latest.Complete || served
		r := render(latest, rules, spec, token, func(a *xds.Assignments) {
			if p.endpoints != nil && serve {
				p.endpoints.Apply(a)
			}
		}, p.metrics.measure)
		if serve {
			for _, sink := range p.sinks {
				done := p.metrics.measure("apply")
				err := sink.Apply(ctx, r.Set)
				done()
				if err != nil {
					return fmt.Errorf("app: %s: %w", sink.Name(), err)
				}
			}
			if fresh {
				p.metrics.latency.Observe(time.Since(latest.Time).Seconds())
			}
			if !served {
				p.o.Log.Info("first complete snapshot is served", "services", len(latest.Services), "resources", r.Set.Len())
			}
			served = true
		}
		if before := p.store.Load(); served && (since.IsZero() || !before.Set.Equal(r.Set)) {
			since = time.Now()
			change := before.Set.Diff(r.Set)
			p.o.Log.Debug("set changed", "added", len(change.Added), "changed", len(change.Changed), "removed", len(change.Removed), "snapshot", latest.Version)
		}
		p.publish(latest, r, rules, own, since)
		p.mu.Lock()
		p.published, p.routes = version, r.routed
		close(p.shown)
		p.shown = make(chan struct{})
		p.mu.Unlock()
	}
}

func (p *pipeline) publish(s *model.Snapshot, r Rendered, rules governance.Rules, own []model.Problem, since time.Time) {
	state := &store.State{Snapshot: s, Hosts: r.Hosts, Problems: r.Problems, Generation: r.Generation, Set: r.Set, Served: since}
	for _, problem := range own {
		state.Problems = append(state.Problems, store.Problem{Stage: store.StageConfig, Problem: problem})
	}
	for i := range rules.Items {
		rule := &rules.Items[i]
		text, err := rule.JSON()
		if err != nil {
			p.o.Log.Error("cannot show a rule", "rule", rule.ID.String(), "error", err)
			continue
		}
		state.Rules = append(state.Rules, store.Rule{Kind: rule.Kind, Namespace: rule.Namespace, Name: rule.Name, File: rule.File, Line: rule.Line,
			Enabled: rule.Enabled(), Kept: rule.Kept, Spec: text, Revision: rule.Revision, Selects: rule.Selects,
			Explain: func() json.RawMessage { return explain(rule, rules.Items) }})
	}
	state.Follow(p.store.Load())
	p.store.Publish(state)
	p.metrics.published(state)
}

// folders are those whose files matter.
func (p *pipeline) folders() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	set := map[string]bool{filepath.Dir(p.o.ConfigPath): true}
	if path := p.spec.Rules.Path; path != "" {
		set[path] = true // a folder
		set[filepath.Dir(path)] = true
	}
	return slices.Sorted(maps.Keys(set))
}

// lookAtFiles returns what takes over changes of the configuration and the rules.
func (p *pipeline) lookAtFiles(ctx context.Context) func() {
	return func() {
		changed := p.readConfig(ctx)
		changed = p.readToken() || changed
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

// readRules reads the rules and tells whether anything is different.
func (p *pipeline) readRules() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	files := ruleFiles(p.spec.Rules.Path)
	if slices.EqualFunc(files, p.files, func(a, b governance.File) bool {
		return a.Name == b.Name && bytes.Equal(a.Text, b.Text) && (a.Err == nil) == (b.Err == nil)
	}) {
		return false
	}
	p.files = files
	p.version++
	p.rules = p.rules.Update(files)
	p.o.Log.Info("rules read", "files", len(files), "rules", len(p.rules.Items), "problems", len(p.rules.Problems))
	return true
}

// Check reads a configuration file and the rules that it points to, and returns all that is wrong with them.
func Check(path string) error {
	cfg, err := config.Load(path, builtin.Kinds)
	if err != nil {
		return err
	}
	rules := Rules(&cfg.Spec)
	var faults []error
	for _, p := range rules.Problems {
		faults = append(faults, fmt.Errorf("%s: %s", p.Place, p.Message))
	}
	return errors.Join(faults...)
}
