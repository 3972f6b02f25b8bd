// Package secure_test holds identities to real peers: stock Envoys with certificates as Istio's agent hands them out, under a stock
// istiod, speak mutual TLS for ordinary Dubbo applications, and who may call what is decided by who the caller is.
package secure_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/isthmus-mesh/isthmus/e2e/caller"
	"github.com/isthmus-mesh/isthmus/e2e/machine"
	"github.com/isthmus-mesh/isthmus/e2e/mesh"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
	"github.com/isthmus-mesh/isthmus/e2e/rig"
	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
)

func TestMain(m *testing.M) {
	os.Exit(rig.Main(m, append([]peer.Peer{peer.ZooKeeper, peer.Dubbo3}, rig.FilterPeers...)...))
}

const (
	within = 90 * time.Second
	port   = 20880

	provider, friend, stranger = "provider", "friend", "stranger" // machines
	providerApp                = "greet-provider"
)

// apps are the applications on the machines, and by them the identities of the sidecars.
var apps = map[string]string{provider: providerApp, friend: "friend-app", stranger: "stranger-app"}

// bed is a mesh with a provider that insists on mutual TLS, and two callers.
type bed struct {
	*mesh.Mesh
	t         *testing.T
	sidecars  map[string]*mesh.Sidecar
	processes []*machine.Process // of the callers
	callers   map[string]*caller.Caller
}

func (b *bed) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) until(what string, condition func(ctx context.Context) error) {
	b.t.Helper()
	rig.Until(b.t, within, what, condition)
}

const strict = `apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: default}
spec:
  selector: {matchLabels: {app: ` + providerApp + `}}
  mtls: {mode: STRICT}
`

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{Mesh: rig.Mesh(t), t: t, sidecars: map[string]*mesh.Sidecar{}, callers: map[string]*caller.Caller{}}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		for _, s := range b.sidecars {
			b.Autopsy(ctx, s)
		}
	})
	ctx := t.Context()
	b.must(b.Secure())
	b.must(b.StartZooKeeper(ctx))
	b.configure(map[string]any{"services": []any{map[string]any{"interface": "none.*"}}}) // so that it listens for sidecars
	b.must(b.StartServer(ctx))
	b.must(b.StartIstiod(ctx))
	b.must(b.ApplyIstio("strict", strict))
	for name, app := range apps {
		s, err := b.StartSidecar(ctx, name, app)
		b.must(err)
		b.sidecars[name] = s
	}
	p, err := b.StartJava(provider, mesh.JVM{Peer: peer.Dubbo3, Name: providerApp, Main: "demo.Provider", Options: []string{
		"-Ddubbo.application.name=" + providerApp, "-Ddubbo.registry.address=zookeeper://" + mesh.ZooKeeperAddress(), fmt.Sprintf("-Ddubbo.protocol.port=%d", port),
	}})
	b.must(err)
	_, err = p.UntilLine(ctx, "the provider to register", ready)
	b.must(err)
	for name, s := range b.sidecars {
		b.until("the filter of "+name, func(ctx context.Context) error { return s.Filtered(ctx, port, name == provider) })
	}
	b.until("the provider to insist on mutual TLS", b.insists)
	b.startCallers()
	return b
}

// configure says which services are lifted.
func (b *bed) configure(lift any) {
	b.t.Helper()
	b.must(b.ConfigureServer(mesh.ServerOptions{
		Registries: []mesh.Registry{{Name: "zk", Kind: "zookeeper", Settings: map[string]any{"servers": []string{mesh.ZooKeeperAddress()}}}},
		Identities: []any{map[string]any{"application": "greet-*"}},
		Lift:       lift,
	}))
}

// startCallers starts the callers, or starts them anew.
func (b *bed) startCallers() {
	b.t.Helper()
	var g errgroup.Group
	for _, p := range b.processes {
		g.Go(func() error { return p.Stop(b.t.Context()) })
	}
	b.must(g.Wait())
	b.processes = nil
	for _, name := range []string{friend, stranger} {
		p, err := b.StartJava(name, mesh.JVM{Peer: peer.Dubbo3, Name: apps[name], Main: "demo.Consumer", Options: []string{
			"-Ddubbo.application.name=" + apps[name], "-Ddubbo.registry.address=zookeeper://" + mesh.ZooKeeperAddress(),
			"-Ddubbo.consumer.timeout=3000", "-Ddubbo.consumer.retries=0", "-Dcalls=sayHello=20,echo=10,price=10",
		}})
		b.must(err)
		b.processes = append(b.processes, p)
		b.callers[name] = caller.Follow(p)
		g.Go(func() error {
			_, err := p.UntilLine(b.t.Context(), name+" to find its provider", ready)
			return err
		})
	}
	b.must(g.Wait())
}

