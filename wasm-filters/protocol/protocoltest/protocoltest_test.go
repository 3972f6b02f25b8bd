package protocoltest_test

import (
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/bolt"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/protocoltest"
)

func TestBolt(t *testing.T) {
	protocoltest.Run(t, bolt.Codec{}, protocoltest.Suite{Frames: protocoltest.Frames(t, "../bolt/testdata/frames"), MinHeader: 20, MaxNeed: bolt.MaxHead})
}
