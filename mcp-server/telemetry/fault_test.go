package telemetry

import (
	"fmt"
	"testing"
	"time"
)

// A fault is told of from when it was counted until it has not been for a while; what else filters count of connections is none.
func TestFaults(t *testing.T) {
	now := time.Now()
	says := func(unreadable, encrypted int, at time.Time) *page {
		return read(t, fmt.Sprintf(`isthmus_filter_faults_total{rpc_direction="client",rpc_system="dubbo",rpc_filter_reason="unknown_serialization"} %d
isthmus_filter_connections_total{rpc_direction="server",rpc_system="tls"} %d
isthmus_filter_connections_total{rpc_direction="server",rpc_system="dubbo"} 9
`, unreadable, encrypted), at)
	}
	s := New(Options{Targets: []Target{{"a", "http://a"}}})
	for _, step := range []struct {
		name string
		page *page
		want []Fault
	}{
		{"nothing", says(0, 0, now.Add(-3*faultsKept)), nil},
		{"one kind", says(3, 0, now.Add(-2*faultsKept)), nil},
		{"the other", says(3, 2, now.Add(-time.Minute)), []Fault{{"a", "server", "", FaultEncrypted, 2, now.Add(-time.Minute)}}},
		{"again", says(4, 2, now), []Fault{{"a", "server", "", FaultEncrypted, 2, now.Add(-time.Minute)}, {"a", "client", "dubbo", "unknown_serialization", 4, now}}},
		{"a new Envoy", read(t, `isthmus_filter_faults_total{rpc_direction="client",rpc_system="dubbo",rpc_filter_reason="unknown_serialization"} 1`+"\n", now),
			[]Fault{{"a", "client", "dubbo", "unknown_serialization", 1, now}}},
	} {
		s.took(s.targets[0], step.page, nil)
		if got := s.Report().Faults; fmt.Sprint(got) != fmt.Sprint(step.want) && len(got)+len(step.want) > 0 {
			t.Errorf("%s: %v, want %v", step.name, got, step.want)
		}
	}
}
