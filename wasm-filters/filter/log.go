package filter

import "github.com/isthmus-mesh/isthmus/wasm-filters/policy"

// A topic is a kind of log line, of which one a second is written, and ten a second of topicAudit.
type topic uint8

const (
	topicFraming topic = iota
	topicOversize
	topicUntracked
	topicInternal
	topicCrowded
	topicAudit
	topicQuota
	topics
)

const (
	logInterval   = policy.Nanos(1_000_000_000)
	auditInterval = logInterval / 10
)

// A limiter keeps what many connections have to say to one line a second for each topic and worker.
type limiter struct {
	next       [topics]policy.Nanos
	suppressed [topics]uint64
}

func (l *limiter) init() {
	for i := range l.next {
		l.next[i] = -1 << 62
	}
}

// allow tells whether a line may be written now.
func (l *limiter) allow(t topic, now policy.Nanos) bool {
	if now < l.next[t] {
		l.suppressed[t]++
		return false
	}
	l.next[t] = now + logInterval
	if t == topicAudit {
		l.next[t] = now + auditInterval
	}
	return true
}

// appendOmitted appends how many lines of a topic were not written since the last one.
func (l *limiter) appendOmitted(dst []byte, t topic) []byte {
	n := l.suppressed[t]
	if n == 0 {
		return dst
	}
	l.suppressed[t] = 0
	dst = appendString(dst, "; ")
	dst = appendUint(dst, n)
	return append(dst, " more like this were not logged"...)
}

// appendString is append, not inlined: it stands in many places, none of them hot, and size is start-up time.
//
//go:noinline
func appendString(dst []byte, s string) []byte { return append(dst, s...) }

// appendText appends what came from the network: at most maxLabel bytes, all of them printable.
//
//go:noinline
func appendText(dst, text []byte) []byte {
	for _, c := range text[:min(len(text), maxLabel)] {
		if c <= ' ' || c > '~' {
			c = '_'
		}
		dst = append(dst, c)
	}
	return dst
}

// logFrame writes one line about a frame that begins with b. It says nothing of who is at the ends of the connection.
func (vm *VM) logFrame(t topic, now policy.Nanos, what, system string, side Side, off uint64, b []byte, then string) {
	if !vm.limiter.allow(t, now) {
		return
	}
	l := append(vm.line[:0], "isthmus: "...)
	l = appendString(l, what)
	l = appendString(l, "; protocol ")
	l = appendString(l, system)
	l = appendString(l, ", from ")
	l = appendString(l, side.String())
	l = appendString(l, ", frame offset ")
	l = appendUint(l, off)
	l = appendString(l, ", begins ")
	const digits = "0123456789abcdef"
	for _, c := range b[:min(len(b), 16)] {
		l = append(l, digits[c>>4], digits[c&15])
	}
	if then != "" {
		l = appendString(l, "; ")
		l = appendString(l, then)
	}
	l = vm.limiter.appendOmitted(l, t)
	vm.line = l
	vm.host.Log(LevelWarn, l)
}
