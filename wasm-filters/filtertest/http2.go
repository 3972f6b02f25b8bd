package filtertest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// http2Item makes the bytes of an item that is HTTP/2. What follows a "+" is the payload, another item.
func http2Item(s string) ([]byte, error) {
	head, rest, _ := strings.Cut(s, "+")
	var payload []byte
	if rest != "" {
		var err error
		if payload, err = item(rest); err != nil {
			return nil, err
		}
	}
	var part string
	if i := strings.LastIndexByte(head, '['); i > 0 && strings.HasSuffix(head, "]") {
		head, part = head[:i], head[i+1:len(head)-1]
	}
	name, args, ok := strings.Cut(head, "(")
	if !ok || !strings.HasSuffix(args, ")") {
		return nil, fmt.Errorf("want h2.NAME(…)")
	}
	b, err := HTTP2(strings.TrimPrefix(name, "h2."), args[:len(args)-1], payload)
	if err != nil || part == "" {
		return b, err
	}
	from, to, _ := strings.Cut(part, ":")
	i, _ := strconv.Atoi(from)
	j := len(b)
	if to != "" {
		j, _ = strconv.Atoi(to)
	}
	if i < 0 || j > len(b) || i > j {
		return nil, fmt.Errorf("part of %d bytes", len(b))
	}
	return b[i:j], nil
}

// HTTP2 builds frames with golang.org/x/net. kind is preface, settings (window, streams), ack, window (stream, by), headers (stream, end and
// fields, in their order; "_" in a field's name is ":" ), data (stream, end; payload), reset (stream, code), ping (ack), goaway (last, code).
func HTTP2(kind, args string, payload []byte) ([]byte, error) {
	f := fields(args)
	var buf bytes.Buffer
	w := http2.NewFramer(&buf, nil)
	w.AllowIllegalWrites = true
	stream := uint32(number(f, "stream", 0))
	end := f["end"] == "1"
	var err error
	switch kind {
	case "preface":
		buf.WriteString(http2.ClientPreface)
	case "settings":
		var settings []http2.Setting
		for name, id := range map[string]http2.SettingID{"window": http2.SettingInitialWindowSize, "streams": http2.SettingMaxConcurrentStreams} {
			if _, ok := f[name]; ok {
				settings = append(settings, http2.Setting{ID: id, Val: uint32(number(f, name, 0))})
			}
		}
		err = w.WriteSettings(settings...)
	case "ack":
		err = w.WriteSettingsAck()
	case "window":
		err = w.WriteWindowUpdate(stream, uint32(number(f, "by", 1)))
	case "headers":
		var block bytes.Buffer
		e := hpack.NewEncoder(&block)
		e.SetMaxDynamicTableSize(0)
		for pair := range strings.SplitSeq(args, ",") {
			k, v, ok := strings.Cut(pair, "=")
			if !ok || k == "stream" || k == "end" {
				continue
			}
			if err := e.WriteField(hpack.HeaderField{Name: strings.Replace(k, "_", ":", 1), Value: v}); err != nil {
				return nil, err
			}
		}
		err = w.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: end})
	case "data":
		for {
			n := min(len(payload), 16384)
			if err := w.WriteData(stream, end && n == len(payload), payload[:n]); err != nil {
				return nil, err
			}
			if payload = payload[n:]; len(payload) == 0 {
				break
			}
		}
	case "reset":
		err = w.WriteRSTStream(stream, http2.ErrCode(number(f, "code", 8)))
	case "ping":
		err = w.WritePing(f["ack"] == "1", [8]byte{})
	case "goaway":
		err = w.WriteGoAway(uint32(number(f, "last", 0)), http2.ErrCode(number(f, "code", 0)), nil)
	default:
		return nil, fmt.Errorf("unknown kind")
	}
	return buf.Bytes(), err
}

// describeHTTP2 tells what frames out consists of; what is in their streams is codec's.
func describeHTTP2(codec protocol.Codec, out []byte) []string {
	var lines []string
	if rest, ok := bytes.CutPrefix(out, []byte(http2.ClientPreface)); ok {
		lines, out = append(lines, "preface"), rest
	}
	dec := hpack.NewDecoder(0, nil)
	for len(out) > 0 {
		if len(out) < 9 {
			return append(lines, fmt.Sprintf("%d bytes", len(out)))
		}
		n := 9 + (int(out[0])<<16 | int(out[1])<<8 | int(out[2]))
		if n > len(out) {
			return append(lines, fmt.Sprintf("%d bytes", len(out)))
		}
		h, _ := http2.ReadFrameHeader(bytes.NewReader(out))
		p := out[9:n]
		out = out[n:]
		line := fmt.Sprintf("%s %d", strings.ToLower(h.Type.String()), h.StreamID)
		if h.Flags.Has(http2.FlagDataEndStream) && h.Type <= http2.FrameHeaders {
			line += " end"
		}
		switch h.Type {
		case http2.FrameHeaders:
			fields, err := dec.DecodeFull(p)
			if err != nil {
				line += " " + err.Error()
			}
			for _, f := range fields {
				line += fmt.Sprintf(" %s=%s", f.Name, f.Value)
			}
		case http2.FrameData:
			line += ": " + strings.Join(describe(codec, p), ", ")
		case http2.FrameSettings, http2.FramePing:
			if h.Flags.Has(http2.FlagSettingsAck) {
				line += " ack"
			}
			for ; h.Type == http2.FrameSettings && len(p) >= 6; p = p[6:] {
				line += fmt.Sprintf(" %s=%d", http2.SettingID(binary.BigEndian.Uint16(p)), binary.BigEndian.Uint32(p[2:]))
			}
		case http2.FrameWindowUpdate:
			line += fmt.Sprintf(" by %d", binary.BigEndian.Uint32(p))
		case http2.FrameRSTStream:
			line += " " + strings.ToLower(http2.ErrCode(binary.BigEndian.Uint32(p)).String())
		case http2.FrameGoAway:
			line += fmt.Sprintf(" last=%d %s", binary.BigEndian.Uint32(p), strings.ToLower(http2.ErrCode(binary.BigEndian.Uint32(p[4:])).String()))
		}
		lines = append(lines, line)
	}
	return lines
}
