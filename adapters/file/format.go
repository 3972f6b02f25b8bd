package file

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/model"
)

// The identity of the documents that Parse reads.
const (
	ListAPIVersion = "adapters.isthmus.io/v1alpha1"
	ListKind       = "ServiceList"
)

// serviceList is one document.
type serviceList struct {
	APIVersion string    `yaml:"apiVersion"`
	Kind       string    `yaml:"kind"`
	Services   []service `yaml:"services"`
}

type service struct {
	Framework string            `yaml:"framework"`
	Interface string            `yaml:"interface"`
	Version   string            `yaml:"version"`
	Group     string            `yaml:"group"`
	Methods   []string          `yaml:"methods"`
	Metadata  map[string]string `yaml:"metadata"`
	Endpoints []endpoint        `yaml:"endpoints"`
	Consumers []consumer        `yaml:"consumers"`
}

type endpoint struct {
	Address     string            `yaml:"address"`
	Port        uint16            `yaml:"port"`
	Protocol    string            `yaml:"protocol"`
	Application string            `yaml:"application"`
	Weight      *uint32           `yaml:"weight"`
	Disabled    bool              `yaml:"disabled"`
	Locality    locality          `yaml:"locality"`
	Labels      map[string]string `yaml:"labels"`
	Metadata    map[string]string `yaml:"metadata"`
}

type locality struct {
	Region  string `yaml:"region"`
	Zone    string `yaml:"zone"`
	SubZone string `yaml:"subZone"`
}

type consumer struct {
	Address     string            `yaml:"address"`
	Application string            `yaml:"application"`
	Metadata    map[string]string `yaml:"metadata"`
}

// maxText bounds every string of a document, in bytes.
const maxText = 4096

// frameworks that a key may name, and the protocol that an endpoint has where it names none.
var frameworks = map[string]model.Protocol{"dubbo": model.ProtocolDubbo, "sofa": model.ProtocolBolt, "spring": model.ProtocolHTTP}

func (s *service) key() model.Key {
	return model.Key{Framework: s.Framework, Interface: s.Interface, Version: s.Version, Group: s.Group}
}

func (s *service) protocol(e *endpoint) model.Protocol {
	if e.Protocol == "" {
		return frameworks[s.Framework]
	}
	return model.Protocol(e.Protocol)
}

// Validate implements adapters.Validator.
func (l *serviceList) Validate() adapters.Faults {
	var f adapters.Faults
	if l.APIVersion != ListAPIVersion {
		f.Add("apiVersion", "must be %s, is %q", ListAPIVersion, l.APIVersion)
	}
	if l.Kind != ListKind {
		f.Add("kind", "must be %s, is %q", ListKind, l.Kind)
	}
	seen := map[model.Key]int{}
	for i := range l.Services {
		s := &l.Services[i]
		at := fmt.Sprintf("services[%d]", i)
		s.validate(&f, at)
		if first, ok := seen[s.key()]; ok {
			f.Add(at, "%s is already services[%d]", s.key(), first)
		}
		seen[s.key()] = i
	}
	return f
}

func (s *service) validate(f *adapters.Faults, at string) {
	if _, ok := frameworks[s.Framework]; !ok {
		f.Add(at+".framework", "must be dubbo, sofa or spring, is %q", s.Framework)
	}
	word(f, at+".interface", s.Interface, true)
	word(f, at+".version", s.Version, false)
	word(f, at+".group", s.Group, false)
	for i, m := range s.Methods {
		word(f, fmt.Sprintf("%s.methods[%d]", at, i), m, true)
	}
	texts(f, at+".metadata", s.Metadata)
	type id struct {
		address  string
		port     uint16
		protocol model.Protocol
	}
	seen := map[id]int{}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		at := fmt.Sprintf("%s.endpoints[%d]", at, i)
		address(f, at+".address", e.Address)
		if e.Port == 0 {
			f.Add(at+".port", "is missing; it is from 1 to 65535")
		}
		if p := e.Protocol; p != "" && (p != strings.ToLower(p) || strings.ContainsFunc(p, func(r rune) bool { return r <= ' ' || r > '~' })) {
			f.Add(at+".protocol", "must be a name in lower case such as dubbo, tri, bolt or rest, is %q", p)
		}
		word(f, at+".application", e.Application, false)
		text(f, at+".locality.region", e.Locality.Region)
		text(f, at+".locality.zone", e.Locality.Zone)
		text(f, at+".locality.subZone", e.Locality.SubZone)
		texts(f, at+".labels", e.Labels)
		texts(f, at+".metadata", e.Metadata)
		this := id{e.Address, e.Port, s.protocol(e)}
		if first, ok := seen[this]; ok {
			f.Add(at, "%s:%d is already endpoints[%d]", e.Address, e.Port, first)
		}
		seen[this] = i
	}
	type user struct{ address, application string }
	users := map[user]int{}
	for i := range s.Consumers {
		c := &s.Consumers[i]
		at := fmt.Sprintf("%s.consumers[%d]", at, i)
		address(f, at+".address", c.Address)
		word(f, at+".application", c.Application, false)
		texts(f, at+".metadata", c.Metadata)
		this := user{c.Address, c.Application}
		if first, ok := users[this]; ok {
			f.Add(at, "%s of %q is already consumers[%d]", c.Address, c.Application, first)
		}
		users[this] = i
	}
}

