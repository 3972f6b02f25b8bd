package governance

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/isthmus-mesh/isthmus/adapters"
	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// wrong is one fault of a value; the decoder adds the path.
func wrong(n *yaml.Node, format string, args ...any) error {
	return adapters.Faults{{Line: n.Line, Message: fmt.Sprintf(format, args...)}}
}

// describe names what stands at n for a message.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	return strconv.Quote(clip(n.Value))
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}

// isText tells whether n is a string, for YAML as well as for Kubernetes, which takes no for false.
func isText(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && (n.Tag == "!!str" || n.Tag == "!!timestamp") && !isOldBool(n)
}

// isOldBool tells whether n is one of the words that YAML 1.1 has for true and false.
func isOldBool(n *yaml.Node) bool {
	if n.Kind != yaml.ScalarNode || n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		return false
	}
	switch strings.ToLower(n.Value) {
	case "yes", "no", "on", "off":
		return n.Tag == "!!str"
	}
	return false
}

// Flag is true or false.
type Flag bool

// UnmarshalYAML takes true and false, and what YAML 1.1 has for them.
func (f *Flag) UnmarshalYAML(n *yaml.Node) error {
	var b bool
	if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" && !isOldBool(n) || n.Decode(&b) != nil {
		return wrong(n, "must be true or false, is %s", describe(n))
	}
	*f = Flag(b)
	return nil
}

// Text is a string that must be written as one: a bare 1.0 is a number, of which Kubernetes makes 1.
type Text string

// UnmarshalYAML takes strings.
func (t *Text) UnmarshalYAML(n *yaml.Node) error {
	switch {
	case n.Kind != yaml.ScalarNode:
		return wrong(n, "must be a string, is %s", describe(n))
	case !isText(n):
		return wrong(n, "must be a string: write %q", clip(n.Value))
	}
	*t = Text(n.Value)
	return nil
}

func texts(list []Text) []string {
	if list == nil {
		return nil
	}
	out := make([]string, len(list))
	for i, t := range list {
		out[i] = string(t)
	}
	return out
}

// Count is a whole number from 0 to 4294967295.
type Count uint32

// UnmarshalYAML takes whole numbers.
func (c *Count) UnmarshalYAML(n *yaml.Node) error {
	var v uint32
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" || n.Decode(&v) != nil {
		return wrong(n, "%s is not a whole number from 0 to 4294967295", describe(n))
	}
	*c = Count(v)
	return nil
}

// Duration is a time span of whole milliseconds, written as "1s" or "500ms". Its zero value means the default.
type Duration time.Duration

// MaxDurationBytes bounds how a Duration may be written.
const MaxDurationBytes = 32

// UnmarshalYAML takes time spans of more than nothing.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	v, err := time.ParseDuration(n.Value)
	switch {
	case n.Kind != yaml.ScalarNode || err != nil || !isText(n) || len(n.Value) > MaxDurationBytes:
		return wrong(n, "%s is not a duration such as 500ms or 30s", describe(n))
	case v <= 0 || v%time.Millisecond != 0:
		return wrong(n, "must be more than 0, in whole milliseconds, is %q", clip(n.Value))
	}
	*d = Duration(v)
	return nil
}

// MarshalJSON writes it as people do.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// String returns the shortest form: 1m30s, 2h.
func (d Duration) String() string {
	s := time.Duration(d).String()
	for _, tail := range [][2]string{{"m0s", "m"}, {"h0m", "h"}} {
		if strings.HasSuffix(s, tail[0]) {
			s = strings.TrimSuffix(s, tail[0]) + tail[1]
		}
	}
	return s
}

// millis returns it as the filter has it. A Duration that has been checked fits.
func (d Duration) millis() uint32 {
	return uint32(min(time.Duration(d)/time.Millisecond, math.MaxUint32))
}

// check adds a fault where a duration that is set is out of bounds.
func (d Duration) check(f *adapters.Faults, path string, low, high time.Duration) {
	if d != 0 && (time.Duration(d) < low || time.Duration(d) > high) {
		f.Add(path, "must be from %s to %s, is %s", Duration(low), Duration(high), d)
	}
}

// million is the filter's unit of ratios.
const million = 1_000_000

// Ratio is a part of a whole, written as a number from 0 to 1 (0.25) or in percent ("25%"), exact to a millionth. As the value
// of a field it is more than 0; its zero value means the default.
type Ratio uint32

// UnmarshalYAML takes both forms.
func (r *Ratio) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind != yaml.ScalarNode {
		return wrong(n, "must be a ratio such as 0.25 or 25%%, is %s", describe(n))
	}
	v, err := parseRatio(n.Value)
	if err == nil && isText(n) != strings.HasSuffix(n.Value, "%") {
		err = fmt.Errorf("a string must end in %%: write %s, or %q", strings.TrimSpace(n.Value), n.Value+"%")
	}
	if err != nil {
		return wrong(n, "%v", err)
	}
	*r = v
	return nil
}

// MarshalJSON writes a number.
func (r Ratio) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, float64(r)/million, 'f', -1, 64), nil
}

