package filter

import (
	"unsafe"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// A call is a request that waits for its response.
type call struct {
	id       uint64
	start    policy.Nanos
	deadline policy.Nanos // after which it is given up
	route    *route       // nil: the slot is empty
	chain    *chain       // of policies that admitted it; nil where none wants to know how it ends
	marks    uint64       // policy.Call.Marks

	// Of a rejected call, what makes its error response.
	code                          protocol.Code // 0: not rejected
	flags, serialization, variant uint8
	retry                         uint32 // milliseconds; of a call that is not rejected, how long its caller waits, 0 where it does not say
	rule                          string
	answer                        *policy.Answer
}

const callSize = int(unsafe.Sizeof(call{}))

// calls is the table of calls in flight in one direction of a connection: open addressing, linear probing, a power of two of slots.
type calls struct {
	slots []call
	n     int
	shift uint
}

// slot returns where the search for id begins. Ids are usually consecutive; the multiplication (by 2^64 over the golden
// ratio) spreads them.
func (t *calls) slot(id uint64) int { return int(id * 0x9e3779b97f4a7c15 >> t.shift) }

// find returns the slot of the call with this id, or -1. It is valid until the table changes.
func (t *calls) find(id uint64) int {
	if t.n == 0 {
		return -1
	}
	mask := len(t.slots) - 1
	for i := t.slot(id); ; i = (i + 1) & mask {
		c := &t.slots[i]
		if c.route == nil {
			return -1
		}
		if c.id == id {
			return i
		}
	}
}

// add returns a slot for a new call with this id, which must not be in the table. The caller fills it in, route first.
func (t *calls) add(p *pool[call], id uint64) *call {
	if 4*(t.n+1) > 3*len(t.slots) {
		t.resize(p)
	}
	mask := len(t.slots) - 1
	for i := t.slot(id); ; i = (i + 1) & mask {
		if c := &t.slots[i]; c.route == nil {
			t.n++
			c.id = id
			return c
		}
	}
}

func (t *calls) resize(p *pool[call]) {
	old := t.slots
	t.slots = p.get(2 * len(old))
	t.slots = t.slots[:cap(t.slots)]
	t.shift = 64
	for n := len(t.slots); n > 1; n >>= 1 {
		t.shift--
	}
	mask := len(t.slots) - 1
	for k := range old {
		if old[k].route == nil {
			continue
		}
		i := t.slot(old[k].id)
		for t.slots[i].route != nil {
			i = (i + 1) & mask
		}
		t.slots[i] = old[k]
	}
	clear(old)
	p.put(old)
}

// remove empties slot i and moves later calls of its run up, so that searches need no marks of what was deleted.
func (t *calls) remove(i int) {
	mask := len(t.slots) - 1
	for j := i; ; {
		j = (j + 1) & mask
		if t.slots[j].route == nil {
			break
		}
		// The call at j may move to i unless its search begins behind i.
		if home := t.slot(t.slots[j].id); (j-home)&mask >= (j-i)&mask {
			t.slots[i] = t.slots[j]
			i = j
		}
	}
	t.slots[i] = call{}
	t.n--
}

// release gives the slots back. The table is empty then.
func (t *calls) release(p *pool[call]) {
	clear(t.slots)
	p.put(t.slots)
	*t = calls{}
}
