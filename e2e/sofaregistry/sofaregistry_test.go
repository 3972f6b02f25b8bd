// Package sofaregistry_test holds the adapter to real SOFARegistries of both versions, with real SOFARPC applications: what is
// registered appears and goes, a server that is killed and started again loses nothing, and how fast it is.
package sofaregistry_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/adapterstest"
	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry"
	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session"
	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session/sessiontest"
	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session/wire"
	"github.com/isthmus-mesh/isthmus/e2e/machine"
	"github.com/isthmus-mesh/isthmus/e2e/mesh"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
	"github.com/isthmus-mesh/isthmus/e2e/rig"
)

func TestMain(m *testing.M) {
	os.Exit(rig.Main(m, peer.SOFARegistry5, peer.SOFARegistry6, peer.SOFARPC))
}

const (
	within          = 60 * time.Second
	registryMachine = "sofaregistry"
)

// registry is a real one.
type registry struct {
	t       *testing.T
	mesh    *mesh.Mesh
	version peer.Peer
	process *machine.Process
	host    string

	bare   *session.Client // hears what the registry pushes, beside the adapter
	heard  *clock
	wanted map[wire.ID]map[string]string // what is published: by id and registration
}

func start(t *testing.T, version peer.Peer) *registry {
	t.Helper()
	m := rig.Mesh(t)
	x, err := m.Machine(registryMachine)
	if err != nil {
		t.Fatal(err)
	}
	r := &registry{t: t, mesh: m, version: version, host: x.Address().String(), wanted: map[wire.ID]map[string]string{}}
	r.start()
	return r
}

// listen subscribes, beside the adapter, to whatever is published: a registry takes up to seconds until it pushes what it has taken, and
// no subscriber can know before.
func (r *registry) listen() {
	r.heard = &clock{pushed: map[string]time.Time{}, last: map[wire.ID][]string{}}
	r.bare = session.New(session.Options{Servers: session.Discover(client, nil, r.pages()), Application: "isthmus"}, r.heard)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.bare.Run(ctx) }()
	r.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
	})
	await(r.t, "the registry to be connected to", func() error { // what it starts is not taken for the adapter's from here on
		r.heard.mu.Lock()
		defer r.heard.mu.Unlock()
		if !r.heard.up {
			return fmt.Errorf("not yet")
		}
		return nil
	})
}

// settled waits until the registry pushes what is wanted of each id, and nothing else.
func (r *registry) settled(t testing.TB) {
	t.Helper()
	await(t, "the registry to push what is published", func() error {
		r.heard.mu.Lock()
		defer r.heard.mu.Unlock()
		for id := range r.wanted {
			if err := r.differs(id); err != nil {
				return err
			}
		}
		return nil
	})
}

// settledAt waits until the registry pushes what is wanted of one id.
func (r *registry) settledAt(t testing.TB, id wire.ID) {
	t.Helper()
	await(t, "the registry to push what is published", func() error {
		r.heard.mu.Lock()
		defer r.heard.mu.Unlock()
		return r.differs(id)
	})
}

// differs says how what was last pushed of an id differs from what is wanted. heard is locked.
func (r *registry) differs(id wire.ID) error {
	want := slices.Sorted(maps.Values(r.wanted[id]))
	if got := r.heard.last[id]; !slices.Equal(got, want) {
		return fmt.Errorf("%s: it pushes %q, not %q", id, got, want)
	}
	return nil
}

func (r *registry) start() {
	r.t.Helper()
	var err error
	if r.process, err = r.mesh.StartSOFARegistry(r.t.Context(), registryMachine, r.version); err != nil {
		r.t.Fatal(err)
	}
}

func (r *registry) bolt() string  { return fmt.Sprintf("%s:%d", r.host, mesh.SOFASessionPort) }
func (r *registry) pages() string { return fmt.Sprintf("%s:%d", r.host, mesh.SOFASessionHTTPPort) }

// client leaves no connection behind, which the suite would take for the adapter's.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// ids returns what the session server lists.
func (r *registry) ids() ([]string, error) {
	resp, err := client.Get("http://" + r.pages() + "/digest/getDataInfoIdList")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var ids []string
	return ids, json.NewDecoder(resp.Body).Decode(&ids)
}

