// Package resource holds Istio resources on their way from the translators to the sinks: a name, a body, and sets of
// them that are sorted and compared by content.
package resource

import "google.golang.org/protobuf/proto"

// Type is the identity of a resource's kind as istiod asks for it over MCP: group/version/kind.
type Type string

// The types that Isthmus emits.
const (
	TypeServiceEntry     Type = "networking.istio.io/v1/ServiceEntry"
	TypeWorkloadEntry    Type = "networking.istio.io/v1/WorkloadEntry"
	TypeDestinationRule  Type = "networking.istio.io/v1/DestinationRule"
	TypeVirtualService   Type = "networking.istio.io/v1/VirtualService"
	TypeEnvoyFilter      Type = "networking.istio.io/v1alpha3/EnvoyFilter"
	TypeWasmPlugin       Type = "extensions.istio.io/v1alpha1/WasmPlugin"
	TypeTrafficExtension Type = "extensions.istio.io/v1alpha1/TrafficExtension"
)

// Resource is one Istio resource. It is immutable once it is in a Set.
type Resource struct {
	Type        Type
	Namespace   string
	Name        string
	Labels      map[string]string
	Annotations map[string]string
	Body        proto.Message // of istio.io/api, never nil
	// Encode, if set, returns Body in protobuf's wire format, for a large body that is made of parts which are encoded already. Equal bodies
	// must have equal encodings. It is called at most once.
	Encode func() ([]byte, error)
}

// ID returns the resource's name.
func (r *Resource) ID() ID { return ID{r.Type, r.Namespace, r.Name} }
