package filtertest

import (
	"encoding/binary"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/wasm-filters/filter"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// Headers are a map of an HTTP message, in the order in which they came.
type Headers [][2]string

// Get returns the value of a header; as with Envoy, several of a name are one, with commas.
func (h Headers) Get(name string) (value string, there bool) {
	var all []string
	for _, kv := range h {
		if strings.EqualFold(kv[0], name) {
			all = append(all, kv[1])
		}
	}
	return strings.Join(all, ","), all != nil
}

// Answer is what the filter did to an HTTP request.
type Answer struct {
	Held     bool // it does not go on
	Added    Headers
	Response *filter.Response // nil: none
}

// String describes a.
func (a Answer) String() string {
	var s strings.Builder
	for _, kv := range a.Added {
		fmt.Fprintf(&s, "adds %s: %s\n", kv[0], kv[1])
	}
	r := a.Response
	switch {
	case r != nil:
		fmt.Fprintf(&s, "answered %d", r.Status)
		if r.GRPC >= 0 {
			fmt.Fprintf(&s, ", grpc %d", r.GRPC)
		}
		if r.RetryAfter > 0 {
			fmt.Fprintf(&s, ", retry after %d s", r.RetryAfter)
		}
		if r.JSON {
			s.WriteString(", JSON")
		}
		fmt.Fprintf(&s, ", %s: %s\n", r.Details, r.Body)
		if !a.Held {
			s.WriteString("and goes on\n")
		}
	case a.Held:
		s.WriteString("waits\n")
	default:
		s.WriteString("goes on\n")
	}
	return s.String()
}

// fakeMessage implements filter.Exchange.
type fakeMessage struct {
	headers Headers
	answer  Answer
}

// Header implements filter.Message.
func (m *fakeMessage) Header(dst []byte, name string) ([]byte, bool) {
	v, there := m.headers.Get(name)
	switch {
	case !there:
		return nil, true
	case len(v) > filter.MaxHeader:
		return nil, false
	}
	if dst = append(dst, v...); dst == nil {
		dst = []byte{}
	}
	return dst, true
}

// AddHeader implements filter.Exchange.
func (m *fakeMessage) AddHeader(name string, value []byte) {
	m.answer.Added = append(m.answer.Added, [2]string{name, string(value)})
}

// Respond implements filter.Exchange.
func (m *fakeMessage) Respond(r *filter.Response) { m.answer.Response = cloneResponse(r) }

func cloneResponse(r *filter.Response) *filter.Response {
	c := *r
	c.Body, c.Details = slices.Clone(r.Body), slices.Clone(r.Details)
	return &c
}

// Stream begins a request and returns it as it is.
func (n *Native) Stream(dir policy.Direction) *filter.Stream {
	n.peer = n.world.peer()
	return n.plugins[n.current].NewStream(dir)
}

// Request implements Rig.
func (n *Native) Request(dir policy.Direction, h Headers) (int, Answer, error) {
	s := n.Stream(dir)
	s.Tag = uint32(len(n.streams))
	n.streams = append(n.streams, s)
	m := &fakeMessage{headers: h}
	m.answer.Held = s.Request(m)
	return len(n.streams) - 1, m.answer, nil
}

// Response implements Rig.
func (n *Native) Response(i int, h Headers, end bool) error {
	n.streams[i].Response(&fakeMessage{headers: h}, end)
	return nil
}

// Trailers implements Rig.
func (n *Native) Trailers(i int, h Headers) error {
	n.streams[i].Trailers(&fakeMessage{headers: h})
	return nil
}

// Finish implements Rig.
func (n *Native) Finish(i int, details string) error {
	n.streams[i].End(details == "" || details == "via_upstream")
	return nil
}

// Proceeded implements Rig.
func (n *Native) Proceeded() []int {
	out := n.proceeded
	n.proceeded = nil
	return out
}

// wasmStream is an HTTP request.
type wasmStream struct {
	id      uint32
	dir     policy.Direction
	peer    peer
	kind    uint32 // of headers
	headers Headers
	answer  Answer
	details string
}

// stream returns the request whose context is the effective one.
func (r *Wasm) stream() (int, *wasmStream) {
	for i, s := range r.streams {
		if s.id == r.current {
			return i, s
		}
	}
	return 0, nil
}

// Request implements Rig.
func (r *Wasm) Request(dir policy.Direction, h Headers) (int, Answer, error) {
	s := &wasmStream{id: r.next, dir: dir, peer: r.world.peer(), headers: h}
	r.next++
	r.streams = append(r.streams, s)
	if _, err := r.call("proxy_on_context_create", s.id, uint64(r.plugin)); err != nil {
		return 0, Answer{}, err
	}
	action, err := r.call("proxy_on_request_headers", s.id, uint64(len(h)), 1)
	s.answer.Held = action != 0
	return len(r.streams) - 1, s.answer, err
}

// Response implements Rig.
func (r *Wasm) Response(i int, h Headers, end bool) error {
	s := r.streams[i]
	s.kind, s.headers = 2, h
	var last uint64
	if end {
		last = 1
	}
	action, err := r.call("proxy_on_response_headers", s.id, uint64(len(h)), last)
	if err == nil && action != 0 {
		err = fmt.Errorf("filtertest: the response waits")
	}
	return err
}

// Trailers implements Rig.
func (r *Wasm) Trailers(i int, h Headers) error {
	s := r.streams[i]
	s.kind, s.headers = 3, h
	action, err := r.call("proxy_on_response_trailers", s.id, uint64(len(h)))
	if err == nil && action != 0 {
		err = fmt.Errorf("filtertest: the response waits")
	}
	return err
}

// Finish implements Rig.
func (r *Wasm) Finish(i int, details string) error {
	s := r.streams[i]
	s.details = details
	for _, step := range []string{"proxy_on_log", "proxy_on_done", "proxy_on_delete"} {
		if _, err := r.call(step, s.id); err != nil {
			return err
		}
	}
	return nil
}

// Proceeded implements Rig.
func (r *Wasm) Proceeded() []int {
	out := r.proceeded
	r.proceeded = nil
	return out
}

// localResponse reads what proxy_send_local_response was given.
func localResponse(status uint32, details, body, pairs []byte, grpc int32) (*filter.Response, error) {
	r := &filter.Response{Status: status, GRPC: grpc, Body: body, Details: details}
	if len(pairs) < 4 {
		return nil, fmt.Errorf("filtertest: headers of %d bytes", len(pairs))
	}
	n := int(binary.LittleEndian.Uint32(pairs))
	at := 4 + 8*n
	for i := range n {
		var kv [2]string
		for k := range kv {
			size := int(binary.LittleEndian.Uint32(pairs[4+8*i+4*k:]))
			if at+size+1 > len(pairs) || pairs[at+size] != 0 {
				return nil, fmt.Errorf("filtertest: headers are %q", pairs)
			}
			kv[k] = string(pairs[at : at+size])
			at += size + 1
		}
		switch kv[0] {
		case "retry-after":
			seconds, err := strconv.ParseUint(kv[1], 10, 32)
			if err != nil {
				return nil, fmt.Errorf("filtertest: retry-after: %w", err)
			}
			r.RetryAfter = uint32(seconds)
		case "content-type":
			r.JSON = kv[1] == "application/json"
		default:
			return nil, fmt.Errorf("filtertest: header %q", kv)
		}
	}
	if at != len(pairs) {
		return nil, fmt.Errorf("filtertest: headers are %q", pairs)
	}
	return r, nil
}

var repeated = regexp.MustCompile(`^(.*)\*([0-9]+)$`)

// parseHeaders reads NAME=VALUE …; VALUE may be TEXT*N, which is TEXT N times, and have spaces: an item without = belongs to the one before.
func parseHeaders(items []string) (Headers, error) {
	var h Headers
	for _, it := range items {
		k, v, ok := strings.Cut(it, "=")
		switch {
		case !ok && len(h) == 0:
			return nil, fmt.Errorf("%q is no NAME=VALUE", it)
		case !ok:
			h[len(h)-1][1] += " " + it
			continue
		}
		if m := repeated.FindStringSubmatch(v); m != nil {
			n, err := strconv.Atoi(m[2])
			if err != nil {
				return nil, err
			}
			v = strings.Repeat(m[1], n)
		}
		h = append(h, [2]string{k, v})
	}
	return h, nil
}

// http runs a command about an HTTP request.
func (s *Script) http(out *strings.Builder, word string, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("needs a name")
	}
	name, args := args[0], args[1:]
	if word == "request" {
		if len(args) == 0 {
			return fmt.Errorf("needs client or server")
		}
		dir := map[string]policy.Direction{"client": policy.DirectionClient, "server": policy.DirectionServer}[args[0]]
		h, err := parseHeaders(args[1:])
		if err != nil {
			return err
		}
		n, a, err := s.rig.Request(dir, h)
		s.requests[name] = n
		out.WriteString(a.String())
		return err
	}
	n, ok := s.requests[name]
	if !ok {
		return fmt.Errorf("no request %q", name)
	}
	if word == "finish" {
		delete(s.requests, name)
		return s.rig.Finish(n, strings.Join(args, " "))
	}
	end := len(args) > 0 && args[0] == "end"
	if end {
		args = args[1:]
	}
	h, err := parseHeaders(args)
	if err != nil {
		return err
	}
	if word == "trailers" {
		return s.rig.Trailers(n, h)
	}
	return s.rig.Response(n, h, end)
}
