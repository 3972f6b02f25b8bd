// Package rules holds every kind of rule to what real Dubbo clients, of Dubbo2 and of Triple, and SOFARPC clients see of it, at either end, with sidecars of four
// workers, and to what mcp-server says of it.
package rules

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/pem"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/isthmus-mesh/isthmus/e2e/caller"
	"github.com/isthmus-mesh/isthmus/e2e/machine"
	"github.com/isthmus-mesh/isthmus/e2e/mesh"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
	"github.com/isthmus-mesh/isthmus/e2e/rig"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
)

func TestMain(m *testing.M) {
	// The frameworks wait for each other's sidecars, not for the processor: none of them should have to wait for a turn.
	if err := flag.Set("test.parallel", strconv.Itoa(len(frameworks))); err != nil {
		panic(err)
	}
	os.Exit(rig.Main(m, append(rig.FilterPeers, peer.ZooKeeper, peer.Dubbo3, peer.SOFARPC)...))
}

const (
	provider, consumer = "provider", "consumer" // machines
	dubboPort          = 20880
	boltPort           = 12200
	triplePort         = 50051
	within             = 90 * time.Second
)

// workload is what each consumer calls, a second.
var workload = map[string]float64{"sayHello": 20, "echo": 10, "fail": 20, "slow": 20}

// A framework is one kind of application.
type framework struct {
	peer                 peer.Peer
	service              string
	exception            string // class of an error of the RPC
	version              string // of the service: two frameworks have services of one name
	providers, consumers []string
}

var frameworks = map[string]framework{
	"dubbo": {peer.Dubbo3, "demo.GreetService", "org.apache.dubbo.rpc.RpcException", "1.0.0",
		[]string{"-Ddubbo.application.name=greet-provider", "-Ddubbo.registry.address=zookeeper://" + mesh.ZooKeeperAddress(), fmt.Sprintf("-Ddubbo.protocol.port=%d", dubboPort)},
		[]string{"-Ddubbo.application.name=greet-consumer", "-Ddubbo.registry.address=zookeeper://" + mesh.ZooKeeperAddress(), "-Ddubbo.consumer.timeout=3000", "-Ddubbo.consumer.retries=0"}},
	"triple": {peer.Dubbo3, "demo.GreetService", "org.apache.dubbo.rpc.", "2.0.0",
		[]string{"-Ddubbo.application.name=triple-provider", "-Ddubbo.registry.address=zookeeper://" + mesh.ZooKeeperAddress(), "-Ddubbo.protocol.name=tri", fmt.Sprintf("-Ddubbo.protocol.port=%d", triplePort), "-Dgreet.version=2.0.0"},
		[]string{"-Ddubbo.application.name=triple-consumer", "-Ddubbo.registry.address=zookeeper://" + mesh.ZooKeeperAddress(), "-Ddubbo.consumer.timeout=3000", "-Ddubbo.consumer.retries=0", "-Dgreet.version=2.0.0"}},
	"sofa": {peer.SOFARPC, "demo.HelloService", "com.alipay.sofa.rpc.core.exception.", "1.0",
		[]string{"-Dapp.name=hello-provider", "-Dregistry.protocol=zookeeper", "-Dregistry.address=" + mesh.ZooKeeperAddress(), fmt.Sprintf("-Dport=%d", boltPort)},
		[]string{"-Dapp.name=hello-consumer", "-Dregistry.protocol=zookeeper", "-Dregistry.address=" + mesh.ZooKeeperAddress()}},
}

