package main

import (
	"github.com/isthmus-mesh/isthmus/wasm-filters/filter"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/bolt"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/dubbo"
)

// protocols are the codecs that the filter is built with, in the order of config.Protocols.
var protocols = []filter.Protocol{
	{Codec: dubbo.Codec{}, Group: dubbo.KeyGroup, Caller: dubbo.KeyCaller, Timeout: dubbo.KeyTimeout, Traces: []string{dubbo.KeyTrace}},
	{Codec: bolt.Codec{}, Labels: bolt.PrefixRequestBaggage, Traces: []string{bolt.KeyTrace, bolt.KeyBaggage}},
}
