package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/e2e/peer"
)

// TestBench runs the whole benchmark with short measurements. How fast anything was does not matter here: that each
// variant answered every call does, and that the report has all of its rows.
func TestBench(t *testing.T) {
	set := peer.Need(t, append(peersOfSpread, peer.Envoy, peer.Filter)...)
	out := filepath.Join(t.TempDir(), "RESULTS.md")
	o := options{envoy: set[peer.Envoy].Path, wasm: set[peer.Filter].Path, out: out, rounds: 1, duration: 100 * time.Millisecond, changes: 20}
	var printed bytes.Buffer
	if err := bench(t.Context(), o, &screen{out: t.Output(), begun: time.Now()}, &printed); err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(written, printed.Bytes()) {
		t.Error("what was printed is not what was written")
	}
	plan, err := newPlan(o)
	if err != nil {
		t.Fatal(err)
	}
	sections := make(map[string]string)
	for _, s := range strings.Split(string(written), "\n#")[1:] {
		title, text, _ := strings.Cut(s, "\n")
		sections[strings.TrimLeft(title, "# ")] = text
	}
	for _, s := range plan.series {
		for _, l := range s.loads {
			title := s.title + ", " + l.String()
			for _, v := range s.variants {
				if !v.bears(l) {
					if !strings.Contains(sections[title], "| "+v.Name+" | not measured with more than") {
						t.Errorf("%q does not say why there is no %s:\n%s", title, v.Name, sections[title])
					}
					continue
				}
				row := regexp.MustCompile(`(?m)^\| ` + regexp.QuoteMeta(v.Name) + ` \| [0-9.]+ µs \| [0-9.]+ \| [1-9][0-9]* \| [1-9][0-9]* \| [0-9.]+ \| [0-9.]+ [µm]s \|`)
				if !row.MatchString(sections[title]) {
					t.Errorf("%q has no good row for %s:\n%s", title, v.Name, sections[title])
				}
			}
		}
	}
	for _, s := range plan.startups {
		row := regexp.MustCompile(`(?m)^\| ` + regexp.QuoteMeta(s.Name) + ` \| [0-9.]+ s \| [0-9.]+ s \| [1-9][0-9]* MB \|`)
		if !row.MatchString(sections["Start-up and memory"]) {
			t.Errorf("no good row of start-up for %s:\n%s", s.Name, sections["Start-up and memory"])
		}
	}
	if n := strings.Count(sections["Targets"], " ≤ ") + strings.Count(sections["Targets"], " ≥ "); n != 11 {
		t.Errorf("%d targets, want 11:\n%s", n, sections["Targets"])
	}
	for _, who := range []string{"a client of endpoint discovery has it", "Envoy has it", "istiod has been sent it"} {
		row := regexp.MustCompile(`(?m)^\| ` + who + ` \|( [0-9.]+ [µm]s \|){4}$`)
		if !row.MatchString(sections["A change in a registry"]) {
			t.Errorf("no good row of a change for when %s:\n%s", who, sections["A change in a registry"])
		}
	}
	if strings.Contains(string(written), "NaN") || strings.Contains(string(written), "Inf") {
		t.Errorf("not all figures are numbers:\n%s", written)
	}
	if host, err := os.Hostname(); err == nil && len(host) > 3 && strings.Contains(string(written), host) {
		t.Errorf("the report names the machine %q", host)
	}
}
