package app

import (
	"fmt"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters/builtin"
	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/config"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
	"github.com/isthmus-mesh/isthmus/mcp-server/xds"
)

// BenchmarkRenderLifted renders 1,000 lifted services of 10 endpoints: what stands between a snapshot and endpoint discovery.
func BenchmarkRenderLifted(b *testing.B) {
	cfg, err := config.Parse([]byte("apiVersion: isthmus.io/v1alpha1\nkind: MCPServer\nspec:\n  mesh: {lift: {services: [{framework: dubbo}]}}\n  filter: {url: \"file:///isthmus.wasm\"}\n"), builtin.Kinds)
	if err != nil {
		b.Fatal(err)
	}
	s := &model.Snapshot{Version: 1, Time: time.Now(), Complete: true}
	for i := range 1000 {
		svc := model.Service{Key: model.Key{Framework: "dubbo", Interface: fmt.Sprintf("demo.Service%d", i)}}
		for j := range 10 {
			svc.Endpoints = append(svc.Endpoints, model.Endpoint{Address: fmt.Sprintf("10.%d.%d.%d", i/250, i%250, j+1), Port: 20880, Protocol: model.ProtocolDubbo, Application: "shop"})
		}
		s.Services = append(s.Services, svc)
	}
	var until time.Duration // endpoints are known
	for b.Loop() {
		began := time.Now()
		r := render(s, governance.Rules{}, nil, &cfg.Spec, "", func(*xds.Assignments) { until += time.Since(began) }, func(string) func() { return func() {} })
		if r.Endpoints.Services() != 1000 {
			b.Fatalf("%d services are lifted: %v", r.Endpoints.Services(), r.Problems[:min(3, len(r.Problems))])
		}
	}
	b.ReportMetric(float64(until.Nanoseconds())/float64(b.N), "endpoints-ns/op")
}
