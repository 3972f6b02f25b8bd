package match

import (
	"math/bits"
	"strconv"
	"unicode/utf8"
)

// Bounds of a pattern.
const (
	// MaxPattern is the longest expression, in bytes.
	MaxPattern = 512
	// maxProgram is the longest program that an expression may become. It bounds what a match costs: for each byte of the
	// text, every instruction runs at most once.
	maxProgram = 512
	maxNesting = 32
)

// SyntaxError says why an expression is not a pattern.
type SyntaxError struct {
	Off     int // in the expression, in bytes
	Message string
}

// Error returns the message with its place.
func (e *SyntaxError) Error() string { return e.Message + " at offset " + strconv.Itoa(e.Off) }

// Pattern is a regular expression that must match a text as a whole. Its syntax is the part of RE2's that needs no tables of
// Unicode: characters, ., [a-z], [^a-z], \d \w \s and their opposites, (…), (?:…), |, * + ? {n} {n,} {n,m}, and at the very
// beginning (?i). ^ at the beginning and $ at the end change nothing. A class lists ASCII characters only, (?i) knows
// only ASCII letters, and . is any character except a line feed. Matching takes time linear in the text and allocates nothing.
type Pattern struct {
	program []instruction
	sets    []byteset
	// reach has for each place of a program of at most 64 instructions the places that can be reached from there without a
	// byte; nil for longer programs.
	reach []uint64
}

// An instruction of a pattern's program. Jumps are relative, so that a part of a program can be moved and copied.
type instruction struct {
	op   operation
	arg  uint16 // the byte, or the index of the set
	x, y int16
}

type operation uint8

const (
	opByte  operation = iota // consume arg
	opSet                    // consume a byte of sets[arg]
	opSplit                  // go on at x and at y
	opJump                   // go on at x
	opMatch                  // the text must end here
)

// A byteset is a set of bytes.
type byteset [4]uint64

func (s *byteset) add(c byte)      { s[c>>6] |= 1 << (c & 63) }
func (s *byteset) has(c byte) bool { return s[c>>6]>>(c&63)&1 != 0 }

//go:noinline
func (s *byteset) span(low, high byte) {
	for c := int(low); c <= int(high); c++ {
		s.add(byte(c))
	}
}

// fold adds the other case of each letter.
//
//go:noinline
func (s *byteset) fold() {
	for b := byte('a'); b <= 'z'; b++ {
		if s.has(b) || s.has(b-0x20) {
			s.add(b)
			s.add(b - 0x20)
		}
	}
}

// complement turns s, a set of ASCII characters, into the first bytes of all other characters.
func (s *byteset) complement() {
	s[0], s[1] = ^s[0], ^s[1]
	s[2], s[3] = 0, 0
	s.span(0xc0, 0xff)
}

// A compiler reads an expression and appends to the program. Its small methods are not inlined: they stand in many places, and size
// is start-up time.
type compiler struct {
	expr string
	pos  int
	fold bool
	p    *Pattern
	err  *SyntaxError
}

// Compile reads an expression. The error is a *SyntaxError.
func Compile(expr string) (*Pattern, error) {
	c := &compiler{expr: expr, p: new(Pattern)}
	switch {
	case len(expr) > MaxPattern:
		c.fail("expression longer than " + strconv.Itoa(MaxPattern) + " bytes")
	case !utf8.ValidString(expr):
		c.fail("expression is not UTF-8")
	}
	if c.has("(?i)") {
		c.pos += len("(?i)")
		c.fold = true
	}
	c.alternatives(0)
	if c.err == nil && c.pos < len(expr) {
		c.fail("unexpected )")
	}
	c.emit(instruction{op: opMatch})
	if c.err != nil {
		return nil, c.err
	}
	if n := len(c.p.program); n <= 64 {
		c.p.reach = make([]uint64, n)
		for pc := range c.p.reach {
			var t threads
			var stack [maxProgram]uint16
			c.p.add(&t, &stack, pc)
			for _, at := range t.pcs[:t.n] {
				c.p.reach[pc] |= 1 << at
			}
		}
	}
	return c.p, nil
}

//go:noinline
func (c *compiler) fail(msg string) {
	if c.err == nil {
		c.err = &SyntaxError{c.pos, msg}
	}
}

