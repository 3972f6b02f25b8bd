package adapters

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// Fault is one thing that is wrong with a configuration or with a file that a person wrote.
type Fault struct {
	Path    string // of the field: servers[1], auth.user; "" is the whole document
	Line    int    // in the file that it was read from, from 1; 0 where it is not known
	Message string
}

// String returns the fault as people read it: "line 12: servers[1]: no port".
func (f Fault) String() string {
	var b strings.Builder
	if f.Line > 0 {
		fmt.Fprintf(&b, "line %d: ", f.Line)
	}
	if f.Path != "" {
		b.WriteString(f.Path + ": ")
	}
	b.WriteString(f.Message)
	return b.String()
}

// Faults are all that is wrong with one document, in its order. As an error they are never empty.
type Faults []Fault

// Error returns one line a fault.
func (f Faults) Error() string {
	lines := make([]string, len(f))
	for i := range f {
		lines[i] = f[i].String()
	}
	return strings.Join(lines, "\n")
}

// Under returns the faults with prefix set before their paths.
func (f Faults) Under(prefix string) Faults {
	out := slices.Clone(f)
	for i := range out {
		out[i].Path = joinPath(prefix, out[i].Path)
	}
	return out
}

// Add notes a fault at path; the message is formatted as by fmt.Sprintf.
func (f *Faults) Add(path, format string, args ...any) {
	*f = append(*f, Fault{Path: path, Message: fmt.Sprintf(format, args...)})
}

// Err returns the faults as an error, nil where there are none.
func (f Faults) Err() error {
	if len(f) == 0 {
		return nil
	}
	return f
}

// AsFaults returns the Faults in err; any other error becomes one Fault without path or line; nil becomes nil.
func AsFaults(err error) Faults {
	if err == nil {
		return nil
	}
	if f, ok := errors.AsType[Faults](err); ok {
		return f
	}
	return Faults{{Message: err.Error()}}
}

func joinPath(prefix, path string) string {
	switch {
	case prefix == "" || path == "":
		return prefix + path
	case path[0] == '[':
		return prefix + path
	}
	return prefix + "." + path
}

// Validator is what settings implement that know more about themselves than their types say. Paths of the faults are
// relative to the settings; Settings.Decode adds the lines.
type Validator interface {
	Validate() Faults
}

// Settings are the kind-specific part of a Registry as they stand in the configuration, undecoded. The zero value is an
// empty document. Settings are immutable.
type Settings struct{ node *yaml.Node }

// ParseSettings reads one document of YAML or JSON.
func ParseSettings(text []byte) (Settings, error) {
	docs, err := ParseDocuments(text)
	switch {
	case err != nil:
		return Settings{}, err
	case len(docs) == 0:
		return Settings{}, nil
	case len(docs) > 1:
		return Settings{}, Faults{{Line: docs[1].Line(), Message: "only one document is expected"}}
	}
	return docs[0], nil
}

// ParseDocuments reads the documents of a YAML stream, or one document of JSON. Lines count from the beginning of text.
// The error is Faults.
func ParseDocuments(text []byte) ([]Settings, error) {
	if json.Valid(text) {
		// YAML 1.2 says that JSON is a part of it; yaml.v3 does not take tabs and surrogate pairs.
		return []Settings{{node: jsonNode(text)}}, nil
	}
	var docs []Settings
	d := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var doc yaml.Node
		err := d.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, Faults{yamlFault(err)}
		}
		docs = append(docs, SettingsOf(&doc))
	}
}

// Line returns the line on which the settings begin, 0 where it is not known.
func (s Settings) Line() int {
	if s.node == nil {
		return 0
	}
	return s.node.Line
}

// jsonNode turns valid JSON into the node that yaml.v3 would make of it.
func jsonNode(text []byte) *yaml.Node {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	line, seen := 1, int64(0)
	var value func() *yaml.Node
	value = func() *yaml.Node {
		token, err := d.Token()
		if err != nil {
			return &yaml.Node{} // it has been found valid
		}
		line += bytes.Count(text[seen:d.InputOffset()], []byte("\n"))
		seen = d.InputOffset()
		n := &yaml.Node{Kind: yaml.ScalarNode, Line: line, Column: 1}
		switch t := token.(type) {
		case json.Delim:
			n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
			if t == '{' {
				n.Kind, n.Tag = yaml.MappingNode, "!!map"
			}
			for d.More() {
				n.Content = append(n.Content, value())
			}
			d.Token()
		case string:
			n.Tag, n.Value, n.Style = "!!str", t, yaml.DoubleQuotedStyle
		case bool:
			n.Tag, n.Value = "!!bool", strconv.FormatBool(t)
		case json.Number:
			n.Tag, n.Value = "!!int", t.String()
			if strings.ContainsAny(n.Value, ".eE") {
				n.Tag = "!!float"
			}
		case nil:
			n.Tag, n.Value = "!!null", "null"
		}
		return n
	}
	return value()
}

