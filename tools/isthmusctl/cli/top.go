package cli

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/mcp-server/console/api"
	"github.com/isthmus-mesh/isthmus/mcp-server/telemetry"
)

// minRefresh is how often top asks at most.
const minRefresh = 100 * time.Millisecond

// The orders of top.
var orders = []string{"name", "rate", "errors", "p99"}

// topFlags say what top shows.
type topFlags struct {
	query     string
	direction string
	order     string
	once      bool
	interval  time.Duration
}

func newTop(s *Streams, server *serverFlags) *cobra.Command {
	var flags topFlags
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch the traffic of services and methods, who calls whom, and what rules do",
		Long: `top shows what the filters have metered over the last seconds, in the sidecars whose metrics mcp-server reads (spec.telemetry):
for each service and method the rate of calls, the ratio of failures, business exceptions and rejections, and latencies; who calls
whom; and what rules did. A call is seen at the client, at the server, or at both, depending on who has a sidecar.

On a terminal it refreshes until it is interrupted. With --once, with -o json or yaml, or where the output is no terminal, it prints
once. Latencies are of all versions and groups of a service together.`,
		Example: `  isthmusctl top --once
  isthmusctl top -q greet --at server --sort p99`,
		Args: cobra.NoArgs,
	}
	output := outputFlag(cmd)
	server.addTimeout(cmd)
	cmd.Flags().StringVarP(&flags.query, "query", "q", "", "only services and callers with this in their name")
	cmd.Flags().StringVar(&flags.direction, "at", "", "only calls as they are seen at this end: client, server")
	cmd.Flags().StringVar(&flags.order, "sort", orders[0], "order of the services: "+strings.Join(orders, ", "))
	cmd.Flags().BoolVar(&flags.once, "once", false, "print once")
	cmd.Flags().DurationVar(&flags.interval, "interval", 2*time.Second, "time between two refreshes")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case !slices.Contains([]string{"", "client", "server"}, flags.direction):
			return usagef("--at %q: one of client, server", flags.direction)
		case !slices.Contains(orders, flags.order):
			return usagef("--sort %q: one of %s", flags.order, strings.Join(orders, ", "))
		case flags.interval < minRefresh:
			return usagef("--interval must be at least %s", minRefresh)
		}
		ctx := cmd.Context()
		c, release, err := server.client()
		if err != nil {
			return err
		}
		defer release()
		read := func() (*api.Traffic, error) {
			r, err := c.Traffic(ctx)
			if err != nil {
				return nil, server.failed(err)
			}
			flags.filter(r)
			return r, nil
		}
		first, err := read()
		if err != nil {
			return err
		}
		if *output != formatTable {
			return s.print(*output, first, nil)
		}
		if flags.once || s.Size == nil {
			return s.traffic(s.Out, first, &flags)
		}
		return s.watchTraffic(ctx, first, read, &flags, server.address())
	}
	return cmd
}

// filter leaves what is asked for.
func (f *topFlags) filter(r *api.Traffic) {
	fits := func(names ...string) bool {
		return f.query == "" || slices.ContainsFunc(names, func(n string) bool { return strings.Contains(strings.ToLower(n), strings.ToLower(f.query)) })
	}
	other := func(t telemetry.Traffic) bool {
		return !wanted(f.direction, t.Direction) || !fits(serviceName(t.Service, t.Version, t.Group), t.Method)
	}
	r.Methods = slices.DeleteFunc(r.Methods, other)
	r.Services = slices.DeleteFunc(r.Services, func(t telemetry.Traffic) bool {
		return other(t) && !slices.ContainsFunc(r.Methods, func(m telemetry.Traffic) bool { return sameService(m, t) && m.Direction == t.Direction })
	})
	r.Subsets = slices.DeleteFunc(r.Subsets, func(t telemetry.SubsetTraffic) bool {
		return !wanted(f.direction, "client") || !fits(serviceName(t.Service, t.Version, t.Group), t.Subset.Subset)
	})
	r.Edges = slices.DeleteFunc(r.Edges, func(e telemetry.Edge) bool {
		return !wanted(f.direction, e.Direction) || !fits(serviceName(e.Service, e.Version, e.Group), e.Caller)
	})
}

// serviceName returns what names a service within its protocol: interface[:version[:group]].
func serviceName(service, version, group string) string {
	if version != "" || group != "" {
		service += ":" + version
	}
	if group != "" {
		service += ":" + group
	}
	return service
}

func sameService(a, b telemetry.Traffic) bool {
	return a.System == b.System && a.Service == b.Service && a.Version == b.Version && a.Group == b.Group
}

// The control sequences of a terminal (ECMA-48, and xterm's alternate screen, which leaves what was there before).
const (
	screenEnter = "\x1b[?1049h\x1b[?25l\x1b[?7l" // without a cursor, and without a second line for one that is too long
	screenLeave = "\x1b[?7h\x1b[?25h\x1b[?1049l"
	screenHome  = "\x1b[H"
	clearLine   = "\x1b[K"
	clearBelow  = "\x1b[J"
)

