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

// label is one label that is said of an address.
type label struct{ key, value string }

// labelsOf yields what an endpoint says of its address.
func labelsOf(e *model.Endpoint, yield func(label)) {
	for key, value := range e.Labels {
		if key != labelApp || e.Application == "" {
			yield(label{key, value})
		}
	}
	if e.Application != "" {
		yield(label{labelApp, e.Application})
	}
}

// settle makes the labels of an address of what all endpoints of all services there say, and how often. istiod takes a sidecar's labels
// from whichever endpoint with the sidecar's address it finds first (serviceentry.Controller.GetProxyWorkloadLabels), so one that
// lacked a label would detach everything that selects by it: all endpoints of an address carry the same labels, the union of what is
// said of them. Where two contradict each other the more frequent value holds, or else the lesser. Nothing said is nil.
func settle(address string, said map[label]int) (labels map[string]string, problems problems) {
	if len(said) == 0 {
		return nil, nil
	}
	all := slices.SortedFunc(maps.Keys(said), func(a, b label) int {
		return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(said[b], said[a]), cmp.Compare(a.value, b.value))
	})
	labels = make(map[string]string, len(all))
	for len(all) > 0 {
		key, value := all[0].key, all[0].value
		n := 1
		for n < len(all) && all[n].key == key {
			n++
		}
		if n > 1 {
			problems.add(model.SeverityWarning, address, "LabelConflict",
				"the services of this address disagree on its label %s: %s; all of its endpoints carry %q, since a sidecar has one set of labels", clip(key), quoted(all[:n]), value)
		}
		all = all[n:]
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
	return labels, problems
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

// quoted lists the values of labels for a message, a few of them.
func quoted(labels []label) string {
	const show = 4
	var b strings.Builder
	for i, l := range labels {
		if i == show {
			fmt.Fprintf(&b, " and %d more", len(labels)-show)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q", clip(l.value))
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
