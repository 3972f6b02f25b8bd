package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/e2e/caller"
	"github.com/isthmus-mesh/isthmus/e2e/mesh"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/mcp-server/telemetry"
)

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

// The services of the provider, as the API names them, and as Istio does.
const (
	greetID   = "dubbo/demo.GreetService:1.0.0:g1"
	stockID   = "dubbo/demo.StockService"
	greetName = "demo.GreetService"
	stockName = "demo.StockService"
)

// workload is what the consumer calls, a second.
var workload = map[string]float64{"sayHello": 40, "echo": 10, "slow": 2, "fail": 1, "price": 20}

var dubboChapter = []step{
	{"Start ZooKeeper, mcp-server and istiod, each on a machine of its own", startControl},
	{"Start the sidecars: stock Envoy, configured by istiod, fed by iptables REDIRECT", startSidecars},
	{"Start the Dubbo applications, which know ZooKeeper and nothing else", startApplications},
	{"See the services of ZooKeeper as services of the mesh", showServices},
	{"See every call, as the filters in the sidecars read it off the wire", showTraffic},
	{"Throttle a method, and see what its callers get", throttle},
	{"Break a failing method's circuit at its caller, and deny a caller at the provider", breakAndDeny},
	{"Stop a provider, see it leave the mesh, and come back", stopProvider},
	{"Stop ZooKeeper, restart mcp-server meanwhile, and lose nothing", stopZooKeeper},
}

