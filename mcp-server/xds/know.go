package xds

// Know tells whether each sidecar that has asked for any group of a host's endpoints has been told of all of these, by the names of subsets.
func (s *Server) Know(host string, subsets []string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	told := map[string]map[string]bool{} // by sidecar
	for p, streams := range s.subs[host] {
		n, ok := ParseClusterName(p.name)
		if !ok {
			continue
		}
		for st := range streams {
			st.mu.Lock()
			version := st.names[p.name]
			st.mu.Unlock()
			if told[st.remote] == nil {
				told[st.remote] = map[string]bool{}
			}
			before, seen := told[st.remote][n.Subset] // at another port
			told[st.remote][n.Subset] = version != "" && version != absent && (before || !seen)
		}
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
