package mesh

import (
	"context"
	"os"
	"path/filepath"
)

// pages are what tells most about a part that does not do what it should.
var (
	sidecarPages = map[string]string{"config_dump.json": "/config_dump?include_eds", "clusters.txt": "/clusters", "stats.txt": "/stats?usedonly"}
	istiodPages  = map[string]string{"configz.json": "/debug/configz", "endpointz.json": "/debug/endpointShardz", "syncz.json": "/debug/syncz"}
)

// Autopsy saves, beside the logs, what the sidecars and istiod say of themselves. What cannot be had is left out.
func (m *Mesh) Autopsy(ctx context.Context, sidecars ...*Sidecar) {
	save := func(machine, name string, body []byte, err error) {
		if err == nil {
			_ = os.WriteFile(filepath.Join(m.folder, machine, name), body, 0o644)
		}
	}
	for _, s := range sidecars {
		for name, page := range sidecarPages {
			body, err := s.Admin(ctx, page)
			save(s.machine.Name(), name, body, err)
		}
	}
	if m.Istiod != nil {
		for name, page := range istiodPages {
			body, err := m.IstiodDebug(ctx, page)
			save(IstiodMachine, name, body, err)
		}
	}
}
