package mcp

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	extensions "istio.io/api/extensions/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func statusProto(why string) *rpcstatus.Status { return &rpcstatus.Status{Code: 3, Message: why} }

func entry(name string, hosts ...string) resource.Resource {
	return resource.Resource{Type: resource.TypeServiceEntry, Namespace: "vm", Name: name, Body: &networking.ServiceEntry{Hosts: append([]string{name + ".isthmus"}, hosts...)},
		Labels: map[string]string{"l": "1"}, Annotations: map[string]string{"a": "2"}}
}

func extension(url string) resource.Resource {
	return resource.Resource{Type: resource.TypeTrafficExtension, Namespace: "istio-system", Name: "isthmus", Body: &extensions.TrafficExtension{
		FilterConfig: &extensions.TrafficExtension_Wasm{Wasm: &extensions.WasmConfig{Url: url}}}}
}

func wasmPlugin(url string) resource.Resource {
	return resource.Resource{Type: resource.TypeWasmPlugin, Namespace: "istio-system", Name: "isthmus", Body: &extensions.WasmPlugin{Url: url}}
}

// istiod takes the oldest of several resources for one host. Ours must not be it.
func TestWhatPeopleWriteGoesFirst(t *testing.T) {
	s, address := start(t, Options{}, nil)
	apply(t, s, entry("a"), resource.Resource{Type: resource.TypeVirtualService, Namespace: "vm", Name: "v", Body: &networking.VirtualService{Hosts: []string{"a.isthmus"}}},
		resource.Resource{Type: resource.TypeDestinationRule, Namespace: "vm", Name: "d", Body: &networking.DestinationRule{Host: "a.isthmus"}})
	i := dial(t, address, dialOptions{})
	i.wait("all types", i.ready)
	i.mu.Lock()
	defer i.mu.Unlock()
	for typ, name := range map[resource.Type]string{resource.TypeVirtualService: "vm/v", resource.TypeDestinationRule: "vm/d"} {
		if made := i.store[typ][name].meta.CreateTime.AsTime(); made.Before(time.Now().AddDate(100, 0, 0)) {
			t.Errorf("%s %s says that it is made %s", typ, name, made)
		}
	}
	if made := i.store[resource.TypeServiceEntry]["vm/a"].meta.CreateTime; made != nil {
		t.Errorf("a ServiceEntry says that it is made %s", made.AsTime())
	}
}

// Every type is answered, with nothing where there is nothing, or istiod never becomes ready. Also one that we do not know.
func TestEveryTypeIsAnswered(t *testing.T) {
	s, address := start(t, Options{}, nil)
	apply(t, s, entry("a"))
	i := dial(t, address, dialOptions{types: append(asked(), "networking.istio.io/v2/Novelty")})
	i.wait("all types", func() bool { return i.ready() && i.synced["networking.istio.io/v2/Novelty"] == 1 })
	i.mu.Lock()
	defer i.mu.Unlock()
	if got := i.names(resource.TypeServiceEntry); !slices.Equal(got, []string{"vm/a"}) {
		t.Errorf("entries %v", got)
	}
	if m := i.store[resource.TypeServiceEntry]["vm/a"].meta; m.Labels["l"] != "1" || m.Annotations["a"] != "2" || m.Version == "" {
		t.Errorf("metadata %v", m)
	}
	for typ, n := range i.synced {
		if n != 1 || typ != resource.TypeServiceEntry && len(i.store[typ]) > 0 {
			t.Errorf("%s: %d responses, %v", typ, n, i.names(typ))
		}
	}
}

