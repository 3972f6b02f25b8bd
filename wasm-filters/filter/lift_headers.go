package filter

import (
	"github.com/isthmus-mesh/isthmus/wasm-filters/config"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/h2"
)

// The headers of a lifted call, beside :method POST, :scheme http, :authority and :path /SERVICE/METHOD, and those of its response.
// Values are as on the wire, but whatever is no visible ASCII character, and "%", is "%" and two hexadecimal digits.
const (
	headerProtocol = "x-isthmus-protocol" // protocol.Codec.Name
	headerService  = "x-isthmus-service"
	headerVersion  = "x-isthmus-version"
	headerGroup    = "x-isthmus-group"
	headerMethod   = "x-isthmus-method"
	headerCaller   = "x-isthmus-caller"
	headerOneWay   = "x-isthmus-oneway"
	headerOutcome  = "x-isthmus-outcome" // protocol.Outcome; it tells that a response is a call's, not one of Envoy's own
	headerTimeout  = "x-envoy-upstream-rq-timeout-ms"
	headerGRPC     = "grpc-status"           // grpcCode, for whoever counts calls and for retries; with our content type nothing else acts on it
	headerAttempt  = "x-envoy-attempt-count" // of a lifted call that Envoy sends on: 1 for the first time

	// contentType and the protocol's name are the content-type in both directions.
	contentType = "application/x-isthmus-"

	baggage = "rpc_req_baggage."   // begins SOFA's baggage items
	sofa    = "rpc_trace_context." // begins what SOFATracer hands on
)

const (
	// maxLiftBlock is the longest header block of a call; it fits one frame.
	maxLiftBlock = h2.MaxFrame
	// maxAttachmentValue is the longest value of an attachment that becomes a header: Envoy's own bound for all headers is 60 KB.
	maxAttachmentValue = 2048
	// maxAttachmentBlock is what all attachments of a call may take.
	maxAttachmentBlock = 8192
)

// A liftBlock is the beginning of the header block of all calls of a route.
type liftBlock struct {
	block []byte // nil: the service has no host, or its names are too long
	table *liftTable
}

// prefix returns the beginning of the header block of the calls that k describes. It is kept with the route; shared tells that the
// route is not.
func (t *liftTable) prefix(r *route, system string, k *known, scratch []byte) (block, _ []byte) {
	if kept := r.lift[t.index]; kept != nil && kept.table == t {
		return kept.block, scratch
	}
	scratch = t.appendPrefix(scratch[:0], system, k)
	if len(scratch) > maxLiftBlock-maxAttachmentBlock-256 {
		scratch = scratch[:0]
	}
	if r.hash != 0 { // one that is remembered
		r.lift[t.index] = &liftBlock{table: t, block: append([]byte(nil), scratch...)}
	}
	return scratch, scratch
}

// appendPrefix appends nothing where the service has no host.
func (t *liftTable) appendPrefix(dst []byte, system string, k *known) []byte {
	var room [512]byte
	start := len(dst)
	dst = h2.AppendIndexed(dst, h2.IndexMethodPost)
	dst = h2.AppendIndexed(dst, h2.IndexSchemeHTTP)
	host, ok := t.appendHost(room[:0], system, k)
	if !ok {
		return dst[:start]
	}
	dst = h2.AppendField(dst, h2.IndexAuthority, host)
	path := appendPath(append(host[:0], '/'), k.service)
	path = appendPath(append(path, '/'), k.method)
	dst = h2.AppendField(dst, h2.IndexPath, path)
	dst = h2.AppendField(dst, h2.IndexContentType, append(append(path[:0], contentType...), system...))
	dst = h2.AppendLiteral(dst, headerProtocol, append(path[:0], system...))
	for _, f := range [...]struct {
		name  string
		value []byte
	}{{headerService, k.service}, {headerMethod, k.method}, {headerVersion, k.version}, {headerGroup, k.group}, {headerCaller, k.caller}} {
		if len(f.value) > 0 {
			dst = h2.AppendLiteral(dst, f.name, appendEscaped(path[:0], f.value))
		}
	}
	return dst
}

// appendUnread appends the beginning of the header block of a call whose names are not known, or make no host.
func appendUnread(dst []byte, system string) []byte {
	var room [64]byte
	dst = h2.AppendIndexed(dst, h2.IndexMethodPost)
	dst = h2.AppendIndexed(dst, h2.IndexSchemeHTTP)
	dst = h2.AppendField(dst, h2.IndexAuthority, append(room[:0], config.AsDialled...))
	dst = h2.AppendField(dst, h2.IndexPath, append(room[:0], '/'))
	dst = h2.AppendField(dst, h2.IndexContentType, append(append(room[:0], contentType...), system...))
	return h2.AppendLiteral(dst, headerProtocol, append(room[:0], system...))
}

