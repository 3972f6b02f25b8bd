// Package sofaregistry reads the services that SOFARPC applications register in SOFARegistry, versions 5 and 6. Which data ids there
// are is read off the servers' HTTP pages; what is published under each is pushed by a session server, as to any client of the registry.
package sofaregistry

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/adapters/registryurl"
	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session"
	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session/wire"
)

// Kind is the entry of this adapter in the table of kinds.
var Kind = adapters.Kind{
	Name: "sofaregistry",
	Doc:  "SOFARPC services registered in SOFARegistry 5 or 6, by subscription",
	Example: `servers: [registry-1.example.org:9603, registry-2.example.org:9603]
scope: global
`,
	New: func(decode func(into any) error, _ adapters.Options) (adapters.Discoverer, error) {
		var s Settings
		if err := decode(&s); err != nil {
			return nil, err
		}
		return New(s), nil
	},
}

// Discoverer reads one registry.
type Discoverer struct {
	s           Settings
	retireAfter time.Duration // of an id that nobody publishes or subscribes to
	answerIn    time.Duration // subscriptions are not waited for any longer if no answer has come for so long
}

// New makes a Discoverer out of valid settings.
func New(s Settings) *Discoverer {
	s.Servers = slices.Clone(s.Servers)
	return &Discoverer{s: s.withDefaults(), retireAfter: time.Minute, answerIn: 10 * time.Second}
}

// Run implements adapters.Discoverer.
func (d *Discoverer) Run(ctx context.Context, out chan<- adapters.Update) error {
	var sign func(context.Context) (map[string]string, error)
	if d.s.AccessKey != "" {
		if _, err := d.s.secretKey().Read(); err != nil {
			return fmt.Errorf("sofaregistry: %w", err)
		}
		sign = session.AccessKey(d.s.AccessKey, d.s.secretKey().Read)
	}
	inner, stop := context.WithCancel(ctx)
	p := newPages(&d.s)
	f := &feed{wake: make(chan struct{}, 1), pushed: map[string]map[string]session.Push{}, faults: map[string]fault{}}
	f.client = session.New(session.Options{
		Servers:        session.Discover(p.client, d.s.query(), d.s.Servers...),
		Encoding:       d.s.encoding(),
		Application:    d.s.Application,
		Zone:           d.s.Zone,
		Scope:          session.Scope(d.s.Scope),
		Sign:           sign,
		ConnectTimeout: d.s.ConnectTimeout,
		RequestTimeout: max(d.s.ConnectTimeout, time.Second),
		Heartbeat:      d.s.Heartbeat,
		MaxPush:        d.s.MaxPush,
	}, f)
	w := &watch{Discoverer: d, s: &d.s, f: f, p: p, out: out, data: map[string]*datum{}, dirty: map[string]struct{}{}, registrations: map[string]struct{}{}, retired: map[string]time.Time{}}
	var group sync.WaitGroup
	group.Go(func() { p.run(inner) })
	group.Go(func() { _ = f.client.Run(inner) }) // it ends only with its context
	w.loop(ctx)
	stop()
	group.Wait()
	p.close()
	return nil
}

// feed gathers what the client hears for one reader: the last push of each id and segment, so that a storm of pushes costs no more
// than there are ids.
type feed struct {
	client *session.Client
	wake   chan struct{} // has a token when there is something to take

	mu        sync.Mutex
	connected string // the server, "" while there is none
	epoch     int    // counts the connections
	lost      error
	pushed    map[string]map[string]session.Push // by id and segment
	faults    map[string]fault                   // by id; "" is the server's own
}

// fault is why a subscription has no data, or why what was sent could not be read.
type fault struct {
	refused bool
	text    string
}

