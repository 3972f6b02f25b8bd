package crds_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/cel-go/cel"
	"go.yaml.in/yaml/v3"
	kyaml "sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/manifests/crds"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
)

// schema is as much of an OpenAPI schema as the definitions use.
type schema struct {
	Description      string             `json:"description"`
	Type             string             `json:"type"`
	Format           string             `json:"format"`
	Enum             []string           `json:"enum"`
	Pattern          string             `json:"pattern"`
	MinLength        *int               `json:"minLength"`
	MaxLength        *int               `json:"maxLength"`
	Minimum          *float64           `json:"minimum"`
	ExclusiveMinimum bool               `json:"exclusiveMinimum"`
	Maximum          *float64           `json:"maximum"`
	MinItems         *int               `json:"minItems"`
	MaxItems         *int               `json:"maxItems"`
	MinProperties    *int               `json:"minProperties"`
	MaxProperties    *int               `json:"maxProperties"`
	Required         []string           `json:"required"`
	Properties       map[string]*schema `json:"properties"`
	Additional       *schema            `json:"additionalProperties"`
	Items            *schema            `json:"items"`
	AnyOf            []*schema          `json:"anyOf"`
	Unknown          bool               `json:"x-kubernetes-preserve-unknown-fields"`
	ListType         string             `json:"x-kubernetes-list-type"`
	Nullable         bool               `json:"nullable"`
	Validations      []struct {
		Rule    string `json:"rule"`
		Message string `json:"message"`
	} `json:"x-kubernetes-validations"`
}

type definition struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Spec struct {
		Group string `json:"group"`
		Names struct {
			Kind   string `json:"kind"`
			Plural string `json:"plural"`
		} `json:"names"`
		Versions []struct {
			Name   string `json:"name"`
			Schema struct {
				OpenAPI *schema `json:"openAPIV3Schema"`
			} `json:"schema"`
		} `json:"versions"`
	} `json:"spec"`
}

// definitions returns the schemas by kind, read strictly: there is nothing in them that the test does not know.
func definitions(t *testing.T) map[string]*schema {
	t.Helper()
	out := map[string]*schema{}
	for doc := range bytes.SplitSeq(crds.Rules, []byte("\n---\n")) {
		var d definition
		if err := kyaml.Unmarshal(doc, &d); err != nil {
			t.Fatal(err)
		}
		var raw map[string]any
		if err := kyaml.UnmarshalStrict(doc, &raw); err != nil {
			t.Fatal(err)
		}
		version := raw["spec"].(map[string]any)["versions"].([]any)[0].(map[string]any)["schema"].(map[string]any)["openAPIV3Schema"]
		text, err := json.Marshal(version)
		if err != nil {
			t.Fatal(err)
		}
		strict := json.NewDecoder(bytes.NewReader(text))
		strict.DisallowUnknownFields()
		if err := strict.Decode(new(schema)); err != nil {
			t.Errorf("%s: %v", d.Metadata.Name, err)
		}
		if v := d.Spec.Versions[0]; d.Spec.Group+"/"+v.Name != governance.APIVersion || d.Metadata.Name != d.Spec.Names.Plural+"."+d.Spec.Group {
			t.Errorf("%s: group %s, version %s", d.Metadata.Name, d.Spec.Group, v.Name)
		}
		out[d.Spec.Names.Kind] = d.Spec.Versions[0].Schema.OpenAPI
	}
	return out
}

