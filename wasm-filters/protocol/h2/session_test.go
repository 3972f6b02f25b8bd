package h2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// An end is one end of a connection whose other end is net/http's, which is golang.org/x/net's too.
type end struct {
	t      *testing.T
	c      net.Conn
	s      Session
	in     []byte
	fields map[uint32][]string
	bodies map[uint32][]byte
	ended  map[uint32]bool
	window map[uint32]int64
}

func newEnd(t *testing.T, c net.Conn) *end {
	return &end{t: t, c: c, fields: map[uint32][]string{}, bodies: map[uint32][]byte{}, ended: map[uint32]bool{}, window: map[uint32]int64{}}
}

var errSession = errors.New("session")

// step reads some bytes, and answers what they ask for. A stream's events are kept.
func (e *end) step() error {
	var buf [4096]byte
	k, err := e.c.Read(buf[:])
	if err != nil {
		return err
	}
	e.in = append(e.in, buf[:k]...)
	var ev Event
	for {
		n, owed, code := e.s.Read(&ev, e.in, nil)
		if code != NoError {
			return fmt.Errorf("%w: %s", errSession, code)
		}
		if n == 0 {
			return nil
		}
		switch ev.Kind {
		case EventHeaders:
			got, err := decode(&e.s.Decoder, ev.Data)
			if err != nil {
				return err
			}
			if _, ok := e.window[ev.Stream]; !ok {
				e.window[ev.Stream] = e.s.InitialWindow
			}
			e.fields[ev.Stream] = append(e.fields[ev.Stream], got...)
			e.ended[ev.Stream] = ev.End
		case EventData:
			e.bodies[ev.Stream] = append(e.bodies[ev.Stream], ev.Data...)
			e.ended[ev.Stream] = ev.End
		case EventWindow:
			e.window[ev.Stream] += ev.N
		case EventInitial:
			for id := range e.window {
				e.window[id] += ev.N
			}
		}
		e.in = e.in[n:]
		if len(owed) > 0 {
			if _, err := e.c.Write(owed); err != nil {
				return err
			}
		}
	}
}

// send sends data in a stream as the windows allow, and steps where they do not.
func (e *end) send(stream uint32, data []byte) {
	e.t.Helper()
	for {
		k := int(max(0, min(int64(len(data)), e.s.SendWindow, e.window[stream])))
		last := k == len(data)
		if k > 0 || last {
			if _, err := e.c.Write(AppendData(nil, stream, data[:k], last)); err != nil {
				e.t.Fatal(err)
			}
			e.s.SendWindow -= int64(k)
			e.window[stream] -= int64(k)
			data = data[k:]
		}
		if last {
			return
		}
		if err := e.step(); err != nil {
			e.t.Fatal(err)
		}
	}
}

// clear2 is HTTP/2 without TLS, and nothing else.
func clear2() *http.Protocols {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

// tcp returns both ends of a connection with buffers, as net.Pipe has none.
func tcp(t *testing.T) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err = net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if b, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// TestClient speaks to net/http's server: many streams, and bodies longer than its windows in both directions.
func TestClient(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Protocols: clear2(), HTTP2: &http.HTTP2Config{MaxReceiveBufferPerConnection: 70000, MaxReceiveBufferPerStream: 66000},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			w.Header().Set("x-path", r.Method+" "+r.Host+r.URL.Path)
			w.Header().Set("x-isthmus-outcome", r.Header.Get("x-isthmus-service"))
			w.WriteHeader(503)
			_, _ = w.Write(body)
		})}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	defer func() { srv.Close(); <-served }()
	ours, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	e := newEnd(t, ours)
	if _, err := ours.Write(e.s.Begin(nil, false, 0)); err != nil {
		t.Fatal(err)
	}
	if err := e.step(); err != nil { // its settings, and so its windows
		t.Fatal(err)
	}
	for i, size := range []int{0, 1, 16384, 16385, 300_000, 5} {
		id := uint32(2*i + 1)
		block := AppendIndexed(nil, IndexMethodPost)
		block = AppendIndexed(block, IndexSchemeHTTP)
		block = AppendField(block, IndexAuthority, []byte("host"))
		block = AppendField(block, IndexPath, []byte("/demo.A/m"))
		block = AppendLiteral(block, "x-isthmus-service", []byte(fmt.Sprint("service", i)))
		block = AppendLiteral(block, "x-long", bytes.Repeat([]byte("l"), i*6000)) // in several frames
		e.window[id] = e.s.InitialWindow
		if _, err := ours.Write(AppendHeaders(nil, id, block, false)); err != nil {
			t.Fatal(err)
		}
		body := bytes.Repeat([]byte("b"), size)
		e.send(id, body)
		for !e.ended[id] {
			if err := e.step(); err != nil {
				t.Fatal(err)
			}
		}
		text := strings.Join(e.fields[id], "\n")
		for _, want := range []string{":status: 503", "x-path: POST host/demo.A/m", fmt.Sprint("x-isthmus-outcome: service", i)} {
			if !strings.Contains(text, want) {
				t.Errorf("stream %d lacks %q:\n%s", id, want, text)
			}
		}
		if !bytes.Equal(e.bodies[id], body) {
			t.Errorf("stream %d: %d bytes came back of %d", id, len(e.bodies[id]), size)
		}
	}
}

