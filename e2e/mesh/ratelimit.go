package mesh

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/isthmus-mesh/isthmus/e2e/machine"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
)

// RateLimitPort is where Envoy's rate limit service listens for gRPC.
const RateLimitPort = 8081

// StartRateLimit starts Envoy's rate limit service on a machine of that name, and waits until it is well. It knows one domain and no limit, and counts in the Redis
// at redis.
func (m *Mesh) StartRateLimit(ctx context.Context, name string, redis netip.AddrPort, domain string) (*machine.Process, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	a, err := m.artifact(peer.RateLimit)
	if err != nil {
		return nil, err
	}
	x, err := m.Machine(name)
	if err != nil {
		return nil, err
	}
	const part, subfolder = "ratelimit", "limits"
	file, err := m.write(name, filepath.Join(part, subfolder, "config"), domain+".yaml", fmt.Sprintf("domain: %s\ndescriptors: []\n", domain))
	if err != nil {
		return nil, err
	}
	root := filepath.Dir(filepath.Dir(filepath.Dir(file)))
	const health = 8080
	p, err := m.start(name, machine.Command{Name: part, Path: a.Path, Env: []string{
		"HOST=127.0.0.1", fmt.Sprintf("PORT=%d", health), "DEBUG_HOST=127.0.0.1", "DEBUG_PORT=6070",
		"GRPC_HOST=" + x.Address().String(), fmt.Sprintf("GRPC_PORT=%d", RateLimitPort),
		"REDIS_SOCKET_TYPE=tcp", "REDIS_URL=" + redis.String(), "USE_STATSD=false", "LOG_LEVEL=warn",
		"RUNTIME_ROOT=" + root, "RUNTIME_SUBDIRECTORY=" + subfolder, "RUNTIME_WATCH_ROOT=false",
	}})
	if err != nil {
		return nil, err
	}
	return p, p.UntilHTTP(ctx, fmt.Sprintf("http://127.0.0.1:%d/healthcheck", health))
}
