package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// page is one Markdown file.
type page struct {
	path    string // from the top, with slashes
	anchors map[string]bool
	links   []link
	blocks  []block
}

func (p *page) readme() bool { return path.Base(p.path) == "README.md" }

// link is a link or an image in running text.
type link struct {
	line   int
	target string
}

// block is a fenced code block.
type block struct {
	line int    // of its first line of text
	kind string // the first word after the fence
	text string
	skip string // why it is not run; "" if it is
	as   string // the kind of document that it holds; "" if it says so itself
	mark string // a mark that is not understood
}

var (
	fenceLine = regexp.MustCompile("^ {0,3}(```+|~~~+)[ \t]*([^`\\s]*)")
	heading   = regexp.MustCompile(`^ {0,3}#{1,6}[ \t]+(.*?)[ \t]*#*[ \t]*$`)
	markLine  = regexp.MustCompile(`^\s*<!--\s*doccheck:\s*(\S+)\s*(.*?)\s*-->\s*$`)
	linkText  = regexp.MustCompile(`\]\(\s*<?([^)\s>]+)>?(?:\s+"[^"]*")?\s*\)`)
	reference = regexp.MustCompile(`^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)>?`)
	codeSpan  = regexp.MustCompile("`+[^`]*`+")
	htmlName  = regexp.MustCompile(`<a\s+(?:id|name)="([^"]+)"`)
)

// parsePage reads what is checked of a Markdown file.
func parsePage(p string, text string) *page {
	pg := &page{path: p, anchors: make(map[string]bool)}
	var open *block // the block that the lines belong to
	var fence string
	var mark []string
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSuffix(line, "\r")
		m := fenceLine.FindStringSubmatch(line)
		if open != nil {
			if m != nil && m[2] == "" && m[1][0] == fence[0] && len(m[1]) >= len(fence) {
				pg.blocks = append(pg.blocks, *open)
				open = nil
				continue
			}
			open.text += line + "\n"
			continue
		}
		if m != nil {
			fence = m[1]
			open = &block{line: i + 2, kind: m[2]}
			switch {
			case mark == nil:
			case mark[1] == "skip":
				open.skip = mark[2]
				if open.skip == "" {
					open.mark = "skip without a reason"
				}
			case mark[1] == "as" && mark[2] != "":
				open.as = mark[2]
			default:
				open.mark = "unknown mark " + mark[1]
			}
			mark = nil
			continue
		}
		if m := markLine.FindStringSubmatch(line); m != nil {
			mark = m
			continue
		}
		if strings.TrimSpace(line) != "" {
			mark = nil
		}
		if m := heading.FindStringSubmatch(line); m != nil {
			pg.addAnchor(slug(m[1]))
		}
		plain := codeSpan.ReplaceAllString(line, "")
		for _, m := range htmlName.FindAllStringSubmatch(plain, -1) {
			pg.anchors[m[1]] = true
		}
		for _, m := range linkText.FindAllStringSubmatch(plain, -1) {
			pg.links = append(pg.links, link{line: i + 1, target: m[1]})
		}
		if m := reference.FindStringSubmatch(plain); m != nil {
			pg.links = append(pg.links, link{line: i + 1, target: m[1]})
		}
	}
	if open != nil {
		open.mark = "the block is not closed"
		pg.blocks = append(pg.blocks, *open)
	}
	return pg
}

// addAnchor notes a heading's anchor; a repeated heading gets a number, as GitHub numbers them.
func (p *page) addAnchor(s string) {
	anchor := s
	for n := 1; p.anchors[anchor]; n++ {
		anchor = fmt.Sprintf("%s-%d", s, n)
	}
	p.anchors[anchor] = true
}

// slug makes a heading's anchor as GitHub does: lower case, blanks become hyphens, punctuation goes.
func slug(s string) string {
	s = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`).ReplaceAllString(s, "$1")
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			return unicode.ToLower(r)
		}
		return -1
	}, s)
}

// findPages reads every Markdown file that git tracks or would add; without git, every one below root.
func findPages(root string) ([]*page, error) {
	var paths []string
	cmd := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md")
	cmd.Dir = root
	if out, err := cmd.Output(); err == nil && len(out) > 0 {
		paths = strings.Split(string(bytes.TrimSuffix(out, []byte{0})), "\x00")
	} else if err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.IsDir() && strings.HasSuffix(p, ".md") {
			rel, err := filepath.Rel(root, p)
			if err != nil {
				return err
			}
			paths = append(paths, filepath.ToSlash(rel))
		}
		return nil
	}); err != nil {
		return nil, err
	}
	slices.Sort(paths)
	var pages []*page
	for _, p := range slices.Compact(paths) {
		if slices.Contains(strings.Split(p, "/"), "testdata") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(p)))
		if os.IsNotExist(err) {
			continue // deleted, not yet committed
		}
		if err != nil {
			return nil, err
		}
		pages = append(pages, parsePage(p, string(text)))
	}
	return pages, nil
}

// checkLinks holds the relative links of a page to the files and headings that there are.
func (c *checker) checkLinks(p *page) []fault {
	var faults []fault
	for _, l := range p.links {
		target, anchor, _ := strings.Cut(l.target, "#")
		if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
			continue
		}
		to := p.path
		if target != "" {
			if strings.HasPrefix(target, "/") {
				faults = append(faults, fault{p.path, l.line, "link " + l.target + ": not relative"})
				continue
			}
			to = path.Join(path.Dir(p.path), target)
		}
		if _, err := os.Stat(filepath.Join(c.root, filepath.FromSlash(to))); err != nil || to == ".." || strings.HasPrefix(to, "../") {
			faults = append(faults, fault{p.path, l.line, "link " + l.target + ": no such file"})
			continue
		}
		if page := c.pages[to]; anchor != "" && page != nil && !page.anchors[anchor] {
			faults = append(faults, fault{p.path, l.line, "link " + l.target + ": no such heading"})
		}
	}
	return faults
}
