package config

// Rule is what rules of all kinds have in common.
type Rule struct {
	// Name is the rule's: namespace/name. It is a metric label and stands in the message that a caller sees. At most 507
	// bytes of [A-Za-z0-9._/-].
	Name string `json:"name"`
	// Target selects calls by their names; the zero value selects all.
	Target Target `json:"target,omitzero"`
	// Conditions must all hold for a call that Target selects; none are no restriction. At most 16.
	Match []Condition `json:"match,omitempty"`
	Mode  Mode        `json:"mode,omitempty"`
	// Disabled rules are not there.
	Disabled bool `json:"disabled,omitempty"`
	// Priority orders the rules of one kind, larger ones first; equal ones stand in the order of their list. It tells which of
	// several faults or replies is the one, and whose name a rejection bears where several rules reject.
	Priority uint32 `json:"priority,omitempty"`
}

// Target selects calls by what is known of every call. The zero value selects all calls.
type Target struct {
	Application Match  `json:"application,omitzero"` // of the workload that the filter runs in
	Direction   string `json:"direction,omitempty"`  // "client", "server", or empty for both
	Service     Match  `json:"service,omitzero"`     // interface name
	Version     Match  `json:"version,omitzero"`
	Group       Match  `json:"group,omitzero"`
	Method      Match  `json:"method,omitzero"`
	Caller      Match  `json:"caller,omitzero"` // calling application, as the call says
}

// Match selects strings. The zero value matches everything, also absent values. At most one field may be set.
type Match struct {
	Exact  string   `json:"exact,omitempty"`
	Prefix string   `json:"prefix,omitempty"`
	Regex  string   `json:"regex,omitempty"` // of the whole string; the syntax is match.Pattern's
	In     []string `json:"in,omitempty"`    // one of these
	NotIn  []string `json:"notIn,omitempty"` // none of these; absent values match
}

// Mode says whether a rule acts or only counts what it would have done.
type Mode string

// The modes. The zero value is ModeIntercept.
const (
	ModeIntercept Mode = "intercept"
	ModeObserve   Mode = "observe"
)

// Condition is one comparison with what is known of a call. Where a value cannot be known (the attachments of a request that is
// longer than Limits.MaxInspectBytes), no condition on it holds, whatever its operator.
type Condition struct {
	Subject  Subject  `json:"subject"`
	Key      string   `json:"key,omitempty"` // of SubjectAttachment and SubjectLabel, which need it
	Operator Operator `json:"operator"`
	// Values are what is compared with: exactly one for equals, notEquals, prefix and regex; one or more for in and notIn; none
	// for exists. At most 256.
	Values []string `json:"values,omitempty"`
}

// Subject names what a condition is about.
type Subject string

// The subjects.
const (
	// SubjectCallerApplication is the calling application: what the call says, or else, at the caller, the workload's own.
	SubjectCallerApplication Subject = "callerApplication"
	// SubjectProviderApplication is the workload's own application at the provider. At the caller it is unknown: which
	// application provides a service stands in registries, so there Target.Service says it.
	SubjectProviderApplication Subject = "providerApplication"
	// SubjectCallerIP is the address that the connection comes from. Values are addresses or networks (10.0.0.0/8); the
	// operators prefix and regex do not go with it.
	SubjectCallerIP Subject = "callerIP"
	// SubjectCallerIdentity is the URI SAN of the certificate that the peer of the connection showed:
	// spiffe://cluster.local/ns/shop/sa/web. It is absent without mutual TLS and at the caller.
	SubjectCallerIdentity Subject = "callerIdentity"
	// SubjectAttachment is the attachment (Dubbo) or header (Bolt) called Key.
	SubjectAttachment Subject = "attachment"
	// SubjectLabel is the label called Key that the call carries along: an attachment of Dubbo, an item of the request
	// baggage of SOFARPC.
	SubjectLabel Subject = "label"
	// SubjectTrafficType is TrafficLoadTest or TrafficNormal.
	SubjectTrafficType Subject = "trafficType"
	// SubjectProtocol is what the call travels in: one of Systems.
	SubjectProtocol Subject = "protocol"
)

// The values of SubjectTrafficType. SOFATracer marks the calls of a load test by mark=T in the baggage of the trace; all other
// calls are normal.
const (
	TrafficNormal   = "normal"
	TrafficLoadTest = "loadTest"
)

// Operator names a comparison.
type Operator string

// The operators. An absent value is not equal to any, and in no list.
const (
	OperatorEquals    Operator = "equals"
	OperatorNotEquals Operator = "notEquals"
	OperatorIn        Operator = "in"
	OperatorNotIn     Operator = "notIn"
	OperatorPrefix    Operator = "prefix"
	OperatorRegex     Operator = "regex" // of the whole value; the syntax is match.Pattern's
	OperatorExists    Operator = "exists"
)

