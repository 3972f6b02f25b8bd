package h2

import "errors"

// ErrCompression: a header block cannot be read. It is an error of the connection, CompressionError: what follows cannot be
// read either.
var ErrCompression = errors.New("h2: malformed header block")

// ErrListSize: a header block holds more than MaxHeaderList bytes.
var ErrListSize = errors.New("h2: header list too long")

const (
	// DefaultTable is the size of the dynamic table before anyone has spoken.
	DefaultTable = 4096
	// MaxHeaderList bounds what a header block may hold, as SETTINGS_MAX_HEADER_LIST_SIZE counts it: 32 bytes for each field beside
	// its name and value.
	MaxHeaderList = 64 << 10
	// fieldSize is what a field counts beside its name and value (RFC 7541, section 4.1).
	fieldSize = 32
)

// Decoder reads header blocks, one after the other:
//
//	for d.Begin(block); d.Next(); {
//		use(d.Name(), d.Value())
//	}
//	if d.Err != nil { … }
//
// Each block has to be read to its end, for it may change the table. The zero value is ready.
type Decoder struct {
	// Err is what ended the loop, nil at the end of the block.
	Err error
	// Pass has Next pass over fields whose marks are not higher; those without a mark it never does. 0: over none.
	Pass Mark

	b       []byte
	pos     int  // in b: what is read
	started bool // a field was read: table sizes come before
	size    int  // of the list so far

	at                int  // where the field stands: in the static table, from staticLen on in ours; 0: in none
	whole             bool // it stands there, and neither name nor value was asked for yet
	name, value       []byte
	codedName, codedV bool // in Huffman's code
	nameText, text    []byte

	marks [staticLen]Mark
	table
}

// A Mark is what a reader of header blocks has noted of a field, for when the same one comes again: where the peer has put it into a table, it is
// found there with its mark, and nothing of it needs to be looked at. 0 is that of a field that is new.
type Mark uint16

// Mark returns the mark of the field.
func (d *Decoder) Mark() Mark {
	if d.at < staticLen {
		return d.marks[d.at]
	}
	return d.entries[d.at-staticLen].mark
}

// SetMark marks the field, if it stands in a table.
func (d *Decoder) SetMark(m Mark) {
	switch {
	case d.at >= staticLen:
		d.entries[d.at-staticLen].mark = m
	case d.at > 0:
		d.marks[d.at] = m
	}
}

// Begin starts with a block, which must not change until Next has returned false.
func (d *Decoder) Begin(block []byte) {
	d.b, d.pos, d.Err, d.started, d.size = block, 0, nil, false, 0
}

// Name returns the name of the field, until the next call of Next.
//
//go:noinline
func (d *Decoder) Name() []byte {
	if d.whole {
		d.fetch()
	}
	if d.codedName {
		d.codedName = false
		d.nameText = d.plain(d.nameText, d.name)
		d.name = d.nameText
	}
	return d.name
}

// Value returns the value of the field, until the next call of Next. A value that nobody asks for is not decoded.
//
//go:noinline
func (d *Decoder) Value() []byte {
	if d.whole {
		d.fetch()
	}
	if d.codedV {
		d.codedV = false
		d.text = d.plain(d.text, d.value)
		d.value = d.text
	}
	return d.value
}

// fetch takes name and value out of the table.
func (d *Decoder) fetch() {
	d.whole, d.codedName, d.codedV = false, false, false
	if d.at < staticLen {
		d.name, d.value = static[d.at].name, static[d.at].value
		return
	}
	d.name, d.value = d.of(d.entries[d.at-staticLen])
}

func (d *Decoder) plain(dst, b []byte) []byte {
	dst, ok := appendHuffman(dst[:0], b)
	if !ok {
		d.fail(ErrCompression)
	}
	return dst
}

func (d *Decoder) fail(err error) bool {
	if d.Err == nil {
		d.Err = err
	}
	d.b, d.pos = nil, 0
	return false
}

// Next reads the next field. It returns false at the end of the block, and where it cannot be read.
func (d *Decoder) Next() bool {
	// What is said for a second time is a byte that refers to the table.
	b, pos, size := d.b, d.pos, d.size
	entries, first, pass := d.entries, d.first, d.Pass
	last := len(entries) - 1 + 0x80 + staticLen // of which the first one has the last place
	for pos < len(b) {
		c := b[pos]
		k := last - int(c)
		if c < 0x80+staticLen || c == 0xff || k < first || k >= len(entries) {
			break
		}
		e := &entries[k]
		pos++
		size += e.size()
		if e.mark-1 >= pass { // 0 is the highest then
			d.pos, d.size = pos, size
			d.at, d.whole, d.started = staticLen+k, true, true
			return size <= MaxHeaderList || d.fail(ErrListSize)
		}
	}
	d.started = d.started || pos > d.pos
	d.pos, d.size = pos, size
	return d.next()
}

