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
func outputFlag(cmd *cobra.Command) *format {
	f := formatTable
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
}

func (t *table) add(cells ...cell) { t.rows = append(t.rows, cells) }

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
	head := make([]cell, len(t.head))
	for i, h := range t.head {
		head[i] = cell{text: h, colour: colourBold, right: t.rows[0][i].right}
	}
	for _, row := range append([][]cell{head}, t.rows...) {
		var b strings.Builder
		for i, c := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text))
			if c.right {
				b.WriteString(pad)
			}
			if s.Colour && c.colour != "" {
				fmt.Fprintf(&b, "\x1b[%sm%s\x1b[0m", c.colour, c.text)
			} else {
				b.WriteString(c.text)
			}
			if i == len(row)-1 {
				break
			}
			if !c.right {
				b.WriteString(pad)
			}
			b.WriteString("  ")
		}
		if _, err := io.WriteString(s.Out, strings.TrimRight(b.String(), " ")+"\n"); err != nil {
			return err
		}
	}
	return nil
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
