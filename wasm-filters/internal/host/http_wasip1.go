package host

import (
	"encoding/binary"
	"strconv"
	"unsafe"

	"github.com/isthmus-mesh/isthmus/wasm-filters/filter"
)

// streams are the HTTP requests that have not ended. A context belongs to one when headers come; to a connection when
// it is said to be new: until then both look the same.
var streams = make(map[uint32]*filter.Stream)

//go:wasmexport proxy_on_request_headers
func onRequestHeaders(id, _, _ uint32) uint32 {
	p := plugins[parents[id]]
	delete(parents, id)
	if p == nil {
		return actionContinue
	}
	s := p.NewStream(direction())
	s.Tag = id
	streams[id] = s
	defer containStream(s)
	held := s.Request(request)
	if vm.Asks() || held {
		arm()
	}
	if held {
		return actionPause
	}
	return actionContinue
}

//go:wasmexport proxy_on_response_headers
func onResponseHeaders(id, _, end uint32) uint32 {
	if s := streams[id]; s != nil {
		defer containStream(s)
		s.Response(response, end != 0)
	}
	return actionContinue
}

//go:wasmexport proxy_on_response_trailers
func onResponseTrailers(id, _ uint32) uint32 {
	if s := streams[id]; s != nil {
		defer containStream(s)
		s.Trailers(trailers)
	}
	return actionContinue
}

// endStream ends a request.
func endStream(id uint32) {
	s := streams[id]
	if s == nil {
		return
	}
	delete(streams, id)
	defer containStream(s)
	s.End(!s.Open() || whole(property("response", "code_details")))
}

// whole tells whether a response that has begun came to its end, by Envoy's RESPONSE_CODE_DETAILS: what breaks one off afterwards puts
// its own reason there (envoy/stream_info/stream_info.h, ResponseCodeDetailValues).
func whole(details []byte) bool {
	for _, begin := range [...]string{"downstream_", "upstream_reset_after_response_started", "http1.", "http2.", "http3.", "stream_idle_timeout",
		"max_duration_timeout", "upstream_response_timeout", "response_timeout"} {
		if len(details) >= len(begin) && string(details[:len(begin)]) == begin {
			return false
		}
	}
	return true
}

// proceed lets a delayed request go on.
func proceed(s *filter.Stream) {
	proxySetEffectiveContext(s.Tag)
	proxyContinueStream(streamRequest)
}

// containStream is contain for HTTP.
func containStream(s *filter.Stream) {
	if recover() != nil {
		s.Fail()
	}
}

// message implements filter.Message: one of the maps of headers of the callback at hand.
type message struct{ kind uint32 }

var request, response, trailers = &exchange{message{headersRequest}}, &message{headersResponse}, &message{trailersResponse}

// Header implements filter.Message.
func (m *message) Header(dst []byte, name string) (value []byte, known bool) {
	target, limit, refused = dst[len(dst):cap(dst)], filter.MaxHeader, false
	b, ok := result(proxyGetHeaderMapValue(m.kind, unsafe.Pointer(unsafe.StringData(name)), uint32(len(name)), unsafe.Pointer(&outData), unsafe.Pointer(&outSize)))
	limit = 0
	if !ok {
		return nil, !refused
	}
	if n := len(dst); cap(dst)-n >= len(b) && len(b) > 0 && unsafe.SliceData(b) == unsafe.SliceData(dst[n:cap(dst)]) {
		return dst[:n+len(b)], true
	}
	return append(dst, b...), true
}

// exchange implements filter.Exchange.
type exchange struct{ message }

// AddHeader implements filter.Exchange.
func (*exchange) AddHeader(name string, v []byte) {
	proxyAddHeaderMapValue(headersRequest, unsafe.Pointer(unsafe.StringData(name)), uint32(len(name)), unsafe.Pointer(unsafe.SliceData(v)), uint32(len(v)))
}

// pairs is room for the headers of a response.
var pairs [128]byte

// Respond implements filter.Exchange. What is no JSON Envoy calls text, or gRPC.
func (*exchange) Respond(r *filter.Response) {
	var number [10]byte
	after := strconv.AppendUint(number[:0], uint64(r.RetryAfter), 10)
	// The ABI's form of a map: a count, the lengths of each name and value, then these, each ended by a zero.
	const contentType, json, retryAfter = "content-type", "application/json", "retry-after"
	b := binary.LittleEndian.AppendUint32(pairs[:0], 0)
	if r.JSON {
		b[0]++
		b = appendLengths(b, len(contentType), len(json))
	}
	if r.RetryAfter > 0 {
		b[0]++
		b = appendLengths(b, len(retryAfter), len(after))
	}
	if r.JSON {
		b = append(b, contentType+"\x00"+json+"\x00"...)
	}
	if r.RetryAfter > 0 {
		b = append(b, retryAfter+"\x00"...)
		b = append(append(b, after...), 0)
	}
	proxySendLocalResponse(r.Status, unsafe.Pointer(unsafe.SliceData(r.Details)), uint32(len(r.Details)), unsafe.Pointer(unsafe.SliceData(r.Body)),
		uint32(len(r.Body)), unsafe.Pointer(unsafe.SliceData(b)), uint32(len(b)), r.GRPC)
}

func appendLengths(b []byte, name, value int) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, uint32(name)), uint32(value))
}
