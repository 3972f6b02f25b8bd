package match

import "strconv"

// Address is an IP address: IPv6, or IPv4 in the form ::ffff:a.b.c.d.
type Address [16]byte

// Network is an address and how many of its first bits count.
type Network struct {
	address Address
	bits    int
}

// ParseAddress reads an address as text: dotted decimals, or the forms of RFC 4291 without a zone.
func ParseAddress(s []byte) (a Address, ok bool) {
	for _, c := range s {
		if c == ':' {
			return a, a.six(s)
		}
	}
	a[10], a[11] = 0xff, 0xff
	return a, four(a[12:], s)
}

// four reads a.b.c.d into dst.
func four(dst, s []byte) bool {
	i := 0
	for field := range 4 {
		if field > 0 {
			if i >= len(s) || s[i] != '.' {
				return false
			}
			i++
		}
		n, start := 0, i
		for ; i < len(s) && s[i] >= '0' && s[i] <= '9' && n <= 255; i++ {
			n = n*10 + int(s[i]-'0')
		}
		if i == start || n > 255 || i > start+1 && s[start] == '0' {
			return false
		}
		dst[field] = byte(n)
	}
	return i == len(s)
}

// six reads an address of IPv6.
func (a *Address) six(s []byte) bool {
	n, gap := 0, -1 // bytes that were read; where :: stands
	i := 0
	if len(s) >= 2 && s[0] == ':' && s[1] == ':' {
		gap, i = 0, 2
	}
	for i < len(s) {
		if n >= 16 {
			return false
		}
		v, start := 0, i
	digits:
		for ; i < len(s) && i < start+4; i++ {
			c := s[i]
			switch {
			case c >= '0' && c <= '9':
				v = v<<4 | int(c-'0')
			case c|0x20 >= 'a' && c|0x20 <= 'f':
				v = v<<4 | int(c|0x20-'a'+10)
			default:
				break digits
			}
		}
		if i == start {
			return false
		}
		if i < len(s) && s[i] == '.' {
			if n > 12 || !four(a[n:n+4], s[start:]) {
				return false
			}
			n += 4
			break
		}
		a[n], a[n+1] = byte(v>>8), byte(v)
		n += 2
		if i == len(s) {
			break
		}
		if s[i] != ':' || i+1 == len(s) {
			return false
		}
		i++
		if s[i] == ':' {
			if gap >= 0 {
				return false
			}
			gap = n
			i++
		}
	}
	if gap < 0 {
		return n == 16
	}
	if n >= 16 {
		return false
	}
	copy(a[16-(n-gap):], a[gap:n])
	clear(a[gap : 16-(n-gap)])
	return true
}

// ParsePeer reads an address with its port, as Envoy writes them: 10.0.0.1:80 or [::1]:80.
func ParsePeer(s []byte) (a Address, ok bool) {
	a, _, ok = ParseSocket(s)
	return a, ok
}

// ParseSocket reads the same, and returns the port too.
func ParseSocket(s []byte) (a Address, port uint16, ok bool) {
	n, unit := 0, 1
	for i := len(s) - 1; i >= 0; i-- {
		switch c := s[i]; {
		case c >= '0' && c <= '9' && unit <= 10_000:
			n += int(c-'0') * unit
			unit *= 10
			continue
		case c != ':' || n > 65535:
			return a, 0, false
		}
		s = s[:i]
		if len(s) >= 2 && s[0] == '[' && s[len(s)-1] == ']' {
			s = s[1 : len(s)-1]
		}
		a, ok = ParseAddress(s)
		return a, uint16(n), ok
	}
	return a, 0, false
}

// ParseNetwork reads an address, or an address and the length of its prefix: 10.0.0.0/8. Bits behind the prefix do not
// count.
func ParseNetwork(s string) (n Network, ok bool) {
	length := -1
	for i := range len(s) {
		if s[i] != '/' {
			continue
		}
		digits := s[i+1:]
		if digits == "" || len(digits) > 3 || len(digits) > 1 && digits[0] == '0' {
			return n, false
		}
		length = 0
		for k := range len(digits) {
			if digits[k] < '0' || digits[k] > '9' {
				return n, false
			}
			length = length*10 + int(digits[k]-'0')
		}
		s = s[:i]
		break
	}
	a, ok := ParseAddress([]byte(s))
	if !ok {
		return n, false
	}
	most, before := 128, 0
	four := true
	for i := range len(s) {
		four = four && s[i] != ':'
	}
	if four {
		most, before = 32, 96
	}
	switch {
	case length > most:
		return n, false
	case length < 0:
		length = most
	}
	return Network{a, before + length}, true
}

// Contains tells whether a lies in n.
func (n *Network) Contains(a *Address) bool {
	whole := n.bits / 8
	for i := range whole {
		if n.address[i] != a[i] {
			return false
		}
	}
	rest := n.bits % 8
	return rest == 0 || (n.address[whole]^a[whole])>>(8-rest) == 0
}

// Append appends the address as text: dotted decimals where it is one of IPv4, else eight groups of hexadecimal digits,
// none of them left out.
func (a *Address) Append(dst []byte) []byte {
	if *a == (Address{10: 0xff, 11: 0xff, 12: a[12], 13: a[13], 14: a[14], 15: a[15]}) {
		for i, b := range a[12:] {
			if i > 0 {
				dst = append(dst, '.')
			}
			dst = strconv.AppendUint(dst, uint64(b), 10)
		}
		return dst
	}
	for i := 0; i < len(a); i += 2 {
		if i > 0 {
			dst = append(dst, ':')
		}
		dst = strconv.AppendUint(dst, uint64(a[i])<<8|uint64(a[i+1]), 16)
	}
	return dst
}
