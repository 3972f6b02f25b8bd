package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test program is also the programs that run on its machines, and, as testEnv says, the outer process of its tests.
func TestMain(m *testing.M) {
	switch os.Getenv("MACHINE_TEST_ROLE") {
	case "echo": // answers each connection with who it is, then what it is sent
		serveEcho()
		os.Exit(0)
	case "ask":
		c, err := net.Dial("tcp", os.Args[1])
		if err == nil {
			_, err = io.Copy(os.Stdout, c)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if !Inside() && os.Getenv("MACHINE_TEST_CASE") == "" {
		os.Exit(m.Run())
	}
	os.Exit(enterAndRun())
}

func serveEcho() {
	l, err := net.Listen("tcp", ":"+os.Args[1])
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("listening on", l.Addr())
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			name, _ := os.Hostname()
			fmt.Fprintf(c, "%s uid %d port %s\n", name, os.Getuid(), os.Args[1])
		}()
	}
}

// cases are what runs inside, by name.
var cases = map[string]func(ctx context.Context, h *Host) error{
	"machines":  caseMachines,
	"intercept": caseIntercept,
	"processes": caseProcesses,
	"orphans":   caseOrphans,
	"listener":  caseListener,
	"state": func(_ context.Context, h *Host) error {
		fmt.Printf("state %s\n", h.State())
		return nil
	},
}

