package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// violation is one breach of a convention.
type violation struct {
	path    string // from the top, with slashes
	line    int    // 0 where it concerns the whole file
	rule    string
	message string
}

// String returns the violation as editors read it: path:line: rule: message.
func (v violation) String() string {
	if v.line == 0 {
		return fmt.Sprintf("%s: %s: %s", v.path, v.rule, v.message)
	}
	return fmt.Sprintf("%s:%d: %s: %s", v.path, v.line, v.rule, v.message)
}

// sorted sorts violations by path, line, rule and message.
func sorted(vs []violation) []violation {
	slices.SortFunc(vs, func(a, b violation) int {
		return cmp.Or(strings.Compare(a.path, b.path), a.line-b.line, strings.Compare(a.rule, b.rule), strings.Compare(a.message, b.message))
	})
	return vs
}

// file is one file of the repository.
type file struct {
	path string // from the top, with slashes
	data []byte
	ast  *ast.File // of Go files outside testdata, nil else
}

// folder is the file's folder from the top, with slashes; "." for the top itself.
func (f *file) folder() string { return path.Dir(f.path) }

// test tells whether the file belongs to a test binary only.
func (f *file) test() bool { return strings.HasSuffix(f.path, "_test.go") }

// generated tells whether the file was written by a program.
func (f *file) generated() bool { return strings.HasPrefix(path.Base(f.path), "zz_generated_") }

// text tells whether the file is for people to read: it holds no NUL byte near its start.
func (f *file) text() bool { return !bytes.Contains(f.data[:min(len(f.data), 8000)], []byte{0}) }

// tree is the repository's files, sorted by path.
type tree struct {
	module string
	fset   *token.FileSet
	files  []*file
}

// violationf makes a violation at a position in a Go file.
func (t *tree) violationf(f *file, pos token.Pos, rule, format string, args ...any) violation {
	v := violation{path: f.path, rule: rule, message: fmt.Sprintf(format, args...)}
	if pos.IsValid() {
		v.line = t.fset.Position(pos).Line
	}
	return v
}

// repositoryFiles lists what git tracks or would add; without git, everything but what a build leaves behind.
func repositoryFiles(root string) ([]string, error) {
	cmd := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = root
	if out, err := cmd.Output(); err == nil && len(out) > 0 {
		return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00"), nil
	}
	return walk(root)
}

// walk lists all files under root but for .git and bin.
func walk(root string) ([]string, error) {
	var paths []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir() && (rel == ".git" || rel == "bin"):
			return fs.SkipDir
		case !d.IsDir():
			paths = append(paths, filepath.ToSlash(rel))
		}
		return nil
	})
	return paths, err
}

// load reads the files. A file that is listed but gone is left out: the work tree may change while we look.
func load(root string, paths []string) (*tree, error) {
	t := &tree{fset: token.NewFileSet()}
	slices.Sort(paths)
	for _, p := range slices.Compact(paths) {
		full := filepath.Join(root, filepath.FromSlash(p))
		info, err := os.Lstat(full)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
			continue
		}
		if err != nil {
			return nil, err
		}
		data, err := os.ReadFile(full)
		if err != nil {
			return nil, err
		}
		f := &file{path: p, data: data}
		if strings.HasSuffix(p, ".go") && !inTestdata(p) {
			if f.ast, err = parser.ParseFile(t.fset, p, data, parser.ParseComments|parser.SkipObjectResolution); err != nil {
				return nil, err
			}
		}
		if p == "go.mod" {
			first, _, _ := strings.Cut(string(data), "\n")
			t.module = strings.TrimSpace(strings.TrimPrefix(first, "module "))
		}
		t.files = append(t.files, f)
	}
	if t.module == "" {
		return nil, fmt.Errorf("no go.mod at %s", root)
	}
	return t, nil
}

func inTestdata(p string) bool {
	return slices.Contains(strings.Split(p, "/"), "testdata")
}

// check runs every check that needs nothing but the files.
func (t *tree) check(machine []string) []violation {
	var vs []violation
	for _, check := range []func() []violation{
		t.checkTop, t.checkReadmes, t.checkRationales, t.checkSiblings, t.checkSizes,
		t.checkImports, t.checkDocs, t.checkSkips,
		func() []violation { return t.checkMachinePaths(machine) },
	} {
		vs = append(vs, check()...)
	}
	return sorted(vs)
}
