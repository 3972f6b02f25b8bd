package xds

import (
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics of a Server. They work without a registry too.
type metrics struct {
	responses prometheus.Counter
	resources prometheus.Counter
	rejected  prometheus.Counter
	refused   prometheus.Counter
	services  prometheus.Gauge
	endpoints prometheus.Gauge
	push      prometheus.Histogram
}

func newMetrics(r prometheus.Registerer, s *Server) *metrics {
	m := &metrics{
		responses: prometheus.NewCounter(prometheus.CounterOpts{Name: "isthmus_xds_responses_total", Help: "Responses sent to sidecars."}),
		resources: prometheus.NewCounter(prometheus.CounterOpts{Name: "isthmus_xds_resources_sent_total", Help: "Endpoint assignments sent to sidecars."}),
		rejected:  prometheus.NewCounter(prometheus.CounterOpts{Name: "isthmus_xds_rejections_total", Help: "Responses that a sidecar has rejected."}),
		refused:   prometheus.NewCounter(prometheus.CounterOpts{Name: "isthmus_xds_unauthenticated_total", Help: "Streams that were refused for want of a valid token."}),
		services:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "isthmus_xds_services", Help: "Lifted services that are served."}),
		endpoints: prometheus.NewGauge(prometheus.GaugeOpts{Name: "isthmus_xds_endpoints", Help: "Endpoints of lifted services that take traffic."}),
		push: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "isthmus_xds_push_duration_seconds", Help: "From new endpoints until the first sidecar has been sent a part of them.",
			Buckets: prometheus.ExponentialBuckets(0.0002, 2, 15)}),
	}
	if r != nil {
		streams := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "isthmus_xds_streams", Help: "Streams of sidecars: one for each lifted cluster of each."}, func() float64 {
			s.mu.Lock()
			defer s.mu.Unlock()
			return float64(len(s.streams))
		})
		clients := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "isthmus_xds_clients", Help: "Connected sidecars."}, func() float64 { return float64(len(s.Clients())) })
		r.MustRegister(m.responses, m.resources, m.rejected, m.refused, m.services, m.endpoints, m.push, streams, clients)
	}
	return m
}

func (m *metrics) apply(a *Assignments) {
	m.services.Set(float64(a.Services()))
	m.endpoints.Set(float64(a.Endpoints()))
}

func (m *metrics) sent(r *discovery.DeltaDiscoveryResponse) {
	m.responses.Inc()
	m.resources.Add(float64(len(r.Resources)))
}
