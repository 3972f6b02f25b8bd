package degrade

import (
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// TestOrder: the first rule that applies answers; rules that observe stand beside.
func TestOrder(t *testing.T) {
	watch := New("watch", nil, true)
	other := New("other", nil, false)
	other.Renew(false, policy.Conditions{{Subject: policy.SubjectIdentity, Exists: true}})
	first := New("first", []policy.Reply{{Protocol: "dubbo", Serialization: 2, Value: []byte("N")}}, false)
	second := New("second", nil, false)
	s := Set{watch, other, first, second}
	v := s.Admit(1, new(policy.Call))
	if !v.Reject || v.Code != protocol.CodeUnavailable || v.Rule != "first" || len(v.Answer.Replies) != 1 {
		t.Errorf("%+v", v)
	}
	if v := (Set{second}).Admit(1, new(policy.Call)); !v.Reject || v.Answer != nil {
		t.Errorf("%+v", v)
	}
	want := []policy.Hits{{WouldReject: 1}, {}, {Rejected: 1}, {Rejected: 1}}
	for i, r := range s {
		if *r.Hits() != want[i] {
			t.Errorf("%s: %+v, want %+v", r.Name(), *r.Hits(), want[i])
		}
	}
	if v := (Set{watch}).Admit(1, new(policy.Call)); v.Reject {
		t.Errorf("%+v", v)
	}
	if n := testing.AllocsPerRun(1000, func() { s.Admit(1, new(policy.Call)) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
