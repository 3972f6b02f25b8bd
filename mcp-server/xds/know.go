package xds

// Know tells whether each sidecar that has asked for any group of a host's endpoints has been told of all of these, by the names of subsets.
func (s *Server) Know(host string, subsets []string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	told := map[string]map[string]bool{} // by sidecar
	for st := range s.streams {
		st.mu.Lock()
		for name, version := range st.names {
			n, ok := ParseClusterName(name)
			if !ok || n.Host != host {
				continue
			}
			if told[st.remote] == nil {
				told[st.remote] = map[string]bool{}
			}
			before, seen := told[st.remote][n.Subset] // at another port
			told[st.remote][n.Subset] = version != "" && version != absent && (before || !seen)
		}
		st.mu.Unlock()
	}
	for _, have := range told {
		for _, subset := range subsets {
			if !have[subset] {
				return false
			}
		}
	}
	return true
}
