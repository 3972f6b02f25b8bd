package dubbo

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	hessian "github.com/apache/dubbo-go-hessian2"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

func TestReject(t *testing.T) {
	for code, c := range map[protocol.Code]struct {
		status  byte
		outcome protocol.Outcome
	}{
		protocol.CodeThrottled:   {100, protocol.OutcomeOverload},
		protocol.CodeUnavailable: {80, protocol.OutcomeError},
		protocol.CodeDenied:      {70, protocol.OutcomeError},
		protocol.CodeAborted:     {80, protocol.OutcomeError},
		protocol.CodeTimeout:     {31, protocol.OutcomeTimeout},
		0:                        {80, protocol.OutcomeError},
		200:                      {80, protocol.OutcomeError},
	} {
		for _, serialization := range []uint8{SerializationHessian2, SerializationFastJSON2, 22} {
			req := protocol.Frame{Kind: protocol.KindRequest, ID: 0x0102030405060708, Flags: flagRequest | flagTwoWay | serialization, Serialization: serialization}
			want := "dabb02" + hex.EncodeToString([]byte{c.status}) + "0102030405060708" + "00000003" + "026e6f"
			if got := hex.EncodeToString(Codec{}.AppendReject(nil, &req, code, "no")); got != want {
				t.Errorf("code %d, serialization %d: %s, want %s", code, serialization, got, want)
			}
		}
		if f := decode(t, Codec{}.AppendReject(nil, &protocol.Frame{ID: 1}, code, "no")); f.Outcome != c.outcome {
			t.Errorf("code %d: outcome %v, want %v", code, f.Outcome, c.outcome)
		}
	}
}

// TestRejectMessage lets dubbo-go-hessian2 read the message, as a client does.
func TestRejectMessage(t *testing.T) {
	for name, c := range map[string]struct{ msg, want string }{
		"empty":                {"", ""},
		"31":                   {strings.Repeat("a", 31), ""},
		"32":                   {strings.Repeat("a", 32), ""},
		"1023":                 {strings.Repeat("a", 1023), ""},
		"1024":                 {strings.Repeat("a", 1024), ""},
		"1025":                 {strings.Repeat("a", 1025), strings.Repeat("a", 1024)},
		"wide":                 {strings.Repeat("限", 342), strings.Repeat("限", 341)},
		"pairs":                {"a" + strings.Repeat("😀", 300), "a" + strings.Repeat("😀", 255)},
		"cut within a rune":    {strings.Repeat("a", 1022) + "限", strings.Repeat("a", 1022)},
		"cut between runes":    {strings.Repeat("a", 1021) + "限流", strings.Repeat("a", 1021) + "限"},
		"long, not UTF-8":      {strings.Repeat("\x80", 2000), ""},
		"over the limit, 限流 😀": {"over the limit, 限流 😀", ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := Codec{}.AppendReject(nil, &protocol.Frame{ID: 3}, protocol.CodeThrottled, c.msg)
			v, err := hessian.NewDecoder(b[HeaderLen:]).Decode()
			if err != nil {
				t.Fatal(err)
			}
			got := v.(string)
			want := c.want
			if want == "" && utf8.ValidString(c.msg) {
				want = c.msg
			}
			if utf8.ValidString(c.msg) && got != want {
				t.Errorf("got %q (%d), want %q (%d)", got, len(got), want, len(want))
			}
			if !utf8.ValidString(got) || utf8.RuneCountInString(got) > MaxMessage {
				t.Errorf("got %d runes, valid: %v", utf8.RuneCountInString(got), utf8.ValidString(got))
			}
		})
	}
}

// TestProbe: byte for byte what Dubbo sends, but for the id.
func TestProbe(t *testing.T) {
	real := decode(t, frame(t, "heartbeat"))
	if got, want := (Codec{}).AppendProbe(nil, &protocol.Frame{ID: real.ID}), frame(t, "heartbeat"); string(got) != string(want) {
		t.Errorf("%x, want %x", got, want)
	}
	got := Codec{}.AppendProbe([]byte("before"), &protocol.Frame{ID: 1<<64 - 1, Flags: 0xd7, Serialization: SerializationFastJSON2})
	if want := "before\xda\xbb\xe2\x00\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x01N"; string(got) != want {
		t.Errorf("%x, want %x", got, want)
	}
}