// bed is a mesh with a provider and a consumer of each framework in it.
type bed struct {
	*mesh.Mesh
	t        *testing.T
	callers  map[string]*caller.Caller
	sidecars map[string]*mesh.Sidecar
	keyring  keyring
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

func (b *bed) start(where, name, main string, f framework, options ...string) (*machine.Process, error) {
	ctx, cancel := context.WithTimeout(b.t.Context(), 2*within)
	defer cancel()
	p, err := b.StartJava(where, mesh.JVM{Peer: f.peer, Name: name, Main: main, Options: options})
	if err != nil {
		return nil, err
	}
	_, err = p.UntilLine(ctx, name+" to be ready", func(line string) bool { return line == "READY" })
	return p, err
}

func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{Mesh: rig.Mesh(t), t: t, callers: map[string]*caller.Caller{}, sidecars: map[string]*mesh.Sidecar{}}
	b.must(b.StartZooKeeper(t.Context()))
	b.must(b.ConfigureServer(mesh.ServerOptions{Scrape: []string{provider, consumer}, Registries: []mesh.Registry{
		{Name: "zk", Kind: "zookeeper", Settings: map[string]any{"servers": []string{mesh.ZooKeeperAddress()}}}}}))
	b.keyring = b.newKeyring()
	b.must(b.StartServer(t.Context()))
	b.must(b.StartIstiod(t.Context()))
	for where, app := range map[string]string{provider: "provider", consumer: "consumer"} {
		s, err := b.StartSidecarWorkers(t.Context(), where, app, 4)
		b.must(err)
		b.sidecars[where] = s
	}
	var g errgroup.Group
	for name, f := range frameworks {
		g.Go(func() error { _, err := b.start(provider, name, "demo.Provider", f, f.providers...); return err })
	}
	b.must(g.Wait())
	for where, s := range b.sidecars {
		for _, port := range []int{dubboPort, boltPort, triplePort} {
			b.until("the filter", func(ctx context.Context) error { return s.Filtered(ctx, port, where == provider) })
		}
	}
	var rates []string
	for _, method := range slices.Sorted(maps.Keys(workload)) {
		rates = append(rates, fmt.Sprintf("%s=%g", method, workload[method]))
	}
	processes := map[string]*machine.Process{}
	for name, f := range frameworks {
		p, err := b.start(consumer, name, "demo.Consumer", f, append(f.consumers, "-Dcalls="+strings.Join(rates, ","), "-Dattachments="+b.keyring.attachments)...)
		b.must(err)
		processes[name] = p
	}
	for name, p := range processes {
		c := caller.Follow(p)
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		b.must(c.Until(ctx, "to call every method", caller.Mark{}, func(s []caller.Tally, _ []caller.Fault) bool {
			return len(caller.Sum(s)) == len(workload)
		}))
		b.callers[name] = c
	}
	return b
}

// head is how a rule's YAML begins.
const head = "apiVersion: governance.isthmus.io/v1alpha1\nkind: %s\nmetadata: {name: %s}\nspec:\n  direction: %s\n  mode: %s\n  target: {service: %s, version: \"%s\", method: %s}\n"

// A want is what a second of a method's calls must look like under a rule.
type want func(calls caller.Counts) error

// rejected: calls fail as errors of the RPC; some says that not all of them do.
func rejected(some bool) want {
	return func(n caller.Counts) error {
		if n.Errors == 0 {
			return fmt.Errorf("none is rejected: %+v", n)
		}
		if got := n.OK+n.Exceptions > 0; got != some {
			return fmt.Errorf("calls that come through: %v, want %v: %+v", got, some, n)
		}
		return nil
	}
}

// answered: calls that would throw return a value.
func answered(n caller.Counts) error {
	if n.OK == 0 || n.Exceptions+n.Errors > 0 {
		return fmt.Errorf("not all return a value: %+v", n)
	}
	return nil
}

