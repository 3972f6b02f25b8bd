package filtertest

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/isthmus-mesh/isthmus/wasm-filters/filter"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
)

// Engine holds the compiled module. Close ends it with all its rigs.
type Engine struct {
	runtime wazero.Runtime
	module  wazero.CompiledModule
	count   int
}

// Numbers of the Proxy-Wasm ABI.
const (
	statusOK          = 0
	statusNotFound    = 1
	statusBadArgument = 2
	statusMismatch    = 8
)

// NewEngine compiles a module.
func NewEngine(ctx context.Context, wasm []byte) (*Engine, error) {
	e := &Engine{runtime: wazero.NewRuntime(ctx)}
	if _, err := wasi_snapshot_preview1.Instantiate(ctx, e.runtime); err != nil {
		return nil, fmt.Errorf("filtertest: %w", err)
	}
	if err := e.exportHost(ctx); err != nil {
		return nil, fmt.Errorf("filtertest: %w", err)
	}
	var err error
	if e.module, err = e.runtime.CompileModule(ctx, wasm); err != nil {
		return nil, fmt.Errorf("filtertest: %w", err)
	}
	return e, nil
}

// Close frees everything.
func (e *Engine) Close(ctx context.Context) error { return e.runtime.Close(ctx) }

// Wasm runs the compiled module in a host that behaves as Envoy's does.
type Wasm struct {
	ctx     context.Context
	world   *World
	module  api.Module
	next    uint32 // context id
	plugin  uint32
	plugins []uint32
	conns   []*wasmConn
	conf    []byte
	current uint32    // the effective context
	data    *wasmConn // of the callback at hand
	ticks   map[uint32]uint32
	timed   int    // how often a timer was set
	answer  []byte // of a service, in the callback at hand
	out     []Release

	streams   []*wasmStream
	proceeded []int
}

type wasmConn struct {
	id     uint32
	plugin uint32
	dir    policy.Direction
	peer   peer
	buffer []byte
	kind   uint32 // of buffer
	closed bool
	// paused says that the last downstream callback paused, so that the host keeps its buffer at hand; passed that reading went on
	// all the same.
	paused, passed bool
}

type rigKey struct{}

// NewRig instantiates the module. Rigs may share a World, as the workers of an Envoy do.
func (e *Engine) NewRig(ctx context.Context, w *World) (*Wasm, error) {
	r := &Wasm{world: w, next: 1, ticks: make(map[uint32]uint32)}
	r.ctx = context.WithValue(ctx, rigKey{}, r)
	e.count++
	var err error
	r.module, err = e.runtime.InstantiateModule(r.ctx, e.module, wazero.NewModuleConfig().WithName(fmt.Sprint("isthmus-", e.count)).
		WithStartFunctions("_initialize").WithStderr(os.Stderr).
		WithWalltime(func() (int64, int32) { ms := w.wall(); return ms / 1000, int32(ms % 1000 * 1_000_000) }, 1).
		// Go's runtime does not start at the time zero.
		WithNanotime(func() int64 { return int64(w.Clock) + 1 }, 1))
	if err != nil {
		return nil, fmt.Errorf("filtertest: %w", err)
	}
	return r, nil
}

// call calls an exported function with context id as the effective one.
func (r *Wasm) call(name string, id uint32, args ...uint64) (uint64, error) {
	r.current = id
	f := r.module.ExportedFunction(name)
	if f == nil {
		return 0, fmt.Errorf("filtertest: module does not export %s", name)
	}
	res, err := f.Call(r.ctx, append([]uint64{uint64(id)}, args...)...)
	if err != nil {
		return 0, fmt.Errorf("filtertest: %s: %w", name, err)
	}
	if len(res) > 0 {
		return res[0], nil
	}
	return 0, nil
}

// Configure implements Rig.
func (r *Wasm) Configure(conf string) error {
	id := r.next
	r.next++
	r.conf = []byte(conf)
	if _, err := r.call("proxy_on_context_create", id, 0); err != nil {
		return err
	}
	if ok, err := r.call("proxy_on_vm_start", id, 0); err != nil || ok != 1 {
		return fmt.Errorf("filtertest: VM did not start: %w", err)
	}
	if ok, err := r.call("proxy_on_configure", id, uint64(len(conf))); err != nil || ok != 1 {
		return fmt.Errorf("filtertest: configuration refused: %w", err)
	}
	r.plugin = id
	r.plugins = append(r.plugins, id)
	return nil
}

// Reuse implements Rig.
func (r *Wasm) Reuse(i int) { r.plugin = r.plugins[i] }

// Drop implements Rig.
func (r *Wasm) Drop(i int) error {
	if done, err := r.call("proxy_on_done", r.plugins[i]); err != nil || done != 1 {
		return fmt.Errorf("filtertest: context is not done: %w", err)
	}
	_, err := r.call("proxy_on_delete", r.plugins[i])
	return err
}

