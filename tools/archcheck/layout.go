package main

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// topFolders are the folders of the top level; no other is allowed, dotfiles aside.
var topFolders = []string{"adapters", "e2e", "manifests", "mcp-server", "tools", "wasm-filters"}

// topFiles are the files of the top level; no other is allowed, dotfiles aside.
var topFiles = []string{"LICENSE", "Makefile", "README.md", "go.mod", "go.sum"}

// siblings are folders whose packages have the same shape, so that who knows one knows all.
var siblings = [][]string{
	{"wasm-filters/protocol/dubbo", "wasm-filters/protocol/bolt"},
}

// maxFileBytes is the size of the largest file that may be committed. What is larger is built, not stored.
const maxFileBytes = 1_000_000

// checkTop holds the top level to the agreed names.
func (t *tree) checkTop() []violation {
	var vs []violation
	var seen []string
	for _, f := range t.files {
		name, _, nested := strings.Cut(f.path, "/")
		allowed := topFiles
		if nested {
			allowed = topFolders
		}
		if strings.HasPrefix(name, ".") || slices.Contains(allowed, name) || slices.Contains(seen, name) {
			continue
		}
		seen = append(seen, name)
		vs = append(vs, violation{path: name, rule: "layout", message: "not one of the top level's agreed names"})
	}
	return vs
}

// checkReadmes wants a README.md in the top folder and each folder below it.
func (t *tree) checkReadmes() []violation {
	exists := make(map[string]bool)
	for _, f := range t.files {
		exists[f.path] = true
		if name, _, nested := strings.Cut(f.path, "/"); nested {
			exists[name+"/"] = true
		}
	}
	wanted := []string{"README.md"}
	for _, folder := range topFolders {
		if exists[folder+"/"] {
			wanted = append(wanted, folder+"/README.md")
		}
	}
	var vs []violation
	for _, p := range wanted {
		if !exists[p] {
			vs = append(vs, violation{path: p, rule: "readme", message: "missing"})
		}
	}
	return vs
}

// checkRationales wants the headings of a RATIONALE.md to be questions.
func (t *tree) checkRationales() []violation {
	var vs []violation
	for _, f := range t.files {
		if path.Base(f.path) != "RATIONALE.md" {
			continue
		}
		for i, line := range strings.Split(string(f.data), "\n") {
			if strings.HasPrefix(line, "## ") && !strings.HasSuffix(strings.TrimSpace(line), "?") {
				vs = append(vs, violation{path: f.path, line: i + 1, rule: "rationale", message: "a heading is a question"})
			}
		}
	}
	return vs
}

// checkSiblings wants the packages of each list in siblings to have the same non-test files.
func (t *tree) checkSiblings() []violation {
	var vs []violation
	for _, folders := range siblings {
		names := make(map[string][]string)
		for _, f := range t.files {
			if slices.Contains(folders, f.folder()) && f.ast != nil && !f.test() && !f.generated() {
				names[f.folder()] = append(names[f.folder()], path.Base(f.path))
			}
		}
		for _, folder := range folders {
			for _, other := range folders {
				for _, name := range names[other] {
					if names[folder] != nil && !slices.Contains(names[folder], name) {
						vs = append(vs, violation{path: folder, rule: "siblings", message: fmt.Sprintf("has no %s, which %s has", name, other)})
					}
				}
			}
		}
	}
	return vs
}

// checkSizes holds every file under maxFileBytes.
func (t *tree) checkSizes() []violation {
	var vs []violation
	for _, f := range t.files {
		if len(f.data) > maxFileBytes {
			vs = append(vs, violation{path: f.path, rule: "size", message: fmt.Sprintf("%d bytes, more than %d: build it instead", len(f.data), maxFileBytes)})
		}
	}
	return vs
}

// homes matches folders of people and of root.
var homes = regexp.MustCompile(`/(?:home|Users)/[A-Za-z0-9._-]+|/root/`)

// machinePaths are this machine's own paths that no file may name: the checkout, the folder that it lies in, and the
// home folder. Folders that every machine has do not count.
func machinePaths(root string) []string {
	everywhere := []string{"/", "/tmp", "/var", "/var/tmp", "/opt", "/src", "/srv", "/usr", "/usr/src", "/usr/local", "/home", "/Users", "/root", "/go", "/build", "/mnt"}
	candidates := []string{root, filepath.Dir(root)}
	if home, err := os.UserHomeDir(); err == nil {
		candidates = append(candidates, home)
	}
	var paths []string
	for _, p := range candidates {
		if !slices.Contains(everywhere, p) && !slices.Contains(paths, p+"/") {
			paths = append(paths, p+"/")
		}
	}
	return paths
}

// checkMachinePaths finds paths that exist on one machine only.
func (t *tree) checkMachinePaths(machine []string) []violation {
	var vs []violation
	for _, f := range t.files {
		if !f.text() || strings.HasPrefix(f.path, "tools/archcheck/") {
			continue
		}
		for i, line := range bytes.Split(f.data, []byte("\n")) {
			found := string(homes.Find(line))
			for _, p := range machine {
				if found == "" && bytes.Contains(line, []byte(p)) {
					found = p
				}
			}
			if found != "" {
				vs = append(vs, violation{path: f.path, line: i + 1, rule: "machine-path", message: fmt.Sprintf("%s exists on one machine only", found)})
			}
		}
	}
	return vs
}