// Access allows or denies calls.
//
// A call that some ActionDeny rule matches is denied. Else, if it is in the Target of some ActionAllow or ActionDefaultDeny
// rule, it is denied unless some ActionAllow rule matches it. Else it is allowed. So for these rules Target says where they
// apply, and Match whom they list.
type Access struct {
	Rule
	Action AccessAction `json:"action"`
	// Token is what a call must show besides, to be allowed. It goes with ActionAllow only: what a deny rule asks for a caller would leave out. Nil is
	// nothing.
	Token *Token `json:"token,omitempty"`
}

// Token is a proof that a call shows: either a JSON Web Token or a signature over the call's names.
type Token struct {
	// Attachment (Dubbo) or header (Bolt) that holds it, behind Prefix.
	Attachment string `json:"attachment"`
	Prefix     string `json:"prefix,omitempty"`
	// Key names the keys: all elements of Plugin.Keys, of this plugin or another one in the same VM, that have this name.
	Key string `json:"key"`
	// JWT and HMAC say what must be shown; exactly one of them.
	JWT  *JWT  `json:"jwt,omitempty"`
	HMAC *HMAC `json:"hmac,omitempty"`
	// OnFailure says what becomes of calls whose token cannot be verified, because there is no key of that name or because Envoy lacks the function
	// for it. Default FailureDeny. A bad token is never let through.
	OnFailure FailureAction `json:"onFailure,omitempty"`
}

// FailureAction says what becomes of a call whose token cannot be verified.
type FailureAction string

// What becomes of it.
const (
	FailureDeny  FailureAction = "deny"
	FailureAllow FailureAction = "allow" // as if the token were good
)

// JWT says which JSON Web Tokens are good. The names are those of Istio's JWTRule, where it has them.
type JWT struct {
	Issuer    string   `json:"issuer,omitempty"`    // claim iss; empty is any
	Audiences []string `json:"audiences,omitempty"` // one of these must be in claim aud; none is any. At most 256
	// ClockSkewMillis is how far apart the clocks of issuer and sidecar may be, for exp and nbf. Default 60000, as Envoy has it; at most 600000.
	ClockSkewMillis uint32 `json:"clockSkewMillis,omitempty"`
	// Claims must all hold. At most 16.
	Claims []Claim `json:"claims,omitempty"`
}

// Claim is a condition on a claim at the top of a token. It holds for a list if it holds for one element, or, with a negative operator, for all.
type Claim struct {
	Claim    string   `json:"claim"`
	Operator Operator `json:"operator"`
	Values   []string `json:"values,omitempty"` // as Condition's
}

// HMAC says what a signature is made of: HMAC-SHA256 in hexadecimal digits, see README.md.
type HMAC struct {
	Timestamp   string   `json:"timestamp"`             // attachment that holds the time in milliseconds since the Unix epoch
	KeyID       string   `json:"keyId,omitempty"`       // attachment that says which key; empty: all are tried
	Attachments []string `json:"attachments,omitempty"` // that are signed, too, in this order. At most 16
	// WindowMillis is how old a signature may be, or how far ahead its time. Default 60000; at most 600000.
	WindowMillis uint32 `json:"windowMillis,omitempty"`
}

// Key is one key that Tokens are signed with. Several keys of one name are there at the same time while one takes the place of another.
type Key struct {
	Name      string `json:"name"`         // Token.Key; at most 253 of A-Z a-z 0-9 . _ -
	ID        string `json:"id,omitempty"` // as tokens call it (kid); empty: it goes with any. At most 512 bytes
	Algorithm string `json:"algorithm"`    // "HS256", "RS256" or "ES256": tokens must say the same
	// Value is in base64 (RFC 4648, with padding): the secret for HS256, of 32 bytes or more; else the public key, a SubjectPublicKeyInfo in DER.
	Value string `json:"value"`
}

// AccessAction says what an Access rule does.
type AccessAction string

// What an Access rule does.
const (
	AccessAllow       AccessAction = "allow"       // the calls that match, and no others of its target
	AccessDeny        AccessAction = "deny"        // the calls that match
	AccessDefaultDeny AccessAction = "defaultDeny" // the calls of its target that no other rule allows; it has no Match
)

// FaultInjection makes calls fail, or take longer, on purpose. Of several that match a call the first one is tried, and only that.
type FaultInjection struct {
	Rule
	Abort Abort `json:"abort,omitzero"`
	// DelayMillis holds calls back for so long, in the place of Abort: it does not go with it. At most 60000. A request longer
	// than Limits.MaxInspectBytes is not delayed.
	DelayMillis uint32 `json:"delayMillis,omitempty"`
	// PerMillion is how many of a million calls it hits, chosen at random. Default 1000000: all; at most that.
	PerMillion uint32 `json:"perMillion,omitempty"`
}

