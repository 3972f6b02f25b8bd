package app

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/store"
)

// pipelineMetrics tell how long things take and how much there is.
type pipelineMetrics struct {
	stages   *prometheus.HistogramVec
	early    prometheus.Histogram
	latency  prometheus.Histogram
	reloads  *prometheus.CounterVec
	problems *prometheus.GaugeVec
	services prometheus.Gauge
	ends     *prometheus.GaugeVec
	rules    prometheus.Gauge
}

func newPipelineMetrics(r prometheus.Registerer, manager *adapters.Manager) *pipelineMetrics {
	buckets := prometheus.ExponentialBuckets(0.0001, 2.5, 12) // 0.1 ms to 2.4 s
	m := &pipelineMetrics{
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "isthmus_pipeline_stage_duration_seconds", Buckets: buckets,
			Help: "How long a stage of the way from a snapshot to istiod took."}, []string{"stage"}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "isthmus_pipeline_snapshot_to_apply_duration_seconds", Buckets: buckets,
			Help: "From a snapshot's freezing until the set that was made of it is served to istiod; the hold-off is in it."}),
		early: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "isthmus_pipeline_snapshot_to_endpoints_duration_seconds", Buckets: buckets,
			Help: "From a snapshot's freezing until the endpoints of lifted services that are in it are served to sidecars."}),
		reloads:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "isthmus_config_reloads_total", Help: "Changes of the configuration file, by result."}, []string{"result"}),
		problems: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "isthmus_problems", Help: "Problems with somebody's data, by stage and severity."}, []string{"stage", "severity"}),
		services: prometheus.NewGauge(prometheus.GaugeOpts{Name: "isthmus_services", Help: "Services in the latest snapshot."}),
		ends:     prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "isthmus_endpoints", Help: "Providers in the latest snapshot, by whether the mesh calls them."}, []string{"state"}),
		rules:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "isthmus_rules", Help: "Governance rules in force."}),
	}
	r.MustRegister(m.stages, m.early, m.latency, m.reloads, m.problems, m.services, m.ends, m.rules, &managerCollector{manager})
	return m
}

// measure times a stage.
func (m *pipelineMetrics) measure(stage string) (done func()) {
	began := time.Now()
	return func() { m.stages.WithLabelValues(stage).Observe(time.Since(began).Seconds()) }
}

func (m *pipelineMetrics) published(s *store.State) {
	m.services.Set(float64(len(s.Snapshot.Services)))
	m.rules.Set(float64(len(s.Rules)))
	carried, left := 0, 0
	for _, hosts := range s.Hosts {
		for _, h := range hosts {
			carried += h.Carried
			left += h.LeftOut
		}
	}
	m.ends.WithLabelValues("carried").Set(float64(carried))
	m.ends.WithLabelValues("left_out").Set(float64(left))
	m.problems.Reset()
	for _, p := range s.Problems {
		m.problems.WithLabelValues(string(p.Stage), string(p.Severity)).Inc()
	}
}

// managerCollector shows how the registries are doing.
type managerCollector struct{ manager *adapters.Manager }

var (
	descState = prometheus.NewDesc("isthmus_source_state", "1 for the state that a registry is in.", []string{"registry", "kind", "state"}, nil)
	descWord  = prometheus.NewDesc("isthmus_source_last_word_timestamp_seconds", "When a registry last said anything.", []string{"registry", "kind"}, nil)
	descStart = prometheus.NewDesc("isthmus_source_restarts_total", "How often a registry's discoverer was started again.", []string{"registry", "kind"}, nil)
	descSnap  = prometheus.NewDesc("isthmus_snapshots_total", "Snapshots frozen.", nil, nil)
	descSaves = prometheus.NewDesc("isthmus_state_saves_total", "State files written, by result.", []string{"result"}, nil)
)

// Describe implements prometheus.Collector.
func (c *managerCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descState, descWord, descStart, descSnap, descSaves} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *managerCollector) Collect(out chan<- prometheus.Metric) {
	for _, s := range c.manager.Sources() {
		for _, state := range []model.State{model.StateConnecting, model.StateSynced, model.StateStale} {
			v := 0.0
			if s.State == state {
				v = 1
			}
			out <- prometheus.MustNewConstMetric(descState, prometheus.GaugeValue, v, s.Name, s.Kind, string(state))
		}
		if !s.LastWord.IsZero() {
			out <- prometheus.MustNewConstMetric(descWord, prometheus.GaugeValue, float64(s.LastWord.UnixNano())/1e9, s.Name, s.Kind)
		}
		out <- prometheus.MustNewConstMetric(descStart, prometheus.CounterValue, float64(s.Restarts), s.Name, s.Kind)
	}
	stats := c.manager.Stats()
	out <- prometheus.MustNewConstMetric(descSnap, prometheus.CounterValue, float64(stats.Snapshots))
	out <- prometheus.MustNewConstMetric(descSaves, prometheus.CounterValue, float64(stats.Saves), "ok")
	out <- prometheus.MustNewConstMetric(descSaves, prometheus.CounterValue, float64(stats.SaveFails), "error")
}
