package dubbo

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/hessian2"
)

func TestRouting(t *testing.T) {
	const name = "demo.GreetService"
	long := strings.Repeat("a", MaxName)
	for title, c := range map[string]struct {
		body                     string
		service, version, method string
		noVersion                bool
	}{
		"plain":             {invocation(name, "1.0.0", "sayHello", "", ""), name, "1.0.0", "sayHello", false},
		"path with context": {invocation("ctx/"+name, "1.0.0", "sayHello", "", ""), "ctx/" + name, "1.0.0", "sayHello", false},
		"empty version":     {invocation(name, "", "m", "", ""), name, "", "m", false},
		"null version":      {text("2.0.2") + text(name) + "N" + text("m") + "\x00", name, "", "m", true},
		"null Dubbo version": {
			"N" + text(name) + text("1.0.0") + text("m") + "\x00", name, "1.0.0", "m", false,
		},
		// The label stays $invoke: which method it calls is the first argument, and that is the business of the application.
		"$invoke":          {invocation(name, "1.0.0", "$invoke", "Ljava/lang/String;[Ljava/lang/String;[Ljava/lang/Object;", text("sayHello")+"\x71\x07[string\x01S"+"\x79N"), name, "1.0.0", "$invoke", false},
		"$invokeAsync":     {invocation(name, "1.0.0", "$invokeAsync", "Ljava/lang/String;[Ljava/lang/String;[Ljava/lang/Object;", "NNN"), name, "1.0.0", "$invokeAsync", false},
		"$echo":            {invocation(name, "1.0.0", "$echo", "Ljava/lang/Object;", "N"), name, "1.0.0", "$echo", false},
		"not ASCII":        {invocation("demo.Größe", "версия", "挨拶", "", ""), "demo.Größe", "версия", "挨拶", false},
		"longest":          {invocation(long, long, long, "", ""), long, long, long, false},
		"longest and wide": {invocation(strings.Repeat("限", MaxName), "1", strings.Repeat("流", MaxName), "", ""), strings.Repeat("限", MaxName), "1", strings.Repeat("流", MaxName), false},
		"of four bytes": {
			text("2.0.2") + "\x30\x20" + strings.Repeat("😀", 32) + "\x00" + text("m"), strings.Repeat("😀", 32), "", "m", false,
		},
		"nothing behind": {text("2.0.2") + text(name) + text("1.0.0") + text("m"), name, "1.0.0", "m", false},
		"S form":         {text("2.0.2") + "S\x00\x03a.B" + "S\x00\x00" + "\x30\x01m", "a.B", "", "m", false},
	} {
		t.Run(title, func(t *testing.T) {
			for _, flags := range []byte{twoWay, twoWay &^ flagTwoWay} {
				b := draft{flags: flags, id: 1<<64 - 2, body: c.body}.build()
				f := decode(t, append(b, 0xda, 0xbb))
				if got := string(f.Service.Of(b)); got != c.service || f.Service.Off == 0 {
					t.Errorf("service %q", got)
				}
				if got := string(f.Version.Of(b)); got != c.version || (f.Version.Off == 0) != c.noVersion {
					t.Errorf("version %q, %+v", got, f.Version)
				}
				if got := string(f.Method.Of(b)); got != c.method {
					t.Errorf("method %q", got)
				}
				if f.Flaw != protocol.FlawNone || f.Len != uint64(len(b)) || f.ID != 1<<64-2 || f.Serialization != SerializationHessian2 {
					t.Errorf("%+v", f)
				}
			}
		})
	}
}

