package governance

import (
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"unicode/utf16"
)

// An encoder writes a value in one serialization.
type encoder interface {
	value(b []byte, v *value) []byte
}

// hessianScalar appends a value without a length. Both kinds of Hessian write it alike, but for the byte that a date begins with. ok is
// false where v is none.
func hessianScalar(b []byte, v *value, date byte) (out []byte, ok bool) {
	switch v.kind {
	case kindNull:
		return append(b, 'N'), true
	case kindBool:
		if v.integer != 0 {
			return append(b, 'T'), true
		}
		return append(b, 'F'), true
	case kindInt:
		return hessianInteger(b, int32(v.integer)), true
	case kindLong:
		return binary.BigEndian.AppendUint64(append(b, 'L'), uint64(v.integer)), true
	case kindDouble:
		return binary.BigEndian.AppendUint64(append(b, 'D'), math.Float64bits(v.double)), true
	case kindDate:
		return binary.BigEndian.AppendUint64(append(b, date), uint64(v.integer)), true
	}
	return b, false
}

func hessianInteger(b []byte, n int32) []byte {
	return binary.BigEndian.AppendUint32(append(b, 'I'), uint32(n))
}

// hessian2 writes Hessian 2.0 as Dubbo reads it (hessian.caucho.com, section 4; package hessian2 of the filter has a table). Each value is written in its
// longest form, which every reader knows.
type hessian2 struct{ classes []string }

func (h *hessian2) value(b []byte, v *value) []byte {
	if out, ok := hessianScalar(b, v, 0x4a); ok {
		return out
	}
	switch v.kind {
	case kindString:
		return hessianString(b, v.text, 'R', 'S')
	case kindBinary:
		return hessianBinary(b, v.text, 'A', 'B')
	case kindArray:
		b = hessianInteger(append(b, 'X'), int32(len(v.items)))
		return h.items(b, v.items)
	case kindObject:
		return h.entries(append(b, 'H'), v)
	}
	switch {
	case v.keys == nil:
		b = hessianString(append(b, 'V'), hessianArray(v.class), 'R', 'S')
		return h.items(hessianInteger(b, int32(len(v.items))), v.items)
	case isMap(v.class):
		return h.entries(hessianString(append(b, 'M'), v.class, 'R', 'S'), v)
	}
	n, known := classOf(&h.classes, v)
	if !known {
		b = hessianString(append(b, 'C'), v.class, 'R', 'S')
		b = hessianInteger(b, int32(len(v.keys)))
		for _, k := range v.keys {
			b = hessianString(b, k, 'R', 'S')
		}
	}
	return h.items(hessianInteger(append(b, 'O'), int32(n)), v.items)
}

func (h *hessian2) items(b []byte, items []value) []byte {
	for i := range items {
		b = h.value(b, &items[i])
	}
	return b
}

func (h *hessian2) entries(b []byte, v *value) []byte {
	for i := range v.items {
		b = hessianString(b, v.keys[i], 'R', 'S')
		b = h.value(b, &v.items[i])
	}
	return append(b, 'Z')
}

// sofaHessian writes the Hessian of SOFARPC (com.alipay.sofa:hessian 3, Hessian2Output), within a SofaResponse, which is class 0 of the message.
type sofaHessian struct{ classes []string }

// sofaResponseClass stands for the class that the filter has written already.
const sofaResponseClass = "com.alipay.sofa.rpc.core.response.SofaResponse"

func (h *sofaHessian) value(b []byte, v *value) []byte {
	if out, ok := hessianScalar(b, v, 'd'); ok {
		return out
	}
	switch v.kind {
	case kindString:
		return hessianString(b, v.text, 's', 'S')
	case kindBinary:
		return hessianBinary(b, v.text, 'b', 'B')
	case kindArray:
		return h.list(append(b, 'V'), v)
	case kindObject:
		return h.entries(append(b, 'M'), v)
	}
	switch {
	case v.keys == nil:
		return h.list(h.typeName(append(b, 'V'), hessianArray(v.class)), v)
	case isMap(v.class):
		return h.entries(h.typeName(append(b, 'M'), v.class), v)
	}
	n, known := classOf(&h.classes, v)
	if !known {
		b = append(hessianInteger(append(b, 'O'), int32(len(v.class))), v.class...)
		b = hessianInteger(b, int32(len(v.keys)))
		for _, k := range v.keys {
			b = hessianString(b, k, 's', 'S')
		}
	}
	b = hessianInteger(append(b, 'o'), int32(n))
	for i := range v.items {
		b = h.value(b, &v.items[i])
	}
	return b
}

func (h *sofaHessian) typeName(b []byte, class string) []byte {
	return append(binary.BigEndian.AppendUint16(append(b, 't'), uint16(len(class))), class...)
}

