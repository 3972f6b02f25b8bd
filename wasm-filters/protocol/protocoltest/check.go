package protocoltest

import (
	"bytes"
	"errors"
	"fmt"
	"unsafe"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// dirty is a Frame in which every field holds something: Decode must leave nothing of it.
var dirty = protocol.Frame{
	Kind: protocol.KindEvent, Flags: 0xff, Serialization: 0xff, Variant: 0xff, Flaw: protocol.FlawTooDeep,
	Outcome: protocol.OutcomeClosed, Status: 0xffff, FlawOff: 1 << 31, Len: 1 << 63, ID: 1<<64 - 1, TimeoutMillis: 1<<32 - 1,
	Service: protocol.Span{Off: 1, Len: 1 << 30}, Version: protocol.Span{Off: 2, Len: 1 << 30}, Group: protocol.Span{Off: 3, Len: 1 << 30},
	Method: protocol.Span{Off: 4, Len: 1 << 30}, Caller: protocol.Span{Off: 5, Len: 1 << 30}, CallerIP: protocol.Span{Off: 6, Len: 1 << 30},
}

// decodeChecked decodes b into a dirty frame and checks all that holds for any bytes. The bytes behind b are out of
// reach, so a codec that looks at them panics.
func decodeChecked(c protocol.Codec, b []byte) (f protocol.Frame, need int, decodeErr, err error) {
	f = dirty
	b = b[:len(b):len(b)]
	need, decodeErr = c.Decode(&f, b)
	var clean protocol.Frame
	if n, e := c.Decode(&clean, b); n != need || !errors.Is(e, decodeErr) || clean != f {
		return f, need, decodeErr, fmt.Errorf("decode does not reset the frame: %+v from a used one, %+v from a new one", f, clean)
	}
	switch {
	case decodeErr != nil:
		if need != 0 {
			return f, need, decodeErr, fmt.Errorf("need %d together with %v", need, decodeErr)
		}
		if !errors.Is(decodeErr, protocol.ErrNotProtocol) && !errors.Is(decodeErr, protocol.ErrLength) {
			return f, need, decodeErr, fmt.Errorf("decode: %v, which does not mean that framing is lost", decodeErr)
		}
		if uint64(f.FlawOff) >= uint64(len(b)) {
			return f, need, decodeErr, fmt.Errorf("%v at %d of %d bytes", decodeErr, f.FlawOff, len(b))
		}
	case need < 0 || need > 0 && need <= len(b):
		return f, need, nil, fmt.Errorf("need %d with %d bytes", need, len(b))
	case need > 0 && f.Len > 0 && uint64(need) > f.Len:
		return f, need, nil, fmt.Errorf("need %d of a frame of %d bytes", need, f.Len)
	case need == 0 && f.Len == 0:
		return f, need, nil, errors.New("a frame of 0 bytes")
	}
	if decodeErr == nil {
		end := min(uint64(len(b)), f.Len)
		for _, s := range spans(&f) {
			if s.span.Off == 0 && s.span.Len != 0 || s.span.Off != 0 && uint64(s.span.Off)+uint64(s.span.Len) > end {
				return f, need, nil, fmt.Errorf("%s is %+v, the frame ends at %d", s.name, s.span, end)
			}
		}
		if f.Flaw != protocol.FlawNone && uint64(f.FlawOff) > f.Len {
			return f, need, nil, fmt.Errorf("flaw %v at %d of %d bytes", f.Flaw, f.FlawOff, f.Len)
		}
		if f.Flaw == protocol.FlawNone && f.FlawOff != 0 {
			return f, need, nil, fmt.Errorf("no flaw, at %d", f.FlawOff)
		}
	}
	if decodeErr == nil && need == 0 {
		switch f.Kind {
		case protocol.KindResponse:
			if f.Outcome == protocol.OutcomeNone || f.Outcome >= protocol.OutcomeRejected {
				return f, need, nil, fmt.Errorf("a response with outcome %v", f.Outcome)
			}
		default:
			if f.Outcome != protocol.OutcomeNone {
				return f, need, nil, fmt.Errorf("outcome %v of a frame that is no response", f.Outcome)
			}
		}
		switch f.Kind {
		case protocol.KindRequest, protocol.KindOneWay:
			if f.Status != 0 {
				return f, need, nil, fmt.Errorf("status %d of a request", f.Status)
			}
		default:
			for _, s := range spans(&f) {
				if s.span != (protocol.Span{}) {
					return f, need, nil, fmt.Errorf("%s in a frame that is no request", s.name)
				}
			}
		}
	}
	return f, need, decodeErr, nil
}

// sameHead tells whether the fields that are known with the header are the same.
func sameHead(a, b *protocol.Frame) bool {
	return a.Kind == b.Kind && a.ID == b.ID && a.Len == b.Len && a.Status == b.Status && a.Serialization == b.Serialization
}

// visitChecked visits the attachments of f and checks all that holds for any bytes.
func visitChecked(c protocol.Codec, f protocol.Frame, b []byte) (pairs int, visitErr, err error) {
	b = b[:len(b):len(b)]
	g := f
	visitErr = c.VisitAttachments(&g, b, func(k, v []byte) bool {
		pairs++
		if !within(k, b) || !within(v, b) {
			err = fmt.Errorf("pair %d (%q, %q) is not a view of the frame", pairs, k, v)
		}
		return true
	})
	if err != nil {
		return pairs, visitErr, err
	}
	if uint64(len(b)) < f.Len {
		if !errors.Is(visitErr, protocol.ErrShort) || pairs != 0 {
			return pairs, visitErr, fmt.Errorf("VisitAttachments of %d of %d bytes: %d pairs, %v; want ErrShort", len(b), f.Len, pairs, visitErr)
		}
		return pairs, visitErr, nil
	}
	switch {
	case visitErr == nil:
	case errors.Is(visitErr, protocol.ErrMalformed), errors.Is(visitErr, protocol.ErrTooDeep), errors.Is(visitErr, protocol.ErrSerialization):
		if uint64(g.FlawOff) > g.Len {
			return pairs, visitErr, fmt.Errorf("VisitAttachments: %v at %d of %d bytes", visitErr, g.FlawOff, g.Len)
		}
	default:
		return pairs, visitErr, fmt.Errorf("VisitAttachments: %w", visitErr)
	}
	// Once more is the same.
	n := 0
	if e := c.VisitAttachments(&g, b, func(k, v []byte) bool { n++; return true }); !errors.Is(e, visitErr) || n != pairs {
		return pairs, visitErr, fmt.Errorf("VisitAttachments: %d pairs, %v; then %d, %v", pairs, visitErr, n, e)
	}
	// A visitor that has enough is not called again, and that is no error.
	for _, stop := range []int{1, pairs} {
		if pairs == 0 {
			break
		}
		n := 0
		if e := c.VisitAttachments(&g, b, func(k, v []byte) bool { n++; return n < stop }); e != nil || n != stop {
			return pairs, visitErr, fmt.Errorf("VisitAttachments went on to %d after pair %d, %v", n, stop, e)
		}
	}
	return pairs, visitErr, nil
}

// within tells whether s is a part of b.
func within(s, b []byte) bool {
	if len(s) == 0 {
		return true
	}
	at, start := uintptr(unsafe.Pointer(unsafe.SliceData(s))), uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	return at >= start && at+uintptr(len(s)) <= start+uintptr(len(b))
}

// checkAnswers checks what the codec writes in the place of the request f and of its answer.
func checkAnswers(c protocol.Codec, f *protocol.Frame, code protocol.Code, msg string, maxReject int) error {
	const before = "bytes before"
	bare := *f // the request's bytes are gone
	bare.Service, bare.Version, bare.Group = protocol.Span{}, protocol.Span{}, protocol.Span{}
	bare.Method, bare.Caller, bare.CallerIP = protocol.Span{}, protocol.Span{}, protocol.Span{}
	for name, out := range map[string][2][]byte{
		"AppendReject": {c.AppendReject([]byte(before), f, code, msg), c.AppendReject(nil, &bare, code, msg)},
		"AppendProbe":  {c.AppendProbe([]byte(before), f), c.AppendProbe(nil, &bare)},
	} {
		b, alone := out[0], out[1]
		if !bytes.HasPrefix(b, []byte(before)) {
			return fmt.Errorf("%s lost what dst held", name)
		}
		b = b[len(before):]
		if !bytes.Equal(b, alone) {
			return fmt.Errorf("%s depends on more than ID, Flags, Serialization and Variant", name)
		}
		if len(b) > maxReject {
			return fmt.Errorf("%s: %d bytes for a message of %d", name, len(b), len(msg))
		}
		g, need, decodeErr, err := decodeChecked(c, b)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if need != 0 || decodeErr != nil || g.Len != uint64(len(b)) || g.Flaw != protocol.FlawNone {
			return fmt.Errorf("%s: not one whole frame: need %d, %v, %+v of %d bytes", name, need, decodeErr, g, len(b))
		}
		if g.ID != f.ID {
			return fmt.Errorf("%s: id %d, the request has %d", name, g.ID, f.ID)
		}
		if _, visitErr, err := visitChecked(c, g, b); err != nil || visitErr != nil {
			return fmt.Errorf("%s: %w", name, errors.Join(visitErr, err))
		}
		if name == "AppendProbe" {
			if g.Kind != protocol.KindHeartbeat {
				return fmt.Errorf("%s: kind %d, want a heartbeat that asks for an answer", name, g.Kind)
			}
			continue
		}
		if g.Kind != protocol.KindResponse || g.Outcome == protocol.OutcomeOK {
			return fmt.Errorf("%s, code %d: kind %v, outcome %v; want a failed response", name, code, g.Kind, g.Outcome)
		}
	}
	return nil
}

// checkStream checks all that holds for any bytes: b may hold a frame, more than one, a part of one, or none.
func checkStream(c protocol.Codec, b []byte, maxNeed int) error {
	given := bytes.Clone(b)
	sniffed := c.Sniff(b)
	if sniffed > protocol.MatchMore {
		return fmt.Errorf("sniff: %d", sniffed)
	}
	for range 64 {
		f, whole, decodeErr, err := decodeChecked(c, b)
		if err != nil {
			return err
		}
		// Fed with just as much as it asks for, the codec must come to the same end.
		var partial protocol.Frame
		n := 0
		for {
			g, need, stepErr, err := decodeChecked(c, b[:n])
			if err != nil {
				return fmt.Errorf("with %d bytes: %w", n, err)
			}
			if maxNeed > 0 && need > maxNeed {
				return fmt.Errorf("with %d bytes: need %d, more than %d", n, need, maxNeed)
			}
			if partial.Len > 0 && stepErr == nil && !sameHead(&partial, &g) {
				return fmt.Errorf("with %d bytes: %+v, before it %+v", n, g, partial)
			}
			partial = g
			if need > len(b) {
				if whole == 0 && decodeErr == nil && f.Flaw == protocol.FlawNone {
					return fmt.Errorf("asks for %d bytes with %d, is content with %d: %+v", need, n, len(b), f)
				}
				break
			}
			if need == 0 {
				if !errors.Is(decodeErr, stepErr) || stepErr == nil && (decodeErr != nil || whole != 0 || g != f) {
					return fmt.Errorf("with %d bytes: %v, %+v; with %d: need %d, %v, %+v", n, stepErr, g, len(b), whole, decodeErr, f)
				}
				break
			}
			h, less, lessErr, err := decodeChecked(c, b[:need-1])
			if err != nil {
				return fmt.Errorf("with %d bytes: %w", need-1, err)
			}
			if less == 0 && lessErr == nil && h.Flaw == protocol.FlawNone { // a flaw may show earlier
				return fmt.Errorf("asks for %d bytes with %d, is content with %d: %+v", need, n, need-1, h)
			}
			n = need
		}
		if whole > 0 || decodeErr != nil {
			break
		}
		if _, _, err := visitChecked(c, f, b); err != nil {
			return err
		}
		if f.Kind == protocol.KindRequest || f.Kind == protocol.KindOneWay {
			if err := checkAnswers(c, &f, protocol.Code(f.ID%6), "no more of this", 1<<16); err != nil {
				return err
			}
		}
		if f.Len >= uint64(len(b)) {
			break
		}
		b = b[f.Len:]
	}
	if len(b) <= len(given) && !bytes.Equal(b, given[len(given)-len(b):]) {
		return errors.New("the codec wrote into its input")
	}
	return nil
}
