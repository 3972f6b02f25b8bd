package config

import "strings"

// Fault is one thing that is wrong with a configuration.
type Fault struct {
	Path    string // where: "throttle[3].target.service"; "" is the whole
	Message string // what is wrong: "must be a string"
}

// String returns path and message.
func (f Fault) String() string {
	if f.Path == "" {
		return f.Message
	}
	return f.Path + ": " + f.Message
}

// Faults are all that is wrong with a configuration, in the order of its text; at most about a hundred.
type Faults []Fault

// Error returns all faults, separated by semicolons.
func (fs Faults) Error() string {
	var s strings.Builder
	s.WriteString("config: ")
	for i, f := range fs {
		if i > 0 {
			s.WriteString("; ")
		}
		s.WriteString(f.String())
	}
	return s.String()
}

// Decode reads a configuration. The empty text, and one of white space only, is the zero configuration. The faults are
// those of the text and, where it could be read to its end, those that Validate finds; the configuration is only good for use
// where there are none.
func Decode(data []byte) (*Plugin, Faults) {
	p := new(Plugin)
	r := &reader{b: data}
	if len(data) > maxBytes {
		r.fault("longer than 16 MiB")
		return p, r.faults
	}
	if r.peek() == 0 && r.pos == len(data) {
		return p, nil
	}
	r.plugin(p)
	if !r.dead && (r.peek() != 0 || r.pos < len(r.b)) {
		r.syntax("expected the end")
	}
	if !r.dead {
		r.faults = append(r.faults, p.Validate()...)
	}
	return p, r.faults
}

func (r *reader) plugin(p *Plugin) {
	r.object(func(name string) bool {
		switch name {
		case "generation":
			p.Generation = r.text()
		case "protocols":
			r.list(maxProtocols, func() { p.Protocols = append(p.Protocols, r.text()) })
		case "limits":
			r.limits(&p.Limits)
		case "metrics":
			r.metrics(&p.Metrics)
		case "throttle":
			r.list(MaxRules, func() {
				p.Throttle = append(p.Throttle, Throttle{})
				r.throttle(&p.Throttle[len(p.Throttle)-1])
			})
		default:
			return false
		}
		return true
	})
}

func (r *reader) limits(l *Limits) {
	r.object(func(name string) bool {
		switch name {
		case "maxFrameBytes":
			l.MaxFrameBytes = r.number()
		case "oversize":
			l.Oversize = Action(r.text())
		case "garbage":
			l.Garbage = Action(r.text())
		case "maxInspectBytes":
			l.MaxInspectBytes = r.number()
		case "maxInFlight":
			l.MaxInFlight = r.number()
		case "callTimeoutMillis":
			l.CallTimeoutMillis = r.number()
		default:
			return false
		}
		return true
	})
}

func (r *reader) metrics(m *Metrics) {
	r.object(func(name string) bool {
		switch name {
		case "maxServices":
			m.MaxServices = r.number()
		case "maxMethods":
			m.MaxMethods = r.number()
		case "maxCallers":
			m.MaxCallers = r.number()
		case "maxSeries":
			m.MaxSeries = r.number()
		default:
			return false
		}
		return true
	})
}

func (r *reader) throttle(t *Throttle) {
	threshold := false
	r.object(func(name string) bool {
		switch name {
		case "name":
			t.Name = r.text()
		case "target":
			r.target(&t.Target)
		case "mode":
			t.Mode = Mode(r.text())
		case "disabled":
			t.Disabled = r.boolean()
		case "threshold":
			t.Threshold = r.number()
			threshold = true
		case "intervalMillis":
			t.IntervalMillis = r.number()
		case "burst":
			t.Burst = r.number()
		default:
			return false
		}
		return true
	})
	if !threshold && !r.dead {
		// A forgotten threshold must not reject every call.
		r.fault("threshold is missing")
	}
}

func (r *reader) target(t *Target) {
	r.object(func(name string) bool {
		switch name {
		case "application":
			r.match(&t.Application)
		case "direction":
			t.Direction = r.text()
		case "service":
			r.match(&t.Service)
		case "version":
			r.match(&t.Version)
		case "group":
			r.match(&t.Group)
		case "method":
			r.match(&t.Method)
		case "caller":
			r.match(&t.Caller)
		default:
			return false
		}
		return true
	})
}

func (r *reader) match(m *Match) {
	r.object(func(name string) bool {
		switch name {
		case "exact":
			m.Exact = r.text()
		case "prefix":
			m.Prefix = r.text()
		default:
			return false
		}
		return true
	})
}
