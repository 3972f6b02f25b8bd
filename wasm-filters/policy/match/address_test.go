package match

import (
	"net/netip"
	"testing"
)

func TestNetwork(t *testing.T) {
	for _, c := range []struct {
		network string
		yes     []string
		not     []string
	}{
		{"10.0.0.0/8", []string{"10.0.0.0", "10.255.1.2", "::ffff:10.1.1.1"}, []string{"11.0.0.1", "::a00:1", "fd00::1"}},
		{"10.1.2.3", []string{"10.1.2.3"}, []string{"10.1.2.4"}},
		{"10.1.2.0/23", []string{"10.1.3.255"}, []string{"10.1.4.0"}},
		{"0.0.0.0/0", []string{"1.2.3.4"}, []string{"::1"}},
		{"::/0", []string{"1.2.3.4", "::1"}, nil},
		{"fd00::/9", []string{"fd00::1", "fd7f::"}, []string{"fd80::", "1.2.3.4"}},
		{"::1", []string{"::1", "0:0:0:0:0:0:0:1"}, []string{"::2"}},
	} {
		n, ok := ParseNetwork(c.network)
		if !ok {
			t.Errorf("%s is no network", c.network)
			continue
		}
		for i, list := range [][]string{c.yes, c.not} {
			for _, s := range list {
				a, ok := ParseAddress([]byte(s))
				if !ok || n.Contains(&a) != (i == 0) {
					t.Errorf("%s in %s: not %v", s, c.network, i == 0)
				}
			}
		}
	}
	for _, s := range []string{"", "/8", "10.0.0.0/", "10.0.0.0/33", "::/129", "::/-1", "10.0.0.0/08", "10.0.0.0/+8", "10.0.0.0/8/8", "10.0.0/8", "x"} {
		if _, ok := ParseNetwork(s); ok {
			t.Errorf("%q is a network", s)
		}
	}
}

func TestParsePeer(t *testing.T) {
	for s, want := range map[string]string{"10.0.0.1:80": "::ffff:10.0.0.1", "[fd00::1]:65535": "fd00::1", "[::]:0": "::", "10.0.0.1": "", "/tmp/socket": "", "": "", ":80": "",
		"10.0.0.1:": "::ffff:10.0.0.1", "envoy://internal/": "", "[10:80": ""} {
		a, ok := ParsePeer([]byte(s))
		if ok != (want != "") || ok && netip.AddrFrom16(a).String() != want {
			t.Errorf("%q: %v %v, want %s", s, netip.AddrFrom16(a), ok, want)
		}
	}
}

func TestParseSocket(t *testing.T) {
	for s, want := range map[string]int{"10.0.0.1:80": 80, "[fd00::1]:65535": 65535, "[::]:0": 0, "10.0.0.1:00080": 80, "10.0.0.1:65536": -1, "10.0.0.1:000080": -1,
		"10.0.0.1:99999999999999999999": -1, "10.0.0.1": -1, "": -1, ":": -1, "10.0.0.1:8o": -1} {
		_, port, ok := ParseSocket([]byte(s))
		if ok != (want >= 0) || ok && int(port) != want {
			t.Errorf("%q: %d %v, want %d", s, port, ok, want)
		}
	}
}

// FuzzAddress holds the parsers to net/netip.
func FuzzAddress(f *testing.F) {
	for _, s := range []string{"1.2.3.4", "01.2.3.4", "256.1.1.1", "::", "::1", "1::", "1:2:3:4:5:6:7:8", "1::8", "::ffff:1.2.3.4", "1:2:3:4:5:6:1.2.3.4", "1:2:3:4:5:6:7:1.2.3.4",
		"fe80::1%eth0", ":::", "1:::2", "12345::", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "10.0.0.0/8", "fd00::/7", "10.0.0.0/032",
		"10.0.0.1:80", "[fd00::1]:65535", "10.0.0.1:65536"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, ok := ParseAddress([]byte(s))
		want, err := netip.ParseAddr(s)
		if ok != (err == nil && want.Zone() == "") || ok && netip.AddrFrom16(a) != netip.AddrFrom16(want.As16()) {
			t.Fatalf("%q: %v %v, net/netip says %v %v", s, netip.AddrFrom16(a), ok, want, err)
		}
		socket, port, ok := ParseSocket([]byte(s))
		if both, err := netip.ParseAddrPort(s); err == nil && both.Addr().Zone() == "" && (!ok || netip.AddrFrom16(socket) != netip.AddrFrom16(both.Addr().As16()) || port != both.Port()) {
			t.Fatalf("%q: %v %d %v, net/netip says %v", s, netip.AddrFrom16(socket), port, ok, both)
		}
		_, ok = ParseNetwork(s)
		_, err = netip.ParsePrefix(s)
		if wanted := err == nil || want.IsValid() && want.Zone() == ""; ok != wanted {
			t.Fatalf("network %q: %v, net/netip says %v", s, ok, err)
		}
	})
}
