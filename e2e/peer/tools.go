package peer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// tool is a program of the system that a peer needs.
type tool struct {
	name    string
	install string                  // what to do if it is missing
	check   func(path string) error // what else must be right about it; may be nil
}

// The tools.
var (
	golang = tool{"go", "install Go 1.26 or newer (https://go.dev/dl)", nil}
	javac  = tool{"javac", "apt-get install openjdk-17-jdk-headless (or a newer JDK)", checkJDK}
	maven  = tool{"mvn", "apt-get install maven", nil}
	python = tool{"python3", "apt-get install python3 python3-venv", checkVenv}
	ipTool = tool{"ip", "apt-get install iproute2", nil}
	tables = tool{"iptables-restore", "apt-get install iptables", nil}
)

// CheckNetworkTools reports the missing ones of the tools that package machine runs.
func CheckNetworkTools() error { return checkTools([]tool{ipTool, tables}) }

// MissingToolError says which tool of the system is missing, and how to get it.
type MissingToolError struct {
	Tool    string
	Install string
	Err     error // what is wrong with it if it is there
}

// Error is one line: the tool, and how to get it.
func (e *MissingToolError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s cannot be used (%v): %s", e.Tool, e.Err, e.Install)
	}
	return fmt.Sprintf("%s is missing: %s", e.Tool, e.Install)
}

// checkTools returns a MissingToolError for each tool that is missing, joined.
func checkTools(tools []tool) error {
	var errs []error
	var seen []string
	for _, t := range tools {
		if slices.Contains(seen, t.name) {
			continue
		}
		seen = append(seen, t.name)
		path, err := find(t.name)
		if err != nil {
			errs = append(errs, &MissingToolError{Tool: t.name, Install: t.install})
		} else if t.check != nil {
			if err := t.check(path); err != nil {
				errs = append(errs, &MissingToolError{Tool: t.name, Install: t.install, Err: err})
			}
		}
	}
	return errors.Join(errs...)
}

// find looks a program up in PATH and, as an ordinary user's PATH often leaves them out, in the system's sbin folders.
func find(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if p, e := exec.LookPath(filepath.Join(dir, name)); e == nil {
			return p, nil
		}
	}
	return "", err
}

var javaVersion = regexp.MustCompile(`(\d+)(\.\d+)*`)

// checkJDK wants 17 or newer: the applications are compiled for 17.
func checkJDK(path string) error {
	out, err := exec.Command(path, "-version").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s -version: %w", path, err)
	}
	m := javaVersion.FindStringSubmatch(string(out))
	if m == nil {
		return fmt.Errorf("%s -version says %q", path, out)
	}
	if n, err := strconv.Atoi(m[1]); err != nil || n < 17 {
		return fmt.Errorf("it is version %s", m[0])
	}
	return nil
}

// checkVenv wants the module that Debian keeps in a package of its own.
func checkVenv(path string) error {
	if out, err := exec.Command(path, "-c", "import venv, ensurepip").CombinedOutput(); err != nil {
		return fmt.Errorf("no venv: %s", strings.TrimSpace(string(out)))
	}
	return nil
}

// run runs a build step. Its output is in the error if it fails.
func run(ctx context.Context, dir string, env []string, name string, args ...string) ([]byte, error) {
	path, err := find(name)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		text := strings.TrimSpace(string(out))
		if len(text) > maxOutput {
			text = "… " + text[len(text)-maxOutput:]
		}
		return out, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, text)
	}
	return out, nil
}

// maxOutput bounds what of a failed step's output goes into the error, in bytes.
const maxOutput = 4000
