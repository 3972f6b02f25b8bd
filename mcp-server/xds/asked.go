package xds

import (
	"maps"
	"slices"
)

// Asked returns which subsets of lifted services sidecars ask for: by host and node, the subsets, sorted; "" is the whole service. A
// cluster has a subset's name only while a DestinationRule that has the subset is in force in that sidecar.
func (s *Server) Asked() map[string]map[string][]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	type asker struct{ host, node string }
	subsets := map[asker]map[string]bool{}
	for host, places := range s.subs {
		for p, streams := range places {
			n, ok := ParseClusterName(p.name)
			if !ok {
				continue
			}
			for st := range streams {
				st.mu.Lock()
				k := asker{host, st.node}
				st.mu.Unlock()
				if subsets[k] == nil {
					subsets[k] = map[string]bool{}
				}
				subsets[k][n.Subset] = true
			}
		}
	}
	out := map[string]map[string][]string{}
	for k, set := range subsets {
		if out[k.host] == nil {
			out[k.host] = map[string][]string{}
		}
		out[k.host][k.node] = slices.Sorted(maps.Keys(set))
	}
	return out
}
