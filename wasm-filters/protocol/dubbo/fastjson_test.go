package dubbo

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

const (
	twoWayJSON   = flagRequest | flagTwoWay | SerializationFastJSON2
	responseJSON = SerializationFastJSON2
)

// jtext is s as a string in JSONB, ASCII only.
func jtext(s string) string {
	switch n := len(s); {
	case n < 48:
		return string(rune(0x49+n)) + s // below 0x80: one byte
	case n < 2048:
		return string([]byte{0x79, 0x38 + byte(n>>8), byte(n)}) + s
	default:
		return string(binary.BigEndian.AppendUint32([]byte{0x79, 0x48}, uint32(n))) + s
	}
}

// jvalue puts the length before a value.
func jvalue(s string) string { return string(binary.BigEndian.AppendUint32(nil, uint32(len(s)))) + s }

// jhead is the beginning of a request: the leading strings and the descriptor.
func jhead(path, version, method, descriptor string) string {
	return jvalue(jtext("2.0.2")) + jvalue(jtext(path)) + jvalue(jtext(version)) + jvalue(jtext(method)) + jvalue(jtext(descriptor))
}

func TestFastJSONRouting(t *testing.T) {
	long := strings.Repeat("a", 4*MaxName)
	for name, c := range map[string]struct {
		body                     string
		service, version, method string
	}{
		"plain":        {jhead("a.B", "1.0", "m", ""), "a.B", "1.0", "m"},
		"null version": {jvalue("\xaf") + jvalue(jtext("a.B")) + jvalue("\xaf") + jvalue(jtext("m")), "a.B", "", "m"},
		"UTF-8":        {jvalue(jtext("2.0.2")) + jvalue("\x7a\x03\xe9\x99\x90") + jvalue(jtext("")) + jvalue("\x7a\x02\xc3\xa9"), "限", "", "é"},
		"48":           {jhead(strings.Repeat("x", 48), "1", "m", ""), strings.Repeat("x", 48), "1", "m"},
		"longest":      {jhead(long, long, long, ""), long, long, long},
	} {
		t.Run(name, func(t *testing.T) {
			for _, flags := range []byte{twoWayJSON, twoWayJSON &^ flagTwoWay} {
				b := draft{flags: flags, id: 5, body: c.body}.build()
				f := decode(t, append(b, 0xda, 0xbb))
				if string(f.Service.Of(b)) != c.service || string(f.Version.Of(b)) != c.version || string(f.Method.Of(b)) != c.method || f.Flaw != protocol.FlawNone {
					t.Errorf("%q, %q, %q, %+v", f.Service.Of(b), f.Version.Of(b), f.Method.Of(b), f)
				}
			}
		})
	}
}

func TestFastJSONFlaws(t *testing.T) {
	v := jvalue(jtext("2.0.2")) // offsets 16 to 26
	for name, c := range map[string]struct {
		body string
		flaw protocol.Flaw
		off  uint32
	}{
		"empty":                    {"", protocol.FlawMalformed, 16},
		"no room for four strings": {v + v[:3], protocol.FlawMalformed, 16},
		"length 0":                 {"\x00\x00\x00\x00" + v + v + v, protocol.FlawMalformed, 16},
		"length -1":                {v + "\xff\xff\xff\xff" + v + v, protocol.FlawMalformed, 26},
		"longer than the frame":    {v + "\x00\x00\x00\x20" + v + v, protocol.FlawMalformed, 26},
		"leaves no room":           {v + "\x00\x00\x00\x0b" + v + v, protocol.FlawMalformed, 26},
		"string shorter":           {v + jvalue("\x49\x00") + v + v, protocol.FlawMalformed, 26},
		"string longer":            {v + jvalue("\x4b\x00") + v + v, protocol.FlawMalformed, 26},
		"no string":                {v + jvalue("\x05") + v + v, protocol.FlawMalformed, 26},
		"null path":                {v + jvalue("\xaf") + v + v, protocol.FlawMalformed, 26},
		"null method":              {v + v + v + jvalue("\xaf"), protocol.FlawMalformed, 46},
		"too long":                 {v + jvalue(jtext(strings.Repeat("a", 4*MaxName+1))) + v + v, protocol.FlawMalformed, 26},
		"Latin-1":                  {v + jvalue("\x4a\xe9") + v + v, protocol.FlawSerialization, 26},
		"UTF-16":                   {v + v + v + jvalue("\x7c\x02\x96\x50"), protocol.FlawSerialization, 46},
	} {
		t.Run(name, func(t *testing.T) {
			b := draft{flags: twoWayJSON, id: 9, body: c.body}.build()
			f := decode(t, b)
			if f.Flaw != c.flaw || f.FlawOff != c.off || f.Len != uint64(len(b)) || f.Service.Off != 0 || f.Method.Off != 0 {
				t.Errorf("%+v, want %v at %d", f, c.flaw, c.off)
			}
			if pairs, err := visited(&f, b); !errors.Is(err, errorOf(c.flaw)) || len(pairs) != 0 {
				t.Errorf("attachments: %q, %v", pairs, err)
			}
			known := false
			for n := HeaderLen; n <= len(b); n++ {
				var g protocol.Frame
				need, err := Codec{}.Decode(&g, b[:n:n])
				if err != nil || need > MaxHead || need != 0 && known || need == 0 && g != f {
					t.Fatalf("%d bytes: need %d, %v, %+v; with all %+v", n, need, err, g, f)
				}
				known = need == 0
			}
		})
	}
}

