package sofaregistry

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/adapters/registryurl"
	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session"
	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session/wire"
)

// What the server and its clients fill in where nobody configured anything. It says nothing, so the model does without.
const (
	defaultDataCenter = "DefaultDataCenter"
	defaultZone       = "DEFAULT_ZONE"
	defaultGroup      = "SOFA"    // SOFARPC's (SofaRegistryHelper.SUBSCRIBER_LIST_GROUP_ID)
	defaultProtocol   = "DEFAULT" // in a dataId: bolt or tr
)

// Old names of SOFARPC's parameters, which its providers write beside the new ones (SofaRegistryConstants).
var oldNames = map[string]string{
	"_WEIGHT":         "weight",
	"_TIMEOUT":        "timeout",
	"_SERIALIZETYPE":  "serialization",
	"_CONNECTIONNUM":  "connections",
	"_CONNECTTIMEOUT": "connectTimeout",
	"_RETRIES":        "retries",
	"_WARMUPTIME":     "warmupTime",
	"_WARMUPWEIGHT":   "warmupWeight",
	"_HOSTMACHINE":    "hostMachine",
	"app_name":        "appName",
	"self_app_name":   "appName",
}

// service is what a dataId says.
type service struct {
	key      model.Key
	protocol string // that its providers speak unless they say otherwise
}

// readID takes a dataId of SOFARPC apart, interface:version[:uniqueId]@protocol (SofaRegistryHelper.buildListDataId,
// ConfigUniqueNameGenerator). What the model has no field for, a group or an instance id that are not the usual ones, is added to the
// uniqueId, so that what is apart in the registry stays apart: uniqueId@instance@group.
func readID(id session.ID) (service, error) {
	name, protocol, ok := cutLast(id.DataID, "@")
	if !ok || protocol == "" {
		return service{}, fmt.Errorf("it is not interface:version@protocol")
	}
	parts := strings.SplitN(name, ":", 3)
	for len(parts) < 3 {
		parts = append(parts, "")
	}
	if !registryurl.Word(parts[0]) || strings.Contains(parts[0], "/") {
		return service{}, fmt.Errorf("%.100q is not the name of an interface", parts[0])
	}
	for _, p := range parts[1:] {
		if p != "" && !registryurl.Word(p) {
			return service{}, fmt.Errorf("%.100q is neither a version nor a uniqueId", p)
		}
	}
	s := service{protocol: string(model.ProtocolBolt)}
	if protocol != defaultProtocol {
		s.protocol = strings.ToLower(protocol)
		if !isProtocol(s.protocol) {
			return service{}, fmt.Errorf("%.100q is not a protocol", protocol)
		}
	}
	unique := parts[2]
	if id.InstanceID != wire.DefaultInstance {
		unique += "@" + id.InstanceID
	}
	if id.Group != defaultGroup {
		unique += "@" + id.Group
	}
	if unique != "" && !registryurl.Word(unique) {
		return service{}, fmt.Errorf("%.100q is no name", unique)
	}
	s.key = registryurl.SOFAKey(parts[0], parts[1], unique)
	return s, nil
}

func cutLast(s, sep string) (before, after string, ok bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// isProtocol reports whether s can be a protocol's name, as registryurl has it.
func isProtocol(s string) bool {
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '+' || r == '-' || r == '.' || r == '_')
	})
}

// endpointID tells the endpoints of a service apart.
type endpointID struct {
	address  string
	port     uint16
	protocol model.Protocol
}

func idOf(e *model.Endpoint) endpointID { return endpointID{e.Address, e.Port, e.Protocol} }

// providers collects the endpoints and the problems of one id.
type providers struct {
	id        session.ID
	service   service
	labels    []string // parameters that become labels beside the usual ones
	endpoints map[endpointID]born
	problems  []model.Problem
}

type born struct {
	endpoint model.Endpoint
	at       int64 // ms since 1970, 0 where it is not said
}

// maxProblems bounds the problems of one id: data that a thousand providers wrote in the same wrong way is one fault.
const maxProblems = 20

func (p *providers) problem(severity model.Severity, code, format string, args ...any) {
	if len(p.problems) < maxProblems {
		p.problems = append(p.problems, problem(severity, p.id.String(), code, format, args...))
	}
}

// maxPlace bounds the place of a problem; a dataId may be as long as its publisher likes.
const maxPlace = 1024

func problem(severity model.Severity, place, code, format string, args ...any) model.Problem {
	if len(place) > maxPlace {
		place = place[:maxPlace] + "..."
	}
	return model.Problem{Severity: severity, Place: strings.ToValidUTF8(place, "?"), Code: code, Message: strings.ToValidUTF8(fmt.Sprintf(format, args...), "?")}
}

// add takes over what a push says.
func (p *providers) add(push *session.Push) {
	for zone, texts := range push.Zones {
		for _, text := range texts {
			p.addData(push.Segment, zone, text)
		}
	}
}

