package traffic_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/e2e/caller"
	"github.com/isthmus-mesh/isthmus/e2e/mesh"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
)

// An application is a real one in two versions, each on a machine without a sidecar, and a real consumer of it beside ours.
type application struct {
	host      string
	port      int
	providers [2]mesh.JVM // v1, v2
	consumer  mesh.JVM
	// aborted and late are the framework's exceptions for what a route aborts and for what it no longer waits for.
	aborted, late native
	// chosen is a method whose calls a route sends to v2, choice how the route knows them. well are further methods.
	chosen, choice string
	well           []string
}

// native is an exception of the RPC framework: its class and code.
type native struct {
	class string
	code  int
}

func dubboApp(p peer.Peer, main, name string, options ...string) mesh.JVM {
	return mesh.JVM{Peer: p, Main: main, Name: name, Options: append([]string{"-Ddubbo.application.name=" + name,
		"-Ddubbo.registry.address=zookeeper://" + mesh.ZooKeeperAddress()}, options...)}
}

func sofaApp(main, name string, options ...string) mesh.JVM {
	return mesh.JVM{Peer: peer.SOFARPC, Main: main, Name: name, Options: append([]string{"-Dapp.name=" + name,
		"-Dregistry.protocol=zookeeper", "-Dregistry.address=" + mesh.ZooKeeperAddress()}, options...)}
}

// Dubbo's codes are those of org.apache.dubbo.rpc.RpcException, SOFARPC's of com.alipay.sofa.rpc.core.exception.RpcErrorType.
var applications = map[string]application{
	"dubbo 2.7": {
		host: "demo.greet-service.v1-0-0.g-g1.dubbo.isthmus", port: 20881,
		providers: [2]mesh.JVM{
			dubboApp(peer.Dubbo27, "demo.Provider", "greet-provider", "-Ddubbo.protocol.port=20881", "-Ddubbo.provider.parameters=[{label.version:v1}]"),
			dubboApp(peer.Dubbo3, "demo.Provider", "greet-provider", "-Ddubbo.protocol.port=20881", "-Ddubbo.provider.parameters.label.version=v2"),
		},
		consumer: dubboApp(peer.Dubbo27, "demo.Consumer", "greet-consumer", "-Ddubbo.consumer.timeout=3000", "-Ddubbo.consumer.retries=0"),
		aborted:  native{"org.apache.dubbo.rpc.RpcException", 1},
		late:     native{"org.apache.dubbo.rpc.RpcException", 2},
		chosen:   "gold", choice: "headers: {x-isthmus-attachment-tenant: {exact: gold}}",
	},
	"bolt": {
		host: "demo.hello-service.v1-0.sofa.isthmus", port: 12200,
		providers: [2]mesh.JVM{
			sofaApp("demo.Provider", "hello-provider", "-Dlabel.version=v1"),
			sofaApp("demo.Provider", "hello-provider", "-Dlabel.version=v2"),
		},
		consumer: sofaApp("demo.Consumer", "hello-consumer"),
		aborted:  native{"com.alipay.sofa.rpc.core.exception.SofaRouteException", 210},
		late:     native{"com.alipay.sofa.rpc.core.exception.SofaTimeOutException", 200},
		chosen:   "later", choice: "headers: {x-isthmus-method: {exact: later}, x-isthmus-caller: {exact: hello-consumer}}",
		well: []string{"callback", "note"},
	},
}

// running is an application in the mesh.
type running struct {
	application
	b      *bed
	t      *testing.T
	v1, v2 string // addresses of the providers
	caller *caller.Caller
}

// startApplications starts what provides and does not wait for it.
func (b *bed) startApplications() map[string]*running {
	b.t.Helper()
	out := map[string]*running{}
	for name, a := range applications {
		r := &running{application: a, b: b}
		for i, j := range a.providers {
			m, err := b.Machine(fmt.Sprintf("%s-v%d", fileName(name), i+1))
			b.must(err)
			_, err = b.StartJava(m.Name(), j)
			b.must(err)
			*[]*string{&r.v1, &r.v2}[i] = fmt.Sprintf("%s:%d", m.Address(), a.port)
		}
		out[name] = r
	}
	return out
}

