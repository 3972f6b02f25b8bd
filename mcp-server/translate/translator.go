package translate

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
)

// Translator translates snapshots one after the other. What it makes of one is what Translate makes of it, whatever came before; but a
// service is rendered again only if it has changed, or something has that its rendering depends on. These are all such things:
//
//   - the labels of an address, which all services say together (settle), and the identity that follows from them;
//   - whether RPC over TCP is spoken at a socket at which it has an endpoint of another protocol (place.shared);
//   - its virtual address, which another host may want too (allocator);
//   - whether it is lifted, which those who share its ports have a say in (lift).
//
// Beside them there are resources of several services: the catch-all, the rule for mutual TLS and the providers' entry of a port, and the
// WorkloadEntry of an address. What is kept is what the latest snapshot has, and no more.
//
// A Translator must not be used by several goroutines at once; the translations are independent of it.
type Translator struct {
	o     Options
	round uint64
	units []*unit // in the order of the snapshot
	byKey map[model.Key]*unit

	places   map[string]*place // by address, as the registries write it
	hosts    map[string]*unit
	virtual  *allocator
	machines map[netip.Addr]*machine
	ports    map[uint16]int        // of endpoints that speak RPC over TCP: by how many parts
	listen   map[uint16]int        // those, and the services' own
	web      map[uint16]int        // those that speak HTTP by themselves, likewise
	lifted   map[uint16]int        // on which lifted services are called
	provided map[uint16]int        // those of them with a connection manager at the providers
	stands   map[uint16]*providers // their endpoints
	dialled  map[uint16]*dialled   // all endpoints but those of HTTP
	mutual   map[uint16][]string   // the identities on ports where all endpoints have one
	caught   map[uint16]bool       // ports that have a catch-all
	ruled    map[uint16][]string   // and those of them that have a mutualRule: for which identities

	draft                                                        resource.Draft
	twice                                                        []model.Key         // services that the snapshot holds twice
	reserved                                                     map[uint16]problems // of ports
	disputed                                                     map[string]problems // of addresses
	tcpPorts, httpPorts, liftedPorts, providerPorts, mutualPorts []uint16
	problems                                                     []model.Problem
}

// unit is one service, and what it has come to.
type unit struct {
	key     model.Key
	round   uint64        // of the snapshot that it was last in
	index   int           // in Translator.units
	service model.Service // as it was said last
	facts   *facts
	claims  []claim
	lifting []lifting
	outcome *outcome // nil before the first rendering
}

// place is an address that endpoints have, as the registries write it.
type place struct {
	users   []*unit // each once
	said    map[label]int
	ports   map[uint16]speech
	labels  map[string]string // what became of said, as of the last settling
	account string            // what follows from them
}

// speech is how many endpoints on a port speak RPC over TCP, and how many something else.
type speech struct{ tcp, other int }

// shared tells whether RPC over TCP is spoken on a port and something else too.
func (s speech) shared() bool { return s.tcp > 0 && s.other > 0 }

// machine is an address at which somebody listens.
type machine struct {
	ports map[uint16]int // and how many endpoints
	list  string         // of the ports, as it was rendered last
}

// NewTranslator returns a Translator that has not seen anything yet.
func NewTranslator(o Options) *Translator {
	o = o.withDefaults()
	return &Translator{
		o: o, byKey: map[model.Key]*unit{}, places: map[string]*place{}, hosts: map[string]*unit{}, virtual: newAllocator(o.VirtualAddresses),
		machines: map[netip.Addr]*machine{}, ports: map[uint16]int{}, listen: map[uint16]int{}, web: map[uint16]int{}, lifted: map[uint16]int{}, provided: map[uint16]int{},
		stands: map[uint16]*providers{}, dialled: map[uint16]*dialled{}, mutual: map[uint16][]string{}, caught: map[uint16]bool{}, ruled: map[uint16][]string{}, reserved: map[uint16]problems{}, disputed: map[string]problems{},
	}
}

// change is what a snapshot changes.
type change struct {
	dirty    map[*unit]struct{}         // to be rendered
	gone     []*unit                    // and their outcomes withdrawn
	places   map[string]map[uint16]bool // touched: and which of their touched ports were shared before
	machines map[netip.Addr]struct{}    // touched
	ports    map[uint16]struct{}        // touched
	stands   map[uint16]map[netip.Addr]struct{}
	portSets bool // there are others than before
	claims   bool // what is lifted has to be decided again
	complain bool // problems are others
}