// TestServer answers net/http's client, which begins with a table of its own.
func TestServer(t *testing.T) {
	ours, theirs := tcp(t)
	e := newEnd(t, ours)
	done := make(chan error, 1)
	go func() {
		preface := make([]byte, len(Preface))
		if _, err := io.ReadFull(ours, preface); err != nil || string(preface) != Preface {
			done <- fmt.Errorf("preface %q: %w", preface, err)
			return
		}
		if _, err := ours.Write(e.s.Begin(nil, true, 50)); err != nil {
			done <- err
			return
		}
		answered := map[uint32]bool{}
		for {
			if err := e.step(); err != nil {
				done <- err
				return
			}
			for id, over := range e.ended {
				if over && !answered[id] {
					answered[id] = true
					block := AppendIndexed(nil, IndexStatus)
					block = AppendField(block, IndexContentType, []byte("application/x-isthmus-dubbo"))
					for _, f := range e.fields[id] {
						if v, ok := strings.CutPrefix(f, "x-isthmus-service: "); ok {
							block = AppendLiteral(block, "x-isthmus-outcome", []byte(v))
						}
					}
					if _, err := ours.Write(AppendHeaders(nil, id, block, false)); err != nil {
						done <- err
						return
					}
					e.send(id, e.bodies[id])
				}
			}
		}
	}()
	tr := &http.Transport{Protocols: clear2(), DialContext: func(context.Context, string, string) (net.Conn, error) { return theirs, nil }}
	cc, err := tr.NewClientConn(t.Context(), "http", "host:80")
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			body := strings.Repeat("a", i*i*50)
			req, err := http.NewRequest("POST", "http://host/demo.A/m", strings.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("x-isthmus-service", fmt.Sprint("service", i))
			req.Header.Set("x-always", "the same")
			resp, err := cc.RoundTrip(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if err != nil || string(got) != body || resp.Header.Get("x-isthmus-outcome") != fmt.Sprint("service", i) {
				t.Errorf("request %d: %d bytes of %d, %v, %v", i, len(got), len(body), resp.Header, err)
			}
		}()
	}
	wg.Wait()
	theirs.Close()
	if err := <-done; errors.Is(err, errSession) {
		t.Error(err)
	}
}

// frames returns what f writes with x/net's framer.
func frames(t testing.TB, f func(w *http2.Framer) error) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := http2.NewFramer(&buf, nil)
	w.AllowIllegalWrites = true
	if err := f(w); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// settled is a session that has the peer's settings.
func settled(t testing.TB, server bool) *Session {
	t.Helper()
	s := new(Session)
	s.Begin(nil, server, 100)
	var ev Event
	b := frames(t, func(w *http2.Framer) error { return w.WriteSettings() })
	if n, owed, code := s.Read(&ev, b, nil); n != len(b) || len(owed) != HeaderLen || code != NoError {
		t.Fatal(n, owed, code)
	}
	return s
}

