package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// insideEnv carries what the outer process tells the inner one, as JSON. Its presence says which of the two one is.
const insideEnv = "ISTHMUS_E2E_INSIDE"

// firstExtraFD is where os/exec puts the first of a child's extra files.
const firstExtraFD = 3

// Outside is what the outer process hands into the namespaces.
type Outside struct {
	// State is handed over as it is: what the outer process has found out and the inner one has no network to find out.
	State []byte
	// Listen opens TCP listeners in the network of the outer process: name to address. The inner process accepts on them,
	// although it lives in another network: it is how a page from inside is reached. See Host.Listener.
	Listen map[string]string
	// Rootless makes the namespaces as an ordinary user would, also for root.
	Rootless bool
}

// stopGrace is how long the inner process has between a signal that ends it and SIGKILL, which takes all that runs inside along.
const stopGrace = 20 * time.Second

// inside is what insideEnv holds.
type inside struct {
	Rootless  bool
	State     []byte
	Listeners []string // names; their descriptors follow each other from firstExtraFD
}

// Inside tells whether this process is the one inside the namespaces.
func Inside() bool { return os.Getenv(insideEnv) != "" }

// Enter puts the program into namespaces of its own: see the package's description. In the outer process it returns nil and
// the exit code of the inner one, once that has ended; SIGINT and SIGTERM are passed on to it, and if the outer process
// is killed, so is the inner. In the inner process it returns the Host, whose Context is done at the first such signal.
//
// An error that wraps ErrNotAllowed means that the kernel does not let this user make namespaces; its text says what to do.
func Enter(out Outside) (*Host, int, error) {
	if text := os.Getenv(insideEnv); text != "" {
		var in inside
		if err := json.Unmarshal([]byte(text), &in); err != nil {
			return nil, 0, fmt.Errorf("machine: %s: %w", insideEnv, err)
		}
		h, err := newHost(in)
		return h, 0, err
	}
	code, err := enter(out)
	return nil, code, err
}

// ErrNotAllowed says that this user may not make namespaces here.
var ErrNotAllowed = errors.New("not allowed to make namespaces")

func enter(out Outside) (int, error) {
	in := inside{State: out.State}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for name, address := range out.Listen {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return 0, fmt.Errorf("machine: %w", err)
		}
		f, err := l.(*net.TCPListener).File()
		l.Close()
		if err != nil {
			return 0, fmt.Errorf("machine: listener %s: %w", name, err)
		}
		files = append(files, f)
		in.Listeners = append(in.Listeners, name)
	}

	// The thread must outlive the child: Pdeathsig is about the thread, not the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var cmd *exec.Cmd
	var err error
	if os.Geteuid() == 0 && !out.Rootless {
		if cmd, err = start(in, files, false); errors.Is(err, syscall.EPERM) {
			cmd, err = start(in, files, true) // root without capabilities, such as in a container
		}
	} else {
		cmd, err = start(in, files, true)
	}
	if err != nil {
		if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EACCES) {
			return 0, fmt.Errorf("machine: %w: %v; %s", ErrNotAllowed, err, advice())
		}
		return 0, fmt.Errorf("machine: start inside namespaces: %w", err)
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	done := make(chan struct{})
	go func() {
		var patience <-chan time.Time
		for {
			select {
			case s := <-signals:
				_ = cmd.Process.Signal(s)
				if patience == nil {
					patience = time.After(stopGrace)
				}
			case <-patience:
				_ = cmd.Process.Kill()
			case <-done:
				return
			}
		}
	}()
	err = cmd.Wait()
	close(done)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return 128 + int(status.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	return 0, err
}

// start starts this program again, as process 1 of new namespaces.
func start(in inside, files []*os.File, rootless bool) (*exec.Cmd, error) {
	in.Rootless = rootless
	text, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), insideEnv+"="+string(text))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	if rootless {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return cmd, cmd.Start()
}

// advice says in one line what to change so that namespaces can be made.
func advice() string {
	read := func(file string) string {
		b, _ := os.ReadFile(file)
		return strings.TrimSpace(string(b))
	}
	switch {
	case read("/proc/sys/user/max_user_namespaces") == "0":
		return "run as root, or allow user namespaces: sysctl user.max_user_namespaces=10000"
	case read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
		return "run as root, or allow user namespaces: sysctl kernel.unprivileged_userns_clone=1"
	case read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
		return "run as root, or allow user namespaces: sysctl kernel.apparmor_restrict_unprivileged_userns=0"
	default:
		return "run as root (in a container: with CAP_SYS_ADMIN and CAP_NET_ADMIN)"
	}
}
