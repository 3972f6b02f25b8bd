package translate

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/adapters/model"
)

// labelApp names a workload's application, the label that Istio's users select by.
const labelApp = "app"

// The bounds of a label (Kubernetes), in bytes, and how many labels one endpoint keeps.
const (
	maxLabelName   = 63
	maxLabelPrefix = 253
	maxLabelValue  = 63
	maxLabels      = 64
)

// labelsByAddress computes the labels of each address over all services. istiod takes a sidecar's labels from whichever endpoint
// with the sidecar's address it finds first (serviceentry.Controller.GetProxyWorkloadLabels), so one that lacked a label would
// detach everything that selects by it: all endpoints of an address carry the same labels, the union of what is said of them.
// Where two contradict each other the more frequent value holds, or else the lesser.
func labelsByAddress(services []model.Service, problems *problems) map[string]map[string]string {
	said := map[string]map[string]map[string]int{} // address, key, value: how often
	say := func(address, key, value string) {
		keys := said[address]
		if keys == nil {
			keys = map[string]map[string]int{}
			said[address] = keys
		}
		if keys[key] == nil {
			keys[key] = map[string]int{}
		}
		keys[key][value]++
	}
	for i := range services {
		for j := range services[i].Endpoints {
			e := &services[i].Endpoints[j]
			for key, value := range e.Labels {
				if key == labelApp && e.Application != "" {
					continue
				}
				say(e.Address, key, value)
			}
			if e.Application != "" {
				say(e.Address, labelApp, e.Application)
			}
		}
	}
	out := make(map[string]map[string]string, len(said))
	for _, address := range slices.Sorted(maps.Keys(said)) {
		out[address] = settle(address, said[address], problems)
	}
	return out
}

func settle(address string, said map[string]map[string]int, problems *problems) map[string]string {
	labels := map[string]string{}
	for _, key := range slices.Sorted(maps.Keys(said)) {
		values := slices.SortedFunc(maps.Keys(said[key]), func(a, b string) int {
			return cmp.Or(said[key][b]-said[key][a], cmp.Compare(a, b))
		})
		value := values[0]
		if len(values) > 1 {
			problems.add(model.SeverityWarning, address, "LabelConflict",
				"the services of this address disagree on its label %s: %s; all of its endpoints carry %q, since a sidecar has one set of labels", clip(key), quoted(values), value)
		}
		validKey, keyKept := labelKey(key)
		validValue, valueKept := labelValue(value)
		if !keyKept || !valueKept {
			problems.add(model.SeverityWarning, address, "InvalidLabel", "%s=%s is no label in Istio; it is carried as %s=%s", clip(key), clip(value), validKey, validValue)
		}
		if _, ok := labels[validKey]; ok {
			continue // unlikely: two keys that differ only in what is not allowed; the lesser one stays
		}
		if len(labels) == maxLabels {
			problems.add(model.SeverityWarning, address, "TooManyLabels", "it has more than %d labels; %s and those after it are left out", maxLabels, clip(key))
			break
		}
		labels[validKey] = validValue
	}
	return labels
}

// labelKey makes a valid key of a label, and tells whether it was one.
func labelKey(key string) (string, bool) {
	prefix, name, ok := strings.Cut(key, "/")
	if !ok {
		prefix, name = "", key
	}
	if ok && !validPrefix(prefix) {
		prefix, name = "", key // the slash becomes a dash
	}
	valid, kept := word(name, maxLabelName)
	if valid == "" {
		valid, kept = fingerprint(key), false
	}
	if prefix != "" {
		valid = prefix + "/" + valid
	}
	return valid, kept && valid == key
}

// labelValue makes a valid value of a label, and tells whether it was one. Other values stay told apart, by a hash at the end.
func labelValue(value string) (string, bool) { return word(value, maxLabelValue) }

// word keeps what is valid in the name and the value of a label: letters, digits, '-', '_' and '.', a letter or digit at both ends.
func word(s string, limit int) (string, bool) {
	alnum := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' }
	out := []byte(s)
	for i, c := range out {
		if !alnum(c) && c != '-' && c != '_' && c != '.' {
			out[i] = '-'
		}
	}
	valid := strings.Trim(string(out), "-_.")
	if len(valid) <= limit && valid == s {
		return s, true
	}
	mark := fingerprint(s)
	valid = strings.TrimRight(valid[:min(len(valid), limit-len(mark)-1)], "-_.")
	if valid == "" {
		return mark, false
	}
	return valid + "-" + mark, false
}

// fingerprint tells strings apart that look the same once what is not allowed is gone.
func fingerprint(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "x" + hex.EncodeToString(sum[:4])
}

func validPrefix(s string) bool {
	if len(s) == 0 || len(s) > maxLabelPrefix {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if !validLabel(label) {
			return false
		}
	}
	return true
}

// validLabel tells whether s is a lower-case DNS label.
func validLabel(s string) bool {
	if len(s) == 0 || len(s) > maxLabel || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// quoted lists values for a message, a few of them.
func quoted(values []string) string {
	const show = 4
	var b strings.Builder
	for i, v := range values {
		if i == show {
			fmt.Fprintf(&b, " and %d more", len(values)-show)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q", clip(v))
	}
	return b.String()
}

// clip bounds what a message quotes.
func clip(s string) string {
	const limit = 120
	if len(s) > limit {
		s = s[:limit] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}
