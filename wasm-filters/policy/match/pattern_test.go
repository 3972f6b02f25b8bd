package match

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestPattern(t *testing.T) {
	for _, c := range []struct {
		expr     string
		yes, not []string
	}{
		{"", []string{""}, []string{"a"}},
		{"abc", []string{"abc"}, []string{"", "ab", "abcd", "xabc", "ABC"}},
		{"^abc$", []string{"abc"}, []string{"^abc$"}},
		{"a|bc|", []string{"a", "bc", ""}, []string{"abc", "c", "ab"}},
		{"x(a|b|cd)*y", []string{"xy", "xay", "xcdaby"}, []string{"xcy", "xd", "x"}},
		{"(a|(b|c)d|e)f", []string{"af", "bdf", "cdf", "ef"}, []string{"bf", "df", "f"}},
		{"a+b?", []string{"a", "aab"}, []string{"b", "abb"}},
		{"a{3}", []string{"aaa"}, []string{"aa", "aaaa"}},
		{"a{2,}", []string{"aa", "aaaaa"}, []string{"a"}},
		{"(ab){1,3}c", []string{"abc", "abababc"}, []string{"c", "ababababc"}},
		{"a{0}b", []string{"b"}, []string{"ab"}},
		{"(a*)*b", []string{"b", "aaab"}, []string{"a"}},
		{`get[A-Z]\w*`, []string{"getUser", "getX_1"}, []string{"get", "getuser", "getÜ"}},
		{`[^a-z.]+`, []string{"ÄÖ", "A1", "日本"}, []string{"a", "A.", ""}},
		{`[-a\]\-]+`, []string{"-a]"}, []string{"b"}},
		{`\d+\D`, []string{"12x", "1ü"}, []string{"12", "x"}},
		{`.{2}`, []string{"ab", "üß", "日本", "\U0001F600x"}, []string{"a", "abc", "a\n"}},
		{`(?i)get[a-z]+É`, []string{"GETxÉ", "getXÉ"}, []string{"getxé"}},
		{`(?i)[^k]`, []string{"a", "ü"}, []string{"k", "K"}},
		{`a*?b`, []string{"b", "aab"}, []string{"a"}},
		{`\.\*\\\{`, []string{`.*\{`}, []string{"a*"}},
		{`spiffe://cluster\.local/ns/(shop|pay)/sa/.*`, []string{"spiffe://cluster.local/ns/pay/sa/web"}, []string{"spiffe://cluster.local/ns/other/sa/web"}},
	} {
		p, err := Compile(c.expr)
		if err != nil {
			t.Errorf("%q: %v", c.expr, err)
			continue
		}
		for _, s := range c.yes {
			if !p.Match([]byte(s)) {
				t.Errorf("%q does not match %q", c.expr, s)
			}
		}
		for _, s := range c.not {
			if p.Match([]byte(s)) {
				t.Errorf("%q matches %q", c.expr, s)
			}
		}
	}
}

