package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// yamlList is a list in a YAML file that a person keeps: it is edited in place, so that comments, blank lines and the
// order of everything else stay as they are.
type yamlList struct {
	text []byte
	path []string // keys from the document's root to the list
}

// check tells why the list cannot be worked on.
func (l *yamlList) check() error {
	_, _, err := l.parse()
	return err
}

// named returns the index of the item with that name, -1 where there is none.
func (l *yamlList) named(name string) (int, error) {
	_, list, err := l.parse()
	if err != nil || list == nil {
		return -1, err
	}
	return slices.IndexFunc(list.Content, func(n *yaml.Node) bool {
		v := mappingValue(n, "name")
		return v != nil && v.Value == name
	}), nil
}

// names returns the names of the items.
func (l *yamlList) names() []string {
	_, list, err := l.parse()
	if err != nil || list == nil {
		return nil
	}
	var names []string
	for _, n := range list.Content {
		if v := mappingValue(n, "name"); v != nil {
			names = append(names, v.Value)
		}
	}
	return names
}

// parse returns the document and the list in it, nil where it is absent or null.
func (l *yamlList) parse() (doc, list *yaml.Node, err error) {
	doc = new(yaml.Node)
	d := yaml.NewDecoder(bytes.NewReader(l.text))
	switch err := d.Decode(doc); {
	case errors.Is(err, io.EOF) || err == nil && doc.Kind == 0:
		return nil, nil, errors.New("the file is empty")
	case err != nil:
		return nil, nil, err
	}
	if more := new(yaml.Node); !errors.Is(d.Decode(more), io.EOF) {
		return nil, nil, errors.New("only one document is expected")
	}
	n := doc.Content[0]
	for i, key := range l.path {
		if n.Kind != yaml.MappingNode {
			return nil, nil, fmt.Errorf("line %d: %s must be a mapping", n.Line, strings.Join(l.path[:i], "."))
		}
		next := mappingValue(n, key)
		if next == nil || next.Tag == "!!null" {
			return doc, nil, nil
		}
		n = next
	}
	if n.Kind != yaml.SequenceNode {
		return nil, nil, fmt.Errorf("line %d: %s must be a list", n.Line, strings.Join(l.path, "."))
	}
	return doc, n, nil
}

func mappingValue(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// add appends an item.
func (l *yamlList) add(item *yaml.Node) error {
	doc, list, err := l.parse()
	if err != nil {
		return err
	}
	if list == nil || list.Style&yaml.FlowStyle != 0 || len(list.Content) == 0 {
		// There is no place to write to line by line; yaml.v3 keeps the comments, though not the blank lines.
		n := doc.Content[0]
		for i, key := range l.path {
			next := mappingValue(n, key)
			if next == nil {
				next = new(yaml.Node)
				n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key}, next)
			}
			// A comment behind a value on one line goes with the value, which moves to further lines: it stays behind the key.
			if at := slices.Index(n.Content, next) - 1; n.Content[at].LineComment == "" {
				n.Content[at].LineComment, next.LineComment = next.LineComment, ""
			}
			if next.Kind == 0 || next.Tag == "!!null" {
				*next = yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", HeadComment: next.HeadComment, LineComment: next.LineComment, FootComment: next.FootComment}
				if i == len(l.path)-1 {
					next.Kind, next.Tag = yaml.SequenceNode, "!!seq"
				}
			}
			n = next
		}
		n.Style = 0
		n.Content = append(n.Content, item)
		return l.encode(doc)
	}
	lines := splitLines(l.text)
	dash := dashOf(list)
	_, end := itemLines(lines, list, len(list.Content)-1)
	list.Content = append(list.Content, item)
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode([]*yaml.Node{item}); err != nil {
		return err
	}
	var added []string
	for _, line := range splitLines(b.Bytes()) {
		// yaml.v3 indents a sequence within a document by the same two blanks or none, depending on what holds it: here it
		// stands by itself and begins at the margin.
		added = append(added, strings.Repeat(" ", dash)+line)
	}
	if end > 0 && !strings.HasSuffix(lines[end-1], "\n") {
		lines[end-1] += "\n"
	}
	return l.take(strings.Join(lines[:end], "")+strings.Join(added, "")+strings.Join(lines[end:], ""), doc)
}

