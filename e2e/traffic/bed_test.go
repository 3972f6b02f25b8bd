// Package traffic_test holds Istio's own traffic management to what it does for lifted calls: everything is said by an operator, in
// VirtualServices and DestinationRules, to a stock istiod, done by a stock Envoy, and seen by Dubbo and SOFARPC callers. Each kind
// of thing has a service of its own, so all of it is said at once, and nothing waits for what another has changed.
package traffic_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/e2e/mesh"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
	"github.com/isthmus-mesh/isthmus/e2e/rig"
)

func TestMain(m *testing.M) {
	os.Exit(rig.Main(m, append([]peer.Peer{peer.ZooKeeper, peer.Dubbo27, peer.Dubbo3, peer.SOFARPC}, rig.FilterPeers...)...))
}

const (
	within   = 90 * time.Second
	port     = 20880
	consumer = "consumer" // machine
	app      = "traffic-consumer"
	region   = "north"
)

// zone is where a provider is. The sidecar is in the first provider's.
func zone(number int) string { return string(rune('a' + number/2)) }

// version is a provider's label of that name.
func version(number int) string { return fmt.Sprintf("v%d", number%2+1) }

const (
	providers = 4         // one of each version in each of two zones
	deadOne   = providers // the number of one that is registered, and does not listen
)

// host is the host of a service of ours.
func host(service string) string {
	return strings.ToLower(service[:len("demo.")+1]) + kebab(service[len("demo.")+1:]) + ".v1-0-0.dubbo.isthmus"
}

func kebab(s string) string {
	var out strings.Builder
	for _, r := range s {
		if r >= 'A' && r <= 'Z' {
			out.WriteByte('-')
		}
		out.WriteRune(r)
	}
	return strings.ToLower(out.String())
}

// bed is a mesh with providers without sidecars and one consumer's sidecar.
type bed struct {
	*mesh.Mesh
	t         *testing.T
	providers []*provider
	sidecar   *mesh.Sidecar
	clients   []*client

	registered map[string][]int // providers by service

	mu   sync.Mutex
	does map[string]func(number int, method string) answer // by service
}

// clients is how many connections the consumer has.
const clients = 4

func newBed(t *testing.T) *bed {
	b := &bed{Mesh: rig.Mesh(t), t: t, registered: map[string][]int{}, does: map[string]func(int, string) answer{}}
	t.Cleanup(func() {
		if t.Failed() && b.sidecar != nil {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			b.Autopsy(ctx, b.sidecar)
		}
	})
	for i := range providers {
		m, err := b.Machine(fmt.Sprintf("provider-%d", i))
		b.must(err)
		b.providers = append(b.providers, startProvider(t, i, m, b.answer))
	}
	m, err := b.Machine("provider-dead")
	b.must(err)
	b.providers = append(b.providers, &provider{number: deadOne, machine: m})
	return b
}

// answer is what a provider does.
func (b *bed) answer(service string, number int, method string) answer {
	b.mu.Lock()
	does := b.does[service]
	b.mu.Unlock()
	if does == nil {
		return answer{}
	}
	return does(number, method)
}

// behave says what the providers of a service do with its calls from now on; nil is well.
func (b *bed) behave(service string, does func(number int, method string) answer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.does[service] = does
}

func (b *bed) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) until(t *testing.T, what string, condition func(ctx context.Context) error) {
	t.Helper()
	rig.Until(t, within, what, condition)
}

// registry is the file that mcp-server reads our services from, in its own folder.
const registry = "services.yaml"

// register says which providers a service has from now on.
func (b *bed) register(service string, numbers ...int) {
	b.t.Helper()
	b.registered[service] = numbers
	var text strings.Builder
	text.WriteString("apiVersion: adapters.isthmus.io/v1alpha1\nkind: ServiceList\nservices:\n")
	for service, numbers := range b.registered {
		fmt.Fprintf(&text, "- framework: dubbo\n  interface: %s\n  version: 1.0.0\n  endpoints:\n", service)
		for _, i := range numbers {
			where := ""
			if service == zoned {
				where = fmt.Sprintf(", locality: {region: %s, zone: %s}", region, zone(i))
			}
			fmt.Fprintf(&text, "  - {address: %s, port: %d, application: traffic-provider, labels: {version: %s}%s}\n",
				b.providers[i].machine.Address(), port, version(i), where)
		}
	}
	folder := filepath.Dir(b.ConfigPath())
	b.must(os.MkdirAll(folder, 0o755))
	// Renamed, since what watches the file must not see half of it.
	b.must(os.WriteFile(filepath.Join(folder, ".new"), []byte(text.String()), 0o644))
	b.must(os.Rename(filepath.Join(folder, ".new"), filepath.Join(folder, registry)))
}

// has holds the consumer's sidecar to the providers of a service.
func (b *bed) has(ctx context.Context, service string, numbers ...int) error {
	var want []string
	for _, i := range numbers {
		want = append(want, b.providers[i].address())
	}
	slices.Sort(want)
	have, err := b.sidecar.Endpoints(ctx, host(service))
	if err == nil && !slices.Equal(have, want) {
		err = fmt.Errorf("of %s it has %q, not %q", service, have, want)
	}
	return err
}

// contains holds a page of the sidecar's to texts.
func (b *bed) contains(ctx context.Context, page string, texts ...string) error {
	body, err := b.sidecar.Admin(ctx, page)
	if err != nil {
		return err
	}
	for _, text := range texts {
		if !strings.Contains(string(body), text) {
			return fmt.Errorf("%s has no %s", page, text)
		}
	}
	return nil
}

// load makes n calls of a service, atOnce at a time on each connection, and returns what came of each; fields says what more the i-th call has.
func (b *bed) load(t *testing.T, service string, n, atOnce int, fields func(i int) map[string]string) []reply {
	t.Helper()
	out := make([]reply, n)
	next := make(chan int)
	go func() {
		defer close(next)
		for i := range n {
			next <- i
		}
	}()
	var wg sync.WaitGroup
	for _, c := range b.clients {
		for range atOnce {
			wg.Go(func() {
				for i := range next {
					f := map[string]string{"service": service, "version": "1.0.0", "method": "call", "caller": app}
					if fields != nil {
						for k, v := range fields(i) {
							f[k] = v
						}
					}
					out[i] = c.call(f)
				}
			})
		}
	}
	wg.Wait()
	for i, r := range out {
		if r.err != nil {
			t.Fatalf("%s, call %d: %v", service, i, r.err)
		}
	}
	return out
}

// method is a call's one field more.
func method(name string) func(int) map[string]string {
	return func(int) map[string]string { return map[string]string{"method": name} }
}

// tally counts replies by who has given them and, where nobody has, by what was said.
func tally(replies []reply) (by [providers]int, said map[string]int) {
	said = map[string]int{}
	for _, r := range replies {
		if r.by >= 0 && r.by < providers {
			by[r.by]++
		} else {
			said[r.said]++
		}
	}
	return by, said
}

// allWell fails the test where any call has not gone well, and returns who answered.
func allWell(t *testing.T, replies []reply) [providers]int {
	t.Helper()
	for i, r := range replies {
		if r.outcome != outcomeOK {
			t.Fatalf("call %d: %s", i, r)
		}
	}
	by, _ := tally(replies)
	return by
}

// got returns how many calls of a service each provider has got.
func (b *bed) got(service string) (by [providers]int) {
	for i, p := range b.providers[:providers] {
		by[i] = p.calls(service)
	}
	return by
}

func sum(by [providers]int) int { return by[0] + by[1] + by[2] + by[3] }