// startConsumer starts the consumer when the sidecar knows both providers, and waits until it has found them.
func (r *running) startConsumer(t *testing.T) {
	t.Helper()
	r.t = t
	r.b.until(t, "the providers", func(ctx context.Context) error {
		want := []string{r.v1, r.v2}
		slices.Sort(want)
		have, err := r.b.sidecar.Endpoints(ctx, r.host)
		if err == nil && !slices.Equal(have, want) {
			err = fmt.Errorf("the sidecar has %q, not %q", have, want)
		}
		return err
	})
	r.b.until(t, "the filter", func(ctx context.Context) error { return r.b.sidecar.Filtered(ctx, r.port, false) })
	p, err := r.b.StartJava(consumer, r.application.consumer)
	r.must(err)
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	_, err = p.UntilLine(ctx, "the consumer to find its providers", func(line string) bool { return line == "READY" })
	r.must(err)
	r.caller = caller.Follow(p)
}

func (r *running) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// sent is how many calls each provider has got, and how many have gone by way of each version's subset.
type sent struct{ v1, v2, subset1, subset2 int }

// sent asks the sidecar; group is what the subsets' names have behind the version's.
func (r *running) sent(ctx context.Context, group string) (n sent) {
	r.t.Helper()
	for subset, fn := range map[string]func(v1, v2 int){
		"":           func(v1, v2 int) { n.v1, n.v2 = v1, v2 },
		"v1" + group: func(v1, v2 int) { n.subset1 = v1 + v2 },
		"v2" + group: func(v1, v2 int) { n.subset2 = v1 + v2 },
	} {
		got, err := r.b.sidecar.Sent(ctx, r.host, subset)
		r.must(err)
		fn(got[r.v1], got[r.v2])
	}
	return n
}

// calls lets the consumer call until each of the methods has been called so often, and returns what it says of the calls and where they
// have gone.
func (r *running) calls(group string, rates map[string]float64, each int) (caller.Tally, []caller.Fault, sent) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), within)
	defer cancel()
	before := r.sent(ctx, group)
	mark := r.caller.Mark()
	r.must(r.caller.Rates(rates))
	r.must(r.caller.UntilCalled(ctx, mark, maps.Keys(rates), each))
	_, err := r.caller.Quiet(ctx)
	r.must(err)
	after := r.sent(ctx, group)
	seconds, faults := r.caller.Since(mark)
	return caller.Sum(seconds), faults, sent{after.v1 - before.v1, after.v2 - before.v2, after.subset1 - before.subset1, after.subset2 - before.subset2}
}

// enough is how many calls a split is held to.
const enough = 600

// split holds calls to a percentage that v2 gets. None may fail.
func (r *running) split(group string, percent int) {
	r.t.Helper()
	const method = "sayHello"
	said, faults, n := r.calls(group, map[string]float64{method: 300}, enough)
	if c := said[method]; c.Errors+c.Exceptions > 0 || c.OK != n.v1+n.v2 {
		r.t.Errorf("the consumer says %v %v, and its sidecar has sent %+v", said, faults, n)
	}
	if err := caller.Binomial(n.v2, n.v1+n.v2, float64(percent)/100); err != nil {
		r.t.Errorf("%d in a hundred to v2: %v", percent, err)
	}
	r.t.Logf("%d in a hundred: %d and %d", percent, n.v1, n.v2)
}

