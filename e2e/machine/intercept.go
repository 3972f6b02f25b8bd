package machine

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
)

// The ports of an Istio sidecar (istio.io/docs, "Ports used by Istio").
const (
	PortOutbound = 15001 // where outgoing connections are redirected to
	PortInbound  = 15006 // where incoming connections are redirected to
	PortMetrics  = 15090 // Envoy's Prometheus page
)

// proxyPorts are the sidecar's own: connections to them are not redirected.
var proxyPorts = []int{15008, 15020, 15021, PortMetrics}

// ProxyMark is the mark by which the proxy's own connections are told where there is one user only: see Interception.
const ProxyMark = 1337

// Interception redirects a machine's TCP connections to the sidecar, with the rules that Istio's istio-iptables writes
// in REDIRECT mode. The proxy's own connections go out untouched. They are known by their user, UserProxy, as Istio does it;
// in rootless namespaces, which have a single user, by the mark ProxyMark, which the proxy then has to set on its sockets
// (SO_MARK; Envoy does it with a socket option in its bootstrap).
type Interception struct {
	// ExcludeInbound are ports on which the application is reached directly.
	ExcludeInbound []int
}

// Intercept sets up the rules on the machine.
func (m *Machine) Intercept(ctx context.Context, i Interception) error {
	rules := []byte(i.rules(m.host.rootless))
	// Distributions differ in which backend they install and kernels in which one they have.
	var errs []error
	for _, name := range []string{"iptables-restore", "iptables-nft-restore", "iptables-legacy-restore"} {
		path, err := exec.LookPath(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if _, err = m.Run(ctx, rules, path); err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("machine: intercept on %s: %w", m.name, errors.Join(errs...))
}

// rules is the input for iptables-restore.
func (i Interception) rules(rootless bool) string {
	isProxy, notProxy := fmt.Sprintf("-m owner --uid-owner %d", UserProxy), fmt.Sprintf("-m owner ! --uid-owner %d", UserProxy)
	if rootless {
		isProxy, notProxy = fmt.Sprintf("-m mark --mark %d", ProxyMark), fmt.Sprintf("-m mark ! --mark %d", ProxyMark)
	}
	lines := []string{
		"*nat",
		":ISTIO_INBOUND - [0:0]",
		":ISTIO_IN_REDIRECT - [0:0]",
		":ISTIO_OUTPUT - [0:0]",
		":ISTIO_REDIRECT - [0:0]",
		fmt.Sprintf("-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports %d", PortOutbound),
		fmt.Sprintf("-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports %d", PortInbound),
		"-A PREROUTING -p tcp -j ISTIO_INBOUND",
	}
	for _, port := range slices.Concat(proxyPorts, i.ExcludeInbound) {
		lines = append(lines, fmt.Sprintf("-A ISTIO_INBOUND -p tcp --dport %d -j RETURN", port))
	}
	lines = append(lines,
		"-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT",
		"-A OUTPUT -p tcp -j ISTIO_OUTPUT",
		// 127.0.0.6 is the address from which istiod's inbound clusters connect to the application.
		"-A ISTIO_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN",
		// The proxy calls its own machine by its address: a caller that came out through the proxy comes in through it.
		"-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -p tcp "+isProxy+" -j ISTIO_IN_REDIRECT",
		// The application calls itself: not the mesh's business.
		"-A ISTIO_OUTPUT -o lo -p tcp "+notProxy+" -j RETURN",
		"-A ISTIO_OUTPUT -p tcp "+isProxy+" -j RETURN",
		"-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN",
		"-A ISTIO_OUTPUT -j ISTIO_REDIRECT",
		"COMMIT",
	)
	return strings.Join(lines, "\n") + "\n"
}