// cases are the rules. told is what the caller's exception must hold, with the rule's name to be put in; empty where there is none.
var cases = map[string]struct {
	kind, method, spec, told string
	want                     want
}{
	"rate":          {"ThrottleRule", "sayHello", "  threshold: 5\n", `isthmus: throttled: rule "default/%s"`, rejected(true)},
	"concurrency":   {"ThrottleRule", "slow", "  type: concurrency\n  threshold: 1\n", `isthmus: throttled: rule "default/%s"`, rejected(true)},
	"breaker":       {"CircuitBreakerRule", "fail", "  strategy: errorRatio\n  threshold: 50%\n  errors: [exception]\n  retryTimeout: 1m\n", `isthmus: unavailable: rule "default/%s"`, rejected(false)},
	"slow calls":    {"CircuitBreakerRule", "slow", "  strategy: slowCallRatio\n  threshold: 0.5\n  maxAllowedRt: 100ms\n  retryTimeout: 1m\n", `isthmus: unavailable: rule "default/%s"`, rejected(false)},
	"deny":          {"AccessRule", "sayHello", "  action: deny\n  match: [{subject: callerApplication, operator: regex, values: ['(greet|hello|triple)-consumer']}]\n", `isthmus: denied: rule "default/%s"`, rejected(false)},
	"default deny":  {"AccessRule", "sayHello", "  action: defaultDeny\n", `isthmus: denied: rule "default/%s"`, rejected(false)},
	"abort":         {"FaultRule", "sayHello", "  abort: {message: a drill}\n", `isthmus: aborted: rule "default/%s"`, rejected(false)},
	"abort of half": {"FaultRule", "sayHello", "  abort: {code: timeout}\n  ratio: 50%\n", "", rejected(true)},
	"reply":         {"DegradeRule", "fail", "  reply: {json: all is well}\n", "", answered},
}

// tokenCases are rules about what clients show with each call of echo: Dubbo's in attachments, which are headers of Triple, and SOFARPC's in properties of the
// request, which are headers of Bolt.
var tokenCases = map[string]string{
	"expired": "token expired",
	"forged":  "bad signature",
}

// tokenRule asks for the token in an attachment; the keys are those of bed.keys.
const tokenRule = "  action: allow\n  token: {from: {attachment: token-%s}, keyRef: {name: sso}, jwt: {issuer: demo}}\n"

// A keyring makes the tokens and keys of a bed.
type keyring struct {
	attachments string            // as consumers take them
	secrets     map[string][]byte // by framework
}

// newKeyring gives mcp-server keys of both kinds.
func (b *bed) newKeyring() keyring {
	b.t.Helper()
	signer := func(algorithm string) *filtertest.Signer {
		s, err := filtertest.NewSigner(algorithm)
		b.must(err)
		return s
	}
	var shown []string
	show := func(name string, by *filtertest.Signer, expiry time.Duration) {
		token, err := by.Token("", fmt.Sprintf(`{"iss":"demo","exp":%d}`, time.Now().Add(expiry).Unix()))
		b.must(err)
		shown = append(shown, "token-"+name+"="+token)
	}
	sso := signer("RS256")
	show("good", sso, time.Hour)
	show("expired", sso, -time.Hour)
	show("forged", signer("RS256"), time.Hour)
	b.must(b.WriteKeys("sso.pem", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: sso.Value()})))
	k := keyring{secrets: map[string][]byte{}}
	for framework := range frameworks {
		partners := signer("HS256")
		show("secret-"+framework, partners, time.Hour)
		k.secrets[framework] = partners.Value()
		b.must(b.WriteKeys("partners-"+framework+".jwks", k.jwks(partners.Value())))
	}
	k.attachments = strings.Join(shown, ",")
	return k
}

// jwks is a file with a secret.
func (keyring) jwks(secret []byte) []byte {
	return fmt.Appendf(nil, `{"keys":[{"kty":"oct","k":%q}]}`, base64.RawURLEncoding.EncodeToString(secret))
}

