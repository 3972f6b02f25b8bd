package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A load is how hard the client pushes.
type load struct {
	Conns    int // connections
	InFlight int // calls at once on each connection
	Size     int // of the argument, in bytes
}

func (l load) String() string { return fmt.Sprintf("%d × %d", l.Conns, l.InFlight) }

// A sample is what one run of a load saw.
type sample struct {
	Calls   int64         // answered with a value, within the run
	Errors  int64         // answered otherwise
	Elapsed time.Duration // of the run
	Latency latencies
}

// latencies is a histogram of microseconds: exact up to 100 ms, beyond that the last bucket.
type latencies [100_001]uint32

func (l *latencies) add(d time.Duration) {
	us := d.Microseconds()
	if us >= int64(len(l)) {
		us = int64(len(l)) - 1
	}
	l[us]++
}

// quantile returns the p-quantile (0 to 1), 0 without samples.
func (l *latencies) quantile(p float64) time.Duration {
	var total uint64
	for _, n := range l {
		total += uint64(n)
	}
	if total == 0 {
		return 0
	}
	rank := uint64(p * float64(total-1))
	var seen uint64
	for us, n := range l {
		if seen += uint64(n); seen > rank {
			return time.Duration(us) * time.Microsecond
		}
	}
	return 0
}

// serve answers every request on ln until ln closes. Answers leave together when the reader has nothing more at hand, as
// Netty flushes on channelReadComplete.
func serve(ln net.Listener, p rpc) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			r := bufio.NewReaderSize(c, 64<<10)
			w := bufio.NewWriterSize(c, 64<<10)
			out := make([]byte, 0, 256)
			for {
				h, err := r.Peek(p.header)
				if err != nil {
					return
				}
				n, _, _ := p.extent(h)
				out = p.respond(out[:0], h)
				if _, err := r.Discard(n); err != nil {
					return
				}
				if _, err := w.Write(out); err != nil {
					return
				}
				if r.Buffered() == 0 && w.Flush() != nil {
					return
				}
			}
		}()
	}
}

// run calls addr for d after a warm-up, and reports what came back within d.
//
// begin and end are called as the measured time starts and ends.
func run(ctx context.Context, addr string, p rpc, l load, warm, d time.Duration, begin, end func()) (*sample, error) {
	conns := make([]*caller, l.Conns)
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.conn.Close()
			}
		}
	}()
	for i := range conns {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("bench: dial %s: %w", addr, err)
		}
		conns[i] = &caller{conn: c, p: p, slots: make(chan uint64, l.InFlight), started: make([]time.Time, l.InFlight)}
		for s := range l.InFlight {
			conns[i].slots <- uint64(s)
		}
	}
	var counting atomic.Bool
	var wg sync.WaitGroup
	errs := make(chan error, 2*l.Conns)
	stop := make(chan struct{})
	for _, c := range conns {
		wg.Add(2)
		go func() { defer wg.Done(); errs <- c.write(l.Size, stop) }()
		go func() { defer wg.Done(); errs <- c.read(&counting) }()
	}
	wait := func(d time.Duration) error {
		select {
		case <-time.After(d):
			return nil
		case err := <-errs:
			return fmt.Errorf("bench: connection failed under load: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	err := wait(warm)
	var elapsed time.Duration
	if err == nil {
		begin()
		start := time.Now()
		counting.Store(true)
		err = wait(d)
		counting.Store(false)
		elapsed = time.Since(start)
		end()
	}
	close(stop)
	for _, c := range conns {
		c.conn.Close()
	}
	wg.Wait()
	if err != nil {
		return nil, err
	}
	s := &sample{Elapsed: elapsed}
	for _, c := range conns {
		s.Calls += c.calls
		s.Errors += c.errors
		for i, n := range c.latency {
			s.Latency[i] += n
		}
	}
	return s, nil
}

// A caller is one connection. An id's slot is id mod the number of slots, so at most that many calls are in flight.
type caller struct {
	conn    net.Conn
	p       rpc
	slots   chan uint64 // the next id of each free slot
	mu      sync.Mutex
	started []time.Time
	latency latencies
	calls   int64
	errors  int64
}

func (c *caller) write(size int, stop <-chan struct{}) error {
	f := c.p.request(size)
	for {
		select {
		case <-stop:
			return nil
		case id := <-c.slots:
			c.p.setID(f, id)
			c.mu.Lock()
			c.started[id%uint64(len(c.started))] = time.Now()
			c.mu.Unlock()
			// One write a call, as a client does whose threads call independently.
			if _, err := c.conn.Write(f); err != nil {
				return closedIsNil(err)
			}
		}
	}
}

func (c *caller) read(counting *atomic.Bool) error {
	r := bufio.NewReaderSize(c.conn, 64<<10)
	for {
		h, err := r.Peek(c.p.header)
		if err != nil {
			return closedIsNil(err)
		}
		n, id, ok := c.p.extent(h)
		if n < c.p.header || n > 1<<20 {
			return errLost
		}
		if _, err := r.Discard(n); err != nil {
			return closedIsNil(err)
		}
		slot := id % uint64(len(c.started))
		c.mu.Lock()
		d := time.Since(c.started[slot])
		c.mu.Unlock()
		if counting.Load() {
			if ok {
				c.calls++
				c.latency.add(d)
			} else {
				c.errors++
			}
		}
		c.slots <- id + uint64(len(c.started))
	}
}

// closedIsNil hides the error of a connection that we closed ourselves; EOF from the other side stays an error.
func closedIsNil(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