func (f *feed) note(do func()) {
	f.mu.Lock()
	do()
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Connected implements session.Handler. What an earlier connection said and nobody has taken is not of this one.
func (f *feed) Connected(server string) {
	f.note(func() {
		f.connected, f.lost = server, nil
		f.epoch++
		clear(f.pushed)
		clear(f.faults)
	})
}

// Disconnected implements session.Handler.
func (f *feed) Disconnected(err error) { f.note(func() { f.connected, f.lost = "", err }) }

// Pushed implements session.Handler.
func (f *feed) Pushed(p session.Push) {
	f.note(func() {
		id := p.ID.String()
		if f.pushed[id] == nil {
			f.pushed[id] = map[string]session.Push{}
		}
		if have, ok := f.pushed[id][p.Segment]; !ok || p.Version >= have.Version {
			f.pushed[id][p.Segment] = p
		}
		delete(f.faults, id)
	})
}

// Refused implements session.Handler.
func (f *feed) Refused(id session.ID, message string) {
	f.note(func() { f.faults[id.String()] = fault{true, message} })
}

// Faulty implements session.Handler.
func (f *feed) Faulty(id session.ID, err error) {
	f.note(func() {
		key := ""
		if id.DataID != "" {
			key = id.String()
		}
		f.faults[key] = fault{false, err.Error()}
	})
}

// news is what has happened since the last take.
type news struct {
	connected string
	epoch     int
	lost      error
	pushed    map[string]map[string]session.Push
	faults    map[string]fault
}

func (f *feed) take() news {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := news{f.connected, f.epoch, f.lost, f.pushed, f.faults}
	f.pushed, f.faults = map[string]map[string]session.Push{}, map[string]fault{}
	return n
}

// datum is what is known of one id: three groups of the model.
type datum struct {
	id           session.ID
	source       string
	service      service
	idErr        error  // why its id is not of a service; it is not subscribed to then
	registration string // of our subscription
	listed       *listed
	retired      bool // it is gone; what was said of it is to be taken back

	segments map[string]session.Push // on this connection, by data centre
	answered bool                    // on this connection
	doubtful bool                    // it was answered with nothing although a data server knows better
	silent   bool                    // no answer came in time on this connection
	refused  bool                    // the subscription was
	fault    string                  // why it was, or why a push could not be taken

	carry map[endpointID]born // known before this connection, not pushed on it yet
	shown map[endpointID]born // as last said

	consumers  map[string][]subscriber // by session server's page
	emptySince time.Time
	sticky     bool // it was retired and is listed all the same, as version 5 does for ever: it stays subscribed to

	said [3]bool // by category: a group is out that holds something, or an earlier run may have left one
}

// The categories of groups; the id follows in their source.
const (
	providersOf     = iota // providers/
	consumersOf            // consumers/
	subscriptionsOf        // subscriptions/: what is wrong with the subscription; apart, as the providers' last word stays
)

var categories = [...]string{"providers/", "consumers/", "subscriptions/"}

// sourcePages is the source of what is wrong with the registry as a whole.
const sourcePages = "pages"

// watch is one Run. Its loop is the only one to touch it.
type watch struct {
	*Discoverer
	s   *Settings
	f   *feed
	p   *pages
	out chan<- adapters.Update

	data          map[string]*datum    // by id
	dirty         map[string]struct{}  // ids of which something is to be said
	registrations map[string]struct{}  // our own
	retired       map[string]time.Time // ids that have been retired a short time ago
	listing       listing
	listed        bool // a complete listing has come
	swept         bool // every subscriber has been read once
	wireFault     string
	pagesSaid     []model.Problem

	epoch       int
	connected   bool
	connectedAt time.Time
	settled     bool // nothing is carried over from before the connection any more
	synced      bool
	answered    int64     // subscriptions with an answer on this connection, which is what the server counts of us
	waiting     int       // those without
	waitedFrom  time.Time // since when there are any
	progress    time.Time // when the last answer came

	lost    error
	failing bool // an Err update is out
	failed  string
	failAt  time.Time
	pending *adapters.Update // to be sent
	check   time.Time        // when to look for what can be retired
}

const (
	repeatError = 30 * time.Second // another reason why there is no connection
	groupBatch  = 2000             // groups of one update
	answerMost  = 2 * time.Minute  // that subscriptions without an answer are waited for
)

// loop runs until ctx is done. What can happen: the session has news; the pages list something else; subscribers have been read; the
// receiver takes an update; the connection has settled; a subscription has waited long enough; an id can be retired.
func (w *watch) loop(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if w.pending == nil {
			w.pending = w.next()
		}
		var out chan<- adapters.Update
		var update adapters.Update
		if w.pending != nil {
			out, update = w.out, *w.pending
		}
		timer.Reset(w.pause())
		select {
		case <-ctx.Done():
			return
		case <-w.f.wake:
			w.take(w.f.take())
		case l := <-w.p.list:
			w.takeListing(l)
		case batch := <-w.p.subs:
			w.takeSubscribers(batch)
		case out <- update:
			w.pending = nil
		case <-timer.C:
		}
		w.due(time.Now())
	}
}