func TestKinds(t *testing.T) {
	for name, c := range map[string]struct {
		flags byte
		body  string
		want  protocol.Kind
	}{
		"request":                     {0xc2, invocation("a", "b", "c", "", ""), protocol.KindRequest},
		"one-way":                     {0x82, invocation("a", "b", "c", "", ""), protocol.KindOneWay},
		"response":                    {0x02, "\x92", protocol.KindResponse},
		"heartbeat":                   {0xe2, "N", protocol.KindHeartbeat},
		"heartbeat, fastjson2":        {0xf7, "\x00\x00\x00\x01\xaf", protocol.KindHeartbeat},
		"heartbeat, no body":          {0xe2, "", protocol.KindHeartbeat},
		"heartbeat ack":               {0x22, "N", protocol.KindHeartbeatAck},
		"read-only":                   {0xa2, "\x01R", protocol.KindEvent},
		"writeable":                   {0xa2, "\x01W", protocol.KindEvent},
		"one-way heartbeat":           {0xa2, "N", protocol.KindEvent},
		"response with two-way flag":  {0x42, "\x92", protocol.KindResponse},
		"ack with two-way flag":       {0x62, "N", protocol.KindHeartbeatAck},
		"two-way event of other kind": {0xe2, "\x01R", protocol.KindHeartbeat},
	} {
		t.Run(name, func(t *testing.T) {
			b := draft{flags: c.flags, status: StatusOK, id: 7, body: c.body}.build()
			f := decode(t, b)
			if f.Kind != c.want || f.Flags != c.flags || f.Serialization != c.flags&0x1f || f.Len != uint64(len(b)) || f.ID != 7 {
				t.Errorf("%+v, want kind %v", f, c.want)
			}
			if f.Flaw != protocol.FlawNone {
				t.Errorf("flaw %v at %d", f.Flaw, f.FlawOff)
			}
			// Events are known by their header alone.
			if c.flags&flagEvent != 0 {
				if g := decode(t, b[:HeaderLen]); g != f {
					t.Errorf("by the header %+v, by all of it %+v", g, f)
				}
			}
		})
	}
}

func TestOutcomes(t *testing.T) {
	for name, c := range map[string]struct {
		flags, status byte
		body          string
		want          protocol.Outcome
		flaw          protocol.Flaw
	}{
		"exception":                            {2, 20, "\x90\x01e", protocol.OutcomeException, 0},
		"value":                                {2, 20, "\x91\x01v", protocol.OutcomeOK, 0},
		"null":                                 {2, 20, "\x92", protocol.OutcomeOK, 0},
		"exception with attachments":           {2, 20, "\x93\x01eHZ", protocol.OutcomeException, 0},
		"value with attachments":               {2, 20, "\x94\x01vHZ", protocol.OutcomeOK, 0},
		"null with attachments":                {2, 20, "\x95HZ", protocol.OutcomeOK, 0},
		"value, in two bytes":                  {2, 20, "\xc8\x01N", protocol.OutcomeOK, 0},
		"exception, in three bytes":            {2, 20, "\xd4\x00\x03NHZ", protocol.OutcomeException, 0},
		"null, in five bytes":                  {2, 20, "I\x00\x00\x00\x02", protocol.OutcomeOK, 0},
		"6":                                    {2, 20, "\x96", protocol.OutcomeBadResponse, protocol.FlawMalformed},
		"-1":                                   {2, 20, "\x8f", protocol.OutcomeBadResponse, protocol.FlawMalformed},
		"no int":                               {2, 20, "\x01x", protocol.OutcomeBadResponse, protocol.FlawMalformed},
		"an int cut short":                     {2, 20, "I\x00\x00", protocol.OutcomeBadResponse, protocol.FlawMalformed},
		"empty body":                           {2, 20, "", protocol.OutcomeBadResponse, protocol.FlawMalformed},
		"Java serialization":                   {3, 20, "\xac\xed", protocol.OutcomeOK, protocol.FlawSerialization},
		"Protocol Buffers":                     {22, 20, "", protocol.OutcomeOK, protocol.FlawSerialization},
		"serialization 0":                      {0, 20, "", protocol.OutcomeOK, protocol.FlawSerialization},
		"error in unknown serialization":       {22, 40, "", protocol.OutcomeBadRequest, 0},
		"overload in fastjson2":                {23, 100, "x", protocol.OutcomeOverload, 0},
		"client timeout":                       {2, 30, "\x01x", protocol.OutcomeTimeout, 0},
		"server timeout":                       {2, 31, "\x01x", protocol.OutcomeTimeout, 0},
		"channel inactive":                     {2, 35, "\x01x", protocol.OutcomeError, 0},
		"bad request":                          {2, 40, "\x01x", protocol.OutcomeBadRequest, 0},
		"bad response":                         {2, 50, "\x01x", protocol.OutcomeBadResponse, 0},
		"serialization error":                  {2, 25, "\x01x", protocol.OutcomeBadResponse, 0},
		"service not found":                    {2, 60, "\x01x", protocol.OutcomeNotFound, 0},
		"service error":                        {2, 70, "\x01x", protocol.OutcomeError, 0},
		"server error":                         {2, 80, "\x01x", protocol.OutcomeError, 0},
		"client error":                         {2, 90, "\x01x", protocol.OutcomeError, 0},
		"thread pool exhausted":                {2, 100, "\x01x", protocol.OutcomeOverload, 0},
		"status 0":                             {2, 0, "", protocol.OutcomeError, 0},
		"status 255":                           {2, 255, "", protocol.OutcomeError, 0},
		"error with a body that is none":       {2, 40, "\xff\xff", protocol.OutcomeBadRequest, 0},
		"value without the value it announces": {2, 20, "\x91", protocol.OutcomeOK, 0}, // as far as Decode looks
	} {
		t.Run(name, func(t *testing.T) {
			f := decode(t, draft{flags: c.flags, status: c.status, body: c.body}.build())
			if f.Outcome != c.want || f.Flaw != c.flaw || f.Status != uint16(c.status) {
				t.Errorf("outcome %v, flaw %v, status %d; want %v, %v, %d", f.Outcome, f.Flaw, f.Status, c.want, c.flaw, c.status)
			}
		})
	}
}

