package translate

import "github.com/isthmus-mesh/isthmus/adapters/model"

// wire is how Istio is told of a protocol.
type wire struct {
	istio   string // ServicePort.Protocol
	prefix  string // of the port's name, from which Istio reads the protocol too
	port    uint16 // where the protocol's servers listen by default
	unknown bool
}

// wires lists the protocols. Default ports: Dubbo's DubboProtocol and TripleProtocol, SOFARPC's sofa.rpc.{bolt,tr,rest,h2c}.port.
var wires = map[model.Protocol]wire{
	model.ProtocolDubbo:  {istio: "TCP", prefix: "tcp", port: 20880},
	model.ProtocolBolt:   {istio: "TCP", prefix: "tcp", port: 12200},
	model.ProtocolTR:     {istio: "TCP", prefix: "tcp", port: 12200},
	model.ProtocolTriple: {istio: "GRPC", prefix: "grpc", port: 50051},
	model.ProtocolGRPC:   {istio: "GRPC", prefix: "grpc", port: 50051},
	model.ProtocolREST:   {istio: "HTTP", prefix: "http", port: 8341},
	model.ProtocolHTTP:   {istio: "HTTP", prefix: "http", port: 8080},
	model.ProtocolH2C:    {istio: "HTTP2", prefix: "http2", port: 12300},
	// Over TLS: Istio could only tell them apart by a server name that their callers, who dial addresses, do not send.
	"h2":    {istio: "TCP", prefix: "tcp", port: 12300},
	"https": {istio: "TCP", prefix: "tcp", port: 443},
}

// nativeProtocols are the main protocols of the frameworks: who has one of a framework's services finds it at the service's own
// host if there is anybody who speaks it.
var nativeProtocols = map[string]model.Protocol{
	"dubbo": model.ProtocolDubbo, "sofa": model.ProtocolBolt, frameworkSpring: model.ProtocolHTTP,
}

// wireOf returns what is known of a protocol; what is not known is carried as TCP.
func wireOf(p model.Protocol) wire {
	if w, ok := wires[p]; ok {
		return w
	}
	return wire{istio: "TCP", prefix: "tcp", unknown: true}
}

func (w wire) tcp() bool { return w.istio == "TCP" }

// maxPortName bounds a port's name, in bytes (a DNS label).
const maxPortName = 63

// portName returns tcp-dubbo, grpc-tri, http-rest and so on: a DNS label.
func (w wire) portName(p model.Protocol) string {
	name := []byte(w.prefix)
	if string(p) == w.prefix {
		return w.prefix
	}
	dash := true
	for _, c := range []byte(p) {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			if dash {
				name = append(name, '-')
			}
			dash = false
			if name = append(name, c); len(name) >= maxPortName {
				break
			}
			continue
		}
		dash = true
	}
	return string(name)
}

// reservedPorts are the sidecar's own: istiod leaves out listeners for services that use them (proxy's status, Prometheus,
// capture, DNS and admin ports of a default installation).
var reservedPorts = map[uint16]bool{15000: true, 15001: true, 15004: true, 15006: true, 15008: true, 15020: true, 15021: true, 15053: true, 15090: true}
