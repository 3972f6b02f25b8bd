// Package adapterstest holds every adapter to the contract of adapters.Discoverer. An adapter's test supplies a driver
// for its registry, real or a fake that speaks the wire protocol, and calls Run.
//
//	func TestConformance(t *testing.T) {
//		adapterstest.Run(t, adapterstest.Suite{Framework: "dubbo", Start: startFake, Consumers: true, Connection: true})
//	}
package adapterstest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/model"
)

// Provider is an endpoint that a scenario asks the registry to hold, in neutral terms.
type Provider struct {
	Interface   string
	Version     string
	Group       string // Dubbo group, SOFA uniqueId
	Application string
	Address     string
	Port        uint16
	Weight      uint32 // 0: none given
}

// Key returns the service's key in a framework.
func (p Provider) Key(framework string) model.Key {
	return model.Key{Framework: framework, Interface: p.Interface, Version: p.Version, Group: p.Group}
}

// Consumer is a consumer that a scenario asks the registry to hold.
type Consumer struct {
	Interface   string
	Version     string
	Group       string
	Application string
	Address     string
}

// Key returns the key of the service that it consumes.
func (c Consumer) Key(framework string) model.Key {
	return model.Key{Framework: framework, Interface: c.Interface, Version: c.Version, Group: c.Group}
}

// Registry drives one registry under test. Its methods act as an application or an operator would, and return when the
// registry holds the change; they fail the test if it cannot be made. A driver whose registry cannot be changed while it
// is away keeps the changes until Connect.
type Registry interface {
	// Discoverer returns a new Discoverer for this registry. It neither dials nor spawns.
	Discoverer(t testing.TB) adapters.Discoverer
	AddProvider(t testing.TB, p Provider)
	RemoveProvider(t testing.TB, p Provider)
	AddConsumer(t testing.TB, c Consumer)    // only with Suite.Consumers
	RemoveConsumer(t testing.TB, c Consumer) // only with Suite.Consumers
	// Disconnect makes the registry unreachable for the Discoverer; what it holds stays. Only with Suite.Connection.
	Disconnect(t testing.TB)
	// Connect makes it reachable again. Only with Suite.Connection.
	Connect(t testing.TB)
	// AddMalformed puts one faulty datum beside the good ones of p's interface, and returns a text that the Place or the
	// Message of the Problem must contain. "" says that this registry can hold no faulty data.
	AddMalformed(t testing.TB, p Provider) string
	// RemoveMalformed takes it away again.
	RemoveMalformed(t testing.TB, p Provider)
}

// Suite describes one adapter to the suite.
type Suite struct {
	// Start starts an empty registry that ends with the test.
	Start func(t *testing.T) Registry
	// Framework and Protocol are those of the services that the driver makes.
	Framework string
	Protocol  model.Protocol
	// Consumers says that the registry knows consumers.
	Consumers bool
	// Connection says that the registry is reached over a connection that can be lost.
	Connection bool
	// Within is how long a change may take to be seen. Default 10 s; it is a bound for failing tests, not a wait.
	Within time.Duration
	// Churn is the number of changes in the churn scenario. Default 200.
	Churn int
}

// Run runs every scenario, each on a registry of its own.
func Run(t *testing.T, s Suite) {
	if s.Within == 0 {
		s.Within = 10 * time.Second
	}
	if s.Churn == 0 {
		s.Churn = 200
	}
	scenarios := []struct {
		name string
		need bool
		run  func(*testing.T, Suite)
	}{
		{"an empty registry is synced", true, emptySyncs},
		{"what was there before is said before synced", true, initialState},
		{"a provider comes and goes", true, comeAndGo},
		{"the last provider's removal is a removal", true, lastProvider},
		{"weights are read", true, weights},
		{"versions and groups are services of their own", true, versionsAndGroups},
		{"consumers come and go", s.Consumers, consumers},
		{"a second run says everything again", true, secondRun},
		{"a lost connection deletes nothing", s.Connection, connectionLoss},
		{"changes made while away are exact", s.Connection, changesWhileAway},
		{"it waits for a registry that is down", s.Connection, startWhileDown},
		{"faulty data become a problem", true, malformed},
		{"a slow reader loses nothing", true, slowReader},
		{"churn ends in the exact state", true, churn},
		{"cancelling ends it at any moment", true, cancel},
	}
	for _, sc := range scenarios {
		if sc.need {
			t.Run(sc.name, func(t *testing.T) {
				checkLeaks(t)
				sc.run(t, s)
			})
		}
	}
}

