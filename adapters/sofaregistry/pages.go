package sofaregistry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/adapters/registryurl"
	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session"
	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session/wire"
)

// A registry has no subscription to everything, so that its data ids are listed from its servers' HTTP pages. Both versions have, on
// each session server, the ids of that server's own publishers and subscribers (digest/getDataInfoIdList) with a checksum
// (digest/checkSumDataInfoIdList), the number of its subscriptions (digest/data/count), and who subscribes to an id
// (digest/sub/data/query). Version 6 has, on each data server, its ids with their number of publishers (datum/api/summary/query);
// digest/datum/count changes when they do.

// Bounds on what pages say.
const (
	maxPage     = 64 << 20
	maxIDs      = 200_000
	maxIDLength = 4 << 10
	maxHosts    = 1000
	maxSubs     = 100_000 // subscribers of one id on one server
)

// listing is what the pages know: which servers list an id. It is immutable once sent.
type listing struct {
	ids      map[string]*listed
	problems []model.Problem
	complete bool  // every server that the registry names has answered, now or earlier
	err      error // why no session server has answered at all
}

// listed says who lists an id.
type listed struct {
	id      session.ID
	servers []string // session servers' pages, host:port, sorted
	data    bool     // a data server knows of a publisher
}

// subscribers is who subscribes to an id on one session server.
type subscribers struct {
	source string // the id
	server string // host:port of the page
	list   []subscriber
	err    error
}

type subscriber struct {
	address      string
	application  string
	registration string
	scope        string
}

// page is what is known of one server's pages.
type page struct {
	address string
	data    bool // of a data server

	heard    bool   // it has answered
	failures int    // in a row
	err      error  // the first of them, as the texts of more differ in nothing of interest
	check    string // what the cheap check last said
	ids      map[string]bool
	news     bool   // an id has come since its subscribers were last read
	count    string // the number of subscriptions; ours are not counted
	steady   bool   // it is the same as at the look before
	swept    string // what it was when its subscribers were last read
}

// due reports whether its subscribers should be read: there is another number of them. While it changes from look to look, which it also
// does when we ourselves subscribe, it is waited for.
func (g *page) due() bool { return g.news || g.count != g.swept && g.steady }

// pages reads the registry's pages. Its loop is one goroutine; a sweep of subscribers is a second one with some workers.
type pages struct {
	s      *Settings
	client *http.Client

	list  chan listing       // what is listed, when it has changed
	subs  chan []subscribers // in batches
	poke  chan struct{}      // has a token when the next look should be now
	again atomic.Bool        // read every subscriber again
	own   atomic.Pointer[ownSubscriptions]
}

// ownSubscriptions is how many of the subscriptions on a session server are ours.
type ownSubscriptions struct {
	host   string
	number int64
}

func newPages(s *Settings) *pages {
	transport := &http.Transport{
		DialContext:           (&net.Dialer{Timeout: s.ConnectTimeout}).DialContext,
		MaxIdleConnsPerHost:   s.Concurrency,
		MaxConnsPerHost:       s.Concurrency + 1,
		IdleConnTimeout:       time.Minute,
		ResponseHeaderTimeout: 3 * s.ConnectTimeout,
	}
	return &pages{
		s:      s,
		client: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		list:   make(chan listing),
		subs:   make(chan []subscribers),
		poke:   make(chan struct{}, 1),
	}
}

func (p *pages) close() { p.client.CloseIdleConnections() }

// look makes the next look be now.
func (p *pages) look() {
	select {
	case p.poke <- struct{}{}:
	default:
	}
}

var errNotFound = errors.New("404 Not Found")

// get returns a page.
func (p *pages) get(ctx context.Context, address, path string, query url.Values) ([]byte, error) {
	u := url.URL{Scheme: "http", Host: address, Path: path, RawQuery: query.Encode()}
	ctx, cancel := context.WithTimeout(ctx, 10*p.s.ConnectTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxPage+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s%s: %w", address, path, err)
	case resp.StatusCode == http.StatusNotFound:
		return nil, fmt.Errorf("%s%s: %w", address, path, errNotFound)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s%s: %s", address, path, resp.Status)
	case len(body) > maxPage:
		return nil, fmt.Errorf("%s%s: more than %d bytes", address, path, maxPage)
	}
	return body, nil
}

func (p *pages) json(ctx context.Context, address, path string, query url.Values, into any) error {
	body, err := p.get(ctx, address, path, query)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("%s%s: %w", address, path, err)
	}
	return nil
}

