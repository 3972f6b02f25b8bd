package governance

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	extensions "istio.io/api/extensions/v1alpha1"

	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

const (
	secretOne = "secret-one-0123456789-0123456789"
	secretTwo = "secret-two-0123456789-0123456789"
)

var encoded = base64.RawURLEncoding.EncodeToString

func jwkOf(t testing.TB, id string, public any) string {
	t.Helper()
	switch k := public.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf(`{"kty":"RSA","kid":%q,"n":%q,"e":"AQAB"}`, id, encoded(k.N.Bytes()))
	case *ecdsa.PublicKey:
		b, err := k.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf(`{"kty":"EC","kid":%q,"crv":"P-256","x":%q,"y":%q}`, id, encoded(b[1:33]), encoded(b[33:]))
	case string:
		return fmt.Sprintf(`{"kty":"oct","kid":%q,"k":%q,"alg":"HS256"}`, id, encoded([]byte(k)))
	}
	t.Fatalf("%T", public)
	return ""
}

func set(keys ...string) string { return `{"keys":[` + strings.Join(keys, ",") + `]}` }

func pemOf(t testing.TB, public any) string {
	t.Helper()
	b, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: b}))
}

// TestKeys: each form of a file gives the same keys, and what is wrong is said without a word of the keys themselves.
func TestKeys(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edwards, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(ecKey)
	if err != nil {
		t.Fatal(err)
	}
	der := func(public any) string {
		b, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			t.Fatal(err)
		}
		return base64.StdEncoding.EncodeToString(b)
	}
	rs, es, hs := jwkOf(t, "r", &rsaKey.PublicKey), jwkOf(t, "e", &ecKey.PublicKey), jwkOf(t, "h", secretOne)
	std := base64.StdEncoding.EncodeToString
	for name, c := range map[string]struct {
		ext, text string
		keys      []plugin.Key
		problem   string // what the only one holds
	}{
		"JWKS": {"jwks", set(rs, es, hs), []plugin.Key{{ID: "r", Algorithm: "RS256", Value: der(&rsaKey.PublicKey)},
			{ID: "e", Algorithm: "ES256", Value: der(&ecKey.PublicKey)}, {ID: "h", Algorithm: "HS256", Value: std([]byte(secretOne))}}, ""},
		"PEM":                {"pem", "keys of ours\n" + pemOf(t, &rsaKey.PublicKey) + pemOf(t, &ecKey.PublicKey), []plugin.Key{{Algorithm: "RS256", Value: der(&rsaKey.PublicKey)}, {Algorithm: "ES256", Value: der(&ecKey.PublicKey)}}, ""},
		"a secret":           {"secret", secretOne + "\r\n", []plugin.Key{{Algorithm: "HS256", Value: std([]byte(secretOne))}}, ""},
		"for encryption":     {"json", set(rs, strings.Replace(es, `"kty"`, `"use":"enc","kty"`, 1)), []plugin.Key{{ID: "r", Algorithm: "RS256", Value: der(&rsaKey.PublicKey)}}, ""},
		"another algorithm":  {"json", set(rs, strings.Replace(rs, `"kty"`, `"alg":"PS256","kty"`, 1)), []plugin.Key{{ID: "r", Algorithm: "RS256", Value: der(&rsaKey.PublicKey)}}, "its key 2 is for another algorithm than HS256, RS256 and ES256; it is not used"},
		"another type":       {"json", set(`{"kty":"OKP","crv":"Ed25519","x":"AAAA"}`, rs), []plugin.Key{{ID: "r", Algorithm: "RS256", Value: der(&rsaKey.PublicKey)}}, "its key 1 is of another type"},
		"another curve":      {"json", set(rs, strings.Replace(es, "P-256", "P-384", 1)), []plugin.Key{{ID: "r", Algorithm: "RS256", Value: der(&rsaKey.PublicKey)}}, "its key 2 is on another curve than P-256"},
		"no point":           {"json", set(rs, strings.Replace(es, `"y":"`, `"y":"AAAA`, 1)), []plugin.Key{{ID: "r", Algorithm: "RS256", Value: der(&rsaKey.PublicKey)}}, "its key 2 is no point of P-256"},
		"off the curve":      {"json", set(rs, fmt.Sprintf(`{"kty":"EC","crv":"P-256","x":%q,"y":%q}`, encoded(make([]byte, 32)), encoded(make([]byte, 32)))), []plugin.Key{{ID: "r", Algorithm: "RS256", Value: der(&rsaKey.PublicKey)}}, "its key 2 is no point of P-256"},
		"a short RSA key":    {"json", set(rs, `{"kty":"RSA","n":"`+encoded(rsaKey.N.Bytes()[:128])+`","e":"AQAB"}`), []plugin.Key{{ID: "r", Algorithm: "RS256", Value: der(&rsaKey.PublicKey)}}, "its key 2 is an RSA key of"},
		"an even exponent":   {"json", set(rs, `{"kty":"RSA","n":"`+encoded(rsaKey.N.Bytes())+`","e":"AQAC"}`), []plugin.Key{{ID: "r", Algorithm: "RS256", Value: der(&rsaKey.PublicKey)}}, "its key 2 is no RSA key"},
		"a short secret":     {"secret", secretOne[:31], nil, "a secret of 31 bytes is too short: at least 32; there are no keys of this name"},
		"short among others": {"json", set(hs, jwkOf(t, "x", secretTwo[:31])), []plugin.Key{{ID: "h", Algorithm: "HS256", Value: std([]byte(secretOne))}}, "its key 2 is no secret of at least 32 bytes"},
		"no keys":            {"json", `{"keys":[]}`, nil, "it holds no key that can be used"},
		"no JSON":            {"jwks", secretOne, nil, "it is no JSON Web Key Set"},
		"no PEM":             {"pem", secretOne, nil, "it holds no key that can be used"},
		"a private key":      {"pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})), nil, "it holds a private key"},
		"a private JWK":      {"json", set(strings.Replace(rs, `"kty"`, `"d":"`+secretTwo+`","kty"`, 1)), nil, "it holds a private key"},
		"another block":      {"pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: private})), nil, `it holds a "CERTIFICATE"`},
		"a broken block":     {"pem", string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: private})), nil, "its key 1 cannot be read"},
		"P-384 in PEM":       {"pem", pemOf(t, &other.PublicKey), nil, "its key 1 is on another curve than P-256"},
		"Ed25519 in PEM":     {"pem", pemOf(t, edwards), nil, "its key 1 is neither one of RSA nor on the curve P-256"},
		"too many":           {"json", set(slices.Repeat([]string{es}, 17)...), nil, "it holds 17 keys, of at most 16"},
	} {
		k := (*Keys)(nil).Update([]File{{Name: "/keys/sso." + c.ext, Text: []byte(c.text)}})
		for i := range c.keys {
			c.keys[i].Name = "sso"
		}
		if got := k.keysFor(map[string]bool{"sso": true}); !slices.Equal(got, c.keys) {
			t.Errorf("%s: %+v, want %+v", name, got, c.keys)
		}
		said := strings.Join(lines(k.Problems), "\n")
		if (said == "") != (c.problem == "") || !strings.Contains(said, c.problem) || len(k.Problems) > 1 {
			t.Errorf("%s: %s, want %s", name, said, c.problem)
		}
		for _, secret := range []string{secretOne, secretTwo, secretOne[:20], encoded([]byte(secretOne)), std([]byte(secretOne))} {
			if strings.Contains(said, secret) {
				t.Errorf("%s: the problem tells a secret: %s", name, said)
			}
		}
	}
}