// Translate renders a snapshot. It keeps what it is given, which must not be changed.
func (t *Translator) Translate(s *model.Snapshot) *Translation {
	c := &change{dirty: map[*unit]struct{}{}, places: map[string]map[uint16]bool{}, machines: map[netip.Addr]struct{}{}, ports: map[uint16]struct{}{},
		stands: map[uint16]map[netip.Addr]struct{}{}}
	t.take(s, c)
	t.settlePlaces(c)
	for _, host := range t.virtual.settle() {
		if u := t.hosts[host]; u != nil {
			c.dirty[u] = struct{}{}
		}
	}
	t.decide(c)
	t.render(c)
	t.settlePorts(c)
	t.settleMachines(c)
	if c.complain {
		t.gather()
	}
	out := &Translation{Services: make([]*Service, 0, len(t.units)), TCPPorts: t.tcpPorts, HTTPPorts: t.httpPorts, LiftedPorts: t.liftedPorts,
		ProviderPorts: t.providerPorts, MutualPorts: t.mutualPorts, Problems: t.problems}
	for _, u := range t.units {
		out.Services = append(out.Services, u.outcome.services...)
		out.Lifted = append(out.Lifted, u.outcome.lifted...)
	}
	freeze := t.draft.Freeze()
	out.set = func() resource.Set {
		set, err := freeze()
		if err != nil { // everything in a body was made valid UTF-8
			panic("translate: " + err.Error())
		}
		return set
	}
	return out
}

// take compares the services of a snapshot with what is known, and takes over what is different.
func (t *Translator) take(s *model.Snapshot, c *change) {
	t.round++
	units := make([]*unit, 0, len(s.Services))
	var twice []model.Key
	next := 0 // the unit that comes next if nothing came or went
	for i := range s.Services {
		svc := &s.Services[i]
		var u *unit
		if next < len(t.units) && t.units[next].key == svc.Key {
			u = t.units[next]
		} else {
			u = t.byKey[svc.Key]
		}
		switch {
		case u == nil:
			u = &unit{key: svc.Key, index: -1}
			t.byKey[svc.Key] = u
			t.enter(u, svc, c)
		case u.round == t.round:
			twice = append(twice, svc.Key)
			continue
		case !sameService(&u.service, svc):
			t.enter(u, svc, c)
		default:
			u.service = *svc // so that the next comparison is short
		}
		if u.index >= 0 {
			next = u.index + 1
		}
		u.round = t.round
		units = append(units, u)
	}
	for _, u := range t.units {
		if u.round != t.round {
			t.leave(u, c)
		}
	}
	for i, u := range units {
		u.index = i
	}
	t.units = units
	if !slices.Equal(t.twice, twice) {
		t.twice, c.complain = twice, true
	}
}

// sameService tells whether two services are translated alike. Services that did not change share their endpoints from one snapshot to the
// next, which is found out first.
func sameService(a, b *model.Service) bool {
	if len(a.Endpoints) != len(b.Endpoints) || !maps.Equal(a.Metadata, b.Metadata) {
		return false
	}
	if len(a.Endpoints) == 0 || &a.Endpoints[0] == &b.Endpoints[0] {
		return true
	}
	return slices.EqualFunc(a.Endpoints, b.Endpoints, func(a, b model.Endpoint) bool {
		return a.Address == b.Address && a.Port == b.Port && a.Protocol == b.Protocol && a.Application == b.Application && a.Disabled == b.Disabled &&
			a.Locality == b.Locality && (a.Weight == nil) == (b.Weight == nil) && (a.Weight == nil || *a.Weight == *b.Weight) &&
			maps.Equal(a.Labels, b.Labels) && maps.Equal(a.Metadata, b.Metadata) && slices.Equal(a.Origins, b.Origins)
	})
}