// parseRatio reads either form.
func parseRatio(s string) (Ratio, error) {
	digits, percent := strings.CutSuffix(s, "%")
	v, err := strconv.ParseFloat(digits, 64)
	scale := float64(million)
	if percent {
		scale /= 100
	}
	if err != nil || strings.ContainsAny(digits, "xXpP_") || math.IsNaN(v) || percent && strings.Trim(digits, "0123456789.") != "" {
		return 0, fmt.Errorf("%q is not a ratio such as 0.25 or 25%%", clip(s))
	}
	n := math.Round(v * scale)
	switch {
	case v < 0 || v*scale > million:
		return 0, fmt.Errorf("%q is not from 0 to 1, or to 100%%", clip(s))
	case n == 0:
		return 0, fmt.Errorf("%q is less than a millionth; to switch a rule off write enabled: false", clip(s))
	case math.Abs(v*scale-n) > 1e-6:
		return 0, fmt.Errorf("%q is finer than a millionth", clip(s))
	}
	return Ratio(n), nil
}

// Amount is a number, a ratio or a time span: which one is said by another field. It keeps what was written.
type Amount struct {
	text   string
	quoted bool // it was a string
}

// UnmarshalYAML takes numbers and strings.
func (a *Amount) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind != yaml.ScalarNode || !isText(n) && n.Tag != "!!int" && n.Tag != "!!float" {
		return wrong(n, "must be a number, a ratio or a duration, is %s", describe(n))
	}
	if n.Value == "" {
		return wrong(n, "is empty")
	}
	*a = Amount{n.Value, isText(n)}
	return nil
}

// IsZero tells whether there is none.
func (a Amount) IsZero() bool { return a.text == "" }

// String returns what was written.
func (a Amount) String() string { return a.text }

// MarshalJSON writes what was read: a number as a number.
func (a Amount) MarshalJSON() ([]byte, error) {
	if !a.quoted && json.Valid([]byte(a.text)) {
		return []byte(a.text), nil
	}
	return json.Marshal(a.text)
}

// node returns a node of the same kind, for the decoders of what it may be.
func (a Amount) node() *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Value: a.text}
	if a.quoted {
		n.Tag = "!!str"
		return n
	}
	n.Tag = n.ShortTag()
	return n
}

// Match is written as "*", as a string that is to be equal, or as one of {exact: …}, {prefix: …}, {regex: …}, {in: […]} and
// {notIn: […]}. The zero value matches everything, as "*" does.
type Match plugin.Match

// matchForms is how a Match is written in full.
type matchForms struct {
	Exact  Text   `yaml:"exact"`
	Prefix Text   `yaml:"prefix"`
	Regex  Text   `yaml:"regex"`
	In     []Text `yaml:"in"`
	NotIn  []Text `yaml:"notIn"`
}

// UnmarshalYAML reads one of the forms.
func (m *Match) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		var t Text
		if err := t.UnmarshalYAML(n); err != nil {
			return err
		}
		switch t {
		case "*":
		case "":
			return wrong(n, `is empty; "*" is everything`)
		default:
			m.Exact = string(t)
		}
		return nil
	}
	var forms matchForms
	if err := adapters.SettingsOf(n).Decode(&forms); err != nil {
		return err
	}
	set := 0
	for _, is := range []bool{forms.Exact != "", forms.Prefix != "", forms.Regex != "", len(forms.In) > 0, len(forms.NotIn) > 0} {
		if is {
			set++
		}
	}
	if set != 1 || len(n.Content) != 2 {
		return wrong(n, "give one of exact, prefix, regex, in and notIn, not empty")
	}
	m.Exact, m.Prefix, m.Regex, m.In, m.NotIn = string(forms.Exact), string(forms.Prefix), string(forms.Regex), texts(forms.In), texts(forms.NotIn)
	return nil
}

// MarshalJSON writes the shortest form.
func (m Match) MarshalJSON() ([]byte, error) {
	switch {
	case m.IsZero():
		return []byte(`"*"`), nil
	case m.Exact != "" && m.Exact != "*":
		return json.Marshal(m.Exact)
	}
	return json.Marshal(plugin.Match(m))
}

// IsZero tells whether everything matches.
func (m Match) IsZero() bool { return plugin.Match(m).IsZero() }

// String returns it as people read it.
func (m Match) String() string {
	switch {
	case m.Exact != "":
		return m.Exact
	case m.Prefix != "":
		return m.Prefix + "…"
	case m.Regex != "":
		return "/" + m.Regex + "/"
	case len(m.In) > 0:
		return "one of " + strings.Join(m.In, ", ")
	case len(m.NotIn) > 0:
		return "none of " + strings.Join(m.NotIn, ", ")
	}
	return cmp.Or(m.Exact, "*")
}

// hostName reports whether s can be a host as Istio names one: labels of letters, digits and hyphens.
func hostName(s string) bool {
	for label := range strings.SplitSeq(s, ".") {
		if len(label) == 0 || len(label) > 63 || strings.ContainsFunc(label, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-')
		}) {
			return false
		}
	}
	return true
}
