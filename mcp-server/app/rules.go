package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/mcp-server/console"
	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
)

// maxShow bounds how long whoever has written a rule waits until it is shown.
const maxShow = 10 * time.Second

// loopback tells whether only this machine reaches an address.
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// explain returns what a rule does as JSON.
func explain(r *governance.Rule, all []governance.Rule) json.RawMessage {
	b, err := json.Marshal(governance.Explain(r, all))
	if err != nil { // it is made of strings
		panic("app: " + err.Error())
	}
	return b
}

// RouteRules implements rollout.Rules.
func (p *pipeline) RouteRules() []governance.Rule {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []governance.Rule
	for _, r := range p.rules.Items {
		if _, ok := r.Spec.(*governance.RouteSpec); ok {
			out = append(out, r)
		}
	}
	return out
}

// routable are the services that routes may be for, as they were rendered last.
func (p *pipeline) routable() []governance.Routed {
	p.mu.Lock()
	routes := p.routes
	p.mu.Unlock()
	if routes == nil {
		return nil
	}
	return routes()
}

// known tells whether all sidecars that call a service know groups of its providers.
func (p *pipeline) known(service *governance.RouteService, subsets []string) bool {
	for _, svc := range p.routable() {
		if svc.Lifted && service.Names(&svc) && p.endpoints != nil && !p.endpoints.Know(svc.Host, subsets) {
			return false
		}
	}
	return true
}

// WriteRule implements console.RuleWriter and rollout.Rules: it edits the file that holds the rule, or makes one.
func (p *pipeline) WriteRule(ctx context.Context, id governance.ID, text []byte, check func(revision string) error) error {
	p.writing.Lock()
	defer p.writing.Unlock()
	p.mu.Lock()
	path, rules := p.spec.Rules.Path, p.rules
	p.mu.Unlock()
	if path == "" {
		return fmt.Errorf("%w: spec.rules.path says no folder for them", console.ErrNotWritable)
	}
	files := ruleFiles(path)
	rules = rules.Update(files) // it may be that nobody has looked yet
	revision := ""
	i := slices.IndexFunc(rules.Items, func(r governance.Rule) bool { return r.ID == id })
	if i >= 0 {
		revision = rules.Items[i].Revision
	}
	if err := check(revision); err != nil {
		return err
	}
	name := governance.Locate(files, id)
	if name == "" {
		if i >= 0 {
			return fmt.Errorf("%w: %s cannot be read; mend it by hand", console.ErrNotWritable, rules.Items[i].File)
		}
		name = newFile(path, id)
	}
	if err := editFile(name, path, id, text); err != nil {
		return err
	}
	p.readRules()
	p.mu.Lock()
	version := p.version
	p.mu.Unlock()
	p.stir()
	return p.awaitShown(ctx, version)
}

// newFile returns the file for a rule that is in none.
func newFile(path string, id governance.ID) string {
	if info, err := os.Stat(path); err == nil && !info.IsDir() {
		return path
	}
	return filepath.Join(path, strings.ToLower(id.Kind)+"-"+id.Namespace+"-"+id.Name+".yaml")
}

// editFile changes one rule of a file, all at once: whoever reads sees the old or the new. What is left without rules is removed, unless it is the
// path itself.
func editFile(name, path string, id governance.ID, text []byte) error {
	old, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("app: %w", err)
	}
	out, err := governance.Edit(old, id, text, filepath.Ext(name) == ".json")
	if err != nil {
		return fmt.Errorf("%w: %s: %w", console.ErrNotWritable, name, err)
	}
	if len(out) > maxRuleBytes {
		return fmt.Errorf("%w: %s would be longer than %d bytes", console.ErrNotWritable, name, maxRuleBytes)
	}
	if bytes.Equal(out, old) {
		return nil
	}
	if len(bytes.TrimSpace(out)) == 0 && name != path {
		if err := os.Remove(name); err != nil {
			return unwritable(err)
		}
		return nil
	}
	if real, err := filepath.EvalSymlinks(name); err == nil {
		name = real
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return unwritable(err)
	}
	mode := os.FileMode(0o644)
	if info, err := os.Stat(name); err == nil {
		mode = info.Mode().Perm()
	}
	// A name with a dot at its beginning is read by nobody.
	f, err := os.CreateTemp(filepath.Dir(name), ".rule-*")
	if err != nil {
		return unwritable(err)
	}
	_, err = f.Write(out)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
		return unwritable(err)
	}
	if dir, err := os.Open(filepath.Dir(name)); err == nil {
		dir.Sync() // some file systems cannot
		dir.Close()
	}
	return nil
}

func unwritable(err error) error { return fmt.Errorf("%w: %w", console.ErrNotWritable, err) }

// awaitShown waits until the store shows the rules of a version.
func (p *pipeline) awaitShown(ctx context.Context, version uint64) error {
	ctx, cancel := context.WithTimeout(ctx, maxShow)
	defer cancel()
	for {
		p.mu.Lock()
		published, shown := p.published, p.shown
		p.mu.Unlock()
		if published >= version {
			return nil
		}
		select {
		case <-shown:
		case <-ctx.Done():
			return fmt.Errorf("app: the rule is written, but not in force yet: %w", ctx.Err())
		}
	}
}
