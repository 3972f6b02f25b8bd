package governance

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters"
	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// ThrottleSpec limits calls, all that match together, in each sidecar that has such calls, or, with global, in all sidecars together: their rate by a token
// bucket, or how many there are at the same time. Of several that match a call each one must admit it, so the smallest limit holds.
type ThrottleSpec struct {
	Head `yaml:",inline"`
	// What is limited: rate (calls per interval) or concurrency (calls at the same time; one-way calls are not counted). Default rate.
	Type plugin.ThrottleType `yaml:"type" json:"type,omitempty" schema:"enum=rate|concurrency"`
	// How many calls are admitted per interval, or at the same time; 0 admits none.
	Threshold *Count `yaml:"threshold" json:"threshold" schema:"required"`
	// The interval of a rate. Default 1s; 1ms to 24h.
	Interval Duration `yaml:"interval" json:"interval,omitzero"`
	// Lets the calls that a rate has no token for wait for it, for so long at most, and go on at even distances; the others of their connection go on.
	// Default 0, which rejects them at once; 1ms to 1m. Not with warmUp, hotValues and global.
	MaxQueueingTime Duration `yaml:"maxQueueingTime" json:"maxQueueingTime,omitzero"`
	// How many calls a rate may admit at once after a pause. Default threshold, or 1 with maxQueueingTime.
	Burst Count `yaml:"burst" json:"burst,omitempty"`
	// The same as a multiple of the threshold, 0.001 to 1000; give either.
	BurstCoefficient float64 `yaml:"burstCoefficient" json:"burstCoefficient,omitempty" schema:"number=0.001|1000"`
	// Lets a rate begin lower after a pause.
	WarmUp *WarmUp `yaml:"warmUp" json:"warmUp,omitempty"`
	// Gives each value of something a limit of its own.
	HotValues *HotValues `yaml:"hotValues" json:"hotValues,omitempty"`
	// Makes a rate one of all sidecars together, which a rate limit service counts. Its interval is 1s, 1m, 1h or 24h.
	Global *GlobalLimit `yaml:"global" json:"global,omitempty"`
}

// GlobalLimit names a service of Envoy's rate limit protocol (envoyproxy/ratelimit). No call waits for it: sidecars tell it of calls as they go on, and hear how many
// are left. In between, and for as long as staleness without an answer, a sidecar holds to what it has heard; after that, to threshold and burst by itself. The
// service must know the domain; the limits come with the questions.
type GlobalLimit struct {
	// The service's host, as the mesh knows it: ratelimit.istio-system.svc.cluster.local.
	Host Text `yaml:"host" json:"host" schema:"required,max=253"`
	// The port of its gRPC server.
	Port Count `yaml:"port" json:"port" schema:"required,number=1|65535"`
	// The domain in its configuration. Default isthmus.
	Domain Text `yaml:"domain" json:"domain,omitempty" schema:"max=512"`
	// How often a sidecar's worker that has calls tells of them. Default 100ms; 10ms to 1m.
	Sync Duration `yaml:"sync" json:"sync,omitzero"`
	// How old an answer may be. Default 10 times sync; at least sync, at most 10m.
	Staleness Duration `yaml:"staleness" json:"staleness,omitzero"`
}

// WarmUp raises a rate from threshold / coldFactor to threshold while there are calls, evenly over a period. A pause lowers it at the same pace.
type WarmUp struct {
	// How long it takes from cold to warm. 1ms to 1h.
	Period Duration `yaml:"period" json:"period,omitzero" schema:"required"`
	// How much lower the rate begins. Default 3; 2 to 100.
	ColdFactor Count `yaml:"coldFactor" json:"coldFactor,omitempty" schema:"number=2|100"`
}

// HotValues names the values that have a limit each. Calls without a value are not limited.
type HotValues struct {
	// What has the values: callerApplication, callerIP, callerIdentity, attachment or label.
	Subject plugin.Subject `yaml:"subject" json:"subject" schema:"required,enum=callerApplication|callerIP|callerIdentity|attachment|label"`
	// Which attachment or label.
	Key Text `yaml:"key" json:"key,omitempty" schema:"max=512"`
	// How many values are remembered; of those beyond, the ones that were not used for longest are forgotten. Default 1000; at most 100000.
	MaxValues Count `yaml:"maxValues" json:"maxValues,omitempty" schema:"number=1|100000"`
}

// The bounds of durations; they are the filter's.
const (
	minInterval     = time.Millisecond
	maxInterval     = 24 * time.Hour
	maxDuration     = time.Hour
	minStatInterval = 100 * time.Millisecond
	maxStatInterval = 10 * time.Minute
	minRetry        = 100 * time.Millisecond
	minSync         = 10 * time.Millisecond
	maxSync         = time.Minute
	maxStaleness    = 10 * time.Minute
	maxQueueing     = time.Minute
)

