// Package client speaks to the API of mcp-server.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/mcp-server/rollout"
)

// maxAnswerBytes bounds an answer.
const maxAnswerBytes = 256 << 20

// Client reads one mcp-server. Its methods may be called from any goroutine. Every error that the server has answered with is
// an *Error; others say that it cannot be reached.
type Client struct {
	base  *url.URL
	http  *http.Client
	token string
}

// Options say how a Client speaks. The zero value of each field means its default.
type Options struct {
	Token string       // bearer token; "" sends none
	HTTP  *http.Client // default: one with a timeout of 30 s
}

// New returns a Client of the server at address: host:port, or a URL with http:// or https://.
func New(address string, o Options) (*Client, error) {
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	base, err := url.Parse(address)
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" {
		return nil, fmt.Errorf("client: %q is neither host:port nor a URL", address)
	}
	if o.HTTP == nil {
		o.HTTP = &http.Client{Timeout: 30 * time.Second}
	}
	return &Client{base: base, http: o.HTTP, token: o.Token}, nil
}

// Error is an answer that is no success.
type Error struct{ api.ErrorDetail }

// Error returns the server's message.
func (e *Error) Error() string { return e.Message }

// IsChanged tells whether the server has answered that the rule is not, or no longer, what the request took it for.
func IsChanged(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Code == http.StatusPreconditionFailed
}

// IsNotFound tells whether the server has answered that there is no such thing.
func IsNotFound(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Code == http.StatusNotFound
}

// ServiceFilter selects services; its zero value selects all. Query is a part of an id, a host or an application.
type ServiceFilter struct {
	Query, Framework, Registry, Application string
	Protocol                                model.Protocol
}

// Services returns all services that the filter selects, page by page.
func (c *Client) Services(ctx context.Context, f ServiceFilter) ([]api.Service, error) {
	q := url.Values{"limit": {"1000"}}
	for name, v := range map[string]string{"q": f.Query, "framework": f.Framework, "registry": f.Registry, "application": f.Application, "protocol": string(f.Protocol)} {
		if v != "" {
			q.Set(name, v)
		}
	}
	out := []api.Service{}
	for {
		page, err := get[api.ServiceList](ctx, c, "/api/v1/services", q)
		if err != nil {
			return nil, err
		}
		out = append(out, page.Items...)
		if page.Continue == "" {
			return out, nil
		}
		q.Set("continue", page.Continue)
	}
}

// ServicePage returns one page of services: at most limit of them (0 is the server's default), from where an earlier page's
// Continue says.
func (c *Client) ServicePage(ctx context.Context, f ServiceFilter, limit int, from string) (*api.ServiceList, error) {
	q := url.Values{}
	for name, v := range map[string]string{"q": f.Query, "framework": f.Framework, "registry": f.Registry, "application": f.Application, "protocol": string(f.Protocol), "continue": from} {
		if v != "" {
			q.Set(name, v)
		}
	}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	return get[api.ServiceList](ctx, c, "/api/v1/services", q)
}

// Service returns one service by its id, one of its hosts, its virtual address, or its interface where that is enough.
func (c *Client) Service(ctx context.Context, id string) (*api.ServiceDetail, error) {
	return get[api.ServiceDetail](ctx, c, "/api/v1/services/"+url.PathEscape(id), nil)
}

// Problems returns what is wrong with somebody's data.
func (c *Client) Problems(ctx context.Context) (*api.ProblemList, error) {
	return get[api.ProblemList](ctx, c, "/api/v1/problems", nil)
}

// Sources returns how the registries are doing.
func (c *Client) Sources(ctx context.Context) (*api.SourceList, error) {
	return get[api.SourceList](ctx, c, "/api/v1/sources", nil)
}

// Rules returns the governance rules in force.
func (c *Client) Rules(ctx context.Context) (*api.RuleList, error) {
	return get[api.RuleList](ctx, c, "/api/v1/rules", nil)
}

// RuleID names a rule.
type RuleID struct{ Kind, Namespace, Name string }

func (i RuleID) path() string {
	return "/api/v1/rules/" + url.PathEscape(i.Kind) + "/" + url.PathEscape(i.Namespace) + "/" + url.PathEscape(i.Name)
}

// Rule returns one rule with all that is known of it.
func (c *Client) Rule(ctx context.Context, id RuleID) (*api.RuleDetail, error) {
	return get[api.RuleDetail](ctx, c, id.path(), nil)
}

// The revisions that a rule may have to be changed, besides the one that was read.
const (
	AnyRevision = ""     // whatever it is, and if there is none
	NoRevision  = "none" // only if there is none yet
)