// pause returns how long nothing happens by itself.
func (w *watch) pause() time.Duration {
	next := time.Until(w.check)
	if w.connected && !w.settled {
		next = min(next, time.Until(w.connectedAt.Add(w.s.Settle)))
	}
	if w.connected && w.waiting > 0 {
		next = min(next, time.Until(w.patience()))
	}
	return max(next, time.Millisecond)
}

// patience returns until when subscriptions are waited for.
func (w *watch) patience() time.Time {
	late, most := w.progress.Add(w.answerIn), w.waitedFrom.Add(answerMost)
	if most.Before(late) {
		return most
	}
	return late
}

// due does what it is time for.
func (w *watch) due(now time.Time) {
	if w.connected && !w.settled && now.Sub(w.connectedAt) >= w.s.Settle {
		w.settled = true
		for source, d := range w.data {
			if len(d.carry) > 0 || !d.said[providersOf] && d.answered {
				w.dirty[source] = struct{}{}
			}
		}
		w.takeListing(w.listing) // consumers that were kept until now
		w.p.again.Store(true)
		w.p.look()
	}
	if w.connected && w.waiting > 0 && !now.Before(w.patience()) {
		for source, d := range w.data {
			if w.waits(d) {
				d.silent = true
				w.dirty[source] = struct{}{}
			}
		}
		w.waiting = 0
	}
	if !now.Before(w.check) {
		w.check = now.Add(w.retireAfter / 4)
		w.retire(now)
	}
}

// waits reports whether a subscription has no answer of any kind on this connection.
func (w *watch) waits(d *datum) bool {
	return d.registration != "" && !d.answered && !d.refused && !d.silent
}

func (w *watch) await(d *datum) {
	d.answered, d.doubtful, d.refused, d.silent, d.fault = false, false, false, false, ""
	if w.waiting++; w.waiting == 1 {
		w.waitedFrom = time.Now()
		w.progress = w.waitedFrom
	}
}

func (w *watch) came(d *datum) {
	if w.waits(d) {
		w.waiting--
		w.progress = time.Now()
	}
}

// answer notes that a subscription has been pushed to.
func (w *watch) answer(d *datum) {
	w.came(d)
	if !d.answered {
		w.answered++
	}
	d.answered, d.doubtful, d.refused, d.silent, d.fault = true, false, false, false, ""
}

