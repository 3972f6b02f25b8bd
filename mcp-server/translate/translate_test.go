package translate

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/adapters/file"
	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
)

var update = flag.Bool("update", false, "write the golden files")

// render writes a translation as a person would: resources as Kubernetes has them, then the ports and the problems.
func render(t *testing.T, tr *Translation) []byte {
	t.Helper()
	var out bytes.Buffer
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	for entry := range tr.Set().All() {
		o, err := entry.Object()
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Encode(o); err != nil {
			t.Fatal(err)
		}
	}
	problems := []string{}
	for _, p := range tr.Problems {
		problems = append(problems, fmt.Sprintf("%s %s: %s: %s", p.Severity, p.Place, p.Code, p.Message))
	}
	if err := e.Encode(map[string]any{"tcpPorts": tr.TCPPorts, "httpPorts": tr.HTTPPorts, "problems": problems}); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Each folder of testdata holds in.yaml, a list of services as the file registry reads it, and want.yaml, what becomes of it.
// go test -update writes want.yaml.
func TestGolden(t *testing.T) {
	cases, err := filepath.Glob("testdata/*/in.yaml")
	if err != nil || len(cases) < 10 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	for _, in := range cases {
		t.Run(filepath.Base(filepath.Dir(in)), func(t *testing.T) {
			text, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			services, err := file.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			for i := range services {
				for j := range services[i].Endpoints {
					services[i].Endpoints[j].Origins = []model.Origin{{Registry: "files", Place: "in.yaml"}}
				}
			}
			options := Options{Namespace: "vm"}
			got := render(t, Translate(&model.Snapshot{Services: services}, options))
			// The order in which registries say things makes no difference.
			shuffled := slices.Clone(services)
			rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
			if again := render(t, Translate(&model.Snapshot{Services: shuffled}, options)); !bytes.Equal(got, again) {
				t.Errorf("in another order it is\n%s", again)
			}
			golden := filepath.Join(filepath.Dir(in), "want.yaml")
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func body(t *testing.T, set resource.Set, name string) *networking.ServiceEntry {
	t.Helper()
	e, ok := set.Get(resource.ID{Type: resource.TypeServiceEntry, Namespace: "default", Name: name})
	if !ok {
		t.Fatalf("no ServiceEntry %s", name)
	}
	return e.Body.(*networking.ServiceEntry)
}

func random(r *rand.Rand, services int) []model.Service {
	var out []model.Service
	for i := range services {
		s := model.Service{Key: model.Key{Framework: []string{"dubbo", "sofa", "spring"}[r.IntN(3)], Interface: fmt.Sprintf("demo.Service%d", i)}}
		for range r.IntN(6) {
			e := model.Endpoint{
				Address: fmt.Sprintf("10.0.0.%d", r.IntN(8)), Port: uint16(20880 + r.IntN(3)), Application: fmt.Sprintf("app%d", r.IntN(3)),
				Protocol: []model.Protocol{"dubbo", "bolt", "tri", "rest", "hessian"}[r.IntN(5)], Disabled: r.IntN(8) == 0,
			}
			if r.IntN(2) == 0 {
				e.Weight = new(uint32)
				*e.Weight = r.Uint32() >> r.IntN(32)
			}
			if r.IntN(2) == 0 {
				e.Labels = map[string]string{"version": fmt.Sprint("v", r.IntN(3)), "zöne": "a/b"}
			}
			out := slices.ContainsFunc(s.Endpoints, func(o model.Endpoint) bool {
				return o.Address == e.Address && o.Port == e.Port && o.Protocol == e.Protocol
			})
			if !out {
				s.Endpoints = append(s.Endpoints, e)
			}
		}
		out = append(out, s)
	}
	return out
}

// No endpoint is lost: each is carried or counted as left out. And istiod's demands hold for whatever comes.
func TestNothingIsLost(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		services := random(r, 12)
		tr := Translate(&model.Snapshot{Services: services}, Options{})
		want := 0
		for _, s := range services {
			want += len(s.Endpoints)
		}
		got, carried := 0, 0
		for _, s := range tr.Services {
			got += s.Carried + s.LeftOut
			carried += s.Carried
		}
		if got != want {
			t.Fatalf("%d endpoints became %d", want, got)
		}
		inSet := 0
		labels := map[string]map[string]string{}
		listeners := map[string]string{}
		for _, entry := range tr.Set().OfType(resource.TypeServiceEntry) {
			se := entry.Body.(*networking.ServiceEntry)
			inSet += len(se.Endpoints)
			if len(se.Ports) != 1 || len(se.Hosts) != 1 {
				t.Fatalf("%v", se)
			}
			if se.Resolution == networking.ServiceEntry_NONE && (len(se.Endpoints) > 0 || len(se.Addresses) > 0) {
				t.Errorf("a catch-all with endpoints or addresses: %v", se)
			}
			var sum uint64
			for _, e := range se.Endpoints {
				sum += uint64(e.Weight)
				if have, ok := labels[e.Address]; ok && !maps.Equal(have, e.Labels) {
					t.Errorf("%s has labels %v and %v", e.Address, have, e.Labels)
				}
				labels[e.Address] = e.Labels
				if e.Labels["app"] == "" {
					t.Errorf("%s has no app: %v", e.Address, e.Labels)
				}
				for name := range e.Ports {
					if name != se.Ports[0].Name {
						t.Errorf("port %s of an endpoint is not one of the service", name)
					}
				}
			}
			if sum > maxTotalWeight {
				t.Errorf("the weights of %s are %d together", se.Hosts[0], sum)
			}
			// Two TCP services must not want one listener.
			if se.Ports[0].Protocol == "TCP" {
				address := "0.0.0.0"
				if len(se.Addresses) > 0 {
					address = se.Addresses[0]
				}
				key := fmt.Sprint(address, ":", se.Ports[0].Number)
				if other, ok := listeners[key]; ok {
					t.Errorf("%s and %s share the listener %s", se.Hosts[0], other, key)
				}
				listeners[key] = se.Hosts[0]
			}
		}
		if inSet != carried {
			t.Errorf("%d endpoints are carried, %d are in the set", carried, inSet)
		}
	}
}

// istiod takes a sidecar's labels from any one endpoint with its address, so all of them must carry the same ones: those that any
// service says.
func TestLabelsAreConsistentByAddress(t *testing.T) {
	at := func(address string, port uint16, app string, labels map[string]string) model.Endpoint {
		return model.Endpoint{Address: address, Port: port, Protocol: "dubbo", Application: app, Labels: labels}
	}
	key := func(i string) model.Key { return model.Key{Framework: "dubbo", Interface: i} }
	disabled := at("10.0.0.1", 20880, "shop", map[string]string{"tier": "gold"})
	disabled.Disabled = true
	tr := Translate(&model.Snapshot{Services: []model.Service{
		{Key: key("demo.A"), Endpoints: []model.Endpoint{at("10.0.0.1", 20880, "shop", map[string]string{"version": "v1"}), at("10.0.0.2", 20880, "", nil)}},
		{Key: key("demo.B"), Endpoints: []model.Endpoint{at("10.0.0.1", 20880, "", nil)}},
		{Key: key("demo.C"), Endpoints: []model.Endpoint{at("10.0.0.1", 20881, "shop", map[string]string{"version": "v1", "app": "ignored"})}},
		{Key: key("demo.D"), Endpoints: []model.Endpoint{at("10.0.0.1", 20882, "stall", map[string]string{"version": "v2"})}},
		{Key: key("demo.E"), Endpoints: []model.Endpoint{disabled}},
	}}, Options{})
	want := map[string]string{"app": "shop", "version": "v1", "tier": "gold"}
	for _, name := range []string{"demo.a.dubbo", "demo.b.dubbo", "demo.c.dubbo", "demo.d.dubbo"} {
		if got := body(t, tr.Set(), name).Endpoints[0].Labels; !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	var codes []string
	for _, p := range tr.Problems {
		codes = append(codes, p.Place+" "+p.Code)
	}
	if want := []string{"10.0.0.1 LabelConflict", "10.0.0.1 LabelConflict"}; !slices.Equal(codes, want) {
		t.Errorf("problems %v, want %v: of app and of version", tr.Problems, want)
	}
}

// allocate gives the hosts addresses at once.
func allocate(prefix netip.Prefix, hosts []string) map[string]netip.Addr {
	a := newAllocator(prefix)
	for _, h := range hosts {
		a.add(h)
	}
	a.settle()
	return a.addresses
}

func TestAddressesAreStable(t *testing.T) {
	prefix := netip.MustParsePrefix("240.1.0.0/20")
	var hosts []string
	for i := range 1000 {
		hosts = append(hosts, fmt.Sprintf("s%d.dubbo.isthmus", i))
	}
	all := allocate(prefix, hosts)
	if len(all) != len(hosts) {
		t.Fatalf("%d of %d hosts have an address", len(all), len(hosts))
	}
	seen := map[netip.Addr]string{}
	for h, a := range all {
		last := a.As4()[3]
		if !prefix.Contains(a) || last == 0 || last == 255 {
			t.Errorf("%s has %s", h, a)
		}
		if other, ok := seen[a]; ok {
			t.Errorf("%s and %s share %s", h, other, a)
		}
		seen[a] = h
	}
	// In any order, and again.
	rand.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
	if !maps.Equal(all, allocate(prefix, hosts)) {
		t.Error("the order makes a difference")
	}
	// One more or one less leaves all others where they are, unless they are after the same address: hardly ever.
	moved := 0
	for i := range 50 {
		fewer := slices.Delete(slices.Clone(hosts), i, i+1)
		for h, a := range allocate(prefix, fewer) {
			if all[h] != a {
				moved++
			}
		}
	}
	if moved > 50 { // a quarter of the range is taken: now and then one moves
		t.Errorf("%d addresses moved when 50 hosts left one at a time", moved)
	}
	if got := len(allocate(netip.MustParsePrefix("240.0.0.0/29"), hosts)); got > 7 {
		t.Errorf("%d addresses out of a range of 7", got)
	}
	v6 := allocate(netip.MustParsePrefix("fd00:1::/64"), hosts)
	if len(v6) != len(hosts) || !netip.MustParsePrefix("fd00:1::/64").Contains(v6[hosts[0]]) {
		t.Errorf("IPv6: %d, %s", len(v6), v6[hosts[0]])
	}
}

// The default range keeps clear of istiod's own, and at its size hosts do not move.
func TestDefaultRange(t *testing.T) {
	if DefaultVirtualAddresses.Overlaps(netip.MustParsePrefix("240.240.0.0/16")) {
		t.Error("the default range overlaps istiod's")
	}
}

func TestFullRange(t *testing.T) {
	var services []model.Service
	for i := range 20 {
		services = append(services, model.Service{Key: model.Key{Framework: "dubbo", Interface: fmt.Sprint("demo.S", i)},
			Endpoints: []model.Endpoint{{Address: "10.0.0.1", Port: 20880, Protocol: "dubbo"}}})
	}
	tr := Translate(&model.Snapshot{Services: services}, Options{VirtualAddresses: netip.MustParsePrefix("240.0.0.0/29")})
	exhausted := 0
	for _, p := range tr.Problems {
		if p.Code == "AddressesExhausted" {
			exhausted++
		}
	}
	addressed := 0
	for _, entry := range tr.Set().OfType(resource.TypeServiceEntry) {
		se := entry.Body.(*networking.ServiceEntry)
		if len(se.Addresses) > 0 {
			addressed++
		} else if se.Resolution != networking.ServiceEntry_NONE {
			t.Errorf("%s has no address and would take every connection to its port", se.Hosts[0])
		}
	}
	if exhausted == 0 || exhausted+addressed != 20 || len(tr.Services) != 20 {
		t.Errorf("%d without and %d with an address, %d services", exhausted, addressed, len(tr.Services))
	}
}

func TestWeights(t *testing.T) {
	for name, c := range map[string]struct {
		in, want []uint32
		scaled   bool
	}{
		"none":      {[]uint32{0, 0}, []uint32{0, 0}, false},
		"all":       {[]uint32{1, 2}, []uint32{1, 2}, false},
		"some":      {[]uint32{200, 0}, []uint32{200, 100}, false},
		"too large": {[]uint32{1 << 31, 1 << 31, 1}, []uint32{2147483645, 2147483645, 1}, true},
	} {
		t.Run(name, func(t *testing.T) {
			got := slices.Clone(c.in)
			if scaled := balance(got); scaled != c.scaled {
				t.Errorf("scaled is %v", scaled)
			}
			var sum uint64
			for i, w := range got {
				sum += uint64(w)
				if !c.scaled && w != c.want[i] || c.scaled && (w == 0 || float64(w) < 0.99*float64(c.want[i])) {
					t.Errorf("got %v, want %v", got, c.want)
				}
			}
			if sum > maxTotalWeight {
				t.Errorf("sum %d", sum)
			}
		})
	}
}

func TestLabelWords(t *testing.T) {
	for in, want := range map[string]string{
		"v1": "v1", "a_b.C-d": "a_b.C-d", "": "", "a/b": "a-b-" + fingerprint("a/b"), "-a": "a-" + fingerprint("-a"), "订单": fingerprint("订单"),
		strings.Repeat("x", 64): strings.Repeat("x", 53) + "-" + fingerprint(strings.Repeat("x", 64)),
	} {
		got, kept := labelValue(in)
		if got != want || kept != (in == got) || len(got) > maxLabelValue {
			t.Errorf("value %q: %q, %v, want %q", in, got, kept, want)
		}
	}
	for in, want := range map[string]string{
		"version": "version", "topology.istio.io/network": "topology.istio.io/network", "A/b": "A-b-" + fingerprint("A/b"), "x/": "x/" + fingerprint("x/"),
		"a/b/c": "a/b-c-" + fingerprint("b/c"), "": fingerprint(""),
	} {
		got, kept := labelKey(in)
		if got != want || kept != (in == got) {
			t.Errorf("key %q: %q, %v, want %q", in, got, kept, want)
		}
	}
}

// Without mesh addressing services over TCP are there for their providers' sidecars only; the rest is as it was.
func TestEndpointsOnly(t *testing.T) {
	services := []model.Service{
		{Key: model.Key{Framework: "dubbo", Interface: "demo.A"}, Endpoints: []model.Endpoint{{Address: "10.0.0.1", Port: 20880, Protocol: "dubbo"}}},
		{Key: model.Key{Framework: "spring", Interface: "orders"}, Endpoints: []model.Endpoint{{Address: "10.0.0.2", Port: 8080, Protocol: "http"}}},
	}
	tr := Translate(&model.Snapshot{Services: services}, Options{EndpointsOnly: true, ExportTo: []string{"vm"}})
	for name, want := range map[string][]string{"demo.a.dubbo": {"~"}, "orders.spring": {"vm"}, "port-20880": {"vm"}} {
		if got := body(t, tr.Set(), name).ExportTo; !slices.Equal(got, want) {
			t.Errorf("%s is exported to %v, want %v", name, got, want)
		}
	}
	if got := body(t, tr.Set(), "demo.a.dubbo"); len(got.Endpoints) != 1 || len(got.Addresses) != 1 {
		t.Errorf("the service itself: %v", got)
	}
}

// Each address that is called has one WorkloadEntry, whose labels tell its ports and nothing that anybody selects by.
func TestWorkloads(t *testing.T) {
	weight := uint32(0)
	many := model.Service{Key: model.Key{Framework: "dubbo", Interface: "demo.Many"}}
	for port := range 30 {
		many.Endpoints = append(many.Endpoints, model.Endpoint{Address: "10.0.0.9", Port: uint16(20000 + port), Protocol: "dubbo"})
	}
	services := []model.Service{
		{Key: model.Key{Framework: "dubbo", Interface: "demo.A"}, Endpoints: []model.Endpoint{
			{Address: "10.0.0.1", Port: 20881, Protocol: "dubbo", Application: "a", Labels: map[string]string{"version": "v1"}},
			{Address: "10.0.0.2", Port: 20880, Protocol: "dubbo", Disabled: true},
			{Address: "10.0.0.3", Port: 20880, Protocol: "dubbo", Weight: &weight},
			{Address: "a.example.org", Port: 20880, Protocol: "dubbo"},
			{Address: "2001:db8::", Port: 20880, Protocol: "dubbo"},
		}},
		{Key: model.Key{Framework: "dubbo", Interface: "demo.B"}, Endpoints: []model.Endpoint{{Address: "10.0.0.1", Port: 20880, Protocol: "dubbo"}}},
		many,
	}
	got := map[string]string{}
	for _, e := range Translate(&model.Snapshot{Services: services}, Options{}).Set().OfType(resource.TypeWorkloadEntry) {
		w := e.Body.(*networking.WorkloadEntry)
		if len(w.Labels) != 1 || e.Namespace != "default" || len(w.Labels[labelPorts]) > maxLabelValue {
			t.Errorf("%s: %v", e.Name, w)
		}
		got[e.Name+" "+w.Address] = w.Labels[labelPorts]
	}
	want := map[string]string{
		"ip-10-0-0-1 10.0.0.1":                                  "20880-20881",
		"ip-10-0-0-9 10.0.0.9":                                  got["ip-10-0-0-9 10.0.0.9"], // see below
		"ip-2001-0db8-0000-0000-0000-0000-0000-0000 2001:db8::": "20880",
	}
	if hash := got["ip-10-0-0-9 10.0.0.9"]; len(hash) != 32 {
		t.Errorf("30 ports are %q", hash)
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestOneServiceInTwoRegistries: an application on its way from one registry to another is one service, which names both.
func TestOneServiceInTwoRegistries(t *testing.T) {
	from := func(names ...string) (out []model.Origin) {
		for _, n := range names {
			out = append(out, model.Origin{Registry: n, Place: "/x"})
		}
		return out
	}
	tr := Translate(&model.Snapshot{Services: []model.Service{{
		Key: model.Key{Framework: "sofa", Interface: "demo.PayFacade", Version: "1.0"},
		Endpoints: []model.Endpoint{
			{Address: "10.0.0.1", Port: 12200, Protocol: "bolt", Origins: from("sofa", "zk")},
			{Address: "10.0.0.2", Port: 12200, Protocol: "bolt", Origins: from("zk")},
			{Address: "10.0.0.3", Port: 12200, Protocol: "bolt", Origins: from("sofa")},
		},
	}}}, Options{})
	set := tr.Set()
	e, ok := set.Get(resource.ID{Type: resource.TypeServiceEntry, Namespace: "default", Name: "demo.pay-facade.v1-0.sofa"})
	if !ok || len(tr.Services) != 1 || len(tr.Problems) != 0 {
		t.Fatalf("services %+v, problems %+v", tr.Services, tr.Problems)
	}
	if got := e.Annotations[AnnotationRegistries]; got != "sofa,zk" {
		t.Errorf("registries %q", got)
	}
	var addresses []string
	for _, we := range body(t, set, e.Name).Endpoints {
		addresses = append(addresses, we.Address)
	}
	if want := []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"}; !slices.Equal(addresses, want) {
		t.Errorf("endpoints %v, want %v", addresses, want)
	}
}

func TestDuplicateServices(t *testing.T) {
	s := model.Service{Key: model.Key{Framework: "dubbo", Interface: "demo.A"}}
	tr := Translate(&model.Snapshot{Services: []model.Service{s, s}}, Options{})
	if tr.Set().Len() != 1 || len(tr.Problems) != 1 || tr.Problems[0].Code != "DuplicateService" {
		t.Errorf("got %d resources, %v", tr.Set().Len(), tr.Problems)
	}
}

func BenchmarkTranslate(b *testing.B) {
	var services []model.Service
	for i := range 1000 {
		s := model.Service{Key: model.Key{Framework: "dubbo", Interface: fmt.Sprintf("com.example.team%d.Service%d", i%20, i), Version: "1.0.0"}}
		for j := range 10 {
			s.Endpoints = append(s.Endpoints, model.Endpoint{Address: fmt.Sprintf("10.0.%d.%d", i%50, j), Port: 20880, Protocol: "dubbo", Application: fmt.Sprint("app", i%50)})
		}
		services = append(services, s)
	}
	snapshot := &model.Snapshot{Services: services}
	for b.Loop() {
		Translate(snapshot, Options{})
	}
}
