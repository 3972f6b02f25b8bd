package adapters

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"reflect"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters/model"
)

// ManagerOptions say how a Manager works. The zero value of each field means its default.
type ManagerOptions struct {
	// Kinds are the kinds that can be configured; usually builtin.Kinds.
	Kinds Kinds
	// StateDir is the folder in which the last word of each registry is saved; it is made if it is missing. "" saves nothing:
	// then a restart during a registry's outage has nothing to show of it.
	StateDir string
	// Pace is the least time between two snapshots: a change is in one at once, and those that follow are gathered for as long.
	// It is longer where freezing a snapshot takes long, so that this never takes more than a fifth of a processor. Default 10 ms.
	Pace time.Duration
	// RestartMin and RestartMax bound the pause before a Discoverer that gave up is started again; it doubles each time, with
	// a jitter of ±20 %, and begins anew once it has synced. Defaults 1 s and 1 min.
	RestartMin, RestartMax time.Duration
	// SaveQuiet is how long a change waits before it is saved, and SaveInterval the least time between two writes of one
	// registry's file. Defaults 2 s and 15 s. What is not yet saved is saved when Run ends.
	SaveQuiet, SaveInterval time.Duration
	// Log is where restarts and lost registries are logged; nil means nowhere.
	Log *slog.Logger
}

func (o ManagerOptions) withDefaults() ManagerOptions {
	or := func(d *time.Duration, def time.Duration) {
		if *d <= 0 {
			*d = def
		}
	}
	or(&o.Pace, 10*time.Millisecond)
	or(&o.RestartMin, time.Second)
	or(&o.RestartMax, time.Minute)
	or(&o.SaveQuiet, 2*time.Second)
	or(&o.SaveInterval, 15*time.Second)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Manager runs the Discoverers of the configured registries, merges what they say and publishes it as snapshots. All
// methods may be called from any goroutine.
type Manager struct {
	o        ManagerOptions
	commands chan []registryStart
	sets     sync.Mutex // held over one Set
	ended    chan struct{}

	mu      sync.Mutex // guards what follows
	running bool
	pending []registryStart // of a Set before Run
	waiting bool            // pending is there
	latest  *model.Snapshot
	subs    map[chan *model.Snapshot]struct{}
	sources []model.Source
	stats   Stats
}

// registryStart is a registry that is configured, with its Discoverer.
type registryStart struct {
	Registry
	discoverer Discoverer
}

// Stats count what a Manager has done since it was made.
type Stats struct {
	Updates   uint64 // messages from Discoverers
	Merges    uint64 // services merged anew
	Snapshots uint64 // snapshots frozen
	Saves     uint64 // state files written
	SaveFails uint64 // state files that could not be written
}

// NewManager makes a Manager. It does nothing until Run.
func NewManager(o ManagerOptions) *Manager {
	return &Manager{
		o:        o.withDefaults(),
		commands: make(chan []registryStart),
		ended:    make(chan struct{}),
		latest:   &model.Snapshot{},
		subs:     map[chan *model.Snapshot]struct{}{},
	}
}

// Set says which registries to read from now on; their order decides which one is believed where two contradict each
// other. A registry that is configured as before runs on undisturbed; one with new settings is started anew, its last word
// held until the new run has synced; one that is gone is stopped and everything about it forgotten, on disk too.
//
// If any entry is wrong nothing changes, and the error is Faults with paths relative to the list: [1].settings.servers.
// Set may be called before Run. While Run is running it returns once the change has been taken over.
func (m *Manager) Set(ctx context.Context, registries []Registry) error {
	m.sets.Lock()
	defer m.sets.Unlock()
	discoverers, err := build(m.o.Kinds, registries, m.o.Log)
	if err != nil {
		return err
	}
	starts := make([]registryStart, len(registries))
	for i := range registries {
		starts[i] = registryStart{registries[i], discoverers[i]}
	}
	m.mu.Lock()
	if !m.running {
		m.pending, m.waiting = starts, true
		m.mu.Unlock()
		return nil
	}
	m.mu.Unlock()
	select {
	case m.commands <- starts:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("adapters: set registries: %w", context.Cause(ctx))
	case <-m.ended:
		return errors.New("adapters: set registries: the Manager has ended")
	}
}

// Snapshot returns the latest snapshot; before the first one it is empty and has version 0.
func (m *Manager) Snapshot() *model.Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.latest
}