// others calls all but sayHello. What is chosen goes to v2 alone; the consumer gets the framework's own exceptions of what is aborted (echo), of what
// takes too long (slow), and of the business code (fail).
func (r *running) others(group string) {
	r.t.Helper()
	rates := map[string]float64{"echo": 30, "slow": 20, "fail": 30}
	for _, method := range append(r.well, r.chosen) {
		rates[method] = 30
	}
	said, faults, n := r.calls(group, rates, 20)
	for method, c := range said {
		want := caller.Counts{OK: c.OK}
		switch method {
		case "echo", "slow":
			want = caller.Counts{Errors: c.Errors}
		case "fail":
			want = caller.Counts{Exceptions: c.Exceptions}
		}
		want.Skipped = c.Skipped // for want of processor time
		if c != want {
			r.t.Errorf("%s: %+v", method, c)
		}
	}
	if n.subset1 != 0 || n.subset2 != said[r.chosen].OK {
		r.t.Errorf("the consumer says %v, and its sidecar has sent %+v", said, n)
	}
	for _, f := range faults {
		want, text := r.aborted, "isthmus: unavailable: 503 fault filter abort"
		switch f.Method {
		case "slow":
			want, text = r.late, "isthmus: timeout: 504 upstream request timeout"
		case "fail":
			want, text = native{"java.lang.IllegalStateException", -1}, "refused: no reason"
		}
		if (native{f.Error, f.Code}) != want || !strings.Contains(f.Message, text) {
			r.t.Errorf("%s: %s %d: %s", f.Method, f.Error, f.Code, f.Message)
		}
	}
	r.t.Logf("%v", said)
}

// byHand is what an operator says about an application.
const byHand = subsets + virtual + `
  - match: [{CHOICE}]
    route: [{destination: {host: HOST, subset: v2}}]
  - match: [{headers: {x-isthmus-method: {exact: echo}}}]
    fault: {abort: {httpStatus: 503, percentage: {value: 100}}}
    route: [{destination: {host: HOST}}]
  - match: [{headers: {x-isthmus-method: {exact: slow}}}]
    timeout: 0.1s
    route: [{destination: {host: HOST}}]
  - match: [{headers: {x-isthmus-method: {exact: sayHello}}}]
    route:
    - {destination: {host: HOST, subset: v1}, weight: 80}
    - {destination: {host: HOST, subset: v2}, weight: 20}
  - route: [{destination: {host: HOST}}]
`

// said are the names by which what an operator has said shows in a sidecar.
func said(name string) (route, cluster string) {
	return `/virtual-service/` + fileName(name) + `"`, `/destination-rule/` + fileName(name) + `"`
}

// routeRule is the same in SOFAStack's words, with other numbers, for Bolt.
const routeRule = `apiVersion: governance.isthmus.io/v1alpha1
kind: RouteRule
metadata: {name: hello}
spec:
  service: {framework: sofa, interface: demo.HelloService}
  routes:
  - match: [{method: later, caller: hello-consumer}]
    to: [{labels: {version: v2}}]
  - match: [{method: echo}]
    fault: {abort: {status: 503, ratio: "100%"}}
  - match: [{method: slow}]
    timeout: 100ms
  - match: [{method: sayHello}]
    to:
    - {labels: {version: v1}, percent: 30}
    - {labels: {version: v2}, percent: 70}
`

// rule: a RouteRule does for Bolt what a VirtualService does.
func (r *running) rule(name string) {
	route, cluster := said(name)
	r.must(r.b.ApplyRule("hello", routeRule))
	r.must(r.b.RemoveIstio(fileName(name)))
	r.b.until(r.t, "the RouteRule", func(ctx context.Context) error {
		for page, texts := range map[string][2]string{
			routesPage:   {"/virtual-service/route-demo.hello-service.", route},
			clustersPage: {"/destination-rule/route-demo.hello-service.", cluster},
		} {
			if err := r.b.contains(ctx, page, texts[0]); err != nil {
				return err
			}
			if err := r.b.contains(ctx, page, texts[1]); err == nil {
				return fmt.Errorf("%s still has %s", page, texts[1])
			}
		}
		return nil
	})
	r.split("-or-all", 70)
	r.others("-or-all")
}

// fileName is a name as a file and a resource have it.
func fileName(name string) string { return strings.NewReplacer(" ", "-", ".", "-").Replace(name) }

// prove is all of it for one application.
func (r *running) prove(t *testing.T, name string) {
	r.startConsumer(t)
	r.split("", 20)
	r.others("")
	if name == "bolt" {
		r.rule(name)
	}
}
