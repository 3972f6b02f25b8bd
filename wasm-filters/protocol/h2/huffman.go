package h2

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
	// short tells by the next eight bits the symbol, and in the upper byte the length of its code: 0 if it is longer.
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

// appendHuffman appends the text that b is the code of. ok is false where b is none: a code without a meaning, or an end that
// is not up to seven ones.
func appendHuffman(dst, b []byte) (_ []byte, ok bool) {
	var bits uint64 // the next ones at the top of the lower 32+have bits
	have := 0
	for {
		for have <= 32 && len(b) > 0 {
			bits = bits<<8 | uint64(b[0])
			have += 8
			b = b[1:]
		}
		if have == 0 {
			return dst, true
		}
		var next uint64 // 32 bits, filled up with ones
		if have >= 32 {
			next = bits >> (have - 32) & 0xffffffff
		} else {
			next = (bits<<(32-have) | (1<<(32-have) - 1)) & 0xffffffff
		}
		if e := huffman.short[next>>24]; e != 0 && int(e>>8) <= have {
			dst = append(dst, byte(e))
			have -= int(e >> 8)
			continue
		}
		length := 5
		for length <= longestCode && next >= huffman.limit[length] {
			length++
		}
		if length > have || length > longestCode {
			// Only padding may be left: less than a byte, all ones.
			return dst, have < 8 && next == 0xffffffff
		}
		at := huffman.index[length] + int((next-huffman.first[length])>>(32-length))
		dst = append(dst, huffman.symbols[at])
		have -= length
	}
}
