package ratelimit

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"strconv"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// HotParams are the parameters of a HotRule.
type HotParams struct {
	Params
	Subject policy.Subject // whose values are limited
	// MaxValues is how many values are remembered; it is rounded up to a multiple of eight.
	MaxValues uint32
}

// HotRule limits each value of something by itself.
//
// Its memory is bounded, whatever callers send: values are told apart by a hash of 64 bits, which falls into one of MaxValues/8 lines
// of eight places. Where all eight are taken, the value whose bucket is nearest to being full is forgotten, which is the one that
// was used longest ago, or least; what is forgotten begins with a full bucket again. The state is that of all workers of an
// Envoy; each decision is two calls of the host.
type HotRule struct {
	policy.Rule
	params HotParams
	slot   int    // the number of an attachment
	math   bucket // without state
	lines  uint32
	seed   uint64 // of the hash: random, so that nobody can choose values that collide

	shared policy.Shared // nil: this worker is alone
	key    []byte        // of the line at hand: prefix and number
	prefix int
	value  []byte            // scratch, lineLen bytes
	own    map[uint32][]byte // lines, without a Shared
}

const (
	linePlaces = 8
	placeLen   = 20 // hash (8), full.ns (8), full.frac (4), little endian
	lineLen    = linePlaces * placeLen
)

// NewHot returns a rule. name goes into verdicts; with observe the rule only counts. shared holds the buckets for all
// workers under keys made of scope, name and p; nil means that there is only one worker.
func NewHot(name string, p HotParams, observe bool, shared policy.Shared, scope string) *HotRule {
	r := &HotRule{Rule: policy.NewRule(name, observe), params: p, shared: shared, value: make([]byte, 0, lineLen)}
	r.math.setup(p.Params, nil, "", "")
	r.lines = (max(p.MaxValues, 1) + linePlaces - 1) / linePlaces
	r.seed = maphash.String(maphash.MakeSeed(), name)
	if shared == nil {
		r.own = make(map[uint32][]byte)
		return r
	}
	k := append([]byte(nil), "isthmus/hot/1/"...)
	k = append(k, scope...)
	k = append(k, '/')
	k = append(k, name...)
	for _, v := range [...]uint64{uint64(p.Threshold), uint64(p.Interval), uint64(p.Burst), uint64(p.MaxValues), uint64(p.Subject)} {
		k = append(k, '/')
		k = strconv.AppendUint(k, v, 10)
	}
	k = append(k, '/')
	r.key, r.prefix = append(k, 0, 0, 0, 0), len(k)
	// All workers need one seed. As with a bucket, Envoy's main thread is the first.
	v, _, ok := shared.Get(r.value[:0], k)
	if !ok || len(v) != 8 {
		// The lines come first: of two workers that make one at the same moment each would forget what the other has put there.
		for n := range r.lines {
			binary.LittleEndian.PutUint32(r.key[r.prefix:], n)
			shared.CompareAndSwap(r.key, empty[:], 0)
		}
		shared.CompareAndSwap(k, binary.LittleEndian.AppendUint64(r.value[:0], r.seed), 0)
	} else {
		r.seed = binary.LittleEndian.Uint64(v)
	}
	return r
}

// Params returns the rule's parameters.
func (r *HotRule) Params() HotParams { return r.params }

// SetKey says which attachment the values are from, by its number in policy.Call.Attachments.
func (r *HotRule) SetKey(key int) { r.slot = key }

// hash returns the hash of the value that c has, 0 where it has none.
func (r *HotRule) hash(c *policy.Call) uint64 {
	var v []byte
	if r.params.Subject == policy.SubjectAddress {
		if c.Peer == nil || !c.Peer.AddressKnown {
			return 0
		}
		v = c.Peer.Address[:]
	} else {
		var known bool
		if v, known = r.params.Subject.Of(c, r.slot); !known || v == nil {
			return 0
		}
	}
	h := r.seed ^ uint64(len(v))
	for len(v) >= 8 {
		h = fold(h^binary.LittleEndian.Uint64(v), 0xa0761d6478bd642f)
		v = v[8:]
	}
	var tail uint64
	for i, b := range v {
		tail |= uint64(b) << (8 * i)
	}
	return max(fold(fold(h^tail, 0xe7037ed1a0b428db)^r.seed, 0xa0761d6478bd642f), 1)
}

