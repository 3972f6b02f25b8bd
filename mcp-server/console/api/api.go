// Package api defines what the JSON API of mcp-server says: the one place for its types, used by the server and by clients.
package api

import (
	"encoding/json"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
	"github.com/isthmus-mesh/isthmus/mcp-server/rollout"
	"github.com/isthmus-mesh/isthmus/mcp-server/telemetry"
)

// Service is one service in a list.
type Service struct {
	model.Key
	ID           string           `json:"id"` // framework/interface[:version[:group]]: what the path of one service takes
	Hosts        []Host           `json:"hosts,omitempty"`
	Protocols    []model.Protocol `json:"protocols"`    // of its providers; sorted
	Applications []string         `json:"applications"` // of its providers; sorted
	Registries   []string         `json:"registries"`   // that hold it; sorted
	Providers    int              `json:"providers"`
	Active       int              `json:"active"` // providers that the mesh calls
	Consumers    int              `json:"consumers"`
	Lift         *Lift            `json:"lift,omitempty"` // absent where its calls cannot be lifted
}

// Lift is how far the calls of a service are lifted. It is only known of the sidecars that mcp-server reads the metrics of, of those whose
// address is a consumer's.
type Lift struct {
	Mode     string            `json:"mode"`              // of the service: lift, dialled, passthrough
	Callers  map[string]string `json:"callers,omitempty"` // of calling applications; "*" is all others. The more careful one holds
	Lower    string            `json:"lower"`             // caller, provider: whose sidecar makes RPC of it again
	Lifted   int               `json:"lifted"`            // sidecars of consumers that lift and route its calls
	Enforced int               `json:"enforced"`          // sidecars of consumers that do what they should, whatever that is
	Of       int               `json:"of"`
	Since    time.Time         `json:"since,omitzero"` // when the last of those that do began to
	Sidecars []LiftSidecar     `json:"sidecars,omitempty"`
}

// LiftSidecar is how far one sidecar is.
type LiftSidecar struct {
	RuleSidecar
	Mode string `json:"mode"` // that it should have
}

// Host is how a service appears in the mesh.
type Host struct {
	Host     string         `json:"host"`
	Address  string         `json:"address,omitempty"` // virtual
	Port     uint16         `json:"port"`
	Protocol model.Protocol `json:"protocol"`
}

// ServiceList is a page of services, sorted by framework, interface, version and group.
type ServiceList struct {
	Items    []Service `json:"items"`
	Total    int       `json:"total"`              // that the filter selects, on all pages
	Continue string    `json:"continue,omitempty"` // the query parameter that leads to the next page; "" on the last one
	Version  uint64    `json:"version"`            // of the snapshot
}

// ServiceDetail is one service with everything that is known of it.
type ServiceDetail struct {
	Service
	Methods      []string          `json:"methods,omitempty"`
	Metadata     map[string]string `json:"metadata,omitempty"`
	ProviderList []model.Endpoint  `json:"providerList"`
	ConsumerList []model.Consumer  `json:"consumerList"`
}

// ProviderList are the providers of one service.
type ProviderList struct {
	Items []model.Endpoint `json:"items"`
}

// ConsumerList are the consumers of one service.
type ConsumerList struct {
	Items []model.Consumer `json:"items"`
}

// Problem is a fault in somebody's data.
type Problem struct {
	Stage string `json:"stage"` // registry, translate, rules, config, sidecar
	model.Problem
}

// ProblemList are all problems that a filter selects.
type ProblemList struct {
	Items  []Problem `json:"items"`
	Errors int       `json:"errors"` // how many of them are of severity error
}

// Source is the state of a registry.
type Source struct {
	model.Source
	AgeSeconds float64 `json:"ageSeconds,omitempty"` // since its last word; absent where it has said nothing
}

// SourceList are the registries, in configured order.
type SourceList struct {
	Items    []Source `json:"items"`
	Complete bool     `json:"complete"` // each of them has said everything, now or in a saved word
}

// Rule is a governance rule that is in force.
type Rule struct {
	Kind      string          `json:"kind"`
	Namespace string          `json:"namespace"`
	Name      string          `json:"name"`
	Place     string          `json:"place"` // file:line
	Enabled   bool            `json:"enabled"`
	Kept      bool            `json:"kept,omitempty"` // its file holds a newer version that is faulty: see the problems
	Revision  string          `json:"revision"`       // of the rule as it is written: what If-Match takes
	Effective Effective       `json:"effective"`
	Spec      json.RawMessage `json:"spec"`
}

// Effective is where a rule is really enforced, and what it did. It is only known of the sidecars that mcp-server reads the metrics of.
type Effective struct {
	State    EffectiveState        `json:"state"`
	Enforced int                   `json:"enforced"`       // sidecars that run the rule as it is now
	Of       int                   `json:"of"`             // sidecars that its target selects
	Since    time.Time             `json:"since,omitzero"` // when the last of those that enforce it began to
	Totals   map[string]float64    `json:"totals"`         // calls by what the rule did: admit, reject, would_reject; since the Envoys started
	Rates    map[string]float64    `json:"rates"`          // the same a second, over the last seconds
	Sidecars []RuleSidecar         `json:"sidecars,omitempty"`
	States   []telemetry.RuleState `json:"states,omitempty"` // tokens, calls under way, circuits, by sidecar
	Routes   []RoutedHost          `json:"routes,omitempty"` // of a RouteRule: what it became
}

