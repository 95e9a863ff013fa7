package strict

import (
	"bytes"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// An entry is the line of a [table], or a pair key = value, including those in inline tables.
type entry struct {
	path       string // dotted
	table      string // to which a key here is relative: that of the line above, or the inline table around it
	start      int    // offset of the key
	value, end int    // offsets of the value and of what follows it
	header     bool   // a [table]
	inline     bool   // in an inline table
	opens      bool   // its value is an inline table
}

// entries returns what is in the file, in order. It does not look into lists.
func (d *Document) entries() []entry {
	var found []entry
	p := unstable.Parser{}
	p.Reset(d.data)
	table := ""
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind == unstable.KeyValue {
			found = d.pairs(found, e, entry{table: table})
			continue
		}
		path, first, _ := keyOf(e)
		table = path
		found = append(found, entry{path: path, table: path, start: first, end: first, header: true})
	}
	return found
}

// pairs appends a pair that is where in says, and the pairs in its inline table.
func (d *Document) pairs(found []entry, e *unstable.Node, in entry) []entry {
	path, start, end := keyOf(e)
	in.path, in.start, in.end = joined(in.table, path), start, int(e.Raw.Offset+e.Raw.Length)
	_, value, _ := bytes.Cut(d.data[end:in.end], []byte("="))
	in.value = in.end - len(bytes.TrimLeft(value, " \t"))
	in.opens = e.Value().Kind == unstable.InlineTable
	found = append(found, in)
	if in.opens {
		for it := e.Value().Children(); it.Next(); {
			found = d.pairs(found, it.Node(), entry{table: in.path, inline: true})
		}
	}
	return found
}

// keyOf returns the dotted key of a pair or a [table], and where it starts and ends.
func keyOf(e *unstable.Node) (path string, start, end int) {
	start = -1
	for it := e.Key(); it.Next(); {
		n := it.Node()
		if start < 0 {
			start = int(n.Raw.Offset)
		}
		path, end = joined(path, string(n.Data)), int(n.Raw.Offset+n.Raw.Length)
	}
	return path, start, end
}

func joined(table, key string) string {
	if table == "" {
		return key
	}
	return table + "." + key
}

// parent splits a dotted key into its table and the last part.
func parent(key string) (table, last string) {
	dot := strings.LastIndexByte(key, '.')
	return key[:max(dot, 0)], key[dot+1:]
}

// relative returns a dotted key as it is written in one of its tables.
func relative(key, table string) string {
	return strings.TrimPrefix(strings.TrimPrefix(key, table), ".")
}

func (d *Document) lineStart(at int) int { return bytes.LastIndexByte(d.data[:at], '\n') + 1 }

// lineEnd returns where the next line starts.
func (d *Document) lineEnd(at int) int {
	if n := bytes.IndexByte(d.data[at:], '\n'); n >= 0 {
		return at + n + 1
	}
	return len(d.data)
}

// newLine returns what ends the line before an offset, or would end it.
func (d *Document) newLine(at int) string {
	if bytes.HasSuffix(d.data[:at], []byte("\r\n")) {
		return "\r\n"
	}
	return "\n"
}

// insertLine inserts lines at the start of a line, or at the end of a file: there no second empty line.
func (d *Document) insertLine(at int, lines ...string) *Document {
	nl, text := d.newLine(at), ""
	if at > 0 && d.data[at-1] != '\n' {
		text = nl
	}
	if lines[0] == "" && bytes.HasSuffix(d.data[:at], []byte(nl+nl)) {
		lines = lines[1:]
	}
	for _, line := range lines {
		text += line + nl
	}
	return d.splice(at, at, text)
}

// insertInside inserts a setting into an inline table.
func (d *Document) insertInside(table entry, entries []entry, s Setting) *Document {
	pair := relative(s.Key, table.path) + " = " + s.Value
	end := 0
	for _, e := range entries {
		if e.inline && e.table == table.path {
			end = e.end
		}
	}
	if end == 0 {
		return d.splice(table.value, table.end, "{ "+pair+" }")
	}
	return d.splice(end, end, ", "+pair)
}

// commentsIn returns the comments within a value of several lines.
func (d *Document) commentsIn(e entry) []string {
	if e.header || e.inline {
		return nil
	}
	p := unstable.Parser{KeepComments: true}
	p.Reset(append([]byte("x = "), d.data[e.value:e.end]...))
	p.NextExpression()
	return commentsBelow(p.Expression().Value())
}

func commentsBelow(n *unstable.Node) []string {
	var found []string
	for it := n.Children(); it.Next(); {
		if it.Node().Kind == unstable.Comment {
			found = append(found, string(it.Node().Data))
		}
		found = append(found, commentsBelow(it.Node())...)
	}
	return found
}

// keepComments inserts comments at the start of a line, if there are any.
func (d *Document) keepComments(at int, comments []string) *Document {
	if len(comments) == 0 {
		return d
	}
	return d.insertLine(at, comments...)
}
