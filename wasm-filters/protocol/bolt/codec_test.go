package bolt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// dump prints all that the codec reads of a frame.
func dump(b []byte) string {
	var s strings.Builder
	var f protocol.Frame
	need, err := Codec{}.Decode(&f, b)
	fmt.Fprintf(&s, "need=%d err=%v\n", need, err)
	fmt.Fprintf(&s, "variant=%d kind=%v id=%d len=%d flags=%#x serialization=%d timeout=%d\n", f.Variant, f.Kind, f.ID, f.Len, f.Flags, f.Serialization, f.TimeoutMillis)
	if f.Kind == protocol.KindResponse || f.Kind == protocol.KindHeartbeatAck {
		fmt.Fprintf(&s, "status=%s outcome=%v\n", StatusName(f.Status), f.Outcome)
	}
	for _, field := range []struct {
		name string
		span protocol.Span
	}{{"service", f.Service}, {"version", f.Version}, {"group", f.Group}, {"method", f.Method}, {"caller", f.Caller}, {"caller-ip", f.CallerIP}} {
		if field.span.Off != 0 {
			fmt.Fprintf(&s, "%s=%q\n", field.name, field.span.Of(b))
		}
	}
	fmt.Fprintf(&s, "flaw=%v at %d\n", f.Flaw, f.FlawOff)
	err = Codec{}.VisitAttachments(&f, b, func(k, v []byte) bool {
		fmt.Fprintf(&s, "  %s=%q\n", k, v)
		return true
	})
	sniffed := map[protocol.Match]string{protocol.MatchNo: "no", protocol.MatchYes: "yes", protocol.MatchMore: "more"}[Codec{}.Sniff(b)]
	fmt.Fprintf(&s, "attachments: %v\ncrc: %v\nsniff: %s\n", err, VerifyCRC(b), sniffed)
	return s.String()
}

// TestCaptures holds what is read of real frames to testdata/frames/<name>/want.txt.
func TestCaptures(t *testing.T) {
	for _, name := range captures(t) {
		t.Run(name, func(t *testing.T) {
			b := capture(t, name)
			got := dump(b)
			file := filepath.Join("testdata", "frames", name, "want.txt")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
			if f := decode(t, b); f.Len != uint64(len(b)) {
				t.Errorf("Len is %d, the capture has %d bytes", f.Len, len(b))
			}
		})
	}
}

func TestRouting(t *testing.T) {
	type want struct{ service, version, group, method, caller, ip string }
	cases := map[string]struct {
		frame draft
		want  want
	}{
		"interface, version, uniqueId": {
			request(KeyService, "a.B:2.0:blue", KeyMethod, "m"),
			want{service: "a.B", version: "2.0", group: "blue", method: "m"},
		},
		"uniqueId with colons": {request(KeyService, "a.B:2.0:x:y"), want{service: "a.B", version: "2.0", group: "x:y"}},
		"no version":           {request(KeyService, "a.B"), want{service: "a.B"}},
		"empty version":        {request(KeyService, "a.B::u"), want{service: "a.B", group: "u"}},
		// SofaRpcSerialization.setRequestPropertiesWithHeaderInfo
		"service goes before target service":      {request(KeyTargetService, "a.T:1.0", KeyService, "a.B:1.0"), want{service: "a.B", version: "1.0"}},
		"service goes before, whatever the order": {request(KeyService, "a.B:1.0", KeyTargetService, "a.T:1.0"), want{service: "a.B", version: "1.0"}},
		"blank service":                               {request(KeyService, " \t", KeyTargetService, "a.T:1.0"), want{service: "a.T", version: "1.0"}},
		"target service alone":                        {request(KeyTargetService, "a.T:1.0"), want{service: "a.T", version: "1.0"}},
		"the later of two keys":                       {request(KeyMethod, "first", KeyService, "a.A:1.0", KeyMethod, "second", KeyService, "a.B:1.0"), want{service: "a.B", version: "1.0", method: "second"}},
		"caller from app":                             {request(KeyApp, "shop", KeyCallerApp, "other"), want{caller: "shop"}},
		"caller from the trace":                       {request(KeyCallerApp, "other", KeyCallerIP, "10.0.0.9"), want{caller: "other", ip: "10.0.0.9"}},
		"empty app":                                   {request(KeyApp, "", KeyCallerApp, "other"), want{caller: "other"}},
		"no header section":                           {request(), want{}},
		"no class":                                    {draft{typ: typeRequest, cmd: cmdRequest}, want{}},
		"foreign class":                               {draft{typ: typeRequest, cmd: cmdRequest, class: "a.Req"}, want{service: "a.Req"}},
		"foreign class with a section of its own":     {draft{typ: typeOneWay, cmd: cmdRequest, class: "a.Req", section: []byte("\x00\x00\x00\x03app\x7f\xff\xff\xff")}, want{service: "a.Req"}},
		"foreign class with SOFARPC's header section": {draft{typ: typeRequest, cmd: cmdRequest, class: "a.Req", section: section(KeyService, "a.B:1.0", KeyApp, "x")}, want{service: "a.B", version: "1.0", caller: "x"}},
	}
	for name, c := range cases {
		for _, proto := range []byte{V1, V2} {
			t.Run(fmt.Sprintf("%s/v%d", name, proto), func(t *testing.T) {
				c.frame.proto = proto
				b := c.frame.build()
				f := decode(t, b)
				got := want{string(f.Service.Of(b)), string(f.Version.Of(b)), string(f.Group.Of(b)), string(f.Method.Of(b)), string(f.Caller.Of(b)), string(f.CallerIP.Of(b))}
				if got != c.want {
					t.Errorf("got %+v, want %+v", got, c.want)
				}
				if f.Flaw != protocol.FlawNone {
					t.Errorf("flaw %v at %d", f.Flaw, f.FlawOff)
				}
			})
		}
	}
}

