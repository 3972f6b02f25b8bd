package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/isthmus-mesh/isthmus/e2e/peer"
)

// A place is where it all runs: the programs, a scratch folder, the processors.
type place struct {
	envoy string
	// What only spread needs: ZooKeeper, and the mcp-server binary.
	zooKeeper peer.Artifact
	server    string
	modules   map[module]string
	dir       string
	all       unix.CPUSet // the processors that this process was given
	first     unix.CPUSet // one of them, where Envoy runs under load
	rest      unix.CPUSet // the others; the same one if there is only one
}

// newPlace obtains the programs that the plan needs and o does not name. close removes what it made.
func newPlace(ctx context.Context, o options, plan *plan, progress peer.Progress) (*place, error) {
	var need []peer.Peer
	if plan.spread != nil {
		need = append(need, peersOfSpread...)
	}
	if o.envoy == "" {
		need = append(need, peer.Envoy)
	}
	if o.wasm == "" {
		need = append(need, peer.Filter)
	}
	set, err := peer.Obtain(ctx, progress, need...)
	if err != nil {
		return nil, err
	}
	if o.envoy == "" {
		o.envoy = set[peer.Envoy].Path
	}
	if o.wasm == "" {
		o.wasm = set[peer.Filter].Path
	}
	root, err := peer.Root()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "isthmus-bench-")
	if err != nil {
		return nil, err
	}
	p := &place{envoy: o.envoy, zooKeeper: set[peer.ZooKeeper], server: set[peer.MCPServer].Path, dir: dir, modules: map[module]string{filterModule: o.wasm, emptyModule: filepath.Join(dir, string(emptyModule))}}
	cmd := exec.CommandContext(ctx, "go", "build", "-buildmode=c-shared", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w",
		"-o", p.modules[emptyModule], "./e2e/bench/empty")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		p.close()
		return nil, fmt.Errorf("bench: build the empty module: %w\n%s", err, out)
	}
	if err := unix.SchedGetaffinity(0, &p.all); err != nil {
		p.close()
		return nil, fmt.Errorf("bench: which processors are ours: %w", err)
	}
	cpu := 0
	for !p.all.IsSet(cpu) {
		cpu++
	}
	p.first.Set(cpu)
	if p.rest = p.all; p.all.Count() > 1 {
		p.rest.Clear(cpu)
	}
	return p, nil
}

func (p *place) close() { os.RemoveAll(p.dir) }

// bind has this process run on the processors in set from here on.
func bind(set unix.CPUSet) error {
	if err := pinThreads(&set); err != nil {
		return err
	}
	runtime.GOMAXPROCS(set.Count())
	return nil
}

// pinThreads binds all threads of this process. A new thread inherits from the one that makes it, so when a look at all of them
// finds none that is not bound, none is.
func pinThreads(set *unix.CPUSet) error {
	for range 100 {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("bench: bind to processors: %w", err)
		}
		again := false
		for _, t := range tasks {
			tid, err := strconv.Atoi(t.Name())
			if err != nil {
				continue
			}
			var has unix.CPUSet
			if err := unix.SchedGetaffinity(tid, &has); err == nil && has == *set {
				continue
			}
			if err := unix.SchedSetaffinity(tid, set); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("bench: bind to processors: %w", err)
			}
			again = true
		}
		if !again {
			return nil
		}
	}
	return errors.New("bench: threads keep appearing that are not bound to a processor")
}

// on runs start, which forks, with the calling thread bound to set, so that the child inherits it.
func on(set unix.CPUSet, start func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return err
	}
	defer func() { _ = unix.SchedSetaffinity(0, &before) }()
	return start()
}