// tokens: calls with a good token go through, whether by a public key or by a secret, which goes to the consumer's sidecar alone. With another secret
// they do not, until the old one is back.
func (b *bed) tokens(name string, f framework) {
	b.t.Helper()
	calls, keys := b.callers[name], "partners-"+name+".jwks"
	ctx, cancel := context.WithTimeoutCause(b.t.Context(), 2*within, fmt.Errorf("not within %s", 2*within))
	defer cancel()
	settled := func(what string, want func(n caller.Counts) bool) {
		b.t.Helper()
		b.must(calls.Until(ctx, what, calls.Mark(), func(s []caller.Tally, _ []caller.Fault) bool { return len(s) >= 2 && want(s[len(s)-1]["echo"]) }))
	}
	passes := func(n caller.Counts) bool { return n.OK > 0 && n.Errors == 0 }
	for by, spec := range map[string]string{
		"by a public key": fmt.Sprintf(tokenRule, "good"),
		"by a secret":     fmt.Sprintf("  action: allow\n  token: {from: {attachment: token-secret-%[1]s}, keyRef: {name: partners-%[1]s}, jwt: {}}\n", name),
	} {
		rule := fmt.Sprintf("apiVersion: governance.isthmus.io/v1alpha1\nkind: AccessRule\nmetadata: {name: %s}\nspec:\n  direction: client\n"+
			"  target: {application: consumer, service: %s, version: %q, method: echo}\n", name, f.service, f.version) + spec
		b.must(b.ApplyRule(name, rule))
		b.until("calls "+by+" to be admitted", func(ctx context.Context) error {
			e, err := b.effective(ctx, "AccessRule", name)
			if err == nil && e.Totals["admit"] == 0 {
				err = fmt.Errorf("it has counted %v", e.Totals)
			}
			return err
		})
		settled("to pass "+by, passes)
		if by == "by a secret" {
			for where, has := range map[string]bool{consumer: true, provider: false} {
				dump, err := b.sidecars[where].Admin(ctx, "/config_dump")
				b.must(err)
				secret := strings.TrimRight(base64.StdEncoding.EncodeToString(b.keyring.secrets[name]), "=")
				if !bytes.Contains(dump, []byte("default/"+name)) || bytes.Contains(dump, []byte(secret)) != has {
					b.t.Errorf("the %s's sidecar lacks the rule, or that it has the secret is not %v", where, has)
				}
			}
			b.must(b.WriteKeys(keys, b.keyring.jwks(bytes.Repeat([]byte{1}, 32))))
			settled("to be denied by another secret", func(n caller.Counts) bool { return n.OK == 0 && n.Errors > 0 })
			b.must(b.WriteKeys(keys, b.keyring.jwks(b.keyring.secrets[name])))
			settled("to pass by the old one", passes)
		}
		b.must(b.RemoveRule(name))
		settled("to be free", passes)
	}
}

// TestRules applies each rule at each end; the frameworks take their turns side by side.
func TestRules(t *testing.T) {
	b := newBed(t)
	t.Run("each", func(t *testing.T) {
		for framework, f := range frameworks {
			t.Run(framework, func(t *testing.T) {
				t.Parallel()
				for name, c := range cases {
					for _, direction := range []string{"client", "server"} {
						t.Run(name+" at the "+direction, func(t *testing.T) {
							mine := *b
							mine.t = t
							c := c
							if framework == "triple" && name == "reply" { // which Envoy answers with a status only
								c.told, c.want = `isthmus: unavailable: rule "default/%s"`, rejected(false)
							}
							mine.rule(framework, f, c.kind, direction, c.method, c.spec, c.told, c.want)
						})
					}
				}
				mine := *b
				for name, told := range tokenCases {
					t.Run("token "+name, func(t *testing.T) {
						mine.t = t
						mine.rule(framework, f, "AccessRule", "server", "echo", fmt.Sprintf(tokenRule, name), `isthmus: denied: rule "default/%s"; `+told, rejected(false))
					})
				}
				t.Run("good tokens", func(t *testing.T) {
					mine.t = t
					mine.tokens(framework, f)
				})
			})
		}
	})
	b.queue()
	b.endpoints()
}

// second waits until a whole second of what the Dubbo consumer says of sayHello is as it should be.
func (b *bed) second(what string, condition func(n caller.Counts) bool) {
	b.t.Helper()
	ctx, cancel := context.WithTimeoutCause(b.t.Context(), within, fmt.Errorf("not within %s", within))
	defer cancel()
	calls := b.callers["dubbo"]
	var last caller.Counts
	if err := calls.Until(ctx, what, calls.Mark(), func(s []caller.Tally, _ []caller.Fault) bool {
		if len(s) < 2 { // the second that is under way belongs half to what was before
			return false
		}
		last = s[len(s)-1]["sayHello"]
		return condition(last)
	}); err != nil {
		b.t.Fatalf("%v: %+v", err, last)
	}
}