func TestKinds(t *testing.T) {
	cases := map[string]struct {
		typ  byte
		cmd  uint16
		want protocol.Kind
	}{
		"request":                     {typeRequest, cmdRequest, protocol.KindRequest},
		"one-way":                     {typeOneWay, cmdRequest, protocol.KindOneWay},
		"response":                    {typeResponse, cmdResponse, protocol.KindResponse},
		"heartbeat":                   {typeRequest, cmdHeartbeat, protocol.KindHeartbeat},
		"one-way heartbeat":           {typeOneWay, cmdHeartbeat, protocol.KindHeartbeat}, // answered all the same
		"heartbeat ack":               {typeResponse, cmdHeartbeat, protocol.KindHeartbeatAck},
		"goaway":                      {typeRequest, cmdGoAway, protocol.KindEvent},
		"request of another command":  {typeRequest, 3, protocol.KindUnknown},
		"response of another command": {typeResponse, cmdRequest, protocol.KindUnknown},
		"request typed response":      {typeRequest, cmdResponse, protocol.KindUnknown},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			for _, proto := range []byte{V1, V2} {
				b := draft{proto: proto, typ: c.typ, cmd: c.cmd, id: 0xfffffffe}.build()
				f := decode(t, append(b, 0xee))
				if f.Kind != c.want || f.ID != 0xfffffffe || f.Len != uint64(len(b)) {
					t.Errorf("v%d: kind %v, id %#x, len %d; want %v, 0xfffffffe, %d", proto, f.Kind, f.ID, f.Len, c.want, len(b))
				}
			}
		})
	}
}

