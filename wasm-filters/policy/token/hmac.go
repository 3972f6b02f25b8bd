package token

import (
	"strconv"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// version begins what is signed, so that a signature for this is never one for something else.
const version = "isthmus-hmac-1\n"

// hmac checks a signature over the call's names and attachments.
func (v *Verifier) hmac(c *policy.Call, text []byte) Result {
	if len(v.ring.keys) == 0 {
		return Unverifiable
	}
	var room [2 * digestSize]byte
	signature, ok := appendHex(room[:0], text[:min(len(text), 2*digestSize+1)])
	if !ok || len(signature) != digestSize {
		return Malformed
	}
	at, ok := decimal(c.Attachments[v.HMAC.Timestamp])
	switch {
	case !ok:
		return Malformed
	case at < c.Wall-v.HMAC.Window:
		return Expired
	case at > c.Wall+v.HMAC.Window:
		return Early
	}
	var id []byte
	if v.HMAC.KeyID >= 0 {
		id = c.Attachments[v.HMAC.KeyID]
	}
	result, tries := WrongAlgorithm, 0
	for i := range v.ring.keys {
		k := &v.ring.keys[i]
		if k.Algorithm != HS256 {
			continue
		}
		if result == WrongAlgorithm {
			result = UnknownKey
		}
		if k.ID != "" && id != nil && k.ID != string(id) || tries == maxTries {
			continue
		}
		tries++
		var sum [digestSize]byte
		v.sign(&v.ring.macs[i], c, &sum)
		if same(sum[:], signature) {
			return Valid
		}
		result = BadSignature
	}
	return result
}

// sign computes the signature of a call: over the version, and then for the service, its version and group, the method, the caller, the timestamp and each
// further attachment a line: the length in bytes, a colon and the value; a single "-" where it is absent. So no two calls have the same lines.
func (v *Verifier) sign(m *mac, c *policy.Call, sum *[digestSize]byte) {
	m.start()
	line := append(v.text[:0], version...)
	m.write(line)
	for _, field := range [...][]byte{c.Service, c.Version, c.Group, c.Method, c.Caller, c.Attachments[v.HMAC.Timestamp]} {
		line = m.field(line, field)
	}
	for _, i := range v.HMAC.Signed {
		line = m.field(line, c.Attachments[i])
	}
	v.text = line
	m.sum(sum)
}

// field hashes one line; b is scratch.
func (m *mac) field(b, field []byte) []byte {
	if field == nil {
		b = append(b[:0], "-\n"...)
	} else {
		b = append(strconv.AppendInt(b[:0], int64(len(field)), 10), ':')
		b = append(append(b, field...), '\n')
	}
	m.write(b)
	return b
}
