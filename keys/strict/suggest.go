package strict

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// unknown describes an unknown key and suggests what may be meant: a key of this table with a similar spelling, or a
// key of another table, because a key after a [table] line belongs to that table.
func unknown(root, parent reflect.Type, path []string) (text, suggestion string) {
	key := path[len(path)-1]
	if s := Nearest(key, tags(parent)); s != "" {
		return "unknown key", s
	}
	if slices.Contains(tags(root), key) {
		return "unknown key here; it belongs above the first [table]", ""
	}
	for i := range root.NumField() {
		f := root.Field(i)
		if f.Type.Kind() == reflect.Struct && slices.Contains(tags(f.Type), key) {
			return fmt.Sprintf("unknown key here; it belongs in [%s]", f.Tag.Get("toml")), ""
		}
	}
	return "unknown key", ""
}

func tags(t reflect.Type) []string {
	if t.Kind() != reflect.Struct {
		return nil
	}
	var names []string
	for i := range t.NumField() {
		if tag := t.Field(i).Tag.Get("toml"); tag != "" {
			names = append(names, tag)
		}
	}
	return names
}

// Nearest returns the word closest to s, if one is close enough: at most two letters added, dropped, changed or
// swapped, and at most every third.
func Nearest(s string, words []string) string {
	best, nearest := 3, ""
	if len(s) > 64 {
		return ""
	}
	s = strings.ToLower(s)
	for _, w := range words {
		if d := distance(s, strings.ToLower(w)); d < best && 3*d <= max(len(s), len(w)) {
			best, nearest = d, w
		}
	}
	return nearest
}

// distance returns the optimal string alignment distance between a and b.
func distance(a, b string) int {
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := last[j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			row[j] = min(change, last[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
