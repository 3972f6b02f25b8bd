package protocoltest_test

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/bolt"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/dubbo"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol/protocoltest"
)

func TestBolt(t *testing.T) {
	protocoltest.Run(t, bolt.Codec{}, protocoltest.Suite{Frames: protocoltest.Frames(t, "../bolt/testdata/frames"), MinHeader: 20, MaxNeed: bolt.MaxHead})
}

// sound is a codec that passes; each of the broken ones spoils one thing.
type sound = dubbo.Codec

type badName struct{ sound }

func (badName) Name() string { return "Dubbo" }

type badDecode struct {
	sound
	spoil func(f *protocol.Frame, b []byte, need int, err error) (int, error)
}

func (c badDecode) Decode(f *protocol.Frame, b []byte) (int, error) {
	need, err := c.sound.Decode(f, b)
	return c.spoil(f, b, need, err)
}

type unreset struct{ sound }

func (c unreset) Decode(f *protocol.Frame, b []byte) (int, error) {
	caller := f.Caller
	need, err := c.sound.Decode(f, b)
	f.Caller = caller
	return need, err
}

type badSniff struct {
	sound
	sniff func(b []byte) protocol.Match
}

func (c badSniff) Sniff(b []byte) protocol.Match { return c.sniff(b) }

type badVisit struct {
	sound
	visit func(f *protocol.Frame, b []byte, fn func(k, v []byte) bool) error
}

func (c badVisit) VisitAttachments(f *protocol.Frame, b []byte, fn func(k, v []byte) bool) error {
	return c.visit(f, b, fn)
}

type badReject struct {
	sound
	reject func(dst []byte, req *protocol.Frame, code protocol.Code, msg string) []byte
}

func (c badReject) AppendReject(dst []byte, req *protocol.Frame, code protocol.Code, msg string) []byte {
	return c.reject(dst, req, code, msg)
}

type badProbe struct {
	sound
	probe func(dst []byte, req *protocol.Frame) []byte
}

func (c badProbe) AppendProbe(dst []byte, req *protocol.Frame) []byte { return c.probe(dst, req) }

var sink []byte