func enterAndRun() int {
	out := Outside{State: []byte(`{"a":1}`)}
	if a := os.Getenv("MACHINE_TEST_LISTEN"); a != "" {
		out.Listen = map[string]string{"page": a}
	}
	h, code, err := Enter(out)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if h == nil {
		return code
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := cases[os.Getenv("MACHINE_TEST_CASE")](ctx, h); err != nil {
		fmt.Fprintln(os.Stderr, "inside:", err)
		return 1
	}
	h.Close(ctx)
	return 0
}

// outer starts this test program as the outer process of a case, as the user with that id.
func outer(t *testing.T, user int, name string, env ...string) *exec.Cmd {
	t.Helper()
	if testing.Short() {
		t.Skip("makes namespaces: not with -short")
	}
	// The test binary lies in a folder of the tester's own.
	folder, err := os.MkdirTemp("", "machine-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	binary, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(folder, "program")
	if err := errors.Join(os.WriteFile(exe, binary, 0o755), os.Chmod(folder, 0o777)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), append(env, "MACHINE_TEST_CASE="+name, "MACHINE_TEST_FOLDER="+folder)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if user != os.Getuid() {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(user), Gid: uint32(user)}
	}
	return cmd
}

// users are whom the cases are run as: root can be both, anybody else only an ordinary user.
var users = func() map[string]int {
	if uid := os.Getuid(); uid != 0 {
		return map[string]int{"ordinary user": uid}
	}
	return map[string]int{"root": 0, "ordinary user": 65534}
}()

func TestInside(t *testing.T) {
	for who, uid := range users {
		for name, want := range map[string]string{"machines": "", "intercept": "", "processes": "", "state": "state {\"a\":1}\n"} {
			t.Run(who+"/"+name, func(t *testing.T) {
				out, err := outer(t, uid, name).CombinedOutput()
				if err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				if want != "" && string(out) != want {
					t.Errorf("got %q, want %q", out, want)
				}
			})
		}
	}
}

// echo starts the echo server on m as a user.
func echo(ctx context.Context, m *Machine, user, port int) (*Process, error) {
	exe, err := m.host.Expose(filepath.Dir(os.Args[0]))
	if err != nil {
		return nil, err
	}
	p, err := m.Start(Command{Name: "echo-" + strconv.Itoa(port), Path: filepath.Join(exe, "program"), Args: []string{strconv.Itoa(port)}, User: user,
		Env: []string{"MACHINE_TEST_ROLE=echo"}, Folder: filepath.Join(os.Getenv("MACHINE_TEST_FOLDER"), m.name, "echo")})
	if err != nil {
		return nil, err
	}
	_, err = p.UntilLine(ctx, "it to listen", func(line string) bool { return strings.HasPrefix(line, "listening") })
	return p, err
}

// ask connects from within m and returns the greeting.
func ask(ctx context.Context, m *Machine, address string) (string, error) {
	c, err := m.DialContext(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	return strings.TrimSpace(string(b)), err
}

func want(got string, err error, want string) error {
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("got %q, want %q", got, want)
	}
	return nil
}

// uid is what a process that was started as user sees.
func uid(h *Host, user int) int {
	if h.Rootless() {
		return 0
	}
	return user
}

func caseMachines(ctx context.Context, h *Host) error {
	a, err := h.NewMachine("a")
	if err != nil {
		return err
	}
	b, err := h.NewMachine("b")
	if err != nil {
		return err
	}
	if _, err := echo(ctx, b, UserApp, 2000); err != nil {
		return err
	}
	hello := fmt.Sprintf("b uid %d port 2000", uid(h, UserApp))
	got, err := ask(ctx, a, b.Address().String()+":2000")
	if err := want(got, err, hello); err != nil {
		return fmt.Errorf("from machine to machine: %w", err)
	}
	got, err = ask(ctx, b, "127.0.0.1:2000")
	if err := want(got, err, hello); err != nil {
		return fmt.Errorf("on its own loopback: %w", err)
	}
	if _, err := ask(ctx, a, "127.0.0.1:2000"); err == nil {
		return errors.New("one machine reaches another's loopback")
	}
	ips, err := net.DefaultResolver.LookupHost(ctx, "b")
	if err != nil || len(ips) != 1 || ips[0] != b.Address().String() {
		return fmt.Errorf("b is looked up as %v, %v", ips, err)
	}
	if err := b.Remove(ctx); err != nil {
		return err
	}
	// Not looked up: Go's resolver remembers the file for some seconds.
	if hosts, err := os.ReadFile("/etc/hosts"); err != nil || strings.Contains(string(hosts), b.Address().String()) {
		return fmt.Errorf("b is gone and in the hosts file (%v): %s", err, hosts)
	}
	again, err := h.NewMachine("b")
	if err != nil {
		return err
	}
	if _, err := echo(ctx, again, UserApp, 2000); err != nil {
		return err
	}
	if got, err := ask(ctx, a, again.Address().String()+":2000"); want(got, err, hello) != nil {
		return fmt.Errorf("a second b: %w", want(got, err, hello))
	}
	if name, _ := os.Hostname(); name == "a" || name == "b" {
		return fmt.Errorf("this process is on machine %s", name)
	}
	return nil
}

func caseIntercept(ctx context.Context, h *Host) error {
	client, err := h.NewMachine("client")
	if err != nil {
		return err
	}
	server, err := h.NewMachine("server")
	if err != nil {
		return err
	}
	for _, p := range []struct {
		m    *Machine
		port int
	}{{client, PortOutbound}, {server, PortInbound}, {server, 3000}, {server, PortMetrics}, {server, 4000}} {
		if _, err := echo(ctx, p.m, UserApp, p.port); err != nil {
			return err
		}
	}
	greeting := func(m *Machine, port int) string {
		return fmt.Sprintf("%s uid %d port %d", m.name, uid(h, UserApp), port)
	}
	for _, m := range []*Machine{client, server} {
		if err := m.Intercept(ctx, Interception{ExcludeInbound: []int{4000}}); err != nil {
			return err
		}
	}
	host, err := h.NewMachine("bystander")
	if err != nil {
		return err
	}
	for what, c := range map[string]struct {
		from    *Machine
		address string
		want    string
	}{
		"outgoing":               {client, server.Address().String() + ":3000", greeting(client, PortOutbound)},
		"incoming":               {host, server.Address().String() + ":3000", greeting(server, PortInbound)},
		"the proxy's own port":   {host, server.Address().String() + ":15090", greeting(server, PortMetrics)},
		"an excluded port":       {host, server.Address().String() + ":4000", greeting(server, 4000)},
		"the application itself": {server, server.Address().String() + ":3000", greeting(server, 3000)},
		"its own loopback":       {server, "127.0.0.1:3000", greeting(server, 3000)},
	} {
		got, err := ask(ctx, c.from, c.address)
		if err := want(got, err, c.want); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	// What the proxy sends goes out as it is, and arrives as incoming.
	got, err := askAsProxy(ctx, client, server.Address().String()+":3000")
	if err := want(got, err, greeting(server, PortInbound)); err != nil {
		return fmt.Errorf("from the proxy: %w", err)
	}
	return nil
}

func caseProcesses(ctx context.Context, h *Host) error {
	m, err := h.NewMachine("m")
	if err != nil {
		return err
	}
	folder := filepath.Join(os.Getenv("MACHINE_TEST_FOLDER"), "p")
	run := func(name, script string, grace time.Duration) (*Process, error) {
		return m.Start(Command{Name: name, Path: "/bin/sh", Args: []string{"-c", script}, User: UserApp, Grace: grace, Folder: filepath.Join(folder, name)})
	}
	// One that ends although it is waited for says why.
	p, err := run("fails", "echo first; echo last words; exit 7", 0)
	if err != nil {
		return err
	}
	err = p.UntilTCP(ctx, 9)
	if ended, ok := errors.AsType[*EndedError](err); !ok || !strings.Contains(ended.Tail, "last words") || !strings.Contains(err.Error(), "exit status 7") {
		return fmt.Errorf("a process that ended while it was waited for: %v", err)
	}
	if _, err = p.UntilLine(ctx, "never", func(l string) bool { return l == "never" }); err == nil {
		return errors.New("a line that never came")
	}
	// Lines come to those who follow, also the last one without its end.
	p, err = run("reads", `while read x; do [ "$x" = bye ] && break; echo "got $x"; done; printf unfinished`, 0)
	if err != nil {
		return err
	}
	lines, stop := p.Lines(true)
	defer stop()
	if err := errors.Join(p.Send("one"), p.Send("two"), p.Send("bye")); err != nil {
		return err
	}
	var all []string
	for l := range lines {
		all = append(all, l)
	}
	if got := strings.Join(all, ","); got != "got one,got two,unfinished" {
		return fmt.Errorf("lines: %q", got)
	}
	// One that will not hear is killed after its grace.
	p, err = run("deaf", `trap "" TERM; echo up; while :; do sleep 60; done`, 300*time.Millisecond)
	if err != nil {
		return err
	}
	if _, err := p.UntilLine(ctx, "up", func(l string) bool { return l == "up" }); err != nil {
		return err
	}
	begin := time.Now()
	if err := p.Stop(ctx); err != nil {
		return err
	}
	if d := time.Since(begin); d < 300*time.Millisecond || d > 5*time.Second {
		return fmt.Errorf("a deaf process took %v to stop", d)
	}
	if _, err := os.Stat("/proc/" + strconv.Itoa(p.PID())); err == nil {
		return errors.New("a stopped process is still there")
	}
	return nil
}

// TestNothingIsLeft kills the outer process in the hardest way and wants everything inside to be gone.
func TestNothingIsLeft(t *testing.T) {
	for who, user := range users {
		for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
			t.Run(who+"/"+signal.String(), func(t *testing.T) {
				cmd := outer(t, user, "orphans")
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				cmd.Stderr = os.Stderr
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				defer cmd.Process.Kill()
				var told struct{ Mark string }
				if err := json.NewDecoder(out).Decode(&told); err != nil {
					t.Fatal(err)
				}
				if n := withMark(t, told.Mark); n == 0 {
					t.Fatal("nothing runs inside")
				}
				if err := cmd.Process.Signal(signal); err != nil {
					t.Fatal(err)
				}
				_ = cmd.Wait()
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				if err := Until(ctx, "everything to end", func(context.Context) error {
					if n := withMark(t, told.Mark); n > 0 {
						return fmt.Errorf("%d processes are left", n)
					}
					return nil
				}); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// withMark counts the processes with mark on their command line.
func withMark(t *testing.T, mark string) (n int) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), mark) {
			n++
		}
	}
	return n
}

func caseOrphans(ctx context.Context, h *Host) error {
	m, err := h.NewMachine("m")
	if err != nil {
		return err
	}
	mark := fmt.Sprintf("machine-test-orphan-%d", time.Now().UnixNano())
	for i := range 3 {
		// The grandchild is no child of ours: only the namespace's end reaches it.
		p, err := m.Start(Command{Name: "orphan" + strconv.Itoa(i), Path: "/bin/sh", Args: []string{"-c", "setsid sh -c 'echo up; sleep 1000; : " + mark + "' & sleep 1000; : " + mark},
			User: UserApp, Folder: filepath.Join(os.Getenv("MACHINE_TEST_FOLDER"), "o")})
		if err != nil {
			return err
		}
		if _, err := p.UntilLine(ctx, "up", func(l string) bool { return l == "up" }); err != nil {
			return err
		}
	}
	fmt.Printf("{\"Mark\":%q}\n", mark)
	<-h.Context().Done()
	return nil
}

func caseListener(ctx context.Context, h *Host) error {
	l := h.Listener("page")
	defer l.Close()
	fmt.Println(l.Addr())
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = io.WriteString(c, "from inside\n")
	return err
}

func TestListener(t *testing.T) {
	for who, user := range users {
		t.Run(who, func(t *testing.T) {
			cmd := outer(t, user, "listener", "MACHINE_TEST_LISTEN=127.0.0.1:0")
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Process.Kill()
			var address string
			if _, err := fmt.Fscanln(out, &address); err != nil {
				t.Fatal(err)
			}
			c, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			b, err := io.ReadAll(c)
			if err != nil || string(b) != "from inside\n" {
				t.Errorf("got %q, %v", b, err)
			}
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}
