package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/isthmus-mesh/isthmus/e2e/caller"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/mcp-server/rollout"
)

// secondOrders is the machine of the second version of the orders, which has no sidecar.
const secondOrders = "orders-2"

var liftChapter = []step{
	{"Lift the calls of all services: HTTP/2 streams for Istio, Dubbo and Bolt for everybody else", liftServices},
	{"Split the calls of the Dubbo service by an ordinary VirtualService", splitDubbo},
	{"Split the calls of the Bolt service in the same way", splitBolt},
	{"Release version v2 of the Dubbo service step by step, watched", releaseGood},
	{"Release a version with a bug, and see it taken back by itself", releaseBad},
}

// lifting is spec.mesh.lift of mcp-server's configuration.
var lifting = map[string]any{"services": []any{map[string]any{"framework": "dubbo"}, map[string]any{"framework": "sofa"}}}

// liftServices switches lifting on while everything runs. Connections that are open then stay as they are, so those who call are started
// again, as an update of theirs would do.
func liftServices(ctx context.Context, t *story) error {
	t.note("%s", t.paint(bold, "mcp-server.yaml"))
	t.quote("spec:\n  mesh:\n    lift:\n      services: [{framework: dubbo}, {framework: sofa}]")
	begin := time.Now()
	if err := t.configure(lifting); err != nil {
		return err
	}
	address, err := t.sofaRegistryAddress()
	if err != nil {
		return err
	}
	if _, err := t.mesh.Machine(secondOrders); err != nil {
		return err
	}
	second := make(chan error, 1) // not before it is needed: both Java programs and the filters take their time
	for name, port := range map[string]int{consumerMachine: dubboPort, shopMachine: boltPort, ordersMachine: dubboPort} {
		if err := t.until(ctx, "the sidecars to lift", func(ctx context.Context) error { return t.sidecars[name].Lifted(ctx, port) }); err != nil {
			return err
		}
	}
	t.ok("the sidecars of all who call have heard of it, %s", since(begin))
	go func() { second <- t.startSOFAApp(ctx, secondOrders, orders(address, "v2")) }()
	var stopping errgroup.Group
	for _, name := range []string{consumerMachine, shopMachine} {
		stopping.Go(func() error { return t.apps[name].Stop(ctx) })
	}
	if err := stopping.Wait(); err != nil {
		return err
	}
	var starting errgroup.Group
	starting.Go(func() error { return t.startConsumer(ctx) })
	starting.Go(func() error { return t.startShop(ctx) })
	starting.Go(func() error { return <-second })
	if err := starting.Wait(); err != nil {
		return err
	}
	t.ok("orders have a second instance, v2, on %s, which has no sidecar", secondOrders)
	for host, machine := range map[string]string{t.greetHost: consumerMachine, ordersHost: shopMachine} {
		if err := t.until(ctx, "lifted calls", func(ctx context.Context) error {
			sent, err := t.sidecars[machine].Sent(ctx, host, "")
			if err == nil && len(sent) < 2 {
				err = fmt.Errorf("%s has sent calls to %v", machine, sent)
			}
			return err
		}); err != nil {
			return err
		}
	}
	t.ok("the same applications call over the same protocols, and Envoy balances each call by itself")
	return nil
}

// ordersHost is the orders' name in the mesh (mcp-server/README.md, "Its host").
const ordersHost = "demo.order-service.v1-0.sofa.isthmus"

// What an operator says to Istio: what the versions are, and by the five lines of a route how many calls each of them gets.
const (
	versions = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: versions, namespace: default}
spec:
  host: HOST
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
`
	weights = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: weights, namespace: default}
spec:
  hosts: [HOST]
  http:
    - route:
        - {destination: {host: HOST, subset: v1}, weight: FIRST}
        - {destination: {host: HOST, subset: v2}, weight: SECOND}
`
)

// splits is how many calls a split is held to.
const splits = 600

func splitDubbo(ctx context.Context, t *story) error {
	return t.split(ctx, t.greetHost, consumerMachine, t.consumer, "sayHello", 250, 80)
}

func splitBolt(ctx context.Context, t *story) error {
	return t.split(ctx, ordersHost, shopMachine, t.shop, "order", 200, 25)
}

