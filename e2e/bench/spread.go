package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/template"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	endpointservice "github.com/envoyproxy/go-control-plane/envoy/service/endpoint/v3"
	"github.com/go-zookeeper/zk"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
	"github.com/isthmus-mesh/isthmus/mcp-server/translate"
	"github.com/isthmus-mesh/isthmus/mcp-server/xds"
)

// A spread is how long a change in a registry takes to reach those who have to know of it: a real ZooKeeper holds the services, mcp-server
// reads it, and sidecars and istiod are told.
type spread struct {
	services int // lifted, of endpointsEach endpoints on machines of their own
	changes  int // of one endpoint each
	client   latencies
	envoy    latencies
	istiod   latencies
	cpu      time.Duration // of mcp-server, for each change
	rss      int64         // of mcp-server after all of them, in bytes
}

const (
	endpointsEach = 10
	spreadPort    = 20880
	warmUps       = 10 // changes that are not counted
	// watched is how many services the Envoy has clusters of. Its page of statistics, which is read every millisecond, takes the
	// longer the more there are; the client of endpoint discovery has all of them, a stream for each as an Envoy would.
	watched = 10
	// longest is how long a change may take; beyond that something is broken.
	longest = 60 * time.Second
)

// child is a program that was started.
type child struct {
	cmd  *exec.Cmd
	name string
	log  string
	done chan struct{}
}

// launch starts a program in a folder of its own. The kernel ends it with us, whatever becomes of us.
func (p *place) launch(name, path string, args ...string) (*child, error) {
	dir := filepath.Join(p.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	c := &child{cmd: exec.Command(path, args...), name: name, log: dir + ".log", done: make(chan struct{})}
	log, err := os.Create(c.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c.cmd.Dir, c.cmd.Stdout, c.cmd.Stderr = dir, log, log
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := on(p.all, c.cmd.Start); err != nil {
		return nil, fmt.Errorf("bench: start %s: %w", name, err)
	}
	go func() { _ = c.cmd.Wait(); close(c.done) }()
	return c, nil
}

func (c *child) stop() {
	if c == nil {
		return
	}
	_ = c.cmd.Process.Kill() // it may have ended
	<-c.done
}

// until waits for a condition as long as the program runs.
func (c *child) until(ctx context.Context, what string, ok func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-c.done:
			tail, _ := os.ReadFile(c.log)
			return fmt.Errorf("bench: %s ended while waiting for %s:\n%s", c.name, what, tail[max(0, len(tail)-4000):])
		case <-ctx.Done():
			tail, _ := os.ReadFile(c.log)
			return fmt.Errorf("bench: no %s: %w\n%s", what, err, tail[max(0, len(tail)-4000):])
		case <-tick.C:
		}
	}
}

// page reads a page on loopback.
func page(ctx context.Context, port int, path string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), nil)
	if err != nil {
		return "", err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, b)
	}
	return string(b), err
}

func interfaceName(i int) string { return fmt.Sprintf("com.example.bench.Service%05d", i) }

// clusterName is the cluster of a service as istiod names it.
func clusterName(i int) string {
	host, _ := translate.Naming{}.Host(model.Key{Framework: "dubbo", Interface: interfaceName(i), Version: "1.0.0"})
	return xds.ClusterName{Host: host, Port: spreadPort}.String()
}

// provider is the node of an endpoint of a service, as Dubbo registers it.
func provider(service, n int) string {
	u := fmt.Sprintf("dubbo://10.%d.%d.%d:%d/%s?application=bench-%d&interface=%s&methods=call&side=provider&version=1.0.0",
		service/250, service%250, n+1, spreadPort, interfaceName(service), service, interfaceName(service))
	return "/dubbo/" + interfaceName(service) + "/providers/" + url.QueryEscape(u)
}