// check tells what is wrong with v, as an API server would find it.
func (s *schema) check(t *testing.T, v any, at string) (faults []string) {
	fault := func(format string, args ...any) { faults = append(faults, at+": "+fmt.Sprintf(format, args...)) }
	below := func(s *schema, v any, step string) { faults = append(faults, s.check(t, v, at+step)...) }
	under := func(n int, low, high *int) bool { return (low == nil || n >= *low) && (high == nil || n <= *high) }
	kind := ""
	switch v := v.(type) {
	case nil:
		if !s.Nullable {
			fault("null")
		}
		return faults
	case bool:
		kind = "boolean"
	case int64:
		kind = "integer"
		s.numbers(float64(v), fault)
	case float64:
		kind = "number"
		s.numbers(v, fault)
	case string:
		kind = "string"
		if !under(len([]rune(v)), s.MinLength, s.MaxLength) {
			fault("length")
		}
		if s.Pattern != "" && !regexp.MustCompile(s.Pattern).MatchString(v) {
			fault("pattern")
		}
		if len(s.Enum) > 0 && !slices.Contains(s.Enum, v) {
			fault("enum")
		}
	case []any:
		kind = "array"
		if !under(len(v), s.MinItems, s.MaxItems) {
			fault("number of items")
		}
		for i, item := range v {
			if s.Items != nil {
				below(s.Items, item, fmt.Sprintf("[%d]", i))
			}
			if s.ListType == "set" && slices.ContainsFunc(v[:i], func(o any) bool { return reflect.DeepEqual(o, item) }) {
				fault("twice")
			}
		}
	case map[string]any:
		kind = "object"
		if !under(len(v), s.MinProperties, s.MaxProperties) {
			fault("number of properties")
		}
		for _, name := range s.Required {
			if _, ok := v[name]; !ok {
				fault("%s is missing", name)
			}
		}
		for name, x := range v {
			switch p := s.Properties[name]; {
			case p != nil:
				below(p, x, "."+name)
			case s.Additional != nil:
				below(s.Additional, x, "."+name)
			case !s.Unknown && at != ".metadata":
				fault("unknown field %s", name)
			}
		}
	}
	if s.Type != "" && s.Type != kind && !(s.Type == "number" && kind == "integer") {
		fault("is %s", kind)
	}
	if len(s.AnyOf) > 0 && !slices.ContainsFunc(s.AnyOf, func(o *schema) bool {
		return len((&schema{Required: o.Required, Unknown: true}).check(t, v, at)) == 0
	}) {
		fault("anyOf")
	}
	if len(faults) > 0 {
		return faults // CEL is asked only about what has the right form
	}
	for _, rule := range s.Validations {
		switch ok, err := evaluate(rule.Rule, v); {
		case err != nil:
			t.Errorf("%s: %s: %v", at, rule.Rule, err)
		case !ok:
			fault("%s", rule.Message)
		}
	}
	return faults
}

func (s *schema) numbers(v float64, fault func(string, ...any)) {
	if s.Minimum != nil && (v < *s.Minimum || s.ExclusiveMinimum && v == *s.Minimum) || s.Maximum != nil && v > *s.Maximum {
		fault("bounds")
	}
}

func evaluate(rule string, self any) (bool, error) {
	env, err := cel.NewEnv(cel.Variable("self", cel.DynType))
	if err != nil {
		return false, err
	}
	ast, issues := env.Compile(rule)
	if issues.Err() != nil {
		return false, issues.Err()
	}
	program, err := env.Program(ast)
	if err != nil {
		return false, err
	}
	out, _, err := program.Eval(map[string]any{"self": self})
	if err != nil {
		return false, err
	}
	return out.Value() == true, nil
}

// object returns YAML as an API server sees it.
func object(t *testing.T, text []byte) map[string]any {
	t.Helper()
	b, err := kyaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return numbers(v).(map[string]any)
}

// numbers turns numbers into int64 where they are whole, as an API server does.
func numbers(v any) any {
	switch x := v.(type) {
	case json.Number:
		if n, err := x.Int64(); err == nil {
			return n
		}
		f, err := x.Float64()
		if err != nil {
			return x.String()
		}
		return f
	case []any:
		for i := range x {
			x[i] = numbers(x[i])
		}
	case map[string]any:
		for k := range x {
			x[k] = numbers(x[k])
		}
	}
	return v
}

