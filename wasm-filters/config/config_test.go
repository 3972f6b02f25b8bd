package config

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// full has every field set.
var full = Plugin{
	Generation: "g-1.2_3", Protocols: []string{"bolt", "dubbo"},
	Limits:  Limits{MaxFrameBytes: 1 << 20, Oversize: ActionClose, Garbage: ActionPass, MaxInspectBytes: 8192, MaxInFlight: 7, CallTimeoutMillis: 9},
	Metrics: Metrics{MaxServices: 1, MaxMethods: 2, MaxCallers: 3, MaxSeries: 4},
	Throttle: []Throttle{{
		Name: "ns/a", Mode: ModeObserve, Disabled: true, Threshold: 4294967295, IntervalMillis: 86400000, Burst: 2,
		Target: Target{
			Application: Match{Exact: "a"}, Direction: "client", Service: Match{Prefix: "demo."}, Version: Match{Exact: "1"},
			Group: Match{Exact: "g"}, Method: Match{Prefix: "get"}, Caller: Match{Exact: "\u00fc \"\\\t\U0001F600"},
		},
	}, {Name: "ns/b"}},
}

// TestEveryField holds the reader to the types: what encoding/json writes, it reads, field for field.
func TestEveryField(t *testing.T) {
	text, err := json.Marshal(full)
	if err != nil {
		t.Fatal(err)
	}
	got, faults := Decode(text)
	if faults != nil {
		t.Fatal(faults)
	}
	if !reflect.DeepEqual(*got, full) {
		t.Errorf("read  %+v\nwrote %+v", *got, full)
	}
	var zero func(v reflect.Value, path string)
	zero = func(v reflect.Value, path string) {
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				zero(v.Field(i), path+"."+v.Type().Field(i).Name)
			}
		case reflect.Slice:
			if v.Len() == 0 {
				t.Errorf("%s is not set in this test", path)
				return
			}
			zero(v.Index(0), path+"[0]")
		default:
			// Of a Match only one may be set.
			if v.IsZero() && !strings.HasSuffix(path, ".Exact") && !strings.HasSuffix(path, ".Prefix") {
				t.Errorf("%s is not set in this test", path)
			}
		}
	}
	zero(reflect.ValueOf(full), "")
}