// zooKeeper starts a ZooKeeper with the services in it.
func (s *spread) zooKeeper(ctx context.Context, p *place) (*child, *zk.Conn, int, error) {
	port, err := peer.FreePort()
	if err != nil {
		return nil, nil, 0, err
	}
	conf := filepath.Join(p.dir, "zoo.cfg")
	text := fmt.Sprintf("tickTime=2000\ndataDir=data\nclientPort=%d\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\n", port)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, nil, 0, err
	}
	a := p.zooKeeper
	args := append([]string{"-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"}, a.Options...)
	server, err := p.launch("zookeeper", a.Path, append(args, "-cp", strings.Join(a.ClassPath, ":"), "org.apache.zookeeper.server.quorum.QuorumPeerMain", conf)...)
	if err != nil {
		return nil, nil, 0, err
	}
	c, events, err := zk.Connect([]string{fmt.Sprintf("127.0.0.1:%d", port)}, 10*time.Second, zk.WithLogInfo(false), zk.WithLogger(silent{}))
	if err != nil {
		server.stop()
		return nil, nil, 0, err
	}
	go func() {
		for range events { // it ends with the connection
		}
	}()
	err = server.until(ctx, "ZooKeeper", func(context.Context) error {
		_, err := c.Create("/dubbo", nil, 0, zk.WorldACL(zk.PermAll))
		if errors.Is(err, zk.ErrNodeExists) {
			return nil
		}
		return err
	})
	if err == nil {
		err = s.fill(c)
	}
	if err != nil {
		c.Close()
		server.stop()
		return nil, nil, 0, err
	}
	return server, c, port, nil
}

type silent struct{}

func (silent) Printf(string, ...any) {}

// fill registers all services.
func (s *spread) fill(c *zk.Conn) error {
	var g errgroup.Group
	g.SetLimit(32)
	for i := range s.services {
		g.Go(func() error {
			var ops []any
			for _, path := range []string{"/dubbo/" + interfaceName(i), "/dubbo/" + interfaceName(i) + "/providers"} {
				ops = append(ops, &zk.CreateRequest{Path: path, Acl: zk.WorldACL(zk.PermAll)})
			}
			for n := range endpointsEach {
				ops = append(ops, &zk.CreateRequest{Path: provider(i, n), Acl: zk.WorldACL(zk.PermAll)})
			}
			_, err := c.Multi(ops...)
			return err
		})
	}
	return g.Wait()
}

var spreadServer = template.Must(template.New("").Parse(`apiVersion: isthmus.io/v1alpha1
kind: MCPServer
spec:
  registries: [{name: zk, kind: zookeeper, settings: {servers: ["127.0.0.1:{{.ZooKeeper}}"]}}]
  mcp: {address: "127.0.0.1:{{.MCP}}"}
  api: {address: "127.0.0.1:{{.API}}"}
  xds: {address: "127.0.0.1:{{.XDS}}"}
  mesh: {lift: {services: [{framework: dubbo, lower: provider}]}}
  filter: {url: "file:///isthmus.wasm"}
`))

var spreadEnvoy = template.Must(template.New("").Parse(`
node: {id: sidecar~10.255.0.1~bench.default~default.svc.cluster.local, cluster: bench}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: {{.Admin}}}}}
static_resources:
  clusters:
  - name: isthmus-xds
    type: STATIC
    connect_timeout: 5s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment: {cluster_name: isthmus-xds, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: {{.XDS}}}}}}]}]}
{{range $i, $name := .Clusters}}  - name: "{{$name}}"
    alt_stat_name: watched_{{$i}}
    type: EDS
    connect_timeout: 5s
    eds_cluster_config:
      eds_config:
        resource_api_version: V3
        api_config_source: {api_type: DELTA_GRPC, transport_api_version: V3, set_node_on_first_message_only: true, grpc_services: [{envoy_grpc: {cluster_name: isthmus-xds}}]}
{{end}}`))

// write fills in a template as a file.
func (p *place) write(name string, t *template.Template, values any) (string, error) {
	var b bytes.Buffer
	if err := t.Execute(&b, values); err != nil {
		return "", err
	}
	path := filepath.Join(p.dir, name)
	return path, os.WriteFile(path, b.Bytes(), 0o600)
}

// sighting says that somebody has seen a service with that many endpoints.
type sighting struct {
	service, endpoints int
	at                 time.Time
}

