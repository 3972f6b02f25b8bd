package peer

import "testing"

// Need returns peers for a test that runs outside of namespaces, obtaining them first. With -short it skips the test.
func Need(t testing.TB, peers ...Peer) Set {
	t.Helper()
	if testing.Short() {
		t.Skip("needs real peers: not with -short")
	}
	set, err := Obtain(t.Context(), Lines(t.Output()), peers...)
	if err != nil {
		t.Fatal(err)
	}
	return set
}
