package filter

// Flush brings what has been counted to the host at once, which Tick does once a second: for tools that look at what single calls do.
func (p *Plugin) Flush() { p.rt.flush() }