// discoverer makes a Discoverer; settings are more lines of its settings.
func (r *registry) discoverer(t testing.TB, settings string) adapters.Discoverer {
	t.Helper()
	s, err := adapters.ParseSettings(fmt.Appendf(nil, "servers: ['%s']\n%s", r.pages(), settings))
	if err != nil {
		t.Fatal(err)
	}
	d, err := sofaregistry.Kind.New(s.Decode, adapters.Options{Name: "sofa"})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// application connects a publisher that ends with the test.
func (r *registry) application(t testing.TB) *sessiontest.Application {
	t.Helper()
	a, err := sessiontest.Dial(r.bolt(), "e2e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

func (r *registry) java(name string, j mesh.JVM) *machine.Process {
	r.t.Helper()
	j.Peer = peer.SOFARPC
	j.Options = append(j.Options, "-Dregistry.protocol=sofa", "-Dregistry.address="+r.pages())
	p, err := r.mesh.StartJava(name, j)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), within)
	defer cancel()
	if _, err := p.UntilLine(ctx, j.Name+" to be ready", func(line string) bool { return line == "READY" }); err != nil {
		r.t.Fatal(err)
	}
	return p
}

var suite = adapterstest.Suite{Framework: "sofa", Protocol: model.ProtocolBolt, Within: within, Churn: 20}

// driver makes the conformance suite's changes over a publisher's connection.
type driver struct {
	r        *registry
	a        *sessiontest.Application
	settings string
}

// patient begins to run when the registry pushes what has been published before.
type patient struct {
	adapters.Discoverer
	r *registry
	t testing.TB
}

func (p patient) Run(ctx context.Context, out chan<- adapters.Update) error {
	p.r.settled(p.t)
	return p.Discoverer.Run(ctx, out)
}

func (d *driver) Discoverer(t testing.TB) adapters.Discoverer {
	return patient{d.r.discoverer(t, d.settings), d.r, t}
}

func (d *driver) publish(t testing.TB, id wire.ID, registration, data string) {
	t.Helper()
	d.do(t, d.a.Publish(id, registration, data))
	d.r.heard.mu.Lock()
	defer d.r.heard.mu.Unlock()
	if d.r.wanted[id] == nil {
		d.r.wanted[id] = map[string]string{}
	}
	d.r.wanted[id][registration] = data
	d.r.bare.Subscribe(id)
}

func (d *driver) withdraw(t testing.TB, id wire.ID, registration string) {
	t.Helper()
	if d.r.version == peer.SOFARegistry5 {
		// Its session carries out registrations and withdrawals on threads of their own: a withdrawal can overtake the registration
		// that it follows at once, and the registration then stays for good.
		d.r.settledAt(t, id)
	}
	d.do(t, d.a.Withdraw(id, registration))
	d.r.heard.mu.Lock()
	defer d.r.heard.mu.Unlock()
	delete(d.r.wanted[id], registration)
}

func (d *driver) AddProvider(t testing.TB, p adapterstest.Provider) {
	t.Helper()
	d.publish(t, sessiontest.IDOf(p.Interface, p.Version, p.Group), fmt.Sprint(p), sessiontest.DataOf(p))
}

func (d *driver) RemoveProvider(t testing.TB, p adapterstest.Provider) {
	t.Helper()
	d.withdraw(t, sessiontest.IDOf(p.Interface, p.Version, p.Group), fmt.Sprint(p))
}

func (d *driver) AddMalformed(t testing.TB, p adapterstest.Provider) string {
	t.Helper()
	id := sessiontest.IDOf(p.Interface, p.Version, p.Group)
	d.publish(t, id, "malformed "+p.Interface, "no address at all")
	return id.String()
}

func (d *driver) RemoveMalformed(t testing.TB, p adapterstest.Provider) {
	t.Helper()
	d.withdraw(t, sessiontest.IDOf(p.Interface, p.Version, p.Group), "malformed "+p.Interface)
}

func (d *driver) do(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Consumers and connections are tested with real applications and a real server's end.
func (d *driver) AddConsumer(testing.TB, adapterstest.Consumer)    { panic("not of this suite") }
func (d *driver) RemoveConsumer(testing.TB, adapterstest.Consumer) { panic("not of this suite") }
func (d *driver) Disconnect(testing.TB)                            { panic("not of this suite") }
func (d *driver) Connect(testing.TB)                               { panic("not of this suite") }

func TestConformance(t *testing.T) {
	for _, c := range []struct {
		version   peer.Peer
		encodings []string
	}{{peer.SOFARegistry6, []string{"hessian", "protobuf"}}, {peer.SOFARegistry5, []string{"hessian"}}} {
		t.Run(string(c.version), func(t *testing.T) {
			r := start(t, c.version)
			r.listen()
			for _, encoding := range c.encodings {
				t.Run(encoding, func(t *testing.T) {
					s := suite
					s.Start = func(t *testing.T) adapterstest.Registry {
						r.heard.mu.Lock()
						for id := range r.wanted { // what the former scenario published has ended with it
							r.wanted[id] = map[string]string{}
						}
						r.heard.mu.Unlock()
						r.settled(t)
						return &driver{r: r, a: r.application(t), settings: "interval: 200ms\nmaxInterval: 500ms\nencoding: " + encoding + "\n"}
					}
					adapterstest.Run(t, s)
				})
			}
			t.Run("odd ids", r.oddIDs)
			t.Run("latency", r.latency)
		})
	}
}

// oddIDs: an id with every odd character is a problem, or a service, and nothing else is disturbed.
func (r *registry) oddIDs(t *testing.T) {
	a := r.application(t)
	p := adapterstest.P("demo.Plain", 1)
	publish := func(dataID string) wire.ID {
		t.Helper()
		id := wire.ID{DataID: dataID, Group: "SOFA", InstanceID: wire.DefaultInstance}
		data := fmt.Sprintf("%s:%d?rpcVer=51302&appName=%s", p.Address, p.Port, p.Application)
		if err := a.Publish(id, "registration of "+dataID, data); err != nil {
			t.Fatal(err)
		}
		return id
	}
	publish("demo.Plain:1.0.0@DEFAULT")
	publish("demo.\u4e2d\u6587$Inner:1.0:a:b@DEFAULT")
	publish("demo.Other:1.0.0@h2c")
	odd := publish("\"%23?&=\t\U0001f600 #\\ ")
	v := adapterstest.Watch(t, r.discoverer(t, "interval: 200ms\n"), within)
	v.Synced()
	v.Until(func() string {
		for _, want := range []struct {
			key      model.Key
			protocol model.Protocol
		}{
			{model.Key{Framework: "sofa", Interface: "demo.Plain", Version: "1.0.0"}, model.ProtocolBolt},
			{model.Key{Framework: "sofa", Interface: "demo.\u4e2d\u6587$Inner", Version: "1.0", Group: "a:b"}, model.ProtocolBolt},
			{model.Key{Framework: "sofa", Interface: "demo.Other", Version: "1.0.0"}, model.ProtocolH2C},
		} {
			if e := v.Services()[want.key].Endpoints; len(e) != 1 || e[0].Protocol != want.protocol {
				return fmt.Sprintf("%s has %+v", want.key, e)
			}
		}
		for _, p := range v.Problems() {
			if p.Code == "MalformedDataID" && p.Place == odd.String() {
				return ""
			}
		}
		return fmt.Sprintf("no problem tells of the odd id: %+v", v.Problems())
	})
}

// await waits until try returns nil.
func await(t testing.TB, what string, try func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	if err := machine.Until(ctx, what, func(context.Context) error { return try() }); err != nil {
		t.Fatal(err)
	}
}

// clock notes what a session client hears, and when.
type clock struct {
	mu     sync.Mutex
	pushed map[string]time.Time // when a text was first heard
	last   map[wire.ID][]string // what was last heard of an id, sorted
	up     bool
}

func (c *clock) Connected(string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.up = true
}
func (c *clock) Disconnected(error)         {}
func (c *clock) Refused(session.ID, string) {}
func (c *clock) Faulty(session.ID, error)   {}
func (c *clock) Pushed(p session.Push) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []string
	for _, texts := range p.Zones {
		for _, text := range texts {
			all = append(all, text)
			if _, ok := c.pushed[text]; !ok {
				c.pushed[text] = time.Now()
			}
		}
	}
	slices.Sort(all)
	c.last[p.ID] = all
}

// latency measures how long a change of the registry takes to be an update of the adapter, and how much of it is the registry's own:
// what a bare client of it waits for its push.
func (r *registry) latency(t *testing.T) {
	const changes = 20
	a := r.application(t)
	id := sessiontest.IDOf("demo.Fast", "1.0.0", "")
	publish := func(n int) (string, time.Time) {
		t.Helper()
		p := adapterstest.P("demo.Fast", n)
		text := sessiontest.DataOf(p) + "&measured=latency" // no other test's
		began := time.Now()
		if err := a.Publish(id, "fast", text); err != nil {
			t.Fatal(err)
		}
		return text, began
	}
	first, _ := publish(100)

	r.bare.Subscribe(id)
	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	out := make(chan adapters.Update)
	group.Go(func() { _ = r.discoverer(t, "").Run(ctx, out) })
	defer group.Wait()
	defer stop()

	// next returns when the adapter says that the service has an endpoint at that address.
	next := func(address string) time.Time {
		t.Helper()
		late := time.After(within)
		for {
			select {
			case u := <-out:
				for _, g := range u.Groups {
					for _, s := range g.Services {
						if s.Key.Interface == "demo.Fast" && slices.ContainsFunc(s.Endpoints, func(e model.Endpoint) bool { return e.Address == address }) {
							return time.Now()
						}
					}
				}
			case <-late:
				t.Fatalf("no update tells of %s", address)
			}
		}
	}
	next("192.0.2.100")
	heard := func(text string) (at time.Time) {
		await(t, "the bare client to be pushed to", func() error {
			r.heard.mu.Lock()
			defer r.heard.mu.Unlock()
			var ok bool
			if at, ok = r.heard.pushed[text]; !ok {
				return fmt.Errorf("not yet")
			}
			return nil
		})
		return at
	}
	heard(first)
	var total, own, beyond []time.Duration
	for n := 1; n <= changes; n++ {
		text, began := publish(n)
		update := next(fmt.Sprintf("192.0.2.%d", n))
		push := heard(text)
		total = append(total, update.Sub(began))
		own = append(own, push.Sub(began))
		beyond = append(beyond, update.Sub(push))
	}
	for _, d := range [][]time.Duration{total, own, beyond} {
		slices.Sort(d)
	}
	// The two subscribers are pushed to one after the other, in either order, so what is beyond the registry's part may be negative.
	t.Logf("%s: change to update: median %v, worst %v; the registry's own part: median %v, worst %v; beyond it: median %v, worst %v",
		r.version, total[changes/2], total[changes-1], own[changes/2], own[changes-1], beyond[changes/2], beyond[changes-1])
}

// hello is the service of the Java applications.
func hello(unique string) model.Key {
	return model.Key{Framework: "sofa", Interface: "demo.HelloService", Version: "1.0", Group: unique}
}

func TestSOFARPC(t *testing.T) {
	for _, version := range []peer.Peer{peer.SOFARegistry6, peer.SOFARegistry5} {
		t.Run(string(version), func(t *testing.T) {
			r := start(t, version)
			v := adapterstest.Watch(t, r.discoverer(t, "interval: 200ms\nmaxInterval: 500ms\nconsumersInterval: 2s\nsettle: 20s\n"), 2*within)
			v.Synced()

			plain := r.java("provider-1", mesh.JVM{Name: "provider", Main: "demo.Provider"})
			weighted := r.java("provider-2", mesh.JVM{Name: "provider", Main: "demo.Provider", Options: []string{"-Dweight=37", "-Dlabel.version=v2", "-Dapp.name=hello-two", "-Dport=12300"}})
			r.java("provider-3", mesh.JVM{Name: "provider", Main: "demo.Provider", Options: []string{"-Dunique.id=blue"}})
			r.java("provider-h2c", mesh.JVM{Name: "provider", Main: "demo.Provider", Options: []string{"-Dunique.id=h2c", "-Dservers=h2c:12400"}})
			r.java("consumer", mesh.JVM{Name: "consumer", Main: "demo.Consumer"})

			address := func(name string) string {
				x, err := r.mesh.Machine(name)
				if err != nil {
					t.Fatal(err)
				}
				return x.Address().String()
			}
			// has says what differs from the endpoints wanted, as address:port weight application version.
			has := func(key model.Key, want ...string) func() string {
				return func() string {
					var got []string
					for _, e := range v.Services()[key].Endpoints {
						weight := "-"
						if e.Weight != nil {
							weight = fmt.Sprint(*e.Weight)
						}
						got = append(got, fmt.Sprintf("%s:%d %s %s %s", e.Address, e.Port, weight, e.Application, e.Labels["version"]))
					}
					slices.Sort(got)
					slices.Sort(want)
					if !slices.Equal(got, want) {
						return fmt.Sprintf("%s has %q, want %q", key, got, want)
					}
					return ""
				}
			}
			consumed := func() string {
				for _, c := range v.Services()[hello("")].Consumers {
					if c.Address == address("consumer") && c.Application == "hello-consumer" {
						return ""
					}
				}
				return fmt.Sprintf("the consumer is missing: %+v", v.Services()[hello("")].Consumers)
			}
			one := address("provider-1") + ":12200 100 hello-provider "
			two := address("provider-2") + ":12300 37 hello-two v2"
			three := address("provider-3") + ":12200 100 hello-provider "
			v.Until(has(hello(""), one, two))
			v.Until(has(hello("blue"), three))
			v.Until(consumed)
			v.Until(func() string {
				e := v.Services()[hello("h2c")].Endpoints
				if len(e) != 1 || e[0].Protocol != model.ProtocolH2C || e[0].Port != 12400 {
					return fmt.Sprintf("the provider of another protocol is %+v", e)
				}
				return ""
			})

			// A provider that is stopped goes.
			if err := plain.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			v.Until(has(hello(""), two))

			// The registry is killed and started again. Nothing is lost meanwhile.
			lost := watchLoss(v, has(hello(""), two), has(hello("blue"), three), consumed)
			if err := r.process.Kill(); err != nil {
				t.Fatal(err)
			}
			v.Until(func() string {
				if v.Err() == nil {
					return "the adapter does not say that it cannot hear its registry"
				}
				return ""
			})
			r.start()
			v.Until(func() string {
				if err := v.Err(); err != nil {
					return fmt.Sprintf("it is not heard again: %v", err)
				}
				return ""
			})
			// All come back by themselves: each application registers again.
			await(t, "the registry to know all applications again", func() error {
				ids, err := r.ids()
				for _, id := range []string{"demo.HelloService:1.0@DEFAULT", "demo.HelloService:1.0:blue@DEFAULT"} {
					if err == nil && !slices.ContainsFunc(ids, func(s string) bool { return strings.HasPrefix(s, id+"#") }) {
						err = fmt.Errorf("it lists %q", ids)
					}
				}
				return err
			})
			// A change proves that the adapter hears it, and not only remembers.
			r.java("provider-4", mesh.JVM{Name: "provider", Main: "demo.Provider", Options: []string{"-Dapp.name=hello-four"}})
			four := address("provider-4") + ":12200 100 hello-four "
			v.Until(has(hello(""), two, four))
			for _, l := range lost() {
				// The new provider is no loss.
				if !strings.Contains(l, "hello-four") {
					t.Errorf("while the registry was away and back: %s", l)
				}
			}
			if err := weighted.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			v.Until(has(hello(""), four))
		})
	}
}

// watchLoss looks, until the returned function is called, whether any of the conditions is ever broken, and says which were.
func watchLoss(v *adapterstest.View, conditions ...func() string) func() []string {
	stop, done := make(chan struct{}), make(chan struct{})
	seen := map[string]bool{}
	go func() {
		defer close(done)
		for {
			for _, c := range conditions {
				if s := c(); s != "" {
					seen[s] = true
				}
			}
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return func() []string {
		close(stop)
		<-done
		var out []string
		for s := range seen {
			out = append(out, s)
		}
		slices.Sort(out)
		return out
	}
}
