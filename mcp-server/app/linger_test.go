package app

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/mcp-server/xds"
)

// Whoever has lost the last endpoint keeps it for a moment; everything else is as it is said.
func TestLinger(t *testing.T) {
	began := time.Now()
	l := linger{quiet: 50 * time.Millisecond}
	service := func(host string, ports ...uint16) xds.Service {
		s := xds.Service{Host: host}
		for _, p := range ports {
			s.Endpoints = append(s.Endpoints, xds.Endpoint{Address: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), p)})
		}
		return s
	}
	for i, step := range []struct {
		at   int // ms
		said []xds.Service
		want string
		wait int // ms
	}{
		{0, []xds.Service{service("a", 1, 2), service("b", 1), service("c")}, "a12 b1 c", 0},
		{10, []xds.Service{service("a", 2), service("b"), service("c")}, "a2 b1 c", 50}, // it keeps one, b none, c had none
		{20, []xds.Service{service("a", 2), service("b", 3), service("c")}, "a2 b3 c", 0},
		{30, []xds.Service{service("a"), service("c")}, "a2 c b3", 50}, // b is gone altogether
		{50, []xds.Service{service("a"), service("c", 5)}, "a2 c5 b3", 30},
		{60, []xds.Service{service("a"), service("b", 4), service("c")}, "a2 b4 c5", 20},
		{80, []xds.Service{service("a"), service("b", 4), service("c")}, "a b4 c5", 30},
		{110, []xds.Service{service("a"), service("b", 4), service("c")}, "a b4 c", 0},
	} {
		said := fmt.Sprint(step.said)
		services, wait := l.hold(step.said, began.Add(time.Duration(step.at)*time.Millisecond))
		var got []string
		for _, s := range services {
			text := s.Host
			for _, e := range s.Endpoints {
				text += fmt.Sprint(e.Address.Port())
			}
			got = append(got, text)
		}
		if strings.Join(got, " ") != step.want || wait != time.Duration(step.wait)*time.Millisecond {
			t.Errorf("step %d: got %q, wait %v; want %q, %d ms", i, got, wait, step.want, step.wait)
		}
		if fmt.Sprint(step.said) != said {
			t.Errorf("step %d: what was said was changed", i)
		}
	}
	if len(l.last) != 1 || len(l.empty) != 0 {
		t.Errorf("it keeps %v, %v", l.last, l.empty)
	}
}