// appendPath appends one segment of a path: what is not unreserved in a URI (RFC 3986) or "$" is escaped, and a segment of dots, too,
// which would mean another one.
func appendPath(dst, s []byte) []byte {
	dots := len(s) <= 2
	for _, c := range s {
		dots = dots && c == '.'
	}
	for _, c := range s {
		if c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z' || c == '-' || c == '_' || c == '~' || c == '$' || c == '.' && !dots {
			dst = append(dst, c)
			continue
		}
		dst = append(dst, '%', upperHex[c>>4], upperHex[c&15])
	}
	return dst
}

// appendEscaped appends the value of a header.
func appendEscaped(dst, s []byte) []byte {
	for _, c := range s {
		if c > ' ' && c <= '~' && c != '%' {
			dst = append(dst, c)
			continue
		}
		dst = append(dst, '%', upperHex[c>>4], upperHex[c&15])
	}
	return dst
}

const upperHex = "0123456789ABCDEF"

// A collector makes headers of a call's attachments, as the codec comes upon them.
type collector struct {
	table *liftTable
	block []byte
	text  []byte
	taken uint64 // bits of table.headers that stand in block

	traced            bool // W3C's or B3's context is in block
	traceID, spanID   [maxTraceID]byte
	traceLen, spanLen int

	// Of a call that is lowered behind a connection manager: how its attachments agree with its headers.
	checks                 bool
	claims                 []byte
	agreed, wrong, missing int
}

const maxTraceID = 64

func (l *collector) begin(t *liftTable) {
	l.table, l.block, l.taken = t, l.block[:0], 0
	l.traced, l.traceLen, l.spanLen = false, 0, 0
	l.checks, l.claims, l.agreed, l.wrong, l.missing = false, nil, 0, 0, 0
}

// take looks at one attachment.
func (l *collector) take(k, v []byte) {
	if len(k) == 0 || len(v) > maxAttachmentValue {
		return
	}
	name := k
	if len(k) > len(baggage) && string(k[:len(baggage)]) == baggage {
		name = k[len(baggage):]
	}
	for i, a := range l.table.conf.Attachments {
		if len(a) == len(name) && a == string(name) || len(a) == len(k) && a == string(k) {
			if l.taken>>i&1 == 0 {
				l.taken |= 1 << i
				l.text = appendEscaped(l.text[:0], v)
				before := len(l.block)
				if l.add(l.table.headers[i], l.text); l.checks && len(l.block) > before {
					l.compare(l.table.headers[i], l.text)
				}
			}
			return
		}
	}
	switch k[0] | 0x20 {
	case 't', 'b', 'x':
		for _, h := range traceHeaders {
			if len(k) == len(h) && equalFold(k, h) && visible(v) {
				l.traced = true
				l.add(h, v)
				return
			}
		}
	case 'r':
		if len(k) < len(sofa) || string(k[:len(sofa)]) != sofa {
			return
		}
		switch rest := k[len(sofa):]; {
		case len(rest) == len("sofaTraceId") && string(rest) == "sofaTraceId":
			l.traceLen = copy(l.traceID[:], v)
		case len(rest) == len("sofaRpcId") && string(rest) == "sofaRpcId":
			l.spanLen = copy(l.spanID[:], v)
		}
	}
}

// traceHeaders are the trace contexts that Envoy's tracers read: W3C's, B3 in one header and in several.
var traceHeaders = [...]string{"traceparent", "tracestate", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags"}

func (l *collector) add(name string, value []byte) {
	if len(l.block)+len(name)+len(value)+8 <= maxAttachmentBlock {
		l.block = h2.AppendLiteral(l.block, name, value)
	}
}

// finish adds W3C's form of SOFATracer's context, if there is no other: its trace id is 30 hexadecimal digits (address, time, a
// counter, process), which fit; its span is a path such as 0.1.2, of which a hash has to do.
func (l *collector) finish() {
	if l.traced || l.traceLen == 0 || l.traceLen > 32 {
		return
	}
	var b [55]byte
	out := append(b[:0], "00-00000000000000000000000000000000-"...)
	zero := true
	for i, c := range l.traceID[:l.traceLen] {
		if c >= 'A' && c <= 'F' {
			c += 'a' - 'A'
		}
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return
		}
		zero = zero && c == '0'
		out[3+32-l.traceLen+i] = c
	}
	if zero {
		return
	}
	span := mix(mix(1, l.traceID[:l.traceLen]), l.spanID[:l.spanLen]) | 1
	for shift := 60; shift >= 0; shift -= 4 {
		out = append(out, hexDigits[span>>shift&15])
	}
	l.add("traceparent", append(out, "-01"...))
}

