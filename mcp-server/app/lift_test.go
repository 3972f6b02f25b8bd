package app

import (
	"context"
	"fmt"
	"strings"
	"testing"

	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	endpointservice "github.com/envoyproxy/go-control-plane/envoy/service/endpoint/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/isthmus-mesh/isthmus/mcp-server/xds"
)

const lifting = `  mesh: {lift: {services: [{framework: dubbo}], attachments: [tenant]}}
  xds: {address: "127.0.0.1:0", advertise: "127.0.0.1:15992", token: {file: token}}
`

const route = `apiVersion: governance.isthmus.io/v1alpha1
kind: RouteRule
metadata: {name: r}
spec:
  service: {interface: demo.One}
  routes:
  - to: [{labels: {version: v2}}]
`

// Everything about a lifted service goes to whom it is for: its host, its route and the filter to istiod, its endpoints, also those
// of the route's group, to sidecars.
func TestLifted(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/isthmus.yaml", strings.ReplaceAll(configuration+lifting, "DIR", dir))
	write(t, dir+"/token", "secret\n")
	write(t, dir+"/services.yaml", fmt.Sprintf(services, "One"))
	p := start(t, dir)
	i := p.istiod()
	p.until("istiod", func() bool {
		return i.has(serviceEntry, "default/demo.one.dubbo", "default/providers-20880") && i.has(envoyFilter, "istio-system/isthmus-lift") &&
			i.has(trafficExtension, "istio-system/isthmus-lift", "istio-system/isthmus-lower", "istio-system/isthmus-lower-caller")
	})
	if code, body := p.get("/readyz"); code != 200 {
		t.Errorf("not ready: %s", body)
	}

	conn, err := grpc.NewClient("passthrough:///"+p.xds, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer secret"))
	defer cancel()
	stream, err := endpointservice.NewEndpointDiscoveryServiceClient(conn).DeltaEndpoints(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const all, group = "outbound|20880||demo.one.dubbo.isthmus", "outbound|20880|v2-or-all|demo.one.dubbo.isthmus"
	if err := stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: xds.TypeURL, ResourceNamesSubscribe: []string{all}}); err != nil {
		t.Fatal(err)
	}
	ids := func(name string) (out []string) {
		t.Helper()
		r, err := stream.Recv()
		if err != nil || len(r.Resources) != 1 || r.Resources[0].Name != name {
			t.Fatalf("got %v, %v", r, err)
		}
		var c endpoint.ClusterLoadAssignment
		if err := r.Resources[0].Resource.UnmarshalTo(&c); err != nil {
			t.Fatal(err)
		}
		for _, l := range c.Endpoints {
			for _, e := range l.LbEndpoints {
				out = append(out, e.GetEndpoint().GetAddress().GetEnvoyInternalAddress().GetEndpointId())
			}
		}
		return out
	}
	is := func(got []string, want string) {
		t.Helper()
		if strings.Join(got, " ") != want {
			t.Errorf("got %q, want %s", got, want)
		}
	}
	is(ids(all), "10.0.0.1:20880")
	two := strings.Replace(fmt.Sprintf(services, "One"), "application: demo}", "application: demo}, {address: 10.0.0.2, port: 20880, application: demo, labels: {version: v2}}", 1)
	p.write("services.yaml", two)
	is(ids(all), "10.0.0.1:20880 10.0.0.2:20880")
	p.write("rules/r.yaml", route)
	p.until("the route", func() bool {
		return i.has(virtualService, "default/route-demo.one.dubbo") && i.has(destinationRule, "default/route-demo.one.dubbo")
	})
	if err := stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: xds.TypeURL, ResourceNamesSubscribe: []string{group}, ResourceNamesUnsubscribe: []string{all}}); err != nil {
		t.Fatal(err)
	}
	is(ids(group), "10.0.0.2:20880")
	p.write("services.yaml", fmt.Sprintf(services, "One"))
	is(ids(group), "10.0.0.1:20880") // nobody of the group is left
}

// Services that are selected while nobody listens for sidecars stay as they are until the next start, and a Problem says so.
func TestLiftedLater(t *testing.T) {
	dir := t.TempDir()
	text := strings.ReplaceAll(configuration, "DIR", dir)
	write(t, dir+"/isthmus.yaml", text)
	write(t, dir+"/services.yaml", fmt.Sprintf(services, "One"))
	p := start(t, dir)
	if p.xds != "" {
		t.Errorf("it listens at %s for nobody", p.xds)
	}
	i := p.istiod()
	p.until("istiod", func() bool { return i.has(serviceEntry, "default/demo.one.dubbo", "default/port-20880") })
	p.write("isthmus.yaml", text+"  mesh: {lift: {services: [{framework: dubbo}]}}\n")
	p.until("the Problem", func() bool {
		code, body := p.get("/api/v1/problems?code=RestartNeeded")
		return code == 200 && strings.Contains(body, "no service is lifted before")
	})
	if !i.has(serviceEntry, "default/demo.one.dubbo", "default/port-20880") {
		t.Error("it was lifted all the same")
	}
}