func TestOutcomes(t *testing.T) {
	failed := section(KeyResponseError, "true")
	cases := map[string]struct {
		frame draft
		want  protocol.Outcome
	}{
		"success":                {response("k", "v"), protocol.OutcomeOK},
		"success, no section":    {response(), protocol.OutcomeOK},
		"not an error":           {response(KeyResponseError, "false"), protocol.OutcomeOK},
		"overwritten":            {response(KeyResponseError, "true", KeyResponseError, "no"), protocol.OutcomeOK},
		"business exception":     {draft{cmd: cmdResponse, codec: 1, class: sofaResponse, section: failed, content: responseObject + "FN"}, protocol.OutcomeException},
		"framework error":        {draft{cmd: cmdResponse, codec: 1, class: sofaResponse, section: failed, content: responseObject + "T\x02no"}, protocol.OutcomeError},
		"other class layout":     {draft{cmd: cmdResponse, codec: 1, class: sofaResponse, section: failed, content: strings.Repeat("x", 200)}, protocol.OutcomeException},
		"short content":          {draft{cmd: cmdResponse, codec: 1, class: sofaResponse, section: failed, content: responseObject}, protocol.OutcomeException},
		"no content":             {draft{cmd: cmdResponse, codec: 1, class: sofaResponse, section: failed}, protocol.OutcomeException},
		"protobuf":               {draft{cmd: cmdResponse, codec: 11, class: sofaResponse, section: failed, content: responseObject + "T"}, protocol.OutcomeException},
		"foreign class":          {draft{cmd: cmdResponse, codec: 1, class: "a.R", section: failed, content: responseObject + "T"}, protocol.OutcomeException},
		"status goes before":     {draft{cmd: cmdResponse, status: statusTimeout, section: failed}, protocol.OutcomeTimeout},
		"error":                  {draft{cmd: cmdResponse, status: 1}, protocol.OutcomeError},
		"server exception":       {draft{cmd: cmdResponse, status: 2}, protocol.OutcomeError},
		"unknown":                {draft{cmd: cmdResponse, status: 3}, protocol.OutcomeError},
		"busy":                   {draft{cmd: cmdResponse, status: 4}, protocol.OutcomeOverload},
		"communication":          {draft{cmd: cmdResponse, status: 5}, protocol.OutcomeError},
		"no processor":           {draft{cmd: cmdResponse, status: 6}, protocol.OutcomeNotFound},
		"timeout":                {draft{cmd: cmdResponse, status: 7}, protocol.OutcomeTimeout},
		"client send":            {draft{cmd: cmdResponse, status: 8}, protocol.OutcomeError},
		"codec":                  {draft{cmd: cmdResponse, status: 9}, protocol.OutcomeBadRequest},
		"closed":                 {draft{cmd: cmdResponse, status: 16}, protocol.OutcomeError},
		"server serialization":   {draft{cmd: cmdResponse, status: 17}, protocol.OutcomeBadResponse},
		"server deserialization": {draft{cmd: cmdResponse, status: 18}, protocol.OutcomeBadRequest},
		"undefined":              {draft{cmd: cmdResponse, status: 0xffff}, protocol.OutcomeError},
		"heartbeat ack":          {draft{cmd: cmdHeartbeat}, protocol.OutcomeNone},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			f := decode(t, c.frame.build())
			if f.Outcome != c.want || f.Status != c.frame.status {
				t.Errorf("outcome %v, status %d; want %v, %d", f.Outcome, f.Status, c.want, c.frame.status)
			}
		})
	}
}

// TestStatusNames wants a name for each status that has an outcome of its own, and none for others.
func TestStatusNames(t *testing.T) {
	for status := range uint16(0x20) {
		named := StatusName(status) != ""
		if defined := status <= 9 || status >= 0x10 && status <= 0x12; named != defined {
			t.Errorf("status %#x: name %q", status, StatusName(status))
		}
	}
}

// put overwrites b[off:] with the bytes of s.
func put(b []byte, off int, s string) []byte {
	copy(b[off:], s)
	return b
}

