package config

import (
	"bytes"
	base64lib "encoding/base64"
	"encoding/json"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// full has every field set, each in one rule at least.
var full = Plugin{
	Generation: "g-1.2_3", Protocols: []string{"bolt", "dubbo"},
	HTTP:    HTTP{Suffix: "mesh.example", CallerHeader: "x-app", Paths: []string{"/a/{b}", "/{c}"}},
	Limits:  Limits{MaxFrameBytes: 1 << 20, Oversize: ActionClose, Garbage: ActionPass, MaxInspectBytes: 8192, MaxInFlight: 7, CallTimeoutMillis: 9},
	Metrics: Metrics{MaxServices: 1, MaxMethods: 2, MaxCallers: 3, MaxSeries: 4, MaxEndpoints: 5},
	Access: []Access{
		{Rule: Rule{Name: "ns/a", Target: Target{Method: Match{NotIn: []string{"ping"}}}, Match: []Condition{
			{Subject: SubjectCallerIdentity, Operator: OperatorPrefix, Values: []string{"spiffe://cluster.local/ns/shop/"}},
			{Subject: SubjectCallerIP, Operator: OperatorNotIn, Values: []string{"10.0.0.0/8", "fd00::1"}},
			{Subject: SubjectAttachment, Key: "user", Operator: OperatorExists},
			{Subject: SubjectTrafficType, Operator: OperatorEquals, Values: []string{TrafficLoadTest}},
		}}, Action: AccessAllow},
		{Rule: Rule{Name: "ns/b"}, Action: AccessDefaultDeny},
		{Rule: Rule{Name: "ns/c"}, Action: AccessAllow, Token: &Token{Attachment: "authorization", Prefix: "Bearer ", Key: "sso", OnFailure: FailureAllow,
			JWT: &JWT{Issuer: "https://sso", Audiences: []string{"a", "b"}, ClockSkewMillis: 5, Claims: []Claim{{Claim: "scope", Operator: OperatorIn, Values: []string{"x"}}}}}},
		{Rule: Rule{Name: "ns/d"}, Action: AccessAllow, Token: &Token{Attachment: "sign", Key: "partners",
			HMAC: &HMAC{Timestamp: "time", KeyID: "key", Attachments: []string{"tenant"}, WindowMillis: 7}}},
	},
	Keys: []Key{{Name: "partners", ID: "k1", Algorithm: "HS256", Value: "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="}},
	FaultInjection: []FaultInjection{{Rule: Rule{Name: "ns/a"}, Abort: Abort{Code: CodeTimeout, Message: "on purpose", HTTPStatus: 418}, PerMillion: 500},
		{Rule: Rule{Name: "ns/b"}, DelayMillis: 60_000}},
	Degrade: []Degrade{{Rule: Rule{Name: "ns/a"}, When: WhenRejected, Replies: []Reply{
		{Protocol: "dubbo", Serialization: 2, Value: "Tg=="}, {Protocol: "bolt", Serialization: 1, Value: "BWhlbGxv"}}}},
	CircuitBreaker: []CircuitBreaker{{Rule: Rule{Name: "ns/a", Target: Target{Direction: "client"}}, PerEndpoint: true, Strategy: StrategySlowCallRatio, Threshold: 500_000, StatIntervalMillis: 100, MinRequestAmount: 1,
		MaxAllowedRtMillis: 1, RetryTimeoutMillis: 100, ProbeNum: 3, Errors: []ErrorClass{ErrorException, ErrorTransport, ErrorStatus}}},
	Throttle: []Throttle{{
		Rule: Rule{
			Name: "ns/a", Mode: ModeObserve, Disabled: true, Priority: 7,
			Target: Target{
				Application: Match{Exact: "a"}, Direction: "client", Service: Match{Prefix: "demo."}, Version: Match{Regex: `1\.\d+`},
				Group: Match{In: []string{"g", "h"}}, Method: Match{Prefix: "get"}, Caller: Match{Exact: "\u00fc \"\\\t\U0001F600"},
			},
		},
		Type: ThrottleRate, Threshold: 4294967295, IntervalMillis: 86400000, Burst: 2, WarmUp: WarmUp{PeriodMillis: 1, ColdFactor: 2},
	}, {Rule: Rule{Name: "ns/d"}, Threshold: 1, MaxQueueingMillis: 60_000}, {Rule: Rule{Name: "ns/b"}, HotValues: HotValues{Subject: SubjectLabel, Key: "user", MaxValues: 9}},
		{Rule: Rule{Name: "ns/c"}, Global: Global{Cluster: "limits", Authority: "limits.example.org", Domain: "shop", SyncMillis: 50, StalenessMillis: 60}}},
	Lift: &Lift{Suffix: "mesh.example", Attachments: []string{"tenant", "userId"}, Applications: Match{NotIn: []string{"web"}}, VirtualAddresses: "240.64.0.0/10",
		Hosts: []Host{{Service: "demo.A", Version: "1", Group: "g", Host: "a.default.svc.cluster.local"}}},
	Lower: &Lower{ExceptionsFail: true, HeartbeatMillis: 3_600_000, BehindHTTP: true},
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
	set := make(map[string]bool)
	var visit func(v reflect.Value, path string)
	visit = func(v reflect.Value, path string) {
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				visit(v.Field(i), path+"."+v.Type().Field(i).Name)
			}
			return
		case reflect.Pointer:
			if !v.IsNil() {
				visit(v.Elem(), path)
			}
			return
		case reflect.Slice:
			for i := range v.Len() {
				visit(v.Index(i), path+"[]")
			}
		}
		set[path] = set[path] || !v.IsZero()
	}
	visit(reflect.ValueOf(full), "")
	for path, ok := range set {
		// Of a Match only one may be set, so they are looked at in one of them.
		if !ok && path != ".KeysOnly" && !strings.Contains(path, ".Target.") && !strings.HasPrefix(path, ".Lift.Applications.") && !strings.HasPrefix(path, ".FaultInjection[].Rule.") && !strings.HasPrefix(path, ".Degrade[].Rule.") &&
			!strings.HasPrefix(path, ".CircuitBreaker[].Rule.") && !strings.HasPrefix(path, ".Access[].Rule.") && !strings.HasPrefix(path, ".Throttle[].Rule.Match") {
			t.Errorf("%s is not set in this test", path)
		}
	}
	if len(set) < 100 {
		t.Errorf("only %d fields", len(set))
	}
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
			"throttle[0].target.direction: must be one of client, server", "throttle[0].target.service: has more than one of exact, prefix, regex, in and notIn",
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
	p := Plugin{
		Access: []Access{{Action: AccessDeny}, {Token: &Token{JWT: &JWT{}}}, {Token: &Token{HMAC: &HMAC{}}}}, FaultInjection: []FaultInjection{{}}, Degrade: []Degrade{{}},
		CircuitBreaker: []CircuitBreaker{{Strategy: StrategyErrorCount}},
		Throttle: []Throttle{{Rule: Rule{Name: "a"}, Threshold: 5}, {Rule: Rule{Name: "b", Mode: ModeObserve}, Threshold: 0, Burst: 3},
			{Type: ThrottleConcurrency}, {Threshold: 9, MaxQueueingMillis: 5}, {WarmUp: WarmUp{PeriodMillis: 5}}, {HotValues: HotValues{Subject: SubjectCallerIP}}, {Global: Global{Cluster: "limits"}}},
	}
	on := Rule{Mode: ModeIntercept}
	d := p.WithDefaults()
	want := Plugin{
		Protocols: Protocols,
		HTTP:      HTTP{Suffix: "isthmus", CallerHeader: "x-isthmus-caller"},
		Limits:    Limits{8 << 20, ActionPass, ActionPass, 64 << 10, 4096, 60_000},
		Metrics:   Metrics{200, 1000, 100, 2000, 100},
		Access: []Access{{Rule: on, Action: AccessDeny}, {Rule: on, Token: &Token{OnFailure: FailureDeny, JWT: &JWT{ClockSkewMillis: 60_000}}},
			{Rule: on, Token: &Token{OnFailure: FailureDeny, HMAC: &HMAC{WindowMillis: 60_000}}}},
		FaultInjection: []FaultInjection{{Rule: on, Abort: Abort{Code: CodeAborted}, PerMillion: 1_000_000}},
		Degrade:        []Degrade{{Rule: on, When: WhenAlways}},
		CircuitBreaker: []CircuitBreaker{{Rule: on, Strategy: StrategyErrorCount, StatIntervalMillis: 1000, MinRequestAmount: 5, RetryTimeoutMillis: 5000, ProbeNum: 1,
			Errors: DefaultErrors}},
		Throttle: []Throttle{{Rule: Rule{Name: "a", Mode: ModeIntercept}, Type: ThrottleRate, Threshold: 5, IntervalMillis: 1000, Burst: 5},
			{Rule: Rule{Name: "b", Mode: ModeObserve}, Type: ThrottleRate, IntervalMillis: 1000, Burst: 3}, {Rule: on, Type: ThrottleConcurrency},
			{Rule: on, Type: ThrottleRate, Threshold: 9, IntervalMillis: 1000, Burst: 1, MaxQueueingMillis: 5},
			{Rule: on, Type: ThrottleRate, IntervalMillis: 1000, Burst: 1, WarmUp: WarmUp{5, 3}},
			{Rule: on, Type: ThrottleRate, IntervalMillis: 1000, Burst: 1, HotValues: HotValues{Subject: SubjectCallerIP, MaxValues: 1000}},
			{Rule: on, Type: ThrottleRate, IntervalMillis: 1000, Burst: 1, Global: Global{Cluster: "limits", Authority: "limits", Domain: "isthmus", SyncMillis: 100, StalenessMillis: 1000}}},
	}
	if !reflect.DeepEqual(d, want) {
		t.Errorf("got %+v\nwant %+v", d, want)
	}
	if p.Throttle[0].Burst != 0 || p.Access[1].Token.OnFailure != "" || p.Access[1].Token.JWT.ClockSkewMillis != 0 {
		t.Error("the original changed")
	}
}

