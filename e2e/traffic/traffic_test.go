package traffic_test

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/e2e/caller"
	"github.com/isthmus-mesh/isthmus/e2e/mesh"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

const outcomeOK = protocol.OutcomeOK

// zoned is the service whose callers prefer their own zone.
const zoned = "demo.Zoned"

// A proof is one thing that Istio does: what an operator says to have it, about a service of that name, and how it shows.
type proof struct {
	service string
	say     string // HOST stands for the service's host
	holds   func(t *testing.T, b *bed, service string)
}

// providers are those of its service: all, or one that is there and one that is not.
func (p proof) providers() []int {
	if p.service == "demo.Dead" {
		return []int{0, deadOne}
	}
	return []int{0, 1, 2, 3}
}

// subsets is a DestinationRule with the two versions, policy and virtual are the beginnings of one with a traffic policy and of a
// VirtualService; NAME stands for the proof's name.
const (
	subsets = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: NAME, namespace: default}
spec:
  host: HOST
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---`
	policy = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: NAME, namespace: default}
spec:
  host: HOST
  trafficPolicy:`
	virtual = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: NAME, namespace: default}
spec:
  hosts: [HOST]
  http:`
)

var proofs = map[string]proof{
	"mirror": {"demo.Mirror", subsets + virtual + `
  - route: [{destination: {host: HOST, subset: v1}}]
    mirror: {host: HOST, subset: v2}
    mirrorPercentage: {value: 100}
`, mirror},
	"fault": {"demo.Fault", virtual + `
  - match: [{uri: {exact: /demo.Fault/abort}}]
    fault: {abort: {httpStatus: 503, percentage: {value: 30}}}
    route: [{destination: {host: HOST}}]
  - match: [{uri: {exact: /demo.Fault/delay}}]
    fault: {delay: {fixedDelay: 1s, percentage: {value: 50}}}
    route: [{destination: {host: HOST}}]
  - route: [{destination: {host: HOST}}]
`, fault},
	"direct response": {"demo.Closed", virtual + `
  - directResponse: {status: 429, body: {string: closed for the night}}
`, closed},
	"timeout": {"demo.Timeout", virtual + `
  - timeout: 0.3s
    route: [{destination: {host: HOST}}]
`, timeout},
	"retry": {"demo.Retry", virtual + `
  - match: [{uri: {prefix: /demo.Retry/gateway}}]
    retries: {attempts: 3, retryOn: gateway-error}
    route: [{destination: {host: HOST}}]
  - retries: {attempts: 1, retryOn: 5xx}
    route: [{destination: {host: HOST}}]
`, retry},
	"default retry": {"demo.Full", "", defaultRetry},
	"dead provider": {"demo.Dead", virtual + `
  - retries: {attempts: 3, retryOn: "connect-failure,reset"}
    route: [{destination: {host: HOST}}]
`, dead},
	"match": {"demo.Match", subsets + virtual + `
  - match: [{headers: {x-isthmus-attachment-tenant: {exact: gold}}}]
    route: [{destination: {host: HOST, subset: v2}}]
  - match: [{uri: {exact: /demo.Match/here}, sourceLabels: {app: somebody-else}}]
    route: [{destination: {host: HOST, subset: v2}}]
  - match: [{uri: {exact: /demo.Match/here}, sourceLabels: {app: traffic-consumer}}]
    route: [{destination: {host: HOST, subset: v1}}]
  - match: [{headers: {x-isthmus-caller: {prefix: traffic-}, x-isthmus-method: {regex: "get[A-Z].*"}}}]
    route: [{destination: {host: HOST, subset: v2}}]
  - route: [{destination: {host: HOST, subset: v1}}]
`, match},
	"consistent hash": {"demo.Hash", policy + `
    loadBalancer: {consistentHash: {httpHeaderName: x-isthmus-attachment-tenant}}
`, hash},
	"round robin": {"demo.Robin", policy + `
    loadBalancer: {simple: ROUND_ROBIN}
`, robin},
	"least request": {"demo.Least", policy + `
    loadBalancer: {simple: LEAST_REQUEST}
`, least},
	"connection pool": {"demo.Pool", policy + `
    connectionPool: {http: {http2MaxRequests: 2}}
`, pool},
	"outlier detection": {"demo.Outlier", policy + `
    outlierDetection: {consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 2s, maxEjectionPercent: 100}
`, outlier},
	"locality failover": {zoned, policy + `
    outlierDetection: {consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 2s, maxEjectionPercent: 100}
