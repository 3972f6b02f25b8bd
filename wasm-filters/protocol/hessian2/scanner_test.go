package hessian2

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"go/build"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// TestSkip has an example of each form; those of the specification's text are among them.
func TestSkip(t *testing.T) {
	for name, text := range map[string]string{
		"null": "4e", "true": "54", "false": "46",
		"int 0": "90", "int -16": "80", "int 47": "bf", "int -2048": "c000", "int 2047": "cfff", "int -262144": "d00000",
		"int 262143": "d7ffff", "int 300": "490000012c",
		"long -8": "d8", "long 15": "ef", "long -2048": "f000", "long -262144": "380000", "long 300": "590000012c",
		"long 2^63-1": "4c7fffffffffffffff",
		"double 0":    "5b", "double 1": "5c", "double -128": "5d80", "double 32767": "5e7fff", "double 12.25": "5f00002fda",
		"double pi":    "44400921fb54442d18",
		"date, millis": "4a000000d04b92840b", "date, minutes": "4b00000e91",
		"empty string":                   "00",
		"string":                         "0568656c6c6f",
		"string, U+00C3":                 "01c383",
		"string of 32":                   "3020" + strings.Repeat("61", 32),
		"string S":                       "53000568656c6c6f",
		"chunked string":                 "52 0007 68656c6c6f2c20 05 776f726c64",
		"string in three chunks, S last": "52 0001 61 52 0000 53 0002 6263",
		"empty binary":                   "20", "binary": "23010203", "binary of 16": "3410" + strings.Repeat("00", 16),
		"binary B": "420003010203", "chunked binary": "41 0002 0102 41 0001 03 22 0405", "chunked, short last": "41 0002 0102 3402 0405",
		"typed list [int":                    "55 045b696e74 90 91 5a",
		"fixed list":                         "56 045b696e74 92 90 91",
		"fixed list, type by number":         "78 56 90 92 90 91", // two values: see below
		"untyped list to Z":                  "57 90 91 5a",
		"untyped fixed list":                 "58 92 90 91",
		"short typed list":                   "72 045b696e74 90 91",
		"short untyped list":                 "7a 90 91",
		"empty lists":                        "7b 78 57 5a 5890",
		"typed map":                          "4d 13 636f6d2e6361756368 6f2e746573742e436172 91 0362616a 5a",
		"untyped map":                        "48 91 03666565 a0 03666965 c900 03666f65 5a",
		"empty map":                          "485a",
		"map in a map's key":                 "48 48 91 92 5a 4e 5a",
		"class and object":                   "43 0b6578616d706c652e436172 92 05636f6c6f72 056d6f64656c 60 03726564 08636f727665747465",
		"class without fields":               "43 0141 90 60",
		"object by long number":              "43 0141 91 0161 4f 90 4e",
		"two classes for one value":          "43 0141 90 43 0142 91 0166 61 60",
		"class within an object":             "43 0141 91 0161 60 43 0142 90 61",
		"objects in a list":                  "7a 43 0141 91 0166 60 90 60 91",
		"recursive":                          "43 0a4c696e6b65644c697374 92 0468656164 047461696c 60 91 5190",
		"reference to nowhere":               "51 49ffffffff",
		"reference to itself":                "7951 90",
		"surrogate pair":                     "02 eda0bd edb880",
		"four bytes count one":               "01 f09f9880",
		"lone surrogate":                     "02 eda0bd 61",
		"unit of two bytes, any second byte": "01 c341",
	} {
		t.Run(name, func(t *testing.T) {
			b := unhex(t, text)
			values := 1
			if name == "fixed list, type by number" {
				values = 2
			}
			var s Scanner
			at, err := s.Skip(b, 0, values)
			if err != nil || at != len(b) {
				t.Fatalf("ends at %d of %d, %v", at, len(b), err)
			}
			// Each beginning is short, and asks for more than it has and no more than there is.
			for n := range len(b) {
				at, err := new(Scanner).Skip(b[:n:n], 0, values)
				if !errors.Is(err, ErrShort) || at <= n || at > len(b) {
					t.Errorf("%d of %d bytes: at %d, %v", n, len(b), at, err)
				}
			}
			// It ends at the same place with anything behind it, and anywhere.
			for _, behind := range []string{"\x00", "Z", "NNNNNNNNNNNN", "\xff\xff\xff\xff\xff\xff\xff\xff\xff"} {
				long := append(append([]byte("before"), b...), behind...)
				if at, err := new(Scanner).Skip(long, 6, values); err != nil || at != 6+len(b) {
					t.Errorf("with %q behind it: ends at %d of %d, %v", behind, at-6, len(b), err)
				}
			}
		})
	}
}

