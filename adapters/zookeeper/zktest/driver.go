package zktest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/adapterstest"
	"github.com/isthmus-mesh/isthmus/adapters/model"
)

// Peer is a ZooKeeper that the conformance suite can be run against: a Server of this package or a real one behind Dial.
type Peer interface {
	Address() string          // host:port for the adapter
	Create(path string) error // with parents; nothing if it is there
	Delete(path string) error // nothing if it is not there
	Disconnect()              // the adapter's connections are cut and new ones refused
	Connect()                 // until now
}

// Fake starts a Server as a Peer.
func Fake(t testing.TB) Peer { return fake{Start(t)} }

type fake struct{ *Server }

func (f fake) Create(path string) error { f.Server.Create(path, nil); return nil }
func (f fake) Delete(path string) error { f.Server.Delete(path); return nil }
func (f fake) Disconnect()              { f.Refuse(true) }
func (f fake) Connect()                 { f.Refuse(false) }

// Suite returns the conformance suite for a layout, "dubbo" or "sofarpc", of the adapter. start starts or finds the peer, which
// may hold anything outside of the folder that each scenario makes for itself.
func Suite(kind adapters.Kind, layout string, start func(t *testing.T) Peer) adapterstest.Suite {
	s := adapterstest.Suite{
		Start: func(t *testing.T) adapterstest.Registry {
			return &driver{kind: kind, layout: layout, peer: start(t), chroot: fmt.Sprintf("/isthmus-%d", time.Now().UnixNano())}
		},
		Framework: "dubbo", Protocol: model.ProtocolDubbo, Consumers: true, Connection: true, Within: 20 * time.Second,
	}
	if layout == "sofarpc" {
		s.Framework, s.Protocol = "sofa", model.ProtocolBolt
	}
	return s
}

// driver puts providers and consumers into a tree as applications do.
type driver struct {
	kind   adapters.Kind
	layout string
	peer   Peer
	chroot string
}

func (d *driver) Discoverer(t testing.TB) adapters.Discoverer {
	t.Helper()
	s, err := adapters.ParseSettings(fmt.Appendf(nil, "servers: ['%s']\nlayouts: [%s]\nchroot: %s\nsessionTimeout: 4s\n", d.peer.Address(), d.layout, d.chroot))
	if err != nil {
		t.Fatal(err)
	}
	disc, err := d.kind.New(s.Decode, adapters.Options{Name: "zk"})
	if err != nil {
		t.Fatal(err)
	}
	return disc
}

// ProviderPath returns the path at which an application registers p in a layout, below the chroot.
func ProviderPath(layout string, p adapterstest.Provider) string {
	weight := ""
	if p.Weight > 0 {
		weight = fmt.Sprintf("&weight=%d", p.Weight)
	}
	if layout == "sofarpc" {
		u := fmt.Sprintf("bolt://%s:%d?version=%s&accepts=100000&appName=%s%s&language=java&interface=%s&timeout=0&serialization=hessian2&protocol=bolt&dynamic=true&startTime=1795394548445&uniqueId=%s&rpcVer=51302",
			p.Address, p.Port, p.Version, p.Application, weight, p.Interface, p.Group)
		return "/sofa-rpc/" + p.Interface + "/providers/" + url.QueryEscape(u)
	}
	group := ""
	if p.Group != "" {
		group = "&group=" + p.Group
	}
	u := fmt.Sprintf("dubbo://%s:%d/%s?anyhost=true&application=%s&deprecated=false&dubbo=2.0.2&dynamic=true&generic=false%s&interface=%s&methods=echo,sayHello&pid=7%s&release=3.3.6&side=provider&timestamp=1795392872897&version=%s",
		p.Address, p.Port, p.Interface, p.Application, group, p.Interface, weight, p.Version)
	return "/dubbo/" + p.Interface + "/providers/" + url.QueryEscape(u)
}

// ConsumerPath returns the path at which an application registers c in a layout, below the chroot.
func ConsumerPath(layout string, c adapterstest.Consumer) string {
	if layout == "sofarpc" {
		u := fmt.Sprintf("bolt://%s?version=%s&uniqueId=%s&pid=7&timeout=5000&generic=false&interface=%s&appName=%s&serialization=hessian2", c.Address, c.Version, c.Group, c.Interface, c.Application)
		return "/sofa-rpc/" + c.Interface + "/consumers/" + url.QueryEscape(u)
	}
	u := fmt.Sprintf("consumer://%s/%s?application=%s&category=consumers&check=false&group=%s&interface=%s&side=consumer&timestamp=1795392878054&version=%s",
		c.Address, c.Interface, c.Application, c.Group, c.Interface, c.Version)
	return "/dubbo/" + c.Interface + "/consumers/" + url.QueryEscape(u)
}

