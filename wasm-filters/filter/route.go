package filter

import (
	"encoding/binary"
	"math/bits"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// A route is all calls that no rule and no metric tells apart: what is looked up once for each call.
type route struct {
	hash     uint64
	protocol int
	dir      policy.Direction
	back     bool // against the connection's direction: metered, not governed
	service  string
	version  string
	group    string
	method   string // or what stands for it: known.class
	caller   string

	series *series
	timing *timing
	chain  *chain        // nil: no rule matches
	epoch  uint32        // of the ruleset that chain comes from
	lift   [2]*liftBlock // see liftTable.index
	groups []*group      // of providers, by metrics.subset; nil ones are not counted
}

// is tells whether r is the route of the calls that k describes.
func (r *route) is(protocol int, dir policy.Direction, back bool, k *known) bool {
	return r.protocol == protocol && r.dir == dir && r.back == back && r.method == string(k.key()) && r.service == string(k.service) &&
		r.caller == string(k.caller) && r.version == string(k.version) && r.group == string(k.group)
}

// routes is a hash table of routes: open addressing, linear probing, nothing is ever removed.
type routes struct {
	slots []*route
	n     int
}

// Two constants of wyhash.
const (
	mix1 = 0xa0761d6478bd642f
	mix2 = 0xe7037ed1a0b428db
)

// mix folds b into h, eight bytes at a time.
func mix(h uint64, b []byte) uint64 {
	h ^= uint64(len(b)) * mix2
	for len(b) >= 8 {
		hi, lo := bits.Mul64(h^binary.LittleEndian.Uint64(b), mix1)
		h = hi ^ lo
		b = b[8:]
	}
	if len(b) > 0 {
		var v uint64
		for i, c := range b {
			v |= uint64(c) << (8 * i)
		}
		hi, lo := bits.Mul64(h^v, mix2)
		h = hi ^ lo
	}
	return h
}

// hash hashes all that tells routes apart. seed is random, so that a client cannot choose names that collide.
func hash(seed uint64, protocol int, dir policy.Direction, back bool, k *known) uint64 {
	h := seed ^ uint64(protocol)<<8 ^ uint64(dir)<<1
	if back {
		h ^= 1
	}
	h = mix(h, k.service)
	h = mix(h, k.key())
	h = mix(h, k.version)
	h = mix(h, k.group)
	h = mix(h, k.caller)
	hi, lo := bits.Mul64(h^mix1, mix2)
	return hi ^ lo
}

func (t *routes) find(h uint64, protocol int, dir policy.Direction, back bool, k *known) *route {
	if t.n == 0 {
		return nil
	}
	mask := len(t.slots) - 1
	for i := int(h) & mask; ; i = (i + 1) & mask {
		r := t.slots[i]
		if r == nil || r.hash == h && r.is(protocol, dir, back, k) {
			return r
		}
	}
}

func (t *routes) add(r *route) {
	if 2*(t.n+1) > len(t.slots) {
		old := t.slots
		t.slots = make([]*route, max(64, 2*len(old)))
		for _, o := range old {
			if o != nil {
				t.place(o)
			}
		}
	}
	t.place(r)
	t.n++
}

func (t *routes) place(r *route) {
	mask := len(t.slots) - 1
	i := int(r.hash) & mask
	for t.slots[i] != nil {
		i = (i + 1) & mask
	}
	t.slots[i] = r
}

// routesFor is how many routes may be remembered for each series that may be: several callers beyond their bound share a
// series, but not their rules.
const routesFor = 4

// route returns the route of a call. Where no more can be remembered it is a scratch one, which is valid until the next call;
// shared tells that.
func (rt *Runtime) route(protocol int, dir policy.Direction, back bool, k *known) (r *route, shared bool) {
	h := hash(rt.seed, protocol, dir, back, k)
	r = rt.routes.find(h, protocol, dir, back, k)
	if r == nil {
		if rt.routes.n >= routesFor*int(rt.metrics.limits.MaxSeries) || len(k.service) > maxField || len(k.key()) > maxField ||
			len(k.version) > maxField || len(k.group) > maxField || len(k.caller) > maxField {
			return rt.overflow(protocol, dir, back, k), true
		}
		r = &route{hash: h, protocol: protocol, dir: dir, back: back, service: string(k.service), version: string(k.version), group: string(k.group),
			method: string(k.key()), caller: string(k.caller)}
		r.series, r.timing = rt.metrics.forRoute(rt.vm.protocols[protocol].name(), dir, k)
		r.chain, r.epoch = rt.chain(dir, back, k), rt.epoch
		rt.routes.add(r)
		return r, false
	}
	if r.epoch != rt.epoch {
		r.chain, r.epoch = rt.chain(dir, back, k), rt.epoch
	}
	return r, false
}

// overflow returns a route that is not remembered.
func (rt *Runtime) overflow(protocol int, dir policy.Direction, back bool, k *known) *route {
	if rt.beyond == nil {
		rt.beyond = make([][directions]*route, len(rt.vm.protocols))
	}
	r := rt.beyond[protocol][dir]
	if r == nil {
		r = &route{protocol: protocol, dir: dir}
		all := known{service: otherValue, method: otherValue, caller: otherValue}
		system := rt.vm.protocols[protocol].name()
		r.series = rt.metrics.spill(system, dir)
		_, r.timing = rt.metrics.forRoute(system, dir, &all)
		rt.beyond[protocol][dir] = r
	}
	r.chain = rt.chain(dir, back, k)
	return r
}
