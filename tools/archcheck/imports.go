package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// rule says what the packages in a folder, and in the folders below it that have no rule of their own, may import
// outside their tests. A package may always import those below its own rule's folder.
type rule struct {
	folder   string
	internal []string // folders of this module; "x" alone is that package, "x/..." also those below it
	external []string // prefixes of other modules' packages; "*" is any but the forbidden
	forbid   []string // prefixes of other modules' packages that "*" leaves out
	standard []string // the only packages of the standard library; nil is all of them
	support  bool     // helps tests: held to the rules for tests, as every folder whose name ends in "test"
}

// istio and kubernetes are kept out of what does not render Istio resources or talk to a cluster.
var (
	istio      = []string{"istio.io/", "github.com/envoyproxy/"}
	kubernetes = []string{"k8s.io/", "sigs.k8s.io/controller-runtime", "istio.io/client-go"}
	protobuf   = "google.golang.org/protobuf/"
)

// hotStandard is what runs for every frame inside Envoy may use: nothing that formats, reflects, reads clocks, spawns
// or does I/O. It is also what keeps the .wasm small.
var hotStandard = []string{
	"bytes", "cmp", "encoding/binary", "errors", "hash/crc32", "hash/fnv", "hash/maphash", "iter", "maps", "math", "math/bits", "slices", "sort",
	"strconv", "strings", "sync/atomic", "unicode/utf8", "unsafe",
}

// rules is DESIGN's "who may import whom". The rule with the longest folder holds.
var rules = []rule{
	{folder: "wasm-filters/protocol", standard: hotStandard},
	{folder: "wasm-filters/protocol/protocoltest", internal: []string{"wasm-filters/protocol/..."}, external: []string{"*"}, support: true},
	{folder: "wasm-filters/policy", internal: []string{"wasm-filters/protocol"}, standard: hotStandard},
	{folder: "wasm-filters/config", internal: []string{"wasm-filters/protocol/...", "wasm-filters/policy/..."}, standard: hotStandard},
	{folder: "wasm-filters/filter", internal: []string{"wasm-filters/protocol/...", "wasm-filters/policy/...", "wasm-filters/config"}, standard: hotStandard},
	{folder: "wasm-filters/filtertest", internal: []string{"wasm-filters/..."}, external: []string{"*"}, support: true},
	{folder: "wasm-filters/internal/host", internal: []string{"wasm-filters/..."}, external: []string{"github.com/proxy-wasm/proxy-wasm-go-sdk/"}, standard: hotStandard},
	{folder: "wasm-filters/cmd", internal: []string{"wasm-filters/..."}, standard: hotStandard},
	{folder: "wasm-filters", internal: []string{"wasm-filters/..."}, standard: hotStandard},

	{folder: "adapters/model"},
	{folder: "adapters/adapterstest", internal: []string{"adapters", "adapters/model"}, external: []string{"*"}, forbid: slices.Concat(istio, kubernetes), support: true},
	{folder: "adapters/builtin", internal: []string{"adapters/..."}, external: []string{"*"}, forbid: slices.Concat(istio, kubernetes)},
	{folder: "adapters/registryurl", internal: []string{"adapters/model"}},
	{folder: "adapters", internal: []string{"adapters", "adapters/model", "adapters/registryurl"}, external: []string{"*"}, forbid: slices.Concat(istio, kubernetes)},

	{folder: "mcp-server/resource", external: []string{protobuf, "istio.io/api/"}},
	{folder: "mcp-server/translate", internal: []string{"adapters/model", "mcp-server/resource"}, external: []string{protobuf, "istio.io/api/"}},
	// governance reads what people write with the strict decoder of adapters, which also reads mcp-server's configuration.
	{folder: "mcp-server/governance", internal: []string{"adapters", "adapters/model", "mcp-server/resource", "wasm-filters/config"}, external: []string{protobuf, "istio.io/api/", "go.yaml.in/yaml/v3", "sigs.k8s.io/yaml"}},
	{folder: "mcp-server/grpcserver", external: []string{"google.golang.org/grpc/"}},
	{folder: "mcp-server/mcp", internal: []string{"mcp-server/grpcserver", "mcp-server/resource"}, external: []string{"*"}, forbid: kubernetes},
	{folder: "mcp-server/xds", internal: []string{"adapters/model", "mcp-server/grpcserver", "mcp-server/resource"}, external: []string{"*"}, forbid: kubernetes},
	{folder: "mcp-server/kube", internal: []string{"adapters/model", "mcp-server/resource", "mcp-server/governance"}, external: []string{"*"}},
	{folder: "mcp-server/store", internal: []string{"adapters/model", "mcp-server/resource"}, external: []string{"*"}, forbid: slices.Concat(istio, kubernetes)},
	{folder: "mcp-server/telemetry", internal: []string{"adapters/model"}, external: []string{"*"}, forbid: slices.Concat(istio, kubernetes)},
	{folder: "mcp-server/rollout", internal: []string{"adapters", "adapters/model", "mcp-server/governance", "mcp-server/telemetry"}, external: []string{"*"}, forbid: slices.Concat(istio, kubernetes)},
	{folder: "mcp-server/topology", internal: []string{"adapters/model", "mcp-server/store", "mcp-server/telemetry"}, external: []string{"*"}, forbid: slices.Concat(istio, kubernetes)},
	{folder: "mcp-server/sidecar", internal: []string{"adapters/model", "mcp-server/resource"}, external: []string{"*"}, forbid: kubernetes},
	{folder: "mcp-server/console", internal: []string{
		"adapters/model", "mcp-server/resource", "mcp-server/store", "mcp-server/topology", "mcp-server/telemetry", "mcp-server/sidecar", "mcp-server/governance", "mcp-server/rollout", "mcp-server/ui",
	}, external: []string{"*"}, forbid: slices.Concat(istio, kubernetes)},
	{folder: "mcp-server/config", internal: []string{"adapters", "adapters/model", "adapters/builtin", "wasm-filters/config"}, external: []string{"*"}, forbid: slices.Concat(istio, kubernetes)},
	{folder: "mcp-server/ui"},
	{folder: "mcp-server/app", internal: []string{"mcp-server/...", "adapters", "adapters/model", "adapters/builtin", "wasm-filters/config"}, external: []string{"*"}, forbid: kubernetes},
	{folder: "mcp-server/cmd", internal: []string{"mcp-server/app", "mcp-server/config"}, external: []string{"*"}, forbid: kubernetes},

	{folder: "manifests", internal: []string{"adapters/...", "mcp-server/...", "wasm-filters/...", "manifests/..."}, external: []string{"*"}},
	{folder: "e2e", internal: []string{"adapters/...", "mcp-server/...", "wasm-filters/...", "manifests/...", "e2e/..."}, external: []string{"*"}},
	{folder: "tools", internal: []string{"adapters/...", "mcp-server/...", "wasm-filters/...", "manifests/...", "tools/..."}, external: []string{"*"}},
}

