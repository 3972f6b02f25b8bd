package lift_test

import (
	"bufio"
	"fmt"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// A load is so many calls, so many at once on each of so many connections.
type load struct{ conns, inFlight, size, calls int }

// run makes the calls and returns how long they took. All have to work.
func (l load) run(t testing.TB, port int) time.Duration {
	t.Helper()
	begin := time.Now()
	var wg sync.WaitGroup
	errs := make(chan error, 2*l.conns)
	for range l.conns {
		c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		slots := make(chan struct{}, l.inFlight)
		each := l.calls / l.conns
		wg.Add(2)
		go func() {
			defer wg.Done()
			f := frame("req", 0, "size", strconv.Itoa(l.size))
			for id := range each {
				slots <- struct{}{}
				f[8], f[9], f[10], f[11] = byte(id>>24), byte(id>>16), byte(id>>8), byte(id)
				if _, err := c.Write(f); err != nil {
					errs <- err
					return
				}
			}
		}()
		go func() {
			defer wg.Done()
			r := bufio.NewReaderSize(c, 64<<10)
			_ = c.SetReadDeadline(time.Now().Add(time.Minute))
			for range each {
				b, f, err := filtertest.ReadDubbo(r)
				if err != nil {
					errs <- err
					return
				}
				if f.Outcome != protocol.OutcomeOK {
					errs <- fmt.Errorf("call %d: %s %q", f.ID, f.Outcome, b)
					return
				}
				<-slots
			}
		}()
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case err := <-errs:
		t.Fatal(err)
	case <-done:
	}
	return time.Since(begin)
}
