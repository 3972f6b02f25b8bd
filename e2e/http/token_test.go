package http_test

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
)

// TestTokens shows tokens, of every algorithm, and signatures of every kind of quality, from four connections of each wire at a time, at both ends and in both modes. The secret
// is brought by a network filter in front of the connection manager.
func TestTokens(t *testing.T) {
	signers := map[string]*filtertest.Signer{}
	conf := &config.Plugin{Generation: "e2e-3"}
	carried := &config.Plugin{KeysOnly: true}
	for name, algorithm := range map[string]string{"rs": "RS256", "es": "ES256", "hs": "HS256", "other": "RS256"} {
		s, err := filtertest.NewSigner(algorithm)
		if err != nil {
			t.Fatal(err)
		}
		signers[name] = s
		key := config.Key{Name: "sso", ID: name, Algorithm: algorithm, Value: base64.StdEncoding.EncodeToString(s.Value())}
		switch name {
		case "hs":
			key.Name = "partners"
			carried.Keys = append(carried.Keys, key)
		case "rs", "es":
			conf.Keys = append(conf.Keys, key)
		}
	}
	jwt := config.Token{Attachment: "authorization", Prefix: "Bearer ", Key: "sso", JWT: &config.JWT{Issuer: "e2e"}}
	secret := jwt
	secret.Key = "partners"
	hmac := config.Token{Attachment: "x-signature", Key: "partners", HMAC: &config.HMAC{Timestamp: "x-timestamp", Attachments: []string{"tenant"}}}
	type row struct{ kind, wire, direction, mode, service string }
	var rows []row
	for kind, token := range map[string]config.Token{"jwt": jwt, "secret": secret, "hmac": hmac} {
		for _, w := range wires {
			for _, direction := range []string{"client", "server"} {
				for _, mode := range []config.Mode{config.ModeIntercept, config.ModeObserve} {
					r := row{kind, w.name, direction, string(mode), strings.Join([]string{kind, w.name, direction, string(mode)}, ".")}
					conf.Access = append(conf.Access, config.Access{Action: config.AccessAllow, Token: &token,
						Rule: config.Rule{Name: r.service, Mode: mode, Target: config.Target{Direction: direction, Service: config.Match{Exact: r.service}}}})
					rows = append(rows, r)
				}
			}
		}
	}
	e := startWith(t, conf, carried, serve(t))
	bearer := func(signer, id string, claims string) string {
		token, err := signers[signer].Token(id, claims)
		if err != nil {
			t.Fatal(err)
		}
		return "Bearer " + token
	}
	claims := func(issuer string, expiry time.Duration) string {
		return fmt.Sprintf(`{"iss":%q,"exp":%d}`, issuer, time.Now().Add(expiry).Unix())
	}
	// shown are the headers of calls, by what callers are told: "" is nothing, as they are let through.
	shown := map[string]map[string][]string{
		"jwt": {
			"":                         {bearer("rs", "rs", claims("e2e", time.Hour)), bearer("es", "es", claims("e2e", time.Hour)), bearer("es", "", claims("e2e", time.Hour))},
			"bad signature":            {bearer("other", "rs", claims("e2e", time.Hour))},
			"token expired":            {bearer("rs", "rs", claims("e2e", -time.Hour))},
			"wrong issuer":             {bearer("es", "es", claims("else", time.Hour))},
			"no token":                 {""},
			"malformed token":          {"Basic dXNlcjpwYXNz", "Bearer " + strings.Repeat("x", 9<<10)},
			"the token cannot be read": {"Bearer " + strings.Repeat("x", 20<<10)},
		},
		"secret": {
			"":                {bearer("hs", "hs", claims("e2e", time.Hour))},
			"wrong issuer":    {bearer("hs", "hs", claims("else", time.Hour))},
			"malformed token": {"Bearer a.b"},
		},
	}
	// call calls once and says what is not as it should be.
	call := func(c *client, w wire, r row, told string, headers map[string]string) error {
		got, err := c.call(w, r.service, "ok", headers)
		if err != nil {
			return err
		}
		status, message := 200, "hello"
		if w.triple {
			status, message = 0, ""
		}
		if told != "" && r.mode == "intercept" {
			if status = 403; w.triple {
				status = 7 // PERMISSION_DENIED
			}
			message = fmt.Sprintf("isthmus: denied: rule %q; %s", r.service, told)
		}
		if got.status != status || got.message != message {
			return fmt.Errorf("%s: %d %q, want %d %q", r.service, got.status, got.message, status, message)
		}
		return nil
	}
	signed := func(w wire, r row, method string, at time.Time, tenant string) map[string]string {
		service, ms := r.service, strconv.FormatInt(at.UnixMilli(), 10)
		caller := application // which the filter adds at the client, and so it is there at the server
		s, err := signers["hs"].Sign(service, "-", "-", method, caller, ms, tenant)
		if err != nil {
			t.Fatal(err)
		}
		return map[string]string{"x-signature": s, "x-timestamp": ms, "tenant": tenant}
	}
	var all sync.WaitGroup
	clients := map[string][]*client{}
	for _, w := range wires {
		for range callers {
			c := newClient(t, w, e.out)
			clients[w.name] = append(clients[w.name], c)
			all.Go(func() {
				method := "GET /x/ok"
				if w.triple {
					method = "ok"
				}
				for _, r := range rows {
					if r.wire != w.name {
						continue
					}
					for told, tokens := range shown[r.kind] {
						for _, token := range tokens {
							headers := map[string]string{}
							if token != "" {
								headers["authorization"] = token
							}
							if err := call(c, w, r, told, headers); err != nil {
								t.Error(err)
							}
						}
					}
					if r.kind != "hmac" {
						continue
					}
					altered := signed(w, r, method, time.Now(), "gold")
					altered["tenant"] = "silver"
					for _, x := range []struct {
						told    string
						headers map[string]string
					}{
						{"", signed(w, r, method, time.Now(), "gold")},
						{"bad signature", altered},
						{"bad signature", signed(w, r, "DELETE /x/ok", time.Now(), "gold")},
						{"token expired", signed(w, r, method, time.Now().Add(-time.Hour), "gold")},
						{"no token", nil},
					} {
						if err := call(c, w, r, x.told, x.headers); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
	}
	all.Wait()
	for name, cs := range clients {
		for _, c := range cs {
			if n := c.dialled.Load(); n != 1 {
				t.Errorf("a caller of %s had to connect %d times", name, n)
			}
		}
	}
	// What is found is counted, also while calls are denied without a break.
	e.until(t, "denials to be counted while they go on", func() error {
		r := row{"jwt", wires[1].name, "client", "intercept", "jwt." + wires[1].name + ".client.intercept"}
		if err := call(clients[r.wire][0], wires[1], r, "no token", nil); err != nil {
			return err
		}
		found := map[string]int{}
		e.stats(t, "isthmus_rule_token_checks_total", func(l map[string]string, n int) {
			if l["rpc_rule_name"] == r.service {
				found[l["rpc_filter_reason"]] += n
			}
		})
		// Each of the connections has shown each of them once.
		for reason, n := range map[string]int{"bad_signature": callers, "expired": callers, "issuer": callers, "malformed": 2 * callers, "unreadable": callers} {
			if found[reason] != n {
				return fmt.Errorf("%d are %s, want %d: %v", found[reason], reason, n, found)
			}
		}
		if good := found["valid"] + found["cached"]; good != 3*callers || found["missing"] <= callers {
			return fmt.Errorf("good are %d, want %d, and missing more than %d: %v", good, 3*callers, callers, found)
		}
		return nil
	})
}
