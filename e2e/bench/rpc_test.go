package main

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
	boltcodec "github.com/isthmus-mesh/isthmus/wasm-filters/protocol/bolt"
	dubbocodec "github.com/isthmus-mesh/isthmus/wasm-filters/protocol/dubbo"
)

// TestFrames reads the load's frames with the production codecs: what is measured is a call as they know it.
func TestFrames(t *testing.T) {
	for name, c := range map[string]struct {
		rpc   rpc
		codec protocol.Codec
	}{
		"dubbo": {dubbo, dubbocodec.Codec{}},
		"bolt":  {bolt, boltcodec.Codec{}},
	} {
		t.Run(name, func(t *testing.T) {
			b := c.rpc.request(1024)
			c.rpc.setID(b, 4711)
			var f protocol.Frame
			if need, err := c.codec.Decode(&f, b); need != 0 || err != nil {
				t.Fatalf("Decode = %d, %v", need, err)
			}
			if f.Kind != protocol.KindRequest || f.ID != 4711 || f.Flaw != protocol.FlawNone || int(f.Len) != len(b) || f.Len < 1024 || f.Len > 2048 {
				t.Errorf("request: %+v of %d bytes", f, len(b))
			}
			if s, m := string(f.Service.Of(b)), string(f.Method.Of(b)); s != benchService || m != benchMethod {
				t.Errorf("service %q, method %q", s, m)
			}
			caller := string(f.Caller.Of(b))
			if err := c.codec.VisitAttachments(&f, b, func(k, v []byte) bool {
				if string(k) == dubbocodec.KeyCaller {
					caller = string(v)
				}
				return true
			}); err != nil {
				t.Errorf("attachments: %v", err)
			}
			if caller != benchCaller {
				t.Errorf("caller %q", caller)
			}
			if n, id, ok := c.rpc.extent(b); n != len(b) || id != 4711 || ok {
				t.Errorf("extent = %d, %d, %v of a request of %d bytes", n, id, ok, len(b))
			}
			b = c.rpc.respond(nil, b[:c.rpc.requestHeader])
			if need, err := c.codec.Decode(&f, b); need != 0 || err != nil {
				t.Fatalf("Decode of the response = %d, %v", need, err)
			}
			if f.Kind != protocol.KindResponse || f.ID != 4711 || f.Outcome != protocol.OutcomeOK || int(f.Len) != len(b) {
				t.Errorf("response: %+v of %d bytes", f, len(b))
			}
			if n, id, ok := c.rpc.extent(b); n != len(b) || id != 4711 || !ok {
				t.Errorf("extent = %d, %d, %v of a response of %d bytes", n, id, ok, len(b))
			}
		})
	}
}

// TestRun calls the server without anything between, and one that answers with an error, with garbage, and not at all.
func TestRun(t *testing.T) {
	failing, garbage := dubbo, dubbo
	failing.respond = func(dst, h []byte) []byte { b := dubbo.respond(dst, h); b[3] = 80; return b }
	garbage.respond = func(dst, h []byte) []byte { return append(dst, strings.Repeat("x", 16)...) }
	refused, reset := http2, http2
	refused.respond = func(dst, h []byte) []byte { // :status: 404
		return h2Frame(dst, h2Headers, h2EndHeaders|h2EndStream, binary.BigEndian.Uint32(h[5:]), 0x8d)
	}
	reset.respond = func(dst, h []byte) []byte { return h2Frame(dst, h2Reset, 0, 3, 0, 0, 0, 2) }
	for name, c := range map[string]struct {
		rpc   rpc
		load  load
		error string
		fails bool
	}{
		"dubbo":   {rpc: dubbo, load: load{Conns: 3, InFlight: 4, Size: 1024}},
		"bolt":    {rpc: bolt, load: load{Conns: 1, InFlight: 1, Size: 0}},
		"http2":   {rpc: http2, load: load{Conns: 3, InFlight: 16, Size: 1024}},
		"paced":   {rpc: bolt, load: load{Conns: 2, InFlight: 1024, Size: 1024, Rate: 200}},
		"refused": {rpc: refused, load: load{Conns: 1, InFlight: 1, Size: 10}, fails: true},
		"reset":   {rpc: reset, load: load{Conns: 1, InFlight: 1, Size: 10}, error: "framing lost"},
		"failing": {rpc: failing, load: load{Conns: 1, InFlight: 2, Size: 10}, fails: true},
		"garbage": {rpc: garbage, load: load{Conns: 1, InFlight: 1, Size: 10}, error: "framing lost"},
	} {
		t.Run(name, func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			go serve(ln, c.rpc)
			const length = 200 * time.Millisecond
			var begun, ended int
			s, err := run(t.Context(), ln.Addr().String(), c.rpc, c.load, 0, length, func() { begun++ }, func() { ended++ })
			if c.error != "" {
				if err == nil || !strings.Contains(err.Error(), c.error) {
					t.Errorf("error %v, want one with %q", err, c.error)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if begun != 1 || ended != 1 || s.Elapsed < length {
				t.Errorf("begun %d times, ended %d times, %s", begun, ended, s.Elapsed)
			}
			if good := s.Calls > 0 && s.Errors == 0; good == c.fails || c.fails && s.Errors == 0 {
				t.Errorf("%d calls, %d errors", s.Calls, s.Errors)
			}
		})
	}
}

// TestRunGone: a server that closes the connection is an error, and so is a run that is given up.
func TestRunGone(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	hold := make(chan net.Conn, 1)
	go func() {
		if c, err := ln.Accept(); err == nil {
			c.Close()
		}
		if c, err := ln.Accept(); err == nil {
			hold <- c
		}
	}()
	nothing := func() {}
	one := load{Conns: 1, InFlight: 1, Size: 10}
	if _, err := run(t.Context(), ln.Addr().String(), dubbo, one, 0, time.Minute, nothing, nothing); err == nil {
		t.Error("a closed connection is no error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		c := <-hold
		cancel()
		<-t.Context().Done()
		c.Close()
	}()
	if _, err := run(ctx, ln.Addr().String(), dubbo, one, 0, time.Minute, nothing, nothing); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}
