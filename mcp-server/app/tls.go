package app

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/mcp-server/config"
)

// serverTLS makes the configuration of a TLS server, nil where there is none. Its files are read again once they have changed;
// where that fails what was read before goes on to hold.
func serverTLS(t config.TLS, log *slog.Logger, protocols ...string) (*tls.Config, error) {
	if !t.Enabled() {
		return nil, nil
	}
	k := &keys{t: t}
	if err := k.load(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: protocols,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return k.current(log, protocols), nil
		},
		// Asked only where GetConfigForClient has nothing to say, which it always has; without it tls.NewListener refuses.
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			k.mu.Lock()
			defer k.mu.Unlock()
			return &k.cert, nil
		},
	}, nil
}

// keys are the files of a TLS server.
type keys struct {
	t config.TLS

	mu      sync.Mutex
	cert    tls.Certificate
	clients *x509.CertPool // nil where clients need no certificate
	times   [3]time.Time   // of the files
	looked  time.Time
}

// lookEvery is how often the files are looked at, at most.
const lookEvery = time.Second

func (k *keys) files() [3]string { return [3]string{k.t.CertFile, k.t.KeyFile, k.t.ClientCAFile} }

func (k *keys) modified() (times [3]time.Time) {
	for i, f := range k.files() {
		if f == "" {
			continue
		}
		if info, err := os.Stat(f); err == nil {
			times[i] = info.ModTime()
		}
	}
	return times
}

// load reads the files. The caller holds mu, or is the only one.
func (k *keys) load() error {
	times := k.modified()
	cert, err := tls.LoadX509KeyPair(k.t.CertFile, k.t.KeyFile)
	if err != nil {
		return fmt.Errorf("app: TLS: %w", err)
	}
	var clients *x509.CertPool
	if k.t.ClientCAFile != "" {
		pem, err := os.ReadFile(k.t.ClientCAFile)
		if err != nil {
			return fmt.Errorf("app: TLS: %w", err)
		}
		clients = x509.NewCertPool()
		if !clients.AppendCertsFromPEM(pem) {
			return fmt.Errorf("app: TLS: %s holds no certificate", k.t.ClientCAFile)
		}
	}
	k.cert, k.clients, k.times = cert, clients, times
	return nil
}

func (k *keys) current(log *slog.Logger, protocols []string) *tls.Config {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := time.Now(); now.Sub(k.looked) >= lookEvery {
		k.looked = now
		if k.modified() != k.times {
			if err := k.load(); err != nil {
				log.Error("cannot read changed TLS files; the former ones hold", "error", err)
			} else {
				log.Info("TLS files read again", "cert", k.t.CertFile)
			}
		}
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protocols, Certificates: []tls.Certificate{k.cert}}
	if k.clients != nil {
		c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, k.clients
	}
	return c
}