// Abort is how a call fails.
type Abort struct {
	// Code is the kind of failure. Default "aborted".
	Code Code `json:"code,omitempty"`
	// Message is what the caller's exception shows behind the reason and the rule. At most 512 bytes.
	Message string `json:"message,omitempty"`
	// HTTPStatus is the status of HTTP, in the place of the code's own; other protocols, Triple too, have their own for the code. 200 to 599.
	HTTPStatus uint32 `json:"httpStatus,omitempty"`
}

// Code is a kind of failure, which each protocol has a status or exception of its own for (protocol.Code).
type Code string

// The codes.
const (
	CodeThrottled   Code = "throttled"
	CodeUnavailable Code = "unavailable"
	CodeDenied      Code = "denied"
	CodeAborted     Code = "aborted"
	CodeTimeout     Code = "timeout"
)

// Degrade answers calls in the provider's place. Of several that match a call the first one answers.
type Degrade struct {
	Rule
	// When says which of the calls are answered. Default WhenAlways.
	When DegradeWhen `json:"when,omitempty"`
	// Replies hold the answer, once for each protocol and serialization. A call in another one is rejected with
	// CodeUnavailable. At most 16.
	Replies []Reply `json:"replies,omitempty"`
}

// DegradeWhen says which of its calls a Degrade rule answers.
type DegradeWhen string

// When a Degrade rule answers.
const (
	WhenAlways   DegradeWhen = "always"   // every call
	WhenRejected DegradeWhen = "rejected" // calls that a circuit breaker or a throttle rejects
)

// Reply is the value that a call returns, as its protocol has it.
type Reply struct {
	Protocol string `json:"protocol"` // "dubbo", "bolt", "http"
	// Serialization is the protocol's own number of it, as in its frames' headers: Dubbo 2 is hessian2, 23 fastjson2; Bolt 1 is
	// hessian. HTTP has only 0, JSON.
	Serialization uint32 `json:"serialization"`
	// Value is the value in that serialization, in base64 (RFC 4648, with padding), at most 64 KiB decoded. A Dubbo value stands
	// at the beginning of what is numbered in Hessian. In SOFARPC's Hessian it is within a SofaResponse: definitions of classes
	// and objects that can be referred to begin with number 1.
	Value string `json:"value"`
}

// CircuitBreaker rejects the calls that its rule matches, all of them together or those to one endpoint, after too many of them went wrong; after a while it
// lets some probes through, and all calls again if these go well.
type CircuitBreaker struct {
	Rule
	Strategy Strategy `json:"strategy"`
	// Threshold opens the circuit where it is reached. Its unit is the strategy's: calls of a million for errorRatio and slowCallRatio
	// (1 to 1000000), a number of calls for errorCount, milliseconds for averageResponseTime.
	Threshold uint32 `json:"threshold"`
	// StatIntervalMillis is the sliding window that is looked at, in ten buckets. Default 1000; 100 to 600000.
	StatIntervalMillis uint32 `json:"statIntervalMillis,omitempty"`
	// MinRequestAmount is how many calls must have ended within the window before the circuit may open. Default 5.
	MinRequestAmount uint32 `json:"minRequestAmount,omitempty"`
	// MaxAllowedRtMillis is from which duration on a call is slow. slowCallRatio needs it, the others do not have it. 1 to 3600000.
	MaxAllowedRtMillis uint32 `json:"maxAllowedRtMillis,omitempty"`
	// RetryTimeoutMillis is how long the circuit stays open. Default 5000; 100 to 3600000.
	RetryTimeoutMillis uint32 `json:"retryTimeoutMillis,omitempty"`
	// ProbeNum is how many calls are let through then, all of which must go well. Default 1; at most 1000.
	ProbeNum uint32 `json:"probeNum,omitempty"`
	// PerEndpoint gives each provider that the calls go to a circuit of its own, by its address and port. It goes only with the target's
	// direction client. Calls whose provider Envoy chooses after the filter, which are those that are lifted, the rule leaves alone.
	PerEndpoint bool `json:"perEndpoint,omitempty"`
	// Errors are what counts as an error for errorRatio and errorCount, and fails a probe whatever the strategy.
	// Default ErrorTransport and ErrorStatus.
	Errors []ErrorClass `json:"errors,omitempty"`
}

// Strategy says what opens a circuit. The names are Sentinel's.
type Strategy string

// The strategies.
const (
	StrategyErrorRatio          Strategy = "errorRatio"
	StrategyErrorCount          Strategy = "errorCount"
	StrategyAverageResponseTime Strategy = "averageResponseTime"
	StrategySlowCallRatio       Strategy = "slowCallRatio"
)