// split applies an operator's VirtualService by which so many of a hundred calls of a service go to v1, and the others to v2, and holds what the
// caller's sidecar sends to it.
func (t *story) split(ctx context.Context, host, machine string, c *caller.Caller, method string, rate float64, first int) error {
	fill := strings.NewReplacer("HOST", host, "FIRST", fmt.Sprint(first), "SECOND", fmt.Sprint(100-first))
	apply := func(name, text string) error {
		t.note("%s", t.paint(bold, "kubectl apply -f "+name+".yaml"))
		t.quote(fill.Replace(text))
		return t.mesh.ApplyIstio(name, fill.Replace(text))
	}
	begin := time.Now()
	if err := apply("versions", versions); err != nil {
		return err
	}
	// As ever with Istio: a route to what a sidecar has not heard of yet would fail.
	if err := t.until(ctx, "the sidecar to know both versions", func(ctx context.Context) error {
		page, err := t.sidecars[machine].Admin(ctx, "/clusters")
		for _, version := range []string{"v1", "v2"} {
			if err == nil && !strings.Contains(string(page), "|"+version+"|"+host+"::envoy://") {
				err = fmt.Errorf("it has no endpoint of %s", version)
			}
		}
		return err
	}); err != nil {
		return err
	}
	if err := apply("weights", weights); err != nil {
		return err
	}
	if err := c.Rates(map[string]float64{method: rate}); err != nil {
		return err
	}
	counts := func(ctx context.Context) (v1, v2 int, err error) {
		for _, of := range []struct {
			subset string
			n      *int
		}{{"v1", &v1}, {"v2", &v2}} {
			answered, err := t.sidecars[machine].Answered(ctx, host, of.subset)
			if err != nil {
				return 0, 0, err
			}
			for _, n := range answered {
				*of.n += n
			}
		}
		return v1, v2, nil
	}
	var v1, v2 int
	done := t.working("calls are counted")
	defer done()
	if err := t.until(ctx, "calls to both versions", func(ctx context.Context) (err error) {
		if v1, v2, err = counts(ctx); err == nil && (v1 == 0 || v2 == 0) {
			err = fmt.Errorf("%d calls to v1, %d to v2", v1, v2)
		}
		return err
	}); err != nil {
		return err
	}
	took := since(begin)
	mark := c.Mark()
	var a, b int
	if err := t.until(ctx, "enough calls", func(ctx context.Context) error {
		x, y, err := counts(ctx)
		if err != nil {
			return err
		}
		if x-v1 < a || y-v2 < b { // a cluster was made anew, and counts from nothing
			v1, v2, mark = x, y, c.Mark()
		}
		if a, b = x-v1, y-v2; a+b < splits {
			err = fmt.Errorf("%d calls to v1, %d to v2", a, b)
		}
		return err
	}); err != nil {
		return err
	}
	if _, _, err := c.Next(ctx, 1); err != nil {
		return err
	}
	done()
	seconds, faults := c.Since(mark)
	if n := caller.Sum(seconds).Total(); n.Errors > 0 {
		return fmt.Errorf("the caller has had %d errors: %v", n.Errors, faults)
	}
	if err := caller.Binomial(a, a+b, float64(first)/100); err != nil {
		return fmt.Errorf("to v1 %w", err)
	}
	n := float64(a + b)
	t.ok("in force after %s; of %d calls %d went to v1 and %d to v2: %.0f to %.0f, for %d to %d", took, a+b, a, b, 100*float64(a)/n, 100*float64(b)/n, first, 100-first)
	t.ok("and each of them was answered")
	if err := t.mesh.RemoveIstio("weights"); err != nil {
		return err
	}
	// The versions stay known while calls may still be on their way to them.
	if err := t.until(ctx, "the end of the weights", func(ctx context.Context) error {
		page, err := t.sidecars[machine].Admin(ctx, "/config_dump?resource=dynamic_route_configs")
		if err == nil && strings.Contains(string(page), "|v1|"+host) {
			err = errors.New("the sidecar has them still")
		}
		return err
	}); err != nil {
		return err
	}
	if err := t.mesh.RemoveIstio("versions"); err != nil {
		return err
	}
	return c.Rates(map[string]float64{method: map[string]float64{"sayHello": workload["sayHello"], "order": shopWorkload["order"]}[method]})
}