// take takes the session's news.
func (w *watch) take(n news) {
	if n.epoch != w.epoch {
		w.epoch = n.epoch
		w.begin()
	}
	for source, segments := range n.pushed {
		d := w.data[source]
		if d == nil || d.registration == "" {
			continue
		}
		if nothing(segments) && d.listed != nil && d.listed.data && !d.answered {
			d.doubtful = true // the session server will know, too
			continue
		}
		w.answer(d)
		for segment, p := range segments {
			if have, ok := d.segments[segment]; !ok || p.Version >= have.Version {
				d.segments[segment] = p
			}
		}
		w.dirty[source] = struct{}{}
	}
	for source, f := range n.faults {
		d := w.data[source]
		if d == nil || d.registration == "" {
			w.wireFault = f.text
			continue
		}
		w.came(d)
		d.refused, d.silent, d.fault = f.refused, !d.answered, f.text
		w.dirty[source] = struct{}{}
	}
	w.connected, w.lost = n.connected != "", n.lost
	at := ""
	if w.connected {
		at, _, _ = net.SplitHostPort(n.connected)
	}
	w.p.own.Store(&ownSubscriptions{at, w.answered})
}

// nothing reports whether pushes say only that the server knows nothing.
func nothing(segments map[string]session.Push) bool {
	for _, p := range segments {
		if p.Version > wire.NoDatum || len(p.Zones) > 0 {
			return false
		}
	}
	return true
}

// begin starts over on a new connection: what was known is kept until it is pushed again or the connection has settled.
func (w *watch) begin() {
	w.connectedAt, w.settled, w.waiting, w.answered, w.wireFault = time.Now(), false, 0, 0, ""
	for source, d := range w.data {
		d.segments = map[string]session.Push{}
		d.carry = maps.Clone(d.shown)
		if d.registration != "" {
			if d.fault != "" || d.silent {
				w.dirty[source] = struct{}{}
			}
			w.await(d)
		}
	}
	w.p.look()
}

// unsettled reports whether what is missing may only be on its way back.
func (w *watch) unsettled() bool { return !w.connected || w.epoch > 1 && !w.settled }

// takeListing subscribes to what is new.
func (w *watch) takeListing(l listing) {
	w.listing = l
	w.listed = w.listed || l.complete
	for source, e := range l.ids {
		d := w.data[source]
		if d == nil || d.retired {
			fresh := &datum{id: e.id, source: source, segments: map[string]session.Push{}, consumers: map[string][]subscriber{}}
			if d != nil {
				fresh.said = d.said
			}
			if at, ok := w.retired[source]; ok {
				if !e.data && time.Since(at) < w.relisted() {
					continue // it may be listed because of our own subscription, which has just ended
				}
				fresh.sticky = !e.data
				delete(w.retired, source)
			}
			d = fresh
			w.data[source] = d
			w.dirty[source] = struct{}{}
			if d.service, d.idErr = readID(e.id); d.idErr == nil {
				d.registration = w.f.client.Subscribe(e.id)
				w.registrations[d.registration] = struct{}{}
				w.await(d)
			}
		}
		d.listed = e
	}
	for source, d := range w.data {
		if e := l.ids[source]; d.doubtful && (e == nil || !e.data) {
			w.answer(d)
			w.dirty[source] = struct{}{}
		}
	}
	if w.unsettled() {
		return
	}
	for source, d := range w.data {
		e := l.ids[source]
		for server := range d.consumers {
			if e == nil || !slices.Contains(e.servers, server) {
				delete(d.consumers, server)
				w.dirty[source] = struct{}{}
			}
		}
		if e == nil && d.idErr != nil && !d.retired {
			w.drop(d)
		}
	}
}

// takeSubscribers takes over who subscribes; an empty batch says that a round is complete.
func (w *watch) takeSubscribers(batch []subscribers) {
	if batch == nil {
		w.swept = true
		return
	}
	for _, b := range batch {
		d := w.data[b.source]
		if d == nil || d.registration == "" || d.listed == nil || !slices.Contains(d.listed.servers, b.server) {
			continue
		}
		list := slices.DeleteFunc(b.list, func(s subscriber) bool {
			_, own := w.registrations[s.registration]
			return own || s.application == w.s.Application // another one of us
		})
		have := d.consumers[b.server]
		if w.unsettled() {
			list = append(list, have...)
		}
		list = distinct(list)
		if slices.Equal(list, have) {
			continue
		}
		if len(list) == 0 {
			delete(d.consumers, b.server)
		} else {
			d.consumers[b.server] = list
		}
		w.dirty[b.source] = struct{}{}
	}
}

