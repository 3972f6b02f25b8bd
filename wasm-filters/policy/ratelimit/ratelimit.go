// Package ratelimit limits the rate of calls by token buckets.
//
// A rule is a bucket that gets Threshold tokens each Interval, evenly, and holds at most Burst. Each call takes one. From
// the time that a bucket is made, it never lets through more than Burst + t × Threshold / Interval calls in a time
// t, over all workers of an Envoy together. Over a stretch that begins later, the tokens count in addition that workers had
// taken before it and not yet used: at most 10 ms worth for each. None older than 20 ms is used; a worker that goes on within a second
// gives it back.
//
// # Warming up
//
// A bucket that warms up asks more than one token for a call while it is cold: ColdFactor tokens after a pause of Period or longer,
// one token when calls have come for Period without a pause, and in between the rate rises evenly. A pause is counted
// from the last call on, and cools as fast as calls warm. What is shorter than Interval and the time between two calls of a cold
// bucket together is no pause.
//
// # Limits of many Envoys together
//
// A rule with a Quota also keeps to what a rate limit service says. See there.
//
// # Hot values
//
// A HotRule has such a bucket, without leases, for each value that calls carry. See there.
package ratelimit

import (
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

// Rule is one limit.
type Rule struct {
	policy.Rule
	bucket  bucket
	quota   *Quota // nil: the limit is this Envoy's alone
	applies bool   // to the call at hand
}

// New returns a rule with a full bucket. name goes into verdicts; with observe the rule only counts. shared holds the state for all
// workers under a key made of scope, name and p; nil means that there is only one worker.
func New(name string, p Params, observe bool, shared policy.Shared, scope string) *Rule {
	r := &Rule{Rule: policy.NewRule(name, observe)}
	r.bucket.setup(p, shared, scope, name)
	return r
}

// NewWarm returns a rule whose rate begins low after a pause.
func NewWarm(name string, p Params, w WarmUp, observe bool, shared policy.Shared, scope string) *Rule {
	r := &Rule{Rule: policy.NewRule(name, observe)}
	r.bucket.warm = w
	r.bucket.setup(p, shared, scope, name)
	return r
}

// WarmUp returns how the rule's rate rises after a pause.
func (r *Rule) WarmUp() WarmUp { return r.bucket.warm }

// Params returns the parameters of the rule's bucket.
func (r *Rule) Params() Params { return r.bucket.Params }

// SetQuota makes the limit one that many Envoys have together; nil undoes it. Of an equal one the old state stays.
func (r *Rule) SetQuota(q *Quota) {
	if q == nil || r.quota == nil || q.QuotaParams != r.quota.QuotaParams {
		r.quota = q
	}
}

// Quota returns what SetQuota has set.
func (r *Rule) Quota() *Quota { return r.quota }

// Tokens returns how many tokens the bucket holds, those that workers have taken and not yet used aside, or what is left of the quota if that is
// less.
func (r *Rule) Tokens(now policy.Nanos) uint64 {
	n := r.bucket.tokens(now)
	if q := r.quota; q != nil && q.fresh(now) && now < q.ends {
		n = min(n, uint64(q.left))
	}
	return n
}

// ready returns 0 if one more call may be let through, else the time until then.
func (r *Rule) ready(now policy.Nanos) policy.Nanos {
	w := r.bucket.ready(now)
	if r.quota != nil {
		w = max(w, r.quota.ready(now))
	}
	return w
}

// take lets one call through. Only after ready has returned 0 at the same now.
func (r *Rule) take(now policy.Nanos) {
	r.bucket.take(now)
	if r.quota != nil {
		r.quota.take()
	}
}

// Set is the policy of all rules that match the same calls: every one of them must have a token, and only then is
// one taken from each. So a call that the smallest limit rejects costs the others nothing.
type Set []*Rule

var _ policy.Policy = Set(nil)

// Admit implements policy.Policy.
func (s Set) Admit(now policy.Nanos, c *policy.Call) policy.Verdict {
	var worst *Rule
	var wait policy.Nanos
	for _, r := range s {
		r.applies = r.Applies(c)
		if !r.applies || r.Observe() {
			continue
		}
		if w := r.ready(now); w > wait {
			worst, wait = r, w
		}
	}
	if worst != nil {
		worst.Hits().Rejected++
		return policy.Verdict{Reject: true, Code: protocol.CodeThrottled, Rule: worst.Name(), RetryAfterMillis: millis(wait)}
	}
	for _, r := range s {
		if !r.applies {
			continue
		}
		if r.Observe() && r.ready(now) > 0 {
			r.Hits().WouldReject++
			continue
		}
		r.take(now)
		r.Hits().Admitted++
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
