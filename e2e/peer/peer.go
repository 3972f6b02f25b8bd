package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Peer names a program, or a Java application, that can be obtained.
type Peer string

// The peers.
const (
	Envoy         Peer = "envoy"         // stock Envoy
	Istiod        Peer = "istiod"        // stock pilot-discovery
	RateLimit     Peer = "ratelimit"     // Envoy's rate limit service
	ZooKeeper     Peer = "zookeeper"     // ZooKeeper server (Java)
	Dubbo3        Peer = "dubbo3"        // the demo's Dubbo 3 provider and consumer (Java)
	Dubbo27       Peer = "dubbo27"       // the same with Dubbo 2.7 (Java)
	SOFARPC       Peer = "sofarpc"       // a SOFARPC provider and consumer (Java)
	SOFARegistry5 Peer = "sofaregistry5" // SOFARegistry 5 (Java)
	SOFARegistry6 Peer = "sofaregistry6" // SOFARegistry 6 (Java)
	MCPServer     Peer = "mcp-server"    // ours
	Isthmusctl    Peer = "isthmusctl"    // ours
	Filter        Peer = "isthmus.wasm"
)

// The pinned versions of what is not Java; those of Java are in the pom.xml of each folder below e2e/java.
const (
	EnvoyVersion     = "1.40.0"
	IstiodVersion    = "v0.0.0-20260827124520-eed52ebb66ad"   // of module istio.io/istio
	RateLimitVersion = "v1.4.1-0.20260122083618-3fb702589d36" // of module github.com/envoyproxy/ratelimit, which has no newer release
)

// Artifact is an obtained peer.
type Artifact struct {
	// Path is the executable, or the .wasm file. For a Java application it is the java command.
	Path string
	// ClassPath is the class path of a Java application, in order; its own classes come first.
	ClassPath []string
	// Options are those of the JVM that the application cannot do without.
	Options []string
}

// Set holds obtained peers. It can be handed to another process as JSON.
type Set map[Peer]Artifact

// entry is one line of the table: how a peer is obtained.
type entry struct {
	title string        // what to call it on the screen
	first time.Duration // how long it takes the first time, on two idle cores
	needs []tool
	// obtain returns the artifact, from the cache if it is there. It calls start when it finds that there is work to do.
	obtain func(ctx context.Context, o *obtainer, start func()) (Artifact, error)
	serial string // peers with the same word are not obtained at the same time
}

// table lists all peers.
var table = map[Peer]entry{
	Envoy:     {title: "Envoy " + EnvoyVersion, first: 30 * time.Second, needs: []tool{python}, obtain: obtainEnvoy},
	Istiod:    {title: "istiod", first: 4 * time.Minute, needs: []tool{golang}, obtain: obtainIstiod, serial: "go"},
	RateLimit: {title: "rate limit service", first: 40 * time.Second, needs: []tool{golang}, obtain: obtainRateLimit, serial: "go"},
	ZooKeeper: javaApp{folder: "zookeeper"}.entry("ZooKeeper", 20*time.Second),
	Dubbo3:    javaApp{folder: "dubbo3", sources: []string{"dubbo", "load", "stock"}}.entry("Dubbo 3 applications", 30*time.Second),
	Dubbo27: javaApp{folder: "dubbo27", sources: []string{"dubbo", "load", "stock"}, options: addOpens("java.lang", "java.math")}.
		entry("Dubbo 2.7 applications", 30*time.Second),
	SOFARPC: javaApp{folder: "sofarpc", sources: []string{"load", "stock"}}.entry("SOFARPC applications", 30*time.Second),
	// It brings loggers along that do not agree with each other, and reflects on what Java 17 has closed.
	SOFARegistry5: javaApp{folder: "sofaregistry5", drop: regexp.MustCompile(`/(log4j-core|log4j-jcl|commons-logging)-[^/]*\.jar$`),
		options: addOpens("java.lang", "java.util", "java.io", "java.net", "java.math", "java.nio", "java.text", "java.time",
			"java.util.concurrent", "java.lang.reflect", "sun.nio.ch")}.entry("SOFARegistry 5", time.Minute),
	SOFARegistry6: javaApp{folder: "sofaregistry6"}.entry("SOFARegistry 6", time.Minute),
	MCPServer:     ours("mcp-server", "./mcp-server/cmd/mcp-server"),
	Isthmusctl:    ours("isthmusctl", "./tools/isthmusctl"),
	Filter:        {title: "isthmus.wasm", first: 20 * time.Second, needs: []tool{golang}, obtain: obtainFilter, serial: "go"},
}

