package bolt

import (
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/protocoltest"
)

const framesDir = "testdata/frames"

func TestConformance(t *testing.T) {
	protocoltest.Run(t, Codec{}, protocoltest.Suite{
		Frames:    protocoltest.Frames(t, framesDir),
		Foreign:   map[string][]byte{"dubbo": append([]byte("\xda\xbb\xc2\x00"), make([]byte, 16)...)},
		MinHeader: responseHeaderV1,
		MaxNeed:   MaxHead,
	})
}

func FuzzCodec(f *testing.F) { protocoltest.FuzzCodec(f, Codec{}, protocoltest.Frames(f, framesDir)) }
