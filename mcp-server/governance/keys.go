package governance

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"path/filepath"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// Keys are what tokens are signed with, by the names that rules have for them. A nil *Keys is that nobody has looked: then rules are taken as if their keys were
// there, and none are sent. It is immutable. Nothing that it says of keys, in Problems or errors, holds any part of one.
type Keys struct {
	Problems []model.Problem
	sets     map[string]keySet
}

// keySet is one file of keys.
type keySet struct {
	file string
	keys []plugin.Key
}

// secret tells whether the set holds one: then it is kept from whom it is not for.
func (s *keySet) secret() bool { return slices.ContainsFunc(s.keys, isSecret) }

func isSecret(k plugin.Key) bool { return k.Algorithm == "HS256" }

// KeyFiles are the endings of names that files of keys have: a JSON Web Key Set (RFC 7517), public keys in PEM, and one secret as it is.
var KeyFiles = []string{".jwks", ".json", ".pem", ".secret"}

// The bounds of keys.
const (
	maxKeySets  = 1000
	maxKeysEach = 16
	minSecret   = 32   // bytes (RFC 7518, 3.2)
	minRSA      = 2048 // bits (RFC 7518, 3.3)
	maxRSA      = 8192
)

// Update returns the keys that are there once the files hold what they hold now; files are all there are. A file that is faulty, or cannot be read, leaves the
// keys that it had. Calling it on nil is fine.
func (k *Keys) Update(files []File) *Keys {
	next := &Keys{sets: map[string]keySet{}}
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b File) int { return cmp.Compare(a.Name, b.Name) })
	for _, f := range files {
		problem := func(code, format string, args ...any) {
			next.Problems = append(next.Problems, model.Problem{Severity: model.SeverityError, Place: f.Name, Code: code, Message: strings.ToValidUTF8(fmt.Sprintf(format, args...), "?")})
		}
		ext := filepath.Ext(f.Name)
		name := strings.TrimSuffix(filepath.Base(f.Name), ext)
		if f.Err != nil && !slices.Contains(KeyFiles, ext) { // the folder: nobody knows what is in it
			if k != nil {
				next.sets = maps.Clone(k.sets)
			}
			problem("InvalidKeys", "%v; the keys that there were stay in force", f.Err)
			continue
		}
		if first, ok := next.sets[name]; ok {
			problem("DuplicateKeys", "%s has keys of this name, too, and holds", first.file)
			continue
		}
		if len(next.sets) == maxKeySets {
			problem("TooManyKeys", "there are more than %d files of keys; this one and those after it are not read", maxKeySets)
			break
		}
		keys, skipped, err := []plugin.Key(nil), []string(nil), f.Err
		if err == nil {
			keys, skipped, err = parseKeys(ext, f.Text)
		}
		if err == nil {
			for i := range keys {
				keys[i].Name = name
			}
			if faults := (&plugin.Plugin{Keys: keys}).Validate(); len(faults) > 0 {
				err = errors.New(faults[0].String())
			}
		}
		if err != nil {
			fate := "there are no keys of this name"
			if k != nil {
				if old, ok := k.sets[name]; ok {
					next.sets[name] = old
					fate = "the keys that it had stay in force"
				}
			}
			problem("InvalidKeys", "%v; %s", err, fate)
			continue
		}
		for _, why := range skipped {
			next.Problems = append(next.Problems, model.Problem{Severity: model.SeverityWarning, Place: f.Name, Code: "UnusableKey", Message: why})
		}
		next.sets[name] = keySet{f.Name, keys}
	}
	return next
}

