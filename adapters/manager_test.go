package adapters

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/adapters/model"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// puppet is a Discoverer that says what the test tells it to.
type puppet struct {
	says chan Update
	ends chan error
	mu   sync.Mutex
	runs int
	at   []time.Time
}

func (p *puppet) Run(ctx context.Context, out chan<- Update) error {
	p.mu.Lock()
	p.runs++
	p.at = append(p.at, time.Now())
	p.mu.Unlock()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-p.ends:
			if err != nil && err.Error() == "panic" {
				panic("as asked")
			}
			return err
		case u := <-p.says:
			select {
			case out <- u:
			case <-ctx.Done():
				return nil
			}
		}
	}
}

func (p *puppet) ran() int { p.mu.Lock(); defer p.mu.Unlock(); return p.runs }

// stage holds a Manager and its puppets, by the registry's name and settings.
type stage struct {
	t       *testing.T
	m       *Manager
	stop    context.CancelFunc
	done    chan struct{}
	mu      sync.Mutex
	puppets map[string]*puppet
}

type puppetSettings struct {
	ID string `yaml:"id"`
}

func newStage(t *testing.T, o ManagerOptions) *stage {
	s := &stage{t: t, puppets: map[string]*puppet{}}
	kind := func(name string) Kind {
		return Kind{Name: name, New: func(decode func(any) error, o Options) (Discoverer, error) {
			var set puppetSettings
			if err := decode(&set); err != nil {
				return nil, err
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			p := &puppet{says: make(chan Update), ends: make(chan error)}
			s.puppets[o.Name+set.ID] = p
			return p, nil
		}}
	}
	o.Kinds = Kinds{kind("puppet"), kind("other")}
	s.m = NewManager(o)
	return s
}

func (s *stage) run() {
	ctx, stop := context.WithCancel(s.t.Context())
	s.stop, s.done = stop, make(chan struct{})
	go func() {
		defer close(s.done)
		if err := s.m.Run(ctx); err != nil {
			s.t.Errorf("Run: %v", err)
		}
	}()
}

func (s *stage) end() { s.stop(); <-s.done }

func (s *stage) set(names ...string) {
	s.t.Helper()
	var rs []Registry
	for _, n := range names {
		r := Registry{Name: n, Kind: "puppet"}
		if name, id, ok := strings.Cut(n, "#"); ok {
			r.Name = name
			r.Settings, _ = ParseSettings([]byte("id: '#" + id + "'"))
		}
		rs = append(rs, r)
	}
	if err := s.m.Set(s.t.Context(), rs); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) puppet(name string) *puppet {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.puppets[name]
	if p == nil {
		s.t.Fatalf("no discoverer %s", name)
	}
	return p
}

func (s *stage) say(name string, u Update) { s.puppet(name).says <- u }

func endpoint(n int, weight uint32) model.Endpoint {
	return model.Endpoint{Address: fmt.Sprintf("192.0.2.%d", n), Port: 20880, Protocol: model.ProtocolDubbo, Weight: &weight}
}

func group(source, iface string, es ...model.Endpoint) model.Group {
	return model.Group{Source: source, Services: []model.Service{{Key: model.Key{Framework: "dubbo", Interface: iface}, Endpoints: es}}}
}

// text describes a snapshot in short.
func text(s *model.Snapshot) string {
	var b strings.Builder
	for _, svc := range s.Services {
		fmt.Fprintf(&b, "%s", svc.Key)
		for _, e := range svc.Endpoints {
			fmt.Fprintf(&b, " %s", e.Address)
			if e.Weight != nil {
				fmt.Fprintf(&b, "*%d", *e.Weight)
			}
			for _, o := range e.Origins {
				fmt.Fprintf(&b, "@%s/%s", o.Registry, o.Place)
			}
		}
		for _, c := range svc.Consumers {
			fmt.Fprintf(&b, " <%s", c.Address)
			for _, o := range c.Origins {
				fmt.Fprintf(&b, "@%s/%s", o.Registry, o.Place)
			}
		}
		b.WriteString("; ")
	}
	for _, src := range s.Sources {
		fmt.Fprintf(&b, "[%s %s %d/%d]", src.Name, src.State, src.Services, src.Endpoints)
	}
	if s.Complete {
		b.WriteString(" complete")
	}
	return b.String()
}

func (s *stage) want(want string) {
	s.t.Helper()
	synctest.Wait()
	if got := text(s.m.Snapshot()); got != want {
		s.t.Errorf("snapshot is\n%s\nwant\n%s", got, want)
	}
}

func TestManagerSnapshots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, ManagerOptions{Pace: 100 * time.Millisecond})
		s.set("a", "b")
		s.run()
		defer s.end()
		s.want("[a connecting 0/0][b connecting 0/0]") // nothing is complete

		s.say("a", Update{Groups: []model.Group{group("/x", "X", endpoint(1, 100))}, Synced: true})
		s.want("[a connecting 0/0][b connecting 0/0]") // there has just been one
		time.Sleep(101 * time.Millisecond)
		s.want("dubbo/X 192.0.2.1*100@a//x; [a synced 1/1][b connecting 0/0]")

		// The first complete one is there at once.
		at := time.Now()
		s.say("b", Update{Groups: []model.Group{group("/x", "X", endpoint(1, 100), endpoint(2, 50))}, Synced: true})
		s.want("dubbo/X 192.0.2.1*100@a//x@b//x 192.0.2.2*50@b//x; [a synced 1/1][b synced 1/2] complete")
		if !time.Now().Equal(at) {
			t.Error("time passed")
		}

		// Changes that follow closely are gathered.
		s.say("a", Update{Groups: []model.Group{{Source: "/x"}}})
		s.want("dubbo/X 192.0.2.1*100@a//x@b//x 192.0.2.2*50@b//x; [a synced 1/1][b synced 1/2] complete")
		time.Sleep(99 * time.Millisecond)
		s.want("dubbo/X 192.0.2.1*100@a//x@b//x 192.0.2.2*50@b//x; [a synced 1/1][b synced 1/2] complete")
		time.Sleep(2 * time.Millisecond)
		s.want("dubbo/X 192.0.2.1*100@b//x 192.0.2.2*50@b//x; [a synced 0/0][b synced 1/2] complete")

		// One that comes after a while is there at once.
		time.Sleep(101 * time.Millisecond)
		s.say("b", Update{Groups: []model.Group{{Source: "/x"}}})
		s.want("[a synced 0/0][b synced 0/0] complete")
	})
}

func TestManagerAfterItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, ManagerOptions{})
		s.set("a")
		s.run()
		s.say("a", Update{Groups: []model.Group{group("/x", "X", endpoint(1, 1))}, Synced: true})
		synctest.Wait()
		s.end()
		if err := s.m.Set(t.Context(), nil); err == nil {
			t.Error("it took registries that nobody will read")
		}
		if err := s.m.Run(t.Context()); err == nil {
			t.Error("it ran twice")
		}
		s.want("dubbo/X 192.0.2.1*1@a//x; [a synced 1/1] complete")
	})
}

func TestManagerPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, ManagerOptions{Pace: time.Second})
		s.set("a")
		s.run()
		defer s.end()
		s.say("a", Update{Synced: true})
		synctest.Wait()
		version := s.m.Snapshot().Version
		begin := time.Now()
		for i := range 60 { // a change every 50 ms
			s.say("a", Update{Groups: []model.Group{group("/x", "X", endpoint(1, uint32(i+1)))}})
			time.Sleep(50 * time.Millisecond)
		}
		got := s.m.Snapshot().Version - version
		if got < 2 || got > 4 {
			t.Errorf("%d snapshots in %v of steady change, want one a second", got, time.Since(begin))
		}
	})
}

func TestManagerNoSnapshotWithoutChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, ManagerOptions{})
		s.set("a")
		s.run()
		defer s.end()
		g := group("/x", "X", endpoint(1, 100))
		s.say("a", Update{Groups: []model.Group{g}, Synced: true})
		time.Sleep(time.Minute)
		was := s.m.Snapshot()
		s.say("a", Update{Groups: []model.Group{g}})
		s.say("a", Update{Healthy: true})
		time.Sleep(time.Minute)
		if s.m.Snapshot() != was {
			t.Error("a snapshot was made although nothing changed")
		}
		if got := s.m.Sources()[0].LastWord; !got.After(was.Sources[0].LastWord) {
			t.Errorf("last word is still %v", got)
		}
	})
}

func TestManagerStaleAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, ManagerOptions{})
		s.set("a")
		s.run()
		defer s.end()
		s.say("a", Update{Groups: []model.Group{group("/x", "X", endpoint(1, 1))}, Synced: true})
		s.say("a", Update{Err: errors.New("gone")})
		lost := time.Now()
		time.Sleep(time.Second)
		s.want("dubbo/X 192.0.2.1*1@a//x; [a stale 1/1] complete")
		src := s.m.Snapshot().Sources[0]
		if src.Error != "gone" || !src.StaleFrom.Equal(lost) {
			t.Errorf("source is %+v", src)
		}
		s.say("a", Update{Err: errors.New("still gone")})
		time.Sleep(time.Second)
		if src := s.m.Snapshot().Sources[0]; src.Error != "still gone" || !src.StaleFrom.Equal(lost) {
			t.Errorf("source is %+v", src)
		}
		s.say("a", Update{Healthy: true})
		time.Sleep(time.Second)
		s.want("dubbo/X 192.0.2.1*1@a//x; [a synced 1/1] complete")
		if src := s.m.Snapshot().Sources[0]; src.Error != "" || !src.StaleFrom.IsZero() {
			t.Errorf("source is %+v", src)
		}
	})
}

func TestManagerRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, ManagerOptions{RestartMin: time.Second, RestartMax: 8 * time.Second})
		s.set("a")
		s.run()
		defer s.end()
		p := s.puppet("a")
		s.say("a", Update{Groups: []model.Group{group("/x", "X", endpoint(1, 1)), group("/y", "Y", endpoint(2, 1))}, Synced: true})
		for range 6 {
			p.ends <- errors.New("no more")
		}
		synctest.Wait()
		s.want("dubbo/X 192.0.2.1*1@a//x; dubbo/Y 192.0.2.2*1@a//y; [a stale 2/2] complete")
		for p.ran() < 7 {
			time.Sleep(10 * time.Millisecond)
		}
		for i, w := range []time.Duration{1, 2, 4, 8, 8, 8} {
			w *= time.Second
			if got := p.at[i+1].Sub(p.at[i]); got < w*8/10 || got > w*12/10 {
				t.Errorf("pause %d is %v, want %v ± 20 %%", i, got, w)
			}
		}
		if got := s.m.Sources()[0].Restarts; got != 6 {
			t.Errorf("%d restarts, want 6", got)
		}
		// What the new run has not mentioned goes when it syncs, not before.
		s.say("a", Update{Groups: []model.Group{group("/y", "Y", endpoint(2, 1))}})
		time.Sleep(time.Second)
		s.want("dubbo/X 192.0.2.1*1@a//x; dubbo/Y 192.0.2.2*1@a//y; [a stale 2/2] complete")
		s.say("a", Update{Healthy: true})
		time.Sleep(time.Second)
		s.want("dubbo/X 192.0.2.1*1@a//x; dubbo/Y 192.0.2.2*1@a//y; [a stale 2/2] complete")
		s.say("a", Update{Synced: true})
		time.Sleep(time.Second)
		s.want("dubbo/Y 192.0.2.2*1@a//y; [a synced 1/1] complete")
		n := p.ran()
		p.ends <- errors.New("again")
		time.Sleep(1300 * time.Millisecond)
		if p.ran() != n+1 {
			t.Error("after a run that synced the pause did not begin anew")
		}
	})
}

func TestManagerSurvivesPanicAndSilentEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, ManagerOptions{})
		s.set("a")
		s.run()
		defer s.end()
		s.say("a", Update{Groups: []model.Group{group("/x", "X", endpoint(1, 1))}, Synced: true})
		s.puppet("a").ends <- errors.New("panic")
		time.Sleep(100 * time.Millisecond)
		s.want("dubbo/X 192.0.2.1*1@a//x; [a stale 1/1] complete")
		if ps := s.m.Snapshot().Problems; len(ps) != 1 || ps[0].Code != "AdapterPanic" || ps[0].Registry != "a" {
			t.Errorf("problems: %+v", ps)
		}
		time.Sleep(2 * time.Second)
		s.say("a", Update{Groups: []model.Group{group("/x", "X", endpoint(1, 1))}, Synced: true})
		time.Sleep(time.Second)
		if ps := s.m.Snapshot().Problems; len(ps) != 0 {
			t.Errorf("problems: %+v", ps)
		}
		s.puppet("a").ends <- nil
		time.Sleep(100 * time.Millisecond)
		if src := s.m.Sources()[0]; src.State != model.StateStale || !strings.Contains(src.Error, "without being asked") {
			t.Errorf("source is %+v", src)
		}
	})
}

func TestManagerSetAtRunTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := newStage(t, ManagerOptions{StateDir: dir, SaveQuiet: time.Second, SaveInterval: time.Second})
		s.set("a", "b")
		s.run()
		defer s.end()
		s.say("a", Update{Groups: []model.Group{group("/x", "X", endpoint(1, 1))}, Synced: true})
		s.say("b", Update{Groups: []model.Group{group("/y", "Y", endpoint(2, 1))}, Synced: true})
		time.Sleep(5 * time.Second)
		if got := files(t, dir); !slices.Equal(got, []string{"registry-a.state.jsonl", "registry-b.state.jsonl"}) {
			t.Errorf("files: %v", got)
		}
		a := s.puppet("a")

		// A wrong list changes nothing and names every fault.
		err := s.m.Set(t.Context(), []Registry{{Name: "a", Kind: "puppet"}, {Name: "a", Kind: "nothing"}, {Name: "C", Kind: "puppet", Settings: mustSettings(t, "idd: x\nid: [1]")}})
		if f := AsFaults(err); len(f) != 5 {
			t.Errorf("faults: %v", err)
		}
		time.Sleep(time.Second)
		s.want("dubbo/X 192.0.2.1*1@a//x; dubbo/Y 192.0.2.2*1@b//y; [a synced 1/1][b synced 1/1] complete")

		// c is new and silent: the others are complete without it. b goes, with its file.
		s.set("a", "c")
		time.Sleep(time.Second)
		s.want("dubbo/X 192.0.2.1*1@a//x; [a synced 1/1][c connecting 0/0] complete")
		if a.ran() != 1 || s.puppet("a").ran() != 0 {
			t.Error("a was started again although nothing about it changed")
		}
		time.Sleep(5 * time.Second)
		if got := files(t, dir); !slices.Equal(got, []string{"registry-a.state.jsonl"}) {
			t.Errorf("files: %v", got)
		}

		// Other settings: the old word stands until the new run has synced.
		s.set("a#2", "c")
		time.Sleep(time.Second)
		s.want("dubbo/X 192.0.2.1*1@a//x; [a stale 1/1][c connecting 0/0] complete")
		s.say("a#2", Update{Groups: []model.Group{group("/z", "Z", endpoint(3, 1))}, Synced: true})
		time.Sleep(time.Second)
		s.want("dubbo/Z 192.0.2.3*1@a//z; [a synced 1/1][c connecting 0/0] complete")

		// Another kind: nothing stands.
		if err := s.m.Set(t.Context(), []Registry{{Name: "a", Kind: "other"}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		s.want("[a connecting 0/0] complete")

		// None at all.
		s.set()
		time.Sleep(time.Second)
		s.want(" complete")
		// The same name again is a new registry.
		s.set("a")
		time.Sleep(time.Second)
		s.want("[a connecting 0/0] complete")
	})
}

func mustSettings(t *testing.T, y string) Settings {
	t.Helper()
	s, err := ParseSettings([]byte(y))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestManagerRestartDuringOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "made", "later")
		first := newStage(t, ManagerOptions{StateDir: dir})
		first.set("a", "b", "gone")
		first.run()
		consumer := model.Group{Source: "/x/c", Services: []model.Service{{Key: model.Key{Framework: "dubbo", Interface: "X"}, Consumers: []model.Consumer{{Address: "192.0.2.9"}}}}}
		first.say("a", Update{Groups: []model.Group{group("/x", "X", endpoint(1, 1)), consumer}, Synced: true})
		first.say("gone", Update{Synced: true})
		heard := time.Now()
		synctest.Wait()
		first.end() // at once: nothing was due to be saved yet

		time.Sleep(time.Hour)
		s := newStage(t, ManagerOptions{StateDir: dir})
		s.set("a")
		s.run()
		s.want("dubbo/X 192.0.2.1*1@a//x <192.0.2.9@a//x/c; [a stale 1/1] complete")
		src := s.m.Snapshot().Sources[0]
		if !src.LastWord.Equal(heard) || !src.StaleFrom.Equal(heard) || src.Error == "" {
			t.Errorf("source is %+v", src)
		}
		s.say("a", Update{Groups: []model.Group{group("/x", "X", endpoint(1, 1))}, Synced: true})
		time.Sleep(time.Second)
		s.want("dubbo/X 192.0.2.1*1@a//x; [a synced 1/1] complete")
		s.end()
		if got := files(t, dir); !slices.Equal(got, []string{"registry-a.state.jsonl"}) {
			t.Errorf("files: %v", got) // b never synced, gone is not configured any more
		}
	})
}

