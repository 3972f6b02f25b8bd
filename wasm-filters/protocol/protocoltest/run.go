package protocoltest

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// foreign are first bytes that any mesh meets.
var foreign = map[string][]byte{
	"http/1":    []byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
	"http/2":    []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
	"tls":       append([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), make([]byte, 64)...),
	"redis":     []byte("*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r\n"),
	"zookeeper": append([]byte("\x00\x00\x00\x2d\x00\x00\x00\x00"), make([]byte, 41)...),
	"postgres":  []byte("\x00\x00\x00\x29\x00\x03\x00\x00user\x00postgres\x00database\x00postgres\x00\x00"),
	"zeros":     make([]byte, 64),
	"ones":      bytes.Repeat([]byte{0xff}, 64),
}

// Run holds c to the contract of protocol.Codec, as far as s can show it.
func Run(t *testing.T, c protocol.Codec, s Suite) {
	if s.MaxReject == 0 {
		s.MaxReject = 64 << 10
	}
	given := s.Frames
	s.Frames = make(map[string][]byte, len(given))
	for name, b := range given {
		s.Frames[name] = bytes.Clone(b)
	}
	names := slices.Sorted(maps.Keys(s.Frames))
	requests := map[string]protocol.Frame{}
	responses := 0
	for _, name := range names {
		f, need, decodeErr, err := decodeChecked(c, s.Frames[name])
		if err != nil || decodeErr != nil || need != 0 || f.Flaw != protocol.FlawNone || f.Len != uint64(len(s.Frames[name])) {
			t.Fatalf("%s is not one whole frame without a flaw: need %d, %v, %v, %+v of %d bytes", name, need, decodeErr, err, f, len(s.Frames[name]))
		}
		switch f.Kind {
		case protocol.KindRequest, protocol.KindOneWay:
			requests[name] = f
		case protocol.KindResponse:
			responses++
		}
	}
	if len(requests) == 0 || responses == 0 {
		t.Fatalf("the suite has %d requests and %d responses; it needs both", len(requests), responses)
	}
	each := func(t *testing.T, check func(t *testing.T, name string, b []byte)) {
		for _, name := range names {
			check(t, name, s.Frames[name])
		}
	}
	t.Run("name", func(t *testing.T) {
		if name := c.Name(); name == "" || name != strings.ToLower(name) || strings.ContainsAny(name, " \t{}\"") {
			t.Errorf("Name is %q", name)
		}
	})
	t.Run("split", func(t *testing.T) {
		each(t, func(t *testing.T, name string, b []byte) { split(t, c, &s, name, b) })
	})
	t.Run("stream", func(t *testing.T) {
		each(t, func(t *testing.T, name string, b []byte) {
			if err := checkStream(c, b, s.MaxNeed); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	})
	t.Run("joined", func(t *testing.T) { joined(t, c, names, s.Frames) })
	t.Run("sniff", func(t *testing.T) { sniff(t, c, &s, names, requests) })
	t.Run("attachments", func(t *testing.T) {
		each(t, func(t *testing.T, name string, b []byte) {
			f, _, _, _ := decodeChecked(c, b)
			for n := range len(b) {
				if _, _, err := visitChecked(c, f, b[:n]); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
			for _, behind := range []string{"", "\x00", "Z", "\xff\xff\xff\xff more"} {
				if _, visitErr, err := visitChecked(c, f, append(bytes.Clone(b), behind...)); err != nil || visitErr != nil {
					t.Fatalf("%s: %v, %v", name, visitErr, err)
				}
			}
		})
	})
	t.Run("answers", func(t *testing.T) {
		messages := []string{"", "a", "over the limit of 100 per second", strings.Repeat("x", 31), strings.Repeat("x", 32),
			strings.Repeat("y", 1023), strings.Repeat("y", 1025), strings.Repeat("é", 40_000), strings.Repeat("限流", 40_000),
			"a" + strings.Repeat("😀", 70_000), strings.Repeat("z", 1<<20), strings.Repeat("\xff\x00", 5000)}
		for name, f := range requests {
			for code := range protocol.CodeTimeout + 2 {
				for i, msg := range messages {
					if err := checkAnswers(c, &f, code, msg, s.MaxReject); err != nil {
						t.Errorf("%s, message %d: %v", name, i, err)
					}
				}
			}
			for _, id := range []uint64{0, 1, 1<<31 - 1, 1 << 31, 1<<32 - 1} {
				g := f
				g.ID = id
				if err := checkAnswers(c, &g, protocol.CodeThrottled, "no", s.MaxReject); err != nil {
					t.Errorf("%s, id %d: %v", name, id, err)
				}
			}
		}
	})
	t.Run("mutations", func(t *testing.T) {
		each(t, func(t *testing.T, name string, b []byte) { mutate(t, c, &s, name, b) })
	})
	t.Run("garbage", func(t *testing.T) { garbage(t, c, &s, names) })
	t.Run("allocations", func(t *testing.T) { allocations(t, c, names, s.Frames) })
	t.Run("untouched", func(t *testing.T) {
		each(t, func(t *testing.T, name string, b []byte) {
			if !bytes.Equal(b, given[name]) {
				t.Errorf("%s: the codec wrote into its input", name)
			}
		})
	})
}

// split gives the codec every beginning of the frame b.
func split(t *testing.T, c protocol.Codec, s *Suite, name string, b []byte) {
	final, _, _, _ := decodeChecked(c, b)
	var last protocol.Frame
	lastNeed := 0
	for n := range len(b) + 1 {
		f, need, decodeErr, err := decodeChecked(c, b[:n])
		switch {
		case err != nil:
			t.Fatalf("%s, %d bytes: %v", name, n, err)
		case decodeErr != nil:
			t.Fatalf("%s, %d bytes: %v at %d", name, n, decodeErr, f.FlawOff)
		case need > len(b):
			t.Fatalf("%s, %d bytes: need %d, the frame has %d", name, n, need, len(b))
		case s.MaxNeed > 0 && need > s.MaxNeed:
			t.Fatalf("%s, %d bytes: need %d, more than MaxNeed %d", name, n, need, s.MaxNeed)
		case need == 0 && f != final:
			t.Fatalf("%s, %d bytes are enough for %+v, all of them for %+v", name, n, f, final)
		case n > 0 && lastNeed == 0 && need != 0:
			t.Fatalf("%s: %d bytes were enough, with %d need is %d", name, n-1, n, need)
		case need != 0 && need < lastNeed:
			t.Fatalf("%s, %d bytes: need %d after %d", name, n, need, lastNeed)
		case need == 0 && n < lastNeed:
			t.Fatalf("%s: asked for %d bytes, content with %d", name, lastNeed, n)
		case last.Len > 0 && !sameHead(&last, &f):
			t.Fatalf("%s, %d bytes: %+v, with one less %+v", name, n, f, last)
		}
		last, lastNeed = f, need
	}
}

// joined reads streams of frames, in both orders.
func joined(t *testing.T, c protocol.Codec, names []string, frames map[string][]byte) {
	order := slices.Clone(names)
	for range 2 {
		var stream []byte
		for _, name := range order {
			stream = append(stream, frames[name]...)
		}
		for _, name := range order {
			alone, _, _, _ := decodeChecked(c, frames[name])
			f, need, decodeErr, err := decodeChecked(c, stream)
			if err != nil || decodeErr != nil || need != 0 || f != alone {
				t.Fatalf("%s with more behind it: need %d, %v, %v, %+v; alone %+v", name, need, decodeErr, err, f, alone)
			}
			stream = stream[f.Len:]
		}
		if len(stream) != 0 {
			t.Fatalf("%d bytes left over", len(stream))
		}
		slices.Reverse(order)
	}
}

// sniff: a client's frames are recognised from whatever their first bytes show, other protocols are not.
func sniff(t *testing.T, c protocol.Codec, s *Suite, names []string, requests map[string]protocol.Frame) {
	decided := func(t *testing.T, name string, b []byte) protocol.Match {
		m := protocol.MatchMore
		for n := range min(len(b), 512) + 1 {
			next := c.Sniff(b[:n:n])
			switch {
			case next > protocol.MatchMore:
				t.Fatalf("%s, %d bytes: Sniff is %d", name, n, next)
			case m != protocol.MatchMore && next != m:
				t.Fatalf("%s: Sniff is %s of %d bytes, %s of %d", name, matchName(m), n-1, matchName(next), n)
			case next == protocol.MatchMore && n >= s.MinHeader:
				t.Fatalf("%s: Sniff still wants more with %d bytes", name, n)
			}
			m = next
		}
		return m
	}
	for _, name := range names {
		m := decided(t, name, s.Frames[name])
		if _, ok := requests[name]; ok && m != protocol.MatchYes {
			t.Errorf("%s: Sniff is %s, want yes", name, matchName(m))
		}
	}
	for _, others := range []map[string][]byte{foreign, s.Foreign} {
		for name, b := range others {
			if m := decided(t, name, b); m != protocol.MatchNo {
				t.Errorf("%s: Sniff is %s, want no", name, matchName(m))
			}
		}
	}
}

// bounded runs check and wants it to leave hardly any garbage behind: not more than perRun bytes for each of its runs.
func bounded(t *testing.T, name string, perRun uint64, check func() (runs int)) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	runs := check()
	runtime.ReadMemStats(&after)
	// What the runtime itself and the tests beside this one allocate is the 1 MiB.
	if got, most := after.TotalAlloc-before.TotalAlloc, uint64(runs)*perRun+1<<20; got > most {
		t.Errorf("%s: %d bytes allocated in %d runs, more than %d", name, got, runs, most)
	}
}

// mutate changes every byte of b, one at a time: each of the first 64 to every other value, later ones to those that
// formats treat specially.
func mutate(t *testing.T, c protocol.Codec, s *Suite, name string, b []byte) {
	m := bytes.Clone(b)
	var f protocol.Frame
	visit := func(k, v []byte) bool { return true }
	bounded(t, name, 16, func() (runs int) {
		for i := range m {
			for x := range 256 {
				v := byte(x)
				if i >= 64 && v != 0 && v != 0xff && v != b[i]+1 && v != b[i]-1 && (v^b[i])&(v^b[i]-1) != 0 {
					continue
				}
				m[i] = v
				if need, err := c.Decode(&f, m); need == 0 && err == nil {
					_ = c.VisitAttachments(&f, m, visit)
				}
				runs++
			}
			m[i] = b[i]
		}
		return runs
	})
	// The full check is slow: a few values for each byte.
	for i := range m {
		if i >= 64 && len(m) > 1024 && i%7 != 0 {
			continue
		}
		for _, v := range []byte{0, 0xff, b[i] ^ 1, b[i] ^ 0x20, b[i] ^ 0x80} {
			m[i] = v
			if err := checkStream(c, m, s.MaxNeed); err != nil {
				t.Fatalf("%s, byte %d set to %#x: %v", name, i, v, err)
			}
		}
		m[i] = b[i]
	}
}

// garbage decodes random bytes, by themselves and behind the beginning of a real frame. The seed is fixed: a failure comes
// again.
func garbage(t *testing.T, c protocol.Codec, s *Suite, names []string) {
	r := rand.New(rand.NewChaCha8([32]byte{'i', 's', 't', 'h', 'm', 'u', 's'}))
	b := make([]byte, 4096)
	for i := range 3000 {
		n := r.IntN(200)
		if i%50 == 0 {
			n = len(b)
		}
		for j := range b[:n] {
			b[j] = byte(r.Uint32())
			if r.IntN(4) == 0 {
				b[j] &= 3 // small numbers lead further into a format
			}
		}
		if i%3 != 0 {
			whole := s.Frames[names[r.IntN(len(names))]]
			copy(b[:n], whole[:r.IntN(len(whole)+1)])
		}
		if err := checkStream(c, b[:n], s.MaxNeed); err != nil {
			t.Fatalf("run %d, %d bytes, %x…: %v", i, n, b[:min(n, 256)], err)
		}
	}
}

// allocations: none for what runs for every frame.
func allocations(t *testing.T, c protocol.Codec, names []string, frames map[string][]byte) {
	dst := make([]byte, 0, 64<<10)
	msg := strings.Repeat("over the limit 限流 ", 50)
	pairs := 0
	visit := func(k, v []byte) bool { pairs += len(k) + len(v); return true }
	for _, name := range names {
		b := frames[name]
		var f protocol.Frame
		for what, run := range map[string]func(){
			"Sniff":            func() { c.Sniff(b) },
			"Decode":           func() { _, _ = c.Decode(&f, b) },
			"Decode of a half": func() { _, _ = c.Decode(&f, b[:len(b)/2]); _, _ = c.Decode(&f, b) },
			"VisitAttachments": func() { _ = c.VisitAttachments(&f, b, visit) },
			"AppendReject":     func() { dst = c.AppendReject(dst[:0], &f, protocol.CodeThrottled, msg) },
			"AppendProbe":      func() { dst = c.AppendProbe(dst[:0], &f) },
		} {
			_, _ = c.Decode(&f, b)
			if n := testing.AllocsPerRun(100, run); n != 0 {
				t.Errorf("%s: %s allocates %g times", name, what, n)
			}
		}
	}
}

// FuzzCodec is the body of a codec's fuzz target: the contract must hold for any bytes. frames are its seeds.
func FuzzCodec(f *testing.F, c protocol.Codec, frames map[string][]byte) {
	var all []byte
	for _, name := range slices.Sorted(maps.Keys(frames)) {
		b := frames[name]
		f.Add(b)
		f.Add(b[:len(b)-len(b)/3])
		if len(all) < 4096 {
			all = append(all, b...)
		}
	}
	f.Add(all)
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := checkStream(c, b, 0); err != nil {
			t.Fatal(err)
		}
	})
}
