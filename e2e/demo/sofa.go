package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/e2e/caller"
	"github.com/isthmus-mesh/isthmus/e2e/mesh"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
)

// The machines of the SOFA chapter, which has a registry of its own: the orders are called by Bolt, and call the stock service of the chapter before by Dubbo.
const (
	sofaRegistryMachine = "sofaregistry"

	ordersMachine = "orders-1"
	shopMachine   = "shop-1"
)

const (
	ordersApp = "orders"
	shopApp   = "shop"
	boltPort  = 12200
	ordersID  = "sofa/demo.OrderService:1.0"
)

// shopWorkload is what the shop calls, a second. For each order the orders ask the stock service twice.
var shopWorkload = map[string]float64{"order": 20}

var sofaChapter = []step{
	{"Add a second registry while everything runs: SOFARegistry", addSOFARegistry},
	{"Let SOFA applications join: a shop calls orders by Bolt, orders call the stock service by Dubbo", startSOFA},
	{"See SOFA beside Dubbo: one table, one list of traffic", showSOFA},
	{"Throttle the SOFA service, and see what its callers get", throttleSOFA},
}

// beginSOFARegistry begins to start SOFARegistry.
func (t *story) beginSOFARegistry() error {
	if _, err := t.mesh.Machine(sofaRegistryMachine); err != nil {
		return err
	}
	t.sofaRegistry = make(chan error, 1)
	go func() {
		// Not the step's context: it outlives the step.
		_, err := t.mesh.StartSOFARegistry(t.host.Context(), sofaRegistryMachine, peer.SOFARegistry6)
		t.sofaRegistry <- err
	}()
	return nil
}

// sofaRegistryAddress is that of its session server's pages.
func (t *story) sofaRegistryAddress() (string, error) {
	m, err := t.mesh.Machine(sofaRegistryMachine)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s:%d", m.Address(), mesh.SOFASessionHTTPPort), nil
}

// addSOFARegistry waits until SOFARegistry is up and adds it to mcp-server's configuration.
func addSOFARegistry(ctx context.Context, t *story) error {
	done := t.working("SOFARegistry starts")
	defer done()
	select {
	case err := <-t.sofaRegistry:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return fmt.Errorf("waited for SOFARegistry: %w", context.Cause(ctx))
	}
	done()
	address, err := t.sofaRegistryAddress()
	if err != nil {
		return err
	}
	begin := time.Now()
	t.registries = append(t.registries, mesh.Registry{Name: "sofa", Kind: "sofaregistry", Settings: map[string]any{"servers": []string{address}}})
	t.scraped = append(t.scraped, ordersMachine, shopMachine)
	if err := t.configure(nil); err != nil {
		return err
	}
	if err := t.until(ctx, "SOFARegistry to be heard", func(ctx context.Context) error {
		var sources api.SourceList
		if err := t.api(ctx, "/api/v1/sources", &sources); err != nil {
			return err
		}
		for _, s := range sources.Items {
			if s.Name == "sofa" && s.State == model.StateSynced {
				return nil
			}
		}
		return fmt.Errorf("the sources are %+v", sources.Items)
	}); err != nil {
		return err
	}
	if err := t.show(ctx, "sources"); err != nil {
		return err
	}
	t.ok("its configuration was changed, and mcp-server has heard SOFARegistry, %s", since(begin))
	return nil
}

func startSOFA(ctx context.Context, t *story) error {
	if err := t.sidecarsFor(ctx, map[string]string{ordersMachine: ordersApp, shopMachine: shopApp}); err != nil {
		return err
	}
	address, err := t.sofaRegistryAddress()
	if err != nil {
		return err
	}
	// filtered waits until connections to a port pass the filter; see startApplications.
	filtered := func(port int, machines ...string) error {
		defer t.working("the sidecars load the filter")()
		for _, name := range machines {
			if err := t.until(ctx, "the filter", func(ctx context.Context) error {
				return t.sidecars[name].Filtered(ctx, port, port == boltPort && name == ordersMachine)
			}); err != nil {
				return err
			}
		}
		return nil
	}
	if err := filtered(dubboPort, ordersMachine); err != nil {
		return err
	}
	begin := time.Now()
	if err := t.startSOFAApp(ctx, ordersMachine, orders(address, "v1")); err != nil {
		return err
	}
	t.ok("orders have registered in SOFARegistry, on port %d, %s", boltPort, since(begin))
	begin = time.Now()
	if err := filtered(boltPort, ordersMachine, shopMachine); err != nil {
		return err
	}
	t.ok("their sidecars have heard of port %d from istiod and loaded the filter for it, %s", boltPort, since(begin))
	return t.startShop(ctx)
}

// orders are the orders in a version; address is SOFARegistry's.
func orders(address, version string) mesh.JVM {
	return mesh.JVM{Peer: peer.SOFARPC, Name: ordersApp, Main: "demo.Orders", Options: []string{
		"-Dapp.name=" + ordersApp, fmt.Sprintf("-Dport=%d", boltPort), "-Dlabel.version=" + version,
		"-Dregistry.protocol=sofa", "-Dregistry.address=" + address,
		"-Ddubbo.application.name=" + ordersApp, "-Ddubbo.registry.address=zookeeper://" + mesh.ZooKeeperAddress(),
		"-Ddubbo.application.qos-enable=false",
		"--add-opens", "java.base/java.lang=ALL-UNNAMED", "--add-opens", "java.base/java.math=ALL-UNNAMED", // for Dubbo 2.7
	}}
}