func TestLostFraming(t *testing.T) {
	v1 := func() []byte { return request(KeyService, "a.B:1.0").build() }
	v2 := func() []byte { d := request(KeyService, "a.B:1.0"); d.proto = V2; return d.build() }
	r1 := func() []byte { return response("k", "v").build() }
	cases := map[string]struct {
		b    []byte
		want error
		off  uint32
	}{
		"protocol 0":                   {put(v1(), 0, "\x00"), protocol.ErrNotProtocol, 0},
		"protocol 13, tr":              {put(v1(), 0, "\x0d"), protocol.ErrNotProtocol, 0},
		"type 3":                       {put(v1(), 1, "\x03"), protocol.ErrNotProtocol, 1},
		"v2 ver1 0":                    {put(v2(), 1, "\x00"), protocol.ErrNotProtocol, 1},
		"v2 ver1 3":                    {put(v2(), 1, "\x03"), protocol.ErrNotProtocol, 1},
		"v2 type 255":                  {put(v2(), 2, "\xff"), protocol.ErrNotProtocol, 2},
		"v2 switch 128":                {put(v2(), 11, "\x80"), protocol.ErrNotProtocol, 11},
		"class length 32768":           {put(v1(), 14, "\x80\x00"), protocol.ErrLength, 14},
		"header length -1":             {put(v1(), 16, "\xff\xff"), protocol.ErrLength, 16},
		"content length -1":            {put(v1(), 18, "\xff\xff\xff\xff"), protocol.ErrLength, 18},
		"v2 class length 32768":        {put(v2(), 16, "\x80\x00"), protocol.ErrLength, 16},
		"v2 content length -2^31":      {put(v2(), 20, "\x80\x00\x00\x00"), protocol.ErrLength, 20},
		"response class length -1":     {put(r1(), 12, "\xff\xff"), protocol.ErrLength, 12},
		"response header length 32768": {put(r1(), 14, "\x80\x00"), protocol.ErrLength, 14},
		"response content length -1":   {put(r1(), 16, "\xff\xff\xff\xff"), protocol.ErrLength, 16},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var f protocol.Frame
			need, err := Codec{}.Decode(&f, c.b)
			if need != 0 || !errors.Is(err, c.want) || f.FlawOff != c.off {
				t.Errorf("need %d, %v at %d; want 0, %v at %d", need, err, f.FlawOff, c.want, c.off)
			}
			if err := VerifyCRC(c.b); !errors.Is(err, c.want) {
				t.Errorf("VerifyCRC: %v, want %v", err, c.want)
			}
			if m := (Codec{}).Sniff(c.b); m != protocol.MatchNo {
				t.Errorf("Sniff: %v, want no", m)
			}
		})
	}
}

// TestFlaws wants the extent of a frame to hold and what could be read to be there, whatever the header section says.
func TestFlaws(t *testing.T) {
	const start = 22 + len(sofaRequest) // of the header section
	ok := string(section(KeyMethod, "m"))
	cases := map[string]struct {
		section string
		off     uint32
		method  string
		visited int
	}{
		"key without a value":          {ok + string(section(KeyService)), uint32(start + len(ok)), "m", 1},
		"half a length":                {ok + "\x00\x00", uint32(start + len(ok)), "m", 1},
		"half a value length":          {ok + string(section(KeyService)) + "\x00\x00\x00", uint32(start + len(ok) + 4 + len(KeyService)), "m", 1},
		"key longer than the section":  {"\x00\x00\x01\x00" + ok, uint32(start), "", 0},
		"value longer by one":          {string(section("k")) + "\x00\x00\x00\x02v", uint32(start + 5), "", 0},
		"length 2^31-1":                {ok + "\x7f\xff\xff\xff", uint32(start + len(ok)), "m", 1},
		"null below -1, pairs go on":   {"\xff\xff\xff\xfe\x00\x00\x00\x01v" + ok, uint32(start), "m", 1},
		"first flaw counts":            {"\x80\x00\x00\x00\x00\x00\x00\x01v" + ok + "\x00", uint32(start), "m", 1},
		"null key is no flaw":          {"\xff\xff\xff\xff\x00\x00\x00\x01v" + ok, 0, "m", 1},
		"null value is no flaw":        {ok + string(section(KeyMethod)) + "\xff\xff\xff\xff", 0, "m", 1},
		"empty key and value, no flaw": {"\x00\x00\x00\x00\x00\x00\x00\x00" + ok, 0, "m", 2},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			d := request()
			d.section = []byte(c.section)
			b := d.build()
			f := decode(t, b)
			wantFlaw, wantErr := protocol.FlawNone, error(nil)
			if c.off != 0 {
				wantFlaw, wantErr = protocol.FlawMalformed, protocol.ErrMalformed
			}
			if f.Flaw != wantFlaw || f.FlawOff != c.off || f.Len != uint64(len(b)) {
				t.Errorf("flaw %v at %d, len %d; want %v at %d, %d", f.Flaw, f.FlawOff, f.Len, wantFlaw, c.off, len(b))
			}
			if got := string(f.Method.Of(b)); got != c.method {
				t.Errorf("method %q, want %q", got, c.method)
			}
			n := 0
			err := Codec{}.VisitAttachments(&f, b, func(k, v []byte) bool { n++; return true })
			if !errors.Is(err, wantErr) || n != c.visited || f.FlawOff != c.off {
				t.Errorf("visited %d, %v at %d; want %d, %v at %d", n, err, f.FlawOff, c.visited, wantErr, c.off)
			}
		})
	}
}

