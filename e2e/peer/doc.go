// Package peer obtains the programs that the end-to-end tests and the demo run against: stock Envoy and istiod, registries
// and applications in Java, and our own binaries. Each is fetched or built once, in a pinned version, and kept in a cache
// ($ISTHMUS_CACHE, by default ~/.cache/isthmus). What is half done is never seen: everything is made beside its place and
// renamed. Two processes that want the same peer wait for each other.
package peer
