package host

import (
	"encoding/binary"
	"unsafe"

	"github.com/isthmus-mesh/isthmus/wasm-filters/filter"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// host implements filter.Host and policy.Shared.
type host struct{}

func (host) Now() policy.Nanos {
	if clockTimeGet(clockMonotonic, 1, unsafe.Pointer(&outTime)) != 0 {
		return 0
	}
	return policy.Nanos(outTime)
}

// Levels of the ABI.
var levels = [...]uint32{filter.LevelInfo: 2, filter.LevelWarn: 3, filter.LevelError: 4}

func (host) Log(level filter.Level, line []byte) {
	proxyLog(levels[level], unsafe.Pointer(unsafe.SliceData(line)), uint32(len(line)))
}

func (host) Counter(name []byte) filter.Metric { return define(metricCounter, name) }

func (host) Gauge(name []byte) filter.Metric { return define(metricGauge, name) }

// lost is the handle of a metric that the host refused. Additions to it are refused, too, and nothing else happens.
const lost = filter.Metric(0xfffffffe)

func define(kind uint32, name []byte) filter.Metric {
	if proxyDefineMetric(kind, unsafe.Pointer(unsafe.SliceData(name)), uint32(len(name)), unsafe.Pointer(&outID)) != statusOK {
		return lost
	}
	return filter.Metric(outID)
}

func (host) Add(m filter.Metric, delta int64) { proxyIncrementMetric(uint32(m), delta) }

func (host) Set(m filter.Metric, value uint64) { proxyRecordMetric(uint32(m), value) }

func (host) DialledAddress(dst []byte) []byte {
	return append(dst, property("destination", "address")...)
}
func (host) PeerAddress(dst []byte) []byte { return append(dst, property("source", "address")...) }

func (host) PeerIdentity(dst []byte) []byte {
	return append(dst, property("connection", "uri_san_peer_certificate")...)
}

// Endpoint reads Envoy's upstream.address, which tcp_proxy has set before it reads any of the client's bytes: the host that it has chosen, or,
// of a cluster of type ORIGINAL_DST, the address that was dialled before the connection was redirected.
func (host) Endpoint(dst []byte) []byte { return append(dst, property("upstream", "address")...) }

func (host) Wall() int64 {
	if clockTimeGet(clockRealtime, 1, unsafe.Pointer(&outTime)) != 0 {
		return 0
	}
	return int64(outTime / 1_000_000)
}

// verifySignature is a function of Envoy's own (source/extensions/common/wasm/foreign.cc), by BoringSSL.
const verifySignature = "verify_signature"

var (
	arguments []byte    // room for one call
	outcome   [256]byte // for its result
)

// VerifySignature implements token.Checker. The argument is Envoy's message VerifySignatureArguments, the result VerifySignatureResult, whose first
// field says that the signature is good.
func (host) VerifySignature(hash string, key, signature, text []byte) (valid, done bool) {
	b := field(arguments[:0], 1, unsafe.Slice(unsafe.StringData(hash), len(hash)))
	b = field(b, 2, key)
	b = field(b, 3, signature)
	b = field(b, 4, text)
	arguments = b
	target = outcome[:]
	got, ok := result(proxyCallForeignFunction(unsafe.Pointer(unsafe.StringData(verifySignature)), uint32(len(verifySignature)),
		unsafe.Pointer(unsafe.SliceData(b)), uint32(len(b)), unsafe.Pointer(&outData), unsafe.Pointer(&outSize)))
	return len(got) >= 2 && got[0] == 1<<3 && got[1] == 1, ok
}

// field appends a field of protobuf that holds bytes.
//
//go:noinline
func field(dst []byte, number byte, v []byte) []byte {
	dst = append(dst, number<<3|2)
	dst = binary.AppendUvarint(dst, uint64(len(v)))
	return append(dst, v...)
}

func (h host) Shared() policy.Shared { return h }

func (host) Ask(service []byte, name, method string, message []byte, timeout uint32) (token uint32, ok bool) {
	status := proxyGRPCCall(unsafe.Pointer(unsafe.SliceData(service)), uint32(len(service)), unsafe.Pointer(unsafe.StringData(name)), uint32(len(name)),
		unsafe.Pointer(unsafe.StringData(method)), uint32(len(method)), unsafe.Pointer(&outSize), 0,
		unsafe.Pointer(unsafe.SliceData(message)), uint32(len(message)), timeout, unsafe.Pointer(&outID))
	return outID, status == statusOK
}

// Get implements policy.Shared.
func (host) Get(dst, key []byte) ([]byte, uint32, bool) {
	target = shared[:]
	outMark = 0
	b, ok := result(proxyGetSharedData(unsafe.Pointer(unsafe.SliceData(key)), uint32(len(key)), unsafe.Pointer(&outData), unsafe.Pointer(&outSize),
		unsafe.Pointer(&outMark)))
	if !ok {
		return dst, 0, false
	}
	return append(dst, b...), outMark, true
}

var shared [512]byte // room for values from the shared data: the longest is a circuit breaker's, 287 bytes

// CompareAndSwap implements policy.Shared.
func (host) CompareAndSwap(key, value []byte, mark uint32) bool {
	return proxySetSharedData(unsafe.Pointer(unsafe.SliceData(key)), uint32(len(key)), unsafe.Pointer(unsafe.SliceData(value)), uint32(len(value)),
		mark) == statusOK
}

// path and value are room for one property: its path, and a value of usual length.
var path, value [256]byte

// property returns the value of a property, nil where there is none. It is valid until the next call. It is not inlined: size is start-up
// time.
//
//go:noinline
func property(names ...string) []byte {
	p := path[:0]
	for i, s := range names {
		if i > 0 {
			p = append(p, 0)
		}
		p = append(p, s...)
	}
	target = value[:]
	b, _ := result(proxyGetProperty(unsafe.Pointer(unsafe.SliceData(p)), uint32(len(p)), unsafe.Pointer(&outData), unsafe.Pointer(&outSize)))
	return b
}

// buffer implements filter.Buffer for the callback at hand.
type buffer struct {
	kind   uint32
	length uint32 // as the host has it now
}

func (b *buffer) CopyTo(dst []byte, off int) {
	if len(dst) == 0 {
		return
	}
	target = dst
	got, ok := result(proxyGetBufferBytes(b.kind, uint32(off), uint32(len(dst)), unsafe.Pointer(&outData), unsafe.Pointer(&outSize)))
	if !ok || len(got) != len(dst) {
		// Cannot be: the host said that there are so many. To go on with other bytes would be to guess.
		panic("host: buffer is shorter than announced")
	}
	if unsafe.SliceData(got) != unsafe.SliceData(dst) {
		copy(dst, got)
	}
}

func (b *buffer) Prepend(p []byte) {
	proxySetBufferBytes(b.kind, 0, 0, unsafe.Pointer(unsafe.SliceData(p)), uint32(len(p)))
	b.length += uint32(len(p))
}

func (b *buffer) Replace(p []byte) {
	if b.length == 0 {
		b.Prepend(p)
		return
	}
	proxySetBufferBytes(b.kind, 0, b.length, unsafe.Pointer(unsafe.SliceData(p)), uint32(len(p)))
}