// checkLeaks fails the test if goroutines outlive it that were not there when it began.
func checkLeaks(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		if err := goleak.Find(ignore); err != nil {
			t.Errorf("after the scenario: %v", err)
		}
	})
}

// P returns a provider of interface name at 192.0.2.<n>:20880.
func P(name string, n int) Provider {
	return Provider{Interface: name, Version: "1.0.0", Application: "app-" + fmt.Sprint(n), Address: fmt.Sprintf("192.0.2.%d", n), Port: 20880}
}

func emptySyncs(t *testing.T, s Suite) {
	v := Watch(t, s.Start(t).Discoverer(t), s.Within)
	v.Synced()
	if got := v.Services(); len(got) != 0 {
		t.Errorf("an empty registry holds %v", got)
	}
}

func initialState(t *testing.T, s Suite) {
	r := s.Start(t)
	var want []Provider
	for n := 1; n <= 5; n++ {
		for _, name := range []string{"demo.First", "demo.Second"} {
			p := P(name, n)
			r.AddProvider(t, p)
			want = append(want, p)
		}
	}
	v := Watch(t, r.Discoverer(t), s.Within)
	v.Synced()
	if diff := v.differs(s, want); diff != "" { // at once: not some time after synced
		t.Errorf("when synced: %s", diff)
	}
}

func comeAndGo(t *testing.T, s Suite) {
	r := s.Start(t)
	v := Watch(t, r.Discoverer(t), s.Within)
	v.Synced()
	a, b := P("demo.Greet", 1), P("demo.Greet", 2)
	r.AddProvider(t, a)
	v.Await(s, a)
	r.AddProvider(t, b)
	v.Await(s, a, b)
	r.RemoveProvider(t, a)
	v.Await(s, b)
	e := v.Services()[b.Key(s.Framework)].Endpoints[0]
	if e.Application != b.Application || e.Protocol != s.Protocol {
		t.Errorf("endpoint is %+v, want application %q and protocol %q", e, b.Application, s.Protocol)
	}
}

func lastProvider(t *testing.T, s Suite) {
	r := s.Start(t)
	a, other := P("demo.Greet", 1), P("demo.Other", 2)
	r.AddProvider(t, a)
	r.AddProvider(t, other)
	v := Watch(t, r.Discoverer(t), s.Within)
	v.Synced()
	v.Await(s, a, other)
	r.RemoveProvider(t, a)
	v.Await(s, other)
	r.AddProvider(t, a)
	v.Await(s, a, other)
	r.RemoveProvider(t, a)
	r.RemoveProvider(t, other)
	v.Await(s)
}

func weights(t *testing.T, s Suite) {
	r := s.Start(t)
	a, b := P("demo.Greet", 1), P("demo.Greet", 2)
	a.Weight = 37
	r.AddProvider(t, a)
	r.AddProvider(t, b)
	v := Watch(t, r.Discoverer(t), s.Within)
	v.Synced()
	v.Await(s, a, b)
	for _, e := range v.Services()[a.Key(s.Framework)].Endpoints {
		if e.Address == a.Address && (e.Weight == nil || *e.Weight != 37) {
			t.Errorf("weight of %s is %v, want 37", e.Address, e.Weight)
		}
	}
}

