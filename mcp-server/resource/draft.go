package resource

import (
	"maps"
	"slices"
	"sync"
)

// Draft is a Set in the making, which resources enter, change in and leave. A Set can be made of it at any moment, at the cost of what has
// changed since the last one. The zero value is empty. Its methods must not be called at the same time; what Freeze returns is
// independent of them.
type Draft struct {
	chapters map[Type]*chapter
	pending  map[ID]*item // nil: it leaves
}

// chapter is what a Draft holds of one type. It is immutable, and its section is made when it is first asked for.
type chapter struct {
	of    Type
	items []*item // sorted by namespace and name, never none

	once    sync.Once
	section *section
	err     error
}

// item is a resource whose encoding is made when it is first asked for.
type item struct {
	id ID

	once     sync.Once
	resource Resource // zero once it is encoded
	entry    *Entry
	err      error
}

// Put adds a resource, or replaces the one of its name. It takes over the resource: its body and its maps must not be changed afterwards.
func (d *Draft) Put(r Resource) { d.note(r.ID(), &item{id: r.ID(), resource: r}) }

// Remove takes a resource out, if it is in.
func (d *Draft) Remove(id ID) { d.note(id, nil) }

func (d *Draft) note(id ID, it *item) {
	if d.pending == nil {
		d.pending = map[ID]*item{}
	}
	d.pending[id] = it
}

// Freeze returns what makes a Set of all that the Draft holds now. It may be called from any goroutine, and encodes what no earlier one
// has. Its error is that of NewSet.
func (d *Draft) Freeze() func() (Set, error) {
	by := map[Type][]ID{}
	for id := range d.pending {
		by[id.Type] = append(by[id.Type], id)
	}
	for t, ids := range by {
		slices.SortFunc(ids, ID.compare)
		var had []*item
		if c := d.chapters[t]; c != nil {
			had = c.items
		}
		items := make([]*item, 0, len(had)+len(ids))
		for _, id := range ids {
			i, found := slices.BinarySearchFunc(had, id, func(it *item, id ID) int { return it.id.compare(id) })
			items, had = append(items, had[:i]...), had[i:]
			if found {
				had = had[1:]
			}
			if it := d.pending[id]; it != nil {
				items = append(items, it)
			}
		}
		items = append(items, had...)
		if d.chapters == nil {
			d.chapters = map[Type]*chapter{}
		}
		if len(items) > 0 {
			d.chapters[t] = &chapter{of: t, items: items}
		} else {
			delete(d.chapters, t)
		}
	}
	d.pending = nil
	chapters := slices.Collect(maps.Values(d.chapters))
	return func() (Set, error) {
		sections := make([]*section, len(chapters))
		for i, c := range chapters {
			var err error
			if sections[i], err = c.encode(); err != nil {
				return Set{}, err
			}
		}
		return ofSections(sections), nil
	}
}

func (c *chapter) encode() (*section, error) {
	c.once.Do(func() {
		entries := make([]*Entry, len(c.items))
		for i, it := range c.items {
			if entries[i], c.err = it.encode(); c.err != nil {
				return
			}
		}
		c.section = newSection(c.of, entries)
	})
	return c.section, c.err
}

func (i *item) encode() (*Entry, error) {
	i.once.Do(func() {
		i.entry, i.err = newEntry(i.resource)
		i.resource = Resource{}
	})
	return i.entry, i.err
}
