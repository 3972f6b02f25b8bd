package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/mcp-server/config"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/client"
)

// The environment of the commands that ask a server.
const (
	envServer = "ISTHMUS_SERVER"
	envToken  = "ISTHMUS_TOKEN"
)

// maxTokenBytes bounds a file with a token or a certificate.
const maxTokenBytes = 1 << 20

// serverFlags say which mcp-server a command asks, and how.
type serverFlags struct {
	server    string
	tokenFile string
	caFile    string
	timeout   time.Duration
}

// addServerFlags adds them to the root, so that they may also stand before the command.
func addServerFlags(root *cobra.Command) *serverFlags {
	f := new(serverFlags)
	flags := root.PersistentFlags()
	flags.StringVar(&f.server, "server", "", "API of mcp-server: host:port or URL (default $"+envServer+", or "+config.DefaultAPIAddress+")")
	flags.StringVar(&f.tokenFile, "token-file", "", "file with the bearer token (default: the token itself in $"+envToken+", if any)")
	flags.StringVar(&f.caFile, "ca-file", "", "certificates in PEM that the server's is checked with (default: the system's)")
	return f
}

// addTimeout adds --timeout to a command that asks the server.
func (f *serverFlags) addTimeout(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&f.timeout, "timeout", 10*time.Second, "how long the server may take to answer")
}

// address returns the server that is asked.
func (f *serverFlags) address() string {
	for _, a := range []string{f.server, os.Getenv(envServer)} {
		if a != "" {
			return a
		}
	}
	return config.DefaultAPIAddress
}

// client returns a client of the server, and what releases its connections.
func (f *serverFlags) client() (*client.Client, func(), error) {
	token := os.Getenv(envToken)
	if f.tokenFile != "" {
		b, err := readFile(f.tokenFile)
		if err != nil {
			return nil, nil, usagef("--token-file: %w", err)
		}
		if token = strings.TrimSpace(string(b)); token == "" {
			return nil, nil, usagef("--token-file: %s is empty", f.tokenFile)
		}
	}
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, nil, usagef("the token holds characters that no token has")
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if f.caFile != "" {
		b, err := readFile(f.caFile)
		if err != nil {
			return nil, nil, usagef("--ca-file: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(b) {
			return nil, nil, usagef("--ca-file: %s holds no certificate in PEM", f.caFile)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	if f.timeout <= 0 {
		return nil, nil, usagef("--timeout must be more than 0")
	}
	c, err := client.New(f.address(), client.Options{Token: token, HTTP: &http.Client{Transport: transport, Timeout: f.timeout}})
	if err != nil {
		return nil, nil, usagef("--server: %q is neither host:port nor a URL", f.address())
	}
	return c, transport.CloseIdleConnections, nil
}

// readFile reads a file of at most maxTokenBytes.
func readFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxTokenBytes {
		return nil, errors.New(name + " is too large")
	}
	return os.ReadFile(name)
}

// failed gives an error of the client its exit code, and says what can be done.
func (f *serverFlags) failed(err error) error {
	if answer, ok := errors.AsType[*client.Error](err); ok {
		switch answer.Code {
		case http.StatusNotFound, http.StatusConflict, http.StatusPreconditionFailed, http.StatusUnprocessableEntity, http.StatusRequestEntityTooLarge:
			return badf("%s", printable(answer.Message))
		case http.StatusBadRequest:
			return usagef("%s", printable(answer.Message))
		case http.StatusUnauthorized:
			return unreachablef("mcp-server at %s does not let us in: %s; name one with --token-file or $%s", f.address(), printable(answer.Message), envToken)
		}
		return unreachablef("mcp-server at %s: %s", f.address(), printable(answer.Message))
	}
	if errors.Is(err, context.Canceled) {
		return unreachablef("interrupted")
	}
	if wrong, ok := errors.AsType[*url.Error](err); ok {
		if wrong.Timeout() {
			return unreachablef("mcp-server at %s does not answer within %s", f.address(), f.timeout)
		}
		return unreachablef("no mcp-server at %s: %w; name another with --server or $%s", f.address(), wrong.Err, envServer)
	}
	return unreachablef("%w", err)
}

// ask makes a client, asks it and gives an error its exit code.
func ask[T any](ctx context.Context, f *serverFlags, question func(context.Context, *client.Client) (T, error)) (T, error) {
	var none T
	c, release, err := f.client()
	if err != nil {
		return none, err
	}
	defer release()
	answer, err := question(ctx, c)
	if err != nil {
		if _, ok := errors.AsType[*codeError](err); ok {
			return none, err
		}
		return none, f.failed(err)
	}
	return answer, nil
}