// queue lets half of the calls through, which wait for their turn: they all come back, later, and the others are rejected.
func (b *bed) queue() {
	const name = "queue"
	b.t.Helper()
	mark := b.callers["dubbo"].Mark()
	b.must(b.ApplyRule(name, fmt.Sprintf(head, "ThrottleRule", name, "client", "intercept", frameworks["dubbo"].service, frameworks["dubbo"].version, "sayHello")+
		"  threshold: 10\n  maxQueueingTime: 1s\n"))
	b.second("to be paced", func(n caller.Counts) bool { return n.Errors > 0 && n.OK >= 8 && n.OK <= 12 && n.Exceptions == 0 })
	b.until("mcp-server to show a queue that is full", func(ctx context.Context) error {
		e, err := b.effective(ctx, "ThrottleRule", name)
		if err != nil {
			return err
		}
		for _, s := range e.States {
			if s.Target == consumer && s.Queue != nil && *s.Queue > 800 {
				return nil
			}
		}
		return fmt.Errorf("it shows %+v", e)
	})
	_, faults := b.callers["dubbo"].Since(mark)
	for _, x := range faults {
		if x.Method == "sayHello" && !strings.Contains(x.Message, `isthmus: throttled: rule "default/queue"`) {
			b.t.Errorf("the caller sees a %s: %s", x.Error, x.Message)
		}
	}
	b.must(b.RemoveRule(name))
	b.second("to be free again", func(n caller.Counts) bool { return n.OK > 15 && n.Errors == 0 })
}

// endpoints starts a second Dubbo provider, which fails at every greeting: with a circuit for each endpoint its calls are rejected, and those to the
// other one go on.
func (b *bed) endpoints() {
	const broken, name = "broken", "each"
	b.t.Helper()
	f := frameworks["dubbo"]
	if _, err := b.start(broken, name, "demo.Provider", f, append(f.providers, "-Dbroken=true")...); err != nil {
		b.t.Fatal(err)
	}
	calls := b.callers["dubbo"]
	b.second("to call both providers", func(n caller.Counts) bool { return n.OK > 0 && n.Exceptions > 0 })
	mark := calls.Mark()
	b.must(b.ApplyRule(name, fmt.Sprintf(head, "CircuitBreakerRule", name, "client", "intercept", f.service, f.version, "sayHello")+
		"  strategy: errorCount\n  threshold: 3\n  minRequestAmount: 3\n  errors: [exception]\n  retryTimeout: 10m\n  perEndpoint: true\n"))
	b.second("to get through to one provider only", func(n caller.Counts) bool { return n.OK > 0 && n.Errors > 0 && n.Exceptions == 0 })
	_, faults := calls.Since(mark)
	for _, x := range faults {
		if x.Method == "sayHello" && x.Code >= 0 && !strings.Contains(x.Message, `isthmus: unavailable: rule "default/each"`) {
			b.t.Errorf("the caller sees a %s: %s", x.Error, x.Message)
		}
	}
	want := map[string]string{}
	for where, state := range map[string]string{provider: "closed", broken: "open"} {
		x, err := b.Machine(where)
		b.must(err)
		want[fmt.Sprintf("%s:%d", x.Address(), dubboPort)] = state
	}
	b.until("mcp-server to show one circuit that is open and one that is not", func(ctx context.Context) error {
		e, err := b.effective(ctx, "CircuitBreakerRule", name)
		if err != nil {
			return err
		}
		got := map[string]string{}
		for _, s := range e.States {
			for _, c := range s.Circuits {
				got[c.Endpoint] = c.State
			}
		}
		if !maps.Equal(got, want) {
			return fmt.Errorf("it shows %v, not %v", got, want)
		}
		return nil
	})
	b.must(b.RemoveRule(name))
	b.second("to call both providers again", func(n caller.Counts) bool { return n.OK > 0 && n.Exceptions > 0 && n.Errors == 0 })
}

