package governance

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/isthmus-mesh/isthmus/adapters"
)

// The bounds of a reply. What it becomes is bounded by the filter.
const (
	maxReplyDepth  = 32
	maxReplyValues = 10_000
	maxHints       = 256
)

// Reply is what a call returns, as JSON, from which its value is made in each serialization that Dubbo and SOFARPC have it in: Hessian 2.0 and JSONB for
// Dubbo, SOFARPC's older Hessian for Bolt.
type Reply struct {
	// The value, any JSON; null where it is left out. An object becomes a map, an array a list, a whole number an int or, if it does not fit, a long, any other number a double.
	JSON JSON `yaml:"json" json:"json,omitzero" schema:"any"`
	// What Java takes parts of the value for, by JSON pointer: "" is the whole value, "/items/*/price" the prices of all items. The type of an object is
	// a class, that of a string an enum's class, byte[] (base64), java.util.Date (RFC 3339, or milliseconds as a number) or java.math.BigDecimal, that of
	// a number int, long, double or the latter two, that of an array a class of java.util or an array such as demo.Item[].
	Types map[string]Text `yaml:"types" json:"types,omitempty" schema:"max=512"`
}

// JSON is a JSON value. Its zero value is null.
type JSON struct{ value *value }

// IsZero tells whether it is null.
func (j JSON) IsZero() bool { return j.value == nil }

type valueKind uint8

const (
	kindNull valueKind = iota
	kindBool
	kindInt
	kindDouble
	kindString
	kindArray
	kindObject
	// Kinds that types make of others.
	kindLong
	kindDate   // integer: milliseconds since 1970
	kindBinary // text: the bytes
	kindTyped  // an object of class, whose fields are there; a list of class where it is a list
)

// value is a node of a JSON value, later with its Java type.
type value struct {
	kind    valueKind
	integer int64 // of bool (0, 1), int, long and date
	double  float64
	text    string
	items   []value  // of arrays, and values of objects
	keys    []string // of objects; sorted, as wide as items
	class   string   // "" where the type is JSON's own
	scalar  bool     // an object of one field that JSON writes as that: a decimal, a constant of an enum
}

// UnmarshalYAML takes what JSON can say.
func (j *JSON) UnmarshalYAML(n *yaml.Node) error {
	r := jsonReader{}
	v := new(value)
	*v = r.read(n, "", 0)
	j.value = v
	return r.faults.Err()
}

// jsonReader turns nodes into values.
type jsonReader struct {
	faults adapters.Faults
	values int
}

func (r *jsonReader) fault(n *yaml.Node, path, format string, args ...any) {
	if len(r.faults) < 100 {
		r.faults = append(r.faults, adapters.Fault{Path: path, Line: n.Line, Message: fmt.Sprintf(format, args...)})
	}
}

func (r *jsonReader) read(n *yaml.Node, path string, depth int) (v value) {
	if r.values++; r.values == maxReplyValues+1 {
		r.fault(n, path, "more than %d values", maxReplyValues)
	}
	if r.values > maxReplyValues {
		return v
	}
	if depth > maxReplyDepth {
		r.fault(n, path, "nested deeper than %d levels", maxReplyDepth)
		return v
	}
	switch {
	case n.Kind == yaml.SequenceNode:
		v.kind = kindArray
		for i, item := range n.Content {
			v.items = append(v.items, r.read(item, fmt.Sprintf("%s[%d]", path, i), depth+1))
		}
	case n.Kind == yaml.MappingNode:
		v.kind = kindObject
		type field struct {
			key   string
			value value
		}
		var fields []field
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			at := strings.TrimPrefix(path+"."+key.Value, ".")
			if !isText(key) {
				r.fault(key, at, "a name must be a string: write %q", clip(key.Value))
			}
			fields = append(fields, field{key.Value, r.read(n.Content[i+1], at, depth+1)})
		}
		// In order: where the rule comes from has none, and the same rule must become the same bytes.
		slices.SortStableFunc(fields, func(a, b field) int { return strings.Compare(a.key, b.key) })
		for i, f := range fields {
			if i > 0 && f.key == fields[i-1].key {
				r.fault(n, strings.TrimPrefix(path+"."+f.key, "."), "is there twice")
			}
			v.keys, v.items = append(v.keys, f.key), append(v.items, f.value)
		}
	case n.Kind == yaml.AliasNode:
		r.fault(n, path, "YAML aliases are not supported")
	case isText(n):
		v.kind, v.text = kindString, n.Value
	case isOldBool(n):
		r.fault(n, path, "write %q for the word, or true or false", n.Value)
	case n.Tag == "!!null":
	case n.Tag == "!!bool":
		var b bool
		if n.Decode(&b) != nil {
			r.fault(n, path, "%s is not true or false", describe(n))
		}
		v.kind = kindBool
		if b {
			v.integer = 1
		}
	case n.Tag == "!!int":
		if n.Decode(&v.integer) != nil {
			r.fault(n, path, "%s does not fit into 64 bits; make it a string, with the type java.math.BigDecimal", clip(n.Value))
		}
		v.kind = kindInt
		if v.integer != int64(int32(v.integer)) {
			v.kind = kindLong
		}
	case n.Tag == "!!float":
		if n.Decode(&v.double) != nil || math.IsNaN(v.double) || math.IsInf(v.double, 0) {
			r.fault(n, path, "%s is no number of JSON", clip(n.Value))
		}
		v.kind = kindDouble
	default:
		r.fault(n, path, "%s has the type %s, which JSON does not have", describe(n), n.Tag)
	}
	return v
}

