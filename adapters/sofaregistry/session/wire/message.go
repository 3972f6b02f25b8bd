package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// The messages of the protocol: com.alipay.sofa.registry.core.model for Hessian, their counterparts of
// com.alipay.sofa.registry.common.model.client.pb for Protobuf (files *.proto of registry-common-model).
const (
	modelPackage = "com.alipay.sofa.registry.core.model."
	protoPackage = "com.alipay.sofa.registry.common.model.client.pb."
	protoSuffix  = "Pb"

	eventRegister   = "REGISTER"
	eventUnregister = "UNREGISTER"
)

// The classes of the messages, without their package; see ClassName.
const (
	ClassSubscriber = "SubscriberRegister" // client: subscribe to an id, or no longer
	ClassPublisher  = "PublisherRegister"  // client: publish data under an id, or no longer
	ClassResponse   = "RegisterResponse"   // server: the answer to both
	ClassReceived   = "ReceivedData"       // server: a push
	ClassMulti      = "MultiReceivedData"  // server: a push of several segments
	ClassResult     = "Result"             // client: the answer to both
)

// Encoding is how messages are serialized.
type Encoding int

// The encodings.
const (
	Hessian  Encoding = iota // versions 5 and 6
	Protobuf                 // version 6
)

// Codec returns the code of the encoding in a frame.
func (e Encoding) Codec() byte {
	if e == Protobuf {
		return CodecProtobuf
	}
	return CodecHessian
}

// ClassName returns the Java name of a message.
func ClassName(e Encoding, class string) string {
	if e == Protobuf {
		return protoPackage + class + protoSuffix
	}
	return modelPackage + class
}

// MessageOf is the inverse of ClassName. The class tells the encoding.
func MessageOf(name string) (Encoding, string) {
	if class, ok := strings.CutPrefix(name, protoPackage); ok {
		return Protobuf, strings.TrimSuffix(class, protoSuffix)
	}
	return Hessian, strings.TrimPrefix(name, modelPackage)
}

// Scope says of which data centres and zones a subscriber hears (ScopeEnum).
type Scope string

// The scopes.
const (
	ScopeZone       Scope = "zone"       // the subscriber's zone only
	ScopeDataCenter Scope = "dataCenter" // all zones of the server's data centre
	ScopeGlobal     Scope = "global"     // all data centres that the server knows of
)

// ID names data in a registry.
type ID struct {
	DataID     string // for SOFARPC the service and its protocol: demo.HelloService:1.0@DEFAULT
	Group      string // for SOFARPC "SOFA"
	InstanceID string // of a tenant; DefaultInstance where there is one only
}

// DefaultInstance is the instance id that the server fills in where a client names none.
const DefaultInstance = "DEFAULT_INSTANCE_ID"

// separator joins the parts of a dataInfoId (DataInfo.DELIMITER).
const separator = "#@#"

// String returns the id as the server's pages have it, the dataInfoId: dataId#@#instanceId#@#group.
func (id ID) String() string {
	instance := id.InstanceID
	if instance == "" {
		instance = DefaultInstance
	}
	return id.DataID + separator + instance + separator + id.Group
}

// ParseID takes a dataInfoId apart. The dataId may contain the separator, the others may not.
func ParseID(s string) (id ID, ok bool) {
	rest, group, ok := cutLast(s, separator)
	if !ok || group == "" {
		return ID{}, false
	}
	dataID, instance, ok := cutLast(rest, separator)
	if !ok || instance == "" || dataID == "" {
		return ID{}, false
	}
	return ID{DataID: dataID, Group: group, InstanceID: instance}, true
}

func cutLast(s, sep string) (before, after string, ok bool) {
	for i := len(s) - len(sep); i >= 0; i-- {
		if s[i:i+len(sep)] == sep {
			return s[:i], s[i+len(sep):], true
		}
	}
	return s, "", false
}

// Push is what a session says of one ID in one segment. It is the whole of it: what is not in it is not there.
type Push struct {
	ID        ID
	Segment   string              // the data centre that the data is of
	Scope     Scope               // as subscribed
	Version   int64               // grows with each change; at most NoDatum where the server holds nothing under this id
	LocalZone string              // of the session server
	Zones     map[string][]string // by zone; what publishers said, one text for each, in the order of the wire

	Registrations []string // that the push is for
}

// NoDatum is the highest version of a push that says nothing but that the server knows nothing under an id, which may be because it
// has just started (ValueConstants.DEFAULT_NO_DATUM_VERSION).
const NoDatum = 1

