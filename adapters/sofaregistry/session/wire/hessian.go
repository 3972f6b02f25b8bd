package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unicode/utf16"
	"unicode/utf8"
)

// The Hessian dialect of Bolt's serializer 1 (com.caucho.hessian.io.Hessian2Output of sofa-hessian 3.3.6): an early draft of Hessian
// 2.0, which differs from the published one, and from Dubbo's, in the codes of lists, maps, objects and references. What is read is
// a tree of values, bounded in depth and number; references are shared values.

// Values are nil, bool, int64, float64, string, blob, *list, *mapping and *object.
type (
	blob    string // binary data
	list    struct{ items []any }
	mapping struct{ keys, values []any }
	object  struct {
		class  *class
		fields []any
	}
	class struct {
		name   string
		fields []string
	}
)

// field returns the value of a field, nil if there is none.
func (o *object) field(name string) any {
	for i, f := range o.class.fields {
		if f == name {
			return o.fields[i]
		}
	}
	return nil
}

// Bounds on what is decoded.
const (
	maxDepth      = 32
	maxValues     = 1 << 20 // a push of 300,000 providers has 600,000
	maxTypeName   = 1 << 10
	maxClasses    = 256
	maxFields     = 64
	maxFieldBytes = 1 << 10
)

var (
	errTruncated = errors.New("it ends too early")
	errDepth     = fmt.Errorf("it is nested deeper than %d levels", maxDepth)
	errValues    = fmt.Errorf("it has more than %d values", maxValues)
	errTypeName  = fmt.Errorf("the name of a class or type is longer than %d bytes, or not ASCII", maxTypeName)
	errClasses   = fmt.Errorf("it defines more than %d classes, or one of more than %d fields", maxClasses, maxFields)
	errReference = errors.New("it refers to a value, type or class that is not there")
	errText      = errors.New("a text in it is not well-formed")
)

type hessianReader struct {
	b       []byte
	at      int
	values  int
	classes []*class
	types   int
	refs    []any
	partial *object // the outermost object, with the fields read so far
}

// readHessian decodes one value that takes all of b. The error names the offset.
func readHessian(b []byte) (any, error) {
	r := &hessianReader{b: b}
	v, err := r.value(0)
	if err == nil && r.at < len(b) {
		err = errors.New("something follows it")
	}
	if err != nil {
		return nil, fmt.Errorf("at byte %d: %w", r.at, err)
	}
	return v, nil
}

// readHessianBeginning decodes what there is of an object that was cut off, for its first fields.
func readHessianBeginning(b []byte) *object {
	r := &hessianReader{b: b}
	_, _ = r.value(0) // it must end too early
	return r.partial
}

func (r *hessianReader) byte() (byte, error) {
	if r.at >= len(r.b) {
		return 0, errTruncated
	}
	r.at++
	return r.b[r.at-1], nil
}

func (r *hessianReader) take(n int) ([]byte, error) {
	if n > len(r.b)-r.at {
		return nil, errTruncated
	}
	r.at += n
	return r.b[r.at-n : r.at], nil
}

func (r *hessianReader) uint16() (int, error) {
	b, err := r.take(2)
	if err != nil {
		return 0, err
	}
	return int(binary.BigEndian.Uint16(b)), nil
}

func (r *hessianReader) uint32() (uint32, error) {
	b, err := r.take(4)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint32(b), nil
}

func (r *hessianReader) peek() byte {
	if r.at >= len(r.b) {
		return 0
	}
	return r.b[r.at]
}

// number reads an int or a long whose code is already read.
func (r *hessianReader) number(code byte) (n int64, ok bool, err error) {
	with := func(zero int, bytes int) (int64, bool, error) {
		n := int64(int(code) - zero)
		b, err := r.take(bytes)
		for _, x := range b {
			n = n<<8 | int64(x)
		}
		return n, true, err
	}
	switch {
	case code >= 0x80 && code <= 0xbf:
		return with(0x90, 0)
	case code >= 0xc0 && code <= 0xcf:
		return with(0xc8, 1)
	case code >= 0xd0 && code <= 0xd7:
		return with(0xd4, 2)
	case code >= 0xd8 && code <= 0xef:
		return with(0xe0, 0)
	case code >= 0xf0:
		return with(0xf8, 1)
	case code >= 0x38 && code <= 0x3f:
		return with(0x3c, 2)
	case code == 'I' || code == 'w': // 'w' is a long that fits an int
		u, err := r.uint32()
		return int64(int32(u)), true, err
	case code == 'L' || code == 'd': // 'd' is a date, in ms since 1970
		b, err := r.take(8)
		if err != nil {
			return 0, true, err
		}
		return int64(binary.BigEndian.Uint64(b)), true, nil
	}
	return 0, false, nil
}

