package sofaregistry

import (
	"context"
	"fmt"
	"net"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/adapterstest"
	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session/sessiontest"
	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// quick makes the adapter ask often and settle soon.
const quick = "interval: 20ms\nmaxInterval: 50ms\nconsumersInterval: 200ms\nsettle: 700ms\n"

func TestConformance(t *testing.T) {
	for name, c := range map[string]struct {
		settings string
		prepare  func(*sessiontest.Server)
	}{
		"version 6":           {quick, nil},
		"version 6, protobuf": {quick + "encoding: protobuf\n", nil},
		"version 5":           {quick, func(s *sessiontest.Server) { s.Version = 5 }},
		"empty pushes first":  {quick, func(s *sessiontest.Server) { s.EmptyFirst = true }},
	} {
		t.Run(name, func(t *testing.T) { adapterstest.Run(t, sessiontest.Suite(Kind, c.settings, c.prepare)) })
	}
}

// watch runs the adapter on a server.
func watchServer(t *testing.T, s *sessiontest.Server, settings string) *adapterstest.View {
	t.Helper()
	return adapterstest.Watch(t, sessiontest.Discoverer(t, Kind, s, settings), 20*time.Second)
}

// problemOf says whether a problem of that code at that place is missing.
func problemOf(v *adapterstest.View, code, place string) func() string {
	return func() string {
		for _, p := range v.Problems() {
			if p.Code == code && (place == "" || p.Place == place) {
				return ""
			}
		}
		return fmt.Sprintf("no %s at %q: %+v", code, place, v.Problems())
	}
}

func noProblem(v *adapterstest.View) func() string {
	return func() string {
		if p := v.Problems(); len(p) > 0 {
			return fmt.Sprintf("there are %+v", p)
		}
		return ""
	}
}

// endpointsOf says what differs from the addresses wanted.
func endpointsOf(v *adapterstest.View, key model.Key, want ...string) func() string {
	return func() string {
		var got []string
		for _, e := range v.Services()[key].Endpoints {
			got = append(got, e.Address)
		}
		if !slices.Equal(got, want) {
			return fmt.Sprintf("%s is at %q, want %q", key, got, want)
		}
		return ""
	}
}

// poll waits for a condition on something other than the view.
func poll(t *testing.T, condition func() string) {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		s := condition()
		if s == "" {
			return
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-late:
			t.Fatal(s)
		}
	}
}

var suite = adapterstest.Suite{Framework: "sofa", Protocol: model.ProtocolBolt}

func publish(s *sessiontest.Server, ps ...adapterstest.Provider) {
	for _, p := range ps {
		s.Publish(sessiontest.IDOf(p.Interface, p.Version, p.Group), fmt.Sprint(p), sessiontest.Publication{Data: sessiontest.DataOf(p)})
	}
}

func withdraw(s *sessiontest.Server, ps ...adapterstest.Provider) {
	for _, p := range ps {
		s.Withdraw(sessiontest.IDOf(p.Interface, p.Version, p.Group), fmt.Sprint(p))
	}
}

// TestNoStorm: ten thousand data ids are ten thousand registrations, once, and again after a lost connection; the pages are not
// listed again where nothing has changed; and one change is one push.
func TestNoStorm(t *testing.T) {
	const n = 10_000
	s := sessiontest.Start(t)
	for i := range n {
		publish(s, adapterstest.P(fmt.Sprintf("demo.S%d", i), i%250+1))
	}
	began := time.Now()
	v := watchServer(t, s, "interval: 50ms\nmaxInterval: 100ms\nsettle: 100ms\nconsumersInterval: 1h\n")
	v.Synced()
	t.Logf("%d data ids are read in %v", n, time.Since(began))
	if got := len(v.Services()); got != n {
		t.Errorf("there are %d services", got)
	}
	stats := s.Stats()
	if stats.Registers != n || stats.Results != n || stats.Connections != 1 {
		t.Errorf("to begin: %+v", stats)
	}
	lists, subs := s.Hits("/digest/getDataInfoIdList"), s.Hits("/digest/sub/data/query")
	if lists > 3 || subs > n+n/10 { // a second round, at its pace, may have begun
		t.Errorf("to begin: ids were listed %d times, subscribers %d times", lists, subs)
	}

	checks := s.Hits("/digest/checkSumDataInfoIdList")
	poll(t, func() string {
		if s.Hits("/digest/checkSumDataInfoIdList") < checks+5 {
			return "the pages are not checked"
		}
		return ""
	})
	if got := s.Hits("/digest/getDataInfoIdList"); got > lists+1 { // our own subscriptions may have changed the checksum once
		t.Errorf("ids were listed %d times more although nothing has changed", got-lists)
	}
	p := adapterstest.P("demo.S7", 251)
	began = time.Now()
	publish(s, p)
	v.Until(func() string {
		if got := len(v.Services()[p.Key("sofa")].Endpoints); got != 2 {
			return fmt.Sprintf("%d endpoints", got)
		}
		return ""
	})
	t.Logf("a change is seen after %v", time.Since(began))
	poll(t, func() string {
		if got := s.Stats(); got.Registers != n || got.Results != n+1 {
			return fmt.Sprintf("after one change: %+v", got)
		}
		return ""
	})

	began = time.Now()
	s.Cut()
	poll(t, func() string {
		if got := s.Stats(); got.Registers != 2*n || got.Results != 2*n+1 || v.Err() != nil {
			return fmt.Sprintf("%+v, %v", got, v.Err())
		}
		return ""
	})
	t.Logf("after a lost connection all is restored in %v", time.Since(began))
	if got := len(v.Services()); got != n {
		t.Errorf("there are %d services", got)
	}
}

