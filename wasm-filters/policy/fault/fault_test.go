package fault

import (
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// TestShare: as many calls fail as are to, within what chance allows (five standard deviations), whatever the rule's name and
// however regularly they come.
func TestShare(t *testing.T) {
	const n = 200_000
	for _, share := range []uint32{1, 1000, 10_000, 500_000, 999_999, 1_000_000} {
		for _, gap := range []policy.Nanos{0, 1, 1_000_000, 1 << 40} {
			for _, name := range []string{"a", "shop/drill"} {
				s := Set{New(name, Params{Code: protocol.CodeAborted, PerMillion: share}, false)}
				failed := 0
				for i := range n {
					if s.Admit(policy.Nanos(i)*gap, new(policy.Call)).Reject {
						failed++
					}
				}
				p := float64(share) / 1e6
				off := float64(failed) - n*p
				if off*off > 25*n*p*(1-p)+25 {
					t.Errorf("%s every %d ns: %d of %d failed, %v were to", name, gap, failed, n, n*p)
				}
				if h := *s[0].Hits(); h != (policy.Hits{Admitted: n - uint64(failed), Rejected: uint64(failed)}) {
					t.Errorf("%+v", h)
				}
			}
		}
	}
}

// TestOrder: of several rules that apply the first one is tried, and only that; rules that observe stand beside.
func TestOrder(t *testing.T) {
	watch := New("watch", Params{Code: protocol.CodeAborted, PerMillion: 1_000_000}, true)
	other := New("other", Params{Code: protocol.CodeDenied, PerMillion: 1_000_000}, false)
	other.Renew(false, policy.Conditions{{Subject: policy.SubjectIdentity, Exists: true}})
	seldom := New("seldom", Params{Code: protocol.CodeTimeout, PerMillion: 1, Message: "m"}, false)
	always := New("always", Params{Code: protocol.CodeAborted, PerMillion: 1_000_000}, false)
	s := Set{watch, other, seldom, always}
	if v := s.Admit(1, new(policy.Call)); v.Reject {
		t.Errorf("%+v: the second one was tried", v)
	}
	if *watch.Hits() != (policy.Hits{WouldReject: 1}) || *other.Hits() != (policy.Hits{}) || *always.Hits() != (policy.Hits{}) {
		t.Error("counted wrongly")
	}
	s = Set{New("now", Params{Code: protocol.CodeTimeout, PerMillion: 1_000_000, Message: "m"}, false)}
	if v := s.Admit(1, new(policy.Call)); !v.Reject || v.Code != protocol.CodeTimeout || v.Rule != "now" || v.Answer.Message != "m" || len(v.Answer.Replies) > 0 {
		t.Errorf("%+v", v)
	}
	if n := testing.AllocsPerRun(1000, func() { s.Admit(1, new(policy.Call)) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