// enter takes over what a service says, in place of what it said before.
func (t *Translator) enter(u *unit, s *model.Service, c *change) {
	before := u.facts
	u.service = *s // a copy: a unit must not keep the whole snapshot
	u.facts = t.o.facts(&u.service)
	t.count(u, u.facts, 1, c)
	if before != nil {
		t.count(u, before, -1, c)
	}
	c.dirty[u] = struct{}{}
	t.name(u, before, u.facts)
}

// leave forgets a service.
func (t *Translator) leave(u *unit, c *change) {
	t.count(u, u.facts, -1, c)
	t.name(u, u.facts, &facts{})
	delete(t.byKey, u.key)
	delete(c.dirty, u)
	c.gone = append(c.gone, u)
	c.claims = true
}

// name gives up the hosts that a unit has no longer, and takes in those that are new.
func (t *Translator) name(u *unit, before, after *facts) {
	has := func(f *facts, host string) bool {
		return slices.ContainsFunc(f.parts, func(p part) bool { return p.host == host })
	}
	if before != nil {
		for i := range before.parts {
			if host := before.parts[i].host; !has(after, host) {
				t.virtual.remove(host)
				delete(t.hosts, host)
			}
		}
	}
	for i := range after.parts {
		if host := after.parts[i].host; before == nil || !has(before, host) {
			t.virtual.add(host)
			t.hosts[host] = u
		}
	}
}

// count adds what a service says of addresses and sockets to what all say, or takes it away again.
func (t *Translator) count(u *unit, f *facts, n int, c *change) {
	for a := range f.addresses {
		p := t.places[a]
		if p == nil {
			p = &place{said: map[label]int{}, ports: map[uint16]speech{}}
			t.places[a] = p
		}
		if c.places[a] == nil {
			c.places[a] = map[uint16]bool{}
		}
		// Of a service that has changed the new facts are counted before the old ones, so both may have an address.
		_, stays := u.facts.addresses[a]
		if f == u.facts {
			stays = n > 0
		}
		if i := slices.Index(p.users, u); stays && i < 0 {
			p.users = append(p.users, u)
		} else if !stays && i >= 0 {
			p.users = slices.Delete(p.users, i, i+1)
		}
	}
	for i := range f.parts {
		part := &f.parts[i]
		for _, e := range part.endpoints {
			p, touched := t.places[e.Address], c.places[e.Address]
			labelsOf(e, func(l label) {
				if p.said[l] += n; p.said[l] == 0 {
					delete(p.said, l)
				}
			})
			s := p.ports[e.Port]
			if _, ok := touched[e.Port]; !ok {
				touched[e.Port] = s.shared()
			}
			if part.wire.tcp() {
				s.tcp += n
			} else {
				s.other += n
			}
			if p.ports[e.Port] = s; s == (speech{}) {
				delete(p.ports, e.Port)
			}
			if a, ok := listens(e); ok {
				m := t.machines[a]
				if m == nil {
					m = &machine{ports: map[uint16]int{}}
					t.machines[a] = m
				}
				if m.ports[e.Port] += n; m.ports[e.Port] == 0 {
					delete(m.ports, e.Port)
				}
				c.machines[a] = struct{}{}
			}
		}
	}
}

// settlePlaces finds out what has become of the labels and sockets of the addresses that were touched.
func (t *Translator) settlePlaces(c *change) {
	for a, ports := range c.places {
		p := t.places[a]
		if len(p.users) == 0 {
			delete(t.places, a)
			t.dispute(a, nil, c)
			continue
		}
		labels, problems := settle(a, p.said)
		p.account = t.o.placeAccount(a, labels, &problems)
		t.dispute(a, problems, c)
		changed := !maps.Equal(labels, p.labels)
		if changed {
			p.labels = labels
		}
		for port, before := range ports {
			changed = changed || p.ports[port].shared() != before
		}
		if changed {
			for _, u := range p.users {
				c.dirty[u] = struct{}{}
			}
		}
	}
}

// dispute notes the problems of an address.
func (t *Translator) dispute(address string, now problems, c *change) {
	if slices.Equal(t.disputed[address], now) {
		return
	}
	c.complain = true
	if t.disputed[address] = now; len(now) == 0 {
		delete(t.disputed, address)
	}
}

func (t *Translator) labels(address string) map[string]string {
	if p := t.places[address]; p != nil {
		return p.labels
	}
	return nil
}