`, failover},
	"canary": {"demo.Canary", subsets, canary},
}

// The pages on which a sidecar's routes and clusters stand.
const (
	routesPage   = "/config_dump?resource=dynamic_route_configs"
	clustersPage = "/config_dump?resource=dynamic_active_clusters"
)

// TestTraffic is Istio's traffic management, proof by proof.
func TestTraffic(t *testing.T) {
	b := newBed(t)
	ctx := t.Context()
	for _, p := range proofs {
		b.register(p.service, p.providers()...)
	}
	b.must(b.ConfigureServer(mesh.ServerOptions{
		Registries: []mesh.Registry{
			{Name: "file", Kind: "file", Settings: map[string]any{"path": registry}},
			{Name: "zk", Kind: "zookeeper", Settings: map[string]any{"servers": []string{mesh.ZooKeeperAddress()}}},
		},
		Lift: map[string]any{"services": []any{map[string]any{"interface": zoned, "failover": true}, map[string]any{"framework": "dubbo"}, map[string]any{"framework": "sofa"}},
			"attachments": []string{"tenant"}},
	}))
	b.must(b.StartZooKeeper(ctx))
	apps := b.startApplications() // they take their time
	b.must(b.StartServer(ctx))
	var routes, clusters []string
	for name, p := range proofs {
		file := fileName(name)
		text := strings.NewReplacer("HOST", host(p.service), "NAME", file).Replace(p.say)
		if text == "" {
			continue
		}
		b.must(b.ApplyIstio(file, text))
		if strings.Contains(text, "kind: VirtualService") {
			routes = append(routes, "/virtual-service/"+file+`"`)
		}
		if strings.Contains(text, "kind: DestinationRule") {
			clusters = append(clusters, "/destination-rule/"+file+`"`)
		}
	}
	for name, a := range applications {
		b.must(b.ApplyIstio(fileName(name), strings.NewReplacer("HOST", a.host, "NAME", fileName(name), "CHOICE", a.choice).Replace(byHand)))
	}
	b.must(b.StartIstiod(ctx))
	_, err := b.Machine(consumer)
	b.must(err)
	b.sidecar, err = b.StartSidecarWith(ctx, consumer, mesh.SidecarOptions{App: app, Region: region, Zone: zone(0)})
	b.must(err)
	b.until(t, "the filter", func(ctx context.Context) error { return b.sidecar.Filtered(ctx, port, false) })
	b.until(t, "what the operator has said", func(ctx context.Context) error {
		if err := b.contains(ctx, routesPage, routes...); err != nil {
			return err
		}
		return b.contains(ctx, clustersPage, clusters...)
	})
	for _, p := range proofs {
		b.until(t, "the endpoints", func(ctx context.Context) error { return b.has(ctx, p.service, p.providers()...) })
	}
	x := b.sidecar.Machine()
	for i := range clients {
		c, err := dial(ctx, x, b.providers[i%providers].address())
		b.must(err)
		t.Cleanup(func() { c.end(net.ErrClosed) })
		b.clients = append(b.clients, c)
	}
	// The consumers of the real ones take their time, too.
	for name, a := range apps {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a.prove(t, name)
		})
	}
	t.Run("ours", func(t *testing.T) {
		t.Parallel()
		for name, p := range proofs {
			t.Run(name, func(t *testing.T) { p.holds(t, b, p.service) })
		}
	})
}