func TestSkipMalformed(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want error
		at   int
	}{
		"40":                          {"40", ErrMalformed, 0},
		"45":                          {"45", ErrMalformed, 0},
		"47":                          {"47", ErrMalformed, 0},
		"50":                          {"50", ErrMalformed, 0},
		"Z alone":                     {"5a", ErrMalformed, 0},
		"Z in a fixed list":           {"795a", ErrMalformed, 1},
		"key without a value":         {"48 90 91 90 5a", ErrMalformed, 4},
		"Z after a class":             {"57 43 0141 90 5a", ErrMalformed, 5},
		"Z after a class, at a key":   {"48 43 0141 90 5a", ErrMalformed, 5},
		"object of no class":          {"60", ErrMalformed, 0},
		"object of the second class":  {"43 0141 90 61", ErrMalformed, 4},
		"object -1":                   {"43 0141 90 4f 8f", ErrMalformed, 5},
		"object by a string":          {"4f 00", ErrMalformed, 1},
		"class without a name":        {"43 90", ErrMalformed, 1},
		"class with -1 fields":        {"43 0141 8f", ErrMalformed, 3},
		"class with 65536 fields":     {"43 0141 d50000", ErrMalformed, 3},
		"class with a null field":     {"43 0141 91 4e", ErrMalformed, 4},
		"list of -1":                  {"58 8f", ErrMalformed, 1},
		"list of -2^31":               {"58 4980000000", ErrMalformed, 1},
		"list of null length":         {"58 4e", ErrMalformed, 1},
		"list of a long length":       {"58 e0", ErrMalformed, 1},
		"type null":                   {"55 4e 5a", ErrMalformed, 1},
		"reference by a string":       {"51 00", ErrMalformed, 1},
		"continuation byte first":     {"01 80", ErrMalformed, 1},
		"continuation byte, later":    {"0a 61616161616161616180", ErrMalformed, 10},
		"bf":                          {"02 61bf", ErrMalformed, 2},
		"f8":                          {"01 f8", ErrMalformed, 1},
		"ff":                          {"05 61616161ff", ErrMalformed, 5},
		"string, then binary":         {"52 0001 61 20", ErrMalformed, 4},
		"string, then null":           {"52 0001 61 4e", ErrMalformed, 4},
		"binary, then string":         {"41 0001 61 00", ErrMalformed, 4},
		"in the last of three values": {"7b 90 90 40", ErrMalformed, 3},
	} {
		t.Run(name, func(t *testing.T) {
			at, err := new(Scanner).Skip(unhex(t, c.text), 0, 1)
			if !errors.Is(err, c.want) || at != c.at {
				t.Errorf("%v at %d, want %v at %d", err, at, c.want, c.at)
			}
		})
	}
}

// TestSkipLengths: a length beyond the bytes at hand is not waited for value by value, and takes no memory.
func TestSkipLengths(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		at   int
	}{
		"list":             {"58 497fffffff 90", 6 + 1<<31 - 1},
		"typed list":       {"56 00 497fffffff 90", 7 + 1<<31 - 1},
		"short list":       {"7f 90", 8},
		"string":           {"53 ffff 61", 3 + 65535},
		"string of 31":     {"1f 6161", 32},
		"wide units":       {"05 e4b8", 1 + 3 + 4},
		"binary":           {"42 ffff 61", 3 + 65535},
		"fields":           {"43 0141 d4ffff 0161", 6 + 65535},
		"object":           {"43 0141 92 0161 0162 60 90", 11},
		"chunk":            {"52 0001 61", 5},
		"binary chunk":     {"41 0001 61", 5},
		"class, no object": {"43 0141 90", 5},
	} {
		t.Run(name, func(t *testing.T) {
			at, err := new(Scanner).Skip(unhex(t, c.text), 0, 1)
			if !errors.Is(err, ErrShort) || at != c.at {
				t.Errorf("%v at %d, want ErrShort at %d", err, at, c.at)
			}
		})
	}
	if at, err := new(Scanner).Skip([]byte{0x90}, 0, 1<<31-1); !errors.Is(err, ErrShort) || at != 1<<31-1 {
		t.Errorf("2^31-1 values in one byte: %v at %d", err, at)
	}
	if at, err := new(Scanner).Skip(nil, 0, 0); err != nil || at != 0 {
		t.Errorf("no values: %v at %d", err, at)
	}
}

