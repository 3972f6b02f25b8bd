package h2

import "encoding/binary"

// Kind is what an Event tells.
type Kind uint8

// The kinds of events. EventNone is a frame that is none of the reader's business.
const (
	EventNone     Kind = iota
	EventHeaders       // Data is a header block, whole; it must be read with Session.Decoder, also where nobody wants it
	EventData          // Data is what came in a stream
	EventReset         // the peer gave a stream up, for Code
	EventWindow        // a stream's window grows by N
	EventInitial       // the window of every stream grows by N, which may be negative; new ones begin with Session.InitialWindow
	EventConn          // the connection's window has grown
	EventGoAway        // the peer does not look at streams after N, for Code
	EventPong          // the answer to a PING whose data was N
	EventSettings      // the peer's settings, other than the window
)

// Event is what one frame means to those who keep the streams.
type Event struct {
	Kind   Kind
	Stream uint32
	End    bool   // nothing follows in the stream
	Data   []byte // a view of what Read was given, or of the Session's memory, until the next call
	N      int64
	Code   Code
}

// Session is one end of a connection. Begin comes first.
type Session struct {
	// Decoder reads the peer's header blocks.
	Decoder Decoder
	// SendWindow is how many bytes of DATA the connection may carry to the peer yet. Who sends them counts them off.
	SendWindow int64
	// InitialWindow is the window that each new stream has towards the peer.
	InitialWindow int64
	// MaxStreams is how many streams the peer takes at once: firstStreams as long as it has not spoken.
	MaxStreams uint32

	server   bool
	settled  bool // the peer's SETTINGS came, which must be its first frame
	receive  int64
	block    []byte // a header block, as far as it came
	blockOf  uint32 // its stream; 0: none is coming
	blockEnd bool
	blocks   int // frames that it took
}

// firstStreams is what every peer should take at least (RFC 9113, section 6.5.2).
const firstStreams = 100

const (
	// maxBlock bounds a header block in bytes.
	maxBlock = 64 << 10
	// maxBlockFrames bounds the frames of a header block: empty ones would cost nothing but time.
	maxBlockFrames = 64
	// renew is what is left of the connection's window when it is renewed.
	renew = MaxWindow / 2
)

// The identifiers of settings (RFC 9113, section 6.5.2).
const (
	settingTableSize     = 1
	settingPush          = 2
	settingMaxStreams    = 3
	settingInitialWindow = 4
	settingMaxFrame      = 5
	settingMaxList       = 6
)

// Begin makes s ready for a connection and appends what our end says first: a client's preface, or the settings of a server
// that takes maxStreams streams at once.
func (s *Session) Begin(dst []byte, server bool, maxStreams uint32) []byte {
	d := &s.Decoder
	*s = Session{SendWindow: DefaultWindow, InitialWindow: DefaultWindow, MaxStreams: firstStreams, server: server, receive: MaxWindow, block: s.block[:0],
		Decoder: Decoder{nameText: d.nameText, text: d.text, table: table{data: d.data[:0], entries: d.entries[:0]}}}
	settings := [...]struct {
		id    uint16
		value uint32
	}{{settingInitialWindow, MaxWindow}, {settingMaxList, MaxHeaderList}, {settingPush, 0}}
	if server {
		settings[2].id, settings[2].value = settingMaxStreams, maxStreams
	} else {
		dst = append(dst, Preface...)
	}
	dst = AppendHeader(dst, Header{Length: 6 * uint32(len(settings)), Type: TypeSettings})
	for _, v := range settings {
		dst = binary.BigEndian.AppendUint16(dst, v.id)
		dst = binary.BigEndian.AppendUint32(dst, v.value)
	}
	return appendWindowUpdate(dst, 0, MaxWindow-DefaultWindow)
}

// Read reads the frame that b begins with, which the peer sent; n is its length, 0 where b is not all of it. What we owe the
// peer for it is appended to owed. A code other than NoError ends the connection.
func (s *Session) Read(ev *Event, b, owed []byte) (n int, _ []byte, code Code) {
	*ev = Event{}
	if len(b) < HeaderLen {
		return 0, owed, NoError
	}
	h := ParseHeader(b)
	if h.Length > MaxFrame {
		return 0, owed, FrameSizeError
	}
	n = HeaderLen + int(h.Length)
	switch {
	case !s.settled && (h.Type != TypeSettings || h.Flags&FlagAck != 0),
		s.blockOf != 0 && (h.Type != TypeContinuation || h.Stream != s.blockOf):
		return 0, owed, ProtocolError
	case len(b) < n:
		return 0, owed, NoError
	}
	p := b[HeaderLen:n:n]
	ev.Stream = h.Stream
	// The usual ones, with nothing around what they carry.
	switch {
	case h.Type == TypeHeaders && h.Flags&^FlagEndStream == FlagEndHeaders && h.Stream&1 != 0:
		ev.Kind, ev.Data, ev.End = EventHeaders, p, h.Flags&FlagEndStream != 0
		return n, owed, NoError
	case h.Type == TypeData && h.Flags&FlagPadded == 0 && h.Stream != 0 && s.receive-int64(len(p)) >= renew:
		s.receive -= int64(len(p))
		ev.Kind, ev.Data, ev.End = EventData, p, h.Flags&FlagEndStream != 0
		return n, owed, NoError
	}
	switch h.Type {
	case TypeData:
		owed, code = s.data(ev, h, p, owed)
	case TypeHeaders:
		code = s.headers(ev, h, p)
	case TypeContinuation:
		code = s.continuation(ev, h, p)
	case TypePriority:
		if h.Stream == 0 {
			code = ProtocolError
		} else if len(p) != 5 {
			code = FrameSizeError
		}
	case TypeResetStream:
		if len(p) != 4 {
			return 0, owed, FrameSizeError
		}
		if h.Stream == 0 {
			return 0, owed, ProtocolError
		}
		ev.Kind, ev.Code = EventReset, Code(binary.BigEndian.Uint32(p))
	case TypeSettings:
		owed, code = s.settings(ev, h, p, owed)
	case TypePushPromise:
		code = ProtocolError
	case TypePing:
		if len(p) != 8 {
			return 0, owed, FrameSizeError
		}
		if h.Stream != 0 {
			return 0, owed, ProtocolError
		}
		if h.Flags&FlagAck != 0 {
			ev.Kind, ev.N = EventPong, int64(binary.BigEndian.Uint64(p))
			break
		}
		owed = AppendHeader(owed, Header{Length: 8, Type: TypePing, Flags: FlagAck})
		owed = append(owed, p...)
	case TypeGoAway:
		if len(p) < 8 {
			return 0, owed, FrameSizeError
		}
		if h.Stream != 0 {
			return 0, owed, ProtocolError
		}
		ev.Kind, ev.N = EventGoAway, int64(binary.BigEndian.Uint32(p)&^(1<<31))
		ev.Code = Code(binary.BigEndian.Uint32(p[4:]))
	case TypeWindowUpdate:
		code = s.window(ev, h, p)
	}
	if code != NoError {
		return 0, owed, code
	}
	return n, owed, NoError
}

