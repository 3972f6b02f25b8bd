package token

import "slices"

// Algorithm is how a key signs. Each key has one, and a token must be signed in its key's way, whatever it says itself.
type Algorithm uint8

// The algorithms, which are those of RFC 7518 with these names.
const (
	HS256 Algorithm = iota + 1 // HMAC-SHA256 with a secret
	RS256                      // RSASSA-PKCS1-v1_5 with SHA-256
	ES256                      // ECDSA with P-256 and SHA-256
)

var algorithmNames = [...]string{HS256: "HS256", RS256: "RS256", ES256: "ES256"}

// String returns the name that tokens have for it.
func (a Algorithm) String() string { return algorithmNames[a] }

// ParseAlgorithm is the reverse of String.
func ParseAlgorithm(name string) (a Algorithm, ok bool) {
	i := slices.Index(algorithmNames[:], name)
	return Algorithm(max(i, 0)), i > 0
}

// Key checks signatures.
type Key struct {
	ID        string // "kid" in tokens; "" goes with any
	Algorithm Algorithm
	Value     []byte // HS256: the secret; else the public key, a SubjectPublicKeyInfo in DER
}

func (k *Key) equal(o *Key) bool {
	return k.ID == o.ID && k.Algorithm == o.Algorithm && string(k.Value) == string(o.Value)
}

// A Checker checks signatures that need public keys.
type Checker interface {
	// VerifySignature tells whether signature is one of text: key is a SubjectPublicKeyInfo in DER, signature as OpenSSL has it for the kind of
	// key, hash such as "sha256". done is false where it cannot be checked here, which does not depend on signature and text. Nothing is retained.
	VerifySignature(hash string, key, signature, text []byte) (valid, done bool)
}

// maxTries bounds the keys that one token is tried with: those whose ID it names, or all where it names none.
const maxTries = 4

// A ring is the keys that a verifier has.
type ring struct {
	keys []Key
	macs []mac // of those that are secrets, by the same number
}

// set takes other keys, and tells whether they are different.
func (r *ring) set(keys []Key) bool {
	if slices.EqualFunc(r.keys, keys, func(a, b Key) bool { return a.equal(&b) }) {
		return false
	}
	r.keys, r.macs = keys, make([]mac, len(keys))
	for i := range keys {
		if keys[i].Algorithm == HS256 {
			r.macs[i].init(keys[i].Value)
		}
	}
	return true
}
