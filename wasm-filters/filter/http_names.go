package filter

import "github.com/isthmus-mesh/isthmus/wasm-filters/protocol"

// isGRPC tells whether a content type is gRPC's, as Envoy decides it: "application/grpc", or that and "+" and the codec of its messages.
func isGRPC(kind []byte) bool {
	const grpc = "application/grpc"
	return len(kind) >= len(grpc) && string(kind[:len(grpc)]) == grpc && (len(kind) == len(grpc) || kind[len(grpc)] == '+')
}

// splitTriple returns the interface and the method of a path: /demo.GreetService/sayHello. What stands before the last slash is the
// interface, as gRPC has it; a path that has no such is an interface without a method.
func splitTriple(path []byte) (service, method []byte) {
	if len(path) > 0 && path[0] == '/' {
		path = path[1:]
	}
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return path[:i], path[i+1:]
		}
	}
	return path, nil
}

// normalPath returns a path without its query, in which what is escaped for no reason is not: an unreserved character (RFC 3986,
// section 2.3) is the same escaped or not, and a rule for /admin must not miss /%61dmin. All else, also an escape that is none, stays as it is. It
// writes into path.
func normalPath(path []byte) []byte {
	n := 0
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '?' || c == '#' {
			break
		}
		if c == '%' && i+2 < len(path) {
			hi, lo := hexValue(path[i+1]), hexValue(path[i+2])
			if d := byte(hi<<4 | lo); hi|lo >= 0 && unreserved(d) {
				c = d
				i += 2
			}
		}
		path[n] = c
		n++
	}
	return path[:n]
}

// hexValue returns the value of a hexadecimal digit, -1 for what is none.
func hexValue(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return int(c|0x20-'a') + 10
	}
	return -1
}

func unreserved(c byte) bool {
	return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z' || c == '-' || c == '.' || c == '_' || c == '~'
}

// serviceOf returns the service that an authority names: the host, without port and final dot, in lower case; of a Spring Cloud
// application's host in the mesh, NAME.spring.SUFFIX, the application's name, unless that is escaped there. It writes into authority.
func serviceOf(authority []byte, suffix string) []byte {
	for i := len(authority) - 1; i >= 0; i-- {
		if authority[i] == '@' {
			authority = authority[i+1:]
			break
		}
	}
	host := authority
	if len(host) > 0 && host[0] == '[' {
		for i, c := range host {
			if c == ']' {
				return lower(host[1:i])
			}
		}
	}
	for i := len(host) - 1; i >= 0 && (host[i] >= '0' && host[i] <= '9' || host[i] == ':'); i-- {
		if host[i] == ':' {
			host = host[:i]
			break
		}
	}
	if n := len(host); n > 0 && host[n-1] == '.' {
		host = host[:n-1]
	}
	host = lower(host)
	const spring = ".spring."
	n := len(host) - len(spring) - len(suffix)
	if n <= 0 || string(host[n:n+len(spring)]) != spring || string(host[n+len(spring):]) != suffix {
		return host
	}
	for i, c := range host[:n] {
		if c == '.' || c == '-' && host[i+1] == '-' {
			return host // a version, a group, or a name of other letters
		}
	}
	return host[:n]
}

// lower turns capitals into small letters, in place.
func lower(b []byte) []byte {
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return b
}

// isAddress tells whether a host is no name: nothing, or an address.
func isAddress(host []byte) bool {
	for _, c := range host {
		if c == ':' {
			return true
		}
		if c != '.' && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// template returns the first of the configured paths that a path is like, "" where there is none.
func (rs *ruleset) template(path []byte) string {
	for _, t := range rs.conf.HTTP.Paths {
		if fits(t, path) {
			return t
		}
	}
	return ""
}

// fits tells whether a path is like a template, in which a segment in braces stands for any one segment.
func fits(template string, path []byte) bool {
	i := 0
	for at := 0; at < len(template); {
		if template[at] == '{' {
			for at < len(template) && template[at] != '/' {
				at++
			}
			begin := i
			for i < len(path) && path[i] != '/' {
				i++
			}
			if i == begin {
				return false
			}
			continue
		}
		if i == len(path) || path[i] != template[at] {
			return false
		}
		i++
		at++
	}
	return i == len(path)
}

// ofStatus returns how a request ended, by HTTP's status. What is in the 400s is an answer of the application, as an exception is.
func ofStatus(status []byte) protocol.Outcome {
	code := millis(status)
	switch {
	case code < 100 || code > 999:
		return protocol.OutcomeBadResponse
	case code < 400:
		return protocol.OutcomeOK
	case code == 408 || code == 504:
		return protocol.OutcomeTimeout
	case code == 429 || code == 503:
		return protocol.OutcomeOverload
	case code < 500:
		return protocol.OutcomeException
	}
	return protocol.OutcomeError
}

// ofGRPC is ofStatus for gRPC's (https://grpc.github.io/grpc/core/md_doc_statuscodes.html). Codes that only applications give are
// answers, and so is UNKNOWN, which servers make of what the business code throws.
func ofGRPC(status []byte) protocol.Outcome {
	n := millis(status)
	if n == 0 && string(status) != "0" {
		return protocol.OutcomeBadResponse // no number
	}
	switch n {
	case 0:
		return protocol.OutcomeOK
	case 1: // CANCELLED
		return protocol.OutcomeClosed
	case 2, 3, 5, 6, 7, 9, 10, 11, 16: // UNKNOWN, INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, PERMISSION_DENIED, FAILED_PRECONDITION, ABORTED, OUT_OF_RANGE, UNAUTHENTICATED
		return protocol.OutcomeException
	case 4: // DEADLINE_EXCEEDED
		return protocol.OutcomeTimeout
	case 8: // RESOURCE_EXHAUSTED
		return protocol.OutcomeOverload
	case 12: // UNIMPLEMENTED
		return protocol.OutcomeNotFound
	case 13, 14, 15: // INTERNAL, UNAVAILABLE, DATA_LOSS
		return protocol.OutcomeError
	}
	return protocol.OutcomeBadResponse
}
