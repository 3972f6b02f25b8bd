package config

import (
	"strconv"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/token"
)

// Bounds of tokens and keys.
const (
	maxAllKeys   = 1000
	maxNamedKeys = 16
	maxKeyName   = 253
	maxKeyValue  = 4 << 10 // decoded
	minSecret    = 32      // bytes; RFC 7518, 3.2
	maxSkew      = 600_000
)

// The defaults of tokens.
const (
	DefaultClockSkewMillis = 60_000
	DefaultWindowMillis    = 60_000
)

// withDefaults returns a copy with its defaults.
func (t *Token) withDefaults() *Token {
	d := *t
	def(&d.OnFailure, FailureDeny)
	if t.JWT != nil {
		j := *t.JWT
		def(&j.ClockSkewMillis, DefaultClockSkewMillis)
		d.JWT = &j
	}
	if t.HMAC != nil {
		h := *t.HMAC
		def(&h.WindowMillis, DefaultWindowMillis)
		d.HMAC = &h
	}
	return &d
}

// Asks returns the attachments that t needs, in the order in which the filter numbers them.
//
//go:noinline
func (t *Token) Asks() []string {
	names := []string{t.Attachment}
	if h := t.HMAC; h != nil {
		names = append(names, h.Timestamp)
		if h.KeyID != "" {
			names = append(names, h.KeyID)
		}
		names = append(names, h.Attachments...)
	}
	return names
}

func (v *validator) token(at string, t *Token) {
	v.attachment(at+".attachment", t.Attachment)
	v.length(at+".prefix", t.Prefix)
	v.keyName(at+".key", t.Key)
	v.oneOf(at+".onFailure", string(t.OnFailure), string(FailureDeny), string(FailureAllow))
	if j := t.JWT; j != nil {
		at := at + ".jwt"
		v.length(at+".issuer", j.Issuer)
		v.list(at+".audiences", j.Audiences)
		v.bounds(at+".clockSkewMillis", j.ClockSkewMillis, 1, maxSkew)
		if len(j.Claims) > maxConditions {
			v.fault(at+".claims", "more than "+strconv.Itoa(maxConditions)+" elements")
			return
		}
		for i := range j.Claims {
			c, at := &j.Claims[i], index(at+".claims", i)
			v.text(at+".claim", c.Claim)
			v.values(at, c.Operator, c.Values)
			if c.Operator == OperatorRegex && len(c.Values) == 1 {
				v.pattern(at+".values[0]", c.Values[0])
			}
		}
	}
	if h := t.HMAC; h != nil {
		at := at + ".hmac"
		v.attachment(at+".timestamp", h.Timestamp)
		if h.KeyID != "" {
			v.attachment(at+".keyId", h.KeyID)
		}
		if len(h.Attachments) > maxConditions {
			v.fault(at+".attachments", "more than "+strconv.Itoa(maxConditions)+" elements")
			return
		}
		for i, name := range h.Attachments {
			v.attachment(index(at+".attachments", i), name)
		}
		v.bounds(at+".windowMillis", h.WindowMillis, 1, maxSkew)
	}
	if (t.JWT == nil) == (t.HMAC == nil) {
		v.fault(at, "must have one of jwt and hmac")
	}
}

// attachment checks the name of an attachment that a token needs.
//
//go:noinline
func (v *validator) attachment(path, name string) {
	v.text(path, name)
	if len(v.keys) <= maxKeys {
		v.keys[string(SubjectAttachment)+" "+name] = struct{}{}
	}
}

// text checks a string that must not be empty.
//
//go:noinline
func (v *validator) text(path, s string) {
	if s == "" {
		v.fault(path, "is missing")
	}
	v.length(path, s)
}

//go:noinline
func (v *validator) keyName(path, name string) {
	switch {
	case name == "":
		v.fault(path, "is missing")
	case !within(name, maxKeyName, "._-"):
		v.fault(path, "must be at most 253 of A-Z a-z 0-9 . _ -")
	}
}

// allKeys checks the keys. No fault holds any part of one.
func (v *validator) allKeys(p *Plugin) {
	if len(p.Keys) > maxAllKeys {
		v.fault("keys", "more than "+strconv.Itoa(maxAllKeys)+" elements")
		return
	}
	count := make(map[string]int)
	for i := range p.Keys {
		k, at := &p.Keys[i], index("keys", i)
		v.keyName(at+".name", k.Name)
		v.length(at+".id", k.ID)
		if count[k.Name]++; count[k.Name] == maxNamedKeys+1 {
			v.fault(at, "is one of more than "+strconv.Itoa(maxNamedKeys)+" of this name")
		}
		v.required(at+".algorithm", k.Algorithm, "HS256", "RS256", "ES256")
		switch b, ok := DecodeValue(k.Value); {
		case k.Value == "":
			v.fault(at+".value", "is missing")
		case !ok:
			v.fault(at+".value", "must be in base64")
		case len(b) > maxKeyValue:
			v.fault(at+".value", "longer than 4 KiB")
		case k.Algorithm == token.HS256.String() && len(b) < minSecret:
			v.fault(at+".value", "shorter than "+strconv.Itoa(minSecret)+" bytes")
		}
	}
	if p.KeysOnly && (p.Rules() > 0 || p.Lift != nil || p.Lower != nil) {
		v.fault("keysOnly", "goes with nothing but keys")
	}
}
