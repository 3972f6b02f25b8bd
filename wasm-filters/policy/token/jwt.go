package token

// maxSeconds bounds the times in tokens: the year 36812. So nothing overflows.
const maxSeconds = 1 << 40

// jwt checks a token at the time wall, in milliseconds.
func (v *Verifier) jwt(wall int64, tok []byte) Result {
	if e := v.cache.find(tok); e != nil {
		if r := v.timely(wall, &e.span); r != Valid {
			return r
		}
		return Cached
	}
	if len(v.ring.keys) == 0 {
		return Unverifiable
	}
	head, body, signature, ok := cut(tok)
	if !ok {
		return Malformed
	}
	// All three parts are decoded one behind the other. There is room for them: views stay good.
	if v.text == nil {
		v.text = make([]byte, 0, MaxBytes)
	}
	decode := func(s []byte) []byte {
		start := len(v.text)
		text, good := appendDecoded(v.text, s)
		v.text, ok = text, ok && good
		return text[start:]
	}
	v.text = v.text[:0]
	headText, bodyText, signed := decode(head), decode(body), decode(signature)
	if !ok {
		return Malformed
	}
	var h header
	var c claims
	if !v.header(headText, &h) || !v.body(bodyText, &c) {
		return Malformed
	}
	// What is too old is not worth a signature. All else about the claims is told only to who has a key.
	if r := v.timely(wall, &c.span); r != Valid {
		return r
	}
	if r := v.signed(&h, signed, tok[:len(tok)-len(signature)-1]); r != Valid {
		return r
	}
	switch {
	case v.JWT.Issuer != "" && !c.issuer:
		return Issuer
	case len(v.JWT.Audiences) > 0 && !c.audience:
		return Audience
	}
	for i := range v.JWT.Claims {
		if !v.JWT.Claims[i].holds(v.claims[i].present, v.claims[i].found) {
			return Claims
		}
	}
	v.cache.add(tok, c.span)
	return Valid
}

// cut takes a token apart at its two dots (the compact serialization of RFC 7515, 7.1).
func cut(tok []byte) (head, body, signature []byte, ok bool) {
	var dots [2]int
	n := 0
	for i, c := range tok {
		if c == '.' {
			if n == len(dots) {
				return nil, nil, nil, false
			}
			dots[n] = i
			n++
		}
	}
	if n < len(dots) {
		return nil, nil, nil, false
	}
	head, body, signature = tok[:dots[0]], tok[dots[0]+1:dots[1]], tok[dots[1]+1:]
	return head, body, signature, len(head) > 0 && len(body) > 0 && len(signature) > 0
}

// A header is what a token says of its signature; views.
type header struct{ algorithm, key []byte }

// header reads a token's header. One that demands what we do not know ("crit") is not good.
func (v *Verifier) header(b []byte, h *header) bool {
	s := &v.scan
	for s.object(b); ; {
		name, x, ok := s.member()
		if !ok {
			return !s.bad && h.algorithm != nil
		}
		switch string(name) {
		case "alg":
			if x.kind != kindString {
				return false
			}
			h.algorithm = x.text
		case "kid":
			if x.kind != kindString {
				return false
			}
			h.key = x.text
		case "crit":
			return false
		}
	}
}

// A span is when a token is good, in milliseconds since the Unix epoch.
type span struct{ from, to int64 }

// timely tells whether a span is now.
func (v *Verifier) timely(wall int64, s *span) Result {
	switch {
	case wall >= s.to+v.JWT.Skew:
		return Expired
	case wall < s.from-v.JWT.Skew:
		return Early
	}
	return Valid
}

// claims is what a token's claims say of what every rule asks.
type claims struct {
	span
	issuer, audience bool // are what the rule wants
}

// body reads a token's claims. One without an expiry is not good.
func (v *Verifier) body(b []byte, c *claims) bool {
	clear(v.claims[:])
	expires := false
	s := &v.scan
	for s.object(b); ; {
		name, x, ok := s.member()
		if !ok {
			return !s.bad && expires
		}
		list := false
		switch string(name) {
		case "exp", "nbf":
			t, ok := seconds(x)
			if !ok {
				return false
			}
			if name[0] == 'e' {
				c.to, expires = 1000*t, true
			} else {
				c.from = 1000 * t
			}
		case "iss":
			if x.kind != kindString {
				return false
			}
			c.issuer = string(x.text) == v.JWT.Issuer
		case "aud":
			if x.kind != kindString && x.kind != kindArray {
				return false
			}
			list = true
		}
		for i := range v.JWT.Claims {
			if v.JWT.Claims[i].Name == string(name) {
				v.claims[i].present = x.kind != kindNull
				list = true
			}
		}
		if list && !v.each(name, x, c) {
			return false
		}
	}
}

