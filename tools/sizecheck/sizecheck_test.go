package main

import (
	"maps"
	"testing"
)

func TestParseBudget(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want int
		err  string
	}{
		"number with comments": {"# why\n\n 1200 \n", 1200, ""},
		"nothing":              {"# why\n", 0, "budget.txt: no budget"},
		"not a number":         {"# why\n2MB\n", 0, `budget.txt:2: "2MB" is not a number of bytes`},
		"negative":             {"-1\n", 0, `budget.txt:1: "-1" is not a number of bytes`},
		"two":                  {"1\n2\n", 0, "budget.txt:2: a second budget"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseBudget(c.text)
			if got != c.want || (err == nil) != (c.err == "") || err != nil && err.Error() != c.err {
				t.Errorf("got %d, %v; want %d, %q", got, err, c.want, c.err)
			}
		})
	}
}

// section builds a section of the binary format; no length here needs more than seven bits.
func section(id byte, body string) string {
	return string([]byte{id, byte(len(body))}) + body
}

func name(s string) string { return string([]byte{byte(len(s))}) + s }

func TestCodeByPackage(t *testing.T) {
	wasm := "\x00asm\x01\x00\x00\x00" +
		section(sectionImport, "\x02"+name("env")+name("f")+"\x00\x00"+name("env")+name("mem")+"\x02\x01\x01\x02") +
		section(sectionCode, "\x04"+name("12345")+name("123")+name("1234567")+name("1")) +
		section(sectionData, "four") +
		section(sectionCustom, name("other")+"ignored") +
		section(sectionCustom, name("name")+"\x00\x01x"+section(subsectionFunctions,
			"\x05"+"\x00"+name("env.f")+"\x01"+name("a.b_c_d.F")+"\x02"+name("a.b/c-d.(*T).M")+"\x03"+name("runtime.x")+"\x04"+name("stub")))
	m, err := parseModule([]byte(wasm))
	if err != nil {
		t.Fatal(err)
	}
	got := m.codeByPackage([]string{"runtime", "a.b/c-d"})
	want := map[string]int{"a.b/c-d": 8, "runtime": 7, "(other)": 1}
	if !maps.Equal(got, want) || m.data != 4 {
		t.Errorf("got %v and %d bytes of data, want %v and 4", got, m.data, want)
	}
	for cut := range wasm {
		if _, err := parseModule([]byte(wasm[:cut])); err == nil && cut < 8 {
			t.Errorf("cut at %d: no error", cut)
		}
	}
}
