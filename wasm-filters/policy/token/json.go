package token

import (
	"bytes"
	"unicode/utf8"
)

// The bounds of a JSON object that is read.
const (
	maxMembers = 64
	maxDepth   = 16
)

// kind is that of a JSON value.
type kind uint8

const (
	kindNone kind = iota
	kindString
	kindNumber
	kindBool
	kindNull
	kindObject
	kindArray
)

// A value is one JSON value. text is what a string says, and what others look like; it is a view.
type value struct {
	kind kind
	text []byte
}

// A scanner goes through the members of one JSON object (RFC 8259), or through the elements of an array. What strings say is put in their place in b, so the
// bytes are its own, and can be read once. It is strict: no member may stand twice, no string may hold what is not UTF-8.
type scanner struct {
	b    []byte
	pos  int
	bad  bool
	n    int
	seen [maxMembers][]byte
}

// object begins with an object that makes up all of b, white space aside.
func (s *scanner) object(b []byte) {
	s.b, s.pos, s.bad, s.n = b, 0, false, 0
	s.bad = !s.next('{')
}

// array begins with an array that makes up all of b.
func (s *scanner) array(b []byte) {
	s.b, s.pos, s.bad, s.n = b, 0, false, 0
	s.bad = !s.next('[')
}

// peek skips white space and returns the next byte, 0 at the end. Like others here it is not inlined: it stands in many places, and size is start-up time.
//
//go:noinline
func (s *scanner) peek() byte {
	for s.pos < len(s.b) {
		switch c := s.b[s.pos]; c {
		case ' ', '\t', '\r', '\n':
			s.pos++
		default:
			return c
		}
	}
	return 0
}

// next consumes the next byte if it is c.
//
//go:noinline
func (s *scanner) next(c byte) bool {
	if s.peek() != c {
		return false
	}
	s.pos++
	return true
}

// end consumes what closes the whole, and tells whether it stands there.
func (s *scanner) end(closing byte) bool {
	if !s.next(closing) {
		return false
	}
	if s.peek() != 0 || s.pos < len(s.b) {
		s.bad = true
	}
	return true
}

// member returns the next member; ok is false at the end, and where something is wrong: then bad is set.
func (s *scanner) member() (name []byte, v value, ok bool) {
	if s.bad || s.end('}') {
		return nil, value{}, false
	}
	if s.n > 0 && !s.next(',') || s.n == maxMembers || s.peek() != '"' {
		s.bad = true
		return nil, value{}, false
	}
	name = s.str()
	for _, before := range s.seen[:s.n] {
		if string(before) == string(name) {
			s.bad = true
		}
	}
	s.seen[s.n] = name
	s.n++
	if s.bad || !s.next(':') {
		s.bad = true
		return nil, value{}, false
	}
	v = s.value()
	return name, v, !s.bad
}

// element returns the next element; ok is as with member.
func (s *scanner) element() (v value, ok bool) {
	if s.bad || s.end(']') {
		return value{}, false
	}
	if s.n > 0 && !s.next(',') {
		s.bad = true
		return value{}, false
	}
	s.n = 1
	v = s.value()
	return v, !s.bad
}

// value reads one value.
func (s *scanner) value() value {
	switch c := s.peek(); c {
	case '"':
		return value{kindString, s.str()}
	case '{', '[':
		start := s.pos
		s.skip(maxDepth)
		v := value{kindObject, s.b[start:s.pos]}
		if c == '[' {
			v.kind = kindArray
		}
		return v
	default:
		start := s.pos
		k := s.plain(c)
		return value{k, s.b[start:s.pos]}
	}
}

// plain reads over a number or a literal that begins with c.
func (s *scanner) plain(c byte) kind {
	switch c {
	case 't':
		s.bad = !s.word("true")
		return kindBool
	case 'f':
		s.bad = !s.word("false")
		return kindBool
	case 'n':
		s.bad = !s.word("null")
		return kindNull
	}
	if c == '-' {
		s.pos++
	}
	if whole := s.digits(); whole == 0 || whole > 1 && s.b[s.pos-whole] == '0' {
		s.bad = true
	}
	if s.at('.') {
		s.pos++
		if s.digits() == 0 {
			s.bad = true
		}
	}
	if s.at('e') || s.at('E') {
		s.pos++
		if s.at('+') || s.at('-') {
			s.pos++
		}
		if s.digits() == 0 {
			s.bad = true
		}
	}
	return kindNumber
}

