// Package governance turns the rules that people write into configuration of the filter in the sidecars. It is pure: files and
// ports in, resources and Problems out. A rule that cannot be read changes nothing: what was in force before stays in force.
package governance

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/model"
	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// APIVersion is that of all kinds of rules.
const APIVersion = "governance.isthmus.io/v1alpha1"

// DefaultNamespace is a rule's where it names none.
const DefaultNamespace = "default"

// maxDocuments bounds the documents of one file.
const maxDocuments = 10000

// Spec is what a rule says, by kind.
type Spec interface {
	adapters.Validator
	// head returns what it has in common with all others.
	head() *Head
	// addTo adds it to the filter's configuration under the name namespace/name.
	addTo(p *plugin.Plugin, name string)
}

// kinds is the table of the kinds of rules. A new kind is a file with its Spec, and a line here.
var kinds = map[string]func() Spec{
	"AccessRule":         func() Spec { return new(AccessSpec) },
	"CircuitBreakerRule": func() Spec { return new(CircuitBreakerSpec) },
	"DegradeRule":        func() Spec { return new(DegradeSpec) },
	"FaultRule":          func() Spec { return new(FaultSpec) },
	"RouteRule":          func() Spec { return new(RouteSpec) },
	"ThrottleRule":       func() Spec { return new(ThrottleSpec) },
}

// filterKinds are the filter's words for the kinds, as its configuration and its metrics have them.
var filterKinds = map[string]string{
	"AccessRule": "access", "CircuitBreakerRule": "circuitBreaker", "DegradeRule": "degrade", "FaultRule": "faultInjection", "ThrottleRule": "throttle",
}

// FilterKind returns the filter's word for a kind of rules: "throttle" for ThrottleRule; "" for what is no kind.
func FilterKind(kind string) string { return filterKinds[kind] }