func versionsAndGroups(t *testing.T, s Suite) {
	r := s.Start(t)
	a, b, c := P("demo.Greet", 1), P("demo.Greet", 2), P("demo.Greet", 3)
	b.Version = "2.0.0"
	c.Group = "blue"
	for _, p := range []Provider{a, b, c} {
		r.AddProvider(t, p)
	}
	v := Watch(t, r.Discoverer(t), s.Within)
	v.Synced()
	v.Await(s, a, b, c)
	r.RemoveProvider(t, b)
	v.Await(s, a, c)
}

func consumers(t *testing.T, s Suite) {
	r := s.Start(t)
	p := P("demo.Greet", 1)
	c := Consumer{Interface: p.Interface, Version: p.Version, Application: "shop", Address: "192.0.2.77"}
	lone := Consumer{Interface: "demo.Nobody", Version: "1.0.0", Application: "shop", Address: "192.0.2.77"}
	r.AddProvider(t, p)
	r.AddConsumer(t, c)
	r.AddConsumer(t, lone)
	v := Watch(t, r.Discoverer(t), s.Within)
	v.Synced()
	has := func(c Consumer, want bool) func() string {
		return func() string {
			got := slices.ContainsFunc(v.Services()[c.Key(s.Framework)].Consumers, func(have model.Consumer) bool {
				return have.Address == c.Address && have.Application == c.Application
			})
			if got != want {
				return fmt.Sprintf("consumer %+v is there: %v, want %v", c, got, want)
			}
			return ""
		}
	}
	v.Until(has(c, true))
	v.Until(has(lone, true))
	v.Await(s, p)
	r.RemoveConsumer(t, c)
	v.Until(has(c, false))
	v.Until(has(lone, true))
	v.Await(s, p)
	r.AddConsumer(t, c)
	v.Until(has(c, true))
}

func secondRun(t *testing.T, s Suite) {
	r := s.Start(t)
	a, b := P("demo.Greet", 1), P("demo.Other", 2)
	r.AddProvider(t, a)
	d := r.Discoverer(t)
	v := Watch(t, d, s.Within)
	v.Synced()
	v.Await(s, a)
	v.Stop()
	first := v.JSON()

	r.AddProvider(t, b)
	r.RemoveProvider(t, a)
	v = Watch(t, d, s.Within)
	v.Synced()
	if diff := v.differs(s, []Provider{b}); diff != "" {
		t.Errorf("the second run, when synced: %s", diff)
	}
	v.Stop()

	r.RemoveProvider(t, b)
	r.AddProvider(t, a)
	v = Watch(t, d, s.Within)
	v.Synced()
	v.Await(s, a)
	v.Stop()
	// Registration times differ, so only the services' and endpoints' identities are compared.
	if third := v.JSON(); first != third {
		t.Errorf("equal registries were described differently:\n%s\n%s", first, third)
	}
}

func connectionLoss(t *testing.T, s Suite) {
	r := s.Start(t)
	a, b := P("demo.Greet", 1), P("demo.Other", 2)
	r.AddProvider(t, a)
	r.AddProvider(t, b)
	v := Watch(t, r.Discoverer(t), s.Within)
	v.Synced()
	v.Await(s, a, b)
	r.Disconnect(t)
	v.Until(v.unhealthy)
	if diff := v.differs(s, []Provider{a, b}); diff != "" {
		t.Errorf("after the connection was lost: %s", diff)
	}
	r.Connect(t)
	v.Until(v.healthy)
	if diff := v.differs(s, []Provider{a, b}); diff != "" {
		t.Errorf("after the connection came back: %s", diff)
	}
	if v.shrunk() {
		t.Error("between loss and return an endpoint was taken back that the registry held all along")
	}
	c := P("demo.Greet", 3)
	r.AddProvider(t, c)
	v.Await(s, a, b, c)
	r.RemoveProvider(t, b)
	v.Await(s, a, c)
}

