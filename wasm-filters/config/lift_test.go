package config

import (
	"slices"
	"strings"
	"testing"
)

func TestLift(t *testing.T) {
	long := strings.Repeat("a", 64)
	for text, want := range map[string][]string{
		`{"lift":{},"lower":{}}`: nil,
		`{"lift":{"suffix":"mesh.example-1","hosts":[{"service":"a","host":"a"},{"service":"a","version":"1","host":"a"}],"attachments":["a","a-b","a.b"]}}`: nil,
		`{"lift":null,"lower":[]}`:                             {"lift: must be an object", "lower: must be an object"},
		`{"lift":{"mode":1},"lower":{"x":1}}`:                  {"lift.mode: unknown field", "lower.x: unknown field"},
		`{"lift":{"applications":{"in":["a"],"notIn":["b"]}}}`: {"lift.applications: has more than one of exact, prefix, regex, in and notIn"},
		`{"lift":{"virtualAddresses":"240.64.0.0/33"}}`:        {"lift.virtualAddresses: must be a network, such as 240.64.0.0/10"},
		`{"lift":{"suffix":".a"}}`:                             {"lift.suffix: must be a DNS name in lower case"},
		`{"lift":{"suffix":"A"}}`:                              {"lift.suffix: must be a DNS name in lower case"},
		`{"lift":{"suffix":"a."}}`:                             {"lift.suffix: must be a DNS name in lower case"},
		`{"lift":{"suffix":"` + long + `"}}`:                   {"lift.suffix: must be a DNS name in lower case"},
		`{"lift":{"hosts":[{"host":"a","port":1},{"service":"a"}]}}`: {"lift.hosts[0].port: unknown field", "lift.hosts[0].service: is missing",
			"lift.hosts[1].host: must be a DNS name in lower case"},
		`{"lift":{"hosts":[{"service":"a","group":"g","host":"a"},{"service":"a","group":"g","host":"b"}]}}`: {"lift.hosts[1]: is the service of an earlier host, too"},
		`{"lift":{"attachments":["","userId","userid","a b"]}}`:                                              {"lift.attachments[0]: must have 1 to 128 bytes", "lift.attachments[2]: becomes the same header as an earlier one"},
		`{"lower":{"behindHTTP":true}}`:                                                                      {"lower.behindHTTP: needs lift"},
		`{"lower":{"heartbeatMillis":3600001,"exceptionsFail":1}}`: {"lower.exceptionsFail: must be true or false",
			"lower.heartbeatMillis: must be from 1 to 3600000, or 0 for the default"},
	} {
		_, faults := Decode([]byte(text))
		var got []string
		for _, f := range faults {
			got = append(got, f.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%.120s\ngot  %q\nwant %q", text, got, want)
		}
	}
}

func TestHeaderOf(t *testing.T) {
	for in, want := range map[string]string{"userId": "userid", "x:y z": "x-y-z", "a_b.c-d": "a_b.c-d", "ü": "--"} {
		if got := HeaderOf(in); got != AttachmentHeader+want {
			t.Errorf("%q became %q", in, got)
		}
	}
}

// TestLiftDefaults: absent stays absent, and what is there gets its defaults without a change to the original.
func TestLiftDefaults(t *testing.T) {
	var p Plugin
	if d := p.WithDefaults(); d.Lift != nil || d.Lower != nil {
		t.Error("something is lifted")
	}
	p.Lift, p.Lower = &Lift{}, &Lower{}
	d := p.WithDefaults()
	if d.Lift.Suffix != DefaultSuffix || d.Lower.HeartbeatMillis != DefaultHeartbeatMillis || p.Lift.Suffix != "" || p.Lower.HeartbeatMillis != 0 {
		t.Errorf("%+v %+v", d.Lift, d.Lower)
	}
}