func TestManagerCorruptState(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"empty":     func(b []byte) []byte { return nil },
		"truncated": func(b []byte) []byte { return b[:len(b)/2] },
		"flipped":   func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"garbage":   func(b []byte) []byte { return []byte("\x00\x01garbage\n{}") },
		"longer":    func(b []byte) []byte { return append(b, b...) },
		"newer":     func(b []byte) []byte { return []byte(strings.Replace(string(b), `"version":1`, `"version":2`, 1)) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				first := newStage(t, ManagerOptions{StateDir: dir})
				first.set("a")
				first.run()
				first.say("a", Update{Groups: []model.Group{group("/x", "X", endpoint(1, 1))}, Synced: true})
				synctest.Wait()
				first.end()
				file := filepath.Join(dir, "registry-a.state.jsonl")
				b, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, damage(b), 0o600); err != nil {
					t.Fatal(err)
				}
				s := newStage(t, ManagerOptions{StateDir: dir})
				s.set("a")
				s.run()
				defer s.end()
				time.Sleep(time.Second)
				s.want("[a connecting 0/0]")
				ps := s.m.Snapshot().Problems
				if len(ps) != 1 || ps[0].Code != "CorruptState" || ps[0].Place != file || ps[0].Registry != "a" {
					t.Errorf("problems: %+v", ps)
				}
				s.say("a", Update{Groups: []model.Group{group("/x", "X", endpoint(1, 1))}, Synced: true})
				time.Sleep(time.Minute)
				if ps := s.m.Snapshot().Problems; len(ps) != 0 {
					t.Errorf("problems: %+v", ps)
				}
				if _, err := newStore(dir).load("a"); err != nil {
					t.Errorf("the file was not mended: %v", err)
				}
			})
		})
	}
}

func TestManagerBoundsWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, ManagerOptions{StateDir: t.TempDir(), SaveQuiet: time.Second, SaveInterval: 10 * time.Second})
		s.set("a")
		s.run()
		s.say("a", Update{Synced: true})
		for i := range 1000 {
			s.say("a", Update{Groups: []model.Group{group("/x", "X", endpoint(1, uint32(i+1)))}})
			time.Sleep(100 * time.Millisecond)
		}
		if n := s.m.Stats().Saves; n < 9 || n > 11 {
			t.Errorf("%d writes in 100 s of steady change, want one every 10 s", n)
		}
		time.Sleep(time.Minute)
		n := s.m.Stats().Saves
		time.Sleep(time.Hour)
		s.end()
		if got := s.m.Stats().Saves; got != n {
			t.Errorf("%d writes without a change", got-n)
		}
	})
}

func TestManagerCannotSave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		s := newStage(t, ManagerOptions{StateDir: file})
		s.set("a")
		s.run()
		defer s.end()
		s.say("a", Update{Groups: []model.Group{group("/x", "X", endpoint(1, 1))}, Synced: true})
		time.Sleep(time.Minute)
		if ps := s.m.Snapshot().Problems; len(ps) != 1 || ps[0].Code != "StateNotSaved" {
			t.Errorf("problems: %+v", ps)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if ps := s.m.Snapshot().Problems; len(ps) != 0 {
			t.Errorf("problems: %+v", ps)
		}
	})
}

func TestManagerSubscribe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, ManagerOptions{Pace: time.Millisecond})
		ctx, stop := context.WithCancel(t.Context())
		slow := s.m.Subscribe(ctx)
		s.set("a")
		s.run()
		defer s.end()
		s.say("a", Update{Synced: true})
		for i := range 20 {
			s.say("a", Update{Groups: []model.Group{group("/x", "X", endpoint(1, uint32(i+1)))}})
			time.Sleep(10 * time.Millisecond)
		}
		if got := text(<-slow); got != "dubbo/X 192.0.2.1*20@a//x; [a synced 1/1] complete" {
			t.Errorf("a slow subscriber got %s", got)
		}
		late := s.m.Subscribe(ctx)
		if got := <-late; got != s.m.Snapshot() {
			t.Error("a late subscriber did not get the latest snapshot at once")
		}
		stop()
		synctest.Wait()
		if _, ok := <-slow; ok {
			t.Error("the channel is still open")
		}
		s.say("a", Update{Groups: []model.Group{{Source: "/x"}}})
		time.Sleep(time.Second)
		s.want("[a synced 0/0] complete")
	})
}

