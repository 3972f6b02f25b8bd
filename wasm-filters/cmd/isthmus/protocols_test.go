package main

import (
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// TestProtocols: the names that a configuration may hold are those of the codecs that are built in, in their order.
func TestProtocols(t *testing.T) {
	if len(protocols) != len(config.Protocols) {
		t.Fatalf("%d codecs, %d names", len(protocols), len(config.Protocols))
	}
	for i, p := range protocols {
		if p.Codec.Name() != config.Protocols[i] {
			t.Errorf("codec %d is %s, name %s", i, p.Codec.Name(), config.Protocols[i])
		}
	}
}