// RoutedHost is what a RouteRule became for one host: Istio's own resources, and where they are in force, as far as it shows in what
// sidecars ask endpoint discovery for.
type RoutedHost struct {
	Host            string   `json:"host"`
	VirtualService  string   `json:"virtualService"`            // namespace/name
	DestinationRule string   `json:"destinationRule,omitempty"` // the same
	Dialled         string   `json:"dialled,omitempty"`         // VirtualService for the calls whose authority is an endpoint's address, where that is another one
	Enforced        int      `json:"enforced"`                  // sidecars that know all groups of the rule
	Of              int      `json:"of"`                        // that know the host; 0 where the rule has no groups or the host is not lifted
	Others          []string `json:"others,omitempty"`          // subsets that sidecars know from somebody else's DestinationRule
}

// EffectiveState says in one word how far a rule is enforced.
type EffectiveState string

// How far a rule is enforced.
const (
	EffectiveEnforced EffectiveState = "enforced" // on all sidecars that its target selects
	EffectivePartial  EffectiveState = "partial"  // on some of them
	EffectivePending  EffectiveState = "pending"  // on none yet
	EffectiveNowhere  EffectiveState = "nowhere"  // its target selects no sidecar that is known
	EffectiveDisabled EffectiveState = "disabled" // it is switched off
	EffectiveServed   EffectiveState = "served"   // istiod has it, and nothing tells how far it went: of RouteRules
	EffectiveNoFilter EffectiveState = "noFilter" // no filter is configured that would enforce it
)

// RuleSidecar is how far one sidecar is with a rule.
type RuleSidecar struct {
	Name        string       `json:"name"`
	Application string       `json:"application,omitempty"` // by its address in the registries; "" where that is not known
	State       SidecarState `json:"state"`
	Since       time.Time    `json:"since,omitzero"`       // of state enforced
	Generation  string       `json:"generation,omitempty"` // that it runs
	Error       string       `json:"error,omitempty"`      // why it cannot be read
}

// SidecarState says how far one sidecar is with a rule.
type SidecarState string

// How far a sidecar is.
const (
	SidecarEnforced    SidecarState = "enforced"    // it runs a configuration that holds the rule as it is now
	SidecarPending     SidecarState = "pending"     // it runs another one
	SidecarRejected    SidecarState = "rejected"    // it has refused the latest and runs another one
	SidecarUnreachable SidecarState = "unreachable" // its metrics cannot be read
	SidecarNoFilter    SidecarState = "noFilter"    // it shows no filter
)

// RuleList are the rules in force, sorted by kind, namespace and name.
type RuleList struct {
	Items      []Rule `json:"items"`
	Generation string `json:"generation,omitempty"` // of the filter's configuration that holds them; "" where no filter is configured
}

// RuleDetail is one rule with all that is known of it.
type RuleDetail struct {
	Rule
	Explanation governance.Explanation `json:"explanation"`
}

// Rollout is a release of a new version in steps.
type Rollout = rollout.View

// RolloutList are the releases that there are, sorted by namespace and name.
type RolloutList struct {
	Items []Rollout `json:"items"`
}

// Istiod is a connected client of the MCP server.
type Istiod struct {
	Node   string       `json:"node"`
	Remote string       `json:"remote"`
	Since  time.Time    `json:"since"`
	Types  []IstiodType `json:"types"`
}

// IstiodType is how far it is with one type of resources.
type IstiodType struct {
	Type      string `json:"type"`
	Resources int    `json:"resources"`
	Synced    bool   `json:"synced"`             // it has acknowledged what was sent last
	Rejected  string `json:"rejected,omitempty"` // why it rejected what was sent last
}

// IstiodList are the connected istiods.
type IstiodList struct {
	Items []Istiod `json:"items"`
}

// Version tells which program answers and what it serves.
type Version struct {
	Version    string    `json:"version"`
	GoVersion  string    `json:"goVersion"`
	Revision   string    `json:"revision,omitempty"` // of the source
	Started    time.Time `json:"started"`
	Ready      bool      `json:"ready"`
	Snapshot   uint64    `json:"snapshot"`             // its version; 0 before the first
	Set        string    `json:"set,omitempty"`        // version of what istiod is served
	Served     time.Time `json:"served,omitzero"`      // since when
	Resources  int       `json:"resources"`            // in it
	Services   int       `json:"services"`             // in the snapshot
	Problems   int       `json:"problems"`             // of all stages
	Istiods    int       `json:"istiods"`              // connected
	Rules      int       `json:"rules"`                // in force
	Filter     string    `json:"filter,omitempty"`     // where sidecars find the filter
	Generation string    `json:"generation,omitempty"` // of its configuration
}

// Traffic is what the filters have metered lately.
type Traffic = telemetry.Report

// Error is the body of every answer that is no success.
type Error struct {
	Error ErrorDetail `json:"error"`
}

// ErrorDetail says what went wrong.
type ErrorDetail struct {
	Code    int    `json:"code"`   // HTTP status
	Reason  string `json:"reason"` // stable, CamelCase: NotFound, BadRequest, …
	Message string `json:"message"`
}