// testRules are what tests, and packages that help them, may import of this module beyond their own rule: anything of
// their own top folder and what is listed here. Other modules are free to them.
var testRules = map[string][]string{
	"wasm-filters": {"wasm-filters/..."},
	"adapters":     {"adapters/..."},
	"mcp-server":   {"mcp-server/...", "adapters/...", "wasm-filters/config"},
	"manifests":    {"manifests/...", "mcp-server/...", "adapters/...", "wasm-filters/..."},
	"e2e":          {"e2e/...", "mcp-server/...", "adapters/...", "wasm-filters/...", "manifests/..."},
	"tools":        {"tools/...", "mcp-server/...", "adapters/...", "wasm-filters/...", "manifests/..."},
}

// sole lists modules that only one folder may import outside tests.
var sole = map[string]string{
	"github.com/proxy-wasm/proxy-wasm-go-sdk/": "wasm-filters/internal/host",
	"k8s.io/client-go/":                        "mcp-server/kube",
	"istio.io/client-go/":                      "mcp-server/kube",
}

// never lists modules that nothing may import: what we ship builds on istio.io/api alone.
var never = []string{"istio.io/istio/"}

// checkImports holds every import to the rules.
func (t *tree) checkImports() []violation {
	var vs []violation
	for _, f := range t.files {
		if f.ast == nil {
			continue
		}
		r := ruleFor(f.folder())
		if r == nil {
			if f.folder() != "." {
				vs = append(vs, violation{path: f.path, rule: "import", message: "no rule for this folder (tools/archcheck/imports.go)"})
			}
			continue
		}
		free := f.test() || r.support || strings.HasSuffix(f.folder(), "test")
		for _, spec := range f.ast.Imports {
			p, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				continue // the parser has seen it: cannot be
			}
			if why := t.importFault(r, f, p, free); why != "" {
				vs = append(vs, t.violationf(f, spec.Pos(), "import", "%s: %s", p, why))
			}
		}
	}
	return vs
}