// TestGoPeer: dubbo-go-hessian2 reads a rejection and a probe as they are meant, and its own requests and responses are read
// as it meant them.
func TestGoPeer(t *testing.T) {
	read := func(b []byte) (hessian.DubboHeader, *hessian.Response) {
		t.Helper()
		var header hessian.DubboHeader
		codec := hessian.NewHessianCodec(bufio.NewReader(bytes.NewReader(b)))
		if err := codec.ReadHeader(&header); err != nil {
			t.Fatal(err)
		}
		rsp := &hessian.Response{}
		if err := codec.ReadBody(rsp); err != nil {
			t.Fatal(err)
		}
		return header, rsp
	}
	header, rsp := read(Codec{}.AppendReject(nil, &protocol.Frame{ID: 42}, protocol.CodeThrottled, "over the limit, 限流"))
	if header.ID != 42 || header.Type != hessian.PackageResponse|hessian.PackageResponse_Exception || header.ResponseStatus != 100 {
		t.Errorf("rejection: %+v", header)
	}
	if rsp.Exception == nil || !strings.Contains(rsp.Exception.Error(), "over the limit, 限流") {
		t.Errorf("rejection: %v", rsp.Exception)
	}
	if header, _ := read(Codec{}.AppendProbe(nil, &protocol.Frame{ID: 43})); header.ID != 43 ||
		header.Type != hessian.PackageRequest|hessian.PackageRequest_TwoWay|hessian.PackageHeartbeat {
		t.Errorf("probe: %+v", header)
	}

	for typ, kind := range map[hessian.PackageType]protocol.Kind{hessian.PackageRequest: protocol.KindOneWay, hessian.PackageRequest_TwoWay: protocol.KindRequest} {
		service := hessian.Service{Path: "demo.GreetService", Interface: "demo.GreetService", Version: "1.2", Group: "g1", Method: "greet"}
		arguments := []interface{}{"hello", int32(1), []string{"a"}, map[string]string{"k": "v"}}
		b, err := hessian.NewHessianCodec(nil).Write(service, hessian.DubboHeader{SerialID: 2, Type: typ, ID: 42}, hessian.NewRequest(arguments, map[string]string{"tenant": "blue"}))
		if err != nil {
			t.Fatal(err)
		}
		f := decode(t, b)
		if f.Kind != kind || f.ID != 42 || string(f.Service.Of(b)) != service.Path || string(f.Version.Of(b)) != "1.2" || string(f.Method.Of(b)) != "greet" {
			t.Errorf("request: %+v", f)
		}
		pairs, err := visited(&f, b)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			got[pairs[i]] = pairs[i+1]
		}
		if got["tenant"] != "blue" || got[KeyGroup] != "g1" || got[KeyInterface] != service.Interface {
			t.Errorf("request: attachments %q", got)
		}
	}

	b, err := hessian.NewHessianCodec(nil).Write(hessian.Service{}, hessian.DubboHeader{SerialID: 2, Type: hessian.PackageResponse, ID: 44, ResponseStatus: 20},
		hessian.NewResponse([]interface{}{"a", nil, 7.5}, nil, map[string]string{"dubbo": "2.0.2", "zone": "east"}))
	if err != nil {
		t.Fatal(err)
	}
	f := decode(t, b)
	if f.Kind != protocol.KindResponse || f.Outcome != protocol.OutcomeOK || f.ID != 44 {
		t.Errorf("response: %+v", f)
	}
	if pairs, err := visited(&f, b); err != nil || !slices.Contains(pairs, "east") {
		t.Errorf("response: attachments %q, %v", pairs, err)
	}
}