// Open implements Rig.
func (r *Wasm) Open(dir policy.Direction) (int, error) {
	c := &wasmConn{id: r.next, plugin: r.plugin, dir: dir, peer: r.world.peer()}
	r.next++
	r.conns = append(r.conns, c)
	if _, err := r.call("proxy_on_context_create", c.id, uint64(r.plugin)); err != nil {
		return 0, err
	}
	_, err := r.call("proxy_on_new_connection", c.id)
	return len(r.conns) - 1, err
}

// Data implements Rig.
func (r *Wasm) Data(conn int, side filter.Side, data []byte, end bool) ([]byte, bool, error) {
	c := r.conns[conn]
	name := "proxy_on_downstream_data"
	c.kind = 2
	if side == filter.Upstream {
		name, c.kind = "proxy_on_upstream_data", 3
	}
	c.buffer = slices.Clone(data)
	r.data, c.closed, c.passed = c, false, false
	if side == filter.Downstream {
		c.paused = true // until it is known
	}
	var last uint64
	if end {
		last = 1
	}
	action, err := r.call(name, c.id, uint64(len(data)), last)
	r.data = nil
	if err == nil && action != 0 && !c.closed && !c.passed {
		err = fmt.Errorf("filtertest: %s paused", name)
	}
	if side == filter.Downstream {
		c.paused = action != 0
	}
	out := c.buffer
	c.buffer = nil // read on
	return out, c.closed, err
}

// Released implements Rig.
func (r *Wasm) Released() []Release {
	out := r.out
	r.out = nil
	return out
}

// held is the connection whose downstream buffer the host keeps at hand outside of a callback for data; nil: none.
func (r *Wasm) held() (int, *wasmConn) {
	for i, c := range r.conns {
		if c.id == r.current && c.paused && r.data == nil {
			return i, c
		}
	}
	return 0, nil
}

// Close implements Rig.
func (r *Wasm) Close(conn int) error {
	c := r.conns[conn]
	for _, step := range []string{"proxy_on_downstream_connection_close", "proxy_on_upstream_connection_close"} {
		if _, err := r.call(step, c.id, 1); err != nil {
			return err
		}
	}
	for _, step := range []string{"proxy_on_done", "proxy_on_log", "proxy_on_delete"} {
		if _, err := r.call(step, c.id); err != nil {
			return err
		}
	}
	return nil
}

// Tick implements Rig.
func (r *Wasm) Tick() error {
	if r.ticks[r.plugin] == 0 {
		return fmt.Errorf("filtertest: the plugin set no timer")
	}
	_, err := r.call("proxy_on_tick", r.plugin)
	return err
}

// Answer implements Rig.
func (r *Wasm) Answer(token uint32, message []byte) error {
	if message == nil {
		_, err := r.call("proxy_on_grpc_close", r.plugin, uint64(token), 14) // UNAVAILABLE
		return err
	}
	r.answer = message
	_, err := r.call("proxy_on_grpc_receive", r.plugin, uint64(token), uint64(len(message)))
	r.answer = nil
	return err
}

// World implements Rig.
func (r *Wasm) World() *World { return r.world }

// Timer returns to how many milliseconds the newest context has set its timer.
func (r *Wasm) Timer() uint32 { return r.ticks[r.plugin] }

// Timed returns how often a timer was set, which begins its period anew.
func (r *Wasm) Timed() int { return r.timed }

// MemoryBytes is the size of the module's memory.
func (r *Wasm) MemoryBytes() uint32 { return r.module.Memory().Size() }

func directionProperty(d policy.Direction) []byte {
	return binary.LittleEndian.AppendUint64(nil, map[policy.Direction]uint64{policy.DirectionServer: 1, policy.DirectionClient: 2}[d])
}

// give hands b to the module: it asks it for memory, and writes address and length where they are wanted.
func (r *Wasm) give(ctx context.Context, m api.Module, b []byte, data, size uint32) uint32 {
	res, err := m.ExportedFunction("proxy_on_memory_allocate").Call(ctx, uint64(len(b)))
	if err != nil {
		panic(err)
	}
	at := uint32(res[0])
	if at == 0 {
		return statusBadArgument // it does not want so much
	}
	if !m.Memory().Write(at, b) || !m.Memory().WriteUint32Le(data, at) || !m.Memory().WriteUint32Le(size, uint32(len(b))) {
		panic("filtertest: address outside of the memory")
	}
	return statusOK
}

func read(m api.Module, at, n uint32) []byte {
	b, ok := m.Memory().Read(at, n)
	if !ok {
		panic("filtertest: address outside of the memory")
	}
	return slices.Clone(b)
}