// Every sample of governance's tests that is a rule there is one for the cluster.
func TestSamplesOfGovernance(t *testing.T) {
	all := definitions(t)
	files, err := filepath.Glob("../../mcp-server/governance/testdata/kinds/*/in.yaml")
	if err != nil || len(files) < 7 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	count := 0
	for _, file := range append(files, "../samples/rules.yaml", "../samples/throttle-rule.yaml") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		d := yaml.NewDecoder(bytes.NewReader(text))
		for {
			var n yaml.Node
			if err := d.Decode(&n); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			doc, err := yaml.Marshal(&n)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(doc), ".inf") {
				continue // which JSON cannot say
			}
			_, wrong := governance.Parse(doc)
			o := object(t, doc)
			s := all[o["kind"].(string)]
			if s == nil {
				t.Fatalf("%s: no definition of %s", file, o["kind"])
			}
			count++
			faults := s.check(t, o, "")
			if wrong == nil && len(faults) > 0 {
				t.Errorf("%s: %s\n%s", file, doc, strings.Join(faults, "\n"))
			}
			if wrong != nil && len(faults) == 0 && !strings.Contains(string(doc), "name: breaker-b") { // whose threshold depends on the strategy
				t.Errorf("%s: the definition finds nothing wrong with\n%s", file, doc)
			}
		}
	}
	if count < 40 {
		t.Errorf("only %d samples", count)
	}
}