func TestDecode(t *testing.T) {
	for _, c := range []struct {
		text   string
		faults []string
	}{
		{``, nil},
		{" \n\t", nil},
		{`{}`, nil},
		{`{"throttle":[]}`, nil},
		{`{"limits":{"maxInFlight":1e2}}`, nil},
		{`{"limits":{"maxInFlight":1.0e+2}}`, nil},
		{`{"limits":{"maxInFlight":100.000}}`, nil},
		{`{"limits":{"maxInFlight":1000e-1}}`, nil},
		{`{"throttle":[{"name":"a","threshold":4294967295},{"name":"b","threshold":0}]}`, nil},
		{`[]`, []string{"must be an object"}},
		{`null`, []string{"must be an object"}},
		{`{`, []string{"expected a field's name at offset 1"}},
		{`{}x`, []string{"expected the end at offset 2"}},
		{`{"a":1}`, []string{"a: unknown field"}},
		{`{"a":[{"b":null,"c":[]},true,-1.5e3,"x"],"generation":"g"}`, []string{"a: unknown field"}},
		{`{"Generation":"g"}`, []string{"Generation: unknown field"}},
		{`{"generation":"g","generation":"h"}`, []string{"generation: stands twice"}},
		{`{"generation":null}`, []string{"generation: must be a string"}},
		{`{"generation":7,"limits":[],"protocols":"bolt","throttle":{}}`, []string{
			"generation: must be a string", "limits: must be an object", "protocols: must be a list", "throttle: must be a list"}},
		{`{"protocols":["http","bolt","bolt"]}`, []string{"protocols[0]: must be one of dubbo, bolt", "protocols[2]: stands twice"}},
		{`{"generation":"a b"}`, []string{"generation: must be at most 64 of A-Z a-z 0-9 . _ -"}},
		{`{"limits":{"maxFrameBytes":10,"oversize":"drop","garbage":"x","maxInspectBytes":2000000,"maxInFlight":65537,"callTimeoutMillis":3600001}}`, []string{
			"limits.maxFrameBytes: must be from 1024 to 1073741824, or 0 for the default",
			"limits.oversize: must be one of pass, close", "limits.garbage: must be one of pass, close",
			"limits.maxInspectBytes: must be from 4096 to 1048576, or 0 for the default",
			"limits.maxInFlight: must be from 1 to 65536, or 0 for the default",
			"limits.callTimeoutMillis: must be from 1 to 3600000, or 0 for the default"}},
		{`{"limits":{"maxInFlight":-1}}`, []string{"limits.maxInFlight: must be an integer from 0 to 4294967295"}},
		{`{"limits":{"maxInFlight":1.5}}`, []string{"limits.maxInFlight: must be an integer from 0 to 4294967295"}},
		{`{"limits":{"maxInFlight":4294967296}}`, []string{"limits.maxInFlight: must be an integer from 0 to 4294967295"}},
		{`{"limits":{"maxInFlight":1e400}}`, []string{"limits.maxInFlight: must be an integer from 0 to 4294967295"}},
		{`{"limits":{"maxInFlight":100000000000000000000000000000000}}`, []string{"limits.maxInFlight: must be an integer from 0 to 4294967295"}},
		{`{"limits":{"maxInFlight":"1"}}`, []string{"limits.maxInFlight: must be a number"}},
		{`{"limits":{"maxInFlight":01}}`, []string{"limits.maxInFlight: number with a leading zero at offset 26"}},
		{`{"throttle":[{"name":"a"}]}`, []string{"throttle[0]: threshold is missing"}},
		{`{"throttle":[{"threshold":1},{"name":"a b","threshold":1},{"name":"x","threshold":1},{"name":"x","threshold":1}]}`, []string{
			"throttle[0].name: is missing", "throttle[1].name: must be at most 507 of A-Z a-z 0-9 . _ - /", "throttle[3].name: is the name of an earlier rule, too"}},
		{`{"throttle":[{"name":"a","threshold":1,"mode":"log","intervalMillis":86400001,"disabled":1,
			"target":{"direction":"in","service":{"exact":"a","prefix":"b"},"method":"x","colour":{"exact":"red"}}}]}`, []string{
			"throttle[0].disabled: must be true or false", "throttle[0].target.method: must be an object", "throttle[0].target.colour: unknown field",
			"throttle[0].target.direction: must be one of client, server", "throttle[0].target.service: has both exact and prefix",
			"throttle[0].mode: must be one of intercept, observe", "throttle[0].intervalMillis: must be from 1 to 86400000, or 0 for the default"}},
		{"{\"generation\":\"a\nb\"}", []string{"generation: control character in a string at offset 16"}},
		{"{\"generation\":\"\xff\"}", []string{"generation: string is not UTF-8 at offset 16"}},
		{`{"generation":"\ud800"}`, []string{`generation: half of a surrogate pair at offset 21`}},
		{`{"generation":"\x"}`, []string{`generation: unknown escape in a string at offset 17`}},
		{`{"\u0000\u00e9":1}`, []string{"???: unknown field"}},
		{`{"a":` + strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000) + `}`, []string{"a: unknown field", "a: nested too deeply at offset 21"}},
	} {
		_, faults := Decode([]byte(c.text))
		var got []string
		for _, f := range faults {
			got = append(got, f.String())
		}
		if !slices.Equal(got, c.faults) {
			t.Errorf("%.120s\ngot  %q\nwant %q", c.text, got, c.faults)
		}
	}
}

// TestTruncated: no beginning of a configuration is a configuration.
func TestTruncated(t *testing.T) {
	text := []byte(`{"generation":"\u0061\ud83d\ude00\"","protocols":["bolt"],"limits":{"maxInFlight":1.50e1},"throttle":[{"disabled":true,"x":[false,null,{"a":-1}]}]}`)
	for i := 1; i < len(text); i++ {
		if _, faults := Decode(text[:i]); len(faults) == 0 {
			t.Errorf("%s: no fault", text[:i])
		}
	}
	for i := range text {
		for _, c := range []byte("x\"\\{}[],:0-u\x00\xff") {
			broken := slices.Clone(text)
			broken[i] = c
			Decode(broken) // must not panic
		}
	}
}

