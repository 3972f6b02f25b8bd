package config

import "github.com/isthmus-mesh/isthmus/wasm-filters/policy/match"

// Lift turns the calls of connections from clients into HTTP/2 streams for the HTTP connection manager behind the filter. It
// acts on listeners that are not inbound; connections that speak no RPC protocol pass as they are.
type Lift struct {
	// Suffix is the domain that the hosts of services are in, as mcp-server's is. Default "isthmus".
	Suffix string `json:"suffix,omitempty"`
	// Hosts are the services whose host does not follow from their names.
	Hosts []Host `json:"hosts,omitempty"`
	// Attachments are the names of those attachments (Dubbo) and headers and baggage items (Bolt) that become headers of the
	// request, at most 64: "x-isthmus-attachment-" and the name in lower case.
	Attachments []string `json:"attachments,omitempty"`
	// Applications are those whose calls go where routes say, by the workload's own application; zero is all. The calls of others are
	// lifted, too, but go where they are addressed.
	Applications Match `json:"applications,omitzero"`
	// VirtualAddresses is the network that services' own addresses are in, 240.64.0.0/10: who has dialled one of these has dialled no
	// provider, so that routes have the say. Empty where there are none.
	VirtualAddresses string `json:"virtualAddresses,omitempty"`
}

// AsDialled is the host of services whose calls go where they are addressed: nobody's, so that no route is for it.
const AsDialled = "as-dialled.invalid"

// Host gives a service a host, which is the request's :authority.
type Host struct {
	Service string `json:"service"`           // interface name
	Version string `json:"version,omitempty"` // as on the wire; empty where there is none
	Group   string `json:"group,omitempty"`
	Host    string `json:"host"`
}

// Lower turns HTTP/2 streams that were calls before back into calls. It acts on listeners that are not outbound; connections
// that speak an RPC protocol pass as they do without it.
type Lower struct {
	// ExceptionsFail says that a call whose business code threw is an HTTP failure too, so that it counts for outlier detection and
	// may be tried again.
	ExceptionsFail bool `json:"exceptionsFail,omitempty"`
	// HeartbeatMillis is how long a provider hears nothing before it is sent a heartbeat. Default 30000; at most 3600000.
	HeartbeatMillis uint32 `json:"heartbeatMillis,omitempty"`
	// BehindHTTP says that the provider's Envoy has an HTTP connection manager of its own for calls: connections to inbound listeners
	// are lifted towards it, unless they come as HTTP/2, and those to listeners without a direction, behind it, are lowered and
	// governed as the provider's. Who calls is then what the header PeerHeader says. It needs Lift.
	BehindHTTP bool `json:"behindHTTP,omitempty"`
}

// PeerHeader is what a provider's connection manager tells of a caller's connection: its address and port, ";", and the URI SAN of
// its certificate, or "-". It must not let through one that the caller has sent.
const PeerHeader = "x-isthmus-peer"

// AttachmentHeader begins the names of headers that hold attachments.
const AttachmentHeader = "x-isthmus-attachment-"

// HeaderSubset is the header of a response by which a route says which group of providers it has sent a lifted call to, so that
// the calls of each group can be metered. Who writes routes sets it for a destination; callers do not see it.
const HeaderSubset = "x-isthmus-subset"

// The defaults of Lift and Lower.
const (
	DefaultSuffix          = "isthmus"
	DefaultHeartbeatMillis = 30_000
)

// MaxHosts is how many hosts Lift may name.
const MaxHosts = 10_000

// Bounds of the fields.
const (
	maxHostName       = 253
	maxAttachments    = 64
	maxAttachmentName = 128
	maxHeartbeat      = 3_600_000
)

func (r *reader) lift(l *Lift) {
	r.object(func(name string) bool {
		switch name {
		case "suffix":
			l.Suffix = r.text()
		case "hosts":
			r.list(MaxHosts, func() {
				l.Hosts = append(l.Hosts, Host{})
				r.host(&l.Hosts[len(l.Hosts)-1])
			})
		case "virtualAddresses":
			l.VirtualAddresses = r.text()
		case "applications":
			r.match(&l.Applications)
		case "attachments":
			r.list(maxAttachments, func() { l.Attachments = append(l.Attachments, r.text()) })
		default:
			return false
		}
		return true
	})
}

