package hessian2

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf16"
	"unicode/utf8"
)

// slowUnits is Units one unit at a time, as Hessian2Input.parseUTF8Char reads them, and with four bytes counting one.
func slowUnits(b []byte, off, n int) (int, error) {
	for ; n > 0; n-- {
		if off >= len(b) {
			return off + n, ErrShort
		}
		size := 0
		switch c := b[off]; {
		case c < 0x80:
			size = 1
		case c&0xe0 == 0xc0:
			size = 2
		case c&0xf0 == 0xe0:
			size = 3
		case c&0xf8 == 0xf0:
			size = 4
		default:
			return off, ErrMalformed
		}
		if off+size > len(b) {
			return off + size + n - 1, ErrShort
		}
		off += size
	}
	return off, nil
}

// TestUnits holds the fast path to the slow one: strings of all mixtures, from all offsets, in all numbers of units.
func TestUnits(t *testing.T) {
	texts := []string{
		strings.Repeat("a", 100),
		strings.Repeat("é", 40),
		strings.Repeat("限", 40),
		strings.Repeat("\xed\xa0\xbd\xed\xb8\x80", 12),
		strings.Repeat("😀", 12),
		strings.Repeat("aé限\xed\xa0\xbd\xed\xb8\x80😀", 6),
		strings.Repeat("abcdefgh限", 8), strings.Repeat("abcdefg限流", 8), strings.Repeat("a限流中文", 8),
		strings.Repeat("x", 33) + "\x80" + strings.Repeat("y", 40),
		strings.Repeat("x", 63) + "\xff" + strings.Repeat("y", 40),
		strings.Repeat("限", 10) + "\xf8" + strings.Repeat("y", 40),
		"\xc3\xc3\xc3\xc3\xe4\xe4\xe4\xe4\xe4\xf0\xf0\xf0\xf0\xf0abcdefghijklmnop",
	}
	for _, text := range texts {
		b := []byte(text)
		for off := 0; off < 12; off += 1 + off/3 {
			for end := off; end <= len(b); end += 1 + end%3 {
				for n := range end - off + 3 {
					got, gotErr := Units(b[:end:end], off, n)
					want, wantErr := slowUnits(b[:end:end], off, n)
					if got != want || !errors.Is(gotErr, wantErr) {
						t.Fatalf("%q, %d units: %d, %v; want %d, %v", b[off:end], n, got, gotErr, want, wantErr)
					}
				}
			}
		}
	}
}

func TestText(t *testing.T) {
	for name, c := range map[string]struct {
		b            string
		units, start int
		more         bool
	}{
		"empty":   {"\x00", 0, 1, false},
		"31":      {"\x1f", 31, 1, false},
		"short 0": {"\x30\x00", 0, 2, false},
		"1023":    {"\x33\xff", 1023, 2, false},
		"S":       {"S\xff\xfe", 65534, 3, false},
		"R":       {"R\x01\x00", 256, 3, true},
	} {
		if units, start, more, err := Text([]byte(c.b), 0); units != c.units || start != c.start || more != c.more || err != nil {
			t.Errorf("%s: %d, %d, %v, %v", name, units, start, more, err)
		}
		for n := range len(c.b) {
			if _, at, _, err := Text([]byte(c.b[:n]), 0); !errors.Is(err, ErrShort) || at <= n || at > len(c.b) {
				t.Errorf("%s, %d bytes: %v at %d", name, n, err, at)
			}
		}
	}
	for _, tag := range []byte{'N', 0x20, 0x34, 'Z', 0x90, 0xff, 'T', 's', 'x'} {
		if _, at, _, err := Text([]byte{tag, 0, 0}, 0); !errors.Is(err, ErrMalformed) || at != 0 {
			t.Errorf("%#x: %v at %d, want ErrMalformed at 0", tag, err, at)
		}
	}
}

// readString reads a string of any number of chunks, as Hessian2Input does: into UTF-16 units.
func readString(t *testing.T, b []byte) (units []uint16, chunks int, end int) {
	t.Helper()
	off := 0
	for {
		n, start, more, err := Text(b, off)
		if err != nil {
			t.Fatalf("chunk %d: %v at %d", chunks, err, start)
		}
		chunks++
		off = start
		for range n {
			switch c := b[off]; {
			case c < 0x80:
				units = append(units, uint16(c))
				off++
			case c&0xe0 == 0xc0:
				units = append(units, uint16(c&0x1f)<<6|uint16(b[off+1]&0x3f))
				off += 2
			case c&0xf0 == 0xe0:
				units = append(units, uint16(c&0xf)<<12|uint16(b[off+1]&0x3f)<<6|uint16(b[off+2]&0x3f))
				off += 3
			default:
				t.Fatalf("byte %#x at %d", c, off)
			}
		}
		if len(units) > 0 && units[len(units)-1]&0xfc00 == 0xd800 {
			t.Fatalf("chunk %d ends within a surrogate pair", chunks)
		}
		if !more {
			return units, chunks, off
		}
	}
}

