package wire

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// readHex returns the bytes of testdata/NAME.hex.
func readHex(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// frameOf reads one frame that must be all of b.
func frameOf(t testing.TB, b []byte) Frame {
	t.Helper()
	r := bufio.NewReader(bytes.NewReader(b))
	f, err := ReadFrame(r, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Fatalf("something follows the frame: %v", err)
	}
	return f
}

// TestFrames reads what a real client of SOFARegistry 6.3.0 and the server have said to each other.
func TestFrames(t *testing.T) {
	const dataID = "demo.CapService:1.0@DEFAULT"
	data := "127.0.0.1:12200?_TIMEOUT=3000&p=1&_SERIALIZETYPE=hessian2&_WEIGHT=100&app_name=pub-app&v=4.0&zone=DEFAULT_ZONE"
	push := func(version int64, zones map[string][]string) []Push {
		return []Push{{ID: ID{dataID, "SOFA", DefaultInstance}, Segment: "DefaultDataCenter", Scope: ScopeDataCenter, Version: version, LocalZone: "DEFAULT_ZONE",
			Zones: zones, Registrations: []string{"ccefd7cd-d8fb-479b-b107-c7654f514480"}}}
	}
	register := func(registration string, version int64, m Register) Register {
		m.ID, m.Registration, m.Zone, m.Version, m.Timestamp = ID{DataID: dataID, Group: "SOFA"}, registration, "DEFAULT_ZONE", version, 1795394491520
		return m
	}
	const publisher, subscriber = "3dc4818a-f518-4f49-a963-8c205c7837e6", "ccefd7cd-d8fb-479b-b107-c7654f514480"
	for name, want := range map[string]any{
		"00-c2s-PublisherRegister":  register(publisher, 1, Register{Application: "pub-app", Data: []string{data}}),
		"01-s2c-RegisterResponse":   Response{true, publisher, 1, false, "Publisher register success!"},
		"02-c2s-SubscriberRegister": register(subscriber, 1, Register{Application: "sub-app", Scope: ScopeDataCenter}),
		"03-s2c-RegisterResponse":   Response{true, subscriber, 1, false, "Subscriber register success!"},
		"04-s2c-ReceivedData":       push(8163245804716033, map[string][]string{"DEFAULT_ZONE": {data}}),
		"05-c2s-Result":             true,
		"06-c2s-PublisherRegister":  register(publisher, 2, Register{Application: "pub-app", Remove: true}),
		"07-s2c-RegisterResponse":   Response{true, publisher, 2, false, "Publisher register success!"},
		"08-s2c-ReceivedData":       push(8163246060339200, map[string][]string{}),
		"09-c2s-Result":             true,
	} {
		t.Run(name, func(t *testing.T) {
			b := readHex(t, "frames/"+name)
			f := frameOf(t, b)
			e, class := MessageOf(f.Class)
			if e != Hessian || f.Codec != CodecHessian || ClassName(e, class) != f.Class {
				t.Errorf("class %s in codec %d", f.Class, f.Codec)
			}
			if again := AppendFrame(nil, f); !bytes.Equal(again, b) {
				t.Errorf("written again it is\n%x, was\n%x", again, b)
			}
			got, err := decode(e, class, f.Content)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got\n%+v, want\n%+v", got, want)
			}
		})
	}
}

// decode reads a message of any class.
func decode(e Encoding, class string, b []byte) (any, error) {
	switch class {
	case ClassPublisher, ClassSubscriber:
		return DecodeRegister(e, class == ClassPublisher, b)
	case ClassResponse:
		return DecodeResponse(e, b)
	case ClassReceived, ClassMulti:
		return DecodePush(e, class == ClassMulti, b)
	case ClassResult:
		ok, _, err := DecodeResult(e, b)
		return ok, err
	}
	return nil, fmt.Errorf("unknown class %s", class)
}

