package resource

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash"
	"iter"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// ID names a resource within a Set.
type ID struct {
	Type      Type
	Namespace string
	Name      string
}

// String returns the ID as type/namespace/name.
func (i ID) String() string { return string(i.Type) + "/" + i.Namespace + "/" + i.Name }

// compare sorts by type, namespace and name.
func (i ID) compare(o ID) int {
	return cmp.Or(cmp.Compare(i.Type, o.Type), cmp.Compare(i.Namespace, o.Namespace), cmp.Compare(i.Name, o.Name))
}

// Entry is a Resource in a Set, with its encoding.
type Entry struct {
	Resource
	// Version is a hash of the content: of the body, the labels and the annotations. Equal content has an equal version, also
	// after a restart, and other content practically never has: 120 bits of SHA-256.
	Version string
	// Wire is the body in protobuf's wire format, marshalled deterministically. It must not be changed.
	Wire []byte

	digest [sha256.Size]byte // of the name and the version: what of it goes into the hash of a Set
}

// newEntry encodes a resource.
func newEntry(r Resource) (*Entry, error) {
	if r.Type == "" || r.Name == "" || r.Namespace == "" || r.Body == nil {
		return nil, fmt.Errorf("resource: %s: type, namespace, name and body are needed", r.ID())
	}
	encode := r.Encode
	if encode == nil {
		encode = func() ([]byte, error) { return proto.MarshalOptions{Deterministic: true}.Marshal(r.Body) }
	}
	wire, err := encode()
	if err != nil {
		return nil, fmt.Errorf("resource: marshal %s: %w", r.ID(), err)
	}
	r.Encode = nil // an Entry must not hold what it was made of
	e := &Entry{Resource: r, Wire: wire, Version: version(&r, wire)}
	h := sha256.New()
	text(h, r.Namespace+"/"+r.Name)
	text(h, e.Version)
	h.Sum(e.digest[:0])
	return e, nil
}

// Set is a complete desired state: resources sorted by type, namespace and name, each once. It is immutable; its zero value
// is empty. Sets are compared by content. Sets that were made of one another share what they have in common.
type Set struct {
	sections []*section // by type, none of them empty
	version  string
}

// section is what a Set holds of one type.
type section struct {
	of      Type
	entries []*Entry // sorted by namespace and name
	version string
}

// newSection makes a section of entries that are sorted.
func newSection(of Type, entries []*Entry) *section {
	h := sha256.New()
	for _, e := range entries {
		h.Write(e.digest[:])
	}
	return &section{of: of, entries: entries, version: short(h)}
}

// NewSet makes a Set of resources in any order. It takes over the resources: their bodies and maps must not be changed
// afterwards. The error names a resource that is there twice or that cannot be marshalled: both are faults of the translator.
func NewSet(resources []Resource) (Set, error) {
	by := map[Type][]*Entry{}
	for _, r := range resources {
		e, err := newEntry(r)
		if err != nil {
			return Set{}, err
		}
		by[r.Type] = append(by[r.Type], e)
	}
	sections := make([]*section, 0, len(by))
	for t, entries := range by {
		s, err := sorted(t, entries)
		if err != nil {
			return Set{}, err
		}
		sections = append(sections, s)
	}
	return ofSections(sections), nil
}

// Union returns a Set of all that the sets hold. The error names a resource that is in two of them.
func Union(sets ...Set) (Set, error) {
	by := map[Type][]*section{}
	for _, s := range sets {
		for _, sec := range s.sections {
			by[sec.of] = append(by[sec.of], sec)
		}
	}
	sections := make([]*section, 0, len(by))
	for t, list := range by {
		one := list[0]
		if len(list) > 1 {
			var entries []*Entry
			for _, sec := range list {
				entries = append(entries, sec.entries...)
			}
			var err error
			if one, err = sorted(t, entries); err != nil {
				return Set{}, err
			}
		}
		sections = append(sections, one)
	}
	return ofSections(sections), nil
}

// sorted makes a section of entries in any order.
func sorted(t Type, entries []*Entry) (*section, error) {
	slices.SortFunc(entries, func(a, b *Entry) int { return a.ID().compare(b.ID()) })
	for i := range entries {
		if i > 0 && entries[i].ID() == entries[i-1].ID() {
			return nil, fmt.Errorf("resource: %s is there twice", entries[i].ID())
		}
	}
	return newSection(t, entries), nil
}

// ofSections makes a Set of sections in any order, one of a type and none of them empty.
func ofSections(sections []*section) Set {
	if len(sections) == 0 {
		return Set{}
	}
	slices.SortFunc(sections, func(a, b *section) int { return cmp.Compare(a.of, b.of) })
	all := sha256.New()
	for _, s := range sections {
		text(all, string(s.of))
		text(all, s.version)
	}
	return Set{sections: sections, version: short(all)}
}

// version hashes what istiod makes something of. Every part goes in with its length, so that no two contents look alike.
func version(r *Resource, wire []byte) string {
	h := sha256.New()
	text(h, string(r.Body.ProtoReflect().Descriptor().FullName()))
	text(h, string(wire))
	for _, m := range []map[string]string{r.Labels, r.Annotations} {
		binary.Write(h, binary.BigEndian, uint64(len(m))) // a hash never fails
		for _, k := range slices.Sorted(maps.Keys(m)) {
			text(h, k)
			text(h, m[k])
		}
	}
	return short(h)
}