func (d *driver) do(t testing.TB, f func(string) error, path string) {
	t.Helper()
	if err := f(d.chroot + path); err != nil {
		t.Fatal(err)
	}
}

func (d *driver) AddProvider(t testing.TB, p adapterstest.Provider) {
	d.do(t, d.peer.Create, ProviderPath(d.layout, p))
}

func (d *driver) RemoveProvider(t testing.TB, p adapterstest.Provider) {
	d.do(t, d.peer.Delete, ProviderPath(d.layout, p))
}

func (d *driver) AddConsumer(t testing.TB, c adapterstest.Consumer) {
	d.do(t, d.peer.Create, ConsumerPath(d.layout, c))
}

func (d *driver) RemoveConsumer(t testing.TB, c adapterstest.Consumer) {
	d.do(t, d.peer.Delete, ConsumerPath(d.layout, c))
}

func (d *driver) Disconnect(testing.TB) { d.peer.Disconnect() }
func (d *driver) Connect(testing.TB)    { d.peer.Connect() }

func malformed(layout string, p adapterstest.Provider) string {
	path := ProviderPath(layout, p)
	return path[:strings.LastIndexByte(path, '/')+1] + "dubbo%3A%2F%2F192.0.2.1%3Aport%2F"
}

func (d *driver) AddMalformed(t testing.TB, p adapterstest.Provider) string {
	d.do(t, d.peer.Create, malformed(d.layout, p))
	return malformed(d.layout, p)
}

func (d *driver) RemoveMalformed(t testing.TB, p adapterstest.Provider) {
	d.do(t, d.peer.Delete, malformed(d.layout, p))
}

// Dial makes a Peer of a real ZooKeeper at address (host:port). It fills the tree over a connection of its own; the adapter is led
// through a proxy that can be cut. Everything ends with the test; what was created stays, below /isthmus-*.
func Dial(t testing.TB, address string) Peer {
	t.Helper()
	conn, events, err := zk.Connect([]string{address}, 30*time.Second, zk.WithLogInfo(false), zk.WithLogger(silent{}))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &realPeer{conn: conn, target: address, listener: l, open: map[net.Conn]bool{}}
	r.wg.Go(r.accept)
	t.Cleanup(func() {
		conn.Close()
		for range events {
		}
		l.Close()
		r.Disconnect()
		r.wg.Wait()
	})
	return r
}

type silent struct{}

func (silent) Printf(string, ...any) {}

type realPeer struct {
	conn     *zk.Conn
	target   string
	listener net.Listener
	wg       sync.WaitGroup

	mu   sync.Mutex
	cut  bool
	open map[net.Conn]bool
}

func (r *realPeer) Address() string { return r.listener.Addr().String() }

func (r *realPeer) accept() {
	for {
		in, err := r.listener.Accept()
		if err != nil {
			return
		}
		r.mu.Lock()
		cut := r.cut
		r.mu.Unlock()
		if cut {
			in.Close()
			continue
		}
		out, err := net.Dial("tcp", r.target)
		if err != nil {
			in.Close()
			continue
		}
		r.mu.Lock()
		r.open[in], r.open[out] = true, true
		if r.cut {
			in.Close()
			out.Close()
		}
		r.mu.Unlock()
		pipe := func(dst, src net.Conn) {
			io.Copy(dst, src) //nolint:errcheck // either end may go at any time
			dst.Close()
			src.Close()
			r.mu.Lock()
			delete(r.open, src)
			r.mu.Unlock()
		}
		r.wg.Go(func() { pipe(out, in) })
		r.wg.Go(func() { pipe(in, out) })
	}
}

func (r *realPeer) Create(path string) error {
	if err := r.createOne(path); !errors.Is(err, zk.ErrNoNode) {
		return err
	}
	for i := 1; i < len(path); i++ {
		if path[i] == '/' {
			if err := r.createOne(path[:i]); err != nil {
				return err
			}
		}
	}
	return r.createOne(path)
}

func (r *realPeer) createOne(path string) error {
	_, err := r.conn.Create(path, nil, 0, zk.WorldACL(zk.PermAll))
	if errors.Is(err, zk.ErrNodeExists) {
		return nil
	}
	return err
}

func (r *realPeer) Delete(path string) error {
	if err := r.conn.Delete(path, -1); !errors.Is(err, zk.ErrNoNode) {
		return err
	}
	return nil
}

func (r *realPeer) Disconnect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut = true
	for c := range r.open {
		c.Close()
	}
}

func (r *realPeer) Connect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut = false
}