// addOpens are the JVM's options that open packages of java.base to reflection.
func addOpens(packages ...string) []string {
	var out []string
	for _, p := range packages {
		out = append(out, "--add-opens", "java.base/"+p+"=ALL-UNNAMED")
	}
	return out
}

// All lists every peer, sorted.
func All() []Peer {
	var all []Peer
	for p := range table {
		all = append(all, p)
	}
	slices.Sort(all)
	return all
}

// Progress is told what goes on. Its methods may be called from several goroutines.
type Progress interface {
	// Begin says that work on something has begun, that takes about that long. The returned function says that it is done.
	Begin(what string, about time.Duration) (end func(error))
}

// Cache is the folder in which peers are kept.
func Cache() (string, error) {
	if dir := os.Getenv("ISTHMUS_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("peer: no cache folder, set ISTHMUS_CACHE: %w", err)
	}
	return filepath.Join(dir, "isthmus"), nil
}

// Root is the top folder of the repository: the one with go.mod, at or above the working folder.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("peer: %w", err)
	}
	for {
		b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(b), "module github.com/isthmus-mesh/isthmus\n") {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("peer: run from within the repository: no go.mod of Isthmus here or above")
		}
		dir = up
	}
}

// obtainer is what one call of Obtain works with.
type obtainer struct {
	cache string
	root  string
}

// Obtain makes sure of the peers and returns them. Progress may be nil. Missing system tools are reported all at once,
// one line each, before anything is begun.
func Obtain(ctx context.Context, progress Progress, peers ...Peer) (Set, error) {
	cache, err := Cache()
	if err != nil {
		return nil, err
	}
	root, err := Root()
	if err != nil {
		return nil, err
	}
	var needs []tool
	for _, p := range peers {
		e, ok := table[p]
		if !ok {
			return nil, fmt.Errorf("peer: no peer %q", p)
		}
		needs = append(needs, e.needs...)
	}
	if err := checkTools(needs); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(cache, "locks"), 0o755); err != nil {
		return nil, fmt.Errorf("peer: %w", err)
	}
	o := &obtainer{cache: cache, root: root}
	set := make(Set, len(peers))
	var mu sync.Mutex
	var errs []error
	// Each chain is worked off in order; the chains run beside each other: one mostly computes, others mostly download.
	chains := make(map[string][]Peer)
	for _, p := range slices.Compact(slices.Sorted(slices.Values(peers))) {
		key := table[p].serial
		if key == "" {
			key = string(p)
		}
		chains[key] = append(chains[key], p)
	}
	var all sync.WaitGroup
	for _, chain := range chains {
		all.Go(func() {
			for _, p := range chain {
				a, err := o.obtain(ctx, progress, p)
				mu.Lock()
				if err != nil {
					errs = append(errs, fmt.Errorf("peer: %s: %w", table[p].title, err))
				}
				set[p] = a
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return set, nil
}

func (o *obtainer) obtain(ctx context.Context, progress Progress, p Peer) (a Artifact, err error) {
	e := table[p]
	lock := e.serial
	if lock == "" {
		lock = string(p)
	}
	var end func(error)
	start := func() {
		if end == nil && progress != nil {
			end = progress.Begin(e.title, e.first)
		}
	}
	defer func() {
		if end != nil {
			end(err)
		}
	}()
	unlock, err := lockFile(ctx, filepath.Join(o.cache, "locks", lock), start)
	if err != nil {
		return a, err
	}
	defer unlock()
	return e.obtain(ctx, o, start)
}

// lockFile takes an exclusive lock on a file, which is made if it is not there. wait is called if somebody else has it.
func lockFile(ctx context.Context, path string, wait func()) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil // closing gives the lock back
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		wait()
		select {
		case <-tick.C:
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("lock %s, which another process holds: %w", path, ctx.Err())
		}
	}
}

// place fills a folder of the cache by make, beside its place, and renames it. If the folder is there already nothing
// is done.
func (o *obtainer) place(name string, start func(), make func(folder string) error) (string, error) {
	final := filepath.Join(o.cache, name)
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	start()
	if err := os.MkdirAll(filepath.Dir(final), 0o755); err != nil {
		return "", err
	}
	temp, err := os.MkdirTemp(filepath.Dir(final), "."+filepath.Base(final)+"-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temp)
	if err := os.Chmod(temp, 0o755); err != nil {
		return "", err
	}
	if err := make(temp); err != nil {
		return "", err
	}
	if err := os.Rename(temp, final); err != nil {
		return "", err
	}
	return final, nil
}

// JSON is the set as it is handed to another process.
func (s Set) JSON() []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings and lists of strings always can be
	}
	return b
}

// Parse is the reverse of Set.JSON.
func Parse(b []byte) (Set, error) {
	var s Set
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("peer: %w", err)
	}
	return s, nil
}
