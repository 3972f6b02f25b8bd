package filter_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/isthmus-mesh/isthmus/e2e/mesh"
)

const limitsHost = "limits.example.org"

// limitsEntry is what an operator says of the rate limit service.
const limitsEntry = `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: limits, namespace: default}
spec:
  hosts: [%s]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: %d, name: grpc, protocol: GRPC}]
  endpoints: [{address: %s}]
`

// globalRule is a limit for all sidecars, of a day: it ends within no test that does not run at midnight.
const globalRule = `apiVersion: governance.isthmus.io/v1alpha1
kind: ThrottleRule
metadata: {name: %s}
spec:
  direction: client
  target: {service: demo.A, method: %[1]s}
  threshold: %d
  interval: 24h
  global: {host: %s, port: %d, domain: shop, sync: 20ms, staleness: 30s}
`

// TestLimitOfAllSidecars: two sidecars with several workers each keep one limit, which Envoy's rate limit service counts; without it each keeps the whole limit by
// itself, and what was used up stays so.
func TestLimitOfAllSidecars(t *testing.T) {
	l := newLink(t, 2)
	x, err := l.Machine("limits")
	l.must(err)
	redis := miniredis.NewMiniRedis()
	address := netip.AddrPortFrom(x.Address(), 6379)
	l.must(x.Do(func() error { return redis.StartAddr(address.String()) }))
	t.Cleanup(redis.Close)
	service, err := l.StartRateLimit(t.Context(), "limits", address, "shop")
	l.must(err)
	l.must(l.ApplyIstio("limits", fmt.Sprintf(limitsEntry, limitsHost, mesh.RateLimitPort, x.Address())))

	_, err = l.Machine("consumer-2")
	l.must(err)
	second, err := l.StartSidecarWorkers(t.Context(), "consumer-2", "consumer", 2)
	l.must(err)
	l.until("the filter at the second consumer", func(ctx context.Context) error { return second.Filtered(ctx, port, false) })
	sidecars := []*mesh.Sidecar{l.consumer, second}
	cluster := fmt.Sprintf("outbound|%d||%s", mesh.RateLimitPort, limitsHost)
	for _, s := range sidecars {
		l.until("the service's cluster", func(ctx context.Context) error {
			clusters, err := s.Admin(ctx, "/clusters")
			if err == nil && !bytes.Contains(clusters, []byte(cluster+"::"+x.Address().String())) {
				err = fmt.Errorf("it is not there")
			}
			return err
		})
	}

	const limit, pace = 300, 400 // calls a second at each sidecar
	l.must(l.ApplyRule("counted", fmt.Sprintf(globalRule, "counted", limit, limitsHost, mesh.RateLimitPort)))
	l.inForce("counted", sidecars...)
	admitted := l.offer(sidecars, "counted", pace, func(offered, admitted int64) bool { return offered >= 4*limit })
	// Each of four workers may let through what it has called within 20 ms of the service's last word, and within the time of an answer.
	if admitted < limit || admitted > limit+limit/4 {
		t.Errorf("%d calls were admitted over two sidecars, at a limit of %d", admitted, limit)
	}
	t.Logf("%d admitted of a limit of %d", admitted, limit)

	l.must(service.Stop(t.Context()))
	if again := l.offer(sidecars, "counted", pace, func(offered, _ int64) bool { return offered >= 100 }); again != 0 {
		t.Errorf("%d calls were admitted after the limit was used up and its service had gone", again)
	}
	const alone = 50
	l.must(l.ApplyRule("alone", fmt.Sprintf(globalRule, "alone", alone, limitsHost, mesh.RateLimitPort)))
	l.inForce("alone", sidecars...)
	if n := l.offer(sidecars, "alone", pace, func(offered, _ int64) bool { return offered >= 4*alone }); n != 2*alone {
		t.Errorf("%d calls were admitted over two sidecars without the service, which have a limit of %d each", n, alone)
	}
}

// inForce waits until sidecars run a configuration that has the rule.
func (l *link) inForce(rule string, sidecars ...*mesh.Sidecar) {
	l.t.Helper()
	for _, s := range sidecars {
		l.until("the rule", func(ctx context.Context) error {
			rules, err := l.API(ctx, "/api/v1/rules")
			if err != nil {
				return err
			}
			if !bytes.Contains(rules, fmt.Appendf(nil, "%q", rule)) {
				return fmt.Errorf("the rules are %s", rules)
			}
			samples, err := s.Metrics(ctx, "isthmus_filter_config_info")
			if err != nil {
				return err
			}
			for _, sample := range samples {
				if g := sample.Labels["rpc_filter_generation"]; sample.Value > 0 && g != "" && bytes.Contains(rules, []byte(`"`+g+`"`)) {
					return nil
				}
			}
			return fmt.Errorf("the sidecar runs %v, the rules are %s", samples, rules)
		})
	}
}

// offer makes calls through each of the sidecars, pace a second over eight connections, until enough says so, and returns how many were admitted.
func (l *link) offer(sidecars []*mesh.Sidecar, method string, pace int, enough func(offered, admitted int64) bool) int64 {
	l.t.Helper()
	const connections = 8
	ctx, cancel := context.WithTimeout(l.t.Context(), within)
	defer cancel()
	var offered, admitted atomic.Int64
	var all sync.WaitGroup
	for _, s := range sidecars {
		for range connections {
			c, err := s.Machine().DialContext(ctx, "tcp", l.address.String())
			l.must(err)
			all.Go(func() {
				defer c.Close()
				tick := time.NewTicker(time.Second * connections / time.Duration(pace))
				defer tick.Stop()
				for id := uint64(1); !enough(offered.Load(), admitted.Load()); id++ {
					select {
					case <-tick.C:
					case <-ctx.Done():
						l.t.Error(ctx.Err())
						return
					}
					ok, err := once(c, frame(l.t, "req", fmt.Sprintf("id=%d,service=demo.A,method=%s,caller=tester", id, method)))
					if err != nil {
						l.t.Error(err)
						return
					}
					offered.Add(1)
					if ok {
						admitted.Add(1)
					}
				}
			})
		}
	}
	all.Wait()
	return admitted.Load()
}

// once makes one call and tells whether it was answered with a value.
func once(c net.Conn, request []byte) (bool, error) {
	if err := c.SetDeadline(time.Now().Add(within)); err != nil {
		return false, err
	}
	if _, err := c.Write(request); err != nil {
		return false, err
	}
	head := make([]byte, 16)
	if _, err := io.ReadFull(c, head); err != nil {
		return false, err
	}
	_, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(head[12:])))
	return head[3] == 20, err
}
