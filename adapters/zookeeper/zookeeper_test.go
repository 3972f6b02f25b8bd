package zookeeper

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/adapterstest"
	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/adapters/zookeeper/zktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	for _, layout := range []string{layoutDubbo, layoutSOFARPC} {
		t.Run(layout, func(t *testing.T) {
			adapterstest.Run(t, zktest.Suite(Kind, layout, func(t *testing.T) zktest.Peer { return zktest.Fake(t) }))
		})
	}
}

const within = 20 * time.Second

// newDiscoverer makes a Discoverer from YAML; the servers are those given.
func newDiscoverer(t *testing.T, settings string, servers ...string) adapters.Discoverer {
	t.Helper()
	s, err := adapters.ParseSettings(fmt.Appendf(nil, "servers: ['%s']\n%s", strings.Join(servers, "', '"), settings))
	if err != nil {
		t.Fatal(err)
	}
	d, err := Kind.New(s.Decode, adapters.Options{Name: "zk"})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

var dubboSuite = adapterstest.Suite{Framework: "dubbo", Protocol: model.ProtocolDubbo}

func provide(s *zktest.Server, ps ...adapterstest.Provider) {
	for _, p := range ps {
		s.Create(zktest.ProviderPath(layoutDubbo, p), nil)
	}
}

func withdraw(s *zktest.Server, ps ...adapterstest.Provider) {
	for _, p := range ps {
		s.Delete(zktest.ProviderPath(layoutDubbo, p))
	}
}

func problem(v *adapterstest.View, code, place string, want bool) func() string {
	return func() string {
		got := slices.ContainsFunc(v.Problems(), func(p model.Problem) bool { return p.Code == code && p.Place == place })
		if got != want {
			return fmt.Sprintf("problem %s at %s: %v, want %v; there are %+v", code, place, got, want, v.Problems())
		}
		return ""
	}
}

func TestSessionExpires(t *testing.T) {
	t.Parallel()
	s := zktest.Start(t)
	a, b, c := adapterstest.P("demo.A", 1), adapterstest.P("demo.B", 2), adapterstest.P("demo.C", 3)
	provide(s, a, b)
	v := adapterstest.Watch(t, newDiscoverer(t, "", s.Address()), within)
	v.Synced()
	v.Await(dubboSuite, a, b)
	for range 2 {
		s.Refuse(true)
		withdraw(s, b)
		provide(s, c)
		s.Expire()
		s.Refuse(false)
		v.Await(dubboSuite, a, c)
		provide(s, b) // the watches are back
		v.Await(dubboSuite, a, b, c)
		withdraw(s, c)
		v.Await(dubboSuite, a, b)
	}
}

func TestInterfacesComeAndGo(t *testing.T) {
	s := zktest.Start(t)
	v := adapterstest.Watch(t, newDiscoverer(t, "layouts: [dubbo]", s.Address()), within)
	v.Synced()
	v.Until(problem(v, "RootMissing", "/dubbo", true))
	a := adapterstest.P("demo.A", 1)
	for range 20 {
		provide(s, a)
		v.Await(dubboSuite, a)
		s.Delete("/dubbo") // with everything
		v.Await(dubboSuite)
	}
	provide(s, a)
	v.Await(dubboSuite, a)
	v.Until(problem(v, "RootMissing", "/dubbo", false))
	// The nodes that are no interfaces are left alone.
	s.Create("/dubbo/config/dubbo/x", nil)
	s.Create("/dubbo/metadata/demo.A/1.0.0/provider/x", nil)
	s.Create("/dubbo/mapping/demo.A", nil)
	s.Create("/dubbo/demo.A/routers/x", nil)
	s.Create("/dubbo/demo%ZZ/providers/x", nil)
	v.Until(problem(v, "MalformedName", "/dubbo/demo%ZZ", true))
	v.Await(dubboSuite, a)
	if p := v.Problems(); len(p) != 1 {
		t.Errorf("problems: %+v", p)
	}
}

func TestRootsChrootAndLayouts(t *testing.T) {
	s := zktest.Start(t)
	a, b, c, d := adapterstest.P("demo.A", 1), adapterstest.P("demo.B", 2), adapterstest.P("demo.C", 3), adapterstest.P("demo.D", 4)
	at := func(root string, p adapterstest.Provider) {
		s.Create(strings.Replace(zktest.ProviderPath(layoutDubbo, p), "/dubbo", root, 1), nil)
	}
	at("/apps/dubbo", a)
	at("/apps/blue/group", b)
	at("/dubbo", c)
	s.Create("/apps"+zktest.ProviderPath(layoutSOFARPC, d), nil)
	v := adapterstest.Watch(t, newDiscoverer(t, "chroot: /apps\ndubboRoots: [/dubbo, /blue/group]\nlayouts: [dubbo]", s.Address()), within)
	v.Synced()
	v.Await(dubboSuite, a, b)
	both := adapterstest.Watch(t, newDiscoverer(t, "chroot: /apps", s.Address()), within)
	both.Synced()
	both.Until(func() string {
		got := both.Services()
		if len(got) != 2 || len(got[a.Key("dubbo")].Endpoints) != 1 || len(got[d.Key("sofa")].Endpoints) != 1 {
			return fmt.Sprint(got)
		}
		return ""
	})
}

func TestDigest(t *testing.T) {
	s := zktest.Start(t)
	s.RequireLogin("reader:open sesame", false)
	a := adapterstest.P("demo.A", 1)
	provide(s, a)
	for _, path := range []string{"/dubbo", "/dubbo/demo.A", "/dubbo/demo.A/providers"} {
		s.Deny(path, true)
	}
	t.Setenv("ZK_PASSWORD", "open sesame")
	v := adapterstest.Watch(t, newDiscoverer(t, "username: reader\npasswordEnv: ZK_PASSWORD", s.Address()), within)
	v.Synced()
	v.Await(dubboSuite, a)
	s.Disconnect() // also on the next connection
	b := adapterstest.P("demo.A", 2)
	provide(s, b)
	v.Await(dubboSuite, a, b)
	s.Expire() // and in the next session
	withdraw(s, b)
	v.Await(dubboSuite, a)

	t.Setenv("ZK_PASSWORD", "wrong")
	d := newDiscoverer(t, "username: reader\npasswordEnv: ZK_PASSWORD", s.Address())
	if err := d.Run(t.Context(), make(chan adapters.Update)); err == nil || !strings.Contains(err.Error(), "/dubbo") || strings.Contains(err.Error(), "wrong") {
		t.Errorf("error %v, want one that names the root and not the password", err)
	}
	s.RequireLogin("reader:open sesame", true)
	if err := d.Run(t.Context(), make(chan adapters.Update)); !errors.Is(err, zk.ErrAuthFailed) {
		t.Errorf("error %v, want %v", err, zk.ErrAuthFailed)
	}
	os.Unsetenv("ZK_PASSWORD")
	if err := d.Run(t.Context(), make(chan adapters.Update)); err == nil || !strings.Contains(err.Error(), "ZK_PASSWORD") {
		t.Errorf("error %v, want one that names the variable", err)
	}
}

func TestDeniedNodes(t *testing.T) {
	s := zktest.Start(t)
	a, b := adapterstest.P("demo.A", 1), adapterstest.P("demo.B", 2)
	provide(s, a, b)
	s.Deny("/dubbo/demo.A/providers", true)
	s.Deny("/dubbo/demo.B/consumers", true)
	s.Create("/dubbo/demo.B/consumers", nil)
	state := t.TempDir()
	out := make(chan adapters.Update)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	d := newDiscoverer(t, "", s.Address())
	go func() { done <- d.Run(ctx, out) }()
	u := <-out
	if !u.Synced || !slices.Equal(u.Held, []string{"/dubbo/demo.A"}) {
		t.Errorf("update %+v", u)
	}
	places := map[string]string{}
	for _, g := range u.Groups {
		for _, p := range g.Problems {
			places[p.Place] = g.Source + " " + p.Code
		}
	}
	want := map[string]string{"/dubbo/demo.A/providers": "/dubbo/demo.A#denied NotReadable", "/dubbo/demo.B/consumers": "/dubbo/demo.B NotReadable"}
	if fmt.Sprint(places) != fmt.Sprint(want) {
		t.Errorf("problems %v, want %v", places, want)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}

	// With a Manager: what was read while it was permitted stays, also over a restart of both.
	s.Deny("/dubbo/demo.A/providers", false)
	settings, err := adapters.ParseSettings(fmt.Appendf(nil, "servers: ['%s']", s.Address()))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		m := adapters.NewManager(adapters.ManagerOptions{Kinds: adapters.Kinds{Kind}, StateDir: state})
		if err := m.Set(t.Context(), []adapters.Registry{{Name: "zk", Kind: "zookeeper", Settings: settings}}); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithTimeout(t.Context(), within)
		defer stop()
		snapshots := m.Subscribe(ctx)
		go func() { done <- m.Run(ctx) }()
		for snap := range snapshots {
			if snap.Sources[0].State == model.StateSynced {
				if len(snap.Services) != 2 || len(snap.Problems) != i+1 {
					t.Errorf("round %d: services %v, problems %v", i, snap.Services, snap.Problems)
				}
				stop()
			}
		}
		if err := <-done; err != nil || context.Cause(ctx) != context.Canceled {
			t.Fatal(err, context.Cause(ctx))
		}
		s.Deny("/dubbo/demo.A/providers", true)
	}
}