// unpad takes the padding off the payload of a DATA or HEADERS frame.
func unpad(h Header, p []byte) ([]byte, bool) {
	if h.Flags&FlagPadded == 0 {
		return p, true
	}
	if len(p) == 0 || int(p[0]) >= len(p) {
		return nil, false
	}
	return p[1 : len(p)-int(p[0])], true
}

func (s *Session) data(ev *Event, h Header, p, owed []byte) ([]byte, Code) {
	if h.Stream == 0 {
		return owed, ProtocolError
	}
	if s.receive -= int64(len(p)); s.receive < 0 {
		return owed, FlowControlError
	}
	if s.receive < renew {
		owed = appendWindowUpdate(owed, 0, uint32(MaxWindow-s.receive))
		s.receive = MaxWindow
	}
	p, ok := unpad(h, p)
	if !ok {
		return owed, ProtocolError
	}
	ev.Kind, ev.Data, ev.End = EventData, p, h.Flags&FlagEndStream != 0
	return owed, NoError
}

func (s *Session) headers(ev *Event, h Header, p []byte) Code {
	if h.Stream == 0 || h.Stream%2 == 0 {
		return ProtocolError // streams with even ids are a server's own
	}
	p, ok := unpad(h, p)
	if !ok {
		return ProtocolError
	}
	if h.Flags&FlagPriority != 0 {
		if len(p) < 5 {
			return FrameSizeError
		}
		p = p[5:]
	}
	ev.End = h.Flags&FlagEndStream != 0
	if h.Flags&FlagEndHeaders != 0 {
		ev.Kind, ev.Data = EventHeaders, p
		return NoError
	}
	s.block = append(s.block[:0], p...)
	s.blockOf, s.blockEnd, s.blocks = h.Stream, ev.End, 1
	return NoError
}

func (s *Session) continuation(ev *Event, h Header, p []byte) Code {
	if s.blockOf == 0 {
		return ProtocolError
	}
	if s.blocks++; len(s.block)+len(p) > maxBlock || s.blocks > maxBlockFrames {
		return EnhanceYourCalm
	}
	s.block = append(s.block, p...)
	if h.Flags&FlagEndHeaders != 0 {
		ev.Kind, ev.Data, ev.End = EventHeaders, s.block, s.blockEnd
		s.blockOf = 0
	}
	return NoError
}

func (s *Session) settings(ev *Event, h Header, p, owed []byte) ([]byte, Code) {
	switch {
	case h.Stream != 0:
		return owed, ProtocolError
	case h.Flags&FlagAck != 0 && len(p) > 0, len(p)%6 != 0:
		return owed, FrameSizeError
	case h.Flags&FlagAck != 0:
		return owed, NoError
	}
	if !s.settled {
		s.settled, s.MaxStreams = true, MaxStream
	}
	ev.Kind = EventSettings
	for ; len(p) > 0; p = p[6:] {
		v := binary.BigEndian.Uint32(p[2:])
		switch binary.BigEndian.Uint16(p) {
		case settingPush:
			if v > 1 || v == 1 && !s.server {
				return owed, ProtocolError
			}
		case settingMaxStreams:
			s.MaxStreams = min(v, MaxStream)
		case settingInitialWindow:
			if v > MaxWindow {
				return owed, FlowControlError
			}
			ev.Kind = EventInitial
			ev.N += int64(v) - s.InitialWindow
			s.InitialWindow = int64(v)
		case settingMaxFrame:
			// Never less than what we send.
			if v < MaxFrame || v >= 1<<24 {
				return owed, ProtocolError
			}
		}
	}
	return AppendHeader(owed, Header{Type: TypeSettings, Flags: FlagAck}), NoError
}

func (s *Session) window(ev *Event, h Header, p []byte) Code {
	if len(p) != 4 {
		return FrameSizeError
	}
	n := int64(binary.BigEndian.Uint32(p) &^ (1 << 31))
	if n == 0 {
		return ProtocolError
	}
	if h.Stream != 0 {
		ev.Kind, ev.N = EventWindow, n
		return NoError
	}
	if s.SendWindow += n; s.SendWindow > MaxWindow {
		return FlowControlError
	}
	ev.Kind = EventConn
	return NoError
}
