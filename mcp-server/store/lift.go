package store

import (
	"cmp"
	"maps"
	"slices"

	"github.com/isthmus-mesh/isthmus/adapters/model"
)

// LiftModes are what may become of the calls of a lifted service, the more careful ones last; see spec.mesh.lift.
var LiftModes = []string{"lift", "dialled", "passthrough"}

// Lift is what becomes of a service's calls that can be lifted.
type Lift struct {
	Mode    string            // one of LiftModes
	Callers map[string]string // the modes of calling applications; "*" is all others. The more careful one holds
	Lower   string            // caller or provider: whose sidecar makes RPC of it again
	// Generations are those of the filter's configuration that hold it as it is now, the latest last, at most maxGenerations.
	Generations []string
}

// At is the mode of calls that workloads of an application make.
func (l *Lift) At(application string) string {
	caller, ok := l.Callers[application]
	if !ok {
		caller = cmp.Or(l.Callers["*"], LiftModes[0])
	}
	return LiftModes[max(slices.Index(LiftModes, l.Mode), slices.Index(LiftModes, caller))]
}

// followLifts takes over what before knows of the services that are lifted in the same way now.
func followLifts(now, before map[model.Key]*Lift, generation string) {
	for key, l := range now {
		l.Generations = nil
		if old := before[key]; old != nil && old.Mode == l.Mode && old.Lower == l.Lower && maps.Equal(old.Callers, l.Callers) {
			l.Generations = old.Generations
		}
		l.Generations = held(l.Generations, generation)
	}
}

// held adds a generation to those that hold something; it changes no list that somebody else may read.
func held(generations []string, latest string) []string {
	if n := len(generations); latest == "" || n > 0 && generations[n-1] == latest {
		return generations
	}
	generations = append(slices.Clone(generations), latest)
	return generations[max(0, len(generations)-maxGenerations):]
}

// Route is what a RouteRule became for one host: resources of Istio.
type Route struct {
	Host            string
	VirtualService  string   // namespace/name
	DestinationRule string   // the same, "" where the rule has no groups
	Subsets         []string // of it, that sidecars must ask for if it is in force; sorted. None where endpoints are istiod's
	Dialled         string   // VirtualService for the calls whose authority is an endpoint's address, where that is another one
}
