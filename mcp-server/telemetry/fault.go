package telemetry

import (
	"cmp"
	"slices"
	"time"
)

// Fault is something that keeps the filters of one Envoy from their work on some of the traffic.
type Fault struct {
	Target    string    `json:"target"`
	Direction string    `json:"direction,omitempty"` // client, server
	System    string    `json:"system,omitempty"`    // the protocol; "" where that is what is not known
	Reason    string    `json:"reason"`              // the filter's word, or FaultEncrypted
	Total     float64   `json:"total"`               // since the Envoy started
	Last      time.Time `json:"last"`                // when it was counted last
}

// FaultEncrypted is the reason of connections that their application has encrypted itself: the filter counts them as connections.
const FaultEncrypted = "encrypted"

// faultsKept is how long a fault is shown after it was counted last.
const faultsKept = 10 * time.Minute

// fault identifies what is counted together.
type fault struct{ direction, system, reason string }

// happened is how often a fault has been counted, and when last.
type happened struct {
	total float64
	last  time.Time
}

// faulted notes which faults have been counted since the page before. What an Envoy has counted before it was first read may be old.
func (t *target) faulted(p *page) {
	if t.faults == nil {
		t.faults = map[fault]happened{}
	}
	for k, total := range p.faults {
		h := t.faults[k]
		if total != h.total {
			h.last = p.at
		}
		h.total = total
		t.faults[k] = h
	}
	for k := range t.faults {
		if _, ok := p.faults[k]; !ok {
			delete(t.faults, k) // the Envoy began anew
		}
	}
}

// recent returns the faults that were counted not long before now, sorted.
func (t *target) recent(now time.Time) []Fault {
	var out []Fault
	for k, h := range t.faults {
		if h.total > 0 && now.Sub(h.last) <= faultsKept {
			out = append(out, Fault{Target: t.Name, Direction: k.direction, System: k.system, Reason: k.reason, Total: h.total, Last: h.last})
		}
	}
	slices.SortFunc(out, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.System, b.System))
	})
	return out
}
