package strict

import (
	"slices"
	"strings"
)

// A Setting is a key and its value as TOML, on a line of their own. Without a value the line is not there.
type Setting struct{ Key, Value string }

// Amend returns the file with the lines of those settings replaced that differ between before and after, which
// have the same keys. It keeps the comment that ends a line, and puts a new line below the setting before it. It
// assumes that a value stands on its key's line and has no "#" in it: decode the result to be sure.
func (d *Document) Amend(before, after []Setting) []byte {
	text := Document{path: d.path, data: d.data}
	last := "" // of the settings so far that are in the file
	for i, s := range after {
		if s.Value != before[i].Value {
			text.data = text.withLine(s, last)
		}
		if s.Value != "" {
			last = s.Key
		}
	}
	return text.data
}

// withLine returns the file with a setting's line in its place, or below that of another key.
func (d *Document) withLine(s Setting, below string) []byte {
	lines := strings.SplitAfter(string(d.data), "\n")
	line := s.Key + " = " + s.Value + "\n"
	at := d.line(s.Key)
	switch {
	case at == 0 && s.Value == "":
		return d.data
	case at == 0:
		at = d.line(below)
		if at > 0 {
			lines[at-1] = strings.TrimRight(lines[at-1], "\n") + "\n"
		}
		lines = slices.Insert(lines, at, line)
	case s.Value == "":
		lines = slices.Delete(lines, at-1, at)
	default:
		if _, comment, ok := strings.Cut(lines[at-1], "#"); ok {
			line = s.Key + " = " + s.Value + "  #" + strings.TrimRight(comment, "\r\n") + "\n"
		}
		lines[at-1] = line
	}
	return []byte(strings.Join(lines, ""))
}
