package dubbo

import (
	"encoding/binary"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
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
)

// VisitAttachments calls fn for each attachment of a request, or of a response that has any, in the order of the frame. Of
// two equal keys the later one holds for Dubbo. Keys and values that are not strings, or are strings in more than one
// chunk (beyond 32768 characters), are skipped with their pair. What precedes the attachments is skipped value by value: the
// arguments of a request, as many as the parameter descriptor names, or the value of a response. A body that ends
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
	if f.Serialization != SerializationHessian2 {
		return protocol.ErrSerialization
	}
	if request && f.Method.Off == 0 {
		return protocol.ErrMalformed // Decode did not get as far
	}
	var s hessian2.Scanner
	off, values := 0, 0
	if request {
		var ok bool
		if off, values, ok = parameters(b, int(f.Method.Off)+int(f.Method.Len)); !ok {
			return broken(f, protocol.FlawMalformed, off)
		}
	} else {
		what, at, err := hessian2.Int(b, HeaderLen)
		switch {
		case err != nil:
			return broken(f, protocol.FlawMalformed, HeaderLen)
		case what < responseExceptionWithAttachments:
			return nil
		case what != responseNullWithAttachments:
			values = 1
		}
		off = at
	}
	off, err := s.Skip(b, off, values)
	if err != nil {
		return skipFlaw(f, off, err)
	}
	return visit(f, b, off, &s, fn)
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
		// The type is a string or an int, neither of which a value in its place would be mistaken for.
		if off+1 < len(b) && b[off+1] == 'Z' {
			return broken(f, protocol.FlawMalformed, off+1)
		}
		var err error
		if off, err = s.Skip(b, off+1, 1); err != nil {
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

// parameters reads the parameter descriptor at b[off]: where it ends, and how many parameters it names. Where it is not ok,
// end is the offset of the byte at fault.
func parameters(b []byte, off int) (end, n int, ok bool) {
	units, start, more, err := hessian2.Text(b, off)
	if err != nil || more {
		return min(off, len(b)), 0, false
	}
	end, err = hessian2.Units(b, start, units)
	if err != nil {
		return min(end, len(b)), 0, false
	}
	// (JVM specification, 4.3.3; org.apache.dubbo.common.utils.ReflectUtils.getDesc)
	for i := start; i < end; {
		at := i
		for i < end && b[i] == '[' {
			i++
		}
		if i == end {
			return at, 0, false
		}
		switch b[i] {
		case 'Z', 'B', 'C', 'D', 'F', 'I', 'J', 'S':
			i++
		case 'L':
			for i < end && b[i] != ';' {
				i++
			}
			if i == end {
				return at, 0, false
			}
			i++
		default:
			return i, 0, false
		}
		n++
	}
	return end, n, true
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
	if why == protocol.FlawTooDeep {
		return protocol.ErrTooDeep
	}
	return protocol.ErrMalformed
}
