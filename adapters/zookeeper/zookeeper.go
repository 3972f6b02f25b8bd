// Package zookeeper reads the services that Dubbo and SOFARPC applications register in ZooKeeper, by watches: the children of
// the roots are the interfaces, the children of an interface its categories, and the names of a category's children are URLs that
// say everything. Of Dubbo's and Spring Cloud's applications, which register instances instead, the data is read, too.
package zookeeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/adapters/registryurl"
)

// Kind is the entry of this adapter in the table of kinds.
var Kind = adapters.Kind{
	Name: "zookeeper",
	Doc:  "Dubbo, SOFARPC and Spring Cloud services registered in ZooKeeper, by watches",
	Example: `servers: [zk-1.example.org:2181, zk-2.example.org:2181]
layouts: [dubbo, sofarpc, applications]
`,
	New: func(decode func(into any) error, o adapters.Options) (adapters.Discoverer, error) {
		var s Settings
		if err := decode(&s); err != nil {
			return nil, err
		}
		return New(s, o), nil
	},
}

// layout says what one tree looks like: the categories to watch and how an interface's nodes are read; or that it is one of
// applications and their instances.
type layout struct {
	applications bool
	categories   []string
	skip         []string // children of the root that are no interfaces
	encoded      bool     // interfaces' names are URL-encoded
	read         func(in interfaceNodes, labels []string) ([]model.Service, []model.Problem)
}

var layouts = map[string]*layout{
	layoutDubbo: {
		categories: []string{providers, consumers, configurators},
		skip:       []string{"config", "mapping", "metadata"}, // Dubbo's configuration, mapping and metadata centres
		encoded:    true,
		read:       dubboServices,
	},
	layoutSOFARPC: {
		categories: []string{providers, consumers, overrides},
		read:       sofaServices,
	},
	layoutApplications: {applications: true},
}

// Discoverer watches one ensemble.
type Discoverer struct {
	s     Settings
	roots []rootOf
	log   *slog.Logger
}

type rootOf struct {
	path   string // with the chroot
	layout *layout
}

// New makes a Discoverer out of valid settings.
func New(s Settings, o adapters.Options) *Discoverer {
	or := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	or(&s.SessionTimeout, 15*time.Second)
	or(&s.ConnectTimeout, 3*time.Second)
	if s.Concurrency == 0 {
		s.Concurrency = 32
	}
	if len(s.Layouts) == 0 {
		s.Layouts = []string{layoutDubbo, layoutSOFARPC, layoutApplications}
	}
	if len(s.DubboRoots) == 0 {
		s.DubboRoots = []string{"/dubbo"}
	}
	if len(s.SOFARoots) == 0 {
		s.SOFARoots = []string{"/sofa-rpc"}
	}
	if len(s.ApplicationRoots) == 0 {
		s.ApplicationRoots = []string{"/services"}
	}
	if s.MetadataRoot == "" {
		s.MetadataRoot = "/dubbo/metadata"
	}
	d := &Discoverer{s: s, log: o.Logger()}
	add := func(name string, paths []string) {
		if slices.Contains(s.Layouts, name) {
			for _, p := range paths {
				d.roots = append(d.roots, rootOf{s.Chroot + p, layouts[name]})
			}
		}
	}
	add(layoutDubbo, s.DubboRoots)
	add(layoutSOFARPC, s.SOFARoots)
	add(layoutApplications, s.ApplicationRoots)
	return d
}

