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
	// Rate, if not 0, is how many calls are sent per second over all connections, at even distances. Latency then counts from
	// the moment at which a call was to be sent. 0 sends the next call when an answer comes.
	Rate int
}

func (l load) String() string {
	if l.Rate > 0 {
		return fmt.Sprintf("%s, %d calls/s in all", plural(l.Conns, "connection"), l.Rate)
	}
	return fmt.Sprintf("%s, %s in flight on each", plural(l.Conns, "connection"), plural(l.InFlight, "call"))
}

// turn is how many calls are in flight, at least one.
func (l load) turn() int64 {
	if l.Rate > 0 {
		return 1
	}
	return int64(l.Conns) * int64(l.InFlight)
}

// A sample is what one run of a load saw.
type sample struct {
	Calls   int64         // answered with a value, within the run
	Errors  int64         // answered otherwise
	Elapsed time.Duration // of the run
	Latency latencies
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
			out := make([]byte, 0, 512)
			if _, err := w.Write(p.greet); err != nil {
				return
			}
			if _, err := r.Discard(p.skip); err != nil {
				return
			}
			for {
				h, err := p.peek(r, p.requestHeader)
				if err != nil {
					return
				}
				n, _, _ := p.extent(h)
				if n < p.requestHeader || n > maxFrame {
					return
				}
				out = out[:0]
				if p.part == nil || !p.part(h) {
					out = p.respond(out, h)
				}
				if _, err := r.Discard(n); err != nil {
					return
				}
				if _, err := w.Write(out); err != nil {
					return
				}
				if r.Buffered() < p.requestHeader && w.Flush() != nil {
					return
				}
			}
		}()
	}
}

// maxFrame is the longest frame that either side takes, in bytes.
const maxFrame = 1 << 20

// connected bounds how long it may take until each connection has had its first answer: by far more than it should, also on
// a machine that is busy with other things.
const connected = time.Minute

// run calls addr for d, after each connection has had an answer and then a warm-up, and reports what came back within. Where many
// calls are in flight they come back in waves: then it is several times d, until as many came back as are in flight.
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
		p := p
		if p.fresh != nil {
			p = p.fresh(p)
		}
		conns[i] = &caller{conn: c, p: p, frame: p.request(l.Size), started: make([]atomic.Int64, max(l.InFlight, 1))}
		if _, err := c.Write(p.hello); err != nil {
			return nil, fmt.Errorf("bench: greet %s: %w", addr, err)
		}
	}
	var counting atomic.Bool
	var wg sync.WaitGroup
	errs := make(chan error, 2*l.Conns)
	first := make(chan struct{}, l.Conns)
	stop := make(chan struct{})
	for i, c := range conns {
		wg.Go(func() { errs <- c.read(&counting, first, l.Rate == 0) })
		if l.Rate > 0 {
			wg.Go(func() {
				errs <- c.pace(time.Duration(l.Conns)*time.Second/time.Duration(l.Rate), time.Duration(i)*time.Second/time.Duration(l.Rate), stop)
			})
			continue
		}
		wg.Go(func() { errs <- c.fill() })
	}
	// wait waits for d, or until n connections have had their first answer.
	wait := func(d time.Duration, n int) error {
		timer := time.NewTimer(d)
		defer timer.Stop()
		for got := 0; n == 0 || got < n; {
			select {
			case <-first:
				got++
			case <-timer.C:
				if n > 0 {
					return fmt.Errorf("bench: only %d of %d connections had an answer within %s", got, n, d)
				}
				return nil
			case err := <-errs:
				if err != nil {
					return fmt.Errorf("bench: connection failed under load: %w", err)
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}
	err := wait(connected, l.Conns)
	if err == nil {
		err = wait(warm, 0)
	}
	var elapsed time.Duration
	if err == nil {
		begin()
		start := time.Now()
		counting.Store(true)
		err = wait(d, 0)
		for err == nil && answered(conns) < l.turn() && time.Since(start) < connected {
			err = wait(d, 0)
		}
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
		s.Calls += c.calls.Load()
		s.Errors += c.errors.Load()
		s.Latency.merge(&c.latency)
	}
	return s, nil
}

// answered is how many calls came back in the measured time so far.
func answered(conns []*caller) int64 {
	var n int64
	for _, c := range conns {
		n += c.calls.Load() + c.errors.Load()
	}
	return n
}

// A caller is one connection. An id's slot is id mod the number of slots, so at most that many calls are in flight.
type caller struct {
	conn    net.Conn
	p       rpc
	mu      sync.Mutex // for writing frame
	frame   []byte
	started []atomic.Int64 // of each slot, on the clock of now
	latency latencies
	calls   atomic.Int64
	errors  atomic.Int64
}

var epoch = time.Now()

// now is a clock in nanoseconds that never goes back.
func now() int64 { return int64(time.Since(epoch)) }

// send sends one call, which is to be timed from at. One write a call, as a client does whose threads call independently.
func (c *caller) send(id uint64, at int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.p.setID(c.frame, id)
	c.started[id%uint64(len(c.started))].Store(at)
	_, err := c.conn.Write(c.frame)
	return err
}

// fill sends the first call of each slot.
func (c *caller) fill() error {
	for slot := range c.started {
		if err := c.send(uint64(slot), now()); err != nil {
			return closedIsNil(err)
		}
	}
	return nil
}

// pace sends a call at each interval, the first one after delay. A call that finds all slots taken is an error: the
// rate is more than the other side can bear.
func (c *caller) pace(interval, delay time.Duration, stop <-chan struct{}) error {
	next := now() + int64(delay)
	timer := time.NewTimer(delay)
	defer timer.Stop()
	for id := uint64(0); ; id++ {
		select {
		case <-stop:
			return nil
		case <-timer.C:
		}
		if c.started[id%uint64(len(c.started))].Load() != 0 {
			return errors.New("bench: the rate is more than can be answered")
		}
		if err := c.send(id, next); err != nil {
			return closedIsNil(err)
		}
		next += int64(interval)
		timer.Reset(time.Duration(next - now()))
	}
}

// read takes the answers, and tells of the first one. If again, it sends the slot's next call for each.
func (c *caller) read(counting *atomic.Bool, first chan<- struct{}, again bool) error {
	r := bufio.NewReaderSize(c.conn, 64<<10)
	for answers := 0; ; {
		h, err := c.p.peek(r, c.p.responseHeader)
		if err != nil {
			return closedIsNil(err)
		}
		n, id, ok := c.p.extent(h)
		if n < c.p.responseHeader || n > maxFrame {
			return errLost
		}
		part := c.p.part != nil && c.p.part(h)
		if _, err := r.Discard(n); err != nil {
			return closedIsNil(err)
		}
		if part {
			continue
		}
		at := now()
		sent := c.started[id%uint64(len(c.started))].Swap(0)
		if sent == 0 {
			return fmt.Errorf("bench: an answer to call %d, which is not in flight", id)
		}
		if answers == 0 {
			first <- struct{}{}
		}
		answers++
		if counting.Load() {
			if ok {
				c.calls.Add(1)
				c.latency.add(time.Duration(at - sent))
			} else {
				c.errors.Add(1)
			}
		}
		if again {
			if err := c.send(id+uint64(len(c.started)), at); err != nil {
				return closedIsNil(err)
			}
		}
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