// retire takes back subscriptions to what nobody publishes or subscribes to any more: a server lists an id for as long as we
// subscribe to it.
func (w *watch) retire(now time.Time) {
	if !w.connected || !w.settled || !w.synced {
		return
	}
	for _, d := range w.data {
		if d.registration == "" || d.sticky {
			continue
		}
		e := w.listing.ids[d.source]
		switch {
		case !d.answered || len(d.shown) > 0 || len(d.consumers) > 0 || e != nil && (e.data || w.s.NoConsumers && len(e.servers) > 1):
			d.emptySince = time.Time{}
		case d.emptySince.IsZero():
			d.emptySince = now
		case now.Sub(d.emptySince) >= w.retireAfter:
			w.f.client.Unsubscribe(d.id)
			w.drop(d)
			w.retired[d.source] = now
		}
	}
	again := false
	maps.DeleteFunc(w.retired, func(source string, at time.Time) bool {
		over, listed := now.Sub(at) >= w.relisted(), w.listing.ids[source] != nil
		again = again || over && listed
		return over && !listed
	})
	if again {
		w.takeListing(w.listing)
	}
}

// relisted is how long an id that was retired has to be listed until others must be the reason.
func (w *watch) relisted() time.Duration { return 2 * w.s.MaxInterval }

// drop forgets an id, as soon as what was said of it is taken back.
func (w *watch) drop(d *datum) {
	if d.answered {
		w.answered--
	}
	delete(w.registrations, d.registration)
	*d = datum{id: d.id, source: d.source, retired: true, said: d.said}
	w.dirty[d.source] = struct{}{}
}

// ready reports whether all that the registry holds is known.
func (w *watch) ready() bool {
	return w.listed && w.connected && w.waiting == 0 && (w.swept || w.s.NoConsumers) && len(w.dirty) == 0
}

// next returns the next update, nil if there is nothing to say.
func (w *watch) next() *adapters.Update {
	now := time.Now()
	u := &adapters.Update{}
	if p := w.registryProblems(); !slices.Equal(p, w.pagesSaid) {
		w.pagesSaid = p
		u.Groups = append(u.Groups, model.Group{Source: sourcePages, Problems: p})
	}
	if len(w.dirty) > 0 {
		for _, source := range slices.Sorted(maps.Keys(w.dirty)) {
			if len(u.Groups) >= groupBatch {
				break
			}
			delete(w.dirty, source)
			if d := w.data[source]; d != nil {
				u.Groups = append(u.Groups, w.groups(d)...)
			}
		}
	}
	if err := w.err(); err != nil {
		if !w.failing || err.Error() != w.failed && now.Sub(w.failAt) >= repeatError {
			w.failing, w.failed, w.failAt = true, err.Error(), now
			u.Err = err
		}
	} else if w.failing && w.ready() {
		w.failing = false
		u.Healthy = true
	}
	if !w.synced && w.ready() {
		w.synced, u.Synced = true, true
		// An earlier run may have known what has not been pushed, or only as empty: that is kept until the connection has settled.
		for source, d := range w.data {
			if d.registration != "" && !d.said[providersOf] {
				u.Held = append(u.Held, categories[providersOf]+source)
			}
		}
		slices.Sort(u.Held)
	}
	if len(u.Groups) == 0 && u.Err == nil && !u.Healthy && !u.Synced {
		return nil
	}
	return u
}

// err says why the registry cannot be heard.
func (w *watch) err() error {
	switch {
	case !w.connected && w.lost != nil:
		return fmt.Errorf("sofaregistry: %w", w.lost)
	case w.connected && !w.synced:
		return w.listing.err
	}
	return nil
}

