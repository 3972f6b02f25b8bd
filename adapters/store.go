package adapters

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters/model"
)

// savedState is the last complete word of one registry.
//
// On disk it is lines of JSON: a header, one group a line sorted by source, and a trailer with the number of groups and
// the SHA-256 of all the bytes before it. So it can be written and read without being held in memory twice, looked into
// with ordinary tools, and a torn or touched file is noticed.
type savedState struct {
	Registry string
	Kind     string
	LastWord time.Time
	Groups   []model.Group
}

const (
	stateFormat  = "isthmus/registry-state"
	stateVersion = 1
	// maxStateBytes and maxStateLine bound what load takes into memory.
	maxStateBytes = 2 << 30
	maxStateLine  = 64 << 20
)

type stateHeader struct {
	Format   string    `json:"format"`
	Version  int       `json:"version"`
	Registry string    `json:"registry"`
	Kind     string    `json:"kind"`
	LastWord time.Time `json:"lastWord"`
}

type stateTrailer struct {
	Groups *int   `json:"groups"`
	SHA256 string `json:"sha256"`
}

// store keeps the files of a state folder. load and names belong to the Manager's loop, run to the saver.
type store struct{ dir string }

func newStore(dir string) *store { return &store{dir} }

const statePrefix, stateSuffix = "registry-", ".state.jsonl"

func (s *store) file(name string) string { return filepath.Join(s.dir, statePrefix+name+stateSuffix) }

// names returns the names of the registries that have a file.
func (s *store) names() []string {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil // the folder appears with the first save
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutPrefix(e.Name(), statePrefix); ok {
			if name, ok = strings.CutSuffix(name, stateSuffix); ok && validName(name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// load returns nil where there is no file.
func (s *store) load(name string) (*savedState, error) {
	f, err := os.Open(s.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	state, err := readState(io.LimitReader(f, maxStateBytes))
	if err != nil {
		return nil, err
	}
	if state.Registry != name {
		return nil, fmt.Errorf("it is of registry %q", clip(state.Registry))
	}
	return state, nil
}

// readState reads what writeState wrote, and nothing else.
func readState(r io.Reader) (*savedState, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	sum := sha256.New()
	var head stateHeader
	line, err := stateLine(in)
	if err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	if err := strictJSON(line, &head); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	if head.Format != stateFormat {
		return nil, errors.New("header: it is not a registry's state")
	}
	if head.Version != stateVersion {
		return nil, fmt.Errorf("header: format version %d, this program knows version %d", head.Version, stateVersion)
	}
	state := &savedState{Registry: head.Registry, Kind: head.Kind, LastWord: head.LastWord}
	sum.Write(line)
	sources := map[string]bool{}
	for {
		if line, err = stateLine(in); err != nil {
			return nil, fmt.Errorf("group %d: %w", len(state.Groups), err)
		}
		if bytes.HasPrefix(line, []byte(`{"groups":`)) {
			break
		}
		sum.Write(line)
		var g model.Group
		if err := strictJSON(line, &g); err != nil {
			return nil, fmt.Errorf("group %d: %w", len(state.Groups), err)
		}
		if g.Source == "" || sources[g.Source] || len(g.Services)+len(g.Problems) == 0 {
			return nil, fmt.Errorf("group %d: source %q is empty, without content or there twice", len(state.Groups), clip(g.Source))
		}
		if len(state.Groups) >= maxGroups {
			return nil, fmt.Errorf("more than %d groups", maxGroups)
		}
		sources[g.Source] = true
		state.Groups = append(state.Groups, g)
	}
	var end stateTrailer
	if err := strictJSON(line, &end); err != nil {
		return nil, fmt.Errorf("trailer: %w", err)
	}
	if end.Groups == nil || *end.Groups != len(state.Groups) || end.SHA256 != hex.EncodeToString(sum.Sum(nil)) {
		return nil, errors.New("the checksum does not match")
	}
	if _, err := in.ReadByte(); err != io.EOF {
		return nil, errors.New("there is more after the end")
	}
	return state, nil
}

// stateLine returns one line with its break.
func stateLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		piece, err := in.ReadSlice('\n')
		line = append(line, piece...)
		switch {
		case err == nil:
			return line, nil
		case errors.Is(err, io.EOF):
			return nil, io.ErrUnexpectedEOF
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		case len(line) > maxStateLine:
			return nil, fmt.Errorf("a line of more than %d bytes", maxStateLine)
		}
	}
}

func strictJSON(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("more than one value on a line")
	}
	return nil
}

func writeState(w io.Writer, s *savedState) error {
	sum := sha256.New()
	both := io.MultiWriter(w, sum)
	enc := json.NewEncoder(both)
	if err := enc.Encode(stateHeader{stateFormat, stateVersion, s.Registry, s.Kind, s.LastWord}); err != nil {
		return err
	}
	for i := range s.Groups {
		if err := enc.Encode(&s.Groups[i]); err != nil {
			return err
		}
	}
	n := len(s.Groups)
	return json.NewEncoder(w).Encode(stateTrailer{&n, hex.EncodeToString(sum.Sum(nil))})
}

// saveJob writes or, with drop, deletes the file of a registry.
type saveJob struct {
	name  string
	state *savedState
	drop  bool
}

type saveResult struct {
	name string
	drop bool
	err  error
}

// run does the jobs one after the other until jobs is closed. results has room for one result.
func (s *store) run(jobs <-chan saveJob, results chan<- saveResult) {
	for j := range jobs {
		r := saveResult{name: j.name, drop: j.drop}
		if j.drop {
			if r.err = os.Remove(s.file(j.name)); errors.Is(r.err, fs.ErrNotExist) {
				r.err = nil
			}
		} else {
			r.err = s.save(j)
		}
		results <- r
	}
}

// save writes a file so that at any moment, also after a loss of power, either the old or the new one is there.
func (s *store) save(j saveJob) (err error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	slices.SortFunc(j.state.Groups, func(a, b model.Group) int { return cmp.Compare(a.Source, b.Source) })
	// One fixed name: only this goroutine writes it, and a torn one left by a crash is overwritten, never collected.
	temp := s.file(j.name) + ".tmp"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(temp)
		}
	}()
	out := bufio.NewWriterSize(f, 256<<10)
	if err := writeState(out, j.state); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(temp, s.file(j.name)); err != nil {
		return err
	}
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