func TestFastJSONOutcomes(t *testing.T) {
	for name, c := range map[string]struct {
		body string
		want protocol.Outcome
		flaw protocol.Flaw
	}{
		"exception":                  {jvalue("\xbd\x00") + jvalue("\x05"), protocol.OutcomeException, 0},
		"value":                      {jvalue("\xbd\x01") + jvalue("\x05"), protocol.OutcomeOK, 0},
		"null":                       {jvalue("\xbd\x02"), protocol.OutcomeOK, 0},
		"exception with attachments": {jvalue("\xbd\x03") + jvalue("\x05"), protocol.OutcomeException, 0},
		"value with attachments":     {jvalue("\xbd\x04") + jvalue("\x05"), protocol.OutcomeOK, 0},
		"null with attachments":      {jvalue("\xbd\x05"), protocol.OutcomeOK, 0},
		"as an int":                  {jvalue("\x04"), protocol.OutcomeOK, 0},
		"as a long int":              {jvalue("\x48\x00\x00\x00\x03"), protocol.OutcomeException, 0},
		"6":                          {jvalue("\xbd\x06"), protocol.OutcomeBadResponse, protocol.FlawMalformed},
		"-1":                         {jvalue("\xbd\xff"), protocol.OutcomeBadResponse, protocol.FlawMalformed},
		"a string":                   {jvalue("\x4a4"), protocol.OutcomeBadResponse, protocol.FlawMalformed},
		"more than an int":           {jvalue("\xbd\x04\x00"), protocol.OutcomeBadResponse, protocol.FlawMalformed},
		"empty body":                 {"", protocol.OutcomeBadResponse, protocol.FlawMalformed},
		"half a length":              {"\x00\x00", protocol.OutcomeBadResponse, protocol.FlawMalformed},
		"length 0":                   {"\x00\x00\x00\x00\x04", protocol.OutcomeBadResponse, protocol.FlawMalformed},
		"length beyond the frame":    {"\x00\x00\x00\x02\xbd", protocol.OutcomeBadResponse, protocol.FlawMalformed},
		"length -1":                  {"\xff\xff\xff\xff\xbd\x04", protocol.OutcomeBadResponse, protocol.FlawMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			f := decode(t, draft{flags: responseJSON, status: StatusOK, body: c.body}.build())
			if f.Outcome != c.want || f.Flaw != c.flaw {
				t.Errorf("outcome %v, flaw %v; want %v, %v", f.Outcome, f.Flaw, c.want, c.flaw)
			}
		})
	}
}