// word checks a name: printable, without spaces.
func word(f *adapters.Faults, path, s string, required bool) {
	switch {
	case s == "" && required:
		f.Add(path, "is missing")
	case strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }):
		f.Add(path, "%.80q has spaces or unprintable characters", s)
	default:
		text(f, path, s)
	}
}

func text(f *adapters.Faults, path, s string) {
	if len(s) > maxText || !utf8.ValidString(s) {
		f.Add(path, "must be UTF-8 of at most %d bytes", maxText)
	}
}

func texts(f *adapters.Faults, path string, m map[string]string) {
	for k, v := range m {
		if k == "" {
			f.Add(path, "has an empty key")
		}
		text(f, path+"."+k, k)
		text(f, path+"."+k, v)
	}
}

// address checks an IP address or a host name.
func address(f *adapters.Faults, path, s string) {
	if s == "" {
		f.Add(path, "is missing")
		return
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return
	}
	name := strings.TrimSuffix(s, ".")
	valid := len(name) <= 253
	for label := range strings.SplitSeq(name, ".") {
		valid = valid && len(label) >= 1 && len(label) <= 63 && !strings.ContainsFunc(label, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
		})
	}
	if !valid {
		f.Add(path, "%.80q is neither an IP address nor a host name", s)
	}
}

// Parse reads the ServiceList documents of one file, YAML or JSON. The services are sorted by key and their endpoints by
// address and port; every key is there once. It takes all or nothing: the error is adapters.Faults with every fault, in the
// order of the file.
func Parse(content []byte) ([]model.Service, error) {
	docs, err := adapters.ParseDocuments(content)
	if err != nil {
		return nil, err
	}
	var faults adapters.Faults
	var services []model.Service
	where := map[model.Key]int{} // the line of each key's document
	for _, doc := range docs {
		if doc.Line() == 0 {
			continue // nothing between two ---
		}
		var list serviceList
		if err := doc.Decode(&list); err != nil {
			faults = append(faults, adapters.AsFaults(err)...)
			continue
		}
		for i := range list.Services {
			s := &list.Services[i]
			if line, ok := where[s.key()]; ok {
				faults = append(faults, adapters.Fault{Path: fmt.Sprintf("services[%d]", i), Line: doc.Line(),
					Message: fmt.Sprintf("%s is also in the document at line %d", s.key(), line)})
				continue
			}
			services = append(services, s.model())
		}
		for i := range list.Services {
			where[list.Services[i].key()] = doc.Line()
		}
	}
	if len(faults) > 0 {
		return nil, faults
	}
	slices.SortFunc(services, func(a, b model.Service) int { return strings.Compare(a.Key.String(), b.Key.String()) })
	return services, nil
}

func (s *service) model() model.Service {
	out := model.Service{Key: s.key(), Methods: slices.Compact(slices.Sorted(slices.Values(s.Methods))), Metadata: s.Metadata}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		out.Endpoints = append(out.Endpoints, model.Endpoint{
			Address: e.Address, Port: e.Port, Protocol: s.protocol(e), Application: e.Application,
			Weight: e.Weight, Disabled: e.Disabled, Locality: model.Locality(e.Locality), Labels: e.Labels, Metadata: e.Metadata,
		})
	}
	slices.SortFunc(out.Endpoints, func(a, b model.Endpoint) int {
		if c := strings.Compare(a.Address, b.Address); c != 0 {
			return c
		}
		if a.Port != b.Port {
			return int(a.Port) - int(b.Port)
		}
		return strings.Compare(string(a.Protocol), string(b.Protocol))
	})
	for i := range s.Consumers {
		c := &s.Consumers[i]
		out.Consumers = append(out.Consumers, model.Consumer{Address: c.Address, Application: c.Application, Metadata: c.Metadata})
	}
	slices.SortFunc(out.Consumers, func(a, b model.Consumer) int {
		if c := strings.Compare(a.Address, b.Address); c != 0 {
			return c
		}
		return strings.Compare(a.Application, b.Application)
	})
	return out
}
