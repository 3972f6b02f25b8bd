// Package rig is for tests that need a mesh of real peers: it puts a test binary into namespaces of its own, with the peers
// that it asks for. A package that uses it has
//
//	func TestMain(m *testing.M) { os.Exit(rig.Main(m, peer.ZooKeeper, peer.Dubbo3)) }
//
// and in its tests rig.Mesh(t), or rig.Host(t) for machines without one.
package rig

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/e2e/machine"
	"github.com/isthmus-mesh/isthmus/e2e/mesh"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
)

// FilterPeers are what a mesh with sidecars needs beside registries and applications.
var FilterPeers = []peer.Peer{peer.Envoy, peer.Istiod, peer.MCPServer, peer.Filter}

var (
	host  *machine.Host // nil with -short
	peers peer.Set
)

// Main runs a package's tests inside namespaces, with the peers obtained before. With -short it runs them as they are: tests
// that call Host or Mesh are skipped. It returns the exit code.
func Main(m *testing.M, need ...peer.Peer) int {
	flag.Parse()
	if testing.Short() {
		return m.Run()
	}
	h, code, err := enter(need)
	if err != nil {
		fmt.Fprintf(os.Stderr, "rig: %v\n", err)
		return 1
	}
	if h == nil {
		return code
	}
	host = h
	if peers, err = peer.Parse(h.State()); err != nil {
		fmt.Fprintf(os.Stderr, "rig: %v\n", err)
		return 1
	}
	return m.Run() // what is left running ends with the namespaces
}

func enter(need []peer.Peer) (*machine.Host, int, error) {
	if machine.Inside() {
		return machine.Enter(machine.Outside{})
	}
	if err := peer.CheckNetworkTools(); err != nil {
		return nil, 0, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	set, err := peer.Obtain(ctx, peer.Lines(os.Stderr), need...)
	if err != nil {
		return nil, 0, err
	}
	return machine.Enter(machine.Outside{State: set.JSON()})
}

// Host returns what machines are made on.
func Host(t testing.TB) *machine.Host {
	t.Helper()
	if testing.Short() {
		t.Skip("needs namespaces and real peers: not with -short")
	}
	if host == nil {
		t.Fatal("rig: TestMain did not call rig.Main")
	}
	return host
}

// Peers returns what Main has obtained.
func Peers(t testing.TB) peer.Set {
	t.Helper()
	Host(t)
	return peers
}

// Mesh returns a mesh without machines, which is taken down at the end of the test. If the test fails, the logs stay, and
// the test says where.
func Mesh(t testing.TB) *mesh.Mesh {
	t.Helper()
	folder, err := os.MkdirTemp("", "isthmus-e2e-"+strings.NewReplacer("/", "-").Replace(t.Name())+"-")
	if err != nil {
		t.Fatal(err)
	}
	// The users of the machines' processes must get in.
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	m, err := mesh.New(Host(t), Peers(t), folder)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if err := m.Close(ctx); err != nil {
			t.Errorf("take the mesh down: %v", err)
		}
		if t.Failed() {
			t.Logf("logs are in %s", folder)
			return
		}
		_ = os.RemoveAll(folder)
	})
	return m
}

// Until waits until condition returns nil, at most for within. If it does not, the test ends with what it was waiting for and what condition said last.
func Until(t testing.TB, within time.Duration, what string, condition func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), within, fmt.Errorf("not within %s", within))
	defer cancel()
	if err := machine.Until(ctx, what, condition); err != nil {
		t.Fatal(err)
	}
}
