package zookeeper

import (
	"cmp"
	"slices"
	"strconv"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/adapters/registryurl"
)

// sofaServices reads an interface of SOFARPC's tree: /sofa-rpc/<interface>/{providers,consumers,overrides}/<encoded URL>, as
// ZookeeperRegistry and RegistryUtils of SOFARPC 5.13 write it. The protocol (bolt, tr, rest, h2c, dubbo, tri) is the URL's; the
// service is told apart by uniqueId, which becomes the key's group.
func sofaServices(in interfaceNodes, labels []string) ([]model.Service, []model.Problem) {
	b := newBuilder(in, registryurl.FrameworkSOFA, labels)
	key := func(u registryurl.URL) model.Key {
		return registryurl.SOFAKey(in.Interface, u.Params["version"], u.Params["uniqueId"])
	}
	for _, name := range in.Categories[providers] {
		u, err := registryurl.ParseName(name, true)
		if err != nil {
			b.problem(model.SeverityError, providers, name, "MalformedURL", "the node's name is not a provider's URL: %v; it is left out", err)
			continue
		}
		if i := u.Params["interface"]; i != "" && i != in.Interface {
			b.problem(model.SeverityError, providers, name, "InterfaceMismatch", "%s provides %.200q but is registered under %q; it is left out", u.Outline(), i, in.Interface)
			continue
		}
		b.addProvider(name, u, key(u), u.Params["appName"], "startTime")
	}
	b.sofaOverrides()
	for _, name := range in.Categories[consumers] {
		u, err := registryurl.ParseName(name, false)
		if err != nil {
			b.problem(model.SeverityError, consumers, name, "MalformedURL", "the node's name is not a consumer's URL: %v; it is left out", err)
			continue
		}
		if u.Host == "" {
			b.problem(model.SeverityError, consumers, name, "MissingAddress", "%s has no host; it is left out", u.Outline())
			continue
		}
		born, _ := strconv.ParseInt(u.Params["startTime"], 10, 64)
		b.addConsumer(key(u), model.Consumer{Address: u.Host, Application: u.Params["appName"], Metadata: registryurl.Metadata(u, nil)}, born)
	}
	return b.result()
}

// sofaOverrides applies what the nodes under overrides say of a provider's address. SOFARPC itself writes and reads there
// only callers' settings (timeout, serialization, load balancer), which change nothing here; consoles put weights and switches of
// providers beside them.
func (b *builder) sofaOverrides() {
	var rules []override
	for _, name := range b.in.Categories[overrides] {
		u, err := registryurl.ParseName(name, true)
		if err != nil {
			b.problem(model.SeverityWarning, overrides, name, "MalformedURL", "the node's name is not an override's URL: %v; it is ignored", err)
			continue
		}
		if u.Host != "" {
			rules = append(rules, override{name: name, url: u})
		}
	}
	slices.SortFunc(rules, func(x, y override) int {
		return cmp.Or(cmp.Compare(x.url.Host, y.url.Host), cmp.Compare(x.url.Port, y.url.Port), cmp.Compare(x.name, y.name))
	})
	for key, s := range b.services {
		for id, p := range s.endpoints {
			for _, r := range rules {
				if r.matchesSOFA(key, &p.endpoint) {
					b.apply(overrides, r, &p)
				}
			}
			s.endpoints[id] = p
		}
	}
}

// matchesSOFA tells whether a rule is for an endpoint. What the rule leaves open is any.
func (r override) matchesSOFA(key model.Key, e *model.Endpoint) bool {
	u := r.url
	return (u.Host == e.Address || u.Host == "0.0.0.0") && (u.Port == 0 || u.Port == e.Port) &&
		(u.Params["uniqueId"] == key.Group || u.Params["uniqueId"] == "") &&
		(u.Params["version"] == key.Version || u.Params["version"] == "")
}
