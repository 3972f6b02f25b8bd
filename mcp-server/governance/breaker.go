package governance

import (
	"fmt"

	"github.com/isthmus-mesh/isthmus/adapters"
	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// CircuitBreakerSpec rejects the calls that match, all of them together or those to one provider, after too many of them went wrong; after a while it
// lets some probes through, and all calls again if these go well. Each worker of an Envoy sees calls of its own; whether they share what they see is the
// filter's matter.
type CircuitBreakerSpec struct {
	Head `yaml:",inline"`
	// What opens the circuit: errorRatio, errorCount, averageResponseTime or slowCallRatio.
	Strategy plugin.Strategy `yaml:"strategy" json:"strategy" schema:"required,enum=errorRatio|errorCount|averageResponseTime|slowCallRatio"`
	// From where on it opens: a ratio (0.5 or "50%") for errorRatio and slowCallRatio, a number of calls for errorCount, a duration ("500ms") for
	// averageResponseTime.
	Threshold Amount `yaml:"threshold" json:"threshold" schema:"required"`
	// The sliding window that is looked at. Default 1s; 100ms to 10m.
	StatInterval Duration `yaml:"statInterval" json:"statInterval,omitzero"`
	// How many calls must have ended within the window before the circuit may open. Default 5.
	MinRequestAmount Count `yaml:"minRequestAmount" json:"minRequestAmount,omitempty"`
	// From which duration on a call is slow; slowCallRatio needs it, the others do not have it. 1ms to 1h.
	MaxAllowedRt Duration `yaml:"maxAllowedRt" json:"maxAllowedRt,omitzero"`
	// How long the circuit stays open. Default 5s; 100ms to 1h.
	RetryTimeout Duration `yaml:"retryTimeout" json:"retryTimeout,omitzero"`
	// How many calls are let through then, all of which must go well. Default 1; at most 1000.
	ProbeNum Count `yaml:"probeNum" json:"probeNum,omitempty" schema:"number=1|1000"`
	// Whether each provider that the calls go to, by its address and port, has a circuit of its own, so that one that fails costs the others nothing.
	// It goes only with the direction client. It does not hold for lifted calls; a DestinationRule's outlierDetection does that. Default false.
	PerEndpoint *Flag `yaml:"perEndpoint" json:"perEndpoint,omitempty"`
	// What counts as an error for errorRatio and errorCount, and fails a probe whatever the strategy: transport (no response, or the connection
	// closed), status (the protocol's own status says so), exception (the business code threw). Default transport and status.
	Errors []plugin.ErrorClass `yaml:"errors" json:"errors,omitempty" schema:"enum=transport|status|exception,items=3"`
}

// Validate implements adapters.Validator.
func (s *CircuitBreakerSpec) Validate() adapters.Faults {
	var f adapters.Faults
	if s.Threshold.IsZero() {
		f.Add("threshold", "is missing")
	} else if s.Strategy != "" {
		if _, err := s.threshold(); err != nil {
			f.Add("threshold", "%s", adapters.AsFaults(err)[0].Message)
		}
	}
	s.StatInterval.check(&f, "statInterval", minStatInterval, maxStatInterval)
	s.MaxAllowedRt.check(&f, "maxAllowedRt", minInterval, maxDuration)
	s.RetryTimeout.check(&f, "retryTimeout", minRetry, maxDuration)
	if s.Strategy == "" {
		f.Add("strategy", "is missing")
	}
	faults := check(s, f, map[string]string{"statIntervalMillis": "statInterval", "maxAllowedRtMillis": "maxAllowedRt", "retryTimeoutMillis": "retryTimeout"})
	if s.Strategy != "" {
		return faults
	}
	// Without a strategy nothing can be said of what depends on it.
	var known adapters.Faults
	for _, fault := range faults {
		if fault.Path != "maxAllowedRt" && (fault.Path != "threshold" || s.Threshold.IsZero()) {
			known = append(known, fault)
		}
	}
	return known
}

// threshold returns the threshold in the strategy's unit.
func (s *CircuitBreakerSpec) threshold() (uint32, error) {
	n := s.Threshold.node()
	switch s.Strategy {
	case plugin.StrategyErrorRatio, plugin.StrategySlowCallRatio:
		var r Ratio
		err := r.UnmarshalYAML(n)
		return uint32(r), err
	case plugin.StrategyErrorCount:
		var c Count
		err := c.UnmarshalYAML(n)
		if err == nil && c == 0 {
			err = fmt.Errorf("must be 1 or more")
		}
		return uint32(c), err
	case plugin.StrategyAverageResponseTime:
		var d Duration
		err := d.UnmarshalYAML(n)
		if err == nil {
			var f adapters.Faults
			d.check(&f, "", minInterval, maxDuration)
			err = f.Err()
		}
		return d.millis(), err
	}
	return 0, nil
}

// addTo implements Spec.
func (s *CircuitBreakerSpec) addTo(p *plugin.Plugin, name string) {
	threshold, _ := s.threshold() // Validate tells
	each := s.PerEndpoint != nil && bool(*s.PerEndpoint)
	p.CircuitBreaker = append(p.CircuitBreaker, plugin.CircuitBreaker{
		Rule: s.rule(name), Strategy: s.Strategy, Threshold: threshold, StatIntervalMillis: s.StatInterval.millis(), MinRequestAmount: uint32(s.MinRequestAmount),
		MaxAllowedRtMillis: s.MaxAllowedRt.millis(), RetryTimeoutMillis: s.RetryTimeout.millis(), ProbeNum: uint32(s.ProbeNum), PerEndpoint: each, Errors: s.Errors,
	})
}
