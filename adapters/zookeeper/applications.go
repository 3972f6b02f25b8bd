package zookeeper

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/adapters/registryurl"
)

const frameworkSpring = "spring"

// instance is the data of /services/<application>/<id>, as curator's service discovery writes it (JsonInstanceSerializer).
type instance struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	Port    *int   `json:"port"`
	SSLPort *int   `json:"sslPort"`
	Payload struct {
		Class    string         `json:"@class"`
		Metadata map[string]any `json:"metadata"`
	} `json:"payload"`
	Born int64 `json:"registrationTimeUTC"`
}

// The classes of the payload tell who has registered an instance.
const (
	classDubbo  = "org.apache.dubbo."
	classSpring = "org.springframework.cloud."
)

// text returns an entry of the payload's metadata.
func (i *instance) text(key string) string {
	s, _ := i.Payload.Metadata[key].(string)
	return s
}

// The keys of a Dubbo instance's metadata (ServiceInstanceMetadataUtils).
const (
	keyRevision  = "dubbo.metadata.revision"
	keyStorage   = "dubbo.metadata.storage-type"
	keyEndpoints = "dubbo.endpoints"
)

// noRevision is the revision of an instance that provides nothing (RevisionResolver.EMPTY_REVISION).
const noRevision = "0"

// dubboMetadata is the data of <metadata root>/<application>/<revision> (MetadataInfo).
type dubboMetadata struct {
	Services map[string]struct {
		Name     string            `json:"name"`
		Group    string            `json:"group"`
		Version  string            `json:"version"`
		Protocol string            `json:"protocol"`
		Path     string            `json:"path"`
		Port     int               `json:"port"`
		Params   map[string]string `json:"params"`
	} `json:"services"`
}

// parseInstance reads an instance's data. nil without an error is an instance of neither Dubbo nor Spring Cloud.
func parseInstance(data []byte) (*instance, error) {
	var i instance
	if err := json.Unmarshal(data, &i); err != nil {
		return nil, err
	}
	switch {
	case strings.HasPrefix(i.Payload.Class, classDubbo):
	case strings.HasPrefix(i.Payload.Class, classSpring):
	default:
		return nil, nil
	}
	host, _, err := registryurl.ParseAddress(i.Address, false)
	if err != nil {
		return nil, err
	}
	if host == "" {
		return nil, errors.New("it has no address")
	}
	i.Address = host
	return &i, nil
}

func port(p *int) uint16 {
	if p == nil || *p < 1 || *p > 65535 {
		return 0
	}
	return uint16(*p)
}

// addresses returns host:port of everything that a Dubbo instance listens on.
func (i *instance) addresses() []string {
	var endpoints []struct {
		Port int `json:"port"`
	}
	out := []string{}
	if json.Unmarshal([]byte(i.text(keyEndpoints)), &endpoints) == nil {
		for _, e := range endpoints {
			out = append(out, net.JoinHostPort(i.Address, strconv.Itoa(e.Port)))
		}
	}
	if len(out) == 0 && port(i.Port) != 0 {
		out = append(out, net.JoinHostPort(i.Address, strconv.Itoa(*i.Port)))
	}
	return out
}

// instances takes over the children of an application.
func (w *watch) instances(n *node) {
	u := n.unit
	for _, id := range n.children {
		switch have := u.parts[id]; {
		case have == nil:
			have = &node{path: u.source + "/" + id, role: roleInstance, root: u.root, unit: u, part: id}
			u.parts[id] = have
			w.add(have)
		case have.absent:
			w.enqueue(have)
		}
	}
	for id, have := range u.parts {
		if _, there := slices.BinarySearch(n.children, id); !there {
			w.drop(have)
			delete(u.parts, id)
		}
	}
	w.revisions(u)
}

