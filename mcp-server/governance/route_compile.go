package governance

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"iter"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/mcp-server/resource"
	plugin "github.com/isthmus-mesh/isthmus/wasm-filters/config"
)

// The headers of a lifted call that routes match, as the filter writes them: values are as on the wire, but whatever is no visible ASCII
// character, and "%", is "%" and two hexadecimal digits.
const (
	headerCaller     = "x-isthmus-caller"
	headerMethod     = "x-isthmus-method"
	headerAttachment = "x-isthmus-attachment-" // and the name, see headerOf
)

// Routed is a service, or what of it speaks one protocol, that routes may be for.
type Routed struct {
	Key       model.Key
	Protocol  model.Protocol
	Host      string
	Name      string // of its ServiceEntry
	Lifted    bool
	HTTP      bool                // it travels as HTTP by itself
	Endpoints []map[string]string // the labels of those that take traffic
	// Port is the service's, and Dialled are the addresses of the endpoints that listen on it, which callers who have them from the registry
	// dial, and name as the authority where the service is called over HTTP. Elsewhere is how many listen on other ports.
	Port      uint16
	Dialled   []string
	Elsewhere int
}

// RouteOptions say how routes are rendered.
type RouteOptions struct {
	Namespace   string   // of the ServiceEntries
	Suffix      string   // of all hosts
	Attachments []string // that lifted calls carry as headers
}

// Subset is a group of a lifted service's providers.
type Subset struct {
	Name   string
	Labels map[string]string
	// OrAll says that a group without an instance is all instances.
	OrAll bool
}

// Routes is what becomes of the RouteRules.
type Routes struct {
	Set     resource.Set        // a VirtualService and, where there are groups, a DestinationRule for each host
	Subsets map[string][]Subset // of lifted services, by host
	// Rules say what each rule became.
	Rules    map[ID][]RoutedHost
	Problems []model.Problem
}

// RoutedHost is what a RouteRule became for one host.
type RoutedHost struct {
	Host            string
	VirtualService  string   // namespace/name
	DestinationRule string   // the same; "" where there are no groups
	Subsets         []string // of it, where the host is lifted; sorted
	Dialled         string   // VirtualService for the calls whose authority is an endpoint's address, where that is another one
}

// CompileRoutes renders the RouteRules among rules for services.
func CompileRoutes(rules []Rule, services []Routed, o RouteOptions) Routes {
	r := NewRouter(rules, o)
	hosts := make([]*HostRoutes, len(services))
	for i := range services {
		hosts[i] = r.Host(&services[i])
	}
	return r.Join(hosts, func(yield func(*Routed) bool) {
		for i := range services {
			if !yield(&services[i]) {
				return
			}
		}
	})
}

// Router renders RouteRules service by service. It is immutable.
type Router struct {
	o      RouteOptions
	routes []*Rule // in force, the order in which they are asked
	byName map[string][]*Rule
}

// HostRoutes is what the RouteRules say of one service. It is immutable.
type HostRoutes struct {
	host     string
	set      resource.Set
	subsets  []Subset // of a lifted service
	used     []*Rule  // those that are for it
	became   RoutedHost
	by       []*Rule // those that it is made of
	problems []model.Problem
	dialled  dialled
	render   func(addresses []string) resource.Set // set, with these addresses as hosts beside the service's
}

// NewRouter returns a Router for the RouteRules among rules, which must not be changed afterwards.
func NewRouter(rules []Rule, o RouteOptions) *Router {
	r := &Router{o: o, byName: map[string][]*Rule{}}
	for i := range rules {
		if _, ok := rules[i].Spec.(*RouteSpec); ok && rules[i].Enabled() {
			r.routes = append(r.routes, &rules[i])
		}
	}
	slices.SortStableFunc(r.routes, func(a, b *Rule) int {
		return cmp.Or(cmp.Compare(b.Spec.(*RouteSpec).Priority, a.Spec.(*RouteSpec).Priority), a.ID.compare(b.ID))
	})
	for _, route := range r.routes {
		name := string(route.Spec.(*RouteSpec).Service.Interface)
		r.byName[name] = append(r.byName[name], route)
	}
	return r
}

// Concerns tells whether there may be a route for a service, so that Host has something to say of it.
func (r *Router) Concerns(k model.Key) bool { return len(r.byName[k.Interface]) > 0 }

