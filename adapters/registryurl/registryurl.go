// Package registryurl reads the URLs by which Dubbo and SOFARPC describe providers and consumers in a registry, whichever it is,
// and says what of them matters: so that one application means the same to every adapter. It imports only the model.
package registryurl

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/isthmus-mesh/isthmus/adapters/model"
)

// The names of SOFARPC's services, whichever registry holds them: equal ones are one service.
const (
	FrameworkSOFA = "sofa"
	sofaVersion   = "1.0" // of a service that names none (SOFARPC's default)
)

// SOFAKey returns the key of a SOFARPC service. The uniqueId, by which services of one interface and version are told apart, becomes
// its group.
func SOFAKey(iface, version, uniqueID string) model.Key {
	return model.Key{Framework: FrameworkSOFA, Interface: iface, Version: cmp.Or(version, sofaVersion), Group: uniqueID}
}

// URL is what Dubbo and SOFARPC write about themselves, as far as it concerns us. Credentials in it are dropped by the parser.
type URL struct {
	Protocol string // lower case
	Host     string // without brackets; an IP address in its canonical form; "" where there is none
	Port     uint16 // 0 where there is none
	Path     string // without the leading slash
	Params   map[string]string
}

// MaxLength is the length in bytes of the longest URL that is read, encoded or not. ZooKeeper itself refuses packets above 1 MiB
// (jute.maxbuffer); URLs seen have 0.3 to 2 KiB.
const MaxLength = 64 << 10

const maxParams = 512

var (
	errLong       = fmt.Errorf("it is longer than %d bytes", MaxLength)
	errParams     = fmt.Errorf("it has more than %d parameters", maxParams)
	errUTF8       = errors.New("it is not UTF-8")
	errControl    = errors.New("it has control characters")
	errNoProtocol = errors.New("it has no protocol")
	errProtocol   = errors.New("its protocol is not a name")
	errHost       = errors.New("its host is neither an IP address nor a host name")
	errPort       = errors.New("its port is not a number from 1 to 65535")
)

// ParseName reads a node's name: URL-encoded as a whole by java.net.URLEncoder. With wantPort the last colon always
// divides the port from the host, as it does upstream; without, a host that is an IPv6 address as a whole is taken as one.
func ParseName(name string, wantPort bool) (URL, error) {
	if len(name) > MaxLength {
		return URL{}, errLong
	}
	text, err := url.QueryUnescape(name)
	if err != nil {
		return URL{}, fmt.Errorf("its encoding is broken: %w", err)
	}
	return Parse(text, wantPort)
}

// Parse reads a decoded URL as org.apache.dubbo.common.URL.valueOf and SOFARPC's ProviderHelper.toProviderInfo do, more
// strictly: what they would take for a host or a port although it is none is an error.
func Parse(text string, wantPort bool) (u URL, err error) {
	if !utf8.ValidString(text) {
		return u, errUTF8
	}
	if strings.ContainsFunc(text, unicode.IsControl) {
		return u, errControl
	}
	rest, query, _ := strings.Cut(text, "?")
	if u.Params, err = parseParams(query); err != nil {
		return u, err
	}
	protocol, rest, ok := strings.Cut(rest, "://")
	if !ok || protocol == "" {
		return u, errNoProtocol
	}
	u.Protocol = strings.ToLower(protocol)
	if strings.ContainsFunc(u.Protocol, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '+' || r == '-' || r == '.' || r == '_')
	}) {
		return u, errProtocol
	}
	rest, u.Path, _ = strings.Cut(rest, "/")
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		rest = rest[at+1:]
	}
	u.Host, u.Port, err = ParseAddress(rest, wantPort)
	return u, err
}

func parseParams(query string) (map[string]string, error) {
	if query == "" {
		return nil, nil
	}
	if strings.Count(query, "&") >= maxParams {
		return nil, errParams
	}
	params := make(map[string]string, strings.Count(query, "&")+1)
	for pair := range strings.SplitSeq(query, "&") {
		if key, value, _ := strings.Cut(pair, "="); key != "" {
			// The first one counts: SOFARPC puts its own version before the parameters that the application adds.
			if _, ok := params[key]; !ok {
				params[key] = value
			}
		}
	}
	for key, value := range params { // URL.valueOf: a parameter has the value of its default.* where it has none
		if short, ok := strings.CutPrefix(key, "default."); ok && short != "" {
			if _, ok := params[short]; !ok {
				params[short] = value
			}
		}
	}
	return params, nil
}

// ParseAddress reads host, host:port, [v6]:port and, as Dubbo writes it, v6:port.
func ParseAddress(s string, wantPort bool) (host string, port uint16, err error) {
	if s == "" {
		return "", 0, nil
	}
	if !wantPort {
		if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
			return a.Unmap().String(), 0, nil
		}
	}
	host = s
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		n, err := strconv.ParseUint(s[i+1:], 10, 16)
		if err != nil {
			return "", 0, errPort
		}
		host, port = s[:i], uint16(n)
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		if host, ok = strings.CutSuffix(inner, "]"); !ok {
			return "", 0, errHost
		}
		if !strings.Contains(host, ":") {
			return "", 0, errHost
		}
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return a.Unmap().String(), port, nil
	}
	if !HostName(host) {
		return "", 0, errHost
	}
	return host, port, nil
}

// HostName reports whether s can be a host name; underscores are common in container names.
func HostName(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if len(s) == 0 || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if len(label) == 0 || len(label) > 63 || strings.ContainsFunc(label, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
		}) {
			return false
		}
	}
	return true
}

// ErrWord says why something is no Word.
var ErrWord = errors.New("it has spaces or characters that cannot be printed, or more than 1 KiB")

