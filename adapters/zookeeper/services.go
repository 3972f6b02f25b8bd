package zookeeper

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/adapters/registryurl"
)

// interfaceNodes is what the tree holds of one interface: the names of the nodes in each category.
type interfaceNodes struct {
	Path       string // /dubbo/demo.GreetService
	Interface  string // decoded
	Categories map[string][]string
}

// The categories of the trees.
const (
	providers     = "providers"
	consumers     = "consumers"
	configurators = "configurators" // Dubbo
	overrides     = "overrides"     // SOFARPC
)

// builder collects the services of one interface.
type builder struct {
	in        interfaceNodes
	framework string
	labels    []string // parameters that become labels beside the usual ones
	services  map[model.Key]*building
	problems  []model.Problem
}

// building is one service while its nodes are read.
type building struct {
	methods   map[string]bool
	endpoints map[endpointID]provider
	consumers map[consumerID]consumer
}

type endpointID struct {
	address  string
	port     uint16
	protocol model.Protocol
}

type consumerID struct{ address, application string }

type provider struct {
	url      registryurl.URL
	endpoint model.Endpoint
	born     int64 // ms since 1970, 0 where it is not said
}

type consumer struct {
	consumer model.Consumer
	born     int64
}

func newBuilder(in interfaceNodes, framework string, labels []string) *builder {
	return &builder{in: in, framework: framework, labels: labels, services: map[model.Key]*building{}}
}

func (b *builder) at(k model.Key) *building {
	s := b.services[k]
	if s == nil {
		s = &building{map[string]bool{}, map[endpointID]provider{}, map[consumerID]consumer{}}
		b.services[k] = s
	}
	return s
}

// maxPlace bounds the place of a problem: a path whose last name is an encoded URL.
const maxPlace = 2048

func (b *builder) problem(severity model.Severity, category, name, code, format string, args ...any) {
	place := b.in.Path + "/"
	if category != "" {
		place += category + "/"
	}
	place += registryurl.Redact(name)
	if len(place) > maxPlace {
		place = place[:maxPlace] + "..."
	}
	b.problems = append(b.problems, model.Problem{Severity: severity, Place: strings.ToValidUTF8(place, "?"), Code: code, Message: fmt.Sprintf(format, args...)})
}

// number reads a parameter that is a whole number; a fault in it is a problem, and the number is absent.
func (b *builder) number(category, name, key, value string) (int64, bool) {
	if value == "" {
		return 0, false
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		b.problem(model.SeverityWarning, category, name, "MalformedParameter", "parameter %s=%.80q is not a whole number and is ignored", key, value)
		return 0, false
	}
	return n, true
}

// weight turns Dubbo's and SOFARPC's int into ours; both take a negative one for 0.
func (b *builder) weight(category, name, value string) *uint32 {
	n, ok := b.number(category, name, "weight", value)
	if !ok {
		return nil
	}
	w := uint32(min(max(n, 0), math.MaxInt32))
	return &w
}

// disabled reads the two switches as upstream does (RegistryDirectory): disabled counts if it is there, else enabled.
func disabled(params map[string]string) bool {
	if v, ok := params["disabled"]; ok {
		return v == "true"
	}
	return params["enabled"] == "false"
}

// addProvider takes over a provider's node. key is of the service; the endpoint's application is app.
func (b *builder) addProvider(name string, u registryurl.URL, key model.Key, app, bornKey string) {
	if u.Host == "" || u.Port == 0 {
		b.problem(model.SeverityError, providers, name, "MissingAddress", "%s has no host and port; it is left out", u.Outline())
		return
	}
	if why := registryurl.Unusable(u.Host); why != "" {
		b.problem(model.SeverityError, providers, name, "UnusableAddress", "the address of %s %s; it is left out", u.Outline(), why)
		return
	}
	labels := registryurl.Labels(u, b.labels)
	p := provider{url: u, endpoint: model.Endpoint{
		Address:     u.Host,
		Port:        u.Port,
		Protocol:    model.Protocol(u.Protocol),
		Application: app,
		Weight:      b.weight(providers, name, u.Params["weight"]),
		Disabled:    disabled(u.Params),
		Locality:    model.Locality{Region: u.Params["region"], Zone: u.Params["zone"]},
		Labels:      labels,
		Metadata:    registryurl.Metadata(u, labels),
	}}
	p.born, _ = strconv.ParseInt(u.Params[bornKey], 10, 64)
	id := endpointID{u.Host, u.Port, p.endpoint.Protocol}
	s := b.at(key)
	// A provider that was restarted is there twice until the session of its former life expires; the younger one counts.
	if have, ok := s.endpoints[id]; !ok || p.born > have.born {
		s.endpoints[id] = p
	}
	for m := range strings.SplitSeq(u.Params["methods"], ",") {
		if m = strings.TrimSpace(m); m != "" && m != "*" && len(s.methods) < maxMethods {
			s.methods[m] = true
		}
	}
}

// maxMethods bounds the methods of one service.
const maxMethods = 4096

func (b *builder) addConsumer(key model.Key, c model.Consumer, born int64) {
	s := b.at(key)
	id := consumerID{c.Address, c.Application}
	if have, ok := s.consumers[id]; !ok || born > have.born {
		s.consumers[id] = consumer{c, born}
	}
}

// result returns what has been collected, sorted.
func (b *builder) result() ([]model.Service, []model.Problem) {
	var out []model.Service
	for key, s := range b.services {
		svc := model.Service{Key: key}
		for m := range s.methods {
			svc.Methods = append(svc.Methods, m)
		}
		slices.Sort(svc.Methods)
		for _, p := range s.endpoints {
			svc.Endpoints = append(svc.Endpoints, p.endpoint)
		}
		slices.SortFunc(svc.Endpoints, func(x, y model.Endpoint) int {
			return cmp.Or(cmp.Compare(x.Address, y.Address), cmp.Compare(x.Port, y.Port), cmp.Compare(x.Protocol, y.Protocol))
		})
		for _, c := range s.consumers {
			svc.Consumers = append(svc.Consumers, c.consumer)
		}
		slices.SortFunc(svc.Consumers, func(x, y model.Consumer) int {
			return cmp.Or(cmp.Compare(x.Address, y.Address), cmp.Compare(x.Application, y.Application))
		})
		out = append(out, svc)
	}
	slices.SortFunc(out, func(x, y model.Service) int {
		return cmp.Or(cmp.Compare(x.Key.Framework, y.Key.Framework), cmp.Compare(x.Key.Interface, y.Key.Interface), cmp.Compare(x.Key.Version, y.Key.Version), cmp.Compare(x.Key.Group, y.Key.Group))
	})
	slices.SortFunc(b.problems, func(x, y model.Problem) int {
		return cmp.Or(cmp.Compare(x.Place, y.Place), cmp.Compare(x.Code, y.Code), cmp.Compare(x.Message, y.Message))
	})
	return out, slices.Compact(b.problems)
}
