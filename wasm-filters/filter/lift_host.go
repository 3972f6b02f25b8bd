package filter

import (
	"unicode/utf8"

	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/match"
)

// The host of a service follows from its names by the rule of mcp-server's translate.Naming, which is written down there. It is
// here a second time because a sidecar must know the hosts of all services that its workload may ever call, and a rule
// is smaller than a table and never late. Where the rule ends in a hash, the configuration has to name the host.

const (
	maxLabelBytes = 63
	maxHostBytes  = 253
	hexDigits     = "0123456789abcdef"
)

// sofaVersion is the version of a SOFA service that names none, as registries write it (ConfigUniqueNameGenerator).
var sofaVersion = []byte("1.0")

// liftTable is config.Lift made ready.
type liftTable struct {
	conf    *config.Lift
	hosts   map[config.Host]string
	headers []string // of conf.Attachments
	dialled bool     // all calls go where they are addressed
	// routed is the table for connections to services' own addresses, where none can; nil where it would be the same.
	routed  *liftTable
	virtual match.Network
	index   int // 1 for routed
}

// newLiftTable makes conf ready for the workloads of app, which may be "".
func newLiftTable(conf *config.Lift, app string) *liftTable {
	t := &liftTable{conf: conf, hosts: make(map[config.Host]string, len(conf.Hosts))}
	for _, h := range conf.Hosts {
		key := h
		key.Host = ""
		t.hosts[key] = h.Host
	}
	for _, a := range conf.Attachments {
		t.headers = append(t.headers, config.HeaderOf(a))
	}
	applications := conf.Applications.Strings()
	t.dialled = !applications.Matches([]byte(app))
	var ok bool
	if t.virtual, ok = match.ParseNetwork(conf.VirtualAddresses); ok {
		own := *t
		own.dialled, own.index, own.hosts = false, 1, make(map[config.Host]string)
		for key, h := range t.hosts {
			if h != config.AsDialled {
				own.hosts[key] = h
			}
		}
		if t.dialled || len(own.hosts) < len(t.hosts) {
			t.routed = &own
		}
	}
	return t
}

// appendHost appends the host of a service. It returns false where it would be a hash. system is the protocol's name.
func (t *liftTable) appendHost(dst []byte, system string, k *known) ([]byte, bool) {
	if t.dialled {
		return append(dst, config.AsDialled...), true
	}
	version := k.version
	if system == "dubbo" && string(version) == "0.0.0" {
		version = nil // how Dubbo says that there is none
	}
	if system == "bolt" && len(version) == 0 {
		version = sofaVersion
	}
	if len(t.hosts) > 0 {
		if h, ok := t.hosts[config.Host{Service: string(k.service), Version: string(version), Group: string(k.group)}]; ok {
			return append(dst, h...), true
		}
	}
	start := len(dst)
	dst = appendInterface(dst, k.service)
	if len(version) > 0 {
		prefix := ".v-"
		if version[0] >= '0' && version[0] <= '9' {
			prefix = ".v"
		}
		dst = appendLabels(dst, prefix, version, alphabetValue)
	}
	if len(k.group) > 0 {
		dst = appendLabels(dst, ".g-", k.group, alphabetValue)
	}
	framework := ".dubbo."
	if system == "bolt" {
		framework = ".sofa."
	}
	dst = append(dst, framework...)
	dst = append(dst, t.conf.Suffix...)
	return dst, len(dst)-start <= maxHostBytes
}

// appendInterface appends the labels of an interface's name.
func appendInterface(dst, name []byte) []byte {
	for first := true; ; first = false {
		segment, last := name, true
		for i, c := range name {
			if c == '.' {
				segment, name, last = name[:i], name[i+1:], false
				break
			}
		}
		prefix, strict := ".", ".0---"
		if first {
			prefix, strict = "", "0---"
		}
		dst = appendSegment(dst, prefix, strict, segment, last)
		if last {
			return dst
		}
	}
}

func appendSegment(dst []byte, prefix, strict string, s []byte, last bool) []byte {
	if len(s) == 0 {
		return append(append(dst, strict...), '0')
	}
	if last && s[0] >= 'A' && s[0] <= 'Z' {
		// The first capital goes without its "-", unless the label would be taken for something else.
		start := len(dst) + len(prefix)
		out := appendTokens(dst, prefix, s, alphabetInterface, true)
		if !qualifies(out[start:]) {
			return out
		}
		return appendLabels(dst, strict, s, alphabetInterface)
	}
	start := len(dst) + len(prefix)
	out := appendLabels(dst, prefix, s, alphabetInterface)
	switch first := out[start]; {
	case first == '-', last && (first >= 'a' && first <= 'z' || qualifies(out[start:])):
		return appendLabels(dst, strict, s, alphabetInterface)
	}
	return out
}

