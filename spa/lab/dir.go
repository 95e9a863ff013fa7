package lab

import (
	"os"
	"slices"
	"testing"
)

// OnlyFiles fails the test unless the directory contains exactly the named files, in order: a program that was killed
// or refused leaves nothing else behind.
func OnlyFiles(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries := Value(os.ReadDir(dir))(t)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, names) {
		t.Errorf("%s holds %v, want %v", dir, got, names)
	}
}