// MarshalJSON writes the value.
func (j JSON) MarshalJSON() ([]byte, error) {
	if j.value == nil {
		return []byte("null"), nil
	}
	return j.value.appendJSON(nil), nil
}

func (v *value) appendJSON(b []byte) []byte {
	text := func(s string) []byte {
		t, _ := json.Marshal(s) // strings always can
		return t
	}
	switch v.kind {
	case kindBool:
		return strconv.AppendBool(b, v.integer != 0)
	case kindInt, kindLong:
		return strconv.AppendInt(b, v.integer, 10)
	case kindDouble:
		s := strconv.FormatFloat(v.double, 'g', -1, 64)
		if !strings.ContainsAny(s, ".e") {
			s += ".0" // or it would be read as an int
		}
		return append(b, s...)
	case kindString:
		return append(b, text(v.text)...)
	case kindArray:
		b = append(b, '[')
		for i := range v.items {
			if i > 0 {
				b = append(b, ',')
			}
			b = v.items[i].appendJSON(b)
		}
		return append(b, ']')
	case kindObject:
		b = append(b, '{')
		for i := range v.items {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(append(b, text(v.keys[i])...), ':')
			b = v.items[i].appendJSON(b)
		}
		return append(b, '}')
	}
	return append(b, "null"...)
}

// hint is a type with where it applies.
type hint struct {
	pointer string
	steps   []string
	class   string
	used    bool
	faulty  bool // which has been said
}

// typed returns the value with its types.
func (r *Reply) typed() (value, adapters.Faults) {
	var f adapters.Faults
	if len(r.Types) > maxHints {
		f.Add("types", "more than %d elements", maxHints)
		return value{}, f
	}
	var hints []*hint
	for pointer, class := range r.Types {
		h := &hint{pointer: pointer, class: string(class)}
		if pointer != "" {
			if pointer[0] != '/' {
				f.Add("types."+pointer, `must be "" or begin with /`)
				continue
			}
			h.steps = strings.Split(pointer[1:], "/")
		}
		if len(h.class) > maxClass || !validClass(h.class) {
			f.Add("types."+pointer, "%q is no Java type", clip(h.class))
			continue
		}
		hints = append(hints, h)
	}
	// The one that says more comes first; the order is the same each time.
	slices.SortFunc(hints, func(a, b *hint) int { return strings.Compare(a.pointer, b.pointer) })
	slices.SortStableFunc(hints, func(a, b *hint) int { return wildcards(a) - wildcards(b) })
	var root value // null
	if r.JSON.value != nil {
		root = *r.JSON.value
	}
	apply(&root, hints, nil, &f)
	for _, h := range hints {
		if !h.used {
			f.Add("types."+h.pointer, "there is nothing in json that it is for")
		}
	}
	return root, f
}

// maxClass bounds the name of a type, in bytes.
const maxClass = 512

func wildcards(h *hint) int {
	n := 0
	for _, s := range h.steps {
		if s == "*" {
			n++
		}
	}
	return n
}

func validClass(s string) bool {
	s = strings.TrimSuffix(s, "[]")
	if s == "" {
		return false
	}
	for i, part := range strings.Split(s, ".") {
		if part == "" || part[0] >= '0' && part[0] <= '9' && i == 0 {
			return false
		}
		for _, c := range part {
			if c != '_' && c != '$' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') && c < 0x80 {
				return false
			}
		}
	}
	return true
}

