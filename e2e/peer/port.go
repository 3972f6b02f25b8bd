package peer

import "net"

// FreePort asks the kernel for a port on loopback that is free now, for a peer that has to be told where to listen.
func FreePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
