package filter

import (
	"unsafe"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// A call that travels as an HTTP/2 stream.
type relayed struct {
	stream   uint32 // 0: the slot is empty
	id       uint64 // of the request, as its caller chose it
	deadline policy.Nanos

	// What makes the protocol's own error response.
	flags, serialization, variant uint8

	phase   phase
	oneWay  bool   // lift: nobody waits for a response
	ours    bool   // lift: the response comes from a filter that lowers
	subset  uint8  // lift: where a route has sent it, by metrics.subset; 0 is not known
	status  uint16 // lift: of the response
	window  int64  // lower: how much may go to the peer
	body    []byte // lift: of the response, lower: of the request, and later what of the response waits for a window
	written bool   // lower: body is all that is left of the response
	claims  []byte // lower: what headers say of the request, until it is complete
}

// phase is how far a relayed call has come.
type phase uint8

const (
	phaseRequest  phase = iota // the request is not complete
	phaseCalled                // the provider has it
	phaseResponse              // the response has begun
)

const relayedSize = int(unsafe.Sizeof(relayed{}))

// streams is the table of a connection's relayed calls: open addressing, linear probing, a power of two of slots.
type streams struct {
	slots []relayed
	n     int
	shift uint
}

// slot returns where the search for id begins: as calls.slot.
func (t *streams) slot(id uint32) int { return int(uint64(id) * 0x9e3779b97f4a7c15 >> t.shift) }

// find returns the call of a stream, nil if there is none. It is valid until the table changes.
func (t *streams) find(id uint32) *relayed {
	if t.n == 0 {
		return nil
	}
	mask := len(t.slots) - 1
	for i := t.slot(id); ; i = (i + 1) & mask {
		switch r := &t.slots[i]; r.stream {
		case id:
			return r
		case 0:
			return nil
		}
	}
}

// add makes room for a stream, which must not be in the table.
func (t *streams) add(p *pool[relayed], id uint32) *relayed {
	if 4*(t.n+1) > 3*len(t.slots) {
		t.resize(p)
	}
	mask := len(t.slots) - 1
	for i := t.slot(id); ; i = (i + 1) & mask {
		if r := &t.slots[i]; r.stream == 0 {
			t.n++
			r.stream = id
			return r
		}
	}
}

func (t *streams) resize(p *pool[relayed]) {
	old := t.slots
	t.slots = p.get(2 * len(old))
	t.slots = t.slots[:cap(t.slots)]
	t.shift = 64
	for n := len(t.slots); n > 1; n >>= 1 {
		t.shift--
	}
	mask := len(t.slots) - 1
	for k := range old {
		if old[k].stream == 0 {
			continue
		}
		i := t.slot(old[k].stream)
		for t.slots[i].stream != 0 {
			i = (i + 1) & mask
		}
		t.slots[i] = old[k]
	}
	clear(old)
	p.put(old)
}

// remove empties the slot of r, which find or add returned, and moves later calls of its run up.
func (t *streams) remove(r *relayed) {
	mask := len(t.slots) - 1
	i := int((uintptr(unsafe.Pointer(r)) - uintptr(unsafe.Pointer(unsafe.SliceData(t.slots)))) / uintptr(relayedSize))
	for j := i; ; {
		j = (j + 1) & mask
		if t.slots[j].stream == 0 {
			break
		}
		// The call at j may move to i unless its search begins behind i.
		if home := t.slot(t.slots[j].stream); (j-home)&mask >= (j-i)&mask {
			t.slots[i] = t.slots[j]
			i = j
		}
	}
	t.slots[i] = relayed{}
	t.n--
}

// request is what an error response needs of the request.
func (r *relayed) request(f *protocol.Frame) {
	*f = protocol.Frame{Kind: protocol.KindRequest, ID: r.id, Flags: r.flags, Serialization: r.serialization, Variant: r.variant}
}
