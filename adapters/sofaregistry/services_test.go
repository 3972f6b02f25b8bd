package sofaregistry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/adapters/adapterstest"
	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/adapters/registryurl"
	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session"
	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session/sessiontest"
	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session/wire"
)

func TestReadID(t *testing.T) {
	for text, want := range map[string]string{
		"demo.A:1.0@DEFAULT":      "sofa/demo.A:1.0 bolt",
		"demo.A:2.0:blue@DEFAULT": "sofa/demo.A:2.0:blue bolt",
		"demo.A:2.0:a:b@rest":     "sofa/demo.A:2.0:a:b rest",
		"demo.A@DEFAULT":          "sofa/demo.A:1.0 bolt",
		"demo.A:@H2C":             "sofa/demo.A:1.0 h2c",
		"a@b:1.0@tri":             "sofa/a@b:1.0 tri",
		"demo.A:1.0":              "",
		"demo.A:1.0@":             "",
		"demo.A:1.0@a b":          "",
		"@DEFAULT":                "",
		":1.0@DEFAULT":            "",
		"a b:1.0@DEFAULT":         "",
		"a/b:1.0@DEFAULT":         "",
		"a:1 0@DEFAULT":           "",
		"a:1.0:\x00@DEFAULT":      "",
		"":                        "",
	} {
		s, err := readID(session.ID{DataID: text, Group: "SOFA", InstanceID: wire.DefaultInstance})
		got := ""
		if err == nil {
			got = s.key.String() + " " + s.protocol
		}
		if got != want {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
	}
	// ZooKeeper's adapter makes its keys in the same way, so that a service in both is one.
	s, err := readID(sessiontest.IDOf("demo.A", "1.0", "blue"))
	if err != nil || s.key != registryurl.SOFAKey("demo.A", "", "blue") {
		t.Errorf("%v, %v", s.key, err)
	}
}

func TestAddData(t *testing.T) {
	weight := func(n uint32) *uint32 { return &n }
	for name, c := range map[string]struct {
		dataID string
		data   string
		want   model.Endpoint
		code   string
	}{
		"SOFARPC 5.13": {"", "192.0.2.1:12200?rpcVer=51302&serialization=hessian2&weight=37&timeout=3000&appName=a&p=1&v=4.0&_SERIALIZETYPE=hessian2&_WEIGHT=37&_TIMEOUT=3000&app_name=a&label.version=v2&startTime=1795571761323",
			model.Endpoint{Address: "192.0.2.1", Port: 12200, Protocol: "bolt", Application: "a", Weight: weight(37), Labels: map[string]string{"version": "v2"},
				Metadata: map[string]string{"rpcVer": "51302", "serialization": "hessian2", "timeout": "3000", "startTime": "1795571761323"}}, ""},
		"old names only": {"", "192.0.2.1:12200?_TIMEOUT=3000&p=13&_SERIALIZETYPE=4&_WEIGHT=5&self_app_name=a&v=4.0&_WARMUPTIME=60000&_WARMUPWEIGHT=1&zone=DEFAULT_ZONE",
			model.Endpoint{Address: "192.0.2.1", Port: 12200, Protocol: "tr", Application: "a", Weight: weight(5),
				Metadata: map[string]string{"serialization": "4", "timeout": "3000", "warmupTime": "60000", "warmupWeight": "1"}}, ""},
		"URL":                 {"", "Bolt://192.0.2.1:1/demo.A?weight=-3", model.Endpoint{Address: "192.0.2.1", Port: 1, Protocol: "bolt", Weight: weight(0)}, ""},
		"URL, another":        {"", "dubbo://192.0.2.1:1?p=1", model.Endpoint{Address: "192.0.2.1", Port: 1, Protocol: "dubbo"}, ""},
		"rest":                {"demo.A:1.0@rest", "192.0.2.1:8341/ctx?a=b", model.Endpoint{Address: "192.0.2.1", Port: 8341, Protocol: "rest", Metadata: map[string]string{"a": "b"}}, ""},
		"triple":              {"demo.A:1.0@tri", "192.0.2.1:50051?p=", model.Endpoint{Address: "192.0.2.1", Port: 50051, Protocol: "tri"}, ""},
		"p is a name":         {"", "192.0.2.1:1?p=h2c", model.Endpoint{Address: "192.0.2.1", Port: 1, Protocol: "h2c"}, ""},
		"p is unknown":        {"", "192.0.2.1:1?p=77", model.Endpoint{Address: "192.0.2.1", Port: 1, Protocol: "bolt"}, ""},
		"v6":                  {"", "[2001:db8::1]:1?", model.Endpoint{Address: "2001:db8::1", Port: 1, Protocol: "bolt"}, ""},
		"host name":           {"", "provider.example.org:1", model.Endpoint{Address: "provider.example.org", Port: 1, Protocol: "bolt"}, ""},
		"disabled":            {"", "192.0.2.1:1?disabled=true", model.Endpoint{Address: "192.0.2.1", Port: 1, Protocol: "bolt", Disabled: true}, ""},
		"not enabled":         {"", "192.0.2.1:1?enabled=false", model.Endpoint{Address: "192.0.2.1", Port: 1, Protocol: "bolt", Disabled: true}, ""},
		"a URL in a value":    {"", "192.0.2.1:1?cb=http://x/", model.Endpoint{Address: "192.0.2.1", Port: 1, Protocol: "bolt", Metadata: map[string]string{"cb": "http://x/"}}, ""},
		"secret":              {"", "192.0.2.1:1?token=t", model.Endpoint{Address: "192.0.2.1", Port: 1, Protocol: "bolt", Metadata: map[string]string{"token": "(hidden)"}}, ""},
		"weight is no number": {"", "192.0.2.1:1?weight=x", model.Endpoint{Address: "192.0.2.1", Port: 1, Protocol: "bolt"}, "MalformedParameter"},
		"no port":             {"", "192.0.2.1?weight=1", model.Endpoint{}, "MissingAddress"},
		"empty":               {"", "", model.Endpoint{}, "MissingAddress"},
		"any address":         {"", "0.0.0.0:1", model.Endpoint{}, "UnusableAddress"},
		"garbage":             {"", "\x00\xff", model.Endpoint{}, "MalformedURL"},
		"bad port":            {"", "192.0.2.1:66000", model.Endpoint{}, "MalformedURL"},
		"long":                {"", strings.Repeat("a", registryurl.MaxLength+1), model.Endpoint{}, "MalformedURL"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.dataID == "" {
				c.dataID = "demo.A:1.0@DEFAULT"
			}
			id := session.ID{DataID: c.dataID, Group: "SOFA", InstanceID: wire.DefaultInstance}
			s, err := readID(id)
			if err != nil {
				t.Fatal(err)
			}
			p := &providers{id: id, service: s, endpoints: map[endpointID]born{}}
			p.addData(defaultDataCenter, defaultZone, c.data)
			got := model.Endpoint{}
			for _, e := range sorted(p.endpoints) {
				got = e
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got\n%+v, want\n%+v", got, c.want)
			}
			code := ""
			if len(p.problems) > 0 {
				code = p.problems[0].Code
				if p.problems[0].Place != id.String() {
					t.Errorf("the problem is at %q", p.problems[0].Place)
				}
			}
			if code != c.code {
				t.Errorf("problems %+v, want %q", p.problems, c.code)
			}
		})
	}
}