func (t *Translator) account(address string) string {
	if p := t.places[address]; p != nil {
		return p.account
	}
	return ""
}

func (t *Translator) surroundings() surroundings {
	return surroundings{labels: t.labels, account: t.account, shared: t.shared, virtual: t.virtual.address}
}

func (t *Translator) shared(address string, port uint16) bool {
	p := t.places[address]
	return p != nil && p.ports[port].shared()
}

// decide finds out which parts are lifted, if somebody's claim is another than before.
func (t *Translator) decide(c *change) {
	for u := range c.dirty {
		claims := make([]claim, len(u.facts.parts))
		for i := range u.facts.parts {
			p := &u.facts.parts[i]
			var nobody problems // render says it
			claims[i] = claim{part: p, tcp: t.o.wire(p, t.shared, &nobody).tcp()}
		}
		c.claims = c.claims || !slices.EqualFunc(u.claims, claims, func(a, b claim) bool { return a.same(&b) })
		u.claims = claims
	}
	if !c.claims || len(t.o.Lift) == 0 {
		for u := range c.dirty {
			if len(u.lifting) != len(u.claims) {
				u.lifting = make([]lifting, len(u.claims))
			}
		}
		return
	}
	var all []claim
	for _, u := range t.units {
		all = append(all, u.claims...)
	}
	decisions := lift(all)
	for _, u := range t.units {
		n := len(u.claims)
		if !slices.Equal(u.lifting, decisions[:n]) {
			u.lifting = slices.Clone(decisions[:n])
			c.dirty[u] = struct{}{}
		}
		decisions = decisions[n:]
	}
}

// render renders what is dirty, and puts it in the place of what was there.
func (t *Translator) render(c *change) {
	for _, u := range c.gone {
		t.withdraw(u.outcome, c)
		c.complain = c.complain || len(u.outcome.problems) > 0
	}
	for u := range c.dirty {
		if u.outcome != nil {
			t.withdraw(u.outcome, c)
		}
	}
	around := t.surroundings()
	for u := range c.dirty {
		around.lifting = u.lifting
		before := u.outcome
		u.outcome = t.o.render(u.facts, &around)
		for _, r := range u.outcome.resources {
			t.draft.Put(r)
		}
		if before == nil {
			before = &outcome{}
		}
		c.complain = c.complain || !slices.Equal(before.problems, u.outcome.problems)
		t.tally(u.outcome, 1, c)
		u.outcome.resources = nil // the Draft has them
	}
}

// withdraw takes back what a service had come to.
func (t *Translator) withdraw(o *outcome, c *change) {
	for _, s := range o.services {
		t.draft.Remove(t.o.id(s.Name))
	}
	t.tally(o, -1, c)
}

func (o *Options) id(name string) resource.ID {
	return resource.ID{Type: resource.TypeServiceEntry, Namespace: o.Namespace, Name: name}
}

// tally adds the ports of a service to those of all, or takes them away again.
func (t *Translator) tally(o *outcome, n int, c *change) {
	add := func(of map[uint16]int, ports []uint16) {
		for _, port := range ports {
			before := of[port]
			count(of, port, n)
			c.portSets = c.portSets || before == 0 || of[port] == 0
			c.ports[port] = struct{}{}
		}
	}
	add(t.ports, o.ports)
	add(t.listen, o.listening)
	add(t.web, o.web)
	add(t.provided, o.provided)
	for _, l := range o.lifted {
		add(t.lifted, l.Ports)
	}
	for _, e := range o.callees {
		port := e.at.Port()
		if t.dialled[port] == nil {
			t.dialled[port] = &dialled{map[string]int{}, map[netip.AddrPort]int{}}
		}
		t.dialled[port].say(e, n)
	}
	for _, s := range o.stands {
		port, a := s.at.Port(), s.at.Addr()
		if t.stands[port] == nil {
			t.stands[port] = &providers{said: map[netip.Addr]map[saidAt]int{}}
		}
		t.stands[port].say(a, s.said, n)
		if c.stands[port] == nil {
			c.stands[port] = map[netip.Addr]struct{}{}
		}
		c.stands[port][a] = struct{}{}
	}
}

