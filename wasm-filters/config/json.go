package config

import (
	"strconv"
	"unicode/utf8"
)

// encoding/json, with the reflection that it needs, would make up a fifth of the whole filter. This reader knows only what the
// configuration is made of: objects with known fields, lists, strings, unsigned integers and booleans. It is stricter than
// encoding/json where that would hide a mistake: field names are exact, no field may stand twice, nothing is null.

// Bounds of the reader. Faults beyond the bound are not listed one by one.
const (
	maxBytes  = 16 << 20 // of a whole configuration
	maxFaults = 100
	maxDepth  = 16 // the deepest unknown value that is skipped
	maxSeen   = 64 // names of an object that are remembered: there are fewer that are known
)

// A reader reads one JSON text. After an error of syntax, which is a fault too, nothing more is read: dead is set.
type reader struct {
	b      []byte
	pos    int
	path   []byte
	faults Faults
	dead   bool
}

// fault notes what is wrong with the value at the current path.
func (r *reader) fault(msg string) {
	if len(r.faults) < maxFaults {
		r.faults = append(r.faults, Fault{Path: string(r.path), Message: msg})
	}
}

// syntax notes an error of syntax at the current offset and ends the reading.
func (r *reader) syntax(msg string) {
	if !r.dead {
		r.dead = true
		r.faults = append(r.faults, Fault{Path: string(r.path), Message: msg + " at offset " + strconv.Itoa(r.pos)})
	}
}

// peek skips white space and returns the next byte, 0 at the end.
func (r *reader) peek() byte {
	for !r.dead && r.pos < len(r.b) {
		switch c := r.b[r.pos]; c {
		case ' ', '\t', '\r', '\n':
			r.pos++
		default:
			return c
		}
	}
	return 0
}

// next consumes the next byte if it is c.
func (r *reader) next(c byte) bool {
	if r.peek() != c {
		return false
	}
	r.pos++
	return true
}

// object reads an object and calls field for each of its fields. field reads the value and returns true, or returns
// false for a name that it does not know.
func (r *reader) object(field func(name string) bool) {
	if r.peek() != '{' {
		r.mismatch("an object")
		return
	}
	r.pos++
	base := len(r.path)
	var seen []string
	for first := true; !r.dead; first = false {
		if first && r.next('}') {
			return
		}
		if r.peek() != '"' {
			r.syntax("expected a field's name")
			return
		}
		name := r.str()
		if r.dead {
			return
		}
		if !r.next(':') {
			r.syntax("expected ':'")
			return
		}
		if base > 0 {
			r.path = append(r.path, '.')
		}
		r.path = appendName(r.path, name)
		for _, s := range seen {
			if s == name {
				r.fault("stands twice")
				break
			}
		}
		if len(seen) < maxSeen {
			seen = append(seen, name)
		}
		if !field(name) {
			r.fault("unknown field")
			r.skip(maxDepth)
		}
		r.path = r.path[:base]
		if r.next(',') {
			continue
		}
		if !r.next('}') {
			r.syntax("expected ',' or '}'")
		}
		return
	}
}

// appendName appends a field's name for a fault: what was not ours may be anything.
func appendName(dst []byte, name string) []byte {
	if len(name) > 64 {
		name = name[:64]
	}
	for i := range len(name) {
		c := name[i]
		if c < ' ' || c > '~' {
			c = '?'
		}
		dst = append(dst, c)
	}
	return dst
}

// list reads a list and calls element for each of its elements, to read it. It reads at most limit of them.
func (r *reader) list(limit int, element func()) {
	if r.peek() != '[' {
		r.mismatch("a list")
		return
	}
	r.pos++
	base := len(r.path)
	for i := 0; !r.dead; i++ {
		if i == 0 && r.next(']') {
			return
		}
		if i == limit {
			r.fault("more than " + strconv.Itoa(limit) + " elements")
		}
		r.path = append(r.path, '[')
		r.path = strconv.AppendInt(r.path, int64(i), 10)
		r.path = append(r.path, ']')
		if i < limit {
			element()
		} else {
			r.skip(maxDepth)
		}
		r.path = r.path[:base]
		if r.next(',') {
			continue
		}
		if !r.next(']') {
			r.syntax("expected ',' or ']'")
		}
		return
	}
}