// at tells whether c is the next byte.
//
//go:noinline
func (s *scanner) at(c byte) bool { return s.pos < len(s.b) && s.b[s.pos] == c }

// digits reads over digits and returns how many there are.
//
//go:noinline
func (s *scanner) digits() int {
	start := s.pos
	for s.pos < len(s.b) && s.b[s.pos] >= '0' && s.b[s.pos] <= '9' {
		s.pos++
	}
	return s.pos - start
}

// word reads over w, and tells whether it stands here.
func (s *scanner) word(w string) bool {
	if !bytes.HasPrefix(s.b[s.pos:], []byte(w)) {
		return false
	}
	s.pos += len(w)
	return true
}

// skip reads over a value, at most depth deep, and leaves it as it is.
func (s *scanner) skip(depth int) {
	switch c := s.peek(); {
	case s.bad:
	case c == '"':
		start := s.pos
		if !s.quoted(nil) {
			s.bad = true
		}
		s.bad = s.bad || !utf8.Valid(s.b[start:s.pos])
	case c != '{' && c != '[':
		s.plain(c)
	case depth == 0:
		s.bad = true
	default:
		closing := byte(']')
		if c == '{' {
			closing = '}'
		}
		s.pos++
		if s.next(closing) {
			return
		}
		for !s.bad {
			if c == '{' {
				if s.peek() != '"' {
					s.bad = true
					return
				}
				s.skip(0)
				if !s.next(':') {
					s.bad = true
					return
				}
			}
			s.skip(depth - 1)
			if s.next(',') {
				continue
			}
			if !s.next(closing) {
				s.bad = true
			}
			return
		}
	}
}

// str reads the string that begins at the current offset, and puts what it says in its place.
func (s *scanner) str() []byte {
	start := s.pos + 1
	out := s.b[start:start]
	if !s.quoted(&out) || !utf8.Valid(out) {
		s.bad = true
		return nil
	}
	return out
}

// quoted reads over a string and writes what it says from out on, if that is not nil: nothing that is written takes more bytes than it is written with.
func (s *scanner) quoted(out *[]byte) bool {
	for s.pos++; s.pos < len(s.b); {
		c := s.b[s.pos]
		s.pos++
		if c == '"' {
			return true
		}
		if c < ' ' {
			return false
		}
		if c != '\\' {
			if out != nil {
				*out = append(*out, c)
			}
			continue
		}
		r := s.escaped()
		if r < 0 {
			return false
		}
		if out != nil {
			*out = utf8.AppendRune(*out, r)
		}
	}
	return false
}

// escapes are what may stand behind a backslash, and escaped what it says.
const (
	escapes   = "\"\\/bfnrt"
	unescaped = "\"\\/\b\f\n\r\t"
)

// escaped reads what stands behind a backslash; -1 is no good.
func (s *scanner) escaped() rune {
	if s.pos == len(s.b) {
		return -1
	}
	c := s.b[s.pos]
	s.pos++
	if c != 'u' {
		if i := bytes.IndexByte([]byte(escapes), c); i >= 0 {
			return rune(unescaped[i])
		}
		return -1
	}
	u := s.hex4()
	if u < 0xd800 || u >= 0xe000 {
		return u
	}
	// The first half of a surrogate pair needs the second one.
	if u >= 0xdc00 || !s.word(`\u`) {
		return -1
	}
	low := s.hex4()
	if low < 0xdc00 || low >= 0xe000 {
		return -1
	}
	return (u-0xd800)<<10 | (low - 0xdc00) + 0x10000
}

// hex4 reads the four digits of \u; -1 is no good.
func (s *scanner) hex4() (u rune) {
	if len(s.b)-s.pos < 4 {
		return -1
	}
	for _, c := range s.b[s.pos : s.pos+4] {
		d := nibble(c)
		if d > 15 {
			return -1
		}
		u = u<<4 | rune(d)
	}
	s.pos += 4
	return u
}