// run looks at the pages until ctx is done.
func (p *pages) run(ctx context.Context) {
	known := map[string]*page{}
	var sweeping *sweep
	defer func() {
		if sweeping != nil {
			<-sweeping.done
		}
	}()
	interval := p.s.Interval
	var last listing
	var lastSweep time.Time // when one ended
	var pause time.Duration // until the next
	first := true
	for {
		changed := p.refresh(ctx, known)
		if ctx.Err() != nil {
			return
		}
		if l := p.combine(known); first || changed || !slices.Equal(l.problems, last.problems) || l.complete != last.complete || (l.err == nil) != (last.err == nil) {
			first = false
			last = l
			select {
			case p.list <- l:
			case <-ctx.Done():
				return
			}
		}
		if changed {
			interval = p.s.Interval
		} else {
			interval = min(interval*5/4, p.s.MaxInterval)
		}
		if sweeping != nil {
			select {
			case <-sweeping.done:
				if sweeping.ok {
					for _, g := range sweeping.pages {
						g.page.swept = g.count
						g.page.news = g.page.news && !maps.Equal(g.page.ids, g.ids)
					}
				}
				lastSweep, pause = time.Now(), max(p.s.ConsumersInterval, 4*time.Since(sweeping.began))
				sweeping = nil
			default:
			}
		}
		if !p.s.NoConsumers && sweeping == nil {
			all := time.Since(lastSweep) >= pause || p.again.Swap(false)
			if s := newSweep(known, all); s != nil {
				sweeping = s
				go p.sweep(ctx, s, lastSweep.IsZero())
			}
		}
		wait := time.NewTimer(interval)
		var done chan struct{}
		if sweeping != nil {
			done = sweeping.done
		}
		select {
		case <-wait.C:
		case <-p.poke:
			interval = p.s.Interval
		case <-done:
		case <-ctx.Done():
			wait.Stop()
			return
		}
		wait.Stop()
	}
}

// refresh asks every server what has changed. It reports whether an id has come or gone.
func (p *pages) refresh(ctx context.Context, known map[string]*page) (changed bool) {
	p.hosts(ctx, known)
	var group sync.WaitGroup
	slots := make(chan struct{}, p.s.Concurrency)
	var news atomic.Bool
	for _, g := range known {
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			had := g.heard
			read := p.refreshSession
			if g.data {
				read = p.refreshData
			}
			differs, err := read(ctx, g)
			if err != nil {
				if g.failures++; g.err == nil {
					g.err = err
				}
				return
			}
			g.heard, g.failures, g.err = true, 0, nil
			if differs || !had {
				news.Store(true)
			}
		})
	}
	group.Wait()
	return news.Load()
}

// hosts asks the configured servers which servers there are. One that is named no more is forgotten, with what it listed.
func (p *pages) hosts(ctx context.Context, known map[string]*page) {
	named := map[string]bool{}
	complete := true
	add := func(address string, data bool) {
		named[address] = true
		if known[address] == nil && len(known) < maxHosts {
			known[address] = &page{address: address, data: data}
		}
	}
	query := p.s.query()
	for _, server := range p.s.Servers {
		answered := false
		if body, err := p.get(ctx, server, "/api/servers/query", query); err == nil {
			answered = true
			for part := range strings.SplitSeq(strings.TrimSpace(string(body)), ";") {
				address, _, _ := strings.Cut(part, "?")
				if host, _, err := net.SplitHostPort(strings.TrimSpace(address)); err == nil && validHost(host) {
					add(p.pageOf(server, host, p.s.SessionHTTPPort), false)
				}
			}
		}
		var hosts []string
		if answered && p.json(ctx, server, "/digest/data/serverList/query", nil, &hosts) == nil {
			for _, h := range hosts {
				if host, _, err := net.SplitHostPort(h); err == nil {
					h = host
				}
				if validHost(h) {
					add(net.JoinHostPort(h, strconv.Itoa(int(p.s.DataHTTPPort))), true)
				}
			}
		} else if answered {
			complete = false
		}
		if !answered {
			complete = false
			if len(named) == 0 && len(known) == 0 {
				add(server, false) // its own page is the least there is; its error is shown
			}
		}
	}
	if complete {
		maps.DeleteFunc(known, func(address string, _ *page) bool { return !named[address] })
	}
}

