package mesh

import (
	"fmt"
	"os"
	"path/filepath"
)

// operatorPart is the folder of what an operator says to Istio, on istiod's machine.
const operatorPart = "operator"

// ApplyIstio writes Istio resources by an operator's hand, as kubectl would. istiod watches the folder.
func (m *Mesh) ApplyIstio(name, text string) error {
	_, err := m.write(IstiodMachine, operatorPart, name+".yaml", text)
	return err
}

// RemoveIstio takes them away again.
func (m *Mesh) RemoveIstio(name string) error {
	if err := os.Remove(filepath.Join(m.folder, IstiodMachine, operatorPart, name+".yaml")); err != nil {
		return fmt.Errorf("mesh: %w", err)
	}
	return nil
}