// Both say the same of every sample, but for what a schema cannot look into: then mcp-server finds it and makes it a Problem.
func TestDefinitionsAgreeWithTheDecoder(t *testing.T) {
	all := definitions(t)
	const (
		good    = iota
		bad     // both refuse it
		decoder // only the decoder does
	)
	throttle := func(more string) string { return "ThrottleRule {threshold: 1" + more + "}" }
	match := func(condition string) string { return throttle(", match: [{" + condition + "}]") }
	allow := func(token string) string { return "AccessRule {action: allow, token: {" + token + "}}" }
	proof := "from: {attachment: a}, keyRef: {name: k}, "
	breaker := func(more string) string { return "CircuitBreakerRule {" + more + "}" }
	for rule, want := range map[string]int{
		throttle(""): good, "ThrottleRule {}": bad, "ThrottleRule {threshold: -1}": bad, "ThrottleRule {threshold: 1.5}": bad, "ThrottleRule {threshold: 4294967295}": good,
		"ThrottleRule {threshold: 4294967296}": bad, `ThrottleRule {threshold: "1"}`: bad, throttle(", nothing: 1"): bad,
		throttle(", direction: client"): good, throttle(", direction: up"): bad, throttle(", mode: observe"): good, throttle(", mode: x"): bad, throttle(", enabled: false"): good,
		throttle(`, enabled: "no"`): bad, throttle(", priority: 7"): good, throttle(", priority: -7"): bad,

		throttle(", target: {}"): good, throttle(`, target: {service: "*"}`): good, throttle(", target: {service: a.B}"): good, throttle(`, target: {service: ""}`): bad,
		throttle(", target: {service: 7}"): bad, throttle(", target: {service: 1.5}"): bad, throttle(", target: {service: [a]}"): bad, throttle(", target: {service: true}"): decoder,
		throttle(", target: {service: {}}"): bad, throttle(", target: {service: {exact: a}}"): good, throttle(", target: {service: {prefix: a}}"): good,
		throttle(", target: {service: {regex: a.*}}"): good, throttle(`, target: {service: {regex: "("}}`): decoder, throttle(", target: {service: {in: [a, b]}}"): good,
		throttle(", target: {service: {in: []}}"): bad, throttle(", target: {service: {in: [1]}}"): bad, throttle(", target: {service: {notIn: [a]}}"): good,
		throttle(", target: {service: {exact: a, prefix: b}}"): bad, throttle(", target: {service: {suffix: a}}"): bad, throttle(`, target: {service: {exact: ""}}`): bad,
		throttle(", target: {service: " + strings.Repeat("x", 513) + "}"): bad, throttle(", target: {servise: a}"): bad,

		match("subject: callerIP, operator: in, values: [10.0.0.0/8]"): good, match("subject: callerIP, operator: in, values: [ten]"): decoder,
		match("subject: callerIP, operator: prefix, values: [a]"): bad, match("subject: callerIP, operator: exists"): good, match("subject: callerIP, operator: exists, values: [a]"): bad,
		match("subject: callerApplication, operator: equals"): bad, match("subject: callerApplication, operator: equals, values: [a, b]"): bad,
		match("subject: callerApplication, operator: in, values: []"): bad, match("subject: callerApplication, operator: like, values: [a]"): bad,
		match("subject: mood, operator: exists"): bad, match("operator: exists"): bad, match("subject: label, key: k"): bad, match("subject: label, operator: exists"): bad,
		match(`subject: label, key: "", operator: exists`): bad, match("subject: label, key: k, operator: exists"): good, match("subject: callerIP, key: k, operator: exists"): bad,
		match("subject: trafficType, operator: equals, values: [loadTest]"): good, match("subject: trafficType, operator: equals, values: [odd]"): bad,
		match("subject: protocol, operator: in, values: [http, triple]"): good, match("subject: protocol, operator: equals, values: [https]"): bad,
		match("subject: trafficType, operator: regex, values: [o.*]"): good, match("subject: trafficType, operator: prefix, values: [load]"): bad,
		match("subject: label, key: k, operator: equals, values: [1]"): bad, throttle(", match: [" + strings.Repeat("{subject: callerIP, operator: exists},", 17) + "]"): bad,

		throttle(", interval: 1m30s"): good, throttle(", interval: 90"): bad, throttle(`, interval: "90"`): bad, throttle(", interval: 25h"): bad, throttle(", interval: 0s"): bad,
		throttle(", interval: -1s"): bad, throttle(", interval: 1ns"): bad, throttle(", interval: 1500us"): decoder, throttle(", interval: +.5s"): good, throttle(", interval: 24h"): good,
		throttle(", interval: 0000000000000000000000000000000000000001s"): bad, throttle(", interval: 1d"): bad,
		throttle(", burst: 5"): good, throttle(", burstCoefficient: 1.5"): good, throttle(", burstCoefficient: 0.0001"): bad, throttle(", burstCoefficient: 1001"): bad,
		throttle(", burst: 5, burstCoefficient: 1.5"): bad, throttle(", burst: 0, burstCoefficient: 1.5"): good,
		throttle(", type: rate"): good, throttle(", type: bytes"): bad, throttle(", type: concurrency"): good, throttle(", type: concurrency, burst: 1"): bad,
		throttle(", type: concurrency, interval: 1s"): bad, throttle(", type: concurrency, warmUp: {period: 1s}"): bad, throttle(", type: concurrency, hotValues: {subject: callerIP}"): bad,
		throttle(", warmUp: {period: 1s}"): good, throttle(", warmUp: {}"): bad, throttle(", warmUp: {period: 1s, coldFactor: 1}"): bad, throttle(", warmUp: {period: 2h}"): bad,
		throttle(", warmUp: {period: 1s, coldFactor: 100}"): good, throttle(", warmUp: {period: 1s}, hotValues: {subject: callerIP}"): bad,
		throttle(", hotValues: {subject: label, key: k, maxValues: 5}"): good, throttle(", hotValues: {subject: label}"): bad, throttle(", hotValues: {subject: trafficType}"): bad,
		throttle(", hotValues: {subject: callerIP, key: k}"): bad, throttle(", hotValues: {subject: callerIP, maxValues: 100001}"): bad,

		breaker("strategy: errorRatio, threshold: 0.5"): good, breaker(`strategy: errorRatio, threshold: "50%"`): good, breaker("strategy: errorRatio, threshold: 1"): good,
		breaker("strategy: errorRatio, threshold: 50"): decoder, breaker(`strategy: errorRatio, threshold: "0.5"`): bad, breaker("strategy: errorRatio, threshold: 0"): bad,
		breaker("strategy: errorRatio, threshold: [1]"): bad, breaker("strategy: errorRatio, threshold: {a: 1}"): bad, breaker("strategy: errorRatio, threshold: true"): decoder,
		breaker("strategy: errorRatio"): bad, breaker("threshold: 0.5"): bad, breaker("strategy: luck, threshold: 0.5"): bad, breaker(`strategy: errorRatio, threshold: "101%"`): bad,
		breaker("strategy: errorCount, threshold: 20"): good, breaker("strategy: errorCount, threshold: 2.5"): decoder, breaker("strategy: averageResponseTime, threshold: 500ms"): good,
		breaker("strategy: averageResponseTime, threshold: 500"): decoder, breaker("strategy: slowCallRatio, threshold: 10%, maxAllowedRt: 1s"): good,
		breaker("strategy: slowCallRatio, threshold: 10%"): bad, breaker("strategy: errorCount, threshold: 1, maxAllowedRt: 1s"): bad,
		breaker("strategy: errorCount, threshold: 1, statInterval: 50ms"): bad, breaker("strategy: errorCount, threshold: 1, statInterval: 10m"): good,
		breaker("strategy: errorCount, threshold: 1, retryTimeout: 2h"): bad, breaker("strategy: errorCount, threshold: 1, probeNum: 1000"): good,
		breaker("strategy: errorCount, threshold: 1, probeNum: 1001"): bad, breaker("strategy: errorCount, threshold: 1, minRequestAmount: 9"): good,
		breaker("strategy: errorCount, threshold: 1, errors: [transport, exception]"): good, breaker("strategy: errorCount, threshold: 1, errors: [status, status]"): bad,
		breaker("strategy: errorCount, threshold: 1, errors: [luck]"): bad,

		"AccessRule {action: allow}": good, "AccessRule {action: ask}": bad, "AccessRule {}": bad, "AccessRule {action: defaultDeny}": good,
		"AccessRule {action: defaultDeny, match: [{subject: callerIP, operator: exists}]}": bad, "AccessRule {action: defaultDeny, match: []}": good,

		allow(proof + "jwt: {}"): good, allow(proof + "hmac: {timestamp: t, keyId: i, attachments: [a], window: 10m}, onFailure: allow"): good, allow(proof + "jwt: {}, hmac: {timestamp: t}"): bad,
		allow("from: {attachment: a}, keyRef: {name: k}"): bad, allow("from: {}, keyRef: {name: k}, jwt: {}"): bad, allow("from: {attachment: a}, jwt: {}"): bad, allow(proof + "jwt: {}, onFailure: ask"): bad,
		allow(proof + "jwt: {clockSkew: 11m}"): bad, allow(proof + "jwt: {issuer: i, audiences: [a], clockSkew: 5s, claims: [{claim: c, operator: exists}]}"): good,
		allow(proof + "jwt: {claims: [{claim: c, operator: in}]}"): bad, allow(proof + "jwt: {claims: [{claim: c, operator: equals, values: [a, b]}]}"): bad, allow(proof + "hmac: {}"): bad,
		allow("from: {attachment: a}, keyRef: {name: a/b}, jwt: {}"): decoder, "AccessRule {action: deny, token: {" + proof + "jwt: {}}}": bad,

		"FaultRule {}": good, "FaultRule {ratio: 0.25}": good, "FaultRule {ratio: 25%}": good, "FaultRule {ratio: 100%}": good, "FaultRule {ratio: 1}": good, "FaultRule {ratio: 0}": bad,
		"FaultRule {ratio: 2}": bad, `FaultRule {ratio: "0.25"}`: bad, "FaultRule {ratio: 0.0000001}": decoder, "FaultRule {ratio: 0.1234567}": decoder, "FaultRule {ratio: true}": decoder,
		"FaultRule {ratio: [1]}": bad, "FaultRule {ratio: {}}": bad, "FaultRule {ratio: 1e1%}": bad, "FaultRule {abort: {code: denied, message: never}}": good, "FaultRule {abort: {message: no}}": bad, throttle(", enabled: no"): good, "FaultRule {abort: {code: broken}}": bad,
		"FaultRule {abort: {message: " + strings.Repeat("x", 513) + "}}": bad, "FaultRule {delay: 5s}": bad, "FaultRule {delay: {fixedDelay: 5s}}": good, "FaultRule {delay: {}}": bad, "FaultRule {delay: {fixedDelay: 2m}}": bad,
		"FaultRule {delay: {fixedDelay: 5s}, abort: {code: denied}}": bad, "FaultRule {delay: {fixedDelay: 5s}, abort: {}}": good, "FaultRule {delay: {fixedDelay: 5s}, ratio: 1%}": good, "FaultRule {ratio: -0.5}": bad, "FaultRule {ratio: .5%}": good,

		"DegradeRule {}": good, "DegradeRule {when: rejected}": good, "DegradeRule {when: never}": bad, "DegradeRule {reply: {}}": good, "DegradeRule {reply: {json: 1}}": good,
		"DegradeRule {reply: {json: {a: [1, x, true, 1.5]}}}": good, "DegradeRule {reply: {json: text, types: {'': java.lang.String}}}": good,
		"DegradeRule {reply: {json: 1, types: {'/x': int}}}": decoder, "DegradeRule {reply: {json: 1, types: {'': 7}}}": bad, "DegradeRule {reply: {yaml: 1}}": bad,
	} {
		kind, spec, _ := strings.Cut(rule, " ")
		text := fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: x}\nspec: %s\n", governance.APIVersion, kind, spec)
		_, err := governance.Parse([]byte(text))
		faults := all[kind].check(t, object(t, []byte(text)), "")
		if (err == nil) != (want == good) || (len(faults) == 0) != (want != bad) {
			t.Errorf("%s: want %d; the decoder says %v, the definition %v", rule, want, err, faults)
		}
	}
}