// problem makes a Problem with a rule.
func (r *Rule) problem(severity model.Severity, code, format string, args ...any) model.Problem {
	return model.Problem{Severity: severity, Place: place(r.File, r.Line), Code: code,
		Message: strings.ToValidUTF8(r.ID.String()+": "+fmt.Sprintf(format, args...), "?")}
}

// Host renders the routes of one service, nil where no rule is for it. It depends on nothing else.
func (r *Router) Host(svc *Routed) *HostRoutes {
	out := &HostRoutes{host: svc.Host}
	c := routeCompiler{service: svc, options: &r.o, subsets: map[string]Subset{}}
	ended := (*Rule)(nil)
	for _, rule := range r.byName[svc.Key.Interface] {
		problem := func(severity model.Severity, code, format string, args ...any) {
			out.problems = append(out.problems, rule.problem(severity, code, format, args...))
		}
		if !rule.Spec.(*RouteSpec).Service.Names(svc) {
			continue
		}
		out.used = append(out.used, rule)
		if !svc.Lifted && !svc.HTTP {
			problem(model.SeverityError, "NotRouted", "%s is not lifted, so its calls cannot be told apart on their way; see spec.mesh.lift", svc.Key)
			continue
		}
		if ended != nil {
			problem(model.SeverityWarning, "Unreachable", "for %s it is never asked: %s comes before it and lets nothing through (degrade: false)", svc.Key, ended.ID)
			continue
		}
		out.by = append(out.by, rule)
		c.problem = func(code, format string, args ...any) { problem(model.SeverityWarning, code, format, args...) }
		if c.rule(rule) {
			ended = rule
		}
	}
	switch {
	case len(out.used) == 0:
		return nil
	case len(out.by) == 0:
		return out
	case ended == nil:
		c.http = append(c.http, &networking.HTTPRoute{Name: "all", Route: []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: svc.Host}}}})
	}
	name := "route-" + svc.Name
	body := &networking.VirtualService{Hosts: []string{svc.Host}, Http: c.http}
	out.became = RoutedHost{Host: svc.Host, VirtualService: r.o.Namespace + "/" + name}
	var groups *networking.DestinationRule
	if len(c.subsets) > 0 {
		out.became.DestinationRule = out.became.VirtualService
		groups = &networking.DestinationRule{Host: svc.Host}
		for _, name := range slices.Sorted(maps.Keys(c.subsets)) {
			s := c.subsets[name]
			groups.Subsets = append(groups.Subsets, &networking.Subset{Name: name, Labels: s.Labels})
			if svc.Lifted {
				out.subsets, out.became.Subsets = append(out.subsets, s), append(out.became.Subsets, name)
			}
		}
	}
	if svc.HTTP {
		out.dialled = r.dialledBy(svc, c.http)
		if svc.Elsewhere > 0 {
			out.problems = append(out.problems, out.by[0].problem(model.SeverityWarning, "OtherPort",
				"%d endpoints of %s listen on other ports than %d: who has their addresses from the registry reaches the one that he has chosen, whatever the routes say", svc.Elsewhere, svc.Key, svc.Port))
		}
	}
	out.render = func(addresses []string) resource.Set {
		resources := []resource.Resource{r.resource(resource.TypeVirtualService, name, &networking.VirtualService{Hosts: slices.Concat(body.Hosts, addresses), Http: body.Http})}
		if groups != nil {
			resources = append(resources, r.resource(resource.TypeDestinationRule, name, groups))
		}
		return newSet(resources)
	}
	out.set = out.render(out.dialled.own)
	return out
}

func (r *Router) resource(t resource.Type, name string, body proto.Message) resource.Resource {
	return resource.Resource{Type: t, Namespace: r.o.Namespace, Name: name, Labels: map[string]string{labelManagedBy: "isthmus"}, Body: body}
}

// newSet is for resources with different names, what is in whose bodies was checked.
func newSet(resources []resource.Resource) resource.Set {
	set, err := resource.NewSet(resources)
	if err != nil {
		panic("governance: " + err.Error())
	}
	return set
}