// The bounds of burstCoefficient.
const (
	minCoefficient = 0.001
	maxCoefficient = 1000
)

// Validate implements adapters.Validator.
func (s *ThrottleSpec) Validate() adapters.Faults {
	var f adapters.Faults
	if s.Threshold == nil {
		f.Add("threshold", "is missing") // a forgotten one must not reject every call
	}
	s.Interval.check(&f, "interval", minInterval, maxInterval)
	s.MaxQueueingTime.check(&f, "maxQueueingTime", minInterval, maxQueueing)
	if s.BurstCoefficient != 0 {
		switch {
		case s.Burst != 0:
			f.Add("burstCoefficient", "give burst or burstCoefficient, not both")
		case !(s.BurstCoefficient >= minCoefficient && s.BurstCoefficient <= maxCoefficient):
			f.Add("burstCoefficient", "must be from 0.001 to 1000")
		}
	}
	if s.WarmUp != nil {
		if s.WarmUp.Period == 0 {
			f.Add("warmUp.period", "is missing")
		}
		s.WarmUp.Period.check(&f, "warmUp.period", minInterval, maxDuration)
	}
	if s.HotValues != nil && s.HotValues.Subject == "" {
		f.Add("hotValues.subject", "is missing")
	}
	if g := s.Global; g != nil {
		switch host := string(g.Host); {
		case host == "":
			f.Add("global.host", "is missing")
		case !hostName(host):
			f.Add("global.host", "is no host name")
		}
		switch {
		case g.Port == 0:
			f.Add("global.port", "is missing")
		case g.Port > 65535:
			f.Add("global.port", "must be from 1 to 65535")
		}
		g.Sync.check(&f, "global.sync", minSync, maxSync)
		g.Staleness.check(&f, "global.staleness", minSync, maxStaleness)
	}
	if s.Type == plugin.ThrottleConcurrency {
		for _, field := range []struct {
			name string
			set  bool
		}{{"interval", s.Interval != 0}, {"maxQueueingTime", s.MaxQueueingTime != 0}, {"burst", s.Burst != 0}, {"burstCoefficient", s.BurstCoefficient != 0}, {"warmUp", s.WarmUp != nil}, {"hotValues", s.HotValues != nil}, {"global", s.Global != nil}} {
			if field.set {
				f.Add(field.name, "does not go with the type concurrency")
			}
		}
	}
	faults := check(s, f, map[string]string{"intervalMillis": "interval", "maxQueueingMillis": "maxQueueingTime", "warmUp.periodMillis": "warmUp.period", "global.cluster": "global.host", "global.authority": "global.host",
		"global.syncMillis": "global.sync", "global.stalenessMillis": "global.staleness"})
	// What the filter says of the whole rule has been said of its fields.
	return slices.DeleteFunc(faults, func(fault adapters.Fault) bool { return fault.Path == "" && s.Type == plugin.ThrottleConcurrency })
}

// burst returns how many calls may be admitted at once, 0 where nothing says it.
func (s *ThrottleSpec) burst() uint32 {
	if s.BurstCoefficient == 0 || s.Threshold == nil || *s.Threshold == 0 {
		return uint32(s.Burst)
	}
	return uint32(max(1, min(math.Round(float64(*s.Threshold)*s.BurstCoefficient), math.MaxUint32)))
}

// addTo implements Spec.
func (s *ThrottleSpec) addTo(p *plugin.Plugin, name string) {
	t := plugin.Throttle{Rule: s.rule(name), Type: s.Type, IntervalMillis: s.Interval.millis(), Burst: s.burst(), MaxQueueingMillis: s.MaxQueueingTime.millis()}
	if s.Threshold != nil {
		t.Threshold = uint32(*s.Threshold)
	}
	if w := s.WarmUp; w != nil {
		t.WarmUp = plugin.WarmUp{PeriodMillis: w.Period.millis(), ColdFactor: uint32(w.ColdFactor)}
	}
	if h := s.HotValues; h != nil {
		t.HotValues = plugin.HotValues{Subject: h.Subject, Key: string(h.Key), MaxValues: uint32(h.MaxValues)}
	}
	if g := s.Global; g != nil {
		t.Global = plugin.Global{Cluster: fmt.Sprintf("outbound|%d||%s", g.Port, g.Host), Authority: string(g.Host), Domain: string(g.Domain),
			SyncMillis: g.Sync.millis(), StalenessMillis: g.Staleness.millis()}
	}
	p.Throttle = append(p.Throttle, t)
}