//go:noinline
func (c *compiler) has(s string) bool {
	return len(c.expr)-c.pos >= len(s) && c.expr[c.pos:c.pos+len(s)] == s
}

//go:noinline
func (c *compiler) emit(i instruction) {
	if len(c.p.program) >= maxProgram {
		c.fail("expression too large")
		return
	}
	c.p.program = append(c.p.program, i)
}

// insert puts an instruction in front of the program's part that begins at start.
func (c *compiler) insert(start int, i instruction) {
	c.emit(i)
	if c.err == nil {
		copy(c.p.program[start+1:], c.p.program[start:])
		c.p.program[start] = i
	}
}

//go:noinline
func (c *compiler) emitSet(s byteset) {
	for i := range c.p.sets {
		if c.p.sets[i] == s {
			c.emit(instruction{op: opSet, arg: uint16(i)})
			return
		}
	}
	c.emit(instruction{op: opSet, arg: uint16(len(c.p.sets))})
	if c.err == nil {
		c.p.sets = append(c.p.sets, s)
	}
}

// emitOthers emits all characters that are not in s, which is ASCII: a first byte, and the bytes that continue it.
func (c *compiler) emitOthers(s byteset) {
	s.complement()
	c.emitSet(s)
	var more byteset
	more.span(0x80, 0xbf)
	c.emit(instruction{op: opSplit, x: 1, y: 3})
	c.emitSet(more)
	c.emit(instruction{op: opJump, x: -2})
}

// alternatives reads a|b|c, to the end or to a closing parenthesis.
func (c *compiler) alternatives(depth int) {
	if depth > maxNesting {
		c.fail("nested too deeply")
		return
	}
	start := len(c.p.program)
	c.sequence(depth)
	if c.err != nil || !c.has("|") {
		return
	}
	c.pos++
	c.insert(start, instruction{op: opSplit, x: 1, y: int16(len(c.p.program) - start + 2)})
	jump := len(c.p.program)
	c.emit(instruction{op: opJump})
	c.alternatives(depth)
	if c.err == nil {
		c.p.program[jump].x = int16(len(c.p.program) - jump)
	}
}

// sequence reads what is not divided by |.
func (c *compiler) sequence(depth int) {
	for c.err == nil && c.pos < len(c.expr) && c.expr[c.pos] != '|' && c.expr[c.pos] != ')' {
		start := len(c.p.program)
		switch b := c.expr[c.pos]; b {
		case '(':
			c.pos++
			if c.has("?:") {
				c.pos += 2
			} else if c.has("?") {
				c.fail("unknown kind of group")
				return
			}
			c.alternatives(depth + 1)
			if c.err != nil {
				return
			}
			if !c.has(")") {
				c.fail("missing )")
				return
			}
			c.pos++
		case '[':
			c.class()
		case '.':
			c.pos++
			var feed byteset
			feed.add('\n')
			c.emitOthers(feed)
		case '\\':
			c.pos++
			set, others, ok := c.escape()
			switch {
			case !ok:
			case others:
				c.emitOthers(set)
			default:
				c.emitASCII(set)
			}
		case '^', '$':
			if b == '^' && c.pos == 0 || b == '$' && c.pos == len(c.expr)-1 {
				c.pos++
				continue
			}
			c.fail("only the first ^ and the last $ of an expression may stand without \\")
		case '*', '+', '?', '{':
			c.fail("nothing to repeat")
		default:
			_, n := utf8.DecodeRuneInString(c.expr[c.pos:])
			if n == 1 {
				var set byteset
				set.add(b)
				c.emitASCII(set)
			} else {
				for i := range n {
					c.emit(instruction{op: opByte, arg: uint16(c.expr[c.pos+i])})
				}
			}
			c.pos += n
		}
		if c.err == nil {
			c.repeat(start)
		}
	}
}

// emitASCII emits one character of set, which is ASCII.
func (c *compiler) emitASCII(set byteset) {
	if c.fold {
		set.fold()
	}
	if bits.OnesCount64(set[0])+bits.OnesCount64(set[1]) == 1 {
		b := bits.TrailingZeros64(set[0])
		if set[0] == 0 {
			b = 64 + bits.TrailingZeros64(set[1])
		}
		c.emit(instruction{op: opByte, arg: uint16(b)})
		return
	}
	c.emitSet(set)
}