// TestLongPush: a push of 50 MB is refused with a problem at its data, what was known stays, and nothing else is disturbed.
func TestLongPush(t *testing.T) {
	s := sessiontest.Start(t)
	p, other := adapterstest.P("demo.Long", 1), adapterstest.P("demo.Other", 2)
	publish(s, p, other)
	v := watchServer(t, s, quick)
	v.Synced()
	id := sessiontest.IDOf(p.Interface, p.Version, "")
	s.Publish(id, "long", sessiontest.Publication{Data: strings.Repeat("x", 50<<20)})
	v.Until(problemOf(v, "MalformedPush", id.String()))
	v.Await(suite, p, other)
	next := adapterstest.P("demo.Other", 3)
	publish(s, next)
	v.Await(suite, p, other, next)
	s.Withdraw(id, "long")
	v.Until(noProblem(v))
	if got := s.Stats(); got.Connections != 1 {
		t.Errorf("%+v", got)
	}
}

// TestGarbage: data, ids and pushes that are none, each with its problem.
func TestGarbage(t *testing.T) {
	s := sessiontest.Start(t)
	p := adapterstest.P("demo.Good", 1)
	publish(s, p)
	place := func(dataID string) wire.ID {
		return wire.ID{DataID: dataID, Group: "SOFA", InstanceID: wire.DefaultInstance}
	}
	odd := place("\"%23?&=\t\U0001f600 #@#\\ \xff")
	s.Publish(odd, "a", sessiontest.Publication{Data: sessiontest.DataOf(p)})
	long := place(strings.Repeat("long", 500) + "@DEFAULT")
	s.Publish(long, "a", sessiontest.Publication{Data: sessiontest.DataOf(p)})
	bad := sessiontest.IDOf("demo.Bad", "1.0", "")
	for i, data := range []string{"", "192.0.2.1", "0.0.0.0:1?a", "192.0.2.1:1?weight=heavy", strings.Repeat("x", 100<<10), "a b:1", "bolt://:1", "192.0.2.9:99999", "\x00"} {
		s.Publish(bad, fmt.Sprint(i), sessiontest.Publication{Data: data})
	}
	for i := range 100 {
		s.Publish(bad, fmt.Sprint("more", i), sessiontest.Publication{Data: fmt.Sprint("no address ", i)})
	}
	v := watchServer(t, s, quick)
	v.Synced()
	v.Until(problemOf(v, "MalformedDataID", "\"%23?&=\t\U0001f600 #@#\\ \ufffd#@#DEFAULT_INSTANCE_ID#@#SOFA"))
	v.Until(problemOf(v, "MalformedDataID", ""))
	v.Until(problemOf(v, "MalformedURL", bad.String()))
	v.Until(problemOf(v, "MalformedParameter", bad.String()))
	v.Until(problemOf(v, "MissingAddress", bad.String()))
	v.Until(problemOf(v, "UnusableAddress", bad.String()))
	n := 0
	for _, p := range v.Problems() {
		if p.Place == bad.String() {
			n++
		}
		if len(p.Place) > maxPlace+10 || len(p.Message) > 2048 {
			t.Errorf("a problem of %d and %d bytes: %.200s", len(p.Place), len(p.Message), p.Message)
		}
	}
	if n != maxProblems {
		t.Errorf("%d problems of one id, want %d", n, maxProblems)
	}
	s.Send(wire.AppendFrame(nil, wire.Frame{Type: wire.TypeRequest, Command: wire.CommandRequest, Class: wire.ClassName(wire.Hessian, wire.ClassReceived), Content: []byte("\xff")}))
	v.Until(problemOf(v, "MalformedPush", "session"))
	v.Until(endpointsOf(v, p.Key("sofa"), p.Address))
	v.Until(endpointsOf(v, model.Key{Framework: "sofa", Interface: "demo.Bad", Version: "1.0"}, "192.0.2.1"))
}

