// Package zookeeper_test holds the adapter to real ZooKeepers: the conformance suite that its fake passes too, accounts and
// what they may read, an ensemble that loses a member.
package zookeeper_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/adapterstest"
	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/adapters/zookeeper"
	"github.com/isthmus-mesh/isthmus/adapters/zookeeper/zktest"
	"github.com/isthmus-mesh/isthmus/e2e/machine"
	"github.com/isthmus-mesh/isthmus/e2e/mesh"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
	"github.com/isthmus-mesh/isthmus/e2e/rig"
)

func TestMain(m *testing.M) { os.Exit(rig.Main(m, peer.ZooKeeper)) }

const within = 90 * time.Second

// start starts a ZooKeeper and returns its address as the test's own process dials it.
func start(t *testing.T) (*mesh.Mesh, string) {
	t.Helper()
	m := rig.Mesh(t)
	if err := m.StartZooKeeper(t.Context()); err != nil {
		t.Fatal(err)
	}
	x, err := m.Machine(mesh.ZooKeeperMachine)
	if err != nil {
		t.Fatal(err)
	}
	return m, fmt.Sprintf("%s:%d", x.Address(), mesh.ZooKeeperPort)
}

func TestConformance(t *testing.T) {
	_, address := start(t)
	for _, layout := range []string{"dubbo", "sofarpc"} {
		t.Run(layout, func(t *testing.T) {
			adapterstest.Run(t, zktest.Suite(zookeeper.Kind, layout, func(t *testing.T) zktest.Peer { return zktest.Dial(t, address) }))
		})
	}
}