// Run implements adapters.Discoverer.
func (d *Discoverer) Run(ctx context.Context, out chan<- adapters.Update) error {
	var auth []byte
	if d.s.Username != "" {
		password, err := d.s.password().Read()
		if err != nil {
			return fmt.Errorf("zookeeper: %w", err)
		}
		auth = []byte(d.s.Username + ":" + password)
	}
	tc, err := d.s.tlsConfig()
	if err != nil {
		return err
	}
	inner, stop := context.WithCancel(ctx)
	c, err := dial(inner, &d.s, tc, d.log)
	if err != nil {
		stop()
		return err
	}
	w := &watch{
		d: d, c: c, auth: auth, out: out,
		nodes:   map[string]*node{},
		units:   map[string]*unit{},
		changed: map[string]struct{}{},
		known:   map[string]int{},
		waiting: map[string]map[*unit]struct{}{},
		jobs:    make(chan *node),
		results: make(chan result, d.s.Concurrency),
	}
	var workers sync.WaitGroup
	for range d.s.Concurrency {
		workers.Go(w.work)
	}
	err = w.loop(ctx)
	stop()
	close(w.jobs)
	c.close()
	workers.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// role says what a node's children are.
type role int

const (
	roleLogin       role = iota // no node: the credentials
	roleRoot                    // interfaces or applications
	roleInterface               // categories
	roleCategory                // URLs
	roleApplication             // instances
	roleInstance                // none: its data is read
	roleMetadata                // none: its data is read
)

// node is a node whose children, or data, are watched.
type node struct {
	path string
	role role
	root rootOf
	unit *unit  // that it is a part of
	part string // category, instance or revision

	children []string // sorted; the last that could be read
	data     []byte   // the same for an instance or metadata
	tried    bool     // a read has been answered
	ever     bool     // with content, or that it is not there
	absent   bool
	denied   error // why the last read failed for good
	queued   bool
	inFlight bool
	again    bool // changed while in flight
}

// unit is an interface or an application: one group of the model.
type unit struct {
	source   string
	name     string // decoded
	nameErr  error
	node     *node
	root     rootOf
	parts    map[string]*node // categories of an interface, instances of an application
	metadata map[string]*node // of an application, by revision
	withheld bool             // its faults are out in a group of their own

	addresses []string // of an interface's endpoints, host:port
	waits     []string // addresses of instances that say nothing of their services
}

type result struct {
	node     *node
	children []string
	data     []byte
	absent   bool
	err      error
}

// watch is one Run. Its loop is the only one to touch it; the workers only read nodes.
type watch struct {
	d    *Discoverer
	c    *client
	auth []byte
	out  chan<- adapters.Update

	nodes    map[string]*node // by path
	units    map[string]*unit // by path
	changed  map[string]struct{}
	known    map[string]int                // host:port to the number of interfaces with an endpoint there
	waiting  map[string]map[*unit]struct{} // host:port to applications that wait for one
	queue    []*node
	inFlight int
	unread   int // nodes of which no read has been answered
	jobs     chan *node
	results  chan result

	loggedIn  bool
	connected bool
	synced    bool
	failing   error     // an Err update is out
	failText  string    // the last one sent
	failTime  time.Time // when it was
	report    *adapters.Update
	rootsOut  bool // the roots' problems have been looked at
	rootsFlag bool // some are out
}

// Pauses before something is tried again that no watch reports.
const (
	retryDenied = 30 * time.Second // a node's permissions
	repeatError = 30 * time.Second // another reason why there is no connection
)

// work reads nodes until there are no more jobs or the client is closed.
func (w *watch) work() {
	for n := range w.jobs {
		r := result{node: n}
		switch n.role {
		case roleLogin:
			r.err = w.c.conn.AddAuth("digest", w.auth)
		default:
			if r.err = zk.ErrConnectionClosed; w.c.up() {
				r.children, r.data, r.absent, r.err = w.read(n)
			}
		}
		w.results <- r // has room for every worker's
	}
}

// read returns the children or the data of a node and leaves a watch on them. The read and the watch are one request, so no
// change falls between them. A root or metadata that is not there leaves a watch for its coming; anything else is watched for by
// its parent.
func (w *watch) read(n *node) (children []string, data []byte, absent bool, err error) {
	for {
		switch n.role {
		case roleInstance, roleMetadata:
			data, _, _, err = w.c.conn.GetW(n.path)
		default:
			children, _, _, err = w.c.conn.ChildrenW(n.path)
		}
		if !errors.Is(err, zk.ErrNoNode) {
			return children, data, false, err
		}
		if n.role != roleRoot && n.role != roleMetadata {
			return nil, nil, true, nil
		}
		exists, _, _, err := w.c.conn.ExistsW(n.path)
		if err != nil || !exists {
			return nil, nil, true, err
		}
		// It has come in between: once more. The watch on its data costs nothing but a needless read one day.
	}
}

// loop runs until ctx is done or something happens that a new connection may mend. What can happen: the client has news
// (connection, changed nodes), a worker is free for the next node, a node has been read, the receiver takes an update, it is
// time to try denied nodes again.
func (w *watch) loop(ctx context.Context) error {
	for _, r := range w.d.roots {
		w.add(&node{path: r.path, role: roleRoot, root: r})
	}
	login := &node{role: roleLogin}
	w.loggedIn = w.auth == nil
	retry := time.NewTicker(retryDenied)
	defer retry.Stop()
	var pending *adapters.Update
	for {
		for len(w.queue) > 0 && w.nodes[w.queue[0].path] != w.queue[0] {
			w.queue = w.queue[1:] // dropped meanwhile
		}
		var jobs chan *node
		var next *node
		switch {
		case !w.connected || w.inFlight == w.d.s.Concurrency:
		case !w.loggedIn:
			if !login.inFlight {
				jobs, next = w.jobs, login
			}
		case len(w.queue) > 0:
			jobs, next = w.jobs, w.queue[0]
		}
		if pending == nil {
			pending = w.update()
		}
		var out chan<- adapters.Update
		var u adapters.Update
		if pending != nil {
			out, u = w.out, *pending
		}
		select {
		case <-ctx.Done():
			return nil
		case <-w.c.wake:
			w.news()
		case jobs <- next:
			next.inFlight = true
			w.inFlight++
			if next != login {
				next.queued = false
				w.queue = w.queue[1:]
			}
		case r := <-w.results:
			w.inFlight--
			r.node.inFlight = false
			if r.node == login {
				if err := w.login(r.err); err != nil {
					return err
				}
				continue
			}
			if err := w.result(r); err != nil {
				return err
			}
		case out <- u:
			pending = nil
		case <-retry.C:
			for _, n := range w.nodes {
				if n.denied != nil {
					w.enqueue(n)
				}
			}
		}
	}
}

func (w *watch) login(err error) error {
	switch {
	case err == nil:
		w.loggedIn = true
	case transient(err):
	default:
		return fmt.Errorf("zookeeper: authenticate as %s: %w", w.d.s.Username, err)
	}
	return nil
}

// transient reports whether a read failed only because there was no connection.
func transient(err error) bool {
	for _, e := range []error{zk.ErrConnectionClosed, zk.ErrNoServer, zk.ErrSessionExpired, zk.ErrClosing, zk.ErrSessionMoved} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (w *watch) news() {
	n := w.c.take()
	w.connected = n.connected
	for path := range n.dirty {
		if node := w.nodes[path]; node != nil {
			w.enqueue(node)
		}
	}
	now := time.Now()
	switch {
	case n.connected || n.lost == nil:
	case w.failing == nil, n.lost.Error() != w.failText && now.Sub(w.failTime) > repeatError:
		w.failing, w.failText, w.failTime = n.lost, n.lost.Error(), now
		w.report = &adapters.Update{Err: n.lost}
	}
}

// enqueue has a node read, again if it is just being read.
func (w *watch) enqueue(n *node) {
	switch {
	case n.inFlight:
		n.again = true
	case !n.queued:
		n.queued = true
		w.queue = append(w.queue, n)
	}
}

func (w *watch) add(n *node) {
	w.nodes[n.path] = n
	w.unread++
	w.enqueue(n)
}

func (w *watch) drop(n *node) {
	if n == nil || w.nodes[n.path] != n {
		return
	}
	delete(w.nodes, n.path)
	if !n.tried {
		w.unread--
	}
}

func (w *watch) settle(n *node) {
	if !n.tried {
		n.tried = true
		w.unread--
	}
}

// result takes over what was read of a node.
func (w *watch) result(r result) error {
	n := r.node
	if w.nodes[n.path] != n {
		return nil // its parent has dropped it meanwhile
	}
	again := n.again
	n.again = false
	switch {
	case r.err == nil:
		first := !n.ever || n.denied != nil
		was := n.absent
		n.denied, n.absent = nil, r.absent
		slices.Sort(r.children)
		same := !first && was == r.absent && slices.Equal(n.children, r.children) && bytes.Equal(n.data, r.data)
		n.children, n.data, n.ever = r.children, r.data, true
		w.settle(n)
		w.grown(n, same)
	case transient(r.err):
		again = true
	case errors.Is(r.err, zk.ErrNoAuth) && n.role == roleRoot:
		return fmt.Errorf("zookeeper: the account %q may not read %s: grant it the permission, or take this root out of layouts", w.d.s.Username, n.path)
	case errors.Is(r.err, zk.ErrNoAuth), errors.Is(r.err, zk.ErrInvalidPath):
		if n.denied == nil {
			n.denied = r.err
			w.touch(n.unit)
		}
		w.settle(n)
	default:
		return fmt.Errorf("zookeeper: read %s: %w", n.path, r.err)
	}
	if again {
		w.enqueue(n)
	}
	return nil
}

func (w *watch) touch(u *unit) {
	if u != nil {
		w.changed[u.source] = struct{}{}
	}
}

// grown takes over the children of a node. Even if they are the same as before, one of them may have been deleted and created
// again meanwhile, and be known as absent.
func (w *watch) grown(n *node, same bool) {
	switch n.role {
	case roleRoot:
		w.interfaces(n)
		w.rootsOut = w.rootsOut && same
	case roleInterface:
		w.categories(n)
	case roleApplication:
		w.instances(n)
	}
	if !same {
		if n.role == roleInstance {
			w.revisions(n.unit)
		}
		w.touch(n.unit)
	}
}

func (w *watch) interfaces(root *node) {
	there := make(map[string]bool, len(root.children))
	for _, name := range root.children {
		if slices.Contains(root.root.layout.skip, name) {
			continue
		}
		path := root.path + "/" + name
		there[path] = true
		if u := w.units[path]; u != nil {
			if u.node.absent {
				w.enqueue(u.node)
			}
			continue
		}
		u := &unit{source: path, name: name, root: root.root, parts: map[string]*node{}, metadata: map[string]*node{}}
		role := roleApplication
		if !root.root.layout.applications {
			role = roleInterface
		}
		if root.root.layout.encoded {
			if u.name, u.nameErr = url.QueryUnescape(name); u.nameErr != nil {
				u.name = name
			}
		}
		if u.nameErr == nil && !registryurl.Word(u.name) {
			u.nameErr = registryurl.ErrWord
		}
		u.node = &node{path: path, role: role, root: root.root, unit: u}
		w.units[path] = u
		w.add(u.node)
	}
	for path, u := range w.units {
		if u.root.path == root.path && !there[path] {
			for _, n := range u.nodes() {
				w.drop(n)
			}
			w.learn(u, nil)
			w.wait(u, nil)
			delete(w.units, path)
			w.changed[path] = struct{}{}
		}
	}
}

func (w *watch) categories(n *node) {
	u := n.unit
	for _, c := range u.root.layout.categories {
		have := u.parts[c]
		_, there := slices.BinarySearch(n.children, c)
		switch {
		case there && have == nil:
			have = &node{path: u.source + "/" + c, role: roleCategory, root: u.root, unit: u, part: c}
			u.parts[c] = have
			w.add(have)
		case there && have.absent:
			w.enqueue(have)
		case !there && have != nil:
			w.drop(have)
			delete(u.parts, c)
		}
	}
}

// nodes returns all nodes of a unit.
func (u *unit) nodes() []*node {
	return slices.Concat([]*node{u.node}, slices.Collect(maps.Values(u.parts)), slices.Collect(maps.Values(u.metadata)))
}

// update returns what is to be said now, nil where there is nothing. Until everything has been read only the state of the
// connection is.
func (w *watch) update() *adapters.Update {
	u := adapters.Update{}
	say := false
	if w.report != nil {
		u, say = *w.report, true
		w.report = nil
	}
	idle := w.connected && w.loggedIn && len(w.queue) == 0 && w.inFlight == 0
	if !w.synced && idle && w.unread == 0 {
		w.synced = true
		u.Synced, say = true, true
		u.Err, w.failing = nil, nil
	}
	if w.synced {
		if len(w.changed) > 0 {
			w.groups(&u)
			say = true
		}
		if w.failing != nil && idle {
			w.failing, w.failText = nil, ""
			u.Err, u.Healthy, say = nil, true, true
		}
		if !w.rootsOut && idle {
			w.rootsOut = true
			say = w.rootProblems(&u) || say
		}
	}
	if !say {
		return nil
	}
	return &u
}

// deniedSource is the source of the group that holds the problems of an interface whose providers could not be read
// yet; what an earlier run said of it stays.
func deniedSource(source string) string { return source + "#denied" }

// groups says what has changed. Interfaces come first: what an application is to be warned of depends on them.
func (w *watch) groups(u *adapters.Update) {
	for _, applications := range []bool{false, true} {
		for source := range w.changed {
			un := w.units[source]
			if un == nil {
				delete(w.changed, source)
				u.Groups = append(u.Groups, model.Group{Source: source}, model.Group{Source: deniedSource(source)})
				continue
			}
			if un.root.layout.applications != applications {
				continue
			}
			delete(w.changed, source)
			g, withheld := w.group(un)
			if withheld {
				g.Source = deniedSource(source)
				u.Held = append(u.Held, source)
			} else if un.withheld {
				u.Groups = append(u.Groups, model.Group{Source: deniedSource(source)})
			}
			un.withheld = withheld
			u.Groups = append(u.Groups, g)
		}
	}
	slices.SortFunc(u.Groups, func(a, b model.Group) int { return strings.Compare(a.Source, b.Source) })
	slices.Sort(u.Held)
}

// group makes the group of a unit out of what is known of its nodes. withheld says that it is only its problems, as what it would
// say of providers has never been read.
func (w *watch) group(un *unit) (g model.Group, withheld bool) {
	g.Source = un.source
	for _, n := range un.nodes() {
		if n.denied == nil {
			continue
		}
		why := "the account may not read this node"
		if errors.Is(n.denied, zk.ErrInvalidPath) {
			why = "its path has characters that cannot be asked for"
		}
		kept := "what was read of it before stays"
		if !n.ever {
			kept = "nothing of it is known yet"
			withheld = withheld || n.role != roleCategory || n.part == providers
		}
		g.Problems = append(g.Problems, model.Problem{Severity: model.SeverityError, Place: n.path, Code: "NotReadable",
			Message: fmt.Sprintf("%s (%v); %s, and it is tried again every %v", why, n.denied, kept, retryDenied)})
	}
	slices.SortFunc(g.Problems, func(a, b model.Problem) int { return strings.Compare(a.Place, b.Place) })
	var more []model.Problem
	switch {
	case un.nameErr != nil:
		more = []model.Problem{{Severity: model.SeverityError, Place: un.source, Code: "MalformedName",
			Message: fmt.Sprintf("the node's name is no name of an interface or application: %v; it is left out", un.nameErr)}}
	case withheld:
	case un.root.layout.applications:
		g.Services, more = w.application(un)
	default:
		in := interfaceNodes{Path: un.source, Interface: un.name, Categories: map[string][]string{}}
		for c, n := range un.parts {
			in.Categories[c] = n.children
		}
		g.Services, more = un.root.layout.read(in, w.d.s.LabelParameters)
		w.learn(un, g.Services)
	}
	g.Problems = append(g.Problems, more...)
	return g, withheld
}

// rootProblems tells that none of the roots is there, which is more often a wrong setting than an empty registry.
func (w *watch) rootProblems(u *adapters.Update) bool {
	none := true
	for _, r := range w.d.roots {
		if n := w.nodes[r.path]; n != nil && !n.absent {
			none = false
		}
	}
	if none == w.rootsFlag {
		return false
	}
	w.rootsFlag = none
	for _, r := range w.d.roots {
		g := model.Group{Source: r.path}
		if none {
			g.Problems = []model.Problem{{Severity: model.SeverityWarning, Place: r.path, Code: "RootMissing",
				Message: "there is no such node, and none of the other roots; if applications are registered here, chroot, dubboRoots, sofaRoots or applicationRoots is wrong. It is watched for."}}
		}
		u.Groups = append(u.Groups, g)
	}
	return true
}