// What is not in a response is deleted, so there is none before there is a complete set; not even for types of which there is nothing.
func TestNothingIsAnsweredBeforeTheFirstSet(t *testing.T) {
	s, address := start(t, Options{Settle: time.Millisecond}, nil)
	if s.Serving() {
		t.Error("a server without a set is serving")
	}
	i := dial(t, address, dialOptions{})
	until(t, "the requests", func() bool { c := s.Clients(); return len(c) == 1 && len(c[0].Types) == len(asked()) })
	i.mu.Lock()
	if len(i.received) > 0 {
		t.Errorf("answered before there is a set: %v", i.received)
	}
	i.mu.Unlock()
	apply(t, s)
	i.wait("empty answers", i.ready)
	if !s.Serving() {
		t.Error("a server with a set is not serving")
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// Each response is the full state of its type; an unchanged resource keeps its version, so istiod leaves it alone; a type in which
// nothing changes is not sent again; a pure deletion is sent.
func TestFullStateAndVersions(t *testing.T) {
	s, address := start(t, Options{}, nil)
	apply(t, s, entry("a"), entry("b"), extension("u1"))
	i := dial(t, address, dialOptions{})
	i.wait("first state", i.ready)
	i.mu.Lock()
	updates := i.updates
	i.mu.Unlock()

	apply(t, s, entry("a"), entry("b", "more"), entry("c"), extension("u1"))
	i.wait("a change and an addition", func() bool { return len(i.names(resource.TypeServiceEntry)) == 3 })
	i.mu.Lock()
	if i.updates != updates+2 {
		t.Errorf("istiod took over %d resources instead of 2", i.updates-updates)
	}
	if n := i.synced[resource.TypeTrafficExtension]; n != 1 {
		t.Errorf("a type without a change was sent %d times", n)
	}
	i.mu.Unlock()

	apply(t, s, entry("a"), extension("u1"))
	i.wait("a pure deletion", func() bool { return slices.Equal(i.names(resource.TypeServiceEntry), []string{"vm/a"}) })
	apply(t, s, extension("u1"))
	i.wait("the last one's deletion", func() bool { return len(i.names(resource.TypeServiceEntry)) == 0 })
	apply(t, s, entry("a"), extension("u1"))
	i.wait("its return", func() bool { return len(i.names(resource.TypeServiceEntry)) == 1 })

	// The same content again is no change, also as a set of its own.
	i.mu.Lock()
	before := len(i.received)
	i.mu.Unlock()
	apply(t, s, entry("a"), extension("u1"))
	apply(t, s, entry("a"), extension("u2"))
	i.wait("the extension", func() bool { return i.synced[resource.TypeTrafficExtension] == 2 })
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.received) != before+1 {
		t.Errorf("received %v, want one more", i.received[before:])
	}
}

// A server that is started again gives the same content the same versions: nothing moves at istiod.
func TestRestartChangesNothing(t *testing.T) {
	first, address := start(t, Options{}, nil)
	apply(t, first, entry("a"), entry("b"))
	i := dial(t, address, dialOptions{})
	i.wait("first state", i.ready)
	second, again := start(t, Options{}, nil)
	apply(t, second, entry("b"), entry("a"))
	j := dial(t, again, dialOptions{})
	j.wait("first state", j.ready)
	for name, have := range i.store[resource.TypeServiceEntry] {
		if got := j.store[resource.TypeServiceEntry][name]; got.version != have.version {
			t.Errorf("%s has versions %s and %s", name, have.version, got.version)
		}
	}
}

// An istiod that knows TrafficExtension is not given the WasmPlugin that says the same; an older one is.
func TestSupersededTypes(t *testing.T) {
	s, address := start(t, Options{Settle: 50 * time.Millisecond}, nil)
	apply(t, s, extension("u"), wasmPlugin("u"))
	newer := dial(t, address, dialOptions{})
	newer.wait("all types", newer.ready)
	older := dial(t, address, dialOptions{types: slices.DeleteFunc(slices.Clone(Types), func(t resource.Type) bool { return t == resource.TypeTrafficExtension })})
	older.wait("the plugin", func() bool { return len(older.names(resource.TypeWasmPlugin)) == 1 })
	newer.mu.Lock()
	if got := newer.names(resource.TypeWasmPlugin); len(got) != 0 || len(newer.names(resource.TypeTrafficExtension)) != 1 {
		t.Errorf("the newer one has plugins %v", got)
	}
	newer.mu.Unlock()
	// In any order of the requests.
	reversed := slices.Clone(Types)
	slices.Reverse(reversed)
	other := dial(t, address, dialOptions{types: reversed})
	other.wait("all types", other.ready)
	older.mu.Lock()
	defer older.mu.Unlock()
	if older.synced[resource.TypeWasmPlugin] != 1 {
		t.Errorf("the older one was sent plugins %d times", older.synced[resource.TypeWasmPlugin])
	}
}

// WorkloadEntries are sent when istiod has had time to take the ServiceEntries in: it looks up the services of a sidecar when the
// WorkloadEntry comes, and never again.
func TestTrail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{})
		var sent []*discovery.DiscoveryResponse
		c := &connection{server: s, client: &client{types: map[resource.Type]*subscription{}}, stream: sender(func(r *discovery.DiscoveryResponse) error { sent = append(sent, r); return nil })}
		ask := func(typ resource.Type, nonce string) {
			t.Helper()
			if _, err := c.request(&discovery.DiscoveryRequest{TypeUrl: string(typ), ResponseNonce: nonce}); err != nil {
				t.Fatal(err)
			}
		}
		due := func(want time.Duration, types ...resource.Type) {
			t.Helper()
			p, _ := s.latest()
			before := len(sent)
			later, err := c.sendDue(p)
			if err != nil {
				t.Fatal(err)
			}
			var got []resource.Type
			for _, r := range sent[before:] {
				got = append(got, resource.Type(r.TypeUrl))
			}
			if later != want || !slices.Equal(got, types) {
				t.Fatalf("sent %v and the rest after %v, want %v and %v", got, later, types, want)
			}
		}
		workload := func(ports string) resource.Resource {
			return resource.Resource{Type: resource.TypeWorkloadEntry, Namespace: "vm", Name: "ip", Body: &networking.WorkloadEntry{Address: "192.0.2.1", Labels: map[string]string{"p": ports}}}
		}
		apply(t, s, entry("a"), workload("1"))
		ask(resource.TypeWorkloadEntry, "x")
		ask(resource.TypeServiceEntry, "x")
		due(trailPatient, resource.TypeServiceEntry)
		time.Sleep(10 * time.Millisecond)
		due(trailPatient - 10*time.Millisecond)
		ask(resource.TypeServiceEntry, sent[0].Nonce)
		due(trailQuiet + 20*time.Millisecond)
		time.Sleep(trailQuiet + 20*time.Millisecond)
		due(0, resource.TypeWorkloadEntry)
		due(0)

		apply(t, s, entry("a"), workload("2"))
		due(0, resource.TypeWorkloadEntry)

		apply(t, s, entry("b"), workload("3"))
		due(trailPatient, resource.TypeServiceEntry) // and it is never acknowledged
		time.Sleep(trailPatient)
		due(0, resource.TypeWorkloadEntry)
	})
}

