package strict

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2/unstable"
)

// ParseSettings reads settings as people give them to a program, KEY=VALUE, for a file that is decoded into the struct
// that dst points to. A value is written as in the file, or simpler: text without quotes, a list as "a,b". KEY= removes
// the key, or a whole section. Errors quote no value.
func ParseSettings(dst any, args []string) ([]Setting, error) {
	var settings []Setting
	var problems []error
	given := make(map[string]bool)
	for _, arg := range args {
		s, err := parseSetting(reflect.TypeOf(dst).Elem(), arg)
		if err == nil && given[s.Key] {
			err = errors.New("is given twice")
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", printable(strings.Split(s.Key, ".")), err))
		}
		given[s.Key] = true
		settings = append(settings, s)
	}
	return settings, errors.Join(problems...)
}

// parseSetting returns a setting. With an error it has only the key.
func parseSetting(root reflect.Type, arg string) (Setting, error) {
	key, text, ok := strings.Cut(arg, "=")
	s := Setting{Key: key}
	if !ok {
		return s, errors.New("should be KEY=VALUE")
	}
	t, err := typeOf(root, strings.Split(key, "."))
	if err != nil || text == "" {
		return s, err
	}
	if t.Kind() == reflect.Map || t.Kind() == reflect.Struct && t != reflect.TypeFor[time.Time]() {
		return s, fmt.Errorf("is a section: name a key in it, such as %s=VALUE",
			slices.Sorted(maps.Keys(keysOf(t, key, "NAME")))[0])
	}
	value, err := literal(t, text)
	if err != nil {
		return s, err
	}
	return Setting{Key: key, Value: value}, nil
}

// typeOf returns the type of a key's value.
func typeOf(root reflect.Type, path []string) (reflect.Type, error) {
	t := root
	for i, part := range path {
		next := Schema{}.child(t, part)
		if next == nil || t.Kind() == reflect.Slice || !keyLike(part) {
			text, suggestion := unknown(root, t, path[:i+1])
			if suggestion != "" {
				text += fmt.Sprintf(" (did you mean %q?)", suggestion)
			}
			return nil, errors.New(text)
		}
		t = next
	}
	return t, nil
}

// literal returns a value as TOML.
func literal(t reflect.Type, text string) (string, error) {
	if !utf8.ValidString(text) {
		return "", errors.New("is not UTF-8")
	}
	value, inQuotes := text, text[0] == '"' || text[0] == '\''
	switch {
	case t.Kind() == reflect.String && !inQuotes:
		value = Quote(text)
	case t.Kind() == reflect.Interface && !inQuotes && text[0] != '[': // a text or a list of texts
		if value = Quote(text); strings.Contains(text, ",") {
			value = listOf(reflect.TypeFor[string](), strings.Split(text, ","))
		}
	case t.Kind() == reflect.Slice && inQuotes:
		value = "[" + text + "]"
	case t.Kind() == reflect.Slice && text[0] != '[':
		value = listOf(t.Elem(), strings.Split(text, ","))
	}
	line := []byte("x = " + value)
	if _, err := valueOf(value); err != nil {
		return "", errors.New("should be " + wanted(t))
	}
	p := unstable.Parser{}
	p.Reset(line)
	p.NextExpression()
	if want := mismatch(t, p.Expression().Value()); want != "" {
		return "", errors.New(want)
	}
	return value, nil
}

func listOf(elem reflect.Type, texts []string) string {
	for i, text := range texts {
		texts[i] = strings.TrimSpace(text)
		if elem.Kind() == reflect.String {
			texts[i] = Quote(texts[i])
		}
	}
	return "[" + strings.Join(texts, ", ") + "]"
}

// Keys returns the keys of a file that is decoded into the struct that dst points to, sorted: those with a value, by
// their dotted paths. In place of a name that people choose they have name.
func Keys(dst any, name string) []string {
	return slices.Sorted(maps.Keys(keysOf(reflect.TypeOf(dst).Elem(), "", name)))
}

func keysOf(t reflect.Type, path, name string) map[string]bool {
	found := make(map[string]bool)
	switch {
	case t.Kind() == reflect.Map:
		maps.Copy(found, keysOf(pointedTo(t.Elem()), joined(path, name), name))
	case t.Kind() == reflect.Struct && t != reflect.TypeFor[time.Time]():
		for tag, field := range (Schema{}).fields(t) {
			maps.Copy(found, keysOf(field, joined(path, tag), name))
		}
	default:
		found[path] = true
	}
	return found
}
