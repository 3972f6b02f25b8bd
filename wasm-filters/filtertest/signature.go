package filtertest

import (
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
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// Epoch is the time of day when a World's Clock is 0, in milliseconds since the Unix epoch: 2026-01-01T00:00:00Z.
const Epoch = 1_767_225_600_000

func (w *World) wall() int64 { return Epoch + int64(w.Clock)/1_000_000 }

// verify does what Envoy's function verify_signature does, by the standard library.
func (w *World) verify(hash string, key, signature, text []byte) (valid, done bool) {
	w.Calls++
	w.Signatures++
	public, err := x509.ParsePKIXPublicKey(key)
	if err != nil || hash != "sha256" {
		return false, false
	}
	h := crypto.SHA256.New()
	h.Write(text)
	switch k := public.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(k, crypto.SHA256, h.Sum(nil), signature) == nil, true
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, h.Sum(nil), signature), true
	}
	return false, false
}

// verifyArguments reads the message envoy.source.extensions.common.wasm.VerifySignatureArguments.
func verifyArguments(b []byte) (hash string, key, signature, text []byte, ok bool) {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 || kind != protowire.BytesType {
			return "", nil, nil, nil, false
		}
		v, m := protowire.ConsumeBytes(b[n:])
		if m < 0 {
			return "", nil, nil, nil, false
		}
		b = b[n+m:]
		switch number {
		case 1:
			hash = string(v)
		case 2:
			key = v
		case 3:
			signature = v
		case 4:
			text = v
		}
	}
	return hash, key, signature, text, true
}

// Signer makes what callers show, by the standard library.
type Signer struct {
	algorithm string
	value     []byte // as config.Key has it
	sign      func(text []byte) ([]byte, error)
}

// NewSigner makes a new key for "HS256", "RS256" or "ES256".
func NewSigner(algorithm string) (*Signer, error) {
	s := &Signer{algorithm: algorithm}
	var public any
	switch algorithm {
	case "HS256":
		s.value = make([]byte, sha256.Size)
		if _, err := rand.Read(s.value); err != nil {
			return nil, err
		}
		s.sign = func(text []byte) ([]byte, error) {
			h := hmac.New(sha256.New, s.value)
			h.Write(text)
			return h.Sum(nil), nil
		}
		return s, nil
	case "RS256":
		k, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return nil, err
		}
		public = &k.PublicKey
		s.sign = func(text []byte) ([]byte, error) {
			sum := sha256.Sum256(text)
			return rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, sum[:])
		}
	case "ES256":
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		public = &k.PublicKey
		s.sign = func(text []byte) ([]byte, error) {
			sum := sha256.Sum256(text)
			r, t, err := ecdsa.Sign(rand.Reader, k, sum[:])
			if err != nil {
				return nil, err
			}
			return append(r.FillBytes(make([]byte, 32)), t.FillBytes(make([]byte, 32))...), nil
		}
	default:
		return nil, fmt.Errorf("filtertest: no algorithm %q", algorithm)
	}
	var err error
	s.value, err = x509.MarshalPKIXPublicKey(public)
	return s, err
}

// Value returns the secret, or the public key as a SubjectPublicKeyInfo in DER.
func (s *Signer) Value() []byte { return s.value }

// Token returns a JSON Web Token with claims, a JSON object, and the key's ID, unless that is "".
func (s *Signer) Token(id, claims string) (string, error) {
	head := `{"alg":"` + s.algorithm + `","typ":"JWT"}`
	if id != "" {
		head = `{"alg":"` + s.algorithm + `","kid":"` + id + `"}`
	}
	encode := base64.RawURLEncoding.EncodeToString
	text := encode([]byte(head)) + "." + encode([]byte(claims))
	signature, err := s.sign([]byte(text))
	return text + "." + encode(signature), err
}

// Sign returns the signature of a call with these fields, as README.md has it; "-" is one that is absent.
func (s *Signer) Sign(fields ...string) (string, error) {
	var text strings.Builder
	text.WriteString("isthmus-hmac-1\n")
	for _, f := range fields {
		if f != "-" {
			fmt.Fprintf(&text, "%d:", len(f))
		}
		text.WriteString(f + "\n")
	}
	signature, err := s.sign([]byte(text.String()))
	return hex.EncodeToString(signature), err
}
