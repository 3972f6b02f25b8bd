package translate

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/adapters/model"
)

// odd returns an endpoint of the kinds that services influence each other by: few addresses and ports, so that they meet, in several
// spellings, with labels that contradict each other, and all that keeps a service from being lifted.
func odd(r *rand.Rand) model.Endpoint {
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	e := model.Endpoint{
		Address:     pick("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "2001:db8::1", "2001:db8:0::1"),
		Port:        uint16(20880 + r.IntN(4)),
		Protocol:    model.Protocol(pick("dubbo", "dubbo", "bolt", "bolt", "tri", "rest", "hessian")),
		Application: pick("", "shop", "shop", "stall"),
		Disabled:    r.IntN(10) == 0,
		Locality:    model.Locality{Region: pick("", "r1"), Zone: pick("z1", "z2")},
	}
	switch r.IntN(30) {
	case 0:
		e.Address = pick("db.example.org", "no address", "")
	case 1:
		e.Port = 0
	case 2:
		e.Port = 15001
	case 3:
		e.Metadata = map[string]string{metaSSL: "true"}
	case 4:
		e.Metadata = map[string]string{metaSerialization: "kryo"}
	}
	if r.IntN(3) == 0 {
		weight := []uint32{0, 1, 100, math.MaxUint32}[r.IntN(4)]
		e.Weight = &weight
	}
	if r.IntN(3) == 0 {
		e.Labels = map[string]string{"version": pick("v1", "v2"), pick("zöne", "app"): pick("a/b", "c")}
	}
	if r.IntN(2) == 0 {
		e.Origins = []model.Origin{{Registry: pick("zk", "sofa"), Place: "/x"}}
	}
	return e
}

// oddService returns some version of one of a few services.
func oddService(r *rand.Rand) model.Service {
	s := model.Service{Key: model.Key{Framework: []string{"dubbo", "dubbo", "sofa", "spring"}[r.IntN(4)], Interface: fmt.Sprint("demo.S", r.IntN(12)), Group: []string{"", "g"}[r.IntN(2)]}}
	for range r.IntN(5) {
		s.Endpoints = append(s.Endpoints, odd(r))
	}
	if r.IntN(4) == 0 {
		s.Metadata = map[string]string{"owner": fmt.Sprint("team", r.IntN(2))}
	}
	return s
}

// mutate makes of some services others, as a registry does: a service comes, goes or changes in an endpoint.
func mutate(r *rand.Rand, services []model.Service) []model.Service {
	services = slices.Clone(services)
	for range 1 + r.IntN(3) {
		fresh := oddService(r)
		i := slices.IndexFunc(services, func(s model.Service) bool { return s.Key == fresh.Key })
		switch {
		case i < 0:
			services = append(services, fresh)
		case r.IntN(3) == 0:
			services = slices.Delete(services, i, i+1)
		case r.IntN(3) == 0 || len(services[i].Endpoints) == 0:
			services[i] = fresh
		default:
			services[i].Endpoints = slices.Clone(services[i].Endpoints)
			j := r.IntN(len(services[i].Endpoints))
			if r.IntN(2) == 0 {
				services[i].Endpoints[j] = odd(r)
			} else {
				services[i].Endpoints = slices.Delete(services[i].Endpoints, j, j+1)
			}
		}
	}
	slices.SortFunc(services, func(a, b model.Service) int { return compareStrings(a.Key.String(), b.Key.String()) })
	return services
}

func compareStrings(a, b string) int { return bytes.Compare([]byte(a), []byte(b)) }

// equal fails the test unless both translations are the same to the byte.
func equal(t *testing.T, step string, got, want *Translation) {
	t.Helper()
	if a, b := got.Set(), want.Set(); !a.Equal(b) || a.Len() != b.Len() {
		t.Fatalf("%s: another set: %+v", step, b.Diff(a))
	}
	for e := range want.Set().All() {
		have, ok := got.Set().Get(e.ID())
		if !ok || !bytes.Equal(have.Wire, e.Wire) || !reflect.DeepEqual(have.Labels, e.Labels) || !reflect.DeepEqual(have.Annotations, e.Annotations) {
			t.Fatalf("%s: %s is another", step, e.ID())
		}
		read := have.Body.ProtoReflect().New().Interface()
		if err := proto.Unmarshal(have.Wire, read); err != nil || !proto.Equal(read, have.Body) {
			t.Fatalf("%s: the encoding of %s is of something else: %v", step, e.ID(), err)
		}
	}
	for name, pair := range map[string][2]any{
		"services": {got.Services, want.Services}, "lifted": {got.Lifted, want.Lifted}, "TCP ports": {got.TCPPorts, want.TCPPorts}, "lifted ports": {got.LiftedPorts, want.LiftedPorts},
		"HTTP ports": {got.HTTPPorts, want.HTTPPorts}, "provider ports": {got.ProviderPorts, want.ProviderPorts}, "mutual ports": {got.MutualPorts, want.MutualPorts},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			t.Fatalf("%s: other %s: %+v, not %+v", step, name, pair[0], pair[1])
		}
	}
	if !slices.Equal(got.Problems, want.Problems) {
		t.Fatalf("%s: other problems: %v, not %v", step, got.Problems, want.Problems)
	}
}