// A rule in CEL that names a field which is not there would hold for ever.
func TestRulesNameFieldsThatAre(t *testing.T) {
	name := regexp.MustCompile(`self\.([a-zA-Z]+)`)
	count := 0
	var walk func(at string, s *schema)
	walk = func(at string, s *schema) {
		if at != "" && s.Description == "" && s.Type != "" && !strings.Contains(at, "[]") && !strings.Contains(at, "{}") && strings.Count(at, ".") > 1 && !regexp.MustCompile(`\.(exact|prefix|regex|in|notIn)$`).MatchString(at) {
			t.Errorf("%s has no description", at)
		}
		for _, v := range s.Validations {
			count++
			for _, m := range name.FindAllStringSubmatch(v.Rule, -1) {
				if m[1] == "values" && s.Properties["values"] != nil {
					continue
				}
				if s.Properties[m[1]] == nil {
					t.Errorf("%s: %s: there is no %s", at, v.Rule, m[1])
				}
			}
			if v.Message == "" {
				t.Errorf("%s: %s has no message", at, v.Rule)
			}
		}
		for k, p := range s.Properties {
			walk(at+"."+k, p)
		}
		if s.Items != nil {
			walk(at+"[]", s.Items)
		}
		if s.Additional != nil {
			walk(at+"{}", s.Additional)
		}
	}
	for kind, s := range definitions(t) {
		walk("."+kind, s.Properties["spec"])
	}
	if count < 20 {
		t.Errorf("only %d rules in CEL", count)
	}
	if kinds := governance.Kinds(); len(kinds) != len(definitions(t)) {
		t.Errorf("definitions of %d kinds, there are %v", len(definitions(t)), kinds)
	}
}
