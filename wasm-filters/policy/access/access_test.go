package access

import (
	"fmt"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/match"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/token"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// from applies to the calls of some applications.
func from(apps ...string) policy.Conditions {
	return policy.Conditions{{Subject: policy.SubjectCaller, Strings: match.Strings{In: apps}}}
}

// rule returns a rule with conditions.
func rule(name string, a Action, observe bool, when policy.Conditions) *Rule {
	r := New(name, a, observe)
	r.Renew(observe, when)
	return r
}

func TestSet(t *testing.T) {
	deny := func(apps ...string) *Rule { return rule("deny", Deny, false, from(apps...)) }
	allow := func(apps ...string) *Rule { return rule("allow", Allow, false, from(apps...)) }
	all := rule("all", Allow, false, nil)
	closed := New("closed", DefaultDeny, false)
	watch := func(r *Rule) *Rule { return rule("watch-"+r.Name(), r.Action(), true, from("b")) }
	for name, c := range map[string]struct {
		set   Set
		a, b  string // the rule that denies a call of these; "?" before the name: would deny it
		other string
	}{
		"none":                            {nil, "", "", ""},
		"deny":                            {Set{deny("a")}, "deny", "", ""},
		"allow":                           {Set{allow("a")}, "", "allow", "allow"},
		"two lists":                       {Set{allow("a"), allow("b")}, "", "", "allow"},
		"deny goes before":                {Set{all, deny("a")}, "deny", "", ""},
		"default deny":                    {Set{closed}, "closed", "closed", "closed"},
		"default deny and allow":          {Set{closed, allow("b")}, "closed", "", "closed"},
		"observed deny":                   {Set{watch(deny())}, "", "?watch-deny", ""},
		"observed allow":                  {Set{watch(allow())}, "?watch-allow", "", "?watch-allow"},
		"observed allow does not allow":   {Set{allow("a"), watch(allow())}, "", "allow", "allow"},
		"observed beside one in force":    {Set{allow("a"), watch(closed)}, "", "allow", "allow"},
		"observed default deny":           {Set{watch(closed), watch(allow())}, "?watch-closed", "", "?watch-closed"},
		"a denied call is not watched":    {Set{deny("b"), watch(deny())}, "", "deny", ""},
		"observed deny of an allowed one": {Set{allow("a", "b"), watch(deny())}, "", "?watch-deny", "allow"},
	} {
		for app, want := range map[string]string{"a": c.a, "b": c.b, "c": c.other} {
			v := c.set.Admit(0, &policy.Call{Caller: []byte(app)})
			got := v.Rule
			if !v.Reject && got != "" {
				got = "?" + got
			}
			if got != want || got != "" && v.Code != protocol.CodeDenied || v.RetryAfterMillis != 0 {
				t.Errorf("%s: caller %s: %+v, want %q", name, app, v, want)
			}
		}
	}
	if v := (Set{allow("a")}).Admit(0, new(policy.Call)); !v.Reject {
		t.Error("a call without a caller is allowed")
	}
}

// TestToken: an allow rule applies only to calls with a good token. Where only that is missing the rule says so, whatever comes before it; a deny rule goes first.
func TestToken(t *testing.T) {
	proof := func(name string, observe bool, when policy.Conditions, open bool) *Rule {
		r := rule(name, Allow, observe, when)
		r.SetToken(token.New(token.Params{JWT: &token.JWT{}, Open: open}, nil)) // without keys nothing is verified
		return r
	}
	closed := New("closed", DefaultDeny, false)
	for name, c := range map[string]struct {
		set  Set
		rule string // that denies; "?" before it: would deny
		why  string
	}{
		"denied":             {Set{closed, proof("token", false, nil, false)}, "token", "the token cannot be verified"},
		"open":               {Set{closed, proof("token", false, nil, true)}, "", ""},
		"another rule":       {Set{proof("token", false, nil, false), rule("all", Allow, false, nil)}, "", ""},
		"other callers'":     {Set{closed, proof("token", false, from("b"), false)}, "closed", ""},
		"deny goes before":   {Set{proof("token", false, nil, false), rule("deny", Deny, false, nil)}, "deny", ""},
		"observed":           {Set{proof("watch", true, nil, false)}, "?watch", "the token cannot be verified"},
		"observed beside it": {Set{proof("watch", true, nil, true), proof("token", false, nil, false)}, "token", "the token cannot be verified"},
	} {
		v := c.set.Admit(0, &policy.Call{Caller: []byte("a"), Wall: 1, Attachments: [][]byte{[]byte("a.b.c")}})
		got, why := v.Rule, ""
		if !v.Reject && got != "" {
			got = "?" + got
		}
		if v.Answer != nil {
			why = v.Answer.Message
		}
		if got != c.rule || why != c.why {
			t.Errorf("%s: %q %q, want %q %q", name, got, why, c.rule, c.why)
		}
	}
	s := Set{rule("deny", Deny, false, nil), proof("token", false, nil, false)}
	s.Admit(0, &policy.Call{Wall: 1, Attachments: [][]byte{[]byte("a.b.c")}})
	if s[1].Token().Counts != [token.Results]uint64{} {
		t.Error("a call that is denied anyhow has its token checked")
	}
}

func TestHits(t *testing.T) {
	s := Set{rule("deny", Deny, false, from("a")), rule("allow", Allow, false, from("a", "b")), rule("watch", Deny, true, nil), rule("more", Allow, true, from("b"))}
	for _, app := range []string{"a", "b", "c", "b"} {
		s.Admit(0, &policy.Call{Caller: []byte(app)})
	}
	want := []policy.Hits{{Rejected: 1}, {Admitted: 2, Rejected: 1}, {WouldReject: 2}, {Admitted: 2}}
	for i, r := range s {
		if *r.Hits() != want[i] {
			t.Errorf("%s: %+v, want %+v", r.Name(), *r.Hits(), want[i])
		}
	}
}

// TestOrder: which of several lists decides does not depend on their order, except for whose name is told.
func TestOrder(t *testing.T) {
	rules := []*Rule{rule("0", Deny, false, from("a")), rule("1", Allow, false, from("b")), rule("2", Allow, false, from("c", "a")), New("3", DefaultDeny, false)}
	for i := range rules {
		for k := range rules {
			s := append(append(Set{}, rules[i:]...), rules[:i]...)
			s[0], s[k] = s[k], s[0]
			for app, want := range map[string]bool{"a": true, "b": false, "c": false, "d": true} {
				if s.Admit(0, &policy.Call{Caller: []byte(app)}).Reject != want {
					t.Errorf("rotated by %d, %d first: caller %s: rejected is not %v", i, k, app, want)
				}
			}
		}
	}
}

func TestDoesNotAllocate(t *testing.T) {
	var s Set
	for i := range 20 {
		s = append(s, rule(fmt.Sprint(i), Action(i%3), i%2 == 0, from("a", fmt.Sprint(i))))
	}
	c := policy.Call{Caller: []byte("a")}
	if n := testing.AllocsPerRun(1000, func() { s.Admit(0, &c) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
