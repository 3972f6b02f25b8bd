// Package translate turns a snapshot of the registries into Istio's ServiceEntries. It is pure and total: equal snapshots give
// byte-equal results, and what cannot be rendered as it is becomes a Problem, never a lost service.
package translate
