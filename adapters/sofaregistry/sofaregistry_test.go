package sofaregistry

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/adapters/adapterstest"
	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry/session/sessiontest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// quick makes the adapter ask often and settle soon.
const quick = "interval: 20ms\nmaxInterval: 50ms\nconsumersInterval: 200ms\nsettle: 700ms\n"

func TestConformance(t *testing.T) {
	for name, c := range map[string]struct {
		settings string
		prepare  func(*sessiontest.Server)
	}{
		"version 6":           {quick, nil},
		"version 6, protobuf": {quick + "encoding: protobuf\n", nil},
		"version 5":           {quick, func(s *sessiontest.Server) { s.Version = 5 }},
		"empty pushes first":  {quick, func(s *sessiontest.Server) { s.EmptyFirst = true }},
	} {
		t.Run(name, func(t *testing.T) { adapterstest.Run(t, sessiontest.Suite(Kind, c.settings, c.prepare)) })
	}
}
