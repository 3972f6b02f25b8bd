package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/manifests/validate"
	"github.com/isthmus-mesh/isthmus/tools/isthmusctl/cli"
)

// runTimeout bounds how long one block may run. A block that takes longer belongs behind a skip mark, and in e2e.
const runTimeout = 2 * time.Minute

// checker holds what the checks of all pages share.
type checker struct {
	root    string
	pages   map[string]*page
	targets map[string]bool
	static  bool
	log     io.Writer

	built func() (string, error) // the folder with our programs, built once
	flags func() (string, error) // what mcp-server -h says
}

// elsewhere are programs that a reader has but a machine that runs the checks need not.
var elsewhere = []string{"istioctl", "kubectl", "helm", "docker", "crane", "curl", "apt-get", "systemctl", "jq", "xxd", "tcpdump", "watch", "mcp-server"}

// builtins are commands of the shell itself.
var builtins = []string{"cd", "echo", "export", "set", "test", "[", "[[", "true", "false", "read", "wait", "trap", "exit", "printf", "kill", "source", "."}

// topFolder begins the paths that a page may name.
var topFolder = regexp.MustCompile(`^(?:\./)?((?:adapters|e2e|manifests|mcp-server|tools|wasm-filters)/[^$*{}<>]*)$`)

// checkBlock checks one code block of a README.
func (c *checker) checkBlock(ctx context.Context, p *page, b *block) []fault {
	at := func(line int, format string, args ...any) []fault {
		return []fault{{p.path, line, fmt.Sprintf(format, args...)}}
	}
	if b.mark != "" {
		return at(b.line-1, "%s", b.mark)
	}
	switch b.kind {
	case "sh":
		faults := c.checkScript(ctx, p, b)
		if len(faults) > 0 || c.static || b.skip != "" {
			return faults
		}
		return c.runScript(ctx, p, b)
	case "bash", "shell", "console", "zsh":
		return at(b.line-1, "a block of commands is marked sh, not %s", b.kind)
	case "yaml":
		var faults []fault
		err := validate.YAML([]byte(b.text), b.as)
		if err == nil || errors.Is(err, validate.ErrUnknownKind) {
			return nil
		}
		for _, f := range adapters.AsFaults(err) {
			line := b.line
			if f.Line > 0 {
				line += f.Line - 1
			}
			f.Line = 0
			faults = append(faults, fault{p.path, line, f.String()})
		}
		return faults
	case "json":
		if b.as != "" {
			if err := validate.YAML([]byte(b.text), b.as); err != nil { // JSON is YAML
				return at(b.line, "%v", err)
			}
			return nil
		}
		decoder := json.NewDecoder(strings.NewReader(b.text))
		for {
			var v any
			switch err := decoder.Decode(&v); {
			case errors.Is(err, io.EOF):
				return nil
			case err != nil:
				return at(b.line, "not JSON: %v", err)
			}
		}
	}
	return nil
}

// checkScript checks a block of commands without running it.
func (c *checker) checkScript(ctx context.Context, p *page, b *block) []fault {
	bash := exec.CommandContext(ctx, "bash", "-n")
	bash.Stdin = strings.NewReader(b.text)
	if out, err := bash.CombinedOutput(); err != nil {
		return []fault{{p.path, b.line, fmt.Sprintf("not a shell script: %s", bytes.TrimSpace(out))}}
	}
	commands, err := splitCommands(b.text)
	if err != nil {
		return []fault{{p.path, b.line, err.Error()}}
	}
	var faults []fault
	for _, cmd := range commands {
		if err := c.checkCommand(cmd); err != nil {
			faults = append(faults, fault{p.path, b.line + cmd.line, fmt.Sprintf("%s: %v", cmd.words[0], err)})
		}
	}
	return faults
}

