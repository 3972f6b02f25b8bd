package filtertest

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/dubbo"
)

// ReadDubbo reads one whole frame, by our own codec.
func ReadDubbo(r *bufio.Reader) ([]byte, protocol.Frame, error) {
	var f protocol.Frame
	head, err := r.Peek(dubbo.HeaderLen)
	if err != nil {
		return nil, f, err
	}
	b := make([]byte, dubbo.HeaderLen+int(binary.BigEndian.Uint32(head[12:])))
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, f, err
	}
	if need, err := (dubbo.Codec{}).Decode(&f, b); err != nil || need > 0 {
		return nil, f, fmt.Errorf("not a frame: need %d, %v", need, err)
	}
	return b, f, nil
}