// fold multiplies, with constants of wyhash, and folds the product.
func fold(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// load returns the line of a hash.
func (r *HotRule) load(h uint64) (line []byte, mark uint32) {
	n := uint32(h>>32) % r.lines
	v := r.value[:0]
	if r.shared == nil {
		v = append(v, r.own[n]...)
	} else {
		binary.LittleEndian.PutUint32(r.key[r.prefix:], n)
		v, mark, _ = r.shared.Get(v, r.key)
	}
	if len(v) != lineLen {
		v = v[:0]
		v = append(v, empty[:]...)
	}
	return v, mark
}

var empty [lineLen]byte

func (r *HotRule) store(h uint64, line []byte, mark uint32) bool {
	if r.shared == nil {
		n := uint32(h>>32) % r.lines
		own := r.own[n]
		if own == nil {
			own = make([]byte, lineLen)
			r.own[n] = own
		}
		copy(own, line)
		return true
	}
	return r.shared.CompareAndSwap(r.key, line, mark)
}

// find returns the place of a hash in its line, or that of the value to forget.
func (r *HotRule) find(line []byte, h uint64) (place []byte, full moment) {
	var oldest policy.Nanos
	for i := range linePlaces {
		p := line[i*placeLen : (i+1)*placeLen]
		m := moment{policy.Nanos(binary.LittleEndian.Uint64(p[8:])), binary.LittleEndian.Uint32(p[16:])}
		if !r.math.sane(m) {
			m = moment{} // not ours
		}
		if binary.LittleEndian.Uint64(p) == h {
			return p, m
		}
		if place == nil || m.ns < oldest {
			place, oldest = p, m.ns
		}
	}
	return place, moment{}
}

func put(place []byte, h uint64, m moment) {
	binary.LittleEndian.PutUint64(place, h)
	binary.LittleEndian.PutUint64(place[8:], uint64(m.ns))
	binary.LittleEndian.PutUint32(place[16:], m.frac)
}

// take uses a token of a value's bucket and returns 0, or the nanoseconds until there may be one.
func (r *HotRule) take(h uint64, now policy.Nanos) policy.Nanos {
	if r.params.Threshold == 0 {
		return never
	}
	for range attempts {
		line, mark := r.load(h)
		place, full := r.find(line, h)
		if w := r.math.wait(full, now); w > 0 {
			return w
		}
		if full.ns < now {
			full = moment{ns: now}
		}
		put(place, h, r.math.plus(full, r.math.step))
		if r.store(h, line, mark) {
			return 0
		}
	}
	return 1 // lost to other workers every time: to admit would be to guess
}

// giveBack returns a token.
func (r *HotRule) giveBack(h uint64) {
	for range attempts {
		line, mark := r.load(h)
		place, full := r.find(line, h)
		if binary.LittleEndian.Uint64(place) != h {
			return // forgotten
		}
		put(place, h, r.math.minus(full, r.math.step))
		if r.store(h, line, mark) {
			return
		}
	}
}

// HotSet is the policy of all such rules for the same calls: each must admit a call.
type HotSet struct {
	rules []*HotRule
	first uint // bit of the first rule in policy.Call.Marks
}

var _ policy.Policy = (*HotSet)(nil)

// NewHotSet returns the policy of rules, whose bits in policy.Call.Marks begin with first.
func NewHotSet(rules []*HotRule, first uint) *HotSet { return &HotSet{rules, first} }

// Admit implements policy.Policy. A call without a value is not limited.
func (s *HotSet) Admit(now policy.Nanos, c *policy.Call) policy.Verdict {
	for i, r := range s.rules {
		if !r.Applies(c) {
			continue
		}
		h := r.hash(c)
		if h == 0 {
			continue
		}
		wait := r.take(h, now)
		switch {
		case wait == 0:
			r.Hits().Admitted++
			c.Marks |= 1 << (s.first + uint(i))
		case r.Observe():
			r.Hits().WouldReject++
		default:
			r.Hits().Rejected++
			s.Done(now, c, policy.Outcome{Result: protocol.OutcomeRejected})
			return policy.Verdict{Reject: true, Code: protocol.CodeThrottled, Rule: r.Name(), RetryAfterMillis: millis(wait)}
		}
	}
	return policy.Verdict{}
}

// Done implements policy.Policy: a call that a later policy rejected gives its tokens back.
func (s *HotSet) Done(_ policy.Nanos, c *policy.Call, o policy.Outcome) {
	for i, r := range s.rules {
		bit := uint64(1) << (s.first + uint(i))
		if c.Marks&bit == 0 {
			continue
		}
		c.Marks &^= bit
		if o.Result == protocol.OutcomeRejected {
			if h := r.hash(c); h != 0 {
				r.giveBack(h)
			}
		}
	}
}
