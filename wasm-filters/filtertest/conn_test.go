package filtertest_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/isthmus-mesh/isthmus/wasm-filters/filter"
	"github.com/isthmus-mesh/isthmus/wasm-filters/filtertest"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// static is a buffer that is never changed.
type static []byte

func (s static) CopyTo(dst []byte, off int) { copy(dst, s[off:]) }
func (s static) Prepend([]byte)             { panic("changed") }
func (s static) Replace([]byte)             { panic("changed") }

// hundred is a configuration of 100 rules of which three match demo.Hello/hi.
func hundred() string {
	s := `{"throttle":[`
	for i := range 100 {
		if i > 0 {
			s += ","
		}
		target := fmt.Sprintf(`"service":{"exact":"demo.Other%d"}`, i)
		switch i {
		case 10, 50:
			target = `"service":{"exact":"demo.Hello"}`
		case 70:
			target = `"caller":{"exact":"shop"}`
		}
		s += fmt.Sprintf(`{"name":"r%d","threshold":1000000000,"target":{%s}}`, i, target)
	}
	return s + `]}`
}

// mixed is a configuration of 100 rules of all kinds, each with conditions or hot values. Of those that match demo.Hello/hi three apply
// to the calls that frames makes: a limit of hot values, a circuit breaker and an access list.
func mixed() string {
	lists := map[string][]string{}
	for i := range 95 {
		list := []string{"access", "faultInjection", "degrade", "circuitBreaker", "throttle"}[i%5]
		rule := fmt.Sprintf(`"name":"r%d","target":{"service":{"in":["demo.Other%d","demo.More"]}},"match":[{"subject":"attachment","key":"k%d","operator":"exists"}]`, i, i, i%7)
		switch list {
		case "access":
			rule += `,"action":"deny"`
		case "circuitBreaker":
			rule += `,"strategy":"errorCount","threshold":1`
		case "throttle":
			rule += `,"threshold":1`
		}
		lists[list] = append(lists[list], "{"+rule+"}")
	}
	lists["access"] = append(lists["access"], `{"name":"list","action":"allow","target":{"service":{"exact":"demo.Hello"}},"match":[`+
		`{"subject":"callerApplication","operator":"regex","values":["(shop|pay)"]},{"subject":"callerIP","operator":"in","values":["10.0.0.0/8"]}]}`)
	lists["circuitBreaker"] = append(lists["circuitBreaker"], `{"name":"circuit","strategy":"errorRatio","threshold":500000,"target":{"method":{"prefix":"h"}}}`)
	lists["throttle"] = append(lists["throttle"], `{"name":"each","threshold":1000000000,"hotValues":{"subject":"callerApplication"}}`,
		`{"name":"tenant","threshold":0,"match":[{"subject":"attachment","key":"tenant","operator":"equals","values":["suspended"]}]}`)
	lists["faultInjection"] = append(lists["faultInjection"], `{"name":"load","match":[{"subject":"trafficType","operator":"equals","values":["loadTest"]}]}`)
	var all []string
	for list, rules := range lists {
		all = append(all, fmt.Sprintf("%q:[%s]", list, strings.Join(rules, ",")))
	}
	return "{" + strings.Join(all, ",") + "}"
}

func frames(tb testing.TB, protocol string) (req, resp []byte) {
	build := filtertest.Bolt
	if protocol == "dubbo" {
		build = filtertest.Dubbo
	}
	req, err := build("req", map[string]string{"id": "7", "service": "demo.Hello", "method": "hi", "caller": "shop", "group": "g", "timeout": "1000", "size": "1024", ".proof": "a.b.c"})
	if err != nil {
		tb.Fatal(err)
	}
	if resp, err = build("resp", map[string]string{"id": "7", "size": "5"}); err != nil {
		tb.Fatal(err)
	}
	return req, resp
}