func (d *Decoder) next() bool {
	if d.size > MaxHeaderList {
		return d.fail(ErrListSize)
	}
	for d.pos < len(d.b) {
		c := d.b[d.pos]
		d.at, d.whole, d.codedName, d.codedV = 0, false, false, false
		switch {
		case c >= 0x80: // indexed
			i, ok := d.integer(7)
			switch {
			case !ok || i == 0:
				return d.fail(ErrCompression)
			case i < staticLen:
				d.at = i
				d.size += len(static[i].name) + len(static[i].value) + fieldSize
			default:
				k := len(d.entries) - 1 - (i - staticLen)
				if k < d.first {
					return d.fail(ErrCompression)
				}
				d.at = staticLen + k
				d.size += d.entries[k].size()
			}
			d.started, d.whole = true, true
			if d.size > MaxHeaderList {
				return d.fail(ErrListSize)
			}
			if d.Mark()-1 < d.Pass {
				continue
			}
			return true
		case c >= 0x40: // literal with incremental indexing
			if !d.literal(6) {
				return d.fail(ErrCompression)
			}
			name, value := d.Name(), d.Value()
			if d.Err != nil {
				return false
			}
			// A name that was in the table may move with it: what is added is a copy of both.
			if d.add(name, value) {
				d.at = staticLen + len(d.entries) - 1
				d.name, d.value = d.of(d.entries[len(d.entries)-1])
			}
		case c >= 0x20: // table size
			n, ok := d.integer(5)
			if !ok || d.started && d.used > 0 || n > DefaultTable {
				return d.fail(ErrCompression)
			}
			d.resize(n)
			continue
		default: // literal without indexing, or never to be indexed
			if !d.literal(4) {
				return d.fail(ErrCompression)
			}
		}
		d.started = true
		if d.size += len(d.name) + len(d.value) + fieldSize; d.size > MaxHeaderList {
			return d.fail(ErrListSize)
		}
		return true
	}
	return false
}

// literal reads a name, or its index in the lower bits of the first byte, and a value.
func (d *Decoder) literal(bits uint) bool {
	i, ok := d.integer(bits)
	if !ok {
		return false
	}
	if i > 0 {
		if !d.lookup(i) {
			return false
		}
	} else if d.name, d.codedName, ok = d.str(); !ok {
		return false
	}
	d.value, d.codedV, ok = d.str()
	return ok
}

// integer reads an integer whose first part are the lower bits of the next byte (RFC 7541, section 5.1). Beyond 2^28 it fails.
func (d *Decoder) integer(bits uint) (int, bool) {
	b, pos := d.b, d.pos
	if pos >= len(b) {
		return 0, false
	}
	mask := uint64(1)<<(bits&7) - 1
	n := uint64(b[pos]) & mask
	pos++
	if n < mask {
		d.pos = pos
		return int(n), true
	}
	for shift := uint(0); shift < 63 && pos < len(b); shift += 7 {
		c := b[pos]
		pos++
		n += uint64(c&0x7f) << (shift & 63)
		if c < 0x80 {
			d.pos = pos
			return int(n), n < 1<<28
		}
	}
	return 0, false
}

// str reads a string (RFC 7541, section 5.2).
func (d *Decoder) str() (s []byte, coded, ok bool) {
	if d.pos >= len(d.b) {
		return nil, false, false
	}
	coded = d.b[d.pos] >= 0x80
	n, ok := d.integer(7)
	if !ok || n > len(d.b)-d.pos {
		return nil, false, false
	}
	end := d.pos + n
	s = d.b[d.pos:end:end]
	d.pos = end
	return s, coded, true
}

// lookup takes the name of the entry with this index.
func (d *Decoder) lookup(i int) bool {
	switch {
	case i == 0:
		return false
	case i < staticLen:
		d.name = static[i].name
		return true
	}
	k := len(d.entries) - 1 - (i - staticLen)
	if k < d.first {
		return false
	}
	d.name, _ = d.of(d.entries[k])
	return true
}

// table is the dynamic table (RFC 7541, section 2.3.2): the newest entry has the index 0.
type table struct {
	data    []byte // names and values, one after the other; those of evicted entries too, until there is no more room
	entries []entry
	first   int // in entries: those before are evicted
	used    int // as the RFC counts
	shrunk  bool
	limit   int // where shrunk; else DefaultTable
}

type entry struct {
	off, name, value uint16
	mark             Mark
}

func (e entry) size() int { return int(e.name) + int(e.value) + fieldSize }

// maxEntries is how many entries fit a table of the default size.
const maxEntries = DefaultTable / fieldSize

func (t *table) max() int {
	if t.shrunk {
		return t.limit
	}
	return DefaultTable
}

// of returns what an entry holds.
func (t *table) of(e entry) (name, value []byte) {
	mid := int(e.off) + int(e.name)
	end := mid + int(e.value)
	return t.data[e.off:mid:mid], t.data[mid:end:end]
}

func (t *table) evict(max int) {
	for t.used > max {
		t.used -= t.entries[t.first].size()
		t.first++
	}
	if t.first == len(t.entries) {
		t.entries, t.data, t.first = t.entries[:0], t.data[:0], 0
	}
}