func changesWhileAway(t *testing.T, s Suite) {
	r := s.Start(t)
	a, b, c := P("demo.Greet", 1), P("demo.Greet", 2), P("demo.New", 3)
	gone := P("demo.Gone", 4)
	r.AddProvider(t, a)
	r.AddProvider(t, gone)
	v := Watch(t, r.Discoverer(t), s.Within)
	v.Synced()
	v.Await(s, a, gone)
	r.Disconnect(t)
	v.Until(v.unhealthy)
	r.RemoveProvider(t, a)
	r.RemoveProvider(t, gone)
	r.AddProvider(t, b)
	r.AddProvider(t, c)
	if diff := v.differs(s, []Provider{a, gone}); diff != "" {
		t.Errorf("while away: %s", diff)
	}
	r.Connect(t)
	v.Await(s, b, c)
	v.Until(v.healthy)
	r.AddProvider(t, a)
	v.Await(s, a, b, c)
}

func startWhileDown(t *testing.T, s Suite) {
	r := s.Start(t)
	a := P("demo.Greet", 1)
	r.AddProvider(t, a)
	r.Disconnect(t)
	v := Watch(t, r.Discoverer(t), s.Within)
	v.Until(v.unhealthy)
	if v.synced() {
		t.Error("it says synced without having heard the registry")
	}
	r.Connect(t)
	v.Synced()
	v.Await(s, a)
}

func malformed(t *testing.T, s Suite) {
	r := s.Start(t)
	a, b := P("demo.Greet", 1), P("demo.Other", 2)
	r.AddProvider(t, a)
	r.AddProvider(t, b)
	text := r.AddMalformed(t, a)
	if text == "" {
		return
	}
	v := Watch(t, r.Discoverer(t), s.Within)
	v.Synced()
	v.Await(s, a, b)
	has := func() string {
		for _, p := range v.Problems() {
			if strings.Contains(p.Place+" "+p.Message, text) {
				return ""
			}
		}
		return fmt.Sprintf("no problem tells of %q: %+v", text, v.Problems())
	}
	v.Until(has)
	r.RemoveMalformed(t, a)
	v.Until(func() string {
		if has() == "" {
			return fmt.Sprintf("the problem stays after its cause is gone: %+v", v.Problems())
		}
		return ""
	})
	v.Await(s, a, b)
	r.AddMalformed(t, a)
	v.Until(has)
	v.Await(s, a, b)
}

func slowReader(t *testing.T, s Suite) {
	r := s.Start(t)
	v := Watch(t, r.Discoverer(t), s.Within)
	v.Synced()
	v.pause()
	var want []Provider
	for n := 1; n <= 30; n++ {
		p := P(fmt.Sprintf("demo.Slow%d", n%7), n)
		r.AddProvider(t, p)
		if n%3 == 0 {
			r.RemoveProvider(t, p)
		} else {
			want = append(want, p)
		}
	}
	v.resume()
	v.Await(s, want...)
}

func churn(t *testing.T, s Suite) {
	r := s.Start(t)
	v := Watch(t, r.Discoverer(t), s.Within)
	v.Synced()
	there := map[Provider]bool{}
	seed := uint32(1)
	for range s.Churn {
		seed = seed*1664525 + 1013904223
		p := P(fmt.Sprintf("demo.Churn%d", seed>>8%5), int(seed>>16%9)+1)
		if there[p] {
			r.RemoveProvider(t, p)
			delete(there, p)
		} else {
			r.AddProvider(t, p)
			there[p] = true
		}
	}
	v.Await(s, slices.Collect(maps.Keys(there))...)
}

