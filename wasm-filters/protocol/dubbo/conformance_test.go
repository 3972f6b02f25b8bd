package dubbo

import (
	"flag"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/protocoltest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const framesDir = "testdata/frames"

func TestConformance(t *testing.T) {
	protocoltest.Run(t, Codec{}, protocoltest.Suite{
		Frames:    protocoltest.Frames(t, framesDir),
		Foreign:   map[string][]byte{"bolt": append([]byte("\x01\x01\x00\x01\x01"), make([]byte, 17)...)},
		MinHeader: HeaderLen,
		MaxNeed:   MaxHead,
	})
}

// TestFrames holds what is read of real frames to testdata/frames/<name>/want.txt.
func TestFrames(t *testing.T) { protocoltest.Golden(t, Codec{}, framesDir, *update) }

func FuzzCodec(f *testing.F) { protocoltest.FuzzCodec(f, Codec{}, protocoltest.Frames(f, framesDir)) }
