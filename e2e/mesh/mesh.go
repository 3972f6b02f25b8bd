// Package mesh puts a mesh together out of real peers, each on a machine of its own: registries, istiod, mcp-server and
// applications with stock Envoy beside them. It starts and stops its parts in any order that the parts allow, and says
// what each of them needs.
package mesh

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/isthmus-mesh/isthmus/e2e/machine"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
)

// The names of the machines that there is one of. Other machines reach them by these.
const (
	ZooKeeperMachine = "zookeeper"
	ServerMachine    = "mcp-server"
	IstiodMachine    = "istiod"
)

// The ports on them.
const (
	ZooKeeperPort = 2181
	MCPPort       = 15990 // of mcp-server, for istiod
	APIPort       = 15991 // of mcp-server, for people
	EndpointsPort = 15992 // of mcp-server, for sidecars
	XDSPort       = 15010 // of istiod, for sidecars
	DebugPort     = 8080  // of istiod: /ready and /debug
)

// Where everything is in Istio's terms.
const (
	Namespace     = "default"
	RootNamespace = "istio-system"
	ClusterID     = "Kubernetes"
	istioVersion  = "1.31.0" // what the sidecars say of themselves; it decides what istiod sends
)

// startTimeout is how long any single part may take to start, on a busy machine.
const startTimeout = 90 * time.Second

// Mesh is a set of machines and what runs on them.
type Mesh struct {
	host   *machine.Host
	peers  peer.Set
	folder string // on the outer file system

	machines map[string]*machine.Machine
	token    string // of mcp-server's API

	authority *authority // nil before Secure
	agents    []*grpc.Server

	ZooKeeper *machine.Process // nil before StartZooKeeper
	Istiod    *machine.Process // nil before StartIstiod
	Server    *machine.Process // nil before StartServer
}

// New makes a mesh without machines. Logs and what the parts write goes below folder, which is made.
func New(host *machine.Host, peers peer.Set, folder string) (*Mesh, error) {
	folder, err := filepath.Abs(folder)
	if err != nil {
		return nil, fmt.Errorf("mesh: %w", err)
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, fmt.Errorf("mesh: %w", err)
	}
	m := &Mesh{host: host, peers: peers, folder: folder, machines: make(map[string]*machine.Machine)}
	// The users of the machines' processes cannot read a cache in somebody's home.
	for _, f := range append(readFolders(peers), folder) {
		if _, err := host.Expose(f); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// readFolders are the folders that hold everything that the peers are made of: the cache, and Maven's repository.
func readFolders(peers peer.Set) []string {
	cache, err := peer.Cache()
	if err != nil {
		cache = ""
	}
	folders := map[string]bool{}
	jars := ""
	for _, a := range peers {
		for _, path := range append([]string{a.Path}, a.ClassPath...) {
			switch {
			case cache != "" && strings.HasPrefix(path, cache+"/"):
				folders[cache] = true
			case filepath.Ext(path) == ".jar":
				jars = common(jars, filepath.Dir(path))
			}
		}
	}
	if jars != "" && jars != "/" {
		folders[jars] = true
	}
	var out []string
	for f := range folders {
		out = append(out, f)
	}
	return out
}

// common is the folder that both folders lie in; "" is no folder yet.
func common(a, b string) string {
	if a == "" {
		return b
	}
	for a != "/" && b != a && !strings.HasPrefix(b, a+"/") {
		a = filepath.Dir(a)
	}
	return a
}

// Host is what the machines stand on.
func (m *Mesh) Host() *machine.Host { return m.host }

// Folder is where the logs are: one folder for each machine.
func (m *Mesh) Folder() string { return m.folder }

// Machine returns the machine of that name, making it if there is none.
func (m *Mesh) Machine(name string) (*machine.Machine, error) {
	if x := m.machines[name]; x != nil {
		return x, nil
	}
	x, err := m.host.NewMachine(name)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(m.folder, name), 0o755); err != nil {
		return nil, fmt.Errorf("mesh: %w", err)
	}
	m.machines[name] = x
	return x, nil
}

// start starts a command on the machine of that name; its folder and log are below the machine's folder.
func (m *Mesh) start(name string, c machine.Command) (*machine.Process, error) {
	x, err := m.Machine(name)
	if err != nil {
		return nil, err
	}
	if c.Folder == "" {
		c.Folder = m.host.Exposed(filepath.Join(m.folder, name, c.Name))
	}
	c.Log = m.logPath(name, c.Name)
	return x.Start(c)
}

// logPath is a file that is not there yet, so that a part that is started again does not overwrite its log.
func (m *Mesh) logPath(machine, name string) string {
	path := filepath.Join(m.folder, machine, name+".log")
	for i := 2; ; i++ {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			return path
		}
		path = filepath.Join(m.folder, machine, fmt.Sprintf("%s-%d.log", name, i))
	}
}

// write writes a file into a part's folder.
func (m *Mesh) write(machine, part, name, text string) (inside string, err error) {
	folder := filepath.Join(m.folder, machine, part)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return "", fmt.Errorf("mesh: %w", err)
	}
	// Renamed, since what watches the file must not see half of it.
	temp := filepath.Join(folder, "."+name+".new")
	if err := os.WriteFile(temp, []byte(text), 0o644); err != nil {
		return "", fmt.Errorf("mesh: %w", err)
	}
	path := filepath.Join(folder, name)
	if err := os.Rename(temp, path); err != nil {
		return "", fmt.Errorf("mesh: %w", err)
	}
	return m.host.Exposed(path), nil
}

// artifact returns a peer.
func (m *Mesh) artifact(p peer.Peer) (peer.Artifact, error) {
	a, ok := m.peers[p]
	if !ok {
		return a, fmt.Errorf("mesh: peer %s was not obtained", p)
	}
	return a, nil
}

// JVM is how a Java application is started.
type JVM struct {
	Peer       peer.Peer
	Main       string   // class
	Options    []string // of the JVM: system properties, --add-opens
	Args       []string // of the program
	Name       string   // of the process
	MaxHeapMiB int      // default 192
}

// StartJava starts a Java application on a machine, as the applications' user.
func (m *Mesh) StartJava(name string, j JVM) (*machine.Process, error) {
	a, err := m.artifact(j.Peer)
	if err != nil {
		return nil, err
	}
	classPath := make([]string, len(a.ClassPath))
	for i, p := range a.ClassPath {
		classPath[i] = m.host.Exposed(p)
	}
	if j.MaxHeapMiB == 0 {
		j.MaxHeapMiB = 192
	}
	folder := m.host.Exposed(filepath.Join(m.folder, name, j.Name))
	args := []string{
		fmt.Sprintf("-Xmx%dm", j.MaxHeapMiB),
		"-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", // small and quick to start: many JVMs share this computer
		"-Duser.home=" + folder, "-Djava.io.tmpdir=" + folder, // its user has no home and shares no files with others
		"-Dfile.encoding=UTF-8",
		"-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
	}
	args = append(append(args, a.Options...), j.Options...)
	args = append(args, "-cp", strings.Join(classPath, ":"), j.Main)
	return m.start(name, machine.Command{Name: j.Name, Path: a.Path, Args: append(args, j.Args...), User: machine.UserApp, Folder: folder, Grace: 15 * time.Second})
}

// Close stops everything and takes the mesh's machines down.
func (m *Mesh) Close(ctx context.Context) error {
	var errs []error
	for _, a := range m.agents {
		a.Stop()
	}
	for _, x := range m.machines {
		errs = append(errs, x.Remove(ctx))
	}
	return errors.Join(errs...)
}