// broken are codecs with one fault each, by the subtest of Run that must find it.
var broken = map[string]protocol.Codec{
	"name/upper case": badName{},
	"split/asks for what it has": badDecode{spoil: func(f *protocol.Frame, b []byte, need int, err error) (int, error) {
		return min(need, len(b)), err
	}},
	"split/asks for more than the frame": badDecode{spoil: func(f *protocol.Frame, b []byte, need int, err error) (int, error) {
		if need > 0 && f.Len > 0 {
			need = int(f.Len) + 1
		}
		return need, err
	}},
	"split/never content": badDecode{spoil: func(f *protocol.Frame, b []byte, need int, err error) (int, error) {
		if uint64(len(b)) < f.Len && need == 0 {
			need = int(f.Len)
		}
		if len(b) == 100 {
			need = 101
		}
		return need, err
	}},
	"split/forgets the header": badDecode{spoil: func(f *protocol.Frame, b []byte, need int, err error) (int, error) {
		if need > 20 {
			f.ID = 0
		}
		return need, err
	}},
	"split/an error that goes away": badDecode{spoil: func(f *protocol.Frame, b []byte, need int, err error) (int, error) {
		if len(b) == 3 {
			return 0, protocol.ErrNotProtocol
		}
		return need, err
	}},
	"split/depends on what follows": badDecode{spoil: func(f *protocol.Frame, b []byte, need int, err error) (int, error) {
		if uint64(len(b)) > f.Len-1 && f.Kind == protocol.KindRequest {
			f.TimeoutMillis = 1
		}
		return need, err
	}},
	"joined/depends on the next frame": badDecode{spoil: func(f *protocol.Frame, b []byte, need int, err error) (int, error) {
		if uint64(len(b)) > f.Len {
			f.Variant = 1
		}
		return need, err
	}},
	"/does not reset": unreset{},
	"/span beyond the frame": badDecode{spoil: func(f *protocol.Frame, b []byte, need int, err error) (int, error) {
		if f.Service.Off != 0 {
			f.Service.Len = uint32(len(b))
		}
		return need, err
	}},
	"/no outcome": badDecode{spoil: func(f *protocol.Frame, b []byte, need int, err error) (int, error) {
		f.Outcome = protocol.OutcomeNone
		return need, err
	}},
	"/a frame of no bytes": badDecode{spoil: func(f *protocol.Frame, b []byte, need int, err error) (int, error) {
		if f.Kind == protocol.KindEvent {
			f.Len = 0
		}
		return need, err
	}},
	"mutations/another error": badDecode{spoil: func(f *protocol.Frame, b []byte, need int, err error) (int, error) {
		if err != nil {
			err = errors.New("another")
		}
		return need, err
	}},
	"mutations/panics": badDecode{spoil: func(f *protocol.Frame, b []byte, need int, err error) (int, error) {
		if f.Status == 99 {
			_ = b[len(b)]
		}
		return need, err
	}},
	"mutations/keeps memory for a length": badDecode{spoil: func(f *protocol.Frame, b []byte, need int, err error) (int, error) {
		if f.Len > 1<<16 && f.Len < 1<<24 {
			sink = make([]byte, f.Len)
		}
		return need, err
	}},
	"mutations/an error with a need": badDecode{spoil: func(f *protocol.Frame, b []byte, need int, err error) (int, error) {
		if errors.Is(err, protocol.ErrLength) {
			need = len(b) + 1
		}
		return need, err
	}},
	"allocations/Decode": badDecode{spoil: func(f *protocol.Frame, b []byte, need int, err error) (int, error) {
		sink = make([]byte, 8)
		return need, err
	}},
	"untouched/writes into its input": badDecode{spoil: func(f *protocol.Frame, b []byte, need int, err error) (int, error) {
		if uint64(len(b)) >= f.Len && f.Len > 16 {
			b[f.Len-1] = 'Z' ^ byte(len(b)>>3)
		}
		return need, err
	}},
	"sniff/more and more": badSniff{sniff: func(b []byte) protocol.Match { return protocol.MatchMore }},
	"sniff/no":            badSniff{sniff: func(b []byte) protocol.Match { return protocol.MatchNo }},
	"sniff/yes":           badSniff{sniff: func(b []byte) protocol.Match { return protocol.MatchYes }},
	"sniff/changes its mind": badSniff{sniff: func(b []byte) protocol.Match {
		if len(b) == 15 {
			return protocol.MatchNo
		}
		return sound{}.Sniff(b)
	}},
	"attachments/content with a part": badVisit{visit: func(f *protocol.Frame, b []byte, fn func(k, v []byte) bool) error {
		if uint64(len(b)) < f.Len {
			return nil
		}
		return sound{}.VisitAttachments(f, b, fn)
	}},
	"attachments/copies": badVisit{visit: func(f *protocol.Frame, b []byte, fn func(k, v []byte) bool) error {
		return sound{}.VisitAttachments(f, b, func(k, v []byte) bool { return fn(bytes.Clone(k), v) })
	}},
	"attachments/goes on": badVisit{visit: func(f *protocol.Frame, b []byte, fn func(k, v []byte) bool) error {
		return sound{}.VisitAttachments(f, b, func(k, v []byte) bool { fn(k, v); return true })
	}},
	"attachments/an error for stopping": badVisit{visit: func(f *protocol.Frame, b []byte, fn func(k, v []byte) bool) error {
		stopped := false
		err := sound{}.VisitAttachments(f, b, func(k, v []byte) bool { stopped = !fn(k, v); return !stopped })
		if stopped {
			err = protocol.ErrMalformed
		}
		return err
	}},
	"attachments/reads on behind the frame": badVisit{visit: func(f *protocol.Frame, b []byte, fn func(k, v []byte) bool) error {
		if uint64(len(b)) > f.Len {
			return protocol.ErrMalformed
		}
		return sound{}.VisitAttachments(f, b, fn)
	}},
	"allocations/VisitAttachments": badVisit{visit: func(f *protocol.Frame, b []byte, fn func(k, v []byte) bool) error {
		sink = make([]byte, 8)
		return sound{}.VisitAttachments(f, b, fn)
	}},
	"answers/reject loses dst": badReject{reject: func(dst []byte, req *protocol.Frame, code protocol.Code, msg string) []byte {
		return sound{}.AppendReject(dst[:0], req, code, msg)
	}},
	"answers/reject with another id": badReject{reject: func(dst []byte, req *protocol.Frame, code protocol.Code, msg string) []byte {
		g := *req
		g.ID++
		return sound{}.AppendReject(dst, &g, code, msg)
	}},
	"answers/reject needs the request": badReject{reject: func(dst []byte, req *protocol.Frame, code protocol.Code, msg string) []byte {
		if req.Service.Off == 0 {
			msg = "?"
		}
		return sound{}.AppendReject(dst, req, code, msg)
	}},
	"answers/reject of any length": badReject{reject: func(dst []byte, req *protocol.Frame, code protocol.Code, msg string) []byte {
		n := len(dst)
		dst = sound{}.AppendReject(dst, req, code, "")
		body := 1 + len(msg)
		dst[n+12], dst[n+13], dst[n+14], dst[n+15] = byte(body>>24), byte(body>>16), byte(body>>8), byte(body)
		return append(dst, msg...)
	}},
	"answers/reject that succeeds": badReject{reject: func(dst []byte, req *protocol.Frame, code protocol.Code, msg string) []byte {
		n := len(dst)
		dst = sound{}.AppendReject(dst, req, code, "")
		dst[n+3], dst[n+16] = dubbo.StatusOK, 0x92
		return dst
	}},
	"answers/reject with a wrong length": badReject{reject: func(dst []byte, req *protocol.Frame, code protocol.Code, msg string) []byte {
		return append(sound{}.AppendReject(dst, req, code, msg), 0)
	}},
	"allocations/AppendReject": badReject{reject: func(dst []byte, req *protocol.Frame, code protocol.Code, msg string) []byte {
		return sound{}.AppendReject(dst, req, code, strings.Clone(msg))
	}},
	"answers/probe loses dst": badProbe{probe: func(dst []byte, req *protocol.Frame) []byte { return sound{}.AppendProbe(nil, req) }},
	"answers/probe is no heartbeat": badProbe{probe: func(dst []byte, req *protocol.Frame) []byte {
		n := len(dst)
		dst = sound{}.AppendProbe(dst, req)
		dst[n+2] = 0xa2
		return dst
	}},
	"answers/probe with a part of the id": badProbe{probe: func(dst []byte, req *protocol.Frame) []byte {
		g := *req
		g.ID = uint64(uint16(g.ID))
		return sound{}.AppendProbe(dst, &g)
	}},
}

