package host

import (
	"encoding/binary"
	"unsafe"

	"github.com/isthmus-mesh/isthmus/wasm-filters/filter"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// tickMillis is how often metrics are reported and calls are given up.
const tickMillis = 1000

var (
	vm      *filter.VM
	plugins = make(map[uint32]*filter.Plugin)
	parents = make(map[uint32]uint32) // plugin of each connection or request that has not begun
	conns   = make(map[uint32]*filter.Conn)
	// recent is the one whose bytes came last. A connection manager writes each frame of a response by itself.
	recent   *filter.Conn
	recentID uint32
	data     buffer
)

// Serve makes a VM that tries protocols in their order. It belongs into an init function.
func Serve(protocols []filter.Protocol) { vm = filter.New(host{}, protocols) }

//go:wasmexport proxy_abi_version_0_2_1
func abiVersion() {}

//go:wasmexport proxy_on_vm_start
func onVMStart(_, _ uint32) uint32 { return 1 }

//go:wasmexport proxy_on_context_create
func onContextCreate(id, parent uint32) {
	if parent == 0 {
		return // a plugin: see onConfigure
	}
	parents[id] = parent
}

// onConfigure always accepts: Envoy would close every connection on account of a typing error in a rule. What the filter
// does instead is with filter.VM.Configure.
//
//go:wasmexport proxy_on_configure
func onConfigure(id, size uint32) uint32 {
	var conf []byte
	if size > 0 {
		target = nil
		conf, _ = result(proxyGetBufferBytes(bufferPluginConf, 0, size, unsafe.Pointer(&outData), unsafe.Pointer(&outSize)))
	}
	identity := filter.Identity{
		Name: string(property("plugin_name")),
		Root: string(property("plugin_root_id")),
	}
	p, _ := vm.Configure(identity, application(), conf)
	plugins[id] = p
	proxySetTickPeriod(tickMillis)
	return 1
}

// application is the workload's: its label "app", the one that Kubernetes recommends, or the workload's name.
func application() string {
	for _, path := range [][]string{
		{"xds", "node", "metadata", "LABELS", "app"},
		{"xds", "node", "metadata", "LABELS", "app.kubernetes.io/name"},
		{"xds", "node", "metadata", "WORKLOAD_NAME"},
	} {
		if v := property(path...); len(v) > 0 {
			return string(v)
		}
	}
	return ""
}

// direction is that of the connection's listener. One plugin may serve listeners of both directions.
func direction() policy.Direction {
	if d := property("xds", "listener_direction"); len(d) == 8 {
		switch binary.LittleEndian.Uint64(d) {
		case 1: // envoy.config.core.v3.TrafficDirection.INBOUND
			return policy.DirectionServer
		case 2: // OUTBOUND
			return policy.DirectionClient
		}
	}
	return policy.DirectionUnknown
}

//go:wasmexport proxy_on_tick
func onTick(id uint32) {
	p := plugins[id]
	if p == nil {
		proxySetTickPeriod(0) // Envoy keeps the timers of contexts that are gone
		return
	}
	p.Tick()
	vm.Release(ready, pass)
	vm.Proceed(proceed)
	hasty = false
	for c := vm.Waking(); c != nil; c = vm.Waking() {
		wake(c)
	}
	proxySetEffectiveContext(id)
	vm.Ask()
	proxySetTickPeriod(tickMillis)
	arm()
}

//go:wasmexport proxy_on_grpc_receive
func onGRPCReceive(_, token, size uint32) {
	message := []byte{}
	if size > 0 && size <= maxAnswer {
		target = nil
		message, _ = result(proxyGetBufferBytes(bufferGRPCReceive, 0, size, unsafe.Pointer(&outData), unsafe.Pointer(&outSize)))
	}
	vm.Answer(token, message)
	arm() // for the calls that came meanwhile
}

// maxAnswer bounds the answer of a service, in bytes: one about each of the rules in a question has less than 100.
const maxAnswer = 64 << 10

//go:wasmexport proxy_on_grpc_close
func onGRPCClose(_, token, _ uint32) {
	vm.Answer(token, nil)
	arm()
}

// ready tells whether the connection's buffer is empty. What is in it, because the server does not keep up, nobody has read yet; to
// continue now would let it pass unread.
func ready(c *filter.Conn) bool {
	proxySetEffectiveContext(c.Tag)
	target = value[:]
	b, _ := result(proxyGetBufferBytes(bufferDownstream, 0, 1, unsafe.Pointer(&outData), unsafe.Pointer(&outSize)))
	return len(b) == 0
}

// pass gives delayed requests to the server. The connection is that of the effective context; it has lingered, so its buffer can
// be written to.
func pass(_ *filter.Conn, frames []byte) {
	data = buffer{kind: bufferDownstream}
	data.Prepend(frames)
	proxyContinueStream(streamDownstream)
}

// wake lets a relayed connection send what it owes its server.
func wake(c *filter.Conn) {
	if !ready(c) {
		c.Sleep() // what is owed goes with what is in the buffer
		return
	}
	defer contain(c)
	data = buffer{kind: bufferDownstream}
	if c.Wake(&data) == filter.Close {
		proxyCloseStream(streamDownstream)
		proxyCloseStream(streamUpstream)
		return
	}
	proxyContinueStream(streamDownstream)
}

// hasty says that the timer was set because a connection wants to be woken.
var hasty bool

// arm sets the timer of the plugin at hand to the moment when the next delayed request is due, if there is one. Where there is none the timer is
// left alone: to set it is to begin its second anew, and a plugin whose requests did that would not tick as long as they come.
func arm() {
	if wait, ok := vm.Due(); ok {
		proxySetTickPeriod(uint32(min((wait+999_999)/1_000_000, tickMillis)))
	}
}

//go:wasmexport proxy_on_new_connection
func onNewConnection(id uint32) uint32 {
	if p := plugins[parents[id]]; p != nil {
		c := p.NewConn(direction())
		c.Tag = id
		conns[id] = c
	}
	delete(parents, id)
	return actionContinue
}

//go:wasmexport proxy_on_downstream_data
func onDownstreamData(id, size, end uint32) uint32 {
	return onData(id, filter.Downstream, bufferDownstream, size, end)
}

//go:wasmexport proxy_on_upstream_data
func onUpstreamData(id, size, end uint32) uint32 {
	return onData(id, filter.Upstream, bufferUpstream, size, end)
}

func onData(id uint32, side filter.Side, kind, size, end uint32) uint32 {
	c := recent
	if id != recentID || c == nil {
		if c = conns[id]; c == nil {
			return actionContinue
		}
		recentID, recent = id, c
	}
	defer contain(c)
	data = buffer{kind: kind, length: size}
	action := c.Data(side, &data, int(size), end != 0)
	if !hasty && vm.Waking() != nil {
		hasty = true
		arm()
	} else if vm.Asks() {
		arm()
	}
	switch action {
	case filter.Close:
		proxyCloseStream(streamDownstream)
		proxyCloseStream(streamUpstream)
		return actionPause
	case filter.Linger:
		// What is in the buffer goes on as soon as this callback returns; Envoy keeps the buffer at hand for as long as the
		// connection is paused.
		proxyContinueStream(streamDownstream)
		arm()
		return actionPause
	case filter.Yield:
		proxyContinueStream(streamDownstream)
		return actionPause
	}
	return actionContinue
}

// contain keeps a defect of ours to one connection: without it a panic would end the VM, and with it every connection of the
// worker. What was written to the buffer stays; the rest of the connection passes unread.
func contain(c *filter.Conn) {
	if recover() != nil {
		c.Fail()
	}
}

//go:wasmexport proxy_on_downstream_connection_close
func onDownstreamConnectionClose(id, _ uint32) { end(id) }

//go:wasmexport proxy_on_upstream_connection_close
func onUpstreamConnectionClose(_, _ uint32) {}

//go:wasmexport proxy_on_done
func onDone(id uint32) uint32 {
	if p := plugins[id]; p != nil {
		p.Done()
		delete(plugins, id)
	}
	return 1
}

// onLog is the end of an HTTP request, whatever became of it; its properties are still there.
//
//go:wasmexport proxy_on_log
func onLog(id uint32) { endStream(id) }

//go:wasmexport proxy_on_delete
func onDelete(id uint32) {
	delete(parents, id)
	end(id)
	endStream(id)
	onDone(id)
}

func end(id uint32) {
	if c := conns[id]; c != nil {
		delete(conns, id)
		recent = nil
		c.End()
	}
}
