package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Machine is a network stack of its own with a name and an address.
type Machine struct {
	host    *Host
	name    string
	address netip.Addr
	port    string // the bridge's end of its cable
	spaces  namespaces

	mu        sync.Mutex
	processes []*Process
}

// Name is the machine's host name.
func (m *Machine) Name() string { return m.name }

// Address is the machine's address.
func (m *Machine) Address() netip.Addr { return m.address }

// Host is what the machine stands on.
func (m *Machine) Host() *Host { return m.host }

// Do runs f on a thread that is in the machine's network, for as long as f runs: sockets that f makes, and processes
// that it starts, belong to the machine. f must not start goroutines that count on it.
func (m *Machine) Do(f func() error) error {
	return onThread(func() error {
		// A failure half way leaves the thread in neither network; restore puts it right or panics.
		defer m.host.self.restore()
		if err := m.spaces.enter(); err != nil {
			return err
		}
		return f()
	})
}

// DialContext connects from within the machine. Address must be numeric.
func (m *Machine) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	var c net.Conn
	// The address is numeric, so net makes the socket on the calling goroutine, which Do has locked to its thread. A
	// fallback (Happy Eyeballs) would not, but needs two addresses.
	err := m.Do(func() (err error) {
		c, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Client is an HTTP client inside the machine: what listens on its loopback is reached as 127.0.0.1.
func (m *Machine) Client() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: m.DialContext, DisableKeepAlives: true}, Timeout: 10 * time.Second}
}

// Command says what to run.
type Command struct {
	// Name is what to call it in messages and in the name of its log. Default: the path's base.
	Name string
	// Path and Args are as for exec.Command; the path is not looked up.
	Path string
	Args []string
	// Env is its whole environment, apart from PATH, HOME (its folder) and LANG.
	Env []string
	// User is the numeric user and group; 0 is root. In rootless namespaces everything is the one user that there is.
	User int
	// Folder is its working folder and home. It is made, and given to User, if it is not there.
	Folder string
	// Log is the file that its output goes to. Default: NAME.log beside Folder.
	Log string
	// Grace is how long it has between SIGTERM and SIGKILL. Default 5 s.
	Grace time.Duration
}

// Process is a command that runs on a machine.
type Process struct {
	command Command
	machine *Machine
	cmd     *exec.Cmd
	stdin   interface {
		Write([]byte) (int, error)
		Close() error
	}
	journal *journal
	done    chan struct{}
	err     error // set before done is closed
	started time.Time
}

// Start starts a command on the machine. It does not wait until the command is ready: see the methods of Process.
func (m *Machine) Start(c Command) (*Process, error) {
	if c.Name == "" {
		c.Name = filepath.Base(c.Path)
	}
	if c.Grace == 0 {
		c.Grace = 5 * time.Second
	}
	if c.Folder == "" {
		return nil, fmt.Errorf("machine: %s: no folder", c.Name)
	}
	if c.Log == "" {
		c.Log = filepath.Join(filepath.Dir(c.Folder), c.Name+".log")
	}
	if err := os.MkdirAll(c.Folder, 0o755); err != nil {
		return nil, fmt.Errorf("machine: %w", err)
	}
	attr := &syscall.SysProcAttr{Setsid: true} // a Ctrl-C at the terminal is for us, not for it
	if !m.host.rootless && c.User != 0 {
		attr.Credential = &syscall.Credential{Uid: uint32(c.User), Gid: uint32(c.User)}
		if err := os.Chown(c.Folder, c.User, c.User); err != nil {
			return nil, fmt.Errorf("machine: %w", err)
		}
	}
	j, err := newJournal(c.Log)
	if err != nil {
		return nil, err
	}
	p := &Process{command: c, machine: m, journal: j, done: make(chan struct{}), cmd: exec.Command(c.Path, c.Args...)}
	p.cmd.Dir = c.Folder
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8", "HOME=" + c.Folder}, c.Env...)
	p.cmd.SysProcAttr = attr
	p.cmd.WaitDelay = time.Second // a child of its own that outlives it may hold its output open
	p.cmd.Stdout, p.cmd.Stderr = j, j
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("machine: %w", err)
	}
	p.started = time.Now()
	if err := m.Do(p.cmd.Start); err != nil {
		j.close()
		return nil, fmt.Errorf("machine: start %s on %s: %w", c.Name, m.name, err)
	}
	go func() {
		if p.err = p.cmd.Wait(); errors.Is(p.err, exec.ErrWaitDelay) {
			p.err = nil
		}
		j.close()
		close(p.done)
	}()
	m.mu.Lock()
	m.processes = append(m.processes, p)
	m.mu.Unlock()
	return p, nil
}

