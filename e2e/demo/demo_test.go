package main

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/e2e/peer"
)

// demo builds the demo as `make demo` does and returns the command.
func demo(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	if testing.Short() {
		t.Skip("needs real peers: not with -short")
	}
	// Obtained here, so that the story's own time is not that of a first build.
	peer.Need(t, peers...)
	exe := filepath.Join(t.TempDir(), "demo")
	if out, err := exec.Command("go", "build", "-o", exe, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(exe, args...)
	// Whatever becomes of this test, the demo does not outlive it; its namespaces go with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

var stepLine = regexp.MustCompile(`(?m)^ ?\d+\. (.*)  \[`)

// told returns the titles of the steps in the demo's output.
func told(out []byte) []string {
	var titles []string
	for _, m := range stepLine.FindAllSubmatch(out, -1) {
		titles = append(titles, string(m[1]))
	}
	return titles
}

// TestOnce tells the whole story, as root and as an ordinary user's namespaces allow. Each step checks itself.
func TestOnce(t *testing.T) {
	for name, args := range map[string][]string{"root": {"--once"}, "ordinary user": {"--once", "--rootless"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // both mostly wait
			out, err := demo(t, args...).CombinedOutput()
			t.Logf("\n%s", out)
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			for _, chapter := range chapters {
				for _, st := range chapter {
					want = append(want, st.title)
				}
			}
			if got := told(out); len(got) == 0 || !slices.Equal(got[1:], want) { // the first is obtaining the peers
				t.Errorf("the story had the steps %q, not %q", got, want)
			}
		})
	}
}

// TestInterrupt interrupts the demo as Ctrl-C does while everything runs: nothing may be left.
func TestInterrupt(t *testing.T) {
	cmd := demo(t)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	var inside []int
	var rest []string
	for lines.Scan() {
		rest = append(rest, lines.Text())
		if inside == nil && strings.Contains(lines.Text(), "a consumer has found them") {
			if inside = descendants(t, cmd.Process.Pid); len(inside) < 8 {
				t.Errorf("the demo runs %d processes: the test looks at the wrong ones", len(inside))
			}
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
		}
	}
	begin := time.Now()
	err = cmd.Wait()
	if err != nil || stderr.Len() > 0 || inside == nil {
		t.Fatalf("%v, standard error %q, output:\n%s", err, stderr.String(), strings.Join(rest, "\n"))
	}
	t.Logf("ended %s after its last line", time.Since(begin))
	for _, pid := range inside {
		// A process that was killed with its namespace is gone before the namespace's first process is reaped.
		if b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline")); err == nil && len(b) > 0 {
			t.Errorf("process %d is left: %q", pid, bytes.ReplaceAll(b, []byte{0}, []byte{' '}))
		}
	}
}

// descendants returns all processes below pid.
func descendants(t *testing.T, pid int) []int {
	t.Helper()
	var out []int
	tasks, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "*", "children"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range tasks {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		for _, f := range strings.Fields(string(b)) {
			child, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			out = append(append(out, child), descendants(t, child)...)
		}
	}
	return out
}

// TestUsage: what a wrong command line gets.
func TestUsage(t *testing.T) {
	cmd := demo(t, "--twice")
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != exitMissing || !strings.Contains(string(out), "usage: make demo") {
		t.Errorf("%v: %s", err, out)
	}
}