func (h *sofaHessian) list(b []byte, v *value) []byte {
	b = binary.BigEndian.AppendUint32(append(b, 'l'), uint32(len(v.items)))
	for i := range v.items {
		b = h.value(b, &v.items[i])
	}
	return append(b, 'z')
}

func (h *sofaHessian) entries(b []byte, v *value) []byte {
	for i := range v.items {
		b = hessianString(b, v.keys[i], 's', 'S')
		b = h.value(b, &v.items[i])
	}
	return append(b, 'z')
}

// classOf returns the number of v's class, and whether it has been defined before. Objects of one class with other fields are another class.
func classOf(classes *[]string, v *value) (n int, known bool) {
	signature := v.class + "\x00" + strings.Join(v.keys, "\x00")
	if n := slices.Index(*classes, signature); n >= 0 {
		return n, true
	}
	*classes = append(*classes, signature)
	return len(*classes) - 1, false
}

// hessianArray returns the name that Hessian has for a type of arrays; that of any other type is its own.
func hessianArray(class string) string {
	element, array := strings.CutSuffix(class, "[]")
	switch {
	case !array:
		return class
	case element == "java.lang.String":
		return "[string"
	case element == "java.lang.Object":
		return "[object"
	}
	return "[" + element
}

// maxChunk is how many units a chunk of a string or of bytes may have: Java's readers count in 16 bits.
const maxChunk = 0x8000

// hessianString writes a string: in chunks of UTF-16 units, each of which takes one to three bytes.
func hessianString(b []byte, s string, more, last byte) []byte {
	units := utf16.Encode([]rune(s))
	for len(units) > maxChunk {
		n := maxChunk
		if utf16.IsSurrogate(rune(units[n-1])) && units[n-1] < 0xdc00 {
			n-- // a pair stays together
		}
		b = hessianChunk(b, more, units[:n])
		units = units[n:]
	}
	return hessianChunk(b, last, units)
}

func hessianChunk(b []byte, tag byte, units []uint16) []byte {
	b = binary.BigEndian.AppendUint16(append(b, tag), uint16(len(units)))
	for _, u := range units {
		switch {
		case u < 0x80:
			b = append(b, byte(u))
		case u < 0x800:
			b = append(b, 0xc0|byte(u>>6), 0x80|byte(u)&0x3f)
		default:
			b = append(b, 0xe0|byte(u>>12), 0x80|byte(u>>6)&0x3f, 0x80|byte(u)&0x3f)
		}
	}
	return b
}

func hessianBinary(b []byte, s string, more, last byte) []byte {
	for len(s) > maxChunk {
		b = append(binary.BigEndian.AppendUint16(append(b, more), maxChunk), s[:maxChunk]...)
		s = s[maxChunk:]
	}
	return append(binary.BigEndian.AppendUint16(append(b, last), uint16(len(s))), s...)
}

// jsonb writes JSONB of fastjson2 (com.alibaba.fastjson2.JSONB.Constants). It has no classes: the reader knows the method's return type.
type jsonb struct{}

func (j jsonb) value(b []byte, v *value) []byte {
	switch v.kind {
	case kindNull:
		return append(b, 0xaf)
	case kindBool:
		return append(b, 0xb0+byte(v.integer))
	case kindInt:
		return j.integer(b, int32(v.integer))
	case kindLong:
		return binary.BigEndian.AppendUint64(append(b, 0xbe), uint64(v.integer))
	case kindDouble:
		return binary.BigEndian.AppendUint64(append(b, 0xb5), math.Float64bits(v.double))
	case kindDate:
		return binary.BigEndian.AppendUint64(append(b, 0xab), uint64(v.integer))
	case kindString:
		return j.text(b, v.text)
	case kindBinary:
		return append(j.integer(append(b, 0x91), int32(len(v.text))), v.text...)
	}
	switch {
	case v.keys == nil && v.kind != kindObject:
		b = j.integer(append(b, 0xa4), int32(len(v.items)))
		for i := range v.items {
			b = j.value(b, &v.items[i])
		}
		return b
	case v.scalar:
		return j.value(b, &v.items[0]) // from which the reader makes the number, or the constant
	}
	b = append(b, 0xa6)
	for i := range v.items {
		b = j.value(j.text(b, v.keys[i]), &v.items[i])
	}
	return append(b, 0xa5)
}

func (j jsonb) integer(b []byte, n int32) []byte {
	return binary.BigEndian.AppendUint32(append(b, 0x48), uint32(n))
}

func (j jsonb) text(b []byte, s string) []byte {
	return append(j.integer(append(b, 0x7a), int32(len(s))), s...)
}
