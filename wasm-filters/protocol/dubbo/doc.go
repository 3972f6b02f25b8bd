// Package dubbo reads Dubbo2, the wire format of Apache Dubbo's "dubbo" protocol. The frames in testdata are those of Dubbo
// 3.3.6.
//
// A frame is a header of 16 bytes and a body (org.apache.dubbo.remoting.exchange.codec.ExchangeCodec). All numbers are big
// endian:
//
//	da bb | 1 flags | 1 status | 8 id | 4 body length | body
//
// Of the flags, 80 says request, 40 two-way, 20 event, and the low five bits name the serialization of the body. The
// status is a response's. The id pairs a response with its request; it counts up from a random number. The length is
// an int32: a negative one, or one that overflows with the header added, is lost framing.
//
// # What is read
//
// The body of a request is a sequence of values (DubboCodec.encodeRequestData): Dubbo version, path, version, method,
// parameter descriptor, arguments, attachments. Decode reads the four strings before the descriptor:
//
//   - Service: the path, which is the interface's name, with the context path before it where the provider has one.
//   - Version: the service version; absent where the caller sent null, "0.0.0" where it has none.
//   - Method. A generic call is labelled by what is on the wire: "$invoke" or "$invokeAsync", not the method that its first
//     argument names; the echo test is "$echo". Rules and metrics name them so.
//
// The group, the calling application and the timeout are attachments, which come last: VisitAttachments needs the whole
// frame. It steps over the arguments by the number of parameters in the descriptor.
//
// The body of a response with status OK begins with an int (DubboCodec.encodeResponseData): 0 and 3 an exception that the
// business code threw, 1 and 4 a value, 2 and 5 null; from 3 on attachments follow. The body of any other is a string, and its
// outcome is in the status. A body that the client cannot read either is OutcomeBadResponse.
//
// # Serializations
//
// Hessian 2.0 (2), and JSONB of fastjson2 (23), which Dubbo 3.2 prefers where both sides have it. Any other is
// FlawSerialization for requests, which stay without a service; for responses the status tells the outcome all the same.
// A provider answers what it cannot read in the serialization that it prefers, whatever the request was in: the two sides of
// one connection may differ.
//
// In JSONB an attachment whose value has no place in package jsonb's table ends the visit with ErrSerialization, after
// what came before it.
//
// # Events
//
// A two-way event is a heartbeat, answered with the same id; a one-way event is the message "R" of a provider that shuts down
// (read-only), or "W", or a heartbeat that wants no answer. All are told by the header alone.
//
// # Bounds
//
// Each leading string has at most MaxName units (4 MaxName bytes in JSONB) and is in one piece: Dubbo's writer begins
// another chunk from 32768 characters on. What is longer, or in chunks, or no string at all is FlawMalformed, although
// Dubbo's reader would put chunks together and turn numbers into strings: no client writes so, but one that wants to be
// misread could. A rule that must not be evaded has to reject flawed requests. Arguments and attachments are within the bounds of
// package hessian2; a frame with more than those is FlawTooDeep.
package dubbo