// TestHessian reads what sofa-hessian 3.3.6 makes of upstream's classes (registry-client-all 6.5.6): many zones, repeated values as
// references, long and odd texts, nulls.
func TestHessian(t *testing.T) {
	base := Push{ID: ID{"demo.A:1.0@DEFAULT", "SOFA", DefaultInstance}, Segment: "dc1", Scope: ScopeGlobal, LocalZone: "z1", Registrations: []string{"reg-1", "reg-2"}}
	with := func(version int64, zones map[string][]string) Push {
		p := base
		p.Version, p.Zones = version, zones
		return p
	}
	zones := map[string][]string{}
	for _, z := range []string{"z1", "z2", "z3"} {
		for i := range 100 {
			zones[z] = append(zones[z], fmt.Sprintf("192.0.2.%d:12200?zone=%s&n=%d", i, z, i))
		}
	}
	long := "192.0.2.1:1?"
	for n := len(long); n < 33000; n += 5 { // in UTF-16 code units
		long += "k\u4e2d\U0001f600="
	}
	odd := with(300, map[string][]string{"\u4e2d\U0001f600": {long, ""}})
	odd.ID.DataID = "odd \"#@#\U0001f600\u00e9\u4e2d&?=%#\n@x"
	segment := func(name string) Push {
		p := with(7, map[string][]string{"z": {name + ":1"}})
		p.Segment, p.Registrations = name, []string{"reg-1"}
		return p
	}
	for name, c := range map[string]struct {
		class string
		want  any
	}{
		"zones":      {ClassReceived, []Push{with(8163245804716033, zones)}},
		"references": {ClassReceived, []Push{with(1, map[string][]string{"z1": {"192.0.2.1:1?a=1", "192.0.2.2:1"}, "z2": {"192.0.2.1:1?a=1", "192.0.2.2:1"}, "z3": {"192.0.2.1:1?a=1", "192.0.2.1:1?a=1"}})}},
		"texts":      {ClassReceived, []Push{odd}},
		"empty":      {ClassReceived, []Push{with(-1, map[string][]string{})}},
		"null":       {ClassReceived, []Push{with(1<<40, nil)}},
		"multi":      {ClassMulti, []Push{segment("dc1"), segment("dc2")}},
		"response":   {ClassResponse, Response{false, "r", 70000, true, "no"}},
		"result":     {ClassResult, true},
		"publisher": {ClassPublisher, Register{ID: ID{DataID: "demo.A:1.0@DEFAULT", Group: "SOFA"}, Registration: "x", Zone: "z", Application: "app", Version: 3,
			Timestamp: 1795394491520, Attributes: []string{"!AccessKey", "k"}, Data: []string{"192.0.2.1:1", "192.0.2.2:2"}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := decode(Hessian, c.class, readHex(t, "hessian/"+name))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got\n%.2000v, want\n%.2000v", got, c.want)
			}
		})
	}
}

// TestProtobuf reads pushes of a real server of version 6.3.0, which sends them with codec 1 all the same.
func TestProtobuf(t *testing.T) {
	p := Push{ID: ID{"demo.HelloService:1.0@DEFAULT", "SOFA", DefaultInstance}, Segment: "DefaultDataCenter", Scope: ScopeGlobal, LocalZone: "DEFAULT_ZONE"}
	for name, want := range map[string]Push{
		"received-0": {ID: ID{"odd \"\U0001f600\u00e9\u4e2d&?=%#\n@x", "SOFA", DefaultInstance}, Version: NoDatum, Zones: map[string][]string{}, Registrations: []string{"bbecc3c7-dbc3-46f3-8a49-7889b4a08ff9"}},
		"received-3": {ID: p.ID, Version: 8169054584045569, Registrations: []string{"a87a8261-81de-4fcf-b225-e8c9a2fddff8"}, Zones: map[string][]string{"DEFAULT_ZONE": {
			"10.99.7.2:12200?rpcVer=51302&serialization=hessian2&weight=100&appName=hello-provider&p=1&v=4.0&_SERIALIZETYPE=hessian2&_WEIGHT=100&app_name=hello-provider&startTime=1795571761323"}}},
	} {
		want.Segment, want.Scope, want.LocalZone = p.Segment, p.Scope, p.LocalZone
		got, err := DecodePush(Protobuf, false, readHex(t, "protobuf/"+name))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(got, []Push{want}) {
			t.Errorf("%s: got\n%+v, want\n%+v", name, got, want)
		}
	}
}

