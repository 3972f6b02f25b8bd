package translate

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
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

// allocator gives each host an address of a range. What it gives is a function of the hosts alone: the address that a host wants first is
// a hash of its name, so it is the same after a restart and on every replica, and it stays the same when other hosts come
// and go, except where two want the same one. Then the lesser by name has it, and the other its next wish, after all
// first wishes and in the order of names. Hosts that find none are left out.
type allocator struct {
	prefix    netip.Prefix
	size      uint64
	wishes    map[uint64][]string   // by slot: the hosts that want it first, sorted
	unlucky   map[string]struct{}   // those that do not get it
	addresses map[string]netip.Addr // as of the last settling
	touched   map[string]struct{}   // whose luck may have changed since
}

func newAllocator(p netip.Prefix) *allocator {
	p = p.Masked()
	return &allocator{prefix: p, size: addresses(p), wishes: map[uint64][]string{}, unlucky: map[string]struct{}{},
		addresses: map[string]netip.Addr{}, touched: map[string]struct{}{}}
}

// add takes in a host that is not in.
func (a *allocator) add(host string) {
	first := slot(host, 0, a.size)
	i, _ := slices.BinarySearch(a.wishes[first], host)
	a.wishes[first] = slices.Insert(a.wishes[first], i, host)
	a.touched[host] = struct{}{}
	a.judge(first)
}

// remove gives up a host.
func (a *allocator) remove(host string) {
	first := slot(host, 0, a.size)
	if i, ok := slices.BinarySearch(a.wishes[first], host); ok {
		a.wishes[first] = slices.Delete(a.wishes[first], i, i+1)
	}
	delete(a.unlucky, host)
	a.touched[host] = struct{}{}
	a.judge(first)
}

// judge finds out who of those that want a slot first does not get it.
func (a *allocator) judge(slot uint64) {
	hosts := a.wishes[slot]
	if len(hosts) == 0 {
		delete(a.wishes, slot)
		return
	}
	for i, h := range hosts {
		a.touched[h] = struct{}{}
		if i == 0 && usable(a.prefix, slot) {
			delete(a.unlucky, h)
		} else {
			a.unlucky[h] = struct{}{}
		}
	}
}

// settle gives addresses to the hosts that are in, and returns those that have got another one than before.
func (a *allocator) settle() (moved []string) {
	if len(a.touched) == 0 {
		return nil
	}
	set := func(host string, to netip.Addr) {
		if a.addresses[host] == to {
			return
		}
		moved = append(moved, host)
		if to.IsValid() {
			a.addresses[host] = to
		} else {
			delete(a.addresses, host)
		}
	}
	for h := range a.touched {
		if _, ok := a.unlucky[h]; ok {
			continue
		}
		first := slot(h, 0, a.size)
		if hosts := a.wishes[first]; len(hosts) > 0 && hosts[0] == h {
			set(h, at(a.prefix, first))
		} else {
			set(h, netip.Addr{}) // it is gone
		}
	}
	clear(a.touched)
	// First wishes first: whoever is alone with its first wish gets it, whatever others fall back to.
	given := map[uint64]bool{}
	for _, h := range slices.Sorted(maps.Keys(a.unlucky)) {
		to := netip.Addr{}
		for probe := uint64(1); probe < maxProbes; probe++ {
			if s := slot(h, probe, a.size); len(a.wishes[s]) == 0 && !given[s] && usable(a.prefix, s) {
				given[s] = true
				to = at(a.prefix, s)
				break
			}
		}
		set(h, to)
	}
	return moved
}

// address returns a host's address, as of the last settling.
func (a *allocator) address(host string) (netip.Addr, bool) {
	to, ok := a.addresses[host]
	return to, ok
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
