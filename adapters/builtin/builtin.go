// Package builtin is the table of the adapters that Isthmus ships: one line each.
package builtin

import (
	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/adapters/file"
	"github.com/isthmus-mesh/isthmus/adapters/sofaregistry"
	"github.com/isthmus-mesh/isthmus/adapters/zookeeper"
)

// Kinds lists every kind of registry that can be configured.
var Kinds = adapters.Kinds{
	file.Kind,
	sofaregistry.Kind,
	zookeeper.Kind,
}
