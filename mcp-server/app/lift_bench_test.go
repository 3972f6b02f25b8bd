package app

import (
	"fmt"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters/builtin"
	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/config"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
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
	for b.Loop() {
		r := Render(s, governance.Rules{}, &cfg.Spec)
		if r.Endpoints.Services() != 1000 {
			b.Fatalf("%d services are lifted: %v", r.Endpoints.Services(), r.Problems[:min(3, len(r.Problems))])
		}
	}
}
