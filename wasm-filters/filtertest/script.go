package filtertest

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/wasm-filters/filter"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// A Block is commands of a script and what they print.
type Block struct {
	Line     int // of its first command, from 1
	Input    []string
	Expected string
}

// ReadScript reads a script file.
func ReadScript(path string) ([]Block, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var blocks []Block
	var b *Block
	output := false
	for i, line := range strings.Split(strings.TrimSuffix(string(data), "\n"), "\n") {
		switch {
		case line == "" && (b == nil || output):
			b, output = nil, false
			continue
		case b == nil:
			blocks = append(blocks, Block{Line: i + 1})
			b = &blocks[len(blocks)-1]
			fallthrough
		default:
			if line == "----" && !output {
				output = true
			} else if output {
				b.Expected += line + "\n"
			} else {
				b.Input = append(b.Input, line)
			}
		}
	}
	return blocks, nil
}

// FormatScript is the reverse of ReadScript.
func FormatScript(blocks []Block) []byte {
	var out bytes.Buffer
	for i, b := range blocks {
		if i > 0 {
			out.WriteByte('\n')
		}
		for _, l := range b.Input {
			out.WriteString(l + "\n")
		}
		if commands(b) {
			out.WriteString("----\n" + b.Expected)
		}
	}
	return out.Bytes()
}

// commands tells whether b has any: a block of comments prints nothing.
func commands(b Block) bool {
	for _, l := range b.Input {
		if l != "" && l[0] != '#' {
			return true
		}
	}
	return false
}

// Script runs blocks on a rig.
type Script struct {
	rig      Rig
	codecs   []protocol.Codec
	conns    map[string]*scriptConn
	requests map[string]int
	keys     map[string]*Signer
	words    map[string]string // that stand for what cannot be written down
}

type scriptConn struct {
	number int
	codec  protocol.Codec // by which its bytes are described
	http2  int            // the side whose bytes leave as HTTP/2; -1: none
}

// NewScript returns a script that runs on rig; codecs describe what comes out.
func NewScript(rig Rig, codecs []protocol.Codec) *Script {
	return &Script{rig: rig, codecs: codecs, conns: make(map[string]*scriptConn), requests: make(map[string]int), keys: make(map[string]*Signer), words: make(map[string]string)}
}

// Run runs one block and returns what it prints.
func (s *Script) Run(b Block) (string, error) {
	var out strings.Builder
	for i, line := range b.Input {
		if line == "" || line[0] == '#' {
			continue
		}
		if err := s.command(&out, line); err != nil {
			return out.String(), fmt.Errorf("line %d: %s: %w", b.Line+i, line, err)
		}
	}
	return out.String(), nil
}