// TestRoundTrip: what one side writes the other reads, in both encodings.
func TestRoundTrip(t *testing.T) {
	odd := "odd \"#@#\U0001f600\u00e9\u4e2d&?=%#\n@" + strings.Repeat("\U0001f600x", 20000)
	for _, e := range []Encoding{Hessian, Protobuf} {
		for _, id := range []ID{{"demo.A:1.0@DEFAULT", "SOFA", ""}, {odd, "G", "I"}} {
			m := Register{ID: id, Registration: "r", Zone: "z", Application: "app", Scope: ScopeGlobal, Version: 7, Timestamp: 1795394491520, Attributes: []string{"!AccessKey", "k", "\u4e2d", odd}}
			got, err := DecodeRegister(e, false, EncodeSubscriber(e, &m))
			if err != nil || !reflect.DeepEqual(got, m) {
				t.Errorf("%v subscriber %.100q: %v\n%.500v", e, id.DataID, err, got)
			}
			m.Scope, m.Data, m.Remove = "", []string{"a", odd, "b"}, true
			got, err = DecodeRegister(e, true, EncodePublisher(e, &m))
			if err != nil || !reflect.DeepEqual(got, m) {
				t.Errorf("%v publisher %.100q: %v\n%.500v", e, id.DataID, err, got)
			}
			p := Push{ID: id, Segment: "s", Scope: ScopeGlobal, Version: 1 << 50, LocalZone: "l", Registrations: []string{"r"}, Zones: map[string][]string{"z": {"a", odd}, "y": {"b"}}}
			pushes, err := DecodePush(e, false, EncodePush(e, &p))
			if err != nil || !reflect.DeepEqual(pushes, []Push{p}) {
				t.Errorf("%v push %.100q: %v\n%.500v", e, id.DataID, err, pushes)
			}
		}
		r := Response{true, "r", 9, true, odd}
		if got, err := DecodeResponse(e, EncodeResponse(e, r)); err != nil || got != r {
			t.Errorf("%v response: %v %v", e, got, err)
		}
		if ok, message, err := DecodeResult(e, EncodeResult(e, true, odd)); !ok || message != odd || err != nil {
			t.Errorf("%v result: %v %v", e, ok, err)
		}
	}
}

func TestID(t *testing.T) {
	for text, want := range map[string]struct {
		id ID
		ok bool
	}{
		"demo.A:1.0@DEFAULT#@#DEFAULT_INSTANCE_ID#@#SOFA": {ID{"demo.A:1.0@DEFAULT", "SOFA", DefaultInstance}, true},
		"a#@#b#@#c#@#d": {ID{"a#@#b", "d", "c"}, true},
		"a#@#b":         {},
		"a#@##@#c":      {},
		"#@#b#@#c":      {},
		"":              {},
	} {
		got, ok := ParseID(text)
		if ok != want.ok || ok && (got != want.id || got.String() != text) {
			t.Errorf("%q: %+v, %v", text, got, ok)
		}
	}
}

// TestBadFrames: what is no frame ends the connection, what is only too long does not.
func TestBadFrames(t *testing.T) {
	good := AppendFrame(nil, Frame{Type: TypeRequest, Command: CommandRequest, ID: 3, Codec: CodecHessian, Timeout: 5, Class: "x.Y", Content: []byte("content")})
	change := func(at int, b ...byte) []byte {
		return append(append(bytes.Clone(good[:at]), b...), good[at+len(b):]...)
	}
	for name, b := range map[string][]byte{
		"version 2":         change(0, 2),
		"type":              change(1, 7),
		"long class name":   change(14, 0xff, 0xff),
		"long header":       change(16, 0xff, 0xff),
		"negative length":   change(18, 0x80, 0, 0, 0),
		"impossible length": change(18, 0x7f, 0xff, 0xff, 0xff),
	} {
		if _, err := ReadFrame(bufio.NewReader(bytes.NewReader(b)), 100); !errors.Is(err, ErrFraming) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for n := range good {
		if _, err := ReadFrame(bufio.NewReader(bytes.NewReader(good[:n])), 100); err == nil || errors.Is(err, ErrFraming) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
	r := bufio.NewReader(bytes.NewReader(append(bytes.Clone(good), good...)))
	for range 2 {
		f, err := ReadFrame(r, 3)
		if err != nil || f.Whole != 7 || string(f.Content) != "con" {
			t.Errorf("a long one: %+v, %v", f, err)
		}
	}
}

// TestMemory: a length that is announced costs nothing until it has come.
func TestMemory(t *testing.T) {
	head := AppendFrame(nil, Frame{Type: TypeRequest, Class: "x"})
	binary.BigEndian.PutUint32(head[18:], 400<<20)
	result := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			if _, err := ReadFrame(bufio.NewReader(bytes.NewReader(head)), 500<<20); err == nil {
				b.Fatal("no error")
			}
		}
	})
	if n := result.AllocedBytesPerOp(); n > 1<<20 {
		t.Errorf("%d bytes are allocated for a frame that never comes", n)
	}
}

