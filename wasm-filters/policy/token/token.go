// Package token checks what callers show to prove that they may call: a JSON Web Token (RFC 7519, signed as RFC 7515 says), or a signature over
// the names of the call itself. It is the part of access rules that needs cryptography. Time is an argument, and signatures by public keys are checked by
// a Checker; what needs only a secret is computed here.
//
// Nothing is allocated for a call whose token was checked before, and no signature computed for it.
package token

import (
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/match"
)

// The bounds of what a caller shows.
const (
	MaxBytes  = 8 << 10 // of a token, in base64url
	maxClaims = 16      // conditions on them
)

// Result says what a check found.
type Result uint8

// The results. Only Valid and Cached let a call through; Unverifiable does where the rule says so.
const (
	Valid          Result = iota // signature and claims are good
	Cached                       // as they were before
	Missing                      // the call shows nothing
	Unreadable                   // whether it does cannot be known
	Malformed                    // not what it should be
	WrongAlgorithm               // none of the keys signs in the way that the token names
	UnknownKey                   // the token names a key that there is not
	BadSignature                 // it is not the key's
	Expired                      // too old
	Early                        // not valid yet
	Issuer                       // another one's
	Audience                     // for others
	Claims                       // conditions on claims do not hold
	Unverifiable                 // there are no keys or no clock, or signatures cannot be checked here
	Results
)

// results are the words for metrics, and texts what callers and logs are told.
var (
	results = [Results]string{"valid", "cached", "missing", "unreadable", "malformed", "algorithm", "unknown_key", "bad_signature", "expired", "early",
		"issuer", "audience", "claims", "unverifiable"}
	texts = [Results]string{"", "", "no token", "the token cannot be read", "malformed token", "wrong algorithm", "unknown key", "bad signature", "token expired",
		"token not valid yet", "wrong issuer", "wrong audience", "claims do not match", "the token cannot be verified"}
)

// String returns the word for it in metrics.
func (r Result) String() string { return results[r] }

// Text returns what callers are told: nothing of the token or the keys.
func (r Result) Text() string { return texts[r] }

// A Claim is a condition on a claim. Of a list it is enough that one element is good; "scope" is a list of words. A claim that is
// absent, or null, fulfils only a negative one.
type Claim struct {
	Name    string
	Not     bool
	Exists  bool
	Strings match.Strings
}

// JWT says which tokens are good, besides their signature.
type JWT struct {
	Issuer    string   // "" is any
	Audiences []string // one of these; none is any
	Skew      int64    // how far clocks may be apart, in milliseconds
	Claims    []Claim
}

// HMAC says what is signed, by the numbers of attachments.
type HMAC struct {
	Timestamp int // when, in milliseconds since the Unix epoch
	KeyID     int // which key; -1: none says it
	Signed    []int
	Window    int64 // how old, and how far ahead, Timestamp may be, in milliseconds
}

// Params are what a rule asks for: one of JWT and HMAC.
type Params struct {
	Attachment int    // the number of the attachment that holds the token or signature
	Prefix     string // that stands before it there
	JWT        *JWT
	HMAC       *HMAC
	Open       bool // what cannot be verified is let through
}

// A Verifier checks the tokens for one rule.
type Verifier struct {
	Params
	// Counts are the results since they were reported.
	Counts  [Results]uint64
	checker Checker
	ring    ring
	cache   cache
	text    []byte // scratch
	scan    scanner
	items   scanner
	claims  [maxClaims]struct{ present, found bool }
}

// New returns a verifier without keys.
func New(p Params, c Checker) *Verifier { return &Verifier{Params: p, checker: c} }

// SetKeys takes the keys that tokens may be signed with. What was checked with others is forgotten. keys are retained.
func (v *Verifier) SetKeys(keys []Key) {
	if v.ring.set(keys) {
		v.cache.clear()
	}
}

// Allows tells whether the call shows what it must, and what the check found. c.Wall is the time.
func (v *Verifier) Allows(c *policy.Call) (bool, Result) {
	r := v.check(c)
	v.Counts[r]++
	return r <= Cached || r == Unverifiable && v.Open, r
}

func (v *Verifier) check(c *policy.Call) Result {
	text, known := policy.SubjectAttachment.Of(c, v.Attachment)
	switch {
	case !known:
		return Unreadable
	case len(text) == 0:
		return Missing
	case c.Wall <= 0:
		return Unverifiable // without a clock every token would be in time
	case len(text) > MaxBytes+len(v.Prefix) || len(text) < len(v.Prefix) || string(text[:len(v.Prefix)]) != v.Prefix:
		return Malformed
	}
	text = text[len(v.Prefix):]
	if v.HMAC != nil {
		return v.hmac(c, text)
	}
	return v.jwt(c.Wall, text)
}