// Kinds returns the names of the kinds of rules, sorted.
func Kinds() []string {
	names := make([]string, 0, len(kinds))
	for name := range kinds {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// NewSpec returns an empty spec of a kind, nil for what is no kind.
func NewSpec(kind string) Spec {
	if fresh := kinds[kind]; fresh != nil {
		return fresh()
	}
	return nil
}

// ID names a rule.
type ID struct {
	Kind      string
	Namespace string
	Name      string
}

// String returns the ID as people write it: ThrottleRule default/greet.
func (i ID) String() string { return i.Kind + " " + i.Namespace + "/" + i.Name }

func (i ID) compare(o ID) int {
	return cmp.Or(cmp.Compare(i.Kind, o.Kind), cmp.Compare(i.Namespace, o.Namespace), cmp.Compare(i.Name, o.Name))
}

// Rule is one rule that is in force. It is immutable.
type Rule struct {
	ID
	File string // that it was read from
	Line int    // where it begins
	Spec Spec
	// Annotations are notes that go with it, for programs.
	Annotations map[string]string
	// Revision is a hash of the document: of what it says, not of how it is laid out.
	Revision string
	// Kept says that the file holds a newer version that is faulty, or cannot be read any more: this is the last good one.
	Kept bool
}

// Selects tells whether the rule is for workloads of an application, as the filter decides it; "" is one that is not known.
func (r *Rule) Selects(application string) bool {
	return r.Spec.head().Target.Application.matches(application)
}

// Mode tells whether the rule acts or only counts: "intercept" or "observe".
func (r *Rule) Mode() string {
	return cmp.Or(r.Spec.head().Mode, string(plugin.ModeIntercept))
}

// Enabled tells whether the rule is to take effect.
func (r *Rule) Enabled() bool { return r.Spec.head().enabled() }

// JSON returns the rule's spec as people write it.
func (r *Rule) JSON() (json.RawMessage, error) {
	b, err := json.Marshal(r.Spec)
	if err != nil {
		return nil, fmt.Errorf("governance: %s: %w", r.ID, err)
	}
	return b, nil
}

// File is one file of rules.
type File struct {
	Name string
	Text []byte
	Err  error // why it cannot be read; then Text is nothing
}

// Rules are the rules in force, and what is wrong with those that are not. The zero value has none. It is immutable.
type Rules struct {
	Items    []Rule // sorted by ID, each once
	Problems []model.Problem
}

// document is the form of every rule.
type document struct {
	APIVersion string            `yaml:"apiVersion"`
	Kind       string            `yaml:"kind"`
	Metadata   metadata          `yaml:"metadata"`
	Spec       adapters.Settings `yaml:"spec"`
}

type metadata struct {
	Name        string            `yaml:"name"`
	Namespace   string            `yaml:"namespace"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

func (d *document) id() ID {
	return ID{d.Kind, cmp.Or(d.Metadata.Namespace, DefaultNamespace), d.Metadata.Name}
}

// Validate implements adapters.Validator.
func (d *document) Validate() adapters.Faults {
	var f adapters.Faults
	if d.APIVersion != APIVersion {
		f.Add("apiVersion", "must be %s, is %q", APIVersion, d.APIVersion)
	}
	if kinds[d.Kind] == nil {
		f.Add("kind", "unknown kind %q; known are %s", d.Kind, strings.Join(Kinds(), ", "))
	}
	if !validName(d.Metadata.Name, 253, true) {
		f.Add("metadata.name", "%q is not a name: lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit", d.Metadata.Name)
	}
	if d.Metadata.Namespace != "" && !validName(d.Metadata.Namespace, 63, false) {
		f.Add("metadata.namespace", "%q is no name of a namespace", d.Metadata.Namespace)
	}
	return f
}

func validName(s string, limit int, dots bool) bool {
	if len(s) == 0 || len(s) > limit {
		return false
	}
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !alnum && (c != '-' && (c != '.' || !dots) || i == 0 || i == len(s)-1) {
			return false
		}
	}
	return true
}

// Parse reads the rules of one text, as a check before it is put to use. The error is adapters.Faults.
func Parse(text []byte) ([]Rule, error) {
	docs, err := adapters.ParseDocuments(text)
	if err != nil {
		return nil, err
	}
	var rules []Rule
	var faults adapters.Faults
	for _, doc := range docs {
		r, _, err := parse(doc)
		faults = append(faults, adapters.AsFaults(err)...)
		if err == nil {
			rules = append(rules, r)
		}
	}
	return rules, faults.Err()
}

// parse reads one document. The ID is as much of it as can be read, also where there is an error.
func parse(doc adapters.Settings) (Rule, ID, error) {
	var d document
	err := doc.Decode(&d)
	id := d.id()
	fresh := kinds[d.Kind]
	if fresh == nil {
		return Rule{}, id, err
	}
	spec := fresh()
	faults := adapters.AsFaults(err)
	faults = append(faults, adapters.AsFaults(d.Spec.Decode(spec)).Under("spec")...)
	if len(faults) > 0 {
		return Rule{}, id, faults
	}
	text, err := doc.MarshalJSON()
	if err != nil {
		return Rule{}, id, adapters.Faults{{Line: doc.Line(), Message: err.Error()}}
	}
	sum := sha256.Sum256(text)
	return Rule{ID: id, Line: doc.Line(), Spec: spec, Annotations: d.Metadata.Annotations, Revision: hex.EncodeToString(sum[:8])}, id, nil
}

// Update returns the rules that are in force once the files hold what they hold now. files are all there are.
//
// A rule that is faulty in its file, or whose file cannot be read, stays in force as it is in r. A rule that is in no file any
// more is gone.
func (r Rules) Update(files []File) Rules {
	var next Rules
	have := map[ID]int{}
	add := func(rule Rule) {
		if i, ok := have[rule.ID]; ok {
			first := next.Items[i]
			next.problem(model.SeverityError, place(rule.File, rule.Line), "DuplicateRule", "%s is also in %s, which holds; this one does not", rule.ID, place(first.File, first.Line))
			return
		}
		have[rule.ID] = len(next.Items)
		next.Items = append(next.Items, rule)
	}
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b File) int { return cmp.Compare(a.Name, b.Name) })
	var kept []Rule // added last: what is well written elsewhere comes first
	for _, f := range files {
		before := r.of(f.Name)
		keep := func(except map[ID]bool) {
			for _, rule := range before {
				if !except[rule.ID] {
					rule.Kept = true
					kept = append(kept, rule)
				}
			}
		}
		docs, err := adapters.ParseDocuments(f.Text)
		if f.Err != nil {
			err = f.Err
		} else if err == nil && len(docs) > maxDocuments {
			err = fmt.Errorf("it holds more than %d documents", maxDocuments)
		}
		if err != nil {
			for _, fault := range adapters.AsFaults(err) {
				next.problem(model.SeverityError, place(f.Name, fault.Line), "UnreadableRules", "%s; %s", fault.Message, unchanged(len(before)))
			}
			keep(nil)
			continue
		}
		seen := map[ID]bool{}
		anonymous := false
		for _, doc := range docs {
			rule, id, err := parse(doc)
			if err == nil {
				rule.File = f.Name
				seen[id] = true
				add(rule)
				continue
			}
			i := slices.IndexFunc(before, func(r Rule) bool { return r.ID == id })
			fate := "it is not in force"
			if i >= 0 && !seen[id] {
				seen[id] = true
				old := before[i]
				old.Kept = true
				kept = append(kept, old)
				fate = "the last good version stays in force"
			} else if id.Name == "" || kinds[id.Kind] == nil {
				anonymous = true
			}
			for _, fault := range adapters.AsFaults(err) {
				message := fault.Message
				if fault.Path != "" {
					message = fault.Path + ": " + message
				}
				next.problem(model.SeverityError, place(f.Name, cmp.Or(fault.Line, doc.Line())), "InvalidRule", "%s; %s", message, fate)
			}
		}
		if anonymous {
			// It may be any of those that were here and are not any more.
			keep(seen)
		}
	}
	for _, rule := range kept {
		if _, ok := have[rule.ID]; !ok {
			add(rule)
		}
	}
	slices.SortFunc(next.Items, func(a, b Rule) int { return a.ID.compare(b.ID) })
	slices.SortStableFunc(next.Problems, func(a, b model.Problem) int {
		return cmp.Or(cmp.Compare(a.Place, b.Place), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Message, b.Message))
	})
	return next
}

func unchanged(n int) string {
	if n == 0 {
		return "it had no rules before"
	}
	return fmt.Sprintf("the %d rules that it had stay in force", n)
}

// of returns the rules of one file.
func (r Rules) of(file string) []Rule {
	var out []Rule
	for _, rule := range r.Items {
		if rule.File == file {
			out = append(out, rule)
		}
	}
	return out
}

func (r *Rules) problem(severity model.Severity, place, code, format string, args ...any) {
	r.Problems = append(r.Problems, model.Problem{Severity: severity, Place: place, Code: code, Message: strings.ToValidUTF8(fmt.Sprintf(format, args...), "?")})
}

func place(file string, line int) string {
	if line == 0 {
		return file
	}
	return fmt.Sprintf("%s:%d", file, line)
}