func TestHungServer(t *testing.T) {
	t.Parallel()
	hung, good := zktest.Start(t), zktest.Start(t)
	hung.Hang(true)
	a := adapterstest.P("demo.A", 1)
	provide(good, a)
	v := adapterstest.Watch(t, newDiscoverer(t, "connectTimeout: 200ms", hung.Address(), good.Address()), within)
	v.Synced()
	v.Await(dubboSuite, a)

	alone := newDiscoverer(t, "connectTimeout: 200ms", hung.Address())
	w := adapterstest.Watch(t, alone, within)
	before := hung.Peers()
	for late := time.Now().Add(within); hung.Peers() < before+2; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal("it does not try again")
		}
	}
	w.Stop()
}

// TestGarbage holds the client to what no server should send: it must neither panic nor take memory, and reads again.
func TestGarbage(t *testing.T) {
	header := make([]byte, 16)
	list := func(count uint32) []byte {
		return append(binary.BigEndian.AppendUint32(slices.Clone(header), count), make([]byte, 80)...)
	}
	for name, frame := range map[string][]byte{
		"short header":      header[:8],
		"no body":           header,
		"huge list":         list(0xffffffff),
		"large list":        list(1 << 30),
		"list without stat": list(20),
		"long name":         binary.BigEndian.AppendUint32(list(1)[:20], 0x7fffffff),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := zktest.Start(t)
			a := adapterstest.P("demo.A", 1)
			provide(s, a)
			s.Garbage(frame)
			v := adapterstest.Watch(t, newDiscoverer(t, "", s.Address()), within)
			v.Synced()
			v.Await(dubboSuite, a)
		})
	}
}