// mirror: the mirror's target sees each call, and its caller one answer, from the other.
func mirror(t *testing.T, b *bed, service string) {
	const n = 300
	by := allWell(t, b.load(t, service, n, 8, nil))
	if by[1]+by[3] > 0 {
		t.Errorf("the mirror's target has answered: %v", by)
	}
	b.until(t, "the mirrored calls", func(context.Context) error {
		if got := b.got(service); got[1]+got[3] != n {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	if got := b.got(service); got[0]+got[2] != n {
		t.Errorf("the providers have got %v", got)
	}
}

// fault: so many of a hundred are aborted, with Dubbo's own error that says so, and so many are delayed.
func fault(t *testing.T, b *bed, service string) {
	const n = 1000
	by, said := tally(b.load(t, service, n, 16, method("abort")))
	const text = "isthmus: unavailable: 503 fault filter abort"
	if said[text]+sum(by) != n || b.got(service) != by {
		t.Errorf("answered %v, provided %v, said %v", by, b.got(service), said)
	}
	if err := caller.Binomial(said[text], n, 0.3); err != nil {
		t.Errorf("aborted: %v", err)
	}
	const m = 400
	replies := b.load(t, service, m, m/clients, method("delay"))
	allWell(t, replies)
	late := 0
	for _, r := range replies {
		if r.took >= 900*time.Millisecond { // its clock stands still while it works
			late++
		}
	}
	counted := b.stat(t, fmt.Sprintf("http.outbound_0.0.0.0_%d;.fault.delays_injected", port))
	if late < counted { // on a busy machine others may be late, too
		t.Errorf("%d calls took so long, and %d were delayed", late, counted)
	}
	if err := caller.Binomial(counted, m, 0.5); err != nil {
		t.Errorf("delayed: %v", err)
	}
	allWell(t, b.load(t, service, 50, 4, nil))
}

// stat is one number of the sidecar's statistics.
func (b *bed) stat(t *testing.T, name string) (n int) {
	t.Helper()
	body, err := b.sidecar.Admin(t.Context(), "/stats?filter="+url.QueryEscape("^"+regexp.QuoteMeta(name)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(string(body), name+": %d", &n); err != nil {
		t.Fatalf("%s: %q: %v", name, body, err)
	}
	return n
}

// says fails the test where anything else is said than text, or anybody answers.
func says(t *testing.T, replies []reply, outcome protocol.Outcome, text string) {
	t.Helper()
	for i, r := range replies {
		if r.outcome != outcome || r.by >= 0 || !strings.HasPrefix(r.said, text) {
			t.Fatalf("call %d: %s; want %s %q", i, r, outcome, text)
		}
	}
}

// closed: what a route answers by itself is Dubbo's own error.
func closed(t *testing.T, b *bed, service string) {
	says(t, b.load(t, service, 20, 2, nil), protocol.OutcomeOverload, "isthmus: throttled: 429 closed for the night")
	if got := b.got(service); sum(got) > 0 {
		t.Errorf("the providers have got %v", got)
	}
}

// timeout: a provider that takes longer is not waited for, and its caller sees Dubbo's own timeout.
func timeout(t *testing.T, b *bed, service string) {
	b.behave(service, func(_ int, method string) answer {
		if method == "slow" {
			return answer{after: 3 * time.Second}
		}
		return answer{}
	})
	replies := b.load(t, service, 20, 5, method("slow"))
	says(t, replies, protocol.OutcomeTimeout, "isthmus: timeout: 504 upstream request timeout")
	for _, r := range replies {
		if r.took < 290*time.Millisecond { // its clock stands still while it works
			t.Errorf("%s", r)
		}
	}
	allWell(t, b.load(t, service, 20, 1, nil))
}

// retry: a provider that fails what it is asked first is asked again, or another is; its callers see none of it. What the route does not
// name is not tried again.
func retry(t *testing.T, b *bed, service string) {
	var mu sync.Mutex
	tries := map[string]int{}
	b.behave(service, func(_ int, method string) answer {
		mu.Lock()
		defer mu.Unlock()
		tries[method]++
		switch {
		case tries[method] > 1:
			return answer{}
		case strings.HasPrefix(method, "gatewayFull"):
			return answer{status: statusFull}
		}
		return answer{status: statusFailed}
	})
	const n = 200
	each := func(name string) func(i int) map[string]string {
		return func(i int) map[string]string { return map[string]string{"method": fmt.Sprintf("%s%d", name, i)} }
	}
	for _, name := range []string{"any", "gatewayFull"} {
		allWell(t, b.load(t, service, n, 8, each(name)))
	}
	if got := sum(b.got(service)); got != 4*n {
		t.Errorf("%d calls, each failing once, have become %d", 2*n, got)
	}
	for _, r := range b.load(t, service, n, 8, each("gatewayFailed")) {
		if r.outcome != protocol.OutcomeError || r.by < 0 {
			t.Fatalf("a call that failed at its provider, not at a gateway: %s", r)
		}
	}
	if got := sum(b.got(service)); got != 5*n {
		t.Errorf("%d calls that are not to be tried again have become %d", n, got-4*n)
	}
}

// defaultRetry: where nobody has said anything, a call that a full provider has not begun is done by another.
func defaultRetry(t *testing.T, b *bed, service string) {
	b.behave(service, func(number int, _ string) answer {
		if number == 0 {
			return answer{status: statusFull}
		}
		return answer{}
	})
	const n = 200
	by := allWell(t, b.load(t, service, n, 4, nil))
	if got := b.got(service); by[0] != 0 || got[0] == 0 || sum(got) != n+got[0] {
		t.Errorf("answered %v of %v", by, got)
	}
}

// dead: one of two providers is registered and gone. Its callers see none of it.
func dead(t *testing.T, b *bed, service string) {
	const n = 200
	if by := allWell(t, b.load(t, service, n, 4, nil)); by[0] != n {
		t.Errorf("answered %v", by)
	}
	if k := b.stat(t, fmt.Sprintf("cluster.outbound|%d||%s;.upstream_rq_retry_success", port, host(service))); k == 0 {
		t.Error("nothing has been tried again: the dead one was not asked")
	}
}

// match: by attachment, by method, by the caller, and by the labels of the caller's workload.
func match(t *testing.T, b *bed, service string) {
	for name, c := range map[string]struct {
		fields  map[string]string
		version string
	}{
		"attachment":       {map[string]string{"tenant": "gold"}, "v2"},
		"other attachment": {map[string]string{"tenant": "golden"}, "v1"},
		"source labels":    {map[string]string{"method": "here"}, "v1"},
		"regex and prefix": {map[string]string{"method": "getName"}, "v2"},
		"half of it":       {map[string]string{"method": "getName", "caller": "other"}, "v1"},
		"nothing":          {nil, "v1"},
	} {
		for number, n := range allWell(t, b.load(t, service, 40, 2, func(int) map[string]string { return c.fields })) {
			if n > 0 && version(number) != c.version {
				t.Errorf("%s: %d calls to %s", name, n, version(number))
			}
		}
	}
}

// hash: one value of an attachment always leads to the same provider, and the values are spread.
func hash(t *testing.T, b *bed, service string) {
	const tenants, each = 40, 10
	replies := b.load(t, service, tenants*each, 8, func(i int) map[string]string { return map[string]string{"tenant": fmt.Sprintf("tenant-%d", i%tenants)} })
	by := allWell(t, replies)
	for i, r := range replies {
		if want := replies[i%tenants].by; r.by != want {
			t.Errorf("tenant-%d is at provider %d and at %d", i%tenants, want, r.by)
		}
	}
	used := 0
	for _, n := range by {
		if n > 0 {
			used++
		}
	}
	if used < 3 { // 40 values at fewer than 3 of 4 providers: once in 10⁴⁹
		t.Errorf("the values are spread %v", by)
	}
}

// robin: each provider gets as many.
func robin(t *testing.T, b *bed, service string) {
	const n = 400
	by := allWell(t, b.load(t, service, n, 8, nil))
	for _, k := range by {
		if k < n/providers-1 || k > n/providers+1 {
			t.Errorf("%v", by)
			break
		}
	}
}

// least: a provider with more calls under way gets fewer.
func least(t *testing.T, b *bed, service string) {
	b.behave(service, func(number int, _ string) answer {
		if number == 0 {
			return answer{after: 300 * time.Millisecond}
		}
		return answer{}
	})
	const n = 400
	by := allWell(t, b.load(t, service, n, 8, nil))
	// It gets what both of two random choices are for: a sixteenth.
	if by[0] > n/8 {
		t.Errorf("a slow provider gets %v", by)
	}
}

// pool: what is beyond the limit is Dubbo's own error at once, and never reaches a provider.
func pool(t *testing.T, b *bed, service string) {
	b.behave(service, func(int, string) answer { return answer{after: 500 * time.Millisecond} })
	const n = 80
	by, said := tally(b.load(t, service, n, n/clients, nil))
	over := 0
	for text, k := range said {
		if !strings.HasPrefix(text, "isthmus: unavailable: 503 ") || !strings.Contains(text, "reset reason: overflow") {
			t.Errorf("%d calls: %q", k, text)
		}
		over += k
	}
	if sum(by) < 2 || over == 0 || sum(by)+over != n || b.got(service) != by {
		t.Errorf("answered %v, provided %v, said %v", by, b.got(service), said)
	}
}

// calling calls a service, some calls at a time, until what came of them satisfies a condition.
func (b *bed) calling(t *testing.T, service, what string, n int, condition func(by [providers]int, replies []reply) bool) {
	t.Helper()
	b.until(t, what, func(context.Context) error {
		replies := b.load(t, service, n, 2, nil)
		by, said := tally(replies)
		if !condition(by, replies) {
			return fmt.Errorf("%v, %v", by, said)
		}
		return nil
	})
}

// well tells whether all calls have gone well.
func well(replies []reply) bool {
	return !slices.ContainsFunc(replies, func(r reply) bool { return r.outcome != outcomeOK })
}

// outlier: a provider that fails gets no more calls, and gets them again when it has recovered.
func outlier(t *testing.T, b *bed, service string) {
	failed := func(number int, _ string) answer {
		if number == 0 {
			return answer{status: statusFailed}
		}
		return answer{}
	}
	b.behave(service, failed)
	b.calling(t, service, "the failing provider's ejection", 100, func(by [providers]int, replies []reply) bool {
		return well(replies) && by[0] == 0 && by[1] > 0 && by[2] > 0 && by[3] > 0
	})
	b.behave(service, nil)
	b.calling(t, service, "its return", 100, func(by [providers]int, replies []reply) bool { return well(replies) && by[0] > 0 })
}

// failover: calls stay in the caller's zone, go to the other when that one fails or is gone, and come back.
func failover(t *testing.T, b *bed, service string) {
	near := func(by [providers]int, replies []reply) bool {
		return well(replies) && by[0] > 0 && by[1] > 0 && by[2]+by[3] == 0
	}
	far := func(by [providers]int, replies []reply) bool {
		return well(replies) && by[0]+by[1] == 0 && by[2] > 0 && by[3] > 0
	}
	replies := b.load(t, service, 200, 4, nil)
	if by, _ := tally(replies); !near(by, replies) {
		t.Errorf("with all well: %v", by)
	}
	b.behave(service, func(number int, _ string) answer {
		if zone(number) == zone(0) {
			return answer{status: statusFailed}
		}
		return answer{}
	})
	b.calling(t, service, "the calls to go to the other zone", 100, far)
	b.behave(service, nil)
	b.calling(t, service, "the calls to come back", 100, near)

	// The registry has none there any more.
	b.register(service, 2, 3)
	b.calling(t, service, "the calls to go to the zone that is left", 100, func(by [providers]int, replies []reply) bool {
		if !well(replies) {
			t.Fatalf("a zone that leaves takes calls with it: %v", replies)
		}
		return far(by, replies)
	})
	b.register(service, 0, 1, 2, 3)
	b.calling(t, service, "the calls to come back to the zone that is there again", 100, func(by [providers]int, replies []reply) bool {
		if !well(replies) {
			t.Fatalf("a zone that comes takes calls with it: %v", replies)
		}
		return near(by, replies)
	})
}

// canary: weights move while calls go on. None is lost, and after each step they are spread as it says.
func canary(t *testing.T, b *bed, service string) {
	var mu sync.Mutex
	var replies []reply
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var callers sync.WaitGroup
	defer callers.Wait()
	defer stop()
	begin := func() {
		for _, c := range b.clients {
			for range 8 {
				callers.Go(func() {
					for ctx.Err() == nil {
						r := c.call(map[string]string{"service": service, "version": "1.0.0", "method": "call", "caller": app})
						mu.Lock()
						replies = append(replies, r)
						mu.Unlock()
						if r.err != nil {
							return
						}
					}
				})
			}
		}
	}
	made := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(replies)
	}
	// after waits until so many more calls have been made, and returns them.
	after := func(n int) []reply {
		t.Helper()
		from := made()
		b.until(t, "calls", func(context.Context) error {
			if k := made() - from; k < n {
				return fmt.Errorf("%d", k)
			}
			return nil
		})
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(replies[from : from+n])
	}
	for step, weight := range []int{0, 50, 100} { // of the new version
		b.must(b.ApplyIstio("canary-weights", strings.NewReplacer("HOST", host(service), "NAME", fmt.Sprintf("canary-%d", weight)).Replace(virtual+fmt.Sprintf(`
  - route:
    - {destination: {host: HOST, subset: v1}, weight: %d}
    - {destination: {host: HOST, subset: v2}, weight: %d}
`, 100-weight, weight))))
		b.until(t, "the weights", func(ctx context.Context) error {
			return b.contains(ctx, routesPage, fmt.Sprintf(`/virtual-service/canary-%d"`, weight))
		})
		if step == 0 {
			begin()
		}
		after(2 * clients * 8) // those that were under way
		const n = 1500
		by, said := tally(after(n))
		t.Logf("%d in a hundred to v2: %v", weight, by)
		if len(said) > 0 {
			t.Errorf("%d in a hundred: %v", weight, said)
		}
		if err := caller.Binomial(by[1]+by[3], n, float64(weight)/100); err != nil {
			t.Errorf("%d in a hundred: %v", weight, err)
		}
	}
	stop()
	callers.Wait()
	for i, r := range replies {
		if r.err != nil || r.outcome != outcomeOK {
			t.Fatalf("of %d calls the %dth: %s", len(replies), i, r)
		}
	}
	t.Logf("%d calls", len(replies))
	if n := sum(b.got(service)); n != len(replies) {
		t.Errorf("%d calls were answered and %d have arrived", len(replies), n)
	}
}
