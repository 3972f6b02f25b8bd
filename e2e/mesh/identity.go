package mesh

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"
)

// TrustDomain is what the sidecars' identities begin with.
const TrustDomain = "cluster.local"

// The names by which istiod's configuration has sidecars ask for secrets, and the cluster that they ask (istio.io/istio pkg/model,
// SDSDefaultResourceName, SDSRootResourceName, SDSClusterName).
const (
	secretDefault = "default"
	secretRoot    = "ROOTCA"
	secretCluster = "sds-grpc"
)

// Identity is the SPIFFE id of the sidecars of an application: its service account is called like it.
func Identity(app string) string {
	return "spiffe://" + TrustDomain + "/ns/" + Namespace + "/sa/" + app
}

// Secure gives the mesh an authority: sidecars that are started afterwards have certificates and take mutual TLS beside plaintext, as
// by Istio's default. It must come before StartIstiod.
func (m *Mesh) Secure() error {
	a, err := newAuthority()
	m.authority = a
	return err
}

// authority is what istiod's CA is in a cluster.
type authority struct {
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
	root        []byte // PEM
}

// validity is how long certificates are good for; no mesh of ours lives as long.
const validity = 24 * time.Hour

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("mesh: authority: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{TrustDomain}},
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(validity),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("mesh: authority: %w", err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("mesh: authority: %w", err)
	}
	return &authority{key: key, certificate: certificate, root: encodePEM("CERTIFICATE", der)}, nil
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// issue makes a key and a certificate whose only name is a SPIFFE id, in PEM, as istiod's CA does (istio.io/istio security/pkg/pki/util,
// GenCertTemplateFromCSR).
func (a *authority) issue(id string) (chain, key []byte, err error) {
	uri, err := url.Parse(id)
	if err != nil {
		return nil, nil, fmt.Errorf("mesh: certificate: %w", err)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("mesh: certificate: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, fmt.Errorf("mesh: certificate: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: a.certificate.NotBefore, NotAfter: a.certificate.NotAfter, URIs: []*url.URL{uri},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, private.Public(), a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("mesh: certificate: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, fmt.Errorf("mesh: certificate: %w", err)
	}
	return encodePEM("CERTIFICATE", der), encodePEM("PRIVATE KEY", pkcs8), nil
}

// agent stands in for the part of istio-agent that hands a sidecar its certificate: a secret discovery service on a Unix socket.
type agent struct {
	secret.UnimplementedSecretDiscoveryServiceServer
	secrets map[string]*anypb.Any // by name
	path    string                // of the socket, on the outer file system
}

// startAgent gives the sidecar on a machine the identity of an application. It ends with the mesh.
func (m *Mesh) startAgent(name, app string) (*agent, error) {
	chain, key, err := m.authority.issue(Identity(app))
	if err != nil {
		return nil, err
	}
	a := &agent{secrets: map[string]*anypb.Any{}, path: filepath.Join(m.folder, name, "sds")}
	for _, s := range []*tls.Secret{
		{Name: secretDefault, Type: &tls.Secret_TlsCertificate{TlsCertificate: &tls.TlsCertificate{CertificateChain: inline(chain), PrivateKey: inline(key)}}},
		{Name: secretRoot, Type: &tls.Secret_ValidationContext{ValidationContext: &tls.CertificateValidationContext{TrustedCa: inline(m.authority.root)}}},
	} {
		if a.secrets[s.Name], err = anypb.New(s); err != nil {
			return nil, fmt.Errorf("mesh: secret: %w", err)
		}
	}
	if err := os.Remove(a.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("mesh: %w", err) // of a sidecar that was there before
	}
	l, err := net.Listen("unix", a.path)
	if err != nil {
		return nil, fmt.Errorf("mesh: %w", err)
	}
	// The proxy is another user.
	if err := os.Chmod(a.path, 0o666); err != nil {
		return nil, fmt.Errorf("mesh: %w", err)
	}
	server := grpc.NewServer()
	secret.RegisterSecretDiscoveryServiceServer(server, a)
	m.agents = append(m.agents, server)
	go func() { _ = server.Serve(l) }()
	return a, nil
}

func inline(b []byte) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b}}
}

// StreamSecrets answers what is asked for by name. An acknowledgement is a request for the same again, and has no answer: secrets do
// not change.
func (a *agent) StreamSecrets(stream secret.SecretDiscoveryService_StreamSecretsServer) error {
	for n := 1; ; {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		if r.GetResponseNonce() != "" {
			continue
		}
		answer := &discovery.DiscoveryResponse{TypeUrl: r.GetTypeUrl(), VersionInfo: "1", Nonce: strconv.Itoa(n)}
		for _, name := range r.GetResourceNames() {
			if s := a.secrets[name]; s != nil {
				answer.Resources = append(answer.Resources, s)
			}
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
		n++
	}
}

// cluster is what a sidecar asks for its secrets.
func (a *agent) cluster(inside string) fields {
	return fields{
		"name": secretCluster, "type": "STATIC", "connect_timeout": "1s",
		"typed_extension_protocol_options": fields{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": fields{
			"@type":                "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
			"explicit_http_config": fields{"http2_protocol_options": fields{}},
		}},
		"load_assignment": fields{"cluster_name": secretCluster, "endpoints": []any{fields{"lb_endpoints": []any{
			fields{"endpoint": fields{"address": fields{"pipe": fields{"path": inside}}}}}}}},
	}
}