// TestKeysStay: a file that is faulty leaves what it held before; one that is gone is gone.
func TestKeysStay(t *testing.T) {
	good, bad := File{Name: "k/a.secret", Text: []byte(secretOne)}, File{Name: "k/a.secret", Text: []byte("short")}
	has := func(k *Keys) bool { return len(k.keysFor(map[string]bool{"a": true})) == 1 }
	k := (*Keys)(nil).Update([]File{good})
	if !has(k) || len(k.Problems) > 0 {
		t.Fatalf("%v", lines(k.Problems))
	}
	for what, files := range map[string][]File{"faulty": {bad}, "unreadable": {{Name: good.Name, Err: errors.New("permission denied")}}, "the folder": {{Name: "k", Err: errors.New("permission denied")}}} {
		if next := k.Update(files); !has(next) || len(next.Problems) != 1 || next.Problems[0].Code != "InvalidKeys" {
			t.Errorf("%s: %v", what, lines(next.Problems))
		}
	}
	if has(k.Update(nil)) {
		t.Error("keys without a file")
	}
	twice := k.Update([]File{good, {Name: "k/a.jwks", Text: []byte(set(jwkOf(t, "", secretTwo)))}})
	if len(twice.Problems) != 1 || twice.Problems[0].Code != "DuplicateKeys" || twice.Problems[0].Place != "k/a.secret" {
		t.Errorf("%v", lines(twice.Problems))
	}
}