// TestLongClassName wants a class name beyond MaxClassName to be neither waited for nor fatal.
func TestLongClassName(t *testing.T) {
	for n, flaw := range map[int]protocol.Flaw{MaxClassName: protocol.FlawNone, MaxClassName + 1: protocol.FlawMalformed, maxLength: protocol.FlawMalformed} {
		req := request(KeyService, "a.B:1.0")
		req.class = strings.Repeat("x", n)
		resp := response(KeyResponseError, "true")
		resp.class = req.class
		for _, d := range []draft{req, resp} {
			b := d.build()
			var f protocol.Frame
			size := 22
			if d.typ == typeResponse {
				size = 20
			}
			need, err := Codec{}.Decode(&f, b[:size])
			if err != nil || (need == 0) != (flaw != protocol.FlawNone) {
				t.Errorf("%d: need %d, %v with the fixed header", n, need, err)
			}
			f = decode(t, b)
			if f.Flaw != flaw || f.Len != uint64(len(b)) {
				t.Errorf("%d: flaw %v, len %d; want %v, %d", n, f.Flaw, f.Len, flaw, len(b))
			}
			if flaw != protocol.FlawNone && int(f.FlawOff) != size-8 {
				t.Errorf("%d: flaw at %d, want %d", n, f.FlawOff, size-8)
			}
		}
	}
}

// TestNeed feeds each capture byte by byte: every answer but the last must ask for more, never for more than MaxHead,
// and what is known once the fixed header is there must not change.
func TestNeed(t *testing.T) {
	for _, name := range captures(t) {
		b := capture(t, name)
		final := decode(t, b)
		var f protocol.Frame
		for n := 0; ; {
			need, err := Codec{}.Decode(&f, b[:n:n])
			if err != nil {
				t.Fatalf("%s: %v at %d bytes", name, err, n)
			}
			if need == 0 {
				if f != final {
					t.Errorf("%s: %+v at %d bytes, %+v with all", name, f, n, final)
				}
				break
			}
			if need <= n || need > MaxHead || need > len(b) {
				t.Fatalf("%s: need %d at %d bytes of %d", name, need, n, len(b))
			}
			if f.Len != 0 && (f.Kind != final.Kind || f.ID != final.ID || f.Len != final.Len || f.Status != final.Status || f.Serialization != final.Serialization) {
				t.Errorf("%s: %+v at %d bytes, %+v with all", name, f, n, final)
			}
			// One byte less than asked for must not do.
			if need-1 > n {
				if again, err := (Codec{}).Decode(&f, b[:need-1]); err != nil || again == 0 {
					t.Errorf("%s: needs %d, but is content with %d", name, need, need-1)
				}
			}
			n = need
		}
	}
}

// TestMixedVersions: a v2 frame may follow a v1 frame on one connection, and each ends where it should.
func TestMixedVersions(t *testing.T) {
	var stream []byte
	names := captures(t)
	for _, name := range names {
		stream = append(stream, capture(t, name)...)
	}
	for _, name := range names {
		f := decode(t, stream)
		if want := len(capture(t, name)); f.Len != uint64(want) {
			t.Fatalf("%s: len %d, want %d", name, f.Len, want)
		}
		stream = stream[f.Len:]
	}
	if len(stream) != 0 {
		t.Errorf("%d bytes left", len(stream))
	}
}

