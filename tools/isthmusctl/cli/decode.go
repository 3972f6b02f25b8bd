package cli

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// maxInputBytes bounds what decode reads into memory.
const maxInputBytes = 256 << 20

// frameLine is what decode prints of one frame. Every field is always there: a text that a frame does not have is
// empty, a number null, attachments an empty object.
type frameLine struct {
	Offset            int               `json:"offset"`   // of the frame's first byte in the decoded input
	Bytes             uint64            `json:"bytes"`    // length of the whole frame as its header says
	Protocol          string            `json:"protocol"` // "" where no protocol fits
	Kind              string            `json:"kind"`     // request, oneway, response, heartbeat, event; "unknown" where the header is cut
	ID                *uint64           `json:"id"`       // unsigned, exact: up to 2^64-1
	Service           string            `json:"service"`
	Method            string            `json:"method"`
	Version           string            `json:"version"`
	Group             string            `json:"group"` // Dubbo group, SOFA uniqueId
	Caller            string            `json:"caller"`
	CallerIP          string            `json:"callerIP"`
	TimeoutMillis     *uint32           `json:"timeoutMillis"`
	Status            *uint16           `json:"status"` // of responses, in the protocol's own numbers
	StatusName        string            `json:"statusName"`
	Outcome           string            `json:"outcome"`           // of responses: ok, exception, timeout, ...
	Serialization     *uint8            `json:"serialization"`     // the protocol's own number
	SerializationName string            `json:"serializationName"` // "" for one that the protocol does not define
	Class             string            `json:"class"`             // of the object that the frame carries, where the frame's header says it (Bolt)
	Variant           *uint8            `json:"variant"`           // the protocol's own version, where it has several
	Reply             bool              `json:"reply"`             // the frame answers another: a response or a heartbeat's answer
	Attachments       map[string]string `json:"attachments"`
	Flaw              string            `json:"flaw"`            // why the body could not be read; the frames around it are not affected
	Error             *frameError       `json:"error,omitempty"` // only where the input is malformed
}

// frameError says where the input is malformed.
type frameError struct {
	Offset  int    `json:"offset"` // in the decoded input, from 0
	Message string `json:"message"`
}

type decodeFlags struct {
	hex, raw bool
	protocol string
}

func newDecode(s *Streams) *cobra.Command {
	var flags decodeFlags
	names := make([]string, len(wires))
	for i := range wires {
		names[i] = wires[i].codec.Name()
	}
	cmd := &cobra.Command{
		Use:   "decode [FILE|-]",
		Short: "Print the RPC frames in captured bytes, one JSON object a line",
		Long: `decode reads one or more frames from FILE or standard input, raw or as hexadecimal digits, and prints one JSON
object for each, on a line of its own. It reads them with the codecs that run in the sidecars.

Hexadecimal input may hold white space, line breaks and comments that begin with #. Without --hex or --raw, input that
is text is read as hexadecimal, anything else as raw bytes.

Every object has all fields: a text that the frame does not have is "", a number null. id is the exact unsigned number;
programs that read numbers as doubles lose digits of it beyond 2^53. Where a frame is malformed, its object has an
error with the offset in the (decoded) input. A malformed body does not keep the frames after it from being read; where
framing is lost or the input ends within a frame, that frame's object is the last one.

Exit code: 0 all frames are well formed; 1 a frame is malformed or cut, or there is none; 2 the input cannot be read.`,
		Example: `  isthmusctl decode capture.bin
  echo 'da bb e2 00  00 00 00 00 00 00 00 07  00 00 00 01  4e' | isthmusctl decode`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if flags.hex && flags.raw {
				return usagef("--hex and --raw exclude each other")
			}
			candidates := wires
			if flags.protocol != "auto" {
				i := slices.Index(names, flags.protocol)
				if i < 0 {
					return usagef("--protocol %q: one of auto, %s", flags.protocol, strings.Join(names, ", "))
				}
				candidates = wires[i : i+1]
			}
			input, err := readInput(s.In, args)
			if err != nil {
				return err
			}
			return decodeInput(s.Out, input, flags, candidates)
		},
	}
	cmd.Flags().BoolVar(&flags.hex, "hex", false, "the input is hexadecimal digits")
	cmd.Flags().BoolVar(&flags.raw, "raw", false, "the input is the frames' own bytes")
	cmd.Flags().StringVar(&flags.protocol, "protocol", "auto", "auto, "+strings.Join(names, ", "))
	return cmd
}

