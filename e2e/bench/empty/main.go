// Command empty is the smallest filter that Go can be: a module that has Go's runtime in it and nothing else. What Envoy
// needs to load it is what no filter in Go can do without; package bench measures it as a yardstick.
package main

func main() {}
