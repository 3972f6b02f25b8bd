package cli

import (
	"cmp"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
	"github.com/isthmus-mesh/isthmus/wasm-filters/filter"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// http tells whether the call is a request of HTTP.
func (c *dryCall) http() bool {
	return c.Protocol == config.SystemHTTP || c.Protocol == config.SystemTriple
}

// dryMessage is the headers of a request or a response. It implements filter.Exchange.
type dryMessage struct {
	headers map[string]string
	json    bool   // it was answered with a value
	answer  string // by an error; "" where it was not
}

// Header implements filter.Message.
func (m *dryMessage) Header(dst []byte, name string) ([]byte, bool) {
	v, ok := m.headers[strings.ToLower(name)]
	if !ok {
		return nil, true
	}
	return append(dst, v...), true
}

// AddHeader implements filter.Exchange.
func (m *dryMessage) AddHeader(name string, value []byte) { m.headers[name] = string(value) }

// Respond implements filter.Exchange.
func (m *dryMessage) Respond(r *filter.Response) { m.json, m.answer = r.JSON, string(r.Body) }

// request returns the headers of a call.
func (c *dryCall) request() *dryMessage {
	h := map[string]string{}
	c.pairs(func(k, v string) { h[strings.ToLower(k)] = v }, "")
	set := func(k, v string) {
		if v != "" {
			h[k] = v
		}
	}
	if c.Protocol == config.SystemTriple {
		h["content-type"], h[":method"], h[":path"] = "application/grpc+proto", "POST", "/"+string(c.Service)+"/"+string(c.Method)
		set("tri-service-version", string(c.Version))
		set("tri-service-group", string(c.Group))
		set("tri-consumer-appname", string(c.Caller))
	} else {
		h[":authority"] = string(c.Service)
		h[":method"], h[":path"], _ = strings.Cut(string(c.Method), " ")
		set(config.DefaultCallerHeader, string(c.Caller))
	}
	if c.LoadTest {
		h["baggage-mark"] = "T"
	}
	return &dryMessage{headers: h}
}

// beginHTTP is begin for HTTP.
func (s *drySidecar) beginHTTP(result dryResult, c *dryCall, dir policy.Direction) (dryResult, dryEnd, policy.Nanos) {
	stream, m := s.plugin.NewStream(dir), c.request()
	held := stream.Request(m)
	s.plugin.Flush()
	switch {
	case m.json:
		result.Result = "answered"
	case m.answer != "":
		result.Result = "rejected"
		result.Reason, _, _ = strings.Cut(strings.TrimPrefix(m.answer, "isthmus: "), ":")
	case held:
		due, _ := stream.Due()
		delay := due - s.clock
		result.Result, result.Reason = "delayed", time.Duration(delay).String()
		return result, dryEnd{stream: stream}, delay
	default:
		return result, dryEnd{stream: stream}, 0
	}
	stream.End(true)
	return result, dryEnd{}, 0
}

// endHTTP ends a request as it was described.
func endHTTP(stream *filter.Stream, c *dryCall) {
	outcome := cmp.Or(c.Outcome, "ok")
	if outcome != "closed" {
		status := map[string][2]string{"ok": {"200", "0"}, "exception": {"400", "2"}, "error": {"500", "13"}, "timeout": {"504", "4"}}[outcome]
		h := map[string]string{":status": status[0]}
		if c.Protocol == config.SystemTriple {
			h = map[string]string{":status": "200", "grpc-status": status[1]}
		}
		stream.Response(&dryMessage{headers: h}, true)
	}
	stream.End(true)
}
