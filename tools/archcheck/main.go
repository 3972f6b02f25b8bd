// Command archcheck holds the repository to its own conventions: which package may import which, what the compiled
// filter may link, the folders of the top level, file names of sibling packages, doc comments, skipped tests, file
// sizes and paths of somebody's machine.
//
// Usage: go run ./tools/archcheck [-root DIR]. It prints one line for each violation, path:line: rule: what is wrong,
// and exits 1 if there is one; 2 if it could not look.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	root := flag.String("root", ".", "the repository's top folder")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "archcheck: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	violations, err := run(*root)
	if err != nil {
		fmt.Fprintf(os.Stderr, "archcheck: %v\n", err)
		os.Exit(2)
	}
	for _, v := range violations {
		fmt.Println(v)
	}
	if len(violations) > 0 {
		fmt.Fprintf(os.Stderr, "archcheck: %d violations\n", len(violations))
		os.Exit(1)
	}
}

// run checks the repository at root, with what git and the go command say of it.
func run(root string) ([]violation, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	paths, err := repositoryFiles(root)
	if err != nil {
		return nil, err
	}
	t, err := load(root, paths)
	if err != nil {
		return nil, err
	}
	violations := t.check(machinePaths(root))
	linked, err := linkedPackages(root)
	if err != nil {
		return nil, err
	}
	return sorted(append(violations, checkLinked(linked)...)), nil
}
