package filter

import "math/bits"

// A pool keeps slices for reuse, by powers of two of their capacity. The slices must hold no pointers that keep
// garbage alive: whoever puts one back clears it first.
type pool[T any] struct {
	min  uint // log2 of the smallest capacity
	size int  // of a T, in bytes
	kept int  // bytes
	free [32][][]T
}

// get returns a slice of length 0 with room for at least n.
func (p *pool[T]) get(n int) []T {
	class := p.min
	if n > 1<<class {
		class = uint(bits.Len(uint(n - 1)))
	}
	if list := p.free[class]; len(list) > 0 {
		s := list[len(list)-1]
		p.free[class] = list[:len(list)-1]
		p.kept -= p.size << class
		return s
	}
	return make([]T, 0, 1<<class)
}

// put takes a slice that get returned.
func (p *pool[T]) put(s []T) {
	if cap(s) == 0 {
		return
	}
	class := uint(bits.Len(uint(cap(s))) - 1)
	if cap(s) != 1<<class || class < p.min || p.kept+p.size<<class > poolBytes {
		return
	}
	p.kept += p.size << class
	p.free[class] = append(p.free[class], s[:0])
}

// extend makes s, which get returned, longer by n, in a larger slice if need be.
func (p *pool[T]) extend(s []T, n int) []T {
	k := len(s) + n
	if k <= cap(s) {
		return s[:k]
	}
	t := append(p.get(k), s...)
	p.put(s)
	return t[:k]
}