func TestVerifyCRC(t *testing.T) {
	b := capture(t, "v2-crc-request")
	if err := VerifyCRC(b); err != nil {
		t.Fatal(err)
	}
	if err := VerifyCRC(append(bytes.Clone(b), 1, 2, 3)); err != nil {
		t.Errorf("with more behind it: %v", err)
	}
	for i := 24; i < len(b); i++ {
		broken := bytes.Clone(b)
		broken[i] ^= 0x40
		if err := VerifyCRC(broken); !errors.Is(err, ErrCRC) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
	}
	for n := range len(b) {
		if err := VerifyCRC(b[:n]); !errors.Is(err, protocol.ErrShort) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
	// A mismatch is the receiver's to find: Decode reads the frame all the same.
	broken := bytes.Clone(b)
	broken[len(broken)-1] ^= 1
	if f := decode(t, broken); f.Flaw != protocol.FlawNone || string(f.Service.Of(broken)) != "demo.HelloService" {
		t.Errorf("flaw %v, service %q", f.Flaw, f.Service.Of(broken))
	}
}

func TestSniff(t *testing.T) {
	for _, name := range captures(t) {
		b := capture(t, name)
		f := decode(t, b)
		want := protocol.MatchYes
		if f.Kind == protocol.KindResponse || f.Kind == protocol.KindHeartbeatAck {
			want = protocol.MatchNo
		}
		for n := range len(b) + 1 {
			got := Codec{}.Sniff(b[:n])
			if n >= 20 && got != want || n < 20 && got == protocol.MatchYes {
				t.Fatalf("%s: Sniff of %d bytes is %v, want %v", name, n, got, want)
			}
			if want == protocol.MatchYes && n < 20 && got != protocol.MatchMore {
				t.Fatalf("%s: Sniff of %d bytes is %v", name, n, got)
			}
		}
	}
	mongo := binary.LittleEndian.AppendUint32(nil, 257) // a message of 257 bytes
	mongo = binary.LittleEndian.AppendUint32(mongo, 1)  // request 1
	mongo = binary.LittleEndian.AppendUint32(mongo, 0)
	mongo = binary.LittleEndian.AppendUint32(mongo, 2013) // OP_MSG
	mongo = append(mongo, 0, 0, 0, 0, 0, 0xec, 0, 0, 0)   // flags, section kind, document length
	for name, b := range map[string][]byte{
		"http/1":      []byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
		"http/2":      []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
		"dubbo":       append([]byte("\xda\xbb\xc2\x00"), make([]byte, 20)...),
		"tls":         append([]byte("\x16\x03\x01\x02\x00\x01"), make([]byte, 20)...),
		"tr":          append([]byte("\x0d\x01\x00\x01"), make([]byte, 20)...),
		"zookeeper":   append([]byte("\x00\x00\x00\x2d"), make([]byte, 20)...),
		"redis":       []byte("*1\r\n$4\r\nPING\r\n*1\r\n$4\r\n"),
		"cassandra":   append([]byte("\x01\x01\x00\x05"), make([]byte, 20)...),
		"mongodb":     mongo,
		"zeros":       make([]byte, 32),
		"ones":        bytes.Repeat([]byte{1}, 32),
		"twos":        bytes.Repeat([]byte{2}, 32),
		"goaway, fat": draft{typ: typeRequest, cmd: cmdGoAway, content: "x"}.build(),
	} {
		if got := (Codec{}).Sniff(b); got != protocol.MatchNo {
			t.Errorf("%s: Sniff is %v, want no", name, got)
		}
	}
	if got := (Codec{}).Sniff(draft{typ: typeRequest, cmd: cmdGoAway}.build()); got != protocol.MatchYes {
		t.Errorf("goaway: Sniff is %v, want yes", got)
	}
}

// TestRejectFlags: which requests are answered with a message instead of an exception.
func TestRejectFlags(t *testing.T) {
	for name, c := range map[string]struct {
		frame draft
		want  uint8
	}{
		"sync":              {request(KeyInvokeType, "sync"), 0},
		"future":            {request(KeyInvokeType, "future"), 0},
		"callback":          {request(KeyInvokeType, "callback"), flagMessage},
		"$invoke":           {request(KeyGeneric, "0"), 0},
		"$genericInvoke":    {request(KeyGeneric, "2"), flagMessage},
		"of another client": {draft{typ: typeRequest, cmd: cmdRequest, class: "a.B"}, flagForeign},
	} {
		if f := decode(t, c.frame.build()); f.Flags != c.want {
			t.Errorf("%s: flags %#x, want %#x", name, f.Flags, c.want)
		}
	}
}

func TestTimeout(t *testing.T) {
	for millis, want := range map[int32]uint32{0: 0, 3000: 3000, -1: 0, 1<<31 - 1: 1<<31 - 1, -1 << 31: 0} {
		d := request()
		d.timeout = millis
		if f := decode(t, d.build()); f.TimeoutMillis != want {
			t.Errorf("%d: got %d, want %d", millis, f.TimeoutMillis, want)
		}
	}
}

func TestVisitAttachments(t *testing.T) {
	b := capture(t, "v1-request")
	f := decode(t, b)
	got := map[string]string{}
	visit := func(k, v []byte) bool { got[string(k)] = string(v); return true }
	if err := (Codec{}).VisitAttachments(&f, b, visit); err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]string{KeyApp: "hello-consumer", PrefixRequestBaggage + "tenant": "blue", KeyInvokeType: "sync", KeyTraceID: "c00002021795393435784100122037", KeySpanID: "0", KeyProtocol: "bolt"} {
		if got[k] != want {
			t.Errorf("%s is %q, want %q", k, got[k], want)
		}
	}
	n := 0
	if err := (Codec{}).VisitAttachments(&f, b, func(k, v []byte) bool { n++; return n < 3 }); err != nil || n != 3 {
		t.Errorf("stopped after %d, %v; want 3", n, err)
	}
	for _, n := range []int{0, 10, 22, 200, len(b) - 1} {
		if err := (Codec{}).VisitAttachments(&f, b[:n], visit); !errors.Is(err, protocol.ErrShort) {
			t.Errorf("%d bytes: %v, want ErrShort", n, err)
		}
	}
	b = capture(t, "v1-response")
	f = decode(t, b)
	clear(got)
	if err := (Codec{}).VisitAttachments(&f, b, visit); err != nil || len(got) != 1 || got[PrefixResponseBaggage+"resp-b"] != "1" {
		t.Errorf("response: %v, %v", got, err)
	}
}