func startControl(ctx context.Context, t *story) error {
	begin := time.Now()
	if err := t.mesh.StartZooKeeper(ctx); err != nil {
		return err
	}
	t.ok("ZooKeeper serves, %s", since(begin))
	begin = time.Now()
	t.registries, t.scraped = []mesh.Registry{zooKeeper}, []string{providerMachines[0], providerMachines[1], consumerMachine}
	if err := t.configure(nil); err != nil {
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

// zooKeeper is the first of mcp-server's registries.
var zooKeeper = mesh.Registry{Name: "zk", Kind: "zookeeper", Settings: map[string]any{"servers": []string{mesh.ZooKeeperAddress()}}}

// apiToken is what lets isthmusctl write.
const apiToken = "demo"

// configure tells mcp-server of its registries, of the machines whose sidecars' metrics it reads, and of the services that it lifts, also
// while it runs.
func (t *story) configure(lift any) error {
	return t.mesh.ConfigureServer(mesh.ServerOptions{Registries: t.registries, Scrape: t.scraped, Lift: lift, Listen: true, Token: apiToken})
}

func since(t time.Time) string { return fmt.Sprintf("%.2f s", time.Since(t).Seconds()) }

func startSidecars(ctx context.Context, t *story) error {
	return t.sidecarsFor(ctx, map[string]string{providerMachines[0]: providerApp, providerMachines[1]: providerApp, consumerMachine: consumerApp})
}

// sidecarsFor makes machines, by name, with the sidecars of applications.
func (t *story) sidecarsFor(ctx context.Context, apps map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(apps)) {
		if _, err := t.mesh.Machine(name); err != nil {
			return err
		}
	}
	var mu sync.Mutex
	var g errgroup.Group
	for name, app := range apps {
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
	return g.Wait()
}

// startProvider starts the provider on a machine, as anybody would start a Dubbo provider, with further options of the JVM.
func (t *story) startProvider(ctx context.Context, i int, options ...string) error {
	p, err := t.mesh.StartJava(providerMachines[i], mesh.JVM{Peer: peer.Dubbo3, Name: providerApp, Main: "demo.Provider", Options: append([]string{
		"-Ddubbo.application.name=" + providerApp,
		"-Ddubbo.registry.address=zookeeper://" + mesh.ZooKeeperAddress(),
		fmt.Sprintf("-Ddubbo.protocol.port=%d", dubboPort),
		fmt.Sprintf("-Ddubbo.provider.parameters.label.version=v%d", i+1),
	}, options...)})
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
	t.ok("two providers, v1 and v2, have registered in ZooKeeper, both on port %d, %s", dubboPort, since(begin))

	// A connection that is made while an Envoy still loads the filter would pass it by.
	begin = time.Now()
	done = t.working("the sidecars load the filter")
	defer done()
	for name, s := range t.sidecars {
		if err := t.until(ctx, "the filter", func(ctx context.Context) error { return s.Filtered(ctx, dubboPort, name != consumerMachine) }); err != nil {
			return err
		}
	}
	done()
	t.ok("the sidecars have heard of port %d from istiod and loaded the filter, %s", dubboPort, since(begin))

	return t.startConsumer(ctx)
}

// startConsumer starts the consumer, as anybody would start one, and waits until it has called every method.
func (t *story) startConsumer(ctx context.Context) error {
	begin := time.Now()
	done := t.working("the consumer starts")
	defer done()
	p, err := t.mesh.StartJava(consumerMachine, mesh.JVM{Peer: peer.Dubbo3, Name: consumerApp, Main: "demo.Consumer", Options: []string{
		"-Ddubbo.application.name=" + consumerApp,
		"-Ddubbo.registry.address=zookeeper://" + mesh.ZooKeeperAddress(),
		"-Ddubbo.consumer.timeout=3000", "-Ddubbo.consumer.retries=0",
		callsOption(workload),
	}})
	if err != nil {
		return err
	}
	if _, err := p.UntilLine(ctx, "the consumer to find its providers", func(line string) bool { return line == "READY" }); err != nil {
		return err
	}
	t.consumer, t.apps[consumerMachine] = caller.Follow(p), p
	if err := t.consumer.Until(ctx, "to call every method", caller.Mark{}, func(seconds []caller.Tally, _ []caller.Fault) bool {
		return len(caller.Sum(seconds)) == len(workload)
	}); err != nil {
		return err
	}
	seconds, _ := t.consumer.Since(caller.Mark{})
	if n := caller.Sum(seconds).Total(); n.Errors > 0 {
		return fmt.Errorf("the consumer has had errors: %s", caller.Sum(seconds))
	}
	done()
	t.ok("a consumer has found them there and calls, %s", since(begin))
	return nil
}

// callsOption is the option of the Java applications with which they begin to call.
func callsOption(rates map[string]float64) string {
	var calls []string
	for _, method := range slices.Sorted(maps.Keys(rates)) {
		calls = append(calls, fmt.Sprintf("%s=%g", method, rates[method]))
	}
	return "-Dcalls=" + strings.Join(calls, ",")
}

// showServices shows the table of services, and holds it to what was started.
func showServices(ctx context.Context, t *story) error {
	if err := t.until(ctx, "the services to be complete", func(ctx context.Context) error { return t.checkServices(ctx, 2) }); err != nil {
		return err
	}
	if err := t.show(ctx, "services"); err != nil {
		return err
	}
	t.ok("the first table after %s", t.elapsed())
	if err := t.show(ctx, "service", greetID); err != nil {
		return err
	}
	var detail api.ServiceDetail
	if err := t.api(ctx, "/api/v1/services/"+greetID, &detail); err != nil {
		return err
	}
	want := map[string]string{}
	for i, name := range providerMachines {
		m, err := t.mesh.Machine(name)
		if err != nil {
			return err
		}
		want[m.Address().String()] = fmt.Sprintf("v%d", i+1)
	}
	got := map[string]string{}
	for _, p := range detail.ProviderList {
		got[p.Address] = p.Labels["version"]
		if p.Port != dubboPort {
			return fmt.Errorf("provider %s is on port %d, not %d", p.Address, p.Port, dubboPort)
		}
	}
	if !maps.Equal(got, want) {
		return fmt.Errorf("the providers' versions by address are %v, not %v", got, want)
	}
	t.ok("both providers are there with their labels, and the consumer")
	t.greetHost = detail.Hosts[0].Host
	for name, s := range t.sidecars {
		if err := t.until(ctx, "the sidecar of "+name, func(ctx context.Context) error {
			have, err := s.Endpoints(ctx, t.greetHost)
			if err == nil && len(have) != len(want) {
				err = fmt.Errorf("it has the endpoints %v", have)
			}
			return err
		}); err != nil {
			return err
		}
	}
	t.ok("istiod has given each of the %d sidecars both endpoints of %s", len(t.sidecars), t.greetHost)
	return t.beginSOFARegistry() // it takes its time, and is needed later
}

// checkServices holds mcp-server's services to what runs: both with so many providers, and one consumer.
func (t *story) checkServices(ctx context.Context, providers int) error {
	var list api.ServiceList
	if err := t.api(ctx, "/api/v1/services", &list); err != nil {
		return err
	}
	var ids []string
	for _, s := range list.Items {
		ids = append(ids, s.ID)
		if s.Providers != providers || s.Active != providers || s.Consumers != 1 {
			return fmt.Errorf("%s has %d providers (%d active) and %d consumers, not %d and 1", s.ID, s.Providers, s.Active, s.Consumers, providers)
		}
	}
	if !slices.Equal(ids, []string{greetID, stockID}) {
		return fmt.Errorf("the services are %q", ids)
	}
	return nil
}

// showTraffic shows what the filters have read off the wire, and holds it to what the consumer itself has counted.
func showTraffic(ctx context.Context, t *story) error {
	done := t.working("the filters meter some seconds of traffic")
	defer done()
	if err := t.untilSeen(ctx, workload); err != nil {
		return err
	}
	done()
	if err := t.show(ctx, "top", "--once"); err != nil {
		return err
	}
	t.ok("every method is seen at both ends at the rate at which it is called")
	if err := t.exact(ctx); err != nil {
		return err
	}
	return t.consumer.Rates(workload)
}

// untilSeen waits until mcp-server knows methods, at both ends, at the rates at which they are called.
func (t *story) untilSeen(ctx context.Context, rates map[string]float64) error {
	return t.until(ctx, "the filters' rates", func(ctx context.Context) error {
		var r api.Traffic
		if err := t.api(ctx, "/api/v1/traffic", &r); err != nil {
			return err
		}
		for method, rate := range rates {
			for _, direction := range []string{"client", "server"} {
				i := slices.IndexFunc(r.Methods, func(m telemetry.Traffic) bool { return m.Method == method && m.Direction == direction })
				if i < 0 {
					return fmt.Errorf("%s is not seen at the %s", method, direction)
				}
				if m := r.Methods[i]; m.Rate < 0.7*rate || m.Rate > 1.3*rate {
					return fmt.Errorf("%s at the %s is seen at %.1f calls a second, and called at %g", method, direction, m.Rate, rate)
				} else if m.P50 == nil {
					return fmt.Errorf("%s at the %s has no latencies", method, direction)
				} else if method == "slow" && (*m.P50 < 100 || *m.P50 > 1000) {
					return fmt.Errorf("slow takes 200 ms, and is seen at the %s with %.0f ms", direction, *m.P50)
				}
			}
		}
		return nil
	})
}

// exact stops all calls and holds the totals of the filters at either end to the consumer's own count: not one call may
// be missed.
func (t *story) exact(ctx context.Context) error {
	done := t.working("the calls under way return")
	defer done()
	called, err := t.consumer.Quiet(ctx)
	if err != nil {
		return err
	}
	want := map[string]int{}
	for method, c := range called {
		want[method] = c.OK + c.Exceptions + c.Errors
	}
	for end, names := range map[string][]string{"client": {consumerMachine}, "server": providerMachines[:]} {
		if err := t.until(ctx, "the filters' totals at the "+end, func(ctx context.Context) error {
			got := map[string]int{}
			for _, name := range names {
				samples, err := t.sidecars[name].Metrics(ctx, "isthmus_rpc_requests_total")
				if err != nil {
					return err
				}
				for _, s := range samples {
					if _, ours := workload[s.Labels["rpc_method"]]; ours && s.Labels["rpc_direction"] == end {
						got[s.Labels["rpc_method"]] += int(s.Value)
					}
				}
			}
			if !maps.Equal(got, want) {
				return fmt.Errorf("they are %v, the consumer's %v", got, want)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	total := 0
	for _, n := range want {
		total += n
	}
	t.ok("the filters' totals at both ends are the consumer's own, to the call: %d", total)
	return nil
}

// ruleName is the demo's throttling rule.
const ruleName = "greet-slowly"

// throttled is how many calls of sayHello a second the rule admits.
const throttled = 10

const ruleText = `apiVersion: governance.isthmus.io/v1alpha1
kind: ThrottleRule
metadata:
  name: greet-slowly
spec:
  direction: client
  target:
    service: demo.GreetService
    method: sayHello
  threshold: 10
`

// throttle applies a rule and takes it away again. The callers must see a well-formed error of Dubbo's on connections
// that live on.
func throttle(ctx context.Context, t *story) error {
	if _, _, err := t.consumer.Next(ctx, 1); err != nil {
		return err
	}
	before, err := t.connections(consumerMachine, dubboPort)
	if err != nil {
		return err
	}
	if len(before) == 0 {
		return errors.New("the consumer has no connection")
	}
	t.note("%s", t.paint(bold, "rules/"+ruleName+".yaml"))
	t.quote(ruleText)
	m, begin := t.consumer.Mark(), time.Now()
	if err := t.mesh.ApplyRule(ruleName, ruleText); err != nil {
		return err
	}
	var refused caller.Fault
	if err := t.consumer.Until(ctx, "to be throttled", m, func(_ []caller.Tally, faults []caller.Fault) bool {
		i := slices.IndexFunc(faults, func(f caller.Fault) bool { return f.Method == "sayHello" })
		if i >= 0 {
			refused = faults[i]
		}
		return i >= 0
	}); err != nil {
		return err
	}
	t.ok("in force after %s; what the caller gets, at the end of Dubbo's own long message:", since(begin))
	t.quote(refused.Error + ": … " + refused.Message[max(0, strings.LastIndex(refused.Message, "cause: ")):])
	if refused.Error != "org.apache.dubbo.rpc.RpcException" || !strings.Contains(refused.Message, ruleName) {
		return fmt.Errorf("that is no RpcException that names the rule")
	}
	var seconds []caller.Tally
	var faults []caller.Fault
	begin = time.Now()
	if seconds, faults, err = t.consumer.Next(ctx, 3); err != nil {
		return err
	}
	// The consumer's seconds are those of a busy machine, and may be longer than a second: the limit is held to the time that passed.
	elapsed := time.Since(begin).Seconds()
	for _, f := range faults {
		if f.Method != "sayHello" {
			return fmt.Errorf("%s was not throttled, and fails: %s", f.Method, f.Message)
		}
	}
	all := caller.Sum(seconds)
	n := len(seconds)
	t.note("the consumer's own account of %d seconds: %s", n, all)
	for method, c := range all {
		rate := workload[method]
		switch {
		case method == "sayHello":
			// In a time t a bucket lets through no more than its burst, a second's worth here, and t times its rate.
			if c.OK < throttled*(n-1) || float64(c.OK) > throttled*(elapsed+1) || float64(c.OK+c.Errors) < 0.8*rate*float64(n) {
				return fmt.Errorf("of sayHello %d calls came through in %.1f s and %d were refused, at a limit of %d a second and %g calls", c.OK, elapsed, c.Errors, throttled, rate)
			}
		case c.Errors > 0 || float64(c.OK+c.Exceptions) < 0.7*rate*float64(n):
			return fmt.Errorf("%s was not to be throttled: %+v", method, c)
		}
	}
	t.ok("sayHello is held to %d calls a second, the other methods run on", throttled)
	after, err := t.connections(consumerMachine, dubboPort)
	if err != nil {
		return err
	}
	if !slices.Equal(before, after) {
		return fmt.Errorf("the consumer's connections were %v and are %v", before, after)
	}
	t.ok("the connections live on: %s", strings.Join(after, ", "))
	if err := t.show(ctx, "rules"); err != nil {
		return err
	}
	begin = time.Now()
	if err := t.mesh.RemoveRule(ruleName); err != nil {
		return err
	}
	if err := t.free(ctx); err != nil {
		return err
	}
	t.ok("the rule is taken away, and all calls come through, %s", since(begin))
	return nil
}

// free waits until no call of the consumer fails any more.
func (t *story) free(ctx context.Context) error {
	return t.consumer.Until(ctx, "to be free again", t.consumer.Mark(), func(s []caller.Tally, _ []caller.Fault) bool {
		return len(s) > 1 && s[len(s)-1].Total().Errors == 0
	})
}

// connections lists the established connections of a machine to providers' ports, as local port -> address.
func (t *story) connections(name string, port uint16) ([]string, error) {
	m, err := t.mesh.Machine(name)
	if err != nil {
		return nil, err
	}
	all, err := m.Connections()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, c := range all {
		if c.Remote.Port() == port {
			out = append(out, fmt.Sprintf("%d→%s", c.Local.Port(), c.Remote))
		}
	}
	slices.Sort(out)
	return out, nil
}

// leaveTimeout is what may pass between a provider's end and its leaving of the mesh.
const leaveTimeout = 2 * time.Second

// stopProvider ends one provider as any process is ended, and watches it leave the mesh; then it comes back.
func stopProvider(ctx context.Context, t *story) error {
	const i = 1
	gone, err := t.mesh.Machine(providerMachines[i])
	if err != nil {
		return err
	}
	address := fmt.Sprintf("%s:%d", gone.Address(), dubboPort)
	m, begin := t.consumer.Mark(), time.Now()
	stopped := make(chan error, 1)
	go func() { stopped <- t.providers[i].Stop(ctx) }()
	var table, istiod, sidecar time.Duration
	if err := t.until(ctx, "the provider to leave", func(ctx context.Context) error {
		if table == 0 {
			if err := t.checkServices(ctx, 1); err != nil {
				return fmt.Errorf("the service table: %w", err)
			}
			table = time.Since(begin)
		}
		if istiod == 0 {
			have, err := t.mesh.IstiodEndpoints(ctx, t.greetHost)
			if err == nil && slices.Contains(have, address) {
				err = fmt.Errorf("istiod has %v", have)
			}
			if err != nil {
				return err
			}
			istiod = time.Since(begin)
		}
		have, err := t.sidecars[consumerMachine].Endpoints(ctx, t.greetHost)
		if err == nil && slices.Contains(have, address) {
			err = fmt.Errorf("the consumer's sidecar has %v", have)
		}
		sidecar = time.Since(begin)
		return err
	}); err != nil {
		return err
	}
	t.ok("%s got SIGTERM and has left the service table after %s, istiod after %s, the consumer's sidecar after %s",
		gone.Name(), seconds(table), seconds(istiod), seconds(sidecar))
	if sidecar > leaveTimeout {
		return fmt.Errorf("that is more than %s", leaveTimeout)
	}
	done := t.working("the provider finishes")
	defer done()
	if err := <-stopped; err != nil {
		return fmt.Errorf("the provider's end: %w", err)
	}
	done()
	if err := t.show(ctx, "service", greetID); err != nil {
		return err
	}
	after, _, err := t.consumer.Next(ctx, 2)
	if err != nil {
		return err
	}
	during, faults := t.consumer.Since(m)
	if lost := caller.Sum(during).Total(); lost.Errors > 0 {
		return fmt.Errorf("the consumer has lost %d calls: %v", lost.Errors, faults)
	}
	t.ok("the other provider takes all calls, none was lost: %s", caller.Sum(after))

	begin = time.Now()
	done = t.working("the provider starts again")
	defer done()
	if err := t.startProvider(ctx, i); err != nil {
		return err
	}
	registered := time.Now()
	if err := t.until(ctx, "the provider to be back", func(ctx context.Context) error {
		have, err := t.sidecars[consumerMachine].Endpoints(ctx, t.greetHost)
		if err == nil && !slices.Contains(have, address) {
			err = fmt.Errorf("the consumer's sidecar has %v", have)
		}
		return err
	}); err != nil {
		return err
	}
	done()
	t.ok("it is back: started within %s, and in the consumer's sidecar %s after it said that it is ready", seconds(registered.Sub(begin)), since(registered))
	return t.until(ctx, "the services to be complete", func(ctx context.Context) error { return t.checkServices(ctx, 2) })
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

// stopZooKeeper takes the registry away, and mcp-server with it for a moment: nothing may be lost.
func stopZooKeeper(ctx context.Context, t *story) error {
	m := t.consumer.Mark()
	watcher := t.watchEndpoints(ctx, 2)
	defer watcher.stop()
	begin := time.Now()
	if err := t.mesh.StopZooKeeper(ctx); err != nil {
		return err
	}
	stale := func(ctx context.Context) error {
		var sources api.SourceList
		if err := t.api(ctx, "/api/v1/sources", &sources); err != nil {
			return err
		}
		if len(sources.Items) != 1 || sources.Items[0].State != model.StateStale {
			return fmt.Errorf("the sources are %+v", sources.Items)
		}
		return nil
	}
	if err := t.until(ctx, "the registry to be marked stale", stale); err != nil {
		return err
	}
	t.ok("ZooKeeper is stopped, and its last word marked stale after %s", since(begin))
	if err := t.show(ctx, "sources"); err != nil {
		return err
	}
	if err := t.checkServices(ctx, 2); err != nil {
		return err
	}
	if err := t.show(ctx, "services"); err != nil {
		return err
	}
	begin = time.Now()
	if err := t.mesh.Server.Stop(ctx); err != nil {
		return err
	}
	if err := t.mesh.StartServer(ctx); err != nil {
		return err
	}
	if err := t.until(ctx, "istiod to be back", func(ctx context.Context) error {
		var list api.IstiodList
		if err := t.api(ctx, "/api/v1/istiods", &list); err != nil {
			return err
		}
		if len(list.Items) != 1 {
			return fmt.Errorf("%d are connected", len(list.Items))
		}
		for _, x := range list.Items[0].Types {
			if !x.Synced {
				return fmt.Errorf("%s is not synced", x.Type)
			}
		}
		return nil
	}); err != nil {
		return err
	}
	if err := errors.Join(stale(ctx), t.checkServices(ctx, 2)); err != nil {
		return err
	}
	t.ok("mcp-server was restarted meanwhile, and knows everything; istiod is back, %s", since(begin))
	begin = time.Now()
	if err := t.mesh.StartZooKeeper(ctx); err != nil {
		return err
	}
	if err := t.until(ctx, "the registry to be heard again", func(ctx context.Context) error {
		if err := stale(ctx); err == nil {
			return errors.New("it is still marked stale")
		}
		return t.checkServices(ctx, 2)
	}); err != nil {
		return err
	}
	t.ok("ZooKeeper is back and heard again, %s", since(begin))
	if err := watcher.stop(); err != nil {
		return err
	}
	t.ok("istiod had both endpoints all the time, in %d looks", watcher.looks)
	if _, _, err := t.consumer.Next(ctx, 1); err != nil {
		return err
	}
	during, faults := t.consumer.Since(m)
	if lost := caller.Sum(during).Total(); lost.Errors > 0 {
		return fmt.Errorf("the consumer has lost %d calls: %v", lost.Errors, faults)
	}
	t.ok("the consumer has not lost a call: %s", caller.Sum(during))
	return nil
}

// watcher looks at istiod's endpoints all the time.
type watcher struct {
	stop  func() error // ends it and says what it saw
	looks int          // to be read after stop
}

// watchEndpoints holds istiod to a number of endpoints of the greeting service.
func (t *story) watchEndpoints(ctx context.Context, want int) *watcher {
	w := &watcher{}
	ctx, cancel := context.WithCancel(ctx)
	seen := make(chan error, 1)
	go func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			have, err := t.mesh.IstiodEndpoints(ctx, t.greetHost)
			if ctx.Err() != nil {
				seen <- nil
				return
			}
			if err == nil && len(have) != want {
				err = fmt.Errorf("istiod had the endpoints %v", have)
			}
			if err != nil {
				seen <- err
				return
			}
			w.looks++
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}()
	w.stop = sync.OnceValue(func() error { cancel(); return <-seen })
	return w
}