// equalFold compares k with name, which is in lower case.
func equalFold(k []byte, name string) bool {
	if len(k) != len(name) {
		return false
	}
	for i, c := range k {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != name[i] {
			return false
		}
	}
	return true
}

// visible tells whether v may be a header's value as it is.
func visible(v []byte) bool {
	for _, c := range v {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return len(v) > 0
}

// statusOf is the HTTP status of a response, so that retries and outlier detection of Envoy see a failure of the call: what the
// provider is to blame for is 5xx, and what may be tried elsewhere at no risk 503.
func statusOf(o protocol.Outcome, exceptionsFail bool) uint16 {
	switch o {
	case protocol.OutcomeException:
		if exceptionsFail {
			return 500
		}
	case protocol.OutcomeTimeout:
		return 504
	case protocol.OutcomeBadRequest:
		return 400
	case protocol.OutcomeNotFound:
		return 404
	case protocol.OutcomeOverload:
		return 503
	case protocol.OutcomeBadResponse, protocol.OutcomeError:
		return 500
	}
	return 200
}

// statusOfCode is that of a call that a policy of ours rejected.
func statusOfCode(c protocol.Code) uint16 {
	switch c {
	case protocol.CodeThrottled:
		return 429
	case protocol.CodeUnavailable:
		return 503
	case protocol.CodeDenied:
		return 403
	case protocol.CodeTimeout:
		return 504
	}
	return 500
}

// A grpcCode is how gRPC names how a call ended (google.rpc.Code).
type grpcCode uint8

const grpcOK grpcCode = 0

// grpcOf is the code of a response. Other than the HTTP status it tells that the business code threw, to be seen and not to be acted
// upon.
func grpcOf(o protocol.Outcome) grpcCode {
	switch o {
	case protocol.OutcomeException:
		return 2 // UNKNOWN
	case protocol.OutcomeBadRequest:
		return 3 // INVALID_ARGUMENT
	case protocol.OutcomeTimeout:
		return 4 // DEADLINE_EXCEEDED
	case protocol.OutcomeNotFound:
		return 12 // UNIMPLEMENTED
	case protocol.OutcomeOverload:
		return 14 // UNAVAILABLE: not begun, so Istio's own retries, which look at this whatever the content type, try elsewhere
	case protocol.OutcomeBadResponse, protocol.OutcomeError:
		return 13 // INTERNAL
	}
	return grpcOK
}

// grpcOfCode is that of a call that a policy of ours rejected.
func grpcOfCode(c protocol.Code) grpcCode {
	switch c {
	case protocol.CodeThrottled:
		return 8 // RESOURCE_EXHAUSTED
	case protocol.CodeUnavailable:
		return 14 // UNAVAILABLE
	case protocol.CodeDenied:
		return 7 // PERMISSION_DENIED
	case protocol.CodeTimeout:
		return 4 // DEADLINE_EXCEEDED
	}
	return 10 // ABORTED
}

// codeOf is the reverse of statusOfCode, for responses that are Envoy's own, with the outcome for the metrics.
func codeOf(status uint16) (protocol.Code, protocol.Outcome) {
	switch status {
	case 408, 504:
		return protocol.CodeTimeout, protocol.OutcomeTimeout
	case 429:
		return protocol.CodeThrottled, protocol.OutcomeOverload
	case 401, 403:
		return protocol.CodeDenied, protocol.OutcomeError
	case 404, 502, 503:
		return protocol.CodeUnavailable, protocol.OutcomeError
	}
	return protocol.CodeAborted, protocol.OutcomeError
}

// appendStatus appends :status.
func appendStatus(dst []byte, status uint16) []byte {
	switch status {
	case 200:
		return h2.AppendIndexed(dst, 8)
	case 400:
		return h2.AppendIndexed(dst, 12)
	case 404:
		return h2.AppendIndexed(dst, 13)
	case 500:
		return h2.AppendIndexed(dst, 14)
	}
	v := [3]byte{'0' + byte(status/100%10), '0' + byte(status/10%10), '0' + byte(status%10)}
	return h2.AppendField(dst, h2.IndexStatus, v[:])
}

// timeoutOf bounds what a call says it waits.
func timeoutOf(millis uint32) policy.Nanos {
	return policy.Nanos(min(millis, maxCallTimeout)) * 1_000_000
}
