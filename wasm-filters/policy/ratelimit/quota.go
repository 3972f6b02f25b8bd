package ratelimit

import (
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy"
	"github.com/isthmus-mesh/isthmus/wasm-filters/policy/ratelimit/rls"
)

// QuotaParams are the parameters of a limit that many Envoys have together.
type QuotaParams struct {
	Threshold uint32 // calls per Interval
	Interval  policy.Nanos
	Unit      rls.Unit // of Interval
	// Staleness is how old the service's last answer may be; beyond it only the rule's own bucket holds.
	Staleness policy.Nanos
}

// A Quota is one worker's view of a limit that a rate limit service keeps for many Envoys. The worker tells the service, now and then, how many
// calls it has let through, hears how many are left, and lets through no more than these until it hears again. So a call waits
// for nobody; what it costs is exactness: within the time between two questions each worker knows only its own calls.
//
// The service counts in fixed intervals. That one is over is known without asking again; that a new one has begun, too.
type Quota struct {
	QuotaParams
	pending uint32       // calls let through, which the service has not been told of
	asked   uint32       // those that it is being told of
	called  bool         // there were calls since it was asked
	heard   policy.Nanos // when it last answered; 0: never
	left    uint32       // how many calls are left
	ends    policy.Nanos // until then
}

// NewQuota returns the view of a limit that nothing is known of yet.
func NewQuota(p QuotaParams) *Quota { return &Quota{QuotaParams: p} }

// fresh tells whether what is known of the service holds.
func (q *Quota) fresh(now policy.Nanos) bool {
	return q.heard > 0 && (now-q.heard <= q.Staleness || q.left == 0 && now < q.ends)
}

// ready returns 0 if one more call may be let through, else the time until then.
func (q *Quota) ready(now policy.Nanos) policy.Nanos {
	q.called = true
	if !q.fresh(now) {
		return 0
	}
	if now >= q.ends {
		// The next interval has begun, and nobody has said what others have used of it.
		q.left, q.ends = q.Threshold, now+q.Interval
	}
	if q.left > 0 {
		return 0
	}
	return q.ends - now
}

// take counts one call. Only after ready has returned 0 at the same now.
func (q *Quota) take() {
	q.pending++ // below 1<<32: the rule's bucket lets through fewer in any time without an answer
	if q.left > 0 {
		q.left--
	}
}

// Wants tells whether there is something to ask the service.
func (q *Quota) Wants() bool { return q.called || q.pending > 0 }

// Ask returns the calls to tell the service of. Until Hear or Miss they are on their way.
func (q *Quota) Ask() (hits uint32) {
	q.asked, q.pending, q.called = q.pending, 0, false
	return q.asked
}

// Hear takes the answer to what Ask returned.
func (q *Quota) Hear(a rls.Answer, now policy.Nanos) {
	q.asked = 0
	if !a.Known {
		q.heard = 0 // the service has no such limit
		return
	}
	q.heard, q.ends = now, now+a.Reset
	if a.Reset == 0 {
		q.ends = now + q.Interval
	}
	q.left = a.Remaining - min(a.Remaining, q.pending)
	if a.Over {
		q.left = 0
	}
}

// Miss says that what Ask returned has not been answered: it is asked again, with the calls of the interval that has not ended.
func (q *Quota) Miss(now policy.Nanos) {
	if now < q.ends || q.heard == 0 {
		q.pending += q.asked
	}
	q.asked = 0
	q.called = true
}
