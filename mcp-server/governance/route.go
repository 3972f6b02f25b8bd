package governance

import (
	"fmt"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters"
	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// RouteSpec sends the calls of a service to groups of its providers. It is SOFAStack's routing rule in Istio's terms: it becomes a
// VirtualService and a DestinationRule, so it needs a service that travels as HTTP: a lifted one, Triple, or Spring Cloud.
type RouteSpec struct {
	// Which service.
	Service RouteService `yaml:"service" json:"service" schema:"required"`
	// Whether the rule is there at all. Default true.
	Enabled *Flag `yaml:"enabled" json:"enabled,omitempty"`
	// The order among the rules of one service, larger ones first; equal ones are ordered by namespace and name. Default 0.
	Priority Count `yaml:"priority" json:"priority,omitempty"`
	// What becomes of calls to a group that has no instance: with true they go to all instances, with false they fail. Default true.
	Split *Flag `yaml:"split" json:"split,omitempty"`
	// What becomes of calls that match none of the routes: with true the service's next rule decides, and after the last one they go to all
	// instances; with false they fail. Default true.
	Degrade *Flag `yaml:"degrade" json:"degrade,omitempty"`
	// The routes: the first one that matches a call is taken. 1 to 64.
	Routes []Route `yaml:"routes" json:"routes" schema:"required,items=64"`
}

// RouteService names services. What is left out is any.
type RouteService struct {
	// The naming world of the interface: dubbo, sofa or spring.
	Framework Text `yaml:"framework" json:"framework,omitempty" schema:"max=512"`
	// Interface name; the application's name for Spring Cloud. Needed.
	Interface Text `yaml:"interface" json:"interface" schema:"required,max=512"`
	// Version of the service.
	Version Text `yaml:"version" json:"version,omitempty" schema:"max=512"`
	// Dubbo's group, SOFA's uniqueId.
	Group Text `yaml:"group" json:"group,omitempty" schema:"max=512"`
	// Application that provides it.
	Application Text `yaml:"application" json:"application,omitempty" schema:"max=512"`
}

// Route says where matching calls go, and how.
type Route struct {
	// The calls that are meant: those for which one of these holds. None is every call. At most 16.
	Match []RouteMatch `yaml:"match" json:"match,omitempty"`
	// Groups of instances, with their parts of the calls. None is all instances. At most 16.
	To []RouteTarget `yaml:"to" json:"to,omitempty"`
	// Where copies of the calls go, whose answers nobody waits for.
	Mirror *RouteTarget `yaml:"mirror" json:"mirror,omitempty"`
	// What is done to the calls on purpose.
	Fault *RouteFault `yaml:"fault" json:"fault,omitempty"`
	// How failed calls are tried again. Default Istio's: twice, where no provider has seen the call or it says that it is unavailable.
	Retries *RouteRetries `yaml:"retries" json:"retries,omitempty"`
	// How long a call with all its tries may take. Default: as long as its caller waits.
	Timeout Duration `yaml:"timeout" json:"timeout,omitempty"`
}

// RouteMatch compares what is known of a call at the caller; all that it says must hold.
type RouteMatch struct {
	// Application of the caller, as the call says.
	Caller Match `yaml:"caller" json:"caller,omitzero"`
	// Labels of the caller's workload.
	CallerLabels map[string]string `yaml:"callerLabels" json:"callerLabels,omitempty" schema:"max=63"`
	// Method name.
	Method Match `yaml:"method" json:"method,omitzero"`
	// Attachments (Dubbo), headers and baggage items (Bolt), headers (HTTP). Those of lifted services must be listed at spec.mesh.lift.attachments of
	// mcp-server's configuration.
	Attachments map[string]Match `yaml:"attachments" json:"attachments,omitempty"`
}

// RouteTarget is a group of instances: those that carry all of the labels.
type RouteTarget struct {
	// What the instances carry, as the registry says. None is all instances.
	Labels map[string]string `yaml:"labels" json:"labels,omitempty" schema:"max=63"`
	// Its part of the calls. Those of a route are 100 together; one alone may leave it out. Of a mirror: how many are copied, default 100.
	Percent *Count `yaml:"percent" json:"percent,omitempty" schema:"number=0|100"`
}

// RouteFault delays or fails calls.
type RouteFault struct {
	// How long calls are held back.
	Delay *RouteDelay `yaml:"delay" json:"delay,omitempty"`
	// How calls fail, without reaching a provider.
	Abort *RouteAbort `yaml:"abort" json:"abort,omitempty"`
}

// RouteDelay holds calls back.
type RouteDelay struct {
	// For how long: 1ms to 1h.
	FixedDelay Duration `yaml:"fixedDelay" json:"fixedDelay" schema:"required"`
	// How many of the calls, chosen at random: 0.25 or "25%". Default all.
	Ratio Ratio `yaml:"ratio" json:"ratio,omitempty"`
}

// RouteAbort fails calls.
type RouteAbort struct {
	// Status of HTTP, 400 to 599, of which a lifted call's caller gets its protocol's own error. Default 503.
	Status Count `yaml:"status" json:"status,omitempty" schema:"number=0|599"`
	// How many of the calls, chosen at random: 0.25 or "25%". Default all.
	Ratio Ratio `yaml:"ratio" json:"ratio,omitempty"`
}

// RouteRetries tries calls again.
type RouteRetries struct {
	// How often, after the first try; 0 switches retries off. At most 100.
	Attempts Count `yaml:"attempts" json:"attempts" schema:"required,number=0|100"`
	// How long one try may take. Default: as long as the call.
	PerTryTimeout Duration `yaml:"perTryTimeout" json:"perTryTimeout,omitempty"`
	// Envoy's names of what is tried again: 503, connect-failure, refused-stream, unavailable, 5xx, … Default Istio's.
	On []Text `yaml:"retryOn" json:"retryOn,omitempty" schema:"max=64,items=32"`
}

// The bounds of a RouteSpec.
const (
	maxRoutes       = 64
	maxRouteMatches = 16
	maxRouteTargets = 16
	maxRouteMap     = 32 // labels or attachments
	maxRetries      = 100
	maxRetryOn      = 32
	maxRouteTime    = time.Hour
	maxRouteText    = 512
)

// Validate implements adapters.Validator.
func (s *RouteSpec) Validate() adapters.Faults {
	var f adapters.Faults
	if s.Service.Interface == "" {
		f.Add("service.interface", "is missing")
	}
	for _, t := range []struct {
		field string
		Text
	}{{"framework", s.Service.Framework}, {"interface", s.Service.Interface}, {"version", s.Service.Version}, {"group", s.Service.Group}, {"application", s.Service.Application}} {
		if len(t.Text) > maxRouteText {
			f.Add("service."+t.field, "is longer than %d bytes", maxRouteText)
		}
	}
	if len(s.Routes) == 0 {
		f.Add("routes", "are missing")
	}
	if len(s.Routes) > maxRoutes {
		f.Add("routes", "are more than %d", maxRoutes)
	}
	for i := range s.Routes {
		f = append(f, s.Routes[i].validate().Under(fmt.Sprintf("routes[%d]", i))...)
	}
	return f
}

func (r *Route) validate() adapters.Faults {
	var f adapters.Faults
	if len(r.Match) > maxRouteMatches {
		f.Add("match", "are more than %d", maxRouteMatches)
	}
	for i, m := range r.Match {
		at := fmt.Sprintf("match[%d]", i)
		if m.Caller.IsZero() && m.Method.IsZero() && len(m.CallerLabels) == 0 && len(m.Attachments) == 0 {
			f.Add(at, "says nothing; leave match out to mean every call")
		}
		checkLabels(&f, at+".callerLabels", m.CallerLabels)
		if len(m.Attachments) > maxRouteMap {
			f.Add(at+".attachments", "are more than %d", maxRouteMap)
		}
		checkMatch(&f, at+".caller", m.Caller)
		checkMatch(&f, at+".method", m.Method)
		for name, value := range m.Attachments {
			if name == "" || len(name) > 128 {
				f.Add(at+".attachments", "a name must have 1 to 128 bytes")
			}
			checkMatch(&f, at+".attachments."+clip(name), value)
		}
	}
	if len(r.To) > maxRouteTargets {
		f.Add("to", "are more than %d", maxRouteTargets)
	}
	sum, complete := Count(0), true
	for i, t := range r.To {
		at := fmt.Sprintf("to[%d]", i)
		checkLabels(&f, at+".labels", t.Labels)
		switch {
		case t.Percent == nil && len(r.To) > 1:
			f.Add(at+".percent", "is missing")
			complete = false
		case t.Percent == nil:
			sum = 100
		case *t.Percent > 100:
			f.Add(at+".percent", "must be from 0 to 100")
		default:
			sum += *t.Percent
		}
	}
	if len(r.To) > 0 && complete && sum != 100 {
		f.Add("to", "the percentages are %d together, not 100", sum)
	}
	if m := r.Mirror; m != nil {
		checkLabels(&f, "mirror.labels", m.Labels)
		if m.Percent != nil && (*m.Percent == 0 || *m.Percent > 100) {
			f.Add("mirror.percent", "must be from 1 to 100")
		}
	}
	if x := r.Fault; x != nil {
		if x.Delay == nil && x.Abort == nil {
			f.Add("fault", "needs delay or abort")
		}
		if x.Delay != nil && x.Delay.FixedDelay == 0 {
			f.Add("fault.delay.fixedDelay", "is missing")
		}
		if x.Delay != nil {
			x.Delay.FixedDelay.check(&f, "fault.delay.fixedDelay", time.Millisecond, maxRouteTime)
		}
		if x.Abort != nil && x.Abort.Status != 0 && (x.Abort.Status < 400 || x.Abort.Status > 599) {
			f.Add("fault.abort.status", "must be from 400 to 599")
		}
	}
	if x := r.Retries; x != nil {
		if x.Attempts > maxRetries {
			f.Add("retries.attempts", "must be from 0 to %d", maxRetries)
		}
		x.PerTryTimeout.check(&f, "retries.perTryTimeout", time.Millisecond, maxRouteTime)
		if len(x.On) > maxRetryOn {
			f.Add("retries.retryOn", "are more than %d", maxRetryOn)
		}
		for i, on := range x.On {
			if on == "" || len(on) > 64 || strings.Trim(string(on), "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
				f.Add(fmt.Sprintf("retries.retryOn[%d]", i), "%q is no condition such as unavailable", clip(string(on)))
			}
		}
	}
	r.Timeout.check(&f, "timeout", time.Millisecond, maxRouteTime)
	return f
}

// checkLabels adds faults where labels are none of Istio's.
func checkLabels(f *adapters.Faults, path string, labels map[string]string) {
	if len(labels) > maxRouteMap {
		f.Add(path, "are more than %d", maxRouteMap)
	}
	for k, v := range labels {
		_, name, ok := strings.Cut(k, "/")
		if !ok {
			name = k
		}
		if !labelWord(name) || len(k) > 317 {
			f.Add(path, "%q is no key of a label", clip(k))
		}
		if v != "" && !labelWord(v) {
			f.Add(path, "%q is no value of a label", clip(v))
		}
	}
}

// labelWord tells whether s is a label's name or value: at most 63 letters, digits, '-', '_' and '.', a letter or digit at both ends.
func labelWord(s string) bool {
	if s == "" || len(s) > 63 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (c != '-' && c != '_' && c != '.' || i == 0 || i == len(s)-1) {
			return false
		}
	}
	return true
}

