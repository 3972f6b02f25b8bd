package mesh

import (
	"bytes"
	"context"
	"fmt"

	"github.com/isthmus-mesh/isthmus/e2e/machine"
	"github.com/isthmus-mesh/isthmus/e2e/peer"
)

// The ports of SOFARegistry's three roles, all of which run in one process here.
const (
	SOFASessionPort     = 9600 // of the session server, for clients, over Bolt
	SOFASessionHTTPPort = 9603
	SOFADataHTTPPort    = 9622
	SOFAMetaHTTPPort    = 9615
)

// StartSOFARegistry starts SOFARegistry, with all its roles in one process and its data in memory, on a machine of that
// name, and waits until all roles are well. p is peer.SOFARegistry5 or peer.SOFARegistry6.
func (m *Mesh) StartSOFARegistry(ctx context.Context, name string, p peer.Peer) (*machine.Process, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	x, err := m.Machine(name)
	if err != nil {
		return nil, err
	}
	j := JVM{Peer: p, Name: string(p), Main: "com.alipay.sofa.registry.server.integration.RegistryApplication", MaxHeapMiB: 512}
	switch p {
	case peer.SOFARegistry5:
		j.Options = []string{
			"-Dnodes.metaNode=DefaultDataCenter:" + x.Address().String(), "-Dregistry.integration.home=.",
			// In seconds. As packaged, the data server forgets a publication after 20, and the session renews it after 180.
			"-Ddata.server.datumTimeToLiveSec=900",
		}
	case peer.SOFARegistry6:
		j.Options = []string{"-Dspring.profiles.active=dev"} // an H2 database in memory
	default:
		return nil, fmt.Errorf("mesh: %s is no SOFARegistry", p)
	}
	registry, err := m.StartJava(name, j)
	if err != nil {
		return nil, err
	}
	for _, port := range []int{SOFAMetaHTTPPort, SOFADataHTTPPort, SOFASessionHTTPPort} {
		url := fmt.Sprintf("http://%s:%d/health/check", x.Address(), port)
		if err := registry.Until(ctx, fmt.Sprintf("%s to be well on port %d", p, port), func(ctx context.Context) error {
			body, err := get(ctx, x.Client(), url)
			if err == nil && !bytes.Contains(body, []byte(`"success":true`)) {
				err = fmt.Errorf("it says %.300s", body)
			}
			return err
		}); err != nil {
			return nil, err
		}
	}
	return registry, nil
}