// Sources returns how the registries are doing at this moment, in configured order. It is fresher than Snapshot().Sources,
// which do not follow LastWord alone.
func (m *Manager) Sources() []model.Source {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.sources)
}

// Stats returns the counts so far.
func (m *Manager) Stats() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stats
}

// Subscribe returns a channel that holds the latest snapshot that its reader has not yet seen: a newer one takes the place
// of an unread one, so that a slow reader misses intermediate snapshots and never holds up the Manager. If there is a
// snapshot already it is there at once. The channel is closed when ctx is done.
func (m *Manager) Subscribe(ctx context.Context) <-chan *model.Snapshot {
	c := make(chan *model.Snapshot, 1)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.subs[c] = struct{}{}
	if m.latest.Version > 0 {
		c <- m.latest
	}
	context.AfterFunc(ctx, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.subs, c)
		close(c)
	})
	return c
}

func (m *Manager) publish(s *model.Snapshot) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.latest = s
	m.stats.Snapshots++
	for c := range m.subs {
		select { // nobody else sends, so after this there is room
		case <-c:
		default:
		}
		c <- s
	}
}

func (m *Manager) count(f func(*Stats)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(&m.stats)
}

// event is what a runner tells the loop.
type event struct {
	run      *run
	update   Update
	ended    bool  // Run returned with err
	started  bool  // Run is about to be called
	err      error // with ended
	panicked bool
}

// run is one registry as it is being run. Replacing its settings makes a new one.
type run struct {
	registryStart
	stop     context.CancelFunc
	done     chan struct{}
	source   model.Source
	groups   map[string]*held
	life     int  // counts calls of Run; groups of an earlier one go when this one syncs
	synced   bool // this call of Run has said Synced
	complete bool // a whole word is there: synced in this or an earlier run, or loaded
	owes     bool // snapshots are incomplete until it is complete
	faults   map[string]model.Problem
	priority int // place in the configuration

	problems int
	saved    time.Time // last write
	saveFrom time.Time // not zero: changed since, to be written at this time
}

// held is a group and the call of Run that said it last.
type held struct {
	group model.Group
	life  int
}

// maxGroups and maxProblems bound what one registry may make the Manager hold. The largest registries that people have
// reported hold some 100,000 services.
const (
	maxGroups   = 1_000_000
	maxProblems = 10_000
)

// Run runs the registries until ctx is done and then saves what is not yet saved. It can be called once. It returns nil
// when ctx is done, and leaves no goroutine behind.
func (m *Manager) Run(ctx context.Context) error {
	m.mu.Lock()
	if m.running {
		m.mu.Unlock()
		return errors.New("adapters: Manager.Run was called twice")
	}
	m.running = true
	pending, waiting := m.pending, m.waiting
	m.pending = nil
	m.mu.Unlock()
	defer close(m.ended)

	l := &loop{
		m: m, o: m.o, log: m.o.Log,
		ctx:    ctx,
		events: make(chan event),
		runs:   map[string]*run{},
		merger: newMerger(),
	}
	if m.o.StateDir != "" {
		l.store = newStore(m.o.StateDir)
		l.saves = make(chan saveJob)
		l.saveResults = make(chan saveResult, 1)
	}
	var saver sync.WaitGroup
	if l.store != nil {
		saver.Go(func() { l.store.run(l.saves, l.saveResults) })
	}
	if waiting {
		l.set(pending)
	}
	l.loop()
	l.shutdown()
	if l.store != nil {
		close(l.saves)
		saver.Wait()
	}
	return nil
}

// loop is the one goroutine that owns the state. What can happen: a registry says something or gives up; the registries
// are set; the next snapshot may be made; a file is due to be written or has been written.
type loop struct {
	m      *Manager
	o      ManagerOptions
	log    *slog.Logger
	ctx    context.Context
	events chan event

	runs    map[string]*run
	order   []*run
	leaving []*run // stopped, not yet gone
	merger  *merger

	everSet   bool
	everWhole bool // a complete snapshot has been published
	version   uint64
	dirty     bool      // something changed since the last snapshot
	notBefore time.Time // the next snapshot

	store       *store
	saves       chan saveJob
	saveResults chan saveResult
	saving      bool
	inHand      saveJob  // while saving
	drops       []string // names of registries whose files are to be deleted
}