// each looks at the elements of a claim; one that is no list is its own only element.
func (v *Verifier) each(name []byte, x value, c *claims) bool {
	if x.kind != kindArray {
		if x.kind == kindString && string(name) == "scope" {
			v.words(name, x.text, c)
		}
		v.element(name, x, c)
		return true
	}
	for v.items.array(x.text); ; {
		e, ok := v.items.element()
		if !ok {
			return !v.items.bad
		}
		v.element(name, e, c)
	}
}

// words looks at each word of a scope (RFC 8693, 4.2).
func (v *Verifier) words(name, text []byte, c *claims) {
	start := 0
	for i := 0; i <= len(text); i++ {
		if i == len(text) || text[i] == ' ' {
			if i > start {
				v.element(name, value{kindString, text[start:i]}, c)
			}
			start = i + 1
		}
	}
}

func (v *Verifier) element(name []byte, x value, c *claims) {
	if x.kind > kindBool {
		return // nothing to compare with
	}
	if string(name) == "aud" {
		for _, a := range v.JWT.Audiences {
			c.audience = c.audience || x.kind == kindString && a == string(x.text)
		}
	}
	for i := range v.JWT.Claims {
		if q := &v.JWT.Claims[i]; q.Name == string(name) && q.Strings.Matches(x.text) {
			v.claims[i].found = true
		}
	}
}

// holds tells whether the condition holds for a claim that is there or not, and has a value that Strings selects or not.
func (q *Claim) holds(present, found bool) bool {
	switch {
	case q.Exists:
		return present
	case !present:
		return q.Not
	}
	return found != q.Not
}

// seconds reads a time (NumericDate of RFC 7519): seconds, of which a fraction does not matter. An exponent is not good; nobody writes one.
func seconds(x value) (int64, bool) {
	if x.kind != kindNumber {
		return 0, false
	}
	whole := x.text
	for i, c := range x.text {
		switch c {
		case '.':
			whole = x.text[:i]
		case 'e', 'E':
			return 0, false
		}
	}
	n, ok := decimal(whole)
	return n, ok && n <= maxSeconds
}

// signed tells whether signature is one of text by one of our keys, in the key's own way.
func (v *Verifier) signed(h *header, signature, text []byte) Result {
	result, tries := WrongAlgorithm, 0
	for i := range v.ring.keys {
		k := &v.ring.keys[i]
		if k.Algorithm.String() != string(h.algorithm) {
			continue
		}
		if result == WrongAlgorithm {
			result = UnknownKey
		}
		if k.ID != "" && h.key != nil && k.ID != string(h.key) || tries == maxTries {
			continue
		}
		tries++
		switch valid, done := v.verify(i, signature, text); {
		case !done:
			return Unverifiable
		case valid:
			return Valid
		}
		result = BadSignature
	}
	return result
}

// verify tells whether signature is one of text by the i-th key.
func (v *Verifier) verify(i int, signature, text []byte) (valid, done bool) {
	k := &v.ring.keys[i]
	switch k.Algorithm {
	case HS256:
		m := &v.ring.macs[i]
		var sum [digestSize]byte
		m.start()
		m.write(text)
		m.sum(&sum)
		return same(sum[:], signature), true
	case ES256:
		if len(signature) != 64 {
			return false, true
		}
		var der [72]byte
		signature = derECDSA(&der, signature)
	}
	return v.checker.VerifySignature("sha256", k.Value, signature, text)
}

// derECDSA puts an ECDSA signature into the form that OpenSSL has: a sequence of two integers in DER. rs is both, of 32 bytes each (RFC 7518, 3.4).
func derECDSA(room *[72]byte, rs []byte) []byte {
	n := 2
	for len(rs) > 0 {
		number := rs[:32]
		rs = rs[32:]
		for len(number) > 1 && number[0] == 0 {
			number = number[1:]
		}
		size := len(number)
		if number[0] >= 0x80 {
			size++ // a 0 before it, or it would be negative
		}
		room[n], room[n+1], room[n+2] = 2, byte(size), 0
		n += 2 + size
		copy(room[n-len(number):n], number)
	}
	room[0], room[1] = 0x30, byte(n-2)
	return room[:n]
}
