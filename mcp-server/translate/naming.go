package translate

import (
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/isthmus-mesh/isthmus/adapters/model"
)

// DefaultSuffix ends every host, unless it is configured otherwise.
const DefaultSuffix = "isthmus"

// The bounds of DNS (RFC 1123 and 1035): of a label and of a whole name without the final dot.
const (
	maxLabel = 63
	maxHost  = 253
)

// Naming gives services their host names, and reads them back. A host is
//
//	INTERFACE [.VERSION] [.GROUP] [.PROTOCOL] .FRAMEWORK .SUFFIX
//	demo.greet-service.v1-0-0.g-g1.dubbo.isthmus
//
// in lower case, each label at most 63 bytes and the whole at most 253:
//
//   - INTERFACE keeps its dots. A capital letter becomes "-" and its small letter; the first letter of the last segment, which
//     Java writes in capitals, goes without the "-": demo.GreetService is demo.greet-service. For the framework "spring" it is
//     an application's name instead: one label, in which "-" stands for itself.
//   - VERSION is "v" and the version, its dots as "-": 1.0.0 is v1-0-0. One that does not begin with a digit follows "v-".
//   - GROUP, Dubbo's group or SOFA's uniqueId, follows "g-"; its dots are "-" too.
//   - PROTOCOL, following "p-", is only there for the endpoints of a service that speak another protocol than its main one.
//   - Everything else is "--" and a code; see escape. A label that would begin with "-" or would be taken for something else
//     begins with "0---", and a label that is too long goes on in further labels that begin with "1---".
//
// Different keys have different hosts. Where the whole would be longer than 253 bytes it is "2---" and a hash; then the host
// cannot be read back.
type Naming struct {
	// Suffix is the domain that all hosts are in: lower-case DNS labels without dots at the ends. "" means DefaultSuffix.
	Suffix string
}

// ErrHashed says that a host stands for a key that was too long to be written out.
var ErrHashed = errors.New("translate: the host is a hash and cannot be read back")

const (
	markStrict   = "0---" // what follows begins in lower case, and is no version, group or protocol
	markContinue = "1---" // goes on with the label before
	markHash     = "2---"
	emptyLabel   = markStrict + "0"
)

func (n Naming) suffix() string {
	if n.Suffix == "" {
		return DefaultSuffix
	}
	return n.Suffix
}

// Host returns the host of a service. reversible tells whether ParseHost reads it back.
func (n Naming) Host(k model.Key) (host string, reversible bool) { return n.host(k, "") }

// ProtocolHost returns the host of those endpoints of a service that speak another protocol than its main one.
func (n Naming) ProtocolHost(k model.Key, p model.Protocol) (host string, reversible bool) {
	return n.host(k, p)
}

// PortHost returns the host of the catch-all for the calls to a port whose callers have chosen the endpoint themselves.
func (n Naming) PortHost(port uint16) string {
	return "port-" + strconv.Itoa(int(port)) + "." + n.suffix()
}

// ProvidersHost returns the host under which the providers of lifted services on a port are known to their own sidecars.
func (n Naming) ProvidersHost(port uint16) string {
	return "providers-" + strconv.Itoa(int(port)) + "." + n.suffix()
}

func (n Naming) host(k model.Key, p model.Protocol) (string, bool) {
	labels := interfaceLabels(k)
	if k.Version != "" {
		v := encode(k.Version, alphabetValue)
		if first := v[0]; len(first) == 1 && first[0] >= '0' && first[0] <= '9' {
			labels = append(labels, split("v", v)...)
		} else {
			labels = append(labels, split("v-", v)...)
		}
	}
	if k.Group != "" {
		labels = append(labels, split("g-", encode(k.Group, alphabetValue))...)
	}
	if p != "" {
		labels = append(labels, split("p-", encode(string(p), alphabetName))...)
	}
	framework := nameLabels(k.Framework)
	labels = append(labels, framework...)
	labels = append(labels, n.suffix())
	if host := strings.Join(labels, "."); len(host) <= maxHost {
		return host, true
	}
	sum := sha256.New()
	for _, s := range []string{k.Framework, k.Interface, k.Version, k.Group, string(p)} {
		fmt.Fprintf(sum, "%d:%s", len(s), s)
	}
	hash := markHash + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum.Sum(nil)[:20]))
	if len(framework) > 1 {
		return hash + "." + n.suffix(), false
	}
	return hash + "." + framework[0] + "." + n.suffix(), false
}