// TestSettle: a server that has just started, and to which providers come back one after the other, loses nothing; what does not come
// back is gone when the connection has settled; a provider that came back and goes is gone at once.
func TestSettle(t *testing.T) {
	s := sessiontest.Start(t)
	a, b, c := adapterstest.P("demo.Greet", 1), adapterstest.P("demo.Greet", 2), adapterstest.P("demo.Other", 3)
	consumer := sessiontest.Subscription{Application: "shop", Address: "192.0.2.77"}
	id := sessiontest.IDOf(a.Interface, a.Version, "")
	publish(s, a, b, c)
	s.Subscribe(id, consumer)
	const settle = 3 * time.Second
	v := watchServer(t, s, fmt.Sprintf("interval: 20ms\nmaxInterval: 50ms\nconsumersInterval: 50ms\nsettle: %v\n", settle))
	v.Synced()
	v.Await(suite, a, b, c)
	s.Refuse(true)
	v.Until(func() string {
		if v.Err() == nil {
			return "it does not say that the connection is lost"
		}
		return ""
	})
	s.Forget()
	s.Unsubscribe(id, consumer)
	began := time.Now()
	s.Refuse(false)
	v.Until(func() string {
		if v.Err() != nil {
			return v.Err().Error()
		}
		return ""
	})
	publish(s, a)
	for time.Since(began) < settle/2 {
		v.Await(suite, a, b, c)
		if got := v.Services()[a.Key("sofa")].Consumers; len(got) != 1 {
			t.Fatalf("the consumers are %v", got)
		}
		time.Sleep(5 * time.Millisecond) // looks all the while
	}
	withdraw(s, a)
	v.Await(suite, b, c)
	if time.Since(began) >= settle {
		t.Error("a provider that was pushed and withdrawn went only when the connection had settled")
	}
	v.Await(suite)
	if time.Since(began) < settle {
		t.Error("what was known went before the connection had settled")
	}
	v.Until(func() string {
		if len(v.Services()) > 0 {
			return fmt.Sprintf("there are still %v", v.Services())
		}
		return ""
	})
}

// updates runs a Discoverer and returns its updates up to the one with Synced.
func updates(t *testing.T, d adapters.Discoverer) (all []adapters.Update) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	out := make(chan adapters.Update)
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx, out) }()
	for {
		select {
		case u := <-out:
			all = append(all, u)
			if u.Synced {
				stop()
				if err := <-done; err != nil {
					t.Error(err)
				}
				return all
			}
		case err := <-done:
			t.Fatalf("ended with %v before it was synced: %+v", err, all)
		}
	}
}

// TestHeld: what an earlier run may have known is kept where this one has not been told.
func TestHeld(t *testing.T) {
	s := sessiontest.Start(t)
	p := adapterstest.P("demo.There", 1)
	publish(s, p)
	empty, silent, denied := sessiontest.IDOf("demo.Empty", "1.0", ""), sessiontest.IDOf("demo.Silent", "1.0", ""), sessiontest.IDOf("demo.Denied", "1.0", "")
	for _, id := range []wire.ID{empty, silent, denied} {
		s.Subscribe(id, sessiontest.Subscription{Application: "shop", Address: "192.0.2.77"})
	}
	s.Silence(silent, true)
	s.Deny(denied, "go away", true)
	d := sessiontest.Discoverer(t, Kind, s, "interval: 20ms\nsettle: 1m\n").(*Discoverer)
	d.answerIn = 300 * time.Millisecond
	all := updates(t, d)
	last := all[len(all)-1]
	want := []string{"providers/" + denied.String(), "providers/" + empty.String(), "providers/" + silent.String()}
	slices.Sort(want)
	if !slices.Equal(last.Held, want) {
		t.Errorf("held are %q, want %q", last.Held, want)
	}
	codes := map[string]string{}
	for _, u := range all {
		for _, g := range u.Groups {
			if slices.Contains(want, g.Source) {
				t.Errorf("%s is said: %+v", g.Source, g)
			}
			for _, p := range g.Problems {
				codes[p.Code] = p.Place
			}
		}
	}
	if len(codes) != 2 || codes["NoAnswer"] != silent.String() || codes["SubscriptionRefused"] != denied.String() {
		t.Errorf("problems: %v", codes)
	}
}

