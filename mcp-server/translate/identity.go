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

// placeAccount returns the service account of an address, by its labels. A sidecar has one certificate, so all endpoints of an address have the
// account of the application that the address has its label of.
func (o *Options) placeAccount(address string, labels map[string]string, problems *problems) string {
	a := o.account(labels[labelApp])
	if a != "" && !validAccount(a) {
		problems.add(model.SeverityWarning, address, "InvalidIdentity",
			"its application %q is no name of a service account, so callers do not speak mutual TLS with it; spec.mesh.identities can name one", clip(a))
		return ""
	}
	return a
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

// callee is an endpoint that somebody may dial at its own address.
type callee struct {
	at       netip.AddrPort
	identity string // "" for none
}

// callees appends those of a part.
func (o *Options) callees(dst []callee, p *part, around *surroundings) []callee {
	for _, e := range p.endpoints {
		if a, err := netip.ParseAddr(e.Address); err == nil && e.Port != 0 { // nobody dials a name
			dst = append(dst, callee{netip.AddrPortFrom(a, e.Port), o.identity(around.account(e.Address))})
		}
	}
	return dst
}

// dialled are the callees on a port, each as often as somebody says it.
type dialled struct {
	mutual map[string]int // identities
	plain  map[netip.AddrPort]int
}

func (d *dialled) say(c callee, n int) {
	if c.identity != "" {
		count(d.mutual, c.identity, n)
	} else {
		count(d.plain, c.at, n)
	}
}

// count adds to a number, of which 0 goes without saying.
func count[K comparable](of map[K]int, k K, n int) {
	if of[k] += n; of[k] == 0 {
		delete(of, k)
	}
}

// all returns the identities, sorted, if there are callees and all have one, and else nil: istiod finds out by itself which endpoints of a service
// take mutual TLS, but not who is behind an address that a caller has chosen. There it is all or nobody.
func (d *dialled) all() []string {
	if d == nil || len(d.plain) > 0 || len(d.mutual) == 0 {
		return nil
	}
	return slices.Sorted(maps.Keys(d.mutual))
}

// mixed says that some have an identity and some have none.
func (d *dialled) mixed(port uint16, problems *problems) {
	if d != nil && len(d.mutual) > 0 && len(d.plain) > 0 {
		problems.add(model.SeverityWarning, fmt.Sprintf("port %d", port), "MixedIdentities",
			"some endpoints on it have an identity, and others, such as %s, have none: calls to the endpoints' own addresses go in plaintext, which a provider that insists on mutual TLS refuses",
			slices.MinFunc(slices.Collect(maps.Keys(d.plain)), netip.AddrPort.Compare))
	}
}

// mutualRule has callers' sidecars speak mutual TLS with whoever is dialled on a port. Its name and host are the catch-all's.
func (o *Options) mutualRule(port uint16, identities []string) resource.Resource {
	host := o.Naming.PortHost(port)
	return resource.Resource{
		Type: resource.TypeDestinationRule, Namespace: o.Namespace, Name: o.entryName(host),
		Labels: map[string]string{labelManagedBy: managedBy},
		Body: &networking.DestinationRule{Host: host, ExportTo: o.ExportTo, TrafficPolicy: &networking.TrafficPolicy{
			Tls: &networking.ClientTLSSettings{Mode: networking.ClientTLSSettings_ISTIO_MUTUAL, SubjectAltNames: identities},
		}},
	}
}