// revisions watches the metadata that an application's instances refer to, and no other. Many instances share one revision;
// the watch is for metadata that is written after the instance.
func (w *watch) revisions(u *unit) {
	wanted := map[string]bool{}
	for _, n := range u.parts {
		i, err := parseInstance(n.data)
		if err != nil || i == nil || i.text(keyStorage) != "remote" {
			continue
		}
		if r := i.text(keyRevision); r != "" && r != noRevision && !strings.Contains(r, "/") {
			wanted[r] = true
		}
	}
	for r := range wanted {
		if u.metadata[r] == nil {
			path := w.d.s.Chroot + w.d.s.MetadataRoot + "/" + u.name + "/" + r
			if w.nodes[path] != nil {
				continue // of an application of the same name below another root; one of them will do
			}
			u.metadata[r] = &node{path: path, role: roleMetadata, root: u.root, unit: u, part: r}
			w.add(u.metadata[r])
		}
	}
	for r, n := range u.metadata {
		if !wanted[r] {
			w.drop(n)
			delete(u.metadata, r)
		}
	}
}

// learn notes at which addresses an interface has endpoints, nil for none any more, and has the applications looked at again
// that wait for one of them.
func (w *watch) learn(u *unit, services []model.Service) {
	now := map[string]bool{}
	for _, s := range services {
		for _, e := range s.Endpoints {
			now[net.JoinHostPort(e.Address, strconv.Itoa(int(e.Port)))] = true
		}
	}
	change := func(address string, by int) {
		before := w.known[address] > 0
		if w.known[address] += by; w.known[address] == 0 {
			delete(w.known, address)
		}
		if before != (w.known[address] > 0) {
			for waiting := range w.waiting[address] {
				w.touch(waiting)
			}
		}
	}
	for address := range now {
		if !slices.Contains(u.addresses, address) {
			change(address, 1)
		}
	}
	for _, address := range u.addresses {
		if !now[address] {
			change(address, -1)
		}
	}
	u.addresses = slices.Collect(maps.Keys(now))
}

// wait notes for which addresses an application waits.
func (w *watch) wait(u *unit, addresses []string) {
	for _, a := range u.waits {
		delete(w.waiting[a], u)
		if len(w.waiting[a]) == 0 {
			delete(w.waiting, a)
		}
	}
	for _, a := range addresses {
		if w.waiting[a] == nil {
			w.waiting[a] = map[*unit]struct{}{}
		}
		w.waiting[a][u] = struct{}{}
	}
	u.waits = addresses
}

// application makes the services of an application: of a Dubbo instance what its metadata says, of a Spring Cloud instance the
// application itself.
func (w *watch) application(u *unit) ([]model.Service, []model.Problem) {
	b := newBuilder(interfaceNodes{Path: u.source}, frameworkDubbo, w.d.s.LabelParameters)
	problem := func(severity model.Severity, place, code, format string, args ...any) {
		b.problems = append(b.problems, model.Problem{Severity: severity, Place: place, Code: code, Message: fmt.Sprintf(format, args...)})
	}
	described := map[string]*dubboMetadata{}
	for r, n := range u.metadata {
		if len(n.data) == 0 {
			continue
		}
		var m dubboMetadata
		if err := json.Unmarshal(n.data, &m); err != nil {
			problem(model.SeverityError, n.path, "MalformedMetadata", "the services of this revision cannot be read: %v; they are left out", err)
			continue
		}
		described[r] = &m
	}
	var mute []string            // instances that say nothing of their services
	var waits []string           // their addresses
	missing := map[string]bool{} // revisions
	for _, id := range slices.Sorted(maps.Keys(u.parts)) {
		n := u.parts[id]
		if len(n.data) == 0 {
			continue // gone, or no data yet
		}
		i, err := parseInstance(n.data)
		switch {
		case err != nil:
			problem(model.SeverityError, n.path, "MalformedInstance", "the instance cannot be read: %v; it is left out", err)
			continue
		case i == nil:
			continue
		case strings.HasPrefix(i.Payload.Class, classSpring):
			b.addSpring(u.name, id, i)
			continue
		}
		revision := i.text(keyRevision)
		if revision == "" || revision == noRevision {
			continue // it provides nothing
		}
		if i.text(keyStorage) != "remote" {
			known := true
			for _, a := range i.addresses() {
				waits = append(waits, a)
				known = known && w.known[a] > 0
			}
			if !known {
				mute = append(mute, id)
			}
			continue
		}
		m := described[revision]
		if m == nil {
			if meta := u.metadata[revision]; meta != nil && meta.absent {
				missing[meta.path] = true
			}
			continue
		}
		b.addDubboInstance(id, i, m)
	}
	w.wait(u, waits)
	if len(mute) > 0 {
		problem(model.SeverityWarning, u.source, "MetadataNotInRegistry",
			"%d instance(s), %s among them, do not say in the registry which services they provide (%s is not remote), and are not registered by interface: set dubbo.application.metadata-type=remote, or dubbo.application.register-mode=all",
			len(mute), mute[0], keyStorage)
	}
	for path := range missing {
		problem(model.SeverityError, path, "MetadataMissing", "instances refer to this revision, but there is no such node; their services are left out until it comes. Is metadataRoot right?")
	}
	return b.result()
}