func text(h hash.Hash, s string) {
	binary.Write(h, binary.BigEndian, uint64(len(s)))
	h.Write([]byte(s))
}

// short makes 20 characters of [A-Za-z0-9_-].
func short(h hash.Hash) string { return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:15]) }

// Len returns the number of resources.
func (s Set) Len() int {
	n := 0
	for _, sec := range s.sections {
		n += len(sec.entries)
	}
	return n
}

// Version is a hash of the whole content, "" for an empty Set.
func (s Set) Version() string { return s.version }

// Equal tells whether both sets hold the same resources with the same content.
func (s Set) Equal(o Set) bool { return s.version == o.version }

// All yields the entries in order. They must not be changed.
func (s Set) All() iter.Seq[*Entry] {
	return func(yield func(*Entry) bool) {
		for _, sec := range s.sections {
			for _, e := range sec.entries {
				if !yield(e) {
					return
				}
			}
		}
	}
}

// section returns what the Set holds of a type, an empty section where that is nothing.
func (s Set) section(t Type) *section {
	if i, ok := slices.BinarySearchFunc(s.sections, t, func(sec *section, t Type) int { return cmp.Compare(sec.of, t) }); ok {
		return s.sections[i]
	}
	return nothing
}

// nothing is what a Set holds of a type that it does not hold.
var nothing = newSection("", nil)

// OfType returns the entries of one type, sorted by namespace and name: a view that must not be changed. An entry that two Sets share is
// the same one in both.
func (s Set) OfType(t Type) []*Entry { return s.section(t).entries }

// TypeVersion is a hash of the content of one type; where there is nothing of it, the hash of nothing, which is never "".
func (s Set) TypeVersion(t Type) string { return s.section(t).version }

// Types returns the types that the Set holds, sorted.
func (s Set) Types() []Type {
	var types []Type
	for _, sec := range s.sections {
		types = append(types, sec.of)
	}
	return types
}

// Get returns the entry with that ID.
func (s Set) Get(id ID) (*Entry, bool) {
	entries := s.OfType(id.Type)
	i, ok := slices.BinarySearchFunc(entries, id, func(e *Entry, id ID) int { return e.ID().compare(id) })
	if !ok {
		return nil, false
	}
	return entries[i], true
}

// Change is what leads from one Set to another. The lists are sorted.
type Change struct {
	Added, Changed, Removed []ID
}

// Empty tells whether nothing changes.
func (c Change) Empty() bool { return len(c.Added)+len(c.Changed)+len(c.Removed) == 0 }

// Diff returns what leads from s to next.
func (s Set) Diff(next Set) Change {
	var c Change
	types := append(s.Types(), next.Types()...)
	slices.Sort(types)
	for _, t := range slices.Compact(types) {
		if was, is := s.section(t), next.section(t); was != is {
			c.add(was.entries, is.entries)
		}
	}
	return c
}

// add adds what leads from one list of entries of a type to another.
func (c *Change) add(was, is []*Entry) {
	for len(was) > 0 || len(is) > 0 {
		switch order := order(was, is); {
		case order < 0:
			c.Removed = append(c.Removed, was[0].ID())
			was = was[1:]
		case order > 0:
			c.Added = append(c.Added, is[0].ID())
			is = is[1:]
		default:
			if was[0].Version != is[0].Version {
				c.Changed = append(c.Changed, is[0].ID())
			}
			was, is = was[1:], is[1:]
		}
	}
}

// order compares the first of a with the first of b; what is past the end comes last.
func order(a, b []*Entry) int {
	switch {
	case len(a) == 0:
		return 1
	case len(b) == 0:
		return -1
	case a[0] == b[0]:
		return 0
	}
	return a[0].ID().compare(b[0].ID())
}

// Object returns the resource as Kubernetes writes it: apiVersion, kind, metadata and spec, made of maps, slices, strings,
// numbers and booleans, ready to become YAML or JSON.
func (e *Entry) Object() (map[string]any, error) {
	i := strings.LastIndexByte(string(e.Type), '/')
	b, err := protojson.Marshal(e.Body)
	if err != nil {
		return nil, fmt.Errorf("resource: %s as JSON: %w", e.ID(), err)
	}
	var spec any
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&spec); err != nil {
		return nil, fmt.Errorf("resource: %s as JSON: %w", e.ID(), err)
	}
	spec = whole(spec)
	metadata := map[string]any{"namespace": e.Namespace, "name": e.Name}
	if len(e.Labels) > 0 {
		metadata["labels"] = e.Labels
	}
	if len(e.Annotations) > 0 {
		metadata["annotations"] = e.Annotations
	}
	return map[string]any{"apiVersion": string(e.Type[:max(i, 0)]), "kind": string(e.Type[i+1:]), "metadata": metadata, "spec": spec}, nil
}

// whole turns JSON's numbers into integers where they are, so that they are written without an exponent.
func whole(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = whole(v[k])
		}
	case []any:
		for i := range v {
			v[i] = whole(v[i])
		}
	case json.Number:
		if i, err := v.Int64(); err == nil {
			return i
		}
		f, _ := v.Float64() // it is what protojson wrote
		return f
	}
	return v
}
