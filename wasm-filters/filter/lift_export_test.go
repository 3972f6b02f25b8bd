package filter

// SetNextStream lets a lifted connection go on with this stream, as if there had been as many before.
func (c *Conn) SetNextStream(id uint32) { c.relay.nextID = id }
