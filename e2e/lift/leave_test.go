package lift_test

import (
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// TestProviderLeaves: a provider that says that it is about to end loses no call. As long as nobody has told Envoy, calls still go there; after
// a while, none that can go elsewhere do, and those that are for it alone still do.
func TestProviderLeaves(t *testing.T) {
	var said, alone atomic.Bool
	leaving := startProvider(t, func(_ []byte, f protocol.Frame, _ func([]byte)) []byte {
		if said.Swap(true) {
			return frame("resp", f.ID)
		}
		return slices.Concat(frame("event", 0), frame("resp", f.ID))
	})
	staying := startProvider(t, func(_ []byte, f protocol.Frame, _ func([]byte)) []byte {
		if alone.Load() {
			t.Errorf("call %d goes where no route leads", f.ID)
		}
		return frame("resp", f.ID)
	})
	retry := object{"retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes", "num_retries": 2, "host_selection_retry_max_attempts": 5,
		"retry_host_predicate": []object{{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": object{
			"@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}}}
	in, e := twoVersions(t, leaving, staying, []object{
		method("only", "route", object{"cluster": "v1", "retry_policy": retry}),
		{"match": object{"prefix": "/"}, "route": object{"cluster": "both", "retry_policy": retry}},
	})
	c := dial(t, in)
	id := uint64(0)
	ok := func(fields ...string) {
		t.Helper()
		id++
		b, f := c.call(id, fields...)
		wantOK(t, b, f)
	}
	for leaving.calls.Load() == 0 {
		ok()
	}
	deadline := time.Now().Add(time.Minute)
	for e.stat(t, "cluster.both.upstream_rq_retry_success") == 0 {
		if time.Now().After(deadline) {
			t.Fatal("calls go on there")
		}
		ok()
	}
	before := leaving.calls.Load()
	for range 100 {
		ok()
	}
	if n := leaving.calls.Load() - before; n > 0 {
		t.Errorf("%d of 100 calls have gone there", n)
	}
	alone.Store(true)
	for range 20 {
		ok("method", "only")
	}
	if n := leaving.conns.Load(); n > 2 { // a cluster has connections of its own
		t.Errorf("the provider has got %d connections", n)
	}
}
