package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// extract writes the files of a case, each after its "-- path --" line, below dir and returns what stands after
// "-- want --".
func extract(t *testing.T, archive, dir string) (want string) {
	t.Helper()
	data, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	name := ""
	var body strings.Builder
	flush := func() {
		switch name {
		case "":
		case "want":
			want = body.String()
		default:
			full := filepath.Join(dir, filepath.FromSlash(name))
			if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(full, []byte(body.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		body.Reset()
	}
	for line := range strings.Lines(string(data)) {
		if inner, ok := strings.CutPrefix(strings.TrimSpace(line), "-- "); ok && strings.HasSuffix(inner, " --") {
			flush()
			name = strings.TrimSuffix(inner, " --")
			continue
		}
		body.WriteString(line)
	}
	flush()
	return want
}

// TestTrees holds the checks to the trees in testdata: each violation there is found, and nothing else.
func TestTrees(t *testing.T) {
	archives, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(archives) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, archive := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(archive), ".txt"), func(t *testing.T) {
			dir := t.TempDir()
			want := extract(t, archive, dir)
			paths, err := walk(dir)
			if err != nil {
				t.Fatal(err)
			}
			tr, err := load(dir, paths)
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			for _, v := range tr.check([]string{"/checkout/of/isthmus/"}) {
				got.WriteString(v.String() + "\n")
			}
			if got.String() != want {
				t.Errorf("got:\n%s\nwant:\n%s", got.String(), want)
			}
		})
	}
}

func TestSizeIsBounded(t *testing.T) {
	tr := &tree{module: "example.org/m", files: []*file{
		{path: "e2e/fits.bin", data: make([]byte, maxFileBytes)},
		{path: "e2e/large.bin", data: make([]byte, maxFileBytes+1)},
	}}
	vs := tr.checkSizes()
	if len(vs) != 1 || vs[0].path != "e2e/large.bin" {
		t.Errorf("got %v, want one violation for e2e/large.bin", vs)
	}
}

func TestBinaryFilesMayHoldAnyPath(t *testing.T) {
	home := []byte("/home/alice/x")
	tr := &tree{files: []*file{{path: "e2e/a.bin", data: append([]byte{0}, home...)}, {path: "e2e/a.txt", data: home}}}
	vs := tr.checkMachinePaths(nil)
	if len(vs) != 1 || vs[0].path != "e2e/a.txt" {
		t.Errorf("got %v, want one violation for e2e/a.txt", vs)
	}
}

func TestLinkedPackages(t *testing.T) {
	vs := checkLinked([]string{"bytes", "net/http", "net/http/internal", "regexp/syntax", "errors"})
	var got []string
	for _, v := range vs {
		got = append(got, v.message)
	}
	want := []string{"net/http is linked into the .wasm", "net/http/internal is linked into the .wasm", "regexp/syntax is linked into the .wasm"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestMachinePathsLeaveOutWhatEveryMachineHas(t *testing.T) {
	t.Setenv("HOME", "/root")
	if got := machinePaths("/src/isthmus"); !slices.Equal(got, []string{"/src/isthmus/"}) {
		t.Errorf("got %q", got)
	}
	t.Setenv("HOME", "/data/alice")
	if got := machinePaths("/data/alice/code/isthmus"); !slices.Equal(got, []string{"/data/alice/code/isthmus/", "/data/alice/code/", "/data/alice/"}) {
		t.Errorf("got %q", got)
	}
}

// TestRulesNameEveryTopFolder holds that no Go package can lie outside the rules.
func TestRulesNameEveryTopFolder(t *testing.T) {
	for _, folder := range topFolders {
		if folder == "mcp-server" {
			continue // each of its packages has a rule of its own, and a new one must bring it
		}
		if ruleFor(folder+"/x") == nil {
			t.Errorf("no rule holds for %s/x", folder)
		}
		if testRules[folder] == nil {
			t.Errorf("no rule for tests in %s", folder)
		}
	}
}

// TestRepositoryFilesWithoutGit holds that a source archive, which has no .git, is checked as well.
func TestRepositoryFilesWithoutGit(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"go.mod", "bin/tool", "tools/x.go"} {
		full := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, bytes.Repeat([]byte("x"), 3), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := repositoryFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, []string{"go.mod", "tools/x.go"}) {
		t.Errorf("got %q", got)
	}
}
