package governance

import (
	"bytes"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	_ "github.com/cncf/xds/go/xds/type/matcher/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stats/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_filter_state/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/original_dst/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/common_inputs/network/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/adapters/model"
)

// Each case has a golden file, testdata/lift/CASE.yaml, which go test -update writes.
func TestLift(t *testing.T) {
	greet := LiftedHost{Key: model.Key{Framework: "dubbo", Interface: "demo.Greet"}, Host: "demo.greet.dubbo.isthmus"}
	greet.Ports = []uint16{20880}
	dialled, passing := greet, greet
	dialled.Mode, passing.Mode = LiftDialled, LiftPassthrough
	dialled.Key.Interface, dialled.Host = "demo.Dialled", "demo.dialled.dubbo.isthmus"
	passing.Key.Interface, passing.Host, passing.Ports = "demo.Passing", "demo.passing.dubbo.isthmus", []uint16{20880, 20881}
	long := LiftedHost{Key: model.Key{Framework: "dubbo", Interface: "demo.Long", Version: "1.0.0", Group: "g"}, Host: "2---abc.dubbo.isthmus", Hashed: true}
	// Circuits of endpoints do not go with lifting.
	each, err := Parse([]byte("apiVersion: governance.isthmus.io/v1alpha1\nkind: CircuitBreakerRule\nmetadata: {name: each}\n" +
		"spec: {target: {service: demo.Greet}, direction: client, strategy: errorCount, threshold: 3, perEndpoint: true}\n"))
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]LiftOptions{
		"plain": {Hosts: []LiftedHost{greet}, Ports: []uint16{20880, 20881}, XDS: XDS{Host: "10.0.0.5", Port: 15992}},
		"everything": {Hosts: []LiftedHost{greet, long}, Ports: []uint16{20880}, Suffix: "legacy", Attachments: []string{"tenant"},
			XDS: XDS{Host: "isthmus.example.org", Port: 443, CAFile: "/etc/isthmus/ca.pem", CertFile: "/etc/isthmus/cert.pem", KeyFile: "/etc/isthmus/key.pem", ServerName: "10.0.0.5", Token: "secret"}},
		// 20880 is lifted for the sake of demo.Greet, 20881 is not. web is careful.
		"modes": {Hosts: []LiftedHost{greet, dialled, passing}, Ports: []uint16{20880, 20881}, Virtual: netip.MustParsePrefix("240.64.0.0/10"),
			Callers: []LiftCaller{{"batch", LiftDialled}, {"web", LiftPassthrough}}, XDS: XDS{Host: "10.0.0.5", Port: 15992}},
		// Only web's calls are routed, for a beginning.
		"one-caller": {Hosts: []LiftedHost{greet}, Ports: []uint16{20880}, Callers: []LiftCaller{{"web", LiftRouted}}, OtherCallers: LiftPassthrough, XDS: XDS{Host: "10.0.0.5", Port: 15992}},
		"no-caller":  {Hosts: []LiftedHost{greet}, Ports: []uint16{20880}, OtherCallers: LiftPassthrough, XDS: XDS{Host: "10.0.0.5", Port: 15992}},
		// A name that the filter takes no host for costs nobody else anything.
		"too-long": {Hosts: []LiftedHost{greet, {Key: model.Key{Framework: "dubbo", Interface: strings.Repeat("x", 600)}, Host: "2---def.dubbo.isthmus", Hashed: true}},
			Ports: []uint16{20880}, XDS: XDS{Host: "10.0.0.5", Port: 15992}},
		// Some providers have certificates, some a connection manager of their own, and calls are counted.
		"secure": {Hosts: []LiftedHost{{Key: greet.Key, Host: greet.Host, AtProvider: true}, long}, Ports: []uint16{20880, 20881}, ProviderPorts: []uint16{20880}, MutualPorts: []uint16{20880},
			Identities: []string{"spiffe://cluster.local/ns/default/sa/greet"}, Metrics: true, ExceptionsFail: true, Namespace: "default", XDS: XDS{Host: "10.0.0.5", Port: 15992}},
		// The filter tells services by names, and these two have the same.
		"same-names": {Hosts: []LiftedHost{greet, {Key: model.Key{Framework: "sofa", Interface: "demo.Greet"}, Host: "demo.greet.sofa.isthmus", Ports: []uint16{12200}, Mode: LiftDialled},
			long, {Key: model.Key{Framework: "sofa", Interface: "demo.Long", Version: "1.0.0", Group: "g"}, Host: "2---abc.sofa.isthmus", Hashed: true}},
			Ports: []uint16{12200, 20880}, XDS: XDS{Host: "10.0.0.5", Port: 15992}},
		"nothing":   {Ports: nil, XDS: XDS{Host: "10.0.0.5", Port: 15992}},
		"no-filter": {Hosts: []LiftedHost{greet}, Ports: []uint16{20880}, XDS: XDS{Host: "10.0.0.5", Port: 15992}},
	} {
		t.Run(name, func(t *testing.T) {
			options := options
			if name == "no-filter" {
				options.URL = ""
			}
			options.Lift = &o
			c := Compile(nil, Ports{}, options)
			if name == "everything" {
				c = Compile(each, Ports{}, options)
			}
			set, problems := Lift(&c, o, options)
			var got bytes.Buffer
			e := yaml.NewEncoder(&got)
			e.SetIndent(2)
			for entry := range set.All() {
				o, err := entry.Object()
				if err != nil {
					t.Fatal(err)
				}
				if err := e.Encode(o); err != nil {
					t.Fatal(err)
				}
			}
			if err := e.Encode(map[string]any{"problems": lines(problems)}); err != nil {
				t.Fatal(err)
			}
			checkGolden(t, filepath.Join("testdata", "lift", name+".yaml"), got.Bytes())
		})
	}
}