func ready(line string) bool { return line == "READY" }

// insists says whether the provider's sidecar refuses plaintext: a machine without a sidecar sends the provider a heartbeat.
func (b *bed) insists(ctx context.Context) error {
	switch _, err := b.exchange(ctx, []byte{0xda, 0xbb, 0xe2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 'N'}, 17); {
	case err == nil:
		return errors.New("it answers in plaintext")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return nil
	default:
		return err
	}
}

// sees waits until a caller's calls are, for a second, as want has it.
func (b *bed) sees(who, what string, want func(second caller.Tally) error) {
	b.t.Helper()
	ctx, cancel := context.WithTimeoutCause(b.t.Context(), within, fmt.Errorf("not within %s", within))
	defer cancel()
	c := b.callers[who]
	var last error
	if err := c.Until(ctx, what, c.Mark(), func(s []caller.Tally, _ []caller.Fault) bool {
		if len(s) < 2 { // the second that is under way belongs half to what was before
			return false
		}
		last = want(s[len(s)-1])
		return last == nil
	}); err != nil {
		b.t.Fatalf("%s: %v: %v", who, err, last)
	}
}

// allowed: no call fails.
func allowed(second caller.Tally) error {
	if n := second.Total(); second["sayHello"].OK == 0 || second["echo"].OK == 0 || second["price"].OK == 0 || n.Errors+n.Exceptions > 0 {
		return fmt.Errorf("not all is well: %s", second)
	}
	return nil
}

// denied: the calls of these methods fail, and no others.
func denied(methods ...string) func(second caller.Tally) error {
	return func(second caller.Tally) error {
		n := second.Total()
		for _, m := range methods {
			if second[m].OK > 0 || second[m].Errors == 0 {
				return fmt.Errorf("%s is not denied: %s", m, second)
			}
			n.Errors -= second[m].Errors
		}
		if n.Errors > 0 {
			return fmt.Errorf("others are denied, too: %s", second)
		}
		return nil
	}
}

// told says that a caller has seen an error with such a text.
func (b *bed) told(who, text string) {
	b.t.Helper()
	_, faults := b.callers[who].Since(caller.Mark{})
	for _, f := range faults {
		if f.Error == "org.apache.dubbo.rpc.RpcException" && strings.Contains(f.Message, text) {
			return
		}
	}
	b.t.Errorf("%s was never told %q: %+v", who, text, faults)
}

// count adds up a counter of a sidecar over the samples that carry these labels.
func (b *bed) count(ctx context.Context, who, name string, labels map[string]string) (sum int, err error) {
	samples, err := b.sidecars[who].Metrics(ctx, name)
next:
	for _, s := range samples {
		for k, v := range labels {
			if s.Labels[k] != v {
				continue next
			}
		}
		sum += int(s.Value)
	}
	return sum, err
}

const access = `apiVersion: governance.isthmus.io/v1alpha1
kind: AccessRule
metadata: {name: friends}
spec:
  direction: server
  mode: %s
  target: {service: demo.GreetService, method: %s}
  action: deny
  match: [{subject: callerIdentity, operator: equals, values: ["%s"]}]
`

// TestIdentities is one story: the same applications call each other as they are, and then as HTTP/2.
func TestIdentities(t *testing.T) {
	b := newBed(t)
	b.passthrough()
	b.lifted()
}

// passthrough: calls that go as they are go through mutual TLS, and the provider's filter knows by whom they are.
func (b *bed) passthrough() {
	for _, who := range []string{friend, stranger} {
		b.sees(who, "to call", allowed)
	}
	b.must(b.ApplyRule("friends", fmt.Sprintf(access, "observe", "sayHello", mesh.Identity(apps[stranger]))))
	b.until("the observer to count", func(ctx context.Context) error {
		n, err := b.count(ctx, provider, "isthmus_rule_hits_total", map[string]string{"rpc_rule_name": "default/friends", "rpc_rule_action": "would_reject"})
		if err == nil && n == 0 {
			err = errors.New("it has counted nothing")
		}
		return err
	})
	for _, who := range []string{friend, stranger} {
		b.sees(who, "to be left alone by an observer", allowed)
	}
	b.must(b.ApplyRule("friends", fmt.Sprintf(access, "intercept", "sayHello", mesh.Identity(apps[stranger]))))
	b.sees(stranger, "to be denied", denied("sayHello"))
	b.sees(friend, "to be allowed", allowed)
	b.told(stranger, `isthmus: denied: rule "default/friends"`)
	b.must(b.RemoveRule("friends"))
}