func (l *loop) loop() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		now := time.Now()
		l.maybeFreeze(now)
		var job saveJob
		var saves chan saveJob
		if !l.saving {
			if j, ok := l.nextSave(now); ok {
				job, saves = j, l.saves
			}
		}
		timer.Reset(l.nextWake(now))
		select {
		case <-l.ctx.Done():
			return
		case e := <-l.events:
			l.event(e, time.Now())
		case starts := <-l.m.commands:
			l.set(starts)
		case saves <- job:
			l.handedOver(job)
		case r := <-l.saveResults:
			l.saveDone(r)
		case <-timer.C:
		}
		l.publishSources()
	}
}

func (l *loop) nextWake(now time.Time) time.Duration {
	wake := time.Hour
	soon := func(t time.Time) {
		if !t.IsZero() {
			wake = min(wake, max(0, t.Sub(now)))
		}
	}
	if l.dirty && l.everSet {
		soon(l.notBefore)
	}
	if !l.saving {
		for _, r := range l.order {
			soon(r.saveFrom)
		}
	}
	return wake
}

func (l *loop) touch() { l.dirty = true }

func (l *loop) whole() bool {
	return l.everSet && !slices.ContainsFunc(l.order, func(r *run) bool { return r.owes && !r.complete })
}

// busyShare is how much longer than freezing a snapshot takes the next one is away.
const busyShare = 4

// maybeFreeze publishes a snapshot if there is something new and the time has come, or if it is the first complete one.
func (l *loop) maybeFreeze(now time.Time) {
	if !l.everSet || !l.dirty {
		return
	}
	whole := l.whole()
	if now.Before(l.notBefore) && (!whole || l.everWhole) {
		return
	}
	defer func() {
		end := time.Now()
		l.notBefore = end.Add(max(l.o.Pace, busyShare*end.Sub(now)))
	}()
	l.dirty = false
	l.everWhole = l.everWhole || whole
	l.version++
	services, conflicts, merged := l.merger.freeze()
	l.publishSources() // merging has counted their endpoints and consumers
	l.m.count(func(s *Stats) { s.Merges += uint64(merged) })
	l.m.publish(&model.Snapshot{
		Version:  l.version,
		Time:     now,
		Complete: whole,
		Services: services,
		Problems: l.problems(conflicts),
		Sources:  l.sources(),
	})
}

func (l *loop) problems(conflicts []model.Problem) []model.Problem {
	out := slices.Clone(conflicts)
	for _, r := range l.order {
		n := 0
		for _, h := range r.groups {
			for _, p := range h.group.Problems {
				if n++; n > maxProblems {
					break
				}
				p.Registry = r.Name
				out = append(out, p)
			}
		}
		for _, p := range r.faults {
			p.Registry = r.Name
			out = append(out, p)
		}
		if r.problems > maxProblems {
			out = append(out, model.Problem{Severity: model.SeverityWarning, Registry: r.Name, Place: r.Name, Code: "TooManyProblems",
				Message: fmt.Sprintf("%d problems, of which some %d are listed", r.problems, maxProblems)})
		}
	}
	slices.SortFunc(out, compareProblems)
	return out
}

func compareProblems(a, b model.Problem) int {
	return cmp.Or(cmp.Compare(a.Registry, b.Registry), cmp.Compare(a.Place, b.Place), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Message, b.Message), cmp.Compare(a.Severity, b.Severity))
}

func (l *loop) sources() []model.Source {
	out := make([]model.Source, len(l.order))
	for i, r := range l.order {
		out[i] = r.source
	}
	return out
}

func (l *loop) publishSources() {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	l.m.sources = l.m.sources[:0]
	for _, r := range l.order {
		l.m.sources = append(l.m.sources, r.source)
	}
}