// TestRetire: what nobody publishes or subscribes to any more is not subscribed to for ever, and found again when it comes back. Where a
// server lists it all the same, as version 5 does, it is subscribed to once more, and stays so.
func TestRetire(t *testing.T) {
	for _, version := range []int{6, 5} {
		s := sessiontest.Start(t)
		s.Version = version
		a, b := adapterstest.P("demo.Brief", 1), adapterstest.P("demo.Long", 2)
		publish(s, a, b)
		d := sessiontest.Discoverer(t, Kind, s, quick).(*Discoverer)
		d.retireAfter = 300 * time.Millisecond
		v := adapterstest.Watch(t, d, 20*time.Second)
		v.Synced()
		v.Await(suite, a, b)
		withdraw(s, a)
		v.Await(suite, b)
		poll(t, func() string {
			stats, n := s.Stats(), s.Subscribed()
			if stats.Unregisters != 1 || version == 6 && n != 1 || version == 5 && n != 2 {
				return fmt.Sprintf("version %d: there are %d subscriptions, %+v", version, n, stats)
			}
			return ""
		})
		publish(s, a)
		v.Await(suite, a, b)
		withdraw(s, a)
		v.Await(suite, b)
		if version == 5 {
			checks := s.Hits("/digest/checkSumDataInfoIdList")
			poll(t, func() string {
				if n := s.Hits("/digest/checkSumDataInfoIdList") - checks; n < 40 { // each takes 20 ms at least
					return fmt.Sprintf("%d looks", n)
				}
				return ""
			})
			if stats := s.Stats(); stats.Unregisters != 1 || stats.Registers != 3 {
				t.Errorf("it goes on: %+v", stats)
			}
		}
		publish(s, a)
		v.Await(suite, a, b)
		v.Stop()
	}
}

// TestPlaces: data centres are regions, zones are zones; the defaults of upstream are none; a scope of one data centre hears no other.
func TestPlaces(t *testing.T) {
	s := sessiontest.Start(t)
	id := sessiontest.IDOf("demo.Far", "1.0", "")
	for i, p := range []sessiontest.Publication{
		{Data: "192.0.2.1:1"},
		{Zone: "GZ00A", Data: "192.0.2.2:1?zone=other"},
		{DataCenter: "north", Zone: "GZ00B", Data: "192.0.2.3:1"},
		{Data: "192.0.2.4:1?zone=own&region=r"},
	} {
		s.Publish(id, fmt.Sprint(i), p)
	}
	at := func(v *adapterstest.View) string {
		var out []string
		for _, e := range v.Services()[model.Key{Framework: "sofa", Interface: "demo.Far", Version: "1.0"}].Endpoints {
			out = append(out, fmt.Sprintf("%s=%s/%s", e.Address, e.Locality.Region, e.Locality.Zone))
		}
		return strings.Join(out, " ")
	}
	for settings, want := range map[string]string{
		"":                    "192.0.2.1=/ 192.0.2.2=/GZ00A 192.0.2.3=north/GZ00B 192.0.2.4=r/own",
		"scope: dataCenter\n": "192.0.2.1=/ 192.0.2.2=/GZ00A 192.0.2.4=r/own",
	} {
		v := watchServer(t, s, quick+settings)
		v.Synced()
		v.Until(func() string {
			if got := at(v); got != want {
				return fmt.Sprintf("%q: %s, want %s", settings, got, want)
			}
			return ""
		})
		v.Stop()
	}
}

// TestTenantsAndGroups: by default all tenants are read and the group of SOFARPC; what the key has no field for keeps services apart.
func TestTenantsAndGroups(t *testing.T) {
	s := sessiontest.Start(t)
	for i, id := range []wire.ID{
		{DataID: "demo.A:1.0@DEFAULT", Group: "SOFA", InstanceID: wire.DefaultInstance},
		{DataID: "demo.A:1.0@DEFAULT", Group: "SOFA", InstanceID: "tenant"},
		{DataID: "demo.A:1.0:u@DEFAULT", Group: "OTHER", InstanceID: "tenant"},
	} {
		s.Publish(id, "a", sessiontest.Publication{Data: fmt.Sprintf("192.0.2.%d:1", i+1)})
	}
	for settings, want := range map[string]string{
		"":                                   "sofa/demo.A:1.0 sofa/demo.A:1.0:@tenant",
		"groups: [SOFA, OTHER]\n":            "sofa/demo.A:1.0 sofa/demo.A:1.0:@tenant sofa/demo.A:1.0:u@tenant@OTHER",
		"instanceIds: [tenant]\n":            "sofa/demo.A:1.0:@tenant",
		"noConsumers: true\nscope: global\n": "sofa/demo.A:1.0 sofa/demo.A:1.0:@tenant",
	} {
		v := watchServer(t, s, quick+settings)
		v.Synced()
		var got []string
		for key := range v.Services() {
			got = append(got, key.String())
		}
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("%q: %q, want %s", settings, got, want)
		}
		v.Stop()
	}
}

