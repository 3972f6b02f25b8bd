// Package bolt reads SOFA Bolt, the wire format of SOFARPC and SOFARegistry, in both its versions.
//
// The layouts are those of com.alipay.sofa:bolt 1.6 (RpcCommandDecoder, RpcCommandDecoderV2). All numbers are big endian:
//
//	v1           1 proto=1 | 1 type | 2 command | 1 version | 4 id | 1 codec | …
//	v2           1 proto=2 | 1 ver1 | 1 type | 2 command | 1 version | 4 id | 1 codec | 1 switch | …
//	… request    4 timeout | 2 class length | 2 header length | 4 content length | class, header, content [| 4 CRC]
//	… response   2 status  | 2 class length | 2 header length | 4 content length | class, header, content [| 4 CRC]
//
// type is 0 for a response, 1 for a request, 2 for a one-way request; command is 0 for a heartbeat and its answer, 1 for a
// request, 2 for a response, and 100 for MOSN's GOAWAY. The CRC-32 (IEEE) is there where ver1 is 2 and bit 0 of switch is
// set; it covers the whole frame before it and is not counted in any length. Each frame tells its own version: a
// peer may send a v2 frame on a connection that began with v1, and Bolt's server answers it in v1.
//
// What a server of Bolt 1.6.10 does with frames that are none was tried: an unknown type or command (GOAWAY is one to it), a
// switch above 127 and a CRC that does not match make it close the connection; for any other ver1 than 1 and 2 it waits
// for ever; a length with the sign bit counts as zero. Decode takes all but the unknown command and the CRC for lost framing.
//
// # What is read
//
// Everything comes from the header section, a sequence of (int32 length, bytes) pairs, whatever the serialization of the
// content. As in SOFARPC's own reader (SimpleMapSerializer), a negative length is null, a pair with a null is skipped, and of
// two equal keys the later holds.
//
//   - Service, Version, Group: "service", or where it is absent or blank "sofa_head_target_service": the order in which a
//     provider looks (SofaRpcSerialization.setRequestPropertiesWithHeaderInfo), whatever the content says. The form is
//     interface:version[:uniqueId]; Group is the uniqueId. An absent version means [DefaultVersion].
//   - Method: "sofa_head_method_name".
//   - Caller: "app", which is what SOFARPC's provider shows as the remote application; else
//     "rpc_trace_context.sofaCallerApp", which other clients send.
//   - CallerIP: "rpc_trace_context.sofaCallerIp". SOFARPC 5.13 does not send it: then the connection's address has to do.
//   - TimeoutMillis: the fixed header.
//
// A request whose class is not SOFARPC's SofaRequest comes from a program that uses Bolt by itself (SOFARegistry does).
// It has neither service nor method; Service is then the request's class name, such as
// com.alipay.sofa.registry.core.model.PublisherRegister, by which Bolt's server chooses the processor. The header section of such a
// frame is the program's own: it is read if it happens to be pairs, and is no flaw if it is not.
//
// # Responses
//
// Status tells the outcome, and for status 0 the header "sofa_head_response_error": SOFARPC sets it to "true" where the
// business code threw, and also where the provider's framework failed before it (no such service, a filter that threw). The
// first byte of a SofaResponse in Hessian after its class definition, isError, tells these apart: OutcomeException or
// OutcomeError. In any other serialization both are OutcomeException.
//
// # CRC
//
// Decode does not check the CRC: it sees the beginning of a frame, long before its end, and the receiving peer checks it
// in any case. Tools that hold a whole frame call [VerifyCRC].
package bolt
