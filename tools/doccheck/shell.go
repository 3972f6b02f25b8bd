package main

import (
	"errors"
	"os"
	"regexp"
	"strings"
)

// command is one simple command of a shell script.
type command struct {
	line  int      // in its block, from 0
	words []string // unquoted; what the shell would expand stands as it is
	input []string // files that input is redirected from
}

var errQuote = errors.New("a quote is not closed")

// assignment matches VAR=value before a command.
var assignment = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=`)

// keywords begin or end a compound command; the commands within are what is looked at.
var keywords = map[string]bool{
	"if": true, "then": true, "else": true, "elif": true, "fi": true, "while": true, "until": true, "do": true, "done": true, "!": true, "{": true, "}": true, "time": true, "sudo": true,
}

// splitCommands splits a script into its simple commands. It knows quotes, comments, continued lines, pipes, lists,
// redirections, here-documents and command substitutions well enough for what a page shows; bash -n checks the grammar.
func splitCommands(script string) ([]command, error) {
	var out []command
	var words, input []string
	var word strings.Builder
	inWord, line := false, 0
	begun := 0
	redirect := byte(0) // the operator that the next word belongs to
	heredoc := ""
	endWord := func() {
		if !inWord {
			return
		}
		w := word.String()
		word.Reset()
		inWord = false
		switch {
		case redirect == '<':
			input = append(input, w)
		case redirect == 'h':
			heredoc = strings.TrimPrefix(w, "-")
		case redirect == '>':
		default:
			if len(words) == 0 {
				begun = line
			}
			words = append(words, w)
		}
		redirect = 0
	}
	endCommand := func() {
		endWord()
		for len(words) > 0 && (assignment.MatchString(words[0]) || keywords[words[0]]) {
			words = words[1:]
		}
		if len(words) > 0 && words[0] == "for" {
			words = nil
		}
		if len(words) > 0 {
			out = append(out, command{line: begun, words: words, input: input})
		}
		words, input = nil, nil
	}
	for i := 0; i < len(script); i++ {
		c := script[i]
		switch {
		case c == '\\' && i+1 < len(script):
			i++
			if script[i] == '\n' {
				line++
				continue
			}
			word.WriteByte(script[i])
			inWord = true
		case c == '\'' || c == '"':
			end := i + 1
			for end < len(script) && script[end] != c {
				if c == '"' && script[end] == '\\' {
					end++
				}
				end++
			}
			if end >= len(script) {
				return nil, errQuote
			}
			word.WriteString(script[i+1 : end])
			line += strings.Count(script[i+1:end], "\n")
			inWord = true
			i = end
		case c == '$' && i+1 < len(script) && (script[i+1] == '(' || script[i+1] == '{'):
			end := closing(script, i+1)
			if end < 0 {
				return nil, errQuote
			}
			if script[i+1] == '(' && !strings.HasPrefix(script[i:], "$((") {
				inner, err := splitCommands(script[i+2 : end])
				if err != nil {
					return nil, err
				}
				for _, cmd := range inner {
					cmd.line += line
					out = append(out, cmd)
				}
			}
			word.WriteString(script[i : end+1])
			line += strings.Count(script[i:end+1], "\n")
			inWord = true
			i = end
		case c == '#' && !inWord:
			for i+1 < len(script) && script[i+1] != '\n' {
				i++
			}
		case c == '\n':
			endCommand()
			line++
			if heredoc != "" {
				rest := script[i+1:]
				for rest != "" {
					text, after, _ := strings.Cut(rest, "\n")
					i += len(text) + 1
					rest = after
					line++
					if strings.TrimSpace(text) == heredoc {
						break
					}
				}
				heredoc = ""
			}
		case c == ';' || c == '|' || c == '&' || c == '(' || c == ')':
			if c == '&' && i+1 < len(script) && script[i+1] == '>' { // &>file
				continue
			}
			endCommand()
		case c == '<' || c == '>':
			if s := word.String(); s == "1" || s == "2" { // 2>file
				word.Reset()
				inWord = false
			}
			endWord()
			redirect = c
			switch rest := script[i:]; {
			case strings.HasPrefix(rest, "<<<"):
				redirect = '>' // its word is text, no file
				i += 2
			case strings.HasPrefix(rest, "<<"):
				redirect = 'h'
				i++
			case strings.HasPrefix(rest, ">>"), strings.HasPrefix(rest, ">&"), strings.HasPrefix(rest, "<&"):
				if c == '<' {
					redirect = '>'
				}
				i++
			}
		case c == ' ' || c == '\t' || c == '\r':
			endWord()
		default:
			word.WriteByte(c)
			inWord = true
		}
	}
	endCommand()
	return out, nil
}

// closing returns where the bracket at s[open] is closed, -1 if it is not.
func closing(s string, open int) int {
	depth := 0
	for i := open; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '(', '{':
			depth++
		case ')', '}':
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return -1
}

var target = regexp.MustCompile(`(?m)^([a-z0-9-]+):`)

// makeTargets lists the targets of a Makefile.
func makeTargets(file string) (map[string]bool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	targets := make(map[string]bool)
	for _, m := range target.FindAllStringSubmatch(string(text), -1) {
		targets[m[1]] = true
	}
	return targets, nil
}