func TestFastJSONAttachments(t *testing.T) {
	head := func(descriptor string) string { return jhead("a.B", "1", "m", descriptor) }
	object := func(s string) string { return jvalue("\xa6" + s + "\xa5") }
	ab := object(jtext("a") + jtext("b"))
	at := uint32(HeaderLen + len(head(""))) // of the first argument
	for name, c := range map[string]struct {
		body string
		want []string
		err  error
		off  uint32
	}{
		"no arguments":             {head("") + ab, []string{"a", "b"}, nil, 0},
		"arguments of any kind":    {head("Ljava/lang/String;[IJ") + jvalue("\x92junk") + jvalue("\xff\xff\xff") + jvalue("\x00") + ab, []string{"a", "b"}, nil, 0},
		"long values":              {head("") + object(jtext(strings.Repeat("k", 100))+jtext(strings.Repeat("v", 5000))), []string{strings.Repeat("k", 100), strings.Repeat("v", 5000)}, nil, 0},
		"values of other kinds":    {head("") + object(jtext("n")+"\xaf"+jtext("i")+"\x38\x30"+jtext("l")+"\x95"+jtext("x")+"\x05"+jtext("v")+jtext("a")+jtext("b")), []string{"a", "b"}, nil, 0},
		"Latin-1 and UTF-16":       {head("") + object(jtext("n")+"\x4a\xe9"+"\x7c\x02\x96\x50"+jtext("v")+jtext("a")+jtext("b")), []string{"a", "b"}, nil, 0},
		"empty":                    {head("") + object(""), nil, nil, 0},
		"null":                     {head("") + jvalue("\xaf"), nil, nil, 0},
		"none":                     {head(""), nil, nil, 0},
		"bytes behind":             {head("") + ab + "junk", []string{"a", "b"}, nil, 0},
		"argument missing":         {head("") + "\x00\x00", nil, protocol.ErrMalformed, at},
		"argument beyond":          {jhead("a.B", "1", "m", "I") + "\x00\x00\x00\x02\x05", nil, protocol.ErrMalformed, at + 1},
		"argument of no bytes":     {jhead("a.B", "1", "m", "I") + "\x00\x00\x00\x00" + ab, nil, protocol.ErrMalformed, at + 1},
		"map beyond the frame":     {head("") + "\x00\x00\x00\x09\xa6", nil, protocol.ErrMalformed, at},
		"map without an end":       {head("") + jvalue("\xa6"+jtext("a")+jtext("b")), []string{"a", "b"}, protocol.ErrMalformed, at + 9},
		"value cut":                {head("") + jvalue("\xa6"+jtext("a")+"\x4b"), nil, protocol.ErrMalformed, at + 7},
		"typed map":                {head("") + jvalue("\x92"+jtext("java.util.TreeMap")+"\x00\xa6\xa5"), nil, protocol.ErrSerialization, at + 4},
		"value of an unknown kind": {head("") + object(jtext("a")+jtext("b")+jtext("c")+"\xac\x00\x00\x00\x00"), []string{"a", "b"}, protocol.ErrSerialization, at + 11},
		"descriptor malformed":     {jhead("a.B", "1", "m", "IV") + ab, nil, protocol.ErrMalformed, at + 1},
		"descriptor Latin-1":       {jhead("a.B", "1", "m", "")[:at-HeaderLen-5] + jvalue("\x4cL\xe9;") + ab, nil, protocol.ErrSerialization, at - 1},
		"descriptor null":          {jhead("a.B", "1", "m", "")[:at-HeaderLen-5] + jvalue("\xaf") + ab, nil, protocol.ErrMalformed, at - 1},
		"descriptor missing":       {jhead("a.B", "1", "m", "")[:at-HeaderLen-5], nil, protocol.ErrMalformed, at - 5},
	} {
		t.Run(name, func(t *testing.T) {
			b := draft{flags: twoWayJSON, body: c.body}.build()
			f := decode(t, b)
			got, err := visited(&f, append(b, "\xa6\xa5\xa5"...))
			if !errors.Is(err, c.err) || !slices.Equal(got, c.want) || f.FlawOff != c.off {
				t.Errorf("%.100q, %v at %d; want %.100q, %v at %d", got, err, f.FlawOff, c.want, c.err, c.off)
			}
		})
	}
}
