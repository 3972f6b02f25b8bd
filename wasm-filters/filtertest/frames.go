package filtertest

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// Frames are built here by hand, from the descriptions of the formats: built with our own codecs, they would prove little.

// item makes the bytes of one item of a script: see the package's documentation.
func item(s string) ([]byte, error) {
	if strings.HasPrefix(s, "h2.") {
		b, err := http2Item(s)
		if err != nil {
			return nil, fmt.Errorf("filtertest: item %q: %w", s, err)
		}
		return b, nil
	}
	var part string
	if i := strings.LastIndexByte(s, '['); i > 0 && strings.HasSuffix(s, "]") {
		s, part = s[:i], s[i+1:len(s)-1]
	}
	name, rest, ok := strings.Cut(s, "(")
	if !ok || !strings.HasSuffix(rest, ")") {
		return nil, fmt.Errorf("filtertest: item %q: want NAME(…)", s)
	}
	arg := rest[:len(rest)-1]
	var b []byte
	var err error
	switch {
	case name == "hex":
		b, err = hex.DecodeString(arg)
	case name == "text":
		b = []byte(strings.ReplaceAll(arg, "_", " "))
	case name == "zeros":
		var n int
		n, err = strconv.Atoi(arg)
		b = make([]byte, max(n, 0))
	case strings.HasPrefix(name, "bolt."):
		b, err = Bolt(name[5:], fields(arg))
	case strings.HasPrefix(name, "dubbo."):
		b, err = Dubbo(name[6:], fields(arg))
	default:
		err = fmt.Errorf("unknown item")
	}
	if err != nil {
		return nil, fmt.Errorf("filtertest: item %q: %w", s, err)
	}
	if part != "" {
		from, to, ok := strings.Cut(part, ":")
		if !ok {
			return nil, fmt.Errorf("filtertest: part %q: want FROM:TO", part)
		}
		i, j := 0, len(b)
		if from != "" {
			i, err = strconv.Atoi(from)
		}
		if to != "" && err == nil {
			j, err = strconv.Atoi(to)
		}
		if err != nil || i < 0 || j > len(b) || i > j {
			return nil, fmt.Errorf("filtertest: part %q of %d bytes", part, len(b))
		}
		b = b[i:j]
	}
	return b, nil
}

// fields reads "a=1,b=2".
func fields(s string) map[string]string {
	m := make(map[string]string)
	for f := range strings.SplitSeq(s, ",") {
		if k, v, ok := strings.Cut(f, "="); ok {
			m[k] = v
		}
	}
	return m
}

// further calls fn for the headers or attachments of f that have no name of their own, sorted.
func further(f map[string]string, fn func(k, v string)) {
	for _, k := range slices.Sorted(maps.Keys(f)) {
		if name, ok := strings.CutPrefix(k, "."); ok {
			fn(name, f[k])
		}
	}
}

func number(f map[string]string, name string, def uint64) uint64 {
	if v, ok := f[name]; ok {
		if n, err := strconv.ParseUint(v, 0, 64); err == nil {
			return n
		}
	}
	return def
}

// Bolt builds a Bolt frame as SOFARPC sends it. kind is req, oneway, resp, fail, hb, ack, goaway; fields are id, service, version,
// method, caller, timeout, size (of the content) and status. For frames of other peers and bad ones there are proto (1 or 2),
// ver1 and switch (v2 only; with 2 and 1 a CRC follows), crc (in place of the right one), codec, class (how many bytes its name
// has), key (behind the pairs, without a value), and what the header claims: length (of the content), classlength, headerlength.
func Bolt(kind string, f map[string]string) ([]byte, error) {
	typ, cmd := byte(1), uint16(1)
	class := "com.alipay.sofa.rpc.core.request.SofaRequest"
	var header []byte
	pair := func(k, v string) {
		header = binary.BigEndian.AppendUint32(header, uint32(len(k)))
		header = append(header, k...)
		header = binary.BigEndian.AppendUint32(header, uint32(len(v)))
		header = append(header, v...)
	}
	switch kind {
	case "req", "oneway":
		if kind == "oneway" {
			typ = 2
		}
		version := f["version"]
		if version == "" {
			version = "1.0"
		}
		if f["service"] != "" {
			pair("sofa_head_target_service", f["service"]+":"+version)
			pair("sofa_head_method_name", f["method"])
		}
		if f["caller"] != "" {
			pair("app", f["caller"])
		}
		further(f, pair)
	case "resp", "fail":
		typ, cmd, class = 0, 2, "com.alipay.sofa.rpc.core.response.SofaResponse"
		if kind == "fail" {
			pair("sofa_head_response_error", "true")
		}
	case "hb":
		cmd, class = 0, ""
	case "ack":
		typ, cmd, class = 0, 0, ""
	case "goaway":
		cmd, class = 100, ""
	default:
		return nil, fmt.Errorf("unknown kind")
	}
	if n := number(f, "class", 0); n > 0 {
		class = strings.Repeat("x", int(n))
	}
	if k := f["key"]; k != "" {
		header = binary.BigEndian.AppendUint32(header, uint32(len(k)))
		header = append(header, k...)
	}
	content := make([]byte, number(f, "size", 0))
	proto, ver1, protocolSwitch := byte(number(f, "proto", 1)), byte(number(f, "ver1", 1)), byte(number(f, "switch", 0))
	b := []byte{proto}
	if proto == 2 {
		b = append(b, ver1)
	}
	b = append(b, typ)
	b = binary.BigEndian.AppendUint16(b, cmd)
	b = append(b, 1)
	b = binary.BigEndian.AppendUint32(b, uint32(number(f, "id", 0)))
	b = append(b, byte(number(f, "codec", 1)))
	if proto == 2 {
		b = append(b, protocolSwitch)
	}
	if typ == 0 {
		b = binary.BigEndian.AppendUint16(b, uint16(number(f, "status", 0)))
	} else {
		b = binary.BigEndian.AppendUint32(b, uint32(number(f, "timeout", 3000)))
	}
	b = binary.BigEndian.AppendUint16(b, uint16(number(f, "classlength", uint64(len(class)))))
	b = binary.BigEndian.AppendUint16(b, uint16(number(f, "headerlength", uint64(len(header)))))
	b = binary.BigEndian.AppendUint32(b, uint32(number(f, "length", uint64(len(content)))))
	b = append(b, class...)
	b = append(b, header...)
	b = append(b, content...)
	if proto == 2 && ver1 == 2 && protocolSwitch&1 != 0 {
		b = binary.BigEndian.AppendUint32(b, uint32(number(f, "crc", uint64(crc32.ChecksumIEEE(b)))))
	}
	return b, nil
}

