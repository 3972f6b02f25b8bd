package token

// digits tells the value of each character of base64url (RFC 4648, section 5); 0xff is none.
var digits = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	for i, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") {
		t[c] = byte(i)
	}
	return t
}()

// appendDecoded appends what s says in base64url without padding. There is one way only to write some bytes: bits that no byte takes must be 0.
func appendDecoded(dst, s []byte) ([]byte, bool) {
	if len(s)%4 == 1 {
		return dst, false
	}
	var v uint32
	for i, c := range s {
		d := digits[c]
		if d == 0xff {
			return dst, false
		}
		v = v<<6 | uint32(d)
		if i%4 == 3 {
			dst = append(dst, byte(v>>16), byte(v>>8), byte(v))
			v = 0
		}
	}
	switch len(s) % 4 {
	case 2:
		dst = append(dst, byte(v>>4))
		return dst, v&0xf == 0
	case 3:
		dst = append(dst, byte(v>>10), byte(v>>2))
		return dst, v&3 == 0
	}
	return dst, true
}

// appendHex appends what s says in hexadecimal digits of either case.
func appendHex(dst, s []byte) ([]byte, bool) {
	if len(s)%2 != 0 {
		return dst, false
	}
	var v byte
	for i, c := range s {
		c = nibble(c)
		if c > 15 {
			return dst, false
		}
		v = v<<4 | c
		if i%2 == 1 {
			dst = append(dst, v)
		}
	}
	return dst, true
}

// nibble returns the value of a hexadecimal digit, and 0xff for what is none.
//
//go:noinline
func nibble(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10
	}
	return 0xff
}

// decimal reads a whole number without a sign, of at most 15 digits.
func decimal(s []byte) (n int64, ok bool) {
	if len(s) == 0 || len(s) > 15 {
		return 0, false
	}
	for _, c := range s {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}
