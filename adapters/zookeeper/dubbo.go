package zookeeper

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/adapters/registryurl"
)

// frameworkDubbo is the framework of the services in Dubbo's tree.
const frameworkDubbo = "dubbo"

// anyValue matches everything in a consumer's version or group (Dubbo's ANY_VALUE).
const anyValue = "*"

// dubboVersion makes one of Dubbo's two ways to say "no version": its service key leaves 0.0.0 out
// (BaseServiceMetadata), so a provider without a version and one of 0.0.0 are the same service.
func dubboVersion(v string) string {
	if v == "0.0.0" {
		return ""
	}
	return v
}

// dubboServices reads an interface of Dubbo's tree: /dubbo/<interface>/{providers,consumers,configurators}/<encoded URL>.
func dubboServices(in interfaceNodes, labels []string) ([]model.Service, []model.Problem) {
	b := newBuilder(in, frameworkDubbo, labels)
	for _, name := range in.Categories[providers] {
		u, err := registryurl.ParseName(name, true)
		if err != nil {
			b.problem(model.SeverityError, providers, name, "MalformedURL", "the node's name is not a provider's URL: %v; it is left out", err)
			continue
		}
		switch u.Protocol {
		case "empty", "injvm": // "nobody" and "only within its own process"
			continue
		case "consumer", "override", "absent", "route", "condition", "script", "registry", "service-discovery-registry":
			b.problem(model.SeverityWarning, providers, name, "UnexpectedURL", "%s is no provider; it is left out", u.Outline())
			continue
		}
		if i := u.Params["interface"]; i != "" && i != in.Interface {
			// Dubbo's consumers compare the two and ignore such a provider (UrlUtils.isMatch).
			b.problem(model.SeverityError, providers, name, "InterfaceMismatch", "%s provides %.200q but is registered under %q; no consumer finds it there, and it is left out", u.Outline(), i, in.Interface)
			continue
		}
		key := model.Key{Framework: frameworkDubbo, Interface: in.Interface, Version: dubboVersion(u.Params["version"]), Group: u.Params["group"]}
		b.addProvider(name, u, key, u.Params["application"], "timestamp")
	}
	b.dubboOverrides()
	b.dubboConsumers()
	return b.result()
}

// dubboConsumers attaches consumers to the services that they subscribe to: "*" as version or group to every one that
// providers have, a list of groups to each of it. Where nothing matches they are kept under the key they name, with
// nothing in the place of "*", which it matches.
func (b *builder) dubboConsumers() {
	var keys []model.Key
	for k, s := range b.services {
		if len(s.endpoints) > 0 {
			keys = append(keys, k)
		}
	}
	for _, name := range b.in.Categories[consumers] {
		u, err := registryurl.ParseName(name, false)
		if err != nil {
			b.problem(model.SeverityError, consumers, name, "MalformedURL", "the node's name is not a consumer's URL: %v; it is left out", err)
			continue
		}
		if u.Host == "" {
			b.problem(model.SeverityError, consumers, name, "MissingAddress", "%s has no host; it is left out", u.Outline())
			continue
		}
		c := model.Consumer{Address: u.Host, Application: u.Params["application"], Metadata: registryurl.Metadata(u, nil)}
		born, _ := strconv.ParseInt(u.Params["timestamp"], 10, 64)
		version := dubboVersion(u.Params["version"])
		for group := range strings.SplitSeq(u.Params["group"], ",") {
			group = strings.TrimSpace(group)
			found := false
			if version == anyValue || group == anyValue {
				for _, k := range keys {
					if (version == anyValue || version == k.Version) && (group == anyValue || group == k.Group) {
						b.addConsumer(k, c, born)
						found = true
					}
				}
			}
			if !found {
				b.addConsumer(model.Key{Framework: frameworkDubbo, Interface: b.in.Interface,
					Version: strings.ReplaceAll(version, anyValue, ""), Group: strings.ReplaceAll(group, anyValue, "")}, c, born)
			}
		}
	}
}

