package zookeeper

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/registryurl"
)

// Settings of a ZooKeeper registry.
type Settings struct {
	// Servers of the ensemble, host:port; the port is 2181 where none is given. Names are looked up at each connection.
	Servers []string `yaml:"servers"`
	// Chroot is a path that every root below lies under. Default none.
	Chroot string `yaml:"chroot"`
	// Layouts are the trees to read: dubbo, sofarpc, applications. Default all.
	Layouts []string `yaml:"layouts"`
	// DubboRoots are the roots of Dubbo's trees: its registry's group. Default /dubbo.
	DubboRoots []string `yaml:"dubboRoots"`
	// SOFARoots are the roots of SOFARPC's trees. Default /sofa-rpc.
	SOFARoots []string `yaml:"sofaRoots"`
	// ApplicationRoots are the roots of the trees of applications and their instances, which Dubbo (register-mode instance or
	// all) and Spring Cloud share. Default /services.
	ApplicationRoots []string `yaml:"applicationRoots"`
	// MetadataRoot is where Dubbo's metadata centre keeps what the instances' services are. Default /dubbo/metadata.
	MetadataRoot string `yaml:"metadataRoot"`
	// Username authenticates by digest, together with a password from a file or an environment variable. Default: nobody.
	Username     string `yaml:"username"`
	PasswordFile string `yaml:"passwordFile"`
	PasswordEnv  string `yaml:"passwordEnv"`
	// TLS encrypts the connections (the ensemble's secureClientPort).
	TLS TLS `yaml:"tls"`
	// SessionTimeout is asked of the server; a dead connection is noticed after two thirds of it. Default 15 s.
	SessionTimeout time.Duration `yaml:"sessionTimeout"`
	// ConnectTimeout bounds one attempt to connect to one server. Default 3 s.
	ConnectTimeout time.Duration `yaml:"connectTimeout"`
	// Concurrency bounds the reads under way at a time. Default 32.
	Concurrency int `yaml:"concurrency"`
	// LabelParameters are parameters of providers' URLs that become labels, beside dubbo.tag, env and label.*.
	LabelParameters []string `yaml:"labelParameters"`
}

// TLS settings; the zero value is plain text.
type TLS struct {
	Enabled    bool   `yaml:"enabled"`
	CAFile     string `yaml:"caFile"`     // PEM; default the system's
	CertFile   string `yaml:"certFile"`   // PEM; for servers that ask for a certificate
	KeyFile    string `yaml:"keyFile"`    // PEM
	ServerName string `yaml:"serverName"` // expected in the server's certificate; default the host of the server
}

// The layouts.
const (
	layoutDubbo        = "dubbo"
	layoutSOFARPC      = "sofarpc"
	layoutApplications = "applications"
)

func (s *Settings) password() adapters.Secret {
	return adapters.Secret{File: s.PasswordFile, Env: s.PasswordEnv}
}

// Validate implements adapters.Validator.
func (s *Settings) Validate() adapters.Faults {
	var f adapters.Faults
	if len(s.Servers) == 0 {
		f.Add("servers", "is missing: the ensemble's servers, host:port")
	}
	for i, server := range s.Servers {
		if _, err := serverAddress(server); err != nil {
			f.Add(fmt.Sprintf("servers[%d]", i), "%q: %v", server, err)
		}
	}
	if s.Chroot != "" {
		checkPath(&f, "chroot", s.Chroot)
	}
	for i, l := range s.Layouts {
		if layouts[l] == nil {
			f.Add(fmt.Sprintf("layouts[%d]", i), "must be dubbo, sofarpc or applications, is %q", l)
		}
	}
	seen := map[string]string{}
	for _, roots := range []struct {
		field string
		paths []string
	}{{"dubboRoots", s.DubboRoots}, {"sofaRoots", s.SOFARoots}, {"applicationRoots", s.ApplicationRoots}} {
		for i, p := range roots.paths {
			at := fmt.Sprintf("%s[%d]", roots.field, i)
			checkPath(&f, at, p)
			if first, ok := seen[p]; ok {
				f.Add(at, "%s is already %s", p, first)
			}
			seen[p] = at
		}
	}
	if s.MetadataRoot != "" {
		checkPath(&f, "metadataRoot", s.MetadataRoot)
	}
	secret := s.password()
	secret.Check(&f, "passwordFile", "passwordEnv")
	if (s.Username == "") != secret.IsZero() {
		f.Add("username", "username and passwordFile or passwordEnv belong together")
	}
	if strings.Contains(s.Username, ":") {
		f.Add("username", "must not contain a colon")
	}
	duration := func(field string, d, low, high time.Duration) {
		if d != 0 && (d < low || d > high) {
			f.Add(field, "must be from %v to %v", low, high)
		}
	}
	duration("sessionTimeout", s.SessionTimeout, time.Second, 10*time.Minute)
	duration("connectTimeout", s.ConnectTimeout, 100*time.Millisecond, time.Minute)
	if s.Concurrency < 0 || s.Concurrency > 1000 {
		f.Add("concurrency", "must be from 1 to 1000")
	}
	if (s.TLS.CertFile == "") != (s.TLS.KeyFile == "") {
		f.Add("tls", "certFile and keyFile belong together")
	}
	if !s.TLS.Enabled && s.TLS != (TLS{}) {
		f.Add("tls.enabled", "must be true if anything of tls is set")
	}
	for i, l := range s.LabelParameters {
		if l == "" || registryurl.Secret(l) {
			f.Add(fmt.Sprintf("labelParameters[%d]", i), "%q cannot be a label", l)
		}
	}
	return f
}

func checkPath(f *adapters.Faults, at, p string) {
	if !strings.HasPrefix(p, "/") || p == "/" || strings.HasSuffix(p, "/") || strings.Contains(p, "//") || slices.ContainsFunc(strings.Split(p, "/"), func(s string) bool { return s == "." || s == ".." }) {
		f.Add(at, "%q is not an absolute path such as /dubbo", p)
	}
}

// serverAddress returns host:port with the default port filled in.
func serverAddress(s string) (string, error) {
	if strings.ContainsAny(s, "/?") {
		return "", errors.New("must be host:port; a path goes into chroot")
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = strings.Trim(s, "[]"), "2181"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", errors.New("the port must be from 1 to 65535")
	}
	if net.ParseIP(host) == nil && !registryurl.HostName(host) {
		return "", errors.New("the host is neither an IP address nor a host name")
	}
	return net.JoinHostPort(host, port), nil
}

// tlsConfig reads the files that the settings name. It returns nil for plain text.
func (s *Settings) tlsConfig() (*tls.Config, error) {
	if !s.TLS.Enabled {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: s.TLS.ServerName}
	if s.TLS.CAFile != "" {
		pem, err := os.ReadFile(s.TLS.CAFile)
		if err != nil {
			return nil, fmt.Errorf("zookeeper: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("zookeeper: %s holds no certificate", s.TLS.CAFile)
		}
	}
	if s.TLS.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(s.TLS.CertFile, s.TLS.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("zookeeper: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}
