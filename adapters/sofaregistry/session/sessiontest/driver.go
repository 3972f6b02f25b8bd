package sessiontest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/adapterstest"
	"github.com/isthmus-mesh/isthmus/adapters/model"
	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session/wire"
)

// Suite returns the conformance suite of the adapter on a Server. prepare may change the server; settings are more lines of the
// adapter's settings.
func Suite(kind adapters.Kind, settings string, prepare func(*Server)) adapterstest.Suite {
	return adapterstest.Suite{
		Start: func(t *testing.T) adapterstest.Registry {
			s := Start(t)
			if prepare != nil {
				prepare(s)
			}
			return &driver{kind: kind, settings: settings, s: s}
		},
		Framework: "sofa", Protocol: model.ProtocolBolt, Consumers: true, Connection: true, Within: 20 * time.Second,
	}
}

// Discoverer makes one for a Server. settings are more lines of the adapter's settings.
func Discoverer(t testing.TB, kind adapters.Kind, s *Server, settings string) adapters.Discoverer {
	t.Helper()
	parsed, err := adapters.ParseSettings(fmt.Appendf(nil, "servers: ['%s']\ndataHTTPPort: %d\n%s", s.Address(), s.DataPort(), settings))
	if err != nil {
		t.Fatal(err)
	}
	d, err := kind.New(parsed.Decode, adapters.Options{Name: "sofa"})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// IDOf returns the id under which SOFARPC publishes a service.
func IDOf(iface, version, uniqueID string) wire.ID {
	name := iface + ":" + version
	if uniqueID != "" {
		name += ":" + uniqueID
	}
	return wire.ID{DataID: name + "@DEFAULT", Group: "SOFA", InstanceID: wire.DefaultInstance}
}

// DataOf returns what SOFARPC's provider publishes of itself, as 5.13.2 writes it.
func DataOf(p adapterstest.Provider) string {
	weight := ""
	if p.Weight > 0 {
		weight = fmt.Sprintf("&weight=%d", p.Weight)
	}
	return fmt.Sprintf("%s:%d?rpcVer=51302&serialization=hessian2%s&appName=%s&p=1&v=4.0&_SERIALIZETYPE=hessian2%s&app_name=%s", p.Address, p.Port,
		weight, p.Application, strings.Replace(weight, "weight", "_WEIGHT", 1), p.Application)
}

type driver struct {
	kind     adapters.Kind
	settings string
	s        *Server
}

func (d *driver) Discoverer(t testing.TB) adapters.Discoverer {
	return Discoverer(t, d.kind, d.s, d.settings)
}

func (d *driver) AddProvider(t testing.TB, p adapterstest.Provider) {
	d.s.Publish(IDOf(p.Interface, p.Version, p.Group), fmt.Sprint(p), Publication{Data: DataOf(p)})
}

func (d *driver) RemoveProvider(t testing.TB, p adapterstest.Provider) {
	d.s.Withdraw(IDOf(p.Interface, p.Version, p.Group), fmt.Sprint(p))
}

func (d *driver) AddConsumer(t testing.TB, c adapterstest.Consumer) {
	d.s.Subscribe(IDOf(c.Interface, c.Version, c.Group), Subscription{c.Application, c.Address})
}

func (d *driver) RemoveConsumer(t testing.TB, c adapterstest.Consumer) {
	d.s.Unsubscribe(IDOf(c.Interface, c.Version, c.Group), Subscription{c.Application, c.Address})
}

func (d *driver) Disconnect(testing.TB) { d.s.Refuse(true) }
func (d *driver) Connect(testing.TB)    { d.s.Refuse(false) }

const garbage = "not an address?"

func (d *driver) AddMalformed(t testing.TB, p adapterstest.Provider) string {
	d.s.Publish(IDOf(p.Interface, p.Version, p.Group), "malformed", Publication{Data: garbage})
	return IDOf(p.Interface, p.Version, p.Group).String()
}

func (d *driver) RemoveMalformed(t testing.TB, p adapterstest.Provider) {
	d.s.Withdraw(IDOf(p.Interface, p.Version, p.Group), "malformed")
}