func TestStatusNames(t *testing.T) {
	named := 0
	for status := range uint16(256) {
		if StatusName(status) != "" {
			named++
			if status%5 != 0 && status != StatusServerTimeout {
				t.Errorf("status %d: name %q", status, StatusName(status))
			}
		}
	}
	if named != 12 {
		t.Errorf("%d statuses have names, Dubbo has 12", named)
	}
}

func TestLostFraming(t *testing.T) {
	for name, c := range map[string]struct {
		b    string
		want error
		off  uint32
	}{
		"first byte":           {"\xdb", protocol.ErrNotProtocol, 0},
		"second byte":          {"\xda\xba", protocol.ErrNotProtocol, 1},
		"whole header":         {"\x00\xbb\xc2\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", protocol.ErrNotProtocol, 0},
		"whole header, second": {"\xda\xbc\xc2\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", protocol.ErrNotProtocol, 1},
		"length -1":            {"\xda\xbb\xc2\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff", protocol.ErrLength, 12},
		"length -2^31":         {"\xda\xbb\xc2\x00\x00\x00\x00\x00\x00\x00\x00\x00\x80\x00\x00\x00", protocol.ErrLength, 12},
		"length 2^31-16":       {"\xda\xbb\x02\x14\x00\x00\x00\x00\x00\x00\x00\x00\x7f\xff\xff\xf0", protocol.ErrLength, 12},
	} {
		t.Run(name, func(t *testing.T) {
			var f protocol.Frame
			need, err := Codec{}.Decode(&f, []byte(c.b))
			if need != 0 || !errors.Is(err, c.want) || f.FlawOff != c.off {
				t.Errorf("need %d, %v at %d; want 0, %v at %d", need, err, f.FlawOff, c.want, c.off)
			}
		})
	}
	var f protocol.Frame
	longest := []byte("\xda\xbb\xc2\x00\x00\x00\x00\x00\x00\x00\x00\x00\x7f\xff\xff\xef")
	if need, err := (Codec{}).Decode(&f, longest); err != nil || need == 0 || need > MaxHead || f.Len != 1<<31-1 {
		t.Errorf("the longest frame: need %d, %v, length %d", need, err, f.Len)
	}
}

