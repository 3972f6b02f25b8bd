package filter_test

import (
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// httpConfs are the configurations of FuzzHTTP. The first one rejects nothing.
var httpConfs = []string{
	`{"http":{"paths":["/orders/{id}"]},"throttle":[{"name":"o","mode":"observe","threshold":0}]}`,
	`{"throttle":[{"name":"none","threshold":0}],"degrade":[{"name":"d","when":"rejected","replies":[{"protocol":"http","serialization":0,"value":"e30="}]}]}`,
	`{"access":[{"name":"a","action":"allow","match":[{"subject":"attachment","key":"k","operator":"regex","values":["[a-z]*"]}]}],"throttle":[{"name":"c","type":"concurrency","threshold":1}]}`,
	`{"circuitBreaker":[{"name":"b","strategy":"errorCount","threshold":1,"minRequestAmount":1}],"faultInjection":[{"name":"f","target":{"method":{"prefix":"GET /orders/1"}},"delayMillis":5},{"name":"g","target":{"method":{"exact":"GET /x"}},"abort":{"httpStatus":418}}]}`,
}

// FuzzHTTP: whatever the headers of a request and its response are, nothing panics; the request is answered or goes on, never both; what ends is
// counted once, and nothing stays in flight.
func FuzzHTTP(f *testing.F) {
	for conf := range httpConfs {
		f.Add(uint8(conf), ":authority=orders\n:path=/orders/1\n:method=GET", ":status=200\nend", "")
		f.Add(uint8(conf), "content-type=application/grpc\n:method=POST\n:path=/demo.A/m\nk=v", ":status=200", "grpc-status=0")
		f.Add(uint8(conf), ":path=/%zz", "", "grpc-status=many")
	}
	f.Fuzz(func(t *testing.T, conf uint8, request, response, trailers string) {
		if len(request)+len(response)+len(trailers) > 1<<16 {
			return
		}
		i := int(conf) % len(httpConfs)
		n := filtertest.NewNative(&filtertest.World{App: "web"}, protocols)
		if err := n.Configure(httpConfs[i]); err != nil {
			t.Fatal(err)
		}
		tick := func() {
			n.World().Clock += 1_000_000_000
			if err := n.Tick(); err != nil {
				t.Fatal(err)
			}
		}
		calls := 0
		for range 3 {
			s, a, err := n.Request(policy.Direction(1+conf%2), lines(request))
			if err != nil {
				t.Fatal(err)
			}
			if a.Response != nil && !a.Held {
				t.Fatalf("answered, and goes on: %s", a)
			}
			if i == 0 && a.Held {
				t.Fatalf("held: %s", a)
			}
			if a.Response == nil && a.Held {
				tick()
				if got := n.Proceeded(); len(got) != 1 || got[0] != s {
					t.Fatalf("%v went on, want %d", got, s)
				}
			}
			if response != "" {
				if err := n.Response(s, lines(response), strings.HasSuffix(response, "\nend")); err != nil {
					t.Fatal(err)
				}
			}
			if trailers != "" {
				if err := n.Trailers(s, lines(trailers)); err != nil {
					t.Fatal(err)
				}
			}
			if err := n.Finish(s, ""); err != nil {
				t.Fatal(err)
			}
			calls++
		}
		tick()
		if left := n.World().Metrics("isthmus_rpc_in_flight"); len(left) > 0 {
			t.Fatal(left)
		}
		var total int64
		for _, m := range n.World().Metrics("isthmus_rpc_requests_total") {
			total += n.World().Metric(m[:strings.LastIndexByte(m, ' ')])
		}
		lifted := false
		if kind, _ := lines(request).Get("content-type"); 1+conf%2 == uint8(policy.DirectionClient) && strings.HasPrefix(kind, "application/x-isthmus-") {
			lifted = true
		}
		if total != int64(calls) && !lifted {
			t.Fatalf("%d calls are %d: %v", calls, total, n.World().Metrics())
		}
		if faults := n.World().Metrics(`isthmus_filter_faults_total`); len(faults) > 0 && strings.Contains(faults[0], "internal") {
			t.Fatal(faults)
		}
	})
}

// lines reads headers, one a line.
func lines(s string) filtertest.Headers {
	var h filtertest.Headers
	for line := range strings.SplitSeq(s, "\n") {
		if k, v, ok := strings.Cut(line, "="); ok {
			h = append(h, [2]string{k, v})
		}
	}
	return h
}