// istiod's own first requests, and requests that are late, must not be taken for acknowledgements nor answered twice.
func TestNonces(t *testing.T) {
	s := New(Options{})
	var sent []*discovery.DiscoveryResponse
	c := &connection{server: s, client: &client{types: map[resource.Type]*subscription{}}, stream: sender(func(r *discovery.DiscoveryResponse) error { sent = append(sent, r); return nil })}
	ask := func(nonce string, e error) {
		t.Helper()
		r := &discovery.DiscoveryRequest{TypeUrl: string(resource.TypeServiceEntry), ResponseNonce: nonce}
		if e != nil {
			r.ErrorDetail = statusProto(e.Error())
		}
		if _, err := c.request(r); err != nil {
			t.Fatal(err)
		}
		p, _ := s.latest()
		if _, err := c.sendDue(p); err != nil {
			t.Fatal(err)
		}
	}
	sub := func() *subscription { return c.client.types[resource.TypeServiceEntry] }

	ask("2026-08-27 12:00:00 +0000 UTC m=+1", nil)
	ask("", nil)
	if len(sent) != 0 {
		t.Fatalf("answered without a set: %v", sent)
	}
	first := apply(t, s, entry("a"))
	ask("again", nil)
	if len(sent) != 1 || sent[0].TypeUrl != string(resource.TypeServiceEntry) || sent[0].VersionInfo != first.TypeVersion(resource.TypeServiceEntry) {
		t.Fatalf("sent %v", sent)
	}
	for _, nonce := range []string{"", "again", "0", "17"} {
		ask(nonce, nil)
		ask(nonce, errors.New("no"))
	}
	if len(sent) != 1 || sub().acked != "" || sub().rejected != "" {
		t.Errorf("a nonce of nobody's counts: %d sent, %+v", len(sent), sub())
	}
	apply(t, s, entry("b"))
	ask(sent[0].Nonce, nil) // late: the second response goes out with it
	if len(sent) != 2 || sub().acked == sub().sent {
		t.Fatalf("%d sent, %+v", len(sent), sub())
	}
	ask(sent[0].Nonce, errors.New("late"))
	if sub().rejected != "" {
		t.Errorf("a late rejection counts: %+v", sub())
	}
	ask(sent[1].Nonce, errors.New("bad entry"))
	if len(sent) != 2 || sub().rejected != "bad entry" {
		t.Errorf("a rejected response: %d sent, %+v", len(sent), sub())
	}
	apply(t, s, entry("c"))
	ask("x", nil)
	ask(sent[2].Nonce, nil)
	if len(sent) != 3 || sub().acked != sub().sent || sub().rejected != "" {
		t.Errorf("after the mending: %d sent, %+v", len(sent), sub())
	}
}

type sender func(*discovery.DiscoveryResponse) error