// Join puts together what was rendered of all services, and says which rules are for none. Elements that are nil are passed over. all are all
// services: who else is called at the addresses of one.
func (r *Router) Join(hosts []*HostRoutes, all iter.Seq[*Routed]) Routes {
	out := Routes{Subsets: map[string][]Subset{}, Rules: map[ID][]RoutedHost{}}
	used := map[*Rule]bool{}
	sets, problems := r.joinDialled(hosts, all)
	out.Problems = append(out.Problems, problems...)
	for _, h := range hosts {
		if h == nil {
			continue
		}
		out.Problems = append(out.Problems, h.problems...)
		for _, rule := range h.used {
			used[rule] = true
		}
		became := h.became
		if len(h.dialled.guarded) > 0 {
			became.Dialled = r.o.Namespace + "/" + dialledRoute(h.dialled.port)
		}
		for _, rule := range h.by {
			out.Rules[rule.ID] = append(out.Rules[rule.ID], became)
		}
		if len(h.subsets) > 0 {
			out.Subsets[h.host] = h.subsets
		}
	}
	for _, rule := range r.routes {
		if !used[rule] {
			out.Problems = append(out.Problems, rule.problem(model.SeverityWarning, "NoService", "there is no such service at the moment"))
		}
	}
	var err error
	if out.Set, err = resource.Union(sets...); err != nil { // hosts are unique
		panic("governance: " + err.Error())
	}
	return out
}

// Names tells whether a service is meant.
func (s *RouteService) Names(svc *Routed) bool {
	k := svc.Key
	if string(s.Interface) != k.Interface || s.Framework != "" && string(s.Framework) != k.Framework ||
		s.Version != "" && string(s.Version) != k.Version || s.Group != "" && string(s.Group) != k.Group {
		return false
	}
	return s.Application == "" || slices.ContainsFunc(svc.Endpoints, func(l map[string]string) bool { return l["app"] == string(s.Application) })
}

// routeCompiler makes the routes of one host.
type routeCompiler struct {
	service *Routed
	options *RouteOptions
	problem func(code, format string, args ...any)
	http    []*networking.HTTPRoute
	subsets map[string]Subset
}

// rule adds the routes of one rule. ends tells that no call passes it.
func (c *routeCompiler) rule(r *Rule) (ends bool) {
	s := r.Spec.(*RouteSpec)
	for i := range s.Routes {
		route := &s.Routes[i]
		h := &networking.HTTPRoute{Name: fmt.Sprintf("%s/%s/%d", r.Namespace, r.Name, i)}
		for j := range route.Match {
			matches, ok := c.match(&route.Match[j])
			if !ok {
				continue
			}
			h.Match = append(h.Match, matches...)
		}
		if len(route.Match) > 0 && len(h.Match) == 0 {
			continue // nothing that could be matched: not everything
		}
		for j := range route.To {
			t := &route.To[j]
			weight := int32(100)
			if t.Percent != nil {
				weight = int32(*t.Percent)
			}
			h.Route = append(h.Route, c.told(&networking.HTTPRouteDestination{Destination: c.destination(t, s.split()), Weight: weight}))
		}
		if len(h.Route) == 0 {
			h.Route = []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: c.service.Host}}}
		}
		if m := route.Mirror; m != nil {
			h.Mirror = c.destination(m, s.split())
			if m.Percent != nil {
				h.MirrorPercentage = &networking.Percent{Value: float64(*m.Percent)}
			}
		}
		h.Fault = route.Fault.render()
		h.Retries = route.Retries.render()
		if route.Timeout != 0 {
			h.Timeout = durationpb.New(time.Duration(route.Timeout))
		}
		c.http = append(c.http, h)
		if len(h.Match) == 0 {
			if i < len(s.Routes)-1 {
				c.problem("Unreachable", "routes[%d] and those after it are never asked: routes[%d] takes every call", i+1, i)
			}
			return true
		}
	}
	if s.degrade() {
		return false
	}
	c.http = append(c.http, &networking.HTTPRoute{Name: fmt.Sprintf("%s/%s/none", r.Namespace, r.Name), DirectResponse: &networking.HTTPDirectResponse{Status: 503}})
	return true
}