// Dubbo builds a Dubbo2 frame with hessian2. kind is req, oneway, resp, fail, hb, ack, event; fields are id, service, version, group, method, caller,
// timeout, tenant (another attachment), size (of the argument or the value), status, serialization, length (what the header claims).
func Dubbo(kind string, f map[string]string) ([]byte, error) {
	flag, status := byte(number(f, "serialization", 2)), byte(0)
	var body []byte
	str := func(s string) {
		for len(s) > 0x8000 {
			body = append(body, 'R', 0x80, 0)
			body = append(body, s[:0x8000]...)
			s = s[0x8000:]
		}
		switch n := len(s); {
		case n < 32:
			body = append(body, byte(n))
		case n < 1024:
			body = append(body, 0x30+byte(n>>8), byte(n))
		default:
			body = append(body, 'S', byte(n>>8), byte(n))
		}
		body = append(body, s...)
	}
	switch kind {
	case "req", "oneway":
		flag |= 0x80
		if kind == "req" {
			flag |= 0x40
		}
		version := f["version"]
		if version == "" {
			version = "0.0.0"
		}
		for _, s := range []string{"2.0.2", f["service"], version, f["method"], "Ljava/lang/String;", strings.Repeat("a", int(number(f, "size", 5)))} {
			str(s)
		}
		body = append(body, 'H')
		for _, kv := range [][2]string{{"path", f["service"]}, {"group", f["group"]}, {"remote.application", f["caller"]}, {"timeout", f["timeout"]}, {"tenant", f["tenant"]}} {
			if kv[1] != "" {
				str(kv[0])
				str(kv[1])
			}
		}
		further(f, func(k, v string) { str(k); str(v) })
		body = append(body, 'Z')
	case "resp":
		status = byte(number(f, "status", 20))
		body = append(body, 0x94)
		str(strings.Repeat("b", int(number(f, "size", 5))))
		body = append(body, 'H', 'Z')
	case "fail":
		status = 20
		body = append(body, 0x93)
		str("java.lang.IllegalStateException")
		body = append(body, 'H', 'Z')
	case "hb":
		flag |= 0xe0
		body = append(body, 'N')
	case "ack":
		flag |= 0x20
		status = 20
		body = append(body, 'N')
	case "event":
		flag |= 0xa0
		str("R")
	default:
		return nil, fmt.Errorf("unknown kind")
	}
	b := []byte{0xda, 0xbb, flag, status}
	b = binary.BigEndian.AppendUint64(b, number(f, "id", 0))
	b = binary.BigEndian.AppendUint32(b, uint32(number(f, "length", uint64(len(body)))))
	return append(b, body...), nil
}

// describe tells what frames out consists of, as far as they can be read.
func describe(codec protocol.Codec, out []byte) []string {
	if codec == nil {
		return []string{fmt.Sprintf("%d bytes", len(out))}
	}
	var lines []string
	for len(out) > 0 {
		var f protocol.Frame
		need, err := codec.Decode(&f, out)
		if err != nil || need > 0 || f.Len > uint64(len(out)) || f.Len == 0 {
			return append(lines, fmt.Sprintf("%d bytes", len(out)))
		}
		line := fmt.Sprintf("%s id=%d", f.Kind, f.ID)
		if f.Kind == protocol.KindHeartbeatAck {
			line = fmt.Sprintf("heartbeat-ack id=%d", f.ID)
		}
		if s := f.Service.Of(out); s != nil {
			line += fmt.Sprintf(" %s/%s", s, f.Method.Of(out))
		}
		if f.Kind == protocol.KindResponse {
			line += fmt.Sprintf(" %s", f.Outcome)
			if i := strings.Index(string(out[:f.Len]), "isthmus: "); i >= 0 {
				line += fmt.Sprintf(" %q", message(out[i:f.Len]))
			}
		}
		lines = append(lines, line)
		out = out[f.Len:]
	}
	return lines
}

// message returns the beginning of b that is a rejection's message: what follows it belongs to the serialization.
func message(b []byte) string {
	for i, c := range b {
		if c < ' ' || c > '~' {
			b = b[:i]
			break
		}
	}
	if before, _, ok := strings.Cut(string(b), " ms"); ok {
		return before + " ms"
	}
	return string(b)
}
