package xds

import (
	"net/netip"
	"testing"

	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
)

// An endpoint's canonical service is the one that Istio would find in its labels.
func TestCanonicalService(t *testing.T) {
	e := Endpoint{Address: netip.MustParseAddrPort("10.0.0.1:20880"), Labels: map[string]string{"app": "greet", "service.istio.io/canonical-name": "greeting", "version": "v1", "app.kubernetes.io/version": "1.2"}}
	metadata := Assignment(&Service{Namespace: "vm", Metrics: true, Endpoints: []Endpoint{e}}, "c", nil).Endpoints[0].LbEndpoints[0].Metadata.FilterMetadata
	if got := metadata[istioMetadata].Fields["workload"].GetStringValue(); got != "greet;vm;greeting;1.2;" {
		t.Errorf("Istio is told %q", got)
	}
	own := metadata[ownMetadata].Fields
	for k, want := range map[string]string{"workload": "greet", "service": "greeting", "version": "v1", "revision": "1.2"} {
		if got := own[k].GetStringValue(); got != want {
			t.Errorf("%s is %q, want %q", k, got, want)
		}
	}
}

// An endpoint with an identity is reached by mutual TLS: istiod's transport sockets are told so where its sidecar takes HTTP/2, and
// otherwise another internal listener leads to it. Where sidecars count calls, they are told who it is.
func TestIdentity(t *testing.T) {
	const id = "spiffe://cluster.local/ns/vm/sa/greet"
	for name, c := range map[string]struct {
		e              Endpoint
		listener, mode string
		policy         string
	}{
		"lowers, with one":                    {Endpoint{Lowers: true, Identity: id}, "", "istio", "mutual_tls"},
		"lowers, without":                     {Endpoint{Lowers: true}, "", "", "none"},
		"lowers, with a label that says no":   {Endpoint{Lowers: true, Identity: id, Labels: map[string]string{"security.istio.io/tlsMode": "disabled"}}, "", "disabled", "none"},
		"lowered by the caller, with one":     {Endpoint{Identity: id}, MutualListener, "", "mutual_tls"},
		"lowered by the caller, without":      {Endpoint{}, LowerListener, "", "none"},
		"lowered by the caller, with a label": {Endpoint{Labels: map[string]string{"security.istio.io/tlsMode": "istio"}}, LowerListener, "", "none"},
	} {
		t.Run(name, func(t *testing.T) {
			c.e.Address = netip.MustParseAddrPort("10.0.0.1:20880")
			var got *endpoint.LbEndpoint
			for _, metrics := range []bool{false, true} {
				s := &Service{Namespace: "vm", Metrics: metrics, Endpoints: []Endpoint{c.e}}
				got = Assignment(s, "c", nil).Endpoints[0].LbEndpoints[0]
				metadata := got.Metadata.FilterMetadata
				if mode := metadata[transportMetadata].GetFields()["tlsMode"].GetStringValue(); mode != c.mode {
					t.Errorf("tlsMode is %q, want %q", mode, c.mode)
				}
				if _, told := metadata[ownMetadata]; told != metrics {
					t.Errorf("told who it is: %v, want %v", told, metrics)
				}
			}
			if l := got.GetEndpoint().Address.GetEnvoyInternalAddress().GetServerListenerName(); l != c.listener {
				t.Errorf("it is reached by %q, want %q", l, c.listener)
			}
			own := got.Metadata.FilterMetadata[ownMetadata].GetFields()
			principal := c.e.Identity
			if principal == "" {
				principal = "unknown"
			}
			if own["principal"].GetStringValue() != principal || own["security"].GetStringValue() != c.policy || own["workload"].GetStringValue() != "unknown" {
				t.Errorf("it is said to be %v", own)
			}
		})
	}
}