// take takes over a text that was edited line by line, if it says what doc says. YAML has forms in which lines are not what they
// seem; for those doc is written anew, which keeps the comments, though not the layout.
func (l *yamlList) take(edited string, doc *yaml.Node) error {
	var want, got any
	if err := doc.Decode(&want); err != nil {
		return err
	}
	if yaml.Unmarshal([]byte(edited), &got) != nil || !reflect.DeepEqual(got, want) {
		return l.encode(doc)
	}
	l.text = []byte(edited)
	return nil
}

// remove takes out the item at index, with the comment that stands directly above it.
func (l *yamlList) remove(index int) error {
	doc, list, err := l.parse()
	if err != nil {
		return err
	}
	if list == nil || index < 0 || index >= len(list.Content) {
		return errors.New("no such item")
	}
	if list.Style&yaml.FlowStyle != 0 || len(list.Content) == 1 {
		list.Content = append(list.Content[:index:index], list.Content[index+1:]...)
		if len(list.Content) == 0 {
			list.Style = yaml.FlowStyle // [] rather than nothing
		}
		return l.encode(doc)
	}
	lines := splitLines(l.text)
	begin, end := itemLines(lines, list, index)
	list.Content = append(list.Content[:index:index], list.Content[index+1:]...)
	return l.take(strings.Join(lines[:begin], "")+strings.Join(lines[end:], ""), doc)
}

// errLayout says that yaml.v3 does not write the document as it has read it.
var errLayout = errors.New("the file has a layout that cannot be kept; edit it by hand")

// encode writes the document anew.
func (l *yamlList) encode(doc *yaml.Node) error {
	spellNulls(doc, false)
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(doc); err != nil {
		return err
	}
	var want, got any
	if err := doc.Decode(&want); err != nil {
		return err
	}
	if yaml.Unmarshal(b.Bytes(), &got) != nil || !reflect.DeepEqual(got, want) {
		return errLayout
	}
	l.text = b.Bytes()
	return nil
}

// spellNulls writes out the values that are left away within {} and []: yaml.v3 would write them as empty texts.
func spellNulls(n *yaml.Node, flow bool) {
	if flow && n.Kind == yaml.ScalarNode && n.Tag == "!!null" && n.Value == "" {
		n.Value = "null"
	}
	for _, c := range n.Content {
		spellNulls(c, flow || n.Style&yaml.FlowStyle != 0)
	}
}

// splitLines splits text into lines that keep their line breaks.
func splitLines(text []byte) []string {
	lines := strings.SplitAfter(string(text), "\n")
	if lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	return lines
}

// dashOf returns how far the dashes of a block list are indented.
func dashOf(list *yaml.Node) int { return list.Column - 1 }

// itemLines returns the lines of an item of a block list, from the comment directly above it to the line before whatever
// comes next.
func itemLines(lines []string, list *yaml.Node, index int) (begin, end int) {
	dash := dashOf(list)
	begin = min(list.Content[index].Line, len(lines)) - 1
	for begin > list.Line-1 && !strings.HasPrefix(lines[begin][min(dash, len(lines[begin])):], "-") {
		begin-- // the dash stands on a line by itself
	}
	end = begin + 1
	for end < len(lines) {
		blank := strings.TrimSpace(lines[end]) == ""
		if !blank && indentOf(lines[end]) <= dash {
			break
		}
		end++
	}
	// Blank lines at the end separate it from what comes next.
	for end > begin+1 && strings.TrimSpace(lines[end-1]) == "" {
		end--
	}
	for begin > 0 && strings.HasPrefix(strings.TrimSpace(lines[begin-1]), "#") && indentOf(lines[begin-1]) == dash {
		begin--
	}
	return begin, end
}

func indentOf(line string) int { return len(line) - len(strings.TrimLeft(line, " ")) }
