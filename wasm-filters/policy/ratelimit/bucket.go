package ratelimit

import (
	"encoding/binary"
	"math/bits"
	"strconv"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// Params are the parameters of a bucket.
type Params struct {
	// Threshold is how many tokens come in during an Interval. 0: none ever, the bucket admits nothing.
	Threshold uint32
	// Interval is a positive number of nanoseconds, at most a day (86400e9).
	Interval policy.Nanos
	// Burst is how many tokens a full bucket holds, at least 1. A bucket starts full.
	Burst uint32
}

// WarmUp are the parameters of warming up. The zero value is none.
type WarmUp struct {
	// Period is how long it takes from cold to warm.
	Period policy.Nanos
	// ColdFactor is how many tokens a call takes when the bucket is cold, 2 to 100.
	ColdFactor uint32
}

// The lease: how many tokens a worker takes from the shared state at once, so that not every call costs a host call.
const (
	// leaseWorth is the time in which the tokens of the largest lease come in.
	leaseWorth = policy.Nanos(10_000_000)
	// leaseLife is how long a lease is good for, so that a worker that falls idle does not carry old tokens into a later second. What is
	// left of it then goes back with the next lease, if that follows within leaseBack, and is lost else.
	leaseLife = policy.Nanos(20_000_000)
	leaseBack = policy.Nanos(1_000_000_000)
	// attempts bounds the tries to swap the shared state. Each failed one means that another worker succeeded.
	attempts = 32
)

// A moment is a point in time, or a stretch of it, in nanoseconds and fractions of one: frac/threshold, so that the time
// between two tokens is exact whatever the threshold. frac < threshold.
type moment struct {
	ns   policy.Nanos
	frac uint32
}

// far is beyond all moments that can occur: the epoch's nanoseconds plus the longest way to fill a bucket.
const far = policy.Nanos(1) << 62

func (m moment) less(o moment) bool { return m.ns < o.ns || m.ns == o.ns && m.frac < o.frac }

// A bucket is a token bucket in the form of the generic cell rate algorithm: instead of a level that must be topped up,
// it keeps the one moment at which it will be full again. A token moves that moment by the time that one token takes to
// come in; there is none to take when the moment lies further ahead than an empty bucket's.
type bucket struct {
	Params
	step  moment // the time between two tokens
	slack moment // how far ahead full may lie for one more token to be there: (Burst-1) steps
	full  moment // when the bucket is full again; without a Shared, the whole state but heat

	warm WarmUp
	heat heat // without a Shared

	shared  policy.Shared // nil: this worker is alone
	key     []byte
	value   []byte       // scratch, 16 bytes
	lease   uint32       // tokens taken from the shared state and not yet used
	ends    policy.Nanos // until when they may be used
	size    uint32       // of the next lease
	largest uint32
	blocked policy.Nanos // before this moment the shared bucket cannot have a token: do not even ask
}

// setup makes b a full bucket. scope and name tell its shared state apart from that of other buckets; the
// parameters are part of the key too, for a state means nothing under others.
func (b *bucket) setup(p Params, shared policy.Shared, scope, name string) {
	*b = bucket{Params: p, warm: b.warm}
	if p.Threshold == 0 {
		return
	}
	t := uint64(p.Threshold)
	b.step = moment{policy.Nanos(uint64(p.Interval) / t), uint32(uint64(p.Interval) % t)}
	b.slack = b.steps(uint64(max(p.Burst, 1) - 1))
	if shared == nil {
		return
	}
	b.shared = shared
	k := make([]byte, 0, len("isthmus/throttle/1/")+len(scope)+len(name)+60)
	k = append(k, "isthmus/throttle/1/"...)
	k = append(k, scope...)
	k = append(k, '/')
	k = append(k, name...)
	for _, v := range [...]uint64{t, uint64(p.Interval), uint64(p.Burst), uint64(b.warm.Period), uint64(b.warm.ColdFactor)} {
		k = append(k, '/')
		k = strconv.AppendUint(k, v, 10)
	}
	b.key = k
	b.value = make([]byte, 0, stateLen)
	b.size = 1
	b.largest = uint32(max(1, min(t*uint64(leaseWorth)/uint64(p.Interval), uint64(p.Burst)))) // t < 1<<32: no overflow
	// The store cannot create a key only if it is absent. Whoever makes a bucket first, which is Envoy's main thread as it
	// tries a new configuration, creates it before any worker can have taken a token.
	if _, _, ok := shared.Get(b.value[:0], b.key); !ok {
		b.store(moment{}, heat{}, 0)
	}
}

// A heat says how warm a bucket is.
type heat struct {
	level policy.Nanos // from 0, cold, to WarmUp.Period, warm; as it was at last
	last  policy.Nanos // when the last token was taken
}

// at returns the heat at now, if a token is taken then.
func (b *bucket) at(h heat, now policy.Nanos) heat {
	switch pause := now - h.last; {
	case pause <= 0:
		return h
	case pause < b.Interval+policy.Nanos(b.warm.ColdFactor)*b.step.ns:
		h.level = min(h.level+pause, b.warm.Period)
	default:
		h.level = max(h.level-min(pause, b.warm.Period), 0)
	}
	h.last = now
	return h
}

// price returns what n tokens cost at a heat: how far they move the moment at which the bucket is full. The rate is the
// threshold times (1 + (ColdFactor-1) level/Period) / ColdFactor. Costs are rounded up, so that the rate is never exceeded.
func (b *bucket) price(n uint64, h heat) moment {
	m := b.steps(n)
	if b.warm.Period == 0 || h.level >= b.warm.Period {
		return m
	}
	f, period := uint64(b.warm.ColdFactor), uint64(b.warm.Period)
	ns := uint64(m.ns)
	if m.frac > 0 {
		ns++
	}
	hi, lo := bits.Mul64(ns, f*period) // f and period are bounded: 100 and an hour
	rate := period + (f-1)*uint64(h.level)
	if hi >= rate {
		return moment{ns: far}
	}
	q, rest := bits.Div64(hi, lo, rate)
	if rest > 0 {
		q++
	}
	return moment{ns: policy.Nanos(min(q, uint64(far)))}
}

// steps returns k steps.
func (b *bucket) steps(k uint64) moment {
	hi, lo := bits.Mul64(k, uint64(b.step.ns))
	over := k * uint64(b.step.frac) // both below 1<<32
	t := uint64(b.Threshold)
	lo, carry := bits.Add64(lo, over/t, 0)
	if hi+carry != 0 || lo >= uint64(far) {
		return moment{ns: far}
	}
	return moment{policy.Nanos(lo), uint32(over % t)}
}

// plus returns m + d, at most far.
func (b *bucket) plus(m, d moment) moment {
	f := uint64(m.frac) + uint64(d.frac)
	m.ns += d.ns // both at most far: no overflow
	if f >= uint64(b.Threshold) {
		f -= uint64(b.Threshold)
		m.ns++
	}
	m.frac = uint32(f)
	if m.ns >= far {
		return moment{ns: far}
	}
	return m
}

// minus returns m - d, at least the zero moment.
func (b *bucket) minus(m, d moment) moment {
	if m.frac < d.frac {
		m.ns--
		m.frac += b.Threshold // what wraps here wraps back
	}
	m.frac -= d.frac
	if m.ns -= d.ns; m.ns < 0 {
		return moment{}
	}
	return m
}

// until returns how far m lies ahead of now, 0 if it does not.
func until(m moment, now policy.Nanos) moment {
	if m.ns < now {
		return moment{}
	}
	return moment{m.ns - now, m.frac}
}

// wait returns the nanoseconds, rounded up, until a bucket that is full at m has a token again; 0 if it has one at now.
func (b *bucket) wait(m moment, now policy.Nanos) policy.Nanos {
	ahead := until(m, now)
	if !b.slack.less(ahead) {
		return 0
	}
	d := ahead.ns - b.slack.ns
	if ahead.frac > b.slack.frac {
		d++
	}
	return max(d, 1)
}

// never is the wait for a bucket that gets no tokens.
const never = policy.Nanos(1<<63 - 1)

// tokens returns how many tokens there are, a lease aside.
func (b *bucket) tokens(now policy.Nanos) uint64 {
	if b.Threshold == 0 {
		return 0
	}
	m := b.full
	if b.shared != nil {
		m, _, _ = b.load()
	}
	ahead := until(m, now)
	if ahead == (moment{}) {
		return uint64(b.Burst)
	}
	// Burst - ahead/step, with step = Interval/Threshold. Both products may exceed 64 bits.
	hi, lo := bits.Mul64(uint64(ahead.ns), uint64(b.Threshold))
	lo, carry := bits.Add64(lo, uint64(ahead.frac), 0)
	if hi += carry; hi >= uint64(b.Interval) {
		return 0
	}
	taken, rest := bits.Div64(hi, lo, uint64(b.Interval))
	if rest > 0 {
		taken++
	}
	return uint64(b.Burst) - min(taken, uint64(b.Burst))
}

// ready makes sure that there is a token for take, and returns 0; else the nanoseconds until there may be one.
func (b *bucket) ready(now policy.Nanos) policy.Nanos {
	switch {
	case b.Threshold == 0:
		return never
	case b.shared == nil:
		return b.wait(b.full, now)
	case b.lease > 0 && now < b.ends:
		return 0
	case now < b.blocked:
		return b.blocked - now
	}
	return b.borrow(now)
}

// take uses one token. Only after ready has returned 0 at the same now.
func (b *bucket) take(now policy.Nanos) {
	if b.shared != nil {
		b.lease--
		return
	}
	if b.full.ns < now {
		b.full = moment{ns: now}
	}
	if b.warm.Period > 0 {
		b.heat = b.at(b.heat, now)
	}
	b.full = b.plus(b.full, b.price(1, b.heat))
}

// borrow takes a lease from the shared state and returns 0, or the nanoseconds until it may succeed.
func (b *bucket) borrow(now policy.Nanos) policy.Nanos {
	// A lease that was used up in its time may be followed by a larger one. One that was not starts over: a worker
	// with few calls must not keep tokens from the others.
	if b.lease == 0 && now < b.ends {
		b.size = min(2*b.size, b.largest)
	} else {
		b.size = 1
	}
	// A worker that was held up has tokens which it could not use in time. They would be missing: up to 10 ms worth each time.
	back := moment{}
	if b.lease > 0 && now < b.ends+leaseBack {
		back = b.steps(uint64(b.lease))
	}
	for range attempts {
		m, h, mark := b.load()
		m = b.minus(m, back)
		if w := b.wait(m, now); w > 0 {
			b.blocked = now + min(w, far)
			return w
		}
		if m.ns < now {
			m = moment{ns: now}
		}
		if b.warm.Period > 0 {
			h = b.at(h, now)
		}
		// As many as there are, at most size: of n tokens the last one must be there, too.
		n := b.size
		ahead := until(m, now)
		for n > 1 && b.slack.less(b.plus(ahead, b.price(uint64(n-1), h))) {
			n /= 2
		}
		if b.store(b.plus(m, b.price(uint64(n), h)), h, mark) {
			b.lease, b.ends = n, now+leaseLife
			return 0
		}
	}
	return 1 // lost to other workers every time: to admit would be to guess
}

// stateLen is the length of the shared state: full.ns and full.frac, heat.level and heat.last, little endian.
const stateLen = 28

func (b *bucket) load() (moment, heat, uint32) {
	v, mark, ok := b.shared.Get(b.value[:0], b.key)
	if !ok || len(v) != stateLen {
		return moment{}, heat{}, mark
	}
	le := binary.LittleEndian
	m := moment{policy.Nanos(le.Uint64(v)), le.Uint32(v[8:])}
	h := heat{policy.Nanos(le.Uint64(v[12:])), policy.Nanos(le.Uint64(v[20:]))}
	if !b.sane(m) || h.level < 0 || h.level > b.warm.Period || h.last < 0 {
		return moment{}, heat{}, mark // not ours
	}
	return m, h, mark
}

// sane tells whether m can be a bucket's.
func (b *bucket) sane(m moment) bool { return m.ns >= 0 && m.ns <= far && m.frac < b.Threshold }

func (b *bucket) store(m moment, h heat, mark uint32) bool {
	le := binary.LittleEndian
	v := le.AppendUint32(le.AppendUint64(b.value[:0], uint64(m.ns)), m.frac)
	v = le.AppendUint64(le.AppendUint64(v, uint64(h.level)), uint64(h.last))
	return b.shared.CompareAndSwap(b.key, v, mark)
}
