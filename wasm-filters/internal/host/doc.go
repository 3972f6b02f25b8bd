// Package host binds the filter to the Proxy-Wasm ABI 0.2.1, for network filters and for HTTP filters. It exists only in the compiled module
// (GOOS=wasip1); its tests are those of package filtertest.
package host
