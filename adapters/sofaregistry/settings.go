package sofaregistry

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/registryurl"
	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session"
	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session/wire"
)

// Settings of a SOFARegistry.
type Settings struct {
	// Servers are session servers' HTTP addresses, host:port, of any of them: they name the others of their zone, for Bolt and for
	// HTTP. Of a registry with several zones give one of each. The port is 9603 where none is given.
	Servers []string `yaml:"servers"`
	// Encoding of the session protocol: hessian (versions 5 and 6) or protobuf (version 6). Default hessian.
	Encoding string `yaml:"encoding"`
	// Scope of the subscriptions: dataCenter or global, which hears other data centres, too. Default global, as SOFARPC has it.
	Scope string `yaml:"scope"`
	// Zone in which this client says it is. Default the server's.
	Zone string `yaml:"zone"`
	// DataCenter that is asked for session servers. Default the server's.
	DataCenter string `yaml:"dataCenter"`
	// InstanceIDs are the tenants to read. Default all.
	InstanceIDs []string `yaml:"instanceIds"`
	// Groups of data to read. Default SOFA, which is SOFARPC's.
	Groups []string `yaml:"groups"`
	// Application under which the registry lists our subscriptions. Default isthmus.
	Application string `yaml:"application"`
	// AccessKey authenticates, together with a secret key from a file or an environment variable. Default: nobody.
	AccessKey     string `yaml:"accessKey"`
	SecretKeyFile string `yaml:"secretKeyFile"`
	SecretKeyEnv  string `yaml:"secretKeyEnv"`
	// SessionHTTPPort and DataHTTPPort are where the servers that the registry names answer HTTP. Default 9603 and 9622.
	SessionHTTPPort uint16 `yaml:"sessionHTTPPort"`
	DataHTTPPort    uint16 `yaml:"dataHTTPPort"`
	// Interval at which the registry is asked whether there are new data ids. It grows to MaxInterval while nothing changes. Default
	// 1 s and 5 s.
	Interval    time.Duration `yaml:"interval"`
	MaxInterval time.Duration `yaml:"maxInterval"`
	// ConsumersInterval is the pause between two rounds in which every data id's subscribers are read although their number is the
	// same. Default 30 s, and never less than four times what the last round took.
	ConsumersInterval time.Duration `yaml:"consumersInterval"`
	// NoConsumers leaves subscribers unread.
	NoConsumers bool `yaml:"noConsumers"`
	// Settle is how long after a connection was made a provider that was known before and is not pushed is believed to be there: after
	// a server's restart providers take some time to register again. Default 15 s.
	Settle time.Duration `yaml:"settle"`
	// Heartbeat is the pause after which a silent connection is tested. Default 10 s.
	Heartbeat time.Duration `yaml:"heartbeat"`
	// ConnectTimeout bounds one attempt to connect to one server, and one question to its pages. Default 3 s.
	ConnectTimeout time.Duration `yaml:"connectTimeout"`
	// MaxPush is the length in bytes of the longest push that is read. Default 32 MiB.
	MaxPush int `yaml:"maxPush"`
	// Concurrency bounds the questions under way at a time. Default 8.
	Concurrency int `yaml:"concurrency"`
	// LabelParameters are parameters of providers' data that become labels, beside tag, env and label.*.
	LabelParameters []string `yaml:"labelParameters"`
}

const (
	encodingHessian  = "hessian"
	encodingProtobuf = "protobuf"
)

func (s *Settings) secretKey() adapters.Secret {
	return adapters.Secret{File: s.SecretKeyFile, Env: s.SecretKeyEnv}
}

func (s *Settings) encoding() session.Encoding {
	if s.Encoding == encodingProtobuf {
		return wire.Protobuf
	}
	return wire.Hessian
}