// watchTraffic refreshes the screen until ctx is done. What was read last stays on it while the server cannot be reached.
func (s *Streams) watchTraffic(ctx context.Context, latest *api.Traffic, read func() (*api.Traffic, error), flags *topFlags, server string) error {
	if _, err := io.WriteString(s.Out, screenEnter); err != nil {
		return err
	}
	defer io.WriteString(s.Out, screenLeave)
	tick := time.NewTicker(flags.interval)
	defer tick.Stop()
	var failure error
	for {
		var page bytes.Buffer
		title := fmt.Sprintf("isthmusctl top · %s · %s · Ctrl-C ends", printable(server), latest.Time.Local().Format("15:04:05"))
		fmt.Fprintln(&page, s.paint(colourBold, title))
		if failure != nil {
			fmt.Fprintln(&page, s.paint(colourRed, printable(failure.Error())))
		}
		if err := s.traffic(&page, latest, flags); err != nil {
			return err
		}
		_, height := s.Size()
		if _, err := io.WriteString(s.Out, screen(page.String(), height)); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		r, err := read()
		if ctx.Err() != nil {
			return nil
		}
		if failure = err; err == nil {
			latest = r
		}
	}
}

// screen returns what shows as much of a page as fits, without flicker: each line is written over the one before.
func screen(page string, height int) string {
	lines := strings.Split(strings.TrimSuffix(page, "\n"), "\n")
	if height > 1 && len(lines) > height {
		hidden := len(lines) - height + 1
		lines = append(lines[:height-1], fmt.Sprintf("… %d more lines; narrow it down with -q, or see all with --once", hidden))
	}
	return screenHome + strings.Join(lines, clearLine+"\n") + clearLine + clearBelow
}

// traffic shows a report to people.
func (s *Streams) traffic(w io.Writer, r *api.Traffic, flags *topFlags) error {
	inner := *s
	inner.Out = w
	up := 0
	for _, target := range r.Targets {
		if target.Up {
			up++
		}
	}
	if len(r.Targets) == 0 {
		_, err := fmt.Fprintln(w, "mcp-server reads the metrics of no sidecar: name them in spec.telemetry.targets of its configuration")
		return err
	}
	colour := ""
	if up < len(r.Targets) {
		colour = colourYellow
	}
	fmt.Fprintln(w, inner.paint(colour, fmt.Sprintf("%d of %s read; rates over the last %gs", up, count(len(r.Targets), "sidecar"), r.WindowSeconds)))
	for _, target := range r.Targets {
		switch {
		case !target.Up:
			fmt.Fprintln(w, inner.paint(colourRed, fmt.Sprintf("  %s cannot be read: %s", printable(target.Name), printable(cmp.Or(target.Error, "not tried yet")))))
		case target.Rejected:
			fmt.Fprintln(w, inner.paint(colourRed, fmt.Sprintf("  %s has refused the filter's last configuration and runs the one before", printable(target.Name))))
		}
	}
	sections := []*table{trafficTable(r, flags.order), edgeTable(r.Edges), subsetTable(r.Subsets), effectTable(r.Rules)}
	for i, t := range sections {
		if len(t.rows) == 0 && i > 0 {
			continue
		}
		fmt.Fprintln(w)
		if err := t.write(&inner); err != nil {
			return err
		}
	}
	return nil
}

// trafficTable shows each service with its methods below it.
func trafficTable(r *api.Traffic, order string) *table {
	t := &table{head: []string{"SERVICE / METHOD", "AT", "CALLS/S", "ERRORS", "EXCEPTIONS", "REJECTED", "P50 MS", "P90 MS", "P99 MS", "IN FLIGHT"},
		empty: "no calls have been seen", spare: []int{7, 9, 4, 6}}
	type group struct{ services, methods []telemetry.Traffic }
	var groups []group
	for _, svc := range r.Services {
		if n := len(groups); n > 0 && sameService(groups[n-1].services[0], svc) {
			groups[n-1].services = append(groups[n-1].services, svc)
			continue
		}
		g := group{services: []telemetry.Traffic{svc}}
		for _, m := range r.Methods {
			if sameService(m, svc) {
				g.methods = append(g.methods, m)
			}
		}
		groups = append(groups, g)
	}
	slices.SortStableFunc(groups, func(a, b group) int {
		return cmp.Compare(largest(b.services, order), largest(a.services, order))
	})
	for _, g := range groups {
		for i, svc := range g.services {
			name := coloured(serviceName(svc.Service, svc.Version, svc.Group), colourBold)
			if i > 0 {
				name.text = " "
			}
			t.add(trafficRow(name, &svc)...)
		}
		slices.SortStableFunc(g.methods, func(a, b telemetry.Traffic) int {
			if a.Method == b.Method {
				return 0
			}
			return cmp.Compare(largest([]telemetry.Traffic{b}, order), largest([]telemetry.Traffic{a}, order))
		})
		last := ""
		for _, m := range g.methods {
			name := text("  " + printable(m.Method))
			if m.Method == last {
				name.text = " "
			}
			last = m.Method
			t.add(trafficRow(name, &m)...)
		}
	}
	return t
}

