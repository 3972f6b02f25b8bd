package app

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	mcpapi "istio.io/api/mcp/v1alpha1"

	"github.com/isthmus-mesh/isthmus/mcp-server/config"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// logs collects what is logged.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

// program is a running mcp-server.
type program struct {
	t        *testing.T
	dir      string
	mcp, api string
	xds      string // "" where there is none
	client   *client.Client
	http     *http.Client
	logs     *logs
	stop     func()
}

const services = `apiVersion: adapters.isthmus.io/v1alpha1
kind: ServiceList
services:
- framework: dubbo
  interface: demo.%s
  endpoints: [{address: 10.0.0.1, port: 20880, application: demo}]
`

const configuration = `apiVersion: isthmus.io/v1alpha1
kind: MCPServer
spec:
  registries:
    - name: files
      kind: file
      settings: {path: DIR/services.yaml}
  mcp: {address: "127.0.0.1:0"}
  api: {address: "127.0.0.1:0"}
  filter: {url: "file:///isthmus.wasm"}
  rules: {path: rules}
  state: {dir: state}
  holdOff: {quiet: 5ms, max: 50ms}
`

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	// As an editor does: whoever reads sees the old or the new.
	temporary := path + "~"
	if err := os.WriteFile(temporary, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temporary, path); err != nil {
		t.Fatal(err)
	}
}

func (p *program) write(name, text string) {
	p.t.Helper()
	write(p.t, filepath.Join(p.dir, name), strings.ReplaceAll(text, "DIR", p.dir))
}

// start runs mcp-server with DIR/isthmus.yaml until the test ends or stop is called.
func start(t *testing.T, dir string) *program {
	t.Helper()
	p := &program{t: t, dir: dir, logs: new(logs), http: &http.Client{Transport: &http.Transport{}}}
	ctx, cancel := context.WithCancel(context.Background())
	listening, done := make(chan [2]net.Addr, 1), make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{ConfigPath: filepath.Join(dir, "isthmus.yaml"), Log: slog.New(slog.NewTextHandler(p.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
			ListeningXDS: func(xds net.Addr) { p.xds = xds.String() }, Listening: func(mcp, api net.Addr) { listening <- [2]net.Addr{mcp, api} }})
	}()
	p.stop = sync.OnceFunc(func() {
		p.http.CloseIdleConnections()
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Error("Run does not end")
		}
	})
	t.Cleanup(p.stop)
	select {
	case a := <-listening:
		p.mcp, p.api = a[0].String(), a[1].String()
	case err := <-done:
		done <- err
		t.Fatalf("it ended: %v", err)
	}
	c, err := client.New(p.api, client.Options{HTTP: p.http})
	if err != nil {
		t.Fatal(err)
	}
	p.client = c
	return p
}

