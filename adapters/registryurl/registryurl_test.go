package registryurl

import (
	"reflect"
	"strings"
	"testing"
)

// normal makes no parameters the same as an empty set of them.
func normal(u URL) URL {
	if len(u.Params) == 0 {
		u.Params = nil
	}
	return u
}

func TestParse(t *testing.T) {
	for name, c := range map[string]struct {
		text     string
		provider bool
		want     URL
		err      error
	}{
		"plain":              {"dubbo://192.0.2.1:20880/demo.Greet?a=1&b=x=y&c&=z", true, URL{"dubbo", "192.0.2.1", 20880, "demo.Greet", map[string]string{"a": "1", "b": "x=y", "c": ""}}, nil},
		"no path":            {"bolt://192.0.2.1:12200?version=1.0", true, URL{"bolt", "192.0.2.1", 12200, "", map[string]string{"version": "1.0"}}, nil},
		"v6":                 {"dubbo://2001:db8::1:20880/x", true, URL{"dubbo", "2001:db8::1", 20880, "x", nil}, nil},
		"v6 consumer":        {"consumer://2001:db8::1/x", false, URL{"consumer", "2001:db8::1", 0, "x", nil}, nil},
		"v6 in brackets":     {"dubbo://[2001:DB8:0::1]:20880/x", true, URL{"dubbo", "2001:db8::1", 20880, "x", nil}, nil},
		"v6 without port":    {"dubbo://[2001:db8::1]/x", true, URL{"dubbo", "2001:db8::1", 0, "x", nil}, nil},
		"mapped v4":          {"dubbo://[::ffff:192.0.2.1]:1/x", true, URL{"dubbo", "192.0.2.1", 1, "x", nil}, nil},
		"credentials":        {"dubbo://u:p@h:1/x", true, URL{"dubbo", "h", 1, "x", nil}, nil},
		"no host":            {"empty:///x", true, URL{"empty", "", 0, "x", nil}, nil},
		"default":            {"dubbo://h:1?default.weight=3&default.tag=a&tag=b", true, URL{"dubbo", "h", 1, "", map[string]string{"default.weight": "3", "weight": "3", "default.tag": "a", "tag": "b"}}, nil},
		"no protocol":        {"192.0.2.1:1", true, URL{}, errNoProtocol},
		"empty protocol":     {"://192.0.2.1:1", true, URL{}, errNoProtocol},
		"odd protocol":       {"du bbo://192.0.2.1:1", true, URL{}, errProtocol},
		"protocol in params": {"x?a=dubbo://h:1", true, URL{}, errNoProtocol},
		"port 0 is none":     {"dubbo://h:0", true, URL{Protocol: "dubbo", Host: "h"}, nil},
		"big port":           {"dubbo://h:65536", true, URL{}, errPort},
		"negative port":      {"dubbo://h:-1", true, URL{}, errPort},
		"empty port":         {"dubbo://h:", true, URL{}, errPort},
		"brackets":           {"dubbo://[h]:1", true, URL{}, errHost},
		"open bracket":       {"dubbo://[2001:db8::1:1", true, URL{}, errHost},
		"control":            {"dubbo://h:1?a=\x01", true, URL{}, errControl},
		"not UTF-8":          {"dubbo://h:1?a=\xff", true, URL{}, errUTF8},
		"many parameters":    {"dubbo://h:1?" + strings.Repeat("a&", 600), true, URL{}, errParams},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Parse(c.text, c.provider)
			if err != c.err {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if err == nil && !reflect.DeepEqual(normal(got), normal(c.want)) {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
	if _, err := ParseName(strings.Repeat("a", MaxLength+1), true); err != errLong {
		t.Errorf("a long name: %v", err)
	}
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"dubbo%3A%2F%2Fh%3A1%2Fx%3Fa%3D1%26token%3Df00%26b%3D2":  "dubbo%3A%2F%2Fh%3A1%2Fx%3Fa%3D1%26token%3D(hidden)%26b%3D2",
		"dubbo%3A%2F%2Fu%3Apw%40h%3A1%2Fx%3Faccess.password%3Dp": "dubbo%3A%2F%2F(hidden)%40h%3A1%2Fx%3Faccess.password%3D(hidden)",
		"dubbo://u:pw@h:1/x?a=1&secretKey=k":                     "dubbo://(hidden)@h:1/x?a=1&secretKey=(hidden)",
		"garbage%":                                               "garbage%",
		"":                                                       "",
		"dubbo%3A%2F%2Fh%3A1%2Fx%3Fa%3Dmail%40example.org%26token%3D": "dubbo%3A%2F%2Fh%3A1%2Fx%3Fa%3Dmail%40example.org%26token%3D(hidden)",
	} {
		if got := Redact(in); got != want {
			t.Errorf("%s became %s, want %s", in, got, want)
		}
	}
}

// FuzzParse checks that what was understood is understood again when it is written out in full, and that nothing panics.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"dubbo%3A%2F%2F192.0.2.1%3A20880%2Fdemo.Greet%3Fversion%3D1.0.0%26token%3Dx",
		"bolt://192.0.2.1:12200?version=1.0&uniqueId=&appName=a&weight=100",
		"dubbo://[2001:db8::1]:20880/x?default.weight=3",
		"tr://u:p@h:1/x?access.password=p",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		Redact(name)
		for _, wantPort := range []bool{true, false} {
			u, err := ParseName(name, wantPort)
			if err != nil {
				continue
			}
			back, err := Parse(u.Outline(), strings.Contains(u.Host, ":") || wantPort)
			if err != nil || back.Host != u.Host || back.Port != u.Port || back.Protocol != u.Protocol {
				t.Fatalf("%+v became %+v, %v", u, back, err)
			}
			for k, v := range Metadata(u, Labels(u, nil)) {
				if Secret(k) && v != hidden {
					t.Fatalf("%s is shown", k)
				}
			}
		}
	})
}