// repeat reads the repetition, if there is one, of the program's part that begins at start.
func (c *compiler) repeat(start int) {
	if c.pos >= len(c.expr) {
		return
	}
	low, high := 1, 1 // high -1: without end
	switch c.expr[c.pos] {
	case '*':
		low, high = 0, -1
		c.pos++
	case '+':
		high = -1
		c.pos++
	case '?':
		low = 0
		c.pos++
	case '{':
		c.pos++
		low = c.count()
		high = low
		if c.has(",") {
			c.pos++
			high = -1
			if !c.has("}") {
				high = c.count()
			}
		}
		if c.err == nil && !c.has("}") {
			c.fail("missing }")
		}
		if c.err == nil && high >= 0 && high < low {
			c.fail("repetition with its bounds exchanged")
		}
		c.pos++
	default:
		return
	}
	if c.err != nil {
		return
	}
	if c.has("?") { // as few as possible: the same for a match of the whole
		c.pos++
	}
	if c.pos < len(c.expr) && (c.expr[c.pos] == '*' || c.expr[c.pos] == '+' || c.expr[c.pos] == '?' || c.expr[c.pos] == '{') {
		c.fail("repetition of a repetition")
		return
	}
	part := append([]instruction(nil), c.p.program[start:]...)
	c.p.program = c.p.program[:start]
	n := int16(len(part))
	again := func() {
		for _, i := range part {
			c.emit(i)
		}
	}
	for range low {
		again()
	}
	if high < 0 {
		c.emit(instruction{op: opSplit, x: 1, y: n + 2})
		again()
		c.emit(instruction{op: opJump, x: -n - 1})
		return
	}
	for range high - low {
		c.emit(instruction{op: opSplit, x: 1, y: n + 1})
		again()
		if c.err != nil {
			return
		}
	}
}

// count reads a number of repetitions.
func (c *compiler) count() int {
	n, start := 0, c.pos
	for c.pos < len(c.expr) && c.expr[c.pos] >= '0' && c.expr[c.pos] <= '9' && n <= maxProgram {
		n = n*10 + int(c.expr[c.pos]-'0')
		c.pos++
	}
	switch {
	case c.pos == start:
		c.fail("missing number")
	case n > maxProgram:
		c.fail("expression too large")
	case c.pos > start+1 && c.expr[start] == '0':
		c.fail("number with a leading zero")
	}
	return n
}

// escape reads what follows a backslash. others says that all characters but those of set are meant.
func (c *compiler) escape() (set byteset, others, ok bool) {
	if c.pos >= len(c.expr) {
		c.fail("nothing behind \\")
		return set, false, false
	}
	b := c.expr[c.pos]
	switch b {
	case 'd', 'D':
		set.span('0', '9')
	case 'w', 'W':
		set.span('0', '9')
		set.span('a', 'z')
		set.span('A', 'Z')
		set.add('_')
	case 's', 'S':
		for _, space := range []byte("\t\n\f\r ") {
			set.add(space)
		}
	case 't':
		set.add('\t')
	case 'n':
		set.add('\n')
	case 'r':
		set.add('\r')
	default:
		if b < '!' || b > '~' || b >= '0' && b <= '9' || b|0x20 >= 'a' && b|0x20 <= 'z' || b == '_' {
			c.fail("unknown escape")
			return set, false, false
		}
		set.add(b)
	}
	c.pos++
	return set, b == 'D' || b == 'W' || b == 'S', true
}

// class reads [a-z] or [^a-z].
func (c *compiler) class() {
	c.pos++
	others := c.has("^")
	if others {
		c.pos++
	}
	var set byteset
	for first := true; ; first = false {
		if c.pos >= len(c.expr) {
			c.fail("missing ]")
			return
		}
		b := c.expr[c.pos]
		switch {
		case b == ']':
			if first {
				c.fail("empty class")
				return
			}
			c.pos++
			if !others {
				c.emitASCII(set)
				return
			}
			if c.fold {
				set.fold()
			}
			c.emitOthers(set)
			return
		case b == '[':
			c.fail("[ in a class without \\")
			return
		case b == '-' && !first && !c.has("-]"):
			c.fail("- in a class without \\")
			return
		}
		low, single, ok := c.member(&set)
		if !ok {
			return
		}
		if single && c.has("-") && !c.has("-]") {
			c.pos++
			high, single, ok := c.member(&set)
			if !ok {
				return
			}
			if !single || high < low {
				c.fail("range needs two characters, the lower one first")
				return
			}
			set.span(low, high)
		}
	}
}

