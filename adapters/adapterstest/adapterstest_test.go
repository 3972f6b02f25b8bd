package adapterstest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// witness takes the place of a test that is expected to fail.
type witness struct {
	testing.TB
	mu     sync.Mutex
	faults []string
}

type failed struct{}

func (w *witness) Helper() {}
func (w *witness) Error(args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = append(w.faults, fmt.Sprint(args...))
}
func (w *witness) Errorf(format string, args ...any) { w.Error(fmt.Sprintf(format, args...)) }
func (w *witness) Fatal(args ...any)                 { w.Error(args...); panic(failed{}) }
func (w *witness) Fatalf(format string, args ...any) { w.Fatal(fmt.Sprintf(format, args...)) }
func (w *witness) Cleanup(func())                    {} // the test itself calls Stop

type script func(ctx context.Context, out chan<- adapters.Update) error

func (s script) Run(ctx context.Context, out chan<- adapters.Update) error { return s(ctx, out) }

func say(ctx context.Context, out chan<- adapters.Update, us ...adapters.Update) {
	for _, u := range us {
		select {
		case out <- u:
		case <-ctx.Done():
			return
		}
	}
	<-ctx.Done()
}

func group(es ...model.Endpoint) model.Group {
	return model.Group{Source: "/a", Services: []model.Service{{Key: model.Key{Framework: "dubbo", Interface: "a"}, Endpoints: es}}}
}

var good = model.Endpoint{Address: "192.0.2.1", Port: 1, Protocol: "dubbo"}

// TestTheSuiteNotices runs Discoverers that break the contract.
func TestTheSuiteNotices(t *testing.T) {
	for name, c := range map[string]struct {
		run  script
		want string
	}{
		"synced twice": {func(ctx context.Context, out chan<- adapters.Update) error {
			say(ctx, out, adapters.Update{Synced: true}, adapters.Update{Synced: true})
			return nil
		}, "synced was said 2 times"},
		"an end without a reason": {func(ctx context.Context, out chan<- adapters.Update) error { return nil }, "although its context was not done"},
		"an error for a cancelled context": {func(ctx context.Context, out chan<- adapters.Update) error {
			<-ctx.Done()
			return ctx.Err()
		}, "after its context was done"},
		"contradicting health": {func(ctx context.Context, out chan<- adapters.Update) error {
			say(ctx, out, adapters.Update{Err: errors.New("x"), Healthy: true})
			return nil
		}, "healthy and an error"},
		"a group twice": {func(ctx context.Context, out chan<- adapters.Update) error {
			say(ctx, out, adapters.Update{Groups: []model.Group{group(good), group(good)}})
			return nil
		}, "twice in one update"},
		"a faulty group": {func(ctx context.Context, out chan<- adapters.Update) error {
			say(ctx, out, adapters.Update{Groups: []model.Group{group(model.Endpoint{Address: "x"})}})
			return nil
		}, "is incomplete"},
		"silence": {func(ctx context.Context, out chan<- adapters.Update) error { <-ctx.Done(); return nil }, "not synced"},
	} {
		t.Run(name, func(t *testing.T) {
			w := &witness{TB: t}
			func() {
				defer func() {
					if p := recover(); p != nil && p != any(failed{}) {
						panic(p)
					}
				}()
				v := Watch(w, c.run, 200*time.Millisecond)
				defer v.Stop()
				v.Until(func() string {
					if v.synced() {
						return "synced, and now wait"
					}
					return "not synced"
				})
			}()
			if !strings.Contains(strings.Join(w.faults, "\n"), c.want) {
				t.Errorf("faults %q, want one with %q", w.faults, c.want)
			}
		})
	}
}

// TestHeldStays holds View to what the Manager does.
func TestHeldStays(t *testing.T) {
	round := 0
	v := Watch(t, script(func(ctx context.Context, out chan<- adapters.Update) error {
		round++
		if round == 1 {
			ctx, stop := context.WithTimeout(ctx, 20*time.Millisecond)
			defer stop()
			say(ctx, out, adapters.Update{Groups: []model.Group{group(good), {Source: "/b", Problems: []model.Problem{{Severity: model.SeverityError, Place: "p", Code: "C", Message: "m"}}}}, Synced: true})
			return errors.New("the end of the first run")
		}
		say(ctx, out, adapters.Update{Held: []string{"/a"}, Synced: true})
		return nil
	}), 10*time.Second)
	v.Until(func() string {
		if v.synced() && v.Err() == nil && len(v.Services()) == 1 && len(v.Problems()) == 0 {
			return ""
		}
		return fmt.Sprint(v.Services(), v.Problems(), v.Err())
	})
}

func TestCheckGroup(t *testing.T) {
	service := func(s model.Service) model.Group { return model.Group{Source: "/a", Services: []model.Service{s}} }
	key := model.Key{Framework: "dubbo", Interface: "a"}
	for want, g := range map[string]model.Group{
		"":                            group(good, model.Endpoint{Address: "192.0.2.1", Port: 1, Protocol: "tri"}),
		"no source":                   {},
		"unknown framework":           service(model.Service{Key: model.Key{Framework: "x", Interface: "a"}}),
		"no interface":                service(model.Service{Key: model.Key{Framework: "sofa"}}),
		"is there twice":              {Source: "/a", Services: []model.Service{{Key: key}, {Key: key}}},
		"methods are not sorted":      service(model.Service{Key: key, Methods: []string{"b", "a"}}),
		"is incomplete":               group(model.Endpoint{Address: "192.0.2.1", Port: 1, Protocol: "Dubbo"}),
		"dubbo is there twice":        group(good, good),
		"origins are the Manager's":   group(model.Endpoint{Address: "192.0.2.1", Port: 1, Protocol: "dubbo", Origins: []model.Origin{{}}}),
		"a consumer without address":  service(model.Service{Key: key, Consumers: []model.Consumer{{}}}),
		"problem is incomplete":       {Source: "/a", Problems: []model.Problem{{Severity: "bad", Place: "p", Code: "C", Message: "m"}}},
		"problem's registry is the M": {Source: "/a", Problems: []model.Problem{{Severity: "error", Registry: "r", Place: "p", Code: "C", Message: "m"}}},
	} {
		if got := fmt.Sprint(CheckGroup(g)); want == "" && got != "<nil>" || !strings.Contains(got, want) {
			t.Errorf("%+v: %s, want %q", g, got, want)
		}
	}
}
