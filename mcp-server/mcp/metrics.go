package mcp

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
)

// metrics of a Server. They work without a registry too.
type metrics struct {
	responses   *prometheus.CounterVec
	rejected    *prometheus.CounterVec
	resources   *prometheus.GaugeVec
	push        prometheus.Histogram
	acknowledge prometheus.Histogram
}

func newMetrics(r prometheus.Registerer, s *Server) *metrics {
	m := &metrics{
		responses: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "isthmus_mcp_responses_total", Help: "Responses sent to istiods, by type."}, []string{"type"}),
		rejected:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "isthmus_mcp_rejections_total", Help: "Responses that a client has rejected, by type."}, []string{"type"}),
		resources: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "isthmus_mcp_resources", Help: "Resources in the set that is served, by type."}, []string{"type"}),
		push: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "isthmus_mcp_push_duration_seconds", Help: "From a new set until the first client has been sent a part of it.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14)}),
		acknowledge: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "isthmus_mcp_acknowledgement_duration_seconds", Help: "From a response until its acknowledgement.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}),
	}
	if r != nil {
		clients := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "isthmus_mcp_clients", Help: "Connected istiods."}, func() float64 {
			s.mu.Lock()
			defer s.mu.Unlock()
			return float64(len(s.clients))
		})
		r.MustRegister(m.responses, m.rejected, m.resources, m.push, m.acknowledge, clients)
	}
	return m
}

// applied notes a new set.
func (m *metrics) applied(p *published) {
	m.resources.Reset()
	for t, have := range p.types {
		m.resources.WithLabelValues(label(t)).Set(float64(len(have.resources)))
	}
}

// pushed notes that a change has been sent to a client; the first client of each set counts.
func (m *metrics) pushed(p *published) {
	if !p.pushed.Swap(true) {
		m.push.Observe(time.Since(p.at).Seconds())
	}
}

// label bounds the values of the type label: a client may ask for anything.
func label(t resource.Type) string {
	if slices.Contains(Types, t) {
		return string(t)
	}
	return "_other"
}