// addDubboInstance takes over the services of one instance.
func (b *builder) addDubboInstance(id string, i *instance, m *dubboMetadata) {
	for _, name := range slices.Sorted(maps.Keys(m.Services)) {
		s := m.Services[name]
		if !registryurl.Word(s.Name) || !registryurl.Word(s.Protocol) {
			b.problem(model.SeverityError, "", id, "MalformedMetadata", "the name or the protocol of service %.200q is missing or no name; it is left out", name)
			continue
		}
		protocol := strings.ToLower(s.Protocol)
		if protocol == "injvm" {
			continue
		}
		u := registryurl.URL{Protocol: protocol, Host: i.Address, Path: s.Path, Params: map[string]string{}}
		if u.Port = port(&s.Port); u.Port == 0 {
			u.Port = port(i.Port)
		}
		for k, v := range i.Payload.Metadata {
			if v, ok := v.(string); ok && (!strings.HasPrefix(k, "dubbo.") || k == "dubbo.tag") {
				u.Params[k] = v
			}
		}
		maps.Copy(u.Params, s.Params)
		if u.Params["timestamp"] == "" && i.Born > 0 {
			u.Params["timestamp"] = strconv.FormatInt(i.Born, 10)
		}
		key := model.Key{Framework: frameworkDubbo, Interface: s.Name, Version: dubboVersion(cmp.Or(s.Version, s.Params["version"])), Group: cmp.Or(s.Group, s.Params["group"])}
		b.addProvider(id, u, key, cmp.Or(u.Params["application"], i.Name), "timestamp")
	}
}

// addSpring takes over an instance of Spring Cloud ZooKeeper. Its metadata are what people select by, so they become labels.
func (b *builder) addSpring(application, id string, i *instance) {
	e := model.Endpoint{Address: i.Address, Port: port(i.Port), Protocol: model.ProtocolHTTP, Application: application}
	if e.Port == 0 {
		e.Port, e.Protocol = port(i.SSLPort), "https"
	}
	if e.Port == 0 {
		b.problem(model.SeverityError, "", id, "MissingAddress", "the instance has no port; it is left out")
		return
	}
	if why := registryurl.Unusable(e.Address); why != "" {
		b.problem(model.SeverityError, "", id, "UnusableAddress", "the address %s %s; the instance is left out", e.Address, why)
		return
	}
	for k, v := range i.Payload.Metadata {
		v, ok := v.(string)
		switch {
		case !ok || k == "" || v == "" || registryurl.Secret(k) || len(k) > 128 || len(v) > registryurl.MaxValue:
		case k == "instance_status": // of spring-cloud-zookeeper's service registry
			e.Disabled = v != "UP"
		case k == "weight":
			e.Weight = b.weight("", id, v)
		case k == "zone":
			e.Locality.Zone = v
		case k == "region":
			e.Locality.Region = v
		default:
			if e.Labels == nil {
				e.Labels = map[string]string{}
			}
			e.Labels[k] = v
		}
	}
	s := b.at(model.Key{Framework: frameworkSpring, Interface: application})
	endpoint := endpointID{e.Address, e.Port, e.Protocol}
	if have, ok := s.endpoints[endpoint]; !ok || i.Born > have.born {
		s.endpoints[endpoint] = provider{endpoint: e, born: i.Born}
	}
}
