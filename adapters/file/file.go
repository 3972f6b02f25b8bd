// Package file reads services from files that people or other programs write: one YAML or JSON file, or a folder of them,
// watched. It serves what no registry knows, tests, and migrations.
package file

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/model"
)

// Kind is the entry of this adapter in the table of kinds.
var Kind = adapters.Kind{
	Name: "file",
	Doc:  "services listed in YAML or JSON files, watched",
	Example: `path: /etc/isthmus/services   # a file, or a folder whose *.yaml, *.yml and *.json are read
`,
	New: func(decode func(into any) error, o adapters.Options) (adapters.Discoverer, error) {
		var s Settings
		if err := decode(&s); err != nil {
			return nil, err
		}
		return New(s, o), nil
	},
}

// Settings of a file registry.
type Settings struct {
	// Path is a file, or a folder whose files with the endings .yaml, .yml and .json are read; files that begin with a dot and
	// folders within it are not.
	Path string `yaml:"path"`
	// Rescan is how often the files are looked at although nothing was reported, for file systems that report nothing.
	// Default 1 min.
	Rescan time.Duration `yaml:"rescan"`
}

// Validate implements adapters.Validator.
func (s *Settings) Validate() adapters.Faults {
	var f adapters.Faults
	if s.Path == "" {
		f.Add("path", "is missing: a file or a folder")
	}
	if s.Rescan < 0 || s.Rescan > 0 && s.Rescan < time.Second {
		f.Add("rescan", "must be at least 1s")
	}
	return f
}

// Bounds on what is read.
const (
	maxFileBytes = 64 << 20
	maxFiles     = 10_000
	maxFaults    = 1_000 // that are reported of one file
)

// quiet is how long a burst of events is awaited; a file that is written in several steps raises one event for each.
const quiet = 20 * time.Millisecond

// Discoverer reads and watches the files of one path.
type Discoverer struct {
	path   string
	rescan time.Duration
	log    *slog.Logger
}

// New makes a Discoverer out of valid settings.
func New(s Settings, o adapters.Options) *Discoverer {
	if s.Rescan == 0 {
		s.Rescan = time.Minute
	}
	return &Discoverer{path: filepath.Clean(s.Path), rescan: s.Rescan, log: o.Logger()}
}

// content is what is known of one file.
type content struct {
	sum    [sha256.Size]byte
	read   bool
	broken bool // a group with the faults is out
}

// faultsSource is the source of the group that holds a broken file's problems, beside the file's own group, which stays.
func faultsSource(name string) string { return name + "#faults" }

// Run implements adapters.Discoverer.
func (d *Discoverer) Run(ctx context.Context, out chan<- adapters.Update) error {
	w, err := fsnotify.NewBufferedWatcher(256)
	if err != nil {
		return fmt.Errorf("file: watch %s: %w", d.path, err)
	}
	defer w.Close()
	files := map[string]*content{}
	synced, lost := false, ""
	var watched string
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.Events:
			if !ok {
				return fmt.Errorf("file: watch %s: the watcher ended", d.path)
			}
			if e.Op == fsnotify.Chmod {
				continue
			}
			tick.Reset(quiet)
			continue
		case err := <-w.Errors:
			// An overflow above all: events were lost, so look.
			d.log.Warn("watching files", "error", err)
			tick.Reset(quiet)
			continue
		case <-tick.C:
		}
		next := d.rescan
		u, err := d.scan(w, &watched, files)
		switch {
		case err != nil:
			next = min(next, time.Second)
			if lost == err.Error() {
				u = adapters.Update{}
				break
			}
			lost = err.Error()
			u = adapters.Update{Err: err}
		case !synced:
			synced, lost = true, ""
			u.Synced, u.Healthy = true, false
		case lost != "":
			lost = ""
			u.Healthy = true
		}
		if len(u.Groups) > 0 || u.Synced || u.Healthy || u.Err != nil {
			select {
			case out <- u:
			case <-ctx.Done():
				return nil
			}
		}
		tick.Reset(next)
	}
}