// length reads an int that counts something.
func (r *hessianReader) length() (int, error) {
	code, err := r.byte()
	if err != nil {
		return 0, err
	}
	n, ok, err := r.number(code)
	if err == nil && (!ok || n < 0 || n > math.MaxInt32) {
		err = fmt.Errorf("where a length should be is code %#02x", code)
	}
	return int(n), err
}

// chars reads a text of n UTF-16 code units, each of which is encoded on its own in up to three bytes, so that a character beyond the
// basic plane has six. The four bytes of proper UTF-8 are understood, too.
func (r *hessianReader) chars(dst []byte, n int) ([]byte, error) {
	var high rune // of a surrogate pair
	for n > 0 {
		if r.at >= len(r.b) {
			return dst, errTruncated
		}
		c, size := rune(r.b[r.at]), 1
		switch {
		case c < 0x80:
		case c>>5 == 0x6:
			c, size = c&0x1f, 2
		case c>>4 == 0xe:
			c, size = c&0x0f, 3
		case c>>3 == 0x1e:
			c, size = c&0x07, 4
		default:
			return dst, errText
		}
		b, err := r.take(size)
		if err != nil {
			return dst, err
		}
		for _, x := range b[1:] {
			if x>>6 != 2 {
				return dst, errText
			}
			c = c<<6 | rune(x&0x3f)
		}
		n--
		if size == 4 {
			if n--; n < 0 || c > utf8.MaxRune {
				return dst, errText
			}
		}
		switch {
		case high != 0 && c >= 0xdc00 && c < 0xe000:
			dst, high = utf8.AppendRune(dst, utf16.DecodeRune(high, c)), 0
		case high != 0 || c >= 0xdc00 && c < 0xe000:
			return dst, errText
		case c >= 0xd800 && c < 0xdc00:
			high = c
		default:
			dst = utf8.AppendRune(dst, c)
		}
	}
	if high != 0 {
		return dst, errText
	}
	return dst, nil
}

// text reads a string whose code is already read: short, or in chunks of up to 65535.
func (r *hessianReader) text(code byte) (string, error) {
	var dst []byte
	for {
		n := int(code)
		if code == 's' || code == 'S' {
			var err error
			if n, err = r.uint16(); err != nil {
				return "", err
			}
		} else if code > 0x1f {
			return "", fmt.Errorf("code %#02x continues a text", code)
		}
		if dst == nil && n <= len(r.b)-r.at { // a code unit has a byte at least
			dst = make([]byte, 0, n)
		}
		var err error
		if dst, err = r.chars(dst, n); err != nil {
			return "", err
		}
		if code != 's' {
			return string(dst), nil
		}
		if code, err = r.byte(); err != nil {
			return "", err
		}
	}
}

func (r *hessianReader) binary(code byte) (blob, error) {
	var dst []byte
	for {
		n := int(code) - 0x20
		if code == 'b' || code == 'B' {
			var err error
			if n, err = r.uint16(); err != nil {
				return "", err
			}
		} else if code < 0x20 || code > 0x2f {
			return "", fmt.Errorf("code %#02x continues binary data", code)
		}
		b, err := r.take(n)
		if err != nil {
			return "", err
		}
		dst = append(dst, b...)
		if code != 'b' {
			return blob(dst), nil
		}
		if code, err = r.byte(); err != nil {
			return "", err
		}
	}
}

// name reads n bytes that name a class or a type.
func (r *hessianReader) name(n int) (string, error) {
	if n > maxTypeName {
		return "", errTypeName
	}
	b, err := r.take(n)
	if err != nil {
		return "", err
	}
	for _, x := range b {
		if x < 0x20 || x > 0x7e {
			return "", errTypeName
		}
	}
	return string(b), nil
}

// typeName passes over the optional type of a list or map.
func (r *hessianReader) typeName() error {
	switch r.peek() {
	case 't':
		r.at++
		n, err := r.uint16()
		if err != nil {
			return err
		}
		if _, err := r.name(n); err != nil {
			return err
		}
		r.types++
	case 'u':
		r.at++
		return r.typeRef()
	}
	return nil
}

func (r *hessianReader) typeRef() error {
	n, err := r.length()
	if err == nil && n >= r.types {
		err = errReference
	}
	return err
}

