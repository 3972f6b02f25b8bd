// Package jsonb reads the little of JSONB, the binary format of fastjson2, that routing a Dubbo call takes: strings, small
// integers, and the ends of simple values.
//
// In Dubbo's fastjson2 serialization each value is preceded by its length in four bytes, big endian
// (FastJson2ObjectOutput), so that a value that is not understood can be left out all the same. The first byte of a
// value tells its type (com.alibaba.fastjson2.JSONB.Constants, read off 2.0.56):
//
//	00-2f, f0-ff    int 0 to 47, -16 to -1          a6 … a5        object: key, value, …
//	30-3f b         int, 12 bits                    af, b0, b1     null, false, true
//	40-47 b b       int, 19 bits                    b2, b3         double 0, 1
//	48 4b           int                             b5 8b          double
//	49-78           ISO-8859-1, 0 to 47 bytes       b7 4b          float
//	79 int          ISO-8859-1                      bc 2b, bd b    short, byte
//	7a int          UTF-8                           be 8b, bf 4b   long
//	7b-7d int       UTF-16                          c0-c7 2b       long, 19 bits
//	7e int          GB 18030                        c8-d7 b        long, 12 bits
//	94-a3           array of 0 to 15 values         d8-ef          long -8 to 15
//	a4 int          array                           b4 long        double
//	                                                b6 int         float
//
// What is not in this table (typed values, references, symbols, dates, decimals, binary) is not read.
package jsonb

import "encoding/binary"

// First bytes of values.
const (
	ObjectEnd = 0xa5
	Object    = 0xa6
	Null      = 0xaf
)

// Kind tells what Text found.
type Kind uint8

// What Text may find.
const (
	Other  Kind = iota // a value that is no string
	Broken             // a string that is longer than its bytes
	Absent             // null
	UTF8               // a string in UTF-8, most often ASCII
	Opaque             // a string in another encoding: UTF-16, GB 18030, or ISO-8859-1 beyond ASCII
)

// Text reads the string that starts at b[off]: its bytes are b[start:end], and end is where the value ends. Both are
// meaningless where kind is Other or Broken.
func Text(b []byte, off int) (start, end int, kind Kind) {
	if off >= len(b) {
		return 0, 0, Broken
	}
	tag := b[off]
	var n int
	switch {
	case tag >= 0x49 && tag <= 0x78:
		n, start = int(tag-0x49), off+1
	case tag >= 0x79 && tag <= 0x7e:
		v, at, ok := Int(b, off+1)
		if !ok || v < 0 {
			return 0, 0, Broken
		}
		n, start = int(v), at
	case tag == Null:
		return off, off + 1, Absent
	default:
		return 0, 0, Other
	}
	if n > len(b)-start {
		return 0, 0, Broken
	}
	end = start + n
	switch {
	case tag == 0x7a:
		return start, end, UTF8
	case tag > 0x7a:
		return start, end, Opaque
	}
	for _, c := range b[start:end] {
		if c >= 0x80 {
			return start, end, Opaque
		}
	}
	return start, end, UTF8
}

// Int reads the integer of up to 32 bits that starts at b[off], and tells where it ends.
func Int(b []byte, off int) (v int32, end int, ok bool) {
	if off >= len(b) {
		return 0, 0, false
	}
	tag := b[off]
	p := b[off+1:]
	switch {
	case tag <= 0x2f || tag >= 0xf0:
		return int32(int8(tag)), off + 1, true
	case tag <= 0x3f && len(p) >= 1:
		return (int32(tag)-0x38)<<8 + int32(p[0]), off + 2, true
	case tag >= 0x40 && tag <= 0x47 && len(p) >= 2:
		return (int32(tag)-0x44)<<16 + int32(binary.BigEndian.Uint16(p)), off + 3, true
	case tag == 0x48 && len(p) >= 4:
		return int32(binary.BigEndian.Uint32(p)), off + 5, true
	case tag == 0xbc && len(p) >= 2:
		return int32(int16(binary.BigEndian.Uint16(p))), off + 3, true
	case tag == 0xbd && len(p) >= 1:
		return int32(int8(p[0])), off + 2, true
	}
	return 0, 0, false
}

// maxDepth is how many arrays and objects Skip enters within each other.
const maxDepth = 16

// Skip tells where the value that starts at b[off] ends: a string, a number, a boolean, null, or an array or an object of
// such values. known is false for any other value, and for one that is nested beyond 16 levels; end is beyond b for one that
// is not complete.
func Skip(b []byte, off int) (end int, known bool) {
	// What each level owes: so many values, or with the top bit set, all up to the end of the object, bit 0 telling that a
	// value belongs to a key.
	const object = 1 << 31
	var open [maxDepth]uint32
	depth, left := 0, uint32(1)
	for {
		for left == 0 {
			if depth == 0 {
				return off, true
			}
			depth--
			left = open[depth]
		}
		if off >= len(b) {
			return len(b) + 1, true
		}
		tag := b[off]
		switch {
		case left < object:
			left--
		case tag == ObjectEnd && left == object:
			off++
			left = 0
			continue
		default:
			left ^= 1
		}
		n := uint32(object)
		switch {
		case tag >= 0x49 && tag <= 0x7e:
			var kind Kind
			if _, off, kind = Text(b, off); kind == Broken {
				return len(b) + 1, true
			}
			continue
		case tag >= 0x94 && tag <= 0xa3:
			off++
			n = uint32(tag - 0x94)
		case tag == 0xa4:
			v, at, ok := Int(b, off+1)
			if !ok {
				return len(b) + 1, len(b)-off < 6 // incomplete, or no int
			}
			if v < 0 {
				return 0, false
			}
			off = at
			n = uint32(v)
		case tag == Object:
			off++
		default:
			size := scalar(tag)
			if tag == 0xb4 || tag == 0xb6 {
				if len(b)-off < 2 {
					return len(b) + 1, true
				}
				if size = scalar(b[off+1]); size > 0 {
					size++
				}
			}
			if size == 0 {
				return 0, false
			}
			if off += size; off > len(b) {
				return off, true
			}
			continue
		}
		if n < object && int(n) > len(b)-off {
			return len(b) + 1, true // each value takes a byte at least
		}
		if depth == maxDepth {
			return 0, false
		}
		open[depth] = left
		depth++
		left = n
	}
}

// scalar returns the whole length of a value that has only one length; 0 for any other.
func scalar(tag byte) int {
	switch {
	case tag <= 0x2f, tag >= 0xd8, tag >= Null && tag <= 0xb3:
		return 1
	case tag <= 0x3f, tag == 0xbd, tag >= 0xc8:
		return 2
	case tag <= 0x47, tag == 0xbc, tag >= 0xc0:
		return 3
	case tag == 0x48, tag == 0xb7, tag == 0xbf:
		return 5
	case tag == 0xb5, tag == 0xbe:
		return 9
	}
	return 0
}