// exportHost defines the host's functions, as far as the filter imports them, with Envoy's behaviour.
func (e *Engine) exportHost(ctx context.Context) error {
	rig := func(ctx context.Context) *Wasm { return ctx.Value(rigKey{}).(*Wasm) }
	b := e.runtime.NewHostModuleBuilder("env")
	export := func(name string, f any) { b.NewFunctionBuilder().WithFunc(f).Export(name) }
	export("proxy_log", func(ctx context.Context, m api.Module, level, data, size uint32) uint32 {
		rig(ctx).world.log(filter.Level(level-2), string(read(m, data, size)))
		return statusOK
	})
	export("proxy_get_buffer_bytes", func(ctx context.Context, m api.Module, kind, start, length, data, size uint32) uint32 {
		r := rig(ctx)
		r.world.Calls++
		var b []byte
		switch {
		case kind == 7:
			b = r.conf
		case kind == 5:
			b = r.answer
		case r.data != nil && r.data.kind == kind && r.data.id == r.current:
			b = r.data.buffer
		case kind == 2 && r.data == nil:
			if _, c := r.held(); c == nil {
				return statusBadArgument
			}
			return statusOK // empty: Envoy asks for no memory then
		default:
			return statusBadArgument
		}
		if uint64(start) > uint64(len(b)) {
			return statusBadArgument
		}
		b = b[start:]
		return r.give(ctx, m, b[:min(uint64(length), uint64(len(b)))], data, size)
	})
	export("proxy_set_buffer_bytes", func(ctx context.Context, m api.Module, kind, start, length, data, size uint32) uint32 {
		r := rig(ctx)
		r.world.Calls++
		b := read(m, data, size)
		if _, c := r.held(); c != nil && kind == 2 && start == 0 && length == 0 {
			c.buffer = b // all that was in it has been read on
			return statusOK
		}
		if r.data == nil || r.data.kind != kind || r.data.id != r.current {
			return statusBadArgument
		}
		c := r.data
		// As Envoy's Wasm::Buffer::copyFrom: nothing within the buffer can be replaced.
		switch {
		case start == 0 && length == 0:
			c.buffer = append(b, c.buffer...)
		case start == 0 && int(length) >= len(c.buffer):
			c.buffer = b
		case start == 0:
			return statusBadArgument
		case int(start) >= len(c.buffer):
			c.buffer = append(c.buffer, b...)
		default:
			return statusBadArgument
		}
		return statusOK
	})
	export("proxy_get_property", func(ctx context.Context, m api.Module, path, length, data, size uint32) uint32 {
		r := rig(ctx)
		var v []byte
		switch name := strings.ReplaceAll(string(read(m, path, length)), "\x00", "."); name {
		case "plugin_name":
			v = []byte(cmp.Or(r.world.Plugin, "isthmus"))
		case "plugin_root_id":
			v = []byte("isthmus")
		case "xds.node.metadata.LABELS.app":
			v = []byte(r.world.App)
		case "response.code_details":
			if _, s := r.stream(); s != nil {
				v = []byte(s.details)
			}
		case "source.address", "connection.uri_san_peer_certificate", "upstream.address", "destination.address":
			if r.data != nil && r.data.id == r.current {
				p := &r.data.peer
				v = []byte(map[byte]string{'s': p.address, 'c': p.identity, 'u': p.endpoint, 'd': p.dialled}[name[0]])
			}
			if _, s := r.stream(); s != nil {
				v = []byte(s.peer.address)
				if name[0] == 'c' {
					v = []byte(s.peer.identity)
				}
			}
		case "xds.listener_direction":
			if _, s := r.stream(); s != nil {
				v = directionProperty(s.dir)
			}
			for _, c := range r.conns {
				if c.id == r.current {
					v = directionProperty(c.dir)
				}
			}
		}
		if len(v) == 0 {
			return statusNotFound
		}
		return r.give(ctx, m, v, data, size)
	})
	export("proxy_get_shared_data", func(ctx context.Context, m api.Module, key, length, data, size, mark uint32) uint32 {
		r := rig(ctx)
		v, n, ok := r.world.get(read(m, key, length))
		if !ok {
			return statusNotFound
		}
		m.Memory().WriteUint32Le(mark, n)
		return r.give(ctx, m, v, data, size)
	})
	export("proxy_set_shared_data", func(ctx context.Context, m api.Module, key, keyLength, data, size, mark uint32) uint32 {
		if !rig(ctx).world.swap(read(m, key, keyLength), read(m, data, size), mark) {
			return statusMismatch
		}
		return statusOK
	})
	export("proxy_call_foreign_function", func(ctx context.Context, m api.Module, name, nameLength, args, length, data, size uint32) uint32 {
		r := rig(ctx)
		if string(read(m, name, nameLength)) != "verify_signature" || r.world.NoSignatures {
			return statusNotFound
		}
		hash, key, signature, text, ok := verifyArguments(read(m, args, length))
		if !ok {
			return statusBadArgument
		}
		valid, done := r.world.verify(hash, key, signature, text)
		switch {
		case !done:
			return statusBadArgument
		case valid:
			return r.give(ctx, m, []byte{1 << 3, 1}, data, size)
		}
		return r.give(ctx, m, []byte("\x12\x20Failed to verify digest. Error 0"), data, size)
	})
	export("proxy_define_metric", func(ctx context.Context, m api.Module, kind, name, length, id uint32) uint32 {
		if kind > 1 {
			return statusBadArgument
		}
		m.Memory().WriteUint32Le(id, uint32(rig(ctx).world.define(string(read(m, name, length)), kind == 1)))
		return statusOK
	})
	export("proxy_increment_metric", func(ctx context.Context, id uint32, delta int64) uint32 {
		rig(ctx).world.add(filter.Metric(id), delta)
		return statusOK
	})
	export("proxy_record_metric", func(ctx context.Context, id uint32, v uint64) uint32 {
		rig(ctx).world.set(filter.Metric(id), v)
		return statusOK
	})
	export("proxy_grpc_call", func(ctx context.Context, m api.Module, service, serviceLength, name, nameLength, method, methodLength, _, metadataLength, message,
		messageLength, timeout, token uint32) uint32 {
		if metadataLength != 0 {
			return statusBadArgument
		}
		n, ok := rig(ctx).world.ask(Question{Service: read(m, service, serviceLength), Method: string(read(m, name, nameLength)) + "/" + string(read(m, method, methodLength)),
			Message: read(m, message, messageLength), Timeout: timeout})
		if !ok {
			return statusBadArgument
		}
		m.Memory().WriteUint32Le(token, n)
		return statusOK
	})
	export("proxy_set_tick_period_milliseconds", func(ctx context.Context, millis uint32) uint32 {
		r := rig(ctx)
		root := r.current
		if _, s := r.stream(); s != nil {
			root = r.plugin
		}
		for _, c := range r.conns {
			if c.id == root {
				root = c.plugin
			}
		}
		r.ticks[root] = millis
		r.timed++
		return statusOK
	})
	export("proxy_set_effective_context", func(ctx context.Context, id uint32) uint32 {
		rig(ctx).current = id
		return statusOK
	})
	export("proxy_continue_stream", func(ctx context.Context, kind uint32) uint32 {
		r := rig(ctx)
		if kind == 0 {
			i, s := r.stream()
			if s == nil || !s.answer.Held {
				return statusBadArgument
			}
			r.proceeded = append(r.proceeded, i)
			return statusOK
		}
		if kind != 2 {
			return statusBadArgument
		}
		if i, c := r.held(); c != nil {
			r.out = append(r.out, Release{Conn: i, Data: c.buffer})
			c.buffer = nil
		} else if r.data != nil && r.data.id == r.current {
			r.data.passed = true
		}
		return statusOK
	})
	export("proxy_get_header_map_value", func(ctx context.Context, m api.Module, kind, key, length, data, size uint32) uint32 {
		r := rig(ctx)
		r.world.Calls++
		_, s := r.stream()
		if s == nil || s.kind != kind {
			return statusBadArgument
		}
		v, there := s.headers.Get(string(read(m, key, length)))
		if !there {
			return statusNotFound
		}
		return r.give(ctx, m, []byte(v), data, size)
	})
	export("proxy_add_header_map_value", func(ctx context.Context, m api.Module, kind, key, length, value, size uint32) uint32 {
		_, s := rig(ctx).stream()
		if s == nil || kind != 0 {
			return statusBadArgument
		}
		s.answer.Added = append(s.answer.Added, [2]string{string(read(m, key, length)), string(read(m, value, size))})
		return statusOK
	})
	export("proxy_send_local_response", func(ctx context.Context, m api.Module, status, details, detailsLength, body, bodyLength, pairs, pairsLength uint32, grpc int32) uint32 {
		_, s := rig(ctx).stream()
		if s == nil {
			return statusBadArgument
		}
		response, err := localResponse(status, read(m, details, detailsLength), read(m, body, bodyLength), read(m, pairs, pairsLength), grpc)
		if err != nil {
			panic(err)
		}
		s.answer.Response = response
		return statusOK
	})
	export("proxy_close_stream", func(ctx context.Context, kind uint32) uint32 {
		r := rig(ctx)
		if i, c := r.held(); c != nil && kind == 2 {
			r.out = append(r.out, Release{Conn: i, Closed: true})
		} else if r.data != nil {
			r.data.closed = true
		}
		return statusOK
	})
	_, err := b.Instantiate(ctx)
	return err
}