func (t *table) resize(n int) {
	t.shrunk, t.limit = true, n
	t.evict(n)
	if n == 0 {
		t.entries, t.data = nil, nil
	}
}

// add adds an entry. One that is longer than the table empties it (RFC 7541, section 4.4); then it returns false.
func (t *table) add(name, value []byte) bool {
	n := len(name) + len(value)
	if n+fieldSize > t.max() {
		t.evict(0)
		return false
	}
	// Entries are evicted only after name, which may belong to one, was copied.
	if t.data == nil {
		t.data = make([]byte, 0, 3*DefaultTable)
		t.entries = make([]entry, 0, 2*maxEntries)
	}
	if len(t.data)+n > cap(t.data) || len(t.entries) == cap(t.entries) {
		t.compact(name, value)
	} else {
		t.push(name, value)
	}
	t.evict(t.max())
	return true
}

func (t *table) push(name, value []byte) {
	e := entry{off: uint16(len(t.data)), name: uint16(len(name)), value: uint16(len(value))}
	t.data = append(append(t.data, name...), value...)
	t.entries = append(t.entries, e)
	t.used += e.size()
}

// compact moves the entries that are left to the beginning, and pushes one.
func (t *table) compact(name, value []byte) {
	var keep [DefaultTable]byte // name may lie in what moves
	k := copy(keep[:], name)
	from := len(t.data)
	if t.first < len(t.entries) {
		from = int(t.entries[t.first].off)
	}
	t.data = t.data[:copy(t.data, t.data[from:])]
	t.entries = t.entries[:copy(t.entries, t.entries[t.first:])]
	t.first = 0
	for i := range t.entries {
		t.entries[i].off -= uint16(from)
	}
	t.push(keep[:k], value)
}

// Indices in the static table that are of use to those who write.
const (
	IndexAuthority   = 1
	IndexMethodPost  = 3
	IndexPath        = 4
	IndexSchemeHTTP  = 6
	IndexStatus      = 8 // :status 200, if the value is taken too
	IndexContentType = 31
)

// AppendIndexed appends a field of the static table.
func AppendIndexed(dst []byte, index int) []byte { return append(dst, 0x80|byte(index)) }

// AppendField appends a field whose name stands in the static table, for this block only.
func AppendField(dst []byte, index int, value []byte) []byte {
	dst = appendInteger(dst, 4, 0, index)
	dst = appendInteger(dst, 7, 0, len(value))
	return append(dst, value...)
}

// AppendLiteral appends a field, for this block only. name is in lower case.
func AppendLiteral(dst []byte, name string, value []byte) []byte {
	dst = append(dst, 0)
	dst = appendInteger(dst, 7, 0, len(name))
	dst = append(dst, name...)
	dst = appendInteger(dst, 7, 0, len(value))
	return append(dst, value...)
}

// appendInteger appends n, the first part of it in the lower bits of a byte whose upper ones are first.
func appendInteger(dst []byte, bits uint, first byte, n int) []byte {
	mask := 1<<bits - 1
	if n < mask {
		return append(dst, first|byte(n))
	}
	dst = append(dst, first|byte(mask))
	for n -= mask; n >= 0x80; n >>= 7 {
		dst = append(dst, byte(n)|0x80)
	}
	return append(dst, byte(n))
}

// staticLen is the first index that is not in the static table.
const staticLen = 62

type field struct{ name, value []byte }

// static is the static table (RFC 7541, Appendix A), from 1 on.
var static = func() []field {
	fields := make([]field, 1, staticLen)
	for _, f := range [...][2]string{
		{":authority"}, {":method", "GET"}, {":method", "POST"}, {":path", "/"}, {":path", "/index.html"}, {":scheme", "http"},
		{":scheme", "https"}, {":status", "200"}, {":status", "204"}, {":status", "206"}, {":status", "304"}, {":status", "400"},
		{":status", "404"}, {":status", "500"}, {"accept-charset"}, {"accept-encoding", "gzip, deflate"}, {"accept-language"},
		{"accept-ranges"}, {"accept"}, {"access-control-allow-origin"}, {"age"}, {"allow"}, {"authorization"}, {"cache-control"},
		{"content-disposition"}, {"content-encoding"}, {"content-language"}, {"content-length"}, {"content-location"},
		{"content-range"}, {"content-type"}, {"cookie"}, {"date"}, {"etag"}, {"expect"}, {"expires"}, {"from"}, {"host"}, {"if-match"},
		{"if-modified-since"}, {"if-none-match"}, {"if-range"}, {"if-unmodified-since"}, {"last-modified"}, {"link"}, {"location"},
		{"max-forwards"}, {"proxy-authenticate"}, {"proxy-authorization"}, {"range"}, {"referer"}, {"refresh"}, {"retry-after"},
		{"server"}, {"set-cookie"}, {"strict-transport-security"}, {"transfer-encoding"}, {"user-agent"}, {"vary"}, {"via"},
		{"www-authenticate"},
	} {
		fields = append(fields, field{[]byte(f[0]), []byte(f[1])})
	}
	return fields
}()