// TestRuleFaults: what is wrong with a rule beyond its form, kind by kind.
func TestRuleFaults(t *testing.T) {
	long := strings.Repeat("x", 513)
	for _, c := range []struct {
		text   string
		faults []string
	}{
		{`{"access":[{"name":"a"},{"name":"b","action":"forbid"},{"name":"c","action":"defaultDeny","match":[{"subject":"callerIP","operator":"exists"}]}]}`, []string{
			"access[0].action: is missing", "access[1].action: must be one of allow, deny, defaultDeny", "access[2].match: does not go with the action defaultDeny"}},
		{`{"access":[{"name":"a","action":"deny","token":{"onFailure":"pass","jwt":{"issuer":"` + long + `","clockSkewMillis":600001,"claims":[{},{"claim":"c","operator":"regex","values":["("]}]}}},
			{"name":"b","action":"allow","token":{"attachment":"t","key":"a b"}},{"name":"c","action":"allow","token":{"attachment":"t","key":"k","jwt":{},"hmac":{"windowMillis":600001,"attachments":[""]}}}]}`, []string{
			"access[0].token.attachment: is missing", "access[0].token.key: is missing",
			"access[0].token.onFailure: must be one of deny, allow", "access[0].token.jwt.issuer: longer than 512 bytes", "access[0].token.jwt.clockSkewMillis: must be from 1 to 600000, or 0 for the default",
			"access[0].token.jwt.claims[0].claim: is missing", "access[0].token.jwt.claims[0].operator: is missing", "access[0].token.jwt.claims[0].values: must be one",
			"access[0].token.jwt.claims[1].values[0]: missing ) at offset 1", "access[0].token: goes only with the action allow", "access[1].token.key: must be at most 253 of A-Z a-z 0-9 . _ -", "access[1].token: must have one of jwt and hmac",
			"access[2].token.hmac.timestamp: is missing", "access[2].token.hmac.attachments[0]: is missing",
			"access[2].token.hmac.windowMillis: must be from 1 to 600000, or 0 for the default", "access[2].token: must have one of jwt and hmac"}},
		{`{"keys":[{"name":"a","algorithm":"none","value":"SECRET!"},{"name":"a/b","algorithm":"HS256","value":"c2hvcnQ="},{}]}`, []string{
			"keys[0].algorithm: must be one of HS256, RS256, ES256", "keys[0].value: must be in base64", "keys[1].name: must be at most 253 of A-Z a-z 0-9 . _ -",
			"keys[1].value: shorter than 32 bytes", "keys[2].name: is missing", "keys[2].algorithm: is missing", "keys[2].value: is missing"}},
		{`{"keys":[` + strings.Repeat(`{"name":"a","algorithm":"RS256","value":"Tg=="},`, 16) + `{"name":"a","algorithm":"RS256","value":"Tg=="}]}`, []string{"keys[16]: is one of more than 16 of this name"}},
		{`{"keysOnly":true,"access":[{"name":"a","action":"deny"}]}`, []string{"keysOnly: goes with nothing but keys"}},
		{`{"access":[{"name":"a","action":"deny","match":[{},{"subject":"a","operator":"b"},{"subject":"attachment","operator":"equals","values":["a","b"]},
			{"subject":"callerIP","key":"k","operator":"prefix","values":["10."]},{"subject":"callerIP","operator":"in","values":["10.0.0.0/33","::1","1.2.3.4/8"]},
			{"subject":"label","key":"k","operator":"regex","values":["a("]},{"subject":"callerIdentity","operator":"exists","values":["x"]},
			{"subject":"trafficType","operator":"notIn"},{"subject":"trafficType","operator":"in","values":["normal","shadow"]},
			{"subject":"protocol","operator":"equals","values":["https"]}]}]}`, []string{
			"access[0].match[0].subject: is missing", "access[0].match[0].operator: is missing", "access[0].match[0].values: must be one",
			"access[0].match[1].subject: must be one of callerApplication, providerApplication, callerIP, callerIdentity, attachment, label, trafficType, protocol",
			"access[0].match[1].operator: must be one of equals, notEquals, in, notIn, prefix, regex, exists", "access[0].match[1].values: must be one",
			"access[0].match[2].key: is missing", "access[0].match[2].values: must be one",
			"access[0].match[3].key: goes only with attachment and label", "access[0].match[3].operator: does not go with callerIP; give a network",
			"access[0].match[4].values[0]: must be an address or a network",
			"access[0].match[5].values[0]: missing ) at offset 2", "access[0].match[6].values: do not go with the operator exists",
			"access[0].match[7].values: is missing", "access[0].match[8].values[1]: must be one of normal, loadTest",
			"access[0].match[9].values[0]: must be one of dubbo, bolt, http, triple"}},
		{`{"throttle":[{"name":"a","threshold":1,"target":{"service":{"regex":"[z-a]"},"method":{"in":["` + long + `"]},"caller":{"exact":"` + long + `"}}}]}`, []string{
			"throttle[0].target.service.regex: range needs two characters, the lower one first at offset 4",
			"throttle[0].target.method.in[0]: longer than 512 bytes", "throttle[0].target.caller.exact: longer than 512 bytes"}},
		{`{"faultInjection":[{"name":"a","delayMillis":60001},{"name":"b","delayMillis":1,"abort":{"message":"m"}}]}`, []string{
			"faultInjection[0].delayMillis: must be from 1 to 60000, or 0 for the default", "faultInjection[1].delayMillis: does not go with abort"}},
		{`{"faultInjection":[{"name":"a","perMillion":1000001,"abort":{"code":"oops","message":"` + long + `","httpStatus":100,"x":1}}]}`, []string{
			"faultInjection[0].abort.x: unknown field", "faultInjection[0].perMillion: must be from 1 to 1000000, or 0 for the default",
			"faultInjection[0].abort.code: must be one of throttled, unavailable, denied, aborted, timeout", "faultInjection[0].abort.message: longer than 512 bytes",
			"faultInjection[0].abort.httpStatus: must be from 200 to 599, or 0 for the default"}},
		{`{"degrade":[{"name":"a","when":"never","replies":[{"protocol":"triple","serialization":256,"value":"Tg="},{"protocol":"bolt","serialization":1,"value":"Tg=="},
			{"protocol":"bolt","serialization":1},{"protocol":"dubbo","value":"Tg=="},{"protocol":"http","serialization":1,"value":"Tg=="}]}]}`, []string{
			"degrade[0].replies[3]: serialization is missing", "degrade[0].when: must be one of always, rejected", "degrade[0].replies[0].protocol: must be one of dubbo, bolt, http",
			"degrade[0].replies[0].serialization: must be from 0 to 255", "degrade[0].replies[0].value: must be in base64",
			"degrade[0].replies[2]: is for the protocol and serialization of an earlier one", "degrade[0].replies[2].value: is missing",
			"degrade[0].replies[4].serialization: must be 0 for http"}},
		{`{"http":{"suffix":"A","callerHeader":"a b","paths":["a","/{x}","/{x}","/a{x}","/{x}?","/{}"]}}`, []string{
			"http.suffix: must be a DNS name in lower case", "http.callerHeader: must be at most 64 of A-Z a-z 0-9 - _", "http.paths[0]: must begin with /",
			"http.paths[2]: stands twice", "http.paths[3]: must have braces only around whole segments, and neither ? nor #",
			"http.paths[4]: must have braces only around whole segments, and neither ? nor #",
			"http.paths[5]: must have braces only around whole segments, and neither ? nor #"}},
		{`{"circuitBreaker":[{"name":"a"},{"name":"b","strategy":"errorRatio","threshold":1000001,"maxAllowedRtMillis":5,"statIntervalMillis":99,"retryTimeoutMillis":99,
			"probeNum":1001,"errors":["transport","transport","x"],"perEndpoint":true,"target":{"direction":"server"}},{"name":"c","strategy":"slowCallRatio","threshold":1},{"name":"d","strategy":"errorCount","threshold":4294967295}]}`, []string{
			"circuitBreaker[0].strategy: is missing", "circuitBreaker[0].threshold: must be from 1 to 1000000", "circuitBreaker[1].threshold: must be from 1 to 1000000",
			"circuitBreaker[1].statIntervalMillis: must be from 100 to 600000, or 0 for the default",
			"circuitBreaker[1].retryTimeoutMillis: must be from 100 to 3600000, or 0 for the default", "circuitBreaker[1].probeNum: must be from 1 to 1000, or 0 for the default",
			"circuitBreaker[1].perEndpoint: goes only with the direction client: a provider's sidecar has one endpoint",
			"circuitBreaker[1].maxAllowedRtMillis: goes only with slowCallRatio", "circuitBreaker[1].errors[1]: stands twice",
			"circuitBreaker[1].errors[2]: must be one of transport, status, exception", "circuitBreaker[2].maxAllowedRtMillis: is missing"}},
		{`{"throttle":[{"name":"a","threshold":1,"type":"qps"},{"name":"b","threshold":1,"type":"concurrency","burst":1},
			{"name":"c","threshold":1,"warmUp":{"coldFactor":101}},{"name":"d","threshold":1,"hotValues":{"maxValues":7}},
			{"name":"e","threshold":1,"warmUp":{"periodMillis":1},"hotValues":{"subject":"attachment","maxValues":100001}},
			{"name":"f","threshold":1,"hotValues":{"subject":"trafficType"}},{"name":"g","threshold":1,"maxQueueingMillis":60001,"warmUp":{"periodMillis":1}}]}`, []string{
			"throttle[0].type: must be one of rate, concurrency", "throttle[1]: has a field that does not go with the type concurrency: intervalMillis, burst, maxQueueingMillis, warmUp, hotValues or global",
			"throttle[2].warmUp.coldFactor: must be from 2 to 100, or 0 for the default", "throttle[2].warmUp.periodMillis: is missing",
			"throttle[3].hotValues.subject: is missing", "throttle[4].hotValues.key: is missing",
			"throttle[4].hotValues.maxValues: must be from 1 to 100000, or 0 for the default", "throttle[4].hotValues: does not go with warmUp",
			"throttle[5].hotValues.subject: must be one of callerApplication, callerIP, callerIdentity, attachment, label", "throttle[6].maxQueueingMillis: must be from 1 to 60000, or 0 for the default",
			"throttle[6].maxQueueingMillis: does not go with warmUp, hotValues and global"}},
		{`{"throttle":[{"name":"a","threshold":1,"intervalMillis":999,"global":{"syncMillis":9,"stalenessMillis":600001}},
			{"name":"b","threshold":1,"hotValues":{"subject":"callerIP"},"global":{"cluster":"c","syncMillis":2000,"stalenessMillis":1999}},
			{"name":"c","threshold":1,"type":"concurrency","global":{"cluster":"c"}},
			{"name":"d","threshold":1,"intervalMillis":60000,"global":{"cluster":"` + strings.Repeat("c", 513) + `"}}]}`, []string{
			"throttle[0].global.cluster: is missing", "throttle[0].global.syncMillis: must be from 10 to 60000, or 0 for the default",
			"throttle[0].global.stalenessMillis: must be from 9 to 600000, or 0 for the default",
			"throttle[0].intervalMillis: must be a second, a minute, an hour or a day: 1000, 60000, 3600000 or 86400000, with global",
			"throttle[1].global.stalenessMillis: must be from 2000 to 600000, or 0 for the default", "throttle[1].global: does not go with hotValues",
			"throttle[2]: has a field that does not go with the type concurrency: intervalMillis, burst, maxQueueingMillis, warmUp, hotValues or global",
			"throttle[3].global.cluster: has more than 512 bytes"}},
		{`{"access":[{"name":"x","action":"deny"}],"throttle":[{"name":"x","threshold":1}]}`, nil},
	} {
		_, faults := Decode([]byte(c.text))
		var got []string
		for _, f := range faults {
			got = append(got, f.String())
		}
		if !slices.Equal(got, c.faults) {
			t.Errorf("%.160s\ngot  %s\nwant %s", c.text, strings.Join(got, "\n     "), strings.Join(c.faults, "\n     "))
		}
	}
	var many Plugin
	for i := range MaxRules/2 + 1 {
		name := strconv.Itoa(i)
		many.Throttle = append(many.Throttle, Throttle{Rule: Rule{Name: name}})
		many.Access = append(many.Access, Access{Rule: Rule{Name: name}, Action: AccessDeny})
	}
	if got := many.Validate().Error(); got != "config: has more than 5000 rules" {
		t.Error(got)
	}
	var keys Plugin
	for i := range 65 {
		subject := SubjectAttachment
		if i >= 32 {
			subject = SubjectLabel
		}
		keys.Access = append(keys.Access, Access{Action: AccessDeny, Rule: Rule{Name: strconv.Itoa(i),
			Match: []Condition{{Subject: subject, Key: strconv.Itoa(i % 32), Operator: OperatorExists}}}})
	}
	if got := keys.Validate(); got != nil {
		t.Error(got)
	}
	keys.Throttle = []Throttle{{Rule: Rule{Name: "a"}, HotValues: HotValues{Subject: SubjectLabel, Key: "another"}}}
	if got := keys.Validate().Error(); got != "config: asks for more than 64 different attachments and labels" {
		t.Error(got)
	}
}

