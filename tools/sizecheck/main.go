// Command sizecheck builds the Wasm filter as it is shipped and holds its size to the committed budget: what is linked
// decides how fast a sidecar starts and how much memory each of its filters takes (about 0.5 s and 20 MB a megabyte).
//
// Usage: go run ./tools/sizecheck [-root DIR] [-o FILE] [-v]. It prints the size and the budget; over budget, or with
// -v, also what each package contributes. It exits 1 if the filter is over budget, 2 if it could not be built.
package main

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// filterPackage is the package that becomes isthmus.wasm.
const filterPackage = "./wasm-filters/cmd/isthmus"

// errOver says that the filter is larger than its budget.
var errOver = errors.New("over budget")

func main() {
	root := flag.String("root", ".", "the repository's top folder")
	out := flag.String("o", "", "also keep the .wasm in this file")
	verbose := flag.Bool("v", false, "print what each package contributes, also within budget")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "sizecheck: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	switch err := run(*root, *out, *verbose); {
	case errors.Is(err, errOver):
		fmt.Fprintf(os.Stderr, "sizecheck: %v; leave a dependency out, or raise tools/sizecheck/budget.txt with the reason in its comment\n", err)
		os.Exit(1)
	case err != nil:
		fmt.Fprintf(os.Stderr, "sizecheck: %v\n", err)
		os.Exit(2)
	}
}

func run(root, out string, verbose bool) error {
	text, err := os.ReadFile(filepath.Join(root, "tools", "sizecheck", "budget.txt"))
	if err != nil {
		return err
	}
	budget, err := parseBudget(string(text))
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "sizecheck")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	shipped := out
	if shipped == "" {
		shipped = filepath.Join(dir, "isthmus.wasm")
	} else if shipped, err = filepath.Abs(shipped); err != nil {
		return err
	}
	if err := build(root, shipped, "-s -w"); err != nil {
		return err
	}
	data, err := os.ReadFile(shipped)
	if err != nil {
		return err
	}
	packed, err := gzipped(data)
	if err != nil {
		return err
	}
	fmt.Printf("isthmus.wasm: %d bytes (%d with gzip), budget %d, %.1f %% of it\n", len(data), packed, budget, 100*float64(len(data))/float64(budget))
	over := len(data) > budget
	if over || verbose {
		if err := printContributions(root, dir, len(data)); err != nil {
			return err
		}
	}
	if over {
		return fmt.Errorf("isthmus.wasm is %d bytes %w", len(data)-budget, errOver)
	}
	return nil
}

// parseBudget reads the budget: one line with a number of bytes, and comments.
func parseBudget(text string) (int, error) {
	budget := 0
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		n, err := strconv.Atoi(line)
		if err != nil || n <= 0 {
			return 0, fmt.Errorf("budget.txt:%d: %q is not a number of bytes", i+1, line)
		}
		if budget != 0 {
			return 0, fmt.Errorf("budget.txt:%d: a second budget", i+1)
		}
		budget = n
	}
	if budget == 0 {
		return 0, errors.New("budget.txt: no budget")
	}
	return budget, nil
}

// build compiles the filter to file.
func build(root, file, ldflags string) error {
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-trimpath", "-buildvcs=false", "-ldflags", ldflags, "-o", file, filterPackage)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", filterPackage, err, bytes.TrimSpace(out))
	}
	return nil
}

func gzipped(data []byte) (int, error) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		return 0, err
	}
	if err := w.Close(); err != nil {
		return 0, err
	}
	return b.Len(), nil
}

// printContributions builds the filter once more, with symbols, and prints how much code comes from which package.
func printContributions(root, dir string, total int) error {
	file := filepath.Join(dir, "symbols.wasm")
	if err := build(root, file, "-w"); err != nil {
		return err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	m, err := parseModule(data)
	if err != nil {
		return err
	}
	cmd := exec.Command("go", "list", "-deps", filterPackage)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	list, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("go list -deps %s: %w", filterPackage, err)
	}
	code := m.codeByPackage(strings.Fields(string(list)))
	names := make([]string, 0, len(code))
	sum := 0
	for name, n := range code {
		names = append(names, name)
		sum += n
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(code[b]-code[a], strings.Compare(a, b)) })
	fmt.Printf("%10d  data: types, strings, function tables\n%10d  code, of which\n", m.data, sum)
	rest := 0
	for i, name := range names {
		if i >= 25 {
			rest += code[name]
			continue
		}
		fmt.Printf("%10d  %5.1f %%  %s\n", code[name], 100*float64(code[name])/float64(total), name)
	}
	if rest > 0 {
		fmt.Printf("%10d  %5.1f %%  %d further packages\n", rest, 100*float64(rest)/float64(total), len(names)-25)
	}
	return nil
}