func (s *Script) command(out *strings.Builder, line string) error {
	for _, w := range slices.Sorted(maps.Keys(s.words)) {
		line = strings.ReplaceAll(line, "$"+w+";", s.words[w])
	}
	word, rest, _ := strings.Cut(line, " ")
	args := strings.Fields(rest)
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	world := s.rig.World()
	switch word {
	case "config":
		return s.rig.Configure(rest)
	case "reuse", "drop":
		i, err := strconv.Atoi(arg(0))
		if err != nil {
			return err
		}
		if word == "reuse" {
			s.rig.Reuse(i - 1)
			return nil
		}
		return s.rig.Drop(i - 1)
	case "app":
		world.App = arg(0)
		return nil
	case "dialled":
		world.Dialled = arg(0)
		return nil
	case "peer":
		world.Peer, world.Identity = arg(0), arg(1)
		return nil
	case "endpoint":
		world.Endpoint = arg(0)
		return nil
	case "key":
		k, err := NewSigner(arg(1))
		if err != nil {
			return err
		}
		s.keys[arg(0)], s.words[arg(0)] = k, base64.StdEncoding.EncodeToString(k.Value())
		return nil
	case "token", "sign":
		name, id, _ := strings.Cut(arg(1), ":")
		k := s.keys[name]
		if k == nil {
			return fmt.Errorf("no key %q", name)
		}
		var err error
		if word == "token" {
			s.words[arg(0)], err = k.Token(id, arg(2))
		} else {
			s.words[arg(0)], err = k.Sign(strings.Split(strings.Join(args[min(2, len(args)):], " "), ",")...)
		}
		return err
	case "plugin":
		world.Plugin = arg(0)
		return nil
	case "host":
		world.NoSignatures = arg(0) == "no-signatures"
		return nil
	case "signatures":
		fmt.Fprintf(out, "%d\n", world.Signatures)
		world.Signatures = 0
		return nil
	case "open":
		dir := map[string]policy.Direction{"client": policy.DirectionClient, "server": policy.DirectionServer}[arg(1)]
		n, err := s.rig.Open(dir)
		if err == nil {
			c := &scriptConn{number: n, http2: -1}
			switch arg(2) {
			case "lift":
				c.http2 = int(filter.Downstream)
			case "lower":
				c.http2 = int(filter.Upstream)
			}
			s.conns[arg(0)] = c
		}
		return err
	case "close":
		c := s.conns[arg(0)]
		if c == nil {
			return fmt.Errorf("no connection %q", arg(0))
		}
		delete(s.conns, arg(0))
		return s.rig.Close(c.number)
	case "tick", "advance":
		d, err := time.ParseDuration(arg(0))
		if err != nil {
			return err
		}
		world.Clock += policy.Nanos(d)
		if word == "tick" {
			err = s.rig.Tick()
			released := s.rig.Released()
			slices.SortStableFunc(released, func(a, b Release) int { return a.Conn - b.Conn })
			for _, r := range released {
				for name, c := range s.conns {
					if c.number != r.Conn {
						continue
					}
					for _, l := range s.describe(c, filter.Downstream, r.Data) {
						out.WriteString(name + ": " + l + "\n")
					}
					if r.Closed {
						out.WriteString(name + ": closed\n")
					}
				}
			}
			for _, n := range s.rig.Proceeded() {
				for name, r := range s.requests {
					if r == n {
						out.WriteString(name + " goes on\n")
					}
				}
			}
		}
		return err
	case "asked":
		for _, q := range world.Questions() {
			if err := describeQuestion(out, q); err != nil {
				return err
			}
		}
		return nil
	case "answer":
		token, err := strconv.ParseUint(arg(0), 10, 32)
		if err != nil {
			return err
		}
		message, err := limitAnswer(args[1:])
		if err != nil {
			return err
		}
		return s.rig.Answer(uint32(token), message)
	case "service":
		world.Away = arg(0) == "away"
		return nil
	case "request", "response", "trailers", "finish":
		return s.http(out, word, args)
	case "metrics":
		for _, l := range world.Metrics(args...) {
			out.WriteString(l + "\n")
		}
		return nil
	case "logs":
		for _, l := range world.Logs() {
			out.WriteString(l + "\n")
		}
		return nil
	case "down", "up", "down-end", "up-end", "bytewise":
		c := s.conns[arg(0)]
		if c == nil {
			return fmt.Errorf("no connection %q", arg(0))
		}
		items := args[1:]
		bytewise := word == "bytewise"
		if bytewise {
			word, items = arg(1), items[1:]
		}
		side := filter.Downstream
		if strings.HasPrefix(word, "up") {
			side = filter.Upstream
		}
		return s.data(out, c, side, items, bytewise, strings.HasSuffix(word, "-end"))
	}
	return fmt.Errorf("unknown command")
}

// data runs the callbacks of one command.
func (s *Script) data(out *strings.Builder, c *scriptConn, side filter.Side, items []string, bytewise, end bool) error {
	var chunks [][]byte
	var chunk []byte
	for _, it := range items {
		if it == "|" {
			chunks = append(chunks, chunk)
			chunk = nil
			continue
		}
		b, err := item(it)
		if err != nil {
			return err
		}
		if c.codec == nil {
			for _, codec := range s.codecs {
				if strings.Contains(it, codec.Name()+".") {
					c.codec = codec
				}
			}
		}
		chunk = append(chunk, b...)
	}
	chunks = append(chunks, chunk)
	if bytewise {
		whole := bytes.Join(chunks, nil)
		chunks = nil
		for i := range whole {
			chunks = append(chunks, whole[i:i+1])
		}
	}
	var in, result []byte
	closed := false
	for i, ch := range chunks {
		got, cl, err := s.rig.Data(c.number, side, ch, end && i == len(chunks)-1)
		if err != nil {
			return err
		}
		in, result = append(in, ch...), append(result, got...)
		if cl {
			closed = true
			break
		}
	}
	switch {
	case bytes.Equal(in, result):
		fmt.Fprintf(out, "same, %d bytes\n", len(in))
	case len(result) == 0:
		out.WriteString("nothing\n")
	default:
		for _, l := range s.describe(c, side, result) {
			out.WriteString(l + "\n")
		}
	}
	if closed {
		out.WriteString("closed\n")
	}
	return nil
}

// describe tells what left a connection; side is whose bytes it was.
func (s *Script) describe(c *scriptConn, side filter.Side, b []byte) []string {
	if c.http2 == int(side) {
		return describeHTTP2(c.codec, b)
	}
	return describe(c.codec, b)
}
