// Package policytest helps to test policies: it holds a store that workers share, in memory.
package policytest

import "github.com/isthmus-mesh/isthmus/wasm-filters/policy"

// Second is a second.
const Second = policy.Nanos(1_000_000_000)

// Store implements policy.Shared. The zero value is not ready: see NewStore.
type Store struct {
	values map[string][]byte
	marks  map[string]uint32
	mark   uint32
	Calls  int // by policies
	Lose   int // how many of the next swaps fail, as if another worker had been faster
}

// NewStore returns an empty store.
func NewStore() *Store {
	return &Store{values: make(map[string][]byte), marks: make(map[string]uint32)}
}

// Workers returns what each of n workers has for a store: s, which they share. 0 is one worker that is alone and has none.
func (s *Store) Workers(n int) []policy.Shared {
	if n == 0 {
		return []policy.Shared{nil}
	}
	stores := make([]policy.Shared, n)
	for i := range stores {
		stores[i] = s
	}
	return stores
}

// Get implements policy.Shared.
func (s *Store) Get(dst, key []byte) ([]byte, uint32, bool) {
	s.Calls++
	v, ok := s.values[string(key)]
	return append(dst, v...), s.marks[string(key)], ok
}

// CompareAndSwap implements policy.Shared.
func (s *Store) CompareAndSwap(key, value []byte, mark uint32) bool {
	s.Calls++
	if s.Lose > 0 && mark != 0 {
		s.Lose--
		return false
	}
	v, ok := s.values[string(key)]
	if ok && mark != 0 && mark != s.marks[string(key)] {
		return false
	}
	s.mark++
	s.values[string(key)], s.marks[string(key)] = append(v[:0], value...), s.mark
	return true
}

// Overwrite puts value in the place of all values.
func (s *Store) Overwrite(value []byte) {
	for k := range s.values {
		s.values[k] = append([]byte(nil), value...)
	}
}

// Len returns the number of values, and how many bytes they and their keys take.
func (s *Store) Len() (values, bytes int) {
	for k, v := range s.values {
		bytes += len(k) + len(v)
	}
	return len(s.values), bytes
}

// Frozen is a store that never changes: every key has Value, and every swap succeeds. It allocates nothing.
type Frozen struct{ Value []byte }

// Get implements policy.Shared.
func (f *Frozen) Get(dst, _ []byte) ([]byte, uint32, bool) { return append(dst, f.Value...), 1, true }

// CompareAndSwap implements policy.Shared.
func (f *Frozen) CompareAndSwap(_, value []byte, _ uint32) bool {
	f.Value = append(f.Value[:0], value...)
	return true
}