// told tells the filter at the caller which group it was that a lifted call went to, so that it meters each by itself.
func (c *routeCompiler) told(d *networking.HTTPRouteDestination) *networking.HTTPRouteDestination {
	if c.service.Lifted && d.Destination.Subset != "" {
		d.Headers = &networking.Headers{Response: &networking.Headers_HeaderOperations{Set: map[string]string{plugin.HeaderSubset: d.Destination.Subset}}}
	}
	return d
}

// destination is a group of instances.
func (c *routeCompiler) destination(t *RouteTarget, split bool) *networking.Destination {
	d := &networking.Destination{Host: c.service.Host}
	if len(t.Labels) == 0 {
		return d
	}
	if !c.service.Lifted {
		// istiod has the endpoints, so a group that is empty at the moment is seen here.
		if split && !slices.ContainsFunc(c.service.Endpoints, func(have map[string]string) bool {
			for k, v := range t.Labels {
				if got, ok := have[k]; !ok || got != v {
					return false
				}
			}
			return true
		}) {
			return d
		}
		split = false
	}
	d.Subset = SubsetName(t.Labels, split)
	c.subsets[d.Subset] = Subset{Name: d.Subset, Labels: t.Labels, OrAll: split}
	return d
}

// SubsetName names the group of the instances with these labels, for Istio and in the metrics of lifted calls: v1 for version=v1, KEY-VALUE for another label, and a hash for several
// and for what is no DNS label or could be read in two ways. orAll are other groups than those that are empty without an instance.
func SubsetName(labels map[string]string, orAll bool) string {
	name, suffix := "", ""
	if orAll {
		suffix = "-or-all"
	}
	for k, v := range labels {
		switch {
		case k == "version" && !strings.Contains(v, "-"):
			name = v
		case k != "group" && !strings.Contains(k, "-"):
			name = k + "-" + v
		}
	}
	if len(labels) != 1 || strings.HasSuffix(name, "-or-all") || !validName(name+suffix, 63, false) {
		h := sha256.New()
		for _, k := range slices.Sorted(maps.Keys(labels)) {
			fmt.Fprintf(h, "%d:%s%d:%s", len(k), k, len(labels[k]), labels[k])
		}
		name = "group-" + hex.EncodeToString(h.Sum(nil)[:8])
	}
	return name + suffix
}

// match renders one match; ok is false where Istio cannot express it for this service.
func (c *routeCompiler) match(m *RouteMatch) (out []*networking.HTTPMatchRequest, ok bool) {
	base := &networking.HTTPMatchRequest{Headers: map[string]*networking.StringMatch{}, WithoutHeaders: map[string]*networking.StringMatch{}}
	if len(m.CallerLabels) > 0 {
		base.SourceLabels = maps.Clone(m.CallerLabels)
	}
	out = []*networking.HTTPMatchRequest{base}
	header := func(name string, v Match) {
		if v.IsZero() {
			return
		}
		s, not := stringMatch(v, c.service.Lifted)
		if not {
			base.WithoutHeaders[name] = s
		} else {
			base.Headers[name] = s
		}
	}
	if c.service.Lifted {
		header(headerCaller, m.Caller)
		header(headerMethod, m.Method)
	} else {
		if !m.Method.IsZero() {
			uri, can := c.uri(m.Method)
			if !can {
				c.problem("NotExpressible", "%s: a method of the protocol %s cannot be matched in this way; the match is left out", c.service.Key, c.service.Protocol)
				return nil, false
			}
			base.Uri = uri
		}
		switch {
		case m.Caller.IsZero():
		case m.Caller.Exact != "":
			if base.SourceLabels == nil {
				base.SourceLabels = map[string]string{}
			}
			base.SourceLabels["app"] = m.Caller.Exact
		default:
			c.problem("NotExpressible", "%s: of a caller whose calls are not lifted only the label app is known, which can only be equal; the match is left out", c.service.Key)
			return nil, false
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.Attachments)) {
		key := strings.ToLower(name)
		if c.service.Lifted {
			if !slices.Contains(c.options.Attachments, name) {
				c.problem("AttachmentNotCarried", "the attachment %q is not at spec.mesh.lift.attachments, so it is no header that could be matched; the match is left out", clip(name))
				return nil, false
			}
			key = headerOf(name)
		}
		v := m.Attachments[name]
		if v.IsZero() { // "*": that it is there at all
			base.Headers[key] = &networking.StringMatch{MatchType: &networking.StringMatch_Regex{Regex: ".*"}}
			continue
		}
		header(key, v)
	}
	if len(base.Headers) == 0 {
		base.Headers = nil
	}
	if len(base.WithoutHeaders) == 0 {
		base.WithoutHeaders = nil
	}
	return out, true
}

