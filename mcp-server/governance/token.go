package governance

import (
	"time"

	"github.com/isthmus-mesh/isthmus/adapters"
	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// Token is what a call must show, besides what match says, to be allowed: a JSON Web Token, or a signature over the call's names.
type Token struct {
	// Where it stands in the call.
	From TokenSource `yaml:"from" json:"from" schema:"required"`
	// The keys that it may be signed with.
	KeyRef KeyRef `yaml:"keyRef" json:"keyRef" schema:"required"`
	// Asks for a JSON Web Token (RFC 7519), signed by HS256, RS256 or ES256. One of jwt and hmac must be there.
	JWT *JWT `yaml:"jwt" json:"jwt,omitempty"`
	// Asks for an HMAC-SHA256 over the call's names, in hexadecimal digits.
	HMAC *HMAC `yaml:"hmac" json:"hmac,omitempty"`
	// What becomes of calls whose token cannot be verified, since a sidecar has no keys of that name or its Envoy lacks the function: deny, or allow as if
	// the token were good. A bad token is never let through. Default deny.
	OnFailure plugin.FailureAction `yaml:"onFailure" json:"onFailure,omitempty" schema:"enum=deny|allow"`
}

// TokenSource says where a token stands in a call.
type TokenSource struct {
	// Attachment of Dubbo, header of Bolt and of HTTP.
	Attachment Text `yaml:"attachment" json:"attachment" schema:"required,max=512"`
	// What stands there before the token, such as "Bearer ".
	Prefix Text `yaml:"prefix" json:"prefix,omitempty" schema:"max=512"`
}

// KeyRef names keys that lie outside the rule, in mcp-server's folder of keys: those of the file NAME.jwks, NAME.json, NAME.pem or NAME.secret.
type KeyRef struct {
	// Name of the file, without its ending.
	Name Text `yaml:"name" json:"name" schema:"required,max=253"`
}

// JWT says which tokens are good. Every token must have an expiry (exp).
type JWT struct {
	// Who must have issued it (iss). Default anybody who has a key.
	Issuer Text `yaml:"issuer" json:"issuer,omitempty" schema:"max=512"`
	// Whom it must be for (aud): one of these. Default anybody.
	Audiences []Text `yaml:"audiences" json:"audiences,omitempty" schema:"max=512,items=256"`
	// How far the clocks of the issuer and a sidecar may be apart. Default 1m; at most 10m.
	ClockSkew Duration `yaml:"clockSkew" json:"clockSkew,omitzero"`
	// Conditions on claims, which must all hold. At most 16.
	Claims []Claim `yaml:"claims" json:"claims,omitempty" schema:"items=16"`
}

// Claim is a condition on one claim at the top of a token. For a list it holds if it does for one element, or, with notEquals and notIn, for all; scope is a list of
// words. An absent claim is equal to none and in no list.
type Claim struct {
	// Its name.
	Claim Text `yaml:"claim" json:"claim" schema:"required,max=512"`
	// How it is compared, as in match.
	Operator plugin.Operator `yaml:"operator" json:"operator" schema:"required,enum=equals|notEquals|in|notIn|prefix|regex|exists"`
	// With what: one value, one or more for in and notIn, none for exists.
	Values []Text `yaml:"values" json:"values,omitempty" schema:"max=512,items=256"`
}

// HMAC says what is signed, besides service, version, group, method and caller.
type HMAC struct {
	// Attachment that holds the time of the call in milliseconds since 1970.
	Timestamp Text `yaml:"timestamp" json:"timestamp" schema:"required,max=512"`
	// Attachment that says which of the keys it is, by its kid. Default: up to four are tried.
	KeyID Text `yaml:"keyId" json:"keyId,omitempty" schema:"max=512"`
	// Further attachments that are signed, in this order. At most 16.
	Attachments []Text `yaml:"attachments" json:"attachments,omitempty" schema:"max=512,items=16"`
	// How old a signature may be, or how far ahead its time. Within it a call can be sent again by who has seen it. Default 1m; at most 10m.
	Window Duration `yaml:"window" json:"window,omitzero"`
}

// tokenFields are the fields that the filter calls otherwise.
var tokenFields = map[string]string{
	"token.attachment": "token.from.attachment", "token.prefix": "token.from.prefix", "token.key": "token.keyRef.name",
	"token.jwt.clockSkewMillis": "token.jwt.clockSkew", "token.hmac.windowMillis": "token.hmac.window",
}

// maxSkew bounds how far apart clocks may be; it is the filter's.
const maxSkew = 10 * time.Minute

// check adds what is wrong with the durations, in the words of who writes them.
func (t *Token) check(f *adapters.Faults) {
	if t != nil && t.JWT != nil {
		t.JWT.ClockSkew.check(f, "token.jwt.clockSkew", time.Millisecond, maxSkew)
	}
	if t != nil && t.HMAC != nil {
		t.HMAC.Window.check(f, "token.hmac.window", time.Millisecond, maxSkew)
	}
}

// plugin returns it as the filter has it.
func (t *Token) plugin() *plugin.Token {
	if t == nil {
		return nil
	}
	out := &plugin.Token{Attachment: string(t.From.Attachment), Prefix: string(t.From.Prefix), Key: string(t.KeyRef.Name), OnFailure: t.OnFailure}
	if j := t.JWT; j != nil {
		out.JWT = &plugin.JWT{Issuer: string(j.Issuer), Audiences: texts(j.Audiences), ClockSkewMillis: j.ClockSkew.millis()}
		for _, c := range j.Claims {
			out.JWT.Claims = append(out.JWT.Claims, plugin.Claim{Claim: string(c.Claim), Operator: c.Operator, Values: texts(c.Values)})
		}
	}
	if h := t.HMAC; h != nil {
		out.HMAC = &plugin.HMAC{Timestamp: string(h.Timestamp), KeyID: string(h.KeyID), Attachments: texts(h.Attachments), WindowMillis: h.Window.millis()}
	}
	return out
}

// shown says what a call must show.
func (t *Token) shown() string {
	what := "a JSON Web Token"
	if t.HMAC != nil {
		what = "a signature"
	}
	return "attachment " + string(t.From.Attachment) + " is " + what + " by a key of " + string(t.KeyRef.Name)
}