// TestDecodeValue holds the reader of base64 to the standard library's.
func TestDecodeValue(t *testing.T) {
	for n := range 20 {
		want := []byte("\x00\xff\x10isthmus\x80\x7f 0123456789")[:n]
		text := base64lib.StdEncoding.EncodeToString(want)
		if got, ok := DecodeValue(text); !ok || !bytes.Equal(got, want) {
			t.Errorf("%q: %q, %v", text, got, ok)
		}
		for i := range text {
			for _, c := range []byte("=A/~\n") {
				broken := []byte(text)
				broken[i] = c
				got, ok := DecodeValue(string(broken))
				want, err := base64lib.StdEncoding.Strict().DecodeString(string(broken))
				if ok != (err == nil) && c != '\n' || ok && !bytes.Equal(got, want) {
					t.Errorf("%q: %q %v, want %q %v", broken, got, ok, want, err)
				}
			}
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
	f.Add([]byte(`{"access":[{"name":"a","action":"deny","match":[{"subject":"callerIP","operator":"in","values":["::/0"]}]}]}`))
	f.Add([]byte(`{"degrade":[{"name":"a","replies":[{"protocol":"bolt","serialization":1,"value":"Tg=="}]}],"circuitBreaker":[]}`))
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
		// A list that is there and empty is nil here: no difference to the filter, and none once it is written.
		a, errA := json.Marshal(got)
		b, errB := json.Marshal(want)
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Fatalf("read %+v, encoding/json %+v", *got, want)
		}
	})
}