// Whatever came before, a Translator makes of a snapshot what is made of it alone.
func TestTranslatorIsTranslate(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	sequences := 150
	if testing.Short() {
		sequences = 30
	}
	seen := map[string]bool{}
	lifted := 0
	for sequence := range sequences {
		o := Options{VirtualAddresses: []netip.Prefix{{}, netip.MustParsePrefix("240.1.0.0/28"), netip.MustParsePrefix("240.1.0.0/30")}[r.IntN(3)]}
		for range r.IntN(3) {
			o.Lift = append(o.Lift, LiftSelector{Framework: []string{"", "dubbo"}[r.IntN(2)], Interface: []string{"*", "demo.S1*"}[r.IntN(2)],
				Application: []string{"", "shop"}[r.IntN(2)], Port: []uint16{0, 0, 20880}[r.IntN(3)], AtProvider: r.IntN(2) == 0, Failover: r.IntN(2) == 0})
			if l := &o.Lift[len(o.Lift)-1]; l.AtProvider {
				l.HTTP = r.IntN(2) == 0
			}
		}
		if r.IntN(2) == 0 {
			o.Identities = []Identity{{Application: "shop"}, {Application: []string{"s*", "st*", "c"}[r.IntN(3)], ServiceAccount: []string{"", "s"}[r.IntN(2)]}, {Application: "a/b"}}[r.IntN(2):]
		}
		tr := NewTranslator(o)
		var services []model.Service
		var before *Translation
		for step := range 40 {
			services = mutate(r, services)
			snapshot := &model.Snapshot{Services: slices.Clone(services)}
			if r.IntN(20) == 0 && len(services) > 0 { // no Manager says this, but a file may
				snapshot.Services = append(snapshot.Services, services[r.IntN(len(services))])
			}
			if r.IntN(20) == 0 {
				r.Shuffle(len(snapshot.Services), func(i, j int) {
					snapshot.Services[i], snapshot.Services[j] = snapshot.Services[j], snapshot.Services[i]
				})
			}
			got, want := tr.Translate(snapshot), Translate(snapshot, o)
			// A set that is asked for late is still that of its translation.
			if before == nil || r.IntN(3) > 0 {
				equal(t, fmt.Sprintf("sequence %d, step %d", sequence, step), got, want)
			}
			for _, p := range got.Problems {
				seen[p.Code] = true
			}
			lifted += len(got.Lifted)
			before = got
		}
		// What is gone leaves nothing behind.
		equal(t, "nothing", tr.Translate(&model.Snapshot{}), Translate(&model.Snapshot{}, o))
		for name, n := range map[string]int{
			"services": len(tr.byKey), "addresses": len(tr.places), "hosts": len(tr.hosts), "machines": len(tr.machines), "ports": len(tr.ports), "listening": len(tr.listen),
			"lifted": len(tr.lifted), "providers": len(tr.stands), "catch-alls": len(tr.caught), "reserved ports": len(tr.reserved), "disputed addresses": len(tr.disputed),
			"HTTP": len(tr.web), "providers with a connection manager": len(tr.provided), "callees": len(tr.dialled), "ports of identities": len(tr.mutual), "rules of ports": len(tr.ruled),
			"wishes": len(tr.virtual.wishes), "unlucky hosts": len(tr.virtual.unlucky), "virtual addresses": len(tr.virtual.addresses), "touched hosts": len(tr.virtual.touched),
		} {
			if n > 0 {
				t.Fatalf("sequence %d: %d %s are left over", sequence, n, name)
			}
		}
	}
	for _, code := range []string{"DuplicateService", "LabelConflict", "InvalidLabel", "SharedPort", "UnknownProtocol", "NotLifted", "MixedPort", "AddressesExhausted",
		"InvalidAddress", "MixedAddresses", "WeightsScaled", "ReservedPort", "MixedIdentities"} {
		if !seen[code] {
			t.Errorf("no sequence had a %s", code)
		}
	}
	if lifted == 0 {
		t.Error("nothing was ever lifted")
	}
}

