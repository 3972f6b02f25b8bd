// Command isthmus is the filter: a Proxy-Wasm module for Envoy's network filter chains. Build it with
//
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -trimpath -ldflags='-s -w' -o isthmus.wasm ./wasm-filters/cmd/isthmus
//
// Built for anything else it does nothing.
package main

func main() {}