// TestConsumersOfOthersOnly: neither our own subscriptions nor those of another one of us are consumers.
func TestConsumersOfOthersOnly(t *testing.T) {
	s := sessiontest.Start(t)
	p := adapterstest.P("demo.Greet", 1)
	publish(s, p)
	id := sessiontest.IDOf(p.Interface, p.Version, "")
	s.Subscribe(id, sessiontest.Subscription{Application: "shop", Address: "192.0.2.77"})
	first := watchServer(t, s, quick)
	first.Synced()
	v := watchServer(t, s, quick)
	v.Synced()
	for _, v := range []*adapterstest.View{first, v} {
		v.Until(func() string {
			if c := v.Services()[p.Key("sofa")].Consumers; len(c) != 1 || c[0].Application != "shop" || c[0].Address != "192.0.2.77" {
				return fmt.Sprintf("consumers are %+v", c)
			}
			return ""
		})
	}
}

// TestUnreadablePages: a server whose pages cannot be read is a problem, and does not keep the others' from being read.
func TestUnreadablePages(t *testing.T) {
	s := sessiontest.Start(t)
	p := adapterstest.P("demo.Greet", 1)
	publish(s, p)
	dead := httptest.NewServer(nil)
	dead.Close()
	port := dead.Listener.Addr().(*net.TCPAddr).Port
	parsed, err := adapters.ParseSettings(fmt.Appendf(nil, "servers: ['%s']\ndataHTTPPort: %d\n%s", s.Address(), port, quick))
	if err != nil {
		t.Fatal(err)
	}
	d, err := Kind.New(parsed.Decode, adapters.Options{})
	if err != nil {
		t.Fatal(err)
	}
	v := adapterstest.Watch(t, d, 20*time.Second)
	v.Synced()
	v.Await(suite, p)
	v.Until(problemOf(v, "PageUnreadable", fmt.Sprintf("127.0.0.1:%d", port)))
}

// TestAccount: registrations are signed, and a secret that is not there is an error.
func TestAccount(t *testing.T) {
	s := sessiontest.Start(t)
	publish(s, adapterstest.P("demo.Greet", 1))
	t.Setenv("SOFA_SECRET", "secret")
	v := watchServer(t, s, quick+"accessKey: AK\nsecretKeyEnv: SOFA_SECRET\n")
	v.Synced()
	if a := s.Attributes(); len(a) != 8 || !slices.Contains(a, "AK") || slices.Contains(a, "secret") {
		t.Errorf("attributes %q", a)
	}
	err := sessiontest.Discoverer(t, Kind, s, "accessKey: AK\nsecretKeyFile: /nonexistent/secret\n").Run(t.Context(), nil)
	if err == nil || !strings.Contains(err.Error(), "/nonexistent/secret") {
		t.Errorf("without the secret: %v", err)
	}
}

func TestSettings(t *testing.T) {
	for text, want := range map[string]string{
		"servers: [a, 'b:9613', '[2001:db8::1]', '2001:db8::2']": "",
		"{}":                            "servers: is missing",
		"servers: ['http://a']":         "servers[0]",
		"servers: ['a:0', 'a b']":       "servers[1]",
		"servers: [a]\nencoding: json":  "encoding",
		"servers: [a]\nscope: zone":     "scope",
		"servers: [a]\nzone: 'a b'":     "zone",
		"servers: [a]\ngroups: ['']":    "groups[0]",
		"servers: [a]\naccessKey: k":    "accessKey",
		"servers: [a]\nsecretKeyEnv: k": "accessKey",
		"servers: [a]\naccessKey: k\nsecretKeyEnv: k\nsecretKeyFile: k": "secretKeyEnv",
		"servers: [a]\ninterval: 1ms":                                   "interval",
		"servers: [a]\ninterval: 5s\nmaxInterval: 1s":                   "maxInterval",
		"servers: [a]\nheartbeat: 90s":                                  "heartbeat",
		"servers: [a]\nmaxPush: 100":                                    "maxPush",
		"servers: [a]\nconcurrency: -1":                                 "concurrency",
		"servers: [a]\nlabelParameters: [token]":                        "labelParameters[0]",
		"servers: [a]\nserver: a":                                       "server",
	} {
		parsed, err := adapters.ParseSettings([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		_, err = Kind.New(parsed.Decode, adapters.Options{})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