// registryProblems is what is wrong with the registry as a whole.
func (w *watch) registryProblems() []model.Problem {
	out := slices.Clone(w.listing.problems)
	if w.wireFault != "" {
		out = append(out, problem(model.SeverityError, "session", "MalformedPush", "%s; it cannot be told which data it is about", w.wireFault))
	}
	return sortedProblems(out)
}

// groups returns what is to be said of an id.
func (w *watch) groups(d *datum) []model.Group {
	if d.retired {
		delete(w.data, d.source)
	}
	p := &providers{id: d.id, service: d.service, labels: w.s.LabelParameters, endpoints: map[endpointID]born{}}
	for _, segment := range slices.Sorted(maps.Keys(d.segments)) {
		push := d.segments[segment]
		p.add(&push)
	}
	if w.settled {
		d.carry = nil
	}
	for id, b := range d.carry {
		if _, ok := p.endpoints[id]; ok {
			delete(d.carry, id) // from here on its absence is a removal
		} else {
			p.endpoints[id] = b
		}
	}
	d.shown = p.endpoints

	var out [3]model.Group
	for i, category := range categories {
		out[i].Source = category + d.source
	}
	if len(p.endpoints) > 0 {
		out[providersOf].Services = []model.Service{{Key: d.service.key, Endpoints: sorted(p.endpoints)}}
	}
	out[providersOf].Problems = sortedProblems(p.problems)
	if list := consumers(d.consumers); len(list) > 0 {
		out[consumersOf].Services = []model.Service{{Key: d.service.key, Consumers: list}}
	}
	var s []model.Problem
	place := d.id.String()
	switch {
	case d.idErr != nil:
		s = append(s, problem(model.SeverityWarning, place, "MalformedDataID", "the data id is not of a SOFARPC service: %v; it is left out", d.idErr))
	case d.refused:
		s = append(s, problem(model.SeverityError, place, "SubscriptionRefused", "the registry refuses the subscription: %s; what was known of its providers stays", reason(d.fault)))
	case d.fault != "":
		s = append(s, problem(model.SeverityError, place, "MalformedPush", "%s; what was known of its providers stays", d.fault))
	case d.silent:
		s = append(s, problem(model.SeverityWarning, place, "NoAnswer", "the registry does not push it; what was known of its providers stays"))
	}
	out[subscriptionsOf].Problems = s

	var say []model.Group
	for i, g := range out {
		empty := len(g.Services) == 0 && len(g.Problems) == 0
		// An earlier run may have known providers of what is pushed as empty at first. They are taken back when that is certain.
		certain := i == providersOf && w.synced && w.settled && d.answered && !d.retired
		if !empty || d.said[i] || certain {
			say = append(say, g)
		}
		d.said[i] = !empty || certain
	}
	return say
}

// distinct sorts subscribers and leaves each application at each address once; what has no address that others know is of no use.
func distinct(list []subscriber) []subscriber {
	out := make([]subscriber, 0, len(list))
	for _, s := range list {
		host, _, err := registryurl.ParseAddress(s.address, false)
		if err != nil || host == "" || registryurl.Unusable(host) != "" {
			continue
		}
		if !registryurl.Word(s.application) {
			s.application = ""
		}
		out = append(out, subscriber{address: host, application: s.application})
	}
	slices.SortFunc(out, func(x, y subscriber) int {
		return cmp.Or(cmp.Compare(x.address, y.address), cmp.Compare(x.application, y.application))
	})
	return slices.Compact(out)
}

// consumers joins what the session servers say.
func consumers(by map[string][]subscriber) []model.Consumer {
	var all []subscriber
	for _, list := range by {
		all = append(all, list...)
	}
	var out []model.Consumer
	for _, s := range distinct(all) {
		out = append(out, model.Consumer{Address: s.address, Application: s.application})
	}
	return out
}

// reason makes what a server says fit for a message.
func reason(s string) string {
	if s == "" {
		return "it gives no reason"
	}
	return fmt.Sprintf("%.500q", s)
}