func TestManagerMerges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, ManagerOptions{})
		s.set("b", "a")
		s.run()
		defer s.end()
		one, other := endpoint(1, 100), endpoint(1, 50)
		one.Labels, other.Labels = map[string]string{"v": "1"}, map[string]string{"v": "1", "env": "blue"}
		other.Application, other.Disabled = "shop", true
		other.Protocol, one.Protocol = "dubbo", "dubbo"
		third := endpoint(1, 100)
		third.Protocol = "tri" // another protocol on the same port is another endpoint
		s.say("b", Update{Groups: []model.Group{group("/b", "X", one), {Source: "/b2", Services: []model.Service{{Key: model.Key{Framework: "dubbo", Interface: "X"}, Methods: []string{"a", "c"}, Endpoints: []model.Endpoint{third}}}}}, Synced: true})
		s.say("a", Update{Groups: []model.Group{
			{Source: "/a", Services: []model.Service{{Key: model.Key{Framework: "dubbo", Interface: "X"}, Methods: []string{"b", "c"}, Endpoints: []model.Endpoint{other}}}},
			{Source: "/p", Problems: []model.Problem{{Severity: model.SeverityError, Place: "/p", Code: "Bad", Message: "bad"}}},
		}, Synced: true})
		time.Sleep(time.Second)
		snap := s.m.Snapshot()
		if len(snap.Services) != 1 || len(snap.Services[0].Endpoints) != 2 {
			t.Fatalf("snapshot is %s", text(snap))
		}
		svc := snap.Services[0]
		if got := fmt.Sprint(svc.Methods); got != "[a b c]" {
			t.Errorf("methods %s", got)
		}
		e := svc.Endpoints[0]
		if *e.Weight != 100 || e.Application != "shop" || e.Labels["env"] != "blue" || !e.Disabled {
			b, _ := json.Marshal(e)
			t.Errorf("endpoint is %s", b)
		}
		if got := fmt.Sprint(e.Origins); got != "[{a /a} {b /b}]" {
			t.Errorf("origins %s", got)
		}
		if len(snap.Problems) != 2 || snap.Problems[0].Code != "ConflictingEndpoint" || snap.Problems[1].Code != "Bad" || snap.Problems[1].Registry != "a" {
			t.Fatalf("problems: %+v", snap.Problems)
		}
		if msg := snap.Problems[0].Message; !strings.Contains(msg, "weight 100 and 50") || !strings.Contains(msg, "192.0.2.1:20880") {
			t.Errorf("message: %s", msg)
		}
		if len(one.Labels) != 1 {
			t.Error("merging changed what the adapter sent")
		}
		// The other order of configuration: the other one is believed.
		s.set("a", "b")
		time.Sleep(time.Second)
		if got := *s.m.Snapshot().Services[0].Endpoints[0].Weight; got != 50 {
			t.Errorf("weight %d, want 50", got)
		}
	})
}

// TestManagerMergesOnlyWhatChanged holds 10,000 services and changes one.
func TestManagerMergesOnlyWhatChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, ManagerOptions{})
		s.set("a", "b")
		s.run()
		defer s.end()
		var groups []model.Group
		for i := range 10_000 {
			groups = append(groups, group(fmt.Sprintf("/%05d", i), fmt.Sprintf("demo.S%05d", i), endpoint(i%250, 1)))
		}
		s.say("a", Update{Groups: groups, Synced: true})
		s.say("b", Update{Groups: groups[:5000], Synced: true})
		time.Sleep(time.Second)
		was := s.m.Snapshot()
		merges := s.m.Stats().Merges
		s.say("a", Update{Groups: []model.Group{group("/00007", "demo.S00007", endpoint(1, 1), endpoint(2, 1)), {Source: "/09000"}, group("/new", "demo.S05000a", endpoint(3, 1))}})
		time.Sleep(time.Second)
		if n := s.m.Stats().Merges - merges; n != 3 {
			t.Errorf("%d services were merged anew, want 3", n)
		}
		now := s.m.Snapshot()
		if len(was.Services) != 10_000 || len(now.Services) != 10_000 {
			t.Errorf("%d, then %d services", len(was.Services), len(now.Services))
		}
		if !slices.IsSortedFunc(now.Services, func(a, b model.Service) int { return compareKeys(a.Key, b.Key) }) {
			t.Error("services are not sorted")
		}
		if len(was.Services[7].Endpoints) != 1 || len(now.Services[7].Endpoints) != 3 { // b's is another one
			t.Errorf("%d, then %d endpoints", len(was.Services[7].Endpoints), len(now.Services[7].Endpoints))
		}
	})
}