// settlePorts brings what there is of each port up to date.
func (t *Translator) settlePorts(c *change) {
	for port := range c.ports {
		var problems problems
		t.settleDialled(port, &problems)
		switch {
		case t.ports[port] == 0 && t.caught[port]:
			delete(t.caught, port)
			t.draft.Remove(t.o.id(t.o.entryName(t.o.Naming.PortHost(port))))
		case t.ports[port] == 0:
		case reservedPorts[port]:
			problems.add(model.SeverityError, fmt.Sprintf("port %d", port), "ReservedPort",
				"endpoints listen on port %d, which a sidecar keeps for itself: calls to their own addresses are not seen by the filter; the services' virtual addresses work", port)
		case !t.caught[port]:
			t.caught[port] = true
			t.draft.Put(t.o.catchAll(port))
		}
		if !slices.Equal(t.reserved[port], problems) {
			c.complain = true
			if t.reserved[port] = problems; problems == nil {
				delete(t.reserved, port)
			}
		}
	}
	if c.portSets {
		t.tcpPorts, t.httpPorts = same(t.tcpPorts, t.listen), same(t.httpPorts, t.web)
		t.liftedPorts, t.providerPorts = same(t.liftedPorts, t.lifted), same(t.providerPorts, t.provided)
	}
	t.mutualPorts = slices.DeleteFunc(slices.Clone(t.liftedPorts), func(port uint16) bool { return t.mutual[port] == nil })
	around := t.surroundings()
	for port := range c.ports {
		p := t.stands[port]
		if p == nil {
			continue
		}
		http := t.provided[port] > 0
		other := p.http != http
		p.http = http
		if !p.settle(c.stands[port], &around) && !other {
			continue
		}
		if len(p.endpoints) == 0 {
			delete(t.stands, port)
			t.draft.Remove(t.o.id(t.o.entryName(t.o.Naming.ProvidersHost(port))))
			continue
		}
		t.draft.Put(t.o.providersEntry(port, p))
	}
}

// settleDialled finds out whether all endpoints on a port have an identity, and has callers speak mutual TLS with whoever is dialled there if so.
func (t *Translator) settleDialled(port uint16, problems *problems) {
	d := t.dialled[port]
	if d != nil && len(d.mutual)+len(d.plain) == 0 {
		delete(t.dialled, port)
		d = nil
	}
	d.mixed(port, problems)
	identities := d.all()
	if t.mutual[port] = identities; identities == nil {
		delete(t.mutual, port)
	}
	if t.ports[port] == 0 || reservedPorts[port] {
		identities = nil
	}
	switch {
	case slices.Equal(t.ruled[port], identities):
	case identities == nil:
		delete(t.ruled, port)
		t.draft.Remove(resource.ID{Type: resource.TypeDestinationRule, Namespace: t.o.Namespace, Name: t.o.entryName(t.o.Naming.PortHost(port))})
	default:
		t.ruled[port] = identities
		t.draft.Put(t.o.mutualRule(port, identities))
	}
}

// same returns list if it has the keys of the map, and else a new one that has. Lists are sorted.
func same(list []uint16, of map[uint16]int) []uint16 {
	if now := slices.Sorted(maps.Keys(of)); !slices.Equal(list, now) {
		return now
	}
	return list
}

// settleMachines brings the WorkloadEntries of the addresses up to date that were touched.
func (t *Translator) settleMachines(c *change) {
	for a := range c.machines {
		m := t.machines[a]
		list := portList(m.ports)
		switch {
		case list == "":
			delete(t.machines, a)
			t.draft.Remove(resource.ID{Type: resource.TypeWorkloadEntry, Namespace: t.o.Namespace, Name: workloadName(a)})
		case list != m.list:
			m.list = list
			t.draft.Put(t.o.workload(a, list))
		}
	}
}

// gather lists all problems.
func (t *Translator) gather() {
	var all problems
	for _, key := range t.twice {
		all.add(model.SeverityError, clip(key.String()), "DuplicateService", "the snapshot holds it twice; the first one is carried")
	}
	for _, u := range t.units {
		all = append(all, u.outcome.problems...)
	}
	for _, p := range t.disputed {
		all = append(all, p...)
	}
	for _, p := range t.reserved {
		all = append(all, p...)
	}
	t.problems = all.sorted()
}