// SettingsOf wraps a node of a parsed document, which must not change any more.
func SettingsOf(n *yaml.Node) Settings {
	for n != nil && n.Kind == yaml.DocumentNode {
		if len(n.Content) == 0 {
			return Settings{}
		}
		n = n.Content[0]
	}
	if n == nil || n.Kind == 0 || n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return Settings{}
	}
	return Settings{node: n}
}

// UnmarshalYAML keeps the node for a later Decode.
func (s *Settings) UnmarshalYAML(n *yaml.Node) error { *s = SettingsOf(n); return nil }

// UnmarshalJSON keeps the text for a later Decode. Lines count from the beginning of the text.
func (s *Settings) UnmarshalJSON(b []byte) error {
	p, err := ParseSettings(b)
	*s = p
	return err
}

// MarshalYAML returns the settings as they were read.
func (s Settings) MarshalYAML() (any, error) {
	if s.node == nil {
		return map[string]any{}, nil
	}
	return s.node, nil
}

// MarshalJSON returns the settings with sorted keys and without comments: equal settings give equal bytes.
func (s Settings) MarshalJSON() ([]byte, error) {
	if s.node == nil {
		return []byte("{}"), nil
	}
	v, err := plain(s.node, 0)
	if err != nil {
		return nil, fmt.Errorf("adapters: settings as JSON: %w", err)
	}
	return json.Marshal(v)
}

// Equal reports whether two settings say the same, whatever their order, comments and layout.
func (s Settings) Equal(o Settings) bool {
	a, errA := s.MarshalJSON()
	b, errB := o.MarshalJSON()
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

// Decode fills into, a pointer to a struct with yaml tags, strictly: an unknown field, a repeated one and a value of a
// wrong type are faults. If into is a Validator its faults are added, except those below a path that already has one. All
// faults come back at once, as Faults in the order of the document, with the lines of the document.
func (s Settings) Decode(into any) error {
	v := reflect.ValueOf(into)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		panic("adapters: Settings.Decode needs a non-nil pointer")
	}
	var faults Faults
	if s.node != nil {
		d := decoder{faults: &faults}
		d.value(s.node, v.Elem(), "", 0)
	}
	if check, ok := into.(Validator); ok {
		wrong := faults
		for _, f := range check.Validate() {
			if slices.ContainsFunc(wrong, func(have Fault) bool { return within(f.Path, have.Path) }) {
				continue
			}
			if f.Line == 0 {
				f.Line = s.line(f.Path)
			}
			faults = append(faults, f)
		}
	}
	slices.SortStableFunc(faults, func(a, b Fault) int { return a.Line - b.Line })
	return faults.Err()
}

// within reports whether path is at or below above.
func within(path, above string) bool {
	rest, ok := strings.CutPrefix(path, above)
	return ok && (above == "" || rest == "" || rest[0] == '.' || rest[0] == '[')
}

// line finds the line of the deepest node on the way to path.
func (s Settings) line(path string) int {
	n := s.node
	if n == nil {
		return 0
	}
	line := n.Line
	for path != "" && n != nil {
		var step string
		path = strings.TrimPrefix(path, ".")
		if rest, ok := strings.CutPrefix(path, "["); ok {
			step, path, _ = strings.Cut(rest, "]")
			i, err := strconv.Atoi(step)
			if err != nil || n.Kind != yaml.SequenceNode || i < 0 || i >= len(n.Content) {
				return line
			}
			n = n.Content[i]
			line = n.Line
			continue
		}
		end := strings.IndexAny(path, ".[")
		if end < 0 {
			end = len(path)
		}
		step, path = path[:end], path[end:]
		if n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		var next *yaml.Node
		if n.Kind == yaml.MappingNode {
			for i := 0; i+1 < len(n.Content); i += 2 {
				if n.Content[i].Value == step {
					line, next = n.Content[i].Line, n.Content[i+1]
				}
			}
		}
		n = next
	}
	return line
}