// Run runs a short command on the machine, with input on its standard input, and returns its output.
func (m *Machine) Run(ctx context.Context, input []byte, path string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &out, &errs
	if err := m.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("machine: start %s on %s: %w", path, m.name, err)
	}
	if err := cmd.Wait(); err != nil {
		return out.Bytes(), fmt.Errorf("machine: %s on %s: %w: %s", filepath.Base(path), m.name, err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.Bytes(), nil
}

// StopAll stops what runs on the machine, the youngest first.
func (m *Machine) StopAll(ctx context.Context) {
	m.mu.Lock()
	all := slices.Clone(m.processes)
	m.mu.Unlock()
	slices.Reverse(all)
	for _, p := range all {
		_ = p.Stop(ctx) // how it ended does not matter any more
	}
}

// Remove stops what runs on the machine and takes it down. Its name may be used again, its address is not.
func (m *Machine) Remove(ctx context.Context) error {
	m.StopAll(ctx)
	return m.host.remove(m)
}

// Name is the command's name.
func (p *Process) Name() string { return p.command.Name }

// PID is the process id inside the namespaces.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Log is the path of the file with its output.
func (p *Process) Log() string { return p.command.Log }

// Started is when it was started.
func (p *Process) Started() time.Time { return p.started }

// Done is closed when it has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Send writes a line to its standard input.
func (p *Process) Send(line string) error {
	if _, err := p.stdin.Write([]byte(line + "\n")); err != nil {
		return fmt.Errorf("machine: write to %s: %w", p.command.Name, err)
	}
	return nil
}

// Stop ends it: SIGTERM, and SIGKILL if it has not ended within its grace or ctx. It returns when it has ended; the error
// is how it ended, nil if by our signal or by exit code 0 or 143 (what a JVM makes of SIGTERM).
func (p *Process) Stop(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	default:
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	grace := time.NewTimer(p.command.Grace)
	defer grace.Stop()
	select {
	case <-p.done:
	case <-grace.C:
	case <-ctx.Done():
	}
	return p.end()
}

// Kill ends it without asking: SIGKILL. It returns when it has ended.
func (p *Process) Kill() error { return p.end() }

func (p *Process) end() error {
	select {
	case <-p.done:
	default:
		_ = syscall.Kill(-p.PID(), syscall.SIGKILL) // it leads its own group: what it has started goes along
		<-p.done
	}
	if exit, ok := errors.AsType[*exec.ExitError](p.err); ok {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() || exit.ExitCode() == 143 {
			return nil
		}
	}
	return p.err
}

// Forget takes a process that has ended off the machine's list.
func (p *Process) Forget() {
	p.machine.mu.Lock()
	defer p.machine.mu.Unlock()
	p.machine.processes = slices.DeleteFunc(p.machine.processes, func(q *Process) bool { return q == p })
}

// CPU is the processor time that it has used so far.
func (p *Process) CPU() (time.Duration, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID()) + "/stat")
	if err != nil {
		return 0, fmt.Errorf("machine: %w", err)
	}
	// The second field may hold spaces; user and system time are the 12th and 13th after its closing bracket (proc(5)).
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("machine: /proc/%d/stat is too short", p.PID())
	}
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("machine: /proc/%d/stat: %w", p.PID(), err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100), nil // USER_HZ is 100 on every architecture of Linux that Go knows
}