// mismatch notes that the next value is not what it should be, and skips it.
func (r *reader) mismatch(want string) {
	if r.dead {
		return
	}
	r.fault("must be " + want)
	r.skip(maxDepth)
}

// text reads a string value.
func (r *reader) text() string {
	if r.peek() != '"' {
		r.mismatch("a string")
		return ""
	}
	return r.str()
}

// str reads the string that begins at the current offset.
func (r *reader) str() string {
	r.pos++
	start := r.pos
	for r.pos < len(r.b) {
		switch c := r.b[r.pos]; {
		case c == '"':
			s := r.b[start:r.pos]
			if !utf8.Valid(s) {
				r.syntax("string is not UTF-8")
				return ""
			}
			r.pos++
			return string(s)
		case c == '\\':
			return r.escaped(start)
		case c < ' ':
			r.syntax("control character in a string")
			return ""
		default:
			r.pos++
		}
	}
	r.syntax("string does not end")
	return ""
}

// escaped reads on from the first backslash of a string that began at start.
func (r *reader) escaped(start int) string {
	s := append([]byte(nil), r.b[start:r.pos]...)
	for r.pos < len(r.b) {
		c := r.b[r.pos]
		switch {
		case c == '"':
			if !utf8.Valid(s) {
				r.syntax("string is not UTF-8")
				return ""
			}
			r.pos++
			return string(s)
		case c < ' ':
			r.syntax("control character in a string")
			return ""
		case c != '\\':
			s = append(s, c)
			r.pos++
			continue
		}
		if r.pos+1 >= len(r.b) {
			break
		}
		c = r.b[r.pos+1]
		r.pos += 2
		switch c {
		case '"', '\\', '/':
			s = append(s, c)
		case 'b':
			s = append(s, '\b')
		case 'f':
			s = append(s, '\f')
		case 'n':
			s = append(s, '\n')
		case 'r':
			s = append(s, '\r')
		case 't':
			s = append(s, '\t')
		case 'u':
			u, ok := r.hex4()
			if !ok {
				return ""
			}
			if u >= 0xd800 && u < 0xdc00 && r.pos+1 < len(r.b) && r.b[r.pos] == '\\' && r.b[r.pos+1] == 'u' {
				r.pos += 2
				low, ok := r.hex4()
				if !ok {
					return ""
				}
				if low < 0xdc00 || low > 0xdfff {
					r.syntax("half of a surrogate pair")
					return ""
				}
				u = (u-0xd800)<<10 | (low - 0xdc00) + 0x10000
			} else if u >= 0xd800 && u < 0xe000 {
				r.syntax("half of a surrogate pair")
				return ""
			}
			s = utf8.AppendRune(s, u)
		default:
			r.syntax("unknown escape in a string")
			return ""
		}
	}
	r.syntax("string does not end")
	return ""
}