// Register is what a client says: a SubscriberRegister or, with Data, a PublisherRegister.
type Register struct {
	ID           ID
	Registration string // unique, of the subscription or publication
	Zone         string
	Application  string
	Scope        Scope    // of a subscription
	Version      int64    // counts the changes of this registration
	Timestamp    int64    // ms since 1970, of the registration's begin on this connection
	Attributes   []string // keys and values in turn
	Remove       bool     // unregister
	Data         []string // of a publication
}

func (m *Register) event() string {
	if m.Remove {
		return eventUnregister
	}
	return eventRegister
}

// EncodeSubscriber writes a SubscriberRegister.
func EncodeSubscriber(e Encoding, m *Register) []byte {
	if e == Protobuf {
		b := protoText(nil, 1, string(m.Scope))
		return protoBytes(b, 2, m.protoBase())
	}
	var w hessianWriter
	w.object(0, ClassName(e, ClassSubscriber), append([]string{"scope", "acceptEncoding", "acceptMulti"}, baseFields...)...)
	w.text(string(m.Scope))
	w.null()
	w.bool(false)
	m.hessianBase(&w)
	return w.b
}

// EncodePublisher writes a PublisherRegister.
func EncodePublisher(e Encoding, m *Register) []byte {
	if e == Protobuf {
		var b []byte
		for _, d := range m.Data {
			b = protoBytes(b, 1, protoText(nil, 1, d))
		}
		return protoBytes(b, 2, m.protoBase())
	}
	var w hessianWriter
	w.object(0, ClassName(e, ClassPublisher), append([]string{"dataList"}, baseFields...)...)
	if m.Data == nil {
		w.null()
	} else {
		w.b = binary.BigEndian.AppendUint32(append(w.b, 'V', 'l'), uint32(len(m.Data)))
		for i, d := range m.Data {
			if i == 0 {
				w.object(1, ClassName(e, "DataBox"), "data")
			} else {
				w.b = append(w.b, 'o')
				w.int(1)
			}
			w.text(d)
		}
		w.b = append(w.b, 'z')
	}
	m.hessianBase(&w)
	return w.b
}

// baseFields are those of BaseRegister that a client sets.
var baseFields = []string{"instanceId", "zone", "appName", "dataId", "group", "registId", "eventType", "version", "timestamp", "attributes"}

func (m *Register) hessianBase(w *hessianWriter) {
	w.textOrNull(m.ID.InstanceID)
	w.textOrNull(m.Zone)
	w.textOrNull(m.Application)
	w.text(m.ID.DataID)
	w.text(m.ID.Group)
	w.text(m.Registration)
	w.text(m.event())
	w.long(m.Version)
	w.long(m.Timestamp)
	w.pairs(m.Attributes)
}

// protoBase writes a BaseRegisterPb.
func (m *Register) protoBase() []byte {
	b := protoText(nil, 1, m.ID.InstanceID)
	b = protoText(b, 2, m.Zone)
	b = protoText(b, 3, m.Application)
	b = protoText(b, 4, m.ID.DataID)
	b = protoText(b, 5, m.ID.Group)
	b = protoText(b, 7, m.Registration)
	b = protoText(b, 12, m.event())
	b = protoVarint(b, 13, uint64(m.Version))
	b = protoVarint(b, 14, uint64(m.Timestamp))
	for i := 0; i+1 < len(m.Attributes); i += 2 {
		b = protoBytes(b, 15, protoText(protoText(nil, 1, m.Attributes[i]), 2, m.Attributes[i+1]))
	}
	return b
}

// EncodeResult writes the answer to a push.
func EncodeResult(e Encoding, success bool, message string) []byte {
	if e == Protobuf {
		var b []byte
		if success {
			b = protoVarint(b, 1, 1)
		}
		return protoText(b, 2, message)
	}
	var w hessianWriter
	w.object(0, ClassName(e, ClassResult), "success", "message")
	w.bool(success)
	w.textOrNull(message)
	return w.b
}

// Response is a RegisterResponse.
type Response struct {
	Success      bool
	Registration string
	Version      int64 // the registration's
	Refused      bool  // for good
	Message      string
}

// DecodeResponse reads a RegisterResponse.
func DecodeResponse(e Encoding, b []byte) (m Response, err error) {
	if e == Protobuf {
		err = protoFields(b, func(n protowire.Number, v uint64, s []byte) error {
			switch n {
			case 1:
				m.Success = v != 0
			case 2:
				m.Registration = string(s)
			case 3:
				m.Version = int64(v)
			case 4:
				m.Refused = v != 0
			case 5:
				m.Message = string(s)
			}
			return nil
		})
		return m, err
	}
	o, err := hessianObject(b, ClassResponse)
	if err != nil {
		return m, err
	}
	m.Success, _ = o.field("success").(bool)
	m.Registration, _ = o.field("registId").(string)
	m.Version, _ = o.field("version").(int64)
	m.Refused, _ = o.field("refused").(bool)
	m.Message, _ = o.field("message").(string)
	return m, nil
}