func (f sender) Send(r *discovery.DiscoveryResponse) error { return f(r) }

// A rejected response is not sent again and again, is shown, and others go on.
func TestRejection(t *testing.T) {
	registry := prometheus.NewRegistry()
	s, address := start(t, Options{Metrics: registry}, nil)
	apply(t, s, entry("bad"))
	i := dial(t, address, dialOptions{nack: func(r *discovery.DiscoveryResponse) string {
		if r.TypeUrl == string(resource.TypeServiceEntry) && len(r.Resources) == 1 {
			return "I will not have it"
		}
		return ""
	}})
	i.wait("all types", i.ready)
	serviceEntries := func() ClientType {
		for _, c := range s.Clients() {
			for _, typ := range c.Types {
				if typ.Type == resource.TypeServiceEntry {
					return typ
				}
			}
		}
		return ClientType{}
	}
	until(t, "the rejection", func() bool { return serviceEntries().Rejected == "I will not have it" })
	apply(t, s, entry("bad"), entry("good"))
	until(t, "the acknowledgement", func() bool { c := serviceEntries(); return c.Rejected == "" && c.Acked == c.Sent && c.Resources == 2 })
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.synced[resource.TypeServiceEntry] != 2 {
		t.Errorf("sent %d times", i.synced[resource.TypeServiceEntry])
	}
	var counted dto.Metric
	if err := s.metrics.rejected.WithLabelValues(string(resource.TypeServiceEntry)).Write(&counted); err != nil || counted.Counter.GetValue() != 1 {
		t.Errorf("%v rejections counted, %v", counted.Counter.GetValue(), err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v %v", problems, err)
	}
}

// Several istiods at once; one that does not read holds up neither the others nor the server's end.
func TestSlowClient(t *testing.T) {
	s, address := start(t, Options{}, nil)
	big := strings.Repeat("x", 4000)
	set := func(generation int) []resource.Resource {
		var rs []resource.Resource
		for n := range 400 {
			rs = append(rs, entry(name(n), big, fmt.Sprint("g", generation)))
		}
		return rs
	}
	apply(t, s, set(0)...)
	pause := make(chan struct{})
	slow := dial(t, address, dialOptions{pause: pause})
	fast := []*istiod{dial(t, address, dialOptions{}), dial(t, address, dialOptions{})}
	for _, i := range fast {
		i.wait("all types", i.ready)
	}
	for generation := 1; generation <= 20; generation++ {
		apply(t, s, set(generation)...)
		for _, i := range fast {
			i.wait("a generation", func() bool {
				e, ok := i.store[resource.TypeServiceEntry]["vm/"+name(0)]
				return ok && e.body.(*networking.ServiceEntry).Hosts[2] == fmt.Sprint("g", generation)
			})
		}
	}
	if n := len(s.Clients()); n != 3 {
		t.Errorf("%d clients", n)
	}
	close(pause)
	slow.wait("the last generation", func() bool {
		e, ok := slow.store[resource.TypeServiceEntry]["vm/"+name(0)]
		return slow.ready() && ok && e.body.(*networking.ServiceEntry).Hosts[2] == "g20"
	})
	slow.mu.Lock()
	defer slow.mu.Unlock()
	if n := slow.synced[resource.TypeServiceEntry]; n > 10 {
		t.Errorf("the slow one was sent %d of 21 generations: what it has missed should be left out", n)
	}
}

// istiod's client takes messages of any size; so must the server send them: this one has 20 MB.
func TestLargeResponse(t *testing.T) {
	s, address := start(t, Options{}, nil)
	big := strings.Repeat("x", 20000)
	var rs []resource.Resource
	for n := range 1000 {
		rs = append(rs, entry(name(n), big))
	}
	apply(t, s, rs...)
	i := dial(t, address, dialOptions{})
	i.wait("all of it", func() bool { return i.ready() && len(i.store[resource.TypeServiceEntry]) == len(rs) })
}

// The server ends while clients are connected, one of which does not read.
func TestShutdown(t *testing.T) {
	s := New(Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l, nil) }()
	apply(t, s, entry("a"))
	i := dial(t, l.Addr().String(), dialOptions{})
	i.wait("all types", i.ready)
	pause := make(chan struct{})
	stuck := dial(t, l.Addr().String(), dialOptions{pause: pause})
	until(t, "both", func() bool { return len(s.Clients()) == 2 })
	big := strings.Repeat("x", 1<<20)
	apply(t, s, entry("a", big, big, big, big))
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the server does not end")
	}
	if code := status.Code(i.waitEnd()); code != codes.Canceled && code != codes.Unavailable {
		t.Errorf("the stream ended with %v", code)
	}
	close(pause)
	stuck.waitEnd()
	if n := len(s.Clients()); n != 0 {
		t.Errorf("%d clients are left", n)
	}
}