func (p *program) until(what string, ok func() bool) {
	p.t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			p.logs.mu.Lock()
			defer p.logs.mu.Unlock()
			p.t.Fatalf("waiting for %s\n%s", what, p.logs.text.String())
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (p *program) get(path string) (int, string) {
	p.t.Helper()
	answer, err := p.http.Get("http://" + p.api + path)
	if err != nil {
		p.t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return answer.StatusCode, string(body)
}

func (p *program) problems() []api.Problem {
	p.t.Helper()
	list, err := p.client.Problems(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	return list.Items
}

func (p *program) problem(code string) bool {
	return slices.ContainsFunc(p.problems(), func(q api.Problem) bool { return q.Code == code })
}

// istiod asks for ServiceEntries and TrafficExtensions and keeps the names of what it gets.
type istiod struct {
	mu    sync.Mutex
	names map[string][]string
	texts map[string]string // of all resources of a type, as they come
}

// holds tells whether some resource of a type has text in it.
func (i *istiod) holds(typ, text string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return strings.Contains(i.texts[typ], text)
}

func (i *istiod) has(typ string, names ...string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	have, ok := i.names[typ]
	return ok && slices.Equal(have, names)
}

const (
	serviceEntry     = "networking.istio.io/v1/ServiceEntry"
	trafficExtension = "extensions.istio.io/v1alpha1/TrafficExtension"
	envoyFilter      = "networking.istio.io/v1alpha3/EnvoyFilter"
	virtualService   = "networking.istio.io/v1/VirtualService"
	destinationRule  = "networking.istio.io/v1/DestinationRule"
)

func (p *program) istiod() *istiod {
	p.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+p.mcp, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	i := &istiod{names: map[string][]string{}, texts: map[string]string{}}
	done := make(chan struct{})
	p.t.Cleanup(func() { cancel(); conn.Close(); <-done })
	for _, typ := range []string{serviceEntry, trafficExtension, envoyFilter, virtualService, destinationRule} {
		if err := stream.Send(&discovery.DiscoveryRequest{TypeUrl: typ, ResponseNonce: "none"}); err != nil {
			p.t.Fatal(err)
		}
	}
	go func() {
		defer close(done)
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			names, text := []string{}, ""
			for _, a := range r.Resources {
				text += string(a.Value)
				var m mcpapi.Resource
				if err := a.UnmarshalTo(&m); err != nil {
					p.t.Error(err)
					return
				}
				names = append(names, m.Metadata.Name)
			}
			i.mu.Lock()
			i.names[r.TypeUrl], i.texts[r.TypeUrl] = names, text
			i.mu.Unlock()
			stream.Send(&discovery.DiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce, VersionInfo: r.VersionInfo})
		}
	}()
	return i
}

// From a file to istiod and the API, with everything changing on the way.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/isthmus.yaml", strings.ReplaceAll(configuration, "DIR", dir))
	write(t, dir+"/services.yaml", fmt.Sprintf(services, "One"))
	p := start(t, dir)
	i := p.istiod()
	p.until("the first state", func() bool {
		return i.has(serviceEntry, "default/demo.one.dubbo", "default/port-20880") && i.has(trafficExtension, "istio-system/isthmus")
	})
	if code, body := p.get("/readyz"); code != 200 {
		t.Errorf("ready: %d %s", code, body)
	}
	p.until("the service in the API", func() bool {
		s, err := p.client.Service(t.Context(), "demo.one.dubbo.isthmus")
		return err == nil && s.ID == "dubbo/demo.One" && s.Active == 1 && s.Hosts[0].Address != ""
	})

	p.write("services.yaml", fmt.Sprintf(services, "Two"))
	p.until("a change in the registry", func() bool { return i.has(serviceEntry, "default/demo.two.dubbo", "default/port-20880") })

	generation := func() string {
		r, err := p.client.Rules(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(len(r.Items), " ", r.Generation)
	}
	none := generation()
	p.write("rules/a.yaml", "apiVersion: governance.isthmus.io/v1alpha1\nkind: ThrottleRule\nmetadata: {name: r}\nspec: {threshold: 1}\n")
	p.until("a rule", func() bool { return strings.HasPrefix(generation(), "1 ") && generation()[2:] != none[2:] })
	one := generation()
	p.write("rules/a.yaml", "apiVersion: governance.isthmus.io/v1alpha1\nkind: ThrottleRule\nmetadata: {name: r}\nspec: {threshold: many}\n")
	p.until("the bad rule's problem", func() bool { return p.problem("InvalidRule") })
	if r, err := p.client.Rules(t.Context()); err != nil || generation() != one || !r.Items[0].Kept {
		t.Errorf("a bad rule: %+v, %s, %v", r, generation(), err)
	}
	if err := os.Remove(filepath.Join(dir, "rules/a.yaml")); err != nil {
		t.Fatal(err)
	}
	p.until("the rule's removal", func() bool { return generation() == none && !p.problem("InvalidRule") })

	// A bad configuration leaves the running one, and says what is wrong and where.
	p.write("isthmus.yaml", strings.Replace(configuration, "rules:", "rulez:", 1))
	p.until("the bad configuration's problem", func() bool { return p.problem("InvalidConfiguration") })
	for _, q := range p.problems() {
		if q.Code == "InvalidConfiguration" && (q.Stage != "config" || q.Place != filepath.Join(dir, "isthmus.yaml")+":11" || !strings.HasPrefix(q.Message, "spec.rulez: unknown field")) {
			t.Errorf("problem %+v", q)
		}
	}
	// So does one whose registries the Manager would refuse, and one that is gone.
	p.write("isthmus.yaml", strings.Replace(configuration, "kind: file", "kind: pigeon", 1))
	p.until("the unknown kind's problem", func() bool {
		return slices.ContainsFunc(p.problems(), func(q api.Problem) bool { return strings.Contains(q.Message, "pigeon") })
	})
	if err := os.Remove(filepath.Join(dir, "isthmus.yaml")); err != nil {
		t.Fatal(err)
	}
	p.until("the missing file's problem", func() bool {
		return slices.ContainsFunc(p.problems(), func(q api.Problem) bool { return strings.Contains(q.Message, "no such file") })
	})
	if !i.has(serviceEntry, "default/demo.two.dubbo", "default/port-20880") {
		t.Error("a bad configuration changed what istiod has")
	}

	// A good one is taken over while it runs: another suffix, another registry that cannot be heard, an address that waits for a restart.
	p.write("isthmus.yaml", strings.NewReplacer("  mcp:", "    - {name: more, kind: file, settings: {path: DIR/more.yaml}}\n  mesh: {hostSuffix: legacy, namespace: vm}\n  mcp:", "quiet: 5ms", "quiet: 6ms").Replace(configuration))
	p.until("the new configuration", func() bool { return i.has(serviceEntry, "vm/demo.two.dubbo", "vm/port-20880") })
	p.until("its service in the API", func() bool {
		s, err := p.client.Service(t.Context(), "demo.two.dubbo.legacy")
		return err == nil && s.ID == "dubbo/demo.Two"
	})
	p.until("the notice", func() bool { return p.problem("RestartNeeded") && !p.problem("InvalidConfiguration") })
	p.write("more.yaml", fmt.Sprintf(services, "Three"))
	p.until("the new registry's service", func() bool { return i.has(serviceEntry, "vm/demo.three.dubbo", "vm/demo.two.dubbo", "vm/port-20880") })

	p.until("the API's own numbers", func() bool {
		v, err := p.client.Version(t.Context())
		return err == nil && v.Ready && v.Istiods == 1 && v.Services == 2 && v.Resources == 6
	})
	code, body := p.get("/metrics")
	for _, want := range []string{`isthmus_services 2`, `isthmus_source_state{kind="file",registry="files",state="synced"} 1`, `isthmus_pipeline_snapshot_to_apply_duration_seconds_count`,
		`isthmus_mcp_clients 1`, `isthmus_config_reloads_total{result="error"} 3`, `isthmus_endpoints{state="carried"} 2`} {
		if code != 200 || !strings.Contains(body, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	if problems, err := promlint.New(strings.NewReader(body)).Lint(); err != nil {
		t.Error(err)
	} else {
		for _, q := range problems {
			if strings.HasPrefix(q.Metric, "isthmus_") {
				t.Errorf("metric %s: %s", q.Metric, q.Text)
			}
		}
	}
}

// Before each registry has said everything nothing is served: what is missing would be deleted at istiod. Its saved word counts.
func TestStartWithARegistryDown(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/isthmus.yaml", strings.ReplaceAll(configuration, "DIR", dir))
	p := start(t, dir)
	i := p.istiod()
	p.until("the istiod", func() bool { v, err := p.client.Version(t.Context()); return err == nil && v.Istiods == 1 })
	p.until("the reason", func() bool {
		code, body := p.get("/readyz")
		return code == 503 && strings.Contains(body, `waiting for registries ["files"]`)
	})
	if code, _ := p.get("/healthz"); code != 200 {
		t.Errorf("health: %d", code)
	}
	if i.has(serviceEntry) {
		t.Error("istiod was told that there is nothing")
	}
	write(t, dir+"/services.yaml", fmt.Sprintf(services, "One"))
	p.until("the registry", func() bool { return i.has(serviceEntry, "default/demo.one.dubbo", "default/port-20880") })
	p.stop()

	if err := os.Remove(dir + "/services.yaml"); err != nil {
		t.Fatal(err)
	}
	again := start(t, dir)
	j := again.istiod()
	again.until("the saved word", func() bool { return j.has(serviceEntry, "default/demo.one.dubbo", "default/port-20880") })
	again.until("the stale source", func() bool {
		sources, err := again.client.Sources(t.Context())
		return err == nil && sources.Items[0].State == "stale" && sources.Items[0].Error != ""
	})
}

func TestRunRefuses(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, c := range map[string]struct{ from, to, want string }{
		"a fault":           {"kind: MCPServer", "kind: Server", `isthmus.yaml:2: kind: must be MCPServer, is "Server"`},
		"no certificate":    {`mcp: {address: "127.0.0.1:0"}`, `mcp: {address: "127.0.0.1:0", tls: {certFile: /none, keyFile: /none}}`, "/none"},
		"an address in use": {`api: {address: "127.0.0.1:0"}`, `api: {address: "` + taken.Addr().String() + `"}`, "address already in use"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "isthmus.yaml")
			write(t, path, strings.Replace(configuration, c.from, c.to, 1))
			if err := Run(t.Context(), Options{ConfigPath: path}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
	if err := Run(t.Context(), Options{ConfigPath: "/none/isthmus.yaml"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/isthmus.yaml", configuration)
	if err := Check(dir + "/isthmus.yaml"); err != nil {
		t.Error(err)
	}
	write(t, dir+"/rules/a.yaml", "a: 1\n")
	if err := Check(dir + "/isthmus.yaml"); err == nil || !strings.Contains(err.Error(), "rules/a.yaml:1: ") {
		t.Errorf("a bad rule: %v", err)
	}
	write(t, dir+"/isthmus.yaml", "a: 1\n")
	if _, ok := errors.AsType[*config.Error](Check(dir + "/isthmus.yaml")); !ok {
		t.Error("a bad configuration is none")
	}
}

func TestRuleFiles(t *testing.T) {
	dir := t.TempDir()
	if got := ruleFiles(filepath.Join(dir, "none")); got != nil {
		t.Errorf("no folder: %v", got)
	}
	for _, name := range []string{"a.yaml", "b.yml", "c.json", "d.txt", ".e.yaml", "sub.yaml/x"} {
		write(t, filepath.Join(dir, name), "# "+name)
	}
	if err := os.Symlink(filepath.Join(dir, "nowhere"), filepath.Join(dir, "dangling.yaml")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "large.yaml"), strings.Repeat("#", maxRuleBytes+1))
	var got []string
	for _, f := range ruleFiles(dir) {
		s := filepath.Base(f.Name)
		if f.Err != nil {
			s += "!"
		}
		got = append(got, s)
	}
	if want := []string{"a.yaml", "b.yml", "c.json", "large.yaml!"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := ruleFiles(filepath.Join(dir, "d.txt")); len(got) != 1 || string(got[0].Text) != "# d.txt" {
		t.Errorf("one file: %v", got)
	}
}

// certificate writes a self-signed certificate and its key.
func certificate(t *testing.T, dir, name string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, name+".crt"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	write(t, filepath.Join(dir, name+".key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk})))
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// TLS files are read again when they change, and what cannot be read leaves what was. Clients must have a certificate where one is
// asked for.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	first := certificate(t, dir, "server")
	certificate(t, dir, "client")
	files := config.TLS{CertFile: dir + "/server.crt", KeyFile: dir + "/server.key", ClientCAFile: dir + "/client.crt"}
	k := &keys{t: files}
	if err := k.load(); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	server, err := serverTLS(files, log, "http/1.1")
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	own, err := tls.LoadX509KeyPair(dir+"/client.crt", dir+"/client.key")
	if err != nil {
		t.Fatal(err)
	}
	shake := func(trust *x509.Certificate, certs ...tls.Certificate) error {
		t.Helper()
		accepted := make(chan error, 1)
		go func() {
			c, err := l.Accept()
			if err != nil {
				accepted <- err
				return
			}
			defer c.Close()
			accepted <- c.(*tls.Conn).Handshake()
		}()
		pool := x509.NewCertPool()
		pool.AddCert(trust)
		c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: pool, Certificates: certs})
		if err == nil {
			c.Close()
		}
		return errors.Join(err, <-accepted)
	}
	if err := shake(first, own); err != nil {
		t.Error(err)
	}
	if err := shake(first); err == nil {
		t.Error("a client without a certificate gets in")
	}

	second := certificate(t, dir, "server")
	when := time.Now().Add(time.Minute) // file systems tell times apart only so far
	for _, f := range []string{files.CertFile, files.KeyFile} {
		if err := os.Chtimes(f, when, when); err != nil {
			t.Fatal(err)
		}
	}
	if got := k.current(log, nil); !bytes.Equal(got.Certificates[0].Certificate[0], second.Raw) {
		t.Error("a new certificate is not read")
	}
	write(t, files.KeyFile, "no key")
	k.looked = time.Time{}
	if got := k.current(log, nil); !bytes.Equal(got.Certificates[0].Certificate[0], second.Raw) {
		t.Error("a faulty file takes the former one's place")
	}
	if none, err := serverTLS(config.TLS{}, log); none != nil || err != nil {
		t.Errorf("no TLS: %v %v", none, err)
	}
	if _, err := serverTLS(config.TLS{CertFile: dir + "/client.crt", KeyFile: dir + "/client.key", ClientCAFile: dir + "/client.key"}, log); err == nil {
		t.Error("a file without certificates is an authority")
	}
}
