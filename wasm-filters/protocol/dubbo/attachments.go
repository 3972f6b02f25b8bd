package dubbo

import (
	"encoding/binary"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/dubbo/jsonb"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/hessian2"
)

// Keys of attachments (org.apache.dubbo.common.constants.CommonConstants). Others are the application's own.
const (
	// KeyGroup holds the service's group, where it has one.
	KeyGroup = "group"
	// KeyCaller holds the calling application. Dubbo sends it since 2.7.
	KeyCaller = "remote.application"
	// KeyTimeout holds how long the caller waits, in milliseconds.
	KeyTimeout = "timeout"
	// KeyPath, KeyInterface and KeyVersion repeat what the body begins with; path may differ from the interface.
	KeyPath      = "path"
	KeyInterface = "interface"
	KeyVersion   = "version"
	// KeyTrace holds the span context of SOFATracer's filter for Dubbo (CommonSpanTags.RPC_TRACE_NAME).
	KeyTrace = "dubbo.rpc.sofa.tracer"
)

// VisitAttachments calls fn for each attachment of a request, or of a response that has any, in the order of the frame. Of
// two equal keys the later one holds for Dubbo. Keys and values that are not strings, or in Hessian are strings in more
// than one chunk (beyond 32768 characters), are skipped with their pair. What precedes the attachments is skipped value by
// value: the arguments of a request, as many as the parameter descriptor names, or the value of a response. A body that ends
// there, or has null, has no attachments; a reference in their place (a map that is an argument too) counts as none.
func (Codec) VisitAttachments(f *protocol.Frame, b []byte, fn func(k, v []byte) bool) error {
	if f.Len < HeaderLen || uint64(len(b)) < f.Len {
		return protocol.ErrShort
	}
	b = b[:f.Len]
	request := f.Kind == protocol.KindRequest || f.Kind == protocol.KindOneWay
	if !request && (f.Kind != protocol.KindResponse || f.Status != StatusOK) {
		return nil
	}
	if f.Serialization != SerializationHessian2 && f.Serialization != SerializationFastJSON2 {
		return broken(f, protocol.FlawSerialization, 2)
	}
	off, values := 0, 0
	if request {
		if f.Method.Off == 0 {
			return errorOf(f.Flaw) // Decode did not get as far
		}
		off = int(f.Method.Off) + int(f.Method.Len)
	} else {
		what, end, need := first(f, b)
		switch {
		case need > 0 || what < responseException || what > responseNullWithAttachments:
			return broken(f, protocol.FlawMalformed, HeaderLen)
		case what < responseExceptionWithAttachments:
			return nil
		case what != responseNullWithAttachments:
			values = 1
		}
		off = end
	}
	if f.Serialization == SerializationFastJSON2 {
		return fastJSONAttachments(f, b, off, values, request, fn)
	}
	if request {
		units, start, more, err := hessian2.Text(b, off)
		if err != nil || more {
			return broken(f, protocol.FlawMalformed, min(off, len(b)))
		}
		end, err := hessian2.Units(b, start, units)
		if err != nil {
			return skipFlaw(f, end, err)
		}
		var at int
		if values, at = parameters(b[start:end]); values < 0 {
			return broken(f, protocol.FlawMalformed, start+at)
		}
		off = end
	}
	var s hessian2.Scanner
	off, err := s.Skip(b, off, values)
	if err != nil {
		return skipFlaw(f, off, err)
	}
	return visit(f, b, off, &s, fn)
}

// parameters counts the parameters that a descriptor names; where it is none, n is -1 and at the offset of the byte at
// fault. (JVM specification, 4.3.3; org.apache.dubbo.common.utils.ReflectUtils.getDesc)
func parameters(descriptor []byte) (n, at int) {
	for i := 0; i < len(descriptor); n++ {
		at := i
		for i < len(descriptor) && descriptor[i] == '[' {
			i++
		}
		if i == len(descriptor) {
			return -1, at
		}
		switch descriptor[i] {
		case 'Z', 'B', 'C', 'D', 'F', 'I', 'J', 'S':
			i++
		case 'L':
			for i < len(descriptor) && descriptor[i] != ';' {
				i++
			}
			if i == len(descriptor) {
				return -1, at
			}
			i++
		default:
			return -1, i
		}
	}
	return n, 0
}

// masks has for each number of bytes up to 31 the bits that tell a byte beyond ASCII.
var masks = func() (m [32][4]uint64) {
	for n := range m {
		for i := range n {
			m[n][i/8] |= 0x80 << (i % 8 * 8)
		}
	}
	return m
}()

