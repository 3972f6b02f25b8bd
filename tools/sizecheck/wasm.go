package main

import (
	"errors"
	"regexp"
	"strings"
)

// Section and name-subsection numbers of the WebAssembly binary format (Core Specification 2.0, §5.5 and appendix 7.4).
const (
	sectionCustom = 0
	sectionImport = 2
	sectionCode   = 10
	sectionData   = 11

	subsectionFunctions = 1

	externFunction = 0
	externTable    = 1
	externMemory   = 2
	externGlobal   = 3
)

var errModule = errors.New("not a WebAssembly module that the Go linker writes")

// module is what of a WebAssembly module tells its size.
type module struct {
	imported int            // imported functions: they take the first indices
	bodies   []int          // bytes of each function body
	names    map[int]string // by function index
	data     int            // bytes of the data section
}

// reader reads the binary format. After a fault every read answers zero values and bad is set.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) u32() int {
	n := 0
	for shift := 0; shift < 35; shift += 7 {
		if len(r.b) == 0 {
			break
		}
		c := r.b[0]
		r.b = r.b[1:]
		n |= int(c&0x7f) << shift
		if c < 0x80 {
			return n
		}
	}
	r.bad = true
	return 0
}

func (r *reader) take(n int) []byte {
	if r.bad || n > len(r.b) {
		r.bad = true
		return nil
	}
	head := r.b[:n]
	r.b = r.b[n:]
	return head
}

func (r *reader) name() string { return string(r.take(r.u32())) }

func (r *reader) limits() {
	if r.u32()&1 != 0 {
		r.u32()
	}
	r.u32()
}

// parseModule reads a module that was linked with its names.
func parseModule(b []byte) (*module, error) {
	if !strings.HasPrefix(string(b), "\x00asm\x01\x00\x00\x00") {
		return nil, errModule
	}
	m := &module{names: make(map[int]string)}
	r := reader{b: b[8:]}
	for len(r.b) > 0 && !r.bad {
		id := r.take(1)
		s := reader{b: r.take(r.u32())}
		if r.bad {
			break
		}
		switch id[0] {
		case sectionImport:
			for n := s.u32(); n > 0 && !s.bad; n-- {
				s.name()
				s.name()
				switch s.u32() {
				case externFunction:
					m.imported++
					s.u32()
				case externTable:
					s.u32()
					s.limits()
				case externMemory:
					s.limits()
				case externGlobal:
					s.take(2)
				default:
					s.bad = true
				}
			}
		case sectionCode:
			for n := s.u32(); n > 0 && !s.bad; n-- {
				m.bodies = append(m.bodies, len(s.take(s.u32())))
			}
		case sectionData:
			m.data = len(s.b)
		case sectionCustom:
			if s.name() != "name" {
				break
			}
			for len(s.b) > 0 && !s.bad {
				kind := s.u32()
				sub := reader{b: s.take(s.u32())}
				if kind != subsectionFunctions {
					continue
				}
				for n := sub.u32(); n > 0 && !sub.bad; n-- {
					index := sub.u32()
					m.names[index] = sub.name()
				}
				s.bad = s.bad || sub.bad
			}
		}
		if s.bad {
			return nil, errModule
		}
	}
	if r.bad {
		return nil, errModule
	}
	return m, nil
}

// mangled is what some versions of the Go linker replace by _ in names of WebAssembly functions; comparing mangled names
// serves all versions.
var mangled = regexp.MustCompile(`[^\w.]`)

// codeByPackage adds up the function bodies by package. A function that belongs to none of packages, such as an
// assembly stub of the runtime, counts as "(other)".
func (m *module) codeByPackage(packages []string) map[string]int {
	byName := make(map[string]string, len(packages))
	for _, p := range packages {
		byName[mangled.ReplaceAllString(p, "_")] = p
	}
	sums := make(map[string]int)
	for i, size := range m.bodies {
		name := mangled.ReplaceAllString(m.names[m.imported+i], "_")
		owner := "(other)"
		// The package is the longest known name that a dot follows.
		for end := len(name); end > 0; {
			if end = strings.LastIndexByte(name[:end], '.'); end <= 0 {
				break
			}
			if p, ok := byName[name[:end]]; ok {
				owner = p
				break
			}
		}
		sums[owner] += size
	}
	return sums
}
