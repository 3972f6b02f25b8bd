package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// The network that the machines share. It exists only inside the namespaces, so it collides with nothing outside.
var (
	network     = netip.MustParsePrefix("10.99.0.0/24")
	hostAddress = netip.MustParseAddr("10.99.0.1")
	firstOctet  = 10 // of the first machine's last octet
)

// The users that processes run as. As in Istio's images 1337 is the proxy's, which is how interception tells its traffic.
const (
	UserApp   = 1000
	UserProxy = 1337
)

// exposed is where folders of the outer file system are mounted for machines: a folder of root's own, such as a cache in
// its home, is not readable for other users by its own path.
const exposed = "/run/isthmus"

// Host is the computer that the machines stand on: the inner process's own network, with a bridge that joins them.
type Host struct {
	ctx       context.Context
	state     []byte
	rootless  bool
	listeners map[string]net.Listener
	self      namespaces // of this process

	mu       sync.Mutex
	made     int // machines so far
	machines []*Machine
	exposes  map[string]string
}

// newHost sets up the inner process's namespaces: its own /proc and /run, and the bridge.
func newHost(in inside) (*Host, error) {
	// An ordinary user's PATH often leaves out where ip and iptables are.
	if err := errors.Join(os.Unsetenv(insideEnv), os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin")); err != nil {
		return nil, err
	}
	// Process 1 of a namespace does not die of a signal that it does not handle, so this comes first.
	ctx, _ := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	h := &Host{ctx: ctx, state: in.State, rootless: in.Rootless, listeners: make(map[string]net.Listener), exposes: make(map[string]string)}
	for i, name := range in.Listeners {
		f := os.NewFile(uintptr(firstExtraFD+i), name)
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("machine: listener %s: %w", name, err)
		}
		h.listeners[name] = l
	}
	// No mount shall travel back to the outer namespace.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("machine: make mounts private: %w", err)
	}
	// In a container that hides parts of /proc, a user namespace may not mount a new one. Then the outer one does: it is
	// only that ps shows other processes too.
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil && !errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("machine: mount /proc: %w", err)
	}
	// A /run of our own: iptables' lock, the exposed folders, the hosts file.
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return nil, fmt.Errorf("machine: mount /run: %w", err)
	}
	if err := os.Mkdir(exposed, 0o755); err != nil {
		return nil, err
	}
	hosts := filepath.Join(exposed, "hosts")
	if err := h.writeHosts(); err != nil {
		return nil, err
	}
	if err := unix.Mount(hosts, "/etc/hosts", "", unix.MS_BIND, ""); err != nil {
		return nil, fmt.Errorf("machine: mount /etc/hosts: %w", err)
	}
	var err error
	if h.self, err = currentNamespaces(); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"link", "add", "bridge", "type", "bridge", "forward_delay", "0"},
		{"addr", "add", netip.PrefixFrom(hostAddress, network.Bits()).String(), "dev", "bridge"},
		{"link", "set", "bridge", "up"},
	} {
		if err := ip(args...); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// ip runs the ip command in the calling thread's network.
func ip(args ...string) error {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("machine: ip %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// Context is done when the user has asked the program to end.
func (h *Host) Context() context.Context { return h.ctx }

// State returns what the outer process gave as Outside.State.
func (h *Host) State() []byte { return h.state }

// Rootless tells that the namespaces were made by an ordinary user: there is one user inside, whoever a command names.
func (h *Host) Rootless() bool { return h.rootless }

// Listener returns a listener in the outer process's network, opened under that name by Outside.Listen; nil if there is none.
// The caller closes it.
func (h *Host) Listener(name string) net.Listener { return h.listeners[name] }

// Address is the host's own address in the machines' network.
func (h *Host) Address() netip.Addr { return hostAddress }

// Expose makes a folder of the outer file system readable for every user inside, whatever the folders above it allow,
// and returns the path under which it is. Exposing it again returns the same path.
func (h *Host) Expose(folder string) (string, error) {
	folder, err := filepath.Abs(folder)
	if err != nil {
		return "", err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if p, ok := h.exposes[folder]; ok {
		return p, nil
	}
	p := filepath.Join(exposed, fmt.Sprintf("%d-%s", len(h.exposes), filepath.Base(folder)))
	if err := os.Mkdir(p, 0o755); err != nil {
		return "", err
	}
	if err := unix.Mount(folder, p, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return "", fmt.Errorf("machine: expose %s: %w", folder, err)
	}
	h.exposes[folder] = p
	return p, nil
}

// Exposed returns the path inside of a file below an exposed folder, and the path itself if it is below none.
func (h *Host) Exposed(path string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	for folder, p := range h.exposes {
		if rest, ok := strings.CutPrefix(path, folder+"/"); ok {
			return filepath.Join(p, rest)
		}
	}
	return path
}

// Machines returns the machines in the order in which they were made.
func (h *Host) Machines() []*Machine {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]*Machine(nil), h.machines...)
}

// Close stops every process on every machine, the youngest first. The namespaces themselves end with this process.
func (h *Host) Close(ctx context.Context) {
	var all sync.WaitGroup
	for _, m := range h.Machines() {
		all.Go(func() { m.StopAll(ctx) })
	}
	all.Wait()
}

// NewMachine makes a machine: a network stack with the next address of the machines' network, joined to the bridge, and
// name as its host name, which every machine can look up.
func (h *Host) NewMachine(name string) (*Machine, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	number := h.made
	if firstOctet+number > 254 {
		return nil, fmt.Errorf("machine: the network has no address left for %s", name)
	}
	h.made++
	octets := network.Addr().As4()
	octets[3] = byte(firstOctet + number)
	m := &Machine{host: h, name: name, address: netip.AddrFrom4(octets), port: fmt.Sprintf("m%d", number)}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("machine: %s: make namespaces: %w", name, err)
		}
		defer h.self.restore()
		if err := unix.Sethostname([]byte(name)); err != nil {
			return fmt.Errorf("machine: %s: %w", name, err)
		}
		var err error
		if m.spaces, err = currentNamespaces(); err != nil {
			return err
		}
		for _, args := range [][]string{
			{"link", "set", "lo", "up"},
			{"link", "add", "eth0", "type", "veth", "peer", "name", m.port, "netns", h.self.netPath()},
			{"addr", "add", netip.PrefixFrom(m.address, network.Bits()).String(), "dev", "eth0"},
			{"link", "set", "eth0", "up"},
			{"route", "add", "default", "via", hostAddress.String()},
		} {
			if err := ip(args...); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, args := range [][]string{{"link", "set", m.port, "master", "bridge"}, {"link", "set", m.port, "up"}} {
		if err := ip(args...); err != nil {
			return nil, err
		}
	}
	h.machines = append(h.machines, m)
	return m, h.writeHosts()
}

// writeHosts writes what /etc/hosts shows. It is written in place, since what is mounted is the file and not its name. The
// caller holds mu.
func (h *Host) writeHosts() error {
	text := "127.0.0.1 localhost\n" + hostAddress.String() + " host\n"
	for _, m := range h.machines {
		text += m.address.String() + " " + m.name + "\n"
	}
	return os.WriteFile(filepath.Join(exposed, "hosts"), []byte(text), 0o644)
}

// remove takes a machine down. Its processes must have ended.
func (h *Host) remove(m *Machine) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.Index(h.machines, m)
	if i < 0 {
		return nil
	}
	h.machines = slices.Delete(h.machines, i, i+1)
	// The namespaces go with their last reference.
	return errors.Join(ip("link", "delete", m.port), m.spaces.net.Close(), m.spaces.uts.Close(), h.writeHosts())
}

// namespaces are open descriptors of a network and a host-name namespace.
type namespaces struct {
	net, uts *os.File
}

// currentNamespaces are those of the calling thread.
func currentNamespaces() (namespaces, error) {
	var n namespaces
	var err error
	if n.net, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return n, fmt.Errorf("machine: %w", err)
	}
	if n.uts, err = os.Open("/proc/thread-self/ns/uts"); err != nil {
		return n, fmt.Errorf("machine: %w", err)
	}
	return n, nil
}

// netPath is a path by which another process can open the network namespace.
func (n namespaces) netPath() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.net.Fd()) }

// enter moves the calling thread there.
func (n namespaces) enter() error {
	if err := unix.Setns(int(n.net.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("machine: enter network namespace: %w", err)
	}
	if err := unix.Setns(int(n.uts.Fd()), unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("machine: enter host-name namespace: %w", err)
	}
	return nil
}

// restore is enter for the way back. It must not fail: a thread in the wrong network would go on being used.
func (n namespaces) restore() {
	if err := n.enter(); err != nil {
		panic(err)
	}
}

// onThread runs f on a thread that nothing else uses meanwhile.
func onThread(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return f()
}