// rule applies a rule as an observer and then in earnest.
func (b *bed) rule(framework string, f framework, kind, direction, method, spec, told string, want want) {
	b.t.Helper()
	calls := b.callers[framework]
	ctx, cancel := context.WithTimeoutCause(b.t.Context(), 2*within, fmt.Errorf("not within %s", 2*within))
	defer cancel()
	calm := func(s []caller.Tally) error {
		n := s[len(s)-1]
		for other, m := range n {
			if m.Errors > 0 {
				return fmt.Errorf("%s fails: %+v", other, m)
			}
		}
		if n["fail"].OK > 0 || n["sayHello"].OK == 0 {
			return fmt.Errorf("calls are not as they were: %s", n)
		}
		return nil
	}
	settled := func(what string, condition func(s []caller.Tally) error) {
		b.t.Helper()
		var last error
		if err := calls.Until(ctx, what, calls.Mark(), func(s []caller.Tally, _ []caller.Fault) bool {
			if len(s) < 2 { // the second that is under way belongs half to what was before
				return false
			}
			last = condition(s)
			return last == nil
		}); err != nil {
			b.t.Fatalf("%v: %v", err, last)
		}
	}

	b.must(b.ApplyRule(framework, fmt.Sprintf(head, kind, framework, direction, "observe", f.service, f.version, method)+spec))
	b.until("mcp-server to count what the observer would do", func(ctx context.Context) error {
		e, err := b.effective(ctx, kind, framework)
		if err == nil && e.Totals["would_reject"]+e.Totals["would_answer"]+e.Totals["would_abort"] == 0 {
			err = fmt.Errorf("it has counted %v", e.Totals)
		}
		return err
	})
	settled("to be left alone by an observer", calm)

	mark := calls.Mark()
	b.must(b.ApplyRule(framework, fmt.Sprintf(head, kind, framework, direction, "intercept", f.service, f.version, method)+spec))
	settled("to feel the rule", func(s []caller.Tally) error {
		n := s[len(s)-1]
		for other, m := range n {
			if other != method && m.Errors > 0 {
				return fmt.Errorf("%s fails too: %+v", other, m)
			}
		}
		return want(n[method])
	})
	_, faults := calls.Since(mark)
	for _, x := range faults {
		if !strings.HasPrefix(x.Error, f.exception) {
			if x.Method == "fail" && strings.Contains(x.Message, "refused") {
				continue // its own
			}
			b.t.Errorf("the caller sees a %s: %s", x.Error, x.Message)
		}
	}
	if told != "" {
		told = fmt.Sprintf(told, framework)
		// An application prints each kind of error once in its life, so it may have said this one before.
		_, all := calls.Since(caller.Mark{})
		if !slices.ContainsFunc(all, func(x caller.Fault) bool { return x.Method == method && strings.Contains(x.Message, told) }) {
			b.t.Errorf("no caller of %s was told %q: %+v", method, told, all)
		}
	}
	// The sidecar at the other end hears of the rule by itself, and mcp-server of that at its next look.
	defer func() {
		if b.t.Failed() {
			b.Autopsy(context.WithoutCancel(b.t.Context()), b.sidecars[provider], b.sidecars[consumer])
		}
	}()
	b.until("mcp-server to see the rule enforced on all sidecars", func(ctx context.Context) error {
		e, err := b.effective(ctx, kind, framework)
		if err == nil && (e.State != api.EffectiveEnforced || e.Enforced != e.Of || e.Of == 0) {
			err = fmt.Errorf("it is %s, on %d of %d sidecars", e.State, e.Enforced, e.Of)
		}
		return err
	})
	b.must(b.RemoveRule(framework))
	settled("to be free again", calm)
}

// effective is where mcp-server says that the rule is enforced, and what it does.
func (b *bed) effective(ctx context.Context, kind, name string) (*api.Effective, error) {
	r, err := mesh.Ask[api.RuleDetail](ctx, b.Mesh, "/api/v1/rules/"+kind+"/default/"+name)
	return &r.Effective, err
}