// addData takes over what one publisher says of itself: host:port[/path]?parameters (SofaRegistryHelper.convertProviderToUrls), or a
// URL with a protocol in front.
func (p *providers) addData(segment, zone, text string) {
	if len(text) > registryurl.MaxLength {
		p.problem(model.SeverityError, "MalformedURL", "a publisher's data has %d bytes, more than %d; it is left out", len(text), registryurl.MaxLength)
		return
	}
	head, _, _ := strings.Cut(text, "?")
	full := text
	hasProtocol := strings.Contains(head, "://")
	if !hasProtocol {
		full = p.service.protocol + "://" + text
	}
	u, err := registryurl.Parse(full, true)
	if err != nil {
		p.problem(model.SeverityError, "MalformedURL", "the data %s is not a provider's address and parameters: %v; it is left out", quote(text), err)
		return
	}
	if !hasProtocol {
		switch v := strings.ToLower(u.Params["p"]); { // RemotingConstants
		case v == "1":
			u.Protocol = string(model.ProtocolBolt)
		case v == "13":
			u.Protocol = string(model.ProtocolTR)
		case isProtocol(v) && strings.Trim(v, "0123456789") != "":
			u.Protocol = v
		}
	}
	for old, now := range oldNames {
		if v, ok := u.Params[old]; ok {
			if u.Params[now] == "" {
				u.Params[now] = v
			}
			delete(u.Params, old)
		}
	}
	delete(u.Params, "p")
	delete(u.Params, "v")
	if u.Host == "" || u.Port == 0 {
		p.problem(model.SeverityError, "MissingAddress", "the data %s has no host and port; it is left out", quote(text))
		return
	}
	if why := registryurl.Unusable(u.Host); why != "" {
		p.problem(model.SeverityError, "UnusableAddress", "the address of %s %s; it is left out", u.Outline(), why)
		return
	}
	labels := registryurl.Labels(u, p.labels)
	e := model.Endpoint{
		Address:     u.Host,
		Port:        u.Port,
		Protocol:    model.Protocol(u.Protocol),
		Application: u.Params["appName"],
		Disabled:    u.Params["disabled"] == "true" || u.Params["disabled"] == "" && u.Params["enabled"] == "false",
		Locality:    locality(segment, zone, u),
		Labels:      labels,
		Metadata:    registryurl.Metadata(u, labels),
	}
	if w := u.Params["weight"]; w != "" {
		if n, err := strconv.ParseInt(w, 10, 64); err != nil {
			p.problem(model.SeverityWarning, "MalformedParameter", "parameter weight=%.80q of %s is not a whole number and is ignored", w, u.Outline())
		} else {
			weight := uint32(min(max(n, 0), math.MaxInt32))
			e.Weight = &weight
		}
	}
	at, _ := strconv.ParseInt(u.Params["startTime"], 10, 64)
	// A provider that was restarted is there twice until its former connection counts as lost; the younger one counts.
	if have, ok := p.endpoints[idOf(&e)]; !ok || at > have.at || at == have.at && less(&e, &have.endpoint) {
		p.endpoints[idOf(&e)] = born{e, at}
	}
}

// less makes the choice between two that are otherwise equal independent of their order.
func less(x, y *model.Endpoint) bool {
	return cmp.Or(cmp.Compare(x.Locality.Region, y.Locality.Region), cmp.Compare(x.Locality.Zone, y.Locality.Zone), cmp.Compare(x.Application, y.Application),
		cmp.Compare(fmt.Sprint(x.Labels, x.Metadata, weightOf(x)), fmt.Sprint(y.Labels, y.Metadata, weightOf(y)))) < 0
}

func weightOf(e *model.Endpoint) int64 {
	if e.Weight == nil {
		return -1
	}
	return int64(*e.Weight)
}

// locality is where the registry says that the publisher is; what it does not say, the publisher may.
func locality(segment, zone string, u registryurl.URL) model.Locality {
	place := func(s, none string) string {
		if s == none || !registryurl.Word(s) {
			return ""
		}
		return s
	}
	return model.Locality{
		Region: cmp.Or(place(segment, defaultDataCenter), place(u.Params["region"], "")),
		Zone:   cmp.Or(place(zone, defaultZone), place(u.Params["zone"], defaultZone)),
	}
}

// quote makes a publisher's data fit for a message, without its parameters, which may hold secrets.
func quote(text string) string {
	head, query, ok := strings.Cut(text, "?")
	if ok && query != "" {
		head += "?..."
	}
	return fmt.Sprintf("%.120q", registryurl.Redact(head))
}

// sorted returns endpoints in the model's order.
func sorted(m map[endpointID]born) []model.Endpoint {
	out := make([]model.Endpoint, 0, len(m))
	for _, b := range m {
		out = append(out, b.endpoint)
	}
	slices.SortFunc(out, func(x, y model.Endpoint) int {
		return cmp.Or(cmp.Compare(x.Address, y.Address), cmp.Compare(x.Port, y.Port), cmp.Compare(x.Protocol, y.Protocol))
	})
	return out
}

// sortedProblems returns problems in a fixed order, each once.
func sortedProblems(list []model.Problem) []model.Problem {
	slices.SortFunc(list, func(x, y model.Problem) int {
		return cmp.Or(cmp.Compare(x.Place, y.Place), cmp.Compare(x.Code, y.Code), cmp.Compare(x.Message, y.Message))
	})
	return slices.Compact(list)
}
