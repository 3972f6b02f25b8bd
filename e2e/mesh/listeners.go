package mesh

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
)

// filterMark is in the names of the filters that istiod makes of our TrafficExtensions; the name of one begins with "isthmus", that of the
// HTTP filter is httpName.
const (
	filterMark = "trafficextension/" + RootNamespace + "."
	httpName   = "isthmus-http"
)

// listener is what of Envoy's listeners is looked at.
type listener struct {
	Name        string `json:"name"`
	ActiveState *struct {
		Listener struct {
			FilterChains []struct {
				FilterChainMatch struct {
					DestinationPort int `json:"destination_port"`
				} `json:"filter_chain_match"`
				Filters []struct {
					Name  string `json:"name"`
					Typed struct {
						HTTP []struct {
							Name string `json:"name"`
						} `json:"http_filters"`
					} `json:"typed_config"`
				} `json:"filters"`
			} `json:"filter_chains"`
		} `json:"listener"`
	} `json:"active_state"`
}

// liftMark is in the name of the filter that lifts, httpManager is the name of what stands behind it.
const (
	liftMark    = filterMark + "isthmus-lift"
	httpManager = "envoy.filters.network.http_connection_manager"
)

// Lifted says why new outgoing connections to a port are not, or not yet, lifted.
func (s *Sidecar) Lifted(ctx context.Context, port int) error {
	listeners, err := s.listeners(ctx)
	if err != nil {
		return err
	}
	for _, l := range listeners {
		if l.ActiveState == nil || l.Name != fmt.Sprintf("0.0.0.0_%d", port) {
			continue
		}
		for _, c := range l.ActiveState.Listener.FilterChains {
			if n := len(c.Filters); n > 1 && strings.Contains(c.Filters[0].Name, liftMark) && c.Filters[n-1].Name == httpManager {
				return nil
			}
		}
	}
	return fmt.Errorf("%s: outgoing connections to port %d are not lifted", s.machine.Name(), port)
}

// Filtered says why the filter is not, or not yet, on the connections to a port, as the network filter or among the filters of HTTP: outgoing ones to any address and, if
// inbound, incoming ones. It returns nil once new connections pass the filter. An Envoy that is loading it keeps the listeners
// that it had, so connections that are made meanwhile pass unread for as long as they last.
func (s *Sidecar) Filtered(ctx context.Context, port int, inbound bool) error {
	in := ""
	if inbound {
		in = "isthmus"
	}
	return s.Extended(ctx, port, "isthmus", in)
}

// Extended does so for one extension, or for those whose names begin so: out on outgoing connections, in on incoming ones, if it is not
// "".
func (s *Sidecar) Extended(ctx context.Context, port int, out, in string) error {
	listeners, err := s.listeners(ctx)
	if err != nil {
		return err
	}
	outName := fmt.Sprintf("0.0.0.0_%d", port)
	var isOut, isIn bool
	for _, l := range listeners {
		if l.ActiveState == nil {
			continue
		}
		for _, c := range l.ActiveState.Listener.FilterChains {
			has := func(name string) bool {
				if len(c.Filters) > 0 && strings.Contains(c.Filters[0].Name, filterMark+name) {
					return true
				}
				for _, f := range c.Filters {
					for _, h := range f.Typed.HTTP {
						if name == "isthmus" && strings.Contains(h.Name, filterMark+httpName) {
							return true
						}
					}
				}
				return false
			}
			isOut = isOut || l.Name == outName && has(out)
			isIn = isIn || l.Name == "virtualInbound" && c.FilterChainMatch.DestinationPort == port && has(in)
		}
	}
	switch {
	case !isOut:
		return fmt.Errorf("%s: the filter is not on outgoing connections to port %d", s.machine.Name(), port)
	case in != "" && !isIn:
		return fmt.Errorf("%s: the filter is not on incoming connections to port %d", s.machine.Name(), port)
	}
	return nil
}

// listeners returns those that istiod has told the sidecar of.
func (s *Sidecar) listeners(ctx context.Context) ([]listener, error) {
	body, err := s.Admin(ctx, "/config_dump?resource=dynamic_listeners")
	if err != nil {
		return nil, err
	}
	var page struct {
		Configs []listener `json:"configs"`
	}
	if err := json.Unmarshal(body, &page); err != nil {
		return nil, fmt.Errorf("mesh: listeners of %s: %w", s.machine.Name(), err)
	}
	return page.Configs, nil
}