func cancel(t *testing.T, s Suite) {
	r := s.Start(t)
	for n := 1; n <= 20; n++ {
		r.AddProvider(t, P(fmt.Sprintf("demo.Cancel%d", n%3), n))
	}
	d := r.Discoverer(t)
	run := func(ctx context.Context, out chan adapters.Update) {
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx, out) }()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run returned %v after its context was done, want nil", err)
			}
		case <-time.After(s.Within):
			t.Fatalf("Run did not return; goroutines:\n%s", stacks())
		}
	}
	done, stop := context.WithCancel(t.Context())
	stop()
	run(done, make(chan adapters.Update)) // done before it began

	for _, d := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond} {
		ctx, stop := context.WithTimeout(t.Context(), d)
		run(ctx, make(chan adapters.Update)) // and nobody reads
		stop()
	}
	for n := range 5 { // after the nth update
		ctx, stop := context.WithCancel(t.Context())
		out := make(chan adapters.Update)
		var wg sync.WaitGroup
		wg.Go(func() {
			defer stop()
			for range n {
				select {
				case u := <-out:
					if u.Synced {
						return
					}
				case <-time.After(s.Within):
					t.Error("no update")
					return
				}
			}
		})
		run(ctx, out)
		wg.Wait()
	}
	if s.Connection {
		r.Disconnect(t)
		v := Watch(t, d, s.Within)
		v.Until(v.unhealthy)
		v.Stop()
		r.Connect(t)
	}
}

func stacks() string {
	b := make([]byte, 1<<20)
	return string(b[:runtime.Stack(b, true)])
}

// View runs a Discoverer and keeps what it says, as the Manager does.
type View struct {
	t      testing.TB
	within time.Duration
	stop   context.CancelFunc
	done   chan struct{}
	gate   sync.Mutex // held while paused

	mu         sync.Mutex
	groups     map[string]model.Group
	before     map[string]model.Group // said by an earlier run of Run, not yet by this one
	nSynced    int
	err        error
	ok         bool // healthy
	smallest   int  // fewest endpoints since the last unhealthy word
	changed    chan struct{}
	runs       int
	unexpected error
}

// Watch runs d until the test ends or Stop is called, starting it again if it gives up, and checks each update. Conditions
// are waited for no longer than within.
func Watch(t testing.TB, d adapters.Discoverer, within time.Duration) *View {
	ctx, stop := context.WithCancel(context.Background())
	v := &View{t: t, within: within, stop: stop, done: make(chan struct{}), groups: map[string]model.Group{}, changed: make(chan struct{})}
	go v.run(ctx, d)
	t.Cleanup(v.Stop)
	return v
}