// value reads any value.
func (r *hessianReader) value(depth int) (any, error) {
	if depth > maxDepth {
		return nil, errDepth
	}
	if r.values++; r.values > maxValues {
		return nil, errValues
	}
	code, err := r.byte()
	if err != nil {
		return nil, err
	}
	if n, ok, err := r.number(code); ok || err != nil {
		return n, err
	}
	switch {
	case code <= 0x1f || code == 's' || code == 'S' || code == 'x' || code == 'X':
		if code == 'x' || code == 'X' { // XML, the same as a text
			code -= 'X' - 'S'
		}
		return r.text(code)
	case code >= 0x20 && code <= 0x2f || code == 'b' || code == 'B':
		return r.binary(code)
	}
	switch code {
	case 'N':
		return nil, nil
	case 'T':
		return true, nil
	case 'F':
		return false, nil
	case 0x67:
		return 0.0, nil
	case 0x68:
		return 1.0, nil
	case 0x69:
		b, err := r.byte()
		return float64(int8(b)), err
	case 0x6a:
		n, err := r.uint16()
		return float64(int16(n)), err
	case 0x6b:
		u, err := r.uint32()
		return float64(math.Float32frombits(u)), err
	case 'D':
		b, err := r.take(8)
		if err != nil {
			return nil, err
		}
		return math.Float64frombits(binary.BigEndian.Uint64(b)), nil
	case 'V':
		return r.list(depth)
	case 'v':
		return r.fixedList(depth)
	case 'M':
		return r.mapping(depth)
	case 'O':
		if err := r.define(); err != nil {
			return nil, err
		}
		r.values--
		return r.value(depth) // the object follows its class
	case 'o':
		return r.object(depth)
	case 'J', 'K', 'R':
		var n int
		switch code {
		case 'J':
			b, err := r.byte()
			if err != nil {
				return nil, err
			}
			n = int(b)
		case 'K':
			if n, err = r.uint16(); err != nil {
				return nil, err
			}
		default:
			u, err := r.uint32()
			if err != nil {
				return nil, err
			}
			n = int(min(u, math.MaxInt32))
		}
		if n >= len(r.refs) {
			return nil, errReference
		}
		return r.refs[n], nil
	}
	return nil, fmt.Errorf("code %#02x is no value", code)
}

// list reads 'V' type? length? value* 'z'.
func (r *hessianReader) list(depth int) (any, error) {
	l := &list{}
	r.refs = append(r.refs, l)
	if err := r.typeName(); err != nil {
		return nil, err
	}
	switch r.peek() { // a length is only a hint
	case 'n':
		r.at++
		if _, err := r.take(1); err != nil {
			return nil, err
		}
	case 'l':
		r.at++
		if _, err := r.take(4); err != nil {
			return nil, err
		}
	}
	for {
		if r.at >= len(r.b) {
			return nil, errTruncated
		}
		if r.peek() == 'z' {
			r.at++
			return l, nil
		}
		v, err := r.value(depth + 1)
		if err != nil {
			return nil, err
		}
		l.items = append(l.items, v)
	}
}

// fixedList reads 'v' type-reference length value*.
func (r *hessianReader) fixedList(depth int) (any, error) {
	l := &list{}
	r.refs = append(r.refs, l)
	if err := r.typeRef(); err != nil {
		return nil, err
	}
	n, err := r.length()
	if err != nil {
		return nil, err
	}
	for range n {
		v, err := r.value(depth + 1)
		if err != nil {
			return nil, err
		}
		l.items = append(l.items, v)
	}
	return l, nil
}

// mapping reads 'M' type? (key value)* 'z'.
func (r *hessianReader) mapping(depth int) (any, error) {
	m := &mapping{}
	r.refs = append(r.refs, m)
	if err := r.typeName(); err != nil {
		return nil, err
	}
	for {
		if r.at >= len(r.b) {
			return nil, errTruncated
		}
		if r.peek() == 'z' {
			r.at++
			return m, nil
		}
		k, err := r.value(depth + 1)
		if err != nil {
			return nil, err
		}
		v, err := r.value(depth + 1)
		if err != nil {
			return nil, err
		}
		m.keys, m.values = append(m.keys, k), append(m.values, v)
	}
}

