//go:build unix && !linux

package keys

import (
	"os"
	"testing"
)

// asNobody runs f where it may not write everywhere.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() == 0 {
		t.Skip("this test needs an ordinary user")
	}
	f()
}
