package filtertest_test

import (
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/filter"
	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/bolt"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/dubbo"
)

var update = flag.Bool("update", false, "write what the scripts print into them")

var protocols = []filter.Protocol{
	{Codec: dubbo.Codec{}, Group: dubbo.KeyGroup, Caller: dubbo.KeyCaller, Timeout: dubbo.KeyTimeout, Traces: []string{dubbo.KeyTrace}},
	{Codec: bolt.Codec{}, Labels: bolt.PrefixRequestBaggage, Traces: []string{bolt.KeyTrace, bolt.KeyBaggage}},
}

func codecs() []protocol.Codec {
	var cs []protocol.Codec
	for _, p := range protocols {
		cs = append(cs, p.Codec)
	}
	return cs
}

// engine builds the module, as it is shipped, and compiles it once. The build is cached by the go command.
var engine = sync.OnceValues(func() (*filtertest.Engine, error) {
	dir, err := os.MkdirTemp("", "filtertest")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "isthmus.wasm")
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-trimpath", "-ldflags=-s -w", "-o", out, "../cmd/isthmus")
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, err
	}
	wasm, err := os.ReadFile(out)
	if err != nil {
		return nil, err
	}
	return filtertest.NewEngine(context.Background(), wasm)
})

// rigs calls f with a fresh rig of each kind.
func rigs(t *testing.T, f func(t *testing.T, rig filtertest.Rig)) {
	t.Run("native", func(t *testing.T) { f(t, filtertest.NewNative(new(filtertest.World), protocols)) })
	t.Run("wasm", func(t *testing.T) {
		e, err := engine()
		if err != nil {
			t.Fatal(err)
		}
		rig, err := e.NewRig(context.Background(), new(filtertest.World))
		if err != nil {
			t.Fatal(err)
		}
		f(t, rig)
	})
}

// TestScripts runs every script natively and in the compiled module.
func TestScripts(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			rigs(t, func(t *testing.T, rig filtertest.Rig) {
				blocks, err := filtertest.ReadScript(path)
				if err != nil {
					t.Fatal(err)
				}
				s := filtertest.NewScript(rig, codecs())
				for i, b := range blocks {
					got, err := s.Run(b)
					if err != nil {
						t.Fatalf("%s: %v", path, err)
					}
					if *update {
						blocks[i].Expected = got
					} else if got != b.Expected {
						t.Errorf("%s:%d: printed\n%s\nwant\n%s", path, b.Line, got, b.Expected)
					}
				}
				if *update && strings.HasSuffix(t.Name(), "/native") {
					if err := os.WriteFile(path, filtertest.FormatScript(blocks), 0o644); err != nil {
						t.Fatal(err)
					}
				}
			})
		})
	}
}
