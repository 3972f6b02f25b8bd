package h2

import (
	"encoding/binary"
	"math/bits"
)

// The code of RFC 7541, Appendix B, is canonical: it follows from the lengths of its codes alone, shorter ones first, and of
// equal length in the order of the symbols. codeLengths holds them in bits, for each byte; 30 ones are the end of the string,
// which must not occur.
const codeLengths = "" +
	"\x0d\x17\x1c\x1c\x1c\x1c\x1c\x1c\x1c\x18\x1e\x1c\x1c\x1e\x1c\x1c" +
	"\x1c\x1c\x1c\x1c\x1c\x1c\x1e\x1c\x1c\x1c\x1c\x1c\x1c\x1c\x1c\x1c" +
	"\x06\x0a\x0a\x0c\x0d\x06\x08\x0b\x0a\x0a\x08\x0b\x08\x06\x06\x06" +
	"\x05\x05\x05\x06\x06\x06\x06\x06\x06\x06\x07\x08\x0f\x06\x0c\x0a" +
	"\x0d\x06\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07" +
	"\x07\x07\x07\x07\x07\x07\x07\x07\x08\x07\x08\x0d\x13\x0d\x0e\x06" +
	"\x0f\x05\x06\x05\x06\x05\x06\x06\x06\x05\x07\x07\x06\x06\x06\x05" +
	"\x06\x07\x06\x05\x05\x06\x07\x07\x07\x07\x07\x0f\x0b\x0e\x0d\x1c" +
	"\x14\x16\x14\x14\x16\x16\x16\x17\x16\x17\x17\x17\x17\x17\x18\x17" +
	"\x18\x18\x16\x17\x18\x17\x17\x17\x17\x15\x16\x17\x16\x17\x17\x18" +
	"\x16\x15\x14\x16\x16\x17\x17\x15\x17\x16\x16\x18\x15\x16\x17\x17" +
	"\x15\x15\x16\x15\x17\x16\x17\x17\x14\x16\x16\x16\x17\x16\x16\x17" +
	"\x1a\x1a\x14\x13\x16\x17\x16\x19\x1a\x1a\x1a\x1b\x1b\x1a\x18\x19" +
	"\x13\x15\x1a\x1b\x1b\x1a\x1b\x18\x15\x15\x1a\x1a\x1c\x1b\x1b\x1b" +
	"\x14\x18\x14\x15\x16\x15\x15\x17\x16\x16\x19\x19\x18\x18\x1a\x17" +
	"\x1a\x1b\x1a\x1a\x1b\x1b\x1b\x1b\x1b\x1c\x1b\x1b\x1b\x1b\x1b\x1a"

const longestCode = 30

// decoding is the code made ready for reading.
type decoding struct {
	// short tells by the next eight bits the symbol, and in the upper byte the length of its code: 0 if it is longer. A larger table would
	// save steps and cost more than that where Envoy needs the processor's cache.
	short [256]uint16
	// symbols holds the symbols in the order of their codes. The codes of length n, at the top of 32 bits, are below limit[n];
	// first[n] is the lowest of them, and the symbol of that is symbols[index[n]].
	symbols      [256]byte
	limit, first [longestCode + 1]uint64
	index        [longestCode + 1]int
}

var huffman = canonical()

func canonical() *decoding {
	d := new(decoding)
	var code uint64
	n := 0
	for length := 1; length <= longestCode; length++ {
		shift := 32 - length
		d.first[length], d.index[length] = code<<shift, n
		for symbol := range 256 {
			if int(codeLengths[symbol]) != length {
				continue
			}
			d.symbols[n] = byte(symbol)
			n++
			if length <= 8 {
				at := int(code << (8 - length))
				for i := range 1 << (8 - length) {
					d.short[at+i] = uint16(length)<<8 | uint16(symbol)
				}
			}
			code++
		}
		d.limit[length] = code << shift
		code <<= 1
	}
	return d
}

// atOnce is how many symbols of at most eight bits are read between two looks at what is left.
const atOnce = 6

// appendHuffman appends the text that b is the code of. ok is false where b is none: a code without a meaning, or an end that
// is not up to seven ones.
func appendHuffman(dst, b []byte) (_ []byte, ok bool) {
	n := len(dst)
	if most := n + len(b)*8/5 + 8; cap(dst) < most { // no code has less than five bits, and eight symbols are written where fewer count
		dst = append(make([]byte, 0, 2*most), dst...)
	}
	out, short := dst[:cap(dst)], &huffman.short
	var (
		pos  int
		next uint64 // what is to be read, from the top
		have uint64 // how many bits that is
	)
	for {
		for {
			// More bits, eight bytes at once where b is as long.
			if rest := len(b) - pos; rest >= 8 {
				next |= bits.ReverseBytes64(binary.LittleEndian.Uint64(b[pos:])) >> (have & 63)
				pos += int(63-have) >> 3
				have |= 56
			} else if rest > 0 {
				var v uint64
				if len(b) >= 8 {
					v = bits.ReverseBytes64(binary.LittleEndian.Uint64(b[len(b)-8:])) << (64 - 8*rest&63)
				} else {
					for i, c := range b[pos:] {
						v |= uint64(c) << (56 - 8*i&63)
					}
				}
				next |= v >> (have & 63)
				k := min(rest, int(63-have)>>3)
				pos += k
				have += 8 * uint64(k)
			}
			if have < 8*atOnce {
				break
			}
			// Without a jump: jumps are what costs in WebAssembly.
			e0 := uint64(short[next>>56])
			left := next << (e0 >> 8 & 15)
			e1 := uint64(short[left>>56])
			left <<= e1 >> 8 & 15
			e2 := uint64(short[left>>56])
			left <<= e2 >> 8 & 15
			e3 := uint64(short[left>>56])
			left <<= e3 >> 8 & 15
			e4 := uint64(short[left>>56])
			left <<= e4 >> 8 & 15
			e5 := uint64(short[left>>56])
			if e5 == 0 {
				break // there is a longer code
			}
			next = left << (e5 >> 8 & 15)
			have -= e0>>8 + e1>>8 + e2>>8 + e3>>8 + e4>>8 + e5>>8
			binary.LittleEndian.PutUint64(out[n:n+8], e0&0xff|e1&0xff<<8|e2&0xff<<16|e3&0xff<<24|e4&0xff<<32|e5&0xff<<40)
			n += atOnce
		}
		if pos < len(b) && have < longestCode {
			continue
		}
		if have == 0 {
			return out[:n], true
		}
		filled := next | ^uint64(0)>>(have&63) // up with ones
		if e := uint64(short[filled>>56]); e != 0 && e>>8 <= have {
			out[n] = byte(e)
			n++
			next <<= e >> 8 & 15
			have -= e >> 8
			continue
		}
		code := filled >> 32
		length := uint64(5)
		for length <= longestCode && code >= huffman.limit[length] {
			length++
		}
		if length > have || length > longestCode {
			// Only padding may be left: less than a byte, all ones.
			return out[:n], have < 8 && code == 0xffffffff
		}
		at := huffman.index[length] + int((code-huffman.first[length])>>(32-length&63))
		out[n] = huffman.symbols[at]
		n++
		next <<= length & 63
		have -= length
	}
}
