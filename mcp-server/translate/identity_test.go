package translate

import (
	"reflect"
	"strings"
	"testing"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
)

func TestIdentities(t *testing.T) {
	at := func(address string, port uint16, application string) model.Endpoint {
		return model.Endpoint{Address: address, Port: port, Protocol: model.ProtocolDubbo, Application: application}
	}
	services := []model.Service{
		{Key: model.Key{Framework: "dubbo", Interface: "demo.A"}, Endpoints: []model.Endpoint{at("10.0.0.1", 20880, "shop-a"), at("10.0.0.2", 20880, "shop-b")}},
		{Key: model.Key{Framework: "dubbo", Interface: "demo.B"}, Endpoints: []model.Endpoint{at("10.0.0.1", 20881, "shop-a"), at("10.0.0.3", 20881, "other"), at("10.0.0.4", 20881, "Odd Name")}},
		{Key: model.Key{Framework: "dubbo", Interface: "demo.C"}, Endpoints: []model.Endpoint{at("10.0.0.3", 20882, "other")}},
	}
	set, problems := Istio(&model.Snapshot{Services: services}, Options{Namespace: "vm", TrustDomain: "example.org", Identities: []Identity{
		{Application: "shop-b", ServiceAccount: "b"}, {Application: "shop-*"}, {Application: "Odd*"}, {Application: "shop-a", ServiceAccount: "never"},
	}})
	accounts := map[string]string{}
	for _, e := range set.OfType(resource.TypeServiceEntry) {
		for _, we := range e.Body.(*networking.ServiceEntry).Endpoints {
			accounts[we.Address] = we.ServiceAccount
		}
	}
	if want := map[string]string{"10.0.0.1": "shop-a", "10.0.0.2": "b", "10.0.0.3": "", "10.0.0.4": ""}; !reflect.DeepEqual(accounts, want) {
		t.Errorf("service accounts %v, want %v", accounts, want)
	}
	// Where all have an identity, whoever is dialled speaks mutual TLS; where some have, nobody can tell who; else nothing is said.
	rules := set.OfType(resource.TypeDestinationRule)
	if len(rules) != 1 {
		t.Fatalf("%d rules", len(rules))
	}
	rule := rules[0].Body.(*networking.DestinationRule)
	tls := rule.TrafficPolicy.Tls
	if rule.Host != "port-20880.isthmus" || tls.Mode != networking.ClientTLSSettings_ISTIO_MUTUAL ||
		!reflect.DeepEqual(tls.SubjectAltNames, []string{"spiffe://example.org/ns/vm/sa/b", "spiffe://example.org/ns/vm/sa/shop-a"}) {
		t.Errorf("the rule is %v", rule)
	}
	var codes []string
	for _, p := range problems {
		codes = append(codes, p.Place+" "+p.Code)
	}
	for _, want := range []string{"10.0.0.4 InvalidIdentity", "port 20881 MixedIdentities"} {
		if !strings.Contains(strings.Join(codes, "\n"), want) {
			t.Errorf("no %s in %q", want, codes)
		}
	}
	if strings.Contains(strings.Join(codes, "\n"), "20882") {
		t.Errorf("a problem with a port where nobody has an identity: %q", codes)
	}
}