// set takes over a new list of registries.
func (l *loop) set(starts []registryStart) {
	now := time.Now()
	next := make([]*run, 0, len(starts))
	keep := map[string]bool{}
	for i, s := range starts {
		keep[s.Name] = true
		old := l.runs[s.Name]
		switch {
		case old != nil && old.Kind == s.Kind && old.Settings.Equal(s.Settings):
			if old.priority != i {
				old.priority = i
				l.merger.touchAll(old)
			}
			next = append(next, old)
			continue
		case old != nil && old.Kind == s.Kind:
			// Other settings: the old word stands until the new run has synced.
			l.retire(old)
			r := l.newRun(s, i, old.owes)
			r.groups, r.complete, r.life = old.groups, old.complete, old.life
			r.source, r.problems, r.faults = old.source, old.problems, old.faults
			r.source.Restarts = 0
			l.merger.replace(old, r)
			if r.complete {
				l.stale(r, nil, now)
			}
			l.runs[s.Name] = r
			l.launch(r)
			next = append(next, r)
			continue
		case old != nil:
			l.retire(old)
			l.forget(old)
		}
		// Of a registry that is added once snapshots are complete nothing was known that could be missing; it must not hold up
		// the others, be it unreachable.
		r := l.newRun(s, i, !l.everWhole)
		l.runs[s.Name] = r
		if old == nil && !l.dropping(s.Name) {
			l.load(r)
		}
		l.launch(r)
		next = append(next, r)
	}
	for name, r := range l.runs {
		if !keep[name] {
			l.retire(r)
			l.forget(r)
			delete(l.runs, name)
			l.drops = append(l.drops, name)
		}
	}
	l.order = next
	if !l.everSet && l.store != nil {
		// Files of registries that were taken out of the configuration while nobody was running.
		for _, name := range l.store.names() {
			if !keep[name] {
				l.drops = append(l.drops, name)
			}
		}
	}
	slices.Sort(l.drops)
	l.drops = slices.Compact(l.drops)
	l.everSet = true
	l.touch()
}

func (l *loop) newRun(s registryStart, priority int, owes bool) *run {
	return &run{
		registryStart: s,
		groups:        map[string]*held{},
		faults:        map[string]model.Problem{},
		source:        model.Source{Name: s.Name, Kind: s.Kind, State: model.StateConnecting},
		priority:      priority,
		owes:          owes,
	}
}

// load takes over the word that was saved by an earlier process.
func (l *loop) load(r *run) {
	if l.store == nil {
		return
	}
	state, err := l.store.load(r.Name)
	switch {
	case err != nil:
		l.fault(r, "CorruptState", l.store.file(r.Name), fmt.Sprintf("the saved state cannot be used and is left aside until the registry has been heard: %v", err))
		return
	case state == nil:
		return
	case state.Kind != r.Kind:
		l.log.Info("saved state is of another kind of registry and is dropped", "registry", r.Name, "saved_kind", state.Kind)
		return
	}
	for _, g := range state.Groups {
		l.put(r, g)
	}
	r.complete = true
	r.source.State = model.StateStale
	r.source.LastWord = state.LastWord
	r.source.StaleFrom = state.LastWord
	r.source.Error = "not heard since this process began"
}

func (l *loop) fault(r *run, code, place, message string) {
	r.faults[code] = model.Problem{Severity: model.SeverityWarning, Place: place, Code: code, Message: message}
}

// launch starts the runner of a registry.
func (l *loop) launch(r *run) {
	ctx, stop := context.WithCancel(l.ctx)
	r.stop, r.done = stop, make(chan struct{})
	go l.runner(ctx, r)
}

// retire stops a runner; what it may still say is ignored.
func (l *loop) retire(r *run) {
	r.stop()
	l.leaving = append(slices.DeleteFunc(l.leaving, func(r *run) bool {
		select {
		case <-r.done:
			return true
		default:
			return false
		}
	}), r)
	if l.runs[r.Name] == r {
		delete(l.runs, r.Name)
	}
}

// forget takes everything that a registry has said out of the picture.
func (l *loop) forget(r *run) {
	for source := range r.groups {
		l.put(r, model.Group{Source: source})
	}
}

// runner calls Run again and again. It owns nothing but the calls.
func (l *loop) runner(ctx context.Context, r *run) {
	defer close(r.done)
	tell := func(e event) bool {
		e.run = r
		select {
		case l.events <- e:
			return true
		case <-ctx.Done():
			return false
		}
	}
	pause := l.o.RestartMin
	for tell(event{started: true}) {
		out := make(chan Update)
		result := make(chan event, 1)
		go func() { result <- call(ctx, r.discoverer, out) }()
		synced := false
		for ended := false; !ended; {
			select {
			case u := <-out:
				synced = synced || u.Synced
				tell(event{update: u})
			case e := <-result:
				ended = true
				tell(e)
			}
		}
		if synced {
			pause = l.o.RestartMin
		}
		wait := time.NewTimer(jitter(pause))
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return
		}
		pause = min(2*pause, l.o.RestartMax)
	}
}

// jitter spreads a pause by ±20 %, so that many registries or many of us do not come back at one moment.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}