// uri matches a method by the path of gRPC and Triple, /INTERFACE/METHOD.
func (c *routeCompiler) uri(m Match) (*networking.StringMatch, bool) {
	if p := c.service.Protocol; p != model.ProtocolTriple && p != model.ProtocolGRPC {
		return nil, false
	}
	path := "/" + c.service.Key.Interface + "/"
	switch {
	case m.Exact != "":
		return &networking.StringMatch{MatchType: &networking.StringMatch_Exact{Exact: path + m.Exact}}, true
	case m.Prefix != "":
		return &networking.StringMatch{MatchType: &networking.StringMatch_Prefix{Prefix: path + m.Prefix}}, true
	case len(m.NotIn) > 0:
		return nil, false
	}
	s, _ := stringMatch(m, false)
	return &networking.StringMatch{MatchType: &networking.StringMatch_Regex{Regex: regexp.QuoteMeta(path) + "(?:" + s.GetRegex() + ")"}}, true
}

// stringMatch renders a match that is not everything. not says that what it matches is what must not be.
func stringMatch(m Match, encoded bool) (s *networking.StringMatch, not bool) {
	text := func(s string) string {
		if encoded {
			return headerText(s)
		}
		return s
	}
	alternatives := func(list []string) *networking.StringMatch {
		quoted := make([]string, len(list))
		for i, v := range list {
			quoted[i] = regexp.QuoteMeta(text(v))
		}
		return &networking.StringMatch{MatchType: &networking.StringMatch_Regex{Regex: strings.Join(quoted, "|")}}
	}
	switch {
	case m.Prefix != "":
		return &networking.StringMatch{MatchType: &networking.StringMatch_Prefix{Prefix: text(m.Prefix)}}, false
	case m.Regex != "":
		return &networking.StringMatch{MatchType: &networking.StringMatch_Regex{Regex: m.Regex}}, false
	case len(m.In) > 0:
		return alternatives(m.In), false
	case len(m.NotIn) > 0:
		return alternatives(m.NotIn), true
	}
	return &networking.StringMatch{MatchType: &networking.StringMatch_Exact{Exact: text(m.Exact)}}, false
}

// headerOf is the header that an attachment of a lifted call becomes: in lower case, and what a header's name cannot hold as "-".
func headerOf(attachment string) string {
	b := []byte(headerAttachment + attachment)
	for i, c := range b {
		switch {
		case c >= 'A' && c <= 'Z':
			b[i] = c + 'a' - 'A'
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '.', c == '_', c == '-':
		default:
			b[i] = '-'
		}
	}
	return string(b)
}

// headerText is a value as the filter writes it into a header.
func headerText(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c > ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func percent(r Ratio) *networking.Percent {
	if r == 0 {
		r = million
	}
	return &networking.Percent{Value: float64(r) * 100 / million}
}

func (f *RouteFault) render() *networking.HTTPFaultInjection {
	if f == nil {
		return nil
	}
	out := &networking.HTTPFaultInjection{}
	if d := f.Delay; d != nil {
		out.Delay = &networking.HTTPFaultInjection_Delay{Percentage: percent(d.Ratio),
			HttpDelayType: &networking.HTTPFaultInjection_Delay_FixedDelay{FixedDelay: durationpb.New(time.Duration(d.FixedDelay))}}
	}
	if a := f.Abort; a != nil {
		out.Abort = &networking.HTTPFaultInjection_Abort{Percentage: percent(a.Ratio),
			ErrorType: &networking.HTTPFaultInjection_Abort_HttpStatus{HttpStatus: int32(cmp.Or(a.Status, 503))}}
	}
	return out
}

func (r *RouteRetries) render() *networking.HTTPRetry {
	if r == nil {
		return nil
	}
	out := &networking.HTTPRetry{Attempts: int32(r.Attempts), RetryOn: strings.Join(texts(r.On), ",")}
	if r.PerTryTimeout != 0 {
		out.PerTryTimeout = durationpb.New(time.Duration(r.PerTryTimeout))
	}
	return out
}
