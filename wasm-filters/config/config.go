// Package config is the configuration of the Wasm filter: the JSON that a WasmPlugin or TrafficExtension carries in
// pluginConfig. It is the one definition of that format: mcp-server's governance writes it, the filter reads it. It is
// pure and strict: an unknown field, a wrong type or a value out of range is a fault with its path, and all faults are
// reported at once.
package config

// Plugin is the whole configuration of one filter. The zero value is valid: every protocol is detected, calls are
// metered, nothing is rejected.
type Plugin struct {
	// Generation names this configuration; the filter reports it back as a metric label, so that it can be seen which
	// sidecars run it. At most 64 bytes of [A-Za-z0-9._-].
	Generation string `json:"generation,omitempty"`
	// Protocols are the codecs to try, in this order: "dubbo", "bolt". Empty means all that the filter has.
	Protocols []string `json:"protocols,omitempty"`
	// HTTP says how requests of HTTP are read.
	HTTP HTTP `json:"http,omitzero"`
	// Limits bound what one connection may cost.
	Limits Limits `json:"limits,omitzero"`
	// Metrics bound the number of time series.
	Metrics Metrics `json:"metrics,omitzero"`
	// The rules, a list for each kind. A name is unique within its list.
	Access         []Access         `json:"access,omitempty"`
	FaultInjection []FaultInjection `json:"faultInjection,omitempty"`
	Degrade        []Degrade        `json:"degrade,omitempty"`
	CircuitBreaker []CircuitBreaker `json:"circuitBreaker,omitempty"`
	Throttle       []Throttle       `json:"throttle,omitempty"`
	// Keys are what Access rules with a Token need. At most 1000, 16 of one name.
	Keys []Key `json:"keys,omitempty"`
	// KeysOnly says that this plugin brings keys to others in the same VM, and does nothing else: connections pass it unread and uncounted. So a
	// secret need not stand in the configuration of all workloads.
	KeysOnly bool `json:"keysOnly,omitempty"`
	// Lift and Lower say what becomes of calls on their way to a provider and of streams that were calls. Nil is not at all.
	Lift  *Lift  `json:"lift,omitempty"`
	Lower *Lower `json:"lower,omitempty"`
}

// HTTP says how requests of HTTP are read, where the filter stands in an HTTP connection manager. Triple needs none of it: its requests carry
// their names.
type HTTP struct {
	// Suffix is the domain that the hosts of Spring Cloud applications are in, as mcp-server's is: the service of NAME.spring.SUFFIX is NAME.
	// Default "isthmus".
	Suffix string `json:"suffix,omitempty"`
	// CallerHeader is the header that names the calling application. The filter adds it at the caller where it is absent. Default
	// "x-isthmus-caller".
	CallerHeader string `json:"callerHeader,omitempty"`
	// Paths are templates of paths, by which metrics tell requests apart: the first one that fits, as in "GET /orders/{id}"; requests that
	// none fits are told apart by their HTTP method only. A segment in braces stands for any one segment. At most 256.
	Paths []string `json:"paths,omitempty"`
}

// Action says what becomes of a connection whose bytes the filter cannot or will not read.
type Action string

// The actions.
const (
	ActionPass  Action = "pass"  // let it through unread, and count it
	ActionClose Action = "close" // close the connection, and count it
)

// Limits bound what one connection may cost. Zero means the default.
type Limits struct {
	// MaxFrameBytes is the longest frame, header included, that is read. Default 8 MiB, Dubbo's own payload limit; at most 1 GiB.
	MaxFrameBytes uint32 `json:"maxFrameBytes,omitempty"`
	// Oversize applies to longer frames. Default "pass": the one frame passes unread and the next one is read again.
	Oversize Action `json:"oversize,omitempty"`
	// Garbage applies to connections on which framing is lost. Default "pass": the rest of the connection passes unread.
	Garbage Action `json:"garbage,omitempty"`
	// MaxInspectBytes bounds how much of one request is held in memory to read its attachments; of a longer request only
	// the leading fields are read. Default 64 KiB, at most 1 MiB.
	MaxInspectBytes uint32 `json:"maxInspectBytes,omitempty"`
	// MaxInFlight bounds the calls that are followed at once on one connection; further ones pass, are decided on, but
	// are metered without their outcome. Default 4096, at most 65536.
	MaxInFlight uint32 `json:"maxInFlight,omitempty"`
	// CallTimeoutMillis is after how long a call that has not returned is counted as "no_response" and forgotten, where
	// the call itself names no longer timeout. Default 60000; at most 3600000.
	CallTimeoutMillis uint32 `json:"callTimeoutMillis,omitempty"`
}

// Metrics bound the number of time series; beyond a bound the label's value is "_other". Zero means the default.
type Metrics struct {
	MaxServices uint32 `json:"maxServices,omitempty"` // distinct services; default 200
	MaxMethods  uint32 `json:"maxMethods,omitempty"`  // distinct methods over all services; default 1000
	MaxCallers  uint32 `json:"maxCallers,omitempty"`  // distinct calling applications; default 100
	MaxSeries   uint32 `json:"maxSeries,omitempty"`   // distinct combinations of all labels; default 2000
	// MaxEndpoints bounds the distinct endpoints by which the circuits of one rule are told apart; default 100.
	MaxEndpoints uint32 `json:"maxEndpoints,omitempty"`
}
