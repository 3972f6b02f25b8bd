package main

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/isthmus-mesh/isthmus/e2e/machine"
	"github.com/isthmus-mesh/isthmus/e2e/mesh"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
)

// stepError names the step that failed.
type stepError struct {
	number int
	title  string
	err    error
}

func (e *stepError) Error() string { return fmt.Sprintf("step %d, %s: %v", e.number, e.title, e.err) }
func (e *stepError) Unwrap() error { return e.err }

// story is what the steps work on.
type story struct {
	*screen
	host *machine.Host
	mesh *mesh.Mesh
	plan handover
	once bool

	providers [2]*machine.Process
	sidecars  map[string]*mesh.Sidecar
	consumer  *consumer
}

// step is one step of the story. It says what it does, does it, and checks what came of it.
type step struct {
	title string
	run   func(ctx context.Context, t *story) error
}

// chapters is the story. A chapter is a list of steps that build on those before.
var chapters = [][]step{dubboChapter}

// stepTimeout bounds each step.
const stepTimeout = 2 * time.Minute

func tell(ctx context.Context, host *machine.Host, plan handover, s *screen, once bool) error {
	m, err := mesh.New(host, plan.Peers, plan.Folder)
	if err != nil {
		return err
	}
	t := &story{screen: s, host: host, mesh: m, plan: plan, once: once, sidecars: make(map[string]*mesh.Sidecar)}
	for _, chapter := range chapters {
		for _, st := range chapter {
			s.step(st.title)
			ctx, cancel := context.WithTimeoutCause(ctx, stepTimeout, fmt.Errorf("the step took longer than %s", stepTimeout))
			err := st.run(ctx, t)
			cancel()
			if err != nil {
				return &stepError{number: s.steps, title: st.title, err: err}
			}
		}
	}
	return nil
}

// The machines of the Dubbo chapter.
var (
	providerMachines = [2]string{"provider-1", "provider-2"}
	consumerMachine  = "consumer-1"
)

const (
	providerApp = "greet-provider"
	consumerApp = "greet-consumer"
	dubboPort   = 20880
)

var dubboChapter = []step{
	{"Start ZooKeeper, mcp-server and istiod, each on a machine of its own", startControl},
	{"Start the sidecars: stock Envoy, configured by istiod, fed by iptables REDIRECT", startSidecars},
	{"Start the Dubbo applications, which know ZooKeeper and nothing else", startApplications},
}

func startControl(ctx context.Context, t *story) error {
	begin := time.Now()
	if err := t.mesh.StartZooKeeper(ctx); err != nil {
		return err
	}
	t.ok("ZooKeeper serves, %s", since(begin))
	begin = time.Now()
	if err := t.mesh.ConfigureServer(mesh.ServerOptions{
		Registries: []mesh.Registry{{Name: "zk", Kind: "zookeeper", Settings: map[string]any{"servers": []string{mesh.ZooKeeperAddress()}}}},
		Scrape:     []string{providerMachines[0], providerMachines[1], consumerMachine},
	}); err != nil {
		return err
	}
	if err := t.mesh.StartServer(ctx); err != nil {
		return err
	}
	t.ok("mcp-server has heard its registry, %s", since(begin))
	begin = time.Now()
	if err := t.mesh.StartIstiod(ctx); err != nil {
		return err
	}
	t.ok("istiod has its configuration from mcp-server, %s", since(begin))
	return nil
}

func since(t time.Time) string { return fmt.Sprintf("%.2f s", time.Since(t).Seconds()) }

func startSidecars(ctx context.Context, t *story) error {
	var mu sync.Mutex
	for _, name := range append(providerMachines[:], consumerMachine) {
		if _, err := t.mesh.Machine(name); err != nil {
			return err
		}
	}
	var g errgroup.Group
	start := func(name, app string) {
		g.Go(func() error {
			begin := time.Now()
			s, err := t.mesh.StartSidecar(ctx, name, app)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			t.sidecars[name] = s
			t.ok("%s (%s) has its sidecar, %s", name, s.Machine().Address(), since(begin))
			return nil
		})
	}
	start(providerMachines[0], providerApp)
	start(providerMachines[1], providerApp)
	start(consumerMachine, consumerApp)
	return g.Wait()
}

// startProvider starts the provider on a machine, as anybody would start a Dubbo provider.
func (t *story) startProvider(ctx context.Context, i int) error {
	p, err := t.mesh.StartJava(providerMachines[i], mesh.JVM{Peer: peer.Dubbo3, Name: providerApp, Main: "demo.Provider", Options: []string{
		"-Ddubbo.application.name=" + providerApp,
		"-Ddubbo.registry.address=zookeeper://" + mesh.ZooKeeperAddress(),
		fmt.Sprintf("-Ddubbo.protocol.port=%d", dubboPort),
		fmt.Sprintf("-Ddubbo.provider.parameters.label.version=v%d", i+1),
	}})
	if err != nil {
		return err
	}
	t.providers[i] = p
	_, err = p.UntilLine(ctx, "the provider to register", func(line string) bool { return line == "READY" })
	return err
}

func startApplications(ctx context.Context, t *story) error {
	begin := time.Now()
	done := t.working("two providers start")
	defer done()
	var g errgroup.Group
	for i := range t.providers {
		g.Go(func() error { return t.startProvider(ctx, i) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	done()
	t.ok("two providers are registered, %s", since(begin))
	begin = time.Now()
	defer t.working("the consumer starts")()
	p, err := t.mesh.StartJava(consumerMachine, mesh.JVM{Peer: peer.Dubbo3, Name: consumerApp, Main: "demo.Consumer", Options: []string{
		"-Ddubbo.application.name=" + consumerApp,
		"-Ddubbo.registry.address=zookeeper://" + mesh.ZooKeeperAddress(),
		"-Ddubbo.consumer.timeout=3000", "-Ddubbo.consumer.retries=0",
		"-Dcalls=sayHello=40,echo=10,slow=2,fail=1,price=20",
	}})
	if err != nil {
		return err
	}
	if _, err := p.UntilLine(ctx, "the consumer to find its providers", func(line string) bool { return line == "READY" }); err != nil {
		return err
	}
	if _, err := p.UntilLine(ctx, "the consumer's first calls", func(line string) bool { return len(line) > 12 && line[:9] == `{"calls":` }); err != nil {
		return err
	}
	t.ok("the consumer calls, %s", since(begin))
	b, err := t.mesh.API(ctx, "/api/v1/services")
	t.quote(string(b))
	_ = filepath.Join
	return err
}

type consumer struct{}
