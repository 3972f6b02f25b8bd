package token

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/match"
)

// now is a moment in milliseconds.
const now = 1_767_225_600_000

// checker checks signatures by the standard library.
type checker struct {
	calls int
	away  bool // there is no such function
}

func (c *checker) VerifySignature(hash string, key, signature, text []byte) (valid, done bool) {
	c.calls++
	public, err := x509.ParsePKIXPublicKey(key)
	if c.away || err != nil || hash != "sha256" {
		return false, false
	}
	sum := sha256.Sum256(text)
	switch k := public.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], signature) == nil, true
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, sum[:], signature), true
	}
	return false, false
}

// A signer makes tokens.
type signer struct {
	key  Key
	sign func(text []byte) []byte
}

func secretSigner(id, secret string) signer {
	return signer{Key{id, HS256, []byte(secret)}, func(text []byte) []byte {
		m := hmac.New(sha256.New, []byte(secret))
		m.Write(text)
		return m.Sum(nil)
	}}
}

func der(t testing.TB, public any) []byte {
	b, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func rsaSigner(t testing.TB, id string) signer {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return signer{Key{id, RS256, der(t, &k.PublicKey)}, func(text []byte) []byte {
		sum := sha256.Sum256(text)
		b, err := rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return b
	}}
}

func ecdsaSigner(t testing.TB, id string) signer {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{Key{id, ES256, der(t, &k.PublicKey)}, func(text []byte) []byte {
		sum := sha256.Sum256(text)
		r, s, err := ecdsa.Sign(rand.Reader, k, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	}}
}

var raw = base64.RawURLEncoding

// token makes a token of header and claims as they are.
func (s signer) token(head, body string) string {
	text := raw.EncodeToString([]byte(head)) + "." + raw.EncodeToString([]byte(body))
	return text + "." + raw.EncodeToString(s.sign([]byte(text)))
}

// call is one that shows text, as its attachment 0.
func call(text string) *policy.Call {
	c := &policy.Call{Wall: now, Attachments: [][]byte{nil, nil, nil}}
	if text != "" {
		c.Attachments[0] = []byte(text)
	}
	return c
}

// claims that every case has.
const exp = `"exp":1767226600`

func TestJWT(t *testing.T) {
	hs, rs, es, other := secretSigner("h", strings.Repeat("s", 32)), rsaSigner(t, "r"), ecdsaSigner(t, "e"), rsaSigner(t, "r")
	all := []Key{hs.key, rs.key, es.key}
	good := `{"iss":"me","aud":"orders",` + exp + `}`
	rule := &JWT{Issuer: "me", Audiences: []string{"stock", "orders"}, Skew: 60_000}
	claim := func(c Claim) *JWT { return &JWT{Claims: []Claim{c}} }
	in := func(v ...string) match.Strings { return match.Strings{In: v} }
	withKey := func(alg, kid string) string { return fmt.Sprintf(`{"alg":%q,"kid":%q}`, alg, kid) }
	swapped := func(tok string, with string) string {
		parts := strings.Split(tok, ".")
		return parts[0] + "." + raw.EncodeToString([]byte(with)) + "." + parts[2]
	}
	for name, c := range map[string]struct {
		jwt  *JWT
		keys []Key
		text string
		want Result
	}{
		"HS256":             {rule, all, hs.token(`{"alg":"HS256","typ":"JWT"}`, good), Valid},
		"RS256":             {rule, all, rs.token(`{"alg":"RS256"}`, good), Valid},
		"ES256":             {rule, all, es.token(`{"alg":"ES256"}`, good), Valid},
		"with the key's ID": {rule, all, rs.token(withKey("RS256", "r"), good), Valid},
		"a key without one": {rule, []Key{{"", RS256, rs.key.Value}}, rs.token(withKey("RS256", "whatever"), good), Valid},
		"the second key":    {rule, []Key{other.key, rs.key}, rs.token(`{"alg":"RS256"}`, good), Valid},
		"among audiences":   {rule, all, hs.token(`{"alg":"HS256"}`, `{"iss":"me","aud":["a","orders"],`+exp+`}`), Valid},
		"white space":       {rule, all, hs.token(" {\n\t\"alg\" : \"HS256\" }\r\n", ` { "iss" : "me", "aud" : [ "orders" ] , `+exp+` } `), Valid},
		"escapes":           {rule, all, hs.token(`{"\u0061lg":"\u0048S256"}`, `{"iss":"m\u0065","\u0061ud":"orders",`+exp+`}`), Valid},
		"a fraction":        {rule, all, hs.token(`{"alg":"HS256"}`, `{"iss":"me","aud":"orders","exp":1767226600.25,"nbf":1767225599.9}`), Valid},

		"nothing":                          {rule, all, "", Missing},
		"no dots":                          {rule, all, "abc", Malformed},
		"one dot":                          {rule, all, "a.b", Malformed},
		"three dots":                       {rule, all, "a.b.c.d", Malformed},
		"five parts":                       {rule, all, "a.b.c.d.e", Malformed},
		"empty parts":                      {rule, all, "..", Malformed},
		"padding":                          {rule, all, strings.Replace(hs.token(`{"alg":"HS256"} `, good), ".", "=.", 1), Malformed},
		"not base64url":                    {rule, all, "a+b." + raw.EncodeToString([]byte(good)) + ".AAAA", Malformed},
		"too long":                         {rule, all, hs.token(`{"alg":"HS256"}`, `{`+exp+`,"x":"`+strings.Repeat("x", MaxBytes)+`"}`), Malformed},
		"no JSON":                          {rule, all, hs.token(`{"alg":"HS256"}`, `xx`), Malformed},
		"not an object":                    {rule, all, hs.token(`{"alg":"HS256"}`, `["exp"]`), Malformed},
		"a claim twice":                    {rule, all, hs.token(`{"alg":"HS256"}`, `{"iss":"you","iss":"me","aud":"orders",`+exp+`}`), Malformed},
		"twice, written otherwise":         {rule, all, hs.token(`{"alg":"HS256"}`, `{"iss":"me","\u0069ss":"me","aud":"orders",`+exp+`}`), Malformed},
		"an algorithm twice":               {rule, all, hs.token(`{"alg":"HS256","alg":"HS256"}`, good), Malformed},
		"no algorithm":                     {rule, all, hs.token(`{"typ":"JWT"}`, good), Malformed},
		"an algorithm that is no string":   {rule, all, hs.token(`{"alg":["HS256"]}`, good), Malformed},
		"a critical extension":             {rule, all, hs.token(`{"alg":"HS256","crit":["b64"],"b64":false}`, good), Malformed},
		"no expiry":                        {rule, all, hs.token(`{"alg":"HS256"}`, `{"iss":"me","aud":"orders"}`), Malformed},
		"an expiry that is a string":       {rule, all, hs.token(`{"alg":"HS256"}`, `{"iss":"me","aud":"orders","exp":"1767226600"}`), Malformed},
		"an expiry beyond all bounds":      {rule, all, hs.token(`{"alg":"HS256"}`, `{"exp":999999999999999}`), Malformed},
		"an expiry with an exponent":       {rule, all, hs.token(`{"alg":"HS256"}`, `{"exp":1e30}`), Malformed},
		"a negative expiry":                {rule, all, hs.token(`{"alg":"HS256"}`, `{"exp":-1}`), Malformed},
		"too deep":                         {rule, all, hs.token(`{"alg":"HS256"}`, `{`+exp+`,"x":`+strings.Repeat("[", 17)+strings.Repeat("]", 17)+`}`), Malformed},
		"too many claims":                  {rule, all, hs.token(`{"alg":"HS256"}`, `{`+exp+manyClaims(64)+`}`), Malformed},
		"as many claims as may be":         {rule, all, hs.token(`{"alg":"HS256"}`, `{"iss":"me","aud":"orders",`+exp+manyClaims(61)+`}`), Valid},
		"something behind":                 {rule, all, hs.token(`{"alg":"HS256"}`, good+`{}`), Malformed},
		"a comma too many":                 {rule, all, hs.token(`{"alg":"HS256"}`, `{`+exp+`,}`), Malformed},
		"invalid UTF-8":                    {rule, all, hs.token(`{"alg":"HS256"}`, "{"+exp+",\"x\":\"\xff\"}"), Malformed},
		"a prefix that is missing":         {rule, all, strings.TrimPrefix(hs.token(`{"alg":"HS256"}`, good), "e"), Malformed},
		"none":                             {rule, all, strings.TrimRight(hs.token(`{"alg":"none"}`, good), "-_") + "", WrongAlgorithm},
		"none without a signature":         {rule, all, raw.EncodeToString([]byte(`{"alg":"none"}`)) + "." + raw.EncodeToString([]byte(good)) + ".", Malformed},
		"an algorithm that no key has":     {rule, []Key{rs.key}, hs.token(`{"alg":"HS256"}`, good), WrongAlgorithm},
		"in other letters":                 {rule, all, hs.token(`{"alg":"hs256"}`, good), WrongAlgorithm},
		"the public key as a secret":       {rule, []Key{rs.key}, secretSigner("", string(rs.key.Value)).token(`{"alg":"HS256"}`, good), WrongAlgorithm},
		"the same beside a secret":         {rule, all, secretSigner("", string(rs.key.Value)).token(`{"alg":"HS256"}`, good), BadSignature},
		"RS256 that is HS256":              {rule, all, hs.token(`{"alg":"RS256"}`, good), BadSignature},
		"ES256 in another length":          {rule, all, rs.token(`{"alg":"ES256"}`, good), BadSignature},
		"another ID":                       {rule, all, rs.token(withKey("RS256", "s"), good), UnknownKey},
		"another key's ID":                 {rule, all, rs.token(withKey("RS256", "h"), good), UnknownKey},
		"another key":                      {rule, all, other.token(`{"alg":"RS256"}`, good), BadSignature},
		"another secret":                   {rule, all, secretSigner("h", strings.Repeat("t", 32)).token(`{"alg":"HS256"}`, good), BadSignature},
		"other claims under a signature":   {rule, all, swapped(hs.token(`{"alg":"HS256"}`, good), `{"iss":"me","aud":"orders","exp":1767226601}`), BadSignature},
		"other claims, of another one":     {rule, all, swapped(hs.token(`{"alg":"HS256"}`, good), `{"iss":"you",`+exp+`}`), BadSignature},
		"the fifth key is not tried":       {rule, []Key{other.key, other.key, other.key, other.key, rs.key}, rs.token(`{"alg":"RS256"}`, good), BadSignature},
		"but found by its ID":              {rule, []Key{hs.key, {"1", RS256, other.key.Value}, {"2", RS256, other.key.Value}, {"3", RS256, other.key.Value}, {"4", RS256, other.key.Value}, rs.key}, rs.token(withKey("RS256", "r"), good), Valid},
		"no keys":                          {rule, nil, hs.token(`{"alg":"HS256"}`, good), Unverifiable},
		"expired":                          {rule, all, hs.token(`{"alg":"HS256"}`, `{"iss":"me","aud":"orders","exp":1767225540}`), Expired},
		"expired within the skew":          {rule, all, hs.token(`{"alg":"HS256"}`, `{"iss":"me","aud":"orders","exp":1767225541}`), Valid},
		"early":                            {rule, all, hs.token(`{"alg":"HS256"}`, `{"iss":"me","aud":"orders","nbf":1767225661,`+exp+`}`), Early},
		"early within the skew":            {rule, all, hs.token(`{"alg":"HS256"}`, `{"iss":"me","aud":"orders","nbf":1767225660,`+exp+`}`), Valid},
		"another issuer":                   {rule, all, hs.token(`{"alg":"HS256"}`, `{"iss":"you","aud":"orders",`+exp+`}`), Issuer},
		"no issuer":                        {rule, all, hs.token(`{"alg":"HS256"}`, `{"aud":"orders",`+exp+`}`), Issuer},
		"another audience":                 {rule, all, hs.token(`{"alg":"HS256"}`, `{"iss":"me","aud":["order","ordersx"],`+exp+`}`), Audience},
		"no audience":                      {rule, all, hs.token(`{"alg":"HS256"}`, `{"iss":"me",`+exp+`}`), Audience},
		"any issuer and audience":          {&JWT{}, all, hs.token(`{"alg":"HS256"}`, `{`+exp+`}`), Valid},
		"a claim":                          {claim(Claim{Name: "sub", Strings: in("a", "b")}), all, hs.token(`{"alg":"HS256"}`, `{"sub":"b",`+exp+`}`), Valid},
		"a claim of another value":         {claim(Claim{Name: "sub", Strings: in("a", "b")}), all, hs.token(`{"alg":"HS256"}`, `{"sub":"c",`+exp+`}`), Claims},
		"a claim that is absent":           {claim(Claim{Name: "sub", Strings: in("a")}), all, hs.token(`{"alg":"HS256"}`, `{`+exp+`}`), Claims},
		"a claim that must not be":         {claim(Claim{Name: "sub", Not: true, Strings: in("a")}), all, hs.token(`{"alg":"HS256"}`, `{"sub":"a",`+exp+`}`), Claims},
		"a claim that must not be, is not": {claim(Claim{Name: "sub", Not: true, Strings: in("a")}), all, hs.token(`{"alg":"HS256"}`, `{"sub":"b",`+exp+`}`), Valid},
		"and absent":                       {claim(Claim{Name: "sub", Not: true, Strings: in("a")}), all, hs.token(`{"alg":"HS256"}`, `{`+exp+`}`), Valid},
		"one of a list":                    {claim(Claim{Name: "groups", Strings: in("x")}), all, hs.token(`{"alg":"HS256"}`, `{"groups":["y",["x"],"x"],`+exp+`}`), Valid},
		"none of a list":                   {claim(Claim{Name: "groups", Strings: in("x")}), all, hs.token(`{"alg":"HS256"}`, `{"groups":["y",["x"],{"x":"x"}],`+exp+`}`), Claims},
		"one of a list that must not be":   {claim(Claim{Name: "groups", Not: true, Strings: in("x")}), all, hs.token(`{"alg":"HS256"}`, `{"groups":["y","x"],`+exp+`}`), Claims},
		"a word of a scope":                {claim(Claim{Name: "scope", Strings: in("write")}), all, hs.token(`{"alg":"HS256"}`, `{"scope":"read write",`+exp+`}`), Valid},
		"a part of a word":                 {claim(Claim{Name: "scope", Strings: in("write")}), all, hs.token(`{"alg":"HS256"}`, `{"scope":"read writer",`+exp+`}`), Claims},
		"a number":                         {claim(Claim{Name: "level", Strings: in("3")}), all, hs.token(`{"alg":"HS256"}`, `{"level":3,`+exp+`}`), Valid},
		"true":                             {claim(Claim{Name: "admin", Strings: in("true")}), all, hs.token(`{"alg":"HS256"}`, `{"admin":true,`+exp+`}`), Valid},
		"there":                            {claim(Claim{Name: "x", Exists: true}), all, hs.token(`{"alg":"HS256"}`, `{"x":{},`+exp+`}`), Valid},
		"null is not there":                {claim(Claim{Name: "x", Exists: true}), all, hs.token(`{"alg":"HS256"}`, `{"x":null,`+exp+`}`), Claims},
	} {
		v := New(Params{JWT: c.jwt}, new(checker))
		v.SetKeys(c.keys)
		for i := range 2 {
			want := c.want
			if want == Valid && i == 1 {
				want = Cached
			}
			if ok, got := v.Allows(call(c.text)); got != want || ok != (want <= Cached) {
				t.Errorf("%s: %v %v, want %v", name, ok, got, want)
			}
		}
	}
}

func manyClaims(n int) string {
	var s strings.Builder
	for i := range n {
		fmt.Fprintf(&s, `,"c%d":%d`, i, i)
	}
	return s.String()
}

// TestFailure: what cannot be verified is let through only where the rule says so, and a caller cannot bring that about.
func TestFailure(t *testing.T) {
	rs := rsaSigner(t, "r")
	body := `{` + exp + `}`
	for _, open := range []bool{false, true} {
		away := &checker{away: true}
		v := New(Params{JWT: &JWT{}, Open: open}, away)
		expect := func(what, text string, ok bool, want Result) {
			t.Helper()
			c := call(text)
			if gotOK, got := v.Allows(c); gotOK != ok || got != want {
				t.Errorf("open %v: %s: %v %v, want %v %v", open, what, gotOK, got, ok, want)
			}
		}
		expect("no keys", rs.token(`{"alg":"RS256"}`, body), open, Unverifiable)
		expect("no keys, no token", "", false, Missing)
		v.SetKeys([]Key{rs.key})
		expect("no function", rs.token(`{"alg":"RS256"}`, body), open, Unverifiable)
		expect("an ID that there is not", rs.token(`{"alg":"RS256","kid":"x"}`, body), false, UnknownKey)
		expect("an algorithm that there is not", rs.token(`{"alg":"ES256"}`, body), false, WrongAlgorithm)
		unreadable := call("x")
		unreadable.Unreadable = true
		if ok, got := v.Allows(unreadable); ok || got != Unreadable {
			t.Errorf("open %v: unreadable: %v %v", open, ok, got)
		}
		timeless := call(rs.token(`{"alg":"RS256"}`, body))
		timeless.Wall = 0
		if ok, got := v.Allows(timeless); ok != open || got != Unverifiable {
			t.Errorf("open %v: no clock: %v %v", open, ok, got)
		}
		if v.Counts[Unverifiable] != 3 || v.Counts[Missing] != 1 || v.Counts[Unreadable] != 1 {
			t.Errorf("counted %v", v.Counts)
		}
	}
}

// TestCache: a token that was good costs no signature, as long as it is good, and its bytes are the same, and the keys are.
func TestCache(t *testing.T) {
	rs, check := rsaSigner(t, "r"), new(checker)
	v := New(Params{JWT: &JWT{Skew: 1000}}, check)
	v.SetKeys([]Key{rs.key})
	tok := rs.token(`{"alg":"RS256"}`, `{"exp":1767225610}`)
	at := func(text string, after int64, want Result, calls int) {
		t.Helper()
		c := call(text)
		c.Wall += after
		if _, got := v.Allows(c); got != want || check.calls != calls {
			t.Errorf("after %d ms: %v and %d signatures, want %v and %d", after, got, check.calls, want, calls)
		}
	}
	at(tok, 0, Valid, 1)
	at(tok, 10_999, Cached, 1)
	at(tok, 11_000, Expired, 1)
	forged := []byte(tok)
	forged[len(forged)-5] ^= 1 // stays base64url, or is not: either way it is another token
	if _, got := v.Allows(call(string(forged))); got <= Cached {
		t.Errorf("another signature: %v", got)
	}
	calls := check.calls
	v.SetKeys([]Key{{"r", RS256, bytes.Clone(rs.key.Value)}})
	at(tok, 0, Cached, calls)
	v.SetKeys([]Key{rsaSigner(t, "r").key})
	at(tok, 0, BadSignature, calls+1)
	v.SetKeys(nil)
	at(tok, 0, Unverifiable, calls+1)
	// Far more tokens than there is room for: each stays good, and the cache bounded.
	v.SetKeys([]Key{rs.key})
	hs := secretSigner("", strings.Repeat("k", 32))
	v.SetKeys([]Key{hs.key})
	for round := range 2 {
		for i := range 4 * lines * perLine {
			if ok, got := v.Allows(call(hs.token(`{"alg":"HS256"}`, fmt.Sprintf(`{%s,"jti":%d}`, exp, i)))); !ok {
				t.Fatalf("round %d: token %d: %v", round, i, got)
			}
		}
	}
	for i := range v.cache.lines {
		if len(v.cache.lines[i]) != perLine {
			t.Fatal("a line has grown")
		}
	}
	// The one that was used longest ago gives way.
	v.cache.clear()
	var inLine []string
	for i := 0; len(inLine) < perLine+1; i++ {
		if tok := fmt.Sprint("token-", i); hash([]byte(tok))%lines == 7 {
			inLine = append(inLine, tok)
		}
	}
	for _, tok := range inLine[:perLine] {
		v.cache.add([]byte(tok), span{})
	}
	v.cache.find([]byte(inLine[0]))
	v.cache.add([]byte(inLine[perLine]), span{})
	for i, tok := range inLine {
		if found := v.cache.find([]byte(tok)) != nil; found != (i != 1) {
			t.Errorf("token %d of one line: found %v", i, found)
		}
	}
}

// signature is what a caller of the HMAC variant computes, written without our code.
func signature(secret string, fields ...any) string {
	var text strings.Builder
	text.WriteString("isthmus-hmac-1\n")
	for _, f := range fields {
		if f == nil {
			text.WriteString("-\n")
			continue
		}
		fmt.Fprintf(&text, "%d:%s\n", len(f.(string)), f)
	}
	m := hmac.New(sha256.New, []byte(secret))
	m.Write([]byte(text.String()))
	return hex.EncodeToString(m.Sum(nil))
}

func TestHMAC(t *testing.T) {
	one, two := strings.Repeat("1", 32), strings.Repeat("2", 80)
	keys := []Key{{"k1", HS256, []byte(one)}, {"k2", HS256, []byte(two)}}
	v := New(Params{HMAC: &HMAC{Timestamp: 1, KeyID: 2, Signed: []int{3}, Window: 60_000}}, nil)
	v.SetKeys(keys)
	type change func(c *policy.Call)
	for name, c := range map[string]struct {
		sign   string
		change change
		want   Result
	}{
		"good":              {signature(one, "S", "1.0", nil, "m", "web", "1767225600000", "gold"), nil, Valid},
		"upper case":        {strings.ToUpper(signature(one, "S", "1.0", nil, "m", "web", "1767225600000", "gold")), nil, Valid},
		"the other key":     {signature(two, "S", "1.0", nil, "m", "web", "1767225600000", "gold"), nil, Valid},
		"by its ID":         {signature(two, "S", "1.0", nil, "m", "web", "1767225600000", "gold"), func(c *policy.Call) { c.Attachments[2] = []byte("k2") }, Valid},
		"by another's ID":   {signature(two, "S", "1.0", nil, "m", "web", "1767225600000", "gold"), func(c *policy.Call) { c.Attachments[2] = []byte("k1") }, BadSignature},
		"an ID of none":     {signature(two, "S", "1.0", nil, "m", "web", "1767225600000", "gold"), func(c *policy.Call) { c.Attachments[2] = []byte("k3") }, UnknownKey},
		"another method":    {signature(one, "S", "1.0", nil, "m", "web", "1767225600000", "gold"), func(c *policy.Call) { c.Method = []byte("n") }, BadSignature},
		"another caller":    {signature(one, "S", "1.0", nil, "m", "web", "1767225600000", "gold"), func(c *policy.Call) { c.Caller = []byte("x") }, BadSignature},
		"another value":     {signature(one, "S", "1.0", nil, "m", "web", "1767225600000", "gold"), func(c *policy.Call) { c.Attachments[3] = []byte("lead") }, BadSignature},
		"absent, not empty": {signature(one, "S", "1.0", "", "m", "web", "1767225600000", "gold"), nil, BadSignature},
		"a border moved":    {signature(one, "S1", ".0", nil, "m", "web", "1767225600000", "gold"), nil, BadSignature},
		"another time":      {signature(one, "S", "1.0", nil, "m", "web", "1767225600001", "gold"), nil, BadSignature},
		"old":               {signature(one, "S", "1.0", nil, "m", "web", "1767225539999", "gold"), func(c *policy.Call) { c.Attachments[1] = []byte("1767225539999") }, Expired},
		"just not old":      {signature(one, "S", "1.0", nil, "m", "web", "1767225540000", "gold"), func(c *policy.Call) { c.Attachments[1] = []byte("1767225540000") }, Valid},
		"early":             {signature(one, "S", "1.0", nil, "m", "web", "1767225660001", "gold"), func(c *policy.Call) { c.Attachments[1] = []byte("1767225660001") }, Early},
		"no time":           {signature(one, "S", "1.0", nil, "m", "web", nil, "gold"), func(c *policy.Call) { c.Attachments[1] = nil }, Malformed},
		"half a time":       {signature(one, "S", "1.0", nil, "m", "web", "17672256x", "gold"), func(c *policy.Call) { c.Attachments[1] = []byte("17672256x") }, Malformed},
		"too short":         {signature(one, "S", "1.0", nil, "m", "web", "1767225600000", "gold")[:62], nil, Malformed},
		"too long":          {signature(one, "S", "1.0", nil, "m", "web", "1767225600000", "gold") + "00", nil, Malformed},
		"no digits":         {strings.Repeat("g", 64), nil, Malformed},
		"nothing":           {"", nil, Missing},
	} {
		x := &policy.Call{Wall: now, Service: []byte("S"), Version: []byte("1.0"), Method: []byte("m"), Caller: []byte("web"),
			Attachments: [][]byte{[]byte(c.sign), []byte("1767225600000"), nil, []byte("gold")}}
		if c.change != nil {
			c.change(x)
		}
		if ok, got := v.Allows(x); got != c.want || ok != (c.want == Valid) {
			t.Errorf("%s: %v %v, want %v", name, ok, got, c.want)
		}
	}
	v.SetKeys([]Key{{"", RS256, []byte("x")}})
	if _, got := v.Allows(&policy.Call{Wall: now, Attachments: [][]byte{[]byte(strings.Repeat("0", 64)), []byte("1767225600000"), nil, nil}}); got != WrongAlgorithm {
		t.Errorf("with a public key: %v", got)
	}
	v.SetKeys(nil)
	if _, got := v.Allows(&policy.Call{Wall: now, Attachments: [][]byte{[]byte(strings.Repeat("0", 64)), nil, nil, nil}}); got != Unverifiable {
		t.Errorf("without a key: %v", got)
	}
}

func TestPrefix(t *testing.T) {
	hs := secretSigner("", strings.Repeat("s", 32))
	tok := hs.token(`{"alg":"HS256"}`, `{`+exp+`}`)
	v := New(Params{Prefix: "Bearer ", JWT: &JWT{}}, nil)
	v.SetKeys([]Key{hs.key})
	for text, want := range map[string]Result{"Bearer " + tok: Valid, tok: Malformed, "bearer " + tok: Malformed, "Bearer": Malformed, "Bearer ": Malformed} {
		if _, got := v.Allows(call(text)); got != want {
			t.Errorf("%.20s: %v, want %v", text, got, want)
		}
	}
}

func TestDoesNotAllocate(t *testing.T) {
	hs, rs := secretSigner("", strings.Repeat("s", 32)), rsaSigner(t, "")
	v := New(Params{JWT: &JWT{Issuer: "me", Claims: []Claim{{Name: "scope", Strings: match.Strings{In: []string{"a"}}}}}}, new(checker))
	v.SetKeys([]Key{hs.key, rs.key})
	good := call(rs.token(`{"alg":"RS256"}`, `{"iss":"me","scope":"b a",`+exp+`}`))
	bad := call(hs.token(`{"alg":"HS256"}`, `{"iss":"me","scope":"b",`+exp+`}`))
	if ok, got := v.Allows(good); !ok {
		t.Fatal(got)
	}
	v.Allows(bad)
	if n := testing.AllocsPerRun(1000, func() { v.Allows(good); v.Allows(bad) }); n != 0 {
		t.Errorf("a token: %v allocations", n)
	}
	h := New(Params{HMAC: &HMAC{Timestamp: 1, KeyID: -1, Signed: []int{2}, Window: 1000}}, nil)
	h.SetKeys([]Key{hs.key})
	x := &policy.Call{Wall: now, Service: []byte("S"), Method: []byte("m"), Attachments: [][]byte{
		[]byte(signature(string(hs.key.Value), "S", nil, nil, "m", nil, "1767225600000", "x")), []byte("1767225600000"), []byte("x")}}
	if ok, got := h.Allows(x); !ok {
		t.Fatal(got)
	}
	if n := testing.AllocsPerRun(1000, func() { h.Allows(x) }); n != 0 {
		t.Errorf("an HMAC: %v allocations", n)
	}
}

// TestECDSA holds the form of signatures to DER, for numbers of every length.
func TestECDSA(t *testing.T) {
	for _, n := range []string{"00", "01", "7f", "80", "ff", strings.Repeat("80", 32), strings.Repeat("7f", 32), "00" + strings.Repeat("ff", 31)} {
		b, _ := hex.DecodeString(n)
		var rs [64]byte
		new(big.Int).SetBytes(b).FillBytes(rs[:32])
		new(big.Int).SetBytes(b).FillBytes(rs[32:])
		var room [72]byte
		got := derECDSA(&room, rs[:])
		number := new(big.Int).SetBytes(b).Bytes()
		if len(number) == 0 || number[0] >= 0x80 {
			number = append([]byte{0}, number...)
		}
		one := append([]byte{2, byte(len(number))}, number...)
		if want := append(append([]byte{0x30, byte(2 * len(one))}, one...), one...); !bytes.Equal(got, want) {
			t.Errorf("%s: %x, want %x", n, got, want)
		}
	}
}

func TestResultsHaveWords(t *testing.T) {
	seen := map[string]bool{}
	for r := range Results {
		if r.String() == "" || seen[r.String()] || (r.Text() == "") != (r <= Cached) {
			t.Errorf("%d: %q %q", r, r, r.Text())
		}
		seen[r.String()] = true
	}
}

func FuzzSHA256(f *testing.F) {
	for _, n := range []int{0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 1000} {
		f.Add(bytes.Repeat([]byte{'k'}, n%100), bytes.Repeat([]byte{'t'}, n), n/2)
	}
	f.Fuzz(func(t *testing.T, secret, text []byte, at int) {
		at = max(0, min(at, len(text)))
		var d hasher
		var got [digestSize]byte
		d.reset()
		d.write(text[:at])
		d.write(text[at:])
		if d.sum(&got); got != sha256.Sum256(text) {
			t.Errorf("SHA-256 of %x is not %x", text, got)
		}
		var m mac
		m.init(secret)
		for range 2 {
			m.start()
			m.write(text[:at])
			m.write(text[at:])
			m.sum(&got)
			want := hmac.New(sha256.New, secret)
			want.Write(text)
			if !bytes.Equal(got[:], want.Sum(nil)) {
				t.Errorf("HMAC of %x with %x is not %x", text, secret, got)
			}
		}
	})
}

func FuzzText(f *testing.F) {
	for _, s := range []string{"", "A", "AA", "AB", "AAA", "AAB", "AAAA", "-_-_", "AA==", "A A", "0aF"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, s []byte) {
		want, err := raw.Strict().DecodeString(string(s))
		if bytes.ContainsAny(s, "\r\n") {
			err = base64.CorruptInputError(0) // which the standard library leaves out
		}
		if got, ok := appendDecoded(nil, s); ok != (err == nil) || ok && !bytes.Equal(got, want) {
			t.Errorf("%q: %x %v, want %x %v", s, got, ok, want, err)
		}
		want, err = hex.DecodeString(string(s))
		if got, ok := appendHex(nil, s); ok != (err == nil) || ok && !bytes.Equal(got, want) {
			t.Errorf("%q: %x %v, want %x %v", s, got, ok, want, err)
		}
	})
}

// FuzzObject holds the scanner to encoding/json: what it takes, encoding/json takes with the same members.
func FuzzObject(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":1}`, `{"a":"\u00e9\ud83d\ude00\n","b":[1,"x",{"c":null}],"d":-1.5e3}`, `{"a":{"a":[]}}`, `{"a":1,"a":2}`, `{"a":tru}`, "{\"a\":\"\x01\"}", `{"a":01}`, ` {"a" : true , "b":false} `, `{"a":1}}`, `{"a":[1,]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var s, items scanner
		got := map[string]string{}
		for s.object(bytes.Clone(text)); ; {
			name, v, ok := s.member()
			if !ok {
				break
			}
			got[string(name)] = fmt.Sprint(v.kind, string(v.text))
			if v.kind == kindArray {
				n := 0
				for items.array(bytes.Clone(v.text)); ; n++ {
					if _, ok := items.element(); !ok {
						break
					}
				}
				var list []json.RawMessage
				if err := json.Unmarshal(v.text, &list); !items.bad && !s.bad && (err != nil || len(list) != n) {
					t.Errorf("%q: %d elements, encoding/json has %d (%v)", v.text, n, len(list), err)
				}
			}
		}
		if s.bad {
			return
		}
		var want map[string]json.RawMessage
		if err := json.Unmarshal(text, &want); err != nil {
			t.Fatalf("%q is taken, but encoding/json says %v", text, err)
		}
		if len(want) != len(got) {
			t.Fatalf("%q: %d members, encoding/json has %d", text, len(got), len(want))
		}
		for name, v := range want {
			k, same := kindNumber, string(v)
			switch v[0] {
			case '"':
				k = kindString
				if err := json.Unmarshal(v, &same); err != nil {
					t.Fatal(err)
				}
			case 't', 'f':
				k = kindBool
			case 'n':
				k = kindNull
			case '{':
				k = kindObject
			case '[':
				k = kindArray
			}
			if got[name] != fmt.Sprint(k, same) {
				t.Errorf("%q: %q is %q, encoding/json has %q", text, name, got[name], same)
			}
		}
	})
}

// FuzzToken: whatever is let through has a good signature, and claims that are good.
func FuzzToken(f *testing.F) {
	hs := secretSigner("k", strings.Repeat("s", 32))
	for _, tok := range []string{hs.token(`{"alg":"HS256"}`, `{"iss":"me",`+exp+`}`), hs.token(`{"alg":"none"}`, `{`+exp+`}`), "a.b.c", "..", ""} {
		f.Add([]byte(tok), false)
	}
	f.Add([]byte(`{"iss":"me",`+exp+`}`), true)
	f.Add([]byte(`{"iss":"me","nbf":1.5,"exp":1767225600,"aud":["x"]}`), true)
	v := New(Params{JWT: &JWT{Issuer: "me", Skew: 1000}}, new(checker))
	v.SetKeys([]Key{hs.key})
	f.Fuzz(func(t *testing.T, text []byte, body bool) {
		tok := string(text)
		if body {
			tok = hs.token(`{"alg":"HS256","kid":"k"}`, tok)
		}
		ok, _ := v.Allows(call(tok))
		if !ok {
			return
		}
		parts := strings.Split(tok, ".")
		m := hmac.New(sha256.New, hs.key.Value)
		m.Write([]byte(parts[0] + "." + parts[1]))
		if parts[2] != raw.EncodeToString(m.Sum(nil)) {
			t.Fatalf("%s is let through with another signature", tok)
		}
		claims, err := raw.DecodeString(parts[1])
		var c map[string]any
		if err == nil {
			err = json.Unmarshal(claims, &c)
		}
		expiry, _ := c["exp"].(float64)
		notYet, _ := c["nbf"].(float64)
		if err != nil || c["iss"] != "me" || expiry <= now/1000-1 || notYet >= now/1000+2 {
			t.Errorf("%s is let through: %+v", claims, c)
		}
	})
}

func BenchmarkAllows(b *testing.B) {
	hs, rs := secretSigner("", strings.Repeat("s", 32)), rsaSigner(b, "")
	v := New(Params{JWT: &JWT{Issuer: "me"}}, new(checker))
	v.SetKeys([]Key{rs.key, hs.key})
	body := `{"iss":"me","sub":"web","aud":["orders","stock"],"iat":1767225600,` + exp + `}`
	for name, s := range map[string]signer{"cached": rs, "HS256": hs} {
		c := call(s.token(`{"alg":"`+s.key.Algorithm.String()+`"}`, body))
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if name != "cached" {
					v.cache.clear()
				}
				v.Allows(c)
			}
		})
	}
}
