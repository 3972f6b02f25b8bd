//go:build !unix

package file

// identity tells a folder from another one that has taken its name, where the system can.
func identity(folder string) string { return folder }
