package machine

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// askAsProxy is ask with what tells the proxy's connections from others: its user, or its mark.
func askAsProxy(ctx context.Context, m *Machine, address string) (string, error) {
	if !m.host.Rootless() {
		exe, err := m.host.Expose(filepath.Dir(os.Args[0]))
		if err != nil {
			return "", err
		}
		cmd := exec.CommandContext(ctx, filepath.Join(exe, "program"), address)
		cmd.Env = []string{"MACHINE_TEST_ROLE=ask"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: UserProxy, Gid: UserProxy}}
		var out strings.Builder
		cmd.Stdout = &out
		if err := m.Do(cmd.Start); err != nil {
			return "", err
		}
		err = cmd.Wait()
		return strings.TrimSpace(out.String()), err
	}
	var c net.Conn
	err := m.Do(func() (err error) {
		d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
			var failed error
			err := raw.Control(func(fd uintptr) {
				failed = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_MARK, ProxyMark)
			})
			return errors.Join(err, failed)
		}}
		c, err = d.DialContext(ctx, "tcp", address)
		return err
	})
	if err != nil {
		return "", err
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	return strings.TrimSpace(string(b)), err
}