func TestFaultsError(t *testing.T) {
	fs := Faults{{Path: "a.b", Message: "is missing"}, {Message: "must be an object"}}
	if got, want := fs.Error(), "config: a.b: is missing; must be an object"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestBounds(t *testing.T) {
	for name, text := range map[string]string{
		"faults": `{` + strings.TrimSuffix(strings.Repeat(`"a":1,`, 100_000), ",") + `}`,
		"rules":  `{"throttle":[` + strings.TrimSuffix(strings.Repeat(`{},`, 100_000), ",") + `]}`,
	} {
		if p, faults := Decode([]byte(text)); len(faults) == 0 || len(faults) > 2*maxFaults+2 || len(p.Throttle) > MaxRules {
			t.Errorf("%s: %d faults, %d rules", name, len(faults), len(p.Throttle))
		}
	}
	if _, faults := Decode(make([]byte, maxBytes+1)); len(faults) != 1 {
		t.Error(faults)
	}
}

func TestWithDefaults(t *testing.T) {
	p := Plugin{Throttle: []Throttle{{Name: "a", Threshold: 5}, {Name: "b", Threshold: 0, Mode: ModeObserve, Burst: 3}}}
	d := p.WithDefaults()
	want := Plugin{
		Protocols: Protocols,
		Limits:    Limits{8 << 20, ActionPass, ActionPass, 64 << 10, 4096, 60_000},
		Metrics:   Metrics{200, 1000, 100, 2000},
		Throttle: []Throttle{{Name: "a", Threshold: 5, Mode: ModeIntercept, IntervalMillis: 1000, Burst: 5},
			{Name: "b", Mode: ModeObserve, IntervalMillis: 1000, Burst: 3}},
	}
	if !reflect.DeepEqual(d, want) {
		t.Errorf("got %+v\nwant %+v", d, want)
	}
	if p.Throttle[0].Burst != 0 {
		t.Error("the original changed")
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		m    Match
		s    string
		want bool
	}{
		{Match{}, "", true}, {Match{}, "x", true}, {Match{Exact: "x"}, "x", true}, {Match{Exact: "x"}, "xy", false}, {Match{Exact: "x"}, "", false},
		{Match{Prefix: "x"}, "xy", true}, {Match{Prefix: "x"}, "y", false}, {Match{Prefix: "x"}, "", false},
	} {
		if c.m.Matches([]byte(c.s)) != c.want {
			t.Errorf("%+v of %q is not %v", c.m, c.s, c.want)
		}
	}
}

// TestStatTags: Istio's expression for a tag is (NAME=\.=(.*?);\.;), not anchored in front. So no name may be the end of another.
func TestStatTags(t *testing.T) {
	for i, a := range StatTags {
		for j, b := range StatTags {
			if i != j && strings.HasSuffix(b, a) {
				t.Errorf("%q would also be taken from %q", a, b)
			}
		}
	}
}

// FuzzDecode holds the reader to encoding/json: what it takes, encoding/json takes too and means the same by it. (The other way
// round it is stricter by design.)
func FuzzDecode(f *testing.F) {
	text, err := json.Marshal(full)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"limits":{"maxInFlight":1e2},"generation":"\u0061\n"}`))
	f.Add([]byte(`{"a":[{"b":null,"c":[]},true,-1.5e3,"x"]}`))
	f.Add([]byte(`{"throttle":[{"name":"a","threshold":1}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, faults := Decode(text)
		if got == nil {
			t.Fatal("no configuration")
		}
		if len(faults) > 0 || len(bytes.TrimSpace(text)) == 0 {
			return
		}
		dec := json.NewDecoder(bytes.NewReader(text))
		dec.DisallowUnknownFields()
		var want Plugin
		if err := dec.Decode(&want); err != nil {
			if strings.Contains(err.Error(), "into Go struct field") && strings.Contains(err.Error(), "number ") {
				return // an integer with an exponent or a fraction
			}
			t.Fatalf("taken, but encoding/json says %v", err)
		}
		// A list that is there and empty is nil here and not there: no difference to the filter.
		if got.Protocols == nil && len(want.Protocols) == 0 {
			want.Protocols = nil
		}
		if got.Throttle == nil && len(want.Throttle) == 0 {
			want.Throttle = nil
		}
		if !reflect.DeepEqual(*got, want) {
			t.Fatalf("read %+v, encoding/json %+v", *got, want)
		}
	})
}
