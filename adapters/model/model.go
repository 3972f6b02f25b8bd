// Package model is the protocol-neutral picture of what the registries hold: services, the endpoints that provide them
// and the consumers that use them. Adapters produce it, the Manager merges it, translators and the API read it. It knows
// neither a registry nor Istio, and imports only the standard library.
package model

import "time"

// Protocol is the RPC protocol that an endpoint speaks, in the registry's own terms, in lower case.
type Protocol string

// The protocols that adapters name. Others pass through as they are; translators report those that they do not know.
const (
	ProtocolDubbo  Protocol = "dubbo" // Dubbo2 over TCP
	ProtocolTriple Protocol = "tri"   // Dubbo 3's Triple: gRPC-compatible HTTP/2
	ProtocolBolt   Protocol = "bolt"  // SOFA Bolt over TCP
	ProtocolREST   Protocol = "rest"  // HTTP/1.1
	ProtocolHTTP   Protocol = "http"  // HTTP/1.1
	ProtocolH2C    Protocol = "h2c"   // HTTP/2 without TLS
	ProtocolGRPC   Protocol = "grpc"  // gRPC
	ProtocolTR     Protocol = "tr"    // SOFA TR, the predecessor of Bolt
)

// Key identifies a service across registries: two registries that hold the same key hold the same service.
type Key struct {
	// Framework is the naming world that the interface lives in: "dubbo", "sofa" or "spring". A SOFA service and a
	// Dubbo service of one interface name are different services.
	Framework string `json:"framework"`
	Interface string `json:"interface"`         // fully qualified interface name, or the application name for Spring Cloud
	Version   string `json:"version,omitempty"` // "" where the registry has none
	Group     string `json:"group,omitempty"`   // Dubbo group, SOFA uniqueId; "" where the registry has none
}

// String returns the key as people write it: framework/interface[:version[:group]].
func (k Key) String() string {
	s := k.Framework + "/" + k.Interface
	if k.Version != "" || k.Group != "" {
		s += ":" + k.Version
	}
	if k.Group != "" {
		s += ":" + k.Group
	}
	return s
}

// Service is one service with everything that one source, or after merging all sources, know of it.
type Service struct {
	Key       Key               `json:"key"`
	Methods   []string          `json:"methods,omitempty"` // sorted; empty where the registry does not tell
	Endpoints []Endpoint        `json:"endpoints,omitempty"`
	Consumers []Consumer        `json:"consumers,omitempty"`
	Metadata  map[string]string `json:"metadata,omitempty"`
}

// Locality is where an endpoint runs. Empty fields are unknown; Zone without Region is allowed.
type Locality struct {
	Region  string `json:"region,omitempty"`
	Zone    string `json:"zone,omitempty"`
	SubZone string `json:"subZone,omitempty"`
}

// Endpoint is one provider of a service.
type Endpoint struct {
	Address     string            `json:"address"` // IP address, or a host name where the registry holds one
	Port        uint16            `json:"port"`
	Protocol    Protocol          `json:"protocol"`
	Application string            `json:"application,omitempty"` // of the provider
	Weight      *uint32           `json:"weight,omitempty"`      // relative, 0 takes no traffic; nil where the registry has none
	Disabled    bool              `json:"disabled,omitempty"`    // registered, but taken out of service by an operator
	Locality    Locality          `json:"locality,omitzero"`
	Labels      map[string]string `json:"labels,omitempty"`   // what callers may select by: version, tag, environment
	Metadata    map[string]string `json:"metadata,omitempty"` // all else that the registry says of it
	Origins     []Origin          `json:"origins,omitempty"`  // who says so; filled in by the Manager, sorted
}

// Consumer is one user of a service.
type Consumer struct {
	Address     string            `json:"address"`
	Application string            `json:"application,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"`
	Origins     []Origin          `json:"origins,omitempty"` // filled in by the Manager, sorted
}

// Origin names where a fact comes from.
type Origin struct {
	Registry string `json:"registry"`        // the configured name of the registry
	Place    string `json:"place,omitempty"` // the node, data id or file within it
}

// Severity says how bad a Problem is.
type Severity string

// The severities of a Problem.
const (
	SeverityWarning Severity = "warning" // something was repaired or left out, nothing of a service is lost
	SeverityError   Severity = "error"   // an endpoint, a consumer or a service could not be taken over
)

// Problem is a fault in somebody's data, kept and shown to people rather than logged and forgotten.
type Problem struct {
	Severity Severity `json:"severity"`
	Registry string   `json:"registry,omitempty"` // filled in by the Manager
	Place    string   `json:"place"`              // node path, data id, file:line, resource name
	Code     string   `json:"code"`               // stable, CamelCase: MalformedURL, UnknownProtocol, ...
	Message  string   `json:"message"`            // what is wrong and what was done about it
}

// Group is what one place of a registry says. Sent again with the same Source it replaces what was said before; sent
// without services and problems it deletes it. Services in a Group may be partial: one group may hold a service's
// providers and another its consumers.
type Group struct {
	Source   string    `json:"source"` // unique within the registry: a node's path, a data id, a file's name
	Services []Service `json:"services,omitempty"`
	Problems []Problem `json:"problems,omitempty"`
}

// State is how a source is doing.
type State string

// The states of a source.
const (
	StateConnecting State = "connecting" // no complete word yet, in this life or from a saved one
	StateSynced     State = "synced"     // complete and live
	StateStale      State = "stale"      // complete, but its registry cannot be heard at the moment: the last word holds
)

// Source is the state of one registry.
type Source struct {
	Name      string    `json:"name"`
	Kind      string    `json:"kind"` // zookeeper, sofaregistry, file, ...
	State     State     `json:"state"`
	LastWord  time.Time `json:"lastWord,omitzero"`  // when the registry last said anything
	StaleFrom time.Time `json:"staleFrom,omitzero"` // since when it cannot be heard; zero while it can
	Error     string    `json:"error,omitempty"`    // why it cannot be heard
	Restarts  int       `json:"restarts,omitempty"` // how often its discoverer was started again
	Services  int       `json:"services"`
	Endpoints int       `json:"endpoints"`
	Consumers int       `json:"consumers"`
	Problems  int       `json:"problems"`
}

// Snapshot is the merged word of all registries at one moment. It is immutable: whoever holds one may read it without a
// lock and must not change it. Services are sorted by Key, endpoints by address, port and protocol, each once.
type Snapshot struct {
	Version  uint64    `json:"version"` // increases with each snapshot of a Manager
	Time     time.Time `json:"time"`
	Complete bool      `json:"complete"` // every source is synced or stale: nothing is missing that was known
	Services []Service `json:"services"`
	Problems []Problem `json:"problems"`
	Sources  []Source  `json:"sources"`
}
