package token

import (
	"encoding/binary"
	"math/bits"
)

// The sizes of SHA-256, in bytes.
const (
	digestSize = 32
	blockSize  = 64
)

// A hasher computes SHA-256 (FIPS 180-4, 6.2). crypto/sha256 would be the same, but it brings 556 KB with it: the module for FIPS 140 and
// what that needs. The tests hold this one to it.
type hasher struct {
	h   [8]uint32
	buf [blockSize]byte
	n   uint64 // bytes so far
}

// initial is H(0): the fractional parts of the square roots of the first eight primes.
var initial = [8]uint32{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}

// rounds are the fractional parts of the cube roots of the first 64 primes.
var rounds = [64]uint32{
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
}

func (d *hasher) reset() { d.h, d.n = initial, 0 }

func (d *hasher) write(p []byte) {
	at := int(d.n % blockSize)
	d.n += uint64(len(p))
	if at > 0 {
		k := copy(d.buf[at:], p)
		p = p[k:]
		if at+k < blockSize {
			return
		}
		d.block(&d.buf)
	}
	for len(p) >= blockSize {
		d.block((*[blockSize]byte)(p))
		p = p[blockSize:]
	}
	copy(d.buf[:], p)
}

// sum ends the computation.
func (d *hasher) sum(out *[digestSize]byte) {
	length := d.n * 8
	at := int(d.n % blockSize)
	d.buf[at] = 0x80
	clear(d.buf[at+1:])
	if at >= blockSize-8 {
		d.block(&d.buf)
		clear(d.buf[:])
	}
	binary.BigEndian.PutUint64(d.buf[blockSize-8:], length)
	d.block(&d.buf)
	for i, v := range d.h {
		binary.BigEndian.PutUint32(out[4*i:], v)
	}
}

func (d *hasher) block(p *[blockSize]byte) {
	var w [64]uint32
	for i := range 16 {
		w[i] = binary.BigEndian.Uint32(p[4*i:])
	}
	for i := 16; i < 64; i++ {
		x, y := w[i-2], w[i-15]
		w[i] = (bits.RotateLeft32(x, -17) ^ bits.RotateLeft32(x, -19) ^ x>>10) + w[i-7] +
			(bits.RotateLeft32(y, -7) ^ bits.RotateLeft32(y, -18) ^ y>>3) + w[i-16]
	}
	a, b, c, e, f, g := d.h[0], d.h[1], d.h[2], d.h[4], d.h[5], d.h[6]
	dd, h := d.h[3], d.h[7]
	for i := range 64 {
		t1 := h + (bits.RotateLeft32(e, -6) ^ bits.RotateLeft32(e, -11) ^ bits.RotateLeft32(e, -25)) + (e&f ^ ^e&g) + rounds[i] + w[i]
		t2 := (bits.RotateLeft32(a, -2) ^ bits.RotateLeft32(a, -13) ^ bits.RotateLeft32(a, -22)) + (a&b ^ a&c ^ b&c)
		h, g, f, e, dd, c, b, a = g, f, e, dd+t1, c, b, a, t1+t2
	}
	d.h[0] += a
	d.h[1] += b
	d.h[2] += c
	d.h[3] += dd
	d.h[4] += e
	d.h[5] += f
	d.h[6] += g
	d.h[7] += h
}

// A mac computes HMAC-SHA256 (RFC 2104) with one secret. The two blocks that depend on the secret alone are hashed once.
type mac struct {
	inner, outer [8]uint32
	d            hasher
}

func (m *mac) init(secret []byte) {
	var key [blockSize]byte
	if len(secret) > blockSize {
		m.d.reset()
		m.d.write(secret)
		m.d.sum((*[digestSize]byte)(key[:]))
	} else {
		copy(key[:], secret)
	}
	for i := range key {
		key[i] ^= 0x36
	}
	m.d.reset()
	m.d.block(&key)
	m.inner = m.d.h
	for i := range key {
		key[i] ^= 0x36 ^ 0x5c
	}
	m.d.reset()
	m.d.block(&key)
	m.outer = m.d.h
}

// start begins a new computation, whose bytes go to write.
func (m *mac) start() { m.d.h, m.d.n = m.inner, blockSize }

func (m *mac) write(p []byte) { m.d.write(p) }

// sum ends the computation.
func (m *mac) sum(out *[digestSize]byte) {
	m.d.sum(out)
	m.d.h, m.d.n = m.outer, blockSize
	m.d.write(out[:])
	m.d.sum(out)
}

// same compares in a time that depends on the lengths only.
func same(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	var diff byte
	for i := range a {
		diff |= a[i] ^ b[i]
	}
	return diff == 0
}
