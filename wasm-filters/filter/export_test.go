package filter

// Held returns how many bytes the connection keeps of each side, and how many of them Envoy has not passed on.
func (c *Conn) Held() (kept, withheld [2]int) {
	for i := range c.sides {
		kept[i] = len(c.sides[i].hold)
		if c.sides[i].withheld {
			withheld[i] = kept[i]
		}
	}
	return kept, withheld
}

// Slots returns how many slots the in-flight tables have.
func (c *Conn) Slots() int { return len(c.inFlight[0].slots) + len(c.inFlight[1].slots) }