func TestPatternSyntax(t *testing.T) {
	for expr, want := range map[string]string{
		"(":                         "missing ) at offset 1",
		"a)":                        "unexpected ) at offset 1",
		"a**":                       "repetition of a repetition at offset 2",
		"*a":                        "nothing to repeat at offset 0",
		"a{":                        "missing number at offset 2",
		"a{2":                       "missing } at offset 3",
		"a{3,2}":                    "repetition with its bounds exchanged at offset 5",
		"a{01}":                     "number with a leading zero at offset 4",
		"a{9999999999999999999999}": "expression too large at offset 5",
		"(a{100}){100}":             "expression too large at offset 13",
		"[a":                        "missing ] at offset 2",
		"[]":                        "empty class at offset 1",
		"[ü]":                       "a class lists ASCII characters only at offset 1",
		"[z-a]":                     "range needs two characters, the lower one first at offset 4",
		`[a-\d]`:                    "range needs two characters, the lower one first at offset 5",
		"[a-c-e]":                   "- in a class without \\ at offset 4",
		"[[:alpha:]]":               "[ in a class without \\ at offset 1",
		`[\D]`:                      `\D, \W and \S cannot stand in a class at offset 3`,
		`\b`:                        "unknown escape at offset 1",
		`\`:                         "nothing behind \\ at offset 1",
		"a^b":                       "only the first ^ and the last $ of an expression may stand without \\ at offset 1",
		"(?P<n>a)":                  "unknown kind of group at offset 1",
		"\xff":                      "expression is not UTF-8 at offset 0",
		strings.Repeat("a", 513):    "expression longer than 512 bytes at offset 0",
		strings.Repeat("(", 40):     "nested too deeply at offset 33",
		strings.Repeat(".", 200):    "expression too large at offset 129",
		"(a|b){200}":                "expression too large at offset 10",
	} {
		_, err := Compile(expr)
		if err == nil || err.Error() != want {
			t.Errorf("%.40q: %v, want %s", expr, err, want)
		}
	}
}

// TestPatternIsLinear: an expression that makes backtracking matchers take forever costs no more than any other, and
// nothing is allocated.
func TestPatternIsLinear(t *testing.T) {
	p, err := Compile("(a?){100}(a*)*a{50}b")
	if err != nil {
		t.Fatal(err)
	}
	text := []byte(strings.Repeat("a", 2000))
	if n := testing.AllocsPerRun(10, func() { p.Match(text) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if p.Match(text) || !p.Match(append(text, 'b')) {
		t.Error("wrong")
	}
}

// FuzzPattern holds patterns to regexp: what Compile takes, regexp takes too, and both match the same texts.
func FuzzPattern(f *testing.F) {
	for _, expr := range []string{"a|b*", `(a|bc)+x?`, `[^a-c\d]{2,3}`, `(?i)get.\w`, `\.\s\S`, `(?:a{2}|)*`, "[-x]", "ü+.", `(a|(b|c)d|e|)f*?`} {
		for _, text := range []string{"", "aab", "abcbcx", "GETx1", "ü€a"} {
			f.Add(expr, text)
		}
	}
	f.Fuzz(func(t *testing.T, expr, text string) {
		p, err := Compile(expr)
		if err != nil || !utf8.ValidString(text) || len(text) > 200 {
			return
		}
		// regexp's (?i) knows the Kelvin sign, too.
		if strings.HasPrefix(expr, "(?i)") && strings.ContainsAny(text, "\u212a\u017f") || len(p.program) > 200 {
			return
		}
		flags, rest := "", expr
		if s, ok := strings.CutPrefix(expr, "(?i)"); ok {
			flags, rest = "(?i)", s
		}
		re, err := regexp.Compile(fmt.Sprintf(`%s\A(?:%s)\z`, flags, rest))
		if e := new(syntax.Error); errors.As(err, &e) && e.Code == syntax.ErrInvalidRepeatSize {
			return // it bounds how often repetitions within each other repeat, and we what comes of them
		}
		if err != nil {
			t.Fatalf("%q: regexp says %v", expr, err)
		}
		want := re.MatchString(text)
		if got, long := p.Match([]byte(text)), p.long([]byte(text)); got != want || long != want {
			t.Fatalf("%q of %q is %v, and %v as a long one; regexp says %v", expr, text, got, long, want)
		}
	})
}

func BenchmarkPattern(b *testing.B) {
	for _, expr := range []string{`spiffe://cluster\.local/ns/(shop|pay)/sa/.*`, `\w+`} {
		b.Run(expr, func(b *testing.B) {
			p, err := Compile(expr)
			if err != nil {
				b.Fatal(err)
			}
			text := []byte("spiffe://cluster.local/ns/pay/sa/web")
			b.ReportAllocs()
			for b.Loop() {
				p.Match(text)
			}
		})
	}
}
