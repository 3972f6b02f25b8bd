package translate

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
)

// labelPorts tells on which ports a workload listens. It is what changes of a workload when it begins to listen on another.
const labelPorts = "isthmus.io/ports"

// listens tells that an endpoint takes traffic at an address that a WorkloadEntry can have, and at which.
func listens(e *model.Endpoint) (netip.Addr, bool) {
	if addressKind(e.Address) != addressIP || e.Port == 0 || takesNothing(e) {
		return netip.Addr{}, false
	}
	return netip.MustParseAddr(e.Address), true
}

// workload renders the WorkloadEntry of an address that has endpoints, on the ports of a portList. It carries no traffic: no service selects it, and for
// that it has none of the workload's own labels. It is there for the sidecar at that address. istiod makes a sidecar's inbound
// listeners from the services that it is an endpoint of, and looks that up when the sidecar connects and when a service changes, but
// not when a service that is there gets one more endpoint; a WorkloadEntry that comes, or whose labels change, makes it look
// again (serviceentry.Controller.pushWorkloadUpdates, ProxyUpdate).
func (o *Options) workload(a netip.Addr, ports string) resource.Resource {
	return resource.Resource{
		Type:      resource.TypeWorkloadEntry,
		Namespace: o.Namespace,
		Name:      workloadName(a),
		Labels:    map[string]string{labelManagedBy: managedBy},
		Body:      &networking.WorkloadEntry{Address: a.String(), Labels: map[string]string{labelPorts: ports}},
	}
}

// workloadName is a DNS label: ip-10-0-0-1, ip-2001-0db8-0000-….
func workloadName(a netip.Addr) string {
	return "ip-" + strings.NewReplacer(".", "-", ":", "-").Replace(a.StringExpanded())
}

// portList is a label's value: the ports, or a hash of them where they are too many.
func portList(set map[uint16]int) string {
	var words []string
	for _, p := range slices.Sorted(maps.Keys(set)) {
		words = append(words, strconv.Itoa(int(p)))
	}
	list := strings.Join(words, "-")
	if len(list) > maxLabelValue {
		sum := sha256.Sum256([]byte(list))
		list = hex.EncodeToString(sum[:16])
	}
	return list
}
