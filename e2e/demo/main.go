// Command demo tells the story of Isthmus on one computer: a mesh of virtual machines with ZooKeeper and SOFARegistry, Dubbo
// and SOFA applications, stock Envoys and stock istiod, and mcp-server between them. See e2e/README.md.
//
// Usage: go run ./e2e/demo [--once] [--rootless] [--keep-logs]
//
// With --once the story is told once, without pauses; each step is checked, and the exit code is 0, or 1 with the name
// of the step that failed. Exit code 2: something that the demo needs is missing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/isthmus-mesh/isthmus/e2e/machine"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
)

// The exit codes.
const (
	exitFailed  = 1
	exitMissing = 2
)

// peers are what the story needs.
var peers = []peer.Peer{peer.Envoy, peer.Istiod, peer.ZooKeeper, peer.Dubbo3, peer.SOFARegistry6, peer.SOFARPC, peer.MCPServer, peer.Isthmusctl, peer.Filter}

// apiListener is the name of the listener, in the user's own network, behind which mcp-server's API can be reached.
const apiListener = "api"

func main() { os.Exit(run()) }

func run() int {
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	once := flags.Bool("once", false, "tell the story once, check each step, and end")
	keep := flags.Bool("keep-logs", false, "keep the logs also when nothing failed")
	rootless := flags.Bool("rootless", false, "make the machines in a user namespace, as an ordinary user's are, also as root")
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), "usage: make demo [DEMO_ARGS='--once --keep-logs']\n")
		flags.PrintDefaults()
	}
	if err := flags.Parse(os.Args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return exitMissing
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "demo: unexpected argument %q\n", flags.Arg(0))
		return exitMissing
	}
	if machine.Inside() {
		return inside(*once)
	}
	return outside(*keep, *rootless)
}

// outside is the process that the user started: it obtains the peers, which needs the network, and sends the story into the
// namespaces.
func outside(keep, rootless bool) int {
	s := newScreen(os.Stdout)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := peer.CheckNetworkTools(); err != nil {
		return missing(err)
	}
	s.title("Isthmus: a mesh of virtual machines on this computer")
	s.step("Obtain the peers: stock Envoy and istiod, ZooKeeper, SOFARegistry, Dubbo, SOFARPC, and what is ours")
	progress := s.progress()
	set, err := peer.Obtain(ctx, progress, peers...)
	progress.close()
	if err != nil {
		if ctx.Err() != nil {
			return 130
		}
		return missing(err)
	}
	stop() // from here on the inner process is asked
	folder, err := runFolder()
	if err != nil {
		return missing(err)
	}
	defer folder.close(keep)
	plan := handover{Peers: set, Folder: folder.path, Begun: s.begun, Steps: s.steps}
	_, code, err := machine.Enter(machine.Outside{State: plan.json(), Rootless: rootless,
		Listen: map[string]string{apiListener: freeAddress("127.0.0.1:15991")}})
	if err != nil {
		if errors.Is(err, machine.ErrNotAllowed) {
			return missing(err)
		}
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		return exitFailed
	}
	folder.failed = code != 0 && code != 130
	return code
}

// missing prints one line for each thing that is missing.
func missing(err error) int {
	for line := range strings.SplitSeq(err.Error(), "\n") {
		fmt.Fprintf(os.Stderr, "demo: %s\n", line)
	}
	return exitMissing
}

// inside is the process in the namespaces: it tells the story.
func inside(once bool) int {
	host, _, err := machine.Enter(machine.Outside{})
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		return exitFailed
	}
	plan, err := parseHandover(host.State())
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		return exitFailed
	}
	s := newScreen(os.Stdout)
	s.begun, s.steps = plan.Begun, plan.Steps
	// The story ends when it has been told, when a step fails or when the user says so; everything stops with it.
	err = tell(host.Context(), host, plan, s, once)
	interrupted := host.Context().Err() != nil
	s.line("")
	s.note("stopping everything")
	// What has not ended by then is killed, at the latest with the namespaces.
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	host.Close(ctx)
	switch failed, ok := errors.AsType[*stepError](err); {
	case interrupted:
		s.note("everything is stopped and gone")
		if once {
			return 130 // it was not told to the end
		}
		return 0
	case ok:
		s.failure(failed)
		fmt.Fprintf(os.Stderr, "demo: logs are in %s\n", plan.Folder)
		return exitFailed
	case err != nil:
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		return exitFailed
	}
	s.note("everything is stopped and gone; %s in all", s.elapsed())
	return 0
}