// parseKeys reads one file. skipped says of keys that others may use why we do not.
func parseKeys(ext string, text []byte) (keys []plugin.Key, skipped []string, err error) {
	switch ext {
	case ".pem":
		keys, err = pemKeys(text)
	case ".secret":
		secret := bytes.TrimRight(text, "\r\n")
		if len(secret) < minSecret {
			return nil, nil, fmt.Errorf("a secret of %d bytes is too short: at least %d", len(secret), minSecret)
		}
		keys = []plugin.Key{key("", "HS256", secret)}
	default:
		keys, skipped, err = jwks(text)
	}
	switch {
	case err != nil:
		return nil, nil, err
	case len(keys) == 0:
		return nil, nil, errors.New("it holds no key that can be used")
	case len(keys) > maxKeysEach:
		return nil, nil, fmt.Errorf("it holds %d keys, of at most %d", len(keys), maxKeysEach)
	}
	return keys, skipped, nil
}

func key(id, algorithm string, value []byte) plugin.Key {
	return plugin.Key{ID: id, Algorithm: algorithm, Value: base64.StdEncoding.EncodeToString(value)}
}

// errPrivate is the fault of a file that holds more than mcp-server should know.
var errPrivate = errors.New("it holds a private key: give the public one only")

func pemKeys(text []byte) ([]plugin.Key, error) {
	var keys []plugin.Key
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return keys, nil
		}
		if strings.Contains(block.Type, "PRIVATE") {
			return nil, errPrivate
		}
		if block.Type != "PUBLIC KEY" {
			return nil, fmt.Errorf("it holds a %.40q: a public key in PEM is a PUBLIC KEY", block.Type)
		}
		public, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("its key %d cannot be read", len(keys)+1)
		}
		k, err := publicKey("", public)
		if err != nil {
			return nil, fmt.Errorf("its key %d %w", len(keys)+1, err)
		}
		keys = append(keys, k)
	}
}

// publicKey returns a public key as the filter has it. The error goes behind the name of the key.
func publicKey(id string, public any) (plugin.Key, error) {
	algorithm := ""
	switch k := public.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSA || n > maxRSA {
			return plugin.Key{}, fmt.Errorf("is an RSA key of %d bits, which must have %d to %d", n, minRSA, maxRSA)
		}
		algorithm = "RS256"
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return plugin.Key{}, errors.New("is on another curve than P-256")
		}
		algorithm = "ES256"
	default:
		return plugin.Key{}, errors.New("is neither one of RSA nor on the curve P-256")
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return plugin.Key{}, errors.New("is no valid key")
	}
	return key(id, algorithm, der), nil
}

// jwk is one key of a JSON Web Key Set, as far as it matters here (RFC 7518, 6).
type jwk struct {
	Type      string           `json:"kty"`
	ID        string           `json:"kid"`
	Use       string           `json:"use"`
	Algorithm string           `json:"alg"`
	Curve     string           `json:"crv"`
	N         string           `json:"n"`
	E         string           `json:"e"`
	X         string           `json:"x"`
	Y         string           `json:"y"`
	K         string           `json:"k"`
	D         *json.RawMessage `json:"d"`
}

// jwks reads a JSON Web Key Set.
func jwks(text []byte) (keys []plugin.Key, skipped []string, err error) {
	var set struct {
		Keys []jwk `json:"keys"`
	}
	if json.Unmarshal(text, &set) != nil { // whose error may quote what it does not like
		return nil, nil, errors.New("it is no JSON Web Key Set")
	}
	for i, k := range set.Keys {
		if k.Type != "oct" && k.D != nil {
			return nil, nil, errPrivate
		}
		if k.Use != "" && k.Use != "sig" {
			continue // not for signatures
		}
		one, err := k.key()
		if err == nil && k.Algorithm != "" && k.Algorithm != one.Algorithm {
			err = errors.New("is for another algorithm than HS256, RS256 and ES256")
		}
		if err != nil {
			skipped = append(skipped, fmt.Sprintf("its key %d %v; it is not used", i+1, err))
			continue
		}
		keys = append(keys, one)
	}
	return keys, skipped, nil
}