// call runs a Discoverer once. A panic in one adapter must not end the others.
func call(ctx context.Context, d Discoverer, out chan<- Update) (e event) {
	e.ended = true
	defer func() {
		if p := recover(); p != nil {
			e.err, e.panicked = fmt.Errorf("adapters: panic: %v\n%s", p, debug.Stack()), true
		}
	}()
	e.err = d.Run(ctx, out)
	if e.err == nil && ctx.Err() == nil {
		e.err = errors.New("adapters: it ended without being asked to and without saying why")
	}
	return e
}

// event takes over what a runner says.
func (l *loop) event(e event, now time.Time) {
	r := e.run
	if l.runs[r.Name] != r {
		return // replaced or removed meanwhile
	}
	switch {
	case e.started:
		r.life++
		r.synced = false
	case e.ended:
		if e.err == nil {
			return // its context is done, and so is ours
		}
		r.source.Restarts++
		text := e.err.Error()
		l.log.Warn("discoverer ended and will be started again", "registry", r.Name, "error", text, "restarts", r.source.Restarts)
		if e.panicked {
			l.fault(r, "AdapterPanic", r.Name, "the adapter failed in a way it should not; its last word is kept, and it is started again. The log has the details; please report it.")
			e.err = errors.New("the adapter panicked; see the log")
		}
		l.stale(r, e.err, now)
		l.touch()
	default:
		l.update(r, e.update, now)
	}
}

// stale notes that a registry cannot be heard.
func (l *loop) stale(r *run, err error, now time.Time) {
	if r.complete && r.source.State != model.StateStale {
		r.source.State, r.source.StaleFrom = model.StateStale, now
	}
	r.source.Error = ""
	if err != nil {
		r.source.Error = err.Error()
	}
}

func (l *loop) update(r *run, u Update, now time.Time) {
	l.m.count(func(s *Stats) { s.Updates++ })
	before := r.source
	changed := false
	for _, g := range u.Groups {
		if l.put(r, g) {
			changed = true
		}
	}
	for _, source := range u.Held {
		if h := r.groups[source]; h != nil {
			h.life = r.life
		}
	}
	if len(u.Groups) > 0 || u.Synced || u.Healthy {
		r.source.LastWord = now
	}
	if u.Synced && !r.synced {
		r.synced, r.complete = true, true
		for source, h := range r.groups {
			if h.life != r.life {
				l.put(r, model.Group{Source: source})
				changed = true
			}
		}
		delete(r.faults, "AdapterPanic")
		delete(r.faults, "CorruptState")
		changed = changed || before.State != model.StateSynced
	}
	switch {
	case u.Err != nil:
		if r.source.Error != u.Err.Error() {
			l.log.Warn("registry cannot be heard", "registry", r.Name, "error", u.Err)
		}
		l.stale(r, u.Err, now)
	case r.synced && (u.Synced || u.Healthy):
		r.source.State, r.source.StaleFrom, r.source.Error = model.StateSynced, time.Time{}, ""
	case u.Healthy:
		r.source.Error = "" // heard again, but not yet to the end
	}
	if r.source.State != before.State {
		l.log.Info("registry state changed", "registry", r.Name, "from", before.State, "to", r.source.State)
	}
	if changed || r.source.State != before.State || r.source.Error != before.Error {
		l.touch()
	}
	if (changed || u.Synced) && r.complete {
		l.wantSave(r, now)
	}
}

// put replaces or deletes one group of a registry, and reports whether that changed anything.
func (l *loop) put(r *run, g model.Group) bool {
	old := r.groups[g.Source]
	if len(g.Services) == 0 && len(g.Problems) == 0 {
		if old == nil {
			return false
		}
		delete(r.groups, g.Source)
	} else {
		if old == nil && len(r.groups) >= maxGroups {
			l.fault(r, "TooManyGroups", g.Source, fmt.Sprintf("the registry holds more than %d places; further ones are left out", maxGroups))
			return false
		}
		if old != nil && sameGroup(old.group, g) {
			old.life = r.life
			return false
		}
		r.groups[g.Source] = &held{g, r.life}
	}
	if old != nil {
		l.merger.remove(r, old.group)
		l.tally(r, old.group, -1)
	}
	if h := r.groups[g.Source]; h != nil {
		l.merger.add(r, &h.group)
		l.tally(r, h.group, 1)
	}
	return true
}

// tally keeps the counts of services and problems of a source; those of endpoints and consumers follow with the merging.
func (l *loop) tally(r *run, g model.Group, sign int) {
	r.problems += sign * len(g.Problems)
	r.source.Problems = r.problems
	r.source.Services = l.merger.servicesOf(r)
}