// Validate implements adapters.Validator.
func (s *Settings) Validate() adapters.Faults {
	var f adapters.Faults
	if len(s.Servers) == 0 {
		f.Add("servers", "is missing: session servers' HTTP addresses, host:port")
	}
	for i, server := range s.Servers {
		if _, err := httpAddress(server); err != nil {
			f.Add(fmt.Sprintf("servers[%d]", i), "%q: %v", server, err)
		}
	}
	if s.Encoding != "" && s.Encoding != encodingHessian && s.Encoding != encodingProtobuf {
		f.Add("encoding", "must be hessian or protobuf, is %q", s.Encoding)
	}
	if s.Scope != "" && s.Scope != string(wire.ScopeDataCenter) && s.Scope != string(wire.ScopeGlobal) {
		f.Add("scope", "must be dataCenter or global, is %q", s.Scope)
	}
	for _, word := range []struct{ field, value string }{{"zone", s.Zone}, {"dataCenter", s.DataCenter}, {"application", s.Application}, {"accessKey", s.AccessKey}} {
		if word.value != "" && !registryurl.Word(word.value) {
			f.Add(word.field, "%.100q has spaces or characters that cannot be printed, or is too long", word.value)
		}
	}
	for _, list := range []struct {
		field  string
		values []string
	}{{"instanceIds", s.InstanceIDs}, {"groups", s.Groups}} {
		for i, v := range list.values {
			if v == "" {
				f.Add(fmt.Sprintf("%s[%d]", list.field, i), "is empty")
			}
		}
	}
	secret := s.secretKey()
	secret.Check(&f, "secretKeyFile", "secretKeyEnv")
	if (s.AccessKey == "") != secret.IsZero() {
		f.Add("accessKey", "accessKey and secretKeyFile or secretKeyEnv belong together")
	}
	duration := func(field string, d, low, high time.Duration) {
		if d != 0 && (d < low || d > high) {
			f.Add(field, "must be from %v to %v", low, high)
		}
	}
	duration("interval", s.Interval, 10*time.Millisecond, time.Hour)
	duration("maxInterval", s.MaxInterval, 10*time.Millisecond, time.Hour)
	if s.Interval != 0 && s.MaxInterval != 0 && s.MaxInterval < s.Interval {
		f.Add("maxInterval", "must not be less than interval")
	}
	duration("consumersInterval", s.ConsumersInterval, 10*time.Millisecond, 24*time.Hour)
	duration("settle", s.Settle, time.Millisecond, time.Hour)
	duration("heartbeat", s.Heartbeat, 100*time.Millisecond, 80*time.Second)
	duration("connectTimeout", s.ConnectTimeout, 100*time.Millisecond, time.Minute)
	if s.MaxPush != 0 && (s.MaxPush < 4<<10 || s.MaxPush > 256<<20) {
		f.Add("maxPush", "must be from 4096 to %d", 256<<20)
	}
	if s.Concurrency < 0 || s.Concurrency > 1000 {
		f.Add("concurrency", "must be from 1 to 1000")
	}
	for i, l := range s.LabelParameters {
		if l == "" || registryurl.Secret(l) {
			f.Add(fmt.Sprintf("labelParameters[%d]", i), "%q cannot be a label", l)
		}
	}
	return f
}

// withDefaults returns the settings with every default filled in.
func (s Settings) withDefaults() Settings {
	or := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	or(&s.Interval, time.Second)
	or(&s.MaxInterval, max(5*time.Second, s.Interval))
	s.Interval = min(s.Interval, s.MaxInterval)
	or(&s.ConsumersInterval, 30*time.Second)
	or(&s.Settle, 15*time.Second)
	or(&s.Heartbeat, 10*time.Second)
	or(&s.ConnectTimeout, 3*time.Second)
	if s.Scope == "" {
		s.Scope = string(wire.ScopeGlobal)
	}
	if s.Application == "" {
		s.Application = "isthmus"
	}
	if len(s.Groups) == 0 {
		s.Groups = []string{defaultGroup}
	}
	if s.SessionHTTPPort == 0 {
		s.SessionHTTPPort = session.DefaultHTTPPort
	}
	if s.DataHTTPPort == 0 {
		s.DataHTTPPort = 9622
	}
	if s.MaxPush == 0 {
		s.MaxPush = 32 << 20
	}
	if s.Concurrency == 0 {
		s.Concurrency = 8
	}
	for i, server := range s.Servers {
		if address, err := httpAddress(server); err == nil {
			s.Servers[i] = address
		}
	}
	return s
}

// query is what goes along with the question for the session servers.
func (s *Settings) query() url.Values {
	q := url.Values{}
	if s.Zone != "" {
		q.Set("zone", s.Zone)
	}
	if s.DataCenter != "" {
		q.Set("dataCenter", s.DataCenter)
	}
	return q
}

// httpAddress returns host:port with the default port filled in.
func httpAddress(s string) (string, error) {
	if strings.ContainsAny(s, "/?") {
		return "", errors.New("must be host:port")
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = strings.Trim(s, "[]"), strconv.Itoa(session.DefaultHTTPPort)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", errors.New("the port must be from 1 to 65535")
	}
	if net.ParseIP(host) == nil && !registryurl.HostName(host) {
		return "", errors.New("the host is neither an IP address nor a host name")
	}
	return net.JoinHostPort(host, port), nil
}
