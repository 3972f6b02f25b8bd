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
}

// ID returns the entry's name.
func (e *Entry) ID() ID { return ID{e.Type, e.Namespace, e.Name} }

// Set is a complete desired state: resources sorted by type, namespace and name, each once. It is immutable; its zero value
// is empty. Sets are compared by content.
type Set struct {
	entries []Entry
	version string
}

// NewSet makes a Set of resources in any order. It takes over the resources: their bodies and maps must not be changed
// afterwards. The error names a resource that is there twice or that cannot be marshalled: both are faults of the translator.
func NewSet(resources []Resource) (Set, error) {
	entries := make([]Entry, len(resources))
	for i, r := range resources {
		if r.Type == "" || r.Name == "" || r.Namespace == "" || r.Body == nil {
			return Set{}, fmt.Errorf("resource: %s: type, namespace, name and body are needed", ID{r.Type, r.Namespace, r.Name})
		}
		wire, err := proto.MarshalOptions{Deterministic: true}.Marshal(r.Body)
		if err != nil {
			return Set{}, fmt.Errorf("resource: marshal %s: %w", ID{r.Type, r.Namespace, r.Name}, err)
		}
		entries[i] = Entry{Resource: r, Wire: wire, Version: version(&r, wire)}
	}
	return ofEntries(entries)
}

// Union returns a Set of all that the sets hold. The error names a resource that is in two of them.
func Union(sets ...Set) (Set, error) {
	var entries []Entry
	for _, s := range sets {
		entries = append(entries, s.entries...)
	}
	return ofEntries(entries)
}

func ofEntries(entries []Entry) (Set, error) {
	slices.SortFunc(entries, func(a, b Entry) int { return a.ID().compare(b.ID()) })
	all := sha256.New()
	for i := range entries {
		if i > 0 && entries[i].ID() == entries[i-1].ID() {
			return Set{}, fmt.Errorf("resource: %s is there twice", entries[i].ID())
		}
		text(all, entries[i].ID().String())
		text(all, entries[i].Version)
	}
	if len(entries) == 0 {
		return Set{}, nil
	}
	return Set{entries: entries, version: short(all)}, nil
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
func (s Set) Len() int { return len(s.entries) }

// Version is a hash of the whole content, "" for an empty Set.
func (s Set) Version() string { return s.version }

// Equal tells whether both sets hold the same resources with the same content.
func (s Set) Equal(o Set) bool { return s.version == o.version }

// All yields the entries in order. They must not be changed.
func (s Set) All() iter.Seq[*Entry] {
	return func(yield func(*Entry) bool) {
		for i := range s.entries {
			if !yield(&s.entries[i]) {
				return
			}
		}
	}
}

// OfType returns the entries of one type, sorted by namespace and name: a view that must not be changed.
func (s Set) OfType(t Type) []Entry {
	from, _ := slices.BinarySearchFunc(s.entries, t, func(e Entry, t Type) int { return cmp.Compare(e.Type, t) })
	to := from
	for to < len(s.entries) && s.entries[to].Type == t {
		to++
	}
	return s.entries[from:to:to]
}

// TypeVersion is a hash of the content of one type; where there is nothing of it, the hash of nothing, which is never "".
func (s Set) TypeVersion(t Type) string {
	h := sha256.New()
	for _, e := range s.OfType(t) {
		text(h, e.Namespace+"/"+e.Name)
		text(h, e.Version)
	}
	return short(h)
}

// Types returns the types that the Set holds, sorted.
func (s Set) Types() []Type {
	var types []Type
	for i := range s.entries {
		if i == 0 || s.entries[i].Type != s.entries[i-1].Type {
			types = append(types, s.entries[i].Type)
		}
	}
	return types
}

// Get returns the entry with that ID.
func (s Set) Get(id ID) (*Entry, bool) {
	i, ok := slices.BinarySearchFunc(s.entries, id, func(e Entry, id ID) int { return e.ID().compare(id) })
	if !ok {
		return nil, false
	}
	return &s.entries[i], true
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
	i, j := 0, 0
	for i < len(s.entries) || j < len(next.entries) {
		switch order := order(s.entries, i, next.entries, j); {
		case order < 0:
			c.Removed = append(c.Removed, s.entries[i].ID())
			i++
		case order > 0:
			c.Added = append(c.Added, next.entries[j].ID())
			j++
		default:
			if s.entries[i].Version != next.entries[j].Version {
				c.Changed = append(c.Changed, s.entries[i].ID())
			}
			i++
			j++
		}
	}
	return c
}

// order compares a[i] with b[j]; what is past the end comes last.
func order(a []Entry, i int, b []Entry, j int) int {
	switch {
	case i >= len(a):
		return 1
	case j >= len(b):
		return -1
	}
	return a[i].ID().compare(b[j].ID())
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
