package filter

import (
	"encoding/binary"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// A trail is the configurations of a plugin in the order in which an Envoy got them, in the data that its threads share. Each thread is told of a
// configuration by itself, all of them in one order; but a thread in which something still uses a configuration is not told when Envoy goes back to it, and
// then only the others know. There is always one that does: Envoy's main thread has no connections.
type trail struct {
	key    []byte
	at     uint64 // the configuration that this thread was told of last, by its number from 1; 0: none
	last   uint64 // the number of the newest
	recent [trailLength]uint64
	room   [8 * (1 + trailLength)]byte
}

// trailLength is how many configurations a thread may be behind.
const trailLength = 16

// load reads the trail; mark is for store.
func (t *trail) load(s policy.Shared) (mark uint32) {
	b, mark, ok := s.Get(t.room[:0], t.key)
	if !ok || len(b) != len(t.room) {
		t.last = 0
		return mark
	}
	t.last = binary.LittleEndian.Uint64(b)
	for i := range t.recent {
		t.recent[i] = binary.LittleEndian.Uint64(b[8*(1+i):])
	}
	return mark
}

// of returns the hash of the configuration with a number, and whether it is known.
func (t *trail) of(number uint64) (hash uint64, ok bool) {
	return t.recent[number%trailLength], number > 0 && number <= t.last && number+trailLength > t.last
}

// told notes that this thread was told of a configuration. Another thread may have been told of it before; one that is behind does not change the order.
func (t *trail) told(s policy.Shared, hash uint64) {
	for range 4 * trailLength { // other threads are as busy
		mark := t.load(s)
		if h, ok := t.of(t.at); ok && h == hash {
			return // for another listener
		}
		for number := t.at + 1; number <= t.last; number++ {
			if h, ok := t.of(number); ok && h == hash {
				t.at = number
				return
			} else if !ok {
				number = t.last - trailLength
			}
		}
		t.last++
		t.recent[t.last%trailLength] = hash
		b := binary.LittleEndian.AppendUint64(t.room[:0], t.last)
		for _, h := range t.recent {
			b = binary.LittleEndian.AppendUint64(b, h)
		}
		if s.CompareAndSwap(t.key, b, mark) {
			t.at = t.last
			return
		}
	}
}

// hashOf returns a hash (FNV-1a) of a configuration, which is the same in all threads.
func hashOf(app string, data []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range data {
		h = (h ^ uint64(c)) * 1099511628211
	}
	for i := range len(app) {
		h = (h ^ uint64(app[i])) * 1099511628211
	}
	return h
}
