package translate

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/file"
	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
)

// renderLift writes a translation, and below what of it goes to sidecars directly.
func renderLift(t *testing.T, tr *Translation) []byte {
	t.Helper()
	out := bytes.NewBuffer(render(t, tr))
	var services []map[string]any
	for _, l := range tr.Lifted {
		var endpoints []string
		for _, e := range l.Endpoints {
			endpoints = append(endpoints, fmt.Sprintf("%s weight %d locality %q labels %v", e.Address, e.Weight, locality(e.Locality), e.Labels)+strings.TrimRight(" "+e.Identity, " "))
		}
		services = append(services, map[string]any{"host": l.Host, "hashed": l.Hashed, "atProvider": l.AtProvider, "ports": l.Ports, "endpoints": endpoints})
		if l.Failover {
			services[len(services)-1]["failover"] = true
		}
	}
	e := yaml.NewEncoder(out)
	e.SetIndent(2)
	ports := map[string]any{"lifted": services, "liftedPorts": tr.LiftedPorts}
	for name, list := range map[string][]uint16{"providerPorts": tr.ProviderPorts, "mutualPorts": tr.MutualPorts} {
		if len(list) > 0 {
			ports[name] = list
		}
	}
	if err := e.Encode(ports); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Each folder of testdata/lift holds in.yaml, a list of services, select.yaml, which of them are to be lifted, and want.yaml.
// go test -update writes want.yaml.
func TestLiftGolden(t *testing.T) {
	cases, err := filepath.Glob("testdata/lift/*/in.yaml")
	if err != nil || len(cases) < 8 {
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
			if text, err = os.ReadFile(filepath.Join(dir, "select.yaml")); err != nil {
				t.Fatal(err)
			}
			settings, err := adapters.ParseSettings(text)
			if err != nil {
				t.Fatal(err)
			}
			var selection struct {
				Identities []struct {
					Application    string `yaml:"application"`
					ServiceAccount string `yaml:"serviceAccount"`
				} `yaml:"identities"`
				Services []struct {
					Framework   string `yaml:"framework"`
					Interface   string `yaml:"interface"`
					Application string `yaml:"application"`
					Port        uint16 `yaml:"port"`
					AtProvider  bool   `yaml:"atProvider"`
					HTTP        bool   `yaml:"http"`
					Failover    bool   `yaml:"failover"`
				} `yaml:"services"`
			}
			if err := settings.Decode(&selection); err != nil {
				t.Fatal(err)
			}
			options := Options{Namespace: "vm"}
			for _, s := range selection.Services {
				options.Lift = append(options.Lift, LiftSelector(s))
			}
			for _, x := range selection.Identities {
				options.Identities = append(options.Identities, Identity(x))
			}
			got := renderLift(t, Translate(&model.Snapshot{Services: services}, options))
			shuffled := slices.Clone(services)
			rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
			tr := Translate(&model.Snapshot{Services: shuffled}, options)
			slices.SortFunc(tr.Lifted, func(a, b *Lifted) int { return slices.Compare([]string{a.Key.String()}, []string{b.Key.String()}) })
			if again := renderLift(t, tr); !bytes.Equal(got, again) {
				t.Errorf("in another order it is\n%s", again)
			}
			golden := filepath.Join(dir, "want.yaml")
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// Whatever is selected: no endpoint is lost, a port has one kind of listener, and a lifted service's endpoints are known to their own
// sidecars.
func TestLiftHolds(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	lifted := 0
	for range 400 {
		services := random(r, 2+r.IntN(8))
		o := Options{}
		for range 1 + r.IntN(2) {
			o.Lift = append(o.Lift, LiftSelector{Framework: []string{"", "dubbo", "sofa"}[r.IntN(3)], Interface: []string{"*", "demo.Service1", "demo.S*"}[r.IntN(3)], Port: []uint16{0, 20880}[r.IntN(2)]})
		}
		tr := Translate(&model.Snapshot{Services: services}, o)
		lifted += len(tr.Lifted)
		known := map[string]bool{} // ip:port
		for _, entry := range tr.Set().OfType(resource.TypeServiceEntry) {
			se := entry.Body.(*networking.ServiceEntry)
			hidden := slices.Contains(se.ExportTo, exportToNobody)
			for _, p := range se.Ports {
				for _, e := range se.Endpoints {
					if hidden {
						known[fmt.Sprint(e.Address, ":", p.Number)] = true
					}
				}
				kind := p.Protocol
				if hidden {
					continue
				}
				if kind != "TCP" {
					kind = "HTTP"
				}
				if slices.Contains(tr.LiftedPorts, uint16(p.Number)) && kind == "TCP" {
					t.Fatalf("%s passes bytes on the lifted port %d", se.Hosts[0], p.Number)
				}
			}
		}
		for _, l := range tr.Lifted {
			for _, e := range l.Endpoints {
				if !known[e.Address.String()] {
					t.Fatalf("the sidecar of %s does not know that it is a provider of %s", e.Address, l.Host)
				}
			}
			for _, p := range l.Ports {
				if slices.Contains(tr.TCPPorts, p) || !slices.Contains(tr.LiftedPorts, p) {
					t.Fatalf("%s is lifted on port %d; lifted are %d, passed through %d", l.Host, p, tr.LiftedPorts, tr.TCPPorts)
				}
			}
		}
		for i, s := range tr.Services {
			if s.Lifted != slices.ContainsFunc(tr.Lifted, func(l *Lifted) bool { return l.Host == s.Host && len(l.Endpoints) == s.Carried }) {
				t.Fatalf("service %d: %+v", i, s)
			}
		}
	}
	if lifted < 100 {
		t.Errorf("only %d services were lifted: the test says little", lifted)
	}
}
