package cli

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"hash/crc32"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// frame returns the bytes of a frame that was recorded between real peers.
func frame(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "frames", name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// lines parses decode's output: one object a line.
func lines(t *testing.T, out string) []map[string]any {
	t.Helper()
	var all []map[string]any
	for line := range strings.Lines(out) {
		d := json.NewDecoder(strings.NewReader(line))
		d.UseNumber()
		var m map[string]any
		if err := d.Decode(&m); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		all = append(all, m)
	}
	return all
}

// TestDecodeRealFrames holds decode to what is known of the recorded frames: each field was read off a dump of the
// frame, not off this program.
func TestDecodeRealFrames(t *testing.T) {
	type fields map[string]any
	n := func(s string) json.Number { return json.Number(s) }
	for name, want := range map[string]fields{
		"dubbo-00-req": {
			"protocol": "dubbo", "kind": "request", "id": n("18172336908541587526"), "service": "demo.GreetService", "method": "sayHello", "version": "1.0.0",
			"group": "g1", "caller": "greet-consumer", "status": nil, "bytes": n("286"), "offset": n("0"), "timeoutMillis": n("5000"), "serialization": n("2"), "serializationName": "hessian2", "class": "",
			"attachments": map[string]any{"path": "demo.GreetService", "remote.application": "greet-consumer", "x-tenant": "blue",
				"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "interface": "demo.GreetService", "version": "1.0.0", "timeout": "5000", "group": "g1"},
		},
		"dubbo-00-resp": {
			"protocol": "dubbo", "kind": "response", "id": n("18172336908541587526"), "service": "", "method": "", "status": n("20"), "outcome": "ok", "bytes": n("55"),
			"attachments": map[string]any{"resp-tag": "v1", "dubbo": "2.0.2"},
		},
		"dubbo-01-req":         {"kind": "request", "id": n("18172336908541587527"), "method": "echo", "caller": "greet-consumer", "group": "g1"},
		"dubbo-01-resp":        {"kind": "response", "id": n("18172336908541587527"), "status": n("20"), "outcome": "ok", "attachments": map[string]any{"dubbo": "2.0.2"}},
		"dubbo-heartbeat-req":  {"kind": "heartbeat", "id": n("15764099934496905556"), "reply": false, "bytes": n("17"), "attachments": map[string]any{}},
		"dubbo-heartbeat-resp": {"kind": "heartbeat", "id": n("15764099934496905556"), "reply": true, "bytes": n("17"), "status": nil},
		"bolt-00-c2s-SofaRequest": {
			"protocol": "bolt", "kind": "request", "id": n("1"), "service": "demo.HelloService", "method": "sayHello", "version": "1.0", "group": "",
			"caller": "hello-consumer", "timeoutMillis": n("5000"), "bytes": n("880"), "variant": n("1"), "serialization": n("1"), "status": nil,
			"serializationName": "hessian", "class": "com.alipay.sofa.rpc.core.request.SofaRequest",
		},
		"bolt-01-s2c-SofaResponse": {
			"kind": "response", "id": n("1"), "status": n("0"), "statusName": "SUCCESS", "outcome": "ok", "bytes": n("234"),
			"attachments": map[string]any{"rpc_resp_baggage.resp-b": "1"},
		},
		"bolt-heartbeat-req":   {"kind": "heartbeat", "id": n("4"), "reply": false, "bytes": n("22"), "service": ""},
		"bolt-heartbeat-resp":  {"kind": "heartbeat", "id": n("4"), "reply": true, "bytes": n("20")},
		"dubbo-readonly-event": {"kind": "event", "id": n("11994408104295582184"), "bytes": n("18"), "status": nil, "service": ""},
	} {
		for form, input := range map[string]string{"raw": string(frame(t, name)), "hex": hex.EncodeToString(frame(t, name)) + "\n"} {
			t.Run(name+"/"+form, func(t *testing.T) {
				r := invoke(t, input, "decode")
				got := lines(t, r.out)
				if r.code != ExitOK || len(got) != 1 || r.err != "" {
					t.Fatalf("got %+v, want one line and exit code 0", r)
				}
				for k, v := range want {
					if !reflect.DeepEqual(got[0][k], v) {
						t.Errorf("%s: got %v, want %v", k, got[0][k], v)
					}
				}
			})
		}
	}
}

// TestDecodeFieldsAreAlwaysThere holds that scripts need not ask whether a field is there.
func TestDecodeFieldsAreAlwaysThere(t *testing.T) {
	always := []string{"offset", "bytes", "protocol", "kind", "id", "service", "method", "version", "group", "caller", "callerIP", "timeoutMillis",
		"status", "statusName", "outcome", "serialization", "serializationName", "class", "variant", "reply", "attachments", "flaw"}
	inputs := []string{"00", "da", string(frame(t, "dubbo-00-req")), string(frame(t, "dubbo-00-resp")), string(frame(t, "dubbo-heartbeat-req")), string(frame(t, "dubbo-readonly-event"))}
	for _, input := range inputs {
		for _, line := range lines(t, invoke(t, input, "decode").out) {
			for _, name := range always {
				if _, ok := line[name]; !ok {
					t.Errorf("%q: no %s", input, name)
				}
			}
		}
	}
}

// TestDecodeMixedProtocols holds decode to naming the protocol of each frame by itself.
func TestDecodeMixedProtocols(t *testing.T) {
	input := string(frame(t, "bolt-heartbeat-req")) + string(frame(t, "dubbo-heartbeat-req")) + string(frame(t, "bolt-01-s2c-SofaResponse"))
	got := lines(t, invoke(t, input, "decode").out)
	if len(got) != 3 || got[0]["protocol"] != "bolt" || got[1]["protocol"] != "dubbo" || got[2]["protocol"] != "bolt" {
		t.Errorf("got %v", got)
	}
	r := invoke(t, input, "decode", "--protocol", "bolt")
	if got := lines(t, r.out); r.code != ExitBad || len(got) != 2 || got[1]["error"] == nil {
		t.Errorf("--protocol bolt: got %+v, want an error on the second frame", r)
	}
}

// TestDecodeChecksum holds decode to checking what the codec leaves to the receiving peer.
func TestDecodeChecksum(t *testing.T) {
	// A v2 request without class, header or content, with a CRC-32 trailer.
	good := "\x02\x02\x01\x00\x01\x01\x00\x00\x00\x07\x01\x01\x00\x00\x03\xe8\x00\x00\x00\x00\x00\x00\x00\x00"
	sum := binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE([]byte(good)))
	r := invoke(t, good+string(sum), "decode")
	if got := lines(t, r.out); r.code != ExitOK || len(got) != 1 || got[0]["variant"] != json.Number("2") {
		t.Errorf("right sum: got %+v", r)
	}
	sum[3] ^= 1
	r = invoke(t, good+string(sum)+string(frame(t, "bolt-heartbeat-req")), "decode")
	if got := lines(t, r.out); r.code != ExitBad || len(got) != 2 || got[0]["error"] == nil || got[1]["error"] != nil {
		t.Errorf("wrong sum: got %+v", r)
	}
}

func TestDecodeSequence(t *testing.T) {
	input := string(frame(t, "dubbo-heartbeat-req")) + string(frame(t, "dubbo-00-req")) + string(frame(t, "dubbo-00-resp"))
	r := invoke(t, input, "decode", "-")
	got := lines(t, r.out)
	if r.code != ExitOK || len(got) != 3 {
		t.Fatalf("got %+v", r)
	}
	for i, want := range []string{"0", "17", "303"} {
		if got[i]["offset"] != json.Number(want) {
			t.Errorf("line %d: offset %v, want %s", i, got[i]["offset"], want)
		}
	}
	golden(t, "decode-sequence.jsonl", r.out)
}

// TestDecodeHexIsForgiving holds decode to hexadecimal text as people paste it.
func TestDecodeHexIsForgiving(t *testing.T) {
	digits := hex.EncodeToString(frame(t, "dubbo-heartbeat-req")) + hex.EncodeToString(frame(t, "dubbo-heartbeat-resp"))
	var pasted strings.Builder
	pasted.WriteString("# two heartbeats — captured by hand\r\n\n")
	for i := 0; i < len(digits); i += 2 {
		pasted.WriteString(strings.ToUpper(digits[i:i+2]) + " ")
		if i%16 == 14 {
			pasted.WriteString("\t# line\n")
		}
	}
	for _, args := range [][]string{{"decode"}, {"decode", "--hex"}} {
		r := invoke(t, pasted.String(), args...)
		if got := lines(t, r.out); r.code != ExitOK || len(got) != 2 {
			t.Errorf("%v: got %+v", args, r)
		}
	}
}

func TestDecodeMalformed(t *testing.T) {
	request := string(frame(t, "dubbo-00-req"))
	heartbeat := string(frame(t, "dubbo-heartbeat-req"))
	flawed := strings.Replace(request, "\x12Ljava/lang/String;", "\x12Ljava/lang/S\xff\xff\xff\xff\xff;", 1)
	cases := map[string]struct {
		input   string
		args    []string
		count   int    // of lines
		offset  string // of the error, on the last line
		message string // part of it
		stderr  string // part of it
	}{
		"cut body":            {heartbeat + request[:200], nil, 2, "217", "the input ends within the frame, after 200 of its 286 bytes", ""},
		"cut header":          {heartbeat + request[:9], nil, 2, "26", "the input ends within the frame's header, after 9 bytes", ""},
		"one byte":            {request[:1], nil, 1, "1", "the input ends within the frame's header, after 1 bytes", ""},
		"garbage":             {"\x00\x01\x02garbage", nil, 1, "0", "not a frame of a known protocol", ""},
		"garbage after":       {heartbeat + "\xff\xff", nil, 2, "17", "not a frame of a known protocol", ""},
		"length out of range": {"\xda\xbb\xc2\x00" + "\x00\x00\x00\x00\x00\x00\x00\x01" + "\xff\xff\xff\xff" + "\x00", nil, 1, "", "length", ""},
		"raw that is hex":     {"da bb", []string{"--raw"}, 1, "0", "not a frame of a known protocol", ""},
		"not a digit":         {hex.EncodeToString([]byte(heartbeat)) + "\nxyz", nil, 2, "17", `line 2, column 1: "x" is not a hexadecimal digit`, "is not a hexadecimal digit"},
		"odd digits":          {hex.EncodeToString([]byte(heartbeat)) + "d", nil, 2, "17", "an odd number of hexadecimal digits: 35", "odd"},
		"nothing":             {"", nil, 0, "", "", "no frames: the input is empty"},
		"only a comment":      {"# nothing\n", nil, 0, "", "", "no frames: the input is empty"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r := invoke(t, c.input, append([]string{"decode"}, c.args...)...)
			got := lines(t, r.out)
			if r.code != ExitBad || len(got) != c.count || !strings.Contains(r.err, c.stderr) || c.stderr == "" && r.err != "" {
				t.Fatalf("got %+v; want exit code %d, %d lines and %q on standard error", r, ExitBad, c.count, c.stderr)
			}
			for i, line := range got {
				fault, _ := line["error"].(map[string]any)
				if i < len(got)-1 {
					if fault != nil {
						t.Errorf("line %d: %v", i, fault)
					}
					continue
				}
				if message, _ := fault["message"].(string); !strings.Contains(message, c.message) || c.offset != "" && fault["offset"] != json.Number(c.offset) {
					t.Errorf("got %v, want offset %s and %q", fault, c.offset, c.message)
				}
			}
		})
	}
	t.Run("malformed body between two good frames", func(t *testing.T) {
		r := invoke(t, heartbeat+flawed+heartbeat, "decode")
		got := lines(t, r.out)
		if r.code != ExitBad || len(got) != 3 || got[0]["error"] != nil || got[1]["error"] == nil || got[2]["error"] != nil {
			t.Fatalf("got %+v; want three lines, the second with an error", r)
		}
		if got[1]["flaw"] != "malformed" || got[1]["method"] != "sayHello" {
			t.Errorf("got flaw %v and method %v; want what could be read, and why the rest could not", got[1]["flaw"], got[1]["method"])
		}
	})
}

// FuzzDecode holds decode to any input: it neither panics nor loses a byte's account, and the lines' offsets follow one
// another.
func FuzzDecode(f *testing.F) {
	for _, name := range []string{"dubbo-00-req", "dubbo-00-resp", "dubbo-01-req", "dubbo-heartbeat-req", "dubbo-readonly-event"} {
		f.Add(frame(f, name))
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		next := 0
		err := decodeFrames(input, wires, func(l *frameLine) error {
			if l.Offset != next || l.Bytes == 0 {
				t.Fatalf("frame at %d of %d bytes, want it at %d", l.Offset, l.Bytes, next)
			}
			if l.Error != nil && (l.Error.Offset < l.Offset || l.Error.Offset > len(input)) {
				t.Fatalf("error at %d, outside of the frame at %d", l.Error.Offset, l.Offset)
			}
			if _, err := json.Marshal(l); err != nil {
				t.Fatal(err)
			}
			next += int(l.Bytes)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
