package host

import "unsafe"

// The host's functions, as far as the filter needs them. Pointers are offsets in the module's memory. Those that return bytes ask
// memoryAllocate for room and write where it is and how long it is.

//go:wasmimport env proxy_log
func proxyLog(level uint32, data unsafe.Pointer, size uint32) uint32

//go:wasmimport env proxy_get_buffer_bytes
func proxyGetBufferBytes(kind, start, length uint32, data, size unsafe.Pointer) uint32

//go:wasmimport env proxy_set_buffer_bytes
func proxySetBufferBytes(kind, start, length uint32, data unsafe.Pointer, size uint32) uint32

//go:wasmimport env proxy_get_property
func proxyGetProperty(path unsafe.Pointer, length uint32, data, size unsafe.Pointer) uint32

//go:wasmimport env proxy_get_shared_data
func proxyGetSharedData(key unsafe.Pointer, length uint32, data, size, mark unsafe.Pointer) uint32

//go:wasmimport env proxy_set_shared_data
func proxySetSharedData(key unsafe.Pointer, keyLength uint32, value unsafe.Pointer, length, mark uint32) uint32

//go:wasmimport env proxy_define_metric
func proxyDefineMetric(kind uint32, name unsafe.Pointer, length uint32, id unsafe.Pointer) uint32

//go:wasmimport env proxy_increment_metric
func proxyIncrementMetric(id uint32, delta int64) uint32

//go:wasmimport env proxy_record_metric
func proxyRecordMetric(id uint32, value uint64) uint32

//go:wasmimport env proxy_set_tick_period_milliseconds
func proxySetTickPeriod(millis uint32) uint32

//go:wasmimport env proxy_close_stream
func proxyCloseStream(kind uint32) uint32

//go:wasmimport env proxy_continue_stream
func proxyContinueStream(kind uint32) uint32

//go:wasmimport env proxy_get_header_map_value
func proxyGetHeaderMapValue(kind uint32, key unsafe.Pointer, keyLength uint32, data, size unsafe.Pointer) uint32

//go:wasmimport env proxy_add_header_map_value
func proxyAddHeaderMapValue(kind uint32, key unsafe.Pointer, keyLength uint32, value unsafe.Pointer, length uint32) uint32

//go:wasmimport env proxy_send_local_response
func proxySendLocalResponse(status uint32, details unsafe.Pointer, detailsLength uint32, body unsafe.Pointer, bodyLength uint32,
	headers unsafe.Pointer, headersLength uint32, grpc int32) uint32

//go:wasmimport env proxy_set_effective_context
func proxySetEffectiveContext(id uint32) uint32

//go:wasmimport env proxy_grpc_call
func proxyGRPCCall(service unsafe.Pointer, serviceLength uint32, name unsafe.Pointer, nameLength uint32, method unsafe.Pointer, methodLength uint32,
	metadata unsafe.Pointer, metadataLength uint32, message unsafe.Pointer, messageLength uint32, timeout uint32, token unsafe.Pointer) uint32

//go:wasmimport env proxy_call_foreign_function
func proxyCallForeignFunction(name unsafe.Pointer, nameLength uint32, arguments unsafe.Pointer, length uint32, data, size unsafe.Pointer) uint32

//go:wasmimport wasi_snapshot_preview1 clock_time_get
func clockTimeGet(id uint32, precision uint64, out unsafe.Pointer) uint32

// The numbers of the ABI.
const (
	statusOK = 0

	bufferDownstream  = 2
	bufferUpstream    = 3
	bufferGRPCReceive = 5
	bufferVMConf      = 6
	bufferPluginConf  = 7

	headersRequest   = 0
	headersResponse  = 2
	trailersResponse = 3

	metricCounter = 0
	metricGauge   = 1

	streamRequest    = 0
	streamDownstream = 2
	streamUpstream   = 3

	actionContinue = 0
	actionPause    = 1

	clockRealtime  = 0
	clockMonotonic = 1
)

// What the host's functions write: kept apart from the stack, so that their addresses do not move.
var (
	outData unsafe.Pointer
	outSize uint32
	outMark uint32
	outID   uint32
	outTime uint64
)

// target is where the next bytes from the host go; nil: into memory of their own. The host asks for memory within the
// call that fetches them. With an allocation for each fetch, as a module would usually do, every callback would make garbage.
var target []byte

// limit is how long what comes from the host may be; refused says that something was longer. 0: there is no limit.
var (
	limit   uint32
	refused bool
)

//go:wasmexport proxy_on_memory_allocate
func memoryAllocate(size uint32) unsafe.Pointer {
	if size == 0 {
		size = 1
	}
	if limit > 0 && size > limit {
		refused = true
		return nil // the host's function fails
	}
	if uint32(len(target)) >= size {
		return unsafe.Pointer(unsafe.SliceData(target))
	}
	return unsafe.Pointer(unsafe.SliceData(make([]byte, size)))
}

// result returns the bytes that the host function wrote.
func result(status uint32) ([]byte, bool) {
	target = nil
	data := outData
	outData = nil
	if status != statusOK || data == nil {
		return nil, false
	}
	return unsafe.Slice((*byte)(data), outSize), true
}
