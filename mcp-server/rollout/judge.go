package rollout

import (
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/isthmus-mesh/isthmus/mcp-server/governance"
	"github.com/isthmus-mesh/isthmus/mcp-server/telemetry"
)

// Figures are what is known of the calls of one version within a step.
type Figures struct {
	Calls         float64  `json:"calls"`
	Failed        float64  `json:"failed"`                  // of them, as the analysis counts failures
	P99Millis     *float64 `json:"p99Millis,omitempty"`     // absent where no call has returned
	AverageMillis *float64 `json:"averageMillis,omitempty"` // absent where no call has returned
}

// ErrorRatio is the part of the calls that failed; 0 where there were none, or where f is nil.
func (f *Figures) ErrorRatio() float64 {
	if f == nil || f.Calls <= 0 {
		return 0
	}
	return f.Failed / f.Calls
}

func figures(c telemetry.Calls, a *Analysis) Figures {
	f := Figures{Calls: c.Total(), Failed: c.Failed(a.Exceptions != ExceptionsIgnore)}
	if v, ok := c.Quantile(0.99); ok {
		f.P99Millis = &v
	}
	if v, ok := c.Average(); ok {
		f.AverageMillis = &v
	}
	return f
}

// verdict is what the figures of a step say of the new version.
type verdict int

const (
	verdictWait verdict = iota // they say nothing yet
	verdictGood
	verdictBad
)

// judge compares the calls of the new version with the bounds. stable are those of the old version in the same step, and earlier, if not nil, those
// of the last step in which it had enough of them. percent is the new version's share. why says in words what the verdict rests on.
//
// Calls that fail are a failure of the version as soon as so many of them are no accident, however few calls there are; where they may be one,
// more calls have to tell. That a step is good is told only once there are enough calls.
func judge(a *Analysis, percent governance.Count, canary, stable Figures, earlier *Figures) (_ verdict, why string) {
	enough := float64(a.MinCalls)
	reference := earlier
	if stable.Calls >= enough {
		reference = &stable
	}
	if reference == nil && percent == whole {
		reference = new(Figures) // there will be none: then none of its calls failed
	}
	relative := a.ErrorRate.MaxIncrease > 0 || a.P99.MaxFactor > 0 || a.Average.MaxFactor > 0

	rate := func() string {
		return fmt.Sprintf("%s of the new version's calls fail (%s of %s)", percentage(canary.ErrorRatio()), whole64(canary.Failed), whole64(canary.Calls))
	}
	unsure := ""
	for _, b := range []struct {
		allowed float64
		bounds  bool
		why     func() string
	}{
		{ratio(a.ErrorRate.Max), a.ErrorRate.Max > 0, func() string { return fmt.Sprintf("%s, more than %s", rate(), percentage(ratio(a.ErrorRate.Max))) }},
		{ratio(a.ErrorRate.MaxIncrease) + reference.ErrorRatio(), a.ErrorRate.MaxIncrease > 0 && reference != nil, func() string {
			return fmt.Sprintf("%s, of the old one's %s: an increase of more than %s", rate(), percentage(reference.ErrorRatio()), percentage(ratio(a.ErrorRate.MaxIncrease)))
		}},
	} {
		if !b.bounds || canary.Failed <= b.allowed*canary.Calls {
			continue
		}
		if atLeast(canary.Calls, canary.Failed, b.allowed) < accident {
			return verdictBad, b.why()
		}
		unsure = b.why()
	}
	if canary.Calls < enough {
		if canary.Calls == 0 {
			return verdictWait, fmt.Sprintf("waits for calls of the new version: none of %s has been seen", whole64(enough))
		}
		return verdictWait, fmt.Sprintf("waits for calls of the new version: %s of %s", whole64(canary.Calls), whole64(enough))
	}
	for _, l := range []struct {
		Latency
		name           string
		new, reference *float64
	}{
		{a.P99, "p99", canary.P99Millis, of(reference, func(f *Figures) *float64 { return f.P99Millis })},
		{a.Average, "average", canary.AverageMillis, of(reference, func(f *Figures) *float64 { return f.AverageMillis })},
	} {
		if l.new == nil {
			continue // none of the calls was timed, which would be a fault of the calls: they are bounded by the error rate
		}
		if most := float64(l.Max) / float64(time.Millisecond); most > 0 && *l.new > most {
			return verdictBad, fmt.Sprintf("the new version's calls take %s (%s), more than %s", millis(*l.new), l.name, l.Max)
		}
		if l.MaxFactor > 0 && l.reference != nil && *l.new > *l.reference*float64(l.MaxFactor) {
			return verdictBad, fmt.Sprintf("the new version's calls take %s (%s), more than %g times the old one's %s", millis(*l.new), l.name, float64(l.MaxFactor), millis(*l.reference))
		}
	}
	if unsure != "" {
		return verdictWait, unsure + "; that may be an accident, so it waits for more calls"
	}
	if relative && reference == nil {
		return verdictWait, fmt.Sprintf("waits for calls of the old version to compare with: %s of %s", whole64(stable.Calls), whole64(enough))
	}
	return verdictGood, "does well"
}

// accident is the probability below which failures are none: one version in a hundred that just keeps to its bound would be taken back
// by mistake.
const accident = 0.01

// atLeast is the probability that at least k of n calls fail where each fails with the probability p: the binomial distribution's tail, for k
// above its mean.
func atLeast(n, k, p float64) float64 {
	switch {
	case k <= 0 || p >= 1:
		return 1
	case p <= 0 || k > n:
		return 0
	}
	logGamma := func(x float64) float64 { v, _ := math.Lgamma(x); return v }
	term := math.Exp(logGamma(n+1) - logGamma(k+1) - logGamma(n-k+1) + k*math.Log(p) + (n-k)*math.Log1p(-p))
	sum := 0.0
	for ; k <= n && term > sum*1e-9; k++ { // above the mean each term is less than the one before
		sum += term
		term *= (n - k) / (k + 1) * p / (1 - p)
	}
	return min(sum, 1)
}

func of(f *Figures, field func(*Figures) *float64) *float64 {
	if f == nil {
		return nil
	}
	return field(f)
}

func ratio(r governance.Ratio) float64 { return float64(r) / million }

func whole64(v float64) string { return strconv.FormatFloat(v, 'f', 0, 64) }

// percentage writes a ratio for people: at most one decimal from 1 % on.
func percentage(v float64) string {
	switch {
	case v > 0 && v < 0.0001:
		return "less than 0.01 %"
	case v < 0.01:
		return strconv.FormatFloat(v*100, 'g', 2, 64) + " %"
	}
	return strconv.FormatFloat(float64(int(v*1000+0.5))/10, 'f', -1, 64) + " %"
}

// millis writes milliseconds for people.
func millis(v float64) string {
	switch {
	case v < 10:
		return strconv.FormatFloat(v, 'f', 1, 64) + " ms"
	case v < 10_000:
		return strconv.FormatFloat(v, 'f', 0, 64) + " ms"
	}
	return strconv.FormatFloat(v/1000, 'f', 1, 64) + " s"
}