func TestDepth(t *testing.T) {
	class := unhex(t, "43 0141 91 0166")
	for name, c := range map[string]struct{ start, open, inner, shut string }{
		"endless lists":      {"", "W", "N", "Z"},
		"typed endless":      {"", "U\x01t", "N", "Z"},
		"short lists":        {"", "\x79", "N", ""},
		"fixed lists":        {"", "X\x91", "N", ""},
		"typed lists":        {"", "V\x01t\x91", "N", ""},
		"maps, by value":     {"", "HN", "N", "Z"},
		"maps, by key":       {"", "H", "N", "NZ"},
		"typed maps":         {"", "M\x01tN", "N", "Z"},
		"objects":            {string(class), "\x60", "N", ""},
		"objects, by number": {string(class), "O\x90", "N", ""},
		"cyclic objects":     {string(class), "\x60", "Q\x90", ""},
	} {
		t.Run(name, func(t *testing.T) {
			build := func(n int) []byte {
				return []byte(c.start + strings.Repeat(c.open, n) + c.inner + strings.Repeat(c.shut, n))
			}
			b := build(MaxDepth)
			if at, err := new(Scanner).Skip(b, 0, 1); err != nil || at != len(b) {
				t.Errorf("%d deep: ends at %d of %d, %v", MaxDepth, at, len(b), err)
			}
			for _, n := range []int{MaxDepth + 1, 10_000, 1_000_000} {
				at, err := new(Scanner).Skip(build(n), 0, 1)
				if want := len(c.start) + MaxDepth*len(c.open); !errors.Is(err, ErrTooDeep) || at != want {
					t.Errorf("%d deep: %v at %d, want ErrTooDeep at %d", n, err, at, want)
				}
			}
			// Depth is of what is open, not of all that was.
			wide := append([]byte(c.start), bytes.Repeat(build(MaxDepth)[len(c.start):], 3)...)
			if at, err := new(Scanner).Skip(wide, 0, 3); err != nil || at != len(wide) {
				t.Errorf("three beside each other: ends at %d of %d, %v", at, len(wide), err)
			}
		})
	}
}

func TestClasses(t *testing.T) {
	var b []byte
	for range MaxClasses {
		b = append(b, 'C', 1, 'A', 0x91, 1, 'f')
	}
	last := append(bytes.Clone(b), 'O', 'I', 0, 0, (MaxClasses-1)>>8, (MaxClasses-1)&0xff, 'N')
	if at, err := new(Scanner).Skip(last, 0, 1); err != nil || at != len(last) {
		t.Errorf("%d classes: ends at %d of %d, %v", MaxClasses, at, len(last), err)
	}
	beyond := append(bytes.Clone(b), 'C', 1, 'A', 0x90, 'N')
	if at, err := new(Scanner).Skip(beyond, 0, 1); !errors.Is(err, ErrTooManyClasses) || at != len(b) {
		t.Errorf("%d classes: %v at %d, want ErrTooManyClasses at %d", MaxClasses+1, err, at, len(b))
	}
}

