package dubbo

import (
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/protocoltest"
)

func TestRelay(t *testing.T) {
	protocoltest.Relay(t, Codec{}, protocoltest.Frames(t, framesDir), map[string]string{"heartbeat": "heartbeat-ack"})
}