// visit calls fn for each pair of strings in the map at b[off].
func visit(f *protocol.Frame, b []byte, off int, s *hessian2.Scanner, fn func(k, v []byte) bool) error {
	if off == len(b) {
		return nil
	}
	switch b[off] {
	case 'H':
		off++
	case 'M':
		var err error
		if off, err = hessian2.Type(b, off+1); err != nil {
			return skipFlaw(f, off, err)
		}
	case 'N', 'Q':
		return nil
	default:
		return broken(f, protocol.FlawMalformed, off)
	}
	var pair [2][]byte
	for {
		if off >= len(b) {
			return broken(f, protocol.FlawMalformed, len(b))
		}
		if b[off] == 'Z' {
			return nil
		}
		texts := 0
		for i := range pair {
			if off >= len(b) {
				return broken(f, protocol.FlawMalformed, len(b))
			}
			units, start := int(b[off]), off+1
			if units < 0x20 {
				// The usual case, without a call and nearly without a jump, which are what costs in WebAssembly: a short
				// string of ASCII. masks leaves out what is behind it.
				if len(b)-start >= 32 {
					p, m := b[start:start+32:start+32], &masks[units]
					if binary.LittleEndian.Uint64(p)&m[0]|binary.LittleEndian.Uint64(p[8:])&m[1]|
						binary.LittleEndian.Uint64(p[16:])&m[2]|binary.LittleEndian.Uint64(p[24:])&m[3] == 0 {
						end := start + units
						pair[i] = b[start:end:end]
						texts++
						off = end
						continue
					}
				}
			} else {
				var more bool
				var err error
				if units, start, more, err = hessian2.Text(b, off); err != nil || more {
					if off, err = s.Skip(b, off, 1); err != nil {
						return skipFlaw(f, off, err)
					}
					continue
				}
			}
			end, err := hessian2.Units(b, start, units)
			if err != nil {
				return skipFlaw(f, end, err)
			}
			pair[i] = b[start:end:end]
			texts++
			off = end
		}
		if texts == len(pair) && !fn(pair[0], pair[1]) {
			return nil
		}
	}
}

// fastJSONAttachments is the part of VisitAttachments for JSONB, where every value says how long it is. b[off] is behind the
// method of a request, or behind the first value of a response.
func fastJSONAttachments(f *protocol.Frame, b []byte, off, values int, request bool, fn func(k, v []byte) bool) error {
	if request {
		value, end := sized(b, off)
		if end < 0 {
			return broken(f, protocol.FlawMalformed, off)
		}
		start, at, kind := jsonb.Text(b[:end], value)
		switch {
		case kind == jsonb.Opaque:
			return broken(f, protocol.FlawSerialization, value) // a class name beyond ASCII
		case kind != jsonb.UTF8 || at != end:
			return broken(f, protocol.FlawMalformed, value)
		}
		if values, at = parameters(b[start:end]); values < 0 {
			return broken(f, protocol.FlawMalformed, start+at)
		}
		off = end
	}
	for range values {
		_, end := sized(b, off)
		if end < 0 {
			return broken(f, protocol.FlawMalformed, off)
		}
		off = end
	}
	if off == len(b) {
		return nil
	}
	value, end := sized(b, off)
	if end < 0 {
		return broken(f, protocol.FlawMalformed, off)
	}
	off, b = value, b[:end]
	switch b[off] {
	case jsonb.Object:
		off++
	case jsonb.Null:
		return nil
	default:
		return broken(f, protocol.FlawSerialization, off) // a map of another class than HashMap, or no map at all
	}
	for {
		if off >= len(b) {
			return broken(f, protocol.FlawMalformed, off)
		}
		if b[off] == jsonb.ObjectEnd {
			return nil
		}
		var pair [2][]byte
		texts := 0
		for i := range pair {
			start, end, kind := jsonb.Text(b, off)
			if kind == jsonb.UTF8 {
				pair[i] = b[start:end:end]
				texts++
				off = end
				continue
			}
			end, known := jsonb.Skip(b, off)
			switch {
			case !known:
				return broken(f, protocol.FlawSerialization, off)
			case end > len(b):
				return broken(f, protocol.FlawMalformed, off)
			}
			off = end
		}
		if texts == len(pair) && !fn(pair[0], pair[1]) {
			return nil
		}
	}
}

// sized reads the length of the value at b[off] in JSONB: the value is b[value:end]. end is -1 where there is none.
func sized(b []byte, off int) (value, end int) {
	value = off + lengthLen
	if value > len(b) {
		return 0, -1
	}
	n := binary.BigEndian.Uint32(b[off:])
	if n == 0 || uint64(n) > uint64(len(b)-value) {
		return 0, -1
	}
	return value, value + int(n)
}

// skipFlaw notes what stopped a scan of a whole frame.
func skipFlaw(f *protocol.Frame, at int, err error) error {
	switch err {
	case hessian2.ErrTooDeep, hessian2.ErrTooManyClasses:
		return broken(f, protocol.FlawTooDeep, at)
	case hessian2.ErrShort:
		return broken(f, protocol.FlawMalformed, int(f.Len)) // a value goes on behind the frame
	}
	return broken(f, protocol.FlawMalformed, at)
}

// broken notes the flaw of a body, and returns the error that tells of it.
func broken(f *protocol.Frame, why protocol.Flaw, at int) error {
	flaw(f, why, at)
	return errorOf(why)
}

// errorOf returns the error that tells of a flaw.
func errorOf(why protocol.Flaw) error {
	switch why {
	case protocol.FlawTooDeep:
		return protocol.ErrTooDeep
	case protocol.FlawSerialization:
		return protocol.ErrSerialization
	}
	return protocol.ErrMalformed
}