// startShop starts the shop and waits until it places orders.
func (t *story) startShop(ctx context.Context) error {
	address, err := t.sofaRegistryAddress()
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := t.startSOFAApp(ctx, shopMachine, mesh.JVM{Peer: peer.SOFARPC, Name: shopApp, Main: "demo.Shop", Options: []string{
		"-Dapp.name=" + shopApp, callsOption(shopWorkload), "-Dregistry.protocol=sofa", "-Dregistry.address=" + address}}); err != nil {
		return err
	}
	if err := t.shop.Until(ctx, "to place orders", caller.Mark{}, func(s []caller.Tally, _ []caller.Fault) bool {
		return caller.Sum(s).Total().OK > 0
	}); err != nil {
		return err
	}
	t.ok("a shop has found them there and places orders, %s", since(begin))
	return nil
}

// startSOFAApp starts an application and waits until it says that it is ready; what the shop says is followed.
func (t *story) startSOFAApp(ctx context.Context, machine string, j mesh.JVM) error {
	defer t.working(j.Name + " starts")()
	p, err := t.mesh.StartJava(machine, j)
	if err != nil {
		return err
	}
	if machine == shopMachine {
		t.shop = caller.Follow(p)
	}
	t.apps[machine] = p
	_, err = p.UntilLine(ctx, j.Name+" to be ready", func(line string) bool { return line == "READY" })
	return err
}

// showSOFA shows both worlds in one table, and in one list of traffic.
func showSOFA(ctx context.Context, t *story) error {
	type row struct {
		id                   string
		providers, consumers int
	}
	want := []row{{greetID, 2, 1}, {stockID, 2, 2}, {ordersID, 1, 1}}
	if err := t.until(ctx, "the services to be complete", func(ctx context.Context) error {
		var list api.ServiceList
		if err := t.api(ctx, "/api/v1/services", &list); err != nil {
			return err
		}
		var have []row
		for _, s := range list.Items {
			have = append(have, row{s.ID, s.Providers, s.Consumers})
		}
		if !slices.Equal(have, want) {
			return fmt.Errorf("the services are %v, not %v", have, want)
		}
		return nil
	}); err != nil {
		return err
	}
	if err := t.show(ctx, "services"); err != nil {
		return err
	}
	t.ok("the orders are a provider in SOFA's world and a consumer in Dubbo's")
	done := t.working("the filters meter some seconds of traffic")
	defer done()
	if err := t.untilSeen(ctx, map[string]float64{"order": shopWorkload["order"], "reserve": shopWorkload["order"]}); err != nil {
		return err
	}
	done()
	if err := t.show(ctx, "top", "--once"); err != nil {
		return err
	}
	t.ok("orders by Bolt, and what they ask the stock service by Dubbo, are seen at both ends at the rate at which they are called")
	return nil
}

// sofaRuleName is the throttling rule of the SOFA chapter.
const sofaRuleName = "orders-slowly"

// sofaThrottled is how many orders a second the rule admits.
const sofaThrottled = 5

const sofaRuleText = `apiVersion: governance.isthmus.io/v1alpha1
kind: ThrottleRule
metadata:
  name: orders-slowly
spec:
  direction: client
  target:
    service: demo.OrderService
  threshold: 5
`

// throttleSOFA is throttle for Bolt. The shop must see an exception of SOFARPC's own on a connection that lives on.
func throttleSOFA(ctx context.Context, t *story) error {
	before, err := t.connections(shopMachine, boltPort)
	if err != nil {
		return err
	}
	if len(before) == 0 {
		return errors.New("the shop has no connection")
	}
	t.note("%s", t.paint(bold, "rules/"+sofaRuleName+".yaml"))
	t.quote(sofaRuleText)
	m, begin := t.shop.Mark(), time.Now()
	if err := t.mesh.ApplyRule(sofaRuleName, sofaRuleText); err != nil {
		return err
	}
	if err := t.shop.Until(ctx, "to be throttled", m, func(_ []caller.Tally, faults []caller.Fault) bool { return len(faults) > 0 }); err != nil {
		return err
	}
	_, faults := t.shop.Since(m)
	refused := faults[0]
	t.ok("in force after %s; what the caller gets:", since(begin))
	t.quote(fmt.Sprintf("%s: %s (error type %d)", refused.Error, refused.Message, refused.Code))
	want := `isthmus: throttled: rule "default/` + sofaRuleName + `"`
	if refused.Error != "com.alipay.sofa.rpc.core.exception.SofaRpcException" || len(refused.Message) < len(want) || refused.Message[:len(want)] != want {
		return errors.New("that is no SofaRpcException that names the rule")
	}
	seconds, _, err := t.shop.Next(ctx, 2)
	if err != nil {
		return err
	}
	all, n := caller.Sum(seconds), len(seconds)
	t.note("the shop's own account of %d seconds: %s", n, all)
	if c := all["order"]; c.OK < sofaThrottled*(n-1) || c.OK > sofaThrottled*(n+1) || c.Errors == 0 {
		return fmt.Errorf("%d orders came through in %d s and %d were refused, at a limit of %d a second", c.OK, n, c.Errors, sofaThrottled)
	}
	after, err := t.connections(shopMachine, boltPort)
	if err != nil {
		return err
	}
	if !slices.Equal(before, after) {
		return fmt.Errorf("the shop's connections were %v and are %v", before, after)
	}
	t.ok("orders are held to %d a second; the connection lives on: %s", sofaThrottled, after[0])
	begin, m = time.Now(), t.shop.Mark()
	if err := t.mesh.RemoveRule(sofaRuleName); err != nil {
		return err
	}
	if err := t.shop.Until(ctx, "to be free again", m, func(s []caller.Tally, _ []caller.Fault) bool {
		return len(s) > 1 && s[len(s)-1].Total().Errors == 0
	}); err != nil {
		return err
	}
	t.ok("the rule is taken away, and all orders come through, %s", since(begin))
	return nil
}