// member reads one character of a class, or an escape, and adds it to set. single says that it was one character.
func (c *compiler) member(set *byteset) (b byte, single, ok bool) {
	if c.pos >= len(c.expr) {
		c.fail("missing ]")
		return 0, false, false
	}
	b = c.expr[c.pos]
	switch {
	case b >= utf8.RuneSelf:
		c.fail("a class lists ASCII characters only")
		return 0, false, false
	case b == '[' || b == ']':
		c.fail("[ or ] in a class without \\")
		return 0, false, false
	case b != '\\':
		c.pos++
		set.add(b)
		return b, true, true
	}
	c.pos++
	s, others, ok := c.escape()
	if !ok {
		return 0, false, false
	}
	if others {
		c.fail("\\D, \\W and \\S cannot stand in a class")
		return 0, false, false
	}
	for i := range s {
		set[i] |= s[i]
	}
	if bits.OnesCount64(s[0])+bits.OnesCount64(s[1]) > 1 {
		return 0, false, true
	}
	if s[0] != 0 {
		return byte(bits.TrailingZeros64(s[0])), true, true
	}
	return byte(64 + bits.TrailingZeros64(s[1])), true, true
}

// A threads is a set of places in a program.
type threads struct {
	pcs  [maxProgram]uint16
	n    int
	seen [maxProgram / 64]uint64
}

// Match tells whether p matches the whole of text.
func (p *Pattern) Match(text []byte) bool {
	if p.reach != nil {
		return p.short(text)
	}
	return p.long(text)
}

// short matches with a program of at most 64 instructions: a word holds all places.
func (p *Pattern) short(text []byte) bool {
	now := p.reach[0]
	for _, c := range text {
		if now == 0 {
			return false
		}
		next := uint64(0)
		for ; now != 0; now &= now - 1 {
			pc := bits.TrailingZeros64(now)
			switch i := &p.program[pc]; i.op {
			case opByte:
				if i.arg == uint16(c) {
					next |= p.reach[pc+1]
				}
			case opSet:
				if p.sets[i.arg].has(c) {
					next |= p.reach[pc+1]
				}
			}
		}
		now = next
	}
	return now>>(len(p.program)-1)&1 != 0 // opMatch is the last
}

func (p *Pattern) long(text []byte) bool {
	var a, b threads
	var stack [maxProgram]uint16
	now, next := &a, &b
	p.add(now, &stack, 0)
	for _, c := range text {
		if now.n == 0 {
			return false
		}
		for _, pc := range now.pcs[:now.n] {
			switch i := &p.program[pc]; i.op {
			case opByte:
				if i.arg == uint16(c) {
					p.add(next, &stack, int(pc)+1)
				}
			case opSet:
				if p.sets[i.arg].has(c) {
					p.add(next, &stack, int(pc)+1)
				}
			}
		}
		now.n, now.seen = 0, [maxProgram / 64]uint64{}
		now, next = next, now
	}
	for _, pc := range now.pcs[:now.n] {
		if p.program[pc].op == opMatch {
			return true
		}
	}
	return false
}

// add adds a place, and all that can be reached from it without a byte. A place is visited once, so the stack holds no more
// than there are instructions.
func (p *Pattern) add(t *threads, stack *[maxProgram]uint16, pc int) {
	stack[0] = uint16(pc)
	for n := 1; n > 0; {
		n--
		at := int(stack[n])
		if t.seen[at>>6]>>(at&63)&1 != 0 {
			continue
		}
		t.seen[at>>6] |= 1 << (at & 63)
		switch i := &p.program[at]; i.op {
		case opJump:
			stack[n] = uint16(at + int(i.x))
			n++
		case opSplit:
			for _, to := range [2]int{at + int(i.x), at + int(i.y)} {
				if t.seen[to>>6]>>(to&63)&1 == 0 && n < len(stack) {
					stack[n] = uint16(to)
					n++
				}
			}
		default:
			t.pcs[t.n] = uint16(at)
			t.n++
		}
	}
}