// importFault says why the import of p is not allowed, "" if it is. free says that the rules for tests hold.
func (t *tree) importFault(r *rule, f *file, p string, free bool) string {
	for _, n := range never {
		if prefixed(p, n) {
			return "nothing may import it"
		}
	}
	if p == t.module {
		return "the top folder holds no package"
	}
	if inner, ok := strings.CutPrefix(p, t.module+"/"); ok {
		top, _, _ := strings.Cut(f.path, "/")
		if within(inner, r.folder+"/...") || slices.ContainsFunc(r.internal, func(a string) bool { return within(inner, a) }) ||
			free && slices.ContainsFunc(testRules[top], func(a string) bool { return within(inner, a) }) {
			// One adapter does not lean on another, although they share a rule.
			if !free && r.folder == "adapters" && !within(inner, f.folder()+"/...") && !slices.Contains(r.internal, inner) && !within(f.folder(), inner+"/...") {
				return "an adapter imports no other adapter"
			}
			return ""
		}
		return fmt.Sprintf("%s may not import it", f.folder())
	}
	first, _, _ := strings.Cut(p, "/")
	if !strings.Contains(first, ".") { // the standard library
		if free || r.standard == nil || slices.Contains(r.standard, p) {
			return ""
		}
		return fmt.Sprintf("not in the part of the standard library that %s may use", r.folder)
	}
	if free {
		return ""
	}
	for module, folder := range sole {
		if prefixed(p, module) && !within(f.folder(), folder+"/...") {
			return fmt.Sprintf("only %s may import it", folder)
		}
	}
	for _, a := range r.external {
		if a == "*" && !slices.ContainsFunc(r.forbid, func(n string) bool { return prefixed(p, n) }) || a != "*" && prefixed(p, a) {
			return ""
		}
	}
	return fmt.Sprintf("%s may not import it", r.folder)
}

// ruleFor returns the rule with the longest folder that holds for folder, nil if there is none.
func ruleFor(folder string) *rule {
	var best *rule
	for i := range rules {
		if r := &rules[i]; within(folder, r.folder+"/...") && (best == nil || len(r.folder) > len(best.folder)) {
			best = r
		}
	}
	return best
}

// within tells whether a folder matches a pattern: itself, or with "/..." also the folders below it.
func within(folder, pattern string) bool {
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return folder == base || strings.HasPrefix(folder, base+"/")
	}
	return folder == pattern
}

// prefixed tells whether the import path p is the module or folder prefix, or lies below it.
func prefixed(p, prefix string) bool {
	prefix = strings.TrimSuffix(prefix, "/")
	return p == prefix || strings.HasPrefix(p, prefix+"/") || strings.HasSuffix(prefix, ".") && strings.HasPrefix(p, prefix)
}

// filterPackage is the package that becomes isthmus.wasm.
const filterPackage = "wasm-filters/cmd/isthmus"

// neverLinked are packages that must not creep into the compiled filter by any way. Each costs size, and size costs
// start-up time and memory in every sidecar.
var neverLinked = []string{
	"net/http", "crypto/tls", "regexp", "text/template", "html/template", "go/ast", "encoding/json", "encoding/gob", "encoding/xml",
	"log/slog", "testing", "google.golang.org/protobuf/proto", "golang.org/x/net/http2", "github.com/tetratelabs/wazero",
}

// linkedPackages lists what is linked into the compiled filter; nothing where the filter does not exist.
func linkedPackages(root string) ([]string, error) {
	if _, err := os.Stat(filepath.Join(root, filepath.FromSlash(filterPackage))); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	cmd := exec.Command("go", "list", "-deps", "./"+filterPackage)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list -deps %s: %w: %s", filterPackage, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.Fields(string(out)), nil
}

// checkLinked holds what is linked into the compiled filter to neverLinked.
func checkLinked(linked []string) []violation {
	var vs []violation
	for _, p := range linked {
		if slices.ContainsFunc(neverLinked, func(n string) bool { return prefixed(p, n) }) {
			vs = append(vs, violation{path: filterPackage, rule: "linked", message: p + " is linked into the .wasm"})
		}
	}
	return vs
}
