// Package dubbo reads Dubbo2, the wire format of Apache Dubbo's "dubbo" protocol.
package dubbo
