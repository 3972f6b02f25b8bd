package config

// The names of the labels that the filter's metrics carry. Each is a tag of Envoy's: Istio's bootstrap extracts it from a
// stat's name where the mesh configuration lists it in defaultConfig.extraStatTags. The names keep clear of Istio's own
// labels, and none but TagLE ends in "le", since Istio's expression for a tag is not anchored at the tag's beginning.
const (
	TagDirection = "rpc_direction"         // "client" or "server": policy.Direction
	TagSystem    = "rpc_system"            // the protocol: "dubbo", "bolt"
	TagService   = "rpc_service"           // interface name
	TagVersion   = "rpc_version"           // service version
	TagGroup     = "rpc_group"             // Dubbo group, SOFA uniqueId
	TagMethod    = "rpc_method"            // method name
	TagCaller    = "rpc_caller"            // calling application
	TagOutcome   = "rpc_outcome"           // protocol.Outcome
	TagSubset    = "rpc_subset"            // the group of providers that a route has sent a lifted call to, as HeaderSubset says
	TagKind      = "rpc_frame_kind"        // protocol.Kind
	TagReason    = "rpc_filter_reason"     // why the filter could not do its work
	TagRuleKind  = "rpc_rule_kind"         // its list in Plugin: "access", "faultInjection", "degrade", "circuitBreaker", "throttle"
	TagRule      = "rpc_rule_name"         // name of a rule
	TagAction    = "rpc_rule_action"       // what a rule did: "admit", "reject", "would_reject"
	TagEndpoint  = "rpc_endpoint"          // of a circuit: 10.0.0.1_20880, fd00_0_0_0_0_0_0_1_20880
	TagRevision  = "rpc_filter_generation" // Plugin.Generation
	TagLE        = "le"                    // upper bound of a histogram's bucket, in milliseconds
)

// StatTags are all labels of the filter's metrics: what has to stand in Istio's defaultConfig.extraStatTags, or, for an Envoy
// without Istio, each as tag_name of a stats_config.stats_tags entry with the regex (NAME=\.=(.*?);\.;).
var StatTags = []string{
	TagDirection, TagSystem, TagService, TagVersion, TagGroup, TagMethod, TagCaller, TagOutcome, TagSubset, TagKind, TagReason,
	TagRuleKind, TagRule, TagAction, TagEndpoint, TagRevision, TagLE,
}
