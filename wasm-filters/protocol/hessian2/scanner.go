package hessian2

import (
	"encoding/binary"
	"errors"
)

// MaxDepth is how many lists, maps and objects may be open at once. Protocol Buffers' readers stop at 100, and what a
// person designs to be sent stays far below that; hessian-lite's recursive reader has no bound but its thread's stack.
const MaxDepth = 128

// MaxClasses is how many classes one message may define: each field's class, however deep, counts once.
const MaxClasses = 256

// maxFields is the largest number of fields of a Java class (JVM specification, 4.11).
const maxFields = 1<<16 - 1

var (
	// ErrShort: the bytes end within a value that is well formed so far.
	ErrShort = errors.New("hessian2: value is not complete")
	// ErrMalformed: no value begins with these bytes.
	ErrMalformed = errors.New("hessian2: malformed value")
	// ErrTooDeep: more than MaxDepth lists, maps and objects within each other.
	ErrTooDeep = errors.New("hessian2: nested too deeply")
	// ErrTooManyClasses: more than MaxClasses class definitions.
	ErrTooManyClasses = errors.New("hessian2: too many class definitions")
)

// Scanner steps over the values of one message, which share their class definitions. The zero value is ready; it is about
// 1 KiB, to be kept on the stack or reused after Reset.
type Scanner struct {
	classes int
	fields  [MaxClasses]uint16 // by class: its number of fields
	open    [MaxDepth]uint32   // by depth: what the container around still owes
}

// Reset makes s ready for another message.
func (s *Scanner) Reset() { s.classes = 0 }

// What a container owes is the number of its values to come, or one of these. Bit 1 says that it is a map, bit 0 that
// its next value belongs to a key.
const (
	endless = 1 << 31
	keyNext = endless | 2
	valNext = endless | 3
)

// What to do about a first byte, if it is not to step over so many bytes.
const (
	opString      = 0x20 + iota // 00-1f
	opShortString               // 30-33
	opLongString                // 53
	opChunk                     // 52
	opShortBinary               // 34-37
	opBinary                    // 42
	opBinaryChunk               // 41
	opClass                     // 43
	opMap                       // 48
	opTypedMap                  // 4d
	opObject                    // 4f
	opRef                       // 51
	opTypedEndless
	opTypedFixed
	opEndless
	opFixed
	opShortObject // 60-6f
	opTypedShort  // 70-77
	opShortList   // 78-7f
)

// ops has for each first byte the whole length of the value, up to 16, or an op, or 0 where no value begins so.
var ops = func() (t [256]uint8) {
	span := func(from, to int, op uint8) {
		for i := from; i <= to; i++ {
			t[i] = op
		}
	}
	span(0x00, 0x1f, opString)
	for i := range 16 {
		t[0x20+i] = uint8(1 + i)
	}
	span(0x30, 0x33, opShortString)
	span(0x34, 0x37, opShortBinary)
	span(0x38, 0x3f, 3)
	t['A'], t['B'], t['C'], t['D'] = opBinaryChunk, opBinary, opClass, 9
	t['F'], t['H'], t['I'], t['J'], t['K'], t['L'] = 1, opMap, 5, 9, 5, 9
	t['M'], t['N'], t['O'], t['Q'] = opTypedMap, 1, opObject, opRef
	t['R'], t['S'], t['T'] = opChunk, opLongString, 1
	t['U'], t['V'], t['W'], t['X'], t['Y'] = opTypedEndless, opTypedFixed, opEndless, opFixed, 5
	t[0x5b], t[0x5c], t[0x5d], t[0x5e], t[0x5f] = 1, 1, 2, 3, 5
	span(0x60, 0x6f, opShortObject)
	span(0x70, 0x77, opTypedShort)
	span(0x78, 0x7f, opShortList)
	span(0x80, 0xbf, 1)
	span(0xc0, 0xcf, 2)
	span(0xd0, 0xd7, 3)
	span(0xd8, 0xef, 1)
	span(0xf0, 0xff, 2)
	return t
}()

// Skip steps over the n values that start at b[off] and returns where they end. The bytes of b before off are not
// looked at.
//
// ErrShort: the values go on behind b, and at is the length that b must have at least; call again with the same off. Where
// b is the whole message, the message is malformed. Any other error is final, and at is the offset of the byte at fault.
// After an error s is as before the call.
func (s *Scanner) Skip(b []byte, off, n int) (at int, err error) {
	if n <= 0 {
		return off, nil
	}
	if n > len(b)-off {
		return off + n, ErrShort // each value takes a byte at least
	}
	n = min(n, endless-1) // a message has no 2 GiB: a frame's length is an int32
	classes := s.classes
	if at, err = s.skip(b, off, uint32(n)); err != nil {
		s.classes = classes
	}
	return at, err
}