// Word reports whether s can be the name of an interface or an application.
func Word(s string) bool {
	return s != "" && len(s) <= 1024 && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == ' ' })
}

// Outline returns the URL without its parameters, which may hold tokens: for messages.
func (u URL) Outline() string {
	s := u.Protocol + "://" + u.Host
	if strings.Contains(u.Host, ":") {
		s = u.Protocol + "://[" + u.Host + "]"
	}
	if u.Port != 0 {
		s += ":" + strconv.Itoa(int(u.Port))
	}
	if u.Path != "" {
		s += "/" + u.Path
	}
	return s
}

// Unusable says why an address cannot be called by others, "" if it can.
func Unusable(host string) string {
	a, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return ""
	case a.IsUnspecified():
		return "stands for every address of its own host; the provider must register one that others can reach"
	case a.IsMulticast():
		return "is a multicast address"
	case a.Zone() != "":
		return "holds for one network interface of its own host only; the provider must register a global one"
	}
	return ""
}

// boring are parameters that say nothing about an endpoint that the model or its protocol does not say already.
var boring = map[string]bool{
	"accepts": true, "anyhost": true, "application": true, "application.version": true, "appName": true, "background": true, "bean.name": true,
	"bind.ip": true, "bind.port": true, "category": true, "check": true, "default.service.filter": true, "delay": true, "deprecated": true,
	"disabled": true, "dubbo.tag": true, "dynamic": true, "enabled": true, "executor-management-mode": true, "file-cache": true,
	"generic": true, "group": true, "id": true, "interface": true, "language": true, "logger": true, "methods": true,
	"metadata-type": true, "organization": true, "owner": true, "protocol": true, "qos.accept.foreign.ip": true, "qos.enable": true, "qos.port": true,
	"register.ip": true, "scope": true, "service-name-mapping": true, "service.name": true, "side": true, "sticky": true, "uniqueId": true,
	"unloadClusterRelated": true, "version": true, "weight": true, "region": true, "zone": true, "tag": true,
}

// Secret reports whether a parameter's value must not be shown: Dubbo's token lets whoever knows it call the provider.
func Secret(key string) bool {
	k := strings.ToLower(key)
	for _, word := range []string{"token", "password", "passwd", "secret", "accesskey", "access-key", "credential"} {
		if strings.Contains(k, word) {
			return true
		}
	}
	return false
}

// MaxValue is the length in bytes of the longest value that is kept as metadata or label.
const MaxValue = 1024

const (
	maxMetadata = 64 // parameters kept of one URL
	hidden      = "(hidden)"
)

// Metadata returns the parameters that are neither boring, nor labels, nor defaults.
func Metadata(u URL, labels map[string]string) map[string]string {
	keys := make([]string, 0, len(u.Params))
	for k, v := range u.Params {
		_, label := labels[strings.TrimPrefix(k, labelPrefix)]
		if v == "" || boring[k] || label || strings.HasPrefix(k, "default.") || len(k) > 128 {
			continue
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil
	}
	slices.Sort(keys)
	keys = keys[:min(len(keys), maxMetadata)]
	out := make(map[string]string, len(keys))
	for _, k := range keys {
		v := u.Params[k]
		if Secret(k) {
			v = hidden
		}
		if len(v) > MaxValue {
			v = strings.ToValidUTF8(v[:MaxValue], "") + "..."
		}
		out[k] = v
	}
	return out
}

// labelPrefix marks parameters that an application adds to be selected by: label.version=v2 becomes the label version.
const labelPrefix = "label."

// Labels returns what callers may select an endpoint by: the parameters with labelPrefix, those that the settings name,
// Dubbo's tag (TAG_KEY, "dubbo.tag") as tag and its environment as env.
func Labels(u URL, named []string) map[string]string {
	var out map[string]string
	set := func(k, v string) {
		if k == "" || v == "" || len(k) > 128 || len(v) > MaxValue || Secret(k) {
			return
		}
		if out == nil {
			out = map[string]string{}
		}
		if _, ok := out[k]; !ok {
			out[k] = v
		}
	}
	set("tag", u.Params["dubbo.tag"])
	set("tag", u.Params["tag"])
	set("env", u.Params["env"])
	set("env", u.Params["environment"])
	for _, k := range named {
		set(k, u.Params[k])
	}
	for k, v := range u.Params {
		if short, ok := strings.CutPrefix(k, labelPrefix); ok {
			set(short, v)
		}
	}
	return out
}

// Redact returns a node's name without the values of parameters that are secrets and without credentials. The name need not
// be well-formed.
func Redact(name string) string {
	amp, eq := "%26", "%3D"
	if !strings.Contains(name, amp) && strings.Contains(name, "&") {
		amp, eq = "&", "="
	}
	parts := strings.Split(name, amp)
	for i, p := range parts {
		if i == 0 {
			head, _, _ := strings.Cut(p, "?")
			head, _, _ = strings.Cut(head, "%3F")
			tail := p[len(head):]
			for _, at := range []string{"%40", "@"} {
				if j := strings.LastIndex(head, at); j >= 0 {
					begin := 0
					for _, sep := range []string{"%3A%2F%2F", "://"} {
						if k := strings.Index(head[:j], sep); k >= 0 {
							begin = k + len(sep)
						}
					}
					head = head[:begin] + hidden + head[j:]
				}
			}
			p = head + tail
		}
		if key, _, ok := strings.Cut(p, eq); ok && Secret(key) {
			p = key + eq + hidden
		}
		parts[i] = p
	}
	return strings.Join(parts, amp)
}
