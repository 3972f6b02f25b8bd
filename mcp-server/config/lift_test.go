package config

import (
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/builtin"
)

const head = "apiVersion: isthmus.io/v1alpha1\nkind: MCPServer\nspec:\n"

func TestLift(t *testing.T) {
	for name, c := range map[string]struct {
		text, listen, host string
		port               uint16
	}{
		"nothing":     {"  mesh: {namespace: vm}\n", "", "", 0},
		"only listen": {"  xds: {address: \"0.0.0.0:1\"}\n", "0.0.0.0:1", "0.0.0.0", 1},
		"default":     {"  mesh: {lift: {services: [{framework: dubbo}]}}\n", DefaultXDSAddress, "127.0.0.1", 15992},
		"advertise": {"  mesh: {lift: {services: [{interface: \"demo.*\", port: 20880, application: shop}], attachments: [tenant]}}\n" +
			"  xds: {address: \":15992\", advertise: \"isthmus.example.org:443\"}\n", ":15992", "isthmus.example.org", 443},
		"TLS": {"  mesh: {lift: {services: [{framework: dubbo}]}}\n  xds: {address: \"10.0.0.1:5\", tls: {certFile: a, keyFile: b, clientCAFile: c}, token: {file: t}, " +
			"sidecars: {caFile: /a, certFile: /b, keyFile: /c, serverName: d}}\n", "10.0.0.1:5", "10.0.0.1", 5},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := Parse([]byte(head+c.text), builtin.Kinds)
			if err != nil {
				t.Fatal(err)
			}
			host, port := cfg.Spec.Advertised()
			if got := cfg.Spec.Listen(); got != c.listen || host != c.host || port != c.port {
				t.Errorf("listens at %q and is at %s:%d", got, host, port)
			}
		})
	}
}

func TestLiftFaults(t *testing.T) {
	text := head + `  mesh:
    lift:
      callers: [{mode: lift}, {application: "a b"}, {application: web, mode: all}, {application: web}, {application: "*", mode: passthrough}]
      services: [{lower: nobody, failover: true}, {interface: "a*b", mode: never}, {interface: ` + strings.Repeat("x", maxMatch+1) + `}]
      attachments: ["", ` + strings.Repeat("y", 129) + `, tenant, Tenant]
  xds:
    address: 0.0.0.0:15992
    tls: {certFile: a, keyFile: b, clientCAFile: c}
    token: {file: a, env: b}
    sidecars: {keyFile: relative}
`
	_, err := Parse([]byte(text), builtin.Kinds)
	var got []string
	for _, f := range adapters.AsFaults(err) {
		got = append(got, f.Path+": "+f.Message)
	}
	for _, want := range []string{
		`spec.mesh.lift.services[0].lower: must be caller, provider or provider-http`,
		`spec.mesh.lift.services[0]: says nothing`,
		`spec.mesh.lift.services[1].interface: "*" stands at the end only`,
		`spec.mesh.lift.services[2]: is longer than 512 bytes`,
		`spec.mesh.lift.services[1].mode: must be lift, dialled or passthrough`,
		`spec.mesh.lift.callers[0].application: is missing; "*" is every other`,
		`spec.mesh.lift.callers[1].application: is no label's value`,
		`spec.mesh.lift.callers[2].mode: must be lift, dialled or passthrough`,
		`spec.mesh.lift.callers[3].application: is that of an earlier one, too`,
		`spec.mesh.lift.attachments[0]: must have 1 to 128 bytes`,
		`spec.mesh.lift.attachments[3]: becomes the same header as an earlier one`,
		`spec.mesh.lift.attachments[1]: must have 1 to 128 bytes`,
		`spec.xds.advertise: is needed: sidecars cannot reach 0.0.0.0:15992`,
		`spec.xds.sidecars: certFile and keyFile go together`,
		`spec.xds.sidecars.caFile: is needed with tls`,
		`spec.xds.sidecars.certFile: is needed with tls.clientCAFile`,
		`spec.xds.sidecars.keyFile: must be an absolute path`,
		`spec.xds.token.env: `,
	} {
		found := false
		for _, g := range got {
			found = found || strings.HasPrefix(g, want)
		}
		if !found {
			t.Errorf("missing: %s", want)
		}
	}
	if len(got) != 18 {
		t.Errorf("%d faults:\n%s", len(got), strings.Join(got, "\n"))
	}
	for name, text := range map[string]string{
		"sidecars without tls": "  xds: {address: \"a:1\", sidecars: {caFile: /a}}\n",
		"port 0":               "  mesh: {lift: {services: [{port: 1}]}}\n  xds: {address: \"10.0.0.1:0\"}\n",
		"one for both":         "  mcp: {address: \"10.0.0.1:5\"}\n  xds: {address: \"10.0.0.1:5\"}\n",
	} {
		if _, err := Parse([]byte(head+text), builtin.Kinds); err == nil {
			t.Errorf("%s is no fault", name)
		}
	}
}