// What a client may ask for is bounded, and what is no kind of Istio's is left unanswered.
func TestStrangeClients(t *testing.T) {
	s, address := start(t, Options{}, nil)
	apply(t, s, entry("a"))
	envoy := dial(t, address, dialOptions{types: []resource.Type{"type.googleapis.com/envoy.config.cluster.v3.Cluster", "", "a/b", resource.TypeServiceEntry}})
	envoy.wait("the one type", func() bool { return envoy.synced[resource.TypeServiceEntry] == 1 })
	if c := s.Clients(); len(c) != 1 || len(c[0].Types) != 1 {
		t.Errorf("clients %+v", c)
	}
	var many []resource.Type
	for n := range maxTypes + 1 {
		many = append(many, resource.Type(fmt.Sprintf("a/v1/K%d", n)))
	}
	if err := dial(t, address, dialOptions{types: many}).waitEnd(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("too many types: %v", err)
	}
	if err := dial(t, address, dialOptions{types: []resource.Type{resource.Type("a/v1/" + strings.Repeat("K", 300))}}).waitEnd(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a long type: %v", err)
	}
	if err := dial(t, address, dialOptions{types: []resource.Type{resource.Type(strings.Repeat("K", maxRequestBytes))}}).waitEnd(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a large request: %v", err)
	}
}

func TestToken(t *testing.T) {
	token := "secret"
	var failure error
	s, address := start(t, Options{Token: func() (string, error) { return token, failure }}, nil)
	apply(t, s, entry("a"))
	good := dial(t, address, dialOptions{token: "secret"})
	good.wait("all types", good.ready)
	for name, o := range map[string]dialOptions{"none": {}, "another": {token: "secre"}, "longer": {token: "secrets"}} {
		if err := dial(t, address, o).waitEnd(); status.Code(err) != codes.Unauthenticated {
			t.Errorf("token %s: %v", name, err)
		}
	}
}

func TestUnreadableTokenLetsNobodyIn(t *testing.T) {
	s, address := start(t, Options{Token: func() (string, error) { return "", errors.New("gone") }}, nil)
	apply(t, s, entry("a"))
	if err := dial(t, address, dialOptions{}).waitEnd(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("got %v", err)
	}
}

func TestTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mcp"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	s, address := start(t, Options{}, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	apply(t, s, entry("a"))
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	i := dial(t, address, dialOptions{tls: &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"}})
	i.wait("all types", i.ready)
}

// Envelopes are made of what has changed only, and are those that a server has that was given the set at once.
func TestEnvelopesFollowEntries(t *testing.T) {
	var d resource.Draft
	r := mathrand.New(mathrand.NewPCG(1, 2))
	put := func(n int, host string) {
		d.Put(resource.Resource{Type: resource.TypeServiceEntry, Namespace: "n", Name: fmt.Sprint("s", n), Body: &networking.ServiceEntry{Hosts: []string{host}}})
	}
	s := New(Options{})
	var before *published
	for round := range 100 {
		for range 1 + r.IntN(3) {
			if n := r.IntN(20); r.IntN(3) == 0 {
				d.Remove(resource.ID{Type: resource.TypeServiceEntry, Namespace: "n", Name: fmt.Sprint("s", n)})
			} else {
				put(n, fmt.Sprint("h", round))
			}
		}
		put(20, "always")
		set, err := d.Freeze()()
		if err != nil {
			t.Fatal(err)
		}
		fresh := New(Options{})
		if err := errors.Join(s.Apply(t.Context(), set), fresh.Apply(t.Context(), set)); err != nil {
			t.Fatal(err)
		}
		now, _ := s.latest()
		want, _ := fresh.latest()
		got := now.types[resource.TypeServiceEntry]
		if !slices.EqualFunc(got.resources, want.types[resource.TypeServiceEntry].resources, func(a, b *anypb.Any) bool { return proto.Equal(a, b) }) {
			t.Fatalf("round %d: other envelopes than a new server's", round)
		}
		if before != nil {
			had := before.types[resource.TypeServiceEntry]
			for i, e := range had.entries {
				if j := slices.Index(got.entries, e); j >= 0 && got.resources[j] != had.resources[i] {
					t.Errorf("round %d: the envelope of %s was made again", round, e.ID())
				}
			}
		}
		before = now
	}
}