// largest returns what an order goes by, of the end that has more of it; 0 where the order is that of the names.
func largest(ends []telemetry.Traffic, order string) float64 {
	most := 0.0
	for _, t := range ends {
		v := 0.0
		switch order {
		case "rate":
			v = t.Rate
		case "errors":
			v = t.ErrorRatio * t.Rate
		case "p99":
			if t.P99 != nil {
				v = *t.P99
			}
		}
		most = max(most, v)
	}
	return most
}

func trafficRow(name cell, t *telemetry.Traffic) []cell {
	return []cell{
		name, text(t.Direction), {text: rate(t.Rate), right: true},
		ratioCell(t.ErrorRatio, t.Rate, colourRed), ratioCell(t.ExceptionRatio, t.Rate, colourYellow), ratioCell(t.RejectedRatio, t.Rate, colourYellow),
		{text: millis(t.P50), right: true}, {text: millis(t.P90), right: true}, {text: millis(t.P99), right: true}, {text: fmt.Sprintf("%.0f", t.InFlight), right: true},
	}
}

// rate returns calls a second with as many digits as mean something.
func rate(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 0.01:
		return "<0.01"
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// ratioCell shows a ratio of calls; where there were none it is nothing.
func ratioCell(v, calls float64, colour string) cell {
	c := cell{right: true}
	switch {
	case calls == 0:
	case v == 0:
		c.text = "0%"
	case v < 0.001:
		c.text, c.colour = "<0.1%", colour
	case v < 0.1:
		c.text, c.colour = fmt.Sprintf("%.1f%%", v*100), colour
	default:
		c.text, c.colour = fmt.Sprintf("%.0f%%", v*100), colour
	}
	return c
}

func millis(v *float64) string {
	switch {
	case v == nil:
		return ""
	case *v < 10:
		return fmt.Sprintf("%.2f", *v)
	case *v < 100:
		return fmt.Sprintf("%.1f", *v)
	}
	return fmt.Sprintf("%.0f", *v)
}

// edgeTable shows who calls whom; a call that is seen at both ends is in one row.
func edgeTable(edges []telemetry.Edge) *table {
	t := &table{head: []string{"CALLER", "CALLS", "SENT/S", "RECEIVED/S", "ERRORS/S"}}
	type ends struct {
		caller, service string
		sent, received  *float64
		errors          float64
	}
	var rows []*ends
	at := map[[2]string]*ends{}
	for _, e := range edges {
		k := [2]string{e.Caller, serviceName(e.Service, e.Version, e.Group)}
		if at[k] == nil {
			at[k] = &ends{caller: k[0], service: k[1]}
			rows = append(rows, at[k])
		}
		rate := e.Rate
		if e.Direction == "client" {
			at[k].sent = &rate
		} else {
			at[k].received = &rate
		}
		at[k].errors = max(at[k].errors, e.Errors) // the same failures, seen from both ends
	}
	for _, r := range rows {
		show := func(v *float64) cell {
			if v == nil {
				return cell{right: true}
			}
			return cell{text: rate(*v), right: true}
		}
		failed := cell{text: rate(r.errors), right: true}
		if r.errors > 0 {
			failed.colour = colourRed
		}
		t.add(text(cmp.Or(r.caller, "(unknown)")), text(r.service), show(r.sent), show(r.received), failed)
	}
	return t
}

// subsetTable shows what callers see of the groups of providers that routes send calls to.
func subsetTable(subsets []telemetry.SubsetTraffic) *table {
	t := &table{head: []string{"ROUTED TO", "GROUP", "CALLS/S", "SHARE", "ERRORS", "EXCEPTIONS", "P50 MS", "P99 MS"}}
	last := ""
	for i := range subsets {
		s := &subsets[i]
		name := text(serviceName(s.Service, s.Version, s.Group))
		if name.text == last {
			name.text = " "
		} else {
			last = name.text
		}
		share := ratioCell(s.Share, s.Rate, "")
		t.add(name, text(s.Subset.Subset), cell{text: rate(s.Rate), right: true}, share, ratioCell(s.ErrorRatio, s.Rate, colourRed), ratioCell(s.ExceptionRatio, s.Rate, colourYellow),
			cell{text: millis(s.P50), right: true}, cell{text: millis(s.P99), right: true})
	}
	return t
}

// effectTable shows what rules did.
func effectTable(rules []telemetry.Rule) *table {
	t := &table{head: []string{"RULE", "ADMITTED/S", "REJECTED/S", "WOULD REJECT/S", "REJECTED IN ALL", "SIDECARS"}}
	for i := range rules {
		r := &rules[i]
		colour := ""
		if r.Rates[actionReject] > 0 {
			colour = colourYellow
		}
		t.add(text(r.Name), cell{text: rate(r.Rates[actionAdmit]), right: true}, cell{text: rate(r.Rates[actionReject]), colour: colour, right: true},
			cell{text: rate(r.Rates[actionWouldReject]), right: true}, cell{text: fmt.Sprintf("%.0f", r.Totals[actionReject]), right: true}, text(list(slices.Clone(r.Targets))))
	}
	return t
}
