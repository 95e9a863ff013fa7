package strict

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"

	"sallyport/keys/place"
)

// Set returns the file with the settings changed, and the keys that it had to change: none if the file says all of it
// already, however it is spelt. What is not about a setting stays byte for byte.
func (d *Document) Set(settings []Setting) (text []byte, changed []string, err error) {
	for _, s := range settings {
		before, err := decoded(d.data)
		if err != nil {
			return nil, nil, d.syntax(err)
		}
		value, err := valueOf(s.Value)
		if err != nil {
			return nil, nil, err
		}
		if equal(lookUp(before, s.Key), value) {
			continue
		}
		next := d.with(s, "")
		after, err := decoded(next.data)
		if err != nil || !equal(replaced(before, s.Key, value), replaced(after, "", nil)) {
			return nil, nil, &place.FileError{File: d.path, Key: s.Key, Text: "cannot be changed without writing the lines " +
				"around it anew: edit the file"}
		}
		d, changed = next, append(changed, s.Key)
	}
	return d.data, changed, nil
}

func decoded(text []byte) (map[string]any, error) {
	var tree map[string]any
	err := toml.Unmarshal(text, &tree)
	return tree, err
}

// valueOf decodes a single value; nil if there is none. What looks like a value and more is none.
func valueOf(text string) (any, error) {
	if text == "" {
		return nil, nil
	}
	line := []byte("x = " + text)
	tree, err := decoded(line)
	if found := (&Document{data: line}).entries(); err != nil || len(found) == 0 || found[0].end != len(line) {
		return nil, errors.New("not a value of TOML")
	}
	return tree["x"], nil
}

func lookUp(tree map[string]any, key string) any {
	first, rest, more := strings.Cut(key, ".")
	if !more {
		return tree[first]
	}
	below, _ := tree[first].(map[string]any)
	return lookUp(below, rest)
}

// replaced returns a copy of a tree without empty tables, in which a key has another value, or none.
func replaced(tree map[string]any, key string, value any) map[string]any {
	first, rest, more := strings.Cut(key, ".")
	after := make(map[string]any)
	for name, v := range tree {
		below := ""
		if name == first {
			below = rest
		}
		if table, ok := v.(map[string]any); ok {
			v = replaced(table, below, value)
		}
		if table, ok := v.(map[string]any); !ok || len(table) > 0 {
			after[name] = v
		}
	}
	switch _, there := after[first]; {
	case key == "":
	case more && !there && value != nil:
		after[first] = replaced(nil, rest, value)
	case more:
	case value == nil:
		delete(after, first)
	default:
		after[first] = value
	}
	return after
}

// equal compares decoded values. Times are equal in any zone.
func equal(a, b any) bool {
	switch a := a.(type) {
	case time.Time:
		b, ok := b.(time.Time)
		return ok && a.Equal(b)
	case []any:
		b, ok := b.([]any)
		same := ok && len(a) == len(b)
		for i := 0; same && i < len(a); i++ {
			same = equal(a[i], b[i])
		}
		return same
	case map[string]any:
		b, ok := b.(map[string]any)
		same := ok && len(a) == len(b)
		for name := range a {
			same = same && equal(a[name], b[name])
		}
		return same
	}
	return reflect.DeepEqual(a, b)
}

// Quote returns a text as a string of TOML, on one line. Characters that a terminal would act on are escaped.
func Quote(text string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case unicode.IsPrint(r) && r != utf8.RuneError:
			b.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08X`, r)
		default:
			fmt.Fprintf(&b, `\u%04X`, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