// checkMatch adds what the filter would find wrong with a match, since Envoy reads the same expressions.
func checkMatch(f *adapters.Faults, path string, m Match) {
	if m.IsZero() {
		return
	}
	p := plugin.Plugin{Throttle: []plugin.Throttle{{Rule: plugin.Rule{Name: "n/n", Target: plugin.Target{Method: plugin.Match(m)}}}}}
	for _, fault := range p.Validate() {
		if _, rest, ok := strings.Cut(fault.Path, "target.method"); ok {
			f.Add(path+rest, "%s", fault.Message)
		}
	}
}

// head implements Spec.
func (s *RouteSpec) head() *Head {
	exact := func(t Text) Match { return Match{Exact: string(t)} }
	return &Head{
		Target:    Target{Service: exact(s.Service.Interface), Version: exact(s.Service.Version), Group: exact(s.Service.Group)},
		Direction: "client", Enabled: s.Enabled, Priority: s.Priority,
	}
}

// addTo implements Spec: a route is Istio's, not the filter's.
func (s *RouteSpec) addTo(*plugin.Plugin, string) {}

func (s *RouteSpec) split() bool   { return s.Split == nil || bool(*s.Split) }
func (s *RouteSpec) degrade() bool { return s.Degrade == nil || bool(*s.Degrade) }

// does says what the rule does, in words that follow "it".
func (s *RouteSpec) does() string {
	n := len(s.Routes)
	if n == 1 {
		return "sends the calls of its service to groups of providers, by 1 route"
	}
	return fmt.Sprintf("sends the calls of its service to groups of providers, by %d routes", n)
}