func (s *Scanner) skip(b []byte, off int, left uint32) (int, error) {
	depth := 0
	for {
		for left == 0 {
			if depth == 0 {
				return off, nil
			}
			depth--
			left = s.open[depth]
		}
		if off >= len(b) {
			return off + 1, ErrShort
		}
		tag := b[off]
		if left < endless {
			left--
		} else if tag == 'Z' {
			if left == valNext {
				return off, ErrMalformed // a key without a value
			}
			off++
			left = 0
			continue
		} else {
			left ^= left >> 1 & 1
		}
	value:
		op := ops[tag]
		if op <= 0x10 {
			if op == 0 {
				return off, ErrMalformed
			}
			if int(op) > len(b)-off {
				return off + int(op), ErrShort
			}
			off += int(op)
			continue
		}
		if op <= opChunk {
			var err error
			switch {
			case op == opString:
				off, err = Units(b, off+1, int(tag))
			case op == opShortString && len(b)-off >= 2:
				off, err = Units(b, off+2, int(tag&3)<<8|int(b[off+1]))
			case op == opLongString && len(b)-off >= 3:
				off, err = Units(b, off+3, int(b[off+1])<<8|int(b[off+2]))
			default:
				off, err = longString(b, off)
			}
			if err != nil {
				return off, err
			}
			continue
		}
		if op <= opBinaryChunk {
			var err error
			if off, err = longBinary(b, off); err != nil {
				return off, err
			}
			continue
		}
		// What is left begins a container, or defines a class, or refers.
		at := off
		off++
		var err error
		var n uint32
		switch op {
		case opClass:
			if off, err = s.define(b, at); err != nil {
				return off, err
			}
			if off >= len(b) {
				return off + 1, ErrShort
			}
			tag = b[off]
			goto value
		case opRef:
			if _, off, err = Int(b, off); err != nil {
				return off, err
			}
			continue
		case opTypedMap, opTypedEndless, opTypedFixed, opTypedShort:
			if off, err = Type(b, off); err != nil {
				return off, err
			}
		}
		switch op {
		case opMap, opTypedMap:
			n = keyNext
		case opTypedEndless, opEndless:
			n = endless
		case opTypedFixed, opFixed:
			from := off
			var length int32
			if length, off, err = Int(b, off); err != nil {
				return off, err
			}
			if length < 0 {
				return from, ErrMalformed
			}
			n = uint32(length)
		case opTypedShort, opShortList:
			n = uint32(tag & 7)
		case opObject, opShortObject:
			class, from := int32(tag&15), off
			if op == opObject {
				if class, off, err = Int(b, off); err != nil {
					return off, err
				}
			} else {
				from = at
			}
			if class < 0 || int(class) >= s.classes {
				return from, ErrMalformed
			}
			n = uint32(s.fields[class])
		}
		if n < endless && int(n) > len(b)-off {
			return off + int(n), ErrShort // each value takes a byte at least
		}
		if depth == MaxDepth {
			return at, ErrTooDeep
		}
		s.open[depth] = left
		depth++
		left = n
	}
}

// define reads the class definition at b[at], 'C' name count field*, and returns where it ends.
func (s *Scanner) define(b []byte, at int) (off int, err error) {
	if off, err = skipString(b, at+1); err != nil {
		return off, err
	}
	from := off
	var n int32
	if n, off, err = Int(b, off); err != nil {
		return off, err
	}
	if n < 0 || n > maxFields {
		return from, ErrMalformed
	}
	if int(n) > len(b)-off {
		return off + int(n), ErrShort
	}
	for range n {
		if off, err = skipString(b, off); err != nil {
			return off, err
		}
	}
	if s.classes == MaxClasses {
		return at, ErrTooManyClasses
	}
	s.fields[s.classes] = uint16(n)
	s.classes++
	return off, nil
}

// Type steps over the type of a list or map, a name or the number of one, from b[off] on, and returns where it ends. The
// errors are as in Scanner.Skip.
func Type(b []byte, off int) (at int, err error) {
	if off < len(b) && b[off] >= 0x80 || off < len(b) && b[off] == 'I' {
		_, at, err = Int(b, off)
		return at, err
	}
	return skipString(b, off)
}

// Int reads the int that starts at b[off], in any of its forms, and returns where it ends. The errors are as in Skip.
func Int(b []byte, off int) (v int32, at int, err error) {
	if off >= len(b) {
		return 0, off + 1, ErrShort
	}
	tag := b[off]
	switch {
	case tag >= 0x80 && tag <= 0xbf:
		return int32(tag) - 0x90, off + 1, nil
	case tag >= 0xc0 && tag <= 0xcf:
		if len(b)-off < 2 {
			return 0, off + 2, ErrShort
		}
		return (int32(tag)-0xc8)<<8 + int32(b[off+1]), off + 2, nil
	case tag >= 0xd0 && tag <= 0xd7:
		if len(b)-off < 3 {
			return 0, off + 3, ErrShort
		}
		return (int32(tag)-0xd4)<<16 + int32(binary.BigEndian.Uint16(b[off+1:])), off + 3, nil
	case tag == 'I':
		if len(b)-off < 5 {
			return 0, off + 5, ErrShort
		}
		return int32(binary.BigEndian.Uint32(b[off+1:])), off + 5, nil
	}
	return 0, off, ErrMalformed
}

// longBinary steps over the binary value at b[off] that has its length in bytes of its own, with all its chunks.
func longBinary(b []byte, off int) (int, error) {
	for {
		if off >= len(b) {
			return off + 1, ErrShort
		}
		tag, start := b[off], off+3
		n := 0
		switch {
		case tag == 'A' || tag == 'B':
			if start > len(b) {
				return start, ErrShort
			}
			n = int(binary.BigEndian.Uint16(b[off+1:]))
		case tag >= 0x34 && tag <= 0x37:
			start = off + 2
			if start > len(b) {
				return start, ErrShort
			}
			n = int(tag-0x34)<<8 + int(b[off+1])
		case tag >= 0x20 && tag <= 0x2f:
			start = off + 1
			n = int(tag - 0x20)
		default:
			return off, ErrMalformed
		}
		if n > len(b)-start {
			return start + n, ErrShort
		}
		off = start + n
		if tag != 'A' {
			return off, nil
		}
	}
}
