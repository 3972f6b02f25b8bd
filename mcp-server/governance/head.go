package governance

import (
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/adapters"
	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// Head is what rules of all kinds have in common.
type Head struct {
	// Which calls the rule is for, by their names. All fields must match; what is left out matches everything.
	Target Target `yaml:"target" json:"target,omitzero"`
	// Conditions that must all hold for a call that the target selects. None are no restriction; at most 16.
	Match []Condition `yaml:"match" json:"match,omitempty"`
	// At which end of the calls the rule acts: client, in the sidecars of the callers, server, in those of the providers, or both. Default both.
	Direction string `yaml:"direction" json:"direction,omitempty" schema:"enum=client|server|both"`
	// Whether the rule acts (intercept) or only counts what it would have done (observe). Default intercept.
	Mode string `yaml:"mode" json:"mode,omitempty" schema:"enum=intercept|observe"`
	// Whether the rule is there at all. Default true.
	Enabled *Flag `yaml:"enabled" json:"enabled,omitempty"`
	// The order among rules of one kind, larger ones first; equal ones are ordered by namespace and name. It tells which of several faults or
	// replies is the one, and whose name a rejection bears where several rules reject. Default 0.
	Priority Count `yaml:"priority" json:"priority,omitempty"`
}

// Target selects calls. Its zero value selects all. Each field is "*", a string that is to be equal, or one of {exact: …}, {prefix: …}, {regex: …},
// {in: […]} and {notIn: […]}.
type Target struct {
	// Application of the workload whose sidecar decides.
	Application Match `yaml:"application" json:"application,omitzero"`
	// Interface name; of HTTP the host, without port, and of a Spring Cloud application its name.
	Service Match `yaml:"service" json:"service,omitzero"`
	// Version of the service.
	Version Match `yaml:"version" json:"version,omitzero"`
	// Dubbo's group, SOFA's uniqueId.
	Group Match `yaml:"group" json:"group,omitzero"`
	// Method name; of HTTP "GET /orders/1", without the query. Generic calls of Dubbo have the method $invoke.
	Method Match `yaml:"method" json:"method,omitzero"`
	// Application of the caller, as the call says.
	Caller Match `yaml:"caller" json:"caller,omitzero"`
}

// Condition is one comparison with what is known of a call. Where a value cannot be known no condition on it holds, whatever its operator.
type Condition struct {
	// What is compared: callerApplication, providerApplication (known at the provider only), callerIP, callerIdentity (the URI SAN of the caller's
	// certificate), attachment (of Dubbo; a header of Bolt), label (that the call carries along), trafficType (normal or loadTest)
	// or protocol (dubbo, bolt, http or triple). Of HTTP and Triple an attachment and a label are a header.
	Subject plugin.Subject `yaml:"subject" json:"subject" schema:"required,enum=callerApplication|providerApplication|callerIP|callerIdentity|attachment|label|trafficType|protocol"`
	// Which attachment or label; other subjects have none.
	Key Text `yaml:"key" json:"key,omitempty" schema:"max=512"`
	// How: equals, notEquals, in, notIn, prefix, regex (of the whole value) or exists. An absent value is equal to none and in no list.
	Operator plugin.Operator `yaml:"operator" json:"operator" schema:"required,enum=equals|notEquals|in|notIn|prefix|regex|exists"`
	// With what: one value, one or more for in and notIn, none for exists. Those of callerIP are addresses or networks such as 10.0.0.0/8.
	Values []Text `yaml:"values" json:"values,omitempty" schema:"max=512,items=256"`
}

// head implements Spec.
func (h *Head) head() *Head { return h }

func (h *Head) enabled() bool { return h.Enabled == nil || bool(*h.Enabled) }

// only tells whether the rule is for calls of one protocol and no other.
func (h *Head) only(protocol string) bool {
	list := h.protocols()
	return len(list) == 1 && string(list[0]) == protocol
}

// rule returns what rules of all kinds have for the filter.
func (h *Head) rule(name string) plugin.Rule {
	direction := h.Direction
	if direction == "both" {
		direction = ""
	}
	t := &h.Target
	r := plugin.Rule{
		Name: name,
		Target: plugin.Target{
			Application: plugin.Match(t.Application),
			Direction:   direction,
			Service:     plugin.Match(t.Service),
			Version:     plugin.Match(t.Version),
			Group:       plugin.Match(t.Group),
			Method:      plugin.Match(t.Method),
			Caller:      plugin.Match(t.Caller),
		},
		Mode:     plugin.Mode(h.Mode),
		Disabled: !h.enabled(),
		Priority: uint32(h.Priority),
	}
	for _, c := range h.Match {
		r.Match = append(r.Match, plugin.Condition{Subject: c.Subject, Key: string(c.Key), Operator: c.Operator, Values: texts(c.Values)})
	}
	return r
}

// oneOf adds a fault where a string that is set is none of those.
func oneOf(f *adapters.Faults, path, s string, allowed ...string) {
	if s == "" || slices.Contains(allowed, s) {
		return
	}
	last := len(allowed) - 1
	f.Add(path, "must be %s or %s, is %q", strings.Join(allowed[:last], ", "), allowed[last], clip(s))
}

// check returns the faults of a spec: own are those that it has found by itself, to which come those of Head, and those that the
// filter would find, under the names that people write. fields names the fields that the filter calls otherwise.
func check(s Spec, own adapters.Faults, fields map[string]string) adapters.Faults {
	h := s.head()
	oneOf(&own, "direction", h.Direction, "client", "server", "both")
	oneOf(&own, "mode", h.Mode, string(plugin.ModeIntercept), string(plugin.ModeObserve))
	var p plugin.Plugin
	s.addTo(&p, "default/rule")
	for _, fault := range p.Validate() {
		_, path, _ := strings.Cut(fault.Path, "].")
		head, rest := path, ""
		if i := strings.IndexAny(path, ".["); i >= 0 {
			head, rest = path[:i], path[i:]
		}
		if path == "target.direction" {
			path = "direction"
		} else if name, ok := fields[head]; ok {
			path = name + rest
		} else if name, ok := fields[path]; ok {
			path = name
		}
		if !slices.ContainsFunc(own, func(f adapters.Fault) bool {
			return path == f.Path || strings.HasPrefix(path, f.Path+".") || strings.HasPrefix(path, f.Path+"[")
		}) {
			own.Add(path, "%s", fault.Message)
		}
	}
	return own
}