// TestRead holds what single frames do to what the RFC says of them.
func TestRead(t *testing.T) {
	block := AppendIndexed(nil, IndexMethodPost)
	raw := func(typ http2.FrameType, flags http2.Flags, stream uint32, p string) func(w *http2.Framer) error {
		return func(w *http2.Framer) error { return w.WriteRawFrame(typ, flags, stream, []byte(p)) }
	}
	for name, c := range map[string]struct {
		write func(w *http2.Framer) error
		want  Event
		owed  string
		code  Code
	}{
		"data": {write: func(w *http2.Framer) error { return w.WriteData(3, true, []byte("abc")) },
			want: Event{Kind: EventData, Stream: 3, End: true, Data: []byte("abc")}},
		"data with padding": {write: func(w *http2.Framer) error { return w.WriteDataPadded(3, false, []byte("abc"), make([]byte, 200)) },
			want: Event{Kind: EventData, Stream: 3, Data: []byte("abc")}},
		"data that is only padding":    {write: raw(http2.FrameData, FlagPadded, 3, "\x02\x00\x00"), want: Event{Kind: EventData, Stream: 3, Data: []byte{}}},
		"more padding than data":       {write: raw(http2.FrameData, FlagPadded, 3, "\x03\x00\x00"), code: ProtocolError},
		"padding without its length":   {write: raw(http2.FrameData, FlagPadded, 3, ""), code: ProtocolError},
		"data of no stream":            {write: raw(http2.FrameData, 0, 0, "abc"), code: ProtocolError},
		"headers of no stream":         {write: raw(http2.FrameHeaders, FlagEndHeaders, 0, "\x83"), code: ProtocolError},
		"headers of a server's":        {write: raw(http2.FrameHeaders, FlagEndHeaders, 2, "\x83"), code: ProtocolError},
		"headers":                      {write: raw(http2.FrameHeaders, FlagEndHeaders|FlagEndStream, 5, "\x83"), want: Event{Kind: EventHeaders, Stream: 5, End: true, Data: block}},
		"headers with a priority":      {write: raw(http2.FrameHeaders, FlagEndHeaders|FlagPriority, 5, "\x00\x00\x00\x00\x10\x83"), want: Event{Kind: EventHeaders, Stream: 5, Data: block}},
		"headers with all":             {write: raw(http2.FrameHeaders, FlagEndHeaders|FlagPriority|FlagPadded, 5, "\x01\x00\x00\x00\x00\x10\x83\x00"), want: Event{Kind: EventHeaders, Stream: 5, Data: block}},
		"headers with half a priority": {write: raw(http2.FrameHeaders, FlagEndHeaders|FlagPriority, 5, "\x00\x00\x00\x00"), code: FrameSizeError},
		"priority":                     {write: func(w *http2.Framer) error { return w.WritePriority(5, http2.PriorityParam{StreamDep: 3}) }, want: Event{Stream: 5}},
		"priority too short":           {write: raw(http2.FramePriority, 0, 5, "\x00"), code: FrameSizeError},
		"priority of no stream":        {write: raw(http2.FramePriority, 0, 0, "\x00\x00\x00\x00\x10"), code: ProtocolError},
		"reset":                        {write: func(w *http2.Framer) error { return w.WriteRSTStream(7, http2.ErrCodeRefusedStream) }, want: Event{Kind: EventReset, Stream: 7, Code: RefusedStream}},
		"reset of no stream":           {write: raw(http2.FrameRSTStream, 0, 0, "\x00\x00\x00\x00"), code: ProtocolError},
		"reset too short":              {write: raw(http2.FrameRSTStream, 0, 3, "\x00"), code: FrameSizeError},
		"settings": {write: func(w *http2.Framer) error {
			return w.WriteSettings(http2.Setting{ID: 3, Val: 9}, http2.Setting{ID: 0x99, Val: 1}, http2.Setting{ID: 8, Val: 1})
		}, want: Event{Kind: EventSettings}, owed: "\x00\x00\x00\x04\x01\x00\x00\x00\x00"},
		"settings with a window": {write: func(w *http2.Framer) error { return w.WriteSettings(http2.Setting{ID: 4, Val: 10}) },
			want: Event{Kind: EventInitial, N: 10 - DefaultWindow}, owed: "\x00\x00\x00\x04\x01\x00\x00\x00\x00"},
		"settings that are no":       {write: raw(http2.FrameSettings, 0, 0, "abc"), code: FrameSizeError},
		"settings of a stream":       {write: raw(http2.FrameSettings, 0, 1, ""), code: ProtocolError},
		"settings acknowledged":      {write: func(w *http2.Framer) error { return w.WriteSettingsAck() }, want: Event{}},
		"an acknowledgement of more": {write: raw(http2.FrameSettings, FlagAck, 0, "abcdef"), code: FrameSizeError},
		"a window too large":         {write: func(w *http2.Framer) error { return w.WriteSettings(http2.Setting{ID: 4, Val: 1 << 31}) }, code: FlowControlError},
		"frames too small":           {write: func(w *http2.Framer) error { return w.WriteSettings(http2.Setting{ID: 5, Val: 16383}) }, code: ProtocolError},
		"push that is neither":       {write: func(w *http2.Framer) error { return w.WriteSettings(http2.Setting{ID: 2, Val: 2}) }, code: ProtocolError},
		"a promise":                  {write: raw(http2.FramePushPromise, FlagEndHeaders, 1, "\x00\x00\x00\x02\x83"), code: ProtocolError},
		"ping": {write: func(w *http2.Framer) error { return w.WritePing(false, [8]byte{1, 2, 3, 4, 5, 6, 7, 8}) },
			owed: "\x00\x00\x08\x06\x01\x00\x00\x00\x00\x01\x02\x03\x04\x05\x06\x07\x08"},
		"pong":                      {write: func(w *http2.Framer) error { return w.WritePing(true, [8]byte{7: 9}) }, want: Event{Kind: EventPong, N: 9}},
		"ping too short":            {write: raw(http2.FramePing, 0, 0, "1234567"), code: FrameSizeError},
		"ping of a stream":          {write: raw(http2.FramePing, 0, 1, "12345678"), code: ProtocolError},
		"going away":                {write: func(w *http2.Framer) error { return w.WriteGoAway(5, http2.ErrCodeEnhanceYourCalm, []byte("why")) }, want: Event{Kind: EventGoAway, N: 5, Code: EnhanceYourCalm}},
		"going away too short":      {write: raw(http2.FrameGoAway, 0, 0, "1234567"), code: FrameSizeError},
		"a stream going away":       {write: raw(http2.FrameGoAway, 0, 1, "12345678"), code: ProtocolError},
		"window of a stream":        {write: func(w *http2.Framer) error { return w.WriteWindowUpdate(9, 100) }, want: Event{Kind: EventWindow, Stream: 9, N: 100}},
		"window":                    {write: func(w *http2.Framer) error { return w.WriteWindowUpdate(0, 100) }, want: Event{Kind: EventConn}},
		"window by nothing":         {write: raw(http2.FrameWindowUpdate, 0, 0, "\x00\x00\x00\x00"), code: ProtocolError},
		"window beyond all":         {write: func(w *http2.Framer) error { return w.WriteWindowUpdate(0, 1<<31-1) }, code: FlowControlError},
		"window too short":          {write: raw(http2.FrameWindowUpdate, 0, 0, "\x00"), code: FrameSizeError},
		"a continuation of nothing": {write: raw(http2.FrameContinuation, FlagEndHeaders, 1, "\x83"), code: ProtocolError},
		"unknown":                   {write: raw(0x42, 0xff, 11, "whatever"), want: Event{Stream: 11}},
		"too long":                  {write: raw(http2.FrameData, 0, 1, strings.Repeat("a", MaxFrame+1)), code: FrameSizeError},
	} {
		t.Run(name, func(t *testing.T) {
			s := settled(t, true)
			b := frames(t, c.write)
			var ev Event
			n, owed, code := s.Read(&ev, b, nil)
			if code != c.code {
				t.Fatalf("code %s, want %s", code, c.code)
			}
			if code != NoError {
				return
			}
			if n != len(b) || string(owed) != c.owed || fmt.Sprint(ev) != fmt.Sprint(c.want) {
				t.Errorf("n %d of %d, event %+v, owed %q", n, len(b), ev, owed)
			}
			// Any beginning of it is not enough.
			for k := range b {
				s := settled(t, true)
				if n, owed, code := s.Read(&ev, b[:k], nil); n != 0 || len(owed) != 0 || code != NoError {
					t.Fatalf("%d of %d bytes: n %d, owed %q, code %s", k, len(b), n, owed, code)
				}
			}
		})
	}
}

