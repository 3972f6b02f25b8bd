// Package store holds what mcp-server knows at this moment, for those who show it.
package store

import (
	"bytes"
	"encoding/json"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
)

// Stage says where a Problem was found.
type Stage string

// The stages.
const (
	StageRegistry  Stage = "registry"  // in a registry's data
	StageTranslate Stage = "translate" // when it was rendered for the mesh
	StageRules     Stage = "rules"     // in governance rules
	StageConfig    Stage = "config"    // in mcp-server's configuration
	StageSidecar   Stage = "sidecar"   // by sidecars, in their traffic
)

// Problem is a model.Problem with its stage.
type Problem struct {
	Stage Stage
	model.Problem
}

// Host is how a service, or the part of it that speaks one protocol, appears in the mesh.
type Host struct {
	Protocol model.Protocol
	Host     string
	Address  string // virtual; "" where it has none
	Port     uint16 // at Address
	Carried  int    // endpoints that the mesh calls
	LeftOut  int    // endpoints that it does not: disabled, of weight 0, or not to be rendered
}

// Rule is a governance rule that is in force.
type Rule struct {
	Kind      string
	Namespace string
	Name      string
	File      string
	Line      int
	Enabled   bool
	Kept      bool // its file holds a newer version that is faulty
	Spec      json.RawMessage
	Revision  string // a hash of the rule as it is written
	// Selects tells whether the rule is for workloads of an application, "" being one that is not known.
	Selects func(application string) bool
	// Explain says what the rule does beside all others, as JSON of governance.Explanation.
	Explain func() json.RawMessage
	// Generations are those of the filter's configuration that hold the rule as it is now, the latest last, at most maxGenerations.
	Generations []string
	// Routes are what a RouteRule became, by host.
	Routes []Route
}

// maxGenerations bounds Rule.Generations.
const maxGenerations = 64

// Follow takes over what before, the state until now, knows of the rules and lifted services that are the same in s.
func (s *State) Follow(before *State) {
	type id struct{ kind, namespace, name string }
	known := make(map[id]*Rule, len(before.Rules))
	for i := range before.Rules {
		r := &before.Rules[i]
		known[id{r.Kind, r.Namespace, r.Name}] = r
	}
	for i := range s.Rules {
		r := &s.Rules[i]
		r.Generations = nil
		if old := known[id{r.Kind, r.Namespace, r.Name}]; old != nil && old.Enabled == r.Enabled && bytes.Equal(old.Spec, r.Spec) {
			r.Generations = old.Generations
		}
		if r.Enabled {
			r.Generations = held(r.Generations, s.Generation)
		}
	}
	followLifts(s.Lifts, before.Lifts, s.Generation)
}

// State is what is known at one moment. It is immutable.
type State struct {
	Snapshot   *model.Snapshot      // never nil
	Hosts      map[model.Key][]Host // by service; the service's own host first
	Lifts      map[model.Key]*Lift  // of the services that can be lifted
	Problems   []Problem            // of all stages
	Rules      []Rule               // sorted by kind, namespace and name
	Generation string               // of the filter's configuration; "" where there is no filter
	Set        resource.Set         // what istiod is served
	Served     time.Time            // since when Set is served; zero before the first complete one
}

// Store holds the latest State. The zero value holds an empty one. All methods may be called from any goroutine.
type Store struct{ latest atomic.Pointer[State] }

// empty is what is known before anything is.
var empty = &State{Snapshot: &model.Snapshot{}}

// Load returns the latest State.
func (s *Store) Load() *State {
	if latest := s.latest.Load(); latest != nil {
		return latest
	}
	return empty
}

// Publish makes state the latest.
func (s *Store) Publish(state *State) {
	if state.Snapshot == nil {
		panic("store: a State without a snapshot")
	}
	s.latest.Store(state)
}