// istiod drops an EnvoyFilter of which it cannot read one patch, with no more than a line in its log.
func TestPatchesAreXDS(t *testing.T) {
	l := LiftOptions{Hosts: []LiftedHost{{Key: model.Key{Framework: "dubbo", Interface: "demo.Greet"}, Host: "demo.greet.dubbo.isthmus"}}, Ports: []uint16{20880},
		ProviderPorts: []uint16{20880}, Identities: []string{"spiffe://cluster.local/ns/default/sa/greet"}, Namespace: "default",
		Virtual: netip.MustParsePrefix("240.64.0.0/10"), XDS: XDS{Host: "isthmus.example.org", Port: 443, CAFile: "/ca.pem", CertFile: "/cert.pem", KeyFile: "/key.pem", Token: "secret"}}
	seen := map[networking.EnvoyFilter_ApplyTo]int{}
	for i, p := range append(l.patches(options), l.metrics()...) {
		m := map[networking.EnvoyFilter_ApplyTo]interface {
			proto.Message
			ValidateAll() error
		}{
			networking.EnvoyFilter_CLUSTER: new(cluster.Cluster), networking.EnvoyFilter_LISTENER: new(listener.Listener), networking.EnvoyFilter_FILTER_CHAIN: new(listener.FilterChain),
			networking.EnvoyFilter_NETWORK_FILTER: new(listener.Filter), networking.EnvoyFilter_HTTP_FILTER: new(hcm.HttpFilter), networking.EnvoyFilter_HTTP_ROUTE: new(route.Route),
		}[p.ApplyTo]
		seen[p.ApplyTo]++
		text, err := protojson.Marshal(p.Patch.Value)
		if err != nil {
			t.Fatal(err)
		}
		if err := protojson.Unmarshal(text, m); err != nil {
			t.Errorf("patch %d, %s: %v", i, p.ApplyTo, err)
			continue
		}
		// What is merged or added to a chain is only a part of a whole.
		if p.Patch.Operation != networking.EnvoyFilter_Patch_MERGE {
			if err := m.ValidateAll(); err != nil {
				t.Errorf("patch %d, %s: %v", i, p.ApplyTo, err)
			}
		}
		// istiod's reader knows no Any without a type.
		if strings.Contains(string(text), `"config":{}`) {
			t.Errorf("patch %d, %s: an Any without a type", i, p.ApplyTo)
		}
	}
	if len(seen) != 6 {
		t.Errorf("patches are for %v", seen)
	}
}

// Envoy keeps connections only while nothing of a listener changes but its matcher: so nothing else may differ between modes.
func TestModesDifferInMatchersOnly(t *testing.T) {
	patches := func(mode, others LiftMode) []*networking.EnvoyFilter_EnvoyConfigObjectPatch {
		l := LiftOptions{Hosts: []LiftedHost{{Host: "demo.greet.dubbo.isthmus", Ports: []uint16{20880}, Mode: mode}}, Ports: []uint16{20880}, OtherCallers: others,
			Virtual: netip.MustParsePrefix("240.64.0.0/10"), XDS: XDS{Host: "10.0.0.5", Port: 15992}}
		return l.patches(options)
	}
	without := func(p *networking.EnvoyFilter_EnvoyConfigObjectPatch) (rest *networking.EnvoyFilter_EnvoyConfigObjectPatch, matcher string) {
		rest = proto.Clone(p).(*networking.EnvoyFilter_EnvoyConfigObjectPatch)
		if m, ok := rest.Patch.Value.Fields["filter_chain_matcher"]; ok {
			delete(rest.Patch.Value.Fields, "filter_chain_matcher")
			return rest, protojson.Format(m)
		}
		return rest, ""
	}
	base := patches(LiftRouted, LiftRouted)
	for name, c := range map[string]struct {
		mode, others LiftMode
		differ       int // matchers
	}{
		"lifted": {LiftRouted, LiftRouted, 0}, "dialled": {LiftDialled, LiftRouted, 0}, "passing": {LiftPassthrough, LiftRouted, 1},
		"callers dial": {LiftRouted, LiftDialled, 0}, "callers pass": {LiftDialled, LiftPassthrough, 1},
	} {
		got := patches(c.mode, c.others)
		if len(got) != len(base) {
			t.Fatalf("%s: %d patches, not %d", name, len(got), len(base))
		}
		n := 0
		for i := range base {
			was, before := without(base[i])
			is, now := without(got[i])
			if !proto.Equal(was, is) {
				t.Errorf("%s: patch %d is another one:\n%s\n%s", name, i, protojson.Format(was), protojson.Format(is))
			}
			if before != now {
				n++
			}
		}
		if n != c.differ {
			t.Errorf("%s: %d matchers differ, want %d", name, n, c.differ)
		}
	}
}
