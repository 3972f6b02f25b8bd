package jsonb

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
)

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// TestInt: the bytes are what fastjson2 2.0.56 wrote of an Integer, a Short or a Byte.
func TestInt(t *testing.T) {
	for text, want := range map[string]int32{
		"00": 0, "2f": 47, "ff": -1, "f0": -16, "3830": 48, "37ef": -17, "3fff": 2047, "3000": -2048, "440800": 2048, "43f7ff": -2049,
		"47ffff": 262143, "400000": -262144, "4800040000": 262144, "48fffbffff": -262145, "487fffffff": 1<<31 - 1, "4880000000": -1 << 31,
		"bc0001": 1, "bcfed4": -300, "bd05": 5, "bdff": -1,
	} {
		b := unhex(t, text)
		if v, end, ok := Int(append(b, 0xff), 0); !ok || v != want || end != len(b) {
			t.Errorf("%s: %d, ends at %d, %v; want %d", text, v, end, ok, want)
		}
		for n := range len(b) {
			if _, _, ok := Int(b[:n], 0); ok {
				t.Errorf("%s: %d bytes are enough", text, n)
			}
		}
	}
	for _, tag := range []byte{0x49, 0x79, 0x7f, Object, Null, 0xb1, 0xb5, 0xbe, 0xbf, 0xc0, 0xe0, 0xef} {
		if _, _, ok := Int(append([]byte{tag}, make([]byte, 9)...), 0); ok {
			t.Errorf("%#x is an int", tag)
		}
	}
}

// TestText: the bytes are what fastjson2 2.0.56 wrote of a String, but for the last ones.
func TestText(t *testing.T) {
	x := func(n int) string { return hex.EncodeToString(bytes.Repeat([]byte("x"), n)) }
	for name, c := range map[string]struct {
		text string
		kind Kind
		want string
	}{
		"empty":                 {"49", UTF8, ""},
		"one":                   {"4a61", UTF8, "a"},
		"47":                    {"78" + x(47), UTF8, strings.Repeat("x", 47)},
		"48":                    {"793830" + x(48), UTF8, strings.Repeat("x", 48)},
		"300":                   {"79392c" + x(300), UTF8, strings.Repeat("x", 300)},
		"5000":                  {"79441388" + x(5000), UTF8, strings.Repeat("x", 5000)},
		"emoji":                 {"7a0561f09f9880", UTF8, "a😀"},
		"Latin-1":               {"4ae9", Opaque, "\xe9"},
		"UTF-16":                {"7c025096", Opaque, "\x50\x96"},
		"null":                  {"af", Absent, "\xaf"},
		"longer than its bytes": {"4e6161", Broken, ""},
		"length -1":             {"79ff", Broken, ""},
		"length 2^31-1":         {"79487fffffff61", Broken, ""},
		"length is a string":    {"794a61", Broken, ""},
		"length missing":        {"79", Broken, ""},
		"nothing":               {"", Broken, ""},
		"int":                   {"00", Other, ""},
		"object":                {"a6a5", Other, ""},
		"symbol":                {"7f4a6100", Other, ""},
	} {
		b := append([]byte("before"), unhex(t, c.text)...)
		start, end, kind := Text(b, 6)
		if kind != c.kind {
			t.Errorf("%s: kind %d, want %d", name, kind, c.kind)
		}
		if kind == Other || kind == Broken {
			continue
		}
		if string(b[start:end]) != c.want || end != len(b) {
			t.Errorf("%s: %.60q, ends at %d of %d", name, b[start:end], end, len(b))
		}
		for n := 6; n < len(b); n++ {
			if _, _, kind := Text(b[:n], 6); kind != Broken {
				t.Errorf("%s: kind %d with %d bytes", name, kind, n-6)
			}
		}
	}
}

// TestSkip: the bytes are what fastjson2 2.0.56 wrote of one value each, of all the simple types.
func TestSkip(t *testing.T) {
	for _, text := range []string{
		"00", "2f", "ff", "f0", "3830", "37ef", "440800", "400000", "4800040000", // Integer
		"e0", "d8", "ef", "d010", "cff7", "d7ff", "c800", "c40800", "c7ffff", "c00000", "bf00040000", "be7fffffffffffffff", // Long
		"bc0001", "bcfed4", "bd05", "bdff", // Short, Byte
		"b2", "b3", "b53ff8000000000000", "b73fc00000", // Double, Float
		"b1", "b0", "af", // Boolean, null
		"49", "4a61", "4ae9", "7c025096", "7a0561f09f9880", "7c0a61005096416d416d416d", // String
		"b4de", "b600", "b601", // Double -2.0, Float 0 and 1
		// ArrayList, HashMap, as FastJson2ObjectOutput writes them.
		"94", "954a61", "a414000102030405060708090a0b0c0d0e0f10111213", "a6a5", "a64a61974a7801e24a62a64a63b1a54a6eafa5", "a6054a78a5",
		"9695954d64656570a64a6b97b53ff8000000000000b4e2b0a5",
	} {
		b := unhex(t, text)
		if end, known := Skip(append(bytes.Clone(b), 0xff, 0xff), 0); !known || end != len(b) {
			t.Errorf("%s: ends at %d, known: %v", text, end, known)
		}
		for n := range len(b) {
			if end, known := Skip(b[:n:n], 0); !known || end <= n {
				t.Errorf("%s, %d bytes: ends at %d, known: %v", text, n, end, known)
			}
		}
	}
	deep := strings.Repeat("95", maxDepth)
	if end, known := Skip(unhex(t, deep+"00"), 0); !known || end != maxDepth+1 {
		t.Errorf("%d deep: ends at %d, known: %v", maxDepth, end, known)
	}
	// BigDecimal, Date, typed values, references, symbols, characters, binary, a time; one of them in an array; an object
	// without a value for its key, or without its end; an array of -1 values; too deep.
	for _, text := range []string{"b9010f", "ac00000000", "9249a6a5", "934a24", "7f4a6100", "9000", "9100", "a7", "95b9010f", "a64a61a5", "a5", "a4ff0000000000", "b4b9", deep + "9500",
		strings.Repeat("95", 10_000), strings.Repeat("a600", 10_000)} {
		if end, known := Skip(unhex(t, text), 0); known {
			t.Errorf("%.60s: known, ends at %d", text, end)
		}
	}
	if end, known := Skip(unhex(t, "a4487fffffff00"), 0); !known || end <= 7 {
		t.Errorf("an array of 2^31-1 values: ends at %d, known: %v", end, known)
	}
}

func FuzzText(f *testing.F) {
	f.Add([]byte("\x4a\x61"))
	f.Add([]byte("\x79\x38\x30"))
	f.Fuzz(func(t *testing.T, b []byte) {
		start, end, kind := Text(b, 0)
		switch kind {
		case UTF8, Opaque, Absent:
			if start < 0 || start > end || end > len(b) {
				t.Fatalf("%d to %d of %d", start, end, len(b))
			}
			if at, known := Skip(b, 0); !known || at != end {
				t.Fatalf("Text ends at %d, Skip at %d, known: %v", end, at, known)
			}
		}
		if end, known := Skip(b, 0); known && end <= 0 {
			t.Fatalf("Skip ends at %d", end)
		}
		if _, end, ok := Int(b, 0); ok {
			if at, known := Skip(b, 0); !known || at != end {
				t.Fatalf("Int ends at %d, Skip at %d, known: %v", end, at, known)
			}
		}
	})
}
