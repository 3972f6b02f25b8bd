// Package adapters turns registries into the protocol-neutral model. One folder holds one registry; builtin lists them;
// adapterstest holds each of them to the contract below; the Manager runs them.
package adapters

import (
	"context"

	"github.com/isthmus-mesh/isthmus/adapters/model"
)

// Update is one message of a Discoverer.
type Update struct {
	// Groups replace, or where empty delete, the groups of the same Source.
	Groups []model.Group
	// Synced says that with this update everything that the registry held when Run began has been said. Until the first
	// one the Manager keeps what an earlier run said; with it, it drops the groups that this run has not mentioned.
	Synced bool
	// Held are sources that this run cannot read at the moment although they are there, such as a file with a fault in it or
	// a node that it may not read. What was said of them, also by an earlier run, stays, beyond Synced too, until it is replaced.
	Held []string
	// Err and Healthy report on the connection: a non-nil Err says that the registry cannot be heard for now and that what was
	// said before may be stale; Healthy says that it can be heard again. An update may carry nothing but this.
	Err     error
	Healthy bool
}

// Discoverer watches one registry.
//
// Run sends what it finds to out until ctx is done or something happens that it cannot mend; then it returns, leaving
// no goroutine behind, and the Manager starts it again after a pause. It never closes out, never sends after it has
// returned, and every send gives way to ctx. It returns nil only when ctx is done.
//
// A Discoverer reconnects by itself where its client library does. It never says "deleted" because it cannot hear:
// stale beats partial. Faulty data become Problems in the Group that they belong to.
//
// Run may be called again once it has returned, never twice at the same time; each call says everything from the start,
// and says Synced exactly once, when it has. What has been sent belongs to the receiver: it is never changed afterwards.
type Discoverer interface {
	Run(ctx context.Context, out chan<- Update) error
}