// maxDepth bounds how deep a document may be nested; settings and service lists need five levels.
const maxDepth = 64

// decoder walks a document and a Go value together. It exists because yaml.Node.Decode cannot be strict and because one
// fault must not hide the next.
type decoder struct{ faults *Faults }

func (d *decoder) fault(n *yaml.Node, path, format string, args ...any) {
	*d.faults = append(*d.faults, Fault{Path: path, Line: n.Line, Message: fmt.Sprintf(format, args...)})
}

func (d *decoder) value(n *yaml.Node, v reflect.Value, path string, depth int) {
	if depth > maxDepth {
		d.fault(n, path, "nested deeper than %d levels", maxDepth)
		return
	}
	if n.Kind == yaml.AliasNode {
		// Aliases could make a small file unfold into a large one, and nobody needs them here.
		d.fault(n, path, "YAML aliases are not supported")
		return
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // an empty value means the default, as everywhere
	}
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		d.value(n, v.Elem(), path, depth)
		return
	}
	if _, ok := v.Addr().Interface().(yaml.Unmarshaler); ok {
		d.leaf(n, v, path)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		if v.Type().PkgPath() == "time" {
			d.leaf(n, v, path)
			return
		}
		d.structure(n, v, path, depth)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			d.fault(n, path, "must be a list, is %s", nodeKind(n))
			return
		}
		out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
		for i, item := range n.Content {
			d.value(item, out.Index(i), fmt.Sprintf("%s[%d]", path, i), depth+1)
		}
		v.Set(out)
	case reflect.Map:
		if n.Kind != yaml.MappingNode {
			d.fault(n, path, "must be a mapping, is %s", nodeKind(n))
			return
		}
		out := reflect.MakeMapWithSize(v.Type(), len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			at := joinPath(path, n.Content[i].Value)
			key := reflect.New(v.Type().Key()).Elem()
			if key.Kind() != reflect.String || n.Content[i].Kind != yaml.ScalarNode {
				d.fault(n.Content[i], at, "the key must be a string")
				continue
			}
			key.SetString(n.Content[i].Value)
			if out.MapIndex(key).IsValid() {
				d.fault(n.Content[i], at, "is there twice")
				continue
			}
			item := reflect.New(v.Type().Elem()).Elem()
			d.value(n.Content[i+1], item, at, depth+1)
			out.SetMapIndex(key, item)
		}
		v.Set(out)
	default:
		d.leaf(n, v, path)
	}
}

func (d *decoder) structure(n *yaml.Node, v reflect.Value, path string, depth int) {
	if n.Kind != yaml.MappingNode {
		d.fault(n, path, "must be a mapping, is %s", nodeKind(n))
		return
	}
	fields, names := fieldsOf(v)
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		at := joinPath(path, key.Value)
		field, ok := fields[key.Value]
		switch {
		case !ok:
			d.fault(key, at, "unknown field; known are %s", strings.Join(names, ", "))
		case seen[key.Value]:
			d.fault(key, at, "is there twice")
		default:
			seen[key.Value] = true
			d.value(n.Content[i+1], field, at, depth+1)
		}
	}
}

// fieldsOf returns the fields of a struct by the names in their yaml tags, inline structs flattened, and the names sorted.
func fieldsOf(v reflect.Value) (map[string]reflect.Value, []string) {
	fields := map[string]reflect.Value{}
	var names []string
	var walk func(reflect.Value)
	walk = func(v reflect.Value) {
		for i := range v.NumField() {
			t := v.Type().Field(i)
			name, flags, _ := strings.Cut(t.Tag.Get("yaml"), ",")
			switch {
			case !t.IsExported() || name == "-":
			case flags == "inline":
				walk(v.Field(i))
			default:
				if name == "" {
					name = strings.ToLower(t.Name)
				}
				fields[name] = v.Field(i)
				names = append(names, name)
			}
		}
	}
	walk(v)
	slices.Sort(names)
	return fields, names
}

