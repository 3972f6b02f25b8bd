package policy_test

import (
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/match"
)

func network(t *testing.T, s string) match.Network {
	t.Helper()
	n, ok := match.ParseNetwork(s)
	if !ok {
		t.Fatal(s)
	}
	return n
}

func TestConditions(t *testing.T) {
	address, _ := match.ParseAddress([]byte("10.1.2.3"))
	peer := &policy.Peer{Address: address, AddressKnown: true, Identity: []byte("spiffe://td/ns/a/sa/b")}
	in := func(s ...string) match.Strings { return match.Strings{In: s} }
	server := policy.Call{Direction: policy.DirectionServer, App: []byte("own"), Caller: []byte("web"), Peer: peer,
		Attachments: [][]byte{nil, []byte("v"), {}}, LoadTest: true}
	client := server
	client.Direction, client.Caller, client.LoadTest = policy.DirectionClient, nil, false
	unknown := server
	unknown.Unreadable, unknown.Peer, unknown.App = true, &policy.Peer{}, nil
	bare := policy.Call{Direction: policy.DirectionServer}
	for name, c := range map[string]struct {
		x                             policy.Condition
		server, client, unknown, bare bool
	}{
		"caller":            {policy.Condition{Subject: policy.SubjectCaller, Strings: in("web")}, true, false, true, false},
		"own caller":        {policy.Condition{Subject: policy.SubjectCaller, Strings: in("own")}, false, true, false, false},
		"not the caller":    {policy.Condition{Subject: policy.SubjectCaller, Strings: in("web"), Not: true}, false, true, false, true},
		"some caller":       {policy.Condition{Subject: policy.SubjectCaller, Exists: true}, true, true, true, false},
		"provider":          {policy.Condition{Subject: policy.SubjectProvider, Strings: in("own")}, true, false, false, false},
		"not the provider":  {policy.Condition{Subject: policy.SubjectProvider, Strings: in("x"), Not: true}, true, false, false, false},
		"address":           {policy.Condition{Subject: policy.SubjectAddress, Networks: []match.Network{network(t, "10.0.0.0/16"), network(t, "10.1.0.0/16")}}, true, true, false, false},
		"not the address":   {policy.Condition{Subject: policy.SubjectAddress, Networks: []match.Network{network(t, "::/0")}, Not: true}, false, false, false, false},
		"not this address":  {policy.Condition{Subject: policy.SubjectAddress, Networks: []match.Network{network(t, "10.1.2.4")}, Not: true}, true, true, false, false},
		"some address":      {policy.Condition{Subject: policy.SubjectAddress, Exists: true}, true, true, false, false},
		"identity":          {policy.Condition{Subject: policy.SubjectIdentity, Strings: match.Strings{Prefix: "spiffe://td/ns/a/"}}, true, false, false, false},
		"not the identity":  {policy.Condition{Subject: policy.SubjectIdentity, Strings: in("x"), Not: true}, true, true, true, true},
		"absent attachment": {policy.Condition{Subject: policy.SubjectAttachment, Key: 0, Exists: true}, false, false, false, false},
		"attachment":        {policy.Condition{Subject: policy.SubjectAttachment, Key: 1, Strings: in("u", "v")}, true, true, false, false},
		"empty attachment":  {policy.Condition{Subject: policy.SubjectAttachment, Key: 2, Exists: true}, true, true, false, false},
		"not an attachment": {policy.Condition{Subject: policy.SubjectAttachment, Key: 0, Strings: in("v"), Not: true}, true, true, false, false},
		"traffic":           {policy.Condition{Subject: policy.SubjectTraffic, Strings: in("loadTest")}, true, false, false, false},
		"not the traffic":   {policy.Condition{Subject: policy.SubjectTraffic, Strings: in("loadTest"), Not: true}, false, true, false, true},
	} {
		cs := policy.Conditions{c.x}
		if got := [4]bool{cs.Hold(&server), cs.Hold(&client), cs.Hold(&unknown), cs.Hold(&bare)}; got != [4]bool{c.server, c.client, c.unknown, c.bare} {
			t.Errorf("%s: %v, want %v", name, got, [4]bool{c.server, c.client, c.unknown, c.bare})
		}
		if n := testing.AllocsPerRun(100, func() { cs.Hold(&server) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	yes := policy.Condition{Subject: policy.SubjectCaller, Exists: true}
	no := policy.Condition{Subject: policy.SubjectProvider, Strings: in("x")}
	if !(policy.Conditions{yes, yes}).Hold(&server) || (policy.Conditions{yes, no}).Hold(&server) || !(policy.Conditions{}).Hold(&bare) {
		t.Error("conditions are not joined by and")
	}
}