// releaseRate is how often sayHello is called while a version is released, so that even a small part of the calls is seen soon.
const releaseRate = 150

// release begins a rollout of the greeting service from v1 to v2.
func (t *story) release(ctx context.Context) error {
	// The method that always fails would make both versions look the same.
	if err := t.consumer.Rates(map[string]float64{"sayHello": releaseRate, "fail": 0}); err != nil {
		return err
	}
	return t.show(ctx, "rollout", "start", "greet", "--service", greetName, "--from", "version=v1", "--to", "version=v2", "--steps", "10,50,100", "--interval", "1s", "--min-calls", "20")
}

// released is what the API says of the rollout.
func (t *story) released(ctx context.Context) (r api.Rollout, err error) {
	return r, t.api(ctx, "/api/v1/rollouts/default/greet", &r)
}

func releaseGood(ctx context.Context, t *story) error {
	mark := t.consumer.Mark()
	if err := t.release(ctx); err != nil {
		return err
	}
	if err := t.show(ctx, "rollout", "status", "greet", "--watch"); err != nil {
		return err
	}
	r, err := t.released(ctx)
	if err != nil {
		return err
	}
	if r.Phase != rollout.PhaseCompleted || len(r.Passed) != 3 {
		return fmt.Errorf("it is %s after %d steps", r.Phase, len(r.Passed))
	}
	if _, _, err := t.consumer.Next(ctx, 1); err != nil {
		return err
	}
	seconds, faults := t.consumer.Since(mark)
	all := caller.Sum(seconds)
	if n := all.Total(); n.Errors > 0 || all["sayHello"].Exceptions > 0 {
		return fmt.Errorf("the consumer has had errors: %s %v", all, faults)
	}
	t.ok("v2 has all calls, and none was lost on the way: %s", all)
	return nil
}

func releaseBad(ctx context.Context, t *story) error {
	if err := t.consumer.Rates(map[string]float64{"sayHello": 0}); err != nil {
		return err
	}
	begin := time.Now()
	done := t.working("the good version is taken away")
	defer done()
	if err := t.providers[1].Stop(ctx); err != nil {
		return err
	}
	done()
	t.ok("the good v2 has gone, to make room for the next one, %s", since(begin))
	mark := t.consumer.Mark()
	if err := t.release(ctx); err != nil {
		return err
	}
	begin = time.Now()
	if err := t.startProvider(ctx, 1, "-Dbroken=true"); err != nil {
		return err
	}
	t.ok("a new v2 has come, with a bug, %s", since(begin))
	said, err := t.isthmusctl(ctx, "rollout", "status", "greet", "--watch")
	if err == nil {
		return errors.New("the version with a bug has been released")
	}
	r, err := t.released(ctx)
	if err != nil {
		return err
	}
	if r.Phase != rollout.PhaseFailed || r.Percent != 0 || !strings.Contains(said, "of the new version's calls fail") {
		return fmt.Errorf("it is %s at %d %%: %s", r.Phase, r.Percent, r.Message)
	}
	if err := t.until(ctx, "the end of its calls", func(ctx context.Context) error {
		seconds, _, err := t.consumer.Next(ctx, 1)
		if all := caller.Sum(seconds); err == nil && (all["sayHello"].Exceptions > 0 || all["sayHello"].OK == 0) {
			err = fmt.Errorf("the consumer says %s", all)
		}
		return err
	}); err != nil {
		return err
	}
	seconds, faults := t.consumer.Since(mark)
	n := caller.Sum(seconds)["sayHello"]
	if n.Exceptions == 0 || n.Exceptions > (n.OK+n.Exceptions)/5 || n.Errors > 0 {
		return fmt.Errorf("the consumer says %s %v", caller.Sum(seconds), faults)
	}
	t.ok("%d of %d calls have met the bug: v2 got no more than %d in 100 before all went back to v1", n.Exceptions, n.OK+n.Exceptions, r.Plan[0].Percent)
	return t.consumer.Rates(workload)
}