// override is a rule in the name of a node that changes what providers have registered.
type override struct {
	name     string
	url      registryurl.URL
	priority int
}

// dubboOverrides applies the override:// and absent:// URLs under configurators as AbstractConfigurator does, as far as they
// change weight, disabled and enabled. A rule for callers only (side=consumer, a caller's address, another application) changes
// nothing here: the model holds what is true for every caller.
func (b *builder) dubboOverrides() {
	var rules []override
	for _, name := range b.in.Categories[configurators] {
		u, err := registryurl.ParseName(name, true)
		if err != nil {
			b.problem(model.SeverityWarning, configurators, name, "MalformedURL", "the node's name is not an override's URL: %v; it is ignored", err)
			continue
		}
		switch u.Protocol {
		case "empty":
			return // it takes back all others (Configurator.toConfigurators)
		case "override", "absent":
		default:
			b.problem(model.SeverityWarning, configurators, name, "UnexpectedURL", "%s is no override; it is ignored", u.Outline())
			continue
		}
		if u.Params["enabled"] == "false" || u.Params["side"] == "consumer" || u.Host == "" {
			continue // enabled is the rule's own switch here
		}
		n, _ := b.number(configurators, name, "priority", u.Params["priority"])
		rules = append(rules, override{name, u, int(n)})
	}
	// Those for all hosts first, so that those for one have the last word; then by priority (Configurator.compareTo).
	slices.SortFunc(rules, func(x, y override) int {
		return cmp.Or(cmp.Compare(x.url.Host, y.url.Host), cmp.Compare(x.priority, y.priority), cmp.Compare(x.name, y.name))
	})
	for key, s := range b.services {
		for id, p := range s.endpoints {
			for _, r := range rules {
				if r.matches(key, p) {
					b.apply(configurators, r, &p)
				}
			}
			s.endpoints[id] = p
		}
	}
}

func (r override) matches(key model.Key, p provider) bool {
	u, e := r.url, &p.endpoint
	anyHost := u.Host == "0.0.0.0" || u.Host == "::"
	if !anyHost && (u.Host != e.Address || u.Port != e.Port) { // a host without a port is a consumer's
		return false
	}
	if u.Port != 0 && u.Port != e.Port {
		return false
	}
	if v, g := u.Params["version"], u.Params["group"]; v != anyValue && dubboVersion(v) != key.Version || g != anyValue && g != key.Group {
		return false
	}
	if i := u.Params["interface"]; i != "" && i != anyValue && i != key.Interface {
		return false
	}
	if a := u.Params["application"]; a != "" && a != anyValue && a != e.Application {
		return false
	}
	if list := u.Params["providerAddresses"]; list != "" && !slices.ContainsFunc(strings.Split(list, ","), func(s string) bool {
		host, port, err := registryurl.ParseAddress(strings.TrimSpace(s), true)
		return err == nil && (host == "0.0.0.0" || host == e.Address && (port == e.Port || port == 0))
	}) {
		return false
	}
	for k, v := range u.Params { // conditions on the provider's own parameters
		if k, ok := strings.CutPrefix(k, "~"); ok && v != anyValue && p.url.Params[k] != v {
			return false
		}
	}
	return true
}

// apply changes an endpoint as the rule says; an absent:// rule only fills in what the provider has not said.
func (b *builder) apply(category string, r override, p *provider) {
	absent := r.url.Protocol == "absent"
	e := &p.endpoint
	if v, ok := r.url.Params["weight"]; ok && !(absent && e.Weight != nil) {
		if w := b.weight(category, r.name, v); w != nil {
			e.Weight = w
		}
	}
	if v, ok := r.url.Params["disabled"]; ok {
		if _, said := p.url.Params["disabled"]; !(absent && said) {
			e.Disabled = v == "true"
		}
	}
}