// brokenEnv names the broken codec that TestBroken runs in a process of its own.
const brokenEnv = "ISTHMUS_PROTOCOLTEST_BROKEN"

func suite(t *testing.T) protocoltest.Suite {
	return protocoltest.Suite{Frames: protocoltest.Frames(t, "../dubbo/testdata/frames"), MinHeader: dubbo.HeaderLen, MaxNeed: dubbo.MaxHead}
}

// TestBroken: the suite finds each fault, where it looks for it.
func TestBroken(t *testing.T) {
	if name := os.Getenv(brokenEnv); name != "" {
		protocoltest.Run(t, broken[name], suite(t))
		return
	}
	protocoltest.Run(t, sound{}, suite(t))
	if t.Failed() {
		t.Fatal("the codec that the broken ones come from does not pass")
	}
	for _, name := range slices.Sorted(maps.Keys(broken)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], "-test.run=^TestBroken$", "-test.v")
			cmd.Env = append(os.Environ(), brokenEnv+"="+name)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) {
				t.Fatalf("not found (%v):\n%s", err, out)
			}
			part, _, _ := strings.Cut(name, "/")
			if want := "--- FAIL: TestBroken"; part != "" {
				if want += "/" + part + " "; !bytes.Contains(out, []byte(want)) {
					t.Errorf("found, but not by %s:\n%s", part, out)
				}
			}
		})
	}
}
