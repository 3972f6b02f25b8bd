package xds

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/file"
	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/translate"
)

var update = flag.Bool("update", false, "write the golden files")

// asked is what a golden case asks for.
type asked struct {
	Subsets map[string][]struct {
		Name   string            `yaml:"name"`
		Labels map[string]string `yaml:"labels"`
		OrAll  bool              `yaml:"orAll"`
	} `yaml:"subsets"` // by host
	Names    []string `yaml:"names"`    // of clusters
	Lowers   bool     `yaml:"lowers"`   // providers' sidecars take HTTP/2
	Failover bool     `yaml:"failover"` // the nearest first
	From     struct {
		Region  string `yaml:"region"`
		Zone    string `yaml:"zone"`
		SubZone string `yaml:"subZone"`
	} `yaml:"from"` // where the sidecar is
}

// of makes Assignments of what a snapshot of services becomes.
func of(services []model.Service, subsets map[string][]Subset, lowers, failover bool) *Assignments {
	t := translate.Translate(&model.Snapshot{Services: services}, translate.Options{Lift: []translate.LiftSelector{{Interface: "*"}}})
	var out []Service
	for _, l := range t.Lifted {
		s := Service{Host: l.Host, Namespace: "vm", Failover: failover}
		for _, e := range l.Endpoints {
			s.Endpoints = append(s.Endpoints, Endpoint{Address: e.Address, Weight: e.Weight, Locality: e.Locality, Labels: e.Labels, Lowers: lowers})
		}
		out = append(out, s)
	}
	return NewAssignments(out, subsets)
}

// Each folder of testdata holds services.yaml, as the file registry reads it, asked.yaml, and want.json: what Envoy is sent for the
// names. go test -update writes want.json.
func TestGolden(t *testing.T) {
	cases, err := filepath.Glob("testdata/*/services.yaml")
	if err != nil || len(cases) < 4 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	for _, in := range cases {
		dir := filepath.Dir(in)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			text, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			services, err := file.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			if text, err = os.ReadFile(filepath.Join(dir, "asked.yaml")); err != nil {
				t.Fatal(err)
			}
			settings, err := adapters.ParseSettings(text)
			if err != nil {
				t.Fatal(err)
			}
			var q asked
			if err := settings.Decode(&q); err != nil {
				t.Fatal(err)
			}
			subsets := map[string][]Subset{}
			for host, list := range q.Subsets {
				for _, s := range list {
					subsets[host] = append(subsets[host], Subset(s))
				}
			}
			a := of(services, subsets, q.Lowers, q.Failover)
			got := map[string]json.RawMessage{}
			for _, name := range q.Names {
				r := a.Lookup(name, model.Locality(q.From))
				if r == nil {
					got[name] = json.RawMessage("null")
					continue
				}
				var c endpoint.ClusterLoadAssignment
				if err := r.Any.UnmarshalTo(&c); err != nil {
					t.Fatal(err)
				}
				if err := c.ValidateAll(); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if got[name], err = protojson.Marshal(&c); err != nil {
					t.Fatal(err)
				}
			}
			out, err := json.MarshalIndent(got, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, '\n')
			golden := filepath.Join(dir, "want.json")
			if *update {
				if err := os.WriteFile(golden, out, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(out, want) {
				t.Errorf("got\n%s\nwant\n%s", out, want)
			}
		})
	}
}

func TestClusterName(t *testing.T) {
	for s, want := range map[string]ClusterName{
		"outbound|20880||a.b":          {Host: "a.b", Port: 20880},
		"outbound|0|v1|a":              {Host: "a", Subset: "v1"},
		"outbound|65535|x.y-z|a.b.c":   {Host: "a.b.c", Subset: "x.y-z", Port: 65535},
		"outbound|65536||a":            {},
		"outbound|||a":                 {},
		"outbound|1||":                 {},
		"outbound|1|a":                 {},
		"outbound|1|a|b|c":             {},
		"outbound|-1||a":               {},
		"inbound|20880||a":             {},
		"outbound_.20880_._.a.b":       {},
		"outbound|1||" + long(maxName): {},
		"":                             {},
	} {
		got, ok := ParseClusterName(s)
		if got != want || ok != (want != ClusterName{}) {
			t.Errorf("%.40q: got %v %v", s, got, ok)
		}
		if ok && got.String() != s && s != "outbound|0|v1|a" {
			t.Errorf("%s is written as %s", s, got)
		}
	}
}

func long(n int) string { return strings.Repeat("a", n) }

// FuzzClusterName: whatever a sidecar asks for, a name that is read is written as it was.
func FuzzClusterName(f *testing.F) {
	for _, s := range []string{"outbound|20880||a.b", "outbound|20880|v1|a.b", "inbound|1||", "outbound|", "outbound|00080||a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, ok := ParseClusterName(s)
		if !ok {
			if n != (ClusterName{}) {
				t.Errorf("%q: %v without ok", s, n)
			}
			return
		}
		again, ok := ParseClusterName(n.String())
		if !ok || again != n {
			t.Errorf("%q is %v and then %v", s, n, again)
		}
	})
}