// TestBadHessian: everything that is bounded has its error, with the place.
func TestBadHessian(t *testing.T) {
	class := func(n int) []byte { // the definition of a class with a name of n bytes
		var w hessianWriter
		w.b = append(w.b, 'O')
		w.int(n)
		w.b = append(w.b, bytes.Repeat([]byte("a"), n)...)
		w.int(0)
		return append(w.b, 'o', 0x90)
	}
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"nothing":                {nil, errTruncated},
		"deep":                   {bytes.Repeat([]byte("V"), 100), errDepth},
		"deep, but cut":          {bytes.Repeat([]byte("V"), 10), errTruncated},
		"many":                   {append([]byte("V"), bytes.Repeat([]byte("N"), maxValues+1)...), errValues},
		"class name of 1 MB":     {class(1 << 20), errTypeName},
		"class name made up":     {[]byte{'O', 'I', 0x7f, 0xff, 0xff, 0xff}, errTypeName},
		"class name, not ASCII":  {[]byte{'O', 0x91, 0xff, 0x90, 'o', 0x90}, errTypeName},
		"fields made up":         {[]byte{'O', 0x91, 'a', 'I', 0x7f, 0xff, 0xff, 0xff}, errClasses},
		"many classes":           {append(bytes.Repeat([]byte{'O', 0x91, 'a', 0x90}, maxClasses+1), 'o', 0x90), errClasses},
		"no such class":          {[]byte{'o', 0x90}, errReference},
		"no such value":          {[]byte{'J', 0}, errReference},
		"no such value, long":    {[]byte{'R', 0xff, 0xff, 0xff, 0xff}, errReference},
		"no such type":           {[]byte{'V', 'u', 0x90, 'z'}, errReference},
		"fixed list made up":     {[]byte{'V', 't', 0, 1, 'a', 'v', 0x90, 'I', 0x7f, 0xff, 0xff, 0xff}, errTruncated},
		"text made up":           {[]byte{'S', 0xff, 0xff, 'a'}, errTruncated},
		"text, lone surrogate":   {[]byte{1, 0xed, 0xa0, 0x80}, errText},
		"text, wrong surrogate":  {[]byte{2, 0xed, 0xa0, 0x80, 'a'}, errText},
		"text, stray byte":       {[]byte{1, 0x80}, errText},
		"text, no continuation":  {[]byte{1, 0xe4, 'a', 'b'}, errText},
		"text, beyond Unicode":   {[]byte{2, 0xf7, 0xbf, 0xbf, 0xbf}, errText},
		"text, half of a pair":   {[]byte{1, 0xf0, 0x9f, 0x98, 0x80}, errText},
		"binary made up":         {[]byte{'B', 0xff, 0xff}, errTruncated},
		"map without an end":     {[]byte{'M', 1, 'a', 1, 'b'}, errTruncated},
		"list within itself":     {[]byte{'V', 'J', 0, 'z'}, nil},
		"text in four bytes":     {[]byte{2, 0xf0, 0x9f, 0x98, 0x80}, nil},
		"all the kinds of value": {[]byte{'V', 'N', 'T', 'F', 0x90, 0xc8, 0, 0xd4, 0, 0, 'I', 0, 0, 0, 0, 0xe0, 0xf8, 0, 0x3c, 0, 0, 'w', 0, 0, 0, 0, 'L', 0, 0, 0, 0, 0, 0, 0, 0, 'd', 0, 0, 0, 0, 0, 0, 0, 0, 0x67, 0x68, 0x69, 0, 0x6a, 0, 0, 0x6b, 0, 0, 0, 0, 'D', 0, 0, 0, 0, 0, 0, 0, 0, 0x21, 1, 'b', 0, 1, 1, 'B', 0, 1, 1, 's', 0, 1, 'a', 1, 'b', 'z'}, nil},
	} {
		_, err := readHessian(c.b)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "at byte ") {
			t.Errorf("%s: %v has no place", name, err)
		}
	}
	for _, b := range [][]byte{{'z'}, {'V', 0x40, 'z'}, {'N', 'N'}, {'O', 'N'}, {'O', 0x91, 'a', 0x91, 'N'}, {'s', 0, 1, 'a', 'N'}, {'b', 0, 1, 'a', 'N'}, {'O', 0x91, 'a', 0x90, 'N'}} {
		if _, err := readHessian(b); err == nil {
			t.Errorf("%x is taken", b)
		}
	}
}