// pageOf returns where the pages of a session server are: at the configured address if that is the same host, since its port may
// differ from the others'.
func (p *pages) pageOf(server, host string, port uint16) string {
	if h, _, err := net.SplitHostPort(server); err == nil && h == host {
		return server
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

func validHost(h string) bool {
	if _, err := netip.ParseAddr(h); err == nil {
		return true
	}
	return registryurl.HostName(h)
}

// refreshSession asks a session server. It reports whether its ids differ.
func (p *pages) refreshSession(ctx context.Context, g *page) (bool, error) {
	sum, err := p.get(ctx, g.address, "/digest/checkSumDataInfoIdList", nil)
	if err != nil {
		return false, err
	}
	differs := false
	if check := string(sum); check != g.check || !g.heard {
		var ids []string
		if err := p.json(ctx, g.address, "/digest/getDataInfoIdList", nil, &ids); err != nil {
			return false, err
		}
		now := idSet(ids, nil)
		differs = !maps.Equal(now, g.ids)
		g.ids, g.check = now, check
	}
	if p.s.NoConsumers {
		return differs, nil
	}
	body, err := p.get(ctx, g.address, "/digest/data/count", nil)
	if err != nil {
		return differs, err
	}
	count := p.foreign(g.address, string(body))
	g.steady = count == g.count
	g.count = count
	g.news = g.news || differs || !g.heard
	return differs, nil
}

// foreign takes our own subscriptions out of "Subscriber count: 3, Publisher count: 1, Watcher count: 0", so that they are no reason
// to look who has subscribed.
func (p *pages) foreign(address, text string) string {
	if len(text) > 1024 {
		text = text[:1024]
	}
	host, _, _ := net.SplitHostPort(address)
	if own := p.own.Load(); own != nil && own.host == host {
		const prefix = "Subscriber count: "
		number, rest, _ := strings.Cut(strings.TrimPrefix(text, prefix), ",")
		if n, err := strconv.ParseInt(number, 10, 64); err == nil {
			return fmt.Sprint(n-own.number, rest)
		}
	}
	return text
}

// refreshData asks a data server. It reports whether its ids differ. Servers of version 5 list none.
func (p *pages) refreshData(ctx context.Context, g *page) (bool, error) {
	body, err := p.get(ctx, g.address, "/digest/datum/count", nil)
	if err != nil {
		return false, err
	}
	check := string(body)
	if check == g.check && g.heard {
		return false, nil
	}
	counts := map[string]int64{}
	if err := p.json(ctx, g.address, "/datum/api/summary/query", nil, &counts); err != nil && !errors.Is(err, errNotFound) {
		return false, err
	}
	now := idSet(slices.Collect(maps.Keys(counts)), func(id string) bool { return counts[id] > 0 })
	differs := !maps.Equal(now, g.ids)
	g.ids, g.check = now, check
	return differs, nil
}

func idSet(list []string, keep func(string) bool) map[string]bool {
	set := make(map[string]bool, len(list))
	for _, id := range list {
		if len(set) < maxIDs && len(id) <= maxIDLength && (keep == nil || keep(id)) {
			set[id] = true
		}
	}
	return set
}

// combine makes one listing out of what the servers say.
func (p *pages) combine(known map[string]*page) listing {
	l := listing{ids: map[string]*listed{}, complete: true}
	heard := false
	for _, address := range slices.Sorted(maps.Keys(known)) {
		g := known[address]
		if g.err != nil {
			what := "what it lists is missing"
			if g.heard {
				what = "what it listed before is kept"
			} else if g.failures < giveUp {
				l.complete = false
			}
			if l.err == nil {
				l.err = fmt.Errorf("sofaregistry: %w", g.err)
			}
			if g.failures >= tolerated {
				l.problems = append(l.problems, problem(model.SeverityWarning, address, "PageUnreadable", "the server's pages cannot be read: %v; %s", g.err, what))
			}
		}
		heard = heard || g.heard && !g.data
		for text := range g.ids {
			id, ok := wire.ParseID(text)
			if !ok || !slices.Contains(p.s.Groups, id.Group) || len(p.s.InstanceIDs) > 0 && !slices.Contains(p.s.InstanceIDs, id.InstanceID) {
				continue
			}
			e := l.ids[text]
			if e == nil {
				if len(l.ids) >= maxIDs {
					continue
				}
				e = &listed{id: id}
				l.ids[text] = e
			}
			if g.data {
				e.data = true
			} else {
				e.servers = append(e.servers, address)
			}
		}
	}
	if len(l.ids) >= maxIDs {
		l.problems = append(l.problems, problem(model.SeverityError, "pages", "TooManyIDs", "the registry holds more than %d data ids; the others are left out", maxIDs))
	}
	if heard {
		l.err = nil
	} else {
		l.complete = false
		if l.err == nil {
			l.err = errors.New("sofaregistry: no session server has answered")
		}
	}
	return l
}

// Failures in a row of one server's pages.
const (
	tolerated = 3  // before it is a problem
	giveUp    = 10 // before it is no longer waited for
)

// sweep is one round of reading who subscribes.
type sweep struct {
	pages []sweptPage
	began time.Time
	done  chan struct{}
	ok    bool // valid once done is closed
}

type sweptPage struct {
	page  *page
	count string
	ids   map[string]bool
}

// newSweep returns a round over the session servers whose subscriptions have changed, or over all; nil if there are none.
func newSweep(known map[string]*page, all bool) *sweep {
	s := &sweep{began: time.Now(), done: make(chan struct{})}
	for _, address := range slices.Sorted(maps.Keys(known)) {
		if g := known[address]; !g.data && g.heard && (all || g.due()) && g.err == nil {
			s.pages = append(s.pages, sweptPage{g, g.count, g.ids})
		}
	}
	if len(s.pages) == 0 {
		return nil
	}
	return s
}

// Pace of a sweep that is not the first one.
const (
	sweepBatch = 100
	sweepPause = 250 * time.Millisecond
)

// sweep asks each server who subscribes to each of its ids. After the first round it takes its time.
func (p *pages) sweep(ctx context.Context, s *sweep, hurry bool) {
	defer close(s.done)
	for _, g := range s.pages {
		var ids []string
		for text := range g.ids {
			if id, ok := wire.ParseID(text); ok && slices.Contains(p.s.Groups, id.Group) && (len(p.s.InstanceIDs) == 0 || slices.Contains(p.s.InstanceIDs, id.InstanceID)) {
				ids = append(ids, text)
			}
		}
		slices.Sort(ids)
		for n, batch := range slices.Collect(slices.Chunk(ids, sweepBatch)) {
			if n > 0 && !hurry {
				select {
				case <-time.After(sweepPause):
				case <-ctx.Done():
					return
				}
			}
			out := make([]subscribers, len(batch))
			var group sync.WaitGroup
			slots := make(chan struct{}, p.s.Concurrency)
			for i, id := range batch {
				slots <- struct{}{}
				group.Go(func() {
					defer func() { <-slots }()
					out[i] = subscribers{source: id, server: g.page.address}
					out[i].list, out[i].err = p.subscribersOf(ctx, g.page.address, id)
				})
			}
			group.Wait()
			for _, o := range out {
				if o.err != nil && ctx.Err() == nil {
					out = slices.DeleteFunc(out, func(o subscribers) bool { return o.err != nil })
					p.send(ctx, out)
					return // it is begun again at the next look
				}
			}
			if !p.send(ctx, out) {
				return
			}
		}
	}
	s.ok = p.send(ctx, nil) // the round is complete
}

// send hands over a batch; an empty one says that a round is complete.
func (p *pages) send(ctx context.Context, batch []subscribers) bool {
	select {
	case p.subs <- batch:
		return true
	case <-ctx.Done():
		return false
	}
}

// subscribersOf asks one session server who subscribes to an id there.
func (p *pages) subscribersOf(ctx context.Context, address, id string) ([]subscriber, error) {
	var answer struct {
		SUB []struct {
			AppName       string `json:"appName"`
			RegisterID    string `json:"registerId"`
			Scope         string `json:"scope"`
			ProcessID     string `json:"processId"`
			SourceAddress struct {
				IPAddress string `json:"ipAddress"`
			} `json:"sourceAddress"`
		}
	}
	if err := p.json(ctx, address, "/digest/sub/data/query", url.Values{"dataInfoId": {id}}, &answer); err != nil {
		return nil, err
	}
	var out []subscriber
	for _, s := range answer.SUB {
		if len(out) == maxSubs {
			break
		}
		host := s.SourceAddress.IPAddress
		if host == "" {
			host, _, _ = net.SplitHostPort(s.ProcessID)
		}
		out = append(out, subscriber{address: host, application: s.AppName, registration: s.RegisterID, scope: s.Scope})
	}
	return out, nil
}