// TestYoungest: a provider that was restarted and is there twice counts once, as the younger one, whatever the order.
func TestYoungest(t *testing.T) {
	old, young := "192.0.2.1:1?weight=1&startTime=1000", "192.0.2.1:1?weight=2&startTime=2000"
	for _, texts := range [][]string{{old, young}, {young, old}} {
		p := &providers{service: service{protocol: "bolt"}, endpoints: map[endpointID]born{}}
		p.add(&session.Push{Zones: map[string][]string{"z": texts}})
		if e := sorted(p.endpoints); len(e) != 1 || *e[0].Weight != 2 {
			t.Errorf("%q: %+v", texts, e)
		}
	}
}

// FuzzData: whatever an id and its publishers say, what comes out is a valid group, and the same in any order.
func FuzzData(f *testing.F) {
	f.Add("demo.A:1.0@DEFAULT", "SOFA", "DEFAULT_ZONE", "192.0.2.1:12200?rpcVer=51302&weight=100&appName=a&p=1&_WEIGHT=100&startTime=1", "bolt://192.0.2.2:1?token=x")
	f.Add("demo.A:1.0:u@rest", "G", "GZ", "[2001:db8::1]:1/ctx?p=13&zone=a&region=b", "a\x00b:1")
	f.Add("odd#@#@h2c", "x", "", "0.0.0.0:1", "192.0.2.1:1?weight=x&label.=y&label.version=v")
	f.Fuzz(func(t *testing.T, dataID, group, zone, a, b string) {
		id := session.ID{DataID: dataID, Group: group, InstanceID: wire.DefaultInstance}
		s, err := readID(id)
		if err != nil {
			return
		}
		if s.key.Interface == "" || !isProtocol(s.protocol) {
			t.Fatalf("%+v", s)
		}
		read := func(texts ...string) []byte {
			p := &providers{id: id, service: s, labels: []string{"cell"}, endpoints: map[endpointID]born{}}
			p.add(&session.Push{Segment: "dc", Zones: map[string][]string{zone: texts, defaultZone: texts}})
			g := model.Group{Source: "x", Problems: sortedProblems(p.problems)}
			if e := sorted(p.endpoints); len(e) > 0 {
				g.Services = []model.Service{{Key: s.key, Endpoints: e}}
			}
			if err := adapterstest.CheckGroup(g); err != nil {
				t.Fatal(err)
			}
			text, err := json.Marshal(g)
			if err != nil {
				t.Fatal(err)
			}
			return text
		}
		if one, two := read(a, b), read(b, a); !bytes.Equal(one, two) {
			t.Fatalf("%s\n%s", one, two)
		}
	})
}

// FuzzSubscribers: what a page says of subscribers becomes valid consumers.
func FuzzSubscribers(f *testing.F) {
	f.Add("192.0.2.1", "shop", "::1", "")
	f.Add("", "a\x00", "not an address", "x")
	f.Fuzz(func(t *testing.T, address, application, other, another string) {
		list := distinct([]subscriber{{address: address, application: application}, {address: other, application: another}, {address: address, application: another}})
		c := consumers(map[string][]subscriber{"a": list, "b": list})
		if len(c) > 3 {
			t.Fatal(fmt.Sprint(c))
		}
		if err := adapterstest.CheckGroup(model.Group{Source: "x", Services: []model.Service{{Key: model.Key{Framework: "sofa", Interface: "a"}, Consumers: c}}}); err != nil {
			t.Fatal(err)
		}
	})
}
