package strict

import (
	"bytes"
	"slices"
	"strings"
	"unicode/utf8"
)

// A Setting is a key, named by its dotted path, and its value as TOML. Without a value the file does not have it.
type Setting struct{ Key, Value string }

// Amend returns the file with those settings replaced that differ between before and after, which have the same keys.
// It puts a new line below the setting before it. Decode the result to be sure of it.
func (d *Document) Amend(before, after []Setting) []byte {
	text := &Document{path: d.path, data: d.data}
	last := "" // of the settings so far that are in the file
	for i, s := range after {
		if s.Value != before[i].Value {
			text = text.with(s, last)
		}
		if s.Value != "" {
			last = s.Key
		}
	}
	return text.data
}

// with returns the file with a setting replaced, removed, or inserted below that of another key. Only the bytes of the
// value change, or whole lines, or a pair of an inline table.
func (d *Document) with(s Setting, below string) *Document {
	if s.Value == "" {
		return d.without(s.Key)
	}
	for _, e := range d.entries() {
		if e.path == s.Key && !e.header {
			return d.replace(e, s.Value).keepComments(d.lineStart(e.start), d.commentsIn(e))
		}
	}
	return d.without(s.Key).insert(s, below)
}

// replace returns the file with another value of a pair. A comment in a column of its own stays there if it can.
func (d *Document) replace(e entry, value string) *Document {
	old, rest := d.data[e.value:e.end], d.data[e.end:]
	spaces := len(rest) - len(bytes.TrimLeft(rest, " "))
	if spaces < 2 || spaces == len(rest) || rest[spaces] != '#' || bytes.IndexByte(old, '\n') >= 0 {
		return d.splice(e.value, e.end, value)
	}
	column := utf8.RuneCount(old) + spaces
	return d.splice(e.value, e.end+spaces, value+strings.Repeat(" ", max(2, column-utf8.RuneCountInString(value))))
}

// splice returns the file with the bytes from start to end replaced.
func (d *Document) splice(start, end int, text string) *Document {
	return &Document{path: d.path, data: slices.Concat(d.data[:start], []byte(text), d.data[end:])}
}

// without returns the file without a key, and without the table of that name. Comments on lines of their own stay.
func (d *Document) without(key string) *Document {
	for _, headers := range []bool{false, true} { // a pair must not fall to the table above its own
		for found := true; found; {
			found = false
			for _, e := range d.entries() {
				if e.header == headers && (e.path == key || strings.HasPrefix(e.path, key+".")) {
					d, found = d.cut(e), true
					break
				}
			}
		}
	}
	return d
}

// cut removes an entry: its lines, or in an inline table the pair with a comma.
func (d *Document) cut(e entry) *Document {
	if !e.inline {
		start := d.lineStart(e.start)
		return d.splice(start, d.lineEnd(e.end), "").keepComments(start, d.commentsIn(e))
	}
	const space = " \t\r\n"
	after := strings.TrimLeft(string(d.data[e.end:]), space)
	if rest, ok := strings.CutPrefix(after, ","); ok {
		return d.splice(e.start, len(d.data)-len(strings.TrimLeft(rest, space)), "")
	}
	before := strings.TrimRight(string(d.data[:e.start]), space)
	return d.splice(len(strings.TrimSuffix(before, ",")), e.end, "")
}

// insert adds a setting that the file does not have: where its table is, however that is written, or in a new one at
// the end.
func (d *Document) insert(s Setting, below string) *Document {
	entries := d.entries()
	var inside, beside *entry
	table, _ := parent(s.Key)
	for i, e := range entries {
		in, _ := parent(e.path)
		switch {
		case e.opens && strings.HasPrefix(s.Key, e.path+"."):
			inside = &entries[i] // the last is the innermost
		case e.header && e.path == table, !e.header && in == table && (beside == nil || beside.path != below):
			beside = &entries[i]
		}
	}
	switch {
	case inside != nil:
		return d.insertInside(*inside, entries, s)
	case beside != nil:
		return d.insertLine(d.lineEnd(beside.end), relative(s.Key, beside.table)+" = "+s.Value)
	case table == "":
		return d.insertLine(0, s.Key+" = "+s.Value)
	}
	return d.insertLine(len(d.data), "", "["+table+"]", relative(s.Key, table)+" = "+s.Value)
}
