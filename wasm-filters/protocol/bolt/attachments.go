package bolt

import (
	"bytes"
	"encoding/binary"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// Keys of the header section (com.alipay.sofa.rpc.common.RemotingConstants, TracerCompatibleConstants). A nested map, such as
// the baggage, is flattened: each of its keys is prefixed with the map's name and a dot.
const (
	// KeyService and KeyTargetService hold the service's unique name, interface:version[:uniqueId]; the first one wins.
	KeyService       = "service"
	KeyTargetService = "sofa_head_target_service"
	// KeyMethod holds the method's name.
	KeyMethod = "sofa_head_method_name"
	// KeyTargetApp holds the provider's application, where the consumer knows it.
	KeyTargetApp = "sofa_head_target_app"
	// KeyResponseError is "true" in the response of a call that failed although its status is 0.
	KeyResponseError = "sofa_head_response_error"
	// KeyGeneric is there in generic invocations: "0" where the result becomes an object of its Java class ($invoke), "1" or
	// "2" where it becomes a GenericObject ($genericInvoke).
	KeyGeneric = "sofa_head_generic_type"
	// KeyInvokeType is "sync", "future", "callback" or "oneway".
	KeyInvokeType = "type"
	// KeyProtocol is "bolt".
	KeyProtocol = "protocol"
	// KeyApp holds the calling application, and KeyCallerApp too, of clients other than SOFARPC 5.13.
	KeyApp       = "app"
	KeyCallerApp = "rpc_trace_context.sofaCallerApp"
	// KeyCallerIP holds the calling address.
	KeyCallerIP = "rpc_trace_context.sofaCallerIp"
	// KeyTraceID and KeySpanID hold the trace, unless KeyTrace does.
	KeyTraceID = "rpc_trace_context.sofaTraceId"
	KeySpanID  = "rpc_trace_context.sofaRpcId"
	// KeyTrace holds the whole span context in one string, tcid=…&spid=…&pspid=…&sample=…, towards a provider whose
	// registration says rpcVer 50100 or later (RpcSofaTracer.clientBeforeSend).
	KeyTrace = "new_rpc_trace_context"
	// KeyBaggage holds the baggage of the trace for providers older than that, KEY=VALUE between ampersands.
	KeyBaggage = "rpc_trace_context.sofaPenAttrs"
	// PrefixRequestBaggage and PrefixResponseBaggage begin the keys of what the application attached.
	PrefixRequestBaggage  = "rpc_req_baggage."
	PrefixResponseBaggage = "rpc_resp_baggage."
)

// genericNormal is RemotingConstants.SERIALIZE_FACTORY_NORMAL.
const genericNormal = "0"

// pairs walks over a header section as SOFARPC's SimpleMapSerializer does.
type pairs struct {
	b    []byte // the frame
	off  uint32
	end  uint32 // of the section
	flaw uint32 // the offset of the first flaw, 0 for none
}

// next returns the next pair without a null in it.
func (p *pairs) next() (k, v protocol.Span, ok bool) {
	for p.off < p.end {
		start := p.off
		k, kNull, ok := p.text()
		if !ok {
			return k, v, false
		}
		if p.off == p.end {
			p.mark(start) // a key without a value: SOFARPC drops it, too
			return k, v, false
		}
		v, vNull, ok := p.text()
		if !ok {
			return k, v, false
		}
		if !kNull && !vNull {
			return k, v, true
		}
	}
	return k, v, false
}

// text reads one length and the bytes behind it. The writer never produces a null, but its format has one: -1. What is
// below -1 SOFARPC takes for null as well; we do the same, lest we see other pairs than the provider, and call it a flaw.
func (p *pairs) text() (s protocol.Span, null, ok bool) {
	at := p.off
	if p.end-at < 4 {
		p.mark(at)
		return s, false, false
	}
	n := int32(binary.BigEndian.Uint32(p.b[at:]))
	p.off = at + 4
	if n < 0 {
		if n != -1 {
			p.mark(at)
		}
		return s, true, true
	}
	if uint32(n) > p.end-p.off {
		p.mark(at)
		return s, false, false
	}
	s = protocol.Span{Off: p.off, Len: uint32(n)}
	p.off += uint32(n)
	return s, false, true
}

func (p *pairs) mark(at uint32) {
	if p.flaw == 0 {
		p.flaw = at
	}
}

// pairs returns a walk over the header section of the frame b; b reaches to the section's end.
func (h *fixed) pairs(b []byte) pairs {
	end := h.head()
	return pairs{b: b[:end], off: h.size + h.class, end: end}
}

// readRequest fills the routing fields. b reaches to the end of the header section.
func readRequest(f *protocol.Frame, h *fixed, b []byte) {
	class := b[h.size : h.size+h.class]
	if string(class) != sofaRequest {
		f.Flags |= flagForeign
	}
	var service, target, app, callerApp protocol.Span
	p := h.pairs(b)
	for {
		k, v, ok := p.next()
		if !ok {
			break
		}
		switch string(b[k.Off : k.Off+k.Len]) {
		case KeyService:
			service = v
		case KeyTargetService:
			target = v
		case KeyMethod:
			f.Method = v
		case KeyApp:
			app = v
		case KeyCallerApp:
			callerApp = v
		case KeyCallerIP:
			f.CallerIP = v
		case KeyGeneric:
			if string(b[v.Off:v.Off+v.Len]) != genericNormal {
				f.Flags |= flagMessage
			}
		case KeyInvokeType:
			if string(b[v.Off:v.Off+v.Len]) == "callback" {
				f.Flags |= flagMessage
			}
		}
	}
	if p.flaw != 0 && f.Flags&flagForeign == 0 {
		f.Flaw, f.FlawOff = protocol.FlawMalformed, p.flaw
	}
	if f.Flags&flagForeign != 0 && p.flaw != 0 {
		// Not pairs, but the program's own bytes: nothing that was found means anything.
		service, target, app, callerApp = protocol.Span{}, protocol.Span{}, protocol.Span{}, protocol.Span{}
		f.Method, f.CallerIP = protocol.Span{}, protocol.Span{}
	}
	f.Caller = app
	if len(app.Of(b)) == 0 {
		f.Caller = callerApp
	}
	if len(bytes.TrimSpace(service.Of(b))) == 0 {
		service = target
	}
	switch {
	case service.Off != 0:
		f.Service, f.Version, f.Group = splitUniqueName(b, service)
	case f.Flags&flagForeign != 0 && h.class > 0:
		f.Service = protocol.Span{Off: h.size, Len: h.class}
	}
}

// splitUniqueName splits interface:version[:uniqueId] (ConfigUniqueNameGenerator). A uniqueId may contain colons.
func splitUniqueName(b []byte, name protocol.Span) (iface, version, uniqueID protocol.Span) {
	iface = name
	i := bytes.IndexByte(name.Of(b), ':')
	if i < 0 {
		return iface, version, uniqueID
	}
	iface, version = cut(name, i)
	if i = bytes.IndexByte(version.Of(b), ':'); i >= 0 {
		version, uniqueID = cut(version, i)
	}
	return iface, version, uniqueID
}

// cut splits s around its byte i.
func cut(s protocol.Span, i int) (before, after protocol.Span) {
	n := uint32(i)
	return protocol.Span{Off: s.Off, Len: n}, protocol.Span{Off: s.Off + n + 1, Len: s.Len - n - 1}
}

// readResponse finds out whether a response of status 0 carries a failure. b reaches to the end of the header section; need
// is how much of b the answer takes if it takes more.
func readResponse(f *protocol.Frame, h *fixed, b []byte) (need int) {
	failed := false
	p := h.pairs(b)
	for {
		k, v, ok := p.next()
		if !ok {
			break
		}
		if string(b[k.Off:k.Off+k.Len]) == KeyResponseError {
			failed = string(b[v.Off:v.Off+v.Len]) == "true"
		}
	}
	own := string(b[h.size:h.size+h.class]) == sofaResponse
	if p.flaw != 0 && own {
		f.Flaw, f.FlawOff = protocol.FlawMalformed, p.flaw
	}
	if !failed {
		f.Outcome = protocol.OutcomeOK
		return 0
	}
	// The content of a SofaResponse always begins with the same bytes, up to isError. It is true where the provider's
	// framework failed and false where the business code threw. Protobuf does not tell.
	const isError = len(responseObject)
	if own && h.codec == SerializationHessian && h.content > uint32(isError) {
		content := int(h.head())
		if len(b) <= content+isError {
			return content + isError + 1
		}
		if string(b[content:content+isError]) == responseObject && b[content+isError] == 'T' {
			f.Outcome = protocol.OutcomeError
			return 0
		}
	}
	f.Outcome = protocol.OutcomeException
	return 0
}

// VisitAttachments calls fn for each pair of the header section of a request or response, in the order of the frame. Of
// two equal keys the later one holds for SOFARPC. Pairs with a null are skipped. The header section of a frame that is not
// SOFARPC's (see the package's documentation) is visited if it consists of pairs, and otherwise counts as empty.
func (Codec) VisitAttachments(f *protocol.Frame, b []byte, fn func(k, v []byte) bool) error {
	var h fixed
	need, at, err := parse(&h, b)
	switch {
	case err != nil:
		f.FlawOff = at
		return err
	case need > 0 || uint64(len(b)) < h.total():
		return protocol.ErrShort
	}
	own := sofaRequest
	switch h.kind() {
	case protocol.KindRequest, protocol.KindOneWay:
	case protocol.KindResponse:
		own = sofaResponse
	default:
		return nil
	}
	if string(b[h.size:h.size+h.class]) != own {
		p := h.pairs(b)
		for _, _, ok := p.next(); ok; _, _, ok = p.next() {
		}
		if p.flaw != 0 {
			return nil
		}
	}
	p := h.pairs(b)
	for k, v, ok := p.next(); ok; k, v, ok = p.next() {
		if !fn(b[k.Off:k.Off+k.Len:k.Off+k.Len], b[v.Off:v.Off+v.Len:v.Off+v.Len]) {
			return nil
		}
	}
	if p.flaw != 0 {
		f.Flaw, f.FlawOff = protocol.FlawMalformed, p.flaw
		return protocol.ErrMalformed
	}
	return nil
}