func TestAppendString(t *testing.T) {
	for name, c := range map[string]struct {
		s      string
		head   string
		chunks int
	}{
		"empty":                      {"", "\x00", 1},
		"31":                         {strings.Repeat("a", 31), "\x1f", 1},
		"32":                         {strings.Repeat("a", 32), "\x30\x20", 1},
		"1023":                       {strings.Repeat("a", 1023), "\x33\xff", 1},
		"1024":                       {strings.Repeat("a", 1024), "S\x04\x00", 1},
		"32768":                      {strings.Repeat("a", 32768), "S\x80\x00", 1},
		"32769":                      {strings.Repeat("a", 32769), "R\x80\x00", 2},
		"65536":                      {strings.Repeat("a", 65536), "R\x80\x00", 2},
		"65537":                      {strings.Repeat("a", 65537), "R\x80\x00", 3},
		"two bytes":                  {strings.Repeat("é", 31), "\x1f", 1},
		"three bytes":                {strings.Repeat("限", 1023), "\x33\xff", 1},
		"pairs":                      {strings.Repeat("😀", 16), "\x30\x20", 1},
		"pair across the chunks":     {strings.Repeat("a", 32767) + "😀b", "R\x7f\xff", 2},
		"pair at the end of a chunk": {strings.Repeat("a", 32766) + "😀b", "R\x80\x00", 2},
		"long, wide":                 {strings.Repeat("限流😀", 30_000), "R\x80\x00", 4},
		"not UTF-8":                  {"a\xff\xc3b\xed\xa0\xbd", "\x07", 1},
		"zero byte":                  {"\x00", "\x01\x00", 1},
	} {
		t.Run(name, func(t *testing.T) {
			b := AppendString([]byte("before"), c.s)
			if !bytes.HasPrefix(b, []byte("before"+c.head)) {
				t.Fatalf("begins with %x", b[:min(len(b), 16)])
			}
			b = b[6:]
			units, chunks, end := readString(t, b)
			if want := utf16.Encode([]rune(strings.ToValidUTF8(c.s, "\ufffd"))); name != "not UTF-8" && string(utf16.Decode(units)) != string(utf16.Decode(want)) {
				t.Errorf("%d units, want %d", len(units), len(want))
			}
			if name == "not UTF-8" && string(utf16.Decode(units)) != "a\ufffd\ufffdb\ufffd\ufffd\ufffd" {
				t.Errorf("got %q", string(utf16.Decode(units)))
			}
			if chunks != c.chunks || end != len(b) {
				t.Errorf("%d chunks, ends at %d of %d; want %d chunks", chunks, end, len(b), c.chunks)
			}
			if at, err := new(Scanner).Skip(b, 0, 1); err != nil || at != len(b) {
				t.Errorf("Skip ends at %d of %d, %v", at, len(b), err)
			}
		})
	}
	dst := make([]byte, 0, 1<<20)
	text := strings.Repeat("限流😀", 30_000)
	if n := testing.AllocsPerRun(10, func() { dst = AppendString(dst[:0], text) }); n != 0 {
		t.Errorf("AppendString allocates %g times", n)
	}
}

func FuzzAppendString(f *testing.F) {
	f.Add("", 0)
	f.Add("a限😀\xff", 5000)
	f.Fuzz(func(t *testing.T, s string, times int) {
		if times < 0 || times*len(s) > 1<<18 {
			return
		}
		s = strings.Repeat(s, times)
		b := AppendString(nil, s)
		units, _, end := readString(t, b)
		var want []uint16
		for _, r := range s {
			want = utf16.AppendRune(want, r)
		}
		if end != len(b) || string(utf16.Decode(units)) != string(utf16.Decode(want)) || len(units) != len(want) {
			t.Fatalf("%d units that end at %d of %d, want %d", len(units), end, len(b), len(want))
		}
		if at, err := new(Scanner).Skip(b, 0, 1); err != nil || at != len(b) {
			t.Fatalf("Skip ends at %d of %d, %v", at, len(b), err)
		}
	})
}

func BenchmarkUnits(b *testing.B) {
	for _, c := range []struct{ name, text string }{
		{"ASCII8", strings.Repeat("a", 8)}, {"ASCII24", strings.Repeat("a", 24)}, {"ASCII1K", strings.Repeat("a", 1024)},
		{"Latin1K", strings.Repeat("é", 512)}, {"Chinese1K", strings.Repeat("限", 341)}, {"Mixed1K", strings.Repeat("naïve 限流 ", 73)},
	} {
		b.Run(c.name, func(b *testing.B) {
			text := append([]byte(c.text), make([]byte, 16)...)
			n := utf8.RuneCountInString(c.text)
			b.SetBytes(int64(len(c.text)))
			for b.Loop() {
				if at, err := Units(text, 0, n); err != nil || at != len(c.text) {
					b.Fatal(fmt.Sprint(at, err))
				}
			}
		})
	}
}