// TestNoStorm holds 10,000 interfaces: what it costs to read them, to lose and regain the connection, and to see one change.
func TestNoStorm(t *testing.T) {
	const n = 10_000
	s := zktest.Start(t)
	all := make([]adapterstest.Provider, n)
	for i := range all {
		all[i] = adapterstest.P(fmt.Sprintf("demo.S%05d", i), i%250+1)
		s.Create("/dubbo/"+all[i].Interface+"/consumers", nil)
		s.Create("/dubbo/"+all[i].Interface+"/configurators", nil)
		s.Create("/dubbo/"+all[i].Interface+"/routers", nil)
	}
	provide(s, all...)
	v := adapterstest.Watch(t, newDiscoverer(t, "layouts: [dubbo]", s.Address()), time.Minute)
	v.Synced()
	v.Await(dubboSuite, all...)
	reads := func() int {
		return s.Count(zktest.OpGetChildren2) + s.Count(zktest.OpGetData) + s.Count(zktest.OpExists)
	}
	if got := reads(); got != 1+4*n {
		t.Errorf("%d reads, want %d: the root, and of each interface itself and three categories", got, 1+4*n)
	}
	before := reads()
	s.Disconnect()
	extra := adapterstest.P("demo.S00007", 251)
	provide(s, extra)
	v.Await(dubboSuite, append(all, extra)...)
	if got := reads() - before; got != 1 {
		t.Errorf("%d reads after a reconnection with one change, want 1", got)
	}
	before = reads()
	withdraw(s, extra)
	v.Await(dubboSuite, all...)
	if got := reads() - before; got != 1 {
		t.Errorf("%d reads for one change, want 1", got)
	}
}

func TestConcurrencyIsBounded(t *testing.T) {
	s := zktest.Start(t)
	var all []adapterstest.Provider
	for i := range 100 {
		all = append(all, adapterstest.P(fmt.Sprintf("demo.S%d", i), 1))
	}
	provide(s, all...)
	s.Delay(2 * time.Millisecond)
	v := adapterstest.Watch(t, newDiscoverer(t, "concurrency: 8", s.Address()), within)
	v.Synced()
	v.Await(dubboSuite, all...)
	if got := s.Peak(); got > 8 || got < 2 {
		t.Errorf("%d reads under way at a time, want at most 8 and more than one", got)
	}
}

