// Package match compares what is known of a call with what rules say: strings, regular expressions, addresses. Nothing here
// allocates once it is compiled.
package match

// Strings selects strings. The zero value selects all, also absent ones (nil). At most one field is set.
type Strings struct {
	Exact   string
	Prefix  string
	Pattern *Pattern
	In      []string
	NotIn   []string
}

// Matches tells whether s is selected.
func (m *Strings) Matches(s []byte) bool {
	switch {
	case m.Exact != "":
		return string(s) == m.Exact
	case m.Prefix != "":
		return len(s) >= len(m.Prefix) && string(s[:len(m.Prefix)]) == m.Prefix
	case m.Pattern != nil:
		return m.Pattern.Match(s)
	case len(m.In) > 0:
		return s != nil && contains(m.In, s)
	case len(m.NotIn) > 0:
		return s == nil || !contains(m.NotIn, s)
	default:
		return true
	}
}

func contains(list []string, s []byte) bool {
	for _, e := range list {
		if string(s) == e {
			return true
		}
	}
	return false
}
