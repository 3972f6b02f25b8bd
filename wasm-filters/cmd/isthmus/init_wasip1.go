package main

import "github.com/isthmus-mesh/isthmus/wasm-filters/internal/host"

// A module of this kind has no main function that runs: Envoy initializes it and then calls what it exports.
func init() { host.Serve(protocols) }
