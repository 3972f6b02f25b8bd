// Command doccheck holds the documentation to the code: what a page tells a reader to type must work, and what it
// points at must be there.
//
// In every Markdown file, relative links and their anchors must resolve. In every README.md, code blocks are checked:
//
//   - sh: the block is run by bash in the repository's top folder, and must succeed. A comment before it,
//     <!-- doccheck: skip REASON -->, says why it is not run (it needs a cluster, it runs in another check); then its
//     syntax is checked, and of each command that the program is known, that its subcommand and flags, its make
//     targets and the files it reads exist.
//   - yaml: each document of a known kind decodes with the production decoders; others must parse.
//     <!-- doccheck: as services --> names the kind of a document that does not name its own; see package validate.
//   - json: must parse; <!-- doccheck: as plugin --> likewise.
//
// Usage: go run ./tools/doccheck [-root DIR] [-static]. With -static nothing is run: every sh block is treated as if it
// were marked. It prints one line for each fault, path:line: what is wrong, and exits 1 if there is one.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
)

func main() {
	root := flag.String("root", ".", "the repository's top folder")
	static := flag.Bool("static", false, "run nothing")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "doccheck: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	faults, err := run(ctx, *root, *static)
	if err != nil {
		fmt.Fprintf(os.Stderr, "doccheck: %v\n", err)
		os.Exit(2)
	}
	for _, f := range faults {
		fmt.Println(f)
	}
	if len(faults) > 0 {
		fmt.Fprintf(os.Stderr, "doccheck: %d faults\n", len(faults))
		os.Exit(1)
	}
}

// fault is one thing that is wrong in a page.
type fault struct {
	path    string // from the top, with slashes
	line    int
	message string
}

// String returns the fault as editors read it: path:line: message.
func (f fault) String() string { return fmt.Sprintf("%s:%d: %s", f.path, f.line, f.message) }

func run(ctx context.Context, root string, static bool) ([]fault, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	pages, err := findPages(root)
	if err != nil {
		return nil, err
	}
	targets, err := makeTargets(filepath.Join(root, "Makefile"))
	if err != nil {
		return nil, err
	}
	c := &checker{root: root, pages: make(map[string]*page), targets: targets, static: static, log: os.Stderr}
	defer c.close()
	for _, p := range pages {
		c.pages[p.path] = p
	}
	var faults []fault
	for _, p := range pages {
		faults = append(faults, c.checkLinks(p)...)
		if !p.readme() {
			continue
		}
		for i := range p.blocks {
			faults = append(faults, c.checkBlock(ctx, p, &p.blocks[i])...)
		}
	}
	return faults, nil
}