// qualifies tells whether a label would be taken for a version, a group or a protocol.
func qualifies(label []byte) bool {
	if len(label) < 2 {
		return false
	}
	c, next := label[0], label[1]
	return c == 'v' && (next == '-' || next >= '0' && next <= '9') || (c == 'g' || c == 'p') && next == '-'
}

// alphabet says what a single "-" before a letter or digit means.
type alphabet uint8

const (
	alphabetInterface alphabet = iota // the letter is a capital
	alphabetValue                     // a dot
)

func appendLabels(dst []byte, prefix string, s []byte, a alphabet) []byte {
	return appendTokens(dst, prefix, s, a, false)
}

// appendTokens appends prefix and s, escaped, in as many labels as it takes; what has to stay together is never split. bare leaves
// the "-" of a first capital out.
func appendTokens(dst []byte, prefix string, s []byte, a alphabet, bare bool) []byte {
	dst = append(dst, prefix...)
	label := len(prefix) // bytes of the label at hand
	if label > 0 && prefix[0] == '.' {
		label--
	}
	plain := func(j int) bool { return j < len(s) && (s[j] >= 'a' && s[j] <= 'z' || s[j] >= '0' && s[j] <= '9') }
	var token [10]byte
	capitals := 0 // what is left of a run of capitals
	for i := 0; i < len(s); {
		t := token[:0]
		c := s[i]
		switch {
		case plain(i):
			t = append(t, c)
			i++
		case capitals > 0:
			t = append(t, c+'a'-'A')
			capitals--
			i++
		case c >= 'A' && c <= 'Z':
			i++
			if a == alphabetInterface {
				if !bare || i > 1 {
					t = append(t, '-')
				}
				t = append(t, c+'a'-'A')
				break
			}
			end := i
			for end < len(s) && s[end] >= 'A' && s[end] <= 'Z' {
				end++
			}
			if n := end - i; n >= 1 && (end == len(s) || s[end] < 'a' || s[end] > 'z') {
				t = append(t, '-', '-', '9')
				capitals = n
			} else {
				t = append(t, '-', '-')
			}
			t = append(t, c+'a'-'A')
		case c == '.' && a == alphabetValue && i > 0 && plain(i+1):
			t = append(t, '-', s[i+1])
			i += 2
		default:
			t, i = escape(t, s, i)
		}
		if label+len(t) > maxLabelBytes {
			dst = append(dst, ".1---"...)
			label = 4
		}
		dst = append(dst, t...)
		label += len(t)
	}
	return dst
}

// escape appends "--" and a code for the character at s[i], and returns where the next one begins.
func escape(t, s []byte, i int) ([]byte, int) {
	t = append(t, '-', '-')
	c := s[i]
	if c < 0x80 {
		for k := range len(shortCodes) {
			if shortCodes[k] == c {
				return append(t, '0'+byte(k)), i + 1
			}
		}
		return append(t, '5', hexDigits[c>>4], hexDigits[c&15]), i + 1
	}
	r, size := utf8.DecodeRune(s[i:])
	switch {
	case r == utf8.RuneError && size == 1:
		return append(t, '8', hexDigits[c>>4], hexDigits[c&15]), i + 1
	case r > 0xffff:
		t = append(t, '7', hexDigits[r>>20&15], hexDigits[r>>16&15])
	default:
		t = append(t, '6')
	}
	return append(t, hexDigits[r>>12&15], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15]), i + size
}

// shortCodes are the characters whose code is one digit: their place here.
const shortCodes = "._$-*"

// LiftHost returns the host of a service whose calls are lifted: what their :authority is. system is the protocol's name, suffix the
// domain. ok is false where it would be a hash. It is for those who hold this rule to mcp-server's.
func LiftHost(suffix, system, service, version, group string) (host string, ok bool) {
	t := newLiftTable(&config.Lift{Suffix: suffix}, "")
	b, ok := t.appendHost(nil, system, &known{service: []byte(service), version: []byte(version), group: []byte(group)})
	return string(b), ok
}
