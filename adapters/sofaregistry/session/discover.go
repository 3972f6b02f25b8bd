package session

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// DefaultHTTPPort is where a session server answers HTTP.
const DefaultHTTPPort = 9603

// Bounds on the list of servers.
const (
	askTimeout    = 10 * time.Second
	maxServerList = 1 << 20
	maxServers    = 10_000
)

// Discover returns a function for Options.Servers that asks for the session servers at one of the endpoints (host:port of session
// servers' HTTP, GET /api/servers/query), each in its turn, beginning with the one that answered last. query may hold what upstream's
// clients send along (zone, dataCenter, appName, instanceId, env) and may be nil. If none answers, the last list holds: the session
// servers may be well although what stands before their HTTP is not.
func Discover(client *http.Client, query url.Values, endpoints ...string) func(ctx context.Context) ([]string, error) {
	d := &discovery{client: client, query: query, endpoints: endpoints}
	return d.servers
}

type discovery struct {
	client    *http.Client
	query     url.Values
	endpoints []string

	mu    sync.Mutex
	first int
	last  []string
}

func (d *discovery) servers(ctx context.Context) ([]string, error) {
	d.mu.Lock()
	first := d.first
	d.mu.Unlock()
	var errs []error
	for i := range d.endpoints {
		at := (first + i) % len(d.endpoints)
		list, err := d.ask(ctx, d.endpoints[at])
		if err != nil {
			errs = append(errs, err)
			continue
		}
		d.mu.Lock()
		d.first, d.last = at, list
		d.mu.Unlock()
		return append([]string(nil), list...), nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.last) > 0 {
		return append([]string(nil), d.last...), nil
	}
	if len(errs) == 0 {
		return nil, errors.New("session: no endpoint to ask for the session servers")
	}
	return nil, errors.Join(errs...)
}

func (d *discovery) ask(ctx context.Context, endpoint string) ([]string, error) {
	u := url.URL{Scheme: "http", Host: endpoint, Path: "/api/servers/query", RawQuery: d.query.Encode()}
	ctx, stop := context.WithTimeout(ctx, askTimeout)
	defer stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("session: %w", err)
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("session: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxServerList+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("session: %s: %w", endpoint, err)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("session: %s answers %s to the question for the session servers", endpoint, resp.Status)
	case len(body) > maxServerList:
		return nil, fmt.Errorf("session: %s answers with more than %d bytes", endpoint, maxServerList)
	}
	list, err := parseServers(string(body))
	if err != nil {
		return nil, fmt.Errorf("session: %s: %w", endpoint, err)
	}
	return list, nil
}

// parseServers reads "ip:port;ip:port?weight=3". Some server must be in it.
func parseServers(s string) ([]string, error) {
	var list []string
	var fault error
	for part := range strings.SplitSeq(strings.TrimSpace(s), ";") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		address, _, _ := strings.Cut(part, "?")
		host, port, err := net.SplitHostPort(address)
		if err == nil && host == "" {
			err = errors.New("no host")
		}
		if err == nil {
			_, err = strconv.ParseUint(port, 10, 16)
		}
		if err != nil {
			fault = fmt.Errorf("%.100q is no address of a session server", part)
			continue
		}
		if list = append(list, address); len(list) > maxServers {
			return nil, fmt.Errorf("it names more than %d session servers", maxServers)
		}
	}
	if len(list) == 0 {
		if fault == nil {
			fault = errors.New("it names no session server")
		}
		return nil, fault
	}
	return list, nil
}

// Attributes of a registration that authenticate it (AttributeKeyConstants).
const (
	attributeAccessKey = "!AccessKey"
	attributeAlgorithm = "!Algorithm"
	attributeSignature = "!Signature"
	attributeTimestamp = "!Timestamp"

	// signatureLife is how long a signature is used before another one is made (DefaultRegistryClientConfigBuilder.authCacheInterval).
	signatureLife = 5 * time.Minute
)

// AccessKey returns a function for Options.Sign that authenticates by an access key: the attributes !AccessKey, !Algorithm
// (HmacSHA256), !Timestamp (ms since 1970) and !Signature, which is the base64 of the HMAC-SHA256, by the secret, of the access key,
// a line feed and the timestamp. secret is called each time a signature is made, every five minutes.
//
// Upstream publishes the names of the attributes, but neither a server that checks them nor a client that fills them in. A server with
// a check of its own that signs something else needs another function here.
func AccessKey(accessKey string, secret func() (string, error)) func(ctx context.Context) (map[string]string, error) {
	var mu sync.Mutex
	var made time.Time
	var attributes map[string]string
	return func(context.Context) (map[string]string, error) {
		mu.Lock()
		defer mu.Unlock()
		now := time.Now()
		if attributes != nil && now.Sub(made) < signatureLife {
			return attributes, nil
		}
		key, err := secret()
		if err != nil {
			return nil, err
		}
		timestamp := strconv.FormatInt(now.UnixMilli(), 10)
		mac := hmac.New(sha256.New, []byte(key))
		mac.Write([]byte(accessKey + "\n" + timestamp))
		made, attributes = now, map[string]string{
			attributeAccessKey: accessKey,
			attributeAlgorithm: "HmacSHA256",
			attributeTimestamp: timestamp,
			attributeSignature: base64.StdEncoding.EncodeToString(mac.Sum(nil)),
		}
		return attributes, nil
	}
}