// key returns the key as the filter has it. The error goes behind its name.
func (k *jwk) key() (plugin.Key, error) {
	bad := false
	number := func(s string) []byte {
		b, err := base64.RawURLEncoding.Strict().DecodeString(s)
		bad = bad || err != nil || len(b) == 0
		return b
	}
	switch k.Type {
	case "oct":
		secret := number(k.K)
		if bad || len(secret) < minSecret {
			return plugin.Key{}, fmt.Errorf("is no secret of at least %d bytes in base64url", minSecret)
		}
		return key(k.ID, "HS256", secret), nil
	case "RSA":
		n, e := new(big.Int).SetBytes(number(k.N)), new(big.Int).SetBytes(number(k.E))
		if bad || !e.IsInt64() || e.Int64() >= 1<<31 || e.Int64() < 3 || e.Bit(0) == 0 {
			return plugin.Key{}, errors.New("is no RSA key")
		}
		return publicKey(k.ID, &rsa.PublicKey{N: n, E: int(e.Int64())})
	case "EC":
		x, y := number(k.X), number(k.Y)
		if k.Curve != "P-256" {
			return plugin.Key{}, errors.New("is on another curve than P-256")
		}
		if bad || len(x) != 32 || len(y) != 32 {
			return plugin.Key{}, errors.New("is no point of P-256")
		}
		public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, x, y))
		if err != nil {
			return plugin.Key{}, errors.New("is no point of P-256")
		}
		return publicKey(k.ID, public)
	}
	return plugin.Key{}, errors.New("is of another type than RSA, EC and oct")
}

// delivery says which keys go where: those of all workloads, and those of the workloads of single applications.
type delivery struct {
	all  map[string]bool
	apps map[string]map[string]bool
}

// want notes which keys a rule needs, and says what is wrong with that.
func (d *delivery) want(k *Keys, r *Rule) []model.Problem {
	spec, ok := r.Spec.(*AccessSpec)
	if !ok || spec.Token == nil || k == nil {
		return nil
	}
	name := string(spec.Token.KeyRef.Name)
	problem := func(severity model.Severity, code, format string, args ...any) []model.Problem {
		return []model.Problem{{Severity: severity, Place: place(r.File, r.Line), Code: code, Message: r.ID.String() + " " + fmt.Sprintf(format, args...)}}
	}
	set, ok := k.sets[name]
	switch {
	case !ok:
		return problem(model.SeverityError, "MissingKeys", "names keys %q that there are not: it lets no call through, or every one where it says onFailure: allow", name)
	case spec.Token.HMAC != nil && !set.secret():
		return problem(model.SeverityError, "MissingKeys", "needs a secret, and keys %q are public: it lets no call through", name)
	case !set.secret():
		d.all[name] = true
		return nil
	}
	apps := spec.Target.Application.list()
	if apps == nil {
		d.all[name] = true
		return problem(model.SeverityWarning, "SecretEverywhere", "is for all applications, so the secret %q goes to every sidecar: name applications in target.application (a string, or in), or use a public key", name)
	}
	for _, app := range apps {
		if !isLabelValue(app) {
			d.all[name] = true
			return problem(model.SeverityWarning, "SecretEverywhere", "is for application %q, which is no label's value, so the secret %q goes to every sidecar", clip(app), name)
		}
		if d.apps[app] == nil {
			d.apps[app] = map[string]bool{}
		}
		d.apps[app][name] = true
	}
	return nil
}

// keysFor returns keys by their names, sorted.
func (k *Keys) keysFor(names map[string]bool) []plugin.Key {
	var out []plugin.Key
	for _, name := range slices.Sorted(maps.Keys(names)) {
		out = append(out, k.sets[name].keys...)
	}
	return out
}

// isLabelValue tells whether s can be a label's value (Kubernetes).
func isLabelValue(s string) bool {
	if len(s) == 0 || len(s) > 63 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || i == len(s)-1 || c != '-' && c != '_' && c != '.') {
			return false
		}
	}
	return true
}
