//go:build unix && !linux

package keys

import (
	"os"
	"testing"

	"sallyport/spa/lab"
)

// asNobody runs f without the right to write everywhere.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() == 0 {
		lab.Skip(t, "needs to be run as an ordinary user")
	}
	f()
}
