package bolt

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/isthmus-mesh/isthmus/wasm-filters/protocol"
)

var _ protocol.Relayer = Codec{}

// SetID writes the lower 32 bits of the id into the header, and corrects the CRC if there is one.
func (c Codec) SetID(b []byte, f *protocol.Frame, id uint64) {
	at := 5
	if f.Variant == V2 {
		at = 6
	}
	if !c.Summed(f) || f.Len < crcLen || uint64(len(b)) < f.Len {
		binary.BigEndian.PutUint32(b[at:], uint32(id))
		return
	}
	end := f.Len - crcLen
	sum := b[end:f.Len]
	// What was wrong with the CRC stays wrong: the difference is kept.
	wrong := binary.BigEndian.Uint32(sum) ^ crc32.ChecksumIEEE(b[:end])
	binary.BigEndian.PutUint32(b[at:], uint32(id))
	binary.BigEndian.PutUint32(sum, wrong^crc32.ChecksumIEEE(b[:end]))
}

// Summed tells whether the frame ends in a CRC.
func (Codec) Summed(f *protocol.Frame) bool {
	return f.Variant == V2 && f.Flags&flagTrailer == flagTrailer
}

// AppendAck appends what RpcHeartBeatProcessor answers: a response without class, headers and content.
func (Codec) AppendAck(dst []byte, hb *protocol.Frame) []byte {
	codec := hb.Serialization
	start := len(dst)
	dst = appendCommand(dst, hb, typeResponse, cmdHeartbeat, codec)
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) // status, and three lengths of nothing
	return finish(dst, hb, start, len(dst))
}
