package strict

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2/unstable"

	"sallyport/keys/place"
)

// A visitor is called for every key of a document, in order. In the path, a table in a list has its index:
// "knock_ports.0.port". Tables have no value. It returns false to skip what is below the key.
type visitor func(path []string, key, value *unstable.Node) bool

// walk parses the document and visits its keys.
func (d *Document) walk(visit visitor) error {
	p := unstable.Parser{}
	p.Reset(d.data)
	var table []string
	skip := false
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table, skip = visitKey(nil, e, e, visit)
		case unstable.KeyValue:
			if !skip {
				visitValue(table, e, visit)
			}
		}
	}
	return p.Error()
}

// visitKey visits each part of a dotted key, the last one with its value. It returns the whole path, and false to skip
// what is below.
func visitKey(path []string, e, value *unstable.Node, visit visitor) ([]string, bool) {
	path = path[:len(path):len(path)]
	for it := e.Key(); it.Next(); {
		node := it.Node()
		path = append(path, string(node.Data))
		var v *unstable.Node
		if it.IsLast() {
			v = value
		}
		if !visit(path, node, v) {
			return path, true
		}
	}
	return path, false
}

func visitValue(path []string, e *unstable.Node, visit visitor) {
	path, skip := visitKey(path, e, e.Value(), visit)
	if !skip {
		visitInside(path, e.Value(), visit)
	}
}

// visitInside visits the keys of inline tables, including those in lists.
func visitInside(path []string, value *unstable.Node, visit visitor) {
	n := 0
	for it := value.Children(); it.Next(); n++ {
		if value.Kind == unstable.InlineTable {
			visitValue(path, it.Node(), visit)
			continue
		}
		visitInside(append(path[:len(path):len(path)], strconv.Itoa(n)), it.Node(), visit)
	}
}

// line returns the line of a key, or 0. It parses the document again: only errors need it.
func (d *Document) line(key string) int {
	found := 0
	d.walk(func(path []string, node, _ *unstable.Node) bool {
		if found == 0 && strings.Join(path, ".") == key {
			found = d.lineOf(node)
		}
		return true
	})
	return found
}

func (d *Document) lineOf(node *unstable.Node) int {
	line := 1
	for _, b := range d.data[:node.Raw.Offset] {
		if b == '\n' {
			line++
		}
	}
	return line
}

// check compares the document with the struct that it will be decoded into. The decoder would find most problems too,
// but one at a time, in Go's terms, ignoring the case of keys, and quoting values.
func (d *Document) check(dst any, s Schema) error {
	c := checker{doc: d, root: reflect.TypeOf(dst).Elem(), schema: s}
	if err := d.walk(c.visit); err != nil {
		return d.syntaxAt(err)
	}
	if c.version == "" {
		c.problems = append(c.problems, d.Problem("version", "missing: version = %d", Version))
	}
	if c.version != "" && c.version != strconv.Itoa(Version) {
		// The other problems probably come from the other version.
		return d.Problem("version", "this program reads version %d of the file", Version)
	}
	return errors.Join(c.problems...)
}

func (d *Document) syntaxAt(err error) error {
	e := &place.FileError{File: d.path, Text: "not valid TOML"}
	var at *unstable.ParserError
	if errors.As(err, &at) {
		offset := cap(d.data) - cap(at.Highlight)
		e.Line = d.lineOf(&unstable.Node{Raw: unstable.Range{Offset: uint32(offset)}})
		e.Text += ": " + wordsOnly(at.Message)
	}
	return e
}

// A Schema caches the keys of structs: finding them is most of the cost of decoding.
type Schema map[reflect.Type]map[string]reflect.Type

type checker struct {
	doc      *Document
	root     reflect.Type
	schema   Schema
	version  string
	problems []error
}

func (c *checker) add(path []string, node *unstable.Node, text, suggestion string) {
	c.problems = append(c.problems, &place.FileError{
		File: c.doc.path, Line: c.doc.lineOf(node), Key: printable(path), Text: text, Suggestion: suggestion,
	})
}

func (c *checker) visit(path []string, key, value *unstable.Node) bool {
	parent := c.root
	for _, part := range path[:len(path)-1] {
		parent = c.schema.child(parent, part) // known: below an unknown key nothing is visited
	}
	field := c.schema.child(parent, path[len(path)-1])
	if field == nil {
		text, suggestion := unknown(c.root, parent, path)
		c.add(path, key, text, suggestion)
		return false
	}
	if len(path) == 1 && path[0] == "version" && value != nil {
		c.version = string(value.Data)
	}
	if want := mismatch(field, value); want != "" {
		c.add(path, key, want, "")
		return false
	}
	return true
}

// child is the type of a key's value in a table of type t; nil if t has no such key.
func (s Schema) child(t reflect.Type, key string) reflect.Type {
	switch t.Kind() {
	case reflect.Map, reflect.Slice:
		return pointedTo(t.Elem())
	case reflect.Struct:
		return s.fields(t)[key]
	case reflect.Interface:
		return t
	}
	return nil
}

func (s Schema) fields(t reflect.Type) map[string]reflect.Type {
	if fields, ok := s[t]; ok {
		return fields
	}
	fields := make(map[string]reflect.Type)
	for i := range t.NumField() {
		if tag := t.Field(i).Tag.Get("toml"); tag != "" {
			fields[tag] = pointedTo(t.Field(i).Type)
		}
	}
	s[t] = fields
	return fields
}

func pointedTo(t reflect.Type) reflect.Type {
	if t.Kind() == reflect.Pointer {
		return t.Elem()
	}
	return t
}

// mismatch describes what a value should be; empty if it is right.
func mismatch(t reflect.Type, value *unstable.Node) string {
	if value == nil || t.Kind() == reflect.Interface {
		return "" // a part of a dotted key, or whatever there is
	}
	ok := false
	switch {
	case t == reflect.TypeFor[time.Time]():
		ok = value.Kind == unstable.DateTime
	case t.Kind() == reflect.String:
		ok = value.Kind == unstable.String
	case t.Kind() == reflect.Bool:
		ok = value.Kind == unstable.Bool
	case t.Kind() == reflect.Int64:
		ok = value.Kind == unstable.Integer
	case t.Kind() == reflect.Slice:
		return mismatchList(t.Elem(), value)
	default:
		ok = value.Kind == unstable.Table || value.Kind == unstable.InlineTable
	}
	if ok {
		return ""
	}
	return "should be " + wanted(t)
}

// wanted describes the values of a type.
func wanted(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return "a date and time with its zone, unquoted: 2027-01-01T00:00:00Z"
	case t.Kind() == reflect.String:
		return "text in quotes"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Int64:
		return "a whole number"
	case t.Kind() == reflect.Slice:
		return "a list: [ … ]"
	}
	return "a table"
}

func mismatchList(elem reflect.Type, value *unstable.Node) string {
	if value.Kind != unstable.Array {
		return "should be " + wanted(reflect.SliceOf(elem))
	}
	for it := value.Children(); it.Next(); {
		if want := mismatch(elem, it.Node()); want != "" {
			return "each entry of the list " + want
		}
	}
	return ""
}

// printable joins a path for an error. It hides parts that do not look like keys: a secret that was pasted without its
// key is parsed as one.
func printable(path []string) string {
	shown := make([]string, len(path))
	for i, part := range path {
		shown[i] = part
		if !keyLike(part) {
			shown[i] = fmt.Sprintf("(%d characters)", len(part))
		}
	}
	return strings.Join(shown, ".")
}

func keyLike(s string) bool {
	return s != "" && len(s) < 32 &&
		strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == ""
}