// policies are an operator's, at the provider: by method and by who calls, and by a header that was an attachment.
const policies = `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: strangers, namespace: default}
spec:
  selector: {matchLabels: {app: ` + providerApp + `}}
  action: DENY
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/stranger-app]}}]
    to: [{operation: {paths: [/demo.GreetService/sayHello]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: gold, namespace: default}
spec:
  selector: {matchLabels: {app: ` + providerApp + `}}
  action: DENY
  rules:
  - when: [{key: "request.headers[x-isthmus-attachment-tenant]", values: [gold]}]
`

// lifted: calls that travel as HTTP/2 streams, lowered by their callers or behind the provider's own connection manager, are authorized by Istio's own
// policies, counted by Istio's own names, and governed by who makes them as any others.
func (b *bed) lifted() {
	b.configure(map[string]any{"attachments": []string{"tenant"}, "metrics": true, "services": []any{
		map[string]any{"interface": "demo.GreetService", "lower": "provider-http"},
		map[string]any{"framework": "dubbo", "lower": "caller"}, // what is lowered already comes as any plain call, over mutual TLS
	}})
	for name, s := range b.sidecars {
		in := ""
		if name == provider {
			in = "isthmus-provider"
		}
		b.until("calls of "+name+" to be lifted", func(ctx context.Context) error { return s.Extended(ctx, port, "isthmus-lift", in) })
	}
	b.startCallers()
	for _, who := range []string{friend, stranger} {
		b.must(b.callers[who].Rates(map[string]float64{"gold": 5}))
		b.sees(who, "to call", allowed)
	}
	b.must(b.ApplyIstio("policies", policies))
	b.sees(stranger, "to be denied a method", denied("sayHello", "gold"))
	b.sees(friend, "to be denied a tenant", denied("gold"))
	b.told(stranger, "isthmus: denied: 403 RBAC: access denied")
	b.told(friend, "isthmus: denied: 403 RBAC: access denied")
	b.must(b.RemoveIstio("policies"))

	// The other method, since an application prints each kind of error once in its life.
	b.must(b.ApplyRule("friends", fmt.Sprintf(access, "intercept", "echo", mesh.Identity(apps[stranger]))))
	b.sees(stranger, "to be denied by a rule", denied("echo"))
	b.sees(friend, "to be allowed", allowed)
	b.told(stranger, `isthmus: denied: rule "default/friends"`)

	b.must(b.callers[friend].Rates(map[string]float64{"fail": 10}))
	for _, ended := range []map[string]string{
		{"response_code": "200", "grpc_response_status": "0"},
		{"response_code": "200", "grpc_response_status": "2"}, // the provider's code throws: to be seen, but no failure of the provider
		{"response_code": "403", "grpc_response_status": "7"},
	} {
		b.counts(friend, "source", ended)
		b.counts(provider, "destination", ended)
	}
	// What its caller has lowered, and Dubbo's own service, which is called where it was dialled, come as plain Dubbo, and are lifted by the
	// provider's sidecar.
	for _, host := range []string{"demo.stock-service.dubbo.isthmus", "org.apache.dubbo.metadata.metadata-service.v1-0-0.g-greet--3provider.dubbo.isthmus"} {
		b.until("calls of "+host+" to be counted", func(ctx context.Context) error {
			n, err := b.count(ctx, provider, "istio_requests_total", map[string]string{"reporter": "destination", "destination_service": host,
				"source_principal": mesh.Identity(apps[friend]), "connection_security_policy": "mutual_tls", "response_code": "200"})
			if err == nil && n == 0 {
				err = errors.New("none is")
			}
			return err
		})
	}
	b.until("the caller to know that it speaks mutual TLS", func(ctx context.Context) error {
		n, err := b.count(ctx, friend, "istio_requests_total", map[string]string{"reporter": "source", "destination_service": "demo.stock-service.dubbo.isthmus",
			"destination_principal": mesh.Identity(providerApp), "connection_security_policy": "mutual_tls", "response_code": "200"})
		if err == nil && n == 0 {
			err = errors.New("it does not")
		}
		return err
	})
	// Prometheus finds them under Istio's names.
	page, err := b.sidecars[provider].Admin(b.t.Context(), "/stats/prometheus?filter=istio_")
	b.must(err)
	for _, name := range []string{"istio_requests_total{", "istio_request_duration_milliseconds_bucket{"} {
		if !strings.Contains(string(page), "\n"+name) {
			b.t.Errorf("there is no %s", name)
		}
	}

	// Without insisting, whoever has no sidecar is served, and lifted, authorized and counted all the same.
	b.must(b.RemoveIstio("strict"))
	b.until("a call in plaintext", b.calls)
	b.until("the call in plaintext to be counted", func(ctx context.Context) error {
		n, err := b.count(ctx, provider, "istio_requests_total", map[string]string{
			"destination_service": greetHost, "source_app": "outside", "source_principal": "unknown", "connection_security_policy": "none"})
		if err == nil && n == 0 {
			err = errors.New("it is not")
		}
		return err
	})
}