const tokenRule = `apiVersion: governance.isthmus.io/v1alpha1
kind: AccessRule
metadata: {name: %s}
spec: {%saction: allow, token: {from: {attachment: a}, keyRef: {name: %s}, %s}}
`

// TestDelivery: public keys go with the rules, secrets only to the applications that need them, and nothing that is shown tells them.
func TestDelivery(t *testing.T) {
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	files := func(secret string) []File {
		return []File{{Name: "k/public.jwks", Text: []byte(set(jwkOf(t, "e", &ecKey.PublicKey)))}, {Name: "k/secret.secret", Text: []byte(secret)}, {Name: "k/unused.secret", Text: []byte(secretTwo)}}
	}
	compile := func(keys *Keys, rules ...string) (Compiled, []Rule) {
		r := Rules{}.Update([]File{{Name: "in.yaml", Text: []byte(strings.Join(rules, "---\n"))}})
		if len(r.Problems) > 0 {
			t.Fatal(lines(r.Problems))
		}
		o := options
		o.Keys, o.Lift = keys, &LiftOptions{Ports: []uint16{12200, 20880}}
		return Compile(r.Items, Ports{TCP: []uint16{20880}}, o), r.Items
	}
	keys := (*Keys)(nil).Update(files(secretOne))
	public := fmt.Sprintf(tokenRule, "public", "", "public", "jwt: {}")
	some := fmt.Sprintf(tokenRule, "some", "target: {application: {in: [orders, stock]}}, ", "secret", "jwt: {}")
	more := fmt.Sprintf(tokenRule, "more", "target: {application: orders}, ", "secret", "hmac: {timestamp: t}")
	everywhere := fmt.Sprintf(tokenRule, "everywhere", "target: {application: {prefix: o}}, ", "secret", "jwt: {}")
	odd := fmt.Sprintf(tokenRule, "odd", "target: {application: 'an app'}, ", "secret", "jwt: {}")
	missing := fmt.Sprintf(tokenRule, "missing", "", "nowhere", "jwt: {}")
	unsigned := fmt.Sprintf(tokenRule, "unsigned", "", "public", "hmac: {timestamp: t}")
	off := fmt.Sprintf(tokenRule, "off", "enabled: false, ", "nowhere", "jwt: {}")
	std := base64.StdEncoding.EncodeToString([]byte(secretOne))
	for name, c := range map[string]struct {
		rules    []string
		apps     []string // that get the secret by themselves
		all      []string // names of the keys that all get
		problems []string
	}{
		"public":         {[]string{public}, nil, []string{"public"}, nil},
		"some":           {[]string{some}, []string{"orders", "stock"}, nil, nil},
		"twice":          {[]string{public, some, more}, []string{"orders", "stock"}, []string{"public"}, nil},
		"everywhere":     {[]string{everywhere}, nil, []string{"secret"}, []string{`warning in.yaml:1: SecretEverywhere: AccessRule default/everywhere is for all applications, so the secret "secret" goes to every sidecar`}},
		"no label":       {[]string{odd}, nil, []string{"secret"}, []string{`SecretEverywhere: AccessRule default/odd is for application "an app", which is no label's value`}},
		"missing":        {[]string{missing}, nil, nil, []string{`error in.yaml:1: MissingKeys: AccessRule default/missing names keys "nowhere" that there are not`}},
		"nothing secret": {[]string{unsigned}, nil, nil, []string{`error in.yaml:1: MissingKeys: AccessRule default/unsigned needs a secret, and keys "public" are public`}},
		"switched off":   {[]string{off}, nil, nil, nil},
	} {
		got, rules := compile(keys, c.rules...)
		var all, apps []string
		for _, k := range got.Plugin.Keys {
			all = append(all, k.Name)
		}
		for e := range got.Set.All() {
			checkDecodes(t, e)
			b, ok := e.Body.(*extensions.TrafficExtension)
			if !ok {
				continue
			}
			text, err := b.GetWasm().GetPluginConfig().MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			has := strings.Contains(string(text), std)
			if b.Selector == nil {
				if has != slices.Contains(c.all, "secret") {
					t.Errorf("%s: all get the secret: %v", name, has)
				}
				continue
			}
			if !has || b.Phase != extensions.TrafficExtension_AUTHN || len(b.Match[0].Ports) != 2 || !strings.Contains(string(text), `"keysOnly":true`) || strings.Contains(string(text), `"access"`) {
				t.Errorf("%s: %s is %v", name, e.Name, b)
			}
			apps = append(apps, b.Selector.MatchLabels["app"])
		}
		slices.Sort(apps)
		if !slices.Equal(apps, c.apps) || !slices.Equal(all, c.all) {
			t.Errorf("%s: applications %q and keys %q, want %q and %q", name, apps, all, c.apps, c.all)
		}
		said := strings.Join(lines(got.Problems), "\n")
		for _, want := range c.problems {
			if !strings.Contains(said, want) {
				t.Errorf("%s: problems %s lack %s", name, said, want)
			}
		}
		if len(got.Problems) != len(c.problems) {
			t.Errorf("%s: problems %s", name, said)
		}
		for i := range rules {
			spec, err := rules[i].JSON()
			if err != nil {
				t.Fatal(err)
			}
			explained, err := json.Marshal(Explain(&rules[i], rules))
			if err != nil {
				t.Fatal(err)
			}
			for _, secret := range []string{secretOne, std, encoded([]byte(secretOne))} {
				if strings.Contains(string(spec)+string(explained)+said, secret) {
					t.Errorf("%s: a secret is shown", name)
				}
			}
		}
		// A secret's change changes what is sent, but not the generation that everybody sees; a public key's does.
		rotated, _ := compile((*Keys)(nil).Update(files(secretTwo)), c.rules...)
		if rotated.Plugin.Generation != got.Plugin.Generation || rotated.Set.Equal(got.Set) != !strings.Contains(strings.Join(c.rules, ""), "name: secret") {
			t.Errorf("%s: another secret: generation %s, was %s", name, rotated.Plugin.Generation, got.Plugin.Generation)
		}
	}
	before, _ := compile(keys, public)
	if ecKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	if after, _ := compile((*Keys)(nil).Update(files(secretOne)), public); after.Plugin.Generation == before.Plugin.Generation {
		t.Error("another public key has the same generation")
	}
	// Nobody has looked for keys: nothing is sent, and nothing is said to be missing.
	if got, _ := compile(nil, public, some, missing); len(got.Plugin.Keys) > 0 || got.Set.Len() != 2 || len(got.Problems) > 0 {
		t.Errorf("without keys: %d resources, %v", got.Set.Len(), lines(got.Problems))
	}
}

// FuzzKeys: whatever a file holds, the filter takes what is made of it.
func FuzzKeys(f *testing.F) {
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(".jwks", []byte(set(jwkOf(f, "e", &ecKey.PublicKey), jwkOf(f, "h", secretOne), `{"kty":"RSA","n":"AQ","e":"Aw"}`)))
	f.Add(".pem", []byte(pemOf(f, &ecKey.PublicKey)))
	f.Add(".secret", []byte(secretOne))
	f.Add(".json", []byte(`{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"},{"d":null}]}`))
	f.Fuzz(func(t *testing.T, ext string, text []byte) {
		k := (*Keys)(nil).Update([]File{{Name: "a" + ext, Text: text}})
		got := k.keysFor(map[string]bool{"a": true})
		if faults := (&plugin.Plugin{Keys: got}).Validate(); len(faults) > 0 {
			t.Errorf("%v", faults)
		}
	})
}