// define reads the definition of a class: name and fields.
func (r *hessianReader) define() error {
	n, err := r.length()
	if err != nil {
		return err
	}
	c := &class{}
	if c.name, err = r.name(n); err != nil {
		return err
	}
	if n, err = r.length(); err != nil {
		return err
	}
	if n > maxFields || len(r.classes) >= maxClasses {
		return errClasses
	}
	for range n {
		code, err := r.byte()
		if err != nil {
			return err
		}
		if code > 0x1f && code != 'S' && code != 's' {
			return fmt.Errorf("where a field's name should be is code %#02x", code)
		}
		from := r.at
		name, err := r.text(code)
		if err != nil {
			return err
		}
		if r.at-from > maxFieldBytes {
			return errTypeName
		}
		c.fields = append(c.fields, name)
	}
	r.classes = append(r.classes, c)
	if code := r.peek(); code != 'o' && code != 'O' {
		if r.at >= len(r.b) {
			return errTruncated
		}
		return fmt.Errorf("after a class is code %#02x, not an object", code)
	}
	return nil
}

func (r *hessianReader) object(depth int) (any, error) {
	n, err := r.length()
	if err != nil {
		return nil, err
	}
	if n >= len(r.classes) {
		return nil, errReference
	}
	c := r.classes[n]
	o := &object{class: c, fields: make([]any, len(c.fields))}
	if r.partial == nil {
		r.partial = o
	}
	r.refs = append(r.refs, o)
	for i := range c.fields {
		if o.fields[i], err = r.value(depth + 1); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// hessianWriter writes the few things that a client says. It uses no references.
type hessianWriter struct{ b []byte }

// object begins an object: its class, which must be new to the message, and the beginning of its only instance. n is the number of
// classes before it. The fields' values follow.
func (w *hessianWriter) object(n int, class string, fields ...string) {
	w.b = append(w.b, 'O')
	w.int(len(class))
	w.b = append(w.b, class...)
	w.int(len(fields))
	for _, f := range fields {
		w.text(f)
	}
	w.b = append(w.b, 'o')
	w.int(n)
}

func (w *hessianWriter) int(n int) {
	switch {
	case n >= -0x10 && n <= 0x2f:
		w.b = append(w.b, byte(0x90+n))
	case n >= -0x800 && n <= 0x7ff:
		w.b = append(w.b, byte(0xc8+(n>>8)), byte(n))
	default:
		w.b = binary.BigEndian.AppendUint32(append(w.b, 'I'), uint32(int32(n)))
	}
}

func (w *hessianWriter) long(n int64) {
	w.b = binary.BigEndian.AppendUint64(append(w.b, 'L'), uint64(n))
}

func (w *hessianWriter) bool(v bool) {
	if v {
		w.b = append(w.b, 'T')
	} else {
		w.b = append(w.b, 'F')
	}
}

func (w *hessianWriter) null() { w.b = append(w.b, 'N') }

// textOrNull writes null for "", as upstream's client has it for what is not set.
func (w *hessianWriter) textOrNull(s string) {
	if s == "" {
		w.null()
		return
	}
	w.text(s)
}

// text writes a string in UTF-16 code units, each encoded on its own, in chunks of at most 32 KiB units.
func (w *hessianWriter) text(s string) {
	units := utf16.Encode([]rune(s))
	const chunk = 0x8000
	for len(units) > chunk {
		n := chunk
		if u := units[n-1]; u >= 0xd800 && u < 0xdc00 {
			n-- // upstream's readers would lose the other half of a pair
		}
		w.b = append(w.b, 's', byte(n>>8), byte(n))
		w.units(units[:n])
		units = units[n:]
	}
	if n := len(units); n <= 0x1f {
		w.b = append(w.b, byte(n))
	} else {
		w.b = append(w.b, 'S', byte(n>>8), byte(n))
	}
	w.units(units)
}

func (w *hessianWriter) units(units []uint16) {
	for _, u := range units {
		switch {
		case u < 0x80:
			w.b = append(w.b, byte(u))
		case u < 0x800:
			w.b = append(w.b, byte(0xc0|u>>6), byte(0x80|u&0x3f))
		default:
			w.b = append(w.b, byte(0xe0|u>>12), byte(0x80|u>>6&0x3f), byte(0x80|u&0x3f))
		}
	}
}

// texts writes a list of strings.
func (w *hessianWriter) texts(list []string) {
	w.b = append(w.b, 'V', 'l')
	w.b = binary.BigEndian.AppendUint32(w.b, uint32(len(list)))
	for _, s := range list {
		w.text(s)
	}
	w.b = append(w.b, 'z')
}

// pairs writes a map of strings, in the order given: key, value, key, value.
func (w *hessianWriter) pairs(kv []string) {
	w.b = append(w.b, 'M')
	for _, s := range kv {
		w.text(s)
	}
	w.b = append(w.b, 'z')
}