// TestBadPush: a push of the wrong shape is refused, and what it is about is told where that can be.
func TestBadPush(t *testing.T) {
	for name, text := range map[string]string{"not an object": "\x01a", "another class": "O\x91a\x90o\x90", "nothing": ""} {
		if _, err := DecodePush(Hessian, false, []byte(text)); err == nil {
			t.Errorf("%s is taken", name)
		}
		if id := PushBeginning(Hessian, []byte(text)); id != (ID{}) {
			t.Errorf("%s is about %v", name, id)
		}
	}
	whole := readHex(t, "hessian/zones")
	for n := 0; n < len(whole); n += 11 {
		if _, err := DecodePush(Hessian, false, whole[:n]); err == nil {
			t.Fatalf("cut at %d it is taken", n)
		}
		id := PushBeginning(Hessian, whole[:n])
		if id != (ID{}) && id.DataID != "demo.A:1.0@DEFAULT" {
			t.Fatalf("cut at %d it is about %v", n, id)
		}
		if n > 400 && (id.Group != "SOFA" || id.InstanceID != DefaultInstance) {
			t.Fatalf("cut at %d it is about %v", n, id)
		}
	}
	// A list of a long text, a hundred times by reference.
	var w hessianWriter
	w.object(0, ClassName(Hessian, ClassReceived), "dataId", "group", "data")
	w.text("d")
	w.text("g")
	w.b = append(w.b, "M\x01aV"...)
	w.object(1, ClassName(Hessian, "DataBox"), "data")
	w.text(strings.Repeat("a", 10000))
	for range 100 {
		w.b = append(w.b, 'J', 3)
	}
	w.b = append(w.b, "zz"...)
	if _, err := DecodePush(Hessian, false, w.b); !errors.Is(err, errRepeats) {
		t.Errorf("repetitions: %v", err)
	}
	p := Push{ID: ID{"d", "g", "i"}, Zones: map[string][]string{"z": {strings.Repeat("a", 10000)}}}
	if id := PushBeginning(Protobuf, EncodePush(Protobuf, &p)[:100]); id != p.ID {
		t.Errorf("a long Protobuf push is about %v", id)
	}
	for _, b := range [][]byte{{0x0b}, {0xff}, {0x0a, 0x7f}, {}, protoBytes(EncodePush(Protobuf, &p), 11, []byte("x")), protoText(EncodePush(Protobuf, &p), 10, "gzip")} {
		if _, err := DecodePush(Protobuf, false, b); err == nil {
			t.Errorf("%x is taken", b)
		}
	}
}

func FuzzFrame(f *testing.F) {
	seeds, err := filepath.Glob("testdata/frames/*.hex")
	if err != nil || len(seeds) == 0 {
		f.Fatal(err, len(seeds))
	}
	for _, s := range seeds {
		f.Add(readHex(f, "frames/"+strings.TrimSuffix(filepath.Base(s), ".hex")))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReader(bytes.NewReader(b))
		for {
			frame, err := ReadFrame(r, 1<<12)
			if err != nil {
				return
			}
			if len(frame.Content) > 1<<12 || frame.Whole < len(frame.Content) {
				t.Fatalf("%d of %d bytes", len(frame.Content), frame.Whole)
			}
			if frame.Whole == len(frame.Content) {
				again, err := ReadFrame(bufio.NewReader(bytes.NewReader(AppendFrame(nil, frame))), 1<<12)
				if err != nil || !reflect.DeepEqual(again, frame) {
					t.Fatalf("%+v became %+v, %v", frame, again, err)
				}
			}
			e, class := MessageOf(frame.Class)
			_, _ = decode(e, class, frame.Content) // it must not panic
			PushBeginning(e, frame.Content)
		}
	})
}

// FuzzPush: what is understood is understood in the same way when it is written again.
func FuzzPush(f *testing.F) {
	for _, folder := range []string{"hessian", "protobuf"} {
		seeds, err := filepath.Glob("testdata/" + folder + "/*.hex")
		if err != nil || len(seeds) == 0 {
			f.Fatal(err, len(seeds))
		}
		for _, s := range seeds {
			if b := readHex(f, folder+"/"+strings.TrimSuffix(filepath.Base(s), ".hex")); len(b) < 20000 {
				f.Add(folder == "protobuf", strings.Contains(s, "multi"), b)
			}
		}
	}
	f.Fuzz(func(t *testing.T, proto, multi bool, b []byte) {
		e := Hessian
		if proto {
			e = Protobuf
		}
		PushBeginning(e, b)
		pushes, err := DecodePush(e, multi, b)
		if err != nil {
			return
		}
		for _, p := range pushes {
			again, err := DecodePush(e, false, EncodePush(e, &p))
			if err != nil || len(again) != 1 {
				t.Fatalf("%+v: %v", p, err)
			}
			if got, want := fmt.Sprintf("%+v", again[0]), fmt.Sprintf("%+v", p); got != want {
				t.Fatalf("%s became %s", want, got)
			}
		}
	})
}