// frameworkSpring is the framework whose services are applications, not interfaces.
const frameworkSpring = "spring"

func interfaceLabels(k model.Key) []string {
	if k.Framework == frameworkSpring {
		return guarded(encode(k.Interface, alphabetName))
	}
	segments := strings.Split(k.Interface, ".")
	var labels []string
	for i, s := range segments {
		if i == len(segments)-1 && s != "" && s[0] >= 'A' && s[0] <= 'Z' {
			tokens := encode(s, alphabetInterface)
			tokens[0] = tokens[0][1:] // the "-" of the first capital
			if !ambiguous(tokens) {
				labels = append(labels, split("", tokens)...)
				continue
			}
			tokens[0] = "-" + tokens[0]
			labels = append(labels, split(markStrict, tokens)...)
			continue
		}
		tokens := encode(s, alphabetInterface)
		switch {
		case len(tokens) == 0:
			labels = append(labels, emptyLabel)
		case i == len(segments)-1 && (isLetter(tokens[0]) || ambiguous(tokens)), tokens[0][0] == '-':
			labels = append(labels, split(markStrict, tokens)...)
		default:
			labels = append(labels, split("", tokens)...)
		}
	}
	return labels
}

func isLetter(token string) bool { return token[0] >= 'a' && token[0] <= 'z' }

// guarded makes labels of a name that stands for itself, at the place of an interface.
func guarded(tokens []string) []string {
	switch {
	case len(tokens) == 0:
		return []string{emptyLabel}
	case tokens[0][0] == '-' || ambiguous(tokens):
		return split(markStrict, tokens)
	}
	return split("", tokens)
}

// nameLabels makes the labels of a framework.
func nameLabels(s string) []string {
	tokens := encode(s, alphabetName)
	switch {
	case len(tokens) == 0:
		return []string{emptyLabel}
	case tokens[0][0] == '-':
		return split(markStrict, tokens)
	}
	return split("", tokens)
}

// ambiguous tells whether a label would be taken for a version, a group or a protocol.
func ambiguous(tokens []string) bool { return qualifier(strings.Join(tokens, "")) != 0 }

// qualifier returns 'v', 'g' or 'p' for the labels that are a version, a group or a protocol, else 0.
func qualifier(label string) byte {
	if len(label) < 2 {
		return 0
	}
	switch c, next := label[0], label[1]; {
	case c == 'v' && (next == '-' || next >= '0' && next <= '9'), (c == 'g' || c == 'p') && next == '-':
		return c
	}
	return 0
}

// split writes tokens behind a prefix, in as many labels as it takes. A token is never split, and none ends in "-".
func split(prefix string, tokens []string) []string {
	var labels []string
	label := prefix
	for _, t := range tokens {
		if len(label)+len(t) > maxLabel {
			labels = append(labels, label)
			label = markContinue
		}
		label += t
	}
	return append(labels, label)
}

// alphabet says what a single "-" before a letter or digit means.
type alphabet uint8

const (
	alphabetInterface alphabet = iota // the letter is a capital
	alphabetValue                     // a dot
	alphabetName                      // "-" itself
)