// TestFlaws wants the extent of a frame to hold, whatever its body is, and no more of it asked for than is read.
func TestFlaws(t *testing.T) {
	const v = "\x052.0.2" // offsets 16 to 21
	for name, c := range map[string]struct {
		flags byte
		body  string
		flaw  protocol.Flaw
		off   uint32
	}{
		"empty body":                      {twoWay, "", protocol.FlawMalformed, 16},
		"no room for four strings":        {twoWay, "\x00\x00\x00", protocol.FlawMalformed, 16},
		"int for a version":               {twoWay, "\x90\x00\x00\x00", protocol.FlawMalformed, 16},
		"null path":                       {twoWay, v + "N\x00\x00", protocol.FlawMalformed, 22},
		"null method":                     {twoWay, v + "\x01a\x00N", protocol.FlawMalformed, 25},
		"path in chunks":                  {twoWay, v + "R\x00\x01a\x00\x00\x00", protocol.FlawMalformed, 22},
		"path too long":                   {twoWay, v + "\x34" + "x\x00\x00", protocol.FlawMalformed, 22},
		"path of 1025":                    {twoWay, v + text(strings.Repeat("a", MaxName+1)) + "\x00\x00", protocol.FlawMalformed, 22},
		"version of 65535":                {twoWay, v + "\x01aS\xff\xff" + strings.Repeat("a", 1<<16), protocol.FlawMalformed, 24},
		"path longer than the frame":      {twoWay, v + "\x1fa.B\x00\x01m", protocol.FlawMalformed, 22},
		"path up to the end of the frame": {twoWay, v + "\x03a.B", protocol.FlawMalformed, 22},
		"path leaves no room for others":  {twoWay, v + "\x03a.B\x00", protocol.FlawMalformed, 22},
		"path wider than the frame":       {twoWay, v + "\x02\xe4\xb8\x00\x00", protocol.FlawMalformed, 22},
		"bad byte in the method":          {twoWay, v + "\x01a\x00\x02m\x80", protocol.FlawMalformed, 25},
		"head cut by the end":             {twoWay, v + "\x01a\x00\x30", protocol.FlawMalformed, 25},
		"one-way":                         {flagRequest | 2, "\x90\x00\x00\x00", protocol.FlawMalformed, 16},
		"Java serialization":              {flagRequest | flagTwoWay | 3, v, protocol.FlawSerialization, 2},
		"serialization 0":                 {flagRequest, v, protocol.FlawSerialization, 2},
		"serialization 31, empty":         {flagRequest | 31, "", protocol.FlawSerialization, 2},
	} {
		t.Run(name, func(t *testing.T) {
			b := draft{flags: c.flags, id: 9, body: c.body}.build()
			f := decode(t, b)
			if f.Flaw != c.flaw || f.FlawOff != c.off || f.Len != uint64(len(b)) || f.ID != 9 {
				t.Errorf("flaw %v at %d, length %d; want %v at %d, %d", f.Flaw, f.FlawOff, f.Len, c.flaw, c.off, len(b))
			}
			if f.Service.Off != 0 || f.Method.Off != 0 {
				t.Errorf("service %+v, method %+v of a body that cannot be read", f.Service, f.Method)
			}
			want := protocol.ErrMalformed
			if c.flaw == protocol.FlawSerialization {
				want = protocol.ErrSerialization
			}
			if pairs, err := visited(&f, b); !errors.Is(err, want) || len(pairs) != 0 {
				t.Errorf("attachments: %q, %v; want %v", pairs, err, want)
			}
			// It is known as soon as the bytes at fault are there, and the same from then on.
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

func TestAttachments(t *testing.T) {
	head := text("2.0.2") + text("a.B") + text("1.0") + text("m")
	abc := attachments("path", "a.B", "group", "g", "empty", "")
	all := []string{"path", "a.B", "group", "g", "empty", ""}
	object := "C\x03a.P\x92\x01x\x04self\x60\x90Q\x90"
	for name, c := range map[string]struct {
		body string
		want []string
	}{
		"no parameters":             {head + "\x00" + abc, all},
		"one string":                {head + text("Ljava/lang/String;") + text("hello") + abc, all},
		"long string in chunks":     {head + text("Ljava/lang/String;") + text(strings.Repeat("限", 100_000)) + abc, all},
		"primitives":                {head + text("ZBCDFIJS") + "T\x91\x01c\x5b\x5c\x91\xe1\x92" + abc, all},
		"arrays":                    {head + text("[I[[Ljava/lang/String;[B") + "\x72\x04[int\x90\x91" + "\x71\x09[[string]\x70\x07[string" + "\x23abc" + abc, all},
		"array of objects, then J":  {head + text("[Lx/P;J") + "N\xe0" + abc, all},
		"an object, cyclic":         {head + text("La/P;") + object + abc, all},
		"class shared by arguments": {head + text("La/P;La/P;") + object + "\x60\x91N" + abc, all},
		"Z in an argument's string": {head + text("Ljava/lang/String;") + "\x03ZHZ" + abc, all},
		"a map as an argument":      {head + text("Ljava/util/Map;") + "H\x01a\x01bZ" + abc, all},
		"generic": {head + text("Ljava/lang/String;[Ljava/lang/String;[Ljava/lang/Object;") + text("m") + "\x71\x07[string" + text("java.lang.Long") +
			"\x71\x07[object\xe5" + abc, all},
		"class defined, used in attachments": {head + text("La/P;") + object + "H\x01k\x60NN" + "\x01a\x01bZ", []string{"a", "b"}},
		"typed map":                          {head + "\x00M\x11java.util.TreeMap\x01a\x01bZ", []string{"a", "b"}},
		"typed map, type by number":          {head + "\x00M\x90\x01a\x01bZ", []string{"a", "b"}},
		"values that are not strings":        {head + "\x00H\x01a\x90\x01b\x01x\x01cN\x01dT\x01eHZ\x01f\x72\x01t\x01u\x01v\x01g\x01yZ", []string{"b", "x", "g", "y"}},
		"keys that are not strings":          {head + "\x00H\x90\x01aN\x01b\x01c\x01dZ", []string{"c", "d"}},
		"chunked value":                      {head + "\x00H\x01aR\x00\x01x\x01y\x01b\x01zZ", []string{"b", "z"}},
		"chunked key":                        {head + "\x00HR\x00\x01x\x01y\x01a\x01b\x01zZ", []string{"b", "z"}},
		"equal keys":                         {head + "\x00" + attachments("a", "1", "a", "2"), []string{"a", "1", "a", "2"}},
		"all forms of strings":               {head + "\x00H\x30\x01aS\x00\x01bZ", []string{"a", "b"}},
		"long key and value":                 {head + "\x00" + attachments(strings.Repeat("k", 2000), strings.Repeat("v", 32768)), []string{strings.Repeat("k", 2000), strings.Repeat("v", 32768)}},
		"wide":                               {head + "\x00" + attachments("租户", "蓝"), []string{"租户", "蓝"}},
		"bytes behind the map":               {head + "\x00" + abc + "garbage", all},
		"none":                               {head + "\x00", nil},
		"none after an argument":             {head + text("I") + "\x90", nil},
		"empty map":                          {head + "\x00HZ", nil},
		"null":                               {head + "\x00N", nil},
		"reference to an argument":           {head + text("Ljava/util/Map;") + "H\x01a\x01bZ" + "Q\x90", nil},
	} {
		t.Run(name, func(t *testing.T) {
			b := draft{flags: twoWay, body: c.body}.build()
			f := decode(t, b)
			got, err := visited(&f, append(b, "more"...))
			if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%.200q, %v at %d; want %.200q", got, err, f.FlawOff, c.want)
			}
			if f.Flaw != protocol.FlawNone {
				t.Errorf("flaw %v at %d", f.Flaw, f.FlawOff)
			}
		})
	}
}

func TestResponseAttachments(t *testing.T) {
	for name, c := range map[string]struct {
		flags, status byte
		body          string
		want          []string
		err           error
	}{
		"value":                        {2, 20, "\x94\x01v" + attachments("a", "b"), []string{"a", "b"}, nil},
		"exception":                    {2, 20, "\x93C\x13java.lang.Throwable\x92\x0ddetailMessage\x05cause\x60\x01eQ\x90" + attachments("a", "b"), []string{"a", "b"}, nil},
		"null":                         {2, 20, "\x95" + attachments("a", "b"), []string{"a", "b"}, nil},
		"value without":                {2, 20, "\x91\x01v", nil, nil},
		"exception without":            {2, 20, "\x90\x01v", nil, nil},
		"null without":                 {2, 20, "\x92", nil, nil},
		"null without, map behind":     {2, 20, "\x92" + attachments("a", "b"), nil, nil},
		"value, attachments missing":   {2, 20, "\x94\x01v", nil, nil},
		"error":                        {2, 40, "\x01x", nil, nil},
		"error, unknown serialization": {22, 40, "\x01x", nil, nil},
		"unknown serialization":        {22, 20, "\x94\x01v" + attachments("a", "b"), nil, protocol.ErrSerialization},
		"unknown first value":          {2, 20, "\x96", nil, protocol.ErrMalformed},
		"no first value":               {2, 20, "", nil, protocol.ErrMalformed},
		"value missing":                {2, 20, "\x94", nil, protocol.ErrMalformed},
		"heartbeat ack":                {0x22, 20, "N", nil, nil},
		"heartbeat":                    {0xe2, 0, "N", nil, nil},
		"read-only":                    {0xa2, 0, "\x01R", nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			b := draft{flags: c.flags, status: c.status, body: c.body}.build()
			f := decode(t, b)
			if got, err := visited(&f, b); !errors.Is(err, c.err) || !slices.Equal(got, c.want) {
				t.Errorf("%q, %v at %d; want %q, %v", got, err, f.FlawOff, c.want, c.err)
			}
		})
	}
}

// TestBrokenAttachments wants what comes before the fault to be visited, and the fault to be named.
func TestBrokenAttachments(t *testing.T) {
	head := text("2.0.2") + text("a.B") + text("1.0") + text("m")
	at := uint32(HeaderLen + len(head)) // of the descriptor
	deep := strings.Repeat("\x79", hessian2.MaxDepth) + "N"
	for name, c := range map[string]struct {
		rest string
		want int
		err  error
		off  uint32
	}{
		"no descriptor":                      {"", 0, protocol.ErrMalformed, at},
		"null descriptor":                    {"N", 0, protocol.ErrMalformed, at},
		"descriptor longer than the frame":   {"\x1fLjava", 0, protocol.ErrMalformed, at + 6},
		"descriptor in chunks":               {"R\x00\x01I\x01I", 0, protocol.ErrMalformed, at},
		"descriptor, bad UTF-8":              {"\x01\x80", 0, protocol.ErrMalformed, at + 1},
		"void parameter":                     {text("IV") + "\x90\x90", 0, protocol.ErrMalformed, at + 2},
		"class without an end":               {text("ILjava/lang/String") + "\x90\x90", 0, protocol.ErrMalformed, at + 2},
		"array of nothing":                   {text("I[[") + "\x90\x90", 0, protocol.ErrMalformed, at + 2},
		"lower case":                         {text("i") + "\x90", 0, protocol.ErrMalformed, at + 1},
		"argument missing":                   {text("II") + "\x90", 0, protocol.ErrMalformed, at + 4},
		"argument cut":                       {text("I") + "I\x00", 0, protocol.ErrMalformed, at + 4},
		"argument malformed":                 {text("II") + "\x90\x40HZ", 0, protocol.ErrMalformed, at + 4},
		"object of no class":                 {text("La;") + "\x60HZ", 0, protocol.ErrMalformed, at + 4},
		"argument at the depth":              {text("La;") + deep + attachments("a", "b"), 1, nil, 0},
		"argument too deep":                  {text("La;") + "\x79" + deep + "HZ", 0, protocol.ErrTooDeep, at + 4 + hessian2.MaxDepth},
		"argument 10,000 deep":               {text("La;") + strings.Repeat("\x79", 10_000), 0, protocol.ErrTooDeep, at + 4 + hessian2.MaxDepth},
		"attachments not a map":              {"\x00\x90", 0, protocol.ErrMalformed, at + 1},
		"attachments a list":                 {"\x00\x79N", 0, protocol.ErrMalformed, at + 1},
		"map without an end":                 {"\x00H\x01a\x01b", 1, protocol.ErrMalformed, at + 6},
		"map, key without a value":           {"\x00H\x01a\x01b\x01cZ", 1, protocol.ErrMalformed, at + 8},
		"map, value cut":                     {"\x00H\x01a\x01b\x01c\x05d", 1, protocol.ErrMalformed, at + 10},
		"map, key cut":                       {"\x00H\x01a\x01b\x30", 1, protocol.ErrMalformed, at + 7},
		"map, bad UTF-8":                     {"\x00H\x01a\x01b\x01c\x01\xff", 1, protocol.ErrMalformed, at + 9},
		"map, value malformed":               {"\x00H\x01a\x01b\x01c\x40", 1, protocol.ErrMalformed, at + 8},
		"map, value too deep":                {"\x00H\x01a\x01b\x01c\x79" + deep + "Z", 1, protocol.ErrTooDeep, at + 8 + hessian2.MaxDepth},
		"map, type missing":                  {"\x00MZ", 0, protocol.ErrMalformed, at + 2},
		"map, type is the end of the frame":  {"\x00M", 0, protocol.ErrMalformed, at + 2},
		"more classes than the scanner has":  {text("La;") + strings.Repeat("C\x01a\x90", hessian2.MaxClasses+1) + "N", 0, protocol.ErrTooDeep, at + 4 + 4*hessian2.MaxClasses},
		"more arguments than bytes in frame": {text(strings.Repeat("I", 500)) + "\x90", 0, protocol.ErrMalformed, at + 503},
	} {
		t.Run(name, func(t *testing.T) {
			b := draft{flags: twoWay, body: head + c.rest}.build()
			f := decode(t, b)
			pairs, err := visited(&f, append(b, "ZZZZ"...))
			if len(pairs) != 2*c.want || !errors.Is(err, c.err) || f.FlawOff != c.off {
				t.Errorf("%d pairs, %v at %d; want %d, %v at %d", len(pairs)/2, err, f.FlawOff, c.want, c.err, c.off)
			}
			want := map[error]protocol.Flaw{nil: protocol.FlawNone, protocol.ErrMalformed: protocol.FlawMalformed, protocol.ErrTooDeep: protocol.FlawTooDeep}[c.err]
			if f.Flaw != want {
				t.Errorf("flaw %v, want %v", f.Flaw, want)
			}
		})
	}
}

// TestParameters counts what Dubbo's writer of descriptors (ReflectUtils.getDesc) makes of a method's parameters.
func TestParameters(t *testing.T) {
	types := []string{"Z", "B", "C", "D", "F", "I", "J", "S", "[I", "[[J", "Ljava/lang/String;", "[Ljava/lang/Object;", "La;", "[[[La/b$C;", "L限/流;"}
	for n := range 300 {
		var desc strings.Builder
		for i := range n {
			desc.WriteString(types[(i*7+n)%len(types)])
		}
		if got, at := parameters([]byte(desc.String())); got != n {
			t.Fatalf("%d parameters: %d (%d)", n, got, at)
		}
	}
}