// TestManagerCountsOnce holds what a source counts: an endpoint that two groups of one registry name is one.
func TestManagerCountsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, ManagerOptions{})
		s.set("a", "b")
		s.run()
		defer s.end()
		both := []model.Group{group("/interface", "X", endpoint(1, 1), endpoint(2, 1)), group("/application", "X", endpoint(2, 1), endpoint(3, 1))}
		s.say("a", Update{Groups: both, Synced: true})
		s.say("b", Update{Groups: both[:1], Synced: true})
		b := s.puppet("b") // Set makes new ones also for what runs on
		x := "dubbo/X 192.0.2.1*1@a//interface@b//interface 192.0.2.2*1@a//application@a//interface@b//interface 192.0.2.3*1@a//application; "
		time.Sleep(time.Second)
		s.want(x + "[a synced 1/3][b synced 1/2] complete")
		if now, frozen := s.m.Sources(), s.m.Snapshot().Sources; !slices.Equal(now, frozen) {
			t.Errorf("the sources are %+v, and frozen as %+v", now, frozen)
		}
		s.set("a#2", "b") // counted once also while the old word stands
		time.Sleep(time.Second)
		s.want(x + "[a stale 1/3][b synced 1/2] complete")
		s.say("a#2", Update{Groups: both[1:], Synced: true})
		time.Sleep(time.Second)
		s.want("dubbo/X 192.0.2.1*1@b//interface 192.0.2.2*1@a//application@b//interface 192.0.2.3*1@a//application; [a synced 1/2][b synced 1/2] complete")
		b.says <- Update{Groups: []model.Group{{Source: "/interface"}}}
		s.say("a#2", Update{Groups: []model.Group{{Source: "/application"}}})
		time.Sleep(time.Second)
		s.want("[a synced 0/0][b synced 0/0] complete")
	})
}

func BenchmarkFreeze10000(b *testing.B) {
	m := newMerger()
	r := &run{groups: map[string]*held{}}
	groups := make([]model.Group, 10_000)
	for i := range groups {
		groups[i] = group(fmt.Sprintf("/%05d", i), fmt.Sprintf("demo.S%05d", i), endpoint(1, 1), endpoint(2, 1), endpoint(3, 1))
		m.add(r, &groups[i])
	}
	m.freeze()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		g := &groups[i%len(groups)]
		m.remove(r, *g)
		m.add(r, g)
		m.freeze()
	}
}

func TestTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, ManagerOptions{})
		tried := make(chan error, 1)
		var snap *model.Snapshot
		try := func(ctx context.Context) {
			got, err := Try(ctx, s.m.o.Kinds, Registry{Name: "a", Kind: "puppet"}, nil)
			snap = got
			tried <- err
		}
		go try(t.Context())
		synctest.Wait()
		s.say("a", Update{Groups: []model.Group{group("/x", "X", endpoint(1, 1))}})
		s.say("a", Update{Groups: []model.Group{group("/y", "Y", endpoint(2, 1))}, Synced: true})
		if err := <-tried; err != nil || len(snap.Services) != 2 || !snap.Complete {
			t.Errorf("%s, %v", text(snap), err)
		}
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		go try(ctx)
		synctest.Wait()
		s.say("a", Update{Err: errors.New("nobody there")})
		if err := <-tried; !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "nobody there") {
			t.Error(err)
		}
		if _, err := Try(t.Context(), s.m.o.Kinds, Registry{Name: "a", Kind: "none"}, nil); len(AsFaults(err)) != 1 {
			t.Error(err)
		}
	})
}
