package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// format is how a command prints its answer.
type format string

// The formats.
const (
	formatTable format = "table"
	formatJSON  format = "json"
	formatYAML  format = "yaml"
)

// String, Set and Type make *format a flag.
func (f *format) String() string { return string(*f) }

// Set takes one of the formats.
func (f *format) Set(s string) error {
	if !slices.Contains([]format{formatTable, formatJSON, formatYAML}, format(s)) {
		return fmt.Errorf("one of table, json, yaml")
	}
	*f = format(s)
	return nil
}

// Type is shown in the usage text.
func (f *format) Type() string { return "table|json|yaml" }

// outputFlag adds -o to a command, with table as the default.
func outputFlag(cmd *cobra.Command) *format { return outputFlagOf(cmd, formatTable) }

// outputFlagOf adds -o to a command, with another default.
func outputFlagOf(cmd *cobra.Command, f format) *format {
	cmd.Flags().VarP(&f, "output", "o", "how to print the answer")
	return &f
}

// print prints v as JSON or YAML, or the table that rows makes of it.
func (s *Streams) print(f format, v any, rows func() *table) error {
	switch f {
	case formatJSON:
		e := json.NewEncoder(s.Out)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(v)
	case formatYAML:
		b, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = s.Out.Write(b)
		return err
	}
	return rows().write(s)
}

// The colours, as SGR parameters.
const (
	colourRed    = "31"
	colourGreen  = "32"
	colourYellow = "33"
	colourDim    = "2"
	colourBold   = "1"
)

// cell is one field of a table.
type cell struct {
	text   string
	colour string // "" is the terminal's own
	right  bool   // numbers stand right
}

func text(s string) cell             { return cell{text: s} }
func number(n int) cell              { return cell{text: fmt.Sprint(n), right: true} }
func coloured(s, colour string) cell { return cell{text: s, colour: colour} }

// table is aligned output for people. Empty fields are shown as "-".
type table struct {
	head  []string
	rows  [][]cell
	empty string // what to say where there are no rows
	// spare are the columns that a terminal which is too narrow goes without, the first one first.
	spare []int
	// wrap says that the last column is running text, which on a terminal that is too narrow goes on below itself, or, where there is no
	// room for that either, stands below its row.
	wrap bool
}

func (t *table) add(cells ...cell) { t.rows = append(t.rows, cells) }

const (
	gap         = 2  // blanks between two columns
	minWrap     = 30 // how narrow running text may become
	belowIndent = 4  // of running text below its row
	noRoom      = -1 // for running text beside its row
)

func (t *table) write(s *Streams) error {
	if len(t.rows) == 0 {
		_, err := fmt.Fprintln(s.Out, t.empty)
		return err
	}
	widths := make([]int, len(t.head))
	for i, h := range t.head {
		widths[i] = utf8.RuneCountInString(h)
	}
	for _, row := range t.rows {
		for i := range row {
			row[i].text = printable(row[i].text)
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i].text))
		}
	}
	shown, last := t.fit(widths, s.width())
	var below int // the column that stands below its row
	if last == noRoom {
		below, shown, last = shown[len(shown)-1], shown[:len(shown)-1], 0
	}
	head := make([]cell, len(t.head))
	for i, h := range t.head {
		head[i] = cell{text: h, colour: colourBold, right: t.rows[0][i].right}
	}
	var b strings.Builder
	for n, row := range append([][]cell{head}, t.rows...) {
		rest := []string{row[shown[len(shown)-1]].text}
		if last > 0 {
			rest = wrapped(rest[0], last)
		}
		for k, line := range rest {
			var out strings.Builder
			for j, i := range shown {
				c := row[i]
				if j == len(shown)-1 {
					c.text = line
				} else if k > 0 {
					c.text = ""
				}
				pad := strings.Repeat(" ", max(widths[i]-utf8.RuneCountInString(c.text), 0))
				if c.right {
					out.WriteString(pad)
				}
				out.WriteString(s.paint(c.colour, c.text))
				if j == len(shown)-1 {
					break
				}
				if !c.right {
					out.WriteString(pad)
				}
				out.WriteString(strings.Repeat(" ", gap))
			}
			b.WriteString(strings.TrimRight(out.String(), " ") + "\n")
		}
		if below > 0 && n > 0 {
			for _, line := range wrapped(row[below].text, max(s.width()-belowIndent, minWrap)) {
				b.WriteString(strings.Repeat(" ", belowIndent) + s.paint(row[below].colour, line) + "\n")
			}
		}
	}
	_, err := io.WriteString(s.Out, b.String())
	return err
}

// fit returns the columns that a terminal of so many columns shows, and how wide the last one is: 0 for as it is, noRoom where it
// has to stand below. 0 columns are as many as are needed.
func (t *table) fit(widths []int, columns int) (shown []int, last int) {
	shown = make([]int, len(widths))
	total := -gap
	for i, w := range widths {
		shown[i] = i
		total += w + gap
	}
	if columns == 0 || total <= columns {
		return shown, 0
	}
	end := len(widths) - 1
	if room := columns - (total - widths[end]); t.wrap && room >= minWrap {
		return shown, room
	}
	for _, i := range t.spare {
		shown = slices.DeleteFunc(shown, func(have int) bool { return have == i })
		if total -= widths[i] + gap; total <= columns {
			return shown, 0
		}
	}
	switch room := columns - (total - widths[end]); {
	case t.wrap && room >= minWrap:
		return shown, room
	case t.wrap && len(shown) > 1:
		return shown, noRoom
	}
	return shown, 0 // the terminal breaks the lines
}

// wrapped breaks running text at blanks into lines of so many columns; a word that is longer stands by itself.
func wrapped(text string, columns int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > columns {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

// paint returns text in a colour, where colours are shown.
func (s *Streams) paint(colour, text string) string {
	if !s.Colour || colour == "" || text == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// printable makes a string from a registry or from the wire safe for a terminal: no control characters, which could move
// the cursor or worse. An empty one becomes "-".
func printable(s string) string {
	if s == "" {
		return "-"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '?'
		}
		return r
	}, s)
}