func (r *reader) host(h *Host) {
	r.object(func(name string) bool {
		switch name {
		case "service":
			h.Service = r.text()
		case "version":
			h.Version = r.text()
		case "group":
			h.Group = r.text()
		case "host":
			h.Host = r.text()
		default:
			return false
		}
		return true
	})
}

func (r *reader) lower(l *Lower) {
	r.object(func(name string) bool {
		switch name {
		case "exceptionsFail":
			l.ExceptionsFail = r.boolean()
		case "heartbeatMillis":
			l.HeartbeatMillis = r.number()
		case "behindHTTP":
			l.BehindHTTP = r.boolean()
		default:
			return false
		}
		return true
	})
}

// withDefaults returns a copy in which every field that is zero and has a default has it; nil for nil.
func (l *Lift) withDefaults() *Lift {
	if l == nil {
		return nil
	}
	d := *l
	def(&d.Suffix, DefaultSuffix)
	return &d
}

func (l *Lower) withDefaults() *Lower {
	if l == nil {
		return nil
	}
	d := *l
	def(&d.HeartbeatMillis, DefaultHeartbeatMillis)
	return &d
}

func (v *validator) lift(l *Lift) {
	if l == nil {
		return
	}
	if l.Suffix != "" && !hostName(l.Suffix) {
		v.fault("lift.suffix", "must be a DNS name in lower case")
	}
	if len(l.Hosts) > MaxHosts {
		v.fault("lift.hosts", "more than 10000 elements")
	}
	v.match("lift.applications", &l.Applications)
	if _, ok := match.ParseNetwork(l.VirtualAddresses); !ok && l.VirtualAddresses != "" {
		v.fault("lift.virtualAddresses", "must be a network, such as 240.64.0.0/10")
	}
	seen := make(map[Host]struct{}, len(l.Hosts))
	for i, h := range l.Hosts {
		at := index("lift.hosts", i)
		switch {
		case h.Service == "":
			v.fault(at+".service", "is missing")
		case len(h.Service) > maxMatch || len(h.Version) > maxMatch || len(h.Group) > maxMatch:
			v.fault(at, "longer than 512 bytes")
		}
		if !hostName(h.Host) {
			v.fault(at+".host", "must be a DNS name in lower case")
		}
		h.Host = ""
		if _, twice := seen[h]; twice {
			v.fault(at, "is the service of an earlier host, too")
		}
		seen[h] = struct{}{}
	}
	if len(l.Attachments) > maxAttachments {
		v.fault("lift.attachments", "more than 64 elements")
	}
	headers := make(map[string]struct{}, len(l.Attachments))
	for i, a := range l.Attachments {
		at := index("lift.attachments", i)
		header := HeaderOf(a)
		switch _, twice := headers[header]; {
		case a == "" || len(a) > maxAttachmentName:
			v.fault(at, "must have 1 to 128 bytes")
		case twice:
			v.fault(at, "becomes the same header as an earlier one")
		}
		headers[header] = struct{}{}
	}
}

func (v *validator) lower(l *Lower, lifts bool) {
	if l != nil && l.BehindHTTP && !lifts {
		v.fault("lower.behindHTTP", "needs lift")
	}
	if l != nil {
		v.bounds("lower.heartbeatMillis", l.HeartbeatMillis, 1, maxHeartbeat)
	}
}

// HeaderOf returns the name of the header that an attachment becomes: letters in lower case, and what a header's name cannot
// hold as "-".
func HeaderOf(attachment string) string {
	b := append(make([]byte, 0, len(AttachmentHeader)+len(attachment)), AttachmentHeader...)
	for i := range len(attachment) {
		c := attachment[i]
		switch {
		case c >= 'A' && c <= 'Z':
			c += 'a' - 'A'
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '.', c == '_':
		default:
			c = '-'
		}
		b = append(b, c)
	}
	return string(b)
}

// hostName tells whether s is a DNS name in lower case: labels of 1 to 63 of a-z 0-9 and -, separated by dots.
func hostName(s string) bool {
	if s == "" || len(s) > maxHostName {
		return false
	}
	label := 0
	for i := range len(s) {
		switch c := s[i]; {
		case c == '.' && label > 0:
			label = 0
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-':
			if label++; label > 63 {
				return false
			}
		default:
			return false
		}
	}
	return label > 0
}
