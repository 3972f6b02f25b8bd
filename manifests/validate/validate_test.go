package validate

import (
	"errors"
	"strings"
	"testing"
)

func TestYAML(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		as   string
		want string // the error, "" for none
	}{
		"nothing":       {"# nothing\n---\n", "", ""},
		"istio":         {"apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec:\n  hosts: [a.b]\n", "", ""},
		"unknown field": {"apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec:\n  hosts: [a.b]\n  ports:\n    - nummer: 1\n", "", `line 7: spec: unknown field "nummer"`},
		"wrong type":    {"apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec: {hosts: 1}\n", "", "line 4: spec: "},
		"original name": {"apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec:\n  export_to: ['*']\n", "", "line 5: spec.export_to: unknown field: names are in lowerCamelCase"},
		"no name":       {"apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nspec: {}\n", "", "line 1: metadata.name: is missing"},
		"unknown kind of a known group": {"apiVersion: networking.istio.io/v1\nkind: ServiceEntries\n", "",
			`line 1: kind: networking.istio.io/v1 has no kind "ServiceEntries" that Isthmus knows`},
		"second document": {"---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: a}\n---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: b}\nspec:\n  none: 1\n", "",
			`line 10: spec: unknown field "none"`},
		"all at once": {"apiVersion: networking.istio.io/v1\nkind: Sidecar\n---\napiVersion: networking.istio.io/v1\nkind: Sidecar\n", "",
			"line 1: metadata.name: is missing\nline 4: metadata.name: is missing"},
		"not YAML": {"---\na: 1\n---\nb: [\n", "", "line 4: "},
		"install":  {"apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec:\n  meshConfig:\n    configSources: [{address: 'k8s://'}]\n  values: {pilot: {env: {A: 'false'}}}\n", "", ""},
		"install with an unknown field": {"apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec:\n  meshConfig:\n    configSource: []\n", "",
			`line 5: spec.meshConfig: unknown field "configSource"`},
		"install with an unknown section": {"apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec:\n  mesh: {}\n", "", "line 4: spec.mesh: unknown field; known are "},
		"install with a number in the environment": {"apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec:\n  values: {pilot: {env: {A: false}}}\n", "",
			`line 4: spec.values.pilot.env.A: must be a string: write "false"`},
		"services": {"apiVersion: adapters.isthmus.io/v1alpha1\nkind: ServiceList\nservices:\n- {framework: dubbo, interface: demo.A, endpoints: [{address: 192.0.2.1, port: 1}]}\n", "", ""},
		"services with a fault": {"---\napiVersion: adapters.isthmus.io/v1alpha1\nkind: ServiceList\nservices:\n- {framework: dubbo, interface: demo.A, endpoints: [{address: 192.0.2.1, pork: 1}]}\n", "",
			"line 5: services[0].endpoints[0].pork: unknown field"},
		"registry":              {"name: files\nkind: file\nsettings:\n  path: x\n", "registry", ""},
		"registry with a fault": {"name: files\nkind: file\nsettings:\n  paths: x\n", "registry", "line 4: settings.paths: unknown field"},
		"plugin":                {"generation: g1\nthrottle:\n- {name: a, threshold: 1}\n", "plugin", ""},
		"plugin with faults": {"generation: g1\nthrottle:\n- name: a\n  threshold: 1\n- name: b\n  treshold: 1\nlimits:\n  oversize: drop\n", "plugin",
			"line 6: throttle[1].treshold: "},
		"filter of a TrafficExtension": {"apiVersion: extensions.istio.io/v1alpha1\nkind: TrafficExtension\nmetadata: {name: a}\nspec:\n  wasm:\n    url: file:///isthmus.wasm\n    pluginConfig:\n      throttles: []\n", "",
			"line 8: spec.wasm.pluginConfig.throttles: "},
		"no such kind": {"a: 1\n", "thing", `line 1: no kind "thing"; known are `},
	} {
		t.Run(name, func(t *testing.T) {
			err := YAML([]byte(c.text), c.as)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestUnknownKinds(t *testing.T) {
	for name, text := range map[string]string{"of Kubernetes": "apiVersion: v1\nkind: ConfigMap\n", "without one": "a: 1\n"} {
		t.Run(name, func(t *testing.T) {
			if err := YAML([]byte(text), ""); !errors.Is(err, ErrUnknownKind) {
				t.Errorf("got %v, want %v", err, ErrUnknownKind)
			}
		})
	}
}
