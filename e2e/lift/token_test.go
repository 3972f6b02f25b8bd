package lift_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// TestTokens: tokens of each algorithm are told from forged ones inside Envoy, whose own function verify_signature checks those of public keys. The secret
// comes by a plugin of its own, and a lifted call is held to the rule as one over TCP is.
func TestTokens(t *testing.T) {
	file := filterFile(t)
	signers := map[string]*filtertest.Signer{}
	for name, algorithm := range map[string]string{"rs": "RS256", "es": "ES256", "hs": "HS256", "rs-forged": "RS256", "es-forged": "ES256", "hs-forged": "HS256"} {
		s, err := filtertest.NewSigner(algorithm)
		if err != nil {
			t.Fatal(err)
		}
		signers[name] = s
	}
	key := func(set, id, algorithm string) config.Key {
		return config.Key{Name: set, ID: id, Algorithm: algorithm, Value: base64.StdEncoding.EncodeToString(signers[id].Value())}
	}
	rule := func(name, method, keys string) config.Access {
		return config.Access{Action: config.AccessAllow, Rule: config.Rule{Name: name, Target: config.Target{Method: config.Match{Exact: method}}},
			Token: &config.Token{Attachment: "authorization", Key: keys, JWT: &config.JWT{Issuer: "me"}}}
	}
	text := func(p config.Plugin) string {
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	main := config.Plugin{Keys: []config.Key{key("public", "rs", "RS256"), key("public", "es", "ES256")},
		Access: []config.Access{rule("public", "greet", "public"), rule("secret", "secret", "secret"), rule("none", "none", "nowhere")}}
	lifting := main
	lifting.Lift = new(config.Lift)
	p := startProvider(t, nil)
	in, lifted, lowered := freePort(t), freePort(t), freePort(t)
	e := startEnvoy(t, []object{
		listener(in, "INBOUND", wasm(file, "keys", text(config.Plugin{KeysOnly: true, Keys: []config.Key{key("secret", "hs", "HS256")}})), wasm(file, "main", text(main)), tcpProxy("provider")),
		listener(lifted, "OUTBOUND", wasm(file, "lift", text(lifting)), manager(everything(object{"cluster": "up"}))),
		listener(lowered, "INBOUND", wasm(file, "lower", `{"lower":{}}`), tcpProxy("provider")),
	}, []object{upstream("up", lowered), plain("provider", p.port())})

	id := uint64(0)
	call := func(t *testing.T, c *client, method, token, want string) {
		t.Helper()
		id++
		fields := []string{"method", method}
		if token != "" {
			fields = append(fields, ".authorization", token)
		}
		calls := p.calls.Load()
		b, f := c.call(id, fields...)
		if want == "" {
			wantOK(t, b, f)
			return
		}
		if f.Outcome == protocol.OutcomeOK || !strings.Contains(string(b), want) {
			t.Errorf("%s: %s %q, want %q", method, f.Outcome, b, want)
		}
		if p.calls.Load() != calls {
			t.Error("the call has reached the provider")
		}
	}
	now := time.Now().Unix()
	token := func(signer, id string, expiry int64) string {
		s, err := signers[signer].Token(id, fmt.Sprintf(`{"iss":"me","exp":%d}`, expiry))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for name, port := range map[string]int{"over TCP": in, "lifted": lifted} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, port)
			for _, kind := range []string{"rs", "es", "hs"} {
				method, rule := "greet", "public"
				if kind == "hs" {
					method, rule = "secret", "secret"
				}
				told := `isthmus: denied: rule "` + rule + `"; `
				good := token(kind, kind, now+600)
				for range 3 {
					call(t, c, method, good, "")
				}
				call(t, c, method, token(kind, "", now+600), "")
				call(t, c, method, token(kind+"-forged", kind, now+600), told+"bad signature")
				call(t, c, method, good[:len(good)-10]+"AAAAAAAAAA", told+"bad signature")
				call(t, c, method, token(kind, kind, now-600), told+"token expired")
				call(t, c, method, token(kind, "other", now+600), told+"unknown key")
				call(t, c, method, "", told+"no token")
			}
			call(t, c, "none", token("rs", "rs", now+600), `isthmus: denied: rule "none"; the token cannot be verified`)
			call(t, c, "other", "", "")
		})
	}
	e.await(t, "/stats?filter=isthmus_rule_token_checks_total", "rpc_rule_name=.=public;.;rpc_filter_reason=.=bad_signature;.;isthmus_rule_token_checks_total: 8")
}
