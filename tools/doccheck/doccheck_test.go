package main

import (
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestSplitCommands(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		want   []command
	}{
		"one":                  {"make test\n", []command{{0, []string{"make", "test"}, nil}}},
		"lines and comments":   {"# first\nmake a # why\n\nmake b#c\n", []command{{1, []string{"make", "a"}, nil}, {3, []string{"make", "b#c"}, nil}}},
		"quotes":               {`echo 'a b' "c 'd'" e\ f`, []command{{0, []string{"echo", "a b", "c 'd'", "e f"}, nil}}},
		"continued":            {"curl \\\n  -s x\nmake\n", []command{{0, []string{"curl", "-s", "x"}, nil}, {2, []string{"make"}, nil}}},
		"pipe and list":        {"a | b && c || d; e & f", []command{{0, []string{"a"}, nil}, {0, []string{"b"}, nil}, {0, []string{"c"}, nil}, {0, []string{"d"}, nil}, {0, []string{"e"}, nil}, {0, []string{"f"}, nil}}},
		"assignments":          {"X=1 Y='2 3' make demo\nZ=4\n", []command{{0, []string{"make", "demo"}, nil}}},
		"redirections":         {"a <in >out 2>&1\nb 2>/dev/null >> log\nc &>x\n", []command{{0, []string{"a"}, []string{"in"}}, {1, []string{"b"}, nil}, {2, []string{"c"}, nil}}},
		"here-document":        {"cat <<EOF\nmake nothing\nEOF\nmake b\n", []command{{0, []string{"cat"}, nil}, {3, []string{"make", "b"}, nil}}},
		"here-string":          {"a <<< text\n", []command{{0, []string{"a"}, nil}}},
		"command substitution": {"export P=$(a b)/x ${Q}\n", []command{{0, []string{"a", "b"}, nil}, {0, []string{"export", "P=$(a b)/x", "${Q}"}, nil}}},
		"compound":             {"for x in 1 2; do\n  make $x\ndone\nif a; then b; fi\n", []command{{1, []string{"make", "$x"}, nil}, {3, []string{"a"}, nil}, {3, []string{"b"}, nil}}},
		"subshell":             {"(cd x; make y)\n", []command{{0, []string{"cd", "x"}, nil}, {0, []string{"make", "y"}, nil}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := splitCommands(c.script)
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %v, %v\nwant %v", got, err, c.want)
			}
		})
	}
	for _, script := range []string{"echo 'a", `echo "a\"`, "echo $(a"} {
		if _, err := splitCommands(script); err == nil {
			t.Errorf("%q: no error", script)
		}
	}
}

func TestParsePage(t *testing.T) {
	p := parsePage("x/README.md", strings.Join([]string{
		"# A *Title*, with `code`!", // line 1
		"See [one](a.md) and ![two](b.png \"t\"), `[no](c.md)`.",
		"[ref]: d.md#x",
		"## Same",
		"## Same",
		"<!-- doccheck: skip it needs a cluster -->",
		"```sh",
		"kubectl get pods # [no](e.md)",
		"```",
		"<!-- doccheck: as plugin -->",
		"",
		"````json",
		"```",
		"````",
		"<!-- doccheck: skip -->",
		"```sh",
		"```",
		"<!-- doccheck: skip lost by the text below -->",
		"text",
		"```yaml",
		"```",
		"```text",
		"not closed",
	}, "\n"))
	wantLinks := []link{{2, "a.md"}, {2, "b.png"}, {3, "d.md#x"}}
	if !reflect.DeepEqual(p.links, wantLinks) {
		t.Errorf("links: got %v, want %v", p.links, wantLinks)
	}
	wantAnchors := []string{"a-title-with-code", "same", "same-1"}
	if got := slices.Sorted(maps.Keys(p.anchors)); !slices.Equal(got, wantAnchors) {
		t.Errorf("anchors: got %q, want %q", got, wantAnchors)
	}
	wantBlocks := []block{
		{line: 8, kind: "sh", text: "kubectl get pods # [no](e.md)\n", skip: "it needs a cluster"},
		{line: 13, kind: "json", text: "```\n", as: "plugin"},
		{line: 17, kind: "sh", mark: "skip without a reason"},
		{line: 21, kind: "yaml"},
		{line: 23, kind: "text", text: "not closed\n", mark: "the block is not closed"},
	}
	if !reflect.DeepEqual(p.blocks, wantBlocks) {
		t.Errorf("blocks: got %+v\nwant %+v", p.blocks, wantBlocks)
	}
}

