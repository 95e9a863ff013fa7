package lab

import (
	"os"
	"path/filepath"
	"testing"
)

// Vectors fails the test unless the directory contains exactly the files that were made, by their names without .txt.
// With SPA_WRITE_VECTORS set, as `go generate` sets it, it writes them first.
func Vectors(t *testing.T, dir string, made map[string]string) {
	t.Helper()
	if os.Getenv("SPA_WRITE_VECTORS") != "" {
		Must(t, os.RemoveAll(dir))
		Must(t, os.MkdirAll(dir, 0o755))
		for name, text := range made {
			Must(t, os.WriteFile(filepath.Join(dir, name+".txt"), []byte(text), 0o644))
		}
	}
	if files := Value(filepath.Glob(filepath.Join(dir, "*.txt")))(t); len(files) != len(made) {
		t.Errorf("%s: %d files, want %d: run `go generate`", dir, len(files), len(made))
	}
	for name, text := range made {
		path := filepath.Join(dir, name+".txt")
		if now, err := os.ReadFile(path); err != nil || string(now) != text {
			t.Errorf("%s is not what `go generate` makes: %v", path, err)
		}
	}
}
