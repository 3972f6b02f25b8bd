package zookeeper

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/isthmus-mesh/isthmus/adapters/adapterstest"
	"github.com/isthmus-mesh/isthmus/adapters/zookeeper/zktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	for _, layout := range []string{layoutDubbo, layoutSOFARPC} {
		t.Run(layout, func(t *testing.T) {
			adapterstest.Run(t, zktest.Suite(Kind, layout, func(t *testing.T) zktest.Peer { return zktest.Fake(t) }))
		})
	}
}
