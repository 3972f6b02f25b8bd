package zookeeper

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/adapterstest"
	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/adapters/zookeeper/zktest"
)

// loadTree puts a tree that a real application wrote into a server.
func loadTree(t *testing.T, s *zktest.Server, name string) {
	t.Helper()
	text, err := os.ReadFile("testdata/applications/" + name + ".txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if path, data, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok && line[0] != '#' {
			s.Create(path, []byte(data))
		}
	}
}

// outline describes what a view holds: services with endpoints and the codes of problems.
func outline(v *adapterstest.View) string {
	var out []string
	for key, s := range v.Services() {
		line := key.String()
		for _, e := range s.Endpoints {
			line += fmt.Sprintf(" %s:%d/%s(%s)", e.Address, e.Port, e.Protocol, e.Application)
			if e.Disabled {
				line += "-"
			}
			if len(e.Labels) > 0 {
				line += fmt.Sprint(e.Labels)
			}
		}
		for _, c := range s.Consumers {
			line += " <" + c.Address
		}
		out = append(out, line)
	}
	for _, p := range v.Problems() {
		out = append(out, p.Code+" "+p.Place)
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func awaitOutline(t *testing.T, v *adapterstest.View, lines ...string) {
	t.Helper()
	want := strings.Join(lines, "\n")
	v.Until(func() string {
		if got := outline(v); got != want {
			return fmt.Sprintf("got\n%s\nwant\n%s", got, want)
		}
		return ""
	})
}

func TestApplications(t *testing.T) {
	for name, want := range map[string][]string{
		// The instance says nothing of its services, but its address is known from the interface: no warning, nothing twice.
		"dubbo3-all": {"dubbo/demo.GreetService:1.0.0:g1 192.0.2.2:20880/dubbo(greet-provider) <192.0.2.2"},
		"dubbo3-instance": {
			"MetadataNotInRegistry /services/greet-provider",
			"dubbo/demo.GreetService <192.0.2.2",
		},
		"dubbo3-instance-remote": {"dubbo/demo.GreetService 192.0.2.2:20880/dubbo(greet-provider) <192.0.2.2"},
		"spring-cloud":           {"spring/demo-app 127.0.0.1:8080/http(demo-app)map[version:v1]"},
	} {
		t.Run(name, func(t *testing.T) {
			s := zktest.Start(t)
			loadTree(t, s, name)
			v := adapterstest.Watch(t, newDiscoverer(t, "", s.Address()), within)
			v.Synced()
			awaitOutline(t, v, want...)
		})
	}
}

const (
	remoteInstance = `{"name":"greet","id":"%[1]s:20880","address":"%[1]s","port":20880,"payload":{"@class":"org.apache.dubbo.registry.zookeeper.ZookeeperInstance","metadata":{"dubbo.endpoints":"[{\"port\":20880,\"protocol\":\"dubbo\"},{\"port\":50051,\"protocol\":\"tri\"}]","dubbo.metadata.revision":"%[2]s","dubbo.metadata.storage-type":"%[3]s","label.version":"v2"}},"registrationTimeUTC":1795393193108}`
	twoServices    = `{"app":"greet","revision":"r1","services":{"blue/demo.Greet:1.0.0:dubbo":{"name":"demo.Greet","group":"blue","version":"1.0.0","protocol":"dubbo","path":"demo.Greet","port":20880,"params":{"weight":"30","methods":"b,a"}},"demo.Other:tri":{"name":"demo.Other","protocol":"tri","port":50051,"params":{"version":"0.0.0"}},"demo.Local:injvm":{"name":"demo.Local","protocol":"injvm"}}}`
	oneService     = `{"app":"greet","revision":"r2","services":{"demo.Other:tri":{"name":"demo.Other","protocol":"tri","port":50051,"params":{}}}}`
)

func TestApplicationsChange(t *testing.T) {
	t.Parallel()
	s := zktest.Start(t)
	v := adapterstest.Watch(t, newDiscoverer(t, "", s.Address()), within)
	v.Synced()
	put := func(ip, revision, storage string) {
		path := "/services/greet/" + ip + ":20880"
		data := fmt.Appendf(nil, remoteInstance, ip, revision, storage)
		s.Create(path, data)
		s.Set(path, data)
	}
	put("192.0.2.1", "r1", "remote")
	awaitOutline(t, v, "MetadataMissing /dubbo/metadata/greet/r1")
	s.Create("/dubbo/metadata/greet/r1", []byte(twoServices))
	awaitOutline(t, v,
		"dubbo/demo.Greet:1.0.0:blue 192.0.2.1:20880/dubbo(greet)map[version:v2]",
		"dubbo/demo.Other 192.0.2.1:50051/tri(greet)map[version:v2]")
	if svc := v.Services()[model.Key{Framework: "dubbo", Interface: "demo.Greet", Version: "1.0.0", Group: "blue"}]; *svc.Endpoints[0].Weight != 30 {
		t.Errorf("weight %d", *svc.Endpoints[0].Weight)
	}

	// Another instance of the same revision costs one read, not two; another revision appears while both run.
	before := s.Count(zktest.OpGetData)
	put("192.0.2.2", "r1", "remote")
	both := []string{
		"dubbo/demo.Greet:1.0.0:blue 192.0.2.1:20880/dubbo(greet)map[version:v2] 192.0.2.2:20880/dubbo(greet)map[version:v2]",
		"dubbo/demo.Other 192.0.2.1:50051/tri(greet)map[version:v2] 192.0.2.2:50051/tri(greet)map[version:v2]"}
	awaitOutline(t, v, both...)
	if n := s.Count(zktest.OpGetData) - before; n > 2 { // it may be read between its creation and its change
		t.Errorf("%d reads for another instance", n)
	}
	s.Create("/dubbo/metadata/greet/r2", []byte(oneService))
	put("192.0.2.1", "r2", "remote")
	awaitOutline(t, v, "dubbo/demo.Greet:1.0.0:blue 192.0.2.2:20880/dubbo(greet)map[version:v2]", both[1])

	// What an operator cannot see from here is said, unless it is known from the interface.
	put("192.0.2.3", "r1", "local")
	awaitOutline(t, v, "MetadataNotInRegistry /services/greet", "dubbo/demo.Greet:1.0.0:blue 192.0.2.2:20880/dubbo(greet)map[version:v2]", both[1])
	for _, port := range []string{"20880", "50051"} {
		s.Create("/dubbo/demo.Plain/providers/dubbo%3A%2F%2F192.0.2.3%3A"+port+"%2Fdemo.Plain%3Fapplication%3Dgreet", nil)
	}
	plain := "dubbo/demo.Plain 192.0.2.3:20880/dubbo(greet) 192.0.2.3:50051/dubbo(greet)"
	awaitOutline(t, v, "dubbo/demo.Greet:1.0.0:blue 192.0.2.2:20880/dubbo(greet)map[version:v2]", both[1], plain)
	s.Delete("/dubbo/demo.Plain")
	awaitOutline(t, v, "MetadataNotInRegistry /services/greet", "dubbo/demo.Greet:1.0.0:blue 192.0.2.2:20880/dubbo(greet)map[version:v2]", both[1])
	s.Delete("/services/greet/192.0.2.3:20880")
	awaitOutline(t, v, "dubbo/demo.Greet:1.0.0:blue 192.0.2.2:20880/dubbo(greet)map[version:v2]", both[1])

	// Faulty data; and others use the tree as well.
	s.Create("/services/greet/bad", []byte("{"))
	s.Create("/services/greet/empty", nil)
	s.Create("/services/else/x", []byte(`{"name":"else","payload":{"@class":"org.example.Other"}}`))
	s.Create("/services/shop/1", []byte(`{"name":"shop","address":"192.0.2.9","port":8080,"payload":{"@class":"org.springframework.cloud.zookeeper.discovery.ZookeeperInstance","metadata":{"instance_status":"OUT_OF_SERVICE","token":"t"}}}`))
	s.Create("/services/shop/2", []byte(`{"name":"shop","address":"192.0.2.9","payload":{"@class":"org.springframework.cloud.zookeeper.discovery.ZookeeperInstance"}}`))
	awaitOutline(t, v, "MalformedInstance /services/greet/bad", "MissingAddress /services/shop/2",
		"dubbo/demo.Greet:1.0.0:blue 192.0.2.2:20880/dubbo(greet)map[version:v2]", both[1], "spring/shop 192.0.2.9:8080/http(shop)-")
	s.Set("/dubbo/metadata/greet/r1", []byte("[]"))
	s.Delete("/services/shop")
	s.Delete("/services/greet/bad")
	awaitOutline(t, v, "MalformedMetadata /dubbo/metadata/greet/r1", "dubbo/demo.Other 192.0.2.1:50051/tri(greet)map[version:v2]")

	// Everything again after a lost session.
	s.Set("/dubbo/metadata/greet/r1", []byte(twoServices))
	s.Expire()
	awaitOutline(t, v, "dubbo/demo.Greet:1.0.0:blue 192.0.2.2:20880/dubbo(greet)map[version:v2]", both[1])
	s.Delete("/services")
	awaitOutline(t, v)
}

func FuzzInstance(f *testing.F) {
	f.Add(fmt.Appendf(nil, remoteInstance, "192.0.2.1", "r1", "remote"), []byte(twoServices))
	f.Add([]byte(`{"name":"shop","address":"192.0.2.9","port":8080,"sslPort":8443,"payload":{"@class":"org.springframework.cloud.X","metadata":{"weight":"x","zone":1}}}`), []byte(oneService))
	f.Add([]byte(`{"address":"::1","port":-1,"payload":{"@class":"org.apache.dubbo.X","metadata":{"dubbo.metadata.revision":"r1","dubbo.metadata.storage-type":"remote"}}}`), []byte(`{"services":{"x":null}}`))
	f.Fuzz(func(t *testing.T, data, meta []byte) {
		w := &watch{d: New(Settings{}, adapters.Options{}), known: map[string]int{}, waiting: map[string]map[*unit]struct{}{}, nodes: map[string]*node{}, changed: map[string]struct{}{}}
		u := &unit{source: "/services/a", name: "a", root: rootOf{"/services", layouts[layoutApplications]}, parts: map[string]*node{"i": {path: "/services/a/i", data: data}}, metadata: map[string]*node{}}
		w.revisions(u)
		for r := range u.metadata {
			u.metadata[r].data = meta
		}
		g := model.Group{Source: u.source}
		g.Services, g.Problems = w.application(u)
		if err := adapterstest.CheckGroup(g); err != nil {
			t.Error(err)
		}
	})
}