// leaf leaves the conversion to yaml.v3, which knows durations, hexadecimal integers and the rest.
func (d *decoder) leaf(n *yaml.Node, v reflect.Value, path string) {
	err := n.Decode(v.Addr().Interface())
	if err == nil {
		return
	}
	if inner, ok := errors.AsType[Faults](err); ok {
		for _, f := range inner.Under(path) {
			if f.Line == 0 {
				f.Line = n.Line
			}
			*d.faults = append(*d.faults, f)
		}
		return
	}
	if _, ok := errors.AsType[*yaml.TypeError](err); ok {
		if n.Kind == yaml.ScalarNode {
			d.fault(n, path, "%q is not %s", clip(n.Value), typeName(v.Type()))
		} else {
			d.fault(n, path, "must be %s, is %s", typeName(v.Type()), nodeKind(n))
		}
		return
	}
	d.fault(n, path, "%v", err)
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}

func typeName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int64:
		if t.PkgPath() == "time" {
			return "a duration such as 500ms or 30s"
		}
		return "a whole number"
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if bits := t.Bits(); bits < 64 {
			return fmt.Sprintf("a whole number from 0 to %d", uint64(1)<<bits-1)
		}
		return "a whole number, 0 or more"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32:
		return "a whole number"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.String:
		return "a string"
	}
	return "a " + t.String()
}

func nodeKind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	return fmt.Sprintf("%q", clip(n.Value))
}

// plain turns a node into maps, slices and scalars for JSON.
func plain(n *yaml.Node, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("line %d: nested deeper than %d levels", n.Line, maxDepth)
	}
	switch n.Kind {
	case yaml.AliasNode:
		return nil, fmt.Errorf("line %d: YAML aliases are not supported", n.Line)
	case yaml.SequenceNode:
		out := make([]any, len(n.Content))
		for i, item := range n.Content {
			v, err := plain(item, depth+1)
			if err != nil {
				return nil, err
			}
			out[i] = v
		}
		return out, nil
	case yaml.MappingNode:
		out := make(map[string]any, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			v, err := plain(n.Content[i+1], depth+1)
			if err != nil {
				return nil, err
			}
			out[n.Content[i].Value] = v
		}
		return out, nil
	}
	var v any
	if err := n.Decode(&v); err != nil {
		return nil, err
	}
	switch v.(type) {
	case float64, float32:
		return n.Value, nil // .inf and .nan have no JSON form
	}
	return v, nil
}

// yamlFault turns a parser's error into a Fault with its line.
func yamlFault(err error) Fault {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(msg, "line "); ok {
		if number, text, ok := strings.Cut(rest, ": "); ok {
			if line, err := strconv.Atoi(number); err == nil {
				return Fault{Line: line, Message: text}
			}
		}
	}
	return Fault{Line: 1, Message: msg} // yaml.v3 leaves the first line out
}

// Secret refers to a secret that lies outside the configuration: in a file or in the environment. The zero value refers
// to none. The secret itself never becomes part of settings, so that settings can be shown and logged.
type Secret struct {
	File string // path of a file; a trailing line break in it is not part of the secret
	Env  string // name of an environment variable
}

// IsZero reports whether there is no reference.
func (s Secret) IsZero() bool { return s == Secret{} }

// Check adds a fault if both references are set. The paths are of the fields that hold them.
func (s Secret) Check(f *Faults, filePath, envPath string) {
	if s.File != "" && s.Env != "" {
		f.Add(envPath, "give %s or %s, not both", filePath, envPath)
	}
}

// maxSecretBytes bounds what is read from a secret's file; real ones have a few hundred bytes.
const maxSecretBytes = 64 << 10

// Read returns the secret, "" where there is no reference. It is read anew at each call, so that a secret can be rotated
// without a restart. Errors name the reference, never the secret.
func (s Secret) Read() (string, error) {
	switch {
	case s.Env != "":
		v, ok := os.LookupEnv(s.Env)
		if !ok {
			return "", fmt.Errorf("adapters: environment variable %s is not set", s.Env)
		}
		return v, nil
	case s.File != "":
		info, err := os.Stat(s.File)
		if err != nil {
			return "", fmt.Errorf("adapters: secret: %w", err)
		}
		if !info.Mode().IsRegular() || info.Size() > maxSecretBytes {
			return "", fmt.Errorf("adapters: secret: %s is not a regular file of at most %d bytes", s.File, maxSecretBytes)
		}
		b, err := os.ReadFile(s.File)
		if err != nil {
			return "", fmt.Errorf("adapters: secret: %w", err)
		}
		return strings.TrimRightFunc(string(b), func(r rune) bool { return r == '\n' || r == '\r' || unicode.IsControl(r) }), nil
	}
	return "", nil
}
