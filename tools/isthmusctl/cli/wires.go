package cli

import (
	"strconv"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/bolt"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/dubbo"
)

// wire is a protocol that decode reads: the codec of the sidecars, and the attachments that hold what other protocols
// have in fields of the frame.
type wire struct {
	codec    protocol.Codec
	group    string // attachment with the service's group
	caller   string // attachment with the calling application
	timeout  string // attachment with the timeout in milliseconds
	variants bool   // Frame.Variant means something

	serialization func(number uint8) string // the protocol's own name of it, "" for one that it does not define
	class         func(b []byte) []byte     // the class of what a frame carries, where frames say it

	status func(status uint16) string // the protocol's own name of a status, "" for one that it does not define
	verify func(b []byte) error       // checks a whole frame's checksum, which the codec leaves to the peer; nil where there is none
}

// wires are the protocols that decode knows. A further codec is one more line.
var wires = []wire{
	{codec: dubbo.Codec{}, group: dubbo.KeyGroup, caller: dubbo.KeyCaller, timeout: dubbo.KeyTimeout, serialization: dubbo.SerializationName,
		status: dubbo.StatusName},
	{codec: bolt.Codec{}, variants: true, serialization: bolt.SerializationName, class: bolt.ClassName, status: bolt.StatusName, verify: bolt.VerifyCRC},
}

// describe fills l with what the codec read of f from b.
func (w *wire) describe(l *frameLine, f *protocol.Frame, b []byte) {
	l.Protocol = w.codec.Name()
	l.Kind = f.Kind.String()
	l.Bytes = f.Len
	if f.Len == 0 { // not even the header is there
		l.Bytes = uint64(len(b))
		return
	}
	l.ID = &f.ID
	l.Serialization, l.SerializationName = &f.Serialization, w.serialization(f.Serialization)
	if w.class != nil {
		l.Class = string(w.class(b))
	}
	if w.variants {
		l.Variant = &f.Variant
	}
	switch f.Kind {
	case protocol.KindResponse:
		l.Status = &f.Status
		l.StatusName = w.status(f.Status)
		l.Outcome = f.Outcome.String()
		l.Reply = true
	case protocol.KindHeartbeatAck:
		l.Reply = true
	}
	if f.Flaw != protocol.FlawNone {
		l.Flaw = f.Flaw.String()
	}
	l.Service = string(f.Service.Of(b))
	l.Version = string(f.Version.Of(b))
	l.Group = string(f.Group.Of(b))
	l.Method = string(f.Method.Of(b))
	l.Caller = string(f.Caller.Of(b))
	l.CallerIP = string(f.CallerIP.Of(b))
	if f.TimeoutMillis != 0 {
		l.TimeoutMillis = &f.TimeoutMillis
	}
}

// attachments adds the attachments of f to l, and what they hold of the call.
func (w *wire) attachments(l *frameLine, f *protocol.Frame, b []byte) error {
	switch f.Kind {
	case protocol.KindRequest, protocol.KindOneWay, protocol.KindResponse:
	default:
		return nil
	}
	err := w.codec.VisitAttachments(f, b, func(k, v []byte) bool {
		l.Attachments[string(k)] = string(v)
		return true
	})
	if f.Kind == protocol.KindResponse {
		return err
	}
	if l.Group == "" {
		l.Group = l.Attachments[w.group]
	}
	if l.Caller == "" {
		l.Caller = l.Attachments[w.caller]
	}
	if l.TimeoutMillis == nil {
		if n, err := strconv.ParseUint(l.Attachments[w.timeout], 10, 32); err == nil {
			millis := uint32(n)
			l.TimeoutMillis = &millis
		}
	}
	return err
}
