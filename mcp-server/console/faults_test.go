package console

import (
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/mcp-server/telemetry"
)

// What sidecars cannot read is a Problem beside the others, which says where and what that means.
func TestSidecarsProblems(t *testing.T) {
	_, c := serve(t, Options{Traffic: func() telemetry.Report {
		return telemetry.Report{Targets: []telemetry.Status{{Name: "a", URL: "http://10.0.0.1:15090/stats/prometheus"}}, Faults: []telemetry.Fault{
			{Target: "a", Direction: "server", System: "dubbo", Reason: "unknown_serialization", Total: 3},
			{Target: "b", Direction: "client", Reason: "unlifted", Total: 1},
			{Target: "b", Direction: "client", Reason: telemetry.FaultEncrypted, Total: 2},
			{Target: "b", Direction: "client", System: "bolt", Reason: "id_reuse", Total: 2}, // not that the calls are not governed
		}}
	}})
	list, err := c.Problems(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range list.Items {
		if p.Stage == "sidecar" {
			got = append(got, p.Place+": "+p.Code+": "+p.Message[:strings.IndexByte(p.Message, ':')])
		}
	}
	want := []string{
		"sidecar a of greeter, as server: Unreadable: 3 requests of dubbo are in a serialization that the filter cannot read",
		"sidecar b, as client: NotLifted: 1 connections to ports on which calls are lifted speak none of the protocols that can be, and no HTTP",
		"sidecar b, as client: Encrypted: 2 connections are encrypted by the application itself, so they pass",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
