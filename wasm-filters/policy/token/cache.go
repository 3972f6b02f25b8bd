package token

import (
	"encoding/binary"
	"math/bits"
)

// The size of a cache. With tokens of MaxBytes it is 2 MiB; usual ones have a tenth of that.
const (
	lines   = 64
	perLine = 4
)

// A cache remembers tokens that were good. A token is found by all of its bytes. It belongs into one of 64 lines, of four places each;
// of five in one line the one that was used longest ago is forgotten. Bad tokens are not remembered, so that who has none cannot push out those of others.
type cache struct {
	clock uint64
	lines [][perLine]entry // nil: nothing was remembered
}

type entry struct {
	token []byte
	hash  uint64
	span
	used uint64 // 0: the place is empty
}

// hash chooses the line. That somebody finds tokens for one line does not matter: all of them need a good signature.
func hash(tok []byte) uint64 {
	h := uint64(len(tok))
	for len(tok) >= 8 {
		hi, lo := bits.Mul64(h^binary.LittleEndian.Uint64(tok), 0xa0761d6478bd642f)
		h = hi ^ lo
		tok = tok[8:]
	}
	for _, b := range tok {
		h = (h ^ uint64(b)) * 0xe7037ed1a0b428db
	}
	return h ^ h>>32
}

// find returns what is remembered of a token, nil if nothing is.
func (c *cache) find(tok []byte) *entry {
	if c.lines == nil {
		return nil
	}
	h := hash(tok)
	line := &c.lines[h%lines]
	for i := range line {
		e := &line[i]
		if e.used > 0 && e.hash == h && string(e.token) == string(tok) {
			c.clock++
			e.used = c.clock
			return e
		}
	}
	return nil
}

// add remembers a token that find does not find.
func (c *cache) add(tok []byte, s span) {
	if c.lines == nil {
		c.lines = make([][perLine]entry, lines)
	}
	h := hash(tok)
	line := &c.lines[h%lines]
	e := &line[0]
	for i := range line {
		if line[i].used < e.used {
			e = &line[i]
		}
	}
	c.clock++
	*e = entry{token: append(e.token[:0], tok...), hash: h, span: s, used: c.clock}
}

// clear forgets everything.
func (c *cache) clear() {
	for i := range c.lines {
		for k := range c.lines[i] {
			c.lines[i][k].used = 0
		}
	}
}