// readInput reads the file that args names, or in where it names none or "-".
func readInput(in io.Reader, args []string) ([]byte, error) {
	name := "standard input"
	if len(args) == 1 && args[0] != "-" {
		name = args[0]
		f, err := os.Open(name)
		if err != nil {
			return nil, usagef("%w", err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxInputBytes+1))
	if err != nil {
		return nil, usagef("%s: %w", name, err)
	}
	if len(b) > maxInputBytes {
		return nil, usagef("%s: more than %d MiB", name, maxInputBytes>>20)
	}
	return b, nil
}

// decodeInput prints the frames in input. The error says what the output has shown already, or why it could not be
// written.
func decodeInput(out io.Writer, input []byte, flags decodeFlags, candidates []wire) error {
	w := bufio.NewWriter(out)
	lines := json.NewEncoder(w)
	lines.SetEscapeHTML(false)
	var hexFault error
	if flags.hex || !flags.raw && isText(input) {
		input, hexFault = parseHex(input)
	}
	bad := false
	err := decodeFrames(input, candidates, func(l *frameLine) error {
		bad = bad || l.Error != nil
		return lines.Encode(l)
	})
	if err != nil {
		return err
	}
	if hexFault != nil && !bad {
		l := &frameLine{Offset: len(input), Kind: protocol.KindUnknown.String(), Attachments: map[string]string{}, Error: &frameError{len(input), hexFault.Error()}}
		if err := lines.Encode(l); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	switch {
	case hexFault != nil:
		return badf("%w", hexFault)
	case len(input) == 0:
		return badf("no frames: the input is empty")
	case bad:
		return errQuiet
	}
	return nil
}

// isText tells whether input can be hexadecimal digits, white space and comments, rather than a frame's bytes: every
// frame has bytes that no text has. Bytes beyond ASCII may stand in comments.
func isText(input []byte) bool {
	comment := false
	for _, c := range input {
		switch {
		case c == '\n':
			comment = false
		case c == '#':
			comment = true
		case c < ' ' && c != '\t' && c != '\r' && c != '\f' && c != '\v', c == 0x7f, c > 0x7f && !comment:
			return false
		}
	}
	return true
}

// parseHex reads hexadecimal digits, leaving out white space and comments. On a fault it returns the bytes before it.
func parseHex(text []byte) ([]byte, error) {
	digits := make([]byte, 0, len(text))
	line, column := 1, 0
	comment := false
	for _, c := range text {
		column++
		switch {
		case c == '\n':
			line, column, comment = line+1, 0, false
		case comment || c == ' ' || c == '\t' || c == '\r' || c == '\f' || c == '\v':
		case c == '#':
			comment = true
		case c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F':
			digits = append(digits, c)
		default:
			return fromHex(digits[:len(digits)&^1]), fmt.Errorf("line %d, column %d: %q is not a hexadecimal digit", line, column, string(rune(c)))
		}
	}
	if len(digits)%2 != 0 {
		return fromHex(digits[:len(digits)-1]), fmt.Errorf("an odd number of hexadecimal digits: %d", len(digits))
	}
	return fromHex(digits), nil
}

func fromHex(digits []byte) []byte {
	n, _ := hex.Decode(digits, digits) // the digits have been checked, and decoding in place is allowed
	return digits[:n]
}

// decodeFrames calls emit for each frame in input until there are none or framing is lost. Its error is emit's.
func decodeFrames(input []byte, candidates []wire, emit func(*frameLine) error) error {
	for off := 0; off < len(input); {
		l, last := decodeFrame(input, off, candidates)
		if err := emit(l); err != nil {
			return err
		}
		if last {
			return nil
		}
		off += int(l.Bytes)
	}
	return nil
}

// decodeFrame reads the frame at input[off:]. last says that nothing can be read after it.
func decodeFrame(input []byte, off int, candidates []wire) (l *frameLine, last bool) {
	b := input[off:]
	l = &frameLine{Offset: off, Kind: protocol.KindUnknown.String(), Attachments: map[string]string{}}
	var f protocol.Frame
	var w *wire
	var lost error // why the likeliest candidate cannot read it
	need := 0
	for i := range candidates {
		n, err := candidates[i].codec.Decode(&f, b)
		if err == nil {
			w, need = &candidates[i], n
			break
		}
		// A protocol that knows the frame's beginning and rejects its length says more than one that knows nothing of it.
		if lost == nil || errors.Is(err, protocol.ErrLength) {
			lost = err
			l.Error = &frameError{Offset: off + int(f.FlawOff), Message: err.Error()}
			l.Protocol = ""
			if errors.Is(err, protocol.ErrLength) || len(candidates) == 1 {
				l.Protocol = candidates[i].codec.Name()
			}
		}
	}
	if w == nil {
		if l.Protocol == "" {
			l.Error.Message = "not a frame of a known protocol"
		}
		l.Bytes = uint64(len(b))
		return l, true
	}
	l.Error = nil
	w.describe(l, &f, b)
	if need > 0 || f.Len > uint64(len(b)) {
		message := fmt.Sprintf("the input ends within the frame, after %d of its %d bytes", len(b), f.Len)
		if f.Len == 0 {
			message = fmt.Sprintf("the input ends within the frame's header, after %d bytes", len(b))
		}
		l.Error = &frameError{Offset: len(input), Message: message}
		return l, true
	}
	if f.Flaw == protocol.FlawMalformed || f.Flaw == protocol.FlawTooDeep {
		l.Error = &frameError{Offset: off + int(f.FlawOff), Message: "the body is " + strings.ReplaceAll(f.Flaw.String(), "_", " ")}
		return l, false
	}
	err := w.attachments(l, &f, b[:f.Len])
	if f.Flaw != protocol.FlawNone { // a lazy codec finds it only now
		l.Flaw = f.Flaw.String()
	}
	if err != nil && !errors.Is(err, protocol.ErrSerialization) {
		l.Error = &frameError{Offset: off + int(f.FlawOff), Message: err.Error()}
	}
	if w.verify != nil && l.Error == nil {
		if err := w.verify(b[:f.Len]); err != nil {
			l.Error = &frameError{Offset: off, Message: err.Error()}
		}
	}
	return l, false
}