// TestMessage: values of one message share classes, a value that fails defines none, and Reset forgets them all.
func TestMessage(t *testing.T) {
	first, second := unhex(t, "43 0141 92 0161 0162 60 4e 4e"), unhex(t, "60 90 91")
	b := append(bytes.Clone(first), second...)
	var s Scanner
	at, err := s.Skip(b, 0, 1)
	if err != nil || at != len(first) {
		t.Fatalf("first value: %v at %d", err, at)
	}
	if at, err = s.Skip(b, at, 1); err != nil || at != len(b) {
		t.Errorf("second value: %v at %d", err, at)
	}
	// Split anywhere, the second time it must come out the same: class 0 is the one defined once.
	for n := range len(b) {
		s.Reset()
		if _, err := s.Skip(b[:n], 0, 2); !errors.Is(err, ErrShort) {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if s.classes != 0 {
			t.Fatalf("%d bytes: a value that was not complete left %d classes", n, s.classes)
		}
		if at, err := s.Skip(b, 0, 2); err != nil || at != len(b) {
			t.Errorf("again after %d bytes: %v at %d", n, err, at)
		}
	}
	s.Reset()
	if _, err := s.Skip(second, 0, 1); !errors.Is(err, ErrMalformed) {
		t.Errorf("after Reset: %v, want ErrMalformed", err)
	}
}

func TestInt(t *testing.T) {
	for text, want := range map[string]int32{
		"90": 0, "80": -16, "bf": 47, "c000": -2048, "c700": -256, "cfff": 2047, "d00000": -262144, "d7ffff": 262143,
		"4900000000": 0, "49ffffffff": -1, "497fffffff": 1<<31 - 1, "4980000000": -1 << 31,
	} {
		b := unhex(t, text)
		if v, at, err := Int(b, 0); err != nil || v != want || at != len(b) {
			t.Errorf("%s: %d at %d, %v; want %d", text, v, at, err, want)
		}
		for n := range len(b) {
			if _, at, err := Int(b[:n], 0); !errors.Is(err, ErrShort) || at <= n || at > len(b) {
				t.Errorf("%s, %d bytes: %v at %d", text, n, err, at)
			}
		}
	}
	for _, tag := range []byte{0, 'N', 'T', 'F', 'L', 'Y', 'D', 0xd8, 0xe0, 0xff, 0x38, 0x5b} {
		if _, at, err := Int([]byte{tag, 0, 0, 0, 0, 0, 0, 0, 0}, 0); !errors.Is(err, ErrMalformed) || at != 0 {
			t.Errorf("%#x: %v at %d, want ErrMalformed at 0", tag, err, at)
		}
	}
}

// writer writes random values in every form that the grammar has, also those that no known program writes.
type writer struct {
	*rand.Rand
	b       []byte
	classes []int // by class: number of fields
	budget  int
}

func (w *writer) put(b ...byte) { w.b = append(w.b, b...) }

func (w *writer) int(v int32) {
	forms := []func(){func() { w.b = binary.BigEndian.AppendUint32(append(w.b, 'I'), uint32(v)) }}
	if v >= -16 && v <= 47 {
		forms = append(forms, func() { w.put(byte(0x90 + v)) })
	}
	if v >= -2048 && v <= 2047 {
		forms = append(forms, func() { w.put(byte(0xc8+v>>8), byte(v)) })
	}
	if v >= -262144 && v <= 262143 {
		forms = append(forms, func() { w.put(byte(0xd4+v>>16), byte(v>>8), byte(v)) })
	}
	forms[w.IntN(len(forms))]()
}

func (w *writer) bytes(n int) {
	for range n {
		w.put(byte(w.Uint32()))
	}
}

// units writes n units, and returns how many there are: a pair of surrogates may be one more.
func (w *writer) units(n int) {
	kind := w.IntN(4)
	for range n {
		k := kind
		if k == 3 {
			k = w.IntN(5)
		}
		switch k {
		case 0:
			w.put(byte(w.IntN(0x80)))
		case 1:
			w.put(0xc0|byte(w.IntN(32)), byte(w.Uint32()))
		case 2:
			w.put(0xe0|byte(w.IntN(16)), byte(w.Uint32()), byte(w.Uint32()))
		case 3:
			w.put(0xed, 0xa0|byte(w.IntN(32)), 0x80|byte(w.IntN(64)))
		case 4:
			w.put(0xf0|byte(w.IntN(8)), byte(w.Uint32()), byte(w.Uint32()), byte(w.Uint32()))
		}
	}
}

func (w *writer) string() {
	for w.IntN(6) == 0 {
		n := w.IntN(300)
		w.put('R', byte(n>>8), byte(n))
		w.units(n)
	}
	switch w.IntN(4) {
	case 0:
		n := w.IntN(1024)
		w.put(0x30+byte(n>>8), byte(n))
		w.units(n)
	case 1:
		n := w.IntN(2000)
		w.put('S', byte(n>>8), byte(n))
		w.units(n)
	default:
		n := w.IntN(32)
		w.put(byte(n))
		w.units(n)
	}
}

func (w *writer) binary() {
	for w.IntN(4) == 0 {
		n := w.IntN(300)
		w.put('A', byte(n>>8), byte(n))
		w.bytes(n)
	}
	switch w.IntN(3) {
	case 0:
		n := w.IntN(1024)
		w.put(0x34+byte(n>>8), byte(n))
		w.bytes(n)
	case 1:
		n := w.IntN(2000)
		w.put('B', byte(n>>8), byte(n))
		w.bytes(n)
	default:
		n := w.IntN(16)
		w.put(0x20 + byte(n))
		w.bytes(n)
	}
}

func (w *writer) typ() {
	if w.IntN(2) == 0 {
		w.int(int32(w.IntN(1000)))
		return
	}
	w.string()
}

func (w *writer) value(depth int) {
	for w.IntN(12) == 0 && len(w.classes) < MaxClasses {
		n := w.IntN(5)
		w.put('C')
		w.string()
		w.int(int32(n))
		for range n {
			w.string()
		}
		w.classes = append(w.classes, n)
	}
	w.budget--
	kind := w.IntN(20)
	if depth == MaxDepth || w.budget < 0 {
		kind %= 10
	}
	switch kind {
	case 0:
		w.put("NTF"[w.IntN(3)])
	case 1:
		w.int(int32(w.Uint32()) >> w.IntN(32))
	case 2: // long
		switch w.IntN(5) {
		case 0:
			w.put(0xd8 + byte(w.IntN(24)))
		case 1:
			w.put(0xf0 + byte(w.IntN(16)))
			w.bytes(1)
		case 2:
			w.put(0x38 + byte(w.IntN(8)))
			w.bytes(2)
		case 3:
			w.put('Y')
			w.bytes(4)
		case 4:
			w.put('L')
			w.bytes(8)
		}
	case 3: // double
		form := w.IntN(6)
		w.put([]byte{'D', 0x5b, 0x5c, 0x5d, 0x5e, 0x5f}[form])
		w.bytes([]int{8, 0, 0, 1, 2, 4}[form])
	case 4: // date
		form := w.IntN(2)
		w.put("JK"[form])
		w.bytes([]int{8, 4}[form])
	case 5, 6, 7:
		w.string()
	case 8:
		w.binary()
	case 9:
		w.put('Q')
		w.int(int32(w.Uint32()))
	case 10, 11: // lists to Z
		if w.IntN(2) == 0 {
			w.put('U')
			w.typ()
		} else {
			w.put('W')
		}
		for w.IntN(4) != 0 {
			w.value(depth + 1)
		}
		w.put('Z')
	case 12, 13: // lists with a length
		n := w.IntN(12)
		typed, short := w.IntN(2) == 0, w.IntN(2) == 0 && n < 8
		switch {
		case typed && short:
			w.put(0x70 + byte(n))
			w.typ()
		case typed:
			w.put('V')
			w.typ()
			w.int(int32(n))
		case short:
			w.put(0x78 + byte(n))
		default:
			w.put('X')
			w.int(int32(n))
		}
		for range n {
			w.value(depth + 1)
		}
	case 14, 15, 16: // maps
		if w.IntN(2) == 0 {
			w.put('M')
			w.typ()
		} else {
			w.put('H')
		}
		for w.IntN(4) != 0 {
			w.value(depth + 1)
			w.value(depth + 1)
		}
		w.put('Z')
	default: // objects
		if len(w.classes) == 0 {
			w.put('N')
			return
		}
		class := w.IntN(len(w.classes))
		if class < 16 && w.IntN(2) == 0 {
			w.put(0x60 + byte(class))
		} else {
			w.put('O')
			w.int(int32(class))
		}
		for range w.classes[class] {
			w.value(depth + 1)
		}
	}
}

// TestGrammar: whatever the grammar allows is skipped exactly, all its beginnings are short, and each asks for no more
// than there is.
func TestGrammar(t *testing.T) {
	for seed := range 150 {
		w := writer{Rand: rand.New(rand.NewPCG(uint64(seed), 0)), budget: 200}
		values := 1 + w.IntN(3)
		for range values {
			w.value(0)
		}
		var s Scanner
		if at, err := s.Skip(w.b, 0, values); err != nil || at != len(w.b) {
			t.Fatalf("seed %d: ends at %d of %d, %v", seed, at, len(w.b), err)
		}
		step := 1 + len(w.b)/100
		for n := 0; n < len(w.b); n += step {
			s.Reset()
			at, err := s.Skip(w.b[:n:n], 0, values)
			if !errors.Is(err, ErrShort) || at <= n || at > len(w.b) {
				t.Fatalf("seed %d, %d of %d bytes: %v at %d", seed, n, len(w.b), err, at)
			}
		}
	}
}

// TestImports: what runs for every frame neither formats nor reflects, and drags nothing into the filter that does.
func TestImports(t *testing.T) {
	allowed := []string{"encoding/binary", "errors", "math/bits", "unicode/utf8"}
	const module = "github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
	for _, dir := range []string{".", "..", "../dubbo"} {
		pkg, err := build.ImportDir(dir, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range pkg.Imports {
			if !slices.Contains(allowed, path) && path != module && !strings.HasPrefix(path, module+"/") {
				t.Errorf("%s imports %s", pkg.Name, path)
			}
		}
	}
}
