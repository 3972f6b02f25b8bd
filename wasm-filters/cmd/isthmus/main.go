//go:build wasip1

// Command isthmus is the filter: a Proxy-Wasm module for Envoy's network filter chains. Build it with
//
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -trimpath -ldflags='-s -w' -o isthmus.wasm ./wasm-filters/cmd/isthmus
package main

import (
	"github.com/isthmus-mesh/isthmus/wasm-filters/internal/host"
)

func main() {}

func init() { host.Serve(protocols) }
