package translate

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
)

// Identity gives the providers of applications their service account: their sidecars have certificates for it, and take Istio's
// mutual TLS.
type Identity struct {
	Application    string // equal, or the beginning and "*"
	ServiceAccount string // "" is the application's own name
}

// account returns the service account of an application, "" if it has none.
func (o *Options) account(application string) string {
	for _, x := range o.Identities {
		prefix, open := strings.CutSuffix(x.Application, "*")
		if application == x.Application || open && strings.HasPrefix(application, prefix) {
			if x.ServiceAccount != "" {
				return x.ServiceAccount
			}
			return application
		}
	}
	return ""
}

// accounts returns the service accounts by address. A sidecar has one certificate, so all endpoints of an address have the account of
// the application that the address has its label of.
func (o *Options) accounts(labels map[string]map[string]string, problems *problems) map[string]string {
	out := map[string]string{}
	if len(o.Identities) == 0 {
		return out
	}
	for _, address := range slices.Sorted(maps.Keys(labels)) {
		a := o.account(labels[address][labelApp])
		switch {
		case a == "":
		case !validAccount(a):
			problems.add(model.SeverityWarning, address, "InvalidIdentity",
				"its application %q is no name of a service account, so callers do not speak mutual TLS with it; spec.mesh.identities can name one", clip(a))
		default:
			out[address] = a
		}
	}
	return out
}

// validAccount tells whether s may be the name of a service account: a DNS name in lower case.
func validAccount(s string) bool { return validPrefix(s) }

// identity returns the SPIFFE id of a service account (istio.io/istio pkg/spiffe, genSpiffeURI), "" for none.
func (o *Options) identity(account string) string {
	if account == "" {
		return ""
	}
	return "spiffe://" + o.TrustDomain + "/ns/" + o.Namespace + "/sa/" + account
}

// callees are the endpoints on a port, at whose own addresses they may be called.
type callees struct {
	mutual map[string]bool // identities
	plain  netip.AddrPort  // the least of those without one; not valid if all have one
}

// mutualRule has callers' sidecars speak mutual TLS with whoever is dialled on a port. Its name and host are the catch-all's.
func (o *Options) mutualRule(port uint16, identities []string) resource.Resource {
	host := o.Naming.PortHost(port)
	return resource.Resource{
		Type: resource.TypeDestinationRule, Namespace: o.Namespace, Name: strings.TrimSuffix(host, "."+o.Naming.suffix()),
		Labels: map[string]string{labelManagedBy: managedBy},
		Body: &networking.DestinationRule{Host: host, ExportTo: o.ExportTo, TrafficPolicy: &networking.TrafficPolicy{
			Tls: &networking.ClientTLSSettings{Mode: networking.ClientTLSSettings_ISTIO_MUTUAL, SubjectAltNames: identities},
		}},
	}
}

// all tells whether there are endpoints, and all have an identity.
func (c *callees) all() bool { return c != nil && len(c.mutual) > 0 && !c.plain.IsValid() }

// dialled renders the mutualRule of a port, if it is for all. istiod finds out by itself which endpoints of a service take mutual TLS, but
// not who is behind an address that a caller has chosen: there it is all or nobody.
func (o *Options) dialled(port uint16, c *callees) []resource.Resource {
	if !c.all() {
		return nil
	}
	return []resource.Resource{o.mutualRule(port, slices.Sorted(maps.Keys(c.mutual)))}
}

// mixed tells where some endpoints have an identity and some have none.
func mixed(by map[uint16]*callees, problems *problems) {
	for port, c := range by {
		if len(c.mutual) > 0 && !c.all() {
			problems.add(model.SeverityWarning, fmt.Sprintf("port %d", port), "MixedIdentities",
				"some endpoints on it have an identity, and others, such as %s, have none: calls to the endpoints' own addresses go in plaintext, which a provider that insists on mutual TLS refuses", c.plain)
		}
	}
}

// callee notes an endpoint.
func (o *Options) callee(by map[uint16]*callees, e *model.Endpoint) {
	a, err := netip.ParseAddr(e.Address)
	if err != nil {
		return // nobody dials a name
	}
	c := by[e.Port]
	if c == nil {
		c = &callees{mutual: map[string]bool{}}
		by[e.Port] = c
	}
	if id := o.identity(o.byAddress[e.Address]); id != "" {
		c.mutual[id] = true
	} else if at := netip.AddrPortFrom(a, e.Port); !c.plain.IsValid() || at.Compare(c.plain) < 0 {
		c.plain = at
	}
}