// heartbeat is a client's.
func heartbeat(tb testing.TB, protocol string) []byte {
	build := filtertest.Bolt
	if protocol == "dubbo" {
		build = filtertest.Dubbo
	}
	b, err := build("hb", map[string]string{"id": "9"})
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// ackFor is the answer to the probe that takes the place of the request that frames builds.
func ackFor(tb testing.TB, protocol string) []byte {
	build := filtertest.Bolt
	if protocol == "dubbo" {
		build = filtertest.Dubbo
	}
	ack, err := build("ack", map[string]string{"id": "7"})
	if err != nil {
		tb.Fatal(err)
	}
	return ack
}

// TestHotPathDoesNotAllocate: in steady state no frame costs an allocation, in whatever pieces it comes, and no connection either.
func TestHotPathDoesNotAllocate(t *testing.T) {
	for _, p := range protocols {
		name := p.Codec.Name()
		for rules, conf := range map[string]string{"no rule": "{}", "100 rules": hundred(), "100 rules of all kinds": mixed(),
			"a token":     `{"access":[{"name":"s","action":"allow","token":{"attachment":"proof","key":"k","jwt":{},"onFailure":"allow"}}]}`,
			"concurrency": `{"throttle":[{"name":"c","type":"concurrency","threshold":10}]}`} {
			req, resp := frames(t, name)
			n := filtertest.NewNative(&filtertest.World{Peer: "10.1.2.3:4000"}, protocols)
			if err := n.Configure(conf); err != nil {
				t.Fatal(err)
			}
			c := n.Conn(policy.DirectionClient)
			// Another filter, whose rule admits nothing.
			none := filtertest.NewNative(new(filtertest.World), protocols)
			if err := none.Configure(`{"throttle":[{"name":"none","threshold":0}],"circuitBreaker":[{"name":"c","strategy":"errorCount","threshold":1}]}`); err != nil {
				t.Fatal(err)
			}
			closed := none.Conn(policy.DirectionClient)
			ack := ackFor(t, name)
			check := func(what string, f func()) {
				t.Helper()
				for range 100 {
					f()
				}
				if got := testing.AllocsPerRun(500, f); got != 0 {
					t.Errorf("%s, %s, %s: %v allocations", name, rules, what, got)
				}
			}
			whole, answer := filter.Buffer(static(req)), filter.Buffer(static(resp))
			check("whole frames", func() {
				c.Data(filter.Downstream, whole, len(req), false)
				c.Data(filter.Upstream, answer, len(resp), false)
			})
			var a, b filtertest.Scratch
			check("frames in two pieces", func() {
				a.Set(req[:100])
				c.Data(filter.Downstream, &a, 100, false)
				b.Set(req[100:])
				c.Data(filter.Downstream, &b, len(req)-100, false)
				a.Set(resp[:10])
				c.Data(filter.Upstream, &a, 10, false)
				b.Set(resp[10:])
				c.Data(filter.Upstream, &b, len(resp)-10, false)
			})
			check("a connection with one call", func() {
				c := n.Conn(policy.DirectionServer)
				c.Data(filter.Downstream, whole, len(req), false)
				c.End()
			})
			check("a rejected call", func() {
				a.Set(req)
				closed.Data(filter.Downstream, &a, len(req), false)
				a.Set(ack)
				closed.Data(filter.Upstream, &a, len(ack), false)
				if !bytes.Contains(a.Bytes(), []byte("isthmus: ")) {
					t.Fatal("not rejected")
				}
			})
			delaying := filtertest.NewNative(new(filtertest.World), protocols)
			if err := delaying.Configure(`{"faultInjection":[{"name":"late","delayMillis":100}]}`); err != nil {
				t.Fatal(err)
			}
			late := delaying.Conn(policy.DirectionClient)
			beat := heartbeat(t, name)
			check("a delayed call", func() {
				a.Set(req)
				if late.Data(filter.Downstream, &a, len(req), false) != filter.Linger || len(a.Bytes()) != 0 {
					t.Fatal("not delayed")
				}
				delaying.World().Clock += 100_000_000
				a.Set(beat)
				late.Data(filter.Downstream, &a, len(beat), false)
				if len(a.Bytes()) != len(req)+len(beat) {
					t.Fatal("not sent")
				}
				late.Data(filter.Upstream, answer, len(resp), false)
			})
			check("a tick", func() {
				n.World().Clock += 1_000_000_000
				c.Data(filter.Downstream, whole, len(req), false)
				if err := n.Tick(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// BenchmarkCall is one call: a request of 1 KB and its response, each in a callback of its own, or 16 of each.
func BenchmarkCall(b *testing.B) {
	for _, p := range protocols {
		for rules, conf := range map[string]string{"0rules": "{}", "100rules": hundred(), "100mixed": mixed()} {
			for _, batch := range []int{1, 16} {
				b.Run(fmt.Sprintf("%s/%s/batch%d", p.Codec.Name(), rules, batch), func(b *testing.B) {
					req, resp := frames(b, p.Codec.Name())
					var reqs, resps []byte
					for i := range batch {
						at, where := 7, len(reqs)
						if p.Codec.Name() == "dubbo" {
							at = 11
						}
						reqs, resps = append(reqs, req...), append(resps, resp...)
						reqs[where+at], resps[len(resps)-len(resp)+at] = byte(i), byte(i)
					}
					n := filtertest.NewNative(&filtertest.World{Peer: "10.1.2.3:4000"}, protocols)
					if err := n.Configure(conf); err != nil {
						b.Fatal(err)
					}
					c := n.Conn(policy.DirectionClient)
					whole, answer := filter.Buffer(static(reqs)), filter.Buffer(static(resps))
					b.ReportAllocs()
					for b.Loop() {
						n.World().Clock += 1000
						c.Data(filter.Downstream, whole, len(reqs), false)
						c.Data(filter.Upstream, answer, len(resps), false)
					}
					b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/call")
				})
			}
		}
	}
}

// TestCrowded: 64 rules that want to know how a call ends may be for one call; those beyond, of lower priority, are not in force for
// it, which is logged, and all others are.
func TestCrowded(t *testing.T) {
	var rules []string
	for i := range 70 {
		rules = append(rules, fmt.Sprintf(`{"name":"r%d","type":"concurrency","threshold":%d,"priority":%d}`, i, min(i, 1), i))
	}
	w := new(filtertest.World)
	n := filtertest.NewNative(w, protocols)
	if err := n.Configure(`{"throttle":[` + strings.Join(rules, ",") + `]}`); err != nil {
		t.Fatal(err)
	}
	c := n.Conn(policy.DirectionClient)
	req, resp := frames(t, "bolt")
	send := func(side filter.Side, frame []byte, id byte) []byte {
		b := &filtertest.Slice{B: bytes.Clone(frame)}
		b.B[8] = id
		c.Data(side, b, len(frame), false)
		return b.B
	}
	// The rule of priority 0 would admit nothing: the first call is admitted, the second finds 64 limits used up, and the third finds
	// them free again.
	for id, want := range []bool{true, false, true} {
		if admitted := len(send(filter.Downstream, req, byte(id))) == len(req); admitted != want {
			t.Errorf("call %d: admitted is %v", id, admitted)
		}
		if id == 1 {
			send(filter.Upstream, resp, 0)
		}
	}
	if logs := w.Logs(); len(logs) != 1 || !strings.Contains(logs[0], `rule "r5" is not in force for demo.Hello/hi`) {
		t.Errorf("%q", logs)
	}
}