func hessianObject(b []byte, class string) (*object, error) {
	v, err := readHessian(b)
	if err != nil {
		return nil, err
	}
	o, ok := v.(*object)
	if !ok || o.class.name != modelPackage+class {
		return nil, fmt.Errorf("it is no %s", class)
	}
	return o, nil
}

var (
	errNoID      = errors.New("it names no data")
	errShape     = errors.New("a field in it is of the wrong type")
	errEncoding  = errors.New("it is compressed, which was not asked for")
	errWireType  = errors.New("a field in it has an unexpected wire type")
	errRepeats   = errors.New("it repeats more by reference than it says")
	errProtoSize = fmt.Errorf("it has more than %d fields", maxValues)
)

// DecodePush reads a ReceivedData, or a MultiReceivedData, which is one Push for each segment.
func DecodePush(e Encoding, multi bool, b []byte) ([]Push, error) {
	if e == Protobuf {
		return decodeProtoPush(multi, b)
	}
	class := ClassReceived
	if multi {
		class = ClassMulti
	}
	o, err := hessianObject(b, class)
	if err != nil {
		return nil, err
	}
	p, err := pushHead(o)
	if err != nil {
		return nil, err
	}
	budget := 4 * len(b) // of what is taken over: references must not make much out of little
	if !multi {
		p.Segment, _ = o.field("segment").(string)
		p.Version, _ = o.field("version").(int64)
		if p.Zones, err = zonesOf(o.field("data"), &budget); err != nil {
			return nil, err
		}
		return []Push{p}, nil
	}
	m, ok := o.field("multiData").(*mapping)
	if !ok {
		return nil, errShape
	}
	var out []Push
	for i, k := range m.keys {
		segment, ok1 := k.(string)
		s, ok2 := m.values[i].(*object)
		if !ok1 || !ok2 {
			return nil, errShape
		}
		if z, _ := s.field("zipData").(blob); z != "" {
			return nil, errEncoding
		}
		one := p
		one.Segment = segment
		one.Version, _ = s.field("version").(int64)
		if one.Zones, err = zonesOf(s.field("unzipData"), &budget); err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	return out, nil
}

// PushBeginning reads the id out of the beginning of a push, as far as it goes.
func PushBeginning(e Encoding, b []byte) ID {
	if e == Protobuf {
		var p Push
		_ = protoFields(b, func(n protowire.Number, _ uint64, s []byte) error { // it must end too early
			p.protoHead(n, s)
			return nil
		})
		return p.ID
	}
	o := readHessianBeginning(b)
	if o == nil {
		return ID{}
	}
	p, _ := pushHead(o)
	return p.ID
}

func pushHead(o *object) (p Push, err error) {
	p.ID.DataID, _ = o.field("dataId").(string)
	p.ID.Group, _ = o.field("group").(string)
	p.ID.InstanceID, _ = o.field("instanceId").(string)
	if p.ID.DataID == "" || p.ID.Group == "" {
		return p, errNoID
	}
	scope, _ := o.field("scope").(string)
	p.Scope = Scope(scope)
	p.LocalZone, _ = o.field("localZone").(string)
	if l, ok := o.field("subscriberRegistIds").(*list); ok {
		for _, v := range l.items {
			s, ok := v.(string)
			if !ok {
				return p, errShape
			}
			p.Registrations = append(p.Registrations, s)
		}
	}
	return p, nil
}

// zonesOf reads a map of zones to lists of DataBox. A box without data is one that the publisher left empty; it says nothing. Each zone
// and box takes its length and one more from the budget.
func zonesOf(v any, budget *int) (map[string][]string, error) {
	if v == nil {
		return nil, nil
	}
	m, ok := v.(*mapping)
	if !ok {
		return nil, errShape
	}
	zones := make(map[string][]string, min(len(m.keys), 1024))
	for i, k := range m.keys {
		if *budget--; *budget < 0 {
			return nil, errRepeats
		}
		zone, ok := k.(string)
		if !ok {
			return nil, errShape
		}
		boxes, ok := m.values[i].(*list)
		if !ok && m.values[i] != nil {
			return nil, errShape
		}
		if !ok {
			continue
		}
		var texts []string
		for _, b := range boxes.items {
			if *budget--; *budget < 0 {
				return nil, errRepeats
			}
			if b == nil {
				continue
			}
			box, ok := b.(*object)
			if !ok {
				return nil, errShape
			}
			switch data := box.field("data").(type) {
			case nil:
			case string:
				*budget -= len(data)
				texts = append(texts, data)
			default:
				return nil, errShape
			}
		}
		if len(texts) > 0 {
			zones[zone] = append(zones[zone], texts...)
		}
	}
	return zones, nil
}

// protoHead takes a field that ReceivedDataPb and MultiReceivedDataPb have in common.
func (p *Push) protoHead(n protowire.Number, s []byte) {
	switch n {
	case 1:
		p.ID.DataID = string(s)
	case 2:
		p.ID.Group = string(s)
	case 3:
		p.ID.InstanceID = string(s)
	}
}

func decodeProtoPush(multi bool, b []byte) ([]Push, error) {
	var p Push
	var out []Push
	zones := map[string][]string{}
	err := protoFields(b, func(n protowire.Number, v uint64, s []byte) error {
		p.protoHead(n, s)
		if multi {
			switch n {
			case 4:
				p.Scope = Scope(s)
			case 5:
				p.Registrations = append(p.Registrations, string(s))
			case 7:
				p.LocalZone = string(s)
			case 8:
				return protoEntry(s, func(key string, value []byte) error {
					one, err := decodeProtoSegment(value)
					one.Segment = key
					out = append(out, one)
					return err
				})
			}
			return nil
		}
		switch n {
		case 4:
			p.Segment = string(s)
		case 5:
			p.Scope = Scope(s)
		case 6:
			p.Registrations = append(p.Registrations, string(s))
		case 7:
			return protoZone(zones, s)
		case 8:
			p.Version = int64(v)
		case 9:
			p.LocalZone = string(s)
		case 10, 11: // encoding and body
			if len(s) > 0 {
				return errEncoding
			}
		}
		return nil
	})
	if err == nil && (p.ID.DataID == "" || p.ID.Group == "") {
		err = errNoID
	}
	if err != nil {
		return nil, err
	}
	if !multi {
		p.Zones = zones
		return []Push{p}, nil
	}
	for i := range out {
		segment, version, zones := out[i].Segment, out[i].Version, out[i].Zones
		out[i] = p
		out[i].Segment, out[i].Version, out[i].Zones = segment, version, zones
	}
	return out, nil
}

// decodeProtoSegment reads a MultiSegmentDataPb.
func decodeProtoSegment(b []byte) (p Push, err error) {
	p.Zones = map[string][]string{}
	err = protoFields(b, func(n protowire.Number, v uint64, s []byte) error {
		switch n {
		case 2, 4: // zipData and its encoding
			if len(s) > 0 {
				return errEncoding
			}
		case 3:
			return protoZone(p.Zones, s)
		case 5:
			p.Version = int64(v)
		}
		return nil
	})
	return p, err
}

// protoZone reads an entry of a map of zones to DataBoxesPb.
func protoZone(zones map[string][]string, b []byte) error {
	return protoEntry(b, func(zone string, boxes []byte) error {
		return protoFields(boxes, func(n protowire.Number, _ uint64, box []byte) error {
			if n != 1 {
				return nil
			}
			return protoFields(box, func(n protowire.Number, _ uint64, data []byte) error {
				if n == 1 && len(data) > 0 {
					zones[zone] = append(zones[zone], string(data))
				}
				return nil
			})
		})
	})
}

func protoEntry(b []byte, f func(key string, value []byte) error) error {
	var key string
	var value []byte
	err := protoFields(b, func(n protowire.Number, _ uint64, s []byte) error {
		switch n {
		case 1:
			key = string(s)
		case 2:
			value = s
		}
		return nil
	})
	if err != nil {
		return err
	}
	return f(key, value)
}

// protoFields calls f for each field: v is the value of a varint, s of a text, bytes or message. What is of another wire type is
// passed over.
func protoFields(b []byte, f func(n protowire.Number, v uint64, s []byte) error) error {
	for count := 0; len(b) > 0; count++ {
		if count > maxValues {
			return errProtoSize
		}
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		var v uint64
		var s []byte
		switch typ {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			s, n = protowire.ConsumeBytes(b)
		case protowire.StartGroupType, protowire.EndGroupType:
			return errWireType
		default:
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return protowire.ParseError(n)
			}
			b = b[n:]
			continue
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if err := f(num, v, s); err != nil {
			return err
		}
	}
	return nil
}

func protoText(b []byte, n protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), s)
}

func protoBytes(b []byte, n protowire.Number, s []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), s)
}

func protoVarint(b []byte, n protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
}
