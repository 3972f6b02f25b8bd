package machine

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// Connection is an established TCP connection.
type Connection struct {
	Local, Remote netip.AddrPort
	UID           int // of the user that it belongs to
}

// established is the state of such a connection in /proc/net/tcp (include/net/tcp_states.h).
const established = "01"

// Connections lists the machine's established TCP connections, both ends of those with itself.
func (m *Machine) Connections() ([]Connection, error) {
	var pages []string
	if err := m.Do(func() error {
		for _, name := range []string{"tcp", "tcp6"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + name)
			if err != nil && !os.IsNotExist(err) { // a kernel without IPv6
				return fmt.Errorf("machine: %w", err)
			}
			pages = append(pages, string(b))
		}
		return nil
	}); err != nil {
		return nil, err
	}
	var out []Connection
	for _, page := range pages {
		for line := range strings.Lines(page) {
			f := strings.Fields(line)
			if len(f) < 8 || f[3] != established {
				continue
			}
			local, err := parseAddress(f[1])
			if err != nil {
				return nil, err
			}
			remote, err := parseAddress(f[2])
			if err != nil {
				return nil, err
			}
			uid, err := strconv.Atoi(f[7])
			if err != nil {
				return nil, fmt.Errorf("machine: %q: %w", line, err)
			}
			out = append(out, Connection{local, remote, uid})
		}
	}
	return out, nil
}

// parseAddress reads an address and port of /proc/net/tcp: words of 32 bits in the machine's order, in hex.
func parseAddress(s string) (netip.AddrPort, error) {
	words, port, ok := strings.Cut(s, ":")
	b, err := hex.DecodeString(words)
	p, portErr := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || portErr != nil || len(b)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("machine: %q is no address of /proc/net/tcp", s)
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("machine: %q is no address of /proc/net/tcp", s)
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), nil
}