// discoverer makes a Discoverer from YAML.
func discoverer(t *testing.T, format string, args ...any) adapters.Discoverer {
	t.Helper()
	s, err := adapters.ParseSettings(fmt.Appendf(nil, format, args...))
	if err != nil {
		t.Fatal(err)
	}
	d, err := zookeeper.Kind.New(s.Decode, adapters.Options{Name: "zk"})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

var suite = adapterstest.Suite{Framework: "dubbo", Protocol: model.ProtocolDubbo}

// client is a connection of our own, to write with.
func client(t *testing.T, address string) *zk.Conn {
	t.Helper()
	c, events, err := zk.Connect([]string{address}, 10*time.Second, zk.WithLogInfo(false), zk.WithLogger(silent{}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		for range events {
		}
	})
	return c
}

// create makes a node and those above it, which have the same access list.
func create(c *zk.Conn, path string, acl []zk.ACL) error {
	for i := 1; i <= len(path); i++ {
		if i < len(path) && path[i] != '/' {
			continue
		}
		if _, err := c.Create(path[:i], nil, 0, acl); err != nil && !errors.Is(err, zk.ErrNodeExists) {
			return fmt.Errorf("create %s: %w", path[:i], err)
		}
	}
	return nil
}

// silent drops the client library's log: it is not the client that is tested.
type silent struct{}

func (silent) Printf(string, ...any) {}

// TestDigest: nodes that only an account may read are read with it, and are an error that says so without it.
func TestDigest(t *testing.T) {
	_, address := start(t)
	c := client(t, address)
	const user, password = "isthmus", "a:b c"
	if err := c.AddAuth("digest", []byte(user+":"+password)); err != nil {
		t.Fatal(err)
	}
	p := adapterstest.P("demo.Secret", 1)
	if err := create(c, zktest.ProviderPath("dubbo", p), zk.DigestACL(zk.PermAll, user, password)); err != nil {
		t.Fatal(err)
	}

	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	v := adapterstest.Watch(t, discoverer(t, "{servers: ['%s'], layouts: [dubbo], username: %s, passwordFile: %s}", address, user, file), within)
	v.Synced()
	v.Await(suite, p)
	v.Stop()

	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	out := make(chan adapters.Update)
	done := make(chan error, 1)
	go func() { done <- discoverer(t, "{servers: ['%s'], layouts: [dubbo]}", address).Run(ctx, out) }()
	for {
		select {
		case u := <-out:
			if u.Synced {
				t.Fatal("a tree that may not be read counts as read")
			}
			if u.Err != nil && strings.Contains(u.Err.Error(), "/dubbo") {
				cancel()
				<-done
				return
			}
		case err := <-done:
			if err == nil || !strings.Contains(err.Error(), "/dubbo") {
				t.Fatalf("without the account: %v; want an error that names the node", err)
			}
			return
		}
	}
}

// TestEnsemble: of three servers one after the other is stopped and started again; nothing is lost, and changes made
// meanwhile are seen.
func TestEnsemble(t *testing.T) {
	m := rig.Mesh(t)
	members, err := m.StartEnsemble(t.Context(), 3)
	if err != nil {
		t.Fatal(err)
	}
	var addresses []string
	for _, member := range members {
		addresses = append(addresses, member.Address)
	}
	p := adapterstest.P("demo.Greet", 1)
	// write does a write through whichever member serves, when one does: without a leader, none will for a moment.
	write := func(what string, do func(c *zk.Conn) error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		c, events, err := zk.Connect(addresses, 10*time.Second, zk.WithLogInfo(false), zk.WithLogger(silent{}))
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			c.Close()
			for range events {
			}
		}()
		if err := machine.Until(ctx, what, func(context.Context) error { return do(c) }); err != nil {
			t.Fatal(err)
		}
	}
	add := func(p adapterstest.Provider) {
		t.Helper()
		write("the ensemble to take a provider", func(c *zk.Conn) error { return create(c, zktest.ProviderPath("dubbo", p), zk.WorldACL(zk.PermAll)) })
	}
	add(p)
	v := adapterstest.Watch(t, discoverer(t, "{servers: ['%s'], layouts: [dubbo], sessionTimeout: 4s}", strings.Join(addresses, "', '")), 2*within)
	v.Synced()
	v.Await(suite, p)
	have := []adapterstest.Provider{p}
	for i, member := range members {
		if err := member.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		next := adapterstest.P("demo.Greet", i+2)
		add(next)
		have = append(have, next)
		v.Await(suite, have...)
		if err := member.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	write("the ensemble to let go of a provider", func(c *zk.Conn) error { return c.Delete(zktest.ProviderPath("dubbo", p), -1) })
	v.Await(suite, have[1:]...)
}

// TestSessionExpiry: a client that is cut off for longer than its session keeps what it knows, and hears what changed once it is
// back; the registry has forgotten its watches by then.
func TestSessionExpiry(t *testing.T) {
	_, address := start(t)
	link := zktest.Dial(t, address)
	p, q := adapterstest.P("demo.Greet", 1), adapterstest.P("demo.Greet", 2)
	create := func(p adapterstest.Provider) {
		t.Helper()
		if err := link.Create(zktest.ProviderPath("dubbo", p)); err != nil {
			t.Fatal(err)
		}
	}
	create(p)
	v := adapterstest.Watch(t, discoverer(t, "{servers: ['%s'], layouts: [dubbo], sessionTimeout: 4s}", link.Address()), 2*within)
	v.Synced()
	v.Await(suite, p)
	if n := sessions(t, address); n != 2 { // the adapter's and our own
		t.Fatalf("there are %d sessions, not 2: the test counts the wrong thing", n)
	}
	link.Disconnect()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	if err := machine.Until(ctx, "the session to expire", func(context.Context) error {
		if n := sessions(t, address); n > 1 {
			return fmt.Errorf("there are %d", n)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	create(q)
	if v.Err() == nil {
		t.Error("the adapter does not say that it cannot hear its registry")
	}
	v.Await(suite, p)
	link.Connect()
	v.Await(suite, p, q)
	if err := link.Delete(zktest.ProviderPath("dubbo", p)); err != nil {
		t.Fatal(err)
	}
	v.Await(suite, q)
}

// sessionID is a session in the server's answer to dump: each has a line in its list of expiry times.
var sessionID = regexp.MustCompile(`(?m)^\t?\s*0x[0-9a-f]+$`)

// sessions returns how many sessions the server has.
func sessions(t *testing.T, address string) int {
	t.Helper()
	text, err := mesh.ZooKeeperWord(t.Context(), address, "dump")
	if err != nil {
		t.Fatal(err)
	}
	return len(sessionID.FindAllString(text, -1))
}