// Stop cancels Run and waits for it to return.
func (v *View) Stop() {
	v.stop()
	select {
	case <-v.done:
	case <-time.After(v.within):
		v.t.Fatalf("Run did not return; goroutines:\n%s", stacks())
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.unexpected != nil {
		v.t.Error(v.unexpected)
		v.unexpected = nil
	}
}

func (v *View) run(ctx context.Context, d adapters.Discoverer) {
	defer close(v.done)
	for ctx.Err() == nil {
		out := make(chan adapters.Update)
		result := make(chan error, 1)
		v.mu.Lock()
		v.nSynced = 0
		v.before, v.groups = v.groups, map[string]model.Group{}
		v.runs++
		v.mu.Unlock()
		go func() { result <- d.Run(ctx, out) }()
	reading:
		for {
			v.pass()
			select {
			case u := <-out:
				v.apply(u)
			case err := <-result:
				v.ended(ctx, err)
				break reading
			}
		}
		select { // the Manager pauses too
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func (v *View) note() {
	close(v.changed)
	v.changed = make(chan struct{})
}

func (v *View) ended(ctx context.Context, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case ctx.Err() != nil && err != nil:
		v.unexpected = fmt.Errorf("Run returned %w after its context was done, want nil", err)
	case ctx.Err() == nil && err == nil:
		v.unexpected = errors.New("Run returned nil although its context was not done")
	case err != nil:
		v.err, v.ok = err, false
		v.smallest = v.endpoints()
	}
	v.note()
}

func (v *View) apply(u adapters.Update) {
	v.mu.Lock()
	defer v.mu.Unlock()
	fail := func(format string, args ...any) {
		if v.unexpected == nil {
			v.unexpected = fmt.Errorf(format, args...)
		}
	}
	if u.Err != nil && u.Healthy {
		fail("an update is healthy and an error at once: %v", u.Err)
	}
	sources := map[string]bool{}
	for _, g := range u.Groups {
		if err := CheckGroup(g); err != nil {
			fail("group %q: %v", g.Source, err)
		}
		if sources[g.Source] {
			fail("group %q is twice in one update", g.Source)
		}
		sources[g.Source] = true
		delete(v.before, g.Source)
		if len(g.Services) == 0 && len(g.Problems) == 0 {
			delete(v.groups, g.Source)
		} else {
			v.groups[g.Source] = g
		}
	}
	for _, source := range u.Held {
		if g, ok := v.before[source]; ok {
			v.groups[source] = g
			delete(v.before, source)
		}
	}
	if u.Synced {
		if v.nSynced++; v.nSynced > 1 {
			fail("synced was said %d times in one run", v.nSynced)
		}
		v.before = nil
		v.ok, v.err = true, nil
	}
	if u.Err != nil {
		v.err, v.ok = u.Err, false
		v.smallest = v.endpoints()
	}
	if u.Healthy {
		v.ok, v.err = true, nil
	}
	v.smallest = min(v.smallest, v.endpoints())
	v.note()
}

func (v *View) all() []model.Group {
	return slices.Concat(slices.Collect(maps.Values(v.before)), slices.Collect(maps.Values(v.groups)))
}

func (v *View) endpoints() int {
	n := 0
	for _, g := range v.all() {
		for _, s := range g.Services {
			n += len(s.Endpoints)
		}
	}
	return n
}

// Services returns the services as they stand, merged over the groups; services without endpoints and consumers are left out.
func (v *View) Services() map[model.Key]model.Service {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := map[model.Key]model.Service{}
	for _, g := range v.all() {
		for _, s := range g.Services {
			if len(s.Endpoints)+len(s.Consumers) == 0 {
				continue
			}
			have := out[s.Key]
			have.Key = s.Key
			have.Endpoints = slices.Concat(have.Endpoints, s.Endpoints)
			have.Consumers = slices.Concat(have.Consumers, s.Consumers)
			out[s.Key] = have
		}
	}
	return out
}

// Problems returns the problems as they stand.
func (v *View) Problems() []model.Problem {
	v.mu.Lock()
	defer v.mu.Unlock()
	var out []model.Problem
	for _, g := range v.all() {
		out = append(out, g.Problems...)
	}
	return out
}

// Err returns why the registry cannot be heard, nil while it can.
func (v *View) Err() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err
}

// JSON returns keys and endpoints, without metadata, as sorted text.
func (v *View) JSON() string {
	services := v.Services()
	var lines []string
	for key, s := range services {
		for _, e := range s.Endpoints {
			e.Metadata = nil
			b, err := json.Marshal(e)
			if err != nil {
				v.t.Fatal(err)
			}
			lines = append(lines, key.String()+" "+string(b))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func (v *View) synced() bool { v.mu.Lock(); defer v.mu.Unlock(); return v.nSynced > 0 }

func (v *View) shrunk() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.smallest < v.endpoints()
}

func (v *View) unhealthy() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.err == nil {
		return "nobody said that the registry cannot be heard"
	}
	return ""
}

func (v *View) healthy() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.ok {
		return fmt.Sprintf("nobody said that the registry can be heard again; last: %v", v.err)
	}
	return ""
}

func (v *View) pause()  { v.gate.Lock() }
func (v *View) resume() { v.gate.Unlock() }

// pass returns once nobody has paused.
func (v *View) pass() {
	v.gate.Lock()
	defer v.gate.Unlock()
}

// Synced waits until the Discoverer has said that it is synced.
func (v *View) Synced() {
	v.t.Helper()
	v.Until(func() string {
		if !v.synced() {
			v.mu.Lock()
			defer v.mu.Unlock()
			return fmt.Sprintf("not synced; last error: %v", v.err)
		}
		return ""
	})
}

// Until waits until condition returns "", and fails the test with what it returns instead if that takes too long.
func (v *View) Until(condition func() string) {
	v.t.Helper()
	late := time.After(v.within)
	for {
		v.mu.Lock()
		changed, bad := v.changed, v.unexpected
		v.mu.Unlock()
		if bad != nil {
			v.t.Fatal(bad)
		}
		missing := condition()
		if missing == "" {
			return
		}
		select {
		case <-changed:
		case <-late:
			v.t.Fatalf("after %v: %s", v.within, missing)
		}
	}
}

// Await waits until the registry's endpoints are exactly those of the providers.
func (v *View) Await(s Suite, want ...Provider) {
	v.t.Helper()
	v.Until(func() string { return v.differs(s, want) })
}

func (v *View) differs(s Suite, want []Provider) string {
	wanted := map[string]bool{}
	for _, p := range want {
		wanted[fmt.Sprintf("%s %s:%d", p.Key(s.Framework), p.Address, p.Port)] = true
	}
	var extra []string
	for key, svc := range v.Services() {
		for _, e := range svc.Endpoints {
			id := fmt.Sprintf("%s %s:%d", key, e.Address, e.Port)
			if !wanted[id] {
				extra = append(extra, id)
			}
			delete(wanted, id)
		}
	}
	if len(extra)+len(wanted) == 0 {
		return ""
	}
	slices.Sort(extra)
	return fmt.Sprintf("missing %v, surplus %v", slices.Sorted(maps.Keys(wanted)), extra)
}

// CheckGroup returns what is wrong with a group, whatever its registry: what every consumer of the model relies on.
func CheckGroup(g model.Group) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if g.Source == "" {
		bad("no source")
	}
	keys := map[model.Key]bool{}
	for _, s := range g.Services {
		switch s.Key.Framework {
		case "dubbo", "sofa", "spring":
		default:
			bad("%s: unknown framework", s.Key)
		}
		if s.Key.Interface == "" {
			bad("%s: no interface", s.Key)
		}
		if keys[s.Key] {
			bad("%s is there twice", s.Key)
		}
		keys[s.Key] = true
		if !slices.IsSorted(s.Methods) {
			bad("%s: methods are not sorted: %v", s.Key, s.Methods)
		}
		ids := map[string]bool{}
		for _, e := range s.Endpoints {
			id := fmt.Sprintf("%s:%d/%s", e.Address, e.Port, e.Protocol)
			if e.Address == "" || e.Port == 0 || e.Protocol == "" || string(e.Protocol) != strings.ToLower(string(e.Protocol)) {
				bad("%s: endpoint %s is incomplete", s.Key, id)
			}
			if ids[id] {
				bad("%s: endpoint %s is there twice", s.Key, id)
			}
			ids[id] = true
			if len(e.Origins) != 0 {
				bad("%s: endpoint %s: origins are the Manager's to fill in", s.Key, id)
			}
		}
		for _, c := range s.Consumers {
			if c.Address == "" {
				bad("%s: a consumer without address", s.Key)
			}
			if len(c.Origins) != 0 {
				bad("%s: consumer %s: origins are the Manager's to fill in", s.Key, c.Address)
			}
		}
	}
	for _, p := range g.Problems {
		if p.Place == "" || p.Code == "" || p.Message == "" || p.Severity != model.SeverityError && p.Severity != model.SeverityWarning {
			bad("problem is incomplete: %+v", p)
		}
		if p.Registry != "" {
			bad("problem's registry is the Manager's to fill in: %+v", p)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	// The Manager saves groups as JSON; they must survive that.
	b, err := json.Marshal(g)
	if err != nil {
		return err
	}
	var back model.Group
	if err := json.Unmarshal(b, &back); err != nil {
		return err
	}
	again, err := json.Marshal(back)
	if err != nil {
		return err
	}
	if !bytes.Equal(b, again) {
		return fmt.Errorf("does not survive JSON:\n%s\n%s", b, again)
	}
	return nil
}