// TestNothingIsLostUnderFire changes the tree while connections break and sessions expire.
func TestNothingIsLostUnderFire(t *testing.T) {
	t.Parallel()
	s := zktest.Start(t)
	s.Delay(200 * time.Microsecond)
	v := adapterstest.Watch(t, newDiscoverer(t, "", s.Address()), within)
	v.Synced()
	there := map[adapterstest.Provider]bool{}
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 3000 {
		p := adapterstest.P(fmt.Sprintf("demo.S%d", rnd.IntN(20)), rnd.IntN(5)+1)
		if there[p] {
			withdraw(s, p)
			delete(there, p)
		} else {
			provide(s, p)
			there[p] = true
		}
		switch {
		case i%1000 == 500:
			s.Expire()
		case i%300 == 100:
			s.Disconnect()
		case i%50 == 0:
			iface := fmt.Sprintf("demo.S%d", rnd.IntN(20))
			s.Delete("/dubbo/" + iface)
			maps.DeleteFunc(there, func(p adapterstest.Provider, _ bool) bool { return p.Interface == iface })
		case i%7 == 0:
			time.Sleep(time.Millisecond) // let the reader in between
		}
	}
	v.Await(dubboSuite, slices.Collect(maps.Keys(there))...)
}

func TestTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca, serverPair := certificates(t, dir)
	s := zktest.StartTLS(t, &tls.Config{Certificates: []tls.Certificate{serverPair}, ClientCAs: ca, ClientAuth: tls.RequireAndVerifyClientCert})
	a := adapterstest.P("demo.A", 1)
	provide(s, a)
	v := adapterstest.Watch(t, newDiscoverer(t, fmt.Sprintf("tls: {enabled: true, caFile: %s/ca.pem, certFile: %s/cert.pem, keyFile: %s/key.pem}", dir, dir, dir), s.Address()), within)
	v.Synced()
	v.Await(dubboSuite, a)
	s.Disconnect()
	provide(s, adapterstest.P("demo.A", 2))
	v.Await(dubboSuite, a, adapterstest.P("demo.A", 2))

	w := adapterstest.Watch(t, newDiscoverer(t, fmt.Sprintf("tls: {enabled: true, caFile: %s/ca.pem, serverName: other.example.org}", dir), s.Address()), within)
	w.Until(func() string {
		if err := w.Err(); err == nil || !strings.Contains(err.Error(), "other.example.org") {
			return fmt.Sprintf("error %v", err)
		}
		return ""
	})
}

// certificates writes ca.pem, cert.pem and key.pem; the certificate is for 127.0.0.1, on either side.
func certificates(t *testing.T, dir string) (*x509.CertPool, tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(crand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	for name, b := range map[string][]byte{"ca.pem": cert, "cert.pem": cert, "key.pem": keyPEM} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(cert)
	pair, err := tls.X509KeyPair(cert, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return pool, pair
}

func TestSettings(t *testing.T) {
	s, err := adapters.ParseSettings([]byte(`servers:
- zk-1
- zk-2:0
- zk-3:2181/dubbo
- '[2001:db8::1]:2181'
chroot: apps/
layouts: [dubbo, spring]
dubboRoots: [/dubbo, /dubbo, /a/../b]
username: reader
passwordFile: /run/secret
passwordEnv: ZK_PASSWORD
password: open sesame
sessionTimeout: 10ms
concurrency: -1
tls:
  certFile: /run/cert.pem
`))
	if err != nil {
		t.Fatal(err)
	}
	_, err = Kind.New(s.Decode, adapters.Options{})
	var got []string
	for _, f := range adapters.AsFaults(err) {
		got = append(got, fmt.Sprintf("%d %s", f.Line, f.Path))
	}
	want := []string{"3 servers[1]", "4 servers[2]", "6 chroot", "7 layouts[1]", "8 dubboRoots[1]", "8 dubboRoots[2]", "11 passwordEnv", "12 password", "13 sessionTimeout", "14 concurrency", "15 tls", "15 tls.enabled"}
	if !slices.Equal(got, want) {
		t.Errorf("faults:\n%v\nat %q\nwant %q", err, got, want)
	}
	if strings.Contains(fmt.Sprint(err), "sesame") {
		t.Error("a fault tells the password")
	}
	example, err := adapters.ParseSettings([]byte(Kind.Example))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Kind.New(example.Decode, adapters.Options{}); err != nil {
		t.Errorf("the example: %v", err)
	}
}
