// Package ratelimit limits the rate of calls by token buckets.
//
// A rule is a bucket that gets Threshold tokens each Interval, evenly, and holds at most Burst. Each call takes one. From
// the time that a bucket is made, it never lets through more than Burst + t × Threshold / Interval calls in a time
// t, over all workers of an Envoy together. Over a stretch that begins later, the tokens count in addition that workers had
// taken before it and not yet used: at most 10 ms worth for each, and none older than 20 ms.
package ratelimit

import (
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// Rule is one limit.
type Rule struct {
	name    string
	observe bool
	bucket  bucket
	hits    policy.Hits
}

// New returns a rule with a full bucket. name goes into verdicts; with observe the rule only counts. shared holds the state for all
// workers under a key made of scope, name and p; nil means that there is only one worker.
func New(name string, p Params, observe bool, shared policy.Shared, scope string) *Rule {
	r := &Rule{name: name, observe: observe}
	r.bucket.setup(p, shared, scope, name)
	return r
}

// Name returns the rule's name.
func (r *Rule) Name() string { return r.name }

// Params returns the parameters of the rule's bucket.
func (r *Rule) Params() Params { return r.bucket.Params }

// SetObserve changes whether the rule only counts. The bucket keeps its state.
func (r *Rule) SetObserve(observe bool) { r.observe = observe }

// Hits returns the counts, for reading.
func (r *Rule) Hits() *policy.Hits { return &r.hits }

// Set is the policy of all rules that match the same calls: every one of them must have a token, and only then is
// one taken from each. So a call that the smallest limit rejects costs the others nothing.
type Set []*Rule

var _ policy.Policy = Set(nil)

// Admit implements policy.Policy.
func (s Set) Admit(now policy.Nanos, _ *policy.Call) policy.Verdict {
	var worst *Rule
	var wait policy.Nanos
	for _, r := range s {
		if r.observe {
			continue
		}
		if w := r.bucket.ready(now); w > wait {
			worst, wait = r, w
		}
	}
	if worst != nil {
		worst.hits.Rejected++
		return policy.Verdict{Reject: true, Code: protocol.CodeThrottled, Rule: worst.name, RetryAfterMillis: millis(wait)}
	}
	for _, r := range s {
		if r.observe && r.bucket.ready(now) > 0 {
			r.hits.WouldReject++
			continue
		}
		r.bucket.take(now)
		r.hits.Admitted++
	}
	return policy.Verdict{}
}

// Done implements policy.Policy: how a call ends does not matter to its rate.
func (Set) Done(policy.Nanos, *policy.Call, policy.Outcome) {}

// millis rounds up to milliseconds; 0, which says nothing, where there is no time after which it could succeed.
func millis(d policy.Nanos) uint32 {
	if d == never {
		return 0
	}
	return uint32(min((d+999_999)/1_000_000, 1<<32-1))
}