// ErrorClass is a class of outcomes.
type ErrorClass string

// The classes of outcomes.
const (
	ErrorTransport ErrorClass = "transport" // no response, or the connection closed
	ErrorStatus    ErrorClass = "status"    // the protocol's own status says that the call failed
	ErrorException ErrorClass = "exception" // the business code threw
)

// Throttle limits the calls that its rule matches, all of them together, over all workers of an Envoy.
type Throttle struct {
	Rule
	// Type is what is limited. Default ThrottleRate.
	Type ThrottleType `json:"type,omitempty"`
	// Threshold is the number of calls admitted per interval, or at the same time. 0 admits none.
	Threshold uint32 `json:"threshold"`
	// IntervalMillis is the interval of ThrottleRate. Default 1000; 1 to 86400000.
	IntervalMillis uint32 `json:"intervalMillis,omitempty"`
	// Burst is how many calls ThrottleRate may admit at once after a pause. Default Threshold (at least 1 where Threshold is
	// not 0), or 1 with MaxQueueingMillis.
	Burst uint32 `json:"burst,omitempty"`
	// MaxQueueingMillis lets the calls that ThrottleRate has no token for wait for it, for so long at most; 0: they are rejected at once. 1 to
	// 60000. Then the default of Burst is 1, so that calls go on at even distances. It does not go with WarmUp, HotValues and Global. Calls that
	// cannot be held back, which are those that are lifted, lowered, or longer than Limits.MaxInspectBytes, do not wait. The name is Sentinel's.
	MaxQueueingMillis uint32 `json:"maxQueueingMillis,omitempty"`
	// WarmUp lets ThrottleRate begin with a lower rate after a pause.
	WarmUp WarmUp `json:"warmUp,omitzero"`
	// HotValues makes ThrottleRate limit each value of something by itself.
	HotValues HotValues `json:"hotValues,omitzero"`
	// Global makes ThrottleRate a limit that many Envoys have together. Its IntervalMillis is 1000, 60000, 3600000 or 86400000.
	Global Global `json:"global,omitzero"`
}

// Global names a rate limit service (envoy.service.ratelimit.v3.RateLimitService) which counts the calls of all Envoys. Threshold and
// IntervalMillis go to it with each question, so its own configuration has to know only the domain. Burst, which the filter goes on to hold by
// itself, is what one Envoy admits at most where the service does not answer.
type Global struct {
	// Cluster is the service's in Envoy: outbound|8081||ratelimit.example.org. Empty: the limit is each Envoy's own. At most 512 bytes.
	Cluster string `json:"cluster,omitempty"`
	// Authority is what requests to it name. Default: the cluster. At most 512 bytes.
	Authority string `json:"authority,omitempty"`
	// Domain is the service's. Default "isthmus". At most 512 bytes.
	Domain string `json:"domain,omitempty"`
	// SyncMillis is how often a worker that has calls tells the service of them. Default 100; 10 to 60000.
	SyncMillis uint32 `json:"syncMillis,omitempty"`
	// StalenessMillis is how long an answer holds; without one, Threshold and Burst hold for this Envoy by itself. Default 10 times
	// SyncMillis; at least SyncMillis, at most 600000.
	StalenessMillis uint32 `json:"stalenessMillis,omitempty"`
}

// ThrottleType says what a Throttle limits.
type ThrottleType string

// What a Throttle limits.
const (
	ThrottleRate        ThrottleType = "rate"        // calls per interval
	ThrottleConcurrency ThrottleType = "concurrency" // calls at the same time; one-way calls are not counted
)

// WarmUp raises a rate from Threshold / ColdFactor to Threshold while there are calls, evenly over a period. A pause lowers it at
// the same pace. The names are Sentinel's.
type WarmUp struct {
	// PeriodMillis is how long it takes from cold to warm; 0 is no warm-up. At most 3600000.
	PeriodMillis uint32 `json:"periodMillis,omitempty"`
	// ColdFactor is how much lower the rate begins. Default 3; 2 to 100.
	ColdFactor uint32 `json:"coldFactor,omitempty"`
}

// HotValues names the values that have a limit of their own each. Calls without a value are not limited.
type HotValues struct {
	Subject Subject `json:"subject,omitempty"` // callerApplication, callerIP, callerIdentity, attachment or label; empty: no hot values
	Key     string  `json:"key,omitempty"`     // of an attachment or label
	// MaxValues is how many values are remembered; of those beyond, the ones that were not used for longest are forgotten.
	// Default 1000; at most 100000.
	MaxValues uint32 `json:"maxValues,omitempty"`
}