// subscribe has a client subscribe to all services as an Envoy does: a stream for each cluster, each response acknowledged.
func (s *spread) subscribe(ctx context.Context, c *grpc.ClientConn, seen chan<- sighting) error {
	for i := range s.services {
		stream, err := endpointservice.NewEndpointDiscoveryServiceClient(c).DeltaEndpoints(ctx)
		if err != nil {
			return err
		}
		if err := stream.Send(&discovery.DeltaDiscoveryRequest{
			Node: &core.Node{Id: "sidecar~10.255.0.2~bench.default~default.svc.cluster.local"}, TypeUrl: xds.TypeURL, ResourceNamesSubscribe: []string{clusterName(i)},
		}); err != nil {
			return err
		}
		go func() {
			for {
				r, err := stream.Recv()
				if err != nil {
					return // the end of the benchmark, or it waits in vain and says so
				}
				at := time.Now()
				if err := stream.Send(&discovery.DeltaDiscoveryRequest{TypeUrl: xds.TypeURL, ResponseNonce: r.Nonce}); err != nil {
					return
				}
				var a endpoint.ClusterLoadAssignment
				for _, x := range r.Resources {
					if x.Resource.UnmarshalTo(&a) != nil {
						return
					}
				}
				n := 0
				for _, l := range a.Endpoints {
					n += len(l.LbEndpoints)
				}
				select {
				case seen <- sighting{i, n, at}:
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	return nil
}

// follow has a client ask for ServiceEntries as istiod does. It tells when each response was there.
func follow(ctx context.Context, c *grpc.ClientConn, sent chan<- time.Time) error {
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(c).StreamAggregatedResources(ctx, grpc.MaxCallRecvMsgSize(1<<30))
	if err != nil {
		return err
	}
	request := &discovery.DiscoveryRequest{Node: &core.Node{Id: "router~10.255.0.3~bench.istio-system~istio-system.svc.cluster.local"}, TypeUrl: string(resource.TypeServiceEntry)}
	if err := stream.Send(request); err != nil {
		return err
	}
	go func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case sent <- time.Now():
			case <-ctx.Done():
				return
			}
			if stream.Send(&discovery.DiscoveryRequest{TypeUrl: request.TypeUrl, VersionInfo: r.VersionInfo, ResponseNonce: r.Nonce}) != nil {
				return
			}
		}
	}()
	return nil
}

// measure puts everything together, changes an endpoint at a time, and waits until all know. status is called now and then.
func (s *spread) measure(ctx context.Context, p *place, status func(done int)) error {
	if err := bind(p.all); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	server, registry, zkPort, err := s.zooKeeper(ctx, p)
	if err != nil {
		return err
	}
	defer server.stop()
	defer registry.Close()
	var ports [4]int
	for i := range ports {
		if ports[i], err = peer.FreePort(); err != nil {
			return err
		}
	}
	mcpPort, apiPort, xdsPort, adminPort := ports[0], ports[1], ports[2], ports[3]
	config, err := p.write("mcp-server.yaml", spreadServer, map[string]int{"ZooKeeper": zkPort, "MCP": mcpPort, "API": apiPort, "XDS": xdsPort})
	if err != nil {
		return err
	}
	mcp, err := p.launch("mcp-server", p.server, "--config", config)
	if err != nil {
		return err
	}
	defer mcp.stop()
	if err := mcp.until(ctx, "mcp-server", func(ctx context.Context) error { _, err := page(ctx, apiPort, "/readyz"); return err }); err != nil {
		return err
	}
	var clusters []string
	for i := range min(watched, s.services) {
		clusters = append(clusters, clusterName(i))
	}
	if config, err = p.write("spread-envoy.yaml", spreadEnvoy, map[string]any{"Admin": adminPort, "XDS": xdsPort, "Clusters": clusters}); err != nil {
		return err
	}
	envoy, err := p.launch("spread-envoy", p.envoy, "-c", config, "--concurrency", "1", "--use-dynamic-base-id", "-l", "error")
	if err != nil {
		return err
	}
	defer envoy.stop()

	conn, err := grpc.NewClient(fmt.Sprintf("passthrough:///127.0.0.1:%d", xdsPort), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	istiod, err := grpc.NewClient(fmt.Sprintf("passthrough:///127.0.0.1:%d", mcpPort), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer istiod.Close()
	seen, sent := make(chan sighting, s.services), make(chan time.Time, 1)
	if err := errors.Join(s.subscribe(ctx, conn, seen), follow(ctx, istiod, sent)); err != nil {
		return err
	}
	for i := range clusters {
		if err := envoy.until(ctx, "endpoints in Envoy", func(ctx context.Context) error { return members(ctx, adminPort, i, endpointsEach) }); err != nil {
			return err
		}
	}
	patience := time.NewTimer(longest)
	defer patience.Stop()
	vain := errors.New("bench: a change does not arrive")
	for range s.services {
		select {
		case <-seen:
		case <-patience.C:
			return vain
		}
	}
	select {
	case <-sent:
	case <-patience.C:
		return vain
	}

	var before time.Duration
	random := rand.New(rand.NewPCG(1, 2))
	for change := range warmUps + s.changes {
		if change == warmUps {
			if before, err = processTime(mcp.cmd.Process.Pid); err != nil {
				return err
			}
		}
		service, want := change%len(clusters), endpointsEach+1
		if change/len(clusters)%2 == 1 {
			want = endpointsEach
		}
		patience.Reset(longest)
		begin := time.Now()
		if want > endpointsEach {
			_, err = registry.Create(provider(service, endpointsEach), nil, 0, zk.WorldACL(zk.PermAll))
		} else {
			err = registry.Delete(provider(service, endpointsEach), -1)
		}
		if err != nil {
			return fmt.Errorf("bench: change the registry: %w", err)
		}
		polled := make(chan error, 1)
		var inEnvoy time.Time
		go func() {
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for members(ctx, adminPort, service, want) != nil {
				select {
				case <-tick.C:
				case <-ctx.Done():
					polled <- ctx.Err()
					return
				}
			}
			inEnvoy = time.Now()
			polled <- nil
		}()
		var client, toIstiod time.Time
		for known := 0; known < 3; {
			select {
			case got := <-seen:
				if got.service == service && got.endpoints == want {
					client = got.at
					known++
				}
			case toIstiod = <-sent:
				known++
			case err := <-polled:
				if err != nil {
					return err
				}
				known++
			case <-patience.C:
				return vain
			}
		}
		if change >= warmUps {
			s.client.add(client.Sub(begin))
			s.envoy.add(inEnvoy.Sub(begin))
			s.istiod.add(toIstiod.Sub(begin))
			status(change - warmUps + 1)
		}
		// The next one comes at any moment of what this one has left to do.
		select {
		case <-time.After(time.Duration(random.IntN(100)) * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	after, err := processTime(mcp.cmd.Process.Pid)
	if err != nil {
		return err
	}
	s.cpu = (after - before) / time.Duration(s.changes)
	s.rss, err = residentMemory(mcp.cmd.Process.Pid)
	return err
}

// members returns nil if Envoy's cluster of that number has so many endpoints.
func members(ctx context.Context, admin, cluster, want int) error {
	text, err := page(ctx, admin, fmt.Sprintf("/stats?filter=^cluster\\.watched_%d\\.membership_total$", cluster))
	if err != nil {
		return err
	}
	_, n, _ := strings.Cut(strings.TrimSpace(text), ": ")
	if have, err := strconv.Atoi(n); err != nil || have != want {
		return fmt.Errorf("it has %q", text)
	}
	return nil
}

// maxSpread is what is promised: the longest of a hundred changes until Envoy has it, in milliseconds.
const maxSpread = 50

// table writes what was measured.
func (s *spread) table(p func(string, ...any)) {
	p("\n## A change in a registry\n\nA real ZooKeeper holds %d services of %d endpoints, all on different machines, which are lifted; %s of one endpoint each, at random moments, from the\n"+
		"call that changes ZooKeeper on. The client of endpoint discovery is subscribed to all services, a stream for each; Envoy to %d of them, and its statistics are\n"+
		"read every millisecond. What istiod is sent waits for the hold-off of 50 ms. mcp-server took %.1f ms of processor time for a change, and %.0f MB of memory.\n\n",
		s.services, endpointsEach, plural(s.changes, "change"), min(watched, s.services), float64(s.cpu.Microseconds())/1000, float64(s.rss)/megabyte)
	p("| Until | p50 | p90 | p99 | longest |\n|---|---:|---:|---:|---:|\n")
	for _, row := range []struct {
		who string
		l   *latencies
	}{{"a client of endpoint discovery has it", &s.client}, {"Envoy has it", &s.envoy}, {"istiod has been sent it", &s.istiod}} {
		p("| %s |", row.who)
		for _, q := range []float64{.5, .9, .99, 1} {
			p(" %s |", latencyText(float64(row.l.quantile(q).Microseconds())))
		}
		p("\n")
	}
}

// peersOfSpread are what measuring a spread needs beside Envoy.
var peersOfSpread = []peer.Peer{peer.ZooKeeper, peer.MCPServer}
