// Package rls has the two messages of Envoy's rate limit service, as far as limits of many Envoys together need them
// (envoy/service/ratelimit/v3/rls.proto and envoy/extensions/common/ratelimit/v3/ratelimit.proto). They are written and read field by field: a
// library for Protobuf would be larger than the whole filter.
package rls

import (
	"encoding/binary"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// The service and its method.
const (
	Service = "envoy.service.ratelimit.v3.RateLimitService"
	Method  = "ShouldRateLimit"
)

// Key is the key of the one entry of a descriptor; its value is the rule's name.
const Key = "isthmus_rule"

// Unit is the interval of a limit (envoy.type.v3.RateLimitUnit).
type Unit uint8

// The units.
const (
	Second Unit = 1
	Minute Unit = 2
	Hour   Unit = 3
	Day    Unit = 4
)

// UnitOf returns the unit that is so many milliseconds long; ok is false where there is none.
func UnitOf(millis uint32) (u Unit, ok bool) {
	switch millis {
	case 1000:
		return Second, true
	case 60_000:
		return Minute, true
	case 3_600_000:
		return Hour, true
	case 86_400_000:
		return Day, true
	}
	return 0, false
}

// Ask asks about one rule.
type Ask struct {
	Rule      string
	Threshold uint32 // calls per Unit
	Unit      Unit
	Hits      uint32 // calls to be counted; 0 only asks
}

// AppendRequest appends a RateLimitRequest with a descriptor for each of asks. The limit goes with it, in the place of one in the service's own
// configuration: that has to know only the domain.
func AppendRequest(dst []byte, domain string, asks []Ask) []byte {
	dst = appendString(dst, 1, domain)
	for i := range asks {
		a := &asks[i]
		entry := stringLen(len(Key)) + stringLen(len(a.Rule))
		limit := 1 + uvarintLen(uint64(a.Threshold)) + 2
		hits := 0
		if a.Hits > 0 {
			hits = 1 + uvarintLen(uint64(a.Hits))
		}
		dst = appendLen(dst, 2, stringLen(entry)+stringLen(limit)+stringLen(hits))
		dst = appendLen(dst, 1, entry)
		dst = appendString(dst, 1, Key)
		dst = appendString(dst, 2, a.Rule)
		dst = appendLen(dst, 2, limit)
		dst = binary.AppendUvarint(append(dst, 1<<3), uint64(a.Threshold))
		dst = append(dst, 2<<3, byte(a.Unit))
		dst = appendLen(dst, 3, hits) // a wrapper that is there and holds 0 counts nothing; an absent one would count 1
		if hits > 0 {
			dst = binary.AppendUvarint(append(dst, 1<<3), uint64(a.Hits))
		}
	}
	return dst
}

// AppendGrpcService appends an envoy.config.core.v3.GrpcService: the cluster that Envoy asks, and the authority that it names.
func AppendGrpcService(dst []byte, cluster, authority string) []byte {
	n := stringLen(len(cluster))
	if authority != "" {
		n += stringLen(len(authority))
	}
	dst = appendString(appendLen(dst, 1, n), 1, cluster)
	if authority != "" {
		dst = appendString(dst, 2, authority)
	}
	return dst
}

// Answer is what the service says of one descriptor.
type Answer struct {
	// Known tells that there is a limit at all.
	Known bool
	// Over tells that the limit is exceeded.
	Over bool
	// Remaining is how many calls are left until Reset.
	Remaining uint32
	// Reset is how long it takes until the present interval ends.
	Reset policy.Nanos
}

// Read reads a RateLimitResponse into answers, one for each descriptor that was asked about, and tells whether it is one and has as many. Fields that it does
// not know it skips.
func Read(b []byte, answers []Answer) bool {
	n := 0
	for len(b) > 0 {
		f, rest, ok := next(b)
		if !ok {
			return false
		}
		b = rest
		if f.number == 2 && f.bytes != nil { // statuses
			if n == len(answers) || !answers[n].read(f.bytes) {
				return false
			}
			n++
		}
	}
	return n == len(answers)
}

// The codes of a RateLimitResponse.
const (
	codeOK        = 1
	codeOverLimit = 2
)

func (a *Answer) read(b []byte) bool {
	*a = Answer{}
	var code uint64
	limited := false
	for len(b) > 0 {
		f, rest, ok := next(b)
		if !ok {
			return false
		}
		b = rest
		switch {
		case f.number == 1 && f.bytes == nil:
			code = f.value
		case f.number == 2 && f.bytes != nil: // current_limit: absent where there is none
			limited = true
		case f.number == 3 && f.bytes == nil:
			a.Remaining = uint32(min(f.value, 1<<32-1))
		case f.number == 4 && f.bytes != nil:
			if a.Reset, ok = duration(f.bytes); !ok {
				return false
			}
		}
	}
	a.Over = code == codeOverLimit
	a.Known = a.Over || code == codeOK && limited
	return code == codeOK || code == codeOverLimit
}

// maxReset bounds a duration: the longest unit is a day.
const maxReset = 86_400

// duration reads a google.protobuf.Duration.
func duration(b []byte) (policy.Nanos, bool) {
	var seconds, nanos uint64
	for len(b) > 0 {
		f, rest, ok := next(b)
		if !ok {
			return 0, false
		}
		b = rest
		switch {
		case f.number == 1 && f.bytes == nil:
			seconds = f.value
		case f.number == 2 && f.bytes == nil:
			nanos = f.value
		}
	}
	if seconds > maxReset || nanos >= 1e9 { // a negative one is above, as an unsigned number
		return 0, false
	}
	return policy.Nanos(seconds*1e9 + nanos), true
}

// A field is one of a message. bytes is not nil for those with a length.
type field struct {
	number uint64
	value  uint64
	bytes  []byte
}

// next reads a message's first field.
func next(b []byte) (f field, rest []byte, ok bool) {
	tag, n := binary.Uvarint(b)
	if n <= 0 || tag>>3 == 0 {
		return f, nil, false
	}
	f.number = tag >> 3
	b = b[n:]
	switch tag & 7 {
	case 0:
		f.value, n = binary.Uvarint(b)
		if n <= 0 {
			return f, nil, false
		}
	case 1:
		n = 8
	case 2:
		size, k := binary.Uvarint(b)
		if k <= 0 || size > uint64(len(b)-k) {
			return f, nil, false
		}
		n = k + int(size)
		f.bytes = b[k:n:n]
	case 5:
		n = 4
	default: // groups are not in these messages
		return f, nil, false
	}
	if n > len(b) {
		return f, nil, false
	}
	return f, b[n:], true
}

func appendLen(dst []byte, number byte, n int) []byte {
	return binary.AppendUvarint(append(dst, number<<3|2), uint64(n))
}

func appendString(dst []byte, number byte, s string) []byte {
	return append(appendLen(dst, number, len(s)), s...)
}

// stringLen is the length of a field that holds n bytes.
func stringLen(n int) int { return 1 + uvarintLen(uint64(n)) + n }

func uvarintLen(v uint64) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}