// scan reads what has changed. An error means that the path as a whole cannot be read, and that files is as it was.
func (d *Discoverer) scan(w *fsnotify.Watcher, watched *string, files map[string]*content) (adapters.Update, error) {
	info, err := os.Stat(d.path)
	if err != nil {
		*watched = ""
		return adapters.Update{}, fmt.Errorf("file: %w", err)
	}
	// The folder is watched, not the file: whoever replaces a file by renaming, as Kubernetes does with the symbolic links of
	// a ConfigMap, takes a watch on the file away with it. The folder's identity is part of what is compared, as a folder may
	// be replaced, too.
	folder := d.path
	if !info.IsDir() {
		folder = filepath.Dir(d.path)
	}
	if at := identity(folder); at != *watched {
		if *watched != "" {
			w.Remove(folder) // of the old folder; an error means that it is gone already
		}
		if err := w.Add(folder); err != nil {
			*watched = ""
			return adapters.Update{}, fmt.Errorf("file: watch %s: %w", folder, err)
		}
		*watched = at
	}
	names := []string{d.path}
	if info.IsDir() {
		if names, err = list(d.path); err != nil {
			return adapters.Update{}, fmt.Errorf("file: %w", err)
		}
	}
	var u adapters.Update
	for _, name := range names {
		c := files[name]
		if c == nil {
			c = &content{}
			files[name] = c
		}
		text, err := read(name)
		switch {
		case errors.Is(err, fs.ErrNotExist) && !exists(name):
			continue // gone since it was listed: the next event is on its way
		case err != nil:
			d.broke(&u, name, c, adapters.Faults{{Message: err.Error()}})
			c.read = false
			continue
		}
		sum := sha256.Sum256(text)
		if c.read && c.sum == sum {
			continue
		}
		c.read, c.sum = true, sum
		services, err := Parse(text)
		if err != nil {
			d.broke(&u, name, c, adapters.AsFaults(err))
			continue
		}
		u.Groups = append(u.Groups, model.Group{Source: name, Services: services})
		if c.broken {
			c.broken = false
			u.Groups = append(u.Groups, model.Group{Source: faultsSource(name)})
		}
	}
	for name, c := range files {
		if !slices.Contains(names, name) {
			u.Groups = append(u.Groups, model.Group{Source: name})
			if c.broken {
				u.Groups = append(u.Groups, model.Group{Source: faultsSource(name)})
			}
			delete(files, name)
		}
	}
	slices.SortFunc(u.Groups, func(a, b model.Group) int { return strings.Compare(a.Source, b.Source) })
	return u, nil
}

// broke reports a file's faults. Its last good content stays.
func (d *Discoverer) broke(u *adapters.Update, name string, c *content, faults adapters.Faults) {
	c.broken = true
	g := model.Group{Source: faultsSource(name)}
	for i, f := range faults {
		if i == maxFaults {
			g.Problems = append(g.Problems, model.Problem{Severity: model.SeverityError, Place: name, Code: "InvalidFile",
				Message: fmt.Sprintf("there are %d more faults", len(faults)-i)})
			break
		}
		place := name
		if f.Line > 0 {
			place = fmt.Sprintf("%s:%d", name, f.Line)
		}
		message := f.Message
		if f.Path != "" {
			message = f.Path + ": " + message
		}
		g.Problems = append(g.Problems, model.Problem{Severity: model.SeverityError, Place: place, Code: "InvalidFile",
			Message: message + "; the file's last good content stays"})
	}
	u.Groups = append(u.Groups, g)
	u.Held = append(u.Held, name)
}

// list returns the files of a folder that are to be read.
func list(folder string) ([]string, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		switch filepath.Ext(e.Name()) {
		case ".yaml", ".yml", ".json":
		default:
			continue
		}
		if strings.HasPrefix(e.Name(), ".") || e.IsDir() {
			continue
		}
		if len(names) == maxFiles {
			return nil, fmt.Errorf("%s holds more than %d files", folder, maxFiles)
		}
		names = append(names, filepath.Join(folder, e.Name()))
	}
	return names, nil
}

// exists reports whether there is a file or a symbolic link, be it a broken one.
func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

func read(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxFileBytes {
		return nil, fmt.Errorf("%s is longer than %d bytes", name, maxFileBytes)
	}
	return text, nil
}
