package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/e2e/caller"
	"github.com/isthmus-mesh/isthmus/e2e/machine"
	"github.com/isthmus-mesh/isthmus/e2e/mesh"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
)

// stepError names the step that failed.
type stepError struct {
	number int
	title  string
	err    error
}

func (e *stepError) Error() string { return fmt.Sprintf("step %d, %s: %v", e.number, e.title, e.err) }
func (e *stepError) Unwrap() error { return e.err }

// story is what the steps work on.
type story struct {
	*screen
	host *machine.Host
	mesh *mesh.Mesh
	plan handover
	once bool

	registries []mesh.Registry // of mcp-server
	scraped    []string        // machines whose sidecars' metrics it reads

	providers [2]*machine.Process
	apps      map[string]*machine.Process // other applications, by machine
	sidecars  map[string]*mesh.Sidecar
	consumer  *caller.Caller
	greetHost string // of the greeting service, in the mesh

	sofaRegistry chan error // receives what became of SOFARegistry's start
	shop         *caller.Caller
}

// api reads one of mcp-server's answers.
func (t *story) api(ctx context.Context, path string, into any) error {
	body, err := t.mesh.API(ctx, path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// show runs isthmusctl and prints what it says.
func (t *story) show(ctx context.Context, args ...string) error {
	_, err := t.isthmusctl(ctx, args...)
	return err
}

// isthmusctl runs it, prints what it says as it says it, and returns all of it.
func (t *story) isthmusctl(ctx context.Context, args ...string) (string, error) {
	t.line("    " + t.paint(bold, "$ isthmusctl "+strings.Join(args, " ")))
	cmd := exec.CommandContext(ctx, t.plan.Peers[peer.Isthmusctl].Path, args...)
	cmd.Env = append(os.Environ(), "ISTHMUS_SERVER="+t.mesh.APIURL(), "ISTHMUS_TOKEN="+apiToken)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return "", err
	}
	var said strings.Builder
	for lines := bufio.NewScanner(pipe); lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		t.quote(lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		return said.String(), fmt.Errorf("isthmusctl %s: %w", strings.Join(args, " "), err)
	}
	return said.String(), nil
}

// conditionTimeout is how long a step waits for anything that it expects.
const conditionTimeout = 90 * time.Second

// until waits for a condition of the mesh.
func (t *story) until(ctx context.Context, what string, condition func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, conditionTimeout, fmt.Errorf("not within %s", conditionTimeout))
	defer cancel()
	return machine.Until(ctx, what, condition)
}

// step is one step of the story. It says what it does, does it, and checks what came of it.
type step struct {
	title string
	run   func(ctx context.Context, t *story) error
}

// chapters is the story. A chapter is a list of steps that build on those before.
var chapters = [][]step{dubboChapter, sofaChapter, liftChapter}

// stepTimeout bounds each step.
const stepTimeout = 5 * time.Minute

func tell(ctx context.Context, host *machine.Host, plan handover, s *screen, once bool) error {
	m, err := mesh.New(host, plan.Peers, plan.Folder)
	if err != nil {
		return err
	}
	t := &story{screen: s, host: host, mesh: m, plan: plan, once: once, sidecars: make(map[string]*mesh.Sidecar), apps: make(map[string]*machine.Process)}
	for _, chapter := range chapters {
		for _, st := range chapter {
			s.step(st.title)
			ctx, cancel := context.WithTimeoutCause(ctx, stepTimeout, fmt.Errorf("the step took longer than %s", stepTimeout))
			err := st.run(ctx, t)
			cancel()
			if err != nil {
				t.autopsy()
				return &stepError{number: s.steps, title: st.title, err: err}
			}
			t.pause(ctx)
		}
	}
	if once {
		return nil
	}
	return t.stay(ctx)
}

// reading is how long a step stays on the screen before the next one begins.
const reading = 3 * time.Second

// pause leaves time to read, where somebody does.
func (t *story) pause(ctx context.Context) {
	if t.once {
		return
	}
	select {
	case <-time.After(reading):
	case <-ctx.Done():
	}
}

// stay keeps the mesh up and shows its live traffic until the user ends it.
func (t *story) stay(ctx context.Context) error {
	t.step("The mesh stays up, until Ctrl-C")
	if l := t.host.Listener(apiListener); l != nil {
		defer l.Close()
		go t.forward(ctx, l)
		t.note("mcp-server's API is at http://%s, its token is %s: ISTHMUS_TOKEN=%s %s --server http://%s services", l.Addr(), apiToken, apiToken, t.plan.Peers[peer.Isthmusctl].Path, l.Addr())
	}
	t.note("logs are in %s", t.plan.Folder)
	cmd := exec.CommandContext(ctx, t.plan.Peers[peer.Isthmusctl].Path, "top")
	cmd.Env = append(os.Environ(), "ISTHMUS_SERVER="+t.mesh.APIURL(), "ISTHMUS_TOKEN="+apiToken)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil // the user has ended it
	}
	if err != nil {
		return fmt.Errorf("isthmusctl top: %w", err)
	}
	<-ctx.Done() // the user has ended only the display
	return nil
}

// forward joins connections from the user's own network to mcp-server's API.
func (t *story) forward(ctx context.Context, l net.Listener) {
	target := strings.TrimPrefix(t.mesh.APIURL(), "http://")
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer in.Close()
			out, err := (&net.Dialer{}).DialContext(ctx, "tcp", target)
			if err != nil {
				return // mcp-server is being restarted; the caller sees the connection end
			}
			defer out.Close()
			go func() { _, _ = io.Copy(out, in); out.Close() }()
			_, _ = io.Copy(in, out)
		}()
	}
}

// autopsy saves what the sidecars and istiod say of themselves, for whoever looks for the reason of a failure.
func (t *story) autopsy() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	t.mesh.Autopsy(ctx, slices.Collect(maps.Values(t.sidecars))...)
}
