package hessian2

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
)

// high has the bit set that tells a byte beyond ASCII, in each byte.
const high = 0x8080808080808080

// Units steps over n UTF-16 units of a string's bytes, from b[off] on, and returns where they end. The errors are as in
// Scanner.Skip.
func Units(b []byte, off, n int) (at int, err error) {
	for {
		// 32 bytes of ASCII at once, then 8.
		for n >= 32 && len(b)-off >= 32 {
			p := b[off : off+32 : off+32]
			if (binary.LittleEndian.Uint64(p)|binary.LittleEndian.Uint64(p[8:])|binary.LittleEndian.Uint64(p[16:])|binary.LittleEndian.Uint64(p[24:]))&high != 0 {
				break
			}
			off += 32
			n -= 32
		}
		for len(b)-off >= 8 {
			w := binary.LittleEndian.Uint64(b[off:]) & high
			if n <= 8 {
				if w &= 1<<(uint(n)*8) - 1; w == 0 {
					return off + n, nil
				}
			} else if w == 0 {
				off += 8
				n -= 8
				continue
			}
			k := bits.TrailingZeros64(w) >> 3
			off += k
			n -= k
			break
		}
		// What is not ASCII, or near the end of b. After one such unit there often comes another.
		for {
			if n == 0 {
				return off, nil
			}
			if off >= len(b) {
				return off + n, ErrShort
			}
			c := b[off]
			size := 1
			switch {
			case c < 0x80:
			case c < 0xc0:
				return off, ErrMalformed
			case c < 0xe0:
				// Four units of two bytes at once: Latin, Greek, Cyrillic, Arabic, Hebrew.
				for n > 4 && len(b)-off > 8 && binary.LittleEndian.Uint64(b[off:])&0x00e000e000e000e0 == 0x00c000c000c000c0 && b[off+8]&0xe0 == 0xc0 {
					off += 8
					n -= 4
				}
				size = 2
			case c < 0xf0:
				// Three units of three bytes at once: the rest of the basic plane, and surrogates.
				for n > 3 && len(b)-off > 9 && b[off+3]&0xf0 == 0xe0 && b[off+6]&0xf0 == 0xe0 && b[off+9]&0xf0 == 0xe0 {
					off += 9
					n -= 3
				}
				size = 3
			case c < 0xf8:
				size = 4
			default:
				return off, ErrMalformed
			}
			if size > len(b)-off {
				return off + size + n - 1, ErrShort
			}
			off += size
			n--
			if size == 1 && len(b)-off >= 8 {
				break
			}
		}
	}
}

// Text reads the head of the string that starts at b[off]: how many UTF-16 units its bytes, from b[start] on, count, and
// whether it has more chunks behind them. Units steps over the bytes. ErrMalformed: no string starts there. The errors
// are as in Scanner.Skip, with start as at.
func Text(b []byte, off int) (units, start int, more bool, err error) {
	if off >= len(b) {
		return 0, off + 1, false, ErrShort
	}
	switch tag := b[off]; {
	case tag < 0x20:
		return int(tag), off + 1, false, nil
	case tag >= 0x30 && tag <= 0x33:
		if len(b)-off < 2 {
			return 0, off + 2, false, ErrShort
		}
		return int(tag-0x30)<<8 + int(b[off+1]), off + 2, false, nil
	case tag == 'S' || tag == 'R':
		if len(b)-off < 3 {
			return 0, off + 3, false, ErrShort
		}
		return int(binary.BigEndian.Uint16(b[off+1:])), off + 3, tag == 'R', nil
	}
	return 0, off, false, ErrMalformed
}

// skipString steps over a string in any of its forms.
func skipString(b []byte, off int) (int, error) {
	if off < len(b) && b[off] < 0x20 {
		return Units(b, off+1, int(b[off]))
	}
	return longString(b, off)
}

// longString steps over a string with all its chunks.
func longString(b []byte, off int) (int, error) {
	for {
		units, start, more, err := Text(b, off)
		if err != nil {
			return start, err
		}
		if off, err = Units(b, start, units); err != nil || !more {
			return off, err
		}
	}
}

// maxChunk is the number of units from which hessian-lite's writer begins another chunk (Hessian2Output.writeString).
const maxChunk = 0x8000

// AppendString appends s as Hessian2Output.writeString writes it: in the shortest form, in chunks of up to 32768 units,
// none of which ends within a surrogate pair. What is not UTF-8 becomes U+FFFD.
func AppendString(dst []byte, s string) []byte {
	for {
		units, end := 0, len(s)
		for i, r := range s {
			w := 1
			if r > 0xffff {
				w = 2
			}
			if units+w > maxChunk {
				end = i
				break
			}
			units += w
		}
		switch {
		case end < len(s):
			dst = append(dst, 'R', byte(units>>8), byte(units))
		case units < 0x20:
			dst = append(dst, byte(units))
		case units < 0x400:
			dst = append(dst, 0x30+byte(units>>8), byte(units))
		default:
			dst = append(dst, 'S', byte(units>>8), byte(units))
		}
		for _, r := range s[:end] {
			if r > 0xffff {
				r -= 0x10000
				dst = appendUnit(dst, 0xd800+uint16(r>>10))
				dst = appendUnit(dst, 0xdc00+uint16(r&0x3ff))
				continue
			}
			dst = utf8.AppendRune(dst, r)
		}
		if end == len(s) {
			return dst
		}
		s = s[end:]
	}
}

// appendUnit appends a surrogate in the pattern of UTF-8, which utf8.AppendRune refuses.
func appendUnit(dst []byte, u uint16) []byte {
	return append(dst, 0xe0|byte(u>>12), 0x80|byte(u>>6)&0x3f, 0x80|byte(u)&0x3f)
}
