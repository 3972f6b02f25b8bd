package main

// Without these two exports Envoy does not load a module: which version of Proxy-Wasm it is made for, and where to put
// what Envoy hands over, which is nothing as long as the module asks for nothing.

//go:wasmexport proxy_abi_version_0_2_1
func abi() {}

//go:wasmexport proxy_on_memory_allocate
func allocate(int32) int32 { return 0 }