// shutdown waits for the runners and saves what is not saved.
func (l *loop) shutdown() {
	for _, r := range slices.Concat(l.leaving, slices.Collect(maps.Values(l.runs))) {
		<-r.done
	}
	if l.store == nil {
		return
	}
	if l.saving {
		l.saveDone(<-l.saveResults)
	}
	far := time.Now().Add(1000 * time.Hour)
	for {
		job, ok := l.nextSave(far)
		if !ok {
			return
		}
		l.saves <- job
		l.handedOver(job)
		r := <-l.saveResults
		l.saving = false
		l.countSave(r)
	}
}

func (l *loop) wantSave(r *run, now time.Time) {
	if l.store == nil || !r.saveFrom.IsZero() {
		return
	}
	r.saveFrom = now.Add(l.o.SaveQuiet)
	if earliest := r.saved.Add(l.o.SaveInterval); earliest.After(r.saveFrom) {
		r.saveFrom = earliest
	}
}

// nextSave returns what is to be written or deleted now.
func (l *loop) nextSave(now time.Time) (saveJob, bool) {
	if l.store == nil {
		return saveJob{}, false
	}
	if len(l.drops) > 0 {
		return saveJob{name: l.drops[0], drop: true}, true
	}
	for _, r := range l.order {
		if !r.saveFrom.IsZero() && !now.Before(r.saveFrom) {
			s := &savedState{Registry: r.Name, Kind: r.Kind, LastWord: r.source.LastWord, Groups: make([]model.Group, 0, len(r.groups))}
			for _, h := range r.groups {
				s.Groups = append(s.Groups, h.group)
			}
			return saveJob{name: r.Name, state: s}, true
		}
	}
	return saveJob{}, false
}

// dropping reports whether the file of that name is still there but already given up.
func (l *loop) dropping(name string) bool {
	return slices.Contains(l.drops, name) || l.saving && l.inHand.drop && l.inHand.name == name
}

func (l *loop) handedOver(j saveJob) {
	l.saving, l.inHand = true, j
	if j.drop {
		l.drops = slices.DeleteFunc(l.drops, func(name string) bool { return name == j.name })
		return
	}
	if r := l.runs[j.name]; r != nil {
		r.saved, r.saveFrom = time.Now(), time.Time{}
	}
}

func (l *loop) countSave(r saveResult) {
	if r.err != nil {
		l.log.Error("state could not be saved", "registry", r.name, "error", r.err)
	}
	l.m.count(func(s *Stats) {
		if r.err != nil {
			s.SaveFails++
		} else if !r.drop {
			s.Saves++
		}
	})
}

func (l *loop) saveDone(res saveResult) {
	l.saving = false
	l.countSave(res)
	r := l.runs[res.name]
	if r == nil || res.drop {
		return
	}
	_, had := r.faults["StateNotSaved"]
	if res.err != nil {
		l.fault(r, "StateNotSaved", l.store.file(r.Name), fmt.Sprintf("the registry's last word could not be saved and would be lost at a restart during an outage: %v", res.err))
		l.wantSave(r, time.Now())
	} else {
		delete(r.faults, "StateNotSaved")
	}
	if had != (res.err != nil) {
		l.touch()
	}
}

// sameGroup reports whether two groups say the same, so that a registry that repeats itself costs nothing.
func sameGroup(a, b model.Group) bool { return reflect.DeepEqual(a, b) }

// Try reads one registry until everything that it holds has been said, and returns that as a snapshot; or, when ctx is
// done before, what has been said so far together with why the registry could not be heard. It saves nothing. The error is
// Faults where the configuration is wrong.
func Try(ctx context.Context, kinds Kinds, r Registry, log *slog.Logger) (*model.Snapshot, error) {
	m := NewManager(ManagerOptions{Kinds: kinds, Log: log})
	if err := m.Set(ctx, []Registry{r}); err != nil {
		return nil, err
	}
	inner, stop := context.WithCancel(ctx)
	snapshots := m.Subscribe(inner)
	done := make(chan error, 1)
	go func() { done <- m.Run(inner) }()
	defer func() { stop(); <-done }()
	last := m.Snapshot()
	for s := range snapshots {
		last = s
		if s.Complete {
			return s, nil
		}
	}
	why := "it has not said everything yet"
	for _, s := range m.Sources() {
		if s.Error != "" {
			why = s.Error
		}
	}
	return last, fmt.Errorf("adapters: registry %s: %s (%w)", r.Name, why, context.Cause(ctx))
}