// checkCommand checks that one command can work: its program, subcommand and flags, and the files it reads.
func (c *checker) checkCommand(cmd command) error {
	words := cmd.words
	for _, w := range slices.Concat(words[1:], cmd.input) {
		w = w[strings.IndexByte(w, '=')+1:] // --filename=PATH
		if m := topFolder.FindStringSubmatch(strings.TrimSuffix(w, "/...")); m != nil {
			if _, err := os.Stat(filepath.Join(c.root, filepath.FromSlash(m[1]))); err != nil {
				return fmt.Errorf("%s does not exist", w)
			}
		}
	}
	program := words[0]
	if program == "go" && len(words) > 2 && words[1] == "run" {
		program, words = words[2], words[2:]
	}
	switch path.Base(program) {
	case "make":
		for _, w := range words[1:] {
			if !strings.HasPrefix(w, "-") && !strings.Contains(w, "=") && !c.targets[w] {
				return fmt.Errorf("no target %s", w)
			}
		}
		return nil
	case "isthmusctl":
		return checkIsthmusctl(words[1:])
	case "mcp-server":
		return c.checkServerFlags(words[1:])
	}
	if strings.Contains(program, "/") {
		if _, err := os.Stat(filepath.Join(c.root, filepath.FromSlash(program))); err != nil {
			return errors.New("no such program")
		}
		return nil
	}
	if slices.Contains(builtins, program) || slices.Contains(elsewhere, program) || strings.HasPrefix(program, "$") {
		return nil
	}
	if _, err := exec.LookPath(program); err != nil {
		return errors.New("not a program that this check knows (tools/doccheck/checker.go)")
	}
	return nil
}

// checkIsthmusctl parses a command line with isthmusctl's own tree of commands.
func checkIsthmusctl(args []string) error {
	root := cli.New(&cli.Streams{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard})
	cmd, rest, err := root.Find(args)
	if err != nil {
		return err
	}
	cmd.InitDefaultHelpFlag()
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	if help, err := cmd.Flags().GetBool("help"); err == nil && help {
		return nil
	}
	return cmd.ValidateArgs(cmd.Flags().Args())
}

// checkServerFlags holds flags of mcp-server to what it says that it has.
func (c *checker) checkServerFlags(args []string) error {
	usage, err := c.serverUsage()
	if err != nil {
		return err
	}
	for _, a := range args {
		if !strings.HasPrefix(a, "-") {
			continue
		}
		name, _, _ := strings.Cut(strings.TrimLeft(a, "-"), "=")
		if !regexp.MustCompile(`(?m)^\s+(?:-\w, )?--?` + regexp.QuoteMeta(name) + `\b`).MatchString(usage) {
			return fmt.Errorf("no flag %s", a)
		}
	}
	return nil
}

// programs builds our programs once and returns their folder.
func (c *checker) programs() (string, error) {
	if c.built == nil {
		c.built = sync.OnceValues(func() (string, error) {
			dir, err := os.MkdirTemp("", "doccheck")
			if err != nil {
				return "", err
			}
			cmd := exec.Command("go", "build", "-o", dir+"/", "./tools/isthmusctl", "./mcp-server/cmd/mcp-server")
			cmd.Dir = c.root
			if out, err := cmd.CombinedOutput(); err != nil {
				return "", fmt.Errorf("build isthmusctl and mcp-server: %w: %s", err, bytes.TrimSpace(out))
			}
			return dir, nil
		})
	}
	return c.built()
}

func (c *checker) serverUsage() (string, error) {
	if c.flags == nil {
		c.flags = sync.OnceValues(func() (string, error) {
			dir, err := c.programs()
			if err != nil {
				return "", err
			}
			out, err := exec.Command(filepath.Join(dir, "mcp-server"), "-h").CombinedOutput()
			if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
				return "", err
			}
			return string(out), nil
		})
	}
	return c.flags()
}

// close removes what programs built.
func (c *checker) close() {
	if c.built == nil {
		return
	}
	if dir, err := c.built(); err == nil {
		os.RemoveAll(dir)
	}
}

// runScript runs a block of commands and wants it to succeed.
func (c *checker) runScript(ctx context.Context, p *page, b *block) []fault {
	dir, err := c.programs()
	if err != nil {
		return []fault{{p.path, b.line, err.Error()}}
	}
	fmt.Fprintf(c.log, "%s:%d: run\n", p.path, b.line)
	ctx, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-eu", "-o", "pipefail", "-c", b.text)
	cmd.Dir = c.root
	cmd.Env = append(os.Environ(), "PATH="+dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	cmd.WaitDelay = time.Second // for children that hold on to the output
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("not done after %s", runTimeout)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return []fault{{p.path, b.line, fmt.Sprintf("%v:\n\t%s", err, strings.Join(lines[max(0, len(lines)-15):], "\n\t"))}}
}
