package governance

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/isthmus-mesh/isthmus/adapters/model"
)

// Each case has a golden file, testdata/lift/CASE.yaml, which go test -update writes.
func TestLift(t *testing.T) {
	greet := LiftedHost{Key: model.Key{Framework: "dubbo", Interface: "demo.Greet"}, Host: "demo.greet.dubbo.isthmus"}
	long := LiftedHost{Key: model.Key{Framework: "dubbo", Interface: "demo.Long", Version: "1.0.0", Group: "g"}, Host: "2---abc.dubbo.isthmus", Hashed: true}
	for name, o := range map[string]LiftOptions{
		"plain": {Hosts: []LiftedHost{greet}, Ports: []uint16{20880, 20881}, XDS: XDS{Host: "10.0.0.5", Port: 15992}},
		"everything": {Hosts: []LiftedHost{greet, long}, Ports: []uint16{20880}, Suffix: "legacy", Attachments: []string{"tenant"},
			XDS: XDS{Host: "isthmus.example.org", Port: 443, CAFile: "/etc/isthmus/ca.pem", CertFile: "/etc/isthmus/cert.pem", KeyFile: "/etc/isthmus/key.pem", ServerName: "10.0.0.5", Token: "secret"}},
		"nothing":   {Ports: nil, XDS: XDS{Host: "10.0.0.5", Port: 15992}},
		"no-filter": {Hosts: []LiftedHost{greet}, Ports: []uint16{20880}, XDS: XDS{Host: "10.0.0.5", Port: 15992}},
	} {
		t.Run(name, func(t *testing.T) {
			options := options
			if name == "no-filter" {
				options.URL = ""
			}
			c := Compile(nil, nil, options)
			set, problems := Lift(&c, o, options)
			var got bytes.Buffer
			e := yaml.NewEncoder(&got)
			e.SetIndent(2)
			for entry := range set.All() {
				o, err := entry.Object()
				if err != nil {
					t.Fatal(err)
				}
				if err := e.Encode(o); err != nil {
					t.Fatal(err)
				}
			}
			if err := e.Encode(map[string]any{"problems": lines(problems)}); err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", "lift", name+".yaml")
			if *update {
				if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), want) {
				t.Errorf("got\n%s\nwant\n%s", got.Bytes(), want)
			}
		})
	}
}