// TestFirstFrame: a connection begins with settings.
func TestFirstFrame(t *testing.T) {
	for name, write := range map[string]func(w *http2.Framer) error{
		"ping":            func(w *http2.Framer) error { return w.WritePing(false, [8]byte{}) },
		"acknowledgement": func(w *http2.Framer) error { return w.WriteSettingsAck() },
	} {
		var s Session
		s.Begin(nil, true, 1)
		var ev Event
		if _, _, code := s.Read(&ev, frames(t, write), nil); code != ProtocolError {
			t.Errorf("%s: %s", name, code)
		}
	}
}

// TestContinuation: a block in pieces is put together, nothing may come between them, and neither bytes nor pieces are without bound.
func TestContinuation(t *testing.T) {
	read := func(pieces []string, between func(w *http2.Framer) error) (Event, Code) {
		s := settled(t, true)
		b := frames(t, func(w *http2.Framer) error {
			for i, p := range pieces {
				last := i == len(pieces)-1
				var err error
				if i == 0 {
					err = w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte(p), EndStream: true, EndHeaders: last})
				} else {
					if between != nil {
						if err := between(w); err != nil {
							return err
						}
					}
					err = w.WriteContinuation(1, last, []byte(p))
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		var ev Event
		for len(b) > 0 {
			n, _, code := s.Read(&ev, b, nil)
			if code != NoError || n == 0 {
				return ev, code
			}
			b = b[n:]
		}
		return ev, NoError
	}
	if ev, code := read([]string{"ab", "", "cd"}, nil); code != NoError || ev.Kind != EventHeaders || !ev.End || string(ev.Data) != "abcd" {
		t.Errorf("%+v %s", ev, code)
	}
	for name, between := range map[string]func(w *http2.Framer) error{
		"ping":                      func(w *http2.Framer) error { return w.WritePing(false, [8]byte{}) },
		"data":                      func(w *http2.Framer) error { return w.WriteData(1, false, nil) },
		"another stream's":          func(w *http2.Framer) error { return w.WriteContinuation(3, false, nil) },
		"a frame that no one knows": func(w *http2.Framer) error { return w.WriteRawFrame(0x42, 0, 1, nil) },
	} {
		if _, code := read([]string{"ab", "cd"}, between); code != ProtocolError {
			t.Errorf("%s between: %s", name, code)
		}
	}
	long := strings.Repeat("a", MaxFrame)
	if _, code := read([]string{long, long, long, long, "a"}, nil); code != EnhanceYourCalm {
		t.Errorf("long: %s", code)
	}
	if _, code := read(make([]string, maxBlockFrames+1), nil); code != EnhanceYourCalm {
		t.Errorf("many: %s", code)
	}
}

// TestWindowIsRenewed: the connection's window is given back when half of it is used up, and a peer that exceeds it is stopped.
func TestWindowIsRenewed(t *testing.T) {
	s := settled(t, true)
	b := frames(t, func(w *http2.Framer) error { return w.WriteData(1, false, make([]byte, MaxFrame)) })
	var ev Event
	var owed []byte
	given, used := int64(MaxWindow), int64(0)
	for range 3 * MaxWindow / MaxFrame {
		var code Code
		if _, owed, code = s.Read(&ev, b, owed[:0]); code != NoError {
			t.Fatal(code)
		}
		used += MaxFrame
		if len(owed) > 0 {
			var w Session
			w.settled = true
			var ev Event
			if n, _, code := w.Read(&ev, owed, nil); n != len(owed) || code != NoError || ev.Kind != EventConn {
				t.Fatal(n, code, ev)
			}
			given += w.SendWindow
		}
		if used > given || given-used > MaxWindow {
			t.Fatalf("%d used of %d", used, given)
		}
	}
	s.receive = MaxFrame - 1
	if _, _, code := s.Read(&ev, b, nil); code != FlowControlError {
		t.Error(code)
	}
}

// TestSessionDoesNotAllocate: in steady state no frame costs an allocation, also where headers are in Huffman's code and in pieces.
func TestSessionDoesNotAllocate(t *testing.T) {
	s := settled(t, true)
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	enc.SetMaxDynamicTableSize(0)
	for _, f := range []string{":method", "content-type", "x-isthmus-service"} {
		if err := enc.WriteField(hpack.HeaderField{Name: f, Value: "application/x-isthmus-dubbo"}); err != nil {
			t.Fatal(err)
		}
	}
	b := frames(t, func(w *http2.Framer) error {
		return errors.Join(w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes()[:9]}), w.WriteContinuation(1, true, block.Bytes()[9:]),
			w.WriteData(1, true, make([]byte, 1000)), w.WritePing(false, [8]byte{}), w.WriteWindowUpdate(1, 1), w.WriteSettings(http2.Setting{ID: 4, Val: 70000}))
	})
	var ev Event
	var owed, out []byte
	size := 0
	run := func() {
		owed = owed[:0]
		for rest := b; len(rest) > 0; {
			n, o, code := s.Read(&ev, rest, owed)
			if n == 0 || code != NoError {
				t.Fatal(n, code)
			}
			owed = o
			if ev.Kind == EventHeaders {
				for s.Decoder.Begin(ev.Data); s.Decoder.Next(); {
					size += len(s.Decoder.Name()) + len(s.Decoder.Value())
				}
			}
			rest = rest[n:]
		}
		out = AppendHeaders(out[:0], 1, block.Bytes(), false)
		out = AppendData(out, 1, b, true)
	}
	run()
	if n := testing.AllocsPerRun(200, run); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzSession: nothing panics, a frame is never longer than what is there, what is owed is bounded, and it does not matter in which
// pieces the bytes come.
func FuzzSession(f *testing.F) {
	f.Add(frames(f, func(w *http2.Framer) error {
		return errors.Join(w.WriteSettings(http2.Setting{ID: 1, Val: 4096}, http2.Setting{ID: 4, Val: 100}), w.WriteWindowUpdate(0, 10),
			w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("\x83\x86")}), w.WriteContinuation(1, true, []byte("\x40\x01a\x81\x1f")),
			w.WriteData(1, true, []byte("body")), w.WritePing(false, [8]byte{}))
	}), uint8(3), true)
	f.Add(frames(f, func(w *http2.Framer) error {
		return errors.Join(w.WriteSettings(), w.WriteDataPadded(1, false, []byte("body"), make([]byte, 3)), w.WriteRSTStream(1, 8), w.WriteGoAway(1, 0, nil),
			w.WritePriority(3, http2.PriorityParam{}), w.WriteWindowUpdate(3, 1))
	}), uint8(1), false)
	f.Fuzz(func(t *testing.T, b []byte, cut uint8, server bool) {
		if len(b) > 1<<16 {
			return
		}
		play := func(step int) (log string) {
			var s Session
			s.Begin(nil, server, 10)
			var ev Event
			var owed []byte
			for in, have := b, min(step, len(b)); ; {
				before := len(owed)
				n, o, code := s.Read(&ev, in[:have], owed)
				owed = o
				if code != NoError {
					return log + code.String()
				}
				if n == 0 {
					if have == len(in) {
						return log + fmt.Sprintf("%x", owed)
					}
					have = min(have+step, len(in))
					continue
				}
				if n > have || len(owed)-before > 64 {
					t.Fatalf("%d of %d bytes, %d owed", n, have, len(owed)-before)
				}
				log += fmt.Sprintf("%d %d %v %x %d %s;", ev.Kind, ev.Stream, ev.End, ev.Data, ev.N, ev.Code)
				if ev.Kind == EventHeaders {
					fields, err := decode(&s.Decoder, ev.Data)
					log += fmt.Sprint(fields, err)
					if err != nil {
						return log
					}
				}
				in, have = in[n:], have-n
			}
		}
		if whole, pieces := play(len(b)+1), play(int(cut)+1); whole != pieces {
			t.Fatalf("in one piece\n%s\nin several\n%s", whole, pieces)
		}
	})
}
