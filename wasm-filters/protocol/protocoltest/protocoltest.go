// Package protocoltest is the conformance suite of protocol.Codec: what the filter relies on, whatever the wire format.
//
// A codec's own tests say what its fields mean; Run and FuzzCodec hold it to the contract that all codecs share. Call
// both:
//
//	func TestConformance(t *testing.T) {
//		protocoltest.Run(t, Codec{}, protocoltest.Suite{Frames: protocoltest.Frames(t, "testdata/frames"), MinHeader: 16})
//	}
//	func FuzzCodec(f *testing.F) {
//		protocoltest.FuzzCodec(f, Codec{}, protocoltest.Frames(f, "testdata/frames"))
//	}
package protocoltest

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// Suite is what Run needs to know of a codec.
type Suite struct {
	// Frames are whole frames without a flaw, one each, by name. At least one of them must be a two-way request and one a
	// response.
	Frames map[string][]byte
	// Foreign are the first bytes of clients that speak something else, by name; the suite adds those that any mesh meets.
	Foreign map[string][]byte
	// MinHeader is the length in bytes of the shortest header: from there on Sniff must have made up its mind.
	MinHeader int
	// MaxNeed bounds in bytes what Decode may ever ask for; 0 is no bound but the frame's length.
	MaxNeed int
	// MaxReject bounds in bytes a rejection, however long its message is; 0 is 64 KiB.
	MaxReject int
}

// Frames reads the frames below dir: the hexadecimal text in dir/<name>/in.hex, one frame a folder.
func Frames(tb testing.TB, dir string) map[string][]byte {
	tb.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*", "in.hex"))
	if err != nil || len(files) == 0 {
		tb.Fatalf("no frames in %s (%v)", dir, err)
	}
	frames := make(map[string][]byte, len(files))
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			tb.Fatal(err)
		}
		b, err := hex.DecodeString(string(bytes.Join(bytes.Fields(text), nil)))
		if err != nil {
			tb.Fatalf("%s: %v", file, err)
		}
		frames[filepath.Base(filepath.Dir(file))] = b
	}
	return frames
}

// Describe tells line by line all that c reads of the frame at b[0]: the text of golden files.
func Describe(c protocol.Codec, b []byte) string {
	var s strings.Builder
	var f protocol.Frame
	need, err := c.Decode(&f, b)
	fmt.Fprintf(&s, "need=%d err=%v\n", need, err)
	fmt.Fprintf(&s, "kind=%v id=%d len=%d variant=%d flags=%#x serialization=%d timeout=%d\n", f.Kind, f.ID, f.Len, f.Variant, f.Flags, f.Serialization, f.TimeoutMillis)
	switch f.Kind {
	case protocol.KindResponse, protocol.KindHeartbeatAck:
		fmt.Fprintf(&s, "status=%d outcome=%v\n", f.Status, f.Outcome)
	}
	for _, field := range spans(&f) {
		if field.span.Off != 0 {
			fmt.Fprintf(&s, "%s=%q\n", field.name, field.span.Of(b))
		}
	}
	fmt.Fprintf(&s, "flaw=%v at %d\n", f.Flaw, f.FlawOff)
	err = c.VisitAttachments(&f, b, func(k, v []byte) bool {
		fmt.Fprintf(&s, "  %s=%q\n", k, v)
		return true
	})
	fmt.Fprintf(&s, "attachments: %v\n", err)
	if err != nil {
		fmt.Fprintf(&s, "flaw=%v at %d\n", f.Flaw, f.FlawOff)
	}
	fmt.Fprintf(&s, "sniff: %s\n", matchName(c.Sniff(b)))
	return s.String()
}

// Golden holds Describe of each frame below dir to the text in dir/<name>/want.txt, or writes it where update is set.
func Golden(t *testing.T, c protocol.Codec, dir string, update bool) {
	frames := Frames(t, dir)
	for _, name := range slices.Sorted(maps.Keys(frames)) {
		t.Run(name, func(t *testing.T) {
			got := Describe(c, frames[name])
			file := filepath.Join(dir, name, "want.txt")
			if update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func matchName(m protocol.Match) string {
	switch m {
	case protocol.MatchNo:
		return "no"
	case protocol.MatchYes:
		return "yes"
	case protocol.MatchMore:
		return "more"
	default:
		return fmt.Sprintf("Match(%d)", m)
	}
}

type namedSpan struct {
	name string
	span protocol.Span
}

func spans(f *protocol.Frame) []namedSpan {
	return []namedSpan{{"service", f.Service}, {"version", f.Version}, {"group", f.Group}, {"method", f.Method}, {"caller", f.Caller}, {"caller-ip", f.CallerIP}}
}
