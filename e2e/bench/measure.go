package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/isthmus-mesh/isthmus/e2e/peer"
)

// A measurement is one sample with the processor time that Envoy spent over the same calls.
type measurement struct {
	*sample
	CPU  time.Duration // per call
	Busy float64       // Envoy's processor time over the time that went by: 1 is one processor
}

// A chain is the Envoys that a call goes through, the client's end first.
type chain []*envoy

func (c chain) stop() {
	for _, e := range c {
		e.stop()
	}
}

// cpuTime is the processor time that they spent so far.
func (c chain) cpuTime() (time.Duration, error) {
	var sum time.Duration
	for _, e := range c {
		t, err := e.cpuTime()
		if err != nil {
			return 0, err
		}
		sum += t
	}
	return sum, nil
}

// rss is their resident memory together, in bytes.
func (c chain) rss() (int64, error) {
	var sum int64
	for _, e := range c {
		n, err := e.rss()
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// startChain starts hops Envoys with v in front of the port upstream, all on one processor.
func (p *place) startChain(ctx context.Context, v variant, hops, upstream int) (chain, error) {
	c := make(chain, hops)
	for i := hops - 1; i >= 0; i-- {
		v := v
		if i > 0 && v.Far != "" {
			v.Filter = v.Far
		}
		e, err := p.startEnvoy(ctx, v, upstream, 1, p.first)
		if err != nil {
			c[i+1:].stop()
			return nil, err
		}
		c[i], upstream = e, e.port
	}
	return c, nil
}

// measureAll does what the plan says. The rounds of a load go over all its variants, so that a machine whose speed drifts
// treats all alike.
func (p *place) measureAll(ctx context.Context, plan *plan, s *screen) error {
	defer func() { _ = bind(p.all) }()
	if up := plan.spread; up != nil {
		if err := up.measure(ctx, p, func(done int) { s.status("change %d of %d", done, up.changes) }); err != nil {
			return err
		}
		s.line("a change in a registry: measured, %d of %d", up.changes, up.changes)
	}
	for round := range plan.starts {
		for i, up := range plan.startups {
			s.status("start-up %d of %d: %s, %s", round*len(plan.startups)+i+1, plan.starts*len(plan.startups), up.Name, plural(up.workers, "worker"))
			if err := p.measureStart(ctx, up); err != nil {
				return err
			}
		}
	}
	if len(plan.startups) > 0 {
		s.line("start-up: measured")
	}
	total, done := plan.measurements(), 0
	for _, r := range plan.series {
		if err := p.measureSeries(ctx, plan, r, func(what string) {
			done++
			s.status("measurement %d of %d: %s, %s", done, total, r.title, what)
		}, func(l load) { s.line("%s, %s: measured, %d of %d", r.title, l, done, total) }); err != nil {
			return err
		}
	}
	return nil
}

// idleFor is how long an Envoy's memory must not have fallen to be taken for that of an idle one: it gives back what is free once a second.
const idleFor = 2500 * time.Millisecond

// idle is the resident memory in bytes when it falls no more.
func (e *envoy) idle(ctx context.Context) (int64, error) {
	least, err := e.rss()
	if err != nil {
		return 0, err
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for since := time.Now(); time.Since(since) < idleFor; {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-tick.C:
		}
		now, err := e.rss()
		if err != nil {
			return 0, err
		}
		if now < least {
			least, since = now, time.Now()
		}
	}
	return least, nil
}

// measureStart starts one Envoy, looks, and stops it.
func (p *place) measureStart(ctx context.Context, up *startup) error {
	// Nobody listens behind it: it is only started.
	upstream, err := peer.FreePort()
	if err != nil {
		return err
	}
	e, err := p.startEnvoy(ctx, up.variant, upstream, up.workers, p.all)
	if err != nil {
		return err
	}
	defer e.stop()
	cpu, err := e.cpuTime()
	if err != nil {
		return err
	}
	rss, err := e.idle(ctx)
	if err != nil {
		return err
	}
	up.ready, up.cpu, up.rss = append(up.ready, e.ready), append(up.cpu, cpu), append(up.rss, rss)
	return nil
}

// measureSeries does all of one series. before and after are called around what they name.
func (p *place) measureSeries(ctx context.Context, plan *plan, r *series, before func(what string), after func(load)) error {
	cpus := p.first
	if r.apart {
		cpus = p.rest
	}
	if err := bind(cpus); err != nil {
		return err
	}
	upstream := map[string]int{} // port by what is spoken
	for i := range r.variants {
		speaks := r.speaks(i)
		if upstream[speaks.name] != 0 {
			continue
		}
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return fmt.Errorf("bench: %w", err)
		}
		defer ln.Close()
		go serve(ln, speaks)
		upstream[speaks.name] = ln.Addr().(*net.TCPAddr).Port
	}
	chains := make([]chain, len(r.variants))
	defer func() {
		for _, c := range chains {
			c.stop()
		}
	}()
	for i, v := range r.variants {
		var err error
		if chains[i], err = p.startChain(ctx, v, r.hops, upstream[r.speaks(i).name]); err != nil {
			return err
		}
	}
	r.cells = make([][][]measurement, len(r.loads))
	for li, l := range r.loads {
		r.cells[li] = make([][]measurement, len(r.variants))
		for range plan.rounds {
			for vi, v := range r.variants {
				if !v.bears(l) {
					continue
				}
				before(l.String() + ", " + v.Name)
				m, err := measure(ctx, chains[vi], r.speaks(vi), l, plan.duration/5, plan.duration)
				if err != nil {
					return fmt.Errorf("%w (%s, %s, %s)", err, r.title, v.Name, l)
				}
				r.cells[li][vi] = append(r.cells[li][vi], m)
			}
		}
		after(l)
	}
	r.loaded = make([]int64, len(chains))
	for i, c := range chains {
		var err error
		if r.loaded[i], err = c.rss(); err != nil {
			return err
		}
	}
	return nil
}

// measure runs l through c. Readings and calls belong to the same stretch of time, after the warm-up.
func measure(ctx context.Context, c chain, p rpc, l load, warm, d time.Duration) (measurement, error) {
	type reading struct {
		cpu time.Duration
		err error
	}
	var first, last reading
	s, err := run(ctx, c[0].address(), p, l, warm, d,
		func() { first.cpu, first.err = c.cpuTime() }, func() { last.cpu, last.err = c.cpuTime() })
	if err := errors.Join(err, first.err, last.err); err != nil {
		return measurement{}, err
	}
	if s.Errors > 0 || s.Calls == 0 {
		return measurement{}, fmt.Errorf("bench: %d calls failed, %d worked", s.Errors, s.Calls)
	}
	spent := last.cpu - first.cpu
	return measurement{sample: s, CPU: spent / time.Duration(s.Calls), Busy: spent.Seconds() / s.Elapsed.Seconds()}, nil
}
