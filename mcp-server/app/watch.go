package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
)

// The rhythm of looking at files.
const (
	watchQuiet = 100 * time.Millisecond // an editor writes a file in several steps
	watchAgain = 15 * time.Second       // what no event was heard of: a folder that was replaced, a file system without events
)

// watch calls changed whenever something may have changed in one of the folders, and once in a while even so, until ctx is
// done. Folders are watched rather than files, since editors and Kubernetes replace files. changed must find out by itself
// whether anything is different.
func watch(ctx context.Context, log *slog.Logger, folders func() []string, changed func()) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("app: watch files: %w", err)
	}
	defer w.Close()
	follow := func() {
		want := folders()
		for _, have := range w.WatchList() {
			if !slices.Contains(want, have) {
				w.Remove(have) // gone already, or not
			}
		}
		for _, folder := range want {
			if err := w.Add(folder); err != nil && !errors.Is(err, fs.ErrNotExist) {
				log.Debug("cannot watch a folder; it is read now and then", "folder", folder, "error", err)
			}
		}
	}
	follow()
	again := time.NewTicker(watchAgain)
	defer again.Stop()
	quiet := time.NewTimer(watchQuiet)
	quiet.Stop()
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
		case <-quiet.C:
		case err, ok := <-w.Errors:
			if !ok {
				return nil
			}
			log.Debug("watching files", "error", err) // an overflow: look at everything
		case e, ok := <-w.Events:
			if !ok {
				return nil
			}
			if e.Op != fsnotify.Chmod {
				quiet.Reset(watchQuiet)
			}
			continue
		}
		changed()
		follow()
	}
}

// The bounds of rules and keys on disk.
const (
	maxRuleFiles = 1000
	maxRuleBytes = 4 << 20  // of one file
	maxKeyBytes  = 64 << 10 // of one file
)

// ruleFiles reads the files of rules at path: a folder with .yaml, .yml and .json files, or one file. Nothing at path, also
// no folder, is no rules.
func ruleFiles(path string) []governance.File {
	return readFiles(path, []string{".yaml", ".yml", ".json"}, maxRuleBytes)
}

// keyFiles reads the files of keys in the folder at path.
func keyFiles(path string) []governance.File {
	return readFiles(path, governance.KeyFiles, maxKeyBytes)
}

// readFiles reads the files with some endings in a folder, or one file.
func readFiles(path string, endings []string, limit int64) []governance.File {
	if path == "" {
		return nil
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return []governance.File{{Name: path, Err: err}}
	case !info.IsDir():
		return []governance.File{readFile(path, limit)}
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return []governance.File{{Name: path, Err: err}}
	}
	var files []governance.File
	for _, e := range entries {
		name := e.Name()
		if name[0] == '.' || !slices.Contains(endings, filepath.Ext(name)) {
			continue
		}
		full := filepath.Join(path, name)
		if info, err := os.Stat(full); err != nil || info.IsDir() {
			continue // a link to nowhere, or gone since
		}
		if len(files) == maxRuleFiles {
			files = append(files, governance.File{Name: path, Err: fmt.Errorf("it holds more than %d files; %s and those after it are not read", maxRuleFiles, name)})
			break
		}
		files = append(files, readFile(full, limit))
	}
	return files
}

func readFile(path string, limit int64) governance.File {
	f, err := os.Open(path)
	if err != nil {
		return governance.File{Name: path, Err: err}
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("it is longer than %d bytes", limit)
	}
	if err != nil {
		return governance.File{Name: path, Err: err}
	}
	return governance.File{Name: path, Text: text}
}
