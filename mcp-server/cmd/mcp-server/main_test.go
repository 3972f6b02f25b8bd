package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good.yaml"), filepath.Join(dir, "bad.yaml")
	for path, text := range map[string]string{
		good: "apiVersion: isthmus.io/v1alpha1\nkind: MCPServer\nspec:\n  mcp: {address: \"127.0.0.1:0\"}\n  api: {address: \"127.0.0.1:0\"}\n",
		bad:  "apiVersion: isthmus.io/v1alpha1\nkind: MCPServer\nspec: {mpc: {}}\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		"nothing":        {nil, exitUsage, "", "--config FILE is needed"},
		"version":        {[]string{"--version"}, 0, version, ""},
		"help":           {[]string{"--help"}, 0, "", "-log-level"},
		"unknown flag":   {[]string{"--x"}, exitUsage, "", "not defined"},
		"an argument":    {[]string{"--config", good, "x"}, exitUsage, "", "no argument besides"},
		"log level":      {[]string{"--config", good, "--log-level", "loud"}, exitUsage, "", `"loud" is none of`},
		"log format":     {[]string{"--config", good, "--log-format", "xml"}, exitUsage, "", `"xml" is neither`},
		"check":          {[]string{"--config", good, "--check"}, 0, "", ""},
		"check, a fault": {[]string{"--config", bad, "--check"}, exitFailed, "", "bad.yaml:3: spec.mpc: unknown field"},
		"a fault":        {[]string{"--config", bad}, exitFailed, "", "bad.yaml:3: spec.mpc: unknown field"},
		"no file":        {[]string{"--config", filepath.Join(dir, "none")}, exitFailed, "", "no such file"},
		"end":            {[]string{"--config", good, "--log-format", "json"}, 0, "", `"msg":"stopped"`},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // what would run ends at once
			var stdout, stderr bytes.Buffer
			if code := run(ctx, c.args, &stdout, &stderr); code != c.code || !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(stderr.String(), c.stderr) {
				t.Errorf("exit code %d, want %d; stdout %q, stderr %q", code, c.code, &stdout, &stderr)
			}
		})
	}
}