// A set that is asked for after others have been made is that of its own snapshot.
func TestSetOfAnOlderTranslation(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	o := Options{Lift: []LiftSelector{{Interface: "*"}}}
	tr := NewTranslator(o)
	var services []model.Service
	var made, want []*Translation
	for range 30 {
		services = mutate(r, services)
		s := &model.Snapshot{Services: services}
		made, want = append(made, tr.Translate(s)), append(want, Translate(s, o))
	}
	for _, i := range r.Perm(len(made)) {
		equal(t, fmt.Sprint("translation ", i), made[i], want[i])
	}
}

// many are services of 10 endpoints: each on machines of its own, or apps services on each machine.
func many(n, apps int) []model.Service {
	services := make([]model.Service, n)
	for i := range services {
		services[i].Key = model.Key{Framework: "dubbo", Interface: fmt.Sprintf("com.example.team%02d.Service%05d", i*20/n, i), Version: "1.0.0"}
		for j := range 10 {
			services[i].Endpoints = append(services[i].Endpoints, model.Endpoint{Address: fmt.Sprintf("10.%d.%d.%d", i/apps/200, i/apps%200, j+1), Port: 20880, Protocol: "dubbo",
				Application: fmt.Sprint("app", i/apps), Labels: map[string]string{"version": "v1"}})
		}
	}
	return services
}

// toggled takes an endpoint of one service away or gives it back.
func toggled(services []model.Service, i, step int) []model.Service {
	services = slices.Clone(services)
	if step%2 == 0 {
		services[i].Endpoints = services[i].Endpoints[:9:9]
	} else {
		services[i].Endpoints = slices.Clone(many(len(services), 1)[i].Endpoints)
	}
	return services
}

// A change of one service leaves all others as they are: at the same addresses.
func TestTranslatorSharesWhatStays(t *testing.T) {
	for name, o := range map[string]Options{"passed through": {}, "lifted": {Lift: []LiftSelector{{Interface: "*"}}}} {
		t.Run(name, func(t *testing.T) {
			tr := NewTranslator(o)
			services := many(50, 1)
			before := tr.Translate(&model.Snapshot{Services: services})
			after := tr.Translate(&model.Snapshot{Services: toggled(services, 7, 0)})
			for i := range after.Services {
				if same := before.Services[i] == after.Services[i]; same != (i != 7) {
					t.Errorf("service %d: the same is %v", i, same)
				}
			}
			for i := range after.Lifted {
				if same := before.Lifted[i] == after.Lifted[i]; same != (i != 7) {
					t.Errorf("lifted service %d: the same is %v", i, same)
				}
			}
			var changed []string
			for _, id := range before.Set().Diff(after.Set()).Changed {
				changed = append(changed, id.Name)
			}
			want := []string{"com.example.team02.service00007.v1-0-0.dubbo"}
			if o.Lift != nil {
				want = []string{"providers-20880"}
			}
			if !slices.Equal(changed, want) {
				t.Errorf("changed: %q, want %q", changed, want)
			}
			kept := 0
			for e := range after.Set().All() {
				if old, ok := before.Set().Get(e.ID()); ok && old == e {
					kept++
				}
			}
			if kept < after.Set().Len()-2 {
				t.Errorf("only %d of %d resources were kept", kept, after.Set().Len())
			}
		})
	}
}

// BenchmarkChange is what a change of one endpoint among many costs: until all but the set is there, and until the set is, too.
func BenchmarkChange(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		for _, lifted := range []bool{false, true} {
			for _, set := range []bool{false, true} {
				b.Run(fmt.Sprintf("services=%d/lifted=%v/set=%v", n, lifted, set), func(b *testing.B) {
					o := Options{}
					if lifted {
						o.Lift = []LiftSelector{{Interface: "*"}}
					}
					services := many(n, 1)
					states := [2]*model.Snapshot{{Services: toggled(services, n/2, 0)}, {Services: services}}
					tr := NewTranslator(o)
					for _, s := range states {
						tr.Translate(s).Set()
					}
					b.ReportAllocs()
					for i := 0; b.Loop(); i++ {
						if t := tr.Translate(states[i%2]); set {
							t.Set()
						}
					}
				})
			}
		}
	}
}
