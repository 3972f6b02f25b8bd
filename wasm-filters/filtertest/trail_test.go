package filtertest_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/wasm-filters/filter"
	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// threads are the main thread of an Envoy, which has no connections and so is told of every configuration, and one that has some.
type threads struct {
	t            *testing.T
	world        *filtertest.World
	main, worker *filtertest.Native
	contexts     [2]map[string]int // of each, by generation: their numbers
	made         [2]int
	current      string
	reading      int // the connection by which it is seen what the worker enforces
	id           uint64
}

func newThreads(t *testing.T) *threads {
	w := &filtertest.World{Clock: policy.Nanos(time.Hour)}
	return &threads{t: t, world: w, main: filtertest.NewNative(w, protocols), worker: filtertest.NewNative(w, protocols),
		contexts: [2]map[string]int{{}, {}}}
}

// configure does for one thread what Envoy does with a new configuration: no service of this generation's name is let through.
func (x *threads) configure(thread int, generation string) {
	x.t.Helper()
	n := []*filtertest.Native{x.main, x.worker}[thread]
	if i, ok := x.contexts[thread][generation]; ok {
		n.Reuse(i)
		return
	}
	conf := fmt.Sprintf(`{"generation":%q,"throttle":[{"name":"all","target":{"service":{"exact":%q}},"threshold":0}]}`, generation, generation)
	if err := n.Configure(conf); err != nil {
		x.t.Fatal(err)
	}
	x.contexts[thread][generation] = x.made[thread]
	x.made[thread]++
}

// drop ends a context.
func (x *threads) drop(thread int, generation string) {
	x.t.Helper()
	if err := []*filtertest.Native{x.main, x.worker}[thread].Drop(x.contexts[thread][generation]); err != nil {
		x.t.Fatal(err)
	}
	delete(x.contexts[thread], generation)
}

// change replaces what both threads run; kept says that the worker has connections under the configuration before.
func (x *threads) change(generation string, kept bool) {
	x.t.Helper()
	for thread := range x.contexts {
		x.configure(thread, generation)
	}
	if x.current != "" {
		x.drop(0, x.current)
		if !kept {
			x.drop(1, x.current)
		}
	}
	x.current = generation
}

func (x *threads) open() int {
	x.t.Helper()
	n, err := x.worker.Open(policy.DirectionServer)
	if err != nil {
		x.t.Fatal(err)
	}
	return n
}

// runs checks that the worker, and after its next tick the metrics, have one generation only.
func (x *threads) runs(generation string, all ...string) {
	x.t.Helper()
	x.world.Clock += policy.Nanos(time.Second)
	for _, n := range []*filtertest.Native{x.main, x.worker} {
		if err := n.Tick(); err != nil {
			x.t.Fatal(err)
		}
	}
	for _, service := range all {
		x.id++
		request, err := filtertest.Bolt("req", map[string]string{"id": fmt.Sprint(x.id), "service": service, "method": "m"})
		if err != nil {
			x.t.Fatal(err)
		}
		out, _, err := x.worker.Data(x.reading, filter.Downstream, request, false)
		if err != nil {
			x.t.Fatal(err)
		}
		if rejected := string(out) != string(request); rejected != (service == generation) {
			x.t.Errorf("a call that only %s rejects is rejected: %v, under %s", service, rejected, generation)
		}
	}
	want := fmt.Sprintf(`isthmus_filter_config_info{rpc_filter_generation=%q} 2`, generation)
	if got := x.world.Metrics("isthmus_filter_config"); len(got) != 1 || got[0] != want {
		x.t.Errorf("metrics are %q, want %s", got, want)
	}
}

// TestBackToAnyConfiguration: Envoy goes back to a configuration that a worker still has, though it had another one since that it has, too.
func TestBackToAnyConfiguration(t *testing.T) {
	x := newThreads(t)
	x.change("a", false)
	x.reading = x.open()
	x.runs("a", "a", "b", "c")
	x.change("b", true)
	x.open()
	x.change("c", true)
	x.runs("c", "a", "b", "c")
	x.change("a", false) // the worker is told only that c has gone
	x.runs("a", "a", "b", "c")
	x.change("b", true)
	x.runs("b", "a", "b", "c")
	x.change("a", true) // and here of nothing at all
	x.runs("a", "a", "b", "c")
	x.change("d", true)
	x.runs("d", "a", "b", "c", "d")
}

// TestConnectionBeforeTheSwitch: a worker that was told of a new configuration begins one more connection under the one before.
func TestConnectionBeforeTheSwitch(t *testing.T) {
	x := newThreads(t)
	x.change("a", false)
	x.reading = x.open()
	x.runs("a", "a", "b")
	for thread := range x.contexts {
		x.configure(thread, "b")
	}
	x.worker.Reuse(x.contexts[1]["a"])
	x.open() // which stays, and keeps a
	x.worker.Reuse(x.contexts[1]["b"])
	x.drop(0, "a")
	x.runs("b", "a", "b")
}

// TestSlowWorker: a worker that is behind does not make the others go back.
func TestSlowWorker(t *testing.T) {
	x := newThreads(t)
	x.change("a", false)
	x.reading = x.open()
	x.configure(0, "b")
	x.configure(0, "c")
	x.drop(0, "a")
	x.configure(0, "a")
	x.drop(0, "b")
	x.drop(0, "c")
	x.configure(1, "b")
	x.configure(1, "c")
	x.drop(1, "b")
	x.configure(1, "a")
	x.drop(1, "c")
	x.runs("a", "a", "b", "c")
}
