package translate

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
)

// DefaultVirtualAddresses is where virtual addresses come from, unless it is configured otherwise: a part of the reserved
// class E, which no network routes and which Linux connects to, far from 240.240.0.0/16, where istiod allocates its own. It
// is large (4 million addresses), so that two services hardly ever want the same one.
var DefaultVirtualAddresses = netip.MustParsePrefix("240.64.0.0/10")

// maxProbes bounds the search for a free address; a range that full has to be made larger.
const maxProbes = 64

// allocate gives each host an address of the range. It is a function of the hosts alone: the address that a host wants first is
// a hash of its name, so it is the same after a restart and on every replica, and it stays the same when other hosts come
// and go, except where two want the same one. Then the lesser in the order of wishes and names has it, and the other its next
// wish. Hosts that find none are left out.
func allocate(prefix netip.Prefix, hosts []string) map[string]netip.Addr {
	prefix = prefix.Masked()
	size := addresses(prefix)
	type wish struct {
		host string
		slot uint64
	}
	want := make([]wish, len(hosts))
	for i, h := range hosts {
		want[i] = wish{h, slot(h, 0, size)}
	}
	slices.SortFunc(want, func(a, b wish) int {
		if a.slot != b.slot {
			if a.slot < b.slot {
				return -1
			}
			return 1
		}
		if a.host < b.host {
			return -1
		}
		return 1
	})
	out := make(map[string]netip.Addr, len(hosts))
	taken := make(map[uint64]bool, len(hosts))
	// First wishes first: whoever is alone with its first wish gets it, whatever others fall back to.
	var unlucky []string
	for i, w := range want {
		if i > 0 && want[i-1].slot == w.slot || !usable(prefix, w.slot) {
			unlucky = append(unlucky, w.host)
			continue
		}
		taken[w.slot] = true
		out[w.host] = at(prefix, w.slot)
	}
	slices.Sort(unlucky)
	for _, h := range unlucky {
		for probe := uint64(1); probe < maxProbes; probe++ {
			if s := slot(h, probe, size); !taken[s] && usable(prefix, s) {
				taken[s] = true
				out[h] = at(prefix, s)
				break
			}
		}
	}
	return out
}

// addresses returns how many addresses a range has, at most 2^32.
func addresses(p netip.Prefix) uint64 { return 1 << min(p.Addr().BitLen()-p.Bits(), 32) }

// slot returns a host's wish of that number in [0, size).
func slot(host string, probe, size uint64) uint64 {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64([]byte(host+"\x00"), probe))
	hi, _ := bits.Mul64(binary.BigEndian.Uint64(sum[:8]), size)
	return hi
}

// usable leaves out what is an IPv4 network's or broadcast address for somebody: a last byte of 0 or 255.
func usable(p netip.Prefix, slot uint64) bool {
	a := at(p, slot).AsSlice()
	last := a[len(a)-1]
	return last != 0 && last != 255
}

// at returns the address at an offset in the range.
func at(p netip.Prefix, offset uint64) netip.Addr {
	b := p.Addr().AsSlice()
	for i := len(b) - 1; i >= 0 && offset > 0; i-- {
		offset += uint64(b[i])
		b[i] = byte(offset)
		offset >>= 8
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