// write makes a tree of files and returns its folder.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		full := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestFaultsAreFound holds the static checks to pages with one fault each, and to pages with none.
func TestFaultsAreFound(t *testing.T) {
	sh := func(line string) string { return "# R\n```sh\n" + line + "\n```\n" }
	for name, c := range map[string]struct {
		page string
		want []string
	}{
		"nothing wrong":          {"# Read me\n[there](x/y.md#why-this), [here](#read-me), [far](https://example.org/none)\n" + "```sh\nmake build BIN=out\nisthmusctl decode --hex capture.txt\ncat tools/x.txt | isthmusctl decode -\nkubectl apply -f manifests/a.yaml\n```\n", nil},
		"link to nothing":        {"[gone](x/z.md)\n", []string{"README.md:1: link x/z.md: no such file"}},
		"link out of the tree":   {"[out](../other.md)\n", []string{"README.md:1: link ../other.md: no such file"}},
		"absolute link":          {"[abs](/x/y.md)\n", []string{"README.md:1: link /x/y.md: not relative"}},
		"anchor to nothing":      {"[gone](x/y.md#nope)\n", []string{"README.md:1: link x/y.md#nope: no such heading"}},
		"own anchor":             {"# A\n[gone](#b)\n", []string{"README.md:2: link #b: no such heading"}},
		"unknown target":         {sh("make nothing"), []string{"README.md:3: make: no target nothing"}},
		"unknown subcommand":     {sh("isthmusctl fly"), []string{`README.md:3: isthmusctl: unknown command "fly" for "isthmusctl"`}},
		"unknown flag":           {sh("echo 00 | go run ./tools/isthmusctl decode --octal"), []string{"README.md:3: go: unknown flag: --octal"}},
		"too many arguments":     {sh("isthmusctl decode a b"), []string{"README.md:3: isthmusctl: accepts at most 1 arg(s), received 2"}},
		"missing file":           {sh("true\nkubectl apply -f manifests/b.yaml"), []string{"README.md:4: kubectl: manifests/b.yaml does not exist"}},
		"missing input":          {sh("isthmusctl decode < e2e/none.bin"), []string{"README.md:3: isthmusctl: e2e/none.bin does not exist"}},
		"unknown program":        {sh("frobnicate-9 x"), []string{"README.md:3: frobnicate-9: not a program that this check knows (tools/doccheck/checker.go)"}},
		"missing program":        {sh("./tools/run.sh"), []string{"README.md:3: ./tools/run.sh: no such program"}},
		"another shell":          {"```bash\ntrue\n```\n", []string{"README.md:1: a block of commands is marked sh, not bash"}},
		"skip without a reason":  {"<!-- doccheck: skip -->\n```sh\ntrue\n```\n", []string{"README.md:2: skip without a reason"}},
		"yaml that is none":      {"```yaml\na: [\n```\n", []string{"README.md:2: did not find expected node content"}},
		"yaml of a known kind":   {"```yaml\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec:\n  hots: [a.b]\n```\n", []string{`README.md:6: spec: unknown field "hots"`}},
		"yaml of an unknown one": {"```yaml\nany: thing\n```\n", nil},
		"json that is none":      {"```json\n{\"a\":1,}\n```\n", []string{"README.md:2: not JSON: "}},
		"json":                   {"```json\n{\"a\":1}\n{\"b\":2}\n```\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := write(t, map[string]string{
				"README.md": c.page, "x/y.md": "# Y\n## Why this?\n", "Makefile": "build:\n", "tools/x.txt": "", "tools/isthmusctl/main.go": "", "manifests/a.yaml": "",
				"tools/testdata/README.md": "[gone](none.md)\n",
			})
			faults, err := run(t.Context(), dir, true)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range faults {
				got = append(got, f.String())
			}
			if len(got) != len(c.want) {
				t.Fatalf("got %q, want %q", got, c.want)
			}
			for i := range got {
				if !strings.HasPrefix(got[i], c.want[i]) {
					t.Errorf("got %q, want %q", got[i], c.want[i])
				}
			}
		})
	}
}

func TestShellSyntax(t *testing.T) {
	dir := write(t, map[string]string{"README.md": "```sh\nif true\n```\n", "Makefile": ""})
	faults, err := run(t.Context(), dir, true)
	if err != nil || len(faults) != 1 || !strings.HasPrefix(faults[0].String(), "README.md:2: not a shell script: ") {
		t.Errorf("got %v, %v", faults, err)
	}
}

// TestRunScript holds that blocks are really run, in the top folder, and that one that fails is a fault with the end of
// what it said.
func TestRunScript(t *testing.T) {
	dir := write(t, map[string]string{"here.txt": "", "bin/ours": "#!/bin/sh\necho ours\n"})
	if err := os.Chmod(filepath.Join(dir, "bin", "ours"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := &checker{root: dir, log: io.Discard, built: func() (string, error) { return filepath.Join(dir, "bin"), nil }}
	p := &page{path: "README.md"}
	for name, b := range map[string]struct {
		script string
		want   string // the fault, "" for none
	}{
		"works":                  {"test -f here.txt\ntest \"$(ours)\" = ours\n", ""},
		"fails":                  {"echo one\necho two >&2\nfalse\necho three\n", "README.md:7: exit status 1:\n\tone\n\ttwo"},
		"fails within a pipe":    {"false | true\n", "README.md:7: exit status 1:\n\t"},
		"uses an unset variable": {"echo $none_such\n", "README.md:7: exit status "},
	} {
		t.Run(name, func(t *testing.T) {
			faults := c.runScript(t.Context(), p, &block{line: 7, text: b.script})
			if b.want == "" && len(faults) > 0 || b.want != "" && (len(faults) != 1 || !strings.HasPrefix(faults[0].String(), b.want)) {
				t.Errorf("got %v, want %q", faults, b.want)
			}
		})
	}
}