// escape codes, each after "--".
const (
	codeDot        = '0'
	codeUnderscore = '1'
	codeDollar     = '2'
	codeDash       = '3'
	codeStar       = '4'
	codeASCII      = '5' // and two hexadecimal digits: any other character below 0x80
	codeBMP        = '6' // and four: a character up to U+FFFF
	codeRune       = '7' // and six: any other character
	codeByte       = '8' // and two: a byte that is not UTF-8
	codeCapitals   = '9' // the letters that follow, up to the first that is none, are capitals: two at least
	// and a letter: the capital letter
)

var codes = map[byte]byte{'.': codeDot, '_': codeUnderscore, '$': codeDollar, '-': codeDash, '*': codeStar}

// encode returns the pieces of a label that must stay together. No piece ends in "-".
func encode(s string, a alphabet) []string {
	var tokens []string
	for i := 0; i < len(s); {
		c := s[i]
		plain := func(j int) bool { return j < len(s) && (s[j] >= 'a' && s[j] <= 'z' || s[j] >= '0' && s[j] <= '9') }
		switch {
		case plain(i):
			tokens = append(tokens, s[i:i+1])
			i++
		case c >= 'A' && c <= 'Z':
			if a == alphabetInterface {
				tokens = append(tokens, "-"+string(c+'a'-'A'))
				i++
				continue
			}
			end := i
			for end < len(s) && s[end] >= 'A' && s[end] <= 'Z' {
				end++
			}
			if end-i >= 2 && (end == len(s) || s[end] < 'a' || s[end] > 'z') {
				tokens = append(tokens, "--9"+string(c+'a'-'A'))
				for i++; i < end; i++ {
					tokens = append(tokens, string(s[i]+'a'-'A'))
				}
				continue
			}
			tokens = append(tokens, "--"+string(c+'a'-'A'))
			i++
		case (c == '.' && a == alphabetValue || c == '-' && a == alphabetName) && i > 0 && plain(i+1):
			tokens = append(tokens, "-"+s[i+1:i+2])
			i += 2
		case c < utf8.RuneSelf:
			if code, ok := codes[c]; ok {
				tokens = append(tokens, "--"+string(code))
			} else {
				tokens = append(tokens, fmt.Sprintf("--5%02x", c))
			}
			i++
		default:
			r, size := utf8.DecodeRuneInString(s[i:])
			switch {
			case r == utf8.RuneError && size == 1:
				tokens = append(tokens, fmt.Sprintf("--8%02x", c))
			case r <= 0xffff:
				tokens = append(tokens, fmt.Sprintf("--6%04x", r))
			default:
				tokens = append(tokens, fmt.Sprintf("--7%06x", r))
			}
			i += size
		}
	}
	return tokens
}

var errHost = errors.New("it is not a name that Isthmus gives")

// decode reads what encode wrote. It may read more than that: ParseHost writes the result again and compares.
func decode(s string, a alphabet) (string, error) {
	var b strings.Builder
	capitals := false
	for i := 0; i < len(s); {
		c := s[i]
		letter := c >= 'a' && c <= 'z'
		if !letter {
			capitals = false
		}
		switch {
		case letter && capitals:
			b.WriteByte(c - 'a' + 'A')
			i++
			continue
		case letter, c >= '0' && c <= '9':
			b.WriteByte(c)
			i++
			continue
		case c != '-' || i+1 == len(s):
			return "", errHost
		}
		next := s[i+1]
		if next != '-' {
			switch {
			case a == alphabetInterface && next >= 'a' && next <= 'z':
				b.WriteByte(next - 'a' + 'A')
			case a == alphabetInterface:
				return "", errHost
			case a == alphabetValue:
				b.WriteString("." + string(next))
			default:
				b.WriteString("-" + string(next))
			}
			i += 2
			continue
		}
		if i+2 == len(s) {
			return "", errHost
		}
		code := s[i+2]
		i += 3
		digits := 0
		switch code {
		case codeDot:
			b.WriteByte('.')
		case codeUnderscore:
			b.WriteByte('_')
		case codeDollar:
			b.WriteByte('$')
		case codeDash:
			b.WriteByte('-')
		case codeStar:
			b.WriteByte('*')
		case codeCapitals:
			capitals = true
		case codeASCII, codeByte:
			digits = 2
		case codeBMP:
			digits = 4
		case codeRune:
			digits = 6
		default:
			if code < 'a' || code > 'z' {
				return "", errHost
			}
			b.WriteByte(code - 'a' + 'A')
		}
		if digits == 0 {
			continue
		}
		if i+digits > len(s) {
			return "", errHost
		}
		v, err := strconv.ParseUint(s[i:i+digits], 16, 32)
		if err != nil {
			return "", errHost
		}
		i += digits
		if digits == 2 {
			b.WriteByte(byte(v))
		} else {
			b.WriteRune(rune(v))
		}
	}
	return b.String(), nil
}