// TestNoAllocations: nothing allocates, for any capture.
func TestNoAllocations(t *testing.T) {
	var c protocol.Codec = Codec{}
	dst := make([]byte, 0, 4096)
	msg := strings.Repeat("no 中😀 ", 40)
	var f protocol.Frame
	visit := func(k, v []byte) bool { return true }
	for _, name := range captures(t) {
		b := capture(t, name)
		if n := testing.AllocsPerRun(100, func() {
			c.Sniff(b)
			c.Decode(&f, b)
			c.VisitAttachments(&f, b, visit)
			dst = c.AppendReject(dst[:0], &f, protocol.CodeThrottled, msg)
			dst = c.AppendProbe(dst[:0], &f)
			VerifyCRC(b)
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, name := range []string{"v1-request", "v1-response", "v2-crc-request", "v1-heartbeat", "v1-exception", "registry-push"} {
		b.Run(name, func(b *testing.B) {
			frame := capture(b, name)
			var f protocol.Frame
			b.ReportAllocs()
			b.SetBytes(int64(len(frame)))
			for b.Loop() {
				if need, err := (Codec{}).Decode(&f, frame); need != 0 || err != nil {
					b.Fatal(need, err)
				}
			}
		})
	}
}

func BenchmarkVisitAttachments(b *testing.B) {
	frame := capture(b, "v1-request")
	f := decode(b, frame)
	b.ReportAllocs()
	for b.Loop() {
		if err := (Codec{}).VisitAttachments(&f, frame, func(k, v []byte) bool { return true }); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendReject(b *testing.B) {
	for _, name := range []string{"v1-request", "v2-crc-request"} {
		b.Run(name, func(b *testing.B) {
			f := decode(b, capture(b, name))
			var dst []byte
			b.ReportAllocs()
			for b.Loop() {
				dst = Codec{}.AppendReject(dst[:0], &f, protocol.CodeThrottled, "limit of rule orders-qps reached")
			}
		})
	}
}