// hex4 reads the four digits of \u.
func (r *reader) hex4() (rune, bool) {
	var u rune
	for range 4 {
		if r.pos >= len(r.b) {
			r.syntax("string does not end")
			return 0, false
		}
		c := r.b[r.pos]
		switch {
		case c >= '0' && c <= '9':
			u = u<<4 | rune(c-'0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			u = u<<4 | rune(c|0x20-'a'+10)
		default:
			r.syntax("\\u needs four hexadecimal digits")
			return 0, false
		}
		r.pos++
	}
	return u, true
}

// boolean reads true or false.
func (r *reader) boolean() bool {
	switch r.peek() {
	case 't':
		return r.word("true")
	case 'f':
		r.word("false")
		return false
	}
	r.mismatch("true or false")
	return false
}

// word consumes a literal and tells whether it was there.
func (r *reader) word(w string) bool {
	if len(r.b)-r.pos < len(w) || string(r.b[r.pos:r.pos+len(w)]) != w {
		r.syntax("expected " + w)
		return false
	}
	r.pos += len(w)
	return true
}

// number reads an integer from 0 to 1<<32-1. A form with a fraction or an exponent is fine if the value is an integer: a
// configuration that went through protobuf's Struct has been a floating-point number.
func (r *reader) number() uint32 {
	c := r.peek()
	if c != '-' && (c < '0' || c > '9') {
		r.mismatch("a number")
		return 0
	}
	v, ok := r.digits()
	if r.dead {
		return 0
	}
	if !ok {
		r.fault("must be an integer from 0 to 4294967295")
		return 0
	}
	return v
}

// digits consumes a number and tells whether it is an integer that fits.
func (r *reader) digits() (v uint32, ok bool) {
	negative := r.b[r.pos] == '-'
	if negative {
		r.pos++
	}
	var mantissa uint64
	exponent, count := 0, 0 // of the digits that mantissa left out or has behind the point
	digit := func() bool { return r.pos < len(r.b) && r.b[r.pos] >= '0' && r.b[r.pos] <= '9' }
	exact := true
	take := func(shift int) {
		d := uint64(r.b[r.pos] - '0')
		if mantissa < 1e17 {
			mantissa = mantissa*10 + d
			exponent -= shift
		} else {
			exact = exact && d == 0
			exponent += 1 - shift
		}
		r.pos++
	}
	if !digit() {
		r.syntax("expected a digit")
		return 0, false
	}
	zero := r.b[r.pos] == '0'
	for ; digit(); count++ {
		if zero && count > 0 {
			r.syntax("number with a leading zero")
			return 0, false
		}
		take(0)
	}
	if r.pos < len(r.b) && r.b[r.pos] == '.' {
		r.pos++
		if !digit() {
			r.syntax("expected a digit")
			return 0, false
		}
		for digit() {
			take(1)
		}
	}
	if r.pos < len(r.b) && r.b[r.pos]|0x20 == 'e' {
		r.pos++
		minus := false
		if r.pos < len(r.b) && (r.b[r.pos] == '+' || r.b[r.pos] == '-') {
			minus = r.b[r.pos] == '-'
			r.pos++
		}
		if !digit() {
			r.syntax("expected a digit")
			return 0, false
		}
		e := 0
		for ; digit(); r.pos++ {
			e = min(e*10+int(r.b[r.pos]-'0'), 1<<30)
		}
		if minus {
			e = -e
		}
		exponent += e
	}
	if mantissa == 0 {
		return 0, true
	}
	for ; exponent < 0 && mantissa%10 == 0; exponent++ {
		mantissa /= 10
	}
	if negative || !exact || exponent < 0 || exponent > 10 {
		return 0, false
	}
	for ; exponent > 0; exponent-- {
		mantissa *= 10 // below 1e18 before: stays wrong only where it is too large in any case
		if mantissa > 1<<32-1 {
			return 0, false
		}
	}
	if mantissa > 1<<32-1 {
		return 0, false
	}
	return uint32(mantissa), true
}

// skip reads over one value, at most depth deep.
func (r *reader) skip(depth int) {
	switch c := r.peek(); {
	case r.dead:
	case c == '"':
		r.str()
	case c == '-' || c >= '0' && c <= '9':
		r.digits()
	case c == 't':
		r.word("true")
	case c == 'f':
		r.word("false")
	case c == 'n':
		r.word("null")
	case c != '{' && c != '[':
		r.syntax("expected a value")
	case depth == 0:
		r.syntax("nested too deeply")
	default:
		closing := byte(']')
		if c == '{' {
			closing = '}'
		}
		r.pos++
		for first := true; !r.dead; first = false {
			if first && r.next(closing) {
				return
			}
			if c == '{' {
				if r.peek() != '"' {
					r.syntax("expected a field's name")
					return
				}
				r.str()
				if !r.next(':') {
					r.syntax("expected ':'")
					return
				}
			}
			r.skip(depth - 1)
			if r.next(',') {
				continue
			}
			if !r.next(closing) {
				r.syntax("expected ',' or the end of the value")
			}
			return
		}
	}
}
