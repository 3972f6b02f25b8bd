// Package h2 is as much of HTTP/2 (RFC 9113, RFC 7541) as it takes to speak to an Envoy that is close by: frames, header
// compression, settings, and the flow control of the connection. It keeps no streams and sends nothing by itself: a [Session]
// reads the peer's frames one at a time into an [Event] and appends what it owes the peer to a slice.
//
// # What is left out
//
// Push: a PUSH_PROMISE is an error, as SETTINGS_ENABLE_PUSH 0 says. Priorities are read and ignored. Our own header blocks use the
// static table and literals only, so that nothing has to be remembered from one to the next. The peer's may use a table of the
// default size, which [Decoder] keeps: a server cannot do without, for its peer has sent its first requests before it can have read
// that none is wanted.
//
// # Flow control
//
// A Session grants the peer the largest windows that there are. What it grants for a stream is never renewed: a stream carries
// one RPC frame, which is shorter. The connection's window is renewed when half of it is used up. The peer's own windows are the
// business of those who send: Session counts the connection's and reports changes of the streams'.
//
// # Memory
//
// In steady state nothing is allocated. A header block in several frames is put together in memory that a Session keeps.
package h2