// calls makes one call from a machine without a sidecar.
func (b *bed) calls(ctx context.Context) error {
	request, err := filtertest.Dubbo("req", map[string]string{"id": "77", "service": "demo.GreetService", "version": "1.0.0", "group": "g1", "method": "sayHello", "caller": "outside"})
	if err != nil {
		return err
	}
	answer, err := b.exchange(ctx, request, 16)
	if err == nil && (answer[2]&0x80 != 0 || answer[11] != 77) {
		err = fmt.Errorf("it is answered by % x", answer)
	}
	return err
}

// exchange sends the provider a frame from a machine without a sidecar, and returns the first n bytes of what comes back.
func (b *bed) exchange(ctx context.Context, frame []byte, n int) ([]byte, error) {
	outside, err := b.Machine(mesh.ZooKeeperMachine)
	if err != nil {
		return nil, err
	}
	c, err := outside.DialContext(ctx, "tcp", fmt.Sprintf("%s:%d", b.sidecars[provider].Machine().Address(), port))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return nil, err
	}
	if _, err := c.Write(frame); err != nil {
		return nil, err
	}
	answer := make([]byte, n)
	_, err = io.ReadFull(c, answer)
	return answer, err
}

const greetHost = "demo.greet-service.v1-0-0.g-g1.dubbo.isthmus"

// counts waits until a sidecar has counted a call of the friend with all the labels that Istio's own would give it.
func (b *bed) counts(who, reporter string, ended map[string]string) {
	b.t.Helper()
	want := map[string]string{
		"reporter": reporter, "request_protocol": "grpc", "response_flags": "-", "connection_security_policy": "mutual_tls",
		"source_workload": apps[friend], "source_workload_namespace": mesh.Namespace, "source_app": apps[friend], "source_version": "unknown",
		"source_canonical_service": apps[friend], "source_canonical_revision": "latest", "source_principal": mesh.Identity(apps[friend]), "source_cluster": mesh.ClusterID,
		"destination_workload": providerApp, "destination_workload_namespace": mesh.Namespace, "destination_app": providerApp, "destination_version": "unknown",
		"destination_canonical_service": providerApp, "destination_canonical_revision": "latest", "destination_principal": mesh.Identity(providerApp), "destination_cluster": mesh.ClusterID,
		"destination_service": greetHost, "destination_service_name": greetHost, "destination_service_namespace": mesh.Namespace,
	}
	maps.Copy(want, ended)
	b.until(fmt.Sprintf("%s to count calls that ended with %v", who, ended), func(ctx context.Context) error {
		samples, err := b.sidecars[who].Metrics(ctx, "istio_requests_total")
		if err != nil {
			return err
		}
		nearest, fault := -1, errors.New("it counts nothing")
		for _, s := range samples {
			var wrong []string
			for _, k := range slices.Sorted(maps.Keys(want)) {
				if s.Labels[k] != want[k] {
					wrong = append(wrong, fmt.Sprintf("%s is %q, not %q", k, s.Labels[k], want[k]))
				}
			}
			for k := range s.Labels {
				if _, ok := want[k]; !ok {
					wrong = append(wrong, "there is also "+k)
				}
			}
			if len(wrong) == 0 && s.Value > 0 {
				return nil
			}
			if nearest < 0 || len(wrong) < nearest {
				nearest, fault = len(wrong), errors.New(strings.Join(wrong, ", "))
			}
		}
		return fault
	})
}
