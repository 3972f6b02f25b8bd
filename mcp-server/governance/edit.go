package governance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"sigs.k8s.io/yaml"

	"github.com/isthmus-mesh/isthmus/adapters"
)

// Locate returns the name of the first file that holds a rule of that id, faulty or not, "" where none does.
func Locate(files []File, id ID) string {
	for _, f := range files {
		docs, err := adapters.ParseDocuments(f.Text)
		if err != nil {
			continue
		}
		for _, d := range docs {
			if d.Line() > 0 && idOf(d) == id {
				return f.Name
			}
		}
	}
	return ""
}

// Edit returns the text of a file in which the rule is as rule says, one document; an empty rule removes it, and an id that the text does not have is
// added at its end. Everything else in the file stays byte for byte. isJSON says that the file holds JSON, hence one document.
func Edit(text []byte, id ID, rule []byte, isJSON bool) ([]byte, error) {
	if isJSON {
		return editJSON(text, id, rule)
	}
	parts := documents(text)
	ids := make([]ID, len(parts))
	at := -1
	for i, part := range parts {
		docs, err := adapters.ParseDocuments(part)
		if err != nil {
			return nil, fmt.Errorf("governance: %w", err)
		}
		if len(docs) == 0 || docs[0].Line() == 0 {
			continue
		}
		ids[i] = idOf(docs[0])
		if ids[i] == id && at < 0 {
			at = i
		}
	}
	rule = own(rule)
	switch {
	case at >= 0 && len(rule) > 0:
		parts[at] = slices.Concat(separator(parts[at]), rule)
	case at >= 0:
		parts = slices.Delete(parts, at, at+1)
		ids = slices.Delete(ids, at, at+1)
		if at == 0 && len(parts) > 0 {
			parts[0] = parts[0][len(separator(parts[0])):]
		}
	case len(rule) == 0:
		return text, nil
	default:
		if len(text) > 0 && text[len(text)-1] != '\n' {
			parts[len(parts)-1] = append(bytes.Clone(parts[len(parts)-1]), '\n')
		}
		mark := []byte("---\n")
		if len(bytes.TrimSpace(text)) == 0 {
			mark = nil
		}
		parts = append(parts, slices.Concat(mark, rule))
		ids = append(ids, id)
	}
	out := slices.Concat(parts...)
	// What was written must be what was meant, whatever a file may look like.
	docs, err := adapters.ParseDocuments(out)
	if err != nil {
		return nil, fmt.Errorf("governance: the file cannot be edited: %w", err)
	}
	var got []ID
	for _, d := range docs {
		if d.Line() > 0 {
			got = append(got, idOf(d))
		}
	}
	want := slices.DeleteFunc(ids, func(i ID) bool { return i == ID{} })
	if !slices.Equal(got, want) {
		return nil, errors.New("governance: the file cannot be edited: it is not laid out as documents between lines of ---")
	}
	return out, nil
}

// Document is one rule of a file, as it is written there.
type Document struct {
	Rule
	Text []byte
}

// Split reads the rules of one text, each with its own part of it. The error is adapters.Faults.
func Split(text []byte) ([]Document, error) {
	rules, err := Parse(text)
	if err != nil {
		return nil, err
	}
	if len(rules) == 1 {
		return []Document{{rules[0], text}}, nil
	}
	var out []Document
	for _, part := range documents(text) {
		one, err := Parse(part)
		if err != nil {
			return nil, err
		}
		for _, r := range one {
			if i := len(out); i < len(rules) && r.ID == rules[i].ID {
				r.Line = rules[i].Line
			}
			out = append(out, Document{r, own(part)})
		}
	}
	return out, nil
}

// editJSON is Edit for a file of JSON.
func editJSON(text []byte, id ID, rule []byte) ([]byte, error) {
	if len(bytes.TrimSpace(text)) > 0 {
		doc, err := adapters.ParseSettings(text)
		if err != nil {
			return nil, fmt.Errorf("governance: %w", err)
		}
		if got := idOf(doc); got != id {
			return nil, fmt.Errorf("governance: a file of JSON has room for one rule, and this one holds %s", got)
		}
	}
	if len(bytes.TrimSpace(rule)) == 0 {
		return nil, nil
	}
	b, err := yaml.YAMLToJSONStrict(rule)
	if err != nil {
		return nil, fmt.Errorf("governance: as JSON: %w", err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		return nil, fmt.Errorf("governance: as JSON: %w", err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// idOf returns as much of a document's ID as can be read.
func idOf(doc adapters.Settings) ID {
	var d document
	_ = doc.Decode(&d) // what is wrong with it others say
	return d.id()
}

// documents splits a stream of YAML before each line of ---, so that the parts make up the whole.
func documents(text []byte) [][]byte {
	var parts [][]byte
	start, at := 0, 0
	for line := range bytes.Lines(text) {
		if at > start && isSeparator(line) {
			parts = append(parts, text[start:at])
			start = at
		}
		at += len(line)
	}
	if start < len(text) {
		parts = append(parts, text[start:])
	}
	return parts
}

func isSeparator(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte("---"))
	return ok && (len(rest) == 0 || bytes.IndexByte([]byte(" \t\r\n"), rest[0]) >= 0)
}

// separator returns the line of --- that a part begins with, if it does.
func separator(part []byte) []byte {
	for line := range bytes.Lines(part) {
		if isSeparator(line) {
			return []byte("---\n")
		}
		break
	}
	return nil
}

// own returns a rule as it stands in a file: without a line of --- before it, with a line feed at its end.
func own(rule []byte) []byte {
	if len(bytes.TrimSpace(rule)) == 0 {
		return nil
	}
	for line := range bytes.Lines(rule) {
		if isSeparator(line) && len(bytes.TrimSpace(line)) == len("---") {
			rule = rule[len(line):]
		}
		break
	}
	rule = bytes.Clone(rule)
	if rule[len(rule)-1] != '\n' {
		rule = append(rule, '\n')
	}
	return rule
}