// ParseHost reads a host back. protocol is "" for a service's own host. The error wraps ErrHashed where the host is a hash.
func (n Naming) ParseHost(host string) (key model.Key, protocol model.Protocol, err error) {
	key, protocol, err = n.parse(host)
	if err == nil {
		if again, ok := n.host(key, protocol); !ok || again != host {
			err = errHost
		}
	}
	if err != nil {
		if len(host) > 2*maxHost {
			host = host[:2*maxHost] + "..."
		}
		return model.Key{}, "", fmt.Errorf("translate: host %q: %w", host, err)
	}
	return key, protocol, nil
}

func (n Naming) parse(host string) (k model.Key, p model.Protocol, err error) {
	inner, ok := strings.CutSuffix(host, "."+n.suffix())
	if !ok || len(host) > maxHost {
		return k, p, errHost
	}
	if strings.HasPrefix(inner, markHash) {
		return k, p, ErrHashed
	}
	var labels []string
	for label := range strings.SplitSeq(inner, ".") {
		if rest, ok := strings.CutPrefix(label, markContinue); ok && len(labels) > 0 {
			labels[len(labels)-1] += rest
			continue
		}
		labels = append(labels, label)
	}
	pop := func(kind byte) (string, bool) {
		if len(labels) < 2 || qualifier(labels[len(labels)-1]) != kind {
			return "", false
		}
		last := labels[len(labels)-1][1:]
		labels = labels[:len(labels)-1]
		return last, true
	}
	if len(labels) < 2 {
		return k, p, errHost
	}
	last := labels[len(labels)-1]
	labels = labels[:len(labels)-1]
	if k.Framework, err = plainLabel(last, alphabetName); err != nil {
		return k, p, err
	}
	if v, ok := pop('p'); ok {
		s, err := decode(v[1:], alphabetName)
		if err != nil {
			return k, p, err
		}
		p = model.Protocol(s)
	}
	if v, ok := pop('g'); ok {
		if k.Group, err = decode(v[1:], alphabetValue); err != nil {
			return k, p, err
		}
	}
	if v, ok := pop('v'); ok {
		if k.Version, err = decode(strings.TrimPrefix(v, "-"), alphabetValue); err != nil {
			return k, p, err
		}
	}
	if k.Framework == frameworkSpring {
		if len(labels) != 1 {
			return k, p, errHost
		}
		k.Interface, err = plainLabel(labels[0], alphabetName)
		return k, p, err
	}
	for i, label := range labels {
		s, err := plainLabel(label, alphabetInterface)
		if err != nil {
			return k, p, err
		}
		if i == len(labels)-1 && !strings.HasPrefix(label, markStrict) && s != "" && s[0] >= 'a' && s[0] <= 'z' {
			s = string(s[0]-'a'+'A') + s[1:]
		}
		if i > 0 {
			k.Interface += "."
		}
		k.Interface += s
	}
	return k, p, nil
}

// plainLabel reads a label that is no version, group or protocol.
func plainLabel(label string, a alphabet) (string, error) {
	if label == emptyLabel {
		return "", nil
	}
	return decode(strings.TrimPrefix(label, markStrict), a)
}
