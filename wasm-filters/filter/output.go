package filter

// An output is what a callback's buffer turns into. As long as nothing changes, it costs nothing.
type output struct {
	b     Buffer
	n     int    // length of the buffer
	buf   []byte // what takes the place of the buffer's first done bytes
	done  int
	dirty bool

	// window holds the buffer's bytes from start on, as far as they were fetched: what is there need not be fetched again.
	window []byte
	start  int
}

func (o *output) reset(b Buffer, n int) {
	o.b, o.n, o.buf, o.done, o.dirty = b, n, o.buf[:0], 0, false
	o.window, o.start = nil, 0
}

// keep passes on the buffer up to pos.
func (o *output) keep(pos int) {
	if pos <= o.done {
		return
	}
	if i := o.done - o.start; i >= 0 && pos-o.start <= len(o.window) {
		o.buf = append(o.buf, o.window[i:pos-o.start]...)
		o.done = pos
		return
	}
	at, k := len(o.buf), pos-o.done
	o.buf = grow(o.buf, k)
	o.b.CopyTo(o.buf[at:], o.done)
	o.done = pos
}

// insert puts lit at pos.
func (o *output) insert(pos int, lit []byte) {
	o.keep(pos)
	o.buf = append(o.buf, lit...)
	o.dirty = true
}

// drop leaves out the buffer from pos to end.
func (o *output) drop(pos, end int) {
	o.keep(pos)
	o.done = end
	o.dirty = true
}

// tail returns the slice that literals may be appended to, after everything before pos; commit takes it back.
func (o *output) tail(pos int) []byte {
	o.keep(pos)
	o.dirty = true
	return o.buf
}

func (o *output) commit(buf []byte) { o.buf = buf }

// finish changes the buffer, with one call to the host at most, apart from those to read it.
func (o *output) finish() {
	if o.dirty {
		if o.done == 0 {
			if len(o.buf) > 0 {
				o.b.Prepend(o.buf)
			}
		} else {
			o.keep(o.n)
			o.b.Replace(o.buf)
		}
	}
	o.b, o.window = nil, nil
	if cap(o.buf) > 1<<20 {
		o.buf = nil // an exception, not worth its memory
	}
}

// grow extends s by n bytes of any content.
func grow(s []byte, n int) []byte {
	if k := len(s) + n; k <= cap(s) {
		return s[:k]
	}
	return append(s, make([]byte, n)...)
}
