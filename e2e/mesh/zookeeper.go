package mesh

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/e2e/machine"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
)

// The ports between the members of an ensemble.
const (
	zooKeeperPeerPort     = 2888
	zooKeeperElectionPort = 3888
)

// zooKeeperConfig is what all members' configurations have. The four-letter words are for tests: srvr says whether it serves, dump
// lists the sessions.
const zooKeeperConfig = `tickTime=2000
initLimit=10
syncLimit=5
dataDir=data
clientPort=%d
admin.enableServer=false
4lw.commands.whitelist=srvr,dump
`

// StartZooKeeper starts ZooKeeper, or starts it again with what it held, and waits until it serves.
func (m *Mesh) StartZooKeeper(ctx context.Context) error {
	p, err := m.startZooKeeper(ctx, ZooKeeperMachine, "")
	if err == nil {
		m.ZooKeeper = p
		err = m.untilServing(ctx, ZooKeeperMachine, p, "standalone")
	}
	return err
}

// startZooKeeper starts a server on a machine.
func (m *Mesh) startZooKeeper(ctx context.Context, name, members string) (*machine.Process, error) {
	conf, err := m.write(name, "conf", "zoo.cfg", fmt.Sprintf(zooKeeperConfig, ZooKeeperPort)+members)
	if err != nil {
		return nil, err
	}
	return m.StartJava(name, JVM{Peer: peer.ZooKeeper, Name: "zookeeper",
		Main: "org.apache.zookeeper.server.quorum.QuorumPeerMain", Args: []string{conf}})
}

// untilServing waits until a server serves in one of the modes.
func (m *Mesh) untilServing(ctx context.Context, name string, p *machine.Process, modes ...string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	address := fmt.Sprintf("%s:%d", m.machines[name].Address(), ZooKeeperPort)
	return p.Until(ctx, "ZooKeeper to serve", func(ctx context.Context) error {
		answer, err := ZooKeeperWord(ctx, address, "srvr")
		if err != nil {
			return err
		}
		for _, mode := range modes {
			if strings.Contains(answer, "Mode: "+mode) {
				return nil
			}
		}
		return fmt.Errorf("it says %q", answer)
	})
}

// ZooKeeperWord asks the server at an address one of its four-letter words.
func ZooKeeperWord(ctx context.Context, address, word string) (string, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	// What it accepts before it serves it may leave without an answer.
	if err := c.SetDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, word); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(io.LimitReader(c, maxPage))
	return string(answer), err
}

// A Member is one server of an ensemble.
type Member struct {
	Address string // ip:port for clients

	mesh    *Mesh
	name    string
	members string // the lines of the configuration that name all members
	process *machine.Process
}

// StartEnsemble starts n ZooKeepers that are one registry, each on a machine of its own, and waits until they serve.
func (m *Mesh) StartEnsemble(ctx context.Context, n int) ([]*Member, error) {
	var all []*Member
	var lines strings.Builder
	for i := range n {
		name := fmt.Sprintf("%s-%d", ZooKeeperMachine, i+1)
		x, err := m.Machine(name)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&lines, "server.%d=%s:%d:%d\n", i+1, x.Address(), zooKeeperPeerPort, zooKeeperElectionPort)
		all = append(all, &Member{Address: fmt.Sprintf("%s:%d", x.Address(), ZooKeeperPort), mesh: m, name: name})
		// Its number among the members, in the folder that it is started in; its user writes there.
		data := filepath.Join(m.folder, name, "zookeeper", "data")
		if err := os.MkdirAll(data, 0o755); err != nil {
			return nil, fmt.Errorf("mesh: %w", err)
		}
		if err := os.Chmod(data, 0o777); err != nil {
			return nil, fmt.Errorf("mesh: %w", err)
		}
		if err := os.WriteFile(filepath.Join(data, "myid"), fmt.Appendln(nil, i+1), 0o644); err != nil {
			return nil, fmt.Errorf("mesh: %w", err)
		}
	}
	for _, x := range all {
		x.members = lines.String()
		var err error
		if x.process, err = m.startZooKeeper(ctx, x.name, x.members); err != nil {
			return nil, err
		}
	}
	for _, x := range all {
		if err := x.serving(ctx); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func (x *Member) serving(ctx context.Context) error {
	return x.mesh.untilServing(ctx, x.name, x.process, "leader", "follower")
}

// Start starts a stopped member with what it held, and waits until it serves.
func (x *Member) Start(ctx context.Context) error {
	var err error
	if x.process, err = x.mesh.startZooKeeper(ctx, x.name, x.members); err != nil {
		return err
	}
	return x.serving(ctx)
}

// Stop stops the member. Its data stay.
func (x *Member) Stop(ctx context.Context) error { return x.process.Stop(ctx) }

// StopZooKeeper stops it. Its data stay.
func (m *Mesh) StopZooKeeper(ctx context.Context) error { return m.ZooKeeper.Stop(ctx) }

// ZooKeeperAddress is its host name and port.
func ZooKeeperAddress() string { return fmt.Sprintf("%s:%d", ZooKeeperMachine, ZooKeeperPort) }