var unescape = strings.NewReplacer("~1", "/", "~0", "~")

func (h *hint) matches(path []string) bool {
	if len(h.steps) != len(path) {
		return false
	}
	for i, s := range h.steps {
		if s != "*" && unescape.Replace(s) != path[i] {
			return false
		}
	}
	return true
}

// apply gives v and what is in it their types. v's items are copied before they are changed.
func apply(v *value, hints []*hint, path []string, f *adapters.Faults) {
	class := ""
	for _, h := range hints {
		if h.matches(path) {
			h.used = true
			if class == "" {
				class = h.class
				if fault := v.cast(class); fault != "" && !h.faulty {
					h.faulty = true
					f.Add("types."+h.pointer, "%s", fault)
				}
			}
		}
	}
	if len(v.items) == 0 || len(hints) == 0 {
		return
	}
	v.items = slices.Clone(v.items)
	for i := range v.items {
		step := strconv.Itoa(i)
		if v.keys != nil {
			step = v.keys[i]
		}
		apply(&v.items[i], hints, append(path[:len(path):len(path)], step), f)
	}
}

// bigDecimal is the one number whose object of Hessian is other than its fields say (BigDecimalSerializer).
const bigDecimal = "java.math.BigDecimal"

// cast gives v a Java type, and tells why it cannot have it.
func (v *value) cast(class string) (fault string) {
	no := func(what string) string { return fmt.Sprintf("%s cannot be %s", what, class) }
	primitive := !strings.Contains(class, ".")
	switch v.kind {
	case kindNull:
		return "" // null is of every type
	case kindBool:
		if class != "boolean" && class != "java.lang.Boolean" {
			return no("true or false")
		}
	case kindInt, kindLong, kindDouble:
		switch class {
		case "int", "java.lang.Integer", "short", "java.lang.Short", "byte", "java.lang.Byte":
			if v.kind != kindInt {
				return no("that number")
			}
		case "long", "java.lang.Long":
			if v.kind == kindDouble {
				return no("a number with a fraction")
			}
			v.kind = kindLong
		case "double", "java.lang.Double", "float", "java.lang.Float":
			if v.kind != kindDouble {
				v.kind, v.double = kindDouble, float64(v.integer)
			}
		case "java.util.Date":
			if v.kind == kindDouble {
				return no("a number with a fraction")
			}
			v.kind = kindDate
		case bigDecimal:
			text := strconv.FormatInt(v.integer, 10)
			if v.kind == kindDouble {
				text = strconv.FormatFloat(v.double, 'f', -1, 64)
			}
			*v = single(class, "value", text)
		default:
			return no("a number")
		}
	case kindString:
		switch class {
		case "java.lang.String", "string":
		case "byte[]":
			b, err := base64.StdEncoding.DecodeString(v.text)
			if err != nil {
				return "that string is not base64"
			}
			v.kind, v.text = kindBinary, string(b)
		case "java.util.Date":
			t, err := time.Parse(time.RFC3339Nano, v.text)
			if err != nil {
				return "that string is not a date such as 2026-01-31T23:59:59Z"
			}
			v.kind, v.integer = kindDate, t.UnixMilli()
		case bigDecimal:
			if _, err := strconv.ParseFloat(v.text, 64); err != nil && !isRange(err) || strings.ContainsAny(v.text, "xXpPnN_") {
				return "that string is not a number"
			}
			*v = single(class, "value", v.text)
		default:
			if primitive || strings.HasSuffix(class, "[]") {
				return no("a string")
			}
			*v = single(class, "name", v.text) // EnumSerializer
		}
	case kindArray:
		if !strings.HasSuffix(class, "[]") && !strings.HasPrefix(class, "java.util.") {
			return no("an array")
		}
		v.kind, v.class = kindTyped, class
	case kindObject:
		if primitive || strings.HasSuffix(class, "[]") {
			return no("an object")
		}
		v.kind, v.class = kindTyped, class
		if v.keys == nil {
			v.keys = []string{} // which tells it from a list
		}
	}
	return ""
}

func isRange(err error) bool {
	e, ok := err.(*strconv.NumError)
	return ok && e.Err == strconv.ErrRange
}

// single is an object of one field.
func single(class, field, text string) value {
	return value{kind: kindTyped, class: class, scalar: true, keys: []string{field}, items: []value{{kind: kindString, text: text}}}
}

// isMap tells whether an object of the class is a map.
func isMap(class string) bool {
	return strings.HasPrefix(class, "java.util.") && strings.HasSuffix(class, "Map")
}
