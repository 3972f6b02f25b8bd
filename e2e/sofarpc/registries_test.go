package sofarpc

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/isthmus-mesh/isthmus/e2e/machine"
	"github.com/isthmus-mesh/isthmus/e2e/mesh"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
	"github.com/isthmus-mesh/isthmus/e2e/rig"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
)

const sofaRegistry = "sofaregistry"

// TestTwoRegistries: a service on its way from SOFARegistry to ZooKeeper, with providers in the one, in the other and in both, is one
// service, each provider is there once, with the registries that name it, and leaves when the last one has let go of it.
func TestTwoRegistries(t *testing.T) {
	m := rig.Mesh(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	x, err := m.Machine(sofaRegistry)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("%s:%d", x.Address(), mesh.SOFASessionHTTPPort)
	if err := m.StartZooKeeper(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := m.StartSOFARegistry(ctx, sofaRegistry, peer.SOFARegistry6); err != nil {
		t.Fatal(err)
	}
	if err := m.ConfigureServer(mesh.ServerOptions{NoFilter: true, Registries: []mesh.Registry{
		{Name: "zk", Kind: "zookeeper", Settings: map[string]any{"servers": []string{mesh.ZooKeeperAddress()}}},
		{Name: "sofa", Kind: "sofaregistry", Settings: map[string]any{"servers": []string{address}}}}}); err != nil {
		t.Fatal(err)
	}
	if err := m.StartServer(ctx); err != nil {
		t.Fatal(err)
	}
	inSOFA := []string{"-Dregistry.protocol=sofa", "-Dregistry.address=" + address}
	inBoth := []string{"-Dregistry2.protocol=sofa", "-Dregistry2.address=" + address}
	providers := map[string]mesh.JVM{
		"old":    {Peer: peer.SOFARPC, Name: providerApp, Main: "demo.Provider", Options: append([]string{"-Dapp.name=" + providerApp}, inSOFA...)},
		"new":    sofa("demo.Provider", providerApp),
		"moving": sofa("demo.Provider", providerApp, inBoth...),
	}
	for name := range providers { // before they start side by side
		if _, err := m.Machine(name); err != nil {
			t.Fatal(err)
		}
	}
	var moving *machine.Process
	var g errgroup.Group
	for name, j := range providers {
		g.Go(func() error {
			p, err := ready(ctx, m, name, j)
			if name == "moving" {
				moving = p
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}

	// expect waits until the service's providers are those, by machine, with the registries that name them.
	expect := func(want map[string]string) {
		t.Helper()
		until(t, "the service's providers", func(ctx context.Context) error {
			body, err := m.API(ctx, "/api/v1/services")
			if err != nil {
				return err
			}
			var list api.ServiceList
			if err := json.Unmarshal(body, &list); err != nil {
				return err
			}
			if len(list.Items) != 1 {
				return fmt.Errorf("there are %d services", len(list.Items))
			}
			if body, err = m.API(ctx, "/api/v1/services/"+list.Items[0].ID); err != nil {
				return err
			}
			var detail api.ServiceDetail
			if err := json.Unmarshal(body, &detail); err != nil {
				return err
			}
			names := map[string]string{} // by address
			for name := range providers {
				x, err := m.Machine(name)
				if err != nil {
					return err
				}
				names[x.Address().String()] = name
			}
			have := map[string]string{}
			for _, e := range detail.ProviderList {
				name := names[e.Address]
				if _, twice := have[name]; twice || e.Port != port {
					return fmt.Errorf("%s:%d is there besides %v", e.Address, e.Port, have)
				}
				for _, o := range e.Origins {
					have[name] += " " + o.Registry
				}
			}
			if !maps.Equal(have, want) || len(detail.Hosts) != 1 || detail.Hosts[0].Host != "demo.hello-service.v1-0.sofa.isthmus" {
				return fmt.Errorf("they are %v at %+v, and should be %v", have, detail.Hosts, want)
			}
			return nil
		})
	}
	expect(map[string]string{"old": " sofa", "new": " zk", "moving": " sofa zk"})
	if err := moving.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	expect(map[string]string{"old": " sofa", "new": " zk"})
}