// precondition is the header that holds a change to a revision.
func precondition(revision string) http.Header {
	h := http.Header{}
	switch revision {
	case AnyRevision:
	case NoRevision:
		h.Set("If-None-Match", "*")
	default:
		h.Set("If-Match", `"`+revision+`"`)
	}
	return h
}

// PutRule makes a rule what text says, one document of YAML or JSON, if its revision is the one that is given, and returns it as it is in force.
func (c *Client) PutRule(ctx context.Context, id RuleID, text []byte, revision string) (*api.RuleDetail, error) {
	h := precondition(revision)
	h.Set("Content-Type", "application/yaml")
	body, err := c.do(ctx, http.MethodPut, id.path(), nil, h, text)
	if err != nil {
		return nil, err
	}
	return decode[api.RuleDetail](c, body)
}

// DeleteRule removes a rule, if its revision is the one that is given.
func (c *Client) DeleteRule(ctx context.Context, id RuleID, revision string) error {
	_, err := c.do(ctx, http.MethodDelete, id.path(), nil, precondition(revision), nil)
	return err
}

// RolloutID names a rollout.
type RolloutID struct{ Namespace, Name string }

func (i RolloutID) path() string {
	return "/api/v1/rollouts/" + url.PathEscape(i.Namespace) + "/" + url.PathEscape(i.Name)
}

// Rollouts returns the releases that are under way, and those that are over.
func (c *Client) Rollouts(ctx context.Context) (*api.RolloutList, error) {
	return get[api.RolloutList](ctx, c, "/api/v1/rollouts", nil)
}

// Rollout returns one release.
func (c *Client) Rollout(ctx context.Context, id RolloutID) (*api.Rollout, error) {
	return get[api.Rollout](ctx, c, id.path(), nil)
}

// StartRollout begins a release as text says, one document of YAML or JSON, and returns it.
func (c *Client) StartRollout(ctx context.Context, id RolloutID, text []byte) (*api.Rollout, error) {
	body, err := c.do(ctx, http.MethodPut, id.path(), nil, http.Header{"Content-Type": {"application/yaml"}}, text)
	if err != nil {
		return nil, err
	}
	return decode[api.Rollout](c, body)
}

// ActOnRollout does something with a release that is under way, and returns it.
func (c *Client) ActOnRollout(ctx context.Context, id RolloutID, action rollout.Action) (*api.Rollout, error) {
	body, err := c.do(ctx, http.MethodPost, id.path()+"/"+url.PathEscape(string(action)), nil, http.Header{}, nil)
	if err != nil {
		return nil, err
	}
	return decode[api.Rollout](c, body)
}

// Istiods returns who is connected.
func (c *Client) Istiods(ctx context.Context) (*api.IstiodList, error) {
	return get[api.IstiodList](ctx, c, "/api/v1/istiods", nil)
}

// Traffic returns what the filters have metered in the last seconds.
func (c *Client) Traffic(ctx context.Context) (*api.Traffic, error) {
	return get[api.Traffic](ctx, c, "/api/v1/traffic", nil)
}

// Version returns which program answers, and what it serves.
func (c *Client) Version(ctx context.Context) (*api.Version, error) {
	return get[api.Version](ctx, c, "/api/v1/version", nil)
}

func get[T any](ctx context.Context, c *Client, path string, q url.Values) (*T, error) {
	body, err := c.do(ctx, http.MethodGet, path, q, http.Header{}, nil)
	if err != nil {
		return nil, err
	}
	return decode[T](c, body)
}

func decode[T any](c *Client, body []byte) (*T, error) {
	out := new(T)
	if err := json.Unmarshal(body, out); err != nil {
		return nil, fmt.Errorf("client: %s answers something else than mcp-server does: %w", c.base.Host, err)
	}
	return out, nil
}

// do sends a request and returns the body of an answer that is a success.
func (c *Client) do(ctx context.Context, method, path string, q url.Values, header http.Header, text []byte) ([]byte, error) {
	u := *c.base
	escaped := strings.TrimSuffix(u.EscapedPath(), "/") + path
	plain, err := url.PathUnescape(escaped)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	u.Path, u.RawPath, u.RawQuery = plain, escaped, q.Encode()
	r, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	r.Header = header
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	answer, err := c.http.Do(r)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswerBytes+1))
	if err != nil {
		return nil, fmt.Errorf("client: read the answer: %w", err)
	}
	if len(body) > maxAnswerBytes {
		return nil, fmt.Errorf("client: the answer is longer than %d bytes", maxAnswerBytes)
	}
	if answer.StatusCode/100 != 2 {
		var e api.Error
		if json.Unmarshal(body, &e) != nil || e.Error.Message == "" {
			return nil, fmt.Errorf("client: %s answers %s; it does not seem to be mcp-server", c.base.Host, answer.Status)
		}
		return nil, &Error{e.Error}
	}
	return body, nil
}
