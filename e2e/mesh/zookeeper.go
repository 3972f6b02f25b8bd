package mesh

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/e2e/peer"
)

// StartZooKeeper starts ZooKeeper, or starts it again with what it held, and waits until it serves.
func (m *Mesh) StartZooKeeper(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	conf, err := m.write(ZooKeeperMachine, "conf", "zoo.cfg", fmt.Sprintf(
		"tickTime=2000\ndataDir=data\nclientPort=%d\nadmin.enableServer=false\n4lw.commands.whitelist=srvr\n", ZooKeeperPort))
	if err != nil {
		return err
	}
	m.ZooKeeper, err = m.StartJava(ZooKeeperMachine, JVM{Peer: peer.ZooKeeper, Name: "zookeeper",
		Main: "org.apache.zookeeper.server.quorum.QuorumPeerMain", Args: []string{conf}})
	if err != nil {
		return err
	}
	address := fmt.Sprintf("%s:%d", m.machines[ZooKeeperMachine].Address(), ZooKeeperPort)
	return m.ZooKeeper.Until(ctx, "ZooKeeper to serve", func(ctx context.Context) error {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		defer c.Close()
		// What it accepts before it serves it may leave without an answer.
		if err := c.SetDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
			return err
		}
		if _, err := io.WriteString(c, "srvr"); err != nil {
			return err
		}
		answer, err := io.ReadAll(c)
		if err == nil && !strings.Contains(string(answer), "Mode: standalone") {
			err = fmt.Errorf("it says %q", answer)
		}
		return err
	})
}

// StopZooKeeper stops it. Its data stay.
func (m *Mesh) StopZooKeeper(ctx context.Context) error { return m.ZooKeeper.Stop(ctx) }

// ZooKeeperAddress is its host name and port.
func ZooKeeperAddress() string { return fmt.Sprintf("%s:%d", ZooKeeperMachine, ZooKeeperPort) }
