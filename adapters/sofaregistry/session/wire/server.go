package wire

import (
	"encoding/binary"
	"maps"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// What follows is the server's side of the protocol: what fakes and tools need.

// DecodeRegister reads a SubscriberRegister or a PublisherRegister.
func DecodeRegister(e Encoding, publisher bool, b []byte) (m Register, err error) {
	if e == Protobuf {
		err = protoFields(b, func(n protowire.Number, _ uint64, s []byte) error {
			switch {
			case n == 2:
				return m.readProtoBase(s)
			case n == 1 && publisher:
				m.Data = append(m.Data, "")
				return protoFields(s, func(n protowire.Number, _ uint64, s []byte) error {
					if n == 1 {
						m.Data[len(m.Data)-1] = string(s)
					}
					return nil
				})
			case n == 1:
				m.Scope = Scope(s)
			}
			return nil
		})
	} else {
		err = m.readHessian(publisher, b)
	}
	if err == nil && (m.ID.DataID == "" || m.ID.Group == "") {
		err = errNoID
	}
	return m, err
}

func (m *Register) readHessian(publisher bool, b []byte) error {
	class := ClassSubscriber
	if publisher {
		class = ClassPublisher
	}
	o, err := hessianObject(b, class)
	if err != nil {
		return err
	}
	text := func(field string) string {
		s, _ := o.field(field).(string)
		return s
	}
	m.ID = ID{DataID: text("dataId"), Group: text("group"), InstanceID: text("instanceId")}
	m.Registration, m.Zone, m.Application, m.Scope = text("registId"), text("zone"), text("appName"), Scope(text("scope"))
	m.Remove = text("eventType") == eventUnregister
	m.Version, _ = o.field("version").(int64)
	m.Timestamp, _ = o.field("timestamp").(int64)
	if a, ok := o.field("attributes").(*mapping); ok {
		for i, k := range a.keys {
			key, _ := k.(string)
			value, _ := a.values[i].(string)
			m.Attributes = append(m.Attributes, key, value)
		}
	}
	budget := 4 * len(b)
	zones, err := zonesOf(&mapping{keys: []any{""}, values: []any{o.field("dataList")}}, &budget)
	m.Data = zones[""]
	return err
}

func (m *Register) readProtoBase(b []byte) error {
	return protoFields(b, func(n protowire.Number, v uint64, s []byte) error {
		switch n {
		case 1:
			m.ID.InstanceID = string(s)
		case 2:
			m.Zone = string(s)
		case 3:
			m.Application = string(s)
		case 4:
			m.ID.DataID = string(s)
		case 5:
			m.ID.Group = string(s)
		case 7:
			m.Registration = string(s)
		case 12:
			m.Remove = string(s) == eventUnregister
		case 13:
			m.Version = int64(v)
		case 14:
			m.Timestamp = int64(v)
		case 15:
			return protoEntry(s, func(key string, value []byte) error {
				m.Attributes = append(m.Attributes, key, string(value))
				return nil
			})
		}
		return nil
	})
}

// EncodeResponse writes a RegisterResponse.
func EncodeResponse(e Encoding, m Response) []byte {
	if e == Protobuf {
		b := protoBool(nil, 1, m.Success)
		b = protoText(b, 2, m.Registration)
		b = protoVarint(b, 3, uint64(m.Version))
		b = protoBool(b, 4, m.Refused)
		return protoText(b, 5, m.Message)
	}
	var w hessianWriter
	w.object(0, ClassName(e, ClassResponse), "success", "registId", "version", "refused", "message")
	w.bool(m.Success)
	w.text(m.Registration)
	w.long(m.Version)
	w.bool(m.Refused)
	w.textOrNull(m.Message)
	return w.b
}

// EncodePush writes a ReceivedData. Equal pushes are equal bytes.
func EncodePush(e Encoding, p *Push) []byte {
	zones := slices.Sorted(maps.Keys(p.Zones))
	if e == Protobuf {
		b := protoText(nil, 1, p.ID.DataID)
		b = protoText(b, 2, p.ID.Group)
		b = protoText(b, 3, p.ID.InstanceID)
		b = protoText(b, 4, p.Segment)
		b = protoText(b, 5, string(p.Scope))
		for _, r := range p.Registrations {
			b = protoBytes(b, 6, []byte(r))
		}
		for _, z := range zones {
			var boxes []byte
			for _, d := range p.Zones[z] {
				boxes = protoBytes(boxes, 1, protoText(nil, 1, d))
			}
			b = protoBytes(b, 7, protoBytes(protoText(nil, 1, z), 2, boxes))
		}
		b = protoVarint(b, 8, uint64(p.Version))
		return protoText(b, 9, p.LocalZone)
	}
	var w hessianWriter
	w.object(0, ClassName(e, ClassReceived), "dataId", "group", "instanceId", "segment", "scope", "version", "localZone", "subscriberRegistIds", "data")
	w.text(p.ID.DataID)
	w.text(p.ID.Group)
	w.textOrNull(p.ID.InstanceID)
	w.text(p.Segment)
	w.text(string(p.Scope))
	w.long(p.Version)
	w.textOrNull(p.LocalZone)
	w.texts(p.Registrations)
	w.b = append(w.b, 'M')
	boxes := false
	for _, z := range zones {
		w.text(z)
		w.b = append(w.b, 'V', 'l')
		w.b = binary.BigEndian.AppendUint32(w.b, uint32(len(p.Zones[z])))
		for _, d := range p.Zones[z] {
			if !boxes {
				w.object(1, ClassName(e, "DataBox"), "data")
				boxes = true
			} else {
				w.b = append(w.b, 'o')
				w.int(1)
			}
			w.text(d)
		}
		w.b = append(w.b, 'z')
	}
	w.b = append(w.b, 'z')
	return w.b
}

// DecodeResult reads the answer to a push.
func DecodeResult(e Encoding, b []byte) (success bool, message string, err error) {
	if e == Protobuf {
		err = protoFields(b, func(n protowire.Number, v uint64, s []byte) error {
			switch n {
			case 1:
				success = v != 0
			case 2:
				message = string(s)
			}
			return nil
		})
		return success, message, err
	}
	o, err := hessianObject(b, ClassResult)
	if err != nil {
		return false, "", err
	}
	success, _ = o.field("success").(bool)
	message, _ = o.field("message").(string)
	return success, message, nil
}

func protoBool(b []byte, n protowire.Number, v bool) []byte {
	if !v {
		return b
	}
	return protoVarint(b, n, 1)
}
